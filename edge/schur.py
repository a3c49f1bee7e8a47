"""What is left of normal equations when some unknowns are solved for: the Schur complement."""

from __future__ import annotations

import numpy as np

from ..hand.arrays import Array


def eliminated(normal: Array, gradient: Array, known: int, held: Array) -> tuple[Array, Array]:
    """Of equations normal (N, N) x = gradient (N,), which are changed: information (M, M) and pull (M,) on the unknowns
    after the first `known`, whatever those are; held are the indices of unknowns that stay as they are."""
    normal[held], normal[:, held], gradient[held] = 0, 0, 0
    normal[held, held] = 1
    across = normal[known:, :known]
    solved = np.linalg.solve(normal[:known, :known], np.column_stack([across.T, gradient[:known]]))
    return normal[known:, known:] - across @ solved[:, :-1], gradient[known:] - across @ solved[:, -1]
