"""`edge-hand fuse` as a user runs it: daemons publish, the fused hand comes out, and a silent camera is told of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest
from click.testing import CliRunner
from edge_hand.calibration import fuse_loop, listen
from edge_hand.calibration.fuse_cli import BIND, fuse
from edge_hand.calibration.fuse_loop import FuseLoop
from edge_hand.calibration.listen import Heard, Listener
from edge_hand.calibration.rig import Quality, Rig, RigCamera, TimeOffset, save_rig
from edge_hand.edge.cli.shell import CommandError
from edge_hand.edge.client import SubscribeError, Subscription, subscribe
from edge_hand.edge.loop import topology
from edge_hand.edge.publish import Publisher
from edge_hand.hand import se3
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import HandPose
from edge_hand.hand.kinematics import AVERAGE, pose_hand
from edge_hand.hand.messages import JointsMessage, MeshMessage, Message, StatusMessage
from edge_hand.hand.poses import POSES
from edge_hand.hand.template import template
from edge_hand.hand.wire import Header, WireHand, decode, encode_cloud, encode_joints
from test_fuse import a_rig as rig_of_three
from test_fuse import told

LENS = Intrinsics(424, 240, 212.0, 212.0, 211.5, 119.5)
WRIST = np.array([0.02, 0.03, 0.6, 0.0, np.pi, 0.0])


def a_rig(verdict: str = "pass") -> Rig:
    T = se3.transform(se3.so3_exp(np.array([0, -0.6, 0])), np.array([0.4, 0, 0.1]))
    cameras = tuple(
        RigCamera(f"cam{k}", "depth", LENS, np.eye(4) if k == 0 else T, 1e-8 * np.eye(6), TimeOffset())
        for k in range(2)
    )
    warnings = ("the hand moved on a line",) if verdict == "fail" else ()
    return Rig("cell", "", "test", cameras, (), Quality("test", verdict=verdict, warnings=warnings))  # type: ignore[arg-type]


def parts(rig: Rig, k: int, seq: int, now: int | None = None) -> list[bytes]:
    """A joints message of camera k, of now: ns of CLOCK_MONOTONIC."""
    theta = np.concatenate([WRIST, POSES["open"]])
    joints, _ = pose_hand(template(), theta[None], AVERAGE.alpha[None], AVERAGE.beta[None])
    T_camera = se3.inverse(rig.cameras[k].T_ref_cam)
    T = T_camera @ se3.transform(se3.so3_exp(theta[3:6]), theta[:3])
    seen = se3.apply(T_camera, joints[0])
    pose = HandPose("right", 0.98, "tracked", 0.8, T, theta, *AVERAGE, seen, np.zeros((3, 3)), np.full(21, 0.9), 3.0)
    now = now or time.monotonic_ns()
    wall = now + time.time_ns() - time.monotonic_ns()
    header = Header(f"cam{k}", seq, now, wall, now)
    return encode_joints(header, [WireHand(1, 0.0, pose, seen)], stages_us={}, dropped=0)


def heard(rig: Rig, k: int, seq: int, now: int | None = None) -> Heard:
    now = now or time.monotonic_ns()
    return Heard(now, decode(parts(rig, k, seq, now)))


def test_the_loop_says_which_camera_is_silent_and_goes_on(monkeypatch: pytest.MonkeyPatch):
    rig, said, now = a_rig(), [], time.monotonic_ns()
    monkeypatch.setattr(fuse_loop, "time", SimpleNamespace(monotonic_ns=lambda: now, time_ns=time.time_ns))
    topics = ("joints.rig", "mesh.rig", "status.rig")
    with (
        Publisher("tcp://127.0.0.1:*", topology=topology()) as publisher,
        subscribe(publisher.address, topics, latest=False, timeout_s=60) as inbox,
    ):
        loop = FuseLoop(rig, publisher, say=said.append)
        while not publisher.wants("mesh.rig"):
            publisher.poll_subscriptions()
        got = []
        for seq in range(60):  # 1.2 s, of which both speak for 0.4
            now += 20_000_000
            loop.handle([heard(rig, k, seq, now - 5_000_000) for k in range(2) if seq < 20 or k == 0], now)
            while len(got) < 2 * loop.totals.frames:
                got.append(next(inbox))
    joints = [m for m in got if isinstance(m, JointsMessage)]
    truth = pose_hand(template(), np.concatenate([WRIST, POSES["open"]])[None], *(x[None] for x in AVERAGE))[0][0]
    assert joints and all(m.camera == "rig" for m in joints)
    last = joints[-1]
    assert np.abs(last.hands[0].joints_m - truth).max() < 2e-3 and 0 < last.latency_ms < 1000
    assert {hand.id for m in joints for hand in m.hands} == {1}
    meshes = [m for m in got if isinstance(m, MeshMessage) and m.hands]
    assert meshes and meshes[-1].hands[0].vertices_m.shape == (1609, 3)
    told = [m.message for m in got if isinstance(m, StatusMessage)]
    assert any("1 of 2 cameras: cam1 silent for 0." in text for text in told)
    assert said[-1].startswith("1 of 2 cameras: cam1 silent")
    assert [m.state for m in got if isinstance(m, StatusMessage)][-1] == "tracked"


def test_without_any_camera_it_is_stalled():
    said: list[str] = []
    with Publisher("tcp://127.0.0.1:*") as publisher:
        loop = FuseLoop(a_rig(), publisher, say=said.append)
        loop.handle([heard(a_rig(), 0, 0)], time.monotonic_ns())
        loop.handle([], time.monotonic_ns() + 50_000_000)
        assert loop.totals.frames == 1
        loop.handle([], time.monotonic_ns() + 2_000_000_000)
    assert said[-1].startswith("0 of 2 cameras") and loop._told is not None and loop._told[0] == "stalled"


def test_where_nothing_was_ever_heard_it_asks_whether_a_daemon_runs():
    said: list[str] = []
    with Publisher("tcp://127.0.0.1:*") as publisher:
        loop = FuseLoop(a_rig(), publisher, say=said.append)
        for seconds in (0, 1, 4, 5):
            loop.handle([], time.monotonic_ns() + seconds * 1_000_000_000)
        loop.handle([heard(a_rig(), 0, 0)], time.monotonic_ns())
    nobody = "0 of 2 cameras: cam0 not heard yet, cam1 not heard yet"
    assert said == [nobody, f"{nobody}; is `edge-hand run` running?", "1 of 2 cameras: cam1 not heard yet"]


def test_a_daemon_at_another_size_is_told_of_even_before_its_joints_were_heard():
    said: list[str] = []
    wide = Intrinsics(848, 480, 424.0, 424.0, 423.5, 239.5)
    with Publisher("tcp://127.0.0.1:*") as publisher:
        loop = FuseLoop(a_rig(), publisher, say=said.append)
        loop.handle([heard(a_rig(), 0, 0)], time.monotonic_ns())
        cloud = decode(encode_cloud(Header("cam1", 0, 0, 0, 0), None, (), wide))
        loop.handle([Heard(time.monotonic_ns(), cloud)], time.monotonic_ns())
    assert said == [
        "1 of 2 cameras: cam1 not heard yet",
        "1 of 2 cameras; rig cell: camera cam1 was calibrated at 424x240, it runs at 848x480",
    ]


def test_a_host_whose_wall_clock_is_wrong_is_told_of_once_and_does_not_end_the_fusion():
    rig, said = a_rig(), []
    with Publisher("tcp://127.0.0.1:*") as publisher:
        loop = FuseLoop(rig, publisher, say=said.append)
        now = time.monotonic_ns()
        for seq in range(6):
            now += 5_000_000
            came_ns, other = heard(rig, 1, seq, now)
            assert isinstance(other, JointsMessage)
            ahead = replace(
                other, t_capture_ns=other.t_capture_ns + 10**9, t_capture_unix_ns=other.t_capture_unix_ns + 10**9
            )
            loop.handle([heard(rig, 0, seq, now), Heard(came_ns, ahead)], now)
    assert loop.totals.tracked > 2
    assert said == ["1 of 2 cameras; cam0 is 1.0 s behind the others: a slow daemon or network, or its clock (NTP?)"]


def test_a_daemon_given_twice_is_refused():
    a, b = "tcp://127.0.0.1:1", "tcp://127.0.0.1:2"
    with pytest.raises(SubscribeError, match=rf"^--from {a} is given twice; once for each daemon$"):
        Listener([a, b, a], ("joints",)).__enter__()


def test_a_listener_hears_several_daemons():
    rig = a_rig()
    with (
        Publisher("tcp://127.0.0.1:*") as one,
        Publisher("tcp://127.0.0.1:*") as two,
        Listener([one.address, two.address], ("joints",)) as listener,
    ):
        names: set[str] = set()
        begun = time.monotonic()
        while len(names) < 2 and time.monotonic() - begun < 60:
            for k, publisher in enumerate((one, two)):
                publisher.poll_subscriptions()
                publisher.publish(parts(rig, k, 0))
            names |= {message.camera for _, message in listener.take(0.05) if isinstance(message, JointsMessage)}
    assert names == {"cam0", "cam1"}


def test_of_two_cameras_of_one_name_the_first_is_heard_until_it_is_silent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listen, "TROUBLE_NS", 500_000_000)
    rig = a_rig()
    with (
        Publisher("tcp://127.0.0.1:*") as one,
        Publisher("tcp://127.0.0.1:*") as two,
        Listener([one.address, two.address], ("joints",)) as listener,
    ):
        seqs: list[int] = []
        told: list[dict[str, str]] = []
        end, refused = time.monotonic() + 60, {two.address: f"cam0 is heard from {one.address} already"}
        while not (2 in seqs and told[-1] == {}) and time.monotonic() < end:
            one_speaks = refused not in told
            for publisher, seq in ((one, 1), (two, 2)):
                publisher.poll_subscriptions()
                if one_speaks if publisher is one else seqs:
                    publisher.publish(parts(rig, 0, seq))
            seqs += [message.seq for _, message in listener.take(0.02) if isinstance(message, JointsMessage)]
            told.append(listener.trouble())
    assert seqs == sorted(seqs) and set(seqs) == {1, 2}
    assert refused in told and not told[-1]


def test_a_daemon_of_another_wire_version_and_lost_messages_are_told_of_once():
    rig, said = a_rig(), []
    with (
        Publisher("tcp://127.0.0.1:*") as old,
        Publisher("tcp://127.0.0.1:*", topology=topology()) as publisher,
        subscribe(publisher.address, ("status.rig",), latest=False, timeout_s=60) as inbox,
        Listener([old.address], ("joints",)) as listener,
    ):
        loop = FuseLoop(rig, publisher, say=said.append)
        topic, payload = parts(rig, 0, 0)
        later = [topic, msgpack.packb(msgpack.unpackb(payload) | {"v": 2})]
        turns, end = 0, time.monotonic() + 60
        while not publisher.wants("status.rig"):
            publisher.poll_subscriptions()

        def stop() -> bool:
            nonlocal turns
            for some in (old, publisher):
                some.poll_subscriptions()
            old.publish(later)
            listener.lost = 3
            turns += any("version" in line for line in said)
            return turns > 20 or time.monotonic() > end

        loop.run(listener, stop)
        told = ""
        while "wire version" not in told:
            status = next(inbox)
            assert isinstance(status, StatusMessage)
            told = status.message
    assert (
        said[-1]
        == told
        == (
            f"0 of 2 cameras: cam0 not heard yet, cam1 not heard yet; {old.address}: joints.cam0: wire version 2, this "
            "edge-hand reads version 1: update the older end; 3 messages lost, for they come faster than they are fused"
        )
    )
    assert sum("version" in line for line in said) == 1, "not with every message"


@contextmanager
def heard_loop(rig: Rig) -> Iterator[tuple[FuseLoop, Subscription]]:
    """A loop over the rig, and one that has subscribed to its joints."""
    with (
        Publisher("tcp://127.0.0.1:*", topology=topology()) as publisher,
        subscribe(publisher.address, ("joints.rig",), latest=False, timeout_s=60) as inbox,
    ):
        while not publisher.wants("joints.rig"):
            publisher.poll_subscriptions()
        yield FuseLoop(rig, publisher, say=lambda _: None), inbox


def test_of_more_hands_than_the_wire_carries_those_that_most_cameras_see_are_published():
    rig = rig_of_three()
    places = [(k, [0.2 * (n % 3), 0.2 * (n // 3), 0.5 * (k + 1)]) for k in range(3) for n in range(6)]
    with heard_loop(rig) as (loop, inbox):
        now = time.monotonic_ns()
        for i in range(4):
            now, said = now + 33_000_000, []
            for k in range(3):
                shared = [told(rig, k, i).hands[0]] * (i > 1)  # the youngest
                own = [told(rig, k, i, hand=n + 2, away_m=np.array(at)).hands[0] for n, (c, at) in enumerate(places)
                       if c == k]  # fmt: skip
                said.append(Heard(now, replace(told(rig, k, i), hands=tuple(shared + own))))
            loop.handle(said, now)
        got = [next(inbox) for _ in range(4)]
    assert len(loop.fuser.hands) == 19
    ids = [[hand.id for hand in m.hands] for m in got if isinstance(m, JointsMessage)]
    assert [len(some) for some in ids] == [0, 16, 16, 16] and all(some[0] == 19 for some in ids[2:])


def test_what_is_fused_of_hosts_whose_wall_clock_believes_it_is_1970_can_be_read():
    rig = a_rig()
    with heard_loop(rig) as (loop, inbox):
        for seq in range(2):
            both = [heard(rig, k, seq) for k in range(2)]
            old = [h._replace(message=replace(h.message, t_capture_unix_ns=h.message.t_capture_ns)) for h in both]
            loop.handle(old, time.monotonic_ns())
        message = next(inbox)
    assert isinstance(message, JointsMessage) and 0 <= message.latency_ms < 60_000


def test_frames_that_come_too_late_are_counted_on_the_wire():
    rig = a_rig()
    with (
        Publisher("tcp://127.0.0.1:*", topology=topology()) as publisher,
        subscribe(publisher.address, ("joints.rig", "status.rig"), latest=False, timeout_s=60) as inbox,
    ):
        loop = FuseLoop(rig, publisher, say=lambda _: None)
        while not publisher.wants("joints.rig"):
            publisher.poll_subscriptions()
        now = time.monotonic_ns()
        late = heard(rig, 1, 0, now)
        for first in (heard(rig, 0, 0, now + 1_000_000), late, heard(rig, 0, 1, now + 2_000_000)):
            now += 2_000_000
            loop.handle([first], now)
            loop.handle([], now + loop.views.wait_ns)
        got: list[Message] = []
        while not {JointsMessage, StatusMessage} <= {type(m) for m in got if m.dropped == 1}:
            got.append(next(inbox))
    assert [m.dropped for m in got if isinstance(m, JointsMessage)] == [0, 1]


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edge_hand.edge.cli.main", *arguments], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def test_the_command_fuses_and_stops_when_told(tmp_path: Path):
    rig = a_rig()
    save_rig(rig, tmp_path / "rig.json")
    out = f"ipc://{tmp_path}/fused"
    with Publisher(f"ipc://{tmp_path}/a") as one, Publisher(f"ipc://{tmp_path}/b") as two:
        process = command(
            "fuse", str(tmp_path / "rig.json"), "--from", one.address, "--from", two.address, "--bind", out
        )
        try:
            with subscribe(out, ("joints.rig", "status.rig"), timeout_s=0.05) as inbox:
                hands, told, begun, seq = 0, "", time.monotonic(), 0
                while not (hands and told.startswith("2 of 2")) and time.monotonic() - begun < 60:
                    for k, publisher in enumerate((one, two)):
                        publisher.poll_subscriptions()
                        publisher.publish(parts(rig, k, seq))
                    seq += 1
                    try:
                        message = next(inbox)
                    except TimeoutError:
                        continue
                    if isinstance(message, StatusMessage):
                        told = message.message
                    elif isinstance(message, JointsMessage):
                        hands += len(message.hands)
        finally:
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
    assert hands and process.returncode == 0, stderr
    assert "2 of 2 cameras" in stdout and "a hand in" in stdout


@pytest.mark.parametrize("which", ["fuse", "calibrate watch"])
def test_a_missing_rig_file_is_one_line(which: str, tmp_path: Path):
    process = command(*which.split(), str(tmp_path / "no.json"), "--from", "tcp://127.0.0.1:5555")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and stderr.count("\n") == 1 and "no.json: no such file" in stderr


def test_a_rig_that_failed_is_refused(tmp_path: Path):
    save_rig(a_rig("fail"), tmp_path / "rig.json")
    process = command("fuse", str(tmp_path / "rig.json"), "--from", "tcp://127.0.0.1:5555")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "failed its calibration (the hand moved on a line); --force takes it" in stderr


def test_fuse_is_no_source_of_its_own(tmp_path: Path):
    save_rig(a_rig(), tmp_path / "rig.json")
    done = CliRunner().invoke(fuse, [str(tmp_path / "rig.json"), "--from", "tcp://127.0.0.1:5555", "--from", BIND])
    assert isinstance(done.exception, CommandError)
    assert str(done.exception).startswith(f"--from {BIND} is where fuse itself publishes; give the daemons' addresses")


def test_watch_never_overwrites_the_rig_file(tmp_path: Path):
    path = tmp_path / "rig.json"
    save_rig(a_rig(), path)
    process = command("calibrate", "watch", str(path), "--from", "tcp://127.0.0.1:5555", "--propose", str(path))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and "the rig file itself is never overwritten" in stderr
