"""What surrounds a hand: an arm, sleeves, wristbands, held objects, a second hand, walls, tables, bodies, the border.

Lengths are metres in the crop camera's frame unless said otherwise. Every draw comes from the generator given.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...hand import se3
from ...hand.arrays import Array
from ...hand.body import Body
from ...hand.kinematics import Shape, forward_kinematics, skin
from ...hand.skeleton import BONE_STARTS
from ...hand.template import template
from .render import draw_ellipsoid, draw_plane

FLESH_M = 0.009  # from a bone to the skin of a finger
ALONG = np.linspace(0, 1, 4)[:, None]


class Solid(NamedTuple):
    """A mesh to be drawn with the hand: vertices (N, 3), faces (F, 3)."""

    vertices: Array
    faces: Array


def _unit_box() -> Solid:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return Solid(corners, np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))], np.int32))


def _unit_cylinder(n: int = 16) -> Solid:
    turn = np.arange(n) * 2 * np.pi / n
    ring = np.stack([np.cos(turn), np.sin(turn)], 1)
    ends = [np.column_stack([ring, np.full(n, z)]) for z in (-1.0, 1.0)]
    vertices = np.concatenate([*ends, [[0, 0, -1], [0, 0, 1]]])
    i, j = np.arange(n), np.roll(np.arange(n), -1)
    faces = [np.stack(t, 1) for t in ((i, j, n + i), (j, n + j, n + i))]
    faces += [np.stack([i, j, np.full(n, 2 * n)], 1), np.stack([n + i, n + j, np.full(n, 2 * n + 1)], 1)]
    return Solid(vertices, np.concatenate(faces).astype(np.int32))


BOX, CYLINDER = _unit_box(), _unit_cylinder()


def hand_on_arm(
    rng: np.random.Generator, body: Body, angles: Array, shape: Shape, *, dressed: bool = True
) -> tuple[Array, Array]:
    """Joints (21, 3) and body vertices (B, 3) m in the hand's frame of angles (20,) rad, the wrist bent at random."""
    theta = np.concatenate([np.zeros(6), angles])[None]  # (1, 26)
    skeleton = forward_kinematics(template(), theta, shape.alpha[None], shape.beta[None])
    bend = np.radians([rng.normal(0, 25), rng.normal(0, 15), rng.normal(0, 12)]).clip(-0.9, 0.9)
    arm = np.zeros((1, 1, 3, 4))
    arm[..., :3] = shape.alpha[0] * se3.so3_exp(bend)
    rest = body.vertices_m + np.tensordot(shape.beta, body.morphs_m, 1)
    if dressed:
        rest = dress(rng, body, rest)
    parts = np.concatenate([skeleton.parts, arm], 1)  # (1, 17, 3, 4)
    return skeleton.joints_m[0], skin(body.weights, rest[None], parts)[0]


def dress(rng: np.random.Generator, body: Body, rest: Array) -> Array:
    """Rest vertices (B, 3) in the hand's frame, some with a sleeve that may reach over the wrist, some with a band."""
    kind = rng.random()
    if kind > 0.45:
        return rest
    centre = rest[body.arm_level >= 1].mean(0)
    axis = centre / np.linalg.norm(centre)
    along = rest @ axis
    from_axis = rest - np.outer(along, axis)
    if kind < 0.33:  # from here on up the arm, tight or wide
        covered = (body.arm_level > 0) & (along > rng.uniform(0.0, 0.12))
        thicker = rng.uniform(0.05, 0.7)
    else:  # a band or a watch
        start = rng.uniform(0.005, 0.05)
        covered = (body.arm_level > 0) & (along > start) & (along < start + rng.uniform(0.015, 0.05))
        thicker = rng.uniform(0.08, 0.3)
    return rest + np.where(covered, thicker, 0)[:, None] * from_axis


def random_rotation(rng: np.random.Generator) -> Array:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def held_object(rng: np.random.Generator, joints: Array, tries: int = 5) -> Solid | None:
    """A bottle, stick, box or tool in the hand with joints (21, 3), as thick as the fingers leave room; or None."""
    bones = joints[BONE_STARTS]
    flesh = (bones[:, None] + ALONG * (joints[1:] - bones)[:, None]).reshape(-1, 3)  # (80, 3)
    across = joints[17] - joints[5]
    across /= np.linalg.norm(across)
    palm = (joints[0] + joints[5] + joints[9] + joints[17]) / 4
    inwards = joints[[8, 12, 16, 20, 4]].mean(0) - palm  # where the fingers are
    inwards -= across * (inwards @ across)
    inwards /= np.linalg.norm(inwards) + 1e-9
    for _ in range(tries):
        axis = across + rng.normal(0, 0.3, 3) if rng.random() < 0.7 else rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        centre = palm + inwards * rng.uniform(0.01, 0.07) + rng.normal(0, 0.012, 3)
        half = rng.uniform(0.02, 0.12)
        offset = flesh - centre
        t = np.clip(offset @ axis, -half, half)
        room = float(np.linalg.norm(offset - t[:, None] * axis, axis=1).min()) - FLESH_M
        if room < 0.003:
            continue
        radius = min(room, rng.uniform(0.01, 0.05))
        frame = _frame_of(axis, rng)
        if rng.random() < 0.6:
            return place(CYLINDER, frame, np.array([radius, radius, half]), centre)
        flat = rng.uniform(0.3, 1)
        return place(BOX, frame, np.array([radius, radius * flat, half]) / np.hypot(1, flat), centre)
    return None


def _frame_of(axis: Array, rng: np.random.Generator) -> Array:
    """A rotation (3, 3) whose third column is the axis."""
    x = np.cross(axis, rng.normal(size=3))
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(axis, x), axis], 1)


def place(solid: Solid, rotation: Array, size: Array, centre: Array) -> Solid:
    return Solid((solid.vertices * size) @ rotation.T + centre, solid.faces)


def second_hand(rng: np.random.Generator, joints: Array, other_joints: Array, other: Solid) -> Solid | None:
    """Another hand, left or right, beside or touching the one with joints (21, 3); None if they would overlap."""
    rotation = random_rotation(rng)
    if rng.random() < 0.7:
        rotation[:, 0] *= -1  # most second hands are the other one
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    moved = other_joints @ rotation.T
    shift = joints.mean(0) - moved.mean(0) + direction * rng.uniform(0.09, 0.2)
    gap = np.linalg.norm(joints[:, None] - (moved + shift)[None], axis=-1).min()
    if gap < 0.022:
        shift = shift + direction * (0.022 - gap + 0.02)
        if np.linalg.norm(joints[:, None] - (moved + shift)[None], axis=-1).min() < 0.02:
            return None
    placed = other.vertices @ rotation.T + shift
    skin = np.linalg.norm(joints[:, None] - placed[None, ::4], axis=-1).min()  # its forearm may come nearer than joints
    return Solid(placed, other.faces) if skin > FLESH_M else None


def draw_background(rng: np.random.Generator, vertices: Array, slope: float, depth: Array, face: Array) -> None:
    """A wall, table, chest or head behind what is drawn, a hand's breadth or less away."""
    kind = rng.random()
    size = len(depth)
    gap = rng.choice([rng.uniform(0.001, 0.02), rng.uniform(0.02, 0.15)])
    if kind < 0.3:  # a wall or table, straight or at a slant
        normal = rng.normal(0, rng.choice([0.15, 0.6]), 3) * (1, 1, 0) + (0, 0, 1)
        normal /= np.linalg.norm(normal)
        draw_plane(normal, float((vertices @ normal).max() + gap), slope, size, depth, face)
    elif kind < 0.5:  # a chest, belly, thigh or head
        axes = np.array([rng.uniform(0.07, 0.22), rng.uniform(0.1, 0.3), rng.uniform(0.07, 0.15)])
        deepest = vertices[vertices[:, 2].argmax()]
        centre = deepest + (rng.normal(0, 0.08), rng.normal(0, 0.08), gap + axes[2])
        tilt = np.eye(3) + np.cross(np.eye(3), rng.normal(0, 0.3, 3))
        q, _ = np.linalg.qr(tilt)
        draw_ellipsoid(centre, np.ascontiguousarray((q / axes).T), slope, size, depth, face)


def draw_clutter(rng: np.random.Generator, joints: Array, slope: float, depth: Array, face: Array) -> None:
    """A few round things about the hand with joints (J, 3), in front or behind, none inside it."""
    for _ in range(int(rng.integers(1, 4))):
        axes = rng.uniform(0.012, 0.08, 3)
        centre = joints.mean(0) + rng.uniform(-0.15, 0.15, 3)
        if np.linalg.norm(joints - centre, axis=1).min() < axes.max() + 0.014 or centre[2] < 0.15:
            continue
        inverse = (random_rotation(rng) / axes).T
        draw_ellipsoid(centre, np.ascontiguousarray(inverse), slope, len(depth), depth, face)


def without_hand(rng: np.random.Generator, arm: Solid, distance: float) -> Solid:
    """What is not a hand, about (0, 0, distance): arms, boxes, sticks, edges; ellipsoids are drawn by the caller."""
    parts: list[Solid] = []
    if rng.random() < 0.5:
        middle = arm.vertices.mean(0) + rng.normal(0, 0.03, 3)
        turned = (arm.vertices - middle) @ random_rotation(rng).T * rng.uniform(0.8, 1.8)
        parts.append(Solid(turned + (0, 0, distance), arm.faces))
    for _ in range(int(rng.integers(0 if parts else 1, 4))):
        size = np.exp(rng.uniform(np.log(0.008), np.log(0.15), 3))
        centre = np.array([0, 0, distance]) + rng.normal(0, 0.05, 3)
        parts.append(place(BOX if rng.random() < 0.5 else CYLINDER, random_rotation(rng), size, centre))
    return joined(parts)


def joined(solids: list[Solid]) -> Solid:
    """One mesh of several; the first one's vertices and faces keep their numbers."""
    if len(solids) == 1:
        return solids[0]
    start = np.cumsum([0, *(len(s.vertices) for s in solids[:-1])])
    return Solid(
        np.concatenate([s.vertices for s in solids]),
        np.concatenate([s.faces + k for s, k in zip(solids, start, strict=True)]).astype(np.int32),
    )


def cut_at_border(rng: np.random.Generator, joints_uv: Array, depth: Array) -> None:
    """Blank what lies beyond an image border that cuts through a hand whose joints are at (21, 2), in half cubes."""
    turn = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.06)
    outwards = np.array([np.cos(turn), np.sin(turn)])
    reach = joints_uv @ outwards
    border = np.quantile(reach, rng.uniform(0.55, 1)) + rng.uniform(0, 0.12)
    centres = (2 * np.arange(len(depth)) + 1) / len(depth) - 1
    depth[centres[:, None] * outwards[1] + centres * outwards[0] > border] = 0
