"""The hand's depth points: which moments and which points count, how they are carried, matched, and solved for."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from edge_hand.calibration import icp
from edge_hand.calibration.icp import (
    IcpFit,
    Moment,
    Placed,
    View,
    choose_moments,
    fit_clouds,
    match,
    place,
    prepare,
    rim_px,
    tied_moments,
)
from edge_hand.calibration.joint import Path, moved
from edge_hand.calibration.observe import Cloud, DepthError, Sight, tree_of
from edge_hand.calibration.uncertainty import pose_difference
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.se3 import apply, inverse, so3_exp, transform

Array = Any

STEP = icp.STEP
LENS = Intrinsics(320, 240, 270.0, 270.0, 159.5, 119.5)
T_REF_CAM = np.stack(
    [transform(so3_exp(np.array([0.1 * c, -0.4 * c, 0])), np.array([0.25, 0.02, 0.05]) * c) for c in range(3)]
)
T_REF_CAM[0] = np.eye(4)
JOINTS = np.random.default_rng(0).normal(0, 0.02, (21, 3))
STILL = np.zeros((21, 3))


def bumps(u: Array, v: Array) -> Array:
    """A surface that no motion takes onto itself, towards the first camera: points (N, 3) about the origin, m."""
    return np.stack([u, v, 0.012 * np.sin(60 * u) * np.cos(45 * v + 1) + 4 * (u * u + v * v) + 0.2 * u * v], 1)


@cache
def skin(seed: int) -> Array:
    u, v = np.random.default_rng(seed).uniform(-0.05, 0.05, (2, 1200))
    return bumps(u, v)


def hand_path(seconds: float = 4.0, speed_m_s: Any = (0.0, 0.0, 0.0)) -> Path:
    times = np.arange(0, seconds, 1 / 30)
    where = np.array([0.0, 0, 0.55]) + times[:, None] * np.array(speed_m_s)
    return Path(times, JOINTS + where[:, None], np.tile(np.array(speed_m_s, float), (len(times), 21, 1)))


def sight(camera: int, times: Array, path: Path, offset_s: float = 0.0, seed: int = 0) -> Sight:
    """A camera with a cloud of every frame; times are its own clock's."""
    clouds = []
    for k, t_s in enumerate(times):
        at = path.joints_m[0].mean(0) - JOINTS.mean(0) + path.velocities_m_s[0, 0] * (t_s + offset_s)
        clouds.append(Cloud(float(t_s), apply(inverse(T_REF_CAM[camera]), skin(seed + k % 3 + 7 * camera) + at)))
    return Sight(f"cam{camera}", "depth", LENS, np.asarray(times, float), np.zeros((len(times), 21, 3)), tuple(clouds))


def times_of(moments: tuple[Moment, ...]) -> list[list[tuple[int, float]]]:
    return [[(view.camera, round(view.t_s, 3)) for view in moment.views] for moment in moments]


def chosen(path: Path, *times: Array, offsets_s: Any = (0.0, 0.0), most: int = 200) -> tuple[Moment, ...]:
    sights = [sight(c, t, path, o) for c, (t, o) in enumerate(zip(times, offsets_s, strict=True))]
    return choose_moments(sights, path, T_REF_CAM[: len(times)], np.array(offsets_s), most)


def test_clouds_of_one_time_are_a_moment_on_the_first_camera_s_clock() -> None:
    found = chosen(hand_path(), np.arange(5) * 0.5, np.arange(5) * 0.5 - 7 + 0.01, offsets_s=(0.0, 7.0))
    assert times_of(found) == [[(0, 0.5 * k), (1, 0.5 * k - 6.99)] for k in range(5)]
    assert [moment.t_s for moment in found] == pytest.approx(np.arange(5) * 0.5 + 0.005)
    view = found[0].views[1]
    nearest = np.linalg.norm(apply(T_REF_CAM[1], view.points_m)[:, None] - hand_path().joints_m[0], axis=2).argmin(1)
    assert (view.joint == nearest).all()


def test_free_cameras_share_moments_half_a_frame_apart_and_never_more_than_40_ms() -> None:
    fifteen, ten = np.arange(6) / 15, np.arange(6) / 10
    assert len(chosen(hand_path(), fifteen, fifteen + 1 / 30)) >= 6
    with pytest.raises(DepthError, match=r"^the cameras share only 0 moments with enough of the hand's depth points$"):
        chosen(hand_path(), ten, ten + 0.05)


def test_few_moments_are_spread_over_all_of_the_motion_and_three_are_too_few() -> None:
    times = np.arange(12) / 4
    assert [m.t_s for m in chosen(hand_path(), times, times, most=4)] == pytest.approx([0, 0.75, 1.75, 2.75])
    with pytest.raises(DepthError, match="share only 3 moments"):
        chosen(hand_path(), times[:3], times[:3])


def test_where_the_hand_is_too_fast_or_unknown_there_is_no_moment() -> None:
    times, path = np.arange(12) / 4, hand_path()
    velocities, joints = path.velocities_m_s.copy(), path.joints_m.copy()
    velocities[:31] = [1.0, 0, 0]
    joints[-31:] = np.nan
    sights = [sight(c, times, path) for c in (0, 1)]
    part = replace(path, velocities_m_s=velocities, joints_m=joints)
    found = choose_moments(sights, part, T_REF_CAM[:2], np.zeros(2))
    assert [moment.t_s for moment in found] == pytest.approx([1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75])


def test_a_cloud_of_a_few_points_is_no_view() -> None:
    path, times = hand_path(), np.arange(6) / 4
    sights = [sight(c, times, path) for c in range(3)]
    few = tuple(cloud._replace(points_m=cloud.points_m[:59]) for cloud in sights[2].clouds)
    sights[2] = replace(sights[2], clouds=few)
    found = choose_moments(sights, path, T_REF_CAM, np.zeros(3))
    assert all([camera for camera, _ in group] == [0, 1] for group in times_of(found))
    with pytest.raises(DepthError, match="share only 0 moments"):
        choose_moments([sights[0], sights[2]], path, T_REF_CAM[[0, 2]], np.zeros(2))


def ball_view(noise_m: float = 0.0) -> tuple[View, Array, Array]:
    """A ball 0.5 m ahead of which the camera sees the front, and its true normals; a point a pixel."""
    pixels = np.stack(np.meshgrid(np.arange(320.0), np.arange(240.0)), -1).reshape(-1, 2)
    rays = LENS.rays(pixels)
    centre, radius = np.array([0.02, 0.01, 0.5]), 0.08
    b, square = rays @ centre, (rays**2).sum(1)
    under = b**2 - square * (centre @ centre - radius**2)
    z = (b - np.sqrt(np.maximum(under, 0))) / square
    points = (rays * z[:, None])[under > 0]
    cloud = points + np.random.default_rng(0).normal(0, noise_m, points.shape)
    view = prepare(0, Sight("a", "depth", LENS, np.zeros(1), JOINTS[None]), Cloud(0.0, cloud), JOINTS + centre)
    assert view is not None
    return view, (points - centre) / radius, LENS.project(points)


def test_normals_face_the_camera_and_skin_seen_aslant_or_at_a_rim_is_not_asked() -> None:
    view, normals, pixels = ball_view()
    assert np.median((view.normals * normals).sum(1)) > 0.999
    inside = (view.normals * view.points_m).sum(1)
    assert (inside < 0).all()
    steep = -(normals * view.points_m).sum(1) / np.linalg.norm(view.points_m, axis=1)
    assert not view.good[steep < 0.3].any()
    from_middle = np.linalg.norm(pixels - pixels.mean(0), axis=1)
    assert not view.good[from_middle > from_middle.max() - 4].any() and view.good[from_middle < 20].all()
    assert len(view.asked) == 400 and view.good[view.asked].all()
    assert np.ptp(pixels[view.asked], axis=0) == pytest.approx(np.ptp(pixels[view.good], axis=0), abs=8)


def test_what_is_no_surface_is_not_asked_and_of_a_thin_finger_something_is() -> None:
    view, _, _ = ball_view(noise_m=0.01)
    assert view.good.mean() < 0.2
    u, v = np.meshgrid(np.linspace(-0.006, 0.006, 8), np.linspace(-0.05, 0.05, 60))
    thin = np.stack([u.ravel(), v.ravel(), np.full(u.size, 0.5)], 1)
    finger = prepare(0, Sight("a", "depth", LENS, np.zeros(1), JOINTS[None]), Cloud(0.0, thin), JOINTS)
    assert finger is not None and 0.2 < finger.good.mean() < 0.8


@pytest.mark.parametrize(("tilt_deg", "share"), [(45, 0.48), (70, 0.0)])
def test_a_plate_that_is_seen_aslant_is_not_asked(tilt_deg: float, share: float) -> None:
    pixels = np.stack(np.meshgrid(np.arange(150.0, 170), np.arange(100.0, 140)), -1).reshape(-1, 2)
    rays = LENS.rays(pixels)
    plate = rays * 0.5 / (1 - rays[:, :1] * np.tan(np.radians(tilt_deg)))
    view = prepare(0, Sight("a", "depth", LENS, np.zeros(1), JOINTS[None]), Cloud(0.0, plate), JOINTS)
    assert view is not None and view.good.mean() == pytest.approx(share, abs=0.15)


def test_a_rim_is_the_nearer_side_of_a_step_and_a_small_hole_is_none() -> None:
    pixels = np.stack(np.meshgrid(np.arange(40.0), np.arange(40.0)), -1).reshape(-1, 2)
    depth = np.where(pixels[:, 0] < 20, 0.5, 0.6)
    keep = (pixels // 2 != [4, 4]).any(1)  # four pixels
    rim = np.full(len(pixels), np.nan)
    rim[keep] = rim_px(pixels[keep], depth[keep])
    rim = rim.reshape(40, 40)
    assert rim[20, 18] < 1 < rim[20, 22] and rim[10, 10] > 7


def view_of(camera: int, t_s: float, points: Array, normals: Array) -> View:
    count = len(points)
    return View(
        camera,
        t_s,
        points,
        normals,
        np.ones(count, bool),
        np.arange(count),
        np.arange(count) % 21,
        tree_of(points),
        None,
    )


def a_moment(velocity: Array, t_s: float = 1.0) -> Moment:
    return Moment(t_s, (), velocity)


def test_a_view_is_carried_to_its_moment_s_time_and_to_the_rig_s_frame() -> None:
    rng = np.random.default_rng(0)
    points, normals = rng.normal(0, 0.05, (40, 3)) + [0, 0, 0.5], rng.normal(size=(40, 3))
    velocity = rng.normal(0, 0.3, (21, 3))
    found = place(view_of(1, 4.99, points, normals), a_moment(velocity), T_REF_CAM[1], -4.0, 0.02)
    true_z = 1 / (1 / points[:, 2] + 0.02)
    expected = apply(T_REF_CAM[1], points * (true_z / points[:, 2])[:, None]) + 0.01 * velocity[np.arange(40) % 21]
    assert found.points == pytest.approx(expected)
    assert found.normals == pytest.approx(normals @ T_REF_CAM[1][:3, :3].T)


def test_distances_change_with_a_camera_as_differences_say() -> None:
    rng = np.random.default_rng(0)
    points, normals = rng.normal(0, 0.05, (30, 3)) + [0, 0, 0.5], rng.normal(size=(30, 3))
    view, at, h = view_of(1, 1.0, points, normals), np.arange(30), 1e-6
    moment = a_moment(rng.normal(0, 0.3, (21, 3)))

    def placed(change: Array) -> Placed:
        return place(view, moment, moved(T_REF_CAM[1][None], change[None, :6])[0], change[6], 0.01 + change[7])

    numeric = [((placed(d).points - placed(-d).points) * normals).sum(1) / (2 * h) for d in h * np.eye(STEP)]
    assert icp._change(placed(np.zeros(STEP)), at, normals) == pytest.approx(np.transpose(numeric), abs=1e-6)


def flat(camera: int, t_s: float, velocity: Array, height_m: float = 0.0, turned: bool = False) -> Placed:
    """A plane across the reference's view as this camera saw it at t_s, of a hand that moves."""
    u, v = np.meshgrid(np.linspace(-0.04, 0.04, 30), np.linspace(-0.04, 0.04, 30))
    plane = np.stack([u.ravel(), v.ravel(), np.full(u.size, 0.5 + height_m)], 1) + velocity[0] * (t_s - 1.0)
    normal = np.tile([0, 0, 1.0 if turned else -1.0], (len(plane), 1)) @ T_REF_CAM[camera][:3, :3]
    view = view_of(camera, t_s, apply(inverse(T_REF_CAM[camera]), plane), normal)
    return place(view, a_moment(velocity), T_REF_CAM[camera], 0.0, 0.0)


def test_skin_of_two_times_meets_where_the_hand_was_between() -> None:
    velocity = np.tile([0.0, 0.0, 0.8], (21, 1))
    found = match(flat(0, 0.98, velocity), flat(1, 1.02, velocity, 0.002), 0.004)
    assert len(found.of_a) == 900 and (found.of_a == found.of_b).all()
    assert found.distances_m == pytest.approx(0.002)  # a lies nearer, where the normals point
    assert np.linalg.norm(found.normals, axis=1) == pytest.approx(1)


def test_skin_that_faces_away_or_is_not_well_seen_is_not_matched() -> None:
    a, b = flat(0, 1.0, STILL), flat(1, 1.0, STILL)
    assert len(match(a, flat(1, 1.0, STILL, turned=True), 0.004).of_a) == 0
    assert len(match(a, flat(1, 1.0, STILL, height_m=0.02), 0.004).of_a) == 0
    half = b._replace(view=b.view._replace(good=np.arange(900) < 450))
    assert set(match(a, half, 0.004).of_b) == set(range(450))


def tied(*met: tuple[int, int, int]) -> IcpFit:
    """Of four cameras, those that met (a, b) in so many of 10 moments."""
    normal = np.zeros((10, 4, STEP, 4, STEP))
    for a, b, count in met:
        for one, other in ((a, a), (a, b), (b, a), (b, b)):
            normal[:count, one, :, other] = 1
    poses = np.tile(np.eye(4), (4, 1, 1))
    zero = np.zeros(4)
    return IcpFit(poses, zero, zero, (), normal.reshape(10, 32, 32), np.zeros((10, 32)), 1e-3, 9, zero > 0)


def test_a_camera_is_tied_to_the_first_through_others_and_not_to_itself() -> None:
    assert tied_moments(tied((0, 1, 6), (1, 2, 5), (2, 3, 3)), 4)[1:].tolist() == [6, 5, 3]
    assert tied_moments(tied((0, 1, 3), (1, 2, 7), (2, 3, 7)), 4)[1:].tolist() == [3, 0, 0]
    assert tied_moments(tied((0, 1, 6), (2, 3, 10)), 4)[1:].tolist() == [6, 0, 0]


@cache
def moving_clouds() -> tuple[Moment, ...]:
    """Three cameras of which the second's clock is 12 ms slow and whose depth is wrong by 0.006 / m, six moments."""
    moments = []
    for k in range(6):
        speed = 0.6 * np.array([np.cos(k), np.sin(k), np.cos(2 * k)])
        turn = so3_exp(0.3 * np.array([np.sin(k), np.cos(k), np.sin(3 * k)]))
        views = []
        for c in range(3):
            seen = skin(3 * k + c) @ turn.T + [0.02 * k - 0.05, 0.01 * k, 0.55] + speed * (0.012 if c == 1 else 0.0)
            own = apply(inverse(T_REF_CAM[c]), seen)
            own = own / (1 - (0.006 if c == 1 else 0.0) * own[:, 2:])
            cloud, joints = (
                Cloud(float(k), own),
                apply(inverse(T_REF_CAM[c]), JOINTS + [0.02 * k - 0.05, 0.01 * k, 0.55]),
            )
            view = prepare(c, Sight("c", "depth", LENS, np.zeros(1), JOINTS[None]), cloud, joints)
            assert view is not None
            views.append(view)
        moments.append(Moment(float(k), tuple(views), np.tile(speed, (21, 1))))
    return tuple(moments)


def started(**options: Any) -> IcpFit:
    away = np.zeros((3, 6))
    away[1:] = [[0.008, -0.006, 0.004, 0.002, -0.003, 0.002], [-0.006, 0.008, 0.003, -0.002, 0.002, 0.003]]
    return fit_clouds(moving_clouds(), moved(T_REF_CAM, away), np.array([0.0, 0.008, 0.0]), **options)


def test_poses_clocks_and_depth_are_solved_for_together() -> None:
    fit = started()
    assert max(pose_difference(fit.T_ref_cam[c], T_REF_CAM[c]).volume_mm for c in (1, 2)) < 1
    assert np.array_equal(fit.T_ref_cam[0], np.eye(4)) and fit.offsets_s[0] == fit.depth_per_m[0] == 0
    assert fit.offsets_s[1:] == pytest.approx([0.012, 0.0], abs=1.5e-3)
    assert fit.depth_per_m[1:] == pytest.approx([0.006, 0.0], abs=2.5e-3)
    assert 1e-5 < fit.rms_m < 1e-3 and not fit.held.any()


def test_what_is_held_stays() -> None:
    held = np.array([False, False, True])
    fit = started(held=held, iterations=3)
    away = moved(T_REF_CAM, np.zeros((3, 6)))
    assert fit.held.tolist() == held.tolist() and not np.array_equal(fit.T_ref_cam[1], away[1])
    assert fit.offsets_s[2] == 0 and fit.depth_per_m[2] == 0
    assert np.array_equal(fit.T_ref_cam[2], started(held=held, iterations=1).T_ref_cam[2])
    assert not fit.step_without(np.arange(6) < 2)[2].any()


def test_what_only_one_camera_sees_so_and_who_is_held_elsewhere_move_nobody() -> None:
    moments = []
    for moment in moving_clouds():
        points = moment.views[1].points_m.copy()
        points[::6, 2] -= 0.007  # specks before the skin
        second = moment.views[1]._replace(points_m=points, tree=tree_of(points))
        moments.append(moment._replace(views=(moment.views[0], second, moment.views[2])))
    away = np.zeros((3, 6))
    away[2, 3:] = [0.003, 0.003, 0.004]
    fit = fit_clouds(moments, moved(T_REF_CAM, away), np.array([0.0, 0.012, 0.0]), held=np.arange(3) == 2)
    assert pose_difference(fit.T_ref_cam[1], T_REF_CAM[1]).volume_mm < 0.3


def test_clouds_that_nowhere_meet_are_an_error() -> None:
    apart = T_REF_CAM.copy()
    apart[1:, :3, 3] += [[0.0, 0.5, 0.0], [0.0, -0.5, 0.0]]
    with pytest.raises(DepthError, match="nowhere shows the same skin: do they look at one hand"):
        fit_clouds(moving_clouds(), apart, np.zeros(3))


def test_the_clock_of_a_hand_that_hardly_moves_stays_where_the_joints_have_it() -> None:
    slow = [m._replace(velocities_m_s=3e-4 * m.velocities_m_s, views=m.views[::2]) for m in moving_clouds()]
    fit = fit_clouds(slow, T_REF_CAM, np.array([0.0, 0.0, 0.003]))
    assert fit.offsets_s == pytest.approx([0, 0, 0.003], abs=6e-4)
