"""A hand that leaves the picture is lost, one too near for the sensor after a while; both are found again."""

from __future__ import annotations

from itertools import groupby
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba draws the clips")

from edge_hand.edge.engines import open_engine
from edge_hand.edge.finder import NEAR_M
from edge_hand.edge.tracker import Track, Tracker
from edge_hand.trainer.evaluate_steadiness import clip
from numpy.typing import NDArray

FPS, HOLD, MOVE = 30, 4, 6
FRAMES = np.cumsum([HOLD, MOVE, MOVE, MOVE])  # at rest, on its way out, away, on its way back, at rest


@pytest.mark.parametrize(
    ("way_m", "states"),
    [
        # Where it should be there is no picture any more: it is not predicted.
        ((-0.5, 0, 0), ["tracked", "none", "tracked"]),
        ((0.5, 0, 0), ["tracked", "none", "tracked"]),
        ((0, 0, -0.36), ["tracked", "predicted", "none", "tracked"]),
    ],
    ids=["out at the left", "out at the right", "nearer than the sensor can measure"],
)
def test_a_hand_that_leaves_is_lost_and_found_again(way_m: tuple[float, float, float], states: list[str]) -> None:
    tracker, said, ids = Tracker(open_engine(), max_hands=1), [], set()

    def shift(t_s: float) -> NDArray[np.float64]:
        return np.interp(t_s * FPS, FRAMES, [0, 1, 1, 0]) * np.array(way_m)

    for frame, truth in clip(5, FRAMES[-1] + HOLD, FPS, shift, 1.0, False):
        hands = tracker.process(frame)
        said.append(hands[0].pose.state if hands else "none")
        for hand in hands:
            ids.add(hand.id)
            off_m = np.linalg.norm(hand.pose.joints_m - truth, axis=1)
            assert off_m.max() < (0.04 if hand.pose.state == "tracked" else 0.12), (frame.seq, said)
    assert [state for state, _ in groupby(said)] == states, said
    assert len(ids) == 1


def test_a_hand_whose_side_is_in_doubt_when_it_comes_back_keeps_its_number() -> None:
    """Seen anew it is taken for a left hand at first."""
    tracker, frames = Tracker(open_engine(), max_hands=1), np.cumsum([10, 8, 9, 8])

    def shift(t_s: float) -> NDArray[np.float64]:
        return np.interp(t_s * FPS, frames, [0, 1, 1, 0]) * np.array([0, 0, -0.4])

    seen = []
    for frame, _ in clip(1, frames[-1] + 12, FPS, shift, 1.0, False):
        seen.append([(hand.id, hand.pose.side) for hand in tracker.process(frame)])
    assert [] in seen and seen[-1] == [(1, "right")]
    assert {one for some in seen for one in some} <= {(1, "right"), (1, "unknown")}


def test_a_hand_in_doubt_takes_the_number_of_one_of_the_other_side_and_not_its_side() -> None:
    tracker, at = Tracker(open_engine()), np.array([0, 0, 0.4])
    new = Track(at, 33_000_000, 3.0, published=True, measured=1)
    tracker.tracks, tracker._lost = [new], [Track(at, 0, -20.0, id=1, published=True, measured=9)]
    tracker._recognise(SimpleNamespace(t_ns=66_000_000), {new: SimpleNamespace(centre_m=at)})
    assert new.id == 1 and new.right_votes == 3.0


def test_a_hand_that_comes_to_rest_just_beyond_the_nearest_distance_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracker, centre = Tracker(open_engine()), np.array([0, 0, NEAR_M + 0.003])
    monkeypatch.setattr(tracker, "_look_for", lambda track, frame, aim, **_: aim)
    track = Track(centre, 0, 5.0, velocity_m_s=np.array([0, 0, -0.08]), measured=9)
    assert tracker._follow(track, SimpleNamespace(t_ns=50_000_000)) is None  # it should be nearer than that
    track.move(centre, 50_000_000)
    np.testing.assert_array_equal(tracker._follow(track, SimpleNamespace(t_ns=83_000_000)), centre)


def test_a_hand_that_was_not_seen_where_it_rested_is_looked_for_where_it_should_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracker, centre = Tracker(open_engine()), np.array([0.004, 0, 0.4])
    seen, looked = iter([True, False, True]), []
    monkeypatch.setattr(
        tracker, "_look_for", lambda track, frame, aim, **_: looked.append(aim) or (aim if next(seen) else None)
    )
    track = Track(centre, 0, 5.0, aim_m=np.array([0, 0, 0.4]), measured=9)
    for k in range(3):
        tracker._follow(track, SimpleNamespace(t_ns=33_000_000 * (k + 1)))
    np.testing.assert_array_equal(looked, [[0, 0, 0.4], [0, 0, 0.4], centre])
