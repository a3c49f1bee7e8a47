"""Whether a network makes hands of hands: a look at what it gives for the probe crops, without knowing better."""

from __future__ import annotations

import numpy as np

from ..engines import Engine
from .probe import DISTANCE_M, crops, outputs

EXTENT_M = (0.04, 0.30)  # of a hand's mesh, its longest side
OFF_M = 0.05  # from the middle of the crop, where the hand is
MOST_ODD = 4  # of the crops may look otherwise: some show a hand end on
PRESENCE = 4  # which output of a Dual Grid Net says whether a hand is there


def implausible(engine: Engine) -> str:
    """What is odd about an engine's outputs, in a few words; nothing if they look like hands."""
    images = crops(engine.card.crop_size)
    odd = missed = 0
    for image in images:
        given = outputs(engine, image)
        if not all(np.isfinite(array).all() for array in given):
            return "it gives what is not finite"
        if "vertices_uvd" not in engine.card.outputs:
            continue
        vertices = given[0][0]  # (V, 3) m
        off_m = np.linalg.norm(vertices.mean(0) - [0, 0, DISTANCE_M])
        odd += not (EXTENT_M[0] < np.ptp(vertices, axis=0).max() < EXTENT_M[1] and off_m < OFF_M)
        missed += float(given[PRESENCE][0]) < 0
    if odd > MOST_ODD:
        return f"it makes no hand of {odd} of {len(images)} pictures of hands"
    if missed > MOST_ODD:
        return f"it sees no hand in {missed} of {len(images)} pictures of hands"
    return ""
