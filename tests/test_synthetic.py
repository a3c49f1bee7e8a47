"""The synthetic camera: repeatable, at its rate, and true to its own truth."""

from __future__ import annotations

import numpy as np
import pytest
from edge_hand.edge.cameras import CameraError, camera_kinds, open_camera
from edge_hand.edge.cameras.synthetic import KEY_S, SHOW, SyntheticCamera
from edge_hand.hand.poses import POSES
from edge_hand.hand.skeleton import ANGLE_LIMITS_RAD, TIPS
from edge_hand.hand.template import template
from edge_hand.trainer.synth.poses import penetrates
from slept_time import slept_time

SMALL = "320x240@30"


def test_frames_depend_on_seed_and_number_alone() -> None:
    with SyntheticCamera(3, SMALL, fps=0) as camera, SyntheticCamera(3, SMALL, fps=0) as again:
        read = [camera.read() for _ in range(3)]
        later = again.frame(40)
        for frame in read:
            np.testing.assert_array_equal(frame.depth, again.frame(frame.seq).depth)
        np.testing.assert_array_equal(later.depth, camera.frame(40).depth)
    with SyntheticCamera(4, SMALL, fps=0) as other:
        assert (other.frame(40).depth != later.depth).mean() > 0.05
    assert [frame.seq for frame in read] == [0, 1, 2]
    assert read[0].camera == "synthetic-3"


def test_full_speed_does_not_wait_and_the_mode_rate_does(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = slept_time(monkeypatch)
    with SyntheticCamera(0, "160x120@5", fps=0) as camera:
        start = clock.monotonic()
        for _ in range(10):
            camera.read()
        assert clock.monotonic() == start
        assert camera.fps == 5
    with SyntheticCamera(0, "160x120@20") as camera:
        times = []
        for _ in range(6):
            frame = camera.read()
            times.append(frame.t_ns)
            assert clock.monotonic_ns() >= frame.t_ns
        steps = np.diff(times)
        assert (steps >= 50_000_000).all()
        assert np.median(steps) == 50_000_000


def test_a_given_rate_sets_the_pace_not_the_speed_of_the_hand() -> None:
    with SyntheticCamera(0, SMALL, fps=60) as fast, SyntheticCamera(0, SMALL) as slow:
        np.testing.assert_allclose(fast.truth(100), slow.truth(50))


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("mode", [SMALL, "848x480@90"])
def test_whole_hand_stays_in_view_and_in_reach(seed: int, mode: str) -> None:
    with SyntheticCamera(seed, mode, fps=0) as camera:
        lap = round(KEY_S * len(SHOW) * camera.fps)
        joints = np.stack([camera.truth(seq) for seq in range(0, 3 * lap, round(camera.fps / 3))])
        px = camera.intrinsics.project(joints)
        assert px.min() > 20
        assert (px.reshape(-1, 2).max(0) < (camera.intrinsics.width - 20, camera.intrinsics.height - 20)).all()
        middle_z = joints[..., 2].mean(1)
        assert middle_z.min() > 0.33 and middle_z.max() < 0.62
        assert np.ptp(middle_z) > 0.1


def test_truth_lies_behind_the_surface_that_the_camera_sees() -> None:
    with SyntheticCamera(1, "640x480@30", fps=0) as camera:
        gaps = []
        for seq in range(0, round(KEY_S * len(SHOW) * camera.fps), 40):
            frame, joints = camera.frame(seq), camera.truth(seq)
            x, y = np.rint(camera.intrinsics.project(joints)).astype(int).T
            seen = frame.depth[y, x] * frame.depth_unit_m
            gaps.append(np.where(seen > 0, joints[:, 2] - seen, np.nan))
    inner = [joint for joint in range(21) if joint not in TIPS]  # a tip lies on the skin itself
    gap = np.array(gaps)[:, inner]
    assert np.isnan(gap).mean() < 0.03
    assert np.nanmin(gap) > 0  # no reading beyond the joint: it is inside the hand
    # Seen means that no other part of the hand is in front.
    assert (gap < 0.03).mean() > 0.7
    assert 0.005 < np.nanmedian(gap) < 0.02


def test_hand_moves_smoothly_through_poses_no_hand_would_refuse() -> None:
    for key in SHOW:
        angles = POSES[key.pose]
        assert (angles >= ANGLE_LIMITS_RAD[:, 0]).all() and (angles <= ANGLE_LIMITS_RAD[:, 1]).all()
    with SyntheticCamera(0, SMALL, fps=30) as camera:
        n = round(KEY_S * len(SHOW) * camera.fps)
        thetas = np.stack([camera.theta(seq) for seq in range(n + 30)])
        joints = np.stack([camera.truth(seq) for seq in range(n + 30)])
    assert np.linalg.norm(np.diff(joints, axis=0), axis=-1).max() < 0.025  # m a frame
    assert np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1).max() < 0.006  # no jolts
    assert penetrates(template(), thetas[:, 6:]).mean() < 0.02


def test_body_and_wall_lie_well_behind_the_hand() -> None:
    with SyntheticCamera(0, SMALL, fps=0) as camera:
        for seq in (0, 200, 500):
            frame, joints = camera.frame(seq), camera.truth(seq)
            z = frame.depth * frame.depth_unit_m
            upper = z[: int(camera.intrinsics.project(joints[0])[1]), :]  # above the wrist: no arm
            behind = upper[upper > joints[:, 2].max() + 0.02]
            assert behind.min() > joints[:, 2].mean() + 0.35
            assert (upper > 0).mean() > 0.8


def test_readings_are_whole_millimetres_with_noise_that_grows_and_holes_at_edges() -> None:
    with SyntheticCamera(0, "640x480@30", fps=0) as camera:
        depth = np.stack([camera.frame(0).depth] + [camera.frame(seq).depth for seq in (1, 2, 3, 4, 5)]).astype(float)
        assert camera.frame(0).depth_unit_m == 0.001
    assert 0.002 < (depth == 0).mean() < 0.12
    wall = depth[:, 5:60, 5:60] / 1000
    spread = wall.std(0).mean()
    assert 0.3 < spread / (0.0025 * wall.mean() ** 2) < 1.5


def test_it_is_a_camera_like_the_others() -> None:
    assert "synthetic" in camera_kinds()
    with open_camera("synthetic", "7", mode="848x480@90", fps=0) as camera:
        frame = camera.read()
    assert (camera.name, camera.fps, frame.depth.shape) == ("synthetic-7", 90, (480, 848))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("hand.mcap", {}, "synthetic 'hand.mcap': --source is the scene's seed, a whole number such as 7"),
        (None, {"mode": "20x20@30"}, "mode 20x20@30: the synthetic camera needs at least 48x48@1"),
        (None, {"fps": -1.0}, "--fps -1: give the rate in Hz, or 0 for as fast as possible (least: 0.001)"),
    ],
)
def test_mistakes_are_named(source: str | None, options: dict[str, object], message: str) -> None:
    with pytest.raises(CameraError) as error:
        open_camera("synthetic", source, **options)
    assert str(error.value) == message
