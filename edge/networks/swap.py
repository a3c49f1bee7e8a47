"""Serve with one engine while another is made ready, and change between frames: a plan that builds for minutes, weights
adapted to a person. A change that is not proven does not happen; one that fails afterwards is taken back. An engine
that fails later is opened anew."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine
from ..engines.tensorrt.plan import building
from .card import ModelCard, ModelError
from .probe import compare, images

PROBATION = 300  # runs after a change in which every output is looked at, and the old engine is kept
MOST_FAILURES = 5  # of an engine that is opened anew each time, without `probation` good runs between them
FORGOTTEN_S = 0.5  # after its closing nobody holds an engine any more
LEAVE_S = 10.0  # that a process which ends waits for a candidate
LET_GO_S = 2.0  # and then for a thread that lets go of its engines
FIRST_DELAY_S = 0.2  # from one round of opening to the next, doubling
_log = logging.getLogger(__name__)
_workers: WeakSet[threading.Thread] = WeakSet()

Open = Callable[[], Engine]


class EngineDown(ModelError):
    """The engine failed and could not be opened at once: this frame is lost, a later one may not be."""


@contextlib.contextmanager
def waited_for(hurry: Callable[[], None] = lambda: None) -> Iterator[None]:
    """A process that ends waits for this block, which it hurries: a thread that is inside an engine while the
    interpreter ends would abort it. One that waits for a plan is in none."""
    done = threading.Event()

    def leave() -> None:
        hurry()
        end_s = time.monotonic() + LEAVE_S
        while not (building() or done.wait(0.05) or time.monotonic() > end_s):
            pass

    atexit.register(leave)
    try:
        yield
    finally:
        done.set()
        atexit.unregister(leave)


@atexit.register  # before any block that is waited for, and so called after them
def _join_workers() -> None:
    """A thread that frees an engine, of which it was the last to hold one, while the interpreter ends aborts it too."""
    for worker in list(_workers):
        if not building():
            worker.join(LET_GO_S)


class SwapEngine:
    """An engine that can be replaced while it runs. run() belongs to one thread; offer() may come from any.

    Candidates are opened and compared with their reference in a thread of their own; run() takes over one that passed.
    An engine that raises, or gives what is not finite, in its first frames hands the same frame to the one before it.
    changed, if given, hears one line about every change and refusal, in whichever thread it happens. The engine before
    is kept for `probation` frames, and for as long as keep() says; until then `rollback` has somewhere to go. left, if
    set, hears which network failed and was left for another, and why. openers, if given, open the engine anew when it
    fails and there is none to go back to: the first of them that works.
    """

    def __init__(
        self,
        engine: Engine,
        changed: Callable[[str], None] | None = None,
        probation: int = PROBATION,
        openers: Sequence[Open] = (),
        asked: ModelCard | None = None,
    ) -> None:
        self._now = engine
        self._asked = self._asked_before = self._asked_ready = asked or engine.card
        self.openers = list(openers)
        self._openers_before: list[Open] = []
        self._opener: Open | None = None  # of the one that is ready
        self._making = self._closed = False
        self._failures, self._down, self._mend_s = 0, "", 0.0
        self.probation = probation
        self._before: Engine | None = None
        self._ready: Engine | None = None
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None
        self._frames = 0  # since the change
        self._changed = changed or (lambda line: _log.info("%s", line))
        self.note = ""  # the last line
        self.at_close: Callable[[], None] | None = None
        self.at_exit: Callable[[], None] = lambda: None  # of the process, while a candidate is in the making
        self.left: Callable[[ModelCard, str], None] | None = None
        self.keep: Callable[[], bool] = lambda: False

    @property
    def card(self) -> ModelCard:
        return self._now.card

    @property
    def asked(self) -> ModelCard:
        """Of the network that was asked for, in use or about to be; what serves may be another form of it."""
        return self._asked if self._ready is None else self._asked_ready

    @property
    def name(self) -> str:
        return self._now.name

    @property
    def serving(self) -> Engine:
        """The engine itself that serves now."""
        now = self._now
        return now.serving if isinstance(now, SwapEngine) else now

    @property
    def busy(self) -> bool:
        """Whether a candidate is being made ready, or waits for the next frame."""
        working = self._worker is not None and self._worker.is_alive()
        return self._ready is not None or self._making or working

    def run(self, image: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The outputs of the engine that serves now. Raises what the engine raises if there is none to go back to; with
        openers, EngineDown while none of them works and ModelError after MOST_FAILURES."""
        self.settle()
        if self._down:
            return self._mend(image)
        if self._before is None and not self.openers:
            return self._now.run(image)
        outputs, wrong = _tried(self._now, image)
        if wrong and self._before is None:
            self._failures += 1
            self._down, self._mend_s = wrong, time.monotonic()
            self._say(f"engine: {_of(self)} failed: {wrong}")
            return self._mend(image)
        if wrong:
            bad, asked = self._now.card, self._asked
            self.rollback(wrong)
            if self.left is not None and self._asked != asked:
                self.left(bad, wrong)
            return self.run(image)  # which may fail as well
        self._frames += 1
        if self._frames >= self.probation:
            self._failures = 0
            if self._before is not None and not self.keep():
                _close(self._before)
                self._before = None
        return outputs

    def settle(self) -> None:
        """Take over what is ready, as run() does: between frames, where none may come for a while."""
        if self._ready is not None:
            self._take_over(self._ready)

    def offer(self, candidate: Open, reference: Open, limit_mm: float) -> None:
        """Open both in the background; if their vertices are at most limit_mm apart on the probe crops (mean), serve
        with the candidate from the next frame on. The reference is closed. Raises ModelError if one is in the making.
        """
        with self._lock:
            self._refuse_a_second()
            self._worker = threading.Thread(
                target=self._prepare, args=(candidate, lambda engine: _far(engine, reference, limit_mm)), daemon=True
            )
            self._worker.start()
            _workers.add(self._worker)

    def propose(self, candidate: Open, check: Callable[[Engine], str], asked: ModelCard) -> None:
        """Open a candidate here and now, in the caller's thread; serve with it from the next frame on if it takes what
        this engine takes and check finds nothing wrong, in one line. asked is the card of the network that is asked
        for. Raises ModelError, and all stays as it is.
        """
        with self._lock:
            self._refuse_a_second()
            self._making = True
        try:
            wrong = self._prepare(candidate, check, asked)
        finally:
            self._making = False
        if wrong:
            raise ModelError(wrong)

    def rollback(self, why: str = "it was asked for") -> bool:
        """Go back to the engine before the last change, between frames; False if there is none any more."""
        if self._before is None:
            return False
        bad, self._now, self._before = self._now, self._before, None
        self._asked = self._asked_before
        self.openers, self._down = self._openers_before or self.openers, ""
        self._say(f"engine: back to {_of(self._now)}: {why} ({_of(bad)})")
        _close(bad)
        return True

    def wait(self, seconds: float) -> bool:
        """Until no candidate is in the making; False if it takes longer."""
        if self._worker is not None:
            self._worker.join(seconds)
            return not self._worker.is_alive()
        return True

    def _refuse_a_second(self) -> None:
        if self.busy:
            raise ModelError("engine: another one is already being made ready")

    def close(self) -> None:
        """Close all that is open; what is still in the making is closed when it is ready."""
        self._closed = True
        if self.at_close is not None:
            self.at_close()
        for engine in (self._now, self._before, self._ready):
            _close(engine)

    def _prepare(self, candidate: Open, check: Callable[[Engine], str], asked: ModelCard | None = None) -> str:
        """Make a candidate ready; what is wrong with it otherwise. asked: of another network than before."""
        with waited_for(self.at_exit):
            return self._prepared(candidate, check, asked)

    def _prepared(self, candidate: Open, check: Callable[[Engine], str], asked: ModelCard | None) -> str:
        engine: Engine | None = None
        try:
            engine = candidate()
            wrong = _other_form(engine.card, self.card) or check(engine)
            if wrong:
                raise ModelError(wrong)
        except Exception as error:  # a candidate of whatever kind must not end the daemon
            wrong = " ".join(str(error).split())[:300]
            self._say(f"engine: {_of(self)} stays; {'the new one' if engine is None else _of(engine)}: {wrong}")
            _close(engine)
            return wrong
        if self._closed:
            _close(engine)
            return ""
        self._opener, self._asked_ready, self._ready = candidate, asked or self._asked, engine
        return ""

    def _mend(self, image: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The outputs of the engine opened anew. Raises EngineDown, or at last ModelError."""
        if self._failures >= MOST_FAILURES:
            raise ModelError(f"engine: {_of(self)} failed {self._failures} times, at last: {self._down}")
        if time.monotonic() < self._mend_s:
            raise EngineDown(f"engine: {self._down}; it is opened anew")
        for opener in self.openers:
            try:
                fresh = opener()
                outputs, wrong = _tried(fresh, image)
            except Exception as error:
                wrong = " ".join(str(error).split())[:200]
                continue
            if wrong:
                _close(fresh)
                continue
            broken, self._now, self._down, self._frames = self._now, fresh, "", 0
            self._say(f"engine: {_of(fresh)}, opened anew")
            _close(broken)
            return outputs
        self._failures += 1
        self._down = wrong
        self._mend_s = time.monotonic() + FIRST_DELAY_S * 2 ** (self._failures - 2)
        raise EngineDown(f"engine: {self._down}; it is opened anew")

    def _take_over(self, ready: Engine) -> None:
        if self._before is not None:
            _close(self._before)
        self._asked_before, self._asked = self._asked, self._asked_ready
        before, self._now, self._ready, self._frames = self._now, ready, None, 0
        self._before, self._down = before, ""
        if self.openers and self._opener is not None:
            self._openers_before = self.openers
            self.openers = [self._opener, self.openers[0]]
        self._say(f"engine: {_of(ready)} now, {_of(before)} before")

    def _say(self, line: str) -> None:
        self.note = line
        self._changed(line)


def _tried(engine: Engine, image: NDArray[np.float32]) -> tuple[list[NDArray[Any]], str]:
    """An engine's outputs, and what is wrong with them."""
    try:
        outputs = engine.run(image)
    except Exception as error:  # of whatever kind: there may be another engine that works
        return [], " ".join(str(error).split())[:200] or type(error).__name__
    return outputs, "" if all(np.isfinite(array).all() for array in outputs) else "it gave what is not finite"


def _other_form(new: ModelCard, old: ModelCard) -> str:
    """Why a network cannot take the place of another between two crops."""
    if (new.inputs, new.outputs) != (old.inputs, old.outputs):
        return "its inputs and outputs are others"
    if (new.kind, new.crop_size, new.cube_m) != (old.kind, old.crop_size, old.cube_m):
        return f"it is a {new.kind} for crops of {new.crop_size} px and {new.cube_m:g} m, not as the one that serves"
    return ""


def _far(engine: Engine, reference: Open, limit_mm: float) -> str:
    expected = reference()
    try:
        off = compare(engine, expected, images(engine.card))
    finally:
        _close(expected)
    return (
        "" if off.mean_mm <= limit_mm else f"it is {off.mean_mm:.2f} mm from {_of(expected)}, allowed are {limit_mm:g}"
    )


def _of(engine: Engine) -> str:
    return f"{engine.card.name} on {engine.name}"


def _close(engine: Engine | None) -> None:
    close = getattr(engine, "close", None)
    if engine is not None and close is not None:
        try:
            close()
        except Exception as error:  # of whatever kind: a GPU that failed fails again, and another engine serves already
            _log.warning("engine: %s cannot be closed: %s", _of(engine), " ".join(str(error).split())[:200])
    threading.Thread(target=_give_memory_back, name="give back", daemon=True).start()


def _give_memory_back() -> None:
    """What an engine had, to the system: glibc would keep it, in pieces, and each change would need more."""
    time.sleep(FORGOTTEN_S)
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
