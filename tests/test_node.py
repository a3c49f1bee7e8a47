"""The Node.js example reads what a real publisher sends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from edge_hand.edge.publish import Publisher
from edge_hand.hand.frames import HandPose
from edge_hand.hand.wire import Header, WireHand, encode_joints

EXAMPLES = Path(__file__).parent.parent / "examples"
JOINTS_M = np.linspace(-0.123, 0.789, 63).reshape(21, 3)


def two_hands() -> list[bytes]:
    def hand(number: int, side: str, joints_m: np.ndarray) -> WireHand:
        pose = HandPose(
            side, 0.9, "tracked", 0.9, np.eye(4), np.zeros(26), np.ones(6), np.zeros(7), joints_m, joints_m,
            np.ones(21), 2.0,
        )  # fmt: skip
        return WireHand(number, 0.0, pose, joints_m)

    header = Header("front", 77, 123_456_789_012, 1_700_000_000_123_456_789, 123_456_999_012)
    hands = [hand(1, "right", JOINTS_M), hand(2, "left", -JOINTS_M)]
    return encode_joints(header, hands, stages_us={"engine": 900.5}, dropped=0)


@contextmanager
def published(parts: list[bytes]) -> Iterator[str]:
    """The address at which these parts are sent again and again."""
    stop = threading.Event()
    with Publisher("tcp://127.0.0.1:*") as publisher:
        address = publisher.address

        def repeat() -> None:
            while not stop.wait(0.02):
                publisher.poll_subscriptions()
                publisher.publish(parts)

        thread = threading.Thread(target=repeat)
        thread.start()
        try:
            yield address
        finally:
            stop.set()
            thread.join()


def first_lines(command: list[str], count: int, **options: object) -> list[list[str]]:
    """The first lines a program prints, split at spaces."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as program:
        guard = threading.Timer(30, program.kill)
        guard.start()
        try:
            lines = [program.stdout.readline().split() for _ in range(count)]
        finally:
            guard.cancel()
            program.kill()
        if not all(lines):
            pytest.fail(f"{command[0]} ended early: {program.stderr.read()[-600:]}")
    return lines


def check(lines: list[list[str]]) -> None:
    tip = JOINTS_M.astype(np.float32)[8]
    for line, side, expected in zip(lines, ("right", "left"), (tip, -tip), strict=True):
        assert line[:2] == ["77", side]
        np.testing.assert_allclose(np.array(line[2:], float), expected, rtol=1e-6)


@pytest.fixture(scope="module")
def node_folder() -> Path:
    """The example with its packages, installed once into the user's cache, outside the repository."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        pytest.skip("node and npm are not installed")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-hand-tests" / "node"
    cache.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "subscribe.mjs"):
        shutil.copy(EXAMPLES / name, cache / name)
    listed = subprocess.run([npm, "ls", "--omit=dev"], cwd=cache, capture_output=True)
    if listed.returncode:
        command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--fetch-retries=1"]
        try:
            done = subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            pytest.skip("npm's registry did not answer in 120 s")
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            pytest.skip(f"npm could not install zeromq and @msgpack/msgpack: {last}")
    return cache


def test_node_reads_the_same_numbers(node_folder: Path) -> None:
    with published(two_hands()) as address:
        check(first_lines(["node", "subscribe.mjs", address], 2, cwd=node_folder))


def test_the_python_example_reads_the_same_numbers(tmp_path: Path) -> None:
    with published(two_hands()) as address:
        script = (EXAMPLES / "subscribe.py").read_text().replace("tcp://127.0.0.1:5555", address)
        (tmp_path / "subscribe.py").write_text(script)
        check(first_lines([sys.executable, "-u", str(tmp_path / "subscribe.py")], 2))
