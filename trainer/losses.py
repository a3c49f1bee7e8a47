"""What the losses of all networks share: the labels, metres from crop coordinates, a robust distance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
    is_hand: Tensor


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
