"""Records what a loop sees and publishes, from a thread of its own: a slow or full disk never holds up a hand."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from ...hand.frames import DepthFrame
from .recording import RecordingError, RecordingWriter

MOST_BYTES = 64 << 20  # that wait for the disk; what comes beyond is left out and counted
FLUSH_S, SYNC_S = 0.3, 1.0  # after so long what came is in the file, and on the disk
CLOSE_S = 20.0  # a disk that takes longer at the end is not waited for


class Recorder:
    """Takes frames and messages at once, and writes them while `with` lasts.

    tell gets one line when the recording gets thin or ends early, from this thread; nothing is raised. As long as
    patient() holds, the caller waits for the disk instead of losing anything. With steady the file's bytes depend on
    what is written alone, not on when.
    """

    def __init__(
        self,
        writer: RecordingWriter,
        tell: Callable[[str], None],
        *,
        patient: Callable[[], bool] = lambda: False,
        steady: bool = False,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.writer, self.left_out, self.trouble = writer, 0, ""
        self._tell, self._patient, self._steady, self._most_bytes = tell, patient, steady, most_bytes
        self._queue: deque[tuple[int, DepthFrame | tuple[list[bytes], int]]] = deque()
        self._held, self._closing = 0, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def frame(self, frame: DepthFrame) -> None:
        self._put(frame.depth.nbytes, frame)

    def message(self, parts: list[bytes], t_ns: int) -> None:
        """A message of the wire, published at t_ns."""
        self._put(len(parts[1]), (parts, t_ns))

    def summary(self) -> str:
        """What was recorded, in one line."""
        text = f"{self.writer.frames} frames in {self.writer.path}"
        if self.left_out:
            text += f"; {self.left_out} frames and messages were left out: the disk is too slow"
        return text + (f"; the recording ended early: {self.trouble}" if self.trouble else "")

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._fail(f"the disk did not take it within {CLOSE_S:g} s")

    def _put(self, size: int, item: DepthFrame | tuple[list[bytes], int]) -> None:
        with self._changed:
            while self._held > self._most_bytes and not self.trouble and self._patient():
                self._changed.wait(FLUSH_S)
            if self.trouble:
                return
            if self._held + size > self._most_bytes and not self._patient():
                self.left_out += 1
                return
            self._queue.append((size, item))
            self._held += size
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._write_all()
        except RecordingError as error:
            self._fail(str(error))
        except Exception as error:  # a bug here must not end tracking; it ends the recording and is told
            self._fail(f"{type(error).__name__}: {error}")
        try:
            self.writer.close()
        except RecordingError as error:
            self._fail(str(error))

    def _write_all(self) -> None:
        flushed = synced = time.monotonic()
        told = 0
        while True:
            with self._changed:
                if not self._queue and not self._closing:
                    self._changed.wait(FLUSH_S / 5)
                size, item = self._queue.popleft() if self._queue else (0, None)
                if item is None and self._closing:
                    return
            if isinstance(item, DepthFrame):
                self.writer.write(item)
            elif item is not None:
                self.writer.message(*item)
            with self._changed:
                self._held -= size
                self._changed.notify_all()
            now = time.monotonic()
            if not self._steady and now - flushed >= FLUSH_S:
                self.writer.flush()
                flushed = now
            if now - synced >= SYNC_S:
                self.writer.sync()
                synced = now
            if self.left_out and not told:
                told = self.left_out
                self._tell(f"recording: the disk is too slow, {self.writer.path} gets gaps")

    def _fail(self, why: str) -> None:
        with self._changed:
            first, self.trouble = not self.trouble, self.trouble or why
            self._queue.clear()
            self._held = 0
            self._changed.notify_all()
        if first:
            self._tell(f"recording ended, tracking goes on: {why}")
