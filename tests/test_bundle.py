"""The bundle adjustment against simulated rigs whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pytest
from edge_hand.calibration.board import _half as half
from edge_hand.calibration.bundle import BundleError, Options, Scene, Solution, projection, solve, view_residuals
from edge_hand.calibration.corners import View
from edge_hand.calibration.motion import moment, share_of_neighbours
from edge_hand.calibration.start import LONGEST_RUN, Moments, moments_of
from edge_hand.calibration.target import TARGETS
from edge_hand.calibration.uncertainty import inverted_covariance, pose_difference, volume_sigma_mm
from edge_hand.hand.arrays import Array
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.se3 import apply, inverse, so3_exp, so3_log, transform
from hypothesis import given, settings
from hypothesis import strategies as st

CORNERS = TARGETS["a4"].corners_m()
LENS = Intrinsics(1280, 720, 640.0, 642.0, 639.0, 361.0, (0.08, -0.1, 0.001, -0.001, 0.02))
PERIOD = 1 / 30
NO_MOTION = Options(offsets=False)


class Sim(NamedTuple):
    T_camera_ref: Array
    offsets_s: Array
    views: list[View]
    board_at: Any


def rig_poses(rng: np.random.Generator, cameras: int) -> Array:
    """Cameras on an arc around a point 0.65 m ahead of the first, 40 degrees apart."""
    poses = []
    for c in range(cameras):
        turn = so3_exp(np.array([0, -np.radians(40) * c, 0]))
        T_ref_camera = transform(turn, np.array([0, 0, 0.65]) - turn @ np.array([0, 0, 0.65]))
        if c:
            T_ref_camera = T_ref_camera @ transform(so3_exp(rng.normal(size=3) * 0.03), rng.normal(size=3) * 0.01)
        poses.append(inverse(T_ref_camera))
    return np.stack(poses)


def simulate(seed: int, bursts: int = 12, noise_px: float = 0.2, offset_s: float = 0.0, cameras: int = 3) -> Sim:
    """Bursts of three pictures of a moving board, each camera with its own clock."""
    rng = np.random.default_rng(seed)
    T = rig_poses(rng, cameras)
    offsets = np.r_[0, rng.uniform(0.5, 1, cameras - 1) * rng.choice([-offset_s, offset_s], cameras - 1)]
    phase, rate = rng.uniform(0, 6.28, (6, 2)), rng.uniform(1, 4, (6, 2))
    size = np.array([0.25, 0.35, 0.25, 0.07, 0.06, 0.06])

    def board_at(t_s: float) -> Array:
        x = size * np.sin(rate * t_s + phase).sum(1)
        turn = so3_exp(np.array([0, -np.radians(40) * (cameras - 1) / 2, 0])) @ so3_exp(x[:3])
        return transform(turn, x[3:] + [0, 0, 0.65])

    views = []
    for burst in range(bursts):
        for frame in range(3):
            t_s = burst * 1.0 + frame * PERIOD
            for c in range(cameras):
                seen = apply(T[c], apply(board_at(t_s + offsets[c]), CORNERS))
                pixels = LENS.project(seen)
                inside = (pixels > 5).all(1) & (pixels < (1275, 715)).all(1)
                if inside.sum() >= 6:
                    noisy = pixels[inside] + rng.normal(size=(inside.sum(), 2)) * noise_px
                    views.append(View(c, t_s, np.flatnonzero(inside), noisy))
    return Sim(T, offsets, views, board_at)


def start_near(sim: Sim, moving: bool, seed: int = 0) -> tuple[Scene, Moments]:
    """Truth, disturbed by degrees and centimetres; offsets from zero."""
    rng = np.random.default_rng(seed)
    zero = np.zeros(len(sim.T_camera_ref))
    moments = moments_of(sim.views, zero, PERIOD, moving=moving)
    cameras = sim.T_camera_ref.copy()
    for c in range(1, len(cameras)):
        cameras[c] = transform(so3_exp(rng.normal(size=3) * 0.03), rng.normal(size=3) * 0.02) @ cameras[c]
    boards = np.stack(
        [
            sim.board_at(t) @ transform(so3_exp(rng.normal(size=3) * 0.03), rng.normal(size=3) * 0.01)
            for t in moments.knots_s
        ]
    )
    return Scene(cameras, zero, (LENS,) * len(cameras), moments.knots_s, boards, moments.runs), moments


def solved(sim: Sim, options: Options) -> Solution:
    scene, moments = start_near(sim, options.offsets)
    return solve(scene, moments.views, CORNERS, options)


def error_vector(solution: Solution, sim: Sim, camera: int) -> Array:
    moved = solution.scene.T_camera_ref[camera] @ inverse(sim.T_camera_ref[camera])
    return np.r_[so3_log(moved[:3, :3]), moved[:3, 3]]


def volume_error_mm(solution: Solution, sim: Sim, camera: int) -> float:
    return pose_difference(inverse(solution.scene.T_camera_ref[camera]), inverse(sim.T_camera_ref[camera])).volume_mm


def test_pictures_of_one_time_give_the_rig_to_a_third_of_a_millimetre() -> None:
    sim = simulate(1)
    solution = solved(sim, NO_MOTION)
    assert solution.converged
    assert max(volume_error_mm(solution, sim, c) for c in (1, 2)) < 0.3
    assert solution.sigma_px == pytest.approx(0.2, rel=0.1)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10_000))
def test_unknown_clocks_are_found_with_the_cameras(seed: int) -> None:
    sim = simulate(seed, bursts=10, offset_s=0.015)
    solution = solved(sim, Options())
    assert np.abs(solution.scene.offsets_s - sim.offsets_s).max() < 1e-3
    assert max(volume_error_mm(solution, sim, c) for c in (1, 2)) < 0.4


def test_clocks_taken_for_equal_cost_pixels_and_millimetres() -> None:
    sim = simulate(3, offset_s=0.015)
    with_offsets, without = solved(sim, Options()), solved(sim, NO_MOTION)
    assert without.rms_px > 1.5 * with_offsets.rms_px
    sure = with_offsets.camera_covariance(1)
    e = error_vector(with_offsets, sim, 1)
    assert 0.05 < e @ np.linalg.solve(sure, e) / 6 < 4 and volume_sigma_mm(sure) < 1
    assert np.abs(with_offsets.scene.offsets_s[1] - sim.offsets_s[1]) < 4 * with_offsets.offset_sigma_s(1) < 2e-3
    assert not with_offsets.camera_covariance(0).any() and with_offsets.offset_sigma_s(0) == 0
    assert not without.scene.offsets_s.any() and without.offset_sigma_s(1) == 0
    assert volume_error_mm(without, sim, 1) > 2 * volume_error_mm(with_offsets, sim, 1)


@pytest.mark.parametrize("neighbours", ["both", "before", "after", "none"])
def test_jacobians_are_those_of_differences(neighbours: str) -> None:
    sim = simulate(5, bursts=1, offset_s=0.01)
    scene, moments = start_near(sim, True)
    runs = {
        "both": (slice(0, 3),), "before": (slice(0, 2), slice(2, 3)), "after": (slice(0, 1), slice(1, 3)),
        "none": (slice(0, 1), slice(1, 2), slice(2, 3)),
    }  # fmt: skip
    scene = replace(scene, runs=runs[neighbours], offsets_s=np.array([0, 0.004, -0.006]))
    view = next(view for view, knot in moments.views if knot == 1 and view.camera == 1)
    _, jacobian = view_residuals(scene, view, 1, CORNERS)
    assert jacobian[..., 11:17].any() == (neighbours in ("both", "before"))
    assert jacobian[..., 23:].any() == (neighbours in ("both", "after"))
    step = 1e-6

    def at(column: int, h: float) -> Array:
        d = np.zeros(29)
        d[column] = h
        cameras, boards = scene.T_camera_ref.copy(), scene.T_ref_board.copy()
        cameras[1] = transform(so3_exp(d[:3]), d[3:6]) @ cameras[1]
        lens = replace(LENS, fx=LENS.fx + d[6], fy=LENS.fy + d[7], cx=LENS.cx + d[8], cy=LENS.cy + d[9])
        for k in range(3):
            w = d[11 + 6 * k : 17 + 6 * k]
            boards[k] = transform(boards[k][:3, :3] @ so3_exp(w[:3]), boards[k][:3, 3] + w[3:])
        moved = replace(
            scene, T_camera_ref=cameras, offsets_s=scene.offsets_s + [0, d[10], 0], intrinsics=(LENS, lens, LENS),
            T_ref_board=boards,
        )  # fmt: skip
        return view_residuals(moved, view, 1, CORNERS)[0]

    for column in range(29):
        numeric = (at(column, step) - at(column, -step)) / (2 * step)
        assert np.allclose(jacobian[:, :, column], numeric, rtol=1e-5, atol=1e-4), column


def test_a_board_between_its_knots_is_on_the_parabola_through_them() -> None:
    at = [transform(so3_exp(np.array([0, 0, 0.3 * t + t * t])), np.array([t, t * t, 1.0])) for t in (-0.2, 0.0, 0.1)]
    found = moment(at[0], at[1], at[2], share_of_neighbours(0.05, 0.2, 0.1)).T_ref_board
    assert np.allclose(so3_log(found[:3, :3]), [0, 0, 0.3 * 0.05 + 0.05**2])
    assert np.allclose(found[:3, 3], [0.05, 0.0025, 1])


def test_wrong_corners_do_not_move_the_cameras() -> None:
    sim = simulate(7)
    rng = np.random.default_rng(0)
    spoilt = []
    for view in sim.views:
        wrong = rng.random(len(view.ids)) < 0.05
        shifted = np.where(wrong[:, None], view.pixels + rng.normal(size=view.pixels.shape) * 40, view.pixels)
        spoilt.append(View(view.camera, view.t_s, view.ids, shifted))
    solution = solved(sim._replace(views=spoilt), NO_MOTION)
    assert solution.rms_px > 5  # they are counted, not hidden
    assert max(volume_error_mm(solution, sim, c) for c in (1, 2)) < 0.4


@pytest.mark.slow
def test_covariance_is_honest() -> None:
    """Normalised squared errors over draws: 1 a degree of freedom if the covariance is true."""
    nees, offset_nees, predicted, actual = [], [], [], []
    options = Options()
    for seed in range(50):
        sim = simulate(100 + seed, bursts=4, offset_s=0.01, cameras=2)
        solution = solved(sim, options)
        e, cov = error_vector(solution, sim, 1), solution.camera_covariance(1)
        nees.append(e @ np.linalg.solve(cov, e) / 6)
        offset_nees.append(((solution.scene.offsets_s[1] - sim.offsets_s[1]) / solution.offset_sigma_s(1)) ** 2)
        predicted.append(volume_sigma_mm(inverted_covariance(sim.T_camera_ref[1], cov)))
        actual.append(volume_error_mm(solution, sim, 1))
    assert 0.6 < np.mean(nees) < 1.4
    assert 0.5 < np.mean(offset_nees) < 1.6
    ratio = np.sqrt(np.mean(np.square(predicted))) / np.sqrt(np.mean(np.square(actual)))
    assert 0.75 < ratio < 1.33


@settings(deadline=None)
@given(st.lists(st.integers(2, LONGEST_RUN), min_size=1, max_size=40))
def test_halving_a_recording_leaves_no_moment_without_a_neighbour(lengths: list[int]) -> None:
    ends = np.cumsum(lengths).tolist()
    moments = Moments(
        np.arange(float(ends[-1])), (), tuple(slice(b - n, b) for b, n in zip(ends, lengths, strict=True))
    )
    sides = [half(knot, moments, True) for knot in range(ends[-1])]
    for run in moments.runs:
        blocks = [len(list(same)) for _, same in groupby(sides[run])]
        assert min(blocks) >= 2 and max(blocks) <= 5


def test_moments_that_go_wrong_together_widen_the_covariance() -> None:
    sim = simulate(9, offset_s=0.015)
    assert solved(sim, NO_MOTION).inflation > 2
    assert solved(simulate(9), NO_MOTION).inflation < 1.5


def test_intrinsics_are_held_unless_asked_for() -> None:
    sim = simulate(11, bursts=20)
    scene, moments = start_near(sim, False)
    off = replace(LENS, fx=LENS.fx * 1.006)
    scene = replace(scene, intrinsics=(LENS, off, LENS))
    held = solve(scene, moments.views, CORNERS, NO_MOTION)
    freed = solve(scene, moments.views, CORNERS, replace(NO_MOTION, intrinsics=True, focal_sigma=0.01))
    assert held.scene.intrinsics[1] == off
    assert abs(freed.scene.intrinsics[1].fx - LENS.fx) < 0.5 * abs(off.fx - LENS.fx)


def seen_by(camera: int, count: int) -> View:
    return View(camera, 0.0, np.arange(count), np.zeros((count, 2)))


def test_what_one_camera_alone_saw_says_nothing_of_the_fit() -> None:
    views = ((seen_by(0, 2), 0), (seen_by(1, 3), 0), (seen_by(1, 4), 1))
    residuals = np.array([[3.0, 4.0]] * 4 + [[6.0, 8.0]] + [[300.0, 400.0]] * 4)
    found = Solution(start_near(simulate(1, bursts=1), False)[0], views, residuals, np.zeros((33, 33)), 1.0, 1.0, True)
    assert found.rms_px == pytest.approx(np.sqrt((4 * 25 + 100) / 5)) and found.median_px == 5


def test_what_is_behind_a_camera_is_far_from_where_it_was_seen() -> None:
    pixels, *_ = projection(np.array([[0.1, 0.05, -0.5], [0.1, 0.05, 0.0]]), replace(LENS, distortion=(0.0,) * 5))
    assert np.isfinite(pixels).all() and (np.linalg.norm(pixels - [LENS.cx, LENS.cy], axis=1) > 1e4).all()


def test_views_in_any_order_give_one_rig_and_no_view_gives_none() -> None:
    sim = simulate(13, bursts=6)
    scene, moments = start_near(sim, False)
    found, turned = (solve(scene, views, CORNERS, NO_MOTION) for views in (moments.views, moments.views[::-1]))
    assert turned.scene.T_camera_ref == pytest.approx(found.scene.T_camera_ref, abs=1e-9)
    assert found.rms_px == pytest.approx(turned.rms_px)
    with pytest.raises(BundleError, match=r"^no view of the board to solve from$"):
        solve(scene, [], CORNERS, NO_MOTION)


def test_a_camera_that_saw_nothing_stays_and_the_others_are_solved() -> None:
    sim = simulate(15, bursts=6)
    scene, moments = start_near(sim, False)
    views = [(view, knot) for view, knot in moments.views if view.camera < 2]
    found = solve(scene, views, CORNERS, NO_MOTION)
    assert np.array_equal(found.scene.T_camera_ref[2], scene.T_camera_ref[2])
    assert volume_error_mm(found, sim, 1) < 1 and not found.camera_covariance(2).any()


def test_with_the_cameras_held_only_the_board_is_placed() -> None:
    sim = simulate(17, bursts=6)
    scene, moments = start_near(sim, False)
    held = solve(scene, moments.views, CORNERS, Options(cameras=False, offsets=False))
    assert np.array_equal(held.scene.T_camera_ref, scene.T_camera_ref) and not held.covariance.any()
    assert held.rms_px > 1
    true = replace(scene, T_camera_ref=sim.T_camera_ref)
    assert solve(true, moments.views, CORNERS, Options(cameras=False, offsets=False)).sigma_px == pytest.approx(
        0.2, rel=0.15
    )


def test_a_start_far_off_is_solved_and_one_cut_short_has_not_settled() -> None:
    sim = simulate(19, bursts=6)
    scene, moments = start_near(sim, False)
    rng = np.random.default_rng(0)
    away = [transform(so3_exp(rng.normal(size=3) * 0.15), rng.normal(size=3) * 0.1) for _ in range(2)]
    far = replace(scene, T_camera_ref=np.stack([np.eye(4), *away]) @ scene.T_camera_ref)
    found = solve(far, moments.views, CORNERS, NO_MOTION)
    assert found.converged and max(volume_error_mm(found, sim, c) for c in (1, 2)) < 0.6
    assert not solve(far, moments.views, CORNERS, replace(NO_MOTION, iterations=2)).converged


@pytest.mark.slow
def test_a_lens_is_believed_as_far_as_is_said() -> None:
    sim = simulate(11, bursts=6)
    scene, moments = start_near(sim, False)
    off = replace(LENS, fx=LENS.fx * 1.006)
    scene = replace(scene, intrinsics=(LENS, off, LENS))
    moved = []
    for sigma in (3e-5, 0.1):  # 0.02 px and 64
        free = solve(scene, moments.views, CORNERS, replace(NO_MOTION, intrinsics=True, focal_sigma=sigma))
        moved.append(off.fx - free.scene.intrinsics[1].fx)
    assert abs(moved[0]) < 0.3 and moved[1] > 1
