"""A rendered hand in colour, for those who find hands in colour pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...hand import se3
from ...hand.body import hand_with_arm
from ...hand.camera import Intrinsics
from ...hand.kinematics import forward_kinematics, skin
from ...hand.normals import vertex_normals
from ...hand.poses import POSES
from ...hand.render import render
from ...hand.template import template

SKIN, WALL = (225, 172, 140), (120, 135, 150)
LIGHT = np.array([-0.4, -0.5, -0.77])  # towards the light, in the camera's frame
WRIST_M = (-0.02, 0.09, 0.47)
TURN_RAD = np.array([0.1, 0.0, 0.0])  # of an upright palm that faces the camera


def colour_hand(width: int = 640, height: int = 480) -> NDArray[np.uint8]:
    """(height, width, 3) RGB: the template with its forearm, fingers spread, palm to the camera, plainly shaded."""
    t = template()
    body = hand_with_arm(t)
    upright = np.array([[-1.0, 0, 0], [0, -1, 0], [0, 0, 1]])  # the template's fingers point along its y
    R_camera_wrist = upright @ se3.so3_exp(TURN_RAD)
    theta = np.concatenate([WRIST_M, se3.so3_log(R_camera_wrist), POSES["spread"]])
    parts = forward_kinematics(t, theta[None], np.ones((1, 6)), np.zeros((1, 7))).parts
    arm = np.concatenate([R_camera_wrist, theta[:3, None]], 1)  # (3, 4)
    vertices = skin(body.weights, body.vertices_m[None], np.concatenate([parts, arm[None, None]], 1))[0]
    focal = 0.8 * min(width, height)
    face = render(vertices, body.faces, Intrinsics(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)).face
    picture = np.empty((height, width, 3))
    picture[:] = np.array(WALL) * np.linspace(0.8, 1.2, height)[:, None, None]
    picture[face >= 0] = np.array(SKIN) * (0.45 + 0.6 * _lit(vertices, body.faces)[face[face >= 0], None])
    return picture.clip(0, 255).astype(np.uint8)


def _lit(vertices_m: Any, faces: Any) -> Any:
    """(F,) how squarely light falls on each face, 0 to 1, from normals that are smooth over the surface."""
    smooth = vertex_normals(vertices_m, faces)[faces].mean(1)
    return np.abs(smooth @ LIGHT) / (np.linalg.norm(smooth, axis=1) + 1e-12)
