"""Scenes of one hand or two on bare forearms, nobody behind them: before a wall, over a table or before nothing.

Beside the people of `rooms.py`, so that the finder does not need a body to know a hand: a camera on a robot, or one
that looks past the person, shows no more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...hand import se3
from ...hand.body import hand_with_arm
from ...hand.camera import Intrinsics
from ...hand.crop import MIRROR
from ...hand.kinematics import Shape
from ...hand.template import template
from . import scene
from .poses import sample_angles, sample_shape, sample_view
from .rooms import ARM, FIRST_HAND, MODES, SECOND_NS, THINGS, Picture, Scene, SceneHand, intrinsics_of
from .samples import STREAMS
from .scene import BOX, CYLINDER
from .sensors import SENSORS, draw_settings

Array = NDArray[np.float64]
NEAR_M, FAR_M = 0.2, 1.3


class LoneHands:
    """Draws scenes, as `rooms.SceneGenerator` does; scene(i) depends on stream, seed and i alone."""

    def __init__(self, stream: str = "train", seed: int = 0, *, width: int | None = None) -> None:
        if stream not in STREAMS:
            raise ValueError(f"scenes of stream {stream}: possible are {', '.join(STREAMS)}")
        self.key, self.width = (STREAMS[stream], seed), width
        self.body = hand_with_arm(template())

    def scene(self, index: int) -> Scene:
        rng = np.random.default_rng([*self.key, 4, index])
        sensor = SENSORS[MODES[int(rng.integers(len(MODES)))]]
        camera = intrinsics_of(sensor, self.width)
        picture = Picture(camera)
        z = float(np.exp(rng.uniform(np.log(max(NEAR_M, sensor.min_z_m + 0.05)), np.log(FAR_M))))
        draw_surroundings(rng, picture, z)
        hands: list[SceneHand] = []
        for k in range(rng.choice([1, 2], p=[0.7, 0.3])):
            away = z if k == 0 else z * rng.uniform(0.8, 1.25)
            for _ in range(5):
                centre = camera.deproject(
                    rng.uniform((0.08, 0.08), (0.92, 0.92)) * (camera.width, camera.height), np.array(away)
                )
                if all(np.linalg.norm(h.joints_m.mean(0) - centre) > 0.15 for h in hands):
                    hands.append(self._hand(rng, picture, centre, FIRST_HAND + k))
                    break
        labelled = tuple(
            hand._replace(seen=seen(camera, picture.label == FIRST_HAND + k, hand.vertices_m))
            for k, hand in enumerate(hands)
        )
        settings, seed = draw_settings(sensor, rng), int(rng.integers(2**31))
        return Scene(picture.frame(sensor, settings, seed, index, (index + 1) * SECOND_NS), labelled)

    def _hand(self, rng: np.random.Generator, picture: Picture, centre: Array, mark: int) -> SceneHand:
        """Draw a hand whose joints' mean lies at centre (3,) m; its share that is seen is not known yet."""
        t, body = template(), self.body
        angles, shape = sample_angles(t, rng), Shape(*sample_shape(rng))
        joints, vertices = scene.hand_on_arm(rng, body, angles, shape)
        is_right = rng.random() < 0.5
        mirror = np.ones(3) if is_right else MIRROR
        middle, rotation = joints.mean(0), sample_view(rng)
        joints, vertices = (((x - middle) @ rotation.T) * mirror + centre for x in (joints, vertices))
        picture.draw(vertices, body.faces[: len(t.faces)], mark)
        picture.draw(vertices, body.faces[len(t.faces) :], ARM)
        if rng.random() < 0.15:
            picture.held(scene.held_object(rng, joints))
        return SceneHand("right" if is_right else "left", joints, vertices[: len(t.vertices_m)], 0.0, *shape)


def draw_surroundings(rng: np.random.Generator, picture: Picture, z: float) -> None:
    """Nothing, a wall, or a table and things on it, behind what is z m away."""
    kind = rng.random()
    if kind < 0.3:
        return
    if kind < 0.7:
        behind, tilt = z + rng.uniform(0.15, 1.5), list(rng.uniform(-0.35, 0.35, 2))
        roll, half = rng.uniform(-np.pi, np.pi), np.array([3.0, 3.0, 0.02])
    else:
        behind = z + rng.uniform(0.06, 0.4)
        tilt = [rng.choice([0.0, 0.6, 1.0]) + rng.normal(0, 0.15), rng.normal(0, 0.1)]
        roll, half = rng.normal(0, 0.2), np.array([*rng.uniform(0.3, 1.2, 2), 0.02])
    turn = se3.so3_exp(np.array([*tilt, roll]))
    picture.draw(*scene.place(BOX, turn, half, np.array([*rng.normal(0, 0.1, 2), behind])), THINGS)
    for _ in range(rng.integers(0, 6)):
        at = np.array([*rng.uniform(-0.7, 0.7, 2) * behind, behind - rng.uniform(0.0, 0.15)])
        solid = BOX if rng.random() < 0.5 else CYLINDER
        size = rng.uniform(0.01, 0.12, 3)
        picture.draw(*scene.place(solid, scene.random_rotation(rng), size, at), THINGS)


def seen(camera: Intrinsics, visible: NDArray[np.bool_], vertices: Array) -> float:
    """The share of the pixels a hand would have alone in a picture without borders that it has."""
    w, h = camera.width, camera.height
    wide = Picture(Intrinsics(3 * w, 3 * h, camera.fx, camera.fy, camera.cx + w, camera.cy + h))
    wide.draw(vertices, template().faces, FIRST_HAND)
    alone = int(np.count_nonzero(wide.label))
    return min(1.0, int(np.count_nonzero(visible)) / max(1, alone))
