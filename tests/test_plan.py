"""Plans are built in a child, kept under all that they depend on, and never believed when they are not whole."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from edge_hand.edge.engines.tensorrt import plan as plans
from edge_hand.edge.engines.tensorrt.build import Job
from edge_hand.edge.engines.tensorrt.plan import Plan, PlanKey, cache_folder, get_plan, prune, read, run_build, write
from edge_hand.edge.networks.card import MODELS, ModelError

KEY = PlanKey("10.3.0", "Orin", "8.7", "CUDA 12.6", "a" * 64, "fp16", "level=3")
BUILDER = Job("pretend_trt", "fp16", refit=True)

linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")

# A builder with TensorRT's names, checked against the real ones in test_tensorrt.py. What it does is in the model.
PRETEND = """
    import os, time
    __version__ = os.environ.get("PRETEND_VERSION", "10.3.0")
    class Severity:
        INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)
    class ILogger:
        Severity = Severity
        def __init__(self): pass
    class Level: name = "ERROR"
    class IProgressMonitor:
        def __init__(self): pass
    class NetworkDefinitionCreationFlag: STRONGLY_TYPED = 1
    class BuilderFlag:
        REFIT, FP16, INT8 = "REFIT", "FP16", "INT8"
    class ProfilingVerbosity: LAYER_NAMES_ONLY = 0
    class MemoryPoolType: WORKSPACE = 0
    class Cache:
        def __init__(self, data): self.data = data
        def serialize(self): return self.data + b"+"
    class Config:
        def __init__(self): self.flags = []
        def set_flag(self, flag): self.flags.append(flag)
        def set_memory_pool_limit(self, pool, size): pass
        cache = None
        def create_timing_cache(self, data): return None if data == b"unreadable" else Cache(data)
        def set_timing_cache(self, cache, ignore):
            if cache.data == b"another GPU's": return False
            self.cache = cache
            return True
        def get_timing_cache(self): return self.cache
    class Error:
        def desc(self): return "Non-zero zero point is not supported" + chr(10) + "more"
    class Network: model = b""
    class OnnxParser:
        num_errors = 1
        def __init__(self, network, logger): self.network = network
        def parse(self, model):
            self.network.model = bytes(model)
            return model != b"unparsable"
        def get_error(self, i): return Error()
    class Builder:
        def __init__(self, logger): pass
        def create_network(self, flags):
            network = Network()
            network.typed = bool(flags)
            return network
        def create_builder_config(self): return Config()
        def build_serialized_network(self, network, config):
            print("a library prints this")
            m = config.progress_monitor
            m.phase_start("Building", None, 2); m.phase_start("inner", "Building", 9)
            m.step_complete("inner", 0); m.step_complete("Building", 0); m.phase_finish("Building")
            if network.model == b"crash": os.abort()
            if network.model == b"hang": time.sleep(600)
            if network.model == b"raise": raise MemoryError("too big")
            if network.model == b"huge": return bytes(2000)
            if network.model == b"none" or (network.model == b"weak" and network.typed): return None
            return b"PLAN " + network.model + repr((network.typed, config.flags)).encode()
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "pretend_trt.py").write_text(textwrap.dedent(PRETEND))
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))  # for the daemons of these tests
    (tmp_path / "net.onnx").write_bytes(b"net")
    return tmp_path / "net.onnx"


def built(data: bytes, **more: Any) -> tuple[bytes, bytes]:
    lines: list[str] = []
    return run_build(BUILDER, data, b"old", more.pop("say", lines.append), more.pop("limit_s", 60))


def test_a_plan_is_built_once_and_then_kept(model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    first = get_plan(model, KEY, BUILDER, folder=tmp_path / "cache", say=lines.append)
    assert first.data == b"PLAN net(True, ['REFIT'])" and first.note.endswith(", built anew") and not first.kept
    assert lines == [
        "tensorrt: building a plan for net.onnx (none kept)",
        "tensorrt: Building, 0 of 2",
        "tensorrt: Building, 1 of 2",
    ]
    again = get_plan(model, KEY, Job("no_such_module"), folder=tmp_path / "cache")
    assert again.data == first.data and again.kept
    assert sorted(f.suffix for f in (tmp_path / "cache").iterdir()) == [".lock", ".plan", ".timings"]


def test_of_two_that_want_the_same_plan_one_builds_and_the_other_waits_for_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, waits, builds, said, got = threading.Event(), threading.Event(), list[Path](), list[str](), list[Plan]()

    def build(*_: Any) -> tuple[bytes, bytes]:
        builds.append(model)
        begun.set()
        waits.wait(60)
        return b"PLAN", b""

    def tell(line: str) -> None:
        said.append(line)
        waits.set()

    monkeypatch.setattr(plans, "run_build", build)
    first = threading.Thread(target=get_plan, args=(model, KEY, BUILDER), kwargs={"folder": tmp_path / "cache"})
    first.start()
    assert begun.wait(60) and plans.building()
    got.append(get_plan(model, KEY, BUILDER, folder=tmp_path / "cache", say=tell))
    first.join(60)
    assert len(builds) == 1 and said == ["tensorrt: another process builds a plan; waiting for it"]
    assert got[0].data == b"PLAN" and got[0].kept and not plans.building()


def test_a_daemon_that_waits_for_another_s_plan_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    script = """if True:
        import sys
        from pathlib import Path
        from edge_hand.edge.service.desk import Desk
        from edge_hand.edge.engines.tensorrt.plan import _alone

        say = lambda line: print(line, flush=True)
        try:
            with Desk(say, say).at_once(), _alone(Path(sys.argv[1]), say):
                pass
        except KeyboardInterrupt:
            say("ended")
    """
    with (tmp_path / "plans.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        try:
            assert waiting.stdout is not None and "waiting for it" in waiting.stdout.readline()
            waiting.terminate()
            assert waiting.communicate(timeout=60) == ("ended\n", None)
        finally:
            waiting.kill()


def test_who_waits_for_one_that_ends_without_a_plan_builds_it(model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    other = (tmp_path / plans.LOCK).open("w")
    fcntl.flock(other, fcntl.LOCK_EX)

    def tell(line: str) -> None:
        lines.append(line)
        other.close()  # as when it is killed

    plan = get_plan(model, KEY, BUILDER, folder=tmp_path, say=tell)
    assert plan.data.startswith(b"PLAN net") and not plan.kept
    assert lines[0] == "tensorrt: another process builds a plan; waiting for it"
    assert lines[1] == "tensorrt: building a plan for net.onnx (none kept)"


@pytest.mark.parametrize("name", PlanKey._fields)
def test_a_plan_for_anything_else_is_not_used(name: str, tmp_path: Path) -> None:
    other = KEY._replace(**{name: "other"})
    write(KEY.path(tmp_path), KEY, b"plan")
    assert other.path(tmp_path) != KEY.path(tmp_path)
    shutil.move(KEY.path(tmp_path), other.path(tmp_path))  # even under the other's name
    with pytest.raises(ValueError, match=f" is for {name} .*, here is other$"):
        read(other.path(tmp_path), other)
    same_machine = name in ("model", "precision", "flags")
    assert (other.timings(tmp_path) == KEY.timings(tmp_path)) == same_machine


def test_a_damaged_plan_is_built_again(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    good = get_plan(model, KEY, BUILDER, folder=folder).data
    path = KEY.path(folder)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 4
    for bad, why in (
        (b"", "is no plan"),
        (whole[:50], "is no plan"),
        (whole[:-1], "is damaged"),
        (whole + b"x", "is damaged"),
        (bytes(flipped), "is damaged"),
        (whole.replace(b'"format": 1', b'"format": 9'), "was kept in format 9"),
        (b"[]\n", "is no plan"),
        (b'{"key": [1], "format": 1, "sha256": ""}\n', "is no plan"),
        (b"[" * 8000, "is no plan"),
        (os.urandom(20000), "is no plan"),
    ):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=f"^{path.name} {why}$"):
            read(path, KEY)
    lines: list[str] = []
    plan = get_plan(model, KEY, BUILDER, folder=folder, say=lines.append)
    assert plan.data == good and not plan.kept and path.read_bytes() == whole
    assert lines[0] == f"tensorrt: building a plan for net.onnx ({path.name} is no plan)"


def test_timings_are_learnt_from_build_to_build(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    get_plan(model, KEY, BUILDER, folder=folder)
    get_plan(model, KEY._replace(model="b" * 64), BUILDER, folder=folder)
    assert read(KEY.timings(folder), KEY, whole=False) == b"++"


@pytest.mark.parametrize("timings", [b"unreadable", b"another GPU's"])
def test_timings_that_tensorrt_does_not_take_are_learnt_anew(timings: bytes, model: Path) -> None:
    assert run_build(BUILDER, b"net", timings, lambda line: None, 30)[1] == b"+"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"unparsable", "the ONNX cannot be parsed: Non-zero zero point is not supported more"),
        (b"none", "TensorRT gave no plan"),
        (b"raise", "MemoryError: too big"),
        (b"crash", "the builder died (signal 6)"),
    ],
)
def test_a_build_that_fails_is_one_line(data: bytes, why: str, model: Path) -> None:
    with pytest.raises(ModelError) as caught:
        built(data)
    assert str(caught.value).startswith(f"tensorrt: no plan: {why}") and "\n" not in str(caught.value)


def test_a_build_that_hangs_is_ended(model: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(ModelError, match=r"^tensorrt: no plan: it took over 2 s$"):
        built(b"hang", limit_s=2)
    assert time.monotonic() - begun < 100


def test_a_missing_tensorrt_is_one_line(model: Path) -> None:
    with pytest.raises(ModelError, match=r"^tensorrt: no plan: ModuleNotFoundError: No module named 'no_such'$"):
        run_build(Job("no_such"), b"net", b"", lambda line: None, 30)


def test_a_plan_that_is_too_large_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "LARGEST_PLAN_BYTES", 1000)
    with pytest.raises(ModelError, match=r"^tensorrt: no plan: it has 0 MB, allowed are 0$"):
        built(b"huge")


def test_old_versions_may_do_without_strong_types_and_new_ones_may_not(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert built(b"weak")[0] == b"PLAN weak(False, ['FP16', 'REFIT'])"
    monkeypatch.setenv("PRETEND_VERSION", "10.16.1")
    with pytest.raises(ModelError, match="TensorRT gave no plan"):
        built(b"weak")


@linux
def test_a_killed_builder_is_one_line_and_the_next_build_works(model: Path) -> None:
    def kill(line: str) -> None:
        if line.endswith("1 of 2"):
            for builder in builders(model):
                os.kill(builder, signal.SIGKILL)

    with pytest.raises(ModelError, match=r"^tensorrt: no plan: the builder died \(signal 9\)"):
        built(b"hang", say=kill)
    assert built(b"net")[0].startswith(b"PLAN net")


@linux
def test_the_builder_ends_with_the_daemon(model: Path) -> None:
    code = (
        "import threading; from edge_hand.edge.engines.tensorrt.plan import *\n"
        "begun = threading.Event(); say = lambda line: line.endswith('1 of 2') and begun.set()\n"
        "build = lambda: run_build(Job('pretend_trt'), b'hang', b'', say, 60)\n"
        "threading.Thread(target=build, daemon=True).start(); begun.wait(50)"
    )
    daemon = subprocess.Popen([sys.executable, "-c", code])
    assert daemon.wait(60) == 0
    until = time.monotonic() + 60
    while builders(model) and time.monotonic() < until:
        time.sleep(0.1)
    assert builders(model) == []


def builders(model: Path) -> list[int]:
    """The child processes that build in this test."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            builds = b"tensorrt.build" in (process / "cmdline").read_bytes()
            if builds and bytes(model.parent) in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_cache_that_cannot_be_written_costs_a_build_only(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    assert ", not kept (" in get_plan(model, KEY, BUILDER, folder=tmp_path / "cache").note


def test_a_cache_in_the_way_costs_a_build_only(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    plan = get_plan(model, KEY, BUILDER, folder=tmp_path / "cache")
    assert plan.data.startswith(b"PLAN net")
    assert plan.note.endswith(f", built anew, not kept ({tmp_path}/cache: File exists)")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_a_build_only(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(path: Path, key: PlanKey, data: bytes) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(data)

    monkeypatch.setattr(plans, "write", no_room)
    plan = get_plan(model, KEY, BUILDER, folder=model.parent / "cache")
    assert plan.data.startswith(b"PLAN net") and plan.note.endswith("/cache: No space left on device)")


def test_a_torn_write_leaves_the_plan_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = KEY.path(tmp_path)
    write(path, KEY, b"good")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("torn")))
    with pytest.raises(OSError, match="torn"):
        write(path, KEY, b"bad")
    assert read(path, KEY) == b"good" and len(list(tmp_path.iterdir())) == 1


def test_the_cache_stays_small_and_keeps_the_newest(tmp_path: Path) -> None:
    for i in range(5):
        path = tmp_path / f"{i}.plan"
        path.write_bytes(bytes(100))
        os.utime(path, (i, i))
    (tmp_path / "dead.part").write_bytes(b"x")
    os.utime(tmp_path / "dead.part", (0, 0))
    (tmp_path / "notes.txt").write_text("not ours")
    newest = tmp_path / "9.plan"
    newest.write_bytes(bytes(100))
    prune(tmp_path, newest, most_bytes=250)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["4.plan", "9.plan", "notes.txt"]


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_HAND_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/edge-hand")
    assert cache_folder() == Path("/var/cache/edge-hand")
    monkeypatch.delenv("CACHE_DIRECTORY")
    assert cache_folder() == Path("/x/edge-hand")


def test_nvidia_s_own_builder_makes_a_plan_of_the_shipped_network(tmp_path: Path) -> None:
    try:
        importlib.import_module("tensorrt_rtx")
    except ImportError:
        pytest.skip("tensorrt_rtx is not installed (pip install tensorrt_rtx_cu12)")
    lines: list[str] = []
    model = MODELS / "dgn-nano.onnx"
    plan = get_plan(model, KEY, Job("tensorrt_rtx"), folder=tmp_path, say=lines.append)
    assert len(plan.data) > 1_000_000 and any(" of 6" in line for line in lines)
    assert json.loads(KEY.path(tmp_path).read_bytes().split(b"\n")[0])["bytes"] == len(plan.data)
    with pytest.raises(ModelError, match=r"^tensorrt: no plan: the ONNX cannot be parsed: "):
        run_build(Job("tensorrt_rtx"), (MODELS / "dgn-nano-int8.onnx").read_bytes(), b"", lines.append, 60)
