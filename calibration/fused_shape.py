"""The shape of a hand that several cameras see: bone scales and morphs, estimated over its first seconds, then held.

One camera sees one side of a hand and cannot tell a thick finger from a near one; several together can. At a refitted
frame the equations of joints and depth points are written once more with the 13 numbers of the shape, the cameras' halo
(`many_views.py`) and a scale of the network's own beside the 26 of the pose; the pose and that scale are eliminated
(Schur complement), and what is left is added up over frames against a prior, as `edge/person.py` does for one camera
and bone scales alone. When there are frames enough, each is looked at again with the shape found so far.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..edge.refit import EACH_AXIS, THRICE, Pose, Refit
from ..edge.schur import eliminated
from ..hand.arrays import Array
from ..hand.kinematics import Shape
from .many_views import PRIOR_M, Guess, Surface, Target, refit

EVERY_NS, AGAIN_NS = 50_000_000, 30_000_000  # between two looks at new frames, and at those remembered
FRAMES, ROUNDS = 60, 2  # frames looked at, and how often again; then the shape is final
AGAIN_STEPS = 4  # of the refit when a frame is looked at again
LEAST_POINTS = 30  # of a camera
NOISE_M = 0.006  # of a row; neighbouring frames and pixels are wrong alike
JOINT_WEIGHT = 0.06  # of joints, where the refit has 1: their proportions are those that the network has learned
SPREAD, SPREAD_OF_FINGERS, SPREAD_OF_MORPHS, SPREAD_OF_HALO = 0.15, 0.03, 0.4, 0.007  # the prior's deviations
STEP = 0.01  # of the differences
FOLLOWED, LEAST_FOLLOWED = 0.1, 1e-5  # of what the cameras believe in, a step
ALPHA_RANGE, BETA_RANGE, HALO_RANGE = (0.75, 1.35), (-1.2, 1.2), (-0.02, 0.02)


class Looked(NamedTuple):
    """A frame that was looked at: information (14, 14) on alpha, beta and halo, and speaks_for (14,), that information
    times the values that the frame speaks for."""

    target: Target
    guesses: list[Guess]
    information: Array
    speaks_for: Array


class FusedShape:
    """The shape so far (`shape`), the cameras' halo (`halo_rad`), and whether they are final (`held`). alpha (6,) is
    the first guess."""

    def __init__(self, surface: Surface, alpha: Array) -> None:
        self.shape, self.halo_rad = Shape(np.asarray(alpha, float), np.zeros(7)), 0.0
        self._surface = surface
        self._looked: list[Looked] = []
        self._again = 0
        self._last_ns: int | None = None
        self._prior = np.zeros((14, 14))
        self._prior[:6, :6] = np.linalg.inv(SPREAD**2 * np.ones((6, 6)) + SPREAD_OF_FINGERS**2 * np.eye(6))
        self._prior[6:13, 6:13] = np.eye(7) / SPREAD_OF_MORPHS**2
        self._prior[13, 13] = 1 / SPREAD_OF_HALO**2
        self._mean = np.concatenate([self.shape.alpha, np.zeros(8)])

    @property
    def held(self) -> bool:
        return self._again >= ROUNDS * FRAMES

    def follow(self, alpha: Array) -> None:
        """Once a step, with the bones (6,) that the cameras now believe in, until depth of two was looked at. Smoothly,
        for a camera that knows the person less may join them or leave."""
        change = FOLLOWED * (alpha - self._mean[:6])
        if self._last_ns is None and np.abs(change).max() > LEAST_FOLLOWED:
            self._mean[:6] += change
            self.shape = Shape(self._mean[:6].copy(), np.zeros(7))

    def observe(self, t_ns: int, pose: Pose, target: Target, guesses: list[Guess]) -> None:
        """Once a step, with its refitted frame, which is looked at if it says something new: depth from two cameras,
        50 ms after the last. Once there are frames enough, one of those remembered is looked at instead."""
        new = len(self._looked) < FRAMES
        wait_ns = EVERY_NS if new else AGAIN_NS
        if self.held or (self._last_ns is not None and 0 <= t_ns - self._last_ns < wait_ns):
            return
        if new:
            if sum(len(guess.points_m) >= LEAST_POINTS for guess in guesses) < 2:
                return
            self._looked.append(self._look(pose, target, guesses))
        else:
            k = self._again % FRAMES
            self._again += 1
            target, guesses = self._looked[k][:2]
            pose = refit(self._surface, self.shape, target, guesses, steps=AGAIN_STEPS, halo_rad=self.halo_rad)
            self._looked[k] = self._look(pose, target, guesses)
        self._last_ns = t_ns
        self._solve()
        if self.held:
            self._looked = []

    def _look(self, pose: Pose, target: Target, guesses: list[Guess]) -> Looked:
        information, pull = shape_evidence(self._surface, self.shape, pose, target, guesses, self.halo_rad)
        now = np.concatenate([*self.shape, [self.halo_rad]])
        return Looked(target, guesses, information, pull + information @ now)

    def _solve(self) -> None:
        information = sum((one.information for one in self._looked), np.zeros((14, 14))) / NOISE_M**2
        speaks_for = sum((one.speaks_for for one in self._looked), np.zeros(14)) / NOISE_M**2
        new = np.linalg.solve(information + self._prior, speaks_for + self._prior @ self._mean)
        self.shape = Shape(np.clip(new[:6], *ALPHA_RANGE), np.clip(new[6:13], *BETA_RANGE))
        self.halo_rad = float(np.clip(new[13], *HALO_RANGE))


def shape_evidence(
    surface: Surface, shape: Shape, pose: Pose, target: Target, guesses: list[Guess], halo_rad: float
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
            meet = surface.meet(posed, places, pose.at_m, guess, halo_rad)
            rows = np.zeros((len(meet.gap_m), 41))
            rows[:, :26] = chain.rows(screws, meet.place_m, meet.normal, surface.moved[meet.vertex])
            rows[:, 27:40] = np.einsum("nck,nc->nk", skin_grows[meet.vertex], meet.normal)
            rows[:, 40] = meet.rim_m
            weighted = rows * meet.weight[:, None]
            normal += weighted.T @ rows
            gradient += meet.gap_m @ weighted
    return eliminated(normal, gradient, 27, 6 + Refit.at_limits(pose.angles))


def _grown(surface: Surface, shape: Shape, pose: Pose, k: int) -> tuple[Array, Array]:
    """Joints (21, 3) and skin (M, 3), relative to the wrist, with number k of the shape a step larger."""
    alpha, beta = shape.alpha.copy(), shape.beta.copy()
    (alpha if k < 6 else beta)[k if k < 6 else k - 6] += STEP
    rest = surface.chain.at_rest(Shape(alpha, beta))
    skin = surface.wear(shape)[1]
    if k >= 6:
        skin = skin + np.float32(STEP) * surface.skins[k - 5]
    posed = surface.chain.pose(pose.R, pose.angles, rest)
    return posed.joints_m, surface.places(posed, rest, skin)
