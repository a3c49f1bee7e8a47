"""Random hands: joint angles inside the limits and without fingers passing through each other, shapes, views.

Every draw comes from the generator given, so a sample depends on its seed alone.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...hand.arrays import Array
from ...hand.kinematics import clamp_angles, forward_kinematics
from ...hand.poses import POSES
from ...hand.skeleton import ANGLE_LIMITS_RAD
from ...hand.template import HandTemplate, template
from .touches import touches

MCP, ABD, PIP, DIP = (np.arange(4, 20, 4) + k for k in range(4))  # of index, middle, ring, little


def _degrees(*joints: tuple[float, ...]) -> Array:
    return np.radians(np.concatenate(joints))


_UP, _DOWN, _OVER = (2, 0, 2, 2), (72, 0, 96, 48), (26, 12, 38, 50)
# Shapes that `hand.poses` lacks, 20 joint angles (rad) in its order.
SHAPES: dict[str, Array] = {
    "crossed": _degrees(_OVER, (12, -21, 10, 6), (-5, 19, 0, 0), _DOWN, _DOWN),
    "crossed_over": _degrees(_OVER, (-4, -21, 5, 3), (14, 21, 2, 2), _DOWN, _DOWN),
    "ily": _degrees((-14, 22, -5, -5), _UP, _DOWN, _DOWN, (0, -12, 0, 0)),
    "three_thumb": _degrees((-12, 22, 0, 0), (0, 10, 0, 0), (0, -6, 0, 0), _DOWN, _DOWN),
    "spock": _degrees((-10, 20, 0, 0), (0, -1, 0, 0), (0, 6, 0, 0), (0, -11, 0, 0), (0, -6, 0, 0)),
    "tucked": _degrees((45, -16, 40, 62), (2, -4, 2, 2), (2, 0, 2, 2), (2, 4, 2, 2), (2, 6, 2, 2)),
    "across": _degrees((45, -25, 30, 25), (2, 4, 2, 2), (2, 0, 2, 2), (2, -2, 2, 2), (2, -6, 2, 2)),
    "flat_bent": _degrees((0, -12, 10, 6), *[(62, 0, 6, 4)] * 4),
    "key": _degrees((10, -18, 12, 20), (50, 0, 62, 30), (62, 0, 80, 40), (68, 0, 88, 42), (70, 0, 88, 42)),
    "cylinder": _degrees((30, 20, 20, 30), (50, 4, 45, 25), (52, 0, 48, 26), (55, -4, 50, 27), (58, -8, 48, 26)),
    "sphere": _degrees((14, 26, 20, 30), (38, 14, 38, 24), (38, 2, 40, 24), (38, -9, 40, 24), (36, -18, 40, 24)),
    "drooped": _degrees((4, 4, 16, 16), (42, 0, 12, 8), (48, 0, 14, 8), (50, -2, 16, 8), (48, -4, 14, 8)),
    "loose_point": _degrees((2, -4, 10, 12), (-8, 2, 12, 6), (30, 0, 62, 34), (44, 0, 68, 38), (56, 0, 64, 36)),
    "side_thumb": _degrees((2, -14, 10, 4), (60, 0, 90, 45), (62, 0, 94, 46), (64, 0, 94, 46), (64, 0, 88, 44)),
    "bent_back": _degrees((-16, 20, -10, -15), *[(-20, x, -4, 0) for x in (8, 1, -5, -12)]),
}
_NAMED = np.stack([*POSES.values(), *SHAPES.values()])
# What a finger does: degrees of knuckle and middle joint.
_STATES = np.array([(3, 1), (-14, 2), (72, 96), (20, 22), (40, 45), (4, 92), (70, 6), (45, 98), (28, 68)])
# Which fingers go together: index; middle; little; index and middle; little and index; all but the ring finger.
_USUAL = np.array([(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 1), (1, 1, 0, 0), (1, 0, 0, 1), (1, 1, 0, 1)])
_SPREAD = np.array([17, 3, -10, -20])  # degrees of abduction of a spread hand
_RANK = np.array([-1.5, -0.5, 0.5, 1.5])
# How far the flexion of the neighbours drags a finger along: ring most, index least.
_DRAG = np.array([[0, 0.1, 0, 0], [0.08, 0, 0.2, 0], [0, 0.22, 0, 0.18], [0, 0, 0.28, 0]])
_DRAG_SUM = _DRAG.sum(1)
_LOOSE = np.array([1.5, 3.0, 7.0])  # degrees, how far joints stray from what the hand does
_LOW, _HIGH = ANGLE_LIMITS_RAD.T.copy()
# The thumb's way from beside the palm to opposite the fingers, and how far it strays from it.
_BESIDE, _OPPOSED, _STRAY = (np.radians(x) for x in ([-2, -14, 8, 12], [26, 18, 18, 30], [7, 8, 13, 18]))
_LENGTHS_M, _ALPHA_BOUNDS, _SIZE = (0.150, 0.216), (0.84, 1.18), 2
_SHAPE_STRAY = np.array([0.3, 0.6, 0, 0.35, 0.6, 0.35, 0.6])  # length, mass, size, palm and finger length, tips
_BIT, _ALWAYS = np.arange(4), np.ones(4, bool)
# Half the thickness of a finger at its bones, for the penetration test (m): thumb first, proximal to distal.
_RADIUS = np.array([[0.011, 0.0095, 0.0085]] + [[0.0095, 0.0085, 0.007]] * 3 + [[0.008, 0.007, 0.006]])
_SEGMENTS = np.array([[1 + 4 * f + k, 2 + 4 * f + k] for f in range(5) for k in range(3)])  # (15, 2) joints
_CORE = np.tile([1, 1, 0.72], 5)[:, None]  # the tip joints lie on the skin: round ends of flesh stop short of them
_FINGER_OF = np.repeat(np.arange(5), 3)
_PAIRS = np.array([(a, b) for a in range(15) for b in range(a) if _FINGER_OF[a] != _FINGER_OF[b]])
_ALONG = np.array([0.1, 0.4, 0.7, 1.0])


def sample_angles(t: HandTemplate, rng: np.random.Generator, tries: int = 12) -> Array:
    """20 joint angles (rad) inside the limits whose bones keep their distance from each other and the palm.

    A mixture: hands whose fingers bend together, hands whose fingers fall in two groups (counting, signs), mixtures of
    named shapes, thumbs that touch a finger, fingers each for itself, and angles uniform inside the limits.
    """
    kind = int(np.searchsorted(_SHARES, rng.random()))
    for _ in range(tries // 2):
        angles = np.stack([_KINDS[kind](t, rng) for _ in range(2)])
        free = ~penetrates(t, angles)
        if free.any():
            return angles[np.argmax(free)]
    return _NAMED[0].copy()  # the open hand


def _together(t: HandTemplate, rng: np.random.Generator) -> Array:
    """Four fingers that bend alike, more or less from index to little finger."""
    knuckle, middle = _state(rng) if rng.random() < 0.6 else rng.uniform((-15, -8), (92, 110))
    slope = 7 * rng.standard_normal(2)
    loose = rng.choice(_LOOSE)
    noise = loose * rng.standard_normal((2, 4))
    return _hand(rng, knuckle + slope[0] * _RANK + noise[0], middle + slope[1] * _RANK + noise[1], _thumb(rng))


def _groups(t: HandTemplate, rng: np.random.Generator) -> Array:
    """Some fingers do one thing, the others another; a bent finger drags its neighbours along."""
    mcp, pip = _two_groups(rng)
    return _hand(rng, mcp, pip, _thumb(rng))


def _between(t: HandTemplate, rng: np.random.Generator) -> Array:
    """Between two named shapes, as a whole or finger by finger."""
    a, b = _NAMED[rng.integers(len(_NAMED), size=2)]
    mix = rng.beta(0.25, 0.25) if rng.random() < 0.5 else np.repeat(rng.beta(0.4, 0.4, 5), 4)
    return clamp_angles(a + mix * (b - a) + np.radians(rng.choice(_LOOSE)) * rng.standard_normal(20))


def _touching(t: HandTemplate, rng: np.random.Generator) -> Array:
    """A thumb that touches; the other fingers stay beside those it meets, or do what they like."""
    hands, met = _free_touches(t)
    i = int(rng.integers(len(hands)))
    hand, fingers = hands[i], met[i]
    if rng.random() < 0.35:
        finger = int(np.argmax(fingers))
        ease = rng.uniform(0.2, 1.1)
        mcp, pip = (np.degrees(hand[j[finger]]) * ease + 6 * rng.standard_normal(4) for j in (MCP, PIP))
    else:
        mcp, pip = _two_groups(rng)
    angles = _hand(rng, mcp, pip, hand[:4])
    keep = np.concatenate([_ALWAYS, np.repeat(fingers, 4)])
    return clamp_angles(np.where(keep, hand + 0.035 * rng.standard_normal(20), angles))


def _each(t: HandTemplate, rng: np.random.Generator) -> Array:
    """Every finger bends as it likes, its tip joint with the middle one."""
    curl = np.where(rng.random(4) < 0.4, np.round(rng.random(4)), rng.random(4))
    noise = 14 * rng.standard_normal((2, 4))
    return _hand(rng, -6 + 90 * curl + noise[0], 104 * curl + noise[1], _thumb(rng))


def _anything(t: HandTemplate, rng: np.random.Generator) -> Array:
    """Uniform inside the limits; half of these with tip joints that follow and little spread of bent fingers."""
    angles = rng.uniform(_LOW, _HIGH)
    if rng.random() < 0.5:
        angles[DIP] = 0.6 * angles[PIP] + 0.12 * rng.standard_normal(4)
        angles[ABD] *= 1 - 0.75 * np.clip(angles[MCP] / 1.4, 0, 1)
    return clamp_angles(angles)


_KINDS = (_together, _groups, _between, _touching, _each, _anything)
_SHARES = np.cumsum([0.14, 0.36, 0.20, 0.12, 0.05])  # the rest is anything


def _two_groups(rng: np.random.Generator) -> tuple[Array, Array]:
    """Knuckles and middle joints (4,) each, degrees."""
    one, other = _state(rng), _state(rng)
    kind = rng.random()
    if kind < 0.4:
        which = _USUAL[rng.integers(len(_USUAL))]  # (4,)
    elif kind < 0.6:
        which = (int(rng.integers(1, 15)) >> _BIT) & 1
    else:  # finger by finger on the way from one to the other, mostly in order
        which = rng.beta(0.5, 0.5, 4)
        if kind < 0.85:
            which.sort()
    bend = one + which[:, None] * (other - one) + rng.choice(_LOOSE) * rng.standard_normal((4, 2))
    drag = 1.6 * rng.random()
    bend = bend + drag * (_DRAG @ bend - _DRAG_SUM[:, None] * bend)
    return bend[:, 0], bend[:, 1]


def _state(rng: np.random.Generator) -> Array:
    """Knuckle and middle joint of a finger, degrees: on its way to the fist, where the middle joint leads, or else."""
    if rng.random() < 0.6:
        curl = rng.beta(0.5, 0.5)
        bend = np.array([74 * curl - 3, 102 * curl**0.7])
    else:
        bend = _STATES[rng.integers(len(_STATES))]
    return bend + 8 * rng.standard_normal(2)


def _hand(rng: np.random.Generator, mcp: Array, pip: Array, thumb: Array) -> Array:
    """Put fingers (degrees) and thumb (rad) together: tip joints follow middle joints, a shared tendon; spread is one
    for the hand and goes away as a knuckle bends."""
    noise = rng.standard_normal((2, 4))
    dip = (0.56 + 0.12 * rng.standard_normal()) * pip + 4 * noise[0]
    if rng.random() < 0.12:  # pressed on, or held
        dip = rng.uniform(-12, 70) + 5 * noise[0]
    abd = (rng.uniform(-0.5, 1.2) * _SPREAD + rng.choice(_LOOSE) * noise[1]) * (1 - 0.75 * np.clip(mcp / 80, 0, 1))
    angles = np.empty(20)
    angles[:4] = thumb
    angles[4:] = np.radians(np.stack([mcp, abd, pip, dip], 1)).ravel()
    return np.minimum(np.maximum(angles, _LOW), _HIGH)


def _thumb(rng: np.random.Generator) -> Array:
    """A thumb on its way from beside the palm to the fingers, of a named shape or between two, or anywhere."""
    kind = rng.random()
    if kind < 0.5:
        return _BESIDE + rng.random() * (_OPPOSED - _BESIDE) + _STRAY * rng.standard_normal(4)
    if kind < 0.85:
        a, b = _NAMED[rng.integers(len(_NAMED), size=2), :4]
        thumb = a + rng.beta(0.5, 0.5) * (b - a) + np.radians(rng.choice(_LOOSE)) * rng.standard_normal(4)
    else:
        thumb = rng.uniform(_LOW[:4], _HIGH[:4])
    if kind > 0.65:  # its tip joint for itself
        thumb[3] = rng.uniform(-0.3, 1.45)
    return thumb


@lru_cache(maxsize=2)
def _free_touches(t: HandTemplate) -> tuple[Array, NDArray[np.bool_]]:
    hands, met = touches(t)
    free = ~penetrates(t, hands)
    return hands[free], met[free]


def penetrates(t: HandTemplate, angles: Array) -> NDArray[np.bool_]:
    """Whether bones of two fingers, or a finger and the palm, come closer than flesh allows; (N, 20) to (N,)."""
    n = len(angles)
    theta = np.zeros((n, 26))
    theta[:, 6:] = angles
    joints = forward_kinematics(t, theta, np.ones((n, 6)), np.zeros((n, 7))).joints_m
    start, end = joints[:, _SEGMENTS[:, 0]], joints[:, _SEGMENTS[:, 1]]
    end = start + _CORE * (end - start)
    radius = _RADIUS.ravel()
    gap = segment_distance(start[:, _PAIRS[:, 0]], end[:, _PAIRS[:, 0]], start[:, _PAIRS[:, 1]], end[:, _PAIRS[:, 1]])
    touching = 0.8 * (radius[_PAIRS[:, 0]] + radius[_PAIRS[:, 1]])
    between = (gap < touching).any(1)
    # The palm is a slab: finger points over it must stay on its palmar side.
    points = start[:, 1:, None] + (end - start)[:, 1:, None] * _ALONG[:, None]  # the thumb's metacarpal is palm
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    over = (y > 0.015) & (y < 0.085) & (np.abs(x) < 0.034)
    inside = over & (z > -0.017) & (z < 0.02)
    return between | inside.any((1, 2))


def segment_distance(a0: Array, a1: Array, b0: Array, b1: Array) -> Array:
    """Least distance between segments a0-a1 and b0-b1, all (..., 3), in their unit."""
    u, v, w = a1 - a0, b1 - b0, a0 - b0
    a, b, c = (u * u).sum(-1), (u * v).sum(-1), (v * v).sum(-1)
    d, e = (u * w).sum(-1), (v * w).sum(-1)
    det = np.maximum(a * c - b * b, 1e-12)
    s = np.clip((b * e - c * d) / det, 0, 1)
    r = np.clip((b * s + e) / np.maximum(c, 1e-12), 0, 1)
    s = np.clip((b * r - d) / np.maximum(a, 1e-12), 0, 1)
    return np.linalg.norm(w + s[..., None] * u - r[..., None] * v, axis=-1)


def sample_shape(rng: np.random.Generator) -> tuple[Array, Array]:
    """alpha (6,) and beta (7,) of a hand 150 to 216 mm long (see `hand_length_m`), every length about as likely.

    The middle finger is 0.77 to 0.97 of the palm (the template: 0.86); breadth and thickness vary on their own.
    """
    t = template()
    length = rng.uniform(*_LENGTHS_M)
    while True:
        alpha = 1 + 0.03 * np.clip(rng.standard_normal(6), -2.5, 2.5)
        beta = np.clip(_SHAPE_STRAY * rng.standard_normal(7), -1, 1)
        # Some of the size comes from the size morph (15 % at 1), the rest from scaling all bones.
        beta[_SIZE] = np.clip((length / 0.19 - 1) / 0.15 * rng.uniform(0.3, 1) + 0.15 * rng.standard_normal(), -1, 1)
        palm, finger = _palm_and_finger(t, alpha, beta)
        alpha *= length / math.hypot(*(palm + finger))
        ratio = math.hypot(*finger) / math.hypot(*palm)
        if 0.77 < ratio < 0.97 and _ALPHA_BOUNDS[0] < alpha.min() and alpha.max() < _ALPHA_BOUNDS[1]:
            return alpha, beta


def hand_length_m(t: HandTemplate, alpha: Array, beta: Array) -> float:
    """Wrist joint to the middle finger's tip of the flat hand, alpha (6,) and beta (7,): 190 mm for the template, whose
    relaxed rest pose measures 181 mm from wrist to tip."""
    palm, finger = _palm_and_finger(t, alpha, beta)
    return math.hypot(*(palm + finger))


def _palm_and_finger(t: HandTemplate, alpha: Array, beta: Array) -> tuple[Array, Array]:
    """Wrist to knuckle and knuckle to tip of the flat middle finger, (3,) m each; both are linear in the morphs."""
    rest, morphs = _flat_middle(t)
    palm, finger = (rest + beta @ morphs).reshape(2, 3)
    return alpha[0] * palm, alpha[3] * finger


@lru_cache(maxsize=2)
def _flat_middle(t: HandTemplate) -> tuple[Array, Array]:
    """Palm and middle finger of the flat rest hand (6,) m, and their change by morph (7, 6)."""
    beta = np.concatenate([np.zeros((1, 7)), np.eye(7)])
    joints = forward_kinematics(t, np.zeros((8, 26)), np.ones((8, 6)), beta).joints_m
    bones = np.concatenate([joints[:, 9] - joints[:, 0], joints[:, 12] - joints[:, 9]], 1)  # (8, 6)
    return bones[0], bones[1:] - bones[0]


def sample_view(rng: np.random.Generator) -> Array:
    """Rotation (3, 3) of a right hand in the crop camera: one draw in five any, else as one of `SCENES` shows hands."""
    kind = rng.random()
    if kind < 0.2:
        q = rng.standard_normal(4)
        return rotations(q / np.linalg.norm(q))
    scene = SCENES[int(np.searchsorted(_SCENE_SHARES, kind))]
    sides, turns = scene.sides_deg, scene.turns_deg
    stray = rng.standard_normal(3)
    turn = turns[int(rng.integers(len(turns)))] + 30 * stray[0] if turns else rng.uniform(-180, 180)
    away = scene.away_deg + scene.lean_deg * stray[1]
    side = sides[int(rng.integers(len(sides)))] + scene.roll_deg * stray[2]
    return turned(*np.radians([turn, away, side]))


class Scene(NamedTuple):
    """How a scene shows right hands.

    turns_deg: where in the image the fingers point, 0 up and 90 right; none given: anywhere. away_deg: how far they
    point away from the camera, with lean_deg of stray. sides_deg: what the camera sees, back 0, palm 180, little
    finger's edge 90, thumb's edge -90, with roll_deg of stray.
    """

    share: float
    turns_deg: tuple[float, ...]
    away_deg: float
    lean_deg: float
    sides_deg: tuple[float, ...]
    roll_deg: float


SCENES = (
    Scene(0.25, (0, 0, 0, -75, 75), 0, 22, (180, 180, 180, 0, 0, 90, -90), 25),  # held up to the camera
    Scene(0.20, (), 0, 16, (0, 0, 0, 0, 180, 180, -60), 20),  # on a table, seen from above
    Scene(0.20, (-20,), 50, 24, (0, 0, 0, -80, -80, 180), 30),  # one's own, before a camera on the head
    Scene(0.10, (), -65, 18, (0, 180), 50),  # reaching for the camera
    Scene(0.05, (), 0, 16, (90, -90), 14),  # on edge
)
_SCENE_SHARES = 0.2 + np.cumsum([scene.share for scene in SCENES])
_SCENE_SHARES[-1] = 1


def turned(turn: float, away: float, side: float) -> Array:
    """Rotation (3, 3) of a hand, fingers up and back to the camera, turned about its fingers by `side`, then away from
    the camera, then clockwise in the image (rad)."""
    (ct, st), (ca, sa), (cs, ss) = ((math.cos(x), math.sin(x)) for x in (turn, away, side))
    in_image = np.array([[ct, -st, 0], [st, ct, 0], [0, 0, 1]])
    leaning = np.array([[1, 0, 0], [0, ca, sa], [0, -sa, ca]])
    about = np.array([[cs, 0, -ss], [0, -1, 0], [-ss, 0, -cs]])  # Ry(side) diag(1, -1, -1)
    return in_image @ leaning @ about


def rotations(q: Array) -> Array:
    """Unit quaternions wxyz (..., 4) to matrices (..., 3, 3)."""
    w, x, y, z = np.moveaxis(q, -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)
