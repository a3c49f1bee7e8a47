"""How long each stage takes, frame by frame, and how many frames a second come out."""

from __future__ import annotations

import os
import platform
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from ..hand.frames import DepthFrame
from .cameras import BadFrame, Camera, EndOfStream, open_camera
from .engines import open_engine
from .loop import Loop, topology
from .publish import Publisher
from .tracker import Tracker

STAGES = ("capture", "find", "crop", "engine", "refit", "publish", "total")
WARM_UP = 20
MOST_FRAMES = 2000  # held in memory


def bench(
    kind: str,
    source: str | None,
    *,
    engine: str,
    model: Path,
    threads: int,
    frames: int | None,
    flat_out: bool,
    mode: str | None = None,
) -> dict[str, Any]:
    """Run the daemon's own loop over a camera with a subscriber attached; percentiles per stage in microseconds.

    capture is the time from the frame's stamp to its pick-up, total from the stamp to after the last send. Flat out,
    a recording is decoded into memory first, as a sensor would have put it there.
    """
    taken: dict[str, list[float]] = {stage: [] for stage in STAGES}
    with (
        open_camera(kind, source, mode=mode, fps=0.0 if flat_out else None) as opened,
        Publisher("tcp://127.0.0.1:*", topology=topology()) as publisher,
        Subscriber(publisher.address),
    ):
        camera: Camera = Memory(opened, frames) if flat_out else opened
        loop = Loop(camera, Tracker(open_engine(engine, model, threads)), publisher)
        time.sleep(0.2)  # until the subscription has arrived
        begun = time.perf_counter()
        seen = 0
        while (frames is None or seen < frames + WARM_UP) and loop.step():
            if loop.totals.frames == seen:
                continue
            seen = loop.totals.frames
            if seen == WARM_UP:
                begun = time.perf_counter()
            if seen <= WARM_UP:
                continue
            stages = loop.tracker.stages_us
            for stage in STAGES[:-2]:
                taken[stage].append(stages[stage])
            taken["publish"].append(loop.publish_us)
            taken["total"].append(loop.total_us)
        seconds = time.perf_counter() - begun
        counted = len(taken["total"])
        if counted == 0:
            raise BenchError(f"bench: the camera gave {seen} frames, more than {WARM_UP} are needed")
        return {
            "stages_us": {
                stage: {f"p{p}": round(float(np.percentile(values, p)), 1) for p in (50, 95, 99)}
                for stage, values in taken.items()
            },
            "fps": round(counted / seconds, 2),
            "frames": counted,
            "tracked": loop.totals.tracked,
            "dropped": loop.totals.dropped,
            "camera": {"kind": kind, "name": camera.name, "fps": camera.fps, "flat_out": flat_out},
            "engine": loop.tracker.engine.name,
            "model": {"name": loop.tracker.engine.card.name, "sha256": loop.tracker.engine.card.sha256},
            "threads": threads,
            "device": device(),
        }


class Subscriber:
    """Takes in all that is published, in a thread, so that sends are real ones."""

    def __init__(self, address: str) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._drain, args=(address,), daemon=True)
        self._thread.start()

    def _drain(self, address: str) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.linger = 0
            socket.connect(address)
            socket.subscribe(b"joints")
            socket.subscribe(b"mesh")
            while not self._over.is_set():
                if socket.poll(100):
                    socket.recv_multipart(copy=False)

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class Memory:
    """A camera whose frames have been taken in before; gives each as soon as it is asked for."""

    def __init__(self, camera: Camera, frames: int | None) -> None:
        self.name, self.intrinsics, self.fps = camera.name, camera.intrinsics, camera.fps
        taken: list[DepthFrame] = []
        while len(taken) < min(MOST_FRAMES, (frames or MOST_FRAMES) + WARM_UP):
            try:
                taken.append(camera.read(10.0))
            except EndOfStream:
                break
            except BadFrame:
                continue
        self._frames = iter(taken)

    def read(self, timeout_s: float = 1.0) -> DepthFrame:
        frame = next(self._frames, None)
        if frame is None:
            raise EndOfStream(f"{self.name}: no more frames")
        return replace(frame, t_ns=time.monotonic_ns())

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class BenchError(Exception):
    """A measurement that cannot be made, in one line."""


def device() -> dict[str, str | int]:
    """What this machine is, for tables."""
    cpu = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith(("model name", "Model")):
            cpu = line.split(":", 1)[1].strip()
            break
    board = Path("/proc/device-tree/model")
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count() or 1,
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "board": board.read_text().strip("\0\n") if board.exists() else "",
    }


def table(result: dict[str, Any]) -> str:
    """The result as lines of text."""
    lines = [f"{'stage':<9}{'p50':>10}{'p95':>10}{'p99':>10}  us"]
    for stage, p in result["stages_us"].items():
        lines.append(f"{stage:<9}{p['p50']:>10.0f}{p['p95']:>10.0f}{p['p99']:>10.0f}")
    lines.append(
        f"{result['fps']:.1f} frames a second over {result['frames']} frames, a hand in {result['tracked']}, "
        f"dropped {result['dropped']}"
    )
    lines.append(f"{result['engine']}, {result['model']['name']}, {result['device']['cpu']}")
    return "\n".join(lines)
