"""A z-buffer in plain numpy: triangles to depth as a camera sees them.

The slow twin of `trainer/synth/render.py`, which draws in the crop's geometry; a test compares the two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import Array
from .camera import Intrinsics

NEAREST_M = 0.02  # triangles that come closer to the camera's plane are not drawn
TOLERANCE = np.float32(1e-6)  # of a barycentric weight: no pixel falls between two triangles that share an edge


class Rendering(NamedTuple):
    """depth_m (H, W) float32, 0 = nothing; face (H, W) int32, the face seen or -1."""

    depth_m: NDArray[np.float32]
    face: NDArray[np.int32]


def render_depth(vertices_m: Array, faces: Array, intrinsics: Intrinsics) -> NDArray[np.float32]:
    """Depth along z (H, W) m of a mesh in the camera frame, vertices (N, 3) m and faces (F, 3); 0 = nothing."""
    return render(vertices_m, faces, intrinsics).depth_m


def render(vertices_m: Array, faces: Array, intrinsics: Intrinsics) -> Rendering:
    """Draw triangles, nearest wins, perspective-correct, both sides.

    A pixel is covered if its centre lies in the triangle. Lens distortion moves the corners, edges stay straight.
    """
    height, width = intrinsics.height, intrinsics.width
    inverse_depth = np.zeros(height * width, np.float32)
    face_of = np.full(height * width, -1, np.int32)
    pixel, inverse, face = _fragments(*_setup(vertices_m, faces, intrinsics), width)
    np.maximum.at(inverse_depth, pixel, inverse)
    nearest = inverse == inverse_depth[pixel]
    face_of[pixel[nearest]] = face[nearest]
    depth = np.divide(1, inverse_depth, out=np.zeros_like(inverse_depth), where=inverse_depth > 0)
    return Rendering(depth.reshape(height, width), face_of.reshape(height, width))


def _setup(vertices_m: Array, faces: Array, intrinsics: Intrinsics) -> tuple[Array, Array, Array]:
    """Of the triangles that may be seen: index (T,), box (T, 4) of left, top, columns, rows in px, plane (T, 3, 3).

    The planes give two barycentric weights and 1/z in the image, where all three are linear: value at the box's
    top left pixel, change to the right, change downwards.
    """
    z = vertices_m[:, 2]
    px = intrinsics.project(np.where(z[:, None] < NEAREST_M, (0.0, 0.0, 1.0), vertices_m))  # (N, 2)
    corner = px[faces]  # (F, 3, 2)
    limit = (intrinsics.width - 1, intrinsics.height - 1)
    first = np.maximum(np.ceil(corner.min(1)), 0)  # (F, 2)
    extent = np.minimum(np.floor(corner.max(1)), limit) - first + 1
    edge1, edge2 = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    area = edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0]  # (F,) px^2, twice the triangle's
    seen = (extent > 0).all(1) & (np.abs(area) > 1e-9) & (z[faces] >= NEAREST_M).all(1)
    index = np.flatnonzero(seen)  # (T,)
    corner, first, extent = corner[index], first[index], extent[index]
    edge1, edge2, area = edge1[index], edge2[index], area[index, None]
    gradient1 = np.stack([edge2[:, 1], -edge2[:, 0]], 1) / area  # (T, 2) of the second corner's weight
    gradient2 = np.stack([-edge1[:, 1], edge1[:, 0]], 1) / area
    from_corner = first - corner[:, 0]
    weight1, weight2 = ((from_corner * g).sum(1, keepdims=True) for g in (gradient1, gradient2))
    inverse = 1 / z[faces[index]]  # (T, 3)
    rise1, rise2 = inverse[:, 1:2] - inverse[:, :1], inverse[:, 2:] - inverse[:, :1]
    start = np.concatenate([weight1, weight2, inverse[:, :1] + weight1 * rise1 + weight2 * rise2], 1)  # (T, 3)
    slope = np.stack([gradient1, gradient2, gradient1 * rise1 + gradient2 * rise2], 1)  # (T, 3, 2)
    plane = np.concatenate([start[..., None], slope], 2)  # (T, 3, 3)
    return index, np.concatenate([first, extent], 1).astype(np.int32), plane.astype(np.float32)


def _fragments(index: Array, box: Array, plane: Array, width: int) -> tuple[Array, Array, Array]:
    """Every pixel that a triangle covers: flat pixel, 1/z and face, (P,) each."""
    columns, rows = box[:, 2], box[:, 3]
    row_of = np.repeat(np.arange(len(index), dtype=np.int32), rows)  # (R,) the triangle of each row of a box
    y = _count_up(rows)
    at_row = plane[row_of, :, 0] + plane[row_of, :, 2] * y[:, None].astype(np.float32)  # (R, 3)
    row_pixel = (box[row_of, 1] + y) * np.int32(width) + box[row_of, 0]
    in_row = columns[row_of]
    pixel_of = np.repeat(np.arange(len(row_of), dtype=np.int32), in_row)  # (Q,) the row of each pixel of a box
    x = _count_up(in_row)
    step = plane[row_of, :, 1]  # (R, 3)
    x_float = x.astype(np.float32)
    weight1 = at_row[:, 0][pixel_of] + step[:, 0][pixel_of] * x_float
    weight2 = at_row[:, 1][pixel_of] + step[:, 1][pixel_of] * x_float
    covered = (weight1 >= -TOLERANCE) & (weight2 >= -TOLERANCE) & (weight1 + weight2 <= 1 + TOLERANCE)
    inside = np.flatnonzero(covered)  # (P,)
    row = pixel_of[inside]
    return (
        (row_pixel[row] + x[inside]).astype(np.intp),
        at_row[row, 2] + step[row, 2] * x_float[inside],
        index[row_of[row]],
    )


def _count_up(lengths: Array) -> NDArray[np.int32]:
    """0 .. n - 1 for each n of lengths, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int32) - np.repeat((ends - lengths).astype(np.int32), lengths)
