"""Serve with one engine while another is made ready, and change between frames: a plan that builds for minutes, weights
adapted to a person. A change that is not proven does not happen; one that fails afterwards is taken back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engines import Engine
from .model_card import ModelCard, ModelError
from .probe import compare, crops

PROBATION = 300  # frames after a change in which every output is looked at, and the old engine is kept
_log = logging.getLogger(__name__)

Open = Callable[[], Engine]


class SwapEngine:
    """An engine that can be replaced while it runs. run() belongs to one thread; offer() may come from any.

    Candidates are opened and compared with their reference in a thread of their own; run() takes over one that passed.
    An engine that raises, or gives what is not finite, in its first frames hands the same frame to the one before it.
    changed, if given, hears one line about every change and refusal, in whichever thread it happens.
    """

    def __init__(self, engine: Engine, changed: Callable[[str], None] | None = None) -> None:
        self._now = engine
        self._before: Engine | None = None
        self._ready: Engine | None = None
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None
        self._frames = 0  # since the change
        self._changed = changed or (lambda line: _log.info("%s", line))
        self.note = ""  # the last line

    @property
    def card(self) -> ModelCard:
        return self._now.card

    @property
    def name(self) -> str:
        return self._now.name

    @property
    def busy(self) -> bool:
        """Whether a candidate is being made ready, or waits for the next frame."""
        return self._ready is not None or (self._worker is not None and self._worker.is_alive())

    def run(self, image: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The outputs of the engine that serves now. Raises what the engine raises if there is none to go back to."""
        if self._ready is not None:
            self._take_over(self._ready)
        if self._before is None:
            return self._now.run(image)
        try:
            outputs = self._now.run(image)
            wrong = "" if all(np.isfinite(array).all() for array in outputs) else "it gave what is not finite"
        except Exception as error:  # of whatever kind: the engine before it still works
            outputs, wrong = [], " ".join(str(error).split())[:200]
        if wrong:
            self.rollback(wrong)
            return self._now.run(image)
        self._frames += 1
        if self._frames >= PROBATION:
            _close(self._before)
            self._before = None
        return outputs

    def offer(self, candidate: Open, reference: Open, limit_mm: float) -> None:
        """Open both in the background; if their vertices are at most limit_mm apart on the probe crops (mean), serve
        with the candidate from the next frame on. The reference is closed. Raises ModelError if one is in the making.
        """
        with self._lock:
            if self.busy:
                raise ModelError("engine: another one is already being made ready")
            self._worker = threading.Thread(target=self._prepare, args=(candidate, reference, limit_mm), daemon=True)
            self._worker.start()

    def rollback(self, why: str = "it was asked for") -> bool:
        """Go back to the engine before the last change, between frames; False if there is none any more."""
        if self._before is None:
            return False
        bad, self._now, self._before = self._now, self._before, None
        self._say(f"engine: back to {_of(self._now)}: {why} ({_of(bad)})")
        _close(bad)
        return True

    def wait(self, seconds: float) -> bool:
        """Until no candidate is in the making; False if it takes longer."""
        if self._worker is not None:
            self._worker.join(seconds)
            return not self._worker.is_alive()
        return True

    def _prepare(self, candidate: Open, reference: Open, limit_mm: float) -> None:
        engine: Engine | None = None
        try:
            engine = candidate()
            if (engine.card.inputs, engine.card.outputs) != (self.card.inputs, self.card.outputs):
                raise ModelError("its inputs and outputs are others")
            expected = reference()
            try:
                off = compare(engine, expected, crops(engine.card.crop_size))
            finally:
                _close(expected)
            if not off.mean_mm <= limit_mm:
                raise ModelError(f"it is {off.mean_mm:.2f} mm from {_of(expected)}, allowed are {limit_mm:g}")
        except Exception as error:  # a candidate of whatever kind must not end the daemon
            what = "the new one" if engine is None else _of(engine)
            self._say(f"engine: {_of(self)} stays; {what}: {' '.join(str(error).split())[:300]}")
            if engine is not None:
                _close(engine)
            return
        self._ready = engine

    def _take_over(self, ready: Engine) -> None:
        if self._before is not None:
            _close(self._before)
        before, self._now, self._ready, self._frames = self._now, ready, None, 0
        self._before = before
        self._say(f"engine: {_of(ready)} now, {_of(before)} before")

    def _say(self, line: str) -> None:
        self.note = line
        self._changed(line)


def _of(engine: Engine) -> str:
    return f"{engine.card.name} on {engine.name}"


def _close(engine: Engine) -> None:
    close = getattr(engine, "close", None)
    if close is not None:
        close()
