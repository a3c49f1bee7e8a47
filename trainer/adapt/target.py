"""What the adaptation knows of its target before it learns: windows of depth, the user's shape, the teacher's hands."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...edge.look import trust
from ...edge.reading import MOST_LOG_ERROR, joint_weights
from ...edge.refit import Refit
from ...hand.arrays import Array
from ...hand.crop import CROP_SIZE, points_from_uvd
from ...hand.kinematics import Shape
from ...hand.whole import refusal, write_whole
from ..losses import metres
from ..synth.samples import CELLS, CUBE_M
from .augment import Estimate
from .fit import Fitted, Sight, Teacher
from .frames import AdaptError, Crop, Footage, View, cut_crop, depth_seen
from .shape import estimate_shape, trustworthy

TEACHER_POINTS = 250  # of the hand's depth points in a view
LOOK_BATCH = 32
CALM_NS = 150_000_000  # moments further apart say nothing of each other's fingers
CALM_REACH_M = 0.06  # nor do hands that have moved further
LEAST_MOMENTS = 6  # fewer teach too little; whether more did is the gate's to say


class Target(NamedTuple):
    """Arrays of N views and M moments: windows (N, W, W) uint16, distance_m (N,), T_ref_view (N, 4, 4), moment (N,);
    of the moments seq (M,), t_ns (M,), recording (M,), the teacher's T_ref_wrist (M, 4, 4), angles (M, 20),
    joints_m (M, 21, 3) in the reference frame, and good (M,): whether its hand may teach. alpha (6,), beta (7,).
    sources (S,): names of the recordings and the rig file; none in files of before."""

    windows: NDArray[np.uint16]
    distance_m: Array
    T_ref_view: Array
    moment: Array
    seq: Array
    t_ns: Array
    recording: Array
    T_ref_wrist: Array
    angles: Array
    joints_m: Array
    good: Array
    alpha: Array
    beta: Array
    sources: NDArray[np.str_] = np.array([], str)

    @property
    def shape(self) -> Shape:
        return Shape(self.alpha, self.beta)

    @property
    def cubes(self) -> tuple[float, float]:
        """The crops that the daemon cuts: while it does not know the hand, and once it does."""
        return CUBE_M, CUBE_M * float(self.alpha.mean())

    def view(self, i: int) -> View:
        return View(self.windows[i], float(self.distance_m[i]), self.T_ref_view[i], 0)

    def estimates(self) -> list[Estimate]:
        """The good poses as each of their views sees them."""
        return [
            Estimate(self.angles[m], T[:3, :3].T @ self.T_ref_wrist[m, :3, :3], float(distance))
            for m, T, distance in zip(self.moment, self.T_ref_view, self.distance_m, strict=True)
            if self.good[m]
        ]


def prepare(footage: Footage, net: nn.Module, say: Callable[[str], None] = lambda _: None) -> Target:
    """Shape first, then the teacher's hand of every moment. Raises AdaptError where too little can be seen."""
    moments = footage.moments
    if len(moments) < LEAST_MOMENTS:
        raise AdaptError(
            f"adapt: a hand was seen in {len(moments)} moments of {footage.frames} frames; at least {LEAST_MOMENTS} "
            "are needed: is the hand in the picture, and 0.2 to 1 m from the camera?"
        )
    views = [v for m in moments for v in m.views]
    owner = np.repeat(np.arange(len(moments)), [len(m.views) for m in moments])
    sights = look(net, [cut_crop(v, CUBE_M, CROP_SIZE) for v in views], views)
    by_moment = [[sights[i] for i in np.flatnonzero(owner == m)] for m in range(len(moments))]
    refit = Refit()
    shape, used = estimate_shape(by_moment, refit, say)
    if used < 5:
        raise AdaptError("adapt: the network's hands do not fit the depth of this recording; nothing to learn from")
    fits = teach(by_moment, shape, [m.t_ns for m in moments], [m.recording for m in moments], refit, say)
    good = np.array([trustworthy(f) for f in fits])
    if good.sum() < LEAST_MOMENTS:
        raise AdaptError(f"adapt: only {good.sum()} of {len(fits)} moments were fitted well enough to learn from")
    return Target(
        np.stack([v.window for v in views]),
        np.array([v.distance_m for v in views]),
        np.stack([v.T_ref_view for v in views]),
        owner,
        np.array([m.seq for m in moments]),
        np.array([m.t_ns for m in moments]),
        np.array([m.recording for m in moments]),
        np.stack([f.T_ref_wrist for f in fits]),
        np.stack([f.angles for f in fits]),
        np.stack([f.joints_m for f in fits]),
        good,
        *shape,
    )


def teach(
    moments: Sequence[Sequence[Sight]], shape: Shape, t_ns: Sequence[int], recording: Sequence[int],
    refit: Refit | None = None, say: Callable[[str], None] = lambda _: None,
) -> list[Fitted]:  # fmt: skip
    """A hand for every moment: each for itself, then once more beside its neighbours in time."""
    teacher = Teacher(shape, refit)
    fits = []
    for i, sights in enumerate(moments):
        fits.append(teacher(sights))
        if i % 100 == 99:
            say(f"teacher: {i + 1} of {len(moments)} moments")
    calmed = []
    for i, sights in enumerate(moments):
        near = [
            j
            for j in (i - 1, i + 1)
            if 0 <= j < len(moments)
            and recording[j] == recording[i]
            and abs(t_ns[j] - t_ns[i]) <= CALM_NS
            and np.linalg.norm(fits[j].joints_m.mean(0) - fits[i].joints_m.mean(0)) < CALM_REACH_M
        ]
        calm = np.mean([fits[j].angles for j in near], 0) if len(near) == 2 else None
        calmed.append(fits[i] if calm is None else teacher(sights, fits[i], calm, steps=3))
    return calmed


@torch.no_grad()
def look(net: nn.Module, crops: Sequence[Crop], views: Sequence[View]) -> list[Sight]:
    """What the network and the depth say of crops: the same that the daemon's `Look` holds."""
    net.eval()
    joint_vertices, _ = joint_weights()
    sights = []
    for first in range(0, len(crops), LOOK_BATCH):
        some = crops[first : first + LOOK_BATCH]
        out = net(torch.from_numpy(np.stack([c.image for c in some]))[:, None])
        uvd, error = out.vertices_uvd.numpy(), np.exp(np.minimum(out.log_error.numpy(), MOST_LOG_ERROR))
        hand = out.hand_logit.numpy().reshape(-1, CELLS, CELLS) > 0
        for k, crop in enumerate(some):
            vertices = points_from_uvd(uvd[k].astype(np.float64), crop.distance_m, crop.cube_m)
            expected = joint_vertices @ error[k] * (crop.cube_m / 2)
            points = points_of(crop, hand[k])
            depth = depth_seen(views[first + k], crop, CROP_SIZE)
            slope = crop.cube_m / 2 / crop.distance_m
            sights.append(Sight(vertices, trust(expected), points, crop.T_ref_crop, depth, slope))
    return sights


def points_of(crop: Crop, hand: Array, most: int = TEACHER_POINTS) -> Array:
    """Depth points (N, 3) m of the cells (32, 32) taken for hand, evenly over the picture, in the crop's frame."""
    depth = crop.image[::2, ::2]
    rows, columns = np.nonzero(hand & (depth < 1))
    if len(rows) > most:
        pick = np.linspace(0, len(rows) - 1, most).astype(int)
        rows, columns = rows[pick], columns[pick]
    uvd = np.stack([(4 * columns + 1) / CROP_SIZE - 1, (4 * rows + 1) / CROP_SIZE - 1, depth[rows, columns]], -1)
    return points_from_uvd(uvd, crop.distance_m, crop.cube_m)


def cell_points(image: Tensor, distance_m: Tensor, cube_m: Tensor) -> tuple[Tensor, Tensor]:
    """All cells' depth points (B, 1024, 3) m of crops (B, S, S), and which of them are readings (B, 1024) bool."""
    size = image.shape[-1]
    depth = image[:, ::2, ::2].flatten(1)  # (B, P)
    at = (4 * torch.arange(size // 2, dtype=image.dtype, device=image.device) + 1) / size - 1
    v, u = torch.meshgrid(at, at, indexing="ij")
    uvd = torch.stack([u.flatten().expand_as(depth), v.flatten().expand_as(depth), depth], -1)
    return metres(uvd, distance_m, cube_m), depth < 0.999


def save_target(target: Target, path: Path) -> None:
    """Write it whole or not at all, for --resume."""
    np.savez(arrays := io.BytesIO(), **target._asdict())
    try:
        write_whole(path, arrays.getbuffer())
    except OSError as error:
        raise AdaptError(f"{path} cannot be written: {refusal(error)}") from None


def load_target(path: Path) -> Target:
    """Read what `save_target` wrote. Raises AdaptError."""
    try:
        with np.load(path) as file:
            return Target(**{name: file[name] for name in file.files})
    except (OSError, ValueError, TypeError) as error:
        raise AdaptError(f"{path}: not the target of an adaptation ({' '.join(str(error).split())[:80]})") from None
