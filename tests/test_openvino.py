"""OpenVINO beside ONNX Runtime on the same files: the same hands, in millimetres."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from edge_hand.edge.engines import Engine, engine_kinds, open_engine, openvino
from edge_hand.edge.networks import tune
from edge_hand.edge.networks.card import DEFAULT_MODEL, MODELS, ModelError, load_card, sha256
from edge_hand.edge.networks.probe import compare, crops

FLOAT = MODELS / "dgn-nano.onnx"
installed = importlib.util.find_spec("openvino") is not None
needs_it = pytest.mark.skipif(not installed, reason="openvino is not installed (pip install '.[openvino]')")


def opened(model: Path, bf16: bool | None = False, threads: int = 1) -> Engine:
    return openvino.open_engine(model, load_card(model), threads, bf16=bf16)


def has_bf16() -> bool:
    return {"bf16": True} in openvino.choices(1)


@pytest.mark.skipif(installed, reason="openvino is installed")
def test_without_it_one_line_says_what_to_install() -> None:
    assert "openvino" in engine_kinds() and openvino.unavailable() == "it is not installed"
    with pytest.raises(
        ModelError, match=r"^openvino: it is not installed \(.*\); pip install '\.\[openvino\]' in edge-hand's folder$"
    ):
        open_engine("openvino")
    assert openvino.choices(1) == []


def test_leavings_of_an_uninstalled_one_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", unknown)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())  # a folder of its name
    assert openvino.unavailable() == "it is not installed"
    assert "openvino" not in tune.key(DEFAULT_MODEL, 1)["engines"]
    monkeypatch.setitem(sys.modules, "openvino", ModuleType("openvino"))  # without anything in it
    with pytest.raises(ModelError, match=r"^openvino: it cannot use this CPU \(module 'openvino' has no attribute"):
        opened(DEFAULT_MODEL)
    assert openvino.choices(1) == []


@needs_it
def test_in_32_bits_it_gives_what_onnxruntime_gives() -> None:
    assert compare(opened(FLOAT), open_engine("onnxruntime", FLOAT), crops(64)).max_mm < 0.01


@needs_it
@pytest.mark.parametrize("bf16", [False, True])
def test_in_8_bits_it_is_as_near_to_the_float_network_as_onnxruntime_is(bf16: bool) -> None:
    if bf16 and not has_bf16():
        pytest.skip("this CPU has no bfloat16")
    truth, images = open_engine("onnxruntime", FLOAT), crops(64, 128)  # of fewer, one ambiguous hand decides
    theirs = compare(open_engine("onnxruntime", DEFAULT_MODEL), truth, images).mean_mm
    ours = compare(opened(DEFAULT_MODEL, bf16), truth, images).mean_mm
    assert ours < theirs * 1.2  # 1.05 over 512 crops, and no worse joints


@needs_it
def test_it_names_itself_and_its_threads() -> None:
    assert opened(FLOAT).name == f"openvino {openvino.version()}, 1 thread"
    assert opened(FLOAT, threads=2).name.endswith(", 2 threads")
    assert opened(FLOAT, bf16=None).name.endswith(", bf16") == has_bf16()


@needs_it
def test_a_result_is_not_overwritten_by_the_next_run() -> None:
    engine, images = opened(FLOAT), crops(64, 2)
    first = engine.run(images[0])
    kept = [array.copy() for array in first]
    engine.run(images[1])
    for array, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


@needs_it
@pytest.mark.parametrize("data", [b"", b"this is no network"])
def test_a_file_that_it_cannot_load_is_one_line(tmp_path: Path, data: bytes) -> None:
    model = tmp_path / "net.onnx"
    model.write_bytes(data)
    card = json.loads(FLOAT.with_suffix(".json").read_text()) | {"sha256": sha256(model)}
    model.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"^model .*net\.onnx: openvino cannot load it \(.+\)$"):
        opened(model)


@needs_it
def test_a_network_with_other_shapes_than_its_card_s_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    shutil.copy(FLOAT, model)
    card = json.loads(FLOAT.with_suffix(".json").read_text())
    card["outputs"]["log_error"] = [1, 7]
    model.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r": its inputs and outputs are not those of its card$"):
        opened(model)


@needs_it
def test_a_network_for_any_number_of_crops_is_refused(tmp_path: Path) -> None:
    proto, model = onnx.load(FLOAT), tmp_path / "net.onnx"
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(proto, model)
    card = json.loads(FLOAT.with_suffix(".json").read_text()) | {"sha256": sha256(model)}
    model.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r": its inputs and outputs are not those of its card$"):
        opened(model)
