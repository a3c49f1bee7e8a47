"""`edge-hand status`: what it says of daemons that run, stall or are not there, and its exit codes."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
from click.testing import CliRunner
from edge_hand.edge.cli.main import cli
from edge_hand.edge.client import forbidden, subscribe
from edge_hand.edge.publish import Publisher
from edge_hand.edge.view.status import OK, STALLED, UNREACHABLE, Fare, duration, exit_code, listen, report
from edge_hand.hand.wire import Header, decode, encode_joints, encode_status
from test_wire import a_hand

NUMBERS = {"frames": 1234, "dropped": 12, "bad_frames": 1, "engine": "onnxruntime", "model": "dgn-nano 0123"}


def joints(seq: int, camera: str = "front", captured_ns: int = 0) -> list[bytes]:
    header = Header(camera, seq, captured_ns, 0, captured_ns + 8_000_000)
    return encode_joints(header, [], stages_us={"crop": 600.0, "engine": 900.0}, dropped=12)


def status(state: str = "tracked", camera: str = "front", message: str = "", uptime_s: float = 3700.0) -> list[bytes]:
    header = Header(camera, 5, 0, 0, 9_000_000)
    return encode_status(header, state=state, fps=89.5, message=message, uptime_s=uptime_s, **NUMBERS)  # type: ignore[arg-type]


@contextmanager
def publishing(*, sent: list[int] | None = None, **options: Any) -> Iterator[str]:
    """Something that publishes as a daemon does, at 50 Hz; sent has the numbers of its frames."""
    over, sent = threading.Event(), [] if sent is None else sent

    def publish() -> None:
        for seq in range(10_000):
            if over.wait(0.02):
                return
            publisher.poll_subscriptions()
            if options.get("state") != "stalled":
                publisher.publish(joints(seq, options.get("camera", "front"), time.monotonic_ns()))
                sent.append(seq)
            if seq % 10 == 0:
                publisher.publish(status(**options))

    with Publisher("tcp://127.0.0.1:*") as publisher:
        thread = threading.Thread(target=publish)
        thread.start()
        try:
            yield publisher.address
        finally:
            over.set()
            thread.join()


def test_a_running_daemon_is_shown_on_one_screen_and_is_well() -> None:
    with publishing() as address:
        ran = CliRunner().invoke(cli, ["status", "--address", address])
    assert ran.exit_code == OK, ran.output
    for text in (
        "front  tracked  89.5 fps  hands: none",
        "1234 done, 12 dropped, 1 unusable",
        "8.0 ms from capture to publication",
        "crop 0.60  engine 0.90",
        f"onnxruntime, dgn-nano 0123; up 1 h 1 min at {address}",
    ):
        assert text in ran.output, ran.output
    assert len(ran.output.splitlines()) < 24


def test_a_stalled_camera_is_exit_code_3_with_its_message() -> None:
    with publishing(state="stalled", message="no frame for 0.5 s") as address:
        ran = CliRunner().invoke(cli, ["status", "--address", address])
    assert ran.exit_code == STALLED and "says     no frame for 0.5 s" in ran.output


def test_nobody_there_is_exit_code_1_and_one_line_that_says_what_to_type() -> None:
    ran = CliRunner().invoke(cli, ["status", "--address", "tcp://127.0.0.1:9"])
    assert ran.exit_code == UNREACHABLE
    assert ran.output == (
        "tcp://127.0.0.1:9: nothing answers; start `edge-hand run` there, or give its --address, "
        "or --keys NAME.key_secret if it runs with --keys\n"
    )
    assert report([], {"ipc:///a": ""}, 0.0, Path("robot.key_secret")) == (
        "ipc:///a: nothing answers to these keys; start `edge-hand run` there, or give its --address"
    )


def test_a_daemon_of_another_wire_is_not_said_to_be_none() -> None:
    over = threading.Event()

    def publish() -> None:
        while not over.wait(0.02):
            publisher.publish([b"status.front", msgpack.packb({"v": 2, "camera": "front"})])

    with Publisher("tcp://127.0.0.1:*") as publisher:
        thread = threading.Thread(target=publish)
        thread.start()
        try:
            ran = CliRunner().invoke(cli, ["status", "--address", publisher.address])
        finally:
            over.set()
            thread.join()
    why = "status.front: wire version 2, this edge-hand reads version 1: update the older end"
    assert (ran.exit_code, ran.output) == (UNREACHABLE, f"{publisher.address}: {why}\n")


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """The folder is another user's: for root, who may look everywhere, this process is nobody's meanwhile."""
    folder.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o700)


def test_a_socket_that_is_closed_to_this_user_is_said_to_be_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    address = f"ipc://{folder}/hands"
    with Publisher(address), subscribe(address, timeout_s=0) as messages:
        assert not any(map(forbidden, (address, f"{address}-not-there", "tcp://127.0.0.1:5555")))
        with closed(folder):
            why = "not permitted for this user; take sudo, or join the socket's group (of a service: edge-hand)"
            assert report([], {address: ""}, 0.0) == f"{address}: {why}"
            with pytest.raises(TimeoutError, match="in 0 s; not permitted for this user"):
                next(messages)


def test_json_has_every_camera_and_who_is_silent() -> None:
    with publishing() as one, publishing(camera="side", state="lost") as other:
        ran = CliRunner().invoke(
            cli, ["status", "--json", "--address", one, "--address", other, "--address", "tcp://127.0.0.1:9"]
        )
    found = json.loads(ran.output)
    assert ran.exit_code == UNREACHABLE and found["silent"] == ["tcp://127.0.0.1:9"]
    front, side = found["cameras"]
    assert (front["camera"], front["state"], front["frames"], front["stalled"]) == ("front", "tracked", 1234, False)
    assert (side["camera"], side["address"]) == ("side", other) and front["age_ms"] < 60_000
    assert front["stages_ms"] == pytest.approx({"crop": 0.6, "engine": 0.9}, abs=0.11)


def test_a_lost_hand_is_no_fault_and_a_slow_start_is_one() -> None:
    def fare(**options: Any) -> Fare:
        one = Fare("a", "front")
        one.take(decode(status(**options)), 10.0)
        return one

    assert exit_code([fare(state="lost")], []) == OK
    assert exit_code([fare(state="starting", uptime_s=2.0)], []) == OK
    assert exit_code([fare(state="starting", uptime_s=60.0)], []) == STALLED
    assert exit_code([fare(state="tracked"), fare(state="stalled")], []) == STALLED
    assert exit_code([fare(state="stopping")], []) == STALLED
    assert exit_code([], []) == UNREACHABLE


def test_age_grows_from_the_capture_of_the_newest_frame() -> None:
    fare = Fare("a", "front")
    assert fare.age_ms(10.0) is None
    fare.take(decode(joints(1, captured_ns=5_000_000_000)), 10.0)
    assert fare.age_ms(10.1) == pytest.approx(108.0)
    fare.take(decode(status("stalled")), 12.0)
    assert fare.age_ms(12.0) == pytest.approx(2008.0), "a status is no new frame"
    assert fare.stages_ms == {} and fare.latency_ms is None, "medians are of the last second"


def test_what_no_frame_of_the_last_second_showed_is_not_told() -> None:
    fare = Fare("a", "front")
    started = encode_status(Header("front", -1, 5, 5, 5), state="starting", fps=0.0, uptime_s=1.0, **NUMBERS)  # type: ignore[arg-type]
    fare.take(decode(started), 9.0)
    assert fare.age_ms(9.5) is None and fare.as_dict(9.5)["hands"] == []
    for seq, stages in ((1, {"crop": 500.0}), (2, {"crop": 500.0, "engine": 900.0})):
        header = Header("front", seq, 0, 0, 8_000_000)
        fare.take(decode(encode_joints(header, [a_hand()], stages_us=stages, dropped=0)), 10.0)
    assert fare.stages_ms == {"crop": 0.5, "engine": 0.45} and len(fare.as_dict(10.0)["hands"]) == 1
    kept = fare.copy()
    fare.take(decode(status("stalled")), 12.0)
    assert fare.as_dict(12.0)["hands"] == [] and len(kept.as_dict(12.0)["hands"]) == 1


def test_a_camera_that_has_not_told_its_state_yet_is_named() -> None:
    fare = Fare("tcp://127.0.0.1:5555", "front")
    assert report([fare], {}, 1.0) == "front  no status yet  (tcp://127.0.0.1:5555)"


def test_listening_ends_soon_after_all_is_known() -> None:
    with publishing() as address:
        begun = time.monotonic()
        fares, silent = listen([address], listen_s=0.5, give_up_s=100.0)
    assert time.monotonic() - begun < 60 and len(fares) == 1 and not silent


def test_silent_addresses_make_no_other_daemon_s_frames_old() -> None:
    nobody = [f"ipc:///nowhere/{i}" for i in range(12)]
    sent: list[int] = []
    with publishing(sent=sent) as address:
        for _ in range(5):  # a busy machine may be late now and then
            (fare,), silent = listen([address, *nobody], give_up_s=1.5)
            newest = sent[-1]
            assert list(silent) == nobody and fare.joints is not None
            if newest - fare.joints.seq < 25:  # half a second of them
                return
    pytest.fail(f"{newest - fare.joints.seq} frames have come since")


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.9, "5 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (200_000, "2 d 7 h")]
)
def test_durations_are_told_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
