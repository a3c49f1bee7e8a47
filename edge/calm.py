"""The noise of a place that is looked at again: readings that hardly changed are averaged, gaps of one frame filled.

A hand that rests is looked at in one place (`Track.aim`), so its crops can be compared pixel by pixel, as frames are by
librealsense's temporal filter. What changed by more than noise, as where a finger moved, is taken as it is now.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..hand.arrays import Array
from ..hand.crop import BACKGROUND, camera_from_crop, points_from_uvd
from ..hand.frames import DepthFrame, HandCrop

NOISE_M = 0.006  # a reading that changed by less may not have changed
SHARE = 0.5  # of a new reading in what is kept
MOST_FILLED = 0.25  # of what was read before
YOUNG_NS = 150_000_000  # a crop that is older says nothing of this one


class Calm:
    """What one place looked like, from frame to frame."""

    def __init__(self) -> None:
        self._was: tuple[HandCrop, int] | None = None  # averaged, its gaps left open; and when

    def __call__(self, frame: DepthFrame, crop: HandCrop) -> HandCrop:
        """The crop with less noise, if the last one was of this very place and young."""
        was, self._was = self._was, (crop, frame.t_ns)
        if was is None or not 0 < frame.t_ns - was[1] < YOUNG_NS or not _same_place(was[0], crop):
            return crop
        before, image = was[0].image, crop.image
        read = before < BACKGROUND
        change = image - before
        change *= (np.abs(change) < NOISE_M / (crop.cube_m / 2)) & read & (image < BACKGROUND)
        image = image - (1 - SHARE) * change
        self._was = replace(crop, image=image), frame.t_ns
        gone = np.flatnonzero((image == BACKGROUND) & read)
        gaps = gone[_unread(frame, crop, gone)]
        if len(gaps) < MOST_FILLED * np.count_nonzero(read):  # else the sensor hardly sees what is there
            image = image.copy()
            image.put(gaps, before.take(gaps))
        return replace(crop, image=image)


def _same_place(a: HandCrop, b: HandCrop) -> bool:
    alike = (a.distance_m, a.cube_m, a.mirrored) == (b.distance_m, b.cube_m, b.mirrored)
    return alike and np.array_equal(a.R_camera_crop, b.R_camera_crop)


def _unread(frame: DepthFrame, crop: HandCrop, pixels: Array) -> Array:
    """Whether (N,) the sensor read nothing at pixels (N,) of a crop, in which the background looks the same."""
    size = crop.image.shape[0]
    uvd = np.zeros((len(pixels), 3))
    uvd[:, 1], uvd[:, 0] = np.divmod(pixels, size)
    uvd[:, :2] = (2 * uvd[:, :2] + 1) / size - 1
    at = frame.intrinsics.project(camera_from_crop(crop, points_from_uvd(uvd, crop.distance_m, crop.cube_m)))
    column, row = np.rint(at).astype(np.intp).T
    height, width = frame.depth.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    counts = frame.depth.take(np.where(inside, row * width + column, 0))
    return np.asarray(inside & (counts == 0))
