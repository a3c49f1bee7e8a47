"""All cameras of a rig together: who is there, when a step of the fusion is due, and for which moment."""

from __future__ import annotations

import time

from ..hand.camera import Intrinsics
from ..hand.messages import CloudMessage, JointsMessage, Message
from .rig import Rig, RigError
from .sight import CARRY_NS, SAME_HOST_NS, Clock, Sighting, View

LIVE_NS = 300_000_000  # a camera without a message for so long is silent
ASTRAY_NS = 200_000_000  # a clock that is as far from the others' is wrong, until it is half as far
FOREIGN_NS = 1_000_000_000  # a wall clock as far from this host's tells nothing of when a frame was taken here
WAIT_NS = 12_000_000  # after the first new frame, for the others and for the depth points


class Views:
    """`take` each message as it comes, then ask whether a step is `due`. now_ns is this host's CLOCK_MONOTONIC.

    Cameras of one host are compared by its monotonic clock. Where hosts differ, the stamps of their wall clocks are
    taken, which NTP or PTP must hold together; a camera whose clock is far from most others' is left out.
    """

    def __init__(self, rig: Rig, wait_ns: int = WAIT_NS) -> None:
        self.rig, self.wait_ns = rig, wait_ns
        self.views = {camera.serial: View(i, camera) for i, camera in enumerate(rig.cameras)}
        self.clock: Clock = "monotonic"
        self.unknown: set[str] = set()  # cameras that the rig does not know
        self.unfit: dict[str, str] = {}  # those that run other than the rig has them, and how
        self.astray: dict[str, float] = {}  # whose clock is not the others', and by how many seconds it is ahead
        self.late = 0  # frames that came after the step of their moment
        self._boot: dict[str, int] = {}
        self._came: dict[str, int] = {}  # when the last joints message of a camera came
        self._clouded: dict[str, int] = {}  # seq of the last cloud of a camera
        self._seq: dict[str, int] = {}
        self._new: dict[str, int] = {}  # when the first message came that is not in a step yet
        self._last_ns: int | None = None
        self._uneven_ns: int | None = None  # when there last was a step without a new frame of every live camera

    def take(self, message: Message, now_ns: int) -> None:
        """Add a message; those that are neither joints nor clouds are passed over, and all of a camera that is unfit,
        as its clouds' intrinsics tell."""
        if not isinstance(message, (JointsMessage, CloudMessage)):
            return
        if message.camera not in self.views:
            self.unknown.add(message.camera)
            return
        if isinstance(message, CloudMessage) and message.intrinsics is not None:
            self._check(message.camera, message.intrinsics)
        if message.camera in self.unfit:
            return
        if isinstance(message, CloudMessage):
            self._clouded[message.camera] = message.seq
            self.views[message.camera].take_cloud(message)
            return
        self._set_clock(message)
        self.views[message.camera].take(message)
        self._came[message.camera], self._seq[message.camera] = now_ns, message.seq
        self._new.setdefault(message.camera, now_ns)

    @property
    def waiting(self) -> bool:
        """Whether there is something that is not in a step yet."""
        return bool(self._new)

    def capture(self, t_ns: int) -> tuple[int, int]:
        """A moment of the reference clock by its wall clock and by this host's CLOCK_MONOTONIC, ns. Where that wall
        clock is far from this host's, the latter is when the newest frame came."""
        boot = self._boot.get(next(iter(self.views)), next(iter(self._boot.values()), 0))
        unix_ns = t_ns if self.clock == "unix" else t_ns + boot
        here = time.time_ns() - time.monotonic_ns()
        if self.clock == "monotonic" and abs(here - boot) < SAME_HOST_NS:
            return unix_ns, t_ns
        own_ns = unix_ns - here
        came_ns = max(self._came.values(), default=own_ns)
        return unix_ns, own_ns if abs(own_ns - came_ns) < FOREIGN_NS else came_ns

    def live(self, now_ns: int) -> list[str]:
        """Cameras that were heard of lately."""
        return [serial for serial, came in self._came.items() if now_ns - came < LIVE_NS]

    def silent(self, now_ns: int) -> dict[str, float | None]:
        """Cameras of the rig that are not heard of, and for how many seconds; None if never."""
        live = self.live(now_ns)
        ago = {s: (now_ns - self._came[s]) * 1e-9 if s in self._came else None for s in self.views}
        return {serial: seconds for serial, seconds in ago.items() if serial not in live}

    def words(self, now_ns: int) -> str:
        """Which cameras are there, which are not, and which the rig does not know, in one line."""
        silent = self.silent(now_ns)
        text = f"{len(self.views.keys() - silent.keys() - self.astray.keys())} of {len(self.views)} cameras"
        gone = [
            f"{s} not heard yet" if ago is None else f"{s} silent for {ago:.1f} s"
            for s, ago in silent.items()
            if s not in self.unfit
        ]
        text += ": " * bool(gone) + ", ".join(gone) + "".join(f"; {why}" for why in self.unfit.values())
        for s, ahead_s in self.astray.items():
            if ahead_s > 0:
                text += f"; {s}'s clock is {ahead_s:.1f} s ahead of the others': NTP? or calibrate again"
            else:
                text += f"; {s} is {-ahead_s:.1f} s behind the others: a slow daemon or network, or its clock (NTP?)"
        return text + (f"; not in the rig file: {', '.join(sorted(self.unknown))}" if self.unknown else "")

    def due(self, now_ns: int) -> int | None:
        """The moment, ns of the reference clock, to step to now: the mean of the newest frames, once every live camera
        has a new one or the first new one has waited long enough; None if it is not time yet. The newest one's
        where a slow camera would draw the mean back behind the steps of a fast one."""
        if not self._new:
            return None
        live = self.live(now_ns)
        complete = all(s in self._new and self._has_cloud(s) for s in live)
        if not complete and now_ns - min(self._new.values()) < self.wait_ns:
            return None
        new, self._new = self._new, {}
        if any(s not in new for s in live):
            self._uneven_ns = now_ns
        heard = {*live, *new}
        was, astray = self.astray, self._astray(heard)
        self.astray = astray | {s: ahead for s, ahead in was.items() if s not in heard}
        if was.keys() & heard - astray.keys():  # others were believed; what they said was by another clock
            self.views |= {s: View(v.index, v.camera, self.clock) for s, v in self.views.items() if s not in heard}
        newest = sorted(t for s in new if s not in self.astray and (t := self.views[s].newest_ns) is not None)
        if not newest:
            return None
        while (t_ns := sum(newest) // len(newest)) - newest[0] > CARRY_NS:  # too old to be carried there
            newest.pop(0)
            self.late += 1
        uneven = self._uneven_ns is not None and now_ns - self._uneven_ns < LIVE_NS
        if uneven and self._last_ns is not None and t_ns <= self._last_ns:
            t_ns = max(newest)
        if self._last_ns is not None and t_ns <= self._last_ns and self._last_ns - t_ns < LIVE_NS:
            self.late += len(new)
            return None
        self._last_ns = t_ns
        return t_ns

    def at(self, t_ns: int) -> list[Sighting]:
        """What all cameras say of a moment."""
        return [sighting for s, view in self.views.items() if s not in self.astray for sighting in view.at(t_ns)]

    def _check(self, serial: str, intrinsics: Intrinsics) -> None:
        """Leave a camera out, and what it has said, for as long as it runs other than the rig has it."""
        try:
            self.rig.check(serial, intrinsics)
            self.unfit.pop(serial, None)
        except RigError as error:
            self.unfit[serial] = str(error)
            self.views[serial] = View(self.views[serial].index, self.views[serial].camera, self.clock)
            for said in (self._came, self._clouded, self._seq, self._new, self.astray):
                said.pop(serial, None)

    def _astray(self, heard: set[str]) -> dict[str, float]:
        """The cameras whose newest stamp, seen from when it came here, is far from the middle one's. Of two it is
        the one behind, as one whose frames come late is."""
        newest = {s: view.newest_ns for s, view in self.views.items() if s in heard}
        ahead = {s: t - self._came[s] for s, t in newest.items() if t is not None}
        middle = sorted(ahead.values())[len(ahead) // 2]
        limit_ns = {s: ASTRAY_NS // 2 if s in self.astray else ASTRAY_NS for s in ahead}
        return {s: (ns - middle) * 1e-9 for s, ns in ahead.items() if abs(ns - middle) > limit_ns[s]}

    def _has_cloud(self, serial: str) -> bool:
        """Whether the depth points of the newest frame are there, of a camera that sends any."""
        return serial not in self._clouded or self._clouded[serial] >= self._seq[serial]

    def _set_clock(self, message: JointsMessage) -> None:
        self._boot[message.camera] = message.t_capture_unix_ns - message.t_capture_ns
        hosts = max(self._boot.values()) - min(self._boot.values())
        clock: Clock = "unix" if hosts > SAME_HOST_NS else "monotonic"
        if clock != self.clock:
            self.clock = clock
            self.views = {s: View(v.index, v.camera, clock) for s, v in self.views.items()}
            self._new, self._last_ns, self.astray = {}, None, {}  # moments of the other clock mean nothing now
