"""What says how good a rig from a moving hand is: blocks left out, halves, pairs, limits, and the verdict of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from edge_hand.calibration import hand, icp
from edge_hand.calibration.cli import calibrate as command
from edge_hand.calibration.distances import Distances
from edge_hand.calibration.hand import Halves, HandResult, _pairs, _rig, _warnings, covariances, jackknife, solve_halves
from edge_hand.calibration.icp import IcpFit, Moment
from edge_hand.calibration.joint import moved
from edge_hand.calibration.observe import ObserveError
from edge_hand.calibration.rig import RigPair, load_rig
from edge_hand.calibration.uncertainty import NO_HALVES, Difference, point_sigma_mm, pose_difference
from edge_hand.calibration.verify import in_order
from edge_hand.edge.cli.shell import CommandError
from test_calibrate_hand import astray, result, scene

Array = Any

STEP = icp.STEP


def of_means(x: Array, held: Array | None = None) -> IcpFit:
    """A fit of two cameras or more whose solution is the mean of x (M, C, 8), a moment each."""
    count, cameras = x.shape[:2]
    normal = np.tile(1e9 * np.eye(cameras * STEP), (count, 1, 1))
    poses = np.tile(np.eye(4), (cameras, 1, 1))
    return replace(
        result().clouds, T_ref_cam=poses, offsets_s=np.zeros(cameras), depth_per_m=np.zeros(cameras), normal=normal,
        pull=-1e9 * x.reshape(count, -1), rms_m=1e-6, moments=result().clouds.moments[:count],
        held=np.zeros(cameras, bool) if held is None else held,
    )  # fmt: skip


@pytest.mark.parametrize("count", [6, 10])
def test_blocks_left_out_give_a_mean_the_variance_it_has(count: int) -> None:
    x = np.random.default_rng(0).normal(1.0, 0.1, (count, 3, STEP))
    found = jackknife(of_means(x))
    assert found[0] == pytest.approx(0)
    for c in (1, 2):
        assert found[c] == pytest.approx(np.cov(x[:, c].T) / count, rel=1e-3, abs=1e-9)


def test_nothing_is_believed_below_a_floor_about_the_middle_of_the_volume() -> None:
    fit = of_means(np.zeros((10, 3, STEP)))
    found, middle = covariances(fit, result().joints), np.array(hand._volume(fit).centre_m)
    assert not found[0].any()
    for c in (1, 2):
        at = point_sigma_mm(found[c, :6, :6], np.array([middle, middle + [0.2, 0, 0]]))
        assert at == pytest.approx([0.25 * 3**0.5, np.hypot(0.25 * 3**0.5, 2**0.5 * 200 * np.radians(0.05))], rel=1e-3)
        assert found[c, 6, 6] == pytest.approx(0.5e-3**2)


def test_a_camera_that_depth_did_not_place_is_as_uncertain_as_its_joints_and_more() -> None:
    fit = of_means(np.zeros((10, 3, STEP)), held=np.array([False, False, True]))
    joints = replace(result().joints, covariance=np.diag((np.arange(21.0) * 1e-3) ** 2))
    free = covariances(replace(fit, held=np.zeros(3, bool)), joints)[2]
    by_joints = np.diagonal(covariances(fit, joints)[2] - free)
    assert by_joints[:7] == pytest.approx((np.arange(14.0, 21) * 1e-3) ** 2 + 5e-3**2 * np.array([0, 0, 0, 1, 1, 1, 0]))
    assert by_joints[7] == pytest.approx(icp.DEPTH_SIGMA_PER_M**2)


def of_few_moments() -> tuple[IcpFit, Array]:
    """The fit with half its moments, and which of eight blocks each is in."""
    moments = result().clouds.moments[::2]
    return replace(result().clouds, moments=moments), np.arange(len(moments)) * hand.HALF_BLOCKS // len(moments)


@pytest.mark.slow
def test_one_half_s_rig_is_tried_on_the_points_of_the_other() -> None:
    fit, blocks = of_few_moments()
    found = solve_halves(fit)
    assert found is not None and found.apart[1] < 3 and found.heldout.p50_mm < 1.5
    shifted = [
        m._replace(views=tuple(astray(v, v.points_m + 0.004) if v.camera == 2 and b % 2 else v for v in m.views))
        for m, b in zip(fit.moments, blocks, strict=True)
    ]
    spoilt = solve_halves(replace(fit, moments=tuple(shifted)))
    assert spoilt is not None and spoilt.apart[1] == pytest.approx(4e-3 * 3**0.5 * 1e3, abs=2)
    of_2 = spoilt.heldout.of_pair(0, 2)
    assert spoilt.heldout.percentile_mm(50, of_2) > found.heldout.percentile_mm(50, found.heldout.of_pair(0, 2)) + 1


@pytest.mark.slow
def test_halves_of_which_one_does_not_tie_a_camera_say_nothing() -> None:
    fit, blocks = of_few_moments()
    some = [
        m._replace(views=tuple(v for v in m.views if v.camera < 2 or not b % 2))
        for m, b in zip(fit.moments, blocks, strict=True)
    ]
    assert solve_halves(replace(fit, moments=tuple(some))) is None


def test_halves_are_as_far_apart_as_the_worst_camera() -> None:
    differences = (Difference(0.0, 0.0, 0.0), Difference(0.3, 9.0, 1.0), Difference(0.1, 9.0, 2.0))
    assert Halves(differences, heldout_of()).apart == (0.3, 2.0)


@pytest.mark.slow
def test_a_pair_disagrees_with_a_rig_that_has_one_of_its_cameras_elsewhere() -> None:
    fit, sights = result().clouds, scene()[1]
    fit = replace(fit, moments=fit.moments[::3])
    step = np.zeros((3, 6))
    step[2, 3] = 0.004
    wrong = _pairs(sights, replace(fit, T_ref_cam=moved(fit.T_ref_cam, step)))
    assert [(pair.a, pair.b, pair.overlap) for pair in wrong] == [
        ("cam0", "cam1", 10), ("cam0", "cam2", 10), ("cam1", "cam2", 10)
    ]  # fmt: skip
    loops = [pair.loop_mm or 0.0 for pair in wrong]
    assert loops[0] < 2 and loops[1:] == pytest.approx([4, 4], abs=2) and max(loops[1:]) > 3


def test_a_pair_that_hardly_shares_a_moment_is_not_asked() -> None:
    fit, sights = result().clouds, scene()[1]
    few = [without(m, 2) if i > 2 else m for i, m in enumerate(fit.moments[::3])]
    assert [(pair.a, pair.b) for pair in _pairs(sights, replace(fit, moments=tuple(few)))] == [("cam0", "cam1")]


def without(moment: Moment, camera: int) -> Moment:
    return moment._replace(views=tuple(view for view in moment.views if view.camera != camera))


def heldout_of(p50_mm: float = 1.0, p95_mm: float = 4.0) -> Distances:
    values = np.r_[np.full(90, p50_mm), np.full(10, p95_mm)] * 1e-3
    return Distances(values, np.zeros((100, 2), np.intp), np.zeros((100, 3)), {}, {})


def halves_of(deg: float = 0.1, mm: float = 1.0, p50_mm: float = 1.0, p95_mm: float = 4.0) -> Halves:
    return Halves((Difference(deg, 0.0, mm),), heldout_of(p50_mm, p95_mm))


def pair_of(loop_mm: float | None) -> RigPair:
    return RigPair("cam0", "cam1", 20, None if loop_mm is None else 0.1, loop_mm)


def test_each_limit_is_a_warning_of_its_own() -> None:
    fit, sights = result().clouds, scene()[1]
    assert _warnings(sights, fit, [pair_of(4.9), pair_of(None)], {"cam1": 1.9}, halves_of()) == []
    for sigma, loop, halves, words in (
        (2.1, 1.0, halves_of(), "cam1 is uncertain by 2.1 mm in the working volume (limit 2)"),
        (1.0, 5.1, halves_of(), "cam0 and cam1 alone disagree with the whole rig by 5.1 mm (limit 5)"),
        (1.0, 1.0, halves_of(deg=0.41), "the halves of the recording differ by 0.41 deg, 1.0 mm (limits 0.4, 3)"),
        (1.0, 1.0, halves_of(mm=3.1), "the halves of the recording differ by 0.10 deg, 3.1 mm (limits 0.4, 3)"),
        (1.0, 1.0, halves_of(p50_mm=2.6), "one half's rig leaves the other half's points 2.6 mm apart, 4.0 at worst"),
        (1.0, 1.0, halves_of(p95_mm=8.1), "one half's rig leaves the other half's points 1.0 mm apart, 8.1 at worst"),
        (1.0, 1.0, None, NO_HALVES),
    ):
        found = _warnings(sights, fit, [pair_of(loop)], {"cam1": sigma}, halves)
        assert len(found) == 1 and found[0].startswith(words), found


def test_the_camera_that_depth_hardly_ties_is_the_one_that_is_named() -> None:
    fit, sights = result().clouds, scene()[1]
    normal = fit.normal.copy()
    normal[3:, 2 * STEP :] = normal[3:, :, 2 * STEP :] = 0
    found = _warnings(sights, replace(fit, normal=normal), [], {}, halves_of())
    assert len(found) == 1 and found[0].startswith("cam2: depth ties it to the others in 3 moments only (at least 20")


@pytest.fixture
def no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand, "_pairs", lambda *_: [])


def rig_of(halves: Halves | None, missing: list[str]) -> Any:
    found = result()
    return _rig("cell", scene()[1], found.joints, found.clouds, halves, missing)


@pytest.mark.usefixtures("no_pairs")
@pytest.mark.parametrize(
    ("halves", "missing", "verdict"),
    [
        (halves_of(), [], "pass"), (None, [], "unverified"), (halves_of(), ["turn the hand more"], "fail"),
        (None, ["turn the hand more"], "fail"), (halves_of(mm=9.0), [], "fail"),
    ],
)  # fmt: skip
def test_only_a_rig_that_lacks_nothing_passes(halves: Halves | None, missing: list[str], verdict: str) -> None:
    quality = rig_of(halves, missing).quality
    assert quality.verdict == verdict and list(quality.warnings[: len(missing)]) == missing


@pytest.mark.usefixtures("no_pairs")
def test_the_rig_holds_what_was_found_and_how_sure_that_is() -> None:
    found, rig = result(), rig_of(halves_of(), [])
    sure = covariances(found.clouds, found.joints)
    for c, camera in enumerate(rig.cameras):
        assert camera.time.offset_s == found.clouds.offsets_s[c]
        assert camera.time.sigma_s == pytest.approx(sure[c, 6, 6] ** 0.5)
        assert camera.depth.offset_per_m == found.clouds.depth_per_m[c]
        assert camera.depth.offset_sigma_per_m == (pytest.approx(sure[c, 7, 7] ** 0.5) if c else None)
        assert camera.covariance == pytest.approx(sure[c, :6, :6], rel=1e-6, abs=1e-15)
        assert np.array_equal(camera.covariance, camera.covariance.T)
    assert rig.quality.rms["depth_mm"] == pytest.approx(1e3 * found.clouds.rms_m)
    assert rig.quality.rms["joints_mm"] == pytest.approx(1e3 * found.joints.rms_m)
    assert 0.2 < rig.quality.rms["depth_mm"] < 3 < rig.quality.rms["joints_mm"] < 30
    assert list(rig.quality.sigma_volume_mm) == ["cam1", "cam2"]
    middle = np.median([m.views[0].points_m.mean(0) for m in found.clouds.moments], 0)  # of the reference camera's
    assert rig.quality.volume_centre_m == pytest.approx(middle, abs=0.006)


def test_the_middle_of_the_volume_is_in_the_reference_camera_s_frame() -> None:
    fit = result().clouds
    by_others = replace(fit, moments=tuple(without(moment, 0) for moment in fit.moments))
    away = pose_difference(*(at(hand._volume(f).centre_m) for f in (fit, by_others)))
    assert away.mm < 20


def at(place_m: Any) -> Array:
    T = np.eye(4)
    T[:3, 3] = place_m
    return T


def test_a_rig_of_one_camera_or_of_one_twice_is_refused() -> None:
    sights = scene()[1]
    with pytest.raises(ObserveError, match=r"^a rig needs two cameras or more$"):
        hand.calibrate("cell", sights[:1])
    with pytest.raises(ObserveError, match=r"^two sources are the same camera: cam0, cam0$"):
        hand.calibrate("cell", [sights[0], sights[0]])


@pytest.mark.usefixtures("no_pairs")
def test_what_the_motion_lacks_is_said_before_and_after_the_clocks_are_known_unless_forced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    def calibrated(lacking: list[list[str]], **options: Any) -> HandResult:
        answers: Iterator[list[str]] = iter(lacking)
        monkeypatch.setattr(hand, "lacks", lambda *_: next(answers))
        said.clear()
        return hand.calibrate("cell", scene()[1], say=said.append, **options)

    monkeypatch.setattr(hand, "fit_joints", lambda *_: result().joints)
    monkeypatch.setattr(icp, "choose_moments", lambda *_: result().clouds.moments)
    monkeypatch.setattr(icp, "fit_clouds", lambda *_, **__: result().clouds)
    assert calibrated([[], []]).rig.quality.verdict == "pass"
    with pytest.raises(ObserveError, match=r"^slower; turn$"):
        calibrated([["slower", "turn"]])
    assert said == []
    with pytest.raises(ObserveError, match=r"^turn$"):
        calibrated([[], ["turn"]])
    assert len(said) == 1
    forced = calibrated([["slower"], ["turn"]], force=True)
    assert forced.lacks == ("turn",) and forced.rig.quality.verdict == "fail"


@pytest.mark.parametrize("folders", [True, False])
def test_that_clocks_are_of_folders_of_pictures_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: bool
) -> None:
    monkeypatch.setattr("edge_hand.calibration.cli_hand._gather", lambda *_, **__: [])
    monkeypatch.setattr("edge_hand.calibration.hand.calibrate", lambda *_, **__: result())
    (tmp_path / "left").mkdir()
    sources = ["--source", str(tmp_path / "left") if folders else "left.mcap", "--source", "right.mcap"]
    run = CliRunner().invoke(command, ["hand", *sources, "--out", str(tmp_path / "rig.json")])
    assert ("clocks are those of the folders' pictures" in run.output) == folders
    assert [c.time for c in load_rig(tmp_path / "rig.json").cameras] == [c.time for c in result().rig.cameras]


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "--rig", "rig.json", "--json", "./rig.json"],
        ["hand", "--out", "a.mcap"],
        ["hand", "--out", "new.json", "--json", "new.json"],
        ["hand", "--out", "new.json", "--picture", "new.json"],
        ["board", "--out", "b.mcap"],
    ],
)
def test_no_result_is_written_over_what_is_read_or_over_another(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rig.json", "a.mcap", "b.mcap"):
        Path(name).write_text("kept")
    sources = ["--source", "a.mcap", "--source", "b.mcap"]
    done = CliRunner().invoke(command, [*arguments, *sources])
    assert isinstance(done.exception, CommandError)
    assert str(done.exception).endswith("would be overwritten: it is given twice; give each result a name of its own")
    assert all(path.read_text() == "kept" for path in tmp_path.iterdir())


def test_a_check_sees_depth_by_the_scale_that_the_rig_file_has() -> None:
    rig, sights = result().rig, scene()[1]
    long = [replace(c, depth=replace(c.depth, scale=1.02)) if k == 1 else c for k, c in enumerate(rig.cameras)]
    seen = in_order(replace(rig, cameras=tuple(long)), sights)
    assert seen[0] is sights[0]
    z = sights[1].clouds[0].points_m[:, 2]
    np.testing.assert_allclose(seen[1].clouds[0].points_m[:, 2], replace(long[1].depth, offset_per_m=0.0).apply(z))
    np.testing.assert_allclose(seen[1].joints_m * 1.02, sights[1].joints_m)
