"""The units as systemd's own tools read them, and what installing does to files that are there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from edge_hand.edge.service import units as service
from edge_hand.edge.service.units import (
    FILES,
    SOURCE,
    ServiceError,
    check_reachable,
    install,
    service_files,
)

PROGRAM = Path("/usr/bin/env")  # systemd-analyze wants one that is there
UNITS = ["edge-hand.service", "edge-hand@.service"]
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def written(folder: Path) -> dict[str, Path]:
    """The files installed under a folder, by name."""
    files = service_files(PROGRAM, folder)
    install(files)
    return {file.name: file.path for file in files}


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    assert ANALYZE is not None
    return subprocess.run([ANALYZE, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_to_say_about_the_units(unit: str, tmp_path: Path) -> None:
    done = analyze("verify", written(tmp_path)[unit])
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_that_check_sees_a_key_that_systemd_does_not_know(tmp_path: Path) -> None:
    unit = written(tmp_path)["edge-hand.service"]
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSex="))
    assert "WatchdogSex" in analyze("verify", unit).stderr


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_the_units_are_little_exposed(unit: str, tmp_path: Path) -> None:
    done = analyze("security", "--offline=true", written(tmp_path)[unit])
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert level and float(level[1]) <= 2.5, done.stdout + done.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_the_units_leave_usb_and_gpu_alone(unit: str) -> None:
    keys = set(re.findall(r"^(\w+)=", (SOURCE / unit).read_text(), re.MULTILINE))
    # ProtectClock implies DeviceAllow=char-rtc, which until systemd 253 shut out every other device.
    taking = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute", "PrivateUsers"}
    assert not keys & taking
    assert {"WatchdogSec", "Restart", "ProtectSystem", "SystemCallFilter", "NoNewPrivileges"} <= keys


def test_the_unit_of_one_camera_differs_only_where_it_must() -> None:
    one, each = ((SOURCE / unit).read_text().splitlines() for unit in UNITS)
    assert [line for line in one if line not in each and not line.startswith("#")] == [
        "Description=edge-hand: hand tracking from a depth camera",
        "ExecStart=@EDGE_HAND@ run",
        "RuntimeDirectory=edge-hand",
    ]
    assert "ExecStart=@EDGE_HAND@ run --instance %i" in each


def test_every_file_of_the_folder_is_installed_and_none_keeps_the_placeholder(tmp_path: Path) -> None:
    assert {name for name, _, _ in FILES} == {path.name for path in SOURCE.iterdir()}
    for path in written(tmp_path).values():
        assert "@EDGE_HAND@" not in path.read_text() and path.stat().st_mode & 0o777 == 0o644


def test_udev_rules_are_single_lines_of_matches_and_assignments() -> None:
    pair = r'(?:ENV|ATTRS?|TEST)?(?:\{[\w/]+\})?\w*(?:==|\+=|=)"[^"]*"'
    rules = [line for line in (SOURCE / "70-edge-hand.rules").read_text().splitlines() if not line.startswith("#")]
    assert len(rules) >= 5
    for line in rules:
        assert re.fullmatch(rf"{pair}(, {pair})*", line), line
        assert "0666" not in line and "RUN" not in line


def test_udev_reads_the_rules_before_those_that_act_on_them(tmp_path: Path) -> None:
    """systemd's 73-seat-late.rules gives whoever sits at the machine what has the tag uaccess by then."""
    (rules,) = (path for path in written(tmp_path).values() if path.suffix == ".rules")
    assert "uaccess" in rules.read_text() and "60-" < rules.name < "73-"
    old = rules.with_name("99-edge-hand.rules")
    old.write_text("")
    assert install(service_files(PROGRAM, tmp_path))[-1] == f"old, of no use any more: sudo rm {old}"


def test_the_service_s_user_can_read_what_a_cautious_root_installs(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir(mode=0o700)
    before = os.umask(0o077)
    try:
        written(tmp_path)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_dir() and path.name != "etc"}
    assert modes == {0o755} and (tmp_path / "etc").stat().st_mode & 0o777 == 0o700


def test_installing_twice_changes_nothing_and_an_owners_file_stays(tmp_path: Path) -> None:
    files = service_files(PROGRAM, tmp_path)
    assert all(line.startswith("wrote ") for line in install(files))
    (tmp_path / "etc/edge-hand/config.toml").write_text("hands = 1\n")
    assert all(line.startswith("kept ") for line in install(files, force=True))
    assert (tmp_path / "etc/edge-hand/config.toml").read_text() == "hands = 1\n"


def test_a_changed_unit_is_replaced_only_by_force_and_then_nothing_else_was_written(tmp_path: Path) -> None:
    files = service_files(PROGRAM, tmp_path)
    unit = tmp_path / "etc/systemd/system/edge-hand@.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\n")
    with pytest.raises(ServiceError) as caught:
        install(files)
    assert str(caught.value) == f"{unit}: not what this edge-hand writes; --force to replace"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [unit]
    assert f"replaced {unit}" in install(files, force=True)


@pytest.mark.parametrize("program", ["edge-hand", "/opt/my hand/edge-hand", "/opt/%h/edge-hand"])
def test_a_program_a_unit_cannot_name_is_refused(program: str) -> None:
    with pytest.raises(ServiceError, match="expected an absolute path without spaces"):
        service_files(Path(program))


def test_a_program_the_service_could_not_see_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "edge-hand"
    with pytest.raises(ServiceError, match=r"there is no such program$"):
        check_reachable(program)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with pytest.raises(ServiceError, match="the service sees no home or temporary folders"):
        check_reachable(program)
    check_reachable(PROGRAM)


def test_this_program_is_refused_if_what_it_needs_is_out_of_the_service_s_sight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, opt = tmp_path / "home", tmp_path / "opt"
    for folder in (home, opt):
        folder.mkdir()
        (folder / "python").touch()
    program = opt / "edge-hand"
    program.touch(0o755)
    (opt / "link").symlink_to(home / "python")  # as uv and pyenv have it
    monkeypatch.setattr(service, "UNREADABLE", (f"{home}/",))
    monkeypatch.setattr(service, "SOURCE", opt / "systemd")
    for name, value in (("argv", [str(program)]), ("prefix", str(opt)), ("executable", str(opt / "python"))):
        monkeypatch.setattr(sys, name, value)
    check_reachable(program)
    for where, name, value, needed in (
        (sys, "executable", str(opt / "link"), home / "python"),
        (sys, "prefix", str(home / "venv"), home / "venv"),
        (service, "SOURCE", home / "src/systemd", home / "src"),  # pip install -e
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            check_reachable(PROGRAM)  # what another one needs is not known
            with pytest.raises(ServiceError, match=rf"^program {program}: the service .*, and it needs {needed};"):
                check_reachable(program)


def test_the_command_prints_and_writes_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_hand.edge.cli.main", "service"]
    done = subprocess.run(
        [*command, "print", "edge-hand.service", "--program", "/opt/x/edge-hand"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "\nExecStart=/opt/x/edge-hand run\n" in done.stdout
    done = subprocess.run(
        [*command, "install", "--prefix", str(tmp_path), "--program", str(PROGRAM)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == f"wrote {tmp_path}/etc/systemd/system/edge-hand.service" and lines[-1].startswith("next: ")
