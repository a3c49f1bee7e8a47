"""The closed-form refit of Dual Grid Net (section 3.4, eq. 3) in torch: parts' similarities, skinning, joints.

The numpy twin in the daemon is `edge/refit.py`, which also imposes bone lengths and limits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..hand.parts import part_moments
from ..hand.skeleton import PARENT_OR_PALM, PART_JOINTS, TIPS
from ..hand.template import HandTemplate, template


class Refit:
    """Per-part similarity to the template and skinning (section 3.4, eq. 3), differentiable, in metres."""

    def __init__(self, t: HandTemplate | None = None, device: str = "cpu") -> None:
        t = t or template()

        def buffer(x: Any) -> Tensor:
            return torch.tensor(x, dtype=torch.float32, device=device)

        self.moments, self.centroid, self.variance = (buffer(x) for x in part_moments(t))
        self.rest = buffer(t.vertices_m)
        self.rest_homogeneous = torch.cat([self.rest, torch.ones_like(self.rest[:, :1])], 1).T  # (4, V)
        self.weights = buffer(t.weights)
        self.joints = buffer(t.joints_m)

    def parts(self, vertices_m: Tensor) -> Tensor:
        """Similarity of each part to the template (eq. 3; Umeyama 1991): (B, V, 3) m to (B, 16, 3, 4)."""
        rows = vertices_m.transpose(1, 2).reshape(-1, len(self.rest))  # (B * 3, V): one plain matrix product
        m = (rows @ self.moments).reshape(-1, 3, 16, 4).transpose(1, 2)  # (B, 16, 3, 4)
        covariance, centre = m[..., :3], m[..., 3]
        rotation, trace = procrustes(covariance)
        scale = trace / self.variance  # (B, 16)
        linear = rotation * scale[..., None, None]
        shift = centre - (linear @ self.centroid[..., None])[..., 0]
        return torch.cat([linear, shift[..., None]], -1)

    def __call__(self, vertices_m: Tensor, every: int = 1) -> tuple[Tensor, Tensor]:
        """Refined vertices (B, V / every, 3), each so manieth one, and joints (B, 21, 3), m."""
        parts = self.parts(vertices_m)
        rows = parts.reshape(-1, 16, 12).transpose(1, 2).reshape(-1, 16)  # (B * 12, 16)
        blend = (rows @ self.weights[::every].T).reshape(len(parts), 3, 4, -1)  # (B, 3, 4, V / every)
        vertices = (blend * self.rest_homogeneous[:, ::every]).sum(2).transpose(1, 2)
        return vertices, self.joints_of(parts)

    def joints_of(self, parts: Tensor) -> Tensor:
        """A joint is where the two parts that meet there put it, half each; tips belong to the distal parts."""

        def place(part: list[int], joint: list[int]) -> Tensor:
            p = parts[:, part]
            return (p[..., :3] @ self.joints[joint][..., None])[..., 0] + p[..., 3]

        own = place(list(range(16)), list(PART_JOINTS))
        parent = place(PARENT_OR_PALM, list(PART_JOINTS))
        joints = parts.new_zeros(len(parts), 21, 3)
        joints[:, list(PART_JOINTS)] = (own + parent) / 2
        joints[:, list(TIPS)] = place(list(range(3, 16, 3)), list(TIPS))
        return joints


class _Procrustes(torch.autograd.Function):
    """Nearest rotation R to H (..., 3, 3), and trace(R^T H); the gradient has no 1 / (s_i - s_j) in it."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor]:
        u, s, vt = torch.linalg.svd(h)
        sign = torch.ones_like(s)
        sign[..., 2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
        s = s * sign
        rotation = (u * sign[..., None, :]) @ vt
        ctx.save_for_backward(u * sign[..., None, :], s, vt, rotation)
        return rotation, s.sum(-1)

    @staticmethod
    def backward(ctx: Any, d_rotation: Tensor, d_trace: Tensor) -> Tensor:
        u, s, vt, rotation = ctx.saved_tensors
        # R = U V^T: dR = U [(U^T dH V - V^T dH^T U) / (s_i + s_j)] V^T
        g = u.transpose(-1, -2) @ d_rotation @ vt.transpose(-1, -2)
        total = s[..., :, None] + s[..., None, :]
        g = (g - g.transpose(-1, -2)) / total.clamp_min(1e-3 * s[..., :1, None].clamp_min(1e-12))
        return u @ g @ vt + d_trace[..., None, None] * rotation


def procrustes(h: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation (..., 3, 3) that maximises trace(R^T H), and that trace (...)."""
    return _Procrustes.apply(h)  # type: ignore[no-untyped-call]
