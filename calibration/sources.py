"""Pictures to find the board in: a video, a folder of pictures, or a camera; one source is one camera of the rig.

A source says its intrinsics in a JSON file: `camera.json` in a folder of pictures, `NAME.json` beside a video
`NAME.mp4`. It has width, height, fx, fy, cx, cy (px) and, where they are known, distortion [k1, k2, p1, p2, k3], fps
(Hz), camera (the serial), stream (infrared or colour), depth_scale_m. Times in s, one a line, may stand in `times.txt`
or `NAME.times.txt`; without them pictures come at fps. A folder may hold `depth/` with 16-bit PNGs, registered to the
pictures and named as they are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..edge.cameras import BadFrame, Camera, CameraError, EndOfStream, FrameTimeout, open_camera
from ..edge.librealsense import LIBREALSENSE
from ..edge.recordings.recording import decode_depth_png
from ..hand.arrays import Array
from ..hand.camera import Intrinsics
from ..hand.fields import printable
from .target import import_opencv

VIDEOS = (".mp4", ".avi", ".mkv", ".mov")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
# The daemon's size, which the rig is for, but slower: finding the board takes longer than a picture at 90 Hz.
REALSENSE_MODE = "848x480@30"
SILENCE_S = 5.0  # without a frame that can be used, after which a camera counts as gone


class SourceError(Exception):
    """A source cannot be read; one line."""


class Picture(NamedTuple):
    """Time in s; grey (H, W) or blue-green-red (H, W, 3); depth (H, W) m registered to it, 0 = no reading."""

    t_s: float
    image: NDArray[np.uint8]
    depth_m: Array | None


class Source(Protocol):
    """Pictures of one camera, in the order of time."""

    @property
    def serial(self) -> str: ...
    @property
    def stream(self) -> str: ...
    @property
    def intrinsics(self) -> Intrinsics: ...
    @property
    def fps(self) -> float: ...
    @property
    def live(self) -> bool: ...
    @property
    def of_host(self) -> bool:
        """Whether its times are its host's clock, as a daemon's are."""
        ...

    def pictures(self) -> Iterator[Picture]: ...


def open_source(text: str, mode: str | None = None) -> Source:
    """A video, a folder of pictures, a recording, or KIND:SERIAL for a camera, of this mode ("848x480@30").

    Raises SourceError or CameraError.
    """
    path = Path(text)
    if mode is not None and path.exists():
        raise SourceError(f"--mode is for cameras; {text} has the size and the rate that it was recorded with")
    if path.is_dir():
        return PictureFolder(path)
    if path.is_file() and path.suffix.lower() in VIDEOS:
        return VideoFile(path)
    if path.is_file() and path.suffix in LIBREALSENSE:
        recorded = open_camera("realsense", text, infrared=True, recorded_times=True)
        return CameraPictures(recorded, live=False, of_host=False)
    if path.is_file() and path.suffix == ".mcap":
        return CameraPictures(open_camera("replay", text, deterministic=True), live=False)
    kind, mark, serial = text.partition(":")
    if mark and not path.exists():
        is_realsense = kind == "realsense"
        mode = mode or (REALSENSE_MODE if is_realsense else None)
        return CameraPictures(open_camera(kind, serial or None, mode=mode, infrared=is_realsense), live=True)
    trouble = "is no source" if path.exists() else "does not exist"
    kinds = [f"a {' '.join(VIDEOS)} video", "a folder of pictures", f"a {' '.join(LIBREALSENSE)} recording"]
    raise SourceError(f"{text} {trouble}; a source is {', '.join(kinds)} or KIND:SERIAL")


@contextmanager
def open_sources(texts: Sequence[str], mode: str | None = None) -> Iterator[list[Source]]:
    """All of them, closed at the end and if one cannot be opened: a RealSense's projector is off as long as it is open.
    Raises SourceError or CameraError."""
    with ExitStack() as stack:
        opened: list[Source] = []
        for text in texts:
            opened.append(open_source(text, mode))
            if isinstance(source := opened[-1], CameraPictures):
                stack.callback(source.close)
        yield opened


class VideoFile:
    """A video with its intrinsics beside it."""

    live = of_host = False

    def __init__(self, path: Path) -> None:
        self._path = path
        known = _read_json(path.with_suffix(".json"))
        self.serial = printable(str(known.get("camera", path.stem)))
        self.stream = printable(str(known.get("stream", "colour")))
        self.intrinsics = known["intrinsics"]
        cv2 = import_opencv()
        self._video = cv2.VideoCapture(str(path))
        if not self._video.isOpened():
            raise SourceError(f"{path}: not a video that OpenCV can read")
        self._times = _read_times(path.with_suffix(".times.txt"))
        rate = _rate(self._times) or float(known.get("fps", 0)) or float(self._video.get(cv2.CAP_PROP_FPS))
        self.fps = rate if rate > 0 else 30.0

    def pictures(self) -> Iterator[Picture]:
        n = 0
        while True:
            good, image = self._video.read()
            if not good or (self._times is not None and n >= len(self._times)):
                return
            _check_size(image, self.intrinsics, f"{self._path}, picture {n}")
            yield Picture(n / self.fps if self._times is None else float(self._times[n]), image, None)
            n += 1


class PictureFolder:
    """Pictures in the order of their names."""

    live = of_host = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        known = _read_json(folder / "camera.json")
        self.serial = printable(str(known.get("camera", folder.resolve().name)))
        self.stream = printable(str(known.get("stream", "infrared")))
        self.intrinsics = known["intrinsics"]
        self._unit_m = float(known.get("depth_scale_m", 0.001))
        self._paths = sorted(
            (path for path in folder.iterdir() if path.suffix.lower() in PICTURES), key=lambda p: (len(p.stem), p.stem)
        )
        if not self._paths:
            raise SourceError(f"{folder} has no pictures ({', '.join(PICTURES)})")
        self._times = _read_times(folder / "times.txt")
        if self._times is not None and len(self._times) != len(self._paths):
            raise SourceError(
                f"{folder}: times.txt has {len(self._times)} times, there are {len(self._paths)} pictures"
            )
        self.fps = _rate(self._times) or float(known.get("fps", 30))

    def pictures(self) -> Iterator[Picture]:
        cv2 = import_opencv()
        for n, path in enumerate(self._paths):
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                raise SourceError(f"{path}: not a picture that OpenCV can read")
            _check_size(image, self.intrinsics, str(path))
            t_s = n / self.fps if self._times is None else float(self._times[n])
            yield Picture(t_s, image, self._depth(path.stem))

    def _depth(self, stem: str) -> Array | None:
        path = self._folder / "depth" / f"{stem}.png"
        if not path.exists():
            return None
        try:
            counts = decode_depth_png(path.read_bytes(), self.intrinsics.width, self.intrinsics.height)
        except ValueError as error:
            raise SourceError(f"{path} {error}") from None
        return counts * self._unit_m


class CameraPictures:
    """A camera, or its recording, as far as its frames hold infrared or colour."""

    stream = "infrared"

    def __init__(self, camera: Camera, live: bool, of_host: bool = True) -> None:
        self._camera, self.live, self.of_host = camera, live, of_host
        self.serial, self.intrinsics, self.fps = camera.name, camera.intrinsics, camera.fps

    def close(self) -> None:
        self._camera.__exit__(None, None, None)

    def pictures(self) -> Iterator[Picture]:
        with self._camera as camera:
            heard_s = time.monotonic()
            while True:
                try:
                    frame = camera.read()
                except EndOfStream:
                    return
                except (BadFrame, FrameTimeout) as error:
                    if time.monotonic() - heard_s > SILENCE_S:
                        raise CameraError(f"no frame that can be used for {SILENCE_S:g} s: {error}") from None
                    continue
                image = frame.infrared if frame.infrared is not None else frame.colour
                if image is None:
                    raise CameraError(
                        f"{self.serial} gives depth alone; the board needs infrared or colour: pass a video or pictures"
                    )
                # Infrared shares the depth's pinhole; colour is another camera.
                depth = frame.depth * frame.depth_unit_m if frame.infrared is not None else None
                yield Picture(frame.t_ns * 1e-9, image, depth)
                heard_s = time.monotonic()


def _read_json(path: Path) -> dict[str, Any]:
    """The file's entries, with `intrinsics` made of them."""
    try:
        known = json.loads(path.read_bytes())  # as bytes: Windows puts a mark first
        if not isinstance(known, dict):
            raise SourceError(f"{path} holds {type(known).__name__}, expected a map with the intrinsics")
        lens = {key: known[key] for key in ("width", "height", "fx", "fy", "cx", "cy")}
        known["intrinsics"] = Intrinsics(**lens, distortion=tuple(known.get("distortion", (0.0,) * 5)))
    except OSError as error:
        raise SourceError(
            f"{path}: {(error.strerror or 'cannot be read').lower()}; it must hold the intrinsics"
        ) from None
    except KeyError as error:
        raise SourceError(f"{path}: {error.args[0]} is missing") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise SourceError(f"{path}: {error}") from None
    for key, least, most in (("fps", 1e-3, 1000), ("depth_scale_m", 1e-6, 0.1)):
        value = known.get(key, most)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise SourceError(f"{path}: {key} is {value!r}, expected a number from {least:g} to {most:g}")
    return known


def _read_times(path: Path) -> Array | None:
    if not path.exists():
        return None
    try:
        times = np.array([float(line) for line in path.read_text().split()])
    except ValueError as error:
        raise SourceError(f"{path}: {error}; expected seconds, one number a line") from None
    if len(times) < 2 or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise SourceError(f"{path}: times must rise")
    return times


def _rate(times: Array | None) -> float | None:
    return None if times is None else float(1 / np.median(np.diff(times)))


def _check_size(image: Array, intrinsics: Intrinsics, where: str) -> None:
    height, width = image.shape[:2]
    if (width, height) != (intrinsics.width, intrinsics.height):
        raise SourceError(
            f"{where} is {width}x{height} px; the intrinsics are for {intrinsics.width}x{intrinsics.height}"
        )
