"""One thing that the doctor looked at, and what mends it; several as text."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Level = Literal["ok", "warn", "bad"]


class Finding(NamedTuple):
    """One thing that was looked at. mend is the command, or the act, that puts it right."""

    level: Level
    about: str
    said: str
    mend: str = ""


def lines(findings: list[Finding]) -> str:
    """A line a finding, and below it what mends it."""
    text = []
    for finding in findings:
        text.append(f"{'[' + finding.level + ']':<7}{finding.about}: {finding.said}")
        if finding.mend:
            text.append(f"       -> {finding.mend}")
    counts: dict[str, Any] = {level: sum(f.level == level for f in findings) for level in ("ok", "warn", "bad")}
    return "\n".join([*text, f"{counts['ok']} well, {counts['warn']} to look at, {counts['bad']} bad"])
