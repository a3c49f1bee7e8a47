"""The batched sample generator: the same for ever by index, on one device, like the compiled one in distribution."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from edge_hand.hand.arrays import Array
from edge_hand.hand.skeleton import ANGLE_LIMITS_RAD
from edge_hand.hand.template import template

pytest.importorskip("numba")
torch = pytest.importorskip("torch")

from edge_hand.hand.crop import points_from_uvd, uvd_from_points  # noqa: E402
from edge_hand.trainer.hand_layer import HandLayer  # noqa: E402
from edge_hand.trainer.losses import Labels  # noqa: E402
from edge_hand.trainer.synth import gpu, poses, raster_torch, samples  # noqa: E402
from edge_hand.trainer.synth.gpu import GpuGenerator  # noqa: E402

N, BANK = 40, 48
CPU = torch.device("cpu")
LAYER = HandLayer("cpu", every=1609)


def generator(stream: str = "val", seed: int = 0, **options: Any) -> GpuGenerator:
    return GpuGenerator(stream, seed, "cpu", **{"batch": N, "bank": BANK, **options})


@pytest.fixture(scope="module")
def full() -> GpuGenerator:
    return generator(left_share=0.2, negative_share=0.3)


@pytest.fixture(scope="module")
def batch(full: GpuGenerator) -> Labels:
    return full.batch(0)


@pytest.fixture(scope="module")
def clean() -> Labels:
    return generator(kind="clean").batch(0)


def assert_same(a: Labels, b: Labels) -> None:
    for name, x, y in zip(Labels._fields, a, b, strict=True):
        assert x is y is None or torch.equal(x, y), name


def test_a_batch_is_the_same_in_any_order_and_in_any_generator(full: GpuGenerator, batch: Labels) -> None:
    torch.manual_seed(5)
    other = generator(left_share=0.2, negative_share=0.3)
    second = other.batch(1)
    assert_same(other.batch(0), batch)
    stream = full.batches(0)
    assert_same(next(stream), batch)
    assert_same(next(stream), second)


@pytest.mark.slow
def test_streams_seeds_and_indices_never_share_a_sample() -> None:
    images = [generator(stream, seed, batch=2, bank=4).batch(index).image
              for stream in ("train", "val", "test") for seed in (0, 1) for index in (0, 1)]  # fmt: skip
    flat = torch.cat(images).flatten(1)
    assert len(torch.unique(flat, dim=0)) == len(flat)


def test_a_batch_has_the_fields_shapes_and_types_of_the_compiled_one(batch: Labels) -> None:
    rendered = samples.Generator("val", left_share=0.2, negative_share=0.3).batch(0, 2)
    assert Labels._fields[: len(samples.Sample._fields)] == samples.Sample._fields
    assert all(x is None for x in batch[len(samples.Sample._fields) :])  # what only real frames need
    for name, y in zip(samples.Sample._fields, rendered, strict=True):
        x = getattr(batch, name)
        assert x.shape == (N, *y.shape[1:]), name
        assert x.numpy().dtype == y.dtype, name
        assert torch.isfinite(x.float()).all(), name


@pytest.mark.parametrize("image_px", [96, 128])
def test_larger_images_keep_the_labels_size(image_px: int) -> None:
    larger = generator(batch=4, bank=8, image_px=image_px).batch(0)
    assert larger.image.shape == (4, image_px, image_px)
    assert larger.on_hand.shape == (4, samples.CELLS, samples.CELLS)


def test_every_tensor_is_made_on_the_generators_device() -> None:
    """With another default device, a tensor made without saying where meets those on this one, and that is an error."""
    raster_torch.constant.cache_clear()
    torch.set_default_device("meta")
    try:
        for kind in samples.KINDS:
            made = generator(kind=kind, batch=32, bank=8, negative_share=0.3, left_share=0.3).batch(0)
            assert {x.device for x in made if x is not None} == {CPU}
    finally:
        torch.set_default_device(None)
        raster_torch.constant.cache_clear()


def test_hands_are_loosened_inside_their_limits_and_not_into_each_other() -> None:
    hands = gpu.draw_bank(40, (3,), "full", CPU).angles
    angles = gpu.loosen(raster_torch.Draw((1,), CPU), LAYER, hands.repeat(5, 1))
    low, high = torch.tensor(ANGLE_LIMITS_RAD.T, dtype=torch.float32)
    assert ((angles >= low) & (angles <= high)).all()
    unchanged = (angles == hands.repeat(5, 1)).all(1)
    assert 0.2 < unchanged.float().mean() < 0.7
    strayed = (angles - hands.repeat(5, 1))[~unchanged].std().rad2deg()
    assert 2 < strayed < 5
    free = ~poses.penetrates(template(), hands.numpy().astype(float))
    assert not poses.penetrates(template(), angles.numpy().astype(float))[np.tile(free, 5)].any()


def test_penetration_is_judged_as_by_the_compiled_path() -> None:
    rng = np.random.default_rng(0)
    angles = rng.uniform(*ANGLE_LIMITS_RAD.T, (400, 20))
    ours = gpu.penetrates(LAYER, torch.tensor(angles, dtype=torch.float32)).numpy()
    theirs = poses.penetrates(template(), angles)
    assert 40 < theirs.sum() < 360
    assert (ours == theirs).mean() > 0.99  # single precision decides the closest calls


def test_joint_angles_are_spread_as_in_the_compiled_path() -> None:
    rng = np.random.default_rng(9)
    theirs = np.degrees([poses.sample_angles(template(), rng) for _ in range(300)])
    drawn = gpu.loosen(raster_torch.Draw((2,), CPU), LAYER, gpu.draw_bank(300, (4,), "full", CPU).angles)
    ours = drawn.rad2deg().numpy()
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 8
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.25)


@pytest.mark.slow
def test_views_and_shapes_of_a_bank_are_spread_as_in_the_compiled_path() -> None:
    rng, n = np.random.default_rng(0), 800
    for kind, view in (("full", poses.sample_view), ("clean", samples._palm_view)):
        bank = gpu.Bank(*(x.numpy() for x in gpu.draw_bank(800, (1,), kind, CPU)))
        theirs = np.stack([view(rng) for _ in bank.views])
        np.testing.assert_allclose(bank.views.mean(0), theirs.mean(0), atol=0.12)
        np.testing.assert_allclose((bank.views**2).mean(0), (theirs**2).mean(0), atol=0.1)
    alpha, beta = (np.stack(x) for x in zip(*(poses.sample_shape(rng) for _ in range(n)), strict=True))
    np.testing.assert_allclose(bank.alpha.mean(0), alpha.mean(0), atol=0.02)
    np.testing.assert_allclose(bank.beta.std(0), beta.std(0), atol=0.08)


def grain(s: Any) -> Array:
    """Log of how rough surfaces look."""
    bend = np.where(
        (s.image[..., 2:] < 1) & (s.image[..., 1:-1] < 1) & (s.image[..., :-2] < 1), np.diff(s.image, n=2), np.nan
    )
    seen = (~np.isnan(bend)).sum((1, 2)) > 50
    return np.asarray(np.log(np.nanmedian(np.abs(bend[seen]), axis=(1, 2)) + 1e-4))


@pytest.mark.slow
def test_pictures_are_like_those_of_the_compiled_path() -> None:
    theirs = samples.Generator("val", negative_share=0.2).batch(0, 128)
    ours = generator(negative_share=0.2, batch=256, bank=512).batch(0)
    ours = Labels(*(x if x is None else x.numpy() for x in ours))
    for of in (
        lambda s: s.distance_m,
        lambda s: (s.image < 1).mean((1, 2)),  # how much is in the cube
        lambda s: s.on_hand.mean((1, 2))[s.is_hand],
        lambda s: np.linalg.norm(s.joints_uvd, axis=-1).mean(1)[s.is_hand],
        lambda s: np.abs(np.diff(s.image)).mean((1, 2)),
        grain,
    ):
        a, b = of(theirs), of(ours)
        error = np.hypot(a.std() / len(a) ** 0.5, b.std() / len(b) ** 0.5)
        assert abs(a.mean() - b.mean()) < 4 * error
        assert 0.7 < a.std() / b.std() < 1.4


def seen_from_labels(labels: Labels, i: int) -> tuple[Array, Array, Array]:
    """What sample i's labelled hand looks like at the cells' centres: depth (m), face and weights."""
    d = labels.distance_m[i].item()
    vertices = points_from_uvd(labels.vertices_uvd[i].numpy().astype(float), d, samples.CUBE_M)
    slope = torch.tensor([samples.CUBE_M / 2 / d])
    faces = torch.tensor(template().faces, dtype=torch.int64)
    drawn = raster_torch.rasterise_batch(torch.tensor(vertices[None], dtype=torch.float32), faces, slope, samples.CELLS)
    inverse, face, weight = (x[0].numpy() for x in drawn)
    return np.where(inverse > 0, 1 / np.maximum(inverse, 1e-6), 0), face, weight


def test_layout_labels_and_depth_are_those_of_the_labelled_vertices_there(clean: Labels) -> None:
    """Where the patch has as many pixels a cell in each row as the largest, a cell reads the pixel at its centre."""
    t, off_m, off_uv = template(), [], []
    for i in np.flatnonzero(clean.distance_m.numpy() < 0.45):
        d = clean.distance_m[i].item()
        depth, face, weight = seen_from_labels(clean, i)
        at = clean.on_hand[i].numpy() & (face >= 0)
        corners, w = t.faces[face[at]], weight[at]
        w = np.concatenate([w, 1 - w.sum(1, keepdims=True)], 1)
        off_seam = (t.uv[corners, 0] == t.uv[corners, 1]).all((1, 2))
        uv = (t.uv[corners, 0] * w[..., None]).sum(1)
        off_uv.append(np.linalg.norm(uv - clean.uv[i].numpy()[at], axis=1)[off_seam])
        image = clean.image[i].numpy().reshape(32, 2, 32, 2).swapaxes(1, 2)[at].reshape(-1, 4)
        middle = np.where((image < 1).all(1), image.mean(1), np.nan)
        off_m.append(middle * samples.CUBE_M / 2 + d - depth[at])
    uv_error, depth_error = np.concatenate(off_uv), np.concatenate(off_m)
    assert uv_error.size > 500
    assert np.median(uv_error) < 1e-3
    assert (uv_error < 0.02).mean() > 0.95
    assert np.nanmedian(np.abs(depth_error)) < 5e-4
    assert np.nanmean(np.abs(depth_error) < 0.004) > 0.9


def test_labels_keep_their_unit(full: GpuGenerator) -> None:
    points = torch.randn(3, 7, 3) * 0.05 + torch.tensor([0, 0, 0.5])
    distance = torch.tensor([0.4, 0.5, 0.6])
    expected = uvd_from_points(points.numpy(), distance.numpy()[:, None], samples.CUBE_M)
    np.testing.assert_allclose(gpu._uvd(points, distance), expected, rtol=1e-5, atol=1e-6)


def test_left_hands_are_mirrored_and_not_labelled() -> None:
    """Seen without error: a camera's own shadows are not mirrored with the hand."""
    mixed = generator(left_share=0.2, negative_share=0.3, kind="sensorless").batch(0)
    right_only = generator(negative_share=0.3, kind="sensorless").batch(0)
    left = ~mixed.is_right
    assert 3 <= left.sum() <= 20
    assert torch.equal(mixed.image[left], right_only.image[left].flip(2))
    assert torch.equal(mixed.image[~left], right_only.image[~left])
    assert not mixed.on_hand[left].any()


def test_pictures_without_a_hand_are_not_empty_and_not_labelled(batch: Labels) -> None:
    negative = ~batch.is_hand
    assert 5 <= negative.sum() <= 25
    assert not batch.on_hand[negative].any()
    assert not batch.vertices_uvd[negative].any() and not batch.joints_uvd[negative].any()
    assert ((batch.image[negative] < 1).flatten(1).float().mean(1) > 0.01).float().mean() > 0.7


def test_clean_pictures_show_the_hand_and_arm_alone_without_holes(clean: Labels) -> None:
    assert clean.is_hand.all() and clean.on_hand.flatten(1).any(1).all()
    assert (clean.image == 1).float().mean() > 0.4
    assert (
        clean.image.amin((1, 2)).ge(clean.vertices_uvd[..., 2].amin(1) - 0.1).float().mean() > 0.7
    )  # or it is the arm
    for i in range(4):
        depth, face, _ = seen_from_labels(clean, i)
        d = (depth - clean.distance_m[i].item()) / (samples.CUBE_M / 2)
        inner = sum((np.roll(face, k, (0, 1)) >= 0).astype(int) for k in ((0, 1), (1, 0), (0, -1), (-1, 0))) == 4
        read = clean.image[i].numpy().reshape(32, 2, 32, 2).min((1, 3)) < 1
        assert read[inner & (np.abs(d) < 0.9)].all()  # no hole in the hand


def test_a_stream_or_kind_that_is_none_is_refused() -> None:
    for stream, kind in (("training", "full"), ("train", "noisy")):
        with pytest.raises(ValueError, match=f"samples {stream}, {kind}: possible are train, val, test and full"):
            generator(stream, kind=kind)


def test_the_module_prints_samples_a_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--device", "cpu", "--batch", "2", "3", "--seconds", "0.01", "--bank", "4"]
    monkeypatch.setattr(sys, "argv", ["gpu", *options])
    gpu.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("samples/s" in line for line in lines)
