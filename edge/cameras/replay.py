"""The replay camera: a folder of depth PNGs, our own recording or librealsense's, at the rate of a camera.

A folder holds 16-bit greyscale PNGs, at any depth below it, none hidden, and a `camera.json` with width, height, fx,
fy, cx, cy (px), depth_scale_m (m per count) and, if they are known, distortion [k1, k2, p1, p2, k3], fps (Hz, 30 if
absent), camera (the name) and sensor.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ...hand.camera import Intrinsics
from ...hand.frames import DepthFrame
from ..clock import HOST, Clock
from ..librealsense import LIBREALSENSE
from ..pace import SLOWEST_HZ, Pacer
from ..recordings.recording import Recording, RecordingError, decode_depth_png
from . import BadFrame, Camera, CameraError, EndOfStream, FrameTimeout, NotThere

FORMS = "a folder of 16-bit PNGs with camera.json, a recording .mcap, or a librealsense .bag or .db3"
REQUIRED = ("width", "height", "fx", "fy", "cx", "cy", "depth_scale_m")


def open_camera(
    source: str | None, *, fps: float | None = None, loop: bool = False, deterministic: bool = False
) -> Camera:
    """Open a recording; fps None = the recorded rate, 0 = as fast as possible; deterministic as in `ReplayCamera`.

    Raises CameraError.
    """
    path = check_camera(source, fps=fps, deterministic=deterministic)
    if path.suffix in LIBREALSENSE:
        from .realsense import RealSenseCamera

        return RealSenseCamera(source=path, fps=fps, loop=loop)
    if path.is_dir():
        return ReplayCamera(PngFolder(path), fps=fps, loop=loop, deterministic=deterministic)
    return ReplayCamera(RecordedFrames(path), fps=fps, loop=loop, deterministic=deterministic)


def check_camera(
    source: str | None, *, fps: float | None = None, loop: bool = False, deterministic: bool = False
) -> Path:
    """The recording's path. Raises CameraError, NotThere if there is none."""
    if source is None:
        raise CameraError(f"replay needs --source PATH: {FORMS}")
    Pacer(fps)
    if deterministic and fps is not None:
        raise CameraError("--deterministic and --fps: choose one; a deterministic replay keeps the recorded times")
    path = Path(source)
    if not path.exists():
        raise NotThere(f"{path} does not exist; replay reads {FORMS}")
    if path.suffix in LIBREALSENSE:
        if deterministic:
            raise CameraError(f"{path}: --deterministic replays our own recordings and folders of PNGs only")
    elif path.suffix != ".mcap" and not path.is_dir():
        raise CameraError(f"{path} is not a recording: replay reads {FORMS}")
    return path


class FrameSource(Protocol):
    """Stored frames with their recorded times; a frame that cannot be used comes as a BadFrame value."""

    @property
    def name(self) -> str: ...
    @property
    def intrinsics(self) -> Intrinsics: ...
    @property
    def fps(self) -> float: ...
    @property
    def wall_offset_ns(self) -> int: ...
    def frames(self) -> Iterator[DepthFrame | BadFrame]: ...
    def close(self) -> None: ...


class ReplayCamera:
    """Shows the frames of a source as a camera would: each at its time, none dropped, t_ns = when it is due.

    The next frame is decoded in the background while the caller works on this one. With loop the source starts again
    at its end, and seq and time go on. With deterministic frames keep their recorded times and come as fast as they are
    read, without any timeout, and `clock` is that of the recording: it stands at the last frame's time.
    """

    def __init__(
        self, source: FrameSource, *, fps: float | None = None, loop: bool = False, deterministic: bool = False
    ) -> None:
        self._pacer = Pacer(fps)
        self.name = source.name
        self.intrinsics = source.intrinsics
        self.fps = fps or source.fps
        self._source = source
        self._items = _laps(source, loop)
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="replay")
        self._next = self._decode_next()
        self.clock = HOST
        if deterministic:
            self._now_ns = self._first_ns()
            self.clock = Clock(lambda: self._now_ns, lambda: self._now_ns + source.wall_offset_ns, measures=False)

    def read(self, timeout_s: float = 1.0) -> DepthFrame:
        """The next frame, once it is due. Raises FrameTimeout, BadFrame, EndOfStream or CameraError."""
        deadline_ns = time.monotonic_ns() + round(timeout_s * 1e9)
        try:
            item = self._next.result(timeout_s if self.clock.measures else None)
        except FutureTimeout:
            raise FrameTimeout(f"{self.name}: the next frame was not decoded within {timeout_s:g} s") from None
        except RecordingError as error:
            raise CameraError(str(error)) from error
        if item is None:
            raise EndOfStream(f"{self.name}: no more frames")
        if isinstance(item, BadFrame):
            self._next = self._decode_next()
            raise item
        if not self.clock.measures:
            self._next, self._now_ns = self._decode_next(), item.t_ns
            return item
        due_ns = self._pacer.wait(item.t_ns, deadline_ns)
        self._next = self._decode_next()
        return replace(item, t_ns=due_ns)

    def close(self) -> None:
        self._decoder.shutdown(wait=True, cancel_futures=True)
        self._source.close()

    def _first_ns(self) -> int:
        try:
            item = self._next.result()
        except RecordingError:
            return 0  # `read` will say it
        return item.t_ns if isinstance(item, DepthFrame) else 0

    def _decode_next(self) -> Future[DepthFrame | BadFrame | None]:
        return self._decoder.submit(next, self._items, None)

    def __enter__(self) -> ReplayCamera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PngFolder:
    """A folder of depth PNGs; a frame's seq is its place in the natural order of the paths (2.png before 10.png)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        camera = _read_camera_json(folder / "camera.json")
        self.name = _wire_name(str(camera.get("camera") or folder.resolve().name))
        self.intrinsics: Intrinsics = camera["intrinsics"]
        self.depth_unit_m: float = camera["depth_scale_m"]
        self.fps: float = camera["fps"]
        self.wall_offset_ns = 0
        self.paths = sorted(
            (path for path in folder.rglob("*") if path.suffix.lower() == ".png" and not _hidden(path, folder)),
            key=lambda path: _natural(str(path.relative_to(folder))),
        )
        if not self.paths:
            raise CameraError(f"{folder} has no PNG in it; replay reads {FORMS}")

    def frames(self) -> Iterator[DepthFrame | BadFrame]:
        for seq, path in enumerate(self.paths):
            try:
                depth = decode_depth_png(path.read_bytes(), self.intrinsics.width, self.intrinsics.height)
                t_ns = round(seq * 1e9 / self.fps)
                yield DepthFrame(self.name, seq, t_ns, depth, self.depth_unit_m, self.intrinsics)
            except ValueError as error:
                yield BadFrame(f"{path} {error}")
            except OSError as error:
                yield BadFrame(f"{path} cannot be read: {error.strerror}")

    def close(self) -> None:
        pass


class RecordedFrames:
    """Our own recording (`recording.py`)."""

    def __init__(self, path: Path) -> None:
        try:
            self._recording = Recording(path)
        except RecordingError as error:
            raise CameraError(str(error)) from error
        self.name = self._recording.camera
        self.intrinsics = self._recording.intrinsics
        self.fps = self._recording.fps
        self.wall_offset_ns = self._recording.wall_offset_ns

    def frames(self) -> Iterator[DepthFrame | BadFrame]:
        for message in self._recording.stored():
            try:
                yield self._recording.decode_frame(message)
            except RecordingError as error:
                yield BadFrame(str(error))

    def close(self) -> None:
        self._recording.close()


def _laps(source: FrameSource, loop: bool) -> Iterator[DepthFrame | BadFrame]:
    """The source's frames, again and again if loop; seq and recorded time go on from lap to lap."""
    seq_offset, t_offset_ns = 0, 0
    while True:
        first = last = None
        for item in source.frames():
            if isinstance(item, DepthFrame):
                first, last = first or item, item
                item = replace(item, seq=item.seq + seq_offset, t_ns=item.t_ns + t_offset_ns)
            yield item
        if not loop or first is None or last is None:
            return
        seq_offset += max(0, last.seq - first.seq) + 1  # a camera may have counted anew
        t_offset_ns += last.t_ns - first.t_ns + round(1e9 / source.fps)


def _read_camera_json(path: Path) -> dict[str, Any]:
    """camera.json's fields, with `intrinsics` made of them."""
    try:
        camera = json.loads(path.read_bytes())  # as bytes: Windows puts a mark first
    except FileNotFoundError:
        raise CameraError(f"{path} is missing; it gives {', '.join(REQUIRED)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CameraError(f"{path} is not readable JSON ({error})") from error
    if not isinstance(camera, dict):
        raise CameraError(f"{path} holds {type(camera).__name__}, expected a map with {', '.join(REQUIRED)}")
    missing = [key for key in REQUIRED if key not in camera]
    if missing:
        raise CameraError(f"{path} lacks {', '.join(missing)}; it must give {', '.join(REQUIRED)}")
    camera.setdefault("fps", 30.0)
    for key in (*REQUIRED, "fps"):
        if isinstance(camera[key], bool) or not isinstance(camera[key], int | float):
            raise CameraError(f"{path}: {key} is {camera[key]!r}, expected a number")
    if not 1e-6 <= camera["depth_scale_m"] <= 0.1:
        raise CameraError(f"{path}: depth_scale_m {camera['depth_scale_m']} m is not plausible, expected 1e-6 to 0.1")
    if not SLOWEST_HZ <= camera["fps"] <= 1000:
        raise CameraError(f"{path}: fps {camera['fps']} Hz is not plausible, expected {SLOWEST_HZ:g} to 1000")
    try:
        camera["intrinsics"] = Intrinsics(
            width=int(camera["width"]),
            height=int(camera["height"]),
            **{key: float(camera[key]) for key in ("fx", "fy", "cx", "cy")},
            distortion=tuple(float(c) for c in camera.get("distortion", (0.0,) * 5)),  # type: ignore[arg-type]
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise CameraError(f"{path}: {error}") from error
    return camera


def _wire_name(name: str) -> str:
    """A name as topics allow it: printable, without spaces, at most 64 characters."""
    return "".join(c if c.isprintable() and not c.isspace() else "_" for c in name)[:64] or "replay"


def _hidden(path: Path, folder: Path) -> bool:
    """What a file manager or notebook keeps there: .ipynb_checkpoints, .Trash-1000, ._0.png."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort key that orders the numbers in a path by value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
