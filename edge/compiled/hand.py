"""The kinematic hand compiled by numba: its parts, angles, chain and skin.

See `depth.py`. Arrays are float64 and contiguous where nothing else is said.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ...hand.arrays import Array
from ...hand.skeleton import THUMB_TWIST_PER_FLEX
from .depth import array_of, compiled, types


class Model(NamedTuple):
    """What is fixed of the hand. Vertices are sorted by which parts move them, so that what a part moves lies in a few
    runs: order (V,) int64 as the template counts them, runs (R, 4) int64 a part, its first vertex, the one after its
    last and its first entry of K; moments (4, K) float32 as `part_moments`, normals (3, K) float32 the weighted ones in
    the part's frame. own (V,) int64 the part of a vertex; axes (16, 3, 3), flat (20,), limits (2, 20) rad, centroid
    (16, 3), variance (16,), joint_skin (64, 21) as `Refit` has them. Spheres: at (S,) int64 the joint before, share
    (S,) of the way to toward (S,) int64, on (S,) int64 the part, least (S, S) m how near two may come."""

    order: Array
    runs: Array
    moments: Array
    normals: Array
    own: Array
    axes: Array
    flat: Array
    limits: Array
    centroid: Array
    variance: Array
    joint_skin: Array
    at: Array
    toward: Array
    share: Array
    on: Array
    least: Array


class Rest(NamedTuple):
    """A shape: links (3, 20, 16) and tips_m (5, 4, 1) as `chain.Rest`, scale (16,), skin (4, K) float32."""

    links: Array
    tips_m: Array
    scale: Array
    skin: Array


_ints, _floats = array_of(types.int64, 1, readonly=False), array_of(types.float32, 2, readonly=False)
_pairs = array_of(types.int64, 2, readonly=False)
_one, _two, _three = (array_of(types.float64, n, readonly=False) for n in (1, 2, 3))
MODEL = types.NamedTuple(
    (_ints, _pairs, _floats, _floats, _ints, _three, _one, _two, _two, _one, _two, _ints, _ints, _one, _ints, _two),
    Model,
)
REST = types.NamedTuple((_three, _three, _one, _floats), Rest)
_vector, _matrix = array_of(types.float64, 1), array_of(types.float64, 2)


@compiled()
def _rotation(m: Array, out: Array) -> float:
    """The rotation (3, 3) nearest to a covariance (3, 4; the last column is not looked at), and the greatest eigenvalue
    of Horn's matrix, of which it is: Newton's method on the characteristic polynomial (Theobald 2005)."""
    size = math.sqrt(np.sum(m[:, :3] * m[:, :3]))
    if not size > 0:
        size = 1.0
    k = np.empty((4, 4))
    trace = (m[0, 0] + m[1, 1] + m[2, 2]) / size
    k[0, 0] = trace
    for i in range(3):
        a, b = (i + 1) % 3, (i + 2) % 3
        k[0, 1 + i] = k[1 + i, 0] = (m[b, a] - m[a, b]) / size
        for c in range(3):
            k[1 + i, 1 + c] = (m[i, c] + m[c, i]) / size - (trace if i == c else 0.0)
    squared = np.sum(k * k)  # of the eigenvalues, whose sum is 0
    minors = 0.0
    for i in range(4):
        minors += _minor(k, i, i)
    whole = 0.0
    for i in range(4):
        whole += (1 - 2 * (i % 2)) * k[0, i] * _minor(k, 0, i)
    most = math.sqrt(3.0)
    for _ in range(60):
        slope = 4 * most * most * most - squared * most - minors
        step = (((most * most - squared / 2) * most - minors) * most + whole) / slope
        most -= step
        if not (abs(step) > 1e-15 and slope > 0):
            break
    if not (0 <= most <= 2):
        most = trace
    for i in range(4):
        k[i, i] -= most
    best, q = -1.0, np.zeros(4)
    for i in range(4):  # each column of the adjugate is the eigenvector times one of its entries
        own = abs(_minor(k, i, i))
        if own > best:
            best = own
            for j in range(4):
                q[j] = (1 - 2 * ((i + j) % 2)) * _minor(k, i, j)
    if not best > 1e-10:  # several eigenvalues are alike: any of their vectors
        q[:] = (1.0, 0.0, 0.0, 0.0)
        for _ in range(60):
            p = q.copy()
            for i in range(4):
                q[i] = (most + 2) * p[i]
                for j in range(4):
                    q[i] += k[i, j] * p[j]
            q /= math.sqrt(np.sum(q * q))
    q /= math.sqrt(np.sum(q * q))
    w, x, y, z = q
    out[0, 0], out[0, 1], out[0, 2] = w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)
    out[1, 0], out[1, 1], out[1, 2] = 2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)
    out[2, 0], out[2, 1], out[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z
    return most * size


@compiled()
def _minor(k: Array, row: int, column: int) -> float:
    """Of a (4, 4): the determinant without a row and a column."""
    a, b, c = (0 if row > 0 else 1), (1 if row > 1 else 2), (2 if row > 2 else 3)
    d, e, f = (0 if column > 0 else 1), (1 if column > 1 else 2), (2 if column > 2 else 3)
    return (
        k[a, d] * (k[b, e] * k[c, f] - k[b, f] * k[c, e])
        - k[a, e] * (k[b, d] * k[c, f] - k[b, f] * k[c, d])
        + k[a, f] * (k[b, d] * k[c, e] - k[b, e] * k[c, d])
    )


@compiled()
def parts_of(m: Model, vertices: Array, rotation: Array, parts: Array) -> None:
    """`Refit.parts`: rotation (16, 3, 3) and parts (16, 3, 4) with the scale in it, of vertices (3, V) float32."""
    middle = np.array((vertices[0, 0], vertices[1, 0], vertices[2, 0]), np.float64)
    from_middle, sums = np.empty((3, len(m.order))), np.zeros((16, 3, 4))
    for i in range(3):
        for k in range(len(m.order)):
            from_middle[i, k] = vertices[i, m.order[k]] - middle[i]
    for p, first, end, entry in m.runs:
        for c in range(4):
            weight = m.moments[c, entry : entry + end - first]
            for i in range(3):
                place, total = from_middle[i, first:end], 0.0
                for k in range(len(place)):
                    total += weight[k] * place[k]
                sums[p, i, c] += total
    for p in range(16):
        scale = _rotation(sums[p], rotation[p]) / m.variance[p]
        for i in range(3):
            parts[p, i, 3] = sums[p, i, 3] + middle[i]
            for j in range(3):
                parts[p, i, j] = scale * rotation[p, i, j]
                parts[p, i, 3] -= parts[p, i, j] * m.centroid[p, j]


@compiled()
def angles_of(m: Model, rotation: Array, angles: Array) -> None:
    """`Chain.angles` and then `_inside`."""
    local, own, above = np.empty((3, 3)), np.empty((3, 3)), np.empty((3, 3))
    for p in range(1, 16):
        finger, bone = (p - 1) // 3, (p - 1) % 3
        times(rotation[p], m.axes[p], own)
        times(rotation[p - 1 if bone else 0], m.axes[p], above)
        times(above.T, own, local)
        if bone:
            angles[4 * finger + bone + 1] = math.atan2(local[2, 1] - local[1, 2], local[1, 1] + local[2, 2])
            continue
        x, y = local[0, 1], local[1, 1]
        flex, aside = math.atan2(local[2, 1], math.hypot(x, y)), math.atan2(x, y)
        if y < 0:
            flex, aside = math.copysign(math.pi, flex) - flex, aside - math.copysign(math.pi, aside)
        angles[4 * finger], angles[4 * finger + 1] = flex, aside
    for a in range(20):
        angles[a] = min(max(angles[a] - m.flat[a], m.limits[0, a]), m.limits[1, a])


@compiled()
def times(a: Array, b: Array, out: Array) -> None:
    """(3, 3) times (3, 3)."""
    for i in range(3):
        for j in range(3):
            out[i, j] = a[i, 0] * b[0, j] + a[i, 1] * b[1, j] + a[i, 2] * b[2, j]


@compiled()
def _move(a: Array, link: Array, out: Array) -> None:
    """A frame (3, 4) times a link (16,), a 4x4 matrix that ends in 0 0 0 1."""
    for i in range(3):
        for j in range(4):
            out[i, j] = a[i, 0] * link[j] + a[i, 1] * link[4 + j] + a[i, 2] * link[8 + j]
        out[i, 3] += a[i, 3]


@compiled()
def pose_chain(m: Model, rest: Rest, root: Array, angles: Array, frames: Array, spread: Array, joints: Array) -> None:
    """`Chain.pose`: frames (16, 3, 4), spread (5, 3, 4), joints (21, 3)."""
    link = np.empty((4, 16))
    frames[0, :, 3] = joints[0] = 0
    times(root, m.axes[0], frames[0])
    for f in range(5):
        for a in range(4):
            at = 4 * f + a
            bent = m.flat[at] + angles[at]
            cosine, sine = math.cos(bent), math.sin(bent)
            for i in range(12):
                link[a, i] = rest.links[0, at, i] + cosine * rest.links[1, at, i] + sine * rest.links[2, at, i]
        p = 1 + 3 * f
        _move(frames[0], link[1], spread[f])
        _move(spread[f], link[0], frames[p])
        if f == 0:
            twist = THUMB_TWIST_PER_FLEX * angles[0]
            cosine, sine = math.cos(twist), math.sin(twist)
            for i in range(3):
                x, z = frames[p, i, 0], frames[p, i, 2]
                frames[p, i, 0], frames[p, i, 2] = cosine * x - sine * z, sine * x + cosine * z
        _move(frames[p], link[2], frames[p + 1])
        _move(frames[p + 1], link[3], frames[p + 2])
        for i in range(3):
            last = frames[p + 2, i]
            joints[4 + 4 * f, i] = last[3]
            for j in range(3):
                joints[1 + 4 * f + j, i] = frames[p + j, i, 3]
                joints[4 + 4 * f, i] += last[j] * rest.tips_m[f, j, 0]


@compiled()
def pose_skin(m: Model, rest: Rest, frames: Array, at: Array, skin: Array, normals: Array) -> None:
    """`Chain.skin` into skin (3, V) float32, and into normals (3, V), if there is room, those of `Refit.meet`."""
    for i in range(3):
        skin[i] = at[i]
    normals[:] = 0
    for p, first, end, entry in m.runs:
        last = entry + end - first
        x, y, z, w = (
            rest.skin[0, entry:last],
            rest.skin[1, entry:last],
            rest.skin[2, entry:last],
            rest.skin[3, entry:last],
        )
        u, v, t = m.normals[0, entry:last], m.normals[1, entry:last], m.normals[2, entry:last]
        scale = np.float32(rest.scale[p])
        for i in range(3):
            a, b, c = np.float32(frames[p, i, 0]), np.float32(frames[p, i, 1]), np.float32(frames[p, i, 2])
            if normals.shape[1]:
                out = normals[i, first:end]
                for k in range(len(out)):
                    out[k] += a * u[k] + b * v[k] + c * t[k]
            a, b, c, d = a * scale, b * scale, c * scale, np.float32(frames[p, i, 3])
            out = skin[i, first:end]
            for k in range(len(out)):
                out[k] += a * x[k] + b * y[k] + c * z[k] + d * w[k]


@compiled(types.Tuple((_two, _floats))(MODEL, REST, _matrix, _vector))
def pose(m: Model, rest: Rest, wrist: Array, angles: Array) -> tuple[Array, Array]:
    """`Refit.pose`: joints (21, 3) and vertices (V, 3) float32."""
    frames, spread, joints = np.empty((16, 3, 4)), np.empty((5, 3, 4)), np.empty((21, 3))
    pose_chain(m, rest, wrist[:3, :3].copy(), angles, frames, spread, joints)
    skin, vertices = np.empty((3, len(m.own)), np.float32), np.empty((len(m.own), 3), np.float32)
    pose_skin(m, rest, frames, wrist[:3, 3].copy(), skin, np.empty((3, 0), np.float32))
    for k in range(len(vertices)):
        for i in range(3):
            vertices[m.order[k], i] = skin[i, k]
    return joints + wrist[:3, 3], vertices
