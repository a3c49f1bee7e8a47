"""Where are hands? A small network looks at the whole depth frame and proposes 0, 1, 2 or more of them.

The frame is resampled to a picture of one size, which a narrow camera's view fills as a wide one's does (`Part`): there
all is larger, and its depth is told as so much less, so that a hand has its size in the picture at that depth. The
network (`trainer/nets/finder.py`) gives, every four pixels, how likely a hand's centre is there, how far away, where in
the cell, and which side it is; peaks are the proposals. Without a model the plain geometry of `surfaces.py` proposes.
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
from ..hand.camera import Intrinsics, fold_slope
from ..hand.frames import DepthFrame, HandRoi, Side
from .engines import ANYWHERE, Engine, open_engine
from .networks.card import ModelError, find_model
from .surfaces import CUBE_M, NEAR_M, find_hands, surfaces

__all__ = [
    "CUBE_M", "NEAR_M", "PICTURE", "STRIDE", "Finder", "NetworkFinder", "SurfaceFinder", "find_hands", "open_finder",
    "surfaces",
]  # fmt: skip

PICTURE = Intrinsics(160, 112, 80.0, 80.0, 79.5, 55.5)  # 90 by 70 degrees
STRIDE = 4  # px of the picture a cell
ROWS, COLUMNS = PICTURE.height // STRIDE, PICTURE.width // STRIDE
INPUT = [1, 2 * STRIDE**2, ROWS, COLUMNS]
NEAREST_M, FARTHEST_M = 0.12, 2.0  # depth in the picture is clipped to this
FILLS = 0.95  # of the picture's width or height, a whole frame
MOST_ZOOM = 1.6  # of a whole frame
CLOSER = 1.5  # zoom of a closer part over that of the whole frame
REACH_M = 0.06  # of a hand to every side: nearer to a part's border it may be cut
WIDEST = 2.0  # slope of rays beyond which parts show nothing
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


class Part(NamedTuple):
    """The part of a camera's view that the picture shows: its middle is the ray (x, y, 1), its focal length zoom times
    that of `PICTURE`, and its depths are the real ones over zoom. So a point (X, Y, Z) m of the frame is (X - x Z, Y -
    y Z, Z / zoom) in the picture."""

    zoom: float = 1.0
    x: float = 0.0
    y: float = 0.0

    def to_picture(self, points: Array) -> Array:
        """Points (..., 3) m of the frame to the picture's."""
        z = points[..., 2]
        return np.stack([points[..., 0] - self.x * z, points[..., 1] - self.y * z, z / self.zoom], -1)

    def to_frame(self, points: Array) -> Array:
        """Points (..., 3) m of the picture to the frame's."""
        z = points[..., 2] * self.zoom
        return np.stack([points[..., 0] + self.x * z, points[..., 1] + self.y * z, z], -1)


UNZOOMED = Part()


class Finder(Protocol):
    """finder(frame, part) gives proposals for the hands of a frame, the best first; of all of it without a part.

    From threshold on a proposal is a hand rather than not. One that judges proposes hands alone, so that a place it
    does not propose is hardly one; one that does not, proposes places to look at. Not to be shared between threads.
    """

    threshold: float
    judges: bool

    def __call__(self, frame: DepthFrame, part: Part | None = None) -> list[HandRoi]: ...


class NetworkFinder:
    """A network's proposals. centre_m is the mean of a hand's 21 joints, score about the probability that a hand is
    there, side unknown where the network does not decide; cube_m is that of every hand."""

    threshold = THRESHOLD
    judges = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, frame: DepthFrame, part: Part | None = None) -> list[HandRoi]:
        part = part or whole_view(frame.intrinsics)
        heat, offset, log_z, right = self.engine.run(network_input_of(frame, part))
        return proposals(Maps(heat[0, 0], offset[0], log_z[0, 0], right[0, 0]), LEAST_SCORE, MOST, part)


class SurfaceFinder:
    """Proposals from geometry alone (`surfaces.find_hands`), always for the whole frame: places where one hand could
    be, sides unknown."""

    threshold = 0.0
    judges = False

    def __call__(self, frame: DepthFrame, part: Part | None = None) -> list[HandRoi]:
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


@lru_cache(32)
def whole_view(camera: Intrinsics) -> Part:
    """The part that shows all of a camera's view, as large as picture and zoom allow; of a wider one the middle."""
    (left, right), (top, bottom) = _borders(camera)
    most = max((right - left) * PICTURE.fx / PICTURE.width, (bottom - top) * PICTURE.fy / PICTURE.height) / FILLS
    zoom = 1 / max(most, 1 / MOST_ZOOM)
    return Part(zoom, (left + right) / 2, (top + bottom) / 2) if zoom > 1 else UNZOOMED


@lru_cache(32)
def closer(camera: Intrinsics) -> tuple[Part, ...]:
    """Closer parts that together show all of a camera's view."""
    zoom = CLOSER * whole_view(camera).zoom

    def middles(low: float, high: float, shown: float) -> list[float]:
        n = max(1, math.ceil((high - low) / shown))
        if n == 1:
            return [(low + high) / 2]
        return [float(x) for x in np.linspace(low + shown / 2, high - shown / 2, n)]

    x, y = _borders(camera)
    columns = middles(*x, PICTURE.width / PICTURE.fx / zoom)
    return tuple(
        Part(zoom, column, row) for row in middles(*y, PICTURE.height / PICTURE.fy / zoom) for column in columns
    )


def shows(part: Part, point: Array) -> bool:
    """Whether a hand at a point (3,) m of the frame is well inside the part."""
    x, y, z = part.to_picture(point).tolist()
    column, row = (PICTURE.fx * (abs(side) + REACH_M) / z for side in (x, y))
    return bool(z > NEAREST_M and column < PICTURE.width / 2 and row < PICTURE.height / 2)


def _borders(camera: Intrinsics) -> tuple[tuple[float, float], tuple[float, float]]:
    """The least and the greatest x and y of the rays (x, y, 1) in which the camera's lens shows something."""
    columns, rows = (np.linspace(-0.5, n - 0.5, 33) for n in (camera.width, camera.height))
    rays = camera.rays(np.stack(np.meshgrid(columns, rows), -1)).reshape(-1, 3)
    shown = np.hypot(rays[:, 0], rays[:, 1]) < min(fold_slope(camera.distortion), WIDEST)
    x, y = rays[shown].T[:2] if shown.any() else np.zeros((2, 1))
    return (float(x.min()), float(x.max())), (float(y.min()), float(y.max()))


def resample(frame: DepthFrame, part: Part) -> NDArray[np.float32]:
    """The frame as the picture shows it: (112, 160) depth m, 0 = no reading, -1 = outside the frame. Each pixel is the
    nearest of the frame's; nothing is averaged, since the mean of two surfaces is none."""
    at, outside = _pixels(frame.intrinsics, part)
    z = frame.depth.ravel().take(at) * np.float32(frame.depth_unit_m / part.zoom)
    z[outside] = -1
    return from_cells(z.reshape(STRIDE**2, ROWS, COLUMNS))


def network_input(z: Array) -> NDArray[np.float32]:
    """A resampled picture (..., 112, 160) m to what the network sees, (..., 32, 28, 40) or with a batch axis of 1: of
    each of a cell's 16 pixels, row by row, the nearest distance over the depth, 0 where nothing was read; then of each
    1 for a reading, -1 outside the frame."""
    z = np.asarray(z, np.float32)
    z = by_cell(z[None] if z.ndim == 2 else z)
    read = (z > 0).astype(np.float32)
    return np.concatenate([nearness(z), read - (z < 0)], 1)


def nearness(z: Array) -> NDArray[np.float32]:
    """The nearest distance over the depth, in (0, 1]; 0 where nothing was read."""
    near: NDArray[np.float32] = np.float32(NEAREST_M) / np.clip(z, NEAREST_M, FARTHEST_M, dtype=np.float32) * (z > 0)
    return near


def by_cell(picture: Array) -> Array:
    """Pixels (..., 112, 160) to (..., 16, 28, 40): a plane for each place in a cell."""
    cells = picture.reshape(*picture.shape[:-2], ROWS, STRIDE, COLUMNS, STRIDE)
    return np.moveaxis(cells, (-3, -1), (-4, -3)).reshape(*picture.shape[:-2], STRIDE**2, ROWS, COLUMNS)


def from_cells(planes: Array) -> Array:
    """`by_cell` undone, of (16, 28, 40)."""
    cells = planes.reshape(STRIDE, STRIDE, ROWS, COLUMNS)
    return cells.transpose(2, 0, 3, 1).reshape(PICTURE.height, PICTURE.width)


def retire(finder: Finder) -> None:
    """Close what a finder has open, and end its tuning; it finds nothing any more."""
    close = getattr(getattr(finder, "engine", None), "close", None)
    if close is not None:
        close()


def network_input_of(frame: DepthFrame, part: Part) -> NDArray[np.float32]:
    """`network_input(resample(frame, part))` in two thirds of the time: what each count means is looked up."""
    at, outside = _pixels(frame.intrinsics, part)
    counts = frame.depth.ravel().take(at)
    image = np.empty((1, 2, len(counts)), np.float32)
    near, read = image[0]
    _meaning(frame.depth_unit_m / part.zoom).take(counts, out=near, mode="clip")
    np.greater(counts, 0, out=read, casting="unsafe")
    near[outside], read[outside] = 0, -1
    return image.reshape(INPUT)


@lru_cache(16)
def _meaning(depth_unit_m: float) -> NDArray[np.float32]:
    """(65536,) the nearness of each count."""
    return nearness(np.arange(1 << 16, dtype=np.uint16) * np.float32(depth_unit_m))


def proposals(maps: Maps, least_score: float, limit: int, part: Part = UNZOOMED) -> list[HandRoi]:
    """The peaks of the heat, the best first, no two of them within `APART_M`; part is what the maps are of."""
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
        centre = part.to_frame(np.array([x * z, y * z, z]))
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


@lru_cache(64)
def _pixels(camera: Intrinsics, part: Part) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For every pixel of the picture, by cell, the place in the frame's raveled depth; and which of them the frame does
    not show."""
    columns, rows = np.meshgrid(np.arange(PICTURE.width), np.arange(PICTURE.height))
    grid = np.stack([by_cell(columns), by_cell(rows)], -1).reshape(-1, 2)
    rays = PICTURE.rays(grid) / (part.zoom, part.zoom, 1) + (part.x, part.y, 0)
    pixels = np.rint(camera.project(rays))
    column, row = pixels.T
    inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    if camera.is_distorted:  # far outside, the polynomial leads back into the image
        off = np.abs(camera.rays(np.where(inside[:, None], pixels, 0.0)) - rays).max(1)
        inside &= off < 2 / min(camera.fx, camera.fy)
    return np.where(inside, row * camera.width + column, 0).astype(np.intp), np.flatnonzero(~inside)
