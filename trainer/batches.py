"""What a process of a run learns from, batch by batch: lone hands, crops of rooms, real frames."""

from __future__ import annotations

from collections.abc import Generator as Endless
from contextlib import closing
from typing import Any

import torch

from .checkpoint import TrainConfig, TrainError
from .losses import Labels, together
from .nets import net_module
from .parallel import Group
from .real import RealHands, joined, real_count
from .synth.room_crops import RoomCrops
from .synth.samples import Generator, Sample, stream_batches


def batches(
    config: TrainConfig, group: Group, seen: int, workers: int, real: RealHands | None = None
) -> Endless[Labels, None, None]:
    """This process's share of every batch from sample `seen` on, without end: of n processes the r-th has the r-th n-th
    of the indices, so that together they see what one alone would. Crops of rooms and real frames come last."""
    lone, in_rooms, n = sample_counts(config, group)
    image_px = net_module(config.net).IMAGE_PX
    rooms = RoomCrops("train", config.seed, config.left_share, image_px=image_px) if in_rooms else None
    with closing(rendered(config, group, seen // config.batch, workers, lone)) as source:
        for step, labels in enumerate(source, seen // config.batch):
            at = step * group.size + group.rank
            if rooms:
                labels = together(labels, to_labels(rooms.batch(at * in_rooms, in_rooms), group.device))
            yield joined(labels, real.batch(at * n, n)) if real else labels


def sample_counts(config: TrainConfig, group: Group) -> tuple[int, int, int]:
    """How many of a process's samples of a batch are lone hands, crops of rooms and real frames."""
    n, in_rooms = real_count(config, group) if config.real else 0, room_count(config, group)
    return config.batch // group.size - n - in_rooms, in_rooms, n


def drawn(config: TrainConfig, group: Group, seen: int) -> str:
    """What the batch of all processes after `seen` is made of: its step, its seed, which samples of each kind."""
    step, counts = seen // config.batch, sample_counts(config, group)
    each = {kind: n * group.size for kind, n in zip(("rendered", "rooms", "real"), counts, strict=True) if n}
    which = ", ".join(f"{kind} {step * n} to {(step + 1) * n - 1}" for kind, n in each.items())
    return f"step {step} of seed {config.seed} ({which})"


def room_count(config: TrainConfig, group: Group) -> int:
    """How many of a process's samples of a batch are crops of rooms; others must be left."""
    share, n = config.batch // group.size, round(config.batch // group.size * config.room_share)
    if config.room_share and (config.kind != "full" or "presence_logit" not in net_module(config.net).Output._fields):
        raise TrainError("--room-share: is for a network that says whether there is a hand, and for --kind full")
    if config.room_share and not 0 < n < share - (real_count(config, group) if config.real else 0):
        raise TrainError(f"--room-share {config.room_share:g}: would be {n} of a process's {share} samples a step")
    return n


def rendered(config: TrainConfig, group: Group, step: int, workers: int, share: int) -> Endless[Labels, None, None]:
    """The rendered samples of `batches`, share of them for this process, from that step on."""
    options = sample_options(config)
    first, apart = (step * group.size + group.rank) * share, group.size * share
    if group.device != "cpu":  # a GPU draws its own samples: batch by batch, not index by index
        from .synth.gpu import GpuGenerator

        on_device = GpuGenerator("train", config.seed, group.device, batch=share, **options)
        while True:
            yield on_device.batch(first // share)
            first += apart
    elif workers:
        with closing(stream_batches("train", first, share, seed=config.seed, workers=workers, **options)) as ahead:  # type: ignore[type-var]
            yield from map(to_labels, ahead)
    else:
        generator = Generator("train", config.seed, **options)
        while True:
            yield to_labels(generator.batch(first, share))
            first += apart


def sample_options(config: TrainConfig) -> dict[str, Any]:
    return {"left_share": config.left_share, "negative_share": config.negative_share, "kind": config.kind,
            "image_px": net_module(config.net).IMAGE_PX}  # fmt: skip


def to_labels(batch: Sample, device: str = "cpu") -> Labels:
    return Labels(*(torch.as_tensor(x).to(device, non_blocking=True) for x in batch))
