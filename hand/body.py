"""The hand with a forearm: the template's stub prolonged by a tube, and a 17th part that lets the wrist bend."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arrays import Array
from .template import HandTemplate

RINGS = 5
RING_STEP_M = 0.045


class Body(NamedTuple):
    """vertices_m (B, 3), faces (F, 3), weights (B, 17) with the forearm last, morphs (7, B, 3), uv (B, 2, 2) with NaN
    on the forearm. The first vertices are the template's own. arm_level (B,) is 0 on the hand and counts the rings."""

    vertices_m: Array
    faces: Array
    weights: Array
    morphs_m: Array
    uv: Array
    arm_level: Array


def hand_with_arm(t: HandTemplate) -> Body:
    """Prolong the template's forearm stub by `RINGS` rings of 20 vertices, 22 cm in all."""
    stub, ring = t.vertices_all_m, t.arm_ring
    direction = stub[ring].mean(0) - t.joints_m[0]
    direction = direction / np.linalg.norm(direction)
    centre = stub[ring].mean(0)
    spokes = stub[ring] - centre
    vertices, faces = [stub], [t.faces_all]
    previous = ring
    for k in range(1, RINGS + 1):
        widen = 1 + 0.05 * k
        new = len(stub) + 20 * (k - 1) + np.arange(20)
        vertices.append(centre + widen * spokes + k * RING_STEP_M * direction)
        following = np.roll(np.arange(20), -1)
        # The ring runs along the boundary's own half-edges, so the tube's faces take them backwards.
        faces.append(np.stack([previous[following], previous, new], 1))
        faces.append(np.stack([previous[following], new, new[following]], 1))
        previous = new
    n, n_new = len(stub), 20 * RINGS
    weights = np.zeros((n + n_new, 17))
    weights[:n, :16] = t.weights_all
    weights[:n, 0] -= t.arm_weights
    weights[:n, 16] = t.arm_weights
    weights[n:, 16] = 1
    morphs = np.zeros((7, n + n_new, 3))
    morphs[:, :n] = t.morph_vertices_all_m
    morphs[:, n:] = np.tile(t.morph_vertices_all_m[:, ring], (1, RINGS, 1))
    uv = np.full((n + n_new, 2, 2), np.nan)
    uv[: len(t.uv)] = t.uv
    level = np.zeros(n + n_new)
    level[len(t.uv) : n] = 0.5
    level[n:] = 1 + np.repeat(np.arange(RINGS), 20)
    return Body(np.concatenate(vertices), np.concatenate(faces).astype(np.int32), weights, morphs, uv, level)
