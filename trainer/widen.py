"""A wider network that starts as a narrower one's function (Chen et al. 2016, Net2Net), so that what a small network
has learned need not be learned again. Theirs doubles channels and halves what reads them; here the new ones start as
noise that no old channel reads, so no two are alike and none has to be told apart first.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import TrainConfig, TrainError, build_net, load_weights
from .nets import net_module


def load_widened(net: nn.Module, start: dict[str, Any], config: TrainConfig, path: Path) -> None:
    """Put the averaged weights of the checkpoint `start` into net, the config's, which may be wider than start's.

    Weights of another network, or of one whose layers a wider one cannot take over, are a TrainError of one line.
    """
    weights, own = start["averaged"], net.state_dict()
    shapes = [(weights[name].shape, own[name].shape) for name in own if name in weights]
    narrower = own.keys() == weights.keys() and all(
        len(here) == len(wide) and all(n <= m for n, m in zip(here, wide, strict=True)) for here, wide in shapes
    )
    if not narrower or all(here == wide for here, wide in shapes):
        load_weights(net, weights, path)
        return
    net.load_state_dict({name: widened(weights[name], own[name]) for name in own})
    narrow = build_net(TrainConfig(**start["config"]))
    load_weights(narrow, weights, path)
    if not same_function(narrow, net, net_module(config.net).IMAGE_PX):
        raise TrainError(f"--init {path}: a wider {config.net} cannot start from a narrower one")


def widened(narrow: Tensor, fresh: Tensor) -> Tensor:
    """fresh, a wider layer's untrained weights or statistics, with a narrower one's as those of its first channels;
    of the new inputs the old outputs read nothing."""
    wide = fresh.clone()
    if narrow.ndim > 1:
        wide[: len(narrow)] = 0
    wide[tuple(slice(n) for n in narrow.shape)] = narrow
    return wide


@torch.no_grad()
def same_function(narrow: nn.Module, wide: nn.Module, image_px: int) -> bool:
    """Whether both give the same for two crops of noise, to float32's rounding (a GPU's is coarser: on the CPU)."""
    image = torch.rand(2, 1, image_px, image_px, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected, given = narrow.eval()(image), copy.deepcopy(wide).cpu().eval()(image)
    return all(torch.allclose(a, b, atol=1e-3, rtol=1e-3) for a, b in zip(expected, given, strict=True))
