"""DeepHPS: what the network may say, what its losses look at; that it and Dibra's network learn and export."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from edge_hand.hand import se3
from edge_hand.hand.kinematics import pose_hand
from edge_hand.hand.skeleton import ALPHA_RANGE, ANGLE_LIMITS_RAD, BETA_RANGE
from edge_hand.hand.template import template
from edge_hand.trainer.batches import to_labels
from edge_hand.trainer.losses import Labels, metres
from edge_hand.trainer.nets import net_module, new_net
from edge_hand.trainer.nets.deephps import IMAGE_PX, Criterion, Output, estimate
from edge_hand.trainer.synth.samples import Generator
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")

T = template()


def narrow_net(name: str = "deephps") -> Any:
    torch.manual_seed(0)
    return new_net(name, width=16)


def labels_of(n: int = 4, name: str = "deephps", **options: Any) -> Labels:
    return to_labels(Generator("test", image_px=net_module(name).IMAGE_PX, **options).batch(0, n))


def random_output(n: int = 4) -> Output:
    """An answer inside all limits."""
    rng = np.random.default_rng(0)
    rotation = se3.so3_exp(rng.normal(0, 1.5, (n, 3)))
    low, high = ANGLE_LIMITS_RAD.T
    columns = rotation[..., :2].swapaxes(1, 2).reshape(n, 6)
    values = (
        rng.uniform(-0.2, 0.2, (n, 3)), rotation, rng.uniform(low, high, (n, 20)),
        rng.uniform(*ALPHA_RANGE, (n, 6)), rng.uniform(*BETA_RANGE, (n, 7)), columns,
    )  # fmt: skip
    return Output(*(torch.tensor(x, dtype=torch.float32) for x in values))


def gradients(output: Output, labels: Labels, **options: Any) -> Output:
    """Of the loss, by what the net answers."""
    answers = [x.clone().requires_grad_() for x in output]
    loss = Criterion()(Output(*answers), labels, **options)["loss"]
    found = torch.autograd.grad(loss, answers, allow_unused=True)
    return Output(*(torch.zeros_like(x) if g is None else g for x, g in zip(answers, found, strict=True)))


# --- the net


@pytest.mark.parametrize("training", [False, True])
def test_every_answer_is_a_hand_inside_its_limits(training: bool) -> None:
    net = narrow_net().train(training)
    with torch.no_grad():
        net.pose.weight.mul_(3000)  # as far off as a net can be
        output = net(5 * torch.randn(3, 1, IMAGE_PX, IMAGE_PX))
    shapes = [(3, 3), (3, 3, 3), (3, 20), (3, 6), (3, 7), (3, 6)]
    assert [tuple(x.shape) for x in output] == shapes
    assert all(torch.isfinite(x).all() and x.dtype == torch.float32 for x in output)
    torch.testing.assert_close(output.rotation @ output.rotation.mT, torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)
    assert torch.linalg.det(output.rotation).min() > 0
    low, high = torch.tensor(ANGLE_LIMITS_RAD, dtype=torch.float32).T
    assert (output.angles_rad >= low - 1e-6).all() and (output.angles_rad <= high + 1e-6).all()
    for values, limits in ((output.alpha, ALPHA_RANGE), (output.beta, BETA_RANGE)):
        assert values.min() >= limits[0] - 1e-6 and values.max() <= limits[1] + 1e-6


def test_an_untrained_net_and_an_empty_crop_give_finite_hands() -> None:
    with torch.no_grad():
        hands = estimate(narrow_net().eval()(torch.ones(1, 1, IMAGE_PX, IMAGE_PX)), torch.ones(1), torch.ones(1) / 4)
    assert [tuple(x.shape) for x in hands] == [(1, 21, 3), (1, 1609, 3)]
    assert all(torch.isfinite(x).all() for x in hands)


@pytest.mark.parametrize(("name", "most"), [("deephps", 60e6), ("dibra", 80e6)])
def test_the_default_net_is_slim(name: str, most: float) -> None:
    net, size = new_net(name).eval(), net_module(name).IMAGE_PX
    products = [0]

    def count(layer: nn.Module, _: Any, y: Tensor) -> None:
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        products[0] += math.prod(y.shape) * math.prod(layer.weight.shape[1:])

    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        net(torch.ones(1, 1, size, size))
    assert products[0] < most
    assert sum(p.numel() for p in net.parameters()) < 10e6


@pytest.mark.parametrize("corner", range(4))
def test_each_region_sees_its_own_overlapping_quarter(corner: int) -> None:
    regions = narrow_net().eval().regions
    features = torch.randn(1, 48, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    size = regions(features).shape[1] // 4
    regions(features)[:, corner * size : (corner + 1) * size].sum().backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    seen = features.grad.abs().sum((0, 1)) > 0
    top, left = 2 * (corner // 2), 2 * (corner % 2)
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[top : top + 4, left : left + 4] = True
    assert torch.equal(seen, expected)


# --- estimate and losses


def test_estimate_is_the_numpy_hand_moved_to_its_place() -> None:
    output = random_output()
    distance, cube = torch.tensor([0.3, 0.5, 0.7, 1.0]), torch.full((4,), 0.25)
    theta = np.concatenate([np.zeros((4, 3)), se3.so3_log(output.rotation.double().numpy()), output.angles_rad], 1)
    twin = pose_hand(T, theta, output.alpha.double().numpy(), output.beta.double().numpy())
    hand = estimate(output, distance, cube)
    centre = metres(output.centre_uvd[:, None], distance, cube).numpy()
    for got, expected in zip(hand, twin, strict=True):
        np.testing.assert_allclose(got, expected - twin[0].mean(1, keepdims=True) + centre, atol=1e-5)


def test_the_truth_costs_nothing_but_what_the_labels_rotation_lacks() -> None:
    output, labels = random_output(), labels_of()
    joints, vertices = estimate(output, labels.distance_m, labels.cube_m)
    distance, half = labels.distance_m[:, None, None], labels.cube_m[:, None, None] / 2

    def uvd(points: Tensor) -> Tensor:
        z = points[..., 2:]
        return torch.cat([points[..., :2] * distance / z, z - distance], 2) / half

    terms = Criterion()(output, labels._replace(vertices_uvd=uvd(vertices), joints_uvd=uvd(joints)))
    assert float(terms["joints"]) < 1e-6 and float(terms["vertices"]) < 1e-6
    assert float(terms["rotation"]) < 1e-2
    torch.testing.assert_close(terms["loss"], terms["joints"] + terms["vertices"] + terms["rotation"])


@pytest.mark.parametrize("field", ["is_right", "is_hand"])
def test_left_hands_and_crops_without_a_hand_teach_nothing(field: str) -> None:
    labels = labels_of()._replace(**{field: torch.tensor([True, False, True, False])})
    for name, gradient in gradients(random_output(), labels)._asdict().items():
        assert torch.isfinite(gradient).all() and not gradient[[1, 3]].any() and gradient[[0, 2]].any(), name


def test_rendered_left_hands_and_negatives_cost_nothing() -> None:
    output = random_output()
    shares: tuple[dict[str, Any], ...] = ({"left_share": 1.0}, {"negative_share": 1.0})
    for options in shares:
        terms = Criterion()(output, labels_of(**options))
        assert all(float(x) == 0 for x in terms.values())


def test_real_samples_without_a_mesh_teach_their_joints_alone() -> None:
    """Eq. 8; shape learns from the joints too, since bones grow with it."""
    labels = labels_of()
    vertices = labels.vertices_uvd.clone()
    vertices[1] = float("nan")
    has_mesh = torch.tensor([True, False, True, True])
    joint_weight = torch.ones(4, 21)
    joint_weight[1] = 0
    labels = labels._replace(vertices_uvd=vertices)
    found = gradients(random_output(), labels._replace(has_mesh=has_mesh))
    assert all(torch.isfinite(x).all() for x in found) and found.angles_rad[1].any()
    found = gradients(random_output(), labels._replace(has_mesh=has_mesh, joint_weight=joint_weight))
    assert not any(x[1].any() for x in found) and found.angles_rad[0].any()


def test_without_the_full_loss_there_is_no_mesh_in_it() -> None:
    assert set(Criterion()(random_output(), labels_of(), full=False)) == {"joints", "rotation", "loss"}


# --- learning and leaving


@pytest.mark.parametrize(
    ("name", "bf16"), [("deephps", True), pytest.param("deephps", False, marks=pytest.mark.slow), ("dibra", True)]
)
def test_a_net_learns_one_batch_by_heart(name: str, bf16: bool) -> None:
    paper, net, labels = net_module(name), narrow_net(name).train(), labels_of(6, name)
    criterion = paper.Criterion()
    truth = metres(labels.joints_uvd, labels.distance_m, labels.cube_m)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    errors_mm = []
    for _ in range(50):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = net(labels.image[:, None])
        joints, _ = paper.estimate(output, labels.distance_m, labels.cube_m)
        errors_mm.append(1000 * float((joints.detach() - truth).norm(dim=-1).mean()))
        optimizer.zero_grad()
        criterion(output, labels)["loss"].backward()
        optimizer.step()
    assert errors_mm[0] > 40 and errors_mm[-1] < 10, errors_mm[::10]


@pytest.mark.parametrize("name", ["deephps", "dibra"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_exported_graph_gives_the_same_hand(name: str, tmp_path: Path) -> None:
    paper, net, labels = net_module(name), narrow_net(name).eval(), labels_of(1, name)
    image = labels.image[:, None]
    path = tmp_path / "net.onnx"
    with torch.no_grad():
        torch.onnx.export(net, (image,), str(path), input_names=["image"], opset_version=17, dynamo=False)
        expected = net(image)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = paper.Output(*(torch.from_numpy(np.asarray(x)) for x in session.run(None, {"image": image.numpy()})))
    assert set(paper.OUTPUTS) <= set(paper.Output._fields)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
    hands = [paper.estimate(o, labels.distance_m, labels.cube_m)[1] for o in (got, expected)]
    torch.testing.assert_close(*hands, atol=1e-5, rtol=0)
