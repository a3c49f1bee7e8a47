"""Which arithmetic a daemon begins with: what an earlier one had compiled, or numpy, and never a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from edge_hand.edge.arithmetic import PLAIN, Arithmetic
from edge_hand.edge.cameras import CameraError
from edge_hand.edge.cli.main import cli
from edge_hand.edge.compiled import compiling
from edge_hand.edge.compiled.compiling import NotCompiled, open_arithmetic
from edge_hand.edge.machine.doctor import arithmetic as arithmetic_finding
from edge_hand.edge.refit import Refit
from edge_hand.hand.kinematics import Shape

TOGETHER = PLAIN._replace(name="compiled")
DEMO = Path(compiling.__file__).parents[1] / "demo" / "hand.mcap"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, in which "compiling" writes one file."""

    def take(folder: Path) -> Arithmetic:
        if not (folder / "code").exists():
            (folder / "code").write_text("machine code")
        return TOGETHER

    monkeypatch.setenv("EDGE_HAND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "numba_version", lambda: (0, 60))
    monkeypatch.setattr(compiling, "key", lambda: {"cpu": "this one"})
    monkeypatch.setattr(compiling, "take", take)
    monkeypatch.setattr(compiling, "_begin", begun(compiling.compile_now))
    return tmp_path / "cache" / "kernels"


def begun(work: Callable[[], None]) -> Callable[[bool], Any]:
    """In place of a child process: the work done at once, in this one."""

    def begin(wait: bool) -> Any:
        work()
        return subprocess.Popen([sys.executable, "-c", ""])

    return begin


def opened(wait: bool = False) -> tuple[Arithmetic, list[str]]:
    said: list[str] = []
    return open_arithmetic(said.append, wait), said


def test_without_numba_it_is_numpy_and_nothing_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "numba_version", lambda: ())
    assert opened() == (PLAIN, []) and not cache.exists()
    assert compiling.standing() == ("numpy; pip install '.[fast]' in edge-hand's folder compiles it", "")


def test_an_old_numba_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "numba_version", lambda: (0, 55))
    assert opened() == (PLAIN, ["arithmetic: numpy, for numba 0.55 is older than 0.59"])
    assert compiling.standing() == ("numpy, for numba 0.55 is older than 0.59", "pip install --upgrade numba")


@pytest.mark.parametrize("text", ["null", "5", pytest.param("[" * 100_000, id="deep")])
def test_what_says_that_it_is_compiled_may_be_torn(cache: Path, text: str) -> None:
    folder = compiling.kept()
    folder.mkdir(parents=True)
    (folder / compiling.READY).write_text(text)
    assert compiling.standing() == ("numpy; the next run has it compiled for the one after", "")
    with pytest.raises(compiling.NotCompiled, match="is torn or read-only"):
        compiling.load(folder)


def test_the_first_run_stays_with_numpy_and_the_second_takes_what_it_had_compiled(cache: Path) -> None:
    assert compiling.standing() == ("numpy; the next run has it compiled for the one after", "")
    arithmetic, said = opened()
    assert arithmetic is PLAIN and len(said) == 1 and "numba compiles it for the next start" in said[0]
    assert compiling.standing() == ("compiled", "")
    assert opened() == (TOGETHER, [])


def test_a_bench_waits_for_the_compiling(cache: Path) -> None:
    arithmetic, said = opened(wait=True)
    assert arithmetic is TOGETHER and said == ["arithmetic: compiling, once on this machine; about a minute"]


def test_who_does_not_wait_leaves_it_to_who_compiles_already(cache: Path) -> None:
    cache.mkdir(parents=True)
    with compiling._alone(cache, wait=True) as alone:
        assert alone
        compiling.compile_now(wait=False)
    assert not compiling.kept().exists()
    compiling.compile_now(wait=False)
    assert compiling.kept().exists()


def test_what_one_that_was_killed_left_is_removed(cache: Path) -> None:
    (cache / "tmp1.part" / "code").mkdir(parents=True)
    opened()
    assert not list(cache.glob("*.part")) and compiling.kept().exists()


def test_a_start_that_finds_no_camera_begins_no_compiling(cache: Path) -> None:
    """systemd ends whatever a failed start has begun, and starts anew 3 s later."""
    flags = ["--camera", "faulty", "--source", "synthetic:3?unplug@0+9", "--bind", "tcp://127.0.0.1:*", "--no-tune"]
    done = CliRunner().invoke(cli, ["run", *flags, "--fast", "--engine", "onnxruntime"])
    assert isinstance(done.exception, CameraError) and not cache.exists()


def test_another_cpu_or_source_wants_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened()
    monkeypatch.setattr(compiling, "key", lambda: {"cpu": "another"})
    assert opened()[0] is PLAIN
    assert opened()[0] is TOGETHER and len([path for path in cache.iterdir() if path.is_dir()]) == 2


def test_only_the_last_few_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(compiling.MOST_KEPT + 2):
        monkeypatch.setattr(compiling, "key", lambda i=i: {"cpu": i})
        opened()
        os.utime(compiling.kept(), (i, i))
    assert len([path for path in cache.iterdir() if path.is_dir()]) == compiling.MOST_KEPT


@pytest.mark.parametrize("tear", ["byte", "missing", "more", "ready", "no ready", "list"])
def test_what_is_torn_is_thrown_away_and_compiled_anew(cache: Path, tear: str) -> None:
    opened()
    folder = compiling.kept()
    if tear in ("byte", "more"):
        (folder / {"byte": "code", "more": "extra"}[tear]).write_text("machine cod\0")
    elif tear == "missing":
        (folder / "code").unlink()
    elif tear == "no ready":
        (folder / compiling.READY).unlink()
    else:
        (folder / compiling.READY).write_text({"ready": '{"files": {', "list": "[]"}[tear])
    arithmetic, said = opened()
    assert arithmetic is PLAIN and said == [
        f"arithmetic: numpy, for {folder} is torn or read-only; the next start compiles anew"
    ]
    assert opened()[0] is PLAIN and opened() == (TOGETHER, [])


def test_a_failure_to_compile_is_remembered_and_not_tried_at_each_start(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def take(folder: Path) -> Arithmetic:
        tries.append(folder)
        raise RuntimeError("LLVM does not know this CPU\nand more")

    monkeypatch.setattr(compiling, "take", take)
    opened()
    arithmetic, said = opened()
    assert arithmetic is PLAIN and len(said) == 1 and len(tries) == 1
    assert "for compiling failed: LLVM does not know this CPU; `rm -r " in said[0]
    (found,) = arithmetic_finding()
    assert (found.level, found.said) == ("warn", "numpy, for compiling failed: LLVM does not know this CPU")
    assert found.mend == f"rm -r {compiling.kept()}, and the next run compiles anew"


def test_what_computes_otherwise_than_numpy_is_never_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(Refit):
        def solve(self, vertices_m: Any, *, shape: Shape | None = None, **given: Any) -> Any:
            fit = super().solve(vertices_m, shape=shape, **given)
            return fit._replace(joints_m=fit.joints_m + 2e-4)

    monkeypatch.setattr(compiling, "take", lambda folder: TOGETHER._replace(refit=Off))
    opened()
    arithmetic, said = opened()
    assert arithmetic is PLAIN and "what was compiled computes otherwise than numpy does" in said[0]


def test_a_failure_to_load_leaves_numpy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened()
    monkeypatch.setattr(compiling, "take", lambda folder: 1 / 0)
    assert opened() == (PLAIN, ["arithmetic: numpy, for loading failed: division by zero"])


def test_a_child_that_keeps_nothing_leaves_numpy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_begin", begun(lambda: None))
    assert opened(wait=True)[1][1] == "arithmetic: numpy, for compiling ended with 0, and nothing was kept"


def test_where_nothing_can_be_kept_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "numba_version", lambda: (0, 60))
    monkeypatch.setattr(compiling, "key", lambda: {})
    monkeypatch.setenv("EDGE_HAND_CACHE", "/dev/null/cache")
    assert opened() == (PLAIN, ["arithmetic: numpy, for /dev/null/cache: not a directory"])


def test_the_key_knows_sources_versions_and_cpu() -> None:
    pytest.importorskip("numba")
    now = compiling.key()
    assert now["versions"][2] == np.__version__ and now["cpu"][1] and str(compiling.HERE) in now["sources"]
    assert json.dumps(now) == json.dumps(compiling.key())


# --- the real thing

KERNELS = 8  # those that are called from outside

FOLLOW = """
import sys
from edge_hand.edge.cameras import EndOfStream, open_camera
from edge_hand.edge.compiled.compiling import open_arithmetic
from edge_hand.edge.engines import open_engine
from edge_hand.edge.tracker import Tracker
arithmetic = open_arithmetic(lambda line: print(line, file=sys.stderr))
tracker = Tracker(open_engine("onnxruntime"), arithmetic=arithmetic)
hits = misses = 0
if arithmetic.name == "compiled":
    from edge_hand.edge.compiled import depth, hand, look, smooth, solve
    kernels = [depth.crop, depth.visible, depth.fit_mm, hand.pose, look.read]
    kernels += [look.confidence, smooth.step, solve.solve]
    hits = sum(sum(kernel.stats.cache_hits.values()) for kernel in kernels)
    misses = sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels)
print(arithmetic.name, hits, misses)
with open_camera("replay", sys.argv[1], deterministic=True) as camera:
    for _ in range(60):
        for hand in tracker.process(camera.read(1.0)):
            print(hand.pose.joints_m.tobytes().hex())
"""


def follow() -> tuple[list[str], str]:
    done = subprocess.run([sys.executable, "-c", FOLLOW, str(DEMO)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.mark.slow
def test_a_fresh_machine_compiles_once_and_then_replays_alike_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    monkeypatch.setenv("EDGE_HAND_CACHE", str(tmp_path))
    (slow, *slow_joints), said = follow()
    assert slow == "numpy 0 0" and "numba compiles it for the next start" in said
    until = time.monotonic() + 300
    while not (compiling.kept() / compiling.READY).exists():
        assert time.monotonic() < until
        time.sleep(0.2)
    (quick, *joints), said = follow()
    assert quick == f"compiled {KERNELS} 0" and said == ""
    assert follow()[0][1:] == joints and len(joints) == len(slow_joints) > 40
    slow_m, quick_m = (
        np.array([np.frombuffer(bytes.fromhex(line)).reshape(21, 3) for line in lines])
        for lines in (slow_joints, joints)
    )
    # From the second crop on, which is cut where the first hand was, a pixel may round the other way; that turns into a
    # millimetre or so in time, as it does in numpy if vertices move by 10 nm.
    off_m = np.abs(slow_m - quick_m)
    assert off_m[0].max() < 1e-6 and off_m.max() < 5e-3 and np.median(off_m) < 5e-4


def test_a_torn_file_of_numba_s_own_is_found_before_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "kernels.nbc").write_bytes(b"x")
    (tmp_path / compiling.READY).write_text(json.dumps({"files": {"kernels.nbc": "0" * 64}}))
    with pytest.raises(NotCompiled, match="torn"):
        compiling.load(tmp_path)
    assert not tmp_path.exists()
