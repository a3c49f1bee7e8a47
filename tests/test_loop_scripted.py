"""The loop on a camera that gives what it is told: numbers that begin anew, silence, an engine that is down."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from edge_hand.edge.cameras import BadFrame, FrameTimeout
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.clock import Clock
from edge_hand.edge.engines import Engine
from edge_hand.edge.loop import Loop, Totals
from edge_hand.edge.networks.swap import EngineDown
from edge_hand.edge.publish import Publisher
from edge_hand.edge.tracker import Tracker
from edge_hand.hand.frames import DepthFrame
from edge_hand.hand.messages import JointsMessage, MeshMessage, Message, StatusMessage, WireHand
from edge_hand.hand.wire import decode

ANY_PORT = "tcp://127.0.0.1:*"


@pytest.fixture(scope="module")
def frames() -> list[DepthFrame]:
    with SyntheticCamera(0, "424x240@30", fps=0) as camera:
        return [camera.frame(seq) for seq in range(5)]


class Scripted:
    """A camera of two frames a second that gives what it is told to, or raises it."""

    name, fps = "front", 2.0

    def __init__(self, *gives: DepthFrame | Exception) -> None:
        self.gives = iter(gives)

    def read(self, timeout_s: float) -> DepthFrame:
        given = next(self.gives)
        if isinstance(given, Exception):
            raise given
        return given


def test_frame_numbers_that_begin_anew_are_no_gap(frames: list[DepthFrame], engine: Engine) -> None:
    numbered = [replace(frame, seq=seq) for frame, seq in zip(frames, (100, 101, 0, 1, 3), strict=True)]
    with Publisher(ANY_PORT) as publisher:
        loop = Loop(Scripted(*numbered), Tracker(engine), publisher)  # type: ignore[arg-type]
        assert all(loop.step() for _ in numbered)
    assert loop.totals.dropped == 1 and loop.totals.frames == 5


def test_no_frame_for_two_seconds_is_no_frame_a_second() -> None:
    totals = Totals()
    totals.recent_ns.extend(k * 100_000_000 for k in range(31))
    assert totals.fps_at(3_000_000_000) == pytest.approx(10) and totals.fps_at(4_950_000_000) == 0


def test_the_rate_is_told_by_the_clock_of_the_frames(frames: list[DepthFrame], engine: Engine) -> None:
    recorded = [replace(frame, t_ns=k * 100_000_000) for k, frame in enumerate(frames)]
    with Publisher(ANY_PORT) as publisher:
        loop = Loop(Scripted(*recorded), Tracker(engine), publisher, clock=Clock(lambda: 500_000_000))  # type: ignore[arg-type]
        assert all(loop.step() for _ in recorded)
    assert loop.fps == pytest.approx(10)


def test_a_slow_camera_is_stalled_by_one_long_silence_and_not_by_many_short_ones(
    frames: list[DepthFrame], engine: Engine
) -> None:
    now = [replace(frame, t_ns=time.monotonic_ns()) for frame in frames]
    wait, bad = FrameTimeout("no frame"), BadFrame("cut short")
    camera = Scripted(now[0], wait, wait, now[1], wait, wait, bad, wait, wait, now[2], wait, wait, wait)
    with Publisher(ANY_PORT) as publisher:
        loop = Loop(camera, Tracker(engine), publisher)  # type: ignore[arg-type]
        states = [loop.step() and loop.state for _ in range(13)]
    assert "stalled" not in states[:12] and states[12] == "stalled"


def test_an_engine_that_is_down_is_a_stall_and_its_hands_are_gone(frames: list[DepthFrame], engine: Engine) -> None:
    def down(frame: DepthFrame) -> list[WireHand]:
        raise EngineDown("engine: the GPU is gone")

    with Publisher(ANY_PORT) as publisher:
        loop = Loop(Scripted(*frames[:2]), Tracker(engine), publisher)  # type: ignore[arg-type]
        assert loop.step() and loop.tracker.tracks and loop.state == "tracked"
        loop.tracker.process = down  # type: ignore[method-assign]
        assert loop.step() and loop.tracker.tracks == []
    assert (loop.state, loop.message, loop.trouble) == ("stalled", *2 * ["engine: the GPU is gone"])


def test_all_is_recorded_though_nobody_listens(frames: list[DepthFrame], engine: Engine) -> None:
    class Kept:
        def __init__(self) -> None:
            self.frames, self.messages = list[DepthFrame](), list[Message]()

        def frame(self, frame: DepthFrame) -> None:
            self.frames.append(frame)

        def message(self, parts: list[bytes], t_ns: int) -> None:
            self.messages.append(decode(parts))

    kept = Kept()
    with Publisher(ANY_PORT) as publisher:
        loop = Loop(Scripted(frames[0]), Tracker(engine), publisher, sink=kept)  # type: ignore[arg-type]
        assert loop.step()
        loop.tell("a word")
    assert kept.frames == [frames[0]]
    assert [type(m) for m in kept.messages] == [JointsMessage, MeshMessage, StatusMessage, StatusMessage]
    assert {m.t_capture_ns for m in kept.messages} == {frames[0].t_ns}  # type: ignore[union-attr]
