"""One hand over time: what its track remembers, and what is published of a look whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from edge_hand.edge.confidence import Calibration
from edge_hand.edge.look import Look
from edge_hand.edge.refit import Refit
from edge_hand.edge.track import MOST_M_S, REST_M, Poser, Track, _a_moment_ago
from edge_hand.edge.visibility import visible
from edge_hand.hand.arrays import Array
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.crop import MIRROR, look_at, mirror_pose
from edge_hand.hand.frames import DepthFrame, HandCrop, HandPrediction
from edge_hand.hand.kinematics import AVERAGE, pose_hand
from edge_hand.hand.normals import vertex_normals
from edge_hand.hand.poses import POSES
from edge_hand.hand.se3 import so3_exp
from edge_hand.hand.template import template

CAMERA = Intrinsics(320, 240, 200.0, 200.0, 159.5, 119.5)
FRAME_NS = 33_333_333
FIST = next(angles for name, angles in POSES.items() if "fist" in name)
T, REFIT = template(), Refit()
AT = np.array([0.25, -0.12, 0.5, 0.4, -0.3, 0.8, *(0.5 * FIST)])  # well off the camera's axis
SIDES = pytest.mark.parametrize("left", [False, True], ids=["right", "left"])


def frame_at(k: float, depth: Array | None = None) -> DepthFrame:
    depth = np.full((240, 320), 500) if depth is None else depth
    return DepthFrame("test", int(k), round(k * FRAME_NS), depth.astype(np.uint16), 0.001, CAMERA)


def hand(theta: Array, left: bool) -> tuple[Array, Array]:
    """Joints and vertices in the camera's frame; a left one is the mirror image of the right one of theta."""
    joints, vertices = pose_hand(T, theta[None], AVERAGE.alpha[None], AVERAGE.beta[None])
    mirror = MIRROR if left else 1.0
    return joints[0] * mirror, vertices[0] * mirror


def facing(vertices: Array, left: bool) -> Array:
    """Which of them the camera sees, but for what lies before them."""
    mirror = MIRROR if left else 1.0
    normals = vertex_normals(vertices * mirror, T.faces) * mirror
    return np.flatnonzero((normals * vertices).sum(1) < 0)


def look_of(theta: Array, left: bool = False, error_m: Array | None = None, off_m: Array | None = None) -> Look:
    """What a network without fault sees of a hand in a crop of its side, its vertices moved by off_m (V, 3)."""
    joints, vertices = hand(theta, left)
    centre = joints.mean(0)
    rotation = look_at(centre)
    mirror = MIRROR if left else 1.0
    moved = (vertices @ rotation) * mirror + (0.0 if off_m is None else off_m)
    crop = HandCrop(np.ones((64, 64), np.float32), rotation, float(np.linalg.norm(centre)), 0.25, left)
    error_m = np.full(21, 0.004) if error_m is None else error_m
    prediction = HandPrediction(
        moved, 0.004, np.full(len(moved), 0.004), error_m, (centre @ rotation) * mirror,
        ((vertices[facing(vertices, left)][::8] @ rotation) * mirror), 300, 5.0, 5.0,
    )  # fmt: skip
    return Look(crop, prediction, centre)


def poser(smooth: bool = True) -> Poser:
    return Poser(REFIT, Calibration(), smooth)


def track_of(theta: Array = AT, votes: float = 10.0) -> Track:
    return Track(hand(theta, votes < 0)[0].mean(0), 0, votes, id=1, published=True)


def moved(k: float, m_a_frame: float = 0.01) -> Array:
    theta = AT.copy()
    theta[0] -= m_a_frame * k
    return theta


@SIDES
def test_what_is_published_of_a_look_is_measured_in_the_cameras_frame(left: bool) -> None:
    depth = np.full((240, 320), 500)
    depth[:, :250] = 3000  # a half of the hand is not there
    frame = frame_at(0, depth[:, ::-1] if left else depth)
    track = track_of(votes=-10.0 if left else 10.0)
    published = poser().measured(track, frame, look_of(AT, left))
    pose, (joints, _) = published.pose, hand(AT, left)
    assert np.linalg.norm(pose.joints_m - joints, axis=1).mean() < 0.002
    assert 0 <= pose.fit_mm < 4
    assert published.visible is not None and len(set(published.visible.tolist())) > 1
    np.testing.assert_array_equal(published.visible, visible(frame, pose.joints_m))
    np.testing.assert_allclose(track.centre_m, joints.mean(0), atol=0.002)


@SIDES
def test_a_predicted_hand_moves_on_and_all_its_fields_with_it(left: bool) -> None:
    votes, p = -10.0 if left else 10.0, poser()
    track = track_of(votes=votes)
    for k in range(6):
        was = p.measured(track, frame_at(k), look_of(moved(k), left)).pose
    steps = np.full((240, 320), 500)
    steps[:, ::2] = 0
    steps[:, ::3] = 700
    frame = frame_at(7, steps)
    ahead = p.predicted(track, frame)
    assert ahead is not None and ahead.pose.state == "predicted"
    pose, mirror = ahead.pose, MIRROR if left else np.ones(3)
    assert 0.006 < -(pose.joints_m - was.joints_m).mean(0) @ (mirror * [1, 0, 0]) < 0.03
    wrist, rotation = pose.T_camera_wrist[:3, 3], pose.T_camera_wrist[:3, :3]
    at_origin = np.concatenate([np.zeros(6), pose.theta[6:]])[None]
    joints, vertices = pose_hand(T, at_origin, pose.alpha[None], pose.beta[None])
    np.testing.assert_allclose((joints[0] * mirror) @ rotation.T + wrist, pose.joints_m, atol=1e-6)
    np.testing.assert_allclose((vertices[0] * mirror) @ rotation.T + wrist, pose.vertices_m, atol=1e-6)
    np.testing.assert_allclose(pose.theta[:3], wrist, atol=1e-9)
    np.testing.assert_allclose(so3_exp(pose.theta[3:6]), rotation, atol=1e-6)
    assert np.isnan(pose.fit_mm)
    assert (visible(frame, was.joints_m) != visible(frame, pose.joints_m)).any()
    np.testing.assert_array_equal(ahead.visible, visible(frame, pose.joints_m))


def test_a_left_hand_whose_side_is_in_doubt_is_unknown_and_predicted_as_a_left_one() -> None:
    p, track = poser(), track_of(votes=-1.0)
    for k in range(3):
        was = p.measured(track, frame_at(k), look_of(AT, left=True)).pose
    ahead = p.predicted(track, frame_at(3))
    assert ahead is not None and was.side == ahead.pose.side == "unknown"
    np.testing.assert_allclose(ahead.pose.joints_m, was.joints_m, atol=0.002)
    np.testing.assert_allclose(ahead.pose.vertices_m, was.vertices_m, atol=0.002)


@SIDES
def test_the_next_fit_starts_where_the_hand_was_in_the_crops_own_frame(left: bool) -> None:
    track, p = track_of(votes=-10.0 if left else 10.0), poser()
    p.measured(track, frame_at(0), look_of(AT, left))
    look = look_of(moved(1, 0.05), left)  # another direction of view
    start = _a_moment_ago(track, frame_at(1), look)
    assert start is not None and start.age_s == pytest.approx(FRAME_NS * 1e-9)
    rotation = look.crop.R_camera_crop
    wrist = so3_exp(AT[3:6])  # of the right hand, or of the left one in the mirror
    wrist = mirror_pose(rotation.T @ mirror_pose(wrist)) if left else rotation.T @ wrist
    np.testing.assert_allclose(start.R, wrist, atol=0.05)
    np.testing.assert_allclose(start.angles, AT[6:], atol=0.15)
    assert _a_moment_ago(track, frame_at(10), look) is None and _a_moment_ago(track, frame_at(0), look) is None


def test_joints_that_the_network_is_not_sure_of_pull_the_hand_less() -> None:
    finger = np.flatnonzero(T.weights[:, 4:7].sum(1) > 0.5)
    off = np.zeros_like(T.vertices_m)
    off[finger] += (0.03, 0.0, 0.0)
    doubted = np.full(21, 0.004)
    doubted[5:9] = 0.1

    def palm_off(error_m: Array | None) -> float:
        pose = poser(False).measured(track_of(), frame_at(0), look_of(AT, False, error_m, off)).pose
        return float(np.linalg.norm(pose.joints_m - hand(AT, False)[0], axis=1)[[0, 1, 9, 13, 17]].mean())

    assert palm_off(doubted) < 0.6 * palm_off(None), (palm_off(doubted), palm_off(None))


def test_a_hand_whose_side_changes_is_a_new_one_to_filter_and_fit() -> None:
    track, p = track_of(votes=1.0), poser()
    p.measured(track, frame_at(0), look_of(AT))
    track.vote(1.0, 4.0)
    assert track.fitted is not None and track.smoother.predict(FRAME_NS) is not None
    track.vote(-4.0, 4.0)
    assert track.is_left and track.fitted is None and track.smoother.predict(FRAME_NS) is None


def test_speed_is_that_of_hands_and_of_neighbouring_frames() -> None:
    track = Track(np.zeros(3), 0, 1.0)
    track.move(np.array([0.03, 0, 0]), FRAME_NS)  # from a proposal's centre to the joints' is no movement
    assert not track.velocity_m_s.any()
    track.measured = 1
    track.move(np.array([0.06, 0, 0]), 2 * FRAME_NS)
    assert 0.5 < track.velocity_m_s[0] < 1.0
    assert track.foreseen_m(3 * FRAME_NS)[0] == pytest.approx(0.06 + track.velocity_m_s[0] / 30)
    assert track.foreseen_m(10**12)[0] < 0.06 + 0.11 * track.velocity_m_s[0]
    assert track.foreseen_m(0)[0] == pytest.approx(0.06)
    track.move(np.array([0.56, 0, 0]), 3 * FRAME_NS)
    assert np.linalg.norm(track.velocity_m_s) <= MOST_M_S
    track.move(np.array([0.60, 0, 0]), 20 * FRAME_NS)  # not seen for half a second
    assert not track.velocity_m_s.any()


def test_a_hand_that_rests_is_looked_at_in_one_place_and_one_that_moves_where_it_should_be() -> None:
    track = Track(np.array([0.0, 0.0, 0.5]), 0, 1.0, measured=1)
    first = track.aim(0)
    for k in range(1, 20):  # the noise of what is measured
        track.move(np.array([0.001 * (-1) ** k, 0, 0.5]), k * FRAME_NS)
        assert track.aim((k + 1) * FRAME_NS) is first
    for k in range(20, 40):  # slowly away
        track.move(np.array([0.001 * (k - 19), 0, 0.5]), k * FRAME_NS)
        aim = track.aim((k + 1) * FRAME_NS)
        assert np.linalg.norm(aim - track.foreseen_m((k + 1) * FRAME_NS)) <= REST_M
    assert aim[0] > 0.02 - REST_M
    for k in range(40, 45):  # and fast
        track.move(np.array([0.02 + 0.006 * (k - 39), 0, 0.5]), k * FRAME_NS)
        assert np.array_equal(track.aim((k + 1) * FRAME_NS), track.foreseen_m((k + 1) * FRAME_NS))


def test_a_clock_that_jumped_leaves_no_speed_and_no_start() -> None:
    track, p = track_of(), poser()
    for k in range(3):
        p.measured(track, frame_at(k), look_of(moved(k)))
    assert track.velocity_m_s.any()
    track.forget_motion(5)
    assert track.t_ns == track.begun_ns == 5 and not track.velocity_m_s.any()
    assert track.fitted is None and track.smoother.predict(3 * FRAME_NS) is None
