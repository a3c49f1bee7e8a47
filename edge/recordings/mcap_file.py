"""MCAP files, as much of https://mcap.dev/spec as recordings need.

Written chunk by chunk, each with its own checksum, so that a file whose writer was killed is good up to its last whole
chunk; read without the summary at its end, which such a file lacks, and without believing any length in it.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

MAGIC = b"\x89MCAP0\r\n"
CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX, METADATA, DATA_END = 4, 5, 6, 7, 12, 15
FOOTER_BYTES = 9 + 20 + len(MAGIC)
MAX_CHUNK = 64 << 20  # bytes of a chunk, unpacked; ours are of 8 MiB or one frame
MAX_RECORD = 1 << 20  # of any other record that is read
MAX_RECORDS = 200_000  # in a chunk


class McapError(Exception):
    """The file breaks the format; what is wrong, without the file's name."""


class Channel(NamedTuple):
    """What a message's channel says of it."""

    topic: str
    encoding: str
    metadata: dict[str, str]


class Message(NamedTuple):
    channel: Channel
    sequence: int
    log_ns: int
    data: bytes


class Chunk(NamedTuple):
    """Where a chunk's record is, and the times, ns, of each channel id's messages in it."""

    offset: int
    length: int
    times: dict[int, array[int]]


class ChunkWriter:
    """Appends to an empty, unbuffered file. What cannot be written is cut off again: the file ends with a whole chunk.

    Only `cut` and `finish` touch the file, and raise OSError.
    """

    def __init__(self, file: BinaryIO) -> None:
        import zstandard
        from mcap import records

        self._file, self._end, self._records = file, 0, records
        self._compressor = zstandard.ZstdCompressor(level=1, write_content_size=True)
        self._head = [MAGIC, _packed(records.Header(profile="", library="edge-hand"))]
        self._chunk: list[bytes] = []
        self._times: dict[int, list[tuple[int, int]]] = {}  # of the chunk's messages: log time, offset
        self._schemas: list[bytes] = []  # these four are packed: a day has 300,000 chunks
        self._channels: list[bytes] = []
        self._indexes: list[bytes] = []
        self._metadata: list[bytes] = []
        self._counts: Counter[int] = Counter()
        self._span_ns: tuple[int, int] | None = None
        self.size = 0  # bytes in the chunk

    def metadata(self, name: str, values: dict[str, str]) -> None:
        """Once, before the first message."""
        record = _packed(self._records.Metadata(name=name, metadata=values))
        offset = self._end + sum(len(part) for part in self._head)
        self._metadata.append(_packed(self._records.MetadataIndex(offset=offset, length=len(record), name=name)))
        self._head.append(record)

    def schema(self, name: str, encoding: str, data: bytes) -> int:
        self._schemas.append(_packed(self._records.Schema(len(self._schemas) + 1, data, encoding, name)))
        self._add(self._schemas[-1])
        return len(self._schemas)

    def channel(self, topic: str, encoding: str, schema: int, metadata: dict[str, str] | None = None) -> int:
        number = len(self._channels) + 1
        self._channels.append(_packed(self._records.Channel(number, topic, encoding, metadata or {}, schema)))
        self._add(self._channels[-1])
        return number

    def message(self, channel: int, sequence: int, log_ns: int, publish_ns: int, data: bytes) -> None:
        self._times.setdefault(channel, []).append((log_ns, self.size))
        self._add(struct.pack("<BQHIQQ", MESSAGE, 22 + len(data), channel, sequence, log_ns, publish_ns))
        self._add(data)

    def cut(self) -> None:
        """Write the chunk in progress, if there is a message in it, and its index."""
        if not self._times:
            return
        head, plain = b"".join(self._head), b"".join(self._chunk)
        times = [log_ns for entries in self._times.values() for log_ns, _ in entries]
        span = min(times), max(times)
        packed = self._compressor.compress(plain)
        chunk = _packed(
            self._records.Chunk("zstd", packed, span[1], span[0], uncompressed_crc=zlib.crc32(plain),
                                uncompressed_size=len(plain))
        )  # fmt: skip
        start = self._end + len(head)
        offsets, index = {}, b""
        for channel, entries in self._times.items():
            offsets[channel] = start + len(chunk) + len(index)
            values = b"".join(struct.pack("<QQ", *entry) for entry in entries)
            index += struct.pack("<BQHI", MESSAGE_INDEX, 6 + len(values), channel, len(values)) + values
        counts = {channel: len(entries) for channel, entries in self._times.items()}
        self._chunk, self._times, self.size = [], {}, 0
        self._append(head + chunk + index)
        self._head = []
        self._counts.update(counts)
        first_ns, last_ns = self._span_ns or span
        self._span_ns = min(first_ns, span[0]), max(last_ns, span[1])
        chunk_index = self._records.ChunkIndex(
            chunk_length=len(chunk), chunk_start_offset=start, compression="zstd", compressed_size=len(packed),
            message_end_time=span[1], message_start_time=span[0], message_index_length=len(index),
            message_index_offsets=offsets, uncompressed_size=len(plain),
        )  # fmt: skip
        self._indexes.append(_packed(chunk_index))

    def finish(self) -> None:
        """Write what is left and the summary; the file stays open."""
        self.cut()
        records = self._records
        first_ns, last_ns = self._span_ns or (0, 0)
        statistics = records.Statistics(
            attachment_count=0, channel_count=len(self._channels), channel_message_counts=dict(self._counts),
            chunk_count=len(self._indexes), message_count=sum(self._counts.values()), message_end_time=last_ns,
            message_start_time=first_ns, metadata_count=len(self._metadata), schema_count=len(self._schemas),
        )  # fmt: skip
        data_end = b"".join(self._head) + _packed(records.DataEnd(0))
        start, summary = self._end + len(data_end), b""
        offsets: list[Any] = []
        groups = [self._schemas, self._channels, [_packed(statistics)], self._indexes, self._metadata]
        for group in groups:
            if group:
                packed = b"".join(group)
                offsets.append(records.SummaryOffset(packed[0], start + len(summary), len(packed)))
                summary += packed
        offset_start = start + len(summary)
        summary += b"".join(_packed(record) for record in offsets)
        footer = struct.pack("<BQQQ", 2, 20, start, offset_start)
        crc = zlib.crc32(footer, zlib.crc32(summary))
        self._append(data_end + summary + footer + struct.pack("<I", crc) + MAGIC)

    def _add(self, data: bytes) -> None:
        self._chunk.append(data)
        self.size += len(data)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            self._file.truncate(self._end)
            self._file.seek(self._end)
            raise
        self._end += len(data)


class Contents:
    """A file's chunks, channels and metadata, found by walking from record to record. Raises McapError and OSError.

    whole is False for a file that was cut; the end of such a file is left out as far as it did not reach the disk.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        self.metadata: list[tuple[str, dict[str, str]]] = []
        self.channels: dict[int, Channel] = {}
        self.chunks: list[Chunk] = []
        self.whole = False
        self._walk()
        if not self.whole:
            self._mend()
        for at, chunk in enumerate(self.chunks):
            if not chunk.times or chunk.times.keys() - self.channels.keys():
                self.chunks[at] = self._counted(chunk)

    def messages(self, from_ns: int = 0) -> Iterator[Message]:
        """All of them in the order of the file; those of a channel that the file does not describe are left out.

        Chunks in which all is from before from_ns are passed over unread.
        """
        for chunk in self.chunks:
            if max(map(max, filter(None, chunk.times.values())), default=from_ns) < from_ns:
                continue
            for number, sequence, log_ns, data in self._messages(chunk):
                if number in self.channels:
                    yield Message(self.channels[number], sequence, log_ns, data)

    def _walk(self) -> None:
        self._file.seek(0)
        if self._file.read(len(MAGIC)) != MAGIC:
            raise McapError("it does not begin as one")
        at = len(MAGIC)
        while at + 9 <= self._size:
            self._file.seek(at)
            kind, length = struct.unpack("<BQ", self._file.read(9))
            if kind == 0 or length > self._size - at - 9:
                return
            if kind == CHUNK:
                self.chunks.append(Chunk(at + 9, length, {}))
            elif kind == MESSAGE_INDEX and self.chunks:
                self._count(length)
            elif kind == METADATA and length <= MAX_RECORD:
                fields = Fields(self._file.read(length))
                self.metadata.append((fields.text(), fields.texts()))
            elif kind == DATA_END:
                self._file.seek(self._size - len(MAGIC))
                self.whole = self._size - at >= FOOTER_BYTES and self._file.read(len(MAGIC)) == MAGIC
                return
            at += 9 + length

    def _count(self, length: int) -> None:
        """Of the chunk just before."""
        if 6 + 16 <= length <= MAX_RECORD:
            data = self._file.read(length)
            channel, size = struct.unpack_from("<HI", data)
            if size == length - 6 and size % 16 == 0:
                self.chunks[-1].times[channel] = array("Q", [at for at, _ in struct.iter_unpack("<QQ", data[6:])])

    def _mend(self) -> None:
        """Forget the chunks at the end of a cut file that did not reach the disk whole, and count the last good one."""
        while self.chunks:
            try:
                self.chunks[-1] = self._counted(self.chunks[-1])
                return
            except McapError:
                self.chunks.pop()

    def _counted(self, chunk: Chunk) -> Chunk:
        """The chunk with its messages counted one by one."""
        times: dict[int, array[int]] = {}
        for number, _, log_ns, _ in self._messages(chunk):
            times.setdefault(number, array("Q")).append(log_ns)
        return chunk._replace(times=times)

    def _messages(self, chunk: Chunk) -> Iterator[tuple[int, int, int, bytes]]:
        """Channel, sequence, log time and data of each; channels are learnt on the way."""
        if chunk.length > MAX_CHUNK:
            raise McapError(f"a chunk of {chunk.length} bytes, expected at most {MAX_CHUNK}")
        self._file.seek(chunk.offset)
        fields = Fields(self._file.read(chunk.length))
        _, _, size, crc = fields.numbers("<QQQI")
        compression = fields.text()
        data = _unpacked(compression, fields.block("<Q"), size)
        if crc and zlib.crc32(data) != crc:
            raise McapError("a chunk's checksum is wrong")
        records = Fields(data)
        for _ in range(MAX_RECORDS):
            if not records.left:
                return
            kind, length = records.numbers("<BQ")
            record = Fields(records.take(length))
            if kind == CHANNEL:
                number, _ = record.numbers("<HH")
                self.channels[number] = Channel(record.text(), record.text(), record.texts())
            elif kind == MESSAGE:
                number, sequence, log_ns, _ = record.numbers("<HIQQ")
                yield number, sequence, log_ns, record.take(record.left)
        raise McapError(f"a chunk has more than {MAX_RECORDS} records")


class Fields:
    """Reads little-endian fields one after the other; McapError where they are not all there."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise McapError("a record is cut or its length is wrong")
        self._at += length
        return self._data[self._at - length : self._at]

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def block(self, form: str) -> bytes:
        return self.take(self.numbers(form)[0])

    def text(self) -> str:
        try:
            return self.block("<I").decode()
        except UnicodeDecodeError:
            raise McapError("a text is not UTF-8") from None

    def texts(self) -> dict[str, str]:
        pairs, found = Fields(self.block("<I")), {}
        while pairs.left:
            key = pairs.text()
            found[key] = pairs.text()
        return found


def _packed(record: Any) -> bytes:
    from mcap.data_stream import RecordBuilder

    builder = RecordBuilder()
    record.write(builder)
    return bytes(builder.end())  # type: ignore[no-untyped-call]


def _unpacked(compression: str, data: bytes, size: int) -> bytes:
    """A chunk's records; size is what the file claims, and nothing larger is built."""
    if size > MAX_CHUNK:
        raise McapError(f"a chunk of {size} bytes unpacked, expected at most {MAX_CHUNK}")
    try:
        if compression == "zstd":
            import zstandard

            plain = zstandard.ZstdDecompressor(max_window_size=MAX_CHUNK).stream_reader(BytesIO(data)).read(size + 1)
        elif compression == "lz4":
            import lz4.frame  # type: ignore[import-untyped]

            plain = lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=size + 1)
        elif compression == "":
            plain = data
        else:
            raise McapError(f"a chunk is packed as {compression[:20]!r}, expected zstd or lz4")
    except McapError:
        raise
    except Exception as error:  # what a foreign byte makes of a decompressor
        raise McapError(f"a chunk cannot be unpacked ({type(error).__name__})") from None
    if len(plain) != size:
        raise McapError("a chunk's size is wrong")
    return plain
