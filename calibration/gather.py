"""From depth frames, or from daemons over the wire, to what each camera saw of the hand.

Over the wire only joints, small clouds and times travel, so the cameras may hang on several hosts; times are then those
of the hosts' wall clocks, and whatever these are apart is part of the time offsets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from ..edge.cloud import points_near
from ..edge.engines import Engine, open_engine
from ..edge.refit import Refit
from ..edge.tracker import Tracker
from ..hand.arrays import Array
from ..hand.camera import Intrinsics
from ..hand.crop import MIRROR, mirror_pose
from ..hand.frames import DepthFrame
from ..hand.kinematics import Shape
from ..hand.messages import CloudMessage, HandJoints, JointsMessage, Message, WireHand
from .listen import Listener
from .observe import JOINTS, Cloud, ObserveError, Sight, different
from .sight import shows_left

CLOUD_POINTS = 2000
FEWEST_POINTS = 50
SILENCE_S = 5.0  # without a message, after which a daemon counts as gone
NOTHING = np.full((JOINTS, 3), np.nan)


class Collected:
    """What one camera saw so far; filled frame by frame. source is what to call it before its serial is known,
    hint what to look at if it gives nothing."""

    def __init__(self, source: str = "a camera", hint: str = "") -> None:
        self.source, self.hint, self.serial = source, hint, ""
        self.intrinsics: Intrinsics | None = None
        self.times_s: list[float] = []
        self.joints_m: list[Array] = []
        self.clouds: list[Cloud] = []

    def add(self, t_s: float, joints_m: Array | None, cloud: Cloud | None) -> None:
        """One frame; joints None if it shows no hand. Frames that go back in time are left out."""
        if self.times_s and t_s <= self.times_s[-1]:
            return
        self.joints_m.append(NOTHING if joints_m is None else np.asarray(joints_m, np.float64))
        self.times_s.append(t_s)
        if cloud is not None and len(cloud.points_m) >= FEWEST_POINTS:
            self.clouds.append(cloud)

    def sight(self) -> Sight:
        """All that was seen. Raises ObserveError if no frame came, or nobody said what the camera's lens is."""
        if not self.times_s:
            raise ObserveError(f"{self.serial or self.source} gave no frame{self.hint}")
        if self.intrinsics is None:
            raise ObserveError(
                f"{self.serial}: its daemon does not send clouds with intrinsics: update edge-hand there"
            )
        times, joints = np.array(self.times_s), np.array(self.joints_m)
        return Sight(self.serial, "depth", self.intrinsics, times, joints, tuple(self.clouds))


class Looker:
    """Tracks the hand in one camera's frames and keeps what was seen."""

    def __init__(self, engine: Engine | None = None) -> None:
        self.tracker = Tracker(open_engine() if engine is None else engine)
        self.collected = Collected()
        self._id: int | None = None

    def look(self, frame: DepthFrame) -> WireHand | None:
        """Track one frame; the hand that was measured, of several the one that was followed before."""
        self.collected.serial, self.collected.intrinsics = frame.camera, frame.intrinsics
        hands = [hand for hand in self.tracker.process(frame) if hand.joints_raw_m is not None]
        hand = next((h for h in hands if h.id == self._id), max(hands, key=lambda h: h.pose.score, default=None))
        t_s = frame.t_ns * 1e-9
        if hand is None:
            self.collected.add(t_s, None, None)
            return None
        self._id = hand.id
        mesh = hand.pose.vertices_m
        self.collected.add(
            t_s, hand.joints_raw_m, Cloud(t_s, points_near(frame, mesh, CLOUD_POINTS), mesh.astype(np.float32))
        )
        return hand


def watch_frames(frames: Iterable[DepthFrame]) -> Sight:
    """Track one camera's frames to their end."""
    looker = Looker()
    for frame in frames:
        looker.look(frame)
    return looker.collected.sight()


class Hearer:
    """Keeps what one daemon's camera saw, as its listener hears it."""

    def __init__(self, listener: Listener) -> None:
        self._listener, self._address = listener, listener.addresses[0]
        how = ", and does it know these keys" if listener.keys else " without --keys"
        self.collected = Collected(source=self._address, hint=f"; is `edge-hand run` running there{how}?")
        self._heard_s = time.monotonic()
        self._waiting: dict[int, JointsMessage] = {}
        self._refit, self._id = Refit(), -1

    def hear(self) -> None:
        """What came by now. Raises ObserveError if it cannot be read, is of two cameras, or nothing for too long."""
        heard = self._listener.take(0)
        for _, message in heard:
            self._sort(message)
        why = self._listener.trouble().get(self._address)
        if why:
            raise ObserveError(f"{self._address}: {why}")
        if heard:
            self._heard_s = time.monotonic()
        elif time.monotonic() - self._heard_s > SILENCE_S:
            raise ObserveError(f"no message from {self._address} for {SILENCE_S:g} s{self.collected.hint}")

    def _sort(self, message: Message) -> None:
        if isinstance(message, JointsMessage):
            self._waiting[message.seq] = message
            while len(self._waiting) > 10:  # its cloud was lost: the joints still count
                self._take(self._waiting.pop(next(iter(self._waiting))), None)
        elif isinstance(message, CloudMessage):
            self.collected.intrinsics = message.intrinsics or self.collected.intrinsics
            joints = self._waiting.pop(message.seq, None)
            if joints is not None:
                self._take(joints, message)

    def _take(self, joints: JointsMessage, cloud: CloudMessage | None) -> None:
        name = self.collected.serial
        if name and name != joints.camera:
            raise ObserveError(f"{self._address} publishes {name} and {joints.camera}: give one address a camera")
        self.collected.serial = joints.camera
        t_s = joints.t_capture_unix_ns * 1e-9
        hands = [hand for hand in joints.hands if hand.joints_raw_m is not None]
        hand = next((h for h in hands if h.id == self._id), max(hands, key=lambda h: h.score, default=None))
        if hand is None:
            self.collected.add(t_s, None, None)
            return
        self._id = hand.id
        points = next((c.points_m for c in cloud.hands if c.id == hand.id), None) if cloud else None
        seen = None if points is None else Cloud(t_s, points, mesh_of(hand, self._refit))
        self.collected.add(t_s, hand.joints_raw_m, seen)


def listen(
    addresses: Sequence[str], seconds: float, keys: Path | None, watch: Callable[[list[Sight]], bool]
) -> list[Sight]:
    """Collect from daemons for so long, one camera each; watch is called twice a second with what is there so far and
    ends it by True, as Ctrl-C does. Raises ObserveError if one is silent, or sends what cannot be read."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(Listener([address], ("joints", "cloud"), keys)) for address in addresses]
        hearers = [Hearer(listener) for listener in listeners]
        begun = time.monotonic()
        with suppress(KeyboardInterrupt):  # this is what there is
            while time.monotonic() - begun < seconds:
                time.sleep(0.5)
                for hearer in hearers:
                    hearer.hear()
                ready = [x.collected.sight() for x in hearers if x.collected.times_s and x.collected.intrinsics]
                different([sight.serial for sight in ready])
                if len(ready) == len(hearers) and watch(ready):
                    break
    return [hearer.collected.sight() for hearer in hearers]


def mesh_of(hand: HandJoints, refit: Refit) -> Array:
    """The mesh (V, 3) m that a joints message implies."""
    T, left = np.asarray(hand.T_camera_wrist, np.float64), shows_left(hand.joints_m, hand.T_camera_wrist)
    shape = Shape(np.asarray(hand.alpha, np.float64), np.asarray(hand.beta, np.float64))
    _, mesh = refit.pose(mirror_pose(T) if left else T, np.asarray(hand.angles_rad, np.float64), shape)
    return (mesh * MIRROR if left else mesh).astype(np.float32)
