"""Fusion: several cameras' hands become one, wherever the cameras are, and go on when one of them leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from edge_hand.calibration.fuse import Fuser
from edge_hand.calibration.many_views import Guess, Surface, agree, refit, robust_weights
from edge_hand.calibration.rig import DepthCorrection, Quality, Rig, RigCamera, TimeOffset
from edge_hand.calibration.sight import View
from edge_hand.calibration.views import Views
from edge_hand.edge.refit import Pose
from edge_hand.hand import se3
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.crop import MIRROR
from edge_hand.hand.frames import HandPose
from edge_hand.hand.kinematics import AVERAGE, Shape, pose_hand
from edge_hand.hand.messages import CloudMessage, HandCloud, Motion
from edge_hand.hand.poses import POSES
from edge_hand.hand.template import template
from edge_hand.hand.wire import Header, JointsMessage, WireHand, decode, encode_joints

FPS, SECOND = 60.0, 1_000_000_000
MIRROR4 = np.diag([*MIRROR, 1.0])
PLACES = ((0.0, 0.0), (0.5, 0.8), (-0.5, -0.8))  # x of a camera, m, and its turn about y, rad
Noise = Callable[[int, int], np.ndarray]  # camera, frame -> (3,) m


def a_rig(n: int = 3) -> Rig:
    lens = Intrinsics(424, 240, 212.0, 212.0, 211.5, 119.5)
    cameras = []
    for k, (x, turn) in enumerate(PLACES[:n]):
        T = se3.transform(se3.so3_exp(np.array([0, -turn, 0])), np.array([x, 0, abs(x) / 3]))
        cameras.append(RigCamera(f"cam{k}", "depth", lens, T, 1e-8 * np.eye(6), TimeOffset(0.004 * k)))
    return Rig("cell", "", "test", tuple(cameras), (), Quality("test"))


def theta_at(t_s: float) -> np.ndarray:
    wrist = np.array([0.1 * np.sin(2 * t_s), 0.05 * np.cos(3 * t_s), 0.6, 0.3 * np.sin(t_s), np.pi, 0.2 * np.cos(t_s)])
    return np.concatenate([wrist, POSES["relaxed"]])


def truth_at(t_s: float, is_left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    joints, vertices = pose_hand(template(), theta_at(t_s)[None], AVERAGE.alpha[None], AVERAGE.beta[None])
    mirror = MIRROR if is_left else 1.0
    return joints[0] * mirror, vertices[0] * mirror


def told(rig: Rig, k: int, i: int, off_m: np.ndarray | None = None, *, is_left: bool = False, conf: float = 0.9,
         hand: int = 1, away_m: np.ndarray | None = None, age_ms: float = 0.0) -> JointsMessage:  # fmt: skip
    """What camera k says of its frame i: the truth, moved by off_m in its own frame; predicted if it has an age."""
    t_s = i / FPS
    camera = rig.cameras[k]
    theta = theta_at(t_s)
    T_hand = se3.transform(se3.so3_exp(theta[3:6]), theta[:3] + (0 if away_m is None else away_m))
    if is_left:
        T_hand = MIRROR4 @ T_hand @ MIRROR4
    T_camera = se3.inverse(camera.T_ref_cam)
    joints, _ = truth_at(t_s, is_left)
    joints = se3.apply(T_camera, joints + (0 if away_m is None else away_m * (MIRROR if is_left else 1)))
    T = T_camera @ T_hand
    off = np.zeros(3) if off_m is None else off_m
    T[:3, 3] += off
    later = theta_at(t_s + 1e-3)
    speed = T_camera[:3, :3] @ ((later[:3] - theta[:3]) / 1e-3 * (MIRROR if is_left else 1))
    pose = HandPose(
        "left" if is_left else "right", 0.98, "predicted" if age_ms else "tracked", 0.8, T,
        np.concatenate([np.zeros(6), theta[6:]]), AVERAGE.alpha, AVERAGE.beta, joints + off, np.zeros((3, 3)),
        np.full(21, conf), 3.0,
    )  # fmt: skip
    motion = Motion(speed, np.zeros(3), np.zeros(20))
    wire = WireHand(hand, age_ms, pose, None if age_ms else joints + off, np.ones(21, np.int8), motion)
    stamp = SECOND + round((t_s - camera.time.offset_s) * 1e9)
    header = Header(camera.serial, i, stamp, stamp + 5 * SECOND, stamp)
    message = decode(encode_joints(header, [wire], stages_us={}, dropped=0))
    assert isinstance(message, JointsMessage)
    return message


def run(rig: Rig, frames: range, noise: Noise, cameras: Callable[[int], Sequence[int]] = lambda i: range(3),
        **how: object) -> list[tuple[float, list[WireHand]]]:  # fmt: skip
    """(t_s, hands) of each step."""
    fuser, views = Fuser(rig), [View(k, camera) for k, camera in enumerate(rig.cameras)]
    out = []
    for i in frames:
        for k in cameras(i):
            views[k].take(told(rig, k, i, noise(k, i), **how))  # type: ignore[arg-type]
        t_ns = SECOND + round(i / FPS * 1e9)
        out.append((i / FPS, fuser.step(t_ns, [s for view in views for s in view.at(t_ns)])))
    return out


def errors_mm(steps: list[tuple[float, list[WireHand]]], is_left: bool = False) -> np.ndarray:
    """(N, 21, 3)"""
    return 1e3 * np.array([hands[0].pose.joints_m - truth_at(t, is_left)[0] for t, hands in steps if hands])


def nothing(k: int, i: int) -> np.ndarray:
    return np.zeros(3)


@pytest.mark.parametrize("is_left", [False, True])
def test_cameras_that_agree_give_the_hand_in_the_rigs_frame(is_left: bool):
    steps = run(a_rig(), range(60), nothing, is_left=is_left)
    assert np.abs(errors_mm(steps[20:], is_left)).max() < 3
    hand = steps[-1][1][0]
    assert hand.pose.side == ("left" if is_left else "right") and hand.id == 1 and hand.pose.state == "tracked"
    assert np.linalg.det(hand.pose.T_camera_wrist[:3, :3]) == pytest.approx(1)


def test_a_camera_whose_lens_the_board_refined_is_seen_through_the_refined_one():
    rig = a_rig(1)
    own = replace(rig.cameras[0].intrinsics, cx=214.5)  # the picture's middle lies 3 px further right
    view = View(0, replace(rig.cameras[0], own_intrinsics=own))
    view.take(told(rig, 0, 0))
    truth = theta_at(0.0)[:3]
    assert view.at(SECOND)[0].T_wrist[:3, 3] == pytest.approx(truth + [3 / 212 * truth[2], 0, 0])


def test_errors_of_three_cameras_average_out():
    rng = np.random.default_rng(0)
    steps = run(a_rig(), range(90), lambda k, i: 0.006 * rng.standard_normal(3))
    single = 6 * np.sqrt(3)
    assert np.sqrt((errors_mm(steps[20:]) ** 2).sum(2).mean()) < 0.75 * single


def test_a_camera_that_is_far_off_is_outvoted():
    steps = run(a_rig(), range(60), lambda k, i: np.array([0.06, 0, 0.03]) * (k == 1))
    assert np.linalg.norm(errors_mm(steps[20:]), axis=2).max() < 6


def test_bones_keep_their_length():
    rng = np.random.default_rng(1)
    steps = run(a_rig(), range(60), lambda k, i: 0.01 * rng.standard_normal(3))
    bones = np.array([np.linalg.norm(np.diff(h[0].pose.joints_m[5:9], axis=0), axis=1) for _, h in steps if h])
    assert np.ptp(bones, axis=0).max() < 1e-6


def test_nothing_jumps_when_a_camera_leaves():
    """Camera 2 sees the hand 10 mm beside where the others do: without it the hand is elsewhere, and goes there."""
    off = np.array([0.01, 0, 0])
    steps = run(a_rig(), range(90), lambda k, i: off * (k == 2), lambda i: range(3) if i < 45 else range(2), conf=0.5)
    errors = errors_mm(steps[25:]).mean(1)
    moved = np.linalg.norm(np.diff(errors, axis=0), axis=1)
    assert np.linalg.norm(errors[15] - errors[-1]) > 1.5, "the camera's leaving should make a difference"
    assert moved.max() < 1.0
    assert all(len(hands) == 1 and hands[0].id == 1 for _, hands in steps[2:])


def test_nothing_jumps_when_a_camera_joins():
    off = np.array([0.01, 0, 0])
    steps = run(a_rig(), range(90), lambda k, i: off * (k == 2), lambda i: range(2) if i < 45 else range(3), conf=0.5)
    errors = errors_mm(steps[25:]).mean(1)
    assert np.linalg.norm(errors[15] - errors[-1]) > 1.5, "the camera's joining should make a difference"
    assert np.linalg.norm(np.diff(errors, axis=0), axis=1).max() < 1.5


def test_one_camera_alone_goes_on():
    steps = run(a_rig(), range(60), nothing, lambda i: range(3) if i < 30 else [1])
    assert np.abs(errors_mm(steps[20:])).max() < 5
    assert steps[-1][1][0].pose.state == "tracked"


def test_a_hand_nobody_sees_is_predicted_and_then_lost():
    steps = run(a_rig(), range(60), nothing, lambda i: range(3) if i < 30 else [])
    states = [hands[0].pose.state if hands else "lost" for _, hands in steps[30:]]
    assert states[8] == "predicted" and states[-1] == "lost"
    at = states.index("lost")
    assert 0.1 < at / FPS < 0.3 and set(states[at:]) == {"lost"}


def test_the_age_of_a_hand_that_cameras_only_predict_grows_until_it_is_lost():
    """Camera 0 measures it for the last time in frame 9, camera 1 in frame 7; after frame 12 both are silent."""
    rig = a_rig(2)
    fuser, views = Fuser(rig), [View(k, camera) for k, camera in enumerate(rig.cameras)]
    ages: list[float | None] = []
    for i in range(40):
        for k in range(2 if i <= 12 else 0):
            views[k].take(told(rig, k, i, age_ms=max(i - (9, 7)[k], 0) * 1e3 / FPS))
        t_ns = SECOND + round(i / FPS * 1e9)
        hands = fuser.step(t_ns, [s for view in views for s in view.at(t_ns)])
        ages.append(hands[0].age_ms if hands else None)
    assert ages[5:10] == [0.0] * 5
    assert ages[10:18] == pytest.approx([1e3 * n / FPS for n in range(1, 9)], abs=0.01)
    assert ages[19:] == [None] * 21, "0.15 s are over"


def test_a_hand_that_comes_back_is_the_same():
    steps = run(a_rig(), range(90), nothing, lambda i: [] if 30 <= i < 60 else range(3))
    assert steps[-1][1][0].id == steps[20][1][0].id


def test_two_hands_are_two():
    rig, fuser = a_rig(), Fuser(a_rig())
    for i in range(10):
        views = [View(k, camera) for k, camera in enumerate(rig.cameras)]
        both = [View(k, camera) for k, camera in enumerate(rig.cameras)]
        for k in range(3):
            views[k].take(told(rig, k, i))
            both[k].take(told(rig, k, i, is_left=True, away_m=np.array([0.25, 0, 0]), hand=2))
        t_ns = SECOND + round(i / FPS * 1e9)
        hands = fuser.step(t_ns, [s for view in (*views, *both) for s in view.at(t_ns)])
    assert sorted(hand.pose.side for hand in hands) == ["left", "right"]
    assert len({hand.id for hand in hands}) == 2


def test_no_age_is_below_zero_when_the_clock_is_set_back():
    rig = a_rig()
    fuser, views, ages = Fuser(rig), [View(k, camera) for k, camera in enumerate(rig.cameras)], []
    for i in range(10):
        for k in range(3):
            views[k].take(told(rig, k, i, age_ms=max(i - 7, 0) * 1e3 / FPS))
        t_ns = SECOND + round(i / FPS * 1e9)
        hands = fuser.step(t_ns + (10 * SECOND if i < 8 else 0), [s for view in views for s in view.at(t_ns)])
        ages.append(hands[0].age_ms if hands else None)
    assert ages[1:8] == [0] * 7 and ages[8:] == pytest.approx([1e3 / FPS, 2e3 / FPS], abs=0.1), ages


def test_offsets_of_the_clocks_are_taken_out():
    rig = a_rig()
    view = View(2, rig.cameras[2])
    for i in (10, 11):
        view.take(told(rig, 2, i))
    between = view.at(SECOND + round(10.5 / FPS * 1e9))[0]
    assert np.abs(between.T_wrist[:3, 3] - theta_at(10.5 / FPS)[:3]).max() < 2e-4
    ahead = view.at(SECOND + round(12 / FPS * 1e9))[0]
    assert np.abs(ahead.T_wrist[:3, 3] - theta_at(12 / FPS)[:3]).max() < 1e-3
    assert view.at(SECOND + round(16 / FPS * 1e9)) == []


def test_depth_is_corrected_as_the_rig_file_says():
    rig = a_rig(1)
    camera = replace(rig.cameras[0], depth=DepthCorrection(scale=1 / 1.02))
    view = View(0, camera)
    view.take(told(rig, 0, 5))
    seen = view.at(SECOND + round(5 / FPS * 1e9))[0]
    assert np.allclose(seen.T_wrist[:3, 3], 1.02 * theta_at(5 / FPS)[:3], atol=1e-5)


def test_robust_weights_leave_out_the_joint_one_camera_guessed():
    joints = np.tile(truth_at(0.0)[0], (3, 1, 1))
    joints[1, 8] += 0.05
    weights = robust_weights(joints, np.full((3, 21), 0.006))
    assert weights[1, 8] < 0.05 and np.allclose(weights[:, 5], 1 / 3, atol=0.02)


def points_of(
    shape: Shape, pose: Pose, surface: Surface, eyes: Sequence[np.ndarray], halo_rad: float = 0.0
) -> list[Guess]:
    """Guesses with depth points of the side each eye sees, perfect but for a halo at the rim, and joints 8 mm off."""
    rest, skin = surface.wear(shape)
    posed = surface.chain.pose(pose.R, pose.angles, rest)
    places = surface.places(posed, rest, skin)
    normals = posed.frames[:, :3, :3].transpose(1, 0, 2).reshape(3, 48) @ surface.normals
    guesses = []
    for k, eye in enumerate(eyes):
        facing = np.flatnonzero(((places + pose.at_m - eye).T * normals).sum(0) < 0)[::3]
        joints = posed.joints_m + pose.at_m + np.array([0.008, 0, 0]) * (-1) ** k
        ray = places[facing] + pose.at_m - eye
        away = np.linalg.norm(ray, axis=1, keepdims=True)
        out = normals.T[facing] / np.linalg.norm(normals.T[facing], axis=1, keepdims=True)
        points = (
            places[facing] + pose.at_m + halo_rad * away * (1 - ((ray / away) * out).sum(1, keepdims=True) ** 2) * out
        )
        guesses.append(Guess(pose.R, pose.at_m, pose.angles, joints, np.full(21, 0.008), points, eye))
    return guesses


def test_depth_points_of_all_cameras_correct_what_the_networks_say():
    surface, theta = Surface(), theta_at(0.3)
    pose = Pose(se3.so3_exp(theta[3:6]), theta[:3], theta[6:])
    guesses = points_of(AVERAGE, pose, surface, [np.zeros(3), np.array([0.6, 0, 0.4])])
    moved = [g._replace(joints_m=g.joints_m + np.array([0, 0, 0.01])) for g in guesses]
    target = agree(moved, robust_weights(np.stack([g.joints_m for g in moved]), np.full((2, 21), 0.008)))
    blind = refit(surface, AVERAGE, target, [g._replace(points_m=np.zeros((0, 3))) for g in moved])
    seeing = refit(surface, AVERAGE, target, moved)
    true = surface.hand(pose, AVERAGE)[0]
    off_mm = [1e3 * np.linalg.norm(surface.hand(p, AVERAGE)[0] - true, axis=1).mean() for p in (blind, seeing)]
    assert off_mm[0] > 9 and off_mm[1] < 0.5 * off_mm[0]


def test_what_a_halo_adds_to_a_gap_is_its_rim():
    surface, theta = Surface(), theta_at(0.3)
    pose = Pose(se3.so3_exp(theta[3:6]), theta[:3], theta[6:])
    (guess,) = points_of(AVERAGE, pose, surface, [np.zeros(3)], 0.004)
    rest, skin = surface.wear(AVERAGE)
    posed = surface.chain.pose(pose.R, pose.angles, rest)
    places = surface.places(posed, rest, skin)
    without, half, known = (surface.meet(posed, places, pose.at_m, guess, halo) for halo in (0.0, 0.002, 0.004))
    np.testing.assert_allclose(half.gap_m - without.gap_m, -0.002 * without.rim_m, atol=1e-12)
    assert np.percentile(np.abs(without.gap_m), 90) > 0.0015 and without.rim_m.max() > 0.4
    assert np.median(np.abs(known.gap_m)) < 0.2 * np.median(np.abs(without.gap_m))


def test_a_hand_whose_side_changes_has_its_shape_estimated_anew():
    fuser = Fuser(a_rig())
    views = [View(k, camera) for k, camera in enumerate(fuser.rig.cameras)]
    seen = []
    for i in range(130):  # in the mirror plane at frame 94: right and left are in one place there
        for k in range(3):
            views[k].take(told(fuser.rig, k, i, is_left=i >= 94))
        t_ns = SECOND + round(i / FPS * 1e9)
        fuser.step(t_ns, [s for v in views for s in v.at(t_ns)])
        seen.append([(hand.id, hand.is_left, hand.shape) for hand in fuser.hands])
    ((one, was_left, before),), ((other, is_left, after),) = seen[80], seen[-1]
    assert one == other and is_left and not was_left, "not one hand whose side changed"
    assert after is not None and after is not before


def test_a_step_is_due_when_all_live_cameras_have_spoken_or_waited_long_enough():
    rig = a_rig()
    views = Views(rig, wait_ns=10_000_000)
    for k in range(3):
        views.take(told(rig, k, 4), 0)
    assert views.due(0) is not None
    for k in range(3):
        assert views.due(1_000_000 * k) is None
        views.take(told(rig, k, 5), 1_000_000 * k)
    t_ns = views.due(3_000_000)
    assert t_ns is not None and abs(t_ns - SECOND - 5 / FPS * 1e9) < 2
    for k in range(2):
        views.take(told(rig, k, 6), 20_000_000)
    assert views.due(21_000_000) is None, "camera 2 is still waited for"
    assert views.due(31_000_000) is not None
    views.take(told(rig, 0, 30), 400_000_000)
    views.take(told(rig, 1, 30), 400_000_000)
    assert views.due(400_000_001) is not None, "a silent camera is not waited for"
    assert list(views.silent(400_000_001)) == ["cam2"]


def test_a_frame_that_comes_after_the_step_of_its_moment_is_counted():
    rig = a_rig(2)
    views = Views(rig, wait_ns=10_000_000)
    views.take(told(rig, 0, 5), 0)
    assert views.due(10_000_000) is not None and views.late == 0
    views.take(told(rig, 1, 5), 12_000_000)
    assert views.due(30_000_000) is None and views.late == 1 and not views.waiting
    views.take(told(rig, 0, 6), 31_000_000)
    views.take(told(rig, 1, 6), 31_000_000)
    assert views.due(31_000_000) is not None and views.late == 1


def test_depth_points_wait_for_their_joints_and_an_unknown_camera_is_noted():
    rig = a_rig(2)
    views = Views(rig)
    message = told(rig, 0, 1)
    cloud = CloudMessage("cam0", 1, message.t_capture_ns, 0, 0, None, (HandCloud(1, np.full((50, 3), 0.5, "f4")),))
    views.take(cloud, 0)
    views.take(message, 0)
    assert len(views.at(SECOND + round(1 / FPS * 1e9))[0].points_m) == 50
    views.take(told(a_rig(3), 2, 1), 0)
    assert views.unknown == {"cam2"}


def test_a_camera_that_runs_at_another_size_is_left_out_and_told_of_until_it_is_mended():
    rig, views, wide = a_rig(2), Views(a_rig(2)), Intrinsics(848, 480, 424.0, 424.0, 423.5, 239.5)
    own = rig.cameras[1].intrinsics

    def cloud(seq: int, lens: Intrinsics) -> CloudMessage:
        return CloudMessage("cam1", seq, told(rig, 1, seq).t_capture_ns, 0, 0, None, (), lens)

    for k in range(2):
        views.take(told(rig, k, 1), 0)
    views.take(cloud(1, wide), 1)
    views.take(told(rig, 1, 2), 2)
    views.take(told(rig, 0, 2), 2)
    t_ns = views.due(2)
    assert t_ns is not None and {s.camera for s in views.at(t_ns)} == {0}, "and nobody waits for it"
    why = f"rig {rig.name}: camera cam1 was calibrated at {own.width}x{own.height}, it runs at 848x480"
    assert views.words(2) == f"1 of 2 cameras; {why}"
    views.take(cloud(3, own), 3)
    for k in range(2):
        views.take(told(rig, k, 3), 3)
    t_ns = views.due(3 + views.wait_ns)
    assert views.words(3) == "2 of 2 cameras"
    assert t_ns is not None and {s.camera for s in views.at(t_ns)} == {0, 1}


def test_hosts_with_other_clocks_are_compared_by_the_wall_clock():
    rig, views = a_rig(2), Views(a_rig(2))
    views.take(told(rig, 0, 1), 0)
    assert views.clock == "monotonic"
    other = told(rig, 1, 1)
    ahead = JointsMessage(
        "cam1", 1, other.t_capture_ns + 77 * SECOND, other.t_capture_unix_ns, 0, 0, {}, other.hands
    )  # booted earlier
    views.take(ahead, 1)
    assert views.clock == "unix" and views.due(SECOND) is not None, "its own frame, by the other clock"
    views.take(told(rig, 0, 2), 2)
    now = views.views["cam0"].newest_ns
    assert now is not None and views.capture(now)[0] == now == told(rig, 0, 2).t_capture_unix_ns
