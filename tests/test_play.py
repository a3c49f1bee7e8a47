"""`edge-hand play`: a subscriber gets what was published, in its time, as if it were now."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest
from edge_hand.edge.client import subscribe
from edge_hand.edge.loop import topology
from edge_hand.edge.publish import Publisher
from edge_hand.edge.recordings import play
from edge_hand.edge.recordings.mcap_file import Contents
from edge_hand.edge.recordings.play import NOTE, Player, topology_of
from edge_hand.edge.recordings.recording import Recording, RecordingError, RecordingWriter
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame
from edge_hand.hand.wire import (
    JointsMessage,
    MeshMessage,
    Message,
    StatusMessage,
    TopologyMessage,
    decode,
    encode_topology,
)
from slept_time import slept_time

GOLDEN = Path(__file__).parent / "golden"
FACES = [[0, 1, 2], [2, 3, 4]]
COUNT, STEP_NS, LATENCY_NS, BEGUN_NS = 8, 50_000_000, 7_000_000, 40 * 10**9


def message(kind: str, seq: int, **changes: Any) -> list[bytes]:
    body = msgpack.unpackb((GOLDEN / f"wire_{kind}.bin").read_bytes())
    captured_ns = BEGUN_NS + seq * STEP_NS
    times = {"t_capture_ns": captured_ns, "t_capture_unix_ns": 5, "t_publish_ns": captured_ns + LATENCY_NS}
    return [f"{kind}.front".encode(), msgpack.packb(body | {"seq": seq} | times | changes)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frames 50 ms apart, joints and mesh of each, a status and triangles of two faces at the beginning."""
    file = tmp_path_factory.mktemp("play") / "a.mcap"
    lens = Intrinsics(48, 32, 40.0, 40.0, 24.0, 16.0)
    with RecordingWriter(file) as writer:
        writer.message(encode_topology(FACES), BEGUN_NS)
        for seq in range(COUNT):
            published_ns = BEGUN_NS + seq * STEP_NS + LATENCY_NS
            writer.write(DepthFrame("front", seq, published_ns - LATENCY_NS, np.ones((32, 48), np.uint16), 0.001, lens))
            if seq == 0:
                writer.message(message("status", 0, state="tracked", message=""), published_ns)
            writer.message(message("joints", seq), published_ns)
            writer.message(message("mesh", seq), published_ns)
    return file


def damaged(file: Path, messages: bool, step_ns: int = 20_000_000) -> Path:
    """Three frames, each in a chunk of its own; the middle one is damaged."""
    lens = Intrinsics(48, 32, 40.0, 40.0, 24.0, 16.0)
    with RecordingWriter(file) as writer:
        for seq in range(3):
            t_ns = BEGUN_NS + seq * step_ns
            writer.write(DepthFrame("front", seq, t_ns, np.ones((32, 48), np.uint16), 0.001, lens))
            if messages:
                writer.message(message("status", seq, state="tracked", message=""), t_ns)
            writer.flush()
    with file.open("r+b") as opened:
        chunk = Contents(opened).chunks[1]
        opened.seek(chunk.offset + chunk.length - 4)
        opened.write(b"oops")
    return file


Came = list[tuple[int, Message]]


@contextmanager
def publisher() -> Iterator[Publisher]:
    with Publisher("tcp://127.0.0.1:*", topology=encode_topology([[0, 1, 2]]), queue=1000) as opened:
        yield opened


def played(
    path: Path, stop: Callable[[Player], bool] = lambda player: False, loop: bool = False, **options: Any
) -> Came:
    """What a subscriber gets, with the time it came, ns."""
    found: Came = []
    with Recording(path) as recording, publisher() as opened:
        messages = subscribe(opened.address, ["joints", "mesh", "status", "topology"], latest=False, timeout_s=60)

        def listen() -> None:
            with messages:
                while not found or getattr(found[-1][1], "state", "") != "stopping":
                    one = next(messages)
                    found.append((time.monotonic_ns(), one))

        with messages:
            end_s = time.monotonic() + 60
            while not all(opened.wants(topic) for topic in ("joints.front", "mesh.front", "status.front", "topology")):
                opened.poll_subscriptions()
                assert time.monotonic() < end_s
            listener = threading.Thread(target=listen)
            listener.start()
            player = Player(recording, opened, **options)
            player.run(lambda: stop(player), loop)
            listener.join(60)
    return found


def of(found: Came, kind: type) -> list[tuple[int, Any]]:
    return [(at_ns, one) for at_ns, one in found if isinstance(one, kind)]


def test_what_was_published_is_published_again_as_if_it_were_now(path: Path) -> None:
    begun_ns, begun_unix_ns = time.monotonic_ns(), time.time_ns()
    found = played(path)
    joints, meshes = of(found, JointsMessage), of(found, MeshMessage)
    assert [m.seq for _, m in joints] == [m.seq for _, m in meshes] == list(range(COUNT))
    original = decode(message("joints", 3))
    assert isinstance(original, JointsMessage)
    for hand, was in zip(joints[3][1].hands, original.hands, strict=True):
        np.testing.assert_array_equal(hand.joints_m, was.joints_m)
        np.testing.assert_array_equal(hand.angles_rad, was.angles_rad)
    for at_ns, m in joints:
        assert begun_ns < m.t_publish_ns <= at_ns and m.t_publish_ns - m.t_capture_ns == LATENCY_NS
        assert abs(m.t_capture_unix_ns - begun_unix_ns) < 60 * 10**9
    for (_, m), (_, mesh) in zip(joints, meshes, strict=True):
        assert (m.t_capture_ns, m.t_capture_unix_ns) == (mesh.t_capture_ns, mesh.t_capture_unix_ns), "not of one frame"
    assert len(of(found, TopologyMessage)) == 1


def test_the_original_timing_is_kept_and_speed_divides_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = slept_time(monkeypatch, play)
    for speed in (1.0, 4.0):
        times: list[int] = []
        with Recording(path) as recording, publisher() as opened:
            monkeypatch.setattr(opened, "publish", lambda parts, times=times: times.append(clock.now_ns))
            Player(recording, opened, speed=speed).run(lambda: False)
        spans_ms = np.diff(sorted(set(times))) * 1e-6
        np.testing.assert_allclose(spans_ms[:7], [50 / speed] * 7, atol=1e-3)


def test_the_first_frame_of_a_lap_comes_a_frame_s_time_after_the_last_of_the_one_before(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens = Intrinsics(48, 32, 40.0, 40.0, 24.0, 16.0)
    with RecordingWriter(tmp_path / "one.mcap") as writer:  # as --deterministic --frames 1 records: no time passes
        writer.write(DepthFrame("front", 0, BEGUN_NS, np.ones((32, 48), np.uint16), 0.001, lens))
        writer.message(message("joints", 0), BEGUN_NS)
    clock = slept_time(monkeypatch, play)
    for file, count, speed, step_ms in ((path, COUNT, 2.0, 25), (tmp_path / "one.mcap", 1, 0.5, 2000 / 30)):
        times: list[int] = []
        with Recording(file) as recording, publisher() as opened:
            monkeypatch.setattr(opened, "publish", lambda parts, times=times: times.append(clock.now_ns))
            player = Player(recording, opened, speed=speed)
            player.run(lambda player=player: player.laps == 3, loop=True)
        np.testing.assert_allclose(np.diff(sorted(set(times))) * 1e-6, [step_ms] * (3 * count - 1), atol=1e-3)


def test_faster_than_it_was_no_frame_is_captured_before_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens, sent = Intrinsics(48, 32, 40.0, 40.0, 24.0, 16.0), list[Message]()
    with RecordingWriter(tmp_path / "a.mcap") as writer:
        writer.write(DepthFrame("front", 0, BEGUN_NS, np.ones((32, 48), np.uint16), 0.001, lens))
        for seq, late_ns in enumerate((7_000_000, 40_000_000, 7_000_000, 7_000_000)):  # one was late
            at_ns = BEGUN_NS + seq * STEP_NS + late_ns
            writer.message(message("joints", seq, t_publish_ns=at_ns), at_ns)
    slept_time(monkeypatch, play)
    taker: Any = SimpleNamespace(poll_subscriptions=lambda: None, publish=lambda parts: sent.append(decode(parts)))
    with Recording(tmp_path / "a.mcap") as recording:
        Player(recording, taker, speed=10.0).run(lambda: False)
    captured_ns = [m.t_capture_ns for m in sent if isinstance(m, JointsMessage)]
    np.testing.assert_allclose(np.diff(captured_ns), STEP_NS / 10, atol=2)


def test_status_says_that_it_is_played_and_ends_with_stopping(path: Path) -> None:
    status = [m for _, m in of(played(path, speed=10.0), StatusMessage)]
    assert [(m.state, m.message) for m in status] == [("tracked", NOTE), ("stopping", NOTE)]
    assert [m.t_publish_ns - m.t_capture_ns for m in status] == [LATENCY_NS // 10] * 2  # each divided by speed once
    status = [m for _, m in of(played(path, lambda player: player.count > 3), StatusMessage)]
    assert [m.state for m in status] == ["tracked", "stopping"]


def test_what_was_seen_longer_ago_than_this_machine_runs_can_still_be_read(tmp_path: Path) -> None:
    lens = Intrinsics(48, 32, 40.0, 40.0, 24.0, 16.0)
    with RecordingWriter(tmp_path / "a.mcap") as writer:
        writer.write(DepthFrame("front", 0, BEGUN_NS, np.ones((32, 48), np.uint16), 0.001, lens))
        writer.message(message("status", 0, state="stalled", t_publish_ns=1 << 61), BEGUN_NS)
    sent: list[Message] = []
    taker: Any = SimpleNamespace(poll_subscriptions=lambda: None, publish=lambda parts: sent.append(decode(parts)))
    with Recording(tmp_path / "a.mcap") as recording:
        Player(recording, taker).run(lambda: False)
    assert [getattr(m, "state", "") for m in sent] == ["stalled", "stopping"]
    assert getattr(sent[0], "t_capture_ns", None) == 0


def test_kept_stamps_are_those_of_the_recording(path: Path) -> None:
    found = played(path, speed=10.0, keep_stamps=True)
    assert [m.t_capture_ns for _, m in of(found, MeshMessage)] == [BEGUN_NS + k * STEP_NS for k in range(COUNT)]
    assert {m.t_capture_unix_ns for _, m in of(found, JointsMessage)} == {5}


def test_frame_numbers_go_on_from_lap_to_lap(path: Path) -> None:
    seqs = [m.seq for _, m in of(played(path, lambda player: player.laps == 2, loop=True, speed=10.0), JointsMessage)]
    assert len(seqs) > COUNT and seqs == list(range(len(seqs)))


def test_where_the_camera_counted_anew_no_lap_has_a_number_below_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens = Intrinsics(48, 32, 40.0, 40.0, 24.0, 16.0)
    with RecordingWriter(tmp_path / "a.mcap") as writer:
        writer.write(DepthFrame("front", 9, BEGUN_NS, np.ones((32, 48), np.uint16), 0.001, lens))
        for seq in (9, 10, 0, 1):
            writer.message(message("joints", seq), BEGUN_NS)
    sent: list[list[bytes]] = []
    with Recording(tmp_path / "a.mcap") as recording, publisher() as opened:
        monkeypatch.setattr(opened, "publish", sent.append)
        player = Player(recording, opened)
        player.run(lambda: player.laps == 2, loop=True)
    assert [msgpack.unpackb(parts[1])["seq"] for parts in sent] == [9, 10, 0, 1, 10, 11, 1, 2]


def test_from_lap_to_lap_it_neither_stops_nor_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lens = Intrinsics(48, 32, 40.0, 40.0, 24.0, 16.0)
    with RecordingWriter(tmp_path / "a.mcap") as writer:
        writer.write(DepthFrame("front", 0, BEGUN_NS, np.ones((32, 48), np.uint16), 0.001, lens))
        for at, state in enumerate(("starting", "tracked", "stopping")):
            writer.message(message("status", 0, state=state, message=""), BEGUN_NS + at * 1_000_000)
    sent: list[list[bytes]] = []
    with Recording(tmp_path / "a.mcap") as recording, publisher() as opened:
        monkeypatch.setattr(opened, "publish", sent.append)
        player = Player(recording, opened)
        player.run(lambda: player.laps == 3, loop=True)
    assert [getattr(decode(parts), "state", "") for parts in sent] == ["starting", *["tracked"] * 3, "stopping"]


def test_a_recording_damaged_in_the_middle_ends_with_stopping_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[bytes]] = []
    with Recording(damaged(tmp_path / "a.mcap", messages=True)) as recording, publisher() as opened:
        monkeypatch.setattr(opened, "publish", sent.append)
        with pytest.raises(RecordingError, match=r"a\.mcap is damaged \("):
            Player(recording, opened).run(lambda: False)
    assert [getattr(decode(parts), "state", "") for parts in sent] == ["tracked", "stopping"]


def test_a_recording_of_depth_alone_cannot_be_played(tmp_path: Path) -> None:
    lens = Intrinsics(48, 32, 40.0, 40.0, 24.0, 16.0)
    with RecordingWriter(tmp_path / "a.mcap") as writer:
        writer.write(DepthFrame("front", 0, 1, np.ones((32, 48), np.uint16), 0.001, lens))
    with (
        pytest.raises(
            RecordingError, match=r"a.mcap holds depth only; edge-hand run --camera replay --source .*a.mcap"
        ),
        Recording(tmp_path / "a.mcap") as recording,
        publisher() as opened,
    ):
        Player(recording, opened)  # before anything is announced


def test_where_no_triangles_were_recorded_they_are_this_version_s(tmp_path: Path) -> None:
    with Recording(damaged(tmp_path / "a.mcap", messages=True)) as recording:
        assert topology_of(recording) == topology()


def test_the_command_plays_and_says_what(path: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "edge_hand.edge.cli.main",
        "play",
        str(path),
        "--bind",
        f"ipc://{tmp_path}/s",
        "--loop",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"front from {path} -> ipc://{tmp_path}/s\n"
            with subscribe(f"ipc://{tmp_path}/s", ["joints.front"], timeout_s=60) as messages:
                assert len(next(messages).hands) == 2  # type: ignore[union-attr]
            with subscribe(f"ipc://{tmp_path}/s", "topology", timeout_s=60) as messages:
                assert next(messages).faces.tolist() == FACES, "those of the recording"  # type: ignore[union-attr]
            process.terminate()
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "") and out.endswith(" laps\n")
