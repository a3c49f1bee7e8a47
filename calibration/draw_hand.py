"""A picture of a rig that a hand made: cameras and the hand's way from above and from the side, and residuals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..edge.draw import save_png
from .distances import distances
from .draw import COLOURS, EDGE, GREY, LINE, SIZE, plan
from .hand import HandResult

BIN_MM, MOST_MM = 0.5, 10.0


def draw_hand(result: HandResult, path: Path) -> None:
    """Write a PNG: from above (x, z), from the side (z, y), and how far the cameras' depth points are apart, a line a
    pair."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (3 * SIZE, SIZE), "white")
    pen = ImageDraw.Draw(canvas)
    path_m = result.joints.path.joints_m.mean(1)
    path_m = path_m[np.isfinite(path_m[:, 0])][::5]
    plan(pen, result.rig, path_m, 0, (0, 2), "from above, m: x right, z up; grey: the hand's way")
    plan(pen, result.rig, path_m, SIZE, (2, 1), "from the side, m: z right, y down")
    _histogram(pen, result, 2 * SIZE)
    save_png(path, np.asarray(canvas))


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
