"""Normals of a triangle mesh."""

from __future__ import annotations

import numpy as np

from .arrays import Array


def vertex_normals(vertices_m: Array, faces: Array) -> Array:
    """(V, 3) unit normals of vertices (V, 3): the faces' (F, 3) around each, by their area; 0 where there is none."""
    a, b, c = (vertices_m[faces[:, k]] for k in range(3))
    normals, across = np.zeros_like(vertices_m), np.cross(b - a, c - a)
    for k in range(3):
        np.add.at(normals, faces[:, k], across)
    return np.asarray(normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12))
