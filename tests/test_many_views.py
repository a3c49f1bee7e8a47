"""What several cameras' guesses become, part by part: weights of joints, depth points at the skin, the refit."""

from __future__ import annotations

import numpy as np
import pytest
from edge_hand.calibration.many_views import Guess, Pose, Surface, Target, agree, guess_of, refit, robust_weights
from edge_hand.hand import se3
from edge_hand.hand.kinematics import AVERAGE, Shape, pose_hand
from edge_hand.hand.skeleton import ANGLE_PARTS, PART_JOINTS
from edge_hand.hand.template import template
from test_fuse import points_of, theta_at, truth_at

SURFACE = Surface()
THETA = theta_at(0.3)
POSE = Pose(se3.so3_exp(THETA[3:6]), THETA[:3], THETA[6:])
JOINTS = truth_at(0.3)[0]
SURE = np.full(21, 0.004)


def at_rest() -> tuple:
    rest, skin = SURFACE.wear(AVERAGE)
    posed = SURFACE.chain.pose(POSE.R, POSE.angles, rest)
    return posed, SURFACE.places(posed, rest, skin)


def test_each_shape_has_its_own_joints_and_skin_whichever_was_worn_before() -> None:
    surface = Surface()
    for shape in (AVERAGE, Shape(np.full(6, 1.1), np.zeros(7)), Shape(np.ones(6), np.linspace(-1, 1, 7)), AVERAGE):
        joints, vertices = pose_hand(template(), THETA[None], shape.alpha[None], shape.beta[None])
        for found, expected in zip(surface.hand(POSE, shape), (joints[0], vertices[0]), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_camera_s_guess_has_its_joints_where_its_wrist_is() -> None:
    T = se3.transform(POSE.R, POSE.at_m)
    guess = guess_of(SURFACE, T, POSE.angles, AVERAGE, SURE, np.zeros((0, 3)), np.zeros(3))
    np.testing.assert_allclose(guess.joints_m, JOINTS, atol=1e-6)


def test_the_surer_camera_weighs_more_and_weights_are_whole_also_where_the_hand_was_foreseen() -> None:
    both = np.tile(JOINTS, (2, 1, 1))
    sigma = np.stack([np.full(21, 0.004), np.full(21, 0.008)])
    for foreseen in (None, (JOINTS, 0.006)):
        np.testing.assert_allclose(robust_weights(both, sigma, foreseen), [[0.8] * 21, [0.2] * 21], atol=1e-6)


def test_a_joint_loses_its_weight_by_how_far_it_is_off_for_what_it_promised_within_bounds() -> None:
    """The middle of three cameras is right, the third 12 mm, or 35 mm, off in one joint."""
    for promised_m, off_m in ((0.001, 0.012), (0.1, 0.035)):
        three = np.tile(JOINTS, (3, 1, 1))
        three[2, 8, 0] += off_m
        sigma = np.stack([np.full(21, promised_m / 10), np.full(21, promised_m / 10), np.full(21, promised_m)])
        weights = robust_weights(three, sigma)
        assert weights[2, 8] / weights[2, 5] == pytest.approx(0.25, rel=0.05)


def test_a_camera_whose_whole_hand_is_off_has_no_say_in_the_joint_that_happens_to_fit() -> None:
    three = np.tile(JOINTS, (3, 1, 1))
    three[2, 1:] += [0.0, 0.04, 0.0]
    weights = robust_weights(three, np.full((3, 21), 0.02))
    assert weights[2, 0] < 0.05 and weights[:2, 0] == pytest.approx(0.5, abs=0.03)


def test_cameras_that_see_the_wrist_turned_all_ways_still_give_a_turn_and_no_mirror() -> None:
    turns = [np.eye(3), np.diag([1.0, -1, -1]), np.diag([-1.0, 1, -1])]
    guesses = [Guess(R, POSE.at_m, POSE.angles, JOINTS, SURE, np.zeros((0, 3)), np.zeros(3)) for R in turns]
    assert np.linalg.det(agree(guesses, np.full((3, 21), 1 / 3)).R) == pytest.approx(1)


def test_the_less_sure_cameras_are_the_nearer_joints_stay_to_where_they_should_be() -> None:
    def off_m(sigma_m: float) -> float:
        guess = Guess(POSE.R, POSE.at_m, POSE.angles, JOINTS, np.full(21, sigma_m), np.zeros((0, 3)), np.zeros(3))
        foreseen = JOINTS + [0.01, 0.0, 0.0]
        return float((agree([guess], np.ones((1, 21)), (foreseen, 0.02)).joints_m - JOINTS)[:, 0].mean())

    assert off_m(0.002) == pytest.approx(0.0001, rel=0.02)
    assert off_m(0.02) == pytest.approx(0.005)
    assert off_m(0.06) == pytest.approx(0.009)


def test_each_angle_is_that_of_the_camera_that_is_believed_in_the_joint_it_moves() -> None:
    """The second camera is believed in the forefinger beyond its knuckle, the first in all else."""
    weights = np.ones((2, 21))
    weights[0, 6:9] = weights[1, :6] = weights[1, 9:] = 0
    guesses = [
        Guess(POSE.R, POSE.at_m, np.full(20, angle), JOINTS, SURE, np.zeros((0, 3)), np.zeros(3))
        for angle in (0.1, 0.4)
    ]
    forefinger = np.isin(np.array(PART_JOINTS)[list(ANGLE_PARTS)], (5, 6, 7))
    assert forefinger.sum() == 4
    np.testing.assert_allclose(agree(guesses, weights).angles, np.where(forefinger, 0.4, 0.1))


def test_depth_points_meet_the_skin_that_faces_their_camera_also_from_behind_it() -> None:
    posed, places = at_rest()
    eye = np.array([0.3, -0.1, 0.1])
    (guess,) = points_of(AVERAGE, POSE, SURFACE, [eye])
    behind = guess._replace(points_m=eye + (guess.points_m - eye) * 1.015)  # 9 mm deeper
    meet = SURFACE.meet(posed, places, POSE.at_m, behind)
    ray = meet.place_m + POSE.at_m - eye
    np.testing.assert_allclose(np.linalg.norm(meet.normal, axis=1), 1, atol=1e-6)
    assert ((ray * meet.normal).sum(1) < 1e-6).all()
    away = np.linalg.norm(ray, axis=1)
    cosine = (ray * meet.normal).sum(1) / away
    np.testing.assert_allclose(meet.rim_m, away * (1 - cosine**2), atol=1e-6)
    assert (meet.gap_m < 0).mean() > 0.85


def test_a_depth_point_counts_a_quarter_one_centimetre_off_and_nothing_three_off() -> None:
    posed, places = at_rest()
    eye = np.array([0.0, 0.0, -2.0])
    (guess,) = points_of(AVERAGE, POSE, SURFACE, [eye])
    top = guess.points_m[guess.points_m[:, 2].argmin()]  # nothing is nearer to the camera than it
    points = top - np.array([0.0, 0.0, 1.0]) * np.array([[0.0], [0.01], [0.029], [0.031]])
    meet = SURFACE.meet(posed, places, POSE.at_m, guess._replace(points_m=points))
    assert meet.weight[1] / meet.weight[0] == pytest.approx(0.25, rel=0.05)
    assert 0 < meet.weight[2] < 0.02 * meet.weight[0] and meet.weight[3] == 0


def refitted(target: Target, start: Pose | None = None, age_s: float = 0.0, steps: int = 10) -> Pose:
    return refit(SURFACE, AVERAGE, target, [], start, age_s, steps)


def test_joints_that_no_camera_is_sure_of_do_not_bend_the_hand() -> None:
    off, sigma = JOINTS.copy(), SURE.copy()
    off[5:9] += [0.03, 0.0, 0.03]
    sigma[5:9] = 0.3
    unsure, sure = (
        np.linalg.norm(SURFACE.hand(refitted(Target(POSE.R, POSE.angles, off, s)), AVERAGE)[0] - JOINTS, axis=1)
        for s in (sigma, SURE)
    )
    assert unsure.max() < 0.004 and sure[5:9].max() > 0.012


def test_angles_that_no_joint_tells_are_those_the_cameras_say() -> None:
    target = Target(POSE.R, POSE.angles, JOINTS, np.full(21, 10.0))
    start = POSE._replace(angles=POSE.angles + 0.1)
    np.testing.assert_allclose(refitted(target, start, age_s=10.0).angles, POSE.angles, atol=0.01)


def test_a_hand_of_a_moment_ago_holds_the_angles_and_one_of_long_ago_does_not() -> None:
    start = POSE._replace(angles=POSE.angles + 0.2)
    target = Target(POSE.R, POSE.angles, JOINTS, SURE)
    moved = [np.abs(refitted(target, start, age_s).angles - start.angles) for age_s in (0.001, 10.0)]
    assert np.median(moved[0]) < 0.03 and moved[0].max() < 0.2
    np.testing.assert_allclose(moved[1], 0.2, atol=0.01)


def test_what_a_camera_s_halo_adds_is_not_taken_for_the_hand() -> None:
    halo = 0.006
    eyes = [np.zeros(3), np.array([0.4, 0.0, 0.1])]
    guesses = points_of(AVERAGE, POSE, SURFACE, eyes, halo)
    target = agree(guesses, np.full((2, 21), 0.5))._replace(joints_m=JOINTS)
    poses = (refit(SURFACE, AVERAGE, target, guesses, halo_rad=h) for h in (0.0, halo))
    without, known = (np.linalg.norm(SURFACE.hand(pose, AVERAGE)[0] - JOINTS, axis=1).mean() for pose in poses)
    assert known < 0.5 * without
