"""Does a rig still hold? New frames of a moving hand say so: in mm of depth, apart from how the rig was made.

Two questions: how far is A's hand from what B measures under the rig, and where would the cameras be if the rig were
found anew from these frames. The first finds bent depth and wrong files, the second says which camera moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from ..hand.arrays import Array
from . import icp
from .distances import REGIONS, Distances, distances, region_of
from .gate import lacks, measure
from .hand import Halves, covariances, solve_halves
from .joint import fit_joints
from .observe import DepthError, ObserveError, Sight
from .rig import Rig, RigCamera, RigError, Verdict
from .uncertainty import NO_HALVES, Difference, Volume, pose_difference, volume_sigma_mm

LIMIT_P50_MM, LIMIT_P95_MM = 2.5, 8.0
LIMIT_MOVED_MM = 3.0  # in the volume, and more than so many sigma of rig and check together:
LIMIT_SIGMAS = 2.5
LIMIT_CLOCK_S = 0.004
LIMIT_MET = 0.05  # of the points looked up, that find the other camera's skin; asked if twice as many could
LOST_MM = 40.0  # the rig is so far off that its depth points cannot meet


class CameraCheck(NamedTuple):
    """How far a camera is from where the rig has it, with the sigma of that, and its clock's change; moments in which
    depth ties it to the reference. With fewer than FEWEST_MOMENTS the rest is of joints, and says nothing."""

    serial: str
    moved: Difference
    sigma_mm: float
    clock_s: float
    moments: int

    @property
    def tied(self) -> bool:
        return self.moments >= icp.FEWEST_MOMENTS


class PairCheck(NamedTuple):
    """One pair, mm: medians and 95th percentiles of cloud and mesh, by region (near, middle, far) of the cloud. met is
    the share of points that find the other's skin under the rig, could_meet where the cameras were found anew."""

    a: str
    b: str
    cloud_p50_mm: float
    cloud_p95_mm: float
    mesh_p50_mm: float
    mesh_p95_mm: float
    met: float
    could_meet: float
    regions: dict[str, tuple[float, float, int]]


class Check(NamedTuple):
    verdict: Verdict
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    cameras: tuple[CameraCheck, ...]
    pairs: tuple[PairCheck, ...]
    halves: Halves | None
    moments: int


def must_be_of(rig: Rig, sights: Sequence[Sight]) -> None:
    """Raise RigError for a camera that the rig does not know as it is, ObserveError for one that is missing."""
    for sight in sights:
        rig.check(sight.serial, sight.intrinsics)
    seen = {sight.serial for sight in sights}
    missing = [camera.serial for camera in rig.cameras if camera.serial not in seen]
    if missing:
        raise ObserveError(f"rig {rig.name} has {', '.join(missing)} too: give a source of every camera")


def in_order(rig: Rig, sights: Sequence[Sight]) -> list[Sight]:
    """The sights in the rig's order, through its lenses. Raises what `must_be_of` does."""
    must_be_of(rig, sights)
    known = {sight.serial: sight for sight in sights}
    return [_refined(known[camera.serial], camera) for camera in rig.cameras]


def _refined(sight: Sight, camera: RigCamera) -> Sight:
    """The sight with joints and points where the rig's intrinsics and its depth scale have them; `icp` knows only the
    offset of the inverse depth."""
    if camera.own_intrinsics is None and camera.depth.scale == 1:
        return sight

    def seen(points_m: Array) -> Array:
        return camera.refined(points_m) / camera.depth.scale

    clouds = tuple(
        cloud._replace(
            points_m=seen(cloud.points_m),
            mesh_m=None if cloud.mesh_m is None else seen(cloud.mesh_m),
        )
        for cloud in sight.clouds
    )
    return replace(sight, intrinsics=camera.intrinsics, joints_m=seen(sight.joints_m), clouds=clouds)


def verify(rig: Rig, sights: Sequence[Sight], *, moments: int = icp.MOMENTS, seed: int = 0) -> Check:
    """Check a rig with frames it was not made from. Raises RigError or ObserveError if that cannot be."""
    sights = in_order(rig, sights)
    names = [sight.serial for sight in sights]
    volume = Volume(rig.quality.volume_centre_m, rig.quality.volume_edge_m)
    T_rig = np.stack([camera.T_ref_cam for camera in rig.cameras])
    bends = np.array([camera.depth.offset_per_m for camera in rig.cameras])
    joints = fit_joints(sights, np.random.default_rng(seed))
    notes = lacks(measure(sights, joints.offsets_s), names)
    far = [pose_difference(a, b, volume).volume_mm for a, b in zip(joints.T_ref_cam, T_rig, strict=True)]
    lost = max(far) > LOST_MM
    try:
        chosen = icp.choose_moments(sights, joints.path, joints.T_ref_cam, joints.offsets_s, moments)
        fresh = icp.fit_clouds(chosen, joints.T_ref_cam, joints.offsets_s, depth_per_m=bends)
    except DepthError as error:
        nothing = np.zeros((len(names), 8, 8)), np.zeros(len(names), int)
        cameras = _cameras(rig, joints.T_ref_cam, joints.offsets_s, *nothing)
        reasons = _reasons([], [], lost)
        found: Verdict = "fail" if reasons else "unverified"
        return Check(found, tuple(reasons), (*notes, str(error)), tuple(cameras), (), None, 0)
    under = T_rig, fresh.offsets_s, bends  # the clocks' change is another matter
    cloud, mesh = distances(chosen, *under), distances(chosen, *under, mesh=True)
    anew = distances(chosen, fresh.T_ref_cam, fresh.offsets_s, fresh.depth_per_m)
    cameras = _cameras(
        rig, fresh.T_ref_cam, fresh.offsets_s, covariances(fresh, joints), icp.tied_moments(fresh)
    )  # fmt: skip
    pairs = [_pair(names, a, b, cloud, mesh, anew, volume) for a, b in combinations(range(len(names)), 2)]
    halves = solve_halves(fresh)
    reasons = _reasons(cameras, pairs, lost)
    verdict = _verdict(reasons, cameras[1:])
    notes += _notes(cameras[1:], pairs)
    return Check(verdict, tuple(reasons), tuple(notes), tuple(cameras), tuple(pairs), halves, len(chosen))


def _cameras(rig: Rig, T_ref_cam: Array, offsets_s: Array, sigma: Array, tied: Array) -> list[CameraCheck]:
    """Where the cameras were found anew against where the rig has them."""
    volume = Volume(rig.quality.volume_centre_m, rig.quality.volume_edge_m)
    return [
        CameraCheck(
            camera.serial,
            pose_difference(T_ref_cam[c], camera.T_ref_cam, volume),
            volume_sigma_mm(sigma[c, :6, :6] + camera.covariance, volume),
            float(offsets_s[c] - camera.time.offset_s),
            int(tied[c]),
        )
        for c, camera in enumerate(rig.cameras)
    ]


def _pair(
    names: Sequence[str], a: int, b: int, cloud: Distances, mesh: Distances, anew: Distances, volume: Volume
) -> PairCheck:
    own, own_mesh = cloud.of_pair(a, b), mesh.of_pair(a, b)
    region = region_of(cloud.places_m, volume.centre_m, volume.edge_m)
    regions = {}
    for i, name in enumerate(REGIONS):
        here = own & (region == i)
        if here.sum() >= 100:
            regions[name] = (cloud.percentile_mm(50, here), cloud.percentile_mm(95, here), int(here.sum()))
    return PairCheck(
        names[a], names[b],
        cloud.percentile_mm(50, own), cloud.percentile_mm(95, own),
        mesh.percentile_mm(50, own_mesh), mesh.percentile_mm(95, own_mesh),
        cloud.met(a, b), anew.met(a, b), regions,
    )  # fmt: skip


def _should_meet(pair: PairCheck) -> bool:
    """Whether the two see common skin where they were found anew; cameras that face each other see none."""
    return pair.could_meet >= 2 * LIMIT_MET


def _reasons(cameras: Sequence[CameraCheck], pairs: Sequence[PairCheck], lost: bool) -> list[str]:
    """Why it fails, worst first; nothing if it holds."""
    found = []
    beyond = [c for c in cameras if c.tied and c.moved.volume_mm > max(LIMIT_MOVED_MM, LIMIT_SIGMAS * c.sigma_mm)]
    # All cameras are seen from the first: if it moved, all the others seem to have moved alike.
    if len(beyond) == len(cameras) - 1 and len(cameras) > 2:
        found.append(f"all cameras moved against {cameras[0].serial}: it moved itself, or this is another rig")
    elif beyond and len(cameras) == 2:
        found.append(f"{cameras[0].serial} or {cameras[1].serial} moved")
    for camera in sorted(beyond, key=lambda c: -c.moved.volume_mm):
        found.append(
            f"{camera.serial} is {camera.moved.volume_mm:.1f} mm, {camera.moved.deg:.2f} deg from where the rig has it "
            f"(sigma {camera.sigma_mm:.1f} mm, limit {LIMIT_MOVED_MM:g})"
        )
    if lost:
        found.append("the rig is not that of these cameras, or they were set up anew: calibrate again")
    for pair in pairs:
        if pair.met < LIMIT_MET:
            if _should_meet(pair):
                found.append(f"under the rig {pair.a} and {pair.b} nowhere see the same skin")
        elif pair.cloud_p50_mm > LIMIT_P50_MM or pair.cloud_p95_mm > LIMIT_P95_MM:
            found.append(
                f"{pair.a} and {pair.b}: points are {pair.cloud_p50_mm:.1f} mm apart, 95 of 100 within "
                f"{pair.cloud_p95_mm:.1f} (limits {LIMIT_P50_MM:g}, {LIMIT_P95_MM:g})"
            )
    return found


def _verdict(reasons: Sequence[str], others: Sequence[CameraCheck]) -> Verdict:
    """Of the reasons and of the cameras but the reference: a camera that may be anywhere is no pass."""
    if reasons:
        return "fail"
    doubtful = any(not c.tied or c.sigma_mm > LIMIT_MOVED_MM for c in others)
    return "unverified" if doubtful else "pass"


def _notes(others: Sequence[CameraCheck], pairs: Sequence[PairCheck]) -> list[str]:
    """What is no reason to fail, of the pairs and of the cameras but the reference."""
    found = [
        f"{pair.a} and {pair.b} hardly see the same skin from where they are: not compared"
        for pair in pairs
        if pair.met < LIMIT_MET and not _should_meet(pair)
    ]
    for c in others:
        if not c.tied:
            found.append(
                f"{c.serial}: these frames do not say where it is, for depth ties it to the others in {c.moments} "
                f"moments only (at least {icp.FEWEST_MOMENTS} wanted)"
            )
            continue
        if abs(c.clock_s) > LIMIT_CLOCK_S:
            found.append(f"{c.serial}: its clock is off by {1e3 * c.clock_s:+.1f} ms from the rig's")
        if c.sigma_mm > LIMIT_MOVED_MM:
            found.append(f"{c.serial}: these frames say where it is to {c.sigma_mm:.1f} mm only")
    return found


def as_json(check: Check) -> dict[str, Any]:
    """For a program to read; mm, degrees, seconds. None is what these frames do not say."""
    deg, mm = check.halves.apart if check.halves is not None else (None, None)
    return {
        "verdict": check.verdict,
        "reasons": list(check.reasons),
        "notes": list(check.notes),
        "moments": check.moments,
        "split_half_deg": deg,
        "split_half_mm": mm,
        "cameras": [
            {
                "serial": c.serial,
                "moved_mm": c.moved.volume_mm if known else None,
                "moved_deg": c.moved.deg if known else None,
                "sigma_mm": c.sigma_mm if known else None,
                "clock_change_s": c.clock_s if known else None,
                "moments": c.moments,
            }
            for c, known in ((c, c.tied or c is check.cameras[0]) for c in check.cameras)
        ],
        "pairs": [
            {key: None if value != value else value for key, value in p._asdict().items()}
            | {"regions": {k: {"p50_mm": a, "p95_mm": b, "n": n} for k, (a, b, n) in p.regions.items()}}
            for p in check.pairs
        ],
    }


def report(check: Check) -> list[str]:
    """In words and a table: pairs, regions, cameras, verdict."""
    lines = ["mm, median / 95 of 100     cloud         mesh          near          middle        far"]
    for pair in check.pairs:
        cells = [(pair.cloud_p50_mm, pair.cloud_p95_mm), (pair.mesh_p50_mm, pair.mesh_p95_mm)]
        cells += [pair.regions[name][:2] if name in pair.regions else (np.nan, np.nan) for name in REGIONS]
        shown = "".join(f"{f'{a:.1f} / {b:.1f}' if np.isfinite(a) else '-':14s}" for a, b in cells)
        lines.append(f"{f'{pair.a} - {pair.b}':27s}{shown}".rstrip())
    for camera in check.cameras[1:]:
        if not camera.tied:
            lines.append(f"{camera.serial}: not found by depth")
            continue
        lines.append(
            f"{camera.serial}: found {camera.moved.volume_mm:.1f} mm, {camera.moved.deg:.2f} deg from the rig's place "
            f"(sigma {camera.sigma_mm:.1f} mm), clock {1e3 * camera.clock_s:+.1f} ms"
        )
    halves = NO_HALVES
    if check.halves is not None:
        halves = "halves of these frames differ by {:.2f} deg, {:.1f} mm".format(*check.halves.apart)
    lines.append(f"{halves}; {check.moments} moments")
    lines += [f"note: {note}" for note in check.notes]
    lines += [f"wrong: {reason}" for reason in check.reasons]
    return [*lines, f"verdict: {check.verdict}"]


__all__ = ["CameraCheck", "Check", "PairCheck", "RigError", "as_json", "in_order", "report", "verify"]
