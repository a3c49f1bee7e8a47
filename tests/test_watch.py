"""What the terminal shows, read back from its escape codes."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from edge_hand.edge.publish import Publisher
from edge_hand.edge.view import watch as watch_module
from edge_hand.edge.view.terminal import Viewer
from edge_hand.edge.view.watch import BACK, FINGER_COLOURS, Screen, draw, summary, watch
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame, HandPose
from edge_hand.hand.wire import Header, JointsMessage, Motion, WireHand, decode, encode_joints, encode_status
from slept_time import slept_time

HEADER = Header("front", 42, 10**9, 0, 10**9 + 8_300_000)


def flat_hand(x_m: float = 0.0, z_m: float = 0.5, state: str = "tracked", closed: float = 0.0) -> WireHand:
    """A hand of straight fingers, upright before the camera: thumb at the image's right, wrist at the bottom."""
    joints = np.zeros((21, 3))
    for finger in range(5):
        for k in range(4):
            joints[1 + 4 * finger + k] = (0.06 - 0.03 * finger, -0.05 - 0.03 * k, 0)
    joints += (x_m, 0.08, z_m)
    theta = np.zeros(26)
    theta[6 + 4 : 6 + 8] = np.array([95, 0, 112, 80]) * np.pi / 180 * closed  # the index finger
    wrist = np.eye(4)
    wrist[:3, 3] = joints[0]
    pose = HandPose(
        "right", 0.9, state, 0.93, wrist, theta, np.ones(6), np.zeros(7), joints, joints, np.ones(21), fit_mm=2.4
    )
    return WireHand(7, 0.0, pose, joints)


def message(*hands: WireHand) -> JointsMessage:
    decoded = decode(encode_joints(HEADER, hands, stages_us={}, dropped=3))
    assert isinstance(decoded, JointsMessage)
    return decoded


def cells(text: str) -> tuple[list[str], np.ndarray]:
    """The screen's lines as plain text, and its half blocks as an image (2 R, C, 3)."""
    plain, pixels = [], []
    for line in text.split("\n"):
        fore = back = (0, 0, 0)
        chars, top, bottom = "", [], []
        for code, final, char in re.findall(r"\x1b\[([0-9;?]*)([A-Za-z])|(.)", line):
            numbers = [int(n) for n in code.split(";") if n.isdigit()]
            if final == "m" and numbers[0] == 38:
                fore = tuple(numbers[2:])
            elif final == "m" and numbers[0] == 48:
                back = tuple(numbers[2:])
            elif not final:
                chars += char
                top.append(fore if char == "▀" else back)
                bottom.append(back)
        plain.append(chars)
        pixels += [top, bottom]
    width = max(map(len, pixels))
    return plain, np.array([row + [(0, 0, 0)] * (width - len(row)) for row in pixels])


def where_hue(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(N, 2) row, column of the pixels whose colour points the same way as this one, off the background."""
    away, wanted = image - np.array(BACK), np.array(colour) - np.array(BACK)
    length = np.linalg.norm(away, axis=-1)
    cosine = (away * wanted).sum(-1) / np.maximum(length * np.linalg.norm(wanted), 1e-9)
    return np.argwhere((cosine > 0.995) & (length > 60))


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (41, 13), (200, 60), (20, 8)])
def test_the_drawing_fills_the_screen_and_no_more(columns: int, rows: int) -> None:
    for hands in ([], [flat_hand()], [flat_hand(-0.1), flat_hand(0.1)], [flat_hand()] * 4):
        plain, _ = cells(draw(message(*hands), columns, rows, note="x" * 300))
        assert len(plain) == rows
        assert max(map(len, plain)) <= columns
        assert len(plain[0]) == columns


def test_fingers_are_drawn_in_their_colours_where_the_camera_sees_them() -> None:
    _, image = cells(draw(message(flat_hand()), 80, 30))
    picture = image[: 2 * (30 - 4)]
    middle = [where_hue(picture, colour).mean(0) for colour in FINGER_COLOURS]
    columns = [m[1] for m in middle]
    assert columns == sorted(columns, reverse=True)  # thumb at the image's right, little finger at its left
    extent = where_hue(picture, FINGER_COLOURS[2])
    assert np.ptp(extent[:, 0]) > 2 * np.ptp(extent[:, 1])  # upright


def test_the_view_holds_every_hand_with_a_margin() -> None:
    _, image = cells(draw(message(flat_hand(-0.15, 0.4), flat_hand(0.15, 0.7)), 80, 30))
    drawn = np.argwhere(np.abs(image[: 2 * (30 - 6)] - np.array(BACK)).sum(-1) > 30)
    assert drawn.min(0).min() >= 1 and drawn[:, 1].max() < 79 and drawn[:, 0].max() < 47


def test_depth_lies_under_the_hand_in_the_right_place() -> None:
    intrinsics = Intrinsics(320, 240, 240.0, 240.0, 159.5, 119.5)
    depth = np.zeros((240, 320), np.uint16)
    depth[:, 160:] = 520  # a wall behind the right half of the image
    frame = DepthFrame("front", 1, 1, depth, 0.001, intrinsics)
    _, image = cells(draw(message(flat_hand()), 80, 30, frame=frame))
    row = image[0].sum(-1)
    assert (row[:30] == sum(BACK)).all() and (row[50:60] > 150).all()
    _, empty = cells(draw(message(), 80, 30, frame=frame))
    assert empty[20, 20].sum() == sum(BACK) and empty[20, 50].sum() > 150


def test_a_predicted_hand_is_fainter() -> None:
    _, tracked = cells(draw(message(flat_hand()), 60, 24))
    _, predicted = cells(draw(message(flat_hand(state="predicted")), 60, 24))
    assert predicted[:36].sum() < 0.9 * tracked[:36].sum()


def test_a_hand_behind_the_camera_is_not_drawn() -> None:
    _, image = cells(draw(message(flat_hand(z_m=-0.5)), 60, 24))
    assert (image[:36] == BACK).all()


def test_the_text_says_what_is_known() -> None:
    plain, _ = cells(draw(message(flat_hand(0.0123, closed=1.0)), 100, 24, fps=29.9, note="stalled: no frame"))
    text = "\n".join(plain)
    assert " front  seq 42  29.9 fps  latency 8.3 ms  dropped 3" in text
    assert " #7 right   tracked   0.93  wrist +12 +80 +500 mm  fit 2.4 mm  age 0 ms" in text
    assert "thumb ······  index ██████  middle ······" in text
    assert "stalled: no frame" in text


def test_hidden_joints_are_drawn_darker_and_counted_and_the_speed_is_told() -> None:
    hand = flat_hand()
    visible = np.ones(21, np.int8)
    visible[5:9] = 0  # the index finger
    motion = Motion(np.array([0.3, 0.0, 0.4]), np.zeros(3), np.zeros(20))
    shown = replace(hand, visible=visible, motion=motion)
    plain, image = cells(draw(message(shown), 100, 30))
    assert "age 0 ms  0.50 m/s  hidden 4" in "\n".join(plain)
    narrow, _ = cells(draw(message(shown), 79, 30))
    (line,) = (line for line in narrow if line.startswith(" #7 "))
    assert line.endswith("  age 0 ms")  # nothing is cut in two
    _, before = cells(draw(message(hand), 100, 30))
    darker = np.argwhere(image[:52].sum(-1) < before[:52].sum(-1) - 60)
    index = where_hue(before[:52], FINGER_COLOURS[1])
    assert len(darker) > 4
    assert darker[:, 1].min() >= index[:, 1].min() - 2 and darker[:, 1].max() <= index[:, 1].max() + 2


def test_no_hand_is_said() -> None:
    plain, _ = cells(draw(message(), 80, 24))
    assert " no hand" in plain


def test_a_rate_that_is_not_known_yet_is_not_told() -> None:
    assert summary(message()) == "front seq 42 latency 8.3 ms dropped 3 | no hand"
    assert " front  seq 42  latency 8.3 ms  dropped 3" in cells(draw(message(), 80, 24))[0]


def test_the_summary_is_one_plain_line() -> None:
    assert summary(message(flat_hand()), 30.0) == (
        "front seq 42 30.0 fps latency 8.3 ms dropped 3 | #7 right tracked 0.93 age 0 ms wrist +0 +80 +500 mm"
    )


class Terminal:
    """The far end of a pseudo terminal: collects what a program draws."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w")
        self.seen = b""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            self.seen += data

    def wait_for(self, text: bytes) -> None:
        end = time.monotonic() + 60
        while text not in self.seen and time.monotonic() < end:
            time.sleep(0.01)
        assert text in self.seen


@pytest.fixture
def colourful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_terminal_that_was_closed_keeps_nothing_from_ending_in_order() -> None:
    master, slave = pty.openpty()
    with Screen(os.fdopen(slave, "w")) as screen:
        assert screen.live
        os.close(master)


def test_the_view_of_a_daemon_ends_quietly_when_nobody_reads_it_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    with Viewer(Screen(stream)) as viewer:
        viewer(
            DepthFrame("front", 1, 1, np.zeros((4, 4), np.uint16), 0.001, Intrinsics(4, 4, 1.0, 1.0, 0.0, 0.0)),
            joints_of("front", flat_hand()),
        )
        viewer._thread.join(60)
        assert not viewer._thread.is_alive() and not raised
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_the_screen_is_given_back_even_after_an_error(colourful: None) -> None:
    terminal = Terminal()
    with pytest.raises(ZeroDivisionError), Screen(terminal.stream) as screen:
        screen.show(message(flat_hand()))
        raise ZeroDivisionError
    terminal.wait_for(b"\x1b[?25h\x1b[?1049l")
    assert terminal.seen.startswith(b"\x1b[?1049h\x1b[?25l")
    assert "▀".encode() in terminal.seen


def test_the_screen_draws_no_more_than_fifteen_times_a_second(colourful: None, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, clock = Terminal(), slept_time(monkeypatch, watch_module)
    with Screen(terminal.stream) as screen:
        for _ in range(30):
            screen.show(message())
            clock.sleep(0.01)
    terminal.wait_for(b"\x1b[?1049l")
    assert 2 <= terminal.seen.count(b"\x1b[?2026h") <= 6


@pytest.mark.parametrize("case", ["NO_COLOR", "pipe"])
def test_without_colour_or_terminal_it_prints_one_line_a_second(
    case: str, colourful: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream: Any = io.StringIO()
    slept_time(monkeypatch, watch_module)  # no second passes
    if case == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    with Screen(stream) as screen:
        for _ in range(50):
            screen.show(message(flat_hand()))
    assert stream.getvalue() == summary(message(flat_hand())) + "\n"


def test_a_terminal_whose_encoding_lacks_the_picture_gets_lines(colourful: None) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    stream.isatty = lambda: True  # type: ignore[method-assign]
    with Screen(stream) as screen:
        screen.show(message(flat_hand()))
    assert stream.buffer.getvalue().decode() == summary(message(flat_hand())) + "\n"  # type: ignore[attr-defined]


class Broadcast:
    """A publisher in a thread that repeats its messages, as a daemon would."""

    def __init__(self, *messages: list[bytes]) -> None:
        self.messages = messages
        self.stop = threading.Event()
        self.ready = threading.Event()

    def __enter__(self) -> Broadcast:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _run(self) -> None:
        with Publisher("tcp://127.0.0.1:*") as publisher:
            self.address = publisher.address
            self.ready.set()
            while not self.stop.wait(0.02):
                publisher.poll_subscriptions()
                for parts in self.messages:
                    publisher.publish(parts)


def joints_of(camera: str, *hands: WireHand) -> list[bytes]:
    return encode_joints(Header(camera, 1, 1, 1, 1), hands, stages_us={}, dropped=0)


def test_watch_shows_a_running_daemon_and_ends_after_its_frames(capsys: pytest.CaptureFixture[str]) -> None:
    with Broadcast(joints_of("front", flat_hand())) as daemon:
        watch(daemon.address, frames=3)
    assert "front seq 1" in capsys.readouterr().out


def test_a_name_that_the_encoding_lacks_is_written_as_an_escape() -> None:
    command = [sys.executable, "-m", "edge_hand.edge.cli.main", "watch", "--frames", "1", "--address"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    with Broadcast(joints_of("h\u00e4nde", flat_hand())) as daemon:
        done = subprocess.run([*command, daemon.address], env=ascii_only, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.startswith(rb"h\xe4nde seq ")


def test_watch_shows_only_the_camera_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with Broadcast(joints_of("front"), joints_of("side")) as daemon:
        watch(daemon.address, camera="side", frames=3)
    assert "front" not in capsys.readouterr().out


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is printed until the last line has all these words in it."""
    out, end = "", time.monotonic() + 60
    while not all(word in out.rpartition("\n")[0].rpartition("\n")[2] for word in words) and time.monotonic() < end:
        time.sleep(0.01)
        out += capsys.readouterr().out
    return out


def test_watch_hints_once_while_nobody_publishes_and_keeps_waiting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "HINT_S", 0.3)
    with Broadcast() as daemon:
        thread = threading.Thread(target=watch, args=(daemon.address, "front", 1))
        thread.start()
        out = printed(capsys, "waiting")
        thread.join(0.8)
        assert thread.is_alive()
        out += capsys.readouterr().out
        daemon.messages = (joints_of("front"),)
        assert thread.join(60) or not thread.is_alive()
    assert out == (
        f"nothing of front at {daemon.address}: start `edge-hand run`, or give --keys NAME.key_secret if it runs with "
        "--keys (still waiting)\n"
    )


def test_watch_of_a_camera_that_is_not_there_names_those_that_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "HINT_S", 0.3)
    values = {"fps": 0, "frames": 0, "dropped": 0, "bad_frames": 0, "engine": "e", "model": "m", "uptime_s": 1}
    said = []
    for camera in ("side", "front"):
        with Broadcast(encode_status(HEADER, state="stalled", **values)) as daemon:
            thread = threading.Thread(target=watch, args=(daemon.address, camera, 1))
            thread.start()
            said.append(printed(capsys, "waiting").replace(daemon.address, "ADDRESS"))
            daemon.messages = (joints_of(camera),)
            thread.join(60)
            capsys.readouterr()
    assert said == [
        "nothing of side at ADDRESS; there is front (still waiting)\n",
        "nothing of front at ADDRESS but its status, stalled (still waiting)\n",
    ]


def test_watch_never_keeps_showing_an_old_hand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("LINE_S", 0.0), ("STALE_S", 0.3), ("SILENT_S", 0.5)):
        monkeypatch.setattr(watch_module, name, seconds)
    counted = 0
    real_show = Screen.show

    def show(screen: Screen, *given: Any, count: int = 1) -> None:
        nonlocal counted
        counted += count
        real_show(screen, *given, count=count)

    monkeypatch.setattr(Screen, "show", show)
    status = encode_status(
        HEADER, state="stalled", fps=0, frames=9, dropped=0, bad_frames=0, engine="e", model="m", uptime_s=1
    )
    with Broadcast(joints_of("front", flat_hand())) as daemon:
        thread = threading.Thread(target=watch, args=(daemon.address, None, 60))
        thread.start()
        printed(capsys, "#7")
        daemon.messages = (status,)
        last = printed(capsys, "stalled: no frame for").splitlines()[-1]
        daemon.messages = (joints_of("side"),)
        gone = printed(capsys, "silent: no frame for", "side").splitlines()[-1]
        daemon.messages = (joints_of("front"),) * 5
        assert thread.join(60) or not thread.is_alive()
    assert "no hand | silent: no frame for" in gone and gone.endswith("; also here: side (--camera NAME)")
    assert "#7" not in last and "no hand | stalled: no frame for" in last
    assert counted == 60, "what is drawn while nothing comes counts as frames"
