"""Normals of meshes."""

from __future__ import annotations

import numpy as np
from edge_hand.edge.chain import Chain
from edge_hand.hand.kinematics import AVERAGE
from edge_hand.hand.normals import vertex_normals
from edge_hand.hand.se3 import so3_exp
from edge_hand.hand.template import template


def test_normals_of_a_box_point_out_of_its_corners_and_those_of_lone_vertices_nowhere():
    corners = np.array([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
    faces = [f for f in np.ndindex(8, 8, 8) if _outward(corners, f)]
    normals = vertex_normals(np.concatenate([corners, [[9.0, 9, 9]]]), np.array(faces))
    np.testing.assert_allclose(normals[:8], corners / np.sqrt(3), atol=1e-12)
    np.testing.assert_array_equal(normals[8], 0)


def _outward(corners: np.ndarray, face: tuple[int, ...]) -> bool:
    """Whether three corners lie in one side of the box, counter-clockwise from outside, at a right angle."""
    a, b, c = corners[list(face)]
    across = np.cross(b - a, c - a)
    in_side = any((corners[list(face), k] == s).all() for k in range(3) for s in (-1, 1))
    return bool(in_side and np.linalg.norm(across) > 0 and across @ (a + b + c) > 0)


def test_a_turned_hands_normals_are_those_of_its_turned_mesh():
    t, chain, turn = template(), Chain(template()), so3_exp(np.array([0.3, -1.0, 0.5]))
    posed = chain.pose(turn, np.zeros(20), chain.at_rest(AVERAGE))
    found = posed.frames[:, :3, :3].transpose(1, 0, 2).reshape(3, 48) @ chain.normal_skin()
    mesh = chain.skin(posed, chain.at_rest(AVERAGE), chain.skin_of(np.zeros(7)), np.zeros(3))
    found = found.T / np.linalg.norm(found.T, axis=1, keepdims=True)
    alike = (found * vertex_normals(mesh.astype(float), t.faces)).sum(1)
    assert np.percentile(alike, 1) > 0.8 and np.median(alike) > 0.99
