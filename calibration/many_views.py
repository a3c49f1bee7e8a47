"""One hand from several cameras' guesses: robust joints, and one refit to them and to the depth points of all cameras.

Joints are weighed by what each camera expects to be wrong by, and lose their weight where they disagree with the rest
(Geman-McClure). The refit is a few Gauss-Newton steps over wrist and angles with the shape held, so bones keep their
length; each camera's depth points meet the skin that faces that camera. Stereo cameras see things wider than they are,
by a halo of a pixel or two, an angle: where the skin turns away from the camera, its points lie that far outside. All
of it sees right hands: a left one is looked at in a mirror.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..edge.chain import JOINT_PARTS, Chain, Posed, Rest
from ..edge.look import trust
from ..edge.refit import EACH_AXIS, THRICE, Pose, calm_weight, step
from ..hand.arrays import Array
from ..hand.kinematics import Shape
from ..hand.skeleton import ANGLE_PARTS, PART_JOINTS, ROOTS
from ..hand.template import template

ROUNDS = 5  # of reweighting
LOOSE = 2.5  # residuals of so many sigmas count a quarter ...
LEAST_LOOSE_M, MOST_LOOSE_M = 0.012, 0.035  # ... within these
HAND_LOOSE_M = 0.012  # so far off in its median joint, a camera's whole hand counts a quarter
STEPS = 3
PRIOR_M = 0.020  # a radian off the cameras' angle costs as much as a joint this far off
POINT_WEIGHT = 2.0  # of a depth point, where a joint weighs 1; each camera has 300 or so
POINT_SCALE_M, POINT_REACH_M = 0.010, 0.03  # Geman-McClure
EVERY = 2  # each so manieth vertex is a place on the skin to meet depth points
_ANGLE_JOINTS = np.array([PART_JOINTS[p] + 1 for p in ANGLE_PARTS])  # the joint at the far end of what an angle turns
_DIAGONAL = np.arange(26)


class Guess(NamedTuple):
    """What one camera says: R (3, 3) and at_m (3,) of the wrist, angles (20,), joints_m (21, 3), sigma_m (21,) that its
    joints are off by, points_m (N, 3) and the camera's place eye_m (3,)."""

    R: Array
    at_m: Array
    angles: Array
    joints_m: Array
    sigma_m: Array
    points_m: Array
    eye_m: Array


class Target(NamedTuple):
    """What the cameras agree on: R (3, 3), angles (20,), joints_m (21, 3), sigma_m (21,) that those are off by."""

    R: Array
    angles: Array
    joints_m: Array
    sigma_m: Array

    @property
    def trust(self) -> Array:
        """Weight (21,) of the joints in the refit."""
        return trust(self.sigma_m)


class Meeting(NamedTuple):
    """Depth points at the skin: vertex (N,) of the surface, place_m and normal (N, 3), gap_m (N,) along the normal,
    weight (N,), and rim_m (N,): how far a halo of one radian would put a point outside; 0 where the skin faces the
    camera, the distance to it where the skin turns away."""

    vertex: Array
    place_m: Array
    normal: Array
    gap_m: Array
    weight: Array
    rim_m: Array


class Surface:
    """The template's bones and every other vertex of its skin, for any shape."""

    def __init__(self) -> None:
        t = template()
        self.chain = Chain(t)
        self.part = t.part[::EVERY]
        self.moved = self.chain.moved[self.part]
        self.joints_moved = np.repeat(self.chain.moved[JOINT_PARTS], 3, 0)  # (63, 20)
        base = self.chain.skin_of(np.zeros(7))
        self.skins = np.stack([base, *(self.chain.skin_of(e) - base for e in np.eye(7))])  # (8, 64, V)
        self.normals = np.ascontiguousarray(self.chain.normal_skin()[:, ::EVERY])  # (48, M)
        self._worn: tuple[Shape, Rest, Array] | None = None

    def wear(self, shape: Shape) -> tuple[Rest, Array]:
        """Bones and skin (64, V) of a shape; those of the last one are kept."""
        if self._worn is None or self._worn[0] is not shape:
            skin = self.skins[0] + np.tensordot(np.asarray(shape.beta, np.float32), self.skins[1:], 1)
            self._worn = shape, self.chain.at_rest(shape), skin
        return self._worn[1:]

    def places(self, posed: Posed, rest: Rest, skin: Array) -> Array:
        """Each EVERY-th vertex (M, 3) relative to the wrist."""
        return self.chain.skin(posed, rest, skin[:, ::EVERY], np.zeros(3))

    def hand(self, pose: Pose, shape: Shape) -> tuple[Array, Array]:
        """Joints (21, 3) and vertices (V, 3), m."""
        rest, skin = self.wear(shape)
        posed = self.chain.pose(pose.R, pose.angles, rest)
        return posed.joints_m + pose.at_m, self.chain.skin(posed, rest, skin, pose.at_m)

    def meet(self, posed: Posed, places_m: Array, at_m: Array, guess: Guess, halo_rad: float = 0.0) -> Meeting:
        """The place on the skin that faces a camera nearest to each of its depth points; gaps are without the halo."""
        normals = posed.frames[:, :3, :3].transpose(1, 0, 2).reshape(3, 48).astype(np.float32) @ self.normals  # (3, M)
        facing = np.flatnonzero(((places_m + (at_m - guess.eye_m).astype(np.float32)).T * normals).sum(0) < 0)
        if not len(facing):
            facing = np.arange(len(places_m))
        skin = places_m[facing]
        points = (guess.points_m - at_m).astype(np.float32)
        vertex = facing[(0.5 * np.einsum("ij,ij->i", skin, skin) - points @ skin.T).argmin(1)]
        place, normal = places_m[vertex].astype(np.float64), normals.T[vertex].astype(np.float64)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        gap, ray = points - place, place + (at_m - guess.eye_m)
        squared, away = np.einsum("ij,ij->i", gap, gap), np.linalg.norm(ray, axis=1)
        weight = POINT_WEIGHT * (squared < POINT_REACH_M**2) / (1 + squared / POINT_SCALE_M**2) ** 2
        rim = away - np.einsum("ij,ij->i", ray, normal) ** 2 / away
        return Meeting(vertex, place, normal, np.einsum("ij,ij->i", gap, normal) - halo_rad * rim, weight, rim)


def guess_of(
    surface: Surface, T_wrist: Array, angles: Array, shape: Shape, sigma_m: Array, points_m: Array, eye_m: Array
) -> Guess:
    """A camera's pose, wrist (4, 4) and angles (20,), as a guess."""
    posed = surface.chain.pose(T_wrist[:3, :3], angles, surface.chain.at_rest(shape))
    return Guess(T_wrist[:3, :3], T_wrist[:3, 3], angles, posed.joints_m + T_wrist[:3, 3], sigma_m, points_m, eye_m)


def robust_weights(joints_m: Array, sigma_m: Array, foreseen: tuple[Array, float] | None = None) -> Array:
    """Weights (C, 21) of joints (C, 21, 3) with sigma (C, 21), 1 together for each joint.

    foreseen are joints (21, 3) and their sigma: they have a say in who is wrong, and no weight.
    """
    n = len(joints_m)
    votes, everyone = sigma_m**-2, joints_m  # (C, 21)
    width = np.clip(LOOSE * sigma_m, LEAST_LOOSE_M, MOST_LOOSE_M)
    if foreseen is not None:
        everyone = np.concatenate([joints_m, foreseen[0][None]])
        votes = np.concatenate([votes, np.full((1, 21), foreseen[1] ** -2)])
        width = np.concatenate([width, np.full((1, 21), MOST_LOOSE_M)])
    middle = _weighted_median(everyone, votes)
    weights = votes
    for _ in range(ROUNDS):
        off = np.linalg.norm(everyone - middle, axis=2)
        whole = np.median(off, axis=1, keepdims=True) / HAND_LOOSE_M
        weights = votes / (1 + (off / width) ** 2) ** 2 / (1 + whole**2) ** 2
        middle = np.einsum("cj,cjk->jk", weights, everyone) / weights.sum(0)[:, None]
    return weights[:n] / weights[:n].sum(0)


def agree(guesses: list[Guess], weights: Array, foreseen: tuple[Array, float] | None = None) -> Target:
    """The weighted mean of guesses; weights (C, 21) as of `robust_weights`.

    foreseen are joints (21, 3) and their sigma: the less sure the cameras are, the nearer to these the joints stay.
    """
    joints, sigma = np.stack([g.joints_m for g in guesses]), np.stack([g.sigma_m for g in guesses])
    mean = np.einsum("cj,cjk->jk", weights, joints)
    spread = (weights * ((joints - mean) ** 2).sum(2)).sum(0) / 3
    # Cameras share what the network always gets wrong: half of the variance is not averaged away.
    variance = 0.5 * (weights * sigma**2).sum(0) + 0.5 * (weights**2 * sigma**2).sum(0) + spread
    if foreseen is not None:
        mean = mean + (variance / (variance + foreseen[1] ** 2))[:, None] * (foreseen[0] - mean)
    u, _, vt = np.linalg.svd(np.einsum("c,cij->ij", weights[:, ROOTS].mean(1), np.stack([g.R for g in guesses])))
    R = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt  # the chordal mean
    far = weights[:, _ANGLE_JOINTS]
    angles = (far * np.stack([g.angles for g in guesses])).sum(0)
    return Target(R, angles, mean, np.sqrt(variance))


def refit(
    surface: Surface,
    shape: Shape,
    target: Target,
    guesses: list[Guess],
    start: Pose | None = None,
    age_s: float = 0.0,
    steps: int = STEPS,
    halo_rad: float = 0.0,
) -> Pose:
    """The hand of a shape that fits the target and all depth points best; start: as it was age_s ago."""
    rest, skin = surface.wear(shape)
    chain, trust = surface.chain, target.trust
    R, angles = (target.R, target.angles) if start is None else (start.R, start.angles)
    posed = chain.pose(R, angles, rest)
    at = trust @ (target.joints_m - posed.joints_m) / trust.sum()
    calm = 0.0 if start is None else calm_weight(age_s)
    for _ in range(steps):
        screws = chain.screws(posed)
        rows = chain.rows(screws, posed.joints_m[THRICE], EACH_AXIS, surface.joints_moved)
        weighted = rows * trust[THRICE, None]
        normal = weighted.T @ rows
        gradient = (target.joints_m - posed.joints_m - at).ravel() @ weighted
        normal[_DIAGONAL, _DIAGONAL] += 1e-9
        normal[_DIAGONAL[6:], _DIAGONAL[6:]] += PRIOR_M**2
        gradient[6:] += PRIOR_M**2 * (target.angles - angles)
        if start is not None:
            normal[_DIAGONAL[6:], _DIAGONAL[6:]] += calm
            gradient[6:] += calm * (start.angles - angles)
        places = surface.places(posed, rest, skin)
        for guess in guesses:
            if len(guess.points_m):
                meet = surface.meet(posed, places, at, guess, halo_rad)
                rows = chain.rows(screws, meet.place_m, meet.normal, surface.moved[meet.vertex])
                weighted = rows * meet.weight[:, None]
                normal += weighted.T @ rows
                gradient += meet.gap_m @ weighted
        R, at, angles = step(Pose(R, at, angles), normal, gradient)
        posed = chain.pose(R, angles, rest)
    return Pose(R, at, angles)


def _weighted_median(values: Array, weights: Array) -> Array:
    """(C, 21, 3) and (C, 21) to (21, 3), each coordinate by itself."""
    order = np.argsort(values, axis=0)
    mass = np.take_along_axis(np.broadcast_to(weights[..., None], values.shape), order, 0).cumsum(0)
    at = (mass < 0.5 * mass[-1]).sum(0, keepdims=True)
    return np.asarray(np.take_along_axis(np.take_along_axis(values, order, 0), at, 0)[0])
