"""Where the tracker lets the finder look: all of the frame and closer parts of it by turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.engines import Engine
from edge_hand.edge.finder import Part, closer
from edge_hand.edge.tracker import CONFIRM_NS, SEARCH_NS, UNSEEN, Tracker
from edge_hand.hand.frames import DepthFrame, HandRoi
from test_tracker import blank


@pytest.fixture(scope="module")
def frames() -> list[DepthFrame]:
    with SyntheticCamera(0, "424x240@30", fps=0) as camera:
        return [camera.frame(seq) for seq in range(4)]


class Asked:
    """A finder that proposes what it is told, and remembers of which parts it was asked."""

    judges, threshold = True, 0.5

    def __init__(self, *places: tuple[float, float, float]) -> None:
        self.places, self.parts = [np.array(place) for place in places], list[Part | None]()

    def __call__(self, frame: DepthFrame, part: Part | None = None) -> list[HandRoi]:
        self.parts.append(part)
        return [HandRoi("right", place, 0.25, 0.9) for place in self.places]


def test_all_of_the_frame_and_closer_parts_are_searched_by_turns(engine: Engine, frames: list[DepthFrame]) -> None:
    finder = Asked()
    tracker = Tracker(engine, finder)
    parts = closer(frames[0].intrinsics)
    for k in range(2 * len(parts) + 1):
        tracker.process(replace(blank(frames[0], 2000), t_ns=k * SEARCH_NS))
    assert finder.parts[::2] == [None] * (len(parts) + 1) and set(finder.parts[1::2]) == set(parts)


def test_what_is_searched_from_nothing_begins_with_all_of_the_frame(engine: Engine, frames: list[DepthFrame]) -> None:
    for begin in (Tracker.reset, Tracker.lose, lambda _: None):  # at last the clock goes back
        finder = Asked()
        tracker = Tracker(engine, finder)
        tracker.process(replace(blank(frames[0], 2000), t_ns=10**9))
        begin(tracker)
        tracker.process(replace(blank(frames[0], 2000), t_ns=10**9 - 1))
        assert finder.parts == [None, None]


def test_no_parts_are_searched_while_there_is_no_room(engine: Engine, frames: list[DepthFrame]) -> None:
    tracker = Tracker(engine, max_hands=1)
    for frame in frames[:2]:
        tracker.process(frame)
    tracker.finder = finder = Asked()
    for k in range(1, 4):
        tracker.process(replace(frames[2], t_ns=frames[1].t_ns + k * CONFIRM_NS))
    assert finder.parts == [None] * 3 and len(tracker.tracks) == 1


def test_a_missing_hand_is_searched_for_in_all_of_the_frame(engine: Engine, frames: list[DepthFrame]) -> None:
    tracker = Tracker(engine)
    for frame in frames[:2]:
        tracker.process(frame)
    tracker.finder = finder = Asked()
    for k in range(4):  # it is looked for so long
        tracker.process(replace(blank(frames[2], 2000), t_ns=frames[1].t_ns + (k + 1) * 33_000_000))
    assert finder.parts == [None] * 4


def test_what_a_part_does_not_show_is_not_doubted_for_it(
    engine: Engine, frames: list[DepthFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(engine)
    for frame in frames[:2]:
        tracker.process(frame)
    (track,) = tracker.tracks
    asked: list[float] = []
    monkeypatch.setattr("edge_hand.edge.tracker.belief", lambda look, score: asked.append(score) or 5.0)
    for shown in (True, False):
        monkeypatch.setattr("edge_hand.edge.tracker.shows", lambda part, centre, shown=shown: shown)
        looks = {track: tracker._follow(track, frames[2])}
        tracker._confirm([], looks, Part(1.5, 0.0, 0.0))  # type: ignore[arg-type]
    assert asked == [UNSEEN]
