"""What is left of a recording whose writer was killed, whose file was cut, or whose disk was slow or full."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from edge_hand.edge import cameras
from edge_hand.edge.cameras import BadFrame, open_camera
from edge_hand.edge.cameras.replay import ReplayCamera
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.cli import record as cli_record
from edge_hand.edge.cli.main import cli
from edge_hand.edge.recordings import recorder as recorder_module
from edge_hand.edge.recordings.mcap_file import Contents
from edge_hand.edge.recordings.recorder import Recorder
from edge_hand.edge.recordings.recording import Recording, RecordingError, RecordingWriter
from edge_hand.hand.frames import DepthFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from slept_time import slept_time
from test_replay import read_all

EDGE_HAND = [sys.executable, "-m", "edge_hand.edge.cli.main"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HOME": "/nonexistent"}
TIMEOUT_S = 60.0


@cache
def frames(count: int = 12) -> list[DepthFrame]:
    with SyntheticCamera(0, "48x48@30", fps=0) as camera:
        return [camera.frame(seq) for seq in range(count)]


@cache
def whole_file() -> tuple[bytes, list[tuple[int, int]]]:
    """A recording of three chunks, and for each where it ends and how many frames there are up to it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.mcap"
        with RecordingWriter(path) as writer:
            for frame in frames():
                writer.write(frame)
                if frame.seq in (3, 8):
                    writer.flush()
        with path.open("rb") as file:
            ends = [chunk.offset + chunk.length for chunk in Contents(file).chunks]
        return path.read_bytes(), list(zip(ends, (4, 9, 12), strict=True))


def seqs_of(data: bytes) -> list[int]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cut.mcap"
        path.write_bytes(data)
        with Recording(path) as recording:
            found = list(recording)
            assert len(recording) == len(found)
            for frame in found:
                assert np.array_equal(frame.depth, frames()[frame.seq].depth)
            return [frame.seq for frame in found]


# --- cut files


CUT_EARLY = r"has no frames: it was cut|is not an MCAP file|not an edge-hand rec|has recording format "


@settings(deadline=None)  # the file is written in the first example
@given(st.integers(0, len(whole_file()[0])), st.sampled_from([b"", bytes(1), bytes(5000), b"\xff" * 100]))
def test_a_file_cut_anywhere_opens_up_to_its_last_whole_chunk(length: int, tail: bytes) -> None:
    """After a power cut the end may be zeros, or what the disk held before."""
    data, chunks = whole_file()
    expected = max((count for end, count in chunks if end <= length), default=0)
    if expected:
        assert seqs_of(data[:length] + tail) == list(range(expected))
    else:
        with pytest.raises(RecordingError, match=CUT_EARLY):
            seqs_of(data[:length] + tail)


@pytest.mark.parametrize("away", [-1, 0, 1])
def test_a_file_cut_beside_the_end_of_each_chunk_is_right_to_the_frame(away: int) -> None:
    data, chunks = whole_file()
    for before, (end, count) in zip((0, 4, 9), chunks, strict=True):
        left = before if away < 0 else count
        if left:
            assert seqs_of(data[: end + away]) == list(range(left))


def test_only_a_whole_file_says_that_it_is_whole(tmp_path: Path) -> None:
    data, _ = whole_file()
    for name, length, whole in (("a", len(data), True), ("b", len(data) - 1, False), ("c", len(data) - 400, False)):
        (tmp_path / f"{name}.mcap").write_bytes(data[:length])
        with Recording(tmp_path / f"{name}.mcap") as recording:
            assert recording.whole is whole and len(recording) == 12


def test_damage_inside_a_chunk_of_a_whole_file_is_refused_when_it_is_reached(tmp_path: Path) -> None:
    data, chunks = whole_file()
    damaged = bytearray(data)
    damaged[chunks[0][0] + 300] ^= 1  # in the second chunk
    (tmp_path / "a.mcap").write_bytes(damaged)
    with Recording(tmp_path / "a.mcap") as recording:
        read = iter(recording)
        assert [next(read).seq for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(RecordingError, match=r"a.mcap is damaged \(a chunk"):
            next(read)


# --- kill -9


@pytest.mark.parametrize("command", ["record", "run"])
def test_kill_9_loses_at_most_the_last_second_and_the_file_replays(command: str, tmp_path: Path) -> None:
    for again in range(5):  # a busy machine writes later now and then
        path = tmp_path / f"{again}.mcap"
        if (lost_s := lost_by_kill_9(command, path)) < 1.0:
            return
    pytest.fail(f"{lost_s:.1f} s were lost")


def lost_by_kill_9(command: str, path: Path) -> float:
    camera = ["--camera", "synthetic", "--mode", "96x64@30"]
    if command == "record":
        arguments = ["record", *camera, path]
    else:
        arguments = ["run", *camera, "--record", path, "--bind", f"ipc://{path}.socket", "--no-view"]
    process = subprocess.Popen(
        [*EDGE_HAND, *map(str, arguments)], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        for _ in range(4):  # it grows
            size = path.stat().st_size if path.exists() else 0
            wait_for(lambda size=size: path.exists() and path.stat().st_size > size, process)  # type: ignore[misc]
        time.sleep(0.5)
        killed_ns = time.monotonic_ns()
        process.kill()
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)
    with open_camera("replay", str(path), deterministic=True) as replay:
        read = read_all(replay)
    assert len(read) >= 4
    with Recording(path) as recording:
        assert not recording.whole
        assert bool(list(recording.published())) == (command == "run")
    return (killed_ns - read[-1].t_ns) * 1e-9


# --- a full disk


def full_after(size: int) -> Callable[[], None]:
    """As if the disk had so many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_gets_full_ends_a_recording_in_one_line_and_what_was_written_opens(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    done = subprocess.run(
        [*EDGE_HAND, "record", "--camera", "synthetic", "--mode", "96x64@30", "--frames", "300", str(path)],
        env=ENVIRONMENT, preexec_fn=full_after(150_000), capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    with Recording(path) as recording:
        count = len(list(recording))
        assert recording.whole and count == len(recording) > 5
    assert done.stderr == f"edge-hand: cannot write {path}: File too large; {count} frames are in {path}\n"


def test_tracking_goes_on_when_the_disk_gets_full(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    run = ["run", "--camera", "synthetic", "--mode", "424x240@30", "--frames", "45", "--record", str(path)]
    done = subprocess.run(
        [*EDGE_HAND, *run, "--no-view", "--bind", f"ipc://{tmp_path}/s"],
        env=ENVIRONMENT, preexec_fn=full_after(3_000_000), capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"recording ended, tracking goes on: cannot write {path}: File too large\n"
    assert "45 frames in " in done.stdout and "; the recording ended early: cannot write" in done.stdout
    with Recording(path) as recording:
        assert 0 < len(list(recording)) < 45


def test_a_disk_without_any_room_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    done = subprocess.run(
        [*EDGE_HAND, "record", "--camera", "synthetic", "--mode", "96x64@30", "--frames", "40", str(path)],
        env=ENVIRONMENT, preexec_fn=full_after(100), capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 1 and not path.exists()
    assert done.stderr == f"edge-hand: cannot write {path}: File too large; 0 frames are in {path}\n"


@pytest.mark.parametrize("late", [False, True])
def test_a_recording_that_is_removed_meanwhile_is_told(late: bool, tmp_path: Path) -> None:
    folder, said = tmp_path / "stick", list[str]()
    folder.mkdir()
    with Recorder(RecordingWriter(folder / "a.mcap"), said.append) as recorder:
        for frame in frames():
            recorder.frame(frame)
        wait_for(lambda: recorder.writer.frames == len(frames()))
        (folder / "a.mcap").unlink()
        folder.rmdir()
        if not late:
            wait_for(lambda: bool(said))
    why = f"cannot write {folder / 'a.mcap'}: it was removed meanwhile"
    assert said == [f"recording ended, tracking goes on: {why}"]
    assert recorder.summary() == f"0 frames in {folder / 'a.mcap'}; the recording ended early: {why}"


def test_a_recording_that_is_moved_meanwhile_goes_on(tmp_path: Path) -> None:
    with Recorder(RecordingWriter(tmp_path / "a.mcap"), print) as recorder:
        recorder.frame(frames()[0])
        wait_for(lambda: not recorder._held)  # it is written, and not yet in the file
        (tmp_path / "a.mcap").rename(tmp_path / "b.mcap")
        recorder.frame(frames()[1])
    with Recording(tmp_path / "b.mcap") as recording:
        assert len(list(recording)) == 2 and recording.whole and not recorder.trouble


def test_a_recording_that_cannot_be_is_refused_before_a_camera_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    path.touch()
    run = ["run", "--camera", "replay", "--source", str(tmp_path / "later.mcap"), "--wait", "--record", str(path)]
    done = subprocess.run(
        [*EDGE_HAND, *run, "--bind", f"ipc://{tmp_path}/s"],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"edge-hand: {path} exists already; choose another name or move it away\n"


def test_record_says_how_much_it_has_when_the_camera_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept_time(monkeypatch)
    path = tmp_path / "a.mcap"
    gone = ["--camera", "faulty", "--source", "synthetic:1?unplug@1", "--mode", "48x48@30"]
    done = CliRunner().invoke(cli, ["record", *gone, str(path)])
    with Recording(path) as recording:
        count = len(list(recording))
    assert count > 5
    assert str(done.exception) == f"synthetic-1 is no longer connected; check its cable; {count} frames are in {path}"


# --- a slow disk


def test_record_counts_as_lost_what_a_camera_skipped_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SyntheticCamera(3, "96x64@90", fps=0) as camera:
        comes = [camera.frame(0), BadFrame("torn"), camera.frame(2), camera.frame(5)]
        known = {"name": camera.name, "intrinsics": camera.intrinsics, "fps": camera.fps}
    source: Any = SimpleNamespace(**known, frames=lambda: iter(comes), close=lambda: None)
    monkeypatch.setattr(cli_record, "stop_on_signal", lambda: lambda: False)
    with monkeypatch.context() as patched:
        patched.setattr(cameras, "open_camera", lambda *_, **__: ReplayCamera(source, fps=0))
        done = CliRunner().invoke(cli, ["record", "--camera", "synthetic", f"{tmp_path}/a.mcap"])
    lost = "2 were lost: the disk or this machine is too slow"
    assert done.output == f"torn\n3 frames in {tmp_path}/a.mcap; {lost}\n"
    done = CliRunner().invoke(
        cli, ["record", "--camera", "replay", "--source", f"{tmp_path}/a.mcap", f"{tmp_path}/b.mcap"]
    )
    assert done.output == f"3 frames in {tmp_path}/b.mcap\n"


class SlowWriter(RecordingWriter):
    """A disk that takes so long for a frame, and for the first until it is let go."""

    wait_s = 0.05

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.let_go = threading.Event()

    def write(self, frame: DepthFrame) -> None:
        self.let_go.wait(60)
        time.sleep(self.wait_s)
        super().write(frame)


def test_a_slow_disk_thins_the_recording_and_never_holds_up_the_loop(tmp_path: Path) -> None:
    said: list[str] = []
    writer = SlowWriter(tmp_path / "a.mcap")
    with Recorder(writer, said.append, most_bytes=3 * frames()[0].depth.nbytes) as recorder:
        took_s = []
        for _ in range(3):
            for frame in frames():
                begun_s = time.perf_counter()
                recorder.frame(frame)
                took_s.append(time.perf_counter() - begun_s)
        writer.let_go.set()
    assert np.median(took_s) < 0.02 and recorder.left_out > 10 and not recorder.trouble
    assert said == [f"recording: the disk is too slow, {tmp_path}/a.mcap gets gaps"]
    with Recording(tmp_path / "a.mcap") as recording:
        assert len(list(recording)) + recorder.left_out == 36
    assert recorder.summary().endswith(f"; {recorder.left_out} frames and messages were left out: the disk is too slow")


def test_a_patient_recorder_leaves_nothing_out(tmp_path: Path) -> None:
    writer = SlowWriter(tmp_path / "a.mcap")
    writer.wait_s = 0.01
    writer.let_go.set()
    with Recorder(writer, print, patient=lambda: True, most_bytes=2 * frames()[0].depth.nbytes) as recorder:
        for frame in frames():
            recorder.frame(frame)
    with Recording(tmp_path / "a.mcap") as recording:
        assert [frame.seq for frame in recording] == list(range(12)) and recorder.left_out == 0


def test_a_disk_that_hangs_is_waited_for_until_it_is_to_end_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_hand.edge.recordings.recorder.CLOSE_S", 0.5)
    writer, said, over = SlowWriter(tmp_path / "a.mcap"), list[str](), threading.Event()
    threading.Timer(1.0, over.set).start()  # Ctrl-C
    room = 2 * frames()[0].depth.nbytes
    with Recorder(writer, said.append, patient=lambda: not over.is_set(), most_bytes=room) as recorder:
        for frame in frames():
            recorder.frame(frame)
            if over.is_set():
                break
    assert frame.seq == 3 and recorder.left_out == 1
    assert said == ["recording ended, tracking goes on: the disk did not take it within 0.5 s"]
    writer.let_go.set()


def test_a_steady_recorder_writes_the_same_bytes_however_long_it_takes(tmp_path: Path) -> None:
    for name, pause_s in (("a", 0.0), ("b", 0.2)):
        writer = RecordingWriter(tmp_path / name, wall_offset_ns=5)
        with Recorder(writer, print, patient=lambda: True, steady=True) as recorder:
            for frame in frames():
                recorder.frame(frame)
                time.sleep(pause_s if frame.seq % 4 == 0 else 0)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_recorded_is_in_the_file_within_a_second_also_when_no_more_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = slept_time(monkeypatch, recorder_module)
    with Recorder(RecordingWriter(tmp_path / "a.mcap"), print) as recorder:
        recorder.frame(frames()[0])
        wait_for(lambda: not recorder._held)  # it is written, and not yet in the file
        clock.sleep(0.9)
        wait_for(lambda: in_file(tmp_path / "a.mcap") == 1)


def in_file(path: Path) -> int:
    try:
        with Recording(path) as recording:
            return len(list(recording))
    except RecordingError:  # nothing yet
        return 0


@pytest.mark.parametrize("steady", [False, True])
def test_what_is_recorded_is_handed_to_the_disk_time_and_again(
    steady: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(recorder_module, "SYNC_S", 0.05)
    with Recorder(RecordingWriter(tmp_path / "a.mcap"), print, steady=steady) as recorder:
        recorder.frame(frames()[0])
        wait_for(lambda: len(synced) > 1)


def test_a_fault_of_the_recorder_ends_the_recording_alone(tmp_path: Path) -> None:
    said: list[str] = []
    with Recorder(RecordingWriter(tmp_path / "a.mcap"), said.append) as recorder:
        recorder.frame(frames()[0])
        recorder.message([b"joints.synthetic-0", b"no msgpack"], frames()[0].t_ns)
        wait_for(lambda: bool(said))
        recorder.frame(frames()[1])
    assert len(said) == 1 and said[0].startswith("recording ended, tracking goes on: WireError: ")
    with Recording(tmp_path / "a.mcap") as recording:
        assert len(list(recording)) == 1


def wait_for(what: Callable[[], bool], process: subprocess.Popen[Any] | None = None) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not what():
        assert time.monotonic() < end, "it did not come"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)
