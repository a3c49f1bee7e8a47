"""Recordings: what is written is read back bit for bit, and a foreign file is one clear line."""

from __future__ import annotations

import stat
import subprocess
import sys

import msgpack
import numpy as np
import pytest
from edge_hand.edge.recording import (
    METADATA,
    Recording,
    RecordingError,
    RecordingWriter,
    decode_depth_png,
    encode_depth_png,
    encode_frame,
)
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame
from mcap.writer import CompressionType, Writer

INTRINSICS = Intrinsics(48, 32, 40.5, 41.5, 23.25, 15.75, (0.1, -0.2, 0.001, 0.002, 0.03))


def some_frames(count=5, camera="817612070001"):
    rng = np.random.default_rng(7)
    for k in range(count):
        depth = rng.integers(0, 65536, (32, 48)).astype(np.uint16)
        yield DepthFrame(camera, 100 + 2 * k, 5_000_000_000 + k * 11_111_111, depth, 0.000125, INTRINSICS)


def write(path, frames, **options):
    with RecordingWriter(path, **options) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def write_mcap(path, metadata=None, messages=(), name=METADATA, topic="depth.cam"):
    """A hand-made MCAP file, to break one thing at a time."""
    with path.open("wb") as file:
        writer = Writer(file, compression=CompressionType.NONE)
        writer.start(profile="", library="someone else")
        if metadata is not None:
            writer.add_metadata(name, metadata)
        channel = writer.register_channel(topic, "msgpack", schema_id=0)
        for k, data in enumerate(messages):
            writer.add_message(channel, k, data, k)
        writer.finish()
    return path


def test_what_is_written_is_read_back_bit_for_bit(tmp_path):
    frames = list(some_frames())
    path = write(tmp_path / "hand.mcap", frames, sensor="Intel RealSense D435", settings={"mode": "848x480@90"})
    with Recording(path) as recording:
        assert len(recording) == 5
        assert recording.camera == "817612070001"
        assert recording.sensor == "Intel RealSense D435"
        assert recording.settings == {"mode": "848x480@90"}
        assert recording.fps == pytest.approx(90.0, abs=1e-3)
        assert recording.intrinsics == INTRINSICS
        for written, read in zip(frames, recording, strict=True):
            assert np.array_equal(read.depth, written.depth) and read.depth.dtype == np.uint16
            assert (read.camera, read.seq, read.t_ns) == (written.camera, written.seq, written.t_ns)
            assert read.depth_unit_m == 0.000125 and read.intrinsics == INTRINSICS


def test_a_recording_is_for_its_owner_alone_and_has_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "hand.mcap"
    with RecordingWriter(path) as writer:
        writer.write(next(some_frames()))
        assert not path.exists()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["hand.mcap"]


def test_an_interrupted_recording_keeps_its_frames(tmp_path):
    with pytest.raises(KeyboardInterrupt), RecordingWriter(tmp_path / "hand.mcap") as writer:
        writer.write(next(some_frames()))
        raise KeyboardInterrupt
    with Recording(tmp_path / "hand.mcap") as recording:
        assert len(list(recording)) == 1


def test_a_recording_without_frames_leaves_no_file(tmp_path):
    write(tmp_path / "hand.mcap", [])
    assert list(tmp_path.iterdir()) == []


def test_an_existing_recording_is_not_overwritten(tmp_path):
    path = write(tmp_path / "hand.mcap", some_frames(1))
    with pytest.raises(RecordingError, match=r"hand.mcap exists already; choose another name"):
        RecordingWriter(path)


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(RecordingError, match=r"^cannot write in .*/none: No such file or directory$"):
        RecordingWriter(tmp_path / "none" / "hand.mcap")


def test_a_recording_holds_one_camera(tmp_path):
    with (
        RecordingWriter(tmp_path / "hand.mcap") as writer,
        pytest.raises(RecordingError, match="records camera a; this frame is of b"),
    ):
        writer.write(next(some_frames(1, "a")))
        writer.write(next(some_frames(1, "b")))


def test_a_foreign_file_is_one_line(tmp_path):
    path = tmp_path / "foreign.mcap"
    path.write_bytes(b"not a recording at all")
    with pytest.raises(RecordingError, match=r"foreign.mcap is not an MCAP file, or is cut or damaged \(") as seen:
        Recording(path)
    assert "\n" not in str(seen.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(RecordingError, match=r"none.mcap: no such file or directory$"):
        Recording(tmp_path / "none.mcap")


@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.99])
def test_a_cut_file_is_refused(tmp_path, keep):
    path = write(tmp_path / "hand.mcap", some_frames())
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(RecordingError, match=r"hand.mcap .*(cut|damaged)"):
        Recording(path)


def test_another_programs_mcap_file_is_named_as_such(tmp_path):
    path = write_mcap(tmp_path / "ros.mcap", messages=[b"x"], topic="/scan")
    with pytest.raises(RecordingError, match=r"not an edge-hand recording \(its topics: /scan\)$"):
        Recording(path)


def test_a_newer_format_is_refused(tmp_path):
    path = write_mcap(tmp_path / "new.mcap", {"version": "2", "camera": "cam"})
    with pytest.raises(RecordingError, match=r"new.mcap has recording format 2; this edge-hand reads format 1$"):
        Recording(path)


def test_a_recording_file_without_frames_is_refused(tmp_path):
    path = write_mcap(tmp_path / "empty.mcap", {"version": "1", "camera": "cam"})
    with pytest.raises(RecordingError, match=r"empty.mcap has no frames$"):
        Recording(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"v": 3}, "a frame has format 3; this edge-hand reads format 1"),
        ({"png": None}, "a frame lacks png"),
        ({"intrinsics": {"width": 48}}, "a frame is damaged"),
    ],
)
def test_a_broken_message_is_one_line(tmp_path, change, text):
    fields = msgpack.unpackb(encode_frame(next(some_frames(1, "cam")))) | change
    data = msgpack.packb({key: value for key, value in fields.items() if value is not None})
    path = write_mcap(tmp_path / "odd.mcap", {"version": "1", "camera": "cam"}, [data])
    with pytest.raises(RecordingError, match=text):
        Recording(path)


def test_damage_anywhere_is_an_error_or_harmless(tmp_path):
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


def test_a_depth_png_keeps_every_count():
    depth = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(decode_depth_png(encode_depth_png(depth), 256, 256), depth)
    assert np.array_equal(decode_depth_png(encode_depth_png(depth[::-1, ::2]), 128, 256), depth[::-1, ::2])


def test_recording_imports_neither_mcap_nor_pillow_before_they_are_needed():
    program = "import sys, edge_hand.edge.recording; print({'mcap', 'PIL', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"
