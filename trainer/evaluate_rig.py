"""How well a moving hand calibrates a rig: rendered depth cameras, the daemon's own tracker, unknown clocks, the truth.

One row a camera and seed: what joints alone reach, what depth points make of it, what was predicted. A tracked clip is
kept in --cache, for tracking is what takes time.

python -m edge_hand.trainer.evaluate_rig --seeds 20 --cache sights/ --json rig.json
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from ..calibration.gather import watch_frames
from ..calibration.hand import HandResult, calibrate
from ..calibration.observe import Cloud, ObserveError, Sight
from ..calibration.uncertainty import Volume, pose_difference
from ..calibration.verify import Check, verify
from ..edge.cli.shell import CommandError, make_room
from ..edge.networks.card import DEFAULT_MODEL, sha256
from ..hand.whole import write_json
from .kept import claim
from .synth.rig_views import Bump, RigClip, RigError, rig_clip


class Row(NamedTuple):
    """One camera of one rig: volume and turn from joints alone and by the hand's depth, sigma promised, clock's error
    and its sigma."""

    seed: int
    camera: int
    joints_mm: float
    joints_deg: float
    mm: float
    deg: float
    sigma_mm: float
    clock_ms: float
    clock_sigma_ms: float

    @property
    def ratio(self) -> float:
        """Actual error over promised sigma."""
        return self.mm / self.sigma_mm


def tracked(clip: RigClip, cache: Path | None, name: str, cameras: Sequence[int] | None = None) -> list[Sight]:
    """What the daemon's tracker sees in a clip, of these cameras; from the cache if it is there."""
    sights = []
    for camera in range(len(clip.names)) if cameras is None else cameras:
        kept = None if cache is None else cache / f"{name}_{camera}.npz"
        if kept is not None and kept.exists():
            sights.append(_load(kept, clip, camera))
            continue
        sight = watch_frames(clip.frames(camera))
        if kept is not None:
            _save(kept, sight)
        sights.append(sight)
    return sights


def judge(clip: RigClip, result: HandResult) -> list[Row]:
    """A rig against the truth."""
    q = result.rig.quality
    volume, rows = Volume(q.volume_centre_m, q.volume_edge_m), []
    for c, camera in enumerate(result.rig.cameras[1:], 1):
        joints = pose_difference(result.joints.T_ref_cam[c], clip.T_ref_cam[c], volume)
        depth = pose_difference(camera.T_ref_cam, clip.T_ref_cam[c], volume)
        clock_s = camera.time.offset_s - (clip.offsets_s[c] - clip.offsets_s[0])
        sigma_mm = q.sigma_volume_mm[camera.serial]
        rows.append(
            Row(
                clip.seed, c, joints.volume_mm, joints.deg, depth.volume_mm, depth.deg, sigma_mm,
                1e3 * float(clock_s), 1e3 * camera.time.sigma_s,
            )
        )  # fmt: skip
    return rows


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Over all cameras: medians and worst; ratio is the root mean square error over the root mean square sigma."""
    mm, deg = np.array([r.mm for r in rows]), np.array([r.deg for r in rows])
    sigma = np.array([r.sigma_mm for r in rows])
    return {
        "cameras": len(rows),
        "joints_median_mm": float(np.median([r.joints_mm for r in rows])),
        "median_mm": float(np.median(mm)),
        "rms_mm": float(np.sqrt((mm**2).mean())),
        "worst_mm": float(mm.max()),
        "median_deg": float(np.median(deg)),
        "worst_deg": float(deg.max()),
        "within_1mm": float((mm <= 1).mean()),
        "within_0.2deg": float((deg <= 0.2).mean()),
        "error_over_sigma": float(np.sqrt((mm**2).mean() / (sigma**2).mean())),
        "clock_rms_ms": float(np.sqrt(np.mean([r.clock_ms**2 for r in rows]))),
    }


def checked(clip: RigClip, result: HandResult, cache: Path | None, deg: float) -> tuple[Check, Check]:
    """The rig verified with another motion before the same cameras, as it is and with one camera turned by deg."""
    other = rig_clip(clip.seed + 1000, cameras=len(clip.names), seconds=8.0, fps=30.0)
    held_out = clip._replace(way=other.way, seed=other.seed, seconds=other.seconds, fps=other.fps)
    sights = tracked(held_out, cache, f"{clip.seed}_again")
    axis = np.random.default_rng(clip.seed).normal(size=3)
    camera = 1 + clip.seed % (len(clip.names) - 1)
    bump = Bump(camera, 0.0, np.radians(deg) * axis / np.linalg.norm(axis), np.zeros(3))
    turned = tracked(held_out._replace(bump=bump), cache, f"{clip.seed}_bump{deg:g}", [camera])
    return verify(result.rig, sights), verify(result.rig, [*sights[:camera], *turned, *sights[camera + 1 :]])


@click.command()
@click.option("--seeds", default=3, show_default=True, help="Rigs.")
@click.option("--first", default=0, show_default=True, help="The first seed.")
@click.option("--cameras", default=3, show_default=True)
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--fps", default=60.0, show_default=True)
@click.option("--width", default=848, show_default=True, help="Of the D435's picture: 848 or 424.")
@click.option(
    "--bump", default=0.0, show_default=True, help="Also verify, as it is and with a camera turned by so many degrees."
)
@click.option("--cache", type=Path, help="A folder for tracked clips.")
@click.option("--json", "json_path", type=Path)
def main(
    seeds: int, first: int, cameras: int, seconds: float, fps: float, width: int, bump: float, cache: Path | None,
    json_path: Path | None,
) -> None:  # fmt: skip
    """Calibrate rendered rigs with a moving hand and compare with the truth."""
    try:
        make_room(json_path)
    except CommandError as error:
        sys.exit(f"evaluate_rig: {error}")
    if cache is not None:
        network = sha256(DEFAULT_MODEL)[:12]
        claim(cache, {"network": network, "cameras": cameras, "seconds": seconds, "fps": fps, "width": width})
    rows: list[Row] = []
    checks: list[dict[str, Any]] = []
    click.echo("seed camera  joints mm  deg   depth mm  deg   sigma  ratio  clock ms  sigma   cpu s")
    for seed in range(first, first + seeds):
        try:
            clip = rig_clip(seed, cameras=cameras, seconds=seconds, fps=fps, size=(width, width * 240 // 424))
        except RigError as error:
            sys.exit(f"evaluate_rig: {error}")
        sights = tracked(clip, cache, f"{seed}")
        begun = time.process_time()
        try:
            result = calibrate(f"seed {seed}", sights)
        except ObserveError as error:
            click.echo(f"{seed:4d} refused: {error}")
            continue
        cpu_s = time.process_time() - begun
        for row in judge(clip, result):
            rows.append(row)
            click.echo(
                f"{seed:4d} {row.camera:6d} {row.joints_mm:9.2f} {row.joints_deg:6.2f} {row.mm:8.2f} {row.deg:6.2f} "
                f"{row.sigma_mm:6.2f} {row.ratio:6.2f} {row.clock_ms:8.2f} {row.clock_sigma_ms:6.2f} {cpu_s:7.1f}"
            )
        if bump:
            for what, check in zip(
                ("as it was", f"turned {bump:g} deg"), checked(clip, result, cache, bump), strict=True
            ):
                moved = [c.moved.volume_mm for c in check.cameras[1:]]
                checks.append({"seed": seed, "what": what, "verdict": check.verdict, "moved_mm": moved})
                click.echo(
                    f"     verify, {what}: {check.verdict}, cameras found {np.round(moved, 1)} mm from the rig's"
                )
    if not rows:
        return
    total = summary(rows)
    for name, value in total.items():
        click.echo(f"{name:18s} {value:.2f}")
    if json_path is not None:
        data = {"summary": total, "rows": [row._asdict() for row in rows], "bumped": checks}
        write_json(json_path, data)


def _save(path: Path, sight: Sight) -> None:
    points = np.concatenate([cloud.points_m for cloud in sight.clouds] or [np.zeros((0, 3))])
    np.savez(
        path.with_suffix(".tmp.npz"),
        times_s=sight.times_s,
        joints_m=sight.joints_m,
        cloud_times_s=np.array([cloud.t_s for cloud in sight.clouds]),
        counts=np.array([len(cloud.points_m) for cloud in sight.clouds], int),
        points_m=points.astype(np.float32),
    )
    path.with_suffix(".tmp.npz").replace(path)


def _load(path: Path, clip: RigClip, camera: int) -> Sight:
    with np.load(path) as data:
        parts = np.split(data["points_m"], np.cumsum(data["counts"])[:-1]) if len(data["counts"]) else []
        clouds = tuple(Cloud(float(t), points) for t, points in zip(data["cloud_times_s"], parts, strict=True))
        return Sight(
            clip.names[camera], "depth", clip.intrinsics[camera], data["times_s"], data["joints_m"], clouds
        )  # fmt: skip


if __name__ == "__main__":
    main()
