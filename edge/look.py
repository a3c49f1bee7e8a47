"""One look at a place in a frame: crop it, run the network, say whether a hand is there and which."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..hand.crop import camera_from_crop, crop_depth, points_from_uvd
from ..hand.frames import DepthFrame, HandCrop, HandPrediction, HandRoi
from ..hand.template import template
from .engines import Engine, predict

Array = NDArray[Any]
# What a crop must hold to be a hand at all, beyond which `belief` decides (`docs/tracking.md`).
MOST_ERROR_MM = 26.0
LEAST_PRESENCE = -1.5  # log-odds
LEAST_HAND_PIXELS = 40  # of 1024
BELIEF = np.array([1.762, 0.583, 0.365, -0.685, -0.198])  # of `evidence`; counted by `trainer/judge.py`
POINTS = 96  # of the hand's depth points, at most so many are looked at
GAUGE_POINTS = 40
TRUST_M = 0.015  # a joint with this expected error counts a half


class Look(NamedTuple):
    """One crop seen by the network. error_mm is the mean error it expects of its vertices, pixels (N,) which of every
    other pixel of the crop show the hand, centre_m (3,) the mean of the joints in the camera frame."""

    crop: HandCrop
    prediction: HandPrediction
    error_mm: float
    pixels: Array
    centre_m: Array

    @property
    def hand_pixels(self) -> int:
        return len(self.pixels)

    @property
    def is_hand(self) -> bool:
        """Whether it may be one: the network half believes so, and expects to be about right."""
        there = self.prediction.presence_logit > LEAST_PRESENCE and self.hand_pixels >= LEAST_HAND_PIXELS
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
    """Looks with one engine; adds what crops and network cost (us) to stages_us."""

    def __init__(self, engine: Engine, stages_us: dict[str, float], crop: Callable[..., HandCrop] = crop_depth) -> None:
        self.engine, self.stages_us, self._crop = engine, stages_us, crop
        self.joint_vertices = vertices_of_joints()  # (21, V)
        self._centre_weights = self.joint_vertices.mean(0).astype(np.float32)
        self._error_weights = self.joint_vertices.astype(np.float32)

    def look(self, frame: DepthFrame, centre_m: Array, mirrored: bool, size: float = 1.0) -> Look:
        """Look at a place (3,) m; size is the hand's, 1 on average, so that the network sees one of average size."""
        begun = time.perf_counter()
        card = self.engine.card
        crop = self._crop(frame, HandRoi("unknown", centre_m, card.cube_m * size, 1.0), card.crop_size, mirrored)
        cropped = time.perf_counter()
        prediction = predict(self.engine, crop)
        self.stages_us["crop"] += (cropped - begun) * 1e6
        self.stages_us["engine"] += (time.perf_counter() - cropped) * 1e6
        error_mm = float(np.add.reduce(prediction.error)) / len(prediction.error) * crop.cube_m * 500
        pixels = hand_pixels(crop, prediction)
        # The mean of the points is the point of the mean only nearly, and near enough to aim a crop.
        middle = points_from_uvd(self._centre_weights @ prediction.vertices_uvd, crop.distance_m, crop.cube_m)
        return Look(crop, prediction, error_mm, pixels, camera_from_crop(crop, middle))

    def joint_error_m(self, look: Look) -> Array:
        """The error (21,) m the network expects of the joints: that of the skin around them."""
        return self._error_weights @ look.prediction.error * (look.crop.cube_m / 2)


def evidence(look: Look, finder_score: float) -> Array:
    """(5,) what speaks for a hand: 1, the finder's log-odds, the network's, the error it expects, pixels on it."""
    score = min(max(finder_score, 0.01), 0.99)
    presence = min(max(look.prediction.presence_logit, -8.0), 8.0)
    return np.array([1, np.log(score / (1 - score)), presence, look.error_mm / 10, np.log1p(look.hand_pixels)])


def belief(look: Look, finder_score: float) -> float:
    """Log-odds that a hand is there."""
    return float(evidence(look, finder_score) @ BELIEF)


def vertices_m(look: Look) -> Array:
    """The network's vertices (V, 3) in the crop's frame."""
    return points_from_uvd(look.prediction.vertices_uvd, look.crop.distance_m, look.crop.cube_m)


def hand_pixels(crop: HandCrop, prediction: HandPrediction) -> NDArray[np.intp]:
    """(N,) which of every other pixel of the crop the network takes for hand, where there is a reading."""
    return (prediction.hand & (crop.image[::2, ::2] < 1)).ravel().nonzero()[0]


def hand_points(crop: HandCrop, pixels: NDArray[np.intp], most: int = POINTS) -> Array:
    """Up to `most` depth points (N, 3) m of the `hand_pixels`, evenly over the picture, in the crop's frame."""
    at = pixels
    if len(at) > most:
        at = at.take((np.arange(most) * ((len(at) - 1) / (most - 1))).astype(np.intp))
    uvd = np.empty((len(at), 3))
    uvd[:, :2] = _places(crop.image.shape[0]).take(at, 0)
    uvd[:, 2] = crop.image[::2, ::2].ravel().take(at)
    return points_from_uvd(uvd, crop.distance_m, crop.cube_m)


@lru_cache(4)
def _places(size: int) -> Array:
    """(size/2 squared, 2) u and v of every other pixel of a crop."""
    rows, columns = np.divmod(np.arange((size // 2) ** 2), size // 2)
    return (4 * np.stack([columns, rows], 1) + 1) / size - 1


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


@lru_cache(1)
def vertices_of_joints() -> Array:
    """(21, V) weights of the skin around each joint: its mean lies near the joint."""
    t = template()
    squared = ((t.joints_m[:, None] - t.vertices_m[None]) ** 2).sum(-1)
    weight = np.exp(-squared / (2 * 0.012**2)) * t.area
    return weight / weight.sum(1, keepdims=True)
