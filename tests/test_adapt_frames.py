"""Which of the hands that a recording shows teach: those that stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame

pytest.importorskip("numba")

from edge_hand.trainer.adapt import frames

Watch = Callable[[list[frames._Seen], bool], list[frames.Moment]]


def seen(t_s: float, x: float, votes: float = 1.0) -> frames._Raw:
    return frames._Raw([], 0, round(t_s * 1e9), frames._Seen(np.array([x, 0.0, 0.5]), votes))


def lasting(raw: list[frames._Raw], step_s: float, seconds: float) -> list[frames._Raw]:
    return [one for run in frames._lasting(raw, round(step_s * 1e9), round(seconds * 1e9)) for one in run]


def test_hands_that_come_and_go_teach_nothing() -> None:
    hand = [seen(i / 10, 0.02 * i) for i in range(25) if i not in (5, 6, 7)]  # not seen for 0.4 s
    other = [seen(i / 10, 0.9 - 0.01 * i) for i in range(4, 15)]  # for 1 s, half a metre away
    both = sorted(hand + other, key=lambda one: one.t_ns)
    assert lasting(both, 0.1, 60) == hand
    assert lasting(other, 0.1, 60) == []
    assert lasting(other, 0.1, 1.5) == other  # most of what there is
    assert lasting([], 0.1, 60) == lasting(other[:1], 0.1, 0.1) == []


@pytest.mark.parametrize("step_s", [0.07, 0.4, 0.5, 0.8, 3.0])
def test_nor_do_they_where_a_long_recording_is_looked_at_seldom(step_s: float) -> None:
    hand = [seen(i * step_s, 0.1 * (i % 3)) for i in range(200) if i % 20]
    false = [seen(i * step_s, 1.5) for i in range(200) if i % 50 in (7, 8)]
    both = sorted(hand + false, key=lambda one: one.t_ns)
    assert lasting(both, step_s, 200 * step_s) == hand


class Source:
    """A source of so many frames."""

    name, fps, intrinsics, wall_offset_ns = "source", 30.0, Intrinsics(4, 4, 1, 1, 0, 0), 0

    def __init__(self, n: int) -> None:
        self.n = n

    def frames(self) -> Iterator[DepthFrame]:
        for i in range(self.n):
            yield DepthFrame("source", i, i * 33_000_000, np.full((4, 4), 500, np.uint16), 0.001, self.intrinsics)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """The moments of a recording that shows these hands, one a frame."""

    def moments(hands: list[frames._Seen], single: bool) -> list[frames.Moment]:
        left = [[hand] for hand in hands]
        monkeypatch.setattr(frames, "_hands", lambda *_: left.pop(0))
        source = Source(len(hands))
        found, n = frames._watch([(source, frames.alone(source))], None, 0, 1.0, 900, single, lambda _: None)  # type: ignore[arg-type, list-item]
        assert n == len(hands)
        return found

    monkeypatch.setattr(frames, "Tracker", lambda *_, **__: type("T", (), {"reset": lambda _: None})())
    monkeypatch.setattr(frames, "cut_window", lambda *_: frames.View(np.zeros((2, 2), np.uint16), 0.5, np.eye(4), 0))
    return moments


@pytest.mark.parametrize("single", [True, False])
def test_of_single_frames_all_hands_teach(watch: Watch, single: bool) -> None:
    hands = [seen(0, 0.0).hand, seen(0, 0.6).hand]  # farther than any hand comes from one frame to the next
    assert len(watch(hands, single)) == (2 if single else 0)


@pytest.mark.parametrize("wrong", [slice(0, 20), slice(70, 90), slice(140, 160)])
def test_looks_in_a_row_with_the_wrong_side_turn_no_hand(watch: Watch, wrong: slice) -> None:
    votes = np.full(160, 3.0)
    votes[wrong] = -3.0
    assert not any(moment.is_left for moment in watch([seen(0, 0, v).hand for v in votes], False))


def test_a_recording_of_one_hand_and_then_the_other_teaches_each_its_own_side(watch: Watch) -> None:
    votes = [(3.0 if i < 95 else -3.0) * (1 if i % 10 else -0.5) for i in range(160)]  # a tenth of them wrong
    for x in (0.0, 0.9):  # the other hand comes where the first was, or elsewhere
        moments = watch([seen(0, x * (i >= 95), v).hand for i, v in enumerate(votes)], False)
        assert [m.seq for m in moments] == list(range(160))
        assert [m.is_left for m in moments if abs(m.seq - 94.5) > 2] == [False] * 93 + [True] * 63  # of the change, two
    assert [m.is_left for m in watch([seen(0, 0, v).hand for v in votes], True)] == [v < 0 for v in votes]


class Sees:
    """A tracker that follows right and left hands at these places, m along x."""

    def __init__(self, *hands: tuple[float, str]) -> None:
        self.hands, self.tracks = hands, ()

    def process(self, _: DepthFrame) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                id=i, pose=SimpleNamespace(state="tracked", side=side, side_conf=0.99, joints_m=np.full((21, 3), x))
            )
            for i, (x, side) in enumerate(self.hands)
        ]


def test_two_hands_of_one_camera_stay_two_however_near_and_those_of_two_cameras_become_one() -> None:
    left, right = (0.0, "left"), (0.05, "right")  # 8.7 cm apart
    again = [(0.043, "right"), (0.004, "left"), (0.9, "right")]
    for cameras in ([[left, right]], [[left, right], again[:2]], [[left], [right, left]], [again[:2], again]):
        trackers, n = [Sees(*hands) for hands in cameras], len(cameras)
        found = frames._hands(trackers, [next(Source(1).frames())] * n, [np.eye(4)] * n)  # type: ignore[arg-type]
        sides = {hand.votes < 0: hand.centre_m[0] for hand in found[:2]}
        assert len(found) == max(map(len, cameras)), cameras
        assert sides[True] < 0.005 and sides[False] > 0.04, (cameras, sides)
