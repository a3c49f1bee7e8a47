"""Is a recording what it is said to be? What can be told without labels, in words, before a network learns from it.

Read to its end, it must be whole and its times must rise. In bursts of frames hands are found anew, each frame by
itself: there must be hands, and they must move as hands do, so that frames three apart differ by more than neighbours.
A camera that is turned or mirrored shows in the picture's shape, in the shadows of sensors whose shadows are known to
fall to one side, in how sure the networks become when the picture is turned back, and, in a rig, in what the other
cameras see. What cannot be told is in docs/models.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ...edge.cameras import BadFrame, CameraError
from ...edge.engines import Engine, open_engine
from ...edge.finder import whole_view
from ...edge.networks.card import DEFAULT_MODEL
from ...edge.recordings.recording import Recording, RecordingError
from ...edge.tracker import Tracker
from ...hand.arrays import Array
from ...hand.frames import DepthFrame
from ...hand.skeleton import PALM
from .agreement import rig_reasons
from .frames import open_recording

MOST_SINGLE = 60  # of single frames, those looked at
MOST_TURNS = 30  # bursts whose picture is turned about
BURST = 4  # frames; the first, second and last are looked at
APART_FRAMES = 15  # from burst to burst at first; of long recordings more
LEAST_FRAMES, LEAST_SHARE = 6, 0.2  # frames looked at that must show a hand
MOST_BAD = 0.01  # share of frames that may be unusable
LEAST_READ = 0.002  # share of pixels with a reading
MOST_FIT_MM = 15.0  # median, from the depth of what is taken for a hand to its mesh
NEIGHBOURS_S = 0.15  # frames further apart say nothing of motion
MOVES_M, SHUFFLED = 0.008, 0.75  # neighbours' distance, and its share of that of frames three apart
TURNS = {180: "upside down", 90: "on its side", 270: "on its side"}  # degrees that turn the picture back
TURNED_MM, TURNED_T, FINDER_SLACK = 0.6, 4.0, 0.1  # see `_turned`
SHADOW_STEP_M, SHADOW_PX, SHADOW_SHARE = 0.05, 80, 0.5
SHADOW_LEAST = 60  # px of shadow a frame
# Beside which edge of near things a sensor of this name has no readings: -1 left, 1 right. Only of what `edge-hand
# record` and a camera.json name: others may have turned the picture of a camera that hangs upside down.
SHADOW_SIDES = {"realsense sr3": 1, "realsense": -1, "synthetic": -1}


@dataclass
class Evidence:
    """What one recording showed: counts, problems found on the way, and by frame looked at the hand's palm (3,) m
    within bursts, and its fit; per burst the errors (4,) mm the network expects of the picture as it is and
    turned by 90, 180, 270, and the finder's scores (4,); shadows are px left and right of near things."""

    frames: int = 0
    bad: list[str] = field(default_factory=list)
    broken: str = ""
    backwards: int = 0
    empty: int = 0
    looked: int = 0
    hands: int = 0
    fits_mm: list[float] = field(default_factory=list)
    next_m: list[float] = field(default_factory=list)
    third_m: list[float] = field(default_factory=list)
    expected_mm: list[Array] = field(default_factory=list)
    finder: list[Array] = field(default_factory=list)
    shadow_px: list[tuple[int, int]] = field(default_factory=list)
    portrait: str = ""


def check_recording(
    recordings: Sequence[Path],
    rig: Path | None = None,
    *,
    model: Path | None = None,
) -> list[str]:
    """Reasons, a line each, not to learn from these recordings; none if nothing is wrong with them.

    With a rig file there is one recording for each of its cameras, of the same time.
    """
    engine = open_engine("onnxruntime", model or DEFAULT_MODEL)
    reasons: list[str] = []
    for path in recordings:
        evidence = watch(path, engine)
        reasons += [f"{path}: {why}" for why in judge_evidence(evidence, sensor_of(path), loose(path))]
    if rig is not None and not reasons:
        reasons += rig_reasons(recordings, rig, engine)
    return reasons


def loose(path: Path) -> bool:
    """Whether frames are single ones, not one after the other: a folder whose camera.json gives no rate."""
    try:
        return path.is_dir() and "fps" not in json.loads((path / "camera.json").read_text())
    except (OSError, ValueError):
        return False


def sensor_of(path: Path) -> str:
    """What the recording says of its sensor, in lower case; empty if nothing."""
    try:
        if path.is_dir():
            return str(json.loads((path / "camera.json").read_text()).get("sensor", "")).lower().replace("intel ", "")
        with Recording(path) as recording:
            ours = recording.sensor != "synthetic" or recording.camera.startswith("synthetic-")
            return recording.sensor.lower() if ours else ""
    except (OSError, ValueError, RecordingError):
        return ""


def whole(path: Path) -> bool:
    """Whether an .mcap was written to its end. Raises RecordingError."""
    with Recording(path) as recording:
        return recording.whole


def watch(path: Path, engine: Engine) -> Evidence:
    """Read a recording to its end and look at bursts of its frames. Raises nothing for what is wrong with it."""
    seen = Evidence()
    tracker = Tracker(engine, confirm=False)
    single = loose(path)
    begins, last, palms = 0, None, {}
    try:
        source = open_recording(path)
    except CameraError as error:
        seen.broken = str(error)
        return seen
    try:
        if path.suffix == ".mcap" and not whole(path):
            seen.broken = "it was cut, by a crash, a full disk or a copy that broke off; record again"
            return seen
        for item in _all(source.frames()):
            if isinstance(item, BadFrame):
                seen.bad.append(str(item))
                continue
            if last is not None and (item.t_ns <= last.t_ns or item.seq <= last.seq):
                seen.backwards += 1
            last = item
            seen.empty += int(np.count_nonzero(item.depth) < LEAST_READ * item.depth.size)
            at = 0 if single and seen.looked < MOST_SINGLE else seen.frames - begins
            seen.frames += 1
            if at in (0, 1, BURST - 1):
                palms[at] = (_look(item, tracker, seen, first=at == 0), item.t_ns)
            if at == BURST - 1:
                _motion(palms, seen)
                palms = {}
                begins = seen.frames + max(APART_FRAMES - BURST, seen.frames // 40)
    except (CameraError, RecordingError) as error:
        seen.broken = str(error)
    finally:
        source.close()
    return seen


def judge_evidence(seen: Evidence, sensor: str, single: bool) -> list[str]:
    """The reasons that speak against a recording."""
    if seen.broken:
        return [f"it cannot be read to its end: {seen.broken}"]
    if not seen.frames or len(seen.bad) > MOST_BAD * (seen.frames + len(seen.bad)):
        what = f"{len(seen.bad)} of {seen.frames + len(seen.bad)} frames cannot be used"
        return [what + (f"; the first: {seen.bad[0]}" if seen.bad else "")]
    if seen.empty > seen.frames / 2:
        return [f"{seen.empty} of {seen.frames} frames have next to no readings"]
    if seen.backwards:
        return [f"time or frame number does not rise at {seen.backwards} of {seen.frames} frames: they are shuffled"]
    if seen.hands < max(LEAST_FRAMES, LEAST_SHARE * seen.looked):
        return [f"a hand was found in {seen.hands} of {seen.looked} frames looked at; too few to learn from"]
    reasons = []
    if (fit := float(np.median(seen.fits_mm))) > MOST_FIT_MM:
        reasons.append(f"what is taken for a hand is no hand: its depth is {fit:.0f} mm from the mesh")
    if not single and (why := _shuffled(seen)):
        reasons.append(why)
    if why := seen.portrait or _turned(seen) or _shadow(seen, sensor):
        reasons.append(why)
    return reasons


def _all(frames: Iterator[DepthFrame | BadFrame]) -> Iterator[DepthFrame | BadFrame]:
    """The frames; what a library lets through of a damaged file ends as RecordingError."""
    try:
        yield from frames
    except (CameraError, RecordingError):
        raise
    except Exception as error:
        raise RecordingError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def _look(frame: DepthFrame, tracker: Tracker, seen: Evidence, first: bool) -> Array | None:
    """Find a hand in this frame alone; its palm's place (3,) m."""
    if frame.depth.shape[0] > frame.depth.shape[1]:
        height, width = frame.depth.shape
        seen.portrait = f"the picture is {width}x{height}, higher than wide: the camera is turned on its side"
    tracker.reset()
    hands = [h for h in tracker.process(frame) if h.pose.state == "tracked"]
    seen.looked += 1
    if first:
        seen.shadow_px.append(shadows(frame.depth * np.float32(frame.depth_unit_m)))
    if not hands:
        return None
    pose = hands[0].pose
    seen.hands += 1
    if np.isfinite(pose.fit_mm):
        seen.fits_mm.append(pose.fit_mm)
    if first and len(seen.expected_mm) < MOST_TURNS:
        _turn_about(frame, pose.joints_m.mean(0), tracker, seen)
    palm: Array = pose.joints_m[PALM].mean(0)
    return palm


def _motion(palms: dict[int, tuple[Array | None, int]], seen: Evidence) -> None:
    (a, t_a), (b, t_b), (d, t_d) = palms[0], palms[1], palms[BURST - 1]
    apart = (t_b - t_a) * 1e-9 > NEIGHBOURS_S or (t_d - t_a) * 1e-9 > 4 * NEIGHBOURS_S
    if a is None or b is None or d is None or apart:
        return
    seen.next_m.append(float(np.linalg.norm(b - a)))
    seen.third_m.append(float(np.linalg.norm(d - a)))


def _shuffled(seen: Evidence) -> str:
    if len(seen.next_m) < LEAST_FRAMES:
        return ""
    near, far = float(np.mean(seen.next_m)), float(np.mean(seen.third_m))
    if near < MOVES_M or near < SHUFFLED * far:
        return ""
    return (
        f"frames are not in the order of time: from one to the next the hand moves {near * 1e3:.0f} mm, over three of "
        f"them {far * 1e3:.0f} mm (single frames in a folder: leave fps out of camera.json)"
    )


def _turn_about(frame: DepthFrame, centre_m: Array, tracker: Tracker, seen: Evidence) -> None:
    """What the networks make of the picture as it is and turned by 90, 180 and 270 degrees."""
    left = bool(tracker.tracks) and tracker.tracks[0].is_left
    errors, scores = [], []
    zoom = min(whole_view(quarter_turns(frame, quarter).intrinsics).zoom for quarter in range(2))
    for quarter in range(4):
        turned, at = quarter_turns(frame, quarter), _QUARTERS[quarter] @ centre_m
        part = whole_view(turned.intrinsics)._replace(zoom=zoom)  # as large however it is turned
        errors.append(tracker.eye.look(turned, at, left).error_mm)
        near = [r.score for r in tracker.finder(turned, part) if np.linalg.norm(r.centre_m - at) < 0.08]
        scores.append(max(near, default=0.0))
    seen.expected_mm.append(np.array(errors))
    seen.finder.append(np.array(scores))


def _turned(seen: Evidence) -> str:
    """Refused if the picture turned back is clearly easier to see a hand in, and the finder does not gainsay it."""
    if len(seen.expected_mm) < LEAST_FRAMES:
        return ""
    errors, finder = np.array(seen.expected_mm), np.array(seen.finder).mean(0)  # (N, 4), (4,)
    for quarter in (2, 1, 3):
        better = errors[:, 0] - errors[:, quarter]
        t = better.mean() / max(better.std(ddof=1) / np.sqrt(len(better)), 1e-6)
        if better.mean() > TURNED_MM and t > TURNED_T and finder[quarter] > finder[0] - FINDER_SLACK:
            return (
                f"the camera seems to be {TURNS[90 * quarter]}: turned by {90 * quarter} degrees, the network expects "
                f"to be {errors[:, quarter].mean():.1f} mm off, as recorded {errors[:, 0].mean():.1f}"
            )
    return ""


def _shadow(seen: Evidence, sensor: str) -> str:
    side = next((s for name, s in SHADOW_SIDES.items() if sensor.startswith(name)), 0)
    left, right = np.array(seen.shadow_px).sum(0)
    if not side or left + right < SHADOW_LEAST * len(seen.shadow_px):
        return ""
    lean = (right - left) / (right + left)
    if lean * side > -SHADOW_SHARE:
        return ""
    names = ("left", "right") if side < 0 else ("right", "left")
    return (
        f"the picture is mirrored or upside down: shadows of this sensor fall to the {names[0]} of near things, here "
        f"{100 * (1 + abs(lean)) / 2:.0f} % of them fall to the {names[1]}"
    )


def shadows(z: Array) -> tuple[int, int]:
    """How many pixels without a reading lie between a near thing and a far one in their row of a picture (H, W) m:
    left of the near thing, and right of it."""
    width = z.shape[1]
    read = z > 0
    column = np.arange(width)
    before = np.maximum.accumulate(np.where(read, column, -1), 1)
    after = np.minimum.accumulate(np.where(read, column, width)[:, ::-1], 1)[:, ::-1]
    hole = ~read & (before >= 0) & (after < width) & (after - before <= SHADOW_PX)
    row, at = np.nonzero(hole)
    step = z[row, before[row, at]] - z[row, after[row, at]]
    return int(np.count_nonzero(step > SHADOW_STEP_M)), int(np.count_nonzero(step < -SHADOW_STEP_M))


_QUARTERS = [np.round(np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]


def quarter_turns(frame: DepthFrame, quarters: int) -> DepthFrame:
    """The frame as a camera rolled about its axis sees it: the picture turned anticlockwise by so many quarters; a
    point p of the old camera frame is `_QUARTERS[quarters] @ p` of the new."""
    depth, k = frame.depth, frame.intrinsics
    for _ in range(quarters % 4):
        depth = np.rot90(depth)
        k = replace(k, width=k.height, height=k.width, fx=k.fy, fy=k.fx, cx=k.cy, cy=k.width - 1 - k.cx)
    return replace(frame, depth=np.ascontiguousarray(depth), intrinsics=replace(k, distortion=(0.0,) * 5))
