"""A result as lines of text, and several as a table of devices."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...hand.whole import read_json, refusal, write_whole
from . import BenchError

BEGIN, END = "<!-- edge-hand bench merge -->", "<!-- end of bench merge -->"
SILENT_S = 1.0  # at the end, which is told
COLUMNS = (
    "device", "engine, model", "FPS flat out", "p50 ms", "p99 ms", "at the sensor's rate", "CPU", "MB", "watts",
    "start s", "x MediaPipe", "when",
)  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result as lines of text."""
    lines = [f"{'stage':<9}{'p50':>10}{'p95':>10}{'p99':>10}  us"]
    for stage, p in result["stages_us"].items():
        lines.append(f"{stage:<9}{p['p50']:>10.0f}{p['p95']:>10.0f}{p['p99']:>10.0f}")
    lines.append(
        f"{result['fps']:.1f} frames a second over {result['frames']} frames, a hand in {result['tracked']}, "
        f"dropped {result['dropped']}, missed by the subscriber {result['subscriber'].get('missing', '?')}"
    )
    paced = result.get("at_rate")
    if paced:
        p50, p99 = (paced["stages_us"]["total"][p] * 1e-3 for p in ("p50", "p99"))
        lines.append(
            f"at {result['camera']['fps']:g} Hz: capture to publish p50 {p50:.2f} ms, p99 {p99:.2f}, worst "
            f"{paced['worst_us'] * 1e-3:.1f}; {paced['fps']:.1f} a second over {paced['frames']} frames, "
            f"dropped {paced['dropped']}"
        )
    use = paced or result
    if use["silent_s"] > SILENT_S:
        lines.append(f"the camera fell silent: no frame could be used in the last {use['silent_s']:.0f} s")
    watts = use["watts"]
    lines.append(
        (f"CPU {use['cpu_percent']:.0f} % of a core; " if "cpu_percent" in use else "")
        + f"memory {_resident(use):.0f} MB, grew by {use['memory_mb']['growth']:.1f} MB; "
        + (f"{watts:.1f} W ({use['watts_source']})" if watts else use["watts_source"])
    )
    if "startup_s" in result:
        lines.append(f"start to first message {result['startup_s']:.2f} s")
    if "startup_failed" in result:
        lines.append(f"start to first message: not measured, {result['startup_failed']}")
    if "compare" in result:
        other = result["compare"]
        lines.append(
            f"{other['name']}: p50 {other['p50_ms']:.2f} ms, ours {other['ours_p50_ms']:.2f} ms in the same run: "
            f"{other['times_faster']:.1f} times faster; processor time {other['cpu_p50_ms']:.2f} and "
            f"{other['ours_cpu_p50_ms']:.2f} ms: {other['times_less_cpu']:.1f} times less"
        )
    device, model = result["device"], result["model"]
    arithmetic = "; the rest is compiled" if result.get("arithmetic") == "compiled" else ""
    lines.append(f"{result['engine']}, {model['name']} ({model['precision']}, {model['sha256'][:12]}){arithmetic}")
    where = [
        device["board"],
        device["cpu"],
        f"{device['cores_allowed']} of {device['cores']} cores",
        device["power_mode"],
    ]
    lines.append(", ".join(part for part in where if part) + f"; load {result['load']:g}")
    return "\n".join(lines)


def merge(paths: Iterable[Path]) -> str:
    """Results as a Markdown table, the fastest first; of those of one machine, engine and network the last. Raises
    BenchError."""
    last = {tuple(row(result)[:2]): result for result in map(load, paths)}
    results = sorted(last.values(), key=lambda result: -float(result["fps"]))
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row(result))} |" for result in results)])


def row(result: dict[str, Any]) -> list[str]:
    device, total = result["device"], result["stages_us"]["total"]
    paced, compared = result.get("at_rate"), result.get("compare")
    use = paced or result
    named = ", ".join(p for p in (device["board"], device["cpu"], device["power_mode"]) if p)
    rate = (
        f"{paced['fps']:.1f} of {result['camera']['fps']:g} Hz, p99 {_ms(paced['stages_us']['total']['p99'])}"
        if paced
        else ""
    )
    cells = [
        f"{named}, {device['cores_allowed']} of {device['cores']} cores",
        f"{result['engine']}; {result['model']['name']} ({result['model']['precision']})",
        f"{result['fps']:.0f}" if result["camera"]["flat_out"] else "",
        _ms(total["p50"]),
        _ms(total["p99"]),
        rate,
        f"{use['cpu_percent']:.0f} %" if "cpu_percent" in use else "",
        f"{_resident(use):.0f}",
        f"{use['watts']:.1f}" if use["watts"] is not None else "",
        f"{result['startup_s']:.2f}" if "startup_s" in result else "",
        f"{compared['times_faster']:.1f}" if compared else "",
        result["when"].split()[0],
    ]
    return [" ".join(cell.replace("|", "/").split()) for cell in cells]  # what a board calls itself may hold anything


def load(path: Path) -> dict[str, Any]:
    """A result that `edge-hand bench --json` wrote. Raises BenchError."""
    try:
        result = read_json(path)
    except (OSError, ValueError) as error:
        why = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "it is not JSON"
        raise BenchError(f"bench merge {path}: {why}") from None
    wanted = ("stages_us", "fps", "device", "engine", "model", "camera", "memory_mb", "when")
    missing = [name for name in wanted if not isinstance(result, dict) or name not in result]
    if missing:
        raise BenchError(f"bench merge {path}: not a result of edge-hand bench --json (no {missing[0]})")
    try:
        "".join(row(result)).encode()
        if not math.isfinite(result["fps"]):
            raise ValueError(f"fps {result['fps']}")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        why = " ".join(str(error).split())[:80]
        raise BenchError(f"bench merge {path}: a damaged result of edge-hand bench --json ({why})") from None
    return result  # type: ignore[no-any-return]


def merge_into(page: Path, text: str) -> int:
    """Put the table where the page has its place for it, between two comments, with the rows that stand there of other
    machines, engines and networks; how many these are. Raises BenchError."""
    try:
        before, _, rest = page.read_text("utf-8").partition(BEGIN)
    except OSError as error:
        raise BenchError(f"bench merge: {page}: {refusal(error)}") from None
    except UnicodeDecodeError:
        raise BenchError(f"bench merge: {page} is no text in UTF-8") from None
    there, found, after = rest.partition(END)
    if not found:
        raise BenchError(f"bench merge: {page} has no place for the table; add {BEGIN} and {END}")
    head, rule, *fresh = text.splitlines()
    old = [line for line in there.splitlines() if line.startswith("|")]
    if old and old[0] != head:
        raise BenchError(f"bench merge: the table in {page} has other columns; mend or remove it first")
    replaced = {_cells(row)[:2] for row in fresh}
    kept = [row for row in old[2:] if _cells(row)[:2] not in replaced]
    rows = sorted([*fresh, *kept], key=_slowness)
    write_text("\n".join([before + BEGIN, head, rule, *rows, END + after]), page)
    return len(kept)


def _cells(row: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in row.strip().strip("|").split("|"))


def _slowness(row: str) -> float:
    """What rows are sorted by: the fastest first, those without a rate flat out last."""
    try:
        return -float(_cells(row)[COLUMNS.index("FPS flat out")])
    except (ValueError, IndexError):
        return 0.0


def write_text(text: str, path: Path) -> None:
    """Raises BenchError."""
    try:
        write_whole(path, text)
    except OSError as error:
        raise BenchError(f"bench: {path} cannot be written: {refusal(error)}") from None


def _resident(use: dict[str, Any]) -> float:
    """MB, without the frames that the bench holds."""
    memory = use["memory_mb"]
    return float(memory["end"].get("rss", 0) - memory.get("frames", 0))


def _ms(us: float) -> str:
    return f"{us * 1e-3:.2f}"
