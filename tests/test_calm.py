"""A place that is looked at again has less noise, and shows what moved as it is now."""

from __future__ import annotations

import numpy as np
import pytest
from edge_hand.edge.calm import NOISE_M, YOUNG_NS, Calm
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.crop import BACKGROUND, crop_depth
from edge_hand.hand.frames import DepthFrame, HandCrop, HandRoi

CAMERA = Intrinsics(320, 240, 300.0, 300.0, 160.0, 120.0)
CENTRE_M = np.array([0.01, -0.02, 0.5])
STEP_NS = 33_000_000


def frame(k: int, depth_mm: np.ndarray) -> DepthFrame:
    return DepthFrame("test", k, k * STEP_NS, depth_mm.astype(np.uint16), 0.001, CAMERA)


def crop(frame: DepthFrame, centre_m: np.ndarray = CENTRE_M, cube_m: float = 0.25, mirrored: bool = False) -> HandCrop:
    return crop_depth(frame, HandRoi("unknown", centre_m, cube_m, 1.0), 64, mirrored)


def wall(mm: float = 500) -> np.ndarray:
    return np.full((240, 320), mm, float)


def test_noise_of_a_place_that_stays_is_averaged_out() -> None:
    rng, calm, raw, calmed = np.random.default_rng(0), Calm(), [], []
    for k in range(40):
        seen = frame(k, wall() + rng.normal(0, 1.5, (240, 320)))
        raw.append(crop(seen).image)
        calmed.append(calm(seen, crop(seen)).image)
    assert np.std(calmed[5:], 0).mean() < 0.65 * np.std(raw[5:], 0).mean()
    assert np.diff(calmed[5:], axis=0).std() < 0.5 * np.diff(raw[5:], axis=0).std()
    assert abs(np.mean(calmed[5:]) - np.mean(raw[5:])) < 1e-3  # half cubes: 0.1 mm


@pytest.mark.parametrize("by_mm", [1.5 * 1e3 * NOISE_M, -40.0])
def test_what_moved_is_as_it_is_now(by_mm: float) -> None:
    calm = Calm()
    calm(frame(0, wall()), crop(frame(0, wall())))
    now = crop(frame(1, wall(500 + by_mm)))
    np.testing.assert_array_equal(calm(frame(1, wall(500 + by_mm)), now).image, now.image)


def test_a_gap_of_one_frame_is_filled_and_of_a_second_one_not() -> None:
    calm, gap = Calm(), wall()
    gap[100:114, 150:164] = 0
    calm(frame(0, wall()), crop(frame(0, wall())))
    open_ = crop(frame(1, gap)).image == BACKGROUND
    assert 20 < open_.sum() < 200
    filled = calm(frame(1, gap), crop(frame(1, gap)))
    np.testing.assert_allclose(filled.image, crop(frame(0, wall())).image, atol=2e-3)
    np.testing.assert_array_equal(calm(frame(2, gap), crop(frame(2, gap))).image == BACKGROUND, open_)


@pytest.mark.parametrize("mm", [500, 622])  # in the middle of the cube, or at its back, next to the background
def test_what_a_sensor_that_sees_nothing_saw_before_is_not_made_up(mm: float) -> None:
    calm, blind = Calm(), frame(1, wall(0))
    assert (calm(frame(0, wall(mm)), crop(frame(0, wall(mm)))).image < BACKGROUND).any()
    assert (calm(blind, crop(blind)).image == BACKGROUND).all()


def test_where_the_background_shows_nothing_is_filled() -> None:
    calm, away = Calm(), wall()
    away[100:114, 150:164] = 900  # beyond the cube, as where a finger was
    calm(frame(0, wall()), crop(frame(0, wall())))
    now = crop(frame(1, away))
    gone = now.image == BACKGROUND
    assert gone.any() and (calm(frame(1, away), now).image[gone] == BACKGROUND).all()


def test_pixels_beyond_the_picture_are_no_gaps() -> None:
    calm, beside = Calm(), np.array([0.3, 0.2, 0.5])  # cut by the corner of the picture
    for k in range(2):
        seen = frame(k, wall() + k)
        now = crop(seen, beside)
        assert (now.image == BACKGROUND).any() and (now.image < BACKGROUND).any()
        np.testing.assert_array_equal(calm(seen, now).image == BACKGROUND, now.image == BACKGROUND)


@pytest.mark.parametrize(
    ("k", "other"),
    [
        (1, {"centre_m": CENTRE_M + 1e-4}),
        (1, {"cube_m": 0.24}),
        (1, {"mirrored": True}),
        (1 + YOUNG_NS // STEP_NS, {}),
        (0, {}),
    ],
)
def test_another_place_or_another_time_is_a_new_beginning(k: int, other: dict[str, object]) -> None:
    calm = Calm()
    calm(frame(0, wall()), crop(frame(0, wall())))
    now = crop(frame(k, wall() + 2), **other)  # type: ignore[arg-type]
    assert calm(frame(k, wall() + 2), now) is now
