"""The pinhole camera with Brown-Conrady distortion.

Camera frame: x right, y down, z forward, metres. Pixel centres lie at integers, as in OpenCV
and librealsense, so the image spans [-0.5, width - 0.5].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .arrays import Array


@dataclass(frozen=True, slots=True)
class Intrinsics:
    """Pinhole intrinsics: size and focal lengths in px, distortion (k1, k2, p1, p2, k3)."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            raise ValueError(f"intrinsics: size {self.width}x{self.height} px is not positive")
        if not (self.fx > 0 and self.fy > 0):
            raise ValueError(f"intrinsics: focal length fx={self.fx}, fy={self.fy} px is not positive")
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if len(self.distortion) != 5 or not np.all(np.isfinite(numbers)):
            raise ValueError("intrinsics: fx, fy, cx, cy and the 5 distortion coefficients must be finite")

    @property
    def is_distorted(self) -> bool:
        return any(self.distortion)

    def project(self, points_m: Array) -> Array:
        """Camera-frame points (..., 3) m to pixels (..., 2); points need z > 0."""
        xy = points_m[..., :2] / points_m[..., 2:3]
        if self.is_distorted:
            xy = distort(xy, self.distortion)
        return xy * (self.fx, self.fy) + (self.cx, self.cy)

    def rays(self, pixels: Array) -> Array:
        """Pixels (..., 2) to undistorted rays (..., 3) with z = 1; times depth gives metres."""
        xy = (np.asarray(pixels, np.float64) - (self.cx, self.cy)) / (self.fx, self.fy)
        if self.is_distorted:
            xy = undistort(xy, self.distortion)
        return np.concatenate([xy, np.ones_like(xy[..., :1])], -1)

    def deproject(self, pixels: Array, depth_m: Array) -> Array:
        """Pixels (..., 2) with depth z (...) m to camera-frame points (..., 3) m."""
        return self.rays(pixels) * np.asarray(depth_m)[..., None]


def distort(xy: Array, coefficients: tuple[float, ...]) -> Array:
    """Brown-Conrady (OpenCV's 5-parameter model) on normalised coordinates (..., 2)."""
    k1, k2, p1, p2, k3 = coefficients
    x, y = xy[..., 0], xy[..., 1]
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ],
        -1,
    )


@lru_cache(16)
def fold_slope(coefficients: tuple[float, ...]) -> float:
    """How far off the axis, as a slope, rays may be: farther out the radial polynomial of `distort` leads back into the
    image. inf if it never does."""
    k1, k2, _, _, k3 = coefficients
    turns = np.roots([7 * k3, 5 * k2, 3 * k1, 1.0])  # of r + k1 r^3 + k2 r^5 + k3 r^7, in r^2
    ahead = [r2.real for r2 in turns if abs(r2.imag) < 1e-9 and r2.real > 0]
    return float(np.sqrt(min(ahead))) if ahead else float("inf")


def undistort(xy: Array, coefficients: tuple[float, ...], iterations: int = 20) -> Array:
    """Inverse of `distort` by fixed-point iteration; (..., 2) to (..., 2).

    It runs away where no ray within `fold_slope` leads: what it gives there is beyond that slope, or not finite.
    """
    undistorted = np.array(xy, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(iterations):
            undistorted += xy - distort(undistorted, coefficients)
    return undistorted
