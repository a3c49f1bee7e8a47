"""Taking pictures of the board without a button: what is slow and new counts, and says when there is enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..hand.arrays import Array
from .board import ENOUGH_SHARED
from .corners import BoardDetector, View
from .sources import Picture, Source, SourceError
from .start import moments_of, shared_moments
from .target import TARGETS, Target

SLOW_PX_HZ = 100.0  # corners move by less a second; with time offsets solved for, a hand-held board may move
NEW_PX = 40.0  # a corner has moved by so much since every picture that counted
MANY_VIEWS = 150  # a camera; beyond that only what is slow and new is solved from,
NEAR = 2  # with so many pictures before and after; if cameras share too few of these,
BURST = 3  # also about MANY_VIEWS evenly in time, so many pictures in a row
WANTED = 2 * ENOUGH_SHARED  # moments of a pair, after which cameras are no longer looked at
KEEP_DEPTH, DEPTH_EVERY_S = 20, 0.4  # depth images a camera, for the size of the squares


class Captured(NamedTuple):
    """All views, those of them that have depth (H, W) m, which were slow and new, and a camera's time between pictures
    (`board.BoardCamera`)."""

    views: list[View]
    with_depth: list[tuple[View, Array]]
    counted: list[View]
    periods_s: list[float]


class Novelty:
    """Whether one camera sees the board slowly and where it has not been before; how often it was too fast."""

    def __init__(self) -> None:
        self.fast = 0
        self._last: View | None = None
        self._taken: list[View] = []

    def counts(self, view: View) -> bool:
        last, self._last = self._last, view
        if last is None or view.t_s <= last.t_s:
            return False
        moved = _moved_px(last, view)
        if moved is None or moved / (view.t_s - last.t_s) > SLOW_PX_HZ:
            self.fast += moved is not None
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
    """Look through all sources, a picture of each in turn: recordings to their end, cameras until there is enough, or
    until Ctrl-C.

    Raises SourceError if no source shows the board, or only some are cameras.
    """
    live = any(source.live for source in sources)
    if live and not all(source.live for source in sources):
        raise SourceError("cameras and recordings have no moment in common: give one or the other")
    detector = BoardDetector(target)
    novelty = [Novelty() for _ in sources]
    depth_kept, next_depth_s = [0] * len(sources), [-np.inf] * len(sources)
    found = Captured([], [], [], [every / source.fps for source in sources])
    others = {name: _ids(other) for name, other in TARGETS.items() if other != target}
    wrong: dict[str, int] = dict.fromkeys(others, 0)
    shared = np.zeros((len(sources), len(sources)), int)  # times at which two saw the board, slow and new to one
    try:
        for n, pictures in enumerate(_together(sources)):
            if n % every:
                continue
            seeing, is_new = [], False
            for camera, picture in pictures:
                seen = detector.find(picture.image)
                for name, ids in others.items():
                    wrong[name] += bool(len(seen.markers)) and not len(seen.ids) and bool(set(seen.markers) & ids)
                if not len(seen.ids):
                    continue
                view = View(camera, picture.t_s, seen.ids, seen.pixels)
                found.views.append(view)
                seeing.append(camera)
                if novelty[camera].counts(view):
                    found.counted.append(view)
                    is_new = True
                # A moving board will do here: picture and depth are of one time.
                if picture.depth_m is not None and depth_kept[camera] < KEEP_DEPTH and view.t_s >= next_depth_s[camera]:
                    found.with_depth.append((view, picture.depth_m.astype(np.float32)))
                    depth_kept[camera] += 1
                    next_depth_s[camera] = view.t_s + DEPTH_EVERY_S
            shared[np.ix_(seeing, seeing)] += is_new
            if (n // every + 1) % 30 == 0:
                if say:
                    fast = [one.fast for one in novelty]
                    say(progress(found, sources, n + 1, fast, shared if live else None))
                if live and least_tied(shared)[1] >= WANTED:
                    break
    except KeyboardInterrupt:
        if not live:
            raise
        if say:
            say("stopped: this is what there is")
    if not found.views:
        other = max(wrong, key=lambda name: wrong[name]) if wrong else ""
        hint = f"; it looks like --target {other}" if other and wrong[other] else ""
        raise SourceError(f"no source shows the board {target.name}{hint}")
    return found._replace(periods_s=_live_periods_s(found.views, sources)) if live else found


def _together(sources: Sequence[Source]) -> Iterator[list[tuple[int, Picture]]]:
    """A picture of each source that still has one, with its number. They are read one right after the other: what is
    done with one would put the next picture of a camera, which is its newest, that much later."""
    streams = {camera: source.pictures() for camera, source in enumerate(sources)}
    while streams:
        read = [(camera, next(stream, None)) for camera, stream in streams.items()]
        streams = {camera: streams[camera] for camera, picture in read if picture is not None}
        if streams:
            yield [(camera, picture) for camera, picture in read if picture is not None]


def _live_periods_s(views: Sequence[View], sources: Sequence[Source]) -> list[float]:
    """Between the pictures of a camera that could be looked at: three quarters of its views were no further apart.

    Newest pictures of cameras that run freely are up to a frame apart, and those of one moment lie within half of this.
    """
    periods = []
    for camera, source in enumerate(sources):
        times = [view.t_s for view in views if view.camera == camera]
        apart_s = float(np.percentile(np.diff(times), 75)) if len(times) > 1 else 0.0
        periods.append(max(apart_s, 2 / source.fps))
    return periods


def progress(
    found: Captured, sources: Sequence[Source], pictures: int, fast: Sequence[int], shared: Array | None
) -> str:
    """One line: pictures, those that counted a camera, and of cameras the one that lacks most (`least_tied`); fast (C,)
    is how many of a camera's views were too fast to count."""
    counts = [sum(view.camera == c for view in found.counted) for c in range(len(sources))]
    text = f"{pictures} pictures; slow and new: "
    text += ", ".join(f"{source.serial} {count}" for source, count in zip(sources, counts, strict=True))
    if shared is None:
        return text
    least, moments = least_tied(shared)
    if moments >= WANTED:
        return f"{text}; enough"
    how = "more slowly " if fast[least] > sum(view.camera == least for view in found.views) / 2 else ""
    who = f"{sources[least].serial} and a second camera at once"
    return f"{text}; show it {how}to {who} ({moments} of {WANTED} moments)"


def least_tied(shared: Array) -> tuple[int, int]:
    """The camera that is tied to the others worst, and by how many of the moments (C, C) that each two share."""
    joined, left = [0], set(range(1, len(shared)))
    least, fewest = 0, WANTED
    while left:
        known, camera = max(((a, b) for a in joined for b in left), key=lambda pair: shared[pair])
        if shared[known, camera] <= fewest:
            least, fewest = camera, int(shared[known, camera])
        joined.append(camera)
        left.remove(camera)
    return least, fewest


def views_to_solve(found: Captured) -> list[View]:
    """All views of a short recording; of a long one those near a moment that counted, and if cameras share too few of
    these, for the board moved fast, others evenly in time."""
    cameras, period_s = len(found.periods_s), max(found.periods_s)
    if len(found.views) <= MANY_VIEWS * cameras:
        return found.views
    near_s = NEAR * period_s
    times = np.sort([view.t_s for view in found.counted])
    kept = []
    for view in found.views:
        i = int(np.searchsorted(times, view.t_s))
        if np.abs(times[max(i - 1, 0) : i + 1] - view.t_s).min(initial=np.inf) <= near_s:
            kept.append(view)
    shared = shared_moments(moments_of(kept, np.zeros(cameras), period_s, moving=False), cameras)
    if least_tied(shared // (2 * NEAR + 1))[1] >= ENOUGH_SHARED:
        return kept
    first_s, every = min(view.t_s for view in found.views), math.ceil(len(found.views) / (MANY_VIEWS * cameras))
    near = {id(view) for view in kept}
    return [v for v in found.views if id(v) in near or (v.t_s - first_s) // (BURST * period_s) % every == 0]


def _ids(target: Target) -> set[int]:
    return set(range(target.first_id, target.first_id + target.marker_count))
