"""The 26-DoF hand: rest, rigid motion, bone scales and angles do what the equations of DeepHPS say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edge_hand.hand import se3
from edge_hand.hand.arrays import Array
from edge_hand.hand.kinematics import (
    angles_from_rotations,
    clamp_angles,
    forward_kinematics,
    part_rotations,
    pose_hand,
    rest_vertices,
    skin,
)
from edge_hand.hand.skeleton import (
    ANGLE_LIMITS_RAD,
    ANGLE_NAMES,
    ANGLE_PARTS,
    IS_FLEXION,
    JOINT_PARENTS,
    PART_JOINTS,
    PART_PARENTS,
    PART_SCALES,
    THUMB_TWIST_PER_FLEX,
)
from edge_hand.hand.template import template
from hypothesis import given, settings
from hypothesis import strategies as st

SOME = settings(max_examples=20, deadline=None)
T = template()
ONES, ZEROS = np.ones((1, 6)), np.zeros((1, 7))
MIRROR = np.array([-1.0, 1.0, 1.0])
seeds = st.integers(0, 2**32 - 1)


def random_theta(rng: np.random.Generator, n: int = 1) -> Array:
    """(n, 26) anywhere inside the limits."""
    angles = rng.uniform(ANGLE_LIMITS_RAD[:, 0], ANGLE_LIMITS_RAD[:, 1], (n, 20))
    return np.concatenate([rng.uniform(-0.3, 0.3, (n, 3)), rng.normal(0, 1, (n, 3)), angles], 1)


def random_shape(rng: np.random.Generator, n: int = 1) -> tuple[Array, Array]:
    return rng.uniform(0.8, 1.25, (n, 6)), rng.uniform(-1, 1, (n, 7))


def rest_theta() -> Array:
    """(1, 26) the angles of the template as it was scanned, its fingers a little bent."""
    theta = np.zeros((1, 26))
    theta[0, 6:] = np.where(IS_FLEXION, -T.flat_flex_rad[ANGLE_PARTS], 0)
    return theta


def bones(joints: Array) -> Array:
    """Lengths (..., 20) of the bones that end at joints 1 to 20."""
    return np.asarray(np.linalg.norm(joints[..., 1:, :] - joints[..., list(JOINT_PARENTS[1:]), :], axis=-1))


def test_the_rest_angles_give_the_template_itself() -> None:
    joints, vertices = pose_hand(T, rest_theta(), ONES, ZEROS)
    np.testing.assert_allclose(joints[0], T.joints_m, atol=1e-8)
    np.testing.assert_allclose(vertices[0], T.vertices_m, atol=1e-8)


def test_the_rest_angles_of_a_shaped_hand_give_its_morphs() -> None:
    beta = np.random.default_rng(0).uniform(-1, 1, (1, 7))
    joints, vertices = pose_hand(T, rest_theta(), ONES, beta)
    np.testing.assert_allclose(joints[0], T.joints_m + np.tensordot(beta[0], T.morph_joints_m, 1), atol=1e-8)
    np.testing.assert_allclose(vertices, rest_vertices(T, beta), atol=1e-8)


@SOME
@given(seeds)
def test_moving_the_wrist_moves_the_whole_hand_rigidly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta, (alpha, beta) = random_theta(rng), random_shape(rng)
    still = theta.copy()
    still[:, :6] = 0
    motion = se3.transform(se3.so3_exp(theta[:, 3:6]), theta[:, :3])  # (1, 4, 4)
    for posed, at_origin in zip(pose_hand(T, theta, alpha, beta), pose_hand(T, still, alpha, beta), strict=True):
        np.testing.assert_allclose(posed, se3.apply(motion, at_origin), atol=1e-7)  # float32 weights


@SOME
@given(seeds)
def test_no_pose_changes_a_bones_length_and_alpha_scales_it_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta, (alpha, beta) = random_theta(rng), random_shape(rng)
    rest = T.joints_m + np.tensordot(beta[0], T.morph_joints_m, 1)
    part_of_joint = dict(zip(PART_JOINTS, range(16), strict=True))
    scale = alpha[0, [PART_SCALES[part_of_joint[parent]] for parent in JOINT_PARENTS[1:]]]  # (20,)
    joints = forward_kinematics(T, theta, alpha, beta).joints_m[0]
    np.testing.assert_allclose(bones(joints), bones(rest) * scale, rtol=1e-6)  # float32 axes


@SOME
@given(seeds)
def test_parts_map_their_rest_joints_to_the_posed_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta, (alpha, beta) = random_theta(rng), random_shape(rng)
    skeleton = forward_kinematics(T, theta, alpha, beta)
    rest = T.joints_m + np.tensordot(beta[0], T.morph_joints_m, 1)
    for part, joint in enumerate(PART_JOINTS):
        linear, shift = skeleton.parts[0, part, :, :3], skeleton.parts[0, part, :, 3]
        np.testing.assert_allclose(linear @ rest[joint] + shift, skeleton.joints_m[0, joint], atol=1e-12)
        scale = alpha[0, PART_SCALES[part]]
        np.testing.assert_allclose(linear @ linear.T, scale**2 * np.eye(3), atol=1e-6)


@SOME
@given(seeds)
def test_shape_is_linear_in_beta(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = rng.uniform(-1, 1, (2, 1, 7))
    a, b = rng.normal(size=2)
    mixed, at_one, at_two = (rest_vertices(T, beta) - T.vertices_m for beta in (a * one + b * two, one, two))
    np.testing.assert_allclose(mixed, a * at_one + b * at_two, atol=1e-12)
    assert np.linalg.matrix_rank(T.morph_vertices_m.reshape(7, -1), tol=1e-3) == 7


@SOME
@given(seeds)
def test_angles_come_back_from_the_rotations_of_the_parts(seed: int) -> None:
    angles = random_theta(np.random.default_rng(seed), 4)[:, 6:]
    np.testing.assert_allclose(angles_from_rotations(T, part_rotations(T, angles)), angles, atol=1e-6)


def test_angles_come_back_even_past_the_quarter_turn_that_no_knuckle_makes() -> None:
    angles = np.zeros((2, 20))
    for finger in ("index", "middle", "ring", "little"):
        angles[:, ANGLE_NAMES.index(f"{finger}_mcp_flex")] = np.radians([150, -140])
        angles[:, ANGLE_NAMES.index(f"{finger}_mcp_abd")] = np.radians([20, -15])
    np.testing.assert_allclose(angles_from_rotations(T, part_rotations(T, angles)), angles, atol=1e-6)


def test_part_rotations_are_rotations_and_the_palms_is_none() -> None:
    rotation = part_rotations(T, random_theta(np.random.default_rng(0), 5)[:, 6:])
    np.testing.assert_allclose(
        rotation @ np.swapaxes(rotation, -1, -2), np.broadcast_to(np.eye(3), (5, 16, 3, 3)), atol=1e-6
    )
    np.testing.assert_allclose(rotation[:, 0], np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-6)


def test_zero_angles_are_a_flat_hand() -> None:
    joints, _ = pose_hand(T, np.zeros((1, 26)), ONES, ZEROS)
    for finger in range(1, 5):
        knuckle, pip, dip, tip = joints[0, 1 + 4 * finger : 5 + 4 * finger]
        assert np.linalg.norm(tip - knuckle) > 0.995 * (
            np.linalg.norm(pip - knuckle) + np.linalg.norm(dip - pip) + np.linalg.norm(tip - dip)
        )


@pytest.mark.parametrize("name", [n for n in ANGLE_NAMES if not n.startswith("thumb")])
def test_flexion_bends_towards_the_palm_and_abduction_towards_the_thumb(name: str) -> None:
    theta = np.zeros((2, 26))
    theta[1, 6 + ANGLE_NAMES.index(name)] = 0.2
    joints = forward_kinematics(T, theta, np.ones((2, 6)), np.zeros((2, 7))).joints_m
    x, _, z = (joints[1] - joints[0])[4 + 4 * ((ANGLE_PARTS[ANGLE_NAMES.index(name)] - 1) // 3)]  # its fingertip
    if name.endswith("abd"):
        assert x < -0.005 and abs(z) < 0.5 * abs(x)  # +x is ulnar
    else:
        assert z < -0.002 and abs(x) < 0.6 * abs(z)  # +z is dorsal


def turning_axes(angles: Array, frames: Array) -> Array:
    """Axis (20, 3) about which each angle turns, from the frames (16, 3, 3) of the parts' parents."""
    by_name = dict(zip(ANGLE_NAMES, angles, strict=True))
    axes = np.empty((20, 3))
    for i, part in enumerate(ANGLE_PARTS):
        abduction = by_name.get(ANGLE_NAMES[i].replace("flex", "abd"), 0.0)
        swing = se3.so3_exp(np.array([0, 0, -abduction]))
        local = swing @ [1.0, 0, 0] if IS_FLEXION[i] else np.array([0, 0, -1.0])
        if ANGLE_NAMES[i] == "thumb_cmc_flex":  # the saddle joint rolls about its bone as it flexes
            bend = se3.so3_exp(np.array([by_name["thumb_cmc_flex"] + T.flat_flex_rad[part], 0, 0]))
            local = local + THUMB_TWIST_PER_FLEX * (swing @ bend @ [0, 1.0, 0])
        axes[i] = frames[part] @ T.axes[part] @ local
    return axes


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_an_angles_derivative_is_a_turn_about_its_own_axis_through_its_own_joint(seed: int) -> None:
    theta = random_theta(np.random.default_rng(seed))
    step = 1e-5
    nudged = np.repeat(theta, 40, 0)
    nudged[np.arange(40), 6 + np.arange(40) // 2] += np.where(np.arange(40) % 2, -step, step)
    around = forward_kinematics(T, nudged, np.ones((40, 6)), np.zeros((40, 7))).joints_m
    measured = (around[0::2] - around[1::2]) / (2 * step)  # (20, 21, 3) m/rad
    skeleton = forward_kinematics(T, theta, ONES, ZEROS)
    joints, frames = skeleton.joints_m[0], skeleton.parts[0, :, :, :3]
    axes = turning_axes(theta[0, 6:], frames[[max(p, 0) for p in PART_PARENTS]])
    for i, part in enumerate(ANGLE_PARTS):
        turned = np.cross(axes[i], joints - joints[PART_JOINTS[part]])  # (21, 3)
        finger = (part - 1) // 3
        beyond = np.zeros(21, bool)
        beyond[PART_JOINTS[part] : 5 + 4 * finger] = True
        np.testing.assert_allclose(measured[i], np.where(beyond[:, None], turned, 0), atol=1e-7)


@SOME
@given(seeds)
def test_clamp_puts_angles_on_the_nearest_limit_and_leaves_the_others(seed: int) -> None:
    angles = np.random.default_rng(seed).normal(0, 1.5, (3, 20))
    clamped = clamp_angles(angles)
    low, high = ANGLE_LIMITS_RAD.T
    assert ((clamped >= low) & (clamped <= high)).all()
    np.testing.assert_array_equal(clamped, np.where(angles < low, low, np.where(angles > high, high, angles)))


@SOME
@given(seeds)
def test_a_left_hand_is_the_mirror_image_with_the_same_angles(seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta, (alpha, beta) = random_theta(rng), random_shape(rng)
    left = replace(
        T,
        vertices_m=T.vertices_m * MIRROR,
        joints_m=T.joints_m * MIRROR,
        axes=T.axes * MIRROR[:, None],
        morph_vertices_m=T.morph_vertices_m * MIRROR,
        morph_joints_m=T.morph_joints_m * MIRROR,
    )
    mirrored = theta.copy()
    mirrored[:, [0, 4, 5]] *= -1  # the wrist's place, and its rotation vector as an axial vector
    for right, of_left in zip(pose_hand(T, theta, alpha, beta), pose_hand(left, mirrored, alpha, beta), strict=True):
        np.testing.assert_allclose(of_left, right * MIRROR, atol=1e-12)


def test_skin_is_the_sum_over_parts_vertex_by_vertex() -> None:
    rng = np.random.default_rng(0)
    alpha, beta = random_shape(rng, 2)
    parts = forward_kinematics(T, random_theta(rng, 2), alpha, beta).parts
    rest = rest_vertices(T, beta)
    fast = skin(T.weights, rest, parts)
    for hand, vertex in np.ndindex(2, len(T.vertices_m)):
        if vertex % 5:
            continue
        slow = np.zeros(3)
        for part in np.flatnonzero(T.weights[vertex]):
            m = parts[hand, part]
            slow += T.weights[vertex, part] * (m[:, :3] @ rest[hand, vertex] + m[:, 3])  # DeepHPS, eq. 5
        np.testing.assert_allclose(fast[hand, vertex], slow, atol=1e-12)


def test_a_batch_is_its_single_hands() -> None:
    rng = np.random.default_rng(0)
    theta, (alpha, beta) = random_theta(rng, 3), random_shape(rng, 3)
    joints, vertices = pose_hand(T, theta, alpha, beta)
    assert joints.shape == (3, 21, 3) and vertices.shape == (3, 1609, 3)
    for i in range(3):
        one = slice(i, i + 1)
        single_joints, single_vertices = pose_hand(T, theta[one], alpha[one], beta[one])
        np.testing.assert_allclose(joints[i], single_joints[0], atol=1e-14)
        np.testing.assert_allclose(vertices[i], single_vertices[0], atol=1e-14)
