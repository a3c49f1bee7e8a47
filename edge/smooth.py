"""A One-Euro filter for hands: wrist position, wrist rotation and joint angles, still when still and fast when fast.

Casiez, Roussel and Vogel, "1 Euro filter" (CHI 2012): a first-order low-pass whose cut-off rises with the speed,
eq. 5. A pose far from the filtered one is followed at once, for at 30 frames a second speed is learned too late. The
wrist turns on SO(3): increments are rotation vectors in the camera's frame, R' R^T = exp(w), and steps are
taken as exp(gain w) R, so no rotation is special. How the numbers were chosen: docs/smoothing.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..hand.arrays import Array
from ..hand.kinematics import clamp_angles
from ..hand.messages import Motion

GAP_NS = 200_000_000  # a hand not measured for longer begins anew
PREDICT_NS = 150_000_000  # how far ahead a pose may be carried
COAST_S = 0.06  # a predicted hand slows down with this time constant
TURN = 2 * math.pi


class Channel(NamedTuple):
    """How one kind of number is smoothed; units are m or rad.

    cutoff_hz while it is still; the cut-off grows by opening_hz for each m/s or rad/s above still, the speed that
    noise alone pretends; speed_hz is the cut-off of that speed. Half of a deviation of jump is followed at once,
    nearly none of half of it and nearly all of twice as much.
    """

    cutoff_hz: float
    opening_hz: float
    still: float
    speed_hz: float
    jump: float


POSITION = Channel(0.3, 215.0, 0.02, 1.8, 0.006)
ROTATION = Channel(0.3, 25.0, 0.27, 1.8, 0.09)
ANGLES = Channel(1.0, 10.0, 0.16, 1.5, 0.35)
JUMP_POWER = 6
MOTION_HZ = 10.0  # cut-off of the velocities given away
_IDENTITY = np.eye(4)


class Smoothed(NamedTuple):
    """A smoothed pose and how it moves: T_camera_wrist (4, 4) m; angles (20,) rad."""

    T_camera_wrist: Array
    angles: Array
    motion: Motion


class Smoother:
    """One hand's filter: call it with each measured pose, in order of time."""

    def __init__(self, position: Channel = POSITION, rotation: Channel = ROTATION, angles: Channel = ANGLES) -> None:
        each = [position] * 3 + [rotation] * 3 + [angles] * 20
        self._channels = np.array(each).T.copy()  # (5, 26)
        self._channels[4] = 1 / self._channels[4]
        self._t_ns: int | None = None
        self._raw = self._value = self._speed = self._motion = np.zeros(26)
        self._raw_R = self._R = np.eye(3)

    def __call__(self, t_ns: int, T_camera_wrist: Array, angles: Array) -> Smoothed:
        """Smooth the pose measured at t_ns: wrist (4, 4) m, angles (20,) rad. The first one passes as it is; after
        a gap of 0.2 s, or if time stands or runs back, it is a first one again."""
        raw = np.zeros(26)  # [3:6] stays 0: the wrist's turn is kept as a matrix
        raw[:3], raw[6:] = T_camera_wrist[:3, 3], angles
        R = np.array(T_camera_wrist[:3, :3], np.float64)
        if self._t_ns is None or not 0 < t_ns - self._t_ns <= GAP_NS:
            self.reset()
            self._value, self._R = raw.copy(), R.copy()
        else:
            self._step(raw, R, (t_ns - self._t_ns) * 1e-9)
        self._t_ns, self._raw, self._raw_R = t_ns, raw, R
        return self._smoothed(self._value, self._R, self._motion)

    def _step(self, raw: Array, R: Array, dt_s: float) -> None:
        """Move on to a pose measured dt_s after the one before."""
        cutoff, opening, still, speed_hz, per_jump = self._channels
        turn = TURN * dt_s
        step, off = raw - self._raw, raw - self._value
        step[3:6], off[3:6] = rotation_vector(R @ self._raw_R.T), rotation_vector(R @ self._R.T)
        speed_gain = turn * speed_hz
        self._speed = self._speed + (step / dt_s - self._speed) * (speed_gain / (1 + speed_gain))
        opened = cutoff + opening * np.maximum(_lengths(self._speed) - still, 0)  # eq. 5, Hz
        opened *= turn
        jumped = (_lengths(off) * per_jump) ** JUMP_POWER
        loose = np.maximum(opened, jumped)
        move = loose / (1 + loose) * off  # eq. 1 and 3: the gain is 1 / (1 + tau / dt), tau / dt = 1 / loose
        self._value = value = self._value + move
        value[3:6] = 0
        self._R = rotation_matrix(move[3:6]) @ self._R
        self._motion = self._motion + (move / dt_s - self._motion) * (1 / (1 + 1 / (turn * MOTION_HZ)))

    def predict(self, t_ns: int) -> Smoothed | None:
        """The pose carried on to t_ns at its last speed, which fades; None where there is nothing to carry, or more
        than 0.15 s ahead. The filter is left as it is."""
        if self._t_ns is None or not 0 <= t_ns - self._t_ns <= PREDICT_NS:
            return None
        fade = math.exp(-(t_ns - self._t_ns) * 1e-9 / COAST_S)
        move = self._motion * (COAST_S * (1 - fade))
        value = self._value + move
        value[6:] = clamp_angles(value[6:])
        return self._smoothed(value, rotation_matrix(move[3:6]) @ self._R, self._motion * fade)

    def reset(self) -> None:
        """Forget the hand: the next pose is a first one."""
        self._t_ns = None
        self._speed, self._motion = np.zeros((2, 26))

    def _smoothed(self, value: Array, R: Array, motion: Array) -> Smoothed:
        motion = motion.copy()
        return Smoothed(rigid(R, value[:3]), value[6:].copy(), Motion(motion[:3], motion[3:6], motion[6:]))


def _lengths(v: Array) -> Array:
    """(26,): the length of the vector that a number of the wrist belongs to, and each angle's own size."""
    size = np.abs(v)
    x, y, z, a, b, c = v[:6].tolist()
    size[:3], size[3:6] = math.sqrt(x * x + y * y + z * z), math.sqrt(a * a + b * b + c * c)
    return size


def rigid(rotation: Array, place_m: Array) -> Array:
    """(3, 3) and (3,) to (4, 4); `se3.transform` of one."""
    T = _IDENTITY.copy()
    T[:3, :3], T[:3, 3] = rotation, place_m
    return T


def rotation_vector(rotation: Array) -> Array:
    """(3, 3) to (3,) rad; `se3.so3_log` for a single rotation, in a tenth of the time. By the quaternion that the
    largest of trace and diagonal gives (Shepperd 1978), which holds at half a turn too."""
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    if a + e + i > 0:
        w, x, y, z = 1 + a + e + i, h - f, c - g, d - b
    elif a >= e and a >= i:
        w, x, y, z = h - f, 1 + a - e - i, b + d, c + g
    elif e >= i:
        w, x, y, z = c - g, b + d, 1 - a + e - i, f + h
    else:
        w, x, y, z = d - b, c + g, f + h, 1 - a - e + i
    sine = math.sqrt(x * x + y * y + z * z)
    if w < 0:
        w, sine = -w, -sine
    scale = 2 / w if abs(sine) < 1e-12 * w else 2 * math.atan2(abs(sine), w) / sine
    return np.array((x * scale, y * scale, z * scale))


def rotation_matrix(rotvec: Array) -> Array:
    """(3,) rad to (3, 3); Rodrigues' formula, `se3.so3_exp` for a single rotation. An exact rotation to rounding."""
    x, y, z = rotvec.tolist()
    angle2 = x * x + y * y + z * z
    if angle2 < 1e-12:
        s, c = 1.0, 0.5
    else:
        angle = math.sqrt(angle2)
        s, c = math.sin(angle) / angle, (1 - math.cos(angle)) / angle2
    return np.array(
        (
            (1 - c * (y * y + z * z), c * x * y - s * z, c * x * z + s * y),
            (c * x * y + s * z, 1 - c * (x * x + z * z), c * y * z - s * x),
            (c * x * z - s * y, c * y * z + s * x, 1 - c * (x * x + y * y)),
        )
    )
