"""How well the printed board calibrates a rig: rendered infrared pictures, the product's own detector, unknown clocks.

A sheet is moved by hand before rendered cameras, each with a clock of its own. A picture is the sheet as it is printed,
seen through the lens: light falls off to one side, the shutter is open while the board moves, the lens is a little
soft, the sensor has noise. Every so many pictures come with the depth of a D435. From there on it is what
`edge-hand calibrate board` does.

python -m edge_hand.trainer.evaluate_board --seeds 10 --json board.json
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from ..calibration.board import BoardCamera, BoardResult, calibrate
from ..calibration.bundle import BundleError
from ..calibration.capture import capture, views_to_solve
from ..calibration.rig import Rig
from ..calibration.sources import Picture, SourceError
from ..calibration.square import board_scale
from ..calibration.target import PAPER_MM, Target, black_rectangles_mm, find_target, import_opencv
from ..calibration.uncertainty import Volume, pose_difference
from ..edge.cli.shell import CommandError, make_room
from ..hand import se3
from ..hand.arrays import Array
from ..hand.camera import Intrinsics
from ..hand.whole import write_json
from .synth import rooms
from .synth.rig_views import RigClip, rig_clip

SIZE = (1280, 720)  # of the infrared pictures
PX_PER_MM = 4.0  # of the sheet
FINER = 4  # a picture is drawn so many times as large and shrunk, as pixels add up light
TO_CAMERAS = np.diag([1.0, -1.0, -1.0])  # the board upright in the room, its face to the cameras
REACH_M, TURN_RAD = np.array([0.13, 0.10, 0.12]), np.radians([22.0, 32.0, 20.0])
TREMOR_M, TREMOR_RAD, TREMOR_HZ = 0.0003, np.radians(0.1), 6.0
EXPOSURE_S, SOFT_PX, NOISE, GROUND = 0.006, 0.6, 2.5, 90.0
DEPTH_EVERY = 5  # pictures


@dataclass(frozen=True, eq=False)
class BoardClip:
    """A board before the cameras of a rig. rate_hz and phase (6, 2): two waves of place and turn; scale: how many times
    as large as it should be the board was printed."""

    rig: RigClip
    target: Target
    rate_hz: Array
    phase: Array
    scale: float

    def T_ref_board(self, t_s: float) -> Array:
        """(4, 4) at a time of the reference clock."""
        wave = np.sin(2 * np.pi * self.rate_hz * t_s + self.phase) @ (0.65, 0.35)  # (6,)
        shake = np.sin(2 * np.pi * TREMOR_HZ * t_s + self.phase[:, 1])
        place = REACH_M * wave[:3] + TREMOR_M * shake[:3]
        turn = TURN_RAD * wave[3:] + TREMOR_RAD * shake[3:]
        return self.rig.T_ref_room @ se3.transform(se3.so3_exp(turn) @ TO_CAMERAS, place)


def board_clip(
    seed: int, *, cameras: int = 3, seconds: float = 15.0, fps: float = 30.0, target: str = "a4", scale: float = 1.0
) -> BoardClip:
    """A clip of this seed; the rig, the clocks and the sensors are those of `rig_clip`."""
    rig = rig_clip(seed, cameras=cameras, seconds=seconds, fps=fps, size=SIZE, clutter=False)
    rng = np.random.default_rng([seed, 11])
    rate = rng.uniform(0.06, 0.12, (6, 1)) * (1.0, 1.9)
    return BoardClip(rig, find_target(target), rate, rng.uniform(0, 2 * np.pi, (6, 2)), scale)


class Infrared:
    """One camera of a clip, as a source of pictures."""

    live, of_host = False, True

    def __init__(self, clip: BoardClip, camera: int, fps: float) -> None:
        self._clip, self._camera = clip, camera
        self.serial, self.stream = clip.rig.names[camera], "infrared"
        self.intrinsics: Intrinsics = clip.rig.intrinsics[camera]
        self.fps = fps
        self._rng = np.random.default_rng([clip.rig.seed, 12, camera])
        self._noise = self._rng.normal(0, NOISE, (2 * SIZE[1], 2 * SIZE[0])).astype(np.float32)
        slope = self._rng.normal(0, 0.15, 2) / self.intrinsics.width
        v, u = np.mgrid[: SIZE[1], : SIZE[0]].astype(np.float32)
        self._light = (1 + slope[0] * (u - SIZE[0] / 2) + slope[1] * (v - SIZE[1] / 2)).astype(np.float32)
        self._white, self._black = self._rng.uniform(140, 200), self._rng.uniform(25, 50)

    def pictures(self) -> Iterator[Picture]:
        for i in range(self._clip.rig.frame_count):
            depth = self._depth(i) if i % DEPTH_EVERY == 0 else None
            yield Picture(self._clip.rig.stamp_ns(self._camera, i) * 1e-9, self.picture(i), depth)

    def picture(self, i: int) -> NDArray[np.uint8]:
        """The grey picture (H, W) of frame i."""
        t_s = self._clip.rig.time_s(self._camera, i)
        grey = np.full(SIZE[::-1], GROUND, np.float32)
        for dt_s in (-EXPOSURE_S / 3, 0, EXPOSURE_S / 3):
            self._add_sheet(grey, self._T_camera_board(t_s + dt_s), 1 / 3)
        row, column = self._rng.integers(SIZE[1]), self._rng.integers(SIZE[0])
        cv2 = import_opencv()
        grey = cv2.GaussianBlur(grey, (0, 0), SOFT_PX)
        grey = grey * self._light + self._noise[row : row + SIZE[1], column : column + SIZE[0]]
        return np.clip(np.rint(grey), 0, 255).astype(np.uint8)

    def _T_camera_board(self, t_s: float) -> Array:
        return se3.inverse(self._clip.rig.T_ref_cam[self._camera]) @ self._clip.T_ref_board(t_s)

    def _corners(self, T_camera_board: Array) -> tuple[Array, Array]:
        """Of the sheet: mm on it (4, 2) and m in the camera's frame (4, 3)."""
        w, h = PAPER_MM["a3" if self._clip.target.name == "a3" else "a4"]
        mm = np.array([[0, 0], [w, 0], [w, h], [0, h]])
        flat = np.concatenate([(mm - [w / 2, h / 2]) * 1e-3 * self._clip.scale, np.zeros((4, 1))], 1)
        return mm, se3.apply(T_camera_board, flat)

    def _add_sheet(self, grey: Array, T_camera_board: Array, share: float) -> None:
        """Put the sheet into the picture, share of it; the rest of the light is the ground's."""
        cv2 = import_opencv()
        mm, corners = self._corners(T_camera_board)
        pixels = self.intrinsics.project(corners)
        low = np.clip(np.floor(pixels.min(0)).astype(int) - 2, 0, SIZE)
        high = np.clip(np.ceil(pixels.max(0)).astype(int) + 3, 0, SIZE)
        if (high <= low).any() or corners[:, 2].min() < 0.05:
            return
        size = (high - low) * FINER
        # Pixel centres are at integers; the finer picture's first centre lies half a pixel less half a fine one before.
        fine = (pixels - low + 0.5) * FINER - 0.5
        H = cv2.getPerspectiveTransform((mm * PX_PER_MM - 0.5).astype(np.float32), fine.astype(np.float32))
        sheet = _sheet(self._clip.target) * np.float32(self._white - self._black) + np.float32(self._black)
        large = cv2.warpPerspective(sheet, H, tuple(int(n) for n in size), flags=cv2.INTER_LINEAR, borderValue=GROUND)
        seen = cv2.resize(large, tuple(int(n) for n in high - low), interpolation=cv2.INTER_AREA)
        grey[low[1] : high[1], low[0] : high[0]] += share * (seen - GROUND)

    def _depth(self, i: int) -> Array:
        """(H, W) m as the sensor reports it."""
        rig, c = self._clip.rig, self._camera
        picture = rooms.Picture(self.intrinsics)
        _, corners = self._corners(self._T_camera_board(rig.time_s(c, i)))
        picture.draw(corners, np.array([[0, 1, 2], [0, 2, 3], [2, 1, 0], [3, 2, 0]], np.int32), rooms.THINGS)
        frame = picture.frame(rig.sensor, rig.settings[c], i, i, 0)
        return frame.depth * frame.depth_unit_m


@lru_cache(maxsize=2)
def _sheet(target: Target) -> NDArray[np.float32]:
    """The printed page, 1 where it is white."""
    w, h = PAPER_MM["a3" if target.name == "a3" else "a4"]
    finer = 2 * PX_PER_MM
    page = np.ones((round(h * finer), round(w * finer)), np.float32)
    left, top = (w - target.size_m[0] * 1e3) / 2, (h - target.size_m[1] * 1e3) / 2
    for x, y, width, height in black_rectangles_mm(target):
        x0, x1 = round((left + x) * finer), round((left + x + width) * finer)
        page[round((top + y) * finer) : round((top + y + height) * finer), x0:x1] = 0
    return np.asarray(page.reshape(page.shape[0] // 2, 2, -1, 2).mean((1, 3)), np.float32)


class Row(NamedTuple):
    """One camera of one rig: how far it is from the truth over the volume, what was promised, and its clock's error."""

    seed: int
    camera: int
    mm: float
    deg: float
    sigma_mm: float
    clock_ms: float
    clock_sigma_ms: float


def solve(clip: BoardClip, *, lens_off: float = 0.0) -> BoardResult:
    """What `calibrate board` makes of the clip. lens_off: one sigma by which the focal lengths that it is given are
    wrong. Raises SourceError or BundleError."""
    sources = [Infrared(clip, c, clip.rig.fps) for c in range(len(clip.rig.names))]
    rng = np.random.default_rng([clip.rig.seed, 13])
    given = []
    for source in sources:
        off = 1 + lens_off * rng.standard_normal()
        lens = source.intrinsics
        given.append(replace(lens, fx=lens.fx * off, fy=lens.fy * off))
    found = capture(sources, clip.target)
    corners = clip.target.corners_m()
    square = board_scale(found.with_depth, corners, given)
    cameras = [BoardCamera(s.serial, s.stream, lens, 1 / s.fps) for s, lens in zip(sources, given, strict=True)]
    name = f"seed {clip.rig.seed}"
    return calibrate(name, cameras, views_to_solve(found), corners, square=square)


def judge(clip: BoardClip, rig: Rig) -> list[Row]:
    """A rig against the truth, over its own working volume."""
    q, truth, rows = rig.quality, clip.rig, []
    volume = Volume(q.volume_centre_m, q.volume_edge_m)
    for c, camera in enumerate(rig.cameras[1:], 1):
        off = pose_difference(camera.T_ref_cam, truth.T_ref_cam[c], volume)
        clock_s = camera.time.offset_s - (truth.offsets_s[c] - truth.offsets_s[0])
        rows.append(
            Row(
                truth.seed, c, off.volume_mm, off.deg, q.sigma_volume_mm[camera.serial], 1e3 * float(clock_s),
                1e3 * camera.time.sigma_s,
            )
        )  # fmt: skip
    return rows


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Over all cameras; error_over_sigma is the root mean square error over the root mean square sigma."""
    mm, deg, sigma = (np.array([getattr(row, name) for row in rows]) for name in ("mm", "deg", "sigma_mm"))
    return {
        "cameras": len(rows),
        "median_mm": float(np.median(mm)),
        "rms_mm": float(np.sqrt((mm**2).mean())),
        "worst_mm": float(mm.max()),
        "within_0.3mm": float((mm <= 0.3).mean()),
        "worst_deg": float(deg.max()),
        "error_over_sigma": float(np.sqrt((mm**2).mean() / (sigma**2).mean())),
        "clock_rms_ms": float(np.sqrt(np.mean([row.clock_ms**2 for row in rows]))),
    }


@click.command()
@click.option("--seeds", default=3, show_default=True, help="Rigs.")
@click.option("--first", default=0, show_default=True, help="The first seed.")
@click.option("--cameras", default=3, show_default=True)
@click.option("--seconds", default=15.0, show_default=True)
@click.option("--fps", default=30.0, show_default=True)
@click.option("--target", default="a4", show_default=True, help="a4 or a3.")
@click.option("--scale", default=1.0, show_default=True, help="The board was printed so many times as large.")
@click.option("--lens", default=0.0, show_default=True, help="Focal lengths given are wrong by this share, one sigma.")
@click.option("--json", "json_path", type=Path)
def main(
    seeds: int, first: int, cameras: int, seconds: float, fps: float, target: str, scale: float, lens: float,
    json_path: Path | None,
) -> None:  # fmt: skip
    """Calibrate rendered rigs with the printed board and compare with the truth."""
    try:
        make_room(json_path)
    except CommandError as error:
        sys.exit(f"evaluate_board: {error}")
    rows: list[Row] = []
    click.echo("seed camera     mm   deg  sigma  clock ms  sigma  rms px  square %  verdict     s")
    for seed in range(first, first + seeds):
        clip = board_clip(seed, cameras=cameras, seconds=seconds, fps=fps, target=target, scale=scale)
        begun = time.process_time()
        try:
            result = solve(clip, lens_off=lens)
        except (SourceError, BundleError) as error:
            click.echo(f"{seed:4d} refused: {error}")
            continue
        cpu_s, q = time.process_time() - begun, result.rig.quality
        square = 100 * (result.square or np.nan)
        for row in judge(clip, result.rig):
            rows.append(row)
            click.echo(
                f"{seed:4d} {row.camera:6d} {row.mm:6.2f} {row.deg:5.2f} {row.sigma_mm:6.2f} {row.clock_ms:9.2f} "
                f"{row.clock_sigma_ms:6.2f} {q.rms['reprojection_px']:7.2f} {square:9.2f}  {q.verdict:8s} {cpu_s:5.0f}"
            )
        for warning in q.warnings:
            click.echo(f"     {warning}")
    if not rows:
        return
    total = summary(rows)
    for name, value in total.items():
        click.echo(f"{name:18s} {value:.2f}")
    if json_path is not None:
        write_json(json_path, {"summary": total, "rows": [row._asdict() for row in rows]})


if __name__ == "__main__":
    main()
