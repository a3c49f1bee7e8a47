"""People with hands: the MakeHuman body posed from pelvis to wrists, and our own hand meshes where its own were.

Person frame: origin between the hip joints at rest, +x to the person's left, +y up, +z to the front, metres. Arms are
placed by two-bone inverse kinematics, so wrists go where they are wanted. Left is 0, right is 1 throughout.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...hand import se3
from ...hand.arrays import Array
from ...hand.body import hand_with_arm
from ...hand.crop import MIRROR
from ...hand.kinematics import forward_kinematics, skin
from ...hand.template import template
from .poses import hand_length_m, sample_shape
from .zbuffer import deepest, outward_normals, skin_four

PATH = Path(__file__).with_name("person.npz")
UNIT_M = 1e-4  # of the lengths in person.npz
PARENTS = (-1, 0, 1, 2, 3, 2, 5, 6, 0, 8, 9, 2, 11, 12, 0, 14, 15)
PELVIS, SPINE, CHEST, NECK, HEAD = range(5)
SHOULDER, UPPER, FOREARM, THIGH, SHIN, FOOT = ((5 + i, 11 + i) for i in range(6))
WRIST, EYE = (17, 18), (19, 20)
FLEX_RAD, DEVIATION_RAD = np.radians([70, 25])
LET_DOWN_RAD = 0.5  # of the elbow
EVERY = 7  # every so many-th vertex of the body is looked at when hands must keep clear of it
CLEAR_M = 0.006
LENS_M = 0.14  # hands keep this far from the camera


class Mesh(NamedTuple):
    """The body at rest: vertices (N, 3), faces (F, 3), bone and weight (N, 4) of the strongest four, joints (21, 3),
    offsets of the traits male, old, heavy, thin, muscle (5, N, 3) and (5, 21, 3), turns (2, 3, 3) of straight hands."""

    vertices_m: Array
    faces: Array
    bone: Array
    weight: Array
    joints_m: Array
    morph_vertices_m: Array
    morph_joints_m: Array
    hand_turns: Array


class Build(NamedTuple):
    """One person: rest skin (N, 3) and joints (21, 3), shape of both hands, their rest skin (1729, 3) and sleeve, m."""

    rest_m: Array
    joints_m: Array
    alpha: Array
    beta: Array
    hand_rest_m: Array


class Arm(NamedTuple):
    """Where an arm goes: wrist (3,) m in the person frame, turn of the elbow about the line from shoulder to wrist,
    the forearm's twist, flexion and deviation (2,) of the wrist, the 20 finger angles; rad."""

    wrist_m: Array
    elbow_rad: float
    twist_rad: float
    bend_rad: Array
    angles: Array


class Hand(NamedTuple):
    """joints (21, 3), the hand's vertices and its forearm stub's (1729, 3) in one frame, m."""

    side: int
    joints_m: Array
    vertices_m: Array


@lru_cache(maxsize=1)
def person_mesh() -> Mesh:
    """The body that ships with the package; read once."""
    with np.load(PATH) as file:
        p = {name: file[name] for name in file.files}
    right = p["hand"].astype(float).T
    mirror = np.diag(MIRROR)
    return Mesh(
        vertices_m=(p["v"] * UNIT_M).astype(np.float32),
        faces=p["faces"].astype(np.int32),
        bone=p["bone"].astype(np.int32),
        weight=(p["weight"] / p["weight"].sum(1, keepdims=True, dtype=float)).astype(np.float32),
        joints_m=p["joints"] * UNIT_M,
        morph_vertices_m=(p["morph_v"] * UNIT_M).astype(np.float32),
        morph_joints_m=p["morph_joints"] * UNIT_M,
        hand_turns=np.stack([mirror @ right @ mirror, right]),
    )


def hand_faces(side: int) -> Array:
    """Faces of the hand with its stub (F, 3), those of the hand first; outward on either side."""
    faces = template().faces_all
    return np.ascontiguousarray(faces if side else faces[:, ::-1])


def sample_build(rng: np.random.Generator) -> Build:
    """Woman, man or between, young to old, thin to heavy, as tall as the hands are long; some wear sleeves."""
    mesh, t = person_mesh(), template()
    alpha, beta = sample_shape(rng)
    scale = float(np.clip(hand_length_m(t, alpha, beta) / 0.187 * rng.uniform(0.95, 1.06), 0.82, 1.14))
    mass = rng.uniform(-1.5, 2.5)
    share = np.array(
        [rng.uniform(-1, 1), max(0, rng.uniform(-1, 1)), max(mass, 0), max(-mass, 0), rng.uniform(0, 1.5) ** 2]
    )
    rest = mesh.vertices_m + np.tensordot(share.astype(np.float32), mesh.morph_vertices_m, 1)
    joints = mesh.joints_m + np.tensordot(share, mesh.morph_joints_m, 1)
    rest, joints = (scale * rest).astype(np.float32), scale * joints
    hand_rest = t.vertices_all_m + np.tensordot(beta, t.morph_vertices_all_m, 1)
    if rng.random() < 0.5:
        thick = rng.uniform(0.002, 0.022)
        rest = _dressed(rest, mesh, thick)
        if rng.random() < 0.75:
            hand_rest = _sleeved(hand_rest, float(rng.uniform(0.0, 0.09)), thick)
    return Build(rest, joints, alpha, beta, hand_rest)


def _dressed(rest: Array, mesh: Mesh, thick: float) -> Array:
    """Clothes: skin but that of head, neck and feet moved outwards."""
    bare = np.isin(mesh.bone, (NECK, HEAD, *FOOT))
    share = (mesh.weight * ~bare).sum(1, keepdims=True)
    return (rest + thick * share * outward_normals(rest, mesh.faces)).astype(np.float32)


def _sleeved(hand_rest: Array, start: float, thick: float) -> Array:
    """Hand's rest vertices (1729, 3) with the stub from `start` m behind the wrist on thicker by so much."""
    t = template()
    axis = hand_rest[t.arm_ring].mean(0)
    axis = axis / np.linalg.norm(axis)
    along = hand_rest @ axis
    across = hand_rest - np.outer(along, axis)
    across /= np.linalg.norm(across, axis=1, keepdims=True) + 1e-9
    covered = (along > start) & (np.arange(len(hand_rest)) >= len(t.vertices_m))
    return hand_rest + (thick * covered)[:, None] * across


def pose_bones(build: Build, turns: Array) -> tuple[Array, Array]:
    """Turns of the bones in their parents, rotation vectors (17, 3) rad, to turns (17, 3, 3) and origins (17, 3) m."""
    local = se3.so3_exp(turns)
    glob, origin = np.empty((17, 3, 3)), np.empty((17, 3))
    for b, parent in enumerate(PARENTS):
        if parent < 0:
            glob[b], origin[b] = local[b], build.joints_m[b]
            continue
        glob[b] = glob[parent] @ local[b]
        origin[b] = origin[parent] + glob[parent] @ (build.joints_m[b] - build.joints_m[parent])
    return glob, origin


def place_arm(build: Build, turns: Array, origins_m: Array, side: int, arm: Arm) -> Array:
    """Turn the bones of an arm, in place, so that its wrist goes to arm.wrist_m or as near as it reaches; the wrist."""
    rest = build.joints_m
    shoulder, elbow, wrist = (rest[j[side]] for j in (UPPER, FOREARM, WRIST))
    upper, lower = elbow - shoulder, wrist - elbow
    length_u, length_l = float(np.linalg.norm(upper)), float(np.linalg.norm(lower))
    begin = origins_m[UPPER[side]]
    way = arm.wrist_m - begin
    distance = float(np.linalg.norm(way)) + 1e-9
    way = way / distance
    distance = min(max(distance, 0.35 * (length_u + length_l)), 0.985 * (length_u + length_l))
    along = (length_u**2 - length_l**2 + distance**2) / (2 * distance)
    out = math.sqrt(max(length_u**2 - along**2, 1e-8))
    outwards = -1.0 if side else 1.0
    # No reach goes where the elbow would: outwards and back. From there it is let down a little.
    pole = turns[CHEST] @ np.array([0.75 * outwards, -0.4, -0.53])
    pole = pole - (pole @ way) * way
    pole = se3.so3_exp((arm.elbow_rad - outwards * LET_DOWN_RAD) * way) @ (pole / (np.linalg.norm(pole) + 1e-9))
    hinge = np.cross(pole, way)
    new_upper = along * way + out * pole
    new_lower = distance * way - new_upper
    hinge_rest = np.cross(upper, lower)
    turns[UPPER[side]] = _frame(new_upper, hinge) @ _frame(upper, hinge_rest).T
    turns[FOREARM[side]] = _frame(new_lower, hinge) @ _frame(lower, hinge_rest).T
    origins_m[FOREARM[side]] = begin + new_upper
    return np.asarray(begin + distance * way)


def _frame(along: Array, hinge: Array) -> Array:
    a, h = along / np.linalg.norm(along), hinge / np.linalg.norm(hinge)
    return np.stack([a, h, np.cross(a, h)], 1)


def straight_hand(build: Build, turns: Array, side: int, twist_rad: float) -> Array:
    """Turn (3, 3) of a hand whose wrist does not bend, in the frame of the bones' turns."""
    lower = build.joints_m[WRIST[side]] - build.joints_m[FOREARM[side]]
    lower = lower / np.linalg.norm(lower)
    turned = turns[FOREARM[side]] @ se3.so3_exp((twist_rad if side else -twist_rad) * lower)
    return np.asarray(turned @ person_mesh().hand_turns[side])


def pose_hands(build: Build, turns: Array, wrists_m: dict[int, Array], arms: dict[int, Arm]) -> dict[int, Hand]:
    """Hand meshes at the wrists given by side, in the frame of the bones' turns; wrists bend within their limits."""
    if not arms:
        return {}
    t, sides = template(), list(arms)
    n = len(sides)
    theta = np.zeros((n, 26))
    theta[:, 6:] = [arms[s].angles for s in sides]
    skeleton = forward_kinematics(t, theta, np.tile(build.alpha, (n, 1)), np.tile(build.beta, (n, 1)))
    bends = np.stack([bend_turn(arms[s].bend_rad) for s in sides])  # (n, 3, 3) of the hand on its forearm
    stub = np.zeros((n, 1, 3, 4))
    stub[:, 0, :, :3] = build.alpha[0] * np.swapaxes(bends, 1, 2)
    parts = np.concatenate([skeleton.parts, stub], 1)
    vertices = skin(_stub_weights(), np.broadcast_to(build.hand_rest_m, (n, *build.hand_rest_m.shape)), parts)
    hands = {}
    for i, side in enumerate(sides):
        bend = bends[i] if side else np.diag(MIRROR) @ bends[i] @ np.diag(MIRROR)
        turn = straight_hand(build, turns, side, arms[side].twist_rad) @ bend
        sign = np.ones(3) if side else MIRROR
        hands[side] = Hand(
            side,
            (skeleton.joints_m[i] * sign) @ turn.T + wrists_m[side],
            ((vertices[i] * sign) @ turn.T + wrists_m[side]).astype(np.float32),
        )
    return hands


@lru_cache(maxsize=1)
def _stub_weights() -> Array:
    return np.ascontiguousarray(hand_with_arm(template()).weights[: len(template().vertices_all_m)])


def bend_turn(bend_rad: Array) -> Array:
    """Turn (3, 3) of a right hand on its forearm: flexion towards the palm, deviation towards the thumb, clipped to
    the limits of a wrist, 70 and 25 degrees."""
    flex = float(np.clip(bend_rad[0], -FLEX_RAD, FLEX_RAD))
    deviation = float(np.clip(bend_rad[1], -DEVIATION_RAD, DEVIATION_RAD))
    cf, sf, cd, sd = math.cos(flex), math.sin(flex), math.cos(deviation), math.sin(deviation)
    about_x = np.array([[1, 0, 0], [0, cf, sf], [0, -sf, cf]])  # +y towards -z, the palm
    about_z = np.array([[cd, -sd, 0], [sd, cd, 0], [0, 0, 1]])  # +y towards -x, the thumb
    return np.asarray(about_z @ about_x)


def skin_body(build: Build, turns: Array, origins_m: Array) -> Array:
    """The posed skin (N, 3) m."""
    mesh = person_mesh()
    parts = np.empty((17, 3, 4), np.float32)
    parts[..., :3] = turns
    parts[..., 3] = origins_m - (turns @ build.joints_m[:17, :, None])[..., 0]
    return skin_four(build.rest_m, mesh.bone, mesh.weight, parts)


@lru_cache(maxsize=1)
def _surface() -> tuple[Array, Array]:
    """Which vertices stand for the body's surface (S,), and for each side which of those are not that arm (2, S)."""
    mesh = person_mesh()
    main = mesh.bone[np.arange(len(mesh.bone)), mesh.weight.argmax(1)]
    pick = np.arange(0, len(main), EVERY)
    own = [np.isin(main[pick], (UPPER[s], FOREARM[s], SHOULDER[s])) for s in (0, 1)]
    return pick, ~np.stack(own)


def body_surface(body_m: Array) -> tuple[Array, Array]:
    """Points (S, 3) m of the skin (N, 3) and outward normals (S, 3), for `way_out`."""
    pick, _ = _surface()
    return body_m[pick], outward_normals(body_m, person_mesh().faces)[pick]


def way_out(hand: Hand, surface: tuple[Array, Array], others: list[Hand], lens_m: Array | None = None) -> Array:
    """How far a hand must move (3,) m to leave the body and other hands; 0 if it keeps clear of them by 6 mm.

    It also leaves the space about a lens at lens_m (3,).
    """
    _, elsewhere = _surface()
    points = np.ascontiguousarray(hand.vertices_m[: len(template().vertices_m) : 9])
    keep = elsewhere[hand.side]
    depth, way = deepest(points, np.ascontiguousarray(surface[0][keep]), np.ascontiguousarray(surface[1][keep]))
    move = max(0.0, CLEAR_M - float(depth)) * way.astype(float)
    if lens_m is not None:
        away = points - lens_m
        distance = np.linalg.norm(away, axis=1)
        nearest = int(distance.argmin())
        move = move + max(0.0, LENS_M - distance[nearest]) * away[nearest] / (distance[nearest] + 1e-9)
    for other in others:
        apart = hand.joints_m.mean(0) - other.joints_m.mean(0)
        if np.linalg.norm(apart) > 0.3:
            continue
        normals = outward_normals(other.vertices_m, hand_faces(other.side))
        depth, _ = deepest(points, other.vertices_m[::2], normals[::2])
        if depth < CLEAR_M:
            move = move + (CLEAR_M - float(depth)) * apart / (np.linalg.norm(apart) + 1e-9)
    return np.asarray(move)
