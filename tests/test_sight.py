"""One camera's view: hands and depth points that come and go between its messages, and clocks of recordings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edge_hand.calibration.sight import POINTS, View, clock_offsets_ns
from edge_hand.hand.messages import CloudMessage, HandCloud, JointsMessage
from test_fuse import a_rig, told
from test_fuse_sides import moment_ns


def view_of(*messages: JointsMessage | CloudMessage) -> View:
    view = View(0, a_rig(1).cameras[0])
    for message in messages:
        (view.take_cloud if isinstance(message, CloudMessage) else view.take)(message)
    return view


def cloud(seq: int, *hands: HandCloud) -> CloudMessage:
    return CloudMessage("cam0", seq, told(a_rig(1), 0, seq).t_capture_ns, 0, 0, None, hands)


def test_recordings_are_moved_to_the_wall_clock_only_where_all_know_it_and_hosts_differ() -> None:
    day = 86_400_000_000_000
    assert clock_offsets_ns([day, day + 49_000_000]) == [0, 0]
    assert clock_offsets_ns([day, day + 51_000_000]) == [day, day + 51_000_000]
    assert clock_offsets_ns([day, 0, 2 * day]) == [0, 0, 0], "one does not know"


def test_angles_and_the_side_s_confidence_are_those_of_the_moment() -> None:
    messages = []
    for i, angle in ((0, 0.1), (4, 0.3)):
        message = told(a_rig(1), 0, i)
        (hand,) = message.hands
        messages.append(replace(message, hands=(replace(hand, angles_rad=np.full(20, angle, "f4")),)))
    (sighting,) = view_of(*messages).at(moment_ns(1))
    np.testing.assert_allclose(sighting.angles, 0.15, atol=1e-6)
    assert sighting.side_conf == pytest.approx(0.98) and sighting.score == pytest.approx(0.8)


def test_a_hand_that_is_in_one_of_two_messages_is_carried_from_there() -> None:
    rig = a_rig(1)
    first, gone = told(rig, 0, 0), replace(told(rig, 0, 2), hands=())
    (sighting,) = view_of(first, gone).at(moment_ns(1))
    assert sighting.carried_s == pytest.approx(1 / 60, abs=1e-6)
    again = told(rig, 0, 2, hand=7)
    assert [s.hand for s in view_of(first, again).at(moment_ns(1))] == [1]
    assert view_of(gone, told(rig, 0, 4)).at(moment_ns(3)) == []


def test_no_hand_is_younger_than_its_moment() -> None:
    (sighting,) = view_of(told(a_rig(1), 0, 5)).at(moment_ns(4))
    assert sighting.carried_s < 0 and sighting.age_ms == 0


def test_of_many_depth_points_some_are_taken_from_everywhere() -> None:
    points = np.linspace([0, 0, 0.5], [1, 1, 0.9], 1000).astype("f4")
    (sighting,) = view_of(told(a_rig(1), 0, 5), cloud(5, HandCloud(1, points))).at(moment_ns(5))
    assert POINTS / 2 <= len(sighting.points_m) <= POINTS
    np.testing.assert_allclose(sighting.points_m[[0, -1]], points[[0, -1]], atol=0.01)
    (few,) = view_of(told(a_rig(1), 0, 5), cloud(5, HandCloud(1, points[:POINTS]))).at(moment_ns(5))
    assert len(few.points_m) == POINTS


def test_a_hand_without_depth_points_of_its_own_has_none_and_a_hole_is_no_place_far_off() -> None:
    other, holes = HandCloud(2, np.full((60, 3), 0.5, "f4")), HandCloud(1, np.zeros((60, 3), "f4"))
    (sighting,) = view_of(told(a_rig(1), 0, 5), cloud(5, other)).at(moment_ns(5))
    assert sighting.points_m.shape == (0, 3)
    (sighting,) = view_of(told(a_rig(1), 0, 5), cloud(5, holes)).at(moment_ns(5))
    np.testing.assert_allclose(sighting.points_m, 0, atol=1e-6)
