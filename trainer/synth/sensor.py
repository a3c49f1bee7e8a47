"""What a depth sensor does to a clean depth patch: noise, quantisation, holes, fat and ragged edges.

A first, generic model that covers structured light and active stereo loosely; its ranges are drawn per sample.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]


class SensorNoise(NamedTuple):
    """Ranges as drawn for one sample; lengths in metres, probabilities per pixel."""

    sigma_m: float  # white noise at this distance
    patch_m: float  # noise correlated over `patch_px`
    patch_px: int
    unit_m: float  # quantisation step
    holes: float  # lone pixels without a reading
    blobs: float  # expected number of round holes
    edge_m: float  # a step in depth greater than this is an edge
    edge_holes: float  # probability that a pixel beside an edge is lost
    shadow_px: int  # width of the shadow on the far side of an edge
    flying: float  # probability that an edge pixel mixes near and far
    grazing: float  # |slope| of the surface, m/px over z step, past which readings vanish


def sample_noise(rng: np.random.Generator, distance_m: float) -> SensorNoise:
    """Draw a sensor: from nearly clean to poor; error grows with distance squared (Khoshelham & Elberink 2012)."""
    z2 = distance_m * distance_m
    return SensorNoise(
        sigma_m=rng.uniform(0.0002, 0.003) * max(z2, 0.15) * 1.6,
        patch_m=float(rng.random() < 0.5) * rng.uniform(0.0, 0.004) * max(z2, 0.2),
        patch_px=int(rng.integers(3, 9)),
        unit_m=rng.choice([0.0001, 0.000125, 0.001, 0.001, 0.002]),
        holes=rng.choice([0.0, 0.002, 0.01, 0.05]),
        blobs=rng.choice([0.0, 0.0, 1.0, 4.0]),
        edge_m=0.012,
        edge_holes=rng.choice([0.0, 0.2, 0.5, 0.9]),
        shadow_px=int(rng.choice([0, 0, 1, 2, 4])),
        flying=rng.choice([0.0, 0.0, 0.15]),
        grazing=rng.uniform(0.004, 0.012),
    )


@njit(cache=True, fastmath=True, nogil=True)  # type: ignore[untyped-decorator]
def corrupt(
    clean: Array, sigma: float, patch: float, patch_px: int, unit: float, holes: float, blobs: float, edge: float,
    edge_holes: float, shadow_px: int, flying: float, grazing: float, seed: int, out: Array,
) -> None:  # fmt: skip
    """Corrupt a patch of depth (S, S) m, 0 = nothing there, into out (S, S); see `SensorNoise`."""
    np.random.seed(seed)
    size = clean.shape[0]
    coarse = np.empty((size // patch_px + 2, size // patch_px + 2), np.float32)
    for i in range(coarse.shape[0]):
        for j in range(coarse.shape[1]):
            coarse[i, j] = np.random.randn() * patch
    for y in range(size):
        for x in range(size):
            z = clean[y, x]
            if z == 0:
                out[y, x] = 0
                continue
            near, far, lost = z, z, False
            left = clean[y, x - 1] if x > 0 else z
            right = clean[y, x + 1] if x < size - 1 else z
            up = clean[y - 1, x] if y > 0 else z
            down = clean[y + 1, x] if y < size - 1 else z
            at_edge = False
            for other in (left, right, up, down):
                if other == 0 or abs(other - z) > edge:
                    at_edge = True
                    if other > far:
                        far = other
                    if 0 < other < near:
                        near = other
            if at_edge and np.random.random() < edge_holes:
                lost = True
            if not at_edge and abs(right - left) + abs(down - up) > 4 * grazing and np.random.random() < 0.5:
                lost = True
            # The projector's shadow: nothing is read just left of a near surface on a far one.
            for k in range(1, shadow_px + 1):
                if x + k < size and 0 < clean[y, x + k] < z - edge:
                    lost = True
            if np.random.random() < holes:
                lost = True
            if lost:
                out[y, x] = 0
                continue
            if at_edge and np.random.random() < flying:
                z = near + (far - near) * np.random.random()
            cy, cx = y / patch_px, x / patch_px
            iy, ix = int(cy), int(cx)
            fy, fx = cy - iy, cx - ix
            z += (coarse[iy, ix] * (1 - fx) + coarse[iy, ix + 1] * fx) * (1 - fy)
            z += (coarse[iy + 1, ix] * (1 - fx) + coarse[iy + 1, ix + 1] * fx) * fy
            z += np.random.randn() * sigma
            out[y, x] = round(z / unit) * unit
    n = np.random.poisson(blobs)
    for _ in range(n):
        cy, cx, r = np.random.random() * size, np.random.random() * size, (0.01 + 0.04 * np.random.random()) * size
        for y in range(max(0, int(cy - r)), min(size, int(cy + r) + 1)):
            for x in range(max(0, int(cx - r)), min(size, int(cx + r) + 1)):
                if (y - cy) ** 2 + (x - cx) ** 2 < r * r:
                    out[y, x] = 0
