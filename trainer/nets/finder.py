"""The finder: hands' centres in a picture of a whole scene, as peaks of a map (CenterNet: Zhou, Wang and
Kraehenbuehl 2019, Objects as Points).

Every cell of 4x4 pixels says how likely it holds a hand's centre, where in it, how far away it is, and the hand's side.
An hourglass of plain 3x3 convolutions with few channels: at its lowest resolution a cell sees most of the picture,
since an arm and a body tell a hand from a foot or a bottle. What goes in and comes out: `edge/finder.py`.

Where we differ from the paper: no size is predicted, as a hand's cube is the same for all. A picture of depth spans two
metres and a finger is two centimetres: beside the depth the network gets the relief of every cell, how far each pixel
lies behind the nearest surface about, and says how far a hand's centre lies behind the cell's nearest pixel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...edge.finder import COLUMNS, FARTHEST_M, NEAREST_M, OUTPUTS, PICTURE, ROWS, STRIDE
from .dgn import conv

__all__ = ["OUTPUTS", "Criterion", "FinderNet", "Output", "Targets", "targets"]

OFFSET, LOG_Z = 0.3, 0.1  # what the last layer gives is of unit size, so that a step of the optimiser is a small one
RELIEF_M = 0.15  # depth behind the nearest surface in 3x3 cells over which relief is told apart
HEAT_SHARE = 0.003  # of the cells hold a hand: what the untrained network says
SPREAD_CELLS_M = 0.5  # standard deviation of a peak in the target, cells at 1 m
LEAST_SPREAD, MOST_SPREAD = 0.7, 2.0  # cells
NEAR_CELLS = 1.0  # cells so near to a centre learn where it is
IGNORED_M = 0.09  # about a hand that is hardly seen, nothing is learned this far from its centre


class Output(NamedTuple):
    """heat (B, 1, 28, 40), offset (B, 2, 28, 40), log_z (B, 1, 28, 40), right (B, 1, 28, 40); `edge.finder.Maps`."""

    heat: Tensor
    offset: Tensor
    log_z: Tensor
    right: Tensor


class FinderNet(nn.Module):
    """width: channels at the resolution of the cells; three and five times as many below."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        c, m, k = width, 3 * width, 5 * width
        self.nearest = nn.MaxPool2d(3, 1, 1)
        self.first = conv(3 * STRIDE**2, c)  # 28x40
        self.fine = conv(c, c)
        self.middle = nn.Sequential(down(c, m), conv(m, m), conv(m, m))  # 14x20
        self.coarse = nn.Sequential(down(m, k), conv(k, k), conv(k, k), conv(k, k), conv(k, k))  # 7x10
        self.rise_middle = conv(k, m, 1)
        self.merge_middle = conv(m, m)
        self.rise_fine = conv(m, c, 1)
        self.merge_fine = conv(c, c)
        self.mix = conv(c + 3 * STRIDE**2, 2 * c, 1)
        self.last = nn.Conv2d(2 * c, 5, 1)
        nn.init.normal_(self.last.weight, std=1e-3)
        with torch.no_grad():
            self.last.bias.copy_(torch.tensor([math.log(HEAT_SHARE), 0, 0, 0, 0]))  # type: ignore[union-attr]

    def forward(self, picture: Tensor) -> Output:
        """picture (B, 32, 28, 40), as `edge.finder.network_input` makes it."""
        inverse, reading = picture[:, : STRIDE**2], picture[:, STRIDE**2 :]  # (B, 16, 28, 40)
        least = NEAREST_M / FARTHEST_M
        within = inverse.amax(1, keepdim=True)  # (B, 1, 28, 40) NEAREST_M / z
        nearest = self.nearest(within).clamp_min(least)
        within = torch.where(within > 0, within, nearest)
        per_relief = NEAREST_M / RELIEF_M
        relief = (1 + per_relief / nearest - per_relief / inverse.clamp_min(least)).clamp(0, 1) * reading.clamp_min(0)
        cells = torch.cat([inverse, reading, relief], 1)  # (B, 48, 28, 40)
        fine = self.fine(self.first(cells))
        middle = self.middle(fine)  # (B, 3c, 14, 20)
        coarse = self.coarse(middle)  # (B, 5c, 7, 10)
        middle = self.merge_middle(middle + up(self.rise_middle(coarse)))
        fine = self.merge_fine(fine + up(self.rise_fine(middle)))
        hidden = self.mix(torch.cat([fine, cells.to(fine.dtype)], 1))
        with torch.autocast(picture.device.type, enabled=False):  # distances do not survive bfloat16
            heat, offset, log_z, right = self.last(hidden.float()).split([1, 2, 1, 1], 1)
        return Output(heat, OFFSET * offset, LOG_Z * log_z - (within / NEAREST_M).log(), right)


def down(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Targets(NamedTuple):
    """What the maps should be, of every cell: heat (B, 28, 40) in [0, 1], 1 at a hand's centre; counts (B, 28, 40)
    whether the heat is learned there; weight (B, 28, 40) with which offset (B, 2, 28, 40), log_z and is_right (B, 28,
    40) of the nearest hand's centre are learned."""

    heat: Tensor
    counts: Tensor
    weight: Tensor
    offset: Tensor
    log_z: Tensor
    is_right: Tensor


def targets(centres: Tensor, right: Tensor, role: Tensor) -> Targets:
    """centres (B, K, 3) m, right (B, K) and role (B, K) of up to K hands: 1 a hand to be found, 0 one that is hardly
    seen, about which nothing is learned, -1 none."""
    device = centres.device
    z = centres[..., 2].clamp_min(0.05)
    focal = torch.tensor([PICTURE.fx, PICTURE.fy], device=device)
    middle = torch.tensor([PICTURE.cx, PICTURE.cy], device=device)
    pixel = centres[..., :2] / z[..., None] * focal + middle
    cell = (pixel - (STRIDE - 1) / 2) / STRIDE  # (B, K, 2)
    y, x = torch.meshgrid(torch.arange(ROWS, device=device), torch.arange(COLUMNS, device=device), indexing="ij")
    at = torch.stack([x, y], -1).float()  # (28, 40, 2)
    size = torch.tensor([COLUMNS, ROWS], device=device)
    inside = ((cell > -0.5) & (cell < size - 0.5)).all(-1)  # (B, K)
    found = (role == 1) & inside
    off = cell[:, :, None, None] - at  # (B, K, 28, 40, 2)
    spread = (SPREAD_CELLS_M / z).clamp(LEAST_SPREAD, MOST_SPREAD)[..., None, None]
    peak = cell.round()[:, :, None, None] - at
    heat = torch.exp(-peak.square().sum(-1) / (2 * spread**2)) * found[..., None, None]  # Zhou et al., section 3
    ignored = off.norm(dim=-1) < (IGNORED_M * PICTURE.fx / STRIDE / z)[..., None, None]
    counts = ~(ignored & (role >= 0)[..., None, None] & ~found[..., None, None]).any(1)
    distance = off.abs().amax(-1) + 1e3 * ~found[..., None, None]
    nearest, which = distance.min(1)  # (B, 28, 40)
    weight = (nearest <= NEAR_CELLS) * torch.exp(-nearest.square())

    def of_nearest(values: Tensor) -> Tensor:
        """(B, K) to (B, 28, 40)."""
        return values.gather(1, which.flatten(1)).view_as(which)

    own = off.gather(1, which[:, None, ..., None].expand(-1, -1, -1, -1, 2))[:, 0]  # (B, 28, 40, 2)
    heat = heat.amax(1)
    return Targets(
        heat, counts | (heat == 1), weight, own.permute(0, 3, 1, 2), of_nearest(z.log()), of_nearest(right.float())
    )


class Criterion:
    """The focal loss of the heat (Zhou et al., eq. 1, alpha 2, beta 4) and what is learned near centres (eq. 2)."""

    def __call__(self, output: Output, t: Targets) -> dict[str, Tensor]:
        """The terms and their sum, "loss"."""
        hands = (t.heat == 1).sum().clamp_min(1)
        logit = output.heat[:, 0]
        p = torch.sigmoid(logit)
        at_peak = -((1 - p) ** 2) * F.logsigmoid(logit)
        elsewhere = -((1 - t.heat) ** 4) * p**2 * F.logsigmoid(-logit)
        heat = torch.where(t.heat == 1, at_peak, elsewhere) * t.counts
        near = t.weight.sum().clamp_min(1)
        offset = (output.offset - t.offset).abs().sum(1)
        log_z = (output.log_z[:, 0] - t.log_z).abs()
        side = F.binary_cross_entropy_with_logits(output.right[:, 0], t.is_right, reduction="none")
        terms = {
            "heat": heat.sum() / hands,
            "offset": 0.3 * (offset * t.weight).sum() / near,
            "log_z": 10 * (log_z * t.weight).sum() / near,
            "side": 0.5 * (side * t.weight).sum() / near,
        }
        return {**terms, "loss": torch.stack(list(terms.values())).sum()}
