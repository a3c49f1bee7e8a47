"""How the program ends where its outputs are closed or Ctrl-C comes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import edge_hand.edge.cli as commands
import pytest
from click.testing import CliRunner
from edge_hand.edge.cli import cli
from test_cli import COMMAND, TIMEOUT_S


def test_a_closed_output_is_none() -> None:
    run = f"exec {' '.join(COMMAND)} run --camera synthetic --frames 2 --bind 'tcp://127.0.0.1:*' >&-"
    done = subprocess.run(run, shell=True, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("numba", "eval --data synthetic:test --n 1"),
        ("onnx", "export --checkpoint no.pt --out no.onnx"),
        ("torch", "eval --data synthetic:test --model no.pt"),
    ],
)
def test_whoever_lacks_a_package_that_a_command_needs_is_told_what_to_install(
    package: str, arguments: str, tmp_path: Path
) -> None:
    code = f"import sys; sys.modules['{package}'] = None; from edge_hand.edge.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=tmp_path,
    )  # fmt: skip
    said = f"edge-hand: this command needs {package}: pip install '.[train]' in edge-hand's folder\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_exit_code_130_and_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge_hand.edge.status.listen", interrupted)
    done = CliRunner().invoke(cli, ["status"])
    assert (done.exit_code, done.output) == (130, "")


def test_ctrl_c_while_the_program_is_being_loaded_is_the_same() -> None:
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'click': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from {} import {} as main\n"
        "main()\n"
    )
    (program,) = (Path(commands.__file__).parents[1] / "pyproject.toml").read_text().split("[project.scripts]\n")[1:]
    module, function = re.match(r'edge-hand = "(.+):(.+)"', program).groups()  # type: ignore[union-attr]
    done = subprocess.run(
        [sys.executable, "-c", code.format(module, function)],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "")
