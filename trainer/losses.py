"""What the losses of all networks share: the labels, metres from crop coordinates, a robust distance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Labels(NamedTuple):
    """`synth.samples.Sample` as tensors, and what real samples (`real.py`) lack; None: all samples have all of it.

    has_mesh (B,) bool: whether uv, on_hand and vertices_uvd mean something. joint_mix (B, 21, 21): label j is of the
    point that is this mean of our joints, in metres. joint_weight (B, 21): 0 where there is no label j.
    """

    image: Tensor
    uv: Tensor
    on_hand: Tensor
    vertices_uvd: Tensor
    joints_uvd: Tensor
    distance_m: Tensor
    cube_m: Tensor
    is_right: Tensor
    is_hand: Tensor
    has_mesh: Tensor | None = None
    joint_weight: Tensor | None = None
    joint_mix: Tensor | None = None


def rows(labels: Labels, which: slice | Tensor) -> Labels:
    """Some of a batch's samples: those of a slice, an index or a mask."""
    return Labels(*(None if x is None else x[which] for x in labels))  # type: ignore[arg-type]


def together(a: Labels, b: Labels) -> Labels:
    """Two batches in one, which lack the same columns, if any."""
    return Labels(*(None if x is None and y is None else torch.cat([x, y]) for x, y in zip(a, b, strict=True)))  # type: ignore[arg-type,list-item]


def meshed(labels: Labels) -> Tensor:
    """(B,) bool, the indicator of DeepHPS' eq. 8: samples whose mesh counts."""
    counts = labels.is_right & labels.is_hand
    return counts if labels.has_mesh is None else counts & labels.has_mesh


def joint_distance(joints_m: Tensor, labels: Labels) -> Tensor:
    """Distance (B,) of the joints (B, 21, 3) m to those that are labelled: their mean under the Huber function, in
    units of 20 mm; 0 for left hands and crops without a hand."""
    counts = (labels.is_right & labels.is_hand).float()  # (B,)
    weight = torch.ones_like(joints_m[..., 0]) if labels.joint_weight is None else labels.joint_weight  # (B, 21)
    if labels.joint_mix is not None:
        joints_m = labels.joint_mix @ joints_m
    truth = metres(labels.joints_uvd, labels.distance_m, labels.cube_m)
    off = distance(joints_m, truth, (counts[:, None] * weight) > 0)  # (B, 21)
    return (off * weight).sum(1) / weight.sum(1).clamp_min(1e-6) * counts


def distance(points_m: Tensor, truth_m: Tensor, counts: Tensor) -> Tensor:
    """Huber function of the distance (B, N) in units of 20 mm; where counts (B, N) or (B, 1) is false there is neither
    a gradient nor, whatever the truth holds, a NaN."""
    off = torch.where(counts[..., None], points_m - truth_m, 0.0)
    return huber(50 * off.norm(dim=-1))


def metres(uvd: Tensor, distance_m: Tensor, cube_m: Tensor) -> Tensor:
    """Crop coordinates (B, N, 3) to metres in the crop camera's frame; `hand.crop.points_from_uvd` in torch."""
    distance, half = distance_m[:, None], cube_m[:, None] / 2
    z = distance + uvd[..., 2] * half
    scale = half * z / distance
    return torch.stack([uvd[..., 0] * scale, uvd[..., 1] * scale, z], -1)


def huber(x: Tensor, delta: float = 0.25) -> Tensor:
    """|x| beyond delta, quadratic below; slope 1."""
    a = x.abs()
    return torch.where(a < delta, 0.5 * a * a / delta, a - 0.5 * delta)
