"""The batched camera in torch against its compiled twin: triangles, round and flat things, sensors, crops, labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from edge_hand.hand.arrays import Array
from edge_hand.hand.kinematics import pose_hand
from edge_hand.hand.poses import POSES
from edge_hand.hand.se3 import so3_exp
from edge_hand.hand.template import template

pytest.importorskip("numba")
torch = pytest.importorskip("torch")

from edge_hand.trainer.synth import raster_torch, render, samples, sensors  # noqa: E402
from edge_hand.trainer.synth.layout import face_uv  # noqa: E402
from edge_hand.trainer.synth.raster_torch import Draw, rasterise_batch  # noqa: E402

CPU = torch.device("cpu")
FACES = torch.tensor(template().faces, dtype=torch.int64)


class Drawn(NamedTuple):
    inverse: Array
    face: Array
    weight: Array


def hands(n: int, seed: int = 0) -> tuple[Array, Array]:
    """n named hands as float32 vertices (n, V, 3) in the crop's frame, and their distances (n,), m."""
    rng = np.random.default_rng(seed)
    names = list(POSES)
    theta = np.stack(
        [np.concatenate([np.zeros(3), rng.normal(0, 1.5, 3), POSES[names[i % len(names)]]]) for i in range(n)]
    )
    _, vertices = pose_hand(template(), theta, np.ones((n, 6)), np.zeros((n, 7)))
    distance = rng.uniform(0.22, 1.2, n)
    middle = np.stack([np.zeros(n), np.zeros(n), distance], 1)
    return (vertices - vertices.mean(1, keepdims=True) + middle[:, None]).astype(np.float32), distance


def compiled(vertices: Array, faces: Array, slope: float, size: int) -> Drawn:
    drawn = Drawn(
        np.zeros((size, size), np.float32), np.zeros((size, size), np.int32), np.zeros((size, size, 2), np.float32)
    )
    render.rasterise(vertices, faces, slope, size, *drawn)
    return drawn


def triangles(*corners: list[list[float]]) -> Any:
    return torch.tensor(corners, dtype=torch.float32)


@pytest.mark.parametrize("size", [41, 64, 128])
def test_hands_are_drawn_as_the_compiled_twin_draws_them(size: int) -> None:
    vertices, distance = hands(6, size)
    slope = 0.125 / distance
    ours = rasterise_batch(torch.tensor(vertices), FACES, torch.tensor(slope, dtype=torch.float32), size)
    theirs = [compiled(v, template().faces, s, size) for v, s in zip(vertices, slope, strict=True)]
    inverse, face, weight = (np.stack(column) for column in zip(*theirs, strict=True))
    drawn, both = inverse > 0, (inverse > 0) & (ours.inverse_depth.numpy() > 0)
    assert drawn.sum() > 400
    assert (drawn != (ours.inverse_depth.numpy() > 0)).sum() < 0.005 * drawn.sum()
    assert np.abs(1 / ours.inverse_depth.numpy()[both] - 1 / inverse[both]).max() < 5e-4
    alike = both & (ours.face.numpy() == face)
    assert alike.sum() > 0.995 * both.sum()
    assert np.abs(ours.weight.numpy() - weight)[alike].max() < 5e-3
    np.testing.assert_array_equal(ours.face.numpy() >= 0, ours.inverse_depth.numpy() > 0)


def test_smaller_pictures_in_a_batch_are_those_drawn_alone() -> None:
    vertices, distance = hands(4)
    vertices += np.float32([0.1, 0.1, 0])  # over the border
    slope, sizes = torch.tensor(0.125 / distance, dtype=torch.float32), torch.tensor([40, 96, 61, 73])
    together = rasterise_batch(torch.tensor(vertices), FACES, slope, 96, sizes=sizes)
    for i, n in enumerate(sizes.tolist()):
        alone = rasterise_batch(torch.tensor(vertices[i : i + 1]), FACES, slope[i : i + 1], n)
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a[i, :n, :n], b[0])
        assert (together.face[i, n:] == -1).all() and (together.face[i, :, n:] == -1).all()


def test_pictures_do_not_depend_on_how_many_are_drawn_at_a_time() -> None:
    vertices, distance = hands(5)
    slope = torch.tensor(0.125 / distance, dtype=torch.float32)
    whole = rasterise_batch(torch.tensor(vertices), FACES, slope, 64)
    for chunk in (1, 2, 5):
        for a, b in zip(whole, rasterise_batch(torch.tensor(vertices), FACES, slope, 64, chunk=chunk), strict=True):
            assert torch.equal(a, b)


def test_nearest_triangle_wins_and_the_first_of_equals() -> None:
    z = [2.0, 1.0, 3.0, 1.0]
    vertices = torch.cat([triangles([[-d, -d, d], [d, -d, d], [0, d, d]]) for d in z], 1)
    for order in ([0, 1, 2, 3], [2, 3, 1, 0], [3, 0, 2, 1]):
        drawn = rasterise_batch(vertices, torch.arange(12).reshape(4, 3)[order], torch.ones(1), 16)
        assert int(drawn.face[0, 7, 7]) == min(order.index(1), order.index(3))
        assert float(drawn.inverse_depth[0, 7, 7]) == pytest.approx(1.0)


def test_one_triangle_over_the_whole_picture_is_perspective_correct() -> None:
    normal, offset, slope = torch.tensor([[0.4, -0.3, 1.0]]), torch.tensor([0.7]), torch.tensor([0.5])
    corner = torch.tensor([[-3.0, -3, 1], [9, -3, 1], [-3, 9, 1]]) * torch.tensor([0.2, 0.2, 1])
    vertices = corner * (offset / (corner @ normal[0]))[:, None]
    assert (vertices[:, 2] > 0).all()
    drawn = rasterise_batch(vertices[None], torch.tensor([[0, 1, 2]]), slope, 64)
    rays = raster_torch.ray_slopes(slope, torch.tensor([64]), 64)
    expected = raster_torch.plane_inverse_depth(normal, offset, rays)
    torch.testing.assert_close(drawn.inverse_depth, expected, rtol=1e-5, atol=0)
    weight = torch.cat([drawn.weight, 1 - drawn.weight.sum(-1, keepdim=True)], -1)[0]
    x = (weight @ vertices)[..., 0] / (weight @ vertices)[..., 2]
    torch.testing.assert_close(x, rays.expand(64, 64), rtol=0, atol=1e-5)


def test_what_is_behind_or_beside_the_camera_is_not_drawn() -> None:
    triangle = triangles([[-1, -1, 0], [1, -1, 0], [0, 1, 0]])
    for shift in ([0, 0, -1.0], [0, 0, 0.01], [50, 0, 1.0], [0, -50, 1.0], [0, 0, 0.0]):
        drawn = rasterise_batch(triangle + torch.tensor(shift), torch.tensor([[0, 1, 2]]), torch.ones(1), 16)
        assert not drawn.inverse_depth.any() and (drawn.face == -1).all()


def test_planes_and_ellipsoids_are_those_of_the_compiled_twin() -> None:
    rng = np.random.default_rng(1)
    n, size = 24, 72
    centre = np.column_stack([rng.uniform(-0.1, 0.1, (n, 2)), rng.uniform(0.2, 1.3, n)])
    inverse_axes = np.stack([(so3_exp(rng.normal(0, 2, 3)) / rng.uniform(0.012, 0.2, 3)).T for _ in range(n)])
    normal, offset = rng.normal(0, 0.4, (n, 3)) + (0, 0, 1), rng.uniform(0.3, 1.0, n)
    slope = 0.125 / centre[:, 2]
    tensors = [torch.tensor(x, dtype=torch.float32) for x in (centre, inverse_axes, normal, offset, slope)]
    rays = raster_torch.ray_slopes(tensors[4], torch.full((n,), size), size)
    round_ = raster_torch.ellipsoid_inverse_depth(tensors[0], tensors[1], rays).numpy()
    flat = raster_torch.plane_inverse_depth(tensors[2], tensors[3], rays).numpy()
    for i in range(n):
        face = np.zeros((size, size), np.int32)
        expected = np.zeros((size, size), np.float32)
        render.draw_plane(normal[i], offset[i], slope[i], size, expected, face)
        np.testing.assert_allclose(np.maximum(flat[i], 0), expected, rtol=1e-4, atol=1e-5)
        expected[:] = 0
        render.draw_ellipsoid(centre[i], inverse_axes[i], slope[i], size, expected, face)
        both = (expected > 0) & (round_[i] > 0)
        assert ((expected > 0) != (round_[i] > 0)).sum() <= max(2, 0.005 * both.sum())
        assert both.any() and np.median(np.abs(1 / expected[both] - 1 / round_[i][both])) < 1e-5
        assert np.abs(1 / expected[both] - 1 / round_[i][both]).max() < 5e-4


def scenes(n: int, wall: bool = True) -> tuple[Any, list[Array], list[sensors.Sensor], Array]:
    """Clean patches as one batch (n, 96, 96) and one by one, the cameras that see them, and their distances."""
    makes = [list(sensors.SENSORS.values())[i % len(sensors.SENSORS)] for i in range(n)]
    vertices, distance = hands(n)
    patches, batch = [], torch.zeros(n, 96, 96)
    for i, make in enumerate(makes):
        shift = max(distance[i], make.min_z_m + 0.1) - distance[i]
        distance[i] += shift
        size, slope = int(np.clip(make.focal_px * samples.CUBE_M / distance[i], 40, 96)), 0.125 / distance[i]
        drawn = compiled(vertices[i] + np.float32([0, 0, shift]), template().faces, slope, size)
        if wall:
            render.draw_plane(np.array([0.1, 0.05, 0.99]), distance[i] + 0.1, slope, size, drawn.inverse, drawn.face)
        patches.append(np.where(drawn.inverse > 0, 1 / np.maximum(drawn.inverse, 1e-6), 0).astype(np.float32))
        batch[i, :size, :size] = torch.tensor(patches[i])
    return batch, patches, makes, distance


def seen_both_ways(settings: list[sensors.Settings], wall: bool = True) -> list[tuple[Array, Array, Array]]:
    """Clean patches, as the compiled sensors report them, and as the batched ones do."""
    batch, patches, makes, distance = scenes(len(settings), wall)
    rows = [raster_torch.camera_row(make, s) for make, s in zip(makes, settings, strict=True)]
    sizes = torch.tensor([len(p) for p in patches])
    focal = sizes * torch.tensor(distance, dtype=torch.float32) / samples.CUBE_M
    ours = raster_torch.sense(batch, sizes, focal, raster_torch.stack_cameras(rows, CPU), Draw((1,), CPU)).numpy()
    seen = []
    for i, (clean, make, s) in enumerate(zip(patches, makes, settings, strict=True)):
        theirs = sensors.corrupt(clean, float(focal[i]), make, s, i, np.empty_like(clean))
        seen.append((clean, theirs, ours[i, : len(clean), : len(clean)]))
    return seen


def test_sensors_without_chance_report_what_the_compiled_ones_do() -> None:
    still = sensors.Settings(shadow_side=-1, fatten_px=1.0, multipath_m=0.004)
    for side in (-1, 1):
        for clean, theirs, ours in seen_both_ways([still._replace(shadow_side=side)] * 13):
            assert ((theirs > 0) != (ours > 0)).mean() < 0.01
            both = (theirs > 0) & (ours > 0)
            assert both.sum() > 0.5 * (clean > 0).sum()
            assert (np.abs(theirs - ours)[both] > 0.0011).mean() < 0.02  # a count more or less, at a rounding edge


def test_an_outline_is_no_grazing_surface_to_either_sensor() -> None:
    steep = sensors.Settings(shadow=0.0, grazing_rad=np.radians(80))
    lost = []
    for clean, theirs, ours in seen_both_ways([steep] * 13):
        rim = np.zeros_like(clean, bool)
        rim[:, 1:-1] = (np.diff(clean, axis=1)[:, 1:] > 0.04) | (np.diff(clean, axis=1)[:, :-1] < -0.04)
        lost.append([(seen[rim] == 0).mean() for seen in (theirs, ours)])
    np.testing.assert_allclose(*np.mean(lost, 0), atol=0.02)


@pytest.mark.parametrize("wall", [False, True])
def test_sensors_err_as_often_and_as_far_as_the_compiled_ones(wall: bool) -> None:
    rng = np.random.default_rng(5)
    makes = list(sensors.SENSORS.values())
    seen = seen_both_ways([sensors.draw_settings(makes[i % 13], rng) for i in range(65)], wall)

    def errors(clean: Array, noisy: Array) -> tuple[float, ...]:
        there, both = clean > 0, (clean > 0) & (noisy > 0)
        off = np.where(both, noisy - clean, np.nan)
        grain = np.abs(np.diff(off))
        return (float((noisy[there] == 0).mean()), float((noisy[~there] > 0).sum() / there.sum()),
                float(np.nanmedian(np.abs(off)) * 1e3), float(np.nanmedian(grain) * 1e3))  # fmt: skip

    theirs = np.array([errors(clean, a) for clean, a, _ in seen])
    ours = np.array([errors(clean, b) for clean, _, b in seen])
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), rtol=0.2, atol=0.005)
    for column in (0, 2, 3):  # and each picture as it should, not only all of them together
        assert np.corrcoef(theirs[:, column], ours[:, column])[0, 1] > 0.95


@pytest.mark.parametrize("image_px", [64, 96, 128])
def test_crops_are_those_of_the_compiled_path(image_px: int) -> None:
    batch, patches, _, distance = scenes(6)
    sizes = torch.tensor([len(p) for p in patches])
    ours = raster_torch.crop_patches(batch, sizes, torch.tensor(distance, dtype=torch.float32), image_px).numpy()
    for i, patch in enumerate(patches):
        np.testing.assert_allclose(ours[i], samples.crop_patch(patch, distance[i], image_px), atol=2e-6)


def test_layout_labels_are_those_of_the_compiled_path() -> None:
    generator = samples.Generator("val")
    vertices, distance = hands(4)
    slope, sizes = torch.tensor(0.125 / distance, dtype=torch.float32), torch.tensor([48, 96, 77, 64])
    raster = rasterise_batch(torch.tensor(vertices), FACES, slope, 96, sizes=sizes)
    depth = torch.where(raster.inverse_depth > 0, 1 / raster.inverse_depth, 0)
    depth[:, 10:20], depth[:, 20:30] = 0, depth[:, 20:30] + 0.3  # not read, and behind the cube
    layout = torch.tensor(face_uv(template()), dtype=torch.float32)
    where = torch.tensor(distance, dtype=torch.float32)
    on_hand, uv = raster_torch.correspondences(depth, raster.face, raster.weight, sizes, where, layout)
    for i, n in enumerate(sizes.tolist()):
        args = (x[i, :n, :n].numpy() for x in (depth, raster.face, raster.weight))
        expected_on_hand, expected_uv = generator._correspondences(*args, float(where[i]))
        assert expected_on_hand.sum() > 20
        np.testing.assert_array_equal(on_hand[i], expected_on_hand)
        np.testing.assert_allclose(uv[i], expected_uv, atol=1e-6)
