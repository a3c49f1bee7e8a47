"""A picture of a rig: the cameras from above and from the side, and residuals of its board or its hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..edge.draw import save_png
from ..hand.arrays import Array
from .board import BoardResult
from .distances import distances
from .hand import HandResult
from .rig import Rig

SIZE, EDGE = 480, 36  # px of a panel and of its margin
COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75))
GREY, LINE = (120, 120, 120), (205, 205, 205)
BIN_MM, MOST_MM = 0.5, 10.0


def draw_board(result: BoardResult, path: Path) -> None:
    """Write a PNG: from above (x, z), from the side (z, y), and residuals a camera in px."""
    with _panels(path, result.rig, result.solution.scene.T_ref_board[:, :3, 3]) as pen:
        _residuals(pen, result, 2 * SIZE)


def draw_hand(result: HandResult, path: Path) -> None:
    """Write a PNG: from above (x, z), from the side (z, y), and how far the cameras' depth points are apart, a line a
    pair."""
    path_m = result.joints.path.joints_m.mean(1)
    with _panels(path, result.rig, path_m[np.isfinite(path_m[:, 0])][::5], "; grey: the hand's way") as pen:
        _histogram(pen, result, 2 * SIZE)


@contextmanager
def _panels(path: Path, rig: Rig, points: Array, note: str = "") -> Iterator[Any]:
    """A pen for the third panel of a picture that is written at the end."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (3 * SIZE, SIZE), "white")
    pen = ImageDraw.Draw(canvas)
    _plan(pen, rig, points, 0, (0, 2), f"from above, m: x right, z up{note}")
    _plan(pen, rig, points, SIZE, (2, 1), "from the side, m: z right, y down")
    yield pen
    save_png(path, np.asarray(canvas))


def _plan(pen: Any, rig: Rig, dots: Array, left: int, axes: tuple[int, int], title: str) -> None:
    """Cameras as wedges, boards or hands (N, 3) m as dots, in two axes of the reference frame."""
    places = np.stack([camera.T_ref_cam[:3, 3] for camera in rig.cameras])
    points = np.concatenate([places, dots])[:, axes]
    low, high = points.min(0) - 0.15, points.max(0) + 0.15
    scale = (SIZE - 2 * EDGE) / float((high - low).max())
    up = axes[1] == 2  # the z axis is drawn upwards, the y axis as in a picture

    def to_px(point: Array) -> tuple[float, float]:
        x, y = (point[list(axes)] - low) * scale
        return left + EDGE + float(x), float(SIZE - EDGE - y if up else EDGE + y)

    pen.text((left + 8, 6), title, fill=GREY)
    for dot in dots:
        x, y = to_px(dot)
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


def _histogram(pen: Any, result: HandResult, left: int) -> None:
    fit = result.clouds
    found = distances(fit.moments, fit.T_ref_cam, fit.offsets_s, fit.depth_per_m)
    edges = np.arange(0, MOST_MM + BIN_MM, BIN_MM)
    pen.text((left + 8, 6), "depth points, mm between two cameras' skin", fill=GREY)
    bottom, width = SIZE - EDGE, (SIZE - 2 * EDGE) / MOST_MM
    pen.line([left + EDGE, bottom, left + SIZE - EDGE, bottom], fill=LINE)
    for mm in range(0, int(MOST_MM) + 1, 2):
        pen.text((left + EDGE + mm * width - 3, bottom + 6), str(mm), fill=GREY)
    names = [camera.serial for camera in result.rig.cameras]
    shown = []
    for a in range(len(names)):
        for b in range(a + 1, len(names)):
            own = found.of_pair(a, b)
            if own.any():
                shares = np.histogram(1e3 * found.values_m[own], edges)[0] / own.sum()
                shown.append((f"{names[a]} - {names[b]}: median {found.percentile_mm(50, own):.2f} mm", shares))
    top = max((shares.max() for _, shares in shown), default=1.0)
    for i, (label, shares) in enumerate(shown):
        colour = COLOURS[i % len(COLOURS)]
        heights = bottom - shares / top * (SIZE - 3 * EDGE)
        middles = left + EDGE + (edges[:-1] + BIN_MM / 2) * width
        pen.line(list(zip(middles.tolist(), heights.tolist(), strict=True)), fill=colour, width=2)
        pen.text((left + SIZE / 3, 24 + 14 * i), label, fill=colour)
