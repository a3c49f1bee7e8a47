"""A long run with a fault every so often: python -m edge_hand.edge.bench.soak --minutes 30 --fps 90

A daemon of its own follows a recorded hand through the faulty camera, while three subscribers listen: one as it should
be, one that hardly reads, one that comes and goes every second. Each fault of the list comes in turn: those of the
camera by its script, those of the process from here. In the end a table says what became of each.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..cameras.faulty import Fault
from ..cli.shell import FloatRange
from ..networks.card import DEFAULT_MODEL

DEMO = Path(__file__).parents[1] / "demo" / "hand.mcap"
CAMERA = {
    "unplug": 2.0, "stall": 1.5, "hang": 4.0, "reset": 0.5, "torn": 0.0, "repeat": 0.0, "backward": 0.8, "late": 1.0,
    "freeze": 1.0,
}  # fmt: skip
PROCESS = ("engine error", "clock set", "bad model", "good model", "bad settings", "settings", "flood")
FIRST = ("full disk", "kill -9")  # of the daemon's first life, which records; memory is watched in the second
START_S = 10.0  # until the first fault
DISK = 128 << 10  # bytes a file may have in the first life
HOUR_NS = 3_600_000_000_000


def plan(begin_s: float, minutes: float, every_s: float) -> list[Fault]:
    """Which fault when, by CLOCK_MONOTONIC: each kind once, then all of them again."""
    kinds = [*FIRST]
    camera, process = list(CAMERA), list(PROCESS)
    turn = [kind for k in range(len(camera)) for kind in (camera[k : k + 1] + process[k : k + 1])]
    count = int((minutes * 60 - START_S) // every_s)
    while len(kinds) < count:
        kinds += turn
    times = [begin_s + START_S + k * every_s for k in range(count)]
    return [Fault(kind, t, min(CAMERA.get(kind, 0.0), 0.4 * every_s)) for kind, t in zip(kinds, times, strict=False)]


class Daemon:
    """The daemon as a process, started anew by `start`, and what is done to it."""

    def __init__(self, folder: Path, planned: list[Fault], begin_s: float, fps: float) -> None:
        self.folder, self.model, self.models = folder, folder / "net.onnx", 0
        self.address = f"ipc://{folder}/hands"
        self.config = folder / "config.toml"
        self.log = folder / "log.txt"
        self.place(good=True)
        self.config.write_text("hands = 2\n")
        script = ",".join(
            f"{f.kind}@{f.start_s - begin_s:.3f}+{f.seconds:g}" for f in planned if f.kind in CAMERA
        ) or "stall@1000000"  # fmt: skip
        source = f"replay:{DEMO}?begin={begin_s:.3f},{script}"
        self.command = [sys.executable, "-m", "edge_hand.edge.bench.soak", "--child", "run", "--camera", "faulty",
                        "--source", source, "--fps", f"{fps:g}", "--loop", "--bind", self.address, "--log", "text",
                        "--config", str(self.config), "--model", str(self.model), "--engine", "onnxruntime",
                        "--wait"]  # fmt: skip

    def start(self, *more: str, disk: int | None = None) -> None:
        def limits() -> None:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # of use to the daemon even where the soak runs under nohup
            if disk is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (disk, disk))

        environ = {**os.environ, "XDG_RUNTIME_DIR": str(self.folder), "OMP_NUM_THREADS": "1"}
        environ = {k: v for k, v in environ.items() if k not in ("NOTIFY_SOCKET", "RUNTIME_DIRECTORY")}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*self.command, *more], env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=limits
            )

    def place(self, good: bool) -> None:
        """Put a model where the daemon takes its own from: the shipped network in other bytes, or bytes that are none.

        A protobuf may be followed by more of its fields; ONNX's sixth is a text that says nothing to engines.
        """
        self.models += 1
        note = f"soak {self.models:4d}".encode()
        data = DEFAULT_MODEL.read_bytes() + bytes([6 << 3 | 2, len(note)]) + note if good else b"this is no network"
        card = json.loads(DEFAULT_MODEL.with_suffix(".json").read_text()) | {"sha256": hashlib.sha256(data).hexdigest()}
        for path, content in ((self.model, data), (self.model.with_suffix(".json"), json.dumps(card).encode())):
            fresh = path.with_name(path.name + ".new")
            fresh.write_bytes(content)
            os.replace(fresh, path)

    def suffer(self, kind: str) -> None:
        """Do to it what a fault of the process is."""
        if kind == "kill -9":
            self.process.kill()
            self.process.wait()
            self.start()
        elif kind in ("engine error", "clock set"):
            self.process.send_signal(signal.SIGUSR1 if kind == "engine error" else signal.SIGUSR2)
        elif kind == "flood":
            flood(self.address)
        elif kind in ("bad model", "good model", "bad settings", "settings"):
            if kind.endswith("model"):
                self.place(kind == "good model")
            elif kind == "settings":
                self.config.write_text("hands = 1\n" if "2" in self.config.read_text() else "hands = 2\n")
            text = self.config.read_text()
            self.config.write_text("hand = 1\n" if kind == "bad settings" else text)
            self.process.send_signal(signal.SIGHUP)
            time.sleep(1.0)
            self.config.write_text(text)

    def memory_mb(self) -> float:
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return 0.0
        return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)


def flood(address: str, connections: int = 60) -> None:
    """Subscribers by the dozen that ask for everything, read nothing and go."""
    import zmq

    with zmq.Context() as context:
        for k in range(connections):
            client = context.socket(zmq.SUB)
            client.setsockopt(zmq.RCVHWM, 1)
            client.linger = 0
            for topic in ("", *(f"joints.{k}.{n}" for n in range(10))):
                client.subscribe(topic)
            client.connect(address)
        time.sleep(1.0)
        context.destroy(linger=0)


@click.command()
@click.option("--minutes", type=FloatRange(0.3), default=30.0, show_default=True)
@click.option("--fps", type=FloatRange(1), default=90.0, show_default=True)
@click.option("--every", "every_s", type=FloatRange(2), default=20.0, show_default=True, help="Seconds a fault.")
@click.option("--recovery", "recovery_s", type=FloatRange(0), default=1.0, show_default=True, help="Allowed, s.")
@click.option("--json", "json_path", type=Path, help="Also write the result to this file.")
@click.option("--log", "keep_log", type=Path, help="Keep the daemon's log in this file.")
def soak(
    minutes: float, fps: float, every_s: float, recovery_s: float, json_path: Path | None, keep_log: Path | None
) -> None:  # fmt: skip
    """Run a daemon through every fault, again and again, and say what became of it. Exit code 1 if anything failed.

    \b
    python -m edge_hand.edge.bench.soak --minutes 30 --fps 90
    """
    from ..cli.shell import CommandError, make_room, write_result
    from .soak_judge import Listeners, judge, table

    try:
        make_room(json_path, keep_log)
    except CommandError as error:
        sys.exit(f"soak: {error}")
    with tempfile.TemporaryDirectory(prefix="edge-hand-soak-") as name:
        folder = Path(name)
        begin_s = time.monotonic()
        planned = plan(begin_s, minutes, every_s)
        daemon = Daemon(folder, planned, begin_s, fps)
        daemon.start("--record", str(folder / "first.mcap"), disk=DISK)
        memory: list[tuple[float, float]] = []
        died: list[str] = []
        with Listeners(daemon.address) as heard:
            _drive(daemon, planned, begin_s + minutes * 60, memory, died)
            end_s = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            try:
                code = daemon.process.wait(20)
            except subprocess.TimeoutExpired:
                daemon.process.kill()
                code = daemon.process.wait()
            if code != 0:
                died.append(f"it ended with code {code}")
            time.sleep(0.3)
        log = daemon.log.read_text(errors="replace")
        if "Traceback" in log:
            died.append("a traceback in its log")
        result = judge(planned, heard, memory, died, log, recovery_s, begin_s + START_S / 2, end_s)
    click.echo(table(result))
    write_result(result, json_path)
    if died:
        click.echo(log[-3000:], err=True)
    if keep_log:
        keep_log.write_text(log)
    sys.exit(0 if result["passed"] else 1)


def _drive(
    daemon: Daemon, planned: list[Fault], end_s: float, memory: list[tuple[float, float]], died: list[str]
) -> None:
    """Until the end: bring the faults of the process about, watch the memory, start the daemon again if it died."""
    left = [fault for fault in planned if fault.kind not in CAMERA]
    progress = sys.stderr.isatty()
    while (now_s := time.monotonic()) < end_s:
        if left and now_s >= left[0].start_s:
            daemon.suffer(left.pop(0).kind)
        if daemon.process.poll() is not None:
            died.append(f"it died with code {daemon.process.returncode}")
            daemon.start()
        memory.append((now_s, daemon.memory_mb()))
        if progress:
            click.echo(f"\r{end_s - now_s:6.0f} s left, {memory[-1][1]:.1f} MB ", nl=False, err=True)
        time.sleep(max(0.0, min(1.0, end_s - now_s, left[0].start_s - now_s if left else 1.0)))


def child() -> None:
    """The daemon, with an engine that fails on SIGUSR1 and a wall clock that is set on SIGUSR2."""
    told = {"engine": 0, "ahead_ns": 0}
    true_ns: Callable[[], int] = time.time_ns
    time.time_ns = lambda: true_ns() + told["ahead_ns"]  # before anything takes it for its own
    from ..cli.main import main
    from ..engines import onnxruntime

    run = onnxruntime.OnnxRuntimeEngine.run

    def failing(self: Any, image: Any) -> Any:
        if told["engine"] and self.card.kind == "dgn":
            told["engine"] = 0
            raise RuntimeError("it was told to fail")
        return run(self, image)

    onnxruntime.OnnxRuntimeEngine.run = failing  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, lambda *_: told.update(engine=1))
    signal.signal(signal.SIGUSR2, lambda *_: told.update(ahead_ns=HOUR_NS - told["ahead_ns"]))
    main()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        del sys.argv[1]
        child()
    else:
        soak()
