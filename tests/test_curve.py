"""Learning curves from the logs of runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from edge_hand.trainer import curve


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "nano" / "log.jsonl"
    path.parent.mkdir()
    entries = [{"seen": 500, "loss": 3.0}, {"seen": 1000, "val_joint_mm": 20.0}, {"seen": 4000, "val_joint_mm": 10.04}]
    path.write_text("".join(json.dumps(e) + "\n" for e in entries))
    return path


def test_a_curve_is_the_validations_of_a_log(log: Path) -> None:
    assert curve.read_curve(log) == [(1000, 20.0), (4000, 10.04)]


def test_the_table_has_a_column_a_run_and_a_row_a_number_of_samples() -> None:
    text = curve.table({"a": [(1000, 20.0)], "b": [(1000, 19.0), (2000, 18.26)]})
    assert text.splitlines()[2:] == ["| 1,000 | 20.0 | 19.0 |", "| 2,000 |  | 18.3 |"]


def test_the_picture_shows_each_run_in_its_colour(log: Path) -> None:
    drawn = curve.picture({"a": curve.read_curve(log), "b": [(1000, 30.0), (4000, 25.0)]})
    assert drawn.shape == (480, 720, 3)
    for colour in curve.COLOURS[:2]:
        assert (drawn == np.array(colour)).all(2).sum() > 100
    assert not (drawn == np.array(curve.COLOURS[2])).all(2).any()


def test_the_command_prints_the_table_and_writes_the_picture(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = log.with_name("curve.png")
    assert curve.main([str(log), "--out", str(out)]) == 0
    assert "| 4,000 | 10.0 |" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")


def test_runs_of_one_name_are_told_apart_by_their_paths(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = log.parents[1] / "yesterday" / "nano" / "log.jsonl"
    other.parent.mkdir(parents=True)
    other.write_text('{"seen": 1000, "val_joint_mm": 30.0}\n')
    assert curve.main([str(log), str(other)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"| samples | {log} | {other} |" and "| 1,000 | 20.0 | 30.0 |" in said


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "not a run's log"), ('{"seen": 5}\n', "no validation in it"), ("[1]\n", "no validation in it")],
)
def test_what_is_not_a_log_is_one_line(log: Path, text: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    log.write_text(text)
    assert curve.main([str(log)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{log}: {why}") and said.count("\n") == 1


def test_a_missing_log_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert curve.main([str(tmp_path / "none.jsonl")]) == 1
    assert "No such file" in capsys.readouterr().err
