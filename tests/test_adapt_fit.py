"""The teacher and the shape: a known hand comes back from its own depth, from one view and from several."""

from __future__ import annotations

import numpy as np
import pytest
from edge_hand.hand import se3
from edge_hand.hand.kinematics import AVERAGE, Shape, pose_hand
from edge_hand.hand.render import render
from edge_hand.hand.template import template

pytest.importorskip("torch")
pytest.importorskip("numba")

from edge_hand.hand.camera import Intrinsics
from edge_hand.trainer.adapt.fit import Sight, Teacher
from edge_hand.trainer.adapt.shape import beta_slopes, estimate_shape, shape_derivatives, trustworthy
from edge_hand.trainer.synth.poses import hand_length_m, sample_angles

BIG = Shape(np.array([1.08, 1.17, 1.25, 1.25, 1.23, 1.2]), np.zeros(7))
AWAY_M, CUBE_M, PX = 0.5, 0.28, 64
CAMERA = Intrinsics(PX, PX, PX * AWAY_M / CUBE_M, PX * AWAY_M / CUBE_M, (PX - 1) / 2, (PX - 1) / 2)


def theta_of(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    theta = np.zeros(26)
    theta[:3], theta[3:6], theta[6:] = (0, 0.06, AWAY_M), rng.normal(0, 0.4, 3), sample_angles(template(), rng)
    return theta


def sight(vertices: np.ndarray, T: np.ndarray, says: np.ndarray) -> Sight:
    """What a camera at T sees of a mesh, and a network there that says so; all in the reference frame."""
    back = se3.inverse(T)
    seen = se3.apply(back, vertices)
    depth = render(seen, template().faces, CAMERA).depth_m
    rows, columns = np.nonzero(depth > 0)
    keep = np.linspace(0, len(rows) - 1, 250).astype(int)
    points = CAMERA.deproject(np.stack([columns, rows], 1)[keep], depth[rows, columns][keep])
    far = np.where(depth > 0, depth, np.inf)
    return Sight(se3.apply(back, says), np.ones(21), points, T, far, CUBE_M / 2 / AWAY_M)


def placed(turn: float) -> np.ndarray:
    """A camera that looks at the hand from another side."""
    R = se3.so3_exp(np.array([0, turn, 0]))
    middle = np.array([0, 0, AWAY_M])
    return se3.transform(R, middle - R @ middle)


def moment(seed: int, turns: tuple[float, ...], shape: Shape, wrong: float = 0.15) -> tuple[list[Sight], np.ndarray]:
    """Sights of a hand whose network has its angles wrong and takes it for an average one, and the true joints."""
    theta = theta_of(seed)
    joints, vertices = pose_hand(template(), theta[None], shape.alpha[None], shape.beta[None])
    middle = joints[0].mean(0) - (0, 0, AWAY_M)
    off = theta.copy()
    off[6:] += np.random.default_rng(seed + 1).normal(0, wrong, 20)
    there, says = pose_hand(template(), off[None], np.ones((1, 6)), np.zeros((1, 7)))
    says = says[0] + joints[0].mean(0) - there[0].mean(0)
    sights = [sight(vertices[0] - middle, placed(turn), says - middle) for turn in turns]
    return sights, joints[0] - middle


def error_mm(teacher: Teacher, seed: int, turns: tuple[float, ...]) -> float:
    sights, truth = moment(seed, turns, teacher.shape)
    return float(np.linalg.norm(teacher(sights).joints_m - truth, axis=1).mean() * 1e3)


def test_the_teacher_is_nearer_to_the_hand_than_the_network_it_starts_from() -> None:
    teacher = Teacher(BIG)
    sights, truth = moment(3, (0.0,), BIG)
    start = teacher.start(sights[0])[0]
    before = np.linalg.norm(start - truth, axis=1).mean() * 1e3
    assert error_mm(teacher, 3, (0.0,)) < 0.75 * before


def test_more_views_make_a_better_teacher() -> None:
    teacher = Teacher(BIG)
    one = np.mean([error_mm(teacher, seed, (0.0,)) for seed in range(4)])
    three = np.mean([error_mm(teacher, seed, (0.0, 0.9, -0.9)) for seed in range(4)])
    assert three < 0.8 * one and three < 5


def test_skin_leaves_free_space() -> None:
    teacher = Teacher(AVERAGE)
    through = np.zeros(2)
    for seed in range(6):
        sights, _ = moment(seed, (0.0,), AVERAGE, wrong=0.35)
        blind = [s._replace(depth_m=np.zeros_like(s.depth_m)) for s in sights]
        for k, shown in enumerate((blind, sights)):
            through[k] += len(teacher._through(*_state(teacher, teacher(shown)), sights[0])[0])
    assert through[1] < 0.95 * through[0]


def _state(teacher: Teacher, fit) -> tuple:  # type: ignore[no-untyped-def]
    T = fit.T_ref_wrist
    return teacher.refit.chain.pose(T[:3, :3], fit.angles, teacher.rest), T[:3, 3]


def test_a_hand_of_other_depth_may_not_teach() -> None:
    teacher = Teacher(AVERAGE)
    sights, _ = moment(2, (0.0,), AVERAGE, wrong=0.03)
    assert trustworthy(teacher(sights))
    astray = [s._replace(points_m=s.points_m + (0.0, 0.0, 0.02) + 0.02 * np.sin(200 * s.points_m)) for s in sights]
    assert not trustworthy(teacher(astray))


def test_shape_derivatives_are_what_posing_another_shape_gives() -> None:
    teacher = Teacher(AVERAGE)
    fit = teacher(moment(1, (0.0,), AVERAGE)[0])
    posed, _ = _state(teacher, fit)
    skin = teacher.refit.chain.skin_of(AVERAGE.beta)
    joints_by, skin_by = shape_derivatives(teacher, posed, fit, skin, beta_slopes(teacher.refit))
    for k in range(13):
        more = np.zeros(13)
        more[k] = 0.02
        other = Shape(1 + more[:6], more[6:])
        joints, vertices = teacher.refit.pose(fit.T_ref_wrist, fit.angles, other)
        at = fit.T_ref_wrist[:3, 3]
        base_joints, base = teacher.refit.pose(fit.T_ref_wrist, fit.angles, AVERAGE)
        assert np.allclose((joints - base_joints) / 0.02, joints_by[..., k], atol=2e-3)
        assert np.allclose((vertices - at) - (base - at), 0.02 * skin_by[..., k], atol=2e-4)


@pytest.mark.slow
def test_the_length_of_a_large_hand_is_found_to_two_percent() -> None:
    moments = [moment(seed, (0.0, 0.8), BIG)[0] for seed in range(24)]
    shape, used = estimate_shape(moments)
    found, truth = (hand_length_m(template(), *s) for s in (shape, BIG))
    assert used > 15 and abs(found / truth - 1) < 0.02


def test_too_little_to_see_leaves_the_average_hand() -> None:
    shape, used = estimate_shape([moment(0, (0.0,), AVERAGE)[0]] * 2)
    assert used < 5 and shape is AVERAGE
