"""A rig in other tools' formats: each file, read back by its own convention, maps a point as the rig does."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edge_hand.calibration.convert import FORMATS, export_rig, ros_frame
from edge_hand.calibration.rig import Rig, RigError
from edge_hand.hand.arrays import Array
from edge_hand.hand.se3 import apply, inverse, so3_exp, transform
from test_rig import new_rig

POINT = np.array([[0.05, -0.02, 0.6]])  # in the last camera


def three() -> Rig:
    rig = new_rig()
    third = transform(so3_exp(np.array([2.9, 0.3, -0.4])), np.array([-0.4, 0.1, 1.2]))
    lens = replace(rig.cameras[1].intrinsics, fx=500.0, distortion=(0.1, -0.2, 0.001, 0.002, 0.0))
    last = replace(rig.cameras[1], serial="838212070789", T_ref_cam=third, intrinsics=lens)
    return replace(rig, cameras=(*rig.cameras, last))


def rotated(wxyz: Array, points: Array) -> Array:
    """By a unit quaternion, in the textbook's formula and not in the package's."""
    w, v = wxyz[0], wxyz[1:]
    return points + 2 * np.cross(v, np.cross(v, points) + w * points)


def expected() -> Array:
    return apply(three().cameras[2].T_ref_cam, POINT)


def test_ros_static_transforms_map_a_point_alike(tmp_path: Path) -> None:
    (path,) = export_rig(three(), "ros", tmp_path)
    nodes = re.findall(r'args: "(.*)"', path.read_text())
    assert len(nodes) == 2
    words = shlex.split(nodes[1])
    args = dict(zip(words[::2], words[1::2], strict=True))
    frames = [ros_frame(camera) for camera in three().cameras]
    assert (args["--frame-id"], args["--child-frame-id"]) == (frames[0], frames[2])
    assert frames[2] == "cam_838212070789_depth_optical_frame"
    q = np.array([float(args[f"--q{axis}"]) for axis in "wxyz"])
    t = np.array([float(args[f"--{axis}"]) for axis in "xyz"])
    assert np.allclose(rotated(q, POINT) + t, expected(), atol=1e-9)


def test_kalibr_chain_maps_a_point_alike(tmp_path: Path) -> None:
    (path,) = export_rig(three(), "kalibr", tmp_path)
    blocks = re.split(r"^cam\d:$", path.read_text(), flags=re.MULTILINE)[1:]
    point = expected()
    for block in blocks[1:]:
        rows = [json.loads(row) for row in re.findall(r"^  - (\[.*\])$", block, re.MULTILINE)]
        point = apply(np.array(rows), point)
    assert np.allclose(point, POINT, atol=1e-9)
    lens = three().cameras[2].intrinsics
    numbers = {k: json.loads(v) for k, v in re.findall(r"^  (\w+): (\[.*\])$", blocks[2], re.MULTILINE)}
    assert numbers["intrinsics"] == [lens.fx, lens.fy, lens.cx, lens.cy]
    assert numbers["distortion_coeffs"] == list(lens.distortion[:4]) and numbers["resolution"] == [848, 480]


def test_kalibr_refuses_a_lens_it_does_not_have(tmp_path: Path) -> None:
    rig = three()
    lens = replace(rig.cameras[0].intrinsics, distortion=(0.1, 0.0, 0.0, 0.0, 0.3))
    with pytest.raises(RigError, match=r"no k3, camera 838212070123 has 0.3"):
        export_rig(
            replace(rig, cameras=(replace(rig.cameras[0], intrinsics=lens), *rig.cameras[1:])), "kalibr", tmp_path
        )


def test_opencv_yaml_maps_a_point_alike(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV reads its own YAML; pip install '.[calibration]'")
    (path,) = export_rig(three(), "opencv", tmp_path)
    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
    R, t, K, D = (file.getNode(f"{name}_2").mat() for name in "RTKD")
    assert np.allclose(expected() @ R.T + t.T, POINT, atol=1e-9)
    assert file.getNode("serial_2").string() == "838212070789" and int(file.getNode("cameras").real()) == 3
    turn = cv2.Rodrigues(R)[0]
    pixels = cv2.projectPoints(expected(), turn, t, K, D)[0].reshape(-1, 2)
    assert np.allclose(pixels, three().cameras[2].intrinsics.project(POINT), atol=1e-6)


def test_colmap_text_maps_a_point_alike(tmp_path: Path) -> None:
    export_rig(three(), "colmap", tmp_path)
    lines = [line for line in (tmp_path / "images.txt").read_text().splitlines() if line[:1] == "3"]
    words = lines[0].split()
    pose = np.array(words[1:8], float)
    assert np.allclose(rotated(pose[:4], expected()) + pose[4:], POINT, atol=1e-9)
    assert words[8:] == ["3", "cam_838212070789.png"]
    camera = (tmp_path / "cameras.txt").read_text().splitlines()[3].split()
    lens = three().cameras[2].intrinsics
    assert camera[:4] == ["3", "FULL_OPENCV", "848", "480"]
    assert [float(n) for n in camera[4:8]] == [lens.fx, lens.fy, lens.cx + 0.5, lens.cy + 0.5]
    assert (tmp_path / "points3D.txt").exists()


def test_cameras_whose_serials_differ_in_what_ros_does_not_take_are_told_apart(tmp_path: Path) -> None:
    serials = ("left.1", "left-1", 'left"1', "ri\\ght")
    cameras = (*three().cameras, three().cameras[2])
    rig = replace(three(), cameras=tuple(replace(c, serial=s) for c, s in zip(cameras, serials, strict=True)), pairs=())
    text = {kind: export_rig(rig, kind, tmp_path)[-1] for kind in ("ros", "kalibr", "opencv")}
    export_rig(rig, "colmap", tmp_path)
    frames = re.findall(r"child-frame-id (\S+)_depth_optical_frame", text["ros"].read_text())
    assert frames == ["left_1_1", "left_1_2", "ri_ght_3"] and text["ros"].read_text().count("--frame-id left_1_0_") == 3
    pictures = re.findall(r"(\S+).png", (tmp_path / "images.txt").read_text())
    topics = re.findall(r"rostopic: /(\w+)/", text["kalibr"].read_text())
    assert len(set(pictures)) == len(set(topics)) == 4
    cv2 = pytest.importorskip("cv2", reason="OpenCV reads its own YAML; pip install '.[calibration]'")
    file = cv2.FileStorage(str(text["opencv"]), cv2.FILE_STORAGE_READ)
    assert [file.getNode(f"serial_{i}").string() for i in range(4)] == list(serials)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RigError, match="possible are ros, kalibr, opencv, colmap"):
        export_rig(three(), "tf", tmp_path)
    assert set(FORMATS) == {"ros", "kalibr", "opencv", "colmap"}


def test_the_quaternion_holds_at_half_a_turn() -> None:
    from edge_hand.calibration.convert import quaternion

    for axis in np.eye(3):
        T = transform(so3_exp(axis * np.pi), np.zeros(3))
        assert np.allclose(rotated(quaternion(T), POINT), apply(T, POINT))
        assert np.allclose(rotated(quaternion(inverse(T)), POINT), apply(inverse(T), POINT))
