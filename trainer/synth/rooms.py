"""Whole depth frames of people with hands, as a camera on a desk, above a table or on the head sees them.

`SceneGenerator.scene` gives single frames, all different; `sequence` one camera and one person over time. The labels
are the hands that are there, with the share of each that can be seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ...hand.arrays import Array
from ...hand.camera import Intrinsics
from ...hand.frames import DepthFrame
from ...hand.template import template
from .motion import arm_at, sway_at, write_script
from .people import (
    UPPER,
    Arm,
    Build,
    Hand,
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
from .poses import sample_angles
from .samples import STREAMS
from .scene import Solid, held_object
from .sensors import SENSORS, Sensor, Settings, corrupt, draw_settings
from .stage import Stage, Table, sample_posture, sample_stage
from .zbuffer import draw

MODES = (
    "D435 424x240", "D435 424x240", "D435 848x480", "D435 848x480", "D435 640x480", "D415 640x480", "D405 848x480",
    "SR305 640x480", "SR305 640x480", "Kinect v1", "Kinect v2", "Azure Kinect", "L515 640x480",
)  # fmt: skip
SECOND_NS = 1_000_000_000
SEQUENCE_WIDTH = 424  # px
MOST_M_S = 2.8  # a hand may not be faster
BACK_M_S = 0.3  # how fast a hand that had to evade something returns to where it should be
THINGS, BODY, ARM, HELD, FIRST_HAND = 1, 2, 3, 4, 10  # labels in the picture


class SceneHand(NamedTuple):
    """A hand in the camera frame: side "left" or "right", joints_m (21, 3), vertices_m (1609, 3), the shape alpha (6,)
    and beta (7,); seen: which share of the pixels that it would have alone in a picture without borders it has."""

    side: str
    joints_m: Array
    vertices_m: Array
    seen: float
    alpha: Array
    beta: Array


class Scene(NamedTuple):
    """A frame and every hand of the scene that projects at least partly into it, hidden or not."""

    frame: DepthFrame
    hands: tuple[SceneHand, ...]


class Actor(NamedTuple):
    """A person in the world: turn (3, 3) and place (3,) m of the person frame in it, turns (17, 3) rad of the bones."""

    build: Build
    turn: Array
    place_m: Array
    turns: Array


class Posed(NamedTuple):
    """The body's skin (N, 3) m and the hands, in the person frame."""

    body_m: Array
    hands: list[Hand]


class SceneGenerator:
    """Draws scenes; scene(i) depends on stream, seed and i alone.

    noise: whether the sensor errs. width: of the pictures in px, of the same field of view; None is the mode's own.
    """

    def __init__(self, stream: str = "train", seed: int = 0, *, noise: bool = True, width: int | None = None) -> None:
        if stream not in STREAMS:
            raise ValueError(f"scenes of stream {stream}: possible are {', '.join(STREAMS)}")
        if width is not None and width < 16:
            raise ValueError(f"scenes {width} px wide: at least 16 are possible")
        self.key, self.noise, self.width = (STREAMS[stream], seed), noise, width

    def scene(self, index: int) -> Scene:
        """The scene of this index: the same for ever, whatever was drawn before it."""
        rng = np.random.default_rng([*self.key, 3, index])
        sensor = SENSORS[MODES[int(rng.integers(len(MODES)))]]
        camera = intrinsics_of(sensor, self.width)
        build = sample_build(rng)
        stage = sample_stage(rng, build, camera, nearest_m=sensor.min_z_m, clear_m=0.1)
        actors = [Actor(build, np.eye(3), np.zeros(3), stage.turns)] if rng.random() < 0.93 else []
        if rng.random() < 0.08:
            actors.append(second_person(rng, stage))
        posed = []
        for actor in actors:
            arms = {s: sample_arm(rng, actor, stage, s, idle=rng.random() < 0.25) for s in (0, 1)}
            posed.append(pose_person(actor, arms, stage)[0])
        picture = Picture(camera)
        picture.things(stage)
        for actor, person in zip(actors, posed, strict=True):
            picture.person(actor, person, stage)
            for hand in person.hands:
                if rng.random() < 0.15:
                    picture.held(held_object(rng, picture.in_camera(actor, stage, hand.joints_m)))
        settings = draw_settings(sensor, rng)
        seed = int(rng.integers(2**31))
        frame = picture.frame(sensor, settings if self.noise else None, seed, index, SECOND_NS)
        return Scene(frame, picture.hands(sensor))


def intrinsics_of(sensor: Sensor, width: int | None = None) -> Intrinsics:
    """The pinhole camera of a sensor's mode, or one of the same field of view and another width, px."""
    scale = (width or sensor.width) / sensor.width
    w, h = round(sensor.width * scale), max(round(sensor.height * scale), 1)
    return Intrinsics(w, h, sensor.focal_px * scale, sensor.focal_px * scale, (w - 1) / 2, (h - 1) / 2)


def second_person(rng: np.random.Generator, stage: Stage) -> Actor:
    """Someone opposite or beside."""
    turns, _ = sample_posture(rng, stage.view)
    if rng.random() < 0.5:
        turn, place = np.diag([-1.0, 1, -1]), np.array([rng.normal(0, 0.2), 0, rng.uniform(0.85, 1.2)])
    else:
        turn, place = np.eye(3), np.array([rng.choice([-1, 1]) * rng.uniform(0.5, 0.8), 0, rng.normal(0, 0.15)])
    return Actor(sample_build(rng), turn, place, turns)


def sample_arm(rng: np.random.Generator, actor: Actor, stage: Stage, side: int, idle: bool) -> Arm:
    """An arm that does something about the stage's middle, or hangs or lies in the lap."""
    rest = actor.build.joints_m
    out = -1.0 if side else 1.0
    if idle:
        if rng.random() < 0.5:
            wrist = rest[UPPER[side]] + (
                out * rng.uniform(0.02, 0.15),
                -rng.uniform(0.42, 0.55),
                rng.uniform(-0.1, 0.1),
            )
        else:
            wrist = np.array([out * rng.uniform(0, 0.15), rng.uniform(0.08, 0.16), rng.uniform(0.15, 0.4)])
    else:
        spread = rng.choice([0.05, 0.12, 0.18])
        wrist = stage.middle_m + (out * rng.uniform(-0.02, 0.22), *rng.normal(0, spread, 2))
        if rng.random() < 0.5:
            wrist = wrist - (0, 0.1, 0)  # the hand, not the wrist, is in the middle
    return Arm(
        wrist,
        rng.normal(0, 0.35),
        rng.uniform(-1.35, 1.35),
        rng.normal(0, (0.4, 0.15)),
        sample_angles(template(), rng),
    )


def pose_person(
    actor: Actor, arms: dict[int, Arm], stage: Stage, *, tries: int = 3, lift_m: float = 1.0
) -> tuple[Posed, dict[int, Arm]]:
    """Body and hands, and the arms as they then were: a hand in the body, the other hand or the lens is moved out.

    It is also lifted off the table, by at most lift_m.
    """
    build = actor.build
    lens = actor.turn.T @ (stage.position_m - actor.place_m)
    turns, origins = pose_bones(build, actor.turns)
    arms = dict(arms)
    for attempt in range(tries + 1):
        wrists = {s: place_arm(build, turns, origins, s, arm) for s, arm in arms.items()}
        hands = pose_hands(build, turns, wrists, arms)
        body = skin_body(build, turns, origins)
        if attempt == tries:
            break
        surface = body_surface(body)
        moves = {s: way_out(hand, surface, [h for o, h in hands.items() if o != s], lens) for s, hand in hands.items()}
        if attempt == 0:
            moves = {s: move + (0, min(lift_m, _below(hands[s], stage.table)), 0) for s, move in moves.items()}
        if max(np.linalg.norm(move) for move in moves.values()) < 0.003:
            break
        for s, move in moves.items():
            if move.any():
                arms[s] = arms[s]._replace(wrist_m=wrists[s] + 1.1 * move)
    return Posed(body, list(hands.values())), arms


def _below(hand: Hand, table: Table | None) -> float:
    """How far, m, a hand that is over the table reaches into it; 0 if it is below altogether."""
    if table is None or hand.joints_m[0, 2] < table.edge_m or hand.joints_m[:, 1].mean() < table.y_m - 0.06:
        return 0.0
    return max(0.0, table.y_m + 0.002 - float(hand.vertices_m[:, 1].min()))


class Picture:
    """A picture being drawn: 1/z and what is seen at each pixel, and the hands put into it."""

    def __init__(self, camera: Intrinsics) -> None:
        self.camera = camera
        self.inverse = np.zeros((camera.height, camera.width), np.float32)
        self.label = np.zeros((camera.height, camera.width), np.uint8)
        self._hands: list[tuple[str, Array, Array, Build]] = []

    def copy(self) -> Picture:
        """Another picture to draw on, of what is here so far; without hands."""
        other = Picture.__new__(Picture)
        other.camera, other.inverse, other.label, other._hands = self.camera, self.inverse.copy(), self.label.copy(), []
        return other

    def draw(self, vertices: Array, faces: Array, mark: int) -> None:
        c = self.camera
        draw(np.ascontiguousarray(vertices, np.float32), faces, c.fx, c.fy, c.cx, c.cy, mark, self.inverse, self.label)

    def in_camera(self, actor: Actor, stage: Stage, points: Array) -> Array:
        """Points (..., 3) of the person frame in the camera frame, m."""
        turn = stage.rotation @ actor.turn
        return np.asarray(points @ turn.T + stage.rotation @ (actor.place_m - stage.position_m))

    def things(self, stage: Stage) -> None:
        self.draw((stage.things.vertices - stage.position_m) @ stage.rotation.T, stage.things.faces, THINGS)

    def held(self, solid: Solid | None) -> None:
        if solid is not None:
            self.draw(solid.vertices, solid.faces, HELD)

    def person(self, actor: Actor, posed: Posed, stage: Stage) -> None:
        self.draw(self.in_camera(actor, stage, posed.body_m), person_mesh().faces, BODY)
        n_hand, n_faces = len(template().vertices_m), len(template().faces)
        for hand in posed.hands:
            vertices = self.in_camera(actor, stage, hand.vertices_m).astype(np.float32)
            faces = hand_faces(hand.side)
            mark = FIRST_HAND + len(self._hands)
            self.draw(vertices, faces[:n_faces], mark)
            self.draw(vertices, faces[n_faces:], ARM)
            joints = self.in_camera(actor, stage, hand.joints_m)
            self._hands.append((("left", "right")[hand.side], joints, vertices[:n_hand], actor.build))

    def frame(self, sensor: Sensor, settings: Settings | None, seed: int, seq: int, t_ns: int) -> DepthFrame:
        """The picture as the sensor reports it; without settings without error, but not beyond its range."""
        depth = np.zeros_like(self.inverse)
        np.divide(1, self.inverse, out=depth, where=self.inverse > 0)
        if settings is not None:
            corrupt(depth, self.camera.fx, sensor, settings, seed, depth)
        else:
            depth[(depth < sensor.min_z_m) | (depth > sensor.max_z_m)] = 0
        counts = np.rint(depth / np.float32(sensor.unit_m))
        counts[counts > 65535] = 0
        return DepthFrame("scene", seq, t_ns, counts.astype(np.uint16), sensor.unit_m, self.camera)

    def hands(self, sensor: Sensor) -> tuple[SceneHand, ...]:
        """The hands put into the picture that project into it; readings out of the sensor's range are not seen."""
        found = []
        for i, (side, joints, vertices, build) in enumerate(self._hands):
            alone, inside = self._alone(vertices)
            if not inside:
                continue
            iz = self.inverse[self.label == FIRST_HAND + i]
            visible = np.count_nonzero((iz <= 1 / sensor.min_z_m) & (iz >= 1 / sensor.max_z_m))
            found.append(
                SceneHand(side, joints, vertices.astype(float), min(1.0, visible / alone), build.alpha, build.beta)
            )
        return tuple(found)

    def _alone(self, vertices: Array) -> tuple[int, bool]:
        """How many pixels a hand has on its own, and whether it has any in the picture."""
        c = self.camera
        if vertices[:, 2].min() < 0.05:
            return 1, False
        px = c.project(vertices)
        low = np.maximum(np.floor(px.min(0)), (-c.width, -c.height)).astype(int)
        high = np.minimum(np.ceil(px.max(0)), (2 * c.width, 2 * c.height)).astype(int)
        if (high < 0).any() or low[0] >= c.width or low[1] >= c.height:
            return 1, False
        size = np.maximum(high - low + 1, 1)
        inverse, label = np.zeros((size[1], size[0]), np.float32), np.zeros((size[1], size[0]), np.uint8)
        draw(
            vertices,
            hand_faces(1)[: len(template().faces)],
            c.fx,
            c.fy,
            c.cx - low[0],
            c.cy - low[1],
            1,
            inverse,
            label,
        )
        total = int(np.count_nonzero(label))
        inside = label[max(-low[1], 0) : max(c.height - low[1], 0), max(-low[0], 0) : max(c.width - low[0], 0)].any()
        return max(total, 1), bool(inside)


def sequence(
    index: int, frames: int, fps: float = 30.0, *, stream: str = "test", noise: bool = True
) -> Iterator[Scene]:
    """Frames of one camera that stands still, one person of constant shape who moves, things that do not.

    The same for ever for an index; a longer sequence begins differently. Pictures are at most 424 px wide.
    """
    if stream not in STREAMS:
        raise ValueError(f"a sequence of stream {stream}: possible are {', '.join(STREAMS)}")
    rng = np.random.default_rng([STREAMS[stream], 0, 4, index])
    sensor = SENSORS[MODES[int(rng.integers(len(MODES)))]]
    camera = intrinsics_of(sensor, SEQUENCE_WIDTH)
    build = sample_build(rng)
    stage = sample_stage(rng, build, camera, nearest_m=sensor.min_z_m, clear_m=0.35, astray=0.35)
    settings = draw_settings(sensor, rng) if noise else None

    def settle(arms: dict[int, Arm]) -> dict[int, Arm]:
        actor = Actor(build, np.eye(3), np.zeros(3), stage.turns)
        return pose_person(actor, arms, stage, tries=8)[1]

    script = write_script(rng, build, stage.middle_m, frames / fps, settle)
    still = Picture(camera)
    still.things(stage)
    aside = {0: np.zeros(3), 1: np.zeros(3)}  # how far each hand is off its script, having met something
    last: tuple[Posed, dict[int, Arm]] | None = None
    for i in range(frames):
        t_s = i / fps
        actor = Actor(build, np.eye(3), np.zeros(3), stage.turns + sway_at(script, t_s))
        asked = {s: arm_at(script.keys[s], t_s) for s in (0, 1)}
        sent = {s: arm._replace(wrist_m=arm.wrist_m + _shorter(aside[s], BACK_M_S / fps)) for s, arm in asked.items()}
        posed, sent = pose_person(actor, sent, stage, tries=5, lift_m=BACK_M_S / fps)
        if last and max(_way(last[0].hands[s], posed.hands[s]) for s in (0, 1)) > MOST_M_S / fps:
            sent = last[1]  # what is in the way would have to be leapt over: both arms wait
            posed, _ = pose_person(actor, sent, stage, tries=0)
        last = posed, sent
        aside = {s: sent[s].wrist_m - asked[s].wrist_m for s in (0, 1)}
        picture = still.copy()
        picture.person(actor, posed, stage)
        frame = picture.frame(sensor, settings, int(rng.integers(2**31)), i, SECOND_NS + round(i * SECOND_NS / fps))
        yield Scene(frame, picture.hands(sensor))


def _way(before: Hand, after: Hand) -> float:
    """How far a hand has come, m."""
    return float(np.linalg.norm(after.joints_m.mean(0) - before.joints_m.mean(0)))


def _shorter(way: Array, by_m: float) -> Array:
    """A vector (3,) shortened by so much."""
    length = float(np.linalg.norm(way))
    return way * max(0.0, 1 - by_m / max(length, 1e-9))
