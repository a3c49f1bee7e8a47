"""Dual Grid Net: the compiled extension against its twin, sampling and the net's outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edge_hand.hand.template import template
from edge_hand.trainer.nets import dgn
from edge_hand.trainer.nets.dgn import DualGridNet, layout_cells, sampling_matrix
from edge_hand.trainer.nets.extension import GRID, _Extend, extend, extend_dense
from edge_hand.trainer.synth.samples import Generator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")

SOME = settings(max_examples=20, deadline=None)
T = template()
AREA = torch.tensor(T.area / T.area.mean(), dtype=torch.float32)
seeds = st.integers(0, 2**31 - 1)


def random_pixels(seed: int = 0, batch: int = 2, pixels: int = 60, channels: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """features (B, P, C), cells (B, P, 2) up to a cell outside the grid, mask (B, P)."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, pixels, channels, generator=g)
    cells = torch.rand(batch, pixels, 2, generator=g) * (GRID + 1) - 1
    return features, cells, 0.05 + 0.95 * torch.rand(batch, pixels, generator=g)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# --- extension, eq. 1 and 2


@SOME
@given(seeds)
def test_the_compiled_extension_is_its_dense_twin(seed: int) -> None:
    pixels = random_pixels(seed)
    fast, slow = extend(*pixels), extend_dense(*pixels)
    assert fast.shape == slow.shape == (2, 6, GRID, GRID)
    assert relative(fast, slow) < 3e-3  # cells more than four away are left out: at worst 1e-3 over 300 seeds


@SOME
@given(seeds)
def test_the_compiled_extensions_gradients_are_autograds_of_the_twin(seed: int) -> None:
    weight = torch.randn(2, 6, GRID, GRID, generator=torch.Generator().manual_seed(seed))
    gradients = []
    for form in (extend, extend_dense):
        pixels = [x.requires_grad_() for x in random_pixels(seed)]
        (form(*pixels) * weight).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([x.grad for x in pixels])
    for name, fast, slow in zip(("features", "cells", "mask"), *gradients, strict=True):
        assert fast is not None and slow is not None
        assert relative(fast, slow) < 0.01, name


def test_extension_spreads_each_pixel_with_weights_that_sum_to_one() -> None:
    features, cells, mask = random_pixels()
    mask[0, :20] = 0
    grid = _Extend.apply(features, cells, mask)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(grid.sum(1)[:, -1], mask.sum(1))  # eq. 2
    torch.testing.assert_close(grid.sum(1)[:, :-1], (features * mask[..., None]).sum(1), atol=1e-4, rtol=1e-4)


def test_a_pixel_reaches_the_cells_as_eq_2_says() -> None:
    features, cells, mask = torch.tensor([[[3.0]]]), torch.tensor([[[6.3, 9.6]]]), torch.ones(1, 1)
    n = np.arange(GRID)
    weight = np.exp(-0.5 * ((n[None] - 6.3) ** 2 + (n[:, None] - 9.6) ** 2))  # (y, x)
    weight /= weight.sum()
    for form in (extend, extend_dense):
        value, occupancy = form(features, cells, mask)[0].numpy()
        np.testing.assert_allclose(occupancy, weight / (1 + weight), atol=1e-4)
        np.testing.assert_allclose(value, 3 * weight / (weight + 1e-2), atol=5e-3)


def test_pixels_that_are_not_hand_neither_reach_the_grid_nor_learn_from_it() -> None:
    features, cells, mask = random_pixels()
    mask[:, ::2] = 1e-5
    for form in (extend, extend_dense):
        elsewhere = features.clone()
        elsewhere[:, ::2] += 1
        torch.testing.assert_close(form(features, cells, mask), form(elsewhere, cells, mask), atol=1e-3, rtol=0)
    features.requires_grad_()
    extend(features, cells, mask).sum().backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert not features.grad[:, ::2].any()
    assert features.grad[:, 1::2].all()


# --- sampling


def test_sampling_weights_of_a_vertex_sum_to_one_and_are_not_negative() -> None:
    matrix = sampling_matrix(T)
    assert matrix.shape == (GRID * GRID, 1609)
    assert matrix.min() >= -1e-12
    np.testing.assert_allclose(matrix.sum(0), 1, atol=1e-12)
    assert (matrix > 0).sum(0).max() <= 8  # four cells on each side of the seam


@SOME
@given(seeds)
def test_sampling_reproduces_every_linear_function_of_the_layout(seed: int) -> None:
    a, b, c = np.random.default_rng(seed).normal(size=3)
    y, x = np.mgrid[:GRID, :GRID]
    at_vertices = (a * x + b * y + c).ravel() @ sampling_matrix(T)
    cells = layout_cells(T.uv).mean(1)  # (V, 2)
    np.testing.assert_allclose(at_vertices, a * cells[:, 0] + b * cells[:, 1] + c, atol=1e-9)


# --- the net


def narrow_net(seed: int = 0) -> DualGridNet:
    torch.manual_seed(seed)
    return DualGridNet(width=8)


def images(n: int = 2, seed: int = 0) -> Tensor:
    return torch.as_tensor(Generator("test", seed).batch(0, n).image)[:, None]


@pytest.mark.parametrize("training", [False, True])
def test_outputs_have_their_shapes_and_are_finite(training: bool) -> None:
    output = narrow_net().train(training)(images(2))
    pixels = 32 * 32
    shapes = [(2, 1609, 3), (2, 1609), (2, pixels, 2), (2, pixels), (2,), (2,)]
    assert [tuple(x.shape) for x in output] == shapes
    assert all(torch.isfinite(x).all() for x in output)
    assert output.cells.min() >= -1 and output.cells.max() <= GRID


def test_an_image_without_any_reading_gives_finite_outputs() -> None:
    assert all(torch.isfinite(x).all() for x in narrow_net().eval()(torch.ones(1, 1, 64, 64)))


def test_evaluation_is_deterministic_and_a_crops_answer_does_not_depend_on_its_batch() -> None:
    net, both = narrow_net().eval(), images(2)
    with torch.no_grad():
        once, again, alone = net(both), net(both), net(both[:1])
    for a, b, c in zip(once, again, alone, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a[:1], c, atol=1e-5, rtol=1e-4)


def test_an_evaluated_net_is_plain_torch_and_a_trained_one_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Tensor) -> Tensor:
        raise AssertionError("compiled")

    monkeypatch.setattr(dgn, "extend", refuse)
    narrow_net().eval()(images(1))  # what is exported
    with pytest.raises(AssertionError, match="compiled"):
        narrow_net().train()(images(1))


def test_the_same_seed_makes_the_same_net() -> None:
    one, two, other = (narrow_net(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_surely_not_hand_does_not_change_the_mesh(training: bool) -> None:
    net = narrow_net().train(training)
    last = net.image_head[-1]
    assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
    apart = []
    for logit in (-50.0, 5.0):
        with torch.no_grad():
            last.weight[2], last.bias[2] = 0, logit
            vertices = net(images(2)).vertices_uvd
        apart.append(float((vertices[0] - vertices[1]).abs().max()))
    assert apart[0] < 1e-6 < 1e-4 < apart[1]


def test_pixels_without_a_reading_do_not_reach_the_mesh() -> None:
    net = narrow_net().eval()
    last = net.image_head[-1]
    assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
    with torch.no_grad():
        last.weight[2], last.bias[2] = 0, 5.0
        empty = torch.ones(1, 1, 64, 64)
        before = net(empty).vertices_uvd
        last.bias[3:] += 1  # other features, which nothing carries over
        assert torch.equal(net(empty).vertices_uvd, before)
        last.bias[3:] -= 1
        hand = images(1)
        before = net(hand).vertices_uvd
        last.bias[3:] += 1
        assert not torch.equal(net(hand).vertices_uvd, before)


def test_the_mesh_grid_carries_affine_maps_of_the_template() -> None:
    """With the same map in every cell the net's answer is that map of the rest hand."""
    net = narrow_net().eval()
    last = net.mesh_head[-2]
    assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
    affine = np.random.default_rng(0).normal(size=(3, 4))
    with torch.no_grad():
        last.weight.zero_()
        last.bias[:] = torch.tensor(np.append(affine.ravel(), -2.0).repeat(4))  # 4 sub-cells to a channel
        output = net(images(1))
    rest = (T.vertices_m - T.vertices_m.mean(0)) / 0.08
    np.testing.assert_allclose(output.vertices_uvd[0], rest @ affine[:, :3].T + affine[:, 3], atol=1e-5)
    np.testing.assert_allclose(output.log_error, -2, atol=1e-6)
