"""A camera that comes back, with the threads and the clock it really has: a busy machine may make each wait."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from edge_hand.edge import reopen
from edge_hand.edge.cameras import BadFrame, Camera, CameraError, EndOfStream, FrameTimeout
from edge_hand.edge.cameras.realsense import RealSenseCamera
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.librealsense import import_realsense
from edge_hand.edge.reopen import LastingCamera
from edge_hand.hand.frames import DepthFrame
from test_reopen import MODE, Faulty, Given, never


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No frame grows old where the machine is busy."""
    monkeypatch.setattr(reopen, "OLD_NS", 10**11)


def test_a_sound_camera_is_passed_on_as_it_is() -> None:
    faulty = Faulty("stall@100")
    with faulty.lasting() as camera, SyntheticCamera(3, MODE) as other:
        assert (camera.name, camera.fps, camera.intrinsics) == (other.name, other.fps, other.intrinsics)
        for _ in range(5):
            frame, expected = camera.read(60), other.read(60)
            assert frame.seq == expected.seq
            np.testing.assert_array_equal(frame.depth, expected.depth)
        assert faulty.reopened == 0


def test_a_covered_camera_sees_nothing_again_and_again() -> None:
    with SyntheticCamera(3, MODE) as inner:
        frame = replace(inner.read(60), depth=np.zeros((48, 64), np.uint16))
    with LastingCamera(Given([replace(frame, seq=k) for k in range(3)]), never) as camera:
        assert [camera.read(60).seq for _ in range(3)] == [0, 1, 2]
        with pytest.raises(EndOfStream):
            camera.read(60)


def test_a_thread_that_hangs_in_a_driver_is_left_there_and_closes_the_camera_in_the_end() -> None:
    over = threading.Event()

    class Hanging(Given):
        def read(self, timeout_s: float = 1.0) -> DepthFrame:
            if not self.frames:
                over.wait(60)
            return super().read(timeout_s)

    with SyntheticCamera(3, MODE) as other:
        frames = [other.read(60) for _ in range(2)]
    hanging, back = Hanging(frames[:1]), None
    with LastingCamera(hanging, lambda: Given(frames[1:]), hang_s=0.1) as camera:  # type: ignore[arg-type]
        assert camera.read(60).seq == 0
        end_s = time.monotonic() + 50
        while back is None and time.monotonic() < end_s:
            with contextlib.suppress(FrameTimeout):
                back = camera.read(0.05)
        assert back is not None and back.seq == 1 and not hanging.closed
        over.set()
        while not hanging.closed and time.monotonic() < end_s:
            time.sleep(0.01)
    assert hanging.closed


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
                return super().read()
            if stopped != "between reads":
                away_s = 60.0
            if stopped == "in a read that is answered late":
                over.wait(60)
            raise FrameTimeout("none yet")

    clock, over = Clock(), threading.Event()
    monkeypatch.setattr(reopen, "time", clock)
    with SyntheticCamera(3, MODE) as other:
        first, second = other.read(60), other.read(60)
    sound = Sound([first])
    with LastingCamera(sound, never) as camera:  # type: ignore[arg-type]
        assert camera.read(60).seq == first.seq
        away_s = 60.0 if stopped == "between reads" else 0.0
        with pytest.raises(FrameTimeout):
            camera.read(0.01)
        if stopped == "in a read that is answered late":
            over.set()
            with pytest.raises(FrameTimeout, match="none yet"):
                camera.read(60)
        sound.frames.append(second)
        try:
            again = camera.read(60)
        except FrameTimeout:  # of the read before, to which this machine was too busy to listen
            again = camera.read(60)
        assert again.seq == second.seq and not sound.closed


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
            assert camera.read(60).seq == number
        softs[0].push(noise(3), 4, time.monotonic() * 1e3)
        with pytest.raises(BadFrame, match="the picture stands still"):
            camera.read(60)
        silent_s = time.monotonic()
        while opened[0] == 0 and time.monotonic() < silent_s + 50:
            with pytest.raises(FrameTimeout):
                camera.read(0.2)
        softs[1].push(noise(9), 1, time.monotonic() * 1e3)
        assert camera.read(60).seq == 4 and opened[0] == 1
