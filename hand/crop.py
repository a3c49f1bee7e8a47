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
    slope = half / distance
    grid = ((np.arange(2 * size) + 0.5) / size - 1).astype(np.float32) * np.float32(slope)  # sub-pixel centres
    right, down, forward = rotation.T.astype(np.float32)
    across = (-grid if mirrored else grid)[:, None] * right + forward  # (2S, 3)
    # Ray of sub-pixel (row, column) in the camera frame, axis by axis: (2S, 2S) each.
    x, y, z = ((grid * down[i])[:, None] + across[:, i] for i in range(3))
    camera = frame.intrinsics
    if camera.is_distorted:
        pixel = camera.project(np.stack([x, y, z], -1))
        px, py = pixel[..., 0], pixel[..., 1]
    else:
        per_z = 1 / z
        px, py = x * per_z * np.float32(camera.fx) + camera.cx, y * per_z * np.float32(camera.fy) + camera.cy
    column, row = np.rint(px).astype(np.int32), np.rint(py).astype(np.int32)
    inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height) & (z > 0.1)
    flat = np.where(inside, row * camera.width + column, 0)
    counts = np.where(inside, frame.depth.ravel()[flat], 0)
    # Depth along the sensor's axis over the ray's z is depth along the crop's axis: the ray has length 1 there.
    d = (counts * np.float32(frame.depth_unit_m) / z - np.float32(distance)) * np.float32(1 / half)
    d[counts == 0] = np.inf
    return HandCrop(reduce_2x2(d), rotation, distance, roi.cube_m, mirrored)


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
