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
from ..hand.kinematics import angles_from_rotations, clamp_angles, forward_kinematics, part_rotations, skin
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
STEPS = 2
ANGLE_PRIOR_M = 0.004  # a radian off the parts' own angle costs as much as a joint this far off


class Fit(NamedTuple):
    """A kinematic hand in the frame of the vertices given: theta (26,), alpha (6,), joints_m (21, 3), vertices_m
    (V, 3), T_wrist (4, 4); joints_free_m (21, 3) are the parts' own, before limits."""

    theta: Array
    alpha: Array
    joints_m: Array
    vertices_m: Array
    T_wrist: Array
    joints_free_m: Array


class Refit:
    """Holds what is fixed: the template's moments. Arrays in, one Fit out; right hands only."""

    def __init__(self, t: HandTemplate | None = None) -> None:
        self.template = t = t or template()
        share = t.area[:, None] * t.weights**2  # a vertex counts for the part that moves it
        share = share / share.sum(0)
        self._centroid = share.T @ t.vertices_m  # (16, 3)
        centred = t.vertices_m[:, None] - self._centroid
        moments = np.concatenate([share[..., None] * centred, share[..., None]], 2)
        self._moments = np.ascontiguousarray(moments.reshape(len(share), 64))  # (V, 16 * 4)
        self._variance = (share[..., None] * centred**2).sum((0, 2))  # (16,)
        self._parts = list(PART_JOINTS)
        self._parents = [max(p, 0) for p in PART_PARENTS]
        self._bones = np.linalg.norm(t.parts_m - t.parts_m[self._parents], axis=1)
        self._moved = _joints_moved_by_angles()  # (20, 21) which joints an angle moves
        abd = np.array([0.0, 0.0, -1.0])
        self._axis = np.where(IS_FLEXION[:, None], (1.0, 0.0, 0.0), abd)  # in the part's anatomical frame

    def parts(self, vertices_m: Array) -> tuple[Array, Array, Array]:
        """Similarity of each part (eq. 3; Umeyama 1991): rotation (16, 3, 3), scale (16,), shift (16, 3)."""
        m = (vertices_m.T @ self._moments).reshape(3, 16, 4).transpose(1, 0, 2)
        covariance, centre = m[..., :3], m[..., 3]
        u, s, vt = np.linalg.svd(covariance)
        sign = np.sign(np.linalg.det(u) * np.linalg.det(vt))
        u[..., 2] *= sign[:, None]
        s[:, 2] *= sign
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
        free = angles_from_rotations(t, local)
        theta = np.empty(26)
        theta[6:] = clamp_angles(free)
        wanted = theta[6:].copy()
        theta[3:6] = se3.so3_log(rotation[0])
        theta[:3] = target[0]
        root = rotation[0]
        for _ in range(STEPS):
            theta, root = self._step(theta, root, alpha, target, wanted)
        skeleton = forward_kinematics(t, theta[None], alpha[None], np.zeros((1, 7)))
        vertices = skin(t.weights, t.vertices_m[None], skeleton.parts)[0]
        return Fit(theta, alpha, skeleton.joints_m[0], vertices, se3.transform(root, theta[:3]), target)

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
        t = self.template
        alpha = np.empty(6)
        roots = [1, 5, 9, 13, 17]
        spokes = np.linalg.norm(joints[roots] - joints[0], axis=1).sum()
        alpha[0] = spokes / np.linalg.norm(t.joints_m[roots] - t.joints_m[0], axis=1).sum()
        for f in range(5):
            chain, rest = joints[1 + 4 * f : 5 + 4 * f], t.joints_m[1 + 4 * f : 5 + 4 * f]
            length = np.linalg.norm(np.diff(chain, axis=0), axis=1).sum()
            alpha[1 + f] = length / np.linalg.norm(np.diff(rest, axis=0), axis=1).sum()
        mean = (scale * self._variance).sum() / self._variance.sum()
        return np.clip(0.5 * alpha + 0.5 * mean, *ALPHA_RANGE)

    def _step(self, theta: Array, root: Array, alpha: Array, target: Array, wanted: Array) -> tuple[Array, Array]:
        """One Gauss-Newton step on the joints' positions, with a prior on the angles, inside the limits."""
        t = self.template
        skeleton = forward_kinematics(t, theta[None], alpha[None], np.zeros((1, 7)))
        joints = skeleton.joints_m[0]
        jacobian = self.jacobian(root, theta[6:], joints)  # (63, 26)
        residual = (target - joints).ravel()
        prior = np.zeros(26)
        prior[6:] = ANGLE_PRIOR_M**2
        normal = jacobian.T @ jacobian + np.diag(prior + 1e-9)
        gradient = jacobian.T @ residual
        gradient[6:] += prior[6:] * (wanted - theta[6:])
        # Angles that lie at a limit and want to pass it are held; the others share the step.
        low, high = ANGLE_LIMITS_RAD.T
        held = np.zeros(26, bool)
        held[6:] = ((theta[6:] <= low) & (gradient[6:] < 0)) | ((theta[6:] >= high) & (gradient[6:] > 0))
        free = ~held
        step = np.zeros(26)
        step[free] = np.linalg.solve(normal[np.ix_(free, free)], gradient[free])
        new = theta + step
        root = se3.so3_exp(step[3:6]) @ root
        new[3:6] = se3.so3_log(root)
        new[6:] = clamp_angles(new[6:])
        return new, root

    def jacobian(self, root: Array, angles: Array, joints: Array) -> Array:
        """d joints / d theta at a pose, (63, 26); rotations of the wrist are about the wrist, in the outer frame."""
        t = self.template
        local = part_rotations(t, angles[None])[0]
        glob = np.empty((16, 3, 3))
        glob[0] = root
        glob[1:] = local[1:]
        for p in range(1, 16):
            glob[p] = glob[PART_PARENTS[p]] @ glob[p]
        # The abduction axis is fixed in the parent's copy of the part's frame; flexion turns after it.
        parent = glob[self._parents][ANGLE_PARTS] @ t.axes[ANGLE_PARTS]  # (20, 3, 3)
        axis = np.where(IS_FLEXION[:, None], 0.0, (parent @ self._axis[..., None])[..., 0])
        abduction = np.zeros(16)
        abduction[ANGLE_PARTS[~IS_FLEXION]] = angles[~IS_FLEXION]
        a = abduction[ANGLE_PARTS]
        turned = np.stack([np.cos(a), -np.sin(a), np.zeros(20)], 1)  # Rz(-abd) applied to the flexion axis x
        axis = np.where(IS_FLEXION[:, None], (parent @ turned[..., None])[..., 0], axis)
        j = np.zeros((21, 3, 26))
        j[:, :, :3] = np.eye(3)
        j[:, :, 3:6] = -se3.skew(joints - joints[0])
        arm = joints[None] - joints[self._parts][ANGLE_PARTS][:, None]  # (20, 21, 3)
        j[:, :, 6:] = (np.cross(axis[:, None], arm) * self._moved[..., None]).transpose(1, 2, 0)
        # The thumb's roll moves with its flexion; it turns about the bone and so moves the joints beyond the MCP.
        twist_axis = glob[1] @ t.axes[1][:, 1]
        twist = np.cross(twist_axis, joints - joints[1]) * self._moved[0][:, None]
        j[:, :, 6] += THUMB_TWIST_PER_FLEX * twist
        return j.reshape(63, 26)


def _joints_moved_by_angles() -> Array:
    moved = np.zeros((20, 21))
    for i, part in enumerate(ANGLE_PARTS):
        joint = PART_JOINTS[part]
        finger_end = 4 * ((part - 1) // 3) + 4
        moved[i, joint + 1 : finger_end + 1] = 1
    return moved
