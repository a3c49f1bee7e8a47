"""Shape first: the user's bone scales alpha and morph weights beta, from many moments at once, then held.

As `edge/person.py`, the equations of joints and depth points are written down once more with the shape beside the pose;
here with all views of a moment in one system, with beta too, over the whole recording, and repeated until the shape
stays. The pose and the scale of the network's own hands are eliminated (Schur complement): networks shrink what they
are unsure of, so only the proportions of their joints count, and depth has the size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...edge.chain import Posed
from ...edge.refit import THRICE, Refit
from ...edge.schur import eliminated
from ...hand import se3
from ...hand.arrays import Array
from ...hand.kinematics import AVERAGE, Shape
from .fit import Fitted, Sight, Teacher

ROUNDS = 5
MOST = 60  # moments looked at
COUNTED = 60  # moments that count in full: neighbouring ones are wrong alike
NOISE_M = 0.015  # of a row
JOINT_WEIGHT = 0.06  # of the network's joints, where the refit has 0.3: their proportions are those it learned
SPREAD, SPREAD_OF_FINGERS, SPREAD_OF_BETA = 0.2, 0.1, 0.4  # the prior's deviations
STEP = 1e-3  # of the numerical derivative; positions are linear in both alpha and beta, or nearly
WORST_GAP_MM, WORST_THROUGH, WORST_APART_MM = 6.0, 0.12, 25.0
ALPHA_BOUNDS, BETA_BOUNDS = (0.7, 1.4), (-1.0, 1.0)


def estimate_shape(
    moments: Sequence[Sequence[Sight]], refit: Refit | None = None, say: Callable[[str], None] = lambda _: None
) -> tuple[Shape, int]:
    """The shape of the hand in moments, each a sequence of sights, and how many of them were good enough to count."""
    pick = np.unique(np.linspace(0, max(len(moments) - 1, 0), min(MOST, len(moments))).astype(int))
    chosen = [moments[i] for i in pick]
    refit, shape, used = refit or Refit(), AVERAGE, 0
    slopes = beta_slopes(refit)
    fits: list[Fitted | None] = [None] * len(chosen)
    for turn in range(ROUNDS):
        teacher = Teacher(shape, refit)
        fits = [teacher(s, before, steps=6 if before is None else 3) for s, before in zip(chosen, fits, strict=True)]
        good = [(s, f) for s, f in zip(chosen, fits, strict=True) if f is not None and trustworthy(f, turn)]
        used = len(good)
        if used < 5:
            return AVERAGE, used
        information, pull = np.zeros((13, 13)), np.zeros(13)
        for sights, fitted in good:
            more, its = evidence(teacher, sights, fitted, slopes)
            information += more
            pull += its
        share = min(1.0, COUNTED / used) / NOISE_M**2
        at = np.concatenate([shape.alpha - 1, shape.beta])
        prior = _prior()
        found = np.linalg.solve(share * information + prior, share * (information @ at + pull))
        shape = Shape(np.clip(1 + found[:6], *ALPHA_BOUNDS), np.clip(found[6:], *BETA_BOUNDS))
        say(f"shape: round {turn + 1} of {ROUNDS}, {used} moments, palm {shape.alpha[0]:.2f}")
    return shape, used


def trustworthy(fitted: Fitted, turn: int = ROUNDS) -> bool:
    """Whether a fit may teach; in the first rounds, while the shape is wrong, less is asked of it."""
    slack = 1.0 + max(0, 2 - turn)
    return (
        fitted.gap_mm < slack * WORST_GAP_MM
        and fitted.through < slack * WORST_THROUGH
        and fitted.apart_mm < slack * WORST_APART_MM
    )


def beta_slopes(refit: Refit) -> Array:
    """(7, 64, V): how the skin of `Chain.skin_of` grows with each morph weight; it is linear."""
    flat = refit.chain.skin_of(np.zeros(7))
    return np.stack([refit.chain.skin_of(one) - flat for one in np.eye(7)])


def evidence(teacher: Teacher, sights: Sequence[Sight], fitted: Fitted, slopes: Array) -> tuple[Array, Array]:
    """Of one moment: information (13, 13) on alpha and beta, and pull (13,) away from those of the teacher."""
    refit, rest, shape = teacher.refit, teacher.rest, teacher.shape
    at, chain = fitted.T_ref_wrist[:3, 3], refit.chain
    skin = chain.skin_of(shape.beta)
    posed = chain.pose(fitted.T_ref_wrist[:3, :3], fitted.angles, rest)
    d_joints, d_skin = shape_derivatives(teacher, posed, fitted, skin, slopes)
    screws = chain.screws(posed)
    unknown = 26 + len(sights)  # the pose, and a scale of each network's hand about its middle
    normal, gradient = np.zeros((unknown + 13, unknown + 13)), np.zeros(unknown + 13)
    pose_rows, surface = refit.joint_rows(posed, screws), _surface(teacher, posed, skin)
    for k, sight in enumerate(sights):
        target = teacher.start(sight)[0]
        rows = np.zeros((63, unknown + 13))
        rows[:, :26], rows[:, unknown:] = pose_rows, d_joints.reshape(63, 13)
        rows[:, 26 + k] = -(target - target.mean(0)).ravel()
        weighted = rows * (JOINT_WEIGHT * sight.trust[THRICE, None] / len(sights))
        normal += weighted.T @ rows
        gradient += (target - posed.joints_m - at).ravel() @ weighted
        if not len(sight.points_m):
            continue
        eye = sight.T_ref_view[:3, 3]
        meet = refit.meet(posed, rest, at - eye, se3.apply(sight.T_ref_view, sight.points_m) - eye)
        vertex = nearest(meet.place_m, surface)
        rows = np.zeros((len(vertex), unknown + 13))
        rows[:, :26] = chain.rows(screws, meet.place_m, meet.normal, chain.moved[meet.part])
        rows[:, unknown:] = np.einsum("nck,nc->nk", d_skin[vertex], meet.normal)
        weighted = rows * (meet.weight * (96 / len(vertex)))[:, None]
        normal += weighted.T @ rows
        gradient += meet.gap_m @ weighted
    normal[range(6, 26), range(6, 26)] += refit.angle_prior
    normal[range(26, unknown), range(26, unknown)] += 1e-9
    return eliminated(normal, gradient, unknown, 6 + refit.at_limits(fitted.angles))


def shape_derivatives(
    teacher: Teacher, posed: Posed, fitted: Fitted, skin: Array, slopes: Array
) -> tuple[Array, Array]:
    """How joints (21, 3, 13) and vertices (V, 3, 13) relative to the wrist move with alpha and beta, the pose held."""
    chain, shape = teacher.refit.chain, teacher.shape
    root, vertices = fitted.T_ref_wrist[:3, :3], _surface(teacher, posed, skin)
    joints_by, skin_by = np.empty((21, 3, 13)), np.empty((len(vertices), 3, 13))
    for k in range(13):
        more = np.zeros(13)
        more[k] = STEP
        other = Shape(shape.alpha + more[:6], shape.beta + more[6:])
        rest = chain.at_rest(other)
        there = chain.pose(root, fitted.angles, rest)
        its_skin = skin if k < 6 else skin + np.float32(STEP) * slopes[k - 6]
        joints_by[..., k] = (there.joints_m - posed.joints_m) / STEP
        skin_by[..., k] = (chain.skin(there, rest, its_skin, np.zeros(3)) - vertices) / STEP
    return joints_by, skin_by


def nearest(places_m: Array, vertices_m: Array) -> Array:
    """The vertex (N,) nearest to each place (N, 3); both near the origin."""
    p, v = places_m.astype(np.float32), vertices_m.astype(np.float32)
    return (0.5 * (v * v).sum(1) - p @ v.T).argmin(1)


def _surface(teacher: Teacher, posed: Posed, skin: Array) -> Array:
    return teacher.refit.chain.skin(posed, teacher.rest, skin, np.zeros(3)).astype(np.float64)


def _prior() -> Array:
    """Information (13, 13): hands differ in size, fingers less from their hand, morphs are near nothing."""
    prior = np.zeros((13, 13))
    prior[:6, :6] = np.linalg.inv(SPREAD**2 * np.ones((6, 6)) + SPREAD_OF_FINGERS**2 * np.eye(6))
    prior[6:, 6:] = np.eye(7) / SPREAD_OF_BETA**2
    return prior
