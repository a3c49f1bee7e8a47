"""The training loop, in plain sight: rendered samples in, checkpoints and a log out.

edge-hand train --out runs/dgn --samples 1500000
edge-hand train --out runs/dgn --resume          # goes on, sample for sample, where it stopped
edge-hand train --out runs/dgn --processes 8     # each renders and learns from its share of every batch
edge-hand train --out runs/dgn --real recording:hand.mcap   # and from real frames with joints (`real.py`)
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numba
import torch
from torch import Tensor, nn

from ..hand.whole import refusal
from . import parallel
from .batches import batches, drawn, room_count, sample_options, to_labels
from .checkpoint import (
    CHECKPOINT_VERSION,
    TrainConfig,
    TrainError,
    build_net,
    config_of,
    load_checkpoint,
    load_net,
    load_weights,
    same_net,
    save,
)
from .losses import Labels, huber, metres, rows
from .nets import net_module
from .optimizers import build_optimizers, schedule
from .parallel import Group
from .precision import mixed
from .real import open_real
from .synth.samples import Generator, RendererDied
from .widen import load_widened

__all__ = ["TrainConfig", "TrainError", "config_of", "load_net", "train"]

SAY_S, SAVE_S = 10, 120
VALIDATION_SAMPLES = 256


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    processes: int | None = None,
    threads: int | None = None,
    workers: int | None = None,
    minutes: float | None = None,
    validate_every: int = 50_000,
    tensorboard: bool = False,
) -> Path:
    """Train until config.samples are seen, so many minutes are over, or SIGTERM or SIGINT; the last checkpoint's path.

    processes: start so many on this machine; torchrun's need no option. workers: processes that render ahead for one
    that trains, default 1; 0 renders in the process itself, as several always do. validate_every: samples, 0 never.
    """
    path = out / "last.pt"
    if processes and not parallel.launched():
        options = {"resume": resume, "threads": threads, "workers": workers, "minutes": minutes,
                   "validate_every": validate_every, "tensorboard": tensorboard}  # fmt: skip
        parallel.launch(processes, train, config, out, error=TrainError, **options)
        return path
    out.mkdir(parents=True, exist_ok=True)
    if path.exists() and not resume:
        raise TrainError(f"{path} exists: go on with --resume, or choose another --out")
    state = load_checkpoint(path) if resume else None
    if state and not {"net", "optimizers", "seconds"} <= state.keys():
        raise TrainError(f"{path}: holds weights alone; start from them with --init")
    if state:
        config = replace(TrainConfig(**state["config"]), samples=config.samples)
    with parallel.join() as group, parallel.stop_signals() as signals, Log(out, group, tensorboard) as log:
        set_threads(threads or (1 if group.size > 1 else None))
        if config.batch % group.size or config.batch < 2 * group.size:
            raise TrainError(f"--batch {config.batch}: {group.size} processes cannot share it evenly, 2 or more each")
        if workers and group.size > 1:
            raise TrainError(f"--workers {workers}: each of several processes renders its own samples")
        workers = int(group.size == 1) if workers is None else workers
        run = begin(config, state, path, group)
        if state and run.seen >= config.samples:
            log.say(nothing_left(path, run.seen, config.samples))
            return path
        room_count(config, group)  # before the work
        real = open_real(config, group, log.say)
        if real:
            log.say(real.summary)
        validation: Labels | None = None
        begun, begun_seen, seconds = time.monotonic(), run.seen, run.seconds
        said = saved = begun
        totals: dict[str, float] = {}
        steps, finished, stopped, died = 0, run.seen >= config.samples, False, False
        with closing(batches(config, group, run.seen, workers, real)) as source:
            while not (finished or stopped):
                late = minutes is not None and time.monotonic() - begun > 60 * minutes
                try:
                    labels = next(source)
                except RendererDied:  # what was learned is whole, and is saved
                    died = True
                    break
                means, stopped = step(run, labels, group, stop=late or bool(signals))
                now = time.monotonic()
                run.seconds = seconds + now - begun
                steps += 1
                totals = {name: totals.get(name, 0.0) + mean for name, mean in means.items()}
                finished = run.seen >= config.samples
                at = {"seen": run.seen, "s": round(run.seconds, 1)}
                if now - said > SAY_S or finished or stopped:
                    terms = {name: round(total / steps, 4) for name, total in totals.items()}
                    per_s = (run.seen - begun_seen) / max(now - begun, 1e-9)
                    log.say(progress(run.seen, config.samples, per_s, terms))
                    rates = {"per_s": round(per_s, 1), "lr": round(config.lr * schedule(config, run.seen), 8)}
                    log.write({**at, **rates, **terms})
                    totals, steps, said = {}, 0, now
                if validate_every and (finished or run.seen % validate_every < config.batch):
                    validation = validation or held_out(config, group)
                    error_mm = joint_error_mm(run.averaged, config.net, validation, group)
                    log.say(f"{run.seen:>9,} samples: joints {error_mm:.2f} mm on held-out ones")
                    log.write({**at, "val_joint_mm": round(error_mm, 3)})
                if group.rank == 0 and now - saved > SAVE_S:
                    try:
                        save(run.state(), path)
                    except OSError as problem:
                        log.say(f"{unsaved(path, problem)}; training goes on")
                    saved = now
        if group.rank == 0:
            try:
                save(run.state(), path)
            except OSError as problem:
                raise TrainError(unsaved(path, problem)) from None
        if died:
            raise TrainError(
                "the process that renders ahead died (killed? out of memory?): saved after "
                f"{run.seen:,} of {config.samples:,} samples; --resume goes on"
            )
        if stopped and not finished:
            log.say(f"stopped and saved after {run.seen:,} of {config.samples:,} samples; --resume goes on")
        return path


@dataclass
class Run:
    """What a run is made of, and where it is; seen counts samples, seconds the time spent on them."""

    config: TrainConfig
    net: nn.Module
    forward: Any  # the net, compiled if config.compile
    averaged: nn.Module
    optimizers: list[torch.optim.Optimizer]
    criterion: Any
    teacher: nn.Module | None
    seen: int
    seconds: float

    def state(self) -> dict[str, Any]:
        return {"version": CHECKPOINT_VERSION, "config": asdict(self.config), "seen": self.seen,
                "seconds": self.seconds, "net": self.net.state_dict(), "averaged": self.averaged.state_dict(),
                "optimizers": [o.state_dict() for o in self.optimizers]}  # fmt: skip


def begin(config: TrainConfig, state: dict[str, Any] | None, path: Path, group: Group) -> Run:
    """A run from nothing, from config.init's weights, or where the checkpoint's state of path has left it."""
    torch.manual_seed(config.seed)
    net: nn.Module = build_net(config).to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.init and not state:
        start = load_checkpoint(Path(config.init))
        same_net(start, config, f"--init {config.init}")
        load_widened(net, start, config, Path(config.init))
    averaged = copy.deepcopy(net).requires_grad_(False)
    optimizers = build_optimizers(net, config, group)
    if state:
        load_weights(net, state["net"], path)
        load_weights(averaged, state["averaged"], path)
        for optimizer, its in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its)
    if config.sync_bn and group.size > 1:
        parallel.share_statistics(net)
    return Run(
        config,
        net,
        torch.compile(net) if config.compile else net,
        averaged,
        optimizers,
        net_module(config.net).Criterion(group.device),
        load_teacher(config, group.device),
        state["seen"] if state else 0,
        state["seconds"] if state else 0.0,
    )


def step(run: Run, labels: Labels, group: Group, *, stop: bool = False) -> tuple[dict[str, float], bool]:
    """One step of all processes: the loss's terms over all their samples, and whether any of them wants to stop.

    A loss or gradient that is not finite is a TrainError, before it reaches the weights.
    """
    config, net = run.config, run.net
    torch.manual_seed((config.seed << 40) + run.seen + group.rank)  # what a net draws depends on where the run is
    for optimizer in run.optimizers:
        for settings in optimizer.param_groups:
            settings["lr"] = settings["peak"] * schedule(config, run.seen)
    net.train()
    image = images(labels)
    with mixed(image.device.type, config.bf16):
        output = run.forward(image)
    try:
        terms: dict[str, Tensor] = run.criterion(output, labels, run.seen >= config.coarse)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # of vertices that are no numbers
        raise TrainError(not_finite({"the refit": math.nan}, drawn(config, group, run.seen))) from None
    if run.teacher:
        terms["teacher"] = config.teacher_weight * distance_to_teacher(run.teacher, image, output, labels)
        terms["loss"] = terms["loss"] + terms["teacher"]
    means, stopped = descend(net, terms, run.optimizers, lambda: drawn(config, group, run.seen), group, stop=stop)
    done = run.seen / config.batch
    update_average(run.averaged, net, min(config.ema ** (config.batch / 64), (1 + done) / (10 + done)))
    run.seen += config.batch
    return means, stopped


def descend(
    net: nn.Module,
    terms: dict[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    which: Callable[[], str],
    group: Group,
    *,
    stop: bool,
) -> tuple[dict[str, float], bool]:
    """From each process's terms of the loss to the same step in all of them: the terms' means, and whether any process
    wants to stop. which names the samples to blame for a loss or gradient that is not finite: a TrainError, before it
    reaches the weights."""
    net.zero_grad(set_to_none=True)
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    told = torch.stack([*(value.detach() for value in terms.values()), terms["loss"].new_tensor(float(stop))])
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    group.average_([*gradients, *parallel.statistics(net), told])  # batch statistics are of each one's own samples
    norm = nn.utils.clip_grad_norm_(net.parameters(), 5.0)
    *values, stopping, norm_ = [*told.tolist(), float(norm)]
    means = dict(zip(terms, values, strict=True))
    if not all(math.isfinite(value) for value in (*values, norm_)):
        raise TrainError(not_finite({**means, "gradient": norm_}, which()))
    for optimizer in optimizers:
        optimizer.step()
    return means, stopping > 0


def images(labels: Labels) -> Tensor:
    return labels.image[:, None].contiguous(memory_format=torch.channels_last)  # (B, 1, S, S)


def distance_to_teacher(teacher: nn.Module, image: Tensor, output: Any, labels: Labels) -> Tensor:
    """Mean distance of the vertices to the teacher's, in units of 20 mm for a cube of 0.25 m; right hands count."""
    with torch.no_grad():
        target = teacher(image).vertices_uvd
    off = huber((output.vertices_uvd - target).norm(dim=-1) * 6.25).mean(1)  # (B,)
    return (off * (labels.is_right & labels.is_hand)).mean()


@torch.no_grad()
def update_average(averaged: nn.Module, net: nn.Module, keep: float) -> None:
    """Exponential moving average of weights and batch statistics: averaged = keep * averaged + (1 - keep) * net."""
    for a, b in zip(averaged.state_dict().values(), net.state_dict().values(), strict=True):
        if a.is_floating_point():
            a.lerp_(b, 1 - keep)
        else:
            a.copy_(b)


def held_out(config: TrainConfig, group: Group) -> Labels:
    """This process's share of the validation samples: right hands, other poses and views than those of training."""
    options = sample_options(config) | {"left_share": 0.0, "negative_share": 0.0}
    first, end = (VALIDATION_SAMPLES * r // group.size for r in (group.rank, group.rank + 1))
    generator = Generator("val", **options)
    return to_labels(generator.batch(first, end - first), group.device)


@torch.no_grad()
def joint_error_mm(net: nn.Module, name: str, validation: Labels, group: Group) -> float:
    """Mean distance of the estimated joints to the true ones over all processes' samples, mm."""
    net.eval()
    total = torch.zeros(2, device=group.device)
    for first in range(0, len(validation.image), 32):
        labels = rows(validation, slice(first, first + 32))
        joints, _ = net_module(name).estimate(net(images(labels)), labels.distance_m, labels.cube_m)
        off = (joints - metres(labels.joints_uvd, labels.distance_m, labels.cube_m)).norm(dim=-1)  # (B, 21)
        total += torch.stack([off.sum(), torch.tensor(float(off.numel()), device=group.device)])
    total = group.sum_(total)
    return float(total[0] / total[1]) * 1e3


def load_teacher(config: TrainConfig, device: str) -> nn.Module | None:
    """The frozen network of config.teacher; it must see the same crops and give vertices as config.net does."""
    if config.teacher is None:
        return None
    teacher, its, _ = load_net(Path(config.teacher))
    if net_module(its.net) is not net_module(config.net) or "vertices_uvd" not in net_module(config.net).Output._fields:
        raise TrainError(f"--teacher {config.teacher}: a {its.net} cannot teach vertices to a {config.net}")
    return teacher.to(device, memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]


def set_threads(threads: int | None) -> None:
    """Let torch and our compiled kernels use so many threads. Numba's pool, as it starts, sets OpenMP's number for
    everybody, torch too: it has to be first."""
    if threads:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        torch.set_num_threads(threads)


class Log:
    """What the first process says: lines on the screen, records in log.jsonl and, if wanted, TensorBoard's files."""

    def __init__(self, out: Path, group: Group, tensorboard: bool) -> None:
        self.path, self.speaks = out / "log.jsonl", group.rank == 0
        self.board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise TrainError("--tensorboard needs tensorboard: pip install tensorboard") from None
            self.board = SummaryWriter(out) if self.speaks else None  # type: ignore[no-untyped-call]

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self.board:
            self.board.close()

    def say(self, text: str) -> None:
        if self.speaks:
            with suppress(OSError):  # a reader that left, or output on the disk that is full
                print(text, flush=True)

    def write(self, entry: dict[str, float]) -> None:
        """A record at entry["seen"]; a disk that is full costs records, not the run."""
        if not self.speaks:
            return
        try:
            with self.path.open("ab", buffering=0) as file:
                size, line = file.tell(), (json.dumps(entry) + "\n").encode()
                if file.write(line) != len(line):
                    os.truncate(self.path, size)  # half a line would spoil the file
        except OSError as problem:
            self.say(f"{self.path} cannot be written: {refusal(problem)}")
        for name in entry.keys() - {"seen"} if self.board else ():
            self.board.add_scalar(name, entry[name], int(entry["seen"]))


def progress(seen: int, samples: int, per_s: float, means: dict[str, float]) -> str:
    """The line that says how far the run is."""
    left_min = max(samples - seen, 0) / per_s / 60
    terms = "  ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    return f"{seen:>9,} / {samples:,} samples  {per_s:4.0f}/s  {left_min:4.0f} min left  {terms}"


def not_finite(values: dict[str, float], which: str) -> str:
    """The line for a loss that is no number; which says of which samples."""
    bad = ", ".join(f"{name} {value}" for name, value in values.items() if not math.isfinite(value))
    return f"{which} gives {bad}: stopped before it reached the weights; last.pt is as it was"


def nothing_left(path: Path, seen: int, samples: int) -> str:
    return f"{path} has seen {seen:,} samples, --samples is {samples:,}: nothing is left to do; give more to go on"


def unsaved(path: Path, problem: OSError) -> str:
    kept = "; the checkpoint before it is intact" if path.exists() else ""
    return f"{path} cannot be written: {refusal(problem)}{kept}"
