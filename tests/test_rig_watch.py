"""Watching a rig: an intact one raises no alarm, a camera bumped by half a degree is named, nothing is overwritten."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from click.testing import CliRunner, Result
from edge_hand.calibration import watch as watch_module
from edge_hand.calibration import watch_cli
from edge_hand.calibration.rig import Quality, Rig, RigCamera, TimeOffset, load_rig, save_rig
from edge_hand.calibration.sight import Sighting
from edge_hand.calibration.uncertainty import volume_sigma_mm
from edge_hand.calibration.watch import Drift, Judgement, Watch
from edge_hand.edge.cli.shell import CommandError
from edge_hand.edge.keys import KeysError
from edge_hand.edge.publish import Publisher
from edge_hand.hand import se3
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.kinematics import AVERAGE
from edge_hand.hand.poses import POSES
from edge_hand.hand.wire import Header, encode_joints

HZ = 10
TURNS = (0.0, 0.8, -0.8)


def a_rig(n: int = 3) -> Rig:
    """Cameras about a volume 0.65 m ahead of the first."""
    lens = Intrinsics(424, 240, 212.0, 212.0, 211.5, 119.5)
    middle = np.array([0, 0, 0.65])
    cameras = []
    for k in range(n):
        R = se3.so3_exp(np.array([0, -TURNS[k], 0]))
        T = se3.transform(R, middle - R @ middle)
        cameras.append(RigCamera(f"cam{k}", "depth", lens, T, 1e-8 * np.eye(6), TimeOffset()))
    return Rig("cell", "", "test", tuple(cameras), (), Quality("test"))


def moments(rig: Rig, seed: int, seconds: int, bump: tuple[int, np.ndarray, float] | None = None,
            still: bool = False) -> Iterator[tuple[int, list[Sighting]]]:  # fmt: skip
    """A hand that moves through the volume, as cameras see it whose errors are those of a network: alike for a while,
    and a bias that depends on how the hand is turned to the camera. bump: camera, turn (3,) rad, from when, s."""
    rng = np.random.default_rng(seed)
    rate, phase = rng.uniform(0.1, 0.35, 6), rng.uniform(0, 6.28, 6)
    slow = np.zeros((len(rig.cameras), 3))
    biases = rng.normal(0, 0.001, (3, 3))
    for i in range(seconds * HZ):
        t_s = i / HZ
        wave = np.sin(2 * np.pi * rate * t_s + phase) * (0 if still else 1)
        T_hand = se3.transform(se3.so3_exp(wave[3:] * (0.6, 1.0, 0.6)), wave[:3] * 0.13 + (0, 0, 0.65))
        slow += 0.15 * (rng.normal(0, 0.004, slow.shape) - slow)
        seen = []
        for k, camera in enumerate(rig.cameras):
            if rng.random() < 0.2:
                continue
            view = camera.T_ref_cam[:3, :3].T @ T_hand[:3, :3]
            off = slow[k] + rng.normal(0, 0.003, 3) + camera.T_ref_cam[:3, :3] @ (biases @ view[2])
            T = T_hand.copy()
            if bump and bump[0] == k and t_s >= bump[2]:  # the rig file takes it to be where it was
                moved = camera.T_ref_cam @ se3.transform(se3.so3_exp(bump[1]), np.zeros(3))
                T = camera.T_ref_cam @ se3.inverse(moved) @ T
            T[:3, 3] += off
            raw = rng.normal(0, 0.003, (21, 3))
            seen.append(
                Sighting(
                    k, 1, False, 0.98, True, 0.8, T, POSES["open"], AVERAGE.alpha, AVERAGE.beta, raw, np.full(21, 0.9),
                    None, np.zeros(3), np.zeros((0, 3)), 0.0, 0.0,
                )
            )  # fmt: skip
        yield round(t_s * 1e9), seen


def judgements(rig: Rig, *args: object, **how: object) -> list[tuple[float, Judgement]]:
    watch = Watch(rig)
    said = []
    for t_ns, seen in moments(rig, *args, **how):  # type: ignore[arg-type]
        if watch.observe(t_ns, seen):
            said.append((t_ns * 1e-9, watch.judge()))
    return said


def half_a_degree(seed: int) -> np.ndarray:
    axis = np.random.default_rng(seed).standard_normal(3) * (1, 1, 0.3)  # a roll moves the volume's middle little
    return np.radians(0.5) * axis / np.linalg.norm(axis)


@cache
def bumped(camera: int) -> list[tuple[float, Judgement]]:
    return judgements(a_rig(), 10 + camera, 80, (camera, half_a_degree(camera), 25.0))


@pytest.mark.parametrize("seed", range(4))  # of 16 seeds, two do: docs/calibration.md
def test_an_intact_rig_raises_no_alarm(seed: int):
    states = [judgement.state for _, judgement in judgements(a_rig(), seed, 90)]
    assert "moved" not in states and states[-1] == "holds"


@pytest.mark.parametrize("camera", range(3))
def test_a_camera_bumped_by_half_a_degree_is_named_within_a_minute(camera: int):
    alarms = [(t, j) for t, j in bumped(camera) if j.state == "moved"]
    assert alarms and 25 < alarms[0][0] < 85
    assert {j.drift.camera for _, j in alarms[-5:] if j.drift} == {f"cam{camera}"}
    assert alarms[-1][1].words.startswith(f"cam{camera} moved by ")


@pytest.mark.parametrize("camera", [0, 2])
def test_what_is_proposed_puts_the_camera_right(camera: int, tmp_path: Path):
    rig, drift = a_rig(), bumped(camera)[-1][1].drift
    assert drift is not None
    save_rig(Watch(rig).proposal(drift, "2026-01-01T00:00:00Z"), tmp_path / "rig.proposed.json")
    proposed = load_rig(tmp_path / "rig.proposed.json")
    assert proposed.quality.verdict == "unverified" and f"cam{camera} moved" in proposed.quality.warnings[-1]
    bump = se3.transform(se3.so3_exp(half_a_degree(camera)), np.zeros(3))
    true = [c.T_ref_cam @ bump if k == camera else c.T_ref_cam for k, c in enumerate(rig.cameras)]
    other = 1
    T_true = se3.inverse(true[other]) @ true[camera]
    point = np.array([[0, 0, 0.65]])
    off = [
        np.linalg.norm(
            se3.apply(se3.inverse(r.cameras[other].T_ref_cam) @ r.cameras[camera].T_ref_cam, point)
            - se3.apply(T_true, point)
        )
        for r in (rig, proposed)
    ]
    assert off[1] < 0.6 * off[0]


@pytest.mark.parametrize("camera", [0, 2])
def test_what_is_proposed_is_as_uncertain_as_the_motion_and_the_rig_together(camera: int):
    rig, drift = a_rig(), bumped(camera)[-1][1].drift
    assert drift is not None
    proposed = Watch(rig).proposal(drift, "")
    moved = [camera] if camera else [1, 2]
    for k, (was, now) in enumerate(zip(rig.cameras, proposed.cameras, strict=True)):
        added = drift.covariance if k in moved else np.zeros((6, 6))
        np.testing.assert_allclose(now.covariance - was.covariance, added, atol=1e-15)
    sigma_mm = np.hypot(drift.sigma_mm, volume_sigma_mm(rig.cameras[1].covariance))
    assert list(proposed.quality.sigma_volume_mm) == [f"cam{k}" for k in moved]
    assert list(proposed.quality.sigma_volume_mm.values()) == pytest.approx([sigma_mm] * len(moved), rel=0.15)


def test_a_rig_that_failed_does_not_become_a_usable_one_by_being_watched():
    rig, drift = a_rig(), bumped(2)[-1][1].drift
    assert drift is not None
    failed = replace(rig, quality=replace(rig.quality, verdict="fail", warnings=("squares are 1.2 % larger",)))
    proposed = Watch(failed).proposal(drift, "")
    assert proposed.quality.verdict == "fail" and proposed.quality.warnings[0] == "squares are 1.2 % larger"


def test_two_cameras_cannot_tell_which_of_them_moved():
    said = judgements(a_rig(2), 3, 80, (1, half_a_degree(1), 25.0))
    alarms = [j.words for _, j in said if j.state == "moved"]
    assert alarms and "which one cannot be told" in alarms[-1] and "cam0" in alarms[-1] and "cam1" in alarms[-1]


def test_nothing_is_said_before_a_hand_was_seen_for_long_enough():
    first = judgements(a_rig(), 1, 4)[0][1]
    assert first.state == "watching" and first.drift is None
    assert "two cameras must see a moving hand" in first.words


def test_a_camera_turned_far_is_named_though_its_hands_are_too_far_to_be_compared():
    far = np.array([0, np.radians(20), 0])
    said = judgements(a_rig(), 5, 45, (2, far, 20.0))
    assert {j.state for t, j in said if 10 < t < 20} == {"holds"}
    assert {(j.state, j.words.partition(" sees")[0]) for t, j in said if t > 28} == {("moved", "cam2")}


def test_of_two_cameras_far_apart_none_is_blamed():
    said = judgements(a_rig(2), 5, 30, (1, np.array([0, np.radians(20), 0]), 12.0))
    assert said[-1][1].state == "moved" and said[-1][1].words.startswith("cam0 and cam1 see one hand at different")


def test_a_hand_of_each_camera_that_the_other_cannot_see_is_no_alarm():
    watch = Watch(a_rig(2))
    aside = {0: np.array([-0.8, 0, 0.5]), 1: np.array([0.9, 0, 0.6])}  # each far out of the other's picture
    for t_ns, seen in moments(a_rig(2), 1, 12):
        for s in seen:
            s.T_wrist[:3, 3] += aside[s.camera]
        if watch.observe(t_ns, seen):
            assert watch.judge().state == "watching"


def test_what_was_seen_long_ago_says_nothing_of_now():
    watch = Watch(a_rig(2))
    said = {}
    for t_ns, seen in moments(a_rig(2), 2, 60):
        alone = [s for s in seen if s.camera == 0 or t_ns < 25e9]  # the other is silent from then on
        if watch.observe(t_ns, alone):
            said[round(t_ns * 1e-9)] = watch.judge()
    assert said[24].state == said[30].state == "holds"
    assert said[40].state == "watching" and "no hand is where two cameras see it" in said[40].words


def test_one_bad_second_is_no_alarm_though_nothing_follows():
    first = next(t for t, j in bumped(2) if j.state == "moved")
    watch = Watch(a_rig())
    states = []
    for t_ns, seen in moments(a_rig(), 12, 80, (2, half_a_degree(2), 25.0)):
        if watch.observe(t_ns, seen if t_ns * 1e-9 < first - 0.5 else []):  # up to the first of the two bad seconds
            states.append(watch.judge().state)
    assert "moved" not in states and "unsure" in states


def test_the_clock_of_a_watch_may_change():
    watch = Watch(a_rig())
    for t_ns, seen in moments(a_rig(), 0, 20):
        watch.observe(t_ns, seen)
    assert watch.judge().state == "holds"
    for t_ns, seen in moments(a_rig(), 1, 3):
        if watch.observe(t_ns + 10**18, seen):
            assert watch.judge().state == "watching", "what was seen by the other clock counts no more"


def no_hand(camera: str) -> list[bytes]:
    now = time.monotonic_ns()
    return encode_joints(Header(camera, 1, now, time.time_ns(), now), [], stages_us={}, dropped=0)


def watched(
    rig: Rig,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[[], bool],
    says: Callable[[], list[bytes]] = lambda: no_hand("cam0"),
    *more: str,
) -> tuple[Result, str]:
    """`calibrate watch` beside a daemon, stopped once so much was seen; and the daemon's address."""
    save_rig(rig, folder / "rig.json")
    stop, end_s = threading.Event(), time.monotonic() + 60
    monkeypatch.setattr(watch_cli, "stop_on_signal", lambda: lambda: until() or time.monotonic() > end_s)
    with Publisher("tcp://127.0.0.1:*") as daemon:

        def publish() -> None:
            while not stop.wait(0.02):
                daemon.poll_subscriptions()
                daemon.publish(says())

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            options = [str(folder / "rig.json"), "--from", daemon.address, *more]
            return CliRunner().invoke(watch_cli.watch, options), daemon.address
        finally:
            stop.set()
            thread.join()


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said every SAY_S of the cameras."""
    said, real = list[str](), watch_cli._words

    def noted(*given: Any) -> str:
        said.append(real(*given))
        return said[-1]

    monkeypatch.setattr(watch_cli, "_words", noted)
    monkeypatch.setattr(watch_cli, "SAY_S", 0.1)
    return said


@pytest.mark.parametrize(("named", "times"), [(["cam1"] * 3, 1), (["cam1", "cam1", "cam0"], 2)])
def test_the_proposal_on_disk_is_the_newest_one(
    named: list[str], times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    seen: list[Drift] = []

    class Surer(Watch):
        """Sees the camera further away every time."""

        def observe(self, t_ns: int, sightings: object) -> bool:
            return len(seen) < 3

        def judge(self) -> Judgement:
            T = se3.transform(np.eye(3), np.array([0.01 * (1 + len(seen)), 0, 0]))
            seen.append(Drift(named[len(seen)], 10.0 + len(seen), 0.5, 0.0, T, 1.0, np.eye(6)))
            return Judgement("moved", "one of them moved", seen[-1])

    monkeypatch.setattr(watch_module, "Watch", Surer)
    said, _ = watched(a_rig(2), tmp_path, monkeypatch, lambda: len(seen) == 3)
    assert said.exit_code == 3 and len(seen) == 3 and said.output.count("proposes where cam") == times
    proposed = load_rig(tmp_path / "rig.proposed.json")
    assert f"{named[-1]} moved by 12.0 mm" in proposed.quality.warnings[-1]
    if named[-1] == "cam1":
        assert proposed.cameras[1].T_ref_cam[0, 3] == pytest.approx(0.03)


def test_a_proposal_that_cannot_be_written_is_told_of_and_the_alarm_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    judged: list[int] = []

    class Moved(Watch):
        def observe(self, t_ns: int, sightings: object) -> bool:
            return True

        def judge(self) -> Judgement:
            judged.append(1)
            (tmp_path / "rig.proposed.json").mkdir(exist_ok=True)  # after the command began
            drift = Drift("cam1", 5.0, 1.0, 0.5, self.rig.cameras[1].T_ref_cam, 1.0, np.eye(6))
            return Judgement("moved", "cam1 moved", drift)

    monkeypatch.setattr(watch_module, "Watch", Moved)
    said, _ = watched(a_rig(2), tmp_path, monkeypatch, lambda: len(judged) > 3)
    assert said.exit_code == 3 and "proposes" not in said.output
    assert said.output.count("rig.proposed.json cannot be written: is a directory") == 1
    again, _ = watched(a_rig(2), tmp_path, monkeypatch, lambda: True)
    assert isinstance(again.exception, CommandError) and "watching" not in again.output
    assert str(again.exception) == f"{tmp_path}/rig.proposed.json cannot be written: is a directory"


def test_cameras_that_the_rig_does_not_know_and_silent_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
):  # fmt: skip
    said, _ = watched(a_rig(2), tmp_path, monkeypatch, lambda: "other" in "".join(words), lambda: no_hand("other"))
    last = said.output.splitlines()[-1]
    assert last == "0 of 2 cameras: cam0 not heard yet, cam1 not heard yet; not in the rig file: other"


def test_a_watch_that_heard_nothing_does_not_end_as_if_the_rig_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watch_cli, "stop_on_signal", lambda: lambda: False)  # Ctrl-C stays pytest's
    save_rig(a_rig(2), tmp_path / "rig.json")
    command = [str(tmp_path / "rig.json"), "--from", f"ipc://{tmp_path}/nobody", "--seconds", "0.1"]
    done = CliRunner().invoke(watch_cli.watch, command)
    assert done.exit_code == 4
    assert done.output.endswith("cam0 not heard yet, cam1 not heard yet; is `edge-hand run` running?\n")


@pytest.mark.parametrize(("states", "code"), [(["watching"] * 3, 4), (["watching", "holds", "watching"], 0)])
def test_a_watch_that_compared_no_hands_does_not_end_as_if_the_rig_held(
    states: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(states)

    class Told(Watch):
        def observe(self, t_ns: int, sightings: object) -> bool:
            return bool(left)

        def judge(self) -> Judgement:
            return Judgement(left.pop(0), "two cameras must see a moving hand for longer (0 s so far)", None)

    monkeypatch.setattr(watch_module, "Watch", Told)
    until = ["--seconds", "60"]
    done, _ = watched(a_rig(2), tmp_path, monkeypatch, lambda: not left, lambda: no_hand("cam0"), *until)
    told = "nothing can be said of the rig: two cameras must see a moving hand for longer (0 s so far)\n"
    assert (done.exit_code, done.output.endswith(told)) == (code, code == 4)


def test_a_daemon_that_cannot_be_read_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]):
    said, address = watched(
        a_rig(2), tmp_path, monkeypatch, lambda: "version" in "".join(words),
        says=lambda: [b"joints.cam0", msgpack.packb({"v": 2})],
    )  # fmt: skip
    assert f"{address}: joints.cam0: wire version 2, this edge-hand reads version 1" in said.output


@pytest.mark.parametrize("option", ["--keys", "--client-key"])  # as other clients call it, and as fuse must
def test_the_clients_key_has_both_names(option: str, tmp_path: Path) -> None:
    save_rig(a_rig(), tmp_path / "rig.json")
    key = tmp_path / "no.key_secret"
    command = [str(tmp_path / "rig.json"), "--from", "ipc:///nowhere", option, str(key)]
    done = CliRunner().invoke(watch_cli.watch, command)
    assert isinstance(done.exception, KeysError) and str(done.exception).startswith(f"{key}: no such key file")
