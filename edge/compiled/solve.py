"""The refit compiled by numba: the Gauss-Newton steps of `refit.py`, all of them in one call.

See `depth.py`. Arrays are float64 and contiguous where nothing else is said.
"""

from __future__ import annotations

import math

import numpy as np

from ...hand.arrays import Array
from ...hand.skeleton import THUMB_TWIST_PER_FLEX
from ..refit import (
    ANGLE_PRIOR_M,
    APART_WEIGHT,
    DEEP_M,
    DEPTH_REACH_M,
    DEPTH_SCALE_M,
    DEPTH_WEIGHT,
    FIRST_STEPS,
    JOINT_WEIGHT,
    LEAST_ALIKE,
    MOST_PARTINGS,
    STEPS,
)
from ..spheres import MOST_PAIRS
from .depth import array_of, compiled, nearest, types
from .hand import MODEL, REST, Model, Rest, angles_of, parts_of, pose_chain, pose_skin, times

_one, _two = (array_of(types.float64, n, readonly=False) for n in (1, 2))
_vector, _matrix = array_of(types.float64, 1), array_of(types.float64, 2)


@compiled()
def _screws(frames: Array, spread: Array, screws: Array) -> None:
    """`Chain.screws`, an angle (20, 6) a row."""
    for f in range(5):
        for a in range(4):
            p = 1 + 3 * f + max(a - 1, 0)
            s = screws[4 * f + a]
            for i in range(3):
                s[3 + i] = spread[f, i, 0] if a == 0 else -spread[f, i, 2] if a == 1 else frames[p, i, 0]
                if f == 0 and a == 0:
                    s[3 + i] += THUMB_TWIST_PER_FLEX * frames[1, i, 1]
            x, y, z = frames[p, 0, 3], frames[p, 1, 3], frames[p, 2, 3]
            s[0], s[1], s[2] = y * s[5] - z * s[4], z * s[3] - x * s[5], x * s[4] - y * s[3]


@compiled()
def _row(screws: Array, part: int, x: float, y: float, z: float, u: float, v: float, w: float, row: Array) -> None:
    """One of `Chain.rows` added to row (26,): a point x y z on a part along u v w."""
    a, b, c = y * w - z * v, z * u - x * w, x * v - y * u
    row[0] += u
    row[1] += v
    row[2] += w
    row[3] += a
    row[4] += b
    row[5] += c
    if part > 0:
        first = 4 * ((part - 1) // 3)
        for k in range(first, first + 2 + (part - 1) % 3):
            s = screws[k]
            row[6 + k] += s[0] * u + s[1] * v + s[2] * w + s[3] * a + s[4] * b + s[5] * c


@compiled()
def _count(row: Array, weight: float, off: float, normal: Array, gradient: Array) -> None:
    """Add a row to the lower triangle of the normal equations, and clear it."""
    for i in range(26):
        if row[i] != 0:
            scaled = weight * row[i]
            gradient[i] += scaled * off
            for j in range(i + 1):
                normal[i, j] += scaled * row[j]
    row[:] = 0


@compiled()
def _count_joints(screws: Array, joints: Array, off: Array, weight: Array, normal: Array, gradient: Array) -> None:
    """`Refit.joint_rows` with what is off (21, 3) and how it counts (21,)."""
    row = np.zeros(26)
    for j in range(21):
        part = 0 if j == 0 else 1 + 3 * ((j - 1) // 4) + min((j - 1) % 4, 2)
        x, y, z = joints[j]
        _row(screws, part, x, y, z, 1.0, 0.0, 0.0, row)
        _count(row, weight[j], off[j, 0], normal, gradient)
        _row(screws, part, x, y, z, 0.0, 1.0, 0.0, row)
        _count(row, weight[j], off[j, 1], normal, gradient)
        _row(screws, part, x, y, z, 0.0, 0.0, 1.0, row)
        _count(row, weight[j], off[j, 2], normal, gradient)


@compiled()
def _step(m: Model, root: Array, at: Array, angles: Array, normal: Array, gradient: Array) -> None:
    """`refit.step` in place, by Cholesky's method in the lower triangle."""
    for k in range(20):
        i = 6 + k
        if (gradient[i] < 0 and angles[k] <= m.limits[0, k]) or (gradient[i] >= 0 and angles[k] >= m.limits[1, k]):
            normal[i, :i] = 0
            normal[i + 1 :, i] = 0
            normal[i, i], gradient[i] = 1, 0
    for i in range(26):
        for j in range(i + 1):
            rest = normal[i, j]
            for k in range(j):
                rest -= normal[i, k] * normal[j, k]
            normal[i, j] = math.sqrt(max(rest, 1e-300)) if i == j else rest / normal[j, j]
        for k in range(i):
            gradient[i] -= normal[i, k] * gradient[k]
        gradient[i] /= normal[i, i]
    for i in range(25, -1, -1):
        for k in range(i + 1, 26):
            gradient[i] -= normal[k, i] * gradient[k]
        gradient[i] /= normal[i, i]
    x, y, z = gradient[3], gradient[4], gradient[5]
    angle = math.sqrt(x * x + y * y + z * z)
    a, b = 1.0, 0.5
    if angle > 1e-8:
        a, b = math.sin(angle) / angle, (1 - math.cos(angle)) / (angle * angle)
    c = 1 - b * angle * angle
    turn = np.array(
        (
            (c + b * x * x, b * x * y - a * z, b * x * z + a * y),
            (b * x * y + a * z, c + b * y * y, b * y * z - a * x),
            (b * x * z - a * y, b * y * z + a * x, c + b * z * z),
        )
    )
    times(turn, root.copy(), root)
    at += gradient[:3]
    for k in range(20):
        angles[k] = min(max(angles[k] + gradient[6 + k], m.limits[0, k]), m.limits[1, k])


@compiled()
def _count_points(
    m: Model, rest: Rest, points: Array, at: Array, frames: Array, screws: Array, skin: Array, normals: Array,
    normal: Array, gradient: Array,
) -> None:  # fmt: skip
    """`Refit.meet` and the rows of what meets, for points (N, 3); skin and normals (3, V) float32 are overwritten."""
    pose_skin(m, rest, frames, at, skin, normals)
    count, n = len(m.order), 0
    facing, near = np.empty(count, np.int64), np.empty((3, len(points)), np.float32)
    for v in range(count):
        facing[n] = v
        if skin[0, v] * normals[0, v] + skin[1, v] * normals[1, v] + skin[2, v] * normals[2, v] < 0:
            n += 1
    if n == 0:
        n = count
        facing[:] = np.arange(count)
    for i in range(3):
        for k in range(n):
            skin[i, k] = skin[i, facing[k]] - np.float32(at[i])
        for k in range(len(points)):
            near[i, k] = points[k, i] - at[i]
    which, squared = np.empty(len(points), np.int32), np.empty(len(points), np.float32)
    nearest(near, skin, n, which, squared)
    row = np.zeros(26)
    for k in range(len(points)):
        f, v = which[k], facing[which[k]]
        x, y, z = np.float64(skin[0, f]), np.float64(skin[1, f]), np.float64(skin[2, f])
        u, v1, w = np.float64(normals[0, v]), np.float64(normals[1, v]), np.float64(normals[2, v])
        a, b, c = points[k, 0] - at[0] - x, points[k, 1] - at[1] - y, points[k, 2] - at[2] - z
        far = a * a + b * b + c * c
        if far < DEPTH_REACH_M**2:
            ratio = 1 + far * (1 / DEPTH_SCALE_M**2)
            _row(screws, m.own[v], x, y, z, u, v1, w, row)
            _count(row, DEPTH_WEIGHT / (ratio * ratio), a * u + b * v1 + c * w, normal, gradient)


@compiled()
def _overlaps(m: Model, rest: Rest, joints: Array, screws: Array, normal: Array, gradient: Array, count: bool) -> float:
    """The deepest that two spheres overlap, as `Spheres.overlaps`, and if asked to their rows in normal equations."""
    n, size = len(m.at), np.mean(rest.scale)
    centre = np.empty((n, 3))
    for s in range(n):
        for i in range(3):
            centre[s, i] = joints[m.at[s], i] + m.share[s] * (joints[m.toward[s], i] - joints[m.at[s], i])
    one, other, depth, found, deepest = np.empty(n * n, np.int64), np.empty(n * n, np.int64), np.empty(n * n), 0, 0.0
    for s in range(n):
        for t in range(s + 1, n):
            x, y, z = centre[s, 0] - centre[t, 0], centre[s, 1] - centre[t, 1], centre[s, 2] - centre[t, 2]
            squared = x * x + y * y + z * z
            least = m.least[s, t] * size
            if squared < least * least:
                one[found], other[found], depth[found] = s, t, least - math.sqrt(squared)
                deepest = max(deepest, depth[found])
                found += 1
    row = np.zeros(26)
    for _ in range(min(found, MOST_PAIRS) if count else 0):
        k = np.argmax(depth[:found])
        s, t, deep = one[k], other[k], depth[k]
        depth[k] = -1
        apart = centre[s] - centre[t]
        x, y, z = apart / max(math.sqrt(np.sum(apart * apart)), 1e-6)
        a, b = centre[s], centre[t]
        _row(screws, m.on[t], b[0], b[1], b[2], -x, -y, -z, row)
        _row(screws, m.on[s], a[0], a[1], a[2], x, y, z, row)
        _count(row, APART_WEIGHT, deep, normal, gradient)
    return deepest


@compiled(
    types.Tuple((_two, _one, _two, _two))(
        MODEL, REST, array_of(types.float32, 2), _matrix, _vector, types.boolean, _matrix, _vector, types.float64
    )
)
def solve(
    m: Model,
    rest: Rest,
    vertices: Array,
    points: Array,
    trust: Array,
    begun: bool,
    start: Array,
    start_angles: Array,
    calm: float,
) -> tuple[Array, Array, Array, Array]:
    """`Refit.solve` of vertices (3, V) float32, points (N, 3) and trust (21,): T_wrist (4, 4), angles, joints (21, 3),
    the parts' own joints. start (3, 3), start_angles (20,) and calm, their weight, are looked at if begun."""
    rotation, parts = np.empty((16, 3, 3)), np.empty((16, 3, 4))
    parts_of(m, vertices, rotation, parts)
    target = np.zeros((21, 3))
    for k in range(64):
        for j in range(21):
            for i in range(3):
                target[j, i] += parts[k // 4, i, k % 4] * m.joint_skin[k, j]
    wanted = np.empty(20)
    angles_of(m, rotation, wanted)
    begun = begun and np.sum(start * rotation[0]) >= LEAST_ALIKE
    root, angles = (start.copy(), start_angles.copy()) if begun else (rotation[0].copy(), wanted.copy())
    frames, spread, joints = np.empty((16, 3, 4)), np.empty((5, 3, 4)), np.empty((21, 3))
    pose_chain(m, rest, root, angles, frames, spread, joints)
    at, whole = np.zeros(3), np.sum(trust)
    for j in range(21):
        for i in range(3):
            at[i] += trust[j] * (target[j, i] - joints[j, i]) / whole
    normal, gradient, screws = np.empty((26, 26)), np.empty(26), np.empty((20, 6))
    skin, normals = np.empty((3, len(m.own)), np.float32), np.empty((3, len(m.own)), np.float32)
    for _ in range(STEPS if begun else FIRST_STEPS):
        normal[:], gradient[:] = 0, 0
        _screws(frames, spread, screws)
        _count_joints(screws, joints, target - joints - at, JOINT_WEIGHT * trust, normal, gradient)
        if len(points):
            _count_points(m, rest, points, at, frames, screws, skin, normals, normal, gradient)
        for i in range(26):
            normal[i, i] += 1e-9
        for a in range(20):
            i = 6 + a
            normal[i, i] += ANGLE_PRIOR_M**2
            gradient[i] += (1e-9 + ANGLE_PRIOR_M**2) * (wanted[a] - angles[a])
            if begun:
                normal[i, i] += calm
                gradient[i] += calm * (start_angles[a] - angles[a])
        _step(m, root, at, angles, normal, gradient)
        pose_chain(m, rest, root, angles, frames, spread, joints)
    every, none = np.ones(21), np.zeros((21, 3))
    for _ in range(MOST_PARTINGS):
        if _overlaps(m, rest, joints, screws, normal, gradient, False) < DEEP_M:
            break
        normal[:], gradient[:] = 0, 0
        _screws(frames, spread, screws)
        _count_joints(screws, joints, none, every, normal, gradient)
        _overlaps(m, rest, joints, screws, normal, gradient, True)
        for i in range(26):
            normal[i, i] += 1e-9 if i < 6 else 1e-9 + ANGLE_PRIOR_M**2
        _step(m, root, at, angles, normal, gradient)
        pose_chain(m, rest, root, angles, frames, spread, joints)
    wrist = np.eye(4)
    wrist[:3, :3], wrist[:3, 3] = root, at
    return wrist, angles, joints + at, target
