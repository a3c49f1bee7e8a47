"""A run's config and its checkpoint: a file written whole or not at all, and refused in one line if it is not right."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..hand.whole import refusal, write_whole
from .nets import NETS, new_net

CHECKPOINT_VERSION = 2


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a run; saved in every checkpoint and in the model's card."""

    net: str = "dgn-nano"
    width: int | None = None  # channels, where they are not those the name stands for
    samples: int = 1_500_000
    batch: int = 32  # samples a step, of all processes together
    optimizer: str = "muon"
    lr: float = 2e-3  # AdamW's peak
    muon_lr: float = 0.02  # Muon's, for the convolutions' weights
    weight_decay: float = 1e-3
    warmup: int = 20_000  # samples until the rate is full
    decay: float = 0.25  # share of the samples, at the end, over which the rates fall to nothing
    coarse: int = 20_000  # samples before the refit joins the loss
    left_share: float = 0.1
    negative_share: float = 0.05
    kind: str = "full"  # of samples, see `synth/samples.py`
    ema: float = 0.999  # kept of the average every 64 samples
    seed: int = 0
    bf16: bool = True  # where the device has it (`precision.py`)
    compile: bool = False
    sync_bn: bool = False  # batch statistics of all processes' samples, not of each one's own
    init: str | None = None  # checkpoint whose weights the run started from
    teacher: str | None = None  # checkpoint whose vertices are a target beside the labels
    teacher_weight: float = 1.0
    real: str | None = None  # labelled real frames, KIND:PATH as in `edge-hand eval --data`
    real_share: float = 0.25  # of every batch that are real, if there are any
    room_share: float = 0.0  # of every batch that are crops of rooms (`synth/room_crops.py`)


class TrainError(Exception):
    """A run that cannot start or go on, in one line."""


def config_of(out: Path, options: dict[str, Any], resume: bool) -> TrainConfig:
    """The config of a run: the options given, or with resume the checkpoint's, of which only samples may change.

    Of a short run the warm-up is a tenth, and what starts from trained weights has parts to refit from its first
    sample on, unless the options say otherwise.
    """
    if not resume:
        if "real_share" in options and not options.get("real"):
            raise TrainError(f"--real-share {options['real_share']}: of what? --real KIND:PATH is missing")
        config = TrainConfig(**options)
        warmup = options.get("warmup", min(config.warmup, config.samples // 10))
        return replace(config, warmup=warmup, coarse=options.get("coarse", 0 if config.init else config.coarse))
    config = TrainConfig(**load_checkpoint(out / "last.pt")["config"])
    for name, value in options.items():
        if name != "samples" and getattr(config, name) != value:
            option = "--" + name.replace("_", "-")
            raise TrainError(f"--resume: the run in {out} has {option} {getattr(config, name)}, not {value}")
    return replace(config, samples=options.get("samples", config.samples))


def without_folders(config: TrainConfig) -> TrainConfig:
    """The config with the names of files alone, not where they lay on somebody's disk."""
    init, teacher = (Path(file).name if file else None for file in (config.init, config.teacher))
    kind, _, path = (config.real or "").partition(":")
    return replace(config, init=init, teacher=teacher, real=f"{kind}:{Path(path).name}" if config.real else None)


def build_net(config: TrainConfig) -> nn.Module:
    """The untrained network that the config names."""
    if config.net not in NETS:
        raise TrainError(f"--net {config.net}: unknown, possible are {', '.join(NETS)}")
    return new_net(config.net, **({"width": config.width} if config.width else {}))


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; after an OSError the file that was there before still is. Weights must be finite."""
    for name in {"net", "averaged"} & state.keys():
        for key, value in state[name].items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise TrainError(f"{path}: not written, {key} is not finite after {state['seen']} samples")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getbuffer())


def save_weights(checkpoint: Path, out: Path) -> None:
    """Write a run's averaged weights alone, in 16 bits: what `--init`, `--teacher` and `edge-hand eval` need of it."""
    state = load_checkpoint(checkpoint)
    half = {name: w.half() if w.is_floating_point() else w for name, w in state["averaged"].items()}
    config = asdict(without_folders(TrainConfig(**state["config"])))
    save({"version": CHECKPOINT_VERSION, "config": config, "seen": state["seen"], "averaged": half}, out)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's dict; a missing, broken or foreign file is a TrainError of one line."""
    if not path.exists():
        raise TrainError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TrainError(f"{path}: cannot be read ({refusal(error)})") from None
    except Exception:  # torch's own advice, to load it without its checks, is none
        raise TrainError(f"{path}: not an edge-hand checkpoint, or a damaged one") from None
    if not isinstance(state, dict) or state.get("version") != CHECKPOINT_VERSION:
        raise TrainError(f"{path}: not a checkpoint of version {CHECKPOINT_VERSION}")
    if not isinstance(state.get("config"), dict):
        raise TrainError(f"{path}: a checkpoint without its config")
    known = {f.name for f in fields(TrainConfig)}
    if set(state["config"]) - known:
        raise TrainError(f"{path}: its config has unknown entries {sorted(set(state['config']) - known)}")
    if not {"seen", "averaged"} <= state.keys():
        raise TrainError(f"{path}: a checkpoint without its weights or samples seen")
    return state


def load_weights(net: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into net; those of another network are a TrainError of one line."""
    own = net.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        here, there = (list(w[name].shape) if name in w else "missing" for w in (own, weights))
        if here != there:
            raise TrainError(f"{path}: weights of another network: {name} is {there}, expected {here}")
    net.load_state_dict(weights)


def same_net(state: dict[str, Any], config: TrainConfig, what: str) -> None:
    """Refuse a checkpoint of a network that is not the config's."""
    its = TrainConfig(**state["config"])
    if its.net not in NETS or NETS[its.net].module != NETS[config.net].module:
        raise TrainError(f"{what}: holds a {its.net}, not a {config.net}")


def load_net(path: Path) -> tuple[Any, TrainConfig, int]:
    """The averaged network of a checkpoint in eval mode, its config and the samples it has seen."""
    state = load_checkpoint(path)
    config = TrainConfig(**state["config"])
    net = build_net(config)
    load_weights(net, state["averaged"], path)
    return net.eval(), config, state["seen"]


def share_without(config: TrainConfig) -> float:
    """Share of a run's rendered samples that show no hand; real ones do not teach presence."""
    from .synth.room_crops import SHARE_WITHOUT

    rooms = config.room_share / (1 - config.real_share if config.real else 1)
    return config.negative_share + rooms * (SHARE_WITHOUT - config.negative_share)


def prior(share: float) -> float:
    """Log-odds that such a share of the samples puts into a logit, which an engine takes off again."""
    return math.log((1 - share) / share) if 0 < share < 1 else 0.0
