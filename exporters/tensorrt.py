"""A finished float model to what TensorRT is given: NAME-tensorrt-fp16.onnx or NAME-tensorrt-int8.onnx, with a card.

The plan is built from it on the device. Parity is measured here, where ONNX Runtime computes the same file on the CPU.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor

from ..edge.engines import open_engine
from ..edge.engines.tensorrt import artefact
from ..edge.model_card import ModelCard, ModelError, load_card, sha256
from ..trainer.synth.samples import Generator, Sample
from .fp16 import Fp16Error, to_half
from .onnx import ExportError, vertices_m
from .qdq import QdqError, to_int8

PROBES = 64  # crops of the validation stream, those of `onnx.py`
SENSITIVE_PROBES = 12  # of them, when looking for convolutions that must stay in floats
CALIBRATION_CROPS = 256
LIMITS_MM = {"fp16": 0.1, "int8": 1.0}  # mean distance allowed between the vertices of the two files
SENSITIVE_MM = 0.7

Run = Callable[[Any], list[Any]]


class Probe(NamedTuple):
    """A crop and the vertices (V, 3) m that the float model gives for it."""

    sample: Sample
    image: Any
    vertices_m: Tensor


def export_tensorrt(model: Path, precision: str, folder: Path | None = None) -> Path:
    """Write the TensorRT form of a float model beside it, or into folder. Raises ModelError, ExportError;
    nothing is left behind then."""
    if precision not in LIMITS_MM:
        raise ExportError(
            f"--target tensorrt --precision {precision}: possible are {', '.join(LIMITS_MM)}; in 32 bits TensorRT "
            "takes the float model itself"
        )
    card = load_card(model)
    if card.precision != "fp32":
        raise ExportError(f"model {model}: it is in {card.precision}; TensorRT's is made from the fp32 one")
    out = artefact(model, precision)
    out = out if folder is None else folder / out.name
    probes = _probes(model, card)
    proto = onnx.load(model)
    try:
        made = to_half(proto) if precision == "fp16" else _to_int8(proto, card, probes)
    except (Fp16Error, QdqError) as error:
        raise ExportError(f"export {out}: {error}") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        part = Path(temporary) / out.name
        onnx.save(made, part)
        made_card = replace(card, name=out.stem, sha256=sha256(part), precision=precision, metrics={}, parity={})
        made_card.write(part)
        parity = compare(part, card, probes)
        if not parity["mean_mm"] <= LIMITS_MM[precision]:
            raise ExportError(
                f"export {out}: it is {parity['mean_mm']:.3f} mm from {model.name} on {len(probes)} crops (at most "
                f"{parity['max_mm']:.1f}); allowed are {LIMITS_MM[precision]} mm"
            )
        made_card = replace(made_card, parity={**parity, "from": card.sha256})
        os.replace(part, out)
        made_card.write(out)
    return out


def compare(model: Path, card: ModelCard, probes: list[Probe]) -> dict[str, Any]:
    """Distance between the vertices of a model and those of the probes, mm."""
    engine = open_engine("onnxruntime", model, net=None)
    return _distance(engine.run, card, probes)


def _distance(run: Run, card: ModelCard, probes: list[Probe]) -> dict[str, Any]:
    off = [(_vertices_m(card, run(p.image), p.sample) - p.vertices_m).norm(dim=-1) * 1e3 for p in probes]
    every = torch.stack(off)
    return {"max_mm": float(every.max()), "mean_mm": float(every.mean()), "probes": len(probes)}


def _probes(model: Path, card: ModelCard) -> list[Probe]:
    if "net" not in card.training:
        raise ModelError(f"model {model}: its card does not say which network it is")
    engine = open_engine("onnxruntime", model, net=None)
    generator = Generator("val", seed=1, kind=card.training.get("kind", "full"), image_px=card.crop_size)
    probes = []
    for i in range(PROBES):
        sample = generator.sample(i)
        image = np.ascontiguousarray(sample.image[None, None])
        probes.append(Probe(sample, image, _vertices_m(card, engine.run(image), sample)))
    return probes


def _vertices_m(card: ModelCard, outputs: list[Any], sample: Sample) -> Tensor:
    return vertices_m(card.training["net"], card.outputs, map(torch.from_numpy, outputs), sample)


def _to_int8(proto: onnx.ModelProto, card: ModelCard, probes: list[Probe]) -> onnx.ModelProto:
    import onnxruntime as ort

    generator = Generator("val", seed=2, kind=card.training.get("kind", "full"), image_px=card.crop_size)
    images = (np.ascontiguousarray(generator.sample(i).image[None, None]) for i in range(CALIBRATION_CROPS))
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3

    def error(model: onnx.ModelProto) -> float:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        run = lambda image: session.run(None, {"image": image})  # noqa: E731
        return float(_distance(run, card, probes[:SENSITIVE_PROBES])["mean_mm"])

    return to_int8(proto, images, error, SENSITIVE_MM)
