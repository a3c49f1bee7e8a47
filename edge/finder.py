"""Where are hands? A small network looks at the whole depth frame and proposes 0, 1, 2 or more of them.

The frame is resampled to a picture of one size and focal length, whatever the camera, so that a hand's size in the
picture depends on its distance alone. The network (`trainer/nets/finder.py`) gives, every four pixels, how likely a
hand's centre is there, where in the cell, how far away, and which side it is; peaks are the proposals. Without a model
the plain geometry of `surfaces.py` proposes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..hand.arrays import Array
from ..hand.camera import Intrinsics
from ..hand.frames import DepthFrame, HandRoi, Side
from .engines import ANYWHERE, Engine, open_engine
from .networks.card import ModelError, find_model
from .surfaces import CUBE_M, NEAR_M, find_hands, surfaces

__all__ = [
    "CUBE_M", "NEAR_M", "PICTURE", "STRIDE", "Finder", "NetworkFinder", "SurfaceFinder", "find_hands", "open_finder",
    "surfaces",
]  # fmt: skip

PICTURE = Intrinsics(160, 112, 80.0, 80.0, 79.5, 55.5)  # 90 by 70 degrees
INPUT = [1, 2, PICTURE.height, PICTURE.width]
STRIDE = 4  # px of the picture a cell
NEAREST_M, FARTHEST_M = 0.15, 2.0  # depth is clipped to this
OUTPUTS = ("heat", "offset", "log_z", "right")
LEAST_SCORE = 0.1  # proposals below this are none
MOST = 6  # proposals of a frame
THRESHOLD = 0.4  # from this score on a proposal is a hand rather than not
SIDE_SURE = 0.85  # probability below which a proposal's side is unknown
APART_M = 0.05  # of two proposals nearer to each other than this the better one is kept


class Maps(NamedTuple):
    """What the network says of every cell: heat (h, w) log-odds of a hand's centre, offset (2, h, w) of the centre from
    the middle of the cell, x and y, cells; log_z (h, w) of its distance along z, m; right (h, w) log-odds of a right
    hand."""

    heat: Array
    offset: Array
    log_z: Array
    right: Array


class Finder(Protocol):
    """finder(frame) gives proposals for the hands of a frame, the best first.

    From threshold on a proposal is a hand rather than not. One that judges proposes hands alone, so that a place it
    does not propose is hardly one; one that does not, proposes places to look at. Not to be shared between threads.
    """

    threshold: float
    judges: bool

    def __call__(self, frame: DepthFrame) -> list[HandRoi]: ...


class NetworkFinder:
    """A network's proposals. centre_m is the mean of a hand's 21 joints, score about the probability that a hand is
    there, side unknown where the network does not decide; cube_m is that of every hand."""

    threshold = THRESHOLD
    judges = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, frame: DepthFrame) -> list[HandRoi]:
        heat, offset, log_z, right = self.engine.run(network_input_of(frame))
        return proposals(Maps(heat[0, 0], offset[0], log_z[0, 0], right[0, 0]), LEAST_SCORE, MOST)


class SurfaceFinder:
    """Proposals from geometry alone (`surfaces.find_hands`): places where one hand could be, sides unknown."""

    threshold = 0.0
    judges = False

    def __call__(self, frame: DepthFrame) -> list[HandRoi]:
        return find_hands(frame)


def open_finder(
    model: str | Path | None = "finder",
    threads: int = 1,
    *,
    say: Callable[[str], None] | None = None,
    tune: bool = False,
) -> Finder:
    """The finder of a model: a shipped one's name, or an .onnx file with its card beside it. None and "geometry" are
    the finder that needs no model. With tune it may change to what runs faster here, and say hears of it. Raises
    ModelError."""
    if model is None or str(model) == "geometry":
        return SurfaceFinder()

    def told(line: str) -> None:
        if say:
            say(line.replace("engine:", "finder:", 1))

    from .networks.swap import SwapEngine

    file, threads = find_model(str(model)), max(1, threads)
    engine = open_engine("auto" if tune else ANYWHERE, file, threads, net="finder", say=told, tune=tune)
    if isinstance(engine, SwapEngine):
        engine.openers = [lambda: open_engine(ANYWHERE, file, threads, net="finder")]
    if list(engine.card.inputs.values()) != [INPUT]:
        raise ModelError(f"model {model}: it sees {list(engine.card.inputs.values())}, this finder gives {INPUT}")
    return NetworkFinder(engine)


def resample(frame: DepthFrame) -> NDArray[np.float32]:
    """The frame as `PICTURE` sees it: (112, 160) depth m, 0 = no reading, -1 = outside the frame. Each pixel is the
    nearest of the frame's; nothing is averaged, since the mean of two surfaces is none."""
    at, outside = _pixels(frame.intrinsics)
    z = frame.depth.ravel().take(at) * np.float32(frame.depth_unit_m)
    z[outside] = -1
    return z.reshape(PICTURE.height, PICTURE.width)


def network_input(z: Array) -> NDArray[np.float32]:
    """A resampled picture (..., 112, 160) m to what the network sees, (..., 2, 112, 160) or with a batch axis of 1:
    the nearest distance over the depth, 0 where nothing was read; and 1 for a reading, -1 outside the frame."""
    z = np.asarray(z, np.float32)
    z = z[None] if z.ndim == 2 else z
    image = np.empty((len(z), 2, *z.shape[1:]), np.float32)
    read = z > 0
    np.divide(np.float32(NEAREST_M), np.clip(z, NEAREST_M, FARTHEST_M), out=image[:, 0])
    image[:, 0] *= read
    image[:, 1] = read
    image[:, 1] -= z < 0
    return image


def retire(finder: Finder) -> None:
    """Close what a finder has open, and end its tuning; it finds nothing any more."""
    close = getattr(getattr(finder, "engine", None), "close", None)
    if close is not None:
        close()


def network_input_of(frame: DepthFrame) -> NDArray[np.float32]:
    """`network_input(resample(frame))` in two thirds of the time: what each count means is looked up."""
    at, outside = _pixels(frame.intrinsics)
    counts = frame.depth.ravel().take(at)
    image = np.empty((1, 2, len(counts)), np.float32)
    near, read = image[0]
    _meaning(frame.depth_unit_m).take(counts, out=near, mode="clip")
    np.greater(counts, 0, out=read, casting="unsafe")
    near[outside], read[outside] = 0, -1
    return image.reshape(INPUT)


@lru_cache(4)
def _meaning(depth_unit_m: float) -> NDArray[np.float32]:
    """(65536,) what the network sees of each count, in its first channel."""
    counts = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    return network_input(counts * np.float32(depth_unit_m))[0, 0].ravel()


def proposals(maps: Maps, least_score: float, limit: int) -> list[HandRoi]:
    """The peaks of the heat, the best first, no two of them within `APART_M`."""
    warm = np.flatnonzero(maps.heat > math.log(least_score / (1 - least_score)))  # few cells are
    heat = maps.heat.tolist()
    rois: list[HandRoi] = []
    for at in warm[np.argsort(-maps.heat.ravel()[warm])].tolist():
        row, column = divmod(at, len(heat[0]))
        score = heat[row][column]
        if any(score < max(line[max(column - 1, 0) : column + 2]) for line in heat[max(row - 1, 0) : row + 2]):
            continue
        dx, dy = maps.offset[:, row, column].tolist()
        z = math.exp(min(max(float(maps.log_z[row, column]), -3.0), 2.0))
        x, y = (cell_centre(column + dx) - PICTURE.cx) / PICTURE.fx, (cell_centre(row + dy) - PICTURE.cy) / PICTURE.fy
        centre = np.array([x * z, y * z, z])
        if all(math.dist(centre, roi.centre_m) > APART_M for roi in rois):
            rois.append(HandRoi(side_of(float(maps.right[row, column])), centre, CUBE_M, _sigmoid(score)))
            if len(rois) == limit:
                break
    return rois


def cell_centre(cell: Any) -> Any:
    """Columns or rows of cells to the picture's pixels; fractions are places between the cells' middles."""
    return cell * STRIDE + (STRIDE - 1) / 2


def side_of(right_logit: float) -> Side:
    if _sigmoid(abs(right_logit)) < SIDE_SURE:
        return "unknown"
    return "right" if right_logit > 0 else "left"


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(float(x), -50.0)))


@lru_cache(8)
def _pixels(camera: Intrinsics) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For every pixel of the picture the place in the frame's raveled depth; and which of them the frame does not
    show."""
    grid = np.stack(np.meshgrid(np.arange(PICTURE.width), np.arange(PICTURE.height)), -1).reshape(-1, 2)
    rays = PICTURE.rays(grid)
    pixels = np.rint(camera.project(rays))
    column, row = pixels.T
    inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    if camera.is_distorted:  # far outside, the polynomial leads back into the image
        off = np.abs(camera.rays(np.where(inside[:, None], pixels, 0.0)) - rays).max(1)
        inside &= off < 2 / min(camera.fx, camera.fy)
    return np.where(inside, row * camera.width + column, 0).astype(np.intp), np.flatnonzero(~inside)
