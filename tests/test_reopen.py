"""A camera that comes back: nothing old passes for new, a driver that hangs holds up nobody, and it is opened anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_hand.edge import reopen
from edge_hand.edge.cameras import BadFrame, Camera, CameraError, EndOfStream, FrameTimeout, open_camera
from edge_hand.edge.cameras.replay import ReplayCamera
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.reopen import MOST_HUNG, LastingCamera, open_lasting, usb_devices, wait_for
from edge_hand.hand.frames import DepthFrame
from slept_time import SleptTime, Worker, slept_time

MODE = "64x48@60"
DEMO = Path(reopen.__file__).parent / "demo" / "hand.mcap"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SleptTime:
    """For what goes by a script: its times are those of the reads, however long they really take."""
    clock = slept_time(monkeypatch, reopen)
    monkeypatch.setattr(reopen, "_Worker", lambda: Worker(clock))
    return clock


class Faulty:
    """A faulty camera; reopened counts how often it was opened anew."""

    def __init__(self, script: str) -> None:
        self.first: Any = open_camera("faulty", f"synthetic:3?{script}", mode=MODE)
        self.reopened = 0

    def again(self) -> Camera:
        camera: Camera = self.first.again()
        self.reopened += 1
        return camera

    def lasting(self, alive: Callable[[], None] = lambda: None, **options: Any) -> LastingCamera:
        return LastingCamera(self.first, self.again, self.first.signs, alive, **options)


def lasting(script: str, **options: Any) -> LastingCamera:
    return Faulty(script).lasting(**options)


class Seen:
    """What a reader met in some seconds: frames, and what was raised, with the times of both."""

    def __init__(self, clock: SleptTime, camera: Camera, seconds: float, timeout_s: float = 0.1) -> None:
        self.frames: list[DepthFrame] = []
        self.errors: list[tuple[float, Exception]] = []
        self.longest_s = 0.0
        self.begun_s = before_s = clock.monotonic()
        while before_s < self.begun_s + seconds:
            try:
                self.frames.append(camera.read(timeout_s))
            except (BadFrame, FrameTimeout) as error:
                self.errors.append((clock.monotonic() - self.begun_s, error))
            now_s = clock.monotonic()
            self.longest_s, before_s = max(self.longest_s, now_s - before_s), now_s

    @property
    def said(self) -> list[str]:
        """In order, each once."""
        return list(dict.fromkeys(str(error) for _, error in self.errors))

    @property
    def gap_s(self) -> float:
        return float(np.diff([frame.t_ns * 1e-9 for frame in self.frames]).max())


def well_ordered(frames: list[DepthFrame]) -> bool:
    """Numbers and times rise, and no picture comes twice in a row."""
    pairs = list(pairwise(frames))
    return all(a.seq < b.seq and a.t_ns < b.t_ns and not np.array_equal(a.depth, b.depth) for a, b in pairs)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("repeat", "the same frame came twice"),
        ("backward", "a frame came with a time before that of the one before"),
        ("freeze", "the picture stands still though frames come"),
        ("torn", "a frame was torn"),
    ],
)
def test_a_frame_that_is_not_new_is_never_handed_out(fault: str, why: str, clock: SleptTime) -> None:
    with lasting(f"{fault}@0.2+0.3") as camera:
        seen = Seen(clock, camera, 0.8)
    assert seen.said and set(seen.said) <= {f"synthetic-3: {why}", "synthetic-3: an old frame came, seen too long ago "
                                            "to be followed"}  # fmt: skip
    assert all(isinstance(error, BadFrame) for _, error in seen.errors)
    assert well_ordered(seen.frames) and 0.25 < seen.gap_s < 0.6


def test_a_frame_that_comes_late_is_not_new(clock: SleptTime) -> None:
    faulty = Faulty("late@0.2+0.3")
    with faulty.lasting() as camera:
        seen = Seen(clock, camera, 0.8)
        assert faulty.reopened == 0
    assert seen.said == ["synthetic-3: an old frame came, seen too long ago to be followed"]
    assert well_ordered(seen.frames)


class Given:
    """A camera of given frames, at the times they are read."""

    name, fps, intrinsics = "given", 60.0, None

    def __init__(self, frames: list[DepthFrame]) -> None:
        self.frames, self.closed = frames, False

    def read(self, timeout_s: float = 1.0) -> DepthFrame:
        if not self.frames:
            raise EndOfStream("over")
        return replace(self.frames.pop(0), t_ns=reopen.time.monotonic_ns())

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


def never() -> Camera:
    raise CameraError("it is away")


def test_an_unplugged_camera_is_opened_anew_as_soon_as_it_is_back(clock: SleptTime) -> None:
    faulty = Faulty("unplug@0.2+1.0")
    with faulty.lasting() as camera:
        seen = Seen(clock, camera, 2.0)
        assert faulty.reopened == 1
    assert [text.partition(";")[0] for text in seen.said] == [
        "synthetic-3 is no longer connected", "faulty: no camera is connected",
    ]  # fmt: skip
    assert seen.said[1].endswith("; it is opened again as soon as it is back")
    assert well_ordered(seen.frames), "numbers go on over the openings"
    assert seen.gap_s < 1.0 + 0.6 and seen.longest_s < 0.4


def test_it_counts_on_after_a_reset_of_the_usb(clock: SleptTime) -> None:
    faulty = Faulty("reset@0.4+0.2")
    with faulty.lasting() as camera:
        seen = Seen(clock, camera, 1.4)
        assert faulty.reopened == 1
    numbers = [frame.seq for frame in seen.frames]
    assert well_ordered(seen.frames) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_driver_that_hangs_holds_up_nobody_and_is_left_behind(clock: SleptTime) -> None:
    alive: list[float] = []
    faulty = Faulty("hang@0.2+1.5")
    with faulty.lasting(lambda: alive.append(clock.monotonic()), hang_s=0.3) as camera:
        seen = Seen(clock, camera, 2.6)
        assert faulty.reopened >= 1
    assert seen.longest_s < 0.4
    assert seen.said[0] == "synthetic-3: its driver does not answer"
    assert "its driver hung; it is opened again as soon as it is back" in seen.said
    assert well_ordered(seen.frames) and seen.errors[-1][0] < 2.4
    begun, hung = seen.begun_s, seen.errors[0][0]
    assert not any(begun + hung < t < begun + hung + 0.25 for t in alive), "a hang is no progress"


def test_a_driver_that_hangs_is_not_taken_for_a_camera_that_is_silent(clock: SleptTime) -> None:
    """A camera that is silent is closed by the thread that reads it, and that one hangs."""

    class Hanging(Given):
        def read(self, timeout_s: float = 1.0) -> DepthFrame:
            if not self.frames:
                clock.sleep(30)
            return super().read(timeout_s)

    with SyntheticCamera(3, MODE) as other:
        frame = other.read()
    with LastingCamera(Hanging([frame]), lambda: SyntheticCamera(3, MODE)) as camera:  # type: ignore[arg-type]
        camera.read(0.5)
        hung_s, back = clock.monotonic(), None
        while back is None and clock.monotonic() < hung_s + 5:
            with contextlib.suppress(BadFrame, FrameTimeout):
                back = camera.read(0.5)
    assert back is not None and clock.monotonic() - hung_s < 4, "docs/reliability.md: 2 s beyond its time"


def test_a_driver_that_always_hangs_needs_a_new_process(clock: SleptTime) -> None:
    with lasting("hang@0.1+3", hang_s=0.05) as camera, pytest.raises(CameraError) as seen:
        Seen(clock, camera, 20, timeout_s=0.05)
    assert str(seen.value) == f"synthetic-3: its driver hangs, {MOST_HUNG} times over; it needs a new process"


def test_a_camera_that_falls_silent_is_closed_and_opened_anew(clock: SleptTime) -> None:
    faulty = Faulty("stall@0.2+1.2")
    with faulty.lasting(silent_s=0.4) as camera:
        seen = Seen(clock, camera, 2.4)
        assert faulty.reopened >= 1
    assert seen.said[0] == "synthetic-3: no depth frame within 0.1 s"
    assert well_ordered(seen.frames) and seen.errors[-1][0] < 1.4 + 0.8


def test_attempts_to_open_grow_rarer_and_a_plug_makes_one_at_once(clock: SleptTime) -> None:
    attempts: list[float] = []
    plugged = ["nothing"]

    def refuse() -> Camera:
        attempts.append(clock.monotonic())
        raise CameraError("it is away")

    class Gone(Given):
        def read(self, timeout_s: float = 1.0) -> DepthFrame:
            raise CameraError("it went away")

    gone = Gone([])
    alive: list[float] = []
    with LastingCamera(gone, refuse, lambda: plugged[0], lambda: alive.append(0.0)) as camera:  # type: ignore[arg-type]
        Seen(clock, camera, 2.0)
        gaps = np.diff(attempts)
        assert len(attempts) == 4 and np.allclose(gaps, [0.2, 0.4, 0.8], atol=0.15)
        assert gone.closed and len(alive) > 10
        plugged[0], plugged_s = "a camera", clock.monotonic()
        Seen(clock, camera, 0.3)
    assert 0 <= attempts[4] - plugged_s < 0.25


def test_whatever_an_sdk_throws_is_told_and_the_camera_opened_anew(clock: SleptTime) -> None:
    class Odd(Given):
        def read(self, timeout_s: float = 1.0) -> DepthFrame:
            raise RuntimeError("xioctl(VIDIOC_QBUF) failed\nLast Error: No such device")

    back = SyntheticCamera(3, MODE)
    with LastingCamera(Odd([]), lambda: back) as camera:  # type: ignore[arg-type]
        seen = Seen(clock, camera, 0.6)
    assert seen.said[0].startswith("xioctl(VIDIOC_QBUF) failed Last Error: No such device; it is opened again")
    assert seen.frames


def test_the_first_opening_fails_at_once_but_can_be_waited_for(clock: SleptTime) -> None:
    with pytest.raises(CameraError, match=r"^faulty: no camera is connected$"):
        open_lasting("faulty", "synthetic:3?unplug@0+9", mode=MODE)
    begun = clock.monotonic()
    source = f"synthetic:3?begin={begun},unplug@0+0.5"
    told: list[str] = []
    alive: list[int] = []
    camera = wait_for(
        lambda: open_lasting("faulty", source, mode=MODE), lambda: False, told.append, lambda: alive.append(1)
    )
    assert camera is not None and 0.45 < clock.monotonic() - begun < 1.6
    with camera:
        assert camera.read().camera == "synthetic-3"
    assert told == ["waiting for the camera: faulty: no camera is connected"] and alive
    assert wait_for(never, lambda: True, told.append) is None


def test_a_source_that_is_too_long_for_a_file_s_name_is_a_camera_too(clock: SleptTime) -> None:
    faults = ",".join(f"stall@{k}" for k in range(100, 150))
    with open_lasting("faulty", f"synthetic:7?{faults}", mode="48x48@60") as camera:
        assert camera.read(5.0).seq == 0


def test_a_recording_is_left_as_it_is() -> None:
    with open_lasting("replay", str(DEMO)) as recording, open_lasting("synthetic", "3", mode=MODE) as camera:
        assert isinstance(recording, ReplayCamera) and isinstance(camera, LastingCamera)


def test_a_camera_comes_back_also_where_a_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "3").mkdir()
    monkeypatch.chdir(tmp_path)
    with open_lasting("synthetic", "3", mode=MODE) as camera:
        assert isinstance(camera, LastingCamera)


def test_what_is_plugged_in_is_told_by_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reopen, "USB", tmp_path)
    for name, number in (("usb1", "1"), ("2-1", "7"), ("2-1:1.0", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "devnum").write_text(number + "\n")
    before = usb_devices()
    assert before == {("usb1", "1"), ("2-1", "7")}
    (tmp_path / "2-1" / "devnum").write_text("8\n")  # it was reset
    assert usb_devices() != before
    monkeypatch.setattr(reopen, "USB", tmp_path / "none")
    assert usb_devices() == frozenset()
