"""Evaluation on rendered hands: any kind of model, the same numbers from one process or several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_hand.hand.arrays import Array

pytest.importorskip("numba", reason="numba renders the samples")

from edge_hand.edge.networks.card import DEFAULT_MODEL, sha256
from edge_hand.hand.crop import uvd_from_points
from edge_hand.hand.kinematics import pose_hand
from edge_hand.hand.poses import POSES
from edge_hand.hand.skeleton import JOINT_NAMES
from edge_hand.hand.template import template
from edge_hand.trainer.evaluate import EvaluateError, Model, Progress, evaluate, table
from edge_hand.trainer.evaluate_synthetic import hidden_joints, view_of

MODEL = Model(DEFAULT_MODEL)


def hand(rx: float, ry: float, rz: float) -> Array:
    """Joints (21, 3) m of an open hand 0.5 m away, turned by a rotation vector."""
    theta = np.zeros((1, 26))
    theta[0, :6] = 0, 0, 0.5, rx, ry, rz
    theta[0, 6:] = POSES["open"]
    joints: Array = pose_hand(template(), theta, np.ones((1, 6)), np.zeros((1, 7)))[0][0]
    return joints - joints.mean(0) + (0, 0, 0.5)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return evaluate("synthetic:test", MODEL, 60)


def test_the_result_says_all_there_is_to_say(result: dict[str, Any]) -> None:
    assert result["data"] == "synthetic:test" and result["n"] == 60 and result["found"] == 1
    assert result["model"] == sha256(DEFAULT_MODEL) and result["model_file"] == str(DEFAULT_MODEL)
    assert 3 < result["joint_mm"]["mean"] < 40 and set(result["per_joint_mm"]) == set(JOINT_NAMES)
    assert result["pa_mm"] < result["joint_mm"]["mean"]
    assert 3 < result["vertex_mm"]["mean"] < 40 and 3 < result["vertex_mm"]["before_refit"] < 40
    assert 3 < result["parts_joint_mm"] < 40
    assert 0.4 < result["side_right"] <= 1 and result["expected_error_correlation"] > 0
    assert "still_jitter_mm" not in result and "bone_std_mm" not in result  # these are no sequence, and no person's
    groups = result["groups"]
    for names in (("palm", "back", "side", "end-on"), ("0-2 hidden", "3-7 hidden", "8+ hidden")):
        assert sum(groups[name]["n"] for name in names if name in groups) == 60
    said = table(result)
    assert said.startswith("60 frames of synthetic:test, a hand in 100.0%\njoints   mean ") and "side right in" in said
    joints = {line.split()[0]: line.split()[1:] for line in said.splitlines()[4:10]}
    assert list(joints) == ["wrist", "thumb", "index", "middle", "ring", "little"]
    assert joints["little"][-2:] == ["tip", f"{result['per_joint_mm']['little_tip']:.1f}"]


@pytest.mark.slow
def test_several_processes_measure_the_same(result: dict[str, Any]) -> None:
    assert evaluate("synthetic:test", MODEL, 60, workers=2) == result


MEASURES_AND_SAYS_WHO = """
import multiprocessing as mp, time
from edge_hand.trainer.evaluate_synthetic import _over_processes
results = _over_processes(time.sleep, [0, 300, 300], 2)
next(results)
print(*(process.pid for process in mp.active_children()), flush=True)
time.sleep(300)
"""


@pytest.mark.slow
def test_workers_end_with_who_measures() -> None:
    process = subprocess.Popen([sys.executable, "-c", MEASURES_AND_SAYS_WHO], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [Path("/proc", pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait(60)
    until = time.monotonic() + 60
    while any(worker.exists() for worker in workers) and time.monotonic() < until:
        time.sleep(0.05)
    living = [worker.name for worker in workers if worker.exists()]
    for pid in living:
        os.kill(int(pid), signal.SIGKILL)
    assert workers and not living


def test_clean_hands_are_easier_than_those_in_a_scene(result: dict[str, Any]) -> None:
    clean = evaluate("synthetic:clean", MODEL, 60)
    assert clean["joint_mm"]["mean"] < result["joint_mm"]["mean"]


def checkpoint_of(name: str, folder: Path) -> Path:
    """A narrow net that has learned nothing."""
    torch = pytest.importorskip("torch")
    from edge_hand.trainer.checkpoint import TrainConfig, build_net, save

    torch.manual_seed(0)
    config = TrainConfig(net=name, width=16)
    weights = build_net(config).state_dict()
    path = folder / "last.pt"
    save({"version": 2, "config": asdict(config), "seen": 0, "net": weights, "averaged": weights}, path)
    return path


@pytest.mark.parametrize("net", ["dgn-nano", "deephps", "dibra"])
def test_a_checkpoint_can_be_measured_before_it_is_exported(net: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(net, tmp_path)
    result = evaluate("synthetic:val", Model(checkpoint, threads=0), 2)
    assert result["n"] == 2 and result["joint_mm"]["mean"] > 5 and result["model"] == sha256(checkpoint)
    assert (result["side_right"] is None) == (net != "dgn-nano")
    checkpoint.write_bytes(b"nothing")
    with pytest.raises(EvaluateError, match=r"last\.pt: not an edge-hand checkpoint"):
        evaluate("synthetic:val", Model(checkpoint), 2)


def test_a_checkpoint_that_has_changed_is_measured_anew(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from dataclasses import asdict

    from edge_hand.trainer.checkpoint import TrainConfig, build_net, save

    config = TrainConfig(net="deephps", width=16)
    errors_mm = []
    for k in range(2):
        torch.manual_seed(0)
        weights = {name: w + k if name.startswith("pose.") else w for name, w in build_net(config).state_dict().items()}
        state = {"version": 2, "config": asdict(config), "seen": 0, "net": weights, "averaged": weights}
        save(state, tmp_path / "last.pt")
        errors_mm.append(evaluate("synthetic:clean", Model(tmp_path / "last.pt"), 2)["joint_mm"]["mean"])
    assert errors_mm[0] != errors_mm[1]


@pytest.mark.parametrize("net", ["deephps", "dibra"])
def test_an_exported_net_of_parameters_is_posed_as_its_checkpoint_is(net: str, tmp_path: Path) -> None:
    onnx_export = pytest.importorskip("edge_hand.exporters.onnx")
    checkpoint = checkpoint_of(net, tmp_path)
    onnx_export.export(checkpoint, tmp_path / "net.onnx")
    results = [evaluate("synthetic:val", Model(path), 2) for path in (checkpoint, tmp_path / "net.onnx")]
    for key in ("joint_mm", "vertex_mm", "per_joint_mm"):
        assert results[0][key] == pytest.approx(results[1][key], abs=0.05), key


def test_a_network_that_knows_no_hand_is_refused_in_one_line() -> None:
    finder = DEFAULT_MODEL.with_name("finder.onnx")
    with pytest.raises(EvaluateError) as error:
        evaluate("synthetic:clean", Model(finder), 2)
    assert str(error.value) == f"model {finder}: its kind is 'finder'; eval measures networks of hands"


def test_views_are_named_by_what_the_camera_sees() -> None:
    # At rest the fingers point down the picture and the back looks away from the camera.
    assert view_of(hand(0, 0, 0)) == view_of(hand(0, 0, np.pi)) == "palm"
    assert view_of(hand(0, np.pi, 0)) == "back"
    assert view_of(hand(0, np.pi / 2, 0)) == "side"
    assert view_of(hand(np.pi / 2, 0, 0)) == view_of(hand(-np.pi / 2, 0, 0)) == "end-on"


def test_joints_behind_a_surface_are_hidden_and_those_inside_a_finger_are_not() -> None:
    joints = uvd_from_points(hand(0, 0, 0), 0.5, 0.25)
    column, row = ((joints[:, :2] + 1) * 32).astype(int).T
    image = np.ones((64, 64), np.float32)
    assert hidden_joints(image, joints, 0.25) == 0  # nothing is in front of them
    image[row, column] = joints[:, 2] - 0.012 / 0.125
    assert hidden_joints(image, joints, 0.25) == 0  # their own skin is
    image[row[4::4], column[4::4]] -= 0.05 / 0.125
    assert hidden_joints(image, joints, 0.25) == 5  # something covers the tips


def test_progress_says_how_long_it_still_takes() -> None:
    progress = Progress(100)
    progress.add(25, np.zeros((1, 21, 3)), np.ones((1, 21, 3)) * (0, 3, 4))
    assert progress.line(5.0) == "    25 / 100  5/s  15 s left  joints 5.00 mm  "


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"data": "synthetic:train"},
            "--data synthetic:train: possible are synthetic:test, synthetic:val, synthetic:cl",
        ),
        ({"data": "synthetic:test", "finder": True}, "--data synthetic:test: possible are synthetic:test, synthetic:v"),
        (
            {"data": "synthetic:test", "score": Path("p")},
            "--data synthetic:test: predictions of rendered hands cannot ",
        ),
        ({"data": "nyu:/", "score": Path("p"), "finder": True}, "eval: --score reads predictions; --finder and --pred"),
    ],
)
def test_a_mistake_is_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(EvaluateError) as refused:
        evaluate(model=MODEL, **options)
    assert str(refused.value).startswith(text)
