"""Accepted networks are numbered and never change; which one is in use can be changed and taken back."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner
from edge_hand.edge import home
from edge_hand.edge.cli.config import default_path
from edge_hand.edge.cli.main import cli
from edge_hand.edge.engines import open_engine
from edge_hand.edge.engines.tensorrt.plan import cache_folder
from edge_hand.edge.networks import store as model_store
from edge_hand.edge.networks.card import DEFAULT_MODEL, MODELS, ModelError, load_card, sha256
from edge_hand.edge.networks.probe import crops
from edge_hand.edge.networks.store import (
    SHIPPED,
    StoreError,
    add,
    current,
    default_store,
    in_use,
    is_proven,
    number_of,
    own_model,
    rollback,
    use,
    versions,
)
from edge_hand.edge.networks.use import put_in_use
from edge_hand.edge.service.control import ControlError, ControlSocket, Reply, Request, ask

FLOAT = MODELS / "dgn-nano.onnx"
BOTH = [DEFAULT_MODEL, FLOAT]
DEMO = MODELS.parent / "demo" / "hand.mcap"
REPORT = {"measures": {"fit_p50_mm": {"old": 4.52, "new": 3.98}, "synthetic_mm": {"old": 11.3, "new": 11.4}}}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_HAND_STORE", str(tmp_path / "models"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))  # no daemon of this machine
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    return tmp_path / "models"


def outputs(model: Path) -> list[bytes]:
    engine = open_engine("onnxruntime", model)
    return [array.tobytes() for image in crops(64) for array in engine.run(image)]


def test_versions_are_numbered_and_keep_their_models_cards_and_report(store: Path) -> None:
    first, second = add(store, BOTH, "monday.mcap", REPORT), add(store, [FLOAT], "tuesday.mcap", {})
    assert [v.number for v in versions(store)] == [1, 2] and first.model.name == "adapted-1-int8.onnx"
    assert sorted(f.name for f in first.folder.glob("*.onnx")) == ["adapted-1-int8.onnx", "adapted-1.onnx"]
    assert load_card(first.model).name == "adapted-1-int8" and load_card(second.model).precision == "fp32"
    assert first.report == REPORT and first.made_from == "monday.mcap" and first.over == SHIPPED
    assert in_use(store) == SHIPPED and current(store) is None, "a version serves only when it is told to"


def test_rollback_gives_the_same_bytes_and_touches_no_file(store: Path) -> None:
    version = add(store, [FLOAT], "monday.mcap", {})
    model, _ = own_model(store)
    before, files = (
        outputs(model),
        {f: sha256(f) for f in (*MODELS.iterdir(), *version.folder.iterdir()) if f.is_file()},
    )
    use(store, 1)
    adapted = outputs(own_model(store)[0])
    assert adapted != before
    rollback(store)
    assert outputs(own_model(store)[0]) == before and own_model(store)[0] == DEFAULT_MODEL
    use(store, 1)
    assert outputs(own_model(store)[0]) == adapted
    assert files == {f: sha256(f) for f in files}


def test_rollback_goes_back_step_by_step_and_then_says_that_there_is_nothing(store: Path) -> None:
    for name in ("a", "b"):
        add(store, [FLOAT], name, {})
    use(store, 1)
    use(store, 2)
    use(store, 2)  # again: no step
    back = rollback(store)
    assert back is not None and back.number == 1
    assert rollback(store) is None and in_use(store) == SHIPPED
    with pytest.raises(StoreError, match="nothing was in use before"):
        rollback(store)


def test_of_several_daemons_one_takes_a_version_back_and_the_others_find_it_done(store: Path) -> None:
    for name in ("a", "b"):
        add(store, [FLOAT], name, {})
    use(store, 1)
    use(store, 2)
    for _ in range(3):
        back = rollback(store, bad=2)
        assert back is not None and back.number == 1 == in_use(store)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_puts_into_the_services_store_the_service_can_read_and_change(tmp_path: Path) -> None:
    os.chown(tmp_path, 54321, 54321)
    store, umask = tmp_path / "state" / "models", os.umask(0o077)
    try:
        version = add(store, [FLOAT], "a", {})
        use(store, 1)
    finally:
        os.umask(umask)
    theirs = [store.parent, store, store / ".lock", store / "current.json", version.folder]
    assert [path.stat().st_uid for path in theirs] == [54321] * 5
    assert version.folder.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in version.folder.iterdir()} == {0o444}


def test_what_a_power_cut_left_half_added_is_removed_by_the_next(store: Path) -> None:
    (store / ".new-abc").mkdir(parents=True)
    (store / ".new-abc" / "adapted-1.onnx").write_bytes(b"half of it")
    assert add(store, [FLOAT], "a", {}).number == 1
    assert sorted(f.name for f in store.iterdir()) == [".lock", "0001"]


def test_a_version_that_cannot_be_written_leaves_nothing(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "broken.onnx"
    other.write_bytes(FLOAT.read_bytes()[:-1])
    other.with_suffix(".json").write_text(FLOAT.with_suffix(".json").read_text())
    with pytest.raises(ModelError):
        add(store, [FLOAT, other], "a", {})
    assert [f.name for f in store.iterdir()] == [".lock"] and versions(store) == []


def test_two_at_a_time_get_two_numbers(store: Path) -> None:
    threads = [threading.Thread(target=add, args=(store, [FLOAT], str(i), {})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [v.number for v in versions(store)] == [1, 2, 3, 4]


def test_what_a_link_in_the_place_of_the_lock_points_to_stays_as_it_is(store: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("of root")
    store.mkdir()
    (store / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match=r"models: cannot be written \(too many levels of symbolic links\)$"):
        model_store.prove(store, 1)
    assert (tmp_path / "precious").read_text() == "of root"


@pytest.mark.parametrize("proven", [True, False])
def test_the_number_of_a_version_that_was_removed_is_not_given_again(store: Path, proven: bool) -> None:
    shutil.rmtree(add(store, [FLOAT], "a", {}).folder)
    left = {"use": 0, "before": [], "proven": [1]} if proven else {"use": 0, "before": [0, 1], "proven": []}
    (store / "current.json").write_text(json.dumps(left))
    assert add(store, [FLOAT], "b", {}).number == 2 and not is_proven(store, 2)


def test_a_model_is_known_by_its_bytes(store: Path) -> None:
    version = add(store, BOTH, "a", {})
    assert number_of(store, load_card(DEFAULT_MODEL).sha256) == version.number
    assert number_of(store.with_name("empty"), load_card(DEFAULT_MODEL).sha256) == SHIPPED
    assert number_of(store, "0" * 64) is None


def test_of_two_versions_with_the_same_bytes_the_one_in_use_is_taken_back(store: Path) -> None:
    for name in ("a", "b", "b again"):
        add(store, [DEFAULT_MODEL if name == "a" else FLOAT], name, {})
    digest = load_card(FLOAT).sha256
    for number in (3, 2):
        use(store, number)
        assert number_of(store, digest) == number
    use(store, 1)
    assert number_of(store, digest) == 2


def test_the_store_lies_where_systemd_or_the_user_keeps_state(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EDGE_HAND_STORE", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_store() == Path("/data/edge-hand/models")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/edge-hand:/other")
    assert default_store() == Path("/var/lib/edge-hand/models")
    monkeypatch.setenv("EDGE_HAND_STORE", "/mine")
    assert default_store() == Path("/mine")


def test_list_use_and_rollback_as_a_user_types_them(store: Path, tmp_path: Path) -> None:
    add(store, BOTH, "monday.mcap", REPORT)
    run = CliRunner().invoke

    def lines(*words: str) -> list[str]:
        done = run(cli, ["models", *words])
        assert done.exit_code == 0, done.output
        return done.output.splitlines()

    listed = lines("list", "--json", str(tmp_path / "list.json"))
    assert listed[1] == "*  shipped" and "monday.mcap" in listed[2] and "4.5 -> 4.0 mm" in listed[2]
    assert json.loads((tmp_path / "list.json").read_text())["versions"][0]["number"] == 1
    assert lines("use", "1")[-1] == f"version 1 is in use: {store / '0001' / 'adapted-1-int8.onnx'}"
    assert lines("list")[2].startswith("*  1 ")
    assert lines("rollback")[-1].startswith("the shipped network is in use: ")
    assert lines("use", "1") and lines("use", "shipped") and in_use(store) == SHIPPED
    for words in (["use", "7"], ["use", "last"], ["use", "-1"]):
        assert run(cli, ["models", *words]).exit_code != 0
    (store / "current.json").write_text('{"use": 7, "before": [], "proven": []}')
    assert "no version 7; it has 1" in str(run(cli, ["models", "list"]).exception)


def test_running_daemons_are_asked_and_a_refusal_changes_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, [FLOAT], "a", {})
    served: dict[str, list[str]] = {"ahead": [], "left": [], "right": []}

    def daemon(name: str, refuses: bool) -> ControlSocket:
        def answer(request: Request) -> Reply:
            if request.what == "status":
                return Reply(True, name, "", {"model_path": f"/own/{name}.onnx"})
            served[name].append(Path(request.model).name)
            refused = refuses and "adapted" in request.model
            return Reply(not refused, name, "it makes no hand" if refused else "serves from the next frame on")

        return ControlSocket(name, answer)

    def asked(path: Path, *words: Any, **options: Any) -> Reply:
        if path.stem == "ahead" and served["ahead"]:
            raise ControlError("it has ended meanwhile")
        return ask(path, *words, **options)

    monkeypatch.setattr("edge_hand.edge.networks.use.ask", asked)
    said: list[str] = []
    refused = pytest.raises(StoreError, match="version 1 is not put in use, a daemon refused it: it makes no hand")
    with daemon("ahead", False), daemon("left", False), daemon("right", True), refused:
        put_in_use(store, 1, said.append)
    assert in_use(store) == SHIPPED and said == [f"{name}: serves from the next frame on" for name in ("ahead", "left")]
    assert served == {name: ["adapted-1.onnx"] for name in ("ahead", "right")} | {
        "left": ["adapted-1.onnx", "left.onnx"]
    }
    with daemon("left", False):
        put_in_use(store, 1, said.append)
    assert in_use(store) == 1 and served["left"][-1] == "adapted-1.onnx"


def test_a_network_that_a_daemon_leaves_at_once_is_not_put_in_use(store: Path) -> None:
    add(store, [FLOAT], "a", {})

    def answer(request: Request) -> Reply:
        if request.what == "use":
            rollback(store, bad=1)  # as `health.py` does
        return Reply(True, "left", "serves from the next frame on")

    with ControlSocket("left", answer), pytest.raises(StoreError, match="version 1 is not in use, a daemon left it"):
        put_in_use(store, 1, lambda line: None)
    assert in_use(store) == SHIPPED


def test_daemons_are_not_changed_where_the_store_cannot_be(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, [FLOAT], "a", {})
    asked = []

    def full(path: Path, values: Any) -> None:
        raise OSError(28, "No space left on device")

    def answer(request: Request) -> Reply:
        asked.append(request.what)
        return Reply(True, "left", "serves from the next frame on")

    monkeypatch.setattr(model_store, "write_json", full)
    with ControlSocket("left", answer), pytest.raises(StoreError, match="no space left on device"):
        put_in_use(store, 1, lambda line: None)
    assert asked == [] and in_use(store) == SHIPPED


def test_a_daemon_that_takes_its_time_to_change_is_waited_for_and_that_is_said(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, [FLOAT], "a", {})
    told, said, waited = threading.Event(), list[str](), select.select

    def say(line: str) -> None:
        said.append(line)
        told.set()

    in_vain = SimpleNamespace(select=lambda *given: waited(*given[:-1], 0.05))
    monkeypatch.setattr("edge_hand.edge.service.control.select", in_vain)

    def answer(request: Request) -> Reply:
        return Reply(request.what == "status" or told.wait(60), "left", "serves from the next frame on")

    with ControlSocket("left", answer):
        put_in_use(store, 1, say)
    assert in_use(store) == 1 and said[0].startswith("left: makes an engine ready; ")
    assert said[1:] == ["left: serves from the next frame on"]


@pytest.mark.slow
def test_run_serves_with_the_accepted_network_and_says_so(store: Path, tmp_path: Path) -> None:
    add(store, [FLOAT], "monday.mcap", {})
    use(store, 1)

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "edge_hand.edge.cli.main", "run", "--camera", "replay", "--source", str(DEMO)]
        command += ["--bind", f"ipc://{tmp_path}/s", "--engine", "onnxruntime", "--frames", "3", "--no-view", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=dict(os.environ), check=True)
        return done.stdout

    own, shipped = run(), run("--model", "dgn-nano")
    assert "model: version 1 of this device, from monday.mcap\n" in own and "adapted-1.onnx)" in own
    assert "of this device" not in shipped and "dgn-nano.onnx)" in shipped


def test_what_measures_and_shows_takes_the_network_that_run_serves(store: Path, tmp_path: Path) -> None:
    context = click.Context(cli)
    bench = cli.get_command(context, "bench")
    assert isinstance(bench, click.Group)
    found = [*(cli.get_command(context, name) for name in ("run", "eval", "view")), bench, bench.commands["engines"]]
    defaults = [p.default for command in found if command for p in command.params if p.name == "model"]
    assert defaults == ["own"] * 5
    add(store, BOTH, "monday.mcap", {})
    use(store, 1)

    def said(*words: str) -> str:
        done = CliRunner().invoke(cli, [*words, "--engine", "onnxruntime"])
        assert done.exit_code == 0, done.output
        return done.output

    flat_out = (
        "bench",
        "--mode",
        "160x120@30",
        "--frames",
        "3",
        "--flat-out",
        "--no-startup",
        "--no-tune",
        "--no-fast",
    )
    one = ("eval", "--source", str(DEMO), "--n", "1")
    note = "model: version 1 of this device, from monday.mcap\n"
    measured = said(*flat_out)
    assert measured.startswith(note) and "adapted-1-int8 (int8" in measured
    assert said(*one).startswith(note)
    assert said(*one, "--model", "dgn-nano").startswith("model: dgn-nano.onnx\n")
    rollback(store)
    assert said(*one).startswith("model: dgn-nano-int8.onnx\n")


def test_the_health_saved_with_a_version_is_read_back(store: Path) -> None:
    version = add(store, [FLOAT], "a", {}, {"fit_mm": {"mean": 4.0, "sd": 0.5, "blocks": 9.0}})
    assert versions(store)[0].baseline == version.baseline == {"fit_mm": {"mean": 4.0, "sd": 0.5, "blocks": 9.0}}


def test_without_a_home_folder_the_shipped_network_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EDGE_HAND_STORE", "STATE_DIRECTORY", "EDGE_HAND_CACHE", "CACHE_DIRECTORY", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.delenv(f"XDG_{name}_HOME", raising=False)

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr(home, "NONE", tmp_path / "nonexistent")
    assert own_model() == (DEFAULT_MODEL, "") and versions(default_store()) == []
    assert cache_folder() == tmp_path / "nonexistent" / ".cache" / "edge-hand"
    monkeypatch.chdir(tmp_path)
    config = Path("~", ".config", "edge-hand", "config.toml")  # in a folder of this name, which is nobody's home
    config.parent.mkdir(parents=True)
    config.touch()
    assert default_path() != config
