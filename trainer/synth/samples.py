"""Synthetic training crops with labels: one deterministic sample a seed, batches of them in a worker process."""

from __future__ import annotations

import atexit
import multiprocessing as mp
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...hand import se3
from ...hand.arrays import Array
from ...hand.body import Body, hand_with_arm
from ...hand.crop import CROP_SIZE, reduce_2x2, uvd_from_points
from ...hand.kinematics import Shape
from ...hand.template import HandTemplate, template
from ..processes import ONE_THREAD, environment, when_parent_ends
from . import scene
from .layout import coordinates_at
from .poses import sample_angles, sample_shape, sample_view
from .render import rasterise
from .scene import Solid
from .sensors import SENSORS, Sensor, corrupt, draw_settings

CUBE_M = 0.25
CELLS = 32  # correspondences are learned at half the crop's resolution (Dual Grid Net, section 3.6)
STREAMS = {"train": 0, "val": 1, "test": 2}  # disjoint seed streams
KINDS = ("full", "sensorless", "clean")
PATCH = 96  # px, the largest sensor patch rendered, for crops of 64
VIEWS_PER_HAND = {"train": 4, "val": 1, "test": 1}  # a posed hand costs as much as a picture of it
HANDS = 64  # hands whose views are interleaved, so that the views of one come in different batches
NEAR_M, FAR_M = 0.2, 1.3


class Sample(NamedTuple):
    """One crop and its labels, or a batch of them with a leading axis.

    image (S, S) in [-1, 1]; uv (32, 32, 2) layout coordinates in [0, 1] where on_hand (32, 32) is true;
    vertices_uvd (1609, 3), joints_uvd (21, 3) in half cubes; distance_m, cube_m scalars; is_right: whether the image
    shows a right hand (labels of a left one are those of its mirror image and must not be used); is_hand: whether it
    shows a hand at all (if not, only distance_m and cube_m mean something).
    """

    image: Array
    uv: Array
    on_hand: Array
    vertices_uvd: Array
    joints_uvd: Array
    distance_m: Array
    cube_m: Array
    is_right: Array
    is_hand: Array


class Generator:
    """Renders samples; owns the buffers it draws in.

    left_share of the samples are mirrored into left hands, negative_share show no hand. kind: "full" has scenes and
    sensors, "sensorless" scenes seen without error, "clean" a hand alone seen without error (DeepHPS, section 5).
    sensors: names of the cameras (`sensors.py`) to draw from.
    """

    def __init__(
        self,
        stream: str,
        seed: int = 0,
        left_share: float = 0.0,
        *,
        negative_share: float = 0.0,
        kind: str = "full",
        image_px: int = CROP_SIZE,
        sensors: Sequence[str] = tuple(SENSORS),
    ) -> None:
        if stream not in STREAMS or kind not in KINDS:
            raise ValueError(f"samples {stream}, {kind}: possible are {', '.join(STREAMS)} and {', '.join(KINDS)}")
        if not sensors or not set(sensors) <= set(SENSORS):
            raise ValueError(f"samples of sensors {', '.join(sensors) or 'none'}: possible are {', '.join(SENSORS)}")
        self.sensors = list(sensors)
        self.template: HandTemplate = template()
        self.body: Body = hand_with_arm(self.template)
        self.key = (STREAMS[stream], seed)
        self.left_share, self.negative_share, self.kind = left_share, negative_share, kind
        self.image_px = image_px
        self.patch_px = PATCH * image_px // CROP_SIZE
        self.views_per_hand = VIEWS_PER_HAND[stream]
        self._hands: dict[int, tuple[int, Array, Array]] = {}
        s = self.patch_px
        self._depth = np.zeros((s, s), np.float32)
        self._face = np.zeros((s, s), np.int32)
        self._weight = np.zeros((s, s, 2), np.float32)
        self._noisy = np.zeros((s, s), np.float32)
        arm = self.body.faces[(self.body.arm_level[self.body.faces] > 0.4).all(1)]
        self._arm_vertices, renumbered = np.unique(arm, return_inverse=True)
        self._arm_faces = renumbered.reshape(arm.shape).astype(np.int32)

    def sample(self, index: int) -> Sample:
        """The sample of this index: the same for ever, whatever was drawn before it."""
        rng = np.random.default_rng([*self.key, 0, index])
        sensor = SENSORS[rng.choice(self.sensors)]
        distance = _distance(rng, sensor)
        focal = sensor.focal_px
        size = int(np.clip(focal * CUBE_M / distance, 40, self.patch_px))
        slope = CUBE_M / 2 / distance
        is_hand, right = rng.random() >= self.negative_share, rng.random() >= self.left_share
        depth, face, weight = self._depth[:size, :size], self._face[:size, :size], self._weight[:size, :size]
        joints, solid = self._hand_scene(rng, index, distance) if is_hand else self._other_scene(rng, index, distance)
        rasterise(solid.vertices.astype(np.float32), solid.faces, slope, size, depth, face, weight)
        hand = (
            solid.vertices[: len(self.template.vertices_m)] if is_hand else np.zeros((len(self.template.vertices_m), 3))
        )
        if self.kind != "clean":
            near = hand if is_hand and rng.random() < 0.5 else solid.vertices
            scene.draw_background(rng, near, slope, depth, face)
            if rng.random() < (0.2 if is_hand else 0.6):
                scene.draw_clutter(rng, joints, slope, depth, face)
        noisy = self._noisy[:size, :size]
        noisy[:] = np.where(depth > 0, 1 / np.maximum(depth, 1e-6), 0)
        if self.kind == "full":
            settings = draw_settings(sensor, rng)
            if not right:  # the picture is mirrored below; the camera is not, and its shadows must not tell the side
                settings = settings._replace(shadow_side=-settings.shadow_side)
            corrupt(noisy.copy(), size * distance / CUBE_M, sensor, settings, int(rng.integers(2**31)), noisy)
        joints_uvd = uvd_from_points(joints, distance, CUBE_M)
        if self.kind != "clean" and rng.random() < 0.1:
            scene.cut_at_border(rng, joints_uvd[:, :2], noisy)
        image = crop_patch(noisy, distance, self.image_px)
        on_hand, uv = self._correspondences(noisy, face, weight, distance)
        if not right:
            image = image[:, ::-1]
        return Sample(
            image,
            uv,
            on_hand & right & is_hand,
            uvd_from_points(hand, distance, CUBE_M).astype(np.float32) if is_hand else hand.astype(np.float32),
            (joints_uvd * is_hand).astype(np.float32),
            np.float32(distance),
            np.float32(CUBE_M),
            np.asarray(right),
            np.asarray(is_hand),
        )

    def batch(self, start: int, n: int) -> Sample:
        """Samples start .. start + n - 1, stacked."""
        return stacked([self.sample(i) for i in range(start, start + n)])

    def _hand(self, index: int, other: int = 0) -> tuple[Array, Array]:
        """The posed hand that this sample shows: joints (21, 3) and body vertices (B, 3) m in the hand's frame.

        other picks another hand of the same 64 instead.
        """
        hand = index // (HANDS * self.views_per_hand) * HANDS + (index + other) % HANDS
        slot = hand % HANDS
        if slot not in self._hands or self._hands[slot][0] != hand:
            self._hands[slot] = (hand, *self._pose(np.random.default_rng([*self.key, 1, hand])))
        return self._hands[slot][1:]

    def _pose(self, rng: np.random.Generator) -> tuple[Array, Array]:
        angles, shape = sample_angles(self.template, rng), Shape(*sample_shape(rng))
        return scene.hand_on_arm(rng, self.body, angles, shape, dressed=self.kind != "clean")

    def _hand_scene(self, rng: np.random.Generator, index: int, distance: float) -> tuple[Array, Solid]:
        """Joints and meshes in the crop's frame, the hand's first: some view, the cube's centre near the joints'."""
        joints, vertices = self._hand(index)
        rotation = _palm_view(rng) if self.kind == "clean" else sample_view(rng)
        offset = np.array([0, 0, distance]) + off_centre(rng) - rotation @ joints.mean(0)
        joints, body = joints @ rotation.T + offset, Solid(vertices @ rotation.T + offset, self.body.faces)
        more: list[Solid | None] = []
        if self.kind != "clean":
            if rng.random() < 0.18:
                more.append(scene.held_object(rng, joints))
            if rng.random() < 0.1:
                other_joints, other = self._hand(index, 1 + int(rng.integers(HANDS - 1)))
                more.append(scene.second_hand(rng, joints, other_joints, Solid(other, self.body.faces)))
        return joints, scene.joined([body, *(m for m in more if m)])

    def _other_scene(self, rng: np.random.Generator, index: int, distance: float) -> tuple[Array, Solid]:
        """As `_hand_scene`, of something else than a hand; the joints are a point in the middle."""
        _, vertices = self._hand(index)
        arm = Solid(vertices[self._arm_vertices], self._arm_faces)
        return np.tile([0.0, 0.0, distance], (21, 1)), scene.without_hand(rng, arm, distance)

    def _correspondences(self, noisy: Array, face: Array, weight: Array, distance: float) -> tuple[Array, Array]:
        """Layout coordinates of the sensor pixel nearest to each cell's centre, where that pixel shows the hand."""
        size = len(noisy)
        pick = np.minimum(((np.arange(CELLS) + 0.5) * size / CELLS).astype(int), size - 1)
        at = np.ix_(pick, pick)
        f = face[at]
        near = np.abs(noisy[at] - distance) < CUBE_M / 2
        on_hand = (f >= 0) & (f < len(self.template.faces)) & near
        return on_hand, coordinates_at(f, weight[at], on_hand).astype(np.float32)


def stacked(samples: Sequence[Sample]) -> Sample:
    """Samples as a batch."""
    return Sample(*(np.stack(column) for column in zip(*samples, strict=True)))


def off_centre(rng: np.random.Generator) -> Array:
    """How far (3,) m a cube's centre is from the mean of the joints."""
    return rng.normal(0, rng.choice([0.004, 0.012, 0.02]), 3)


def crop_patch(depth_m: Array, distance: float, size: int = CROP_SIZE) -> NDArray[np.float32]:
    """A sensor patch (N, N) m that spans the cube, through the daemon's own crop rule, to (size, size)."""
    pick = np.minimum(((np.arange(2 * size) + 0.5) * len(depth_m) / (2 * size)).astype(int), len(depth_m) - 1)
    z = depth_m[np.ix_(pick, pick)]
    d = np.where(z > 0, (z - distance) / (CUBE_M / 2), np.inf).astype(np.float32)
    return reduce_2x2(d)


def _distance(rng: np.random.Generator, sensor: Sensor) -> float:
    """Where a hand is, m: evenly spread in the logarithm, within what the sensor reads."""
    near, far = max(NEAR_M, sensor.min_z_m + CUBE_M / 5), min(FAR_M, sensor.max_z_m)
    return float(np.exp(rng.uniform(np.log(near), np.log(far))))


def _palm_view(rng: np.random.Generator) -> Array:
    """DeepHPS, section 5: the palm faces the camera, fingers up, then three turns of the hand (ranges are ours)."""
    palm_up = np.array([[-1.0, 0, 0], [0, -1, 0], [0, 0, 1]])  # the hand's z is its back: away from the camera
    long, across, front = np.radians(rng.uniform([-90, -45, -90], [90, 45, 90]))
    turn = se3.so3_exp(np.array([0, 0, front])) @ se3.so3_exp(np.array([across, 0, 0]))
    return turn @ se3.so3_exp(np.array([0, long, 0])) @ palm_up


class RendererDied(Exception):
    """A worker process of `stream_batches` was killed, or has failed and said so itself."""


def stream_batches(
    stream: str, start: int, batch: int, *, seed: int = 0, left_share: float = 0.0, workers: int = 1, **options: Any
) -> Iterator[Sample]:
    """Endless batches from sample index start on, rendered ahead in worker processes, in order of index.

    options are those of `Generator`. Signals to stop are for who draws: the workers end when this does. Raises
    RendererDied once one of them ends before.
    """
    context = mp.get_context("spawn")
    queues = [context.Queue(maxsize=4) for _ in range(workers)]
    processes = [
        context.Process(
            target=_work, args=(q, start + i * batch, batch, workers, stream, seed, left_share, options), daemon=True
        )
        for i, q in enumerate(queues)
    ]

    def end() -> None:
        for p in processes:
            p.kill()

    ours = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # the workers keep it
    try:
        with environment(ONE_THREAD):
            for p, q in zip(processes, queues, strict=True):
                p.start()
                q._writer.close()  # type: ignore[attr-defined]  # who holds it too never hears that the worker died
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, ours)
    atexit.register(end)  # there multiprocessing would send SIGTERM and wait
    try:
        while True:
            for q, p in zip(queues, processes, strict=True):
                while True:
                    try:
                        item = q.get(timeout=5)
                        break
                    except Exception:
                        if not p.is_alive():
                            raise RendererDied from None
                yield Sample(*item)
    finally:
        end()
        atexit.unregister(end)


def _work(queue: Any, start: int, batch: int, workers: int, stream: str, seed: int, left: float, options: Any) -> None:
    when_parent_ends(lambda: os._exit(1))
    generator = Generator(stream, seed, left, **options)
    while True:
        queue.put(tuple(generator.batch(start, batch)))
        start += batch * workers
