"""Moments of several cameras: frames of one time, by the rig, whatever the clocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edge_hand.calibration.rig import Quality, Rig, RigCamera, RigError, TimeOffset, save_rig
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame

pytest.importorskip("torch")
pytest.importorskip("numba")

from edge_hand.trainer.adapt import agreement, frames


class Frames:
    """A recording of a camera whose first frame is taken at a time; wall_offset_ns as a recording has it."""

    def __init__(self, name: str, hz: float, first_ns: int, wall_offset_ns: int = 0, count: int = 20) -> None:
        self.name, self.wall_offset_ns = name, wall_offset_ns
        self.times = [first_ns + round(i * 1e9 / hz) for i in range(count)]

    def frames(self) -> Iterator[DepthFrame]:
        for i, t_ns in enumerate(self.times):
            yield DepthFrame(self.name, i, t_ns, np.zeros((2, 2), np.uint16), 0.001, Intrinsics(2, 2, 1, 1, 0, 0))


def a_camera(name: str, offset_s: float = 0.0) -> RigCamera:
    lens = Intrinsics(2, 2, 1, 1, 0, 0)
    return RigCamera(name, "depth", lens, np.eye(4), np.zeros((6, 6)), TimeOffset(offset_s))


def shots(sources: list[Frames], cameras: list[RigCamera]) -> list[list[int | None]]:
    found = frames.in_step(sources, cameras, frames.APART_NS)  # type: ignore[arg-type]
    return [[None if frame is None else frame.seq for frame in shot] for shot in found]


@pytest.mark.parametrize("hz", [30.0, 60.0, 90.0])
def test_frames_of_two_cameras_are_those_of_one_moment(hz: float) -> None:
    together = [[i, i] for i in range(20)]
    assert shots([Frames("a", hz, 0), Frames("b", hz, 3_000_000)], [a_camera("a"), a_camera("b")]) == together
    early = Frames("b", hz, -119_000_000)  # by a clock of its own, which the rig knows
    assert shots([Frames("a", hz, 0), early], [a_camera("a"), a_camera("b", 0.119)]) == together
    hosts = [Frames("a", hz, 0, 10**18), Frames("b", hz, 5 * 10**9, 10**18 - 5 * 10**9)]  # booted five seconds earlier
    assert shots(hosts, [a_camera("a"), a_camera("b")]) == together
    gone = Frames("b", hz, 0, count=10)
    assert shots([Frames("a", hz, 0), gone], [a_camera("a"), a_camera("b")])[-1] == [19, None]


def test_a_camera_is_seen_through_the_intrinsics_that_the_board_refined() -> None:
    own, better = Intrinsics(2, 2, 1, 1, 0, 0), Intrinsics(2, 2, 1.01, 1.02, 0.1, 0)
    cameras = [a_camera("a"), replace(a_camera("b"), intrinsics=better, own_intrinsics=own)]
    for a, b in frames.in_step([Frames("a", 30, 0), Frames("b", 30, 0)], cameras, frames.APART_NS):  # type: ignore[list-item]
        assert a is not None and a.intrinsics == own and b is not None and b.intrinsics == better


def test_a_rig_that_failed_its_calibration_teaches_nothing(tmp_path: Path) -> None:
    cameras = (a_camera("a"), a_camera("b"))
    quality = Quality("hand", verdict="fail", warnings=("the halves differ by 9 mm",))
    save_rig(Rig("cell", "2026-01-02T03:04:05Z", "edge-hand", cameras, (), quality), tmp_path / "rig.json")
    with pytest.raises(
        RigError, match=r"rig\.json failed its calibration \(the halves differ by 9 mm\): calibrate again"
    ):
        agreement.usable_rig(tmp_path / "rig.json")
