"""Engines: executable networks. One file, or folder, of this folder is one backend.

A backend `<kind>.py` has `open_engine(model: Path, card: ModelCard, threads: int) -> Engine`; its SDK is imported
inside it. One that `auto` may prefer also has `unavailable() -> str`, why this machine cannot run it, and
`suited(model: Path) -> Path`, which file of a network it runs.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...hand.frames import HandCrop, HandPrediction
from ..model_card import DEFAULT_MODEL, ModelCard, ModelError, load_card

Array = NDArray[Any]
PREFERRED = ("tensorrt",)  # by auto, where they can run
ANYWHERE = "onnxruntime"
SWAP_LIMIT_MM = 1.0  # mean distance of vertices between a better engine and onnxruntime on the same file
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
        """One line; name is the engine's."""
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
    say: Callable[[str], None] | None = None,
) -> Engine:  # fmt: skip
    """Open a model with one kind of engine. Raises ModelError.

    auto is onnxruntime, which runs anywhere; where there is a better one, a `swap.SwapEngine` serves with onnxruntime
    until the better one is built and proven. say hears in one line what was chosen and why, and later of changes, from
    whatever thread. net is the kind of network that the caller can use, None any.
    """
    kinds = engine_kinds()
    if kind != "auto" and kind not in kinds:
        raise ModelError(f"engine {kind!r}: there is no such engine; possible are auto, {', '.join(kinds)}")
    card = load_card(model)
    if net and card.kind != net:
        raise ModelError(f"model {model}: its kind is {card.kind!r}; this needs {net}")
    if kind != "auto":
        return _open(kind, model, threads)
    chosen, first = choose(model), _open(ANYWHERE, model, threads)
    say = say or (lambda line: _log.info("%s", line))
    say(f"engine: {chosen.explain(first.name)}")
    if chosen.kind == ANYWHERE:
        return first
    from ..swap import SwapEngine

    serving = SwapEngine(first, say)
    file = chosen.model
    serving.offer(lambda: _open(chosen.kind, file, threads), lambda: _open(ANYWHERE, file, threads), SWAP_LIMIT_MM)
    return serving


def _open(kind: str, model: Path, threads: int) -> Engine:
    engine: Engine = importlib.import_module("." + kind, __name__).open_engine(model, load_card(model), threads)
    return engine


def predict(engine: Engine, crop: HandCrop) -> HandPrediction:
    """Run a Dual Grid Net on one crop."""
    vertices, log_error, hand_logit, right_logit, presence_logit = engine.run(crop.image[None, None])
    return HandPrediction(
        vertices_uvd=vertices[0],
        error=np.exp(np.minimum(log_error[0], 2.0)),
        right_logit=float(right_logit[0]),
        presence_logit=float(presence_logit[0]),
        hand=(hand_logit[0] > 0).reshape(crop.image.shape[0] // 2, -1),
    )
