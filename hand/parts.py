"""Moments of the template's rigid parts: what a closed-form similarity per part needs (Dual Grid Net, section 3.4)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arrays import Array
from .template import HandTemplate


class PartMoments(NamedTuple):
    """Cross-covariance with the template and centroid of each part are linear in the vertices:

    (3, V) @ moments (V, 16 * 4) = 16 times [covariance (3, 3) | centroid (3,)]. centroid (16, 3) and variance (16,) are
    those of the template's own parts.
    """

    moments: Array
    centroid: Array
    variance: Array


def part_moments(t: HandTemplate) -> PartMoments:
    """A vertex counts for a part by its area and the square of its skinning weight: for the part that moves it."""
    share = t.area[:, None] * t.weights**2
    share = share / share.sum(0)  # (V, 16)
    centroid = share.T @ t.vertices_m
    centred = t.vertices_m[:, None] - centroid  # (V, 16, 3)
    moments = np.concatenate([share[..., None] * centred, share[..., None]], 2)  # (V, 16, 4)
    variance = (share[..., None] * centred**2).sum((0, 2))
    return PartMoments(np.ascontiguousarray(moments.reshape(len(share), 64)), centroid, variance)
