"""Whose number and shape a hand gets: its own, at any frame rate, and no ghost's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.engines import Engine
from edge_hand.edge.finder import Part
from edge_hand.edge.look import Look
from edge_hand.edge.person import Person
from edge_hand.edge.refusals import REFUSED_NS
from edge_hand.edge.tracker import MAYBE, PUBLISH, REMEMBERED_NS, SEARCH_NS, Tracker
from edge_hand.hand.frames import DepthFrame, HandRoi
from edge_hand.hand.kinematics import AVERAGE

FRAME_NS = 33_333_333
DOUBT = (MAYBE + PUBLISH) / 2


@pytest.fixture(scope="module")
def shown() -> DepthFrame:
    with SyntheticCamera(0, "424x240@30", fps=0) as camera:
        return camera.frame(0)


def at(frame: DepthFrame, k: float) -> DepthFrame:
    """The frame k thirtieths of a second later."""
    return replace(frame, t_ns=frame.t_ns + round(k * FRAME_NS))


def empty(frame: DepthFrame) -> DepthFrame:
    return replace(frame, depth=np.full_like(frame.depth, 2000))


def known(engine: Engine, shown: DepthFrame) -> Tracker:
    """A tracker that has followed a hand of a held shape for four frames."""
    tracker = Tracker(engine, new_person=lambda: Person(AVERAGE))
    for k in range(4):
        hands = tracker.process(at(shown, k))
    assert [hand.id for hand in hands] == [1]
    tracker.new_person = Person
    return tracker


def test_a_ghost_on_trial_takes_nobody_s_number_and_shape(
    engine: Engine, shown: DepthFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = known(engine, shown)
    for k in range(4, 12):
        tracker.process(at(empty(shown), k))
    assert not tracker.tracks
    with monkeypatch.context() as doubtful:
        doubtful.setattr("edge_hand.edge.tracker.belief", lambda look, score: DOUBT)
        tried = [tracker.process(at(shown, k)) for k in range(12, 22)]
        assert not any(tried)
    later = 22 + REFUSED_NS / FRAME_NS
    for k in range(3):
        hands = tracker.process(at(shown, later + k))
    assert [hand.id for hand in hands] == [1] and tracker.tracks[0].person.held


def test_a_doubtful_proposal_elsewhere_does_not_take_a_hand_that_is_missed_for_a_frame(
    engine: Engine, shown: DepthFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = known(engine, shown)
    monkeypatch.setattr("edge_hand.edge.tracker.belief", lambda look, score: DOUBT)
    moved = np.roll(shown.depth, -100, 1)
    moved[shown.depth < 1000] = 0  # no reading where the hand should be: it may be there
    hands = tracker.process(replace(at(shown, 4), depth=moved))
    assert [(hand.id, hand.pose.state) for hand in hands] == [(1, "predicted")]


@pytest.mark.parametrize("fps", [15, 30, 60, 90])
def test_a_doubtful_hand_has_as_many_searches_to_prove_itself_at_any_rate(
    engine: Engine, shown: DepthFrame, fps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun_ns = shown.t_ns

    def belief(look: Look, score: float) -> float:
        return DOUBT if tracker._t_ns - begun_ns < SEARCH_NS else PUBLISH + 4

    monkeypatch.setattr("edge_hand.edge.tracker.belief", belief)
    tracker = Tracker(engine)
    hands = [tracker.process(at(shown, 30 * k / fps)) for k in range(round(0.2 * fps) + 1)]
    assert hands[0] == [] and [hand.id for hand in hands[-1]] == [1]


def test_the_nearest_proposal_says_what_a_followed_hand_is(
    engine: Engine, shown: DepthFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = known(engine, shown)
    (track,) = tracker.tracks

    class Two:
        judges, threshold = True, 0.5

        def __call__(self, frame: DepthFrame, part: Part | None = None) -> list[HandRoi]:
            near, far = track.centre_m + (0.01, 0, 0), track.centre_m + (0.06, 0, 0)
            return [HandRoi("left", far, 0.25, 0.9), HandRoi("right", near, 0.25, 0.6)]

    scores: list[float] = []
    monkeypatch.setattr("edge_hand.edge.tracker.belief", lambda look, score: scores.append(score) or 5.0)
    tracker.finder = Two()
    tracker.process(at(shown, 4 + SEARCH_NS / FRAME_NS))
    assert scores == [0.6]


def test_two_missing_hands_are_found_again_as_themselves(engine: Engine, shown: DepthFrame) -> None:
    tracker = known(engine, shown)
    (track,) = tracker.tracks
    other = replace(track, centre_m=track.centre_m + (0.2, 0, 0), id=2, right_votes=-5.0)
    tracker.tracks.insert(0, other)
    looks: dict[object, Look] = {}
    roi = HandRoi("right", track.centre_m, 0.25, 0.9)
    assert tracker._find_again(roi, at(shown, 9), looks)  # type: ignore[arg-type]
    assert list(looks) == [track]


def test_a_hand_that_is_seen_is_not_found_again_as_the_one_beside_it(
    engine: Engine, shown: DepthFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = known(engine, shown)
    (track,) = tracker.tracks
    beside = track.centre_m + (0.09, 0, 0)
    other = replace(track, centre_m=beside, id=2, right_votes=8.0, smoother=tracker.arithmetic.smoother())
    tracker.tracks.append(other)
    follow = tracker._follow
    monkeypatch.setattr(tracker, "_follow", lambda t, frame: follow(t, frame) if t is track else None)
    rois = [HandRoi("right", track.centre_m, 0.25, 0.9), HandRoi("right", beside, 0.25, 0.9)]
    monkeypatch.setattr(tracker, "finder", lambda frame, part: rois)
    tracker.finder.judges = True
    hands = tracker.process(at(shown, 4 + SEARCH_NS / FRAME_NS))
    assert [hand.id for hand in hands] == [1]


def test_a_hand_that_jumped_has_not_the_speed_of_the_jump(engine: Engine, shown: DepthFrame) -> None:
    tracker = known(engine, shown)
    for k in (4, 5):
        hands = tracker.process(replace(at(shown, k), depth=np.roll(shown.depth, -100, 1)))
    assert [(hand.id, hand.pose.state) for hand in hands] == [(1, "tracked")]
    assert hands[0].motion is not None and np.linalg.norm(hands[0].motion.velocity_m_s) < 0.5


def test_a_known_person_is_still_known_when_another_hand_has_come(engine: Engine, shown: DepthFrame) -> None:
    tracker = known(engine, shown)
    person = tracker.person
    for k in range(4, 12):
        tracker.process(at(empty(shown), k))
    late = 4 + REMEMBERED_NS / FRAME_NS
    for k in range(3):
        hands = tracker.process(at(shown, late + k))
    assert [hand.id for hand in hands] == [2]
    assert tracker.person is person and person is not None and person.held
