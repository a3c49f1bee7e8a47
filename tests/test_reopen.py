"""A camera that comes back: nothing old passes for new, a driver that hangs holds up nobody, and it is opened anew."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_hand.edge import reopen
from edge_hand.edge.cameras import BadFrame, Camera, CameraError, EndOfStream, FrameTimeout, open_camera
from edge_hand.edge.cameras.realsense import RealSenseCamera
from edge_hand.edge.cameras.replay import ReplayCamera
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.librealsense import import_realsense
from edge_hand.edge.reopen import MOST_HUNG, LastingCamera, open_lasting, usb_devices, wait_for
from edge_hand.hand.frames import DepthFrame

MODE = "64x48@60"
DEMO = Path(reopen.__file__).parent / "demo" / "hand.mcap"


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

    def __init__(self, camera: Camera, seconds: float, timeout_s: float = 0.1) -> None:
        self.frames: list[DepthFrame] = []
        self.errors: list[tuple[float, Exception]] = []
        self.longest_s = 0.0
        self.begun_s = before_s = time.monotonic()
        while before_s < self.begun_s + seconds:
            try:
                self.frames.append(camera.read(timeout_s))
            except (BadFrame, FrameTimeout) as error:
                self.errors.append((time.monotonic() - self.begun_s, error))
            now_s = time.monotonic()
            self.longest_s, before_s = max(self.longest_s, now_s - before_s), now_s

    @property
    def said(self) -> list[str]:
        """In order, each once; not that this machine was too busy to draw the next frame."""
        return [text for text in dict.fromkeys(str(error) for _, error in self.errors) if "was not drawn" not in text]

    @property
    def gap_s(self) -> float:
        return float(np.diff([frame.t_ns * 1e-9 for frame in self.frames]).max())


def well_ordered(frames: list[DepthFrame]) -> bool:
    """Numbers and times rise, and no picture comes twice in a row."""
    pairs = list(pairwise(frames))
    return all(a.seq < b.seq and a.t_ns < b.t_ns and not np.array_equal(a.depth, b.depth) for a, b in pairs)


def test_a_sound_camera_is_passed_on_as_it_is() -> None:
    faulty = Faulty("stall@100")
    with faulty.lasting() as camera, SyntheticCamera(3, MODE) as other:
        assert (camera.name, camera.fps, camera.intrinsics) == (other.name, other.fps, other.intrinsics)
        for _ in range(5):
            frame, expected = camera.read(), other.read()
            assert frame.seq == expected.seq
            np.testing.assert_array_equal(frame.depth, expected.depth)
        assert faulty.reopened == 0


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("repeat", "the same frame came twice"),
        ("backward", "a frame came with a time before that of the one before"),
        ("freeze", "the picture stands still though frames come"),
        ("torn", "a frame was torn"),
    ],
)
def test_a_frame_that_is_not_new_is_never_handed_out(fault: str, why: str) -> None:
    with lasting(f"{fault}@0.2+0.3") as camera:
        seen = Seen(camera, 0.8)
    assert seen.said and set(seen.said) <= {f"synthetic-3: {why}", "synthetic-3: an old frame came, seen too long ago "
                                            "to be followed"}  # fmt: skip
    assert all(isinstance(error, BadFrame) for _, error in seen.errors if "was not drawn" not in str(error))
    assert well_ordered(seen.frames) and 0.25 < seen.gap_s < 0.6


def test_a_frame_that_comes_late_is_not_new() -> None:
    faulty = Faulty("late@0.2+0.3")
    with faulty.lasting() as camera:
        seen = Seen(camera, 0.8)
        assert faulty.reopened == 0
    assert seen.said == ["synthetic-3: an old frame came, seen too long ago to be followed"]
    assert well_ordered(seen.frames)


def test_a_covered_camera_sees_nothing_again_and_again() -> None:
    with SyntheticCamera(3, MODE) as inner:
        frame = replace(inner.read(), depth=np.zeros((48, 64), np.uint16))
    with LastingCamera(Given([replace(frame, seq=k) for k in range(3)]), never) as camera:
        assert [camera.read().seq for _ in range(3)] == [0, 1, 2]
        with pytest.raises(EndOfStream):
            camera.read()


class Given:
    """A camera of given frames, at the times they are read."""

    name, fps, intrinsics = "given", 60.0, None

    def __init__(self, frames: list[DepthFrame]) -> None:
        self.frames, self.closed = frames, False

    def read(self, timeout_s: float = 1.0) -> DepthFrame:
        if not self.frames:
            raise EndOfStream("over")
        return replace(self.frames.pop(0), t_ns=time.monotonic_ns())

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


def never() -> Camera:
    raise CameraError("it is away")


def test_an_unplugged_camera_is_opened_anew_as_soon_as_it_is_back() -> None:
    faulty = Faulty("unplug@0.2+1.0")
    with faulty.lasting() as camera:
        seen = Seen(camera, 2.0)
        assert faulty.reopened == 1
    assert [text.partition(";")[0] for text in seen.said] == [
        "synthetic-3 is no longer connected", "faulty: no camera is connected",
    ]  # fmt: skip
    assert seen.said[1].endswith("; it is opened again as soon as it is back")
    assert well_ordered(seen.frames), "numbers go on over the openings"
    assert seen.gap_s < 1.0 + 0.6 and seen.longest_s < 0.4


def test_it_counts_on_after_a_reset_of_the_usb() -> None:
    faulty = Faulty("reset@0.4+0.2")
    with faulty.lasting() as camera:
        seen = Seen(camera, 1.4)
        assert faulty.reopened == 1
    numbers = [frame.seq for frame in seen.frames]
    assert well_ordered(seen.frames) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_driver_that_hangs_holds_up_nobody_and_is_left_behind() -> None:
    alive: list[float] = []
    faulty = Faulty("hang@0.2+1.5")
    with faulty.lasting(lambda: alive.append(time.monotonic()), hang_s=0.3) as camera:
        seen = Seen(camera, 2.6)
        assert faulty.reopened >= 1
    assert seen.longest_s < 0.4
    assert seen.said[0] == "synthetic-3: its driver does not answer"
    assert "its driver hung; it is opened again as soon as it is back" in seen.said
    assert well_ordered(seen.frames) and seen.errors[-1][0] < 2.4
    begun, hung = seen.begun_s, seen.errors[0][0]
    assert not any(begun + hung < t < begun + hung + 0.25 for t in alive), "a hang is no progress"


def test_a_driver_that_hangs_is_not_taken_for_a_camera_that_is_silent() -> None:
    """A camera that is silent is closed by the thread that reads it, and that one hangs."""
    over = threading.Event()

    class Hanging(Given):
        def read(self, timeout_s: float = 1.0) -> DepthFrame:
            if not self.frames:
                over.wait(30)
            return super().read(timeout_s)

    with SyntheticCamera(3, MODE) as other:
        frame = other.read()
    with LastingCamera(Hanging([frame]), lambda: SyntheticCamera(3, MODE)) as camera:  # type: ignore[arg-type]
        camera.read(0.5)
        hung_s, back = time.monotonic(), None
        while back is None and time.monotonic() < hung_s + 5:
            with contextlib.suppress(BadFrame, FrameTimeout):
                back = camera.read(0.5)
        over.set()
    assert back is not None and time.monotonic() - hung_s < 4, "docs/reliability.md: 2 s beyond its time"


def test_a_driver_that_always_hangs_needs_a_new_process() -> None:
    with lasting("hang@0.1+3", hang_s=0.05) as camera, pytest.raises(CameraError) as seen:
        Seen(camera, 20, timeout_s=0.05)
    assert str(seen.value) == f"synthetic-3: its driver hangs, {MOST_HUNG} times over; it needs a new process"


def test_a_camera_that_falls_silent_is_closed_and_opened_anew() -> None:
    faulty = Faulty("stall@0.2+1.2")
    with faulty.lasting(silent_s=0.4) as camera:
        seen = Seen(camera, 2.4)
        assert faulty.reopened >= 1
    assert seen.said[0] == "synthetic-3: no depth frame within 0.1 s"
    assert well_ordered(seen.frames) and seen.errors[-1][0] < 1.4 + 0.8


@pytest.mark.parametrize("stopped", ["between reads", "in a read", "in a read that is answered late"])
def test_a_loop_that_was_stopped_does_not_take_its_camera_for_silent(
    stopped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-Z and fg, or an engine that is opened anew: for a minute nobody waited."""
    away_s = 0.0

    class Clock:
        sleep = time.sleep

        def monotonic(self) -> float:
            return time.monotonic() + away_s

        def monotonic_ns(self) -> int:
            return round(self.monotonic() * 1e9)

    class Sound(Given):
        def read(self, timeout_s: float = 1.0) -> DepthFrame:
            nonlocal away_s
            if self.frames:
                return replace(super().read(), t_ns=clock.monotonic_ns())
            if stopped != "between reads":
                away_s = 60.0
            if stopped == "in a read that is answered late":
                over.wait(30)
            raise FrameTimeout("none yet")

    clock, over = Clock(), threading.Event()
    monkeypatch.setattr(reopen, "time", clock)
    with SyntheticCamera(3, MODE) as other:
        first, second = other.read(), other.read()
    sound = Sound([first])
    with LastingCamera(sound, never) as camera:  # type: ignore[arg-type]
        assert camera.read().seq == first.seq
        away_s = 60.0 if stopped == "between reads" else 0.0
        with pytest.raises(FrameTimeout):
            camera.read(0.01)
        if stopped == "in a read that is answered late":
            over.set()
            with pytest.raises(FrameTimeout, match="none yet"):
                camera.read()
        sound.frames.append(second)
        assert camera.read().seq == second.seq and not sound.closed


def test_attempts_to_open_grow_rarer_and_a_plug_makes_one_at_once() -> None:
    attempts: list[float] = []
    plugged = ["nothing"]

    def refuse() -> Camera:
        attempts.append(time.monotonic())
        raise CameraError("it is away")

    class Gone(Given):
        def read(self, timeout_s: float = 1.0) -> DepthFrame:
            raise CameraError("it went away")

    gone = Gone([])
    alive: list[float] = []
    with LastingCamera(gone, refuse, lambda: plugged[0], lambda: alive.append(0.0)) as camera:  # type: ignore[arg-type]
        Seen(camera, 2.0)
        gaps = np.diff(attempts)
        assert len(attempts) == 4 and np.allclose(gaps, [0.2, 0.4, 0.8], atol=0.15)
        assert gone.closed and len(alive) > 10
        plugged[0], plugged_s = "a camera", time.monotonic()
        Seen(camera, 0.3)
    assert 0 < attempts[4] - plugged_s < 0.25


def test_whatever_an_sdk_throws_is_told_and_the_camera_opened_anew() -> None:
    class Odd(Given):
        def read(self, timeout_s: float = 1.0) -> DepthFrame:
            raise RuntimeError("xioctl(VIDIOC_QBUF) failed\nLast Error: No such device")

    back = SyntheticCamera(3, MODE)
    with LastingCamera(Odd([]), lambda: back) as camera:  # type: ignore[arg-type]
        seen = Seen(camera, 0.6)
    assert seen.said[0].startswith("xioctl(VIDIOC_QBUF) failed Last Error: No such device; it is opened again")
    assert seen.frames


def test_the_first_opening_fails_at_once_but_can_be_waited_for() -> None:
    with pytest.raises(CameraError, match=r"^faulty: no camera is connected$"):
        open_lasting("faulty", "synthetic:3?unplug@0+9", mode=MODE)
    begun = time.monotonic()
    source = f"synthetic:3?begin={begun},unplug@0+0.5"
    told: list[str] = []
    alive: list[int] = []
    camera = wait_for(
        lambda: open_lasting("faulty", source, mode=MODE), lambda: False, told.append, lambda: alive.append(1)
    )
    assert camera is not None and 0.45 < time.monotonic() - begun < 1.6
    with camera:
        assert camera.read().camera == "synthetic-3"
    assert told == ["waiting for the camera: faulty: no camera is connected"] and alive
    assert wait_for(never, lambda: True, told.append) is None


def test_a_source_that_is_too_long_for_a_file_s_name_is_a_camera_too() -> None:
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


@pytest.fixture
def rs() -> Any:
    try:
        return import_realsense()
    except CameraError as error:
        pytest.skip(f"no pyrealsense2 here: {error}")


def test_a_realsense_device_that_freezes_falls_silent_and_comes_back(rs: Any) -> None:
    from test_realsense import SoftwareCamera, noise

    softs = [SoftwareCamera(), SoftwareCamera()]
    opened: list[int] = [0]

    def again() -> Camera:
        camera = RealSenseCamera(mode="640x480@30", device=softs[opened[0] + 1].device)
        opened[0] += 1  # only now does it stream, and keep what is pushed
        return camera

    first = RealSenseCamera(mode="640x480@30", device=softs[0].device)
    with LastingCamera(first, again, silent_s=0.4) as camera:
        for number in (1, 2, 3):
            softs[0].push(noise(number), number, time.monotonic() * 1e3)
            assert camera.read(2.0).seq == number
        softs[0].push(noise(3), 4, time.monotonic() * 1e3)
        with pytest.raises(BadFrame, match="the picture stands still"):
            camera.read(2.0)
        silent_s = time.monotonic()
        while opened[0] == 0 and time.monotonic() < silent_s + 5:
            with pytest.raises(FrameTimeout):
                camera.read(0.2)
        softs[1].push(noise(9), 1, time.monotonic() * 1e3)
        assert camera.read(2.0).seq == 4 and opened[0] == 1
