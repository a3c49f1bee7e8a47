"""The pinhole camera: pixels and points are each other's inverse, and the distortion is OpenCV's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from edge_hand.hand.arrays import Array
from edge_hand.hand.camera import Intrinsics, distort, undistort
from hypothesis import given, settings
from hypothesis import strategies as st

SOME = settings(max_examples=30, deadline=None)
PINHOLE = Intrinsics(640, 480, 600.0, 610.0, 322.5, 238.0)
# The size of a structured-light sensor's coefficients, and of a wide-angle lens's.
DISTORTIONS = [(0.14, 0.06, 0.003, 0.002, 0.03), (-0.18, 0.03, -0.001, 0.002, -0.005)]
LENSES = [PINHOLE, *(Intrinsics(640, 480, 600.0, 610.0, 322.5, 238.0, k) for k in DISTORTIONS)]
pixels_of_image = st.tuples(st.floats(-0.5, 639.5), st.floats(-0.5, 479.5)).map(np.array)


def opencv_pixel(camera: Intrinsics, x: float, y: float, z: float) -> tuple[float, float]:
    """The formula of OpenCV's calib3d page, number by number."""
    k1, k2, p1, p2, k3 = camera.distortion
    x, y = x / z, y / z
    r = math.hypot(x, y)
    radial = 1 + k1 * r**2 + k2 * r**4 + k3 * r**6
    x2 = x * radial + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2)
    y2 = y * radial + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y
    return camera.fx * x2 + camera.cx, camera.fy * y2 + camera.cy


@pytest.mark.parametrize("camera", LENSES)
@SOME
@given(x=st.floats(-0.4, 0.4), y=st.floats(-0.3, 0.3), z=st.floats(0.3, 2))
def test_project_is_the_formula_opencv_publishes(camera: Intrinsics, x: float, y: float, z: float) -> None:
    np.testing.assert_allclose(camera.project(np.array([x, y, z])), opencv_pixel(camera, x, y, z), atol=1e-9)


@pytest.mark.parametrize("camera", LENSES)
@SOME
@given(pixel=pixels_of_image, depth_m=st.floats(0.1, 5))
def test_a_pixel_comes_back_from_its_point(camera: Intrinsics, pixel: Array, depth_m: float) -> None:
    point = camera.deproject(pixel, np.float64(depth_m))
    assert point[2] == pytest.approx(depth_m)
    np.testing.assert_allclose(camera.project(point), pixel, atol=1e-3)


@pytest.mark.parametrize("camera", LENSES)
def test_a_point_comes_back_from_its_pixel_and_depth(camera: Intrinsics) -> None:
    points = np.random.default_rng(0).uniform([-0.2, -0.15, 0.4], [0.2, 0.15, 1.5], (50, 3))
    back = camera.deproject(camera.project(points), points[:, 2])
    np.testing.assert_allclose(back, points, atol=1e-6)


def test_the_optical_axis_meets_the_principal_point_and_a_ray_has_z_one() -> None:
    np.testing.assert_array_equal(PINHOLE.project(np.array([0.0, 0.0, 0.7])), [322.5, 238.0])
    np.testing.assert_array_equal(PINHOLE.rays(np.array([322.5 + 600, 238.0 - 610])), [1, -1, 1])


@pytest.mark.parametrize("coefficients", DISTORTIONS)
def test_undistort_undoes_distort_over_the_whole_image(coefficients: tuple[float, ...]) -> None:
    xy = np.stack(np.meshgrid(np.linspace(-0.5, 0.5, 21), np.linspace(-0.4, 0.4, 17)), -1)  # (17, 21, 2)
    assert np.abs(distort(xy, coefficients) - xy).max() > 0.01
    np.testing.assert_allclose(undistort(distort(xy, coefficients), coefficients), xy, atol=1e-5)


@pytest.mark.parametrize("camera", LENSES)
def test_an_image_of_pixels_is_its_single_pixels(camera: Intrinsics) -> None:
    pixels = np.random.default_rng(1).uniform(0, 400, (3, 4, 2))
    rays = camera.rays(pixels)
    assert rays.shape == (3, 4, 3)
    assert camera.project(rays).shape == (3, 4, 2)
    np.testing.assert_allclose(rays[2, 1], camera.rays(pixels[2, 1]), atol=1e-15)


def test_a_camera_without_coefficients_is_not_distorted() -> None:
    assert not PINHOLE.is_distorted
    assert all(camera.is_distorted for camera in LENSES[1:])


BAD = {
    "size 0x480 px is not positive": (0, 480, 600.0, 600.0, 320.0, 240.0),
    "size 640x-1 px is not positive": (640, -1, 600.0, 600.0, 320.0, 240.0),
    "focal length fx=0.0, fy=600.0 px is not positive": (640, 480, 0.0, 600.0, 320.0, 240.0),
    "focal length fx=600.0, fy=-1.0 px is not positive": (640, 480, 600.0, -1.0, 320.0, 240.0),
    "focal length fx=nan, fy=600.0 px is not positive": (640, 480, math.nan, 600.0, 320.0, 240.0),
    "fx, fy, cx, cy and the 5 distortion coefficients must be finite": (640, 480, 600.0, math.inf, 320.0, 240.0),
}


@pytest.mark.parametrize("text", BAD)
def test_bad_intrinsics_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError) as error:
        Intrinsics(*BAD[text])  # type: ignore[arg-type]
    assert str(error.value) == f"intrinsics: {text}"


@pytest.mark.parametrize("distortion", [(0.1, 0.0, 0.0, 0.0), (0.0,) * 8, (0.0, 0.0, math.nan, 0.0, 0.0)])
def test_any_but_five_finite_coefficients_are_refused(distortion: Any) -> None:
    with pytest.raises(ValueError) as error:
        Intrinsics(640, 480, 600.0, 600.0, 320.0, 240.0, distortion)
    assert str(error.value) == "intrinsics: fx, fy, cx, cy and the 5 distortion coefficients must be finite"
