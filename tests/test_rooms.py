"""Rendered scenes and sequences: the same for ever, labelled as drawn, and moving as people do."""

from __future__ import annotations

import time
from functools import cache
from itertools import islice

import numpy as np
import pytest

pytest.importorskip("numba", reason="the trainer's pictures need numba")

from edge_hand.hand.crop import MIRROR
from edge_hand.hand.template import template
from edge_hand.trainer.synth.motion import Key, arm_at, minimum_jerk
from edge_hand.trainer.synth.people import Arm, body_surface, sample_build, way_out
from edge_hand.trainer.synth.rooms import (
    Actor,
    Scene,
    SceneGenerator,
    intrinsics_of,
    pose_person,
    sample_arm,
    sequence,
)
from edge_hand.trainer.synth.sensors import SENSORS
from edge_hand.trainer.synth.stage import sample_stage

FPS = 30.0


@cache
def scenes(n: int = 40) -> list[Scene]:
    generator = SceneGenerator("val", 1, noise=False, width=160)
    return [generator.scene(i) for i in range(n)]


@cache
def frames(index: int = 1, n: int = 90) -> list[Scene]:
    return list(sequence(index, n, FPS, stream="val", noise=False))


def same(a: Scene, b: Scene) -> bool:
    hands = len(a.hands) == len(b.hands) and all(
        np.array_equal(x.joints_m, y.joints_m) and x.seen == y.seen for x, y in zip(a.hands, b.hands, strict=True)
    )
    return hands and a.frame.intrinsics == b.frame.intrinsics and np.array_equal(a.frame.depth, b.frame.depth)


def test_a_scene_depends_on_its_index_alone():
    one, other = SceneGenerator("train", 3, width=160), SceneGenerator("train", 3, width=160)
    one.scene(0)
    assert same(one.scene(5), other.scene(5))


def test_streams_seeds_and_indices_differ():
    base = SceneGenerator("train", 0, width=160).scene(0)
    others = [SceneGenerator(s, k, width=160).scene(i) for s, k, i in (("val", 0, 0), ("train", 1, 0), ("train", 0, 1))]
    assert not any(same(base, other) for other in others)


def test_an_unknown_stream_is_refused():
    with pytest.raises(ValueError, match="scenes of stream real: possible are train, val, test"):
        SceneGenerator("real")
    with pytest.raises(ValueError, match="a sequence of stream real"):
        next(sequence(0, 1, stream="real"))


def test_scenes_show_none_one_and_two_hands_near_and_far():
    seen = [sum(h.seen > 0.5 for h in s.hands) for s in scenes()]
    assert {0, 1, 2} <= set(seen)
    depths = [h.joints_m[:, 2].mean() for s in scenes() for h in s.hands if h.seen > 0.5]
    assert min(depths) < 0.45 and max(depths) > 0.7
    assert {h.side for s in scenes() for h in s.hands} == {"left", "right"}


def test_the_frame_shows_a_seen_hand_where_the_label_says():
    checked = 0
    for scene in scenes():
        camera, depth = scene.frame.intrinsics, scene.frame.depth * scene.frame.depth_unit_m
        for hand in scene.hands:
            if hand.seen < 0.9:
                continue
            px = np.rint(camera.project(hand.vertices_m)).astype(int)
            inside = ((px >= 0) & (px < (camera.width, camera.height))).all(1)
            at = depth[px[inside, 1], px[inside, 0]]
            gap = np.abs(at[:, None] - hand.vertices_m[inside, 2][:, None]).ravel()
            assert np.mean(gap < 0.03) > 0.4  # its front; the vertices of its back lie behind
            checked += 1
    assert checked > 10


def test_labels_are_whole_hands_of_one_shape_a_person():
    for scene in scenes():
        for hand in scene.hands:
            assert hand.vertices_m.shape == (1609, 3) and hand.joints_m.shape == (21, 3)
            assert hand.alpha.shape == (6,) and hand.beta.shape == (7,) and 0 <= hand.seen <= 1
            assert np.linalg.norm(hand.vertices_m - hand.joints_m[9], axis=1).max() < 0.2
    pairs = [s.hands for s in scenes() if len(s.hands) == 2]
    assert sum(np.array_equal(a.alpha, b.alpha) for a, b in pairs) >= 0.8 * len(pairs) > 0


def test_left_hands_are_mirrored_and_right_ones_are_not():
    palm = template().part == 0
    rest = template().vertices_m[palm]
    for scene in scenes():
        for hand in scene.hands:
            posed = hand.vertices_m[palm] * (MIRROR if hand.side == "left" else 1)
            turn = (posed - posed.mean(0)).T @ (rest - rest.mean(0))  # as a rotation, or as one with a reflection
            assert np.linalg.det(turn) > 0


def test_pictures_keep_the_field_of_view_at_any_width():
    sensor = SENSORS["D435 848x480"]
    own, small = intrinsics_of(sensor), intrinsics_of(sensor, 212)
    assert (own.width, own.height, own.fx) == (848, 480, 425.0)
    assert (small.width, small.height) == (212, 120) and small.fx == pytest.approx(425 / 4)
    assert SceneGenerator("test", width=100).scene(0).frame.depth.shape[1] == 100


def test_noise_is_the_sensor_s():
    clean, noisy = (SceneGenerator("val", 1, noise=n, width=160).scene(2).frame for n in (False, True))
    both = (clean.depth > 0) & (noisy.depth > 0)
    assert (clean.depth[both] != noisy.depth[both]).mean() > 0.05
    assert np.median(np.abs(clean.depth[both] - noisy.depth[both].astype(float))) * clean.depth_unit_m < 0.03


def test_a_sequence_is_the_same_for_ever():
    again = list(islice(sequence(1, 90, FPS, stream="val", noise=False), 15))
    assert all(same(a, b) for a, b in zip(frames()[:15], again, strict=True))


def test_a_sequence_has_one_camera_one_person_and_a_steady_clock():
    first = frames()[0].frame
    shapes = {tuple(h.alpha) for s in frames() for h in s.hands}
    assert len(shapes) == 1
    assert all(s.frame.intrinsics == first.intrinsics for s in frames())
    assert [s.frame.seq for s in frames()] == list(range(90))
    assert np.all(np.diff([s.frame.t_ns for s in frames()]) == pytest.approx(1e9 / FPS, abs=1))


@pytest.mark.parametrize("index", [1, 2])
def test_hands_move_smoothly_and_never_faster_than_people(index):
    speeds, fastest = [], 0.0
    for a, b in zip(frames(index)[:-1], frames(index)[1:], strict=True):
        before = {h.side: h.joints_m.mean(0) for h in a.hands}
        for h in b.hands:
            if h.side in before:
                speeds.append(float(np.linalg.norm(h.joints_m.mean(0) - before[h.side])) * FPS)
                fastest = max(fastest, speeds[-1])
    if speeds:
        assert fastest < 3.0 and np.median(speeds) < 1.0


def test_hands_keep_out_of_the_body_and_each_other():
    rng = np.random.default_rng(4)
    deep = []
    for _ in range(12):
        build = sample_build(rng)
        stage = sample_stage(rng, build, intrinsics_of(SENSORS["D435 424x240"], 212))
        actor = Actor(build, np.eye(3), np.zeros(3), stage.turns)
        arms = {s: sample_arm(rng, actor, stage, s, idle=False) for s in (0, 1)}
        posed, _ = pose_person(actor, arms, stage, tries=8)
        surface = body_surface(posed.body_m)
        for hand in posed.hands:
            others = [h for h in posed.hands if h is not hand]
            deep.append(float(np.linalg.norm(way_out(hand, surface, others))))
    assert np.quantile(deep, 0.9) < 0.006 + 0.006  # they keep 6 mm clear where they can


@pytest.mark.slow
def test_hands_come_go_and_move_over_eight_sequences():
    seen = [[{h.side for h in s.hands if h.seen > 0.5} for s in sequence(i, 200, FPS, noise=False)] for i in range(8)]
    counts = np.array([[len(s) for s in frames] for frames in seen])
    assert {0, 1, 2} <= set(counts.ravel().tolist())
    changes = (np.diff(counts, axis=1) != 0).sum(1)
    assert (changes > 0).mean() > 0.5


def test_minimum_jerk_starts_and_ends_at_rest():
    s = np.linspace(0, 1, 101)
    way = np.array([minimum_jerk(x) for x in s])
    assert way[0] == 0 and way[-1] == 1 and (np.diff(way) >= 0).all()
    assert np.diff(way)[[0, -1]].max() < 1e-4
    assert np.diff(way).max() * 100 == pytest.approx(1.875, rel=1e-3)


def test_an_arm_without_moves_stays():
    arm = Arm(np.ones(3), 0.1, 0.2, np.zeros(2), np.zeros(20))
    later = arm._replace(wrist_m=np.zeros(3))
    keys = [Key(0, 0, arm, np.zeros(3)), Key(1.0, 2.0, later, np.array([0, 0, 0.1]))]
    assert np.allclose(arm_at(keys, 0.5).wrist_m, 1) and np.allclose(arm_at(keys, 9.0).wrist_m, 0)
    assert np.allclose(arm_at(keys, 1.5).wrist_m, (0.5, 0.5, 0.6))


@pytest.mark.slow
def test_scenes_are_drawn_in_time():
    generator = SceneGenerator("val", 0, width=320)
    generator.scene(0)
    begun = time.process_time()
    for i in range(20):
        generator.scene(i)
    assert (time.process_time() - begun) / 20 < 0.03  # 11 ms on one core of the machine it was made on
