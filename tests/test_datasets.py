"""Loaders of labelled depth: hands rendered with known joints, written in each dataset's format, and read back."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from depth_png import encode_depth_png
from edge_hand.edge.networks.card import DEFAULT_MODEL
from edge_hand.edge.recordings.recording import RecordingWriter
from edge_hand.hand.arrays import Array
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame
from edge_hand.hand.kinematics import pose_hand
from edge_hand.hand.poses import POSES
from edge_hand.hand.render import render_depth
from edge_hand.hand.skeleton import JOINT_NAMES
from edge_hand.hand.template import template
from edge_hand.trainer.datasets import (
    DatasetError,
    dataset_kinds,
    icvl,
    msra,
    nyu,
    open_dataset,
    read_predictions,
    recording,
    write_predictions,
)
from edge_hand.trainer.evaluate import EvaluateError, Model, evaluate, table
from PIL import Image

T = template()
MODEL = Model(DEFAULT_MODEL)
CAMERA = Intrinsics(424, 240, 300.0, 300.0, 211.5, 119.5)
SHAPES = ("open", "point", "relaxed")
Change = Callable[[Path], Any]
Scene = list[tuple[Array, Array]]  # joints (21, 3) mm and depth (H, W) mm


def scene(camera: Intrinsics, left: bool = False) -> Scene:
    """Palms that face the camera, fingers up: of a right hand the thumb is at the right."""
    frames = []
    for i, shape in enumerate(SHAPES):
        theta = np.zeros((1, 26))
        theta[0, :6] = 0.01 * i, 0.06, 0.45, 0.1, 0, np.pi
        theta[0, 6:] = POSES[shape]
        joints, vertices = (x[0] for x in pose_hand(T, theta, np.ones((1, 6)), np.zeros((1, 7))))
        if left:
            joints, vertices = (x * (-1, 1, 1) for x in (joints, vertices))
        frames.append((joints * 1e3, render_depth(vertices, T.faces, camera) * 1e3))
    assert (frames[0][0][4, 0] > frames[0][0][20, 0]) != left
    return frames


def write_nyu(folder: Path) -> tuple[Path, Scene]:
    savemat = pytest.importorskip("scipy.io", reason="SciPy is not installed").savemat
    frames = scene(nyu.INTRINSICS)
    xyz = np.random.default_rng(0).normal(0, 1, (3, len(frames), 36, 3))
    (folder / "test").mkdir()
    for i, (joints, depth) in enumerate(frames):
        xyz[0, i, list(nyu.PROTOCOL)] = nyu.SCHEME.of_ours(joints) * (1, -1, 1)  # y is up
        mm = np.rint(depth).astype(int)
        rgb = np.stack([np.full_like(mm, 77), mm // 256, mm % 256], -1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"test/depth_1_{i + 1:07d}.png")
    savemat(folder / "test/joint_data.mat", {"joint_xyz": xyz}, do_compression=True)
    return folder, frames


def write_icvl(folder: Path) -> tuple[Path, Scene]:
    frames = scene(icvl.INTRINSICS, left=True)
    for name, part in (("test_seq_1", frames[:2]), ("test_seq_2", frames[2:])):
        (folder / "Depth" / name).mkdir(parents=True)
        lines = []
        for i, (joints, depth) in enumerate(part):
            xyz = icvl.SCHEME.of_ours(joints)
            uvd = np.concatenate([icvl.INTRINSICS.project(xyz), xyz[:, 2:]], 1)
            image = f"{name}/image_{i:04d}.png"
            (folder / "Depth" / image).write_bytes(encode_depth_png(np.rint(depth).astype(np.uint16)))
            lines.append(image + " " + " ".join(f"{x:.3f}" for x in uvd.ravel()) + " \n")
        (folder / f"{name}.txt").write_text("".join(lines) + "\n")
    return folder, frames


def write_msra(folder: Path) -> tuple[Path, Scene]:
    frames = scene(msra.INTRINSICS)
    at = folder / "P3" / "TIP"
    at.mkdir(parents=True)
    lines = [f"{len(frames)}\n"]
    for i, (joints, depth) in enumerate(frames):
        lines.append(" ".join(f"{x:.4f}" for x in (msra.SCHEME.of_ours(joints) * (1, -1, -1)).ravel()) + "\n")
        rows, columns = np.nonzero(depth)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        head = struct.pack("<6I", 320, 240, left, top, right, bottom)
        (at / f"{i:06d}_depth.bin").write_bytes(head + depth[top:bottom, left:right].astype("<f4").tobytes())
    (at / "joint.txt").write_text("".join(lines))
    return folder, frames


def write_recording(folder: Path) -> tuple[Path, Scene]:
    frames, path = scene(CAMERA), folder / "hand.mcap"
    with RecordingWriter(path) as writer:
        for i in range(5):  # the first and last are not labelled
            depth = np.rint(frames[min(max(i - 1, 0), 2)][1] * 4).astype(np.uint16)
            writer.write(DepthFrame("cam", 10 + i, i * 33_000_000, depth, 0.00025, CAMERA))
    labels = [
        {"seq": 11 + i, "joints_mm": joints.tolist(), "person": "a", "side": "right"}
        for i, (joints, _) in enumerate(frames)
    ]
    recording.labels_path(path).write_text("".join(json.dumps(x) + "\n" for x in reversed(labels)) + "\n")
    return path, frames


WRITERS = {"nyu": write_nyu, "icvl": write_icvl, "msra": write_msra, "recording": write_recording}
each_kind = pytest.mark.parametrize("kind", WRITERS)


def test_every_loader_is_tested() -> None:
    assert dataset_kinds() == sorted(WRITERS)


@each_kind
def test_a_rendered_hand_comes_back_with_its_joints_and_depth(kind: str, tmp_path: Path) -> None:
    path, truth = WRITERS[kind](tmp_path)
    dataset = open_dataset(f"{kind}:{path}")
    frames = list(dataset.frames())
    assert len(dataset.labels) == len(frames) == 3 and dataset.protocol
    for label, frame, (joints, depth) in zip(dataset.labels, frames, truth, strict=True):
        np.testing.assert_allclose(label.joints_mm, dataset.scheme.of_ours(joints), atol=2e-2)
        np.testing.assert_allclose(frame.depth * frame.depth_unit_m * 1e3, depth, atol=0.51)
        assert frame.intrinsics == dataset.intrinsics
        # Joints lie under the surface that the picture shows, none before it.
        u, v = np.rint(dataset.intrinsics.project(label.joints_mm)).astype(int).T
        z = frame.depth[v, u] * frame.depth_unit_m * 1e3
        assert ((label.joints_mm[:, 2] - z)[z > 0] > -6).all() and (z > 0).sum() >= 10


@each_kind
def test_a_model_s_error_on_a_rendered_hand_is_small(kind: str, tmp_path: Path) -> None:
    path, _ = WRITERS[kind](tmp_path)
    result = evaluate(f"{kind}:{path}", MODEL, out=tmp_path, predictions=tmp_path / "p.txt")
    assert result["n"] == 3 and result["found"] == 1
    assert 1 < result["joint_mm"]["mean"] < 25  # a wrong axis or side costs more than 50
    assert result["model"] and result["centre"] == "truth"
    assert (tmp_path / "success.png").stat().st_size > 1000
    assert "joints   mean" in table(result)
    # The predictions written are those that were scored.
    dataset = open_dataset(f"{kind}:{path}")
    joints = read_predictions(tmp_path / "p.txt", dataset, 3)
    error = np.linalg.norm(joints - dataset.truth_mm, axis=-1)[:, dataset.scheme.scored]
    assert error.mean() == pytest.approx(result["joint_mm"]["mean"], abs=0.02)


def test_an_axis_the_wrong_way_round_would_be_seen(tmp_path: Path) -> None:
    path, _ = write_msra(tmp_path)
    labels = path / "P3/TIP/joint.txt"
    first, *rows = labels.read_text().splitlines()
    turned = (np.array([row.split() for row in rows], float).reshape(3, 21, 3) * (1, -1, 1)).reshape(3, 63)
    labels.write_text("\n".join([first, *(" ".join(map(str, row)) for row in turned)]))
    assert evaluate(f"msra:{path}", MODEL)["joint_mm"]["mean"] > 50


def test_the_daemon_s_finder_finds_the_hand_of_a_recording(tmp_path: Path) -> None:
    path, _ = write_recording(tmp_path)
    result = evaluate(f"recording:{path}", MODEL, finder=True)
    assert result["centre"] == "finder" and 0 < result["found"] <= 1 and result["joint_mm"]["mean"] < 60


def test_of_several_hands_the_one_nearest_to_the_label_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = write_recording(tmp_path)
    dataset = open_dataset(f"recording:{path}")

    class Finds:
        """Another's hand half a metre away, then the labelled one."""

        truth_m = iter(dataset.truth_mm / 1e3)

        def __init__(self, *_: Any, **__: Any) -> None: ...
        def reset(self) -> None: ...

        def process(self, _: DepthFrame) -> list[Any]:
            joints = next(self.truth_m)
            return [SimpleNamespace(pose=SimpleNamespace(joints_m=joints + x)) for x in (0.5, 0.001)]

    monkeypatch.setattr("edge_hand.trainer.evaluate.Tracker", Finds)
    assert evaluate(f"recording:{path}", MODEL, finder=True)["joint_mm"]["mean"] == pytest.approx(3**0.5, abs=0.01)


def test_true_predictions_score_zero_without_any_depth(tmp_path: Path) -> None:
    path, _ = write_icvl(tmp_path)
    dataset = open_dataset(f"icvl:{path}")
    write_predictions(tmp_path / "uvd.txt", dataset.truth_mm, dataset.intrinsics)
    for image in path.rglob("*.png"):
        image.unlink()
    result = evaluate(f"icvl:{path}", MODEL, score=tmp_path / "uvd.txt")
    assert result["joint_mm"]["mean"] < 0.01 and len(result["per_joint_mm"]) == 16 and "model" not in result
    # HANDS: a name, then x y z in mm.
    off = dataset.truth_mm + (0, 3, 4)
    text = "".join(f"image_{i}.png\t" + "\t".join(map(str, row.ravel())) + "\n" for i, row in enumerate(off))
    (tmp_path / "xyz.txt").write_text(text)
    assert evaluate(f"icvl:{path}", MODEL, score=tmp_path / "xyz.txt")["joint_mm"]["p99"] == 5
    (tmp_path / "nan.txt").write_text((" ".join(["nan"] * 48) + "\n") * 2)
    missed = evaluate(f"icvl:{path}", MODEL, 2, score=tmp_path / "nan.txt")
    assert missed["found"] == 0 and "no hand was found" in table(missed)


def test_schemes_are_means_of_our_joints_and_name_their_tips() -> None:
    for module in (nyu, icvl, msra, recording):
        scheme = module.SCHEME
        np.testing.assert_allclose(scheme.from_ours.sum(1), 1)
        assert sum(name.endswith("tip") for name in scheme.names) == 5
        assert all(scheme.names[a] != scheme.names[b] for a, b in scheme.bones) and scheme.bones
    assert len(nyu.SCHEME.names) == 14 and nyu.SCHEME.scored.sum() == 11
    assert len(icvl.SCHEME.names) == 16 and icvl.SCHEME.scored.sum() == 15
    assert recording.SCHEME.names == JOINT_NAMES and (recording.SCHEME.from_ours == np.eye(21)).all()
    ours = np.arange(21.0)[:, None] * np.ones(3)
    assert msra.SCHEME.of_ours(ours)[17, 0] == JOINT_NAMES.index("thumb_cmc")


def test_consecutive_frames_are_told_by_sequence_and_number(tmp_path: Path) -> None:
    path, _ = write_icvl(tmp_path)
    assert open_dataset(f"icvl:{path}").follows.tolist() == [False, True, False]


def test_one_person_or_one_gesture_of_msra_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = write_msra(tmp_path)
    monkeypatch.chdir(path / "P3")
    for part in (path, path / "P3", path / "P3/TIP", ".", "TIP", "TIP/.."):
        labels = open_dataset(f"msra:{part}").labels
        assert labels[0].name == "P3/TIP/000000_depth.bin" and labels[0].person == "P3"


def test_labels_of_a_recording_can_be_written(tmp_path: Path) -> None:
    path, _ = write_recording(tmp_path)
    before = open_dataset(f"recording:{path}").labels
    recording.write_labels(path, before)
    after = open_dataset(f"recording:{path}").labels
    np.testing.assert_allclose([x.joints_mm for x in after], [x.joints_mm for x in before], atol=1e-3)
    assert [(x.number, x.side, x.person) for x in after] == [(11, "right", "a"), (12, "right", "a"), (13, "right", "a")]


def test_a_person_who_is_null_is_none_and_0_is_one(tmp_path: Path) -> None:
    path, _ = write_recording(tmp_path)
    file = recording.labels_path(path)
    lines = zip(file.read_text().strip().splitlines(), ("b", 0, None), strict=True)  # the last frame first
    file.write_text("".join(json.dumps(json.loads(line) | {"person": who}) + "\n" for line, who in lines))
    assert [label.person for label in open_dataset(f"recording:{path}").labels] == ["", "0", "b"]


# --- a user's mistakes


def cut(to: int) -> Change:
    return lambda path: path.write_bytes(path.read_bytes()[:to])


def put(old: str, new: str) -> Change:
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


def drop_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


LABELS = "hand.labels.jsonl"
BROKEN: list[tuple[str, str, Change, str]] = [
    ("nyu", "test/joint_data.mat", Path.unlink, "/test/joint_data.mat is missing: --data nyu:PATH is the folder"),
    ("nyu", "test/joint_data.mat", cut(300), "/test/joint_data.mat is cut, or not NYU's: no joint_xyz can be read ("),
    ("nyu", "test/depth_1_0000002.png", cut(900), "/test/depth_1_0000002.png is a truncated or damaged PNG ("),
    ("nyu", "test/depth_1_0000003.png", Path.unlink, "/test/depth_1_0000003.png of 3 depth images are missing: the"),
    ("icvl", "test_seq_1.txt", cut(700), "/test_seq_1.txt, line 2: "),
    ("icvl", "Depth/test_seq_2/image_0000.png", cut(900), "/Depth/test_seq_2/image_0000.png is a truncated or damag"),
    ("icvl", "Depth/test_seq_1/image_0000.png", Path.unlink, "/Depth/test_seq_1/image_0000.png of 3 depth images are"),
    ("msra", "P3/TIP/joint.txt", Path.unlink, " has no P0/1/joint.txt, 1/joint.txt or joint.txt: it is not MSRA15"),
    ("msra", "P3/TIP/joint.txt", drop_line, "/P3/TIP/joint.txt: 2 lines of joints, its first line says 3"),
    ("msra", "P3/TIP/000001_depth.bin", cut(5000), "/P3/TIP/000001_depth.bin is truncated or damaged: 5000 bytes, "),
    ("msra", "P3/TIP/000001_depth.bin", cut(9), "/P3/TIP/000001_depth.bin is truncated: 9 bytes, its header alone"),
    ("recording", LABELS, Path.unlink, "/hand.labels.jsonl is missing: the labels of this recording, one JSON"),
    ("recording", "hand.mcap", cut(5000), "/hand.mcap has no frames: it was cut"),
    ("recording", LABELS, put('"seq": 13', '"seq": 99'), "/hand.labels.jsonl: frame 99 is not in hand.mcap"),
    ("recording", LABELS, put('"seq": 13', '"seq": 12'), "/hand.labels.jsonl: frame 12 is labelled twice"),
    ("recording", LABELS, put('"seq": 12', '"seq": 12.7'), "/hand.labels.jsonl, line 2: seq is 12.7, expected a fra"),
    ("recording", LABELS, put("right", "both"), "/hand.labels.jsonl, line 1: side is 'both', expected left or right"),
    ("recording", LABELS, cut(200), "/hand.labels.jsonl, line 1: not a label (JSONDecodeError: "),
    ("recording", LABELS, put("[[", "[[1], ["), "/hand.labels.jsonl, line 1: not a label (ValueError: "),
]


@pytest.mark.parametrize(("kind", "file", "change", "text"), BROKEN)
def test_a_dataset_that_is_not_all_there_is_one_line(
    kind: str, file: str, change: Change, text: str, tmp_path: Path
) -> None:
    path, _ = WRITERS[kind](tmp_path)
    change(tmp_path / file)
    with pytest.raises(EvaluateError) as refused:
        evaluate(f"{kind}:{path}", MODEL)
    assert str(refused.value).startswith(f"{tmp_path}{text}") and "\n" not in str(refused.value)


@pytest.mark.parametrize("value", ["nan", "inf", "0", "470"])
def test_a_label_that_is_no_place_before_the_camera_is_one_line(value: str, tmp_path: Path) -> None:
    """Nothing can be cut around it, and a frame behind the camera would be scored against a guess."""
    path, _ = write_msra(tmp_path)
    labels = path / "P3/TIP/joint.txt"
    rows = labels.read_text().splitlines()
    words = rows[2].split()
    words[5] = value  # z of the second joint; MSRA's is negative
    labels.write_text("\n".join([*rows[:2], " ".join(words), *rows[3:]]))
    for options in ({}, {"finder": True}):
        with pytest.raises(EvaluateError) as refused:
            evaluate(f"msra:{path}", MODEL, **options)
        said = str(refused.value)
        assert said.startswith(f"--data msra:{path}: frame P3/TIP/000001_depth.bin has its joint index_mcp at [")
        assert said.endswith(" mm, expected numbers before the camera")


@pytest.mark.parametrize("kind", ["nyu", "icvl", "msra"])
def test_an_empty_folder_is_one_line(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=str(tmp_path)):
        open_dataset(f"{kind}:{tmp_path}")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("big:/", "--data big:/: expected synthetic:test, or KIND:PATH with KIND one of icvl, msra, nyu, recording"),
        ("nyu", "--data nyu: expected synthetic:test, or KIND:PATH with KIND one of "),
        ("nyu:/no/such", "--data nyu:/no/such: /no/such does not exist"),
    ],
)
def test_a_set_that_is_not_there_is_one_line(data: str, text: str) -> None:
    with pytest.raises(DatasetError) as refused:
        open_dataset(data)
    assert str(refused.value).startswith(text)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["1 2 3"] * 3, "line 1: 3 numbers, expected 63"),
        ([" ".join(["5"] * 63)] * 2, "2 lines of predictions for 3 frames"),
        ([" ".join(["5"] * 62 + ["x"])] * 3, "line 1: could not convert string to float: 'x'"),
    ],
)
def test_predictions_that_do_not_fit_are_one_line(lines: list[str], text: str, tmp_path: Path) -> None:
    path, _ = write_msra(tmp_path)
    (tmp_path / "p.txt").write_text("\n".join(lines))
    with pytest.raises(EvaluateError) as refused:
        evaluate(f"msra:{path}", MODEL, score=tmp_path / "p.txt")
    assert str(refused.value).startswith(f"{tmp_path}/p.txt") and str(refused.value).endswith(text)
