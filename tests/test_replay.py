"""The replay camera: the right pixels at the right time, and one clear line for each thing that can be wrong."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from depth_png import encode_depth_png
from edge_hand.edge.cameras import (
    BadFrame,
    CameraError,
    EndOfStream,
    FrameTimeout,
    camera_kinds,
    check_camera,
    open_camera,
    replay,
)
from edge_hand.edge.cameras.replay import PngFolder, ReplayCamera
from edge_hand.edge.recordings.recording import RecordingWriter
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame
from PIL import Image
from slept_time import slept_time

CAMERA = {"width": 64, "height": 48, "fx": 50.0, "fy": 51, "cx": 31.5, "cy": 23.5, "depth_scale_m": 0.001}
SR305 = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "sr305"


def depth_of(k):
    return np.full((48, 64), 400 + k, np.uint16)


@pytest.fixture
def folder(tmp_path):
    """Frames 0, 2, 10 in one subfolder, 1 in a later one: 400, 402, 410, 501 counts."""
    path = tmp_path / "take 1"
    for name, k in {"a/0.png": 0, "a/10.png": 10, "a/2.png": 2, "b/1.png": 101}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(encode_depth_png(depth_of(k), 1))
    (path / "camera.json").write_text(json.dumps(CAMERA))
    return path


def read_all(camera):
    frames = []
    try:
        while True:
            frames.append(camera.read(5.0))
    except EndOfStream:
        return frames


def test_a_folder_is_shown_in_natural_order(folder):
    with open_camera("replay", str(folder), fps=0) as camera:
        assert camera.name == "take_1"  # a topic has no spaces
        assert camera.fps == 30.0
        assert camera.intrinsics == Intrinsics(64, 48, 50, 51, 31.5, 23.5)
        frames = read_all(camera)
        with pytest.raises(EndOfStream):
            camera.read()
    assert [int(f.depth[0, 0]) for f in frames] == [400, 402, 410, 501]
    assert [f.seq for f in frames] == [0, 1, 2, 3]
    assert all(f.depth_unit_m == 0.001 and f.camera == "take_1" for f in frames)


def test_what_is_hidden_in_a_folder_is_no_frame(folder):
    for hidden in (".ipynb_checkpoints/0.png", "a/.Trash-1000/files/3.png", "b/._1.png"):
        (folder / hidden).parent.mkdir(parents=True, exist_ok=True)
        (folder / hidden).write_bytes((folder / "a/0.png").read_bytes())
    with open_camera("replay", str(folder), fps=0) as camera:
        assert [int(f.depth[0, 0]) for f in read_all(camera)] == [400, 402, 410, 501]


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(ReplayCamera, "_decode_next", lambda camera: finished(next(camera._items, None)))
    return slept_time(monkeypatch, replay)


def finished(item):
    done = Future()
    done.set_result(item)
    return done


def test_frames_are_due_one_period_apart_and_never_early(folder, clock):
    with open_camera("replay", str(folder), fps=5) as camera:
        arrivals, times = [], []
        for _ in range(4):
            times.append(camera.read().t_ns)
            arrivals.append(clock.monotonic_ns())
    assert np.diff(times).tolist() == [200_000_000] * 3
    assert all(arrival >= t for arrival, t in zip(arrivals, times, strict=True))


def test_fps_in_camera_json_is_the_rate(folder, clock):
    (folder / "camera.json").write_text(json.dumps(CAMERA | {"fps": 5, "camera": "817", "distortion": [1, 2, 3, 4, 5]}))
    with open_camera("replay", str(folder)) as camera:
        assert (camera.fps, camera.name, camera.intrinsics.distortion) == (5, "817", (1, 2, 3, 4, 5))
        assert np.diff([camera.read().t_ns for _ in range(3)]).tolist() == [200_000_000] * 2


def test_a_late_reader_gets_no_burst(folder, clock):
    with open_camera("replay", str(folder), fps=5) as camera:
        camera.read()
        clock.sleep(0.6)
        before = clock.monotonic_ns()
        late, following = camera.read(), camera.read()
    assert late.seq == 1 and late.t_ns >= before
    assert following.t_ns - late.t_ns == 200_000_000


def test_a_frame_not_yet_due_is_a_timeout_and_is_not_lost(folder, clock):
    with open_camera("replay", str(folder), fps=10) as camera:
        camera.read()
        with pytest.raises(FrameTimeout, match=r"the next (recorded )?frame"):
            camera.read(0.01)
        assert camera.read(1.0).seq == 1


def test_the_next_frame_is_decoded_while_the_reader_works_and_only_the_next(folder):
    go_on = threading.Event()

    class SlowSource(PngFolder):
        decoded = 0

        def frames(self):
            for item in super().frames():
                assert self.decoded < 2 or go_on.wait(60)
                self.decoded += 1
                yield item

    source = SlowSource(folder)
    with ReplayCamera(source, fps=0) as camera:
        camera.read(60)
        end = time.monotonic() + 60
        while source.decoded < 2 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.3)
        assert source.decoded == 2
        assert camera.read(50).seq == 1  # though the one behind it is not decoded
        go_on.set()


def test_a_loop_goes_on_counting(folder):
    with open_camera("replay", str(folder), fps=1000, loop=True) as camera:
        frames = [camera.read() for _ in range(10)]
    assert [f.seq for f in frames] == list(range(10))
    assert [int(f.depth[0, 0]) for f in frames[:6]] == [400, 402, 410, 501, 400, 402]
    assert all(np.diff([f.t_ns for f in frames]) >= 1_000_000)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", r"a/2.png is not a PNG \(0 bytes\); expected a 16-bit greyscale PNG"),
        (encode_depth_png(np.random.default_rng(0).integers(0, 9999, (48, 64)).astype(np.uint16))[:2000], "truncated"),
        (encode_depth_png(np.zeros((24, 32), np.uint16)), r"a/2.png is 32x24 px; the intrinsics are for 64x48"),
        ("L", r"a/2.png is a PNG with 8-bit greyscale; expected 16-bit greyscale"),
        ("RGB", r"a/2.png is a PNG with 8-bit colour; expected 16-bit greyscale"),
    ],
)
def test_a_bad_png_is_one_bad_frame_and_the_stream_goes_on(folder, data, text):
    if isinstance(data, str):
        Image.new(data, (64, 48)).save(folder / "a/2.png")
    else:
        (folder / "a/2.png").write_bytes(data)
    with open_camera("replay", str(folder), fps=0) as camera:
        assert camera.read().seq == 0
        with pytest.raises(BadFrame, match=text) as seen:
            camera.read()
        assert "\n" not in str(seen.value)
        assert [f.seq for f in read_all(camera)] == [2, 3]


def test_a_loop_of_bad_frames_ends(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no")
    with open_camera("replay", str(folder), fps=0, loop=True) as camera:
        for _ in range(4):
            with pytest.raises(BadFrame):
                camera.read()
        with pytest.raises(EndOfStream):
            camera.read()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "camera.json is not readable JSON"),
        ("[" * 100_000, "camera.json is not readable JSON"),
        ("[]", "camera.json holds list, expected a map with width, height"),
        (json.dumps({"width": 64, "height": 48, "cx": 1, "cy": 1}), "camera.json lacks fx, fy, depth_scale_m; it must"),
        (json.dumps(CAMERA | {"fx": "50"}), "camera.json: fx is '50', expected a number"),
        (json.dumps(CAMERA | {"fx": -1}), "focal length fx=-1.0, fy=51.0 px is not positive"),
        (json.dumps(CAMERA | {"cx": float("nan")}), "must be finite"),
        (json.dumps(CAMERA | {"distortion": [0.1]}), "the 5 distortion coefficients"),
        (json.dumps(CAMERA | {"depth_scale_m": 1.0}), "depth_scale_m 1.0 m is not plausible"),
        (json.dumps(CAMERA | {"fps": 0}), "fps 0 Hz is not plausible"),
        (json.dumps(CAMERA | {"fps": 1e-300}), "fps 1e-300 Hz is not plausible, expected 0.001 to 1000"),
    ],
)
def test_a_broken_camera_json_is_one_line(folder, text, error):
    (folder / "camera.json").write_text(text)
    with pytest.raises(CameraError) as seen:
        open_camera("replay", str(folder))
    assert error in str(seen.value) and "\n" not in str(seen.value)


def test_a_camera_json_that_windows_notepad_wrote_is_read(folder):
    (folder / "camera.json").write_text(json.dumps(CAMERA), encoding="utf-8-sig")
    with open_camera("replay", str(folder), fps=0) as camera:
        assert camera.intrinsics.fy == 51


def test_a_folder_needs_camera_json_and_frames(folder, tmp_path):
    (folder / "camera.json").rename(tmp_path / "camera.json")
    with pytest.raises(CameraError, match=r"camera.json is missing; it gives width, height, fx, fy, cx, cy, depth_sca"):
        open_camera("replay", str(folder))
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "camera.json").rename(empty / "camera.json")
    with pytest.raises(CameraError, match="empty has no PNG in it; replay reads a folder of 16-bit PNGs"):
        open_camera("replay", str(empty))


def test_a_source_that_is_no_recording_is_one_line(tmp_path):
    with pytest.raises(CameraError, match=r"^replay needs --source PATH: a folder"):
        open_camera("replay")
    with pytest.raises(CameraError, match="none does not exist; replay reads a folder"):
        open_camera("replay", str(tmp_path / "none"))
    (tmp_path / "x.txt").touch()
    with pytest.raises(CameraError, match=r"x.txt is not a recording: replay reads a folder"):
        open_camera("replay", str(tmp_path / "x.txt"))
    (tmp_path / "x.mcap").touch()
    with pytest.raises(CameraError, match=r"x.mcap is not an MCAP file"):
        open_camera("replay", str(tmp_path / "x.mcap"))


def test_an_unknown_camera_or_option_says_what_is_possible(folder):
    assert {"realsense", "replay"} <= set(camera_kinds())
    with pytest.raises(CameraError, match=r"camera 'webcam': there is no such camera; possible .*realsense, replay"):
        open_camera("webcam")
    with pytest.raises(CameraError, match=r"camera 'replay' has no option --mode; it has --fps, --loop$"):
        open_camera("replay", str(folder), mode="640x480@30", fps=None, loop=False)
    with pytest.raises(CameraError, match=r"camera 'replay' has no option --mode$"):
        open_camera("replay", str(folder), mode="640x480@30")
    with pytest.raises(CameraError, match=r"no option --deterministic; it has --mode, --fps, --loop$"):  # of `run`
        check_camera("realsense", mode=None, fps=None, loop=False, deterministic=True)
    with pytest.raises(CameraError, match="--fps -1: give the rate in Hz, or 0"):
        open_camera("replay", str(folder), fps=-1)
    with pytest.raises(CameraError, match=r"--fps 1e-300: give the rate in Hz, .* \(least: 0.001\)$"):
        open_camera("replay", str(folder), fps=1e-300)


def test_our_own_recording_is_shown_with_its_own_times_and_numbers(tmp_path, clock):
    stamps = [1_000_000_000, 1_050_000_000, 1_200_000_000]  # two frames were dropped
    intrinsics = Intrinsics(64, 48, 50, 50, 32, 24, (0.1, 0.0, 0.0, 0.0, 0.0))
    with RecordingWriter(tmp_path / "hand.mcap") as writer:
        for seq, t_ns in zip([7, 8, 11], stamps, strict=True):
            writer.write(DepthFrame("817", seq, t_ns, depth_of(seq), 0.000125, intrinsics))
    with open_camera("replay", str(tmp_path / "hand.mcap")) as camera:
        assert (camera.name, camera.intrinsics, camera.fps) == ("817", intrinsics, 10.0)
        start = clock.monotonic_ns()
        frames = read_all(camera)
    assert [f.seq for f in frames] == [7, 8, 11]
    assert [int(f.depth[5, 5]) for f in frames] == [407, 408, 411]
    assert np.diff([f.t_ns for f in frames]).tolist() == [50_000_000, 150_000_000]
    assert frames[0].t_ns >= start and frames[0].depth_unit_m == 0.000125


def test_a_loop_over_a_camera_that_counted_anew_has_no_number_below_its_own(tmp_path):
    intrinsics = Intrinsics(64, 48, 50, 50, 32, 24)
    with RecordingWriter(tmp_path / "hand.mcap") as writer:
        for k, seq in enumerate([1000, 1001, 0, 1]):
            writer.write(DepthFrame("817", seq, k * 1_000_000, depth_of(k), 0.001, intrinsics))
    with open_camera("replay", str(tmp_path / "hand.mcap"), fps=0, loop=True) as camera:
        assert [camera.read().seq for _ in range(9)] == [1000, 1001, 0, 1, 1001, 1002, 1, 2, 1002]


def test_real_sr305_frames_are_read():
    if not SR305.is_dir():
        pytest.skip(f"the SR305 frames are not at {SR305}")
    with open_camera("replay", str(SR305), fps=0) as camera:
        assert (camera.intrinsics.width, camera.intrinsics.height, camera.intrinsics.fx) == (640, 480, 476.007)
        frames = read_all(camera)
    assert len(frames) == 19 and [f.seq for f in frames] == list(range(19))
    for frame in frames:
        assert frame.depth_unit_m == 0.000125
        depth_m = frame.depth[frame.depth > 0] * frame.depth_unit_m
        assert 0.15 < np.median(depth_m) < 3.0
