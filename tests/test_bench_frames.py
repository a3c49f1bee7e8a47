"""The frames of a bench: held in memory, at once or when a sensor would give them."""

from __future__ import annotations

import time

import pytest
from edge_hand.edge.bench.frames import Memory, take_in
from edge_hand.edge.cameras import EndOfStream, FrameTimeout
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.hand.frames import DepthFrame


@pytest.fixture(scope="module")
def held() -> tuple[SyntheticCamera, list[DepthFrame]]:
    with SyntheticCamera(0, "160x120@50", fps=0) as camera:
        return camera, take_in(camera, 4)


def test_held_frames_end_or_go_back_and_forth(held: tuple[SyntheticCamera, list[DepthFrame]]) -> None:
    camera, frames = held
    once = Memory(camera, frames)
    assert [once.read().seq for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(EndOfStream):
        once.read()
    around = Memory(camera, frames, cycle=True)
    shown = [around.read() for _ in range(8)]
    assert [frame.seq for frame in shown] == list(range(8))
    for frame, k in zip(shown, (0, 1, 2, 3, 2, 1, 0, 1), strict=True):
        assert frame.depth is frames[k].depth


def test_at_the_sensor_s_rate_a_late_reader_loses_frames(held: tuple[SyntheticCamera, list[DepthFrame]]) -> None:
    camera, frames = held
    memory = Memory(camera, frames, hz=50.0, cycle=True)
    first = memory.read()
    time.sleep(0.07)
    late = memory.read()
    assert late.seq >= 3
    assert late.t_ns - first.t_ns == late.seq * 20_000_000
    following = memory.read()
    assert following.seq > late.seq and time.monotonic_ns() >= following.t_ns


def test_a_frame_that_is_due_later_is_a_timeout(held: tuple[SyntheticCamera, list[DepthFrame]]) -> None:
    memory = Memory(*held, hz=0.01, cycle=True)
    memory.read()
    with pytest.raises(FrameTimeout):
        memory.read(0.01)
