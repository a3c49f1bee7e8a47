"""Calibration with a moving hand: from what the cameras saw of it to a rig, and what checks it.

Joints give lags, poses and time offsets to start from (`pairwise`, `joint`); the hand's own depth points give the
answer (`icp`). What is said of its error is not the fit's own residual: blocks of time are left out in turn, the two
halves are solved apart, one half's rig is tried on the other half's points, and each pair is solved by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from itertools import combinations
from typing import NamedTuple

import numpy as np

from ..hand.arrays import Array
from ..hand.se3 import skew
from . import icp
from .distances import Distances, distances
from .gate import Motion, lacks, measure
from .joint import JointFit, fit_joints
from .observe import DepthError, ObserveError, Sight, different
from .rig import DepthCorrection, Quality, Rig, RigCamera, RigPair, TimeOffset, Verdict, tool_name
from .uncertainty import NO_HALVES, Difference, Volume, pose_difference, volume_sigma_mm

BLOCKS = 10  # of time, left out in turn
HALF_BLOCKS = 8  # of time, that go to one half and the other by turns
EDGE_M = 0.4  # of the working volume
# What no resampling shows, since every part of the recording has it: outlines, normals and matches that lean one way.
# Per axis, about the middle of the volume.
FLOOR_TURN_RAD, FLOOR_SHIFT_M, FLOOR_OFFSET_S = np.radians(0.05), 0.25e-3, 0.5e-3
JOINTS_SHIFT_M = 5e-3  # per axis, of a camera placed by joints alone: a network's are off together, all the time
LIMIT_SIGMA_MM, LIMIT_HALVES_DEG, LIMIT_HALVES_MM = 2.0, 0.4, 3.0
LIMIT_P50_MM, LIMIT_P95_MM = 2.5, 8.0
LIMIT_LOOP_MM = 5.0


class Halves(NamedTuple):
    """The two halves solved apart: differences a camera, and how one half's rig fits the other's points."""

    differences: tuple[Difference, ...]
    heldout: Distances

    @property
    def apart(self) -> tuple[float, float]:
        """Degrees, and mm in the volume, of the camera that differs most."""
        return max(d.deg for d in self.differences), max(d.volume_mm for d in self.differences)


class HandResult(NamedTuple):
    rig: Rig
    motion: Motion
    joints: JointFit
    clouds: icp.IcpFit
    halves: Halves | None
    lacks: tuple[str, ...]


def calibrate(
    name: str, sights: Sequence[Sight], *, force: bool = False, say: Callable[[str], None] | None = None,
    moments: int = icp.MOMENTS, seed: int = 0,
) -> HandResult:  # fmt: skip
    """A rig from what two cameras or more saw; the first is the reference.

    Raises ObserveError if the motion will not do, with what to do instead; with force it goes on while it can.
    """
    say = say or (lambda _: None)
    if len(sights) < 2:
        raise ObserveError("a rig needs two cameras or more")
    names = [sight.serial for sight in sights]
    different(names)
    missing = lacks(measure(sights), names)
    if missing and not force:
        raise ObserveError("; ".join(missing))
    say("joints: time lags and poses")
    joints = fit_joints(sights, np.random.default_rng(seed))
    motion = measure(sights, joints.offsets_s)
    missing = lacks(motion, names)
    if missing and not force:
        raise ObserveError("; ".join(missing))
    say("depth points: refining")
    chosen = icp.choose_moments(sights, joints.path, joints.T_ref_cam, joints.offsets_s, moments)
    fit = icp.fit_clouds(chosen, joints.T_ref_cam, joints.offsets_s)
    say("checking: halves, pairs, blocks of time")
    halves = solve_halves(fit)
    rig = _rig(name, sights, joints, fit, halves, missing)
    return HandResult(rig, motion, joints, fit, halves, tuple(missing))


def solve_halves(fit: icp.IcpFit) -> Halves | None:
    """Alternate blocks of moments, each half solved apart from the whole's solution; None if depth does not tie each
    camera in both that it ties in the whole."""
    count = len(fit.moments)
    half = (np.arange(count) * HALF_BLOCKS // count) % 2
    solved, parts = [], []
    for h in (0, 1):
        part = [moment for moment, side in zip(fit.moments, half, strict=True) if side == h]
        parts.append(part)
        try:
            solved.append(_again(part, fit))
        except DepthError:
            return None
        if (solved[-1].held != fit.held).any():
            return None
    differences = tuple(
        pose_difference(a, b, _volume(fit)) for a, b in zip(solved[0].T_ref_cam, solved[1].T_ref_cam, strict=True)
    )
    tried = [distances(parts[1 - h], solved[h].T_ref_cam, solved[h].offsets_s, solved[h].depth_per_m) for h in (0, 1)]
    return Halves(differences, Distances.joined(tried))


def jackknife(fit: icp.IcpFit) -> Array:
    """Covariance (C, 8, 8) of turn, shift, time and depth offset, from leaving out blocks of time in turn (Tukey 1958).

    Errors of neighbouring frames go together, so that the normal matrix alone promises far too much.
    """
    count = len(fit.moments)
    blocks = min(BLOCKS, count)
    block = np.arange(count) * blocks // count
    steps = np.stack([fit.step_without(block == b) for b in range(blocks)])  # (B, C, 8)
    away = steps - steps.mean(0)
    return (blocks - 1) / blocks * np.einsum("bci,bcj->cij", away, away)


def covariances(fit: icp.IcpFit, joints: JointFit) -> Array:
    """(C, 8, 8): what blocks of time say, of cameras that depth did not place what the joints say, and the floor below
    which nothing is believed; 0 for the reference."""
    found = jackknife(fit)
    for c in np.flatnonzero(fit.held):
        at = slice(7 * c, 7 * c + 7)
        found[c, :7, :7] = joints.covariance[at, at]
        found[c, range(3, 6), range(3, 6)] += JOINTS_SHIFT_M**2
        found[c, 7, 7] = icp.DEPTH_SIGMA_PER_M**2
    middle = np.array(_volume(fit).centre_m)
    about = np.eye(8)
    about[3:6, :3] = skew(middle)
    floor = np.diag(
        [FLOOR_TURN_RAD**2] * 3 + [FLOOR_SHIFT_M**2] * 3 + [FLOOR_OFFSET_S**2, icp.DEPTH_SIGMA_PER_M**2 / 16]
    )
    found[1:] += about @ floor @ about.T
    return found


def _again(moments: Sequence[icp.Moment], fit: icp.IcpFit) -> icp.IcpFit:
    return icp.fit_clouds(
        moments, fit.T_ref_cam, fit.offsets_s, depth_per_m=fit.depth_per_m, wide_m=1.5 * icp.NARROW_M, iterations=7,
        held=fit.held,
    )  # fmt: skip


def _volume(fit: icp.IcpFit) -> Volume:
    """Where the hand was: a cube about the middle of its points, to the centimetre."""
    points = np.stack(
        [
            fit.T_ref_cam[view.camera][:3, :3] @ view.points_m.mean(0) + fit.T_ref_cam[view.camera][:3, 3]
            for moment in fit.moments
            for view in moment.views[:1]
        ]
    )
    x, y, z = (round(float(v), 2) for v in np.median(points, 0))
    return Volume((x, y, z), EDGE_M)


def _pairs(sights: Sequence[Sight], fit: icp.IcpFit) -> list[RigPair]:
    """What each two cameras share, and how far their points alone put the second from where the whole rig has it."""
    pairs, volume = [], _volume(fit)
    for a, b in combinations(range(len(sights)), 2):
        two = []
        for moment in fit.moments:
            views = tuple(
                view._replace(camera=(a, b).index(view.camera)) for view in moment.views if view.camera in (a, b)
            )
            if len(views) == 2:
                two.append(moment._replace(views=views))
        if len(two) < 4:
            continue
        loop: tuple[float | None, float | None] = (None, None)
        # The pair's first camera holds, but where the rig has it: that is the frame the velocities are in.
        both = [a, b]
        start = fit.offsets_s[both]
        try:
            alone = icp.fit_clouds(
                two, fit.T_ref_cam[both], start, depth_per_m=fit.depth_per_m[both], wide_m=1.5 * icp.NARROW_M,
                iterations=6,
            )  # fmt: skip
            difference = pose_difference(alone.T_ref_cam[1], fit.T_ref_cam[b], volume)
            loop = difference.deg, difference.volume_mm
        except DepthError:
            pass
        pairs.append(RigPair(sights[a].serial, sights[b].serial, len(two), *loop))
    return pairs


def _rig(
    name: str, sights: Sequence[Sight], joints: JointFit, fit: icp.IcpFit, halves: Halves | None,
    missing: list[str],
) -> Rig:  # fmt: skip
    found, volume = covariances(fit, joints), _volume(fit)
    entries, sigmas = [], {}
    for c, sight in enumerate(sights):
        covariance = (found[c, :6, :6] + found[c, :6, :6].T) / 2
        time = TimeOffset(float(fit.offsets_s[c]), float(np.sqrt(found[c, 6, 6])))
        depth = DepthCorrection(1.0, float(fit.depth_per_m[c]), float(np.sqrt(found[c, 7, 7])) if c else None)
        T = fit.T_ref_cam[c] if c else np.eye(4)
        entries.append(RigCamera(sight.serial, sight.stream, sight.intrinsics, T, covariance, time, depth))
        if c:
            sigmas[sight.serial] = volume_sigma_mm(covariance, volume)
    pairs = _pairs(sights, fit)
    rms = {"joints_mm": 1e3 * joints.rms_m, "depth_mm": 1e3 * fit.rms_m}
    deg = mm = None
    if halves is not None:
        deg, mm = halves.apart
        rms |= {"heldout_p50_mm": halves.heldout.p50_mm, "heldout_p95_mm": halves.heldout.p95_mm}
    warnings = missing + _warnings(sights, fit, pairs, sigmas, halves)
    verdict: Verdict = "pass" if not warnings else "unverified" if warnings == [NO_HALVES] else "fail"
    quality = Quality("hand", rms, volume.centre_m, volume.edge_m, sigmas, deg, mm, verdict, tuple(warnings))
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Rig(name, now, tool_name(), tuple(entries), tuple(pairs), quality)


def _warnings(
    sights: Sequence[Sight], fit: icp.IcpFit, pairs: list[RigPair], sigmas: dict[str, float],
    halves: Halves | None,
) -> list[str]:  # fmt: skip
    found = []
    for sight, count in zip(sights[1:], icp.tied_moments(fit)[1:], strict=True):
        if count < icp.FEWEST_MOMENTS:
            found.append(
                f"{sight.serial}: depth ties it to the others in {count} moments only "
                f"(at least {icp.FEWEST_MOMENTS} wanted): where it is, is little known"
            )
    found += [
        f"{serial} is uncertain by {sigma:.1f} mm in the working volume (limit {LIMIT_SIGMA_MM:g})"
        for serial, sigma in sigmas.items()
        if sigma > LIMIT_SIGMA_MM
    ]
    if halves is None:
        found.append(NO_HALVES)
    else:
        (deg, mm), heldout = halves.apart, halves.heldout
        if deg > LIMIT_HALVES_DEG or mm > LIMIT_HALVES_MM:
            found.append(
                f"the halves of the recording differ by {deg:.2f} deg, {mm:.1f} mm "
                f"(limits {LIMIT_HALVES_DEG:g}, {LIMIT_HALVES_MM:g})"
            )
        if heldout.p50_mm > LIMIT_P50_MM or heldout.p95_mm > LIMIT_P95_MM:
            found.append(
                f"one half's rig leaves the other half's points {heldout.p50_mm:.1f} mm apart, {heldout.p95_mm:.1f} at "
                f"worst (limits {LIMIT_P50_MM:g}, {LIMIT_P95_MM:g}; median, 95 of 100)"
            )
    found += [
        f"{pair.a} and {pair.b} alone disagree with the whole rig by {pair.loop_mm:.1f} mm (limit {LIMIT_LOOP_MM:g})"
        for pair in pairs
        if pair.loop_mm is not None and pair.loop_mm > LIMIT_LOOP_MM
    ]
    return found
