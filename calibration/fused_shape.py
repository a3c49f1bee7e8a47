"""The shape of a hand that several cameras see: bone scales and morphs, estimated over its first seconds, then held.

One camera sees one side of a hand and cannot tell a thick finger from a near one; several together can. At a refitted
frame the equations of joints and depth points are written once more with the 13 numbers of the shape, the cameras' halo
(`many_views.py`) and a scale of the network's own beside the 26 of the pose; the pose and that scale are eliminated
(Schur complement), and what is left is added up over frames against a prior, as `edge/person.py` does for one camera
and bone scales alone. When there are frames enough, each is looked at again with the shape found so far.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..edge.refit import EACH_AXIS, THRICE
from ..hand.kinematics import Shape
from ..hand.skeleton import ANGLE_LIMITS_RAD
from .many_views import PRIOR_M, Guess, Pose, Surface, Target, refit

Array = NDArray[Any]
EVERY_NS = 50_000_000
FRAMES, ROUNDS = 60, 3  # frames looked at, and how often again, one a step; then the shape is final
AGAIN_STEPS = 4  # of the refit when a frame is looked at again
NOISE_M = 0.006  # of a row; neighbouring frames and pixels are wrong alike
JOINT_WEIGHT = 0.06  # of joints, where the refit has 1: their proportions are those that the network has learned
SPREAD, SPREAD_OF_FINGERS, SPREAD_OF_MORPHS, SPREAD_OF_HALO_M = 0.15, 0.03, 0.4, 0.004  # the prior's deviations
STEP = 0.01  # of the differences
ALPHA_RANGE, BETA_RANGE, MOST_HALO_M = (0.75, 1.35), (-1.2, 1.2), 0.012


class Looked(NamedTuple):
    """A frame that was looked at: information (14, 14) on alpha, beta and halo, and pull (14,), of what they are."""

    target: Target
    guesses: list[Guess]
    information: Array
    pull: Array


class FusedShape:
    """The shape so far (`shape`), the cameras' halo (`halo_m`), and whether they are final (`held`). alpha (6,) is the
    first guess."""

    def __init__(self, surface: Surface, alpha: Array) -> None:
        self.shape, self.halo_m = Shape(np.asarray(alpha, float), np.zeros(7)), 0.0
        self._surface = surface
        self._looked: list[Looked] = []
        self._again = 0
        self._last_ns: int | None = None
        self._prior = np.zeros((14, 14))
        self._prior[:6, :6] = np.linalg.inv(SPREAD**2 * np.ones((6, 6)) + SPREAD_OF_FINGERS**2 * np.eye(6))
        self._prior[6:13, 6:13] = np.eye(7) / SPREAD_OF_MORPHS**2
        self._prior[13, 13] = 1 / SPREAD_OF_HALO_M**2
        self._mean = np.concatenate([self.shape.alpha, np.zeros(8)])

    @property
    def held(self) -> bool:
        return self._again >= ROUNDS * FRAMES

    def observe(self, t_ns: int, pose: Pose, target: Target, guesses: list[Guess]) -> None:
        """Once a step, with its refitted frame. Frames nearer than 50 ms to the last, or without depth from two
        cameras, say nothing new."""
        if self.held:
            return
        if len(self._looked) < FRAMES:
            enough = sum(len(guess.points_m) >= 30 for guess in guesses) >= 2
            if not enough or (self._last_ns is not None and 0 <= t_ns - self._last_ns < EVERY_NS):
                return
            self._last_ns = t_ns
            self._looked.append(self._look(pose, target, guesses))
        else:
            k = self._again % FRAMES
            self._again += 1
            target, guesses = self._looked[k][:2]
            pose = refit(self._surface, self.shape, target, guesses, steps=AGAIN_STEPS, halo_m=self.halo_m)
            self._looked[k] = self._look(pose, target, guesses)
        self._solve()
        if self.held:
            self._looked = []

    def _look(self, pose: Pose, target: Target, guesses: list[Guess]) -> Looked:
        information, pull = shape_evidence(self._surface, self.shape, pose, target, guesses, self.halo_m)
        return Looked(
            target, guesses, information, pull + information @ np.append(np.concatenate(self.shape), self.halo_m)
        )

    def _solve(self) -> None:
        information = sum((one.information for one in self._looked), np.zeros((14, 14))) / NOISE_M**2
        pull = sum((one.pull for one in self._looked), np.zeros(14)) / NOISE_M**2
        new = np.linalg.solve(information + self._prior, pull + self._prior @ self._mean)
        self.shape = Shape(np.clip(new[:6], *ALPHA_RANGE), np.clip(new[6:13], *BETA_RANGE))
        self.halo_m = min(max(float(new[13]), 0.0), MOST_HALO_M)


def shape_evidence(
    surface: Surface, shape: Shape, pose: Pose, target: Target, guesses: list[Guess], halo_m: float = 0.0
) -> tuple[Array, Array]:
    """Of one frame: information (14, 14) on alpha, beta and halo, and pull (14,) away from those given."""
    chain = surface.chain
    rest, skin = surface.wear(shape)
    posed = chain.pose(pose.R, pose.angles, rest)
    places, screws = surface.places(posed, rest, skin), chain.screws(posed)
    grown = [_grown(surface, shape, pose, k) for k in range(13)]
    joints_grow = np.stack([(joints - posed.joints_m).ravel() for joints, _ in grown], 1) / STEP  # (63, 13)
    skin_grows = np.stack([skin_k - places for _, skin_k in grown], 2) / STEP  # (M, 3, 13)
    # Unknowns: 26 of the pose, the scale of the network's hand about its middle, 13 of the shape, the halo.
    rows = np.zeros((63, 41))
    rows[:, :26] = chain.rows(screws, posed.joints_m[THRICE], EACH_AXIS, surface.joints_moved)
    rows[:, 26] = -(target.joints_m - target.joints_m.mean(0)).ravel()
    rows[:, 27:40] = joints_grow
    weighted = rows * (JOINT_WEIGHT * target.trust[THRICE, None])
    normal = weighted.T @ rows
    gradient = (target.joints_m - posed.joints_m - pose.at_m).ravel() @ weighted
    normal[range(6, 26), range(6, 26)] += PRIOR_M**2
    normal[26, 26] += 1e-9
    for guess in guesses:
        if len(guess.points_m):
            meet = surface.meet(posed, places, pose.at_m, guess, halo_m)
            rows = np.zeros((len(meet.gap_m), 41))
            rows[:, :26] = chain.rows(screws, meet.place_m, meet.normal, surface.moved[meet.vertex])
            rows[:, 27:40] = np.einsum("nck,nc->nk", skin_grows[meet.vertex], meet.normal)
            rows[:, 40] = meet.rim
            weighted = rows * meet.weight[:, None]
            normal += weighted.T @ rows
            gradient += meet.gap_m @ weighted
    low, high = ANGLE_LIMITS_RAD.T
    held = 6 + np.flatnonzero((pose.angles <= low) | (pose.angles >= high))
    normal[held], normal[:, held], gradient[held] = 0, 0, 0
    normal[held, held] = 1
    known, asked = slice(0, 27), slice(27, 41)
    eliminated = np.linalg.solve(normal[known, known], np.column_stack([normal[known, asked], gradient[known]]))
    information = normal[asked, asked] - normal[asked, known] @ eliminated[:, :14]
    return information, gradient[asked] - normal[asked, known] @ eliminated[:, 14]


def _grown(surface: Surface, shape: Shape, pose: Pose, k: int) -> tuple[Array, Array]:
    """Joints (21, 3) and skin (M, 3), relative to the wrist, with number k of the shape a step larger."""
    alpha, beta = shape.alpha.copy(), shape.beta.copy()
    (alpha if k < 6 else beta)[k % 6 if k < 6 else k - 6] += STEP
    rest = surface.chain.at_rest(Shape(alpha, beta))
    skin = surface.wear(shape)[1]
    if k >= 6:
        skin = skin + np.float32(STEP) * surface.skins[k - 5]
    posed = surface.chain.pose(pose.R, pose.angles, rest)
    return posed.joints_m, surface.places(posed, rest, skin)
