"""Train the finder on rendered rooms: scenes are rendered once, in the background, and learned from many times.

python -m edge_hand.trainer.train_finder --out runs/finder --cache runs/rooms --processes 2
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
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from ..edge.finder import Maps, Part, network_input, proposals
from ..hand.arrays import Array
from ..hand.frames import HandRoi
from . import parallel
from .checkpoint import CHECKPOINT_VERSION, TrainConfig, TrainError, config_of, load_checkpoint, load_weights, save
from .nets.finder import Criterion, FinderNet, targets
from .optimizers import build_optimizers, schedule
from .parallel import Group
from .precision import mixed
from .processes import when_parent_ends
from .synth.pictures import (
    SHARD,
    Hands,
    depth_m,
    hands_of,
    in_frame,
    open_shards,
    random_part,
    record,
    render_shards,
    vary,
)
from .train import Log, descend, nothing_left, progress, unsaved, update_average

SAY_S, SAVE_S, RESCAN_S = 10, 120, 30
MATCH_M = 0.08  # a proposal this near to a hand's centre has found it
NEAR_M = 0.12  # a proposal this near to a hand that nobody asks for is not held against the finder
WELL_SEEN = 0.5
SCENES, SAMPLES = 60_000, 1_500_000
PARTS = 16  # of the seeds: those of the parts
VALIDATION = 6  # shards
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

    first_shard: earlier ones are left out. validation: pictures of "val" that are looked at. rendered: whether more
    shards are on their way; the first is waited for. Several processes each take the mean over their own hands.
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
    with parallel.join(cpu=True) as group:
        if config.batch % group.size or config.batch < 2 * group.size:
            raise TrainError(
                f"a batch of {config.batch}: {group.size} processes cannot share it evenly, 2 or more each"
            )
        torch.manual_seed(config.seed)
        net: nn.Module = build(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        averaged = copy.deepcopy(net).requires_grad_(False)
        optimizers = build_optimizers(net, config, group)
        seen = 0
        if state:
            seen = state["seen"]
            load_weights(net, state["net"], path)
            load_weights(averaged, state["averaged"], path)
            for optimizer, its in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(its)
        criterion, log = Criterion(), Log(out, group, False)
        open_shards(cache, "val")  # damaged ones are for now, not for the first validation
        if state and seen >= config.samples:
            log.say(nothing_left(path, seen, config.samples))
            return path

        def keep(*, last: bool) -> None:
            weights = {"net": net.state_dict(), "averaged": averaged.state_dict()}
            kept = {"config": asdict(config), "seen": seen, "optimizers": [o.state_dict() for o in optimizers]}
            try:
                if group.rank == 0:
                    save({"version": CHECKPOINT_VERSION, **kept, **weights}, path)
            except OSError as problem:
                if last:
                    raise TrainError(unsaved(path, problem)) from None
                log.say(f"{unsaved(path, problem)}; training goes on")

        begun = said = saved = time.monotonic()
        begun_seen, steps, finished, stopped = seen, 0, False, False
        totals: dict[str, float] = {}
        source = batches(cache, config, seen, first_shard, rendered, group)
        first = next(source)  # which may be waited for; until then a signal ends it
        with parallel.stop_signals() as signals:
            for z, hands in chain([first], source):
                for optimizer in optimizers:
                    for settings in optimizer.param_groups:
                        settings["lr"] = settings["peak"] * schedule(config, seen)
                which = f"the batch after {seen} samples of seed {config.seed}"
                late = minutes is not None and time.monotonic() - begun > 60 * minutes
                stop = late or bool(signals)
                terms, stopped = step(net, criterion, optimizers, z, hands, config.bf16, which, group, stop)
                done = seen / config.batch
                update_average(averaged, net, min(config.ema ** (config.batch / 64), (1 + done) / (10 + done)))
                seen, steps = seen + config.batch, steps + 1
                finished = seen >= config.samples
                totals = {name: totals.get(name, 0.0) + value for name, value in terms.items()}
                now = time.monotonic()
                if now - said > SAY_S or finished:
                    means = {name: round(total / steps, 4) for name, total in totals.items()}
                    log.say(progress(seen, config.samples, (seen - begun_seen) / (now - begun), means))
                    log.write({"seen": seen, **means})
                    totals, steps, said = {}, 0, now
                ends = finished or (stopped and not signals)  # who interrupts does not wait
                if validate_every and group.rank == 0 and (ends or seen % validate_every < config.batch):
                    scores = evaluate(averaged, cache, validation)
                    log.say(f"{seen:>9,} samples: {told(scores)}")
                    log.write({"seen": seen, **scores})
                if finished or stopped:
                    break
                if now - saved > SAVE_S:
                    keep(last=False)
                    saved = now
        keep(last=True)
        if not finished:
            log.say(f"stopped and saved after {seen:,} of {config.samples:,} samples; --resume goes on")
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
    group: Group,
    stop: bool,
) -> tuple[dict[str, float], bool]:
    """One step of all processes, this one's pictures (B, 112, 160) m: the loss's terms over all of them, and whether
    any process wants to stop. A term that is not finite is a TrainError; which names the batch in it."""
    net.train()
    picture = torch.from_numpy(network_input(z)).contiguous(memory_format=torch.channels_last)
    with mixed("cpu", bf16):
        output = net(picture)
    terms: dict[str, Tensor] = criterion(output, targets(*map(torch.from_numpy, labels(hands))))
    return descend(net, terms, optimizers, lambda: which, group, stop=stop)


def labels(hands: Hands) -> tuple[Array, Array, Array]:
    return hands.centre_m.astype(np.float32), hands.right, hands.role


def batches(
    cache: Path,
    config: TrainConfig,
    seen: int,
    first_shard: int,
    rendered: Callable[[], bool],
    group: Group,
) -> Iterator[tuple[Array, Hands]]:
    """This process's shares of batches without end, drawn at random from the shards there are; waits for the first
    while any are rendered."""
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
            if not waiting and group.rank == 0:
                print(f"waiting for the first {SHARD} pictures in {cache}", flush=True)
            waiting = True
            time.sleep(1)
            continue
        rng = np.random.default_rng([config.seed, seen, group.rank])
        at = rng.integers(len(shards) * len(shards[0]), size=config.batch // group.size)
        rows = np.stack([shards[i // SHARD][i % SHARD] for i in at])
        yield vary(depth_m(rows["picture"]), hands_of(rows), rng)
        seen += config.batch


def evaluate(net: nn.Module, cache: Path, pictures: int, least_score: float = 0.3) -> dict[str, float]:
    """How the net does on the first pictures of "val": see `score`."""
    shards = open_shards(cache, "val")
    if not shards:
        return {}
    rows = np.concatenate(shards)[:pictures]
    net.eval()
    found: list[list[HandRoi]] = []
    with torch.no_grad():
        for some in np.array_split(rows, math.ceil(len(rows) / 16)):
            out = net(torch.from_numpy(network_input(depth_m(some["picture"]))))
            maps = [m.numpy() for m in (out.heat[:, 0], out.offset, out.log_z[:, 0], out.right[:, 0])]
            found += [
                proposals(Maps(*each), least_score, 6, Part(*part))
                for part, *each in zip(some["part"].tolist(), *maps, strict=True)
            ]
    return score(found, in_frame(rows))


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


def pictures_of(stream: str) -> Callable[[int], Array]:
    """The pictures of a stream by index (`synth.pictures.record`). Scenes are of people, and every sixth one of hands
    on bare forearms; each gives two pictures, of all of it and of a part of it."""
    from .synth.lone_hands import LoneHands
    from .synth.rooms import SceneGenerator

    rooms, lone = SceneGenerator(stream, width=WIDTH), LoneHands(stream, width=WIDTH)

    @lru_cache(1)
    def scene(index: int) -> Any:
        return lone.scene(index) if index % 6 == 5 else rooms.scene(index)

    def picture(index: int) -> Array:
        drawn = scene(index // 2)
        rng = np.random.default_rng([PARTS, index])
        part = random_part(drawn.frame.intrinsics, drawn.hands, rng) if index % 2 else None
        return record(drawn.frame, drawn.hands, part)

    return picture


def _render(cache: Path, numbers: range, validation: range) -> None:
    when_parent_ends(lambda: os._exit(1))
    render_shards(cache, "val", validation, pictures_of("val"))
    render_shards(cache, "train", numbers, pictures_of("train"))


@contextmanager
def rendering(cache: Path, scenes: int, first_shard: int) -> Iterator[Callable[[], bool]]:
    """Render in a process of its own, for as long as the caller works; gives whether it still does."""
    numbers = range(first_shard, first_shard + math.ceil(2 * scenes / SHARD))
    process = mp.get_context("spawn").Process(target=_render, args=(cache, numbers, range(VALIDATION)), daemon=True)
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


def run(config: TrainConfig, out: Path, cache: Path, scenes: int, **options: Any) -> None:
    """One of the run's processes: `train`, and in the first of them rendering beside it."""
    torch.set_num_threads(1)
    first = int(os.environ.get("RANK", "0")) == 0
    with rendering(cache, scenes, options["first_shard"]) if scenes and first else nullcontext() as rendered:
        train(config, out, cache, rendered=rendered or (lambda: bool(scenes)), **options)


@click.command()
@click.option("--out", type=Path, required=True, help="Folder for the checkpoint and the log.")
@click.option("--cache", type=Path, required=True, help="Folder for rendered scenes, 72 MB a thousand.")
@click.option("--scenes", default=SCENES, show_default=True, help="Scenes to render; 0 takes what is in the cache.")
@click.option("--first-shard", default=0, show_default=True, help="Leave earlier shards out.")
@click.option("--samples", type=click.IntRange(1), help=f"Default {SAMPLES:,}; with --resume what the run has.")
@click.option("--minutes", type=float)
@click.option("--validate-every", default=50_000, show_default=True, help="Samples.")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="That share every batch.")
@click.option("--resume", is_flag=True)
def main(
    out: Path, cache: Path, scenes: int, first_shard: int, samples: int | None, minutes: float | None,
    validate_every: int, processes: int, resume: bool,
) -> None:  # fmt: skip
    """Train the finder of hands in whole depth frames."""
    config = TrainConfig(net="finder", samples=samples or SAMPLES, batch=64, warmup=8000, decay=0.4, coarse=0,
                         negative_share=0.0)  # fmt: skip
    options = {"first_shard": first_shard, "resume": resume, "minutes": minutes, "validate_every": validate_every}
    try:
        if resume:
            config = config_of(out, {"samples": samples} if samples else {}, resume)
        if processes > 1:
            parallel.launch(processes, run, config, out, cache, scenes, error=TrainError, **options)
        else:
            run(config, out, cache, scenes, **options)
    except TrainError as error:
        sys.exit(f"train_finder: {error}")


if __name__ == "__main__":
    main()
