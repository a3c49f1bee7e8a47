"""Plans: what TensorRT makes of an ONNX file, for one GPU, one driver and one version of TensorRT only.

They are built on the device in a child process and kept. A kept plan is one line of JSON, its key and checksum, and the
plan's bytes: it is used if every field of the key is what this machine has now and every byte is as written, else it
is built again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ....hand.whole import write_whole
from ...child import module_command
from ...home import home
from ...networks.card import ModelError
from .build import Job

FORMAT = 1  # one more when `build.py` makes another plan of the same key
LARGEST_PLAN_BYTES = 256 << 20
CACHE_BYTES = 1 << 30
BUILD_LIMIT_S = 1800.0
HEADER_BYTES = 8192
LOCK = "plans.lock"
_building: list[Path] = []  # the caches for which threads of this process build

Say = Callable[[str], None]


class PlanKey(NamedTuple):
    """Everything a plan depends on. model is the sha256 of the ONNX file."""

    tensorrt: str
    gpu: str
    capability: str
    driver: str
    model: str
    precision: str
    flags: str  # "level=3 refit"

    def path(self, folder: Path) -> Path:
        return folder / f"{_digest(json.dumps(self).encode())[:20]}.plan"

    def timings(self, folder: Path) -> Path:
        """Kernels' speeds hold for all models on the same GPU under the same TensorRT."""
        what = [self.tensorrt, self.gpu, self.capability, self.driver]
        return folder / f"{_digest(json.dumps(what).encode())[:20]}.timings"


class Plan(NamedTuple):
    """data is what TensorRT deserialises; note says in one line where it came from; kept: the cache had it."""

    data: bytes
    note: str
    kept: bool = False


def cache_folder() -> Path:
    """EDGE_HAND_CACHE, else the service's own cache, else the user's."""
    for name in ("EDGE_HAND_CACHE", "CACHE_DIRECTORY"):
        if os.environ.get(name):
            return Path(os.environ[name].split(":")[0])
    return Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache") / "edge-hand"


def get_plan(
    model: Path, key: PlanKey, job: Job, *, folder: Path | None = None, say: Say = lambda line: None,
    limit_s: float = BUILD_LIMIT_S, refused: bytes = b"",
) -> Plan:  # fmt: skip
    """The kept plan unless it is the one that TensorRT refused, or a new one, which takes its place. say hears how the
    build goes. Raises ModelError, one line.

    A cache that cannot be written costs a build at every start, nothing else.
    """
    folder = folder or cache_folder()
    path = key.path(folder)
    kept = _kept(path, key, refused)
    if isinstance(kept, Plan):
        return kept
    with _alone(folder, say):
        kept = _kept(path, key, refused)  # by another process, while this one waited for it
        if isinstance(kept, Plan):
            return kept
        say(f"tensorrt: building a plan for {model.name} ({kept})")
        try:
            timings = read(key.timings(folder), key, whole=False)
        except (OSError, ValueError):
            timings = b""
        data, learnt = run_build(job, model.read_bytes(), timings, say, limit_s)
        note = f"plan {path.name[:8]}, built anew"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(path, key, data)
            if learnt:
                write(key.timings(folder), key, learnt)
            prune(folder, keep=path)
        except OSError as error:
            note += f", not kept ({folder}: {error.strerror or error})"
            say(f"tensorrt: {note}")
        return Plan(data, note)


def building() -> bool:
    """Whether a thread of this process builds a plan, or waits for another process that does."""
    return bool(_building)


def read(path: Path, key: PlanKey, whole: bool = True) -> bytes:
    """The bytes of a kept file. Raises OSError, or ValueError if it is another's, torn or changed; unless whole, the
    model, precision and flags may differ, as they do for timings."""
    if path.stat().st_size > LARGEST_PLAN_BYTES + HEADER_BYTES:
        raise ValueError(f"{path.name} is over {LARGEST_PLAN_BYTES >> 20} MB")
    with path.open("rb") as file:
        line, data = file.readline(HEADER_BYTES), file.read()
    try:
        header = json.loads(line)
        kept, made, digest = dict(header["key"]), header["format"], header["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path.name} is no plan") from None
    if made != FORMAT:
        raise ValueError(f"{path.name} was kept in format {made}")
    for name, wanted in key._asdict().items():
        if (whole or name in ("tensorrt", "gpu", "capability", "driver")) and kept.get(name) != wanted:
            raise ValueError(f"{path.name} is for {name} {kept.get(name)}, here is {wanted}")
    if _digest(data) != digest:
        raise ValueError(f"{path.name} is damaged")
    return data


def write(path: Path, key: PlanKey, data: bytes) -> None:
    """Keep a plan; two processes may do so at once. Raises OSError."""
    header = json.dumps({"format": FORMAT, "key": key._asdict(), "sha256": _digest(data), "bytes": len(data)})
    write_whole(path, header.encode() + b"\n" + data, 0o600)


def prune(folder: Path, keep: Path, most_bytes: int = CACHE_BYTES) -> None:
    """Delete the oldest plans, and what a killed write left, until the folder is small enough."""
    files = sorted((f for f in folder.iterdir() if f.suffix in (".plan", ".timings", ".part")), key=_age)
    total = sum(f.stat().st_size for f in files)
    for file in files:
        if file != keep and (total > most_bytes or (file.suffix == ".part" and _age(file) < _age(keep) - 3600)):
            total -= file.stat().st_size
            file.unlink(missing_ok=True)


def run_build(job: Job, model: bytes, timings: bytes, say: Say, limit_s: float) -> tuple[bytes, bytes]:
    """Build in a child process that ends when this one does. Raises ModelError."""
    command = module_command(f"{__package__}.build")
    with tempfile.TemporaryFile() as noise:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise)
        clock = threading.Timer(limit_s, child.kill)
        clock.daemon = True  # it must not keep a daemon that ends
        clock.start()
        assert child.stdin and child.stdout
        try:
            line = json.dumps({**job._asdict(), "model": len(model), "timings": len(timings)})
            with contextlib.suppress(BrokenPipeError):  # a child that died says so below
                child.stdin.write(line.encode() + b"\n" + model + timings)
                child.stdin.flush()
            done = _listen(child.stdout, say)
        finally:
            late = not clock.is_alive()
            clock.cancel()
            child.kill()
            child.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            code = child.wait()
        if done is None:
            noise.seek(0)
            heard = noise.read()[-4000:].decode(errors="replace").strip().splitlines()
            why = f"it took over {limit_s:g} s" if late else f"the builder died ({_ending(code)})"
            raise ModelError(f"tensorrt: no plan: {why}" + (f": {heard[-1][:200]}" if heard and not late else ""))
    if len(done[0]) > LARGEST_PLAN_BYTES:
        raise ModelError(f"tensorrt: no plan: it has {len(done[0]) >> 20} MB, allowed are {LARGEST_PLAN_BYTES >> 20}")
    return done


def _kept(path: Path, key: PlanKey, refused: bytes) -> Plan | str:
    """The kept plan, or why there is none to be used."""
    try:
        data = read(path, key)
    except FileNotFoundError:
        return "none kept"
    except (OSError, ValueError) as error:
        return str(error)
    if data == refused:
        return "the kept one was refused"
    return Plan(data, f"plan {path.name[:8]} of the cache", kept=True)


@contextlib.contextmanager
def _alone(folder: Path, say: Say) -> Iterator[None]:
    """One process builds for a cache at a time: two would spoil each other's timings, and often want the same plan.
    Without a folder that can be written each builds for itself."""
    _building.append(folder)
    with contextlib.ExitStack() as stack:
        stack.callback(_building.remove, folder)
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / LOCK).open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("tensorrt: another process builds a plan; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _listen(stream: BinaryIO | Any, say: Say) -> tuple[bytes, bytes] | None:
    """What the child sent, None if it died before the end. Raises ModelError if it gave up."""
    for line in stream:
        try:
            heard = json.loads(line)
        except ValueError:
            return None
        if "failed" in heard:
            raise ModelError(f"tensorrt: no plan: {heard['failed']}")
        if "phase" in heard:
            say(f"tensorrt: {heard['phase']}, {heard['step']} of {heard['steps']}")
        if "plan" in heard:
            plan, learnt = stream.read(heard["plan"]), stream.read(heard["timings"])
            return (plan, learnt) if (len(plan), len(learnt)) == (heard["plan"], heard["timings"]) else None
    return None


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit {code}"


def _age(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
