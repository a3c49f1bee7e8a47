"""Which of a camera's hands is gathered, and what of it: the measured joints, its own depth points, its time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from edge_hand.calibration import gather
from edge_hand.calibration.gather import Collected, Hearer, Looker, listen
from edge_hand.calibration.observe import Cloud, ObserveError, Sight
from edge_hand.hand.frames import DepthFrame
from edge_hand.hand.messages import HandCloud, Header, WireHand
from edge_hand.hand.wire import decode, encode_cloud, encode_joints
from test_calibrate_wire import LENS, PERIOD_NS, pose_of

POSE = pose_of("right")
OFF = np.array([0.003, 0.0, 0.0])  # of the measured joints from the smoothed
SECOND_NS = 1_000_000_000
UNIX_NS = 1_700_000_000_000_000_000


def hand(number: int, score: float, x_m: float = 0.0, measured: bool = True) -> WireHand:
    """A hand so far to the side."""
    aside, T = np.array([x_m, 0, 0]), POSE.T_camera_wrist.copy()
    T[:3, 3] += aside
    joints, vertices = POSE.joints_m + aside, POSE.vertices_m + aside
    pose = replace(POSE, score=score, T_camera_wrist=T, joints_m=joints, vertices_m=vertices)
    return WireHand(number, 0.0 if measured else 30.0, pose, pose.joints_m + OFF if measured else None)


STORY = (
    [hand(1, 0.6, -0.2), hand(2, 0.9, 0.2)],
    [hand(2, 0.7, 0.2), hand(1, 0.9, -0.2)],  # the one that was followed
    [hand(2, 0.7, 0.2, measured=False), hand(1, 0.5, -0.2, measured=False)],
    [hand(1, 0.5, -0.2), hand(3, 0.8, 0.1)],  # it is gone: the surest
    [],
)
WHERE = np.array([0.2, 0.2, np.nan, 0.1, np.nan])


def assert_told(collected: Collected, first_s: float) -> None:
    sight = collected.sight()
    np.testing.assert_allclose(sight.times_s, first_s + PERIOD_NS * 1e-9 * np.arange(5), rtol=0, atol=1e-6)
    expected = POSE.joints_m + OFF + WHERE[:, None, None] * np.array([1.0, 0, 0])
    expected[np.isnan(WHERE)] = np.nan
    np.testing.assert_allclose(sight.joints_m, expected, atol=1e-6)
    assert [cloud.t_s for cloud in sight.clouds] == pytest.approx(sight.times_s[[0, 1, 3]].tolist())
    for cloud, x in zip(sight.clouds, WHERE[[0, 1, 3]], strict=True):
        assert cloud.mesh_m is not None
        np.testing.assert_allclose(cloud.points_m.mean(0), POSE.vertices_m[::4].mean(0) + [x, 0, 0], atol=0.02)
        np.testing.assert_allclose(cloud.mesh_m.mean(0), POSE.vertices_m.mean(0) + [x, 0, 0], atol=1e-3)


class Tells:
    """A tracker that says of each frame what the story has."""

    def __init__(self) -> None:
        self.story = iter(STORY)

    def process(self, frame: DepthFrame) -> list[WireHand]:
        return next(self.story)


def test_a_looker_follows_one_hand_and_keeps_what_was_measured() -> None:
    looker = Looker()
    looker.tracker = Tells()  # type: ignore[assignment]
    depth = np.zeros((LENS.height, LENS.width), np.uint16)
    lens = replace(LENS, distortion=(0.0,) * 5)
    for hands in STORY[0]:
        pixels = lens.project(hands.pose.vertices_m).astype(int)
        depth[pixels[:, 1], pixels[:, 0]] = np.round(hands.pose.vertices_m[:, 2] * 1e3)
    pixels = lens.project(STORY[3][1].pose.vertices_m).astype(int)
    depth[pixels[:, 1], pixels[:, 0]] = np.round(POSE.vertices_m[:, 2] * 1e3)
    for i in range(5):
        looker.look(DepthFrame("cam", i, SECOND_NS + i * PERIOD_NS, depth, 1e-3, lens))
    assert_told(looker.collected, 1.0)
    for cloud in looker.collected.clouds:
        z_mm = 1e3 * cloud.points_m[:, 2]
        np.testing.assert_allclose(z_mm, np.round(z_mm), atol=1e-3)  # as the sensor measured it


class Daemon:
    """A listener to a daemon whose camera sends a frame every second from one moment to another."""

    keys: str | None = None

    def __init__(self, address: str, clock: Clock | None = None, name: str = "cam", start: float = 0, stop: float = 99):
        self.addresses, self.clock, self.name, self.start, self.stop = (address,), clock, name, start, stop

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def take(self, _: int) -> list[Any]:
        assert self.clock is not None
        now_s = self.clock.now_s
        if not self.start <= now_s < self.stop or now_s % 1:
            return []
        i = round(2 * now_s)
        messages = said(i, [hand(1, 0.9)], LENS if i % 4 == 0 else None, self.name)  # its lens, now and then
        return [(self.addresses[0], message) for message in messages]

    def trouble(self) -> dict[str, str]:
        return {}


class Clock:
    """Time that only sleep spends."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def hearer() -> Any:
    return Hearer(Daemon("tcp://somewhere"))  # type: ignore[arg-type]


def said(i: int, hands: list[WireHand], lens: Any = LENS, name: str = "cam") -> list[Any]:
    header = Header(name, i, 5 * SECOND_NS + i * PERIOD_NS, UNIX_NS + i * PERIOD_NS, 0)
    clouds = [HandCloud(h.id, h.pose.vertices_m[::4].astype("f4")) for h in hands[::-1]]
    scene = None if lens is None else np.zeros((1, 3), np.float32)
    both = encode_joints(header, hands, stages_us={}, dropped=0), encode_cloud(header, scene, clouds, lens)
    return [decode(message) for message in both]


def test_a_hearer_follows_one_hand_and_keeps_what_was_measured_by_the_wall_clock() -> None:
    heard = hearer()
    for i, hands in enumerate(STORY):
        for message in said(i, hands):
            heard._sort(message)
    assert_told(heard.collected, UNIX_NS * 1e-9)


def test_joints_count_though_their_depth_points_were_lost_and_wait_for_those_that_are_late() -> None:
    heard = hearer()
    late = []
    for i in range(14):
        joints, cloud = said(i, [hand(1, 0.9)])
        heard._sort(joints)
        late.append(cloud)
    heard._sort(late[6])
    heard._sort(late[13])
    sight = heard.collected.sight()
    np.testing.assert_allclose(
        sight.times_s - UNIX_NS * 1e-9, PERIOD_NS * 1e-9 * np.array([0, 1, 2, 3, 6, 13]), atol=1e-5
    )
    assert len(sight.clouds) == 2


def test_the_newest_intrinsics_are_the_camera_s_and_stay_where_a_message_has_none() -> None:
    heard, now = hearer(), replace(LENS, fx=430.0)
    for i, lens in enumerate((LENS, now, None)):
        for message in said(i, [hand(1, 0.9)], lens):
            heard._sort(message)
    assert heard.collected.intrinsics == now


def test_two_frames_of_one_time_are_one() -> None:
    collected = Collected()
    collected.intrinsics = LENS
    for _ in range(2):
        collected.add(1.0, np.zeros((21, 3)), Cloud(1.0, np.zeros((60, 3))))
    assert len(collected.sight().times_s) == len(collected.sight().clouds) == 1


def heard_of(monkeypatch: pytest.MonkeyPatch, watch: Any, **daemons: dict[str, Any]) -> tuple[list[Sight], float]:
    """What is heard of daemons in 20 s, and how long it took."""
    clock = Clock()
    monkeypatch.setattr(gather, "time", clock)
    monkeypatch.setattr(gather, "Listener", lambda to, *_: Daemon(to[0], clock, **daemons[to[0]]))
    return listen(list(daemons), 20.0, None, watch), clock.now_s


def test_daemons_are_watched_as_soon_as_all_have_told_of_a_hand_and_their_lens_until_it_is_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[str]] = []

    def watch(sights: list[Sight]) -> bool:
        seen.append([sight.serial for sight in sights])
        return len(seen) == 3

    both = {"a": {"name": "left"}, "b": {"name": "right", "start": 3.0}}
    sights, took_s = heard_of(monkeypatch, watch, **both)
    assert seen == [["left", "right"]] * 3 and took_s == 5.0
    assert [len(sight.times_s) for sight in sights] == [5, 3]
    assert heard_of(monkeypatch, lambda _: False, **both)[1] == 20.0, (
        "a daemon that speaks is never silent for too long"
    )


def test_ctrl_c_ends_the_hearing_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: list[Sight]) -> bool:
        raise KeyboardInterrupt

    sights, took_s = heard_of(monkeypatch, stop, a={"name": "left"}, b={"name": "right"})
    assert took_s == 2.0 and [len(sight.times_s) for sight in sights] == [2, 2]


def test_a_camera_heard_twice_and_a_daemon_that_falls_silent_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ObserveError, match=r"^two sources are the same camera: left, left$"):
        heard_of(monkeypatch, lambda _: False, a={"name": "left"}, b={"name": "left"})
    with pytest.raises(ObserveError, match=r"^no message from b for 5 s; is .* without --keys\?$"):
        heard_of(monkeypatch, lambda _: False, a={"name": "left"}, b={"name": "right", "stop": 2.0})
    monkeypatch.setattr(Daemon, "keys", "robot.key_secret")
    with pytest.raises(ObserveError, match=r"^no message from b for 5 s; is .* does it know these keys\?$"):
        heard_of(monkeypatch, lambda _: False, a={"name": "left"}, b={"name": "right", "stop": 2.0})
