"""The loop of `edge-hand fuse`: messages of the cameras in, messages of the camera `rig` out."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..edge.loop import HEARTBEAT_NS, Totals
from ..edge.publish import Publisher
from ..hand.messages import StatusState
from ..hand.wire import MAX_HANDS, Header, encode_joints, encode_mesh, encode_status
from .fuse import Fuser
from .listen import Heard, Listener
from .rig import Rig
from .views import Views

CAMERA = "rig"
STALL_NS = 500_000_000
IDLE_S = 0.1
DEAF_NS = 3_000_000_000  # from the start, after which it is asked whether any daemon runs


class FuseLoop:
    """`handle` what was heard; run() does so until stop() says so. say gets a line whenever a camera comes or goes."""

    def __init__(self, rig: Rig, publisher: Publisher, smooth: bool = True, say: Callable[[str], None] = print) -> None:
        self.rig, self.publisher, self.say = rig, publisher, say
        self.views, self.fuser = Views(rig), Fuser(rig, smooth)
        self.totals, self.lost = Totals(), 0
        self.trouble: dict[str, str] = {}  # as the listener has it, like lost
        self.stages_us = {"wait": 0.0, "fuse": 0.0, "publish": 0.0}
        begun_ns = self.totals.begun_ns
        self._header = Header(CAMERA, -1, begun_ns, time.time_ns(), begun_ns)
        self._state: StatusState = "starting"
        self._told: tuple[str, list[frozenset[str]]] | None = None
        self._status_ns = self._frame_ns = begun_ns

    def run(self, listener: Listener, stop: Callable[[], bool]) -> None:
        self._publish_status("starting", self.totals.begun_ns)
        try:
            while not stop():
                waiting = self.views.wait_ns * 1e-9 / 3
                heard = listener.take(waiting if self.views.waiting else IDLE_S)
                self.trouble, self.lost = listener.trouble(), listener.lost
                self.handle(heard, time.monotonic_ns())
        finally:
            self._publish_status("stopping", time.monotonic_ns())

    def handle(self, heard: list[Heard], now_ns: int) -> None:
        """Take messages; publish the fused hands if it is time to, and the status when it changes or once a second."""
        self.publisher.poll_subscriptions()
        for came_ns, message in heard:
            self.views.take(message, came_ns)
        t_ns = self.views.due(now_ns)
        if t_ns is not None:
            self._step(t_ns, now_ns)
        state = self._state
        if now_ns - self._frame_ns > STALL_NS and self._state != "starting":
            state = "stalled"
        self._heartbeat(state, now_ns)

    def summary(self) -> str:
        seconds = (time.monotonic_ns() - self.totals.begun_ns) * 1e-9
        return f"{self.totals.frames} moments in {seconds:.1f} s, a hand in {self.totals.tracked}"

    def _step(self, t_ns: int, now_ns: int) -> None:
        begun = time.monotonic_ns()
        hands = self.fuser.step(t_ns, self.views.at(t_ns))[:MAX_HANDS]  # those that most cameras see come first
        fused = time.monotonic_ns()
        unix_ns, captured_ns = self.views.capture(t_ns)
        self._header = Header(CAMERA, self.totals.frames, captured_ns, unix_ns, time.monotonic_ns())
        self.stages_us["wait"], self.stages_us["fuse"] = (begun - captured_ns) * 1e-3, (fused - begun) * 1e-3
        if self.publisher.wants(f"joints.{CAMERA}"):
            parts = encode_joints(self._header, hands, stages_us=self.stages_us, dropped=self.views.late)
            self.publisher.publish(parts)
        if self.publisher.wants(f"mesh.{CAMERA}"):
            self.publisher.publish(encode_mesh(self._header, hands))
        self.stages_us["publish"] = (time.monotonic_ns() - fused) * 1e-3
        self.totals.frames += 1
        states = {hand.pose.state for hand in hands}
        self.totals.tracked += "tracked" in states
        self.totals.recent_ns.append(now_ns)
        self._frame_ns = now_ns
        self._state = "tracked" if "tracked" in states else "predicted" if states else "lost"

    def _heartbeat(self, state: StatusState, now_ns: int) -> None:
        views = self.views
        deaf = ["deaf"] * self._deaf(now_ns)
        cameras = views.silent(now_ns), views.unknown, views.unfit.values(), views.astray, self.trouble, deaf
        told = state, [frozenset(some) for some in cameras]
        new = told != self._told
        if new and (self._told is None or told[1] != self._told[1]):
            self.say(self._words(now_ns))
        if new or now_ns - self._status_ns > HEARTBEAT_NS:
            self._told = told
            self._publish_status(state, now_ns)

    def _words(self, now_ns: int) -> str:
        """Which cameras are there, and what is wrong, in one line."""
        text = self.views.words(now_ns)
        text += "".join(f"; {address}: {why}" for address, why in self.trouble.items())
        if self.lost:
            text += f"; {self.lost} messages lost, for they come faster than they are fused"
        return text + "; is `edge-hand run` running?" * self._deaf(now_ns)

    def _deaf(self, now_ns: int) -> bool:
        """Whether nothing was heard since the start, and that is long ago."""
        heard = self._state != "starting" or self.views.unknown or self.views.unfit or self.trouble
        return not heard and now_ns - self.totals.begun_ns > DEAF_NS

    def _publish_status(self, state: StatusState, now_ns: int) -> None:
        self._status_ns = now_ns
        h = self._header
        header = Header(CAMERA, h.seq, h.t_capture_ns, h.t_capture_unix_ns, now_ns)
        self.publisher.publish(
            encode_status(
                header, state=state, fps=self.totals.fps_at(now_ns), frames=self.totals.frames, dropped=self.views.late,
                bad_frames=0, engine="fusion", model=self.rig.name, uptime_s=(now_ns - self.totals.begun_ns) * 1e-9,
                message=self._words(now_ns),
            )
        )  # fmt: skip
