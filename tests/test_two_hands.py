"""Which hand is which, with an eye and a finder that say what they are told: sides, rivals, numbers, clocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from edge_hand.edge.engines import Engine
from edge_hand.edge.finder import Part
from edge_hand.edge.look import Look
from edge_hand.edge.refusals import REFUSED_NS
from edge_hand.edge.track import SIDE_LIMIT
from edge_hand.edge.tracker import DROP, FINDER_VOTES, PROBATION_NS, PUBLISH, REMEMBERED_NS, SEARCH_NS, Tracker
from edge_hand.hand.arrays import Array
from edge_hand.hand.frames import DepthFrame, HandRoi, Side
from edge_hand.hand.messages import WireHand
from test_track import AT, FRAME_NS, frame_at, hand, look_of

SECOND = 10**9
SEEN_M = 0.1  # an eye that looks as far off a hand as this sees it


class Stage:
    """Hands (theta (26,), whether left) and what eye and finder make of them."""

    threshold, judges = 0.4, True

    def __init__(self, engine: Engine, **given: Any) -> None:
        self.hands: list[tuple[Array, bool]] = []
        self.logit = 5.0  # how sure the eye is of the side
        self.score = 0.95  # of the finder's proposals
        self.sides: list[Side] | None = None  # that the finder says, else the true ones
        self.looked: list[tuple[Array, bool]] = []
        self.tracker = Tracker(engine, self, **given)
        self.tracker.eye = self  # type: ignore[assignment]

    def look(self, frame: DepthFrame, centre_m: Array, mirrored: bool, size: float = 1.0, calm: object = None) -> Look:
        self.looked.append((centre_m, mirrored))
        near = min(self.hands, key=lambda h: float(np.linalg.norm(middle(*h) - centre_m)), default=None)
        if near is None or np.linalg.norm(middle(*near) - centre_m) > SEEN_M:
            nothing = look_of(AT)
            return nothing._replace(prediction=replace(nothing.prediction, presence_logit=-5.0), centre_m=centre_m)
        theta, left = near
        look = look_of(theta, left)
        seen = replace(look.prediction, right_logit=self.logit if mirrored == left else -self.logit)
        return look._replace(prediction=seen, crop=replace(look.crop, mirrored=mirrored))

    def __call__(self, frame: DepthFrame, part: Part | None = None) -> list[HandRoi]:
        sides = self.sides or ["left" if left else "right" for _, left in self.hands]
        return [HandRoi(side, middle(*h), 0.25, self.score) for h, side in zip(self.hands, sides, strict=False)]

    def step(self, k: float) -> list[WireHand]:
        return self.tracker.process(frame_at(k))

    def follow(self, *hands: tuple[Array, bool], begin: int = 0) -> None:
        """Four frames of the hands."""
        self.hands = list(hands)
        for k in range(4):
            found = self.step(begin + k)
        assert [h.id for h in found] == list(range(1, len(hands) + 1))


def middle(theta: Array, left: bool) -> Array:
    return hand(theta, left)[0].mean(0)


def right_at(x_m: float, left: bool = False) -> tuple[Array, bool]:
    theta = AT.copy()
    theta[0] = -x_m if left else x_m
    return theta, left


def left_at(x_m: float) -> tuple[Array, bool]:
    return right_at(x_m, left=True)


@pytest.fixture
def stage(engine: Engine) -> Stage:
    return Stage(engine)


def test_two_hands_are_published_with_their_sides_and_no_third_is_begun(stage: Stage) -> None:
    stage.follow(right_at(0.2), left_at(-0.2))
    stage.hands.append(right_at(0.5))
    stage.tracker._searched_ns = -SECOND
    found = stage.step(4)
    assert [(h.id, h.pose.side) for h in found] == [(1, "right"), (2, "left")]
    for h, shown in zip(found, stage.hands, strict=False):
        assert np.linalg.norm(h.pose.joints_m - hand(*shown)[0], axis=1).mean() < 0.003
    assert len(stage.tracker.tracks) == 2


def test_of_two_hands_alike_the_less_certain_one_is_taken_for_the_other_side_s(stage: Stage) -> None:
    stage.follow(right_at(0.2), left_at(-0.2))
    stage.logit = 0.0
    stage.sides = ["unknown", "unknown"]
    sure, doubtful = stage.tracker.tracks
    doubtful.right_votes = 1.0
    for k in range(4, 8):
        stage.step(k)
    assert not sure.is_left and doubtful.is_left


@pytest.mark.parametrize("side", ["right", "left"])
def test_where_the_network_cannot_tell_the_finder_says_which_side_a_hand_is(stage: Stage, side: Side) -> None:
    stage.logit, stage.sides = 0.0, [side]
    stage.hands = [right_at(0.2)]
    stage.step(0)
    assert stage.tracker.tracks[0].is_left == (side == "left")
    stage.sides = ["left" if side == "right" else "right"]
    for k in range(1, 14):
        stage.step(k)
    assert stage.tracker.tracks[0].is_left == (side == "right")


def test_one_proposal_does_not_say_the_side_of_two_hands_that_are_near_it(stage: Stage) -> None:
    stage.follow(right_at(0.2), left_at(-0.2))
    stage.hands[1] = left_at(0.14)
    stage.logit, stage.sides = 0.0, ["right"]  # the finder sees one of them, the eye no side
    both = stage.tracker.tracks
    both[1].centre_m = middle(*stage.hands[1])
    before = [track.right_votes for track in both]
    stage.tracker._searched_ns = -SECOND
    stage.step(4)
    assert both[0].right_votes == pytest.approx(min(0.95 * 0.95 * before[0] + FINDER_VOTES, SIDE_LIMIT))
    assert both[1].right_votes == pytest.approx(0.95 * before[1])


def test_of_two_tracks_that_see_one_hand_the_one_it_was_foreseen_for_keeps_it(stage: Stage) -> None:
    stage.follow(right_at(0.2), left_at(-0.2))
    stage.hands = [right_at(0.2)]
    kept, rival = stage.tracker.tracks
    rival.centre_m, rival.velocity_m_s = kept.centre_m - (0.06, 0.0, 0.0), np.zeros(3)
    assert [(h.id, h.pose.state) for h in stage.step(4)] == [(1, "tracked"), (2, "predicted")]


@pytest.mark.parametrize("proposed", [False, True])
def test_the_hand_before_a_hidden_one_has_no_vote_on_that_one_s_side(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, proposed: bool
) -> None:
    stage.follow(right_at(0.2), left_at(-0.2))
    stage.hands = [right_at(0.2)]
    before, hidden = stage.tracker.tracks
    votes = hidden.right_votes
    if proposed:  # the finder, beside the hand that is seen
        beside = HandRoi("right", before.centre_m + (0.09, 0.0, 0.0), 0.25, 0.95)
        monkeypatch.setattr(Stage, "__call__", lambda stage, frame, part: [beside])
    off = (0.15 if proposed else -0.06, 0.0, 0.0)
    hidden.centre_m, hidden.velocity_m_s = before.centre_m + off, np.zeros(3)
    assert [(h.id, h.pose.state) for h in stage.step(4)] == [(1, "tracked"), (2, "predicted")]
    assert hidden.right_votes == votes


def test_a_hand_that_is_missed_is_searched_at_once_and_found_where_it_can_have_got_to(stage: Stage) -> None:
    stage.follow(right_at(0.2), left_at(-0.2))
    stage.tracker._searched_ns = 3 * FRAME_NS
    stage.hands[1] = left_at(-0.35)
    assert [(h.id, h.pose.state) for h in stage.step(4)] == [(1, "tracked"), (2, "tracked")]


def test_of_two_missing_hands_the_one_of_the_proposed_side_is_found_though_the_other_is_nearer(stage: Stage) -> None:
    stage.follow(right_at(0.2), left_at(-0.2))
    stage.hands = [left_at(-0.05), right_at(0.33)]
    found = stage.step(4)
    assert [(h.id, h.pose.side, h.pose.state) for h in found] == [(1, "right", "tracked"), (2, "left", "tracked")]
    assert found[1].pose.joints_m[:, 0].mean() < found[0].pose.joints_m[:, 0].mean() - 0.2


def test_a_doubtful_proposal_near_by_does_not_take_a_hand_that_is_missed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.follow(right_at(0.2), left_at(-0.2))
    monkeypatch.setattr("edge_hand.edge.tracker.belief", lambda look, score: 0.5)
    stage.hands[1] = left_at(-0.35)
    assert [(h.id, h.pose.state) for h in stage.step(4)] == [(1, "tracked"), (2, "predicted")]


def test_a_hand_of_the_other_side_does_not_take_the_number_of_one_that_is_gone(stage: Stage) -> None:
    stage.follow(right_at(0.2))
    stage.hands = []
    for k in range(4, 10):
        stage.step(k)
    stage.hands = [left_at(-0.2)]
    for k in range(10, 13):
        found = stage.step(k)
    assert [(h.id, h.pose.side) for h in found] == [(2, "left")]
    stage.hands.append(right_at(0.2))
    for k in range(13, 17):
        found = stage.step(k)
    assert [(h.id, h.pose.side) for h in found] == [(2, "left"), (1, "right")]


def test_whose_hand_it_was_is_known_while_no_hand_is_there(stage: Stage) -> None:
    stage.follow(right_at(0.2))
    person = stage.tracker.person
    stage.hands = []
    for k in range(4, 12):
        stage.step(k)
    assert not stage.tracker.tracks and stage.tracker.person is person is not None


def test_a_hand_is_lost_at_once_when_no_frames_come_and_searched_at_once_when_they_do(stage: Stage) -> None:
    stage.follow(right_at(0.2))
    stage.tracker._searched_ns = 3 * FRAME_NS
    stage.tracker.lose()
    assert stage.tracker.tracks == []
    assert [h.id for h in stage.step(4)] == [1]


def test_a_hand_that_is_there_after_a_recording_s_long_gap_is_another_one_of_its_own_side(stage: Stage) -> None:
    stage.follow(right_at(0.2))
    theta, _ = right_at(0.2)
    theta[0] = -0.05  # a left hand in the same place
    stage.hands = [(theta, True)]
    late = 4 + REMEMBERED_NS / FRAME_NS
    found = [stage.step(late + k) for k in range(3)]
    assert {h.pose.side for hands in found for h in hands} == {"left"}
    assert [h.id for h in found[-1]] == [2]


def test_after_a_reset_a_hand_that_was_lost_before_it_is_another_one(stage: Stage) -> None:
    stage.follow(right_at(0.2))
    stage.tracker.lose()
    stage.tracker._refused.add(middle(*right_at(0.2)), 4 * FRAME_NS, 0.95)
    stage.tracker.reset()
    assert [h.id for h in stage.step(4)] == [2]


def test_when_the_clock_is_set_back_no_place_stays_refused_and_no_hand_remembered_for_ever(stage: Stage) -> None:
    late = 10**8
    stage.follow(right_at(0.2), begin=late)
    stage.hands = []
    for k in range(4, 12):
        stage.step(late + k)
    stage.tracker._refused.add(middle(*right_at(0.2)), (late + 12) * FRAME_NS, 0.95)
    stage.step(0)
    stage.hands = [right_at(0.2)]
    for k in range(4):
        found = stage.step(REMEMBERED_NS / FRAME_NS + 3 + k)
    assert [h.id for h in found] == [2]


@pytest.mark.parametrize("depth_m", [0.12, 0.02])
def test_a_hand_that_is_foreseen_behind_the_camera_is_not_looked_for(stage: Stage, depth_m: float) -> None:
    stage.follow(right_at(0.2))
    (track,) = stage.tracker.tracks
    track.centre_m, track.velocity_m_s = np.array([0.0, 0.0, depth_m]), np.array([0.0, 0.0, -3.0])
    stage.hands, stage.looked = [], []
    stage.step(5)
    assert all(centre[2] > 0 for centre, _ in stage.looked)


def test_a_hand_on_trial_that_is_never_believed_in_is_given_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_hand.edge.tracker.belief", lambda look, score: 0.5)
    stage.hands = [right_at(0.2)]
    assert not any(stage.step(k) for k in range(10)) and stage.tracker.tracks == []
    stage.looked = []
    stage.step(10)
    assert stage.looked == []  # nor looked at again for a while
    stage.step(11 + (REFUSED_NS + SEARCH_NS) / FRAME_NS)
    assert stage.looked


def test_a_hand_given_up_on_trial_is_looked_at_again_once_the_finder_is_surer(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as doubtful:
        doubtful.setattr("edge_hand.edge.tracker.belief", lambda look, score: 0.5)
        stage.hands, stage.score = [right_at(0.2)], 0.5
        assert not any(stage.step(k) for k in range(10)) and stage.tracker.tracks == []
    assert not stage.step(10)  # as sure as before: not looked at
    stage.score = 0.95
    assert [stage.step(11 + k) != [] for k in range(4)][-1]


@pytest.mark.parametrize(("age_ns", "kept"), [(0.9 * PROBATION_NS, False), (1.1 * PROBATION_NS, True)])
def test_a_new_hand_that_is_doubted_goes_sooner_than_one_that_was_followed_for_longer(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, age_ns: float, kept: bool
) -> None:
    stage.follow(right_at(0.2))
    doubt = (PUBLISH + DROP) / 2
    monkeypatch.setattr("edge_hand.edge.tracker.belief", lambda look, score: doubt)
    (track,) = stage.tracker.tracks
    track.belief = doubt
    track.begun_ns = round(8 * FRAME_NS - age_ns)
    stage.tracker._searched_ns = -SECOND
    assert bool(stage.step(8)) == kept


def test_a_hand_whose_side_is_not_decided_is_looked_at_as_the_other_one_too(stage: Stage) -> None:
    stage.follow(right_at(0.2))
    (track,) = stage.tracker.tracks
    stage.sides, stage.looked = ["unknown"], []
    stage.step(4)
    assert [mirrored for _, mirrored in stage.looked] == [False]
    track.right_votes, stage.looked = -0.1, []
    found = stage.step(5)  # a right hand, taken for a left one, is called right by both looks
    assert [mirrored for _, mirrored in stage.looked] == [True, False, False] and not track.is_left
    assert np.linalg.norm(found[0].pose.joints_m - hand(*stage.hands[0])[0], axis=1).mean() < 0.003


def test_two_proposals_of_one_hand_begin_one_track(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    at = middle(*right_at(0.2))
    rois = [HandRoi("right", at + (x, 0.0, 0.0), 0.25, 0.95) for x in (0.0, 0.09)]
    stage.hands = [right_at(0.2)]
    monkeypatch.setattr(stage.tracker, "finder", Proposing(rois))
    stage.step(0)
    assert len(stage.tracker.tracks) == 1


class Proposing:
    threshold, judges = 0.4, True

    def __init__(self, rois: list[HandRoi]) -> None:
        self.rois = rois

    def __call__(self, frame: DepthFrame, part: Part | None = None) -> list[HandRoi]:
        return self.rois
