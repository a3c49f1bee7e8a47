"""The plain renderer against its compiled twin and against analytic geometry."""

from __future__ import annotations

import numpy as np
import pytest
from edge_hand.hand.arrays import Array
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.kinematics import pose_hand
from edge_hand.hand.poses import POSES
from edge_hand.hand.render import render, render_depth
from edge_hand.hand.se3 import so3_exp
from edge_hand.hand.template import template

CAMERA = Intrinsics(160, 120, 150.0, 148.0, 79.3, 60.8)


def posed_hand(name: str, rotvec: tuple[float, float, float], distance_m: float) -> Array:
    theta = np.concatenate([np.zeros(3), rotvec, POSES[name]])
    _, vertices = pose_hand(template(), theta[None], np.ones((1, 6)), np.zeros((1, 7)))
    return vertices[0] - vertices[0].mean(0) + (0, 0, distance_m)


def sphere(centre: Array, radius: float, n: int = 96) -> tuple[Array, Array]:
    """Vertices and faces of a latitude-longitude sphere."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, n), np.linspace(0, 2 * np.pi, n), indexing="ij")
    unit = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], -1)
    a = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    faces = np.concatenate([np.stack([a, a + n, a + 1], 1), np.stack([a + 1, a + n, a + n + 1], 1)])
    return unit.reshape(-1, 3) * radius + centre, faces


@pytest.mark.parametrize(
    ("pose", "rotvec", "distance_m"),
    [("open", (0.3, -0.2, 1.0), 0.35), ("fist", (2.0, 1.5, 0.4), 0.5), ("victory", (-1.0, 2.2, 0.1), 0.9)],
)
def test_plain_and_compiled_renderer_agree(pose: str, rotvec: tuple[float, float, float], distance_m: float) -> None:
    pytest.importorskip("numba")
    from edge_hand.trainer.synth.render import rasterise

    size, slope = 96, 0.125 / distance_m
    vertices, faces = posed_hand(pose, rotvec, distance_m), template().faces
    inverse = np.zeros((size, size), np.float32)
    face = np.zeros((size, size), np.int32)
    rasterise(vertices.astype(np.float32), faces, slope, size, inverse, face, np.zeros((size, size, 2), np.float32))
    focal, middle = 0.5 * size / slope, 0.5 * size - 0.5
    ours = render(vertices, faces, Intrinsics(size, size, focal, focal, middle, middle))

    drawn = inverse > 0
    assert drawn.sum() > 1000
    assert ((ours.depth_m > 0) != drawn).sum() < 0.005 * drawn.sum()
    np.testing.assert_array_equal(ours.face >= 0, ours.depth_m > 0)
    both = drawn & (ours.face == face)
    assert both.sum() > 0.98 * drawn.sum()  # a pixel on the edge between two faces may go to either
    assert np.abs(ours.depth_m - 1 / np.where(drawn, inverse, 1))[both].max() < 1e-5
    either = drawn & (ours.depth_m > 0)
    assert (np.abs(ours.depth_m - 1 / np.where(drawn, inverse, 1))[either] > 1e-5).mean() < 0.005


def test_sphere_has_its_analytic_depth() -> None:
    centre, radius = np.array([0.03, -0.02, 0.6]), 0.1
    depth = render_depth(*sphere(centre, radius), CAMERA)
    ray = CAMERA.rays(np.stack(np.meshgrid(np.arange(160), np.arange(120)), -1))
    a, b = (ray * ray).sum(-1), ray @ centre
    inside = b * b - a * (centre @ centre - radius**2)
    analytic = (b - np.sqrt(np.maximum(inside, 0))) / a
    well_inside = inside > 0.002  # away from the rim, where the sphere's facets show
    assert well_inside.sum() > 1000
    assert np.abs(depth - analytic)[well_inside].max() < 2e-4
    assert not depth[inside < -1e-4].any()


def test_tilted_plane_is_perspective_correct_over_the_whole_image() -> None:
    normal, offset = np.array([0.4, -0.3, 1.0]), 0.7
    corner = np.array([[-60.0, -60.0], [219.0, -60.0], [219.0, 179.0], [-60.0, 179.0]])
    vertices = CAMERA.rays(corner) * (offset / (CAMERA.rays(corner) @ normal))[:, None]
    assert (vertices[:, 2] > 0).all()
    depth = render_depth(vertices, np.array([[0, 1, 2], [2, 0, 3]]), CAMERA)  # the second is seen from behind
    pixels = np.stack(np.meshgrid(np.arange(160), np.arange(120)), -1)
    np.testing.assert_allclose(depth, offset / (CAMERA.rays(pixels) @ normal), rtol=1e-5)


def test_nearest_triangle_wins_whatever_the_order() -> None:
    triangle = np.array([[-1.0, -1, 0], [1, -1, 0], [0, 1, 0]])
    vertices = np.concatenate([triangle + np.array([0, 0, z]) for z in (2.0, 1.0, 3.0)])
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        seen = render(vertices, np.arange(9).reshape(3, 3)[order], CAMERA)
        assert seen.depth_m[61, 79] == pytest.approx(1.0)
        assert seen.face[61, 79] == order.index(1)


def test_pixel_is_covered_if_its_centre_is() -> None:
    camera = Intrinsics(10, 10, 1.0, 1.0, 0.0, 0.0)
    square = np.array([[1.9, 2.9, 1.0], [5.1, 2.9, 1.0], [5.1, 4.1, 1.0], [1.9, 4.1, 1.0]])
    drawn = render_depth(square, np.array([[0, 1, 2], [0, 2, 3]]), camera) > 0
    expected = np.zeros((10, 10), bool)
    expected[3:5, 2:6] = True
    np.testing.assert_array_equal(drawn, expected)


def test_what_is_behind_or_beside_the_camera_is_not_drawn() -> None:
    triangle = np.array([[-1.0, -1, 0], [1, -1, 0], [0, 1, 0]])
    for shift in ((0, 0, -1.0), (0, 0, 0.01), (50.0, 0, 1.0), (0, -50.0, 1.0)):
        assert not render_depth(triangle + np.array(shift), np.array([[0, 1, 2]]), CAMERA).any()
    assert not render_depth(triangle + np.array([0, 0, 1.0]), np.zeros((0, 3), int), CAMERA).any()


def test_rolled_camera_sees_the_rolled_picture() -> None:
    camera = Intrinsics(101, 101, 120.0, 120.0, 50.0, 50.0)
    vertices, faces = posed_hand("spread", (0.2, 0.5, -0.3), 0.4), template().faces
    depth = render_depth(vertices, faces, camera)
    rolled = render_depth(vertices @ so3_exp(np.array([0, 0, np.pi / 2])).T, faces, camera)
    differ = np.abs(np.rot90(depth, -1) - rolled) > 1e-5
    assert differ.sum() < 0.005 * (depth > 0).sum()
