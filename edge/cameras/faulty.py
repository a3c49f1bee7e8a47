"""The faulty camera: another camera with faults at set times, to see that the daemon survives them.

    --camera faulty --source "replay:hand.mcap?stall@3+2,unplug@8+1.5,repeat@12,freeze@16+1"
    --camera faulty --source "synthetic:7?seed=3,every=20"

KIND:SOURCE is any camera; a fault is KIND@START+SECONDS, in seconds since the camera was opened; +SECONDS may be left
out. With seed and every, each `every` seconds brings a fault of a random kind, always the same ones for a seed.
begin=SECONDS counts from that second of CLOCK_MONOTONIC instead, so that the faults go on where a process ended.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ...hand.camera import Intrinsics
from ...hand.frames import DepthFrame
from . import BadFrame, Camera, CameraError, FrameTimeout
from . import check_camera as check_other
from . import open_camera as open_other

# Kinds and how long they take if nothing is said, s; 0 is one frame.
KINDS = {
    "stall": 1.0,  # no frame comes
    "hang": 3.0,  # a read does not return, whatever its timeout
    "unplug": 1.0,  # the camera is gone, and cannot be opened until that time is over
    "reset": 0.4,  # the same, by a reset of the USB: it counts anew afterwards
    "torn": 0.0,  # frames that cannot be used
    "repeat": 0.0,  # the frame before comes again: the same number, time and picture
    "backward": 0.5,  # times that lie a second back
    "late": 1.0,  # frames that the camera saw a second ago come as if they were new
    "freeze": 1.0,  # the picture stands still, numbers and times go on
}
GONE = ("unplug", "reset")
BACK_NS = 1_000_000_000
STEP_S = 0.02
EXAMPLE = "replay:hand.mcap?stall@3+2,unplug@8+1.5"


class Fault(NamedTuple):
    """From start_s for `seconds`, on the script's clock."""

    kind: str
    start_s: float
    seconds: float

    @property
    def end_s(self) -> float:
        return self.start_s + self.seconds


@dataclass(frozen=True)
class Script:
    """What goes wrong, and when: the faults that are listed and, with every_s, random ones."""

    faults: tuple[Fault, ...]
    begin_s: float | None  # CLOCK_MONOTONIC; None: when a camera is first open
    seed: int = 0
    every_s: float | None = None

    def now_s(self) -> float:
        return 0.0 if self.begin_s is None else time.monotonic() - self.begin_s

    def between(self, low_s: float, high_s: float) -> Iterator[Fault]:
        """The faults that begin before high_s and last beyond low_s, or begin after it."""
        for fault in (*self.faults, *self._random(low_s, high_s)):
            if fault.start_s <= high_s and (fault.end_s > low_s or fault.start_s > low_s):
                yield fault

    def _random(self, low_s: float, high_s: float) -> Iterator[Fault]:
        if self.every_s is None:
            return
        for k in range(max(1, int(low_s // self.every_s)), int(high_s // self.every_s) + 1):
            rng = random.Random(f"{self.seed} {k}")
            kind = rng.choice(list(KINDS))
            yield Fault(kind, k * self.every_s, min(KINDS[kind] * rng.uniform(0.5, 1.5), self.every_s / 2))


def open_camera(
    source: str | None, *, mode: str | None = None, fps: float | None = None, loop: bool = False
) -> FaultyCamera:
    """Open another camera with faults; mode, fps and loop are for that one. Raises CameraError."""
    kind, other, script = parse(source or "")
    return FaultyCamera(script, lambda: open_other(kind, other, mode=mode, fps=fps, loop=loop))


def check_camera(source: str | None, **options: Any) -> None:
    """What can be told of the faults and of the other camera. Raises CameraError."""
    kind, other, _ = parse(source or "")
    check_other(kind, other, **options)


def parse(text: str) -> tuple[str, str | None, Script]:
    """The other camera's kind and source, and the faults. Raises CameraError."""
    camera, mark, script = text.rpartition("?")
    kind, _, source = camera.partition(":")
    if not mark or not kind or kind == "faulty":
        raise CameraError(f"faulty {text[:200]!r}: --source is KIND:SOURCE?FAULTS, for example {EXAMPLE!r}")
    faults: list[Fault] = []
    settings: dict[str, float] = {}
    for item in script.split(","):
        fault = re.fullmatch(r"(\w+)@(\d{1,9}(?:\.\d+)?)(?:\+(\d{1,6}(?:\.\d+)?))?", item)
        setting = re.fullmatch(r"(seed|every|begin)=(\d{1,12}(?:\.\d+)?)", item)
        if fault and fault[1] in KINDS:
            faults.append(Fault(fault[1], float(fault[2]), float(fault[3] or KINDS[fault[1]])))
        elif setting:
            settings[setting[1]] = float(setting[2])
        else:
            raise CameraError(
                f"faulty: {item[:60]!r} is no fault; one is KIND@START+SECONDS with KIND of {', '.join(KINDS)}; "
                "besides there are seed=N, every=SECONDS and begin=SECONDS"
            )
    every_s = settings.get("every")
    if every_s is not None and every_s < 0.1:
        raise CameraError("faulty: every=SECONDS is at least 0.1")
    return kind, source or None, Script(tuple(faults), settings.get("begin"), int(settings.get("seed", 0)), every_s)


class FaultyCamera:
    """A camera with a script. Once it was unplugged it stays gone: `again` opens it anew, when it is back."""

    def __init__(self, script: Script, open_inner: Callable[[], Camera]) -> None:
        self._open_inner = open_inner
        self._opened_s = self._read_s = script.now_s()
        for fault in script.between(self._opened_s, self._opened_s):
            if fault.kind in GONE and fault.start_s <= self._opened_s < fault.end_s:
                raise CameraError("faulty: no camera is connected")
        self._inner = open_inner()
        self._script = script if script.begin_s is not None else replace(script, begin_s=time.monotonic())
        self._before: DepthFrame | None = None  # as it was handed out

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def intrinsics(self) -> Intrinsics:
        return self._inner.intrinsics

    @property
    def fps(self) -> float:
        return self._inner.fps

    def again(self) -> FaultyCamera:
        """Open it anew; the script goes on. Raises CameraError."""
        return FaultyCamera(self._script, self._open_inner)

    def signs(self) -> Any:
        """Changes when the camera is plugged in or out."""
        now_s = self._script.now_s()
        gone = [f for f in self._script.between(0.0, now_s) if f.kind in GONE]
        return len(gone), sum(f.end_s <= now_s for f in gone)

    def read(self, timeout_s: float = 1.0) -> DepthFrame:
        """The other camera's frame, or what the script makes of it. Raises as a Camera does."""
        deadline_s = self._script.now_s() + timeout_s
        while True:
            now_s = self._script.now_s()
            since_s, self._read_s = self._read_s, now_s
            faults = list(self._script.between(since_s, now_s))
            if any(f.kind in GONE for f in self._script.between(self._opened_s, now_s)):
                raise CameraError(f"{self.name} is no longer connected; check its cable")
            kinds = {f.kind for f in faults if f.start_s > since_s or now_s < f.end_s}
            if "hang" in kinds:
                time.sleep(max(0.0, *(f.end_s - now_s for f in faults if f.kind == "hang")))
                raise FrameTimeout(f"{self.name}: no frame while its driver hung")
            if "stall" not in kinds:
                return self._spoilt(self._inner.read(max(0.001, deadline_s - now_s)), kinds)
            if now_s >= deadline_s:
                raise FrameTimeout(f"{self.name}: no depth frame within {timeout_s:g} s")
            time.sleep(min(STEP_S, max(0.0, deadline_s - now_s)))

    def _spoilt(self, frame: DepthFrame, kinds: set[str]) -> DepthFrame:
        before = self._before
        exposed_s = frame.t_ns * 1e-9 - (self._script.begin_s or 0.0)
        kinds = kinds | {f.kind for f in self._script.between(exposed_s, exposed_s) if f.start_s <= exposed_s < f.end_s}
        if "torn" in kinds:
            raise BadFrame(f"{self.name}: a frame was torn")
        if "repeat" in kinds and before is not None:
            return before
        if "freeze" in kinds and before is not None:
            return replace(frame, depth=before.depth.copy())
        if "backward" in kinds or "late" in kinds:
            return replace(frame, t_ns=frame.t_ns - BACK_NS)
        self._before = frame
        return frame

    def __enter__(self) -> FaultyCamera:
        return self

    def __exit__(self, *how: object) -> None:
        self._inner.__exit__(*how)
