"""Dual Grid Net's self-supervision (Wan et al. 2020, section 4): what unlabelled depth says of a predicted mesh.

Each term is a function of its own with its equation's number. Distances are in units of 20 mm and under the Huber
function, where the paper has a smooth L1 or a square; sums are means over points, so that a weight means the same for
near hands and far ones. The paper names no weights; ours and what they were chosen by: docs/adaptation.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...hand.kinematics import Shape
from ...hand.skeleton import PARENT_OR_PALM, PART_JOINTS
from ...hand.template import HandTemplate, template
from ..hand_layer import HandLayer
from ..losses import huber
from ..refit import Refit, procrustes
from .layout import surface_at

UNITS = 50.0  # one is 20 mm
TOUCH_M = 0.005  # eq. 10: joints of one hand stay this far apart
EVERY = 3  # points look for the nearest of each so manieth vertex


class Weights(NamedTuple):
    """What each term counts for beside the supervised loss, where 1 is a joint error of 20 mm."""

    icp: float = 1.0  # eq. 7
    lifting: float = 0.5  # eq. 8
    collision: float = 0.2  # eq. 10
    arap: float = 0.2  # eq. 11
    offset: float = 0.5  # eq. 13
    views: float = 1.0  # eq. 14, vertices to their median
    views_icp: float = 0.5  # eq. 14
    views_lifting: float = 0.25  # eq. 14


def icp(points_m: Tensor, counts: Tensor, vertices_m: Tensor, facing: Tensor) -> Tensor:
    """Distance (B,) of depth points (B, N, 3) to the nearest vertex (B, V, 3) that faces the camera (eq. 7).

    counts (B, N) are the points' weights; facing (B, V) bool. Which vertex is nearest is held while the gradient is
    taken, as in ICP.
    """
    with torch.no_grad():
        squared = torch.cdist(points_m, vertices_m).masked_fill(~facing[:, None], float("inf"))
        nearest = squared.argmin(2)  # (B, N)
    target = vertices_m.gather(1, nearest[..., None].expand(-1, -1, 3))
    return mean_of(huber(UNITS * length(points_m - target)), counts)


def lifting(points_m: Tensor, counts: Tensor, vertices_m: Tensor, cells: Tensor) -> Tensor:
    """Distance (B,) of depth points (B, N, 3) to where the network's own mesh coordinates (B, N, 2) put them on its
    mesh (B, V, 3) (eq. 8): it moves both."""
    return mean_of(huber(UNITS * length(points_m - surface_at(vertices_m, cells))), counts)


def collision(joints_m: Tensor) -> Tensor:
    """(B,) how far pairs of joints (B, 21, 3) are nearer than 5 mm, summed (eq. 10)."""
    first, second = torch.triu_indices(joints_m.shape[1], joints_m.shape[1], 1, device=joints_m.device)
    near = TOUCH_M - length(joints_m[:, first] - joints_m[:, second])
    return UNITS * near.clamp_min(0).sum(1)


def arap(refined_m: Tensor, initial_m: Tensor) -> Tensor:
    """(B,) how far the network's vertices (B, V, 3) are from a hand of rigid parts, the refined ones (eq. 11)."""
    return huber(UNITS * length(refined_m - initial_m)).mean(1)


def offset(rigid: Tensor, hand: HandTemplate) -> Tensor:
    """(B,) how far finger joints come apart: translations t of the local transforms L (eq. 12 and 13).

    rigid (B, 16, 3, 4) are the parts' placements of the user's own hand without a scale of their own, so that a bone
    of another length than the user's counts as a joint that has come apart.
    """
    joint = rigid.new_tensor(hand.joints_m[list(PART_JOINTS)])  # (16, 3)
    own = (rigid[..., :3] @ joint[..., None])[..., 0] + rigid[..., 3]  # (B, 16, 3)
    parent = rigid[:, PARENT_OR_PALM]
    hung = (parent[..., :3] @ joint[..., None])[..., 0] + parent[..., 3]  # T_p takes the child's joint here
    return huber(UNITS * length(own - hung))[:, 1:].mean(1)  # |t| is the same in the bone's frame as in the camera's


def views_vertex(vertices_m: Tensor, T_ref_crop: Tensor, groups: Tensor) -> Tensor:
    """(B,) distance of each view's mesh to the median of the views of its moment, in the reference frame (eq. 14).

    vertices_m (B, V, 3) in their crops' frames, T_ref_crop (B, 4, 4), groups (B,) the moments; views without company
    give 0. The median is held.
    """
    placed = in_reference(vertices_m, T_ref_crop)
    terms = placed.new_zeros(len(placed))
    for group in set(groups.tolist()):
        mine = torch.nonzero(groups == group)[:, 0]
        if len(mine) > 1:
            with torch.no_grad():  # torch's own median of an even number is the lower one
                ranked, n = placed[mine].sort(0).values, len(mine)
                middle = (ranked[(n - 1) // 2] + ranked[n // 2]) / 2
            terms[mine] = huber(UNITS * length(placed[mine] - middle)).mean(1)
    return terms


def other_views(T_ref_crop: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of views of one moment: whose mesh (K,), whose depth (K,), and T_depth_mesh (K, 4, 4) between their frames,
    for ICP and lifting across views (eq. 14)."""
    same = (groups[:, None] == groups[None]) & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    mesh, depth = torch.nonzero(same, as_tuple=True)
    return mesh, depth, torch.linalg.inv(T_ref_crop[depth]) @ T_ref_crop[mesh]


def in_reference(points_m: Tensor, T: Tensor) -> Tensor:
    """Points (B, N, 3) through transforms (B, 4, 4)."""
    return points_m @ T[:, :3, :3].mT + T[:, None, :3, 3]


def facing_camera(vertices_m: Tensor, every: int = EVERY) -> Tensor:
    """(B, V / every) whether each so manieth vertex of a mesh (B, V, 3) faces a camera at the origin."""
    faces = _faces(str(vertices_m.device))
    corner = vertices_m[:, faces]  # (B, F, 3, 3)
    normal = torch.linalg.cross(corner[:, :, 1] - corner[:, :, 0], corner[:, :, 2] - corner[:, :, 0])
    at_vertex = torch.zeros_like(vertices_m)
    for k in range(3):
        at_vertex.index_add_(1, faces[:, k], normal)
    return ((at_vertex * vertices_m).sum(-1) < 0)[:, ::every]


def user_hand(shape: Shape) -> HandTemplate:
    """The template as it was scanned, with the user's bones and skin: what the parts are fitted to once the shape is
    held."""
    t = template()
    layer = HandLayer(dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    alpha, beta = (torch.tensor(np.asarray(x), dtype=torch.float64)[None] for x in shape)
    posed = layer.pose(eye[None], eye.expand(1, 15, 3, 3), torch.zeros(1, 3, dtype=torch.float64), alpha, beta)
    return replace(t, joints_m=posed.joints_m[0].numpy(), vertices_m=posed.vertices_m[0].numpy())


class UserRefit(Refit):
    """The closed-form refit (section 3.4) to the user's own hand, whose parts have no scale left to find."""

    def __init__(self, hand: HandTemplate) -> None:
        super().__init__(hand)
        self.hand = hand

    def rigid(self, vertices_m: Tensor) -> Tensor:
        """Each part's rotation and place (B, 16, 3, 4) of vertices (B, V, 3) m, scale 1."""
        rows = vertices_m.transpose(1, 2).reshape(-1, len(self.rest))
        m = (rows @ self.moments).reshape(-1, 3, 16, 4).transpose(1, 2)
        rotation, _ = procrustes(m[..., :3])
        shift = m[..., 3] - (rotation @ self.centroid[..., None])[..., 0]
        return torch.cat([rotation, shift[..., None]], -1)


def mean_of(values: Tensor, counts: Tensor) -> Tensor:
    """Weighted mean (B,) over the last axis; 0 where nothing counts."""
    return (values * counts).sum(1) / counts.sum(1).clamp_min(1e-6)


def length(x: Tensor) -> Tensor:
    """Norm over the last axis, with a gradient at zero."""
    return (x.square().sum(-1) + 1e-12).sqrt()


_FACES: dict[str, Tensor] = {}


def _faces(device: str) -> Tensor:
    if device not in _FACES:
        _FACES[device] = torch.as_tensor(template().faces.astype(np.int64), device=device)
    return _FACES[device]
