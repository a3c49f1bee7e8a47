"""The shape of a fused hand: as the cameras say, then found from two sides and held."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edge_hand.calibration.fuse import Fuser
from edge_hand.calibration.fused_shape import EVERY_NS, FRAMES, ROUNDS, FusedShape
from edge_hand.calibration.many_views import Surface, agree, refit
from edge_hand.calibration.sight import View
from edge_hand.edge.refit import Pose
from edge_hand.hand import se3
from edge_hand.hand.kinematics import AVERAGE, Shape
from edge_hand.hand.poses import POSES
from test_fuse import FPS, SECOND, a_rig, points_of, theta_at, told


@pytest.mark.slow
@pytest.mark.parametrize("halo_rad", [0.0, 0.004])
def test_the_shape_is_found_from_two_sides_and_then_held_whatever_the_cameras_halo(halo_rad: float):
    surface, true = (
        Surface(),
        Shape(np.array([1.08, 1.04, 1.06, 1.08, 1.07, 1.05]), np.array([0, 0.5, 0, 0, 0.4, 0, 0])),
    )
    flat = Pose(np.eye(3), np.zeros(3), POSES["open"])

    def too_long_m(shape: Shape) -> float:
        wrist_to_tip = [np.linalg.norm(np.subtract(*surface.hand(flat, s)[0][[12, 0]])) for s in (shape, true)]
        return float(wrist_to_tip[0] - wrist_to_tip[1])

    person, at_first, held = FusedShape(surface, np.ones(6)), np.inf, None
    for i in range(FRAMES + ROUNDS * FRAMES + 10):
        theta = theta_at(0.4 * i)
        pose = Pose(se3.so3_exp(theta[3:6]), theta[:3], theta[6:])
        guesses = points_of(true, pose, surface, [np.zeros(3), np.array([0.6, 0, 0.6])], halo_rad)
        target = agree(guesses, np.full((2, 21), 0.5))
        person.observe(
            i * EVERY_NS, refit(surface, person.shape, target, guesses, halo_rad=person.halo_rad), target, guesses
        )
        if i == FRAMES - 1:
            at_first = too_long_m(person.shape)
        if i == FRAMES + ROUNDS * FRAMES - 1:
            assert person.held
            held = person.shape
    assert person.shape is held, "looked at after it was held"
    assert abs(person.halo_rad - halo_rad) < 0.001
    assert abs(too_long_m(person.shape)) < 0.2 * abs(too_long_m(AVERAGE))
    assert abs(too_long_m(person.shape)) < abs(at_first), "looking again made it no better"


@pytest.mark.slow
def test_until_depth_of_two_cameras_was_looked_at_bones_follow_what_the_cameras_learn_without_a_jump():
    rig, bones = a_rig(), []
    fuser, views = Fuser(rig), [View(k, camera) for k, camera in enumerate(rig.cameras)]
    for i in range(120):
        for k in range(3):
            message = told(rig, k, i)
            learned = np.full(6, 1.1 if i >= 20 else 1.0)
            views[k].take(replace(message, hands=tuple(replace(hand, alpha=learned) for hand in message.hands)))
        t_ns = SECOND + round(i / FPS * 1e9)
        bones.append(fuser.step(t_ns, [s for v in views for s in v.at(t_ns)])[0].pose.alpha)
    assert bones[19] == pytest.approx(1.0) and bones[-1] == pytest.approx(1.1, abs=1e-3)
    assert 0 < np.abs(np.diff(bones, axis=0)).max() < 0.011
    person = fuser.hands[0].shape
    assert person is not None
    guesses = points_of(AVERAGE, Pose(np.eye(3), np.zeros(3), POSES["open"]), Surface(), [np.array([0, 0, -0.6])] * 2)
    target = agree(guesses, np.full((2, 21), 0.5))
    person.observe(0, refit(Surface(), person.shape, target, guesses), target, guesses)
    looked_at = person.shape
    person.follow(np.full(6, 0.9))
    assert person.shape is looked_at
