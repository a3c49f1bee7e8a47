"""Intel RealSense depth cameras, and librealsense's own recordings (.bag, .db3), through pyrealsense2.

The depth stream (Z16) is opened, and the infrared picture beside it if asked for. pyrealsense2 is imported when a
camera is opened.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...hand.frames import DepthFrame
from ..camera_mode import MODES, Mode, parse_mode
from ..librealsense import (
    LIBREALSENSE,
    device_info,
    each_device,
    find_device,
    import_realsense,
    in_use,
    intrinsics_from_realsense,
    reason,
)
from ..log import LOG
from ..pace import Pacer
from ..realsense_time import FrameTimes, RecordedTimes
from . import BadFrame, Camera, CameraError, EndOfStream, FrameTimeout

# What a D400 offers on USB 3: the first is ours, 480x270@90 costs the least, 1280x720@30 reaches furthest.
DEFAULT_MODE = MODES[0]
POLL_S = 0.1  # how often a wait looks whether the camera is still there or the file has ended
# The recording closed last. librealsense (2.59.1) may destroy one while a thread of its own is about to read on in it,
# and the process with it; by the time that the next is closed, that thread has ended.
_CLOSED: deque[Any] = deque(maxlen=1)


def open_camera(
    source: str | None, *, mode: str | None = None, fps: float | None = None, loop: bool = False,
    infrared: bool = False, recorded_times: bool = False,
) -> Camera:  # fmt: skip
    """Open a camera (source = its serial number, None = the only one) or a recording (source = its path). infrared:
    frames have the picture that the depth was seen in too; a camera's projector is off meanwhile, whose dots it shows.
    recorded_times: a recording's frames come at once and keep the times they were recorded with.
    """
    recording = check_camera(source, mode=mode, fps=fps, loop=loop)
    if recording is None:
        return RealSenseCamera(source, mode or DEFAULT_MODE, infrared=infrared)
    return RealSenseCamera(source=recording, fps=fps, loop=loop, infrared=infrared, recorded_times=recorded_times)


def check_camera(
    source: str | None, *, mode: str | None = None, fps: float | None = None, loop: bool = False
) -> Path | None:
    """The recording that source is, None for a camera's serial number. Raises CameraError."""
    if source is None or not (Path(source).suffix in LIBREALSENSE or Path(source).is_file()):
        if fps is not None or loop:
            raise CameraError("--fps and --loop are for recordings; a camera's rate is in its mode: --mode 848x480@90")
        parse_mode(mode or DEFAULT_MODE)
        return None
    if mode is not None:
        raise CameraError(f"--mode is for cameras; {source} has the mode it was recorded in")
    Pacer(fps)
    return Path(source)


@dataclass(frozen=True, slots=True)
class RealSenseInfo:
    """A connected camera: usb is the link's version ("3.2"), modes its depth modes."""

    serial: str
    name: str
    firmware: str
    usb: str
    modes: tuple[Mode, ...]


def list_cameras() -> list[RealSenseInfo]:
    """The RealSense cameras that are connected; those that cannot be opened are named in the log.

    Raises CameraError if that is all of them, or pyrealsense2 cannot be used.
    """
    rs, faults = import_realsense(), list[str]()
    try:
        found = list(each_device(rs, lambda device: _describe(rs, device), faults))
    except RuntimeError as error:
        raise CameraError(f"realsense: the cameras cannot be listed ({reason(error)})") from error
    if faults and not found:
        raise in_use(faults)
    if faults:
        LOG.warning("%d more RealSense cameras are connected but cannot be opened (%s)", len(faults), faults[0])
    return found


class RealSenseCamera:
    """The depth stream of a camera, or of a librealsense recording; with infrared its left picture too.

    Live, `read` gives the newest frame, with t_ns = its mid-exposure as well as the camera tells it. A recording is
    shown as the replay camera does: each frame at its time, none dropped, fps None as recorded or 0 at once; with
    recorded_times at once, and t_ns is librealsense's stamp in the file.
    device is a librealsense device to use instead of a connected one (a software device).
    """

    def __init__(
        self,
        serial: str | None = None,
        mode: str = DEFAULT_MODE,
        source: Path | None = None,
        *,
        fps: float | None = None,
        loop: bool = False,
        infrared: bool = False,
        recorded_times: bool = False,
        device: Any = None,
    ) -> None:
        self._rs = import_realsense()
        self._infrared = infrared
        self._recorded_times = recorded_times
        self._projector: tuple[Any, float] | None = None  # its sensor, and how it was before
        self._source = source
        self._loop = loop
        self._pacer = Pacer(fps)
        self._times = FrameTimes(self._rs)
        self._pending: DepthFrame | None = None
        self._seq_offset = 0
        self._first_number, self._last_number = 0, -1  # of this lap
        if source is None:
            self._label = f"realsense {serial}" if serial else "realsense"
            profile = self._start_device(serial, parse_mode(mode), device)
        else:
            self._label = str(source)
            profile = self._start_file(source)
        try:
            self._describe_stream(profile)
        except BaseException:
            self.close()
            raise
        self.fps: float = fps or self._stream_fps
        self._shown = RecordedTimes(round(1e9 / max(self._stream_fps, 1.0)))

    def read(self, timeout_s: float = 1.0) -> DepthFrame:
        """The newest frame of a camera, the next one of a recording.

        Raises FrameTimeout, BadFrame, EndOfStream, or CameraError when the camera is gone.
        """
        deadline_ns = time.monotonic_ns() + round(timeout_s * 1e9)
        if self._source is None:
            return self._convert(self._wait(deadline_ns, timeout_s))
        if self._pending is None:
            self._pending = self._convert(self._wait(deadline_ns, timeout_s))
        recorded_ns = self._pending.t_ns
        due_ns = recorded_ns if self._recorded_times else self._pacer.wait(recorded_ns, deadline_ns)
        frame, self._pending = self._pending, None
        return replace(frame, t_ns=due_ns)

    def close(self) -> None:
        self._light()
        with contextlib.suppress(RuntimeError):  # it was stopped already, or the camera is gone
            self._pipeline.stop()
        if self._playback is not None:
            _CLOSED.append((self._pipeline, self._device, self._playback))

    def __enter__(self) -> RealSenseCamera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_device(self, serial: str | None, mode: Mode, device: Any) -> Any:
        """Start a camera's depth stream; returns the pipeline's profile."""
        rs = self._rs
        config = rs.config()
        self._pipeline = rs.pipeline()
        self._playback = None
        arrivals = rs.frame_queue(1)  # the newest frame
        self._arrived = arrivals.try_wait_for_frame
        try:
            self._device = device = find_device(rs, serial) if device is None else device
            # A pipeline that is told a serial number waits 15 s for it, and all Python threads with it, if it is gone.
            self._pipeline.set_device(device)
            info = _describe(rs, device)
            if mode not in info.modes:
                link = f" on USB {info.usb}" if info.usb else ""
                raise CameraError(f"{info.name} {info.serial}{link} has no mode {mode}; it has {_by_size(info.modes)}")
            config.enable_stream(rs.stream.depth, mode.width, mode.height, rs.format.z16, mode.fps)
            if self._infrared:
                number = _infrared_number(rs, device, mode)
                if number is None:
                    raise CameraError(f"{info.name} {info.serial} has no infrared picture of {mode}")
                config.enable_stream(rs.stream.infrared, number, mode.width, mode.height, rs.format.y8, mode.fps)
            self._set_projector(device)
            # Into a queue of ours: a pipeline that is waited for restarts itself when the camera is unplugged, unseen.
            return self._pipeline.start(config, queue=arrivals)  # by its name, or it is taken for a Python callback
        except RuntimeError as error:
            self._light()
            raise CameraError(
                f"{self._label} cannot be started: {reason(error)}; is another program using it?"
            ) from error
        except BaseException:
            self._light()
            raise

    def _set_projector(self, device: Any) -> None:
        """For infrared it is off until `_light`; for depth alone it should be on."""
        emitter = self._rs.option.emitter_enabled
        for sensor in device.query_sensors():
            if sensor.supports(emitter) and self._infrared:
                self._projector = sensor, sensor.get_option(emitter)
                sensor.set_option(emitter, 0)
                return
            if sensor.supports(emitter):
                with contextlib.suppress(RuntimeError):  # depth can do without an answer
                    if sensor.get_option(emitter) == 0:
                        said = "its projector is off, so depth is worse; plug it in anew to switch it on"
                        LOG.warning("%s: %s", self._label, said)
                return

    def _light(self) -> None:
        """The projector is as it was before."""
        if self._projector is not None:
            (sensor, before), self._projector = self._projector, None
            with contextlib.suppress(RuntimeError):  # the camera is gone
                sensor.set_option(self._rs.option.emitter_enabled, before)

    def _start_file(self, path: Path) -> Any:
        """Start playing a recording from its beginning; returns the pipeline's profile."""
        rs = self._rs
        if not path.is_file():
            raise CameraError(f"{path}: no such recording")
        config = rs.config()
        self._pipeline = rs.pipeline()
        self._arrived = self._pipeline.try_wait_for_frames  # every frame
        try:
            config.enable_device_from_file(str(path), repeat_playback=False)
            config.enable_stream(rs.stream.depth)
            if self._infrared:
                config.enable_stream(rs.stream.infrared)
            # Before start: after it, the first frames of the file can be lost.
            config.resolve(rs.pipeline_wrapper(self._pipeline)).get_device().as_playback().set_real_time(False)
            profile = self._pipeline.start(config)
        except RuntimeError as error:
            if "Couldn't resolve" in str(error):
                both = " and infrared" if self._infrared else ""
                raise CameraError(f"{path} has no depth{both} stream") from error
            raise CameraError(f"{path} is not a librealsense recording that can be read: {reason(error)}") from error
        self._device = profile.get_device()
        self._playback = self._device.as_playback()
        return profile

    def _describe_stream(self, profile: Any) -> None:
        rs = self._rs
        stream = profile.get_stream(rs.stream.depth).as_video_stream_profile()
        try:
            scale = self._device.first_depth_sensor().get_depth_scale()
            # A float32 in librealsense; its shortest decimal is what the sensor means: 0.001, not 0.0010000000475.
            self._depth_unit_m = float(str(np.float32(scale)))
            self.name: str = device_info(self._device, rs.camera_info.serial_number) or "realsense"
            self.intrinsics = intrinsics_from_realsense(rs, stream.get_intrinsics())
        except (RuntimeError, ValueError) as error:
            raise CameraError(f"{self._label}: depth unit or intrinsics are missing ({reason(error)})") from error
        if not 1e-6 <= self._depth_unit_m <= 0.1:
            raise CameraError(f"{self._label}: depth unit {self._depth_unit_m} m is not plausible")
        self._stream_fps = float(stream.fps())

    def _wait(self, deadline_ns: int, timeout_s: float) -> Any:
        """librealsense's next depth frame, and the infrared one with it or None."""
        while True:
            left_s = (deadline_ns - time.monotonic_ns()) * 1e-9
            depth = self._poll(min(POLL_S, max(left_s, 0.001)))
            if depth is not None:
                return depth
            if self._playback is not None and self._playback.current_status() == self._rs.playback_status.stopped:
                depth = self._poll(0.02)  # the last frame may have come between the poll and the question
                if depth is not None:
                    return depth
                self._end_lap()
            self._check_connected()
            if left_s <= POLL_S:
                raise FrameTimeout(f"{self._label}: no depth frame within {timeout_s:g} s")

    def _poll(self, timeout_s: float) -> Any:
        try:
            arrived, frames = self._arrived(max(1, round(timeout_s * 1000)))
        except RuntimeError as error:
            self._check_connected()
            raise CameraError(f"{self._label} has failed: {reason(error)}") from error
        if not arrived:
            return None
        frames = frames.as_frameset()
        depth = frames.get_depth_frame() or None
        if not self._infrared or depth is None:
            return depth and (depth, None)
        # A set of frames that librealsense could not match has the last of each stream.
        picture = frames.first_or_default(self._rs.stream.infrared) or None
        if picture is None or abs(depth.get_timestamp() - picture.get_timestamp()) > 500 / self._stream_fps:
            return None
        return depth, picture

    def _end_lap(self) -> None:
        """Start the recording again, or raise EndOfStream."""
        if not self._loop or self._last_number < 0 or self._source is None:
            raise EndOfStream(f"{self._label}: no more frames")
        self._seq_offset += max(0, self._last_number - self._first_number) + 1  # it may have counted anew
        self._last_number = -1
        self._shown.begin_anew()
        self.close()
        self._start_file(self._source)

    def _check_connected(self) -> None:
        try:
            connected = self._device.is_connected()
        except RuntimeError:
            connected = False
        if not connected:
            raise CameraError(f"{self._label} is no longer connected; check its cable")

    def _convert(self, frames: tuple[Any, Any]) -> DepthFrame:
        """librealsense's frames as ours; t_ns is the host's clock for a camera, the recorded time for a file."""
        arrival_ns = time.monotonic_ns()
        depth, picture = frames
        number = int(depth.get_frame_number())
        if self._last_number < 0:
            self._first_number = number
        self._last_number = number
        if self._source is None:
            t_ns = self._times.exposed_ns(depth, arrival_ns)
        else:
            t_ns = round(depth.get_timestamp() * 1e6)
            if not self._recorded_times:
                t_ns = self._shown.follow(t_ns, depth.get_frame_timestamp_domain())
        try:
            return DepthFrame(
                camera=self.name,
                seq=number + self._seq_offset,
                t_ns=t_ns,
                depth=np.array(depth.get_data(), np.uint16),  # a copy: librealsense reuses its memory
                depth_unit_m=self._depth_unit_m,
                intrinsics=self.intrinsics,
                infrared=None if picture is None else np.array(picture.get_data(), np.uint8),
            )
        except (ValueError, RuntimeError) as error:
            raise BadFrame(f"{self._label}: {reason(error)}") from error


def _describe(rs: Any, device: Any) -> RealSenseInfo:
    modes = {
        Mode(video.width(), video.height(), video.fps())
        for sensor in device.query_sensors()
        for profile in sensor.get_stream_profiles()
        if profile.stream_type() == rs.stream.depth and profile.format() == rs.format.z16
        for video in [profile.as_video_stream_profile()]
    }
    info = rs.camera_info
    return RealSenseInfo(
        serial=device_info(device, info.serial_number),
        name=device_info(device, info.name) or "RealSense",
        firmware=device_info(device, info.firmware_version),
        usb=device_info(device, info.usb_type_descriptor),
        modes=tuple(sorted(modes)),
    )


def _infrared_number(rs: Any, device: Any, mode: Mode) -> int | None:
    """Of the infrared pictures of this mode the one that depth is seen in: the left, or the only one."""
    numbers = [
        profile.stream_index()
        for sensor in device.query_sensors()
        for profile in sensor.get_stream_profiles()
        if profile.stream_type() == rs.stream.infrared and profile.format() == rs.format.y8
        for video in [profile.as_video_stream_profile()]
        if Mode(video.width(), video.height(), video.fps()) == mode
    ]
    return min(numbers, key=lambda number: (number != 1, number), default=None)


def _by_size(modes: tuple[Mode, ...]) -> str:
    """ "640x480@30/60, 848x480@90"."""
    rates: dict[str, list[str]] = {}
    for mode in modes:
        rates.setdefault(f"{mode.width}x{mode.height}", []).append(str(mode.fps))
    return ", ".join(f"{size}@{'/'.join(fps)}" for size, fps in rates.items()) or "no depth stream"
