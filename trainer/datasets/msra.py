"""MSRA15 hand gesture database (Sun, Wei, Liang, Tang, Sun, CVPR 2015): 9 persons, 17 gestures, about 500 frames each.

The protocol leaves one person out: train on eight, test on the ninth, average. By the readme of the database:
`P0/1/000000_depth.bin` begins with 6 unsigned 32-bit integers (width, height, left, top, right, bottom) and goes on
with the float32 depth in mm of the box [left, right) x [top, bottom), row by row; `P0/1/joint.txt` has the number of
frames, then 63 numbers a line, 21 joints in mm; right hands; focal length 241.42, centre (160, 120). That y is up and
z backwards is DeepPrior++'s importer's (github.com/moberweger/deep-prior-pp, src/data/importers.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...hand.camera import Intrinsics
from ...hand.frames import DepthFrame
from ...hand.skeleton import FINGERS
from . import Dataset, DatasetError, Label, floats, missing_files, read_text, scheme_of

INTRINSICS = Intrinsics(320, 240, 241.42, 241.42, 160.0, 120.0)
UNIT_M = 1e-4  # depths are floats; tenths of a millimetre keep them
OUR_THUMB = {"mcp": "cmc", "pip": "mcp", "dip": "ip", "tip": "tip"}
NAMES = ["wrist", *(f"{f}_{j}" for f in (*FINGERS[1:], "thumb") for j in ("mcp", "pip", "dip", "tip"))]
_OURS = [f"thumb_{OUR_THUMB[n[6:]]}" if n.startswith("thumb") else n for n in NAMES]
SCHEME = scheme_of(
    {name: {ours: 1.0} for name, ours in zip(NAMES, _OURS, strict=True)},
    bones=[(NAMES[0] if i % 4 == 1 else NAMES[i - 1], NAMES[i]) for i in range(1, 21)],
)


def open_dataset(path: Path) -> Dataset:
    """The database's folder (all persons), one person's, such as .../P3, or one gesture's, such as .../P3/TIP."""
    path = Path(os.path.abspath(path))  # folders' names say who it is, . and .. do not
    texts = (
        sorted(path.glob("joint.txt")) or sorted(path.glob("*/joint.txt")) or sorted(path.glob("P[0-8]/*/joint.txt"))
    )
    if not texts:
        raise DatasetError(f"{path} has no P0/1/joint.txt, 1/joint.txt or joint.txt: it is not MSRA15")
    folders = [text.parent for text in texts]
    labels, paths = [], []
    for folder in folders:
        for i, joints in enumerate(read_joints(folder / "joint.txt")):
            name = f"{folder.parent.name}/{folder.name}/{i:06d}_depth.bin"
            sequence = f"{folder.parent.name}/{folder.name}"
            labels.append(Label(name, joints, "right", folder.parent.name, sequence, i))
            paths.append(folder / f"{i:06d}_depth.bin")

    def frames() -> Iterator[DepthFrame]:
        missing_files(paths, "depth files are")
        for i, file in enumerate(paths):
            yield DepthFrame("msra", i, round(i * 1e9 / 30), read_depth(file), UNIT_M, INTRINSICS)

    return Dataset("msra", SCHEME, INTRINSICS, labels, frames, "21 joints; the protocol leaves one person out")


def read_joints(path: Path) -> NDArray[np.float64]:
    """Joints (N, 21, 3) mm in our camera frame: y turned down, z forwards."""
    lines = read_text(path, "MSRA's labels").split("\n")
    if not re.fullmatch(r"\s*\d+\s*", lines[0]):
        raise DatasetError(f"{path}: the first line is {lines[0][:30]!r}, expected the number of frames")
    n, rows = int(lines[0]), [line for line in lines[1:] if line.strip()]
    if len(rows) != n:
        raise DatasetError(f"{path}: {len(rows)} lines of joints, its first line says {n}")
    joints = np.empty((n, 21, 3))
    for i, row in enumerate(rows):
        joints[i] = floats(row.split(), 63, f"{path}, line {i + 2}").reshape(21, 3)
    return joints * (1, -1, -1)


def read_depth(path: Path) -> NDArray[np.uint16]:
    """Depth (240, 320) in tenths of a millimetre; 0 outside the stored box."""
    data = path.read_bytes()
    if len(data) < 24:
        raise DatasetError(f"{path} is truncated: {len(data)} bytes, its header alone has 24")
    width, height, left, top, right, bottom = (int(x) for x in np.frombuffer(data[:24], "<u4"))
    if (width, height) != (320, 240) or not (left <= right <= width and top <= bottom <= height):
        raise DatasetError(f"{path}: {width}x{height} with box {left} {top} {right} {bottom} is not an MSRA15 header")
    expected = 24 + 4 * (right - left) * (bottom - top)
    if len(data) != expected:
        raise DatasetError(f"{path} is truncated or damaged: {len(data)} bytes, its header asks for {expected}")
    mm = np.frombuffer(data[24:], "<f4").reshape(bottom - top, right - left)
    depth = np.zeros((height, width), np.uint16)
    depth[top:bottom, left:right] = np.rint(np.nan_to_num(mm) * 10).clip(0, 65535)
    return depth
