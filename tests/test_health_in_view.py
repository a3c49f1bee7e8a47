"""What counts as a hand in view, by which health judges a network: the finder's, where the tracker would take it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from edge_hand.edge.finder import Part
from edge_hand.edge.networks.health import SURE, _Listening
from edge_hand.edge.tracker import NEW_WITHIN_M
from edge_hand.hand.frames import HandRoi


@pytest.mark.parametrize(
    ("z_m", "score", "judges", "sure"),
    [
        (0.5, SURE, True, True),
        (0.5, SURE - 0.01, True, False),
        (0.5, SURE, False, False),
        (NEW_WITHIN_M + 0.1, 0.99, True, False),  # somebody behind, whom only a closer part shows
    ],
)
def test_a_sure_proposal_that_may_be_followed_is_a_hand_in_view(
    z_m: float, score: float, judges: bool, sure: bool
) -> None:
    asked: list[Any] = []

    class Finder(SimpleNamespace):
        def __call__(self, *given: Any) -> list[HandRoi]:
            asked.append(given)
            return [HandRoi("right", np.array([0.0, 0.0, z_m]), 0.25, score)]

    finder, part = _Listening(Finder(judges=judges, threshold=0.5)), Part(1.5, 0.1, 0.1)  # type: ignore[arg-type]
    frame: Any = object()
    assert len(finder(frame, part)) == 1 and asked == [(frame, part)]
    assert finder.sure is sure
