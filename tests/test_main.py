"""How the program ends where its outputs are closed or Ctrl-C comes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import edge_hand.edge.cli.main as commands
import pytest
from click.testing import CliRunner
from edge_hand.edge.cli.main import cli
from edge_hand.edge.networks.card import find_model
from edge_hand.edge.service.control import ask, sockets
from test_cli import COMMAND, TIMEOUT_S, running


def test_a_closed_output_is_none() -> None:
    run = f"exec {' '.join(COMMAND)} run --camera synthetic --frames 2 --bind 'tcp://127.0.0.1:*' >&-"
    done = subprocess.run(run, shell=True, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_daemon_whose_outputs_were_closed_goes_on_and_can_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with running("--camera", "synthetic", "--fps", "10", "--no-tune", "--no-fast") as (daemon, _):
        while not (found := sockets()):
            time.sleep(0.05)
        for output in (daemon.stdout, daemon.stderr):  # `ssh` was, or what the lines were piped to
            assert output is not None
            output.close()
        used = ask(found[0], "use", find_model("dgn-nano"))
        assert used.ok and "dgn-nano " in used.message, used
        assert ask(found[0], "reload").message == "nothing to change"
        assert not ask(found[0], "use", tmp_path / "none.onnx").ok
        daemon.terminate()
        assert daemon.wait(TIMEOUT_S) == 0


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
    code = f"import sys; sys.modules['{package}'] = None; from edge_hand.edge.cli.main import main; main()"
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

    monkeypatch.setattr("edge_hand.edge.view.status.listen", interrupted)
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
    (program,) = (Path(commands.__file__).parents[2] / "pyproject.toml").read_text().split("[project.scripts]\n")[1:]
    module, function = re.match(r'edge-hand = "(.+):(.+)"', program).groups()  # type: ignore[union-attr]
    done = subprocess.run(
        [sys.executable, "-c", code.format(module, function)],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(
    "words", ["play a.mcap --speed", "record a.mcap --far", "bench --minutes", "calibrate watch rig.json --seconds"]
)
def test_nan_is_no_number_of_a_range(words: str) -> None:
    done = CliRunner().invoke(cli, [*words.split(), "nan"])
    assert done.exit_code == 2 and "nan is no number." in done.output
