"""Synthetic samples: the same for ever by index, with labels that lie where the picture shows the hand."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from edge_hand.hand.arrays import Array
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.crop import points_from_uvd
from edge_hand.hand.render import render
from edge_hand.hand.skeleton import JOINT_PARENTS
from edge_hand.hand.template import template
from edge_hand.trainer.synth import sheet
from edge_hand.trainer.synth.samples import (
    CELLS,
    CUBE_M,
    FAR_M,
    NEAR_M,
    Generator,
    RendererDied,
    Sample,
    stream_batches,
)
from PIL import Image

N = 48


@pytest.fixture(scope="module")
def batch() -> Sample:
    return Generator("val").batch(0, N)


def assert_same(a: Sample, b: Sample) -> None:
    for name, x, y in zip(Sample._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def test_a_sample_is_the_same_in_any_order_and_in_any_generator() -> None:
    one, two = Generator("train", seed=7), Generator("train", seed=7)
    indices = [5, 300, 0, 64, 128]  # 0, 64 and 128 show one hand from several sides, 300 takes its slot's place
    forwards = {i: one.sample(i) for i in indices}
    backwards = {i: two.sample(i) for i in reversed(indices)}
    for i in indices:
        assert_same(forwards[i], backwards[i])
        assert_same(forwards[i], one.sample(i))


def test_streams_and_seeds_never_share_a_sample() -> None:
    images = [Generator(stream, seed).sample(0).image for stream in ("train", "val", "test") for seed in (0, 1)]
    for i, image in enumerate(images):
        assert all((image != other).any() for other in images[:i])


def test_views_of_one_training_hand_are_a_batch_apart() -> None:
    g = Generator("train")

    def bones(index: int) -> Array:
        s = g.sample(index)
        joints = points_from_uvd(s.joints_uvd.astype(float), float(s.distance_m), CUBE_M)
        return np.asarray(np.linalg.norm(joints[1:] - joints[list(JOINT_PARENTS[1:])], axis=1))

    for view in (64, 128, 192):
        np.testing.assert_allclose(bones(3), bones(3 + view), rtol=1e-4)
        assert (g.sample(3).image != g.sample(3 + view).image).any()
    assert np.abs(bones(3) - bones(3 + 256)).max() > 1e-4
    assert np.abs(bones(3) - bones(4)).max() > 1e-4


def test_a_batch_has_the_shapes_and_types_the_nets_read(batch: Sample) -> None:
    shapes = {
        "image": ((N, 64, 64), np.float32),
        "uv": ((N, CELLS, CELLS, 2), np.float32),
        "on_hand": ((N, CELLS, CELLS), np.bool_),
        "vertices_uvd": ((N, 1609, 3), np.float32),
        "joints_uvd": ((N, 21, 3), np.float32),
        "distance_m": ((N,), np.float32),
        "cube_m": ((N,), np.float32),
        "is_right": ((N,), np.bool_),
        "is_hand": ((N,), np.bool_),
    }
    assert {name: (x.shape, x.dtype.type) for name, x in batch._asdict().items()} == shapes
    assert all(np.isfinite(x).all() for x in batch)


def test_images_stay_between_minus_one_and_plus_one_and_have_background(batch: Sample) -> None:
    assert batch.image.min() >= -1 and batch.image.max() <= 1
    hand = (batch.image < 1).mean((1, 2))
    assert hand.min() > 0.05 and np.median(hand) < 0.8
    assert (batch.image == 1).mean() > 0.2


def test_some_pictures_are_noisy_and_have_holes_and_some_hardly(batch: Sample) -> None:
    middle = np.where(batch.image < 1, batch.image, 0)[:, 16:48, 16:48]
    roughness = np.median(np.abs(np.diff(middle, 2, axis=2)), (1, 2))  # (N,)
    assert roughness.max() > 4 * np.percentile(roughness, 10)
    near = batch.image < 1
    holes = ~near[:, 1:-1, 1:-1] & near[:, :-2, 1:-1] & near[:, 2:, 1:-1] & near[:, 1:-1, :-2] & near[:, 1:-1, 2:]
    per_image = holes.sum((1, 2))
    assert (per_image > 3).mean() > 0.1
    assert (per_image == 0).mean() > 0.1


def test_the_hand_is_in_the_cube(batch: Sample) -> None:
    assert (np.abs(batch.joints_uvd) < 1).mean() > 0.98
    assert np.abs(np.median(batch.joints_uvd, (0, 1))).max() < 0.15
    np.testing.assert_array_equal(batch.cube_m, np.float32(CUBE_M))
    assert batch.distance_m.min() >= NEAR_M and batch.distance_m.max() <= FAR_M


def test_labelled_vertices_lie_over_what_the_picture_shows(batch: Sample) -> None:
    over = []
    for image, vertices in zip(batch.image, batch.vertices_uvd, strict=True):
        column, row = np.floor((vertices[:, :2].T + 1) * 32).astype(int)
        seen = (column >= 1) & (column < 63) & (row >= 1) & (row < 63) & (np.abs(vertices[:, 2]) < 0.95)
        near = image < 1
        grown = sum(np.roll(near, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) > 0
        over.append(grown[row[seen], column[seen]].mean())
    assert np.median(over) > 0.99
    assert np.mean(over) > 0.93


def test_pictured_depth_is_the_depth_of_the_nearest_labelled_vertex(batch: Sample) -> None:
    offset_mm = np.concatenate([_nearest(batch, i)[1] for i in range(N)])
    assert np.median(np.abs(offset_mm)) < 4
    assert abs(np.median(offset_mm)) < 2


def test_layout_labels_are_those_of_the_nearest_labelled_vertex(batch: Sample) -> None:
    assert batch.uv.min() >= 0 and batch.uv.max() <= 1
    uv = template().uv  # (V, 2, 2)
    distance = []
    for i in range(N):
        vertex, _ = _nearest(batch, i)
        labelled = batch.uv[i][batch.on_hand[i]]  # (M, 2)
        distance.append(np.linalg.norm(uv[vertex] - labelled[:, None], axis=-1).min(1))
    apart = np.concatenate(distance)
    assert apart.size > 100 * N / 2
    assert np.median(apart) < 0.03
    assert (apart < 0.1).mean() > 0.85


def test_layout_labels_of_near_hands_are_those_of_the_point_seen_at_the_cells_centre(batch: Sample) -> None:
    """Nearer than 0.49 m all sensors give the largest patch, where a cell reads the pixel at its very centre."""
    t, apart = template(), []
    for i in np.flatnonzero(batch.distance_m < 0.49):
        distance = float(batch.distance_m[i])
        focal = CELLS * distance / CUBE_M
        camera = Intrinsics(CELLS, CELLS, focal, focal, CELLS / 2 - 0.5, CELLS / 2 - 0.5)
        vertices = points_from_uvd(batch.vertices_uvd[i].astype(float), distance, CUBE_M)
        face = render(vertices, t.faces, camera).face
        row, column = np.nonzero(batch.on_hand[i] & (face >= 0))
        corners = t.faces[face[row, column]]  # (M, 3)
        ray = camera.rays(np.stack([column, row], 1))
        weight = np.linalg.solve(np.swapaxes(vertices[corners], 1, 2), ray[..., None])[..., 0]  # (M, 3)
        weight /= weight.sum(1, keepdims=True)
        expected = (t.uv[corners, 0] * weight[..., None]).sum(1)  # (M, 2)
        off_seam = (t.uv[corners, 0] == t.uv[corners, 1]).all((1, 2))
        apart.append(np.linalg.norm(expected - batch.uv[i, row, column], axis=1)[off_seam])
    error = np.concatenate(apart)
    assert error.size > 1000
    assert np.median(error) < 1e-4
    assert (error < 1e-3).mean() > 0.95


def _nearest(batch: Sample, i: int) -> tuple[Array, Array]:
    """For each on-hand cell: the nearest vertex (M,) in crop coordinates, and how much deeper the picture is, mm."""
    row, column = np.nonzero(batch.on_hand[i])
    four = batch.image[i].reshape(CELLS, 2, CELLS, 2)[row, :, column, :].reshape(-1, 4)
    d = np.min(four, 1)
    point = np.stack([(column + 0.5) / 16 - 1, (row + 0.5) / 16 - 1, d], 1)  # (M, 3)
    vertices = batch.vertices_uvd[i]
    vertex = np.linalg.norm(point[:, None] - vertices[None], axis=-1).argmin(1)
    return vertex, (d - vertices[vertex, 2])[d < 1] * CUBE_M / 2 * 1000


def test_left_share_mirrors_that_share_and_hides_its_labels() -> None:
    plain, mixed = Generator("val", kind="sensorless"), Generator("val", left_share=0.4, kind="sensorless")
    left = 0
    for i in range(40):
        right_handed, sample = plain.sample(i), mixed.sample(i)
        assert right_handed.is_right
        if sample.is_right:
            assert_same(sample, right_handed)
        else:
            left += 1
            np.testing.assert_array_equal(sample.image, right_handed.image[:, ::-1])
            assert not sample.on_hand.any()
    assert 8 <= left <= 24


@pytest.mark.slow
def test_a_camera_s_shadows_do_not_tell_the_side() -> None:
    """Left hands are mirrored pictures of right ones, but the camera that saw them is not mirrored."""
    camera = ("D435 848x480",)
    clean = Generator("val", kind="sensorless", sensors=camera)
    seen = Generator("val", left_share=0.5, sensors=camera)
    tilt: dict[bool, list[float]] = {True: [], False: []}  # -1: all is lost left of near surfaces, 1: right
    for i in range(240):
        sample, true = seen.sample(i), clean.sample(i).image
        true = true if sample.is_right else true[:, ::-1]
        gone, step = (sample.image == 1) & (true < 1), np.diff(true, axis=1)
        right_of = (gone[:, 1:] & (step > 0.2)).sum()
        left_of = (gone[:, :-1] & (step < -0.2)).sum()
        if right_of + left_of > 3:
            tilt[bool(sample.is_right)].append(float(np.sign(float(right_of) - float(left_of))))
    assert min(len(t) for t in tilt.values()) > 12
    assert np.mean(tilt[True]) < -0.1 and np.mean(tilt[False]) < -0.1, tilt


def test_negative_share_of_the_samples_show_something_without_labels() -> None:
    mixed = Generator("val", negative_share=0.4).batch(0, 60)
    assert 12 <= (~mixed.is_hand).sum() <= 36
    nothing = ~mixed.is_hand
    assert not mixed.on_hand[nothing].any() and not mixed.vertices_uvd[nothing].any()
    assert (mixed.image[nothing] < 1).any((1, 2)).mean() > 0.7


def test_a_clean_sample_is_a_hand_alone_without_noise() -> None:
    batch = Generator("val", kind="clean").batch(0, 24)
    apart = []
    for i in range(24):
        _, mm = _nearest(batch, i)
        apart.append(np.abs(mm))
        cells = batch.image[i].reshape(CELLS, 2, CELLS, 2).min((1, 3)) < 1
        vertices = batch.vertices_uvd[i]
        low, high = (
            ((vertices[:, :2].min(0) + 1) * 16 - 1).astype(int),
            ((vertices[:, :2].max(0) + 1) * 16 + 2).astype(int),
        )
        inside = np.zeros_like(cells)
        inside[max(low[1], 0) : high[1], max(low[0], 0) : high[0]] = True
        assert (cells & ~inside).sum() < 200  # the forearm, nothing else
        assert batch.on_hand[i].sum() > 30
    assert np.median(np.concatenate(apart)) < 2.5


def test_a_sensorless_sample_is_the_same_scene_seen_without_error() -> None:
    seen, true = (Generator("val", kind=kind).batch(0, 24) for kind in ("full", "sensorless"))
    np.testing.assert_array_equal(seen.vertices_uvd, true.vertices_uvd)
    both = (seen.image < 1) & (true.image < 1)
    error_mm = np.abs(seen.image - true.image)[both] * CUBE_M / 2 * 1000
    assert 0.2 < np.median(error_mm) < 5
    assert (seen.image < 1).sum() != (true.image < 1).sum()


@pytest.mark.parametrize("image_px", [96, 120])
def test_other_crop_sizes_show_the_same_hand_in_more_pixels(image_px: int) -> None:
    small = Generator("val", kind="clean").sample(3)
    large = Generator("val", kind="clean", image_px=image_px).sample(3)
    assert large.image.shape == (image_px, image_px)
    np.testing.assert_array_equal(small.vertices_uvd, large.vertices_uvd)
    assert abs((small.image < 1).mean() - (large.image < 1).mean()) < 0.02


def test_an_unknown_stream_or_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="possible are train, val, test and full, sensorless, clean"):
        Generator("train", kind="real")


def test_a_worker_streams_the_generators_own_batches_in_order_whatever_signals_come() -> None:
    """Ctrl-C and a service's end go to the whole group: the trainer needs a batch more for its last step."""
    stream = stream_batches("train", 12, 4, seed=3, left_share=0.3, negative_share=0.2)
    generator = Generator("train", 3, 0.3, negative_share=0.2)
    before = set(mp.active_children())
    try:
        for k, batch in enumerate(islice(stream, 8)):
            assert_same(batch, generator.batch(12 + 4 * k, 4))
            (worker,) = set(mp.active_children()) - before
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker.pid, number)  # type: ignore[arg-type]
            worker.join(0.05)
            assert worker.is_alive()
    finally:
        stream.close()  # type: ignore[attr-defined]
    worker.join(5)
    assert worker.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told_at_once() -> None:
    """Within a batch, of which the pipe holds the first half: so it waits while the trainer is the slower one."""
    stream = stream_batches("train", 0, 4, kind="clean")
    before, told = set(mp.active_children()), []

    def draw() -> None:
        try:
            while True:
                next(stream)
        except RendererDied as died:
            told.append(died)

    next(stream)
    time.sleep(0.3)
    (worker,) = set(mp.active_children()) - before
    worker.kill()
    drawing = Thread(target=draw, daemon=True)
    drawing.start()
    drawing.join(60)
    assert told


DRAWS_AND_SAYS_WHO = """
import multiprocessing as mp, time
from edge_hand.trainer.synth.samples import stream_batches
if __name__ == "__main__":
    stream = stream_batches("train", 0, 1)
    next(stream)
    print(mp.active_children()[0].pid, flush=True)
    {then}
"""


@pytest.mark.slow
@pytest.mark.parametrize("then", ["pass", "time.sleep(300)"])
def test_a_worker_ends_with_who_draws(then: str) -> None:
    """Left open at the end of a script, and when the script is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRAWS_AND_SAYS_WHO.format(then=then)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    worker = Path("/proc", process.stdout.readline().strip())
    assert worker.name.isdigit()
    if then != "pass":
        process.kill()
    process.wait(60)
    until = time.monotonic() + 60
    while worker.exists() and time.monotonic() < until:
        time.sleep(0.05)
    if lives := worker.exists():
        os.kill(int(worker.name), signal.SIGKILL)
    assert not lives


@pytest.mark.parametrize(("found", "rows"), [(1, 1), (12, 1), (13, 2), (25, 3)])
def test_a_sheet_shows_all_hands_that_were_found(
    found: int, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand, given = np.zeros((8, 8), np.float32), ["sheet", str(tmp_path / "sheet.png"), "--real", str(tmp_path)]
    monkeypatch.setattr(sheet, "rendered", lambda _: [hand] * sheet.COLUMNS)
    monkeypatch.setattr(sheet, "real", lambda _: iter([hand] * found))
    monkeypatch.setattr(sys, "argv", given)
    sheet.main()
    with Image.open(given[1]) as picture:
        real = np.asarray(picture)[20 * len(sheet.SENSORS) :, sheet.TITLE_PX :]  # of 8 + 2 pixels, grown by 2
    assert real.shape == (20 * rows, 20 * sheet.COLUMNS, 3)
    assert (real[10::20, 10::20, 0] > 0).sum() == found
    monkeypatch.setattr(sheet, "real", lambda _: iter(()))
    with pytest.raises(SystemExit, match=f"^sheet: --real {tmp_path}: no hand was found in it$"):
        sheet.main()
