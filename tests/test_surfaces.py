"""Where a hand could be: surfaces against a slow twin, and proposals that hold the hand."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from edge_hand.edge.cameras.synthetic import KEY_S, SHOW, SyntheticCamera
from edge_hand.edge.surfaces import CUBE_M, JUMP, find_hands, geodesic, surfaces
from edge_hand.hand.arrays import Array
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame

CAMERA = Intrinsics(424, 240, 200.0, 200.0, 211.5, 119.5)
NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))


def frame_of(depth: Array) -> DepthFrame:
    return DepthFrame("test", 0, 0, depth.astype(np.uint16), 0.001, CAMERA)


def flood_fill(z: Array, valid: Array) -> Array:
    """`surfaces`, pixel by pixel."""
    labels = np.full(z.shape, -1)
    n = 0
    for start in zip(*np.nonzero(valid), strict=True):
        if labels[start] >= 0:
            continue
        labels[start], stack = n, [start]
        while stack:
            row, column = stack.pop()
            for down, right in NEIGHBOURS:
                a = (row + down, column + right)
                if not (0 <= a[0] < z.shape[0] and 0 <= a[1] < z.shape[1] and valid[a]) or labels[a] >= 0:
                    continue
                later = max(a, (row, column))  # the one further right or down sets the jump allowed
                if abs(z[a] - z[row, column]) < JUMP + 0.01 * z[later]:
                    labels[a] = n
                    stack.append(a)
        n += 1
    return labels


def shortest_paths(region: Array, source: tuple[int, int], z: Array, m_per_pixel: float) -> Array:
    """`geodesic` by Dijkstra."""
    distance = np.full(region.shape, np.inf)
    distance[source] = 0.0
    queue = [(0.0, source)]
    while queue:
        d, (row, column) = heapq.heappop(queue)
        if d > distance[row, column]:
            continue
        for down, right in NEIGHBOURS:
            a = (row + down, column + right)
            if 0 <= a[0] < region.shape[0] and 0 <= a[1] < region.shape[1] and region[a]:
                new = d + z[a] * m_per_pixel * 0.85
                if new < distance[a]:
                    distance[a] = new
                    heapq.heappush(queue, (new, a))
    return distance


def spiral(size: int) -> Array:
    """A corridor one pixel wide that winds inward: (size, size) bool."""
    free = np.zeros((size, size), bool)
    row, column, down, right = 0, 0, 0, 1
    free[0, 0] = True
    turned = 0
    while turned < 2:
        a, b = (row + down, column + right), (row + 2 * down, column + 2 * right)
        inside = all(0 <= x < size for x in a)
        if not inside or (all(0 <= x < size for x in b) and free[b]):
            down, right = right, -down
            turned += 1
            continue
        row, column = a
        free[row, column] = True
        turned = 0
    return free


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [(1, 1), (1, 23), (23, 1), (2, 2), (24, 31), (40, 30)])
def test_surfaces_are_those_of_a_flood_fill(shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 2 + seed % 4, shape)
    z = (0.3 + 0.2 * seed + 0.0225 * levels + 0.002 * rng.standard_normal(shape)).astype(np.float32)
    valid = rng.random(shape) < (0.35, 0.6, 0.75, 1.0)[seed % 4]
    np.testing.assert_array_equal(surfaces(z, valid), flood_fill(z, valid))


def test_a_long_winding_surface_is_one() -> None:
    valid = spiral(41)
    assert valid.sum() > 700
    labels = surfaces(np.full(valid.shape, 0.5, np.float32), valid)
    assert (labels[valid] == 0).all() and (labels[~valid] == -1).all()


def test_a_step_in_depth_parts_surfaces_and_a_slope_does_not() -> None:
    z = np.full((20, 30), 0.5, np.float32)
    z[:, 15:] = 0.53
    assert len(np.unique(surfaces(z, np.ones_like(z, bool)))) == 2
    slope = np.broadcast_to(np.linspace(0.4, 0.9, 30, dtype=np.float32), (20, 30))
    assert len(np.unique(surfaces(slope, np.ones_like(z, bool)))) == 1


def test_an_empty_frame_and_a_far_wall_hold_no_hand() -> None:
    assert find_hands(frame_of(np.zeros((240, 424)))) == []
    assert find_hands(frame_of(np.full((240, 424), 2100))) == []
    assert find_hands(frame_of(np.full((240, 424), 65535))) == []


def test_specks_hold_no_hand() -> None:
    depth = np.zeros((240, 424))
    depth[::12, ::12] = 500  # lone pixels
    depth[100:110, 100:110] = 500  # 25 mm wide
    assert find_hands(frame_of(depth)) == []


def test_a_patch_before_a_wall_is_proposed_at_its_middle() -> None:
    depth = np.full((240, 424), 1800)
    depth[80:120, 250:290] = 500  # 10 cm wide
    rois = find_hands(frame_of(depth))
    middle = CAMERA.deproject(np.array([269.5, 99.5]), np.array(0.5))
    assert np.linalg.norm(rois[0].centre_m - middle) < 0.01
    assert [r.side for r in rois] == ["unknown"] * len(rois) and {r.cube_m for r in rois} == {CUBE_M}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["424x240@30", "640x480@30"])
def test_a_proposal_holds_the_hand(mode: str) -> None:
    near = 0
    with SyntheticCamera(0, mode, fps=0) as camera:
        lap = round(KEY_S * len(SHOW) * camera.fps)
        for seq in range(0, lap, lap // 20)[:20]:
            rois = find_hands(camera.frame(seq))
            assert 0 < len(rois) <= 4
            assert [r.score for r in rois] == sorted((r.score for r in rois), reverse=True)
            middle = camera.truth(seq).mean(0)
            near += min(np.linalg.norm(r.centre_m - middle) for r in rois) < 0.06
    assert near >= 18


def test_a_proposal_holds_the_hand_where_the_lens_is_distorted() -> None:
    with SyntheticCamera(0, "424x240@30", fps=0) as camera:
        straight, middle = camera.frame(0), camera.truth(0).mean(0)
    k = straight.intrinsics
    bent = Intrinsics(k.width, k.height, k.fx, k.fy, k.cx, k.cy, (1e-3, 0.0, 0.0, 0.0, 0.0))
    rois = find_hands(DepthFrame("test", 0, 0, straight.depth, straight.depth_unit_m, bent))
    assert min(np.linalg.norm(r.centre_m - middle) for r in rois) < 0.06


def test_geodesic_is_the_shortest_way_in_city_blocks() -> None:
    rng = np.random.default_rng(2)
    for _ in range(4):
        region = rng.random((24, 30)) < 0.7
        region[12, 15] = True
        z = rng.uniform(0.4, 0.6, region.shape)
        found = geodesic(region, (12, 15), z, 0.002)
        np.testing.assert_allclose(found, shortest_paths(region, (12, 15), z, 0.002), rtol=1e-12)
        assert np.isinf(found[~region]).all()


def test_geodesic_of_a_bar_is_its_length() -> None:
    rows, columns = np.indices((140, 140))
    ratio = []
    for angle in np.radians(np.arange(0, 91, 5)):
        along = columns * np.cos(angle) + rows * np.sin(angle)
        across = -columns * np.sin(angle) + rows * np.cos(angle)
        bar = (along >= 0) & (along <= 120) & (np.abs(across) <= 4)
        distance = geodesic(bar, (0, 0), np.full(bar.shape, 0.5), 0.004)  # 2 mm a pixel
        end = np.unravel_index(np.argmax(np.where(bar & (np.abs(across) < 1), along, 0)), bar.shape)
        ratio.append(distance[end] / (0.002 * along[end]))
    assert abs(np.mean(ratio) - 1) < 0.10
    assert min(ratio) > 0.84 and max(ratio) < 1.21  # city blocks: short along the axes, long across
    assert ratio[0] == pytest.approx(0.85, abs=0.01)


def test_two_near_points_with_nothing_between_them_are_no_trouble() -> None:
    camera = Intrinsics(320, 240, 240, 240, 160, 120)
    x, y = np.meshgrid(np.arange(320), np.arange(240))
    nearest = np.minimum(np.hypot(x - 50, y - 120), np.hypot(x - 270, y - 120))
    depth = np.clip(420 + 2 * nearest, 0, 660).astype(np.uint16)
    rois = find_hands(DepthFrame("x", 0, 0, depth, 0.001, camera))
    assert rois and all(np.isfinite(roi.centre_m).all() for roi in rois)
