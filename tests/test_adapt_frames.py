"""Which of the hands that a recording shows teach: those that stay."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame

pytest.importorskip("numba")

from edge_hand.trainer.adapt import frames


def seen(t_s: float, x: float) -> frames._Raw:
    return frames._Raw([], 0, round(t_s * 1e9), frames._Seen(np.array([x, 0.0, 0.5]), 1.0))


def lasting(raw: list[frames._Raw], step_s: float, seconds: float) -> list[frames._Raw]:
    return frames._lasting(raw, round(step_s * 1e9), round(seconds * 1e9))


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


class Two:
    """A source of two frames."""

    name, fps, intrinsics, wall_offset_ns = "two", 30.0, Intrinsics(4, 4, 1, 1, 0, 0), 0

    def frames(self) -> Iterator[DepthFrame]:
        for i in range(2):
            yield DepthFrame("two", i, i * 33_000_000, np.full((4, 4), 500, np.uint16), 0.001, self.intrinsics)


@pytest.mark.parametrize("single", [True, False])
def test_of_single_frames_all_hands_teach(monkeypatch: pytest.MonkeyPatch, single: bool) -> None:
    hands = [[seen(0, 0.0).hand], [seen(0, 0.6).hand]]  # farther than any hand comes from one frame to the next
    monkeypatch.setattr(frames, "_hands", lambda *_: hands.pop(0))
    monkeypatch.setattr(frames, "Tracker", lambda *_, **__: type("T", (), {"reset": lambda _: None})())
    monkeypatch.setattr(frames, "cut_window", lambda *_: frames.View(np.zeros((2, 2), np.uint16), 0.5, np.eye(4), 0))
    two = Two()
    moments, n = frames._watch([(two, frames.alone(two))], None, 0, 1.0, 10, single, lambda _: None)  # type: ignore[arg-type, list-item]
    assert n == 2 and len(moments) == (2 if single else 0)
