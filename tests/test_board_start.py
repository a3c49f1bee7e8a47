"""Where the bundle starts: what was seen at one time, and where the cameras roughly are; the board's size by depth."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cv2", reason="the board needs OpenCV: pip install 'edge-hand[calibration]'")

from edge_hand.calibration import square, start
from edge_hand.calibration.bundle import BundleError
from edge_hand.calibration.corners import View
from edge_hand.calibration.motion import moment, right_jacobian, share_of_neighbours
from edge_hand.calibration.square import board_scale
from edge_hand.calibration.start import LONGEST_RUN, Moments, moments_of, shared_moments, start_scene
from edge_hand.calibration.target import TARGETS
from edge_hand.calibration.uncertainty import pose_difference
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.se3 import apply, inverse, so3_exp, so3_log, transform

Array = Any

CORNERS = TARGETS["a4"].corners_m()
LENS = Intrinsics(640, 480, 530.0, 530.0, 319.5, 239.5)
PERIOD = 0.1


def seen(*cameras_and_times: tuple[int, float]) -> list[View]:
    return [View(camera, t_s, np.zeros(0, np.int64), np.zeros((0, 2))) for camera, t_s in cameras_and_times]


def groups(moments: Moments) -> list[list[tuple[int, float]]]:
    """Cameras and their times, by knot."""
    return [sorted((v.camera, v.t_s) for v, k in moments.views if k == knot) for knot in range(len(moments.knots_s))]


def sorted_into(*cameras_and_times: tuple[int, float], moving: bool, offsets_s: Any = (0, 0, 0)) -> Moments:
    return moments_of(seen(*cameras_and_times), np.array(offsets_s, float), PERIOD, moving=moving)


def test_pictures_within_half_a_period_are_of_one_moment_and_no_camera_is_in_it_twice() -> None:
    found = sorted_into((0, 0.0), (1, 0.04), (0, 1.0), (1, 1.06), (0, 2.0), (0, 2.03), (1, 2.035), moving=False)
    assert groups(found) == [[(0, 0.0), (1, 0.04)], [(0, 2.03), (1, 2.035)]]
    assert found.knots_s == pytest.approx([0.02, 2.0325])
    assert found.runs == (slice(0, 1), slice(1, 2))


@pytest.mark.parametrize("late_s", [0.02, -0.02])
def test_moments_are_on_the_first_camera_s_clock(late_s: float) -> None:
    found = sorted_into(*((0, t) for t in (0.0, 0.1, 0.2)), *((1, t - 5) for t in (0.0, 0.1, 0.2)), moving=True,
                        offsets_s=(0, 5 + late_s))  # fmt: skip
    assert found.knots_s == pytest.approx(np.array([0, 0.1, 0.2]) + late_s / 2) and found.runs == (slice(0, 3),)
    assert [[camera for camera, _ in group] for group in groups(found)] == [[0, 1]] * 3


def both(*times: float) -> list[tuple[int, float]]:
    return [(camera, t) for t in times for camera in (0, 1)]


def test_a_moving_board_s_moments_need_a_neighbour_in_time_and_a_resting_one_s_do_not() -> None:
    views = both(0.0, 0.12, 0.4, 2.0)  # 0.12 s is late, and still the next picture
    moving, still = sorted_into(*views, moving=True), sorted_into(*views, moving=False)
    assert moving.knots_s == pytest.approx([0.0, 0.12]) and moving.runs == (slice(0, 2),)
    assert still.knots_s == pytest.approx([0.0, 0.12, 0.4, 2.0]) and len(still.runs) == 4
    gap = sorted_into(*both(0.0, 0.1, 0.4, 0.5), moving=True)
    assert gap.runs == (slice(0, 2), slice(2, 4)), "over a gap nothing is interpolated"


def test_what_one_camera_alone_saw_is_kept_where_it_tells_the_speed_of_a_shared_moment() -> None:
    views = [(0, -0.1), *both(0.0), *((0, t) for t in (0.1, 0.2, 0.3)), *both(0.4)]
    found = sorted_into(*views, moving=True)
    assert found.knots_s == pytest.approx([-0.1, 0.0, 0.1, 0.3, 0.4])
    assert found.runs == (slice(0, 3), slice(3, 5)), "what lies about a moment that is left out are no neighbours"
    assert sorted_into(*views, moving=False).knots_s == pytest.approx([0.0, 0.4])


def test_a_picture_that_came_twice_is_no_neighbour_of_itself() -> None:
    found = sorted_into((0, 0.0), *both(0.0, 0.1), moving=True)
    assert all((np.diff(found.knots_s[run]) > 0).all() for run in found.runs)


def test_a_long_stretch_is_cut_into_runs() -> None:
    found = sorted_into(*both(*np.arange(100) * PERIOD), moving=True)
    assert [run.stop - run.start for run in found.runs] == [LONGEST_RUN, LONGEST_RUN, 100 - 2 * LONGEST_RUN]


def test_shared_moments_are_counted() -> None:
    found = sorted_into(*both(0.0, 1.0, 2.0), (2, 2.0), moving=False)
    assert shared_moments(found, 3).tolist() == [[3, 3, 1], [3, 3, 1], [1, 1, 1]]


def a_rig() -> Array:
    """T_camera_ref (3, 4, 4): in a row, turned inwards."""
    poses = [
        transform(so3_exp(np.array([0.05 * c, -0.5 * c, 0.1 * c])), np.array([0.5, 0.02, 0.1]) * c) for c in range(3)
    ]
    return np.stack([inverse(T) for T in poses])


def a_board(rng: np.random.Generator) -> Array:
    """T_ref_board, far enough to look much like its mirrored self."""
    return transform(
        so3_exp(np.array([0, -0.4, 0]) + rng.normal(0, 0.15, 3)), np.array([0.3, 0, 1.4]) + rng.normal(0, 0.05, 3)
    )


def pictures(together: list[tuple[int, ...]], noise_px: float = 0.3) -> tuple[Array, list[Array], Moments]:
    """The rig, the board at each moment, and the moments: which cameras saw it."""
    rng, rig, boards, views = np.random.default_rng(3), a_rig(), [], []
    for knot, cameras in enumerate(together):
        boards.append(a_board(rng))
        for c in cameras:
            pixels = LENS.project(apply(rig[c] @ boards[-1], CORNERS)) + rng.normal(0, noise_px, (len(CORNERS), 2))
            views.append((View(c, float(knot), np.arange(len(CORNERS)), pixels), knot))
    runs = tuple(slice(k, k + 1) for k in range(len(together)))
    return rig, boards, Moments(np.arange(float(len(together))), tuple(views), runs)


def test_a_start_is_near_enough_although_single_views_may_be_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, boards, moments = pictures([(0, 1)] * 8 + [(1, 2)] * 8)
    chance, poses = np.random.default_rng(0), start.board_poses
    # Noise makes the mirrored pose fit better in seven views of ten, those of the first moment among them.
    mirrored = {(view.camera, view.t_s) for view, knot in moments.views if chance.random() < 0.7 or knot in (0, 8)}
    monkeypatch.setattr(
        start, "board_poses",
        lambda view, *rest: poses(view, *rest)[:: -1 if (view.camera, view.t_s) in mirrored else 1],
    )  # fmt: skip
    offsets = np.array([0.0, 1e-3, 2e-3])
    scene = start_scene(moments, CORNERS, [LENS] * 3, ["a", "b", "c"], offsets)
    for c in range(3):
        assert pose_difference(inverse(scene.T_camera_ref[c]), inverse(rig[c])).volume_mm < 60, c
    turns = so3_log(np.swapaxes(scene.T_ref_board[:, :3, :3], 1, 2) @ np.stack(boards)[:, :3, :3])
    assert np.degrees(np.linalg.norm(turns, axis=1)).max() < 8
    assert scene.T_ref_board[:, :3, 3] == pytest.approx(np.stack(boards)[:, :3, 3], abs=0.05)
    assert scene.offsets_s.tolist() == offsets.tolist() and scene.offsets_s is not offsets


def test_a_camera_is_joined_by_the_one_it_shares_most_with_and_by_three_moments_at_least() -> None:
    names = ["a", "b", "c"]
    _, _, moments = pictures([(0, 1)] * 4 + [(1, 2)] * 3 + [(0, 2)] * 2, 0.0)
    scene = start_scene(moments, CORNERS, [LENS] * 3, names, np.zeros(3))
    assert scene.T_camera_ref == pytest.approx(a_rig(), abs=1e-4)
    _, _, moments = pictures([(0, 1)] * 4 + [(1, 2)] * 2, 0.0)
    with pytest.raises(BundleError, match=r"^c saw the board together with a, b in 2 moments, needed are 3: show it"):
        start_scene(moments, CORNERS, [LENS] * 3, names, np.zeros(3))


@pytest.mark.parametrize("angle", [0.0, 9e-6, 1e-3, 0.1, 0.45, 2.0])
def test_the_jacobian_of_a_rotation_is_that_of_differences(angle: float) -> None:
    v = angle * np.array([0.6, -0.64, 0.48])
    h = 1e-6
    numeric = [(so3_log(so3_exp(v).T @ so3_exp(v + d)) - so3_log(so3_exp(v).T @ so3_exp(v - d))) / (2 * h)
               for d in h * np.eye(3)]  # fmt: skip
    assert right_jacobian(v) == pytest.approx(np.transpose(numeric), abs=1e-7)


def test_a_board_between_its_knots_leaves_them_where_they_are() -> None:
    knots = [transform(so3_exp(np.array([0, 0, t])), np.array([t, 0, 1.0])) for t in (0.0, 0.1, 0.2)]
    before = np.stack(knots)
    moment(*knots, share_of_neighbours(0.03, 0.1, 0.1))
    assert np.array_equal(np.stack(knots), before)


@cache
def a_view(n: int) -> tuple[View, Array]:
    """The board, turned in its plane by 45 degrees and tilted, 1.01 times as large; in front of it a finger, behind
    it a wall, and most of its depth without a reading."""
    T = transform(
        so3_exp(np.array([0.2 + 0.02 * n, 0.5, 0])) @ so3_exp(np.array([0, 0, np.pi / 4])), np.array([0, 0, 0.6])
    )
    v, u = np.mgrid[: LENS.height, : LENS.width]
    rays = LENS.rays(np.stack([u, v], -1).reshape(-1, 2))
    z = T[:3, 2] @ T[:3, 3] / (rays @ T[:3, 2])
    on_board = (np.abs((rays * z[:, None] - T[:3, 3]) @ T[:3, :2]) < np.abs(CORNERS[:, :2]).max(0) + 0.002).all(1)
    depth = np.where(on_board, 1.01 * z, 1.5)
    chance = np.random.default_rng(n).random(len(depth))
    depth = np.where(on_board & (chance < 0.12), 0.3, np.where(on_board & (chance > 0.4), 0.0, depth))
    view = View(0, float(n), np.arange(len(CORNERS)), LENS.project(apply(T, CORNERS)))
    return view, depth.reshape(LENS.height, LENS.width)


def test_depth_measures_the_board_s_true_size_and_nothing_beside_it() -> None:
    views = [a_view(n) for n in range(5)]
    assert board_scale(views, CORNERS, [LENS]) == pytest.approx(1.01, abs=1e-3)
    assert board_scale(views[:4], CORNERS, [LENS]) is None, "four views are too few"
    dark = [(view, np.zeros_like(depth)) for view, depth in views]
    assert board_scale(dark, CORNERS, [LENS]) is None
    wrong = [(views[0][0], np.full_like(views[0][1], 3.0))]
    assert board_scale(views + dark[:2] + wrong, CORNERS, [LENS]) == pytest.approx(1.01, abs=1e-3)


def test_a_board_at_the_picture_s_edge_and_one_without_a_pose_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    views = [a_view(n) for n in range(5)]
    far = max(views[0][0].pixels[:, 0])
    cut = Intrinsics(
        int(far) + 1, LENS.height, LENS.fx, LENS.fy, LENS.cx, LENS.cy
    )  # its last corner is in the last pixel
    at_edge = [(view, depth[:, : cut.width]) for view, depth in views]
    assert board_scale(at_edge, CORNERS, [cut]) == pytest.approx(1.01, abs=1e-3)
    poses = square.board_poses
    monkeypatch.setattr(square, "board_poses", lambda view, *rest: poses(view, *rest) if view.t_s else [])
    assert board_scale(views, CORNERS, [LENS]) is None
    assert board_scale([*views, a_view(5)], CORNERS, [LENS]) == pytest.approx(1.01, abs=1e-3)
