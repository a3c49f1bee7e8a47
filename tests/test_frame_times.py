"""When a frame was seen: by the camera's clock, free of jitter, and right while the wall clock is set."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import pytest
from edge_hand.edge.cameras import ClockMap, realsense
from edge_hand.edge.cameras.realsense import RealSenseCamera
from edge_hand.edge.clock import Clock
from edge_hand.edge.realsense_time import FrameTimes, RecordedTimes
from test_realsense import SoftwareCamera, needs_realsense, noise, rs

HZ = 90


def device_clock_run(seconds=60, hz=90, drift=50e-6, seed=2):
    """Stamps of a drifting device clock and their arrivals after a latency of 4 ms and up; ns."""
    rng = np.random.default_rng(seed)
    true_ns = (np.arange(seconds * hz) * 1e9 / hz).astype(np.int64) + 50_000_000_000
    stamps = ((true_ns - true_ns[0]) * (1 + drift)).astype(np.int64) + 123_000_000
    arrivals = true_ns + 4_000_000 + rng.exponential(2e6, len(true_ns)).astype(np.int64)
    return true_ns, stamps, np.maximum.accumulate(arrivals)


def test_clock_map_takes_out_jitter_and_follows_drift():
    true_ns, stamps, arrivals = device_clock_run()
    clock = ClockMap()
    t = np.array([clock.to_monotonic(int(s), int(a)) for s, a in zip(stamps, arrivals, strict=True)])
    assert np.all(np.diff(t) > 0) and np.all(t <= arrivals)
    late_ms = (t - true_ns)[90:] * 1e-6
    assert late_ms.min() > 3.9 and late_ms.max() < 4.7  # the least latency, and 10 s of 50 ppm


def test_clock_map_is_the_least_offset_of_its_window():
    _, stamps, arrivals = device_clock_run(seconds=8, drift=-50e-6)
    clock = ClockMap(window_s=2.0)
    last = 0
    for k, (stamp, arrival) in enumerate(zip(stamps.tolist(), arrivals.tolist(), strict=True)):
        window = (arrivals - stamps)[: k + 1][arrivals[: k + 1] >= arrival - 2_000_000_000]
        least = int(window.min())
        last = min(max(stamp + least, last + 1), arrival)
        assert clock.to_monotonic(stamp, arrival) == last


def test_clock_map_survives_a_device_clock_that_wraps():
    clock = ClockMap()
    wrap_ns = 2**32 * 1000
    t = []
    for k in range(200):
        arrival = 10_000_000_000 + k * 11_000_000
        t.append(clock.to_monotonic((wrap_ns - 1_000_000_000 + k * 11_000_000) % wrap_ns, arrival))
        assert t[-1] == arrival
    assert set(np.diff(t)) == {11_000_000}


def test_clock_map_remembers_the_latency_for_frames_of_which_nothing_is_told():
    true_ns, stamps, arrivals = device_clock_run()
    clock = ClockMap()
    told = np.where(np.arange(len(true_ns)) < 20 * HZ, true_ns, -1)
    t = np.array([clock.to_monotonic(*map(int, (s, a)), int(g) if g > 0 else None)
                  for s, a, g in zip(stamps, arrivals, told, strict=True)])  # fmt: skip
    assert np.array_equal(t[: 20 * HZ], true_ns[: 20 * HZ])
    assert np.abs(t - true_ns).max() < 1e6 and np.all(np.diff(t) > 0)


@pytest.mark.parametrize("off_ns", [-3_600_000_000_000, -500_000_000, 1_500_000_000])
def test_clock_map_does_not_believe_a_time_that_cannot_be(off_ns):
    clock = ClockMap()
    for k in range(100):
        arrival = 10_000_000_000 + k * 11_000_000
        t = clock.to_monotonic(arrival - 6_000_000, arrival, arrival - 6_000_000 - (off_ns if k >= 50 else 0))
        assert t == arrival - 6_000_000


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("late_s", [0.9, 1.1, 2.0, 3600.0])
def test_clock_map_knows_how_old_frames_are_that_came_late(late_s, told):
    """As after a process was stopped, however long: first the frames from before, then new ones."""
    clock, step_ns = ClockMap(), round(1e9 / HZ)

    def age_s(seen_ns, came_ns):
        t_ns = clock.to_monotonic(seen_ns - 777, came_ns, seen_ns if told else None)
        assert abs(t_ns - seen_ns) < 7_000_000
        return (came_ns - t_ns) * 1e-9

    for k in range(2 * HZ):
        age_s(50_000_000_000 + k * step_ns, 50_006_000_000 + k * step_ns)
    came_ns = 50_006_000_000 + 2 * HZ * step_ns + round(late_s * 1e9)
    for k in range(2 * HZ, 2 * HZ + 4):
        assert age_s(50_000_000_000 + k * step_ns, came_ns) > late_s - 0.05
    for k in range(4):
        assert age_s(came_ns - 6_000_000 + k * step_ns, came_ns + k * step_ns) < 0.007


class Wall:
    """A wall clock that is set: at_ns of CLOCK_MONOTONIC by step_ns."""

    def __init__(self, at_ns: int, step_ns: int) -> None:
        self.at_ns, self.step_ns, self.now_ns = at_ns, step_ns, 0

    def __call__(self, now_ns: float) -> float:
        return now_ns + 1.7e18 + (self.step_ns if now_ns >= self.at_ns else 0)

    def clock(self) -> Clock:
        return Clock(lambda: self.now_ns, lambda: int(self(self.now_ns)))


class GlobalTime:
    """librealsense's: a line through its last 16 readings of both clocks, ten a second at first, then one (src/
    global_timestamp_reader.cpp)."""

    def __init__(self, wall: Wall, rng: np.random.Generator) -> None:
        self.wall, self.rng, self.next_ns = wall, rng, 0
        self.readings: list[tuple[float, float]] = []
        self.line = np.array([0.0, 0.0])

    def follow(self, now_ns: int, own_ns: int) -> None:
        if now_ns < self.next_ns:
            return
        self.readings = [*self.readings[-15:], (own_ns, self.wall(now_ns) + self.rng.normal(0, 2e5))]
        self.next_ns = now_ns + (1_000_000_000 if len(self.readings) >= 15 else 100_000_000)

    def __call__(self, own_ns: int) -> float:
        own, wall = np.array(self.readings).T
        slope = np.polyfit(own - own.mean(), wall - wall.mean(), 1)[0] if len(own) > 1 else 1.0
        return float(wall.mean() + slope * (own_ns - own.mean()))


class Depth(NamedTuple):
    """As much of librealsense's depth frame as tells its time."""

    stamp_ms: float
    domain: Any
    own_us: int | None

    def get_timestamp(self) -> float:
        return self.stamp_ms

    def get_frame_timestamp_domain(self) -> Any:
        return self.domain

    def supports_frame_metadata(self, kind: Any) -> bool:
        return self.own_us is not None and kind == rs.frame_metadata_value.frame_timestamp

    def get_frame_metadata(self, kind: Any) -> int:
        assert self.own_us is not None
        return self.own_us


def errors_ms(wall: Wall, domain: str) -> np.ndarray:
    """How far the times of 40 s of frames are off."""
    rng = np.random.default_rng(5)
    true_ns, own, arrivals = device_clock_run(seconds=40)
    wall.now_ns = int(true_ns[0])
    times, fitted = FrameTimes(rs, wall.clock()), GlobalTime(wall, rng)
    t = []
    for true, own_ns, arrival in zip(true_ns.tolist(), own.tolist(), arrivals.tolist(), strict=True):
        fitted.follow(true, own_ns)
        stamp_ns = fitted(own_ns) if domain == "global_time" else wall(true)
        wall.now_ns = arrival + 50_000
        depth = Depth(
            stamp_ns * 1e-6, getattr(rs.timestamp_domain, domain), own_ns // 1000 if domain == "global_time" else None
        )
        t.append(times.exposed_ns(depth, arrival))
    assert np.all(np.diff(t) > 0)
    return np.abs(np.array(t) - true_ns) * 1e-6


@needs_realsense
@pytest.mark.parametrize("at_s", [1.0, 12.3])
@pytest.mark.parametrize("step_s", [0.5, -0.5, 0.8, -3600.0])
def test_a_wall_clock_that_is_set_moves_no_frame(at_s, step_s):
    error = errors_ms(Wall(50_000_000_000 + round(at_s * 1e9), round(step_s * 1e9)), "global_time")
    assert error.max() < 3.0


@needs_realsense
def test_global_time_is_as_good_as_its_readings_and_knows_the_latency():
    assert errors_ms(Wall(0, 0), "global_time")[2 * HZ :].max() < 0.5


@needs_realsense
@pytest.mark.parametrize("step_s", [0.5, -0.5, 3.0, -3600.0])
def test_stamps_of_the_host_s_own_clock_follow_it_at_once(step_s):
    """But for the one that was stamped before it was set and came after."""
    error = errors_ms(Wall(62_302_000_000, round(step_s * 1e9)), "system_time")
    assert np.sum(error > 0.01) == 1


@needs_realsense
def test_a_realsense_is_timed_by_its_own_clock_while_global_time_follows(monkeypatch):
    step_ns = [0]
    clock = Clock(unix_ns=lambda: time.time_ns() + step_ns[0])
    monkeypatch.setattr(realsense, "FrameTimes", lambda rs: FrameTimes(rs, clock))
    soft = SoftwareCamera()
    with RealSenseCamera(mode="640x480@30", device=soft.device) as camera:
        for number in range(1, 9):
            time.sleep(0.02)
            step_ns[0] = 500_000_000 if number > 3 else 0
            seen_ns, wall_ns = time.monotonic_ns(), time.time_ns()
            soft.sensor.set_metadata(rs.frame_metadata_value.frame_timestamp, (seen_ns + 777_000_000_000) // 1000)
            soft.push(noise(number), number, wall_ns * 1e-6, rs.timestamp_domain.global_time)
            assert -30_000_000 < camera.read(60).t_ns - seen_ns <= time.monotonic_ns() - seen_ns


@pytest.mark.parametrize("jump_s", [1.79e9, 61.0, -0.2, -3600.0])
def test_a_recording_s_times_go_on_where_its_clock_jumps(jump_s):
    times, frame_ns = RecordedTimes(33_000_000), 33_000_000
    at = [4_000_000_000 + frame_ns * k for k in (0, 1, 2, 4)]
    shown = [times.follow(t, "camera's") for t in at]
    shown += [times.follow(t + round(jump_s * 1e9), "camera's") for t in (at[-1] + frame_ns, at[-1] + 3 * frame_ns)]
    assert np.diff(shown).tolist() == [frame_ns * k for k in (1, 1, 2, 1, 2)]


def test_another_clock_or_another_lap_is_one_frame_on():
    times = RecordedTimes(33_000_000)
    shown = [times.follow(5_000_000_000, "camera's"), times.follow(15_000_000_000, "wall")]
    times.begin_anew()
    shown.append(times.follow(15_000_000_000, "wall"))
    assert np.diff(shown).tolist() == [33_000_000, 33_000_000]
