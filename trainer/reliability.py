"""Whether confidence means what it says: constants fitted to measured errors, and a table of promise against fact.

python -m edge_hand.trainer.reliability test.json --out confidence.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..edge.confidence import RADIUS_M, Calibration, features, joint_confidence
from ..edge.draw import save_png
from ..hand.arrays import Array
from .logistic import fit
from .metrics import COLOURS, rounded, told_apart

BINS = 10
RIDGE = 1e-3  # keeps a constant that no sample tells apart at 0


class ReliabilityError(Exception):
    """A result without a table, in one line."""


def fit_calibration(expected_m: Array, visible: Array, within: Array) -> Calibration:
    """The constants under which what was seen is most likely: logistic regression.

    expected_m (N, 21) m by the network, visible (N, 21) in -1, 0, 1, within (N, 21) bool.
    """
    x = features(expected_m, visible).reshape(-1, 3)
    y = np.asarray(within, np.float64).ravel()
    return Calibration(*(rounded(c) for c in fit(x, y, RIDGE)))


def reliability(confidence: Array, within: Array) -> dict[str, Any]:
    """Ten bins of equal width over confidences (any shape): how many, their mean, and the share within the radius.

    ece is the expected calibration error (Guo et al. 2017, eq. 3): the mean gap of the two, by number.
    """
    p, y = np.asarray(confidence, np.float64).ravel(), np.asarray(within, bool).ravel()
    which = np.minimum((p * BINS).astype(int), BINS - 1)
    bins, gap = [], 0.0
    for b in range(BINS):
        mine = which == b
        if n := int(mine.sum()):
            promised, kept = float(p[mine].mean()), float(y[mine].mean())
            bins.append({"from": b / BINS, "n": n, "confidence": rounded(promised), "within": rounded(kept)})
            gap += n / len(p) * abs(promised - kept)
    return {"ece": rounded(gap), "bins": bins}


def confidence_report(expected_m: Array, visible: Array, errors_m: Array) -> dict[str, Any]:
    """For the JSON of `edge-hand eval`: constants fitted on every second hand, and their reliability on the others.

    expected_m, visible and errors_m are (N, 21), N at least 2.
    """
    within = errors_m < RADIUS_M
    calibration = fit_calibration(expected_m[::2], visible[::2], within[::2])
    held_out = slice(1, None, 2)
    confidence = joint_confidence(expected_m[held_out], visible[held_out], calibration)
    kept, seen = within[held_out], visible[held_out]
    return {
        "hands": len(errors_m),
        "radius_mm": RADIUS_M * 1e3,
        "calibration": list(calibration),
        **reliability(confidence, kept),
        "within": {
            name: {"share": rounded((seen == v).mean()), "within": rounded(kept[seen == v].mean())}
            for name, v in (("seen", 1), ("hidden", 0), ("unknown", -1))
            if (seen == v).any()
        },
    }


def picture(tables: Mapping[str, dict[str, Any]], size: tuple[int, int] = (480, 480)) -> NDArray[np.uint8]:
    """Confidence against the share that kept it, a line a table, a picture (H, W, 3) uint8; dots grow with number."""
    from PIL import Image, ImageDraw, ImageFont

    left, top, right, bottom = 50, 30, size[0] - 14, size[1] - 40
    image = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default()

    def at(promised: float, kept: float) -> tuple[float, float]:
        return left + (right - left) * promised, bottom - (bottom - top) * kept

    for tenth in range(0, 11, 2):
        share = tenth / 10
        pen.line([at(0, share), at(1, share)], fill=(225, 225, 225))
        pen.line([at(share, 0), at(share, 1)], fill=(225, 225, 225))
        pen.text((left - 40, at(0, share)[1] - 6), f"{10 * tenth:>3} %", fill="black", font=font)
        pen.text((at(share, 0)[0] - 8, bottom + 6), f"{share:g}", fill="black", font=font)
    pen.line([at(0, 0), at(1, 1)], fill=(160, 160, 160))
    pen.text((left, 8), f"joints within {RADIUS_M * 1e3:g} mm of the truth", fill="black", font=font)
    pen.text((right - 70, bottom + 22), "confidence", fill="black", font=font)
    for i, (name, table) in enumerate(tables.items()):
        colour = COLOURS[i % len(COLOURS)]
        points = [at(b["confidence"], b["within"]) for b in table["bins"]]
        total = sum(b["n"] for b in table["bins"])
        pen.line(points, fill=colour, width=2)
        for (x, y), b in zip(points, table["bins"], strict=True):
            r = 2 + 10 * (b["n"] / total) ** 0.5
            pen.ellipse([x - r, y - r, x + r, y + r], outline=colour, width=2)
        pen.text((left + 8, top + 6 + 16 * i), f"{name}: off by {100 * table['ece']:.1f} %", fill=colour, font=font)
    return np.asarray(image, np.uint8)


def read_table(file: Path) -> dict[str, Any]:
    """What `edge-hand eval --data synthetic:test --json` says of confidence."""
    try:
        table: dict[str, Any] = json.loads(file.read_text())["confidence"]
        table["bins"][0]["within"], table["ece"]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise ReliabilityError(
            f"{file}: no table of confidence; `edge-hand eval --data synthetic:test --json` writes one"
        ) from None
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="JSON files of edge-hand eval --data synthetic:test")
    parser.add_argument("--out", type=Path, help="PNG of confidence against fact")
    options = parser.parse_args(arguments)
    try:
        names = told_apart([file.stem for file in options.results], options.results)
        tables = {name: read_table(file) for name, file in zip(names, options.results, strict=True)}
        for name, table in tables.items():
            print(f"{name}: constants {table['calibration']}, expected calibration error {table['ece']}")
            for b in table["bins"]:
                print(f"  {b['from']:.1f}  n {b['n']:>6}  confidence {b['confidence']:.3f}  within {b['within']:.3f}")
        if options.out:
            save_png(options.out, picture(tables))
    except (ReliabilityError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
