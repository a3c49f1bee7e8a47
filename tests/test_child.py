"""Our modules in processes of their own import what this process would, wherever it was started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from edge_hand.edge.child import module_command


def test_what_lies_in_the_current_folder_is_not_imported(tmp_path: Path) -> None:
    for name in ("difflib", "runpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger was run')")
    done = subprocess.run(module_command("edge_hand.edge.cli.config"), cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_module_runs_as_with_m_and_from_where_this_process_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dir'").mkdir()
    (tmp_path / "dir'" / "told.py").write_text("import sys; print(__name__, __spec__.name, sys.argv[1:])")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, "dir'"])
    done = subprocess.run(module_command("told", "a b", "c"), cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout == "__main__ told ['a b', 'c']\n"
