"""What TensorRT is given: 16 bits or 8 where they do no harm, and nothing that is far from the float model."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from edge_hand.edge.engines import open_engine
from edge_hand.edge.engines.tensorrt import artefact, suited
from edge_hand.edge.engines.tensorrt.build import Job
from edge_hand.edge.engines.tensorrt.plan import run_build
from edge_hand.edge.engines.tensorrt.structure import structure
from edge_hand.edge.networks.card import DEFAULT_MODEL, MODELS, ModelError, load_card
from edge_hand.edge.networks.probe import compare, crops
from edge_hand.exporters import ExportError, FormError, calibration, fp16, parity
from edge_hand.exporters import onnx as exporter
from edge_hand.exporters import tensorrt as target
from edge_hand.exporters.fp16 import check_range, to_half, trunk, widen
from edge_hand.exporters.onnx import export
from edge_hand.exporters.qdq import only, to_int8
from edge_hand.exporters.tensorrt import export_tensorrt
from edge_hand.trainer.checkpoint import TrainConfig
from edge_hand.trainer.train import train
from onnx import TensorProto, helper, numpy_helper

FLOAT = MODELS / "dgn-nano.onnx"
TINY = TrainConfig(width=8, samples=4, batch=4, warmup=4, coarse=4, bf16=False, kind="clean")


@pytest.fixture(scope="module")
def half() -> onnx.ModelProto:
    return to_half(onnx.load(FLOAT))


@pytest.fixture(scope="module")
def int8() -> onnx.ModelProto:
    return to_int8(onnx.load(FLOAT), crops(64)[:6])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the shipped float model, with its card."""
    for file in (FLOAT, FLOAT.with_suffix(".json")):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / FLOAT.name


def types(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    stored = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    return stored | {value.name: value.type.tensor_type.elem_type for value in values}


def run(model: onnx.ModelProto, image: Any) -> list[Any]:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"image": image}
    )


def test_only_what_places_no_points_is_in_16_bits(half: onnx.ModelProto) -> None:
    kind = types(half)
    by_type: dict[int, Counter[str]] = {TensorProto.FLOAT16: Counter(), TensorProto.FLOAT: Counter()}
    for node in half.graph.node:
        if kind[node.output[0]] in by_type and node.op_type not in ("Cast", "Constant"):
            by_type[kind[node.output[0]]][node.op_type] += 1
    assert set(by_type[TensorProto.FLOAT16]) == {"Conv", "Relu", "MaxPool", "Resize", "Add"}
    assert by_type[TensorProto.FLOAT16]["Conv"] == 28 and by_type[TensorProto.FLOAT]["Conv"] == 3
    assert {"Exp", "Div", "MatMul", "Gemm", "Sigmoid", "ReduceSum", "Split"} <= set(by_type[TensorProto.FLOAT])
    assert all(kind[value.name] == TensorProto.FLOAT for value in [*half.graph.input, *half.graph.output])


def test_the_first_and_the_last_convolutions_stay_in_floats(half: onnx.ModelProto) -> None:
    kind = types(half)
    floats = [node for node in half.graph.node if node.op_type == "Conv" and kind[node.output[0]] == TensorProto.FLOAT]
    assert all("stem.1." in n.name or n.name.endswith("head.1/Conv") for n in floats)
    assert all(kind[name] == TensorProto.FLOAT for node in floats for name in node.input)


def test_16_bits_cost_a_fraction_of_a_millimetre(half: onnx.ModelProto) -> None:
    reference = open_engine("onnxruntime", FLOAT)
    for image in crops(64)[:4]:
        off = np.linalg.norm(run(half, image)[0] - reference.run(image)[0], axis=-1) * 125
        assert 0 < off.mean() < 0.1 and off.max() < 1


def test_a_weight_that_16_bits_cannot_hold_is_refused() -> None:
    proto = widen(onnx.load(FLOAT))
    weight = next(t for t in proto.graph.initializer if t.name == "onnx::Conv_514")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1e7, weight.name))
    with pytest.raises(FormError, match=r"^onnx::Conv_514 has values up to .*, too large for 16 bits$"):
        to_half(proto)


def chain(*weights: float) -> onnx.ModelProto:
    """Convolutions of one weight each, ReLUs between them."""
    last = len(weights) - 1
    ends = ["image", *(f"r{i}" for i in range(last)), "out"]
    nodes = []
    for i in range(len(weights)):
        nodes.append(helper.make_node("Conv", [ends[i], f"w{i}"], [f"c{i}" if i < last else "out"]))
        nodes += [helper.make_node("Relu", [f"c{i}"], [f"r{i}"])] if i < last else []
    graph = helper.make_graph(
        nodes, "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1, 4, 4])],
        [numpy_helper.from_array(np.full((1, 1, 1, 1), w, np.float32), f"w{i}") for i, w in enumerate(weights)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_16_bits_cannot_hold_on_the_way_is_refused_though_no_output_shows_it() -> None:
    image = np.ones((1, 1, 4, 4), np.float32)
    large = chain(1, 512, 512, 2**-10, 1)
    assert float(run(to_half(large), image)[0].max()) == 256, "a GPU would say infinity"
    with pytest.raises(FormError, match=r"^c2 comes to 2\.62e\+05 on a crop, too large for 16 bits$"):
        check_range(large, [image])
    with pytest.raises(FormError, match=r"^r0 comes to 7e\+04 on a crop, "):  # of 32 bits, but read by 16
        check_range(chain(7e4, 2**-10, 1), [image])
    check_range(chain(1, 512, 2**-10, 512, 7e4), [image])
    check_range(chain(1), [image])


def test_an_export_looks_at_what_is_on_the_way(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crop: Any = SimpleNamespace(image=crops(64)[0])
    monkeypatch.setattr(target, "probes_of", lambda model, card: [crop])
    monkeypatch.setattr(fp16, "LARGEST", 5.0)  # above the weights
    with pytest.raises(ExportError, match=r"on a crop, too large for 16 bits$"):
        export_tensorrt(model, "fp16")
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_stored_in_halves_are_widened_exactly() -> None:
    stored, wide = onnx.load(FLOAT), widen(onnx.load(FLOAT))
    assert any(t.name.endswith(":half") for t in stored.graph.initializer)
    assert all(t.data_type != TensorProto.FLOAT16 for t in wide.graph.initializer)
    for a, b in zip(run(stored, crops(64)[0]), run(wide, crops(64)[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_8_bits_are_what_tensorrt_wants(int8: onnx.ModelProto) -> None:
    stored = {t.name: numpy_helper.to_array(t) for t in int8.graph.initializer}
    maker = {output: node for node in int8.graph.node for output in node.output}
    convs = [n for n in int8.graph.node if n.op_type == "Conv"]
    quantised = [n for n in convs if maker.get(n.input[0], n).op_type == "DequantizeLinear"]
    assert len(convs) == 31 and len(quantised) == 28
    for conv in quantised:
        data, weight = (maker[name] for name in conv.input[:2])
        assert weight.op_type == "DequantizeLinear" and stored[conv.input[2]].dtype == np.float32
        for node, channels in ((data, ()), (weight, (stored[maker[weight.input[0]].input[0]].shape[0],))):
            assert stored[node.input[1]].shape == channels and stored[node.input[1]].dtype == np.float32
            assert stored[node.input[2]].dtype == np.int8 and not stored[node.input[2]].any()
    read = {
        n.op_type for n in int8.graph.node for i in n.input if i in maker and maker[i].op_type == "DequantizeLinear"
    }
    assert read == {"Conv"}


@pytest.mark.slow
def test_what_costs_most_in_8_bits_stays_in_floats(int8: onnx.ModelProto) -> None:
    images, wide = crops(64)[:4], widen(onnx.load(FLOAT))
    truth = [run(wide, image)[0] for image in images]

    def error(model: onnx.ModelProto) -> float:
        off = [np.linalg.norm(run(model, i)[0] - t, axis=-1).mean() for i, t in zip(images, truth, strict=True)]
        return float(np.mean(off)) * 125

    most = error(int8) * 0.6
    chosen = to_int8(onnx.load(FLOAT), crops(64), error, most)
    kinds = Counter(node.op_type for node in chosen.graph.node)
    assert error(chosen) <= most and 20 < kinds["QuantizeLinear"] < 56
    assert error(only(int8, set())) < 1e-3  # nothing is left behind of what is taken out
    with pytest.raises(FormError, match=r"^it has no convolution that could be in 8 bits$"):
        to_int8(onnx.load(FLOAT), crops(64)[:1], lambda model: 1.0, 0.5)


def test_8_bits_without_crops_to_measure_are_refused() -> None:
    with pytest.raises(FormError, match=r"^8 bits need crops to take the scales from, and there are none$"):
        to_int8(onnx.load(FLOAT), [])


def test_a_network_without_convolutions_keeps_its_floats() -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert trunk(proto.graph) == set() and len(to_half(proto).graph.node) == 1


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_export_has_a_card_and_a_parity(
    precision: str, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(parity, "PROBES", 6)
    monkeypatch.setattr(target, "SENSITIVE_PROBES", 2)
    monkeypatch.setattr(target, "SENSITIVE_MM", 9.0)
    monkeypatch.setattr(calibration, "CROPS", 8)
    monkeypatch.setitem(target.LIMITS_MM, "int8", 9.0)
    out = export_tensorrt(model, precision)
    card, source = load_card(out), load_card(model)
    assert out == artefact(model, precision) and card.precision == precision and card.name == out.stem
    assert card.training == source.training and card.parity["from"] == source.sha256 and card.parity["probes"] == 6
    assert 0 < card.parity["mean_mm"] < target.LIMITS_MM[precision]
    assert len(list(tmp_path.iterdir())) == 4
    assert suited(model) == (out if precision == "fp16" else model)
    assert compare(open_engine("onnxruntime", out), open_engine("onnxruntime", model), crops(64)[:3]).mean_mm < 9


def test_a_mismatch_is_refused_and_leaves_nothing_behind(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(parity, "PROBES", 3)
    monkeypatch.setitem(target.LIMITS_MM, "fp16", 1e-6)
    with pytest.raises(ExportError) as caught:
        export_tensorrt(model, "fp16")
    assert str(caught.value).startswith(f"export {artefact(model, 'fp16')}: it is 0.0")
    assert str(caught.value).endswith("; allowed are 1e-06 mm") and len(list(tmp_path.iterdir())) == 2


def test_bad_orders_are_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^--target tensorrt --precision fp32: possible are fp16, int8; "):
        export_tensorrt(model, "fp32")
    with pytest.raises(ExportError, match=r"dgn-nano-int8\.onnx: it is in int8; give the fp32 one, which "):
        export_tensorrt(DEFAULT_MODEL, "fp16", tmp_path)
    with pytest.raises(ModelError, match="no such file"):
        export_tensorrt(tmp_path / "none.onnx", "fp16")


@pytest.mark.slow
def test_two_trainings_may_be_refitted_and_two_networks_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "PROBES", 2)

    def trained(name: str, config: TrainConfig) -> onnx.ModelProto:
        run = train(config, tmp_path / name, workers=0, validate_every=0)
        export(run, tmp_path / f"{name}.onnx")
        return to_half(onnx.load(tmp_path / f"{name}.onnx"))

    first, second = trained("a", TINY), trained("b", replace(TINY, seed=1))
    wider = trained("c", replace(TINY, width=12))
    kinds = [structure(proto.SerializeToString()) for proto in (first, second, wider)]
    assert kinds[0] == kinds[1] != kinds[2] and first.SerializeToString() != second.SerializeToString()
    assert structure(to_half(onnx.load(FLOAT)).SerializeToString()) not in kinds


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_nvidia_s_own_builder_takes_every_precision(
    precision: str, half: onnx.ModelProto, int8: onnx.ModelProto
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed (pip install tensorrt_rtx_cu12)")
    proto = {"fp32": onnx.load(FLOAT), "fp16": half, "int8": int8}[precision]
    job = Job("tensorrt_rtx", precision)
    plan, _ = run_build(job, proto.SerializeToString(), b"", lambda line: None, 120)
    assert len(plan) > 1_000_000
