"""Visibility against the renderer, which knows whose face every pixel shows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from edge_hand.edge.visibility import THROUGH_M, refuted, visible
from edge_hand.hand.arrays import Array
from edge_hand.hand.body import hand_with_arm
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame
from edge_hand.hand.kinematics import forward_kinematics, skin
from edge_hand.hand.poses import POSES
from edge_hand.hand.render import render
from edge_hand.hand.skeleton import PART_JOINTS, PART_PARENTS, TIPS
from edge_hand.hand.template import template

CAMERA = Intrinsics(320, 240, 300.0, 300.0, 159.5, 119.5)
VIEWS = 60


def own_parts() -> Array:
    """(21, 17) whether a part (the last is the forearm) is a joint's own flesh."""
    own = np.zeros((21, 17), bool)
    for part, joint in enumerate(PART_JOINTS):
        own[joint, [part, max(PART_PARENTS[part], 0)]] = True
    own[list(TIPS), [3, 6, 9, 12, 15]] = True
    own[0, 16] = True
    return own


@cache
def scenes() -> list[tuple[DepthFrame, Array, Array]]:
    """Frames of hands in named poses from all around, their joints (21, 3) m; truth (21,): 1, 0, -1 nothing there."""
    rng = np.random.default_rng(0)
    t, body, own = template(), hand_with_arm(template()), own_parts()
    part_of_face = body.weights[body.faces].sum(1).argmax(1)
    poses = list(POSES.values())
    result = []
    for i in range(VIEWS):
        theta = np.zeros((1, 26))
        theta[0, :3], theta[0, 2] = rng.normal(0, 0.02, 3), rng.uniform(0.35, 0.6)
        theta[0, 3:6] = rng.normal(0, 1, 3) * (2.0, 1.5, 2.0)
        theta[0, 6:] = poses[i % len(poses)]
        skeleton = forward_kinematics(t, theta, np.ones((1, 6)), np.zeros((1, 7)))
        arm = np.concatenate([skeleton.parts, skeleton.parts[:, :1]], 1)  # straight on from the palm
        seen = render(skin(body.weights, body.vertices_m[None], arm)[0], body.faces, CAMERA)
        joints = skeleton.joints_m[0]
        if joints[:, 2].min() < 0.15:
            continue
        column, row = np.rint(CAMERA.project(joints)).astype(int).T
        inside = (column >= 0) & (column < CAMERA.width) & (row >= 0) & (row < CAMERA.height)
        face = seen.face[np.where(inside, row, 0), np.where(inside, column, 0)]
        truth = np.where(own[np.arange(21), part_of_face[face]], 1, 0)
        truth = np.where(inside & (face >= 0), truth, -1)
        result.append((frame_of(seen.depth_m), joints, truth))
    return result


def frame_of(depth_m: Array) -> DepthFrame:
    return DepthFrame("test", 0, 0, np.rint(depth_m * 1e3).astype(np.uint16), 0.001, CAMERA)


def with_depth(frame: DepthFrame, depth: Array) -> DepthFrame:
    return DepthFrame(frame.camera, frame.seq, frame.t_ns, depth.astype(np.uint16), frame.depth_unit_m, CAMERA)


def agreement(holes: float = 0.0, off_m: float = 0.0, noise_m: float = 0.0) -> tuple[float, float, float]:
    """Shares: of seen joints called seen, of hidden ones called hidden, and of both called unknown."""
    rng = np.random.default_rng(1)
    said, true = [], []
    for frame, joints, truth in scenes():
        noise = np.rint(rng.normal(0, noise_m * 1e3, frame.depth.shape))
        depth = np.where(rng.random(frame.depth.shape) < holes, 0, (frame.depth + noise) * (frame.depth > 0))
        said.append(visible(with_depth(frame, depth), joints + rng.normal(0, off_m, joints.shape)))
        true.append(truth)
    said_, true_ = np.concatenate(said), np.concatenate(true)
    known = said_ >= 0
    seen, hidden = (float((said_[known & (true_ == v)] == v).mean()) for v in (1, 0))
    return seen, hidden, float((~known)[true_ >= 0].mean())


def test_seen_and_hidden_joints_are_told_apart_as_the_renderer_does() -> None:
    seen, hidden, unknown = agreement()
    assert seen > 0.90 and hidden > 0.90 and unknown < 0.02, (seen, hidden, unknown)


def test_a_third_of_the_readings_may_be_missing() -> None:
    seen, hidden, unknown = agreement(holes=0.3, noise_m=0.002)
    assert seen > 0.90 and hidden > 0.88 and unknown < 0.03, (seen, hidden, unknown)


def test_joints_a_little_off_are_still_told_apart() -> None:
    seen, hidden, unknown = agreement(off_m=0.004)
    assert seen > 0.84 and hidden > 0.80 and unknown < 0.08, (seen, hidden, unknown)


def a_hand() -> tuple[DepthFrame, Array]:
    frame, joints, truth = max(scenes(), key=lambda scene: int((scene[2] == 1).sum()))
    assert (truth == 1).sum() >= 18
    return frame, joints


def test_something_held_before_the_hand_hides_it() -> None:
    frame, joints = a_hand()
    depth = np.where(frame.depth > 0, round(1e3 * (joints[:, 2].min() - 0.08)), 0)
    assert (visible(with_depth(frame, depth), joints) == 1).sum() == 0
    assert (visible(with_depth(frame, depth), joints) == 0).sum() >= 18


def test_what_lies_behind_the_hand_says_nothing() -> None:
    frame, joints = a_hand()
    wall = np.full(frame.depth.shape, round(1e3 * (joints[:, 2].max() + 0.2)))
    assert (visible(with_depth(frame, wall), joints) == -1).all()


def test_without_readings_or_outside_the_picture_nothing_is_known() -> None:
    frame, joints = a_hand()
    assert (visible(with_depth(frame, 0 * frame.depth), joints) == -1).all()
    for move in ([2.0, 0, 0], [-2.0, 0, 0], [0, 2.0, 0], [0, -2.0, 0], [0, 0, -2.0], [0, 0, -joints[0, 2]]):
        assert visible(frame, joints + move)[0] == -1, move


def test_a_joint_beside_the_picture_is_unknown_whatever_the_other_edge_shows() -> None:
    frame, joints = a_hand()
    flat = np.concatenate([joints[:, :2], np.full((21, 1), 0.5)], 1)
    wall = with_depth(frame, np.full(frame.depth.shape, 500))
    assert (visible(wall, flat) == 1).all()
    wide, high = 0.5 * CAMERA.width / CAMERA.fx, 0.5 * CAMERA.height / CAMERA.fy
    for move in ([wide, 0, 0], [-wide, 0, 0], [0, high, 0], [0, -high, 0]):
        assert (visible(wall, flat + move) == -1).all(), move


def test_a_joint_beyond_what_a_wide_lens_shows_is_unknown() -> None:
    lens = Intrinsics(320, 240, 200.0, 200.0, 159.5, 119.5, (-0.3, 0.0, 0.0, 0.0, 0.0))
    wall = DepthFrame("wide", 0, 0, np.full((240, 320), 300, np.uint16), 0.001, lens)
    joints = np.zeros((21, 3))
    joints[:, 0], joints[:, 2] = np.linspace(-0.6, 0.6, 21), 0.3  # slopes of up to 2
    beyond = np.abs(joints[:, 0]) > 1.1 * 0.3
    assert (np.abs(lens.project(joints)[beyond] - (159.5, 119.5)) < (160, 120)).all(1).any()  # back in the picture
    said = visible(wall, joints)
    assert (said[beyond] == -1).all() and said[10] == 1


def test_what_is_seen_does_not_depend_on_the_unit_of_the_counts() -> None:
    frame, joints = a_hand()
    said = visible(frame, joints)
    for per_count in (4, 10):
        fine = replace(frame, depth=frame.depth * np.uint16(per_count), depth_unit_m=0.001 / per_count)
        np.testing.assert_array_equal(visible(fine, joints), said)


@pytest.mark.filterwarnings("error")
def test_joints_on_the_edge_of_the_picture_are_no_mistake() -> None:
    frame, joints = a_hand()
    for x in np.linspace(-0.4, 0.4, 30):
        said = visible(frame, joints + [x, 0, 0])
        assert said.dtype == np.int8 and said.shape == (21,) and set(said.tolist()) <= {-1, 0, 1}


def test_a_hand_may_be_where_it_is_read_or_hidden_or_nothing_is_read_and_is_not_where_one_sees_through() -> None:
    frame, joints = a_hand()
    behind = 1e3 * (joints[:, 2].max() + THROUGH_M)
    assert not refuted(frame, joints)
    assert not refuted(with_depth(frame, 0 * frame.depth), joints)
    assert not refuted(with_depth(frame, 0 * frame.depth + round(1e3 * (joints[:, 2].min() - 0.1))), joints)
    assert not refuted(with_depth(frame, 0 * frame.depth + round(1e3 * (joints[:, 2].min() + THROUGH_M) - 2)), joints)
    wall = with_depth(frame, 0 * frame.depth + round(behind + 2))
    assert refuted(wall, joints)
    fine = replace(wall, depth=wall.depth * np.uint16(10), depth_unit_m=0.0001)
    assert refuted(fine, joints)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("way", [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_a_hand_of_which_most_is_outside_the_picture_is_not_there(way: tuple[int, int]) -> None:
    frame, joints = a_hand()
    empty = with_depth(frame, 0 * frame.depth)
    half = np.array([CAMERA.width / CAMERA.fx, CAMERA.height / CAMERA.fy]) / 2
    for joint in (6, 14):  # so many joints, counted from the inner side, are still in the picture
        inner = np.argsort((joints[:, :2] / joints[:, 2:]) @ way)[joint]
        edge = np.array(way) * half - np.array(way) ** 2 * (joints[inner, :2] / joints[inner, 2])
        moved = joints + np.append(edge, 0) * joints[inner, 2]
        assert refuted(empty, moved) == (joint < 10), joint
    assert refuted(frame, joints - [0, 0, 5.0])  # behind the camera
