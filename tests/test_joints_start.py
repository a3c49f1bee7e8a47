"""Lags and poses of cameras from joints alone: pairs, the tree they make, and all cameras at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from edge_hand.calibration.joint import Path, fit_joints, fit_pairs, moved, solve, spanning_tree
from edge_hand.calibration.observe import ObserveError, Sight
from edge_hand.calibration.pairwise import PairFit, fit_pair, kabsch
from edge_hand.calibration.uncertainty import pose_difference, volume_sigma_mm
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.se3 import apply, inverse, so3_exp, transform
from test_hand_motion import seen_only

Array = Any

LENS = Intrinsics(848, 480, 425.0, 425.0, 423.5, 239.5)
HAND = np.random.default_rng(0).normal(0, 0.04, (21, 3))
WAYS = np.random.default_rng(1)
RATES, PHASES = WAYS.uniform(0.8, 3.5, (3, 6)), WAYS.uniform(0, 6.28, (3, 6))
SIZE = np.array([0.4, 0.5, 0.4, 0.06, 0.05, 0.05])
T_REF_CAM = np.stack(
    [transform(so3_exp(np.array([0.1 * c, -0.6 * c, 0])), np.array([0.4 * c, 0.02, 0.12 * c])) for c in range(3)]
)
T_REF_CAM[0] = np.eye(4)


def hand_at(times: Array) -> Array:
    """The hand (N, 21, 3) m in the rig's frame; it never moves in one way twice."""
    x = np.sin(times[:, None, None] * RATES + PHASES).sum(1) * SIZE
    return HAND @ np.swapaxes(so3_exp(x[:, :3]), 1, 2) + (x[:, 3:] + [0, 0, 0.6])[:, None]


def sight_of(
    camera: int, offset_s: float = 0.0, *, start_s: float = 0.0, seconds: float = 10.0, noise_m: float = 0.002,
    wild: float = 0.0, hand: Any = hand_at, seed: int = 0,
) -> Sight:  # fmt: skip
    """What a camera saw whose clock shows offset_s too little; of its frames some show another hand."""
    rng = np.random.default_rng([seed, camera])
    times = 20.0 + start_s + 0.007 * camera + np.arange(0, seconds, 1 / 30)  # of the reference's clock
    joints = apply(inverse(T_REF_CAM[camera]), hand(times)) + rng.normal(0, noise_m, (len(times), 21, 3))
    other = rng.random(len(times)) < wild
    joints[other] += rng.normal(0, 0.3, (other.sum(), 1, 3))
    return Sight(f"cam{camera}", "depth", LENS, times - offset_s, joints)


def paired(a: Sight, b: Sight) -> PairFit:
    found = fit_pair(a, b, np.random.default_rng(0))
    assert found is not None
    return found


def away_mm(T: Array, camera: int) -> float:
    return pose_difference(T, T_REF_CAM[camera]).volume_mm


def test_the_best_turn_of_a_plane_is_no_mirror() -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        T = transform(so3_exp(rng.normal(size=3)), rng.normal(size=3))
        flat = np.concatenate([rng.normal(size=(9, 2)), np.zeros((9, 1))], 1)
        target = apply(T, flat)
        target[0] += 5
        assert kabsch(flat, target, 7.0 * (np.arange(9) > 0)) == pytest.approx(T, abs=1e-9)


@pytest.mark.parametrize(
    ("lag_s", "start_s"), [(0.0083, 0.0), pytest.param(1.3, 0.0, marks=pytest.mark.slow), (-5000.0, -3.0)]
)
def test_a_lag_is_found_to_milliseconds_with_the_pose(lag_s: float, start_s: float) -> None:
    """start_s: so much later the second camera's recording begins."""
    found = paired(sight_of(0), sight_of(1, lag_s, start_s=start_s))
    assert found.lag_s == pytest.approx(lag_s, abs=0.004) and away_mm(found.T_a_b, 1) < 2
    assert found.agree > 0.95 and found.shared == pytest.approx(300 - 30 * abs(start_s), abs=3)


@pytest.mark.slow
def test_frames_that_show_another_hand_cost_agreement_and_no_millimetres() -> None:
    found = paired(sight_of(0, noise_m=0.006), sight_of(1, 0.0083, noise_m=0.006, wild=0.3))
    assert found.lag_s == pytest.approx(0.0083, abs=0.01) and away_mm(found.T_a_b, 1) < 3
    assert found.agree == pytest.approx(0.6, abs=0.1)  # between two frames, both must be right


def test_clocks_that_are_one_are_tried_as_such_where_speeds_say_nothing() -> None:
    def circling(times: Array) -> Array:  # always as fast
        x = np.stack([np.cos(times), np.sin(times), np.zeros(len(times))], 1)
        turn = np.sin(times[:, None, None] * RATES + PHASES).sum(1)[:, :3] * 0.4
        palm = HAND - HAND[[0, 5, 9, 13, 17]].mean(0)
        return palm @ np.swapaxes(so3_exp(turn), 1, 2) + (0.12 * x + [0, 0, 0.6])[:, None]

    found = paired(sight_of(0, hand=circling), sight_of(1, 0.012, hand=circling))
    assert found.lag_s == pytest.approx(0.012, abs=0.003) and away_mm(found.T_a_b, 1) < 3


def test_a_hand_that_was_shared_late_is_found_in_a_long_recording() -> None:
    long = [sight_of(c, 0.01 * c, seconds=30.0) for c in (0, 1)]
    late = seen_only(long[1], long[1].times_s > long[1].times_s[0] + 22)
    found = paired(long[0], late)
    assert found.lag_s == pytest.approx(0.01, abs=0.003) and away_mm(found.T_a_b, 1) < 2


def test_cameras_that_hardly_saw_the_hand_together_are_no_pair() -> None:
    a, b = sight_of(0), sight_of(1)
    assert fit_pair(a, seen_only(b, np.arange(len(b.times_s)) < 10), np.random.default_rng(0)) is None
    nothing = Sight("c", "depth", LENS, np.zeros(0), np.zeros((0, 21, 3)))
    assert fit_pairs([a, nothing, seen_only(b, b.times_s < 0)], np.random.default_rng(0)) == {}


def test_a_camera_is_turned_about_the_reference_and_then_shifted() -> None:
    w, d = np.array([0.3, -0.2, 0.1]), np.array([0.1, 0.2, 0.3])
    for got, T in zip(moved(T_REF_CAM, np.tile(np.r_[w, d], (3, 1))), T_REF_CAM, strict=True):
        assert got == pytest.approx(transform(so3_exp(w), d) @ T)


LAGS_S = np.array([0.0, 0.3, -7.0])


def pairs_of(*pairs: tuple[int, int]) -> dict[tuple[int, int], PairFit]:
    return {
        (a, b): PairFit(inverse(T_REF_CAM[a]) @ T_REF_CAM[b], LAGS_S[b] - LAGS_S[a], 0.9, 400) for a, b in pairs
    }  # fmt: skip


@pytest.mark.parametrize("joined", [((0, 1), (1, 2)), ((0, 2), (1, 2)), ((0, 1), (0, 2))])
def test_pairs_join_cameras_whichever_way_they_are_named(joined: Sequence[tuple[int, int]]) -> None:
    T, offsets = spanning_tree(pairs_of(*joined), "abc")
    assert pytest.approx(T_REF_CAM) == T and offsets == pytest.approx(LAGS_S)


@pytest.mark.parametrize(("agree", "shared"), [(0.95, 300), (0.3, 1000), (0.26, 20)])
def test_the_pairs_that_agree_on_most_join(agree: float, shared: int) -> None:
    wrong = PairFit(np.eye(4), 1.0, agree, shared)
    T, offsets = spanning_tree(pairs_of((0, 1), (1, 2)) | {(0, 2): wrong}, "abc")
    assert pytest.approx(T_REF_CAM) == T and offsets == pytest.approx(LAGS_S)


def test_a_camera_that_agrees_with_none_is_named() -> None:
    poor = PairFit(np.eye(4), 1.0, 0.24, 1000)
    with pytest.raises(ObserveError, match=r"^c never saw the hand together with a, b: move the hand where both see"):
        spanning_tree(pairs_of((0, 1)) | {(0, 2): poor, (1, 2): poor}, "abc")


def test_a_path_is_read_at_the_nearest_moment_and_ends_where_it_ends() -> None:
    joints = np.arange(4.0)[:, None, None] * np.ones((4, 21, 3))
    path = Path(100 + np.arange(4) / 30, joints, 10 * joints)
    assert [path.at(100 + t)[0][0, 0] for t in (-5.0, 0.0, 0.02, 0.06, 9.0)] == [0, 0, 1, 2, 3]
    assert path.at(100.02)[1][0, 0] == 10


def test_all_cameras_are_placed_at_once_with_their_clocks_and_the_hand_s_path() -> None:
    offsets = np.array([0.0, 0.012, -0.009])
    sights = [sight_of(c, offsets[c], seconds=7.0, noise_m=0.003, wild=0.1 * (c == 1)) for c in range(3)]
    sights[0] = seen_only(sights[0], sights[0].times_s > 22)
    fit = fit_joints(sights, np.random.default_rng(0))
    assert max(away_mm(fit.T_ref_cam[c], c) for c in (1, 2)) < 1.5
    assert fit.offsets_s == pytest.approx(offsets, abs=1e-3)
    assert fit.rms_m == pytest.approx(3**0.5 * 0.003, rel=0.25)
    path = fit.path
    assert np.abs(path.joints_m - hand_at(path.times_s)).max(initial=0, where=np.isfinite(path.joints_m)) < 0.02
    assert np.isfinite(path.joints_m).mean() > 0.9
    h = 1e-4
    velocities = (hand_at(path.times_s + h) - hand_at(path.times_s - h)) / (2 * h)
    assert np.median(np.abs(path.velocities_m_s - velocities)) < 0.03
    assert not fit.covariance[:7].any() and 0 < fit.covariance[13, 13] ** 0.5 < 2e-3


def test_where_no_camera_saw_the_hand_it_has_no_place() -> None:
    sights = [seen_only(s, np.abs(s.times_s - 25) > 1) for s in (sight_of(0), sight_of(1))]
    path = solve(sights, T_REF_CAM[:2], np.zeros(2)).path
    gone = np.isnan(path.joints_m).all((1, 2))
    assert gone[np.abs(path.times_s - 25) < 0.9].all() and not gone[np.abs(path.times_s - 25) > 1.1].any()
    with pytest.raises(ObserveError, match=r"^no two cameras saw the hand at one time$"):
        early, late = (seen_only(s, (s.times_s < 25) == first) for s, first in zip(sights, (True, False), strict=True))
        solve([early, late], T_REF_CAM[:2], np.zeros(2))


def test_the_clock_of_a_hand_that_rests_stays_where_it_was() -> None:
    def resting(times: Array) -> Array:
        return hand_at(np.full(len(times), 20.0))

    start = np.array([0.0, 0.004])
    fit = solve([sight_of(c, hand=resting) for c in (0, 1)], T_REF_CAM[:2], start)
    assert fit.offsets_s == pytest.approx(start, abs=0.05)


@pytest.mark.slow
def test_errors_that_go_together_for_seconds_are_in_the_covariance() -> None:
    """A network's joints are off in one direction for a while."""
    predicted, actual = [], []
    for seed in range(5):
        sights = []
        for c in (0, 1):
            sight = sight_of(c, seconds=15.0, noise_m=0.001, seed=seed)
            off = np.random.default_rng([seed, c, 1]).normal(0, 0.003, (6, 21, 3))
            joints = sight.joints_m + off[((sight.times_s - 20) // 3).astype(int)]
            sights.append(Sight("c", "depth", LENS, sight.times_s, joints))
        fit = solve(sights, T_REF_CAM[:2], np.zeros(2))
        predicted.append(volume_sigma_mm(fit.covariance[7:13, 7:13]))
        actual.append(away_mm(fit.T_ref_cam[1], 1))
    assert 0.6 < np.linalg.norm(predicted) / np.linalg.norm(actual) < 1.7, (predicted, actual)
