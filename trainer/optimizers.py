"""What the optimisers of a run are, and how fast they go at each sample seen."""

from __future__ import annotations

import math

import torch
from torch import nn

from .checkpoint import TrainConfig, TrainError
from .muon import Muon
from .parallel import Group


def build_optimizers(net: nn.Module, config: TrainConfig, group: Group | None = None) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions' weights and AdamW for the rest, or AdamW for all; group: the run's processes."""
    if not (0 <= config.lr < math.inf and 0 <= config.muon_lr < math.inf):
        raise TrainError(f"--lr {config.lr}, --muon-lr {config.muon_lr}: rates must be numbers and not negative")
    if config.optimizer not in ("muon", "adamw"):
        raise TrainError(f"--optimizer {config.optimizer}: unknown, possible are muon, adamw")
    weights = list(net.parameters())
    convolutions = [p for p in weights if p.ndim == 4 and config.optimizer == "muon"]
    ours = {id(p) for p in convolutions}
    matrices = [p for p in weights if p.ndim > 1 and id(p) not in ours]
    plain = [p for p in weights if p.ndim <= 1]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=config.lr, fused=True,
        )
    ]  # fmt: skip
    if convolutions:
        optimizers.append(Muon(convolutions, lr=config.muon_lr, weight_decay=config.weight_decay, group=group))
    for optimizer in optimizers:
        for settings in optimizer.param_groups:
            settings["peak"] = settings["lr"]
    return optimizers


def schedule(config: TrainConfig, seen: int) -> float:
    """Share of the peak rate after so many samples: linear warm-up, constant, and at last down to nothing.

    The last config.decay of the run falls as 1 - sqrt(x) (Haegele et al. 2024), so that a run can be prolonged: go on
    from a checkpoint before the fall, with more samples.
    """
    falls = config.samples * config.decay
    left = config.samples - seen
    rise = min(1.0, (seen + config.batch) / config.warmup) if config.warmup else 1.0
    return rise if not falls or left >= falls else rise * max(0.0, 1 - math.sqrt(1 - left / falls))
