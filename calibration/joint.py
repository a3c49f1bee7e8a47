"""All cameras at once from the joints they saw: poses and time offsets, every joint of every moment eliminated.

Where a joint truly was is the weighted mean of where the cameras put it, so the unknowns are seven a camera however
long the motion. A camera is sampled at its own time for a moment, so a time offset is not a linear guess. Joints of a
network are off by millimetres together, in one direction, for seconds: this is a start for `icp`, not the answer.
Neither the depth's scale nor a bias towards the camera is fitted from joints: noise alone makes such a scale too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..hand.arrays import Array
from ..hand.se3 import apply, inverse, skew, so3_exp
from .observe import ObserveError, Sight, common_times, joints_at, slope
from .pairwise import PairFit, fit_pair

ITERATIONS = 25
STEP = 7  # unknowns of a camera: turn 3, shift 3, time offset
OFFSET_SIGMA_S = 0.05  # how far a lag of `pairwise` may be off
RATE_HZ = 30.0
BLOCK_S = 3.0  # errors of a network go together for so long
LEAST_AGREE = 0.25  # of the joints of a pair, for it to join cameras


@dataclass(frozen=True, eq=False)
class Path:
    """The hand as all cameras together saw it: times_s (K,) of the reference's clock, joints (K, 21, 3) m in its frame,
    velocities (K, 21, 3) m/s; NaN where fewer than one camera saw it."""

    times_s: Array
    joints_m: Array
    velocities_m_s: Array

    def at(self, t_s: float) -> tuple[Array, Array]:
        """Joints and velocities (21, 3) at the nearest moment."""
        k = int(np.clip(np.rint((t_s - self.times_s[0]) * RATE_HZ), 0, len(self.times_s) - 1))
        return self.joints_m[k], self.velocities_m_s[k]


@dataclass(frozen=True, eq=False)
class JointFit:
    """T_ref_cam (C, 4, 4), offsets_s (C,), covariance (7C, 7C) of left perturbations and offsets; rms_m of a joint."""

    T_ref_cam: Array
    offsets_s: Array
    covariance: Array
    rms_m: float
    path: Path


def fit_pairs(sights: Sequence[Sight], rng: np.random.Generator) -> dict[tuple[int, int], PairFit]:
    """Every pair that saw the hand together."""
    found = {}
    for a, b in combinations(range(len(sights)), 2):
        if min(sights[a].seen.sum(), sights[b].seen.sum()) < 2:
            continue
        pair = fit_pair(sights[a], sights[b], rng)
        if pair is not None:
            found[a, b] = pair
    return found


def spanning_tree(pairs: dict[tuple[int, int], PairFit], names: Sequence[str]) -> tuple[Array, Array]:
    """Poses (C, 4, 4) and offsets (C,) in the first camera's frame, joined by the pairs that agree on most.

    Raises ObserveError for a camera that no pair joins.
    """
    T, offsets = np.tile(np.eye(4), (len(names), 1, 1)), np.zeros(len(names))
    joined = {0}
    while len(joined) < len(names):
        edges = [(p.agree * p.shared, ab) for ab, p in pairs.items() if (ab[0] in joined) != (ab[1] in joined)]
        edges = [(worth, ab) for worth, ab in edges if pairs[ab].agree > LEAST_AGREE]
        if not edges:
            alone = [names[c] for c in range(len(names)) if c not in joined]
            raise ObserveError(
                f"{', '.join(alone)} never saw the hand together with {', '.join(names[c] for c in sorted(joined))}: "
                "move the hand where both see it"
            )
        a, b = max(edges)[1]
        pair = pairs[a, b]
        if a in joined:
            T[b], offsets[b] = T[a] @ pair.T_a_b, offsets[a] + pair.lag_s
        else:
            T[a], offsets[a] = T[b] @ inverse(pair.T_a_b), offsets[b] - pair.lag_s
        joined |= {a, b}
    return T, offsets


def fit_joints(sights: Sequence[Sight], rng: np.random.Generator) -> JointFit:
    """Poses and time offsets from joints alone; the first camera is the reference. Raises ObserveError."""
    return solve(sights, *spanning_tree(fit_pairs(sights, rng), [sight.serial for sight in sights]))


def solve(sights: Sequence[Sight], T: Array, offsets_s: Array) -> JointFit:
    """Robust Gauss-Newton from a start. Raises ObserveError if nothing is shared."""
    T, offsets, start_s = T.copy(), offsets_s.copy(), offsets_s.copy()
    times = common_times(sights, offsets, RATE_HZ)
    size = len(sights) * STEP
    free = np.arange(STEP, size)
    sigma, covariance, path = 0.012, np.zeros((size, size)), None
    for i in range(ITERATIONS):
        seen = np.stack(
            [apply(t, joints_at(s, times - o)) for s, t, o in zip(sights, T, offsets, strict=True)]
        )  # (C, K, 21, 3) in the reference's frame
        there = np.isfinite(seen[..., 0])  # (C, K, 21)
        y = np.where(there[..., None], seen, 0.0)
        if not (there.sum(0) > 1).any():
            raise ObserveError("no two cameras saw the hand at one time")
        weights = there * 1.0
        for _ in range(2 if i else 4):
            mean = _mean(weights, y)
            square = ((y - mean) ** 2).sum(-1) / 3 / _leverage(weights)
            weights = there / (1 + square / (max(3.0, 10 * 0.75**i) * sigma) ** 2) ** 2
            # A hand that is wrong as a whole in a frame: all its joints are doubted.
            whole = np.sqrt((np.minimum(square, 25 * sigma**2) * there).sum(2) / np.maximum(there.sum(2), 1))
            weights *= np.where(whole > 2.2 * sigma, 0.02, 1.0)[..., None]
        shared = (weights > 0.05).sum(0) > 1  # (K, 21)
        used = weights * shared
        mean, total = _mean(used, y), used.sum(0)
        residual = y - mean
        sigma = float(
            np.clip(np.sqrt((used * (residual**2).sum(-1) / 3 / _leverage(used)).sum() / used.sum()), 5e-4, 0.05)
        )
        anywhere = _mean(weights, y)
        anywhere[weights.sum(0) < 1e-3] = np.nan
        path = Path(times, anywhere, slope(anywhere, RATE_HZ))
        normal, right, blocks = _normal(y, residual, used, total, path.velocities_m_s, sigma)
        prior = np.tile([0, 0, 0, 0, 0, 0, OFFSET_SIGMA_S**-2.0], len(sights))
        normal[np.diag_indices(size)] += prior
        right[STEP - 1 :: STEP] += (offsets - start_s) / OFFSET_SIGMA_S**2
        inverse_normal = np.linalg.inv(normal[np.ix_(free, free)] + 1e-9 * np.eye(len(free)))
        step = np.zeros(size)
        step[free] = -inverse_normal @ right[free]
        spread = inverse_normal @ (blocks[:, free].T @ blocks[:, free]) @ inverse_normal
        few = len(blocks) / max(1, len(blocks) - 2)
        covariance[np.ix_(free, free)] = inverse_normal + few * spread
        T, offsets = moved(T, step.reshape(-1, STEP)[:, :6]), offsets + step[STEP - 1 :: STEP]
        if i > 12 and np.abs(step).max() < 5e-6:
            break
    assert path is not None
    return JointFit(T, offsets, covariance, sigma * 3**0.5, path)


def moved(T: Array, steps: Array) -> Array:
    """Poses (C, 4, 4) after left perturbations (C, 6): turn, shift."""
    turn, out = so3_exp(steps[:, :3]), T.copy()
    out[:, :3, :3] = turn @ T[:, :3, :3]
    out[:, :3, 3] = (turn @ T[:, :3, 3:])[..., 0] + steps[:, 3:]
    return out


def _mean(weights: Array, y: Array) -> Array:
    """Where the joints are (K, 21, 3) by all cameras."""
    return (weights[..., None] * y).sum(0) / np.maximum(weights.sum(0), 1e-9)[..., None]


def _leverage(weights: Array) -> Array:
    """By how much a mean of few cameras makes residuals smaller, (K, 21)."""
    return 1 - 1 / np.maximum(2, (weights > 0.05).sum(0))


def _normal(
    y: Array, residual: Array, weights: Array, total: Array, velocity: Array, sigma: float
) -> tuple[Array, Array, Array]:
    """Normal matrix (7C, 7C), its right side, and the right side by blocks of time (B, 7C); the joints eliminated."""
    cameras, moments = y.shape[:2]
    block = (np.arange(moments) // round(BLOCK_S * RATE_HZ)).astype(int)
    normal = np.zeros((cameras, STEP, cameras, STEP))
    blocks = np.zeros((block[-1] + 1, cameras, STEP))
    weighted, root = [], np.sqrt(np.maximum(total, 1e-9))[..., None, None]
    for c in range(cameras):
        J = np.empty((*y.shape[1:], STEP))  # (K, 21, 3, 7)
        J[..., :3], J[..., 3:6], J[..., 6] = -skew(y[c]), np.eye(3), -velocity
        wJ = weights[c][..., None, None] * J
        normal[c, :, c] = np.einsum("kjap,kjaq->pq", J, wJ, optimize=True)
        pull = np.einsum("kjap,kja->kp", wJ, residual[c], optimize=True)
        np.add.at(blocks[:, c], block, pull)
        weighted.append((wJ / root).reshape(-1, STEP))
    for c in range(cameras):
        for d in range(cameras):
            normal[c, :, d] -= weighted[c].T @ weighted[d]
    size = cameras * STEP
    flat = blocks.reshape(-1, size) / sigma**2
    return normal.reshape(size, size) / sigma**2, flat.sum(0), flat
