"""Evaluation without labels: distances to the mesh are exact, and only the hand's own points are measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import edge_hand.edge.evaluate
import numpy as np
import pytest
from depth_png import encode_depth_png
from edge_hand.edge.engines import Engine
from edge_hand.edge.evaluate import ARM_M, evaluate_recording, hand_points, recording_table, surface_distance_mm
from edge_hand.edge.finder import CUBE_M
from edge_hand.edge.recordings.recording import RecordingWriter
from edge_hand.edge.tracker import Tracker
from edge_hand.hand.arrays import Array
from edge_hand.hand.frames import DepthFrame
from edge_hand.hand.kinematics import Shape
from edge_hand.hand.template import template
from PIL import Image
from test_draw import frame_and_pose

T = template()
SR305 = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "sr305"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hand, an empty image, a broken file, and the hand a quarter of a second later."""
    path = tmp_path_factory.mktemp("recording")
    (first, _), (last, _) = frame_and_pose(0), frame_and_pose(8)
    k = first.intrinsics
    camera = {key: getattr(k, key) for key in ("width", "height", "fx", "fy", "cx", "cy")}
    (path / "camera.json").write_text(json.dumps(camera | {"depth_scale_m": first.depth_unit_m}))
    (path / "0.png").write_bytes(encode_depth_png(first.depth, 1))
    (path / "1.png").write_bytes(encode_depth_png(np.zeros_like(first.depth), 1))
    (path / "2.png").write_bytes(encode_depth_png(first.depth, 1)[:4000])
    (path / "3.png").write_bytes(encode_depth_png(last.depth, 1))
    return path


def closest_distance(p: Array, a: Array, b: Array, c: Array) -> float:
    """Distance from one point (3,) to the nearest of all triangles (F, 3): Ericson, Real-Time Collision Detection."""
    ab, ac, ap, bp, cp = b - a, c - a, p - a, p - b, p - c
    d1, d2, d3, d4 = (ab * ap).sum(1), (ac * ap).sum(1), (ab * bp).sum(1), (ac * bp).sum(1)
    d5, d6 = (ab * cp).sum(1), (ac * cp).sum(1)
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
    with np.errstate(all="ignore"):
        on_ab = a + (d1 / (d1 - d3))[:, None] * ab
        on_ac = a + (d2 / (d2 - d6))[:, None] * ac
        on_bc = b + ((d4 - d3) / ((d4 - d3) + (d5 - d6)))[:, None] * (c - b)
        inside = a + (vb / (va + vb + vc))[:, None] * ab + (vc / (va + vb + vc))[:, None] * ac
    regions = [
        ((d1 <= 0) & (d2 <= 0), a),
        ((d3 >= 0) & (d4 <= d3), b),
        ((vc <= 0) & (d1 >= 0) & (d3 <= 0), on_ab),
        ((d6 >= 0) & (d5 <= d6), c),
        ((vb <= 0) & (d2 >= 0) & (d6 <= 0), on_ac),
        ((va <= 0) & (d4 >= d3) & (d5 >= d6), on_bc),
    ]
    closest = np.select([r[:, None] for r, _ in regions], [q for _, q in regions], inside)
    return float(np.linalg.norm(p - closest, axis=1).min())


def test_surface_distance_is_that_to_all_triangles() -> None:
    rng = np.random.default_rng(3)
    corner = T.vertices_m[T.faces[rng.integers(len(T.faces), size=400)]]  # (N, 3, 3)
    on_surface = (rng.dirichlet(np.ones(3), 400)[..., None] * corner).sum(1)
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    points = on_surface + rng.uniform(-0.012, 0.012, (400, 1)) * normal + 0.001 * rng.standard_normal((400, 3))
    slow = np.array([closest_distance(p, *T.vertices_m[T.faces].transpose(1, 0, 2)) for p in points]) * 1e3
    fast = surface_distance_mm(points, T.vertices_m, T.faces)
    near = slow < 10
    assert near.sum() > 300
    assert (fast >= slow - 1e-9).all()  # a part of the triangles is never nearer than all
    assert np.abs(fast - slow)[near].max() < 0.5


def test_points_on_the_mesh_have_no_distance_and_no_points_none() -> None:
    middles = T.vertices_m[T.faces].mean(1)
    np.testing.assert_allclose(surface_distance_mm(middles, T.vertices_m, T.faces), 0, atol=1e-6)
    np.testing.assert_allclose(surface_distance_mm(T.vertices_m, T.vertices_m, T.faces), 0, atol=1e-6)
    assert surface_distance_mm(np.empty((0, 3)), T.vertices_m, T.faces).shape == (0,)


@pytest.mark.parametrize("seq", [0, 120, 250, 500])
def test_hand_points_are_the_hand_s_and_none_lies_behind_the_wrist(seq: int) -> None:
    frame, pose = frame_and_pose(seq)
    points = hand_points(frame, pose)
    assert len(points) > 300
    wrist, along = pose.T_camera_wrist[:3, 3], pose.T_camera_wrist[:3, 1]
    assert ((points - wrist) @ along > ARM_M).all()
    assert (np.abs(points - pose.joints_m.mean(0)) < CUBE_M / 2).all()
    # The arm is there to be left out, in the same cube.
    rows, columns = np.nonzero(frame.depth)
    cloud = frame.intrinsics.deproject(np.stack([columns, rows], -1), frame.depth[rows, columns] * frame.depth_unit_m)
    near = np.linalg.norm(cloud - wrist, axis=1) < 0.06
    assert ((cloud[near] - wrist) @ along < ARM_M).sum() > 50
    # They lie on the true mesh, which they were drawn from, but for the sensor's noise.
    assert np.median(surface_distance_mm(points, pose.vertices_m, T.faces)) < 2


def test_a_mesh_in_the_air_has_no_hand_points() -> None:
    frame, pose = frame_and_pose(0)
    empty = DepthFrame("e", 0, 0, np.zeros_like(frame.depth), frame.depth_unit_m, frame.intrinsics)
    assert hand_points(empty, pose).shape == (0, 3)
    wall = DepthFrame("w", 0, 0, np.full_like(frame.depth, 2000), frame.depth_unit_m, frame.intrinsics)
    assert hand_points(wall, pose).shape == (0, 3)
    behind = DepthFrame("b", 0, 0, np.full_like(frame.depth, 580), frame.depth_unit_m, frame.intrinsics)
    assert hand_points(behind, pose).shape == (0, 3)  # in the cube, but not under the mesh


def test_a_recording_is_measured_frame_by_frame(folder: Path, engine: Engine, tmp_path: Path) -> None:
    result = evaluate_recording(str(folder), engine, out=tmp_path / "overlays")
    assert (result["frames"], result["found"]) == (4, 2)
    assert result["right"] + result["left"] == 2
    assert result["model"] == engine.card.sha256 and result["source"] == str(folder)
    hand, empty, broken, last = result["per_frame"]
    assert empty == {"seq": 1, "found": False, "hands": 0}
    assert broken["seq"] is None and not broken["found"] and "2.png is a truncated" in broken["error"]
    assert (hand["seq"], last["seq"]) == (0, 3)
    for entry in (hand, last):
        assert entry["side"] in ("left", "right", "unknown") and 0 <= entry["score"] <= 1
        assert 0 < entry["fit_mm"]["p50"] < entry["fit_mm"]["p90"] < 100
    assert 0 < result["fit_mm"]["p50"] < result["fit_mm"]["p90"]
    medians = [hand["fit_mm"]["p50"], last["fit_mm"]["p50"]]
    assert result["worst_frame_p50_mm"] == max(medians)
    assert min(medians) <= result["fit_mm"]["p50"] <= max(medians)  # all points pooled
    json.dumps(result)

    pictures = sorted(path.name for path in (tmp_path / "overlays").iterdir())
    assert pictures == ["00000.png", "00001.png", "00003.png", "sheet.png"]
    with Image.open(tmp_path / "overlays/00000.png") as with_hand, Image.open(tmp_path / "overlays/00001.png") as none:
        assert np.any(np.asarray(with_hand) != np.asarray(none))

    lines = recording_table(result).splitlines()
    assert len(lines) == 5 and "no hand" in lines[1] and "unusable" in lines[2]
    assert lines[4].startswith("found 2 of 4 (")


def test_a_limit_stops_it_and_tracking_starts_from_the_frame_before(folder: Path, engine: Engine) -> None:
    assert evaluate_recording(str(folder), engine, limit=1)["frames"] == 1
    tracked = evaluate_recording(str(folder), engine, track=True, limit=2)
    assert [entry["found"] for entry in tracked["per_frame"]] == [True, False]


def test_the_tracker_is_given_the_recorded_times(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rate, or a gap left out, and another tracker is measured than the one that runs."""
    times: list[int] = []

    class Watched(Tracker):
        def process(self, frame: DepthFrame) -> Any:
            times.append(frame.t_ns)
            return super().process(frame)

    monkeypatch.setattr(edge_hand.edge.evaluate, "Tracker", Watched)
    recorded = [7_000_000_000 + round(k * 1e9 / 90) + (k > 2) * 60_000_000_000 for k in range(5)]
    with RecordingWriter(tmp_path / "hand.mcap") as writer:
        for k, t_ns in enumerate(recorded):
            writer.write(replace(frame_and_pose(k)[0], t_ns=t_ns))
    evaluate_recording(str(tmp_path / "hand.mcap"), engine, track=True)
    assert times == recorded


def test_hands_are_held_in_the_shape_that_is_given(folder: Path, engine: Engine) -> None:
    average, large = (
        evaluate_recording(str(folder), engine, limit=1, shape=Shape(np.full(6, size), np.zeros(7)))["fit_mm"]["p90"]
        for size in (1.0, 1.3)
    )
    assert large > 1.5 * average


def test_a_recording_without_a_hand_has_no_fit(folder: Path, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "camera.json").write_bytes((folder / "camera.json").read_bytes())
    (tmp_path / "0.png").write_bytes((folder / "1.png").read_bytes())
    result = evaluate_recording(str(tmp_path), engine)
    assert result["fit_mm"] == {"p50": None, "p90": None} and result["worst_frame_p50_mm"] is None
    assert recording_table(result).endswith(
        "found 0 of 1 (0 right, 0 left), more than one hand in 0; no depth to measure"
    )


@pytest.mark.slow
def test_each_real_sr305_frame_shows_one_right_hand_that_fits_within_4_5_mm(engine: Engine) -> None:
    if not SR305.is_dir():
        pytest.skip(f"the SR305 frames are not at {SR305}")
    result = evaluate_recording(str(SR305), engine)
    assert result["frames"] == result["found"] == result["right"] == 19
    assert all(entry["hands"] == 1 for entry in result["per_frame"])
    assert result["fit_mm"]["p50"] <= 4.5
