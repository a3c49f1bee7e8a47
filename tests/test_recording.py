"""Recordings: what is written is read back bit for bit, also by other programs; a foreign file is one clear line."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from depth_png import encode_depth_png, format_1
from edge_hand.edge.recordings import foxglove
from edge_hand.edge.recordings.recording import (
    METADATA,
    Recording,
    RecordingError,
    RecordingWriter,
    decode_depth_png,
)
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame
from edge_hand.hand.wire import decode
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer

INTRINSICS = Intrinsics(48, 32, 40.5, 41.5, 23.25, 15.75, (0.1, -0.2, 0.001, 0.002, 0.03))
DEMO = Path(__file__).parents[1] / "edge" / "demo" / "hand.mcap"
GOLDEN = Path(__file__).parent / "golden"


def some_frames(count: int = 5, camera: str = "817612070001") -> Iterator[DepthFrame]:
    rng = np.random.default_rng(7)
    for k in range(count):
        depth = rng.integers(0, 65536, (32, 48)).astype(np.uint16)
        yield DepthFrame(camera, 100 + 2 * k, 5_000_000_000 + k * 11_111_111, depth, 0.000125, INTRINSICS)


def messages() -> list[list[bytes]]:
    """One of each kind, of the camera `front`."""
    kinds = ("joints", "mesh", "status", "topology")
    topics = [kind.encode() + (b"" if kind == "topology" else b".front") for kind in kinds]
    return [[topic, (GOLDEN / f"wire_{kind}.bin").read_bytes()] for topic, kind in zip(topics, kinds, strict=True)]


def write(path: Path, frames: Any, **options: Any) -> Path:
    with RecordingWriter(path, **options) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def write_mcap(
    path: Path, metadata: dict[str, str] | None = None, messages: Any = (), topic: str = "depth.cam", pack: str = "NONE"
) -> Path:
    """A hand-made MCAP file, to break one thing at a time."""
    with path.open("wb") as file:
        writer = Writer(file, compression=CompressionType[pack])
        writer.start(profile="", library="someone else")
        if metadata is not None:
            writer.add_metadata(METADATA, metadata)
        channel = writer.register_channel(topic, "msgpack", schema_id=0)
        for k, data in enumerate(messages):
            writer.add_message(channel, k, data, k)
        writer.finish()
    return path


def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    frames = list(some_frames())
    path = write(tmp_path / "hand.mcap", frames, sensor="Intel RealSense D435", settings={"mode": "848x480@90"})
    with Recording(path) as recording:
        assert len(recording) == 5 and recording.whole
        assert recording.camera == "817612070001"
        assert recording.sensor == "Intel RealSense D435"
        assert recording.settings == {"mode": "848x480@90"}
        assert recording.fps == pytest.approx(90.0, abs=1e-3)
        assert recording.intrinsics == INTRINSICS
        for written, read in zip(frames, recording, strict=True):
            assert np.array_equal(read.depth, written.depth) and read.depth.dtype == np.uint16
            assert (read.camera, read.seq, read.t_ns) == (written.camera, written.seq, written.t_ns)
            assert read.depth_unit_m == 0.000125 and read.intrinsics == INTRINSICS
        assert list(recording.published()) == []


def test_the_rate_is_the_sensor_s_whatever_was_lost(tmp_path: Path) -> None:
    frames = [frame for frame in some_frames(40) if frame.seq not in (110, 126, 128, 170)]
    later = [replace(frame, t_ns=frame.t_ns + (60_000_000_000 if frame.seq >= 140 else 0)) for frame in frames]
    with Recording(write(tmp_path / "gap.mcap", later)) as recording:
        assert len(recording) == 36 and recording.fps == pytest.approx(90.0, abs=1e-3)
    with Recording(write(tmp_path / "cut.mcap", later[:1])) as recording:
        assert recording.fps == 30.0


def test_published_messages_are_kept_byte_for_byte_in_their_order(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a.mcap", wall_offset_ns=1_700_000_000 * 10**9) as writer:
        writer.message(messages()[3], 5_000_000_000)  # before any camera is known
        for k, frame in enumerate(some_frames(3, "front")):
            writer.write(frame)
            for parts in messages()[:3]:
                writer.message(parts, frame.t_ns + k)
    with Recording(tmp_path / "a.mcap") as recording:
        published = list(recording.published())
        assert [m.parts for m in published] == [messages()[3], *messages()[:3] * 3]
        assert [m.t_ns for m in published[1::3]] == [frame.t_ns + k for k, frame in enumerate(some_frames(3))]
        assert len(recording) == 3 and recording.wall_offset_ns == 1_700_000_000 * 10**9


@pytest.mark.parametrize("offset_ns", [-(10**12), 1 << 62, 10**22])
def test_a_wall_clock_that_cannot_be_is_not_believed(tmp_path: Path, offset_ns: int) -> None:
    with Recording(write(tmp_path / "a.mcap", some_frames(1), wall_offset_ns=offset_ns)) as recording:
        assert recording.wall_offset_ns == 0


def test_a_camera_that_changes_its_mode_is_recorded_on(tmp_path: Path) -> None:
    first, second = some_frames(2)
    other = replace(second, intrinsics=replace(INTRINSICS, fx=99.0), depth_unit_m=0.001)
    with Recording(write(tmp_path / "a.mcap", [first, other])) as recording:
        assert [(f.intrinsics.fx, f.depth_unit_m) for f in recording] == [(40.5, 0.000125), (99.0, 0.001)]
        assert len(recording) == 2


def test_the_first_format_is_still_read() -> None:
    with Recording(DEMO) as recording:
        assert (len(recording), recording.metadata["version"], recording.whole) == (300, "1", True)
        assert next(iter(recording)).depth.any() and recording.fps == pytest.approx(30, abs=0.1)


@pytest.mark.parametrize("pack", ["NONE", "ZSTD", "LZ4"])
def test_a_recording_that_another_program_packed_again_is_read(tmp_path: Path, pack: str) -> None:
    frames = list(some_frames(3, "cam"))
    stored = [msgpack.packb(format_1(frame)) for frame in frames]
    path = write_mcap(tmp_path / "a.mcap", {"version": "1", "camera": "cam"}, stored, pack=pack)
    with Recording(path) as recording:
        for read, written in zip(recording, frames, strict=True):
            assert np.array_equal(read.depth, written.depth) and read.t_ns == written.t_ns


# --- what other programs see


def test_the_mcap_library_reads_the_summary_the_index_and_every_message(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "a.mcap") as writer:
        for frame in some_frames(5, "front"):
            writer.write(frame)
            writer.message(messages()[0], frame.t_ns)
            if frame.seq == 104:
                writer.flush()
    with (tmp_path / "a.mcap").open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        summary = reader.get_summary()
        assert summary is not None and summary.statistics is not None
        counts = {summary.channels[n].topic: k for n, k in summary.statistics.channel_message_counts.items()}
        assert counts == {
            "depth.front": 5,
            "joints.front": 5,
            "plot.front": 5,
            "scene.front": 5,
            "calibration.front": 1,
        }
        assert all(channel.schema_id in summary.schemas for channel in summary.channels.values())
        assert len(summary.chunk_indexes) == summary.statistics.chunk_count == 2
        assert [m.name for m in reader.iter_metadata()] == [METADATA]
        found = [
            (channel.topic, message.log_time) for _, channel, message in reader.iter_messages(topics="depth.front")
        ]
        assert found == [("depth.front", frame.t_ns) for frame in some_frames(5)]
        late = list(reader.iter_messages(topics=["joints.front"], starting_at=5_040_000_000))
        assert [message.data for _, _, message in late] == [messages()[0][1]]


def test_the_depth_is_a_ros_2_image_and_the_hand_a_scene(tmp_path: Path) -> None:
    frame = next(some_frames(1, "front"))
    with RecordingWriter(tmp_path / "a.mcap") as writer:
        writer.write(frame)
        writer.message(messages()[0], frame.t_ns)
    with (tmp_path / "a.mcap").open("rb") as file:
        seen = {channel.topic: (schema, channel, m.data) for schema, channel, m in make_reader(file).iter_messages()}
    schema, channel, data = seen["depth.front"]
    assert (schema.name, schema.encoding, channel.message_encoding) == ("sensor_msgs/msg/Image", "ros2msg", "cdr")
    # CDR: the frame's name and the encoding are padded so that the numbers after them are aligned from byte 4 on.
    head = struct.unpack_from("<4siI I6s2x II I6sBx II", data)
    assert head[:3] == (b"\0\1\0\0", 5, 0) and head[3:5] == (6, b"front\0")
    assert head[5:] == (32, 48, 6, b"16UC1\0", 0, 96, 96 * 32)
    assert data[-96 * 32 :] == frame.depth.tobytes() and len(data) == struct.calcsize("<4siI I6s2x II I6sBx II") + 3072
    scene = json.loads(seen["scene.front"][2])
    assert seen["scene.front"][0].name == "foxglove.SceneUpdate" and scene["deletions"][0]["type"] == 1
    hand = decode(messages()[0]).hands[0]  # type: ignore[union-attr]
    line = scene["entities"][0]["lines"][0]
    assert scene["entities"][0]["frame_id"] == "front" and len(line["indices"]) == 40
    np.testing.assert_allclose([list(p.values()) for p in line["points"]], hand.joints_m, atol=1e-5)
    plot = json.loads(seen["plot.front"][2])
    assert plot["hands"][0]["angles_rad"]["index_pip_flex"] == pytest.approx(hand.angles_rad[6], abs=1e-4)
    calibration = json.loads(seen["calibration.front"][2])
    assert calibration["K"][0] == 40.5 and calibration["D"] == [0.1, -0.2, 0.001, 0.002, 0.03]


def test_a_message_is_decoded_once_for_all_that_foxglove_shows_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the recorder's thread, which takes the interpreter from the loop's."""
    decoded: list[bytes] = []
    monkeypatch.setattr(foxglove, "decode", lambda parts: decoded.append(parts[0]) or decode(parts))
    with RecordingWriter(tmp_path / "a.mcap") as writer:
        writer.write(next(some_frames(1, "front")))
        for parts in messages():
            writer.message(parts, 5_000_000_000)
    assert decoded == [b"joints.front"]


# --- who may read it, and when it is there


def test_a_recording_is_for_its_owner_alone_and_has_its_name_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "hand.mcap"
    with RecordingWriter(path) as writer:
        writer.write(next(some_frames()))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["hand.mcap"]


def test_a_setting_that_is_not_utf_8_loses_no_frame(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"h\xe4nd.mcap")
    with RecordingWriter(path, settings={"person": os.fsdecode(b"j\xe4.json")}) as writer:
        writer.write(next(some_frames()))
    with Recording(path) as recording:
        assert len(recording) == 1 and recording.settings["person"] == "j\\udce4.json"


def test_a_long_recording_needs_little_memory(tmp_path: Path) -> None:
    frame = next(some_frames(1, "front"))
    with RecordingWriter(tmp_path / "a.mcap") as writer:

        def chunks(count: int) -> int:
            """Bytes in use after so many more."""
            for k in range(count):
                writer.write(replace(frame, depth=np.zeros_like(frame.depth)))
                for message in messages()[:3]:
                    writer.message(message, frame.t_ns + k)
                writer.flush()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            before = chunks(20)
            assert (chunks(400) - before) / 400 < 400  # a day has 300,000
        finally:
            tracemalloc.stop()


def test_an_interrupted_recording_keeps_its_frames(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RecordingWriter(tmp_path / "hand.mcap") as writer:
        writer.write(next(some_frames()))
        raise KeyboardInterrupt
    with Recording(tmp_path / "hand.mcap") as recording:
        assert len(list(recording)) == 1 and recording.whole


def test_a_recording_without_frames_leaves_no_file(tmp_path: Path) -> None:
    write(tmp_path / "hand.mcap", [])
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_overwritten_nor_a_link_followed(tmp_path: Path) -> None:
    path = write(tmp_path / "hand.mcap", some_frames(1))
    (tmp_path / "link.mcap").symlink_to(tmp_path / "elsewhere.mcap")
    for name in (path, tmp_path / "link.mcap"):
        with pytest.raises(RecordingError, match=r".mcap exists already; choose another name"):
            RecordingWriter(name)
    assert not (tmp_path / "elsewhere.mcap").exists()


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"^cannot write in .*/none: No such file or directory$"):
        RecordingWriter(tmp_path / "none" / "hand.mcap")


def test_a_recording_holds_one_camera_and_possible_times(tmp_path: Path) -> None:
    frame = next(some_frames(1, "a"))
    with RecordingWriter(tmp_path / "hand.mcap") as writer:
        writer.write(frame)
        with pytest.raises(RecordingError, match="records camera a; this frame is of b"):
            writer.write(next(some_frames(1, "b")))
        with pytest.raises(RecordingError, match="a time of -1 ns cannot be recorded"):
            writer.write(replace(frame, t_ns=-1))


# --- foreign and damaged files


def test_a_foreign_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "foreign.mcap"
    path.write_bytes(b"not a recording at all")
    with pytest.raises(RecordingError, match=r"foreign.mcap is not an MCAP file, or is cut or damaged \(") as seen:
        Recording(path)
    assert "\n" not in str(seen.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"none.mcap: no such file or directory$"):
        Recording(tmp_path / "none.mcap")


def test_another_programs_mcap_file_is_named_as_such(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "ros.mcap", messages=[b"x"], topic="/scan")
    with pytest.raises(RecordingError, match=r"not an edge-hand recording \(its topics: /scan\)$"):
        Recording(path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "new.mcap", {"version": "3", "camera": "cam"})
    with pytest.raises(RecordingError, match=r"has recording format 3; this edge-hand reads formats 1 and 2$"):
        Recording(path)


def test_a_recording_file_without_frames_is_refused(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "empty.mcap", {"version": "1", "camera": "cam"})
    with pytest.raises(RecordingError, match=r"empty.mcap has no frames$"):
        Recording(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"v": 3}, r"a frame is damaged \(it has format 3, expected 1\)"),
        ({"png": None}, "it lacks png"),
        ({"intrinsics": {"width": 48}}, "a frame is damaged"),
        ({"intrinsics": format_1(next(some_frames(1)))["intrinsics"] | {"width": 1 << 40}}, "its size is"),
    ],
)
def test_a_broken_message_is_one_line(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    fields = format_1(next(some_frames(1, "cam"))) | change
    data = msgpack.packb({key: value for key, value in fields.items() if value is not None})
    path = write_mcap(tmp_path / "odd.mcap", {"version": "1", "camera": "cam"}, [data])
    with pytest.raises(RecordingError, match=text):
        Recording(path)


def test_damage_anywhere_is_an_error_or_harmless(tmp_path: Path) -> None:
    frames = list(some_frames())
    path = write(tmp_path / "hand.mcap", frames)
    data = path.read_bytes()
    for position in np.random.default_rng(3).integers(0, len(data), 60):
        damaged = bytearray(data)
        damaged[position] ^= 0x40
        path.write_bytes(damaged)
        try:
            with Recording(path) as recording:
                for read, written in zip(recording, frames, strict=False):
                    assert np.array_equal(read.depth, written.depth)
        except RecordingError as error:
            assert "\n" not in str(error)


def test_a_chunk_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path) -> None:
    bomb = zstandard.compress(bytes(300 << 20), 1)
    out = BytesIO()
    writer = Writer(out, compression=CompressionType.NONE)
    writer.start()
    writer.add_metadata(METADATA, {"version": "2", "camera": "cam"})
    for size in (1000, 1 << 50):
        chunk = struct.pack("<QQQII4sQ", 0, 0, size, 0, 4, b"zstd", len(bomb)) + bomb
        path = tmp_path / f"{size}.mcap"
        path.write_bytes(out.getvalue() + struct.pack("<BQ", 6, len(chunk)) + chunk)
        with pytest.raises(RecordingError, match="has no frames: it was cut"):
            Recording(path)


def test_a_depth_png_keeps_every_count() -> None:
    depth = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(decode_depth_png(encode_depth_png(depth), 256, 256), depth)
    assert np.array_equal(decode_depth_png(encode_depth_png(depth[::-1, ::2]), 128, 256), depth[::-1, ::2])


def test_recording_imports_nothing_heavy_before_it_is_needed() -> None:
    program = (
        "import sys, edge_hand.edge.recordings.recording; "
        "print({'mcap', 'PIL', 'torch', 'zstandard'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"
