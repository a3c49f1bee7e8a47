"""The loop's compiled arithmetic gives what its slow twin in numpy gives."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from edge_hand.edge.arithmetic import PLAIN, Arithmetic
from edge_hand.edge.compiled.compiling import kept, take
from edge_hand.edge.confidence import Calibration
from edge_hand.edge.engines.tensorrt.plan import cache_folder
from edge_hand.edge.refit import Fit, Refit, Start
from edge_hand.hand.arrays import Array
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame, HandCrop, HandRoi
from edge_hand.hand.kinematics import Shape, pose_hand
from edge_hand.hand.se3 import so3_exp
from edge_hand.hand.skeleton import ALPHA_RANGE, ANGLE_LIMITS_RAD
from edge_hand.hand.template import template
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

T = template()
LOW, HIGH = ANGLE_LIMITS_RAD.T
AVERAGE = Shape(np.ones(6), np.zeros(7))
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=40, deadline=None)


@cache
def fast() -> Arithmetic:
    """Compiled, for a minute where no earlier test run has."""
    return take(kept(cache_folder() / "tests"))


@cache
def refits() -> tuple[Refit, Refit]:
    return PLAIN.refit(), fast().refit()


def hand(rng: np.random.Generator, angles: Array | None = None) -> tuple[Array, Shape]:
    """Vertices (V, 3) m of any hand, half a metre away, and its shape."""
    beta = rng.uniform(-1, 1, 7) if rng.random() < 0.2 else np.zeros(7)
    shape = Shape(rng.uniform(*ALPHA_RANGE, 6), beta)
    bent = rng.uniform(LOW, HIGH) if angles is None else angles
    theta = np.concatenate([rng.normal((0, 0, 0.5), 0.1), rng.normal(0, 1.5, 3), bent])
    return pose_hand(T, theta[None], shape.alpha[None], shape.beta[None])[1][0], shape


def farthest(a: Fit, b: Fit) -> float:
    """In m of the joints, 10 mm to the radian of the angles and of the wrist's turn."""
    off = (a.joints_m - b.joints_m, a.T_wrist[:3, 3] - b.T_wrist[:3, 3], a.joints_free_m - b.joints_free_m)
    turned = (a.angles - b.angles, a.T_wrist[:3, :3] - b.T_wrist[:3, :3])
    return max(*(float(np.abs(m).max()) for m in off), *(0.01 * float(np.abs(rad).max()) for rad in turned))


def assert_same_fit(vertices: Array, **given: Any) -> None:
    """The twins agree to 10 um and 1 mrad. For three noisy hands in a hundred numpy's own answer leaps when everything
    moves by 0.1 um, the rounding of 32 bits: an angle is just at its limit. There it is one of the answers that it
    leaps between."""
    slow, quick = (refit.solve(vertices, **given) for refit in refits())
    rng, nearest = np.random.default_rng(0), farthest(slow, quick)
    for i in range(100):
        if nearest < 1e-5:
            break
        moved = dict(given)
        if given.get("points_m") is not None:
            moved["points_m"] = given["points_m"] + rng.normal(0, 10.0 ** -(7 + i % 2), given["points_m"].shape)
        again = refits()[0].solve(vertices + rng.normal(0, 10.0 ** -(7 + i % 2), vertices.shape), **moved)
        nearest = min(nearest, farthest(again, quick))
    assert nearest < 1e-5
    assert (quick.angles >= LOW).all() and (quick.angles <= HIGH).all()
    assert quick.alpha is slow.alpha and quick.beta is slow.beta


@few
@given(seed=seeds, points=st.sampled_from([None, 0, 1, 96, 300]), start=st.booleans(), weighted=st.booleans())
def test_a_hand_is_fitted_alike(seed: int, points: int | None, start: bool, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    vertices, shape = hand(rng)
    given: dict[str, Any] = {"shape": shape}
    if points is not None:
        given["points_m"] = vertices[rng.choice(len(vertices), points)] + rng.normal(0, 0.002, (points, 3))
    if weighted:
        given["weights"] = rng.uniform(0.05, 1, 21)
    noisy = vertices + rng.normal(0, 0.003, vertices.shape) + rng.normal(0, 0.003, 3)
    if start:
        before = refits()[0].solve(vertices, shape=shape)
        turned = so3_exp(rng.normal(0, 0.1, 3)) @ before.T_wrist[:3, :3]
        angles = np.clip(before.angles + rng.normal(0, 0.2, 20), LOW, HIGH)
        given["start"] = Start(turned, angles, rng.uniform(0, 0.15))
    assert_same_fit(noisy, **given)


@few
@given(seed=seeds, low=st.booleans())
def test_a_hand_with_all_angles_at_their_limits_is_fitted_alike(seed: int, low: bool) -> None:
    rng = np.random.default_rng(seed)
    vertices, shape = hand(rng, LOW if low else HIGH)
    assert_same_fit(vertices + rng.normal(0, 0.002, vertices.shape), shape=shape, points_m=vertices[::17].copy())


@few
@given(seed=seeds)
def test_fingers_that_pass_through_each_other_are_parted_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.zeros((5, 4))
    angles[1:, 1] = np.array([-1, 1, -1, 1]) * HIGH[5]  # index into middle, ring into little
    angles[:, 0] = rng.uniform(0, 0.3)
    vertices, shape = hand(rng, angles.ravel())
    slow, _ = refits()
    fit = slow.solve(vertices, shape=shape)
    rest = slow.chain.at_rest(shape)
    overlaps = slow.spheres.overlaps(slow.chain.pose(fit.T_wrist[:3, :3], angles.ravel(), rest), rest)
    assume(overlaps is not None and overlaps.deep_m.max() > 0.003)
    assert_same_fit(vertices, shape=shape)


def test_a_start_that_the_network_sees_turned_away_is_no_start_for_either() -> None:
    vertices, shape = hand(np.random.default_rng(3))
    wrist = refits()[0].solve(vertices, shape=shape).T_wrist[:3, :3]
    for degrees in (59, 61):
        turned = so3_exp(np.radians([0, 0, degrees])) @ wrist
        assert_same_fit(vertices, shape=shape, start=Start(turned, np.zeros(20), 0.03))


def test_a_hand_around_the_camera_is_fitted_alike() -> None:
    vertices, shape = hand(np.random.default_rng(4))
    around = vertices - vertices.mean(0)
    assert_same_fit(around, shape=shape, points_m=around[::20].copy())


@few
@given(seed=seeds, kind=st.sampled_from(["noise", "mirrored", "flat", "one point", "huge", "tiny"]))
def test_what_is_no_hand_is_a_hand_within_its_limits_all_the_same(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    vertices, shape = hand(rng)
    vertices = {
        "noise": rng.normal(0, 0.05, vertices.shape), "mirrored": vertices * [-1, 1, 1],
        "flat": vertices * [1, 1, 0], "one point": np.broadcast_to(vertices[:1], vertices.shape),
        "huge": vertices * 1e4, "tiny": vertices * 1e-7,
    }[kind]  # fmt: skip
    fit = refits()[1].solve(vertices, shape=shape, points_m=vertices[::30])
    assert all(np.isfinite(array).all() for array in (fit.angles, fit.T_wrist, fit.joints_m, fit.joints_free_m))
    assert (fit.angles >= LOW).all() and (fit.angles <= HIGH).all()
    assert np.allclose(fit.T_wrist[:3, :3] @ fit.T_wrist[:3, :3].T, np.eye(3), atol=1e-9)


@few
@given(seed=seeds, noise_m=st.sampled_from([0.0, 0.002, 0.02, 1.0]))
def test_parts_turn_alike_however_noisy(seed: int, noise_m: float) -> None:
    """The rotation of each part, by Newton's method here and by LAPACK there; parts are told by their joints, which
    lie at most a finger's length from their middles."""
    rng = np.random.default_rng(seed)
    vertices, shape = hand(rng)
    vertices = (vertices + rng.normal(0, noise_m, vertices.shape)).astype(np.float32)
    slow, quick = (refit.solve(vertices, shape=shape).joints_free_m for refit in refits())
    assert np.abs(slow - quick).max() < 1e-5 * max(1, noise_m / 0.02)


@few
@given(seed=seeds)
def test_a_hand_is_posed_alike_and_each_shape_anew(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(3):
        _, shape = hand(rng)
        wrist = np.eye(4)
        wrist[:3, :3], wrist[:3, 3] = so3_exp(rng.normal(0, 1, 3)), rng.normal(0, 0.3, 3)
        (joints, vertices), (quick_joints, quick) = (r.pose(wrist, rng_angles(seed), shape) for r in refits())
        assert np.abs(joints - quick_joints).max() < 1e-12
        assert np.abs(vertices - quick).max() < 1e-6 and quick.dtype == np.float32 and quick.flags.c_contiguous


def rng_angles(seed: int) -> Array:
    return np.random.default_rng(seed).uniform(LOW, HIGH)


def test_a_fit_without_a_shape_is_numpy_s_own() -> None:
    vertices, _ = hand(np.random.default_rng(5))
    slow, quick = (refit(vertices) for refit in refits())
    assert np.array_equal(slow.joints_m, quick.joints_m) and np.abs(slow.vertices_m - quick.vertices_m).max() < 1e-6


# --- pictures


def picture(rng: np.random.Generator, distortion: float = 0.0) -> DepthFrame:
    """A wavy surface half a metre away with noise and gaps, as a camera gives it: not to be written to."""
    rows, columns = np.mgrid[:120, :160]
    depth = 500 + 40 * np.sin(columns / 9) + 30 * np.cos(rows / 7) + rng.normal(0, 30, rows.shape)
    depth[rng.random(depth.shape) < 0.2] = 0
    counts = depth.astype(np.uint16)
    counts.flags.writeable = False
    camera = Intrinsics(160, 120, 150.0, 151.5, 79.3, 60.8, (distortion, 0.0, 0.0, 0.0, 0.0))
    return DepthFrame("test", 1, 0, counts, 0.001, camera)


@few
@given(seed=seeds, left=st.booleans(), size=st.sampled_from([16, 64]), distortion=st.sampled_from([0.0, 0.0, 0.1]))
def test_a_crop_is_the_same_to_the_last_bit(seed: int, left: bool, size: int, distortion: float) -> None:
    """Whole, over the edge of the picture, or beside it."""
    rng = np.random.default_rng(seed)
    roi = HandRoi("unknown", rng.normal((0, 0, 0.5), (0.15, 0.15, 0.02)), float(rng.uniform(0.1, 0.4)), 1.0)
    frame = picture(rng, distortion)
    slow, quick = (a.crop_depth(frame, roi, size, left) for a in (PLAIN, fast()))
    assert np.array_equal(slow.image, quick.image) and quick.image.dtype == np.float32
    assert np.array_equal(slow.R_camera_crop, quick.R_camera_crop)
    assert (slow.distance_m, slow.cube_m, slow.mirrored) == (quick.distance_m, quick.cube_m, quick.mirrored)


def test_a_crop_of_a_cube_that_holds_the_camera_is_the_same() -> None:
    frame = picture(np.random.default_rng(0))
    roi = HandRoi("unknown", np.array([0.02, 0.01, 0.2]), 0.7, 1.0)
    slow, quick = (a.crop_depth(frame, roi, 64, False).image for a in (PLAIN, fast()))
    assert np.array_equal(slow, quick) and quick[quick < 1].min() > -0.5 and (quick == 1).any()


def test_a_part_of_a_larger_picture_is_cropped_alike() -> None:
    frame = picture(np.random.default_rng(0))
    strided = DepthFrame("test", 1, 0, np.repeat(frame.depth, 2, 1)[:, ::2], 0.001, frame.intrinsics)
    roi = HandRoi("unknown", np.array([0.02, 0.01, 0.5]), 0.2, 1.0)
    image = fast().crop_depth(strided, roi, 64, False).image
    assert np.array_equal(image, PLAIN.crop_depth(frame, roi, 64, False).image) and 0.2 < (image < 1).mean() < 1


@few
@given(seed=seeds, distortion=st.sampled_from([0.0, 0.0, 0.1]))
def test_joints_are_seen_alike(seed: int, distortion: float) -> None:
    rng = np.random.default_rng(seed)
    joints = rng.normal((0, 0, 0.5), (0.25, 0.2, 0.04), (21, 3))
    joints[:3, 2] = (0.0, -0.3, 0.01)  # not in the picture at all
    frame = picture(rng, distortion)
    slow, quick = (a.visible(frame, joints) for a in (PLAIN, fast()))
    assert np.array_equal(slow, quick) and quick.dtype == np.int8


def test_some_joints_of_a_picture_are_seen_some_hidden_and_some_neither() -> None:
    rng = np.random.default_rng(1)
    joints = rng.normal((0, 0, 0.52), (0.25, 0.2, 0.06), (21, 3))
    assert set(fast().visible(picture(rng), joints).tolist()) == {-1, 0, 1}


@few
@given(seed=seeds, n=st.sampled_from([1, 2, 3, 39, 40, 41, 96, 200]))
def test_the_gauge_of_the_fit_reads_alike(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    mesh = hand(rng)[0].astype(np.float32)
    points = mesh[rng.choice(len(mesh), n)] + rng.normal(0, 0.004, (n, 3))
    slow, quick = (a.fit_mm(points, mesh) for a in (PLAIN, fast()))
    assert abs(slow - quick) < 2e-3 and quick == fast().fit_mm(points, np.asfortranarray(mesh))


def test_without_points_the_gauge_reads_nothing() -> None:
    assert np.isnan(fast().fit_mm(np.zeros((0, 3)), np.zeros((1609, 3), np.float32)))


@few
@given(seed=seeds, pixels=st.sampled_from([0.0, 0.05, 0.5, 1.0]), size=st.sampled_from([16, 64]))
def test_the_network_s_answer_is_read_alike(seed: int, pixels: float, size: int) -> None:
    rng = np.random.default_rng(seed)
    image = np.where(rng.random((size, size)) < 0.8, rng.uniform(-1, 1, (size, size)), 1).astype(np.float32)
    crop = HandCrop(image, np.eye(3), float(rng.uniform(0.2, 1.3)), float(rng.uniform(0.1, 0.4)))
    n = len(T.vertices_m)
    shapes = (1, n, 3), (1, n), (1, size * size // 4)
    uvd, log_error, hand = (rng.normal(0, spread, s) for spread, s in zip((0.5, 2.0, 1.0), shapes, strict=True))
    hand = np.where(rng.random(hand.shape) < pixels, abs(hand), -abs(hand))
    outputs = [x.astype(np.float32) for x in (uvd, log_error, hand, rng.normal(size=1), rng.normal(size=1))]
    slow, quick = (a.read(crop, outputs) for a in (PLAIN, fast()))
    for name in ("vertices_m", "points_m", "centre_m", "error_m", "joint_error_m"):
        ours, theirs = getattr(quick, name), getattr(slow, name)
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-7, err_msg=name)
    assert quick.mean_error_m == pytest.approx(slow.mean_error_m, rel=1e-5)
    assert (quick.hand_pixels, quick.right_logit, quick.presence_logit) == (
        slow.hand_pixels, slow.right_logit, slow.presence_logit,
    )  # fmt: skip


@few
@given(seed=seeds, size=st.sampled_from([16, 64]))
def test_a_place_that_is_looked_at_again_is_calmed_to_the_same_bits(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    before = rng.uniform(-1, 1, (size, size)).astype(np.float32)
    image = (before + rng.normal(0, 0.05, before.shape).astype(np.float32)).clip(-1, 1)
    before[rng.random(before.shape) < 0.2] = 1
    slow, quick = (a.calmed(image, before, 0.048) for a in (PLAIN, fast()))
    assert np.array_equal(slow, quick) and quick.dtype == np.float32
    assert 0.2 < (quick == image).mean() < 0.7 and np.abs(quick - image).max() < 0.048


@few
@given(seed=seeds)
def test_joints_are_as_sure_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    error_m, seen = rng.exponential(0.01, 21).astype(np.float32), rng.integers(-1, 2, 21).astype(np.int8)
    error_m[0] = 0
    calibration = Calibration(*rng.normal((0.4, -4, -0.7), 0.5))
    slow, quick = (a.joint_confidence(error_m, seen, calibration) for a in (PLAIN, fast()))
    np.testing.assert_allclose(quick, slow, rtol=1e-5)


@few
@given(seed=seeds, hz=st.sampled_from([15, 30, 90]), quick_turn=st.booleans())
def test_a_moving_hand_is_smoothed_alike(seed: int, hz: int, quick_turn: bool) -> None:
    """Over gaps and standing clocks too, and with turns of up to half a circle from frame to frame."""
    rng = np.random.default_rng(seed)
    slow, compiled = PLAIN.smoother(), fast().smoother()
    t_ns, wrist, angles = 0, np.eye(4), rng.uniform(-0.5, 0.5, 20)
    for _ in range(40):
        wrist, angles = wrist.copy(), angles + rng.normal(0, 0.1, 20)
        wrist[:3, :3] = so3_exp(rng.normal(0, 1.5 if quick_turn else 0.1, 3)) @ wrist[:3, :3]
        wrist[:3, 3] += rng.normal(0, 0.01, 3)
        t_ns += int(rng.choice([1, 1, 1, 1, 1, 1, 2, 0, 40]) * 1e9 / hz)
        both = [smoother(t_ns, wrist, angles) for smoother in (slow, compiled)]
        ahead = [smoother.predict(t_ns + 20_000_000) for smoother in (slow, compiled)]
        for a, b in (both, ahead):
            assert a is not None and b is not None
            for ours, theirs in zip((*b[:2], *b.motion), (*a[:2], *a.motion), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
