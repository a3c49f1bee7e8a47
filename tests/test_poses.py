"""Random hands: inside the limits, fingers beside each other and not in each other, of human size, the same by seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edge_hand.hand.kinematics import forward_kinematics
from edge_hand.hand.poses import POSES
from edge_hand.hand.skeleton import ALPHA_RANGE, ANGLE_LIMITS_RAD, ANGLE_NAMES, BETA_RANGE
from edge_hand.hand.template import template
from edge_hand.trainer.synth.poses import penetrates, sample_angles, sample_shape, sample_view, segment_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[Any]
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
    angles = np.stack([sample_angles(T, rng) for _ in range(200)])
    low, high = ANGLE_LIMITS_RAD.T
    reach = (angles.max(0) - angles.min(0)) / (high - low)
    assert reach.min() > 0.75, ANGLE_NAMES[int(reach.argmin())]


@pytest.mark.parametrize("name", POSES)
def test_a_named_hand_shape_keeps_its_limits_and_does_not_penetrate(name: str) -> None:
    assert inside_limits(POSES[name])
    assert not penetrates(T, POSES[name][None])[0]


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


def sampled_lengths_mm(n: int = 500) -> Array:
    """(n,) wrist to the tip of the middle finger of a flat hand."""
    rng = np.random.default_rng(0)
    alpha, beta = (np.stack(values) for values in zip(*(sample_shape(rng) for _ in range(n)), strict=True))
    assert ALPHA_RANGE[0] <= alpha.min() and alpha.max() <= ALPHA_RANGE[1]
    assert BETA_RANGE[0] <= beta.min() and beta.max() <= BETA_RANGE[1]
    joints = forward_kinematics(T, np.zeros((n, 26)), alpha, beta).joints_m
    return np.asarray(1000 * np.linalg.norm(joints[:, 12] - joints[:, 0], axis=1))


def test_nine_of_ten_sampled_shapes_are_hands_of_adult_length() -> None:
    least, middle, most = np.percentile(sampled_lengths_mm(), [5, 50, 95])
    assert 145 < least < 165
    assert 180 < middle < 195
    assert 210 < most < 225


def test_no_sampled_shape_is_far_from_an_adult_hand() -> None:
    length_mm = sampled_lengths_mm()
    assert length_mm.min() > 125 and length_mm.max() < 260


@SOME
@given(seeds)
def test_a_sampled_view_is_a_rotation(seed: int) -> None:
    rotation = sample_view(np.random.default_rng(seed))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-13)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_sampled_views_show_the_hand_from_every_side_and_most_often_palm_or_back() -> None:
    rng = np.random.default_rng(0)
    back = np.stack([sample_view(rng)[:, 2] for _ in range(400)])  # where the back of the hand looks
    assert back.min(0).max() < -0.85 and back.max(0).min() > 0.85
    facing = np.abs(back[:, 2]) > 0.5
    assert 0.65 < facing.mean() < 0.85  # all of one half and half of the other
    assert 0.35 < (back[facing, 2] > 0).mean() < 0.65
