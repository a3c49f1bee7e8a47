"""Confidence: a probability that keeps its word, constants that come back, and the way into a model's card."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from edge_hand.edge.confidence import RADIUS_M, Calibration, calibration_of, joint_confidence
from edge_hand.edge.networks.card import MODELS, load_card
from edge_hand.exporters.onnx import export
from edge_hand.hand.arrays import Array
from edge_hand.trainer import reliability
from edge_hand.trainer.evaluate import Model, evaluate
from edge_hand.trainer.reliability import confidence_report, fit_calibration, main

TRUE = Calibration(1.5, -2.0, -1.5)


def drawn(n: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Expected errors (N, 21) m, visibility, and errors that are within the radius as often as TRUE says."""
    rng = np.random.default_rng(seed)
    expected = RADIUS_M * np.exp(rng.normal(-0.3, 0.5, (n, 21)))
    visible = rng.choice([-1, 0, 1], (n, 21), p=[0.1, 0.3, 0.6])
    within = rng.random((n, 21)) < joint_confidence(expected, visible, TRUE)
    return expected, visible, np.where(within, 0.5, 2.0) * RADIUS_M


def test_confidence_falls_with_the_expected_error_and_for_joints_not_seen() -> None:
    errors = np.linspace(0, 0.06, 21)
    seen, hidden, unknown = (joint_confidence(errors, np.full(21, v)) for v in (1, 0, -1))
    assert (np.diff(seen) <= 0).all() and (np.diff(seen)[1:] < 0).all()
    assert (hidden <= seen).all() and (hidden[1:] < seen[1:]).all()
    np.testing.assert_array_equal(hidden, unknown)
    assert seen[0] > 0.99 and 0 < hidden[-1] < 0.1


def test_confidence_is_a_probability_for_any_error() -> None:
    for error in (0.0, 1e-12, 1.0, 1e6):
        c = joint_confidence(np.full(21, error), np.ones(21), TRUE)
        assert np.isfinite(c).all() and (c >= 0).all() and (c <= 1).all()


def test_the_constants_that_made_the_errors_are_found_again() -> None:
    expected, visible, errors = drawn(4000)
    np.testing.assert_allclose(fit_calibration(expected, visible, errors < RADIUS_M), TRUE, atol=0.08)


def test_a_fit_survives_a_set_where_all_is_within_and_seen() -> None:
    expected = np.full((3, 21), 0.003)
    fitted = fit_calibration(expected, np.ones((3, 21)), np.ones((3, 21), bool))
    assert np.isfinite(fitted).all()
    assert joint_confidence(expected[0], np.ones(21), fitted).min() > 0.9


def test_the_report_tells_true_promises_from_false_ones() -> None:
    report = confidence_report(*drawn(3000))
    assert report["ece"] < 0.02 and report["hands"] == 3000
    for b in report["bins"]:
        assert abs(b["confidence"] - b["within"]) < 0.08
    assert report["radius_mm"] == 15
    assert report["within"]["seen"]["within"] > report["within"]["hidden"]["within"]
    boast = reliability.reliability(np.full(1000, 0.95), np.arange(1000) % 2 == 0)
    assert boast == {"ece": 0.45, "bins": [{"from": 0.9, "n": 1000, "confidence": 0.95, "within": 0.5}]}


def test_the_command_prints_the_table_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "test.json"
    result.write_text(json.dumps({"confidence": confidence_report(*drawn(100))}))
    picture = tmp_path / "confidence.png"
    assert main([str(result), "--out", str(picture)]) == 0
    assert "expected calibration error" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_results_of_one_name_are_told_apart_by_their_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / folder / "test.json" for folder in ("nano", "base")]
    for file in files:
        file.parent.mkdir()
        file.write_text(json.dumps({"confidence": confidence_report(*drawn(100))}))
    assert main(list(map(str, files))) == 0
    said = capsys.readouterr().out
    assert all(f"{file}: constants" in said for file in files)


def test_a_result_without_a_table_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.json").write_text('{"joint_mm": {}}')
    assert main([str(tmp_path / "old.json")]) == 1
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("old.json: no table of confidence; `edge-hand eval --data synthetic:test --json` writes one")
    )


@pytest.mark.slow
def test_evaluation_measures_the_constants_and_export_puts_them_into_the_card(tmp_path: Path) -> None:
    table = evaluate("synthetic:test", Model(MODELS / "dgn-nano-int8.onnx"), 30)["confidence"]
    assert table["hands"] == 30 and sum(b["n"] for b in table["bins"]) == 15 * 21
    assert np.isfinite(table["calibration"]).all() and table["within"]["seen"]["share"] > 0.4
    out = tmp_path / "net.onnx"
    assert export(MODELS / "dgn-nano.pt", out, {"confidence": table}).confidence == table["calibration"]
    assert load_card(out).confidence == table["calibration"]


@pytest.mark.parametrize("name", ["dgn-nano", "dgn-nano-int8"])
def test_shipped_networks_are_calibrated(name: str) -> None:
    card = load_card(MODELS / f"{name}.onnx")
    calibration = calibration_of(card.confidence)
    assert calibration != Calibration() and calibration.slope < 0 and calibration.hidden < 0
    assert card.metrics["confidence"]["ece"] < 0.03


def test_a_card_keeps_the_constants_and_does_without_them(tmp_path: Path) -> None:
    card = load_card(MODELS / "dgn-nano-int8.onnx")
    model = tmp_path / "m.onnx"
    model.write_bytes((MODELS / "dgn-nano-int8.onnx").read_bytes())
    replace(card, confidence=[1.0, -2.0, -3.0]).write(model)
    assert calibration_of(load_card(model).confidence) == Calibration(1.0, -2.0, -3.0)
    values = asdict(card)
    del values["confidence"]
    model.with_suffix(".json").write_text(json.dumps(values))
    assert calibration_of(load_card(model).confidence) == Calibration()
