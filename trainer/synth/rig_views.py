"""One moving hand on its forearm as several depth cameras see it at once, with the truth: for calibration and fusion.

The rig frame is that of camera 0. A camera's clock errs: its stamp plus its offset is the reference time. Frames are
drawn when they are asked for; everything depends on the seed and the arguments alone. The room: origin in the middle of
the volume the hand moves in, +y up, +z towards the cameras, metres.

python -m edge_hand.trainer.synth.rig_views rig.png --seed 1 --motion free      # what the cameras see
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from ...edge.draw import contact_sheet, depth_picture, draw_joints, save_png, view_of
from ...hand import se3
from ...hand.arrays import Array
from ...hand.body import Body, hand_with_arm
from ...hand.camera import Intrinsics
from ...hand.crop import MIRROR, mirror_pose
from ...hand.frames import DepthFrame
from ...hand.kinematics import clamp_angles, forward_kinematics, skin
from ...hand.poses import POSES
from ...hand.template import template
from .motion import minimum_jerk
from .poses import penetrates, sample_angles, sample_shape
from .rooms import ARM, FIRST_HAND, SECOND_NS, THINGS, Picture, intrinsics_of
from .scene import BOX, CYLINDER, Solid, joined, place, random_rotation
from .sensors import SENSORS, Sensor, Settings, draw_settings
from .stage import SPHERE, look_along

Motion = Literal["calibrate", "free", "line", "still"]
START_NS = SECOND_NS  # the reference clock when the clip begins
REACH_M = np.array([0.18, 0.15, 0.16])  # of the hand from the middle of the volume
TURN_RAD = np.radians([38.0, 65.0, 38.0])  # nodding, about the forearm, aside
BEND_RAD = np.radians([20.0, 5.0, 12.0])  # of the wrist
SPACING_DEG, OFFSET_S, POSE_S = 45.0, 0.015, (0.5, 1.1)
TO_CAMERAS = np.diag([-1.0, 1.0, -1.0])  # the upright hand in the room, palm to the cameras
PALM_M = np.array([0.0, 0.085, 0.0])  # the hand's middle in its own frame


class RigError(ValueError):
    """A clip that cannot be made; the message is one line."""


class Bump(NamedTuple):
    """From at_s on (reference time) a camera is turned by turn_rad (3,) and moved by move_m (3,), in its own frame."""

    camera: int
    at_s: float
    turn_rad: Array
    move_m: Array


class Way(NamedTuple):
    """How the hand moves: two waves of rate_hz (9, 2) and phase (9, 2) on place, turn and bend with size (9,); fingers
    rest in poses (K, 20) rad at times_s (K,) and go from one to the next."""

    size: Array
    rate_hz: Array
    phase: Array
    times_s: Array
    poses: Array


class RigClip(NamedTuple):
    """A recording of C cameras, and the truth. T_ref_cam (C, 4, 4) before any bump; offsets_s (C,): stamp + offset =
    reference time; phases_s (C,) when each took its first frame; alpha (6,), beta (7,) and is_left of the hand."""

    names: tuple[str, ...]
    intrinsics: tuple[Intrinsics, ...]
    T_ref_cam: Array
    offsets_s: Array
    phases_s: Array
    alpha: Array
    beta: Array
    is_left: bool
    seconds: float
    fps: float
    seed: int
    way: Way
    T_ref_room: Array
    sensor: Sensor
    settings: tuple[Settings | None, ...]
    depth_scales: tuple[float, ...]
    lost_share: float
    bump: Bump | None
    things: Solid

    @property
    def frame_count(self) -> int:
        """Of each camera, lost ones too."""
        return round(self.seconds * self.fps)

    def time_s(self, camera: int, i: int) -> float:
        """Reference time of a camera's frame i, from the clip's start."""
        return i / self.fps + float(self.phases_s[camera])

    def stamp_ns(self, camera: int, i: int) -> int:
        """What the camera's own clock says of its frame i."""
        return START_NS + round((self.time_s(camera, i) - self.offsets_s[camera]) * 1e9)

    def T_ref_cam_at(self, camera: int, t_s: float) -> Array:
        """Where a camera really is (4, 4) at a reference time."""
        pose: Array = self.T_ref_cam[camera]
        if self.bump is None or self.bump.camera != camera or t_s < self.bump.at_s:
            return pose
        return pose @ se3.transform(se3.so3_exp(np.asarray(self.bump.turn_rad)), np.asarray(self.bump.move_m))

    def theta(self, t_s: float) -> Array:
        """The pose (26,) in the rig frame, m and rad; of a left hand that of its mirror image, x -> -x there."""
        wrist, angles, _ = self._pose(t_s)
        return np.concatenate([wrist[:3, 3], se3.so3_log(wrist[:3, :3]), angles])

    def joints_ref_m(self, t_s: float) -> Array:
        """(21, 3) in the rig frame."""
        return self._hand(t_s)[0]

    def joints_m(self, camera: int, i: int) -> Array:
        """(21, 3) in the camera's frame when it took its frame i."""
        t_s = self.time_s(camera, i)
        return se3.apply(se3.inverse(self.T_ref_cam_at(camera, t_s)), self._hand(t_s)[0])

    def vertices_m(self, camera: int, i: int) -> Array:
        """(1609, 3) in the camera's frame when it took its frame i."""
        t_s = self.time_s(camera, i)
        vertices = self._hand(t_s)[1][: len(template().vertices_m)]
        return se3.apply(se3.inverse(self.T_ref_cam_at(camera, t_s)), vertices)

    def frame(self, camera: int, i: int) -> DepthFrame:
        """The camera's frame i, drawn now."""
        t_s = self.time_s(camera, i)
        pose = self.T_ref_cam_at(camera, t_s)
        picture = _room(self, camera, pose.tobytes()).copy()
        vertices = se3.apply(se3.inverse(pose), self._hand(t_s)[1])
        body, n_faces = _body(), len(template().faces)
        picture.draw(vertices, body.faces[:n_faces], FIRST_HAND)
        picture.draw(vertices, body.faces[n_faces:], ARM)
        ring = vertices[-20:]
        elbow = ring.mean(0)
        picture.draw(*place(SPHERE, np.eye(3), np.full(3, np.linalg.norm(ring - elbow, axis=1).mean()), elbow), ARM)
        if self.depth_scales[camera] != 1:
            picture.inverse /= np.float32(self.depth_scales[camera])
        noise = int(np.random.SeedSequence([self.seed, 8, camera, i]).generate_state(1)[0])
        frame = picture.frame(self.sensor, self.settings[camera], noise, i, self.stamp_ns(camera, i))
        return replace(frame, camera=self.names[camera])

    def frames(self, camera: int) -> Iterator[DepthFrame]:
        """The camera's frames in order, with its own stamps; lost ones are left out and leave a gap in `seq`."""
        lost = np.random.default_rng([self.seed, 9, camera]).random(self.frame_count) < self.lost_share
        return (self.frame(camera, i) for i in range(self.frame_count) if not lost[i])

    def _pose(self, t_s: float) -> tuple[Array, Array, Array]:
        """Wrist (4, 4) in the rig frame, mirrored for a left hand, angles (20,), and the bend (3, 3) of the wrist."""
        w = self.way
        wave = w.size * (np.sin(2 * np.pi * w.rate_hz * t_s + w.phase) @ (0.65, 0.35))  # (9,)
        bend = se3.so3_exp(wave[6:])
        arm = TO_CAMERAS @ se3.so3_exp(wave[3:6])
        wrist = se3.transform(arm @ bend, wave[:3] - arm @ bend @ PALM_M)
        after = min(max(int(np.searchsorted(w.times_s, t_s, "right")), 1), len(w.times_s) - 1)
        begin, end = w.times_s[after - 1 : after + 1]
        angles = w.poses[after - 1] + minimum_jerk((t_s - begin) / (end - begin)) * (
            w.poses[after] - w.poses[after - 1]
        )
        T_ref_room = mirror_pose(self.T_ref_room) if self.is_left else self.T_ref_room
        return T_ref_room @ wrist, angles, bend

    def _hand(self, t_s: float) -> tuple[Array, Array]:
        """Joints (21, 3), and vertices of hand and forearm (B, 3), in the rig frame."""
        t, body = template(), _body()
        wrist, angles, bend = self._pose(t_s)
        theta = np.concatenate([wrist[:3, 3], np.zeros(3), angles])[None]
        theta[0, 3:6] = se3.so3_log(wrist[:3, :3])
        skeleton = forward_kinematics(t, theta, self.alpha[None], self.beta[None])
        arm = np.concatenate([self.alpha[0] * wrist[:3, :3] @ bend.T, wrist[:3, 3:]], 1)
        parts = np.concatenate([skeleton.parts, arm[None, None]], 1)
        rest = body.vertices_m + np.tensordot(self.beta, body.morphs_m, 1)
        vertices = skin(body.weights, rest[None], parts)[0]
        sign = MIRROR if self.is_left else np.ones(3)
        return skeleton.joints_m[0] * sign, vertices * sign


def rig_clip(
    seed: int,
    *,
    cameras: int = 3,
    seconds: float = 10.0,
    fps: float = 60.0,
    offsets_s: Sequence[float] | None = None,
    sensor: str = "D435",
    noise: bool = True,
    alpha: Array | None = None,
    beta: Array | None = None,
    is_left: bool = False,
    motion: Motion = "calibrate",
    distance_m: float = 0.6,
    spacing_deg: float = SPACING_DEG,
    size: tuple[int, int] = (424, 240),
    clutter: bool = True,
    away: Sequence[int] = (),
    depth_scales: Sequence[float] | None = None,
    lost_share: float = 0.0,
    bump: Bump | None = None,
) -> RigClip:
    """A clip of this seed.

    offsets_s: one a camera, None draws up to 15 ms, the reference's is 0. sensor: a make or a mode of `SENSORS`.
    motion: "calibrate" an open hand through the volume, turning; "free" with poses of the prior; "line" to and fro
    along one line; "still". spacing_deg between neighbouring cameras. away: cameras that look the other way.
    depth_scales: each camera's depth times this. lost_share: of frames lost, alone. Raises RigError.
    """
    if motion not in get_args(Motion):
        raise RigError(f"motion {motion!r}: possible are {', '.join(get_args(Motion))}")
    if cameras < 1 or seconds <= 0 or fps <= 0:
        raise RigError(f"{cameras} cameras, {seconds:g} s at {fps:g} fps: all three must be more than 0")
    for what, given in (("offsets_s", offsets_s), ("depth_scales", depth_scales)):
        if given is not None and len(given) != cameras:
            raise RigError(f"{what} has {len(given)} numbers for {cameras} cameras")
    rng = np.random.default_rng([seed, 7])
    make, intrinsics = _sensor(sensor, size)
    T_room_cam = np.stack([_stand(rng, k, distance_m, spacing_deg, k in away) for k in range(cameras)])
    T_ref_room = se3.inverse(T_room_cam[0])
    offsets = rng.uniform(-OFFSET_S, OFFSET_S, cameras) * (np.arange(cameras) > 0)
    phases = rng.uniform(0, 1 / fps, cameras) * (np.arange(cameras) > 0)
    shape = sample_shape(rng)
    settings = tuple(draw_settings(make, rng) if noise else None for _ in range(cameras))
    return RigClip(
        names=tuple(f"cam{k}" for k in range(cameras)),
        intrinsics=(intrinsics,) * cameras,
        T_ref_cam=T_ref_room @ T_room_cam,
        offsets_s=offsets if offsets_s is None else np.asarray(offsets_s, float),
        phases_s=phases,
        alpha=shape[0] if alpha is None else np.asarray(alpha, float),
        beta=shape[1] if beta is None else np.asarray(beta, float),
        is_left=is_left,
        seconds=seconds,
        fps=fps,
        seed=seed,
        way=_way(np.random.default_rng([seed, 6]), motion, seconds),
        T_ref_room=T_ref_room,
        sensor=make,
        settings=settings,
        depth_scales=(1.0,) * cameras if depth_scales is None else tuple(depth_scales),
        lost_share=lost_share,
        bump=bump,
        things=_things(np.random.default_rng([seed, 5]), clutter),
    )


def _sensor(name: str, size: tuple[int, int]) -> tuple[Sensor, Intrinsics]:
    """The mode of that size, or the make's first at another."""
    modes = [s for s in SENSORS.values() if s.name.lower().startswith(name.lower())]
    if not modes:
        raise RigError(f"sensor {name!r}: possible are {', '.join(SENSORS)}")
    mode = next((s for s in modes if (s.width, s.height) == size), modes[0])
    camera = intrinsics_of(mode, size[0])
    return mode, replace(camera, height=size[1], cy=(size[1] - 1) / 2)


def _stand(rng: np.random.Generator, k: int, distance_m: float, spacing_deg: float, away: bool) -> Array:
    """T_room_cam (4, 4) of camera k: in front, then to the right and the left of it by turns, all a little above."""
    aside = math.radians(spacing_deg * ((k + 1) // 2) * (1 if k % 2 else -1) + rng.uniform(-5, 5))
    above = math.radians(rng.uniform(8, 32))
    way = np.array([math.sin(aside) * math.cos(above), math.sin(above), math.cos(aside) * math.cos(above)])
    position = distance_m * rng.uniform(0.9, 1.12) * way
    forward = rng.normal(0, 0.02, 3) - position
    rotation = look_along(-forward if away else forward, np.array([0, 1.0, 0]), rng.normal(0, 0.1))
    return se3.transform(rotation.T, position)


def _way(rng: np.random.Generator, motion: Motion, seconds: float) -> Way:
    size = np.concatenate([REACH_M, TURN_RAD, BEND_RAD])
    if motion == "still":
        size *= 0.015  # a hand held still trembles
    elif motion == "line":
        size[1:] *= 0.015
    rate = rng.uniform(0.11, 0.21, (9, 1)) * (1.0, 1.9)  # two waves each
    phase = rng.uniform(0, 2 * np.pi, (9, 2))
    t = template()
    times, poses = [0.0], [POSES["open"] if motion != "free" else sample_angles(t, rng)]
    while times[-1] < seconds:
        times.append(times[-1] + rng.uniform(*POSE_S))
        poses.append(_next_pose(rng, poses[-1]) if motion == "free" else _about_open(rng))
    return Way(size, rate, phase, np.array(times), np.stack(poses))


def _about_open(rng: np.random.Generator) -> Array:
    return clamp_angles(POSES["open"] + np.radians(3) * rng.standard_normal(20))


def _next_pose(rng: np.random.Generator, last: Array) -> Array:
    """Fingers that get there without passing through each other."""
    t = template()
    for _ in range(12):
        new = sample_angles(t, rng)
        steps = last + np.array([0.2, 0.4, 0.6, 0.8])[:, None] * (new - last)
        if not penetrates(t, steps).any():
            return new
    return last


def _things(rng: np.random.Generator, clutter: bool) -> Solid:
    """The room's walls, and with clutter a table below the volume with things on it."""
    things = [place(BOX, np.eye(3), np.array([2.2, 1.4, 2.4]), np.array([0, 0.2, 0.0]))]
    if clutter:
        top = -rng.uniform(0.4, 0.55)
        things.append(place(BOX, np.eye(3), np.array([0.7, 0.015, 0.5]), np.array([0, top - 0.015, -0.1])))
        for _ in range(int(rng.integers(2, 6))):
            half = rng.uniform(0.02, 0.06, 3)
            at = np.array([rng.uniform(-0.5, 0.5), top + half.max(), rng.uniform(-0.5, 0.1)])
            things.append(place(BOX if rng.random() < 0.5 else CYLINDER, random_rotation(rng), half, at))
    return joined(things)


@lru_cache(maxsize=1)
def _body() -> Body:
    return hand_with_arm(template())


_ROOMS: dict[tuple[Intrinsics, bytes, bytes, bytes], Picture] = {}


def _room(clip: RigClip, camera: int, pose: bytes) -> Picture:
    """What does not move, as the camera sees it; the last few are kept."""
    key = (clip.intrinsics[camera], pose, clip.T_ref_room.tobytes(), clip.things.vertices.tobytes())
    if key not in _ROOMS:
        if len(_ROOMS) > 12:
            _ROOMS.clear()
        T_cam_room = se3.inverse(np.frombuffer(pose).reshape(4, 4)) @ clip.T_ref_room
        _ROOMS[key] = Picture(clip.intrinsics[camera])
        _ROOMS[key].draw(se3.apply(T_cam_room, clip.things.vertices), clip.things.faces, THINGS)
    return _ROOMS[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cameras", type=int, default=3)
    parser.add_argument("--motion", choices=get_args(Motion), default="calibrate")
    parser.add_argument("--left", action="store_true", help="a left hand")
    options = parser.parse_args()
    clip = rig_clip(options.seed, cameras=options.cameras, motion=options.motion, is_left=options.left)
    cells = []
    for camera in range(options.cameras):
        view = view_of(clip.intrinsics[camera], [], (212, 120))
        for i in np.linspace(0, clip.frame_count - 1, 8).astype(int):
            grey = depth_picture(clip.frame(camera, i), [], view)
            cells.append(draw_joints(grey, [clip.joints_m(camera, i)], view))
    save_png(options.out, contact_sheet(cells, 8))


if __name__ == "__main__":
    main()
