"""Taking pictures of the board without a button: what is slow and new counts, and says when there is enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .board import ENOUGH_SHARED
from .corners import BoardDetector, View
from .sources import Source, SourceError
from .start import moments_of, shared_moments
from .target import TARGETS, Target

Array = NDArray[Any]

SLOW_PX_HZ = 100.0  # corners move by less a second; with time offsets solved for, a hand-held board may move
NEW_PX = 40.0  # a corner has moved by so much since every picture that counted
MANY_VIEWS = 150  # a camera; beyond that only what is slow and new is solved from, with its neighbours in time
KEEP_DEPTH, DEPTH_EVERY_S = 20, 0.4  # depth images a camera, for the size of the squares


class Captured(NamedTuple):
    """All views, those of them that have depth (H, W) m, and which were slow and new."""

    views: list[View]
    with_depth: list[tuple[View, Array]]
    counted: list[View]


class Novelty:
    """Whether one camera sees the board slowly and where it has not been before."""

    def __init__(self) -> None:
        self._last: View | None = None
        self._taken: list[View] = []

    def counts(self, view: View) -> bool:
        last, self._last = self._last, view
        if last is None or view.t_s <= last.t_s:
            return False
        moved = _moved_px(last, view)
        if moved is None or moved / (view.t_s - last.t_s) > SLOW_PX_HZ:
            return False
        for taken in self._taken:
            moved = _moved_px(taken, view)
            if moved is not None and moved < NEW_PX:
                return False
        self._taken.append(view)
        return True


def _moved_px(a: View, b: View) -> float | None:
    """By how much the common corners moved; None if there are too few."""
    _, i, j = np.intersect1d(a.ids, b.ids, return_indices=True)
    if len(i) < 3:
        return None
    return float(np.median(np.linalg.norm(a.pixels[i] - b.pixels[j], axis=1)))


def capture(
    sources: Sequence[Source], target: Target, *, every: int = 1, say: Callable[[str], None] | None = None
) -> Captured:
    """Look through all sources, a picture of each in turn: recordings to their end, cameras until there is enough.

    Raises SourceError if no source shows the board.
    """
    detector = BoardDetector(target)
    novelty = [Novelty() for _ in sources]
    depth_kept, next_depth_s = [0] * len(sources), [-np.inf] * len(sources)
    found = Captured([], [], [])
    others = {name: _ids(other) for name, other in TARGETS.items() if other != target}
    wrong: dict[str, int] = dict.fromkeys(others, 0)
    streams = [source.pictures() for source in sources]
    running = list(range(len(sources)))
    n = 0
    while running:
        for camera in list(running):
            picture = next(streams[camera], None)
            if picture is None:
                running.remove(camera)
                continue
            if n % every:
                continue
            seen = detector.find(picture.image)
            for name, ids in others.items():
                wrong[name] += bool(len(seen.markers)) and not len(seen.ids) and bool(set(seen.markers) & ids)
            if not len(seen.ids):
                continue
            view = View(camera, picture.t_s, seen.ids, seen.pixels)
            found.views.append(view)
            if novelty[camera].counts(view):
                found.counted.append(view)
            # A moving board will do here: picture and depth are of one time.
            if picture.depth_m is not None and depth_kept[camera] < KEEP_DEPTH and view.t_s >= next_depth_s[camera]:
                found.with_depth.append((view, picture.depth_m.astype(np.float32)))
                depth_kept[camera] += 1
                next_depth_s[camera] = view.t_s + DEPTH_EVERY_S
        n += 1
        if n % 30 == 0:
            if say:
                say(progress(found, sources, n))
            if any(source.live for source in sources) and _least_shared(found.counted, sources)[1] >= 2 * ENOUGH_SHARED:
                break
    if not found.views:
        other = max(wrong, key=lambda name: wrong[name]) if wrong else ""
        hint = f"; it looks like --target {other}" if other and wrong[other] else ""
        raise SourceError(f"no source shows the board {target.name}{hint}")
    return found


def progress(found: Captured, sources: Sequence[Source], pictures: int) -> str:
    """One line: pictures, those that counted a camera, and the pair that lacks most."""
    counts = [sum(view.camera == c for view in found.counted) for c in range(len(sources))]
    least, best = _least_shared(found.views, sources)
    need = "enough" if best >= ENOUGH_SHARED else f"show it to {sources[least].serial} and a second camera at once"
    taken = ", ".join(f"{source.serial} {count}" for source, count in zip(sources, counts, strict=True))
    return f"{pictures} pictures; slow and new: {taken}; {need}"


def _least_shared(views: list[View], sources: Sequence[Source]) -> tuple[int, int]:
    """The camera that shares least with its best partner, and how many moments."""
    period_s = max(1 / source.fps for source in sources)
    moments = moments_of(views, np.zeros(len(sources)), period_s, moving=False)
    shared = shared_moments(moments, len(sources))
    np.fill_diagonal(shared, 0)
    least = int(shared.max(1).argmin())
    return least, int(shared[least].max())


def views_to_solve(found: Captured, sources: Sequence[Source]) -> list[View]:
    """All views of a short recording; of a long one those near a moment that counted."""
    if len(found.views) <= MANY_VIEWS * len(sources):
        return found.views
    near_s = 2 * max(1 / source.fps for source in sources)
    times = np.sort([view.t_s for view in found.counted])
    kept = []
    for view in found.views:
        i = int(np.searchsorted(times, view.t_s))
        if np.abs(times[max(i - 1, 0) : i + 1] - view.t_s).min(initial=np.inf) <= near_s:
            kept.append(view)
    return kept


def _ids(target: Target) -> set[int]:
    return set(range(target.first_id, target.first_id + target.marker_count))
