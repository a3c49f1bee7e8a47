"""Spheres along the bones that keep fingers out of each other and out of the palm.

Dibra et al. (2017, section 3.3) penalise spheres of a hand that overlap; here each pair that does adds one row to the
refit's normal equations, so a hand that does not touch itself costs only the test.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..hand.arrays import Array
from ..hand.skeleton import PART_JOINTS
from .chain import Chain, Posed, Rest

# Half the thickness of an average hand's finger at its bones (m), proximal to distal; the tip joint lies on the skin,
# so the last sphere stops short of it.
_RADII = ((0.011, 0.0095, 0.0085), *((0.0095, 0.0085, 0.007),) * 3, (0.008, 0.007, 0.006))
_ALONG = ((0.2, 0.4, 0.6, 0.8, 1.0), (0.33, 0.67, 1.0), (0.24, 0.48, 0.72))
_PALM_M = 0.0095
_PALM = ((0.35, 0.6, 0.85), (5, 9, 13, 17))  # shares of the way from the wrist to these knuckles
_FLESH = 0.8  # skin gives way by a fifth
MOST_PAIRS = 12


class Spheres:
    """Holds where the spheres lie between joints and how near each two may come."""

    def __init__(self) -> None:
        rows: list[Array] = []
        owner: list[tuple[int, int, float]] = []  # finger (-1 the palm), part, radius
        for f, radii in enumerate(_RADII):
            for bone, r in enumerate(radii):
                if (f, bone) == (0, 0):
                    continue  # the thumb's metacarpal is palm
                part = 1 + 3 * f + bone
                start = PART_JOINTS[part]
                for share in _ALONG[bone]:
                    rows.append(_between(start, start + 1, share))
                    owner.append((f, part, r))
        for share in _PALM[0]:
            for knuckle in _PALM[1]:
                rows.append(_between(0, knuckle, share))
                owner.append((-1, 0, _PALM_M))
        self.mix = np.stack(rows)  # (S, 21)
        finger = np.array([o[0] for o in owner])
        self.part = np.array([o[1] for o in owner])
        radius = np.array([o[2] for o in owner])
        least = _FLESH * (radius[:, None] + radius)
        upper = np.triu(finger[:, None] != finger[None], 1)
        # A finger's first bone begins in the palm; the thumb's lies along it.
        first = (self.part % 3 == 1) | (self.part == 2)
        upper &= ~(first[:, None] & (finger == -1)) & ~(first & (finger[:, None] == -1))
        self.least_m = np.where(upper, least, 0)  # (S, S)
        self._lifted = np.ones((2, len(radius), 5), np.float32)
        self._least_squared = np.where(upper, least**2, -1).astype(np.float32)

    def overlaps(self, posed: Posed, rest: Rest) -> Overlaps | None:
        """The pairs that overlap, the deepest if there are many; None if none does. The spheres' size is the mean of
        the parts' at rest."""
        size = float(rest.scale.mean())
        centre = self.mix @ posed.joints_m  # (S, 3)
        one, other = self._lifted  # |a - b|^2 = (a, |a|^2, 1) . (-2 b, 1, |b|^2)
        one[:, :3], other[:, :3] = centre, -2 * centre
        one[:, 3] = other[:, 4] = np.add.reduce(centre * centre, 1)
        near = (one @ other.T < self._least_squared * size**2).ravel().nonzero()[0]
        if not len(near):
            return None
        i, j = np.divmod(near, len(centre))
        apart = centre[i] - centre[j]
        distance = np.linalg.norm(apart, axis=1)
        deep = self.least_m[i, j] * size - distance
        if len(near) > MOST_PAIRS:
            keep = np.argsort(-deep)[:MOST_PAIRS]
            i, j, apart, distance, deep = i[keep], j[keep], apart[keep], distance[keep], deep[keep]
        direction = apart / np.maximum(distance, 1e-6)[:, None]
        return Overlaps(centre[i], centre[j], self.part[i], self.part[j], direction, deep)


class Overlaps(NamedTuple):
    """Pairs of spheres that overlap: centres (K, 3) m relative to the wrist, parts (K,), direction (K, 3) in which the
    first one leaves the other, deep_m (K,)."""

    one_m: Array
    other_m: Array
    part: Array
    other_part: Array
    direction: Array
    deep_m: Array

    def rows(self, chain: Chain, screws: Array) -> Array:
        """(K, 26) how far each pair parts."""
        rows = chain.rows(screws, self.one_m, self.direction, chain.moved[self.part])
        rows -= chain.rows(screws, self.other_m, self.direction, chain.moved[self.other_part])
        return rows


def _between(start: int, end: int, share: float) -> Array:
    row = np.zeros(21)
    row[start] += 1 - share
    row[end] += share
    return row
