"""What is fused of a left hand and of a hand that turns: motion, depth points, raw joints, expected errors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from edge_hand.calibration import fuse
from edge_hand.calibration.fuse import Fuser, _in_mirror, sigma_m
from edge_hand.calibration.many_views import Guess, Surface, Target, agree, guess_of
from edge_hand.calibration.rig import DepthCorrection, RigCamera, TimeOffset
from edge_hand.calibration.sight import View, joints_of
from edge_hand.calibration.views import Views
from edge_hand.edge.confidence import joint_confidence
from edge_hand.edge.refit import Pose
from edge_hand.edge.smooth import rotation_vector
from edge_hand.hand import se3
from edge_hand.hand.arrays import Array
from edge_hand.hand.crop import MIRROR
from edge_hand.hand.kinematics import AVERAGE, Shape, pose_hand
from edge_hand.hand.messages import CloudMessage, HandCloud, JointsMessage, Motion, WireHand
from edge_hand.hand.skeleton import ANGLE_LIMITS_RAD
from edge_hand.hand.template import template
from test_fuse import FPS, SECOND, a_rig, errors_mm, run, theta_at, told, truth_at

SIDES = pytest.mark.parametrize("is_left", [False, True], ids=["right", "left"])


def moment_ns(i: float) -> int:
    return SECOND + round(i / FPS * 1e9)


def cloud_of(message: JointsMessage, camera: RigCamera, is_left: bool) -> CloudMessage:
    """Every tenth vertex of the true hand, other ones in each frame, as the camera measures it."""
    _, vertices = truth_at(message.seq / FPS, is_left)
    points = se3.apply(se3.inverse(camera.T_ref_cam), vertices[message.seq :: 10]).astype("f4")
    return CloudMessage(camera.serial, message.seq, message.t_capture_ns, 0, 0, None, (HandCloud(1, points),))


def fused(is_left: bool, frames: int) -> tuple[Fuser, list[WireHand]]:
    rig = a_rig()
    fuser, views, out = Fuser(rig), [View(k, camera) for k, camera in enumerate(rig.cameras)], []
    for i in range(frames):
        for k in range(3):
            views[k].take(told(rig, k, i, is_left=is_left))
        out += fuser.step(moment_ns(i), [s for view in views for s in view.at(moment_ns(i))])
    return fuser, out


@cache
def half_a_second(is_left: bool) -> list[WireHand]:
    return fused(is_left, 30)[1]


@SIDES
def test_the_motion_that_is_published_is_that_of_the_pose(is_left: bool) -> None:
    hands = half_a_second(is_left)
    assert len(hands) == 30
    for a, b in pairwise(hands[20:]):
        assert b.motion is not None
        T0, T1 = a.pose.T_camera_wrist, b.pose.T_camera_wrist
        np.testing.assert_allclose(b.motion.velocity_m_s, (T1[:3, 3] - T0[:3, 3]) * FPS, atol=0.03)
        turn = rotation_vector(T1[:3, :3] @ T0[:3, :3].T) * FPS
        np.testing.assert_allclose(b.motion.angular_velocity_rad_s, turn, atol=0.06)
    assert np.linalg.norm(turn) > 0.15


@SIDES
def test_the_wrist_and_the_angles_that_are_published_pose_the_published_joints(is_left: bool) -> None:
    pose = half_a_second(is_left)[-1].pose
    mirror, T = MIRROR if is_left else np.ones(3), pose.T_camera_wrist
    at_origin = np.concatenate([np.zeros(6), pose.theta[6:]])[None]
    joints, vertices = pose_hand(template(), at_origin, pose.alpha[None], pose.beta[None])
    np.testing.assert_allclose(se3.apply(T, joints[0] * mirror), pose.joints_m, atol=1e-6)
    np.testing.assert_allclose(se3.apply(T, vertices[0] * mirror), pose.vertices_m, atol=1e-6)
    np.testing.assert_allclose(pose.theta[:3], T[:3, 3])
    np.testing.assert_allclose(se3.so3_exp(pose.theta[3:6]), T[:3, :3], atol=1e-6)


@SIDES
@pytest.mark.parametrize("off_m", [-0.06, 0.06])
def test_of_two_cameras_that_disagree_the_one_that_is_where_the_hand_was_foreseen_is_believed(
    is_left: bool, off_m: float
) -> None:
    def off(k: int, i: int) -> Array:
        return np.array([off_m if k == 0 and i >= 9 else 0.0, 0.0, 0.0])

    steps = run(a_rig(2), range(12), off, lambda i: range(2), is_left=is_left)
    assert np.linalg.norm(errors_mm(steps[8:], is_left), axis=2).max() < 12


@SIDES
def test_points_of_a_camera_that_takes_the_hand_for_the_other_side_s_are_its_own_all_the_same(
    is_left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, given = a_rig(), list[Guess]()
    fit = fuse.refit

    def spy(surface: Surface, shape: Shape, target: Target, guesses: list[Guess], *more: Any, **named: Any) -> Pose:
        given[:] = guesses
        return fit(surface, shape, target, guesses, *more, **named)

    monkeypatch.setattr(fuse, "refit", spy)
    fuser, views = Fuser(rig), [View(k, camera) for k, camera in enumerate(rig.cameras)]
    for i in range(4):
        for k in range(3):
            views[k].take(told(rig, k, i, is_left=is_left != (k == 2)))
            views[k].take_cloud(cloud_of(told(rig, k, i), rig.cameras[k], is_left))
        (hand,) = fuser.step(moment_ns(i), [s for view in views for s in view.at(moment_ns(i))])
    assert hand.pose.side == ("left" if is_left else "right") and len(given) == 3
    eyes = sorted(tuple(camera.T_ref_cam[:3, 3] * (MIRROR if is_left else 1.0)) for camera in rig.cameras)
    np.testing.assert_allclose(sorted(tuple(guess.eye_m) for guess in given), eyes)
    for guess in given:
        np.testing.assert_allclose(guess.points_m, truth_at(3 / FPS)[1][3::10], atol=3e-4)


def test_a_hand_whose_side_changes_is_a_new_one_to_weigh_filter_and_fit() -> None:
    fuser, _ = fused(False, 10)
    (hand,) = fuser.hands
    view = View(0, fuser.rig.cameras[0])
    view.take(told(fuser.rig, 0, 10, is_left=True))
    hand.right_votes = 0.1
    assert hand.weights and hand.fitted is not None and hand.smoother.predict(moment_ns(10)) is not None
    fuser._vote(hand, moment_ns(10), [fuser._seen(s) for s in view.at(moment_ns(10))])
    assert hand.is_left and hand.weights == {} and hand.fitted is None
    assert hand.smoother.predict(moment_ns(10)) is None


def test_a_hand_that_no_camera_measures_is_neither_begun_nor_has_it_raw_joints() -> None:
    rig = a_rig()
    fuser, views = Fuser(rig), [View(k, camera) for k, camera in enumerate(rig.cameras)]
    raw = []
    for i in range(9):
        for k in range(3):
            views[k].take(told(rig, k, i, age_ms=0.0 if 3 <= i < 6 else 15.0))
        hands = fuser.step(moment_ns(i), [s for view in views for s in view.at(moment_ns(i))])
        raw.append([hand.joints_raw_m is not None for hand in hands])
    assert raw == [[]] * 3 + [[True]] * 3 + [[False]] * 3


def test_one_camera_alone_must_see_a_new_hand_twice() -> None:
    for cameras, first in (([0], 1), ([0, 2], 0)):
        steps = run(a_rig(), range(3), lambda k, i: np.zeros(3), lambda i, cameras=cameras: cameras)  # type: ignore[misc]
        assert [len(hands) for _, hands in steps] == [int(i >= first) for i in range(3)]


@pytest.mark.parametrize(("is_left", "again_s", "number"), [(False, 1.0, 1), (True, 1.0, 2), (False, 2.5, 2)])
def test_only_a_hand_of_the_same_side_that_comes_back_soon_has_its_old_number(
    is_left: bool, again_s: float, number: int
) -> None:
    rig = a_rig()
    fuser, views = Fuser(rig), [View(k, camera) for k, camera in enumerate(rig.cameras)]
    back = round(again_s * FPS)
    for i in (*range(10), 25, back, back + 1, back + 2):
        for k in range(3 if i != 25 else 0):
            views[k].take(told(rig, k, i, is_left=is_left and i > 10))
        hands = fuser.step(moment_ns(i), [s for view in views for s in view.at(moment_ns(i))])
    assert [hand.id for hand in hands] == [number]


def test_what_one_camera_sees_is_seen_and_what_nobody_sees_any_more_fades() -> None:
    rig = a_rig(2)
    fuser, views = Fuser(rig), [View(k, camera) for k, camera in enumerate(rig.cameras)]
    for i in range(10):
        for k, said in enumerate((np.repeat([1, 0, -1], 7), np.tile([1, 0, -1], 7))):
            message = told(rig, k, i)
            views[k].take(replace(message, hands=(replace(message.hands[0], visible=said.astype(np.int8)),)))
        (hand,) = fuser.step(moment_ns(i), [s for view in views for s in view.at(moment_ns(i))]) or (None,)
    assert hand is not None
    np.testing.assert_array_equal(hand.visible, np.maximum(np.repeat([1, 0, -1], 7), np.tile([1, 0, -1], 7)))
    scores = [(hand.pose.score, hand.pose.joint_conf.mean())]
    for i in (11, 13, 15):
        (hand,) = fuser.step(moment_ns(i), [])
        scores.append((hand.pose.score, hand.pose.joint_conf.mean()))
    assert (np.diff(scores, axis=0) < 0).all()


def test_without_smoothing_what_is_published_is_what_was_fitted() -> None:
    rig = a_rig()
    rng = np.random.default_rng(0)
    fuser, views = Fuser(rig, smooth=False), [View(k, camera) for k, camera in enumerate(rig.cameras)]
    for i in range(10):
        for k in range(3):
            views[k].take(told(rig, k, i, 0.003 * rng.standard_normal(3)))
        hands = fuser.step(moment_ns(i), [s for view in views for s in view.at(moment_ns(i))])
    assert hands[0].joints_raw_m is not None
    np.testing.assert_allclose(hands[0].pose.joints_m, hands[0].joints_raw_m, atol=1e-9)


def test_a_camera_without_weight_has_no_say_in_angles_and_turns_either() -> None:
    surface, joints = Surface(), truth_at(0.0)[0]
    theta, other = theta_at(0.0), theta_at(1.0)
    guesses = [
        guess_of(
            surface, se3.transform(se3.so3_exp(t[3:6]), t[:3]), angles, AVERAGE, np.full(21, s), joints, np.zeros(3)
        )
        for t, angles, s in ((theta, theta[6:], 0.004), (other, 0.5 * other[6:], 0.03))
    ]
    target = agree(guesses, np.stack([np.ones(21), np.zeros(21)]))
    np.testing.assert_allclose(target.R, guesses[0].R, atol=1e-9)
    np.testing.assert_allclose(target.angles, theta[6:], atol=1e-9)
    np.testing.assert_allclose(target.joints_m, guesses[0].joints_m, atol=1e-9)
    np.testing.assert_allclose(target.sigma_m, 0.004, atol=1e-6)
    alike = agree([guesses[0], guesses[0]], np.full((2, 21), 0.5))
    np.testing.assert_allclose(alike.sigma_m, 0.004 * np.sqrt(0.75))  # half of the variance is common to both
    apart = guesses[0]._replace(joints_m=guesses[0].joints_m + np.array([0.0, 0.0, 0.06]))
    both = agree([guesses[0], apart], np.full((2, 21), 0.5))
    np.testing.assert_allclose(both.sigma_m, np.hypot(0.004 * np.sqrt(0.75), 0.03 / np.sqrt(3)))


@SIDES
def test_a_predicted_hand_goes_on_as_it_moved(is_left: bool) -> None:
    fuser, hands = fused(is_left, 16)
    was = hands[-1].pose
    (ahead,) = fuser.step(moment_ns(17), [])
    assert ahead.pose.state == "predicted" and ahead.motion is not None
    step = ahead.pose.T_camera_wrist[:3, 3] - was.T_camera_wrist[:3, 3]
    assert step @ ahead.motion.velocity_m_s > 0.9 * np.linalg.norm(step) * np.linalg.norm(ahead.motion.velocity_m_s)
    turn = rotation_vector(ahead.pose.T_camera_wrist[:3, :3] @ was.T_camera_wrist[:3, :3].T)
    assert turn @ ahead.motion.angular_velocity_rad_s > 0
    assert np.linalg.norm(ahead.pose.joints_m - truth_at(17 / FPS, is_left)[0], axis=1).max() < 0.004


@SIDES
def test_raw_joints_are_those_of_the_published_hand_s_side(is_left: bool) -> None:
    hand = half_a_second(is_left)[-1]
    assert hand.joints_raw_m is not None
    assert np.linalg.norm(hand.joints_raw_m - truth_at(29 / FPS, is_left)[0], axis=1).max() < 0.003


@SIDES
def test_depth_points_are_carried_with_the_hand_into_the_rigs_frame_and_seen_from_their_camera(is_left: bool) -> None:
    rig = a_rig()
    fuser, camera = Fuser(rig), rig.cameras[1]
    view = View(1, camera)
    for i in (4, 6, 8):
        message = told(rig, 1, i, is_left=is_left)
        view.take(message)
        view.take_cloud(cloud_of(message, camera, is_left))
    (sighting,) = view.at(moment_ns(7))
    truth = truth_at(7 / FPS, is_left)[1]
    np.testing.assert_allclose(sighting.points_m, truth[6::10], atol=3e-4)
    mirror = MIRROR if is_left else 1.0
    guess = fuser._seen(sighting).guess  # always a right hand's, or a left one's in the mirror
    np.testing.assert_allclose(guess.points_m, truth[6::10] * mirror, atol=3e-4)
    np.testing.assert_allclose(guess.joints_m, truth_at(7 / FPS)[0], atol=1e-3)
    np.testing.assert_allclose(guess.eye_m, camera.T_ref_cam[:3, 3] * mirror)
    other = _in_mirror(guess)  # of a camera that takes it for the other side's
    np.testing.assert_allclose(other.points_m, guess.points_m * MIRROR)
    np.testing.assert_allclose(other.eye_m, guess.eye_m * MIRROR)


@SIDES
def test_velocity_raw_joints_and_depth_points_of_a_turned_camera_are_the_rigs(is_left: bool) -> None:
    rig = a_rig()
    camera, message = rig.cameras[1], told(rig, 1, 4, is_left=is_left)
    (hand,), off = message.hands, np.array([0.004, -0.002, 0.007], np.float32)
    raw = replace(message, hands=(replace(hand, joints_raw_m=hand.joints_m + off),))
    cloud = cloud_of(message, camera, is_left)
    seen = []
    for scale in (1.0, 1 / 1.02):
        view = View(1, replace(camera, depth=DepthCorrection(scale=scale)))
        view.take(raw)
        view.take_cloud(cloud)
        seen += view.at(moment_ns(4))
    turn, mirror = camera.T_ref_cam[:3, :3], MIRROR if is_left else 1.0
    velocity = (theta_at(4 / FPS + 1e-3) - theta_at(4 / FPS))[:3] / 1e-3 * mirror
    np.testing.assert_allclose(seen[0].velocity_m_s, velocity, atol=1e-4)
    moved = truth_at(4 / FPS, is_left)[0] + turn @ off
    np.testing.assert_allclose(joints_of(Surface().chain, seen[0]), moved, atol=1e-5)
    points = cloud.hands[0].points_m
    np.testing.assert_allclose(seen[0].points_m, se3.apply(camera.T_ref_cam, points), atol=1e-5)
    np.testing.assert_allclose(seen[1].points_m, se3.apply(camera.T_ref_cam, 1.02 * points), atol=1e-5)


def test_a_hand_is_carried_along_its_turn_about_the_cameras_axes() -> None:
    rig = a_rig(1)
    view, message = View(0, rig.cameras[0]), told(rig, 0, 5)
    (hand,) = message.hands
    turned = replace(hand, motion=Motion(np.array([0.3, 0.0, 0.0]), np.array([0.0, 4.0, 1.0]), np.full(20, 0.5)))
    view.take(replace(message, hands=(turned,)))
    (sighting,) = view.at(moment_ns(5) + 50_000_000)
    T = hand.T_camera_wrist.astype(float)
    np.testing.assert_allclose(sighting.T_wrist[:3, 3], T[:3, 3] + [0.015, 0.0, 0.0], atol=1e-6)
    turn = rotation_vector(sighting.T_wrist[:3, :3] @ T[:3, :3].T)
    np.testing.assert_allclose(turn, [0.0, 0.2, 0.05], atol=1e-5)
    assert sighting.age_ms == pytest.approx(50, abs=0.01)
    curled = replace(hand, motion=Motion(np.zeros(3), np.zeros(3), np.full(20, 100.0)))
    view.take(replace(message, t_capture_ns=message.t_capture_ns + 1, hands=(curled,)))
    (sighting,) = view.at(moment_ns(5) + 50_000_000)
    np.testing.assert_array_equal(sighting.angles, ANGLE_LIMITS_RAD[:, 1])


def test_between_two_frames_the_wrist_turns_evenly() -> None:
    rig = a_rig(1)
    view = View(0, rig.cameras[0])
    for i in (0, 8):
        view.take(told(rig, 0, i))
    (sighting,) = view.at(moment_ns(2))
    first, last = (se3.so3_exp(theta_at(i / FPS)[3:6]) for i in (0, 8))
    whole = rotation_vector(last @ first.T)
    np.testing.assert_allclose(rotation_vector(sighting.T_wrist[:3, :3] @ first.T), 0.25 * whole, atol=1e-5)


def test_when_a_camera_s_clock_is_set_back_its_older_frames_and_points_are_forgotten() -> None:
    rig = a_rig(1)
    view = View(0, rig.cameras[0])
    for i in (100, 102):
        message = told(rig, 0, i)
        view.take(message)
        view.take_cloud(cloud_of(message, rig.cameras[0], False))
    view.take(replace(told(rig, 0, 4), seq=102))  # a daemon that began anew may count the same
    (sighting,) = view.at(moment_ns(4))
    np.testing.assert_allclose(sighting.T_wrist[:3, 3], theta_at(4 / FPS)[:3], atol=1e-6)
    assert view.newest_ns == moment_ns(4) and not len(sighting.points_m) and not view.at(moment_ns(102))


def test_what_a_camera_expects_to_be_off_by_is_what_its_confidence_came_from() -> None:
    rig = a_rig(1)
    exact = replace(rig.cameras[0], covariance=np.zeros((6, 6)), time=TimeOffset(0.0, 0.0))
    view = View(0, exact)
    view.take(told(rig, 0, 0))
    (sighting,) = view.at(moment_ns(0))
    errors = np.linspace(0.004, 0.04, 21)
    still = sighting._replace(joint_conf=joint_confidence(errors, np.ones(21)), velocity_m_s=np.zeros(3))
    joints = truth_at(0.0)[0]
    np.testing.assert_allclose(sigma_m(still, exact, joints), errors, rtol=1e-6)
    late = replace(exact, time=TimeOffset(0.0, 0.005))
    fast = still._replace(velocity_m_s=np.array([2.0, 0.0, 0.0]))
    np.testing.assert_allclose(sigma_m(fast, late, joints), np.hypot(errors, 0.01), rtol=1e-6)
    turned = replace(exact, covariance=np.diag([0.0, 1e-4, 0.0, 0.0, 0.0, 0.0]))  # by 10 mrad about y
    arm = np.hypot(joints[:, 0], joints[:, 2])
    np.testing.assert_allclose(sigma_m(still, turned, joints), np.sqrt(errors**2 + (0.01 * arm) ** 2 / 3), rtol=1e-6)


def test_steps_go_on_when_the_clock_of_the_cameras_is_set_back() -> None:
    rig = a_rig(2)
    views = Views(rig)
    for now_ns, i in enumerate((200, 201, 4, 5)):
        for k in range(2):
            views.take(told(rig, k, i), now_ns)
        t_ns = views.due(now_ns)
        assert t_ns is not None and abs(t_ns - moment_ns(i)) < 2
    assert views.late == 0


def test_no_camera_weighs_less_than_nothing_when_the_clock_is_set_back() -> None:
    rig = a_rig()
    fuser, views = Fuser(rig), [View(k, camera) for k, camera in enumerate(rig.cameras)]
    for i in (60, 61, 62, 63, 64, 40):
        for k in range(3):
            views[k].take(told(rig, k, i, np.array([0, 0.03, 0]) if (k, i) == (2, 40) else None))
        fuser.step(moment_ns(i), [s for view in views for s in view.at(moment_ns(i))])
    assert all((weights >= 0).all() for weights in fuser.hands[0].weights.values())


def test_a_step_waits_from_the_first_new_frame_on_and_for_depth_points_where_a_camera_sends_some() -> None:
    rig = a_rig(2)
    views = Views(rig, wait_ns=10_000_000)
    for k in range(2):
        views.take(told(rig, k, 1), 0)
    assert views.due(0) is not None
    views.take(told(rig, 0, 2), 1_000_000)
    views.take(told(rig, 0, 3), 9_000_000)  # twice as fast as the other
    assert views.due(10_900_000) is None and views.due(11_000_000) is not None
    messages = [told(rig, k, 4) for k in range(2)]
    views.take(cloud_of(told(rig, 0, 3), rig.cameras[0], False), 20_000_000)
    for message in messages:
        views.take(message, 20_000_000)
    assert views.due(21_000_000) is None
    views.take(cloud_of(messages[0], rig.cameras[0], False), 22_000_000)
    assert views.due(22_000_000) is not None


@SIDES
def test_a_hand_that_all_who_see_it_take_for_the_other_side_s_becomes_that_and_keeps_its_number(is_left: bool) -> None:
    rig, out = a_rig(1), []
    fuser, view = Fuser(rig), View(0, rig.cameras[0])
    for i in range(0, 60, 2):
        message = told(rig, 0, i, is_left=is_left)
        if i > 30:  # in the same place
            (other,) = told(rig, 0, i, is_left=not is_left).hands
            off, T = message.hands[0].joints_m.mean(0) - other.joints_m.mean(0), other.T_camera_wrist.copy()
            T[:3, 3] += off
            other = replace(other, joints_m=other.joints_m + off, joints_raw_m=None, T_camera_wrist=T)
            message = replace(message, hands=(other,))
        view.take(message)
        out += [(i, hand.id, hand.pose.side) for hand in fuser.step(moment_ns(i), view.at(moment_ns(i)))]
    sides = ["left", "right"] if is_left else ["right", "left"]
    assert [i for i, *_ in out] == list(range(2, 60, 2)) and {number for _, number, _ in out} == {1}
    assert out[0][2] == sides[0] and {side for i, _, side in out if i > 42} == {sides[1]}
