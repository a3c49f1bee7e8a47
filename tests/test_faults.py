"""What a daemon survives: signals, kill -9, bad settings, a failing engine, a set clock, a crowd of subscribers."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.client import subscribe
from edge_hand.edge.clock import Clock
from edge_hand.edge.engines import open_engine
from edge_hand.edge.finder import open_finder
from edge_hand.edge.loop import Loop, topology
from edge_hand.edge.networks.card import MODELS, ModelError
from edge_hand.edge.networks.swap import SwapEngine
from edge_hand.edge.publish import Publisher
from edge_hand.edge.service.control import ask, sockets
from edge_hand.edge.tracker import Tracker
from edge_hand.hand.wire import JointsMessage, Message, StatusMessage
from slept_time import slept_time
from test_reload import Failing

TIMEOUT_S = 60
DEMO = MODELS.parent / "demo" / "hand.mcap"
EDGE_HAND = [sys.executable, "-m", "edge_hand.edge.cli.main"]
ALONE = """
from edge_hand.edge.cli import main as cli
from edge_hand.edge.service import control
control.USERS = ()  # asks no other daemon of this user
cli.main()
"""
RELOAD = [sys.executable, "-c", ALONE, "reload"]
QUICK = ["--finder", "geometry", "--engine", "onnxruntime"]
MODE = ["--mode", "424x240@30"]


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control sockets of this test's own."""
    for name in ("RUNTIME_DIRECTORY", "NOTIFY_SOCKET", "EDGE_HAND_BIND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


class Running:
    """A daemon as a process; its log is read line by line."""

    def __init__(
        self, *arguments: object, bind: str = "tcp://127.0.0.1:*", mode: list[str] = MODE, **options: Any
    ) -> None:
        command = [*EDGE_HAND, "run", *QUICK, *mode, "--log", "text", "--bind", bind, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)
        self.lines: list[str] = []

    def until(self, pattern: str) -> str:
        """The next line of the log that has this in it."""
        assert self.process.stderr is not None
        end_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end_s:
            if select.select([self.process.stderr], [], [], 1.0)[0]:
                line = self.process.stderr.readline()
                if not line:
                    break
                self.lines.append(line.strip())
                if re.search(pattern, line):
                    return line.strip()
        raise AssertionError(f"no {pattern!r} in {self.lines}")

    def address(self) -> str:
        match = re.search(r"-> (\S+) ", self.until(" -> "))
        assert match
        return match[1]

    def ends(self) -> tuple[int, str]:
        _, rest = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, rest

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stderr:
            self.process.stderr.close()


# --- signals and the control socket


def test_a_daemon_is_reloaded_told_asked_and_stopped(runtime: Path) -> None:
    config = runtime / "config.toml"
    config.write_text("hands = 2\n")
    with Running("--camera", "synthetic", "--config", config) as daemon:
        address = daemon.address()
        daemon.until("tracked")
        (control,) = sockets()
        assert control == runtime / "edge-hand" / "synthetic-0.sock"
        status = ask(control, "status")
        assert status.values["address"] == address and status.values["pid"] == daemon.process.pid
        assert status.values["state"] == "tracked" and status.values["frames"] > 0

        config.write_text("hands = 1\nbind = 'tcp://127.0.0.1:5999'\n")  # the flag --bind beats it
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.until("reload: ").endswith("reload: now hands = 1")
        config.write_text("hand = 1\n")
        daemon.process.send_signal(signal.SIGHUP)
        assert "nothing was changed: config" in daemon.until("reload: ")
        done = subprocess.run(RELOAD, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 1 and done.stdout.startswith("synthetic-0: nothing was changed: config ")
        config.write_text("smooth = false\nwait = true\n")
        done = subprocess.run(RELOAD, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 0 and not done.stderr
        assert done.stdout == "synthetic-0: now hands = 2, smooth = False; wait: only with a restart\n"

        done = subprocess.run(
            [*RELOAD, "--camera", "x"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.stderr == "edge-hand: reload: no daemon runs for x; there is synthetic-0\n"

        assert ask(control, "use", MODELS / "dgn-nano.onnx").ok
        daemon.until(r"engine: dgn-nano on onnxruntime .* now, dgn-nano-int8 on ")
        with subscribe(address, ["status"], latest=False, timeout_s=TIMEOUT_S) as messages:
            next(messages)  # it listens
            assert ask(control, "stop").message == "stopping"
            states = [m for m in messages_until_stopping(messages) if isinstance(m, StatusMessage)]
        assert states[-1].state == "stopping" and states[-1].model.startswith("dgn-nano ")
        assert daemon.ends()[0] == 0 and sockets() == []


def messages_until_stopping(messages: Any) -> Iterator[Message]:
    for message in messages:
        yield message
        if message.state == "stopping":
            return


def test_reload_without_a_daemon_is_one_line() -> None:
    done = subprocess.run(RELOAD, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (1, "edge-hand: reload: no daemon runs on this machine\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order_even_while_the_camera_is_away(number: signal.Signals) -> None:
    with Running("--camera", "faulty", "--source", "synthetic?unplug@0.5+60") as daemon:
        daemon.until("connected; ")
        begun_s = time.monotonic()
        daemon.process.send_signal(number)
        code, rest = daemon.ends()
    assert code == 0 and time.monotonic() - begun_s < 40 and "synthetic-0 stopping" in rest and "Traceback" not in rest


@pytest.mark.parametrize("kind", ["tcp", pytest.param("ipc", marks=pytest.mark.slow)])
def test_after_kill_9_it_starts_again_at_the_same_address(kind: str, runtime: Path) -> None:
    with contextlib.ExitStack() as stack:
        bind = "tcp://127.0.0.1:*" if kind == "tcp" else f"ipc://{runtime}/hands"
        first = stack.enter_context(Running("--camera", "synthetic", bind=bind))
        address = first.address()
        messages = stack.enter_context(subscribe(address, timeout_s=TIMEOUT_S))
        first.until("tracked")
        next(messages)
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        with Running("--camera", "synthetic", bind=address) as second:
            second.until("tracked")
            begun_ns = time.monotonic_ns()
            assert any(m.t_publish_ns > begun_ns for m, _ in zip(messages, range(300), strict=False))
            assert sockets() == [runtime / "edge-hand" / "synthetic-0.sock"]


# --- supervision


@pytest.mark.slow
def test_the_watchdog_hears_of_a_camera_that_is_tried_again(runtime: Path) -> None:
    address = str(runtime / "notify")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(address)
        manager.settimeout(TIMEOUT_S)
        environ = {**os.environ, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
        recording = runtime / "later.mcap"
        source = f"replay:{recording}?unplug@10+60"
        with Running("--camera", "faulty", "--source", source, "--loop", "--wait", mode=[], env=environ) as daemon:
            daemon.until("waiting for the camera: ")
            shutil.copy(DEMO, recording)
            heard: list[str] = []
            while not heard or "it is opened again" not in heard[-1]:
                heard.append(manager.recv(4096).decode())
            assert heard.index("EXTEND_TIMEOUT_USEC=60000000") < heard.index("READY=1")
            away = [manager.recv(4096).decode() for _ in range(6)]
            assert away.count("WATCHDOG=1") >= 4 and all("stalled" in line for line in away if line != "WATCHDOG=1")
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.ends()[0] == 0


# --- subscribers


@pytest.mark.slow
def test_a_flood_of_subscribers_holds_up_no_frame_and_costs_no_files() -> None:
    """More connections than the daemon may have open files, many of which never read."""

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))

    with (
        Running("--camera", "synthetic", preexec_fn=few_files) as daemon,
        zmq.Context() as context,
        contextlib.ExitStack() as stack,
    ):
        address = daemon.address()
        daemon.until("tracked")
        good = stack.enter_context(subscribe(address, timeout_s=TIMEOUT_S))
        next(good)
        host, port = re.findall(r"//(.+):(\d+)", address)[0]
        for k in range(200):
            if k % 2:
                flood = context.socket(zmq.SUB)
                flood.setsockopt(zmq.RCVHWM, 1)
                flood.linger = 0
                for topic in range(20):
                    flood.subscribe(f"joints.{topic}" if topic else "")
                flood.connect(address)
            else:
                raw = stack.enter_context(socket.socket())
                raw.settimeout(60)
                raw.connect((host, int(port)))
                raw.sendall(os.urandom(200))  # whatever this is
        frames = [m for m, _ in zip(good, range(40), strict=False) if isinstance(m, JointsMessage)]
        assert len(frames) == 40 and sorted(m.stages_us["publish"] for m in frames)[20] < 500_000
        assert daemon.process.poll() is None
        context.destroy(linger=0)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.ends()[0] == 0


# --- in the loop


def published(
    loop: Loop,
    publisher: Publisher,
    steps: int,
    between: Any = lambda step: None,
    until: Callable[[], bool] = lambda: False,
) -> list[Message]:
    """What a subscriber to joints and status gets of some steps."""
    with subscribe(publisher.address, ["joints", "status"], latest=False, timeout_s=TIMEOUT_S) as messages:
        end_s = time.monotonic() + 60
        while not (publisher.wants("joints.x") and publisher.wants("status.x")) and time.monotonic() < end_s:
            publisher.poll_subscriptions()
        for step in range(steps):
            between(step)
            loop.step()
            if until():
                break
        loop.tell("over")
        return list(itertools.takewhile(lambda m: getattr(m, "message", "") != "over", messages))


def test_a_set_wall_clock_is_followed_at_once_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead_ns, slept = [0], slept_time(monkeypatch)
    clock = Clock(slept.monotonic_ns, lambda: slept.now_ns + ahead_ns[0])
    with SyntheticCamera(0, "424x240@30") as camera, Publisher("tcp://127.0.0.1:*", topology=topology()) as publisher:
        loop = Loop(camera, Tracker(open_engine("onnxruntime"), open_finder("geometry")), publisher, clock=clock)

        def between(step: int) -> None:
            if step == 4:
                ahead_ns[0] = 3_600_000_000_000

        received = published(loop, publisher, 8, between)
    joints = [m for m in received if isinstance(m, JointsMessage)]
    offsets_s = [(m.t_capture_unix_ns - m.t_capture_ns) / 1e9 for m in joints]
    assert offsets_s == [0] * 4 + [3600] * 4
    assert [m.message for m in received if isinstance(m, StatusMessage) and m.message] == [
        "the wall clock was set by +3600.0 s"
    ]
    assert all(m.hands for m in joints), "the hand is followed on"


def test_an_engine_that_is_down_is_told_and_its_frames_give_no_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_hand.edge.networks.swap.FIRST_DELAY_S", 0.05)
    gone = [2]  # so many attempts fail

    def again() -> Any:
        gone[0] -= 1
        if gone[0] >= 0:
            raise OSError("the GPU is gone")
        return open_engine("onnxruntime")

    engine = SwapEngine(Failing(12), lambda line: None, openers=[again])
    with SyntheticCamera(0, "424x240@30") as camera, Publisher("tcp://127.0.0.1:*", topology=topology()) as publisher:
        loop = Loop(camera, Tracker(engine, open_finder("geometry")), publisher)
        states: list[str] = []

        def back() -> bool:
            states.append(loop.state)
            return "stalled" in states and loop.state == "tracked"

        received = published(loop, publisher, 1000, until=back)
        kinds = [m.message if isinstance(m, StatusMessage) else "hand" if m.hands else "none" for m in received]
        down = "engine: the GPU is gone; it is opened anew"
        assert "hand" in kinds[: kinds.index(down)] and "hand" in kinds[kinds.index(down) :]
        assert {m.state for m in received if isinstance(m, StatusMessage) and m.message == down} == {"stalled"}
        engine.openers[:], engine._now = [again], Failing(0)
        gone[0] = 99
        with pytest.raises(ModelError, match="failed 5 times, at last: the GPU is gone"):
            for _ in range(2000):
                loop.step()
