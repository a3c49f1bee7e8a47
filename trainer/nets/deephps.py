"""DeepHPS (Malik et al. 2018): pose, bone scales and shape regressed from one depth crop, posed by a hand layer.

PoseCNN is a region ensemble network (Guo et al. 2017, "Region ensemble network"): a residual trunk, overlapping regions
of its feature map with a fully connected layer each, one fused regressor. alpha-CNN and beta-CNN give the bone scales
and the shape. Joints and vertices come from the hand layer (`trainer/hand_layer.py`), which stands behind the network
in `estimate` and in the criterion: an exported file holds parameters, and the daemon has the layer in numpy.

Where we differ, and why: 4.5 million weights for the paper's 92, and batch normalisation, so that a CPU can train
it; strided convolutions for pooling; the FC layers of alpha-CNN and beta-CNN also see PoseCNN's features, since how
long a bone looks depends on how it is turned; the palm's rotation is six numbers without a seam (Zhou et al. 2019);
angles, scales and shape are squashed into their ranges; the place is that of the joints' mean in crop coordinates,
beside which the crop is centred, and not the wrist's; the loss is the Huber function of eq. 2's residuals, and the six
numbers of the rotation are compared with the labels' palm too, which makes learning faster at first. FC layers of the
shape nets are 128 wide (1024), without dropout (0.3): rendered samples never repeat. 21 joints for 22, a cube of 250 mm
for a box of 150, Muon and AdamW for SGD.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...hand.skeleton import ALPHA_RANGE, ANGLE_LIMITS_RAD, BETA_RANGE
from ..hand_layer import EVERY, HandLayer, Posed, Supervision, hand_layer, place, rotation_from_6d
from ..losses import Labels, meshed

IMAGE_PX = 96
OUTPUTS = ("centre_uvd", "rotation", "angles_rad", "alpha", "beta")


class Output(NamedTuple):
    """centre_uvd (B, 3) of the 21 joints' mean, half cubes; rotation (B, 3, 3) of the palm in the crop camera's frame;
    angles_rad (B, 20), alpha (B, 6) and beta (B, 7) inside the limits of `hand/skeleton.py`; columns (B, 6) what the
    rotation was made of."""

    centre_uvd: Tensor
    rotation: Tensor
    angles_rad: Tensor
    alpha: Tensor
    beta: Tensor
    columns: Tensor


class DeepHPS(nn.Module):
    """width: channels of the trunk's first stage; with 320 the net has about as many weights as the paper's."""

    limits: Tensor  # (2, 20) rad

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        c = width
        self.stem = nn.Sequential(nn.PixelUnshuffle(4), conv(32, c))  # 24x24
        self.trunk = nn.Sequential(Residual(c, 3 * c // 2, 2), Residual(3 * c // 2, 3 * c, 2))  # 12x12, 6x6
        self.regions = Regions(3 * c, 4 * c)
        self.pose = nn.Linear(4 * self.regions.count * c, 3 + 6 + 20)
        self.alpha = ShapeNet(width // 4, 4 * self.regions.count * c, 6)
        self.beta = ShapeNet(width // 4, 4 * self.regions.count * c, 7)
        limits = torch.tensor(ANGLE_LIMITS_RAD, dtype=torch.float32)
        self.register_buffer("limits", limits.T, persistent=False)
        nn.init.normal_(self.pose.weight, std=1e-3)
        nn.init.zeros_(self.pose.bias)
        with torch.no_grad():
            self.pose.bias[[3, 7]] = 1.0  # the palm's first rotation is none

    def forward(self, image: Tensor) -> Output:
        """image (B, 1, 96, 96) in [-1, 1], background +1."""
        both = torch.cat([image, (image < 0.999).to(image.dtype)], 1)
        features = self.regions(self.trunk(self.stem(both)))  # (B, R * 4c)
        with torch.autocast(image.device.type, enabled=False):  # bfloat16 has half a millimetre between its numbers
            raw = self.pose(features.float())
        low, high = self.limits[0], self.limits[1]
        return Output(
            raw[:, :3],
            rotation_from_6d(raw[:, 3:9]),
            low + (high - low) * torch.sigmoid(raw[:, 9:]),
            squash(self.alpha(both, features), ALPHA_RANGE),
            squash(self.beta(both, features), BETA_RANGE),
            raw[:, 3:9],
        )


class Regions(nn.Module):
    """Region ensemble: four overlapping 4x4 corners of the 6x6 feature map, an FC layer each, side by side."""

    count = 4

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(dense(16 * channels, features) for _ in range(self.count))

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, :, top : top + 4, left : left + 4].flatten(1) for top in (0, 2) for left in (0, 2)]
        return torch.cat([expert(corner) for expert, corner in zip(self.experts, corners, strict=True)], 1)


class ShapeNet(nn.Module):
    """alpha-CNN or beta-CNN (section 4.1): convolutions 5, 5, 3 on 24x24, 12x12 and 12x12 cells, two FC layers."""

    def __init__(self, width: int, features: int, outputs: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            conv(2, width, 5, stride=4), conv(width, width, 5, stride=2), conv(width, 8), nn.Flatten()
        )
        self.own = dense(8 * 12 * 12, 128)
        self.both = dense(128 + features, 128)
        self.out = nn.Linear(128, outputs)

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        hidden = self.both(torch.cat([self.own(self.convolutions(image)), features], 1))
        return self.out(hidden).float()


class Residual(nn.Module):
    """He et al. 2016: two 3x3 convolutions beside a 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            conv(inputs, outputs, stride=stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inner(x) + self.skip(x))


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def dense(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU())


def squash(raw: Tensor, limits: tuple[float, float]) -> Tensor:
    """Real numbers into a range; 0 is its middle."""
    return limits[0] + (limits[1] - limits[0]) * torch.sigmoid(raw)


class Criterion:
    """Eq. 2 and, for real samples, which have no mesh, eq. 8."""

    def __init__(self, device: str = "cpu") -> None:
        self.layer = HandLayer(device, every=EVERY)
        self.supervision = Supervision(device)

    def __call__(self, output: Output, labels: Labels, full: bool = True) -> dict[str, Tensor]:
        """The terms and their sum, "loss"."""
        joints, vertices = place(pose(output, self.layer), output.centre_uvd, labels.distance_m, labels.cube_m)
        terms = self.supervision(joints, vertices, labels, full)
        # The six numbers themselves: their gradient neither fades nor grows with their length, as the rotation's does.
        columns = self.supervision.rotations(labels, parts=1)[:, 0, :, :2].transpose(1, 2).flatten(1)  # (B, 6)
        counts = meshed(labels)
        terms["rotation"] = torch.where(counts[:, None], output.columns - columns, 0.0).square().sum(1).mean()
        return {**terms, "loss": torch.stack(list(terms.values())).sum()}


def estimate(output: Output, distance_m: Tensor, cube_m: Tensor) -> tuple[Tensor, Tensor]:
    """Joints (B, 21, 3) and vertices (B, 1609, 3) m in the crop camera's frame; distance_m, cube_m (B,)."""
    return place(pose(output, hand_layer(str(distance_m.device))), output.centre_uvd, distance_m, cube_m)


def pose(output: Output, layer: HandLayer) -> Posed:
    """The hand with its wrist at the origin."""
    local = layer.part_rotations(output.angles_rad)[:, 1:]
    return layer.pose(output.rotation, local, torch.zeros_like(output.centre_uvd), output.alpha, output.beta)
