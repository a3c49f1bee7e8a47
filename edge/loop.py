"""The daemon: newest frame in, joints, mesh and status out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..hand.frames import DepthFrame
from ..hand.messages import StatusState
from ..hand.template import template
from ..hand.wire import Header, encode_joints, encode_mesh, encode_status, encode_topology
from .cameras import BadFrame, Camera, EndOfStream, FrameTimeout
from .clock import HOST, Clock
from .cloud import Clouds
from .networks.swap import EngineDown
from .publish import Publisher
from .tracker import Tracker

HEARTBEAT_NS = 1_000_000_000
STALL_S = 0.5
WALL_STEP_NS = 50_000_000  # the wall clock is never slewed as far within a second

Watcher = Callable[[DepthFrame, list[bytes]], None]


class Minder(Protocol):
    """Hears how the loop fares: a service manager, a log. No call may wait or raise."""

    def frame(self) -> None:
        """A frame was tracked and published."""

    def status(self, state: StatusState, message: str) -> None:
        """A status was published: at each change, and once a second."""


class Sink(Protocol):
    """Takes what the loop sees and publishes: a recorder. No call may wait or raise."""

    def frame(self, frame: DepthFrame) -> None:
        """A frame came, before it is tracked."""

    def message(self, parts: list[bytes], t_ns: int) -> None:
        """A message was published at t_ns."""


@dataclass
class Totals:
    """What a run amounts to."""

    frames: int = 0
    tracked: int = 0
    bad_frames: int = 0
    dropped: int = 0
    begun_ns: int = field(default_factory=time.monotonic_ns)
    recent_ns: deque[int] = field(default_factory=lambda: deque(maxlen=60))

    def fps_at(self, now_ns: int) -> float:
        """Frames a second of late; 0 when none has come for two seconds."""
        since_ns = now_ns - 2_000_000_000
        recent = [t_ns for t_ns in self.recent_ns if t_ns > since_ns]
        return (len(recent) - 1) * 1e9 / max(1, recent[-1] - recent[0]) if len(recent) > 1 else 0.0

    def summary(self) -> str:
        seconds = (time.monotonic_ns() - self.begun_ns) * 1e-9
        return (
            f"{self.frames} frames in {seconds:.1f} s ({self.frames / max(seconds, 1e-9):.1f} a second), a hand in "
            f"{self.tracked}; dropped {self.dropped}, unusable {self.bad_frames}"
        )


class Loop:
    """One camera's pipeline. step() handles one frame and returns False at the end of the stream."""

    def __init__(
        self,
        camera: Camera,
        tracker: Tracker,
        publisher: Publisher,
        minders: Sequence[Minder] = (),
        *,
        sink: Sink | None = None,
        clock: Clock = HOST,
    ) -> None:
        self.camera, self.tracker, self.publisher = camera, tracker, publisher
        self.watcher: Watcher | None = None
        self.minders, self.sink, self.clock = minders, sink, clock
        self.stall_s = max(STALL_S, 3 / camera.fps)  # a slow recording is no stall
        self.totals = Totals()
        self.message = ""
        self.trouble = ""  # the last bad frame or stall, for the summary
        self.state: StatusState = "starting"  # as last published
        self._last_seq: int | None = None
        self._last_t_ns: int | None = None
        self._waited_s = 0.0  # for the next frame
        self._status_ns = 0
        self._begun_ns = clock.monotonic_ns()
        self._wall_offset_ns = clock.unix_ns() - self._begun_ns
        self._joints_topic, self._mesh_topic = f"joints.{camera.name}", f"mesh.{camera.name}"
        self._cloud_topic, self.clouds = f"cloud.{camera.name}", Clouds()
        self.publish_us = self.total_us = 0.0  # of the last frame: its sending, and its capture to after the last send

    @property
    def fps(self) -> float:
        """Frames a second of late, by the loop's clock."""
        return self.totals.fps_at(self.clock.monotonic_ns())

    def run(self, stop: Callable[[], bool] = lambda: False) -> Totals:
        """Until the stream ends or stop() says so; publishes `stopping` last. CameraError passes through."""
        self.say("starting")
        try:
            while not stop() and self.step():
                pass
        finally:
            self.say("stopping")
        return self.totals

    def step(self) -> bool:
        """One frame, or what came instead of it; False at the end of the stream."""
        try:
            frame = self.camera.read(min(self.stall_s, STALL_S))
        except EndOfStream:
            return False
        except FrameTimeout as error:
            self.publisher.poll_subscriptions()
            self._waited_s += STALL_S
            if self._waited_s < self.stall_s:
                self.heartbeat(self.state, self.message)
                return True
            self.tracker.lose()
            self.trouble = str(error)
            self.heartbeat("stalled", self.trouble)
            return True
        except BadFrame as error:
            self._waited_s = 0.0
            self.publisher.poll_subscriptions()
            self.totals.bad_frames += 1
            if self._last_seq is not None:
                self._last_seq += 1  # it was looked at, not skipped
            self.trouble = str(error)
            if self.clock.monotonic_ns() - (self._last_t_ns or self._begun_ns) > self.stall_s * 1e9:
                self.tracker.lose()
                self.heartbeat("stalled", self.trouble)
            else:
                self.heartbeat(self.state, self.trouble)
            return True
        self._waited_s = 0.0
        try:
            self.handle(frame)
        except EngineDown as error:
            self.tracker.lose()
            self.trouble = str(error)
            self.heartbeat("stalled", self.trouble)
        return True

    def handle(self, frame: DepthFrame) -> None:
        """Track and publish one frame."""
        picked_ns = self.clock.monotonic_ns()
        if self.sink:
            self.sink.frame(frame)
        if self._last_seq is not None and frame.seq > self._last_seq + 1:
            self.totals.dropped += frame.seq - self._last_seq - 1
        self._last_seq, self._last_t_ns = frame.seq, frame.t_ns
        self._follow_wall_clock(picked_ns)
        self.publisher.poll_subscriptions()
        hands = self.tracker.process(frame)
        begun_ns = self.clock.monotonic_ns()
        stages = self.tracker.stages_us
        stages["capture"] = (picked_ns - frame.t_ns) * 1e-3
        stages["publish"] = self.publish_us  # of the frame before: this one's is not over yet
        if not self.clock.measures:
            stages = {}
        self.totals.frames += 1
        self.totals.tracked += any(h.pose.state == "tracked" for h in hands)
        self.totals.recent_ns.append(frame.t_ns)
        now_ns = self.clock.monotonic_ns()
        header = Header(frame.camera, frame.seq, frame.t_ns, frame.t_ns + self._wall_offset_ns, now_ns)
        if self.publisher.wants(self._joints_topic) or self.watcher or self.sink:
            parts = encode_joints(header, hands, stages_us=stages, dropped=self.totals.dropped)
            self._publish(parts, now_ns)
            if self.watcher:
                self.watcher(frame, parts)
        if self.publisher.wants(self._mesh_topic) or self.sink:
            self._publish(encode_mesh(header, hands), now_ns)
        if self.publisher.wants(self._cloud_topic):
            self.publisher.publish(self.clouds.message(header, frame, hands))
        over_ns = self.clock.monotonic_ns()
        self.publish_us, self.total_us = (over_ns - begun_ns) * 1e-3, (over_ns - frame.t_ns) * 1e-3
        states = {h.pose.state for h in hands}
        self.heartbeat("tracked" if "tracked" in states else "predicted" if states else "lost", "")
        for minder in self.minders:
            minder.frame()

    def heartbeat(self, state: StatusState, message: str) -> None:
        """Publish the status when it changes, and once a second."""
        due = self.clock.monotonic_ns() - self._status_ns > HEARTBEAT_NS
        if state != self.state or message != self.message or due:
            self.say(state, message)

    def tell(self, message: str) -> None:
        """Publish the state once with one line on what happened beside the frames."""
        self.say(self.state, message)

    def say(self, state: StatusState, message: str = "") -> None:
        now_ns = self.clock.monotonic_ns()
        self.state, self.message, self._status_ns = state, message, now_ns
        self._wall_offset_ns = self.clock.unix_ns() - now_ns
        seq = -1 if self._last_seq is None else self._last_seq
        captured_ns = now_ns if self._last_t_ns is None else self._last_t_ns
        header = Header(self.camera.name, seq, captured_ns, captured_ns + self._wall_offset_ns, now_ns)
        totals, card = self.totals, self.tracker.engine.card
        self._publish(
            encode_status(
                header, state=state, fps=totals.fps_at(now_ns), frames=totals.frames, dropped=totals.dropped,
                bad_frames=totals.bad_frames, engine=self.tracker.engine.name, model=f"{card.name} {card.sha256[:12]}",
                uptime_s=(now_ns - self._begun_ns) * 1e-9, message=message,
            ),
            now_ns,
        )  # fmt: skip
        for minder in self.minders:
            minder.status(state, message)

    def _follow_wall_clock(self, now_ns: int) -> None:
        """Wall-clock times follow at once when that clock is set; the pipeline itself runs on the other."""
        stepped_ns = self.clock.unix_ns() - now_ns - self._wall_offset_ns
        if abs(stepped_ns) > WALL_STEP_NS and self.clock.monotonic_ns() - now_ns < WALL_STEP_NS // 2:
            self.tell(f"the wall clock was set by {stepped_ns * 1e-9:+.1f} s")

    def _publish(self, parts: list[bytes], t_ns: int) -> None:
        self.publisher.publish(parts)
        if self.sink:
            self.sink.message(parts, t_ns)


def topology() -> list[bytes]:
    """The faces of every mesh message; a left hand's vertices are mirrored, so its faces turn the other way."""
    return encode_topology(template().faces)
