"""The terms of Dibra et al.: drawing against plain loops, gradients against differences, poses that come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edge_hand.hand.kinematics import angles_from_rotations, part_rotations
from edge_hand.hand.skeleton import ANGLE_LIMITS_RAD, ANGLE_NAMES
from edge_hand.hand.template import template
from edge_hand.trainer.adapt.dibra import (
    Cloud,
    angles_of,
    collision_term,
    compare,
    depth_term,
    limits_term,
    render,
    seen_points,
    uvd_of,
)
from edge_hand.trainer.hand_layer import HandLayer
from edge_hand.trainer.losses import metres
from torch import Tensor

DISTANCE, CUBE = torch.tensor([0.5]), torch.tensor([0.25])
SQUARE, CUBE_M = torch.ones(1, 6), 0.25


def posed(angles: Tensor | None = None, alpha: float = 1.0, turn: tuple[float, ...] = (0.2, 0.3, 0.1)) -> Tensor:
    """theta (1, 26) of a hand half a metre away."""
    theta = torch.zeros(1, 26)
    theta[0, :6] = torch.tensor([0.0, 0.03, 0.5, *turn])
    if angles is not None:
        theta[0, 6:] = angles
    return theta


def picture(theta: Tensor, cloud: Cloud, alpha: Tensor = SQUARE) -> Tensor:
    """What a camera with one pixel a cell would read of the hand: (1, 64, 64) in crop coordinates, background +1."""
    hand = HandLayer()(theta, alpha, torch.zeros(1, 7))
    drawn = render(uvd_of(cloud(hand.parts), DISTANCE, CUBE), radius_px=1.5).detach()
    return torch.where(drawn > 0.2, 1 - 2 * drawn, 1.0)


def twin(points: np.ndarray, size: int, radius: float) -> np.ndarray:
    """Eq. 3 to 5 in plain loops."""
    out = np.zeros((size, size))
    for u, v, d in points:
        if max(abs(u), abs(v), abs(d)) > 1:
            continue
        x, y = (u + 1) * size / 2 - 0.5, (v + 1) * size / 2 - 0.5
        for i in range(size):
            for j in range(size):
                far2 = ((j - x) ** 2 + (i - y) ** 2) / radius**2
                if far2 < 1:
                    out[i, j] = max(out[i, j], (1 - d) / 2 * (1 - far2) ** 2)
    return out


def test_the_drawn_cloud_is_that_of_plain_loops() -> None:
    points = np.random.default_rng(1).uniform(-1.1, 1.1, (60, 3))
    drawn = render(torch.tensor(points)[None], size=16, radius_px=2.2)[0]
    np.testing.assert_allclose(drawn.numpy(), twin(points, 16, 2.2), atol=1e-12)


def test_the_drawing_has_the_gradient_of_its_differences() -> None:
    points = torch.tensor(np.random.default_rng(2).uniform(-0.8, 0.8, (1, 12, 3)), requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: render(p, size=8, radius_px=1.7), (points,), eps=1e-7, atol=1e-5)


def test_a_cloud_hangs_on_the_bones_like_the_skin() -> None:
    cloud, layer = Cloud(4000), HandLayer()
    bent = torch.tensor(np.radians(20.0)) * torch.ones(20)
    for theta in (posed(), posed(bent)):
        hand = layer(theta, SQUARE, torch.zeros(1, 7))
        near = torch.cdist(cloud(hand.parts)[0].detach(), hand.vertices_m[0]).min(1).values
        assert near.median() < 0.003 and near.max() < 0.015  # half a triangle's edge; the cut wrist's are large
    torch.testing.assert_close(cloud(torch.eye(3, 4).expand(1, 16, 3, 4))[0], cloud.base)


def test_crop_coordinates_are_metres_and_back() -> None:
    uvd = torch.rand(2, 5, 3) * 1.8 - 0.9
    d, c = torch.tensor([0.3, 0.9]), torch.tensor([0.2, 0.3])
    torch.testing.assert_close(uvd_of(metres(uvd, d, c), d, c), uvd)


def test_the_cameras_points_are_the_hands_pixels() -> None:
    image = torch.ones(2, 8, 8)
    image[0, 2, 3], image[0, 5, 5] = -0.2, 0.4
    hand = torch.ones(2, 8, 8, dtype=torch.bool)
    hand[0, 5, 5] = False
    points = seen_points(image, hand, most=4)
    torch.testing.assert_close(points[0], torch.tensor([[-0.125, -0.375, -0.2]]).expand(4, 3))
    assert (render(points)[1] == 0).all()


def test_a_flat_hand_collides_with_nothing_and_a_finger_in_the_palm_does() -> None:
    layer = HandLayer()
    assert collision_term(layer(posed(), SQUARE, torch.zeros(1, 7)).joints_m) == 0
    joints = layer(posed(), SQUARE, torch.zeros(1, 7)).joints_m.clone()
    joints[0, 8] = 0.5 * (joints[0, 13] + joints[0, 14]) + 0.001  # the index' tip in the ring finger
    assert collision_term(joints) > 1e-4


def test_the_collision_has_the_gradient_of_its_differences() -> None:
    joints = torch.tensor(np.random.default_rng(3).normal(0, 0.01, (2, 21, 3)), requires_grad=True)
    assert torch.autograd.gradcheck(collision_term, (joints,), eps=1e-8, atol=1e-5)


def test_angles_outside_their_limits_cost_what_they_exceed() -> None:
    middle = torch.tensor(ANGLE_LIMITS_RAD.mean(1))[None]
    assert limits_term(middle) == 0
    over = middle.clone()
    over[0, 5] = ANGLE_LIMITS_RAD[5, 1] + 0.25
    over[0, 9] = ANGLE_LIMITS_RAD[9, 0] - 0.5
    torch.testing.assert_close(limits_term(over), torch.tensor([0.75], dtype=over.dtype))


def test_angles_are_those_of_the_numpy_twin() -> None:
    low, high = ANGLE_LIMITS_RAD.T
    angles = np.random.default_rng(4).uniform(low, high, (5, 20))
    local = part_rotations(template(), angles)
    layer = HandLayer(dtype=torch.float64)
    root = torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
    given = [torch.tensor(x) for x in (local[:, 1:], np.zeros((5, 3)), np.ones((5, 6)), np.zeros((5, 7)))]
    rotations = layer.pose(root, *given).parts[..., :3]
    expected = angles_from_rotations(template(), local)
    np.testing.assert_allclose(angles_of(rotations).numpy(), expected, atol=1e-6)


def test_angles_have_the_gradient_of_their_differences() -> None:
    layer = HandLayer(dtype=torch.float64)
    angles = torch.tensor(ANGLE_LIMITS_RAD.mean(1)[None], requires_grad=True)

    def again(angles: Tensor) -> Tensor:
        theta = torch.cat([torch.zeros(1, 6, dtype=torch.float64), angles], 1)
        parts = layer(theta, SQUARE.double(), torch.zeros(1, 7, dtype=torch.float64)).parts
        return angles_of(parts[..., :3])

    assert torch.autograd.gradcheck(again, (angles,), eps=1e-6, atol=1e-5)


@pytest.mark.slow
def test_a_pose_comes_back_from_one_depth_picture() -> None:
    """Section 4.3: the pose alone, from a start that is off."""
    torch.manual_seed(0)
    layer, cloud = HandLayer(), Cloud()
    truth = posed()
    truth[0, 6 + ANGLE_NAMES.index("index_mcp_flex")] = 0.5
    truth[0, 6 + ANGLE_NAMES.index("middle_mcp_flex")] = 0.4
    image = picture(truth, Cloud(6000, seed=1))
    expected = layer(truth, SQUARE, torch.zeros(1, 7)).joints_m
    theta = posed(turn=(0.3, 0.2, 0.15))
    theta[0, :2] += torch.tensor([0.008, -0.006])
    theta.requires_grad_(True)
    optimiser = torch.optim.Adam([theta], lr=0.01)

    def off_mm() -> float:
        return 1e3 * float((layer(theta.detach(), SQUARE, torch.zeros(1, 7)).joints_m - expected).norm(dim=-1).mean())

    before = off_mm()
    for _ in range(80):
        hand = layer(theta, SQUARE, torch.zeros(1, 7))
        found = compare(hand.parts, hand.joints_m, cloud, image, image < 0.9, DISTANCE, CUBE)
        loss = (found.depth + 10 * found.collision + 0.05 * found.limits).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert off_mm() < 0.4 * before, (before, off_mm())


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.9, 1.12])
def test_the_cloud_takes_the_shape_of_another_hand(scale: float) -> None:
    """Section 4.3: the shape alone, the pose being known."""
    layer, cloud = HandLayer(), Cloud()
    theta = posed()
    image = picture(theta, Cloud(6000, seed=1), scale * SQUARE)
    hand = layer(theta, SQUARE, torch.zeros(1, 7))
    optimiser = torch.optim.Adam(cloud.parameters(), lr=5e-3)
    values = []
    for _ in range(60):
        found = compare(hand.parts, hand.joints_m, cloud, image, image < 0.9, DISTANCE, CUBE)
        values.append(float(found.depth.detach()))
        optimiser.zero_grad()
        (found.depth.mean() + 1e-4 * found.restraint).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert values[-1] < 0.75 * values[0], (values[0], values[-1])


def test_pictures_without_anything_cost_nothing() -> None:
    assert depth_term(torch.zeros(2, 8, 8), torch.zeros(2, 8, 8)).tolist() == [0.0, 0.0]
