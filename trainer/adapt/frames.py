"""Recordings without labels to what the adaptation looks at: windows of depth around the hand, moment by moment.

The daemon's own finder and tracker say where hands are. With a rig, a hand that one camera has found is looked at by
the others too. A window is wide enough that the crops of training can be cut from it anew, each beside the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...calibration.rig import DepthCorrection, RigCamera
from ...calibration.sight import clock_offsets_ns
from ...edge.cameras import CameraError
from ...edge.cameras.replay import FrameSource, PngFolder, RecordedFrames
from ...edge.engines import Engine
from ...edge.finder import open_finder
from ...edge.tracker import Tracker
from ...hand import se3
from ...hand.arrays import Array
from ...hand.crop import crop_depth, look_at, mirror_pose, square_camera
from ...hand.frames import DepthFrame, HandCrop, HandRoi

WINDOW_M, WINDOW_PX = 0.40, 192
UNIT_M = 1e-4  # of a window's counts
FAR = 65535  # in a window: something, far behind
MOST_MOMENTS = 900
SAME_M = 0.10  # hands of two cameras as near as this are one
APART_NS = 25_000_000  # frames of two cameras further apart in time than this do not show one moment
LEAST_HZ, ENOUGH = 12.0, 300  # frames beyond this rate say the same again, if there are enough of them
# Hands are followed over gaps of so long, as far as this and so fast; those followed for less time teach nothing. Of
# long recordings, which are looked at seldom, gaps and times are longer.
GAP_NS, NEXT_M, NEXT_M_S, LASTING_NS = 500_000_000, 0.08, 2.0, 2_000_000_000
ABOUT = 25  # looks before and after that tell with a hand's own which side it is of, if one hand is there at a time
HELD_OUT = 0.25  # of every recording, its end, that the gate judges by
SECOND_NS = 1_000_000_000
AS_READ = DepthCorrection()


class AdaptError(Exception):
    """An adaptation that cannot start or go on, in one line."""


class View(NamedTuple):
    """A hand's surroundings as one camera sees them, and as a right hand: window (W, W) uint16 counts of UNIT_M, 0 no
    reading, FAR whatever is beyond; distance_m of the middle; T_ref_view (4, 4) from the window's frame, which looks
    straight at its middle, to the reference camera's; camera its number."""

    window: NDArray[np.uint16]
    distance_m: float
    T_ref_view: Array
    camera: int


class Moment(NamedTuple):
    """One hand at one time: the views of it, the recording's number, seq of the first camera's frame."""

    views: tuple[View, ...]
    recording: int
    seq: int
    t_ns: int
    is_left: bool


@dataclass(frozen=True)
class Footage:
    """Moments in order of time, and how many frames were read for them."""

    moments: list[Moment]
    frames: int
    cameras: int


class Crop(NamedTuple):
    """A network's crop cut from a view: image (S, S); T_ref_crop (4, 4); distance_m and cube_m."""

    image: NDArray[np.float32]
    T_ref_crop: Array
    distance_m: float
    cube_m: float


def read_footage(
    sources: Sequence[Path],
    engine: Engine,
    cameras: Mapping[str, RigCamera] | None = None,
    *,
    share: float = 1 - HELD_OUT,
    most: int = MOST_MOMENTS,
    say: Callable[[str], None] = lambda _: None,
) -> Footage:
    """The moments of recordings up to this share of each.

    cameras: by their serials, those of one rig that were recorded at the same time; None: every source is a recording
    of its own, of one camera. Raises AdaptError, CameraError.
    """
    from .suspicion import loose

    opened = [open_recording(path) for path in sources]
    single = {id(source) for source, path in zip(opened, sources, strict=True) if loose(path)}
    try:
        if cameras is not None:
            unknown = [s.name for s in opened if s.name not in cameras]
            if unknown:
                raise AdaptError(
                    f"--rig: it does not know the camera {unknown[0]} of the recordings; it has {', '.join(cameras)}"
                )
            groups = [[(s, cameras[s.name]) for s in opened]]
        else:
            groups = [[(s, alone(s))] for s in opened]
        moments: list[Moment] = []
        frames = 0
        for number, group in enumerate(groups):
            found, n = _watch(group, engine, number, share, most // len(groups), id(group[0][0]) in single, say)
            moments += found
            frames += n
        return Footage(moments, frames, max(len(g) for g in groups))
    finally:
        for source in opened:
            source.close()


def open_recording(path: Path) -> FrameSource:
    """A recording as `edge-hand record` writes it, or a folder of PNGs. Raises CameraError."""
    if path.is_dir():
        return PngFolder(path)
    if path.suffix == ".mcap" and path.exists():
        return RecordedFrames(path)
    if path.exists():
        raise CameraError(f"{path}: to adapt, give a .mcap of `edge-hand record` or a folder of PNGs with camera.json")
    raise CameraError(f"{path} does not exist")


class _Seen(NamedTuple):
    """A hand as the trackers saw it: centre_m (3,) in the reference frame and log-odds of a right hand."""

    centre_m: Array
    votes: float


class _Raw(NamedTuple):
    """A hand of one time, before it is known whether it is a left one: its views are not mirrored yet."""

    views: list[View]
    seq: int
    t_ns: int
    hand: _Seen


def _watch(
    group: list[tuple[FrameSource, RigCamera]], engine: Engine, number: int, share: float, most: int, single: bool,
    say: Callable[[str], None],
) -> tuple[list[Moment], int]:  # fmt: skip
    """The moments of one recording, of one camera or of several that ran at the same time. single: its frames do not
    follow on each other, and are taken to be a second apart."""
    first = group[0][0]
    n = sum(isinstance(item, DepthFrame) for item in first.frames())
    last = round(n * share)
    stride = max(1, min(round(first.fps / LEAST_HZ), last // ENOUGH), -(-last // most))
    finder = open_finder()
    trackers = [Tracker(engine, finder, smooth=False, confirm=False) for _ in group]
    raw: list[_Raw] = []
    alone, together, frames = 0, 0, 0
    for i, shot in enumerate(in_step([s for s, _ in group], [camera for _, camera in group], APART_NS)):
        if i >= last:
            break
        if i % stride:
            continue
        frames += sum(frame is not None for frame in shot)
        if single:
            for tracker in trackers:
                tracker.reset()
        hands = _hands(trackers, shot, [camera.T_ref_cam for _, camera in group])
        alone, together = alone + (len(hands) == 1), together + (len(hands) > 1)
        anchor = next(frame for frame in shot if frame is not None)
        for hand in hands:
            views = [
                view
                for k, (frame, (_, camera)) in enumerate(zip(shot, group, strict=True))
                if frame is not None
                and (view := cut_window(frame, camera.T_ref_cam, hand.centre_m, k, camera.depth)) is not None
            ]
            if views:
                raw.append(_Raw(views, anchor.seq, i * SECOND_NS if single else anchor.t_ns, hand))
        if frames % 100 < len(group):
            say(f"reading {first.name}: {i + 1} of {last} frames, {len(raw)} hands")
    one_hand = together < 0.05 * max(alone + together, 1)
    runs = [[one] for one in raw]
    if not single:
        runs = _lasting(raw, round(stride / first.fps * 1e9), round(last / first.fps * 1e9))
    moments = []
    for run in runs:
        votes = [one.hand.votes for one in run]
        for k, (views, seq, t_ns, _) in enumerate(run):
            begin = min(max(0, k - ABOUT), max(0, len(votes) - 2 * ABOUT - 1))  # as many at a run's ends
            is_left = (sum(votes[begin : begin + 2 * ABOUT + 1]) if one_hand else votes[k]) < 0
            turned = tuple(mirrored(v) for v in views) if is_left else tuple(views)
            moments.append(Moment(turned, number, seq, t_ns, is_left))
    return sorted(moments, key=lambda moment: moment.t_ns), frames


def _lasting(raw: list[_Raw], step_ns: int, recorded_ns: int) -> list[list[_Raw]]:
    """The hands that were followed long enough, each from its first time to its last, for what comes and goes is seldom
    one: in a recording that is looked at every step_ns for five looks at least, in a short one for half of it."""
    gap_ns = max(GAP_NS, 5 * step_ns // 2)
    lasting_ns = min(max(LASTING_NS, 2 * gap_ns), recorded_ns // 2)
    runs: list[list[_Raw]] = []
    for one in raw:
        near = []
        for run in runs:
            passed_ns = one.t_ns - run[-1].t_ns
            if 0 < passed_ns <= gap_ns:
                apart_m = float(np.linalg.norm(one.hand.centre_m - run[-1].hand.centre_m))
                if apart_m < NEXT_M + NEXT_M_S * min(passed_ns, GAP_NS) * 1e-9:
                    near.append((apart_m, run))
        if near:
            min(near, key=lambda pair: pair[0])[1].append(one)
        else:
            runs.append([one])
    return [run for run in runs if run[-1].t_ns - run[0].t_ns >= lasting_ns]


def alone(source: FrameSource) -> RigCamera:
    """A camera that is its own reference."""
    return RigCamera(source.name, "depth", source.intrinsics, np.eye(4), np.zeros((6, 6)))


def in_step(
    sources: Sequence[FrameSource], cameras: Sequence[RigCamera], most_ns: int
) -> Iterator[list[DepthFrame | None]]:
    """The first source's frames, and of the others those nearest in time, None if none is within most_ns. Hosts' clocks
    and the rig's offsets are taken into account, and frames have the intrinsics that the rig has for their camera.
    Raises CameraError, RecordingError."""
    offsets = [
        wall_ns + round(camera.time.offset_s * 1e9)
        for wall_ns, camera in zip(clock_offsets_ns([s.wall_offset_ns for s in sources]), cameras, strict=True)
    ]
    streams = [_seen_through(c, s) for s, c in zip(sources, cameras, strict=True)]
    ahead: list[list[DepthFrame]] = [[] for _ in sources[1:]]
    for frame in streams[0]:
        t_ns = frame.t_ns + offsets[0]
        shot: list[DepthFrame | None] = [frame]
        for stream, held, offset_ns in zip(streams[1:], ahead, offsets[1:], strict=True):
            while not held or held[-1].t_ns + offset_ns < t_ns:
                item = next(stream, None)
                if item is None:
                    break
                held.append(item)
                del held[:-2]
            nearest = min(held, key=lambda h: abs(h.t_ns + offset_ns - t_ns), default=None)
            near = nearest is not None and abs(nearest.t_ns + offset_ns - t_ns) <= most_ns
            shot.append(nearest if near else None)
        yield shot


def _seen_through(camera: RigCamera, source: FrameSource) -> Iterator[DepthFrame]:
    for frame in source.frames():
        if isinstance(frame, DepthFrame):
            yield frame if camera.own_intrinsics is None else replace(frame, intrinsics=camera.intrinsics)


def _hands(trackers: list[Tracker], shot: list[DepthFrame | None], poses: list[Array]) -> list[_Seen]:
    """The hands of a moment: those of different cameras, seen as one where they are near each other."""
    seen: list[list[_Seen]] = []
    for tracker, frame, T in zip(trackers, shot, poses, strict=True):
        if frame is None:
            continue
        hands = [h for h in tracker.process(frame) if h.pose.state == "tracked"]
        if not hands:  # frames need not follow on each other
            tracker.reset()
            hands = [h for h in tracker.process(frame) if h.pose.state == "tracked"]
        mine = []
        for hand in hands:
            left = next((t.is_left for t in tracker.tracks if t.id == hand.id), hand.pose.side == "left")
            odds = np.log(max(hand.pose.side_conf, 0.5) / max(1 - hand.pose.side_conf, 1e-3))
            at = T[:3, :3] @ hand.pose.joints_m.mean(0) + T[:3, 3]
            mine.append(_Seen(at, -odds if left else odds))
        _join(seen, mine)
    return [_Seen(np.median([s.centre_m for s in g], 0), float(sum(s.votes for s in g))) for g in seen]


def _join(seen: list[list[_Seen]], mine: list[_Seen]) -> None:
    """Add a camera's hands to those of the others: the nearest first, and no two of it become one."""
    pairs = [(float(np.linalg.norm(a.centre_m - g[0].centre_m)), i, g) for i, a in enumerate(mine) for g in seen]
    met: dict[int, list[_Seen]] = {}
    for apart_m, i, group in sorted(pairs, key=lambda pair: pair[0]):
        if apart_m < SAME_M and i not in met and not any(group is other for other in met.values()):
            met[i] = group
            group.append(mine[i])
    seen += [[one] for i, one in enumerate(mine) if i not in met]


def cut_window(
    frame: DepthFrame, T_ref_camera: Array, centre_ref_m: Array, camera: int, depth: DepthCorrection = AS_READ
) -> View | None:
    """The window about a place (3,) m of the reference frame, its depth corrected; None where the camera sees little
    of it."""
    centre = T_ref_camera[:3, :3].T @ (np.asarray(centre_ref_m) - T_ref_camera[:3, 3])
    distance = float(np.linalg.norm(centre))
    if centre[2] < 0.1:
        return None
    rotation = look_at(centre)
    slope = ((np.arange(WINDOW_PX) + 0.5) / WINDOW_PX * 2 - 1) * (WINDOW_M / 2 / distance)
    rays = np.stack([*np.meshgrid(slope, slope), np.ones((WINDOW_PX, WINDOW_PX))], -1) @ rotation.T
    pixel = np.rint(frame.intrinsics.project(rays)).astype(np.intp)
    column, row = pixel[..., 0], pixel[..., 1]
    inside = (column >= 0) & (column < frame.intrinsics.width) & (row >= 0) & (row < frame.intrinsics.height)
    inside &= rays[..., 2] > 0
    counts = frame.depth.ravel()[np.where(inside, row * frame.intrinsics.width + column, 0)]
    z = depth.apply(counts * inside * frame.depth_unit_m) / np.where(inside, rays[..., 2], 1)
    near = (z > distance - WINDOW_M / 2) & (z < distance + WINDOW_M / 2)
    if near.mean() < 0.01:
        return None
    window = np.where(near, np.rint(z / UNIT_M), np.where(z >= distance, FAR, 0)).clip(0, FAR).astype(np.uint16)
    T = T_ref_camera @ se3.transform(rotation, np.zeros(3))
    return View(window, distance, T, camera)


def mirrored(view: View) -> View:
    """The view of a left hand as that of a right one in the mirror; again, and it is as it was."""
    window = np.ascontiguousarray(view.window[:, ::-1])
    return view._replace(window=window, T_ref_view=mirror_pose(view.T_ref_view))


def cut_crop(view: View, cube_m: float, size: int, away_m: Array | None = None) -> Crop:
    """The daemon's crop (`hand/crop.py`) about the window's middle, or so far away_m (3,) of it in the view's frame."""
    counts, distance = view.window, view.distance_m
    centre = np.array([0, 0, distance]) + (0 if away_m is None else away_m)
    frame = DepthFrame("window", 0, 0, counts, UNIT_M, square_camera(WINDOW_PX, distance, WINDOW_M))
    crop: HandCrop = crop_depth(frame, HandRoi("right", centre, cube_m, 1.0), size)
    T = view.T_ref_view @ se3.transform(crop.R_camera_crop, np.zeros(3))
    return Crop(crop.image, T, crop.distance_m, cube_m)


def depth_seen(view: View, crop: Crop, size: int) -> Array:
    """(size, size) m along the crop's axis: 0 where nothing is read, inf where what is read lies far behind."""
    R = view.T_ref_view[:3, :3].T @ crop.T_ref_crop[:3, :3]
    slope = ((np.arange(size) + 0.5) / size * 2 - 1) * (crop.cube_m / 2 / crop.distance_m)
    rays = np.stack([*np.meshgrid(slope, slope), np.ones((size, size))], -1) @ R.T
    camera = square_camera(WINDOW_PX, view.distance_m, WINDOW_M)
    pixel = np.rint(camera.project(rays)).astype(np.intp).clip(0, WINDOW_PX - 1)
    counts = view.window[pixel[..., 1], pixel[..., 0]]
    z = counts * UNIT_M / rays[..., 2]
    return np.where(counts == FAR, np.inf, np.where(counts == 0, 0.0, z))
