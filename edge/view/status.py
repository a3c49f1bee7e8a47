"""How running daemons fare, as their messages tell it: `edge-hand status`, and the panel of `edge-hand view`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...hand.messages import JointsMessage, Message, StatusMessage, TopologyMessage, WireError
from ..client import QUEUE, Subscription, forbidden, subscribe

LISTEN_S, GIVE_UP_S, POLL_S = 1.2, 3.0, 0.005
WINDOW_S = 1.0  # over which medians are taken
STARTING_S = 10.0  # a daemon may take so long to its first frame
OK, UNREACHABLE, STALLED = 0, 1, 3  # exit codes


@dataclass(eq=False)
class Fare:
    """One camera of one address: feed it its messages with the time they came, seconds of time.monotonic()."""

    address: str
    camera: str
    status: StatusMessage | None = None
    joints: JointsMessage | None = None
    heard_s: float = float("-inf")
    _captured_s: float = float("-inf")  # of the newest frame, by this machine's clock
    _recent: deque[tuple[float, JointsMessage]] = field(default_factory=deque)

    def take(self, message: Message, now_s: float) -> None:
        """Take a message of this camera."""
        if isinstance(message, TopologyMessage):
            return
        self.heard_s = now_s
        if isinstance(message, JointsMessage):
            self.joints = message
            self._recent.append((now_s, message))
            self._captured_s = now_s - message.latency_ms * 1e-3
        elif isinstance(message, StatusMessage):
            self.status = message
            if self.joints is None and message.seq >= 0:
                self._captured_s = now_s - message.latency_ms * 1e-3
        while self._recent and self._recent[0][0] < now_s - WINDOW_S:
            self._recent.popleft()

    def copy(self) -> Fare:
        """As it is now, for another thread."""
        return replace(self, _recent=self._recent.copy())

    def age_ms(self, now_s: float) -> float | None:
        """Since the newest frame was captured; None before the first one. Clocks of two machines are not compared."""
        return None if self._captured_s == float("-inf") else (now_s - self._captured_s) * 1e3

    @property
    def latency_ms(self) -> float | None:
        """Capture to publication, median of the last second."""
        return float(np.median([m.latency_ms for _, m in self._recent])) if self._recent else None

    @property
    def stages_ms(self) -> dict[str, float]:
        """Where the time goes, median of each stage over the last second."""
        names = dict.fromkeys(name for _, m in self._recent for name in m.stages_us)
        return {n: float(np.median([m.stages_us.get(n, 0.0) for _, m in self._recent])) * 1e-3 for n in names}

    @property
    def is_stalled(self) -> bool:
        """No frames come. A hand that is lost is no fault of the camera."""
        if self.status is None:
            return False
        slow_start = self.status.state == "starting" and self.status.uptime_s > STARTING_S
        return self.status.state in ("stalled", "stopping") or slow_start

    def as_dict(self, now_s: float) -> dict[str, Any]:
        """All of it, as JSON has it; what is not known is None."""
        status, joints = self.status, self.joints
        names = ("state", "fps", "frames", "dropped", "bad_frames", "engine", "model", "uptime_s", "message")
        return {
            "address": self.address,
            "camera": self.camera,
            **{name: getattr(status, name, None) for name in names},
            "age_ms": self.age_ms(now_s),
            "latency_ms": self.latency_ms,
            "stages_ms": self.stages_ms,
            "hands": [
                {"id": h.id, "side": h.side, "state": h.state, "score": h.score, "fit_mm": h.fit_mm}
                for h in (joints.hands if joints and self._recent else ())
            ],
        }


def listen(
    addresses: Sequence[str], keys: Path | None = None, *, listen_s: float = LISTEN_S, give_up_s: float = GIVE_UP_S
) -> tuple[list[Fare], dict[str, str]]:
    """What is heard at the addresses, and which of them are silent for give_up_s, with what is wrong with what came.

    Raises SubscribeError and KeysError. A message that is not the contract's counts as none.
    """
    wrong = dict.fromkeys(addresses, "")
    found: dict[str, dict[str, Fare]] = {address: {} for address in addresses}
    with ExitStack() as stack:
        subscriptions = {
            address: stack.enter_context(subscribe(address, ("joints", "status"), latest=False, timeout_s=0, keys=keys))
            for address in found
        }
        begun_s = time.monotonic()
        while not all(
            _heard_enough(fares.values(), time.monotonic() - begun_s, listen_s, give_up_s) for fares in found.values()
        ):
            time.sleep(POLL_S)  # once for all: those that are silent keep nobody from being heard in time
            for address, messages in subscriptions.items():
                wrong[address] = _take_all(messages, address, found[address]) or wrong[address]
    silent = {address: wrong[address] for address, fares in found.items() if not fares}
    return [fare for fares in found.values() for fare in fares.values()], silent


def _take_all(messages: Subscription, address: str, fares: dict[str, Fare]) -> str:
    """Give the cameras what came; what is wrong with the last message that could not be read."""
    wrong = ""
    for _ in range(QUEUE):
        try:
            message = next(messages)
        except TimeoutError:
            break
        except WireError as error:
            wrong = str(error)
            continue
        if not isinstance(message, TopologyMessage):
            fares.setdefault(message.camera, Fare(address, message.camera)).take(message, time.monotonic())
    return wrong


def _heard_enough(fares: Iterable[Fare], passed_s: float, listen_s: float, give_up_s: float) -> bool:
    known = [fare.status is not None for fare in fares]
    return passed_s >= (listen_s if known and all(known) else give_up_s)


def exit_code(fares: Sequence[Fare], silent: Collection[str]) -> int:
    """0 if all is well, 1 if an address is silent, 3 if a camera gives no frames."""
    if silent or not fares:
        return UNREACHABLE
    return STALLED if any(fare.is_stalled for fare in fares) else OK


def report(fares: Sequence[Fare], silent: Mapping[str, str], now_s: float, keys: Path | None = None) -> str:
    """One screen of text; silent is as of `listen`, keys are what was listened with."""
    to_these, or_keys = (" to these keys", "") if keys else ("", ", or --keys NAME.key_secret if it runs with --keys")
    blocks = ["\n".join(_lines(fare.as_dict(now_s))) for fare in fares]
    nothing = f"nothing answers{to_these}; start `edge-hand run` there, or give its --address{or_keys}"
    blocks += [f"{address}: {wrong or forbidden(address) or nothing}" for address, wrong in silent.items()]
    return "\n\n".join(blocks)


def _lines(f: dict[str, Any]) -> list[str]:
    if f["state"] is None:
        return [f"{f['camera']}  no status yet  ({f['address']})"]
    hands = ", ".join(f"{h['side']} {h['state']} {h['score']:.2f}" for h in f["hands"]) or "none"
    stages = "  ".join(f"{name} {ms:.2f}" for name, ms in f["stages_ms"].items()) or "no frames in the last second"
    return [
        f"{f['camera']}  {f['state']}  {f['fps']:.1f} fps  hands: {hands}",
        *([f"  says     {f['message']}"] if f["message"] else []),
        f"  frames   {f['frames']} done, {f['dropped']} dropped, {f['bad_frames']} unusable",
        f"  newest   {_ms(f['age_ms'])} old; {_ms(f['latency_ms'])} from capture to publication (median)",
        f"  stages   {stages}  (ms, median)",
        f"  computes {f['engine']}, {f['model']}; up {duration(f['uptime_s'])} at {f['address']}",
    ]


def _ms(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.1f} ms" if value < 1000 else duration(value * 1e-3)


def duration(seconds: float) -> str:
    """A time span in the two units that tell most."""
    s = int(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    return f"{s // 3600} h {s % 3600 // 60} min" if s < 86400 else f"{s // 86400} d {s % 86400 // 3600} h"
