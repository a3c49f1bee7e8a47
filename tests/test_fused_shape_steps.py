"""The shape of a fused hand, step by step: when a frame is looked at, and what evidence and beliefs make of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from edge_hand.calibration import fused_shape
from edge_hand.calibration.fused_shape import AGAIN_NS, EVERY_NS, FRAMES, LEAST_POINTS, NOISE_M, ROUNDS, FusedShape
from edge_hand.calibration.many_views import Guess, Pose, Surface, agree, refit
from edge_hand.hand import se3
from edge_hand.hand.kinematics import AVERAGE, Shape
from numpy.typing import NDArray
from test_fuse import points_of, theta_at

SURFACE = Surface()
POSE = Pose(np.eye(3), np.zeros(3), np.zeros(20))
AGAIN = POSE._replace(at_m=np.ones(3))
HALO = 13


def guesses(*points: int) -> list[Any]:
    empty = np.zeros(3)
    return [Guess(np.eye(3), empty, np.zeros(20), empty, empty, np.zeros((n, 3)), empty) for n in points]


ENOUGH = guesses(LEAST_POINTS, LEAST_POINTS)


class Evidence:
    """Stands for what a frame says: values of the unknowns and how surely; keeps which targets were looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, values: dict[int, float], sigma: float) -> None:
        self.targets: list[Any] = []
        self.halos: list[float] = []
        self.values, self.information = values, np.zeros((14, 14))
        self.information[list(values), list(values)] = (NOISE_M / sigma) ** 2
        monkeypatch.setattr(fused_shape, "shape_evidence", self)
        self.poses: list[Pose] = []
        self.refitted: list[float] = []  # with which halo
        monkeypatch.setattr(fused_shape, "refit", self.refit)

    def refit(self, *_: Any, steps: int, halo_rad: float) -> Pose:
        self.refitted.append(halo_rad)
        return AGAIN

    def __call__(self, _: Any, shape: Shape, pose: Pose, target: Any, __: Any, halo_rad: float) -> tuple[Any, Any]:
        self.targets.append(target)
        self.poses.append(pose)
        self.halos.append(halo_rad)
        away = np.zeros(14)
        away[list(self.values)] = list(self.values.values())
        return self.information, self.information @ (away - np.concatenate([*shape, [halo_rad]]))


def after(person: FusedShape, frames: int) -> NDArray[np.float64]:
    for i in range(frames):
        person.observe(i * EVERY_NS, POSE, i, ENOUGH)  # type: ignore[arg-type]
    return np.concatenate([*person.shape, [person.halo_rad]])


@pytest.mark.parametrize(("k", "spread"), [(8, 0.4), (HALO, 0.007)])
def test_evidence_as_sure_as_what_is_believed_moves_a_number_half_way(
    k: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    Evidence(monkeypatch, {k: spread}, spread * np.sqrt(4))
    found = after(FusedShape(SURFACE, np.full(6, 1.1)), 4)
    expected = np.array([1.1] * 6 + [0.0] * 8)
    expected[k] = spread / 2
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_one_long_finger_tells_that_the_others_are_long_too(monkeypatch: pytest.MonkeyPatch) -> None:
    Evidence(monkeypatch, {2: 1.1}, 1e-4)
    alpha = after(FusedShape(SURFACE, np.ones(6)), 1)[:6]
    share = 0.15**2 / (0.15**2 + 0.03**2)
    np.testing.assert_allclose(alpha, 1 + 0.1 * np.where(np.arange(6) == 2, 1, share), rtol=1e-4)


def test_no_evidence_makes_a_hand_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    Evidence(monkeypatch, dict(zip(range(14), [3.0, -3.0] * 3 + [9.0, -9.0] * 4, strict=True)), 1e-6)
    found = after(FusedShape(SURFACE, np.ones(6)), 1)
    assert found[:6].tolist() == [1.35, 0.75] * 3 and found[6:13].tolist() == [1.2, -1.2] * 3 + [1.2]
    assert found[HALO] == -0.02


def test_a_frame_is_looked_at_if_two_cameras_have_depth_and_some_time_went_by(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, person = Evidence(monkeypatch, {0: 1.0}, 1.0), FusedShape(SURFACE, np.ones(6))
    steps = [
        (0, guesses(200, LEAST_POINTS - 1)), (1, ENOUGH), (EVERY_NS, ENOUGH), (EVERY_NS + 1, ENOUGH),
        (EVERY_NS, ENOUGH),  # the clock was set back
    ]  # fmt: skip
    for n, (t_ns, those) in enumerate(steps):
        person.observe(t_ns, POSE, n, those)  # type: ignore[arg-type]
    assert seen.targets == [1, 3, 4]


def test_each_frame_is_looked_at_anew_as_often_with_the_halo_found_so_far_and_then_the_shape_is_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, person = Evidence(monkeypatch, {3: 1.08, HALO: 0.004}, 0.1), FusedShape(SURFACE, np.ones(6))
    t_ns = 0
    for n in range(FRAMES):
        person.observe(t_ns := n * EVERY_NS, POSE, n, ENOUGH)  # type: ignore[arg-type]
    for _ in range(ROUNDS * FRAMES):
        assert not person.held
        person.observe(t_ns := t_ns + AGAIN_NS, POSE, -1, [])  # type: ignore[arg-type]
    assert person.held and seen.targets == [*range(FRAMES)] * (1 + ROUNDS)
    assert seen.halos[0] == 0 and all(0 < a < b for a, b in pairwise(seen.halos[1:FRAMES]))
    assert seen.poses == [POSE] * FRAMES + [AGAIN] * ROUNDS * FRAMES and seen.refitted == seen.halos[FRAMES:]
    person.observe(t_ns + EVERY_NS, POSE, -1, ENOUGH)  # type: ignore[arg-type]
    assert len(seen.targets) == (1 + ROUNDS) * FRAMES


def test_two_sides_of_a_few_frames_tell_bones_thickness_and_halo_whatever_size_the_network_s_hand_has() -> None:
    true, halo = Shape(np.array([1.03, 1.02, 1.05, 1.04, 1.05, 1.03]), np.array([0, 0.3, 0, 0, 0.3, 0, 0])), 0.004
    step, scaled = np.zeros(14), np.zeros(14)
    for found, scale in ((step, 1.0), (scaled, 1.1)):  # of the network's hand about its middle
        information, pull = np.diag([1e-6] * 6 + [1e-7] * 7 + [1e-6]), np.zeros(14)
        for t_s in (0.0, 0.8, 1.6):
            theta = theta_at(t_s)
            pose = Pose(se3.so3_exp(theta[3:6]), theta[:3], theta[6:])
            seen = points_of(true, pose, SURFACE, [np.zeros(3), np.array([0.6, 0, 0.6])], halo)
            target = agree(seen, np.full((2, 21), 0.5))
            middle = target.joints_m.mean(0)
            said = target._replace(joints_m=middle + scale * (target.joints_m - middle))
            fitted = refit(SURFACE, AVERAGE, target, seen)
            more = fused_shape.shape_evidence(SURFACE, AVERAGE, fitted, said, seen, 0.0)
            information, pull = information + more[0], pull + more[1]
        found[:] = np.linalg.solve(information, pull)
    np.testing.assert_allclose(scaled, step, atol=1e-6)
    assert step[HALO] == pytest.approx(halo, rel=0.1)
    np.testing.assert_allclose(step[[7, 10]], 0.3, atol=0.1)
    found, average, right = (
        np.linalg.norm(SURFACE.hand(POSE, shape)[0][[4, 8, 12, 16, 20]], axis=1)  # from the wrist to the fingertips
        for shape in (Shape(1 + step[:6], step[6:13]), AVERAGE, true)
    )
    assert (np.abs(found - right) < 0.5 * np.abs(average - right)).all()
