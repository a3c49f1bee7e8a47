"""Export: the engine gives what torch gives, or there is no export."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from edge_hand.edge.cli.main import cli
from edge_hand.edge.cli.shell import CommandError
from edge_hand.edge.engines import open_engine
from edge_hand.edge.networks.card import ModelCard, load_card, sha256
from edge_hand.edge.reading import predict
from edge_hand.exporters import ExportError, calibration
from edge_hand.exporters import onnx as exporter
from edge_hand.exporters.onnx import LIMITS_MM, Deployed, export
from edge_hand.hand.frames import HandCrop
from edge_hand.trainer.checkpoint import TrainConfig, TrainError, build_net, load_net
from edge_hand.trainer.train import train

TINY = TrainConfig(width=8, samples=8, batch=4, warmup=4, coarse=4, bf16=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of training."""
    return train(TINY, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelCard]:
    out = tmp_path_factory.mktemp("export") / "new" / "tiny.onnx"
    return out, export(checkpoint, out, {"joint_mm": 99.0})


def test_an_export_agrees_with_torch(exported: tuple[Path, ModelCard], checkpoint: Path) -> None:
    out, card = exported
    assert 0 <= card.parity["mean_mm"] <= card.parity["max_mm"] and card.parity["mean_mm"] < LIMITS_MM["fp32"]
    assert card.parity["max_logit"] < 0.1 and card.parity["probes"] == exporter.PROBES
    net = Deployed(load_net(checkpoint)[0], TINY).eval()
    image = np.random.default_rng(0).uniform(-1, 1, (1, 1, 64, 64)).astype(np.float32)
    with torch.no_grad():
        expected = [o.numpy() for o in net(torch.from_numpy(image))]
    got = open_engine("onnxruntime", out).run(image)
    assert [o.shape for o in got] == [o.shape for o in expected] and all(o.dtype == np.float32 for o in got)
    assert np.abs(got[0] - expected[0]).mean() * 125 < LIMITS_MM["fp32"]  # half a cube is 125 mm
    for engine_s, torch_s in zip(got[1:], expected[1:], strict=True):
        np.testing.assert_allclose(engine_s, torch_s, atol=0.05)


def test_an_8_bit_export_computes_in_integers_and_stays_near_torch(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "CROPS", 16)
    out = tmp_path / "tiny8.onnx"
    card = export(checkpoint, out, precision="int8")
    assert card.precision == "int8" and card.parity["mean_mm"] < LIMITS_MM["int8"] and load_card(out) == card
    kinds = Counter(node.op_type for node in onnx.load(out).graph.node)
    assert kinds["QuantizeLinear"] > 20 and sorted(path.name for path in tmp_path.iterdir()) == [
        "tiny8.json",
        "tiny8.onnx",
    ]


def test_8_bits_that_cannot_be_had_are_one_line_and_leave_nothing_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "CROPS", 0)
    with pytest.raises(ExportError, match=r": 8 bits need crops to take the scales from, and there are none$"):
        export(checkpoint, tmp_path / "x.onnx", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_its_card_says_what_it_is_and_where_it_came_from(exported: tuple[Path, ModelCard]) -> None:
    out, card = exported
    assert load_card(out) == card
    assert (card.name, card.kind, card.precision) == ("tiny", "dgn", "fp32")
    assert card.sha256 == sha256(out)
    assert card.inputs == {"image": [1, 1, 64, 64]} and card.crop_size == 64
    assert card.outputs == {
        "vertices_uvd": [1, 1609, 3],
        "log_error": [1, 1609],
        "hand_logit": [1, 1024],
        "right_logit": [1],
        "presence_logit": [1],
    }
    assert card.metrics == {"joint_mm": 99.0}
    assert {key: card.training[key] for key in asdict(TINY)} == asdict(TINY)
    assert card.training["seen"] == 8 and card.training["command"].startswith("edge-hand")
    assert sorted(path.name for path in out.parent.iterdir()) == ["tiny.json", "tiny.onnx"]


def test_an_export_runs_as_an_engine(exported: tuple[Path, ModelCard]) -> None:
    crop = HandCrop(np.full((64, 64), 1, np.float32), np.eye(3), 0.5, 0.25)
    prediction = predict(open_engine("auto", exported[0]), crop)
    assert prediction.vertices_m.shape == (1609, 3) and prediction.hand_pixels == 0


def test_a_mismatch_is_refused_and_leaves_nothing_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS_MM, "fp32", -1)
    monkeypatch.setattr(exporter, "PROBES", 3)
    with pytest.raises(ExportError) as caught:
        export(checkpoint, tmp_path / "x.onnx")
    text = str(caught.value)
    assert text.startswith(f"export {tmp_path}/x.onnx: the engine is 0.0")
    assert " mm from torch on 3 crops" in text and text.endswith("; allowed are -1 mm") and "\n" not in text
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_gives_what_is_not_finite_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, config, seen = load_net(checkpoint)
    with torch.no_grad():
        next(p for p in net.parameters() if p.ndim == 4).fill_(torch.nan)
    monkeypatch.setattr(exporter, "load_net", lambda checkpoint: (net, config, seen))
    monkeypatch.setattr(exporter, "PROBES", 1)
    with pytest.raises(ExportError, match=r"x\.onnx: the engine is nan mm from torch"):
        export(checkpoint, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_export_keeps_the_one_before(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.onnx").write_bytes(b"the one before")
    (tmp_path / "x.json").write_text(json.dumps({"version": 1}))
    monkeypatch.setitem(LIMITS_MM, "fp32", -1)
    monkeypatch.setattr(exporter, "PROBES", 3)
    with pytest.raises(ExportError):
        export(checkpoint, tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").read_bytes() == b"the one before"
    assert (tmp_path / "x.json").read_text() == '{"version": 1}'
    assert len(list(tmp_path.iterdir())) == 2


def test_another_network_than_torch_s_is_noticed(
    exported: tuple[Path, ModelCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "PROBES", 3)
    torch.manual_seed(1)
    stranger = Deployed(build_net(TINY), TINY).eval()
    assert exporter.compare(stranger, exported[0])["mean_mm"] > 10 * LIMITS_MM["fp32"]


@pytest.mark.parametrize("net", ["deephps", "dibra"])
def test_networks_that_give_parameters_are_exported_too(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "PROBES", 3)
    run = train(replace(TINY, net=net, width=8, kind="clean"), tmp_path / "run", workers=0, validate_every=0)
    card = export(run, tmp_path / "out" / f"{net}.onnx")
    assert card.kind == net and card.parity["mean_mm"] < LIMITS_MM["fp32"]
    assert load_card(tmp_path / "out" / f"{net}.onnx") == card
    words = ["export", "--checkpoint", str(run), "--out", str(tmp_path / "8" / f"{net}.onnx"), "--precision", "int8"]
    refused = CliRunner().invoke(cli, words).exception
    assert isinstance(refused, CommandError)
    assert str(refused) == f"--precision int8: 8 bits are for Dual Grid Nets; {net} can be had in fp32"
    assert not (tmp_path / "8").exists()


def test_a_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"none\.pt: no such checkpoint$"):
        export(tmp_path / "none.pt", tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^--precision int4: possible are fp32, int8$"):
        export(checkpoint, tmp_path / "x.onnx", precision="int4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"verdict": "pass"}', '{"model": {"name": "dgn"}}', '{"model": "0", "confidence": null}', "\xff"],
)
def test_metrics_that_eval_did_not_write_are_one_line_before_the_network_is_loaded(
    content: str, tmp_path: Path
) -> None:
    (path := tmp_path / "m.json").write_bytes(content.encode("latin-1"))
    given = ["export", "--checkpoint", "none.pt", "--out", str(tmp_path / "x.onnx"), "--metrics"]
    said = CliRunner().invoke(cli, [*given, str(path)]).exception
    assert isinstance(said, CommandError)
    assert str(said) == f"--metrics {path}: not the JSON that `edge-hand eval --json` writes"
    said = CliRunner().invoke(cli, [*given, str(tmp_path)]).exception
    assert str(said) == f"--metrics {tmp_path}: cannot be read (is a directory)"


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "to_onnx", None)  # the work would fail
    (tmp_path / "x.onnx").mkdir()
    with pytest.raises(ExportError, match=r"^export .*x\.onnx: it cannot be written there \(is a directory\)$"):
        export(checkpoint, tmp_path / "x.onnx")


def test_a_checkpoint_is_written_to_no_other_kind_of_file_whose_place_its_card_would_take(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["export", "--checkpoint", "last.pt", "--out", str(tmp_path / "x.json")])
    assert done.exit_code == 2 and "x.json: give a name that ends in .onnx, or .pt" in " ".join(done.output.split())


def test_metrics_that_eval_wrote_are_read(tmp_path: Path) -> None:
    wrote = {"model": "0", "confidence": {"calibration": [1.0, 2.0, 3.0]}, "joint_mm": {"mean": 9.0}}
    (path := tmp_path / "m.json").write_text(json.dumps(wrote))
    assert exporter.read_metrics(path) == wrote
