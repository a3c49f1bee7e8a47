"""The Hand Pose and Shape Layer of DeepHPS (Malik et al. 2018, section 4.2) in torch: parameters to joints and mesh.

The slow twin is `hand/kinematics.py`; autograd takes the place of the gradients that the paper derives by hand.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..hand.parts import part_moments
from ..hand.skeleton import (
    ANGLE_PARTS,
    IS_FLEXION,
    PARENT_OR_PALM,
    PART_JOINTS,
    PART_SCALES,
    THUMB_TWIST_PER_FLEX,
    TIPS,
)
from ..hand.template import template
from .losses import Labels, distance, joint_distance, meshed, metres
from .refit import procrustes

EVERY = 3  # the losses look at every third vertex: skin is smooth


class Posed(NamedTuple):
    """joints_m (B, 21, 3); vertices_m (B, V, 3); parts (B, 16, 3, 4) map rest points of a part to posed ones (eq. 6),
    for whoever skins other points than the template's."""

    joints_m: Tensor
    vertices_m: Tensor
    parts: Tensor


class HandLayer:
    """HPSL (eq. 1): 26 degrees of freedom, or 16 rotations, with bone scales and shape, to joints and vertices.

    every: give each so manieth vertex only, as a loss needs no more; V is then smaller.
    """

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.float32, every: int = 1) -> None:
        t = template()

        def constant(x: Any) -> Tensor:
            return torch.tensor(np.ascontiguousarray(x), dtype=dtype, device=device)

        # Which angle turns which part about which axis: (20, 16) each.
        turns = np.arange(16) == ANGLE_PARTS[:, None]
        self.flex = constant(turns & IS_FLEXION[:, None])
        self.abd = constant(turns & ~IS_FLEXION[:, None])
        self.twist = self.flex * constant(THUMB_TWIST_PER_FLEX * (np.arange(16) == 1))
        self.flat_flex = constant(t.flat_flex_rad)
        self.axes = constant(t.axes)
        # Joints and vertices of the rest hand in one row, so that one product morphs both (eq. 3).
        vertices, morphs = t.vertices_m[::every].T, t.morph_vertices_m[:, ::every].transpose(0, 2, 1)
        self.rest = constant(np.concatenate([t.joints_m.ravel(), vertices.ravel()]))
        self.morphs = constant(np.concatenate([t.morph_joints_m.reshape(7, -1), morphs.reshape(7, -1)], 1))
        self.weights = constant(t.weights[::every].T)  # (16, V)

    def __call__(self, theta: Tensor, alpha: Tensor, beta: Tensor) -> Posed:
        """theta (B, 26) m and rad, alpha (B, 6), beta (B, 7); `hand.kinematics.pose_hand` in torch."""
        local = self.part_rotations(theta[:, 6:])
        return self.pose(rotation_from_rotvec(theta[:, 3:6]), local[:, 1:], theta[:, :3], alpha, beta)

    def from_quaternions(self, quaternions: Tensor, translation_m: Tensor, alpha: Tensor, beta: Tensor) -> Posed:
        """quaternions (B, 16, 4) wxyz of any length: the palm's in the camera, the others' in their parents, where
        no rotation is the template as it was scanned; translation_m (B, 3) of the wrist."""
        rotation = rotation_from_quaternion(quaternions)
        return self.pose(rotation[:, 0], rotation[:, 1:], translation_m, alpha, beta)

    def pose(self, root: Tensor, local: Tensor, translation_m: Tensor, alpha: Tensor, beta: Tensor) -> Posed:
        """The layer behind both entries: root (B, 3, 3) turns the palm, local (B, 15, 3, 3) the phalanges."""
        b = len(root)
        rest = torch.addmm(self.rest, beta, self.morphs)  # (B, 63 + 3V), eq. 3
        joints, vertices = rest[:, :63].view(b, 21, 3), rest[:, 63:].view(b, 1, 3, -1)
        start = joints[:, PART_JOINTS]  # (B, 16, 3)
        scale = alpha[:, PART_SCALES]  # (B, 16)
        bone = ((start - start[:, PARENT_OR_PALM]) * scale[:, PARENT_OR_PALM, None])[:, 1:, :, None]  # (B, 15, 3, 1)
        turn, origin = root[:, None], translation_m[:, None, :, None]
        turns, origins = [], []
        for level in range(3):  # the same bone of all fingers at once, eq. 4
            origin = origin + turn @ bone[:, level::3]  # (B, 5, 3, 1)
            turn = turn @ local[:, level::3]  # (B, 5, 3, 3)
            turns.append(turn)
            origins.append(origin)
        rotation = torch.cat([root[:, None], torch.stack(turns, 2).view(b, 15, 3, 3)], 1)
        begin = torch.cat([translation_m[:, None, :, None], torch.stack(origins, 2).view(b, 15, 3, 1)], 1)
        linear = rotation * scale[..., None, None]
        parts = torch.cat([linear, begin - linear @ start[..., None]], -1)  # (B, 16, 3, 4), eq. 6
        tips = apply_parts(parts[:, 3::3], joints[:, TIPS])  # (B, 5, 3)
        phalanges = torch.cat([begin[:, 1:, :, 0].view(b, 5, 3, 3), tips[:, :, None]], 2)  # (B, 5, 4, 3)
        posed = torch.cat([translation_m[:, None], phalanges.view(b, 20, 3)], 1)
        blend = (parts.reshape(b, 16, 12).transpose(1, 2).reshape(-1, 16) @ self.weights).view(b, 3, 4, -1)
        skin = (blend[:, :, :3] * vertices).sum(2) + blend[:, :, 3]  # (B, 3, V), eq. 5
        return Posed(posed, skin.transpose(1, 2), parts)

    def part_rotations(self, angles_rad: Tensor) -> Tensor:
        """Rotation of every part in its parent, (B, 20) rad to (B, 16, 3, 3); the palm's is I."""
        twist = angles_rad @ self.twist  # (B, 16)
        flex = angles_rad @ self.flex + self.flat_flex
        abd = angles_rad @ self.abd
        ca, sa, cf, sf, ct, st = abd.cos(), abd.sin(), flex.cos(), flex.sin(), twist.cos(), twist.sin()
        rows = (  # Rz(-abd) Rx(flex) Ry(twist) in the part's anatomical frame
            ca * ct + sa * sf * st, sa * cf, ca * st - sa * sf * ct,
            ca * sf * st - sa * ct, ca * cf, -sa * st - ca * sf * ct,
            -cf * st, sf, cf * ct,
        )  # fmt: skip
        return self.axes @ matrices(rows) @ self.axes.mT


@lru_cache(maxsize=4)
def hand_layer(device: str = "cpu") -> HandLayer:
    """The layer in float32 with all vertices; made once a device."""
    return HandLayer(device)


def place(posed: Posed, centre_uvd: Tensor, distance_m: Tensor, cube_m: Tensor) -> tuple[Tensor, Tensor]:
    """Joints (B, 21, 3) and vertices (B, V, 3) m of a hand that is moved until the mean of its joints lies at
    centre_uvd (B, 3), crop coordinates; distance_m, cube_m (B,)."""
    shift = metres(centre_uvd[:, None], distance_m, cube_m) - posed.joints_m.mean(1, keepdim=True)
    return posed.joints_m + shift, posed.vertices_m + shift


class Supervision:
    """What the labels say of a posed hand: distances (eq. 2 and 8), and how each part is turned.

    Distances are in units of 20 mm, under the Huber function in place of the square. Vertices are those of a layer with
    every=EVERY.
    """

    def __init__(self, device: str = "cpu") -> None:
        t = template()
        area = torch.tensor(t.area[::EVERY], dtype=torch.float32, device=device)
        self.area = area / area.mean()  # (V / 3,)
        moments = part_moments(t).moments.reshape(-1, 16, 4)[..., :3]
        self.moments = torch.tensor(moments.reshape(-1, 48), dtype=torch.float32, device=device)  # (1609, 48)

    def __call__(self, joints_m: Tensor, vertices_m: Tensor, labels: Labels, full: bool = True) -> dict[str, Tensor]:
        """The terms "joints" and, if full, "vertices": means over the batch, to which left hands and crops without a
        hand add nothing, nor real samples to the vertices."""
        terms = {"joints": joint_distance(joints_m, labels).mean()}  # eq. 2, L_J
        if full:
            counts = meshed(labels)
            truth = metres(labels.vertices_uvd[:, ::EVERY], labels.distance_m, labels.cube_m)
            off = distance(vertices_m, truth, counts[:, None])
            terms["vertices"] = ((off * self.area).mean(1) * counts).mean()  # eq. 8, 1 L_V
        return terms

    def rotations(self, labels: Labels, parts: int = 16) -> Tensor:
        """(B, parts, 3, 3) of the first parts in the crop camera's frame, from the template as it was scanned.

        The best fit to the labels' vertices (Kabsch 1976): exact for a rigid part, and as skin blends at the joints, in
        the mean 1.5 degrees off (the thumb's metacarpal 6).
        """
        truth = metres(labels.vertices_uvd, labels.distance_m, labels.cube_m).nan_to_num()
        covariance = (truth.transpose(1, 2) @ self.moments[:, : 3 * parts]).view(-1, 3, parts, 3).transpose(1, 2)
        return procrustes(covariance)[0]


def apply_parts(parts: Tensor, points: Tensor) -> Tensor:
    """parts (..., 3, 4) on one point each, (..., 3) m."""
    return (parts[..., :3] @ points[..., None])[..., 0] + parts[..., 3]


def rotation_from_rotvec(rotvec: Tensor) -> Tensor:
    """Rotation vectors (..., 3) rad to matrices (..., 3, 3): Rodrigues' formula, smooth at zero."""
    angle2 = (rotvec * rotvec).sum(-1)[..., None, None]
    small = angle2 < 1e-6
    angle = torch.where(small, 1.0, angle2).sqrt()
    a = torch.where(small, 1 - angle2 / 6, angle.sin() / angle)
    b = torch.where(small, 0.5 - angle2 / 24, 2 * ((angle / 2).sin() / angle) ** 2)
    x, y, z = rotvec.unbind(-1)
    zero = torch.zeros_like(x)
    k = matrices((zero, -z, y, z, zero, -x, -y, x, zero))
    return torch.eye(3, dtype=rotvec.dtype, device=rotvec.device) + a * k + b * (k @ k)


def rotation_from_quaternion(quaternion: Tensor) -> Tensor:
    """Quaternions (..., 4) wxyz of any length to matrices (..., 3, 3); q and -q are one rotation, zero is none."""
    q = quaternion * (2 / (quaternion * quaternion).sum(-1, keepdim=True).clamp_min(1e-12)).sqrt()
    w, x, y, z = q.unbind(-1)
    rows = (
        1 - y * y - z * z, x * y - w * z, x * z + w * y,
        x * y + w * z, 1 - x * x - z * z, y * z - w * x,
        x * z - w * y, y * z + w * x, 1 - x * x - y * y,
    )  # fmt: skip
    return matrices(rows)


def rotation_from_6d(columns: Tensor) -> Tensor:
    """Two columns (..., 6), made orthonormal, to matrices (..., 3, 3) (Zhou et al. 2019, "On the continuity of
    rotation representations"): no seam anywhere, which no three or four numbers can have."""
    x = torch.nn.functional.normalize(columns[..., :3], dim=-1)
    y = columns[..., 3:]
    y = torch.nn.functional.normalize(y - (x * y).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)


def matrices(entries: tuple[Tensor, ...]) -> Tensor:
    """Nine tensors (...), row by row, to (..., 3, 3)."""
    return torch.stack(entries, -1).view(*entries[0].shape, 3, 3)
