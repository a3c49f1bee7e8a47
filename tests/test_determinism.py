"""A recording through the shipping loop gives the same bytes again, whatever the clocks and the machine's speed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from edge_hand.edge.cameras import CameraError, open_camera
from edge_hand.edge.recordings.recording import Recording
from edge_hand.hand.wire import JointsMessage, MeshMessage, StatusMessage, decode

DEMO = Path(__file__).parents[1] / "edge" / "demo" / "hand.mcap"
TIMEOUT_S = 600
# Another day, another hour of uptime, a processor that stumbles.
ELSEWHEN = """
import random, sys, time
now, unix, sleep = time.monotonic_ns, time.time_ns, time.sleep
time.monotonic_ns = lambda: now() + 10**14
time.time_ns = lambda: unix() - 10**16
from edge_hand.edge import tracker
from edge_hand.edge.cli import main as cli
process = tracker.Tracker.process
def slow(self, frame):
    sleep(random.random() * 0.02)
    return process(self, frame)
tracker.Tracker.process = slow
sys.argv[0] = "edge-hand"
cli.main()
"""

# A machine with a GPU, whose engine takes a while to build.
WITH_GPU = """
import sys, time
from edge_hand.edge.cli import main as cli
from edge_hand.edge.engines import onnxruntime, tensorrt
def open_engine(model, card, threads, **_):
    time.sleep(0.2)
    engine = onnxruntime.OnnxRuntimeEngine(model, card, 1)
    engine.name = "stand-in"
    return engine
tensorrt.unavailable, tensorrt.open_engine = str, open_engine
sys.argv[0] = "edge-hand"
cli.main()
"""


def replayed(out: Path, frames: int, *, elsewhen: bool = False) -> bytes:
    start = ["-c", ELSEWHEN] if elsewhen else ["-m", "edge_hand.edge.cli.main"]
    run = ["run", "--camera", "replay", "--source", DEMO, "--loop", "--frames", frames, "--deterministic"]
    done = subprocess.run(
        [sys.executable, *start, *map(str, run), "--record", str(out), "--bind", f"ipc://{out}.socket", "--no-view"],
        env=os.environ | {"PYTHONHASHSEED": str(1 + elsewhen), "OMP_NUM_THREADS": str(1 + elsewhen)},
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out.read_bytes()


def test_two_replays_give_the_same_bytes_also_on_another_day_and_with_hiccups(tmp_path: Path) -> None:
    first = replayed(tmp_path / "a.mcap", 40)
    assert replayed(tmp_path / "b.mcap", 40, elsewhen=True) == first
    with Recording(DEMO) as demo, Recording(tmp_path / "a.mcap") as recording:
        times = [frame.t_ns for _, frame in zip(range(40), demo, strict=False)]
        messages = [decode(published.parts) for published in recording.published()]
        assert [frame.t_ns for frame in recording] == times
    joints = [m for m in messages if isinstance(m, JointsMessage)]
    assert [(m.t_capture_ns, m.t_publish_ns, m.stages_us, m.dropped) for m in joints] == [(t, t, {}, 0) for t in times]
    assert sum(len(m.hands) for m in joints) == 40 and sum(isinstance(m, MeshMessage) for m in messages) == 40
    status = [m for m in messages if isinstance(m, StatusMessage)]
    assert status[0].state == "starting" and status[-1].state == "stopping"
    assert status[-1].uptime_s == pytest.approx((times[-1] - times[0]) * 1e-9)


def test_where_auto_has_a_gpu_it_waits_for_it_and_one_engine_sees_all_frames(tmp_path: Path) -> None:
    run = ["run", "--camera", "replay", "--source", DEMO, "--frames", 2, "--deterministic", "--no-view"]
    done = subprocess.run(
        [sys.executable, "-c", WITH_GPU, *map(str, run), "--bind", f"ipc://{tmp_path}/s"],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
    )  # fmt: skip
    changed, began, _ = done.stdout.splitlines()[1:]
    assert changed.startswith("engine: dgn-nano on stand-in now, dgn-nano-int8 on onnxruntime ")
    assert began.endswith("(stand-in, dgn-nano-int8.onnx)")


@pytest.mark.slow
def test_five_hundred_frames_twice_give_the_same_bytes(tmp_path: Path) -> None:
    first = replayed(tmp_path / "a.mcap", 500)
    assert replayed(tmp_path / "b.mcap", 500) == first
    with Recording(tmp_path / "a.mcap") as recording:
        assert len(recording) == 500
        found = [m for m in map(decode, (p.parts for p in recording.published())) if isinstance(m, JointsMessage)]
    assert [m.seq for m in found] == list(range(500)) and sum(bool(m.hands) for m in found) > 490


def test_a_replay_of_what_was_recorded_gives_it_again(tmp_path: Path) -> None:
    """What was recorded of a deterministic run has the same frames in it, and gives the same poses."""
    replayed(tmp_path / "a.mcap", 12)
    out = tmp_path / "again.mcap"
    run = [
        "run",
        "--camera",
        "replay",
        "--source",
        tmp_path / "a.mcap",
        "--deterministic",
        "--record",
        out,
        "--no-view",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "edge_hand.edge.cli.main", *map(str, run), "--no-view", "--bind", f"ipc://{tmp_path}/s"],
        capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Recording(tmp_path / "a.mcap") as first, Recording(out) as second:
        assert list(first.published()) == list(second.published())


def test_a_deterministic_replay_has_a_clock_of_its_own_and_never_times_out() -> None:
    with open_camera("replay", str(DEMO), deterministic=True) as camera:
        clock = camera.clock  # type: ignore[attr-defined]
        before = clock.monotonic_ns()
        frames = [camera.read(0.0) for _ in range(3)]
        assert before == frames[0].t_ns and clock.monotonic_ns() == frames[2].t_ns and not clock.measures
        assert clock.unix_ns() == frames[2].t_ns  # the demo does not know its wall clock


def test_what_cannot_be_deterministic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="--deterministic and --fps: choose one"):
        open_camera("replay", str(DEMO), deterministic=True, fps=5.0)
    with pytest.raises(CameraError, match="camera 'synthetic' has no option --deterministic"):
        open_camera("synthetic", deterministic=True)
    (tmp_path / "a.bag").touch()
    with pytest.raises(CameraError, match="--deterministic replays our own recordings"):
        open_camera("replay", str(tmp_path / "a.bag"), deterministic=True)
