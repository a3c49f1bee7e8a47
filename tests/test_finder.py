"""The finder: the same picture of the same scene whatever the camera, and the hands in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edge_hand.edge.cameras.replay import PngFolder
from edge_hand.edge.cameras.synthetic import KEY_S, SHOW, SyntheticCamera
from edge_hand.edge.finder import (
    APART_M,
    CUBE_M,
    LEAST_SCORE,
    PICTURE,
    Finder,
    Maps,
    NetworkFinder,
    cell_centre,
    network_input,
    network_input_of,
    open_finder,
    proposals,
    resample,
    side_of,
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


@pytest.mark.parametrize("name", CAMERAS)
def test_every_camera_gives_the_same_picture_of_a_scene(name: str) -> None:
    camera = CAMERAS[name]
    z = resample(slope_seen_by(camera))
    rays = PICTURE.rays(np.stack(np.meshgrid(np.arange(PICTURE.width), np.arange(PICTURE.height)), -1))
    truth = 1 + 0.2 * rays[..., 0] + 0.1 * rays[..., 1]
    seen = z > 0
    assert seen[56, 80] and np.abs(z - truth)[seen].max() < 0.3 / min(camera.fx, camera.fy) + 2e-4
    pixel = camera.project(rays)
    within = (np.abs(pixel / (camera.width - 1, camera.height - 1) - 0.5) < 0.49).all(-1)
    without = (np.abs(pixel / (camera.width - 1, camera.height - 1) - 0.5) > 0.51).any(-1)
    assert seen[within].mean() > (0.9 if camera.is_distorted else 0.999) and (z[without] == -1).all()


def test_beyond_the_lens_no_pixel_is_seen_twice() -> None:
    bent = Intrinsics(640, 480, 560.0, 560.0, 319.5, 239.5, (-0.5, 0.1, 0.0, 0.0, 0.0))
    z = resample(slope_seen_by(bent))
    columns = np.flatnonzero(z[56] > 0)
    assert (z[56] == -1).any() and (np.diff(columns) == 1).all() and np.diff(z[56, columns]).min() > -1e-3


def test_no_reading_and_outside_are_told_apart_from_depth() -> None:
    z = np.full((1, 112, 160), 0.3, np.float32)
    z[0, 0, :4] = 0, -1, 0.1, 9.0
    image = network_input(z)
    assert image.shape == (1, 2, 112, 160) and image.dtype == np.float32
    np.testing.assert_allclose(image[0, :, 0, :5], [[0, 0, 1, 0.075, 0.5], [0, -1, 1, 1, 1]], rtol=1e-6)


@pytest.mark.parametrize("name", CAMERAS)
@pytest.mark.parametrize("unit_m", [0.001, 0.000125])
def test_what_is_looked_up_is_what_is_computed(name: str, unit_m: float) -> None:
    camera = CAMERAS[name]
    counts = np.random.default_rng(0).integers(0, 1 << 16, (camera.height, camera.width)).astype(np.uint16)
    counts[counts % 3 == 0] = 0
    counts[0, 0] = 1000  # is not what lies outside the frame
    frame = DepthFrame("test", 0, 0, counts, unit_m, camera)
    quick = network_input_of(frame)
    assert np.array_equal(quick, network_input(resample(frame))) and quick.dtype == np.float32
    assert set(np.unique(quick[0, 1]).tolist()) >= {0.0, 1.0}


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
            more += len(rois) > 1
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
def test_of_real_frames_of_one_right_hand_each_the_best_proposal_is_that_hand(finder: Finder) -> None:
    """The hand is held out towards the camera; between these planes is nothing else. Of some frames a face in pieces
    scores above the threshold too, but far below the hand."""
    frames = [frame for frame in PngFolder(SR305).frames() if isinstance(frame, DepthFrame)]
    assert len(frames) == 19
    alone = 0
    for frame in frames:
        best, *others = finder(frame)
        assert (np.abs(best.centre_m - (0.0, 0.03, 0.6)) < (0.13, 0.12, 0.12)).all() and best.score > 0.9
        assert all(roi.score < 0.8 for roi in others)
        alone += all(roi.score < finder.threshold for roi in others)
    assert alone >= 14


def sure(finder: Finder, frame: DepthFrame) -> list[HandRoi]:
    return [roi for roi in finder(frame) if roi.score >= finder.threshold]
