"""Synthetic training crops with labels: one deterministic sample a seed, batches of them in a worker process."""

from __future__ import annotations

import multiprocessing as mp
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...hand import se3
from ...hand.body import Body, hand_with_arm
from ...hand.crop import CROP_SIZE, reduce_2x2, uvd_from_points
from ...hand.kinematics import forward_kinematics, skin
from ...hand.template import HandTemplate, template
from .poses import sample_angles, sample_shape, sample_view
from .render import draw_ellipsoid, draw_plane, rasterise
from .sensor import corrupt, sample_noise

Array = NDArray[Any]
CUBE_M = 0.25
CELLS = CROP_SIZE // 2  # correspondences are learned at half the crop's resolution (Dual Grid Net, section 3.6)
STREAMS = {"train": 0, "val": 1, "test": 2}  # disjoint seed streams
PATCH = 96  # px, the largest sensor patch rendered
VIEWS_PER_HAND = {"train": 4, "val": 1, "test": 1}  # a posed hand costs as much as a picture of it
HANDS = 64  # hands whose views are interleaved, so that the views of one come in different batches


class Sample(NamedTuple):
    """One crop and its labels, or a batch of them with a leading axis.

    image (64, 64) in [-1, 1]; uv (32, 32, 2) layout coordinates in [0, 1] where on_hand (32, 32) is true;
    vertices_uvd (1609, 3), joints_uvd (21, 3) in half cubes; distance_m, cube_m scalars; is_right: whether the image
    shows a right hand (labels of a left one are those of its mirror image and must not be used).
    """

    image: Array
    uv: Array
    on_hand: Array
    vertices_uvd: Array
    joints_uvd: Array
    distance_m: Array
    cube_m: Array
    is_right: Array


class Generator:
    """Renders samples; owns the buffers it draws in. left_share of the samples are mirrored into left hands."""

    def __init__(self, stream: str, seed: int = 0, left_share: float = 0.0) -> None:
        self.template: HandTemplate = template()
        self.body: Body = hand_with_arm(self.template)
        self.key = (STREAMS[stream], seed)
        self.left_share = left_share
        self.views_per_hand = VIEWS_PER_HAND[stream]
        self._hands: dict[int, tuple[int, Array, Array]] = {}
        s = PATCH
        self._depth = np.zeros((s, s), np.float32)
        self._face = np.zeros((s, s), np.int32)
        self._weight = np.zeros((s, s, 2), np.float32)
        self._noisy = np.zeros((s, s), np.float32)
        self._face_uv = _face_layout(self.body)

    def sample(self, index: int) -> Sample:
        """The sample of this index: the same for ever, whatever was drawn before it."""
        rng = np.random.default_rng([*self.key, 0, index])
        distance = float(np.exp(rng.uniform(np.log(0.22), np.log(1.2))))
        joints, body_vertices = self._place(rng, index, distance)
        vertices = body_vertices[: len(self.template.vertices_m)]
        size = self._patch_size(rng, distance)
        slope = CUBE_M / 2 / distance
        depth, face = self._depth[:size, :size], self._face[:size, :size]
        weight = self._weight[:size, :size]
        rasterise(body_vertices.astype(np.float32), self.body.faces, slope, size, depth, face, weight)
        self._clutter(rng, joints, body_vertices, slope, size)
        clean = np.where(depth > 0, 1 / np.maximum(depth, 1e-6), 0).astype(np.float32)
        noise = sample_noise(rng, distance)
        noisy = self._noisy[:size, :size]
        corrupt(clean, *noise, int(rng.integers(2**31)), noisy)
        image = crop_patch(noisy, distance)
        on_hand, uv = self._correspondences(noisy, face, weight, distance)
        right = rng.random() >= self.left_share
        if not right:
            image = image[:, ::-1]
        return Sample(
            image,
            uv,
            on_hand & right,
            uvd_from_points(vertices, distance, CUBE_M).astype(np.float32),
            uvd_from_points(joints, distance, CUBE_M).astype(np.float32),
            np.float32(distance),
            np.float32(CUBE_M),
            np.asarray(right),
        )

    def batch(self, start: int, n: int) -> Sample:
        """Samples start .. start + n - 1, stacked."""
        samples = [self.sample(i) for i in range(start, start + n)]
        return Sample(*(np.stack(column) for column in zip(*samples, strict=True)))

    def _hand(self, index: int) -> tuple[Array, Array]:
        """The posed hand that this sample shows: joints (21, 3) and body vertices (B, 3) m in the hand's frame."""
        hand = index // (HANDS * self.views_per_hand) * HANDS + index % HANDS
        slot = hand % HANDS
        if slot not in self._hands or self._hands[slot][0] != hand:
            self._hands[slot] = (hand, *self._pose(np.random.default_rng([*self.key, 1, hand])))
        return self._hands[slot][1:]

    def _pose(self, rng: np.random.Generator) -> tuple[Array, Array]:
        t, body = self.template, self.body
        theta = np.zeros((1, 26))
        theta[0, 6:] = sample_angles(t, rng)
        alpha, beta = sample_shape(rng)
        skeleton = forward_kinematics(t, theta, alpha[None], beta[None])
        arm = np.zeros((1, 1, 3, 4))
        arm[..., :3] = alpha[0] * se3.so3_exp(
            np.radians([rng.normal(0, 25), rng.normal(0, 15), rng.normal(0, 12)]).clip(-0.9, 0.9)
        )
        parts = np.concatenate([skeleton.parts, arm], 1)  # (1, 17, 3, 4)
        rest = body.vertices_m + np.tensordot(beta, body.morphs_m, 1)
        if rng.random() < 0.35:  # a sleeve or a thick arm
            start = rng.uniform(0, 4)
            centre = rest[body.arm_level >= 1].mean(0)
            axis = centre / np.linalg.norm(centre)
            from_axis = rest - np.outer(rest @ axis, axis)
            rest = rest + np.where(body.arm_level > start, rng.uniform(0.05, 0.7), 0)[:, None] * from_axis
        return skeleton.joints_m[0], skin(body.weights, rest[None], parts)[0]

    def _place(self, rng: np.random.Generator, index: int, distance: float) -> tuple[Array, Array]:
        """Joints and body vertices, m, in the crop's frame: some view, the cube's centre beside the joints' mean."""
        joints, vertices = self._hand(index)
        rotation = sample_view(rng)
        jitter = rng.normal(0, rng.choice([0.004, 0.012, 0.02]), 3)
        offset = np.array([0, 0, distance]) + jitter - rotation @ joints.mean(0)
        return joints @ rotation.T + offset, vertices @ rotation.T + offset

    def _patch_size(self, rng: np.random.Generator, distance: float) -> int:
        """Sensor pixels across the cube, at most `PATCH`: the crop hardly sees more, and drawing costs their square."""
        focal = np.exp(rng.uniform(np.log(190), np.log(900)))  # px; 320x240 to 1280x720 sensors
        return int(np.clip(focal * CUBE_M / distance, 48, PATCH))

    def _clutter(self, rng: np.random.Generator, joints: Array, vertices: Array, slope: float, size: int) -> None:
        depth, face = self._depth[:size, :size], self._face[:size, :size]
        kind = rng.random()
        if kind < 0.35:  # a wall, table or chest behind, a hand's breadth or less away
            normal = rng.normal(0, 0.25, 3) + (0, 0, 1)
            normal /= np.linalg.norm(normal)
            gap = rng.choice([rng.uniform(0.002, 0.02), rng.uniform(0.02, 0.15)])
            near = vertices[: len(self.template.vertices_m)] if rng.random() < 0.5 else vertices
            draw_plane(normal, float((near @ normal).max() + gap), slope, size, depth, face)
        if rng.random() < 0.3:
            for _ in range(int(rng.integers(1, 4))):
                axes = rng.uniform(0.012, 0.08, 3)
                centre = joints.mean(0) + rng.uniform(-0.15, 0.15, 3)
                reach = axes.max() + 0.014
                if np.linalg.norm(joints - centre, axis=1).min() < reach or centre[2] < 0.15:
                    continue
                q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
                draw_ellipsoid(centre, np.ascontiguousarray((q / axes).T), slope, size, depth, face)

    def _correspondences(self, noisy: Array, face: Array, weight: Array, distance: float) -> tuple[Array, Array]:
        """Layout coordinates of the sensor pixel nearest to each cell's centre, where that pixel shows the hand."""
        size = len(noisy)
        pick = np.minimum(((np.arange(CELLS) + 0.5) * size / CELLS).astype(int), size - 1)
        at = np.ix_(pick, pick)
        f = face[at]
        near = np.abs(noisy[at] - distance) < CUBE_M / 2
        on_hand = (f >= 0) & (f < len(self.template.faces)) & near
        corner = self._face_uv[np.where(on_hand, f, 0)]  # (32, 32, 3, 2)
        w = weight[at]
        bary = np.concatenate([w, 1 - w.sum(-1, keepdims=True)], -1)
        uv = (corner * bary[..., None]).sum(2)
        return on_hand, np.where(on_hand[..., None], uv, 0).astype(np.float32)


def crop_patch(depth_m: Array, distance: float) -> NDArray[np.float32]:
    """A sensor patch (N, N) m that spans the cube, through the daemon's own crop rule, to (64, 64)."""
    pick = np.minimum(((np.arange(2 * CROP_SIZE) + 0.5) * len(depth_m) / (2 * CROP_SIZE)).astype(int), len(depth_m) - 1)
    z = depth_m[np.ix_(pick, pick)]
    d = np.where(z > 0, (z - distance) / (CUBE_M / 2), np.inf).astype(np.float32)
    return reduce_2x2(d)


def _face_layout(body: Body) -> Array:
    """Layout coordinates of each hand face's corners (F_hand, 3, 2), on one side of the seam."""
    uv = body.uv[body.faces]  # (F, 3 corners, 2 entries, 2)
    on_hand = ~np.isnan(uv).any((1, 2, 3))
    uv = uv[on_hand]
    # A vertex on the seam has two entries; take the combination with the shortest outline.
    best, corners = np.full(len(uv), np.inf), np.zeros((len(uv), 3, 2))
    for choice in np.ndindex(2, 2, 2):
        c = np.stack([uv[:, k, choice[k]] for k in range(3)], 1)
        outline = sum(np.linalg.norm(c[:, k] - c[:, k - 1], axis=1) for k in range(3))
        shorter = outline < best
        best, corners = np.where(shorter, outline, best), np.where(shorter[:, None, None], c, corners)
    return corners


def stream_batches(
    stream: str, start: int, batch: int, *, seed: int = 0, left_share: float = 0.0, workers: int = 1
) -> Iterator[Sample]:
    """Endless batches from sample index start on, rendered ahead in worker processes, in order of index."""
    context = mp.get_context("spawn")
    queues = [context.Queue(maxsize=4) for _ in range(workers)]
    processes = [
        context.Process(
            target=_work, args=(q, stream, start + i * batch, batch, workers, seed, left_share), daemon=True
        )
        for i, q in enumerate(queues)
    ]
    with _single_threaded():
        for p in processes:
            p.start()
    try:
        while True:
            for q, p in zip(queues, processes, strict=True):
                while True:
                    try:
                        item = q.get(timeout=5)
                        break
                    except Exception:
                        if not p.is_alive():
                            raise RuntimeError("the rendering process died; its message stands above") from None
                yield Sample(*item)
    finally:
        for p in processes:
            p.terminate()


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes started inside keep their numeric libraries to one thread; these read the variable as they load."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(queue: Any, stream: str, start: int, batch: int, workers: int, seed: int, left_share: float) -> None:
    generator = Generator(stream, seed, left_share)
    while True:
        queue.put(tuple(generator.batch(start, batch)))
        start += batch * workers
