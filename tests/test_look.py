"""What one look says: whether a hand is there, how sure it is, how far the mesh is from the depth, in which frame."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from edge_hand.edge.engines import open_engine
from edge_hand.edge.look import GAUGE_POINTS, LEAST_HAND_PIXELS, MOST_ERROR_MM, TRUST_M, Eye, fit_mm, trust
from edge_hand.hand.crop import look_at
from edge_hand.hand.template import template
from test_track import AT, frame_at, hand, look_of


@pytest.mark.parametrize(
    "doubt",
    [
        {"presence_logit": -2.0},
        {"hand_pixels": LEAST_HAND_PIXELS - 1},
        {"mean_error_m": 1e-3 * MOST_ERROR_MM},
        {"mean_error_m": math.nan},
    ],
)
def test_a_crop_shows_a_hand_only_if_nothing_speaks_against_it(doubt: dict[str, Any]) -> None:
    look = look_of(AT)
    assert look.is_hand and 0.8 < look.score < 0.9
    assert not look._replace(prediction=replace(look.prediction, **doubt)).is_hand


def test_the_score_ends_at_nought() -> None:
    look = look_of(AT)
    scores = [look._replace(prediction=replace(look.prediction, mean_error_m=m)).score for m in (0.0, 0.013, 0.05)]
    assert scores == pytest.approx([1.0, 0.5, 0.0])


def test_a_left_hand_in_its_own_crop_is_voted_left() -> None:
    assert look_of(AT).right_votes == 5 and look_of(AT, left=True).right_votes == -5


@pytest.mark.parametrize("n", [1, 2, 39, 40, 41, 97])
def test_the_gauge_is_the_median_distance_of_some_points_to_every_other_vertex(n: int) -> None:
    mesh = template().vertices_m + (0.1, -0.2, 0.6)
    points = mesh[:n] + np.random.default_rng(n).normal(0, 0.008, (n, 3))
    few = points[:: math.ceil(n / GAUGE_POINTS)]
    nearest = np.linalg.norm(few[:, None] - mesh[None, ::2], axis=2).min(1)
    assert fit_mm(points, mesh) == pytest.approx(1e3 * np.median(nearest), rel=1e-3)
    assert math.isnan(fit_mm(points[:0], mesh))


def test_a_joint_is_trusted_less_the_more_it_is_expected_to_be_off() -> None:
    weights = trust(np.array([0.0, 0.005, TRUST_M, 0.03, 0.3]))
    assert weights[[0, 2]].tolist() == [1.0, 0.5] and (np.diff(weights) < 0).all() and weights[-1] < 0.01


@pytest.mark.parametrize("mirrored", [False, True])
def test_an_eye_looks_at_a_cube_of_the_hands_size_and_tells_its_centre_in_the_cameras_frame(mirrored: bool) -> None:
    stages = {"crop": 0.0, "engine": 0.0}
    eye, centre = Eye(open_engine(), stages), hand(AT, False)[0].mean(0)
    look = eye.look(frame_at(0), centre, mirrored, 1.2)
    assert look.crop.cube_m == pytest.approx(1.2 * eye.engine.card.cube_m) and look.crop.mirrored == mirrored
    seen = look.prediction.centre_m * ((-1, 1, 1) if mirrored else (1, 1, 1))
    np.testing.assert_allclose(look.centre_m, look_at(centre) @ seen)
    assert stages["crop"] > 0 and stages["engine"] > 0
