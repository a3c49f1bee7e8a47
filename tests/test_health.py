"""A network that sees worse than the one before it is taken back while the loop runs, and one as good stays."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from edge_hand.edge.cameras import open_camera
from edge_hand.edge.engines import open_engine
from edge_hand.edge.finder import open_finder
from edge_hand.edge.loop import Loop, topology
from edge_hand.edge.networks import health
from edge_hand.edge.networks.card import MODELS, ModelCard, load_card, sha256
from edge_hand.edge.networks.health import Health, baseline_of, fallen, watch_health
from edge_hand.edge.networks.reload import Reloader
from edge_hand.edge.networks.store import SHIPPED, add, in_use, is_proven, prove, use
from edge_hand.edge.networks.swap import SwapEngine
from edge_hand.edge.publish import Publisher
from edge_hand.edge.recordings.recording import Recording, RecordingWriter
from edge_hand.edge.tracker import Tracker
from onnx import numpy_helper

FLOAT = MODELS / "dgn-nano.onnx"
DEMO = MODELS.parent / "demo" / "hand.mcap"


def worsened(out: Path, share: float) -> Path:
    """The shipped network, its weights off by noise of this share of their spread."""
    proto, rng = onnx.load(FLOAT), np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim > 1 and weights.dtype in (np.float16, np.float32):
            noise = rng.normal(0, share * weights.astype(np.float64).std(), weights.shape)
            tensor.CopyFrom(numpy_helper.from_array((weights + noise).astype(weights.dtype), tensor.name))
    onnx.save(proto, out)
    replace(load_card(FLOAT), name=out.stem, sha256=sha256(out)).write(out)
    return out


class Blind:
    """The shipped network, which sees no hand any more."""

    def __init__(self) -> None:
        self.inner = open_engine("onnxruntime", FLOAT)
        self.card, self.name = replace(self.inner.card, name="blind", sha256="b" * 64), "blind engine"

    def run(self, image: Any) -> list[Any]:
        *others, presence = self.inner.run(image)
        return [*others, presence - 30]


class Broken:
    """A network that fails at its first frame."""

    def __init__(self, model: Path) -> None:
        self.card, self.name = load_card(model), "broken engine"

    def run(self, image: Any) -> list[Any]:
        raise RuntimeError("a fault")


class Daemon:
    """What `edge-hand run` puts together, on a second of the demo recording, over and over, as fast as it goes."""

    def __init__(self, tmp_path: Path, store: Path, model: Path = FLOAT, fps: float = 0.0) -> None:
        second = tmp_path / "second.mcap"
        if not second.exists():
            with Recording(DEMO) as recording, RecordingWriter(second) as writer:
                for frame in islice(recording, 30):
                    writer.write(frame)
        self.said: list[str] = []
        self.engine = SwapEngine(open_engine("onnxruntime", model), self.said.append)
        self.tracker = Tracker(self.engine)
        settings = {"model": model, "engine": "onnxruntime", "threads": 1}
        self.reloader = Reloader(settings, lambda: settings, self.engine, self.said.append)
        self.camera = open_camera("replay", str(second), fps=fps or None, loop=True, deterministic=not fps)
        self.publisher = Publisher(f"ipc://{tmp_path}/s", topology=topology()).__enter__()
        self.health = watch_health(self.tracker, self.engine, self.reloader, self.said.append, store)
        self.loop = Loop(self.camera, self.tracker, self.publisher, [self.health])

    def run(self, frames: int, until: str = "\0") -> None:
        most = self.loop.totals.frames + frames

        def done() -> bool:
            self.reloader.apply(self.tracker)
            return self.loop.totals.frames >= most or any(until in line for line in self.said)

        self.loop.run(done)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.camera.__exit__(None, None, None)
        self.publisher.__exit__(None, None, None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BLOCK", 5), ("WINDOW", 6), ("WATCHED", 8)):
        monkeypatch.setattr(health, name, value)


def wait_for(what: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert what()


@pytest.mark.usefixtures("quick")
def test_a_network_made_worse_on_purpose_is_taken_back_with_the_stores_pointer(tmp_path: Path) -> None:
    store = tmp_path / "models"
    bad = add(store, [worsened(tmp_path / "worse.onnx", 0.3)], "nowhere", {})
    with Daemon(tmp_path, store) as daemon:
        daemon.run(35)
        use(store, bad.number)
        daemon.engine.propose(lambda: open_engine("onnxruntime", bad.model), lambda engine: "", load_card(bad.model))
        daemon.run(1)
        assert daemon.engine.card == load_card(bad.model) and daemon.health.watching
        daemon.run(4000, until="back to")
        assert daemon.engine.card == load_card(FLOAT) and not daemon.health.watching
        wait_for(lambda: in_use(store) == SHIPPED)
        wait_for(lambda: len(daemon.said) == 3)
        assert re.match("engine: back to dgn-nano on .*its health fell: .*, before ", daemon.said[1])
        assert daemon.said[2].startswith("store: version 1 is no longer in use, dgn-nano-int8 is: its health fell")
        daemon.run(35)
        assert len(daemon.said) == 3, "what was gone back to is not judged again"


def test_a_network_that_fails_is_left_with_the_stores_pointer_and_one_whose_engine_fails_is_not(tmp_path: Path) -> None:
    store = tmp_path / "models"
    version = add(store, [worsened(tmp_path / "good.onnx", 0.005)], "somewhere", {})
    with Daemon(tmp_path, store) as daemon:
        daemon.engine.propose(lambda: Broken(version.model), lambda engine: "", load_card(version.model))
        use(store, version.number)
        daemon.run(2)
        assert daemon.engine.card == load_card(FLOAT)
        wait_for(lambda: in_use(store) == SHIPPED)
        wait_for(lambda: daemon.said[-1].startswith("store: version 1 is no longer in use, dgn-nano-int8 is: a fault"))
    use(store, version.number)
    with Daemon(tmp_path, store, version.model) as daemon:  # another engine of the same network
        daemon.engine.propose(lambda: Broken(version.model), lambda engine: "", load_card(version.model))
        daemon.run(2)
        assert daemon.said[-1].startswith("engine: back to ") and threads("store") == [] and in_use(store) == 1


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


@pytest.mark.usefixtures("quick")
def test_a_network_as_good_as_the_one_before_stays_and_has_proven_itself(tmp_path: Path) -> None:
    store = tmp_path / "models"
    good = add(store, [worsened(tmp_path / "good.onnx", 0.005)], "somewhere", {})
    with Daemon(tmp_path, store) as daemon:
        daemon.run(35)
        use(store, good.number)
        daemon.engine.propose(lambda: open_engine("onnxruntime", good.model), lambda engine: "", load_card(good.model))
        daemon.run(45)
        wait_for(lambda: is_proven(store, good.number))
        assert daemon.engine.card == load_card(good.model) and in_use(store) == good.number


@pytest.mark.usefixtures("quick")
def test_a_network_that_sees_no_hand_at_all_is_noticed_since_the_finder_still_does(tmp_path: Path) -> None:
    with Daemon(tmp_path, tmp_path / "models", fps=60.0) as daemon:  # the finder looks every 60 ms
        daemon.run(35)
        daemon.engine.propose(Blind, lambda engine: "", load_card(FLOAT))
        daemon.run(90, until="back to")
        assert daemon.engine.card == load_card(FLOAT)
        assert "share of frames in which a hand in view is measured 0." in daemon.said[1]


@pytest.mark.usefixtures("quick")
def test_a_daemon_that_began_with_a_bad_version_opens_the_one_before(tmp_path: Path) -> None:
    store = tmp_path / "models"
    with Daemon(tmp_path, store) as healthy:
        healthy.run(35)
        saved = healthy.health.baseline()
    bad = add(store, [worsened(tmp_path / "worse.onnx", 0.3)], "nowhere", {}, saved)
    use(store, bad.number)
    with Daemon(tmp_path, store, bad.model) as daemon:
        daemon.run(4000, until="no longer in use")  # it may see no hand, and is judged by searches then
        wait_for(lambda: in_use(store) == SHIPPED)
        wait_for(lambda: daemon.reloader.model.stem == "dgn-nano-int8")
        daemon.run(1)
        assert daemon.engine.card.name == "dgn-nano-int8"


class Hand:
    """A track that is measured in every frame."""

    published, measured, pose = True, 0, SimpleNamespace(joints_m=np.zeros((21, 3)), score=0.7, fit_mm=0.0)


class Version:
    """A daemon that serves with a network from its beginning, and a hand that only the finder sees, or both."""

    def __init__(self, store: Path, model: Path) -> None:
        self.card, self.name, self.model = load_card(model), "an engine", model
        self.said: list[str] = []
        self.used: list[Path] = []
        self.engine = SwapEngine(self, self.said.append)
        self.tracker: Any = SimpleNamespace(
            finder=SimpleNamespace(threshold=0.0, judges=True), engine=self.engine, tracks=[]
        )
        reloader: Any = SimpleNamespace(use=self.used.append)
        self.health = watch_health(self.tracker, self.engine, reloader, self.said.append, store)

    def run(self, image: Any) -> list[Any]:
        raise NotImplementedError

    def take(self, form: ModelCard, asked: ModelCard | None = None) -> None:
        """Another network takes over, or another form of the same, as `auto` has it."""
        engine: Any = SimpleNamespace(card=form, name="another engine", run=lambda image: [image])
        self.engine.propose(lambda: engine, lambda engine: "", asked or self.card)
        self.engine.settle()

    def frames(self, n: int, fit_mm: float | None = None) -> None:
        """With fit_mm a hand is measured, so far from the depth."""
        hand = Hand()
        self.tracker.tracks = [] if fit_mm is None else [hand]
        for _ in range(n):
            hand.measured += 1
            hand.pose.fit_mm = fit_mm
            self.tracker.finder.sure = True
            self.health.frame()


@pytest.fixture
def in_service(tmp_path: Path) -> tuple[Path, Path]:
    """A store, and the model of the version in use there."""
    perfect = {"seen": {"mean": 1.0, "sd": 0.0, "blocks": 9.0}}
    version = add(tmp_path / "models", [worsened(tmp_path / "v.onnx", 0.3)], "nowhere", {}, perfect)
    use(tmp_path / "models", version.number)
    return tmp_path / "models", version.model


@pytest.mark.usefixtures("quick")
def test_the_same_network_on_the_engine_before_is_nothing_to_go_back_to(in_service: tuple[Path, Path]) -> None:
    store, model = in_service
    daemon = Version(store, model)
    daemon.take(daemon.card)
    daemon.frames(20)
    wait_for(lambda: daemon.used == [MODELS / "dgn-nano-int8.onnx"])
    assert in_use(store) == SHIPPED and daemon.said[1].startswith("engine: back to ")
    assert daemon.said[2].startswith("store: version 1 is no longer in use, dgn-nano-int8 is: ")


@pytest.mark.usefixtures("quick")
def test_of_two_daemons_that_began_with_a_bad_version_both_leave_it(in_service: tuple[Path, Path]) -> None:
    store, model = in_service
    for daemon in (Version(store, model), Version(store, model)):
        daemon.frames(20)
        wait_for(lambda d=daemon: d.used == [MODELS / "dgn-nano-int8.onnx"])
        assert in_use(store) == SHIPPED
        assert daemon.said[0].startswith("store: version 1 is no longer in use, dgn-nano-int8 is: its health fell: ")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("to_shipped", [True, False])
def test_a_user_may_go_back_to_the_shipped_network_and_to_a_proven_one_though_they_see_worse(
    in_service: tuple[Path, Path], to_shipped: bool
) -> None:
    store, version = in_service
    prove(store, 1)
    now, then = (version, FLOAT) if to_shipped else (FLOAT, version)
    daemon = Version(store, now)
    daemon.frames(30, fit_mm=3.0)
    daemon.take(load_card(then), load_card(then))
    daemon.frames(40, fit_mm=9.0)
    assert daemon.engine.card == load_card(then) and len(daemon.said) == 1
    daemon.take(replace(load_card(then), sha256="c" * 64), replace(load_card(then), sha256="c" * 64))
    daemon.frames(40, fit_mm=18.0)
    assert daemon.engine.card == load_card(then), "any other is judged by it"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_network_that_is_gone_back_to_is_not_judged_by_what_had_taken_its_place(
    tmp_path: Path, by_hand: bool
) -> None:
    """Networks of the user's own; the engine of the second fails, or the user wants the first again."""
    first, second = (replace(load_card(FLOAT), sha256=letter * 64) for letter in "ab")
    daemon = Version(tmp_path / "models", FLOAT)
    for card, fit_mm in ((first, 4.0), (second, 3.0)):
        daemon.take(card, card)
        daemon.frames(30, fit_mm)
    if by_hand:
        daemon.take(first, first)
    else:
        assert daemon.engine.rollback("out of memory")
    daemon.frames(10, fit_mm=4.0)
    assert not daemon.health.watching
    daemon.frames(40, fit_mm=4.0)
    assert daemon.engine.card == first
    daemon.take(second, second)
    daemon.frames(40, fit_mm=8.0)
    assert daemon.engine.card == first, "the other is judged each time it comes"


@pytest.mark.usefixtures("quick")
def test_what_follows_a_network_that_was_once_taken_back_is_judged_as_any_other(tmp_path: Path) -> None:
    first, second, third = (replace(load_card(FLOAT), sha256=letter * 64) for letter in "abc")
    daemon = Version(tmp_path / "models", FLOAT)
    for card, fit_mm, serves in (
        (first, 4.0, first), (second, 8.0, first), (second, 4.0, second), (third, 8.0, second),
    ):  # fmt: skip
        daemon.take(card, card)
        daemon.frames(31, fit_mm)
        daemon.frames(50, 4.0)
        assert daemon.engine.card == serves


@pytest.mark.usefixtures("quick")
def test_the_engine_before_is_kept_for_as_long_as_a_network_is_watched(tmp_path: Path) -> None:
    """However often it looks while no hand is in view."""
    first, second = (replace(load_card(FLOAT), sha256=letter * 64) for letter in "ab")
    daemon = Version(tmp_path / "models", FLOAT)
    daemon.engine.probation, image = 1, np.zeros(1, np.float32)
    daemon.take(first, first)
    daemon.frames(40, fit_mm=4.0)
    daemon.engine.run(image)
    assert not daemon.engine.rollback(), "nobody watches"
    daemon.take(second, second)
    daemon.frames(1)
    daemon.engine.run(image)
    daemon.frames(40, fit_mm=8.0)
    assert daemon.engine.card == first


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fell", [True, False])
def test_an_unproven_version_gone_back_to_is_judged_by_the_gate(in_service: tuple[Path, Path], fell: bool) -> None:
    daemon, other = Version(*in_service), replace(load_card(in_service[1]), sha256="b" * 64)
    daemon.frames(30 * fell, fit_mm=4.0)
    daemon.take(other, other)
    daemon.frames(1 + 39 * fell, fit_mm=8.0 if fell else None)
    assert fell or daemon.engine.rollback("out of memory")
    daemon.frames(40)
    wait_for(lambda: in_use(in_service[0]) == SHIPPED)


@pytest.mark.usefixtures("quick")
def test_another_form_of_a_watched_network_is_not_judged_by_the_first_ones_numbers(
    in_service: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, model = in_service
    monkeypatch.setattr(health, "EARLY", 100)
    daemon = Version(store, model)
    daemon.frames(25)  # enough for a baseline, too little to be judged
    daemon.take(replace(daemon.card, sha256="c" * 64))
    daemon.frames(30)
    wait_for(lambda: any(line.startswith("engine: back to ") for line in daemon.said))


def test_only_what_falls_by_more_than_its_margin_and_its_scatter_counts() -> None:
    def blocks(fit_mm: float, scatter: float, seen: float = 1.0) -> Any:
        return baseline_of([(seen, 0.7, fit_mm + scatter * (-1) ** i, 2.0) for i in range(10)])

    before = blocks(4.0, 0.1)
    assert fallen(before, blocks(4.5, 0.1)) == "", "within the margin"
    assert fallen(before, blocks(5.5, 0.1)) == "mm from depth to mesh 5.50, before 4.00"
    assert fallen(before, blocks(5.5, 2.0)) == "", "no clearer than the scatter"
    assert fallen(before, blocks(2.0, 0.1)) == "", "better"
    assert fallen(before, blocks(4.0, 0.1, seen=0.5)).startswith("share of frames in which")
    nothing = baseline_of([(0.0, np.nan, np.nan, np.nan)] * 10)
    assert fallen(before, nothing) == "share of frames in which a hand in view is measured 0.00, before 1.00"


def test_a_finder_that_a_reload_brings_is_listened_to_again() -> None:
    tracker = Tracker(open_engine("onnxruntime", FLOAT))
    watch = Health(tracker, lambda why: None)
    tracker.finder = fresh = open_finder()
    watch.frame()
    assert tracker.finder is not fresh and tracker.finder.threshold == fresh.threshold


def test_a_frame_costs_next_to_nothing() -> None:
    with open_camera("replay", str(DEMO), fps=0.0) as camera:
        frames = [camera.read(5) for _ in range(40)]
    watch, times = Health(tracker := Tracker(open_engine("onnxruntime", FLOAT)), lambda why: None), []
    for frame in frames:
        begun_s = time.perf_counter()
        tracker.process(frame)
        over_s = time.perf_counter()
        watch.frame()
        times.append((over_s - begun_s, time.perf_counter() - over_s))
    assert np.divide(*np.median(times, axis=0)) > 100, "1000 was measured on busy cores"
