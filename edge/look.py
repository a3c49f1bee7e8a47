"""One look at a place in a frame: crop it, run the network, say whether a hand is there and which."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..hand.arrays import Array
from ..hand.crop import camera_from_crop, crop_depth
from ..hand.frames import DepthFrame, HandCrop, HandPrediction, HandRoi
from .calm import Calm
from .engines import Engine
from .reading import read

# What a crop must hold to be a hand at all, beyond which `belief` decides (`docs/tracking.md`).
MOST_ERROR_MM = 26.0
LEAST_PRESENCE = -1.5  # log-odds
LEAST_HAND_PIXELS = 20  # of 1024: the picture may end within the crop
MOST_SCORE = 0.88  # that counts: the finder is surer of some real faces than of any rendered one
BELIEF = np.array([1.186, 0.406, 0.600, -0.417, -0.116])  # of `evidence`, by `trainer/judge.py`: docs/finder.md
GAUGE_POINTS = 40
TRUST_M = 0.015  # a joint with this expected error counts a half


class Look(NamedTuple):
    """One crop seen by the network. centre_m (3,) is the mean of the joints in the camera frame."""

    crop: HandCrop
    prediction: HandPrediction
    centre_m: Array

    @property
    def error_mm(self) -> float:
        """The mean error the network expects of its vertices."""
        return 1e3 * self.prediction.mean_error_m

    @property
    def is_hand(self) -> bool:
        """Whether it may be one: the network half believes so, and expects to be about right."""
        seen = self.prediction
        there = seen.presence_logit > LEAST_PRESENCE and seen.hand_pixels >= LEAST_HAND_PIXELS
        return there and self.error_mm < MOST_ERROR_MM

    @property
    def score(self) -> float:
        """1 for a hand beyond doubt, 0 at the threshold of being none."""
        return max(0.0, 1 - self.error_mm / MOST_ERROR_MM)

    @property
    def right_votes(self) -> float:
        """Log-odds that the hand is a right one; a mirrored crop shows a left hand as a right one."""
        return self.prediction.right_logit * (-1 if self.crop.mirrored else 1)


class Eye:
    """Looks with one engine; adds what crops and network cost (us) to stages_us. crop and read are those of an
    `Arithmetic`."""

    def __init__(
        self,
        engine: Engine,
        stages_us: dict[str, float],
        crop: Callable[..., HandCrop] = crop_depth,
        read: Callable[[HandCrop, list[Array]], HandPrediction] = read,
    ) -> None:
        self.engine, self.stages_us, self._crop, self._read = engine, stages_us, crop, read

    def look(
        self, frame: DepthFrame, centre_m: Array, mirrored: bool, size: float = 1.0, calm: Calm | None = None
    ) -> Look:
        """Look at a place (3,) m; size is the hand's, 1 on average, so that the network sees one of average size. With
        calm the crop has less noise if it is of the same place as that one's last."""
        begun = time.perf_counter()
        card = self.engine.card
        crop = self._crop(frame, HandRoi("unknown", centre_m, card.cube_m * size, 1.0), card.crop_size, mirrored)
        if calm is not None:
            crop = calm(frame, crop)
        cropped = time.perf_counter()
        prediction = self._read(crop, self.engine.run(crop.image[None, None]))
        self.stages_us["crop"] += (cropped - begun) * 1e6
        self.stages_us["engine"] += (time.perf_counter() - cropped) * 1e6
        return Look(crop, prediction, camera_from_crop(crop, prediction.centre_m))


def evidence(look: Look, finder_score: float) -> Array:
    """(5,) what speaks for a hand: 1, the finder's log-odds, the network's, the error it expects, pixels on it."""
    score = min(max(finder_score, 0.01), MOST_SCORE)
    presence = min(max(look.prediction.presence_logit, -8.0), 8.0)
    return np.array(
        [1, np.log(score / (1 - score)), presence, look.error_mm / 10, np.log1p(look.prediction.hand_pixels)]
    )


def belief(look: Look, finder_score: float) -> float:
    """Log-odds that a hand is there."""
    return float(evidence(look, finder_score) @ BELIEF)


def fit_mm(points_m: Array, mesh_m: Array) -> float:
    """Median distance (mm) of up to 40 of the points (N, 3) to the nearest of every other vertex (V, 3); NaN if none.

    A cheap gauge for the loop, over-stated where triangles are large; `edge-hand eval` measures to the surface.
    """
    if len(points_m) == 0:
        return float("nan")
    centre = mesh_m[0]  # so that squares of small numbers are subtracted
    points = points_m[:: -(-len(points_m) // GAUGE_POINTS)] - centre
    lifted = np.empty((4, -(-len(mesh_m) // 2)), np.float32)  # |p - v|^2 = |p|^2 + (-2 p, 1) . (v, |v|^2)
    mesh = np.subtract(mesh_m[::2].T, centre[:, None], out=lifted[:3])
    np.add.reduce(mesh * mesh, out=lifted[3])
    toward = np.ones((len(points), 4), np.float32)
    toward[:, :3] = -2 * points
    squared = np.add.reduce(points * points, 1) + (toward @ lifted).min(1)
    squared.sort()
    least, most = squared[(len(squared) - 1) // 2], squared[len(squared) // 2]
    return 500 * (math.sqrt(max(least, 0.0)) + math.sqrt(max(most, 0.0)))


def trust(error_m: Array) -> Array:
    """Weight (21,) of joints whose expected errors are error_m: near 1 where these are small."""
    return 1 / (1 + (error_m / TRUST_M) ** 2)
