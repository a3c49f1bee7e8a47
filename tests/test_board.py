"""The printed board: its PDF, finding it, and calibrating with it, on rendered pictures and on a real recording."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from edge_hand.calibration import cli
from edge_hand.calibration.board import NO_HALVES, BoardCamera, BoardResult, calibrate
from edge_hand.calibration.bundle import Options
from edge_hand.calibration.capture import Novelty, capture
from edge_hand.calibration.corners import BoardDetector, View, board_poses
from edge_hand.calibration.rig import CLOCK_SIGMA_S, RigError, TimeOffset, load_rig, save_rig
from edge_hand.calibration.sources import SourceError, open_source
from edge_hand.calibration.square import board_scale
from edge_hand.calibration.target import TARGETS, Target, TargetError, find_target, print_pdf
from edge_hand.calibration.uncertainty import pose_difference
from edge_hand.edge.cli.shell import CommandError
from edge_hand.hand.arrays import Array
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.se3 import apply, inverse, so3_exp, transform
from numpy.typing import NDArray

cv2 = pytest.importorskip("cv2", reason="the board needs OpenCV: pip install '.[calibration]'")
cv2.setNumThreads(1)


REAL = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "charuco_4cam"
LENS = Intrinsics(960, 540, 800.0, 800.0, 479.5, 269.5)
A4 = TARGETS["a4"]
PX_PER_MM = 6.0


def page(paper: str, target: Target | None = None) -> tuple[Array, Array]:
    """The PDF drawn at 6 px a mm, from the rectangles in its content; and the rectangles in mm."""
    data = print_pdf(target or TARGETS[paper], paper).decode("latin1")
    box = re.search(r"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", data)
    scale = re.search(r"^([\d.]+) 0 0 -([\d.]+) 0 ([\d.]+) cm$", data, re.MULTILINE)
    assert box and scale
    width_mm, height_mm = (float(box[i]) / 72 * 25.4 for i in (1, 2))
    to_mm = float(scale[1]) / 72 * 25.4
    rectangles = np.array(re.findall(r"^([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+) re f$", data, re.MULTILINE), float) * to_mm
    image = np.full((round(height_mm * PX_PER_MM), round(width_mm * PX_PER_MM)), 255, np.uint8)
    for x, y, w, h in rectangles:
        left, top, right, bottom = (round(v * PX_PER_MM) for v in (x, y, x + w, y + h))
        image[top:bottom, left:right] = 0
    return image, rectangles


@pytest.mark.parametrize(("paper", "size"), [("a4", (297, 210)), ("a3", (420, 297))])
def test_the_pdf_is_in_true_scale(paper: str, size: tuple[int, int]) -> None:
    image, rectangles = page(paper)
    target = TARGETS[paper]
    assert image.shape == (size[1] * PX_PER_MM, size[0] * PX_PER_MM)
    squares = rectangles[np.isclose(rectangles[:, 2], target.square_m * 1e3, atol=1e-3)]
    assert len(squares) == 18  # of 35, the black ones
    ruler = rectangles[np.isclose(rectangles[:, 2], 100, atol=1e-3)]
    assert len(ruler) == 1
    found = BoardDetector(target).find(image)
    assert list(found.ids) == list(range(len(target.corners_m())))
    corners_mm = (found.pixels + 0.5) / PX_PER_MM - np.array(size) / 2
    assert np.abs(corners_mm - target.corners_m()[:, :2] * 1e3).max() < 0.15


@pytest.mark.parametrize(
    ("text", "paper", "size"),
    [
        ("charuco:5x7x30x20:DICT_4X4_50", "a4", (210, 297)),
        ("charuco:4x5x54x40.5:DICT_4X4_1000", "a3", (297, 420)),
        ("charuco:4x4x30x20:DICT_4X4_50", "a4", (297, 210)),  # fits either way
    ],
)
def test_a_board_that_fits_only_upright_is_printed_so(text: str, paper: str, size: tuple[int, int]) -> None:
    target = find_target(text)
    image, _ = page(paper, target)
    assert image.shape == (size[1] * PX_PER_MM, size[0] * PX_PER_MM)
    found = BoardDetector(target).find(image)
    corners_mm = (found.pixels + 0.5) / PX_PER_MM - np.array(size) / 2
    assert len(found.ids) == len(target.corners_m())
    assert np.abs(corners_mm - target.corners_m()[:, :2] * 1e3).max() < 0.15
    note = re.search(rb"/F1 ([\d.]+) Tf 1 0 0 -1 ([\d.]+) [\d.]+ Tm \((.*)\) Tj", print_pdf(target, paper))
    assert note and float(note[1]) * 0.5 * len(note[3]) + float(note[2]) < size[0] - 5, "the note ends on the page"


def test_the_pdf_is_well_formed() -> None:
    data = print_pdf(A4, "a4")
    start = int(data.split(b"startxref\n")[1].split()[0])
    assert data[start:].startswith(b"xref")
    for number, line in enumerate(re.findall(rb"^(\d{10}) 00000 n", data, re.MULTILINE), 1):
        assert data[int(line) :].startswith(b"%d 0 obj" % number)
    length = int(re.search(rb"/Length (\d+)", data)[1])  # type: ignore[index]
    assert data.split(b"stream\n", 1)[1][length:].startswith(b"\nendstream")


def test_targets_that_cannot_be_are_refused() -> None:
    assert find_target("charuco:4x5x54x40.5:DICT_4X4_1000:inverted").square_m == pytest.approx(0.054)
    misspelt = "charuco:4x5x54x40:DICT_4X4_1000:Inverted"
    for text in ("a5", "charuco:2x2x10x5", "charuco:4x5x30x40", "charuco:4x5", misspelt):
        with pytest.raises(TargetError, match="target"):
            find_target(text)
    for name in ("DICT_9", "ArucoDetector", "CORNER_REFINE_NONE"):  # the last ones are OpenCV's, and no dictionaries
        with pytest.raises(TargetError, match=f"no dictionary {name}"):
            BoardDetector(find_target(f"charuco:4x5x54x40:{name}"))
    with pytest.raises(TargetError, match="do not fit A4"):
        print_pdf(TARGETS["a3"], "a4")


SHEET = page("a4")[0]


def photograph(T_camera_board: Array) -> NDArray[np.uint8]:
    """The A4 sheet as a camera sees it, on a grey ground."""
    mm = np.array([[0, 0], [297, 0], [297, 210], [0, 210]], float)
    points = np.concatenate([(mm - [148.5, 105]) / 1e3, np.zeros((4, 1))], 1)
    pixels = LENS.project(apply(T_camera_board, points))
    H = cv2.getPerspectiveTransform((mm * PX_PER_MM - 0.5).astype(np.float32), pixels.astype(np.float32))
    # Drawn at twice the size and shrunk, as a lens does.
    twice = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]]) @ H
    large = cv2.warpPerspective(SHEET, twice, (2 * LENS.width, 2 * LENS.height), flags=cv2.INTER_AREA, borderValue=110)
    image: NDArray[np.uint8] = cv2.resize(large, (LENS.width, LENS.height), interpolation=cv2.INTER_AREA)
    return image


def a_pose(rng: np.random.Generator) -> Array:
    return transform(
        so3_exp(rng.normal(size=3) * 0.2) @ so3_exp(np.array([0, -0.25, 0])),
        rng.uniform(-1, 1, 3) * (0.05, 0.04, 0.05) + [0, 0, 0.62],
    )


T_RIGHT_LEFT = inverse(transform(so3_exp(np.array([0.02, -0.5, 0.01])), np.array([0.3, 0.01, 0.08])))


def record(folder: Path, pictures: int, scale: float = 1.0, depth: bool = False) -> None:
    """Two cameras' pictures of a board that is `scale` times as large as it should be."""
    rng = np.random.default_rng(0)
    for side in ("left", "right"):
        (folder / side / "depth").mkdir(parents=True)
        lens = {key: getattr(LENS, key) for key in ("width", "height", "fx", "fy", "cx", "cy")}
        (folder / side / "camera.json").write_text(
            json.dumps(lens | {"camera": side, "fps": 0.2, "depth_scale_m": 1e-4})
        )
    for n in range(pictures):
        left = a_pose(rng)
        for side, T in (("left", left), ("right", T_RIGHT_LEFT @ left)):
            T = transform(T[:3, :3], T[:3, 3] / scale)  # a larger board farther away looks the same
            cv2.imwrite(str(folder / side / f"{n:03d}.png"), photograph(T))
            if depth:
                v, u = np.mgrid[: LENS.height, : LENS.width]
                rays = LENS.rays(np.stack([u, v], -1))
                z = scale * (T[:3, 2] @ T[:3, 3]) / (rays @ T[:3, 2])
                cv2.imwrite(str(folder / side / "depth" / f"{n:03d}.png"), np.round(z * 1e4).astype(np.uint16))


def run(*args: str) -> Any:
    return CliRunner().invoke(cli.calibrate, list(args))


def test_pictures_of_the_board_become_a_rig(tmp_path: Path) -> None:
    record(tmp_path, 14)
    out, picture = tmp_path / "rig.json", tmp_path / "rig.png"
    sources = ["--source", str(tmp_path / "left"), "--source", str(tmp_path / "right")]
    result = run("board", *sources, "--out", str(out), "--picture", str(picture), "--no-offsets")
    assert result.exit_code == 0, result.output + repr(result.exception)
    rig = load_rig(out)
    assert [camera.serial for camera in rig.cameras] == ["left", "right"]
    difference = pose_difference(rig.cameras[1].T_ref_cam, inverse(T_RIGHT_LEFT))
    assert difference.volume_mm < 0.3
    assert rig.cameras[1].time == TimeOffset(0.0, CLOCK_SIGMA_S), "nobody measured it: it is not exact"
    assert not open_source(str(tmp_path / "left")).of_host
    assert rig.pairs[0].overlap == 14 and rig.quality.verdict == "pass", rig.quality
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "halves differ by" in result.output and "squares not measured, for there is no depth" in result.output
    converted = run("convert", str(out), "--format", "colmap", "--out", str(tmp_path / "colmap"))
    assert converted.exit_code == 0 and (tmp_path / "colmap" / "images.txt").exists()


@pytest.mark.slow
def test_a_board_printed_one_percent_too_large_is_noticed_by_depth(tmp_path: Path) -> None:
    record(tmp_path, 8, scale=1.01, depth=True)
    detector = BoardDetector(A4)
    views = []
    for picture in open_source(str(tmp_path / "left")).pictures():
        found = detector.find(picture.image)
        assert picture.depth_m is not None
        views.append((View(0, picture.t_s, found.ids, found.pixels), picture.depth_m))
    measured = board_scale(views, A4.corners_m(), [LENS])
    assert measured == pytest.approx(1.01, abs=0.002)
    sources = ["--source", str(tmp_path / "left"), "--source", str(tmp_path / "right")]
    result = run("board", *sources, "--out", str(tmp_path / "rig.json"), "--no-offsets")
    assert "1.0 % larger than said" in result.output and "verdict: fail" in result.output
    assert result.exit_code == 3


def test_a_wrong_size_is_noticed_although_the_board_never_rests(tmp_path: Path) -> None:
    record(tmp_path, 7, scale=0.99, depth=True)
    for side in ("left", "right"):  # from pose to pose in half a second: nothing is slow
        (tmp_path / side / "times.txt").write_text("\n".join(str(0.5 * n) for n in range(7)))
    sources = ["--source", str(tmp_path / "left"), "--source", str(tmp_path / "right")]
    result = run("board", *sources, "--out", str(tmp_path / "rig.json"), "--no-offsets")
    assert "1.0 % smaller than said" in result.output and "verdict: fail" in result.output, result.output


def test_the_pose_of_a_tilted_board_is_found() -> None:
    T = transform(so3_exp(np.array([0.4, -0.5, 0.1])), np.array([0.02, 0.01, 0.6]))
    found = BoardDetector(A4).find(photograph(T))
    best = board_poses(View(0, 0.0, found.ids, found.pixels), A4.corners_m(), LENS)[0]
    assert best.rms_px < 0.3 and np.abs(best.T_camera_board - T).max() < 0.005


def test_a_picture_counts_when_the_board_is_slow_and_in_a_new_place() -> None:
    ids, at = np.arange(24), A4.corners_m()[:, :2] * 1000 + 300
    novelty = Novelty()
    places = [0, 1, 2, 30, 60, 61, 62]  # px at 10 Hz: rests, leaps, rests
    counted = [novelty.counts(View(0, n / 10, ids, at + x)) for n, x in enumerate(places)]
    assert counted == [False, True, False, False, False, True, False]


def solved(
    moments: int,
    noise_px: float = 0.2,
    square: float | None = None,
    third: bool = False,
    said: Intrinsics | None = None,
) -> BoardResult:
    """A rig from a still board; a third camera, if there is one, sees every second pose. said: intrinsics to refine."""
    rng, corners = np.random.default_rng(0), A4.corners_m()
    rig = [np.eye(4), T_RIGHT_LEFT, transform(so3_exp(np.array([0, -0.2, 0])), np.array([-0.1, 0, 0]))][: 2 + third]
    views = []
    for n in range(moments):
        T = a_pose(rng)
        for c, T_camera_ref in enumerate(rig):
            if c < 2 or n % 2 == 0:
                pixels = LENS.project(apply(T_camera_ref @ T, corners)) + rng.normal(size=(len(corners), 2)) * noise_px
                views.append(View(c, float(n), np.arange(len(corners)), pixels))
    cameras = [BoardCamera(f"cam{c}", "infrared", said or LENS, 1.0) for c in range(len(rig))]
    return calibrate("rig", cameras, views, corners, Options(offsets=False, intrinsics=said is not None), square=square)


@pytest.mark.parametrize(("noise_px", "square"), [(10.0, None), (0.2, 1.03)])
def test_a_rig_beyond_a_limit_fails_also_when_there_is_too_little_of_it(noise_px: float, square: float | None) -> None:
    quality = solved(5, noise_px, square).rig.quality
    assert NO_HALVES in quality.warnings and quality.verdict == "fail"


def test_a_rig_that_lacks_nothing_but_its_halves_is_unverified() -> None:
    quality = solved(26, third=True).rig.quality
    assert quality.warnings == (NO_HALVES,) and quality.verdict == "unverified"
    assert solved(14).rig.quality.verdict == "pass"


def test_a_rig_of_refined_intrinsics_knows_its_cameras_by_their_own(tmp_path: Path) -> None:
    own = replace(LENS, fx=LENS.fx * 1.004, fy=LENS.fy * 1.004)
    save_rig(solved(14, said=own).rig, tmp_path / "rig.json")
    rig = load_rig(tmp_path / "rig.json")
    camera = rig.check("cam1", own)
    assert camera.own_intrinsics == own and abs(camera.intrinsics.fx - LENS.fx) < 0.8 * abs(own.fx - LENS.fx)
    for other in (LENS, camera.intrinsics):
        with pytest.raises(RigError, match="camera cam1 has other intrinsics now"):
            rig.check("cam1", other)


def test_the_other_board_is_named(tmp_path: Path) -> None:
    record(tmp_path, 1)
    with pytest.raises(SourceError, match="it looks like --target a4"):
        capture([open_source(str(tmp_path / "left"))], TARGETS["a3"])


def test_a_users_mistakes_end_in_one_line(tmp_path: Path) -> None:
    record(tmp_path, 1)
    left, out = str(tmp_path / "left"), str(tmp_path / "rig.json")
    for args, words in (
        (["--source", left], "two or more --source"),
        (["--source", left, "--source", left], "the same camera"),
        (["--source", left, "--source", str(tmp_path / "none")], "does not exist"),
        (["--source", left, "--source", str(tmp_path / "right")], "needed are 3"),
        (["--source", left, "--source", left, "--target", "a5"], "possible are a4, a3"),
    ):
        result = run("board", *args, "--out", out)
        assert isinstance(result.exception, CommandError) and words in str(result.exception), result
        assert "\n" not in str(result.exception)
    result = run("print", str(tmp_path))
    assert str(result.exception) == f"{tmp_path}: is a directory"
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"fps": 0}, "fps is 0, expected a number from 0.001 to 1000"),
        ({"fps": "x"}, "fps is 'x', expected a number"),
        ({"fps": True}, "fps is True, expected a number"),
        ({"fps": float("nan")}, "fps is nan, expected a number"),
        ({"depth_scale_m": "x"}, "depth_scale_m is 'x', expected a number from 1e-06 to 0.1"),
        ({"depth_scale_m": None}, "depth_scale_m is None, expected a number"),
        ([], "holds list, expected a map"),
    ],
)
def test_numbers_beside_pictures_that_cannot_be_are_one_line(known: Any, words: str, tmp_path: Path) -> None:
    record(tmp_path, 1)
    left, right = tmp_path / "left", tmp_path / "right"
    path = left / "camera.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | known if known else known))
    result = run("board", "--source", str(left), "--source", str(right), "--out", str(tmp_path / "rig.json"))
    assert isinstance(result.exception, CommandError), repr(result.exception)
    assert str(result.exception).startswith(str(path)) and words in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="no real recording: ../shared/data/charuco_4cam is absent")
def test_the_real_rig_is_solved_better_than_published(tmp_path: Path) -> None:
    """Four webcams, 6 Hz; the published extrinsics fit our corners to 1.41 px."""
    times: dict[int, list[str]] = {c: [] for c in range(4)}
    with (REAL / "calibration" / "extrinsic" / "timestamps.csv").open() as file:
        for row in sorted(csv.DictReader(file), key=lambda row: int(row["frame_index"])):
            times[int(row["cam_id"])].append(row["frame_time"])
    blocks = re.split(r"^\[", (REAL / "config.toml").read_text(), flags=re.MULTILINE)
    args = []
    for c in range(4):
        block = next(b for b in blocks if b.startswith(f"cam_{c}]"))
        values = {k: json.loads(re.sub(r",\s*\]", "]", v)) for k, v in re.findall(r"^(\w+) ?= ?(\[.*\])$", block, re.M)}
        (fx, _, cx), (_, fy, cy), _ = values["matrix"]
        lens = {"width": 1280, "height": 720, "fx": fx, "fy": fy, "cx": cx, "cy": cy}
        video = tmp_path / f"cam_{c}.mp4"
        video.symlink_to(REAL.resolve() / "calibration" / "extrinsic" / video.name)
        video.with_suffix(".json").write_text(json.dumps(lens | {"distortion": values["distortions"]}))
        video.with_suffix(".times.txt").write_text("\n".join(times[c]))
        args += ["--source", str(video)]
    out = tmp_path / "rig.json"
    target = "charuco:4x5x54x40.5:DICT_4X4_1000:inverted"
    result = run("board", *args, "--target", target, "--out", str(out))
    assert result.exit_code == 0, result.exception
    quality = load_rig(out).quality
    without = re.search(r"([\d.]+) without time offsets", result.output)
    assert without and float(without[1]) < 1.41
    assert quality.rms["reprojection_px"] <= 0.80 and quality.rms["heldout_px"] <= 0.80
    assert quality.split_half_deg is not None and quality.split_half_deg <= 0.4
    assert quality.split_half_mm is not None and quality.split_half_mm <= 7
