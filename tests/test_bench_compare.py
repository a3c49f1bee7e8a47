"""The bench beside another tracker, MediaPipe: turn by turn, on the same machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from edge_hand.edge.bench import BenchError, compare, measure
from edge_hand.edge.bench.compare import MediaPipe, judge
from edge_hand.edge.bench.measure import Source, bench
from edge_hand.edge.bench.picture import colour_hand
from edge_hand.edge.bench.report import table
from edge_hand.edge.networks.card import DEFAULT_MODEL

MODE = "320x240@60"


def test_the_picture_for_others_shows_a_hand_in_skin_colour() -> None:
    picture = colour_hand(160, 120)
    assert picture.shape == (120, 160, 3) and picture.dtype == np.uint8
    skin = picture[..., 0] > picture[..., 2] + 10
    assert 0.04 < skin.mean() < 0.3 and not skin[:, 0].any() and not skin[0].any()


def test_the_ratio_is_of_the_medians_and_of_processor_time() -> None:
    class Other:
        name, ms, cpu_ms = "other", [4.0, 6.0, 50.0], [7.0, 8.0, 9.0]

        def turn(self) -> None:
            pass

    verdict = judge([1000.0, 1500.0, 9000.0], [1.0, 2.0, 30.0], Other())
    assert verdict["p50_ms"] == 6.0 and verdict["ours_p50_ms"] == 1.5
    assert verdict["times_faster"] == 4.0 and verdict["times_less_cpu"] == 4.0


def test_another_tracker_has_a_turn_beside_a_short_recording_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        name = "other"

        def __init__(self) -> None:
            self.ms, self.cpu_ms, self.turns = list[float](), list[float](), 0

        def turn(self) -> None:
            self.ms, self.cpu_ms, self.turns = [5.0], [4.0], self.turns + 1

    peer = Other()
    monkeypatch.setattr(measure, "FRAMES", 5)  # fewer than the block after which its turn comes
    found = bench(
        Source("synthetic", None, MODE), engine="onnxruntime", model=DEFAULT_MODEL, threads=1, at_rate=False,
        startup=False, peer=peer,
    )  # fmt: skip
    assert found["frames"] == 5 and peer.turns == 1 and found["compare"]["p50_ms"] == 5.0


WORKER = """
import json, sys
asked = json.loads(sys.stdin.buffer.readline())
assert len(sys.stdin.buffer.read(asked["width"] * asked["height"] * 3)) == 640 * 480 * 3
print(json.dumps({"version": "0.10.21", "followed": %s, "score": 0.9}), flush=True)
for line in sys.stdin.buffer:
    print(json.dumps({"ms": [5.0] * int(line), "cpu_ms": [4.0] * int(line)}), flush=True)
"""


def test_another_tracker_takes_its_turns_between_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER % True)
    monkeypatch.setattr(compare, "WORKER", worker)
    with MediaPipe(Path(sys.executable)) as peer:
        found = bench(
            Source("synthetic", None, MODE), engine="onnxruntime", model=DEFAULT_MODEL, threads=1, frames=90,
            at_rate=False, startup=False, peer=peer,
        )  # fmt: skip
    assert found["frames"] == 90 and found["compare"]["frames"] == 30  # a turn after 40, 80 and 90
    assert found["compare"]["p50_ms"] == 5.0 and found["compare"]["name"].startswith("MediaPipe Hands 0.10.21, full")
    assert "times faster" in table(found)


def test_a_tracker_that_does_not_follow_the_hand_is_no_yardstick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER % False)
    monkeypatch.setattr(compare, "WORKER", worker)
    with pytest.raises(BenchError, match="does not follow the hand of the picture"), MediaPipe(Path(sys.executable)):
        pass


def test_a_python_without_mediapipe_is_one_line() -> None:
    with (
        pytest.raises(BenchError, match=r"cannot run MediaPipe: ModuleNotFoundError: No module named 'mediapipe'$"),
        MediaPipe(Path(sys.executable)),
    ):
        pass
    with pytest.raises(BenchError, match=r"--compare-python /none: no such file"), MediaPipe(Path("/none")):
        pass


@pytest.mark.slow
def test_mediapipe_itself_follows_our_hand() -> None:
    python = os.environ.get("EDGE_HAND_MEDIAPIPE_PYTHON")
    if not python:
        pytest.skip("EDGE_HAND_MEDIAPIPE_PYTHON does not name a Python that has mediapipe==0.10.21")
    with MediaPipe(Path(python)) as peer:
        peer.turn()
        assert peer.about["score"] > 0.8 and len(peer.ms) == 10 and min(peer.cpu_ms) > 0
