"""Compiled z-buffer of whole pictures: triangles to depth and labels as a pinhole camera sees them, one by one.

The slow twin in plain numpy is `hand/render.py`; a test compares the two.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from ...hand.arrays import Array

NEAR2 = np.float32(0.03**2)
NEAREST_M = 0.02  # triangles are cut off where they come closer to the camera's plane


@njit(cache=True, fastmath=True, nogil=True)  # type: ignore[untyped-decorator]
def draw(
    vertices: Array, faces: Array, fx: float, fy: float, cx: float, cy: float, mark: int, inverse_depth: Array,
    label: Array,
) -> int:  # fmt: skip
    """Draw triangles over what is there, nearest wins, perspective-correct, both sides; how many pixels changed hands.

    vertices (N, 3) float32 m in the camera frame, faces (F, 3) int32. inverse_depth (H, W) float32 1/m, 0 where nothing
    is; label (H, W) uint8 becomes mark where the triangles are nearest.
    """
    height, width = inverse_depth.shape
    near = np.float32(NEAREST_M)
    drawn = 0
    poly = np.empty((4, 3), np.float32)
    for f in range(len(faces)):
        n = 0
        for k in range(3):  # the part before the camera: a triangle, or four corners
            a, b = faces[f, k], faces[f, (k + 1) % 3]
            za, zb = vertices[a, 2], vertices[b, 2]
            if za >= near:
                poly[n, 0], poly[n, 1], poly[n, 2] = vertices[a, 0], vertices[a, 1], za
                n += 1
            if (za >= near) != (zb >= near):
                t = (near - za) / (zb - za)
                poly[n, 0] = vertices[a, 0] + t * (vertices[b, 0] - vertices[a, 0])
                poly[n, 1] = vertices[a, 1] + t * (vertices[b, 1] - vertices[a, 1])
                poly[n, 2] = near
                n += 1
        if n < 3:
            continue
        for k in range(n):
            iz = np.float32(1) / poly[k, 2]
            poly[k, 0] = poly[k, 0] * iz * fx + cx
            poly[k, 1] = poly[k, 1] * iz * fy + cy
            poly[k, 2] = iz
        for k in range(1, n - 1):
            drawn += _triangle(poly, k, k + 1, width, height, mark, inverse_depth, label)
    return drawn


@njit(cache=True, fastmath=True, nogil=True)  # type: ignore[untyped-decorator]
def _triangle(
    poly: Array, j: int, k: int, width: int, height: int, mark: int, inverse_depth: Array, label: Array
) -> int:
    """Corners 0, j and k of poly (4, 3): x, y px and 1/z."""
    x0, y0, i0 = poly[0, 0], poly[0, 1], poly[0, 2]
    x1, y1, i1 = poly[j, 0], poly[j, 1], poly[j, 2]
    x2, y2, i2 = poly[k, 0], poly[k, 1], poly[k, 2]
    left, right = max(min(x0, x1, x2), np.float32(0)), min(max(x0, x1, x2), np.float32(width - 1))
    top, bottom = max(min(y0, y1, y2), np.float32(0)), min(max(y0, y1, y2), np.float32(height - 1))
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    if left > right or top > bottom or abs(area) < 1e-9:
        return 0
    ia = np.float32(1) / area
    xa, xb = int(math.ceil(left)), int(math.floor(right))
    dw1, dw2 = (y2 - y0) * ia, -(y1 - y0) * ia  # the weights of corners 1 and 2 a pixel to the right
    least = np.float32(-1e-5)
    drawn = 0
    for y in range(int(math.ceil(top)), int(math.floor(bottom)) + 1):
        w1 = ((xa - x0) * (y2 - y0) - (x2 - x0) * (y - y0)) * ia
        w2 = ((x1 - x0) * (y - y0) - (xa - x0) * (y1 - y0)) * ia
        for x in range(xa, xb + 1):
            if w1 >= least and w2 >= least and w1 + w2 <= 1 - least:
                iz = i0 + w1 * (i1 - i0) + w2 * (i2 - i0)
                if iz > inverse_depth[y, x]:
                    inverse_depth[y, x] = iz
                    label[y, x] = mark
                    drawn += 1
            w1 += dw1
            w2 += dw2
    return drawn


@njit(cache=True, fastmath=True, nogil=True)  # type: ignore[untyped-decorator]
def skin_four(rest: Array, bone: Array, weight: Array, parts: Array) -> Any:
    """Linear blend skinning by four bones a vertex: rest (N, 3), bone and weight (N, 4), parts (B, 3, 4) to (N, 3)."""
    out = np.zeros((len(rest), 3), np.float32)
    for i in range(len(rest)):
        x, y, z = rest[i, 0], rest[i, 1], rest[i, 2]
        for k in range(4):
            w = weight[i, k]
            if w > 0:
                p = parts[bone[i, k]]
                for c in range(3):
                    out[i, c] += w * (p[c, 0] * x + p[c, 1] * y + p[c, 2] * z + p[c, 3])
    return out


@njit(cache=True, fastmath=True, nogil=True)  # type: ignore[untyped-decorator]
def outward_normals(vertices: Array, faces: Array) -> Any:
    """Unit normals (N, 3) of a mesh, the mean of the faces around each vertex weighted by area."""
    normal = np.zeros((len(vertices), 3), np.float32)
    for f in range(len(faces)):
        a, b, c = vertices[faces[f, 0]], vertices[faces[f, 1]], vertices[faces[f, 2]]
        ux, uy, uz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
        vx, vy, vz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for k in range(3):
            i = faces[f, k]
            normal[i, 0] += nx
            normal[i, 1] += ny
            normal[i, 2] += nz
    for i in range(len(normal)):
        n = math.sqrt(normal[i, 0] ** 2 + normal[i, 1] ** 2 + normal[i, 2] ** 2) + 1e-20
        normal[i] /= np.float32(n)
    return normal


@njit(cache=True, fastmath=True, nogil=True)  # type: ignore[untyped-decorator]
def deepest(points: Array, surface: Array, normals: Array) -> Any:
    """Signed distance (m, negative inside) of the point that lies deepest in a closed surface, and its way out (3,).

    points (P, 3) m, surface (S, 3) points with outward normals (S, 3). Taken at the nearest surface point each.
    """
    worst, way = np.float32(1e9), np.zeros(3, np.float32)
    for i in range(len(points)):
        best, at = np.float32(1e9), 0
        for j in range(len(surface)):
            dx, dy, dz = points[i, 0] - surface[j, 0], points[i, 1] - surface[j, 1], points[i, 2] - surface[j, 2]
            d = dx * dx + dy * dy + dz * dz
            if d < best:
                best, at = d, j
        inside = np.float32(0)
        for c in range(3):
            inside += (points[i, c] - surface[at, c]) * normals[at, c]
        # Near the surface, or in it, the distance to the plane there: points of the surface are far between.
        # Far from it, what is in it lies straight behind: beyond an open end of it lies outside.
        signed = math.sqrt(best) if best > NEAR2 and inside > -0.7 * math.sqrt(best) else inside
        if signed < worst:
            worst = signed
            way[:] = normals[at]
    return worst, way
