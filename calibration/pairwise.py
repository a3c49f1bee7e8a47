"""Two cameras that saw one hand: how far one's clock is off the other's, and where one is as seen from the other.

The lag comes from the joints' speeds, which no camera pose changes (their correlation over the whole recording), and
then from trying: at every lag near it, and near none, the best rigid transform is fitted, and the lag with the least
residual wins. Signals alone are good to 50 ms, the fit to a few.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..hand.arrays import Array
from ..hand.se3 import transform
from ..hand.skeleton import PALM
from .observe import Sight, bridged, joints_at

RATE_HZ = 60.0
REACH_S, STEP_S = 1.2, 1 / 60  # lags tried about each start
NEAR_M = 0.025  # joints of two cameras that agree
FEWEST_SHARED = 12  # moments
LOOKS = 240  # moments a lag is tried on
DRAWS = 150  # of the RANSAC
TRIED = [0, 4, 5, 8, 9, 12, 17, 20]  # wrist, tips and knuckles


class PairFit(NamedTuple):
    """T_a_b (4, 4); lag_s: t_a = t_b + lag_s; the share of joints that agree, moments shared."""

    T_a_b: Array
    lag_s: float
    agree: float
    shared: int


def kabsch(source: Array, target: Array, weights: Array | None = None) -> Array:
    """The rigid T (4, 4) that takes points (N, 3) onto points (N, 3) best, weighted (N,) (Kabsch 1976)."""
    w = np.ones(len(source)) if weights is None else weights
    w = w / max(w.sum(), 1e-12)
    a, b = w @ source, w @ target
    u, _, vt = np.linalg.svd((w[:, None] * (source - a)).T @ (target - b))
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(vt.T @ u.T))])
    R = vt.T @ flip @ u.T
    return transform(R, b - R @ a)


def fit_pair(a: Sight, b: Sight, rng: np.random.Generator) -> PairFit | None:
    """Lag and pose of b as seen from a; None if they never saw the hand together."""
    best: tuple[float, float] | None = None
    for start in _starts(a, b):
        lags = start + np.arange(-REACH_S, REACH_S + STEP_S / 2, STEP_S)
        costs = np.array([_cost(a, b, lag) for lag in lags])
        i = int(np.nanargmin(costs)) if np.isfinite(costs).any() else -1
        if i < 0 or (best is not None and costs[i] >= best[0]):
            continue
        around = costs[max(i - 1, 0) : i + 2]
        bend = around[0] - 2 * around[1] + around[2] if len(around) == 3 else np.nan
        shift = 0.5 * (around[0] - around[2]) / bend if np.isfinite(bend) and bend > 0 else 0.0
        best = float(costs[i]), float(lags[i] + np.clip(shift, -1, 1) * STEP_S)
    return None if best is None else ransac(a, b, best[1], rng)


def ransac(a: Sight, b: Sight, lag_s: float, rng: np.random.Generator) -> PairFit | None:
    """The pose on which most joints agree, drawn from two moments at a time, then fitted to all that agree."""
    x, y = _together(a, b, lag_s, 10 * LOOKS)
    if len(x) < FEWEST_SHARED:
        return None
    sample = rng.choice(len(x), min(len(x), 60), replace=False)
    source, target = y[sample].reshape(-1, 3), x[sample].reshape(-1, 3)
    best_cost, T = np.inf, np.eye(4)
    for _ in range(DRAWS):
        two = rng.choice(len(x), 2, replace=False)
        drawn = kabsch(y[two].reshape(-1, 3), x[two].reshape(-1, 3))
        cost = np.minimum(_distances(drawn, source, target), NEAR_M).sum()
        if cost < best_cost:
            best_cost, T = cost, drawn
    source, target = y.reshape(-1, 3), x.reshape(-1, 3)
    for _ in range(6):
        T = kabsch(source, target, 1 / (1 + (_distances(T, source, target) / 0.012) ** 2) ** 2)
    distances = _distances(T, source, target)
    return PairFit(T, lag_s, float((distances < NEAR_M).mean()), len(x))


def _starts(a: Sight, b: Sight) -> list[float]:
    """Lags worth looking about: none, if the clocks may be one, and the one at which speeds go together."""
    starts = []
    if min(a.times_s[-1], b.times_s[-1]) - max(a.times_s[0], b.times_s[0]) > 2:
        starts.append(0.0)
    one, other = _speed(a), _speed(b)
    n = 1 << (len(one) + len(other)).bit_length()
    together = np.fft.irfft(np.fft.rfft(one, n) * np.conj(np.fft.rfft(other, n)), n)
    at = int(np.argmax(together))
    coarse = (at if at < len(one) else at - n) / RATE_HZ + a.times_s[0] - b.times_s[0]
    if not starts or abs(coarse) > REACH_S:
        starts.append(float(coarse))
    return starts


def _speed(sight: Sight) -> Array:
    """How fast the palm moves (N,) on an even grid, its mean taken away, 0 where nothing was seen."""
    times = np.arange(sight.times_s[0], sight.times_s[-1], 1 / RATE_HZ)
    palm = joints_at(sight, times)[:, PALM].mean(1)
    seen = np.isfinite(palm[:, 0])
    if seen.sum() < 10:
        return np.zeros(len(times) or 1)
    padded = np.pad(bridged(palm), ((4, 4), (0, 0)), "edge")  # no leap from nothing at the ends, which would be matched
    smooth = np.stack([np.convolve(column, np.ones(9) / 9, "valid") for column in padded.T], 1)
    speed = np.linalg.norm(np.gradient(smooth, axis=0), axis=1)
    return np.where(seen, speed - speed[seen].mean(), 0.0)


def _together(a: Sight, b: Sight, lag_s: float, most: int, joints: list[int] | None = None) -> tuple[Array, Array]:
    """Joints (N, J, 3) of both at one time, evenly spread."""
    times = a.times_s[a.seen]
    if len(times) > most:
        times = times[np.linspace(0, len(times) - 1, most).astype(int)]
    y, x = joints_at(b, times - lag_s), joints_at(a, times)
    both = np.isfinite(x[:, 0, 0]) & np.isfinite(y[:, 0, 0])
    pick = slice(None) if joints is None else joints
    return x[both][:, pick], y[both][:, pick]


def _cost(a: Sight, b: Sight, lag_s: float) -> float:
    """Mean capped distance (m) of the joints at this lag under the best pose; NaN if too little is shared."""
    x, y = _together(a, b, lag_s, LOOKS, TRIED)
    if len(x) < FEWEST_SHARED:
        return float("nan")
    source, target = y.reshape(-1, 3), x.reshape(-1, 3)
    T = kabsch(source, target)
    for scale in (0.04, 0.02, 0.015):
        T = kabsch(source, target, 1 / (1 + (_distances(T, source, target) / scale) ** 2) ** 2)
    return float(np.minimum(_distances(T, source, target), 2 * NEAR_M).mean())


def _distances(T: Array, source: Array, target: Array) -> Array:
    return np.linalg.norm(source @ T[:3, :3].T + T[:3, 3] - target, axis=1)
