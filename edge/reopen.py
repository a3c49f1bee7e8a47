"""A camera that comes back: reads that cannot hang the loop, faults told in plain words, and opening it anew.

The camera is read and opened in a thread of its own. A caller waits for it no longer than it asked for, so the loop
goes on to publish that it is stalled, whatever the driver does. What must not become a pose is a BadFrame: a frame that
came before, lies in the past or shows the very picture of the one before.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..hand.camera import Intrinsics
from ..hand.frames import DepthFrame
from .cameras import BadFrame, Camera, CameraError, EndOfStream, FrameTimeout, is_recording, open_camera

FIRST_DELAY_S, MOST_DELAY_S = 0.2, 5.0  # between two attempts to open
SILENT_S = 2.0  # without a usable frame the camera is closed and opened anew; twice as long for its first frame
HANG_S = 2.0  # a read that takes so much longer than it was given is left to its thread
SPARE_S = 0.05  # for a read that ends just in time to be seen
OPEN_S = 20.0  # the same for opening, which takes seconds with some cameras
MOST_FRUITLESS = 5  # openings in a row without one frame; from then on it is no progress
MOST_HUNG = 4  # threads left behind, then only a new process helps
OLD_NS = 400_000_000  # a frame this old when it comes was seen before
AHEAD_NS = 100_000_000  # a frame's time may lie ahead by the error of the clocks
LOOK_S = 0.1  # how often is looked whether the camera was plugged in
ROWS = 16  # every so many rows are compared first
USB = Path("/sys/bus/usb/devices")

T = TypeVar("T")


class LastingCamera:
    """Wraps an open camera; `with LastingCamera(camera, again) as lasting`. One thread reads it.

    open_again opens the same camera anew and raises CameraError while it is away. signs changes when something was
    plugged in: then it is tried at once. alive hears that reopening goes on, for a watchdog.
    """

    def __init__(
        self,
        camera: Camera,
        open_again: Callable[[], Camera],
        signs: Callable[[], Any] | None = None,
        alive: Callable[[], None] = lambda: None,
        *,
        hang_s: float = HANG_S,
        silent_s: float = SILENT_S,
    ) -> None:
        self.name, self.fps = camera.name, camera.fps
        self._fruitless = 0  # openings since the last usable frame
        self._intrinsics = camera.intrinsics
        self._open_again, self._signs, self._alive = open_again, signs or usb_devices, alive
        self._hang_s, self._silent_s = hang_s, max(silent_s, 6 / camera.fps)
        self._worker = _Worker()
        self._left: list[_Worker] = []  # hanging in the driver
        self._camera: Camera | None = camera
        self._reading: Future[DepthFrame] | None = None
        self._opening: Future[Camera] | None = None
        self._asked_s = 0.0  # when opening was begun
        self._unanswered_s = 0.0  # how long the read in hand has been waited for
        self._why = ""  # the camera is away
        self._delay_s, self._try_s = FIRST_DELAY_S, 0.0
        self._seen: Any = None  # the signs, as last looked at
        # How long a usable frame has been waited for; the first has a grace. While nobody reads, no camera is silent.
        self._silence_s = -self._silent_s
        self._last: DepthFrame | None = None
        self._raw_seq = -1  # of the last frame as the camera counts
        self._seq_offset = 0

    @property
    def intrinsics(self) -> Intrinsics:
        return self._intrinsics

    def read(self, timeout_s: float = 1.0) -> DepthFrame:
        """The camera's next frame. Raises FrameTimeout while none comes or the camera is away, BadFrame for one that is
        not new, EndOfStream, and CameraError when only a new process helps."""
        deadline_s = time.monotonic() + timeout_s
        camera, begun_s = self._camera or self._opened(deadline_s), time.monotonic()
        try:
            frame = self._checked(self._next(camera, deadline_s, timeout_s))
        except (BadFrame, FrameTimeout) as error:
            answered = self._camera is not None and self._reading is None  # a read that hangs is `_next`'s to judge
            self._silence_s += min(time.monotonic() - begun_s, timeout_s + SPARE_S)  # longer, and it was stopped
            if answered and self._silence_s > self._silent_s:
                self._leave(str(error))
            raise
        self._silence_s, self._delay_s, self._fruitless = 0.0, FIRST_DELAY_S, 0
        return frame

    def _next(self, camera: Camera, deadline_s: float, timeout_s: float) -> DepthFrame:
        if self._reading is None:
            self._unanswered_s = 0.0
            self._reading = self._worker.do(lambda: camera.read(timeout_s))
        wait_s = max(0.0, deadline_s - time.monotonic()) + SPARE_S
        try:
            frame = self._reading.result(wait_s)
        except NotYet:
            self._unanswered_s += wait_s
            if self._unanswered_s > timeout_s + self._hang_s:
                self._abandon(camera)
            raise FrameTimeout(f"{self.name}: its driver does not answer") from None
        except (BadFrame, FrameTimeout, EndOfStream):
            self._reading = None
            raise
        except Exception as error:  # CameraError, and whatever an SDK throws
            self._leave(_line(error))
            raise FrameTimeout(self._away()) from error
        self._reading = None
        return frame

    # --- what is not new

    def _checked(self, frame: DepthFrame) -> DepthFrame:
        """The frame with its number counted on, over all openings. Raises BadFrame."""
        last, raw, now_ns = self._last, frame.seq, time.monotonic_ns()
        if now_ns - frame.t_ns > max(OLD_NS, round(2e9 / self.fps)):
            raise BadFrame(f"{self.name}: an old frame came, seen too long ago to be followed")
        if frame.t_ns - now_ns > AHEAD_NS:
            raise BadFrame(f"{self.name}: a frame came with a time that lies ahead")
        if last is not None:
            if frame.t_ns == last.t_ns:
                raise BadFrame(f"{self.name}: the same frame came twice")
            if frame.t_ns < last.t_ns:
                raise BadFrame(f"{self.name}: a frame came with a time before that of the one before")
            if _same_picture(frame, last):
                raise BadFrame(f"{self.name}: the picture stands still though frames come")
            if raw <= self._raw_seq:  # it counts anew: it was opened, or reset itself
                self._seq_offset = last.seq + 1 - raw
        self._raw_seq = raw
        self._last = frame if self._seq_offset == 0 else replace(frame, seq=raw + self._seq_offset)
        return self._last

    # --- away and back

    def _leave(self, why: str) -> None:
        """Close the camera; from now on it is to be opened anew."""
        camera, self._camera, self._reading, self._why = self._camera, None, None, why
        self._try_s, self._seen = time.monotonic() + self._delay_s, self._signs()
        if camera is not None:
            self._worker.do(lambda: _close(camera))

    def _abandon(self, camera: Camera | None) -> None:
        """The worker hangs in the driver: leave it there and go on with another."""
        self._left = [worker for worker in (*self._left, self._worker) if worker.thread.is_alive()]
        if len(self._left) >= MOST_HUNG:
            raise CameraError(f"{self.name}: its driver hangs, {MOST_HUNG} times over; it needs a new process")
        opening, self._opening = self._opening, None
        self._worker.leave(lambda: _close(camera or (opening.result(0) if opening else None)))
        self._worker = _Worker()
        self._camera = None
        self._leave("its driver hung")

    def _opened(self, deadline_s: float) -> Camera:
        """The camera, once it is back. Raises FrameTimeout if it is not by the deadline."""
        while True:
            now_s = time.monotonic()
            if self._opening is None:
                seen = self._signs()
                if seen != self._seen:
                    self._seen, self._delay_s, self._try_s = seen, FIRST_DELAY_S, now_s
                if now_s < self._try_s:
                    self._progress()
                    if now_s >= deadline_s:
                        raise FrameTimeout(self._away())
                    time.sleep(max(0.0, min(LOOK_S, self._try_s - now_s, deadline_s - now_s)))
                    continue
                self._asked_s, self._opening = now_s, self._worker.do(self._open_again)
            try:
                camera = self._opening.result(max(0.0, deadline_s - now_s))
            except NotYet:
                if now_s - self._asked_s > OPEN_S:
                    self._abandon(None)
                raise FrameTimeout(self._away()) from None
            except Exception as error:  # CameraError, and whatever an SDK throws
                self._opening, self._why = None, _line(error)
                self._try_s = time.monotonic() + self._delay_s
                self._delay_s = min(2 * self._delay_s, MOST_DELAY_S)
                self._progress()
                continue
            self._opening, self._camera, self._intrinsics = None, camera, camera.intrinsics
            self._raw_seq, self._silence_s = 1 << 62, -self._silent_s
            self._fruitless += 1
            self._progress()
            return camera

    def _progress(self) -> None:
        if self._fruitless <= MOST_FRUITLESS:
            self._alive()

    def _away(self) -> str:
        return f"{self._why}; it is opened again as soon as it is back"

    def __enter__(self) -> LastingCamera:
        return self

    def __exit__(self, *_: object) -> None:
        camera, opening = self._camera, self._opening
        self._worker.leave(lambda: _close(camera or (opening.result(0) if opening else None)))
        self._worker.thread.join(1.0)  # a hung driver is left behind


def open_lasting(kind: str, source: str | None, alive: Callable[[], None] = lambda: None, **options: Any) -> Camera:
    """Open a camera that comes back; what is a recording is opened as it is. Raises CameraError if it is not there.

    A backend's camera may say itself how: again() opens it anew, signs() changes when it is plugged in or out.
    """
    camera = open_camera(kind, source, **options)
    if is_recording(kind, source):
        return camera
    own: Callable[[], Camera] | None = getattr(camera, "again", None)
    by_serial = source or (camera.name if kind == "realsense" else None)  # not another one that is plugged in
    return LastingCamera(
        camera,
        own or (lambda: open_camera(kind, by_serial, **options)),
        getattr(camera, "signs", None),
        alive,
    )


def wait_for(
    open_first: Callable[[], Camera],
    stop: Callable[[], bool],
    told: Callable[[str], None],
    alive: Callable[[], None] = lambda: None,
) -> Camera | None:
    """Try to open a camera until it is there, or stop() says so (None). told hears each new reason once."""
    delay_s, try_s, why, seen = FIRST_DELAY_S, 0.0, "", usb_devices()
    while not stop():
        signs = usb_devices()
        if signs != seen:
            seen, delay_s, try_s = signs, FIRST_DELAY_S, 0.0
        if time.monotonic() >= try_s:
            try:
                return open_first()
            except CameraError as error:
                if str(error) != why:
                    why = str(error)
                    told(f"waiting for the camera: {why}")
            try_s, delay_s = time.monotonic() + delay_s, min(2 * delay_s, MOST_DELAY_S)
        alive()
        time.sleep(LOOK_S)
    return None


def usb_devices() -> frozenset[tuple[str, str]]:
    """What is plugged in now, and the number it got by being so; a reset gives another."""
    devices = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(USB):
            if ":" not in name:
                with contextlib.suppress(OSError):
                    devices.add((name, (USB / name / "devnum").read_text().strip()))
    return frozenset(devices)


class _Worker:
    """A thread that does one thing after another for a caller who need not wait."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._last: Callable[[], None] = lambda: None
        self.thread = threading.Thread(target=self._work, name="camera", daemon=True)
        self.thread.start()

    def do(self, job: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._jobs.put((job, future))
        return future

    def leave(self, last: Callable[[], None]) -> None:
        """No more jobs; when the one in hand is over, `last` is done and the thread ends."""
        self._last = last
        self._jobs.put(None)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, future = item
            try:
                future.set_result(job())
            except BaseException as error:  # handed to the caller
                future.set_exception(error)
            del item, job, future  # they would keep the last frame
        with contextlib.suppress(Exception):
            self._last()


def _same_picture(frame: DepthFrame, last: DepthFrame) -> bool:
    """Bit for bit, and not blank: no sensor's noise does that, but a covered one sees nothing twice."""
    a, b = frame.depth, last.depth
    if a.shape != b.shape or not np.array_equal(a[::ROWS], b[::ROWS]):
        return False
    return np.array_equal(a, b) and bool(a.any())


def _close(camera: Camera | None) -> None:
    if camera is not None:
        camera.__exit__(None, None, None)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
