"""A moving hand calibrates a rig: simulated joints and depth points; `trainer/evaluate_rig.py` has pictures."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from edge_hand.calibration.cli import calibrate as command
from edge_hand.calibration.cli_hand import report, summary
from edge_hand.calibration.draw import draw_hand
from edge_hand.calibration.gate import lacks, measure
from edge_hand.calibration.hand import HandResult, _warnings, calibrate, covariances, solve_halves
from edge_hand.calibration.icp import View, fit_clouds, rim_px, tied_moments
from edge_hand.calibration.joint import fit_joints
from edge_hand.calibration.look_at import open_depth
from edge_hand.calibration.observe import Cloud, ObserveError, Sight, joints_at, slope, tree_of
from edge_hand.calibration.pairwise import fit_pair
from edge_hand.calibration.progress import line
from edge_hand.calibration.rig import RigError, load_rig, save_rig
from edge_hand.calibration.uncertainty import pose_difference, volume_sigma_mm
from edge_hand.calibration.verify import Check, as_json, in_order, verify
from edge_hand.calibration.verify import report as verify_report
from edge_hand.edge.cameras import CameraError
from edge_hand.edge.cli.shell import CommandError
from edge_hand.hand.se3 import inverse, so3_exp, transform
from edge_hand.hand.template import template
from edge_hand.trainer.synth.rig_views import Bump, RigClip, rig_clip

FPS = 30.0
OFFSETS_S = (0.0, 0.012, -0.008)
Array = Any


def skin_seen(clip: RigClip, camera: int, vertices: Array, rng: np.random.Generator) -> Array:
    """Points (N, 3) of the mesh (V, 3) that the camera sees, with a millimetre of noise along the ray."""
    faces = template().faces
    corners = vertices[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    middle = corners.mean(1)
    points = middle[(across * middle).sum(1) < 0]
    cell = np.floor(clip.intrinsics[camera].project(points) / 3).astype(int)
    cell -= cell.min(0)
    nearest = np.full(cell.max(0) + 1, np.inf)
    np.minimum.at(nearest, (cell[:, 0], cell[:, 1]), points[:, 2])
    points = points[points[:, 2] < nearest[cell[:, 0], cell[:, 1]] + 0.008]
    return points * (1 + rng.normal(0, 0.001, (len(points), 1)) / points[:, 2:])


def sights_of(clip: RigClip, seed: int, blind: tuple[int, ...] = ()) -> list[Sight]:
    """Joints off by millimetres that go together, as a network's are, and points; what a tracker makes of pictures."""
    rng = np.random.default_rng(seed)
    sights = []
    for camera, name in enumerate(clip.names):
        times, joints, clouds = [], [], []
        drift = np.zeros((21, 3))
        for i in range(clip.frame_count):
            t_s = clip.stamp_ns(camera, i) * 1e-9
            times.append(t_s)
            drift = 0.9 * drift + rng.normal(0, 0.0012, (21, 3))
            lost = camera in blind or rng.random() < 0.03
            vertices = clip.vertices_m(camera, i) if not lost and i % 3 == 0 else None
            towards = -0.004 * np.array([0, 0, 1.0])  # skin is nearer than bone
            seen = clip.joints_m(camera, i) + drift + rng.normal(0, 0.002, (21, 3)) + towards
            if rng.random() < 0.03:
                seen = seen + rng.normal(0, 0.05, 3)
            joints.append(np.full((21, 3), np.nan) if lost else seen)
            if vertices is not None:
                clouds.append(Cloud(t_s, skin_seen(clip, camera, vertices, rng), vertices.astype(np.float32)))
        sights.append(Sight(name, "depth", clip.intrinsics[camera], np.array(times), np.array(joints), tuple(clouds)))
    return sights


def clip_of(seed: int = 0, **options: Any) -> RigClip:
    return rig_clip(seed, **({"fps": FPS, "offsets_s": OFFSETS_S, "size": (848, 480), "clutter": False} | options))


@cache
def scene() -> tuple[RigClip, list[Sight]]:
    clip = clip_of()
    return clip, sights_of(clip, 0)


@cache
def result() -> HandResult:
    return calibrate("cell", scene()[1], moments=30)


@cache
def later(bump_deg: float = 0.0) -> list[Sight]:
    """The same rig and another motion; a camera is turned."""
    clip = clip_of()
    bump = Bump(1, 0.0, np.radians(bump_deg) * np.array([0.0, 1.0, 0.0]), np.zeros(3)) if bump_deg else None
    return sights_of(clip._replace(way=clip_of(5).way, bump=bump), 5)


@cache
def check(bump_deg: float = 0.0) -> Check:
    return verify(result().rig, later(bump_deg), moments=30)


def test_a_pairs_lag_and_pose_are_found_from_joints() -> None:
    clip, sights = scene()
    pair = fit_pair(sights[0], sights[1], np.random.default_rng(0))
    assert pair is not None
    assert pair.lag_s == pytest.approx(OFFSETS_S[1], abs=0.006)
    assert pose_difference(pair.T_a_b, clip.T_ref_cam[1]).volume_mm < 12
    assert pair.agree > 0.8


def test_clocks_that_have_nothing_to_do_with_each_other_are_brought_together() -> None:
    _, sights = scene()
    late = replace(
        sights[1],
        times_s=sights[1].times_s + 5000.0,
        clouds=tuple(c._replace(t_s=c.t_s + 5000) for c in sights[1].clouds),
    )
    pair = fit_pair(sights[0], late, np.random.default_rng(0))
    assert pair is not None
    assert pair.lag_s == pytest.approx(OFFSETS_S[1] - 5000.0, abs=0.006)


def test_a_rig_of_hosts_whose_clocks_lie_hours_apart_is_calibrated() -> None:
    clip, sights = scene()
    far = 5000.0
    clouds = tuple(cloud._replace(t_s=cloud.t_s + far) for cloud in sights[1].clouds)
    late = replace(sights[1], times_s=sights[1].times_s + far, clouds=clouds)
    names = [sight.serial for sight in sights[:2]]
    assert "overlap [........]" in line(measure([sights[0], late]), names, 10)  # nothing is known of it yet
    found = calibrate("cell", [sights[0], late], moments=12)
    assert not found.lacks
    assert found.rig.cameras[1].time.offset_s == pytest.approx(OFFSETS_S[1] - far, abs=0.003)
    assert pose_difference(found.rig.cameras[1].T_ref_cam, clip.T_ref_cam[1]).volume_mm < 4


def test_joints_alone_give_a_start_and_the_clocks() -> None:
    clip, sights = scene()
    fit = fit_joints(sights, np.random.default_rng(0))
    for c in (1, 2):
        assert pose_difference(fit.T_ref_cam[c], clip.T_ref_cam[c]).volume_mm < 10
    assert fit.offsets_s == pytest.approx(OFFSETS_S, abs=0.004)


@pytest.mark.slow
def test_depth_points_calibrate_to_a_millimetre_where_joints_do_not() -> None:
    clip, _ = scene()
    found = result()
    for c in (1, 2):
        by_joints = pose_difference(found.joints.T_ref_cam[c], clip.T_ref_cam[c]).volume_mm
        by_depth = pose_difference(found.rig.cameras[c].T_ref_cam, clip.T_ref_cam[c])
        assert by_depth.volume_mm < 1.0 and by_depth.deg < 0.2
        assert by_depth.volume_mm < by_joints
        assert found.rig.cameras[c].time.offset_s == pytest.approx(OFFSETS_S[c], abs=0.0015)
    assert found.rig.quality.method == "hand" and found.rig.quality.verdict == "pass"


@pytest.mark.slow
def test_the_promised_sigma_is_about_the_error() -> None:
    clip, _ = scene()
    found = result()
    for c in (1, 2):
        error = pose_difference(found.rig.cameras[c].T_ref_cam, clip.T_ref_cam[c]).volume_mm
        assert 0.2 < found.rig.quality.sigma_volume_mm[clip.names[c]] < 2
        assert error < 3 * found.rig.quality.sigma_volume_mm[clip.names[c]]


@pytest.mark.slow
def test_a_depth_error_of_one_camera_is_found_as_an_offset_of_inverse_depth() -> None:
    _, sights = scene()
    wrong = 0.006  # 1 / m: 2.5 mm at 0.65 m
    clouds = tuple(c._replace(points_m=c.points_m / (1 - wrong * c.points_m[:, 2:])) for c in sights[1].clouds)
    found = calibrate("bent", [sights[0], replace(sights[1], clouds=clouds), sights[2]], moments=30)
    by = found.rig.cameras[1].depth.offset_per_m - result().rig.cameras[1].depth.offset_per_m
    assert by == pytest.approx(wrong, abs=0.6 * wrong) and by > 0


def test_the_rig_is_saved_loaded_drawn_and_told_in_words(tmp_path: Path) -> None:
    save_rig(result().rig, tmp_path / "rig.json")
    rig = load_rig(tmp_path / "rig.json")
    assert [camera.serial for camera in rig.cameras] == ["cam0", "cam1", "cam2"]
    assert len(rig.pairs) == 3 and all(pair.loop_mm is not None for pair in rig.pairs)
    draw_hand(result(), tmp_path / "rig.png")
    assert (tmp_path / "rig.png").read_bytes()[:4] == b"\x89PNG"
    text = "\n".join(report(result()))
    assert "halves differ by" in text and text.endswith("verdict: pass")
    assert json.loads(json.dumps(summary(result())))["verdict"] == "pass"


def test_a_camera_whose_points_meet_others_by_chance_stays_where_joints_have_it() -> None:
    joints, rng, moments = result().joints, np.random.default_rng(1), []
    for moment in result().clouds.moments[::3]:
        away = moment.views[-1].points_m + rng.normal(0, 0.1, 3)
        moments.append(moment._replace(views=(*moment.views[:-1], astray(moment.views[-1], away))))
    fit = fit_clouds(moments, joints.T_ref_cam, joints.offsets_s)
    assert fit.held.tolist() == [False, False, True] and tied_moments(fit)[2] == 0
    assert np.array_equal(fit.T_ref_cam[2], joints.T_ref_cam[2])
    _, sure, unsure = (volume_sigma_mm(covariance[:6, :6]) for covariance in covariances(fit, joints))
    assert sure < 2 < 5 < unsure


def astray(view: View, points_m: Array) -> View:
    return view._replace(points_m=points_m, tree=tree_of(points_m))


@pytest.mark.slow
def test_a_camera_whose_points_meet_no_others_is_no_pass() -> None:
    sights, rng = list(scene()[1]), np.random.default_rng(1)
    away = [rng.normal(0, 0.1, 3) for _ in sights[2].clouds]  # it shares every moment; skin meets by chance
    clouds = tuple(c._replace(points_m=c.points_m + d) for c, d in zip(sights[2].clouds, away, strict=True))
    found = calibrate("apart", [*sights[:2], replace(sights[2], clouds=clouds)], moments=30)
    assert found.rig.quality.sigma_volume_mm["cam2"] > 5 and found.rig.quality.sigma_volume_mm["cam1"] < 1
    assert found.rig.quality.verdict == "fail"
    assert found.rig.quality.warnings[0].startswith("cam2: depth ties it to the others in 0 moments only (at least 20")


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 3)])
def test_the_exit_code_is_the_verdict_s_and_the_file_is_written_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, code: int
) -> None:
    found = result()
    rig = replace(found.rig, quality=replace(found.rig.quality, verdict=verdict))  # type: ignore[arg-type]
    found = found._replace(rig=rig)
    monkeypatch.setattr("edge_hand.calibration.cli_hand._gather", lambda *_, **__: [])
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("edge_hand.calibration.hand.calibrate", lambda *_, **__: now.append(now.pop() + 21.5) or found)
    out = tmp_path / "rig.json"
    run = CliRunner().invoke(command, ["hand", "--source", "a", "--source", "b", "--out", str(out)])
    assert run.exit_code == code and f"{out} is written, 21.5 s after the motion\n" in run.output
    assert load_rig(out).quality.verdict == verdict


def test_a_still_hand_is_noticed() -> None:
    clip = clip_of(motion="still")
    with pytest.raises(ObserveError, match="the hand stays in one place: move it through the whole volume"):
        calibrate("still", sights_of(clip, 1))


def test_a_motion_on_a_line_is_noticed() -> None:
    clip = clip_of(motion="line")
    with pytest.raises(ObserveError, match=r"the hand moves on a line: move it .* and .*, too.*turn the hand more"):
        calibrate("line", sights_of(clip, 1))


def test_a_camera_that_never_sees_the_hand_is_named() -> None:
    sights = list(scene()[1])
    nothing = np.full_like(sights[2].joints_m, np.nan)
    sights[2] = replace(sights[2], joints_m=nothing, clouds=())
    with pytest.raises(
        ObserveError, match=r"^cam2 never sees the hand: turn the camera or move the hand into its view$"
    ):
        calibrate("blind", sights)


def test_a_camera_that_never_shares_the_hand_is_named() -> None:
    sights = list(scene()[1])
    middle = sights[0].times_s.mean()
    for c, early in ((0, True), (1, True), (2, False)):
        away = (sights[c].times_s < middle) != early
        joints = sights[c].joints_m.copy()
        joints[away] = np.nan
        sights[c] = replace(sights[c], joints_m=joints)
    assert any(
        text.startswith("cam2 sees the hand only when no other camera does")
        for text in lacks(measure(sights), ["cam0", "cam1", "cam2"])
    )


def test_the_line_on_the_screen_says_what_is_missing_and_then_enough() -> None:
    sights = scene()[1]
    names = [sight.serial for sight in sights]
    start = sights[0].times_s[0]
    early = [sight.between(start, start + 2) for sight in sights]
    assert "the hand was seen for 2 s" in line(measure(early), names, 2)
    text = line(measure(sights), names, 10)
    assert "volume [########]" in text and text.endswith("enough")


@pytest.mark.slow
def test_an_unchanged_rig_passes_on_another_motion() -> None:
    found = check()
    assert found.verdict == "pass", found.reasons
    assert all(pair.cloud_p50_mm < 2 and pair.mesh_p50_mm < 5 for pair in found.pairs)
    assert all({"near", "middle", "far"} & set(pair.regions) for pair in found.pairs)
    assert json.loads(json.dumps(as_json(found)))["verdict"] == "pass"


@pytest.mark.slow
def test_a_camera_bumped_by_half_a_degree_is_named() -> None:
    found = check(0.5)
    assert found.verdict == "fail"
    assert found.reasons[0].startswith("cam1 is ") and "from where the rig has it" in found.reasons[0]
    moved = found.cameras[1].moved
    assert moved.deg == pytest.approx(0.5, abs=0.2)
    assert verify_report(found)[-1] == "verdict: fail"


@pytest.mark.slow
def test_a_wrong_rig_is_told_apart_from_a_bump() -> None:
    rig = result().rig
    away = transform(so3_exp(np.array([0, 0.3, 0])), np.array([0.1, 0, 0]))
    cameras = (rig.cameras[0], *(replace(c, T_ref_cam=away @ c.T_ref_cam) for c in rig.cameras[1:]))
    found = verify(replace(rig, cameras=cameras), later(), moments=20)
    assert found.verdict == "fail"
    assert "the rig is not that of these cameras, or they were set up anew: calibrate again" in found.reasons


def test_a_camera_the_rig_does_not_know_is_refused() -> None:
    sights = list(later())
    with pytest.raises(RigError, match="no camera elsewhere; it has cam0, cam1, cam2"):
        verify(result().rig, [*sights[:2], replace(sights[2], serial="elsewhere")])
    with pytest.raises(ObserveError, match="rig cell has cam2 too: give a source of every camera"):
        verify(result().rig, sights[:2])


def test_a_check_sees_through_the_lens_that_the_board_refined() -> None:
    rig, sights = result().rig, scene()[1]
    own = sights[1].intrinsics
    camera = replace(rig.cameras[1], intrinsics=replace(own, cx=own.cx + 3), own_intrinsics=own)
    seen = in_order(replace(rig, cameras=(rig.cameras[0], camera, rig.cameras[2])), sights)
    assert seen[0] is sights[0] and seen[1].intrinsics == camera.intrinsics
    for a, b in (
        (seen[1].joints_m, sights[1].joints_m),
        *((a.points_m, b.points_m) for a, b in zip(seen[1].clouds, sights[1].clouds, strict=True)),
        *((a.mesh_m, b.mesh_m) for a, b in zip(seen[1].clouds, sights[1].clouds, strict=True)),
    ):
        assert a is not None and b is not None
        assert np.allclose(a, b - [3 / own.fx, 0, 0] * b[..., 2:], atol=1e-6, equal_nan=True)


def test_halves_that_cannot_be_solved_apart_are_a_warning_and_no_error() -> None:
    found = result()
    assert solve_halves(replace(found.clouds, moments=found.clouds.moments[:6])) is None
    rig = replace(found.rig, quality=replace(found.rig.quality, split_half_deg=None, split_half_mm=None))
    assert not any(line.startswith("halves") for line in report(found._replace(rig=rig, halves=None)))
    assert _warnings(scene()[1], found.clouds, [], {}, None)[0] == "too few moments to solve the halves apart"


def test_a_rim_is_measured_from_outlines_and_steps() -> None:
    pixels = np.stack(np.meshgrid(np.arange(40.0), np.arange(40.0)), -1).reshape(-1, 2)
    depth = np.where(pixels[:, 0] < 20, 0.5, 0.6)
    rim = rim_px(pixels, depth).reshape(40, 40)
    assert rim[20, 10] > 7  # columns: the second axis
    assert rim[20, 19] < 3 and rim[0, 10] < 3


def test_joints_are_not_invented_in_gaps() -> None:
    times = np.array([0.0, 0.1, 0.5, 0.6])
    joints = np.arange(4.0)[:, None, None] * np.ones((4, 21, 3))
    sight = Sight("c", "depth", scene()[0].intrinsics[0], times, joints)
    at = joints_at(sight, np.array([0.05, 0.3, 0.55, 0.7]))[:, 0, 0]
    assert at[[0, 2]] == pytest.approx([0.5, 2.5]) and np.isnan(at[[1, 3]]).all()


def test_slopes_follow_a_cubic_exactly() -> None:
    t = np.arange(40) / 30
    assert slope((t**3)[:, None], 30.0)[10:-10, 0] == pytest.approx(3 * t[10:-10] ** 2)


def test_the_commands_say_what_they_need(tmp_path: Path) -> None:
    run = CliRunner().invoke(command, ["hand", "--source", "one.mcap", "--out", str(tmp_path / "rig.json")])
    assert isinstance(run.exception, CommandError)
    assert str(run.exception) == "a rig needs two or more --source, or two or more --address"
    run = CliRunner().invoke(command, ["hand", "--source", "a", "--source", "b", "--out", "rig.json"])
    assert str(run.exception).startswith("a does not exist; a source is a recording")
    (bag := tmp_path / "a.bag").touch()
    with pytest.raises(CameraError, match=r"a\.bag is librealsense's.* record --camera replay --source .* .*a\.mcap$"):
        open_depth(str(bag))


@pytest.mark.parametrize("given", ["hand --out rig.json", "verify --rig rig.json"])
def test_whoever_lacks_scipy_is_told_before_a_hand_is_moved(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edge_hand.calibration.rig.load_rig", lambda _: None)
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    run = CliRunner().invoke(command, [*given.split(), "--source", "a", "--source", "b"])
    assert str(run.exception) == "this needs scipy: pip install '.[calibration]' in edge-hand's folder"


def test_truth_of_the_simulation_is_what_it_says() -> None:
    clip, sights = scene()
    there = joints_at(sights[1], np.array([clip.stamp_ns(1, 100) * 1e-9]))[0]
    away = np.linalg.norm(there - clip.joints_m(1, 100), axis=1)
    assert np.nanmedian(away) < 0.02
    assert np.allclose(inverse(clip.T_ref_cam[1]) @ clip.T_ref_cam[1], np.eye(4))
