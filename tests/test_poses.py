"""Random hands: inside the limits, fingers beside each other and not in each other, of human size, the same by seed."""

from __future__ import annotations

import numpy as np
import pytest
from edge_hand.hand.arrays import Array
from edge_hand.hand.kinematics import forward_kinematics
from edge_hand.hand.poses import POSES
from edge_hand.hand.skeleton import ALPHA_RANGE, ANGLE_LIMITS_RAD, ANGLE_NAMES, BETA_RANGE
from edge_hand.hand.template import template
from edge_hand.trainer.synth.poses import (
    SCENES,
    SHAPES,
    Scene,
    hand_length_m,
    penetrates,
    sample_angles,
    sample_shape,
    sample_view,
    segment_distance,
    turned,
)
from hypothesis import given, settings
from hypothesis import strategies as st

SOME = settings(max_examples=25, deadline=None)
T = template()
seeds = st.integers(0, 2**32 - 1)


def inside_limits(angles: Array) -> bool:
    return bool(((angles >= ANGLE_LIMITS_RAD[:, 0] - 1e-9) & (angles <= ANGLE_LIMITS_RAD[:, 1] + 1e-9)).all())


@SOME
@given(seeds)
def test_sampled_angles_keep_their_limits_and_never_penetrate(seed: int) -> None:
    angles = sample_angles(T, np.random.default_rng(seed))
    assert angles.shape == (20,)
    assert inside_limits(angles)
    assert not penetrates(T, angles[None])[0]


def test_sampled_angles_come_from_the_seed_alone_and_differ_between_seeds() -> None:
    first, again, other = (sample_angles(T, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.05


def test_sampled_angles_reach_over_most_of_every_joints_range() -> None:
    rng = np.random.default_rng(0)
    angles = np.stack([sample_angles(T, rng) for _ in range(600)])
    low, high = ANGLE_LIMITS_RAD.T
    reach = (angles.max(0) - angles.min(0)) / (high - low)
    assert reach.min() > 0.8, ANGLE_NAMES[int(reach.argmin())]


@pytest.mark.parametrize("name", [*POSES, *SHAPES])
def test_a_named_hand_shape_keeps_its_limits_and_does_not_penetrate(name: str) -> None:
    shape = {**POSES, **SHAPES}[name]
    assert inside_limits(shape)
    assert not penetrates(T, shape[None])[0]


def test_crossed_fingers_and_a_finger_through_the_palm_are_penetrations() -> None:
    crossed, through = POSES["flat"].copy(), POSES["flat"].copy()
    crossed[ANGLE_NAMES.index("index_mcp_abd")] = np.radians(-22)
    crossed[ANGLE_NAMES.index("middle_mcp_abd")] = np.radians(22)
    through[[ANGLE_NAMES.index(f"ring_{joint}_flex") for joint in ("mcp", "pip", "dip")]] = np.radians([95, 112, 80])
    assert penetrates(T, np.stack([crossed, through, POSES["flat"]])).tolist() == [True, True, False]


def brute_force_distance(a0: Array, a1: Array, b0: Array, b1: Array, n: int = 201) -> float:
    s = np.linspace(0, 1, n)[:, None]
    a, b = a0 + s * (a1 - a0), b0 + s * (b1 - b0)  # (n, 3)
    return float(np.linalg.norm(a[:, None] - b[None], axis=-1).min())


@SOME
@given(seeds, st.sampled_from(["any", "parallel", "crossing", "touching", "point"]))
def test_segment_distance_is_the_least_over_all_pairs_of_points(seed: int, kind: str) -> None:
    a0, a1, b0, b1 = 0.05 * np.random.default_rng(seed).normal(size=(4, 3))
    if kind == "parallel":
        b1 = b0 + 0.7 * (a1 - a0)
    elif kind == "crossing":
        b1 = a0 + a1 - b0  # about a common middle
    elif kind == "touching":
        b0 = a1
    elif kind == "point":
        b1 = b0
    exact = float(segment_distance(a0, a1, b0, b1))
    sampled = brute_force_distance(a0, a1, b0, b1)
    step = (np.linalg.norm(a1 - a0) + np.linalg.norm(b1 - b0)) / 400
    assert exact <= sampled + 1e-9
    assert sampled <= exact + step + 1e-9


def test_segment_distance_works_on_batches() -> None:
    a0, a1, b0, b1 = np.random.default_rng(0).normal(size=(4, 5, 2, 3))
    distance = segment_distance(a0, a1, b0, b1)
    assert distance.shape == (5, 2)
    assert distance[3, 1] == pytest.approx(float(segment_distance(a0[3, 1], a1[3, 1], b0[3, 1], b1[3, 1])))


def sampled_shapes(n: int = 1000) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    alpha, beta = zip(*(sample_shape(rng) for _ in range(n)), strict=True)
    return np.stack(alpha), np.stack(beta)


def flat_joints_m(alpha: Array, beta: Array) -> Array:
    return forward_kinematics(T, np.zeros((len(alpha), 26)), alpha, beta).joints_m


def test_a_hands_length_is_the_way_from_the_wrist_to_the_tip_of_the_flat_middle_finger() -> None:
    alpha, beta = sampled_shapes(20)
    joints = flat_joints_m(alpha, beta)
    lengths = [hand_length_m(T, a, b) for a, b in zip(alpha, beta, strict=True)]
    np.testing.assert_allclose(lengths, np.linalg.norm(joints[:, 12] - joints[:, 0], axis=1), rtol=1e-12)
    assert hand_length_m(T, np.ones(6), np.zeros(7)) == pytest.approx(0.1905, abs=1e-3)


def test_sampled_hands_are_as_long_as_human_ones_and_every_length_is_about_as_likely() -> None:
    lengths_mm = [1000 * hand_length_m(T, a, b) for a, b in zip(*sampled_shapes(), strict=True)]
    assert np.mean([148 <= x <= 218 for x in lengths_mm]) >= 0.995
    share = np.histogram(lengths_mm, np.linspace(150, 216, 7))[0] / len(lengths_mm)
    assert share.min() > 0.12 and share.max() < 0.22


def test_sampled_hands_have_human_proportions_and_differ_in_every_part() -> None:
    alpha, beta = sampled_shapes()
    assert ALPHA_RANGE[0] <= alpha.min() and alpha.max() <= ALPHA_RANGE[1]
    assert BETA_RANGE[0] <= beta.min() and beta.max() <= BETA_RANGE[1]
    assert alpha.std(0).min() > 0.02 and beta.std(0).min() > 0.2
    joints = flat_joints_m(alpha, beta)
    palm, finger, breadth = (np.linalg.norm(joints[:, a] - joints[:, b], axis=1) for a, b in ((9, 0), (12, 9), (17, 5)))
    assert (finger / palm).min() > 0.75 and (finger / palm).max() < 0.99
    assert 0.03 < (breadth / (palm + finger)).std() / (breadth / (palm + finger)).mean() < 0.12


@SOME
@given(seeds)
def test_a_sampled_view_is_a_rotation(seed: int) -> None:
    rotation = sample_view(np.random.default_rng(seed))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-13)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_sampled_views_leave_no_part_of_all_rotations_out() -> None:
    rng = np.random.default_rng(0)
    x, y = np.stack([sample_view(rng)[:, :2].T for _ in range(20_000)], 1)  # (N, 3) little finger's side and fingers
    level = np.cross(y, (0, 0, 1))
    roll = np.arctan2((np.cross(level, y) * x).sum(1), (level * x).sum(1))
    around = np.arctan2(y[:, 1], y[:, 0])
    turn = 2 * np.pi
    cell = [np.floor(v * n) % n for v, n in (((y[:, 2] + 1) / 2, 4), (around / turn, 6), (roll / turn, 4))]
    hits = np.unique(np.stack(cell, 1), axis=0, return_counts=True)[1]  # 96 cells of one volume
    assert len(hits) == 96
    assert hits.min() >= 25  # any rotation alone gives 42


def test_sampled_views_show_palm_and_back_more_than_edges_and_fingers_up_more_than_down() -> None:
    rng = np.random.default_rng(0)
    views = np.stack([sample_view(rng) for _ in range(3000)])
    back = views[:, 2, 2]  # along the optical axis: -1 is the back towards the camera, 1 the palm
    assert (back > 0.75).mean() > 0.15 and (back < -0.75).mean() > 0.15  # an eighth each of any rotation
    assert (np.abs(back) < 0.5).mean() > 0.25
    assert (views[:, 1, 1] < -0.5).mean() > 1.5 * (views[:, 1, 1] > 0.5).mean()
    assert (views[:, 2, 1] < -0.7).mean() > 0.08  # fingers at the camera
    assert (views[:, 2, 1] > 0.7).mean() > 0.12  # and away from it


@pytest.mark.parametrize("scene", SCENES)
def test_a_scenes_hands_lie_about_as_it_says(scene: Scene) -> None:
    turns = scene.turns_deg or (0, 120, -120)
    for turn, side in zip(turns, (scene.sides_deg * 3)[: len(turns)], strict=True):
        view = turned(*np.radians([turn, scene.away_deg, side]))
        np.testing.assert_allclose(view @ view.T, np.eye(3), atol=1e-13)
        assert np.degrees(np.arcsin(view[2, 1])) == pytest.approx(scene.away_deg)
        in_image = np.degrees(np.arctan2(view[0, 1], -view[1, 1]))
        assert in_image == pytest.approx(turn)


def test_sides_are_named_as_the_camera_sees_them() -> None:
    seen = {side: turned(0, 0, np.radians(side)) for side in (0, 180, 90, -90)}
    toward = np.array([0, 0, -1])
    np.testing.assert_allclose(seen[0][:, 2], toward, atol=1e-12)  # the back
    np.testing.assert_allclose(-seen[180][:, 2], toward, atol=1e-12)  # the palm
    np.testing.assert_allclose(seen[90][:, 0], toward, atol=1e-12)  # the little finger's edge
    np.testing.assert_allclose(-seen[-90][:, 0], toward, atol=1e-12)  # the thumb's
