"""The synthetic camera: a right hand that moves in front of a person, for those without a camera and for tests.

The scene is a function of the seed and the frame's number alone. `truth` tells where the joints are.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...hand import se3
from ...hand.arrays import Array
from ...hand.body import hand_with_arm
from ...hand.camera import Intrinsics
from ...hand.frames import DepthFrame
from ...hand.kinematics import forward_kinematics, pose_hand, skin
from ...hand.poses import POSES
from ...hand.render import render_depth
from ...hand.template import template
from ..camera_mode import Mode, parse_mode
from ..pace import Pacer
from . import CameraError, FrameTimeout

DEPTH_UNIT_M = 0.001
FOCAL = 0.8  # focal length over the image's shorter side, as a RealSense D435 has
BASELINE_M = 0.05  # between the sensor's two eyes
SIGMA_PER_M = 0.0025  # noise of a reading over z^2: a tenth of a pixel of disparity, roughly
EDGE_M = 0.02  # a step in depth greater than this is an edge
EDGE_LOSS = 0.35  # share of the readings lost beside an edge


class Key(NamedTuple):
    """A hand shape, the roll (deg; 0 = palm to the camera, 180 = back) and lean to the right (deg) of the forearm."""

    pose: str
    roll: float
    lean: float


SHOW = (
    Key("open", 0, 0),
    Key("spread", -12, -6),
    Key("fist", 10, 4),
    Key("point", 20, 8),
    Key("victory", -5, 0),
    Key("relaxed", 60, 12),
    Key("pinch", 75, 14),
    Key("ok", 35, 4),
    Key("open", 15, 0),
    Key("relaxed", 110, 14),
    Key("flat", 170, 28),
    Key("thumb_up", 172, 50),
    Key("grasp", 120, 22),
    Key("loose_fist", 55, 8),
)
KEY_S = 1.8  # from one shape to the next
MOVE_S = 1.1  # of which the fingers move


def open_camera(source: str | None, *, mode: str = "640x480@30", fps: float | None = None) -> SyntheticCamera:
    """Open the scene; source is its seed (0), fps None = the mode's rate, 0 = as fast as possible. It never ends."""
    return SyntheticCamera(check_camera(source, mode=mode, fps=fps), mode, fps)


def check_camera(source: str | None, *, mode: str = "640x480@30", fps: float | None = None) -> int:
    """The scene's seed. Raises CameraError."""
    if source is not None and not (source.isascii() and source.isdecimal()):
        raise CameraError(f"synthetic {source!r}: --source is the scene's seed, a whole number such as 7")
    _size(mode)
    Pacer(fps)
    return int(source or 0)


class SyntheticCamera:
    """Shows the scene frame by frame, none dropped, t_ns = when the frame is due; draws one frame ahead."""

    def __init__(self, seed: int = 0, mode: str = "640x480@30", fps: float | None = None) -> None:
        size = _size(mode)
        focal = FOCAL * min(size.width, size.height)
        self.name = f"synthetic-{seed}"
        self.intrinsics = Intrinsics(size.width, size.height, focal, focal, (size.width - 1) / 2, (size.height - 1) / 2)
        self._pacer = Pacer(fps)
        self.fps = float(fps or size.fps)
        self._seed = seed
        self._hand = _MovingHand(np.random.default_rng([seed, 0]))
        self.alpha, self.beta = self._hand.alpha, self._hand.beta  # the hand's shape
        self._background = _background(self.intrinsics)
        self._background_edges = np.flatnonzero(_beside_edges(self._background))
        # One field of noise, shifted at random from frame to frame.
        self._noise = _noise(np.random.default_rng([seed, 1]), size.height + 64, size.width + 64)
        self._seq = 0
        self._painter = ThreadPoolExecutor(1, thread_name_prefix="synthetic")
        self._next = self._painter.submit(self.frame, 0)

    def read(self, timeout_s: float = 1.0) -> DepthFrame:
        """The next frame, once it is due. Raises FrameTimeout."""
        deadline_ns = time.monotonic_ns() + round(timeout_s * 1e9)
        frame = self._wait(timeout_s)
        due_ns = self._pacer.wait(frame.t_ns, deadline_ns)
        self._seq += 1
        self._next = self._painter.submit(self.frame, self._seq)
        return replace(frame, t_ns=due_ns)

    def frame(self, seq: int) -> DepthFrame:
        """The frame of this number, with t_ns counted from the start of the scene."""
        rng = np.random.default_rng([self._seed, 2, seq])
        z = self._background.copy()  # (H, W) m
        lost = self._background_edges[rng.random(len(self._background_edges), np.float32) < EDGE_LOSS]
        hand = render_depth(*self._hand.mesh(seq / self.fps), self.intrinsics)
        lost = lost[hand.ravel()[lost] == 0]
        drawn_rows, drawn_columns = (np.flatnonzero(hand.any(axis)) for axis in (1, 0))
        shadow_px = round(0.1 * self.intrinsics.fx)
        rows = slice(max(0, drawn_rows[0] - 1), drawn_rows[-1] + 2)
        columns = slice(max(0, drawn_columns[0] - shadow_px), drawn_columns[-1] + 2)
        patch, near = z[rows, columns], hand[rows, columns]
        np.copyto(patch, near, where=(near > 0) & (near < patch))
        unseen = _shadow(patch, near, self.intrinsics.fx * BASELINE_M)
        edges = _beside_edges(patch)
        unseen |= edges & (rng.random(edges.shape, np.float32) < EDGE_LOSS)

        height, width = z.shape
        row, column = rng.integers(64, size=2)
        noise = self._noise[row : row + height, column : column + width]
        counts = np.rint((z + z * z * noise) / np.float32(DEPTH_UNIT_M)).astype(np.uint16)
        counts.ravel()[lost] = 0
        counts[rows, columns][unseen] = 0
        t_ns = round(seq * 1e9 / self.fps)
        return DepthFrame(self.name, seq, t_ns, counts, DEPTH_UNIT_M, self.intrinsics)

    def truth(self, seq: int) -> Array:
        """The joints (21, 3) of the hand in frame seq, m in the camera's frame."""
        return self._hand.joints(seq / self.fps)

    def theta(self, seq: int) -> Array:
        """The pose (26,) of the hand in frame seq, m and rad."""
        return self._hand.pose(seq / self.fps)[0]

    def close(self) -> None:
        self._painter.shutdown(wait=True, cancel_futures=True)

    def _wait(self, timeout_s: float) -> DepthFrame:
        try:
            return self._next.result(timeout_s)
        except FutureTimeout:
            raise FrameTimeout(f"{self.name}: the next frame was not drawn within {timeout_s:g} s") from None

    def __enter__(self) -> SyntheticCamera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _MovingHand:
    """A right hand, its forearm and upper arm over time; the generator decides its shape and its wandering."""

    SHOULDER_M = np.array([-0.03, 0.12, 1.04])

    def __init__(self, rng: np.random.Generator) -> None:
        self._template = template()
        self._body = hand_with_arm(self._template)
        self.alpha = rng.normal(1, 0.02, 6).clip(0.95, 1.05)
        self.beta = rng.normal(0, 0.3, 7).clip(-0.6, 0.6)
        self._rest = self._body.vertices_m + np.tensordot(self.beta, self._body.morphs_m, 1)
        self._elbow_ring = np.arange(len(self._rest) - 20, len(self._rest))
        capsule = _capsule_faces()
        self._faces = np.concatenate([self._body.faces, capsule + len(self._rest)]).astype(np.int32)
        # Two slow waves on each of: x, y, z of the hand, its roll, the forearm's lean and dip, the wrist's two bends.
        self._rate_hz = rng.uniform([0.06], [0.16], (8, 2)) * (1.0, 1.7)
        self._phase = rng.uniform(0, 2 * np.pi, (8, 2))

    def joints(self, t_s: float) -> Array:
        joints, _ = pose_hand(self._template, self.pose(t_s)[0][None], self.alpha[None], self.beta[None])
        return joints[0]

    def mesh(self, t_s: float) -> tuple[Array, Array]:
        """Vertices (B, 3) m in the camera frame and faces of hand, forearm and upper arm."""
        theta, R_camera_arm = self.pose(t_s)
        parts = forward_kinematics(self._template, theta[None], self.alpha[None], self.beta[None]).parts
        arm = np.concatenate([R_camera_arm * self.alpha[0], theta[:3, None]], 1)  # (3, 4)
        parts = np.concatenate([parts, arm[None, None]], 1)  # (1, 17, 3, 4)
        vertices = skin(self._body.weights, self._rest[None], parts)[0]
        ring = vertices[self._elbow_ring]
        elbow = ring.mean(0)
        radius = float(np.linalg.norm(ring - elbow, axis=1).mean())
        return np.concatenate([vertices, _capsule(elbow, radius, self.SHOULDER_M, 1.35 * radius)]), self._faces

    def pose(self, t_s: float) -> tuple[Array, Array]:
        """theta (26,) and R_camera_arm (3, 3), the forearm's frame: the hand's own if the wrist were straight."""
        wave = np.sin(2 * np.pi * self._rate_hz * t_s + self._phase) @ (0.65, 0.35)  # (8,) in [-1, 1]
        angles, roll, lean = _show(t_s)
        roll += np.radians(12) * wave[3]
        lean += np.radians(6) * wave[4]
        dip = np.radians(20 + 9 * wave[5])  # the hand is nearer to the camera than the elbow
        forearm = np.array([np.sin(lean) * np.cos(dip), -np.cos(lean) * np.cos(dip), -np.sin(dip)])
        across = np.cross(forearm, (0, 0, 1))
        across /= np.linalg.norm(across)
        upright = np.stack([across, forearm, np.cross(across, forearm)], 1)  # the palm towards the camera
        R_camera_arm = upright @ se3.so3_exp(np.array([0, roll, 0]))
        bend = np.radians([-6 + 11 * wave[6], 0, 7 * wave[7]])
        R_camera_wrist = R_camera_arm @ se3.so3_exp(bend)
        middle = np.array([0.05 * wave[0], -0.01 + 0.035 * wave[1], 0.47 + 0.085 * wave[2]])  # of the hand
        theta = np.empty(26)
        theta[:3] = middle - 0.085 * R_camera_wrist[:, 1]
        theta[3:6] = se3.so3_log(R_camera_wrist)
        theta[6:] = angles
        return theta, R_camera_arm


def _size(mode: str) -> Mode:
    size = parse_mode(mode)
    if min(size.width, size.height) < 48 or size.fps < 1:
        raise CameraError(f"mode {mode}: the synthetic camera needs at least 48x48@1")
    return size


def _show(t_s: float) -> tuple[Array, float, float]:
    """Joint angles (20,) rad, roll and lean rad of the show at this time."""
    lap, fraction = divmod(t_s / KEY_S, 1.0)
    a, b = SHOW[int(lap) % len(SHOW)], SHOW[(int(lap) + 1) % len(SHOW)]
    start, end = POSES[a.pose], POSES[b.pose]
    moved = max(0.0, 1 - (1 - fraction) * KEY_S / MOVE_S)  # the shape is held, then changes
    # A closing thumb comes last and an opening one leaves first, or it would pass through the fingers.
    closes = end[4:].sum() > start[4:].sum()
    fingers = _ease(moved / 0.75 if closes else (moved - 0.25) / 0.75)
    thumb = _ease((moved - 0.25) / 0.75 if closes else moved / 0.75)
    mix = np.where(np.arange(20) < 4, thumb, fingers)
    turned = _ease(fraction)
    roll, lean = (x + turned * (y - x) for x, y in ((a.roll, b.roll), (a.lean, b.lean)))
    return start + mix * (end - start), np.radians(roll), np.radians(lean)


def _ease(x: float) -> float:
    """From 0 at 0 to 1 at 1, without a jolt."""
    x = min(max(x, 0.0), 1.0)
    return x * x * x * (10 + x * (6 * x - 15))


def _background(intrinsics: Intrinsics) -> NDArray[np.float32]:
    """Depth (H, W) m of a person before a wall, empty-handed."""
    pixels = np.stack(np.meshgrid(np.arange(intrinsics.width), np.arange(intrinsics.height)), -1)
    rays = intrinsics.rays(pixels)
    inverse = rays @ np.array([0.1, 0.02, 1.0]) / 2.1  # the wall, a little askew
    chest, hips, neck = (0.17, 0.34, 1.14), (0.17, 0.75, 1.15), (0.17, -0.1, 1.13)
    for centre, axes in (
        (chest, (0.17, 0.34, 0.115)),
        (hips, (0.17, 0.25, 0.13)),
        ((0.17, 0.12, 1.14), (0.215, 0.085, 0.08)),  # shoulders
        (neck, (0.055, 0.12, 0.055)),
        ((0.17, -0.24, 1.11), (0.078, 0.115, 0.095)),  # head
        ((0.39, 0.35, 1.13), (0.052, 0.26, 0.055)),  # the other arm
    ):
        np.maximum(inverse, _inverse_depth_of_ellipsoid(rays, np.array(centre), np.array(axes)), out=inverse)
    return (1 / inverse).astype(np.float32)


def _inverse_depth_of_ellipsoid(rays: Array, centre: Array, axes: Array) -> Array:
    """1/z (H, W) of the near side, 0 beside it."""
    ray, middle = rays / axes, centre / axes
    a, b, c = (ray * ray).sum(-1), ray @ middle, middle @ middle - 1
    inside = b * b - a * c
    return np.where(inside > 0, a / (b - np.sqrt(np.maximum(inside, 0))), 0)


RINGS, SPOKES = 10, 14  # of the capsule


def _capsule(start: Array, start_radius: float, end: Array, end_radius: float) -> Array:
    """Vertices (RINGS * SPOKES, 3) of a round-ended, tapered tube."""
    axis = (end - start) / np.linalg.norm(end - start)
    side = np.cross(axis, (0, 0, 1))
    side /= np.linalg.norm(side)
    circle = 2 * np.pi * np.arange(SPOKES) / SPOKES
    spokes = np.outer(np.cos(circle), side) + np.outer(np.sin(circle), np.cross(axis, side))  # (SPOKES, 3)
    latitude = np.linspace(-np.pi / 2, 0, RINGS // 2)
    centre = np.repeat([start, end], RINGS // 2, 0)  # (RINGS, 3)
    radius = np.repeat([start_radius, end_radius], RINGS // 2)
    latitude = np.concatenate([latitude, -latitude[::-1]])
    along = centre + np.outer(radius * np.sin(latitude), axis)
    return (along[:, None] + (radius * np.cos(latitude))[:, None, None] * spokes).reshape(-1, 3)


def _capsule_faces() -> Array:
    ring, spoke = np.meshgrid(np.arange(RINGS - 1), np.arange(SPOKES), indexing="ij")
    a = (ring * SPOKES + spoke).ravel()
    b = (ring * SPOKES + (spoke + 1) % SPOKES).ravel()
    return np.concatenate([np.stack([a, b, a + SPOKES], 1), np.stack([b, b + SPOKES, a + SPOKES], 1)])


def _beside_edges(z: Array) -> NDArray[np.bool_]:
    """Pixels (H, W) on either side of a step in depth."""
    beside = np.zeros(z.shape, bool)
    across = np.abs(z[:, 1:] - z[:, :-1]) > EDGE_M
    down = np.abs(z[1:] - z[:-1]) > EDGE_M
    beside[:, 1:] |= across
    beside[:, :-1] |= across
    beside[1:] |= down
    beside[:-1] |= down
    return beside


def _shadow(z: Array, near: Array, focal_baseline: float) -> NDArray[np.bool_]:
    """Pixels that the sensor's right eye cannot see for the hand; z (H, W) m is all, near (H, W) m the hand alone."""
    column = np.arange(z.shape[1], dtype=np.float32)
    cast = np.where(near > 0, column - focal_baseline / np.maximum(near, 0.1), np.inf)  # column in the right eye
    leftmost = np.minimum.accumulate(cast[:, ::-1], 1)[:, ::-1]  # of all that lies further right in the left eye
    return leftmost < column - focal_baseline / z - 0.5


def _noise(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Noise (height, width) over z^2, in 1/m, partly shared by neighbours as stereo matching makes it."""
    white = rng.standard_normal((height, width), np.float32)
    rows = white + np.roll(white, 1, 0) + np.roll(white, 2, 0)
    shared = (rows + np.roll(rows, 1, 1) + np.roll(rows, 2, 1)) / 3
    return ((0.5 * white + 0.8 * shared) * SIGMA_PER_M).astype(np.float32)
