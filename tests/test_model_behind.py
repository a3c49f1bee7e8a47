"""A network that was adapted from one that ships no more serves on, and whoever asks is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from edge_hand.edge.cli.main import cli
from edge_hand.edge.machine import doctor
from edge_hand.edge.machine.finding import Finding
from edge_hand.edge.networks.card import MODELS, behind
from edge_hand.edge.networks.store import add, own_model, use

WHY = "edge-hand ships another dgn-nano now than this was made from"
MEND = "`edge-hand adapt` again, or `edge-hand models use shipped`"


def a_model(folder: Path, **training: object) -> Path:
    """The shipped float network, trained otherwise by its card."""
    model = Path(shutil.copy(MODELS / "dgn-nano.onnx", folder / "old.onnx"))
    card = json.loads((MODELS / "dgn-nano.json").read_text())
    model.with_suffix(".json").write_text(json.dumps(card | {"training": card["training"] | training}))
    return model


def test_a_version_of_a_network_that_ships_no_more_is_told_by_run_by_models_list_and_by_the_doctor(
    tmp_path: Path,
) -> None:
    store = tmp_path / "models"
    add(store, [a_model(tmp_path, seen=500_032, seed=13)], "old.mcap", {})
    add(store, [a_model(tmp_path, commit="0000000")], "new.mcap", {})

    def listed() -> list[str]:
        return CliRunner().invoke(cli, ["models", "list", "--store", str(store)]).output.splitlines()

    use(store, 1)
    model, line = own_model(store)
    assert model.name == "adapted-1.onnx", "it serves on"
    assert line == f"model: version 1 of this device, from old.mcap; {WHY}: {MEND}"
    assert listed()[-2:] == ["* in use", f"version 1: {WHY}: {MEND}"]
    assert doctor.the_version(model) == [Finding("warn", "model", f"{model}: {WHY}", MEND.replace("`", ""))]

    use(store, 2)
    model, line = own_model(store)
    assert line == "model: version 2 of this device, from new.mcap" and listed()[-1] == "* in use"
    assert doctor.the_version(model) == []


@pytest.mark.parametrize("training", [{"net": "mine"}, {"net": None}, {"a_later_option": True}, {"net": "dgn\0"}])
def test_a_network_of_another_name_or_with_an_option_that_the_other_lacks_is_not_behind(
    tmp_path: Path, training: dict[str, object]
) -> None:
    assert behind(a_model(tmp_path, **training)) == ""
    assert behind(tmp_path / "none.onnx") == "" == behind(MODELS / "finder.onnx")


def test_what_is_adapted_from_the_weights_that_ship_is_not_behind(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from dataclasses import asdict

    from edge_hand.trainer.checkpoint import load_net, without_folders

    _, config, seen = load_net(MODELS / "dgn-nano.pt")  # an adapted checkpoint keeps both, and its export's card
    assert behind(a_model(tmp_path, **asdict(without_folders(config)), seen=seen)) == ""
