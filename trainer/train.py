"""The training loop, in plain sight: rendered samples in, checkpoints and a log out.

edge-hand train --out runs/dgn --samples 1500000
edge-hand train --out runs/dgn --resume          # goes on, sample for sample, where it stopped
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numba
import torch
from torch import Tensor, nn

from ..hand.template import template
from .losses import Labels, Refit, dgn_loss
from .nets.dgn import DualGridNet
from .synth.samples import Sample, stream_batches

CHECKPOINT_VERSION = 1


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a run; saved in every checkpoint and in the model's card."""

    net: str = "dgn"
    width: int = 64
    samples: int = 1_500_000
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 1e-3
    warmup: int = 20_000  # samples until the rate is full
    coarse: int = 20_000  # samples before the refit joins the loss
    left_share: float = 0.1
    ema: float = 0.999  # per step of 64 samples
    seed: int = 0
    bf16: bool = True


class TrainError(Exception):
    """A run that cannot start or go on, in one line."""


def config_of(out: Path, options: dict[str, Any], resume: bool) -> TrainConfig:
    """The config of a run: the options given, or with resume the checkpoint's, of which only samples may change."""
    if not resume:
        return TrainConfig(**options)
    config = TrainConfig(**load_checkpoint(out / "last.pt")["config"])
    for name, value in options.items():
        if name != "samples" and getattr(config, name) != value:
            raise TrainError(f"--resume: the run in {out} has --{name} {getattr(config, name)}, not {value}")
    return replace(config, samples=options.get("samples", config.samples))


def build_net(config: TrainConfig) -> DualGridNet:
    if config.net != "dgn":
        raise TrainError(f"--net {config.net}: unknown, possible is dgn")
    return DualGridNet(width=config.width)


def rate(config: TrainConfig, seen: int) -> float:
    """Learning rate after so many samples: linear warm-up, then a cosine to 1 % of the peak."""
    if seen < config.warmup:
        return config.lr * (seen + config.batch) / config.warmup
    done = min(1.0, (seen - config.warmup) / max(1, config.samples - config.warmup))
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def train(
    config: TrainConfig, out: Path, *, resume: bool = False, threads: int | None = None, minutes: float | None = None
) -> Path:
    """Train until config.samples are seen (or so many minutes are over); returns the last checkpoint's path."""
    if threads:
        torch.set_num_threads(threads)
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]  # or it sets torch's back
    out.mkdir(parents=True, exist_ok=True)
    path = out / "last.pt"
    if path.exists() and not resume:
        raise TrainError(f"{path} exists: go on with --resume, or choose another --out")
    state = load_checkpoint(path) if resume else None
    if state:
        config = replace(TrainConfig(**state["config"]), samples=config.samples)
    torch.manual_seed(config.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = build_net(config).to(device)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decay = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}], lr=config.lr
    )
    averaged = copy.deepcopy(net).requires_grad_(False)
    seen = 0
    if state:
        net.load_state_dict(state["net"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        seen = state["seen"]
    refit = Refit(device=device)
    t = template()
    area = torch.tensor(t.area / t.area.mean(), dtype=torch.float32, device=device)

    def save() -> None:
        state = {"version": CHECKPOINT_VERSION, "config": asdict(config), "seen": seen, "net": net.state_dict(),
                 "averaged": averaged.state_dict(), "optimizer": optimizer.state_dict()}  # fmt: skip
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    begun, begun_seen, said, saved = time.monotonic(), seen, time.monotonic(), time.monotonic()
    totals: dict[str, float] = {}
    steps = 0
    batches = stream_batches("train", seen, config.batch, seed=config.seed, left_share=config.left_share)
    with (out / "log.jsonl").open("a") as log:
        for batch in batches:
            if seen >= config.samples or (minutes and time.monotonic() - begun > 60 * minutes):
                break
            for group in optimizer.param_groups:
                group["lr"] = rate(config, seen)
            labels = to_labels(batch, device)
            terms = step(net, labels, refit, area, optimizer, full=seen >= config.coarse, bf16=config.bf16)
            update_average(averaged, net, min(config.ema, (1 + seen / config.batch) / (10 + seen / config.batch)))
            seen += config.batch
            steps += 1
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + float(value)
            now = time.monotonic()
            if now - said > 10 or seen >= config.samples:
                means = {name: round(total / steps, 4) for name, total in totals.items()}
                per_s = (seen - begun_seen) / (now - begun)
                print(progress(seen, config.samples, per_s, means), flush=True)
                entry = {"seen": seen, "s": round(now - begun, 1), "lr": rate(config, seen), **means}
                log.write(json.dumps(entry) + "\n")
                log.flush()
                totals, steps, said = {}, 0, now
            if now - saved > 120:
                save()
                saved = now
    batches.close()  # type: ignore[attr-defined]
    save()
    return path


def progress(seen: int, samples: int, per_s: float, means: dict[str, float]) -> str:
    """The line that says how far the run is."""
    left_min = (samples - seen) / per_s / 60
    terms = "  ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    return f"{seen:>9,} / {samples:,} samples  {per_s:4.0f}/s  {left_min:4.0f} min left  {terms}"


def step(
    net: DualGridNet,
    labels: Labels,
    refit: Refit,
    area: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    full: bool,
    bf16: bool,
) -> dict[str, Tensor]:
    """One optimiser step; the loss's terms."""
    net.train()
    image = labels.image[:, None].contiguous(memory_format=torch.channels_last)
    with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
        output = net(image)
    terms = dgn_loss(output, labels, refit, area, full)
    optimizer.zero_grad(set_to_none=True)
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(net.parameters(), 5.0)
    optimizer.step()
    return {name: value.detach() for name, value in terms.items()}


@torch.no_grad()
def update_average(averaged: nn.Module, net: nn.Module, keep: float) -> None:
    """Exponential moving average of weights and batch statistics: averaged = keep * averaged + (1 - keep) * net."""
    for a, b in zip(averaged.state_dict().values(), net.state_dict().values(), strict=True):
        if a.is_floating_point():
            a.lerp_(b, 1 - keep)
        else:
            a.copy_(b)


def to_labels(batch: Sample, device: str = "cpu") -> Labels:
    return Labels(*(torch.as_tensor(x).to(device, non_blocking=True) for x in batch))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's dict; a missing, broken or foreign file is a TrainError of one line."""
    if not path.exists():
        raise TrainError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainError(
            f"{path}: not a readable checkpoint ({(str(error) or type(error).__name__).splitlines()[0][:100]})"
        ) from None
    if not isinstance(state, dict) or state.get("version") != CHECKPOINT_VERSION or "config" not in state:
        raise TrainError(f"{path}: not a checkpoint of version {CHECKPOINT_VERSION}")
    known = {f.name for f in fields(TrainConfig)}
    if set(state["config"]) - known:
        raise TrainError(f"{path}: its config has unknown entries {sorted(set(state['config']) - known)}")
    return state


def load_net(path: Path) -> tuple[DualGridNet, TrainConfig, int]:
    """The averaged network of a checkpoint in eval mode, its config and the samples it has seen."""
    state = load_checkpoint(path)
    config = TrainConfig(**state["config"])
    net = build_net(config)
    net.load_state_dict(state["averaged"])
    return net.eval(), config, state["seen"]
