"""The one crop: a metric cube around a hand, seen by a virtual camera that looks straight at its centre.

The trainer renders in this geometry and the daemon cuts in it, so the network never learns where in the image a
hand was. Crop coordinates (u, v, d) are in half cubes, each in [-1, 1] inside the cube:

    z = distance_m + d * cube_m / 2,   x = u * (cube_m / 2) * z / distance_m,   y likewise from v.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .arrays import Array
from .camera import Intrinsics, fold_slope
from .frames import DepthFrame, HandCrop, HandRoi

CROP_SIZE = 64  # Dual Grid Net, section 3.6
BACKGROUND = np.float32(1.0)
MIRROR = np.array([-1.0, 1.0, 1.0])
_MIRRORED = np.outer([*MIRROR, 1.0], [*MIRROR, 1.0])


def crop_depth(frame: DepthFrame, roi: HandRoi, size: int = CROP_SIZE, mirrored: bool = False) -> HandCrop:
    """Cut a metric cube around the hand and resample it to a (size, size) image in [-1, 1].

    Each output pixel is the mean of those of its 2x2 nearest sensor readings that lie inside the cube; depth is
    measured along the crop camera's axis from the cube's centre. No reading and background are +1.
    """
    centre = np.asarray(roi.centre_m, np.float64)
    distance = math.hypot(*centre.tolist())
    rotation = look_at(centre)
    half = roi.cube_m / 2
    camera = frame.intrinsics
    grid = sub_pixels(size) * (half / distance)  # slopes of the sub-pixels' centres
    across = -grid if mirrored else grid
    if camera.is_distorted:
        z = _plane(rotation[2], across, grid)
        xy = np.stack([_plane(rotation[0], across, grid), _plane(rotation[1], across, grid)], -1)
        pixel = camera.project(np.concatenate([xy, z[..., None]], -1))
        per_z, ends = 1 / z, slice(None)
        column, row = pixel.astype(np.float32).transpose(2, 0, 1).copy()
        column[np.hypot(xy[..., 0], xy[..., 1]) > fold_slope(camera.distortion) * z] = -1  # what no lens shows there
    else:  # the pixel of a ray is a homography of its slopes, so that the corners reach farthest
        per_z = 1 / _plane(rotation[2], across, grid)
        column = _plane(camera.fx * rotation[0] + camera.cx * rotation[2], across, grid)
        row = _plane(camera.fy * rotation[1] + camera.cy * rotation[2], across, grid)
        column *= per_z
        row *= per_z
        ends = slice(None, None, 2 * size - 1)
    x, y, ahead = column[ends, ends], row[ends, ends], per_z[ends, ends]
    whole = x.min() >= 0 and y.min() >= 0 and x.max() <= camera.width - 1 and y.max() <= camera.height - 1
    np.rint(column, out=column)
    np.rint(row, out=row)
    if not (whole and ahead.min() > 0):
        inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height) & (per_z > 0)
        at = np.where(inside, row * camera.width + column, 0).astype(np.intp)
        counts = np.where(inside, frame.depth.ravel()[at], 0)
    else:
        row *= camera.width  # 32 bits hold the numbers of 16 million pixels
        row += column
        counts = frame.depth.ravel().take(row.astype(np.intp))
    # Depth along the sensor's axis over the ray's z is depth along the crop's axis: the ray has length 1 there.
    # No reading comes out at -distance / half, in front of the cube, but for a cube around the camera.
    d = counts.astype(np.float32)
    d *= per_z
    d *= np.float32(frame.depth_unit_m / half)
    d -= np.float32(distance / half)
    if distance <= half:
        d[counts == 0] = BACKGROUND
    return HandCrop(_mean_of_quarters(d), rotation, distance, roi.cube_m, mirrored)


def square_camera(size: int, distance_m: float, width_m: float) -> Intrinsics:
    """The pinhole whose picture of size x size px spans width_m at a distance."""
    focal, middle = size * distance_m / width_m, (size - 1) / 2
    return Intrinsics(size, size, focal, focal, middle, middle)


def mirror_pose(pose: Array) -> Array:
    """A left hand's pose (4, 4), or rotation (3, 3), as that of the right hand in the mirror, and back."""
    return np.asarray(pose * _MIRRORED[: len(pose), : len(pose)])


@lru_cache(4)
def sub_pixels(size: int) -> Array:
    """(2S,) where the sub-pixels of a crop lie, in half cubes: first those that begin a pixel, then the others."""
    return (np.arange(2 * size).reshape(size, 2).T.ravel() + 0.5) / size - 1


def _plane(row: Array, across: Array, down: Array) -> NDArray[np.float32]:
    """row . (u, v, 1) for all slopes u along columns and v along rows: (2S, 2S)."""
    return (row[1] * down).astype(np.float32)[:, None] + (row[0] * across + row[2]).astype(np.float32)


def reduce_2x2(d: Array) -> NDArray[np.float32]:
    """Mean of the 2x2 sub-pixels (2S, 2S) that lie inside the cube (|d| < 1); +1 where none does."""
    size = len(d) // 2
    quarters = d.reshape(size, 2, size, 2).transpose(1, 0, 3, 2).reshape(2 * size, 2 * size)
    return _mean_of_quarters(quarters.astype(np.float32))


def _mean_of_quarters(d: NDArray[np.float32]) -> NDArray[np.float32]:
    """`reduce_2x2` of a picture (2S, 2S) whose quarters are the four sub-pixels of all pixels."""
    size = len(d) // 2
    inside = np.abs(d) < 1
    value = (d.view(np.int32) & -inside.astype(np.int32)).view(np.float32)  # 0 outside, with no branch
    total = value[:size, :size] + value[:size, size:]
    total += value[size:, :size]
    total += value[size:, size:]
    one = inside.view(np.uint8)
    n = one[:size, :size] + one[:size, size:] + one[size:, :size] + one[size:, size:]
    total /= np.maximum(n, 1)
    total[n == 0] = BACKGROUND
    return total


def look_at(centre: Array) -> Array:
    """R_camera_crop (3, 3): the smallest rotation that turns +z to the centre (3,)."""
    length = math.hypot(*centre.tolist())
    x, y, z = (centre / length).tolist()
    if z < -0.999:
        raise ValueError("crop: the centre lies behind the camera")
    k = 1 / (1 + z)
    return np.array([[1 - k * x * x, -k * x * y, x], [-k * x * y, 1 - k * y * y, y], [-x, -y, z]])


def points_from_uvd(uvd: Array, distance_m: Array | float, cube_m: Array | float) -> Array:
    """Crop coordinates (..., 3) to metres in the crop camera's frame (mirrored if the crop is)."""
    half = cube_m / 2
    z = distance_m + uvd[..., 2] * half
    scale = z * (half / distance_m)
    points = np.empty((3, *z.shape), z.dtype)  # coordinate by coordinate: what follows is faster in long rows
    points[0], points[1], points[2] = uvd[..., 0] * scale, uvd[..., 1] * scale, z
    return points.transpose(*range(1, points.ndim), 0)


def uvd_from_points(points_m: Array, distance_m: Array | float, cube_m: Array | float) -> Array:
    """Inverse of `points_from_uvd`."""
    half = np.asarray(cube_m) / 2
    z = points_m[..., 2]
    scale = distance_m / (half * z)
    return np.stack([points_m[..., 0] * scale, points_m[..., 1] * scale, (z - distance_m) / half], -1)


def camera_from_crop(crop: HandCrop, points_m: Array) -> Array:
    """Points (..., 3) m of the crop's frame to the camera's; undoes the mirroring."""
    if crop.mirrored:
        points_m = points_m * MIRROR
    return points_m @ crop.R_camera_crop.T
