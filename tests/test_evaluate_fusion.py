"""Three rendered cameras through the real tracker and wire: the fused hand is better than the best of them."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("numba", reason="the trainer's pictures need numba")

from edge_hand.hand import se3
from edge_hand.trainer import evaluate_fusion, evaluate_rig
from edge_hand.trainer.evaluate_fusion import Errors, evaluate, line, listen, main, rig_of, views_right
from edge_hand.trainer.synth.rig_views import rig_clip


@cache
def result() -> dict[str, Any]:
    clip = rig_clip(7, seconds=5.0, fps=60.0)
    told = [listen(clip, camera) for camera in range(3)]
    return evaluate(clip, told, rig_of(clip, off_mm=1.0, off_deg=0.15, off_ms=1.0), drop=True)


def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["evaluate_fusion", "--json", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"^evaluate_fusion: {tmp_path} cannot be written: is a directory$"):
        main()


def test_a_clip_that_cannot_be_made_is_one_line(monkeypatch: pytest.MonkeyPatch):
    words = "0 cameras, 10 s at 60 fps: all three must be more than 0"
    monkeypatch.setattr(sys, "argv", ["evaluate_fusion", "--cameras", "0"])
    with pytest.raises(SystemExit, match=f"^evaluate_fusion: {words}$"):
        main()
    assert CliRunner().invoke(evaluate_rig.main, ["--cameras", "0"]).output.endswith(f"evaluate_rig: {words}\n")


def test_the_rig_given_is_off_by_as_much_as_was_asked_and_says_so():
    clip = rig_clip(7, seconds=1.0)
    assert np.allclose(rig_of(clip).cameras[1].T_ref_cam, clip.T_ref_cam[1])
    middle = np.array([[0, 0, 0.6]])
    off, sigma = [], []
    for seed in range(30):
        camera = rig_of(clip, off_mm=1.0, off_deg=0.15, seed=seed).cameras[1]
        moved = camera.T_ref_cam @ se3.inverse(clip.T_ref_cam[1])
        off.append(se3.apply(moved, middle) - middle)
        lever = np.concatenate([-se3.skew(middle[0]), np.eye(3)], 1)
        sigma.append(np.trace(lever @ camera.covariance @ lever.T))
    assert np.sqrt((np.array(off) ** 2).sum(2).mean()) == pytest.approx(1e-3, rel=0.3)
    assert np.sqrt(sigma[0]) == pytest.approx(1e-3, rel=1e-6)


def test_it_is_told_how_many_views_were_right_about_a_joint_that_is_wrong():
    def errors(worst_mm: float, hand: bool = True) -> Errors:
        joint_mm = np.full((3, 21), 5.0 if hand else np.nan)
        joint_mm[1, 8] = worst_mm
        return Errors(joint_mm, np.zeros(2), np.arange(3) / 60)

    together = errors(50)
    assert views_right(together, [errors(60), errors(70)]) == [1, 0, 0]
    assert views_right(together, [errors(60), errors(10)]) == [0, 1, 0]
    assert views_right(together, [errors(np.nan, hand=False), errors(60)]) == [1, 0, 0]
    assert views_right(errors(39), [errors(60), errors(60)]) == [0, 0, 0]


@pytest.mark.parametrize("by_one", [True, False])
def test_a_view_without_a_hand_is_never_the_best_and_a_clip_without_any_is_one_line(
    by_one: bool, monkeypatch: pytest.MonkeyPatch
):
    clip = rig_clip(7, cameras=2, seconds=1.0)
    hand, none = (Errors(np.full((9, 21), mm), np.full(8, mm), np.arange(9) / 60) for mm in (5.0, np.nan))
    alone = [none, hand if by_one else none]
    monkeypatch.setattr(evaluate_fusion, "single", lambda clip, camera, told: alone[camera])
    monkeypatch.setattr(evaluate_fusion, "fused", lambda *_, **__: alone[1])
    found = evaluate(clip, [[], []], rig_of(clip))
    assert found["views"][clip.names[0]]["given"] == 0
    assert found["best"] == (clip.names[1] if by_one else None)
    said = "seed 7: best view 5.00 mm in 100 % of frames" if by_one else "seed 7: no camera sees the hand"
    assert line(found).startswith(said) and "\n" not in line(found)


@pytest.mark.slow
def test_the_fused_hand_is_better_than_the_best_view():
    assert result()["lower_by"] > 0
    assert result()["fused"]["mean_mm"] < 3.0
    assert result()["fused"]["worst_below_40mm"] > 0.995
    assert "lower" in line(result())


@pytest.mark.slow
def test_no_jump_is_seen_when_a_camera_leaves():
    """Nor by more than fused hands move about anyway."""
    assert result()["dropped"]["step_at_drop_mm"] < max(8.0, 1.5 * result()["fused"]["step_max_mm"])
    assert result()["dropped"]["given"] > 0.99
