"""Rendered rooms as the finder sees them, kept on disk: pictures of their parts and where the hands are, in shards of
500."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...edge.finder import NEAREST_M, PICTURE, Part, resample, whole_view
from ...hand.arrays import Array
from ...hand.camera import Intrinsics
from ...hand.frames import DepthFrame
from ...hand.whole import refusal
from ..checkpoint import TrainError

SHARD = 500  # pictures a file
HANDS = 6  # at most, a picture
UNIT_M = 1e-4
OUTSIDE = 65535  # count of a pixel outside the frame
SEEN, HARDLY_SEEN = 0.35, 0.05  # shares of a hand: from the first on it is to be found, below the other it is not there
WANTED_M = 0.18, 1.35  # so far away are hands to be found
PART_ZOOM = 1.2, 1.8  # of a part of a view over that of all of it
RECORD = np.dtype(
    [("picture", "<u2", (PICTURE.height, PICTURE.width)), ("part", "<f4", 3), ("hands", "<f4", (HANDS, 5))]
)


class Hands(NamedTuple):
    """Up to K hands of B pictures: centre_m (B, K, 3) in the picture (`edge.finder.Part`), right (B, K) bool, seen (B,
    K) in [0, 1], and role (B, K): 1 to be found, 0 neither hand nor background, since it is hardly seen or too near or
    far, -1 no hand."""

    centre_m: Array
    right: Array
    seen: Array
    role: Array


def record(frame: DepthFrame, hands: Iterable[Any], part: Part | None = None) -> Array:
    """Part of a scene, all of it by default, as a () array of RECORD; hands as `rooms.SceneHand`: side, joints_m
    (21, 3), seen, of which the record has what the part shows."""
    part = part or whole_view(frame.intrinsics)
    out = np.zeros((), RECORD)
    z = resample(frame, part)
    out["picture"] = np.where(z < 0, OUTSIDE, np.rint(np.minimum(z / UNIT_M, OUTSIDE - 1)))
    out["part"] = part
    out["hands"] = np.nan
    best = sorted(hands, key=lambda hand: -hand.seen)[:HANDS]
    for row, hand in zip(out["hands"], best, strict=False):
        in_frame = _inside(frame.intrinsics, hand.joints_m)
        in_picture = _inside(PICTURE, part.to_picture(hand.joints_m))
        seen = hand.seen * (in_frame & in_picture).sum() / max(in_frame.sum(), 1)
        row[:] = *hand.joints_m.mean(0), hand.side == "right", seen
    return out


def _inside(camera: Intrinsics, points: Array) -> NDArray[np.bool_]:
    """Which of the points (N, 3) m the camera's image holds."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = camera.project(points).T
    return np.asarray((points[:, 2] > 0) & (abs(x - (camera.width - 1) / 2) <= camera.width / 2)
                      & (abs(y - (camera.height - 1) / 2) <= camera.height / 2))  # fmt: skip


def random_part(camera: Intrinsics, hands: Sequence[Any], rng: np.random.Generator) -> Part:
    """Some part of a camera's view, seen closer, every other time about a hand if there is one."""
    all_of_it = whole_view(camera)
    zoom = all_of_it.zoom * math.exp(rng.uniform(*np.log(PART_ZOOM)))
    width, height = PICTURE.width / PICTURE.fx, PICTURE.height / PICTURE.fy
    room = np.array([width, height]) * (1 / all_of_it.zoom - 1 / zoom) / 2  # so far may the middle be off
    off = rng.uniform(-room, room)
    if hands and rng.random() < 0.5:
        x, y, z = hands[int(rng.integers(len(hands)))].joints_m.mean(0)
        aside = rng.uniform(-0.4, 0.4, 2) * (width, height) / zoom
        off = np.clip((x / z - all_of_it.x, y / z - all_of_it.y) + aside, -room, room)
    return Part(zoom, all_of_it.x + float(off[0]), all_of_it.y + float(off[1]))


def shard_path(cache: Path, stream: str, number: int) -> Path:
    return cache / f"{stream}-{number:04d}.npy"


def render_shards(cache: Path, stream: str, numbers: Iterable[int], picture: Callable[[int], Array]) -> None:
    """Write those of the shards that are not there yet; shard k holds pictures 500 k to 500 k + 499."""
    cache.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = shard_path(cache, stream, number)
        if path.exists():
            continue
        made = np.zeros(SHARD, RECORD)
        for i in range(SHARD):
            made[i] = picture(number * SHARD + i)
        temporary = path.with_suffix(f".tmp{os.getpid()}")
        with temporary.open("wb") as file:
            np.save(file, made)
        os.replace(temporary, path)


def open_shards(cache: Path, stream: str, first: int = 0) -> list[Array]:
    """The shards there are, from number `first` on, each (500,) of RECORD, mapped into memory. Raises TrainError."""
    paths = [path for path in sorted(cache.glob(f"{stream}-*.npy")) if int(path.stem.split("-")[1]) >= first]
    return [_open_shard(path) for path in paths]


def _open_shard(path: Path) -> Array:
    try:
        shard: Array = np.load(path, mmap_mode="r")
    except OSError as error:
        raise TrainError(f"{path}: cannot be read ({refusal(error)})") from None
    except (ValueError, EOFError):
        shard = np.zeros(0)
    if shard.dtype != RECORD or shard.shape != (SHARD,):
        raise TrainError(f"{path}: not {SHARD} rendered pictures, or a damaged file; remove it, and render it again")
    return shard


def depth_m(pictures: Array) -> NDArray[np.float32]:
    """Counts (..., 112, 160) to depth m as `edge.finder.resample` gives it."""
    return np.where(pictures == OUTSIDE, np.float32(-1), pictures * np.float32(UNIT_M)).astype(np.float32)


def hands_of(rows: Array) -> Hands:
    """Records (B,) to their hands."""
    labels = rows["hands"]
    there = np.isfinite(labels[..., 0])
    values = np.nan_to_num(labels)
    z, seen = values[..., 2], values[..., 4]
    centre = Part(*rows["part"].T[..., None]).to_picture(values[..., :3])
    wanted = (seen >= SEEN) & (z >= WANTED_M[0]) & (z <= WANTED_M[1]) & (centre[..., 2] > NEAREST_M)
    role = np.where(wanted, 1, np.where(seen >= HARDLY_SEEN, 0, -1))
    return Hands(centre, values[..., 3] > 0.5, seen, np.where(there, role, -1))


def in_frame(rows: Array) -> Hands:
    """`hands_of` with centre_m in the frame."""
    return hands_of(rows)._replace(centre_m=np.nan_to_num(rows["hands"][..., :3]))


def vary(z: Array, hands: Hands, rng: np.random.Generator) -> tuple[Array, Hands]:
    """Pictures (B, 112, 160) m and hands as they might have been as well: mirrored, turned aside a little, somewhat
    larger or smaller, seen by a camera of a narrower view, with pixels lost."""
    z, centre = z.copy(), hands.centre_m.copy()
    right, role = hands.right.copy(), hands.role.copy()
    height, width = z.shape[1:]
    for i in range(len(z)):
        if rng.random() < 0.5:
            z[i] = z[i, :, ::-1]
            centre[i, :, 0] *= -1
            right[i] = ~right[i]
        if rng.random() < 0.7:  # a small turn moves the picture and leaves depth nearly as it is
            dx, dy = int(rng.integers(-10, 11)), int(rng.integers(-8, 9))
            z[i] = _shift(z[i], dx, dy)
            centre[i, :, :2] += np.array([dx, dy]) * centre[i, :, 2:] / PICTURE.fx
        scale = np.exp(np.clip(rng.normal(0, 0.05), -0.12, 0.12))
        z[i] = np.where(z[i] > 0, z[i] * np.float32(scale), z[i])
        centre[i] *= scale
        if rng.random() < 0.3:
            half = (rng.uniform(0.45, 1) * width / 2, rng.uniform(0.5, 1) * height / 2)
            _narrow(z[i], centre[i], role[i], half)
        if rng.random() < 0.3:
            z[i][(rng.random((height, width)) < 0.08 * rng.random() ** 2) & (z[i] > 0)] = 0
        if rng.random() < 0.2:  # dark cloth gives no readings
            lost = _blobs(rng, height, width, 0.2 * rng.random())
            z[i][lost & (z[i] > 0)] = 0
        for _ in range(int(rng.integers(4))):
            _shatter(z[i], rng)
    return z, Hands(centre, right, hands.seen, role)


def _blobs(
    rng: np.random.Generator, height: int, width: int, share: float, cell: float | None = None
) -> NDArray[np.bool_]:
    """Blobs of about cell px, else 3 to 10, that cover about such a share of a picture: where smooth noise is high."""
    cell = cell or rng.uniform(3, 10)
    field = rng.standard_normal((int(height / cell) + 2, int(width / cell) + 2))
    for axis, n in ((0, height), (1, width)):
        at = np.arange(n) / cell
        low, t = at.astype(int), np.expand_dims(at % 1, 1 - axis)
        field = np.take(field, low, axis) * (1 - t) + np.take(field, low + 1, axis) * t
    return field > np.quantile(field, 1 - share)


def _shatter(z: Array, rng: np.random.Generator) -> None:
    """Leave pieces of what is about some place: hair, glasses and beards make such of faces, as if they had fingers."""
    row, column = (int(rng.integers(n)) for n in z.shape)
    if z[row, column] <= 0:
        return
    reach = min(rng.uniform(0.08, 0.25) * PICTURE.fx / z[row, column], 60)  # px
    top, left = max(int(row - reach), 0), max(int(column - reach), 0)
    near = z[top : int(row + reach) + 1, left : int(column + reach) + 1]
    y, x = np.ogrid[: near.shape[0], : near.shape[1]]
    cell = rng.uniform(0.01, 0.05) * PICTURE.fx / z[row, column]
    lost = _blobs(rng, near.shape[0], near.shape[1], rng.uniform(0.1, 0.6), cell=max(cell, 1.0))
    lost &= (y + top - row) ** 2 + (x + left - column) ** 2 < reach**2
    near[lost & (near > 0)] = 0


def _shift(z: Array, dx: int, dy: int) -> Array:
    out = np.full_like(z, -1)
    h, w = z.shape
    out[max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)] = z[
        max(-dy, 0) : h + min(-dy, 0), max(-dx, 0) : w + min(-dx, 0)
    ]
    return out


def _narrow(z: Array, centre: Array, role: Array, half: tuple[float, float]) -> None:
    """Hide what lies outside the middle, half[0] by half[1] px to either side; hands cut there are not learned."""
    h, w = z.shape
    z[np.abs(np.arange(h) - (h - 1) / 2) > half[1]] = -1
    z[:, np.abs(np.arange(w) - (w - 1) / 2) > half[0]] = -1
    per_px = np.maximum(centre[:, 2], 0.05) / PICTURE.fx
    margin = np.minimum(half[0] - np.abs(centre[:, 0] / per_px), half[1] - np.abs(centre[:, 1] / per_px)) * per_px
    role[(role == 1) & (margin < 0.03)] = 0
