"""Learning curves: how the error on held-out samples falls with the samples seen, from the logs of runs.

python -m edge_hand.trainer.curve runs/*/log.jsonl --out curve.png
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..edge.draw import save_png
from .metrics import COLOURS, told_apart

Points = list[tuple[int, float]]


class CurveError(Exception):
    """A log that cannot be read, in one line."""


def read_curve(log: Path) -> Points:
    """(samples seen, joint error in mm on held-out samples) of a run's log.jsonl, in order."""
    try:
        entries = [json.loads(line) for line in log.read_text().splitlines() if line.strip()]
        points = {int(e["seen"]): float(e["val_joint_mm"]) for e in entries if "val_joint_mm" in e}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CurveError(f"{log}: not a run's log ({str(error).splitlines()[0][:80]})") from None
    if not points:
        raise CurveError(f"{log}: no validation in it; train with --validate-every")
    return sorted(points.items())


def table(curves: Mapping[str, Points]) -> str:
    """A Markdown table, a row a number of samples."""
    seen = sorted({n for points in curves.values() for n, _ in points})
    by_name = {name: dict(points) for name, points in curves.items()}
    rows = [["samples", *curves], ["---"] * (1 + len(curves))]
    rows += [[f"{n:,}", *(f"{p[n]:.1f}" if n in p else "" for p in by_name.values())] for n in seen]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def picture(curves: Mapping[str, Points], size: tuple[int, int] = (720, 480)) -> NDArray[np.uint8]:
    """Curves as a picture (H, W, 3) uint8, both axes logarithmic: a power law is a straight line."""
    from PIL import Image, ImageDraw, ImageFont

    every = [point for points in curves.values() for point in points]
    x0, x1 = (math.log10(f(n for n, _ in every)) for f in (min, max))
    y0, y1 = math.log10(min(e for _, e in every) * 0.9), math.log10(max(e for _, e in every) * 1.1)
    left, top, right, bottom = 48, 24, size[0] - 16, size[1] - 40
    image = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default()

    def at(n: float, mm: float) -> tuple[float, float]:
        across = (math.log10(n) - x0) / max(x1 - x0, 1e-9)
        return left + (right - left) * across, bottom - (bottom - top) * (math.log10(mm) - y0) / (y1 - y0)

    for mm in (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 60, 100):
        if y0 <= math.log10(mm) <= y1:
            _, y = at(1, mm)
            pen.line([left, y, right, y], fill=(225, 225, 225))
            pen.text((left - 22, y - 6), str(mm), fill="black", font=font)
    for exponent in range(int(x0), int(x1) + 1):
        for n in (10**exponent, 2 * 10**exponent, 5 * 10**exponent):
            if x0 <= math.log10(n) <= x1:
                x, _ = at(n, 10)
                pen.line([x, top, x, bottom], fill=(225, 225, 225))
                pen.text((x - 12, bottom + 6), f"{n / 1e6:g} M", fill="black", font=font)
    pen.text((left, 6), "joint error on held-out samples, mm", fill="black", font=font)
    pen.text((right - 90, bottom + 22), "samples seen", fill="black", font=font)
    for i, (name, points) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        pen.line([at(n, mm) for n, mm in points], fill=colour, width=2)
        row = top + 4 + 16 * i
        pen.line([right - 210, row + 6, right - 190, row + 6], fill=colour, width=3)
        pen.text((right - 184, row), name[:30], fill="black", font=font)
    return np.asarray(image, np.uint8)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("logs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    try:
        names = told_apart([log.parent.name or log.stem for log in options.logs], options.logs)
        curves = {name: read_curve(log) for name, log in zip(names, options.logs, strict=True)}
        print(table(curves))
        if options.out:
            save_png(options.out, picture(curves))
    except (CurveError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
