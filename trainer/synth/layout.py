"""The flat map of the hand's skin (`hand/template.py`): where on it a place in a triangle is."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...hand.arrays import Array
from ...hand.template import HandTemplate, template


def coordinates_at(face: Array, weight: Array, shown: Array) -> Array:
    """Layout coordinates (..., 2) in [0, 1] of places in triangles face (...), of first two barycentric weights
    (..., 2), as `render.rasterise` draws them; 0 where shown (...) is false."""
    corner = _template_face_uv()[np.where(shown, face, 0)]  # (..., 3, 2)
    bary = np.concatenate([weight, 1 - weight.sum(-1, keepdims=True)], -1)
    return np.where(shown[..., None], (corner * bary[..., None]).sum(-2), 0)


def face_uv(t: HandTemplate) -> Array:
    """Layout coordinates (F, 3, 2) of the triangles' corners. A vertex on the seam has two: of the eight ways to put a
    triangle together the one with the shortest outline is its own."""
    corner = t.uv[t.faces]  # (F, 3 corners, 2 sides, 2)
    ways = np.stack([corner[:, range(3), list(way)] for way in np.ndindex(2, 2, 2)], 1)  # (F, 8, 3, 2)
    outline = np.linalg.norm(ways - np.roll(ways, 1, 2), axis=-1).sum(-1)  # (F, 8)
    return np.asarray(ways[range(len(ways)), outline.argmin(1)])


@lru_cache(maxsize=1)
def _template_face_uv() -> Array:
    return face_uv(template())
