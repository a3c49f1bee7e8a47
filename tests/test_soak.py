"""A short soak: a daemon goes through one fault after another, and its subscribers hear the truth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from edge_hand.edge.bench.soak import CAMERA, FIRST, PROCESS, START_S, plan
from edge_hand.edge.bench.soak_judge import Pose, Said, memory_growth, stale_poses, unexplained
from edge_hand.edge.cameras.faulty import Fault


def poses(*times: float, tracked: bool = True) -> list[Pose]:
    return [Pose(t, t + 0.02, tracked, f"{t}".encode()) for t in times]


def test_every_kind_of_fault_has_its_turn() -> None:
    planned = plan(100.0, 30, 20)
    assert [f.kind for f in planned[:2]] == list(FIRST) and planned[0].start_s == 100 + START_S
    assert {f.kind for f in planned} == {*FIRST, *CAMERA, *PROCESS} and len(planned) == 89
    assert all(b.start_s - a.end_s >= 12 - 1e-9 for a, b in pairwise(planned))


def test_a_stale_pose_is_found_whatever_it_looks_like() -> None:
    freeze = [Fault("freeze", 10.0, 1.0)]
    assert stale_poses(freeze, poses(9.9, 10.02, 10.99, 11.1)) == []
    assert stale_poses(freeze, poses(9.9, 10.5)) == ["tracked 0.45 s into freeze"]
    assert stale_poses(freeze, poses(10.5, tracked=False)) == []
    assert stale_poses([], poses(9.9, 9.8)) == ["its frame is not newer than the one before"]
    assert stale_poses([], [Pose(1, 3, True, b"")]) == ["2.00 s old when it was published"]
    twice = [Pose(1, 1, True, b"same"), Pose(2, 2, True, b"same")]
    assert stale_poses([], twice) == ["the very joints of the message before"]


def test_a_silence_wants_a_word() -> None:
    heard = poses(10, 10.1, 12, 12.1)
    assert unexplained(heard, [], 10, 12.2) == ["1.90 s"] and unexplained(heard, [], 12, 12.2) == []
    assert unexplained(heard, [Said(11, "stalled", "no frame", 0)], 10, 12.2) == []
    assert unexplained(heard, [Said(11, "tracked", "", 0)], 10, 12.2) == ["1.90 s"]
    assert unexplained(heard, [Said(12.5, "tracked", "", 11.5)], 10, 12.2) == []  # another process


def test_a_daemon_silent_at_the_end_or_from_the_beginning_wants_a_word_too() -> None:
    heard = poses(10, 10.1)
    assert unexplained(heard, [], 10, 40.12) == ["30.00 s"] and unexplained(heard, [], 8, 10.2) == ["2.02 s"]
    assert unexplained([], [], 10, 40) == ["30.00 s"]
    assert unexplained(heard, [Said(9.9, "starting", "", 9.0)], 8, 10.2) == []
    assert unexplained(heard, [], 10, 10.05) == [], "what comes after the end is none of its business"


def test_memory_is_watched_after_the_restart() -> None:
    killed = [Fault("kill -9", 100.0, 0.0)]
    flat = [(float(t), 200.0 if t > 100 else 50.0) for t in range(400)]
    assert memory_growth(flat, killed) == (0.0, 279.0)
    rising = [(t, mb + 0.1 * t) for t, mb in flat]
    assert 0.06 < memory_growth(rising, killed)[0] < 0.12


@pytest.mark.slow
def test_a_daemon_goes_through_faults_and_tells_the_truth(tmp_path: Path) -> None:
    """The time to come back is generous: the machine that tests may be busy."""
    done = subprocess.run(
        [sys.executable, "-m", "edge_hand.edge.bench.soak", "--minutes", "0.5", "--fps", "30", "--every", "2.5",
         "--recovery", "3", "--json", str(tmp_path / "soak.json")],
        capture_output=True, text=True, timeout=180, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "soak.json").read_text())
    assert len(result["faults"]) == 8 and result["tracked"] > 50 and result["visits"] > 3
    assert done.stdout.splitlines()[-1].split() == ["verdict", "passed"]
