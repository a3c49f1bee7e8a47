"""Which CPU engine, file, precision and threads are fastest on this machine: tried for a second, once, and kept.

It runs in a child process (`python -m edge_hand.edge.networks.tune`), so that a daemon that serves already is not held
up by it, nor grows. What it finds holds as long as the CPU, its cores, the engines' versions and the model's bytes do.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...hand.whole import read_json, refusal, write_whole
from ..child import module_command
from ..engines import ANYWHERE, SWAP_LIMIT_MM, TUNED_LIMIT_MM, Engine, engine_kinds
from ..engines.tensorrt.plan import cache_folder
from ..machine.board import cpu_name
from . import probe
from .card import ModelError, load_card, same_training

FORMAT = 2  # one more when what is tried, or how it is judged, changes
BUDGET_S = 1.0  # for the timing; opening the engines comes on top
LIMIT_S = 120.0
SAME = 1.1  # times within this of each other are the same
WINS = 0.85  # of the time that ONNX Runtime takes: what is not faster than this is no reason to change
THREADS_WIN = 0.7  # of the time with half the threads: a core is worth more than that
BUSY = 1.2  # times its processor time: then a single thread did not have its core to itself
BLOCK = 5  # runs in a row
MOST_KEPT = 32
_children: list[subprocess.Popen[str]] = []
_alone = threading.Lock()  # two that race at once would slow each other
stopped = threading.Event()


class Setting(NamedTuple):
    """One way to run a network. kind is the engine, model its file, options what else its open_engine takes."""

    kind: str
    model: str
    threads: int
    options: tuple[tuple[str, bool], ...] = ()

    def open(self) -> Engine:
        """Raises ModelError."""
        path = Path(self.model)
        backend = importlib.import_module(f"..engines.{self.kind}", __package__)
        engine: Engine = backend.open_engine(path, load_card(path), self.threads, **dict(self.options))
        return engine

    def __str__(self) -> str:
        on = "".join(f" {name if value else 'no ' + name}" for name, value in self.options)
        return f"{Path(self.model).stem} on {self.kind}{on}, {self.threads} thread{'s' if self.threads > 1 else ''}"


class Taken(NamedTuple):
    """A run by the clock, and in processor time of all threads, which a busy machine hardly disturbs; ms."""

    ms: float
    cpu_ms: float


class Tuned(NamedTuple):
    """What was found: the setting to use, and in one line why."""

    setting: Setting
    line: str


def first(model: Path, threads: int) -> Setting:
    """What serves until more is known. threads 0 is 1."""
    return Setting(ANYWHERE, str(_whole(model)), max(1, threads))


def kept(model: Path, threads: int) -> Tuned | None:
    """What an earlier tuning found on this machine as it is now; None if there was none."""
    try:
        found = read_json(_path(model, threads))
        return _tuned(found)
    except (OSError, ValueError, KeyError, TypeError, ModelError):
        return None


def tune(model: Path, threads: int) -> Tuned:
    """Find the best setting in a child process and keep it. threads 0 leaves their number open. Raises ModelError."""
    command = module_command(__spec__.name if __name__ == "__main__" else __name__, str(model), str(threads))
    with _alone:
        if stopped.is_set():
            raise ModelError("self-tuning did not begin")
        return _tune(command)


def _tune(command: list[str]) -> Tuned:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        _children.append(child)
        try:
            out, noise = child.communicate(timeout=LIMIT_S)
            return _tuned(json.loads(out.splitlines()[-1]))
        except subprocess.TimeoutExpired:
            raise ModelError(f"self-tuning took over {LIMIT_S:g} s") from None
        except (ValueError, IndexError, KeyError, TypeError):
            heard = noise.strip().splitlines() or [f"exit {child.returncode}"]
            raise ModelError(f"self-tuning failed: {heard[-1][:200]}") from None
        finally:
            child.kill()
            _children.remove(child)


def stop() -> None:
    """End what is being tuned, as this process ends; it fails, and so does what would be."""
    stopped.set()
    for child in list(_children):
        child.kill()


def settings(model: Path, threads: int) -> list[Setting]:
    """All that can be tried, what serves first coming first: every CPU engine that is installed, on every file."""
    found = [first(model, threads)]
    for kind, backend in _backends():
        for options in backend.choices(threads):
            found += [Setting(kind, str(file), threads, tuple(options.items())) for file in files(model)]
    return list(dict.fromkeys(found))


def files(model: Path) -> list[Path]:
    """The model, and for one in 8 bits the float form of the same training beside it, which is more precise; paths that
    hold in whatever folder a later start is."""
    model = _whole(model)
    plain = model.with_name(model.stem.removesuffix("-int8") + ".onnx")
    if plain != model and plain.is_file():
        with contextlib.suppress(ModelError):
            card, asked = load_card(plain), load_card(model)
            if card.outputs == asked.outputs and same_training(card, asked):
                return [model, plain]
    return [model]


def _whole(model: Path) -> Path:
    """The path from the root; a file that is a link keeps its name, by which its card is found."""
    return model.parent.resolve() / model.name


def best(model: Path, threads: int, budget_s: float = BUDGET_S) -> Tuned:
    """Try every setting, here and now. Those that are further from the float network than they may be do not count, as
    long as there are others, and of several that are about as fast the nearest to it is the best."""
    start = first(model, threads)
    tried = _open(settings(model, max(1, threads)))
    off_mm = distances(tried)
    limit_mm = TUNED_LIMIT_MM if off_mm[start] > SWAP_LIMIT_MM else SWAP_LIMIT_MM  # in 8 bits, or not
    near = [setting for setting in off_mm if off_mm[setting] <= limit_mm] or [start]
    times = race([(setting, engine) for setting, engine in tried if setting in near or setting == start], budget_s)
    ms = {setting: took.cpu_ms if setting.threads == 1 else took.ms for setting, took in times.items()}
    fast = [setting for setting in near if ms[setting] <= SAME * min(ms[setting] for setting in near)]
    winner = min(fast, key=lambda setting: off_mm[setting])
    if start in near and ms[winner] > WINS * ms[start]:
        winner = start
    gained = f"{winner} takes {ms[winner]:.2f} ms, {start} {ms[start]:.2f} ms"
    if start not in near:
        gained += f" but is {off_mm[start]:.1f} mm off"
    if winner == start:
        others = ", ".join(f"{setting} {ms[setting]:.2f} ms" for setting in ms if setting != start)
        gained = f"nothing is {1 - WINS:.0%} faster than its {ms[start]:.2f} ms ({others or 'no other engine'})"
    return Tuned(winner, gained) if threads else widened(Tuned(winner, gained), budget_s / 2)


def widened(found: Tuned, budget_s: float) -> Tuned:
    """The same with twice the threads, and twice again, as long as each doubling is worth its cores. Where other
    programs take turns on the cores nothing can be told, and one thread is right."""
    while 2 * found.setting.threads <= cores():
        now, kind = found.setting, found.setting.kind
        choices = importlib.import_module(f"..engines.{kind}", __package__).choices(2 * now.threads)
        wider = [now._replace(threads=2 * now.threads, options=tuple(options.items())) for options in choices]
        times = race(_open([now, *wider]), budget_s)
        if now.threads == 1 and times[now].ms > BUSY * times[now].cpu_ms:
            return Tuned(now, f"{found.line}; too busy to tell what a second thread gains")
        fastest = min(times, key=lambda setting: times[setting].ms)
        if times[fastest].ms > THREADS_WIN * times[now].ms:
            break
        found = Tuned(fastest, f"{fastest} takes {times[fastest].ms:.2f} ms, {now} {times[now].ms:.2f} ms")
    return found


def rank(model: Path, threads: int, budget_s: float) -> list[tuple[Setting, Taken, float]]:
    """Every setting, its time, its distance from the float network (mm); the fastest first. Raises ModelError."""
    tried = _open(settings(model, max(1, threads)))
    off_mm, times = distances(tried), race(tried, budget_s)
    return sorted(
        ((setting, taken, off_mm[setting]) for setting, taken in times.items()), key=lambda row: row[1].cpu_ms
    )


def race(engines: Sequence[tuple[Setting, Engine]], budget_s: float) -> dict[Setting, Taken]:
    """Time per run, in turns of a few runs each until the budget is spent: the lower quartile."""
    images = [probe.images(engine.card, 1)[0] for _, engine in engines]
    taken: dict[Setting, list[tuple[float, float]]] = {setting: [] for setting, _ in engines}
    for (_, engine), image in zip(engines, images, strict=True):
        for _ in range(BLOCK):
            engine.run(image)
    until = time.perf_counter() + budget_s
    while time.perf_counter() < until or not all(taken.values()):
        for (setting, engine), image in zip(engines, images, strict=True):
            engine.run(image)  # after another's turn the caches are cold
            for _ in range(BLOCK):
                begun, worked = time.perf_counter(), time.process_time()
                engine.run(image)
                taken[setting].append((time.perf_counter() - begun, time.process_time() - worked))
    return {
        setting: Taken(*(float(ms) for ms in np.percentile(np.asarray(both) * 1e3, 25, axis=0)))
        for setting, both in taken.items()
    }


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def key(model: Path, threads: int) -> dict[str, Any]:
    """Everything that a result depends on."""
    versions = {kind: backend.version() for kind, backend in _backends()}
    hashes = {file.name: load_card(file).sha256 for file in files(model)}
    return {"format": FORMAT, "cpu": cpu_name(), "cores": cores(), "threads": threads, "engines": versions,
            "models": hashes, "folder": str(_whole(model).parent)}  # fmt: skip


def _path(model: Path, threads: int) -> Path:
    digest = hashlib.sha256(json.dumps(key(model, threads), sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"{digest[:20]}.tune"


def _keep(model: Path, threads: int, text: str) -> str:
    """Write it down; where that cannot be, say so: each start then tunes again."""
    path = _path(model, threads)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
        for old in sorted(path.parent.glob("*.tune"), key=lambda file: file.stat().st_mtime)[:-MOST_KEPT]:
            old.unlink(missing_ok=True)
    except OSError as error:
        return f"; not kept ({path.parent}: {refusal(error)})"
    return ""


def _backends() -> list[tuple[str, Any]]:
    """The engines that can be tuned and are installed."""
    modules = [(kind, importlib.import_module(f"..engines.{kind}", __package__)) for kind in engine_kinds()]
    return [(kind, module) for kind, module in modules if hasattr(module, "choices") and not module.unavailable()]


def _open(wanted: Sequence[Setting]) -> list[tuple[Setting, Engine]]:
    """Those that open; the first must. Raises ModelError."""
    opened = [(wanted[0], wanted[0].open())]
    for setting in wanted[1:]:
        with contextlib.suppress(ModelError):
            opened.append((setting, setting.open()))
    return opened


def distances(tried: Sequence[tuple[Setting, Engine]]) -> dict[Setting, float]:
    """How far (mm, mean over vertices) each is from the float network on ONNX Runtime; from the first if there is none
    among them."""
    floats = [engine for setting, engine in tried if setting.kind == ANYWHERE and engine.card.precision != "int8"]
    truth = floats[0] if floats else tried[0][1]
    images = probe.images(truth.card)
    return {setting: probe.compare(engine, truth, images).mean_mm for setting, engine in tried}


def _tuned(found: dict[str, Any]) -> Tuned:
    kind, model, threads, options = found["setting"]
    load_card(Path(model))
    return Tuned(Setting(kind, model, threads, tuple((name, value) for name, value in options)), found["line"])


def _main() -> None:
    model, threads = Path(sys.argv[1]), int(sys.argv[2])
    try:
        found = best(model, threads)
    except ModelError as error:
        sys.exit(str(error))
    text = json.dumps(found._asdict())
    note = _keep(model, threads, text)
    print(json.dumps(found._replace(line=found.line + note)._asdict()), flush=True)
    os._exit(0)  # engines' threads need no clean-up


if __name__ == "__main__":
    _main()
