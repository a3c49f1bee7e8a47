"""8-bit weights and activations for CPUs: the hourglasses' convolutions in integers, all that places points in floats.

Unsigned activations, signed weights per channel, since ONNX Runtime's x86 kernels are many times slower otherwise.
The first convolution, both heads and the extension stay in 32 bits: coordinates do not survive 8.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from ..trainer.synth.samples import Generator

CALIBRATION_CROPS = 256
QUANTIZED = {"Conv", "Relu", "MaxPool"}  # with additions and resizing too it was slower
FLOAT = ("image_stem.1", "image_head.1", "mesh_head.1")  # modules of `trainer/nets/dgn.py`


class _Crops(CalibrationDataReader):  # type: ignore[misc]
    """Crops of the validation stream, one at a time."""

    def __init__(self) -> None:
        self._generator, self._next = Generator("val", seed=2), 0

    def get_next(self) -> dict[str, Any] | None:
        if self._next == CALIBRATION_CROPS:
            return None
        image = self._generator.sample(self._next).image
        self._next += 1
        return {"image": np.ascontiguousarray(image[None, None])}


def quantize(model: Path, out: Path) -> None:
    """Write the 8-bit form of a float model."""
    plain = out.with_name(out.stem + ".plain.onnx")
    try:
        # Constants and batch normalisation are folded first, so that scales belong to what is computed.
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(plain)
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        names = [
            node.name
            for node in onnx.load(plain).graph.node
            if node.op_type in QUANTIZED
            and any(part in node.name for part in ("_stem", "_hourglass", "_head"))
            and not any(part in node.name for part in FLOAT)
        ]
        logging.getLogger().setLevel(logging.ERROR)  # it advises what was done above
        quantize_static(
            plain, out, _Crops(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, nodes_to_quantize=names, op_types_to_quantize=sorted(QUANTIZED),
            calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
    finally:
        plain.unlink(missing_ok=True)
