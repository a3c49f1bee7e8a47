"""What a soak run's subscribers heard, and whether it was well."""

from __future__ import annotations

import contextlib
import re
import statistics
import threading
from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple

import zmq

from ...hand.messages import WireError
from ...hand.wire import JointsMessage, StatusMessage
from ..cameras.faulty import KINDS, Fault
from ..client import subscribe

GAP_S = 0.5  # silence on `joints` that a status message must explain
OLD_S = 1.0  # a pose published so long after its frame was captured was sent too late to be new
MARGIN_S = 0.05  # a frame may be exposed so long before a fault and be published in it, or in it and published after
BLIND = ("unplug", "stall", "hang", "reset", "freeze")
ANEW = ("unplug", "hang", "reset", "stall", "kill -9")  # after which the recording is shown from its beginning
EVIDENCE = {  # what the daemon's log says of a fault of the process
    "full disk": "recording ended, tracking goes on",
    "engine error": "failed: it was told to fail|back to .*it was told to fail",
    "clock set": "the wall clock was set by",
    "bad model": "reload: nothing was changed: model",
    "good model": "as it is now",
    "bad settings": "reload: nothing was changed: config",
    "settings": "reload: now hands",
}
GROWTH = 0.02  # of memory
LEAST_GROWTH_S = 600.0  # in less than this, memory is still finding its level


class Pose(NamedTuple):
    """A joints message, in a few numbers; times in s of CLOCK_MONOTONIC."""

    captured_s: float
    published_s: float
    tracked: bool
    joints: bytes  # as measured, of its hands


class Said(NamedTuple):
    """A status message."""

    published_s: float
    state: str
    message: str
    begun_s: float  # when its daemon was started


class Listeners:
    """Three subscribers in threads of their own: one keeps all it hears, one hardly reads, one comes and goes."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.poses: list[Pose] = []
        self.said: list[Said] = []
        self.visits = self.slow = self.garbled = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=one) for one in (self._normal, self._slow, self._visitor)]

    def __enter__(self) -> Listeners:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(5)

    def _normal(self) -> None:
        with subscribe(self.address, ["joints", "status"], latest=False, timeout_s=0.2) as messages:
            while not self._over.is_set():
                try:
                    message = next(messages)
                except TimeoutError:
                    continue
                except WireError:
                    self.garbled += 1
                    continue
                if isinstance(message, JointsMessage):
                    hands = [hand for hand in message.hands if hand.joints_raw_m is not None]
                    joints = b"".join(hand.joints_raw_m.tobytes() for hand in hands if hand.joints_raw_m is not None)
                    tracked = any(hand.state == "tracked" for hand in hands)
                    self.poses.append(Pose(message.t_capture_ns / 1e9, message.t_publish_ns / 1e9, tracked, joints))
                elif isinstance(message, StatusMessage):
                    published_s = message.t_publish_ns / 1e9
                    begun_s = published_s - message.uptime_s
                    self.said.append(Said(published_s, message.state, message.message, begun_s))

    def _slow(self) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.RCVHWM, 1)
            socket.linger = 0
            socket.subscribe("")
            socket.connect(self.address)
            while not self._over.wait(0.7):
                with contextlib.suppress(zmq.Again):
                    socket.recv_multipart(zmq.NOBLOCK)
                    self.slow += 1

    def _visitor(self) -> None:
        while not self._over.wait(0.01):
            with contextlib.suppress(TimeoutError), subscribe(self.address, ["joints", "mesh"], timeout_s=1.0) as come:
                next(come)
                self.visits += 1
            self._over.wait(1.0)


def judge(
    planned: list[Fault],
    heard: Listeners,
    memory: list[tuple[float, float]],
    died: list[str],
    log: str,
    recovery_s: float,
    begin_s: float,
    end_s: float,
) -> dict[str, Any]:
    """The verdict as plain values; the daemon must be up from begin_s to end_s."""
    poses = heard.poses
    faults = [_fault(fault, poses) for fault in planned]
    missed = _missed(planned, log)
    stale = stale_poses(planned, poses)
    silent = unexplained(poses, heard.said, begin_s, end_s)
    late = [f for f in faults if f["kind"] in KINDS and not f["recovery_s"] <= recovery_s]
    growth, watched_s = memory_growth(memory, planned)
    series = [(round(t - begin_s), mb) for t, mb in memory[:: max(1, len(memory) // 60)]]
    passed = not died and not stale and not silent and not late and not missed and not heard.garbled and bool(poses)
    if watched_s >= LEAST_GROWTH_S:
        passed = passed and growth < GROWTH
    seconds = poses[-1].published_s - poses[0].published_s if len(poses) > 1 else 0.0
    return {
        "passed": passed, "seconds": seconds, "messages": len(poses), "fps": len(poses) / max(seconds, 1e-9),
        "tracked": sum(p.tracked for p in poses), "faults": faults, "died": died, "stale": stale,
        "unexplained_gaps": silent, "late_recoveries": late, "missed": missed, "recovery_limit_s": recovery_s,
        "memory_mb": [memory[0][1] if memory else 0.0, memory[-1][1] if memory else 0.0],
        "memory_growth": growth, "memory_watched_s": watched_s, "garbled": heard.garbled, "memory_series": series,
        "slow_read": heard.slow, "visits": heard.visits,
    }  # fmt: skip


def _missed(planned: list[Fault], log: str) -> list[str]:
    """Faults of the process that the log does not speak of, as often as they came."""
    times = Counter(fault.kind for fault in planned)
    return [kind for kind, text in EVIDENCE.items() if len(re.findall(text, log)) < times[kind]]


def _fault(fault: Fault, poses: list[Pose]) -> dict[str, Any]:
    """What became of one fault: how long after its end a hand was published that was measured after it."""
    back = next((p for p in poses if p.tracked and p.captured_s > fault.end_s), None)
    recovery_s = back.published_s - fault.end_s if back else float("inf")
    return {"kind": fault.kind, "start_s": fault.start_s, "seconds": fault.seconds, "recovery_s": recovery_s}


def stale_poses(planned: list[Fault], poses: list[Pose]) -> list[str]:
    """Poses that were sent as new and are not: why, of each."""
    found = []
    blind = [(f.start_s + MARGIN_S, f.end_s - MARGIN_S, f.kind) for f in planned if f.kind in BLIND]
    anew = [f.start_s for f in planned if f.kind in ANEW]
    for before, pose in zip([None, *poses], poses, strict=False):
        if pose.published_s - pose.captured_s > OLD_S:
            found.append(f"{pose.published_s - pose.captured_s:.2f} s old when it was published")
        if before and pose.captured_s <= before.captured_s:
            found.append("its frame is not newer than the one before")
        began_anew = before and any(before.captured_s - 5 <= t <= pose.captured_s for t in anew)
        if before and pose.joints and pose.joints == before.joints and not began_anew:
            found.append("the very joints of the message before")
        for start_s, end_s, kind in blind:
            if pose.tracked and start_s < pose.captured_s < end_s:
                found.append(f"tracked {pose.captured_s - start_s:.2f} s into {kind}")
    return found


def unexplained(poses: list[Pose], said: list[Said], begin_s: float, end_s: float) -> list[str]:
    """Silences on `joints` between two times in which no status says why."""
    found = []
    times = [p.published_s for p in poses if begin_s <= p.published_s <= end_s]
    for a, b in pairwise([begin_s, *times, end_s]):
        if b - a <= GAP_S:
            continue
        told = any(a <= s.published_s <= b + 0.1 and (s.message or s.state in ("starting", "stopping")) for s in said)
        restarted = any(b <= s.published_s <= b + 2 and a <= s.begun_s <= b for s in said)
        if not told and not restarted:
            found.append(f"{b - a:.2f} s")
    return found


def memory_growth(memory: list[tuple[float, float]], planned: list[Fault]) -> tuple[float, float]:
    """How much of its memory the last life gained, from its second fifth to its last, and how long it was watched."""
    since_s = max((f.start_s for f in planned if f.kind == "kill -9"), default=0.0) + 20.0
    own = [mb for t, mb in memory if t > since_s and mb > 0]
    seconds = memory[-1][0] - since_s if memory else 0.0
    fifth = len(own) // 5
    if fifth < 1:
        return 0.0, 0.0
    first, last = statistics.median(own[fifth : 2 * fifth]), statistics.median(own[-fifth:])
    return last / first - 1, seconds


def table(result: dict[str, Any]) -> str:
    """The verdict for people."""
    lines = [f"{'fault':<14} {'times':>5} {'worst back, s':>14} {'median, s':>10}"]
    for kind, count in Counter(f["kind"] for f in result["faults"]).items():
        back = [f["recovery_s"] for f in result["faults"] if f["kind"] == kind]
        mark = "" if kind not in KINDS or max(back) <= result["recovery_limit_s"] else "  too late"
        lines.append(f"{kind:<14} {count:>5} {max(back):>14.2f} {statistics.median(back):>10.2f}{mark}")
    growth = f"{100 * result['memory_growth']:+.2f} % in {result['memory_watched_s']:.0f} s"
    short = "" if result["memory_watched_s"] >= LEAST_GROWTH_S else ", too short to judge"
    share = 100 * result["tracked"] / max(1, result["messages"])
    for name, value in (
        ("ran", f"{result['seconds']:.0f} s, {result['fps']:.1f} messages a second, a hand in {share:.1f} %"),
        ("crashes", ", ".join(result["died"]) or "none"),
        ("stale poses", _some(result["stale"])),
        ("gaps without a word", _some(result["unexplained_gaps"])),
        ("not noticed", _some(result["missed"])),
        ("back too late", str(len(result["late_recoveries"])) if result["late_recoveries"] else "none"),
        ("memory", f"{result['memory_mb'][1]:.1f} MB, {growth}{short}"),
        ("other readers", f"slow read {result['slow_read']}, {result['visits']} came and went"),
        ("verdict", "passed" if result["passed"] else "FAILED"),
    ):
        lines.append(f"{name:<20} {value}")
    return "\n".join(lines)


def _some(found: list[str]) -> str:
    return f"{len(found)}: {', '.join(list(dict.fromkeys(found))[:5])}" if found else "none"
