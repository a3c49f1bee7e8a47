"""The template hand: MakeHuman's hm08 right hand (CC0), built by `build_template.py`, metres.

Right-hand frame: origin at the wrist joint, +y to the middle MCP, +z out of the back of the hand, +x = y x z to the
little finger. The left hand is its mirror image, x -> -x.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from .arrays import Array

PATH = Path(__file__).with_name("template.npz")


@dataclass(frozen=True, slots=True, eq=False)
class HandTemplate:
    """Arrays of the template; V = 1609 vertices of the hand itself, V_all = 1729 with a stub of forearm.

    vertices_m (V, 3), faces (F, 3), weights (V, 16), joints_m (21, 3), axes (16, 3, 3) with columns flexion axis, bone
    and palmar, flat_flex_rad (16,) the flexion that makes the rest hand flat, morph_vertices_m (7, V, 3),
    morph_joints_m (7, 21, 3), part (V,), area (V,) m^2, uv (V, 2, 2) two layout coordinates a vertex in [0, 1] that
    differ only on the seam. The *_all fields include the forearm; arm_weights (V_all,) is its share of the wrist part.
    """

    vertices_m: Array
    faces: Array
    weights: Array
    joints_m: Array
    axes: Array
    flat_flex_rad: Array
    morph_vertices_m: Array
    morph_joints_m: Array
    part: Array
    area: Array
    uv: Array
    vertices_all_m: Array
    faces_all: Array
    weights_all: Array
    morph_vertices_all_m: Array
    arm_weights: Array
    arm_ring: Array


@lru_cache(maxsize=1)
def template() -> HandTemplate:
    """The template that ships with the package; read once."""
    with np.load(PATH) as file:
        t = {name: file[name] for name in file.files}
    n_vertices, n_faces = int(t["n_core"][0]), int(t["n_core"][1])
    vertices = t["v"].astype(np.float64)
    faces = t["faces"][:n_faces]
    corner = vertices[faces]
    double_area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    area = np.bincount(faces.ravel(), np.repeat(double_area / 6, 3), n_vertices)
    return HandTemplate(
        vertices_m=vertices[:n_vertices],
        faces=faces,
        weights=t["weights16"][:n_vertices].astype(np.float64),
        joints_m=t["joints21"].astype(np.float64),
        axes=t["axes16"].astype(np.float64),
        flat_flex_rad=np.radians(t["flat_flex_deg"].astype(np.float64)),
        morph_vertices_m=t["morph_v"][:, :n_vertices].astype(np.float64),
        morph_joints_m=t["morph_j21"].astype(np.float64),
        part=t["part"][:n_vertices],
        area=area,
        uv=t["uv"][t["vertex_uv"]].astype(np.float64),
        vertices_all_m=vertices,
        faces_all=t["faces"],
        weights_all=t["weights16"].astype(np.float64),
        morph_vertices_all_m=t["morph_v"].astype(np.float64),
        arm_weights=t["w_arm"].astype(np.float64),
        arm_ring=t["boundary_all"],
    )
