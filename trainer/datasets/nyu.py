"""NYU hand pose dataset (Tompson, Stein, LeCun, Perlin, ACM TOG 2014): 8,252 test frames of two persons.

`test/joint_data.mat` (MATLAB 5) holds joint_xyz (3 views, N, 36, 3) in mm with y up; `test/depth_1_0000001.png` ... are
8-bit RGB with depth = 256 G + B mm of the frontal view. Layout, packing, the sign of y, the 14 joints of the protocol,
the intrinsics and the two persons (the first 2,440 frames and the rest) are those of DeepPrior++'s importer
(github.com/moberweger/deep-prior-pp, src/data/importers.py); joint names those of the .mat (F1 is the little finger).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...hand.arrays import Array
from ...hand.camera import Intrinsics
from ...hand.frames import DepthFrame
from . import Dataset, DatasetError, Label, missing_files, scheme_of

INTRINSICS = Intrinsics(640, 480, 588.03, 587.07, 320.0, 240.0)
JOINTS = 36
PROTOCOL = (0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 27, 30, 31, 32)
TEST_FRAMES, FIRST_PERSON = 8252, 2440

# The tips are centres of the spheres that end the fingers of the model which was fitted, some 6 mm inside the skin
# where our tips lie: a quarter of the way to the next joint. Our skeleton, fitted to four test frames, stays 1.4 mm
# away so, 1.7 with tips on the skin, 1.5 with 0.4 of the way. PALM_1, PALM_2 are the wrist's sides (towards the little
# finger, towards the thumb), PALM_3 is inside the palm; our skeleton has no such points, so they are not scored.
TIP, WRIST_SIDE = 0.25, 0.29
_ACROSS = {"little_mcp": WRIST_SIDE, "index_mcp": -WRIST_SIDE}
SCHEME = scheme_of(
    {
        **{
            name: mix
            for finger in ("little", "ring", "middle", "index")
            for name, mix in (
                (f"{finger}_tip", {f"{finger}_tip": 1 - TIP, f"{finger}_dip": TIP}),
                (f"{finger}_pip", {f"{finger}_pip": 1.0}),
            )
        },
        "thumb_tip": {"thumb_tip": 1 - TIP, "thumb_ip": TIP},
        "thumb_ip": {"thumb_ip": 1.0},
        "thumb_mcp": {"thumb_mcp": 1.0},
        "palm_1": {"wrist": 1.0, **_ACROSS},
        "palm_2": {"wrist": 1.0, **{name: -w for name, w in _ACROSS.items()}},
        "palm_3": {"wrist": 0.36, "middle_mcp": 0.64},
    },
    bones=[
        *((f"{finger}_tip", f"{finger}_pip") for finger in ("little", "ring", "middle", "index")),
        ("thumb_tip", "thumb_ip"),
        ("thumb_ip", "thumb_mcp"),
        *((f"{end}", "palm_3") for end in ("palm_1", "palm_2", "thumb_mcp")),
    ],
    unscored=("palm_1", "palm_2", "palm_3"),
)


def open_dataset(path: Path) -> Dataset:
    """The dataset's folder, or its `test` folder."""
    folder = path / "test" if (path / "test").is_dir() else path
    joints = read_joints(folder / "joint_data.mat")  # (N, 36, 3)
    labels = [
        Label(
            name=f"depth_1_{i + 1:07d}.png",
            joints_mm=xyz,
            person=("1" if i < FIRST_PERSON else "2") if len(joints) == TEST_FRAMES else "",
            sequence="test",
            number=i,
        )
        for i, xyz in enumerate(joints[:, PROTOCOL])
    ]

    def frames() -> Iterator[DepthFrame]:
        missing_files([folder / label.name for label in labels], "depth images are")
        for label in labels:
            depth = read_depth(folder / label.name)
            yield DepthFrame("nyu", label.number, round(label.number * 1e9 / 30), depth, 0.001, INTRINSICS)

    protocol = "14 of 36 joints, frontal view; 11 of them scored for our models"
    return Dataset("nyu", SCHEME, INTRINSICS, labels, frames, protocol)


def read_joints(path: Path) -> Array:
    """Joints (N, 36, 3) mm of the frontal view in our camera frame: y turned down."""
    if not path.is_file():
        raise DatasetError(f"{path} is missing: --data nyu:PATH is the folder that holds test/joint_data.mat")
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise DatasetError(f"{path}: reading .mat files needs SciPy: pip install scipy") from None
    try:
        xyz = np.asarray(loadmat(str(path), variable_names=["joint_xyz"])["joint_xyz"], np.float64)
    except (ValueError, TypeError, KeyError, OSError, EOFError, NotImplementedError, zlib.error) as error:
        raise DatasetError(f"{path} is cut, or not NYU's: no joint_xyz can be read ({_line(error)})") from None
    if xyz.ndim != 4 or xyz.shape[2:] != (JOINTS, 3):
        raise DatasetError(f"{path}: joint_xyz is {'x'.join(map(str, xyz.shape))}, expected views x frames x 36 x 3")
    return xyz[0] * (1, -1, 1)


def read_depth(path: Path) -> NDArray[np.uint16]:
    """Depth (480, 640) mm of one PNG; the red channel holds nothing."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in ("RGB", "RGBA") or image.size != (INTRINSICS.width, INTRINSICS.height):
                raise DatasetError(f"{path} is {image.mode} {image.size[0]}x{image.size[1]}, expected RGB 640x480")
            pixels = np.asarray(image).astype(np.uint16)
    except DatasetError:
        raise
    except Exception as error:  # a broken PNG makes Pillow raise OSError, SyntaxError, struct.error and more
        raise DatasetError(f"{path} is a truncated or damaged PNG ({_line(error)})") from None
    return (pixels[..., 1] * 256 + pixels[..., 2]).astype(np.uint16)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
