"""Fixed pictures of a rendered hand, to compare two engines that should give the same, on a device and without data."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...hand.crop import BACKGROUND, points_from_uvd, uvd_from_points
from ...hand.kinematics import pose_hand
from ...hand.skeleton import ANGLE_LIMITS_RAD
from ...hand.template import template
from ..engines import Engine
from ..finder import LEAST_SCORE, PICTURE, Maps, network_input, proposals
from .card import ModelCard

Image = NDArray[np.float32]
DISTANCE_M, CUBE_M = 0.5, 0.25
CROPS = 16
WALL_M = 1.2


class Off(NamedTuple):
    """How far two engines' vertices, or the places that two finders propose first, are from each other."""

    mean_mm: float
    max_mm: float


def images(card: ModelCard, n: int = CROPS) -> list[Image]:
    """What a network takes: n crops, or n pictures for a finder; always the same."""
    return [_picture(points) for points in hands(n)] if card.kind == "finder" else crops(card.crop_size, n)


def crops(size: int, n: int = CROPS) -> list[Image]:
    """n crops (1, 1, size, size) of `hands`."""
    return [draw(points, size) for points in hands(n)]


def hands(n: int) -> list[Any]:
    """The template's vertices (V, 3) m in n random poses within its limits, always the same."""
    t, rng = template(), np.random.default_rng(20)
    low, high = ANGLE_LIMITS_RAD.T
    theta = np.zeros((n, 26))
    theta[:, 3:6] = rng.uniform(-1.5, 1.5, (n, 3))
    theta[:, 6:] = low + (high - low) * rng.uniform(0.2, 0.8, (n, 20))
    vertices = pose_hand(t, theta, np.ones((n, 6)), np.zeros((n, 7)))[1]
    return list(vertices + np.array([0, 0, DISTANCE_M]) - vertices.mean(1, keepdims=True))


def _picture(points_m: Any) -> Image:
    """Points (V, 3) m before a wall, as the finder's network sees them."""
    z = np.full((PICTURE.height, PICTURE.width), WALL_M)
    column, row = np.rint(PICTURE.project(points_m)).astype(int).T
    np.minimum.at(z, (row, column), points_m[:, 2])
    return network_input(z)


def draw(points_m: Any, size: int) -> Image:
    """Points (V, 3) m as a crop (1, 1, size, size): each covers its pixel and the next ones, the nearest wins."""
    uvd = uvd_from_points(points_m, DISTANCE_M, CUBE_M)
    uvd = uvd[(np.abs(uvd) < 1).all(-1)]
    image = np.full((size + 1, size + 1), BACKGROUND)
    column, row = ((uvd[:, :2] + 1) / 2 * size).astype(int).T
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        np.minimum.at(image, (row + down, column + right), uvd[:, 2].astype(np.float32))
    return image[None, None, :size, :size].copy()


def compare(engine: Engine, reference: Engine, images: list[Image]) -> Off:
    """Distance between what two engines make of the images. What is neither Dual Grid Net nor finder is compared number
    by number, as if its outputs were in half cubes. Not finite: infinitely far."""
    off = []
    for image in images:
        got, expected = (outputs(which, image) for which in (engine, reference))
        if not all(np.isfinite(array).all() for array in got):
            return Off(np.inf, np.inf)
        off.append(np.linalg.norm(got[0] - expected[0], axis=-1).ravel() * 1e3)
    every = np.concatenate(off)
    return Off(float(every.mean()), float(every.max()))


def outputs(engine: Engine, image: Image) -> list[Any]:
    """An engine's outputs, first of all vertices in metres, or the place that a finder proposes first."""
    first, *others = engine.run(image)
    if engine.card.kind == "finder":
        offset, log_z, right = others
        best = proposals(Maps(first[0, 0], offset[0], log_z[0, 0], right[0, 0]), LEAST_SCORE, 1)
        return [np.array([roi.centre_m for roi in best] or np.zeros((1, 3))), first, *others]
    if "vertices_uvd" in engine.card.outputs:
        return [points_from_uvd(first.astype(np.float64), DISTANCE_M, CUBE_M), *others]
    flat = np.concatenate([array.ravel() for array in (first, *others)]).astype(np.float64)
    return [flat[:, None] * CUBE_M / 2]
