"""The seven shape morphs of DeepHPS for the hand template: three rest on MakeHuman's targets, four are our own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .arrays import Array
from .build_body import unit

MORPHS = ("length", "mass", "size", "palm_length", "fingers_interdist", "fingers_length", "fingers_tip_size")


def morphs(native: Callable[[str], Array], v: Array, joints21: Array, weights: Array) -> Array:
    """Offsets at beta = 1 of vertices and joints together (7, V + 21, 3) m.

    native(name) is MakeHuman's target r-hand-fingers-<name>, in the same layout.
    """

    def skin_only(offset: Array) -> Array:
        return np.concatenate([offset, np.zeros((21, 3))])

    everything = np.concatenate([v, joints21])
    fingers = -native("length-decr")
    palm = palm_stretch(v, joints21, weights)
    spread = 0.5 * (native("distance-incr") - native("distance-decr"))
    spread[: len(v)] *= smoothstep(v[:, 1] / 0.03)[:, None]  # nothing moves at the wrist
    thick = 0.5 * (native("diameter-incr") - native("diameter-decr"))[: len(v)]
    named = {
        # A pure stretch would be a sum of palm_length and fingers_length, and the basis of rank 6: also 4 % narrower.
        "length": 0.8 * palm + 0.6 * fingers + np.array([-0.04, 0, 0]) * everything,
        "mass": skin_only(0.65 * thick + palm_thickening(v, weights[:, 0])),
        "size": 0.15 * everything,
        "palm_length": palm,
        "fingers_interdist": 1.2 * spread,
        "fingers_length": fingers,
        "fingers_tip_size": skin_only(tip_swell(v, joints21, weights)),
    }
    return np.stack([named[name] for name in MORPHS])


def palm_stretch(v: Array, joints21: Array, weights: Array) -> Array:
    """The palm 12 % longer; each finger rides along with its first joint (V + 21, 3) m."""
    first_y = joints21[1::4, 1]  # (5,) of the thumb's CMC and the MCPs
    mcp = joints21[[5, 9, 13, 17]]
    order = np.argsort(mcp[:, 0])
    knuckle_y = np.interp(v[:, 0], mcp[order, 0], mcp[order, 1])  # (V,)
    stretch = np.zeros((len(v) + 21, 3))
    stretch[: len(v), 1] = weights[:, 1:] @ np.repeat(first_y, 3) + weights[:, 0] * np.clip(v[:, 1], 0, knuckle_y)
    stretch[len(v) + 1 :, 1] = np.repeat(first_y, 4)
    return 0.12 * stretch


def palm_thickening(v: Array, wrist_weight: Array) -> Array:
    """The palm 14 % thicker about its middle layer and 6 % broader (V, 3) m."""
    stations = np.linspace(v[:, 1].min() + 0.003, 0.105, 16)
    slices = [v[(abs(v[:, 1] - y) < 0.012) & (wrist_weight > 0.5), 2] for y in stations]
    middle_z = np.interp(v[:, 1], stations, [(z.max() + z.min()) / 2 for z in slices])
    swell = np.zeros_like(v)
    swell[:, 0] = 0.06 * v[:, 0] * wrist_weight
    swell[:, 2] = 0.14 * (v[:, 2] - middle_z) * wrist_weight
    return swell


def tip_swell(v: Array, joints21: Array, weights: Array) -> Array:
    """The last phalanges 22 % wider about their own axes (V, 3) m."""
    swell = np.zeros_like(v)
    for finger in range(5):
        last, tip = joints21[3 + 4 * finger], joints21[4 + 4 * finger]
        length, axis = float(np.linalg.norm(tip - last)), unit(tip - last)
        along = (v - last) @ axis / length  # (V,) 0 at the joint, 1 at the tip
        across = (v - last) - np.outer((v - last) @ axis, axis)
        weight = weights[:, 3 + 3 * finger]
        centre = across[(weight > 0.5) & (along > 0.3)].mean(0)
        swell += 0.22 * (across - centre) * (smoothstep((along - 0.05) / 0.5) * weight)[:, None]
    return swell


def smoothstep(x: Array) -> Array:
    c = np.clip(x, 0, 1)
    return np.asarray(c * c * (3 - 2 * c))
