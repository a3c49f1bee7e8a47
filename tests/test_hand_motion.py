"""Whether the hand moved enough to calibrate with: what is measured of a known motion, and what is then asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edge_hand.calibration.gate import Motion, lacks, measure
from edge_hand.calibration.observe import Sight
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.se3 import so3_exp
from edge_hand.hand.skeleton import PALM

Array = Any

LENS = Intrinsics(848, 480, 425.0, 425.0, 423.5, 239.5)
HAND = np.random.default_rng(0).normal(0, 0.03, (21, 3))
HAND -= HAND[PALM].mean(0)  # turned about its palm, which stays where it is
NAMES = ["a", "b"]
TIMES = np.arange(0, 12, 1 / 30)
ENOUGH = Motion(
    np.array([0.10, 0.06, 0.04]), np.eye(3), np.array([0.6, 0.4, 0.0]), 10.0, 0.3, np.ones(2), np.array([9.0, 9.0])
)  # fmt: skip
OTHER_WAYS = np.array([[0.0, 0, 1], [1, 0, 0], [0.1, -0.99, 0]])  # axes: far, across, and down, which is up too


def moved(
    times: Array = TIMES, place: Any = (0.15, 0.1, 0.08), turn: Any = (0.5, 0.4, 0.3), start_s: float = 0.0
) -> Sight:
    """A hand that swings at 3, 4 and 5 turns in 12 s: place m and turn rad are how far, an axis each."""
    phase = 2 * np.pi / 12 * times[:, None] * [3, 4, 5]
    joints = HAND @ np.swapaxes(so3_exp(np.sin(phase + 1) * turn), 1, 2)
    return Sight("c", "depth", LENS, times + start_s, joints + (np.sin(phase) * place + [0, 0, 0.6])[:, None])


def seen_only(sight: Sight, where: Array) -> Sight:
    joints = np.where(where[:, None, None], sight.joints_m, np.nan)
    return Sight(sight.serial, sight.stream, sight.intrinsics, sight.times_s, joints)


def test_a_motion_that_has_everything_lacks_nothing() -> None:
    assert lacks(ENOUGH, NAMES) == []
    assert lacks(ENOUGH._replace(seen=np.array([1.0, 0.11])), NAMES) == []
    assert lacks(measure([moved(), moved()]), NAMES) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"speed_m_s": 0.9}, "the hand moves at 0.9 m/s: move it slower"),
        ({"seconds": 7.0}, "the hand was seen for 7 s: move it for 8 s or more"),
        (
            {"spread_m": np.full(3, 0.02)},
            "the hand stays in one place: move it through the whole volume, near and far, left and right",
        ),
        (
            {"spread_m": np.array([0.1, 0.02, 0.01])},
            "the hand moves on a line: move it up and down and nearer and farther, too",
        ),
        ({"spread_m": np.array([0.1, 0.06, 0.02])}, "the hand moves in a plane: move it nearer and farther, too"),
        (
            {"spread_m": np.array([0.1, 0.06, 0.02]), "axes": OTHER_WAYS},
            "the hand moves in a plane: move it up and down, too",
        ),
        ({"turn_rad": np.array([0.6, 0.2, 0.0])}, "turn the hand more: palm up and down, fingers left and right"),
        ({"seen": np.array([1.0, 0.09])}, "b never sees the hand: turn the camera or move the hand into its view"),
        (
            {"shared_s": np.array([9.0, 1.9])},
            "b sees the hand only when no other camera does: move the hand where both see it",
        ),
    ],
)
def test_each_thing_that_is_missing_is_asked_for_alone(change: dict[str, Any], words: str) -> None:
    assert lacks(ENOUGH._replace(**change), NAMES) == [words]


def test_a_camera_that_never_sees_the_hand_is_not_blamed_twice() -> None:
    blind = ENOUGH._replace(seen=np.array([1.0, 0.0]), shared_s=np.array([9.0, 0.0]))
    assert [text.split()[:3] for text in lacks(blind, NAMES)] == [["b", "never", "sees"]]
    nobody = ENOUGH._replace(seen=np.zeros(2), shared_s=np.zeros(2), seconds=0.0, spread_m=np.zeros(3))
    assert [text.split()[:3] for text in lacks(nobody, NAMES)] == [[name, "never", "sees"] for name in NAMES]


def test_a_short_motion_is_not_said_to_be_shared_too_little() -> None:
    assert lacks(ENOUGH._replace(seconds=4.0, shared_s=np.array([1.1, 1.1])), NAMES) == [
        "the hand was seen for 4 s: move it for 8 s or more"
    ]


def test_how_far_and_how_fast_the_hand_went_is_measured() -> None:
    motion = measure([moved(), moved()])
    assert motion.spread_m == pytest.approx(np.array([0.15, 0.1, 0.08]) / 2**0.5, rel=0.03)
    assert np.abs(motion.axes) == pytest.approx(np.eye(3), abs=0.1)
    assert motion.turn_rad == pytest.approx(np.array([0.5, 0.4, 0.3]) / 2**0.5, rel=0.15)
    assert motion.speed_m_s == pytest.approx(0.28, rel=0.1)
    assert motion.seconds == pytest.approx(12, abs=0.2) and motion.shared_s == pytest.approx([12, 12], abs=0.2)


def test_axes_and_spread_are_those_of_the_hand_s_own_ways() -> None:
    slanted = measure([moved(place=(0.1, 0.0, 0.2), turn=(0.0, 0.0, 0.0))] * 2)
    assert np.abs(slanted.axes[:2]) == pytest.approx(np.array([[0, 0, 1.0], [1, 0, 0]]), abs=0.1)
    assert slanted.spread_m == pytest.approx([0.141, 0.071, 0], abs=0.004) and slanted.turn_rad.max() < 1e-6


def test_a_hand_seen_wildly_elsewhere_for_a_moment_has_not_moved() -> None:
    still = moved(place=(0.01, 0.01, 0.01), turn=(0.5, 0.4, 0.3))
    still.joints_m[::20] += [0.0, 0.0, 3.0]
    assert measure([still, still]).spread_m.max() < 0.025


def test_only_the_time_with_a_hand_counts_and_the_camera_that_saw_most_speaks() -> None:
    half = seen_only(moved(), TIMES < 6)
    motion = measure([half, half])
    assert motion.seconds == pytest.approx(6, abs=0.2) and motion.seen == pytest.approx([0.5, 0.5])
    assert motion.speed_m_s > 0.2  # where nothing was seen it did not stand still
    assert measure([half, moved()]).seconds == pytest.approx(12, abs=0.2)


def test_what_two_cameras_share_is_counted_on_one_clock() -> None:
    early, late = TIMES < 8, TIMES > 6  # of the first camera's clock
    a = seen_only(moved(), early)
    for off_s in (0.0, 3.0, 5000.0):
        b = seen_only(moved(start_s=-off_s), late)
        assert measure([a, b], np.array([0.0, off_s])).shared_s == pytest.approx([2, 2], abs=0.2)
        assert measure([b, a], np.array([off_s, 0.0])).shared_s == pytest.approx([2, 2], abs=0.2)
    third = seen_only(moved(), TIMES < 0)
    assert measure([a, seen_only(moved(), late), third]).shared_s == pytest.approx([2, 2, 0], abs=0.2)


def test_clocks_that_may_not_be_one_say_nothing_of_what_is_shared() -> None:
    apart = measure([moved(), moved(start_s=8.0)])
    assert np.isnan(apart.shared_s).all() and lacks(apart, NAMES) == []
    assert measure([moved(), moved(start_s=5.0)]).shared_s == pytest.approx([7, 7], abs=0.2)


def test_a_camera_without_a_frame_or_a_hand_has_seen_nothing() -> None:
    nothing = Sight("c", "depth", LENS, np.zeros(0), np.zeros((0, 21, 3)))
    for blind in (nothing, seen_only(moved(), TIMES < 0.2), seen_only(moved(), TIMES < 0)):
        motion = measure([blind, blind])
        assert motion.seconds == 0 and lacks(motion, NAMES)[0].startswith("a never sees the hand")
    assert measure([moved(), nothing]).shared_s.tolist() == [0, 0]
    flashes = seen_only(moved(), np.arange(len(TIMES)) % 5 == 0)  # of which no path can be made
    assert lacks(measure([flashes, flashes]), NAMES)[0].startswith("the hand was seen for 0 s")
    leaps = moved(place=(0.0, 0.0, 0.0))
    leaps.joints_m[: len(TIMES) // 2] += [0.0, 0.0, 2.0]
    assert "the hand stays in one place" in lacks(measure([leaps, leaps]), NAMES)[0]
