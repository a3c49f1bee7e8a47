"""Another form of a finished float model: compared with it in millimetres, refused if it is far, else kept with a card.

ONNX Runtime computes both files, on the CPU.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..edge.engines import open_engine
from ..edge.networks.card import ModelCard, ModelError, load_card, sha256
from ..trainer.synth.samples import Generator, Sample
from . import ExportError
from .onnx import PROBES, vertices_m

Run = Callable[[Any], list[Any]]


class Probe(NamedTuple):
    """A crop and the vertices (V, 3) m that the float model gives for it."""

    sample: Sample
    image: Any
    vertices_m: Tensor


def float_card(model: Path) -> ModelCard:
    """The card of a float model. Raises ModelError, and ExportError for another's."""
    card = load_card(model)
    if card.precision != "fp32":
        raise ExportError(
            f"model {model}: it is in {card.precision}; give the fp32 one, which other forms are made from"
        )
    if "net" not in card.training:
        raise ModelError(f"model {model}: its card does not say which network it is")
    return card


def probes_of(model: Path, card: ModelCard) -> list[Probe]:
    """What the float model makes of the probe crops."""
    engine = open_engine("onnxruntime", model, net=None)
    generator = Generator("val", seed=1, kind=card.training.get("kind", "full"), image_px=card.crop_size)
    probes = []
    for i in range(PROBES):
        sample = generator.sample(i)
        image = np.ascontiguousarray(sample.image[None, None])
        probes.append(Probe(sample, image, _vertices_m(card, engine.run(image), sample)))
    return probes


def distance(run: Run, card: ModelCard, probes: list[Probe]) -> dict[str, Any]:
    """Between the vertices that another form gives and those of the probes, mm."""
    off = [(_vertices_m(card, run(p.image), p.sample) - p.vertices_m).norm(dim=-1) * 1e3 for p in probes]
    every = torch.stack(off)
    return {"max_mm": float(every.max()), "mean_mm": float(every.mean()), "probes": len(probes)}


def keep(
    out: Path, write: Callable[[Path], None], model: Path, precision: str, probes: list[Probe], limit_mm: float
) -> ModelCard:
    """Put what write wrote, another form of a float model, in out's place with its card. Raises ExportError if it is
    further than the limit from the probes, in the mean; nothing is left behind then."""
    card = load_card(model)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        part = Path(temporary) / out.name
        write(part)
        made = replace(card, name=out.stem, sha256=sha256(part), precision=precision, metrics={}, parity={})
        made.write(part)
        parity = distance(open_engine("onnxruntime", part, net=None).run, card, probes)
        if not parity["mean_mm"] <= limit_mm:
            raise ExportError(
                f"export {out}: it is {parity['mean_mm']:.3f} mm from {model.name} on {len(probes)} crops (at most "
                f"{parity['max_mm']:.1f}); allowed are {limit_mm} mm"
            )
        made = replace(made, parity={**parity, "from": card.sha256})
        os.replace(part, out)
        made.write(out)
    return made


def _vertices_m(card: ModelCard, outputs: list[Any], sample: Sample) -> Tensor:
    return vertices_m(card.training["net"], card.outputs, map(torch.from_numpy, outputs), sample)
