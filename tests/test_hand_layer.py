"""The hand layer against its numpy twin, its gradients against differences, and what its losses look at."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from edge_hand.hand import se3
from edge_hand.hand.arrays import Array
from edge_hand.hand.crop import points_from_uvd, uvd_from_points
from edge_hand.hand.kinematics import chain, part_rotations, pose_hand, rest_vertices, skin
from edge_hand.hand.skeleton import ANGLE_LIMITS_RAD
from edge_hand.hand.template import template
from edge_hand.trainer.hand_layer import (
    EVERY,
    HandLayer,
    Supervision,
    place,
    rotation_from_6d,
    rotation_from_quaternion,
    rotation_from_rotvec,
)
from edge_hand.trainer.losses import Labels, metres, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")

SOME = settings(max_examples=10, deadline=None)
T = template()
LAYER = HandLayer(dtype=torch.float64)
seeds = st.integers(0, 2**31 - 1)


def random_hand(rng: np.random.Generator, n: int = 3) -> tuple[Array, Array, Array]:
    """theta (n, 26), alpha (n, 6), beta (n, 7)."""
    angles = rng.uniform(ANGLE_LIMITS_RAD[:, 0], ANGLE_LIMITS_RAD[:, 1], (n, 20))
    theta = np.concatenate([rng.uniform(-0.3, 0.3, (n, 3)), rng.normal(0, 1.5, (n, 3)), angles], 1)
    return theta, rng.uniform(0.8, 1.25, (n, 6)), rng.uniform(-1, 1, (n, 7))


def random_quaternions(rng: np.random.Generator, n: int = 3) -> Array:
    return rng.normal(size=(n, 16, 4)) * rng.uniform(0.5, 3, (n, 16, 1))


def matrices(quaternions: Array) -> Array:
    """wxyz to (..., 3, 3) by way of the rotation vector."""
    q = quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True)
    half = np.arctan2(np.linalg.norm(q[..., 1:], axis=-1), q[..., 0])[..., None]
    return se3.so3_exp(2 * half * q[..., 1:] / np.sin(half))


def tensors(*arrays: Array) -> list[Tensor]:
    return [torch.tensor(x, dtype=torch.float64) for x in arrays]


# --- the twin


@SOME
@given(seeds)
def test_angles_give_the_joints_and_vertices_of_the_numpy_twin(seed: int) -> None:
    hand = random_hand(np.random.default_rng(seed))
    joints, vertices = pose_hand(T, *hand)
    posed = LAYER(*tensors(*hand))
    np.testing.assert_allclose(posed.joints_m, joints, atol=1e-6)
    np.testing.assert_allclose(posed.vertices_m, vertices, atol=1e-6)


@SOME
@given(seeds)
def test_quaternions_give_the_joints_and_vertices_of_the_numpy_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta, alpha, beta = random_hand(rng)
    quaternions = random_quaternions(rng)
    local = matrices(quaternions)
    rest = T.joints_m + np.einsum("nk,kjc->njc", beta, T.morph_joints_m)
    skeleton = chain(local, local[:, 0], theta[:, :3], alpha, rest)
    posed = LAYER.from_quaternions(*tensors(quaternions, theta[:, :3], alpha, beta))
    np.testing.assert_allclose(posed.joints_m, skeleton.joints_m, atol=1e-6)
    np.testing.assert_allclose(posed.parts, skeleton.parts, atol=1e-6)
    vertices = skin(T.weights, rest_vertices(T, beta), skeleton.parts)
    np.testing.assert_allclose(posed.vertices_m, vertices, atol=1e-6)


def test_part_rotations_are_those_of_the_numpy_twin() -> None:
    angles = random_hand(np.random.default_rng(0), 5)[0][:, 6:]
    np.testing.assert_allclose(LAYER.part_rotations(*tensors(angles)), part_rotations(T, angles), atol=1e-9)


def test_float32_is_within_a_micrometre() -> None:
    hand = random_hand(np.random.default_rng(0), 8)
    posed = HandLayer()(*(x.float() for x in tensors(*hand)))
    for got, expected in zip(posed[:2], pose_hand(T, *hand), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_thinned_layer_gives_each_so_manieth_vertex() -> None:
    hand = tensors(*random_hand(np.random.default_rng(0)))
    thin, whole = HandLayer(dtype=torch.float64, every=3)(*hand), LAYER(*hand)
    torch.testing.assert_close(thin.vertices_m, whole.vertices_m[:, ::3])
    torch.testing.assert_close(thin.joints_m, whole.joints_m)


# --- gradients, which the paper derives by hand (section 4.2)


def summary(posed: Any) -> Tensor:
    """A few random sums of all that is posed: cheap to differentiate, and no error hides from all of them."""
    points = torch.cat([posed.joints_m, posed.vertices_m], 1).flatten(1)
    weight = torch.randn(points.shape[1], 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return points @ weight


@pytest.mark.parametrize("zero", [False, True])
def test_gradients_of_angles_are_those_of_finite_differences(zero: bool) -> None:
    theta, alpha, beta = random_hand(np.random.default_rng(1), 2)
    if zero:
        theta[0] = 0
        theta[1, 3:6] *= 1e-4  # beside the seam of the series
    inputs = [x.requires_grad_() for x in tensors(theta, alpha, beta)]
    assert torch.autograd.gradcheck(lambda *x: summary(LAYER(*x)), inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["random", "none", "negative"])
def test_gradients_of_quaternions_are_those_of_finite_differences(kind: str) -> None:
    rng = np.random.default_rng(2)
    theta, alpha, beta = random_hand(rng, 2)
    quaternions = random_quaternions(rng, 2)
    if kind == "none":
        quaternions[:] = [1, 0, 0, 0]
    if kind == "negative":
        quaternions[:] = [-2, 0, 0, 0]
    inputs = [x.requires_grad_() for x in tensors(quaternions, theta[:, :3], alpha, beta)]
    assert torch.autograd.gradcheck(lambda *x: summary(LAYER.from_quaternions(*x)), inputs, eps=1e-6, atol=1e-6)


def test_float32_gradients_at_and_near_no_rotation_are_finite_and_right() -> None:
    for angle in (0.0, 1e-8, 1e-4, 9e-4, 1.1e-3, 1e-2):
        gradients = []
        for dtype in (torch.float32, torch.float64):
            x = torch.tensor([[angle, 0, 0]], dtype=dtype, requires_grad=True)
            weight = torch.arange(9, dtype=x.dtype).view(3, 3)
            gradients.append(torch.autograd.grad((rotation_from_rotvec(x) * weight).sum(), x)[0].double())
        torch.testing.assert_close(*gradients, atol=2e-5, rtol=1e-5)


# --- rotations


@SOME
@given(seeds)
def test_rotations_are_those_of_se3_and_quaternions_have_no_sign_and_no_length(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rotvec = rng.normal(size=(20, 3)) * rng.choice([1e-9, 1e-3, 1, 3], (20, 1))
    np.testing.assert_allclose(rotation_from_rotvec(*tensors(rotvec)), se3.so3_exp(rotvec), atol=1e-9)
    q = random_quaternions(rng)
    expected = matrices(q)
    for same in (q, -q, 0.01 * q):
        np.testing.assert_allclose(rotation_from_quaternion(*tensors(same)), expected, atol=1e-9)


def test_a_zero_quaternion_is_no_rotation_and_has_a_finite_gradient() -> None:
    q = torch.zeros(1, 4, requires_grad=True)
    rotation = rotation_from_quaternion(q)
    torch.testing.assert_close(rotation[0], torch.eye(3))
    (gradient,) = torch.autograd.grad(rotation.sum(), q)
    assert torch.isfinite(gradient).all()


@SOME
@given(seeds)
def test_six_numbers_give_the_rotation_whose_columns_they_are_of_any_length(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rotation = se3.so3_exp(rng.normal(0, 2, (5, 3)))
    x, y = rotation[..., 0], rotation[..., 1]
    six = np.concatenate([3 * x, 0.2 * y + 0.7 * x], 1)
    np.testing.assert_allclose(rotation_from_6d(*tensors(six)), rotation, atol=1e-9)


# --- place and losses


def labels_of(n: int = 4, seed: int = 0) -> tuple[Labels, tuple[Tensor, Tensor, Tensor], Tensor]:
    """Labels of posed hands half a metre away, their parameters and the mean of their joints in crop coordinates."""
    hand = random_hand(np.random.default_rng(seed), n)
    hand[0][:, :3] += [0, 0, 0.5]
    distance, cube = np.full((n, 1), 0.5), np.full((n, 1), 0.25)
    joints, vertices = pose_hand(T, *hand)
    uvd = [uvd_from_points(x, distance, cube) for x in (joints, vertices, joints.mean(1, keepdims=True))]
    j, v, centre, d, c = (torch.tensor(x, dtype=torch.float32) for x in (*uvd, distance[:, 0], cube[:, 0]))
    yes = torch.ones(n, dtype=torch.bool)
    none = torch.zeros(n, 1)
    theta, alpha, beta = (x.float() for x in tensors(*hand))
    return Labels(none, none, none, v, j, d, c, yes, yes), (theta, alpha, beta), centre[:, 0]


def test_place_puts_the_mean_of_the_joints_at_its_crop_coordinates() -> None:
    labels, (theta, alpha, beta), centre = labels_of()
    posed = HandLayer()(torch.cat([0 * theta[:, :3], theta[:, 3:]], 1), alpha, beta)
    joints, vertices = place(posed, centre, labels.distance_m, labels.cube_m)
    torch.testing.assert_close(joints, metres(labels.joints_uvd, labels.distance_m, labels.cube_m), atol=2e-6, rtol=0)
    truth = points_from_uvd(labels.vertices_uvd.numpy(), 0.5, 0.25)
    np.testing.assert_allclose(vertices, truth, atol=2e-6)


def test_the_loss_of_the_truth_is_nothing_and_that_of_a_shift_is_its_length_in_20_mm() -> None:
    labels, hand, _ = labels_of()
    posed = HandLayer(every=EVERY)(*hand)
    terms = Supervision()(posed.joints_m, posed.vertices_m, labels)
    assert max(float(x) for x in terms.values()) < 1e-6
    terms = Supervision()(posed.joints_m + torch.tensor([0, 0.04, 0]), posed.vertices_m, labels)
    assert float(terms["joints"]) == pytest.approx(2 - 0.125, abs=1e-3)  # Huber: less half its delta
    assert float(terms["vertices"]) < 1e-6


def spoilt(labels: Labels, i: int) -> Labels:
    """Labels without any for sample i."""
    vertices, joints = labels.vertices_uvd.clone(), labels.joints_uvd.clone()
    vertices[i], joints[i] = float("nan"), float("nan")
    return labels._replace(vertices_uvd=vertices, joints_uvd=joints)


@pytest.mark.parametrize("field", ["is_right", "is_hand"])
def test_left_hands_and_crops_without_a_hand_teach_nothing(field: str) -> None:
    labels, hand, _ = labels_of()
    counts = torch.tensor([True, False, True, True])
    labels = spoilt(labels._replace(**{field: counts}), 1)
    posed = HandLayer(every=EVERY)(*hand)
    joints, vertices = ((x + 0.01).requires_grad_() for x in posed[:2])
    terms = Supervision()(joints, vertices, labels)
    for term, points in zip(terms.values(), (joints, vertices), strict=True):
        (gradient,) = torch.autograd.grad(term, points)
        assert torch.isfinite(gradient).all() and not gradient[1].any() and gradient[[0, 2, 3]].any((1, 2)).all()


def test_a_real_sample_teaches_the_joints_that_it_has_and_no_mesh() -> None:
    """Eq. 8."""
    labels, hand, _ = labels_of()
    joint_weight = torch.ones(4, 21)
    joint_weight[1, 5:] = 0
    has_mesh = torch.tensor([True, False, True, True])
    vertices, joints = labels.vertices_uvd.clone(), labels.joints_uvd.clone()
    vertices[1], joints[1, 5:] = float("nan"), float("nan")
    labels = labels._replace(vertices_uvd=vertices, joints_uvd=joints, has_mesh=has_mesh, joint_weight=joint_weight)
    posed = HandLayer(every=EVERY)(*hand)
    at, skin_ = ((x + 0.01).requires_grad_() for x in posed[:2])
    terms = Supervision()(at, skin_, labels)
    (of_joints,) = torch.autograd.grad(terms["joints"], at)
    assert torch.isfinite(of_joints).all() and of_joints[1, :5].any(1).all() and not of_joints[1, 5:].any()
    assert of_joints[0].any(1).all()
    (of_vertices,) = torch.autograd.grad(terms["vertices"], skin_)
    assert torch.isfinite(of_vertices).all() and not of_vertices[1].any() and of_vertices[0].any()


def test_the_loss_of_two_batches_is_the_mean_of_theirs() -> None:
    labels, hand, _ = labels_of(6)
    labels = labels._replace(is_right=torch.tensor([True, True, True, False, True, False]))
    posed = HandLayer(every=EVERY)(*hand)
    supervise, joints, vertices = Supervision(), posed.joints_m + 0.01, posed.vertices_m + 0.02
    whole = supervise(joints, vertices, labels)
    halves = [supervise(joints[s], vertices[s], rows(labels, s)) for s in (slice(3), slice(3, 6))]
    for name, value in whole.items():
        torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2)


def test_the_labels_mesh_says_how_the_parts_are_turned() -> None:
    labels, (theta, alpha, beta), _ = labels_of(8)
    found = Supervision().rotations(labels)
    posed = HandLayer()(theta, alpha, beta)
    scale = torch.linalg.det(posed.parts[..., :3])[..., None, None] ** (1 / 3)
    cosine = ((found * posed.parts[..., :3] / scale).sum((2, 3)) - 1) / 2
    degrees = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
    assert float(degrees.mean()) < 4 and float(degrees[:, 0].max()) < 3


@pytest.mark.slow
def test_a_batch_of_64_takes_less_than_60_ms_forwards_and_backwards() -> None:
    layer, best = HandLayer(), np.inf
    theta, alpha, beta = (x.float().requires_grad_() for x in tensors(*random_hand(np.random.default_rng(0), 64)))
    for _ in range(10):
        begun = time.process_time()
        posed = layer(theta, alpha, beta)
        (posed.joints_m.square().sum() + posed.vertices_m.square().sum()).backward()  # type: ignore[no-untyped-call]
        best = min(best, time.process_time() - begun)
    assert best < 0.06
