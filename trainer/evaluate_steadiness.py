"""How still a still hand is, what smoothing costs a fast one, and what knowing the hand's size is worth.

Rendered hands of one person each, before a wall, with fresh sensor noise in every frame, through the daemon's tracker.
What the size is worth is the same tracker's error in the same frames, once told that the hand is an average one, once
left to learn and hold its shape.

python -m edge_hand.trainer.evaluate_steadiness --json steadiness.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from ..edge.cli.shell import CommandError, make_room, write_result
from ..edge.engines import open_engine
from ..edge.finder import open_finder
from ..edge.networks.card import DEFAULT_MODEL, ModelError, find_model
from ..edge.person import Person
from ..edge.tracker import Tracker
from ..hand.arrays import Array
from ..hand.body import hand_with_arm
from ..hand.frames import DepthFrame
from ..hand.kinematics import AVERAGE, forward_kinematics, skin
from ..hand.skeleton import ANGLE_LIMITS_RAD, BONE_STARTS
from ..hand.template import template
from .synth import scene
from .synth.poses import sample_angles, sample_view
from .synth.rooms import Picture, intrinsics_of
from .synth.samples import STREAMS
from .synth.scene import BOX
from .synth.sensors import SENSORS, draw_settings

SENSOR = "D435 848x480"
WIDTH = 424
SETTLED_S = 2.5  # by then the shape is held
SWING_M, SWING_M_S = 0.12, 2.0

Motion = Callable[[float], Array]  # seconds to a shift (3,) m


class Clip(NamedTuple):
    """What the tracker made of a clip: truth, raw and published joints (N, 21, 3) m, angles (N, 20), frames missed."""

    truth: Array
    raw: Array
    published: Array
    angles: Array
    missed: int

    def error_mm(self, joints: Array) -> float:
        return float(np.linalg.norm(joints - self.truth, axis=-1).mean() * 1e3)


def still(_: float) -> Array:
    return np.zeros(3)


def swing(t_s: float) -> Array:
    """Side to side at 2 m/s where it is fastest."""
    return np.array([SWING_M * np.sin(t_s * SWING_M_S / SWING_M), 0, 0])


def clip(
    seed: int, frames: int, fps: float, motion: Motion, size: float, limber: bool
) -> Iterator[tuple[DepthFrame, Array]]:
    """Frames of one hand and its joints (21, 3) m; size scales it, limber fingers move from shape to shape."""
    rng = np.random.default_rng([STREAMS["test"], 7, seed])
    t, sensor = template(), SENSORS[SENSOR]
    body, camera = hand_with_arm(t), intrinsics_of(sensor, WIDTH)
    shapes, view, settings = [sample_angles(t, rng) for _ in range(12)], sample_view(rng), draw_settings(sensor, rng)
    away, alpha = rng.uniform(0.4, 0.6), np.full((1, 6), size)
    wall = Picture(camera)
    wall.draw(*scene.place(BOX, np.eye(3), np.array([3.0, 3.0, 0.02]), np.array([0, 0, away + 0.4])), 1)
    for k in range(frames):
        at = k / fps
        part = min(1.0, 2 * (at % 1.0))  # half a second from shape to shape, half a second still
        a, b = (shapes[(int(at) + j) % len(shapes)] for j in (0, 1))
        theta = np.zeros((1, 26))
        theta[0, 6:] = a + (b - a) * (3 - 2 * part) * part**2 if limber else shapes[0]
        skeleton = forward_kinematics(t, theta, alpha, np.zeros((1, 7)))
        arm = np.zeros((1, 1, 3, 4))
        arm[..., :3] = size * np.eye(3)
        vertices = skin(body.weights, body.vertices_m[None], np.concatenate([skeleton.parts, arm], 1))[0]
        shift = motion(at) + (0, 0, away)
        middle = t.joints_m.mean(0) * size
        joints, vertices = ((x - middle) @ view.T + shift for x in (skeleton.joints_m[0], vertices))
        picture = wall.copy()
        picture.draw(vertices, body.faces, 2)
        yield picture.frame(sensor, settings, 1000 * seed + k, k, round(k * 1e9 / fps)), joints


def follow(tracker: Tracker, frames: Iterator[tuple[DepthFrame, Array]], after_s: float) -> Clip:
    """Track a clip; what comes before after_s, and frames in which the hand was not measured, are left out."""
    truth, raw, published, angles, missed = [], [], [], [], 0
    for frame, joints in frames:
        hands = tracker.process(frame)
        if frame.t_ns < after_s * 1e9:
            continue
        near = [
            h
            for h in hands
            if h.joints_raw_m is not None and np.linalg.norm(h.joints_raw_m - joints, axis=1).mean() < 0.06
        ]
        if not near:
            missed += 1
            continue
        truth.append(joints)
        raw.append(near[0].joints_raw_m)
        published.append(near[0].pose.joints_m)
        angles.append(near[0].pose.theta[6:])
    if len(truth) < 2:
        return Clip(np.zeros((0, 21, 3)), np.zeros((0, 21, 3)), np.zeros((0, 21, 3)), np.zeros((0, 20)), missed)
    return Clip(np.array(truth), np.array(raw), np.array(published), np.array(angles), missed)


def jitter_mm(joints: Array) -> float:
    """Mean distance (mm) that a joint moves from frame to frame."""
    return float(np.linalg.norm(np.diff(joints, axis=0), axis=-1).mean() * 1e3)


def bone_std_mm(joints: Array) -> float:
    return float(np.linalg.norm(joints[:, 1:] - joints[:, BONE_STARTS], axis=-1).std(0).max() * 1e3)


def seen(clips: Sequence[Clip]) -> list[Clip]:
    """Those in which the hand was measured twice or more."""
    return [c for c in clips if len(c.truth)]


def outside_limits(clips: Sequence[Clip]) -> int:
    """How many of all published angles lie beyond their limits."""
    low, high = ANGLE_LIMITS_RAD.T
    return sum(int(((c.angles < low - 1e-6) | (c.angles > high + 1e-6)).sum()) for c in clips)


@click.command()
@click.option("--hands", default=12, show_default=True, type=click.IntRange(1), help="Hands for each measure.")
@click.option("--first", default=0, show_default=True, type=click.IntRange(0), help="Number of the first hand.")
@click.option("--seconds", default=2.0, show_default=True, help="Measured of each, once the shape is held.")
@click.option("--model", default=DEFAULT_MODEL.stem, show_default=True, help="The network: a name or a file.")
@click.option("--finder", default="finder", show_default=True, help="A name, a file or geometry.")
@click.option("--json", "json_path", type=Path)
def main(hands: int, first: int, seconds: float, model: str, finder: str, json_path: Path | None) -> None:
    """Print the table of docs/tracking.md."""
    try:
        make_room(json_path)
        engine, proposer = open_engine(model=find_model(model)), open_finder(finder)
    except (CommandError, ModelError) as error:
        sys.exit(f"evaluate_steadiness: {error}")
    result: dict[str, Any] = {"model": engine.card.sha256}

    def clips(
        fps: float, motion: Motion, size: float = 1.0, limber: bool = False, person: Callable[[], Person] = Person
    ) -> list[Clip]:
        frames = round((SETTLED_S + seconds) * fps)
        return [
            follow(
                Tracker(engine, proposer, max_hands=1, new_person=person),
                clip(i, frames, fps, motion, size, limber),
                SETTLED_S,
            )
            for i in range(first, first + hands)
        ]

    for fps in (30.0, 90.0):
        held, fast = clips(fps, still), clips(fps, swing)
        raw = [jitter_mm(c.raw) for c in seen(held)]
        published = [jitter_mm(c.published) for c in seen(held)]
        result[f"{fps:g} Hz"] = {
            "still_raw_mm": np.median(raw),
            "still_published_mm": np.median(published),
            "still_raw_mean_mm": np.mean(raw),
            "still_published_mean_mm": np.mean(published),
            "bone_std_mm": max((bone_std_mm(c.published) for c in seen(held)), default=np.nan),
            "fast_raw_mm": np.median([c.error_mm(c.raw) for c in seen(fast)]),
            "fast_published_mm": np.median([c.error_mm(c.published) for c in seen(fast)]),
            "angles_outside_limits": outside_limits([*held, *fast]),
            "missed": sum(c.missed for c in (*held, *fast)),
            "measured": sum(len(c.truth) for c in (*held, *fast)),
        }
    for size in (0.8, 1.0, 1.2):
        unknown = clips(30.0, still, size, True, lambda: Person(AVERAGE))
        known = clips(30.0, still, size, True)
        result[f"size {size:g}"] = {
            "taken_for_average_mm": np.mean([c.error_mm(c.published) for c in seen(unknown)]),
            "held_raw_mm": np.mean([c.error_mm(c.raw) for c in seen(known)]),
            "held_published_mm": np.mean([c.error_mm(c.published) for c in seen(known)]),
            "angles_outside_limits": outside_limits([*unknown, *known]),
            "missed_as_average": sum(c.missed for c in unknown),
            "missed": sum(c.missed for c in known),
        }
    for name, values in result.items():
        if isinstance(values, dict):
            click.echo(f"{name:<9}" + "  ".join(f"{key} {float(value):.3g}" for key, value in values.items()))
    write_result(result, json_path)


if __name__ == "__main__":
    main()
