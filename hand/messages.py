"""What travels on the wire, as values: what a publisher gives and what a subscriber gets; bytes in `wire.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import Float32
from .camera import Intrinsics
from .frames import HandPose, Side

HandState = Literal["tracked", "predicted"]
StatusState = Literal["starting", "tracked", "predicted", "lost", "stalled", "stopping"]


class WireError(ValueError):
    """A message that is not the contract's; the text is one line."""


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """What every message of a camera begins with.

    seq is the camera's frame number, -1 before the first frame. t_capture_ns and t_publish_ns are the publishing
    host's CLOCK_MONOTONIC, t_capture_unix_ns its wall clock.
    """

    camera: str
    seq: int
    t_capture_ns: int
    t_capture_unix_ns: int
    t_publish_ns: int

    @property
    def latency_ms(self) -> float:
        """Capture to publication, ms."""
        return (self.t_publish_ns - self.t_capture_ns) / 1e6


class Motion(NamedTuple):
    """How a hand moves: velocity_m_s (3,) of the wrist and angular_velocity_rad_s (3,), both along the camera's axes,
    and angle_rates_rad_s (20,) of the joint angles."""

    velocity_m_s: NDArray[Any]
    angular_velocity_rad_s: NDArray[Any]
    angle_rates_rad_s: NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class WireHand:
    """A hand to publish: its pose, smoothed; joints_raw_m (21, 3) m before smoothing, None if only predicted.

    id stays with one hand while it is followed. age_ms is the time since the last frame that measured this hand,
    0 while it is tracked. visible (21,) int8 is 1 for a joint seen, 0 for one hidden, -1 for one of which the depth
    says nothing; None if nobody looked. motion is None if nothing is known of it.
    """

    id: int
    age_ms: float
    pose: HandPose
    joints_raw_m: NDArray[Any] | None
    visible: NDArray[Any] | None = None
    motion: Motion | None = None


@dataclass(frozen=True, slots=True, eq=False)
class HandJoints:
    """One hand of a joints message; arrays are read-only float32, metres and radians in the camera frame.

    joints_m and joints_raw_m (21, 3); joint_conf (21,); angles_rad (20,); T_camera_wrist (4, 4); alpha (6,); beta (7,);
    visible (21,) int8: 1 seen, 0 hidden, -1 unknown. visible and motion are None where the publisher sent none.
    """

    id: int
    side: Side
    side_conf: float
    state: HandState
    age_ms: float
    score: float
    fit_mm: float | None
    joints_m: Float32
    joints_raw_m: Float32 | None
    joint_conf: Float32
    angles_rad: Float32
    T_camera_wrist: Float32
    alpha: Float32
    beta: Float32
    visible: NDArray[np.int8] | None = None
    motion: Motion | None = None


@dataclass(frozen=True, slots=True, eq=False)
class HandMesh:
    """One hand of a mesh message: vertices_m (V, 3) read-only float32, camera frame."""

    id: int
    side: Side
    vertices_m: Float32


@dataclass(frozen=True, slots=True, eq=False)
class HandCloud:
    """What the sensor measured of one hand: points_m (N, 3) float32, camera frame; none while it is only predicted."""

    id: int
    points_m: Float32


@dataclass(frozen=True, slots=True, eq=False)
class JointsMessage(Header):
    """`joints.<camera>`: all hands of one frame, none if none is seen; stages_us says where the time went."""

    dropped: int
    stages_us: dict[str, float]
    hands: tuple[HandJoints, ...]


@dataclass(frozen=True, slots=True, eq=False)
class MeshMessage(Header):
    """`mesh.<camera>`: the meshes of one frame, in the order of its joints message."""

    hands: tuple[HandMesh, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CloudMessage(Header):
    """`cloud.<camera>`: depth points of one frame, read-only float32 m in the camera frame.

    scene_m (N, 3) is the whole picture, thinned out, and None in a message that leaves it out, which most do; hands
    are in the order of the frame's joints message; intrinsics are the camera's, sent with the scene.
    """

    scene_m: Float32 | None
    hands: tuple[HandCloud, ...]
    intrinsics: Intrinsics | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StatusMessage(Header):
    """`status.<camera>`: how the daemon fares; header times are those of the last frame."""

    state: str
    fps: float
    frames: int
    dropped: int
    bad_frames: int
    engine: str
    model: str
    uptime_s: float
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class TopologyMessage:
    """`topology`: faces (F, 3) read-only int32 into the right hand's vertices; a left hand's wind the other way."""

    vertices: int
    faces: NDArray[np.int32]


Message = JointsMessage | MeshMessage | CloudMessage | StatusMessage | TopologyMessage
