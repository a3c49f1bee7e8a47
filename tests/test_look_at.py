"""Cameras and recordings that are looked at for a calibration: which, until when, and by whose clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from edge_hand.calibration import look_at
from edge_hand.calibration.cli import calibrate
from edge_hand.calibration.observe import ObserveError, Sight
from edge_hand.calibration.rig import Quality, Rig, RigCamera, save_rig
from edge_hand.edge.cameras import BadFrame, CameraError, EndOfStream, FrameTimeout
from edge_hand.edge.cli.shell import CommandError
from edge_hand.edge.recordings.recording import RecordingWriter
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame


def recorded(path: Path, name: str, wall_offset_ns: int = 0, first_ns: int = 0, frames: int = 3) -> Path:
    """A recording of a wall."""
    lens, depth = Intrinsics(64, 48, 40.0, 40.0, 31.5, 23.5), np.full((48, 64), 900, np.uint16)
    with RecordingWriter(path, wall_offset_ns=wall_offset_ns) as writer:
        for i in range(frames):
            writer.write(DepthFrame(name, i, first_ns + i * 33_000_000, depth, 0.001, lens))
    return path


def test_recordings_of_two_hosts_are_compared_by_their_wall_clocks(tmp_path: Path) -> None:
    wall_ns = 10**18
    booted_ns = {"a": 0, "b": 7_000_000_000, "c": 20_000_000}  # later than a; c is of the same host as a
    for name, boot_ns in booted_ns.items():
        first_ns = 60_000_000_000 - boot_ns * (name == "b")
        recorded(tmp_path / f"{name}.mcap", name, wall_ns + boot_ns, first_ns)

    def starts(*names: str) -> list[float]:
        sights = look_at.look_at([str(tmp_path / f"{name}.mcap") for name in names], 2.0, lambda _: False)
        return [float(sight.times_s[0]) for sight in sights]

    assert starts("a", "b") == pytest.approx([1e9 + 60, 1e9 + 60], abs=1e-6, rel=0)
    assert starts("a", "c") == pytest.approx([60, 60], abs=1e-9), (
        "one host's monotonic clock is better than its wall clock"
    )


def test_of_long_recordings_that_began_apart_the_same_seconds_are_looked_at_and_it_is_said(tmp_path: Path) -> None:
    for name, first_s, frames in (("a", 100, 92), ("b", 102, 92), ("short", 101, 20), ("before", 10, 92)):
        recorded(tmp_path / f"{name}.mcap", name, 0, first_s * 10**9, frames)  # of 3 s, but for the short one
    said: list[str] = []

    def looked(*names: str) -> list[float]:
        said.clear()
        paths = [str(tmp_path / f"{name}.mcap") for name in names]
        sights = look_at.look_at(paths, 0.5, lambda _: False, say=said.append)
        return [float(t) for sight in sights for t in (sight.times_s[0], sight.times_s[-1])]

    assert looked("a", "b") == pytest.approx([102.0, 102.5, 102.0, 102.5], abs=0.07, rel=0)
    assert said[-2:] == [
        f"{tmp_path}/{name}.mcap: 0.5 of its 3.0 s, from {after} s on; --seconds looks at more"
        for name, after in (("a", "2.0"), ("b", "0.0"))
    ]
    seen = looked("a", "short", "before")
    assert seen == pytest.approx([101.0, 101.5, 101.0, 101.5, 10.0, 10.5], abs=0.07, rel=0)
    assert [line for line in said if "short" in line] == []


def test_a_camera_that_falls_silent_ends_the_gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look_at, "SILENCE_S", 1.5)
    sources = ("synthetic:1", "faulty:synthetic:2?stall@0.5+8")
    with pytest.raises(CameraError, match=r"^no frame that can be used for 1\.5 s: synthetic-2: no depth frame"):
        look_at.look_at(sources, 2.0, lambda _: False)


def test_one_camera_given_twice_is_refused_before_a_hand_moves(tmp_path: Path) -> None:
    path = recorded(tmp_path / "a.mcap", "a")
    with pytest.raises(ObserveError, match=r"^two sources are the same camera: a, a$"):
        look_at.look_at([str(path)] * 2, 2.0, lambda _: pytest.fail("it was looked at"))


def test_a_camera_beside_a_recording_is_refused_before_a_hand_moves(tmp_path: Path) -> None:
    path = recorded(tmp_path / "a.mcap", "a")
    with pytest.raises(CameraError, match=r"^cameras and recordings have no moment in common: give one or the other$"):
        look_at.look_at([str(path), "synthetic:1"], 2.0, lambda _: pytest.fail("it was looked at"))


def test_ctrl_c_ends_cameras_with_what_they_have_seen_and_recordings_without(tmp_path: Path) -> None:
    def stop(sights: list[Sight]) -> bool:
        raise KeyboardInterrupt

    sights = look_at.look_at(("synthetic:1", "synthetic:2"), 20.0, stop)
    assert [0.4 < sight.times_s[-1] - sight.times_s[0] < 2 for sight in sights] == [True, True]
    paths = [str(recorded(tmp_path / f"{name}.mcap", name, frames=30)) for name in "ab"]
    with pytest.raises(KeyboardInterrupt):
        look_at.look_at(paths, 20.0, stop)


def test_each_recording_is_looked_at_to_its_end_or_for_so_long_whatever_would_be_enough(tmp_path: Path) -> None:
    paths = [str(recorded(tmp_path / f"{name}.mcap", name, frames=n)) for name, n in (("a", 20), ("b", 25))]
    sights = look_at.look_at(paths, 20.0, lambda _: True)
    assert [len(sight.times_s) for sight in sights] == [20, 25]
    sights = look_at.look_at(paths, 0.1, lambda _: True)
    assert [len(sight.times_s) for sight in sights] == [5, 5]


def test_a_camera_that_loses_a_frame_now_and_then_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]

    class Flickers:
        """A camera of which every second frame is lost."""

        def __init__(self, name: str) -> None:
            self.name, self.count = name, 0

        def __enter__(self) -> Flickers:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self) -> DepthFrame:
            self.count += 1
            now_s[0] += 1.5
            if self.count % 2:
                raise (FrameTimeout, BadFrame)[self.count % 4 // 2]("no depth frame")
            if self.count > 12:
                raise EndOfStream
            lens = Intrinsics(64, 48, 40.0, 40.0, 31.5, 23.5)
            return DepthFrame(self.name, self.count, self.count * 33_000_000, np.full((48, 64), 900, "u2"), 0.001, lens)

    monkeypatch.setattr(look_at, "open_depth", lambda name, _: (Flickers(name), True))
    monkeypatch.setattr(look_at.time, "monotonic", lambda: now_s[0])
    sights = look_at.look_at(("a", "b"), 20.0, lambda _: False)
    assert [len(sight.times_s) for sight in sights] == [6, 6]


def test_cameras_run_in_the_mode_that_is_asked_for_and_recordings_refuse_it(tmp_path: Path) -> None:
    sights = look_at.look_at(("synthetic:1", "synthetic:2"), 20.0, lambda _: True, "320x240@30")
    assert [(sight.intrinsics.width, sight.intrinsics.height) for sight in sights] == [(320, 240)] * 2
    assert all(sight.times_s[-1] - sight.times_s[0] < 2 for sight in sights), "it was enough"
    path = recorded(tmp_path / "a.mcap", "a")
    with pytest.raises(CameraError, match=r"^--mode is for cameras; .*a\.mcap has the size and the rate"):
        look_at.open_depth(str(path), "320x240@30")
    run = f"hand --address a --address b --mode 320x240@30 --out {tmp_path}/rig.json"
    assert str(CliRunner().invoke(calibrate, run).exception).startswith("--mode is for a --source; at an --address")


def test_cameras_that_are_not_as_the_rig_has_them_are_refused_before_a_hand_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens, other = (Intrinsics(64 * n, 48 * n, 40.0 * n, 40.0 * n, 32.0 * n, 24.0 * n) for n in (1, 2))
    cameras = tuple(RigCamera(name, "depth", lens, np.eye(4), 1e-8 * np.eye(6)) for name in "ab")
    save_rig(Rig("cell", "", "test", cameras, (), Quality("hand")), tmp_path / "rig.json")
    looked: list[str | None] = []

    def refused(**seen: Intrinsics) -> str:
        def look(_: object, __: float, watch: Callable[[list[Sight]], bool], mode: str | None, ___: object) -> None:
            looked.append(mode)
            watch([Sight(n, "depth", k, np.zeros(1), np.full((1, 21, 3), np.nan)) for n, k in seen.items()])
            pytest.fail("a hand was moved for nothing")

        monkeypatch.setattr(look_at, "look_at", look)
        asked = f"verify --rig {tmp_path}/rig.json --source s:1 --source s:2 --mode 9x9@30"
        error = CliRunner().invoke(calibrate, asked).exception
        assert isinstance(error, CommandError)
        return str(error)

    assert refused(a=lens, b=other) == "rig cell: camera b was calibrated at 64x48, it runs at 128x96"
    assert refused(a=lens, c=lens) == "rig cell: no camera c; it has a, b"
    assert looked == ["9x9@30"] * 2
