"""The surface as its two layout coordinates see it: mesh coordinates to places on a mesh, differentiably.

The layout is a flat map of the hand's skin (`hand/template.py`), 16 cells wide (Dual Grid Net, section 3.1). Within a
triangle a place is the barycentric mean of three vertices, so it follows both the mesh coordinates and the vertices.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...hand.arrays import Array
from ...hand.template import template
from ..nets.extension import GRID
from ..synth.layout import face_uv

FINE = 192  # the raster in which a mesh coordinate's triangle is looked up
FARTHEST = 2.0  # barycentric weights of coordinates beside the layout are kept within this


class Layout(NamedTuple):
    """face_at (FINE, FINE) the triangle at, or nearest to, each place of the map; corners (F, 3) its vertices; origin
    (F, 2) and inverse (F, 2, 2) make barycentric weights of mesh coordinates in cells; uv (F, 3, 2) in [0, 1]."""

    face_at: Tensor
    corners: Tensor
    origin: Tensor
    inverse: Tensor
    uv: Array


@lru_cache(maxsize=2)
def layout(device: str = "cpu") -> Layout:
    """The template's layout; made once a device."""
    t = template()
    uv = face_uv(t)  # (F, 3, 2)
    cells = uv * (GRID - 1)
    edges = np.stack([cells[:, 0] - cells[:, 2], cells[:, 1] - cells[:, 2]], 2)  # (F, 2, 2) columns
    flat = np.abs(np.linalg.det(edges)) < 1e-9
    edges[flat] = np.eye(2)
    face_at = _faces_of_places(uv)

    def tensor(x: Array, kind: torch.dtype) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(x)).to(device, kind)

    return Layout(
        tensor(face_at, torch.int64),
        tensor(t.faces, torch.int64),
        tensor(cells[:, 2], torch.float32),
        tensor(np.linalg.inv(edges), torch.float32),
        uv,
    )


def surface_at(vertices_m: Tensor, cells: Tensor) -> Tensor:
    """Places (B, P, 3) on meshes (B, V, 3) at mesh coordinates (B, P, 2) in cells: `f` of Dual Grid Net, eq. 8."""
    map_ = layout(str(vertices_m.device))
    at = (cells.detach() / (GRID - 1) * FINE).long().clamp(0, FINE - 1)
    face = map_.face_at[at[..., 1], at[..., 0]]  # (B, P)
    two = ((cells - map_.origin[face]).unsqueeze(-2) @ map_.inverse[face].mT).squeeze(-2)  # (B, P, 2)
    two = two.clamp(-FARTHEST, FARTHEST)
    weight = torch.cat([two, 1 - two.sum(-1, keepdim=True)], -1)  # (B, P, 3)
    index = map_.corners[face].flatten(1).unsqueeze(-1).expand(-1, -1, 3)  # (B, 3P, 3)
    corner = vertices_m.gather(1, index).view(*weight.shape, 3)  # (B, P, 3 corners, 3)
    return (corner * weight.unsqueeze(-1)).sum(2)


def _faces_of_places(uv: Array) -> NDArray[np.int64]:
    """(FINE, FINE) the triangle at each place of the map; beside all, that of the nearest place that has one."""
    face_at = np.full((FINE, FINE), -1)
    for f, corner in enumerate(uv * FINE - 0.5):
        low = np.maximum(np.floor(corner.min(0)), 0).astype(int)
        high = np.minimum(np.ceil(corner.max(0)), FINE - 1).astype(int)
        x, y = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
        edges = np.stack([corner[0] - corner[2], corner[1] - corner[2]], 1)
        if abs(np.linalg.det(edges)) < 1e-9:
            continue
        two = np.linalg.solve(edges, np.stack([x.ravel() - corner[2, 0], y.ravel() - corner[2, 1]]))
        inside = ((two >= -1e-6).all(0) & (two.sum(0) <= 1 + 1e-6)).reshape(x.shape)
        face_at[y[inside], x[inside]] = f
    while (face_at < 0).any():  # grow outwards, a pixel a turn
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            other = np.roll(face_at, (dy, dx), (0, 1))
            face_at = np.where(face_at < 0, other, face_at)
    return face_at
