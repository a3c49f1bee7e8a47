"""ICVL hand posture dataset (Tang, Chang, Tejani, Kim, CVPR 2014): 1,596 test frames in two sequences.

`test_seq_1.txt` and `test_seq_2.txt` have one frame a line, the image's name under `Depth/` and 16 joints `u v d`,
pixels and mm; images are 16-bit PNGs of mm, 320x240. Layout and intrinsics are those of DeepPrior++'s importer
(github.com/moberweger/deep-prior-pp); Chen's evaluation lists use fx 240.99, fy 240.96 instead, 0.2 % less.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...edge.recordings.recording import decode_depth_png
from ...hand.camera import Intrinsics
from ...hand.frames import DepthFrame
from ...hand.skeleton import FINGERS
from . import Dataset, DatasetError, Label, floats, missing_files, read_text, scheme_of

INTRINSICS = Intrinsics(320, 240, 241.42, 241.42, 160.0, 120.0)
SEQUENCES = ("test_seq_1", "test_seq_2")

# Root, mid and tip lie in the middle of the phalanges rather than at knuckles: our skeleton, fitted to six test frames,
# stays 3.8 mm away from them so, 4.1 if they were PIP, DIP and tip, 8.7 if MCP, PIP and tip. The hands are left: fitted
# as right ones they are 8.6 mm away. The palm's point has no like of ours.
_KNUCKLES = {f: ("cmc", "mcp", "ip", "tip") if f == "thumb" else ("mcp", "pip", "dip", "tip") for f in FINGERS}
SCHEME = scheme_of(
    {
        "palm": {"wrist": 0.5, "index_mcp": 0.125, "middle_mcp": 0.125, "ring_mcp": 0.125, "little_mcp": 0.125},
        **{
            f"{finger}_{part}": {f"{finger}_{ends[k]}": 0.5, f"{finger}_{ends[k + 1]}": 0.5}
            for finger, ends in _KNUCKLES.items()
            for k, part in enumerate(("root", "mid", "tip"))
        },
    },
    bones=[(f"{finger}_{a}", f"{finger}_{b}") for finger in FINGERS for a, b in (("root", "mid"), ("mid", "tip"))],
    unscored=("palm",),
)


def open_dataset(path: Path) -> Dataset:
    """The folder that holds test_seq_1.txt or test_seq_2.txt and Depth/, or one above it (Testing, test)."""
    folder = next((f for f in (path, path / "Testing", path / "test") if _sequences(f)), None)
    if folder is None:
        raise DatasetError(f"{path} has no test_seq_1.txt or test_seq_2.txt: --data icvl:PATH is the folder of these")
    labels = [label for text in _sequences(folder) for label in read_labels(text)]

    def frames() -> Iterator[DepthFrame]:
        paths = [folder / "Depth" / label.name for label in labels]
        missing_files(paths, "depth images are")
        for i, image in enumerate(paths):
            try:
                depth = decode_depth_png(image.read_bytes(), INTRINSICS.width, INTRINSICS.height)
            except (OSError, ValueError) as error:
                raise DatasetError(f"{image} {error}") from None
            yield DepthFrame("icvl", i, round(i * 1e9 / 30), depth, 0.001, INTRINSICS)

    protocol = "16 joints; 15 scored for our models. The pictures show left hands"
    return Dataset("icvl", SCHEME, INTRINSICS, labels, frames, protocol)


def read_labels(path: Path) -> list[Label]:
    """The labelled frames of one sequence. By the labels, palms with the thumb on the left: left hands."""
    labels = []
    for row, line in enumerate(read_text(path, "ICVL's labels").splitlines()):
        if not line.strip():
            continue
        name, *words = line.split()
        uvd = floats(words, 48, f"{path}, line {row + 1}").reshape(16, 3)
        number = re.search(r"(\d+)\.png$", name)
        if not number:
            raise DatasetError(f"{path}, line {row + 1}: {name} is no name of a PNG")
        joints = INTRINSICS.deproject(uvd[:, :2], uvd[:, 2])
        labels.append(Label(name, joints, side="left", sequence=path.stem, number=int(number[1])))
    return labels


def _sequences(folder: Path) -> list[Path]:
    return [path for name in SEQUENCES if (path := folder / f"{name}.txt").is_file()]
