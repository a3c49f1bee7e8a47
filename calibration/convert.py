"""A rig in the formats of others: ROS static transforms, kalibr's camchain, OpenCV's YAML, COLMAP's text.

| format | maps | rotation |
|---|---|---|
| ROS static transform | child to parent, our T_ref_cam | quaternion x y z w |
| kalibr `T_cn_cnm1` | camera n - 1 to camera n | 4x4 |
| OpenCV `R`, `T` | reference to camera | 3x3 |
| COLMAP `images.txt` | world, our reference, to camera | quaternion w x y z |

None of them has room for the covariance; time offsets go to kalibr alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..hand.arrays import Array
from ..hand.se3 import inverse, so3_log
from ..hand.whole import refusal, write_whole
from .rig import Rig, RigCamera, RigError


def ros_launch(rig: Rig) -> dict[str, str]:
    """A ROS 2 launch file in YAML, one static_transform_publisher a camera."""
    lines, rig = ["launch:"], _told_apart(rig)
    for camera in rig.cameras[1:]:
        x, y, z = camera.T_ref_cam[:3, 3]
        qw, qx, qy, qz = quaternion(camera.T_ref_cam)
        values = {"x": x, "y": y, "z": z, "qx": qx, "qy": qy, "qz": qz, "qw": qw}
        numbers = " ".join(f"--{name} {_number(value)}" for name, value in values.items())
        frames = f"--frame-id {ros_frame(rig.cameras[0])} --child-frame-id {ros_frame(camera)}"
        lines += [
            "- node:",
            "    pkg: tf2_ros",
            "    exec: static_transform_publisher",
            f"    name: {_ros_name(rig.name + '_' + camera.serial)}",
            f'    args: "{numbers} {frames}"',
        ]
    return {"rig.launch.yaml": "\n".join(lines) + "\n"}


def ros_frame(camera: RigCamera) -> str:
    """The camera's frame, as REP 103 names optical ones."""
    return f"{_ros_name(camera.serial)}_{_ros_name(camera.stream)}_optical_frame"


def kalibr(rig: Rig) -> dict[str, str]:
    """camchain.yaml. Raises RigError for a lens with k3, which kalibr's radtan does not have."""
    lines: list[str] = []
    for i, camera in enumerate(_told_apart(rig).cameras):
        k = camera.intrinsics
        if k.distortion[4] != 0:
            raise RigError(f"kalibr: its radtan model has no k3, camera {camera.serial} has {k.distortion[4]:g}")
        lines += [
            f"cam{i}:",
            "  camera_model: pinhole",
            f"  intrinsics: {_row([k.fx, k.fy, k.cx, k.cy])}",
            "  distortion_model: radtan",
            f"  distortion_coeffs: {_row(k.distortion[:4])}",
            f"  resolution: [{k.width}, {k.height}]",
            f"  rostopic: /{_ros_name(camera.serial)}/{_ros_name(camera.stream)}",
        ]
        if i:
            T = inverse(camera.T_ref_cam) @ rig.cameras[i - 1].T_ref_cam
            lines += ["  T_cn_cnm1:", *(f"  - {_row(row)}" for row in T)]
            lines.append(f"  # time offset to cam0: {camera.time.offset_s:.6f} s, t_cam0 = t_cam{i} + offset")
    return {"camchain.yaml": "\n".join(lines) + "\n"}


def opencv(rig: Rig) -> dict[str, str]:
    """rig.opencv.yaml for cv2.FileStorage: names, and of camera i K_i, D_i, size_i, and R_i, T_i from the reference."""
    lines = ["%YAML:1.0", "---", f"cameras: {len(rig.cameras)}"]
    for i, camera in enumerate(rig.cameras):
        k = camera.intrinsics
        T = inverse(camera.T_ref_cam)
        lines += [
            f"serial_{i}: {json.dumps(camera.serial, ensure_ascii=False)}",
            f"size_{i}: [ {k.width}, {k.height} ]",
        ]
        lines += _matrix(f"K_{i}", np.array([[k.fx, 0, k.cx], [0, k.fy, k.cy], [0, 0, 1]]))
        lines += _matrix(f"D_{i}", np.array([k.distortion]))
        lines += _matrix(f"R_{i}", T[:3, :3]) + _matrix(f"T_{i}", T[:3, 3:])
    return {"rig.opencv.yaml": "\n".join(lines) + "\n"}


def colmap(rig: Rig) -> dict[str, str]:
    """cameras.txt, images.txt and an empty points3D.txt. COLMAP's pixel centres lie at a half, so cx, cy gain one.

    Its FULL_OPENCV camera has our five coefficients.
    """
    cameras, images = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"], ["# IMAGE_ID, QW..QZ, TX..TZ, CAMERA_ID, NAME"]
    for i, camera in enumerate(_told_apart(rig).cameras, 1):
        k = camera.intrinsics
        k1, k2, p1, p2, k3 = k.distortion
        numbers = (k.fx, k.fy, k.cx + 0.5, k.cy + 0.5, k1, k2, p1, p2, k3, 0, 0, 0)
        cameras.append(f"{i} FULL_OPENCV {k.width} {k.height} {' '.join(map(_number, numbers))}")
        T = inverse(camera.T_ref_cam)
        pose = (*quaternion(T), *T[:3, 3])
        images += [f"{i} {' '.join(map(_number, pose))} {i} {_ros_name(camera.serial)}.png", ""]
    return {
        "cameras.txt": "\n".join(cameras) + "\n",
        "images.txt": "\n".join(images) + "\n",
        "points3D.txt": "# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]\n",
    }


FORMATS: dict[str, Callable[[Rig], dict[str, str]]] = {
    "ros": ros_launch,
    "kalibr": kalibr,
    "opencv": opencv,
    "colmap": colmap,
}


def export_rig(rig: Rig, kind: str, folder: Path) -> list[Path]:
    """Write the files of a format into a folder; returns them. Raises RigError."""
    if kind not in FORMATS:
        raise RigError(f"format {kind!r}: possible are {', '.join(FORMATS)}")
    written = []
    for name, text in FORMATS[kind](rig).items():
        path = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
        except OSError as error:
            raise RigError(f"{path} cannot be written: {refusal(error)}") from None
        written.append(path)
    return written


def quaternion(T: Array) -> Array:
    """(4,) w, x, y, z with w >= 0 of the rotation of a transform (4, 4)."""
    rotvec = so3_log(T[:3, :3])
    angle = float(np.linalg.norm(rotvec))
    axis = rotvec / angle if angle > 1e-12 else rotvec
    return np.array([np.cos(angle / 2), *(np.sin(angle / 2) * axis)])


def _told_apart(rig: Rig) -> Rig:
    """The rig with a number behind each serial if `_ros_name` makes one of any two, as `left.1` and `left-1`."""
    names = [_ros_name(camera.serial) for camera in rig.cameras]
    if len(set(names)) == len(names):
        return rig
    numbered = zip(rig.cameras, names, range(len(names)), strict=True)
    return replace(rig, cameras=tuple(replace(camera, serial=f"{name}_{i}") for camera, name, i in numbered))


def _ros_name(text: str) -> str:
    """Only letters, digits and underscores; a name does not begin with a digit."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII)
    return f"cam_{name}" if not name[:1].isalpha() else name


def _number(value: Any) -> str:
    return f"{float(value):.12g}"


def _row(values: Any) -> str:
    return "[" + ", ".join(_yaml_float(value) for value in values) + "]"


def _yaml_float(value: Any) -> str:
    """With a point, so that no YAML reader takes it for an integer or, as 1e-07, for text."""
    text = f"{float(value):.12g}"
    mantissa, mark, exponent = text.partition("e")
    return (mantissa if "." in mantissa else mantissa + ".0") + mark + exponent


def _matrix(name: str, values: Array) -> list[str]:
    rows, columns = values.shape
    data = ", ".join(_yaml_float(value) for value in values.ravel())
    return [f"{name}: !!opencv-matrix", f"   rows: {rows}", f"   cols: {columns}", "   dt: d", f"   data: [ {data} ]"]
