"""16-bit floats for TensorRT, written into the ONNX: since TensorRT 11 a network's types are the builder's orders.

Convolutions that end in a ReLU, and what only moves or adds their results, compute in 16 bits. All else stays in 32:
the first convolution, whose input is depth; the last, which regress; coordinates, normalisers, sampling, logits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from . import FormError

MOVERS = {"Relu", "MaxPool", "Resize", "Add"}  # 16-bit if all they read is
LARGEST = 6.0e4  # of 65504


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with its trunk in 16-bit floats; inputs and outputs keep their types. Raises FormError."""
    model = widen(model)
    graph = model.graph
    half_nodes = trunk(graph)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    half = {o for i in half_nodes for o in graph.node[i].output}
    users = Counter(name for node in graph.node for name in node.input)
    nodes, cast, inside = [], dict[tuple[str, int], str](), Counter[str]()

    def as_type(name: str, kind: int) -> str:
        if (name, kind) not in cast:
            suffix = ":half" if kind == TensorProto.FLOAT16 else ":float"
            cast[name, kind] = name + suffix
            nodes.append(helper.make_node("Cast", [name], [name + suffix], name=name + suffix, to=kind))
        return cast[name, kind]

    for i, node in enumerate(graph.node):
        for k, name in enumerate(node.input):
            if i in half_nodes and name in stored and name and _is_data(node, k):
                inside[name] += 1
            elif i in half_nodes and name and _is_data(node, k) and name not in half:
                node.input[k] = as_type(name, TensorProto.FLOAT16)
            elif i not in half_nodes and name in half:
                node.input[k] = as_type(name, TensorProto.FLOAT)
        nodes.append(node)
    for name, count in inside.items():
        if count < users[name]:
            raise FormError(f"{name} is used in 16 and in 32 bits")
        array = numpy_helper.to_array(stored[name])
        if np.abs(array).max(initial=0) > LARGEST:
            raise FormError(f"{name} has values up to {np.abs(array).max():.3g}, too large for 16 bits")
        stored[name].CopyFrom(numpy_helper.from_array(array.astype(np.float16), name))
    return finish(model, nodes)


def check_range(model: onnx.ModelProto, images: Iterable[Any]) -> None:
    """Raise FormError if on one of these crops the network has larger numbers than its trunk could in 16 bits. Outputs
    do not show it: ONNX Runtime computes 16 bits wider than a GPU."""
    import onnxruntime as ort

    model = widen(model)
    nodes = [model.graph.node[i] for i in sorted(trunk(model.graph))]
    made = {name for node in model.graph.node for name in node.output}
    data = [name for node in nodes for k, name in enumerate(node.input) if _is_data(node, k) and name in made]
    names = dict.fromkeys([*data, *(name for node in nodes for name in node.output)])
    if not names:
        return
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for image in images:
        for name, array in zip(names, session.run(None, {"image": image}), strict=True):
            if not np.abs(array).max(initial=0) <= LARGEST:
                raise FormError(f"{name} comes to {np.abs(array).max():.3g} on a crop, too large for 16 bits")


def trunk(graph: onnx.GraphProto) -> set[int]:
    """Which nodes (by place) may compute in fewer bits: see the top of the file."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    maker = {output: i for i, node in enumerate(graph.node) for output in node.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in graph.output}
    chosen, after_conv = set[int](), set[int]()
    for i, node in enumerate(graph.node):
        made = [maker[name] for name in node.input if name in maker]
        if any(m in after_conv or graph.node[m].op_type == "Conv" for m in made):
            after_conv.add(i)
        next_ones = readers.get(node.output[0], [])
        if node.op_type == "Conv":
            ends_in_relu = bool(next_ones) and all(n.op_type == "Relu" for n in next_ones)
            if i in after_conv and ends_in_relu:
                chosen.add(i)
        elif node.op_type in MOVERS and not outputs & set(node.output):
            data = [name for k, name in enumerate(node.input) if _is_data(node, k)]
            if all(name in maker and maker[name] in chosen for name in data):
                chosen.add(i)
    return chosen


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose weights are stored as they are computed with: undoes `onnx.store_as_half`."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in stored and node.attribute[0].i == TensorProto.FLOAT:
            tensor = stored[node.input[0]]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), node.output[0]))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    return model


def finish(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> onnx.ModelProto:
    """Put the nodes in place, check the model, and leave out what tools noted about shapes and themselves."""
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    used = {node.domain for node in nodes}
    imports = [entry for entry in model.opset_import if entry.domain in used or entry.domain == ""]
    versions = {entry.domain: entry.version for entry in imports}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def _is_data(node: onnx.NodeProto, k: int) -> bool:
    """Whether the k-th input is computed with; the others are shapes and scales of a resize."""
    return k == 0 or node.op_type in ("Conv", "Add")
