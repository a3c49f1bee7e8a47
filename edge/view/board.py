"""What a live view knows: the newest of every camera, who came and who left. Fed by threads, read by others."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...hand.arrays import Array
from ...hand.messages import CloudMessage, JointsMessage, MeshMessage, Message, StatusMessage, TopologyMessage
from .status import Fare

FRESH_S = 0.5  # an older hand is not shown
GONE_S = 3.0  # a daemon tells of itself once a second
EVENTS = 12


@dataclass(frozen=True, eq=False)
class CameraView:
    """One camera at one moment. here: whether its daemon still tells of itself; mesh, cloud and hands None if old;
    scene is the newest with the number of its frame."""

    key: str
    fare: Fare
    here: bool
    T_ref_cam: Array | None
    joints: JointsMessage | None
    mesh: MeshMessage | None
    cloud: CloudMessage | None
    scene: tuple[int, NDArray[np.float32]] | None


class Board:
    """Takes messages, tells what is new. poses are the T_ref_cam (4, 4) of cameras by name, if a rig is known."""

    def __init__(self, poses: Mapping[str, Array] | None = None) -> None:
        self.poses = dict(poses or {})
        self.topology: TopologyMessage | None = None
        self.watched = 0  # how many pages are open
        self._silent: set[str] = set()
        self._lock = threading.Lock()
        self._cameras: dict[str, _Camera] = {}
        self._events: deque[tuple[float, str]] = deque(maxlen=EVENTS)

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """While a page is open; meshes and clouds are asked for only then."""
        with self._lock:
            self.watched += 1
        try:
            yield
        finally:
            with self._lock:
                self.watched -= 1

    def expect(self, address: str) -> None:
        """Something should come from this address."""
        with self._lock:
            self._silent.add(address)

    def silent(self) -> list[str]:
        """The addresses from which nothing came yet."""
        with self._lock:
            return sorted(self._silent)

    def take(self, address: str, message: Message, now_s: float) -> None:
        """A message that came from an address at now_s, seconds of time.monotonic()."""
        if isinstance(message, TopologyMessage):
            self.topology = message
            return
        with self._lock:
            self._silent.discard(address)
            key = f"{message.camera} {address}"
            camera = self._cameras.get(key)
            if camera is None:
                camera = self._cameras[key] = _Camera(Fare(address, message.camera))
            before = camera.fare.status
            camera.take(message, now_s)
            status = camera.fare.status
            if not camera.here and not (status and status.state == "stopping"):
                camera.here = True
                self._tell(f"{message.camera} joined from {address}")
            if status and status is message:
                self._tell_change(camera, before, status)

    def views(self, now_s: float) -> list[CameraView]:
        """Every camera known, in the order of their names."""
        with self._lock:
            for camera in self._cameras.values():
                if camera.here and now_s - camera.fare.heard_s > GONE_S:
                    camera.here = False
                    self._tell(f"{camera.fare.camera} fell silent")
            return [
                camera.view(key, now_s, self.poses.get(camera.fare.camera))
                for key, camera in sorted(self._cameras.items())
            ]

    def events(self) -> list[tuple[float, str]]:
        """What happened, newest first: seconds since 1970 and a line."""
        with self._lock:
            return list(reversed(self._events))

    def say(self, text: str) -> None:
        """Note an event of our own."""
        with self._lock:
            self._tell(text)

    def _tell(self, text: str) -> None:
        if not self._events or self._events[-1][1] != text:
            self._events.append((time.time(), text))

    def _tell_change(self, camera: _Camera, before: StatusMessage | None, status: StatusMessage) -> None:
        was = before.state if before else "starting"
        if status.state == "stopping" and camera.here:
            camera.here = False
            self._tell(f"{status.camera} left: {status.message or 'it was stopped'}")
        elif status.state == "stalled" and was != "stalled":
            self._tell(f"{status.camera} stalled: {status.message or 'no frames'}")
        elif was == "stalled" and status.state != "stalled":
            self._tell(f"{status.camera} is back: {status.state}")


@dataclass(eq=False)
class _Camera:
    fare: Fare
    here: bool = False
    joints: tuple[float, JointsMessage] | None = None
    mesh: tuple[float, MeshMessage] | None = None
    cloud: tuple[float, CloudMessage] | None = None
    scene: tuple[int, NDArray[np.float32]] | None = None

    def take(self, message: Message, now_s: float) -> None:
        self.fare.take(message, now_s)
        if isinstance(message, JointsMessage):
            self.joints = (now_s, message)
        elif isinstance(message, MeshMessage):
            self.mesh = (now_s, message)
        elif isinstance(message, CloudMessage):
            self.cloud = (now_s, message)
            if message.scene_m is not None:
                self.scene = (message.seq, message.scene_m)

    def view(self, key: str, now_s: float, pose: Array | None) -> CameraView:
        old = now_s - FRESH_S
        stalled = self.fare.is_stalled or not self.here
        joints, mesh, cloud = (
            None if stalled or kept is None or kept[0] < old else kept[1]
            for kept in (self.joints, self.mesh, self.cloud)
        )
        return CameraView(key, self.fare.copy(), self.here, pose, joints, mesh, cloud, self.scene)  # type: ignore[arg-type]
