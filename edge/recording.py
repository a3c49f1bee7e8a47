"""Our own recordings: an MCAP file with lossless 16-bit depth.

One channel `depth.<camera>` of msgpack maps {v, camera, seq, t_ns, depth_unit_m, intrinsics, png}, log time = t_ns (ns,
CLOCK_MONOTONIC of the recording host), and one metadata record `edge_hand.recording` with the format's version, the
camera, the depth sensor's name and its settings. Depth only: infrared and colour are not kept.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from ..hand.camera import Intrinsics
from ..hand.frames import DepthFrame

VERSION = 1
METADATA = "edge_hand.recording"
PNG_COLOURS = {0: "greyscale", 2: "colour", 3: "palette", 4: "greyscale with alpha", 6: "colour with alpha"}


class RecordingError(Exception):
    """A recording cannot be read or written; one line."""


class RecordingWriter:
    """Writes the depth frames of one camera to a new file, readable by its owner alone (mode 0600).

    The file grows under a temporary name beside it and gets its own when closed, also after an exception; a recording
    without frames leaves no file. sensor names the depth sensor, settings is what a reader may want to know.
    compress_level is zlib's, 0 to 9: on real depth 6 is 3 % larger than 9 and five times faster.
    """

    def __init__(
        self, path: Path, *, sensor: str = "", settings: dict[str, str] | None = None, compress_level: int = 9
    ) -> None:
        self.path = Path(path)
        self.frames = 0
        self._camera: str | None = None
        self._level = compress_level
        self._metadata = {f"setting.{key}": str(value) for key, value in (settings or {}).items()}
        self._metadata |= {"version": str(VERSION), "sensor": sensor}
        if self.path.exists():
            raise RecordingError(f"{self.path} exists already; choose another name or move it away")
        try:
            descriptor, temporary = tempfile.mkstemp(".part", f".{self.path.name}.", self.path.parent)
        except OSError as error:
            raise RecordingError(f"cannot write in {self.path.parent}: {error.strerror}") from error
        self._temporary = Path(temporary)
        self._file = os.fdopen(descriptor, "wb")

        from mcap.writer import CompressionType, Writer

        self._writer = Writer(self._file, compression=CompressionType.NONE)  # PNG is compressed already
        self._writer.start(profile="", library="edge-hand")

    def write(self, frame: DepthFrame) -> None:
        """Append one frame. Raises RecordingError for another camera's frame or a full disk."""
        if self._camera is None:
            self._camera = frame.camera
            self._writer.add_metadata(METADATA, self._metadata | {"camera": frame.camera})
            self._channel = self._writer.register_channel(f"depth.{frame.camera}", "msgpack", schema_id=0)
        if frame.camera != self._camera:
            raise RecordingError(f"{self.path} records camera {self._camera}; this frame is of {frame.camera}")
        data = encode_frame(frame, self._level)
        try:
            self._writer.add_message(self._channel, frame.t_ns, data, frame.t_ns, sequence=frame.seq & 0xFFFFFFFF)
        except OSError as error:
            raise RecordingError(f"cannot write {self._temporary}: {error.strerror}") from error
        self.frames += 1

    def close(self) -> None:
        """Finish the file and give it its name; nothing is left if that fails or no frame was written."""
        if self._file.closed:
            return
        try:
            with self._file:
                self._writer.finish()  # type: ignore[no-untyped-call]
                self._file.flush()
                os.fsync(self._file.fileno())
            if self.frames:
                os.replace(self._temporary, self.path)
        except OSError as error:
            raise RecordingError(f"cannot finish {self.path}: {error.strerror}") from error
        finally:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Recording:
    """A recording opened for reading: `len` frames, iterated in the order of time.

    camera is the recorded camera's name, fps its mean rate in Hz, t_ns of the frames the recording host's clock.
    Opening and reading raise RecordingError.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise RecordingError(f"{self.path}: {(error.strerror or 'cannot be opened').lower()}") from error
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        from mcap.reader import SeekingReader

        try:
            size = os.fstat(self._file.fileno()).st_size  # a length that claims more is not even reserved
            self._reader = SeekingReader(self._file, validate_crcs=True, record_size_limit=min(1 << 28, size))
            summary = self._reader.get_summary()
            records = [record.metadata for record in self._reader.iter_metadata() if record.name == METADATA]
        except Exception as error:  # the library lets whatever a foreign byte causes through
            raise RecordingError(f"{self.path} is not an MCAP file, or is cut or damaged ({_reason(error)})") from error
        if summary is None or summary.statistics is None:
            raise RecordingError(f"{self.path} has no summary: it is cut, or not an edge-hand recording")
        if len(records) != 1:
            topics = ", ".join(sorted(channel.topic for channel in summary.channels.values())) or "none"
            raise RecordingError(f"{self.path} is an MCAP file, but not an edge-hand recording (its topics: {topics})")
        self.metadata: dict[str, str] = records[0]
        version = self.metadata.get("version", "")
        if version != str(VERSION):
            raise RecordingError(
                f"{self.path} has recording format {version or 'unknown'}; this edge-hand reads format {VERSION}"
            )
        self.camera = self.metadata.get("camera", "")
        self.sensor = self.metadata.get("sensor", "")
        self.settings = {
            key.removeprefix("setting."): value for key, value in self.metadata.items() if key.startswith("setting.")
        }
        self._topic = f"depth.{self.camera}"
        counts = summary.statistics
        self._frames = int(counts.message_count)
        span_ns = counts.message_end_time - counts.message_start_time
        self.fps = (self._frames - 1) * 1e9 / span_ns if self._frames > 1 and span_ns > 0 else 30.0
        first = next(self.messages(), None)
        if first is None:
            raise RecordingError(f"{self.path} has no frames")
        self.intrinsics = _unpack(first, self.path)[1]

    def messages(self) -> Iterator[bytes]:
        """The frames as stored, for `decode_frame`."""
        try:
            for _, _, message in self._reader.iter_messages(topics=[self._topic]):
                yield message.data
        except Exception as error:
            raise RecordingError(f"{self.path} is damaged ({_reason(error)})") from error

    def decode_frame(self, data: bytes) -> DepthFrame:
        """One stored frame; raises RecordingError if this one cannot be used."""
        fields, intrinsics = _unpack(data, self.path)
        try:
            depth = decode_depth_png(fields["png"], intrinsics.width, intrinsics.height)
            return DepthFrame(
                camera=str(fields["camera"]),
                seq=int(fields["seq"]),
                t_ns=int(fields["t_ns"]),
                depth=depth,
                depth_unit_m=float(fields["depth_unit_m"]),
                intrinsics=intrinsics,
            )
        except (ValueError, TypeError) as error:
            raise RecordingError(f"{self.path}, frame {fields['seq']}: depth {error}") from error

    def __len__(self) -> int:
        return self._frames

    def __iter__(self) -> Iterator[DepthFrame]:
        return map(self.decode_frame, self.messages())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def encode_frame(frame: DepthFrame, compress_level: int = 9) -> bytes:
    """A frame as one message of a recording."""
    k = frame.intrinsics
    intrinsics = {"width": k.width, "height": k.height, "fx": k.fx, "fy": k.fy, "cx": k.cx, "cy": k.cy}
    fields = {
        "v": VERSION,
        "camera": frame.camera,
        "seq": frame.seq,
        "t_ns": frame.t_ns,
        "depth_unit_m": frame.depth_unit_m,
        "intrinsics": intrinsics | {"distortion": list(k.distortion)},
        "png": encode_depth_png(frame.depth, compress_level),
    }
    data: bytes = msgpack.packb(fields)
    return data


def encode_depth_png(depth: NDArray[np.uint16], compress_level: int = 9) -> bytes:
    """(H, W) counts to a lossless 16-bit greyscale PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(depth)).save(out, "PNG", compress_level=compress_level)  # mode I;16
    return out.getvalue()


def decode_depth_png(data: bytes, width: int, height: int) -> NDArray[np.uint16]:
    """A 16-bit greyscale PNG to (height, width) counts.

    Raises ValueError with what was seen and what is expected, to be put behind the file's name.
    """
    from PIL import Image

    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 33:
        raise ValueError(f"is not a PNG ({len(data)} bytes); expected a 16-bit greyscale PNG")
    png_width, png_height, bits, colour = struct.unpack(">IIBB", data[16:26])
    if (bits, colour) != (16, 0):
        raise ValueError(f"is a PNG with {bits}-bit {PNG_COLOURS.get(colour, 'unknown')}; expected 16-bit greyscale")
    if (png_width, png_height) != (width, height):
        raise ValueError(f"is {png_width}x{png_height} px; the intrinsics are for {width}x{height}")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image).astype(np.uint16)
    except Exception as error:  # a broken PNG makes Pillow raise OSError, SyntaxError, struct.error and more
        raise ValueError(f"is a truncated or damaged PNG ({_reason(error)})") from error


def _unpack(data: bytes, path: Path) -> tuple[dict[str, Any], Intrinsics]:
    """A message's fields and its intrinsics, checked."""
    try:
        fields = msgpack.unpackb(data)
        version = fields["v"]
        if version != VERSION:
            raise RecordingError(f"{path}: a frame has format {version}; this edge-hand reads format {VERSION}")
        missing = [key for key in ("camera", "seq", "t_ns", "depth_unit_m", "intrinsics", "png") if key not in fields]
        if missing:
            raise RecordingError(f"{path}: a frame lacks {', '.join(missing)}")
        given = fields["intrinsics"]
        intrinsics = Intrinsics(**(given | {"distortion": tuple(given["distortion"])}))
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise RecordingError(f"{path}: a frame is damaged ({_reason(error)})") from error
    return fields, intrinsics


def _reason(error: Exception) -> str:
    """An exception in one line."""
    return " ".join(str(error).split()) or type(error).__name__
