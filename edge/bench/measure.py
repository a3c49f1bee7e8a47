"""The daemon's own loop over a camera, with a subscriber: how long each stage takes, frame by frame."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zmq

from ...hand.extras import installed
from ..arithmetic import PLAIN, Arithmetic
from ..cameras import Camera, open_camera
from ..engines import Engine, onnxruntime, open_engine
from ..finder import open_finder
from ..loop import Loop, topology
from ..machine.board import device
from ..networks.swap import PROBATION
from ..publish import Publisher
from ..tracker import STAGES, Tracker
from . import BenchError
from .compare import Peer, judge
from .frames import Memory, take_in
from .startup import startup_s
from .subscriber import Subscriber
from .usage import Usage, load

WARM_UP = 20
AT_RATE_S = 5.0
SILENT_S = 10.0  # without a frame, before the first of them: then none will come
READY_S = 1800.0  # a plan of TensorRT's may take that long to build
BLOCK = 40  # frames between two turns of a peer
DOTS = 400  # of the picture of latency over time
FRAMES = 280  # of a camera that never ends, where no number is asked for
DECODED = ("replay", "synthetic")  # kinds whose frames are made by this machine


class Source(NamedTuple):
    """A camera's kind, --source and --mode."""

    kind: str
    source: str | None = None
    mode: str | None = None

    def arguments(self) -> list[str]:
        """As `edge-hand run` takes them."""
        given = (("--camera", self.kind), ("--source", self.source), ("--mode", self.mode))
        return [part for name, value in given if value is not None for part in (name, value)]


class Course:
    """A loop that is stepped, and what its frames took. seconds is the time from the first to the last of them,
    silent_s that from the last of them to the end."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.taken = {stage: array("f") for stage in (*STAGES, "total")}  # us
        self.cpu_ms = array("f")
        self.at_s = array("d")
        self.seconds = self.silent_s = 0.0
        self.over = False
        self.dropped = self.tracked = 0

    def warm_up(self) -> None:
        """The first frames, which do not count. Raises BenchError if there are no others, or none come."""
        seen, heard = -1, 0.0
        while self.loop.totals.frames < WARM_UP and self.loop.step():
            if self.loop.totals.frames > seen:
                seen, heard = self.loop.totals.frames, time.perf_counter()
            elif time.perf_counter() - heard > SILENT_S:
                raise silent(SILENT_S, self.loop)
        if self.loop.totals.frames < WARM_UP:
            raise too_few(self.loop.totals.frames)

    def go(self, frames: float = math.inf, seconds: float = math.inf) -> None:
        """So many frames, or so long whether or not frames come, or to the end of the stream."""
        loop, taken = self.loop, self.taken
        lost, had = loop.totals.dropped, loop.totals.tracked
        begun = time.perf_counter()
        before, last, now = self.seconds, begun, begun
        until = loop.totals.frames + frames
        while loop.totals.frames < until and now - begun < seconds:
            seen, cpu = loop.totals.frames, time.process_time()
            if not loop.step():
                self.over = True
                break
            now = time.perf_counter()
            if loop.totals.frames == seen:
                continue
            last = now
            self.cpu_ms.append((time.process_time() - cpu) * 1e3)
            stages = loop.tracker.stages_us
            for stage in STAGES[:-1]:
                taken[stage].append(stages[stage])
            taken["publish"].append(loop.publish_us)
            taken["total"].append(loop.total_us)
            self.at_s.append(before + last - begun)
        self.seconds, self.silent_s = before + last - begun, now - last
        self.dropped += loop.totals.dropped - lost
        self.tracked += loop.totals.tracked - had

    def result(self) -> dict[str, Any]:
        """Percentiles per stage, us, and of a frame's processor time in all threads; rate; what was lost; the latency's
        course."""
        total, n = np.asarray(self.taken["total"]), len(self.at_s)
        if n == 0:
            raise silent(self.silent_s, self.loop) if self.silent_s else too_few(self.loop.totals.frames)
        return {
            "stages_us": {
                stage: {f"p{p}": round(float(np.percentile(values, p)), 1) for p in (50, 95, 99)}
                for stage, values in self.taken.items()
            },
            "worst_us": round(float(total.max()), 1),
            "fps": round(n / self.seconds, 2),
            "frames": n,
            "tracked": self.tracked,
            "dropped": self.dropped,
            "silent_s": round(self.silent_s, 1),
            "cpu_ms": {f"p{p}": round(float(np.percentile(self.cpu_ms, p)), 3) for p in (50, 95, 99)},
            "over_time": over_time(np.asarray(self.at_s), total),
        }


def bench(
    source: Source,
    *,
    engine: str,
    model: Path,
    threads: int,
    frames: int | None = None,
    seconds: float = AT_RATE_S,
    flat_out: bool = True,
    at_rate: bool = True,
    startup: bool = True,
    tune: bool = True,
    peer: Peer | None = None,
    arithmetic: Arithmetic = PLAIN,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure flat out and at the sensor's rate, whichever is asked for; the first of them fills the result's own
    fields, the other is `at_rate`. seconds is for how long at the sensor's rate. Raises BenchError, or what camera and
    engine do; a fresh daemon that does not start is told as `startup_failed`. say hears what the engine has to say.

    capture is the time from the frame's stamp to its pick-up, total from the stamp to after the last send. Frames come
    from memory, but for a live camera at its own rate.
    """
    if not (flat_out or at_rate):
        raise BenchError("bench: nothing to measure")
    live = source.kind not in DECODED and not Path(source.source or "").is_file()
    with open_camera(source.kind, source.source, mode=source.mode, fps=None if live else 0.0) as camera:
        endless = live or source.kind == "synthetic"
        held = take_in(camera, (frames or FRAMES) + WARM_UP if endless or frames else None)
    if len(held) <= WARM_UP:
        raise too_few(len(held))
    opened = ready(open_engine(engine, model, threads, say=say, tune=tune, at_once=True))
    finder = open_finder(threads=threads, tune=tune and engine == "auto")
    ready(getattr(finder, "engine", opened))

    def tracker() -> Tracker:
        return Tracker(opened, finder, arithmetic=arithmetic)

    result: dict[str, Any] = {}
    if flat_out:
        result = _flat_out(Memory(camera, held, cycle=frames is not None), tracker, frames, peer)
    if at_rate and live:
        with open_camera(source.kind, source.source, mode=source.mode) as again:
            result = {**result, "at_rate": _at_rate(again, tracker, seconds)}
    elif at_rate:
        result = {
            **result,
            "at_rate": _at_rate(Memory(camera, held, camera.fps, cycle=True), tracker, seconds),
        }
    if not flat_out:
        result = result["at_rate"]
    frames_mb = round(sum(frame.depth.nbytes for frame in held) / 2**20, 1)
    for part in (result, result.get("at_rate", result)):
        part["memory_mb"]["frames"] = frames_mb
    if startup:
        fresh = [
            "--tune" if tune else "--no-tune",
            "--no-fast" if arithmetic is PLAIN else "--fast",
            "--engine",
            engine,
            "--model",
            str(model),
            "--threads",
            str(threads),
        ]
        try:
            result["startup_s"] = startup_s([*source.arguments(), *fresh])
        except BenchError as error:  # the rest was measured
            result["startup_failed"] = str(error).removeprefix("bench: ")
    card = opened.card
    return {
        **result,
        "camera": {"kind": source.kind, "name": camera.name, "fps": camera.fps, "flat_out": flat_out,
                   "size": [camera.intrinsics.width, camera.intrinsics.height]},
        "engine": opened.name,
        "finder": getattr(finder, "engine", opened).name,
        "arithmetic": arithmetic.name,
        "model": {"name": card.name, "sha256": card.sha256, "precision": card.precision},
        "threads": getattr(getattr(opened, "serving", opened), "threads", None),  # on a GPU there are none
        "versions": {"edge-hand": installed("edge-hand"), "onnxruntime": onnxruntime.version(),
                     "numpy": np.__version__, "pyzmq": zmq.__version__},
        "device": device(),
        "load": load(),
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }  # fmt: skip


def ready(engine: Engine) -> Engine:
    """The engine that will serve in the end: waits for one that is in the making, and for its probation."""
    wait = getattr(engine, "wait", None)
    if wait is not None:
        if not wait(READY_S):
            raise BenchError(f"bench: the engine was not ready after {READY_S:g} s")
        blank = np.ones(next(iter(engine.card.inputs.values())), np.float32)
        for _ in range(PROBATION + 1):
            engine.run(blank)
    return engine


def _flat_out(memory: Memory, tracker: Callable[[], Tracker], frames: int | None, peer: Peer | None) -> dict[str, Any]:
    with _course(memory, tracker()) as (course, subscriber), Usage() as usage:
        left = math.inf if frames is None else frames
        while left > 0 and not course.over:
            course.go(min(left, BLOCK if peer else math.inf))
            left -= BLOCK if peer else left
            if peer and not (course.over and peer.ms):  # one turn at least, where the stream is short
                peer.turn()
    result = {**course.result(), "subscriber": subscriber.seen, **usage.result()}
    if peer:
        del result["cpu_percent"], result["over_time"]  # the peer's turns lie between
        result["compare"] = judge(course.taken["total"], course.cpu_ms, peer)
    return result


def _at_rate(camera: Camera, tracker: Callable[[], Tracker], seconds: float) -> dict[str, Any]:
    with _course(camera, tracker()) as (course, subscriber), Usage() as usage:
        course.go(seconds=seconds)
    return {**course.result(), "subscriber": subscriber.seen, **usage.result()}


@contextmanager
def _course(camera: Camera, tracker: Tracker) -> Iterator[tuple[Course, Subscriber]]:
    """A warm loop with a subscriber that has arrived."""
    with (
        Publisher("tcp://127.0.0.1:*", topology=topology()) as publisher,
        Subscriber(publisher, camera.name) as subscriber,
    ):
        course = Course(Loop(camera, tracker, publisher))
        course.warm_up()
        yield course, subscriber
        time.sleep(0.1)  # for what is still on its way


def over_time(at_s: Any, total_us: Any, dots: int = DOTS) -> dict[str, list[float]]:
    """The latency's course in at most so many steps: the time (s) of each, and its median and worst frame (ms)."""
    steps = [part for part in np.array_split(np.arange(len(at_s)), min(dots, len(at_s))) if len(part)]
    return {
        "s": [round(float(at_s[part[-1]]), 3) for part in steps],
        "median_ms": [round(float(np.median(total_us[part])) * 1e-3, 3) for part in steps],
        "worst_ms": [round(float(total_us[part].max()) * 1e-3, 3) for part in steps],
    }


def too_few(frames: int) -> BenchError:
    return BenchError(f"bench: the camera gave {frames} frames, more than {WARM_UP} are needed")


def silent(seconds: float, loop: Loop) -> BenchError:
    return BenchError(f"bench: no frame could be used for {seconds:.3g} s: {loop.trouble}")
