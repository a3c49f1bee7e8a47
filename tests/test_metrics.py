"""Metrics as mathematics: what they must not depend on, what they are on cases done by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_hand.edge.networks.card import DEFAULT_MODEL, find_model
from edge_hand.hand.arrays import Array
from edge_hand.hand.se3 import so3_exp
from edge_hand.hand.skeleton import JOINT_NAMES
from edge_hand.trainer import metrics
from edge_hand.trainer.compare import CompareError, compare, curves, main, markdown, params_and_macs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

BONES = ((0, 1), (1, 2), (2, 3))


def hands(seed: int, n: int = 6, joints: int = 21) -> Array:
    return np.random.default_rng(seed).normal(0, 40, (n, joints, 3)) + (0, 0, 500)


def similar(points: Array, seed: int, scale: float) -> Array:
    rng = np.random.default_rng(seed)
    rotation = so3_exp(rng.normal(0, 1, (len(points), 3)))
    return scale * (points @ np.swapaxes(rotation, 1, 2)) + rng.normal(0, 100, (len(points), 1, 3))


seeds = st.integers(0, 10_000)


@given(seeds, seeds, st.floats(0.2, 5))
@settings(max_examples=40, deadline=None)
def test_aligned_errors_do_not_depend_on_place_turn_and_size_of_the_prediction(a: int, b: int, scale: float) -> None:
    truth, predicted = hands(a), hands(b + 1)
    moved = similar(predicted, b, scale)
    np.testing.assert_allclose(
        metrics.aligned_errors(moved, truth), metrics.aligned_errors(predicted, truth), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(metrics.aligned_errors(similar(truth, a, scale), truth), 0, atol=1e-6)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_no_similarity_comes_closer_than_the_aligned_one(seed: int) -> None:
    truth = hands(seed)
    predicted = truth + np.random.default_rng(seed).normal(0, 15, truth.shape)
    best = (metrics.aligned_errors(predicted, truth) ** 2).sum(1)
    assert (best <= (metrics.joint_errors(predicted, truth) ** 2).sum(1) + 1e-9).all()
    aligned = metrics.procrustes(predicted, truth)
    for k in range(5):
        nudged = (aligned - aligned.mean(1, keepdims=True)) @ so3_exp(np.full(3, 0.01 * (k + 1))).T
        nudged = nudged * (1 + 0.01 * k) + truth.mean(1, keepdims=True)
        assert (best <= (metrics.joint_errors(nudged, truth) ** 2).sum(1) + 1e-9).all()


def test_alignment_does_not_mirror_a_hand_and_survives_a_single_point() -> None:
    truth = hands(3)
    assert metrics.aligned_errors(truth * (-1, 1, 1), truth).mean() > 5
    together = np.full_like(truth, 7.0)
    np.testing.assert_allclose(
        metrics.aligned_errors(together, truth), np.linalg.norm(truth - truth.mean(1, keepdims=True), axis=-1)
    )


@given(arrays(np.float64, 30, elements=st.floats(0, 100)))
@settings(deadline=None)
def test_success_rates_rise_from_none_to_all(errors: Array) -> None:
    rates = metrics.success_rate(errors, np.arange(102))
    assert rates[0] == 0 and rates[-1] == 1 and (np.diff(rates) >= 0).all()
    assert rates[20] == np.mean(errors < 20)


def test_a_frame_without_a_hand_is_a_failure_and_in_no_mean() -> None:
    truth = hands(0, n=4)
    predicted = truth + (3, 0, 4)
    predicted[1] = np.nan
    result = metrics.report(predicted, truth, JOINT_NAMES)
    assert result["found"] == 0.75 and result["joint_mm"]["mean"] == 5
    assert result["worst_joint"] == {"below_20_mm": 0.75, "below_40_mm": 0.75}
    assert result["success"]["worst_joint"][5:7] == [0, 0.75]
    assert metrics.report(np.full_like(truth, np.nan), truth, JOINT_NAMES) == {"n": 4, "found": 0.0}


def test_one_joint_far_off_spoils_its_frame_and_a_missing_frame_spoils_no_other_number() -> None:
    truth = np.repeat(hands(0, n=1), 4, 0)
    predicted = truth + (0, 0, 4)
    predicted[:, 8, 2] = truth[:, 8, 2] + 30
    predicted[1] = np.nan
    result = metrics.report(
        predicted, truth, JOINT_NAMES, bones=[(0, 5)], follows=np.ones(4), persons=["a", "a", "b", "b"]
    )
    mean = (20 * 4 + 30) / 21
    assert result["worst_joint"] == {"below_20_mm": 0, "below_40_mm": 0.75}
    assert result["success"]["worst_joint"][30:32] == [0, 0.75] and result["success"]["mean_joint"][5:7] == [0, 0.75]
    assert result["per_person_mm"] == pytest.approx({"a": mean, "b": mean}, abs=1e-4)
    assert 0 < result["pa_mm"] < mean and result["still_jitter_mm"] == 0 and result["bone_std_mm"] == 0


def test_jitter_is_measured_where_the_truth_stands_still_in_one_sequence() -> None:
    truth = np.repeat(hands(1, n=1), 6, axis=0)
    truth[3:] += 50  # a jump between frames 2 and 3
    predicted = truth + np.array([0, 2, 0, 0, 4, 0])[:, None, None] * np.array([1.0, 0, 0])
    follows = np.array([False, True, True, True, True, False])
    # Pairs 0-1 (2 mm) and 1-2 (2 mm), 3-4 (4 mm); 2-3 jumps and 5 begins anew.
    assert metrics.still_jitter(predicted, truth, follows) == pytest.approx(8 / 3)
    assert metrics.still_jitter(truth + 9, truth, follows) == 0
    assert metrics.still_jitter(predicted, truth, np.zeros(6, bool)) is None
    moving = truth + 5 * np.arange(6)[:, None, None]
    assert metrics.still_jitter(moving, moving, follows) is None


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_bones_of_rigidly_moved_hands_do_not_vary_and_persons_do_not_mix(seed: int) -> None:
    one = np.repeat(hands(seed, n=1), 5, axis=0)
    moved = np.concatenate([similar(one, seed, 1), similar(one, seed + 1, 0.8)])
    persons = ["a"] * 5 + ["b"] * 5
    assert metrics.bone_std(moved, BONES, persons) == pytest.approx(0, abs=1e-9)
    mixed = metrics.bone_std(moved, BONES, ["a"] * 10)
    assert mixed is not None and mixed > 1


def test_bone_std_is_the_length_s_standard_deviation() -> None:
    joints = np.zeros((2, 2, 3))
    joints[:, 1, 0] = 30, 34
    assert metrics.bone_std(joints, [(0, 1)], ["a", "a"]) == 2
    assert metrics.bone_std(joints, [(0, 1)], ["a", "b"]) is None
    assert metrics.bone_std(joints, [], ["a", "a"]) is None


def test_the_report_has_every_column() -> None:
    truth = hands(5, n=50)
    rng = np.random.default_rng(0)
    predicted = truth + rng.normal(0, 10, truth.shape)
    predicted[:, 4] += 100  # the thumb's tip
    persons = ["1"] * 20 + ["2"] * 30
    predicted[20:, 0] += 40
    follows = np.zeros(50, bool)
    result = metrics.report(predicted, truth, JOINT_NAMES, bones=BONES, follows=follows, persons=persons)
    errors = np.linalg.norm(predicted - truth, axis=-1)
    assert result["joint_mm"]["p90"] == pytest.approx(np.percentile(errors, 90), abs=1e-3)
    assert result["tips_mm"] == pytest.approx(errors[:, 4::4].mean(), abs=1e-3)
    assert max(result["per_joint_mm"], key=result["per_joint_mm"].get) == "thumb_tip"
    assert set(result["per_person_mm"]) == {"1", "2"}
    assert result["per_person_mm"]["1"] == pytest.approx(errors[:20].mean(), abs=1e-3)
    assert result["per_person_mm"]["2"] > result["per_person_mm"]["1"]
    assert result["bone_std_mm"] > 5 and "still_jitter_mm" not in result
    assert result["pa_mm"] == pytest.approx(metrics.aligned_errors(predicted, truth).mean(), abs=1e-3)
    assert len(result["success"]["below_mm"]) == len(result["success"]["mean_joint"]) == 81
    json.dumps(result)


def test_the_better_of_two_models_has_the_higher_line() -> None:
    good, bad = np.linspace(0, 1, 81), np.linspace(0, 0.4, 81)
    picture = metrics.success_picture({"good": good, "bad": bad}, "two")
    assert picture.shape == (480, 640, 3) and picture.dtype == np.uint8

    def rows(colour: tuple[int, ...], column: int) -> Array:
        return np.flatnonzero((picture[:, column] == colour).all(-1))

    for column in range(120, 400, 40):  # before the legend
        assert rows(metrics.COLOURS[0], column).mean() < rows(metrics.COLOURS[1], column).mean()


# --- models side by side


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A convolution of 3x3, one in two groups, a fully connected layer and a product with a constant matrix."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = {
        "w1": np.zeros((8, 1, 3, 3)),
        "w2": np.zeros((4, 4, 1, 1)),
        "w3": np.zeros((256, 10)),
        "b3": np.zeros(10),
        "constant": np.zeros((10, 1000)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w2"], ["b"], group=2),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "w3", "b3"], ["d"]),
        helper.make_node("MatMul", ["d", "constant"], ["out"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1000])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_multiplications_and_weights_are_counted_from_the_graph(graph: Path) -> None:
    params, macs = params_and_macs(graph)
    assert params == 72 + 16 + 2560 + 10
    assert macs == 64 * 8 * 9 + 64 * 4 * 4 + 2560 + 10_000


def test_an_8_bit_model_has_the_weights_and_multiplications_of_its_original() -> None:
    pytest.importorskip("onnx")
    assert params_and_macs(DEFAULT_MODEL) == params_and_macs(find_model("dgn-nano"))


def result(path: Path, mean: float, **more: Any) -> Path:
    errors = {"mean": mean, "p50": 1.0, "p90": 2.0, "p99": 3.0}
    path.write_text(json.dumps({"data": "synthetic:test", "n": 10, "joint_mm": errors, "pa_mm": 4.5} | more))
    return path


def test_models_stand_in_one_table(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    a = result(tmp_path / "a.json", 7.5, model_file=str(DEFAULT_MODEL), side_right=0.5)
    b = result(tmp_path / "b.json", 12.24)
    results = compare([a, b], rounds=10)
    assert 0.05 < results[0]["cpu_ms"] < 500 and "cpu_ms" not in results[1]
    head, rule, first, second = (row.strip("| ").split(" | ") for row in markdown(results).splitlines())
    assert head[:4] == ["model", "data", "frames", "mean"] and "tips" not in head and len(rule) == len(head)
    assert first[:4] == ["dgn-nano-int8", "synthetic:test", "10", "7.50"]
    assert second[0] == "b" and second[head.index("CPU ms")] == "-" and second[head.index("mean")] == "12.24"
    assert first[head.index("side right, %")] == "50.0" and first[head.index("PA")] == "4.50"
    assert float(first[head.index("M MACs")]) > 100


def test_a_file_that_is_no_result_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "bench.json"
    other.write_text('{"fps": 3}')
    with pytest.raises(CompareError, match=r"bench\.json: not a result of edge-hand eval --data$"):
        compare([other])
    unseen = metrics.report(np.full((2, 1, 3), np.nan), np.zeros((2, 1, 3)), ["wrist"])
    other.write_text(json.dumps({"data": "nyu:/", **unseen}))
    with pytest.raises(CompareError, match=r"bench\.json: no hand was found in nyu:/; leave this file out$"):
        compare([other])
    assert main([str(tmp_path / "none.json")]) == 1
    said = capsys.readouterr().err
    assert (
        said.startswith(f"edge-hand: {tmp_path}/none.json: not a JSON file that can be read (")
        and said.count("\n") == 1
    )


def test_results_of_one_model_on_two_sets_are_two_curves(tmp_path: Path) -> None:
    steep, flat = ({"worst_joint": list(np.linspace(0, top, 81))} for top in (1, 0.5))
    (tmp_path / "net.pt").touch()
    of_one = {"model_file": str(tmp_path / "net.pt")}
    a = result(tmp_path / "a.json", 7.5, success=steep, **of_one)
    b = result(tmp_path / "b.json", 5.5, success=flat, **of_one, data="synthetic:clean")
    assert main([str(a), str(b), "--picture", str(tmp_path / "p.png")]) == 0
    with Image.open(tmp_path / "p.png") as picture:
        drawn = np.asarray(picture)
    assert all((drawn == colour).all(-1).sum() > 500 for colour in metrics.COLOURS[:2])


def test_checkpoints_of_one_name_are_two_curves() -> None:
    run = {"name": "last", "data": "synthetic:test", "success": {"worst_joint": [0, 1]}}
    assert list(curves([Path("a.json"), Path("b.json")], [run, run])) == [
        "last synthetic:test", "last synthetic:test b.json"
    ]  # fmt: skip


def test_the_command_prints_the_table_and_writes_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {"worst_joint": list(np.linspace(0, 1, 81)), "mean_joint": list(np.linspace(0, 1, 81))}
    a = result(tmp_path / "a.json", 7.5, success=rates)
    assert main([str(a), "--picture", str(tmp_path / "p.png"), "--json", str(tmp_path / "t.json")]) == 0
    assert capsys.readouterr().out.startswith("| model | data | frames | mean |")
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert json.loads((tmp_path / "t.json").read_text())[0]["name"] == "a"
