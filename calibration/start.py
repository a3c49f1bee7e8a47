"""From single views to a start for the bundle: what was seen at one time, and where the cameras roughly are.

Each view gives the board's pose in its camera (two of them, if it is seen small). Two cameras that see the board at one
time give their relative pose; the one that agrees best with all others wins (medoid, so that a flipped pose or a moving
board costs nothing), and the pairs with the most shared moments join the cameras to a tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..hand.arrays import Array
from ..hand.camera import Intrinsics
from ..hand.se3 import inverse, so3_log
from .bundle import BundleError, Scene
from .corners import BoardPose, View, board_poses

LONGEST_RUN = 40  # knots; a longer stretch is cut, and its ends interpolate with one neighbour
FEWEST_SHARED = 3  # moments that two cameras must share to be joined
ARM_M = 0.3  # weighs rotations against translations


class Moments(NamedTuple):
    """Views of one time belong to one knot: times (K,) s, each view with its knot, and the runs of neighbours."""

    knots_s: Array
    views: tuple[tuple[View, int], ...]
    runs: tuple[slice, ...]


def moments_of(views: Sequence[View], offsets_s: Array, period_s: float, *, moving: bool) -> Moments:
    """Sort views into moments. With moving, only those whose board has a neighbour in time, to know its speed.

    A moment that one camera alone saw is kept if it says how the board moved at a shared one.
    """
    timed = sorted(views, key=lambda view: view.t_s + offsets_s[view.camera])
    groups: list[list[View]] = []
    start_s = -np.inf
    for view in timed:
        t_s = view.t_s + offsets_s[view.camera]
        if t_s - start_s > 0.5 * period_s or view.camera in {other.camera for other in groups[-1]}:
            groups.append([])
            start_s = t_s
        groups[-1].append(view)
    times = [float(np.mean([view.t_s + offsets_s[view.camera] for view in group])) for group in groups]
    shared = [len(group) > 1 for group in groups]
    close = [0 < b - a <= 1.5 * period_s for a, b in pairwise(times)]
    before, after = [False, *close], [*close, False]
    keep = []
    for i in range(len(groups)):
        helps = (before[i] and shared[i - 1]) or (after[i] and shared[i + 1])
        keep.append((shared[i] and (not moving or before[i] or after[i])) or (moving and helps))
    runs: list[slice] = []
    kept: list[int] = []
    for i in range(len(groups)):
        if not keep[i]:
            continue
        joined = kept and kept[-1] == i - 1 and before[i] and len(kept) - runs[-1].start < LONGEST_RUN
        if joined and moving:
            runs[-1] = slice(runs[-1].start, len(kept) + 1)
        else:
            runs.append(slice(len(kept), len(kept) + 1))
        kept.append(i)
    placed = tuple((view, knot) for knot, i in enumerate(kept) for view in groups[i])
    return Moments(np.array([times[i] for i in kept]), placed, tuple(runs))


def shared_moments(moments: Moments, cameras: int) -> NDArray[np.int64]:
    """How many moments each two cameras share, (C, C)."""
    seen = np.zeros((len(moments.knots_s), cameras), np.int64)
    for view, knot in moments.views:
        seen[knot, view.camera] = 1
    return seen.T @ seen


def start_scene(
    moments: Moments, corners_m: Array, intrinsics: Sequence[Intrinsics], names: Sequence[str], offsets_s: Array
) -> Scene:
    """A start for `bundle.solve`. Raises BundleError if a camera shares too few moments with the others."""
    poses: dict[tuple[int, int], list[BoardPose]] = {}
    for view, knot in moments.views:
        poses[view.camera, knot] = board_poses(view, corners_m, intrinsics[view.camera])
    counts = shared_moments(moments, len(intrinsics))
    T_camera_ref = np.tile(np.eye(4), (len(intrinsics), 1, 1))
    joined, left = [0], list(range(1, len(intrinsics)))
    while left:
        known, new = max(((a, b) for a in joined for b in left), key=lambda pair: counts[pair])
        if counts[known, new] < FEWEST_SHARED:
            raise BundleError(
                f"{names[new]} saw the board together with {', '.join(names[c] for c in joined)} in "
                f"{counts[known, new]} moments, needed are {FEWEST_SHARED}: show it to both at once"
            )
        T_camera_ref[new] = _between(poses, new, known) @ T_camera_ref[known]
        joined.append(new)
        left.remove(new)
    T_ref_board = np.stack(
        [
            _board_at([(camera, pose) for (camera, k), pose in poses.items() if k == knot], T_camera_ref)
            for knot in range(len(moments.knots_s))
        ]
    )
    return Scene(T_camera_ref, offsets_s.copy(), tuple(intrinsics), moments.knots_s, T_ref_board, moments.runs)


def _between(poses: dict[tuple[int, int], list[BoardPose]], a: int, b: int) -> Array:
    """T_a_b (4, 4): of all the moments say, the one in the middle."""
    found = []
    for (camera, knot), here in poses.items():
        if camera == a and (b, knot) in poses:
            found += [i.T_camera_board @ inverse(j.T_camera_board) for i in here for j in poses[b, knot]]
    T = np.stack(found)
    turn = np.linalg.norm(so3_log(np.swapaxes(T[:, None, :3, :3], -1, -2) @ T[None, :, :3, :3]), axis=-1)
    shift = np.linalg.norm(T[:, None, :3, 3] - T[None, :, :3, 3], axis=-1)
    score = np.minimum(turn * ARM_M + shift, 0.5)
    nearest = np.sort(score, 1)[:, : max(2, len(T) // 4)]  # a quarter may be right: each pair offers up to 4
    return T[np.argmin(nearest.mean(1))]


def _board_at(seen: list[tuple[int, list[BoardPose]]], T_camera_ref: Array) -> Array:
    """T_ref_board (4, 4): the pose on which the cameras agree best, or the best of the one that saw it."""
    found = np.stack(
        [inverse(T_camera_ref[camera]) @ pose.T_camera_board for camera, poses in seen for pose in poses]
    )  # fmt: skip
    turn = np.linalg.norm(so3_log(np.swapaxes(found[:, None, :3, :3], -1, -2) @ found[None, :, :3, :3]), axis=-1)
    shift = np.linalg.norm(found[:, None, :3, 3] - found[None, :, :3, 3], axis=-1)
    score = np.sort(turn * ARM_M + shift, 1)[:, : max(1, len(seen))].sum(1) if len(seen) > 1 else np.zeros(len(found))
    return found[np.argmin(score)]
