"""How far one camera's hand is from another's under a rig: what is measured in depth, in mm, and nothing is fitted.

Cloud: points of A against the skin that B measured, along the normals. Mesh: points that B measured against the hand
that was fitted in A, which shows A's network's error as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..hand.arrays import Array
from ..hand.normals import vertex_normals
from ..hand.se3 import apply
from ..hand.template import template
from .icp import Moment, Placed, match, placed
from .observe import tree_of

REACH_M = 0.012  # of the search for the other camera's skin; matches lie within two and a half times as much
REGIONS = ("near", "middle", "far")
FAR_MESH_M = 0.04  # further from A's mesh, a point of B is none of that hand's


class Distances(NamedTuple):
    """Distances (N,) m, each of which two cameras (N, 2), and where (N, 3) in the rig's frame; asked (N',2) and found
    count points looked up, and those that had a partner, by pair of cameras."""

    values_m: Array
    cameras: NDArray[np.intp]
    places_m: Array
    asked: dict[tuple[int, int], int]
    found: dict[tuple[int, int], int]

    @property
    def p50_mm(self) -> float:
        return self.percentile_mm(50)

    @property
    def p95_mm(self) -> float:
        return self.percentile_mm(95)

    def percentile_mm(self, percent: float, keep: Any = slice(None)) -> float:
        """NaN if there is none."""
        values = self.values_m[keep]
        return float(np.percentile(values, percent) * 1e3) if len(values) else float("nan")

    def of_pair(self, a: int, b: int) -> NDArray[np.bool_]:
        """Which are of these two cameras, either way."""
        return np.asarray((np.sort(self.cameras, 1) == sorted((a, b))).all(1))

    def met(self, a: int, b: int) -> float:
        """The share of the points looked up that found skin of the other camera; NaN if none was."""
        pairs = ((a, b), (b, a))
        asked = sum(self.asked.get(pair, 0) for pair in pairs)
        return sum(self.found.get(pair, 0) for pair in pairs) / asked if asked else float("nan")

    @staticmethod
    def joined(parts: Sequence[Distances]) -> Distances:
        asked: dict[tuple[int, int], int] = {}
        found: dict[tuple[int, int], int] = {}
        for part in parts:
            for total, counts in ((asked, part.asked), (found, part.found)):
                for pair, count in counts.items():
                    total[pair] = total.get(pair, 0) + count
        return Distances(
            np.concatenate([part.values_m for part in parts]),
            np.concatenate([part.cameras for part in parts]),
            np.concatenate([part.places_m for part in parts]),
            asked,
            found,
        )


def distances(
    moments: Sequence[Moment], T_ref_cam: Array, offsets_s: Array, depth_per_m: Array, *, mesh: bool = False
) -> Distances:
    """Every camera against every other at every moment; with mesh, B's points against A's hand."""
    none = Distances(np.zeros(0), np.zeros((0, 2), np.intp), np.zeros((0, 3)), {}, {})
    parts = [none]
    for moment in moments:
        views = placed(moment, T_ref_cam, offsets_s, depth_per_m)
        for a, b in permutations(views, 2):
            values, places = _to_mesh(a, b) if mesh else _to_skin(a, b)
            pair = (a.view.camera, b.view.camera)
            cameras = np.tile(np.array(pair, np.intp), (len(values), 1))
            asked = len(b.view.asked if mesh else a.view.asked)
            parts.append(Distances(values, cameras, places, {pair: asked}, {pair: len(values)}))
    return Distances.joined(parts)


def region_of(places_m: Array, centre_m: Sequence[float], edge_m: float) -> NDArray[np.intp]:
    """Index (N,) into REGIONS: thirds of the volume along the reference camera's view."""
    return np.digitize(places_m[:, 2] - centre_m[2], [-edge_m / 6, edge_m / 6])


def _to_skin(a: Placed, b: Placed) -> tuple[Array, Array]:
    found = match(a, b, REACH_M)
    return np.abs(found.distances_m), a.points[found.of_a]


def _to_mesh(a: Placed, b: Placed) -> tuple[Array, Array]:
    """Points of b against a's mesh, along its normals."""
    if a.view.mesh_m is None:
        return np.zeros(0), np.zeros((0, 3))
    mesh = apply(a.T_ref_cam, a.view.mesh_m) + a.velocities.mean(0) * a.ahead_s
    points = b.points[b.view.asked]
    gap, nearest = tree_of(mesh).query(points)
    near = gap < FAR_MESH_M
    normals = vertex_normals(mesh, template().faces)[nearest[near]]
    along = np.einsum("na,na->n", normals, points[near] - mesh[nearest[near]])
    return np.abs(along), points[near]
