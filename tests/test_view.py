"""The live view: what it knows of cameras that come and go, what it sends, and the page in a real browser."""

from __future__ import annotations

import errno
import http.client
import json
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_hand.calibration.rig import Quality, Rig, RigCamera, save_rig
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.cli.main import main
from edge_hand.edge.cli.shell import CommandError
from edge_hand.edge.engines import Engine
from edge_hand.edge.keys import add_client, make_server
from edge_hand.edge.loop import Loop, topology
from edge_hand.edge.networks.card import DEFAULT_MODEL
from edge_hand.edge.publish import Publisher
from edge_hand.edge.recordings.recording import Recording, RecordingError
from edge_hand.edge.tracker import Tracker
from edge_hand.edge.view.board import FRESH_S, GONE_S, Board
from edge_hand.edge.view.live import served
from edge_hand.edge.view.packet import POINT_M, Packets
from edge_hand.edge.view.source import _WithClouds, published
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame, HandPose
from edge_hand.hand.wire import (
    HandCloud,
    Header,
    WireHand,
    decode,
    encode_cloud,
    encode_joints,
    encode_mesh,
    encode_status,
)
from test_play import BEGUN_NS, damaged

ADDRESS = "tcp://127.0.0.1:5555"


# --- the board and its packets


def a_hand(number: int = 1, state: str = "tracked") -> WireHand:
    rng = np.random.default_rng(number)
    zeros = np.zeros(26)
    pose = HandPose(
        "left", 1.0, state, 0.8, np.eye(4), zeros, zeros[:6], zeros[:7], rng.normal(size=(21, 3)),
        rng.normal(size=(30, 3)), zeros[:21], 2.0,
    )  # fmt: skip
    return WireHand(number, 0.0, pose, None)


def told(board: Board, now_s: float, *kinds: str, seq: int = 5, camera: str = "front", **status: Any) -> None:
    """Give the board messages of one frame."""
    header, hands = Header(camera, seq, 10**9, 2, 10**9 + 8_000_000), [a_hand()]
    status = {"state": "tracked", "message": ""} | status
    numbers = {"fps": 90.0, "frames": 7, "dropped": 1, "bad_frames": 0, "engine": "e", "model": "m", "uptime_s": 9}
    parts = {
        "joints": lambda: encode_joints(header, hands, stages_us={"crop": 500.0, "engine": 900.0}, dropped=1),
        "mesh": lambda: encode_mesh(header, hands),
        "cloud": lambda: encode_cloud(header, np.eye(3), [HandCloud(1, np.ones((4, 3)))]),
        "status": lambda: encode_status(header, **numbers, **status),
        "topology": lambda: topology(),
    }
    for kind in kinds:
        board.take(ADDRESS, decode(parts[kind]()), now_s)


def unpacked(packet: bytes) -> tuple[dict[str, Any], Callable[[str, list[int]], np.ndarray]]:
    """As the page reads it."""
    total, length = struct.unpack_from("<II", packet)
    assert total == len(packet) - 4
    body = json.loads(packet[8 : 8 + length])
    return body, lambda kind, place: np.frombuffer(packet, kind, place[1], 8 + length + place[0])


def events(board: Board) -> list[str]:
    return [text for _, text in board.events()][::-1]


def test_a_packet_carries_the_hand_its_depth_and_the_numbers() -> None:
    board = Board({"front": np.diag([1.0, 1, 1, 1]) + 0.0})
    told(board, 100.0, "status", "joints", "mesh", "cloud", "topology")
    packets = Packets()
    body, array = unpacked(packets.packet(board.views(100.01), board.topology, now_s=100.01, events=board.events()))
    (camera,) = body["cameras"]
    assert (camera["camera"], camera["state"], camera["fps"], camera["dropped"], camera["here"]) == (
        *("front", "tracked", 90.0, 1),
        True,
    )
    assert camera["stages_ms"] == {"crop": 0.5, "engine": 0.9} and camera["latency_ms"] == 8.0
    assert camera["age_ms"] == pytest.approx(18.0)
    (hand,) = camera["hands"]
    np.testing.assert_allclose(array("<f4", hand["joints"]).reshape(21, 3), a_hand().pose.joints_m, atol=1e-6)
    mesh = array("<i2", hand["mesh"]).reshape(-1, 3) * POINT_M
    np.testing.assert_allclose(mesh, a_hand().pose.vertices_m, atol=POINT_M)
    np.testing.assert_allclose(array("<i2", hand["points"]) * POINT_M, 1, atol=POINT_M)
    np.testing.assert_allclose(array("<i2", camera["scene"]) * POINT_M, np.eye(3).ravel(), atol=POINT_M)
    assert len(camera["T"]) == 16 and array("<u2", body["faces"]).max() == decode(topology()).vertices - 1
    again, _ = unpacked(packets.packet(board.views(100.02), board.topology, now_s=100.02))
    assert "faces" not in again and "scene" not in again["cameras"][0], "what the page has is sent again"


def test_an_old_hand_is_not_shown() -> None:
    board = Board()
    told(board, 100.0, "status", "joints", "mesh", "cloud")
    assert board.views(100.0 + FRESH_S / 2)[0].joints is not None
    view = board.views(100.01 + FRESH_S)[0]
    assert (view.joints, view.mesh, view.cloud) == (None, None, None) and view.here


def test_a_stalled_camera_shows_no_hand_and_why() -> None:
    board = Board()
    told(board, 100.0, "status", "joints")
    told(board, 100.1, "status", state="stalled", message="no frame for 0.5 s")
    (view,) = board.views(100.1)
    assert view.joints is None and view.fare.as_dict(100.1)["message"] == "no frame for 0.5 s"
    told(board, 100.2, "status", "joints", seq=6)
    assert board.views(100.2)[0].joints is not None
    assert events(board) == [
        "front joined from tcp://127.0.0.1:5555",
        "front stalled: no frame for 0.5 s",
        "front is back: tracked",
    ]


def test_daemons_that_leave_are_seen_to_leave_and_to_come_back() -> None:
    board = Board()
    told(board, 100.0, "status", "joints")
    told(board, 101.0, "status", state="stopping")
    assert not board.views(101.0)[0].here
    told(board, 105.0, "status", "joints")
    assert board.views(105.0)[0].here
    assert not board.views(105.1 + GONE_S)[0].here
    assert [text.split(" from")[0] for text in events(board)] == [
        "front joined",
        "front left: it was stopped",
        "front joined",
        "front fell silent",
    ]


def test_cameras_of_one_name_at_two_addresses_are_two() -> None:
    board = Board()
    told(board, 100.0, "status", "joints")
    header = Header("front", 1, 1, 2, 3)
    board.take("tcp://127.0.0.1:5556", decode(encode_joints(header, [], stages_us={}, dropped=0)), 100.0)
    assert [view.fare.address[-1] for view in board.views(100.0)] == ["5", "6"]


# --- the page


@contextmanager
def daemon(engine: Engine, bind: str = "tcp://127.0.0.1:*", seed: int = 0) -> Iterator[Publisher]:
    """A daemon with the synthetic camera, in a thread."""
    over = threading.Event()
    with (
        SyntheticCamera(seed, "424x240@30") as camera,
        Publisher(bind, topology=topology()) as publisher,
    ):
        thread = threading.Thread(target=Loop(camera, Tracker(engine), publisher).run, args=(over.is_set,))
        thread.start()
        try:
            yield publisher
        finally:
            over.set()
            thread.join()


def first_packets(url: str, until: Callable[[dict[str, Any]], bool], most: int = 600) -> dict[str, Any]:
    """Read the stream until a packet's JSON is as wanted."""
    with urllib.request.urlopen(url + "stream", timeout=60) as stream:
        for _ in range(most):
            (length,) = struct.unpack("<I", stream.read(4))
            body, _ = unpacked(struct.pack("<I", length) + stream.read(length))
            if until(body):
                return body
    raise AssertionError(f"no packet was as wanted; the last: {body}")


def has_all_of_a_hand(body: dict[str, Any]) -> bool:
    return any({"joints", "mesh", "points"} <= set(h) for camera in body["cameras"] for h in camera["hands"])


def test_the_stream_shows_a_running_daemon_and_meshes_are_asked_for_only_while_it_is_read(engine: Engine) -> None:
    with daemon(engine) as publisher, served([publisher.address], port=0) as server:
        end = time.monotonic() + 60
        while not publisher.wants("joints.synthetic-0") and time.monotonic() < end:
            time.sleep(0.02)
        assert not publisher.wants("mesh.synthetic-0") and not publisher.wants("cloud.synthetic-0")
        body = first_packets(server.url, has_all_of_a_hand)
        assert body["cameras"][0]["address"] == publisher.address
        end = time.monotonic() + 60
        while publisher.wants("cloud.synthetic-0") and time.monotonic() < end:
            time.sleep(0.02)
        assert not publisher.wants("mesh.synthetic-0"), "nobody looks any more"


def test_keys_are_for_daemons_and_not_for_a_recording_beside_them(engine: Engine, tmp_path: Path) -> None:
    key = tmp_path / "me.key"
    make_server(tmp_path / "keys")
    add_client(tmp_path / "keys", "me", key)
    with daemon(engine) as publisher:
        address = publisher.address
        with served([address], port=0, recordings={address: "hand.mcap"}, keys=key) as server:
            body = first_packets(server.url, lambda body: bool(body["cameras"]))
    assert body["cameras"][0]["address"] == "hand.mcap"


def test_a_key_file_that_is_gone_stops_no_page_that_opens_later(tmp_path: Path) -> None:
    folder, key = tmp_path / "keys", tmp_path / "me.key"
    make_server(folder)
    add_client(folder, "me", key)
    with (
        Publisher("tcp://127.0.0.1:*", keys=folder) as publisher,
        served([publisher.address], port=0, keys=key) as server,
    ):
        key.unlink()
        with urllib.request.urlopen(server.url + "stream", timeout=60):
            end = time.monotonic() + 60
            while not publisher.wants("mesh.front") and time.monotonic() < end:
                publisher.poll_subscriptions()
                time.sleep(0.01)
        assert publisher.wants("mesh.front")


@pytest.mark.parametrize("messages", [False, True])
def test_a_recording_is_shown_with_or_without_messages_in_it(engine: Engine, tmp_path: Path, messages: bool) -> None:
    from edge_hand.edge.recordings.recorder import Recorder
    from edge_hand.edge.recordings.recording import RecordingWriter

    path = tmp_path / "hand.mcap"
    with SyntheticCamera(0, "424x240@30", fps=0) as camera, Publisher("tcp://127.0.0.1:*") as publisher:
        frames = [camera.frame(seq) for seq in range(12)]
        with Recorder(RecordingWriter(path), lambda _: None, patient=lambda: True) as recorder:
            loop = Loop(camera, Tracker(engine), publisher, sink=recorder)
            for frame in frames:
                (loop.handle if messages else recorder.frame)(frame)
    told: list[bool] = []
    show = published(str(path), DEFAULT_MODEL, tracks=lambda: told.append(True))
    with show as address, served([address], port=0) as server:
        body = first_packets(server.url, has_all_of_a_hand)
    assert told == ([] if messages else [True])
    says = body["cameras"][0]["message"] or ""
    assert body["cameras"][0]["camera"] == "synthetic-0" and (messages or "played" not in says)


@pytest.mark.parametrize("messages", [False, True])
def test_of_a_recording_damaged_in_the_middle_what_is_before_is_shown_and_one_line_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], messages: bool
) -> None:
    path = damaged(tmp_path / "hand.mcap", messages)
    with published(str(path), DEFAULT_MODEL, "onnxruntime"):
        for thread in threading.enumerate():
            if thread.name == "recording":  # which may be through with it already
                thread.join(20)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"edge-hand: {path} is damaged (") and err.count("\n") == 1


def test_frames_that_a_recording_lacks_do_not_make_it_be_read_again() -> None:
    """Some in a row, a damaged one, and those behind its end."""
    read: list[int] = []

    def decoded(t_ns: int) -> DepthFrame:
        read.append(t_ns)
        if t_ns == 70:
            raise RecordingError("a frame is damaged")
        lens = Intrinsics(4, 4, 4.0, 4.0, 1.5, 1.5)
        return DepthFrame("front", t_ns, t_ns, np.zeros((4, 4), np.uint16), 0.001, lens)

    class Gaps:
        decode_frame = staticmethod(decoded)

        def stored(self, from_ns: int) -> list[int]:
            return [10, 20, 60, 70, 80]

    source = _WithClouds("tcp://127.0.0.1:*", Gaps())  # type: ignore[arg-type]
    for lap in (1, 2):
        found = [source._frame_at(t_ns) for t_ns in range(10, 110, 10)]
        assert [frame and frame.t_ns for frame in found] == [10, 20, None, None, None, 60, None, 80, None, None]
        assert read == lap * [10, 20, 60, 70, 80]


def test_a_page_that_opens_late_waits_for_nothing_that_lies_before(tmp_path: Path) -> None:
    """What is damaged would end the reading."""
    path, last_ns = damaged(tmp_path / "hand.mcap", messages=True, step_ns=10**9), BEGUN_NS + 2 * 10**9
    with Recording(path) as recording:
        opened_late, opened_again = (_WithClouds("tcp://127.0.0.1:*", recording) for _ in range(2))
        found = [opened_late._frame_at(last_ns), opened_again._frame_at(BEGUN_NS), opened_again._frame_at(last_ns)]
    assert [frame and frame.seq for frame in found] == [2, 0, 2]


def test_only_pages_of_this_machine_may_read_it() -> None:
    with served([ADDRESS], port=0) as server:
        for host, code in (("localhost:1", 200), ("127.0.0.1", 200), ("evil.example", 403), ("", 403)):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
            connection.request("GET", "/", headers={"Host": host})
            answer = connection.getresponse()
            assert answer.status == code, host
            assert "default-src 'self'" in (answer.getheader("Content-Security-Policy") or "")
            assert answer.getheader("Access-Control-Allow-Origin") is None
            connection.close()
        for path in ("/../view.py", "/view.py", "/page/view.html", "/nothing", "//etc/passwd"):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
            connection.request("GET", path)
            assert connection.getresponse().status == 404, path
            connection.close()


def test_the_page_needs_nothing_from_elsewhere() -> None:
    import edge_hand.edge.view.live as view

    assert {"view.html", "view.css", "view.js", "draw.js", "stream.js"} <= view.FILES
    for name in view.FILES:
        text = (view.PAGE / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "//cdn" not in text, name


@pytest.mark.slow
def test_the_command_serves_the_page_until_it_is_told_to_stop(tmp_path: Path) -> None:
    rig = Rig("cell", "2026-01-01T00:00:00Z", "test", (a_camera("front"), a_camera("side")), (), Quality("board"))
    save_rig(rig, tmp_path / "rig.json")
    command = [
        sys.executable,
        "-m",
        "edge_hand.edge.cli.main",
        "view",
        "--port",
        "0",
        "--address",
        f"ipc://{tmp_path}/d",
    ]
    with subprocess.Popen([*command, "--rig", str(tmp_path / "rig.json")], stdout=subprocess.PIPE, text=True) as ran:
        assert ran.stdout is not None
        url, _, said = ran.stdout.readline().partition(" ")
        assert said == f"shows ipc://{tmp_path}/d; Ctrl-C ends it\n"
        with urllib.request.urlopen(url, timeout=60) as page:
            assert b"<canvas" in page.read()
        body = first_packets(url, lambda _: True)
        assert body["silent"] == [f"ipc://{tmp_path}/d"]
        ran.terminate()
        assert ran.wait(60) == 0


def a_camera(serial: str) -> RigCamera:
    return RigCamera(serial, "depth", Intrinsics(640, 480, 380, 380, 320, 240), np.eye(4), 1e-6 * np.eye(6))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "edge-hand: --host 0.0.0.0: anyone who can reach this address could read it; take"),
        (["--rig", "nowhere.json"], "edge-hand: nowhere.json"),
        (["--source", "nowhere.mcap"], "edge-hand: nowhere.mcap does not exist"),
        (["--address", "nonsense"], "edge-hand: cannot subscribe at 'nonsense'"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["edge-hand", "view", "--port", "0", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert left.value.code == 1 and said.startswith(says) and said.count("\n") == 1, said


def test_a_recording_on_a_system_without_a_temporary_folder_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(**options: str) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", read_only)
    with pytest.raises(CommandError, match=r"no usable temporary directory found in \['/tmp'\]; name one with TMPDIR="):
        published("hand.mcap", DEFAULT_MODEL).__enter__()
