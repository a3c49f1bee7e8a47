"""The noise of a place that is looked at again: readings that hardly changed are averaged.

A hand that rests is looked at in one place (`Track.aim`), so that its crops can be compared pixel by pixel while it is
still (`Track.is_still`), as frames are by librealsense's temporal filter. What changed by more than noise, as where a
finger moved, is taken as it is now.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..hand.crop import BACKGROUND
from ..hand.frames import DepthFrame, HandCrop

NOISE_M = 0.006  # a reading that changed by less may not have changed
SHARE = 0.35  # of a new reading in what is kept
YOUNG_NS = 150_000_000  # a crop that is older says nothing of this one

Average = Callable[[NDArray[np.float32], NDArray[np.float32], float], NDArray[np.float32]]


def calmed(image: NDArray[np.float32], before: NDArray[np.float32], noise: float) -> NDArray[np.float32]:
    """A crop's image (S, S) with those readings averaged with the ones before that changed by less than noise."""
    change = image - before
    change *= (np.abs(change) < noise) & (np.maximum(before, image) < BACKGROUND)
    change *= 1 - SHARE
    return np.asarray(image - change)


class Calm:
    """What one place looked like, from frame to frame. average is `calmed`, or its twin of an `Arithmetic`."""

    def __init__(self, average: Average = calmed) -> None:
        self._average = average
        self._was: tuple[HandCrop, int] | None = None  # the last one, and when

    def __call__(self, frame: DepthFrame, crop: HandCrop) -> HandCrop:
        """The crop with less noise, if the last one was of this very place and young."""
        was, self._was = self._was, (crop, frame.t_ns)
        if was is None or not 0 < frame.t_ns - was[1] < YOUNG_NS or not _same_place(was[0], crop):
            return crop
        image = self._average(crop.image, was[0].image, NOISE_M / (crop.cube_m / 2))
        calm = HandCrop(image, crop.R_camera_crop, crop.distance_m, crop.cube_m, crop.mirrored)
        self._was = calm, frame.t_ns
        return calm


def _same_place(a: HandCrop, b: HandCrop) -> bool:
    alike = (a.distance_m, a.cube_m, a.mirrored, a.image.shape) == (b.distance_m, b.cube_m, b.mirrored, b.image.shape)
    return alike and a.R_camera_crop.tobytes() == b.R_camera_crop.tobytes()
