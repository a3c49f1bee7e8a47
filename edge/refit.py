"""Refit: a kinematic hand to the network's vertices.

Each rigid part gets a similarity to the template in closed form (Dual Grid Net, section 3.4, eq. 3). From these come
the wrist, the bone scales and the joint angles, clamped to their limits; a few Gauss-Newton steps on the joints take
back what clamping and rounding moved; the template is then skinned. Bones cannot stretch: a finger has one scale.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..hand import se3
from ..hand.kinematics import Skeleton, angles_from_rotations, chain, clamp_angles, part_rotations, skin
from ..hand.parts import part_moments
from ..hand.skeleton import (
    ALPHA_RANGE,
    ANGLE_LIMITS_RAD,
    ANGLE_PARTS,
    IS_FLEXION,
    PART_JOINTS,
    PART_PARENTS,
    THUMB_TWIST_PER_FLEX,
    TIPS,
)
from ..hand.template import HandTemplate, template

Array = NDArray[Any]
STEPS = 1  # a second one gains 0.02 mm
_FLEXED = ANGLE_PARTS[IS_FLEXION]
_DIAGONAL = np.diag_indices(26)
ANGLE_PRIOR_M = 0.004  # a radian off the parts' own angle costs as much as a joint this far off


class Fit(NamedTuple):
    """A kinematic hand in the frame of the vertices given: angles (20,) rad, alpha (6,), joints_m (21, 3), vertices_m
    (V, 3), T_wrist (4, 4); joints_free_m (21, 3) are the parts' own, before limits."""

    angles: Array
    alpha: Array
    joints_m: Array
    vertices_m: Array
    T_wrist: Array
    joints_free_m: Array

    @property
    def theta(self) -> Array:
        return theta_of(self.T_wrist, self.angles)


def theta_of(wrist: Array, angles: Array) -> Array:
    """theta (26,) of a wrist's pose (4, 4) and 20 angles."""
    return np.concatenate([wrist[:3, 3], se3.so3_log(wrist[:3, :3]), angles])


class Refit:
    """Holds what is fixed: the template's moments. Arrays in, one Fit out; right hands only."""

    def __init__(self, t: HandTemplate | None = None) -> None:
        self.template = t = t or template()
        moments, self._centroid, self._variance = part_moments(t)
        self._moments = moments.astype(np.float32)  # half the memory to read, and exact to 1e-7
        self._lengths = _lengths(t.joints_m)
        self._parts = list(PART_JOINTS)
        self._parents = [max(p, 0) for p in PART_PARENTS]
        self._moved = _joints_moved_by_angles()  # (20, 21) which joints an angle moves
        self._axis = np.where(IS_FLEXION[:, None], (1.0, 0.0, 0.0), (0.0, 0.0, -1.0))  # in the anatomical frame
        self._prior = np.full(26, 1e-9)
        self._prior[6:] += ANGLE_PRIOR_M**2

    def parts(self, vertices_m: Array) -> tuple[Array, Array, Array]:
        """Similarity of each part (eq. 3; Umeyama 1991): rotation (16, 3, 3), scale (16,), shift (16, 3)."""
        middle = vertices_m.mean(0)
        flat = (vertices_m - middle).T.astype(np.float32) @ self._moments  # (3, 64)
        m = flat.astype(np.float64).reshape(3, 16, 4).transpose(1, 0, 2)  # (16, 3, 4)
        covariance, centre = m[..., :3], m[..., 3] + middle
        u, s, vt = np.linalg.svd(covariance)
        rotation = u @ vt
        mirrored = np.linalg.det(rotation) < 0
        if mirrored.any():
            u[mirrored, :, 2] *= -1
            s[mirrored, 2] *= -1
            rotation = u @ vt
        scale = s.sum(1) / self._variance
        shift = centre - scale[:, None] * (rotation @ self._centroid[..., None])[..., 0]
        return rotation, scale, shift

    def __call__(self, vertices_m: Array, alpha: Array | None = None) -> Fit:
        """Fit to vertices (V, 3) m; a known shape alpha (6,) is kept."""
        t = self.template
        rotation, scale, shift = self.parts(np.asarray(vertices_m, np.float64))
        target = self._joints(rotation, scale, shift)
        if alpha is None:
            alpha = self._bone_scales(target, scale)
        local = np.swapaxes(rotation[self._parents], 1, 2) @ rotation
        wanted = clamp_angles(angles_from_rotations(t, local))
        root, translation, angles = rotation[0], target[0], wanted
        for _ in range(STEPS):
            root, translation, angles = self._step(root, translation, angles, alpha, target, wanted)
        skeleton = self._pose(root, translation, angles, alpha)
        vertices = skin(t.weights, t.vertices_m[None], skeleton.parts)[0]
        return Fit(angles, alpha, skeleton.joints_m[0], vertices, se3.transform(root, translation), target)

    def _pose(self, root: Array, translation: Array, angles: Array, alpha: Array) -> Skeleton:
        t = self.template
        return chain(part_rotations(t, angles[None]), root[None], translation[None], alpha[None], t.joints_m[None])

    def _joints(self, rotation: Array, scale: Array, shift: Array) -> Array:
        """A joint is where the two parts that meet there put it, half each; tips belong to the distal parts."""
        t = self.template
        linear = rotation * scale[:, None, None]
        own = (linear @ t.parts_m[..., None])[..., 0] + shift
        parent = (linear[self._parents] @ t.parts_m[..., None])[..., 0] + shift[self._parents]
        joints = np.empty((21, 3))
        joints[self._parts] = (own + parent) / 2
        joints[list(TIPS)] = (linear[3::3] @ t.joints_m[list(TIPS)][..., None])[..., 0] + shift[3::3]
        return joints

    def _bone_scales(self, joints: Array, scale: Array) -> Array:
        """alpha (6,): the palm by its five spokes, a finger by its three bones, each held near its parts' scale."""
        lengths = _lengths(joints)
        mean = (scale * self._variance).sum() / self._variance.sum()
        return np.clip(0.5 * lengths / self._lengths + 0.5 * mean, *ALPHA_RANGE)

    def _step(
        self, root: Array, translation: Array, angles: Array, alpha: Array, target: Array, wanted: Array
    ) -> tuple[Array, Array, Array]:
        """One Gauss-Newton step on the joints' positions, with a prior on the angles, inside the limits."""
        skeleton = self._pose(root, translation, angles, alpha)
        joints = skeleton.joints_m[0]
        jacobian = self.jacobian(skeleton, angles)  # (63, 26)
        normal = jacobian.T @ jacobian
        normal[_DIAGONAL] += self._prior
        gradient = jacobian.T @ (target - joints).ravel()
        gradient[6:] += self._prior[6:] * (wanted - angles)
        # Angles that lie at a limit and want to pass it are held; the others share the step.
        low, high = ANGLE_LIMITS_RAD.T
        held = np.flatnonzero(((angles <= low) & (gradient[6:] < 0)) | ((angles >= high) & (gradient[6:] > 0))) + 6
        normal[held] = 0
        normal[held, held] = 1
        gradient[held] = 0
        step = np.linalg.solve(normal, gradient)
        return se3.so3_exp(step[3:6]) @ root, translation + step[:3], clamp_angles(angles + step[6:])

    def jacobian(self, skeleton: Skeleton, angles: Array) -> Array:
        """d joints / d theta at a pose, (63, 26); rotations of the wrist are about the wrist, in the outer frame."""
        t = self.template
        joints, glob = skeleton.joints_m[0], skeleton.rotations[0]
        # A part turns about its abduction axis, then about the flexion axis that this has moved: Rz(-abd) Rx(flex).
        abduction = np.zeros(16)
        abduction[ANGLE_PARTS[~IS_FLEXION]] = angles[~IS_FLEXION]
        axis = self._axis.copy()
        axis[IS_FLEXION, 0] = np.cos(abduction[_FLEXED])
        axis[IS_FLEXION, 1] = -np.sin(abduction[_FLEXED])
        axis = (glob[self._parents][ANGLE_PARTS] @ (t.axes[ANGLE_PARTS] @ axis[..., None]))[..., 0]  # (20, 3)
        j = np.zeros((21, 3, 26))
        j[:, :, :3] = np.eye(3)
        j[:, :, 3:6] = -se3.skew(joints - joints[0])
        arm = joints - joints[self._parts][ANGLE_PARTS][:, None]  # (20, 21, 3)
        j[:, :, 6:] = ((se3.skew(axis)[:, None] @ arm[..., None])[..., 0] * self._moved[..., None]).transpose(1, 2, 0)
        # The thumb's roll moves with its flexion; it turns about the bone and so moves the joints beyond the MCP.
        roll = np.cross(glob[1] @ t.axes[1][:, 1], joints - joints[1]) * self._moved[0][:, None]
        j[:, :, 6] += THUMB_TWIST_PER_FLEX * roll
        return j.reshape(63, 26)


def _lengths(joints: Array) -> Array:
    """(6,): the palm's five spokes together, then each finger's three bones together."""
    fingers = joints[1:].reshape(5, 4, 3)
    bones = np.sqrt(((fingers[:, 1:] - fingers[:, :-1]) ** 2).sum(2)).sum(1)
    spokes = np.sqrt(((fingers[:, 0] - joints[0]) ** 2).sum(1)).sum()
    return np.concatenate([[spokes], bones])


def _joints_moved_by_angles() -> Array:
    moved = np.zeros((20, 21))
    for i, part in enumerate(ANGLE_PARTS):
        joint = PART_JOINTS[part]
        finger_end = 4 * ((part - 1) // 3) + 4
        moved[i, joint + 1 : finger_end + 1] = 1
    return moved
