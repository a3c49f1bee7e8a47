"""Rotations and rigid transforms. `T_target_source` maps points: p_target = T_target_source @ p_source."""

from __future__ import annotations

import numpy as np

from .arrays import Array


def skew(v: Array) -> Array:
    """(..., 3) to the cross-product matrix (..., 3, 3)."""
    zero = np.zeros_like(v[..., 0])
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*v.shape[:-1], 3, 3)


def so3_exp(rotvec: Array) -> Array:
    """Rotation vectors (..., 3) rad to matrices (..., 3, 3); Rodrigues' formula."""
    rotvec = np.asarray(rotvec, np.float64)
    angle2 = (rotvec * rotvec).sum(-1)[..., None, None]
    angle = np.sqrt(angle2)
    small = angle2 < 1e-12
    safe = np.where(small, 1.0, angle)
    a = np.where(small, 1 - angle2 / 6, np.sin(safe) / safe)
    b = np.where(small, 0.5 - angle2 / 24, (1 - np.cos(safe)) / safe**2)
    k = skew(rotvec)
    return np.eye(3) + a * k + b * (k @ k)


def so3_log(rotation: Array) -> Array:
    """Matrices (..., 3, 3) to rotation vectors (..., 3) rad of length at most pi."""
    r = np.asarray(rotation, np.float64)
    # The quaternion's largest entry first, so that no angle, pi included, loses digits.
    trace = r[..., 0, 0] + r[..., 1, 1] + r[..., 2, 2]
    k = np.empty((*r.shape[:-2], 4, 4))  # its rows are proportional to the quaternion wxyz
    k[..., 0, 0] = 1 + trace
    for i in range(3):
        j, m = (i + 1) % 3, (i + 2) % 3
        k[..., 1 + i, 1 + i] = 1 + 2 * r[..., i, i] - trace
        k[..., 0, 1 + i] = k[..., 1 + i, 0] = r[..., m, j] - r[..., j, m]
        k[..., 1 + i, 1 + j] = k[..., 1 + j, 1 + i] = r[..., i, j] + r[..., j, i]
    best = np.argmax(np.einsum("...ii->...i", k), -1)
    q = np.take_along_axis(k, best[..., None, None], -2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    q = np.where(q[..., :1] < 0, -q, q)
    sin_half = np.linalg.norm(q[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sin_half, q[..., :1])
    scale = np.where(sin_half < 1e-9, 2.0, angle / np.maximum(sin_half, 1e-12))
    return q[..., 1:] * scale


def transform(rotation: Array, translation: Array) -> Array:
    """(..., 3, 3) and (..., 3) m to (..., 4, 4)."""
    shape = np.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    t = np.zeros((*shape, 4, 4))
    t[..., :3, :3], t[..., :3, 3], t[..., 3, 3] = rotation, translation, 1
    return t


def inverse(t: Array) -> Array:
    """Inverse of rigid transforms (..., 4, 4)."""
    rotation = np.swapaxes(t[..., :3, :3], -1, -2)
    return transform(rotation, -(rotation @ t[..., :3, 3:])[..., 0])


def apply(t: Array, points: Array) -> Array:
    """Map points (..., N, 3) by transforms (..., 4, 4)."""
    return points @ np.swapaxes(t[..., :3, :3], -1, -2) + t[..., None, :3, 3]
