"""Labelled depth that a user has: one file of this folder reads one dataset.

A loader `<kind>.py` has `open_dataset(path: Path) -> Dataset` and says in its head where the format is from. Truth is
in millimetres in our camera frame: x right, y down, z forward. Nothing is ever written beside the data.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...hand.arrays import Array
from ...hand.camera import Intrinsics
from ...hand.frames import DepthFrame, Side
from ...hand.skeleton import JOINT_NAMES
from ...hand.whole import refusal, write_whole


class DatasetError(Exception):
    """A dataset or a file of predictions that cannot be used, in one line."""


class Scheme(NamedTuple):
    """The joints of an annotation scheme and what they are of our 21.

    names (J,), a tip's ending in `tip`; from_ours (J, 21) whose rows sum to 1: a joint of theirs is about this mean of
    ours; scored (J,) bool: those that are alike enough to compare; bones pairs of their joints.
    """

    names: tuple[str, ...]
    from_ours: Array
    scored: NDArray[np.bool_]
    bones: tuple[tuple[int, int], ...]

    def of_ours(self, joints: Array) -> Array:
        """Our joints (..., 21, 3) as theirs (..., J, 3)."""
        return self.from_ours @ joints


class Label(NamedTuple):
    """One labelled frame: joints_mm (J, 3) true joints; side of the hand in the picture; person, "" if unknown;
    sequence and number, by which consecutive frames are told."""

    name: str
    joints_mm: Array
    side: Side = "right"
    person: str = ""
    sequence: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A dataset opened: labels are read, frames() reads the depth of labels[0], labels[1], ... one after the other.

    frames raises DatasetError with the file's name when it meets one that cannot be used.
    """

    name: str
    scheme: Scheme
    intrinsics: Intrinsics
    labels: Sequence[Label]
    frames: Callable[[], Iterator[DepthFrame]]
    protocol: str

    @property
    def truth_mm(self) -> Array:
        """(N, J, 3)."""
        return np.stack([label.joints_mm for label in self.labels])

    @property
    def follows(self) -> NDArray[np.bool_]:
        """Which frames (N,) come right after the one before."""
        after = [a.sequence == b.sequence and b.number == a.number + 1 for a, b in pairwise(self.labels)]
        return np.array([False, *after])[: len(self.labels)]


def dataset_kinds() -> list[str]:
    """The loaders there are: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def open_dataset(spec: str) -> Dataset:
    """Open KIND:PATH, such as `nyu:/data/nyu`. Raises DatasetError."""
    kind, _, path = spec.partition(":")
    if kind not in dataset_kinds() or not path:
        raise DatasetError(
            f"--data {spec}: expected synthetic:test, or KIND:PATH with KIND one of {', '.join(dataset_kinds())}"
        )
    if not Path(path).exists():
        raise DatasetError(f"--data {spec}: {path} does not exist")
    dataset: Dataset = importlib.import_module("." + kind, __name__).open_dataset(Path(path))
    if not dataset.labels:
        raise DatasetError(f"--data {spec}: it has no labelled frame")
    truth = dataset.truth_mm
    wrong = np.argwhere(~(np.isfinite(truth).all(-1) & (truth[..., 2] > 0)))  # frames and joints
    if len(wrong):
        frame, joint = wrong[0]
        raise DatasetError(
            f"--data {spec}: frame {dataset.labels[frame].name} has its joint {dataset.scheme.names[joint]} at "
            f"{truth[frame, joint].tolist()} mm, expected numbers before the camera"
        )
    return dataset


def scheme_of(
    joints: Mapping[str, Mapping[str, float]], bones: Sequence[tuple[str, str]], unscored: Sequence[str] = ()
) -> Scheme:
    """A scheme from names: each joint of theirs as weights of ours."""
    names = tuple(joints)
    weights = np.zeros((len(names), len(JOINT_NAMES)))
    for row, mix in enumerate(joints.values()):
        for ours, weight in mix.items():
            weights[row, JOINT_NAMES.index(ours)] = weight
    assert np.allclose(weights.sum(1), 1)
    return Scheme(
        names,
        weights,
        np.array([name not in unscored for name in names]),
        tuple((names.index(a), names.index(b)) for a, b in bones),
    )


def missing_files(paths: Sequence[Path], what: str) -> None:
    """Refuse a half-written dataset before the work: every labelled frame has its file."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DatasetError(f"{missing[0]}{more} of {len(paths)} {what} missing: the dataset is not all there")


def read_text(path: Path, what: str) -> str:
    """A label file's text, or the one line that says why not."""
    try:
        return path.read_text()
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing: {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as {what} ({error})") from None


def floats(words: Sequence[str], n: int, where: str) -> Array:
    """Exactly n numbers, or the one line that says where they are not."""
    if len(words) != n:
        raise DatasetError(f"{where}: {len(words)} numbers, expected {n}")
    try:
        return np.array([float(word) for word in words])
    except ValueError as error:
        raise DatasetError(f"{where}: {error}") from None


def read_predictions(path: Path, dataset: Dataset, n: int) -> Array:
    """Predictions (n, J, 3) mm of a text file with one frame a line, of all J joints of the dataset's scheme.

    Lines of 3 J numbers are `u v d` a joint, pixels and mm, as the lists of Chen et al. (github.com/xinghaochen/
    awesome-hand-pose-estimation) have them; lines that begin with a name are `x y z` a joint, mm, as HANDS 2017 and
    2019 ask for. `nan` stands for no hand.
    """
    joints = len(dataset.scheme.names)
    lines = [line.split() for line in read_text(path, "predictions").splitlines() if line.strip()]
    if len(lines) != n:
        raise DatasetError(f"{path}: {len(lines)} lines of predictions for {n} frames")
    out = np.empty((n, joints, 3))
    for i, words in enumerate(lines):
        named = not _is_number(words[0])
        values = floats(words[named:], 3 * joints, f"{path}, line {i + 1}").reshape(joints, 3)
        out[i] = values if named else dataset.intrinsics.deproject(values[:, :2], values[:, 2])
    return out


def write_predictions(path: Path, joints_mm: Array, intrinsics: Intrinsics) -> None:
    """Predictions (N, J, 3) mm as text, `u v d` a joint, one frame a line; NaN for frames without a hand."""
    z = joints_mm[..., 2]
    safe = np.where((z > 0)[..., None], joints_mm, np.nan)
    uvd = np.concatenate([intrinsics.project(safe), safe[..., 2:]], -1).reshape(len(joints_mm), -1)
    try:
        write_whole(path, "".join(" ".join(f"{x:.3f}" for x in row) + "\n" for row in uvd))
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {refusal(error)}") from None


def _is_number(word: str) -> bool:
    try:
        return not math.isinf(float(word))
    except ValueError:
        return False
