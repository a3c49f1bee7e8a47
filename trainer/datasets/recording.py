"""Our own recordings with labels: `hand.mcap` (`edge/recordings/recording.py`) and `hand.labels.jsonl` beside it.

The label file has one JSON object a line, for as many of the frames as are labelled:

    {"seq": 12, "joints_mm": [[x, y, z], ... 21 of them], "side": "right", "person": "a"}

seq is the frame's number in the recording, joints are ours in our order, mm in the camera frame; side (right if absent)
and person (none if absent) are optional.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ...edge.recordings.recording import Recording, RecordingError
from ...hand.frames import DepthFrame
from ...hand.skeleton import JOINT_NAMES, JOINT_PARENTS
from ...hand.whole import write_whole
from . import Dataset, DatasetError, Label, read_text, scheme_of

SCHEME = scheme_of(
    {name: {name: 1.0} for name in JOINT_NAMES},
    bones=[(JOINT_NAMES[parent], name) for name, parent in zip(JOINT_NAMES, JOINT_PARENTS, strict=True) if parent >= 0],
)


def open_dataset(path: Path) -> Dataset:
    """A recording `NAME.mcap` whose labels are in `NAME.labels.jsonl`."""
    labels = read_labels(labels_path(path))
    try:
        with Recording(path) as recording:
            intrinsics = recording.intrinsics
    except RecordingError as error:
        raise DatasetError(str(error)) from None

    def frames() -> Iterator[DepthFrame]:
        wanted = iter(labels)
        label = next(wanted, None)
        try:
            with Recording(path) as recording:
                for frame in recording:
                    if label is None or frame.seq > label.number:
                        break
                    if frame.seq == label.number:
                        yield frame
                        label = next(wanted, None)
        except RecordingError as error:
            raise DatasetError(str(error)) from None
        if label is not None:
            raise DatasetError(f"{labels_path(path)}: frame {label.number} is not in {path.name}")

    return Dataset(path.stem, SCHEME, intrinsics, labels, frames, "21 joints")


def labels_path(recording: Path) -> Path:
    return recording.with_suffix(".labels.jsonl")


def read_labels(path: Path) -> list[Label]:
    """Labels by frame number."""
    labels = []
    for row, line in enumerate(read_text(path, "the labels of this recording, one JSON object a line").splitlines()):
        if not line.strip():
            continue
        where = f"{path}, line {row + 1}"
        try:
            entry = json.loads(line)
            seq, side = entry["seq"], str(entry.get("side", "right"))
            joints = np.array(entry["joints_mm"], np.float64)
            person = "" if entry.get("person") is None else str(entry["person"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DatasetError(f"{where}: not a label ({type(error).__name__}: {error})") from None
        if type(seq) is not int:
            raise DatasetError(f"{where}: seq is {seq!r}, expected a frame's whole number")
        if joints.shape != (21, 3) or not np.isfinite(joints).all():
            raise DatasetError(f"{where}: joints_mm is {'x'.join(map(str, joints.shape))}, expected 21x3 numbers")
        if joints[:, 2].min() <= 0:
            raise DatasetError(f"{where}: a joint lies behind the camera (z {joints[:, 2].min():g} mm)")
        if side not in ("left", "right"):
            raise DatasetError(f"{where}: side is {side!r}, expected left or right")
        labels.append(Label(str(seq), joints, "left" if side == "left" else "right", person, path.stem, seq))
    labels.sort(key=lambda label: label.number)
    for a, b in pairwise(labels):
        if a.number == b.number:
            raise DatasetError(f"{path}: frame {a.number} is labelled twice")
    return labels


def write_labels(recording: Path, labels: Sequence[Label]) -> Path:
    """Write the label file of a recording; it appears as a whole."""
    path = labels_path(recording)
    lines = (
        json.dumps({"seq": x.number, "joints_mm": x.joints_mm.round(3).tolist(), "side": x.side, "person": x.person})
        for x in labels
    )
    write_whole(path, "".join(line + "\n" for line in lines))
    return path
