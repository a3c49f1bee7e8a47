"""The self-tuning: the fastest setting that is precise enough, kept for this machine as it is and no other."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_hand.edge.engines import ANYWHERE, open_engine
from edge_hand.edge.finder import INPUT, NetworkFinder, open_finder, retire
from edge_hand.edge.networks import probe, tune
from edge_hand.edge.networks.card import DEFAULT_MODEL, MODELS, ModelError, load_card
from edge_hand.edge.networks.reload import open_lasting_engine
from edge_hand.edge.networks.swap import SwapEngine
from edge_hand.edge.networks.tune import Setting, Taken, Tuned

FLOAT = MODELS.resolve() / "dgn-nano.onnx"
SMALL = FLOAT.with_name(DEFAULT_MODEL.name)
START = tune.first(DEFAULT_MODEL, 1)
PLAIN = Setting(ANYWHERE, str(FLOAT), 1)


class Idler:
    """An engine that takes its time."""

    def __init__(self, ms: float) -> None:
        self.card, self.name, self._ms = load_card(FLOAT), "idler", ms

    def run(self, image: Any) -> list[Any]:
        until = time.process_time() + self._ms * 1e-3
        while time.process_time() < until:
            pass
        return []


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_HAND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tune, "_backends", lambda: [b for b in real_backends() if b[0] == ANYWHERE])
    return tmp_path / "cache"


real_backends = tune._backends


def as_if(monkeypatch: pytest.MonkeyPatch, ms: Callable[[Setting], float]) -> None:
    """A machine on which each setting takes so long."""
    monkeypatch.setattr(
        tune, "race", lambda engines, budget_s: {setting: Taken(ms(setting), ms(setting)) for setting, _ in engines}
    )


def test_the_faster_engine_wins_the_race() -> None:
    slow, fast = Setting("a", "x", 1), Setting("b", "x", 1)
    times = tune.race([(slow, Idler(4)), (fast, Idler(1))], 0.1)
    assert 1 <= times[fast].cpu_ms < times[slow].cpu_ms
    assert times[fast].ms >= 1


def test_all_settings_are_ranked_by_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if(monkeypatch, lambda setting: 2.0 if setting == START else 3.0)
    (first, taken, mm), (second, _, zero) = tune.rank(DEFAULT_MODEL, 1, 0.1)
    assert (first, taken.ms, second, zero) == (START, 2.0, PLAIN, 0.0) and 0.1 < mm < 3


def test_the_model_in_8_bits_may_give_way_to_its_float_form_but_not_the_other_way_round() -> None:
    assert tune.files(DEFAULT_MODEL) == [SMALL, FLOAT]
    assert tune.files(FLOAT) == [FLOAT]
    assert tune.settings(DEFAULT_MODEL, 1) == [START, PLAIN]


def test_a_float_form_of_another_training_is_another_network(tmp_path: Path) -> None:
    for model in (FLOAT, DEFAULT_MODEL):
        for file in (model, model.with_suffix(".json")):
            shutil.copy(file, tmp_path / file.name)
    small, plain = tmp_path / DEFAULT_MODEL.name, tmp_path / FLOAT.name
    card = json.loads(plain.with_suffix(".json").read_text())
    card["training"]["commit"] = "another export"
    plain.with_suffix(".json").write_text(json.dumps(card))
    assert tune.files(small) == [small, plain]
    card["training"]["seed"] = 77
    plain.with_suffix(".json").write_text(json.dumps(card))
    assert tune.files(small) == [small]


def test_several_threads_are_tried_with_and_without_spinning() -> None:
    options = {setting.options for setting in tune.settings(FLOAT, 2)}
    assert options == {(), (("spin", False),)}


def test_what_is_faster_is_chosen_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if(monkeypatch, lambda setting: 1.0 if setting == PLAIN else 2.0)
    assert tune.best(DEFAULT_MODEL, 1) == Tuned(
        PLAIN, "dgn-nano on onnxruntime, 1 thread takes 1.00 ms, dgn-nano-int8 on onnxruntime, 1 thread 2.00 ms"
    )


def test_a_small_gain_is_no_reason_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if(monkeypatch, lambda setting: 0.9 if setting == PLAIN else 1.0)
    assert tune.best(DEFAULT_MODEL, 1) == Tuned(
        START, "nothing is 15% faster than its 1.00 ms (dgn-nano on onnxruntime, 1 thread 0.90 ms)"
    )


def test_what_is_too_far_from_the_float_network_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if(monkeypatch, lambda setting: 0.1 if setting == PLAIN else 1.0)
    monkeypatch.setattr(tune, "distances", lambda tried: {s: 9.0 if s == PLAIN else 0.5 for s, _ in tried})
    assert tune.best(DEFAULT_MODEL, 1).setting == START


@pytest.mark.parametrize(
    ("plain_mm", "found"),
    [
        (0.5, Tuned(PLAIN, "dgn-nano on onnxruntime, 1 thread takes 3.00 ms, dgn-nano-int8 on onnxruntime, 1 thread "
                    "1.00 ms but is 5.0 mm off")),
        (9.0, Tuned(START, "nothing is 15% faster than its 1.00 ms (no other engine)")),
        (float("nan"), Tuned(START, "nothing is 15% faster than its 1.00 ms (no other engine)")),
    ],
)  # fmt: skip
def test_where_even_what_serves_first_is_too_far_another_takes_its_place_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, plain_mm: float, found: Tuned
) -> None:
    as_if(monkeypatch, lambda setting: 1.0 if setting == START else 3.0)
    monkeypatch.setattr(tune, "distances", lambda tried: {s: 5.0 if s == START else plain_mm for s, _ in tried})
    assert tune.best(DEFAULT_MODEL, 1) == found


@pytest.mark.parametrize(("ms_with_two", "threads"), [(0.6, 2), (0.8, 1)])
def test_a_second_thread_must_earn_its_core(monkeypatch: pytest.MonkeyPatch, ms_with_two: float, threads: int) -> None:
    monkeypatch.setattr(tune, "cores", lambda: 2)
    as_if(
        monkeypatch,
        lambda setting: (1.0 if setting.threads == 1 else ms_with_two) * (1 + (setting.model == str(FLOAT))),
    )
    assert tune.best(DEFAULT_MODEL, 0).setting.threads == threads


def test_on_a_busy_machine_one_thread_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "cores", lambda: 2)
    took = {1: Taken(27.0, 1.9), 2: Taken(2.6, 4.0)}
    monkeypatch.setattr(
        tune, "race", lambda engines, budget_s: {setting: took[setting.threads] for setting, _ in engines}
    )
    found = tune.best(FLOAT, 0)
    assert found.setting.threads == 1 and found.line.endswith("too busy to tell what a second thread gains")


def test_threads_that_are_asked_for_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if(monkeypatch, lambda setting: 1.0)
    assert tune.best(FLOAT, 2).setting.threads == 2


def keep(found: Tuned, model: Path = DEFAULT_MODEL, threads: int = 1) -> str:
    return tune._keep(model, threads, json.dumps(found._asdict()))


def test_what_was_found_is_kept(cache: Path) -> None:
    assert tune.kept(DEFAULT_MODEL, 1) is None
    found = Tuned(Setting(ANYWHERE, str(FLOAT), 2, (("spin", False),)), "why")
    assert keep(found) == ""
    assert tune.kept(DEFAULT_MODEL, 1) == found
    assert tune.kept(DEFAULT_MODEL, 2) is None and tune.kept(FLOAT, 1) is None
    assert [file.suffix for file in cache.iterdir()] == [".tune"]


def test_what_was_found_holds_wherever_a_start_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if(monkeypatch, lambda setting: 1.0 if setting == PLAIN else 2.0)
    monkeypatch.chdir(MODELS)
    keep(tune.best(Path(SMALL.name), 1), Path(SMALL.name))
    monkeypatch.chdir(tmp_path)
    found = tune.kept(Path(os.path.relpath(SMALL)), 1)
    assert found and found.setting == PLAIN and tune.first(Path(os.path.relpath(SMALL)), 1) == START


@pytest.mark.parametrize("what", ["cpu", "cores", "engines", "models"])
def test_on_another_machine_or_with_other_software_it_is_found_anew(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    keep(Tuned(PLAIN, ""))
    assert tune.kept(DEFAULT_MODEL, 1)
    now = tune.key(DEFAULT_MODEL, 1)
    monkeypatch.setattr(tune, "key", lambda model, threads: now | {what: "another"})
    assert tune.kept(DEFAULT_MODEL, 1) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"setting": 7}', '{"setting": ["onnxruntime", "/none", 1, []], "line": ""}']
)
def test_a_damaged_note_is_as_good_as_none(cache: Path, text: str) -> None:
    keep(Tuned(PLAIN, ""))
    next(cache.iterdir()).write_text(text)
    assert tune.kept(DEFAULT_MODEL, 1) is None


def test_a_cache_that_cannot_be_written_is_said_in_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_HAND_CACHE", "/dev/null/cache")
    assert keep(Tuned(PLAIN, "")) == "; not kept (/dev/null/cache: not a directory)"


def test_only_the_newest_notes_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "MOST_KEPT", 3)
    for threads in range(1, 7):
        keep(Tuned(PLAIN, ""), threads=threads)
        os.utime(tune._path(DEFAULT_MODEL, threads), (threads, threads))
    assert len(list(cache.iterdir())) == 3 and tune.kept(DEFAULT_MODEL, 6) and not tune.kept(DEFAULT_MODEL, 1)


def test_the_second_start_knows_and_opens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(Tuned(START, "nothing is faster"))
    said: list[str] = []
    engine = open_engine(model=DEFAULT_MODEL, tune=True, say=said.append)
    assert not isinstance(engine, SwapEngine)
    assert len(said) == 1 and f"; self-tuned: nothing is faster; {engine.name}" in said[0]


def test_a_better_setting_takes_over_behind_the_first_frames() -> None:
    keep(Tuned(PLAIN, "dgn-nano is faster"))
    said: list[str] = []
    engine = open_engine(model=DEFAULT_MODEL, tune=True, say=said.append)
    assert isinstance(engine, SwapEngine) and engine.card.name == "dgn-nano-int8"
    assert engine.wait(30)
    engine.run(np.ones((1, 1, 64, 64), np.float32))
    assert engine.card.name == "dgn-nano"
    assert "; self-tuned: dgn-nano is faster; onnxruntime " in said[0] and said[1].startswith("engine: dgn-nano on ")


def test_what_fails_after_its_probation_is_opened_anew_without_being_tuned_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned: list[Path] = []
    monkeypatch.setattr("edge_hand.edge.engines.SETTLE_S", 0.0)
    monkeypatch.setattr(tune, "tune", lambda model, threads: tuned.append(model) or Tuned(PLAIN, "it is faster"))
    engine = open_lasting_engine("auto", DEFAULT_MODEL, 1, lambda line: None, tune=True)
    engine.probation = 1
    assert engine.wait(30)
    image = np.ones((1, 1, 64, 64), np.float32)
    engine.run(image)
    failed = engine.serving
    monkeypatch.setattr(failed, "run", lambda image: 1 / 0)
    engine.run(image)
    assert engine.serving is not failed and engine.card == load_card(FLOAT) and tuned == [DEFAULT_MODEL]


def test_only_those_that_run_for_long_are_tuned() -> None:
    keep(Tuned(PLAIN, ""))
    assert open_engine(model=DEFAULT_MODEL).card.name == "dgn-nano-int8"
    assert open_engine("onnxruntime", DEFAULT_MODEL, tune=True).card.name == "dgn-nano-int8"


@pytest.mark.slow
def test_it_runs_in_a_process_of_its_own_and_keeps_what_it_finds(cache: Path) -> None:
    found = tune.tune(DEFAULT_MODEL, 1)
    assert found.setting.threads == 1 and " ms" in found.line
    assert [file.suffix for file in cache.iterdir()] == [".tune"]


def test_a_child_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^self-tuning failed: model .*none\.onnx: no such file"):
        tune.tune(tmp_path / "none.onnx", 1)


def test_a_finder_is_tuned_too_and_is_compared_by_what_it_proposes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, lines = MODELS / "finder.onnx", list[str]()
    wide = Tuned(Setting(ANYWHERE, str(model), 2), "as it was found")
    monkeypatch.setattr(tune, "kept", lambda model, threads: wide)
    finder = open_finder(say=lines.append, tune=True)
    assert isinstance(finder, NetworkFinder) and isinstance(finder.engine, SwapEngine) and finder.engine.wait(60)
    pictures = probe.images(finder.engine.card)
    assert all(picture.shape == tuple(INPUT) for picture in pictures)
    finder.engine.run(pictures[0])
    assert finder.engine.name.endswith("2 threads")
    assert lines[0].startswith("finder: self-tuned: as it was found") and lines[-1].startswith("finder: finder on ")
    one = open_finder()
    assert isinstance(one, NetworkFinder) and probe.compare(finder.engine, one.engine, pictures).mean_mm < 0.1
    assert finder.engine.openers  # where it fails, onnxruntime is opened
    places = [probe.outputs(one.engine, picture)[0] for picture in pictures]
    assert np.mean([np.linalg.norm(place - [0, 0, probe.DISTANCE_M]) < 0.05 for place in places]) > 0.6
    retire(finder)
    assert finder.engine._closed


def test_what_waits_for_another_tuning_as_the_process_ends_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "stopped", threading.Event())
    tune.stop()
    with pytest.raises(ModelError, match=r"^self-tuning did not begin$"):
        tune.tune(DEFAULT_MODEL, 1)
