"""Latency over time as an SVG: the median and the worst frame of every step, against the sensor's period."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from . import BenchError
from .report import write_text

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 34, 40
MEDIAN, WORST, LIMIT, INK = "#1f6fb2", "#e2a33b", "#b23a2f", "#444"

HALO = 'stroke="white" stroke-width="3" paint-order="stroke"'


def draw(result: dict[str, Any]) -> str:
    """The chart of a result at the sensor's rate, or flat out where there is no other. Raises BenchError."""
    part = result.get("at_rate", result)
    course = part.get("over_time")
    if not course:
        raise BenchError("bench: no latency over time was measured; leave --compare out, or add --at-rate")
    at_rate = part is not result or not result["camera"]["flat_out"]
    period_ms = 1e3 / result["camera"]["fps"] if at_rate else None
    most_s = max(course["s"][-1], 1e-3)
    most_ms = _nice(max(*course["worst_ms"], period_ms or 0.0) * 1.05)
    where = f"at {result['camera']['fps']:g} Hz" if at_rate else "flat out"
    title = f"capture to publish {where}: {result['engine']}, {result['device']['cpu']}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 18, title, size=13),
    ]
    for k in range(5):
        ms, s = most_ms * k / 4, most_s * k / 4
        y, x = _y(ms, most_ms), _x(s, most_s)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        lines.append(_text(LEFT - 6, y + 4, f"{ms:g} ms", anchor="end"))
        lines.append(_text(x, HEIGHT - BOTTOM + 16, f"{s:.3g} s", anchor="middle"))
    if period_ms:
        y = _y(period_ms, most_ms)
        lines.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="{LIMIT}" stroke-dasharray="5 3"/>'
        )
        lines.append(_text(WIDTH - RIGHT, y - 4, f"a frame every {period_ms:.1f} ms", anchor="end", ink=LIMIT))
    for values, ink, width in ((course["worst_ms"], WORST, 1.0), (course["median_ms"], MEDIAN, 1.8)):
        points = " ".join(f"{_x(s, most_s)},{_y(ms, most_ms)}" for s, ms in zip(course["s"], values, strict=True))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{ink}" stroke-width="{width}"/>')
    stages = part["stages_us"]["total"]
    figures = ", ".join(f"{name} {stages[name] * 1e-3:.2f}" for name in ("p50", "p95", "p99"))
    legend = f"median (blue) and worst frame (yellow) of each step; {figures} ms; {part['dropped']} frames lost"
    lines += [_text(LEFT, HEIGHT - 6, legend), "</svg>"]
    return "\n".join(lines) + "\n"


def write_chart(result: dict[str, Any], path: Path) -> None:
    """Raises BenchError."""
    if path.suffix != ".svg":
        raise BenchError(f"bench: --plot {path}: the picture is an SVG; call it {path.with_suffix('.svg').name}")
    write_text(draw(result), path)


def _x(s: float, most: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * s / most, 1)


def _y(ms: float, most: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * ms / most, 1)


def _nice(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 6, 8, 10, 15 ... above."""
    ten = 10.0 ** math.floor(math.log10(max(value, 1e-6)))
    steps: Sequence[float] = (1, 1.5, 2, 3, 4, 6, 8, 10)
    return next(step * ten for step in steps if step * ten >= value)


def _text(x: float, y: float, text: str, *, size: int = 11, anchor: str = "start", ink: str = INK) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{ink}" {HALO}>{escape(text)}</text>'
