"""What a check says of each camera and each pair, and to a person and a program, from numbers that are known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from edge_hand.calibration.distances import Distances, distances
from edge_hand.calibration.hand import Halves
from edge_hand.calibration.icp import FEWEST_MOMENTS
from edge_hand.calibration.observe import Cloud, Sight
from edge_hand.calibration.rig import DepthCorrection, Quality, Rig, RigCamera, RigError, TimeOffset
from edge_hand.calibration.uncertainty import Difference, Volume, volume_sigma_mm
from edge_hand.calibration.verify import Check, PairCheck, _cameras, _pair, _verdict, as_json, in_order, report, verify
from edge_hand.hand.se3 import so3_exp, transform
from test_calibrate_hand import clip_of, sights_of
from test_verify_facing import camera

VOLUME = Volume((0.2, -0.1, 1.0), 0.6)


def a_rig() -> Rig:
    lens, T = clip_of().intrinsics[0], clip_of().T_ref_cam
    rng = np.random.default_rng(0)
    cameras = []
    for c in range(3):
        root = rng.normal(size=(6, 6)) * 4e-4 * (c > 0)
        cameras.append(RigCamera(f"cam{c}", "depth", lens, T[c], root @ root.T, TimeOffset(0.01 * c)))
    quality = Quality("test", volume_centre_m=VOLUME.centre_m, volume_edge_m=VOLUME.edge_m)
    return Rig("cell", "", "test", tuple(cameras), (), quality)


def test_a_camera_is_checked_in_the_rigs_volume_with_the_errors_of_the_rig_and_of_the_check() -> None:
    rig, rng = a_rig(), np.random.default_rng(1)
    found = np.stack([c.T_ref_cam for c in rig.cameras])
    found[2] = transform(np.eye(3), np.array([0.0, 0.006, 0.008])) @ found[2]
    middle, turn = np.array(VOLUME.centre_m), so3_exp(np.array([0.02, 0.0, 0.0]))
    found[1] = transform(turn, middle - turn @ middle) @ found[1]  # about the middle of the rig's volume
    sigma = np.zeros((3, 8, 8))
    for c in (1, 2):
        root = rng.normal(size=(8, 8)) * 5e-4
        sigma[c] = root @ root.T
    checks = _cameras(rig, found, np.array([0.0, 0.013, 0.02]), sigma, np.array([100, 40, 3]))
    assert [c.serial for c in checks] == ["cam0", "cam1", "cam2"]
    assert checks[2].moved == pytest.approx((0.0, 10.0, 10.0), abs=1e-6)
    assert checks[1].moved.deg == pytest.approx(np.degrees(0.02))
    assert checks[1].moved.volume_mm == pytest.approx(1e3 * 0.02 * 0.3, rel=0.05)
    for c in (1, 2):
        both = sigma[c, :6, :6] + rig.cameras[c].covariance
        assert checks[c].sigma_mm == pytest.approx(volume_sigma_mm(both, VOLUME))
    assert [c.clock_s for c in checks] == pytest.approx([0.0, 0.003, 0.0])
    assert [c.moments for c in checks] == [100, 40, 3] and [c.tied for c in checks] == [True, True, False]


def parts(*of: tuple[tuple[int, int], float, float, int, int]) -> Distances:
    """Of each: the cameras, how far apart, at which depth, how many; how many were asked."""
    return Distances.joined(
        [
            Distances(
                np.full(n, value_m), np.tile(pair, (n, 1)), np.tile([0.5, 0.0, z_m], (n, 1)), {pair: asked}, {pair: n}
            )
            for pair, value_m, z_m, n, asked in of
        ]
    )


def test_a_pair_is_told_of_its_own_points_by_region_both_ways() -> None:
    cloud = parts(
        ((0, 1), 0.001, 0.75, 200, 1000), ((1, 0), 0.003, 1.0, 400, 1000), ((0, 1), 0.002, 1.2, 99, 0),
        ((0, 2), 0.05, 1.0, 5000, 5000),
    )  # fmt: skip
    mesh = parts(((0, 1), 0.004, 1.0, 10, 10), ((1, 0), 0.006, 1.0, 30, 30), ((1, 2), 0.05, 1.0, 50, 50))
    anew = parts(((0, 1), 0.001, 1.0, 900, 1000), ((2, 1), 0.001, 1.0, 1, 1000))
    found = _pair(["A", "B", "C"], 0, 1, cloud, mesh, anew, VOLUME)
    assert (found.a, found.b, found.cloud_p50_mm, found.cloud_p95_mm) == pytest.approx(("A", "B", 3.0, 3.0))
    assert (found.mesh_p50_mm, found.mesh_p95_mm) == pytest.approx((6.0, 6.0))
    assert found.met == pytest.approx(699 / 2000) and found.could_meet == 0.9
    assert list(found.regions) == ["near", "middle"], "99 points are too few for far"
    assert found.regions["near"] == pytest.approx((1.0, 1.0, 200)) and found.regions["middle"] == pytest.approx(
        (3, 3, 400)
    )


def test_a_pass_needs_every_camera_to_be_found_and_found_well() -> None:
    sound, unsure, untied = (
        camera("B", 0.0),
        camera("C", 0.0, sigma_mm=3.1),
        camera("C", 0.0, moments=FEWEST_MOMENTS - 1),
    )
    assert _verdict([], [sound, sound]) == "pass"
    assert _verdict([], [sound, unsure]) == _verdict([], [sound, untied]) == "unverified"
    assert _verdict(["moved"], [sound, untied]) == "fail"


def a_check() -> Check:
    moved = camera("B", 0.0, 1.5, 60, -0.006)._replace(moved=Difference(0.25, 9.0, 5.0))
    cameras = camera("A", 0.0), moved, camera("C", 50.0, moments=3)
    regions = {"near": (1.0, 2.0, 300), "far": (3.0, 4.0, 200)}
    pairs = (
        PairCheck("A", "B", 1.1, 5.2, 2.3, 6.4, 0.4, 0.5, regions),
        PairCheck("A", "C", *(float("nan"),) * 4, 0.01, 0.02, {}),
    )
    halves = Halves(
        (Difference(0, 0, 0), Difference(0.2, 1.0, 0.9), Difference(0.1, 1.0, 1.2)),
        distances([], np.zeros((0, 4, 4)), np.zeros(0), np.zeros(0)),
    )
    return Check("fail", ("because",), ("by the way",), cameras, pairs, halves, 77)


def test_a_program_is_told_millimetres_in_the_volume_and_nothing_of_what_is_not_known() -> None:
    told = json.loads(json.dumps(as_json(a_check()), allow_nan=False))
    assert (told["verdict"], told["reasons"], told["notes"], told["moments"]) == (
        "fail",
        ["because"],
        ["by the way"],
        77,
    )
    assert (told["split_half_deg"], told["split_half_mm"]) == (0.2, 1.2)
    assert told["cameras"][1] == {
        "serial": "B", "moved_mm": 5.0, "moved_deg": 0.25, "sigma_mm": 1.5, "clock_change_s": -0.006, "moments": 60,
    }  # fmt: skip
    assert told["cameras"][2] == {
        "serial": "C", "moved_mm": None, "moved_deg": None, "sigma_mm": None, "clock_change_s": None, "moments": 3,
    }  # fmt: skip
    assert told["cameras"][0]["moved_mm"] == 0
    assert told["pairs"][0] == {
        "a": "A", "b": "B", "cloud_p50_mm": 1.1, "cloud_p95_mm": 5.2, "mesh_p50_mm": 2.3, "mesh_p95_mm": 6.4,
        "met": 0.4, "could_meet": 0.5,
        "regions": {"near": {"p50_mm": 1.0, "p95_mm": 2.0, "n": 300}, "far": {"p50_mm": 3.0, "p95_mm": 4.0, "n": 200}},
    }  # fmt: skip
    assert told["pairs"][1]["cloud_p50_mm"] is None


def test_a_person_is_told_each_number_under_its_heading() -> None:
    lines = report(a_check())
    heads = {name: lines[0].index(name) for name in ("cloud", "mesh", "near", "middle", "far")}
    cells = {"cloud": "1.1 / 5.2", "mesh": "2.3 / 6.4", "near": "1.0 / 2.0", "middle": "-", "far": "3.0 / 4.0"}
    assert lines[1].startswith("A - B ") and {name: lines[1][at:].split("  ")[0] for name, at in heads.items()} == cells
    assert lines[2].split() == ["A", "-", "C", "-", "-", "-", "-", "-"]
    assert lines[3:] == [
        "B: found 5.0 mm, 0.25 deg from the rig's place (sigma 1.5 mm), clock -6.0 ms",
        "C: not found by depth",
        "halves of these frames differ by 0.20 deg, 1.2 mm; 77 moments",
        "note: by the way",
        "wrong: because",
        "verdict: fail",
    ]


def test_cameras_are_checked_in_the_rigs_order_through_the_rigs_lens() -> None:
    rig, rng = a_rig(), np.random.default_rng(0)
    sights = []
    for c in rig.cameras:
        joints, points, mesh = (rng.normal(size=size) + [0, 0, 5] for size in ((2, 21, 3), (9, 3), (7, 3)))
        sights.append(Sight(c.serial, "depth", c.intrinsics, np.arange(2.0), joints, (Cloud(0.0, points, mesh),)))
    own = rig.cameras[1].intrinsics
    refined = replace(rig.cameras[1], intrinsics=replace(own, cx=own.cx + 3), own_intrinsics=own)
    seen = in_order(replace(rig, cameras=(rig.cameras[0], refined, rig.cameras[2])), sights[::-1])
    assert [sight.serial for sight in seen] == ["cam0", "cam1", "cam2"]
    before, after = sights[1], seen[1]
    assert seen[0] is sights[0] and after.intrinsics == refined.intrinsics
    pairs = [(after.joints_m, before.joints_m)]
    for a, b in zip(after.clouds, before.clouds, strict=True):
        assert a.mesh_m is not None and b.mesh_m is not None
        pairs += [(a.points_m, b.points_m), (a.mesh_m, b.mesh_m)]
    assert len(pairs) > 2
    changed = replace(sights[2], intrinsics=replace(own, fx=own.fx * 1.01))
    with pytest.raises(RigError, match="camera cam2 has other intrinsics now"):
        in_order(rig, [*sights[:2], changed])
    for a, b in pairs:
        np.testing.assert_allclose(a, b - [3 / own.fx, 0, 0] * b[..., 2:], atol=1e-6)


@pytest.mark.slow
def test_bent_depth_that_the_rig_knows_and_a_clock_that_was_set_anew_are_no_reason_to_fail() -> None:
    clip, bend = clip_of(), 0.02  # 1 / m: 8 mm at 0.65 m
    sights = sights_of(clip, 3)[:2]
    clouds = tuple(c._replace(points_m=c.points_m / (1 - bend * c.points_m[:, 2:])) for c in sights[1].clouds)
    cameras = tuple(
        RigCamera(name, "depth", clip.intrinsics[c], clip.T_ref_cam[c] if c else np.eye(4), np.zeros((6, 6)))
        for c, name in enumerate(clip.names[:2])
    )
    rig = Rig("pair", "", "test", cameras, (), Quality("truth"))
    late = replace(cameras[1], time=TimeOffset(clip.offsets_s[1] + 0.03), depth=DepthCorrection(1.0, bend))
    found = verify(replace(rig, cameras=(cameras[0], late)), [sights[0], replace(sights[1], clouds=clouds)], moments=24)
    assert found.verdict == "pass" and found.pairs[0].cloud_p50_mm < 2 and found.pairs[0].met > 0.3, found
    assert "cam1: its clock is off by -30" in found.notes[-1]
    assert 0 < found.pairs[0].mesh_p50_mm < 5 and found.pairs[0].mesh_p50_mm != found.pairs[0].cloud_p50_mm
    wrong = replace(cameras[1], depth=DepthCorrection(1.0, -bend))
    assert verify(replace(rig, cameras=(cameras[0], wrong)), sights, moments=24).verdict == "fail"
