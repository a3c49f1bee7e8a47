"""Rendered rooms as the finder sees them, kept on disk: pictures and where the hands are, in shards of 500."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...edge.finder import PICTURE, resample
from ...hand.arrays import Array
from ...hand.frames import DepthFrame
from ...hand.whole import refusal
from ..checkpoint import TrainError

SHARD = 500  # scenes a file
HANDS = 6  # at most, a picture
UNIT_M = 1e-4
OUTSIDE = 65535  # count of a pixel outside the frame
SEEN, HARDLY_SEEN = 0.35, 0.05  # shares of a hand: from the first on it is to be found, below the other it is not there
NEAREST_M, FARTHEST_M = 0.18, 1.35  # so far away are hands to be found
RECORD = np.dtype([("picture", "<u2", (PICTURE.height, PICTURE.width)), ("hands", "<f4", (HANDS, 5))])


class Hands(NamedTuple):
    """Up to K hands of B pictures: centre_m (B, K, 3), right (B, K) bool, seen (B, K) in [0, 1], and role (B, K): 1 to
    be found, 0 neither hand nor background, since it is hardly seen or too near or far, -1 no hand."""

    centre_m: Array
    right: Array
    seen: Array
    role: Array


def record(frame: DepthFrame, hands: Iterable[Any]) -> Array:
    """A scene as a () array of RECORD; hands as `rooms.SceneHand`: side, joints_m (21, 3), seen."""
    out = np.zeros((), RECORD)
    z = resample(frame)
    out["picture"] = np.where(z < 0, OUTSIDE, np.rint(np.minimum(z / UNIT_M, OUTSIDE - 1)))
    out["hands"] = np.nan
    best = sorted(hands, key=lambda hand: -hand.seen)[:HANDS]
    for row, hand in zip(out["hands"], best, strict=False):
        row[:] = *hand.joints_m.mean(0), hand.side == "right", hand.seen
    return out


def shard_path(cache: Path, stream: str, number: int) -> Path:
    return cache / f"{stream}-{number:04d}.npy"


def render_shards(cache: Path, stream: str, numbers: Iterable[int], scene: Callable[[int], Any]) -> None:
    """Write those of the shards that are not there yet; shard k holds scenes 500 k to 500 k + 499."""
    cache.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = shard_path(cache, stream, number)
        if path.exists():
            continue
        made = np.zeros(SHARD, RECORD)
        for i in range(SHARD):
            drawn = scene(number * SHARD + i)
            made[i] = record(drawn.frame, drawn.hands)
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
        raise TrainError(f"{path}: not {SHARD} rendered scenes, or a damaged file; remove it, and render it again")
    return shard


def depth_m(pictures: Array) -> NDArray[np.float32]:
    """Counts (..., 112, 160) to depth m as `edge.finder.resample` gives it."""
    return np.where(pictures == OUTSIDE, np.float32(-1), pictures * np.float32(UNIT_M)).astype(np.float32)


def hands_of(rows: Array) -> Hands:
    """Labels (B, K, 5) to hands."""
    there = np.isfinite(rows[..., 0])
    values = np.nan_to_num(rows)
    z, seen = values[..., 2], values[..., 4]
    wanted = (seen >= SEEN) & (z >= NEAREST_M) & (z <= FARTHEST_M)
    role = np.where(wanted, 1, np.where(seen >= HARDLY_SEEN, 0, -1))
    return Hands(values[..., :3], values[..., 3] > 0.5, seen, np.where(there, role, -1))


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
        if rng.random() < 0.2:  # hair and dark cloth give no readings, and faces come in pieces
            lost = _blobs(rng, height, width, 0.2 * rng.random())
            z[i][lost & (z[i] > 0)] = 0
    return z, Hands(centre, right, hands.seen, role)


def _blobs(rng: np.random.Generator, height: int, width: int, share: float) -> NDArray[np.bool_]:
    """Blobs of some 3 to 10 px that cover about such a share of the picture: where smooth noise is high."""
    cell = rng.uniform(3, 10)
    field = rng.standard_normal((int(height / cell) + 2, int(width / cell) + 2))
    for axis, n in ((0, height), (1, width)):
        at = np.arange(n) / cell
        low, t = at.astype(int), np.expand_dims(at % 1, 1 - axis)
        field = np.take(field, low, axis) * (1 - t) + np.take(field, low + 1, axis) * t
    return field > np.quantile(field, 1 - share)


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
