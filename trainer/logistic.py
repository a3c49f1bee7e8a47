"""Logistic regression by Newton's method."""

from __future__ import annotations

import numpy as np

from ..hand.arrays import Array


def fit(x: Array, y: Array, prior: float = 1e-2) -> Array:
    """Weights (K,) of a logistic curve over evidence (N, K) for y (N,) in {0, 1}; ridge `prior`."""
    weights = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        normal = (x * (p * (1 - p))[:, None]).T @ x + prior * np.eye(x.shape[1])
        weights = weights + np.linalg.solve(normal, x.T @ (y - p) - prior * weights)
    return weights
