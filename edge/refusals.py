"""Places that were looked at and showed no hand: they are left alone for a while, unless the finder becomes surer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from ..hand.arrays import Array
from ..hand.frames import HandRoi

REFUSED_NS = 500_000_000  # a place is not looked at again for so long,
FOOLED_NS = 5_000_000_000  # or for so long, if what is there was already taken for a hand,
SURER = 1.0  # unless the finder's log-odds of a hand have risen by this
NEAR_M = 0.04


class _Place(NamedTuple):
    centre_m: Array
    t_ns: int
    until_ns: int
    odds: float


@dataclass
class Refusals:
    """Where there was no hand a moment ago."""

    _places: list[_Place] = field(default_factory=list)

    def add(self, centre_m: Array, t_ns: int, score: float, fooled: bool = False) -> None:
        """There is none at centre_m (3,), where the finder proposed one with this score; fooled: it was published."""
        held_ns = FOOLED_NS if fooled else REFUSED_NS
        self._places.append(_Place(centre_m, t_ns, t_ns + held_ns, _log_odds(score)))

    def hold(self, roi: HandRoi, t_ns: int, judged: bool = True) -> bool:
        """Whether the proposal is of such a place, and no surer; for how sure it is, its finder must judge."""
        self._places = [place for place in self._places if place.t_ns <= t_ns < place.until_ns]
        near = [place for place in self._places if math.dist(place.centre_m, roi.centre_m) < NEAR_M]
        return any(not judged or _log_odds(roi.score) < place.odds + SURER for place in near)


def _log_odds(score: float) -> float:
    kept = min(max(score, 0.01), 0.99)
    return math.log(kept / (1 - kept))
