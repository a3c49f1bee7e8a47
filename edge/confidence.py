"""What a joint's confidence means: the probability that it lies within 15 mm of the truth.

The network expects an error of each vertex; near a joint that is the joint's. How often such a joint is in fact within
`RADIUS_M` was counted on rendered hands, and three constants of a logistic curve hold the count (`Calibration`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..hand.arrays import Array

RADIUS_M = 0.015
LEAST_M = 1e-4  # no joint is expected to be better than this


class Calibration(NamedTuple):
    """P(within RADIUS_M) = 1 / (1 + exp(-(offset + slope * log(error / RADIUS_M) + hidden))), the last for joints that
    are not seen. The defaults stand in where a model's card has none."""

    offset: float = 0.4
    slope: float = -4.0
    hidden: float = -0.7


def joint_confidence(expected_error_m: Array, visible: Array, calibration: Calibration | None = None) -> Array:
    """Probability that each joint is within `RADIUS_M` of the truth, as many as are given: (21,) or (..., 21).

    expected_error_m (21,) is the network's; visible (21,) as of `visibility.visible`: only 1 counts as seen.
    """
    offset, slope, hidden = calibration or Calibration()
    logit = slope * np.log(np.maximum(expected_error_m, LEAST_M) * (1 / RADIUS_M)) + offset
    logit += hidden * (np.asarray(visible) != 1)
    return 1 / (1 + np.exp(-logit))


def features(expected_error_m: Array, visible: Array) -> Array:
    """What the constants multiply, (..., 21, 3): 1, the logarithm of the expected error, 1 where not seen."""
    out = np.ones((*np.shape(expected_error_m), 3))
    out[..., 1] = np.log(np.maximum(expected_error_m, LEAST_M) / RADIUS_M)
    out[..., 2] = np.asarray(visible) != 1
    return out


def calibration_of(values: Sequence[float] | None) -> Calibration:
    """A card's constants, or the defaults."""
    return Calibration(*values) if values is not None else Calibration()
