"""What was observed, asked for other times: joints between frames, times in common, speeds, the palm's turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edge_hand.calibration.observe import (
    Cloud,
    ObserveError,
    Sight,
    bridged,
    common_times,
    different,
    joints_at,
    palm_rotation,
    slope,
)
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.se3 import so3_exp
from numpy.typing import NDArray
from test_fuse import truth_at

LENS = Intrinsics(64, 48, 40.0, 40.0, 31.5, 23.5)


def sight_of(times_s: list[float], values: list[float] | None = None, clouds: tuple[Cloud, ...] = ()) -> Sight:
    """A hand all of whose coordinates are one value a frame; NaN where none was seen."""
    joints = np.array(times_s if values is None else values)[:, None, None] * np.ones((1, 21, 3))
    return Sight("c", "depth", LENS, np.array(times_s), joints, clouds)


def first_at(sight: Sight, *times_s: float) -> NDArray[np.float64]:
    return np.asarray(joints_at(sight, np.array(times_s))[:, 20, 2])


def test_joints_are_told_up_to_the_first_and_the_last_frame_and_no_further() -> None:
    sight = sight_of([1.0, 1.1, 1.2, 1.3], [5.0, 6.0, 8.0, 9.0])
    at = first_at(sight, 0.99, 1.0, 1.125, 1.275, 1.3, 1.31)
    assert np.isnan(at[[0, 5]]).all() and at[1:5] == pytest.approx([5.0, 6.5, 8.75, 9.0])


def test_a_frame_or_two_without_a_hand_are_bridged_and_one_hand_alone_tells_nothing() -> None:
    nan = float("nan")
    sight = sight_of([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], [1.0, nan, 3.0, nan, nan, 6.0])
    assert sight.seen.tolist() == [True, False, True, False, False, True]
    at = first_at(sight, 0.1, 0.35)
    assert at[0] == pytest.approx(2.0) and np.isnan(at[1]), "0.2 s are two periods, 0.3 s three"
    assert np.isnan(first_at(sight_of([0.0, 0.1], [1.0, nan]), 0.0, 0.1)).all()
    assert np.isnan(first_at(sight_of([0.0, 0.1], [nan, nan]), 0.05)).all()


def test_the_period_is_that_of_most_frames_though_some_were_lost() -> None:
    assert sight_of([0.0, 0.1, 0.2, 0.3, 1.3]).period_s == pytest.approx(0.1)
    assert sight_of([0.0]).period_s == pytest.approx(1 / 30)


def test_a_stretch_of_time_has_its_start_and_not_its_end() -> None:
    clouds = tuple(Cloud(t, np.zeros((1, 3))) for t in (0.0, 1.0, 2.0, 3.0))
    part = sight_of([0.0, 1.0, 2.0, 3.0], clouds=clouds).between(1.0, 3.0)
    assert part.times_s.tolist() == part.joints_m[:, 0, 0].tolist() == [c.t_s for c in part.clouds] == [1.0, 2.0]


def test_times_in_common_are_those_that_any_two_may_share_by_the_references_clock() -> None:
    sights = [sight_of([0.0, 5.0]), sight_of([11.0, 16.0]), sight_of([0.0, 5.0])]
    times = common_times(sights, np.array([0.0, -10.0, 2.0]), 10.0)  # from 0, 1 and 2 s on, for 5 s
    assert times == pytest.approx(np.arange(1.0, 6.0, 0.1))
    assert len(common_times(sights[:2], np.zeros(2))) == 0
    assert len(common_times([sights[0], sight_of([])], np.zeros(2))) == 0


def test_the_palm_turns_as_the_hand_does_and_its_axes_point_to_the_fingers_and_to_the_forefinger() -> None:
    joints = np.stack([truth_at(t)[0] for t in (0.0, 0.4)])
    R = palm_rotation(joints)
    np.testing.assert_allclose(R.transpose(0, 2, 1) @ R, np.tile(np.eye(3), (2, 1, 1)), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(R), 1)
    fingers, forefinger = joints[:, 9] - joints[:, 0], joints[:, 5] - joints[:, 17]
    np.testing.assert_allclose((R[:, :, 0] * fingers).sum(1), np.linalg.norm(fingers, axis=1))
    assert ((R[:, :, 1] * forefinger).sum(1) > 0.05).all()
    np.testing.assert_allclose((R[:, :, 2] * forefinger).sum(1), 0, atol=1e-9)
    turn = so3_exp(np.array([0.5, -1.0, 2.0]))
    np.testing.assert_allclose(palm_rotation(joints @ turn.T + 3.0), turn @ R, atol=1e-9)


def test_speeds_are_a_second_s_also_across_a_hole_and_none_where_nothing_was_seen() -> None:
    t = np.arange(60) / 30
    values = np.stack([2 * t, np.full(60, np.nan), 1 - 3 * t], 1)
    values[20:23, 0] = np.nan
    speed = slope(values, 30.0)
    assert speed[10:-10, 0] == pytest.approx(2.0) and speed[10:-10, 2] == pytest.approx(-3.0)
    assert (speed[:, 1] == 0).all() and np.isfinite(speed).all()
    assert bridged(np.array([[np.nan], [1.0], [np.nan], [3.0]]))[:, 0].tolist() == [1.0, 1.0, 2.0, 3.0]


def test_one_camera_given_twice_is_named(tmp_path: Path) -> None:
    different(["a", "b"])
    with pytest.raises(ObserveError, match=r"^two sources are the same camera: a, b, a$"):
        different(["a", "b", "a"])
    with pytest.raises(ObserveError, match=r'a, b, a; if they are not, give each a name: "camera" in the JSON'):
        different(["a", "b", "a"], [str(tmp_path), "b.mcap", "c.mcap"])
