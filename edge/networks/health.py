"""Does a network still see as well as the one before it? The loop's own numbers say, and it is taken back if not.

Frames with a hand in view are counted in blocks: those in which a hand is measured, and those in which the finder, a
network of its own, is sure of one and none is. Of each block four means are kept: the share of frames in which a hand
was measured, the distance from depth to mesh, the network's own score, and the jitter of the joints. After a change the
latest blocks are compared with those before it; what falls by more than a margin and by more than the blocks scatter is
a reason to go back. A frame costs a few microseconds.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...hand.arrays import Array
from ...hand.frames import DepthFrame, HandRoi
from ...hand.messages import StatusState
from ..finder import Finder, Part
from ..track import Track
from ..tracker import NEW_WITHIN_M, Tracker
from .card import ModelCard, ModelError
from .reload import Reloader, ReloadError
from .store import (
    SHIPPED,
    StoreError,
    default_store,
    in_use,
    is_proven,
    model_of,
    number_of,
    prove,
    rollback,
    version,
)
from .swap import SwapEngine

BLOCK = 30  # frames with a hand in view
WINDOW = 10  # blocks that are compared: the latest after the change
LEAST_BEFORE = 5  # blocks that make a baseline
EARLY = 2  # blocks after which a network that sees almost nothing goes at once
WATCHED = 60  # blocks after which it has proven itself
KEPT = 40  # blocks of the network in use that are remembered
SURE = 0.7  # score from which on the finder's proposal counts as a hand in view
SIGMAS = 3.0
PROBATION = BLOCK * WATCHED * 2  # runs for which `SwapEngine` keeps the engine before, also of what is not watched


class Measure(NamedTuple):
    """One number of a block: whether more is better, by how much it may get worse, and in words."""

    name: str
    more_is_better: bool
    margin: float
    relative: bool
    words: str


MEASURES = (
    Measure("seen", True, 0.1, False, "share of frames in which a hand in view is measured"),
    Measure("score", True, 0.12, False, "the network's score"),
    Measure("fit_mm", False, 0.25, True, "mm from depth to mesh"),
    Measure("jitter_mm", False, 1.0, True, "mm of jitter"),  # a hand that hurries jitters too
)
Baseline = dict[str, dict[str, float]]  # by a measure's name: mean, sd of the blocks, blocks


class Health:
    """A minder of the loop (`loop.Minder`): hears of every frame, looks at the tracker, calls go_back(why) at most once
    a change, between frames. baseline_of(card) gives what was saved with a network that this process has not seen
    replace another, or None; trusted(card) says whether it may take another's place and see worse; settled(card) hears
    of one that has proven itself."""

    def __init__(
        self,
        tracker: Tracker,
        go_back: Callable[[str], None],
        baseline_of: Callable[[ModelCard], Baseline | None] = lambda card: None,
        settled: Callable[[ModelCard], None] = lambda card: None,
        trusted: Callable[[ModelCard], bool] = lambda card: False,
    ) -> None:
        self._tracker, self._go_back, self._settled = tracker, go_back, settled
        self._baseline_of, self._trusted = baseline_of, trusted
        self._finder = tracker.finder = _Listening(tracker.finder)
        self._card = tracker.engine.card
        self._asked = self._asked_now()
        self._earlier = ""  # digest of the network that the one in use took over from
        self._fell = False  # the one in use, which is to be left
        self._past: dict[Track, tuple[int, Array, Array | None]] = {}  # times measured, joints, their last step
        self._begin(baseline_of(self._card))

    def frame(self) -> None:
        """A frame was tracked."""
        tracker = self._tracker
        if tracker.finder is not self._finder:  # a reload brought another
            self._finder = tracker.finder = _Listening(tracker.finder)
        card = tracker.engine.card
        if card is not self._card:
            self._change(card)
        n, score, fit, jitter, jitters = 0, 0.0, 0.0, 0.0, 0
        past = self._past
        now: dict[Track, tuple[int, Array, Array | None]] = {}
        for track in tracker.tracks:
            pose = track.pose
            if pose is None or not track.published:
                continue
            entry = past.get(track)
            if entry is not None and entry[0] == track.measured:
                continue  # not measured in this frame, which also breaks the row of three
            joints = pose.joints_m
            if entry is None:
                now[track] = (track.measured, joints, None)
            else:
                step = joints - entry[1]
                now[track] = (track.measured, joints, step)
                if entry[2] is not None:
                    bend = step - entry[2]
                    jitter += math.sqrt(np.vdot(bend, bend) / 21)
                    jitters += 1
            n += 1
            score += pose.score
            fit += pose.fit_mm if pose.fit_mm == pose.fit_mm else 0.0
        self._past = now
        sure, self._finder.sure = self._finder.sure, False
        if not n and not sure:
            return
        sums = self._sums
        sums[0] += 1
        if n:
            sums[1] += 1
            sums[2] += score / n
            sums[3] += fit / n
        if jitters:
            sums[4] += 1
            sums[5] += jitter / jitters
        if sums[0] >= BLOCK:
            self._end_block()

    def status(self, state: StatusState, message: str) -> None:
        """Nothing to do."""

    def baseline(self) -> Baseline | None:
        """The network in use as it fares now; None if it was not seen long enough."""
        return baseline_of(list(self._blocks)) if len(self._blocks) >= LEAST_BEFORE else None

    @property
    def watching(self) -> bool:
        """Whether the network in use is still to prove itself."""
        return self._before is not None

    def _begin(self, before: Baseline | None) -> None:
        self._before = before
        self._since = 0
        self._blocks: deque[tuple[float, ...]] = deque(maxlen=KEPT)
        self._sums = [0.0] * 6  # frames in view, with a measured hand, score, fit, frames with jitter, jitter
        self._past = {}

    def _change(self, card: ModelCard) -> None:
        """Another network serves. One that is gone back to is not judged by what had taken its place."""
        was, self._card = self._card, card
        asked, self._asked = self._asked, self._asked_now()
        if card.sha256 == was.sha256:
            return
        same = asked == self._asked
        back, self._fell = self._fell or card.sha256 == self._earlier, False
        self._earlier = "" if back else was.sha256
        before = self._before if same else None  # another form of it is judged by the same numbers
        if before is None and (same or not self._trusted(card)):
            before = (None if back else self.baseline()) or self._baseline_of(card)
        self._begin(before)

    def _asked_now(self) -> ModelCard:
        """Of the network that was asked for; what serves may be another form of it."""
        engine = self._tracker.engine
        return engine.asked if isinstance(engine, SwapEngine) else engine.card

    def _end_block(self) -> None:
        n, measured, score, fit, jitters, jitter = self._sums
        nan = math.nan
        self._blocks.append(
            (
                measured / n,
                score / measured if measured else nan,
                fit / measured if measured else nan,
                1e3 * jitter / jitters if jitters else nan,
            )
        )
        self._sums = [0.0] * 6
        if self._before is None:
            return
        self._since += 1
        latest = list(self._blocks)[-WINDOW:]
        saw = self._before["seen"]["mean"] if "seen" in self._before else 0.0  # another edge-hand may not have kept it
        blind = self._since >= EARLY and all(b[0] < 0.3 * saw for b in latest[-EARLY:])
        why = fallen(self._before, baseline_of(latest)) if self._since >= WINDOW or blind else ""
        if why:
            self._before = None
            self._fell = True
            self._go_back(f"its health fell: {why}")
        elif self._since >= WATCHED:
            self._before = None
            self._settled(self._card)


def watch_health(
    tracker: Tracker, engine: SwapEngine, reloader: Reloader, say: Callable[[str], None], store: Path | None = None
) -> Health:
    """The health of a daemon's network. Where it falls, the network before serves the next frame, or that of the
    store's version before if this process had none, and the store's pointer goes back with it, as it does where the
    network fails. Files are read and written in threads of their own."""
    folder = store or default_store()
    engine.probation = max(engine.probation, PROBATION)

    def in_thread(work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except (StoreError, ModelError, ReloadError) as error:
                say(f"store: {error}")

        threading.Thread(target=run, name="store", daemon=True).start()

    def go_back(why: str) -> None:
        digest, asked = engine.card.sha256, engine.asked
        back = engine.rollback(why)
        another = engine.asked != asked  # and not the same network on another engine
        in_thread(lambda: forget(digest, why, back, another))

    def forget(digest: str, why: str, back: bool = True, another: bool = True) -> None:
        bad = number_of(folder, digest)
        if bad:
            moves = bad == in_use(folder)  # or another daemon has seen to that
            model = model_of(rollback(folder, bad))
            if moves or not another:
                say(f"store: version {bad} is no longer in use, {model.stem} is: {why}")
            if not another:
                reloader.use(model)
        elif not back:
            say(f"engine: {engine.card.name} stays, there is none to go back to: {why}")

    engine.left = lambda card, why: in_thread(lambda: forget(card.sha256, why))

    def saved(card: ModelCard) -> Baseline | None:
        try:
            number = number_of(folder, card.sha256)
            return None if not number or is_proven(folder, number) else version(folder, number).baseline or None
        except StoreError:
            return None

    def trusted(card: ModelCard) -> bool:
        try:
            number = number_of(folder, card.sha256)
            return number == SHIPPED or (number is not None and is_proven(folder, number))
        except StoreError:
            return False

    def proven(card: ModelCard) -> None:
        def note() -> None:
            if number := number_of(folder, card.sha256):
                prove(folder, number)
                say(f"store: version {number} has proven itself")

        in_thread(note)

    health = Health(tracker, go_back, saved, proven, trusted)
    engine.keep = lambda: health.watching
    return health


class _Listening:
    """The tracker's finder, that also notes when it is sure of a hand."""

    def __init__(self, finder: Finder) -> None:
        self._inner = finder
        self.threshold, self.judges = finder.threshold, finder.judges
        self.engine = getattr(finder, "engine", None)
        self.sure = False

    def __call__(self, frame: DepthFrame, part: Part | None = None) -> list[HandRoi]:
        rois = self._inner(frame, part)
        self.sure |= self.judges and any(r.score >= SURE and r.centre_m[2] <= NEW_WITHIN_M for r in rois)
        return rois


def baseline_of(blocks: list[tuple[float, ...]]) -> Baseline:
    """Means over blocks, (seen, score, fit_mm, jitter_mm) each, and how they scatter; NaN blocks are left out."""
    result = {}
    for i, measure in enumerate(MEASURES):
        values = np.array([b[i] for b in blocks if b[i] == b[i]])
        sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        mean = float(values.mean()) if len(values) else math.nan
        result[measure.name] = {"mean": mean, "sd": sd, "blocks": float(len(values))}
    return result


def fallen(before: Baseline, now: Baseline) -> str:
    """In words which measures fell by more than their margin and by more than the blocks scatter; empty if none."""
    lines = []
    for m in MEASURES:
        old, new = before.get(m.name), now[m.name]
        if old is None or not old["blocks"] or not new["blocks"]:
            continue
        worse = old["mean"] - new["mean"] if m.more_is_better else new["mean"] - old["mean"]
        noise = math.sqrt(old["sd"] ** 2 / old["blocks"] + new["sd"] ** 2 / new["blocks"])
        margin = m.margin * abs(old["mean"]) if m.relative else m.margin
        if worse > margin and worse > SIGMAS * noise:
            lines.append(f"{m.words} {new['mean']:.2f}, before {old['mean']:.2f}")
    return "; ".join(lines)
