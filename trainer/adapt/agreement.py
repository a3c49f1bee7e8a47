"""Do the cameras of a rig see one hand in one place? And if not, is it the rig file that is off?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from ...calibration.rig import Rig, RigError, load_rig
from ...edge.engines import Engine
from ...edge.tracker import Tracker
from ...hand.arrays import Array
from ...hand.frames import DepthFrame
from ...hand.skeleton import ROOTS
from .frames import alone, in_step, open_recording

TOGETHER_NS = 35_000_000  # frames of two cameras this near in time show one moment, or nearly
LOOK_EVERY_NS = 200_000_000
MOST_MOMENTS, LEAST_MOMENTS = 60, 6
ONE_HAND_M = 0.25  # hands that two cameras place further apart are two hands
ALLOWED_MM, SIGMAS = 12.0, 3.0  # right rigs show 6 mm at most, see docs/models.md


def rig_reasons(recordings: Sequence[Path], rig_file: Path, engine: Engine) -> list[str]:
    """Reasons not to learn from the recordings of a rig with this rig file."""
    try:
        rig = usable_rig(rig_file)
        for path in recordings:
            source = open_recording(path)
            source.close()
            rig.check(source.name, source.intrinsics)
    except RigError as error:
        return [str(error)]
    if len(recordings) < 2:
        return [f"rig {rig.name}: one recording is no rig; give one of each camera"]
    palms: dict[tuple[str, str], list[Array]] = {}
    sides: dict[tuple[str, str], list[bool]] = {}
    apart: dict[tuple[str, str], int] = {}
    trackers = [Tracker(engine, confirm=False) for _ in recordings]
    last_ns, moments = -LOOK_EVERY_NS, 0
    for shot in shots_of(recordings, rig):
        first = next(frame for frame in shot if frame is not None)
        if first.t_ns - last_ns < LOOK_EVERY_NS or moments >= MOST_MOMENTS:
            continue
        last_ns, moments = first.t_ns, moments + 1
        seen = [(frame.camera, found) for frame, tracker in zip(shot, trackers, strict=True)
                if frame is not None and (found := _palm(frame, tracker, rig))]  # fmt: skip
        for (a, one), (b, other) in combinations(sorted(seen, key=lambda s: s[0]), 2):
            if np.linalg.norm(one[0] - other[0]) > ONE_HAND_M:
                apart[a, b] = apart.get((a, b), 0) + 1
                continue
            palms.setdefault((a, b), []).append(one[0] - other[0])
            if "unknown" not in (one[1], other[1]):
                sides.setdefault((a, b), []).append(one[1] == other[1])
    if not moments:
        return [f"rig {rig.name}: the recordings are not of the same time"]
    reasons = []
    for pair in sorted(palms.keys() | apart.keys()):
        reasons += _of_pair(rig, pair, palms.get(pair, []), sides.get(pair, []), apart.get(pair, 0))
    if not palms and not reasons:
        reasons.append(f"rig {rig.name}: no two cameras saw a hand in one place at any of {moments} moments")
    return reasons


def usable_rig(path: Path) -> Rig:
    """The rig of a file. Raises RigError, also for one that failed its calibration."""
    rig = load_rig(path)
    if rig.quality.verdict == "fail":
        raise RigError(f"{path} failed its calibration ({'; '.join(rig.quality.warnings)}): calibrate again")
    return rig


def shots_of(recordings: Sequence[Path], rig: Rig | None) -> Iterator[list[DepthFrame | None]]:
    """The first recording's frames, and of the others those nearest in time, None if none is near; without a rig there
    is one. Raises CameraError, RecordingError."""
    cameras = {camera.serial: camera for camera in rig.cameras} if rig else {}
    sources = [open_recording(path) for path in recordings]
    try:
        yield from in_step(sources, [cameras.get(s.name) or alone(s) for s in sources], TOGETHER_NS)
    finally:
        for source in sources:
            source.close()


def _palm(frame: DepthFrame, tracker: Tracker, rig: Rig) -> tuple[Array, str] | None:
    """Where the rig puts the palm (3,) m that this camera sees, and its side."""
    tracker.reset()
    hands = [h for h in tracker.process(frame) if h.pose.state == "tracked"]
    if not hands:
        return None
    T = next(c.T_ref_cam for c in rig.cameras if c.serial == frame.camera)
    return T[:3, :3] @ hands[0].pose.joints_m[ROOTS].mean(0) + T[:3, 3], hands[0].pose.side


def _of_pair(rig: Rig, pair: tuple[str, str], between: list[Array], agreed: list[bool], elsewhere: int) -> list[str]:
    names = f"cameras {pair[0]} and {pair[1]}"
    if elsewhere >= LEAST_MOMENTS and elsewhere > len(between):
        return [
            f"{names} place their hands more than {ONE_HAND_M * 100:.0f} cm apart at {elsewhere} of "
            f"{elsewhere + len(between)} moments: the rig file is of another rig, or a camera is turned or mirrored"
        ]
    if len(between) < LEAST_MOMENTS:
        return []
    if len(agreed) >= LEAST_MOMENTS and np.mean(agreed) < 0.5:
        return [f"{names} see hands of different sides at {len(agreed) - sum(agreed)} of {len(agreed)} moments: "
                "one picture is mirrored"]  # fmt: skip
    sigma = math.hypot(*(rig.quality.sigma_volume_mm.get(serial, 0.0) for serial in pair))
    off = np.median(np.array(between), 0) * 1e3  # a bias: scatter about it is the network's
    apart, allowed = float(np.linalg.norm(off)), ALLOWED_MM + SIGMAS * sigma
    if apart <= allowed:
        return []
    return [
        f"{names} see the palm {apart:.0f} mm apart, always in one direction, where the rig file's own sigma is "
        f"{sigma:.1f} mm and {allowed:.0f} are allowed: the rig file is off, or a camera was moved or turned"
    ]
