"""8 bits for TensorRT, written into the ONNX as pairs of QuantizeLinear and DequantizeLinear in front of convolutions.

TensorRT wants what CPUs are slow with: signed symmetric activations, one scale a tensor; signed weights, one scale a
channel; biases in floats. `quantize.py` has the form for CPUs. The same nodes are chosen as for 16 bits.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

from . import FormError
from .fp16 import finish, trunk, widen
from .quantize import Inputs

Image = NDArray[np.float32]
Error = Callable[[onnx.ModelProto], float]


def to_int8(
    model: onnx.ModelProto, images: Iterable[Image], error: Error | None = None, most: float = 0.0
) -> onnx.ModelProto:
    """The network with the trunk's convolutions in 8 bits. images (1, 1, S, S) set the scales.

    error tells how far a network is from this one; those convolutions that cost most are left in floats until it says
    at most `most`. Raises FormError.
    """
    model = widen(model)
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    names = [model.graph.node[i].name for i in sorted(trunk(model.graph)) if model.graph.node[i].op_type == "Conv"]
    images = list(images)
    if not images:
        raise FormError("8 bits need crops to take the scales from, and there are none")
    made = _quantised(model, names, images)
    keep = names
    if error and error(made) > most:
        cost = {name: error(only(made, {name})) for name in names}
        keep = sorted(names, key=cost.__getitem__)[:-1]
        while keep and error(only(made, set(keep))) > most:
            keep = keep[:-1]
    if not keep:
        raise FormError("it has no convolution that could be in 8 bits")
    return only(made, set(keep))


def only(model: onnx.ModelProto, keep: set[str]) -> onnx.ModelProto:
    """A quantised network of whose convolutions only those named are: the others, and what else reads a quantised
    tensor, read the float one. TensorRT 10.16 fails where anything lies between DequantizeLinear and a convolution."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    maker = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" or node.name in keep:
            continue
        for k, name in enumerate(node.input):
            if name in maker and maker[name].op_type == "DequantizeLinear":
                node.input[k] = maker[maker[name].input[0]].input[0]
    nodes = list(model.graph.node)
    read = {name for node in nodes for name in node.input} | {output.name for output in model.graph.output}
    for kind in ("DequantizeLinear", "QuantizeLinear"):  # from the end to the start
        nodes = [node for node in nodes if node.op_type != kind or node.output[0] in read]
        read = {name for node in nodes for name in node.input} | {output.name for output in model.graph.output}
    stored = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(stored)
    model = finish(model, nodes)
    _check(model)
    return model


def _quantised(model: onnx.ModelProto, names: list[str], images: list[Image]) -> onnx.ModelProto:
    logger = logging.getLogger()
    level = logger.level
    with tempfile.TemporaryDirectory() as folder:
        plain, out = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, plain)
        logger.setLevel(logging.ERROR)  # it advises steps that were done at export
        try:
            quantize_static(
                plain, out, Inputs(model.graph.input[0].name, images), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["Conv"],
                nodes_to_quantize=names, calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": True, "WeightSymmetric": True, "AddQDQPairToWeight": True,
                    "DedicatedQDQPair": True, "QuantizeBias": False, "OpTypesToExcludeOutputQuantization": ["Conv"],
                },
            )  # fmt: skip
        finally:
            logger.setLevel(level)
        return onnx.load(out)


def _check(model: onnx.ModelProto) -> None:
    """What TensorRT would refuse: a zero point that is not 0 or not signed."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = stored[node.input[2]]
            if zero.dtype != np.int8 or zero.any():
                raise FormError(f"{node.name}: its zero point is {zero.dtype} {zero.ravel()[:4]}, not int8 0")
