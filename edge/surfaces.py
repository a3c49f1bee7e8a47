"""Where could a hand be? Geometry only: the nearest surface, and the far ends of what it belongs to.

The image is split into surfaces without jumps in depth. A hand is at the front of the nearest large surface, or at one
of its tips: from the point where the surface is widest, an arm's far end is the hand. It needs no model, takes several
milliseconds and proposes places at which no hand is; the tracker's network says which proposal is one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..hand.arrays import Array
from ..hand.frames import DepthFrame, HandRoi

CUBE_M = 0.25
NEAR_M, FAR_M = 0.15, 1.5
COLUMNS = 160  # the image is thinned to about this many
JUMP = 0.018  # neighbours further apart than this plus 1 % of their distance belong to different surfaces
LEAST_AREA_M2 = 0.0025  # smaller surfaces are no hands: a fist seen end-on has some 0.004
DEEP_M = 0.28  # of a surface, what lies further behind its front than this is not looked at
REACH_M = 0.17  # from a fingertip to the wrist along the surface
BALL_M = 0.115


def find_hands(frame: DepthFrame, limit: int = 4) -> list[HandRoi]:
    """Proposals for one hand, at most `limit`, the likeliest first; sides are unknown. Empty if nothing is near."""
    stride = max(1, frame.intrinsics.width // COLUMNS)
    z = frame.depth[stride // 2 :: stride, stride // 2 :: stride] * np.float32(frame.depth_unit_m)  # (h, w) m
    valid = (z > NEAR_M) & (z < FAR_M)
    if not valid.any():
        return []
    points = _points(frame, z, stride)
    labels = surfaces(z, valid)
    camera = frame.intrinsics
    pixel_area = (z * stride) ** 2 / (camera.fx * camera.fy)
    n = int(labels.max()) + 1
    area = np.bincount(labels[valid], pixel_area[valid], n)
    front = np.full(n, np.inf)
    for label in np.flatnonzero(area > LEAST_AREA_M2):
        front[label] = np.percentile(z[labels == label], 2)
    rois: list[HandRoi] = []
    for label in np.argsort(front)[:2]:
        if not np.isfinite(front[label]) or (rois and front[label] > front.min() + 0.25):
            break
        region = (labels == label) & (z < front[label] + DEEP_M)
        for centre in _proposals(z, region, points, stride / camera.fx):
            if all(np.linalg.norm(centre - r.centre_m) > 0.045 for r in rois):
                rois.append(HandRoi("unknown", centre, CUBE_M, 1 / (1 + len(rois))))
    return rois[:limit]


def _points(frame: DepthFrame, z: Array, stride: int) -> Array:
    camera = frame.intrinsics
    rows, columns = (np.arange(n) * stride + stride // 2 for n in z.shape)
    if camera.is_distorted:
        pixels = np.stack(np.meshgrid(columns, rows), -1)
        return camera.deproject(pixels, z)
    x = z * ((columns - camera.cx) / camera.fx)
    y = z * ((rows - camera.cy) / camera.fy)[:, None]
    return np.stack([x, y, z], -1)


def surfaces(z: Array, valid: Array) -> NDArray[np.int64]:
    """Label (h, w) of every valid pixel's surface, 0, 1, ...; pixels without reading get -1."""
    jump = JUMP + 0.01 * z
    along = valid[:, 1:] & valid[:, :-1] & (np.abs(z[:, 1:] - z[:, :-1]) < jump[:, 1:])
    down = valid[1:] & valid[:-1] & (np.abs(z[1:] - z[:-1]) < jump[1:])
    # Runs along rows are the nodes of a graph; runs that touch across rows are joined.
    start = np.ones_like(valid)
    start[:, 1:] = ~along
    run = (np.cumsum(start.ravel()) - 1).reshape(z.shape)
    a, b = run[:-1][down], run[1:][down]
    parent = np.arange(run[-1, -1] + 1)
    while True:  # every run takes the least label of its neighbours, then of its label's label
        least = np.minimum(parent[a], parent[b])
        before = parent.copy()
        np.minimum.at(parent, parent[a], least)
        np.minimum.at(parent, parent[b], least)
        parent = parent[parent]
        if np.array_equal(parent, before):
            break
    root = parent[run]
    labels = np.full(z.shape, -1)
    _, labels[valid] = np.unique(root[valid], return_inverse=True)
    return labels


def _proposals(z: Array, region: Array, points: Array, m_per_pixel: float) -> list[Array]:
    """Centres (3,) m to try in one surface: around its nearest point, then its far ends, the nearest of them first."""
    cloud = points[region]
    nearest = cloud[np.argpartition(cloud[:, 2], len(cloud) // 200)[len(cloud) // 200]]  # not the very first: noise
    centres = [_settle(cloud, nearest)]
    steps = geodesic(region, _widest(region), z, m_per_pixel)
    ends = []
    remaining = np.where(np.isfinite(steps), steps, -1)
    for _ in range(3):
        row, column = np.unravel_index(np.argmax(remaining), remaining.shape)
        if remaining[row, column] < 0.10:
            break
        tip = points[row, column]
        near = np.linalg.norm(points - tip, axis=-1) < REACH_M
        hand = region & near & (steps > steps[row, column] - REACH_M)
        ends.append(points[hand].mean(0))
        remaining[near] = -1
    return centres + sorted(ends, key=lambda c: float(c[2]))


def _settle(cloud: Array, centre: Array) -> Array:
    """Mean of the surface in a ball around one of its points, twice; the mean of a shell may have nothing near."""
    for _ in range(2):
        ball = cloud[np.linalg.norm(cloud - centre, axis=1) < BALL_M]
        centre = ball.mean(0) if len(ball) else centre
    return centre


def _widest(region: Array) -> tuple[int, int]:
    """The pixel of a region deepest inside it, in image terms: the last that erosion leaves."""
    inner = region
    while True:
        smaller = inner.copy()
        smaller[1:] &= inner[:-1]
        smaller[:-1] &= inner[1:]
        smaller[:, 1:] &= inner[:, :-1]
        smaller[:, :-1] &= inner[:, 1:]
        smaller[0] = smaller[-1] = False
        smaller[:, 0] = smaller[:, -1] = False
        if not smaller.any():
            row, column = np.argwhere(inner)[0]
            return int(row), int(column)
        inner = smaller


def geodesic(region: Array, source: tuple[int, int], z: Array, m_per_pixel: float) -> Array:
    """Distance (h, w) m along a surface from a pixel, in four-neighbour steps; inf where it does not reach."""
    distance = np.full(region.shape, np.inf)
    distance[source] = 0
    step = np.where(region, z * m_per_pixel * 0.85, np.inf)  # 0.85: city-block steps overstate slanted ways
    for sweep in range(400):
        before = distance.copy() if sweep % 8 == 7 else None
        distance[1:] = np.minimum(distance[1:], distance[:-1] + step[1:])
        distance[:-1] = np.minimum(distance[:-1], distance[1:] + step[:-1])
        distance[:, 1:] = np.minimum(distance[:, 1:], distance[:, :-1] + step[:, 1:])
        distance[:, :-1] = np.minimum(distance[:, :-1], distance[:, 1:] + step[:, :-1])
        if before is not None and np.array_equal(before, distance):
            break
    return distance
