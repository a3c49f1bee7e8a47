"""How well a network sees a recording, without labels: two networks side by side, frame for frame.

Both run through a tracker of the daemon's kind. Where both see a hand, both are measured against the same depth points;
how far a network's own hand, before the refit, is from a possible one says the rest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ...edge.engines import Engine
from ...edge.evaluate import hand_points, surface_distance_mm
from ...edge.finder import Finder
from ...edge.refit import Fit, Refit
from ...edge.tracker import Tracker
from ...hand.arrays import Array
from ...hand.frames import DepthFrame
from ...hand.kinematics import angles_from_rotations, clamp_angles
from ...hand.messages import WireHand
from ...hand.render import render_depth
from ...hand.skeleton import BONE_STARTS, PARENT_OR_PALM
from ...hand.template import template

SAME_M = 0.10  # hands of two networks, or cameras, as near as this are one
POINTS = 400  # of the depth that distances are taken from
PICTURE_PX = 212  # width at which silhouettes are compared, at most
SEE_THROUGH_M = 0.03  # a reading this far behind the mesh: there is no hand
LEAST_POINTS = 30


class Hand(NamedTuple):
    """A tracked hand and what is known of the network's own before the refit: vertices own_m (V, 3) m in the camera
    frame; degrees its angles are past their limits and mm its bones are off the held shape's, means; mm its deepest
    overlap of fingers; jitter_mm the joints' second difference, NaN if it was not measured in three frames running."""

    tracked: WireHand
    own_m: Array
    limits_deg: float
    bones_mm: float
    overlap_mm: float
    jitter_mm: float


class Observer:
    """One network in a tracker of its own; see(frame) gives the measured hands."""

    def __init__(self, engine: Engine, finder: Finder) -> None:
        self._refit = _Noting()
        self.tracker = Tracker(engine, finder, refit=self._refit)
        self._past: dict[int, list[Array]] = {}

    def see(self, frame: DepthFrame, alone: bool = False) -> list[Hand]:
        """alone: this frame does not follow on the last one."""
        if alone:
            self.tracker.reset()
            self._past = {}
        self._refit.solved = []
        hands, past = [], {}
        for tracked in self.tracker.process(frame):
            joints = tracked.joints_raw_m
            if joints is None:
                continue
            before = self._past.get(tracked.id, [])
            past[tracked.id] = [*before[-1:], joints]
            jitter = joints - 2 * before[1] + before[0] if len(before) == 2 else np.full((1, 3), np.nan)
            solved = next((s for s in self._refit.solved if _is_of(s[1], joints)), None)
            if solved is not None:
                hands.append(self._hand(tracked, joints, *solved, float(np.linalg.norm(jitter, axis=1).mean() * 1e3)))
        self._past = past
        return hands

    def _hand(self, tracked: WireHand, joints: Array, vertices: Array, fit: Fit, jitter_mm: float) -> Hand:
        refit = self._refit
        to_camera = np.linalg.lstsq(fit.joints_m, joints, rcond=None)[0]  # (3, 3), a turn, of a left hand a mirror too
        rotation = refit.parts(vertices)[0]
        local = np.swapaxes(rotation[PARENT_OR_PALM], 1, 2) @ rotation
        angles = angles_from_rotations(refit.template, local)
        allowed = clamp_angles(angles)
        rest = refit.chain.at_rest(fit.shape)
        overlaps = refit.spheres.overlaps(refit.chain.pose(rotation[0], allowed, rest), rest)
        off = _bones(fit.joints_free_m) - _bones(fit.joints_m)
        return Hand(
            tracked,
            vertices @ to_camera,
            float(np.degrees(np.abs(angles - allowed)).mean()),
            float(np.abs(off).mean() * 1e3),
            0.0 if overlaps is None else float(overlaps.deep_m.max() * 1e3),
            jitter_mm,
        )


def matched(old: list[Hand], new: list[Hand]) -> list[tuple[Hand, Hand]]:
    """The hands that both networks see."""
    pairs = []
    for hand in old:
        middle = hand.tracked.pose.joints_m.mean(0)
        away = [float(np.linalg.norm(h.tracked.pose.joints_m.mean(0) - middle)) for h in new]
        if away and min(away) < SAME_M:
            pairs.append((hand, new[int(np.argmin(away))]))
    return pairs


def plausibility(hand: Hand) -> dict[str, float]:
    """What costs nothing to measure."""
    return {
        "jitter_mm": hand.jitter_mm, "limits_deg": hand.limits_deg, "bones_mm": hand.bones_mm,
        "overlap_mm": hand.overlap_mm,
    }  # fmt: skip


def agreement(frame: DepthFrame, hands: tuple[Hand, ...]) -> list[dict[str, float]]:
    """Of hands that are one, as several networks see it: how well each fits the depth that any of them takes for hand.

    Distances from depth to the published mesh (median, 90 %) and to the network's own, mm, and the silhouette's
    agreement, 0 to 1. Empty dicts where there is too little depth.
    """
    clouds = [hand_points(frame, hand.tracked.pose) for hand in hands]
    points = np.unique(np.concatenate(clouds), axis=0)
    if len(points) < LEAST_POINTS:
        return [{} for _ in hands]
    points = points[:: -(-len(points) // POINTS)]
    faces, small = template().faces, _smaller(frame)
    result = []
    for hand in hands:
        mesh = hand.tracked.pose.vertices_m
        distance = surface_distance_mm(points, mesh, faces)
        own = surface_distance_mm(points, hand.own_m, faces)
        result.append(
            {
                "fit_p50_mm": float(np.median(distance)),
                "fit_p90_mm": float(np.percentile(distance, 90)),
                "own_fit_mm": float(np.median(own)),
                "silhouette": silhouette(small, points, mesh),
            }
        )
    return result


def silhouette(frame: DepthFrame, points: Array, mesh_m: Array) -> float:
    """Harmonic mean of two shares: of the hand's points (N, 3) m the mesh covers, and of the mesh's pixels those that
    the camera does not look through."""
    drawn = render_depth(mesh_m, template().faces, frame.intrinsics)
    k = frame.intrinsics
    pixel = np.rint(k.project(points)).astype(int).clip(0, [k.width - 1, k.height - 1])
    covered = float((drawn[pixel[:, 1], pixel[:, 0]] > 0).mean())
    there = drawn > 0
    if not there.any():
        return 0.0
    solid = 1 - float((frame.depth * np.float32(frame.depth_unit_m) > drawn + SEE_THROUGH_M)[there].mean())
    return 2 * covered * solid / max(covered + solid, 1e-9)


def same_hand(hands_m: list[list[Array]], seen_m: list[Array]) -> list[Array]:
    """Of a camera's hands, each as several networks place it, joints (21, 3) m in the rig's frame, the one that the
    cameras before saw as seen_m; any one if there were none, [] if none is near."""

    def apart_m(hand: list[Array]) -> float:
        return float(np.linalg.norm((hand[0] - seen_m[0]).mean(0))) if seen_m else 0.0

    nearest = min(hands_m, key=apart_m)
    return nearest if apart_m(nearest) < SAME_M else []


def views_mm(joints_m: list[Array]) -> float:
    """Mean distance between the joints (21, 3), in one frame, that several cameras see; NaN for one camera."""
    apart = [np.linalg.norm(a - b, axis=1).mean() for i, a in enumerate(joints_m) for b in joints_m[:i]]
    return float(np.mean(apart) * 1e3) if apart else float("nan")


class _Noting(Refit):
    """The daemon's refit, that also keeps what went in and came out in this frame."""

    def __init__(self) -> None:
        super().__init__()
        self.solved: list[tuple[Array, Fit]] = []

    def solve(self, vertices_m: Array, **given: Any) -> Fit:
        fit = super().solve(vertices_m, **given)
        self.solved.append((vertices_m, fit))
        return fit


def _is_of(fit: Fit, joints_m: Array) -> bool:
    """Whether joints (21, 3) are those of the fit, seen from elsewhere."""
    return bool(np.allclose(_spans(fit.joints_m), _spans(joints_m), atol=1e-8))


def _spans(joints_m: Array) -> Array:
    return np.linalg.norm(joints_m[[4, 8, 12, 16, 20]] - joints_m[0], axis=1)


def _bones(joints_m: Array) -> Array:
    """(20,) m."""
    return np.linalg.norm(joints_m[1:] - joints_m[BONE_STARTS], axis=1)


def _smaller(frame: DepthFrame) -> DepthFrame:
    """The frame at every n-th pixel, as narrow as `PICTURE_PX`."""
    n = -(-frame.intrinsics.width // PICTURE_PX)
    if n == 1:
        return frame
    depth, k = np.ascontiguousarray(frame.depth[::n, ::n]), frame.intrinsics
    size = {"width": depth.shape[1], "height": depth.shape[0]}
    return replace(
        frame, depth=depth, intrinsics=replace(k, fx=k.fx / n, fy=k.fy / n, cx=k.cx / n, cy=k.cy / n, **size)
    )
