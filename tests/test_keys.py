"""Keys on real sockets: who has one hears, who has none gets nothing, and the daemon does not mind."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from click.testing import CliRunner
from edge_hand.edge.cli.main import cli
from edge_hand.edge.client import Subscription, subscribe
from edge_hand.edge.door import LOG_S
from edge_hand.edge.keys import KeysError, add_client, clients, load_client, load_server, make_server, remove_client
from edge_hand.edge.log import LOG
from edge_hand.edge.publish import Publisher, PublishError
from edge_hand.hand.wire import Header, JointsMessage, encode_joints

ANY_PORT = "tcp://127.0.0.1:*"
JOINTS = encode_joints(Header("front", 1, 1, 2, 3), [], stages_us={}, dropped=0)
QUIET_S = 0.6  # a client that is let in hears within a few ms


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_server(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def robot(folder: Path, tmp_path: Path) -> Path:
    path = add_client(folder, "robot", tmp_path / "robot.key_secret")
    assert path is not None
    return path


@pytest.fixture
def publisher(folder: Path) -> Iterator[Publisher]:
    with Publisher(ANY_PORT, keys=folder) as publisher:
        yield publisher


def hears(publisher: Publisher, keys: Path | None, seconds: float = QUIET_S) -> bool:
    """Whether a subscriber with these keys gets a message within so many seconds."""
    with subscribe(publisher.address, timeout_s=0.01, keys=keys) as messages:
        return heard(publisher, messages, seconds)


def heard(publisher: Publisher, messages: Subscription, seconds: float) -> bool:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        publisher.poll_subscriptions()
        publisher.publish(JOINTS)
        try:
            return isinstance(next(messages), JointsMessage)
        except TimeoutError:
            continue
    return False


# --- the door


def test_a_client_with_its_key_hears(publisher: Publisher, robot: Path) -> None:
    assert hears(publisher, robot, 60)


def test_a_client_without_keys_hears_nothing_and_the_others_go_on(publisher: Publisher, robot: Path) -> None:
    assert hears(publisher, robot, 60)
    assert not hears(publisher, None)
    assert hears(publisher, robot, 60)


def test_an_unknown_key_hears_nothing(publisher: Publisher, folder: Path, robot: Path, tmp_path: Path) -> None:
    make_server(tmp_path / "other")
    stranger = add_client(tmp_path / "other", "stranger", tmp_path / "stranger.key_secret")
    assert stranger is not None
    text = stranger.read_text().replace(
        load_client(stranger).server.decode(), load_server(folder).public.decode()
    )  # knows the server, who does not know it
    stranger.write_text(text)
    assert not hears(publisher, stranger)
    assert not publisher.wants("joints.front")
    assert hears(publisher, robot, 60)


def test_a_key_meant_for_another_daemon_hears_nothing(publisher: Publisher, folder: Path, tmp_path: Path) -> None:
    make_server(tmp_path / "other")
    path = add_client(tmp_path / "other", "robot", tmp_path / "r.key_secret")
    add_client(folder, "robot", public=load_client(path).public.decode())  # type: ignore[arg-type]
    assert not hears(publisher, path)


def test_a_client_with_keys_does_not_take_a_daemon_without(robot: Path) -> None:
    with Publisher(ANY_PORT) as publisher:
        assert not hears(publisher, robot)


def test_clients_added_and_removed_count_from_the_next_connection_on(publisher, folder: Path, tmp_path: Path) -> None:
    late = add_client(folder, "late", tmp_path / "late.key_secret")
    assert hears(publisher, late, 5)
    remove_client(folder, "late")
    assert not hears(publisher, late)


def test_a_key_that_is_replaced_in_its_file_is_one_no_more(
    publisher, folder: Path, robot: Path, tmp_path: Path
) -> None:
    assert hears(publisher, robot, 60)
    new = add_client(folder, "new", tmp_path / "new.key_secret")
    assert new is not None and hears(publisher, new, 5)
    file = folder / "clients" / "robot.key"
    file.write_text((folder / "clients" / "new.key").read_text())  # as `cp` does: the folder's own time stays
    assert not hears(publisher, robot) and hears(publisher, new, 5)
    file.chmod(0o644)  # anybody may have changed it
    assert not hears(publisher, new)


def test_a_key_has_one_name_so_that_who_is_removed_is_out(folder: Path, robot: Path) -> None:
    key = load_client(robot).public
    with pytest.raises(KeysError, match=r"^second: this key is that of robot, who may subscribe already$"):
        add_client(folder, "second", public=key.decode())
    copied = folder / "clients" / "third.key"
    copied.touch(0o600)
    copied.write_text((folder / "clients" / "robot.key").read_text())
    assert clients(folder) == {key: "robot, third"}


def test_who_was_refused_hears_when_its_key_is_added_and_when_the_daemon_changes(folder: Path, tmp_path: Path) -> None:
    late = add_client(folder, "late", tmp_path / "late.key_secret")
    remove_client(folder, "late")
    assert late is not None
    with Publisher(ANY_PORT, keys=folder) as publisher, subscribe(publisher.address, timeout_s=0.01) as plain:
        with subscribe(publisher.address, timeout_s=0.01, keys=late) as messages:
            assert not heard(publisher, messages, QUIET_S) and not heard(publisher, plain, QUIET_S)
            add_client(folder, "late", public=load_client(late).public.decode())
            assert heard(publisher, messages, 60)
        publisher.__exit__()
        with Publisher(publisher.address) as without_keys:
            assert heard(without_keys, plain, 60)


def test_without_its_doorkeeper_a_socket_lets_nobody_in(publisher: Publisher, robot: Path) -> None:
    assert publisher._doorkeeper is not None
    publisher._doorkeeper.stop()
    assert not hears(publisher, robot)


def test_a_damaged_list_of_clients_lets_nobody_in(publisher: Publisher, folder: Path, robot: Path) -> None:
    (folder / "clients" / "broken.key").write_text("what is this")
    (folder / "clients" / "broken.key").chmod(0o600)
    assert not hears(publisher, robot)


def test_strange_bytes_instead_of_a_handshake_leave_the_daemon_alive(publisher: Publisher, robot: Path) -> None:
    import socket

    host, port = publisher.address.removeprefix("tcp://").split(":")
    for data in (b"", b"GET / HTTP/1.0\r\n\r\n", bytes(70), b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + b"\xff" * 900):
        with socket.create_connection((host, int(port)), timeout=5) as stranger:
            stranger.sendall(data)
            time.sleep(0.02)
            publisher.poll_subscriptions()
    assert hears(publisher, robot, 60)


def test_refused_clients_are_written_once_a_minute(publisher, folder: Path, robot: Path) -> None:
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Keep(logging.WARNING)
    LOG.addHandler(handler)
    try:
        remove_client(folder, "robot")
        end_s = time.monotonic() + 60
        while publisher._doorkeeper.refused < 3 and time.monotonic() < end_s:
            assert not hears(publisher, robot, 0.2)
    finally:
        LOG.removeHandler(handler)
    assert publisher._doorkeeper.refused >= 3 and LOG_S == 60
    (record,) = records
    assert record.getMessage() == f"a client with an unknown key was refused: {load_client(robot).public.decode()}"


def test_a_timeout_with_keys_asks_whether_they_are_known(publisher: Publisher, robot: Path) -> None:
    with (
        subscribe(publisher.address, timeout_s=0.05, keys=robot) as messages,
        pytest.raises(TimeoutError, match=r"is `edge-hand run` running there, and does it know these keys\?$"),
    ):
        next(messages)


def test_beyond_this_machine_it_takes_keys_or_insecure_and_not_both(folder: Path) -> None:
    with Publisher("tcp://0.0.0.0:*", keys=folder) as publisher:
        assert publisher.address.startswith("tcp://0.0.0.0:")
    with pytest.raises(PublishError, match=r"^--insecure and --keys: choose one"):
        Publisher("tcp://0.0.0.0:*", keys=folder, insecure=True).__enter__()


def test_keys_work_over_ipc_too(folder: Path, robot: Path, tmp_path: Path) -> None:
    with Publisher(f"ipc://{tmp_path}/hands", keys=folder) as publisher:
        assert hears(publisher, robot, 60) and not hears(publisher, None)


# --- the files


def test_files_are_the_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_server(tmp_path / "keys")
        add_client(tmp_path / "keys", "robot", tmp_path / "robot.key_secret")
    finally:
        os.umask(before)
    made = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert len(made) == 5
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in made.items())


@pytest.mark.parametrize("which", [".", "server.key_secret", "clients", "clients/robot.key"])
def test_keys_that_others_can_get_at_are_refused(which: str, folder: Path, robot: Path) -> None:
    path = folder / which
    path.chmod(path.stat().st_mode | 0o040)
    with pytest.raises(KeysError, match=r"is open to other users \(mode 0[67]40\): chmod [67]00 "):
        Publisher(ANY_PORT, keys=folder).__enter__()


def test_a_clients_file_that_others_can_read_is_refused(robot: Path) -> None:
    robot.chmod(0o644)
    with pytest.raises(KeysError) as caught:
        subscribe(keys=robot)
    assert str(caught.value) == f"{robot} is open to other users (mode 0644): chmod 600 {robot}"


def test_the_daemons_folder_is_no_clients_file(folder: Path) -> None:
    with pytest.raises(KeysError) as caught:
        subscribe(keys=folder)
    words = (
        f"{folder} is a folder; a client gives NAME.key_secret, the file that edge-hand keys add {folder} NAME writes"
    )
    assert str(caught.value) == words


def test_what_is_there_is_not_lost(folder: Path, robot: Path) -> None:
    secret, key = (folder / "server.key_secret").read_bytes(), robot.read_bytes()
    with pytest.raises(KeysError, match="exists already"):
        make_server(folder)
    with pytest.raises(KeysError, match="robot is known already"):
        add_client(folder, "robot")
    with pytest.raises(KeysError, match="exists already; choose another with --out"):
        add_client(folder, "robot2", robot)
    assert ((folder / "server.key_secret").read_bytes(), robot.read_bytes()) == (secret, key)
    assert list(clients(folder).values()) == ["robot"]


def test_a_client_that_cannot_be_added_leaves_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, to: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "new.key_secret"
    with monkeypatch.context() as disk, pytest.raises(KeysError, match=r"new\.key cannot be written: no space left"):
        disk.setattr("edge_hand.edge.keys.give", full)
        add_client(folder, "new", out)
    assert not out.exists() and add_client(folder, "new", out) == out


def test_what_is_to_be_typed_can_be_typed_whatever_a_folder_is_called(tmp_path: Path) -> None:
    folder, out = tmp_path / "the keys", tmp_path / "a robot's"
    commands = ["new", str(folder)], ["add", str(folder), "robot", "--out", str(out)]
    said = [CliRunner().invoke(cli, ["keys", *arguments]).output for arguments in commands]
    assert f"edge-hand keys add '{folder}' NAME, and edge-hand run --keys '{folder}'" in said[0]
    assert shlex.split(said[1].split("edge-hand watch ")[1]) == ["--keys", str(out)]
    with pytest.raises(KeysError, match=f"edge-hand keys remove '{folder}' robot"):
        add_client(folder, "robot")
    with pytest.raises(KeysError, match=f"edge-hand keys new '{folder}/x'"):
        load_server(folder / "x")


@pytest.mark.parametrize("name", ["", ".x", "../x", "a/b", "a b", "x" * 65, "ä"])
def test_a_clients_name_is_a_plain_word(name: str, folder: Path) -> None:
    with pytest.raises(KeysError, match="expected 1 to 64 letters"):
        add_client(folder, name)


@pytest.mark.parametrize("key", ["", "x", "~" * 40, "#" * 40, "a" * 39, "ü" * 40])
def test_what_is_no_key_is_refused(key: str, folder: Path) -> None:
    with pytest.raises(KeysError, match="the public key is not a key: expected 40 characters of Z85"):
        add_client(folder, "x", public=key)


def test_a_damaged_file_says_what_is_missing(robot: Path, folder: Path) -> None:
    robot.write_text("\n".join(line for line in robot.read_text().splitlines() if "server-key" not in line))
    with pytest.raises(KeysError, match=r"has no server-key: it is no such key file, or is damaged$"):
        load_client(robot)
    with pytest.raises(KeysError, match=r"no such key file; the daemon's owner makes it: edge-hand keys add"):
        load_client(robot.with_name("none"))
    with pytest.raises(KeysError, match=r"has no server.key_secret: edge-hand keys new "):
        load_server(robot.parent)


def test_the_files_are_zmqs_own_certificates(folder: Path, robot: Path) -> None:
    from zmq.auth import load_certificate, load_certificates

    keys = load_client(robot)
    assert load_certificate(robot) == (keys.public, keys.secret)
    assert load_certificates(folder / "clients") == {keys.public: True}
    assert zmq.curve_public(keys.secret) == keys.public


# --- the commands


@pytest.mark.slow
def test_a_stranger_does_not_disturb_a_running_daemon_and_its_client_sees_the_hands(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_hand.edge.cli.main"]

    def edge_hand(*arguments: object) -> str:
        done = subprocess.run(
            [*command, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path
        )
        return done.stdout

    edge_hand("keys", "new", "keys")
    edge_hand("keys", "add", "keys", "robot")
    assert edge_hand("keys", "list", "keys").split()[0] == "robot"
    run = [*command, "run", "--camera", "synthetic", "--mode", "424x240@30", "--finder", "geometry"]
    child = subprocess.Popen(
        [*run, "--bind", "tcp://0.0.0.0:*", "--keys", "keys"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        opening = next(line for line in child.stdout if " -> " in line)
        address = opening.split(" -> ")[1].split()[0].replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(TimeoutError):
            next(subscribe(address, timeout_s=1.0))
        shown = edge_hand("watch", "--address", address, "--keys", "robot.key_secret", "--frames", 2)
        assert shown.startswith("synthetic-0 seq ")
        edge_hand("keys", "remove", "keys", "robot")
        assert edge_hand("keys", "list", "keys") == ""
        assert child.poll() is None
    finally:
        child.terminate()
        assert child.wait(60) == 0
