"""The fast chain against its slow twin, and its derivatives against differences."""

from __future__ import annotations

import numpy as np
import pytest
from edge_hand.edge.chain import JOINT_PARTS, Chain
from edge_hand.edge.spheres import Spheres
from edge_hand.hand.arrays import Array
from edge_hand.hand.kinematics import Shape, pose_hand
from edge_hand.hand.se3 import so3_exp, so3_log
from edge_hand.hand.skeleton import ANGLE_LIMITS_RAD
from edge_hand.hand.template import template

T = template()
CHAIN = Chain(T)
SEEDS = pytest.mark.parametrize("seed", range(6))


def random_theta(rng: np.random.Generator) -> tuple[Array, Shape]:
    """theta (26,) inside the limits, half a metre away, and any shape."""
    theta = np.concatenate([rng.normal((0, 0, 0.5), 0.1), rng.normal(0, 1, 3), rng.uniform(*ANGLE_LIMITS_RAD.T)])
    return theta, Shape(rng.uniform(0.8, 1.25, 6), rng.uniform(-1, 1, 7))


def joints_and_skin(theta: Array, shape: Shape) -> tuple[Array, Array]:
    joints, vertices = pose_hand(T, theta[None], shape.alpha[None], shape.beta[None])
    return joints[0], vertices[0]


@SEEDS
def test_the_fast_chain_poses_as_its_slow_twin_does(seed: int) -> None:
    theta, shape = random_theta(np.random.default_rng(seed))
    joints, vertices = joints_and_skin(theta, shape)
    rest = CHAIN.at_rest(shape)
    posed = CHAIN.pose(so3_exp(theta[3:6]), theta[6:], rest)
    np.testing.assert_allclose(posed.joints_m + theta[:3], joints, atol=1e-9)
    np.testing.assert_allclose(CHAIN.skin(posed, rest, CHAIN.skin_of(shape.beta), theta[:3]), vertices, atol=1e-6)


@SEEDS
def test_rows_are_the_derivatives_of_joints(seed: int) -> None:
    theta, shape = random_theta(np.random.default_rng(seed))
    root, rest, step = so3_exp(theta[3:6]), CHAIN.at_rest(shape), 1e-6

    def joints(delta: Array) -> Array:
        moved = theta + delta
        moved[3:6] = so3_log(so3_exp(delta[3:6]) @ root)  # the wrist turns in the outer frame
        return joints_and_skin(moved, shape)[0]

    differences = np.stack([(joints(d) - joints(-d)).ravel() / (2 * step) for d in step * np.eye(26)], 1)  # (63, 26)
    posed = CHAIN.pose(root, theta[6:], rest)
    at, axes = np.repeat(posed.joints_m, 3, 0), np.tile(np.eye(3), (21, 1))
    rows = CHAIN.rows(CHAIN.screws(posed), at, axes, CHAIN.moved[np.repeat(JOINT_PARTS, 3)])
    np.testing.assert_allclose(rows, differences, atol=1e-7)


@SEEDS
def test_rows_of_overlapping_spheres_are_the_derivatives_of_their_depth(seed: int) -> None:
    rng, spheres, step = np.random.default_rng(seed), Spheres(), 1e-6
    overlaps = None
    while overlaps is None:
        theta, shape = random_theta(rng)
        rest = CHAIN.at_rest(shape)
        posed = CHAIN.pose(np.eye(3), theta[6:], rest)
        overlaps = spheres.overlaps(posed, rest)

    def deep(angles: Array) -> float:
        found = spheres.overlaps(CHAIN.pose(np.eye(3), angles, rest), rest)
        return 0.0 if found is None else float(found.deep_m.max())

    row = overlaps.rows(CHAIN, CHAIN.screws(posed))[overlaps.deep_m.argmax()]
    differences = [(deep(theta[6:] + d) - deep(theta[6:] - d)) / (2 * step) for d in step * np.eye(20)]
    np.testing.assert_allclose(-row[6:], differences, atol=1e-6)
    np.testing.assert_allclose(row[:6], 0, atol=1e-9)  # a hand that moves as a whole parts nothing


@pytest.mark.parametrize("size", [0.7, 1.0, 1.35])
def test_an_open_hand_has_no_spheres_that_overlap(size: float) -> None:
    rest = CHAIN.at_rest(Shape(np.full(6, size), np.zeros(7)))
    assert Spheres().overlaps(CHAIN.pose(np.eye(3), np.zeros(20), rest), rest) is None


@pytest.mark.parametrize("size", [0.7, 1.35])
def test_spheres_grow_with_the_hand(size: float) -> None:
    """A hand of another size in the same pose is the same hand, nearer or farther."""
    found, rng = 0, np.random.default_rng(0)
    for _ in range(40):
        angles = rng.uniform(*ANGLE_LIMITS_RAD.T)
        rests = [CHAIN.at_rest(Shape(np.full(6, s), np.zeros(7))) for s in (1.0, size)]
        average, other = (Spheres().overlaps(CHAIN.pose(np.eye(3), angles, rest), rest) for rest in rests)
        assert (average is None) == (other is None)
        if average is not None and other is not None:
            np.testing.assert_allclose(other.deep_m, size * average.deep_m, atol=1e-9)
            found += 1
    assert found > 5
