"""Sensor models against the physics of triangulation and time of flight, published noise, and real SR305 frames."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from edge_hand.hand.arrays import Array

pytest.importorskip("numba", reason="the trainer's sensors need numba")

from edge_hand.trainer.synth.sensors import (
    MAX_DISPARITY_PX,
    SENSORS,
    Sensor,
    SensorError,
    Settings,
    corrupt,
    draw_settings,
    sense,
)
from PIL import Image

SR305 = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "sr305"
D435, D405, D415 = SENSORS["D435 848x480"], SENSORS["D405 848x480"], SENSORS["D415 640x480"]
KINECT_1, KINECT_2, SR = SENSORS["Kinect v1"], SENSORS["Kinect v2"], SENSORS["SR305 640x480"]
TRIANGULATING = [s for s in SENSORS.values() if s.kind != "time_of_flight"]


def plane(z_m: float, shape: tuple[int, int] = (96, 96)) -> Array:
    return np.full(shape, z_m, np.float32)


def bar(near_m: float, far_m: float, left: int = 60, right: int = 90, shape: tuple[int, int] = (40, 150)) -> Array:
    """An upright bar in columns left .. right - 1 before a wall."""
    z = plane(far_m, shape)
    z[:, left:right] = near_m
    return z


def seen(z: Array, sensor: Sensor, settings: Settings, seed: int = 0, focal_px: float | None = None) -> Array:
    return corrupt(z, focal_px or sensor.focal_px, sensor, settings, seed, np.empty_like(z))


def spread(z_m: float, sensor: Sensor, settings: Settings) -> float:
    """Standard deviation on a plane, m."""
    return float(np.std([seen(plane(z_m), sensor, settings, seed) for seed in range(12)]))


@pytest.mark.parametrize("sensor", TRIANGULATING, ids=lambda s: s.name)
@pytest.mark.parametrize("white", [1.0, 0.2])
def test_noise_on_a_plane_is_the_disparity_error_times_z_squared_over_focal_times_baseline(
    sensor: Sensor, white: float
) -> None:
    for z in (0.8, 1.1, 1.4):
        noise = 0.1 + sensor.disparity_step_px  # coarser, and the steps would not act as noise
        rms_px = np.hypot(noise, sensor.disparity_step_px / 12**0.5)
        expected = z**2 / (sensor.focal_px * sensor.baseline_m) * rms_px
        found = spread(z, sensor, Settings(noise=noise, white=white, patch_px=6))
        assert found == pytest.approx(np.hypot(expected, sensor.unit_m / 12**0.5), rel=0.08)


def test_stereo_noise_grows_with_the_square_of_distance_and_time_of_flight_slower() -> None:
    z = np.array([0.5, 0.7, 1.0, 1.4, 2.0])
    stereo, flight = Settings(noise=0.1), Settings(noise=0.004)
    assert np.polyfit(np.log(z), np.log([spread(k, D435, stereo) for k in z]), 1)[0] == pytest.approx(2, abs=0.1)
    assert 0.1 < np.polyfit(np.log(z), np.log([spread(k, KINECT_2, flight) for k in z]), 1)[0] < 1


def test_a_d435_has_the_noise_that_its_tuning_paper_gives() -> None:
    # z^2 / (focal * baseline) * sub-pixel RMS; 0.08 px at 848x480 and 1 m is 3.8 mm.
    assert spread(1.0, D435, Settings(noise=0.08)) == pytest.approx(0.0038, rel=0.1)


def test_kinect_v1_is_as_khoshelham_and_elberink_measured() -> None:
    slope = np.linspace(1.8, 2.2, 150, dtype=np.float32)[None].repeat(40, 0)
    steps = np.diff(np.unique(seen(slope, KINECT_1, Settings())))
    assert np.median(steps) == pytest.approx(2.85e-3 * 2.0**2, abs=0.001)  # 7 cm at 5 m
    low, high = KINECT_1.noise
    assert low < 1.425e-3 * KINECT_1.focal_px * KINECT_1.baseline_m < high  # random error 1.425e-3 z^2 m


def test_kinect_v2_noise_lies_about_fankhausers_curve() -> None:
    for z in (0.5, 1.0, 2.0, 3.0):
        published = (1.5 - 0.5 * z + 0.3 * z**2) / 1000
        low, high = (spread(z, KINECT_2, Settings(noise=k)) for k in KINECT_2.noise)
        assert low < published < high
        assert spread(z, KINECT_2, Settings(noise=0.0013)) == pytest.approx(published, rel=0.35)


def test_stereo_reads_whole_thirty_seconds_of_a_pixel_of_disparity() -> None:
    slope = np.linspace(1.9, 2.1, 150, dtype=np.float32)[None].repeat(40, 0)
    steps = np.diff(np.unique(seen(slope, D435, Settings(noise=0.05))))
    assert np.median(steps) == pytest.approx(2.0**2 / (D435.focal_px * D435.baseline_m) / 32, abs=0.001)


@pytest.mark.parametrize("sensor", SENSORS.values(), ids=lambda s: s.name)
def test_readings_are_whole_counts_in_range(sensor: Sensor) -> None:
    slope = np.linspace(0.05, 8, 4000, dtype=np.float32)[None].repeat(3, 0)
    z = seen(slope, sensor, draw_settings(sensor, np.random.default_rng(0)))
    counts = z[z > 0] / sensor.unit_m
    assert len(counts) > 500
    assert np.abs(counts - counts.round()).max() < 0.02
    assert sensor.min_z_m <= z[z > 0].min() < sensor.min_z_m + 0.1
    assert z.max() <= sensor.max_z_m


def test_a_stereo_sensor_reads_no_nearer_than_its_disparity_search() -> None:
    for s in SENSORS.values():
        if s.kind == "active_stereo":
            assert s.focal_px * s.baseline_m / s.min_z_m == pytest.approx(MAX_DISPARITY_PX)


@pytest.mark.parametrize("sensor", SENSORS.values(), ids=lambda s: s.name)
def test_default_settings_leave_a_plane_alone(sensor: Sensor) -> None:
    z = 0.6
    triangulates = sensor.baseline_m > 0
    step = z**2 / (sensor.focal_px * sensor.baseline_m) * sensor.disparity_step_px if triangulates else 0.0
    assert np.abs(seen(plane(z), sensor, Settings()) - z).max() <= (step + sensor.unit_m) / 2 + 1e-5


@pytest.mark.parametrize("sensor", TRIANGULATING, ids=lambda s: s.name)
@pytest.mark.parametrize("side", [-1, 1])
def test_a_shadow_is_as_wide_as_the_geometry_says_and_on_one_side(sensor: Sensor, side: int) -> None:
    for near, far in ((0.5, 0.6), (0.5, 0.9), (0.7, 1.2)):
        expected = sensor.baseline_m * sensor.focal_px * (1 / near - 1 / far)
        z = seen(bar(near, far), sensor, Settings(shadow_side=side))
        lost = (z == 0).sum(1)
        assert np.all(np.abs(lost - min(expected, 60)) <= 0.51)
        assert np.all((z[:, 90:] if side < 0 else z[:, :60]) > 0)
        assert np.all(z[:, 60:90] > 0)


def test_a_coarser_picture_has_a_narrower_shadow() -> None:
    widths = [(seen(bar(0.5, 0.9), D435, Settings(), focal_px=f)[0] == 0).sum() for f in (425.0, 212.5)]
    assert widths[0] == pytest.approx(2 * widths[1], abs=1)


def test_time_of_flight_casts_no_shadow() -> None:
    assert np.all(seen(bar(0.5, 0.9), KINECT_2, Settings()) > 0)


def test_stereo_fattens_a_bar_by_the_given_pixels_on_each_side() -> None:
    for grow in (0, 2, 4):
        z = seen(bar(0.5, 0.0), D435, Settings(fatten_px=grow))
        assert np.all((z > 0).sum(1) == 30 + 2 * grow)
        assert np.abs(z[z > 0] - 0.5).max() < 0.002
    half = seen(bar(0.5, 0.0), D435, Settings(fatten_px=4), focal_px=D435.focal_px / 2)
    assert np.all((half > 0).sum(1) == 30 + 2 * 2)


def test_a_fat_edge_hides_part_of_the_shadow() -> None:
    thin = (seen(bar(0.5, 0.9), D435, Settings()) == 0).sum(1)
    fat = (seen(bar(0.5, 0.9), D435, Settings(fatten_px=4)) == 0).sum(1)
    assert np.all(thin - fat == 4)


def test_a_ragged_edge_wanders_by_the_given_pixels() -> None:
    z = np.concatenate([seen(bar(0.5, 0.0), D435, Settings(fatten_px=4, ragged_px=1.2), k) for k in range(20)])
    left = 60 - (z > 0).argmax(1)
    assert left.mean() == pytest.approx(4.3, abs=0.5)  # discs of the furthest neighbours win
    assert 0.7 < left.std() < 1.5
    bare = np.concatenate([seen(bar(0.5, 0.0), SR, Settings(ragged_px=1.0), k) for k in range(20)])
    width = (bare > 0).sum(1)
    assert width.min() < 30 < width.max()


def test_edges_lose_the_given_share_of_pixels() -> None:
    z = np.array([seen(bar(0.5, 0.6), SR, Settings(edge_lost=0.7, shadow=0), k) for k in range(30)])
    assert (z[:, :, [59, 60, 89, 90]] == 0).mean() == pytest.approx(0.7, abs=0.03)
    assert np.all(z[:, :, 61:89] > 0)


@pytest.mark.parametrize("sensor", [D435, KINECT_2], ids=lambda s: s.name)
def test_holes_are_as_many_and_as_large_as_asked(sensor: Sensor) -> None:
    def lost(settings: Settings) -> Array:
        return np.array([seen(plane(0.6), sensor, settings, k) == 0 for k in range(40)])

    def neighbours_lost(holes: Array) -> float:
        return float((holes[:, :, 1:] & holes[:, :, :-1]).sum() / holes[:, :, 1:].sum())

    alone, blobs = lost(Settings(lone=0.03)), lost(Settings(holes=0.03, hole_px=9))
    assert alone.mean() == pytest.approx(0.03, rel=0.1)
    assert blobs.mean() == pytest.approx(0.03, rel=0.25)
    assert neighbours_lost(alone) < 0.06 < 0.6 < neighbours_lost(blobs)
    assert not lost(Settings()).any()


@pytest.mark.parametrize("patch_px", [4, 8])
def test_noise_is_shared_over_a_patch(patch_px: int) -> None:
    noise = [seen(plane(1.0), D405, Settings(noise=0.3, white=0, patch_px=patch_px), k) - 1 for k in range(60)]
    n = np.array(noise) - np.mean(noise)

    def correlation(lag: int) -> float:
        along_x = (n[:, :, lag:] * n[:, :, :-lag]).mean()
        along_y = (n[:, lag:] * n[:, :-lag]).mean()
        assert along_x == pytest.approx(along_y, abs=0.1 * float(n.var()))
        return float(along_x / n.var())

    assert correlation(patch_px // 2) == pytest.approx(0.5, abs=0.12)
    assert correlation(2 * patch_px) == pytest.approx(0, abs=0.05)
    assert n.reshape(60, -1).std(0).min() > 0.6 * n.std()  # as strong everywhere


def test_flying_pixels_lie_between_near_and_far() -> None:
    for far in (0.9, 0.0):
        z = np.array([seen(bar(0.5, far), KINECT_2, Settings(flying=0.5, behind_m=0.4), k) for k in range(20)])
        flying = (z > 0.501) & (z < 0.899)
        assert flying[:, :, [59, 60, 89, 90]].mean() == pytest.approx(0.5, abs=0.06)
        flying[:, :, [59, 60, 89, 90]] = False
        assert not flying.any()
    assert len(np.unique(z[:, :, 60])) > 30


def test_time_of_flight_noise_is_over_the_returned_light() -> None:
    slope = np.float32(np.tan(np.radians(60)) / KINECT_2.focal_px)  # 60 degrees on average: half the light
    slanted = 1 / (1 + slope * (np.arange(96, dtype=np.float32) - 48))[None].repeat(96, 0)
    error = np.array([seen(slanted, KINECT_2, Settings(noise=0.004), k) - slanted for k in range(12)])
    assert error[:, :, 40:56].std() == pytest.approx(2 * spread(1.0, KINECT_2, Settings(noise=0.004)), rel=0.15)


def test_light_by_way_of_a_near_surface_pushes_what_lies_behind_back() -> None:
    fine = KINECT_2._replace(unit_m=1e-5)
    pushed = seen(bar(0.5, 0.56), fine, Settings(multipath_m=0.008)) - bar(0.5, 0.56)
    assert 0.0025 < pushed[:, 55].mean() <= 0.0085
    assert pushed[:, 55].mean() > pushed[:, 30].mean() > pushed[:, 5].mean()
    assert np.abs(pushed[:, 60:90]).max() < 0.001
    assert np.abs(seen(plane(0.56), KINECT_2, Settings(multipath_m=0.008)) - 0.56).max() < 0.001


@pytest.mark.parametrize("sensor", [SR, D435, KINECT_2], ids=lambda s: s.name)
def test_grazing_surfaces_vanish(sensor: Sensor) -> None:
    for degrees, least, most in ((50, 0.98, 1.0), (70, 0.3, 0.7), (76, 0.0, 0.1)):
        slope = np.tan(np.radians(degrees)) / sensor.focal_px
        z = (0.7 / (1 + slope * (np.arange(41, dtype=np.float32) - 20)))[None].repeat(96, 0).astype(np.float32)
        kept = (seen(z, sensor, Settings(grazing_rad=np.radians(70), shadow=0))[:, 15:26] > 0).mean()
        assert least <= kept <= most, degrees


@pytest.mark.parametrize("sensor", SENSORS.values(), ids=lambda s: s.name)
def test_a_picture_depends_on_its_arguments_alone(sensor: Sensor) -> None:
    z = bar(0.6, 0.8)
    settings = draw_settings(sensor, np.random.default_rng(4))
    first = seen(z, sensor, settings, 7)
    np.random.seed(1)
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda _: seen(z, sensor, settings, 7), range(8)))
    assert all(np.array_equal(first, other) for other in again)
    assert not np.array_equal(first, seen(z, sensor, settings, 8))
    assert np.array_equal(corrupt(in_place := z.copy(), sensor.focal_px, sensor, settings, 7, in_place), first)
    big = np.zeros((60, 200), np.float32)  # views of larger arrays, as the renderer's
    big[5:45, 20:170] = z
    out = np.empty_like(big)
    assert np.array_equal(corrupt(big[5:45, 20:170], sensor.focal_px, sensor, settings, 7, out[5:45, 20:170]), first)


@pytest.mark.parametrize("sensor", [SR, D435, KINECT_2], ids=lambda s: s.name)
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (17, 130)])
def test_any_shape_will_do_and_nothing_reads_nothing(sensor: Sensor, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for seed in range(5):
        settings = draw_settings(sensor, rng)
        assert not seen(plane(0, shape), sensor, settings, seed).any()
        z = seen(plane(0.6, shape), sensor, settings, seed)
        assert z.shape == shape and np.isfinite(z).all()


def test_a_whole_frame_is_seen_with_the_sensors_own_focal_length() -> None:
    z, settings = plane(0.6, (480, 848)), Settings(noise=0.08, holes=0.01)
    assert np.array_equal(sense(z, D435, settings, 3), seen(z, D435, settings, 3))


def test_drawn_units_run_from_nearly_clean_to_poor() -> None:
    for sensor in SENSORS.values():
        rng, again = np.random.default_rng(0), np.random.default_rng(0)
        drawn = [draw_settings(sensor, rng) for _ in range(300)]
        assert drawn[:5] == [draw_settings(sensor, again) for _ in range(5)]
        noise = np.array([s.noise for s in drawn])
        low, high = sensor.noise
        assert low <= noise.min() < 1.2 * low and 0.8 * high < noise.max() <= high
        lost = [(seen(plane(0.7), sensor, s, k) == 0).mean() for k, s in enumerate(drawn[:100])]
        assert min(lost) < 0.001 < 0.02 < max(lost) < 0.2
        assert {s.shadow_side for s in drawn} == {-1, 1}


def test_unusable_images_are_refused() -> None:
    z = plane(0.5)
    with pytest.raises(SensorError, match=r"float64 \(96, 96\).*must be float32"):
        corrupt(z.astype(float), 400.0, D435, Settings(), 0, z.copy())
    with pytest.raises(SensorError, match="one shape"):
        corrupt(z, 400.0, D435, Settings(), 0, np.empty((5, 5), np.float32))
    with pytest.raises(SensorError, match="focal length of 0 px"):
        corrupt(z, 0, D435, Settings(), 0, z.copy())


def test_a_patch_costs_less_than_its_budget() -> None:
    """That is what this machine takes to add up some numbers, told beside it."""
    z = bar(0.5, 0.65, 30, 60, (96, 96))
    for sensor in (SR, D435, KINECT_2):
        settings, times = draw_settings(sensor, np.random.default_rng(0)), []
        for seed in range(50):
            begun = time.perf_counter()
            sum(range(20_000))
            between = time.perf_counter()
            seen(z, sensor, settings, seed)
            times.append((time.perf_counter() - between, between - begun))
        patch_s, sum_s = np.min(times, axis=0)
        assert patch_s < 2.5 * sum_s, sensor.name  # 0.8 where it was measured


@cache
def real_frames() -> list[Array]:
    """Depth (480, 640) m of each real frame."""
    if not SR305.is_dir():
        pytest.skip(f"the real SR305 frames are not in {SR305}")
    unit = json.loads((SR305 / "camera.json").read_text())["depth_scale_m"]
    return [np.asarray(Image.open(p), np.float32) * np.float32(unit) for p in sorted(SR305.glob("*/*.png"))]


def roughness(z: Array) -> Array:
    """RMS residual (N,) m of a quadric in each 7x7 window without holes or steps."""
    y, x = np.mgrid[-3:4, -3:4].reshape(2, 49)
    q, _ = np.linalg.qr(np.stack([np.ones(49), x, y, x * x, x * y, y * y], 1))
    windows = np.lib.stride_tricks.sliding_window_view(z, (7, 7))[::4, ::4]
    smooth = (windows > 0.4).all((2, 3)) & (np.ptp(windows, (2, 3)) < 0.015)
    v = windows[smooth].reshape(-1, 49).astype(float)
    v -= v.mean(1, keepdims=True)
    return np.sqrt(((v - v @ q @ q.T) ** 2).sum(1) / (49 - 6))


def test_real_sr305_surfaces_are_as_rough_as_a_drawn_unit_can_be() -> None:
    real = np.median(np.concatenate([roughness(z) for z in real_frames()]))
    y, x = np.mgrid[-60:60, -60:60].astype(np.float32)
    curved = 0.7 + (x * x + y * y) * np.float32(1e-5)
    rng = np.random.default_rng(0)
    drawn = np.array([np.median(roughness(seen(curved, SR, draw_settings(SR, rng), k))) for k in range(100)])
    assert (drawn < real).mean() > 0.02 and (drawn > real).mean() > 0.3


def test_real_sr305_shadows_lie_on_the_models_side_and_are_as_wide() -> None:
    gap, inverse = [], []
    for z in real_frames():
        for row in z[::4]:
            at = np.flatnonzero(row)
            left, right = row[at[:-1]], row[at[1:]]
            # Steps from a near surface on the left to one behind it, as a hand before a body.
            step = (right - left > 0.04) & (left < 0.9) & (right < 1.1)
            gap.append(np.diff(at)[step] - 1)
            inverse.append((1 / left - 1 / right)[step])
    width, formula = np.concatenate(gap), SR.focal_px * SR.baseline_m * np.concatenate(inverse)
    assert SR.shadow_side == 1
    for low, high in ((5, 8), (8, 11), (11, 15)):  # px; what else is lost can only widen a gap, by 2 px at least
        inside = (formula > low) & (formula < high)
        assert inside.sum() > 50
        assert np.percentile(width[inside], 5) == pytest.approx(formula[inside].mean() + 2, rel=0.25)


def test_a_sensor_with_next_to_no_holes_is_no_error() -> None:
    clean = np.full((8, 8), 0.5, np.float32)
    out = corrupt(clean, 475.0, SENSORS["SR305 640x480"], Settings(holes=1e-18), 1, np.empty_like(clean))
    assert (out > 0).all()
