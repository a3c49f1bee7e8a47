"""Engines: executable networks. One file of this folder is one backend.

A backend `<kind>.py` has `open_engine(model: Path, card: ModelCard, threads: int) -> Engine`; its SDK is imported
inside it.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...hand.frames import HandCrop, HandPrediction
from ..model_card import DEFAULT_MODEL, ModelCard, ModelError, load_card

Array = NDArray[Any]


class Engine(Protocol):
    """Arrays in, arrays out."""

    card: ModelCard
    name: str  # "onnxruntime 1.31.1, 1 thread"

    def run(self, image: NDArray[np.float32]) -> list[Array]:
        """image (1, 1, S, S) to the card's outputs in its order."""


def engine_kinds() -> list[str]:
    """The backends there are: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def open_engine(
    kind: str = "auto", model: Path = DEFAULT_MODEL, threads: int = 1, *, net: str | None = "dgn"
) -> Engine:
    """Open a model with one kind of engine; auto is onnxruntime, which runs anywhere. Raises ModelError.

    net is the kind of network that the caller can use, None any.
    """
    kinds = engine_kinds()
    if kind != "auto" and kind not in kinds:
        raise ModelError(f"engine {kind!r}: there is no such engine; possible are auto, {', '.join(kinds)}")
    card = load_card(model)
    if net and card.kind != net:
        raise ModelError(f"model {model}: its kind is {card.kind!r}; this needs {net}")
    backend = importlib.import_module("." + ("onnxruntime" if kind == "auto" else kind), __name__)
    engine: Engine = backend.open_engine(model, card, threads)
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
