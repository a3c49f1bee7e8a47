"""The teacher: a kinematic hand of known shape fitted to all that one moment shows, with time to spare.

What the daemon's refit does in a few steps (docs/refit.md), here in more, with more depth points, any number of
calibrated views, and two terms that the daemon has no time for: skin must not lie where a camera looks through to
something farther away (free space), and a hand moves little from one moment to the next.

All is numpy and in one frame, the rig's reference camera's; a left hand lives in the mirror and is a right one here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...edge.chain import Posed
from ...edge.refit import THRICE, Refit, theta_of
from ...hand import se3
from ...hand.arrays import Array
from ...hand.kinematics import Shape, clamp_angles
from ...hand.skeleton import ANGLE_LIMITS_RAD

STEPS = 6
JOINT_WEIGHT = 0.15  # of a joint that the network sees and is sure of, where a depth point weighs as in the refit
SPARSER = 8  # each so manieth vertex is held against free space
SEE_THROUGH_M = 0.015  # what is read this far behind the skin is not the hand
SPACE_WEIGHT = 0.3  # of a vertex in free space
SPACE_REACH_M = 0.04
APART_WEIGHT = 10.0  # of fingers in each other, as in the daemon's refit
CALM_M = 0.02  # a radian away from the moments before and after costs as much as a joint this far off
DAMPING = 1e-4
_ROUND = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij")).reshape(2, 9)
_LOW, _HIGH = ANGLE_LIMITS_RAD.T.copy()


class Sight(NamedTuple):
    """What one view says of a moment, in the view's own frame: the network's vertices_m (V, 3) and trust (21,) in its
    joints; points_m (N, 3) of the hand; T_ref_view (4, 4); depth_m (S, S), the crop's depth along its axis with 0 where
    nothing is read and inf where nothing is near, and slope, half its width over its distance."""

    vertices_m: Array
    trust: Array
    points_m: Array
    T_ref_view: Array
    depth_m: Array
    slope: float


class Fitted(NamedTuple):
    """A fitted hand in the reference frame: T_ref_wrist (4, 4), angles (20,) rad, joints_m (21, 3); gap_mm the median
    distance of depth points to skin, through the share of facing skin that lies in free space, apart_mm the mean
    distance of the network's joints to these."""

    T_ref_wrist: Array
    angles: Array
    joints_m: Array
    gap_mm: float
    through: float
    apart_mm: float

    @property
    def theta(self) -> Array:
        return theta_of(self.T_ref_wrist, self.angles)


class Teacher:
    """Fits hands of one shape; owns what is fixed of it."""

    def __init__(self, shape: Shape, refit: Refit | None = None) -> None:
        self.refit = refit or Refit()
        self.shape = shape
        self.rest = self.refit.chain.at_rest(shape)
        self.skin = np.ascontiguousarray(self.refit.chain.skin_of(shape.beta)[:, ::SPARSER])

    def start(self, sight: Sight) -> tuple[Array, Array, Array]:
        """Joints (21, 3) and angles (20,) that one view's network sees, and a wrist (4, 4), in the reference frame."""
        vertices = se3.apply(sight.T_ref_view, sight.vertices_m)
        fit = self.refit.solve(vertices, shape=self.shape, weights=sight.trust)
        return fit.joints_free_m, fit.angles, fit.T_wrist

    def __call__(
        self, sights: Sequence[Sight], before: Fitted | None = None, calm: Array | None = None, steps: int = STEPS
    ) -> Fitted:
        """Fit one moment, from an earlier fit if one is given; calm (20,) are the angles of the moments about it."""
        starts = [self.start(s) for s in sights]
        clear = np.array([s.trust.mean() for s in sights])
        best = int(clear.argmax())
        wanted = np.einsum("k,ka->a", clear / clear.sum(), np.stack([s[1] for s in starts]))
        root, at, angles = starts[best][2][:3, :3], starts[best][2][:3, 3], starts[best][1]
        if before is not None:
            root, at, angles = before.T_ref_wrist[:3, :3], before.T_ref_wrist[:3, 3], before.angles
        posed = self.refit.chain.pose(root, angles, self.rest)
        for _ in range(steps):
            normal, gradient = self._equations(posed, at, angles, sights, [s[0] for s in starts], wanted, calm)
            root, at, angles = advance(root, at, angles, normal, gradient)
            posed = self.refit.chain.pose(root, angles, self.rest)
        return self._judged(posed, root, at, angles, sights, [s[0] for s in starts])

    def _equations(
        self, posed: Posed, at: Array, angles: Array, sights: Sequence[Sight], targets: list[Array], wanted: Array,
        calm: Array | None,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Normal matrix (26, 26) and gradient (26,) of all terms."""
        refit = self.refit
        screws = refit.chain.screws(posed)
        rows = refit.joint_rows(posed, screws)
        normal, gradient = np.zeros((26, 26)), np.zeros(26)
        for sight, target in zip(sights, targets, strict=True):
            weighted = rows * (JOINT_WEIGHT * sight.trust[THRICE, None] / len(sights))
            normal += weighted.T @ rows
            gradient += (target - posed.joints_m - at).ravel() @ weighted
            for more, pull in (self.to_points(posed, screws, at, sight), self.out_of_space(posed, screws, at, sight)):
                normal += more
                gradient += pull
        spring = refit.angle_prior
        for aim, weight in ((wanted, spring), (calm, CALM_M**2)):
            if aim is not None:
                normal[range(6, 26), range(6, 26)] += weight
                gradient[6:] += weight * (aim - angles)
        overlaps = refit.spheres.overlaps(posed, self.rest)
        if overlaps is not None:
            apart = overlaps.rows(refit.chain, screws)
            normal += APART_WEIGHT * (apart.T @ apart)
            gradient += APART_WEIGHT * (overlaps.deep_m @ apart)
        return normal, gradient

    def to_points(self, posed: Posed, screws: Array, at: Array, sight: Sight) -> tuple[Array, Array]:
        """Depth points to the skin that faces their camera (Dual Grid Net, eq. 7, as the daemon's refit has it)."""
        if not len(sight.points_m):
            return np.zeros((26, 26)), np.zeros(26)
        eye = sight.T_ref_view[:3, 3]
        points = se3.apply(sight.T_ref_view, sight.points_m) - eye  # as if the camera stood at the origin
        meet = self.refit.meet(posed, self.rest, at - eye, points)
        rows = self.refit.chain.rows(screws, meet.place_m, meet.normal, self.refit.chain.moved[meet.part])
        weighted = rows * (meet.weight * (96 / len(points)))[:, None]
        return weighted.T @ rows, meet.gap_m @ weighted

    def out_of_space(self, posed: Posed, screws: Array, at: Array, sight: Sight) -> tuple[Array, Array]:
        """Skin that lies where the camera sees something farther away goes to the nearest of the hand's points, across
        the line of sight."""
        outside, seen = self._through(posed, at, sight)
        if not len(outside) or not len(sight.points_m):
            return np.zeros((26, 26)), np.zeros(26)
        here = seen[outside]  # (K, 3) in the view's frame
        across = sight.points_m[:, :2] / sight.points_m[:, 2:]
        mine = here[:, :2] / here[:, 2:]
        nearest = ((mine[:, None] - across[None]) ** 2).sum(2).argmin(1)
        way = np.concatenate([(across[nearest] - mine) * here[:, 2:], np.zeros((len(here), 1))], 1)
        far = np.linalg.norm(way, axis=1)
        keep = far > 1e-4
        outside, way, far = outside[keep], way[keep], far[keep]
        direction = (way / far[:, None]) @ sight.T_ref_view[:3, :3].T
        place = self._skin(posed)[outside]
        part = self.refit.template.part[::SPARSER][outside]
        rows = self.refit.chain.rows(screws, place, direction, self.refit.chain.moved[part])
        weighted = rows * (SPACE_WEIGHT * (far < SPACE_REACH_M))[:, None]
        return weighted.T @ rows, far @ weighted

    def _skin(self, posed: Posed) -> Array:
        """Every SPARSERth vertex relative to the wrist, m."""
        return self.refit.chain.skin(posed, self.rest, self.skin, np.zeros(3)).astype(np.float64)

    def _through(self, posed: Posed, at: Array, sight: Sight) -> tuple[Array, Array]:
        """Which of the sparse vertices (M, 3) lie in free space, and all of them in the view's frame."""
        T = sight.T_ref_view
        seen = (self._skin(posed) + at - T[:3, 3]) @ T[:3, :3]
        size = len(sight.depth_m)
        cell = np.floor((seen[:, :2] / np.maximum(seen[:, 2:], 0.05) / sight.slope + 1) * size / 2).astype(int)
        inside = ((cell >= 0) & (cell < size)).all(1)
        column, row = cell.clip(1, size - 2).T[:, :, None]
        behind = sight.depth_m[row + _ROUND[0], column + _ROUND[1]].min(1)  # a rim's pixel may show either side
        return np.flatnonzero(inside & (behind > seen[:, 2] + SEE_THROUGH_M)), seen

    def _judged(
        self, posed: Posed, root: Array, at: Array, angles: Array, sights: Sequence[Sight], targets: list[Array]
    ) -> Fitted:
        gaps, through = [], []
        for sight in sights:
            eye = sight.T_ref_view[:3, 3]
            if len(sight.points_m):
                meet = self.refit.meet(posed, self.rest, at - eye, se3.apply(sight.T_ref_view, sight.points_m) - eye)
                gaps.append(np.abs(meet.gap_m))
            through.append(len(self._through(posed, at, sight)[0]) / self.skin.shape[1])
        joints = posed.joints_m + at
        apart = min(float(np.linalg.norm(t - joints, axis=1).mean()) for t in targets)
        gap = float(np.median(np.concatenate(gaps))) * 1e3 if gaps else float("nan")
        return Fitted(se3.transform(root, at), angles, joints, gap, float(np.mean(through)), apart * 1e3)

    def vertices(self, fitted: Fitted) -> Array:
        """The fitted mesh (V, 3) m in the reference frame."""
        return self.refit.pose(fitted.T_ref_wrist, fitted.angles, self.shape)[1].astype(np.float64)


def advance(root: Array, at: Array, angles: Array, normal: Array, gradient: Array) -> tuple[Array, Array, Array]:
    """A damped Gauss-Newton step inside the limits; angles at a limit that want to pass it are held."""
    held = np.flatnonzero(((angles <= _LOW) & (gradient[6:] < 0)) | ((angles >= _HIGH) & (gradient[6:] > 0))) + 6
    normal, gradient = normal.copy(), gradient.copy()
    normal[range(26), range(26)] += DAMPING * np.diag(normal) + 1e-9
    normal[held], normal[:, held] = 0, 0
    normal[held, held], gradient[held] = 1, 0
    step = np.linalg.solve(normal, gradient)
    turn = step[3:6] * min(1.0, 0.5 / max(float(np.linalg.norm(step[3:6])), 1e-9))
    return se3.so3_exp(turn) @ root, at + step[:3], clamp_angles(angles + step[6:].clip(-0.5, 0.5))
