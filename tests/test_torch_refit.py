"""The closed-form refit in torch (section 3.4): rotations, similarities of the parts, skin and joints, gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from edge_hand.hand import se3
from edge_hand.hand.arrays import Array
from edge_hand.hand.kinematics import pose_hand
from edge_hand.hand.skeleton import ANGLE_LIMITS_RAD, PART_JOINTS, PART_PARENTS, TIPS
from edge_hand.hand.template import template
from edge_hand.trainer.refit import Refit, procrustes
from hypothesis import given, settings
from hypothesis import strategies as st

SOME = settings(max_examples=20, deadline=None)
T = template()
seeds = st.integers(0, 2**31 - 1)


@SOME
@given(seeds)
def test_procrustes_finds_the_rotation_and_its_gradient_is_that_of_finite_differences(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rotation = torch.tensor(se3.so3_exp(torch.randn(2, 3, generator=g, dtype=torch.float64).numpy()))
    stretch = torch.diag_embed(torch.tensor([[3.0, 2.0, 1.0], [2.0, 2.0, 0.7]], dtype=torch.float64))
    basis = torch.tensor(se3.so3_exp(torch.randn(2, 3, generator=g, dtype=torch.float64).numpy()))
    h = (rotation @ basis @ stretch @ basis.mT).requires_grad_()  # a polar decomposition; the second one has twins
    found, trace = procrustes(h)
    torch.testing.assert_close(found, rotation)
    torch.testing.assert_close(trace, (rotation * h).sum((1, 2)))
    assert torch.autograd.gradcheck(procrustes, (h,), eps=1e-6, atol=1e-5)


def test_procrustes_never_mirrors() -> None:
    h = torch.diag(torch.tensor([3.0, 2.0, -1.0], dtype=torch.float64)).requires_grad_()
    rotation, trace = procrustes(h)
    torch.testing.assert_close(rotation, torch.eye(3, dtype=torch.float64))
    assert float(trace.detach()) == pytest.approx(4)
    assert torch.autograd.gradcheck(procrustes, (h,), eps=1e-6, atol=1e-5)


def test_procrustes_of_a_shapeless_part_has_a_finite_gradient() -> None:
    h = torch.zeros(1, 3, 3).requires_grad_()
    rotation, trace = procrustes(h)
    (rotation.sum() + trace.sum()).backward()  # type: ignore[no-untyped-call]
    assert h.grad is not None and torch.isfinite(h.grad).all()


def similarities(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    """Linear parts (n, 3, 3) and shifts (n, 3) m."""
    linear = se3.so3_exp(rng.normal(size=(n, 3))) * rng.uniform(0.8, 1.2, (n, 1, 1))
    return linear, rng.uniform(-0.1, 0.1, (n, 3)) + np.array([0, 0, 0.5])


@SOME
@given(seeds)
def test_refit_recovers_each_parts_similarity_where_parts_do_not_blend(seed: int) -> None:
    hard = np.zeros_like(T.weights)
    hard[np.arange(len(hard)), T.part] = 1
    linear, shift = similarities(np.random.default_rng(seed), 16)
    vertices = (linear[T.part] @ T.vertices_m[..., None])[..., 0] + shift[T.part]  # (V, 3)
    refit = Refit(replace(T, weights=hard))
    given_vertices = torch.tensor(vertices[None], dtype=torch.float32)
    parts = refit.parts(given_vertices)[0].numpy()
    np.testing.assert_allclose(parts[..., :3], linear, atol=1e-3)
    centroid = np.stack([T.vertices_m[T.part == p].mean(0) for p in range(16)])
    placed = (parts[..., :3] @ centroid[..., None])[..., 0] + parts[..., 3]
    np.testing.assert_allclose(placed, (linear @ centroid[..., None])[..., 0] + shift, atol=2e-6)
    np.testing.assert_allclose(refit(given_vertices)[0][0], vertices, atol=2e-5)


def test_refit_gives_back_a_hand_that_only_moved_and_grew() -> None:
    linear, shift = similarities(np.random.default_rng(0), 3)
    vertices = T.vertices_m @ np.swapaxes(linear, 1, 2) + shift[:, None]
    joints = T.joints_m @ np.swapaxes(linear, 1, 2) + shift[:, None]
    found_vertices, found_joints = Refit()(torch.tensor(vertices, dtype=torch.float32))
    np.testing.assert_allclose(found_vertices, vertices, atol=5e-6)
    np.testing.assert_allclose(found_joints, joints, atol=5e-6)


def random_hands(n: int, seed: int = 0) -> tuple[Array, Array]:
    """Joints (n, 21, 3) and skinned vertices (n, V, 3) m of the template in random poses half a metre away."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0.7 * ANGLE_LIMITS_RAD[:, 0], 0.7 * ANGLE_LIMITS_RAD[:, 1], (n, 20))
    wrist = np.concatenate([rng.uniform(-0.05, 0.05, (n, 2)), np.full((n, 1), 0.5), rng.normal(0, 1, (n, 3))], 1)
    return pose_hand(T, np.concatenate([wrist, angles], 1), np.ones((n, 6)), np.zeros((n, 7)))


def test_refit_finds_the_joints_of_a_posed_hand_from_its_skin() -> None:
    joints, vertices = random_hands(20)
    found_vertices, found_joints = Refit()(torch.tensor(vertices, dtype=torch.float32))
    error_mm = 1000 * np.linalg.norm(found_joints.numpy() - joints, axis=-1)  # (20, 21)
    assert error_mm.mean() < 0.45  # 0.31; 0.62 if a vertex counted with its weight instead of its square
    assert 1000 * np.linalg.norm(found_vertices.numpy() - vertices, axis=-1).mean() < 0.5


def test_a_joint_lies_half_way_between_where_its_two_parts_put_it() -> None:
    parts = torch.zeros(1, 16, 3, 4)
    parts[0, :, 0, 3] = torch.arange(16.0)
    x = Refit().joints_of(parts)[0, :, 0].numpy()
    for part, (joint, parent) in enumerate(zip(PART_JOINTS, PART_PARENTS, strict=True)):
        assert x[joint] == (part + max(parent, 0)) / 2
    np.testing.assert_array_equal(x[list(TIPS)], [3, 6, 9, 12, 15])
