"""Places without a hand are left alone: for how long, how near, and until the finder is surer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from edge_hand.edge.refusals import FOOLED_NS, NEAR_M, REFUSED_NS, SURER, Refusals
from edge_hand.hand.arrays import Array
from edge_hand.hand.frames import HandRoi

AT = np.array([0.1, -0.2, 0.8])


def proposal(score: float = 0.5, off_m: Array | None = None) -> HandRoi:
    return HandRoi("right", AT if off_m is None else AT + off_m, 0.25, score)


@pytest.fixture
def refusals() -> Refusals:
    made = Refusals()
    made.add(AT, 1000, 0.5)
    return made


@pytest.mark.parametrize(("after_ns", "held"), [(0, True), (REFUSED_NS - 1, True), (REFUSED_NS, False), (-1, False)])
def test_a_place_is_left_alone_for_a_while(refusals: Refusals, after_ns: int, held: bool) -> None:
    assert refusals.hold(proposal(), 1000 + after_ns) == held


@pytest.mark.parametrize(("after_ns", "held"), [(REFUSED_NS, True), (FOOLED_NS - 1, True), (FOOLED_NS, False)])
def test_a_place_whose_hand_was_published_is_left_alone_for_longer(after_ns: int, held: bool) -> None:
    refusals = Refusals()
    refusals.add(AT, 1000, 0.5, fooled=True)
    refusals.add(AT + 2 * NEAR_M, 1000, 0.5)
    assert refusals.hold(proposal(), 1000 + after_ns) == held
    assert not refusals.hold(proposal(0.9), 1000 + after_ns)  # unless the finder is surer


@pytest.mark.parametrize(("share", "held"), [(0.9, True), (1.1, False)])
def test_only_what_is_near_it_is(refusals: Refusals, share: float, held: bool) -> None:
    assert refusals.hold(proposal(off_m=np.array([0.0, 0.0, share * NEAR_M])), 2000) == held


@pytest.mark.parametrize(("rise", "held"), [(-1.0, True), (0.0, True), (0.9, True), (1.1, False)])
def test_a_place_is_looked_at_again_once_the_finder_is_surer_of_it(refusals: Refusals, rise: float, held: bool) -> None:
    score = 1 / (1 + math.exp(-rise * SURER))
    assert refusals.hold(proposal(score), 2000) == held


def test_the_scores_of_a_finder_that_does_not_judge_say_nothing(refusals: Refusals) -> None:
    assert refusals.hold(proposal(0.99), 2000, judged=False)


def test_of_several_refusals_the_surest_counts(refusals: Refusals) -> None:
    refusals.add(AT, 1500, 0.9)
    assert refusals.hold(proposal(0.85), 2000) and refusals.hold(proposal(0.9), 2000)
    assert not refusals.hold(proposal(0.99), 2000)
    assert not refusals.hold(proposal(0.85), 1500 + REFUSED_NS)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_certain_scores_are_as_good_as_others(score: float) -> None:
    sure = Refusals()
    sure.add(AT, 0, score)
    assert sure.hold(proposal(score), 1)
