"""The belief that a proposal is a hand, and the clips that steadiness is measured on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from edge_hand.edge.engines import open_engine
from edge_hand.edge.finder import open_finder
from edge_hand.edge.look import Eye, belief, evidence
from edge_hand.edge.networks.card import MODELS, load_card
from edge_hand.edge.tracker import Tracker
from edge_hand.trainer import evaluate_rig, evaluate_steadiness, judge
from edge_hand.trainer.evaluate_steadiness import bone_std_mm, clip, follow, jitter_mm, still, swing
from edge_hand.trainer.judge import cases
from edge_hand.trainer.logistic import fit
from edge_hand.trainer.synth.rooms import SceneGenerator


def test_the_fit_finds_the_curve_that_made_the_answers() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(20_000), rng.normal(size=(20_000, 2))])
    true = np.array([-0.5, 1.5, -2.0])
    y = (rng.random(20_000) < 1 / (1 + np.exp(-x @ true))).astype(float)
    np.testing.assert_allclose(fit(x, y), true, atol=0.1)


def test_more_of_what_speaks_for_a_hand_is_believed_more() -> None:
    eye = Eye(open_engine(), {"crop": 0.0, "engine": 0.0})
    frame, joints = next(clip(0, 1, 30, still, 1.0, False))
    look = eye.look(frame, joints.mean(0), False)
    assert belief(look, 0.88) > belief(look, 0.7) > belief(look, 0.1)
    assert belief(look, 0.99) == belief(look, 0.88)  # it is as sure of some real faces
    doubtful = look._replace(prediction=replace(look.prediction, presence_logit=-4.0))
    assert belief(doubtful, 0.5) < belief(look, 0.5)
    assert np.isfinite(evidence(look, 0.0)).all() and np.isfinite(evidence(look, 1.0)).all()
    away = eye.look(frame, joints.mean(0) + (0.3, 0, 0), False)
    assert belief(away, 0.02) < 0 < belief(look, 0.9)


def test_cases_of_a_scene_say_whether_a_hand_was_there() -> None:
    eye, finder = Eye(open_engine(), {"crop": 0.0, "engine": 0.0}), open_finder()
    generator = SceneGenerator("val")
    found = [case for i in range(12) for case in cases(generator.scene(i), eye, finder)]
    assert any(case.is_hand for case in found) and all(case.evidence.shape == (5,) for case in found)


def test_a_clip_is_one_hand_whose_bones_keep_their_length() -> None:
    first, second = ([joints for _, joints in clip(1, 40, 30, swing, 1.2, True)] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert bone_std_mm(np.array(first)) < 1e-5 < jitter_mm(np.array(first))
    speed = np.abs(np.diff([joints[0, 0] for _, joints in clip(1, 60, 30, swing, 1.0, False)])).max() * 30
    assert speed == pytest.approx(2.0, rel=0.05)


def test_a_still_hand_does_not_move_from_one_second_to_the_next() -> None:
    joints = np.array([joints for _, joints in clip(1, 25, 10, still, 1.0, False)])  # 2.5 s
    np.testing.assert_array_equal(joints, np.broadcast_to(joints[0], joints.shape))


def test_steadiness_is_written_of_the_network_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joints = np.random.default_rng(0).normal(size=(3, 21, 3))
    seen = evaluate_steadiness.Clip(joints, joints, joints, np.zeros((3, 20)), missed=1)
    monkeypatch.setattr(evaluate_steadiness, "follow", lambda *_: seen)
    out = tmp_path / "new" / "steadiness.json"
    given = ["--hands", "1", "--model", "dgn-nano", "--finder", "geometry", "--json", str(out)]
    done = CliRunner().invoke(evaluate_steadiness.main, given)
    assert done.exit_code == 0 and done.output.startswith("30 Hz    still_raw_mm "), done.output
    result = json.loads(out.read_text())
    assert result["model"] == load_card(MODELS / "dgn-nano.onnx").sha256 and result["90 Hz"]["measured"] == 6


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
def test_steadiness_without_a_hand_is_nan_and_says_how_many_were_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = np.zeros((0, 21, 3))
    unseen = evaluate_steadiness.Clip(nothing, nothing, nothing, np.zeros((0, 20)), missed=4)
    monkeypatch.setattr(evaluate_steadiness, "follow", lambda *_: unseen)
    done = CliRunner().invoke(evaluate_steadiness.main, ["--hands", "1", "--finder", "geometry"])
    assert done.exit_code == 0 and "bone_std_mm nan" in done.output and "missed 8  measured 0" in done.output


@pytest.mark.parametrize("missing", ["--model", "--finder"])
def test_a_network_that_is_not_there_is_one_line(missing: str) -> None:
    refused = CliRunner().invoke(judge.main, [missing, "nosuch"])
    assert str(refused.exception).startswith("judge: model nosuch: no such file (shipped with edge-hand: ")


@pytest.mark.parametrize("report", [evaluate_steadiness, evaluate_rig])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(report: Any, tmp_path: Path) -> None:
    name = report.__name__.rpartition(".")[2]
    refused = CliRunner().invoke(report.main, ["--json", "/dev/null/x/y.json"])
    assert str(refused.exception) == f"{name}: folder /dev/null/x cannot be made: not a directory"
    refused = CliRunner().invoke(report.main, ["--json", str(tmp_path)])
    assert refused.output == f"{name}: {tmp_path} cannot be written: is a directory\n"


def test_a_clip_is_followed_and_what_comes_before_is_left_out() -> None:
    clip_ = follow(Tracker(open_engine(), max_hands=1), clip(0, 20, 30, still, 1.0, False), after_s=0.3)
    assert len(clip_.truth) + clip_.missed == 11
    assert clip_.missed == 0 and clip_.error_mm(clip_.published) < 20
