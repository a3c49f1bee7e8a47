"""Recordings that are not what they seem are refused in a sentence; a network that is not better changes nothing."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the gate needs the trainer's packages")
pytest.importorskip("numba", reason="the gate needs the trainer's packages")

from edge_hand.calibration.rig import Quality, Rig, RigCamera, save_rig
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.engines import open_engine, tensorrt
from edge_hand.edge.networks.card import MODELS
from edge_hand.edge.networks.store import add, in_use, use, versions
from edge_hand.edge.recordings.recording import Recording, RecordingWriter
from edge_hand.exporters import onnx as exporter
from edge_hand.exporters import parity
from edge_hand.exporters.onnx import export
from edge_hand.exporters.tensorrt import export_tensorrt
from edge_hand.hand.frames import DepthFrame
from edge_hand.hand.se3 import transform
from edge_hand.trainer.adapt import gate
from edge_hand.trainer.adapt.fitness import same_hand
from edge_hand.trainer.adapt.gate import Measure, accept, check_recording, compare, judge
from edge_hand.trainer.adapt.suspicion import quarter_turns, shadows
from edge_hand.trainer.synth.rig_views import rig_clip
from test_health import worsened

FLOAT, WEIGHTS = MODELS / "dgn-nano.onnx", MODELS / "dgn-nano.pt"
REAL = Path(__file__).parents[2] / "shared" / "data" / "sr305"
FRAMES = 94  # seven bursts

Change = Callable[[list[DepthFrame]], list[DepthFrame]]


def write(path: Path, frames: list[DepthFrame], sensor: str = "synthetic") -> Path:
    with RecordingWriter(path, sensor=sensor) as writer:
        for frame in frames:
            writer.write(frame)
    return path


@pytest.fixture(scope="module")
def frames() -> list[DepthFrame]:
    """A right hand before a person, as a stereo camera sees it."""
    with SyntheticCamera(3, "320x240@30") as camera:
        return [camera.frame(i) for i in range(FRAMES)]


def mirrored(frames: list[DepthFrame]) -> list[DepthFrame]:
    return [replace(f, depth=np.ascontiguousarray(f.depth[:, ::-1])) for f in frames]


def shuffled(frames: list[DepthFrame]) -> list[DepthFrame]:
    order = list(range(len(frames)))
    random.Random(1).shuffle(order)
    return [replace(f, depth=frames[k].depth) for f, k in zip(frames, order, strict=True)]


def without_hand(frames: list[DepthFrame]) -> list[DepthFrame]:
    """The same room and person behind, what is nearer than the person gone."""
    far = np.median([f.depth for f in frames], axis=0).astype(np.uint16)
    far[far < 900] = 0
    return [replace(f, depth=np.where(f.depth < 900, far, f.depth)) for f in frames]


def test_a_recording_of_a_hand_is_not_refused(frames: list[DepthFrame], tmp_path: Path) -> None:
    assert check_recording([write(tmp_path / "good.mcap", frames)]) == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (mirrored, "the picture is mirrored or upside down: shadows of this sensor fall to the left of near things"),
        (lambda fs: [quarter_turns(f, 2) for f in fs], "the camera seems to be upside down: turned by 180 degrees"),
        (
            lambda fs: [quarter_turns(f, 1) for f in fs],
            "the picture is 240x320, higher than wide: the camera",
        ),
        (
            lambda fs: [quarter_turns(f, 3) for f in fs],
            "the picture is 240x320, higher than wide: the camera",
        ),
        (shuffled, "frames are not in the order of time: from one to the next the hand moves"),
        (without_hand, "a hand was found in 0 of "),
        (lambda fs: [replace(f, depth=f.depth * 0) for f in fs], "94 of 94 frames have next to no readings"),
    ],
    ids=["mirrored", "upside down", "turned left", "turned right", "shuffled", "no hand", "blank"],
)
def test_what_is_wrong_with_a_recording_is_said_in_one_sentence(
    frames: list[DepthFrame], tmp_path: Path, change: Change, why: str
) -> None:
    reasons = check_recording([write(tmp_path / "wrong.mcap", change(frames))])
    assert len(reasons) == 1 and why in reasons[0] and "\n" not in reasons[0], reasons


def test_a_mirrored_picture_without_shadows_is_a_good_one_of_the_other_hand(
    frames: list[DepthFrame], tmp_path: Path
) -> None:
    path = write(tmp_path / "mirrored.mcap", mirrored(frames), sensor="time of flight")
    assert check_recording([path]) == [], "of one hand alone, without shadows, nobody could tell"


def test_shuffled_times_cut_files_and_damaged_ones_are_refused(frames: list[DepthFrame], tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mcap", frames[:40]).read_bytes()
    cut, damaged, none = (tmp_path / f"{name}.mcap" for name in ("cut", "damaged", "none"))
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    damaged.write_bytes(whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :])
    repeated = write(tmp_path / "repeated.mcap", [replace(f, seq=f.seq // 2) for f in frames[:40]])
    for path, why in (
        (cut, "it cannot be read to its end: it was cut"),
        (damaged, "it cannot be read to its end: "),
        (none, "it cannot be read to its end: "),
        (repeated, "time or frame number does not rise at 20 of 40 frames"),
    ):
        reasons = check_recording([path])
        assert len(reasons) == 1 and why in reasons[0] and "\n" not in reasons[0], reasons


@pytest.mark.skipif(not REAL.exists(), reason="the real frames of ../shared/data are not here")
def test_real_single_frames_are_not_refused() -> None:
    assert check_recording([REAL]) == []


def test_shadows_are_counted_on_the_side_of_the_near_thing_where_they_lie() -> None:
    z = np.full((4, 40), 2.0)
    z[:, 20:30] = 0.5
    z[:, 14:20] = 0
    assert shadows(z) == (24, 0) and shadows(z[:, ::-1]) == (0, 24)
    z[:, 14:20] = 2.0
    assert shadows(z) == (0, 0)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Rig]:
    """Two cameras that see one hand, their recordings and rig file."""
    folder = tmp_path_factory.mktemp("rig")
    clip = rig_clip(1, cameras=2, seconds=3.2, fps=30.0, motion="free", offsets_s=(0.0, 0.0))
    paths = [write(folder / f"{name}.mcap", list(clip.frames(k)), "D435") for k, name in enumerate(clip.names)]
    cameras = tuple(
        RigCamera(name, "depth", clip.intrinsics[k], clip.T_ref_cam[k], np.zeros((6, 6)))
        for k, name in enumerate(clip.names)
    )
    quality = Quality("board", sigma_volume_mm={"cam1": 0.8})
    return paths, Rig("cell", "2026-01-02T03:04:05Z", "edge-hand", cameras, (), quality)


def save(rig: Rig, path: Path, shift_m: Any = (0, 0, 0)) -> Path:
    first, second = rig.cameras
    moved = replace(second, T_ref_cam=transform(np.eye(3), np.array(shift_m, float)) @ second.T_ref_cam)
    save_rig(replace(rig, cameras=(first, moved)), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_rig_file_that_is_3_cm_off_is_refused(rig: tuple[list[Path], Rig], tmp_path: Path, axis: int) -> None:
    paths, made = rig
    reasons = check_recording(paths, save(made, tmp_path / "off.json", 0.03 * np.eye(3)[axis]))
    assert (
        len(reasons) == 1 and "cameras cam0 and cam1 see the palm" in reasons[0] and "the rig file is off" in reasons[0]
    )


@pytest.mark.slow
def test_a_right_rig_file_is_not_refused_and_a_mirrored_camera_in_it_is(
    rig: tuple[list[Path], Rig], tmp_path: Path
) -> None:
    paths, made = rig
    file = save(made, tmp_path / "rig.json")
    assert check_recording(paths, file) == []
    with Recording(paths[1]) as recording:
        wrong = write(tmp_path / "cam1.mcap", mirrored(list(recording)), "time of flight")
    reasons = check_recording([paths[0], wrong], file)
    assert len(reasons) == 1 and "cameras cam0 and cam1" in reasons[0]


@pytest.mark.slow
def test_a_rig_that_does_not_know_the_cameras_is_refused(
    rig: tuple[list[Path], Rig], frames: list[DepthFrame], tmp_path: Path
) -> None:
    paths, made = rig
    stranger = write(tmp_path / "stranger.mcap", frames)
    reasons = check_recording([paths[0], stranger], save(made, tmp_path / "rig.json"))
    assert reasons == ["rig cell: no camera synthetic-3; it has cam0, cam1"]


def rows(old: Any, new: Any, block: int = 30) -> Any:
    return np.stack([old, new, np.arange(len(old)) // block], 1)


def test_cameras_of_a_rig_are_compared_by_the_same_hand() -> None:
    left, right = np.zeros((21, 3)), np.full((21, 3), 0.2)
    hands = [[right + 0.01, right + 0.02], [left + 0.01, left + 0.02]]  # as two networks place them
    assert same_hand(hands, [left]) is hands[1] and same_hand(hands, [right]) is hands[0]
    assert any(same_hand(hands, []) is hand for hand in hands)
    assert same_hand(hands[:1], [left]) == []


def test_a_difference_counts_only_beyond_what_seconds_scatter() -> None:
    rng = np.random.default_rng(0)
    old = rng.normal(10, 1, 600)
    guard = Measure("fit", True, 0.01)
    assert compare(guard, rows(old, old)).verdict == "same"
    assert compare(guard, rows(old, 0.95 * old + rng.normal(0, 0.2, 600))).verdict == "better"
    assert compare(guard, rows(old, 1.05 * old + rng.normal(0, 0.2, 600))).verdict == "worse"
    assert compare(guard, rows(old, 0.995 * old)).verdict == "same", "sure, and not worth a change"
    drift = np.repeat(rng.normal(0, 1.5, 20), 30)  # one draw a second: 600 frames say no more than 20
    assert compare(guard, rows(old, old + drift)).verdict == "same"
    assert compare(guard._replace(more_is_better=True), rows(old, 0.95 * old)).verdict == "worse"


@pytest.mark.parametrize(("rate_hz", "cameras"), [(90, 1), (30, 3), (15, 1)])
def test_whatever_the_rate_and_the_cameras_fifteen_seconds_are_looked_at(
    frames: list[DepthFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate_hz: int, cameras: int
) -> None:
    """A quarter of 60 s at 90 Hz once ended after 5 s, too few for any network to pass."""
    camera = replace(frames[0].intrinsics, width=16, height=12)
    tiny = [
        replace(frames[0], seq=i, t_ns=round(i * 1e9 / rate_hz), depth=frames[0].depth[:12, :16], intrinsics=camera)
        for i in range(60 * rate_hz)
    ]
    path, looked = write(tmp_path / "minute.mcap", tiny), []

    def note(frame: DepthFrame, old: Any, new: Any, alone: bool, costly: bool, block: int, rows: Any, *_: Any) -> None:
        rows.seen(block)
        looked.append((frame.t_ns * 1e-9, costly))

    monkeypatch.setattr(gate, "_one_frame", note)
    engine, rows, (part,) = open_engine("onnxruntime", FLOAT), gate._Rows(), gate.parts_of([path], gate.HELD_OUT)
    gate._watch([path] * cameras, 0, None, (engine, engine), part, rows, lambda line: None)
    times = np.array([t for t, _ in looked])
    assert len(times) == 15 * rate_hz * cameras and times.min() >= 44.9 and rows.blocks in (15, 16)
    assert 7 <= sum(costly for _, costly in looked) / cameras / 15 <= 16


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BLOCK_S", 0.15)
    monkeypatch.setattr(gate, "SYNTHETIC", (40, 40))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_gate_lets_a_better_network_in_and_says_what_is_worse_of_another(
    frames: list[DepthFrame], tmp_path: Path
) -> None:
    path, worse = write(tmp_path / "hand.mcap", frames), worsened(tmp_path / "worse.onnx", 0.12)
    refused = judge(FLOAT, worse, [path], part=(0.4, 1.0), check=False)
    assert not refused.accepted and refused.measures["own_fit_mm"].verdict == "worse"
    assert any(reason.startswith("depth to the network's own mesh: ") for reason in refused.reasons)
    assert any("on the rendered test set" in reason and "allowed are 2" in reason for reason in refused.reasons)
    assert "refused, nothing changes:" in refused.table() and refused.as_json()["measures"]["fit_p50_mm"]["new"] > 0
    accepted = judge(worse, FLOAT, [path], part=(0.4, 1.0), check=False)
    assert accepted.accepted and accepted.reasons == () and accepted.table().endswith("accepted")
    same = judge(FLOAT, FLOAT, [path], part=(0.4, 1.0), check=False)
    assert not same.accepted and same.reasons[0].startswith("no measure is better by 1 % and beyond noise")


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_an_accepted_network_is_exported_kept_and_in_use_and_a_refused_one_leaves_nothing(
    frames: list[DepthFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    path, store = write(tmp_path / "hand.mcap", frames), tmp_path / "models"
    export(WEIGHTS, plain := tmp_path / "plain.onnx")  # the same network
    report, version = accept(WEIGHTS, plain, [path], store=store, part=(0.4, 1.0), check=False)
    assert version is None and not report.accepted and not store.exists()
    worse = worsened(tmp_path / "worse.onnx", 0.12)
    report, version = accept(WEIGHTS, worse, [path], store=store, part=(0.4, 1.0), check=False)
    assert report.accepted and version is not None and versions(store) == [version]
    assert version.made_from == "hand.mcap" and version.report["accepted"] and version.model.name == "adapted-1.onnx"


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped network, which is also what every export makes and the gate accepts."""

    def exported(_: Path, out: Path) -> None:
        shutil.copy(FLOAT, out)
        shutil.copy(FLOAT.with_suffix(".json"), out.with_suffix(".json"))

    monkeypatch.setattr(exporter, "export", exported)
    monkeypatch.setattr(gate, "judge", lambda *_, **__: gate.GateReport(True, (), {}))
    monkeypatch.setattr(gate, "put_in_use", lambda *_: None)
    exported(WEIGHTS, made := tmp_path / "plain.onnx")
    return made


def test_a_network_is_not_put_in_use_over_another_than_it_was_judged_against(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "models"
    add(store, [plain], "a", {})

    def meanwhile(*_: object, **__: object) -> gate.GateReport:
        use(store, 1 - in_use(store))
        return gate.GateReport(True, (), {})

    monkeypatch.setattr(gate, "judge", meanwhile)
    for _ in range(2):
        report, version = accept(WEIGHTS, plain, [], store=store)
        assert version is None and not report.accepted and [v.number for v in versions(store)] == [1]
        assert report.reasons[0].startswith("another network was put in use while the gate judged; `adapt --resume`")


@pytest.mark.parametrize("has_it", [True, False])
def test_a_network_on_a_gpu_keeps_its_16_bits_when_it_is_adapted(
    has_it: bool, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "PROBES", 1)
    if has_it:
        export_tensorrt(plain, "fp16")
    version = accept(WEIGHTS, plain, [], store=tmp_path / "models")[1]
    assert version is not None and version.model.name == "adapted-1.onnx"
    half = tensorrt.suited(version.model)
    assert half.name == ("adapted-1-tensorrt-fp16.onnx" if has_it else "adapted-1.onnx")
    assert tensorrt._form(version.model, "fp16" if has_it else "fp32") == half, "what a refit looks for"


@pytest.mark.slow
def test_the_gate_looks_at_the_recording_again(frames: list[DepthFrame], tmp_path: Path) -> None:
    path = write(tmp_path / "mirrored.mcap", mirrored(frames))
    report = judge(FLOAT, FLOAT, [path])
    assert not report.accepted and report.measures == {} and "mirrored" in report.table()
