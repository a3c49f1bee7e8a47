"""What a Dual Grid Net's answer says of the hand in a crop: its mesh, how sure that is, the depth points on it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..hand.arrays import Array
from ..hand.crop import points_from_uvd
from ..hand.frames import HandCrop, HandPrediction
from ..hand.template import template
from .engines import Engine

POINTS = 96  # of the hand's depth points, at most so many are looked at
MOST_LOG_ERROR = 2.0
LEAST_WEIGHT = 0.01  # of a joint's greatest: skin that counts for less is left out


def predict(engine: Engine, crop: HandCrop) -> HandPrediction:
    """Run a Dual Grid Net on one crop."""
    return read(crop, engine.run(crop.image[None, None]))


def read(crop: HandCrop, outputs: list[Array]) -> HandPrediction:
    """The network's outputs for a crop, in the order of its card, as metres in the crop's frame."""
    uvd, log_error, hand_logit, right_logit, presence_logit = outputs
    half = crop.cube_m / 2
    error_m = np.exp(np.minimum(log_error[0], MOST_LOG_ERROR)) * np.float32(half)
    weights, middle_weights = joint_weights()
    # The mean of the points is the point of the mean only nearly, and near enough to aim a crop.
    middle = points_from_uvd((middle_weights @ uvd[0]).astype(np.float64), crop.distance_m, crop.cube_m)
    taken = crop.image[::2, ::2].ravel()
    pixels = ((hand_logit[0] > 0) & (taken < 1)).nonzero()[0]  # every other pixel of the crop, where there is a reading
    return HandPrediction(
        vertices_m=points_from_uvd(uvd[0], crop.distance_m, crop.cube_m),
        mean_error_m=float(np.add.reduce(error_m)) / len(error_m),
        error_m=error_m,
        joint_error_m=weights @ error_m,
        centre_m=middle,
        points_m=_points(crop, taken, pixels),
        hand_pixels=len(pixels),
        right_logit=float(right_logit[0]),
        presence_logit=float(presence_logit[0]),
    )


def _points(crop: HandCrop, taken: Array, pixels: Array) -> Array:
    """Up to `POINTS` of the pixels, evenly over the picture, as points (N, 3) m."""
    if len(pixels) > POINTS:
        pixels = pixels.take(np.arange(POINTS) * (len(pixels) - 1) // (POINTS - 1))
    uvd = np.empty((len(pixels), 3))
    uvd[:, :2] = places(crop.image.shape[0]).take(pixels, 0)
    uvd[:, 2] = taken.take(pixels)
    return points_from_uvd(uvd, crop.distance_m, crop.cube_m)


@lru_cache(4)
def places(size: int) -> Array:
    """(size/2 squared, 2) u and v of every other pixel of a crop."""
    rows, columns = np.divmod(np.arange((size // 2) ** 2), size // 2)
    return (4 * np.stack([columns, rows], 1) + 1) / size - 1


@lru_cache(1)
def joint_weights() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(21, V) of the skin around each joint: its mean lies near the joint, and its error is the joint's; and (V,) of
    all joints together."""
    t = template()
    squared = ((t.joints_m[:, None] - t.vertices_m[None]) ** 2).sum(-1)
    weight = np.exp(-squared / (2 * 0.012**2)) * t.area
    weight[weight < LEAST_WEIGHT * weight.max(1, keepdims=True)] = 0
    weight /= weight.sum(1, keepdims=True)
    return weight.astype(np.float32), weight.mean(0).astype(np.float32)
