"""The configuration file: names of the flags, flags over environment over file, and nothing unknown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from edge_hand.calibration.fuse_cli import fuse
from edge_hand.edge.cli import config
from edge_hand.edge.cli.config import MAX_BYTES, ConfigError, default_path, read_config, shown
from edge_hand.edge.cli.main import cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RUN = cli.commands["run"]


@pytest.fixture(autouse=True)
def nobodys_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    for name in [name for name in os.environ if name.startswith("EDGE_HAND_") or name == "RUNTIME_DIRECTORY"]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(
        'camera = "synthetic"\nhands = 1\nsmooth = false\nfps = 20\n[cameras.left]\nsource = "7"\nhands = 3\n'
    )
    return path


def parsed(*flags: object) -> click.Context:
    return RUN.make_context("run", [str(flag) for flag in flags])


def refusal(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parsed("--config", path)
    assert str(caught.value).startswith(f"config {path}: ") and "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"config {path}: ")


def test_the_file_sets_what_a_flag_would(file: Path) -> None:
    params = parsed("--config", file).params
    assert (params["camera"], params["hands"], params["smooth"], params["fps"]) == ("synthetic", 1, False, 20.0)
    assert params["threads"] == 0  # not in the file


def test_a_file_that_windows_notepad_wrote_is_read(file: Path) -> None:
    before = read_config(file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_config(file) == before


def test_flags_beat_the_environment_which_beats_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_HAND_HANDS", "2")
    assert parsed("--config", file).params["hands"] == 2
    assert parsed("--config", file, "--hands", 4).params["hands"] == 4
    assert parsed("--config", file, "--smooth").params["smooth"] is True
    monkeypatch.setenv("EDGE_HAND_SMOOTH", "true")
    assert parsed("--config", file).params["smooth"] is True


def test_the_users_file_is_taken_unless_another_is_named(file: Path, tmp_path: Path) -> None:
    assert default_path() in (None, Path("/etc/edge-hand/config.toml"))
    users = tmp_path / "xdg" / "edge-hand" / "config.toml"
    users.parent.mkdir(parents=True)
    users.write_text("hands = 5\n")
    assert default_path() == users
    assert parsed().params["hands"] == 5
    assert parsed("--config", file).params["hands"] == 1
    users.write_text("hands = wrong")
    assert parsed("--config", file, "--instance", "left").params["hands"] == 3  # not even read


def test_a_file_that_may_not_be_looked_for_is_no_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "etc" / "edge-hand"
    folder.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/none")
    monkeypatch.setattr(config, "SYSTEMS", folder / "config.toml")
    assert default_path() is None
    config.SYSTEMS.touch()
    folder.parent.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may look into every folder
        with pytest.raises(ConfigError, match=r"^config .*: permission denied; sudo chmod a\+rx .*/etc/edge-hand, or "):
            default_path()
        monkeypatch.delenv("XDG_CONFIG_HOME")
        monkeypatch.setenv("HOME", str(folder.parent))  # that a service does not see
        monkeypatch.setattr(config, "SYSTEMS", Path("/none/config.toml"))
        assert default_path() is None
    finally:
        os.seteuid(user)
        folder.parent.chmod(0o755)


def test_an_instance_takes_its_table_over_the_rest_in_either_order(file: Path) -> None:
    for flags in (("--config", file, "--instance", "left"), ("--instance", "left", "--config", file)):
        params = parsed(*flags).params
        assert (params["hands"], params["source"], params["camera"]) == (3, "7", "synthetic")


@pytest.mark.parametrize("further", ["", ":/run/more"])  # a unit may have several folders
def test_an_instance_without_a_table_is_a_serial_number_and_under_systemd_has_its_own_socket(
    further: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"/run/edge-hand-0123{further}")
    params = parsed("--config", file, "--instance", "0123").params
    assert (params["source"], params["hands"], params["bind"]) == ("0123", 1, "ipc:///run/edge-hand-0123/hands")


def test_an_instance_with_spaces_is_found_by_the_name_that_systemd_makes_of_it(file: Path) -> None:
    file.write_text('[cameras."front left ü"]\nsource = "1"\n[cameras.front-left]\nsource = "2"\n')
    names = {r"front\x20left\x20\xc3\xbc": "1", "front left ü": "1", "front-left": "2", "0123": "0123"}
    for name, source in names.items():
        assert parsed("--config", file, "--instance", name).params["source"] == source


def test_an_unknown_name_is_refused_with_the_nearest_known(file: Path) -> None:
    assert refusal(file, "thread = 2") == "'thread' is unknown; did you mean threads?"
    assert refusal(file, "camra = 2") == "'camra' is unknown; did you mean camera?"
    assert refusal(file, "xyzzy = 2") == "'xyzzy' is unknown"
    assert refusal(file, "[camera]\nx = 1").startswith("camera = ")
    assert refusal(file, "[cameras.left]\nsorce = 1") == "[cameras.left]: 'sorce' is unknown; did you mean source?"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hands = 2.7", "hands = 2.7: expected a whole number"),
        ("hands = true", "hands = true: expected a whole number"),
        ("hands = 99", "hands = 99: 99 is not in the range 1<=x<=8."),
        ('hands = "2"', 'hands = "2": expected a whole number'),
        ("smooth = 1", "smooth = 1: expected true or false"),
        ("source = 123", 'source = 123: expected text in quotes, "..."'),
        ('log = "xml"', "log = \"xml\": 'xml' is not one of 'text', 'json'."),
        ("[camera.left]", 'camera = "{\'left\': {}}": expected text in quotes, "..."; did you mean [cameras.left]?'),
        ("insecure = true", "insecure cannot stand here: it must be typed on the command line"),
        (
            'record = "h.mcap"',
            "record cannot stand here: a file is never overwritten, so no service could start twice; type it",
        ),
        ("cameras = 1", "cameras: expected tables such as [cameras.left]"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(text: str, said: str, file: Path) -> None:
    assert refusal(file, text) == said


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("HAND", "HANDS"), ("CAMRA", "CAMERA"), ("REFITPLANS", "REFIT_PLANS"),
        ("NO_TUNE", "TUNE=0"), ("NO_FAST", "FAST=0"), ("NO_SMOOTH", "SMOOTH=0"),
    ],
)  # fmt: skip
def test_a_misspelt_variable_is_refused(variable: str, meant: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"EDGE_HAND_{variable}", "1")
    with pytest.raises(ConfigError) as caught:
        parsed("--config", file)
    assert str(caught.value) == f"environment: EDGE_HAND_{variable} is unknown; did you mean EDGE_HAND_{meant}?"


def test_variables_of_others_are_left_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_fuse = [f"FUSE_{option.name.upper()}" for option in fuse.params if option.name]
    ours = [option.name.upper() for option in RUN.params if option.name not in ("config", "instance", "help")]
    for name in ["CACHE", "STORE", "ANNY_WHEEL", "MEDIAPIPE_PYTHON", "RENDEZVOUS", "PORT", "SERVICE_HOST", *of_fuse]:
        monkeypatch.setenv(f"EDGE_HAND_{name}", "1")
    assert parsed("--config", file).params["hands"] == 1
    for name in ours:
        monkeypatch.setenv(f"EDGE_HAND_{name}", "")
    assert parsed("--config", file).params["hands"] == 1


def test_a_wrong_value_of_a_variable_says_which_command_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_HAND_HANDS", "x")
    done = CliRunner().invoke(cli, ["config"], prog_name="edge-hand")
    assert done.exit_code == 2 and done.stderr.startswith("Usage: edge-hand run [OPTIONS]\n")


def test_insecure_is_typed_and_nothing_else(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_HAND_INSECURE", "1")
    assert parsed("--config", file).params["insecure"] is False
    assert parsed("--config", file, "--insecure").params["insecure"] is True


def test_the_environment_names_no_recording_which_a_second_start_would_not_overwrite(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_HAND_RECORD", "h.mcap")
    assert parsed("--config", file).params["record"] is None
    assert parsed("--config", file, "--record", "h.mcap").params["record"] == Path("h.mcap")


def test_a_file_that_is_no_toml_is_refused(file: Path) -> None:
    assert refusal(file, "hands = ").startswith("not TOML (Invalid value")
    assert refusal(file, "a = " + "[" * 20_000).startswith("not TOML (")
    assert refusal(file, "#" * (MAX_BYTES + 1)) == f"over {MAX_BYTES} bytes"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        read_config(file)
    with pytest.raises(ConfigError, match=r"none.toml: no such file or directory$"):
        parsed("--config", file.with_name("none.toml"))


def test_show_says_every_value_and_where_it_is_from(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_HAND_THREADS", "2")
    lines = shown(parsed("--config", file, "--mode", "424x240@30"))
    said = {line.split(" ")[0]: (line.split("# ")[0].strip(), line.split("# ")[-1]) for line in lines}
    assert said["hands"] == ("hands = 1", str(file))
    assert said["threads"] == ("threads = 2", "environment, EDGE_HAND_THREADS")
    assert said["mode"] == ('mode = "424x240@30"', "command line")
    assert said["bind"] == ('bind = "tcp://127.0.0.1:5555"', "default")
    assert "# keys is not set" in "\n".join(lines) and "# insecure = false" in "\n".join(lines)
    names = {option.opts[0].lstrip("-") for option in RUN.params} - {"config", "instance"}
    assert names == {line.removeprefix("# ").split(" ")[0] for line in lines}


def test_what_is_shown_is_itself_a_configuration(file: Path, tmp_path: Path) -> None:
    context = parsed("--config", file)
    text = "\n".join(shown(context))
    again = tmp_path / "again.toml"
    again.write_text(text)
    assert tomllib.loads(text)["smooth"] is False and tomllib.loads(text)["model"] == "own"
    assert parsed("--config", again).params == context.params


def test_the_commands_use_it(file: Path) -> None:
    def edge_hand(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edge_hand.edge.cli.main", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = edge_hand("config", "--show", "--config", file, "--instance", "left", "--threads", 2)
    assert done.returncode == 0 and "hands = 3 " in done.stdout and "threads = 2 " in done.stdout, done.stderr
    assert edge_hand("config", "--config", file).stdout == f"{file}: all is well\n"
    file.write_text("hnds = 1")
    done = edge_hand("run", "--config", file)
    assert (done.returncode, done.stderr) == (2, f"edge-hand: config {file}: 'hnds' is unknown; did you mean hands?\n")
