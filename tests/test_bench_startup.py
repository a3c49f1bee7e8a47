"""The bench times a fresh daemon: as it ships, and losing nothing if it does not start."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from edge_hand.edge.bench import BenchError, measure
from edge_hand.edge.bench.measure import Source, bench
from edge_hand.edge.bench.report import table
from edge_hand.edge.bench.startup import startup_s
from edge_hand.edge.networks.card import DEFAULT_MODEL

MODE = "320x240@60"


def test_a_fresh_daemon_is_timed_to_its_first_message_whatever_this_device_is_set_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "edge-hand" / "config.toml"
    config.parent.mkdir()
    config.write_text('keys = "/none"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("EDGE_HAND_METRICS", "/none")
    arguments = ["--camera", "synthetic", "--mode", "160x120@30", "--engine", "onnxruntime", "--finder", "geometry"]
    begun_s = time.perf_counter()
    took_s = startup_s([*arguments, "--no-fast"], limit_s=100)
    assert 0.1 < took_s < time.perf_counter() - begun_s


def test_a_daemon_that_does_not_start_says_why() -> None:
    with pytest.raises(BenchError, match=r"^bench: a fresh daemon ended at once \(edge-hand: camera 'none': "):
        startup_s(["--camera", "none"])


def test_what_was_measured_is_not_lost_with_a_daemon_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(arguments: list[str]) -> float:
        raise BenchError("bench: a fresh daemon sent nothing within 30 s")

    monkeypatch.setattr(measure, "startup_s", fails)
    found = bench(
        Source("synthetic", None, MODE), engine="onnxruntime", model=DEFAULT_MODEL, threads=1, frames=2, at_rate=False
    )
    assert found["frames"] == 2 and "startup_s" not in found
    assert "start to first message: not measured, a fresh daemon sent nothing within 30 s" in table(found)
