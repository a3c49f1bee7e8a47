"""A whole adaptation: recordings in, an adapted network and its report out; the gate has the last word."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...edge.engines import open_engine
from ...edge.networks.card import MODELS
from ...edge.networks.store import check_store, default_store
from ...edge.person import Person
from ...hand.whole import refusal, write_json
from .. import parallel
from ..checkpoint import load_net
from .agreement import usable_rig
from .frames import HELD_OUT, AdaptError, read_footage
from .report import draw_fits, summary
from .run import AdaptConfig, Adapted, adapt_net
from .target import Target, load_target, prepare, save_target

__all__ = ["AdaptConfig", "AdaptError", "adapt"]

NICE = 10  # below the daemon


def adapt(
    sources: Sequence[Path],
    out: Path,
    *,
    model: str = "dgn-nano",
    rig: Path | None = None,
    config: AdaptConfig | None = None,
    minutes: float | None = 20.0,
    threads: int | None = 1,
    resume: bool = False,
    gate: bool = True,
    store: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Adapt a shipped model to the hand in recordings; the report, which is also in out/report.json.

    Writes out/target.npz (what was learned from), adapted.pt, person.json (the hand's shape, for `edge-hand run
    --person`), fits.png and, through the gate, a version of the model. With torchrun every process adapts to its share
    of the recordings, and all learn from all. Raises AdaptError, CameraError, TrainError and the gate's errors.
    """
    config = replace(config or AdaptConfig(), held_out=HELD_OUT if gate else 0.0)
    with suppress(OSError):
        os.nice(NICE)
    base, engine_file = MODELS / f"{model}.pt", MODELS / f"{model}.onnx"
    if not base.is_file() or not engine_file.is_file():
        possible = ", ".join(sorted(p.stem for p in MODELS.glob("*.pt")))
        raise AdaptError(f"--model {model}: there are no weights to train of it; possible are {possible}")
    if (out / "adapted.pt").exists() and not resume:
        raise AdaptError(f"{out} holds an adaptation: go on with --resume, or choose another --out")
    if resume and not (out / "adapted.pt").exists():
        raise AdaptError(f"{out / 'adapted.pt'}: no such checkpoint, so there is nothing to --resume")
    if missing := [str(path) for path in sources if not path.exists()]:
        raise AdaptError(f"--source {missing[0]}: no such recording")
    if len({path.resolve() for path in sources}) < len(sources):
        raise AdaptError(f"--source {', '.join(map(str, sources))}: one recording twice; give each once")
    out.mkdir(parents=True, exist_ok=True)
    with parallel.join(cpu=True) as group, _alone(out, group):
        tell = say if group.rank == 0 else (lambda _: None)
        mine = sources if rig or group.size == 1 else [s for i, s in enumerate(sources) if i % group.size == group.rank]
        mine = mine or [sources[group.rank % len(sources)]]
        if gate and group.rank == 0:
            _refuse_unjudged(mine, rig, store)
        if gate and not resume:
            _refuse_bad(mine, rig, engine_file, tell)
        path = out / ("target.npz" if group.size == 1 else f"target-{group.rank}.npz")
        names = np.array([p.absolute().name for p in (*sources, *([rig] if rig else []))])
        if resume and path.exists():
            target = load_target(path)
            if target.sources.size and target.sources.tolist() != names.tolist():
                learned = ", ".join(target.sources)
                raise AdaptError(f"--resume: {out} learns from {learned}; give the same, or choose another --out")
        else:
            target = _target(mine, rig, base, engine_file, 1 - config.held_out, tell)._replace(sources=names)
            save_target(target, path)
        if group.rank == 0:
            Person(target.shape).save(out / "person.json")
        adapted = adapt_net(
            base, target, out, config, minutes=minutes, threads=threads, resume=resume, say=tell, group=group
        )
        if group.rank:
            return {}
        report = _report(out, base, target, config, adapted)
        if not adapted.finished:
            tell(f"stopped and saved after {adapted.steps} of {config.steps} steps; --resume goes on")
        elif gate:
            _gate(report, adapted.checkpoint, engine_file, mine, rig, store, tell)
        else:
            _export(adapted.checkpoint, tell)
        write_json(out / "report.json", report)
        return report


@contextmanager
def _alone(out: Path, group: parallel.Group) -> Iterator[None]:
    """One adaptation in a folder at a time; of several processes the first one holds it. Raises AdaptError."""
    if group.rank:
        yield
        return
    try:
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise AdaptError(f"{out} cannot be written: {refusal(error)}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AdaptError(f"{out}: another adaptation is at work there; wait, or choose another --out") from None
        yield


def _refuse_unjudged(sources: Sequence[Path], rig: Path | None, store: Path | None) -> None:
    """Raises AdaptError, StoreError or ModelError if the gate could not let in whatever would be learned."""
    from .held_out import too_short

    if reasons := too_short(sources, rig):
        raise AdaptError("adapt: " + "; ".join(reasons))
    check_store(store or default_store())


def _refuse_bad(sources: Sequence[Path], rig: Path | None, model: Path, say: Callable[[str], None]) -> None:
    """Raises AdaptError with the gate's reasons not to learn from these recordings."""
    from .gate import check_recording

    say("looking at the recordings")
    reasons = check_recording(sources, rig, model=model)
    if reasons:
        raise AdaptError("adapt: " + "; ".join(reasons))


def _target(
    sources: Sequence[Path], rig: Path | None, base: Path, model: Path, share: float, say: Callable[[str], None]
) -> Target:
    cameras = {camera.serial: camera for camera in usable_rig(rig).cameras} if rig else None
    footage = read_footage(sources, open_engine("onnxruntime", model), cameras, share=share, say=say)
    say(f"{len(footage.moments)} moments with a hand in {footage.frames} frames of {footage.cameras} camera(s)")
    return prepare(footage, load_net(base)[0], say)


def _report(out: Path, base: Path, target: Target, config: AdaptConfig, adapted: Adapted) -> dict[str, Any]:
    before, after = load_net(base)[0], load_net(adapted.checkpoint)[0]
    return {
        "config": asdict(config),
        "steps": adapted.steps,
        "seconds": round(adapted.seconds, 1),
        "peak_mib": round(adapted.peak_mib),
        "share": adapted.share,
        "target": summary(target),
        "fit_mm": draw_fits(out / "fits.png", target, before, after),
        "log": adapted.log,
        "gate": None,
    }


def _gate(
    report: dict[str, Any], checkpoint: Path, old: Path, sources: Sequence[Path], rig: Path | None,
    store: Path | None, say: Callable[[str], None],
) -> None:  # fmt: skip
    from .gate import accept

    judged, version = accept(checkpoint, old, sources, rig, store=store, say=say, check=False)
    say(judged.table())
    if version is not None:
        say(f"version {version.number} serves from now on; `edge-hand models rollback` goes back")
    report["gate"] = judged.as_json()


def _export(checkpoint: Path, say: Callable[[str], None]) -> None:
    from ...exporters.onnx import export

    path = checkpoint.with_suffix(".onnx")
    export(checkpoint, path)
    say(f"not judged: {path} is for those who know better, `edge-hand run --model {path}`")
