"""A running daemon changes between frames, wholly or not at all."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.cli.config import ConfigError
from edge_hand.edge.engines import open_engine, tensorrt
from edge_hand.edge.networks.card import DEFAULT_MODEL, MODELS, ModelError, load_card, sha256
from edge_hand.edge.networks.plausible import implausible
from edge_hand.edge.networks.probe import crops
from edge_hand.edge.networks.reload import Reloader, ReloadError, open_lasting_engine
from edge_hand.edge.networks.swap import MOST_FAILURES, EngineDown, SwapEngine
from edge_hand.edge.tracker import Tracker
from edge_hand.hand.frames import DepthFrame
from test_two_hands import Stage, left_at, right_at

FLOAT = MODELS / "dgn-nano.onnx"
SETTINGS = {
    "model": DEFAULT_MODEL, "engine": "onnxruntime", "threads": 1, "finder": "geometry", "hands": 2, "smooth": True,
    "bind": "tcp://127.0.0.1:5555", "camera": "synthetic",
}  # fmt: skip


@pytest.fixture(scope="module")
def frames() -> list[DepthFrame]:
    with SyntheticCamera(0, "424x240@30", fps=0) as camera:
        return [camera.frame(seq) for seq in range(12)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the shipped network, to be replaced while it runs."""
    return placed(DEFAULT_MODEL, tmp_path / "net.onnx")


def placed(model: Path, path: Path) -> Path:
    shutil.copy(model, path)
    shutil.copy(model.with_suffix(".json"), path.with_suffix(".json"))
    return path


class Daemon:
    """What `edge-hand run` has of it, without the sockets."""

    def __init__(self, **settings: Any) -> None:
        self.new = SETTINGS | settings
        self.said: list[str] = []
        self.engine = open_lasting_engine(self.new["engine"], self.new["model"], 1, self.said.append)
        self.tracker = Tracker(self.engine, max_hands=2)
        self.reloader = Reloader(dict(self.new), lambda: self.new, self.engine, self.said.append)

    def reload(self, **settings: Any) -> str:
        self.new = self.new | settings
        return self.reloader.reload()

    def track(self, frame: DepthFrame) -> int:
        self.reloader.apply(self.tracker)
        return len(self.tracker.process(frame))


def test_settings_change_between_frames_and_the_hand_stays(frames: list[DepthFrame]) -> None:
    daemon = Daemon()
    for frame in frames[:5]:
        daemon.track(frame)
    (before,) = daemon.tracker.process(frames[5])
    finder = daemon.tracker.finder
    assert daemon.reload(hands=1, smooth=False) == "now hands = 1, smooth = False"
    daemon.reloader.apply(daemon.tracker)
    (after,) = daemon.tracker.process(frames[6])
    assert after.id == before.id and daemon.tracker.max_hands == 1 and daemon.tracker.finder is finder
    assert after.joints_raw_m is not None
    np.testing.assert_allclose(after.pose.joints_m, after.joints_raw_m, atol=1e-12)  # unsmoothed
    assert daemon.reload() == "nothing to change"
    daemon.reload(finder="finder")
    daemon.reloader.apply(daemon.tracker)
    assert daemon.tracker.finder.judges and daemon.track(frames[7]) == 1


def test_of_more_hands_than_are_asked_for_those_stay_that_were_there_first() -> None:
    daemon = Daemon()
    stage = Stage(daemon.engine)
    stage.follow(right_at(0.2), left_at(-0.2))
    daemon.reload(hands=1)
    daemon.reloader.apply(stage.tracker)
    stage.tracker.eye = stage  # type: ignore[assignment]  # it was made anew
    assert [[h.id for h in stage.step(k)] for k in range(4, 8)] == [[1]] * 4
    daemon.reload(hands=2)
    daemon.reloader.apply(stage.tracker)
    stage.tracker.eye = stage  # type: ignore[assignment]
    assert [h.id for h in [stage.step(k) for k in range(8, 12)][-1]] == [1, 2]


def test_what_needs_a_restart_is_said_and_stays_said() -> None:
    daemon = Daemon()
    assert daemon.reload(bind="ipc:///x", hands=3) == "now hands = 3; bind: only with a restart"
    assert daemon.reload(camera="replay") == "nothing to change; bind, camera: only with a restart"


def test_the_model_of_the_settings_changes_and_its_confidences_with_it(frames: list[DepthFrame]) -> None:
    daemon = Daemon()
    daemon.track(frames[0])
    poser = daemon.tracker._poser
    assert daemon.reload(model=FLOAT) == f"now model = {FLOAT}"
    assert daemon.track(frames[1]) == 1 and daemon.engine.card == load_card(FLOAT)
    assert daemon.tracker._poser is not poser and daemon.reloader.model == FLOAT


def test_a_model_file_that_was_replaced_by_a_good_one_is_taken(model: Path, frames: list[DepthFrame]) -> None:
    daemon = Daemon(model=model)
    placed(FLOAT, model)
    assert daemon.reload() == f"now {model} as it is now"
    assert daemon.track(frames[0]) >= 0 and daemon.engine.card == load_card(FLOAT)


def test_a_gpu_is_given_the_float_form_of_a_model_in_a_cpu_s_8_bits(
    model: Path, frames: list[DepthFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "open_engine", lambda model, card, threads, **_: open_engine("onnxruntime", model))
    daemon = Daemon(engine="tensorrt")
    assert daemon.engine.card == load_card(FLOAT)
    assert daemon.reload() == "nothing to change"
    assert daemon.reloader.use(DEFAULT_MODEL).endswith("serves already")
    assert daemon.reloader.use(FLOAT).endswith("serves from the next frame on")
    daemon.track(frames[0])
    assert daemon.reloader.use(DEFAULT_MODEL).endswith("serves from the next frame on")
    daemon.track(frames[1])
    assert daemon.engine.card == load_card(FLOAT) and daemon.engine.asked == load_card(DEFAULT_MODEL)
    alone = model.with_name("net-int8.onnx")
    with pytest.raises(ModelError, match="has no form for TensorRT beside it"):
        open_engine("tensorrt", placed(DEFAULT_MODEL, alone))


def test_a_model_that_self_tuning_serves_in_another_form_is_left_alone(frames: list[DepthFrame]) -> None:
    daemon = Daemon()
    daemon.engine.offer(lambda: open_engine("onnxruntime", FLOAT, 1), lambda: open_engine("onnxruntime", FLOAT, 1), 1.0)
    assert daemon.engine.wait(30)
    daemon.track(frames[0])
    assert daemon.engine.card == load_card(FLOAT)
    assert daemon.reloader.use(DEFAULT_MODEL).endswith("serves already")
    assert daemon.reload() == "nothing to change"
    daemon.track(frames[1])
    assert daemon.engine.card == load_card(FLOAT)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_bytes(b"nonsense"), "its bytes are not the ones its card vouches for"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.with_suffix(".json").write_text("{"), "not a model card"),
        (lambda path: vouched(path, path.read_bytes()[:1000]), "onnxruntime cannot load it"),
        (lambda path: placed(MODELS / "finder.onnx", path), "its kind is 'finder'; this needs dgn"),
        (lambda path: dulled(path), "it sees no hand in 16 of 16 pictures"),
    ],
)
def test_a_model_file_that_was_replaced_by_a_bad_one_is_refused_and_all_goes_on(
    spoil: Callable[[Path], object], why: str, model: Path, frames: list[DepthFrame]
) -> None:
    daemon = Daemon(model=model)
    for frame in frames[:4]:
        daemon.track(frame)
    spoil(model)
    for change in (lambda: daemon.reload(hands=1), lambda: daemon.reloader.use(model)):
        with pytest.raises(ReloadError) as seen:
            change()
        assert str(seen.value).startswith("nothing was changed: ") and why in str(seen.value)
        assert "\n" not in str(seen.value)
    assert daemon.track(frames[4]) == 1 and daemon.tracker.max_hands == 2
    assert daemon.engine.card == load_card(DEFAULT_MODEL)


def vouched(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    card = json.loads(path.with_suffix(".json").read_text()) | {"sha256": sha256(path)}
    path.with_suffix(".json").write_text(json.dumps(card))


def dulled(path: Path) -> None:
    """A network that loads and is none: its weights are zero."""
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(FLOAT)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim > 1:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(0), tensor.name))
    vouched(placed(FLOAT, path), proto.SerializeToString())


def test_settings_that_cannot_be_read_change_nothing(frames: list[DepthFrame]) -> None:
    daemon = Daemon()
    for error, text in (
        (ConfigError("config x: 'hand' is unknown"), "nothing was changed: config x: 'hand' is unknown"),
        (click.BadParameter("99 is not in the range"), "nothing was changed: 99 is not in the range"),
    ):

        def fail(error: Exception = error) -> Any:
            raise error

        daemon.reloader._reread = fail
        with pytest.raises(ReloadError) as seen:
            daemon.reloader.reload()
        assert str(seen.value).startswith(text.split(":")[0]) and text.split(": ")[1] in str(seen.value)
    assert daemon.track(frames[0]) >= 0


def test_another_model_is_used_by_name_of_its_file_and_a_reload_keeps_it(frames: list[DepthFrame]) -> None:
    daemon = Daemon()
    digest = load_card(FLOAT).sha256[:12]
    assert daemon.reloader.use(FLOAT) == f"dgn-nano {digest} serves from the next frame on"
    daemon.track(frames[0])
    assert daemon.engine.card == load_card(FLOAT)
    assert daemon.reloader.use(FLOAT) == f"dgn-nano {digest} serves already"
    assert daemon.reload() == "nothing to change" and daemon.engine.card == load_card(FLOAT)


def test_the_shipped_networks_are_plausible_and_noise_is_not() -> None:
    for model in (DEFAULT_MODEL, FLOAT):
        assert implausible(open_engine("onnxruntime", model)) == ""

    class Noise:
        card, name = load_card(FLOAT), "noise"

        def run(self, image: Any) -> list[Any]:
            rng = np.random.default_rng(0)
            return [rng.normal(size=[1, *shape[1:]]).astype(np.float32) for shape in self.card.outputs.values()]

    assert implausible(Noise()) == "it makes no hand of 16 of 16 pictures of hands"


class Failing:
    """A real engine that fails from a certain run on."""

    def __init__(self, after: int, how: str = "raises") -> None:
        self.inner, self.left, self.how = open_engine("onnxruntime"), after, how
        self.card, self.name = self.inner.card, "failing engine"

    def run(self, image: Any) -> list[Any]:
        self.left -= 1
        if self.left >= 0:
            return self.inner.run(image)
        if self.how == "raises":
            raise RuntimeError("CUDA error 719:\nlaunch failure")
        return [array * np.nan for array in self.inner.run(image)]


@pytest.mark.parametrize("how", ["raises", "not finite"])
def test_an_engine_that_fails_is_opened_anew_and_no_frame_is_lost(how: str) -> None:
    said: list[str] = []
    engine = SwapEngine(Failing(3, how), said.append, openers=[lambda: open_engine("onnxruntime")])
    image = crops(64)[0]
    expected = open_engine("onnxruntime").run(image)[0]
    for _ in range(8):
        np.testing.assert_array_equal(engine.run(image)[0], expected)
    why = "CUDA error 719: launch failure" if how == "raises" else "it gave what is not finite"
    assert len(said) == 2 and said[0].endswith(f"failed: {why}") and said[1].endswith(", opened anew")


def test_an_engine_that_cannot_be_opened_falls_back_to_what_served_before() -> None:
    image, said = crops(64)[0], []
    engine = SwapEngine(open_engine("onnxruntime"), said.append, 20, [lambda: open_engine("onnxruntime")])
    candidates = [Failing(len(crops(64)) + 21)]  # the probe's runs, and those on probation
    engine.propose(lambda: candidates.pop(), implausible, engine.card)
    for _ in range(23):
        engine.run(image)
    assert engine.name.startswith("onnxruntime ") and said[-1].endswith(", opened anew")


def test_closing_closes_what_serves_what_was_before_and_what_is_still_being_made() -> None:
    closed: list[int] = []

    class Closing(Failing):
        def close(self) -> None:
            closed.append(id(self))

    first, second, third = (Closing(1000) for _ in range(3))
    engine = SwapEngine(first, lambda line: None)
    engine.propose(lambda: second, implausible, engine.card)
    engine.run(crops(64)[0])
    begun, go = threading.Event(), threading.Event()

    def slowly() -> Any:
        begun.set()
        go.wait(10)
        return third

    engine.offer(slowly, lambda: open_engine("onnxruntime"), 100.0)
    assert begun.wait(10)
    engine.close()
    go.set()
    assert engine.wait(30) and sorted(closed) == sorted(map(id, (first, second, third)))


def test_what_was_asked_for_comes_back_with_what_is_taken_back(frames: list[DepthFrame]) -> None:
    daemon = Daemon()
    daemon.reload(model=FLOAT)
    daemon.track(frames[0])
    assert daemon.engine.asked == load_card(FLOAT)
    assert daemon.engine.rollback() and daemon.engine.asked == load_card(DEFAULT_MODEL)
    assert daemon.reload() == f"now {FLOAT} as it is now"


def test_a_network_given_by_file_that_was_taken_back_does_not_return_with_the_next_reload(
    model: Path, frames: list[DepthFrame]
) -> None:
    daemon = Daemon()
    for given, file in ((DEFAULT_MODEL, FLOAT), (model, placed(FLOAT, model.with_name("other.onnx")))):
        daemon.reloader.use(given)
        daemon.reloader.use(file)
        assert daemon.reloader.model == file  # though no frame has come yet
        daemon.track(frames[0])
        assert daemon.engine.card == load_card(FLOAT) and daemon.engine.rollback()
        assert daemon.reloader.model == given
        daemon.track(frames[1])
        daemon.reload(hands=daemon.new["hands"] - 1)
        daemon.track(frames[2])
        assert daemon.engine.card == load_card(DEFAULT_MODEL) and daemon.reloader.model == given


def test_an_engine_that_stays_broken_is_told_and_ends_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_hand.edge.networks.swap.FIRST_DELAY_S", 0.0)

    def no_gpu() -> Any:
        raise OSError("the GPU is gone")

    engine = SwapEngine(Failing(1), lambda line: None, openers=[no_gpu])
    image = crops(64)[0]
    engine.run(image)
    for _ in range(MOST_FAILURES - 1):
        with pytest.raises(EngineDown, match=r"^engine: the GPU is gone; it is opened anew$"):
            engine.run(image)
    with pytest.raises(Exception, match=rf"failed {MOST_FAILURES} times, at last: the GPU is gone$") as seen:
        engine.run(image)
    assert not isinstance(seen.value, EngineDown)


def test_a_reload_that_is_refused_leaves_no_finder_open(tmp_path: Path) -> None:
    daemon, opened = Daemon(), list[Any]()
    before = daemon.tracker.finder
    daemon.new = daemon.new | {"finder": "finder", "model": tmp_path / "none.onnx"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "edge_hand.edge.networks.reload.open_finder", lambda *a, **k: opened.append(Closing()) or opened[-1]
        )
        with pytest.raises(ReloadError, match=r"^nothing was changed: "):
            daemon.reloader.reload()
    assert [finder.engine.closed for finder in opened] == [True] and daemon.tracker.finder is before


def test_a_finder_that_another_reload_replaces_before_it_was_in_place_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon, opened = Daemon(), list[Any]()
    monkeypatch.setattr(
        "edge_hand.edge.networks.reload.open_finder", lambda *a, **k: opened.append(Closing()) or opened[-1]
    )
    for name in ("finder", "geometry"):
        daemon.reload(finder=name)
    daemon.reload(hands=1)
    daemon.reloader.apply(daemon.tracker)
    assert [finder.closed for finder in opened] == [True, False]
    assert daemon.tracker.finder is opened[1] and daemon.tracker.max_hands == 1


class Closing:
    """A finder that knows whether it was closed."""

    def __init__(self) -> None:
        self.engine, self.closed = self, False

    def close(self) -> None:
        self.closed = True
