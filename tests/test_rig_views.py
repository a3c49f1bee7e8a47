"""A rendered hand seen by several cameras at once: all see one hand, each by its own clock."""

from __future__ import annotations

import time
from functools import cache
from itertools import islice

import numpy as np
import pytest

pytest.importorskip("numba", reason="the trainer's pictures need numba")

from edge_hand.edge.engines import open_engine
from edge_hand.edge.tracker import Tracker
from edge_hand.hand import se3
from edge_hand.hand.crop import MIRROR
from edge_hand.hand.kinematics import pose_hand
from edge_hand.hand.render import render_depth
from edge_hand.hand.template import template
from edge_hand.trainer.synth.rig_views import Bump, RigClip, RigError, rig_clip


@cache
def clean(is_left: bool = False) -> RigClip:
    return rig_clip(4, seconds=2.0, noise=False, is_left=is_left, motion="free")


@cache
def noisy() -> RigClip:
    return rig_clip(5, seconds=4.0)


def test_a_clip_depends_on_its_seed_alone():
    a, b, other = rig_clip(3, seconds=1), rig_clip(3, seconds=1), rig_clip(6, seconds=1)
    assert np.array_equal(a.frame(1, 7).depth, b.frame(1, 7).depth) and a.stamp_ns(1, 7) == b.stamp_ns(1, 7)
    assert not np.array_equal(a.T_ref_cam, other.T_ref_cam)
    assert not np.array_equal(a.frame(1, 7).depth, other.frame(1, 7).depth)


def test_all_cameras_see_the_same_hand_where_the_rig_says():
    clip = clean()
    for camera in range(3):
        i = 30
        seen = se3.apply(clip.T_ref_cam[camera], clip.joints_m(camera, i))
        assert np.allclose(seen, clip.joints_ref_m(clip.time_s(camera, i)))


def test_the_truth_goes_on_before_and_after_the_clip():
    clip = clean()
    assert np.isfinite(clip.joints_ref_m(-0.1)).all() and np.isfinite(clip.joints_ref_m(clip.seconds + 1)).all()


@pytest.mark.parametrize("camera", [0, 1, 2])
def test_depth_lies_on_the_true_mesh(camera: int):
    clip, i = clean(), 50
    frame = clip.frame(camera, i)
    drawn = render_depth(clip.vertices_m(camera, i), template().faces, frame.intrinsics)
    hand = drawn > 0
    assert hand.sum() > 300
    assert (np.abs(frame.depth * frame.depth_unit_m - drawn)[hand] < 0.0015).mean() > 0.95


@pytest.mark.parametrize("is_left", [False, True])
def test_the_pose_gives_the_joints(is_left: bool):
    clip = clean(is_left)
    joints, _ = pose_hand(template(), clip.theta(0.7)[None], clip.alpha[None], clip.beta[None])
    assert np.allclose(joints[0] * (MIRROR if is_left else 1), clip.joints_ref_m(0.7))


def test_a_stamp_plus_the_offset_is_the_reference_time():
    clip = rig_clip(2, seconds=1.0, offsets_s=(0.0, 0.012, -0.007))
    for camera in range(3):
        since = (clip.stamp_ns(camera, 9) - clip.stamp_ns(0, 0)) * 1e-9
        assert since + clip.offsets_s[camera] == pytest.approx(clip.time_s(camera, 9), abs=1e-8)
    assert np.abs(rig_clip(2, seconds=1.0).offsets_s).max() <= 0.015
    assert clip.frame(1, 9).t_ns == clip.stamp_ns(1, 9) and clip.frame(1, 9).seq == 9


def test_calibration_motion_covers_the_volume_and_stays_slow():
    clip = rig_clip(11, seconds=10.0)
    times = np.arange(0, 10, 0.05)
    wrist = np.stack([clip.theta(t) for t in times])
    palm = np.stack([clip.joints_ref_m(t).mean(0) for t in times])
    assert palm.std(0).min() > 0.04 and np.ptp(palm, axis=0).max() > 0.2
    speed = np.linalg.norm(np.diff(palm, axis=0), axis=1) / 0.05
    assert 0.1 < np.median(speed) < 0.6
    turned = se3.so3_exp(wrist[:, 3:6])
    assert np.degrees(np.linalg.norm(se3.so3_log(turned[0].T @ turned), axis=1)).max() > 40


def test_a_hand_held_still_stays_and_one_on_a_line_turns_little():
    still, line = rig_clip(11, motion="still"), rig_clip(11, motion="line")
    times = np.arange(0, 10, 0.1)
    palm = np.stack([still.joints_ref_m(t).mean(0) for t in times])
    assert palm.std(0).max() < 0.005
    palm = np.stack([line.joints_ref_m(t).mean(0) for t in times])
    spread = np.linalg.svd(palm - palm.mean(0), compute_uv=False)
    assert spread[1] < 0.1 * spread[0] and palm.std(0).max() > 0.05


def test_a_bump_turns_one_camera_from_then_on():
    bump = Bump(1, 0.5, np.radians([0, 0.5, 0]), np.zeros(3))
    clip, intact = (rig_clip(4, seconds=1.0, noise=False, bump=b) for b in (bump, None))
    assert np.array_equal(clip.frame(1, 10).depth, intact.frame(1, 10).depth)
    assert np.array_equal(clip.frame(2, 50).depth, intact.frame(2, 50).depth)
    assert not np.array_equal(clip.frame(1, 50).depth, intact.frame(1, 50).depth)
    moved = se3.inverse(clip.T_ref_cam[1]) @ clip.T_ref_cam_at(1, 0.9)
    assert np.degrees(np.linalg.norm(se3.so3_log(moved[:3, :3]))) == pytest.approx(0.5)


def test_lost_frames_leave_a_gap_in_the_numbers():
    clip = rig_clip(1, seconds=1.0, lost_share=0.3, size=(160, 90), noise=False)
    seqs = [frame.seq for frame in clip.frames(0)]
    assert 20 < len(seqs) < 60 and seqs == sorted(set(seqs))


def test_a_camera_that_looks_away_does_not_see_the_hand():
    clip = rig_clip(1, seconds=1.0, away=(2,), noise=False)
    assert (clip.joints_m(2, 5)[:, 2] < 0).all() and (clip.joints_m(1, 5)[:, 2] > 0).all()


def test_what_cannot_be_made_is_refused_in_one_line():
    with pytest.raises(RigError, match=r"motion 'fast': possible are calibrate, free, line, still"):
        rig_clip(0, motion="fast")  # type: ignore[arg-type]
    with pytest.raises(RigError, match="offsets_s has 2 numbers for 3 cameras"):
        rig_clip(0, offsets_s=(0, 0.1))
    with pytest.raises(RigError, match="sensor 'orbbec'"):
        rig_clip(0, sensor="orbbec")


@pytest.mark.slow
def test_a_frame_takes_a_few_milliseconds():
    clip = noisy()
    clip.frame(0, 0)
    begun = time.process_time()
    for i in range(1, 61):
        clip.frame(0, i)
    assert (time.process_time() - begun) / 60 < 0.03


@pytest.mark.slow
def test_the_tracker_finds_the_hand_in_each_view():
    clip = noisy()
    for camera in range(3):
        tracker, errors = Tracker(open_engine()), []
        for i, frame in enumerate(islice(clip.frames(camera), 60)):
            for hand in tracker.process(frame):
                errors.append(np.linalg.norm(hand.pose.joints_m - clip.joints_m(camera, i), axis=1).mean())
        assert len(errors) > 30 and np.median(errors) < 0.02
