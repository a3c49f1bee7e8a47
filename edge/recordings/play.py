"""Publishes a recording's messages again, with their original timing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgpack

from ...hand.fields import one_line
from ...hand.wire import StatusMessage, decode
from ..loop import topology
from ..publish import Publisher
from .recording import Published, Recording, RecordingError

POLL_S = 0.02  # how long a new subscriber, or Ctrl-C, waits at most
NOTE = "played from a recording"


def topology_of(recording: Recording) -> list[bytes]:
    """The triangles of the recorded meshes, which begin a recording; this version's where they do not. Raises
    RecordingError and WireError."""
    first = next(recording.published(), None) if recording.holds_messages() else None
    if first is None or first.parts[0] != b"topology":
        return topology()
    decode(first.parts)
    return first.parts


class Player:
    """Plays one recording. Raises RecordingError and WireError for what cannot be played.

    Messages are published at their recorded distances, divided by speed. Unless keep_stamps, their times are moved so
    that t_publish_ns is when they are due; what lies between capture and publication stays, so that the age a
    subscriber sees is that of the original, and is divided by a speed above 1, so that frames keep their order. Numbers
    of frames go on from lap to lap, one frame's time apart. Status messages say that they are played.
    """

    def __init__(
        self, recording: Recording, publisher: Publisher, *, speed: float = 1.0, keep_stamps: bool = False
    ) -> None:
        self.count = self.laps = 0
        if not recording.holds_messages():
            raise RecordingError(
                f"{recording.path} holds depth only; edge-hand run --camera replay --source {recording.path} "
                "tracks it, and edge-hand run --record keeps what is published"
            )
        self._recording, self._publisher = recording, publisher
        self._speed, self._keep = speed, keep_stamps
        self._status: list[bytes] | None = None  # the last one sent
        self._seq_offset, self._first_seq, self._last_seq = 0, -1, -1
        self._wall_offset_ns = time.time_ns() - time.monotonic_ns()

    def run(self, stop: Callable[[], bool], loop: bool = False) -> None:
        """Until the end, or stop() says so; the last message says `stopping`, also where the file is damaged."""
        try:
            self._run(stop, loop)
        finally:
            self._stopping()

    def _run(self, stop: Callable[[], bool], loop: bool) -> None:
        begun_ns = due_ns = time.monotonic_ns()
        while True:
            first_ns: int | None = None
            if not self._wait(begun_ns, stop):
                return
            for message in self._recording.published():
                if message.parts[0] == b"topology":
                    continue  # the publisher has it for whoever subscribes
                if loop and self._is_between_laps(message):
                    continue
                first_ns = message.t_ns if first_ns is None else first_ns
                due_ns = begun_ns + round((message.t_ns - first_ns) / self._speed)
                if not self._wait(due_ns, stop):
                    return
                self._publish(message, due_ns)
            self.laps += 1
            if not loop:
                return
            self._seq_offset += max(0, self._last_seq - self._first_seq) + 1  # the camera may have counted anew
            begun_ns = max(time.monotonic_ns(), due_ns + round(1e9 / self._recording.fps / self._speed))

    def _is_between_laps(self, message: Published) -> bool:
        """Whether it is a status of the daemon's end, or of its beginning in a later lap: what is played goes on."""
        state = getattr(decode(message.parts), "state", "") if message.parts[0].startswith(b"status") else ""
        return state == "stopping" or (state == "starting" and self.laps > 0)

    def _wait(self, due_ns: int, stop: Callable[[], bool]) -> bool:
        """Until a message is due; False if stop() says so before."""
        while True:
            self._publisher.poll_subscriptions()
            if stop():
                return False
            left_s = (due_ns - time.monotonic_ns()) * 1e-9
            if left_s <= 0:
                return True
            time.sleep(min(left_s, POLL_S))

    def _publish(self, message: Published, due_ns: int) -> None:
        decoded = decode(message.parts)
        body: dict[str, Any] = msgpack.unpackb(message.parts[1])
        if body["seq"] >= 0:
            self._first_seq = body["seq"] if self._first_seq < 0 else self._first_seq
            self._last_seq = body["seq"]
            body["seq"] += self._seq_offset
        is_status = isinstance(decoded, StatusMessage)
        if is_status:
            self._wall_offset_ns = time.time_ns() - time.monotonic_ns()  # as the daemon does
            body["message"] = one_line(f"{NOTE}: {body['message']}" if body["message"] else NOTE)
        if not self._keep:
            body |= self._moved(round(_age_ns(body) / max(1.0, self._speed)), due_ns)
        parts = [message.parts[0], msgpack.packb(body)]
        self._status = parts if is_status else self._status
        self._publisher.publish(parts)
        self.count += 1

    def _stopping(self) -> None:
        """A recording that was cut, or is broken off, ends as a daemon does."""
        if self._status is None:
            return
        body = msgpack.unpackb(self._status[1])
        if body["state"] != "stopping":
            body["state"] = "stopping"
            if not self._keep:
                body |= self._moved(_age_ns(body), time.monotonic_ns())
            self._publisher.publish([self._status[0], msgpack.packb(body)])

    def _moved(self, age_ns: int, now_ns: int) -> dict[str, int]:
        """The times of a message that is published now, so long after its frame; those of one frame stay the same."""
        captured_ns = max(0, now_ns - age_ns)  # 0: before this machine started
        unix_ns = captured_ns + self._wall_offset_ns
        return {"t_capture_ns": captured_ns, "t_capture_unix_ns": unix_ns, "t_publish_ns": now_ns}


def _age_ns(body: dict[str, Any]) -> int:
    """From a message's capture to its publication."""
    return int(body["t_publish_ns"] - body["t_capture_ns"])
