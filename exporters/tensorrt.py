"""A finished float model to what TensorRT is given: NAME-tensorrt-fp16.onnx or NAME-tensorrt-int8.onnx, with a card.

The plan is built from it on the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx

from ..edge.engines.tensorrt import artefact
from ..edge.networks.card import ModelCard
from . import ExportError, FormError
from .calibration import images_for
from .fp16 import check_range, to_half
from .onnx import room_for
from .parity import Probe, distance, float_card, keep, probes_of
from .qdq import to_int8

SENSITIVE_PROBES = 12  # of the probes, when looking for convolutions that must stay in floats
LIMITS_MM = {"fp16": 0.1, "int8": 1.0}  # mean distance allowed between the vertices of the two files
SENSITIVE_MM = 0.7


def export_tensorrt(model: Path, precision: str, folder: Path | None = None, calibration: Path | None = None) -> Path:
    """Write the TensorRT form of a float model beside it, or into folder; the scales of 8 bits from the hands in a
    recording, else from rendered ones. Raises ModelError, CameraError, ExportError; nothing is left behind then."""
    if precision not in LIMITS_MM:
        raise ExportError(
            f"--target tensorrt --precision {precision}: possible are {', '.join(LIMITS_MM)}; in 32 bits TensorRT "
            "takes the float model itself"
        )
    card = float_card(model)
    out = artefact(model, precision)
    out = out if folder is None else folder / out.name
    room_for(out)
    probes = probes_of(model, card)
    proto = onnx.load(model)
    try:
        if precision == "fp16":
            check_range(proto, (probe.image for probe in probes))
            made = to_half(proto)
        else:
            made = _to_int8(proto, card, probes, images_for(model, card, calibration))
    except FormError as error:
        raise ExportError(f"export {out}: {error}") from None
    keep(out, lambda part: onnx.save(made, part), model, precision, probes, LIMITS_MM[precision])
    return out


def _to_int8(proto: onnx.ModelProto, card: ModelCard, probes: list[Probe], images: Iterable[Any]) -> onnx.ModelProto:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3

    def error(model: onnx.ModelProto) -> float:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        run = lambda image: session.run(None, {"image": image})  # noqa: E731
        return float(distance(run, card, probes[:SENSITIVE_PROBES])["mean_mm"])

    return to_int8(proto, images, error, SENSITIVE_MM)
