"""Kept results are of the settings they are shown for."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from edge_hand.trainer.kept import claim


def test_a_folder_is_gone_on_with_by_the_same_settings_only(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    claim(folder, {"network": "a", "fps": 60.0})
    (folder / "0_0.npz").touch()
    claim(folder, {"network": "a", "fps": 60.0})
    with pytest.raises(click.ClickException, match=r"results of other settings \(network a for b\); choose another fo"):
        claim(folder, {"network": "b", "fps": 60.0})
    with pytest.raises(click.ClickException, match=r"\(steps None for 3\)"):
        claim(folder, {"network": "a", "fps": 60.0, "steps": 3})


def test_results_of_unknown_settings_are_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "before.json").touch()
    with pytest.raises(click.ClickException, match="results of unknown settings"):
        claim(tmp_path, {"network": "a"})
