"""What adaptation is worth: a person, a sensor and poses that training never showed, scored by labels it never saw.

The person's hand is 228 mm long with long fingers, beyond the training range in length (150 to 216 mm), in the ratio of
finger to palm and in bone scales; the sensor is a structured-light camera that is not among those of training, noisier
than any of them; views and motion are of their own seed. One recording is adapted to, from one camera or all three;
another of the same person, with other poses and moves, is scored.

python -m edge_hand.trainer.evaluate_adapt --out runs/adapt --json adapt.json          # all that is not done yet
python -m edge_hand.trainer.evaluate_adapt --out runs/adapt --only one --steps 200     # a part
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import nn

from ..calibration.rig import RigCamera, TimeOffset
from ..edge.cli.shell import write_result
from ..edge.engines import Engine, open_engine
from ..edge.look import trust
from ..edge.networks.card import MODELS, sha256
from ..edge.person import Person, person_maker
from ..edge.reading import predict
from ..edge.recordings.recording import RecordingWriter
from ..edge.refit import Refit
from ..edge.tracker import Tracker
from ..hand.arrays import Array
from ..hand.crop import CROP_SIZE, crop_depth
from ..hand.frames import DepthFrame, HandCrop, HandRoi
from ..hand.kinematics import Shape
from ..hand.template import template
from .adapt.frames import read_footage
from .adapt.run import AdaptConfig, adapt_net, without_terms
from .adapt.target import Target, load_target, prepare, save_target
from .checkpoint import load_net
from .kept import claim
from .nets import net_module
from .synth.poses import hand_length_m
from .synth.rig_views import RigClip, rig_clip
from .synth.rooms import intrinsics_of
from .synth.samples import CUBE_M, Generator
from .synth.sensors import Sensor, Settings

SENSOR = Sensor("unseen 640x480", "structured_light", 640, 480, 570.0, 0.075, 0.001, 0.3, 5.0, (0.05, 0.2), 1 / 16, -1)
SETTINGS = Settings(
    noise=0.2, white=0.3, patch_px=8.0, fatten_px=2.5, ragged_px=1.0, edge_lost=0.9, grazing_rad=math.radians(72),
    lone=0.01, holes=0.03, hole_px=6,
)  # fmt: skip
PERSON = Shape(np.array([1.08, 1.17, 1.25, 1.25, 1.23, 1.20]), np.array([0.0, -0.6, 0.0, 0.3, 0.0, 0.2, 0.3]))
CAMERAS, WIDTH = 3, 424
SEEDS = {"adapt": 41, "score": 42}
ABLATED = ("lifting", "collision", "arap", "offset", "user", "icp", "teacher", "views")
JITTER_M = 0.008  # of a scored crop's centre
NEAR_M = 0.10  # a tracked hand further than this from the truth is another one
SYNTHETIC = 400


class Case(NamedTuple):
    """One adaptation: its name, from how many cameras, what is left out, and the method."""

    name: str
    cameras: int
    without: tuple[str, ...] = ()
    method: str = "dgn"


def cases() -> list[Case]:
    """The rows of the table, those that matter most first."""
    main = [Case("one", 1), Case("three", CAMERAS), Case("one dibra", 1, method="dibra")]
    three = [Case(f"three without {name}", CAMERAS, _all_of(name)) for name in ABLATED]
    return [*main, *three, Case("one without teacher", 1, ("teacher",)), Case("one without user", 1, ("user",))]


def _all_of(name: str) -> tuple[str, ...]:
    return ("views", "views_icp", "views_lifting") if name == "views" else (name,)


def target_clip(part: str, seconds: float, fps: float) -> RigClip:
    """The unseen person before three synchronous unseen cameras; part: "adapt" or "score"."""
    clip = rig_clip(
        SEEDS[part], cameras=CAMERAS, seconds=seconds, fps=fps, motion="free", alpha=PERSON.alpha, beta=PERSON.beta,
        offsets_s=[0.0] * CAMERAS, distance_m=0.5,
    )  # fmt: skip
    camera = intrinsics_of(SENSOR, WIDTH)
    zero, settings = np.zeros(CAMERAS), (SETTINGS,) * CAMERAS
    return clip._replace(sensor=SENSOR, settings=settings, intrinsics=(camera,) * CAMERAS, phases_s=zero)


def record(clip: RigClip, camera: int, path: Path) -> None:
    """The clip of one camera as a user records it, the whole of it or no file of that name."""
    if not path.exists():
        part = path.with_suffix(".part.mcap")
        part.unlink(missing_ok=True)  # of a run that was interrupted
        with RecordingWriter(part, sensor="synthetic", settings={}) as writer:
            for frame in clip.frames(camera):
                writer.write(frame)
        part.replace(path)


def exported(checkpoint: Path) -> Path:
    """The checkpoint as the daemon runs it; a shipped one is there already."""
    from ..exporters.onnx import export

    path = checkpoint.with_suffix(".onnx")
    if not path.exists():
        export(checkpoint, path)
    return path


class Scored(NamedTuple):
    """Joint errors, mm: of the network alone in crops of the usual size and the hand's; of the daemon's refit of each
    frame for itself, with the person's shape if it is known; the tracker's, as published and as measured, and the share
    of frames in which it had the hand; rendered hands of everybody."""

    net_mm: float
    net_own_size_mm: float
    frame_mm: float
    tracker_mm: float
    tracker_raw_mm: float
    found: float
    synthetic_mm: float


def score(checkpoint: Path, clip: RigClip, person: Path | None, every: int) -> Scored:
    """One network against the truth of a clip, from all of its cameras; person: a shape that the tracker knows."""
    net, config, _ = load_net(checkpoint)
    module = net_module(config.net)
    shape = Person.load(person).shape if person else None
    own = CUBE_M * float((shape or PERSON).alpha.mean())
    errors: list[list[float]] = [[], [], []]
    published, measured, n = [], [], 0
    engine, refit = open_engine("onnxruntime", exported(checkpoint)), Refit()
    for camera in range(len(clip.names)):
        tracker = Tracker(engine, max_hands=1, new_person=person_maker(person))
        for i, frame in enumerate(clip.frames(camera)):
            truth = clip.joints_m(camera, frame.seq)
            n += 1
            for hand in tracker.process(frame):
                if hand.joints_raw_m is not None and np.linalg.norm(hand.joints_raw_m.mean(0) - truth.mean(0)) < NEAR_M:
                    published.append(error_mm(hand.pose.joints_m, truth))
                    measured.append(error_mm(hand.joints_raw_m, truth))
            if i % every == 0:
                for k, cube in enumerate((CUBE_M, own)):
                    errors[k].append(error_mm(net_joints(net, module, frame, truth.mean(0), cube), truth))
                errors[2].append(error_mm(frame_joints(engine, refit, frame, truth.mean(0), shape), truth))
    return Scored(
        round(float(np.mean(errors[0])), 3),
        round(float(np.mean(errors[1])), 3),
        round(float(np.mean(errors[2])), 3),
        round(float(np.mean(published)), 3) if published else math.nan,
        round(float(np.mean(measured)), 3) if measured else math.nan,
        round(len(published) / max(n, 1), 4),
        round(synthetic_mm(net, module), 3),
    )


def net_joints(net: nn.Module, module: Any, frame: DepthFrame, centre: Array, cube: float) -> Array:
    """Joints (21, 3) m of the network's closed-form refit (section 3.4), in the camera frame."""
    crop = crop_near(frame, centre, cube)
    size = torch.tensor([crop.distance_m]).float(), torch.tensor([cube]).float()
    with torch.no_grad():
        joints = module.estimate(net(torch.from_numpy(crop.image)[None, None]), *size)[0][0].numpy()
    return np.asarray(joints @ crop.R_camera_crop.T)


def frame_joints(engine: Engine, refit: Refit, frame: DepthFrame, centre: Array, shape: Shape | None) -> Array:
    """Joints (21, 3) m of the daemon's refit of this frame alone, in the camera frame: of a hand that it never saw, or
    of one whose shape it knows."""
    crop = crop_near(frame, centre, CUBE_M * (float(shape.alpha.mean()) if shape else 1.0))
    seen = predict(engine, crop)
    weights = trust(seen.joint_error_m)
    fit = refit.solve(seen.vertices_m.astype(np.float64), shape=shape, points_m=seen.points_m, weights=weights)
    return np.asarray(fit.joints_m @ crop.R_camera_crop.T)


def crop_near(frame: DepthFrame, centre: Array, cube: float) -> HandCrop:
    """A crop a little beside the hand's middle, as the daemon's are."""
    rng = np.random.default_rng([frame.seq, 5])
    return crop_depth(frame, HandRoi("right", centre + rng.normal(0, JITTER_M, 3), cube, 1.0), CROP_SIZE)


def synthetic_mm(net: nn.Module, module: Any, n: int = SYNTHETIC) -> float:
    """Joint error on rendered hands of everybody: what may not be forgotten."""
    generator, errors = Generator("val", 3), []
    for start in range(0, n, 50):
        b = generator.batch(start, 50)
        size = torch.from_numpy(b.distance_m), torch.from_numpy(b.cube_m)
        with torch.no_grad():
            joints = module.estimate(net(torch.from_numpy(b.image)[:, None]), *size)[0]
        truth = module.metres(torch.from_numpy(b.joints_uvd), *size)
        errors.append(float((joints - truth).norm(dim=-1).mean()))
    return float(np.mean(errors)) * 1e3


def error_mm(joints: Array, truth: Array) -> float:
    return float(np.linalg.norm(joints - truth, axis=1).mean() * 1e3)


def make_target(base: Path, model: Path, sources: list[Path], rig: dict[str, RigCamera] | None, path: Path) -> Target:
    """What `edge-hand adapt` makes of the recordings; kept for the next time."""
    if not path.exists():
        footage = read_footage(sources, open_engine("onnxruntime", model), rig, share=1.0, say=click.echo)
        save_target(prepare(footage, load_net(base)[0], click.echo), path)
    return load_target(path)


def teacher_mm(target: Target, clip: RigClip) -> float:
    """The teacher's own error on what it teaches."""
    errors = [
        error_mm(target.joints_m[m], clip.joints_m(0, int(seq))) for m, seq in enumerate(target.seq) if target.good[m]
    ]
    return float(np.mean(errors))


def rows(
    out: Path, model: str, steps: int, seconds: float, fps: float, only: str | None, every: int
) -> Iterator[dict[str, Any]]:
    """The table, row by row; those in out are not measured again."""
    base, engine = MODELS / f"{model}.pt", MODELS / f"{model}.onnx"
    adapt, scored = target_clip("adapt", seconds, fps), target_clip("score", seconds / 2, fps)
    sources = [out / f"adapt-{c}.mcap" for c in range(CAMERAS)]
    for camera, path in enumerate(sources):
        record(adapt, camera, path)
    rig = {
        name: RigCamera(name, "depth", lens, T, np.zeros((6, 6)), TimeOffset(float(offset_s)))
        for name, lens, T, offset_s in zip(adapt.names, adapt.intrinsics, adapt.T_ref_cam, adapt.offsets_s, strict=True)
    }
    truth_m = hand_length_m(template(), *PERSON)
    before = _kept(out / "before.json") or _keep(out / "before.json", score(base, scored, None, every)._asdict())
    yield {"case": "before", **before}
    for case in cases():
        if only and case.name != only:
            continue
        file = out / f"{case.name.replace(' ', '-')}.json"
        row = _kept(file)
        if row is None:
            begun = time.monotonic()
            mine, cameras = (sources, rig) if case.cameras > 1 else (sources[:1], None)
            target = make_target(base, engine, mine, cameras, out / f"target-{case.cameras}.npz")
            folder = out / case.name.replace(" ", "-")
            folder.mkdir(exist_ok=True)
            Person(target.shape).save(folder / "person.json")
            config = without_terms(AdaptConfig(case.method, steps), case.without)
            done = adapt_net(base, target, folder, config, threads=1, resume=True, say=click.echo)
            after = score(done.checkpoint, scored, folder / "person.json", every)
            length = hand_length_m(template(), *target.shape) / truth_m - 1
            row = {
                **after._asdict(), "teacher_mm": round(teacher_mm(target, adapt), 3), "steps": done.steps,
                "length_error": round(length, 4), "peak_mib": round(done.peak_mib),
                "seconds": round(time.monotonic() - begun),
            }  # fmt: skip
            _keep(file, row)
        yield {"case": case.name, **row, "net_gain": round(1 - row["net_mm"] / before["net_mm"], 4),
               "frame_gain": round(1 - row["frame_mm"] / before["frame_mm"], 4),
               "tracker_gain": round(1 - row["tracker_mm"] / before["tracker_mm"], 4)}  # fmt: skip


def _kept(path: Path) -> dict[str, Any] | None:
    """A row of before, if it has all that rows have now."""
    row = json.loads(path.read_text()) if path.exists() else {}
    return row if set(Scored._fields) <= row.keys() else None


def _keep(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    write_result(row, path)
    return row


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    text = (
        f"{row['case']:<26} net {row['net_mm']:6.2f} ({row['net_own_size_mm']:.2f} in its own size)  "
        f"refit of a frame {row['frame_mm']:.2f}  "
        f"tracker {row['tracker_mm']:6.2f} mm, found {row['found']:.0%}  everybody {row['synthetic_mm']:.2f}"
    )
    if "net_gain" in row:
        text += (
            f"  net {-row['net_gain']:+.0%}, frame {-row['frame_gain']:+.0%}, tracker {-row['tracker_gain']:+.0%}; "
            f"teacher {row['teacher_mm']:.2f}, length {row['length_error']:+.1%}"
        )
    return text


@click.command()
@click.option("--out", type=Path, required=True, help="Folder for recordings, networks and rows; goes on where it was.")
@click.option("--model", default="dgn-nano", show_default=True)
@click.option("--steps", default=1800, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=60.0, show_default=True, help="Of the recording that is adapted to.")
@click.option("--fps", default=10.0, show_default=True)
@click.option("--every", default=3, show_default=True, help="The network alone looks at every n-th frame.")
@click.option("--only", help="One row, by name.")
@click.option("--json", "json_path", type=Path)
def main(
    out: Path, model: str, steps: int, seconds: float, fps: float, every: int, only: str | None, json_path: Path | None
) -> None:
    """Print the table of docs/adaptation.md."""
    torch.set_num_threads(1)
    network = sha256(MODELS / f"{model}.pt")[:12]
    claim(out, {"network": network, "steps": steps, "seconds": seconds, "fps": fps, "every": every})
    n = 1 if only else len(cases())
    click.echo(f"{n} adaptations of {steps} steps: about {n * (steps * 0.45 + 120) / 60:.0f} minutes on a free core")
    table = []
    for row in rows(out, model, steps, seconds, fps, only, every):
        click.echo(line(row))
        table.append(row)
        if json_path:
            result = {"model": model, "steps": steps, "seconds": seconds, "fps": fps, "rows": table}
            write_result(result, json_path)


if __name__ == "__main__":
    main()
