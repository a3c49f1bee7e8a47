"""What `cloud.<camera>` carries: depth points of the scene, thinned out, and of each hand, as dense as they are.

Only pixels that the sensor measured count; nothing is averaged or filled in, so that a calibration may use them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..hand.arrays import Array, Float32
from ..hand.camera import Intrinsics, fold_slope
from ..hand.frames import DepthFrame
from ..hand.wire import HandCloud, Header, WireHand, encode_cloud

SCENE_POINTS, HAND_POINTS = 4000, 2000
SCENE_HZ = 15.0
NEAR_MESH_M = 0.012  # along the ray, from the skin on either side
_CELLS = 32  # of a hand's picture, across its longer side
_TRIED = 4  # pixels of its picture looked at for each point wanted: a hand fills more than a quarter of it


class Clouds:
    """Makes the cloud messages of one camera: the hands' points in each, the scene's at scene_hz at most."""

    def __init__(self, scene_hz: float = SCENE_HZ) -> None:
        self._scene_every_ns = int(1e9 / scene_hz)
        self._scene_slot = -1
        self._rays: tuple[Intrinsics, int, Float32] | None = None

    def message(self, header: Header, frame: DepthFrame, hands: Sequence[WireHand]) -> list[bytes]:
        """`[topic, payload]` of one frame. A hand that is only predicted has no points."""
        meshes = [(h.id, h.pose.vertices_m if h.pose.state == "tracked" else None) for h in hands]
        return self.message_of(header, frame, meshes)

    def message_of(self, header: Header, frame: DepthFrame, meshes: Sequence[tuple[int, Array | None]]) -> list[bytes]:
        """The same from the ids and meshes (V, 3) of the hands; None is a hand without points."""
        slot = frame.t_ns // self._scene_every_ns  # of the host's clock, so that cameras take the same moments
        scene = self._scene(frame) if slot != self._scene_slot else None
        self._scene_slot = slot
        none = np.empty((0, 3), np.float32)
        hands = [HandCloud(number, none if mesh is None else points_near(frame, mesh)) for number, mesh in meshes]
        return encode_cloud(header, scene, hands, None if scene is None else frame.intrinsics)

    def _scene(self, frame: DepthFrame) -> Float32:
        step = scene_step(frame.intrinsics, SCENE_POINTS)
        if self._rays is None or self._rays[:2] != (frame.intrinsics, step):
            self._rays = (frame.intrinsics, step, scene_rays(frame.intrinsics, step))
        return scene_points(frame, step, self._rays[2])


def scene_step(camera: Intrinsics, most: int) -> int:
    """Every how many pixels, across and down, leave `most` points at most."""
    step = max(1, int(np.sqrt(camera.width * camera.height / most)))
    while len(range(step // 2, camera.width, step)) * len(range(step // 2, camera.height, step)) > most:
        step += 1
    return step


def scene_rays(camera: Intrinsics, step: int) -> Float32:
    """(h, w, 3) rays, z = 1, of every step-th pixel across and down; NaN where the lens shows nothing."""
    columns, rows = np.arange(step // 2, camera.width, step), np.arange(step // 2, camera.height, step)
    pixels = np.stack(np.meshgrid(columns, rows), -1)  # (h, w, 2)
    rays = camera.rays(pixels)
    rays[~_shown(rays, camera)] = np.nan
    return rays.astype(np.float32)


def scene_points(frame: DepthFrame, step: int, rays: Float32) -> Float32:
    """(N, 3) m: every step-th pixel across and down that has a reading; rays are those of `scene_rays`."""
    counts = frame.depth[step // 2 :: step, step // 2 :: step]  # (h, w)
    seen = (counts > 0) & np.isfinite(rays[..., 0])
    return rays[seen] * (counts[seen] * np.float32(frame.depth_unit_m))[:, None]  # (N, 3)


def points_near(frame: DepthFrame, vertices_m: Array, most: int = HAND_POINTS) -> Float32:
    """(N, 3) m, at most `most`: the depth points within NEAR_MESH_M, along z, of a hand's mesh (V, 3).

    The hand's picture is split into cells; a pixel counts if its depth lies between the nearest and the farthest
    vertex of its cell and the eight around it. Where there are more than `most`, they are thinned evenly.
    """
    camera, z = frame.intrinsics, vertices_m[:, 2]
    none = np.empty((0, 3), np.float32)
    if not z.min() > 0.02:
        return none
    pixel = camera.project(vertices_m)  # (V, 2)
    first, last = pixel.min(0), pixel.max(0)
    cell_px = max(2.0, float((last - first).max()) / _CELLS)
    origin = first - 1.5 * cell_px  # so that a cell without vertices lies all around
    near, depth_of_cell = _band(((pixel - origin) / cell_px).astype(np.intp), z, frame.depth_unit_m)  # (R, C) counts
    left, top = np.maximum(np.ceil(origin), 0).astype(int)
    right, bottom = np.minimum(last + cell_px, (camera.width - 1, camera.height - 1)).astype(int)
    if right < left or bottom < top:
        return none
    step = max(1, int(np.sqrt((right - left + 1) * (bottom - top + 1) / (_TRIED * most))))
    columns, rows = np.arange(left, right + 1, step), np.arange(top, bottom + 1, step)
    across, down = ((columns - origin[0]) / cell_px).astype(np.intp), ((rows - origin[1]) / cell_px).astype(np.intp)
    counts = np.ascontiguousarray(frame.depth[top : bottom + 1 : step, left : right + 1 : step])  # (h, w)
    # Unsigned, so that what is nearer than the band is far beyond it, and 0, no reading, is too.
    behind = counts - near[down].take(across, 1)
    at = np.flatnonzero(behind < depth_of_cell[down].take(across, 1))
    if len(at) > most:
        at = at[np.linspace(0, len(at) - 1, most).astype(np.intp)]
    row, column = np.divmod(at, len(columns))
    depth = counts.ravel()[at] * np.float32(frame.depth_unit_m)  # (N,)
    if camera.is_distorted:
        rays = camera.rays(np.stack([columns[column], rows[row]], -1))
        shown = _shown(rays, camera)
        return (rays[shown] * depth[shown, None]).astype(np.float32)
    slopes = ((columns - camera.cx) / camera.fx).astype(np.float32), ((rows - camera.cy) / camera.fy).astype(np.float32)
    return np.stack([slopes[0][column] * depth, slopes[1][row] * depth, depth], -1)


def _shown(rays: Array, camera: Intrinsics) -> NDArray[np.bool_]:
    """Which rays (..., 3) are of pixels that the lens shows something in; farther out its polynomial turns back."""
    return np.asarray(np.hypot(rays[..., 0], rays[..., 1]) < fold_slope(camera.distortion))


def _band(cell: Array, z: Array, unit_m: float) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """(R, C) in counts: where a mesh begins in each cell and those around it, and how deep it is there, both widened.

    cell (V, 2) is that of each vertex, x and y; a cell without any near it is 0 deep.
    """
    height, width = int(cell[:, 1].max()) + 2, int(cell[:, 0].max()) + 2
    ends = np.full((2, height * width), np.inf, np.float32)  # nearest, and farthest with its sign turned
    at, z = cell[:, 1] * width + cell[:, 0], z.astype(np.float32)
    np.minimum.at(ends[0], at, z)
    np.minimum.at(ends[1], at, -z)
    around = ends.reshape(2, height, width)
    along = around.copy()
    np.minimum(along[:, 1:], around[:, :-1], out=along[:, 1:])
    np.minimum(along[:, :-1], around[:, 1:], out=along[:, :-1])
    around = along.copy()
    np.minimum(around[:, :, 1:], along[:, :, :-1], out=around[:, :, 1:])
    np.minimum(around[:, :, :-1], along[:, :, 1:], out=around[:, :, :-1])
    empty = np.isinf(around[0])
    around[:, empty] = 0
    near = np.clip((around[0] - NEAR_MESH_M) / unit_m, 1, 65535)
    far = np.clip((NEAR_MESH_M - around[1]) / unit_m, 1, 65535)
    return near.astype(np.uint16), np.where(empty, 0, far - near).astype(np.uint16)
