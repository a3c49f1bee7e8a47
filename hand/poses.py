"""Named hand shapes as joint angles: what people make with their hands."""

from __future__ import annotations

import numpy as np

from .arrays import Array


def _pose(thumb: tuple[float, ...], *fingers: tuple[float, ...]) -> Array:
    """Degrees: thumb (cmc flex, cmc abd, mcp, ip), then (mcp, abd, pip, dip) for index, middle, ring, little."""
    return np.radians(np.concatenate([thumb, *fingers]))


_STRAIGHT, _FIST = (2, 0, 2, 2), (72, 0, 94, 42)
_HALF = (45, 0, 55, 35)
# 20 joint angles a shape, rad, in the order of `skeleton.ANGLE_NAMES`. The trainer draws from this table by number, so
# any change to it changes what its seeds mean.
POSES: dict[str, Array] = {
    "open": _pose((-8, 10, 4, 4), (0, 10, 0, 0), (0, 2, 0, 0), (0, -5, 0, 0), (0, -12, 0, 0)),
    "spread": _pose((-12, 24, 0, 0), (-5, 18, 0, 0), (-5, 3, 0, 0), (-5, -10, 0, 0), (-5, -20, 0, 0)),
    "flat": _pose((0, -12, 10, 6), (4, -6, 3, 3), (4, 0, 3, 3), (4, 5, 3, 3), (4, 9, 3, 3)),
    "relaxed": _pose((4, 4, 16, 16), (20, 2, 22, 12), (24, 0, 26, 14), (28, -2, 28, 16), (30, -4, 28, 16)),
    "fist": _pose((22, 8, 38, 52), _FIST, _FIST, _FIST, _FIST),
    "loose_fist": _pose((16, 8, 30, 30), (68, 0, 80, 45), (70, 0, 84, 48), (70, 0, 84, 48), (68, 0, 80, 45)),
    "point": _pose((22, 8, 38, 52), _STRAIGHT, _FIST, _FIST, _FIST),
    "gun": _pose((-10, 18, 0, 0), _STRAIGHT, _FIST, _FIST, _FIST),
    "victory": _pose((26, 12, 38, 50), (0, 12, 0, 0), (0, -10, 0, 0), _FIST, _FIST),
    "three": _pose((26, 12, 38, 55), (0, 10, 0, 0), (0, 0, 0, 0), (0, -10, 0, 0), _FIST),
    "four": _pose((30, 0, 40, 60), (0, 9, 0, 0), (0, 2, 0, 0), (0, -5, 0, 0), (0, -12, 0, 0)),
    "thumb_up": _pose((-14, 22, -5, -5), _FIST, _FIST, _FIST, _FIST),
    "shaka": _pose((-14, 22, -5, -5), _FIST, _FIST, _FIST, (0, -16, 0, 0)),
    "horns": _pose((24, 8, 38, 50), _STRAIGHT, _FIST, _FIST, (0, -8, 0, 0)),
    "little": _pose((24, 8, 38, 50), _FIST, _FIST, _FIST, (0, -4, 0, 0)),
    "pinch": _pose((26, 16, 14, 18), (54, -3, 50, 28), (30, 0, 22, 14), (24, -3, 18, 10), (18, -6, 14, 8)),
    "pinch_middle": _pose((32, 10, 18, 20), (20, 4, 16, 8), (58, 0, 52, 28), (26, -3, 20, 10), (18, -6, 14, 8)),
    "pinch_ring": _pose((36, 2, 22, 24), (10, 6, 10, 6), (18, 2, 16, 10), (62, 0, 56, 28), (22, -6, 18, 10)),
    "tripod": _pose((28, 14, 16, 20), (56, -4, 46, 24), (60, 2, 46, 24), (66, 0, 70, 40), (66, 0, 72, 40)),
    "claw": _pose((4, 16, 24, 40), (0, 8, 70, 50), (0, 2, 70, 50), (0, -4, 70, 50), (0, -10, 70, 50)),
    "hook": _pose((4, 0, 20, 20), (4, 0, 95, 60), (4, 0, 98, 62), (4, 0, 98, 62), (4, 0, 95, 60)),
    "tabletop": _pose((4, 6, 10, 8), (80, 0, 5, 4), (82, 0, 5, 4), (82, 0, 5, 4), (80, 0, 5, 4)),
    "grasp": _pose((12, 22, 14, 26), _HALF, _HALF, _HALF, _HALF),
    "grasp_wide": _pose((4, 28, 8, 20), (26, 8, 32, 22), (26, 1, 32, 22), (26, -5, 32, 22), (26, -12, 34, 22)),
    "ok": _pose((28, 16, 16, 22), (56, -4, 52, 30), (8, 2, 8, 6), (2, -4, 4, 4), (-2, -12, 2, 2)),
    "point_bent": _pose((22, 8, 34, 44), (20, 0, 60, 40), _FIST, _FIST, _FIST),
}
