"""Where people are: how they sit or stand, the camera that looks at them, furniture and clutter about them.

The world is the person frame of `people.py`: origin between the hip joints, +x the person's left, +y up, +z front, m.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from ...hand.arrays import Array
from ...hand.camera import Intrinsics
from ...hand.se3 import so3_exp
from .people import CHEST, EYE, FOOT, HEAD, NECK, PELVIS, SHIN, SPINE, THIGH, Build, pose_bones
from .scene import BOX, CYLINDER, Solid, joined, place, random_rotation

View = Literal["front", "top", "head", "side"]
VIEWS: tuple[View, ...] = ("front", "top", "head", "side")
SHARES = (0.42, 0.22, 0.22, 0.14)
HANDS_NEAR_M, HANDS_FAR_M = 0.22, 1.2  # from the camera to where the hands are about
EYE_TO_LENS_M = np.array([0.0, 0.05, 0.10])  # of a camera worn on the head


class Table(NamedTuple):
    """The top's height and the edge towards the person, m."""

    y_m: float
    edge_m: float


class Stage(NamedTuple):
    """view; turns (17, 3) rad of the bones but the arms'; middle (3,) about which the hands are; rotation (3, 3) and
    position (3,) of the camera in the world: p_camera = rotation @ (p - position); furniture and clutter."""

    view: View
    turns: Array
    middle_m: Array
    rotation: Array
    position_m: Array
    things: Solid
    table: Table | None


def _unit_sphere(rings: int = 9, n: int = 14) -> Solid:
    polar = np.linspace(0, np.pi, rings + 1)[:, None]
    turn = np.arange(n) * 2 * np.pi / n
    parts = (np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar) + 0 * turn)
    at = np.arange(rings)[:, None] * n + np.arange(n)  # (rings, n)
    right = np.arange(rings)[:, None] * n + (np.arange(n) + 1) % n
    faces = np.concatenate([np.stack([at, right, at + n], -1), np.stack([right, right + n, at + n], -1)])
    return Solid(np.stack(parts, -1).reshape(-1, 3), faces.reshape(-1, 3).astype(np.int32))


SPHERE = _unit_sphere()
TUBE = Solid(CYLINDER.vertices, CYLINDER.faces[: 2 * 16 + 16])  # a cup: walls and floor


def sample_view(rng: np.random.Generator) -> View:
    return VIEWS[int(rng.choice(len(VIEWS), p=SHARES))]


def sample_posture(rng: np.random.Generator, view: View) -> tuple[Array, bool]:
    """Turns (17, 3) rad of the bones, the arms' left at rest, and whether the person sits."""
    turns = np.zeros((17, 3))
    sits = bool(rng.random() < {"front": 0.7, "top": 0.75, "head": 0.65, "side": 0.5}[view])
    lean = rng.uniform(-0.12, 0.3) + (0.12 if view == "top" else 0)
    turns[PELVIS] = rng.normal(0, (0.03, 0.08, 0.03))
    turns[SPINE] = (0.5 * lean, 0, 0) + rng.normal(0, (0.03, 0.08, 0.05))
    turns[CHEST] = (0.5 * lean, 0, 0) + rng.normal(0, (0.03, 0.1, 0.05))
    down = rng.uniform(0, 0.45) if view in ("head", "top") else rng.normal(0, 0.15)
    turns[NECK] = (0.4 * down, 0, 0) + rng.normal(0, (0.05, 0.15, 0.05))
    turns[HEAD] = (0.6 * down, 0, 0) + rng.normal(0, (0.05, 0.2, 0.06))
    for i in (0, 1):
        out = 1 - 2 * i
        if sits:
            raised = rng.normal(1.42, 0.12)
            bent = rng.uniform(1.0, 1.8)
            turns[THIGH[i]] = (-raised, out * rng.normal(0.1, 0.15), 0)
            turns[SHIN[i]] = (bent, 0, 0)
            turns[FOOT[i]] = (raised - bent + rng.normal(0, 0.15), 0, 0)
        else:
            turns[THIGH[i]] = rng.normal(0, (0.15, 0.1, 0.06))
            turns[SHIN[i]] = (abs(rng.normal(0, 0.2)), 0, 0)
    if sits and rng.random() < 0.15:  # a leg put up: a shin and a foot in the picture
        i = int(rng.integers(2))
        turns[SHIN[i]] = (rng.uniform(0, 0.7), 0, 0)
        turns[FOOT[i]] = (rng.normal(0, 0.3), 0, 0)
    return turns, sits


def sample_stage(
    rng: np.random.Generator,
    build: Build,
    camera: Intrinsics,
    *,
    nearest_m: float = 0.0,
    clear_m: float = 0.0,
    astray: float = 0.75,
) -> Stage:
    """A place for one person and one camera, which reads from nearest_m on.

    Small things keep clear_m from the middle of where the hands are. It lies up to astray, as a share, from the middle
    of the picture to its border.
    """
    view = sample_view(rng)
    turns, sits = sample_posture(rng, view)
    scale = float(build.joints_m[HEAD, 1] / 0.65)
    table = None
    if rng.random() < {"front": 0.4, "top": 0.85, "head": 0.5, "side": 0.4}[view]:
        table = Table(scale * float(rng.uniform(0.13, 0.27) if sits else rng.uniform(0.0, 0.2)), rng.uniform(0.2, 0.32))
    middle = scale * np.array([rng.normal(0, 0.1), rng.uniform(0.2, 0.6), rng.uniform(0.28, 0.45)])
    if table and (view == "top" or rng.random() < 0.6):
        middle[1] = table.y_m + rng.choice([0.03, rng.uniform(0.03, 0.25)])
        middle[2] = table.edge_m + rng.uniform(0.02, 0.2)
    rotation, position = _camera(rng, view, build, turns, middle, camera, max(HANDS_NEAR_M, nearest_m + 0.08), astray)
    clutter = _clutter(rng, table, rotation, position, camera)
    clutter = [s for s in clutter if np.linalg.norm(s.vertices - middle, axis=1).min() > clear_m]
    things = [s for s in _furniture(rng, sits, scale, table) + clutter if not _swallows(s, position)]
    nothing = place(BOX, np.eye(3), np.full(3, 0.01), position - 9 * rotation[2])  # behind the camera
    return Stage(view, turns, middle, rotation, position, joined(things or [nothing]), table)


def _camera(
    rng: np.random.Generator,
    view: View,
    build: Build,
    turns: Array,
    middle: Array,
    camera: Intrinsics,
    near_m: float,
    astray: float,
) -> tuple[Array, Array]:
    half = np.array([camera.width / 2 / camera.fx, camera.height / 2 / camera.fy])  # tangents of the field of view
    if view == "head":
        glob, origin = pose_bones(build, turns)
        eyes = build.joints_m[list(EYE)].mean(0) - build.joints_m[HEAD]
        position = origin[HEAD] + glob[HEAD] @ (eyes + EYE_TO_LENS_M + rng.normal(0, 0.01, 3))
        gaze = glob[HEAD] @ so3_exp(np.array([rng.uniform(0.1, 0.9), rng.normal(0, 0.12), 0])) @ (0, 0, 1)
        toward = middle - position
        gaze = gaze + rng.uniform(0, 2) * toward / np.linalg.norm(toward)
        return look_along(gaze, np.array([0, 1, 0.2]), rng.normal(0, 0.06)), position
    distance = math.exp(rng.uniform(math.log(near_m), math.log(HANDS_FAR_M)))
    if view == "top":
        away, up = so3_exp(rng.normal(0, 0.28, 3)) @ np.array([0, 1, 0]), np.array([0, 0, 1.0])
        roll = rng.choice([0.0, np.pi, np.pi / 2, -np.pi / 2]) + rng.normal(0, 0.15)
    else:
        yaw = rng.uniform(-0.6, 0.6) if view == "front" else rng.choice([-1, 1]) * rng.uniform(0.6, 1.9)
        pitch = rng.normal(0.1, 0.3)
        away = np.array([math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)])
        up = np.array([0, 1.0, 0])
        roll = rng.normal(0, 0.06) + (rng.choice([np.pi, np.pi / 2]) if rng.random() < 0.08 else 0)
    position = middle + distance * away
    rotation = look_along(-away, up, roll)
    aside = np.arctan(half * rng.uniform(-astray, astray, 2))  # the hands are not always in the middle of the picture
    return so3_exp(np.array([-aside[1], aside[0], 0])) @ rotation, position


def look_along(forward: Array, up: Array, roll_rad: float) -> Array:
    """Rotation (3, 3) from the world to a camera that looks along a direction, rows right, down, forward."""
    f = forward / np.linalg.norm(forward)
    right = np.cross(f, up)
    right /= np.linalg.norm(right)
    return np.asarray(so3_exp(np.array([0, 0, roll_rad])) @ np.stack([right, np.cross(f, right), f]))


def _box(low: tuple[float, float, float], high: tuple[float, float, float]) -> Solid:
    a, b = np.array(low), np.array(high)
    return place(BOX, np.eye(3), (b - a) / 2, (a + b) / 2)


def _furniture(rng: np.random.Generator, sits: bool, scale: float, table: Table | None) -> list[Solid]:
    floor = -scale * (0.45 if sits else 0.87)
    things = []
    if rng.random() < 0.85:
        things.append(_box((-4, floor - 0.1, -4), (4, floor, 4)))
    if rng.random() < 0.85:
        wall = -rng.uniform(0.28, 2.5)
        things.append(_box((-4, floor, wall - 0.1), (4, 2.5, wall)))
    if rng.random() < 0.3:
        x = rng.uniform(0.5, 2) * rng.choice([-1, 1])
        things.append(_box((x - 0.05, floor, -3), (x + 0.05, 2.5, 3)))
    if table:
        wide, deep = rng.uniform(0.45, 0.9), rng.uniform(0.4, 0.9)
        things.append(_box((-wide, table.y_m - 0.03, table.edge_m), (wide, table.y_m, table.edge_m + deep)))
        for x in (-wide + 0.05, wide - 0.05):
            things.append(_box((x - 0.03, floor, table.edge_m), (x + 0.03, table.y_m, table.edge_m + 0.06)))
    if sits and rng.random() < 0.85:
        seat = -0.095 * scale
        things.append(_box((-0.24, seat - 0.06, -0.15), (0.24, seat, 0.36)))
        things.append(_box((-0.22, seat, -0.24), (0.22, rng.uniform(0.2, 0.7), -0.17)))
        if rng.random() < 0.6:
            y, thick, wide = rng.uniform(0.1, 0.18), rng.uniform(0.012, 0.03), rng.uniform(0.02, 0.04)
            for x in (-0.29, 0.29):
                things.append(_box((x - wide, y - thick, -0.15), (x + wide, y + thick, rng.uniform(0.1, 0.28))))
                things.append(_box((x - 0.02, seat - 0.05, 0), (x + 0.02, y, 0.04)))
    return things


def _clutter(
    rng: np.random.Generator, table: Table | None, rotation: Array, position: Array, camera: Intrinsics
) -> list[Solid]:
    """Things near a hand's size, on the table and anywhere in the picture."""
    things: list[Solid] = []
    if table:
        for _ in range(int(rng.integers(0, 6))):
            at = np.array([rng.uniform(-0.5, 0.5), table.y_m, table.edge_m + rng.uniform(0.05, 0.6)])
            things += _thing(rng, at, upright=True)
        if rng.random() < 0.3:  # a keyboard, a book, a screen
            x, z = rng.uniform(-0.2, 0.2), table.edge_m + rng.uniform(0.08, 0.25)
            things.append(_box((x - 0.21, table.y_m, z), (x + 0.21, table.y_m + 0.025, z + 0.14)))
        if rng.random() < 0.2:
            x, z = rng.uniform(-0.2, 0.2), table.edge_m + rng.uniform(0.35, 0.6)
            things.append(_box((x - 0.25, table.y_m, z), (x + 0.25, table.y_m + rng.uniform(0.2, 0.4), z + 0.03)))
    for _ in range(int(rng.integers(0, 4))):
        px = rng.uniform(0, 1, 2) * (camera.width, camera.height)
        ray = camera.deproject(px, np.array(math.exp(rng.uniform(math.log(0.35), math.log(1.8)))))
        things += _thing(rng, rotation.T @ ray + position, upright=bool(rng.random() < 0.5))
    return things


def _thing(rng: np.random.Generator, at: Array, upright: bool) -> list[Solid]:
    """A ball, box, cup, bottle, fruit, stick, or something with branches, standing on `at` or about it."""
    stand = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # its z upwards
    turn = so3_exp(np.array([0, rng.uniform(-np.pi, np.pi), 0])) @ stand if upright else random_rotation(rng)
    kind = rng.random()
    if kind < 0.2:
        solid, size = SPHERE, np.repeat(rng.uniform(0.02, 0.11), 3)
    elif kind < 0.4:
        solid, size = SPHERE, rng.uniform(0.015, 0.1, 3)
    elif kind < 0.6:
        solid, size = BOX, np.exp(rng.uniform(np.log(0.008), np.log(0.12), 3))
    elif kind < 0.75:
        radius = rng.uniform(0.03, 0.05)
        solid, size = TUBE, np.array([radius, radius, rng.uniform(0.035, 0.07)])
    elif kind < 0.9:
        radius = rng.uniform(0.006, 0.06)
        solid, size = CYLINDER, np.array([radius, radius, rng.uniform(0.03, 0.25)])
    else:
        return _branches(rng, turn, at + (0, 0.06, 0) if upright else at)
    return [place(solid, turn, size, at + (0, size[2], 0) if upright else at)]


def _branches(rng: np.random.Generator, turn: Array, at: Array) -> list[Solid]:
    """A blob with a few sticks, as plants, toys and tools have."""
    parts = [place(SPHERE, turn, rng.uniform(0.015, 0.05, 3), at)]
    for _ in range(int(rng.integers(2, 7))):
        way = turn @ (so3_exp(rng.normal(0, 0.7, 3)) @ np.array([0, 0, 1.0]))
        length, radius = rng.uniform(0.02, 0.06), rng.uniform(0.004, 0.012)
        frame = look_along(way, np.array([0.31, 0.59, 0.74]), 0).T
        parts.append(place(SPHERE, frame, np.array([radius, radius, length]), at + way * (length + 0.02)))
    return parts


def _swallows(solid: Solid, position: Array) -> bool:
    """Whether the camera is in a thing or too near to it."""
    low, high = solid.vertices.min(0) - 0.06, solid.vertices.max(0) + 0.06
    return bool(((position > low) & (position < high)).all())
