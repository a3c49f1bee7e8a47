"""The supervised loss of Dual Grid Net (section 3.5, eq. 4), after the closed-form refit of section 3.4.

Eq. 4 squares its residuals; we use the Huber function of the same residuals, quadratic when small and linear beyond,
since the error people feel and papers report is the mean distance, and a square lets a few hopeless samples lead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hand.parts import part_moments
from ..hand.skeleton import PART_JOINTS, PART_PARENTS, TIPS
from ..hand.template import HandTemplate, template
from .nets.dgn import Output, layout_cells


class Labels(NamedTuple):
    """`synth.samples.Sample` as tensors."""

    image: Tensor
    uv: Tensor
    on_hand: Tensor
    vertices_uvd: Tensor
    joints_uvd: Tensor
    distance_m: Tensor
    cube_m: Tensor
    is_right: Tensor


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

    def __call__(self, vertices_m: Tensor) -> tuple[Tensor, Tensor]:
        """Refined vertices (B, V, 3) and joints (B, 21, 3), m."""
        parts = self.parts(vertices_m)
        rows = parts.reshape(-1, 16, 12).transpose(1, 2).reshape(-1, 16)  # (B * 12, 16)
        blend = (rows @ self.weights.T).reshape(len(parts), 3, 4, -1)  # (B, 3, 4, V)
        vertices = (blend * self.rest_homogeneous).sum(2).transpose(1, 2)
        return vertices, self.joints_of(parts)

    def joints_of(self, parts: Tensor) -> Tensor:
        """A joint is where the two parts that meet there put it, half each; tips belong to the distal parts."""

        def place(part: list[int], joint: list[int]) -> Tensor:
            p = parts[:, part]
            return (p[..., :3] @ self.joints[joint][..., None])[..., 0] + p[..., 3]

        own = place(list(range(16)), list(PART_JOINTS))
        parent = place([max(p, 0) for p in PART_PARENTS], list(PART_JOINTS))
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


def metres(uvd: Tensor, labels: Labels) -> Tensor:
    """Crop coordinates (B, N, 3) to metres in the crop camera's frame; `hand.crop.points_from_uvd` in torch."""
    distance, half = labels.distance_m[:, None], labels.cube_m[:, None] / 2
    z = distance + uvd[..., 2] * half
    scale = half * z / distance
    return torch.stack([uvd[..., 0] * scale, uvd[..., 1] * scale, z], -1)


def dgn_loss(output: Output, labels: Labels, refit: Refit, area: Tensor, full: bool = True) -> dict[str, Tensor]:
    """Terms of the loss by name, each a scalar; their sum under "loss". area (V,) weighs the vertices, mean 1.

    Lengths are in units of 20 mm, mesh coordinates in cells. Left hands only teach the side. full=False leaves the
    refit out, for the first steps, when the parts are still shapeless.
    """
    right = labels.is_right.float()
    n_right = right.sum().clamp_min(1)
    on_hand = labels.on_hand.flatten(1).float()  # (B, P)
    target = layout_cells(labels.uv.flatten(1, 2))
    off = F.huber_loss(output.cells, target, reduction="none", delta=0.5).sum(-1)
    terms = {"correspondence": (off * on_hand).sum() / on_hand.sum().clamp_min(1)}  # eq. 4, first term
    reading = (labels.image < 0.999).float()
    seen = F.max_pool2d(reading, 2).flatten(1) * right[:, None]
    mask = F.binary_cross_entropy_with_logits(output.hand_logit, on_hand, reduction="none")
    terms["mask"] = (mask * seen).sum() / seen.sum().clamp_min(1)
    truth, truth_joints = metres(labels.vertices_uvd, labels), metres(labels.joints_uvd, labels)
    initial = metres(output.vertices_uvd, labels)
    distance = (initial - truth).norm(dim=-1) * 50  # (B, V), 20 mm units
    terms["initial"] = (huber(distance) * area).mean(1).mul(right).sum() / n_right
    if full:
        vertices, joints = refit(initial)
        refined = (huber((vertices - truth).norm(dim=-1) * 50) * area).mean(1)
        at_joints = huber((joints - truth_joints).norm(dim=-1) * 50).mean(1)
        terms["refined"] = ((refined + at_joints) * right).sum() / n_right  # eq. 4, second term
    log_truth = torch.log(distance.detach() / (50 * 0.125) + 1e-3)
    terms["error"] = 0.1 * (huber(output.log_error[..., 0] - log_truth).mean(1) * right).sum() / n_right
    terms["side"] = 0.1 * F.binary_cross_entropy_with_logits(output.right_logit, right)
    terms["loss"] = torch.stack(list(terms.values())).sum()
    return terms


def huber(x: Tensor, delta: float = 0.25) -> Tensor:
    """|x| beyond delta, quadratic below; slope 1."""
    a = x.abs()
    return torch.where(a < delta, 0.5 * a * a / delta, a - 0.5 * delta)
