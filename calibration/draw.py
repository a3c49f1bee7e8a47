"""A picture of a rig: the cameras from above and from the side, and what the corners' residuals look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..edge.draw import save_png
from ..hand.arrays import Array
from .board import BoardResult
from .rig import Rig

SIZE, EDGE = 480, 36  # px of a panel and of its margin
COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75))
GREY, LINE = (120, 120, 120), (205, 205, 205)


def draw_result(result: BoardResult, path: Path) -> None:
    """Write a PNG: from above (x, z), from the side (z, y), and residuals a camera in px."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (3 * SIZE, SIZE), "white")
    pen = ImageDraw.Draw(canvas)
    boards = result.solution.scene.T_ref_board[:, :3, 3]
    plan(pen, result.rig, boards, 0, (0, 2), "from above, m: x right, z up")
    plan(pen, result.rig, boards, SIZE, (2, 1), "from the side, m: z right, y down")
    _residuals(pen, result, 2 * SIZE)
    save_png(path, np.asarray(canvas))


def plan(pen: Any, rig: Rig, boards: Array, left: int, axes: tuple[int, int], title: str) -> None:
    """Cameras as wedges, boards as dots, in two axes of the reference frame."""
    places = np.stack([camera.T_ref_cam[:3, 3] for camera in rig.cameras])
    points = np.concatenate([places, boards])[:, axes]
    low, high = points.min(0) - 0.15, points.max(0) + 0.15
    scale = (SIZE - 2 * EDGE) / float((high - low).max())
    up = axes[1] == 2  # the z axis is drawn upwards, the y axis as in a picture

    def to_px(point: Array) -> tuple[float, float]:
        x, y = (point[list(axes)] - low) * scale
        return left + EDGE + float(x), float(SIZE - EDGE - y if up else EDGE + y)

    pen.text((left + 8, 6), title, fill=GREY)
    for board in boards:
        x, y = to_px(board)
        pen.ellipse([x - 1.5, y - 1.5, x + 1.5, y + 1.5], fill=LINE)
    for i, camera in enumerate(rig.cameras):
        T, colour = camera.T_ref_cam, COLOURS[i % len(COLOURS)]
        corners = [np.array([side, 0, 1.0]) * 0.12 for side in (-0.6, 0.6)]
        wedge = [to_px(T[:3, 3]), *(to_px(T[:3, :3] @ corner + T[:3, 3]) for corner in corners)]
        pen.polygon(wedge, outline=colour)
        pen.text((wedge[0][0] + 5, wedge[0][1] + 5), camera.serial, fill=colour)


def _residuals(pen: Any, result: BoardResult, left: int) -> None:
    """All residuals as dots, a colour a camera; the circle is 1 px."""
    solution = result.solution
    pen.text((left + 8, 6), f"corners, px: RMS {solution.rms_px:.2f}, median {solution.median_px:.2f}", fill=GREY)
    reach = max(2.0, float(np.percentile(np.abs(solution.residuals_px), 99.5)))
    scale, middle = (SIZE / 2 - EDGE) / reach, np.array([left + SIZE / 2, SIZE / 2])
    pen.line([left + EDGE, SIZE / 2, left + SIZE - EDGE, SIZE / 2], fill=LINE)
    pen.line([middle[0], EDGE, middle[0], SIZE - EDGE], fill=LINE)
    pen.ellipse([*(middle - scale), *(middle + scale)], outline=LINE)
    start = 0
    for view, _ in solution.views:
        colour = COLOURS[view.camera % len(COLOURS)]
        for x, y in np.clip(solution.residuals_px[start : start + len(view.ids)], -reach, reach) * scale + middle:
            pen.point([x, y], fill=colour)
            pen.point([x + 1, y], fill=colour)
        start += len(view.ids)
    for i, camera in enumerate(result.rig.cameras):
        pen.text((left + 8, 24 + 14 * i), camera.serial, fill=COLOURS[i % len(COLOURS)])
