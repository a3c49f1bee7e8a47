"""Rotations and rigid transforms: exp and log undo each other at every angle, and transforms form a group."""

from __future__ import annotations

import numpy as np
import pytest
from edge_hand.hand import se3
from edge_hand.hand.arrays import Array
from hypothesis import given, settings
from hypothesis import strategies as st

SOME = settings(max_examples=30, deadline=None)
axes = st.integers(0, 2**32 - 1).map(lambda seed: unit(np.random.default_rng(seed).normal(size=3)))
angles = st.one_of(
    st.floats(0, 1e-5),
    st.floats(0, np.pi),
    st.floats(np.pi - 1e-5, np.pi),
    st.sampled_from([0.0, 1e-9, 1e-6, 0.999e-6, np.pi / 2, np.pi - 1e-9, np.pi]),
)


def unit(v: Array) -> Array:
    return np.asarray(v / np.linalg.norm(v))


def rodrigues(axis: Array, angle: float) -> Array:
    """cos I + sin K + (1 - cos) a a^T, written out."""
    x, y, z = axis
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.cos(angle) * np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * np.outer(axis, axis))


def random_transforms(*shape: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return se3.transform(se3.so3_exp(rng.normal(size=(*shape, 3))), rng.normal(size=(*shape, 3)))


@SOME
@given(axes, angles)
def test_exp_is_the_rotation_about_the_axis(axis: Array, angle: float) -> None:
    np.testing.assert_allclose(se3.so3_exp(axis * angle), rodrigues(axis, angle), atol=1e-15)


@SOME
@given(axes, st.floats(0, 20))
def test_exp_is_a_rotation_even_beyond_a_full_turn(axis: Array, angle: float) -> None:
    rotation = se3.so3_exp(axis * angle)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)
    assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-14)


@SOME
@given(axes, angles)
def test_exp_undoes_log_at_every_angle(axis: Array, angle: float) -> None:
    rotation = rodrigues(axis, angle)
    rotvec = se3.so3_log(rotation)
    assert np.linalg.norm(rotvec) <= np.pi + 1e-12
    np.testing.assert_allclose(se3.so3_exp(rotvec), rotation, atol=1e-13)


@SOME
@given(axes, st.one_of(st.floats(0, 1e-5), st.floats(0, np.pi - 1e-7)))
def test_log_undoes_exp_up_to_half_a_turn(axis: Array, angle: float) -> None:
    np.testing.assert_allclose(se3.so3_log(se3.so3_exp(axis * angle)), axis * angle, atol=1e-13)


@pytest.mark.parametrize("axis", np.eye(3).tolist() + (-np.eye(3)).tolist())
def test_log_of_half_a_turn_is_pi_about_that_axis_up_to_sign(axis: list[float]) -> None:
    rotvec = se3.so3_log(rodrigues(np.array(axis), np.pi))
    np.testing.assert_allclose(np.abs(rotvec), np.pi * np.abs(axis), atol=1e-12)


def test_log_of_the_identity_is_zero() -> None:
    np.testing.assert_array_equal(se3.so3_log(np.eye(3)), np.zeros(3))


@SOME
@given(st.integers(0, 2**32 - 1))
def test_skew_is_the_cross_product(seed: int) -> None:
    v, p = np.random.default_rng(seed).normal(size=(2, 3))
    np.testing.assert_allclose(se3.skew(v) @ p, np.cross(v, p), atol=1e-14)


@SOME
@given(st.integers(0, 2**32 - 1))
def test_inverse_undoes_a_transform_on_either_side(seed: int) -> None:
    t = random_transforms(seed=seed)
    np.testing.assert_allclose(se3.inverse(t) @ t, np.eye(4), atol=1e-13)
    np.testing.assert_allclose(t @ se3.inverse(t), np.eye(4), atol=1e-13)


def test_apply_maps_points_as_homogeneous_coordinates_do() -> None:
    t, points = random_transforms(), np.random.default_rng(1).normal(size=(7, 3))
    homogeneous = np.concatenate([points, np.ones((7, 1))], 1)  # (7, 4)
    np.testing.assert_allclose(se3.apply(t, points), (homogeneous @ t.T)[:, :3], atol=1e-14)


def test_apply_of_a_product_is_apply_after_apply() -> None:
    a, b = random_transforms(2)
    points = np.random.default_rng(1).normal(size=(7, 3))
    np.testing.assert_allclose(se3.apply(a @ b, points), se3.apply(a, se3.apply(b, points)), atol=1e-13)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)])
def test_a_batch_is_its_single_transforms(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    rotvec, points = rng.normal(size=(*shape, 3)), rng.normal(size=(*shape, 4, 3))
    rotation = se3.so3_exp(rotvec)
    t = se3.transform(rotation, rng.normal(size=(*shape, 3)))
    assert se3.skew(rotvec).shape == rotation.shape == (*shape, 3, 3)
    assert se3.so3_log(rotation).shape == (*shape, 3)
    assert t.shape == se3.inverse(t).shape == (*shape, 4, 4)
    assert se3.apply(t, points).shape == (*shape, 4, 3)
    for i in np.ndindex(shape):
        np.testing.assert_allclose(rotation[i], se3.so3_exp(rotvec[i]), atol=1e-15)
        np.testing.assert_allclose(se3.so3_log(rotation)[i], se3.so3_log(rotation[i]), atol=1e-15)
        np.testing.assert_allclose(se3.inverse(t)[i], se3.inverse(t[i]), atol=1e-15)
        np.testing.assert_allclose(se3.apply(t, points)[i], se3.apply(t[i], points[i]), atol=1e-15)


def test_transform_broadcasts_one_rotation_over_many_translations() -> None:
    t = se3.transform(np.eye(3), np.arange(6.0).reshape(2, 3))
    assert t.shape == (2, 4, 4)
    np.testing.assert_array_equal(t[1] @ [0, 0, 0, 1], [3, 4, 5, 1])
