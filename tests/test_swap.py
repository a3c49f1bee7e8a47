"""Engines change between frames, proven before and taken back after: nobody waits and no frame is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edge_hand.edge.engines import Choice, choose, open_engine
from edge_hand.edge.networks import swap
from edge_hand.edge.networks.card import DEFAULT_MODEL, MODELS, ModelError, load_card, sha256
from edge_hand.edge.networks.probe import compare, crops
from edge_hand.edge.networks.swap import PROBATION, SwapEngine
from onnx import numpy_helper

FLOAT = MODELS / "dgn-nano.onnx"


def with_weights(out: Path, scale: float) -> Path:
    """The shipped float network, another training of it: every bias scaled."""
    proto = onnx.load(FLOAT)
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("onnx::Conv") and len(tensor.dims) == 1:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(scale), tensor.name))
    onnx.save(proto, out)
    shutil.copy(FLOAT.with_suffix(".json"), out.with_suffix(".json"))
    text = out.with_suffix(".json").read_text().replace(load_card(FLOAT).sha256, sha256(out))
    out.with_suffix(".json").write_text(text)
    return out


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_weights(tmp_path_factory.mktemp("adapted") / "person.onnx", 1.02)


def opened(model: Path) -> Any:
    return lambda: open_engine("onnxruntime", model)


class Broken:
    """A real engine that fails from a certain run on, counted after the probe crops."""

    def __init__(self, how: str) -> None:
        self.inner, self.how, self.runs, self.closed = open_engine("onnxruntime", FLOAT), how, 0, False
        self.card, self.name = self.inner.card, "broken engine"

    def run(self, image: Any) -> list[Any]:
        self.runs += 1
        outputs = self.inner.run(image)
        if self.runs > len(crops(64)) + 2:
            if self.how == "raises":
                raise ModelError("tensorrt: the GPU did not take the frame")
            outputs[0] = outputs[0] * np.nan
        return outputs

    def close(self) -> None:
        self.closed = True


def test_adapted_weights_take_over_between_frames(adapted: Path) -> None:
    lines: list[str] = []
    image = crops(64)[0]
    old, new = opened(FLOAT)(), opened(adapted)()
    before, after = old.run(image)[0], new.run(image)[0]
    assert np.abs(before - after).max() > 1e-3
    engine, go_on = SwapEngine(opened(FLOAT)(), lines.append), threading.Event()
    engine.offer(lambda: go_on.wait(60) and opened(adapted)(), opened(adapted), 0.01)
    seen = [engine.run(image)[0]]
    go_on.set()
    while engine.busy:
        seen.append(engine.run(image)[0])
    seen += [engine.run(image)[0] for _ in range(3)]
    kinds = ["old" if np.array_equal(s, before) else "new" if np.array_equal(s, after) else "?" for s in seen]
    assert set(kinds) == {"old", "new"} and kinds == sorted(kinds, reverse=True)
    assert engine.card == load_card(adapted) and len(lines) == 1 and " now, " in lines[0]


def test_frames_go_on_while_a_candidate_is_made() -> None:
    release, image = threading.Event(), crops(64)[0]

    def slow() -> Any:
        release.wait(60)
        return open_engine("onnxruntime", FLOAT)

    engine = SwapEngine(opened(DEFAULT_MODEL)())
    engine.offer(slow, opened(FLOAT), 0.01)
    for _ in range(20):
        engine.run(image)
    assert engine.busy and engine.card == load_card(DEFAULT_MODEL)
    with pytest.raises(ModelError, match=r"^engine: another one is already being made ready$"):
        engine.offer(slow, slow, 1)
    release.set()
    assert engine.wait(60)
    engine.run(image)
    assert engine.card == load_card(FLOAT)


ENDS = """
import threading, time
from edge_hand.edge.engines import onnxruntime, open_engine, tensorrt
from edge_hand.edge.networks.card import DEFAULT_MODEL, load_card
from edge_hand.edge.networks.probe import crops
from edge_hand.edge.networks.swap import SwapEngine
began = threading.Event()
def proven(model, card, threads, **_):
    engine, image = onnxruntime.OnnxRuntimeEngine(model, card, 1), crops(64, 1)[0]
    began.set()
    end_s = time.monotonic() + 0.4
    while time.monotonic() < end_s:
        engine.run(image)
    print("proven")
    return engine
tensorrt.unavailable, tensorrt.open_engine = str, proven
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "begin",
    [
        "engine = open_engine(at_once=True)",
        "engine = SwapEngine(open_engine('onnxruntime'))\n"
        "asked = lambda: engine.propose(lambda: open_engine('tensorrt'), lambda engine: '', load_card(DEFAULT_MODEL))\n"
        "threading.Thread(target=asked, daemon=True).start()",
    ],
)
def test_a_process_that_ends_waits_for_a_candidate_that_is_being_proven(begin: str) -> None:
    code = f"{ENDS}\n{begin}\nbegan.wait(50)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "proven\n", "")


LETS_GO = """
import threading, time
from edge_hand.edge.networks.card import DEFAULT_MODEL, ModelError, load_card
from edge_hand.edge.networks.swap import SwapEngine
class Slow:
    name, card = "slow", load_card(DEFAULT_MODEL)
    def __del__(self):
        where = threading.current_thread() is threading.main_thread()
        time.sleep(0.2)
        print("freed", "at the end" if where else "in the thread that held it last")
let_go = threading.Event()
def candidate():
    let_go.wait(50)
    time.sleep(0.1)
    raise ModelError("nothing better")
engine = SwapEngine(Slow())
engine.offer(candidate, candidate, 1)
del engine
let_go.set()
"""


def test_a_process_that_ends_waits_for_the_thread_that_is_the_last_to_hold_an_engine() -> None:
    """As a start that fails lets it go."""
    done = subprocess.run([sys.executable, "-c", LETS_GO], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "freed in the thread that held it last\n", "")


def test_a_process_that_ends_does_not_wait_for_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    leave: list[Callable[[], None]] = []
    monkeypatch.setattr("atexit.register", leave.append)
    monkeypatch.setattr(swap, "building", lambda: True)
    hurried: list[bool] = []
    monkeypatch.setattr(swap, "LEAVE_S", 10**6)
    with swap.waited_for(lambda: hurried.append(True)):
        leaving = threading.Thread(target=leave[0], daemon=True)
        leaving.start()
        leaving.join(60)
        assert hurried == [True] and not leaving.is_alive()


def test_a_candidate_far_from_its_reference_never_serves(adapted: Path) -> None:
    engine = SwapEngine(opened(FLOAT)())
    engine.offer(opened(DEFAULT_MODEL), opened(adapted), 0.5)
    assert engine.wait(60)
    engine.run(crops(64)[0])
    assert engine.card == load_card(FLOAT)
    assert (
        engine.note.startswith(f"engine: dgn-nano on {engine.name} stays; dgn-nano-int8 on onnxruntime ")
        and "\n" not in engine.note
    )
    assert engine.note.endswith(", allowed are 0.5") and " mm from dgn-nano on onnxruntime " in engine.note


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        (lambda: 1 / 0, "the new one: division by zero"),
        (lambda: open_engine("onnxruntime", Path("none.onnx")), "the new one: model none.onnx: no such file"),
        (lambda: open_engine("tensorrt"), "the new one: tensorrt: "),
    ],
)
def test_a_candidate_that_cannot_be_opened_is_one_line(candidate: Any, why: str) -> None:
    engine = SwapEngine(opened(FLOAT)())
    engine.offer(candidate, opened(FLOAT), 0.01)
    assert engine.wait(60) and not engine.busy
    assert f"stays; {why}" in engine.note and "\n" not in engine.note
    engine.offer(opened(FLOAT), opened(FLOAT), 0.01)  # and another may be offered
    assert engine.wait(60) and engine.busy
    engine.run(crops(64)[0])
    assert " now, " in engine.note


@pytest.mark.parametrize("how", ["raises", "not finite"])
def test_an_engine_that_fails_hands_the_same_frame_back(how: str) -> None:
    image, broken = crops(64)[0], Broken(how)
    expected = opened(DEFAULT_MODEL)().run(image)[0]
    engine = SwapEngine(opened(DEFAULT_MODEL)())
    engine.offer(lambda: broken, opened(FLOAT), 0.01)
    assert engine.wait(60)
    outputs = [engine.run(image)[0] for _ in range(6)]
    assert all(np.isfinite(o).all() for o in outputs)
    assert not np.array_equal(outputs[1], expected) and np.array_equal(outputs[2], expected)
    assert engine.card == load_card(DEFAULT_MODEL) and broken.closed
    assert engine.note.startswith("engine: back to dgn-nano-int8 on onnxruntime ")
    assert engine.note.endswith("(dgn-nano on broken engine)")


def test_an_old_engine_that_fails_as_well_is_opened_anew() -> None:
    image, old, new = crops(64)[0], Broken("raises"), Broken("raises")
    old.runs -= len(crops(64))  # the probe crops are run on the candidate alone
    engine = SwapEngine(old, openers=[opened(DEFAULT_MODEL)])
    engine.offer(lambda: new, opened(FLOAT), 0.01)
    assert engine.wait(60)
    outputs = []
    for _ in range(8):
        old.runs = max(old.runs, 10**6 if engine.serving is new else 0)  # the GPU is gone for both
        outputs.append(engine.run(image)[0])
    assert all(np.isfinite(o).all() for o in outputs)
    assert engine.card == load_card(DEFAULT_MODEL) and "broken" not in engine.name


class Stuck(Broken):
    """As a GPU whose context is lost: closing fails as running did."""

    def close(self) -> None:
        super().close()
        raise RuntimeError("cuStreamSynchronize failed:\nan illegal memory access was encountered")


def test_an_engine_that_can_not_even_be_closed_is_left_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """On probation, afterwards, and when it was opened anew."""
    image, expected = crops(64)[0], opened(DEFAULT_MODEL)().run(crops(64)[0])[0]
    stuck, fresh = Stuck("raises"), Stuck("raises")
    fresh.runs = 10**6
    openers = [lambda: fresh, opened(DEFAULT_MODEL)]
    on_probation = SwapEngine(opened(DEFAULT_MODEL)(), openers=openers)
    on_probation.offer(lambda: stuck, opened(FLOAT), 0.01)
    assert on_probation.wait(60)
    proven = SwapEngine(Stuck("raises"), openers=openers)
    for engine in (on_probation, proven):
        outputs = [engine.run(image)[0] for _ in range(len(crops(64)) + 4)]
        np.testing.assert_array_equal(outputs[-1], expected)
        assert engine.card == load_card(DEFAULT_MODEL)
    assert stuck.closed and fresh.closed and len(caplog.messages) == 3
    assert caplog.messages[0] == (
        "engine: dgn-nano on broken engine cannot be closed: "
        "cuStreamSynchronize failed: an illegal memory access was encountered"
    )


def test_a_change_can_be_taken_back_on_demand(adapted: Path) -> None:
    image = crops(64)[0]
    engine = SwapEngine(opened(FLOAT)())
    assert not engine.rollback()
    expected = engine.run(image)[0]
    engine.offer(opened(adapted), opened(adapted), 0.01)
    assert engine.wait(60)
    assert not np.array_equal(engine.run(image)[0], expected)
    assert engine.rollback("the person left")
    np.testing.assert_array_equal(engine.run(image)[0], expected)
    assert engine.note.startswith("engine: back to dgn-nano on onnxruntime ") and "the person left" in engine.note


def test_the_old_engine_goes_when_the_new_one_has_proven_itself() -> None:
    image, old = crops(64)[0], Broken("never")
    old.runs = -(10**9)
    engine = SwapEngine(old)
    engine.offer(opened(DEFAULT_MODEL), opened(DEFAULT_MODEL), 0.01)
    assert engine.wait(60)
    for _ in range(PROBATION - 1):
        engine.run(image)
    assert not old.closed
    engine.run(image)
    assert old.closed and not engine.rollback()


def test_looking_after_a_new_engine_runs_one_network_a_frame() -> None:
    image, old, new = crops(64)[0], Broken("never"), Broken("never")
    new.runs = old.runs = -(10**9)
    engine = SwapEngine(old)
    engine.offer(lambda: new, opened(FLOAT), 0.01)
    assert engine.wait(60)
    before = old.runs, new.runs
    for _ in range(60):
        engine.run(image)
    assert (old.runs - before[0], new.runs - before[1]) == (0, 60)


def test_the_probe_crops_show_hands_and_are_always_the_same() -> None:
    engine = opened(FLOAT)()
    assert all(np.array_equal(a, b) for a, b in zip(crops(64), crops(64), strict=True))
    presence = np.array([engine.run(image)[4][0] for image in crops(64)])
    assert (presence > 0).sum() >= len(presence) - 1 and compare(engine, engine, crops(64)) == (0, 0)


def test_auto_says_in_one_line_what_it_passed_over() -> None:
    choice = choose(DEFAULT_MODEL)
    line = choice.explain("onnxruntime 1.31.1, 1 thread")
    if choice.kind == "onnxruntime":
        assert line.startswith("tensorrt: ") and line.endswith("; onnxruntime 1.31.1, 1 thread") and "\n" not in line
        said: list[str] = []
        engine = open_engine("auto", say=said.append)
        assert said == [f"engine: {choice.explain(engine.name)}"] and engine.name.startswith("onnxruntime ")
    assert Choice("tensorrt", FLOAT, ()).explain("onnxruntime 1.31.1, 1 thread") == (
        "tensorrt: dgn-nano.onnx is being built or loaded; onnxruntime 1.31.1, 1 thread until then"
    )


@pytest.mark.parametrize("at_once", [True, False])
def test_auto_serves_on_the_cpu_until_the_better_engine_is_ready_or_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at_once: bool
) -> None:
    from edge_hand.edge.engines import tensorrt

    for model in (FLOAT, DEFAULT_MODEL):
        for file in (model, model.with_suffix(".json")):
            shutil.copy(file, tmp_path / file.name)
    release = threading.Event()

    def fake_open(model: Path, card: Any, threads: int, *, refit: bool, say: Any) -> Any:
        say("tensorrt: Building, 1 of 2")
        release.wait(60 if at_once else 0.1)
        return open_engine("onnxruntime", model)

    monkeypatch.setattr(tensorrt, "unavailable", lambda: "")
    monkeypatch.setattr(tensorrt, "open_engine", fake_open)
    said = list[str]()
    engine: Any = open_engine("auto", tmp_path / DEFAULT_MODEL.name, at_once=at_once, say=said.append)
    assert said[0].startswith("engine: tensorrt: dgn-nano.onnx is being built or loaded; onnxruntime ")
    if not at_once:
        assert said[1] == "tensorrt: Building, 1 of 2" and said[2].startswith("engine: dgn-nano on ")
        assert not isinstance(engine, SwapEngine) and engine.card.precision == "fp32"
        return
    engine.run(crops(64)[0])
    assert engine.card.precision == "int8"
    release.set()
    assert engine.wait(60)
    engine.run(crops(64)[0])
    assert engine.card.precision == "fp32"
