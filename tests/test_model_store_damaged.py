"""A store of networks in which something is damaged: nothing of it is served, and nothing else is hidden by it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from edge_hand.edge.cli.main import cli
from edge_hand.edge.networks import store as model_store
from edge_hand.edge.networks.card import DEFAULT_MODEL, MODELS, load_card, sha256
from edge_hand.edge.networks.health import BLOCK, EARLY, Health
from edge_hand.edge.networks.store import StoreError, add, check, check_store, current, number_of, own_model, use

FLOAT = MODELS / "dgn-nano.onnx"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "models"


def test_a_changed_file_is_never_put_in_use_and_the_daemon_says_so_and_serves_as_shipped(store: Path) -> None:
    version = add(store, [FLOAT], "a", {})
    use(store, 1)
    version.model.chmod(0o644)
    damaged = bytearray(version.model.read_bytes())
    damaged[1000] ^= 1
    version.model.write_bytes(damaged)
    with pytest.raises(StoreError, match="is not the file that was accepted"):
        check(version)
    with pytest.raises(StoreError):
        use(store, 1)
    with pytest.raises(StoreError, match="is not the file that was accepted; `edge-hand models use shipped`"):
        check_store(store)  # before an adaptation, which would be judged against it
    model, line = own_model(store)
    assert model == DEFAULT_MODEL and line.startswith("model: dgn-nano-int8 as shipped, since ") and "\n" not in line


def test_a_version_without_its_hashes_is_passed_over_too(store: Path) -> None:
    about = add(store, [FLOAT], "a", {}).folder / "version.json"
    use(store, 1)
    values = json.loads(about.read_text())
    del values["sha256"]
    about.chmod(0o644)
    about.write_text(json.dumps(values))
    with pytest.raises(
        StoreError,
        match=r"0001: version\.json or gate\.json is damaged; remove this folder; if it is the one in use, after ",
    ):
        current(store)
    assert own_model(store)[0] == DEFAULT_MODEL


@pytest.mark.parametrize(
    "change",
    [
        {"over": math.inf}, {"baseline": {"seen": 0.9}}, {"baseline": []}, {"sha256": {"\0": "0"}},
        {"baseline": {"seen": {"mean": "much", "sd": 0, "blocks": 9}}},
    ],
)  # fmt: skip
def test_a_version_that_says_what_cannot_be_is_passed_over(store: Path, change: dict[str, Any]) -> None:
    about = add(store, [FLOAT], "a", {}).folder / "version.json"
    use(store, 1)
    values = json.loads(about.read_text()) | change
    about.chmod(0o644)
    about.write_text(json.dumps(values))
    model, line = own_model(store)
    assert model == DEFAULT_MODEL and line.startswith("model: dgn-nano-int8 as shipped, since ") and "\n" not in line


@pytest.mark.parametrize("field", ["version", "outputs"])
def test_a_version_that_another_release_accepted_is_passed_over_and_the_way_on_is_said(store: Path, field: str) -> None:
    folder = add(store, [FLOAT], "a", {}).folder
    use(store, 1)
    about, card = folder / "version.json", folder / "adapted-1.json"
    values, accepted = json.loads(card.read_text()), json.loads(about.read_text())
    other = {"version": 1, "outputs": values["outputs"] | {"vertices_uvd": [1, 778, 3]}}
    for path in (about, card):
        path.chmod(0o644)
    card.write_text(json.dumps(values | {field: other[field]}))
    about.write_text(json.dumps(accepted | {"sha256": accepted["sha256"] | {card.name: sha256(card)}}))
    model, line = own_model(store)
    assert model == DEFAULT_MODEL and line.startswith("model: dgn-nano-int8 as shipped, since model ")
    way = "; `edge-hand models use shipped`, or another"
    assert line.endswith(way)
    for refused in (lambda: check_store(store), lambda: use(store, 1)):
        with pytest.raises(StoreError, match=f"{way}$"):
            refused()


@pytest.mark.parametrize("measures", [[], {"fit_p50_mm": {}}, {"fit_p50_mm": {"old": None, "new": 1}}])
def test_a_report_of_another_make_is_listed_without_its_numbers(store: Path, measures: Any) -> None:
    add(store, [FLOAT], "a", {"measures": measures})
    done = CliRunner().invoke(cli, ["models", "list", "--store", str(store)])
    assert done.exit_code == 0 and done.output.splitlines()[2].split()[-3:] == ["-", "-", "-"]


def test_a_baseline_without_a_measure_ends_no_daemon() -> None:
    def nothing(frame: object) -> list[object]:
        return []

    nothing.threshold, nothing.judges = 0.5, True  # type: ignore[attr-defined]
    tracker: Any = SimpleNamespace(finder=nothing, engine=SimpleNamespace(card=load_card(FLOAT)), tracks=[])
    health = Health(tracker, pytest.fail, lambda card: {})
    for _ in range(BLOCK * (EARLY + 1)):
        tracker.finder.sure = True  # of a hand that is not measured
        health.frame()
    assert health.watching


@pytest.mark.parametrize("name", ["gate.json", "adapted-1.json"])
def test_a_damaged_old_version_hides_no_other(store: Path, name: str) -> None:
    old = add(store, [FLOAT], "a", {}).folder / name
    add(store, [DEFAULT_MODEL], "b", {})
    use(store, 2)
    old.chmod(0o644)
    old.write_text("{")
    assert number_of(store, load_card(DEFAULT_MODEL).sha256) == 2
    check_store(store)
    assert add(store, [FLOAT], "c", {}).number == 3
    with pytest.raises(StoreError):
        use(store, 1)


def test_a_damaged_version_is_listed_as_such_in_use_or_not(store: Path, tmp_path: Path) -> None:
    gate = add(store, [FLOAT], "a", {}).folder / "gate.json"
    add(store, [DEFAULT_MODEL], "b", {})
    gate.chmod(0o644)
    gate.write_text("{")
    for used in (2, 1):
        (store / "current.json").write_text(json.dumps({"use": used, "before": [], "proven": []}))
        done = CliRunner().invoke(cli, ["models", "list", "--store", str(store), "--json", str(tmp_path / "list.json")])
        listed = done.output.splitlines()
        assert done.exit_code == 0 and listed[2].split() == ["*"] * (used == 1) + ["1", "damaged"], done.output
        assert listed[3].split()[used == 2] == "2" and "remove this folder" in done.output
        written = json.loads((tmp_path / "list.json").read_text())
        assert [v["number"] for v in written["versions"]] == [2] and len(written["damaged"]) == 1


def test_a_version_that_may_not_be_read_is_passed_over_too(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, [FLOAT], "a", {})
    use(store, 1)

    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(model_store, "sha256", forbidden)  # root, who may run this test, may read any file
    assert own_model(store)[0] == DEFAULT_MODEL


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"use": "two", "before": [], "proven": []}',
        "[]",
        '{"use": 1e999, "before": [], "proven": []}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_damaged_pointer_is_one_line_and_the_daemon_serves_as_shipped(store: Path, text: str) -> None:
    store.mkdir()
    (store / "current.json").write_text(text)
    with pytest.raises(StoreError, match=r"current\.json is damaged; remove it"):
        current(store)
    assert own_model(store)[0] == DEFAULT_MODEL
