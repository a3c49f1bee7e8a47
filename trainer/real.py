"""Real frames that have joints but no mesh, a share of every batch (DeepHPS, Malik et al. 2018, section 6.2, eq. 8).

All frames of a labelled set (`datasets/`) are read once, at the start. Of each stays a window of depth around the hand,
seen straight on, from which the daemon's own crop rule cuts every sample anew, beside the true centre as rendered ones.
A set's joints are compared with the means of ours that its scheme names; those that it does not score have no weight.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..hand.arrays import Array
from ..hand.crop import MIRROR, crop_depth, square_camera, uvd_from_points
from ..hand.frames import DepthFrame, HandRoi
from ..hand.template import template
from .checkpoint import TrainConfig, TrainError
from .datasets import Dataset, DatasetError, Label, Scheme, dataset_kinds, open_dataset
from .losses import Labels, together
from .nets import net_module
from .parallel import Group
from .synth.samples import CELLS, CUBE_M, STREAMS

MARGIN_M = 0.03  # how far a crop's centre strays from the truth's at most
WINDOW_M = CUBE_M + 2 * MARGIN_M
NEAREST_M = WINDOW_M / 2  # of a hand's middle: all of a window lies before its camera
UNIT_M = 1e-4  # of a window's counts
JOINTS = 21
KEY = len(STREAMS)  # a stream of seeds beside those of rendered samples
LEAST = 0.01  # of a window's pixels must be readings
SAY_S = 10


@dataclass(frozen=True, eq=False)
class RealHands:
    """The frames of a set, as right hands, that samples are cut from.

    windows (N, W, W) uint16 counts of UNIT_M, 0 no reading, of a camera that looks straight at the mean of the labelled
    joints distance_m (N,) away; joints_m (N, J, 3) in its frame; left_share of the samples are mirrored back.
    """

    windows: NDArray[np.uint16]
    distance_m: Array
    joints_m: Array
    scheme: Scheme
    summary: str
    image_px: int
    seed: int = 0
    left_share: float = 0.0
    device: str = "cpu"

    def batch(self, start: int, n: int) -> Labels:
        """Samples start .. start + n - 1, each the same for ever; of every len(windows) in a row each shows another
        frame."""
        columns = zip(*(self._sample(i) for i in range(start, start + n)), strict=True)
        image, joints_uvd, distance, right = (self._tensor(np.stack(column)) for column in columns)
        j, yes = self.joints_m.shape[1], self._tensor(np.ones(n, bool))
        mix, weight = np.zeros((JOINTS, JOINTS), np.float32), np.zeros(JOINTS, np.float32)
        mix[:j], weight[:j] = self.scheme.from_ours, self.scheme.scored
        return Labels(
            image=image,
            uv=torch.zeros(n, CELLS, CELLS, 2, device=self.device),
            on_hand=torch.zeros(n, CELLS, CELLS, dtype=torch.bool, device=self.device),
            vertices_uvd=torch.zeros(n, len(template().vertices_m), 3, device=self.device),
            joints_uvd=joints_uvd,
            distance_m=distance,
            cube_m=torch.full_like(distance, CUBE_M),
            is_right=right,
            is_hand=yes,
            has_mesh=~yes,
            joint_weight=self._tensor(weight).expand(n, -1),
            joint_mix=self._tensor(mix).expand(n, -1, -1),
        )

    def _sample(self, index: int) -> tuple[Array, Array, Array, Array]:
        """Image (S, S); joints (21, 3) half cubes, zero beyond J; distance m; whether it shows a right hand."""
        turn, at = divmod(index, len(self.windows))
        frame = int(order(self.seed, turn, len(self.windows))[at])
        rng = np.random.default_rng([KEY, self.seed, 0, index])
        away = rng.normal(0, rng.choice([0.004, 0.012, 0.02]), 3).clip(-MARGIN_M, MARGIN_M)  # as rendered samples'
        right = rng.random() >= self.left_share
        counts, distance = self.windows[frame], float(self.distance_m[frame])
        roi = HandRoi("right", np.array([0, 0, distance]) + away, CUBE_M, 1.0)
        camera = square_camera(len(counts), distance, WINDOW_M)
        crop = crop_depth(DepthFrame("window", index, 0, counts, UNIT_M, camera), roi, self.image_px)
        joints = self.joints_m[frame] @ crop.R_camera_crop  # (J, 3) in the crop's frame
        uvd = np.zeros((JOINTS, 3), np.float32)
        uvd[: len(joints)] = uvd_from_points(joints, crop.distance_m, CUBE_M)
        image = crop.image if right else crop.image[:, ::-1]
        return image, uvd, np.float32(crop.distance_m), np.asarray(right)  # type: ignore[return-value]

    def _tensor(self, x: Array) -> Tensor:
        return torch.as_tensor(x).to(self.device)


@lru_cache(2)  # a batch reaches into two turns at most, and a large set's takes longer to draw than its sample
def order(seed: int, turn: int, n: int) -> NDArray[np.int64]:
    """In which order (n,) the frames come in a turn."""
    return np.random.default_rng([KEY, seed, 1, turn]).permutation(n)


def open_real(
    config: TrainConfig, group: Group | None = None, say: Callable[[str], None] = lambda _: None
) -> RealHands | None:
    """The frames of config.real, if it names any. Raises TrainError for a set that cannot be used."""
    if config.real is None:
        return None
    group = group or Group()
    real_count(config, group)  # before the work
    if config.real.partition(":")[0] not in dataset_kinds():
        raise TrainError(f"--real {config.real}: expected KIND:PATH with KIND one of {', '.join(dataset_kinds())}")
    try:
        dataset = open_dataset(config.real)
        if not dataset.scheme.scored.any() or len(dataset.scheme.names) > JOINTS:
            raise DatasetError(f"--real {config.real}: none of its joints is like ours")
        image_px = net_module(config.net).IMAGE_PX
        windows, distances, joints = read_windows(dataset, config.real, 2 * image_px, say)
    except DatasetError as error:
        raise TrainError(str(error).replace("--data", "--real")) from None
    n, left_out, scored = len(windows), len(dataset.labels) - len(windows), int(dataset.scheme.scored.sum())
    summary = f"--real {config.real}: {n:,} frames, {scored} of {len(dataset.scheme.names)} joints count"
    if left_out:
        summary += (
            f"; {left_out:,} of {len(dataset.labels):,} show nothing where the hand should be, "
            f"or one nearer than {NEAREST_M:g} m, and are left out"
        )
    return RealHands(
        windows, distances, joints, dataset.scheme, summary, image_px, config.seed, config.left_share, group.device
    )


def real_count(config: TrainConfig, group: Group) -> int:
    """How many of a process's samples of a batch are real; at least one, and at least one is not."""
    share = config.batch // group.size
    n = round(share * config.real_share)
    if not 0 < n < share:
        which = "no" if n < 1 else "every"
        raise TrainError(
            f"--real-share {config.real_share:g}: {which} sample would be real of a process's {share} a step"
        )
    return n


def read_windows(
    dataset: Dataset, spec: str, size: int, say: Callable[[str], None] = lambda _: None
) -> tuple[NDArray[np.uint16], Array, Array]:
    """Windows (N, size, size), their distances (N,) m and joints (N, J, 3) m, of the frames that show something."""
    kept, said = 0, time.monotonic()
    windows = np.empty((len(dataset.labels), size, size), np.uint16)
    distances, joints = [], []
    for i, (label, frame) in enumerate(zip(dataset.labels, dataset.frames(), strict=True)):
        found = window_of(frame, label, size)
        if found and (found[0] > 0).mean() >= LEAST:
            windows[kept] = found[0]
            distances.append(found[1])
            joints.append(found[2])
            kept += 1
        if time.monotonic() - said > SAY_S:
            said = time.monotonic()
            say(f"--real {spec}: read {i + 1:,} of {len(dataset.labels):,} frames")
    if not kept:
        first, n = dataset.labels[0], len(dataset.labels)
        raise DatasetError(
            f"--real {spec}: none of {n} frames shows anything where its label says, {NEAREST_M:g} m away or more; "
            f"frame {first.name} is labelled at {(first.joints_mm.mean(0) / 1e3).round(3).tolist()} m"
        )
    return windows[:kept], np.array(distances), np.array(joints)


def window_of(frame: DepthFrame, label: Label, size: int) -> tuple[NDArray[np.uint16], float, Array] | None:
    """The window (size, size) of a frame around its label, its distance m, and the joints (J, 3) m in its frame; None
    of a hand that is too near."""
    centre = label.joints_mm.mean(0) / 1e3
    if centre[2] < NEAREST_M:
        return None
    left = label.side == "left"
    crop = crop_depth(frame, HandRoi(label.side, centre, WINDOW_M, 1.0), size, mirrored=left)
    z = np.where(crop.image < 1, crop.distance_m + crop.image * (WINDOW_M / 2), 0)
    joints = label.joints_mm / 1e3 @ crop.R_camera_crop * (MIRROR if left else 1)
    return np.rint(z / UNIT_M).clip(0, 65535).astype(np.uint16), crop.distance_m, joints


def joined(rendered: Labels, real: Labels) -> Labels:
    """Both in one batch, the rendered first; these have a mesh and all of our joints."""
    n, device = len(rendered.image), rendered.image.device
    whole = rendered._replace(
        has_mesh=torch.ones(n, dtype=torch.bool, device=device),
        joint_weight=torch.ones(n, JOINTS, device=device),
        joint_mix=torch.eye(JOINTS, device=device).expand(n, -1, -1),
    )
    return together(whole, real)
