"""The finder: the same picture of the same scene whatever the camera, and the hands in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_hand.edge.cameras.replay import PngFolder
from edge_hand.edge.cameras.synthetic import KEY_S, SHOW, SyntheticCamera
from edge_hand.edge.finder import (
    APART_M,
    CLOSER,
    CUBE_M,
    FILLS,
    LEAST_SCORE,
    MOST_ZOOM,
    PICTURE,
    UNZOOMED,
    Finder,
    Maps,
    NetworkFinder,
    Part,
    cell_centre,
    closer,
    network_input,
    network_input_of,
    open_finder,
    proposals,
    resample,
    shows,
    side_of,
    whole_view,
)
from edge_hand.edge.networks.card import DEFAULT_MODEL, MODELS, ModelError, find_model, load_card
from edge_hand.edge.surfaces import find_hands
from edge_hand.hand.arrays import Array
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame, HandRoi

SR305 = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "sr305"
CAMERAS = {
    "D435": Intrinsics(848, 480, 425.0, 425.0, 423.5, 239.5),
    "narrow, off-centre": Intrinsics(640, 480, 605.0, 600.0, 301.0, 251.0),
    "bent": Intrinsics(640, 480, 385.0, 385.0, 319.5, 239.5, (-0.12, 0.03, 1e-3, -1e-3, 0.0)),
    "small": Intrinsics(212, 120, 106.0, 106.0, 105.5, 59.5),
}
WIDE = Intrinsics(640, 480, 180.0, 180.0, 330.0, 250.0)
PARTS = {"all": None, "plain": UNZOOMED, "closer, aside": Part(2.1, 0.11, -0.07)}


@pytest.fixture(scope="module")
def finder() -> Finder:
    return open_finder()


def frame_of(z: Array, camera: Intrinsics, unit_m: float = 0.001) -> DepthFrame:
    return DepthFrame("test", 0, 0, np.rint(z / unit_m).astype(np.uint16), unit_m, camera)


def slope_seen_by(camera: Intrinsics) -> DepthFrame:
    """A plane z = 1 + 0.2 x / z + 0.1 y / z m."""
    rays = camera.rays(np.stack(np.meshgrid(np.arange(camera.width), np.arange(camera.height)), -1))
    return frame_of(1 + 0.2 * rays[..., 0] + 0.1 * rays[..., 1], camera, 1e-4)


def flat_maps(level: float = -10.0) -> Maps:
    return Maps(np.full((28, 40), level), np.zeros((2, 28, 40)), np.full((28, 40), np.log(0.5)), np.zeros((28, 40)))


@pytest.mark.parametrize("which", PARTS)
@pytest.mark.parametrize("name", CAMERAS)
def test_every_camera_gives_the_same_picture_of_a_scene(name: str, which: str) -> None:
    camera = CAMERAS[name]
    part = PARTS[which] or whole_view(camera)
    z = resample(slope_seen_by(camera), part)
    rays = PICTURE.rays(np.stack(np.meshgrid(np.arange(PICTURE.width), np.arange(PICTURE.height)), -1))
    in_frame = part.to_frame(rays) / part.zoom  # (112, 160, 3), z = 1
    np.testing.assert_allclose(part.to_picture(in_frame) * part.zoom, rays, atol=1e-12)
    truth = (1 + 0.2 * in_frame[..., 0] + 0.1 * in_frame[..., 1]) / part.zoom
    seen = z > 0
    assert seen[56, 80] and np.abs(z - truth)[seen].max() < 0.3 / min(camera.fx, camera.fy) + 2e-4
    pixel = camera.project(in_frame)
    within = (np.abs(pixel / (camera.width - 1, camera.height - 1) - 0.5) < 0.49).all(-1)
    without = (np.abs(pixel / (camera.width - 1, camera.height - 1) - 0.5) > 0.51).any(-1)
    assert seen[within].mean() > (0.9 if camera.is_distorted else 0.999) and (z[without] == -1).all()


@pytest.mark.parametrize("name", CAMERAS)
def test_all_of_a_view_fills_the_picture(name: str) -> None:
    camera = CAMERAS[name]
    part = whole_view(camera)
    corners = np.array([(x, y) for x in (0, camera.width - 1) for y in (0, camera.height - 1)], float)
    pixel = PICTURE.project(part.to_picture(camera.rays(corners)))
    filled = np.ptp(pixel, axis=0) / (PICTURE.width, PICTURE.height)
    assert (pixel > -1).all() and (pixel < (PICTURE.width, PICTURE.height)).all()
    assert 0.9 * FILLS < filled.max() < 1.01 and np.abs(pixel.mean(0) - (PICTURE.cx, PICTURE.cy)).max() < 1
    assert (part.zoom > 1.05) == (name == "narrow, off-centre")


def test_a_wide_view_is_cut_and_a_very_narrow_one_does_not_fill_the_picture() -> None:
    assert whole_view(WIDE) == UNZOOMED
    narrow = Intrinsics(640, 480, 1200.0, 1200.0, 300.0, 239.5)
    part = whole_view(narrow)
    assert part.zoom == MOST_ZOOM and part.x == pytest.approx(19.5 / 1200) and part.y == pytest.approx(0)
    far_off = Intrinsics(640, 480, 120.0, 120.0, 319.5, 239.5, (-0.6, 0.05, 0.0, 0.0, 0.0))  # its model ends before
    assert whole_view(far_off).zoom >= 1 and np.isfinite(whole_view(far_off)).all()


@pytest.mark.parametrize(
    ("focal", "distortion"),
    [(300, (-0.28, 0, 0, 0, 0)), (252, (-0.3, 0.09, 0, 0, -0.01)), (560, (-0.31, 0, 0, 0, 0)),
     (460, (-0.21, 0, 0, 0, 0)), (420, (-0.18, 0, 0, 0, 0)), (560, (-0.5, 0.1, 0, 0, 0)), (20, (0, 0, 0, 0, 0))],
)  # fmt: skip
def test_a_lens_whose_model_ends_within_the_image_has_few_parts(focal: float, distortion: Any) -> None:
    camera = Intrinsics(640, 480, focal, focal, 320.0, 240.0, distortion)
    parts = [whole_view(camera), *closer(camera)]
    assert np.isfinite(parts).all() and 2 <= len(parts) <= 16
    for part in parts:
        assert (resample(frame_of(np.ones((480, 640)), camera), part) > 0).mean() > 0.1


@pytest.mark.parametrize("camera", [*CAMERAS.values(), WIDE], ids=[*CAMERAS, "wide"])
def test_closer_parts_show_all_of_a_view_together(camera: Intrinsics) -> None:
    parts = closer(camera)
    assert all(part.zoom == CLOSER * whole_view(camera).zoom for part in parts) and len(parts) == len(set(parts))
    pixels = np.stack(np.meshgrid(np.linspace(0, camera.width - 1, 40), np.linspace(0, camera.height - 1, 30)), -1)
    rays = camera.rays(pixels).reshape(-1, 3)
    at = np.stack([PICTURE.project(part.to_picture(rays)) for part in parts])
    inside = ((at > -0.6) & (at < (PICTURE.width - 0.4, PICTURE.height - 0.4))).all(-1)  # (parts, rays)
    assert inside.any(0).all() and inside.all(1).sum() == (len(parts) == 1)
    assert len(parts) == (9 if camera is WIDE else 4)


def test_a_part_shows_a_hand_that_it_does_not_cut() -> None:
    part = Part(1.5, 0.2, 0.0)
    half = PICTURE.width / 2 / PICTURE.fx / part.zoom
    middle = np.array([0.2, 0.0, 1.0])
    for aside, shown in ((0.0, True), (0.85 * half, True), (0.95 * half, False), (-0.85 * half, True), (2.0, False)):
        assert shows(part, middle + (aside, 0, 0)) == shown
    assert shows(UNZOOMED, np.array([0, 0.62, 1.0])) and not shows(UNZOOMED, np.array([0, 0.66, 1.0]))
    near = np.array([0, 0, 0.2])
    assert shows(UNZOOMED, near) and not shows(Part(2.0), near)  # there it would be at 0.1 m


def test_beyond_the_lens_no_pixel_is_seen_twice() -> None:
    bent = Intrinsics(640, 480, 560.0, 560.0, 319.5, 239.5, (-0.5, 0.1, 0.0, 0.0, 0.0))
    z = resample(slope_seen_by(bent), UNZOOMED)
    columns = np.flatnonzero(z[56] > 0)
    assert (z[56] == -1).any() and (np.diff(columns) == 1).all() and np.diff(z[56, columns]).min() > -1e-3


def test_no_reading_and_outside_are_told_apart_from_depth() -> None:
    z = np.full((1, 112, 160), 0.3, np.float32)
    z[0, 0, :4], z[0, 1, 0] = (0, -1, 0.1, 9.0), 0.24
    image = network_input(z)
    assert image.shape == (1, 32, 28, 40) and image.dtype == np.float32
    first, second = image[0].reshape(2, 16, 28, 40)[:, :5, 0, 0], image[0].reshape(2, 16, 28, 40)[:, :, 0, 1]
    np.testing.assert_allclose(first, [[0, 0, 1, 0.06, 0.5], [0, -1, 1, 1, 1]], rtol=1e-6)
    np.testing.assert_allclose(second, np.tile([[0.4], [1]], 16), rtol=1e-6)


@pytest.mark.parametrize("name", CAMERAS)
@pytest.mark.parametrize("unit_m", [0.001, 0.000125])
def test_what_is_looked_up_is_what_is_computed(name: str, unit_m: float) -> None:
    camera = CAMERAS[name]
    counts = np.random.default_rng(0).integers(0, 1 << 16, (camera.height, camera.width)).astype(np.uint16)
    counts[counts % 3 == 0] = 0
    counts[0, 0] = 1000  # is not what lies outside the frame
    frame = DepthFrame("test", 0, 0, counts, unit_m, camera)
    for part in (whole_view(camera), UNZOOMED, Part(1.7, 0.1, 0.05)):
        quick = network_input_of(frame, part)
        assert np.array_equal(quick, network_input(resample(frame, part))) and quick.dtype == np.float32
        assert set(np.unique(quick[0, 16:]).tolist()) >= {0.0, 1.0}


def test_a_peak_becomes_a_hand_at_its_place_and_distance() -> None:
    maps = flat_maps()
    maps.heat[14, 25] = 2.0
    maps.offset[:, 14, 25] = 0.25, -0.5
    maps.right[14, 25] = -4
    (roi,) = proposals(maps, LEAST_SCORE, 4)
    pixel = PICTURE.project(roi.centre_m[None])[0]
    np.testing.assert_allclose(pixel, cell_centre(np.array([25.25, 13.5])))
    assert roi.side == "left" and roi.cube_m == CUBE_M and roi.centre_m[2] == pytest.approx(0.5)
    assert roi.score == pytest.approx(1 / (1 + np.exp(-2)))


def test_a_peak_in_a_part_is_a_hand_of_the_frame() -> None:
    maps, part = flat_maps(), Part(1.5, 0.2, -0.1)
    maps.heat[6, 31], maps.offset[:, 6, 31] = 2.0, (0.25, -0.5)
    (plain,), (roi,) = proposals(maps, LEAST_SCORE, 4), proposals(maps, LEAST_SCORE, 4, part)
    np.testing.assert_allclose(part.to_picture(roi.centre_m), plain.centre_m)
    assert roi.centre_m[2] == pytest.approx(0.75) and roi.cube_m == CUBE_M


def test_the_middle_of_a_cell_is_that_of_its_pixels() -> None:
    np.testing.assert_array_equal(cell_centre(np.array([0, 2])), [1.5, 9.5])


def test_best_first_at_most_the_limit_and_none_below_the_least_score() -> None:
    maps = flat_maps()
    for k, level in enumerate((1.0, 3.0, 2.0, -2.1, -2.3)):  # of the last the score is 0.09
        maps.heat[4 + 4 * k, 4 + 7 * k] = level
    scores = [roi.score for roi in proposals(maps, LEAST_SCORE, 6)]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)
    assert [roi.score for roi in proposals(maps, LEAST_SCORE, 2)] == scores[:2]


def test_two_peaks_nearer_than_two_hands_can_be_are_one_hand() -> None:
    maps = flat_maps()
    maps.heat[10, 10], maps.heat[10, 11], maps.heat[10, 13] = 3.0, 2.9, 2.0  # at 0.5 m a cell is 25 mm
    assert len(proposals(maps, LEAST_SCORE, 6)) == 2
    maps.offset[0, 10, 13] = -1.5  # now 37 mm from the best
    assert APART_M > 1.5 * 0.025 and len(proposals(maps, LEAST_SCORE, 6)) == 1
    maps.log_z[10, 13] = np.log(0.7)  # behind it
    assert len(proposals(maps, LEAST_SCORE, 6)) == 2


def test_the_side_is_unknown_while_undecided() -> None:
    assert [side_of(x) for x in (-3.0, -0.5, 0.0, 0.5, 3.0)] == ["left", "unknown", "unknown", "unknown", "right"]


def test_none_and_geometry_need_no_model() -> None:
    with SyntheticCamera(0, "424x240@30", fps=0) as camera:
        frame = camera.frame(0)
    for name in (None, "geometry"):
        geometry = open_finder(name)
        assert not geometry.judges and geometry.threshold == 0
        for a, b in zip(geometry(frame), find_hands(frame), strict=True):
            np.testing.assert_array_equal(a.centre_m, b.centre_m)


def test_a_model_of_another_kind_and_a_missing_one_are_one_line() -> None:
    with pytest.raises(ModelError, match=r"its kind is 'dgn'; this needs finder$"):
        open_finder(DEFAULT_MODEL)
    with pytest.raises(ModelError, match=r"model nowhere\.onnx: no such file \(shipped with edge-hand: "):
        open_finder("nowhere.onnx")


def test_what_is_called_like_a_shipped_model_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finder").mkdir()
    (tmp_path / "dgn-nano").touch()
    for name in ("finder", "dgn-nano"):
        assert find_model(name) == MODELS / f"{name}.onnx"
        assert find_model(f"./{name}") == Path(name)
    assert open_finder("finder").judges


def test_an_empty_frame_and_a_far_wall_hold_no_hand(finder: Finder) -> None:
    camera = CAMERAS["D435"]
    for z in (0.0, 2.1, 60.0):
        assert finder(frame_of(np.full((480, 848), z), camera)) == []


@pytest.mark.parametrize("mode", ["424x240@30", "640x480@30"])
def test_the_shipped_finder_sees_the_one_right_hand_of_the_synthetic_camera(mode: str, finder: Finder) -> None:
    right, found, more, off = 0, 0, 0, []
    with SyntheticCamera(0, mode, fps=0) as camera:
        lap = round(KEY_S * len(SHOW) * camera.fps)
        for seq in range(0, lap, lap // 20)[:20]:
            rois = sure(finder, camera.frame(seq))
            more += any(roi.score > 0.8 or roi.centre_m[2] < 1 for roi in rois[1:])  # the wall
            if rois:
                off.append(np.linalg.norm(rois[0].centre_m - camera.truth(seq).mean(0)))
                found += off[-1] < 0.05
                right += rois[0].side != "left"
    assert found >= 18 and right >= 18 and more <= 1 and np.median(off) < 0.025


def test_scores_sides_and_card_are_what_they_are_said_to_be(finder: Finder) -> None:
    assert isinstance(finder, NetworkFinder) and finder.judges and 0 < LEAST_SCORE < finder.threshold < 1
    card = load_card(DEFAULT_MODEL.with_name("finder.onnx"))
    assert card.kind == "finder" and card.precision == "int8"
    assert card.metrics["recall"] > 0.8 and card.metrics["precision"] > 0.8 and card.parity["lost"] <= 0.03


@pytest.mark.skipif(not SR305.is_dir(), reason="the SR305 sample frames are not here")
def test_of_real_frames_of_one_right_hand_each_the_hand_is_proposed(finder: Finder) -> None:
    """The hand is held out towards the camera; between these planes is nothing else. Of some frames a face in pieces
    scores as high; the network that looks closer tells it (test_evaluate.py)."""
    frames = [frame for frame in PngFolder(SR305).frames() if isinstance(frame, DepthFrame)]
    assert len(frames) == 19
    alone = 0
    for frame in frames:
        rois = finder(frame)
        hands = [roi for roi in rois if (np.abs(roi.centre_m - (0.0, 0.03, 0.6)) < (0.13, 0.12, 0.12)).all()]
        assert len(hands) == 1 and hands[0].score > 0.9
        alone += all(roi.score < finder.threshold for roi in rois if roi is not hands[0])
    assert alone >= 13


def sure(finder: Finder, frame: DepthFrame) -> list[HandRoi]:
    return [roi for roi in finder(frame) if roi.score >= finder.threshold]
