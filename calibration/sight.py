"""What each camera of a rig says of its hands, brought into the rig's frame and to one moment.

A view keeps a camera's last messages. Asked for a moment of the reference clock, it interpolates between the two
messages about it, or carries the newest on along its motion, for 60 ms at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..edge.chain import Chain
from ..edge.smooth import rotation_matrix, rotation_vector
from ..hand import se3
from ..hand.arrays import Array
from ..hand.crop import MIRROR, mirror_pose
from ..hand.kinematics import Shape, clamp_angles
from ..hand.messages import CloudMessage, HandJoints, JointsMessage
from .rig import RigCamera

Clock = Literal["monotonic", "unix"]
SAME_HOST_NS = 50_000_000  # monotonic clocks that differ from the wall clock by as much are of two hosts
CARRY_NS = 60_000_000  # a pose is carried on for so long
BRIDGE_NS = 150_000_000  # and interpolated between frames this far apart
KEPT = 8  # messages
POINTS = 360  # of a hand's depth points, at most so many are looked at
NO_POINTS = np.zeros((0, 3))


def clock_offsets_ns(walls_ns: Sequence[int]) -> list[int]:
    """What to add to the stamps of recordings so that they compare, ns, from what each has to add for wall-clock time,
    0 if it does not know: nothing where one host took all of them, whose monotonic clock is better."""
    one_host = max(walls_ns) - min(walls_ns) <= SAME_HOST_NS or 0 in walls_ns
    return [0] * len(walls_ns) if one_host else list(walls_ns)


class Sighting(NamedTuple):
    """One camera's hand in the rig's frame at the moment asked for.

    T_wrist (4, 4) m; angles (20,) rad; alpha (6,), beta (7,); raw_off_m (21, 3) from the joints of that pose, which are
    smoothed, to those measured; joint_conf (21,) as on the wire; visible (21,) int8 or None; velocity_m_s (3,) of the
    wrist; points_m (N, 3) the depth points of the hand; carried_s since the message, negative until then; age_ms since
    the hand was measured.
    """

    camera: int
    hand: int
    is_left: bool
    side_conf: float
    tracked: bool
    score: float
    T_wrist: Array
    angles: Array
    alpha: Array
    beta: Array
    raw_off_m: Array
    joint_conf: Array
    visible: NDArray[np.int8] | None
    velocity_m_s: Array
    points_m: Array
    carried_s: float
    age_ms: float

    @property
    def shape(self) -> Shape:
        return Shape(self.alpha, self.beta)


class _Frame(NamedTuple):
    t_ns: int
    seq: int
    hands: dict[int, HandJoints]


class View:
    """One camera's messages; `index` is its place in the rig. t_ns is the reference clock's throughout."""

    def __init__(self, index: int, camera: RigCamera, clock: Clock = "monotonic") -> None:
        self.index, self.camera, self.clock = index, camera, clock
        self._frames: deque[_Frame] = deque(maxlen=KEPT)
        self._clouds: deque[tuple[int, dict[int, Array]]] = deque(maxlen=KEPT)

    @property
    def newest_ns(self) -> int | None:
        """When the newest message's frame was taken."""
        return self._frames[-1].t_ns if self._frames else None

    def take(self, message: JointsMessage) -> None:
        """Add a joints message. One older than the newest means that the clock or the daemon began anew."""
        stamp = message.t_capture_ns if self.clock == "monotonic" else message.t_capture_unix_ns
        t_ns = stamp + round(self.camera.time.offset_s * 1e9)
        if self._frames and t_ns <= self._frames[-1].t_ns:
            self._frames.clear()
            self._clouds.clear()
        self._frames.append(_Frame(t_ns, message.seq, {hand.id: hand for hand in message.hands}))

    def take_cloud(self, message: CloudMessage) -> None:
        """Add the depth points of a frame whose joints message came or will come."""
        thinned = {h.id: h.points_m[:: max(1, -(-len(h.points_m) // POINTS))] for h in message.hands}
        self._clouds.append((message.seq, thinned))

    def at(self, t_ns: int) -> list[Sighting]:
        """The camera's hands at a moment: between two frames 150 ms apart at most, or within 60 ms of one."""
        before = next((f for f in reversed(self._frames) if f.t_ns <= t_ns), None)
        after = next((f for f in self._frames if f.t_ns > t_ns), None)
        near = before if before and t_ns - before.t_ns <= CARRY_NS else after or before  # the older has its cloud
        if near is None:
            return []
        found = []
        for key, hand in near.hands.items():
            points = next((c[key] for seq, c in self._clouds if seq == near.seq and key in c), NO_POINTS)
            if before and after and _bridged(before, after, key):
                share = (t_ns - before.t_ns) / (after.t_ns - before.t_ns)
                T, angles = _between(before.hands[key], after.hands[key], share)
            elif abs(t_ns - near.t_ns) <= CARRY_NS:
                T, angles = _carried(hand, (t_ns - near.t_ns) * 1e-9)
            else:
                continue
            found.append(self._sighting(hand, T, angles, points, (t_ns - near.t_ns) * 1e-9))
        return found

    def _sighting(self, hand: HandJoints, T: Array, angles: Array, points_m: Array, carried_s: float) -> Sighting:
        T_ref, T = self.camera.T_ref_cam, T.copy()
        if len(points_m):  # the points move with the wrist
            points_m = se3.apply(T @ se3.inverse(hand.T_camera_wrist.astype(float)), points_m.astype(float))
            points_m = se3.apply(T_ref, self._corrected(points_m))
        T[:3, 3] = self._corrected(T[None, :3, 3])[0]
        velocity = np.zeros(3) if hand.motion is None else T_ref[:3, :3] @ hand.motion.velocity_m_s
        left = shows_left(hand.joints_m, hand.T_camera_wrist)
        return Sighting(
            camera=self.index,
            hand=hand.id,
            is_left=left,
            side_conf=hand.side_conf,
            tracked=hand.state == "tracked",
            score=hand.score,
            T_wrist=T_ref @ T,
            angles=angles,
            alpha=hand.alpha.astype(float),
            beta=hand.beta.astype(float),
            raw_off_m=_raw_off(hand) @ T_ref[:3, :3].T,
            joint_conf=hand.joint_conf.astype(float),
            visible=hand.visible,
            velocity_m_s=velocity,
            points_m=points_m,
            carried_s=carried_s,
            age_ms=max(hand.age_ms + 1e3 * carried_s, 0.0),
        )

    def _corrected(self, points_m: Array) -> Array:
        """Points (N, 3) of the camera's frame with the lens and the depth the rig file says they should have had."""
        points_m = self.camera.refined(points_m)
        z = points_m[:, 2]
        return np.asarray(points_m * (self.camera.depth.apply(z) / np.where(z > 0, z, 1.0))[:, None])


def joints_of(chain: Chain, s: Sighting) -> Array:
    """The joints (21, 3) m of a sighting as measured, in the rig's frame."""
    T, mirror = s.T_wrist, np.ones(3)
    if s.is_left:
        T, mirror = mirror_pose(T), MIRROR
    posed = chain.pose(T[:3, :3], s.angles, chain.at_rest(s.shape))
    return np.asarray((posed.joints_m + T[:3, 3]) * mirror + s.raw_off_m)


def shows_left(joints_m: Array, T_wrist: Array) -> bool:
    """Whether joints (21, 3) are posed as a left hand's: in the wrist's frame (4, 4) its little finger has the smaller
    x. The side on the wire may be `unknown`, the pose never is."""
    return bool(T_wrist[:3, 0] @ (joints_m[17] - joints_m[5]) < 0)


def _raw_off(hand: HandJoints) -> Array:
    return np.zeros((21, 3)) if hand.joints_raw_m is None else (hand.joints_raw_m - hand.joints_m).astype(float)


def _bridged(before: _Frame, after: _Frame, key: int) -> bool:
    """Whether a hand is in both frames, near in time and posed as one side's."""
    if after.t_ns - before.t_ns > BRIDGE_NS or key not in before.hands or key not in after.hands:
        return False
    a, b = (shows_left(f.hands[key].joints_m, f.hands[key].T_camera_wrist) for f in (before, after))
    return a == b


def _between(a: HandJoints, b: HandJoints, share: float) -> tuple[Array, Array]:
    """Wrist (4, 4) and angles (20,) a share of the way from one message to the next."""
    Ta, Tb = a.T_camera_wrist.astype(float), b.T_camera_wrist.astype(float)
    T = Ta + share * (Tb - Ta)
    T[:3, :3] = rotation_matrix(share * rotation_vector(Tb[:3, :3] @ Ta[:3, :3].T)) @ Ta[:3, :3]
    return T, a.angles_rad + share * (b.angles_rad - a.angles_rad).astype(float)


def _carried(hand: HandJoints, dt_s: float) -> tuple[Array, Array]:
    """Wrist (4, 4) and angles (20,) so long after the message."""
    T, angles = hand.T_camera_wrist.astype(float), hand.angles_rad.astype(float)
    if hand.motion is not None and dt_s:
        T[:3, 3] += dt_s * hand.motion.velocity_m_s
        T[:3, :3] = rotation_matrix(dt_s * np.asarray(hand.motion.angular_velocity_rad_s, float)) @ T[:3, :3]
        angles = clamp_angles(angles + dt_s * hand.motion.angle_rates_rad_s)
    return T, angles
