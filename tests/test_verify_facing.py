"""Verifying a rig whose cameras share little skin: what is not said is no failure."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from edge_hand.calibration.icp import FEWEST_MOMENTS
from edge_hand.calibration.observe import Sight
from edge_hand.calibration.rig import Quality, Rig, RigCamera
from edge_hand.calibration.uncertainty import Difference
from edge_hand.calibration.verify import CameraCheck, PairCheck, _notes, _reasons, as_json, verify
from edge_hand.calibration.verify import report as verify_report
from edge_hand.hand.se3 import transform
from test_calibrate_hand import clip_of, sights_of


@cache
def wide() -> tuple[Rig, list[Sight]]:
    """A rig as it is, whose second and third camera look from 140 degrees apart; four seconds of a hand."""
    clip = clip_of(4, spacing_deg=70.0, seconds=4.0)
    cameras = tuple(
        RigCamera(name, "depth", clip.intrinsics[c], clip.T_ref_cam[c] if c else np.eye(4), np.zeros((6, 6)))
        for c, name in enumerate(clip.names)
    )
    return Rig("wide", "", "test", cameras, (), Quality("truth")), sights_of(clip, 3)


@pytest.mark.slow
def test_cameras_that_face_each_other_need_no_common_skin() -> None:
    found = verify(*wide(), moments=28)
    facing = found.pairs[2]
    assert facing.met < 0.05 and facing.could_meet < 0.05
    assert found.verdict == "pass", (found.reasons, found.notes)
    assert "cam1 and cam2 hardly see the same skin from where they are: not compared" in found.notes


@pytest.mark.slow
def test_under_a_wrong_rig_cameras_that_could_meet_must() -> None:
    rig, sights = wide()
    away = transform(np.eye(3), np.array([0, 0, 0.06]))
    wrong = replace(rig.cameras[1], T_ref_cam=away @ rig.cameras[1].T_ref_cam)
    found = verify(replace(rig, cameras=(rig.cameras[0], wrong, rig.cameras[2])), sights, moments=28)
    assert found.verdict == "fail" and found.reasons[0].startswith("cam1 is 6")
    assert "under the rig cam0 and cam1 nowhere see the same skin" in found.reasons
    assert not any("cam1 and cam2" in reason for reason in found.reasons)


@pytest.mark.slow
def test_a_camera_whose_depth_shares_no_moment_is_unverified() -> None:
    rig, sights = wide()
    small = tuple(cloud._replace(points_m=cloud.points_m[:55]) for cloud in sights[2].clouds)
    found = verify(rig, [*sights[:2], replace(sights[2], clouds=small)], moments=28)
    assert (found.verdict, found.reasons, found.cameras[2].moments) == ("unverified", (), 0)
    assert any(
        note.startswith("cam2: these frames do not say where it is, for depth ties it to the others in 0 moments only")
        for note in found.notes
    )
    assert "cam2: not found by depth" in verify_report(found)
    told = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert told["cameras"][2]["moved_mm"] is None and told["pairs"][2]["met"] is None


def test_frames_whose_depth_points_never_meet_do_not_say_and_are_no_error() -> None:
    rig, sights = wide()
    apart = [sights[0], *(replace(sight, clouds=()) for sight in sights[1:])]
    found = verify(rig, apart, moments=28)
    assert (found.verdict, found.reasons, found.pairs, found.halves) == ("unverified", (), (), None)
    assert found.notes[-1] == "the cameras share only 0 moments with enough of the hand's depth points"
    told = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert told["split_half_mm"] is None and told["cameras"][1]["moved_mm"] is None
    assert "cam1: not found by depth" in verify_report(found) and verify_report(found)[-1] == "verdict: unverified"
    moved = tuple(replace(c, T_ref_cam=transform(np.eye(3), np.array([0.1, 0, 0])) @ c.T_ref_cam) for c in rig.cameras)
    lost = verify(replace(rig, cameras=(rig.cameras[0], *moved[1:])), apart)
    assert lost.verdict == "fail" and lost.reasons[0].startswith("the rig is not that of these cameras")


def camera(
    serial: str, moved_mm: float, sigma_mm: float = 0.5, moments: int = 100, clock_s: float = 0.0
) -> CameraCheck:
    return CameraCheck(serial, Difference(0.1, moved_mm, moved_mm), sigma_mm, clock_s, moments)


def pair(p50_mm: float = 1.0, p95_mm: float = 4.0, met: float = 0.5, could_meet: float = 0.5) -> PairCheck:
    return PairCheck("A", "B", p50_mm, p95_mm, p50_mm, p95_mm, met, could_meet, {})


def test_a_camera_moved_if_it_is_farther_off_than_the_limit_and_than_the_frames_can_be_wrong() -> None:
    still = camera("A", 0.0)
    for moved in (camera("B", 2.9), camera("B", 5.0, sigma_mm=2.1), camera("B", 50.0, moments=FEWEST_MOMENTS - 1)):
        assert _reasons([still, moved], [pair()], False) == []
    one, other = _reasons([still, camera("B", 5.0, sigma_mm=1.9)], [pair()], False)
    assert one == "A or B moved" and other.startswith("B is 5.0 mm, 0.10 deg from where the rig has it (sigma 1.9 mm")
    three = _reasons([still, camera("B", 9.0), camera("C", 8.0)], [], False)
    assert three[0].startswith("all cameras moved against A: ") and [line[:2] for line in three[1:]] == ["B ", "C "]
    assert [line[:5] for line in _reasons([still, camera("B", 9.0), camera("C", 1.0)], [], False)] == ["B is "]
    assert _reasons([still], [], True)[0].startswith("the rig is not that of these cameras")


def test_points_too_far_apart_or_nowhere_together_are_a_reason_and_a_clock_is_a_note() -> None:
    assert _reasons([], [pair(p50_mm=2.6)], False)[0].startswith("A and B: points are 2.6 mm apart, ")
    assert _reasons([], [pair(p95_mm=8.1)], False)[0].endswith("95 of 100 within 8.1 (limits 2.5, 8)")
    apart = pair(9.0, 9.0, met=0.04)
    assert _reasons([], [apart], False) == ["under the rig A and B nowhere see the same skin"]
    facing = apart._replace(could_meet=0.04)
    assert _reasons([], [facing], False) == [] and len(_notes([], [facing])) == 1 and _notes([], [apart, pair()]) == []
    notes = _notes([camera("B", 0.0, clock_s=-0.006), camera("C", 0.0, sigma_mm=3.5), camera("D", 0.0)], [])
    assert [note[:30] for note in notes] == ["B: its clock is off by -6.0 ms", "C: these frames say where it i"]
    assert notes[1].endswith("is to 3.5 mm only")
