"""Finding the board in a picture, and its pose: what is too little of a board, and the lens that it is seen through."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edge_hand.calibration.corners import BoardDetector, View, board_poses
from edge_hand.hand.arrays import Array
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.se3 import apply, so3_exp, transform
from numpy.typing import NDArray
from test_board import A4, PX_PER_MM, SHEET, cv2

T_BOARD = transform(so3_exp(np.array([0.3, -0.4, 0.1])), np.array([0.02, 0.01, 0.6]))
BENT = Intrinsics(960, 540, 800.0, 760.0, 470.0, 280.0, (0.1, -0.2, 0.002, -0.001, 0.05))


def test_a_board_printed_white_on_black_and_a_colour_picture_are_found_alike() -> None:
    found = BoardDetector(A4).find(SHEET)
    assert len(found.ids) == len(A4.corners_m())
    colour = np.asarray(cv2.cvtColor(SHEET, cv2.COLOR_GRAY2BGR), np.uint8)
    for target, image in (
        (A4, colour),
        (replace(A4, inverted=True), 255 - SHEET),
        (replace(A4, inverted=True), 255 - colour),
    ):
        other = BoardDetector(target).find(image)
        np.testing.assert_array_equal(other.ids, found.ids)
        np.testing.assert_allclose(other.pixels, found.pixels, atol=0.05)


def only(columns: slice, rows: slice) -> NDArray[np.uint8]:
    """The sheet with these squares of the board alone, the rest covered."""
    left, top = (np.array([297, 210]) - 1e3 * np.array(A4.size_m)) / 2
    x, y = (
        [round((start + 1e3 * A4.square_m * n) * PX_PER_MM) for n in (part.start, part.stop)]
        for start, part in ((left, columns), (top, rows))
    )
    covered = np.full_like(SHEET, 255)
    covered[slice(*y), slice(*x)] = SHEET[slice(*y), slice(*x)]
    return covered


@pytest.mark.parametrize(
    ("columns", "rows", "corners"),
    [
        (slice(0, 7), slice(1, 4), 12),
        (slice(0, 7), slice(1, 3), 0),  # six corners of one row: no tilt can be told
        (slice(0, 3), slice(0, 3), 0),  # two rows of two are too few
    ],
)
def test_too_little_of_a_board_counts_as_none_though_its_markers_are_told(
    columns: slice, rows: slice, corners: int
) -> None:
    found = BoardDetector(A4).find(only(columns, rows))
    assert len(found.ids) == len(found.pixels) == corners and len(found.markers) >= 3


def test_the_pose_of_a_board_is_found_through_a_lens_that_bends_and_is_not_square() -> None:
    points = A4.corners_m()
    view = View(0, 0.0, np.arange(len(points)), BENT.project(apply(T_BOARD, points)))
    best = board_poses(view, points, BENT)[0]
    np.testing.assert_allclose(best.T_camera_board, T_BOARD, atol=1e-5)
    assert best.rms_px < 0.01


def test_no_pose_near_the_one_found_fits_the_corners_better() -> None:
    points, rng = A4.corners_m(), np.random.default_rng(0)
    pixels = BENT.project(apply(T_BOARD, points)) + rng.normal(size=(len(points), 2))

    def rms_px(T: Array) -> float:
        return float(np.sqrt(((BENT.project(apply(T, points)) - pixels) ** 2).sum(1).mean()))

    poses = board_poses(View(0, 0.0, np.arange(len(points)), pixels), points, BENT)
    assert [pose.rms_px for pose in poses] == pytest.approx(sorted(rms_px(pose.T_camera_board) for pose in poses))
    T = poses[0].T_camera_board
    for step in 3e-4 * np.concatenate([np.eye(6), -np.eye(6)]):
        assert rms_px(transform(T[:3, :3] @ so3_exp(step[:3]), T[:3, 3] + step[3:])) > poses[0].rms_px
