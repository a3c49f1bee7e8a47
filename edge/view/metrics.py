"""Prometheus metrics of a running loop, in the text format 0.0.4, served over HTTP to whoever scrapes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np

from ...hand.messages import StatusState
from .http_server import Handler, LocalServer, ServeError, local_address

if TYPE_CHECKING:
    from ..loop import Loop

QUANTILES = (0.5, 0.9, 0.99)
WINDOW = 1000  # frames that the quantiles are taken over
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[str, dict[str, str], float]  # what follows the family's name, labels, value


class _Counts(NamedTuple):
    """What the loop had counted at one moment."""

    frames: int = 0
    dropped: int = 0
    bad_frames: int = 0
    hands: int = 0
    refused: int = 0


class Metrics:
    """A Minder that keeps what a scrape asks for, and the server that answers scrapes in threads of its own.

    address is HOST:PORT, or PORT on this machine; beyond this machine it needs insecure. loop() gives the running
    loop; it is not called before the first status. Raises ServeError.
    """

    def __init__(self, address: str, loop: Callable[[], Loop], *, insecure: bool = False) -> None:
        host, port = check_metrics(address, insecure)
        self._loop = loop
        self._begun_s = time.monotonic()
        self._state: StatusState = "starting"
        self._fps = 0.0
        self._counts = _Counts()
        self._labels: dict[str, str] = {}
        self._info: dict[str, str] = {}
        self._recent: deque[dict[str, float]] = deque(maxlen=WINDOW)  # s of each stage, and total
        self._sums_s: dict[str, float] = {}
        self._seen = 0
        self._server = LocalServer(host, port, _handler(self.text), "--metrics")
        self.url = self._server.url + "metrics"
        self._server.start()

    def frame(self) -> None:
        """A frame was tracked and published: copy its numbers."""
        loop = self._loop()
        seconds = {name: us * 1e-6 for name, us in loop.tracker.stages_us.items()} | {"total": loop.total_us * 1e-6}
        self._recent.append(seconds)
        for name, s in seconds.items():
            self._sums_s[name] = self._sums_s.get(name, 0.0) + s
        self._seen += 1
        self._count(loop)

    def status(self, state: StatusState, message: str) -> None:
        """A status was published."""
        loop = self._loop()
        card = loop.tracker.engine.card
        self._labels = {"camera": loop.camera.name}
        self._info = {"engine": loop.tracker.engine.name, "model": f"{card.name} {card.sha256[:12]}"}
        self._state, self._fps = state, loop.fps
        self._count(loop)

    def text(self) -> str:
        """The metrics now, as a scrape gets them."""
        return "".join(self._families())

    def close(self) -> None:
        """Stop answering."""
        self._server.server_close()

    def _count(self, loop: Loop) -> None:
        totals, hands = loop.totals, sum(track.published for track in loop.tracker.tracks)
        self._counts = _Counts(totals.frames, totals.dropped, totals.bad_frames, hands, loop.publisher.dropped)

    def _families(self) -> Iterator[str]:
        counts, one = self._counts, self._one
        yield one("frames_total", "counter", "Frames tracked and published.", counts.frames)
        yield one("frames_dropped_total", "counter", "Frames skipped for a newer one.", counts.dropped)
        yield one("frames_bad_total", "counter", "Frames that could not be used.", counts.bad_frames)
        yield one("messages_refused_total", "counter", "Messages that the socket would not take.", counts.refused)
        yield one("hands", "gauge", "Hands published in the last frame.", counts.hands)
        yield one("fps", "gauge", "Frames a second of late, as of the last status.", self._fps)
        yield one("uptime_seconds", "gauge", "Since the daemon started.", time.monotonic() - self._begun_s)
        states = [("", {"state": state}, float(state == self._state)) for state in get_args(StatusState)]
        yield self._family("state", "gauge", "1 for the state of the last status, 0 for the others.", states)
        yield self._family("info", "gauge", "What computes.", [("", self._info, 1.0)])
        sums, seen, recent = dict(self._sums_s), self._seen, list(self._recent)  # a sum has its frame
        total_s = sums.pop("total", None)
        stages = [s for name, sum_s in sums.items() for s in _summary(recent, name, sum_s, seen, {"stage": name})]
        yield self._family("stage_seconds", "summary", f"Time of a stage, over {WINDOW} frames.", stages)
        total = [] if total_s is None else _summary(recent, "total", total_s, seen, {})
        yield self._family("latency_seconds", "summary", f"Capture to sent, over {WINDOW} frames.", total)

    def _one(self, name: str, kind: str, what: str, value: float) -> str:
        return self._family(name, kind, what, [("", {}, value)])

    def _family(self, name: str, kind: str, what: str, samples: Sequence[Sample]) -> str:
        lines = [f"# HELP edge_hand_{name} {what}", f"# TYPE edge_hand_{name} {kind}"]
        for suffix, labels, value in samples:
            pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in {**self._labels, **labels}.items())
            lines.append(f"edge_hand_{name}{suffix}{{{pairs}}} {value:.12g}")
        return "\n".join(lines) + "\n"


def _summary(
    recent: Sequence[dict[str, float]], name: str, sum_s: float, seen: int, labels: dict[str, str]
) -> list[Sample]:
    values = np.quantile([seconds.get(name, 0.0) for seconds in recent], QUANTILES)
    quantiles = [("", {**labels, "quantile": str(q)}, float(v)) for q, v in zip(QUANTILES, values, strict=True)]
    return [*quantiles, ("_sum", labels, sum_s), ("_count", labels, float(seen))]


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def check_metrics(address: str, insecure: bool = False) -> tuple[str, int]:
    """Host and port of an address that may be served. Raises ServeError."""
    host, _, port = address.rpartition(":")
    if not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ServeError(f"--metrics {address}: expected [HOST:]PORT, for example 127.0.0.1:9100")
    return local_address("--metrics", host, int(port), insecure), int(port)


def _handler(text: Callable[[], str]) -> type[Handler]:
    class Scrape(Handler):
        def get(self, path: str) -> None:
            if path in ("/", "/metrics"):
                self.answer(200, CONTENT_TYPE, text().encode())
            else:
                self.answer(404, "text/plain", b"the metrics are at /metrics\n")

    return Scrape
