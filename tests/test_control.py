"""The control socket: private, bounded, and never in the way of the loop."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from edge_hand.edge.cli import control as cli_control
from edge_hand.edge.cli.main import cli
from edge_hand.edge.engines.tensorrt.plan import BUILD_LIMIT_S
from edge_hand.edge.service import control
from edge_hand.edge.service.control import (
    MAX_REQUEST,
    ControlError,
    ControlSocket,
    Reply,
    Request,
    ask,
    decode_reply,
    decode_request,
    encode_reply,
    sockets,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's daemons have their sockets, and no other's."""
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "edge-hand"


def answer(request: Request) -> Reply:
    if request.what == "reload":
        raise ValueError("this\ncannot be")
    return Reply(True, "front", f"{request.what} {request.model}".strip(), {"frames": 7})


def raw(path: Path, data: bytes, end: bool = True) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        try:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(4096), b""))
        except (BrokenPipeError, ConnectionResetError):
            return b""


def test_a_daemon_is_found_and_answers(folder: Path) -> None:
    assert sockets() == []
    with ControlSocket("front", answer) as daemon:
        assert daemon.path == folder / "front.sock" and sockets() == [daemon.path]
        assert ask(daemon.path, "status") == Reply(True, "front", "status", {"frames": 7})
        assert ask(daemon.path, "reload") == Reply(False, "front", "this cannot be", {})
        assert ask(daemon.path, "use", Path("net.onnx")).message == f"use {os.getcwd()}/net.onnx"
    assert sockets() == [] and list(folder.iterdir()) == []
    with pytest.raises(ControlError, match=r"front\.sock: no daemon can be asked there \(no such file or directory\)$"):
        ask(folder / "front.sock", "status")


def test_a_service_has_its_sockets_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert control.default_folder() == tmp_path / "edge-hand"
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/run:{tmp_path}/other")
    assert control.default_folder() == tmp_path / "run"
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert control.default_folder() == Path(f"/tmp/edge-hand-{os.getuid()}")


def test_only_its_user_can_reach_it(folder: Path) -> None:
    with ControlSocket("front", answer) as daemon:
        assert stat.S_IMODE(os.stat(daemon.path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(ControlError, match="the folder is another user's or open to others"):
        ControlSocket("front", answer).__enter__()


def test_two_cameras_of_a_name_have_two_sockets_and_a_dead_one_makes_room(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(folder / "front.sock"))
    dead.close()  # as after kill -9: the name is there, nobody listens
    assert sockets() == []
    with ControlSocket("front", answer) as first, ControlSocket("front", answer) as second:
        assert first.path == folder / "front.sock" and second.path == folder / f"front-{os.getpid()}.sock"
        assert set(sockets()) == {first.path, second.path}


def test_a_socket_that_is_cleaned_away_comes_back_and_another_daemon_keeps_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "LOOK_S", 0.05)
    second = f"front-{os.getpid()}.sock"
    with ControlSocket("front", answer) as daemon:
        shutil.rmtree(folder)  # as /tmp is cleaned of what is old, and a session's folder goes with it
        until(lambda: sockets() == [folder / "front.sock"])
        assert ask(daemon.path, "status").ok and stat.S_IMODE(os.stat(daemon.path).st_mode) == 0o600
        daemon.path.unlink()
        with ControlSocket("front", answer) as other:  # took the name, or comes second
            until(lambda: {path.name for path in sockets()} == {"front.sock", second})
            daemon.__exit__()
            assert sockets() == [other.path] and ask(other.path, "status").ok


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_daemons_of_a_session_and_of_none_find_each_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, none = f"{tmp_path}/session-{{}}", f"{tmp_path}/none-{{}}"
    monkeypatch.setattr(control, "USERS", (session, none))
    where = [Path(name.format(os.getuid())) for name in (session, none)]
    with ControlSocket("a", answer, where[0]) as a, ControlSocket("b", answer, where[1]) as b:
        assert sockets() == [a.path, b.path]
        where[1].chmod(0o777)  # anybody could have put it there
        assert sockets() == [a.path]
        monkeypatch.setattr(control, "default_folder", lambda: where[1])  # as with sudo, which has no session
        assert sockets() == [a.path]


def test_daemons_behind_a_closed_door_are_not_said_to_be_none(folder: Path) -> None:
    folder.mkdir(mode=0)  # as a service's folder is to all but its user and group
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may look into every folder
        with pytest.raises(ControlError, match=r"^/\S+: not permitted for this user; run it as the daemon's user, or"):
            sockets()
    finally:
        os.seteuid(user)


def test_a_name_cannot_leave_the_folder(folder: Path) -> None:
    with ControlSocket("../../etc/pässwd x", answer) as daemon:
        assert daemon.path.parent == folder and daemon.path.name == "______etc_p_sswd_x.sock"


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tight = tmp_path / ("x" * (95 - len(str(tmp_path))))  # a camera's name has no room in it
    for path in (tmp_path / "file" / "x", tmp_path / ("x" * 120), tight):
        with pytest.raises(ControlError) as seen:
            ControlSocket("front-left", answer, path).__enter__()
        assert str(seen.value).startswith(f"control socket in {path}: ") and "\n" not in str(seen.value)


@pytest.mark.parametrize(
    "line",
    [
        b"\n", b"[]\n", b"nonsense\n", b'{"request": "format"}\n', b'{"request": 1}\n', b"[" * 4000 + b"\n",
        b'{"request": "use", "model": "net.onnx"}\n', b'{"request": "use", "model": ["/net.onnx"]}\n', b"\xff\xfe\n",
        b'{"request": "status", "more": 1}\n', b'{"request": "use"}\n',
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_in_one_line(line: bytes) -> None:
    with ControlSocket("front", answer) as daemon:
        reply = decode_reply(raw(daemon.path, line))
    assert not reply.ok and reply.message and "\n" not in reply.message


def test_too_long_or_half_a_request_gets_no_answer_and_costs_nothing() -> None:
    with ControlSocket("front", answer) as daemon:
        assert raw(daemon.path, b"x" * (MAX_REQUEST + 1)) == b""
        assert raw(daemon.path, b'{"request"') == b""
        assert raw(daemon.path, b"") == b""
        assert ask(daemon.path, "status").ok


def test_clients_that_say_nothing_are_shown_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE_S", 0.2)
    with ControlSocket("front", answer) as daemon:
        silent = [socket.socket(socket.AF_UNIX) for _ in range(12)]  # more than are served at once
        for client in silent:
            client.connect(str(daemon.path))
        assert ask(daemon.path, "status", timeout_s=60).ok
        for client in silent:
            client.close()


def test_who_waits_for_a_model_keeps_nobody_from_asking() -> None:
    asked, release = threading.Event(), threading.Event()

    def slow(request: Request) -> Reply:
        if request.what == "use":
            asked.set()
            release.wait(60)
        return answer(request)

    with ControlSocket("front", slow) as daemon:
        waiting = threading.Thread(target=ask, args=(daemon.path, "use", Path("/net.onnx")))
        waiting.start()
        assert asked.wait(60)
        assert ask(daemon.path, "status", timeout_s=50).ok and waiting.is_alive()
        release.set()
        waiting.join(50)
        with pytest.raises(ControlError, match=r"front.sock: the daemon did not answer within 0.1 s$"):
            release.clear()
            ask(daemon.path, "use", Path("/net.onnx"), timeout_s=0.1)
        release.set()


def test_a_change_is_waited_for_as_long_as_plans_take_to_build_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release, said, waits = threading.Event(), list[str](), list[float]()
    connected, waited = control._connected, select.select

    def slow(request: Request) -> Reply:
        assert request.what == "status" or release.wait(60)
        return Reply(True, "front", f"did {request.what}")

    def noted(path: Path, timeout_s: float) -> socket.socket:
        waits.append(timeout_s)
        return connected(path, timeout_s)

    def in_vain(*given: Any) -> Any:
        found = waited(*given[:-1], 0.05)
        release.set()
        return found

    monkeypatch.setattr(control, "select", SimpleNamespace(select=in_vain))
    with ControlSocket("front", slow) as daemon:
        monkeypatch.setattr(control, "_connected", noted)
        assert ask(daemon.path, "status", say=said.append).ok and not said and waits.pop() <= 60
        for request in control.CHANGES:
            release.clear()
            assert ask(daemon.path, request, Path("/net.onnx"), say=said.append).message == f"did {request}"
            assert said.pop().startswith("front: makes an engine ready; ")
            assert waits.pop() > 2 * BUILD_LIMIT_S  # another daemon's build, and its own
        release.clear()
        lines = CliRunner().invoke(cli, ["reload"]).output.splitlines()
        assert len(lines) == 2 and lines[0].startswith("front: makes ") and lines[1] == "front: did reload"


def test_a_daemon_that_is_silent_keeps_no_other_from_reloading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def willing(request: Request) -> Reply:
        return Reply(True, "front", "now hands = 2")

    connected = control._connected
    monkeypatch.setattr(cli_control, "STATUS_S", 0.1)
    monkeypatch.setattr(control, "_connected", lambda path, s: connected(path, s if path.stem == "a" else 60))
    with ControlSocket("front", willing), socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(folder / "a.sock"))  # before the other, and it never answers
        stopped.listen()
        done = CliRunner().invoke(cli, ["reload", "--camera", "front"])
        assert (done.exit_code, done.output) == (0, "front: now hands = 2\n")
        done = CliRunner().invoke(cli, ["reload"])
        assert done.output.splitlines() == [
            f"{folder}/a.sock: the daemon did not answer within 0.1 s",
            "front: now hands = 2",
        ]
        assert str(done.exception) == "reload: refused or not answered by a"
        stopped_too = str(CliRunner().invoke(cli, ["reload", "--camera", "a"]).exception)
        assert stopped_too == "reload: refused or not answered by a", "not that none runs"


def test_an_answer_of_another_make_is_one_line() -> None:
    for line in (b"", b"[]", b'{"ok": 1, "camera": "", "message": "", "values": {}}', b'{"ok": true}', b"[" * 9999):
        with pytest.raises(ControlError):
            decode_reply(line)
    assert decode_reply(encode_reply(Reply(False, "a", "b" * 9999))) == Reply(False, "a", "b" * 2000)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["request", "model", "x"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_comes_is_a_request_or_a_one_line_refusal(line: bytes) -> None:
    try:
        request = decode_request(line)
    except ControlError as error:
        assert "\n" not in str(error)
    else:
        assert request.what in control.REQUESTS
