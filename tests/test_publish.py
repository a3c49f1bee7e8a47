"""The publisher over real sockets: it refuses what is unsafe, knows who listens and never waits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zmq
from edge_hand.edge import publish
from edge_hand.edge.publish import MAX_TOPICS, Publisher, PublishError, check_address
from edge_hand.hand.wire import encode_topology

TOPOLOGY = encode_topology(np.arange(3000).reshape(-1, 3))
ANY_PORT = "tcp://127.0.0.1:*"


def subscriber(context: zmq.Context, address: str, *topics: str) -> zmq.Socket:
    sub = context.socket(zmq.SUB)
    for topic in topics:
        sub.subscribe(topic)
    sub.setsockopt(zmq.LINGER, 0)
    sub.connect(address)
    return sub


def wait_until(publisher: Publisher, condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "condition not met in time"
        publisher.poll_subscriptions()
        time.sleep(0.005)


@pytest.fixture
def context():
    with zmq.Context() as context:
        yield context
        context.destroy(linger=0)


def test_it_encodes_nothing_until_someone_listens_and_forgets_who_left(context) -> None:
    with Publisher(ANY_PORT) as publisher:
        publisher.poll_subscriptions()
        assert not publisher.wants("joints.front")
        sub = subscriber(context, publisher.address, "joints.front")
        wait_until(publisher, lambda: publisher.wants("joints.front"))
        assert not publisher.wants("joints.side") and not publisher.wants("mesh.front")
        sub.close()
        wait_until(publisher, lambda: not publisher.wants("joints.front"))


def test_a_client_that_asks_for_a_thousand_topics_silences_nobody(context) -> None:
    with Publisher(ANY_PORT, topology=TOPOLOGY) as publisher:
        greedy = subscriber(context, publisher.address, *(f"joints.{n}" for n in range(MAX_TOPICS)))
        wait_until(publisher, lambda: publisher.wants(f"joints.{MAX_TOPICS - 1}"))
        late = subscriber(context, publisher.address, "joints.front", "topology")
        wait_until(publisher, lambda: publisher.wants("joints.front") and late.poll(0))
        assert late.recv_multipart() == TOPOLOGY
        greedy.close()
        wait_until(publisher, lambda: not publisher._subscriptions)
        assert publisher.wants("joints.front"), "the late one was not counted"


def test_one_of_two_subscribers_leaving_does_not_silence_the_other(context) -> None:
    with Publisher(ANY_PORT) as publisher:
        first = subscriber(context, publisher.address, "joints")
        second = subscriber(context, publisher.address, "joints")
        for sub in (first, second):
            wait_until(publisher, lambda sub=sub: publisher.publish([b"joints.a", b"0"]) and bool(sub.poll(0)))
        after = subscriber(context, publisher.address, "mesh")
        wait_until(publisher, lambda: publisher.wants("mesh.a"))
        first.close()
        time.sleep(0.1)
        after.close()
        wait_until(publisher, lambda: not publisher.wants("mesh.a"))  # by then the first one's leaving was heard too
        publisher.publish([b"joints.a", b"1"])
        assert publisher.wants("joints.a")
        heard = b""
        while heard != b"1":
            assert second.poll(60_000)
            heard = second.recv_multipart()[1]


def test_every_new_subscriber_gets_the_topology(context) -> None:
    with Publisher(ANY_PORT, topology=TOPOLOGY) as publisher:
        for topics in (["topology"], ["topology"], [""]):
            sub = subscriber(context, publisher.address, *topics)
            wait_until(publisher, lambda sub=sub: bool(sub.poll(0)))
            assert sub.recv_multipart() == TOPOLOGY
            joints = subscriber(context, publisher.address, "joints")
            time.sleep(0.05)
            publisher.poll_subscriptions()
            assert not joints.poll(50)


def test_a_stalled_subscriber_slows_nobody(context) -> None:
    mesh = [b"mesh.front", bytes(200_000)]
    with Publisher(ANY_PORT) as publisher:
        stalled = subscriber(context, publisher.address, "mesh")  # and never reads
        stalled.setsockopt(zmq.RCVHWM, 1)
        wait_until(publisher, lambda: publisher.wants("mesh.front"))
        reader = subscriber(context, publisher.address, "mesh")
        wait_until(publisher, lambda: publisher.publish(mesh) and bool(reader.poll(10)))
        while reader.poll(100):
            reader.recv_multipart()
        calls, heard = [], 0
        for _ in range(300):  # 60 MB, more than every buffer between
            start = time.perf_counter()
            publisher.poll_subscriptions()
            assert publisher.publish(mesh)
            calls.append(time.perf_counter() - start)
            heard += bool(reader.poll(20_000)) and bool(reader.recv_multipart())
        assert heard == 300
        assert np.median(calls) < 0.1  # waiting for the stalled one would take for ever
        assert publisher.dropped == 0
        start = time.perf_counter()
    assert time.perf_counter() - start < 50  # leaving does not wait for it either


def test_one_frame_with_everything_in_it_reaches_a_subscriber_whole(context) -> None:
    with Publisher(ANY_PORT, topology=TOPOLOGY) as publisher:
        sub = subscriber(context, publisher.address, "")
        wait_until(publisher, lambda: bool(sub.poll(0)))
        sub.recv_multipart()
        for _ in range(100):
            publisher.poll_subscriptions()
            for topic in (b"joints.a", b"mesh.a", b"status.a", b"topology"):
                publisher.publish([topic, bytes(20_000)])
            for topic in (b"joints.a", b"mesh.a", b"status.a", b"topology"):
                assert sub.poll(60_000) and sub.recv_multipart()[0] == topic


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:5999", "tcp://*:5999", "tcp://192.0.2.7:5999", "tcp://[::]:5999"])
def test_it_stays_on_this_machine_unless_told(address: str) -> None:
    with pytest.raises(PublishError) as caught, Publisher(address):
        pass
    assert str(caught.value) == (
        f"--bind {address}: anyone who can reach this address could read the hands; "
        "use tcp://127.0.0.1:5555, or make keys (edge-hand keys new DIR) and add --keys DIR; "
        "--insecure does without, on a network you trust"
    )


def test_insecure_binds_beyond_loopback() -> None:
    with Publisher("tcp://0.0.0.0:*", insecure=True) as publisher:
        assert publisher.address.startswith("tcp://0.0.0.0:")


@pytest.mark.parametrize("address", ["tcp://localhost:*", "tcp://127.0.0.5:*"])
def test_loopback_by_any_name_is_fine(address: str) -> None:
    with Publisher(address) as publisher:
        assert publisher.address.startswith("tcp://127.0.0.")


def test_a_taken_port_says_what_to_type() -> None:
    with Publisher(ANY_PORT) as first:
        with pytest.raises(PublishError) as caught, Publisher(first.address):
            pass
        said, _, other = str(caught.value).rpartition(" --bind ")
        assert said == f"{first.address} is in use, perhaps by another edge-hand; stop it or take another:"
        assert other != first.address
        with Publisher(other) as second, pytest.raises(PublishError) as caught, Publisher(first.address):
            pass
        assert second.address == other
        assert not str(caught.value).endswith(f" --bind {other}")  # that one is taken by now


def test_the_highest_port_in_use_has_no_next_one() -> None:
    assert publish._in_use("tcp://127.0.0.1:65535").endswith("; stop it or take another")


@pytest.mark.parametrize(
    "address", ["5555", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "udp://127.0.0.1:1", "ipc://"]
)
def test_a_malformed_address_says_what_is_expected(address: str) -> None:
    with pytest.raises(PublishError) as caught, Publisher(address):
        pass
    assert str(caught.value) == (
        f"--bind {address}: expected tcp://HOST:PORT or ipc://PATH, for example tcp://127.0.0.1:5555"
    )


def test_a_path_that_is_not_utf_8_is_one_line() -> None:
    for path in ("/" + "x" * 107, "/" + "\u00e4" * 60, "/x\0y"):
        with pytest.raises(PublishError, match=r"a socket's path has at most 107 bytes, none of them 0$"):
            check_address(f"ipc://{path}")
    check_address("ipc:///" + "x" * 106)
    with pytest.raises(PublishError, match="libzmq takes paths in UTF-8; choose another"), Publisher("ipc:///x\udce4"):
        pass


def test_ipc_never_takes_the_place_of_a_daemon_or_a_file(tmp_path: Path, context) -> None:
    address = f"ipc://{tmp_path}/hands"
    with Publisher(address) as publisher:
        sub = subscriber(context, address, "joints")
        wait_until(publisher, lambda: publisher.wants("joints.x"))
        with pytest.raises(PublishError, match=rf"is in use.*--bind {address}-2$"), Publisher(address):
            pass
        publisher.publish([b"joints.x", b"1"])
        assert sub.poll(60_000)
    file = tmp_path / "notes.txt"
    file.write_text("keep me")
    with pytest.raises(PublishError, match="is not a socket and would be lost"), Publisher(f"ipc://{file}"):
        pass
    assert file.read_text() == "keep me"


def test_ipc_left_behind_by_a_dead_process_is_reused(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "hands"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    with Publisher(f"ipc://{path}") as publisher:
        assert publisher.address == f"ipc://{path}"


def test_a_missing_ipc_folder_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(PublishError, match=r"the folder does not exist; create it first$"),
        Publisher(f"ipc://{tmp_path}/a/b"),
    ):
        pass


def test_strange_bytes_from_a_subscriber_are_ignored(context) -> None:
    with Publisher(ANY_PORT, topology=TOPOLOGY) as publisher:
        peer = context.socket(zmq.XSUB)
        peer.connect(publisher.address)
        peer.send(b"\x07 what is this")
        peer.send(b"\x01joints")
        wait_until(publisher, lambda: publisher.wants("joints.x"))
        assert not publisher.wants("mesh.x")
