"""The cloud topic: the sensor's own points, near the right hand, few enough, and nothing when nobody asks."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import zmq
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.cloud import Clouds, points_near, scene_points, scene_rays, scene_step
from edge_hand.edge.engines import open_engine
from edge_hand.edge.loop import Loop
from edge_hand.edge.publish import Publisher
from edge_hand.edge.tracker import Tracker
from edge_hand.hand.camera import Intrinsics, fold_slope
from edge_hand.hand.frames import DepthFrame, HandPose
from edge_hand.hand.wire import MAX_POINTS, CloudMessage, HandCloud, Header, WireError, WireHand, decode, encode_cloud
from hypothesis import given, settings
from hypothesis import strategies as st

HEADER = Header("front", 1234, 5_000_000_000, 1_700_000_000_123_456_789, 5_008_000_000)
whole = st.integers(0, 2**63 - 1)
names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=64)


@settings(max_examples=60, deadline=None)
@given(
    camera=names,
    seed=st.integers(0, 2**32 - 1),
    scene=st.none() | st.integers(0, 200),
    ids=st.lists(whole, max_size=16),
)
def test_whatever_cloud_is_encoded_decodes_to_the_same(camera, seed, scene, ids) -> None:
    rng = np.random.default_rng(seed)
    sent = None if scene is None else rng.normal(size=(scene, 3)).astype(np.float32)
    hands = [HandCloud(i, rng.normal(size=(rng.integers(0, 50), 3)).astype(np.float32)) for i in ids]
    message = decode(encode_cloud(Header(camera, 1, 2, 3, 4), sent, hands))
    assert (message.camera, message.seq, [hand.id for hand in message.hands]) == (camera, 1, ids)
    np.testing.assert_equal(message.scene_m, sent)
    for hand, got in zip(hands, message.hands, strict=True):
        np.testing.assert_array_equal(got.points_m, hand.points_m)


@pytest.mark.parametrize(
    ("scene", "text"),
    [
        (np.zeros((MAX_POINTS + 1, 3)), "scene_m has 20001 points, the wire carries at most 20000"),
        (np.zeros((4, 2)), "scene_m is 4x2, the wire carries Vx3"),
        (np.full((4, 3), np.inf), "scene_m has a number that is not finite"),
    ],
)
def test_a_cloud_that_is_too_large_or_not_finite_cannot_be_published(scene: np.ndarray, text: str) -> None:
    with pytest.raises(WireError, match=f"^{text}$"):
        encode_cloud(HEADER, scene, [])


def sphere_mesh(centre: np.ndarray, radius_m: float) -> np.ndarray:
    """(1600, 3) points evenly over a sphere."""
    i = np.arange(1600) + 0.5
    polar, turn = np.arccos(1 - 2 * i / 1600), np.pi * (1 + 5**0.5) * i
    around = np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], -1)
    return centre + radius_m * around


def ball_frame(
    centre: np.ndarray, radius_m: float, wall_m: float = 1.5, distortion: tuple[float, ...] = (0, 0, 0, 0, 0)
) -> DepthFrame:
    """A ball before a wall, exact to a tenth of a millimetre."""
    camera = Intrinsics(424, 240, 212, 212, 211.5, 119.5, distortion)
    rays = camera.rays(np.stack(np.meshgrid(np.arange(424), np.arange(240)), -1))
    a, b = (rays**2).sum(-1), rays @ centre
    inside = b * b - a * (centre @ centre - radius_m**2)
    z = np.where(inside > 0, (b - np.sqrt(np.maximum(inside, 0))) / a, wall_m)
    return DepthFrame("front", 0, 10**9, np.rint(z * 1e4).astype(np.uint16), 1e-4, camera)


def hand_at(vertices_m: np.ndarray, state: str = "tracked") -> WireHand:
    zeros = np.zeros(26)
    pose = HandPose(
        "right", 1.0, state, 1.0, np.eye(4), zeros, zeros[:6], zeros[:7], np.zeros((21, 3)), vertices_m, zeros[:21], 1.0
    )
    return WireHand(1, 0.0, pose, None)


CENTRE = np.array([0.05, -0.02, 0.45])


@pytest.mark.parametrize("distortion", [(0, 0, 0, 0, 0), (0.05, -0.02, 0.001, 0.001, 0)])
def test_points_of_a_hand_are_those_the_sensor_measured_on_it(distortion: tuple[float, ...]) -> None:
    frame = ball_frame(CENTRE, 0.05, distortion=distortion)
    points = points_near(frame, sphere_mesh(CENTRE, 0.05))
    assert 1200 < len(points) <= 2000 and points.dtype == np.float32
    off = np.linalg.norm(points - CENTRE, axis=1) - 0.05
    assert np.abs(off).max() < 3e-4, "a point of the wall, or one that was averaged"


@pytest.mark.filterwarnings("error")
def test_pixels_beyond_where_the_lens_turns_back_have_no_points() -> None:
    frame = ball_frame(CENTRE, 0.05)  # exact enough: only which pixels count matters
    lens = Intrinsics(424, 240, 212, 212, 211.5, 119.5, (-0.35, 0.13, 0.0, 0.0, -0.02))
    frame = replace(frame, depth=np.full_like(frame.depth, 4500), intrinsics=lens)
    mesh = sphere_mesh(np.array([0.43, 0.24, 0.45]), 0.05)  # its picture is the corner
    message = decode(Clouds().message_of(HEADER, frame, [(1, mesh)]))
    assert message.scene_m is not None and 2000 < len(message.scene_m) < 4000
    for points in (message.scene_m, message.hands[0].points_m):
        assert (np.hypot(points[:, 0], points[:, 1]) < fold_slope(lens.distortion) * points[:, 2]).all()
        at = lens.project(points.astype(float))
        assert np.median(np.abs(at - at.round())) < 0.01


def test_a_far_hand_loses_no_point() -> None:
    centre = np.array([0.0, 0.0, 0.9])
    frame = ball_frame(centre, 0.05)
    assert len(points_near(frame, sphere_mesh(centre, 0.05))) == np.count_nonzero(frame.depth < 10_000)


def test_what_lies_before_or_behind_the_hand_is_not_the_hand() -> None:
    frame = ball_frame(CENTRE, 0.05)
    depth = frame.depth.copy()
    depth[:, 230:] = 3000  # something held in front of one side
    depth[100:104] = 0  # no reading
    points = points_near(replace(frame, depth=depth), sphere_mesh(CENTRE, 0.05))
    assert len(points) > 300 and points[:, 2].min() > 0.38
    rows = frame.intrinsics.project(points)[:, 1].round()
    assert not np.isin(rows, np.arange(100, 104)).any()


@pytest.mark.parametrize("shift", [(-0.5, 0, 0), (0, 0.3, 0), (-0.42, -0.2, 0), (3, 0, 0), (0, 0, -0.45), (0, 0, -1)])
def test_a_hand_partly_or_wholly_outside_the_picture_is_no_trouble(shift: tuple[float, ...]) -> None:
    frame = ball_frame(CENTRE, 0.05)
    points = points_near(frame, sphere_mesh(CENTRE + shift, 0.05))
    assert len(points) < 2000 and np.isfinite(points).all()


def test_near_hands_are_thinned_evenly() -> None:
    centre = np.array([0.0, 0.0, 0.25])
    points = points_near(ball_frame(centre, 0.06), sphere_mesh(centre, 0.06), 500)
    assert 250 < len(points) <= 500
    assert np.abs(points[:, :2].mean(0)).max() < 0.003 and np.abs(points[:, :2]).max() > 0.05


@pytest.mark.parametrize("size", [(424, 240), (640, 480), (848, 480), (1280, 720), (40, 30)])
def test_the_scene_has_as_many_points_as_asked_for_or_a_few_less(size: tuple[int, int]) -> None:
    camera = Intrinsics(*size, 400, 400, size[0] / 2, size[1] / 2)
    step = scene_step(camera, 4000)
    frame = DepthFrame("front", 0, 0, np.full(size[::-1], 1000, np.uint16), 0.001, camera)
    points = scene_points(frame, step, scene_rays(camera, step))
    assert min(0.6 * 4000, size[0] * size[1]) <= len(points) <= 4000


def test_a_point_of_the_scene_projects_to_the_pixel_it_is_from() -> None:
    frame = ball_frame(CENTRE, 0.05, distortion=(0.05, -0.02, 0.001, 0.001, 0))
    step = scene_step(frame.intrinsics, 4000)
    points = scene_points(frame, step, scene_rays(frame.intrinsics, step))
    at = frame.intrinsics.project(points)
    pixel = at.round().astype(int)
    assert np.abs(at - pixel).max() < 0.01
    np.testing.assert_allclose(points[:, 2], frame.depth[pixel[:, 1], pixel[:, 0]] * 1e-4, atol=1e-6)


def test_the_scene_comes_fifteen_times_a_second_and_the_hand_each_time() -> None:
    frame, clouds = ball_frame(CENTRE, 0.05), Clouds()
    hand = hand_at(sphere_mesh(CENTRE, 0.05))
    sent = [
        decode(clouds.message(HEADER, replace(frame, seq=i, t_ns=10**9 + i * 11_111_111), [hand])) for i in range(90)
    ]
    assert 14 <= sum(m.scene_m is not None for m in sent) <= 16 and sent[0].scene_m is not None
    assert all(len(m.hands[0].points_m) > 1000 for m in sent)


def test_a_predicted_hand_has_no_points() -> None:
    hand = hand_at(sphere_mesh(CENTRE, 0.05), "predicted")
    message = decode(Clouds().message(HEADER, ball_frame(CENTRE, 0.05), [hand]))
    assert [(h.id, len(h.points_m)) for h in message.hands] == [(1, 0)]


def test_the_loop_publishes_clouds_with_the_joints_of_their_frame_and_none_unasked() -> None:
    with (
        SyntheticCamera(0, "424x240@30", fps=0) as camera,
        Publisher("tcp://127.0.0.1:*") as publisher,
        zmq.Context() as context,
        context.socket(zmq.SUB) as subscriber,
    ):
        loop = Loop(camera, Tracker(open_engine()), publisher)
        loop.clouds.message = lambda *_: pytest.fail("a cloud was made for nobody")  # type: ignore[method-assign]
        subscriber.setsockopt_string(zmq.SUBSCRIBE, "joints")
        subscriber.connect(publisher.address)
        end = time.monotonic() + 60
        while not publisher.wants("joints.x") and time.monotonic() < end:
            publisher.poll_subscriptions()
        for seq in range(3):
            loop.handle(camera.frame(seq))
        del loop.clouds.message
        subscriber.setsockopt_string(zmq.SUBSCRIBE, "cloud")
        while not publisher.wants("cloud.x") and time.monotonic() < end:
            publisher.poll_subscriptions()
        for seq in range(3, 6):
            loop.handle(camera.frame(seq))
        got = []
        while subscriber.poll(500):
            got.append(decode(subscriber.recv_multipart()))
    clouds = [m for m in got if isinstance(m, CloudMessage)]
    assert [m.seq for m in clouds] == [3, 4, 5]
    assert clouds[0].scene_m is not None and len(clouds[0].scene_m) > 1500
    joints = {m.seq: m for m in got if not isinstance(m, CloudMessage)}
    for cloud in clouds:
        assert [h.id for h in cloud.hands] == [h.id for h in joints[cloud.seq].hands] == [1]
        assert len(cloud.hands[0].points_m) > 500
        middle = joints[cloud.seq].hands[0].joints_m.mean(0)
        assert np.linalg.norm(cloud.hands[0].points_m.mean(0) - middle) < 0.04
