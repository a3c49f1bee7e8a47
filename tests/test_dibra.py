"""Dibra's base network: quaternions to a hand, and what its losses look at."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from edge_hand.hand import se3
from edge_hand.hand.arrays import Array
from edge_hand.hand.kinematics import chain, skin
from edge_hand.hand.skeleton import ALPHA_RANGE
from edge_hand.hand.template import template
from edge_hand.trainer.losses import Labels, metres
from edge_hand.trainer.nets.dibra import IMAGE_PX, Criterion, Output, estimate
from test_deephps import labels_of, narrow_net

pytestmark = pytest.mark.usefixtures("one_thread")

T = template()


def quaternions(rotvec: Array) -> Array:
    """Rotation vectors (..., 3) to wxyz."""
    angle = np.linalg.norm(rotvec, axis=-1, keepdims=True)
    return np.concatenate([np.cos(angle / 2), np.sin(angle / 2) * rotvec / angle], -1)


def random_output(n: int = 4) -> tuple[Output, Array]:
    """An answer, and its rotations (n, 16, 3, 3)."""
    rng = np.random.default_rng(0)
    turns = rng.normal(0, 0.3, (n, 16, 3))
    values = (rng.uniform(-0.2, 0.2, (n, 3)), quaternions(turns), rng.uniform(*ALPHA_RANGE, (n, 6)))
    return Output(*(torch.tensor(x, dtype=torch.float32) for x in values)), se3.so3_exp(turns)


def labels_of_output(output: Output) -> Labels:
    """Labels that say what the output says."""
    n = len(output.alpha)
    distance, cube = torch.full((n,), 0.5), torch.full((n,), 0.25)
    uvd = []
    for points in estimate(output, distance, cube):
        x, y, z = points.unbind(-1)
        uvd.append(torch.stack([x * 0.5 / z, y * 0.5 / z, z - 0.5], -1) / 0.125)
    yes, none = torch.ones(n, dtype=torch.bool), torch.zeros(n, 1)
    return Labels(none, none, none, uvd[1], uvd[0], distance, cube, yes, yes)


def gradients(output: Output, labels: Labels, **options: Any) -> Output:
    """Of the loss, by what the net answers."""
    answers = [x.clone().requires_grad_() for x in output]
    loss = Criterion()(Output(*answers), labels, **options)["loss"]
    return Output(*torch.autograd.grad(loss, answers))


# --- the net


@pytest.mark.parametrize("training", [False, True])
def test_every_answer_is_a_hand(training: bool) -> None:
    net = narrow_net("dibra").train(training)
    with torch.no_grad():
        net.out.weight.mul_(1000)
        output = net(5 * torch.randn(3, 1, IMAGE_PX, IMAGE_PX))
    assert [tuple(x.shape) for x in output] == [(3, 3), (3, 16, 4), (3, 6)]
    assert all(torch.isfinite(x).all() and x.dtype == torch.float32 for x in output)
    torch.testing.assert_close(output.quaternions.norm(dim=-1), torch.ones(3, 16))
    assert output.alpha.min() >= ALPHA_RANGE[0] - 1e-6 and output.alpha.max() <= ALPHA_RANGE[1] + 1e-6


def test_an_untrained_net_sees_the_template_as_it_was_scanned_in_an_empty_crop() -> None:
    with torch.no_grad():
        output = narrow_net("dibra").eval()(torch.ones(1, 1, IMAGE_PX, IMAGE_PX))
        _, vertices = estimate(output, torch.ones(1), torch.ones(1) / 4)
    scale = float(output.alpha.mean())
    rest = scale * (T.vertices_m - T.joints_m.mean(0)) + [0, 0, 1]
    np.testing.assert_allclose(vertices[0], rest, atol=0.01)


# --- estimate and losses


def test_estimate_is_the_numpy_chain_of_rotations_moved_to_its_place() -> None:
    output, local = random_output()
    distance, cube = torch.tensor([0.3, 0.5, 0.7, 1.0]), torch.full((4,), 0.25)
    rest = np.broadcast_to(T.joints_m, (4, 21, 3))
    skeleton = chain(local, local[:, 0], np.zeros((4, 3)), output.alpha.double().numpy(), rest)
    vertices = skin(T.weights, np.broadcast_to(T.vertices_m, (4, 1609, 3)), skeleton.parts)
    shift = metres(output.centre_uvd[:, None], distance, cube).numpy() - skeleton.joints_m.mean(1, keepdims=True)
    for got, expected in zip(estimate(output, distance, cube), (skeleton.joints_m, vertices), strict=True):
        np.testing.assert_allclose(got, expected + shift, atol=1e-5)


def test_the_truth_costs_nothing_but_what_the_labels_rotations_lack() -> None:
    output, _ = random_output()
    labels = labels_of_output(output)
    terms = Criterion()(output, labels)
    assert float(terms["joints"]) < 1e-6 and float(terms["vertices"]) < 1e-6
    assert float(terms["pose"]) < 0.1
    torch.testing.assert_close(terms["loss"], terms["joints"] + terms["vertices"] + terms["pose"])
    turned = output.quaternions.clone()
    turned[:, 5] = -turned[:, 5]
    again = Criterion()(output._replace(quaternions=turned), labels)
    torch.testing.assert_close(again["loss"], terms["loss"])  # q and -q are one rotation


@pytest.mark.parametrize("part", [0, 1, 5, 15])
def test_the_pose_term_compares_a_parts_rotation_in_its_parent(part: int) -> None:
    """Section 3.2. Turning one part costs 8 sin^2 of half the angle once, though all beyond it turns too."""
    output, _ = random_output()
    labels, criterion = labels_of_output(output), Criterion()
    turn = torch.tensor([math.cos(0.4), math.sin(0.4), 0, 0])
    w, v = output.quaternions[:, part, :1], output.quaternions[:, part, 1:]
    real = w * turn[0] - v @ turn[1:, None]
    product = torch.cat([real, w * turn[1:] + v * turn[0] + torch.linalg.cross(v, turn[1:].expand_as(v))], 1)
    turned = output.quaternions.clone()
    turned[:, part] = product
    poses = [float(criterion(output._replace(quaternions=q), labels)["pose"]) for q in (output.quaternions, turned)]
    assert poses[1] - poses[0] == pytest.approx(8 * math.sin(0.4) ** 2 / 16, rel=0.2)


@pytest.mark.parametrize("field", ["is_right", "is_hand"])
def test_left_hands_and_crops_without_a_hand_teach_nothing(field: str) -> None:
    labels = labels_of(4, "dibra")._replace(**{field: torch.tensor([True, False, True, False])})
    for name, gradient in gradients(random_output()[0], labels)._asdict().items():
        assert torch.isfinite(gradient).all() and not gradient[[1, 3]].any() and gradient[[0, 2]].any(), name


def test_rendered_left_hands_and_negatives_cost_nothing() -> None:
    shares: tuple[dict[str, Any], ...] = ({"left_share": 1.0}, {"negative_share": 1.0})
    for options in shares:
        terms = Criterion()(random_output()[0], labels_of(4, "dibra", **options))
        assert all(float(x) == 0 for x in terms.values())


def test_a_sample_without_a_mesh_teaches_only_the_joints_that_it_has() -> None:
    labels = labels_of(4, "dibra")
    vertices = labels.vertices_uvd.clone()
    vertices[1] = float("nan")
    labels = labels._replace(vertices_uvd=vertices)
    has_mesh, joint_weight = torch.tensor([True, False, True, True]), torch.ones(4, 21)
    found = gradients(random_output()[0], labels._replace(has_mesh=has_mesh))
    assert all(torch.isfinite(x).all() and x[1].any() for x in found)
    joint_weight[1] = 0
    found = gradients(random_output()[0], labels._replace(has_mesh=has_mesh, joint_weight=joint_weight))
    assert not any(x[1].any() for x in found) and all(x[0].any() for x in found)
