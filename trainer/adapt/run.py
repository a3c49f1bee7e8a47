"""The fine-tuning loop: a trained network, one user's target, a bounded time.

A batch has three parts: crops of the target, with the terms of the method and, where the teacher is sure, its hands as
labels; hands of this user drawn anew (section 4.4 of Dual Grid Net); hands of everybody, so that nothing is forgotten.
"""

from __future__ import annotations

import copy
import importlib
import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...hand.crop import CROP_SIZE
from ...hand.whole import write_json
from .. import parallel
from ..batches import to_labels
from ..checkpoint import CHECKPOINT_VERSION, TrainConfig, load_checkpoint, load_net, load_weights, save
from ..losses import Labels, rows
from ..nets import net_module
from ..optimizers import build_optimizers
from ..parallel import Group
from ..precision import mixed
from ..synth.labeller import Labeller, shown_left
from ..synth.room_crops import RoomCrops
from ..synth.samples import Generator, Sample, stacked
from ..train import images, joint_error_mm, set_threads, unsaved, update_average
from .augment import JITTER_M, UserHands
from .dgn import TargetBatch, some_of
from .fit import Fitted, Teacher
from .frames import HELD_OUT, AdaptError, cut_crop
from .target import Target

METHODS = ("dgn", "dibra")  # modules of this folder that have `Terms`
SAY_S, SAVE_S = 10.0, 60.0
MOST_FORGOTTEN, PROBES = 0.013, 1600  # of the joint error on so many rendered hands; the gate allows 2 %
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # of the change that may be kept
WARMUP, FALL = 20, 1.5  # steps until the rates are full; they fall to nothing over the last 1 / FALL of the way
NEGATIVE_SHARE, LEFT_SHARE = 0.1, 0.1  # of the hands of everybody; of the target's crops shown in the mirror
ROOM_SHARE = 0.5  # of the hands of everybody, for a network that has learned from rooms


@dataclass(frozen=True)
class AdaptConfig:
    """All that decides an adaptation. Shares are of a batch; what target and user leave is everybody's hands."""

    method: str = "dgn"
    steps: int = 1800  # or what the minutes allow: the rates fall by whichever ends first
    batch: int = 32
    target_share: float = 0.2
    user_share: float = 0.3
    optimizer: str = "muon"
    lr: float = 3e-4  # AdamW's peak
    muon_lr: float = 4e-3  # Muon's, for the convolutions' weights
    teacher: float = 1.0  # what the teacher's hands count for, where a label counts 1
    terms: float = 1.0  # what the method's terms count for
    weights: dict[str, float] | None = None  # of single terms, where not the method's own
    average: float = 0.98  # kept of the averaged weights a step
    held_out: float = HELD_OUT  # of every recording, its end, for the gate: nothing is learned from it
    seed: int = 0


def without_terms(config: AdaptConfig, left_out: Sequence[str]) -> AdaptConfig:
    """The config without some terms: those of the method by name, "teacher" or "user". Raises AdaptError."""
    module = _method(config.method)
    weights = module.Weights()._asdict()
    unknown = set(left_out) - weights.keys() - {"teacher", "user"}
    if unknown:
        raise AdaptError(f"--without {min(unknown)}: possible are {', '.join([*weights, 'teacher', 'user'])}")
    if "teacher" in left_out:
        config = replace(config, teacher=0.0)
    if "user" in left_out:
        config = replace(config, user_share=0.0)
    terms = {name: 0.0 if name in left_out else weight for name, weight in weights.items()}
    return replace(config, weights=terms) if set(left_out) & weights.keys() else config


def _method(name: str) -> Any:
    if name not in METHODS:
        raise AdaptError(f"--method {name}: possible are {', '.join(METHODS)}")
    return importlib.import_module(f".{name}", __package__)


class Method(Protocol):
    """What a module of METHODS has as `Terms(shape, weights)`, beside its `Weights`, a NamedTuple of floats."""

    def __call__(self, output: Any, batch: TargetBatch) -> dict[str, Tensor]: ...
    def parameters(self) -> list[Tensor]: ...


class Adapted(NamedTuple):
    """What came of it: the checkpoint, steps done, seconds, the terms over time, the most memory held in MiB,
    whether it is finished, and the share of the change that is kept (`blend`)."""

    checkpoint: Path
    steps: int
    seconds: float
    log: list[dict[str, float]]
    peak_mib: float
    finished: bool
    share: float


def adapt_net(
    base: Path,
    target: Target,
    out: Path,
    config: AdaptConfig,
    *,
    minutes: float | None = None,
    threads: int | None = None,
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
    group: Group | None = None,
) -> Adapted:
    """Fine-tune the checkpoint base on a target until config.steps are done or the minutes are over.

    Writes out/adapted.pt as it goes, a checkpoint like that of `edge-hand train`. With a group of processes each has a
    target of its own, the gradients are those of all, and the first one's clock counts, from when all are prepared.
    Raises AdaptError, TrainError.
    """
    set_threads(threads)
    group = group or Group()
    path = out / "adapted.pt"
    net, base_config, seen = load_net(base)
    if net_module(base_config.net).__name__.rpartition(".")[2] != "dgn":
        raise AdaptError(f"adapt: {base} holds a {base_config.net}; only Dual Grid Nets can be adapted")
    run = _Run(net, base_config, target, config, group)
    if resume and path.exists():
        run.resume(path)
    say(f"adapting {base_config.net}: {run.step} of {config.steps} steps done, batches of {config.batch}")

    def over() -> bool:
        return run.step >= config.steps or (minutes is not None and run.seconds >= 60 * minutes)

    group.sum_(torch.zeros(1))  # until here the others may be preparing
    begun, last, before = time.monotonic(), time.monotonic(), run.seconds
    saved, counted, log = begun, 0, run.log
    stopped = finished = run.share is not None and over()  # before this --resume
    if not finished:
        run.share = None
    totals: dict[str, float] = {}
    with parallel.stop_signals() as signals:
        while run.step < config.steps and not stopped:
            way = (time.monotonic() - begun + before) / (60 * minutes) if minutes and group.rank == 0 else 0.0
            share = float(group.sum_(torch.tensor(way)))
            means, stopped = run.learn(max(run.step / config.steps, share), share >= 1 or bool(signals))
            now = time.monotonic()
            run.seconds = before + now - begun
            counted += 1
            totals = {name: totals.get(name, 0.0) + value for name, value in means.items()}
            if now - last > SAY_S or run.step >= config.steps or stopped:
                shown = {name: round(value / counted, 4) for name, value in totals.items()}
                log.append({"step": run.step, "s": round(run.seconds, 1), **shown})
                say(progress(run.step, config.steps, run.seconds, minutes, shown))
                last, totals, counted = now, {}, 0
            if group.rank == 0 and (now - saved > SAVE_S):
                try:
                    save(run.state(seen), path)
                except OSError as problem:
                    say(f"{unsaved(path, problem)}; learning goes on")
                saved = now
    if group.rank == 0:
        try:
            if not finished:
                save(run.state(seen), path)
                if over():
                    run.share = blend(load_net(base)[0], run.averaged, config.seed)
                    save(run.state(seen), path)
            if run.share is not None:
                say(f"{run.share:.0%} of the change is kept, so that hands of others are seen as before")
            write_json(out / "log.json", {"config": asdict(config), "log": log, "share": run.share or 1.0})
        except OSError as problem:
            raise AdaptError(unsaved(path, problem)) from None
    return Adapted(path, run.step, run.seconds, log, peak_mib(), over(), run.share or 1.0)


def blend(base: nn.Module, adapted: nn.Module, seed: int = 0) -> float:
    """Pull the adapted weights back towards the base's until hands of everybody are not seen more than MOST_FORGOTTEN
    worse; the share that is left of the change (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models": between
    the two, more is kept of both than a straight line would have)."""
    generator = Generator("val", 900 + seed)
    labels = to_labels(generator.batch(0, PROBES))
    old, new = base.state_dict(), {k: v.clone() for k, v in adapted.state_dict().items()}
    most = (1 + MOST_FORGOTTEN) * joint_error_mm(base, "dgn-nano", labels, Group())
    for share in SHARES:
        with torch.no_grad():
            for name, weight in adapted.state_dict().items():
                if weight.is_floating_point():
                    weight.copy_(torch.lerp(old[name], new[name], share))
        if joint_error_mm(adapted, "dgn-nano", labels, Group()) <= most:
            return share
    return SHARES[-1]


class _Run:
    """Network, averaged network, optimiser and where the run is."""

    def __init__(self, net: nn.Module, base: TrainConfig, target: Target, config: AdaptConfig, group: Group) -> None:
        module = _method(config.method)
        torch.manual_seed(config.seed)
        self.base, self.config, self.group, self.target = base, config, group, target
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.net).requires_grad_(False)
        self.net.requires_grad_(True)
        weights = None if config.weights is None else module.Weights(**config.weights)
        self.method: Method = module.Terms(target.shape, weights)
        rates = replace(base, optimizer=config.optimizer, lr=config.lr, muon_lr=config.muon_lr)
        self.optimizers = build_optimizers(self.net, rates, group)
        if own := self.method.parameters():
            self.optimizers.append(torch.optim.AdamW([{"params": own, "peak": config.lr}], lr=config.lr))
        self.criterion = net_module(base.net).Criterion()
        self.batches = _Batches(target, config, group, rooms=base.room_share > 0)
        self.step, self.seconds = 0, 0.0
        self.share: float | None = None  # of the change that is kept, once it is finished
        self.log: list[dict[str, float]] = []

    def learn(self, share: float, stop: bool) -> tuple[dict[str, float], bool]:
        """One step at this share of the way: its terms, and whether any process wants to stop."""
        rate = min(1.0, (self.step + 1) / WARMUP) * max(0.0, min(1.0, FALL * (1 - share)))
        for settings in (s for o in self.optimizers for s in o.param_groups):
            settings["lr"] = settings["peak"] * rate
        self.net.train()
        for module in self.net.modules():
            if isinstance(module, _BatchNorm):
                module.eval()  # statistics of a mixed batch are nobody's
        labels, batch, counts = self.batches.draw(self.step)
        n = len(batch.image)
        with mixed("cpu", self.base.bf16):
            output = self.net(images(labels))
        taught = _taught(labels, n, counts, self.config.teacher > 0)
        supervised = self.criterion(type(output)(*(x[taught] for x in output)), rows(labels, taught))
        found = {f"label {k}": v for k, v in supervised.items() if k != "loss"}
        loss = supervised["loss"]
        if n and self.config.terms:
            right = labels.is_right[:n]
            mine = type(output)(*(x[:n][right] for x in output))
            its = self.method(mine, some_of(batch, right))
            found |= its
            if its:  # none where all are left out
                loss = loss + self.config.terms * torch.stack(list(its.values())).sum()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        told = torch.stack([*(v.detach() for v in found.values()), loss.detach(), loss.new_tensor(float(stop))])
        self.group.average_([*(p.grad for p in self.net.parameters() if p.grad is not None), told])
        norm = float(nn.utils.clip_grad_norm_(self.net.parameters(), 2.0))
        *values, stopping = told.tolist()
        if not all(map(math.isfinite, (*values, norm))):
            raise AdaptError(f"adapt: step {self.step} gives no finite loss; the network is as it was")
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        keep = min(self.config.average, self.step / (self.step + 10))
        update_average(self.averaged, self.net, keep)
        return dict(zip([*found, "loss"], values, strict=True)), stopping > 0

    def state(self, seen: int) -> dict[str, Any]:
        return {
            "version": CHECKPOINT_VERSION, "config": asdict(self.base), "seen": seen, "seconds": self.seconds,
            "net": self.net.state_dict(), "averaged": self.averaged.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers], "adapt": asdict(self.config), "step": self.step,
            "log": self.log, "share": self.share, "method": [p.detach() for p in self.method.parameters()],
        }  # fmt: skip

    def resume(self, path: Path) -> None:
        state = load_checkpoint(path)
        if state.get("adapt") != asdict(self.config):
            raise AdaptError(f"--resume: {path} was adapted with other options; give the same, or another --out")
        load_weights(self.net, state["net"], path)
        load_weights(self.averaged, state["averaged"], path)
        for optimizer, its in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        for own, saved in zip(self.method.parameters(), state["method"], strict=True):
            own.data.copy_(saved)
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]
        self.share = state.get("share")


class _Batches:
    """Draws every batch from the number of its step alone."""

    def __init__(self, target: Target, config: AdaptConfig, group: Group, *, rooms: bool = False) -> None:
        self.target, self.config, self.rank = target, config, group.rank
        self.teacher = Teacher(target.shape)
        self.labeller = Labeller()
        self.user = UserHands(target.shape, target.estimates(), config.seed * 1000 + group.rank, target.cubes)
        seed = 5000 + config.seed * 1000 + group.rank
        self.everybody = Generator("train", seed, left_share=LEFT_SHARE, negative_share=NEGATIVE_SHARE)
        self.rooms = RoomCrops("train", seed, LEFT_SHARE) if rooms else None
        self.views_of = [np.flatnonzero(target.moment == m) for m in range(len(target.seq))]
        share = config.batch // group.size
        self.n_target, self.n_user = round(share * config.target_share), round(share * config.user_share)
        left = share - self.n_target - self.n_user
        self.n_rooms = int(left * ROOM_SHARE) if rooms else 0
        self.n_everybody = left - self.n_rooms
        if self.n_everybody < 1 or self.n_target < 1:
            raise AdaptError(f"adapt: a batch of {share} leaves no place for the target or for everybody's hands")

    def draw(self, step: int) -> tuple[Labels, TargetBatch, Tensor]:
        """A batch's labels, the target's first; the target's crops; and (n_target,) which of them have a teacher."""
        rng = np.random.default_rng([self.config.seed, 77, self.rank, step])
        samples: list[Sample] = []
        transforms, groups, good = [], [], []
        order: list[int] = []
        while len(samples) < self.n_target:
            order = order or rng.permutation(len(self.views_of)).tolist()
            m = order.pop()
            fitted = Fitted(self.target.T_ref_wrist[m], self.target.angles[m], self.target.joints_m[m], 0, 0, 0)
            vertices = self.teacher.vertices(fitted)
            drawn = len(samples)  # a moment that is drawn twice is two
            is_left = bool(samples) and len(self.views_of[m]) == 1 and rng.random() < LEFT_SHARE
            for i in self.views_of[m][: self.n_target - len(samples)]:
                cube = float(rng.choice(self.target.cubes) * np.exp(rng.normal(0, 0.02)))
                away = self._away(rng, int(i), m)
                crop = cut_crop(self.target.view(int(i)), cube, CROP_SIZE, away)
                T = crop.T_ref_crop
                joints, skin = ((x - T[:3, 3]) @ T[:3, :3] for x in (fitted.joints_m, vertices))
                sample = self.labeller(crop.image, crop.distance_m, crop.cube_m, joints, skin)
                samples.append(shown_left(sample) if is_left else sample)
                transforms.append(crop.T_ref_crop)
                groups.append(drawn)
                good.append(bool(self.target.good[m]))
        samples += [self.user.sample(step * self.n_user + k) for k in range(self.n_user)]
        samples += [self.everybody.sample(step * self.n_everybody + k) for k in range(self.n_everybody)]
        if self.rooms:
            samples += [self.rooms.sample(step * self.n_rooms + k) for k in range(self.n_rooms)]
        labels = to_labels(stacked(samples))
        n = self.n_target
        batch = TargetBatch(
            labels.image[:n],
            labels.distance_m[:n],
            labels.cube_m[:n],
            torch.as_tensor(np.stack(transforms)).float(),
            torch.as_tensor(groups),
            step,
        )
        return labels, batch, torch.as_tensor(good)

    def _away(self, rng: np.random.Generator, i: int, m: int) -> np.ndarray[Any, Any]:
        """Where a crop's centre goes (3,), in the view's frame: near the hand's middle, as the daemon aims."""
        T = self.target.T_ref_view[i]
        middle = (self.target.joints_m[m].mean(0) - T[:3, 3]) @ T[:3, :3]
        away = middle - (0, 0, self.target.distance_m[i])
        return np.asarray(away.clip(-0.06, 0.06) + rng.normal(0, rng.choice(JITTER_M), 3))


def _taught(labels: Labels, n: int, good: Tensor, teacher: bool) -> Tensor:
    """Indices of the samples whose labels count: all that were drawn, and the target's where the teacher is sure."""
    index = torch.arange(len(labels.image))
    return index[torch.cat([good if teacher else torch.zeros_like(good), torch.ones(len(index) - n, dtype=torch.bool)])]


def progress(step: int, steps: int, seconds: float, minutes: float | None, means: dict[str, float]) -> str:
    """The line that says how far the run is and what its terms are."""
    left_s = seconds / max(step, 1) * (steps - step)
    if minutes:
        left_s = min(left_s, max(0.0, 60 * minutes - seconds))
    named = "  ".join(f"{name} {value:.3f}" for name, value in means.items() if not name.startswith("label"))
    labels = sum(value for name, value in means.items() if name.startswith("label"))
    return f"step {step:>5} / {steps}  {left_s / 60:4.1f} min left  labels {labels:.3f}  {named}"


def peak_mib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
