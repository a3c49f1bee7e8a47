"""8 bits for CPUs need to see what the network will see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("onnx", reason="onnx is not installed (pip install '.[train]')")
pytest.importorskip("torch", reason="torch is not installed (pip install '.[train]')")

from edge_hand.edge.cli.main import cli
from edge_hand.edge.engines import open_engine
from edge_hand.edge.engines.tensorrt import artefact
from edge_hand.edge.networks.card import MODELS, load_card
from edge_hand.edge.networks.probe import compare, crops
from edge_hand.edge.recordings.recording import Recording, RecordingWriter
from edge_hand.exporters import ExportError, calibration, parity, tensorrt
from edge_hand.exporters.onnx import LIMITS_MM
from edge_hand.exporters.quantize import quantize_where
from edge_hand.hand.frames import DepthFrame
from edge_hand.trainer.tracked import tracked_crops

FLOAT = MODELS / "dgn-nano.onnx"
DEMO = MODELS.parent / "demo" / "hand.mcap"
Change = Callable[[DepthFrame], DepthFrame]


def clip(path: Path, frames: int, change: Change = lambda frame: frame) -> Path:
    """The beginning of the demo recording, a right hand."""
    with Recording(DEMO) as recording, RecordingWriter(path) as writer:
        for frame in islice(recording, frames):
            writer.write(change(frame))
    return path


def mirrored(frame: DepthFrame) -> DepthFrame:
    camera = replace(frame.intrinsics, cx=frame.intrinsics.width - 1 - frame.intrinsics.cx)
    return replace(frame, depth=np.ascontiguousarray(frame.depth[:, ::-1]), intrinsics=camera)


def export(*words: object) -> Result:
    return CliRunner().invoke(cli, ["export", "--model", str(FLOAT), "--precision", "int8", *map(str, words)])


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "PROBES", 2)
    monkeypatch.setattr(calibration, "LEAST_CROPS", 12)


def test_scales_come_from_the_hands_of_a_recording_evenly_and_as_the_daemon_sees_them(tmp_path: Path) -> None:
    engine = open_engine("onnxruntime", FLOAT)
    every = tracked_crops(clip(tmp_path / "right.mcap", 30), engine, 100)
    assert 20 < len(every) <= 30 and all(crop.shape == (1, 1, 64, 64) and crop.dtype == np.float32 for crop in every)
    assert all(engine.run(crop)[4][0] > 0 for crop in every), "each shows a hand"
    some = tracked_crops(tmp_path / "right.mcap", engine, 8)
    at = [next(i for i, crop in enumerate(every) if np.array_equal(crop, one)) for one in some]
    assert len(at) == 8 and at[0] == 0 and at[-1] > len(every) - 5 and max(np.diff(at)) <= 5
    left = tracked_crops(clip(tmp_path / "left.mcap", 30, mirrored), engine, 100)
    assert len(left) > 20 and np.abs(left[-1] - every[-1]).mean() < 0.05, "a left hand is seen mirrored, as a right one"


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("target", ["onnxruntime", pytest.param("tensorrt", marks=pytest.mark.slow)])
def test_an_export_takes_its_scales_from_a_recording(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "rendered", lambda *_: pytest.fail("rendered hands were asked for"))
    monkeypatch.setattr(tensorrt, "SENSITIVE_MM", 9.0)
    monkeypatch.setitem(tensorrt.LIMITS_MM, "int8", 9.0)
    hand = clip(tmp_path / "hand.mcap", 20)
    out = tmp_path / "x.onnx" if target == "onnxruntime" else artefact(tmp_path / FLOAT.name, "int8")
    place = out if target == "onnxruntime" else tmp_path
    done = export("--target", target, "--out", place, "--calibration", hand)
    assert done.exit_code == 0 and done.output.startswith(f"{out}: ") and load_card(out).precision == "int8"


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("change", "n"), [(lambda frame: replace(frame, depth=np.zeros_like(frame.depth)), 0), (lambda frame: frame, 4)]
)
def test_a_recording_with_no_hand_or_too_few_sets_no_scales(change: Change, n: int, tmp_path: Path) -> None:
    path = clip(tmp_path / "hand.mcap", 4, change)
    done = export("--out", tmp_path / "x.onnx", "--calibration", path)
    assert str(done.exception) == (
        f"--calibration {path}: it gives {n} crops of tracked hands; 12 are needed"
    ) and list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_float_model_has_an_8_bit_form_for_cpus_without_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "CROPS", 8)
    out = tmp_path / "new" / "x.onnx"
    assert export("--out", out).exit_code == 0
    card, source = load_card(out), load_card(FLOAT)
    assert card.precision == "int8" and card.name == "x" and card.training == source.training
    assert card.parity["from"] == source.sha256 and 0 < card.parity["mean_mm"] < LIMITS_MM["int8"]
    assert 0 < compare(open_engine("onnxruntime", out), open_engine("onnxruntime", FLOAT), crops(64)[:3]).mean_mm < 4
    monkeypatch.setitem(LIMITS_MM, "int8", 1e-6)
    refused = str(export("--out", tmp_path / "y.onnx").exception)
    assert refused.startswith(f"export {tmp_path}/y.onnx: it is ") and refused.endswith("; allowed are 1e-06 mm")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "x.json", "x.onnx"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--out x.onnx --precision fp32", "--model: give --precision int8 --out FILE, or --target tensorrt"),
        ("--target onnxruntime", "--model: give --precision int8 --out FILE, or --target tensorrt"),
        ("--calibration . --precision fp32", "--calibration is for 8 bits: give --model, a float .onnx, and --prec"),
        ("--out x.onnx --metrics x.json", "--checkpoint and --metrics"),
        ("--out x.json", "--out x.json: give a name that ends in .onnx"),
        (f"--out {FLOAT}", "it would take the place of the float model"),
        (f"--model {MODELS}/dgn-nano-int8.onnx --out x.onnx", "dgn-nano-int8.onnx: it is in int8; give the fp32 one"),
    ],
)
def test_what_no_other_form_can_be_made_of_is_said(words: str, why: str) -> None:
    done = export(*words.split())
    assert done.exit_code and why in " ".join(f"{done.output} {done.exception}".split())


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(parity, "PROBES", None)  # the work would fail
    form = tmp_path / ("x.onnx" if target == "onnxruntime" else artefact(FLOAT, "int8").name)
    form.mkdir()
    out = form if target == "onnxruntime" else tmp_path
    said = str(export("--target", target, "--out", out).exception)
    assert said == f"export {form}: it cannot be written there (is a directory)"
    (in_the_way := tmp_path / "file").touch()
    said = str(export("--target", target, "--out", in_the_way / out.name).exception)
    assert said.startswith(f"export {in_the_way}/") and ": it cannot be written there (" in said


def test_8_bits_without_calibration_data_are_one_line(tmp_path: Path) -> None:
    model = MODELS / "dgn-nano.onnx"
    with pytest.raises(ExportError) as caught:
        quantize_where(model, tmp_path / "out.onnx", "image", [], lambda name: True)
    assert str(caught.value) == f"quantize {model}: 8 bits need crops to take the scales from, and there are none"
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_a_layer_for_8_bits_is_one_line_and_not_in_8_bits_all_over(tmp_path: Path) -> None:
    model = MODELS / "dgn-nano.onnx"
    with pytest.raises(ExportError) as caught:
        quantize_where(model, tmp_path / "out.onnx", "image", crops(64)[:1], lambda name: False)
    assert str(caught.value) == f"quantize {model}: none of its layers is one that 8 bits are for"
    assert list(tmp_path.iterdir()) == []
