"""A RealSense that is busy, pulled out or left dark: told at once and in plain words, beside others that are well."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import pytest
from edge_hand.edge.cameras import CameraError, FrameTimeout
from edge_hand.edge.cameras.realsense import RealSenseCamera, list_cameras
from edge_hand.edge.log import LOG
from test_realsense import SoftwareCamera, needs_realsense, noise, rs

pytestmark = needs_realsense
MODE = "640x480@30"
BUSY = "failed to set power state"


class Listed:
    """What a context finds: devices, and in their place what librealsense raises when one cannot be opened."""

    def __init__(self, *devices: Any) -> None:
        self.devices = devices

    def query_devices(self) -> Listed:
        return self

    def __len__(self) -> int:
        return len(self.devices)

    def __getitem__(self, k: int) -> Any:
        if isinstance(self.devices[k], Exception):
            raise self.devices[k]
        return self.devices[k]


def connect(monkeypatch: pytest.MonkeyPatch, *devices: Any) -> None:
    monkeypatch.setattr(rs, "context", lambda: Listed(*devices))


def test_a_camera_is_started_as_the_device_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its serial number librealsense would look for it again, for 15 s, in which no other thread runs."""
    soft = SoftwareCamera()
    connect(monkeypatch, soft.device)
    monkeypatch.delattr(rs.config, "enable_device")
    with RealSenseCamera("900000000042", MODE) as camera:
        soft.push(noise(1), 1, 1000.0)
        assert camera.read(60).seq == 1


def test_live_frames_need_no_python_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue can be called, and as a callback librealsense's own thread would wait for Python at every frame."""
    calls = []

    class Queue(rs.frame_queue):  # type: ignore[misc, name-defined]
        def __call__(self, frame: Any) -> None:
            calls.append(frame)
            super().__call__(frame)

    soft = SoftwareCamera()
    connect(monkeypatch, soft.device)
    monkeypatch.setattr(rs, "frame_queue", Queue)
    with RealSenseCamera("900000000042", MODE) as camera:
        soft.push(noise(1), 1, 1000.0)
        assert camera.read(60).seq == 1 and not calls


def test_a_camera_that_cannot_be_opened_keeps_no_other_from_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mine, busy = SoftwareCamera(), RuntimeError(BUSY)
    connect(monkeypatch, busy, mine.device, RuntimeError("not even looked at"))
    with RealSenseCamera("900000000042", MODE) as camera:
        mine.push(noise(1), 1, 1000.0)
        assert camera.read(60).seq == 1
    connect(monkeypatch, busy, mine.device)
    monkeypatch.setattr(LOG, "propagate", True)
    assert [info.serial for info in list_cameras()] == ["900000000042"]
    assert caplog.messages == [f"1 more RealSense cameras are connected but cannot be opened ({BUSY})"]


def test_what_cannot_be_opened_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    device, busy = SoftwareCamera().device, RuntimeError(BUSY)
    there = rf"there is 900000000042, 1 that cannot be opened \({BUSY}\)$"
    connect(monkeypatch, busy, device)
    with pytest.raises(CameraError, match=rf"^no RealSense camera 817 is found; {there}"):
        RealSenseCamera("817", MODE)
    with pytest.raises(CameraError, match=rf"^several RealSense cameras are connected: .* --source; {there}"):
        RealSenseCamera(None, MODE)
    connect(monkeypatch, busy)
    alone = rf"^no RealSense camera can be opened \({BUSY}\); is another program using it\?$"
    with pytest.raises(CameraError, match=alone):
        RealSenseCamera(None, MODE)
    with pytest.raises(CameraError, match=alone):
        list_cameras()


def pluggable() -> Any:
    """A software device that can be pulled out: librealsense's own is always connected."""

    class Pluggable(rs.software_device):  # type: ignore[misc]
        connected = True

        def is_connected(self) -> bool:
            return self.connected

    return Pluggable()


def test_a_camera_that_is_pulled_out_is_named_within_the_read() -> None:
    soft = SoftwareCamera(device=pluggable())
    with RealSenseCamera(mode=MODE, device=soft.device) as camera:
        with pytest.raises(FrameTimeout):
            camera.read(0.15)
        soft.device.connected = False
        begun_s = time.monotonic()
        with pytest.raises(CameraError, match=r"^realsense is no longer connected; check its cable$"):
            camera.read(600.0)
        assert time.monotonic() - begun_s < 60


def test_a_pipeline_that_has_stopped_under_a_camera_that_is_pulled_out_is_no_failure_of_its_own() -> None:
    soft = SoftwareCamera(device=pluggable())
    with RealSenseCamera(mode=MODE, device=soft.device) as camera:
        camera.close()
        soft.device.connected = False
        with pytest.raises(CameraError, match=r"^realsense is no longer connected; check its cable$"):
            camera.read(0.3)


def test_a_camera_is_never_restarted_unseen() -> None:
    """What was read at the opening, the depth unit and the intrinsics, may no longer hold for it."""
    soft = SoftwareCamera()
    with RealSenseCamera(mode=MODE, device=soft.device) as camera:
        with pytest.raises(RuntimeError, match="cannot be called if a callback was provided"):
            camera._pipeline.try_wait_for_frames(1)  # the call that restarts
        soft.push(noise(1), 1, 1000.0)
        assert camera.read(60).seq == 1


def test_the_projector_is_lit_again_whatever_ends_the_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(rs.pipeline):  # type: ignore[misc]
        def start(self, *_: Any, **__: Any) -> Any:
            assert soft.sensor.get_option(rs.option.emitter_enabled) == 0
            raise KeyboardInterrupt

    soft = SoftwareCamera(infrared=(1,))
    monkeypatch.setattr(rs, "pipeline", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        RealSenseCamera(mode=MODE, device=soft.device, infrared=True)
    assert soft.sensor.get_option(rs.option.emitter_enabled) == 1


def test_a_projector_that_was_left_off_is_said_when_depth_is_opened(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LOG, "propagate", True)
    soft = SoftwareCamera(infrared=(1,))
    with RealSenseCamera(mode=MODE, device=soft.device):
        assert not caplog.records
    soft.sensor.set_option(rs.option.emitter_enabled, 0)
    with RealSenseCamera(mode=MODE, device=soft.device, infrared=True):
        assert not caplog.records
    with RealSenseCamera(mode=MODE, device=soft.device):
        assert caplog.messages == [
            "realsense: its projector is off, so depth is worse; plug it in anew to switch it on"
        ]
    assert caplog.records[0].levelno == logging.WARNING and soft.sensor.get_option(rs.option.emitter_enabled) == 0


def test_depth_and_infrared_of_a_read_are_of_one_moment() -> None:
    """A frame whose other half was lost comes with the last one of the other stream."""
    soft = SoftwareCamera(infrared=(1,))
    pictures = [(noise(100 + k) % 256).astype(np.uint8) for k in range(6)]
    with RealSenseCamera(mode=MODE, device=soft.device, infrared=True) as camera:

        def push(number: int, *, depth: bool = True, picture: bool = True) -> None:
            if picture:
                soft.push_picture(1, pictures[number], number, 1000.0 + 33 * number)
            if depth:
                soft.push(noise(number), number, 1000.0 + 33 * number)

        push(1)
        assert camera.read(60).seq == 1
        push(2, picture=False)
        with pytest.raises(FrameTimeout):
            camera.read(0.15)
        push(3, depth=False)
        with pytest.raises(FrameTimeout):
            camera.read(0.15)
        push(4, picture=False)
        push(5)
        frame = camera.read(60)
        assert frame.seq == 5 and np.array_equal(frame.depth, noise(5))
        assert np.array_equal(frame.infrared, pictures[5])
