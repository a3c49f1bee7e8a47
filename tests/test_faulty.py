"""The faulty camera does what its script says, at its time, and always the same."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from edge_hand.edge.cameras import BadFrame, Camera, CameraError, FrameTimeout, open_camera
from edge_hand.edge.cameras.faulty import BACK_NS, KINDS, Fault, FaultyCamera, parse
from edge_hand.hand.frames import DepthFrame
from slept_time import SleptTime, slept_time

MODE = "64x48@60"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SleptTime:
    return slept_time(monkeypatch)


def opened(script: str) -> FaultyCamera:
    camera = open_camera("faulty", f"synthetic:3?{script}", mode=MODE)
    assert isinstance(camera, FaultyCamera)
    return camera


def read_for(clock: SleptTime, camera: Camera, seconds: float, timeout_s: float = 0.05) -> list[DepthFrame | Exception]:
    """All that comes: frames, and what was raised."""
    seen: list[DepthFrame | Exception] = []
    end_s = clock.monotonic() + seconds
    while clock.monotonic() < end_s:
        try:
            seen.append(camera.read(timeout_s))
        except (BadFrame, CameraError) as error:
            seen.append(error)
            clock.sleep(0.005)
    return seen


def good(seen: list[DepthFrame | Exception]) -> list[DepthFrame]:
    return [item for item in seen if isinstance(item, DepthFrame)]


def test_it_is_the_other_camera_between_the_faults() -> None:
    with opened("stall@100") as camera, open_camera("synthetic", "3", mode=MODE) as other:
        assert (camera.name, camera.fps, camera.intrinsics) == (other.name, other.fps, other.intrinsics)
        for _ in range(3):
            np.testing.assert_array_equal(camera.read().depth, other.read().depth)


def test_a_stalled_camera_gives_no_frame_and_then_goes_on(clock: SleptTime) -> None:
    with opened("stall@0.1+0.4") as camera:
        seen = read_for(clock, camera, 0.9)
    times = [f.t_ns * 1e-9 for f in good(seen)]
    assert any(isinstance(item, FrameTimeout) for item in seen)
    gaps = np.diff(times)
    assert 0.35 < gaps.max() < 0.7 and (gaps > 0.2).sum() == 1


def test_a_read_that_hangs_ignores_its_timeout(clock: SleptTime) -> None:
    with opened("hang@0+0.4") as camera:
        begun_s = clock.monotonic()
        with pytest.raises(FrameTimeout, match="while its driver hung"):
            camera.read(0.01)
        assert 0.3 < clock.monotonic() - begun_s < 0.8


@pytest.mark.parametrize("kind", ["unplug", "reset"])
def test_an_unplugged_camera_stays_gone_until_it_is_opened_anew(kind: str, clock: SleptTime) -> None:
    with opened(f"{kind}@0.4+0.4") as camera:
        camera.read()
        before = camera.signs()
        clock.sleep(0.45)
        with pytest.raises(CameraError, match=r"^synthetic-3 is no longer connected; check its cable$"):
            camera.read()
        with pytest.raises(CameraError, match=r"^faulty: no camera is connected$"):
            camera.again()
        away = camera.signs()
        clock.sleep(0.5)
        with pytest.raises(CameraError):
            camera.read()  # this handle is dead
        assert len({before, away, camera.signs()}) == 3
        with camera.again() as back:
            assert back.read().seq == 0


@pytest.mark.parametrize(
    ("script", "spoilt"),
    [
        ("repeat@0.3+0.4", lambda a, b: b is a),
        ("freeze@0.3+0.4", lambda a, b: b.t_ns > a.t_ns and b.seq > a.seq and np.array_equal(a.depth, b.depth)),
        ("backward@0.3+0.4", lambda a, b: b.t_ns < a.t_ns and b.seq > a.seq),
        ("late@0.3+0.4", lambda a, b: b.t_ns == a.t_ns + 350_000_000 - BACK_NS),
    ],
)
def test_what_comes_is_spoilt_as_the_script_says(script: str, spoilt: object, clock: SleptTime) -> None:
    with opened(script) as camera:
        first = camera.read()
        clock.sleep(0.35)
        assert spoilt(first, camera.read())  # type: ignore[operator]
        clock.sleep(0.5)
        after = camera.read()
        assert after.t_ns > first.t_ns and not np.array_equal(after.depth, first.depth)


def test_a_fault_without_a_length_is_one_frame(clock: SleptTime) -> None:
    with opened("torn@0.1,repeat@0.2") as camera:
        seen = read_for(clock, camera, 0.4)
    assert [str(e) for e in seen if isinstance(e, BadFrame)] == ["synthetic-3: a frame was torn"]
    frames = good(seen)
    assert sum(a is b for a, b in pairwise(frames)) == 1


def test_random_faults_are_the_same_for_a_seed_and_come_at_their_rate() -> None:
    script = parse("synthetic?seed=5,every=10")[2]
    faults = list(script.between(0, 1000))
    assert faults == list(parse("synthetic?seed=5,every=10")[2].between(0, 1000))
    assert faults != list(parse("synthetic?seed=6,every=10")[2].between(0, 1000))
    assert [f.start_s for f in faults] == [10.0 * k for k in range(1, 101)]
    assert {f.kind for f in faults} == set(KINDS)
    assert [f for f in faults if f.start_s <= 500.5 and f.end_s > 500] == [
        f for f in script.between(500, 500.5) if f.seconds or f.start_s > 500
    ]


def test_a_script_can_go_on_where_another_process_ended(clock: SleptTime) -> None:
    with opened(f"begin={clock.monotonic() - 50},torn@50.1") as camera:
        assert any(isinstance(item, BadFrame) for item in read_for(clock, camera, 0.3))


def test_the_source_is_read() -> None:
    kind, source, script = parse("replay:a?b,c.mcap?stall@3+2,unplug@8+1.5,repeat@12")
    assert (kind, source) == ("replay", "a?b,c.mcap")
    assert script.faults == (Fault("stall", 3, 2), Fault("unplug", 8, 1.5), Fault("repeat", 12, 0))
    assert parse("synthetic?hang@1")[1] is None


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (None, "faulty '': --source is KIND:SOURCE?FAULTS, for example 'replay:hand.mcap?stall@3+2,unplug@8+1.5'"),
        ("synthetic", "faulty 'synthetic': --source is KIND:SOURCE?FAULTS, for example"),
        ("faulty:synthetic?stall@1?stall@2", "faulty 'faulty:synthetic?stall@1?stall@2': --source is KIND:"),
        ("synthetic?boom@3", "faulty: 'boom@3' is no fault; one is KIND@START+SECONDS with KIND of stall, hang, "),
        ("synthetic?stall@-3", "faulty: 'stall@-3' is no fault; one is"),
        ("synthetic?every=0", "faulty: every=SECONDS is at least 0.1"),
        ("webcam?stall@3", "camera 'webcam': there is no such camera; possible are "),
        ("replay:none.mcap?stall@3", "none.mcap does not exist; replay reads "),
    ],
)
def test_a_wrong_source_is_one_line(source: str | None, text: str) -> None:
    with pytest.raises(CameraError) as seen:
        open_camera("faulty", source)
    assert str(seen.value).startswith(text) and "\n" not in str(seen.value)
