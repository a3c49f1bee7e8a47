"""Crops of rendered rooms as the tracker looks at them: at hands, and at what is taken for hands.

Lone hands (`samples.py`) teach the mesh. What a knee, a face or a chair arm looks like, and which of a person's hands
one is, is seen in rooms (`rooms.py`). A room takes as long as twenty lone hands, so several crops are cut from each: at
its hands, and as many at the finder's mistakes or, where it makes none, at any surface.
"""

from __future__ import annotations

import numpy as np

from ...edge.finder import open_finder
from ...hand.arrays import Array
from ...hand.crop import CROP_SIZE, MIRROR, crop_depth
from ...hand.frames import DepthFrame, HandRoi
from .labeller import Labeller, shown_left, without_hand
from .rooms import Scene, SceneGenerator, SceneHand
from .samples import CUBE_M, FAR_M, NEAR_M, STREAMS, Sample, off_centre, stacked

PER_ROOM = 4  # crops, every other one of a hand, if the room has any
SHARE_WITHOUT = 0.665  # of the crops show no hand, counted
APART = 1 << 20  # between these seeds and those of the rooms that the finder and `judge.py` know
SEEN, HARDLY_SEEN = 0.25, 0.02  # a hand of which less is seen is not asked for; of which less than that, is not there
AWAY_M = 0.12  # from a hand that can be seen, for a place to show none
TRIES = 20  # at a surface with no hand near


class RoomCrops:
    """A sample is the same as long as the finder is; left_share of the hands are mirrored into left ones."""

    def __init__(self, stream: str, seed: int = 0, left_share: float = 0.0, *, image_px: int = CROP_SIZE) -> None:
        self.rooms = SceneGenerator(stream, APART + seed)
        self.key, self.left_share, self.image_px = (STREAMS[stream], APART + seed), left_share, image_px
        self.finder = open_finder()
        self.label = Labeller(image_px)
        self._room: tuple[int, Scene, list[SceneHand], list[Array]] | None = None

    def batch(self, start: int, n: int) -> Sample:
        """Samples start .. start + n - 1, stacked."""
        return stacked([self.sample(i) for i in range(start, start + n)])

    def sample(self, index: int) -> Sample:
        """One crop of a room, its labels those of `Generator.sample`."""
        number, place = divmod(index, PER_ROOM)
        if self._room is None or self._room[0] != number:
            scene = self.rooms.scene(number)
            hands = [h for h in scene.hands if h.seen >= SEEN and NEAR_M / 2 < h.joints_m[:, 2].mean() < FAR_M]
            self._room = number, scene, hands, self._mistakes(scene)
        _, scene, hands, mistakes = self._room
        rng = np.random.default_rng([*self.key, 5, index])
        if hands and place % 2 == 0:
            return self._of_hand(rng, scene.frame, hands[place // 2 % len(hands)])
        taken = place // 2 if hands else place
        if taken < len(mistakes):
            aimed = mistakes[taken] + off_centre(rng)
            if away(scene, aimed):
                return self._of_none(rng, scene.frame, aimed)
        return self._of_none(rng, scene.frame, somewhere(rng, scene))

    def _mistakes(self, scene: Scene) -> list[Array]:
        """Where the finder proposes a hand and none is."""
        return [r.centre_m for r in self.finder(scene.frame) if r.centre_m[2] > NEAR_M / 2 and away(scene, r.centre_m)]

    def _of_hand(self, rng: np.random.Generator, frame: DepthFrame, hand: SceneHand) -> Sample:
        left = hand.side == "left"
        roi = HandRoi("unknown", hand.joints_m.mean(0) + off_centre(rng), CUBE_M, 1.0)
        crop = crop_depth(frame, roi, self.image_px, mirrored=left)
        turn = crop.R_camera_crop * MIRROR if left else crop.R_camera_crop
        joints, vertices = hand.joints_m @ turn, hand.vertices_m @ turn
        sample = self.label(crop.image, crop.distance_m, CUBE_M, joints, vertices)
        return shown_left(sample) if rng.random() < self.left_share else sample

    def _of_none(self, rng: np.random.Generator, frame: DepthFrame, centre_m: Array) -> Sample:
        roi = HandRoi("unknown", centre_m, CUBE_M, 1.0)
        crop = crop_depth(frame, roi, self.image_px, mirrored=bool(rng.random() < 0.5))
        return without_hand(crop.image, crop.distance_m, CUBE_M)


def away(scene: Scene, centre_m: Array) -> bool:
    """Whether no hand that can be seen is near a place (3,) m."""
    return all(
        h.seen <= HARDLY_SEEN or np.linalg.norm(h.joints_m.mean(0) - centre_m) > AWAY_M for h in scene.hands
    )  # fmt: skip


def somewhere(rng: np.random.Generator, scene: Scene) -> Array:
    """A place (3,) m just behind some reading of a frame, away from hands; any such place if no reading will do."""
    frame = scene.frame
    z = frame.depth * frame.depth_unit_m
    at = np.flatnonzero((z > NEAR_M) & (z < FAR_M))
    for pixel in rng.choice(at, TRIES) if len(at) else ():
        row, column = divmod(int(pixel), frame.intrinsics.width)
        deeper = z[row, column] + rng.uniform(0, 0.04)
        place = frame.intrinsics.deproject(np.array([[column, row]], float), np.array([deeper]))[0]
        if away(scene, place):
            return np.asarray(place)
    while True:
        place = np.array([*rng.normal(0, 0.1, 2), rng.uniform(NEAR_M, FAR_M)])
        if away(scene, place):
            return place
