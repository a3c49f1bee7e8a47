"""Our own recordings: an MCAP file with lossless 16-bit depth and, from `edge-hand run`, what was published of it.

Format 2 (docs/recording.md): a channel `depth.<camera>` of ROS 2 images (16UC1 counts, CDR), whose metadata has the
depth unit and the intrinsics; the wire's topics with the wire's own bytes (msgpack); `scene.`, `plot.` and
`calibration.<camera>` for Foxglove (`foxglove.py`). Times are CLOCK_MONOTONIC of the recording host, ns. One metadata
record `edge_hand.recording` has the format's version, the camera, the sensor, the settings and how far the wall clock
was ahead. Format 1, depth as PNG in msgpack, is still read. Infrared and colour are not kept.
"""

from __future__ import annotations

import io
import json
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from ...hand.camera import Intrinsics
from ...hand.frames import DepthFrame
from .foxglove import DEPTH_SCHEMA, calibration_json, joints_json, schema_of_wire
from .mcap_file import Channel, ChunkWriter, Contents, Fields, McapError, Message

VERSION = 2
METADATA = "edge_hand.recording"
CHUNK_NS, CHUNK_BYTES = 500_000_000, 8 << 20  # a chunk ends with whichever comes first
MAX_NS = 1 << 62
WIRE_KINDS = ("joints", "mesh", "status", "topology")
PNG_COLOURS = {0: "greyscale", 2: "colour", 3: "palette", 4: "greyscale with alpha", 6: "colour with alpha"}
LITTLE_ENDIAN_CDR = b"\x00\x01\x00\x00"


class RecordingError(Exception):
    """A recording cannot be read or written; one line."""


class Published(NamedTuple):
    """A message as it was published at t_ns: [topic, payload]."""

    t_ns: int
    parts: list[bytes]


class RecordingWriter:
    """Writes one camera's frames and messages to a new file, readable by its owner alone (mode 0600).

    The file has its own name from the start and grows by whole chunks, of at most half a second or 8 MiB: one whose
    writer was killed is read up to the last of them. Without frames no file is left. sensor names the depth sensor,
    settings is what a reader may want to know. wall_offset_ns is what to add to the times for wall-clock time, the
    host's own by default. One thread only. Raises RecordingError.
    """

    def __init__(
        self,
        path: Path,
        *,
        sensor: str = "",
        settings: dict[str, str] | None = None,
        wall_offset_ns: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.frames = 0  # in the file; more are in the chunk in progress
        self._unwritten = 0
        self._camera: str | None = None
        given = {f"setting.{key}": value for key, value in (settings or {}).items()}
        self._metadata = {key: value.encode(errors="backslashreplace").decode() for key, value in given.items()}
        offset_ns = time.time_ns() - time.monotonic_ns() if wall_offset_ns is None else wall_offset_ns
        self._metadata |= {"version": str(VERSION), "sensor": sensor, "wall_offset_ns": str(offset_ns)}
        self._channels: dict[Any, int] = {}
        self._began_ns: int | None = None
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise RecordingError(f"{self.path} exists already; choose another name or move it away") from None
        except OSError as error:
            raise RecordingError(f"cannot write in {self.path.parent}: {error.strerror}") from error
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._writer = ChunkWriter(self._file)

    def write(self, frame: DepthFrame) -> None:
        """Append one frame. Raises RecordingError for another camera's frame, an impossible time or a full disk."""
        self._begin(frame.camera, frame.t_ns)
        key = (frame.intrinsics, frame.depth_unit_m)
        if key not in self._channels:
            lens = {"depth_unit_m": repr(float(frame.depth_unit_m)), "intrinsics": json.dumps(asdict(frame.intrinsics))}
            self._channels[key] = self._channel(f"depth.{frame.camera}", "cdr", DEPTH_SCHEMA, lens)
            calibration = calibration_json(frame.camera, frame.t_ns, frame.intrinsics)
            self._json(f"calibration.{frame.camera}", frame.t_ns, *calibration)
        self._writer.message(self._channels[key], frame.seq & 0xFFFFFFFF, frame.t_ns, frame.t_ns, encode_image(frame))
        self._unwritten += 1

    def message(self, parts: list[bytes], t_ns: int) -> None:
        """Append a message of the wire, published at t_ns, and what Foxglove shows of it. Raises as `write`."""
        topic = parts[0].decode()
        kind, _, camera = topic.partition(".")
        self._begin(camera or self._camera, t_ns)
        if topic not in self._channels:
            self._channels[topic] = self._channel(topic, "msgpack", schema_of_wire(kind))
        self._writer.message(self._channels[topic], 0, t_ns, t_ns, parts[1])
        if kind == "joints":
            for name, view in joints_json(parts).items():
                self._json(f"{name}.{camera}", t_ns, *view)

    def flush(self) -> None:
        """Write all there is as a chunk, so that a killed process does not lose it."""
        frames, self._unwritten = self._unwritten, 0
        try:
            self._writer.cut()
            self.frames += frames
        except OSError as error:
            raise RecordingError(f"cannot write {self.path}: {error.strerror}") from error

    def sync(self) -> None:
        """See to it that a power cut does not lose the chunks either, and that the file is still there."""
        try:
            os.fsync(self._file.fileno())
            if os.fstat(self._file.fileno()).st_nlink == 0 and not self.path.exists():
                self.frames = 0
                raise OSError(0, "it was removed meanwhile")
        except OSError as error:
            raise RecordingError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Finish the file; one without frames is removed. If that fails, what was written before can still be read."""
        if self._file.closed:
            return
        trouble: RecordingError | None = None
        with self._file:
            try:
                self.flush()
            except RecordingError as error:
                trouble = error
            try:
                if self.frames:
                    self._writer.finish()
                    self.sync()
                else:
                    self.path.unlink(missing_ok=True)
            except OSError as error:
                trouble = trouble or RecordingError(f"cannot finish {self.path}: {error.strerror}")
        if trouble:
            raise trouble

    def _begin(self, camera: str | None, t_ns: int) -> None:
        """Before anything is added: the file's head, and a new chunk where it is time."""
        if not 0 <= t_ns < MAX_NS:
            raise RecordingError(f"{self.path}: a time of {t_ns} ns cannot be recorded")
        if self._camera is None and camera:
            self._camera = camera
            self._writer.metadata(METADATA, self._metadata | {"camera": camera})
        if camera != self._camera:
            raise RecordingError(f"{self.path} records camera {self._camera}; this frame is of {camera}")
        self._began_ns = t_ns if self._began_ns is None else self._began_ns
        if abs(t_ns - self._began_ns) >= CHUNK_NS or self._writer.size >= CHUNK_BYTES:
            self.flush()
            self._began_ns = t_ns

    def _json(self, topic: str, t_ns: int, schema: tuple[str, str, bytes], data: bytes) -> None:
        if topic not in self._channels:
            self._channels[topic] = self._channel(topic, "json", schema)
        self._writer.message(self._channels[topic], 0, t_ns, t_ns, data)

    def _channel(
        self, topic: str, encoding: str, schema: tuple[str, str, bytes], metadata: dict[str, str] | None = None
    ) -> int:
        if schema not in self._channels:
            self._channels[schema] = self._writer.schema(*schema)
        return self._writer.channel(topic, encoding, self._channels[schema], metadata)

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Recording:
    """A recording opened for reading: `len` frames, iterated as they were recorded.

    camera is the recorded camera's name, fps its rate in Hz, whatever the gaps: that of the median step; span_ns are
    the first and the last frame's times. Times are the recording host's clock, to which wall_offset_ns is to be added
    for wall-clock time. whole is False if the file was cut; then it holds what came before. All raise RecordingError.
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
        try:
            self._contents = Contents(self._file)
        except (McapError, OSError) as error:
            raise RecordingError(f"{self.path} is not an MCAP file, or is cut or damaged ({error})") from error
        self.whole = self._contents.whole
        records = [values for name, values in self._contents.metadata if name == METADATA]
        if len(records) != 1:
            topics = ", ".join(sorted(c.topic for c in self._contents.channels.values())) or "none"
            raise RecordingError(
                f"{self.path} is an MCAP file, but not an edge-hand recording (its topics: {_short(topics)})"
            )
        self.metadata: dict[str, str] = records[0]
        if (version := self.metadata.get("version", "")) not in ("1", str(VERSION)):
            raise RecordingError(
                f"{self.path} has recording format {_short(version) or 'unknown'}; "
                f"this edge-hand reads formats 1 and {VERSION}"
            )
        self.camera = self.metadata.get("camera", "")
        self.sensor = self.metadata.get("sensor", "")
        self.settings = {
            key.removeprefix("setting."): value for key, value in self.metadata.items() if key.startswith("setting.")
        }
        offset = self.metadata.get("wall_offset_ns", "")[:24]
        self.wall_offset_ns = int(offset) if offset.isdecimal() and int(offset) < MAX_NS else 0
        self._topic = f"depth.{self.camera}"
        ours = {number for number, channel in self._contents.channels.items() if channel.topic == self._topic}
        times = [at for chunk in self._contents.chunks for n, some in chunk.times.items() if n in ours for at in some]
        self._frames, self.span_ns = len(times), (min(times, default=0), max(times, default=0))
        steps_ns = [b - a for a, b in pairwise(times) if b > a]
        self.fps = min(max(1e9 / median(steps_ns), 0.1), 1000.0) if steps_ns else 30.0
        first = next(self.stored(), None)
        if first is None:
            raise RecordingError(f"{self.path} has no frames" + ("" if self.whole else ": it was cut"))
        self.intrinsics = self._fields(first)[1]

    def stored(self, from_ns: int = 0) -> Iterator[Message]:
        """The frames as stored, for `decode_frame`; chunks that end before from_ns are passed over unread."""
        return (message for message in self._messages(from_ns) if message.channel.topic == self._topic)

    def published(self) -> Iterator[Published]:
        """The messages that were recorded with the frames, as bytes of the wire; none if only depth was."""
        for message in self._messages():
            if self._kind(message.channel):
                yield Published(message.log_ns, [message.channel.topic.encode(), message.data])

    def holds_messages(self) -> bool:
        """Whether there is more to publish than the topology; by the file's index."""
        numbers = {number for chunk in self._contents.chunks for number in chunk.times}
        kinds = {self._kind(channel) for number, channel in self._contents.channels.items() if number in numbers}
        return bool(kinds - {"", "topology"})

    def _kind(self, channel: Channel) -> str:
        """Which of WIRE_KINDS a channel holds; none if it is not of the wire."""
        kind, _, camera = channel.topic.partition(".")
        return kind if channel.encoding == "msgpack" and kind in WIRE_KINDS and camera in ("", self.camera) else ""

    def decode_frame(self, message: Message) -> DepthFrame:
        """One stored frame; raises RecordingError if this one cannot be used."""
        fields, intrinsics = self._fields(message)
        try:
            seq, t_ns, unit_m = int(fields["seq"]), int(fields["t_ns"]), float(fields["depth_unit_m"])
            if not (0 <= seq < MAX_NS and 0 <= t_ns < MAX_NS):
                raise ValueError(f"is of frame {seq} at {t_ns} ns")
            if "png" in fields:
                depth = decode_depth_png(fields["png"], intrinsics.width, intrinsics.height)
            else:
                depth = decode_image(message.data, intrinsics.width, intrinsics.height)
            return DepthFrame(self.camera, seq, t_ns, depth, unit_m, intrinsics)
        except (ValueError, TypeError, OverflowError, McapError) as error:
            raise RecordingError(f"{self.path}, frame {_short(fields['seq'])}: depth {_reason(error)}") from error

    def _fields(self, message: Message) -> tuple[dict[str, Any], Intrinsics]:
        """What is known of a stored frame but its depth, and its intrinsics, checked."""
        try:
            if message.channel.encoding == "cdr":
                lens = message.channel.metadata
                fields = {"seq": message.sequence, "t_ns": message.log_ns, "depth_unit_m": lens["depth_unit_m"]}
                return fields, _intrinsics(json.loads(lens["intrinsics"]))
            return _unpack_1(message.data)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError, msgpack.UnpackException) as error:
            raise RecordingError(f"{self.path}: a frame is damaged ({_reason(error)})") from error

    def _messages(self, from_ns: int = 0) -> Iterator[Message]:
        try:
            yield from self._contents.messages(from_ns)
        except (McapError, OSError) as error:
            raise RecordingError(f"{self.path} is damaged ({_reason(error)})") from error

    def __len__(self) -> int:
        return self._frames

    def __iter__(self) -> Iterator[DepthFrame]:
        return map(self.decode_frame, self.stored())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def encode_image(frame: DepthFrame) -> bytes:
    """The depth as a ROS 2 message sensor_msgs/msg/Image in CDR: fields aligned from behind the four leading bytes."""
    height, width = frame.depth.shape
    head = struct.pack("<iI", *divmod(frame.t_ns, 1_000_000_000)) + _cdr_text(frame.camera)
    head = _aligned(head) + struct.pack("<II", height, width) + _cdr_text("16UC1") + b"\0"  # little-endian
    head = _aligned(head) + struct.pack("<II", 2 * width, 2 * height * width)
    return b"".join((LITTLE_ENDIAN_CDR, head, np.ascontiguousarray(frame.depth, "<u2").tobytes()))


def decode_image(data: bytes, width: int, height: int) -> NDArray[np.uint16]:
    """`encode_image`'s (height, width) counts. Raises ValueError or McapError, to be put behind the file's name."""
    fields = Fields(data)
    if fields.take(4) != LITTLE_ENDIAN_CDR:
        raise ValueError("is not little-endian CDR")
    total = fields.left
    fields.take(8)
    fields.block("<I")
    fields.take(-(total - fields.left) % 4)
    size = fields.numbers("<II")
    if size != (height, width):
        raise ValueError(f"is {size[1]}x{size[0]} px; the intrinsics are for {width}x{height}")
    if fields.block("<I") != b"16UC1\0" or fields.take(1) != b"\0":
        raise ValueError("is not little-endian 16UC1")
    fields.take(-(total - fields.left) % 4)
    if fields.numbers("<I") != (2 * width,):
        raise ValueError("has rows with gaps")
    counts = fields.block("<I")
    if len(counts) != 2 * width * height:
        raise ValueError(f"has {len(counts)} bytes, expected {2 * width * height}")
    return np.frombuffer(counts, "<u2").reshape(height, width).astype(np.uint16)


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


def _unpack_1(data: bytes) -> tuple[dict[str, Any], Intrinsics]:
    """A frame of format 1."""
    fields = msgpack.unpackb(data)
    if fields["v"] != 1:
        raise ValueError(f"it has format {_short(fields['v'])}, expected 1")
    missing = [key for key in ("seq", "t_ns", "depth_unit_m", "intrinsics", "png") if key not in fields]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return fields, _intrinsics(fields["intrinsics"])


def _intrinsics(given: dict[str, Any]) -> Intrinsics:
    size = {key: given[key] for key in ("width", "height")}
    if any(type(n) is not int or n > 1 << 16 for n in size.values()):
        raise ValueError(f"its size is {_short(list(size.values()))}")
    lens: Any = {key: float(given[key]) for key in ("fx", "fy", "cx", "cy")}
    distortion: Any = tuple(float(c) for c in given["distortion"])
    return Intrinsics(**size, **lens, distortion=distortion)


def _cdr_text(text: str) -> bytes:
    data = text.encode() + b"\0"
    return struct.pack("<I", len(data)) + data


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _short(value: Any) -> str:
    text = " ".join(str(value)[:400].split())
    return text if len(text) <= 100 else text[:97] + "..."


def _reason(error: Exception) -> str:
    """An exception in one line."""
    return _short(error) or type(error).__name__
