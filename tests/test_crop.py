"""The one crop: geometry against closed forms, and the trainer's picture of a hand against the daemon's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edge_hand.hand import se3
from edge_hand.hand.arrays import Array
from edge_hand.hand.body import hand_with_arm
from edge_hand.hand.camera import Intrinsics, fold_slope
from edge_hand.hand.crop import camera_from_crop, crop_depth, look_at, points_from_uvd, reduce_2x2, uvd_from_points
from edge_hand.hand.frames import DepthFrame, HandCrop, HandRoi
from edge_hand.hand.kinematics import forward_kinematics, skin
from edge_hand.hand.poses import POSES
from edge_hand.hand.template import template
from edge_hand.trainer.synth.render import rasterise
from edge_hand.trainer.synth.samples import PATCH, crop_patch
from hypothesis import given, settings
from hypothesis import strategies as st

SOME = settings(max_examples=30, deadline=None)
UNIT_M = 1e-4
CUBE_M = 0.25
CAMERA = Intrinsics(800, 600, 700.0, 705.0, 401.0, 297.0)
DISTORTED = Intrinsics(800, 600, 700.0, 705.0, 401.0, 297.0, (0.14, 0.06, 0.003, 0.002, 0.03))
CENTRE = np.array([-0.12, 0.07, 0.62])  # well off the axis: 12.6 degrees
seeds = st.integers(0, 2**32 - 1)


def frame_of(depth_m: Array, camera: Intrinsics = CAMERA) -> DepthFrame:
    return DepthFrame("test", 0, 0, np.rint(depth_m / UNIT_M).astype(np.uint16), UNIT_M, camera)


def image_rays(camera: Intrinsics) -> Array:
    """(H, W, 3) with z = 1."""
    return camera.rays(np.stack(np.meshgrid(np.arange(camera.width), np.arange(camera.height)), -1))


def crop_rays(distance: float, size: int = 64) -> Array:
    """Rays of the sub-pixels (2S, 2S, 3) in the crop's frame, z = 1."""
    grid = ((np.arange(2 * size) + 0.5) / size - 1) * CUBE_M / 2 / distance
    x, y = np.meshgrid(grid, grid)
    return np.stack([x, y, np.ones_like(x)], -1)


def plane_depth(rays: Array, normal: Array, offset_m: float) -> Array:
    return np.asarray(offset_m / (rays @ normal))


def sphere_depth(rays: Array, centre: Array, radius_m: float) -> Array:
    """z of the near side, inf where the ray misses."""
    a, b, c = (rays * rays).sum(-1), rays @ centre, centre @ centre - radius_m**2
    disc = b * b - a * c
    return np.where(disc > 0, (b - np.sqrt(np.maximum(disc, 0))) / a, np.inf)


def roi_at(centre: Array) -> HandRoi:
    return HandRoi("right", centre, CUBE_M, 1.0)


@SOME
@given(seeds)
def test_crop_coordinates_and_metres_are_each_others_inverse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    uvd, distance = rng.uniform(-1.2, 1.2, (40, 3)), rng.uniform(0.25, 1.5)
    points = points_from_uvd(uvd, distance, CUBE_M)
    np.testing.assert_allclose(uvd_from_points(points, distance, CUBE_M), uvd, atol=1e-12)
    np.testing.assert_allclose(points[:, 2], distance + uvd[:, 2] * CUBE_M / 2)
    np.testing.assert_allclose(points_from_uvd(np.zeros(3), distance, CUBE_M), [0, 0, distance])


def test_a_point_of_the_crop_lies_on_the_ray_of_its_pixel() -> None:
    uvd = np.random.default_rng(0).uniform(-1, 1, (40, 3))
    points = points_from_uvd(uvd, 0.6, CUBE_M)
    np.testing.assert_allclose(points[:, :2] / points[:, 2:], uvd[:, :2] * CUBE_M / 2 / 0.6)


@SOME
@given(seeds)
def test_look_at_is_the_smallest_rotation_from_z_to_the_centre(seed: int) -> None:
    centre = np.random.default_rng(seed).normal(size=3)
    centre[2] = abs(centre[2]) + 0.1
    rotation = look_at(centre)
    forward = centre / np.linalg.norm(centre)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-13)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(rotation @ [0, 0, 1], forward, atol=1e-14)
    assert np.linalg.norm(se3.so3_log(rotation)) == pytest.approx(np.arccos(np.clip(forward[2], -1, 1)), abs=1e-7)


def test_look_at_refuses_a_centre_behind_the_camera() -> None:
    with pytest.raises(ValueError) as error:
        look_at(np.array([0.0, 0.0, -1.0]))
    assert str(error.value) == "crop: the centre lies behind the camera"


def test_a_pixel_is_the_mean_of_those_of_its_readings_that_lie_in_the_cube() -> None:
    d = np.random.default_rng(0).uniform(-2, 2, (16, 16)).astype(np.float32)
    d[:2, :2] = np.inf
    reduced = reduce_2x2(d)
    for row, column in np.ndindex(8, 8):
        four = d[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        four = four[np.abs(four) < 1]
        assert reduced[row, column] == pytest.approx(four.mean() if four.size else 1, abs=1e-6)
    assert reduced[0, 0] == 1


@pytest.mark.parametrize("camera", [CAMERA, DISTORTED], ids=["pinhole", "distorted"])
def test_a_tilted_plane_off_the_axis_has_its_depth_in_the_crops_own_frame(camera: Intrinsics) -> None:
    normal = se3.so3_exp(np.array([0.35, -0.3, 0.0])) @ [0, 0, 1]
    offset = normal @ CENTRE
    crop = crop_depth(frame_of(plane_depth(image_rays(camera), normal, offset), camera), roi_at(CENTRE))
    truth = plane_depth(crop_rays(crop.distance_m), crop.R_camera_crop.T @ normal, offset)
    expected = reduce_2x2((truth - crop.distance_m) / (CUBE_M / 2))
    error_m = np.abs(crop.image - expected)[np.abs(expected) < 0.97] * CUBE_M / 2
    # Half a count, and what half a sensor pixel of 0.9 mm is worth on this slope.
    assert error_m.size > 3500
    assert error_m.max() < UNIT_M / 2 + 0.0006
    assert error_m.mean() < 0.0002


@pytest.mark.parametrize("camera", [CAMERA, DISTORTED], ids=["pinhole", "distorted"])
def test_a_sphere_looks_the_same_wherever_it_is(camera: Intrinsics) -> None:
    radius = 0.07
    depth = sphere_depth(image_rays(camera), CENTRE, radius)
    crop = crop_depth(frame_of(np.where(np.isfinite(depth), depth, 2.0), camera), roi_at(CENTRE))
    truth = sphere_depth(crop_rays(crop.distance_m), np.array([0, 0, crop.distance_m]), radius)
    expected = reduce_2x2((truth - crop.distance_m) / (CUBE_M / 2))
    y, x = np.mgrid[:64, :64] - 31.5
    from_middle = np.hypot(x, y) / 32 * CUBE_M / 2
    front, outside = from_middle < 0.75 * radius, from_middle > 1.1 * radius
    assert np.abs(crop.image - expected)[front].max() * CUBE_M / 2 < 0.0012
    assert np.abs(crop.image - expected)[front].mean() * CUBE_M / 2 < 0.0003
    assert (crop.image[outside] == 1).all()
    assert crop.image.min() * CUBE_M / 2 == pytest.approx(-radius, abs=0.0003)


def test_the_cubes_centre_is_the_middle_of_the_crop() -> None:
    crop = crop_depth(frame_of(plane_depth(image_rays(CAMERA), CENTRE, CENTRE @ CENTRE)), roi_at(CENTRE))
    assert crop.distance_m == pytest.approx(np.linalg.norm(CENTRE))
    assert np.abs(crop.image).max() < 0.006  # a plane across the line of sight is flat in the crop
    np.testing.assert_allclose(camera_from_crop(crop, np.array([0, 0, crop.distance_m])), CENTRE)


def test_background_and_foreground_beyond_the_cube_are_plus_one() -> None:
    for depth_m in (CENTRE[2] + CUBE_M, CENTRE[2] - CUBE_M):
        crop = crop_depth(frame_of(np.full((600, 800), depth_m)), roi_at(CENTRE))
        assert (crop.image == 1).all()


def test_no_reading_is_plus_one_and_does_not_blur_its_neighbours() -> None:
    depth = np.full((600, 800), 0.62)
    depth[:, :401] = 0
    crop = crop_depth(frame_of(depth), roi_at(np.array([0, 0, 0.62])))
    assert (crop.image[:, :31] == 1).all()
    assert np.abs(crop.image[:, 33:]).max() < 1e-4
    assert ((np.abs(crop.image) < 1e-4) | (crop.image == 1)).all()


def test_no_reading_is_plus_one_in_a_cube_that_holds_the_camera_too() -> None:
    depth = np.full((600, 800), 0.155)
    depth[:, :401] = 0
    crop = crop_depth(frame_of(depth), HandRoi("right", np.array([0, 0, 0.155]), 0.25 * 1.3, 1.0))
    assert (crop.image[:, :31] == 1).all() and np.abs(crop.image[20:44, 33:48]).max() < 1e-3


def test_what_lies_outside_the_image_is_plus_one() -> None:
    centre = CAMERA.deproject(np.array([-0.5, 297.0]), np.float64(0.5))  # on the left border
    crop = crop_depth(frame_of(np.full((600, 800), 0.5)), roi_at(centre))
    assert (crop.image[:, :31] == 1).all()
    assert (crop.image[:, 33:63] < 1).all()


def test_a_wide_lens_is_not_shown_a_second_time_beyond_its_border() -> None:
    wide = Intrinsics(320, 240, 200.0, 200.0, 159.5, 119.5, (-0.3, 0.0, 0.0, 0.0, 0.0))
    assert fold_slope(wide.distortion) == pytest.approx((1 / 0.9) ** 0.5)
    assert fold_slope((0.0,) * 5) == fold_slope((0.2, 0.1, 0.0, 0.0, 0.0)) == np.inf
    frame = DepthFrame("wide", 0, 0, np.full((240, 320), 180, np.uint16), 0.001, wide)
    centre = np.array([0.17, 0.0, 0.18])  # at the border: rays of the crop go far beyond it
    crop = crop_depth(frame, HandRoi("right", centre, 0.25, 1.0))
    shown = crop.image < 1
    u, v = np.meshgrid(*[(np.arange(crop.image.shape[0]) + 0.5) / crop.image.shape[0] * 2 - 1] * 2)
    slopes = np.stack([u, v, np.full_like(u, crop.distance_m / (crop.cube_m / 2))], -1) @ crop.R_camera_crop.T
    off_axis = np.hypot(slopes[..., 0], slopes[..., 1]) / slopes[..., 2]
    beyond = (slopes[..., 2] <= 0) | (off_axis > 1.1 * fold_slope(wide.distortion))
    assert beyond.mean() > 0.05 and shown.any() and not (shown & beyond).any()


def test_a_mirrored_crop_is_the_flipped_crop() -> None:
    depth = sphere_depth(image_rays(CAMERA), CENTRE + np.array([0.03, 0.02, 0]), 0.05)
    frame = frame_of(np.where(np.isfinite(depth), depth, 0))
    plain, mirrored = (crop_depth(frame, roi_at(CENTRE), mirrored=m) for m in (False, True))
    assert mirrored.mirrored and not plain.mirrored
    assert np.abs(plain.image - plain.image[:, ::-1]).max() > 0.5
    np.testing.assert_allclose(mirrored.image, plain.image[:, ::-1], atol=1e-6)
    points = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(
        camera_from_crop(mirrored, points * [-1, 1, 1]), camera_from_crop(plain, points), atol=1e-14
    )


def test_a_crop_of_another_size_is_the_same_picture() -> None:
    frame = frame_of(plane_depth(image_rays(CAMERA), np.array([0.3, 0.1, 1.0]), 0.6))
    small, large = (crop_depth(frame, roi_at(CENTRE), size).image for size in (32, 64))
    assert small.shape == (32, 32) and large.shape == (64, 64)
    np.testing.assert_allclose(small, large.reshape(32, 2, 32, 2).mean((1, 3)), atol=0.005)


def hand_in_both_geometries(name: str, view: Array) -> tuple[HandCrop, Array]:
    """One posed hand and forearm: drawn on a whole sensor and cut by the daemon, and drawn straight into the crop."""
    t = template()
    body = hand_with_arm(t)
    theta = np.zeros((1, 26))
    theta[0, 6:] = POSES[name]
    skeleton = forward_kinematics(t, theta, np.ones((1, 6)), np.zeros((1, 7)))
    parts = np.concatenate([skeleton.parts, np.eye(3, 4)[None, None]], 1)  # (1, 17, 3, 4)
    vertices = skin(body.weights, body.vertices_m[None], parts)[0]
    centre = np.array([0.09, -0.06, 0.5])
    in_camera = (vertices - skeleton.joints_m[0].mean(0)) @ se3.so3_exp(view).T + centre

    def depth_m(points: Array, slope: float, size: int) -> Array:
        inverse = np.zeros((size, size), np.float32)
        rasterise(points.astype(np.float32), body.faces, slope, size, inverse, np.zeros((size, size), np.int32),
                  np.zeros((size, size, 2), np.float32))  # fmt: skip
        return np.where(inverse > 0, 1 / np.maximum(inverse, 1e-6), 0)

    focal, size = 500.0, 480
    camera = Intrinsics(size, size, focal, focal, size / 2 - 0.5, size / 2 - 0.5)
    crop = crop_depth(frame_of(depth_m(in_camera, size / 2 / focal, size), camera), roi_at(centre))
    in_crop = in_camera @ crop.R_camera_crop
    straight = crop_patch(depth_m(in_crop, CUBE_M / 2 / crop.distance_m, PATCH).astype(np.float32), crop.distance_m)
    return crop, straight


@pytest.mark.parametrize("name, view", [("open", (0.3, 0.2, 0.5)), ("fist", (2.6, 0.4, 0)), ("point", (-1.2, 0.5, 1))])
def test_training_and_daemon_see_the_same_crop(name: str, view: tuple[float, ...]) -> None:
    crop, straight = hand_in_both_geometries(name, np.array(view))
    seen, trained = crop.image < 1, straight < 1
    both = seen & trained
    assert trained.sum() > 300
    assert both.sum() / (seen | trained).sum() > 0.9
    difference_mm = (crop.image - straight)[both] * CUBE_M / 2 * 1000
    assert np.median(np.abs(difference_mm)) < 2
    assert abs(np.median(difference_mm)) < 0.3
    for a, b in zip(np.nonzero(seen), np.nonzero(trained), strict=True):
        assert a.mean() == pytest.approx(b.mean(), abs=0.25)  # px: no shift between the two


def test_the_picture_ends_half_a_pixel_beyond_its_last_one_and_does_not_go_on_at_the_other_edge() -> None:
    depth_m = np.full((CAMERA.height, CAMERA.width), CENTRE[2])
    wide = replace(CAMERA, width=CAMERA.width + 400, height=CAMERA.height + 400)
    around = np.zeros((wide.height, wide.width))
    around[: CAMERA.height, : CAMERA.width] = depth_m
    cut, whole = frame_of(depth_m), frame_of(around, wide)
    right, below = (CAMERA.width - 1 - CAMERA.cx) / CAMERA.fx, (CAMERA.height - 1 - CAMERA.cy) / CAMERA.fy
    reach = CUBE_M / 2 / CENTRE[2]
    for slope in np.linspace(-0.03, 0.03, 121):
        for x, y in ((right - reach + slope, 0.0), (0.0, below - reach + slope), (right, below + slope)):
            roi = roi_at(np.array([x, y, 1.0]) * CENTRE[2])
            np.testing.assert_array_equal(crop_depth(cut, roi, 16).image, crop_depth(whole, roi, 16).image)
