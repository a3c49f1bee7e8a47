"""Engines: executable networks. One file, or folder, of this folder is one backend.

A backend `<kind>.py` has `open_engine(model: Path, card: ModelCard, threads: int) -> Engine`; its SDK is imported
inside it. One that `auto` may prefer also has `unavailable() -> str`, why this machine cannot run it, and
`suited(model: Path) -> Path`, which file of a network it runs; its open_engine takes refit and say too. One for CPUs,
which `..tune` tries, has `unavailable`, `version() -> str` and `choices(threads: int) -> list[dict]`, the further
options of its open_engine.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...hand.arrays import Array
from ...hand.template import template
from ..networks.card import DEFAULT_MODEL, ModelCard, ModelError, load_card

PREFERRED = ("tensorrt",)  # by auto, where they can run
ANYWHERE = "onnxruntime"
SWAP_LIMIT_MM = 1.0  # mean distance of vertices between a better engine and onnxruntime on the same file
TUNED_LIMIT_MM = 3.0  # the same between what the tuning found and the float network; an export in 8 bits may have 2
SETTLE_S = 3.0  # before the tuning begins: the first frames come first, and what ends at once need not know
_log = logging.getLogger(__name__)


class Engine(Protocol):
    """Arrays in, arrays out."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def name(self) -> str:
        """ "onnxruntime 1.31.1, 1 thread"."""

    def run(self, image: NDArray[np.float32]) -> list[Array]:
        """image (1, 1, S, S) to the card's outputs in its order."""


def engine_kinds() -> list[str]:
    """The backends there are: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


class Choice(NamedTuple):
    """What auto decided. model is the file of the network that kind runs; passed_over says why not the others."""

    kind: str
    model: Path
    passed_over: tuple[str, ...]

    def explain(self, name: str) -> str:
        """One line; name is that of the engine which serves first."""
        if self.kind != ANYWHERE:
            name = f"{self.kind}: {self.model.name} is being built or loaded; {name} until then"
        return "; ".join([*self.passed_over, name])


def choose(model: Path) -> Choice:
    """The best engine that this machine can run. A machine without a GPU is no error, nor is a missing SDK."""
    passed_over: list[str] = []
    for kind in PREFERRED:
        backend = importlib.import_module("." + kind, __name__)
        why = backend.unavailable()
        if not why:
            try:
                return Choice(kind, backend.suited(model), tuple(passed_over))
            except ModelError as error:
                why = str(error)
        passed_over.append(f"{kind}: {why}")
    return Choice(ANYWHERE, model, tuple(passed_over))


def open_engine(
    kind: str = "auto", model: Path = DEFAULT_MODEL, threads: int = 1, *, net: str | None = "dgn",
    say: Callable[[str], None] | None = None, tune: bool = False, refit: bool = False, at_once: bool = False,
) -> Engine:  # fmt: skip
    """Open a model with one kind of engine. Raises ModelError.

    auto is onnxruntime, which runs anywhere; where there is a better one, it is built and proven first, and one engine
    serves from the first frame to the last. With at_once a `swap.SwapEngine` serves with onnxruntime until then. With
    tune, for those that run for long, a machine without a GPU may change to what its self-tuning found (`..tune`).
    say hears in one line what was chosen and why, and later how a build goes and of changes, from whatever thread.
    threads 0 leaves their number to the tuning, else it is 1. net is the kind of network that the caller can use, None
    any. refit asks for an engine that takes other weights without being built anew, where there is one: its
    `retrained(model)` gives it, or None.
    """
    check_engine(kind, model, net)
    say = say or (lambda line: _log.info("%s", line))
    if kind != "auto":
        return _open(kind, model, threads, refit, say)
    chosen = Choice(ANYWHERE, model, ()) if net == "finder" else choose(model)  # a finder stays on the CPU
    first = _open(ANYWHERE, model, threads)
    if chosen.kind == ANYWHERE and tune:
        return _tuned(chosen, threads, first, say)
    say(f"engine: {chosen.explain(first.name)}")
    if chosen.kind == ANYWHERE:
        return first
    from ..networks.swap import SwapEngine

    serving = SwapEngine(first, say)
    file = chosen.model
    better = partial(_open, chosen.kind, file, threads, refit, say)
    serving.offer(better, lambda: _open(ANYWHERE, file, threads), SWAP_LIMIT_MM)
    if at_once:
        return serving
    serving.wait(threading.TIMEOUT_MAX)
    serving.settle()
    return serving.serving


def check_engine(kind: str, model: Path, net: str | None = "dgn") -> None:
    """Raise ModelError as `open_engine` would, as far as that can be told from the model's card."""
    kinds = engine_kinds()
    if kind != "auto" and kind not in kinds:
        raise ModelError(f"engine {kind!r}: there is no such engine; possible are auto, {', '.join(kinds)}")
    card = load_card(model)
    if net and card.kind != net:
        raise ModelError(f"model {model}: its kind is {card.kind!r}; this needs {net}")
    _check_hand(card, model)


def _check_hand(card: ModelCard, model: Path) -> None:
    """Refuse a mesh that is not our hand's: the tracker would bend it as if it were."""
    outputs, ours = card.outputs, len(template().vertices_m)
    vertices = outputs.get("vertices_uvd")
    if card.kind == "dgn" and vertices is not None:
        if vertices[-2:] != [ours, 3]:
            theirs = vertices[-2] if len(vertices) > 1 else "no"
            raise ModelError(f"model {model}: it is of another hand, with {theirs} vertices; ours has {ours}")
        cells = (card.crop_size // 2) ** 2
        if outputs.get("log_error", [ours])[-1:] != [ours] or outputs.get("hand_logit", [cells])[-1:] != [cells]:
            raise ModelError(f"model {model}: its card's outputs are not those of a Dual Grid Net for its crops")


def _tuned(chosen: Choice, threads: int, first: Engine, say: Callable[[str], None]) -> Engine:
    """The best engine on a CPU: what an earlier tuning found, else first, while the tuning goes on behind it."""
    from ..networks import tune
    from ..networks.swap import SwapEngine

    model = chosen.model
    kept, start = tune.kept(model, threads), tune.first(model, threads)
    note = f"self-tuned: {kept.line}" if kept else "self-tuning in a while, once on this machine"
    say(f"engine: {chosen._replace(passed_over=(*chosen.passed_over, note)).explain(first.name)}")
    if kept and kept.setting == start:
        return first
    over = threading.Event()

    def tell(line: str) -> None:
        if not (over.is_set() or tune.stopped.is_set()):
            say(line)

    def better() -> Engine:
        nonlocal kept  # an engine that fails later is opened anew by this
        known = kept is not None
        if not known and over.wait(SETTLE_S):
            raise ModelError("self-tuning did not begin")
        kept = kept or tune.tune(model, threads)
        if kept.setting == start or over.is_set():
            raise ModelError(kept.line)
        if not known:
            tell(f"engine: self-tuned: {kept.line}")
        return kept.setting.open()

    def leave() -> None:
        over.set()
        tune.stop()

    serving = SwapEngine(first, tell)
    serving.at_close, serving.at_exit = over.set, leave
    serving.offer(better, lambda: _open(ANYWHERE, tune.files(model)[-1], 1), TUNED_LIMIT_MM)
    return serving


def _open(
    kind: str, model: Path, threads: int, refit: bool = False, say: Callable[[str], None] | None = None
) -> Engine:
    options = {"refit": refit, "say": say} if kind in PREFERRED else {}
    backend = importlib.import_module("." + kind, __name__)
    if kind in PREFERRED and model.stem.endswith("-int8") and "-tensorrt-" not in model.stem:
        model = backend.suited(model)  # 8 bits as a CPU takes them
    engine: Engine = backend.open_engine(model, load_card(model), threads, **options)
    return engine
