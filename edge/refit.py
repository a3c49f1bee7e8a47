"""Refit: a kinematic hand to the network's vertices and the frame's own depth points.

Each rigid part gets a similarity to the template in closed form (Dual Grid Net, section 3.4, eq. 3). From these come
the wrist, the bone scales and the joint angles, clamped to their limits. Gauss-Newton steps, from there or from where
the hand was a frame ago, weigh the joints, the parts' own angles and the depth points against the skin that faces the
camera; fingers that pass through each other are parted. What is minimised, and what each term is worth: docs/refit.md.
Bones cannot stretch: a finger has one scale.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..hand import se3
from ..hand.arrays import Array
from ..hand.kinematics import Shape
from ..hand.parts import part_moments
from ..hand.skeleton import ALPHA_RANGE, ANGLE_LIMITS_RAD, PARENT_OR_PALM, PART_JOINTS, TIPS
from ..hand.template import HandTemplate, template
from .chain import JOINT_PARTS, Chain, Posed, Rest
from .smooth import rigid, rotation_matrix, rotation_vector
from .spheres import Spheres

STEPS, FIRST_STEPS = 2, 4  # from where the hand was a frame ago, and from the network's parts alone
ANGLE_PRIOR_M = 0.010  # a radian off the parts' own angle costs as much as a point this far off
JOINT_WEIGHT, DEPTH_WEIGHT = 0.3, 4.0  # of a joint and of a depth point
DEPTH_SCALE_M = 0.010  # Geman-McClure: a point this far off counts a quarter
LEAST_ALIKE = 1 + 2 * math.cos(math.radians(60))  # trace of the turn between two wrists, the second no start for one
CALM_M, CALM_S = 0.040, 1 / 30  # a radian off the angle of so long ago costs as much as a point this far off
DEPTH_REACH_M = 0.03
APART_WEIGHT = 10.0
DEEP_M = 0.0015  # spheres that overlap this much after the last step are parted by more of them
MOST_PARTINGS = 3
_LOW, _HIGH = ANGLE_LIMITS_RAD.T.copy()
_JOINTS, _TIPS = list(PART_JOINTS), list(TIPS)
_DIAGONAL = np.diag_indices(26)
_ANGLES = tuple(axis[6:] for axis in _DIAGONAL)
THRICE, EACH_AXIS, _ONES = np.repeat(np.arange(21), 3), np.tile(np.eye(3), (21, 1)), np.ones(21)
_EACH_PART = JOINT_PARTS[THRICE]


class Fit(NamedTuple):
    """A kinematic hand in the frame of the vertices given: angles (20,) rad, alpha (6,) and beta (7,), joints_m
    (21, 3), T_wrist (4, 4); joints_free_m (21, 3) are the parts' own, before limits; vertices_m (V, 3), none
    from `solve`."""

    angles: Array
    alpha: Array
    beta: Array
    joints_m: Array
    T_wrist: Array
    joints_free_m: Array
    vertices_m: Array

    @property
    def theta(self) -> Array:
        return theta_of(self.T_wrist, self.angles)

    @property
    def shape(self) -> Shape:
        return Shape(self.alpha, self.beta)


class Start(NamedTuple):
    """Where a hand was age_s ago: the wrist's rotation (3, 3) in the frame of the vertices, angles (20,) rad."""

    R: Array
    angles: Array
    age_s: float


class Meeting(NamedTuple):
    """Where depth points meet the skin: place_m (N, 3) relative to the wrist, normal (N, 3), part (N,), gap_m (N,) of
    the point along the normal, weight (N,)."""

    place_m: Array
    normal: Array
    part: Array
    gap_m: Array
    weight: Array


class Pose(NamedTuple):
    """What is solved for: the wrist's rotation (3, 3) and place (3,) m, angles (20,) rad."""

    R: Array
    at_m: Array
    angles: Array


def calm_weight(age_s: float) -> float:
    """How much angles of age_s ago count: what they have changed by since has a variance that grows with time."""
    return CALM_M**2 * CALM_S / max(age_s, 1e-3)


def theta_of(wrist: Array, angles: Array) -> Array:
    """theta (26,) of a wrist's pose (4, 4) and 20 angles."""
    return np.concatenate([wrist[:3, 3], rotation_vector(wrist[:3, :3]), angles])


class Refit:
    """Holds what is fixed: the template's moments, chain and skin. Arrays in, one Fit out; right hands only."""

    def __init__(self, t: HandTemplate | None = None) -> None:
        self.template = t = t or template()
        moments, self._centroid, self._variance = part_moments(t)
        self._moments = moments.astype(np.float32)  # half the memory to read, and exact to 1e-7
        self._lengths = _lengths(t.joints_m)
        self.chain = Chain(t)
        self.spheres = Spheres()
        self._moved = self.chain.moved[_EACH_PART]  # (63, 20)
        self._prior = np.full(26, 1e-9)
        self.angle_prior = ANGLE_PRIOR_M**2
        self._prior[6:] += self.angle_prior
        self._normals = self.chain.normal_skin()  # (48, V)
        self._joint_skin = _joint_skin(t)
        self._rest: tuple[Shape, Rest] | None = None
        self._worn = _NO_BETA.tobytes()
        self._skin = self.chain.skin_of(_NO_BETA)

    def _wear(self, beta: Array) -> None:
        """Put on the skin of another beta."""
        if beta.tobytes() != self._worn:
            self._worn = beta.tobytes()
            self._skin = self.chain.skin_of(beta)

    def parts(self, vertices_m: Array) -> tuple[Array, Array, Array]:
        """Similarity of each part (eq. 3): rotation (16, 3, 3), scale (16,), shift (16, 3). The rotation's quaternion
        belongs to the greatest eigenvalue of a 4x4 matrix (Horn 1987), which turns no part inside out."""
        middle = vertices_m[0].copy()  # any point of the hand: small numbers lose less in 32 bits
        flat = (vertices_m.T - middle[:, None]).astype(np.float32, copy=False) @ self._moments  # (3, 64)
        m = flat.reshape(3, 16, 4).transpose(1, 0, 2).astype(np.float64)  # (16, 3, 4)
        values, vectors = np.linalg.eigh((m[..., :3].reshape(16, 9) @ _SQUARES.T).reshape(16, 4, 4))
        q = vectors[..., 3]
        rotation = ((q[:, :, None] * q[:, None]).reshape(16, 16) @ _SQUARES).reshape(16, 3, 3)
        scale = values[:, 3] / self._variance
        shift = m[..., 3] + middle - scale[:, None] * (rotation @ self._centroid[..., None])[..., 0]
        return rotation, scale, shift

    def __call__(self, vertices_m: Array, alpha: Array | None = None, **given: Any) -> Fit:
        """As `solve`, with the skin; a known alpha (6,) is kept."""
        shape = None if alpha is None else Shape(alpha, _NO_BETA)
        fit = self.solve(vertices_m, **({"shape": shape} | given))
        return fit._replace(vertices_m=self.pose(fit.T_wrist, fit.angles, fit.shape)[1])

    def pose(self, T_wrist: Array, angles: Array, shape: Shape) -> tuple[Array, Array]:
        """Joints (21, 3) and vertices (V, 3) m of a hand; the skin of a beta is made once."""
        self._wear(shape.beta)
        rest = self._at_rest(shape)
        posed = self.chain.pose(T_wrist[:3, :3], angles, rest)
        return posed.joints_m + T_wrist[:3, 3], self.chain.skin(posed, rest, self._skin, T_wrist[:3, 3])

    def _at_rest(self, shape: Shape) -> Rest:
        if self._rest is None or self._rest[0] is not shape:
            self._rest = shape, self.chain.at_rest(shape)
        return self._rest[1]

    def solve(
        self,
        vertices_m: Array,
        *,
        shape: Shape | None = None,
        points_m: Array | None = None,
        weights: Array | None = None,
        start: Start | None = None,
    ) -> Fit:
        """Fit to vertices (V, 3) m, and to the hand's depth points (N, 3) m in the same frame.

        A shape given is kept; else bone scales are the frame's own and beta is 0. weights (21,) say how far to trust
        each joint of the vertices. start is where the hand was a moment ago; none if the network sees the wrist
        turned away from it by more than 60 degrees.
        """
        rotation, scale, shift = self.parts(vertices_m)
        target = self._joints(rotation, scale, shift)
        if shape is None:
            shape = Shape(self._bone_scales(target, scale), _NO_BETA)
        self._wear(shape.beta)
        rest = self._at_rest(shape)
        wanted = _inside(self.chain.angles(rotation))
        trust = _ONES if weights is None else np.asarray(weights, np.float64)
        if start is not None and np.vdot(start.R, rotation[0]) < LEAST_ALIKE:
            start = None
        R, angles = (rotation[0], wanted) if start is None else start[:2]
        posed = self.chain.pose(R, angles, rest)
        # The wrist lies in the middle of little skin; all joints together say better where the hand is.
        pose = Pose(R, trust @ (target - posed.joints_m) / trust.sum(), angles)
        joint_weight = JOINT_WEIGHT * trust.take(THRICE)
        calm = 0.0 if start is None else calm_weight(start.age_s)
        for _ in range(FIRST_STEPS if start is None else STEPS):
            screws = self.chain.screws(posed)
            off = (target - posed.joints_m - pose.at_m).ravel()
            if points_m is None or not len(points_m):
                rows, weight = self.joint_rows(posed, screws), joint_weight
            else:
                meet = self.meet(posed, rest, pose.at_m, points_m)
                places = np.concatenate((posed.joints_m.take(THRICE, 0), meet.place_m))
                directions = np.concatenate((EACH_AXIS, meet.normal))
                moved = self.chain.moved.take(np.concatenate((_EACH_PART, meet.part)), 0)
                rows = self.chain.rows(screws, places, directions, moved)
                off, weight = np.concatenate((off, meet.gap_m)), np.concatenate((joint_weight, meet.weight))
            weighted = rows * weight[:, None]
            normal, gradient = weighted.T @ rows, off @ weighted
            normal[_DIAGONAL] += self._prior
            gradient[6:] += self._prior[6:] * (wanted - pose.angles)
            if start is not None:
                normal[_ANGLES] += calm
                gradient[6:] += calm * (start.angles - pose.angles)
            pose = step(pose, normal, gradient)
            posed = self.chain.pose(pose.R, pose.angles, rest)
        pose, posed = self._part(pose, posed, rest)
        wrist = rigid(pose.R, pose.at_m)
        return Fit(pose.angles, *shape, posed.joints_m + pose.at_m, wrist, target, NO_VERTICES)

    def _part(self, pose: Pose, posed: Posed, rest: Rest) -> tuple[Pose, Posed]:
        """Move fingers out of each other and the palm, the joints staying where they are as far as they can."""
        for _ in range(MOST_PARTINGS):
            overlaps = self.spheres.overlaps(posed, rest)
            if overlaps is None or overlaps.deep_m.max() < DEEP_M:
                break
            screws = self.chain.screws(posed)
            stay, rows = self.joint_rows(posed, screws), overlaps.rows(self.chain, screws)
            normal = stay.T @ stay + APART_WEIGHT * (rows.T @ rows)
            normal[_DIAGONAL] += self._prior
            pose = step(pose, normal, APART_WEIGHT * (overlaps.deep_m @ rows))
            posed = self.chain.pose(pose.R, pose.angles, rest)
        return pose, posed

    def meet(self, posed: Posed, rest: Rest, at_m: Array, points_m: Array) -> Meeting:
        """The place on the skin that faces the camera nearest to each depth point (Dual Grid Net, section 3.5)."""
        skin = self.chain.skin(posed, rest, self._skin, at_m).T  # (3, M)
        normals = posed.frames[:, :3, :3].transpose(1, 0, 2).reshape(3, 48).astype(np.float32) @ self._normals
        facing = (np.add.reduce(skin * normals) < 0).nonzero()[0]
        if not len(facing):
            facing = np.arange(skin.shape[1])
        # |p - s|^2 less what is the same for each s: a product of (-2 p, 1) and (s, |s|^2), relative to the wrist.
        lifted = np.empty((4, len(facing)), np.float32)
        skin = np.subtract(skin.take(facing, 1), at_m.astype(np.float32)[:, None], out=lifted[:3])
        np.add.reduce(skin * skin, out=lifted[3])
        points = points_m - at_m
        lift = np.ones((len(points), 4), np.float32)
        lift[:, :3] = -2 * points
        nearest = (lift @ lifted).argmin(1)
        vertex = facing.take(nearest)
        place, normal = skin.T[nearest].astype(np.float64), normals.T[vertex].astype(np.float64)
        gap = points - place
        squared = np.add.reduce(gap * gap, 1)
        near = 1 + squared * (1 / DEPTH_SCALE_M**2)
        weight = (squared < DEPTH_REACH_M**2) * (DEPTH_WEIGHT / (near * near))
        return Meeting(place, normal, self.template.part.take(vertex), np.add.reduce(gap * normal, 1), weight)

    def joint_rows(self, posed: Posed, screws: Array) -> Array:
        """(63, 26) d joints / d theta; rotations of the wrist are about the wrist, in the outer frame."""
        return self.chain.rows(screws, posed.joints_m.take(THRICE, 0), EACH_AXIS, self._moved)

    @staticmethod
    def at_limits(angles: Array) -> Array:
        """Which angles lie at a limit."""
        return np.flatnonzero((angles <= _LOW) | (angles >= _HIGH))

    def _joints(self, rotation: Array, scale: Array, shift: Array) -> Array:
        """A joint is where the two parts that meet there put it, half each; tips belong to the distal parts."""
        parts = np.empty((3, 16, 4))
        parts[..., :3] = (rotation * scale[:, None, None]).transpose(1, 0, 2)
        parts[..., 3] = shift.T
        return (parts.reshape(3, 64) @ self._joint_skin).T

    def _bone_scales(self, joints: Array, scale: Array) -> Array:
        """alpha (6,): the palm by its five spokes, a finger by its three bones, each held near its parts' scale."""
        lengths = _lengths(joints)
        mean = (scale * self._variance).sum() / self._variance.sum()
        return np.clip(0.5 * lengths / self._lengths + 0.5 * mean, *ALPHA_RANGE)


def step(pose: Pose, normal: Array, gradient: Array) -> Pose:
    """A Gauss-Newton step inside the limits: angles at a limit that want to pass it are held, the others share it."""
    angles = pose.angles
    down = gradient[6:] < 0
    held = 6 + ((down & (angles <= _LOW)) | (~down & (angles >= _HIGH))).nonzero()[0]
    if len(held):
        normal[held] = 0
        normal[held, held] = 1
        gradient[held] = 0
    step = np.linalg.solve(normal, gradient)
    return Pose(rotation_matrix(step[3:6]) @ pose.R, pose.at_m + step[:3], _inside(angles + step[6:]))


def _inside(angles: Array) -> Array:
    return np.minimum(np.maximum(angles, _LOW), _HIGH)


def _joint_skin(t: HandTemplate) -> Array:
    """(64, 21): joints of parts as a skin, see `Chain.skin_of`."""
    rest = np.concatenate([t.joints_m, np.ones((21, 1))], 1)
    skin = np.zeros((16, 4, 21))
    for part, (joint, parent) in enumerate(zip(_JOINTS, PARENT_OR_PALM, strict=True)):
        skin[part, :, joint] += rest[joint] / 2
        skin[parent, :, joint] += rest[joint] / 2
    for finger, tip in enumerate(_TIPS):
        skin[3 + 3 * finger, :, tip] = rest[tip]
    return skin.reshape(64, 21)


def _lengths(joints: Array) -> Array:
    """(6,): the palm's five spokes together, then each finger's three bones together."""
    fingers = joints[1:].reshape(5, 4, 3)
    bones = np.sqrt(((fingers[:, 1:] - fingers[:, :-1]) ** 2).sum(2)).sum(1)
    spokes = np.sqrt(((fingers[:, 0] - joints[0]) ** 2).sum(1)).sum()
    return np.concatenate([[spokes], bones])


def _squares() -> Array:
    """(16, 9) that makes a rotation of the products of its quaternion's entries wxyz with each other:
    R = (w^2 - v.v) 1 + 2 v v' + 2 w [v]."""
    one = np.eye(3)
    squares = np.zeros((4, 4, 3, 3))
    squares[0, 0] = one
    squares[0, 1:] = squares[1:, 0] = se3.skew(one)
    squares[1:, 1:] = np.einsum("ia,jb->ijab", one, one) + np.einsum("ib,ja->ijab", one, one)
    squares[1:, 1:] -= np.einsum("ij,ab->ijab", one, one)
    return squares.reshape(16, 9)


_SQUARES = _squares()
_NO_BETA = np.zeros(7)
NO_VERTICES = np.zeros((0, 3))
