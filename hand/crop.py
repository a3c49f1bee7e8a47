"""The one crop: a metric cube around a hand, seen by a virtual camera that looks straight at its centre.

The trainer renders in this geometry and the daemon cuts in it, so the network never learns where in the image a
hand was. Crop coordinates (u, v, d) are in half cubes, each in [-1, 1] inside the cube:

    z = distance_m + d * cube_m / 2,   x = u * (cube_m / 2) * z / distance_m,   y likewise from v.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .frames import DepthFrame, HandCrop, HandRoi

Array = NDArray[Any]
CROP_SIZE = 64  # Dual Grid Net, section 3.6
BACKGROUND = np.float32(1.0)
MIRROR = np.array([-1.0, 1.0, 1.0])


def crop_depth(frame: DepthFrame, roi: HandRoi, size: int = CROP_SIZE, mirrored: bool = False) -> HandCrop:
    """Cut a metric cube around the hand and resample it to a (size, size) image in [-1, 1].

    Each output pixel is the mean of those of its 2x2 nearest sensor readings that lie inside the cube; depth is
    measured along the crop camera's axis from the cube's centre. No reading and background are +1.
    """
    centre = np.asarray(roi.centre_m, np.float64)
    distance = float(np.linalg.norm(centre))
    rotation = look_at(centre)
    half = roi.cube_m / 2
    camera = frame.intrinsics
    grid = ((np.arange(2 * size) + 0.5) / size - 1) * (half / distance)  # slopes of the sub-pixels' centres
    across = -grid if mirrored else grid
    if camera.is_distorted:
        z = _plane(rotation[2], across, grid)
        pixel = camera.project(np.stack([_plane(rotation[0], across, grid), _plane(rotation[1], across, grid), z], -1))
        per_z, (px, py) = 1 / z, np.moveaxis(pixel.astype(np.float32), -1, 0)
    else:  # the pixel of a ray is a homography of its slopes
        per_z = 1 / _plane(rotation[2], across, grid)
        px = _plane(camera.fx * rotation[0] + camera.cx * rotation[2], across, grid) * per_z
        py = _plane(camera.fy * rotation[1] + camera.cy * rotation[2], across, grid) * per_z
    column, row = np.rint(px).astype(np.intp), np.rint(py).astype(np.intp)
    at = row * camera.width + column
    if px.min() < 0 or py.min() < 0 or px.max() > camera.width - 1 or py.max() > camera.height - 1 or per_z.min() < 0:
        inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height) & (per_z > 0)
        counts = np.where(inside, frame.depth.ravel()[np.where(inside, at, 0)], 0)
    else:
        counts = frame.depth.ravel()[at]
    # Depth along the sensor's axis over the ray's z is depth along the crop's axis: the ray has length 1 there.
    # No reading comes out at -distance / half, in front of the cube.
    d = counts * per_z * np.float32(frame.depth_unit_m / half) - np.float32(distance / half)
    return HandCrop(reduce_2x2(d), rotation, distance, roi.cube_m, mirrored)


def _plane(row: Array, across: Array, down: Array) -> NDArray[np.float32]:
    """row . (u, v, 1) for all slopes u along columns and v along rows: (2S, 2S)."""
    return (row[1] * down).astype(np.float32)[:, None] + (row[0] * across + row[2]).astype(np.float32)


def reduce_2x2(d: Array) -> NDArray[np.float32]:
    """Mean of the 2x2 sub-pixels (2S, 2S) that lie inside the cube (|d| < 1); +1 where none does."""
    inside = np.abs(d) < 1
    value = np.where(inside, d, 0)
    total = value[0::2, 0::2] + value[0::2, 1::2] + value[1::2, 0::2] + value[1::2, 1::2]
    one = inside.view(np.uint8)
    n = one[0::2, 0::2] + one[0::2, 1::2] + one[1::2, 0::2] + one[1::2, 1::2]
    return np.where(n > 0, total / np.maximum(n, 1), BACKGROUND).astype(np.float32)


def look_at(centre: Array) -> Array:
    """R_camera_crop (3, 3): the smallest rotation that turns +z to the centre (3,)."""
    forward = centre / np.linalg.norm(centre)
    x, y, z = forward
    if z < -0.999:
        raise ValueError("crop: the centre lies behind the camera")
    k = 1 / (1 + z)
    return np.array([[1 - k * x * x, -k * x * y, x], [-k * x * y, 1 - k * y * y, y], [-x, -y, z]])


def points_from_uvd(uvd: Array, distance_m: Array | float, cube_m: Array | float) -> Array:
    """Crop coordinates (..., 3) to metres in the crop camera's frame (mirrored if the crop is)."""
    half = np.asarray(cube_m) / 2
    z = distance_m + uvd[..., 2] * half
    scale = half * z / distance_m
    return np.stack([uvd[..., 0] * scale, uvd[..., 1] * scale, z], -1)


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
