"""Extension: image-grid features to the mesh grid (Dual Grid Net, section 3.3, eq. 1 and 2).

Every pixel p with mesh coordinates m spreads its feature over the cells n with weights exp(-|n - m|^2 / 2), normalised
over the cells; a cell holds the weighted mean of what reached it, and how much that was. Two forms of the same sum:
`extend_dense` in plain torch (exported, and the slow twin of the tests), `extend` compiled for training on a CPU, which
skips pixels that are not hand and cells more than four away (the paper's 8x8 kernel; they weigh under 4e-4).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

GRID = 16  # cells a side, section 3.6
FARTHEST_SQUARED = 40.0  # weights below e^-20 stay there: their products would be denormal, and slow every product down
EPSILON = 1e-2  # keeps empty cells finite


def extend_dense(features: Tensor, cells: Tensor, mask: Tensor) -> Tensor:
    """features (B, P, C), cells (B, P, 2) in cell units, mask (B, P) in [0, 1] to (B, C + 1, 16, 16).

    The last channel is the occupancy s / (s + 1) of each cell's total weight s.
    """
    n = torch.arange(GRID, dtype=cells.dtype, device=cells.device)
    squared = (cells.transpose(1, 2).unsqueeze(2) - n.view(1, 1, GRID, 1)) ** 2  # (B, 2, 16, P)
    weight = torch.exp(-0.5 * squared.clamp(max=FARTHEST_SQUARED))
    total = weight.sum(2)  # (B, 2, P)
    wx = weight[:, 0] * (mask / (total[:, 0] * total[:, 1])).unsqueeze(1)  # (B, 16, P)
    w = (weight[:, 1].unsqueeze(2) * wx.unsqueeze(1)).flatten(1, 2)  # (B, 256, P), eq. 2
    one = torch.ones_like(features[..., :1])
    grid = w @ torch.cat([features, one], 2)  # (B, 256, C + 1), eq. 1
    return _normalise(grid)


def extend(features: Tensor, cells: Tensor, mask: Tensor) -> Tensor:
    """`extend_dense`, compiled for training on the CPU."""
    if features.device.type != "cpu":
        return extend_dense(features, cells, mask)
    return _normalise(_Extend.apply(features, cells, mask))  # type: ignore[no-untyped-call]


def _normalise(grid: Tensor) -> Tensor:
    s = grid[..., -1:]
    g = torch.cat([grid[..., :-1] / (s + EPSILON), s / (s + 1)], 2)
    return g.transpose(1, 2).reshape(g.shape[0], g.shape[2], GRID, GRID)


class _Extend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, cells: Tensor, mask: Tensor) -> Tensor:
        f, c, m = (x.detach().float().contiguous() for x in (features, cells, mask))
        ctx.save_for_backward(f, c, m)
        grid = torch.zeros(f.shape[0], GRID * GRID, f.shape[2] + 1)
        _forward(f.numpy(), c.numpy(), m.numpy(), grid.numpy())
        return grid

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f, c, m = ctx.saved_tensors
        df, dc, dm = torch.zeros_like(f), torch.zeros_like(c), torch.zeros_like(m)
        _backward(
            f.numpy(), c.numpy(), m.numpy(), gradient.contiguous().float().numpy(), df.numpy(), dc.numpy(), dm.numpy()
        )
        return df, dc, dm


MASK_FLOOR = 1e-3  # pixels this sure not to be hand are skipped


@njit(cache=True, fastmath=True, parallel=True)  # type: ignore[untyped-decorator]
def _forward(features: Any, cells: Any, mask: Any, grid: Any) -> None:
    batch, pixels, channels = features.shape
    for b in prange(batch):
        wx = np.empty(GRID, np.float32)
        wy = np.empty(GRID, np.float32)
        for p in range(pixels):
            if mask[b, p] < MASK_FLOOR:
                continue
            x0 = max(0, min(GRID - 8, int(math.floor(cells[b, p, 0])) - 3))
            y0 = max(0, min(GRID - 8, int(math.floor(cells[b, p, 1])) - 3))
            sx = np.float32(0)
            sy = np.float32(0)
            for k in range(8):
                wx[k] = math.exp(-0.5 * (cells[b, p, 0] - (x0 + k)) ** 2)
                wy[k] = math.exp(-0.5 * (cells[b, p, 1] - (y0 + k)) ** 2)
                sx += wx[k]
                sy += wy[k]
            scale = mask[b, p] / (sx * sy)
            for j in range(8):
                for i in range(8):
                    w = wy[j] * wx[i] * scale
                    n = (y0 + j) * GRID + x0 + i
                    for c in range(channels):
                        grid[b, n, c] += w * features[b, p, c]
                    grid[b, n, channels] += w


@njit(cache=True, fastmath=True, parallel=True)  # type: ignore[untyped-decorator]
def _backward(features: Any, cells: Any, mask: Any, gradient: Any, d_features: Any, d_cells: Any, d_mask: Any) -> None:
    batch, pixels, channels = features.shape
    for b in prange(batch):
        wx = np.empty(GRID, np.float32)
        wy = np.empty(GRID, np.float32)
        for p in range(pixels):
            if mask[b, p] < MASK_FLOOR:
                continue
            u, v = cells[b, p, 0], cells[b, p, 1]
            x0 = max(0, min(GRID - 8, int(math.floor(u)) - 3))
            y0 = max(0, min(GRID - 8, int(math.floor(v)) - 3))
            sx = np.float32(0)
            sy = np.float32(0)
            mx = np.float32(0)
            my = np.float32(0)
            for k in range(8):
                wx[k] = math.exp(-0.5 * (u - (x0 + k)) ** 2)
                wy[k] = math.exp(-0.5 * (v - (y0 + k)) ** 2)
                sx += wx[k]
                sy += wy[k]
                mx += wx[k] * (x0 + k - u)
                my += wy[k] * (y0 + k - v)
            mx /= sx
            my /= sy
            scale = np.float32(1) / (sx * sy)
            du = np.float32(0)
            dv = np.float32(0)
            dm = np.float32(0)
            for j in range(8):
                for i in range(8):
                    w = wy[j] * wx[i] * scale  # without the mask
                    n = (y0 + j) * GRID + x0 + i
                    wm = w * mask[b, p]
                    dot = gradient[b, n, channels]
                    for c in range(channels):
                        dot += gradient[b, n, c] * features[b, p, c]
                    for c in range(channels):
                        d_features[b, p, c] += wm * gradient[b, n, c]
                    dm += w * dot
                    # d log w / du = (n - u) less its mean over the cells, as for any soft-max
                    du += wm * dot * (x0 + i - u - mx)
                    dv += wm * dot * (y0 + j - v - my)
            d_mask[b, p] = dm
            d_cells[b, p, 0] = du
            d_cells[b, p, 1] = dv
