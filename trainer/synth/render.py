"""Compiled z-buffer: triangles to depth, and the hand part's layout coordinates, in the crop's geometry.

The slow twin in plain numpy is `hand/render.py`; a test compares the two.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ...hand.arrays import Array


@njit(cache=True, fastmath=True, nogil=True)  # type: ignore[untyped-decorator]
def rasterise(
    vertices: Array, faces: Array, slope: float, size: int, inverse_depth: Array, face_of: Array, weight_of: Array
) -> None:
    """Draw triangles seen by a crop camera, nearest wins, perspective-correct, both sides.

    vertices (N, 3) float32 m in the crop camera's frame; slope = cube / 2 / distance; size in px. Fills inverse_depth
    (size, size) 1/m with 0 where nothing is, face_of the face's index or -1, weight_of (size, size, 2) the barycentric
    weights of its first two corners.
    """
    inverse_depth[:] = 0
    face_of[:] = -1
    n = len(vertices)
    px = np.empty((n, 3), np.float32)
    scale = np.float32(0.5 * size / slope)
    shift = np.float32(0.5 * size - 0.5)
    for i in range(n):
        z = vertices[i, 2]
        if z < 0.02:
            px[i, 2] = -1
            continue
        iz = np.float32(1) / z
        px[i, 0] = vertices[i, 0] * iz * scale + shift
        px[i, 1] = vertices[i, 1] * iz * scale + shift
        px[i, 2] = iz
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        if px[a, 2] < 0 or px[b, 2] < 0 or px[c, 2] < 0:
            continue
        x0, y0, x1, y1, x2, y2 = px[a, 0], px[a, 1], px[b, 0], px[b, 1], px[c, 0], px[c, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < 1e-9:
            continue
        xa = max(0, int(math.ceil(min(x0, x1, x2))))
        xb = min(size - 1, int(math.floor(max(x0, x1, x2))))
        ya = max(0, int(math.ceil(min(y0, y1, y2))))
        yb = min(size - 1, int(math.floor(max(y0, y1, y2))))
        if xa > xb or ya > yb:
            continue
        ia = np.float32(1) / area
        for y in range(ya, yb + 1):
            for x in range(xa, xb + 1):
                w0 = ((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) * ia
                w1 = ((x2 - x) * (y0 - y) - (x0 - x) * (y2 - y)) * ia
                w2 = 1 - w0 - w1
                if w0 < 0 or w1 < 0 or w2 < 0:
                    continue
                iz = w0 * px[a, 2] + w1 * px[b, 2] + w2 * px[c, 2]
                if iz > inverse_depth[y, x]:
                    inverse_depth[y, x] = iz
                    face_of[y, x] = f
                    z = np.float32(1) / iz
                    weight_of[y, x, 0] = w0 * px[a, 2] * z
                    weight_of[y, x, 1] = w1 * px[b, 2] * z


@njit(cache=True, fastmath=True, nogil=True)  # type: ignore[untyped-decorator]
def draw_ellipsoid(
    centre: Array, inverse_axes: Array, slope: float, size: int, inverse_depth: Array, face_of: Array
) -> None:
    """Draw the near side of an ellipsoid: |inverse_axes @ (p - centre)| = 1; marks its pixels -2 in face_of."""
    c = np.zeros(3)
    for i in range(3):  # a matrix product would make numba ask for SciPy
        for j in range(3):
            c[i] += inverse_axes[i, j] * centre[j]
    cc = c[0] * c[0] + c[1] * c[1] + c[2] * c[2] - 1
    for y in range(size):
        for x in range(size):
            u = (2 * (x + 0.5) / size - 1) * slope
            v = (2 * (y + 0.5) / size - 1) * slope
            d0 = inverse_axes[0, 0] * u + inverse_axes[0, 1] * v + inverse_axes[0, 2]
            d1 = inverse_axes[1, 0] * u + inverse_axes[1, 1] * v + inverse_axes[1, 2]
            d2 = inverse_axes[2, 0] * u + inverse_axes[2, 1] * v + inverse_axes[2, 2]
            a = d0 * d0 + d1 * d1 + d2 * d2
            b = d0 * c[0] + d1 * c[1] + d2 * c[2]
            disc = b * b - a * cc
            if disc <= 0:
                continue
            z = (b - math.sqrt(disc)) / a
            if z > 0.02 and 1 / z > inverse_depth[y, x]:
                inverse_depth[y, x] = 1 / z
                face_of[y, x] = -2


@njit(cache=True, fastmath=True, nogil=True)  # type: ignore[untyped-decorator]
def draw_plane(normal: Array, offset: float, slope: float, size: int, inverse_depth: Array, face_of: Array) -> None:
    """Draw the plane normal . p = offset (m) behind what is there; marks its pixels -2 in face_of."""
    for y in range(size):
        for x in range(size):
            u = (2 * (x + 0.5) / size - 1) * slope
            v = (2 * (y + 0.5) / size - 1) * slope
            iz = (normal[0] * u + normal[1] * v + normal[2]) / offset
            if iz > inverse_depth[y, x]:
                inverse_depth[y, x] = iz
                face_of[y, x] = -2
