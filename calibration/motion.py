"""The board between its knots: its pose at a time, and how that changes with the knots and with time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..hand.arrays import Array
from ..hand.se3 import skew, so3_exp, so3_log, transform


class Weights(NamedTuple):
    """A neighbour's share at a time between the knots, and its change a second; (before, after)."""

    share: tuple[float, float]
    rate: tuple[float, float]


def share_of_neighbours(dt_s: float, before_s: float | None, after_s: float | None) -> Weights:
    """Lagrange's weights of the knots before_s earlier and after_s later, dt_s after the knot itself."""
    if before_s is None and after_s is None:
        return Weights((0.0, 0.0), (0.0, 0.0))
    if before_s is None:
        assert after_s is not None
        return Weights((0.0, dt_s / after_s), (0.0, 1 / after_s))
    if after_s is None:
        return Weights((-dt_s / before_s, 0.0), (-1 / before_s, 0.0))
    b, a = before_s, after_s
    return Weights(
        (dt_s * (dt_s - a) / (b * (a + b)), dt_s * (dt_s + b) / (a * (a + b))),
        ((2 * dt_s - a) / (b * (a + b)), (2 * dt_s + b) / (a * (a + b))),
    )


def right_jacobian(rotvec: Array) -> Array:
    """(3, 3) with exp(v + dv) = exp(v) exp(J dv), to first order."""
    angle = float(np.linalg.norm(rotvec))
    k = skew(rotvec)
    if angle < 1e-5:
        return np.eye(3) - k / 2 + k @ k / 6
    return np.eye(3) - (1 - np.cos(angle)) / angle**2 * k + (angle - np.sin(angle)) / angle**3 * (k @ k)


class Moment(NamedTuple):
    """The board at one time: its pose, and how that changes with the 3 knots (6, 18) and with time (6,).

    The change is a right rotation and a translation, as for a knot; columns are the knot before, itself, after.
    """

    T_ref_board: Array
    by_knots: Array
    by_time: Array


def moment(before: Array | None, knot: Array, after: Array | None, weights: Weights) -> Moment:
    """The board between its knots (4, 4), of which the neighbours may be missing."""
    by_knots, by_time = np.zeros((6, 18)), np.zeros(6)
    turn = np.zeros(3)
    turned: list[tuple[int, float, float, Array]] = []
    R, t = knot[:3, :3], knot[:3, 3].copy()
    for column, other, share, rate in (
        (0, before, weights.share[0], weights.rate[0]),
        (12, after, weights.share[1], weights.rate[1]),
    ):
        if other is None:
            continue
        phi = so3_log(R.T @ other[:3, :3])
        turn = turn + share * phi
        step = other[:3, 3] - knot[:3, 3]
        t += share * step
        by_time[3:] += rate * step
        by_knots[3:, column + 3 : column + 6] = share * np.eye(3)
        turned.append((column, share, rate, phi))
    J = right_jacobian(turn)
    local = so3_exp(turn)
    by_knots[:3, 6:9] = local.T
    by_knots[3:, 9:12] = np.eye(3) * (1 - sum(weights.share))
    for column, share, rate, phi in turned:
        inverse = np.linalg.inv(right_jacobian(phi))
        by_knots[:3, column : column + 3] = share * J @ inverse
        by_knots[:3, 6:9] -= share * J @ inverse.T  # the left Jacobian is the right one's transpose
        by_time[:3] += J @ (rate * phi)
    return Moment(transform(R @ local, t), by_knots, by_time)
