"""Engines: whatever is wrong with a model is one line before the first frame; what is right repeats exactly."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from edge_hand.edge.cli.main import cli
from edge_hand.edge.engines import engine_kinds, onnxruntime, open_engine
from edge_hand.edge.networks.card import DEFAULT_MODEL, MODELS, ModelError, load_card, sha256
from edge_hand.edge.reading import POINTS, predict
from edge_hand.hand.frames import HandCrop
from edge_hand.hand.template import template


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the model that ships, with its card."""
    shutil.copy(DEFAULT_MODEL, tmp_path / "net.onnx")
    shutil.copy(DEFAULT_MODEL.with_suffix(".json"), tmp_path / "net.json")
    return tmp_path / "net.onnx"


def change_card(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = model.with_suffix(".json")
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def refusal(model: Path, kind: str = "auto") -> str:
    with pytest.raises(ModelError) as caught:
        open_engine(kind, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def a_crop(seed: int = 0) -> HandCrop:
    rng = np.random.default_rng(seed)
    image = np.where(rng.random((64, 64)) < 0.5, rng.uniform(-0.5, 0.5, (64, 64)), 1).astype(np.float32)
    return HandCrop(image, np.eye(3), 0.5, 0.25)


def test_the_shipped_model_opens_with_every_spelling_of_its_engine() -> None:
    assert "onnxruntime" in engine_kinds()
    for kind in ("auto", "onnxruntime"):
        engine = open_engine(kind)
        assert engine.name.startswith("onnxruntime ") and engine.name.endswith(", 1 thread")
        assert engine.card == load_card(DEFAULT_MODEL)
    assert open_engine(threads=2).name.endswith(", 2 threads")
    assert open_engine(threads=0).name.endswith(", 1 thread")


def test_threads_that_sleep_give_the_same_as_those_that_spin() -> None:
    card, image = load_card(DEFAULT_MODEL), a_crop().image[None, None]
    spinning, sleeping = (onnxruntime.open_engine(DEFAULT_MODEL, card, 2, spin=spin) for spin in (True, False))
    assert sleeping.name == spinning.name + " that sleep"
    for ours, theirs in zip(spinning.run(image), sleeping.run(image), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_engine_reads_a_copy_so_that_the_caller_s_picture_may_change() -> None:
    engine, image = open_engine(), a_crop().image[None, None].copy()
    first = engine.run(image)[0]
    image[:] = 1
    np.testing.assert_array_equal(open_engine().run(a_crop().image[None, None])[0], first)


@pytest.mark.parametrize("shipped", sorted(MODELS.glob("dgn-*.onnx")), ids=lambda path: path.stem)
def test_the_card_vouches_for_what_ships(shipped: Path) -> None:
    card = load_card(shipped)
    assert card.sha256 == sha256(shipped) and card.name == shipped.stem
    assert card.inputs == {"image": [1, 1, card.crop_size, card.crop_size]}
    assert card.outputs["vertices_uvd"] == [1, len(template().vertices_m), 3]
    assert card.training["commit"] and card.training["command"].startswith("edge-hand train ")
    assert card.parity["mean_mm"] < {"fp32": 0.05, "int8": 2.0}[card.precision]


def test_an_unknown_engine_says_what_is_possible(model: Path) -> None:
    expected = f"engine 'tpu': there is no such engine; possible are auto, {', '.join(engine_kinds())}"
    assert refusal(model, "tpu") == expected


def test_a_missing_model_says_what_is_shipped(tmp_path: Path) -> None:
    shipped = ", ".join(sorted(path.stem for path in MODELS.glob("*.onnx")))
    expected = f"model {tmp_path}/none.onnx: no such file (shipped with edge-hand: {shipped})"
    assert refusal(tmp_path / "none.onnx") == expected
    assert "no such file" in refusal(tmp_path)


def test_a_missing_card_is_named(model: Path) -> None:
    model.with_suffix(".json").unlink()
    assert refusal(model) == f"model {model}: its card net.json is missing; `edge-hand export` writes both"


def test_a_checkpoint_is_told_from_a_corrupt_model(model: Path) -> None:
    checkpoint = model.with_suffix(".pt")  # beside the card of its own export
    checkpoint.write_bytes(b"PK")
    words = f"model {checkpoint} is a checkpoint; edge-hand export --checkpoint {checkpoint} --out NAME.onnx makes a "
    assert refusal(checkpoint) == words + "model"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", pytest.param("[" * 100_000, id="deep"), "7", "null", '{"name": "dgn"}', '"version"']
)
def test_a_card_that_is_none_is_one_line(model: Path, text: str) -> None:
    card = model.with_suffix(".json")
    card.write_text(text)
    assert refusal(model) == f"model card {card}: not a model card (no JSON object with a version)"


def test_a_card_of_binary_rubbish_is_one_line(model: Path) -> None:
    card = model.with_suffix(".json")
    card.write_bytes(b"\xff\xfe\x00")
    assert refusal(model) == f"model card {card}: not a model card (no JSON object with a version)"


@pytest.mark.parametrize("name", ["net\nengine: all is well", "net \x1b[2J", "net \ud800"])
def test_a_name_that_is_no_printable_line_is_refused(model: Path, name: str) -> None:
    change_card(model, lambda card: card.update(name=name))
    assert refusal(model).endswith(": name: of the wrong type or out of range")


@pytest.mark.parametrize("confidence", [[1, 2], "abc", [1, 2, None], [1, 2, 10**400], [1, 2, math.nan], [True, 1, 1]])
def test_a_card_whose_confidence_cannot_be_is_refused(model: Path, confidence: object) -> None:
    change_card(model, lambda card: card.update(confidence=confidence))
    assert refusal(model).endswith(", expected three numbers")


def test_a_card_of_another_version_is_refused(model: Path) -> None:
    change_card(model, lambda card: card.update(version=1))
    assert refusal(model) == f"model card {model.with_suffix('.json')}: version 1, this edge-hand reads version 2"


def test_a_card_with_other_fields_is_refused(model: Path) -> None:
    change_card(model, lambda card: (card.pop("cube_m"), card.update(cube_mm=250)))
    assert refusal(model) == f"model card {model.with_suffix('.json')}: missing ['cube_m'], unknown ['cube_mm']"


def test_corrupt_bytes_are_not_run(model: Path) -> None:
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    card = load_card(DEFAULT_MODEL)
    assert refusal(model) == (
        f"model {model}: its bytes are not the ones its card vouches for (sha256 {sha256(model)[:12]}, "
        f"card {card.sha256[:12]}): corrupt, or card and model were mixed up"
    )


@pytest.mark.parametrize("data", [b"", b"this is no network", bytes(2000)])
def test_a_file_that_onnxruntime_cannot_load_is_one_line(model: Path, data: bytes) -> None:
    model.write_bytes(data)
    change_card(model, lambda card: card.update(sha256=sha256(model)))
    assert refusal(model).startswith(f"model {model}: onnxruntime cannot load it (")


@pytest.mark.parametrize("which", ["inputs", "outputs"])
def test_a_network_with_other_shapes_than_its_card_s_is_refused(model: Path, which: str) -> None:
    change_card(model, lambda card: card[which].update({next(reversed(card[which])): [1, 2, 3]}))
    assert refusal(model) == f"model {model}: its inputs and outputs are not those of its card"


def test_a_prediction_has_its_shapes() -> None:
    prediction = predict(open_engine(), a_crop())
    n = len(template().vertices_m)
    assert prediction.vertices_m.shape == (n, 3) and np.isfinite(prediction.vertices_m).all()
    error_m = prediction.error_m
    assert error_m.shape == (n,) and (error_m > 0).all() and np.isfinite(error_m).all()
    assert prediction.mean_error_m == pytest.approx(error_m.mean()) and prediction.joint_error_m.shape == (21,)
    assert isinstance(prediction.right_logit, float) and isinstance(prediction.presence_logit, float)
    assert prediction.points_m.shape == (min(prediction.hand_pixels, POINTS), 3)


def test_equal_crops_give_equal_predictions_and_others_do_not() -> None:
    engine = open_engine()
    first, between, again = (predict(engine, a_crop(seed)) for seed in (0, 1, 0))
    other = predict(open_engine(), a_crop())
    for same in (again, other):
        np.testing.assert_array_equal(same.vertices_m, first.vertices_m)
        np.testing.assert_array_equal(same.error_m, first.error_m)
        np.testing.assert_array_equal(same.points_m, first.points_m)
        assert same.right_logit == first.right_logit
    assert np.abs(between.vertices_m - first.vertices_m).max() > 1e-4


def test_a_result_is_not_overwritten_by_the_next_run() -> None:
    engine = open_engine()
    first = predict(engine, a_crop(0))
    kept = first.vertices_m.copy()
    predict(engine, a_crop(1))
    np.testing.assert_array_equal(first.vertices_m, kept)


def test_a_model_of_another_hand_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install '.[train]')")
    shapes = {"vertices_uvd": [1, 778, 3], "log_error": [1, 778]}
    values = [onnx.helper.make_tensor(name, 1, shape, np.zeros(shape, np.float32)) for name, shape in shapes.items()]
    ports = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [f"{name}_"], [name]) for name in shapes],
        "other", [onnx.helper.make_tensor_value_info("image", 1, [1, 1, 64, 64])], ports,
    )  # fmt: skip
    for value in values:
        value.name += "_"
    graph.initializer.extend(values)
    path = tmp_path / "mano.onnx"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    card = json.loads(DEFAULT_MODEL.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | {"sha256": sha256(path), "outputs": shapes}))
    ours = len(template().vertices_m)
    for kind in ("auto", "onnxruntime"):
        assert refusal(path, kind) == f"model {path}: it is of another hand, with 778 vertices; ours has {ours}"


def test_an_engine_that_was_built_for_one_machine_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hand.engine").write_bytes(b"plan")
    assert refusal(tmp_path / "hand.engine") == (
        f"model {tmp_path}/hand.engine: an engine that was built for one machine; "
        "give the .onnx, and each builds its own"
    )
    said = CliRunner().invoke(cli, ["bench", "engines", "--model", str(tmp_path / "hand.engine")]).exception
    assert str(said) == refusal(tmp_path / "hand.engine")


@pytest.mark.parametrize("shape", [[1, 7], []])
@pytest.mark.parametrize("output", ["log_error", "hand_logit"])
def test_a_network_whose_outputs_do_not_fit_its_crops_is_refused(output: str, shape: list[int], tmp_path: Path) -> None:
    model = tmp_path / "x.onnx"
    shutil.copy(DEFAULT_MODEL, model)
    card = json.loads(DEFAULT_MODEL.with_suffix(".json").read_text())
    model.with_suffix(".json").write_text(json.dumps(card | {"outputs": card["outputs"] | {output: shape}}))
    assert refusal(model) == f"model {model}: its card's outputs are not those of a Dual Grid Net for its crops"
