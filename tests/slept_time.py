"""Time that only sleeping spends, for what goes by times: a machine that is busy or stops costs none of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from types import ModuleType
from typing import Any

import pytest
from edge_hand.edge import pace
from edge_hand.edge.cameras import faulty, synthetic


class SleptTime:
    """In place of `time`."""

    now_ns = 10**12

    def monotonic_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns * 1e-9

    def time_ns(self) -> int:
        return self.now_ns + 10**18

    def sleep(self, seconds: float) -> None:
        self.now_ns += math.ceil(seconds * 1e9)


def slept_time(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> SleptTime:
    """The time of the faulty and the synthetic camera, whose frames take none to draw, and of these modules."""
    clock = SleptTime()
    for module in (pace, faulty, synthetic, *modules):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(synthetic.SyntheticCamera, "_wait", lambda camera, _: camera._next.result(60))
    return clock


class Worker:
    """In place of the thread that reads a camera: what it does is done at once, and is over when that time has come."""

    def __init__(self, clock: SleptTime) -> None:
        self.clock, self.free_ns, self.thread = clock, clock.now_ns, self

    def do(self, job: Callable[[], Any]) -> Done:
        now_ns, done = self.clock.now_ns, Done(self.clock)
        self.clock.now_ns = max(now_ns, self.free_ns)
        try:
            done.set_result(job())
        except Exception as error:
            done.set_exception(error)
        self.free_ns = done.at_ns = self.clock.now_ns
        self.clock.now_ns = now_ns
        return done

    def leave(self, last: Callable[[], None]) -> None:
        self.do(last)

    def is_alive(self) -> bool:
        return self.clock.now_ns < self.free_ns

    def join(self, timeout_s: float) -> None:
        pass


class Done(Future[Any]):
    """Of a worker's job: its result, from a certain time on."""

    def __init__(self, clock: SleptTime) -> None:
        super().__init__()
        self.clock, self.at_ns = clock, 0

    def result(self, timeout: float | None = None) -> Any:
        wait_ns = self.at_ns - self.clock.now_ns
        if timeout is not None and wait_ns > timeout * 1e9:
            self.clock.sleep(timeout)
            raise NotYet
        self.clock.now_ns += max(0, wait_ns)
        return super().result(0)
