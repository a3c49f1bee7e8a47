"""Crops of rooms: the same for ever by index, labelled where the picture shows the hand, and none where none is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")

import torch
from edge_hand.edge.engines import open_engine
from edge_hand.edge.refit import Refit
from edge_hand.exporters.onnx import export
from edge_hand.hand.crop import points_from_uvd
from edge_hand.hand.frames import HandRoi
from edge_hand.hand.skeleton import JOINT_PARENTS
from edge_hand.hand.template import template
from edge_hand.trainer.batches import batches
from edge_hand.trainer.checkpoint import TrainConfig, TrainError, load_net, prior, share_without
from edge_hand.trainer.nets.extension import GRID
from edge_hand.trainer.parallel import Group
from edge_hand.trainer.synth.labeller import Labeller
from edge_hand.trainer.synth.room_crops import AWAY_M, HARDLY_SEEN, PER_ROOM, SHARE_WITHOUT, RoomCrops, away, somewhere
from edge_hand.trainer.synth.samples import CELLS, CUBE_M, Generator, Sample
from edge_hand.trainer.torch_engine import TorchEngine
from edge_hand.trainer.train import train
from test_samples import assert_same

N = 60
TINY = TrainConfig(width=8, samples=16, batch=8, warmup=8, coarse=0, left_share=0.2, bf16=False, room_share=0.5)


@pytest.fixture(scope="module")
def crops() -> RoomCrops:
    return RoomCrops("val")


@pytest.fixture(scope="module")
def batch(crops: RoomCrops) -> Sample:
    return crops.batch(0, N)


def test_a_crop_depends_on_stream_seed_and_index_alone(crops: RoomCrops, batch: Sample) -> None:
    again = RoomCrops("val")
    for i in (17, 4, 5):
        assert_same(again.sample(i), Sample(*(column[i] for column in batch)))
    others = [RoomCrops(stream, seed).sample(5).image for stream, seed in (("val", 1), ("train", 0))]
    assert all((other != batch.image[5]).any() for other in others)


def test_hands_and_what_is_none_come_as_often_as_the_prior_says(batch: Sample) -> None:
    assert batch.is_hand.mean() == pytest.approx(1 - SHARE_WITHOUT, abs=0.15)
    assert not batch.on_hand[~batch.is_hand].any() and not batch.joints_uvd[~batch.is_hand].any()
    shown = (batch.image[~batch.is_hand] < 1).mean((1, 2))
    assert (shown > 0.05).mean() > 0.8  # not empty air


def test_cells_on_a_hand_tell_the_skin_that_is_there(batch: Sample) -> None:
    t, off, checked = template(), [], 0
    centres = (2 * np.arange(CELLS) + 1) / CELLS - 1
    for i in np.flatnonzero(batch.is_hand & (batch.on_hand.sum((1, 2)) > 20)):
        rows, columns = np.nonzero(batch.on_hand[i])
        uv = batch.uv[i][rows, columns]
        gap = np.linalg.norm(t.uv[None] - uv[:, None, None], axis=-1).min(2)  # (cells, V)
        there = batch.vertices_uvd[i][gap.argmin(1)]
        seen = np.stack([centres[columns], centres[rows], batch.image[i][2 * rows, 2 * columns]], 1)
        off.append(np.linalg.norm(there - seen, axis=1).mean() * CUBE_M / 2)
        checked += 1
    assert checked >= 8 and np.median(off) < 0.006 and max(off) < 0.015


def test_a_cell_is_told_the_skin_that_a_lone_hands_cell_is() -> None:
    label, cell = Labeller(), 1 / (GRID - 1)
    off = []
    for sample in map(Generator("val", kind="clean", left_share=0.0, negative_share=0.0).sample, range(8)):
        points = (
            points_from_uvd(uvd.astype(np.float64), float(sample.distance_m), float(sample.cube_m))
            for uvd in (sample.joints_uvd, sample.vertices_uvd)
        )
        its = label(sample.image, float(sample.distance_m), float(sample.cube_m), *points)
        both = its.on_hand & sample.on_hand
        assert both.sum() > 0.9 * sample.on_hand.sum()
        off.append((its.uv - sample.uv)[both])
    assert np.abs(np.median(np.concatenate(off), 0)).max() < 0.01 * cell
    assert np.median(np.linalg.norm(np.concatenate(off), axis=1)) < 0.03 * cell


@pytest.mark.slow
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_skin_of_a_hand_that_is_seen_is_found_in_its_crop(crops: RoomCrops, side: str) -> None:
    shares = []
    for number in range(60):
        hands = [h for h in crops.rooms.scene(number).hands if h.seen >= 0.25]
        if len(hands) != 1 or hands[0].side != side or hands[0].seen < 0.8:
            continue
        sample = crops.sample(number * PER_ROOM)
        drawn, on_hand = sample.vertices_uvd[:, :2], sample.on_hand
        cells = {(int(v), int(u)) for u, v in np.floor((drawn + 1) * CELLS / 2) if 0 <= u < CELLS and 0 <= v < CELLS}
        shares.append(on_hand.sum() / len(cells))
    assert len(shares) >= 3 and np.median(shares) > 0.5, shares


def test_labels_are_those_of_right_hands(batch: Sample) -> None:
    t, hands = template(), np.flatnonzero(batch.is_hand)
    palm = np.linalg.norm(t.vertices_m - t.joints_m[9], axis=1) < 0.035
    a = t.vertices_m[palm] - t.vertices_m[palm].mean(0)
    for i in hands:
        b = batch.vertices_uvd[i][palm].astype(float)
        u, _, vt = np.linalg.svd(a.T @ (b - b.mean(0)))
        assert np.linalg.det(u @ vt) > 0  # a turn takes the template's palm there, no mirror
        bones = np.linalg.norm(batch.joints_uvd[i][1:] - batch.joints_uvd[i][list(JOINT_PARENTS[1:])], axis=1)
        assert 0.02 < bones.mean() * CUBE_M / 2 < 0.05
        inside = np.abs(batch.joints_uvd[i].mean(0)) * CUBE_M / 2
        assert inside.max() < 0.1  # the cube is about the hand


def test_most_hands_are_shown_as_right_ones_and_the_others_in_the_mirror() -> None:
    always, never = RoomCrops("val", left_share=1.0), RoomCrops("val", left_share=0.0)
    i = next(i for i in range(0, N, 2) if never.sample(i).is_hand)
    left, right = always.sample(i), never.sample(i)
    np.testing.assert_array_equal(left.image, right.image[:, ::-1])
    assert right.is_right and not left.is_right and not left.on_hand.any() and right.on_hand.any()


def test_a_proposal_at_a_hand_is_no_mistake_and_one_elsewhere_is_looked_at(crops: RoomCrops) -> None:
    number, scene = next(
        (k, s) for k, s in ((k, crops.rooms.scene(k)) for k in range(30)) if any(h.seen > 0.6 for h in s.hands)
    )
    hand = next(h for h in scene.hands if h.seen > 0.6)
    middle = hand.joints_m.mean(0)
    far = middle + (0, 0, 0.5)
    assert not away(scene, middle) and away(scene, far)
    fooled = RoomCrops("val")
    fooled.finder = lambda frame: [HandRoi("right", place, CUBE_M, 0.9) for place in (middle, far)]  # type: ignore[assignment]
    sample = fooled.sample(number * PER_ROOM + 1)
    assert not sample.is_hand and abs(float(sample.distance_m) - np.linalg.norm(far)) < 0.1


def test_somewhere_is_behind_a_surface_and_away_from_hands(crops: RoomCrops) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        scene = crops.rooms.scene(number)
        place = somewhere(rng, scene)
        near = [np.linalg.norm(h.joints_m.mean(0) - place) for h in scene.hands if h.seen > HARDLY_SEEN]
        assert min(near, default=1.0) > AWAY_M and place[2] > 0
        column, row = np.rint(scene.frame.intrinsics.project(place[None])[0]).astype(int)
        reading = scene.frame.depth[row, column] * scene.frame.depth_unit_m
        assert -1e-3 <= place[2] - reading <= 0.041
    blind = replace(scene.frame, depth=np.zeros_like(scene.frame.depth))
    assert 0.2 <= somewhere(rng, scene._replace(frame=blind))[2] <= 1.3


def test_two_processes_see_what_one_does() -> None:
    whole = next(batches(TINY, Group(), 8, 0))
    shares = [next(batches(TINY, Group(rank, 2), 8, 0)) for rank in range(2)]
    for part, of_one in ((slice(0, 2), slice(0, 4)), (slice(2, 4), slice(4, 8))):
        torch.testing.assert_close(torch.cat([s.image[part] for s in shares]), whole.image[of_one])
        torch.testing.assert_close(torch.cat([s.uv[part] for s in shares]), whole.uv[of_one])


def test_a_network_learns_from_rooms_and_its_logits_are_freed_of_their_share(tmp_path: Path) -> None:
    path = train(TINY, tmp_path, workers=0, threads=1, validate_every=0)
    _, config, seen = load_net(path)
    assert seen == 16 and config.room_share == 0.5
    assert share_without(config) == pytest.approx(0.5 * 0.05 + 0.5 * SHARE_WITHOUT)
    assert share_without(replace(config, room_share=0.0)) == 0.05
    assert share_without(replace(config, real="nyu:/", real_share=0.25)) == pytest.approx(
        0.05 / 3 + SHARE_WITHOUT * 2 / 3
    )
    image = np.random.default_rng(0).uniform(-1, 1, (64, 64)).astype(np.float32)
    net, _, _ = load_net(path)
    with torch.no_grad():
        raw = float(net(torch.from_numpy(image)[None, None]).presence_logit)
    guess = TorchEngine(path).guess(image, 0.5, 0.25, Refit())
    assert guess.presence_logit == pytest.approx(raw - prior(share_without(config)), abs=1e-4)
    export(path, tmp_path / "net.onnx")
    told = open_engine("onnxruntime", tmp_path / "net.onnx").run(image[None, None])[4]
    assert float(told[0]) == pytest.approx(guess.presence_logit, abs=1e-2)


def test_a_share_that_leaves_nothing_is_refused() -> None:
    for share, n in ((0.01, 0), (0.99, 8)):
        with pytest.raises(TrainError, match=f"^--room-share {share}: would be {n} of a process's 8 samples a step$"):
            next(batches(replace(TINY, room_share=share), Group(), 0, 0))
    for config in (replace(TINY, kind="clean"), replace(TINY, net="deephps")):
        with pytest.raises(TrainError, match=r"^--room-share: is for a network that says whether there is a hand"):
            next(batches(config, Group(), 0, 0))
