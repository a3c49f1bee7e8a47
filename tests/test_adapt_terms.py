"""Dual Grid Net's self-supervision, term by term: gradients by differences, zero where it should be, less if better."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numba")

from edge_hand.hand.kinematics import AVERAGE, Shape, pose_hand  # noqa: E402
from edge_hand.hand.template import template  # noqa: E402
from edge_hand.trainer.adapt import terms  # noqa: E402
from edge_hand.trainer.adapt.layout import layout, surface_at  # noqa: E402
from edge_hand.trainer.nets.extension import GRID  # noqa: E402
from edge_hand.trainer.synth.layout import coordinates_at  # noqa: E402
from torch import Tensor  # noqa: E402

BIG = Shape(np.array([1.1, 1.2, 1.25, 1.25, 1.2, 1.15]), np.array([0, -0.5, 0, 0.2, 0, 0, 0.3]))


def a_hand(shape: Shape = AVERAGE, bend: float = 0.2) -> tuple[Tensor, Tensor]:
    """Joints (1, 21, 3) and vertices (1, V, 3) m of a hand half a metre away."""
    theta = np.zeros((1, 26))
    theta[0, 2], theta[0, 6:] = 0.5, bend
    joints, vertices = pose_hand(template(), theta, shape.alpha[None], shape.beta[None])
    return torch.tensor(joints), torch.tensor(vertices)


def by_differences(term: Callable[[Tensor], Tensor], x: Tensor, n: int = 6) -> None:
    """A term's gradient is its change, along some random directions."""
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(term(x).sum(), x)
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        way = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        step = 1e-6
        with torch.no_grad():
            change = (term(x + step * way) - term(x - step * way)).sum() / (2 * step)
        assert float((gradient * way).sum()) == pytest.approx(float(change), rel=2e-3, abs=1e-4)


def points_of(vertices: Tensor, n: int = 40) -> Tensor:
    """Places a little beside the vertices that face the camera."""
    facing = terms.facing_camera(vertices, 1)[0]
    chosen = vertices[:, facing][:, :: max(1, int(facing.sum()) // n)]
    return chosen + 0.004 * torch.randn(chosen.shape, generator=torch.Generator().manual_seed(1), dtype=chosen.dtype)


def test_icp_gradient_is_its_change() -> None:
    _, vertices = a_hand()
    points = points_of(vertices)
    facing = torch.ones(1, vertices.shape[1], dtype=torch.bool)
    by_differences(lambda v: terms.icp(points, torch.ones(points.shape[:2]), v, facing), vertices)


def test_icp_is_zero_on_the_skin_and_grows_as_the_mesh_leaves_it() -> None:
    _, vertices = a_hand()
    facing = terms.facing_camera(vertices, 1)
    points = vertices[:, facing[0]]
    counts = torch.ones(points.shape[:2])
    away = [float(terms.icp(points, counts, vertices + d, facing)) for d in (0.0, 0.005, 0.02)]
    assert away[0] == pytest.approx(0, abs=1e-6) and away[0] < away[1] < away[2]


def test_icp_looks_at_the_side_that_faces_the_camera_alone() -> None:
    _, vertices = a_hand()
    facing = terms.facing_camera(vertices, 1)
    behind = vertices[:, ~facing[0]]
    assert float(terms.icp(behind, torch.ones(behind.shape[:2]), vertices, facing)) > 0.02


def test_points_that_do_not_count_give_neither_value_nor_gradient() -> None:
    _, vertices = a_hand()
    vertices.requires_grad_(True)
    facing = torch.ones(1, vertices.shape[1], dtype=torch.bool)
    value = terms.icp(vertices.detach() + 0.03, torch.zeros(1, vertices.shape[1]), vertices, facing)
    value.sum().backward()
    assert float(value.detach()) == 0 and float(vertices.grad.abs().max()) == 0


def cells_of(n: int = 60) -> tuple[Tensor, Tensor]:
    """Mesh coordinates (1, n, 2) in cells of triangles' middles, and those triangles (n,)."""
    faces = torch.arange(0, len(template().faces), len(template().faces) // n)[:n]
    uv = coordinates_at(faces.numpy(), np.full((n, 2), 1 / 3), np.ones(n, bool))
    return torch.tensor(uv * (GRID - 1))[None], faces


def test_mesh_coordinates_find_their_place_on_the_mesh() -> None:
    _, vertices = a_hand()
    cells, faces = cells_of()
    middle = vertices[0][torch.as_tensor(template().faces.astype(np.int64))[faces]].mean(1)
    off = (surface_at(vertices.float(), cells.float())[0] - middle).norm(dim=-1)
    assert float(off.median()) < 1e-4  # triangles smaller than a pixel of the map may be taken for a neighbour


def test_every_place_of_the_map_has_a_triangle() -> None:
    assert int(layout().face_at.min()) >= 0 and len(layout().face_at.unique()) > 0.85 * len(template().faces)


def test_lifting_moves_both_the_mesh_and_the_mesh_coordinates() -> None:
    _, vertices = a_hand()
    cells, _ = cells_of()
    points = surface_at(vertices.float(), cells.float()).double() + 0.01
    counts = torch.ones(points.shape[:2], dtype=torch.float64)
    v, c = vertices.float().requires_grad_(True), (cells.float() + 0.05).requires_grad_(True)
    terms.lifting(points.float(), counts.float(), v, c).sum().backward()
    assert float(v.grad.abs().max()) > 0 and float(c.grad.abs().max()) > 0


def test_lifting_gradient_is_its_change() -> None:
    _, vertices = a_hand()
    cells, _ = cells_of()
    found = layout()
    exact = found._replace(origin=found.origin.double(), inverse=found.inverse.double())
    points = surface_at(vertices.float(), cells.float()).double() + 0.01
    counts = torch.ones(points.shape[:2], dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_hand.trainer.adapt.layout.layout", lambda _: exact)
        by_differences(lambda v: terms.lifting(points, counts, v, cells), vertices)
        by_differences(lambda c: terms.lifting(points, counts, vertices, c), cells)


def test_lifting_is_zero_where_every_point_lies_on_its_place() -> None:
    _, vertices = a_hand()
    cells, _ = cells_of()
    points = surface_at(vertices.float(), cells.float())
    assert float(terms.lifting(points, torch.ones(points.shape[:2]), vertices.float(), cells.float())) < 1e-6


def test_collision_counts_only_joints_nearer_than_five_millimetres() -> None:
    joints, _ = a_hand()
    assert float(terms.collision(joints)) == 0
    near = joints.clone()
    near[0, 8] = near[0, 12] + torch.tensor([0.002, 0, 0])
    assert float(terms.collision(near)) == pytest.approx(50 * 0.003, rel=1e-3)
    by_differences(terms.collision, near)


def test_arap_is_zero_for_a_hand_of_rigid_parts_and_sees_a_stretched_one() -> None:
    _, vertices = a_hand()
    refit = terms.UserRefit(terms.user_hand(AVERAGE))
    rigid, _ = refit(vertices.float())
    rigid, _ = refit(rigid)
    again, _ = refit(rigid)
    bent = rigid + 0.01 * torch.sin(60 * rigid)
    assert float(terms.arap(again, rigid)) < 0.01 < float(terms.arap(refit(bent)[0], bent))
    by_differences(lambda v: terms.arap(vertices + 0.003, v), vertices)


def test_offset_is_small_for_the_users_own_bones_and_large_for_another_hand() -> None:
    _, own = a_hand(BIG)
    _, other = a_hand(AVERAGE)
    hand = terms.user_hand(BIG)
    refit = terms.UserRefit(hand)
    mine, theirs = (float(terms.offset(refit.rigid(v.float()), hand)) for v in (own, other))
    assert mine < 0.25 * theirs


def test_offset_gradient_is_its_change_and_zero_for_parts_that_hang_together() -> None:
    hand = terms.user_hand(AVERAGE)
    still = torch.cat([torch.eye(3, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)], 1)
    parts = still.expand(1, 16, 3, 4).clone()
    assert float(terms.offset(parts, hand)) < 1e-6
    apart = parts + 0.003 * torch.randn(parts.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    by_differences(lambda p: terms.offset(p, hand), apart)


def two_views() -> tuple[Tensor, Tensor]:
    """T_ref_crop (3, 4, 4) of three cameras about a hand, and its vertices (3, V, 3) as each sees it."""
    _, vertices = a_hand()
    T = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    for k, turn in enumerate((0.0, 0.6, -0.5)):
        c, s = np.cos(turn), np.sin(turn)
        T[k, :3, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        T[k, :3, 3] = torch.tensor([-0.5 * s, 0, 0.5 - 0.5 * c])
    return T, terms.in_reference(vertices.expand(3, -1, -1), torch.linalg.inv(T))


def test_views_that_agree_cost_nothing_and_one_that_does_not_is_pulled_to_the_median() -> None:
    T, seen = two_views()
    group = torch.zeros(3, dtype=torch.int64)
    assert float(terms.views_vertex(seen, T, group).max()) < 1e-6
    seen = seen.clone()
    seen[1] += 0.02
    off = terms.views_vertex(seen, T, group)
    assert float(off[1]) > 1 and float(off[0]) < 1e-6
    seen.requires_grad_(True)
    terms.views_vertex(seen, T, group).sum().backward()
    assert float((seen.grad[1].sum(0) > 0).all()) and float(seen.grad[0].abs().max()) < 1e-3


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_views_that_err_to_both_sides_are_not_pulled_to_one(n: int) -> None:
    off = 0.004 * (torch.arange(n, dtype=torch.float64) - (n - 1) / 2)  # so that their median is the truth
    seen = a_hand()[1] + off[:, None, None] * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    seen.requires_grad_(True)
    T = torch.eye(4, dtype=torch.float64).repeat(n, 1, 1)
    terms.views_vertex(seen, T, torch.zeros(n, dtype=torch.int64)).sum().backward()
    pull = seen.grad.sum(1)  # (n, 3)
    assert float(pull[0].abs().min()) > 0.1 and float(pull.sum(0).abs().max()) < 1e-6


def test_moments_are_not_mixed_and_single_views_cost_nothing() -> None:
    T, seen = two_views()
    seen = seen + 0.01 * torch.arange(3)[:, None, None]
    assert float(terms.views_vertex(seen, T, torch.tensor([0, 1, 2])).max()) == 0
    mesh, depth, _ = terms.other_views(T, torch.tensor([0, 0, 1]))
    assert sorted(zip(mesh.tolist(), depth.tolist(), strict=True)) == [(0, 1), (1, 0)]


def test_a_mesh_of_one_view_lies_on_the_depth_of_another() -> None:
    T, seen = two_views()
    mesh, depth, T_depth_mesh = terms.other_views(T, torch.zeros(3, dtype=torch.int64))
    there = terms.in_reference(seen[mesh], T_depth_mesh)
    assert torch.allclose(there, seen[depth], atol=1e-9)


def test_the_users_hand_has_the_users_bones() -> None:
    mine, average = terms.user_hand(BIG), terms.user_hand(AVERAGE)
    assert np.allclose(average.vertices_m, template().vertices_m, atol=1e-9)
    ratio = np.linalg.norm(mine.joints_m[6] - mine.joints_m[5]) / np.linalg.norm(
        average.joints_m[6] - average.joints_m[5]
    )
    assert ratio == pytest.approx(1.25, abs=0.12)
