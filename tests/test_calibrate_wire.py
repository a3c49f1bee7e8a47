"""What `calibrate hand` hears of daemons: joints, small clouds and times, and nothing else."""

from __future__ import annotations

import threading
import time
from typing import Any

import msgpack
import numpy as np
import pytest
from edge_hand.calibration import gather
from edge_hand.calibration.gather import Collected, Hearer, listen, mesh_of
from edge_hand.calibration.listen import Listener
from edge_hand.calibration.observe import Cloud, ObserveError, Sight
from edge_hand.edge.publish import Publisher
from edge_hand.edge.refit import Refit
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.crop import MIRROR
from edge_hand.hand.frames import HandPose, Side
from edge_hand.hand.kinematics import Shape
from edge_hand.hand.messages import CloudMessage, HandCloud, Header, JointsMessage, WireHand
from edge_hand.hand.se3 import so3_exp, transform
from edge_hand.hand.wire import decode, encode_cloud, encode_joints

LENS = Intrinsics(848, 480, 425.0, 425.0, 423.5, 239.5, (0.01, 0.0, 0.0, 0.0, 0.0))
T = transform(so3_exp(np.array([0.3, -0.2, 2.8])), np.array([0.05, 0.02, 0.6]))
SHAPE = Shape(np.full(6, 1.05), np.array([0.5, -0.3, 0.0, 0.8, 0.0, 0.0, 0.2]))
PERIOD_NS = 33_000_000


def pose_of(side: Side) -> HandPose:
    """A hand's pose as the tracker gives it; a left hand is the mirror image of a right one."""
    mirror = np.diag([*MIRROR, 1.0])
    angles = np.full(20, 0.1)
    left = side == "left"
    joints, vertices = Refit().pose(mirror @ T @ mirror if left else T, angles, SHAPE)
    sign = MIRROR if left else np.ones(3)
    theta = np.concatenate([np.zeros(6), angles])
    return HandPose(
        side, 0.99, "tracked", 0.9, T, theta, SHAPE.alpha, SHAPE.beta, joints * sign, vertices * sign, np.ones(21), 2.0
    )


def messages(name: str, i: int, pose: HandPose) -> list[list[bytes]]:
    unix_ns = 1_700_000_000_000_000_000 + i * PERIOD_NS
    header = Header(name, i, i * PERIOD_NS, unix_ns, i * PERIOD_NS)
    points = pose.vertices_m[::4].astype(np.float32)
    return [
        encode_joints(header, [WireHand(3, 0.0, pose, pose.joints_m)], stages_us={}, dropped=0),
        encode_cloud(header, points if i % 4 == 0 else None, [HandCloud(3, points)], LENS if i % 4 == 0 else None),
    ]


def hear(names: list[str], watch: Any, seconds: float = 60.0) -> list[Sight]:
    """Daemons, one a name, publish a hand in threads until `listen` has what it wants."""
    stop, addresses, threads = threading.Event(), [], []

    def publish(name: str, ready: threading.Event, port: list[str]) -> None:
        pose = pose_of("right")
        with Publisher("tcp://127.0.0.1:0") as publisher:
            port.append(publisher.address)
            ready.set()
            i = 0
            while not stop.is_set():
                for message in messages(name, i, pose):
                    publisher.publish(message)
                i += 1
                time.sleep(0.01)

    for name in names:
        ready, port = threading.Event(), []
        threads.append(threading.Thread(target=publish, args=(name, ready, port), daemon=True))
        threads[-1].start()
        assert ready.wait(60)
        addresses += port
    try:
        return listen(addresses, seconds, None, watch)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_two_daemons_are_heard_with_joints_clouds_and_intrinsics() -> None:
    sights = hear(["left_cam", "right_cam"], lambda s: all(len(x.clouds) > 10 for x in s))
    pose = pose_of("right")
    for sight, name in zip(sights, ("left_cam", "right_cam"), strict=True):
        assert sight.serial == name and sight.intrinsics == LENS
        assert sight.period_s == pytest.approx(PERIOD_NS * 1e-9, rel=0.01)
        assert np.allclose(sight.joints_m[0], pose.joints_m, atol=1e-5)
        cloud = sight.clouds[0]
        assert np.allclose(cloud.points_m, pose.vertices_m[::4], atol=1e-5)
        assert cloud.mesh_m is not None and np.allclose(cloud.mesh_m, pose.vertices_m, atol=1e-4)


def test_a_silent_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "SILENCE_S", 1.0)
    with pytest.raises(ObserveError, match=r"no message from tcp://127\.0\.0\.1:9 for 1 s; is .* without --keys\?$"):
        listen(["tcp://127.0.0.1:9"], 20.0, None, lambda _: False)


def test_an_address_from_which_nothing_came_before_the_time_was_over_is_named() -> None:
    with pytest.raises(ObserveError) as caught:
        listen(["tcp://127.0.0.1:9"], 0.6, None, lambda _: False)
    hint = "is `edge-hand run` running there without --keys?"
    assert str(caught.value) == f"tcp://127.0.0.1:9 gave no frame; {hint}"


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (messages("right", 1, pose_of("right")), "publishes left and right: give one address a camera"),
        ([[b"joints.left", msgpack.packb({"v": 2})]], "joints.left: wire version 2, this edge-hand reads version 1"),
    ],
)
def test_an_address_that_publishes_two_cameras_or_what_cannot_be_read_is_named(
    second: list[list[bytes]], words: str
) -> None:
    with Publisher("tcp://127.0.0.1:0") as daemon, Listener([daemon.address], ("joints", "cloud")) as listener:
        hearer, begun = Hearer(listener), time.monotonic()
        with pytest.raises(ObserveError, match=f"{daemon.address}:? {words}"):
            while time.monotonic() - begun < 60:
                daemon.poll_subscriptions()
                for message in (*messages("left", 0, pose_of("right")), *second):
                    daemon.publish(message)
                hearer.hear()
                time.sleep(0.05)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_mesh_that_a_message_implies_is_the_pose_it_was_made_from(side: Side) -> None:
    pose = pose_of(side)
    message = decode(messages("cam", 0, pose)[0])
    assert isinstance(message, JointsMessage)
    assert np.allclose(mesh_of(message.hands[0], Refit()), pose.vertices_m, atol=1e-4)


def test_intrinsics_travel_with_the_scene() -> None:
    with_scene, without = (decode(messages("cam", i, pose_of("right"))[1]) for i in (0, 1))
    assert isinstance(with_scene, CloudMessage) and isinstance(without, CloudMessage)
    assert with_scene.intrinsics == LENS and without.intrinsics is None


def test_a_daemon_without_intrinsics_is_named() -> None:
    collected = Collected()
    collected.serial = "cam"
    collected.add(1.0, None, None)
    with pytest.raises(ObserveError, match="cam: its daemon does not send clouds with intrinsics"):
        collected.sight()


def test_frames_that_go_back_in_time_and_clouds_of_nothing_are_left_out() -> None:
    collected = Collected()
    collected.intrinsics = LENS
    collected.add(1.0, np.zeros((21, 3)), Cloud(1.0, np.zeros((10, 3))))
    collected.add(0.5, np.zeros((21, 3)), None)
    collected.add(2.0, None, None)
    sight = collected.sight()
    assert sight.times_s.tolist() == [1.0, 2.0] and sight.seen.tolist() == [True, False] and not sight.clouds
