"""The loss of Dual Grid Net (section 3.5): its terms, what they look at and where their gradients go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edge_hand.hand import se3
from edge_hand.hand.crop import points_from_uvd, uvd_from_points
from edge_hand.hand.template import template
from edge_hand.trainer.losses import Labels, huber, metres, rows
from edge_hand.trainer.nets.dgn import Criterion, DualGridNet, Output, estimate
from edge_hand.trainer.nets.extension import GRID
from edge_hand.trainer.synth.samples import Generator

pytestmark = pytest.mark.usefixtures("one_thread")

T = template()


def narrow_net(seed: int = 0) -> DualGridNet:
    torch.manual_seed(seed)
    return DualGridNet(width=8)


def labels_of(n: int = 2, left_share: float = 0.0) -> Labels:
    batch = Generator("test", left_share=left_share).batch(0, n)
    return Labels(*(torch.as_tensor(x) for x in batch))


def labels_of_moved_template() -> Labels:
    """Labels of a hand that the refit can give back exactly."""
    labels = labels_of(2)
    distance = labels.distance_m.numpy()[:, None].astype(float)
    linear = se3.so3_exp(np.array([[0.3, -0.2, 0.5], [1.0, 0.4, 0.0]]))
    uvd = []
    for points in (T.vertices_m, T.joints_m):
        placed = (points - T.vertices_m.mean(0)) @ np.swapaxes(linear, 1, 2)
        placed[..., 2] += distance
        uvd.append(torch.tensor(uvd_from_points(placed, distance, 0.25), dtype=torch.float32))
    return labels._replace(vertices_uvd=uvd[0], joints_uvd=uvd[1])


def perfect(labels: Labels) -> Output:
    sure = 2 * labels.on_hand.flatten(1).float() - 1
    return Output(
        labels.vertices_uvd,
        torch.full_like(labels.vertices_uvd[..., 0], float(np.log(1e-3))),
        (GRID - 1) * labels.uv.flatten(1, 2),
        30 * sure,
        60 * labels.is_right.float() - 30,
        60 * labels.is_hand.float() - 30,
    )


def test_metres_is_the_crops_own_geometry() -> None:
    labels = labels_of(3)
    expected = points_from_uvd(
        labels.vertices_uvd.double().numpy(), labels.distance_m.numpy()[:, None], labels.cube_m.numpy()[:, None]
    )
    np.testing.assert_allclose(metres(labels.vertices_uvd, labels.distance_m, labels.cube_m), expected, atol=1e-6)


def test_huber_is_quadratic_near_zero_and_has_slope_one_beyond() -> None:
    x = torch.tensor([0.0, 0.1, 0.25, 1.0, -1.0])
    torch.testing.assert_close(huber(x), torch.tensor([0.0, 0.02, 0.125, 0.875, 0.875]))


def test_loss_of_perfect_outputs_is_nothing() -> None:
    labels = labels_of_moved_template()
    terms = Criterion()(perfect(labels), labels)
    assert set(terms) == {"correspondence", "mask", "initial", "refined", "error", "side", "presence", "loss"}
    assert all(float(value) < 1e-4 for value in terms.values()), terms


def test_loss_is_the_sum_of_its_terms_and_leaves_the_refit_out_at_first() -> None:
    labels = labels_of(2)
    output = narrow_net().train()(labels.image[:, None])
    terms = Criterion()(output, labels)
    loss = terms.pop("loss")
    torch.testing.assert_close(loss, torch.stack(list(terms.values())).sum())
    coarse = Criterion()(output, labels, full=False)
    assert set(terms) - set(coarse) == {"refined"}


SPOILED = {
    "correspondence": lambda o: o._replace(cells=o.cells + 1),
    "mask": lambda o: o._replace(hand_logit=-o.hand_logit),
    "initial": lambda o: o._replace(vertices_uvd=o.vertices_uvd + 0.1),
    "refined": lambda o: o._replace(vertices_uvd=o.vertices_uvd + 0.1),
    "error": lambda o: o._replace(log_error=o.log_error + 1),
    "side": lambda o: o._replace(right_logit=-o.right_logit),
    "presence": lambda o: o._replace(presence_logit=-o.presence_logit),
}


@pytest.mark.parametrize("term", SPOILED)
def test_each_term_grows_when_its_output_is_wrong(term: str) -> None:
    labels = labels_of_moved_template()
    spoiled = SPOILED[term](perfect(labels))
    assert float(Criterion()(spoiled, labels)[term]) > 0.05


@pytest.mark.parametrize("cube_m", [0.2, 0.25, 0.3])
def test_the_expected_error_is_taught_in_half_cubes_whatever_the_cube(cube_m: float) -> None:
    labels = labels_of_moved_template()
    labels = labels._replace(cube_m=torch.full_like(labels.cube_m, cube_m))
    crop = labels.distance_m, labels.cube_m
    output = perfect(labels)._replace(vertices_uvd=labels.vertices_uvd + 0.03)
    off_m = (metres(output.vertices_uvd, *crop) - metres(labels.vertices_uvd, *crop)).norm(dim=-1)
    told = output._replace(log_error=torch.log(off_m / (cube_m / 2) + 1e-3))  # as `edge/reading.py` understands it
    assert float(Criterion()(told, labels, full=False)["error"]) < 1e-9


def test_left_hands_teach_nothing_but_the_side() -> None:
    labels = labels_of(2)._replace(is_right=torch.tensor([True, False]))
    labels.on_hand[1] = False
    output = perfect(labels)
    wrong = Output(*(torch.cat([x[:1], x[1:] + 1]) for x in output))
    good, bad = Criterion()(output, labels), Criterion()(wrong, labels)
    for name in ("correspondence", "mask", "initial", "refined"):
        assert float(bad[name]) == float(good[name]), name
    flipped = output._replace(right_logit=-output.right_logit)
    assert float(Criterion()(flipped, labels)["side"]) > 1


def test_crops_without_a_hand_teach_only_that_there_is_none() -> None:
    labels = labels_of(2)._replace(is_hand=torch.tensor([True, False]))
    labels.on_hand[1] = False
    output = perfect(labels)
    wrong = Output(*(torch.cat([x[:1], x[1:] + 1]) for x in output))._replace(hand_logit=output.hand_logit)
    good, bad = Criterion()(output, labels), Criterion()(wrong, labels)
    for name in ("correspondence", "mask", "initial", "refined", "error", "side"):
        assert float(bad[name]) == float(good[name]), name
    assert float(Criterion()(output._replace(presence_logit=-output.presence_logit), labels)["presence"]) > 1
    assert float(Criterion()(output._replace(hand_logit=-output.hand_logit), labels)["mask"]) > 1


def test_the_loss_of_a_batch_is_the_mean_of_its_halves() -> None:
    """So that several processes, each with its share of a batch, learn what one would."""
    labels = labels_of(4, left_share=0.3)
    output = narrow_net().eval()(labels.image[:, None])
    halves = [Criterion()(Output(*(x[k : k + 2] for x in output)), rows(labels, slice(k, k + 2))) for k in (0, 2)]
    for name, value in Criterion()(output, labels).items():
        torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2, msg=name)


def test_the_estimate_of_perfect_outputs_is_the_truth() -> None:
    labels = labels_of_moved_template()
    crop = labels.distance_m, labels.cube_m
    joints, vertices = estimate(perfect(labels), *crop)
    torch.testing.assert_close(joints, metres(labels.joints_uvd, *crop), atol=1e-5, rtol=0)
    torch.testing.assert_close(vertices, metres(labels.vertices_uvd, *crop), atol=1e-5, rtol=0)


REACHES = {
    "correspondence": {"image_stem", "image_hourglass", "image_head"},
    "mask": {"image_stem", "image_hourglass", "image_head"},
    "initial": {"image_stem", "image_hourglass", "image_head", "mesh_stem", "mesh_hourglass", "mesh_head"},
    "refined": {"image_stem", "image_hourglass", "image_head", "mesh_stem", "mesh_hourglass", "mesh_head"},
    "error": {"image_stem", "image_hourglass", "image_head", "mesh_stem", "mesh_hourglass", "mesh_head"},
    "side": {"image_stem", "image_hourglass", "crop_head"},
    "presence": {"image_stem", "image_hourglass", "crop_head"},
}


def test_the_gradient_of_every_term_reaches_its_part_of_the_net() -> None:
    labels, net = labels_of(2), narrow_net().train()
    terms = Criterion()(net(labels.image[:, None]), labels)
    for term, expected in REACHES.items():
        net.zero_grad(set_to_none=True)
        terms[term].backward(retain_graph=True)  # type: ignore[no-untyped-call]
        gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        assert all(torch.isfinite(g).all() for g in gradients.values()), term
        assert {name.split(".")[0] for name, g in gradients.items() if g.any()} == expected, term
    net.zero_grad(set_to_none=True)
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in net.parameters())
