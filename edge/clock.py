"""Where the loop's times are from: the host's clocks or, in a deterministic replay, the recording's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Clock(NamedTuple):
    """monotonic_ns and unix_ns tell the time, ns. Where `measures` is False what a stage costs is not known either:
    nothing that is published depends on the machine's speed or its clocks."""

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    unix_ns: Callable[[], int] = time.time_ns
    measures: bool = True


HOST = Clock()
