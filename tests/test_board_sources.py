"""Where pictures of the board come from: cameras that run freely while the board is looked for, and recordings."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("cv2", reason="the board needs OpenCV: pip install 'edge-hand[calibration]'")

from edge_hand.calibration import capture as capturing
from edge_hand.calibration import cli, sources
from edge_hand.calibration.capture import MANY_VIEWS, WANTED, capture, views_to_solve
from edge_hand.calibration.corners import Found
from edge_hand.calibration.rig import CLOCK_SIGMA_S, TimeOffset, load_rig
from edge_hand.calibration.sources import CameraPictures, Picture, SourceError, open_source
from edge_hand.calibration.start import moments_of, shared_moments
from edge_hand.calibration.target import TARGETS
from edge_hand.calibration.uncertainty import pose_difference
from edge_hand.edge.cameras import BadFrame, CameraError, FrameTimeout
from edge_hand.edge.cli.shell import CommandError
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame
from edge_hand.hand.se3 import apply, inverse, so3_exp, transform
from test_realsense import SoftwareCamera, needs_realsense, noise, rs

LENS = Intrinsics(848, 480, 425.0, 425.0, 423.5, 239.5)
A4 = TARGETS["a4"]
OFFSETS_S = (0.0, 0.012, -0.009)
T_CAMERA_REF = [
    inverse(transform(so3_exp(np.array([0, -turn, 0])), np.array([0.65 * np.sin(turn), 0, 0.65 * (1 - np.cos(turn))])))
    for turn in (0.0, 0.6, -0.6)
]


class Clock:
    """The time of a simulation, which passes while a camera is waited for and while the board is looked for."""

    def __init__(self, ends_s: float = 60.0) -> None:
        self.now_s, self.ends_s = 0.0, ends_s


class FreeCamera:
    """A camera that gives its newest picture, at times of its own; it falls silent at the end."""

    live, of_host, stream, intrinsics = True, True, "infrared", LENS

    def __init__(self, clock: Clock, camera: int, fps: float) -> None:
        self.clock, self.camera, self.fps, self.serial = clock, camera, fps, f"cam{camera}"

    def pictures(self) -> Iterator[Picture]:
        phase_s, last = (0.0, 0.45, 0.83)[self.camera] / self.fps, -1
        while self.clock.now_s < self.clock.ends_s:
            newest = int((self.clock.now_s - phase_s) * self.fps)
            if newest <= last:
                newest = last + 1
                self.clock.now_s = phase_s + newest / self.fps
            last, t_s = newest, phase_s + newest / self.fps
            yield Picture(t_s - OFFSETS_S[self.camera], np.array([self.camera, t_s]), None)  # type: ignore[arg-type]


def board_at(t_s: float) -> Any:
    """T_ref_board: slowly about the volume, tilting."""
    turn = np.array([0.25, 0.35, 0.2]) * np.sin(np.array([0.61, 0.53, 0.37]) * t_s + np.array([0, 1, 2]))
    return transform(
        so3_exp(turn),
        np.array([0.16, 0.1, 0.12]) * np.sin(np.array([1.1, 0.83, 0.67]) * t_s) + [0, 0, 0.65],
    )


class SlowEyes:
    """Finds the board, which takes its time; noise 0.1 px."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds, self.rng = clock, seconds, np.random.default_rng(0)

    def __call__(self, target: Any) -> SlowEyes:
        return self

    def find(self, image: Any) -> Found:
        self.clock.now_s += self.seconds
        camera, t_s = int(image[0]), float(image[1])
        pixels = LENS.project(apply(T_CAMERA_REF[camera] @ board_at(t_s), A4.corners_m()))
        inside = ((pixels > 5) & (pixels < (LENS.width - 6, LENS.height - 6))).all(1)
        pixels = pixels + self.rng.normal(0, 0.1, pixels.shape)
        return Found(np.flatnonzero(inside), pixels[inside], np.arange(17))


def cameras_and_eyes(
    monkeypatch: pytest.MonkeyPatch, cameras: int, fps: float, finding_s: float, ends_s: float = 60.0
) -> list[FreeCamera]:
    clock = Clock(ends_s)
    monkeypatch.setattr(capturing, "BoardDetector", SlowEyes(clock, finding_s))
    return [FreeCamera(clock, c, fps) for c in range(cameras)]


@pytest.mark.parametrize(
    ("cameras", "fps", "finding_s"), [(2, 30.0, 0.016), (2, 30.0, 0.07), (2, 90.0, 0.03), (3, 30.0, 0.03)]
)
def test_cameras_that_run_freely_share_moments_however_long_the_board_is_looked_for(
    cameras: int, fps: float, finding_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, said = cameras_and_eyes(monkeypatch, cameras, fps, finding_s), list[str]()
    found = capture(free, A4, say=said.append)
    assert free[0].clock.now_s < 60 and said[-1].endswith("; enough")
    assert re.search(r"; show it (more slowly )?to cam\d and a second camera at once \(\d+ of 24 moments\)$", said[0])
    for moving in (False, True):  # with their neighbours, from which time offsets are solved for
        moments = moments_of(found.views, np.zeros(cameras), max(found.periods_s), moving=moving)
        shared = shared_moments(moments, cameras)
        for a, b in combinations(range(cameras), 2):
            assert shared[a, b] > 0.9 * min(sum(view.camera == c for view in found.views) for c in (a, b))


def test_of_a_board_that_never_moves_slowly_views_are_left_that_can_be_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    slowly, said = board_at, list[str]()
    monkeypatch.setitem(globals(), "board_at", lambda t_s: slowly(4 * t_s))
    found = capture(cameras_and_eyes(monkeypatch, 2, 30.0, 0.016, ends_s=14), A4, say=said.append)
    assert len(found.views) > 2 * MANY_VIEWS and len(found.counted) < 10
    assert re.search(r"; show it more slowly to cam\d and a second camera at once \(\d of 24 moments\)$", said[-1])
    left = views_to_solve(found)
    moments = moments_of(left, np.zeros(2), max(found.periods_s), moving=True)
    assert shared_moments(moments, 2)[0, 1] > WANTED and len(left) < 1.2 * 2 * MANY_VIEWS
    assert {int(view.t_s) for view in left} == {int(view.t_s) for view in found.views}, "from all of the time"


def test_ctrl_c_ends_the_looking_and_what_was_seen_becomes_a_rig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, most = tmp_path / "rig.json", [60.0]

    def opened(text: str, mode: str | None = None) -> FreeCamera:
        assert mode == "640x480@15"
        return free[int(text)]

    class Stops(SlowEyes):
        def find(self, image: Any) -> Found:
            if self.clock.now_s > most[0]:
                raise KeyboardInterrupt
            return super().find(image)

    monkeypatch.setattr(sources, "open_source", opened)
    args = ["board", "--source", "0", "--source", "1", "--mode", "640x480@15", "--out", str(out)]
    for most[0], words in (
        (-1.0, "no source shows the board a4"),
        (0.15, "moments, needed are 3: show it to both at once"),
    ):
        free = cameras_and_eyes(monkeypatch, 2, 15.0, 0.016)
        monkeypatch.setattr(capturing, "BoardDetector", Stops(free[0].clock, 0.016))
        result = CliRunner().invoke(cli.calibrate, args)
        assert isinstance(result.exception, CommandError) and words in str(result.exception), result
    most[0] = 2.5
    free = cameras_and_eyes(monkeypatch, 2, 15.0, 0.016)
    monkeypatch.setattr(capturing, "BoardDetector", Stops(free[0].clock, 0.016))
    result = CliRunner().invoke(cli.calibrate, args)
    assert "stopped: this is what there is" in result.output and f"{out} is written" in result.output, result
    camera = load_rig(out).cameras[1]
    assert pose_difference(camera.T_ref_cam, inverse(T_CAMERA_REF[1])).volume_mm < 1
    assert camera.time.offset_s == pytest.approx(OFFSETS_S[1], abs=0.002)
    free, most[0] = cameras_and_eyes(monkeypatch, 2, 15.0, 0.016), 2.5
    monkeypatch.setattr(capturing, "BoardDetector", Stops(free[0].clock, 0.016))
    free[1].of_host = False  # type: ignore[misc]
    result = CliRunner().invoke(cli.calibrate, args)
    told = re.search(r"^clocks of the files, which live cameras do not have .*: cam1 (.*) ms$", result.output, re.M)
    assert told and float(told[1]) == pytest.approx(1e3 * OFFSETS_S[1], abs=2)
    assert load_rig(out).cameras[1].time == TimeOffset(0.0, CLOCK_SIGMA_S)


class Frames:
    """A camera that gives these in turn: frames, or what reading raises, seconds a timeout."""

    name, intrinsics, fps = "cam0", LENS, 30.0

    def __init__(self, clock: Clock, *items: Any) -> None:
        self.clock, self.items, self.closed = clock, list(items), False

    def read(self, timeout_s: float = 1.0) -> DepthFrame:
        item = self.items.pop(0)
        if isinstance(item, float):
            self.clock.now_s += item
            item = FrameTimeout(f"cam0: no depth frame within {item:g} s")
        if isinstance(item, Exception):
            raise item
        return item  # type: ignore[no-any-return]

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True


def a_frame(t_ns: int) -> DepthFrame:
    shape = (LENS.height, LENS.width)
    return DepthFrame("cam0", 0, t_ns, np.ones(shape, np.uint16), 0.001, LENS, np.zeros(shape, np.uint8))


def test_a_camera_may_be_silent_for_a_moment_and_not_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(sources, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    first, second = a_frame(10**9), a_frame(2 * 10**9)
    camera = Frames(clock, 1.0, BadFrame("torn"), 3.5, first, 1.0, 3.5, second, 1.0, 3.5, 1.0, a_frame(3 * 10**9))
    pictures = CameraPictures(camera, live=True).pictures()
    assert [next(pictures).t_s, next(pictures).t_s] == [1.0, 2.0]
    with pytest.raises(CameraError, match=r"^no frame that can be used for 5 s: cam0: no depth frame within 1 s$"):
        next(pictures)
    assert camera.closed


def test_a_camera_is_closed_if_the_next_one_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Frames(Clock())

    def open_camera(kind: str, serial: str, **_: Any) -> Frames:
        if serial == "gone":
            raise CameraError("no RealSense camera gone is found")
        return first

    monkeypatch.setattr(sources, "open_camera", open_camera)
    args = ["board", "--source", "realsense:a", "--source", "realsense:gone", "--out", str(tmp_path / "rig.json")]
    result = CliRunner().invoke(cli.calibrate, args)
    assert "no RealSense camera gone is found" in str(result.exception) and first.closed


def test_what_cannot_be_is_said_before_anything_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = cameras_and_eyes(monkeypatch, 2, 30.0, 0.016)
    video = tmp_path / "board.mp4"
    video.touch()
    with pytest.raises(SourceError, match=r"^--mode is for cameras; .*board\.mp4 has the size and the rate"):
        open_source(str(video), "848x480@30")
    page = tmp_path / "board.pdf"
    page.touch()
    kinds = "a source is a .mp4 .avi .mkv .mov video, a folder of pictures, a .bag .db3 recording or KIND:SERIAL"
    for path, trouble in ((page, "is no source"), (tmp_path / "no.mp4", "does not exist")):
        with pytest.raises(SourceError) as caught:
            open_source(str(path))
        assert str(caught.value) == f"{path} {trouble}; {kinds}"
    page.unlink()
    recorded = FreeCamera(Clock(), 2, 30.0)
    recorded.live = False
    with pytest.raises(SourceError, match="cameras and recordings have no moment in common: give one or the other"):
        capture([*free, recorded], A4)
    monkeypatch.setattr(sources, "open_source", lambda *_: pytest.fail("it was opened"))
    for command, option, path, words in (
        ("board", "--out", tmp_path / "none" / "rig.json", "no such file or directory"),
        ("board", "--out", tmp_path, "is a directory"),
        ("board", "--picture", tmp_path / "none" / "rig.png", "no such file or directory"),
        ("hand", "--json", tmp_path / "none" / "rig.json", "no such file or directory"),
    ):
        args = [command, "--source", "0", "--source", "1", "--out", str(tmp_path / "rig.json"), option, str(path)]
        result = CliRunner().invoke(cli.calibrate, args)
        assert str(result.exception) == f"{path} cannot be written: {words}"
    assert [path.name for path in tmp_path.iterdir()] == ["board.mp4"]


@needs_realsense
def test_pictures_of_a_librealsense_recording_have_the_times_they_were_recorded_at(tmp_path: Path) -> None:
    path = tmp_path / f"board{'.db3' if hasattr(rs.context, 'convert_bag_to_db3') else '.bag'}"
    camera = SoftwareCamera(fps=25, infrared=(1,))
    recorder, queue = rs.recorder(str(path), camera.device), rs.frame_queue(64, True)
    sensor = recorder.query_sensors()[0]
    sensor.open(sensor.get_stream_profiles())
    sensor.start(queue)
    stamps_ms = [1_700_000_000_000.0 + 40 * number for number in (1, 2, 3, 5, 6)]
    for number, stamp_ms in enumerate(stamps_ms):
        camera.push_picture(1, (noise(number) % 256).astype(np.uint8), number, stamp_ms)
        queue.wait_for_frame(2000)
        camera.push(noise(number), number, stamp_ms)
        queue.wait_for_frame(2000)
    sensor.stop()
    sensor.close()
    del sensor, recorder, queue  # the file is finished when the recorder is destroyed
    gc.collect()
    times = {picture.t_s for picture in open_source(str(path)).pictures()}
    assert sorted(times) == pytest.approx([ms * 1e-3 for ms in stamps_ms], abs=1e-6)


def test_a_camera_json_of_windows_is_read_and_one_nested_too_deep_is_one_line(tmp_path: Path) -> None:
    lens = {key: getattr(LENS, key) for key in ("width", "height", "fx", "fy", "cx", "cy")}
    (tmp_path / "0.png").touch()
    (tmp_path / "camera.json").write_text(json.dumps(lens), encoding="utf-8-sig")
    assert open_source(str(tmp_path)).intrinsics == LENS
    (tmp_path / "camera.json").write_text("[" * 100_000)
    with pytest.raises(SourceError, match=r"camera\.json: maximum recursion depth exceeded"):
        open_source(str(tmp_path))
