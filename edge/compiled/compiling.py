"""Has the loop's arithmetic compiled for this CPU, once, and loads it at each start.

Compiling takes half a minute, loading what was compiled half a second. So a run takes what an earlier one had compiled;
where there is nothing yet it computes in numpy to its end, and a child process of the lowest priority compiles for the
next (`python -m edge_hand.edge.compiled.compiling`). numba is needed for both (extra `fast`); where it is
missing or fails, numpy serves.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from ...hand.extras import to_get
from ...hand.kinematics import AVERAGE
from ...hand.template import template
from ...hand.whole import read_json, refusal
from ..arithmetic import PLAIN, Arithmetic
from ..child import module_command
from ..engines.tensorrt.plan import cache_folder
from ..machine.board import ROOT, cpu_name, read

Say = Callable[[str], None]
LEAST_NUMBA = (0, 59)
LIMIT_S = 900.0
MOST_KEPT = 4
SAME_M = 1e-4
HERE = Path(__file__).parent
KERNELS = ("depth.py", "hand.py", "look.py", "smooth.py", "solve.py")
# What the kernels take constants and arrays' kinds from.
SOURCES = (*KERNELS, "fast.py", "../chain.py", "../confidence.py", "../look.py", "../reading.py", "../refit.py",
           "../smooth.py", "../spheres.py", "../visibility.py", "../../hand/crop.py", "../../hand/parts.py",
           "../../hand/skeleton.py", "../../hand/template.npz")  # fmt: skip
READY = "ready.json"


class NotCompiled(Exception):
    """Why there is no compiled form, in a few words."""


def open_arithmetic(say: Say, wait: bool = False) -> Arithmetic:
    """The compiled arithmetic if there is any, else numpy's, and what is missing is being compiled; or, with wait, is
    waited for. say hears one line if the two differ from what they could be. Never raises for the lack of it."""
    have = numba_version()
    if not have:
        return PLAIN
    try:
        if have < LEAST_NUMBA:
            raise NotCompiled(_too_old(have))
        folder = kept()
        if not os.path.exists(folder):  # nor where it may not be looked for
            child = _begin(wait)
            if not wait:
                say("arithmetic: numpy; numba compiles it for the next start, about a minute at the lowest priority")
                return PLAIN
            say("arithmetic: compiling, once on this machine; about a minute")
            try:
                child.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                raise NotCompiled(f"compiling took over {LIMIT_S:g} s") from None
            if not os.path.exists(folder):  # nor where it may not be looked for
                raise NotCompiled(f"compiling ended with {child.returncode}, and nothing was kept")
        return load(folder)
    except NotCompiled as error:
        say(f"arithmetic: numpy, for {error}")
    return PLAIN


def numba_version() -> tuple[int, ...]:
    """() if it is not installed."""
    try:
        return tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version("numba"))[:2])
    except importlib.metadata.PackageNotFoundError:
        return ()


def key() -> dict[str, Any]:
    """Everything that compiled code depends on; numba goes by its file's place and time, so these count too."""
    flags = re.search(r"^(flags|Features)\s*:.*$", read(ROOT / "proc/cpuinfo"), re.MULTILINE)
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in SOURCES))
    files = [(HERE / name).stat() for name in KERNELS]
    return {
        "cpu": [platform.machine(), cpu_name(), flags[0] if flags else ""],
        "python": [sys.version, sys.prefix],
        "versions": [importlib.metadata.version(name) for name in ("numba", "llvmlite", "numpy")],
        "sources": [str(HERE), digest.hexdigest(), *(file.st_mtime_ns for file in files)],
    }


def kept(folder: Path | None = None) -> Path:
    """The folder for what is compiled for this machine as it is now."""
    digest = hashlib.sha256(json.dumps(key()).encode()).hexdigest()
    return (folder or cache_folder()) / "kernels" / digest[:20]


def load(folder: Path) -> Arithmetic:
    """What was compiled into a folder, every byte as it was written. Raises NotCompiled."""
    try:
        said = read_json(folder / READY)
        if said.get("failed"):
            raise NotCompiled(f"compiling failed: {said['failed']}; `rm -r {quote(str(folder))}` tries again")
        if said["files"] != _hashes(folder) or not os.access(folder, os.W_OK):
            raise ValueError
    except (OSError, ValueError, KeyError, AttributeError):
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
        raise NotCompiled(f"{folder} is torn or read-only; the next start compiles anew") from None
    try:
        return take(folder)
    except Exception as error:  # of numba, of LLVM or of the CPU: numpy can do without all of them
        raise NotCompiled(f"loading failed: {_line(error)}") from None


def take(folder: Path) -> Arithmetic:
    """`fast.FAST`, compiled into or loaded from the folder. numba's other users keep their own cache."""
    import numba

    settings: Any = numba.config
    before, settings.CACHE_DIR = settings.CACHE_DIR, str(folder)
    try:
        fast: Arithmetic = importlib.import_module(".fast", __package__).FAST
        return fast
    finally:
        settings.CACHE_DIR = before


def _begin(wait: bool) -> subprocess.Popen[bytes]:
    """Start to compile in a child process, which outlives this one. Raises NotCompiled."""
    try:
        parent = cache_folder() / "kernels"
        parent.mkdir(parents=True, exist_ok=True)
        if not os.access(parent, os.W_OK):
            raise NotCompiled(f"{parent} cannot be written, to keep what is compiled")
        command = module_command(f"{__package__}.compiling", *(["wait"] if wait else []))
        nothing = subprocess.DEVNULL
        return subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
    except OSError as error:
        raise NotCompiled(f"{cache_folder()}: {refusal(error)}") from None


def compile_now(wait: bool = True) -> None:
    """Compile in this process, and keep it: whole, or a word on why not. One process at a time does; another waits for
    it, or leaves it to that one."""
    folder = kept()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.parent, wait) as alone:
        if folder.exists() or not alone:
            return
        for left in folder.parent.glob("*.part"):  # of one that was ended on the way; no other is at it
            shutil.rmtree(left, ignore_errors=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".part"))
        try:
            try:
                check(take(made))
                said: dict[str, Any] = {"files": _hashes(made)}
            except Exception as error:
                said = {"failed": _line(error)}
            (made / READY).write_text(json.dumps(said))
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        folders = [path for path in folder.parent.iterdir() if path.is_dir()]
        for old in sorted(folders, key=lambda path: path.stat().st_mtime)[:-MOST_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def check(fast: Arithmetic) -> None:
    """Fit one hand both ways. Raises NotCompiled if the results differ."""
    vertices = template().vertices_m * [1, -1, -1] + [0, 0, 0.5]
    slow, quick = (
        arithmetic.refit().solve(vertices, shape=AVERAGE, points_m=vertices[::20]).joints_m
        for arithmetic in (PLAIN, fast)
    )
    if not np.abs(slow - quick).max() < SAME_M:
        raise NotCompiled("what was compiled computes otherwise than numpy does")


def standing() -> tuple[str, str]:
    """In a few words: what the next start will compute with, and what would be faster; and what mends it if it should
    compile, and cannot."""
    have = numba_version()
    if not have:
        return f"numpy; {to_get('fast')} compiles it", ""
    if have < LEAST_NUMBA:
        return f"numpy, for {_too_old(have)}", "pip install --upgrade numba"
    folder = kept()
    try:
        failed = read_json(folder / READY).get("failed")
    except (OSError, ValueError, AttributeError):
        return "numpy; the next run has it compiled for the one after", ""
    if failed:
        return f"numpy, for compiling failed: {failed}", f"rm -r {quote(str(folder))}, and the next run compiles anew"
    return "compiled", ""


def _too_old(have: tuple[int, ...]) -> str:
    return f"numba {'.'.join(map(str, have))} is older than {'.'.join(map(str, LEAST_NUMBA))}"


@contextlib.contextmanager
def _alone(folder: Path, wait: bool) -> Iterator[bool]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _hashes(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != READY]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


if __name__ == "__main__":
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    compile_now(wait="wait" in sys.argv)
