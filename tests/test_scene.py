"""What surrounds a rendered hand: nothing passes through it, and what it should do to the picture is seen there."""

from __future__ import annotations

import numpy as np
import pytest
from edge_hand.hand.arrays import Array
from edge_hand.hand.body import hand_with_arm
from edge_hand.hand.kinematics import pose_hand
from edge_hand.hand.poses import POSES
from edge_hand.hand.skeleton import JOINT_PARENTS
from edge_hand.hand.template import template
from edge_hand.trainer.synth import scene
from edge_hand.trainer.synth.render import rasterise

BODY = hand_with_arm(template())
SIZE, SLOPE, DISTANCE = 64, 0.25, 0.5


def hand(pose: str = "open") -> tuple[Array, Array]:
    """Joints (21, 3) and vertices (V, 3) of a named pose half a metre away."""
    theta = np.zeros((1, 26))
    theta[0, 6:] = POSES[pose]
    joints, vertices = pose_hand(template(), theta, np.ones((1, 6)), np.zeros((1, 7)))
    shift = np.array([0, 0, DISTANCE]) - joints[0].mean(0)
    return joints[0] + shift, vertices[0] + shift


def empty() -> tuple[Array, Array]:
    return np.zeros((SIZE, SIZE), np.float32), np.full((SIZE, SIZE), -1, np.int32)


def drawn(solid: scene.Solid) -> tuple[Array, Array]:
    """Depth (S, S) m, 0 where nothing is, and faces, of a mesh."""
    depth, face = empty()
    rasterise(
        solid.vertices.astype(np.float32), solid.faces, SLOPE, SIZE, depth, face, np.zeros((SIZE, SIZE, 2), np.float32)
    )
    return np.where(depth > 0, 1 / np.maximum(depth, 1e-6), 0), face


@pytest.mark.parametrize("solid", [scene.BOX, scene.CYLINDER], ids=["box", "cylinder"])
def test_the_unit_solids_are_closed(solid: scene.Solid) -> None:
    edges = np.concatenate([solid.faces[:, [0, 1]], solid.faces[:, [1, 2]], solid.faces[:, [2, 0]]])
    _, uses = np.unique(np.sort(edges, 1), axis=0, return_counts=True)
    assert (uses == 2).all()


def test_a_placed_box_is_seen_where_it_was_placed() -> None:
    depth, _ = drawn(scene.place(scene.BOX, np.eye(3), np.array([0.02, 0.02, 0.02]), np.array([0.0, 0, 0.5])))
    assert depth[32, 32] == pytest.approx(0.48, abs=1e-4)
    width = 0.04 / 0.48 / (2 * SLOPE) * SIZE
    assert (depth[32] > 0).sum() == pytest.approx(width, abs=1.01)


@pytest.mark.parametrize("pose", ["open", "relaxed", "fist"])
def test_a_held_object_leaves_room_for_the_fingers(pose: str) -> None:
    joints, _ = hand(pose)
    bones = joints[list(JOINT_PARENTS[1:])]
    points = (bones[:, None] + np.linspace(0, 1, 4)[:, None] * (joints[1:] - bones)[:, None]).reshape(-1, 3)
    held = [scene.held_object(np.random.default_rng(seed), joints) for seed in range(60)]
    solids = [h for h in held if h]
    for solid in solids:
        corners = solid.vertices
        axis_points = corners.mean(0) + np.linspace(-1, 1, 41)[:, None] * _half_axis(corners)
        radius = np.linalg.norm(corners[:, None] - axis_points, axis=-1).min(1).max()
        gap = np.linalg.norm(points[:, None] - axis_points, axis=-1).min()
        assert gap > radius + 0.5 * scene.FLESH_M - 0.004
    assert len(solids) > (5 if pose == "fist" else 30)


def _half_axis(corners: Array) -> Array:
    centred = corners - corners.mean(0)
    _, _, vt = np.linalg.svd(centred)
    reach = np.abs(centred @ vt.T).max(0)
    axis = vt[np.argmax(reach)]
    return np.asarray(axis * reach.max())


def test_a_second_hand_comes_near_but_not_through() -> None:
    joints, _ = hand()
    body = scene.Solid(BODY.vertices_m - template().joints_m.mean(0), BODY.faces)  # with its forearm
    gaps, near = [], 0
    for seed in range(60):
        other = scene.second_hand(np.random.default_rng(seed), joints, joints - joints.mean(0), body)
        if other is None:
            continue
        gaps.append(np.linalg.norm(joints[:, None] - other.vertices[None], axis=-1).min())
        near += np.linalg.norm(other.vertices.mean(0) - joints.mean(0)) < 0.25
    assert len(gaps) > 40 and near > 30
    assert min(gaps) > 0.6 * scene.FLESH_M


def test_the_background_lies_behind_all_that_is_drawn() -> None:
    _, vertices = hand()
    seen = 0
    for seed in range(40):
        depth, face = empty()
        scene.draw_background(np.random.default_rng(seed), vertices, SLOPE, depth, face)
        behind = depth > 0
        seen += behind.any()
        in_front = drawn(scene.Solid(vertices, template().faces))[0]
        both = behind & (in_front > 0)
        assert (1 / depth[both] > in_front[both] - 0.035).all()  # a chest may bulge past a far finger
        assert (face[behind] == -2).all()
    assert 10 < seen < 32


def test_clothes_change_the_arm_and_never_the_hand() -> None:
    changed = 0
    n = len(template().vertices_m)
    for seed in range(40):
        rest = scene.dress(np.random.default_rng(seed), BODY, BODY.vertices_m)
        np.testing.assert_array_equal(rest[:n], BODY.vertices_m[:n])
        changed += (rest != BODY.vertices_m).any()
    assert 8 < changed < 32


def test_a_border_blanks_one_side_and_leaves_more_than_half_of_the_joints() -> None:
    joints, _ = hand()
    uv = joints[:, :2] / joints[:, 2:] / SLOPE
    blanked = []
    for seed in range(40):
        depth = np.ones((SIZE, SIZE), np.float32)
        scene.cut_at_border(np.random.default_rng(seed), uv, depth)
        column, row = ((uv.T + 1) * SIZE / 2).astype(int)
        assert (depth[row.clip(0, 63), column.clip(0, 63)] > 0).mean() > 0.45
        corners = depth[[0, 0, -1, -1], [0, -1, 0, -1]]
        blanked.append((corners == 0).sum())
        assert 1 <= blanked[-1] <= 3
    assert np.mean(blanked) == pytest.approx(2, abs=0.3)


def test_joined_meshes_keep_the_first_ones_numbers() -> None:
    both = scene.joined([scene.BOX, scene.CYLINDER])
    np.testing.assert_array_equal(both.vertices[: len(scene.BOX.vertices)], scene.BOX.vertices)
    np.testing.assert_array_equal(both.faces[: len(scene.BOX.faces)], scene.BOX.faces)
    np.testing.assert_array_equal(
        both.vertices[both.faces[len(scene.BOX.faces) :]], scene.CYLINDER.vertices[scene.CYLINDER.faces]
    )


def test_what_is_not_a_hand_is_about_where_a_hand_would_be() -> None:
    arm = scene.Solid(BODY.vertices_m, BODY.faces)
    for seed in range(20):
        solid = scene.without_hand(np.random.default_rng(seed), arm, DISTANCE)
        assert solid.faces.max() < len(solid.vertices)
        assert np.linalg.norm(solid.vertices.mean(0) - (0, 0, DISTANCE)) < 0.3
