"""Rendered infrared pictures of the printed board: they are where they should be, and a rig comes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("numba", reason="the trainer's pictures need numba")
pytest.importorskip("cv2", reason="the board needs OpenCV: pip install '.[calibration]'")

from edge_hand.calibration.corners import BoardDetector
from edge_hand.hand import se3
from edge_hand.trainer.evaluate_board import Infrared, board_clip, judge, main, solve

pytest.importorskip("cv2").setNumThreads(1)


def test_the_corners_in_a_picture_are_where_the_truth_has_them():
    clip = board_clip(0)
    for camera in range(3):
        source = Infrared(clip, camera, 30.0)
        found = BoardDetector(clip.target).find(source.picture(60))
        at = clip.rig.time_s(camera, 60)
        T = se3.inverse(clip.rig.T_ref_cam[camera]) @ clip.T_ref_board(at)
        off = found.pixels - source.intrinsics.project(se3.apply(T, clip.target.corners_m()))[found.ids]
        assert len(off) == len(clip.target.corners_m())
        assert np.abs(off.mean(0)).max() < 0.03 and off.std(0).max() < 0.12


def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path):
    refused = CliRunner().invoke(main, ["--json", str(tmp_path)])
    assert refused.output == f"evaluate_board: {tmp_path} cannot be written: is a directory\n"


@pytest.mark.slow
def test_a_moving_board_and_unknown_clocks_give_the_rig_to_a_third_of_a_millimetre():
    clip = board_clip(1, cameras=2, seconds=6.0)
    rows = judge(clip, solve(clip).rig)
    assert max(row.mm for row in rows) < 0.3 and max(abs(row.clock_ms) for row in rows) < 1


@pytest.mark.slow
def test_a_board_that_is_too_large_fails():
    quality = solve(board_clip(0, cameras=2, seconds=4.0, scale=1.01)).rig.quality
    assert quality.verdict == "fail" and any("larger than said" in text for text in quality.warnings)
