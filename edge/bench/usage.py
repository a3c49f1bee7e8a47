"""What a process takes while it works: memory, processor time, and watts where the board tells."""

from __future__ import annotations

import os
import re
import resource
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..machine.board import ROOT, power, read

EVERY_S = 1.0


def memory_mb(proc: Path = ROOT / "proc/self") -> dict[str, float]:
    """Resident memory, and the proportional share of it (what is shared counts by halves), MB; without those that the
    kernel does not tell."""
    found = {}
    for name, file, field in (("rss", "status", "VmRSS"), ("pss", "smaps_rollup", "Pss")):
        match = re.search(rf"^{field}:\s*(\d+) kB", read(proc / file), re.MULTILINE)
        if match:
            found[name] = round(int(match[1]) / 1024, 1)
    return found


class Usage:
    """Looks once a second while `with Usage() as usage` lasts; `usage.result()` after it."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._over = threading.Event()
        self._watts: list[float] = []
        self._rss: list[float] = []

    def __enter__(self) -> Usage:
        self._start = memory_mb()
        self._begun, self._cpu = time.perf_counter(), time.process_time()
        self._switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds = time.perf_counter() - self._begun
        self._cpu = time.process_time() - self._cpu
        self._switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - self._switches
        self._end = memory_mb()
        self._over.set()
        self._thread.join()

    def result(self) -> dict[str, Any]:
        """cpu_percent of one core; memory in MB at start and end, its growth and its peak; watts over the time, and
        where they come from; preempted: how often a second something else was given the core."""
        start, end = self._start, self._end
        return {
            "cpu_percent": round(100 * self._cpu / max(self._seconds, 1e-9), 1),
            "preempted_a_second": round(self._switches / max(self._seconds, 1e-9), 1),
            "memory_mb": {
                "start": start,
                "end": end,
                "growth": round(end.get("rss", 0) - start.get("rss", 0), 1),
                "peak_rss": max([start.get("rss", 0), end.get("rss", 0), *self._rss]),
            },
            "watts": round(float(np.mean(self._watts)), 2) if self._watts else None,
            "watts_source": self._source,
        }

    def _look(self) -> None:
        first = power(self._root, 0.2)
        self._source = first.source
        ask = first.watts is not None
        while not self._over.wait(0 if ask and not self._watts else EVERY_S):
            self._rss.append(memory_mb().get("rss", 0.0))
            now = power(self._root, EVERY_S / 2) if ask else first
            if now.watts is not None:
                self._watts.append(now.watts)


def load() -> float:
    """Processes that want to run, on average over the last minute: a busy machine measures itself slow."""
    return round(os.getloadavg()[0], 2)
