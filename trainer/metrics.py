"""What is measured of predicted joints: small functions on arrays of millimetres, and one report made of them.

Joints are (N, J, 3) mm in the camera frame, N frames. A frame without a prediction is NaN: it counts as a failure in
every rate and is left out of every mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..hand.arrays import Array

PERCENTILES = (50, 90, 99)
WORST_MM = (20, 40)
THRESHOLDS_MM = np.arange(81)
STILL_MM = 1.0  # a frame whose true joints moved less than this on average, against the one before, stands still


def joint_errors(predicted_mm: Array, truth_mm: Array) -> Array:
    """Distance (N, J) mm of each joint (N, J, 3) to its truth."""
    return np.linalg.norm(predicted_mm - truth_mm, axis=-1)


def success_rate(frame_errors_mm: Array, thresholds_mm: Array = THRESHOLDS_MM) -> Array:
    """Share (T,) of the frames (N,) whose error lies below each threshold (T,)."""
    with np.errstate(invalid="ignore"):
        return (np.asarray(frame_errors_mm)[:, None] < np.asarray(thresholds_mm)[None]).mean(0)


def procrustes(predicted_mm: Array, truth_mm: Array) -> Array:
    """Each frame's prediction (N, J, 3) moved onto its truth by the best rotation, scale and shift (Umeyama 1991).

    What is left of the error is pose alone. A prediction whose joints all fall together keeps scale 0.
    """
    p0, t0 = predicted_mm.mean(1, keepdims=True), truth_mm.mean(1, keepdims=True)
    p, t = predicted_mm - p0, truth_mm - t0
    u, s, vt = np.linalg.svd(np.swapaxes(t, 1, 2) @ p)  # (N, 3, 3)
    flip = np.ones((len(p), 3))
    flip[:, 2] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * flip[:, None]) @ vt
    variance = (p**2).sum((1, 2))
    scale = np.divide((s * flip).sum(1), variance, out=np.zeros(len(p)), where=variance > 1e-12)
    return scale[:, None, None] * (p @ np.swapaxes(rotation, 1, 2)) + t0


def aligned_errors(predicted_mm: Array, truth_mm: Array) -> Array:
    """Joint errors (N, J) mm after `procrustes`; NaN for frames without a prediction."""
    found = np.isfinite(predicted_mm).all((1, 2))
    errors = np.full(predicted_mm.shape[:2], np.nan)
    errors[found] = joint_errors(procrustes(predicted_mm[found], truth_mm[found]), truth_mm[found])
    return errors


def still_jitter(predicted_mm: Array, truth_mm: Array, follows: Array) -> float | None:
    """How far, mm a frame, predicted joints move while the true ones stand still (`STILL_MM`).

    follows (N,) says which frames come right after the one before them. None if no such pair stands still.
    """
    moved = np.linalg.norm(np.diff(truth_mm, axis=0), axis=-1).mean(1)  # (N - 1,)
    still = np.asarray(follows, bool)[1:] & (moved < STILL_MM)
    jitter = np.linalg.norm(np.diff(predicted_mm, axis=0)[still], axis=-1).mean(1)
    jitter = jitter[np.isfinite(jitter)]
    return float(jitter.mean()) if len(jitter) else None


def bone_std(joints_mm: Array, bones: Sequence[tuple[int, int]], persons: Sequence[str]) -> float | None:
    """How much bones (pairs of joints) change their length from frame to frame of one person: standard deviation, mm.

    The mean over bones and over persons by their frames; None without bones or a person seen twice.
    """
    if not bones:
        return None
    a, b = np.array(bones).T
    lengths = np.linalg.norm(joints_mm[:, a] - joints_mm[:, b], axis=-1)  # (N, B)
    names = np.asarray(persons)
    total, frames = 0.0, 0
    for name in np.unique(names):
        mine = lengths[(names == name) & np.isfinite(lengths).all(1)]
        if len(mine) > 1:
            total, frames = total + len(mine) * float(mine.std(0).mean()), frames + len(mine)
    return total / frames if frames else None


def report(
    predicted_mm: Array,
    truth_mm: Array,
    names: Sequence[str],
    *,
    bones: Sequence[tuple[int, int]] = (),
    follows: Array | None = None,
    persons: Sequence[str] | None = None,
) -> dict[str, Any]:
    """All columns of joints (N, J, 3) mm, for the JSON; jitter, bones and persons only where they are given.

    Tips are the joints whose names end in `tip`.
    """
    errors = joint_errors(predicted_mm, truth_mm)  # (N, J)
    worst, mean = errors.max(1), errors.mean(1)
    found = np.isfinite(mean)
    seen = errors[found]
    result: dict[str, Any] = {"n": len(errors), "found": rounded(found.mean())}
    if not found.any():
        return result
    tips = [i for i, name in enumerate(names) if name.endswith("tip")]
    result["joint_mm"] = percentiles(seen)
    if tips:
        result["tips_mm"] = rounded(seen[:, tips].mean())
    result["pa_mm"] = rounded(np.nanmean(aligned_errors(predicted_mm, truth_mm)))
    rates = success_rate(worst, np.array(WORST_MM))
    result["worst_joint"] = {f"below_{mm}_mm": rounded(r) for mm, r in zip(WORST_MM, rates, strict=True)}
    if follows is not None and (jitter := still_jitter(predicted_mm, truth_mm, follows)) is not None:
        result["still_jitter_mm"] = rounded(jitter)
    if persons is not None and any(persons):
        if (spread := bone_std(predicted_mm, bones, persons)) is not None:
            result["bone_std_mm"] = rounded(spread)
        each = np.asarray(persons)
        result["per_person_mm"] = {str(p): rounded(np.nanmean(mean[each == p])) for p in np.unique(each[found])}
    result["per_joint_mm"] = {name: rounded(e) for name, e in zip(names, seen.mean(0), strict=True)}
    result["success"] = {
        "below_mm": THRESHOLDS_MM.tolist(),
        "worst_joint": [rounded(x) for x in success_rate(worst)],
        "mean_joint": [rounded(x) for x in success_rate(mean)],
    }
    return result


def percentiles(errors_mm: Array) -> dict[str, float]:
    """Mean and percentiles over all numbers given."""
    return {
        "mean": rounded(np.mean(errors_mm)),
        **{f"p{p}": rounded(np.percentile(errors_mm, p)) for p in PERCENTILES},
    }


def rounded(x: Any) -> float:
    return round(float(x), 4)


def told_apart(names: Sequence[str], files: Sequence[Path]) -> list[str]:
    """A name for each file; its path where two have one name."""
    return [str(file) if names.count(name) > 1 else name for name, file in zip(names, files, strict=True)]


COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (255, 127, 14), (148, 103, 189), (140, 86, 75), (0, 0, 0))


def success_picture(curves: Mapping[str, Array], title: str, size: tuple[int, int] = (640, 480)) -> NDArray[np.uint8]:
    """Success rates (T,) over `THRESHOLDS_MM`, one line a name, as a picture (H, W, 3) uint8."""
    from PIL import Image, ImageDraw, ImageFont

    left, top, right, bottom = 48, 30, size[0] - 14, size[1] - 40
    image = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default()

    def at(mm: float, share: float) -> tuple[float, float]:
        return left + (right - left) * mm / float(THRESHOLDS_MM[-1]), bottom - (bottom - top) * share

    for tenth in range(0, 11, 2):
        pen.line([at(0, tenth / 10), at(80, tenth / 10)], fill=(225, 225, 225))
        pen.text((left - 40, at(0, tenth / 10)[1] - 6), f"{10 * tenth:>3} %", fill="black", font=font)
    for mm in range(0, 81, 10):
        pen.line([at(mm, 0), at(mm, 1)], fill=(225, 225, 225))
        pen.text((at(mm, 0)[0] - 6, bottom + 6), str(mm), fill="black", font=font)
    pen.text((left, 8), title, fill="black", font=font)
    pen.text((right - 150, bottom + 22), "error below, mm", fill="black", font=font)
    for i, (name, rates) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        points = [at(float(mm), float(rate)) for mm, rate in zip(THRESHOLDS_MM, rates, strict=True)]
        pen.line(points, fill=colour, width=2)
        row = bottom - 16 * (len(curves) - i) - 4
        pen.line([right - 210, row + 6, right - 190, row + 6], fill=colour, width=3)
        pen.text((right - 184, row), name[:30], fill="black", font=font)
    return np.asarray(image, np.uint8)
