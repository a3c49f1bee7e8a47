"""The rig file: what is written is read back, and what does not fit is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_hand.calibration.rig import (
    DepthCorrection,
    Quality,
    Rig,
    RigCamera,
    RigError,
    RigPair,
    TimeOffset,
    intrinsics_hash,
    load_rig,
    save_rig,
)
from edge_hand.calibration.uncertainty import (
    Volume,
    inverted_covariance,
    point_sigma_mm,
    pose_difference,
    volume_sigma_mm,
)
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.se3 import apply, inverse, so3_exp, transform

LENS = Intrinsics(848, 480, 421.3, 421.7, 423.1, 240.7, (0.01, -0.02, 0.001, 0.0, 0.0))


def new_rig() -> Rig:
    T = transform(so3_exp(np.array([0.1, -0.9, 0.05])), np.array([0.5, 0.02, 0.23]))
    covariance = np.diag([1e-6] * 3 + [4e-7] * 3)
    cameras = (
        RigCamera("838212070123", "depth", LENS, np.eye(4), np.zeros((6, 6))),
        RigCamera(
            "838212070456", "depth", LENS, T, covariance, TimeOffset(-0.0061, 0.001),
            DepthCorrection(1.0, 0.002, 0.0004),
        ),
    )  # fmt: skip
    pairs = (RigPair("838212070123", "838212070456", 40, 0.04, None),)
    quality = Quality("board", {"reprojection_px": 0.2}, sigma_volume_mm={"838212070456": 0.3}, verdict="pass")
    return Rig("bench", "2026-01-02T03:04:05Z", "edge-hand 0.1.0", cameras, pairs, quality)


def test_a_rig_is_read_as_it_was_written(tmp_path: Path) -> None:
    rig = new_rig()
    save_rig(rig, tmp_path / "rig.json")
    read = load_rig(tmp_path / "rig.json")
    assert (read.name, read.pairs, read.quality) == (rig.name, rig.pairs, rig.quality)
    for a, b in zip(read.cameras, rig.cameras, strict=True):
        assert (a.serial, a.stream, a.intrinsics, a.time, a.depth) == (
            b.serial,
            b.stream,
            b.intrinsics,
            b.time,
            b.depth,
        )
        assert np.array_equal(a.T_ref_cam, b.T_ref_cam) and np.array_equal(a.covariance, b.covariance)
    assert [path.name for path in tmp_path.iterdir()] == ["rig.json"]


def refined_rig() -> Rig:
    rig = new_rig()
    better = replace(LENS, fx=LENS.fx * 1.003, cx=LENS.cx - 3, cy=LENS.cy + 2)
    return replace(rig, cameras=(rig.cameras[0], replace(rig.cameras[1], intrinsics=better, own_intrinsics=LENS)))


def test_a_camera_of_refined_intrinsics_is_known_by_its_own_and_sees_through_the_refined(tmp_path: Path) -> None:
    save_rig(refined_rig(), tmp_path / "rig.json")
    rig = load_rig(tmp_path / "rig.json")
    assert "own_intrinsics" not in json.loads((tmp_path / "rig.json").read_text())["cameras"][0]
    camera = rig.check("838212070456", LENS)
    assert camera.own_intrinsics == LENS and camera.intrinsics == refined_rig().cameras[1].intrinsics
    with pytest.raises(RigError, match="other intrinsics now"):
        rig.check("838212070456", camera.intrinsics)
    points = np.random.default_rng(0).uniform((-0.2, -0.2, 0.4), (0.2, 0.2, 0.9), (50, 3))
    seen = camera.refined(points)
    assert np.abs(camera.intrinsics.project(seen) - LENS.project(points)).max() < 1e-6
    assert np.array_equal(seen[:, 2], points[:, 2]) and np.abs(seen - points).max() > 0.003
    assert rig.cameras[0].refined(points) is points


def test_intrinsics_of_its_own_that_cannot_be_the_cameras_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rig.json"
    for change, words in (
        ({"fx": 430.0}, "the own_intrinsics do not fit their hash"),
        ({"fx": "x"}, "own_intrinsics: not 6 numbers"),
        (
            asdict(Intrinsics(640, 480, 400, 400, 320, 240)) | {"hash": None},
            "are of 640x480 px, intrinsics of another size",
        ),
    ):
        save_rig(refined_rig(), path)
        data = json.loads(path.read_text())
        lens = data["cameras"][1]["own_intrinsics"]
        lens.update(change)
        if lens["hash"] is None:
            lens["hash"] = intrinsics_hash(Intrinsics(640, 480, 400, 400, 320, 240))
        path.write_text(json.dumps(data))
        with pytest.raises(RigError, match=words):
            load_rig(path)


BREAKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another format": (lambda d: d.update(format="x"), "not a rig file"),
    "a later version": (lambda d: d.update(version=2), "rig version 2; this edge-hand reads version 1"),
    "an unknown entry": (lambda d: d["cameras"][1].update(colour=1), "unknown entries colour"),
    "an unknown entry at the top": (lambda d: d.update(author=1), "unknown entries author"),
    "a missing entry": (lambda d: d["cameras"][1].pop("time"), "entries missing: time"),
    "a mirror": (lambda d: d["cameras"][1]["T_ref_cam"][0].__setitem__(slice(0, 3), [2, 0, 0]), "not a rotation"),
    "a bottom row": (lambda d: d["cameras"][1]["T_ref_cam"][3].__setitem__(0, 1), "not a rotation"),
    "a number that is none": (lambda d: d["cameras"][1]["time"].update(offset_s=float("nan")), "not a finite float"),
    "an infinite matrix": (
        lambda d: d["cameras"][1]["covariance"][0].__setitem__(0, float("inf")),
        "6x6 finite numbers",
    ),
    "a negative covariance": (
        lambda d: d["cameras"][1]["covariance"][0].__setitem__(0, -1.0),
        "symmetric and positive",
    ),
    "edited intrinsics": (lambda d: d["cameras"][1]["intrinsics"].update(fx=430.0), "do not fit their hash"),
    "a text for a number": (lambda d: d["cameras"][1]["intrinsics"].update(fx="430"), "do not fit|cannot|finite|not"),
    "a serial twice": (lambda d: d["cameras"][1].update(serial="838212070123"), "appears twice"),
    "a reference that moved": (lambda d: d["cameras"].reverse(), "the first camera is the reference"),
    "a foreign pair": (lambda d: d["pairs"][0].update(b="x"), "does not have"),
    "an unknown verdict": (lambda d: d["quality"].update(verdict="fine"), "possible are pass, fail, unverified"),
    "no cameras": (lambda d: d.update(cameras=[]), "at least one"),
    "a drift": (
        lambda d: d["cameras"][1]["time"].update(drift_ppm=3.1),
        r"\(838212070456\): drift_ppm 3.1 is not applied, only 0 is possible: let NTP or PTP hold",
    ),
    "a mad depth scale": (lambda d: d["cameras"][1]["depth"].update(scale=0.0), "not plausible"),
    "a mad depth offset": (
        lambda d: d["cameras"][1]["depth"].update(offset_per_m=-2.0),
        r"\(838212070456\): offset_per_m -2 is not plausible, at most 0.1 is possible",
    ),
    "a negative sigma of the depth": (
        lambda d: d["cameras"][1]["depth"].update(offset_sigma_per_m=-0.1),
        "offset_sigma_per_m: -0.1 is negative",
    ),
    "a negative sigma of the clock": (
        lambda d: d["cameras"][1]["time"].update(sigma_s=-1),
        r"\(838212070456\): time: sigma_s: -1 is negative",
    ),
    "a clock of another universe": (lambda d: d["cameras"][1]["time"].update(offset_s=1e200), "offset_s 1e.200 is not"),
    "a reference with a clock of its own": (
        lambda d: d["cameras"][0]["time"].update(offset_s=0.1),
        "its offset_s must be 0",
    ),
    "a volume without size": (lambda d: d["quality"].update(volume_edge_m=0), "quality: volume_edge_m 0 is no length"),
    "a volume turned inside out": (lambda d: d["quality"].update(volume_edge_m=-1), "volume_edge_m -1 is no length"),
    "a negative sigma in the volume": (
        lambda d: d["quality"]["sigma_volume_mm"].update({"838212070456": -0.3}),
        "quality: sigma_volume_mm: -0.3 is negative",
    ),
    "a negative overlap": (lambda d: d["pairs"][0].update(overlap=-1), "pair 0: overlap: -1 is negative"),
    "an overlap beyond any float": (lambda d: d["pairs"][0].update(overlap=-(10**400)), r"overlap: -1e.300 is neg"),
    "a name that a terminal would obey": (lambda d: d.update(name="\x1b[2J"), r"name: '\\x1b\[2J' is not printable"),
    "a warning of two lines": (lambda d: d["quality"].update(warnings=["a\nb"]), r"warnings: 'a\\nb' is not printable"),
    "a version that is none": (lambda d: d.update(version=True), "rig version True; this edge-hand reads version 1"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_does_not_fit_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / "rig.json"
    save_rig(new_rig(), path)
    data = json.loads(path.read_text())
    change, words = BREAKS[what]
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(RigError, match=words) as caught:
        load_rig(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", pytest.param("[" * 100_000, id="deep"), "null"])
def test_a_file_that_is_no_rig_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "rig.json").write_text(text)
    with pytest.raises(RigError, match=r"not JSON|not a rig file"):
        load_rig(tmp_path / "rig.json")
    with pytest.raises(RigError, match="no such file"):
        load_rig(tmp_path / "none.json")


def test_a_rig_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    rig = new_rig()
    bad = replace(rig.cameras[1], T_ref_cam=np.diag([1.0, 1, -1, 1]))
    save_rig(rig, tmp_path / "rig.json")
    before = (tmp_path / "rig.json").read_bytes()
    with pytest.raises(RigError, match="not a rotation"):
        save_rig(replace(rig, cameras=(rig.cameras[0], bad)), tmp_path / "rig.json")
    assert (tmp_path / "rig.json").read_bytes() == before


def test_a_camera_must_be_the_one_that_was_calibrated() -> None:
    rig = new_rig()
    assert rig.check("838212070456", LENS) is rig.cameras[1]
    with pytest.raises(RigError, match="no camera 1; it has 838212070123"):
        rig.camera("1", 848, 480)
    with pytest.raises(RigError, match="at 848x480, it runs at 1280x720"):
        rig.camera("838212070456", 1280, 720)
    with pytest.raises(RigError, match="other intrinsics now"):
        rig.check("838212070456", replace(LENS, fx=422.0))


def test_depth_is_corrected_in_the_inverse_and_holes_stay_holes() -> None:
    corrected = DepthCorrection(1.01, 0.02).apply(np.array([0.0, 0.5, 2.0]))
    assert np.allclose(corrected, [0, 1 / (1.01 / 0.5 + 0.02), 1 / (1.01 / 2 + 0.02)])
    assert DepthCorrection(1.0, -0.1).apply(np.array([0.0, 5.0, 10.0, 20.0])) == pytest.approx([0, 10, 0, 0])


def test_the_uncertainty_in_the_volume_is_that_of_drawn_cameras() -> None:
    rng = np.random.default_rng(0)
    T = inverse(new_rig().cameras[1].T_ref_cam)
    root = rng.normal(size=(6, 6)) * 3e-4
    points = rng.uniform(-0.2, 0.2, (20, 3)) + [0, 0, 0.65]
    squares = np.zeros(20)
    for _ in range(4000):
        d = root @ rng.normal(size=6)
        moved = transform(so3_exp(d[:3]), d[3:]) @ T
        squares += ((apply(inverse(moved), apply(T, points)) - points) ** 2).sum(1)
    covariance = inverted_covariance(T, root @ root.T)
    assert np.allclose(point_sigma_mm(covariance, points), 1e3 * np.sqrt(squares / 4000), rtol=0.06)
    assert volume_sigma_mm(covariance) == pytest.approx(float(np.sqrt((squares / 4000).mean()) * 1e3), rel=0.15)


def test_a_point_that_a_turn_leaves_in_place_is_certain_and_no_nan() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        points, turn = rng.normal(size=(5, 3)), rng.normal(size=3)
        d = np.r_[turn, -np.cross(turn, points[0])]  # about points[0]
        sigma = point_sigma_mm(np.outer(d, d), points)
        assert sigma[0] < 1e-4 and np.isfinite(sigma).all() and sigma[1:].min() > 1


def test_how_far_apart_two_poses_are_is_told_in_the_volume_of_the_reference() -> None:
    volume, at = Volume((0.1, -0.05, 0.7), 0.4), np.array([0.1, -0.05, 0.7])
    points = volume.points_m()
    np.testing.assert_allclose([points.mean(0), np.ptp(points, axis=0)], [at, [0.4] * 3])
    b = transform(so3_exp(np.array([0.3, 0.9, -0.2])), np.array([0.6, 0.1, 0.2]))
    beside = transform(np.eye(3), np.array([0.003, 0.0, 0.004])) @ b
    np.testing.assert_allclose(pose_difference(beside, b, volume), (0.0, 5.0, 5.0), atol=1e-9)
    turn = so3_exp(np.array([0.0, 0.0, 0.01]))
    turned = transform(turn, at - turn @ at) @ b  # about the middle of the volume
    arm = np.hypot(*(b[:2, 3] - at[:2]))
    np.testing.assert_allclose(pose_difference(turned, b, volume), (np.degrees(0.01), 10 * arm, 2.0), rtol=1e-4)
