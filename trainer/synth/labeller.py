"""Labels of crops from the hand that is known to be in them: where its skin is seen, and which skin that is."""

from __future__ import annotations

import numpy as np

from ...hand.arrays import Array
from ...hand.crop import CROP_SIZE, uvd_from_points
from ...hand.template import template
from .layout import coordinates_at
from .render import rasterise
from .samples import CELLS, Sample

SKIN_M, SKIN = 0.008, 0.01  # depth this far, and this share of its distance, from the drawn mesh is of the hand


class Labeller:
    """Labels crops of one size, px, at the middles of the cells, as `samples.py` does; owns the buffers it draws in."""

    def __init__(self, image_px: int = CROP_SIZE) -> None:
        self.faces = template().faces.astype(np.int32)
        read = np.arange(CELLS) * image_px // CELLS  # as `edge/reading.py` takes the depth of cells
        self._read = np.ix_(read, read)
        self._depth = np.zeros((CELLS, CELLS), np.float32)
        self._face = np.zeros((CELLS, CELLS), np.int32)
        self._weight = np.zeros((CELLS, CELLS, 2), np.float32)

    def __call__(self, image: Array, distance_m: float, cube_m: float, joints_m: Array, vertices_m: Array) -> Sample:
        """A crop's image (S, S) with the labels of a right hand in its frame: joints (21, 3), vertices (V, 3) m."""
        slope, vertices = cube_m / 2 / distance_m, vertices_m.astype(np.float32)
        rasterise(vertices, self.faces, slope, CELLS, self._depth, self._face, self._weight)
        read = image[self._read]
        z, drawn = distance_m + read * (cube_m / 2), 1 / np.maximum(self._depth, 1e-6)
        shown = (self._face >= 0) & (read < 1) & (np.abs(z - drawn) < SKIN_M + SKIN * drawn)
        return labelled(image, joints_m, vertices_m, distance_m, cube_m, shown, self._face, self._weight)


def labelled(
    image: Array, joints: Array, vertices: Array, distance: float, cube: float, shown: Array, face: Array, weight: Array
) -> Sample:
    """A sample of a right hand: joints (21, 3), vertices (V or more, 3) m in the crop's frame; shown (32, 32) where
    face and barycentric weight (32, 32, 2) mean skin."""
    hand = vertices[: len(template().vertices_m)]
    return Sample(
        image.astype(np.float32),
        coordinates_at(face, weight, shown).astype(np.float32),
        shown.copy(),
        uvd_from_points(hand, distance, cube).astype(np.float32),
        uvd_from_points(joints, distance, cube).astype(np.float32),
        np.float32(distance),
        np.float32(cube),
        np.asarray(True),
        np.asarray(True),
    )


def without_hand(image: Array, distance: float, cube: float) -> Sample:
    """A sample that shows no hand."""
    return Sample(
        image.astype(np.float32),
        np.zeros((CELLS, CELLS, 2), np.float32),
        np.zeros((CELLS, CELLS), bool),
        np.zeros((len(template().vertices_m), 3), np.float32),
        np.zeros((21, 3), np.float32),
        np.float32(distance),
        np.float32(cube),
        np.asarray(True),
        np.asarray(False),
    )


def shown_left(sample: Sample) -> Sample:
    """The mirror image: it teaches which side a hand is of, and nothing else."""
    return sample._replace(
        image=sample.image[:, ::-1].copy(), on_hand=sample.on_hand & False, is_right=np.asarray(False)
    )
