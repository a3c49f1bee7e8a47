"""A place that is looked at again has less noise, and shows what moved as it is now."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from edge_hand.edge.calm import NOISE_M, YOUNG_NS, Calm
from edge_hand.edge.engines import open_engine
from edge_hand.edge.track import Track
from edge_hand.edge.tracker import Tracker
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


def test_what_is_no_longer_read_is_not_made_up() -> None:
    """Neither where the background is seen, as where a finger was, nor where nothing is."""
    for counts_mm in (900, 0):
        calm, gap = Calm(), wall()
        gap[100:114, 150:164] = counts_mm
        calm(frame(0, wall()), crop(frame(0, wall())))
        now = crop(frame(1, gap))
        gone = now.image == BACKGROUND
        assert 20 < gone.sum() < 200
        np.testing.assert_array_equal(calm(frame(1, gap), now).image == BACKGROUND, gone)


@pytest.mark.parametrize("mm", [500, 622])  # in the middle of the cube, or at its back, next to the background
def test_what_a_sensor_that_sees_nothing_saw_before_is_not_made_up(mm: float) -> None:
    calm, blind = Calm(), frame(1, wall(0))
    assert (calm(frame(0, wall(mm)), crop(frame(0, wall(mm)))).image < BACKGROUND).any()
    assert (calm(blind, crop(blind)).image == BACKGROUND).all()


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


@pytest.mark.parametrize(("speed_m_s", "still"), [(0.0, True), (0.02, True), (0.05, False), (1.0, False)])
def test_only_hands_that_are_still_are_looked_at_so(
    monkeypatch: pytest.MonkeyPatch, speed_m_s: float, still: bool
) -> None:
    tracker, looks = Tracker(open_engine()), []
    monkeypatch.setattr(tracker.eye, "look", lambda *given: looks.append(given[-1]) or SimpleNamespace(is_hand=False))
    track = Track(CENTRE_M, 0, 5.0, velocity_m_s=np.array([0, 0, speed_m_s]))
    tracker._follow(track, frame(1, wall()))
    assert looks == [track.calm if still else None]
