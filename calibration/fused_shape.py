"""The shape of a hand that several cameras see: bone scales and morphs, estimated over its first seconds, then held.

One camera sees one side of a hand and cannot tell a thick finger from a near one; several together can. At a refitted
frame the equations of joints and depth points are written once more with the 13 numbers of the shape and a scale of
the network's own beside the 26 of the pose; all but the shape's are eliminated (Schur complement), and what is left is
added up over frames against a prior, as `edge/person.py` does for one camera and bone scales alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..edge.refit import EACH_AXIS, THRICE
from ..hand.kinematics import Shape
from ..hand.skeleton import ANGLE_LIMITS_RAD
from .many_views import PRIOR_M, Guess, Pose, Surface, Target

Array = NDArray[Any]
EVERY_NS = 50_000_000
HELD_FRAMES = 60  # looked at, then the shape is final
NOISE_M = 0.006  # of a row; neighbouring frames and pixels are wrong alike
FADE = 0.985  # what earlier frames count for: they were looked at with a worse shape
SPREAD, SPREAD_OF_FINGERS, SPREAD_OF_MORPHS = 0.15, 0.03, 0.4  # the prior's deviations
STEP = 0.01  # of the differences
ALPHA_RANGE, BETA_RANGE = (0.75, 1.35), (-1.2, 1.2)


class FusedShape:
    """The shape so far (`shape`), and whether it is final (`held`). alpha (6,) is where it starts."""

    def __init__(self, surface: Surface, alpha: Array) -> None:
        self.shape = Shape(np.asarray(alpha, float), np.zeros(7))
        self.frames, self.held = 0, False
        self._surface = surface
        self._last_ns: int | None = None
        self._prior = np.zeros((13, 13))
        self._prior[:6, :6] = np.linalg.inv(SPREAD**2 * np.ones((6, 6)) + SPREAD_OF_FINGERS**2 * np.eye(6))
        self._prior[6:, 6:] = np.eye(7) / SPREAD_OF_MORPHS**2
        self._mean = np.concatenate([self.shape.alpha, np.zeros(7)])
        self._information, self._pull = np.zeros((13, 13)), np.zeros(13)

    def observe(self, t_ns: int, pose: Pose, target: Target, guesses: list[Guess]) -> None:
        """Look at a refitted frame; frames nearer than 50 ms to the last, or without depth from two cameras, say
        nothing new."""
        enough = sum(len(guess.points_m) >= 30 for guess in guesses) >= 2
        if self.held or not enough or (self._last_ns is not None and 0 <= t_ns - self._last_ns < EVERY_NS):
            return
        self._last_ns = t_ns
        self.frames += 1
        information, pull = shape_evidence(self._surface, self.shape, pose, target, guesses)
        now = np.concatenate(self.shape)
        self._information = FADE * self._information + information / NOISE_M**2
        self._pull = FADE * self._pull + (information @ now + pull) / NOISE_M**2
        new = np.linalg.solve(self._information + self._prior, self._pull + self._prior @ self._mean)
        self.shape = Shape(np.clip(new[:6], *ALPHA_RANGE), np.clip(new[6:], *BETA_RANGE))
        self.held = self.frames >= HELD_FRAMES


def shape_evidence(
    surface: Surface, shape: Shape, pose: Pose, target: Target, guesses: list[Guess]
) -> tuple[Array, Array]:
    """Of one frame: information (13, 13) on alpha and beta, and pull (13,) away from those of shape."""
    chain = surface.chain
    rest, skin = surface.wear(shape)
    posed = chain.pose(pose.R, pose.angles, rest)
    places, screws = surface.places(posed, rest, skin), chain.screws(posed)
    grown = [_grown(surface, shape, pose, k) for k in range(13)]
    joints_grow = np.stack([(joints - posed.joints_m).ravel() for joints, _ in grown], 1) / STEP  # (63, 13)
    skin_grows = np.stack([skin_k - places for _, skin_k in grown], 2) / STEP  # (M, 3, 13)
    # Unknowns: 26 of the pose, the scale of the network's hand about its middle, 13 of the shape.
    rows = np.zeros((63, 40))
    rows[:, :26] = chain.rows(screws, posed.joints_m[THRICE], EACH_AXIS, surface.joints_moved)
    rows[:, 26] = -(target.joints_m - target.joints_m.mean(0)).ravel()
    rows[:, 27:] = joints_grow
    weighted = rows * target.trust[THRICE, None]
    normal = weighted.T @ rows
    gradient = (target.joints_m - posed.joints_m - pose.at_m).ravel() @ weighted
    normal[range(6, 26), range(6, 26)] += PRIOR_M**2
    normal[26, 26] += 1e-9
    for guess in guesses:
        if len(guess.points_m):
            meet = surface.meet(posed, places, pose.at_m, guess)
            rows = np.zeros((len(meet.gap_m), 40))
            rows[:, :26] = chain.rows(screws, meet.place_m, meet.normal, surface.moved[meet.vertex])
            rows[:, 27:] = np.einsum("nck,nc->nk", skin_grows[meet.vertex], meet.normal)
            weighted = rows * meet.weight[:, None]
            normal += weighted.T @ rows
            gradient += meet.gap_m @ weighted
    low, high = ANGLE_LIMITS_RAD.T
    held = 6 + np.flatnonzero((pose.angles <= low) | (pose.angles >= high))
    normal[held], normal[:, held], gradient[held] = 0, 0, 0
    normal[held, held] = 1
    known, asked = slice(0, 27), slice(27, 40)
    eliminated = np.linalg.solve(normal[known, known], np.column_stack([normal[known, asked], gradient[known]]))
    information = normal[asked, asked] - normal[asked, known] @ eliminated[:, :13]
    return information, gradient[asked] - normal[asked, known] @ eliminated[:, 13]


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
