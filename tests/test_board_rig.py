"""What a rig from the board says of itself: covariances, pairs, halves and warnings, against what they must be."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from edge_hand.calibration.board import BoardCamera, BoardResult, _warnings, calibrate
from edge_hand.calibration.bundle import BundleError, Options
from edge_hand.calibration.corners import View
from edge_hand.calibration.rig import RigPair
from edge_hand.calibration.uncertainty import Volume, point_sigma_mm
from edge_hand.hand.arrays import Array
from edge_hand.hand.se3 import apply, inverse, so3_exp, transform
from test_board import A4, LENS, T_RIGHT_LEFT, a_pose
from test_bundle import CORNERS, PERIOD, simulate
from test_bundle import LENS as WIDE

T_CAMERA_REF = (np.eye(4), T_RIGHT_LEFT, transform(so3_exp(np.array([0, -0.2, 0])), np.array([-0.1, 0, 0])))
STILL = Options(offsets=False)
ASIDE = Volume((0.3, -0.2, 1.1), 0.6)


def views_of(moments: int, noise_px: float, third: int, bump: Array | None = None) -> list[View]:
    """Views of a still board by three cameras; the third sees the first so many moments, and stands elsewhere, by bump
    on the left, in every second one."""
    rng, corners, views = np.random.default_rng(0), A4.corners_m(), []
    for n in range(moments):
        board = a_pose(rng)
        for c, T in enumerate(T_CAMERA_REF):
            if c < 2 or n < third:
                moved = bump @ T if bump is not None and c == 2 and n % 2 else T
                pixels = LENS.project(apply(moved @ board, corners)) + rng.normal(size=(len(corners), 2)) * noise_px
                views.append(View(c, float(n), np.arange(len(corners)), pixels))
    return views


def rig_of(views: list[View], options: Options = STILL) -> BoardResult:
    cameras = [BoardCamera(f"cam{c}", "infrared", LENS, 1.0) for c in range(3)]
    return calibrate("rig", cameras, views, A4.corners_m(), options, volume=ASIDE)


@cache
def sound() -> BoardResult:
    return rig_of(views_of(16, 0.3, 10))


@cache
def bumped() -> BoardResult:
    """The third camera is turned by a degree about itself between the two halves."""
    return rig_of(views_of(12, 0.1, 12, transform(so3_exp(np.radians([0.0, 1.0, 0.0])), np.zeros(3))))


def test_the_covariance_in_the_rig_is_that_of_the_pose_in_the_rig_and_so_is_the_sigma_of_the_volume() -> None:
    found = sound()
    quality, points = found.rig.quality, ASIDE.points_m()
    assert (quality.volume_centre_m, quality.volume_edge_m) == (ASIDE.centre_m, ASIDE.edge_m)
    for c in (1, 2):
        camera, T = found.rig.cameras[c], found.solution.scene.T_camera_ref[c]
        np.testing.assert_allclose(camera.T_ref_cam, inverse(T))
        change = np.empty((len(points), 3, 6))  # of where a thing that the camera sees is, by the bundle's unknowns
        for k, d in enumerate(1e-6 * np.eye(6)):
            moved = transform(so3_exp(d[:3]), d[3:]) @ T
            change[:, :, k] = (apply(inverse(moved), apply(T, points)) - points) / 1e-6
        variance = np.einsum("nai,ij,naj->n", change, found.solution.camera_covariance(c), change)
        np.testing.assert_allclose(point_sigma_mm(camera.covariance, points), 1e3 * np.sqrt(variance), rtol=1e-3)
        assert quality.sigma_volume_mm[camera.serial] == pytest.approx(1e3 * np.sqrt(variance.mean()), rel=1e-3)
    assert list(quality.sigma_volume_mm) == ["cam1", "cam2"]


def test_each_pair_of_a_rig_tells_what_it_shares_and_agrees_with_the_whole() -> None:
    pairs = sound().rig.pairs
    assert [(p.a, p.b, p.overlap) for p in pairs] == [("cam0", "cam1", 16), ("cam0", "cam2", 10), ("cam1", "cam2", 10)]
    for pair in pairs:
        assert pair.loop_deg is not None and pair.loop_mm is not None
        assert pair.loop_deg < 0.2 and pair.loop_mm < 2


def test_one_half_of_a_sound_recording_predicts_the_other_about_as_well_as_it_fits_itself() -> None:
    found = sound()
    rms = found.rig.quality.rms
    assert found.halves is not None and rms["heldout_px"] == found.halves.heldout_rms_px
    assert rms["reprojection_px"] == pytest.approx(0.3 * np.sqrt(2), rel=0.1)
    assert rms["reprojection_median_px"] == pytest.approx(0.3 * np.sqrt(2 * np.log(2)), rel=0.1)
    assert rms["reprojection_px"] < rms["heldout_px"] < 1.3 * rms["reprojection_px"]
    assert found.rig.quality.warnings == ("cam2 shares only 10 moments with its best partner (at least 12 wanted)",)
    assert found.rig.quality.verdict == "fail"


def test_a_camera_that_was_turned_between_the_halves_is_seen_by_both_checks_of_the_halves() -> None:
    found = bumped()
    quality, halves = found.rig.quality, found.halves
    assert halves is not None and [d.deg > 0.5 for d in halves.differences] == [False, False, True]
    assert quality.split_half_deg == halves.differences[2].deg == pytest.approx(1.0, abs=0.1)
    assert quality.split_half_mm == max(d.mm for d in halves.differences) < 1, "it turned where it stood"
    assert halves.heldout_rms_px > 3
    assert quality.verdict == "fail" and any(
        warning.startswith("the halves of the recording differ by ") for warning in quality.warnings
    )


def test_clocks_of_a_moving_board_are_in_the_rig_with_their_sign_and_sigma() -> None:
    sim = simulate(2, bursts=8, offset_s=0.05, cameras=2)  # 30 ms: pictures must be sorted into moments anew
    found = calibrate("rig", [BoardCamera(name, "infrared", WIDE, PERIOD) for name in "ab"], sim.views, CORNERS)
    time = found.rig.cameras[1].time
    assert found.rig.cameras[0].time.offset_s == 0
    assert time.offset_s == pytest.approx(sim.offsets_s[1], abs=2e-4) and 1e-6 < time.sigma_s < 1e-3
    assert found.without_offsets is not None and found.without_offsets.rms_px > 1.5 * found.solution.rms_px
    assert found.rig.pairs[0].loop_mm == pytest.approx(0, abs=0.01), "two cameras are the whole rig"
    assert found.halves is not None and found.halves.heldout_rms_px < 1.5 * found.solution.rms_px


def test_of_a_board_that_was_shown_at_rest_alone_a_rig_is_made_without_offsets() -> None:
    cameras = [BoardCamera(f"cam{c}", "infrared", LENS, 0.1) for c in range(2)]
    found = calibrate("rig", cameras, views_of(8, 0.1, 0), A4.corners_m())
    assert found.rig.cameras[1].time.offset_s == 0 and found.without_offsets is None and found.halves is not None
    assert found.rig.quality.warnings[0].startswith("time offsets not estimated: too few moments")
    assert found.rig.quality.verdict == "fail"


def test_one_camera_is_no_rig() -> None:
    cameras = [BoardCamera("cam0", "infrared", LENS, 1.0)]
    with pytest.raises(BundleError, match=r"^a rig needs two cameras or more$"):
        calibrate("rig", cameras, [view for view in views_of(4, 0.1, 0) if view.camera == 0], A4.corners_m(), STILL)


class Fit(NamedTuple):
    converged: bool = True
    rms_px: float = 0.5


PAIRS = [RigPair("a", "b", 12, 0.0, 0.0), RigPair("a", "c", 3, 0.0, 0.0), RigPair("b", "c", 20, 0.0, 0.0)]
SIGMAS = {"b": 1.9, "c": 0.1}


@pytest.mark.parametrize(
    ("fit", "pairs", "sigmas", "deg", "mm", "square", "words"),
    [
        (Fit(), PAIRS, SIGMAS, 0.39, 6.9, 1.004, None),
        (Fit(), PAIRS, SIGMAS, None, None, 0.996, None),
        (Fit(converged=False), PAIRS, SIGMAS, 0.1, 1.0, None, "the solution did not settle"),
        (Fit(rms_px=1.01), PAIRS, SIGMAS, 0.1, 1.0, None, "corners fit to 1.01 px only (limit 1)"),
        (Fit(), PAIRS[1:2], SIGMAS, 0.1, 1.0, None, "a shares only 3 moments with its best partner (at least 12"),
        (
            Fit(),
            PAIRS,
            {"b": 2.1, "c": 0.1},
            0.1,
            1.0,
            None,
            "b is uncertain by 2.1 mm in the working volume (limit 2)",
        ),
        (Fit(), PAIRS, SIGMAS, 0.41, 1.0, None, "the halves of the recording differ by 0.41 deg, 1.0 mm"),
        (Fit(), PAIRS, SIGMAS, 0.1, 7.1, None, "the halves of the recording differ by 0.10 deg, 7.1 mm"),
        (Fit(), PAIRS, SIGMAS, 0.1, 1.0, 1.006, "depth says that the board's squares are 0.6 % larger than said"),
        (Fit(), PAIRS, SIGMAS, 0.1, 1.0, 0.994, "depth says that the board's squares are 0.6 % smaller than said"),
    ],
)
def test_a_board_rig_is_warned_of_just_beyond_each_limit(
    fit: Any, pairs: list[RigPair], sigmas: dict[str, float], deg: float | None, mm: float | None,
    square: float | None, words: str | None,
) -> None:  # fmt: skip
    found = _warnings(fit, pairs, sigmas, deg, mm, square)
    assert found == [] if words is None else found[0].startswith(words), found
