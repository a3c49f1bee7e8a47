"""The board's true size, measured by depth: a board printed 1 % too large moves a camera by 6 mm and no pixel tells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..hand.arrays import Array
from ..hand.camera import Intrinsics
from .corners import View, board_poses

FEWEST_VIEWS = 5


def board_scale(
    views: Sequence[tuple[View, Array]], corners_m: Array, intrinsics: Sequence[Intrinsics]
) -> float | None:
    """The board's measured size over the size said: its plane against depth (H, W) m, registered to the view's picture,
    0 = no reading.

    The pose says where the plane is if the squares are as large as said; depth over that distance is the true scale.
    It also holds the depth's own error, 1 to 2 %, if the camera was not checked. None with too few views.
    """
    ratios = []
    for view, depth_m in views:
        lens = intrinsics[view.camera]
        poses = board_poses(view, corners_m, lens)
        if not poses:
            continue
        T = poses[0].T_camera_board
        low, high = np.floor(view.pixels.min(0)).astype(int), np.ceil(view.pixels.max(0)).astype(int)
        x, y = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
        inside = (x >= 0) & (y >= 0) & (x < lens.width) & (y < lens.height)
        x, y = x[inside], y[inside]
        rays = lens.rays(np.stack([x, y], -1))  # (N, 3)
        normal = T[:3, 2]
        expected = normal @ T[:3, 3] / (rays @ normal)
        on_board = ((rays * expected[:, None] - T[:3, 3]) @ T[:3, :2]) / np.abs(corners_m[:, :2]).max(0)
        read = depth_m[y, x]
        good = (read > 0) & (expected > 0) & (np.abs(on_board) <= 1).all(1)
        if good.sum() >= 50:
            ratios.append(float(np.median(read[good] / expected[good])))
    return float(np.median(ratios)) if len(ratios) >= FEWEST_VIEWS else None
