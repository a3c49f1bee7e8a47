"""The subscriber against a real publisher."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from edge_hand import subscribe
from edge_hand.edge.client import QUEUE, SubscribeError
from edge_hand.edge.publish import Publisher
from edge_hand.hand.wire import Header, JointsMessage, MeshMessage, TopologyMessage, WireError, encode_topology
from edge_hand.hand.wire import encode_joints as joints_parts
from edge_hand.hand.wire import encode_mesh as mesh_parts


def joints(seq: int, camera: str = "front") -> list[bytes]:
    return joints_parts(Header(camera, seq, 1, 2, 3), [], stages_us={}, dropped=0)


def mesh(seq: int, camera: str = "front") -> list[bytes]:
    return mesh_parts(Header(camera, seq, 1, 2, 3), [])


@contextmanager
def connected(*topics: str, wait_for: str = "joints.front", **options):
    """A publisher and its subscription, both ready."""
    topology = encode_topology([[0, 1, 2]])
    with Publisher("tcp://127.0.0.1:*", topology=topology) as publisher:
        options = {"timeout_s": 60.0} | options
        with subscribe(publisher.address, topics or ("joints",), **options) as messages:
            end_s = time.monotonic() + 60
            while not publisher.wants(wait_for) and time.monotonic() < end_s:
                publisher.poll_subscriptions()
                time.sleep(0.005)
            yield publisher, messages


def test_importing_edge_hand_loads_neither_torch_nor_a_socket_library() -> None:
    code = "import edge_hand, sys; assert not {'torch', 'zmq', 'numpy'} & set(sys.modules); edge_hand.subscribe"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_message_arrives_in_order_when_all_are_wanted() -> None:
    with connected(latest=False) as (publisher, messages):
        for seq in range(4):
            publisher.publish(joints(seq))
            assert next(messages).seq == seq


def test_the_newest_wins_for_a_slow_caller() -> None:
    with connected("joints", "mesh", wait_for="mesh.front") as (publisher, messages):
        for again in range(1, 11):
            for seq in range(20):
                publisher.publish(joints(seq))
                publisher.publish(mesh(seq))
                time.sleep(0.002)
            time.sleep(0.1 * again)  # on a busy machine the last ones come later
            messages.skipped = 0
            first, second = next(messages), next(messages)
            if (first.seq, second.seq) == (19, 19):
                break
            newest = {type(m): m.seq for m in (first, second)}
            while newest != {JointsMessage: 19, MeshMessage: 19}:
                newest |= {type(m): m.seq for m in (next(messages),)}
        assert isinstance(first, JointsMessage) and isinstance(second, MeshMessage)
        assert (first.seq, second.seq, messages.skipped) == (19, 19, 38)


def test_what_waits_for_its_turn_is_the_newest_when_it_comes() -> None:
    with connected("joints", "mesh", wait_for="mesh.front") as (publisher, messages):
        publisher.publish(joints(1))
        publisher.publish(mesh(1))
        while len(messages._waiting) < 2:
            messages._drain()
        assert isinstance(next(messages), JointsMessage)
        publisher.publish(mesh(2))
        assert messages._socket.poll(60_000) and next(messages).seq == 2 and messages.skipped == 1


def test_a_caller_that_takes_most_of_a_second_gets_every_topic() -> None:
    with connected("joints", "mesh", wait_for="mesh.front") as (publisher, messages):
        for seq in range(200):
            publisher.publish(joints(seq))
            if seq % 10 == 0:
                publisher.publish(mesh(seq))
            time.sleep(0.001)
        time.sleep(0.1)
        assert {type(next(messages)), type(next(messages))} == {JointsMessage, MeshMessage}


def test_after_a_long_absence_no_old_pose_comes_as_new() -> None:
    with connected() as (publisher, messages):
        for seq in range(4 * QUEUE):
            publisher.publish(joints(seq))
            time.sleep(0.0002)
        time.sleep(0.1)
        live, opened = threading.Event(), messages._socket

        def keep_publishing() -> None:
            seq = 10_000
            while messages._socket is opened and not live.wait(0.01):
                pass  # nothing new hides what is old
            while not live.wait(0.01):
                publisher.publish(joints(seq))
                publisher.poll_subscriptions()
                seq += 1

        thread = threading.Thread(target=keep_publishing)
        thread.start()
        try:
            assert next(messages).seq >= 10_000
        finally:
            live.set()
            thread.join()


def test_a_host_that_vanished_without_a_word_is_noticed_within_seconds() -> None:
    """The kernel asks whether the publisher is there (a timer of kind 2), soon after it said something last."""
    with connected() as (publisher, messages):
        publisher.publish(joints(1))
        next(messages)
        port = f"{int(publisher.address.rpartition(':')[2]):04X}"
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        (timer,) = (line[5] for line in lines if line[2].endswith(f":{port}") and line[3] == "01")
    kind, _, hundredths = timer.partition(":")
    assert kind == "02" and int(hundredths, 16) <= 100


def test_one_camera_is_not_another_whose_name_begins_the_same() -> None:
    with connected("joints.cam1", wait_for="joints.cam1") as (publisher, messages):
        publisher.publish(joints(1, "cam10"))
        publisher.publish(joints(2, "cam1"))
        assert (next(messages).camera, messages.skipped) == ("cam1", 0)


def test_a_camera_s_name_may_end_in_a_dot() -> None:
    with connected("joints.take1.", wait_for="joints.take1.") as (publisher, messages):
        publisher.publish(joints(1, "take1."))
        assert next(messages).camera == "take1."


def test_the_topology_comes_to_who_asks() -> None:
    with connected("topology", wait_for="topology") as (_, messages):
        message = next(messages)
        assert isinstance(message, TopologyMessage) and message.faces.tolist() == [[0, 1, 2]]


def test_a_timeout_says_where_and_for_how_long_and_iterating_goes_on() -> None:
    with connected(timeout_s=0.2) as (publisher, messages):
        with pytest.raises(TimeoutError) as caught:
            next(messages)
        assert str(caught.value) == (
            f"no message on joints from {publisher.address} in 0.2 s; is `edge-hand run` running there without --keys?"
        )
        publisher.publish(joints(5))
        assert next(messages).seq == 5


def test_a_bad_message_is_an_error_and_iterating_goes_on() -> None:
    with connected(latest=False) as (publisher, messages):
        publisher.publish([b"joints.front", b"\xc1"])
        publisher.publish(joints(6))
        with pytest.raises(WireError, match=r"^joints.front: not readable as msgpack"):
            next(messages)
        assert next(messages).seq == 6


def test_a_closed_subscription_ends() -> None:
    with connected() as (_, messages):
        messages.close()
        assert list(messages) == []


def test_a_timeout_may_be_infinite() -> None:
    with connected(timeout_s=math.inf) as (publisher, messages):
        threading.Timer(0.2, publisher.publish, [joints(7)]).start()
        assert next(messages).seq == 7


def test_one_topic_may_be_a_plain_string() -> None:
    with pytest.raises(TimeoutError, match="no message on joints from"):
        next(subscribe("tcp://127.0.0.1:9", "joints", timeout_s=0.01))


@pytest.mark.parametrize(
    "topic", ["joint", "joints.", "", "mash.front", "topology.front", "joints.front left", "joints.\udcff"]
)
def test_an_unknown_topic_is_refused(topic: str) -> None:
    with pytest.raises(SubscribeError) as caught:
        subscribe(topics=[topic])
    assert str(caught.value) == (
        f"topic {topic!r}: expected joints, mesh, cloud, status, topology, or one camera's, like joints.front"
    )


@pytest.mark.parametrize(
    "address", ["localhost:5555", "tcp://localhost:99999", "tcp://localhost:0", "tcp://localhost", "tcp://:5555"]
)
def test_an_address_that_cannot_be_is_refused(address: str) -> None:
    expected = f"^cannot subscribe at '{address}': invalid argument.*; expected tcp://HOST:PORT or ipc://PATH$"
    with pytest.raises(SubscribeError, match=expected):
        subscribe(address)


def test_an_address_whose_bytes_are_no_utf_8_is_refused() -> None:
    with pytest.raises(
        SubscribeError, match=r"^cannot subscribe at 'ipc:///run/\\udcff': .*; expected tcp://HOST:PORT or"
    ):
        subscribe("ipc:///run/\udcff")
