"""8-bit weights and activations for CPUs: the hourglasses' convolutions in integers, all that places points in floats.

Unsigned activations, signed weights per channel, since ONNX Runtime's x86 kernels are many times slower otherwise.
What is first, last or places points stays in 32 bits: coordinates do not survive 8.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from . import ExportError

QUANTIZED = {"Conv", "Relu", "MaxPool"}  # with additions and resizing too it was slower
# Modules of `trainer/nets/dgn.py`. The mesh head counts most: in floats, 1.3 mm from torch where it was 1.9 (1,000 test
# crops) in the same time. Calibration by percentile or entropy and on other numbers of crops changed 0.1 mm at most.
FLOAT = ("image_stem.1", "image_head.1", "mesh_head")


class Inputs(CalibrationDataReader):  # type: ignore[misc]
    """What the network sees, one input at a time."""

    def __init__(self, name: str, arrays: Iterable[Any]) -> None:
        self._name, self._arrays = name, iter(arrays)

    def get_next(self) -> dict[str, Any] | None:
        array = next(self._arrays, None)
        return None if array is None else {self._name: array}


def quantize(model: Path, out: Path, images: Iterable[Any]) -> None:
    """Write the 8-bit form of a float Dual Grid Net; its scales come from the images. Raises ExportError."""
    quantize_where(model, out, "image", images, _is_quantized)


def quantize_where(model: Path, out: Path, name: str, inputs: Iterable[Any], wanted: Callable[[str], bool]) -> None:
    """Write a float model with those nodes in 8 bits whose kind is one of QUANTIZED and whose name is wanted; scales
    come from what they give for the inputs, arrays for the model's input `name`. Raises ExportError."""
    arrays = list(inputs)
    if not arrays:
        raise ExportError(f"quantize {model}: 8 bits need crops to take the scales from, and there are none")
    plain = out.with_name(out.stem + ".plain.onnx")
    logger = logging.getLogger()
    level = logger.level
    try:
        # Constants and batch normalisation are folded first, so that scales belong to what is computed.
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(plain)
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(plain).graph.node
        names = [node.name for node in nodes if node.op_type in QUANTIZED and wanted(node.name)]
        if not names:  # which ONNX Runtime would take for all
            raise ExportError(f"quantize {model}: none of its layers is one that 8 bits are for")
        logger.setLevel(logging.ERROR)  # it advises what was done above
        quantize_static(
            plain, out, Inputs(name, arrays), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_quantize=names,
            op_types_to_quantize=sorted(QUANTIZED), calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
    finally:
        logger.setLevel(level)
        plain.unlink(missing_ok=True)


def _is_quantized(node: str) -> bool:
    within = any(part in node for part in ("_stem", "_hourglass", "_head"))
    return within and not any(part in node for part in FLOAT)
