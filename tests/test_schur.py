"""Unknowns that are solved for on the way."""

from __future__ import annotations

import numpy as np
from edge_hand.edge.schur import eliminated


def test_what_is_left_has_the_solution_of_the_whole_and_held_unknowns_stay():
    rng = np.random.default_rng(0)
    rows, off = rng.normal(size=(40, 9)), rng.normal(size=40)
    free = [0, 2, 3, 4, 5, 6, 7, 8]
    whole = np.linalg.lstsq(rows[:, free], off, rcond=None)[0]
    information, pull = eliminated(rows.T @ rows, off @ rows, 6, np.array([1]))
    np.testing.assert_allclose(np.linalg.solve(information, pull), whole[5:], atol=1e-12)
