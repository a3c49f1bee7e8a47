"""Dual Grid Net (Wan, Probst, Van Gool, Yao 2020): hand mesh vertices from one depth crop.

Image grid (section 3.2): an hourglass gives every pixel its mesh coordinates and a feature. Extension (3.3) carries the
features to the 16x16 mesh grid, a second hourglass fills in what the camera did not see, sampling reads the vertices.

Where we differ, and why: pixels also get a hand/not-hand weight, since our crops hold forearm and clutter where the
paper's are segmented; a cell holds an affine map of the template's rest position instead of a position, so that a
coarse grid carries fine vertices; positions are in crop coordinates (`hand/crop.py`), so that the camera does not
matter; each cell also predicts its own error, and the whole crop its side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...hand.template import HandTemplate, template
from .extension import GRID, extend, extend_dense


class Output(NamedTuple):
    """vertices_uvd (B, V, 3) and log_error (B, V, 1) in half cubes; cells (B, P, 2) mesh coordinates in cells and
    hand_logit (B, P) of the P = 32x32 image-grid pixels in row order; right_logit (B,)."""

    vertices_uvd: Tensor
    log_error: Tensor
    cells: Tensor
    hand_logit: Tensor
    right_logit: Tensor


class DualGridNet(nn.Module):
    """The default network. width is the number of hidden channels of both hourglasses; features those carried over."""

    def __init__(self, width: int = 64, features: int = 31) -> None:
        super().__init__()
        t = template()
        self.features = features
        # Image grid: 64x64, pixel-unshuffled to 32x32 (section 3.6). A second channel marks readings.
        self.image_stem = nn.Sequential(nn.PixelUnshuffle(2), conv(8, width), conv(width, width))
        self.image_hourglass = Hourglass(width, depth=4)
        self.image_head = nn.Sequential(conv(width, width), nn.Conv2d(width, features + 3, 1))
        # Mesh grid: 16x16, unshuffled to 8x8.
        self.mesh_stem = nn.Sequential(nn.PixelUnshuffle(2), conv(4 * (features + 1), width, 1), conv(width, width))
        self.mesh_hourglass = Hourglass(width, depth=3)
        self.mesh_head = nn.Sequential(conv(width, width), nn.Conv2d(width, 4 * 13, 1), nn.PixelShuffle(2))
        self.side_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        self.register_buffer("sampling", torch.tensor(sampling_matrix(t), dtype=torch.float32), persistent=False)
        rest = t.vertices_m - t.vertices_m.mean(0)
        homogeneous = np.concatenate([rest / 0.08, np.ones((len(rest), 1))], 1)  # (V, 4), about unit size
        self.register_buffer("rest", torch.tensor(homogeneous.T, dtype=torch.float32), persistent=False)

    def forward(self, image: Tensor) -> Output:
        """image (B, 1, 64, 64) in [-1, 1], background +1."""
        reading = (image < 0.999).to(image.dtype)
        both = torch.cat([image, reading], 1)
        low: list[Tensor] = []
        pixels = self.image_head(self.image_hourglass(self.image_stem(both), low))  # (B, C + 3, 32, 32)
        pixels = pixels.flatten(2).transpose(1, 2).float()  # (B, P, C + 3)
        cells = torch.sigmoid(pixels[..., :2]) * (GRID + 1) - 1  # a cell's margin, so that no target is at infinity
        hand_logit = pixels[..., 2]
        seen = F.max_pool2d(reading, 2).flatten(1)  # (B, P)
        mask = torch.sigmoid(hand_logit) * seen
        spread = extend if self.training else extend_dense
        grid = spread(pixels[..., 3:], cells, mask)  # (B, C + 1, 16, 16), eq. 1 and 2
        decoded = self.mesh_head(self.mesh_hourglass(self.mesh_stem(grid), [])).float()  # (B, 13, 16, 16)
        fields = (decoded.reshape(-1, GRID * GRID) @ self.sampling).reshape(len(image), 13, -1)  # (B, 13, V)
        affine = fields[:, :12].reshape(-1, 3, 4, fields.shape[2])
        vertices = (affine * self.rest).sum(2).transpose(1, 2)  # (B, V, 3)
        right = self.side_head(low[0].mean((2, 3)).float())[:, 0]
        return Output(vertices, fields[:, 12:].transpose(1, 2), cells, hand_logit, right)


class Hourglass(nn.Module):
    """Newell et al. 2016, one plain 3x3 convolution a node; appends its lowest features to `low`."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.up = conv(width, width)
        self.down = conv(width, width)
        self.inner = Hourglass(width, depth - 1) if depth > 1 else conv(width, width)
        self.out = conv(width, width)

    def forward(self, x: Tensor, low: list[Tensor]) -> Tensor:
        y = self.down(F.max_pool2d(x, 2))
        if isinstance(self.inner, Hourglass):
            y = self.inner(y, low)
        else:
            y = self.inner(y)
            low.append(y)
        return self.up(x) + F.interpolate(self.out(y), scale_factor=2.0, mode="nearest")


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def layout_cells(uv: Any) -> Any:
    """Layout coordinates in [0, 1] to mesh-grid cells in [0, 15]."""
    return uv * (GRID - 1)


def sampling_matrix(t: HandTemplate) -> np.ndarray:
    """(256, V) bilinear weights that read the mesh grid at every vertex; on the seam, the mean of both sides."""
    matrix = np.zeros((GRID * GRID, len(t.uv)))
    vertex = np.arange(len(t.uv))
    for side in range(2):
        cell = layout_cells(t.uv[:, side])
        low = np.minimum(cell.astype(int), GRID - 2)
        f = cell - low
        for dy in range(2):
            for dx in range(2):
                w = (f[:, 0] if dx else 1 - f[:, 0]) * (f[:, 1] if dy else 1 - f[:, 1])
                np.add.at(matrix, ((low[:, 1] + dy) * GRID + low[:, 0] + dx, vertex), w / 2)
    return matrix
