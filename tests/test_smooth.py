"""The smoother on hands whose truth is known: still ones, fast ones, and clocks that misbehave.

`python tests/test_smooth.py` prints the table of docs/smoothing.md.
"""

from __future__ import annotations

import numpy as np
import pytest
from edge_hand.edge.smooth import PREDICT_NS, Smoothed, Smoother, rotation_matrix, rotation_vector
from edge_hand.hand import se3
from edge_hand.hand.arrays import Array
from edge_hand.hand.kinematics import forward_kinematics
from edge_hand.hand.poses import POSES
from edge_hand.hand.skeleton import ANGLE_LIMITS_RAD
from edge_hand.hand.template import template
from hypothesis import given, settings
from hypothesis import strategies as st

FIST = next(angles for name, angles in POSES.items() if "fist" in name)
# Per frame, as measured on still rendered hands: mm and degrees. Errors of a finger's joints cancel in part, so angles
# drawn apart from each other get less than the 3.5 degrees that each has alone.
NOISE_M, NOISE_RAD, NOISE_ANGLE_RAD = 0.0008, np.radians(0.9), np.radians(1.1)


def poses_at(x_m: Array, turn_rad: Array | float = 0.0, angles: Array = FIST) -> tuple[Array, Array]:
    """Wrists (N, 4, 4) at x_m (N,), turned about the camera's axis, and angles (N, 20)."""
    n = len(x_m)
    rotvec = np.zeros((n, 3))
    rotvec[:, 2] = turn_rad
    place = np.stack([x_m, np.zeros(n), np.full(n, 0.5)], 1)
    turned = se3.so3_exp(rotvec) @ se3.so3_exp(np.array([0.4, -0.3, 0.8]))
    return se3.transform(turned, place), np.tile(angles, (n, 1))


def measured(wrists: Array, angles: Array, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    wrists, n = wrists.copy(), len(wrists)
    wrists[:, :3, 3] += rng.normal(0, NOISE_M, (n, 3))
    wrists[:, :3, :3] = se3.so3_exp(rng.normal(0, NOISE_RAD, (n, 3))) @ wrists[:, :3, :3]
    return wrists, angles + rng.normal(0, NOISE_ANGLE_RAD, angles.shape)


def joints_mm(wrists: Array, angles: Array) -> Array:
    theta = np.concatenate([wrists[:, :3, 3], se3.so3_log(wrists[:, :3, :3]), angles], 1)
    n = len(theta)
    return 1e3 * forward_kinematics(template(), theta, np.ones((n, 6)), np.zeros((n, 7))).joints_m


def smoothed(wrists: Array, angles: Array, fps: float, smoother: Smoother | None = None) -> list[Smoothed]:
    smoother = smoother or Smoother()
    return [smoother(round(i * 1e9 / fps) + 7, w, a) for i, (w, a) in enumerate(zip(wrists, angles, strict=True))]


def arrays_of(pose: Smoothed) -> tuple[Array, ...]:
    return (pose.T_camera_wrist, pose.angles, *pose.motion)


def joints_of(poses: list[Smoothed]) -> Array:
    return joints_mm(np.stack([p.T_camera_wrist for p in poses]), np.stack([p.angles for p in poses]))


def jitter(joints: Array) -> float:
    return float(np.linalg.norm(np.diff(joints, axis=0), axis=-1).mean())


def error(joints: Array, truth: Array) -> float:
    return float(np.linalg.norm(joints - truth, axis=-1).mean())


@pytest.mark.parametrize("fps", [30, 90])
def test_a_still_hand_stands_still(fps: int) -> None:
    raw = measured(*poses_at(np.zeros(6 * fps)))
    after = slice(fps, None)
    assert jitter(joints_mm(*raw)[after]) > 2.8
    assert jitter(joints_of(smoothed(*raw, fps))[after]) < 0.6


def movement(name: str, fps: int) -> tuple[Array, Array]:
    """Four seconds of wrists and angles."""
    t = np.arange(4 * fps) / fps
    still = np.zeros(len(t))
    if name == "to and fro, 2 m/s":
        return poses_at(0.2 * np.sin(10 * t))
    if name == "from place to place, 2 m/s":  # least jerk, 0.4 m in 0.375 s, with a rest at either end
        return poses_at(0.4 * least_jerk(t, 0.375, 0.4))
    if name == "slowly, 0.1 m/s":
        return poses_at(0.05 * np.sin(2 * t))
    if name == "turning, 6 rad/s":
        return poses_at(still, 0.8 * np.sin(8 * t))
    assert name == "opening and closing in 0.25 s"
    wrists, angles = poses_at(still)
    return wrists, angles * least_jerk(t, 0.25, 0.25)[:, None]


def least_jerk(t: Array, move_s: float, rest_s: float) -> Array:
    """From 0 to 1 and back again, over and over."""
    out, u = (t // (move_s + rest_s)) % 2 == 0, np.clip(t % (move_s + rest_s) / move_s, 0, 1)
    way = u**3 * (10 - 15 * u + 6 * u * u)
    return np.where(out, way, 1 - way)


@pytest.mark.parametrize("fps", [30, 90])
@pytest.mark.parametrize("name", ["to and fro, 2 m/s", "from place to place, 2 m/s"])
def test_a_hand_at_two_metres_a_second_is_not_held_back(fps: int, name: str) -> None:
    truth = movement(name, fps)
    assert np.abs(np.diff(truth[0][:, 0, 3])).max() * fps > 1.8
    raw, true_mm = measured(*truth), joints_mm(*truth)
    assert error(joints_of(smoothed(*raw, fps)), true_mm) < error(joints_mm(*raw), true_mm) + 1.0
    assert error(joints_of(smoothed(*truth, fps)), true_mm) < 1.0  # without noise it costs no more either


def test_the_same_movement_is_smoothed_alike_at_30_and_90_frames_a_second() -> None:
    at = {}
    for fps in (30, 90):
        t = np.arange(2 * fps) / fps
        at[fps] = joints_of(smoothed(*poses_at(0.05 * np.sin(2 * t), 0.2 * np.sin(3 * t)), fps))
    assert error(at[30][10:], at[90][30::3]) < 1.5


def test_a_constant_velocity_is_known_in_the_camera_frame() -> None:
    t = np.arange(60) / 60
    angles = np.tile(FIST, (60, 1))
    angles[:, 4] = 0.2 + 0.9 * t
    last = smoothed(poses_at(0.6 * t, 2.0 * t)[0], angles, 60)[-1]
    np.testing.assert_allclose(last.motion.velocity_m_s, [0.6, 0, 0], atol=0.02)
    np.testing.assert_allclose(last.motion.angular_velocity_rad_s, [0, 0, 2.0], atol=0.1)
    assert last.motion.angle_rates_rad_s[4] == pytest.approx(0.9, abs=0.2)


def test_a_still_hand_has_next_to_no_velocity() -> None:
    fast = [np.linalg.norm(p.motion.velocity_m_s) for p in smoothed(*measured(*poses_at(np.zeros(90))), 30)]
    assert np.median(fast) < 0.02


def test_the_first_pose_passes_as_it_is() -> None:
    wrists, angles = measured(*poses_at(np.zeros(1)))
    first = Smoother()(5, wrists[0], angles[0])
    np.testing.assert_array_equal(first.T_camera_wrist, wrists[0])
    np.testing.assert_array_equal(first.angles, angles[0])
    assert not first.motion.velocity_m_s.any() and not first.motion.angle_rates_rad_s.any()


@pytest.mark.parametrize("dt_ns", [250_000_000, -1, 0, -(10**12), 10**15])
def test_after_a_gap_or_a_jump_in_time_it_begins_anew(dt_ns: int) -> None:
    smoother = Smoother()
    last_ns = 10**13
    for i in range(10):
        smoother(last_ns - (9 - i) * 33_000_000, *(x[0] for x in poses_at(np.array([0.02 * i]), 0.05 * i)))
    wrists, angles = poses_at(np.array([0.184, 0.19, 0.192]), angles=FIST * 0.95)
    now = smoother(last_ns + dt_ns, wrists[0], angles[0])
    np.testing.assert_array_equal(now.T_camera_wrist, wrists[0])
    assert not now.motion.velocity_m_s.any() and not now.motion.angular_velocity_rad_s.any()
    new = Smoother()
    new(0, wrists[0], angles[0])
    for i in (1, 2):
        now = smoother(last_ns + dt_ns + i * 33_000_000, wrists[i], angles[i])
        again = new(i * 33_000_000, wrists[i], angles[i])
        for value, expected in zip(arrays_of(now), arrays_of(again), strict=True):
            np.testing.assert_array_equal(value, expected)


def test_no_turn_is_special() -> None:
    turn = np.linspace(0, 4 * np.pi, 400)  # twice round, through half turns
    truth = poses_at(np.zeros(400), turn)
    assert error(joints_of(smoothed(*truth, 60)), joints_mm(*truth)) < 4.0
    for p in smoothed(*measured(*truth), 60):
        np.testing.assert_allclose(p.T_camera_wrist[:3, :3] @ p.T_camera_wrist[:3, :3].T, np.eye(3), atol=1e-9)


def test_angles_stay_inside_their_limits() -> None:
    rng = np.random.default_rng(0)
    low, high = ANGLE_LIMITS_RAD.T
    angles = np.clip(rng.uniform(2 * low, 2 * high, (200, 20)), low, high)
    smoother = Smoother()
    wrists, _ = poses_at(np.zeros(200))
    for i, p in enumerate(smoothed(wrists, angles, 30, smoother)):
        assert (p.angles >= low - 1e-12).all() and (p.angles <= high + 1e-12).all(), i
    ahead = smoother.predict(round(199 * 1e9 / 30) + 100_000_000)
    assert ahead is not None and (ahead.angles >= low).all() and (ahead.angles <= high).all()


def test_a_prediction_goes_on_and_slows_down_and_ends() -> None:
    t = np.arange(30) / 30
    smoother = Smoother()
    last = smoothed(*poses_at(1.0 * t, 1.5 * t), 30, smoother)[-1]
    end_ns = round(29 * 1e9 / 30) + 7
    x, speed, turn = [last.T_camera_wrist[0, 3]], [float(last.motion.velocity_m_s[0])], [0.0]
    for ms in (33, 66, 100, 133):
        ahead = smoother.predict(end_ns + ms * 1_000_000)
        assert ahead is not None
        x.append(ahead.T_camera_wrist[0, 3])
        speed.append(float(ahead.motion.velocity_m_s[0]))
        turn.append(float(rotation_vector(ahead.T_camera_wrist[:3, :3] @ last.T_camera_wrist[:3, :3].T)[2]))
    assert (np.diff(x) > 0).all() and (np.diff(x, 2) < 0).all() and (np.diff(speed) < 0).all()
    assert 0.015 < x[1] - x[0] < 0.033
    np.testing.assert_allclose(turn, 1.5 * (np.array(x) - x[0]), rtol=0.1)
    assert smoother.predict(end_ns + PREDICT_NS + 1) is None
    assert smoother.predict(end_ns - 1) is None
    again = smoother.predict(end_ns)
    assert again is not None
    np.testing.assert_allclose(again.T_camera_wrist, last.T_camera_wrist, atol=1e-12)


def test_nothing_is_predicted_from_nothing() -> None:
    smoother = Smoother()
    assert smoother.predict(0) is None
    smoother(0, *(x[0] for x in poses_at(np.zeros(1))))
    assert smoother.predict(1) is not None
    smoother.reset()
    assert smoother.predict(1) is None


def test_what_was_given_away_does_not_change_any_more() -> None:
    wrists, angles = measured(*poses_at(np.zeros(20)))
    smoother = Smoother()
    kept = smoother(0, wrists[0], angles[0])
    copies = [np.copy(x) for x in arrays_of(kept)]
    kept.angles[:] += 0  # ours to write
    smoothed(wrists[1:], angles[1:], 30, smoother)
    for now, then in zip(arrays_of(kept), copies, strict=True):
        np.testing.assert_array_equal(now, then)


@given(st.tuples(*[st.floats(-3, 3)] * 3))
@settings(max_examples=100, deadline=None)
def test_the_fast_rotations_are_those_of_se3(rotvec: tuple[float, float, float]) -> None:
    v = np.array(rotvec)
    R = rotation_matrix(v)
    np.testing.assert_allclose(R, se3.so3_exp(v), atol=1e-12)
    np.testing.assert_allclose(se3.so3_exp(rotation_vector(R)), R, atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-10, 1e-5, np.pi - 1e-4, np.pi - 1e-9, np.pi])
def test_the_fast_logarithm_holds_at_nought_and_at_half_a_turn(angle: float) -> None:
    v = angle * np.array([2.0, -1.0, 2.0]) / 3
    np.testing.assert_allclose(se3.so3_exp(rotation_vector(se3.so3_exp(v))), se3.so3_exp(v), atol=1e-8)


def print_table() -> None:
    """What smoothing gives and costs, as Markdown."""
    print("| hand | frames a second | raw | smoothed | smoothed, no noise |\n|---|---|---|---|---|")
    for fps in (30, 90):
        raw = measured(*poses_at(np.zeros(6 * fps)))
        before, after = (jitter(j[fps:]) for j in (joints_mm(*raw), joints_of(smoothed(*raw, fps))))
        print(f"| still, mm a frame | {fps} | {before:.2f} | {after:.2f} | 0.00 |")
    for name in (
        "to and fro, 2 m/s",
        "from place to place, 2 m/s",
        "turning, 6 rad/s",
        "opening and closing in 0.25 s",
        "slowly, 0.1 m/s",
    ):
        for fps in (30, 90):
            truth = movement(name, fps)
            raw, true_mm = measured(*truth), joints_mm(*truth)
            columns = joints_mm(*raw), joints_of(smoothed(*raw, fps)), joints_of(smoothed(*truth, fps))
            numbers = " | ".join(f"{error(joints, true_mm):.2f}" for joints in columns)
            print(f"| {name}, error in mm | {fps} | {numbers} |")


if __name__ == "__main__":
    print_table()
