"""How far two cameras' points are apart: on flat skin at known places, where every number is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edge_hand.calibration.distances import FAR_MESH_M, Distances, distances, region_of
from edge_hand.calibration.icp import Moment, View
from edge_hand.calibration.observe import tree_of
from edge_hand.hand.arrays import Array
from edge_hand.hand.se3 import apply, inverse, so3_exp, transform
from edge_hand.hand.template import template

T_REF_CAM = np.stack([np.eye(4), transform(so3_exp(np.array([0.0, -0.6, 0.2])), np.array([0.4, 0.05, 0.1]))])
ZERO = np.zeros(2)


def sheet(camera: int, z_m: float, *, wide: int = 20, asked: int = 100, t_s: float = 0.0, mesh: Any = None) -> View:
    """A camera's view of a flat piece of skin, in the reference camera's frame at z_m and 2 mm from point to point."""
    x, y = np.meshgrid(2e-3 * (np.arange(wide) - wide / 2), 2e-3 * (np.arange(20) - 10))
    points = np.stack([x.ravel(), y.ravel(), np.full(x.size, z_m)], 1)
    back = inverse(T_REF_CAM[camera])
    own = apply(back, points)
    normals = np.tile(back[:3, :3] @ [0, 0, -1.0], (len(own), 1))
    good, joint = np.ones(len(own), bool), np.zeros(len(own), np.intp)
    mesh_m = None if mesh is None else apply(back, mesh)
    return View(camera, t_s, own, normals, good, np.arange(asked), joint, tree_of(own), mesh_m)


def moment(*views: View, speed_m_s: float = 0.0) -> Moment:
    return Moment(0.0, views, np.tile([0.0, 0.0, speed_m_s], (21, 1)))


def test_points_are_looked_up_both_ways_and_counted_for_their_camera() -> None:
    """The first camera sees 12 cm of skin, the second 2 cm in their middle, 3 mm behind."""
    found = distances(
        [moment(sheet(0, 0.6, wide=60, asked=300), sheet(1, 0.603, wide=10, asked=200))], T_REF_CAM, ZERO, ZERO
    )
    assert found.asked == {(0, 1): 300, (1, 0): 200}
    assert found.found[1, 0] == 200 and 150 < found.found[0, 1] < 300
    assert len(found.values_m) == sum(found.found.values())
    np.testing.assert_allclose(found.values_m, 0.003, atol=1e-9)
    own = found.cameras[:, 0] == 0
    np.testing.assert_allclose(found.places_m[own, 2], 0.6)
    assert np.abs(found.places_m[own, 0]).max() < 0.045, "it is where the second camera's skin is"
    np.testing.assert_allclose(found.places_m[~own, 2], 0.603)
    assert found.p50_mm == pytest.approx(3) and found.of_pair(1, 0).all() and found.of_pair(0, 1).all()
    assert found.met(0, 1) == found.met(1, 0) == len(found.values_m) / 500


def test_skin_further_off_than_a_rig_can_be_wrong_by_meets_nothing() -> None:
    near, far = (
        distances([moment(sheet(0, 0.6), sheet(1, 0.6 + gap))], T_REF_CAM, ZERO, ZERO) for gap in (0.025, 0.04)
    )
    assert near.met(0, 1) == 1 and near.p50_mm == pytest.approx(25)
    assert far.met(0, 1) == 0 and np.isnan(far.p50_mm) and np.isnan(far.met(0, 5))


def test_pictures_of_a_moving_hand_are_compared_at_one_time_by_the_rigs_clocks() -> None:
    """Its clock says 30 ms later, 20 of them true: the hand went 10 mm."""
    views = sheet(0, 0.6), sheet(1, 0.61, t_s=0.03)
    offsets = np.array([0.0, -0.02])
    assert distances([moment(*views, speed_m_s=1.0)], T_REF_CAM, offsets, ZERO).p50_mm == pytest.approx(0, abs=1e-6)
    assert distances([moment(*views, speed_m_s=1.0)], T_REF_CAM, ZERO, ZERO).p50_mm == pytest.approx(20)


def test_points_of_one_camera_are_measured_against_the_hand_fitted_in_the_other_along_its_normals() -> None:
    """A mesh of the first camera alone: 5 mm before the second's points; what is far from it is another thing."""
    mesh = flat_hand(0.6)
    views = sheet(0, 0.7, mesh=mesh, t_s=0.01), sheet(1, 0.615, asked=150)
    found = distances([moment(*views, speed_m_s=-1.0)], T_REF_CAM, ZERO, ZERO, mesh=True)
    assert found.asked == {(0, 1): 150, (1, 0): 100} and found.found == {(0, 1): 150, (1, 0): 0}
    np.testing.assert_allclose(found.values_m, 0.005, atol=1e-6)
    np.testing.assert_allclose(found.places_m[:, 2], 0.615)
    away = distances([moment(views[0], sheet(1, 0.611 + FAR_MESH_M))], T_REF_CAM, ZERO, ZERO, mesh=True)
    assert away.found[0, 1] == 0


def flat_hand(z_m: float) -> Array:
    """The template's vertices (V, 3) m pressed flat at z_m, its middle where the sheets are."""
    vertices = template().vertices_m.copy()
    vertices -= vertices.mean(0)
    vertices[:, 2] = z_m
    return np.asarray(vertices)


def test_parts_of_a_check_are_added_up_and_each_percentile_is_of_its_own_pair() -> None:
    def part(pair: tuple[int, int], *values_m: float) -> Distances:
        n = len(values_m)
        return Distances(np.array(values_m), np.tile(pair, (n, 1)), np.zeros((n, 3)), {pair: 4}, {pair: n})

    both = Distances.joined([part((0, 1), 0.001, 0.003), part((1, 0), 0.002), part((0, 2), 0.009), part((0, 1), 0.002)])
    assert both.asked == {(0, 1): 8, (1, 0): 4, (0, 2): 4} and both.found == {(0, 1): 3, (1, 0): 1, (0, 2): 1}
    assert both.met(0, 1) == both.met(1, 0) == pytest.approx(4 / 12) and both.met(2, 0) == 1 / 4
    assert both.of_pair(0, 1).tolist() == both.of_pair(1, 0).tolist() == [True, True, True, False, True]
    assert both.percentile_mm(50, both.of_pair(0, 1)) == pytest.approx(2)
    assert both.percentile_mm(100, both.of_pair(0, 1)) == pytest.approx(3) and both.percentile_mm(100) == 9
    assert both.p95_mm == pytest.approx(7.8) and np.isnan(both.percentile_mm(50, both.of_pair(1, 2)))


def test_near_middle_and_far_are_thirds_of_the_volume_along_the_reference_cameras_view() -> None:
    depths = np.array([0.31, 0.49, 0.51, 0.69, 0.71, 0.89])
    places = np.stack([np.linspace(1, -1, 6), np.zeros(6), depths], 1)
    assert region_of(places, (0.0, 0.0, 0.6), 0.6).tolist() == [0, 0, 1, 1, 2, 2]
