"""Train the finder on rendered rooms: scenes are rendered once, in the background, and learned from many times.

python -m edge_hand.trainer.train_finder --out runs/finder --cache runs/rooms --scenes 30000 --samples 300000
python -m edge_hand.trainer.train_finder --out runs/finder --cache runs/rooms --resume    # goes on where it stopped
"""

from __future__ import annotations

import copy
import math
import multiprocessing as mp
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from ..edge.finder import Maps, network_input, proposals
from ..hand.arrays import Array
from ..hand.frames import HandRoi
from . import parallel
from .checkpoint import CHECKPOINT_VERSION, TrainConfig, TrainError, config_of, load_checkpoint, load_weights, save
from .nets.finder import Criterion, FinderNet, targets
from .optimizers import build_optimizers, schedule
from .parallel import Group
from .processes import when_parent_ends
from .synth.pictures import SHARD, Hands, depth_m, hands_of, open_shards, render_shards, vary
from .train import Log, not_finite, nothing_left, progress, unsaved, update_average

SAY_S, SAVE_S, RESCAN_S = 10, 120, 30
MATCH_M = 0.08  # a proposal this near to a hand's centre has found it
NEAR_M = 0.12  # a proposal this near to a hand that nobody asks for is not held against the finder
WELL_SEEN = 0.5
SAMPLES = 300_000
WIDTH = 320  # px of the rendered frames: twice as fine as what the finder sees of them


def train(
    config: TrainConfig,
    out: Path,
    cache: Path,
    *,
    first_shard: int = 0,
    resume: bool = False,
    minutes: float | None = None,
    validate_every: int = 50_000,
    validation: int = 500,
    rendered: Callable[[], bool] = lambda: False,
) -> Path:
    """Learn from the shards in cache, those that appear meanwhile too, until config.samples are seen, so many minutes
    are over, or SIGTERM or SIGINT; last.pt's path.

    first_shard: earlier ones are left out. validation: scenes of the stream "val" that are looked at. rendered: whether
    more shards are on their way; the first is waited for.
    """
    path = out / "last.pt"
    out.mkdir(parents=True, exist_ok=True)
    if path.exists() and not resume:
        raise TrainError(f"{path} exists: go on with --resume, or choose another --out")
    state = load_checkpoint(path) if resume else None
    if state and not {"net", "optimizers"} <= state.keys():
        raise TrainError(f"{path}: holds weights alone, which cannot go on")
    if state:
        config = replace(TrainConfig(**state["config"]), samples=config.samples)
    torch.manual_seed(config.seed)
    net: nn.Module = build(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = copy.deepcopy(net).requires_grad_(False)
    optimizers = build_optimizers(net, config)
    seen = 0
    if state:
        seen = state["seen"]
        load_weights(net, state["net"], path)
        load_weights(averaged, state["averaged"], path)
        for optimizer, its in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its)
    criterion, log = Criterion(), Log(out, Group(), False)
    if state and seen >= config.samples:
        log.say(nothing_left(path, seen, config.samples))
        return path
    begun = said = saved = time.monotonic()
    begun_seen, steps = seen, 0
    totals: dict[str, float] = {}
    source = batches(cache, config, seen, first_shard, rendered)
    first = next(source)  # which may be waited for; until then a signal ends it
    with parallel.stop_signals() as signals:
        for z, hands in chain([first], source):
            finished = seen >= config.samples or (minutes is not None and time.monotonic() - begun > 60 * minutes)
            over = finished or bool(signals)
            if validate_every and seen > begun_seen and (finished or seen % validate_every < config.batch):
                scores = evaluate(averaged, cache, validation)
                log.say(f"{seen:>9,} samples: {told(scores)}")
                log.write({"seen": seen, **scores})
            now = time.monotonic()
            if now - saved > SAVE_S or over:
                weights = {"net": net.state_dict(), "averaged": averaged.state_dict()}
                kept = {"config": asdict(config), "seen": seen, "optimizers": [o.state_dict() for o in optimizers]}
                try:
                    save({"version": CHECKPOINT_VERSION, **kept, **weights}, path)
                except OSError as problem:
                    if over:
                        raise TrainError(unsaved(path, problem)) from None
                    log.say(f"{unsaved(path, problem)}; training goes on")
                saved = now
            if over:
                if seen < config.samples:
                    log.say(f"stopped and saved after {seen:,} of {config.samples:,} samples; --resume goes on")
                break
            for optimizer in optimizers:
                for settings in optimizer.param_groups:
                    settings["lr"] = settings["peak"] * schedule(config, seen)
            which = f"the batch after {seen} samples of seed {config.seed}"
            terms = step(net, criterion, optimizers, z, hands, config.bf16, which)
            done = seen / config.batch
            update_average(averaged, net, min(config.ema ** (config.batch / 64), (1 + done) / (10 + done)))
            seen, steps = seen + config.batch, steps + 1
            totals = {name: totals.get(name, 0.0) + value for name, value in terms.items()}
            if now - said > SAY_S:
                means = {name: round(total / steps, 4) for name, total in totals.items()}
                log.say(progress(seen, config.samples, (seen - begun_seen) / (now - begun), means))
                log.write({"seen": seen, **means})
                totals, steps, said = {}, 0, now
    return path


def build(config: TrainConfig) -> FinderNet:
    return FinderNet(**({"width": config.width} if config.width else {}))


def load_finder(path: Path) -> tuple[FinderNet, TrainConfig, int]:
    """The averaged network of a checkpoint in eval mode, its config and the samples it has seen. Raises TrainError."""
    state = load_checkpoint(path)
    config = TrainConfig(**state["config"])
    if config.net != "finder":
        raise TrainError(f"{path}: holds a {config.net}, not a finder")
    net = build(config)
    load_weights(net, state["averaged"], path)
    return net.eval(), config, state["seen"]


def step(
    net: nn.Module,
    criterion: Criterion,
    optimizers: Sequence[torch.optim.Optimizer],
    z: Array,
    hands: Hands,
    bf16: bool,
    which: str,
) -> dict[str, float]:
    """One step on pictures (B, 112, 160) m; the loss's terms. One that is not finite is a TrainError; which names the
    batch in it."""
    net.train()
    picture = torch.from_numpy(network_input(z)).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = net(picture)
    terms: dict[str, Tensor] = criterion(output, targets(*map(torch.from_numpy, labels(hands))))
    net.zero_grad(set_to_none=True)
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(net.parameters(), 5.0)
    values = {name: float(value.detach()) for name, value in terms.items()}
    if not all(math.isfinite(value) for value in (*values.values(), float(norm))):
        raise TrainError(not_finite({**values, "gradient": float(norm)}, which))
    for optimizer in optimizers:
        optimizer.step()
    return values


def labels(hands: Hands) -> tuple[Array, Array, Array]:
    return hands.centre_m.astype(np.float32), hands.right, hands.role


def batches(
    cache: Path, config: TrainConfig, seen: int, first_shard: int, rendered: Callable[[], bool]
) -> Iterator[tuple[Array, Hands]]:
    """Batches without end, drawn at random from the shards there are; waits for the first while any are rendered."""
    shards: list[Array] = []
    scanned = -math.inf
    waiting = False
    while True:
        if time.monotonic() - scanned > RESCAN_S or not shards:
            more = rendered()  # before the look: what ends in between has left its shard
            shards, scanned = open_shards(cache, "train", first_shard), time.monotonic()
        if not shards:
            if not more:
                raise TrainError(f"--cache {cache}: no shard {first_shard} or later and none to come; see --scenes")
            if not waiting:
                print(f"waiting for the first {SHARD} scenes in {cache}", flush=True)
            waiting = True
            time.sleep(1)
            continue
        rng = np.random.default_rng([config.seed, seen])
        at = rng.integers(len(shards) * len(shards[0]), size=config.batch)
        rows = np.stack([shards[i // SHARD][i % SHARD] for i in at])
        yield vary(depth_m(rows["picture"]), hands_of(rows["hands"]), rng)
        seen += config.batch


def evaluate(net: nn.Module, cache: Path, scenes: int, least_score: float = 0.3) -> dict[str, float]:
    """How the net does on the first scenes of "val": see `score`."""
    shards = open_shards(cache, "val")
    if not shards:
        return {}
    rows = np.concatenate(shards)[:scenes]
    found: list[list[HandRoi]] = []
    net.eval()
    with torch.no_grad():
        for first in range(0, len(rows), 16):
            out = net(torch.from_numpy(network_input(depth_m(rows["picture"][first : first + 16]))))
            maps = [m.numpy() for m in (out.heat[:, 0], out.offset, out.log_z[:, 0], out.right[:, 0])]
            found += [proposals(Maps(*each), least_score, 6) for each in zip(*maps, strict=True)]
    return score(found, hands_of(rows["hands"]))


def matches(rois: Sequence[HandRoi], hands: Hands, k: int) -> list[int | None]:
    """For each proposal of scene k, the best first: the index of the hand that it has found, each hand once; -1 where
    no hand is; None near one that nobody asks for."""
    centres, role = hands.centre_m[k], hands.role[k]
    out: list[int | None] = []
    for roi in rois:
        off = np.linalg.norm(centres - roi.centre_m, axis=1)
        free = [int(i) for i in np.argsort(off) if role[i] == 1 and i not in out and off[i] < MATCH_M]
        out.append(free[0] if free else None if ((role == 0) & (off < NEAR_M)).any() else -1)
    return out


def score(found: Sequence[Sequence[HandRoi]], hands: Hands) -> dict[str, float]:
    """What the proposals of each scene are worth: recall of hands at least half seen, and of those less seen; false
    proposals a scene; share of sides that are right among those decided, and share decided; error of the centre, mm."""
    true, false, sides, errors = 0, 0, [], []
    taken = np.zeros(hands.role.shape, bool)
    for k, rois in enumerate(found):
        for roi, which in zip(rois, matches(rois, hands, k), strict=True):
            if which is None:
                continue
            if which < 0:
                false += 1
                continue
            true += 1
            taken[k, which] = True
            errors.append(1e3 * float(np.linalg.norm(hands.centre_m[k, which] - roi.centre_m)))
            if roi.side != "unknown":
                sides.append((roi.side == "right") == bool(hands.right[k, which]))
    well = (hands.role == 1) & (hands.seen >= WELL_SEEN)
    poor = (hands.role == 1) & ~well
    return {
        "recall": share(taken[well]),
        "recall_poorly_seen": share(taken[poor]),
        "false_per_scene": false / max(len(found), 1),
        "precision": true / max(true + false, 1),
        "side_right": share(sides),
        "side_decided": len(sides) / max(true, 1),
        "centre_mm": float(np.mean(errors)) if errors else math.nan,
        "centre_p90_mm": float(np.percentile(errors, 90)) if errors else math.nan,
        "hands": int(well.sum()),
        "scenes": len(found),
    }


def share(which: Any) -> float:
    return float(np.mean(which)) if len(which) else math.nan


def told(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items()) or "no validation scenes yet"


def scenes_of(stream: str) -> Callable[[int], Any]:
    """The scenes to learn from by index: people, and every sixth time hands on bare forearms."""
    from .synth.lone_hands import LoneHands
    from .synth.rooms import SceneGenerator

    rooms, lone = SceneGenerator(stream, width=WIDTH), LoneHands(stream, width=WIDTH)
    return lambda index: lone.scene(index) if index % 6 == 5 else rooms.scene(index)


def _render(cache: Path, numbers: range, validation: range) -> None:
    when_parent_ends(lambda: os._exit(1))
    render_shards(cache, "val", validation, scenes_of("val"))
    render_shards(cache, "train", numbers, scenes_of("train"))


@contextmanager
def rendering(cache: Path, scenes: int, first_shard: int) -> Iterator[Callable[[], bool]]:
    """Render in a process of its own, for as long as the caller works; gives whether it still does."""
    numbers = range(first_shard, first_shard + math.ceil(scenes / SHARD))
    process = mp.get_context("spawn").Process(target=_render, args=(cache, numbers, range(4)), daemon=True)
    ours = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process keeps it: Ctrl-C is for the one that learns
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, ours)
    try:
        yield process.is_alive
    finally:
        process.terminate()
        process.join()


@click.command()
@click.option("--out", type=Path, required=True, help="Folder for the checkpoint and the log.")
@click.option("--cache", type=Path, required=True, help="Folder for rendered scenes, 36 MB a thousand.")
@click.option("--scenes", default=30_000, show_default=True, help="Scenes to render; 0 takes what is in the cache.")
@click.option("--first-shard", default=0, show_default=True, help="Leave earlier shards out.")
@click.option("--samples", type=click.IntRange(1), help=f"Default {SAMPLES:,}; with --resume what the run has.")
@click.option("--minutes", type=float)
@click.option("--validate-every", default=20_000, show_default=True, help="Samples.")
@click.option("--threads", default=1, show_default=True)
@click.option("--resume", is_flag=True)
def main(
    out: Path, cache: Path, scenes: int, first_shard: int, samples: int | None, minutes: float | None,
    validate_every: int, threads: int, resume: bool,
) -> None:  # fmt: skip
    """Train the finder of hands in whole depth frames."""
    torch.set_num_threads(threads)
    config = TrainConfig(net="finder", samples=samples or SAMPLES, warmup=4000, coarse=0, negative_share=0.0)
    try:
        if resume:
            config = config_of(out, {"samples": samples} if samples else {}, resume)
        with rendering(cache, scenes, first_shard) if scenes else nullcontext(lambda: False) as rendered:
            train(config, out, cache, first_shard=first_shard, resume=resume, minutes=minutes,
                  validate_every=validate_every, rendered=rendered)  # fmt: skip
    except TrainError as error:
        sys.exit(f"train_finder: {error}")


if __name__ == "__main__":
    main()
