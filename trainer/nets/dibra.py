"""The base network of Dibra, Wolf, Oztireli and Gross 2017: 16 quaternions from one depth crop (sections 3.2 and 4.1).

An AlexNet for regression with one fully connected layer. The paper refines it on unlabelled depth; for that, a pose
must say how every joint moves (`trainer/hand_layer.py`, which stands behind the network in `estimate` and the
criterion).

Where we differ, and why: about 7 million weights with batch normalisation and strided convolutions, so that a CPU can
train it, and no dropout, since rendered samples never repeat; bone scales are estimated too, since our hands differ in
size where the paper's training data had one hand; the place of the joints' mean is estimated, in crop coordinates;
joints and vertices are compared beside the quaternions, as these alone leave errors to add up along a finger. The FC
layer is 1024 wide (4096), depth is in [-1, 1] ([0, 1]), Muon and AdamW train it (Adam at 1e-3, batches of 200).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...hand.skeleton import ALPHA_RANGE, PART_PARENTS
from ..hand_layer import (
    EVERY,
    HandLayer,
    Posed,
    Supervision,
    hand_layer,
    place,
    rotation_from_quaternion,
)
from ..losses import Labels, meshed

IMAGE_PX = 120
OUTPUTS = ("centre_uvd", "quaternions", "alpha")


class Output(NamedTuple):
    """centre_uvd (B, 3) of the 21 joints' mean, half cubes; quaternions (B, 16, 4) wxyz of length 1: the palm's in the
    crop camera's frame, the others' in their parents, from the template as it was scanned; alpha (B, 6) bone scales."""

    centre_uvd: Tensor
    quaternions: Tensor
    alpha: Tensor


class DIBRA(nn.Module):
    """width: channels of the first convolution; the paper's AlexNet starts with 96."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        c = width
        self.convolutions = nn.Sequential(
            nn.PixelUnshuffle(4),
            conv(32, c),  # 30x30, 12x12 pixels seen four apart: AlexNet's 11x11
            conv(c, 2 * c, stride=2),  # 15x15
            conv(2 * c, 3 * c, stride=2, padding=0),  # 7x7
            conv(3 * c, 3 * c),
            conv(3 * c, 2 * c),
            nn.Flatten(),
        )
        self.dense = nn.Sequential(nn.Linear(2 * c * 49, 16 * c, bias=False), nn.BatchNorm1d(16 * c), nn.ReLU())
        self.out = nn.Linear(16 * c, 3 + 16 * 4 + 6)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)
        with torch.no_grad():
            self.out.bias[3:67:4] = 1.0  # the first rotations are none

    def forward(self, image: Tensor) -> Output:
        """image (B, 1, 120, 120) in [-1, 1], background +1."""
        both = torch.cat([image, (image < 0.999).to(image.dtype)], 1)
        features = self.dense(self.convolutions(both))
        with torch.autocast(image.device.type, enabled=False):  # bfloat16 has half a millimetre between its numbers
            raw = self.out(features.float())
        low, high = ALPHA_RANGE
        return Output(
            raw[:, :3],
            F.normalize(raw[:, 3:67].reshape(-1, 16, 4), dim=-1),
            low + (high - low) * torch.sigmoid(raw[:, 67:]),
        )


def conv(inputs: int, outputs: int, stride: int = 1, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Criterion:
    """The squared distance of poses (section 3.2), and DeepHPS' of joints and vertices."""

    def __init__(self, device: str = "cpu") -> None:
        self.layer = HandLayer(device, every=EVERY)
        self.supervision = Supervision(device)

    def __call__(self, output: Output, labels: Labels, full: bool = True) -> dict[str, Tensor]:
        """The terms and their sum, "loss"."""
        hand = pose(output, self.layer)
        joints, vertices = place(hand, output.centre_uvd, labels.distance_m, labels.cube_m)
        terms = self.supervision(joints, vertices, labels, full)
        counts = meshed(labels)
        turned = self.supervision.rotations(labels)  # (B, 16, 3, 3)
        local = torch.cat([turned[:, :1], turned[:, PART_PARENTS[1:]].mT @ turned[:, 1:]], 1)
        # 8 (1 - (p . q)^2): a squared distance of quaternions that takes q and -q for the rotation that both are.
        off = torch.where(counts[:, None, None, None], rotation_from_quaternion(output.quaternions) - local, 0.0)
        terms["pose"] = off.square().sum((2, 3)).mean()
        return {**terms, "loss": torch.stack(list(terms.values())).sum()}


def estimate(output: Output, distance_m: Tensor, cube_m: Tensor) -> tuple[Tensor, Tensor]:
    """Joints (B, 21, 3) and vertices (B, 1609, 3) m in the crop camera's frame; distance_m, cube_m (B,)."""
    return place(pose(output, hand_layer(str(distance_m.device))), output.centre_uvd, distance_m, cube_m)


def pose(output: Output, layer: HandLayer) -> Posed:
    """The hand of the template's shape with its wrist at the origin."""
    beta = output.alpha.new_zeros(len(output.alpha), 7)
    return layer.from_quaternions(output.quaternions, torch.zeros_like(output.centre_uvd), output.alpha, beta)
