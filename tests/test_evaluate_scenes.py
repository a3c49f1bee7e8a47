"""Finding and tracking measured on scenes with trackers whose faults are known."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("numba", reason="the trainer's pictures need numba")

from edge_hand.edge.networks.card import MODELS, load_card
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame, HandPose
from edge_hand.hand.template import template
from edge_hand.trainer.evaluate_scenes import Sheets, evaluate_scenes, main, match, must_be_found, text
from edge_hand.trainer.synth.rooms import Scene, SceneHand

CAMERA = Intrinsics(160, 120, 130.0, 130.0, 79.5, 59.5)


class Published(NamedTuple):
    id: int
    pose: HandPose


def hand(side: str, x: float = 0.0, seen: float = 1.0, z: float = 0.6) -> SceneHand:
    t = template()
    at = np.array([x, 0, z])
    return SceneHand(side, t.joints_m + at, t.vertices_m + at, seen, np.ones(6), np.zeros(7))


def scene(i: int, *hands: SceneHand) -> Scene:
    depth = np.full((120, 160), 800, np.uint16)
    return Scene(DepthFrame("scene", i, i * 33_000_000, depth, 0.001, CAMERA), hands)


def pose_of(truth: SceneHand, side: str | None = None, shift_m: float = 0.0) -> HandPose:
    joints = truth.joints_m + (shift_m, 0, 0)
    return HandPose(
        side=side or truth.side,  # type: ignore[arg-type]
        side_conf=1.0,
        state="tracked",
        score=1.0,
        T_camera_wrist=np.eye(4),
        theta=np.zeros(26),
        alpha=truth.alpha,
        beta=truth.beta,
        joints_m=joints,
        vertices_m=truth.vertices_m,
        joint_conf=np.ones(21),
        fit_mm=0.0,
    )


class Told:
    """A tracker that publishes what it was told for each frame."""

    def __init__(self, answers: list[list[Published]]) -> None:
        self.answers, self.stages_us = answers, {"find": 0.0, "crop": 100.0}

    def process(self, frame: DepthFrame) -> list[Published]:
        return self.answers[frame.seq]


def measured(shown: list[Scene], answers: list[list[Published]], **options):
    def scenes(number: int, n: int, fps: float) -> Iterator[Scene]:
        return iter(shown[:n])

    tracker: Callable[[], Told] = lambda: Told(answers)  # noqa: E731
    return evaluate_scenes(len(shown), tracker, per_sequence=len(shown), scenes=scenes, **options)


def test_a_tracker_that_is_right_scores_full_marks():
    shown = [scene(i, hand("left", -0.2), hand("right", 0.2)) for i in range(6)]
    told = [[Published(k + 1, pose_of(h)) for k, h in enumerate(s.hands)] for s in shown]
    report = measured(shown, told)
    assert (report["recall"], report["false_frames"], report["side_right"], report["id_switches_per_10000"]) == (
        1,
        0,
        1,
        0,
    )
    assert report["hands_to_find"] == 12 and report["wait_frames"]["worst"] == 0
    assert report["joint_error_mm"]["p99"] == pytest.approx(0)
    assert report["stage_p50_us"] == {"crop": 100.0} and report["stage_ran"] == {"crop": 1.0}


def test_missed_hands_lower_recall_and_are_listed():
    shown = [scene(i, hand("right")) for i in range(4)]
    told = [[Published(1, pose_of(shown[0].hands[0]))], [], [], []]
    report = measured(shown, told)
    assert report["recall"] == 0.25
    assert report["failures"]["missed"] == [[0, 1], [0, 2], [0, 3]]


def test_a_hand_out_of_sight_too_near_too_far_or_tiny_need_not_be_found():
    frame = scene(0).frame
    assert must_be_found(hand("left"), frame)
    for unfair in (hand("left", seen=0.4), hand("left", z=0.15), hand("left", z=1.5)):
        assert not must_be_found(unfair, frame)
    tiny = hand("left", z=1.2)._replace(vertices_m=np.tile([0, 0, 1.2], (1609, 1)))
    assert not must_be_found(tiny, frame)


def test_a_hand_that_the_sensor_does_not_read_need_not_be_found():
    here = hand("left")
    row = np.median(CAMERA.project(here.vertices_m)[:, 1])
    for unread, must in ((slice(0, int(row - 8)), True), (slice(0, int(row + 8)), False), (slice(None), False)):
        depth = scene(0).frame.depth.copy()
        depth[unread] = 0
        assert must_be_found(here, replace(scene(0).frame, depth=depth)) is must


def test_a_published_hand_far_from_every_true_one_is_false():
    truth = hand("right")
    shown = [scene(i, truth) for i in range(4)]
    told = [[Published(1, pose_of(truth)), Published(2, pose_of(truth, shift_m=0.3))]] + [
        [Published(1, pose_of(truth))]
    ] * 3
    report = measured(shown, told)
    assert report["false_frames"] == 0.25 and report["failures"]["false"] == [[0, 0]]
    near_a_hidden_one = measured([scene(0, truth._replace(seen=0.0))], [[Published(1, pose_of(truth))]])
    assert near_a_hidden_one["false_frames"] == 1  # what does not show cannot be seen


def test_false_hands_that_are_said_to_be_predicted_count_and_are_told_apart() -> None:
    shown = [scene(i) for i in range(4)]
    there = pose_of(hand("right"))
    guessed = replace(there, state="predicted")
    report = measured(shown, [[Published(1, there)], [Published(1, guessed)], [Published(1, guessed)], []])
    assert (report["false_frames"], report["false_frames_tracked"]) == (0.75, 0.25)
    assert "  not predicted   25.000 %" in text(report).splitlines()


def test_false_hands_in_a_row_are_one_run_and_none_goes_on_in_the_next_sequence() -> None:
    there = "01001110011"
    told = [[Published(1, pose_of(hand("right")))] if c == "1" else [] for c in there]
    shown = [scene(i) for i in range(len(there))]
    report = evaluate_scenes(2 * len(there), lambda: Told(told), per_sequence=len(there), scenes=lambda *_: iter(shown))
    assert report["false_runs"] == {"n": 6, "median": 2.0, "longest": 3} and report["false_hands"] == 12
    assert "  in a row        6 times, 2 frames in the median, 3 the longest" in text(report).splitlines()


def test_sides_are_right_wrong_or_unknown():
    truth = hand("right")
    told = [[Published(1, pose_of(truth, side))] for side in ("right", "left", "unknown", "right")]
    report = measured([scene(i, truth) for i in range(4)], told)
    assert report["side_right"] == 0.5 and report["side_unknown"] == 0.25
    assert report["failures"]["side"] == [[0, 1]]


def test_ids_may_change_only_while_the_hand_is_away():
    truth = hand("right")
    away = range(2, 9)  # 0.2 s and more
    shown = [scene(i) if i in away else scene(i, truth) for i in range(11)]
    ids = [1, 1, *[None] * 7, 7, 8]
    told = [[Published(i, pose_of(truth))] if i else [] for i in ids]
    report = measured(shown, told)
    assert report["failures"]["switch"] == [[0, 10]]
    assert report["id_switches_per_10000"] == pytest.approx(10_000 / 11)
    assert report["back"] == 1 and report["back_as_before"] == 0
    told[9] = [Published(1, pose_of(truth))]
    assert measured(shown, told)["back_as_before"] == 1


def test_a_hand_that_is_hidden_for_a_moment_has_not_left():
    truth = hand("right")
    shown = [scene(i) if i == 2 else scene(i, truth) for i in range(5)]
    told = [[Published(i, pose_of(truth))] if i else [] for i in (1, 1, None, 7, 7)]
    report = measured(shown, told)
    assert report["failures"]["switch"] == [[0, 3]] and report["back"] == 0 and report["appearances"] == 1


def test_a_second_hand_published_where_there_is_one_is_false():
    truth = hand("right")
    twice = [Published(1, pose_of(truth)), Published(2, pose_of(truth, shift_m=0.02))]
    assert measured([scene(0, truth)], [twice])["false_frames"] == 1
    other = hand("left", 0.02)
    assert measured([scene(0, truth, other)], [twice])["false_frames"] == 0


def test_only_hands_that_must_be_found_are_waited_for():
    hardly, truth = hand("right", seen=0.3), hand("right")
    found = Published(1, pose_of(truth))
    told: list[list[Published]] = [[found], [], [], [], [found]]
    report = measured([scene(0, hardly), scene(1, hardly), scene(2, truth), scene(3, hardly), scene(4, truth)], told)
    assert report["appearances"] == 1 and report["wait_frames"]["worst"] == 2
    assert measured([scene(i, hardly) for i in range(5)], told)["appearances"] == 0


def test_the_wait_counts_from_the_first_frame_that_shows_the_hand():
    truth = hand("right")
    shown = [scene(0), scene(1), *(scene(i, truth) for i in range(2, 9))]
    told: list[list[Published]] = [[]] * 7 + [[Published(1, pose_of(truth))]] * 2
    report = measured(shown, told)
    assert report["wait_frames"]["worst"] == 5 and report["appearances"] == 1
    assert report["failures"]["late"] == [[0, 5]]


def test_a_hand_that_is_never_found_waits_to_the_end():
    report = measured([scene(i, hand("right")) for i in range(5)], [[]] * 5)
    assert report["wait_frames"]["worst"] == 5 and report["recall"] == 0


def test_crossing_hands_are_matched_nearest_first():
    true = [np.zeros(3), np.array([0.05, 0, 0])]
    assert match(true, [np.array([0.04, 0, 0]), np.array([0.01, 0, 0])]) == {0: 1, 1: 0}
    assert match(true, [np.array([0.5, 0, 0])]) == {}


def test_text_has_a_number_a_line_and_failures_are_drawn(tmp_path: Path):
    sheets = Sheets()
    report = measured([scene(i, hand("right")) for i in range(5)], [[]] * 5, on_failure=sheets)
    assert "recall            0.00 %, nan % of them predicted" in text(report).splitlines()
    json.dumps(report)
    assert {p.name for p in sheets.save(tmp_path)} == {"missed.png", "late.png"}
    assert all((tmp_path / name).stat().st_size > 500 for name in ("missed.png", "late.png"))


def test_the_command_makes_the_folders_and_writes_of_the_network_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shown = iter([scene(i) for i in range(3)])
    measure = functools.partial(evaluate_scenes, scenes=lambda *_: shown)
    monkeypatch.setattr("edge_hand.trainer.evaluate_scenes.evaluate_scenes", measure)
    out = tmp_path / "new" / "scenes.json"
    main(["--frames", "3", "--json", str(out), "--model", "dgn-nano", "--finder", "geometry"])
    result = json.loads(out.read_text())
    assert result["model"] == load_card(MODELS / "dgn-nano.onnx").sha256 and result["frames"] == 3
    assert capsys.readouterr().out.startswith("frames            3 in 1 sequences")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("--json", "/dev/null/x/y.json"), "evaluate_scenes: folder /dev/null/x cannot be made: not a directory"),
        (("--model", "/no.onnx"), "evaluate_scenes: model /no.onnx: no such file"),
        (("--finder", "dgn-nano"), "its kind is 'dgn'; this needs finder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(given: tuple[str, str], text: str):
    with pytest.raises(SystemExit, match=text):
        main(["--frames", "1000000", *given])


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="0 frames in sequences of 500: at least 1 of each is needed"):
        evaluate_scenes(0, lambda: Told([]))
