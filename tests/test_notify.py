"""What systemd hears from a daemon, over the very socket it listens on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.cli.main import cli
from edge_hand.edge.engines.tensorrt import plan
from edge_hand.edge.engines.tensorrt.build import Job
from edge_hand.edge.networks.card import ModelError
from edge_hand.edge.recordings.recording import RecordingWriter
from edge_hand.edge.service import notify
from edge_hand.edge.service.notify import Notifier
from slept_time import slept_time

COMMAND = [
    sys.executable,
    "-m",
    "edge_hand.edge.cli.main",
    "run",
    "--finder",
    "geometry",
    "--bind",
    "tcp://127.0.0.1:*",
]


@contextlib.contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + address[1:] if address.startswith("@") else address)
        listening.settimeout(0.05)
        yield listening


def heard(listening: socket.socket) -> list[str]:
    messages = []
    with contextlib.suppress(TimeoutError):
        while True:
            messages.append(listening.recv(4096).decode())
    return messages


def environ(address: str, watchdog_s: float = 0.2) -> dict[str, str]:
    return {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(round(watchdog_s * 1e6))}


@pytest.mark.parametrize(("name", "said"), [("a\nMAINPID=1\n", "a MAINPID=1 .png"), ("a\udcff", "a?.png")])
def test_whatever_a_file_is_called_systemd_hears_one_line_of_text(name: str, said: str, tmp_path: Path) -> None:
    with manager(str(tmp_path / "notify")) as listening:
        Notifier(environ(str(tmp_path / "notify"))).status("stalled", f"{name}.png is not a PNG")
        assert heard(listening) == [f"STATUS=stalled: {said} is not a PNG"]


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_it_is_ready_with_the_first_frame_and_alive_with_those_after(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@edge-hand-test-{os.getpid()}"
    clock = slept_time(monkeypatch, notify)
    with manager(address) as listening:
        notifier = Notifier(environ(address))
        notifier.status("starting", "")
        assert heard(listening) == ["STATUS=starting"]
        notifier.frame()
        notifier.frame()
        assert heard(listening) == ["READY=1", "WATCHDOG=1"]
        clock.sleep(0.11)
        notifier.frame()
        notifier.status("stalled", "no frame in 0.5 s")
        notifier.status("stalled", "no frame in 0.5 s")
        notifier.status("stopping", "")
        assert heard(listening) == ["WATCHDOG=1", "STATUS=stalled: no frame in 0.5 s", "STATUS=stopping\nSTOPPING=1"]


def test_a_camera_that_is_tried_again_puts_readiness_off_and_later_is_a_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, clock = str(tmp_path / "notify"), slept_time(monkeypatch, notify)
    with manager(address) as listening:
        notifier = Notifier(environ(address))
        notifier.alive()
        notifier.alive()
        assert heard(listening) == ["EXTEND_TIMEOUT_USEC=60000000"]
        notifier.frame()
        clock.sleep(0.11)
        notifier.alive()
        assert heard(listening) == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]


def test_a_plan_that_is_built_puts_readiness_off_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`edge-hand run` up to its engine, which comes late in each of two ways, and never."""
    address, told = str(tmp_path / "notify"), list[str]()
    (tmp_path / "net.onnx").write_bytes(b"net")

    def wait(*_: Any) -> Any:
        end_s = time.monotonic() + (60 if expected else 0.5)
        while not told and time.monotonic() < end_s:
            told.extend(heard(listening))
        raise ModelError("it came to nothing")

    def builds(*_: Any) -> Any:
        plan.get_plan(tmp_path / "net.onnx", key, Job(), folder=tmp_path)

    key = plan.PlanKey("10.3.0", "Orin", "8.7", "CUDA 12.6", "a" * 64, "fp16", "level=3")
    monkeypatch.setattr(notify, "LOOK_S", 0.01)
    monkeypatch.setattr(plan, "run_build", wait)
    desk = SimpleNamespace(at_once=contextlib.nullcontext)
    monkeypatch.setattr("edge_hand.edge.service.desk.Desk", lambda *_: desk)  # the signals stay pytest's
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with manager(address) as listening:
        for opening, expected in ((wait, []), (builds, ["EXTEND_TIMEOUT_USEC=60000000"])):
            monkeypatch.setattr("edge_hand.edge.networks.reload.open_lasting_engine", opening)
            done = CliRunner().invoke(cli, ["run", "--camera", "synthetic", "--model", "dgn-nano", "--no-view"])
            assert str(done.exception) == "it came to nothing" and told == expected
    assert not [thread for thread in threading.enumerate() if thread.name == "alive"]


def test_readiness_is_told_again_if_it_was_not_heard(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier(environ(address))
    notifier.frame()  # nobody listens
    with manager(address) as listening:
        notifier.frame()
        assert heard(listening) == ["READY=1", "WATCHDOG=1"]


def test_a_manager_that_does_not_read_holds_up_nothing(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with manager(address):
        notifier = Notifier(environ(address, 0))
        frames = threading.Thread(target=lambda: [notifier.frame() for _ in range(2000)], daemon=True)
        frames.start()
        frames.join(60)
        assert not frames.is_alive()


def test_without_a_manager_or_for_another_process_it_says_nothing(tmp_path: Path) -> None:
    Notifier({}).frame()
    address = str(tmp_path / "notify")
    with manager(address) as listening:
        Notifier(environ(address) | {"WATCHDOG_PID": "1"}).frame()
        assert heard(listening) == ["READY=1"]  # the watchdog is another process's


@pytest.mark.slow
def test_a_running_daemon_is_alive_only_while_frames_come(tmp_path: Path) -> None:
    """The camera is a recording with a hole of many watchdog times: the loop turns on, and nothing is said."""
    recording, address = tmp_path / "hole.mcap", str(tmp_path / "notify")
    with SyntheticCamera(0, "424x240@30", fps=0) as camera, RecordingWriter(recording) as writer:
        for seq in range(30):
            frame = camera.frame(seq)
            hole_ns = 3_000_000_000 if seq >= 20 else 0
            writer.write(replace(frame, t_ns=1 + seq * 33_333_333 + hole_ns))
    with manager(address) as listening:
        child = subprocess.Popen(
            [*COMMAND, "--camera", "replay", "--source", str(recording)],
            env={**os.environ, **environ(address)}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        said: list[str] = []
        end_s = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < end_s:
            said += heard(listening)
        said += heard(listening)
    _, log = child.communicate(timeout=60)
    assert child.returncode == 0, log
    assert said[0] == "STATUS=starting" and said.count("READY=1") == 1
    assert said.index("READY=1") < said.index("WATCHDOG=1")
    hole = next(i for i, message in enumerate(said) if message.startswith("STATUS=stalled"))
    behind = next(i for i, message in enumerate(said) if i > hole and not message.startswith("STATUS=stalled"))
    assert said[behind] != "WATCHDOG=1"  # until a frame is said to be there
    assert "WATCHDOG=1" in said[behind:]  # the frames behind the hole
    assert said[-1] == "STATUS=stopping\nSTOPPING=1"
    lines = log.splitlines()  # under a manager it logs: what it does, each change, what it amounts to
    assert any(" -> tcp://127.0.0.1:" in line for line in lines) and any(" stalled: " in line for line in lines)
    assert any(line.startswith("30 frames in ") for line in lines)


def test_a_signal_is_told_as_stopping(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with manager(address) as listening:
        child = subprocess.Popen(
            [*COMMAND, "--camera", "synthetic", "--mode", "424x240@30", "--log", "json"],
            env={**os.environ, **environ(address)}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        said: list[str] = []
        end_s = time.monotonic() + 60
        while "READY=1" not in said and child.poll() is None and time.monotonic() < end_s:
            said += heard(listening)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
        assert "READY=1" in said and heard(listening)[-1] == "STATUS=stopping\nSTOPPING=1"
