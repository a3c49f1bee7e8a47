"""Dual Grid Net (Wan, Probst, Van Gool, Yao 2020): hand mesh vertices from one depth crop.

Image grid (section 3.2): an hourglass gives every pixel its mesh coordinates and a feature. Extension (3.3) carries the
features to the 16x16 mesh grid, a second hourglass fills in what the camera did not see, sampling reads the vertices.

Where we differ, and why: pixels also get a hand/not-hand weight, since our crops hold forearm and clutter where the
paper's are segmented; a cell holds an affine map of the template's rest position instead of a position, so that a
coarse grid carries fine vertices; positions are in crop coordinates (`hand/crop.py`), so that the camera does not
matter; each cell also predicts its own error, and the whole crop its side and whether it shows a hand.

Eq. 4 squares its residuals; we use the Huber function of the same residuals, quadratic when small and linear beyond,
since the error people feel and papers report is the mean distance, and a square lets a few hopeless samples lead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...hand.template import HandTemplate, template
from ..losses import Labels, huber, joint_distance, meshed, metres
from ..refit import Refit
from .extension import GRID, extend, extend_dense

IMAGE_PX = 64  # section 3.6
OUTPUTS = ("vertices_uvd", "log_error", "hand_logit", "right_logit", "presence_logit")
IMAGE_ACROSS, MESH_ACROSS = (1, 1, 3, 3), (3, 3, 3)  # on fine grids 3x3 would be a fifth of all time
EVERY = 3  # the loss looks at every third vertex: the fields between them are smooth


class Output(NamedTuple):
    """vertices_uvd (B, V, 3) and log_error (B, V) in half cubes; cells (B, P, 2) mesh coordinates in cells and
    hand_logit (B, P) of the P = 32x32 image-grid pixels in row order; of the whole crop right_logit (B,): its side, and
    presence_logit (B,): whether it shows a hand."""

    vertices_uvd: Tensor
    log_error: Tensor
    cells: Tensor
    hand_logit: Tensor
    right_logit: Tensor
    presence_logit: Tensor


class DualGridNet(nn.Module):
    """The default network. width is the number of hidden channels of the finest grid; features those carried over.

    image, mesh: channels of the two hourglasses' levels in quarters of the width, the finest level first. Weights cost
    little time where the grid is coarse, and it is weights that the network lacks.
    """

    def __init__(
        self,
        width: int = 64,
        features: int = 31,
        image: Sequence[int] = (4, 6, 8, 10, 10),
        mesh: Sequence[int] = (6, 8, 8, 8),
    ) -> None:
        super().__init__()
        t = template()
        self.features = features
        image, mesh = ([width * quarters // 4 for quarters in level] for level in (image, mesh))
        # Image grid: 64x64, pixel-unshuffled to 32x32 (section 3.6). A second channel marks readings.
        self.image_stem = nn.Sequential(nn.PixelUnshuffle(2), conv(8, width), conv(width, width))
        self.image_hourglass = Hourglass(image, IMAGE_ACROSS)
        self.image_head = nn.Sequential(conv(width, width), nn.Conv2d(width, features + 3, 1))
        # Mesh grid: 16x16, unshuffled to 8x8.
        self.mesh_stem = nn.Sequential(
            nn.PixelUnshuffle(2), conv(4 * (features + 1), mesh[0], 1), conv(mesh[0], mesh[0])
        )
        self.mesh_hourglass = Hourglass(mesh, MESH_ACROSS)
        self.mesh_head = nn.Sequential(conv(mesh[0], mesh[0]), nn.Conv2d(mesh[0], 4 * 13, 1), nn.PixelShuffle(2))
        self.crop_head = nn.Sequential(nn.Linear(image[-1], width), nn.ReLU(), nn.Linear(width, 2))
        sampling = sampling_matrix(t)
        read = np.flatnonzero(sampling.any(1))  # cells that a vertex reads
        self.register_buffer("read", torch.tensor(read), persistent=False)
        self.register_buffer("sampling", torch.tensor(sampling[read], dtype=torch.float32), persistent=False)
        rest = t.vertices_m - t.vertices_m.mean(0)
        homogeneous = np.concatenate([rest / 0.08, np.ones((len(rest), 1))], 1)  # (V, 4), about unit size
        self.register_buffer("rest", torch.tensor(homogeneous.T, dtype=torch.float32), persistent=False)

    def forward(self, image: Tensor) -> Output:
        """image (B, 1, 64, 64) in [-1, 1], background +1."""
        reading = (image < 0.999).to(image.dtype)
        both = torch.cat([image, reading], 1)
        low: list[Tensor] = []
        pixels = self.image_head(self.image_hourglass(self.image_stem(both), low))  # (B, C + 3, 32, 32)
        pixels = pixels.permute(0, 2, 3, 1).flatten(1, 2).float()  # (B, P, C + 3), in the order that engines have
        cells, hand_logit, features = pixels.split([2, 1, self.features], 2)
        cells = torch.sigmoid(cells) * (GRID + 1) - 1  # a cell's margin, so that no target is at infinity
        hand_logit = hand_logit[..., 0]
        seen = F.max_pool2d(reading, 2).flatten(1)  # (B, P)
        mask = torch.sigmoid(hand_logit) * seen
        spread = extend if self.training else extend_dense
        grid = spread(features, cells, mask)  # (B, C + 1, 16, 16), eq. 1 and 2
        decoded = self.mesh_head(self.mesh_hourglass(self.mesh_stem(grid), [])).float()  # (B, 13, 16, 16)
        cells_read = decoded.reshape(-1, GRID * GRID)[:, self.read]
        fields = (cells_read @ self.sampling).reshape(len(image), 13, -1)  # (B, 13, V)
        affine = fields[:, :12].reshape(-1, 3, 4, fields.shape[2])
        vertices = (affine * self.rest).sum(2).transpose(1, 2)  # (B, V, 3)
        right, presence = self.crop_head(low[0].mean((2, 3)).float()).unbind(1)
        return Output(vertices, fields[:, 12], cells, hand_logit, right, presence)


class Criterion:
    """The supervised loss (section 3.5, eq. 4), before and after the closed-form refit of section 3.4.

    Terms by name, each a scalar, and their sum under "loss": means over the batch, so that the mean of two batches'
    losses is the loss of both. Lengths are in units of 20 mm, mesh coordinates in cells. Left hands only teach the
    side, crops without a hand only that there is none; real samples, which have no mesh (DeepHPS, eq. 8), the refitted
    joints and the side, but not that there is a hand: what looks real would be one. full=False leaves the refit out,
    for the first steps, when the parts are still shapeless.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.refit = Refit(device=device)
        area = torch.tensor(template().area[::EVERY], dtype=torch.float32, device=device)
        self.area = area / area.mean()

    def __call__(self, output: Output, labels: Labels, full: bool = True) -> dict[str, Tensor]:
        is_hand = labels.is_hand.float()
        right = meshed(labels).float()
        drawn = torch.ones_like(is_hand) if labels.has_mesh is None else labels.has_mesh.float()
        on_hand = labels.on_hand.flatten(1).float()  # (B, P)
        target = layout_cells(labels.uv.flatten(1, 2))
        off = F.huber_loss(output.cells, target, reduction="none", delta=0.5).sum(-1)
        seen = F.max_pool2d((labels.image < 0.999).float(), 2).flatten(1)
        mask = F.binary_cross_entropy_with_logits(output.hand_logit, on_hand, reduction="none")
        known = torch.where(labels.is_hand, right, drawn)
        terms = {
            "correspondence": (mean_where(off, on_hand) * right).mean(),  # eq. 4, first term
            "mask": (mean_where(mask, seen) * known).mean(),
        }
        crop = labels.distance_m, labels.cube_m
        truth = metres(labels.vertices_uvd[:, ::EVERY], *crop)
        initial = metres(output.vertices_uvd, *crop)
        distance = (initial[:, ::EVERY] - truth).norm(dim=-1) * 50  # (B, V / 3), 20 mm units
        terms["initial"] = ((huber(distance) * self.area).mean(1) * right).mean()
        if full:
            vertices, joints = self.refit(initial, EVERY)
            refined = (huber((vertices - truth).norm(dim=-1) * 50) * self.area).mean(1)
            terms["refined"] = (refined * right + joint_distance(joints, labels)).mean()  # eq. 4, second term
        log_truth = torch.log(distance.detach() / (25 * labels.cube_m[:, None]) + 1e-3)  # of half cubes
        terms["error"] = 0.1 * (huber(output.log_error[:, ::EVERY] - log_truth).mean(1) * right).mean()
        side = F.binary_cross_entropy_with_logits(output.right_logit, labels.is_right.float(), reduction="none")
        terms["side"] = 0.1 * (side * is_hand).mean()
        presence = F.binary_cross_entropy_with_logits(output.presence_logit, is_hand, reduction="none")
        terms["presence"] = 0.1 * (presence * drawn).mean()
        terms["loss"] = torch.stack(list(terms.values())).sum()
        return terms


def mean_where(x: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the last axis; 0 where no weight is."""
    return (x * weight).sum(-1) / weight.sum(-1).clamp_min(1)


def estimate(output: Output, distance_m: Tensor, cube_m: Tensor) -> tuple[Tensor, Tensor]:
    """Joints (B, 21, 3) and vertices (B, 1609, 3) after the closed-form refit, m in the crop camera's frame."""
    vertices, joints = _refit(str(distance_m.device))(metres(output.vertices_uvd, distance_m, cube_m))
    return joints, vertices


@lru_cache
def _refit(device: str) -> Refit:
    return Refit(device=device)


class Hourglass(nn.Module):
    """Newell et al. 2016, one plain convolution a node; appends its lowest features to `low`. widths: channels at each
    level, the finest first. Kernels are 3x3, but across, from a level's way down to its way up, what is given."""

    def __init__(self, widths: Sequence[int], across: Sequence[int]) -> None:
        super().__init__()
        here, below, *rest = widths
        self.up = conv(here, here, across[0])
        self.down = conv(here, below)
        self.inner = Hourglass([below, *rest], across[1:]) if rest else conv(below, below)
        self.out = conv(below, here)

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
