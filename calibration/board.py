"""Calibration with the printed board: from views of it to a rig, and what checks it.

The checks do not use the fit's own residuals alone, for a small RMS says little: the two halves of the recording are
solved apart and compared, one half predicts the other, and where there is depth, the board's true size is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from ..hand.arrays import Array
from ..hand.camera import Intrinsics
from ..hand.se3 import inverse
from .bundle import BundleError, Options, Solution, solve
from .corners import View
from .rig import Quality, Rig, RigCamera, RigPair, TimeOffset, Verdict, tool_name, without_clocks
from .start import Moments, moments_of, shared_moments, start_scene
from .uncertainty import (
    NO_HALVES,
    WORKING_VOLUME,
    Difference,
    Volume,
    inverted_covariance,
    pose_difference,
    volume_sigma_mm,
)

ENOUGH_SHARED = 12  # moments of the board that a pair of cameras should share
DEFAULT = Options()
BLOCK = 4  # moments, about, that stay together when a recording is halved
LIMIT_SIGMA_MM, LIMIT_HALVES_DEG, LIMIT_HALVES_MM, LIMIT_RMS_PX = 2.0, 0.4, 7.0, 1.0
LIMIT_SQUARE = 0.005  # relative error of the board's size against depth


class BoardCamera(NamedTuple):
    """A camera that looked at the board; period_s is the time between its pictures."""

    serial: str
    stream: str
    intrinsics: Intrinsics
    period_s: float


class Halves(NamedTuple):
    """The two halves of a recording solved apart: differences a camera, and how one half's rig fits the other, px."""

    differences: tuple[Difference, ...]
    heldout_rms_px: float


class BoardResult(NamedTuple):
    rig: Rig
    solution: Solution
    without_offsets: Solution | None
    halves: Halves | None
    square: float | None  # measured size of the board's squares over the size said


def fit(
    cameras: Sequence[BoardCamera], views: Sequence[View], corners_m: Array, options: Options, offsets_s: Any = None
) -> Solution:
    """Solve from single views, sorting them into moments anew while offsets move them. Raises BundleError."""
    period_s = max(camera.period_s for camera in cameras)
    offsets = np.zeros(len(cameras)) if offsets_s is None else np.array(offsets_s, np.float64)
    lenses, names = [camera.intrinsics for camera in cameras], [camera.serial for camera in cameras]
    best: Solution | None = None
    for _ in range(4 if options.offsets else 1):
        moments = moments_of(views, offsets, period_s, moving=options.offsets)
        scene = start_scene(moments, corners_m, lenses, names, offsets)
        found = solve(scene, moments.views, corners_m, options)
        moved = np.abs(found.scene.offsets_s - offsets).max()
        offsets = found.scene.offsets_s
        if best is None or found.rms_px < best.rms_px:
            best = found
        if moved < 0.1 * period_s:
            break
    assert best is not None
    return best


def solve_halves(
    cameras: Sequence[BoardCamera], views: Sequence[View], corners_m: Array, options: Options, solution: Solution
) -> Halves:
    """Alternate blocks of moments, each half solved from nothing but the offsets' start. Raises BundleError."""
    offsets = solution.scene.offsets_s
    period_s = max(camera.period_s for camera in cameras)
    moments = moments_of(views, offsets, period_s, moving=options.offsets)
    parts: tuple[list[View], list[View]] = ([], [])
    for view, knot in moments.views:
        parts[_half(knot, moments, options.offsets)].append(view)
    first, second = (fit(cameras, part, corners_m, options, offsets) for part in parts)
    differences = [
        pose_difference(inverse(a), inverse(b))
        for a, b in zip(first.scene.T_camera_ref, second.scene.T_camera_ref, strict=True)
    ]
    # The rig of one half against the views of the other: only the board's poses are free.
    held = replace(options, cameras=False, offsets=False, intrinsics=False)
    squares = []
    for rig, other in ((first, second), (second, first)):
        scene = replace(
            other.scene,
            T_camera_ref=rig.scene.T_camera_ref,
            offsets_s=rig.scene.offsets_s,
            intrinsics=rig.scene.intrinsics,
        )
        squares.append((solve(scene, other.views, corners_m, held).shared_residuals_px ** 2).sum(1))
    heldout = float(np.sqrt(np.concatenate(squares).mean()))
    return Halves(tuple(differences), heldout)


def _half(knot: int, moments: Moments, moving: bool) -> int:
    """Which half a moment belongs to; with moving, neighbours stay together to tell the board's speed."""
    if not moving:
        return knot % 2
    blocks = 0
    for run in moments.runs:
        length = run.stop - run.start
        parts = max(1, round(length / BLOCK))  # of about one length: a rest of one moment would have no neighbour
        if run.start <= knot < run.stop:
            return (blocks + (knot - run.start) * parts // length) % 2
        blocks += parts
    raise AssertionError("a moment outside of all runs")


def calibrate(
    name: str,
    cameras: Sequence[BoardCamera],
    views: Sequence[View],
    corners_m: Array,
    options: Options = DEFAULT,
    *,
    volume: Volume = WORKING_VOLUME,
    square: float | None = None,
    of_host: bool = True,
) -> BoardResult:
    """A rig from views of the board. Raises BundleError if the views do not join the cameras.

    square is the board's size as depth measured it over the size it should have (`square.board_scale`). Without of_host
    the time offsets are those of files, which live cameras do not have: they are solved for, and not in the rig.
    """
    if len(cameras) < 2:
        raise BundleError("a rig needs two cameras or more")
    plain = fit(cameras, views, corners_m, replace(options, offsets=False)) if options.offsets else None
    warnings: list[str] = []
    try:
        solution = fit(cameras, views, corners_m, options)
    except BundleError:
        if plain is None:
            raise
        warnings.append("time offsets not estimated: too few moments with the board in the pictures before or after")
        solution, plain, options = plain, None, replace(options, offsets=False)
    try:
        halves = solve_halves(cameras, views, corners_m, options, solution)
    except BundleError:
        halves = None
        warnings.append(NO_HALVES)
    rig = _rig(name, cameras, solution, halves, volume, square, warnings, options, corners_m)
    rig = rig if options.offsets and of_host else without_clocks(rig)
    return BoardResult(rig, solution, plain, halves, square)


def _rig(
    name: str,
    cameras: Sequence[BoardCamera],
    solution: Solution,
    halves: Halves | None,
    volume: Volume,
    square: float | None,
    warnings: list[str],
    options: Options,
    corners_m: Array,
) -> Rig:
    scene = solution.scene
    entries, sigmas = [], {}
    for i, camera in enumerate(cameras):
        covariance = inverted_covariance(scene.T_camera_ref[i], solution.camera_covariance(i))
        covariance = (covariance + covariance.T) / 2
        if i:
            sigmas[camera.serial] = volume_sigma_mm(covariance, volume)
        time = TimeOffset(float(scene.offsets_s[i]), solution.offset_sigma_s(i))
        T = inverse(scene.T_camera_ref[i]) if i else np.eye(4)
        own = camera.intrinsics if options.intrinsics else None
        entries.append(
            RigCamera(camera.serial, camera.stream, scene.intrinsics[i], T, covariance, time, own_intrinsics=own)
        )
    rms = {"reprojection_px": solution.rms_px, "reprojection_median_px": solution.median_px}
    deg = mm = None
    if halves is not None:
        rms["heldout_px"] = halves.heldout_rms_px
        deg = max(d.deg for d in halves.differences)
        mm = max(d.mm for d in halves.differences)
    pairs = _pairs(cameras, solution, options, corners_m)
    warnings = warnings + _warnings(solution, pairs, sigmas, deg, mm, square)
    # Little evidence does not excuse what is beyond a limit.
    verdict: Verdict = "pass" if not warnings else "unverified" if warnings == [NO_HALVES] else "fail"
    quality = Quality("board", rms, volume.centre_m, volume.edge_m, sigmas, deg, mm, verdict, tuple(warnings))
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Rig(name, now, tool_name(), tuple(entries), tuple(pairs), quality)


def _pairs(cameras: Sequence[BoardCamera], solution: Solution, options: Options, corners_m: Array) -> list[RigPair]:
    """What each two cameras share, and how far their own views put the second from where the whole rig has it."""
    scene = solution.scene
    shared = shared_moments(Moments(scene.knots_s, solution.views, scene.runs), len(cameras))
    pairs = []
    for a, b in combinations(range(len(cameras)), 2):
        if shared[a, b] == 0:
            continue
        two = [replace(view, camera=(a, b).index(view.camera)) for view, _ in solution.views if view.camera in (a, b)]
        try:
            offsets = scene.offsets_s[[a, b]] - scene.offsets_s[a]
            alone = fit([cameras[a], cameras[b]], two, corners_m, options, offsets).scene.T_camera_ref[1]
            difference = pose_difference(inverse(alone), scene.T_camera_ref[a] @ inverse(scene.T_camera_ref[b]))
            loop: tuple[float | None, float | None] = (difference.deg, difference.mm)
        except BundleError:
            loop = (None, None)
        pairs.append(RigPair(cameras[a].serial, cameras[b].serial, int(shared[a, b]), *loop))
    return pairs


def _warnings(
    solution: Solution, pairs: list[RigPair], sigmas: dict[str, float], deg: float | None, mm: float | None,
    square: float | None,
) -> list[str]:  # fmt: skip
    found = []
    if not solution.converged:
        found.append("the solution did not settle")
    if solution.rms_px > LIMIT_RMS_PX:
        found.append(
            f"corners fit to {solution.rms_px:.2f} px only (limit {LIMIT_RMS_PX:g}): moving board, blur, lens?"
        )
    best: dict[str, int] = {}
    for pair in pairs:
        for serial in (pair.a, pair.b):
            best[serial] = max(best.get(serial, 0), pair.overlap)
    found += [
        f"{serial} shares only {count} moments with its best partner (at least {ENOUGH_SHARED} wanted)"
        for serial, count in best.items()
        if count < ENOUGH_SHARED
    ]
    found += [
        f"{serial} is uncertain by {sigma:.1f} mm in the working volume (limit {LIMIT_SIGMA_MM:g})"
        for serial, sigma in sigmas.items()
        if sigma > LIMIT_SIGMA_MM
    ]
    if deg is not None and mm is not None and (deg > LIMIT_HALVES_DEG or mm > LIMIT_HALVES_MM):
        found.append(
            f"the halves of the recording differ by {deg:.2f} deg, {mm:.1f} mm "
            f"(limits {LIMIT_HALVES_DEG:g}, {LIMIT_HALVES_MM:g})"
        )
    if square is not None and abs(square - 1) > LIMIT_SQUARE:
        found.append(
            f"depth says that the board's squares are {100 * abs(square - 1):.1f} % "
            f"{'larger' if square > 1 else 'smaller'} than said: printed to fit the page?"
        )
    return found
