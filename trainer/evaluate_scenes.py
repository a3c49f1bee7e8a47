"""Measure finding and tracking on rendered sequences of people with hands: what is missed, invented, mixed up, late.

python -m edge_hand.trainer.evaluate_scenes --frames 10000 --json scenes.json --out failures/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..edge.cli.shell import CommandError, make_folders, make_room, write_result
from ..edge.draw import Picture, contact_sheet, depth_picture, draw_joints, save_png, view_of
from ..edge.networks.card import DEFAULT_MODEL, ModelError, find_model
from ..hand.arrays import Array
from ..hand.frames import DepthFrame, HandPose
from .synth.rooms import Scene, SceneHand, sequence

PER_SEQUENCE = 500  # frames
FPS = 30.0
FOUND_M = 0.06  # a published hand whose joints' mean is as near as this to a true one's is that hand
FALSE_M = 0.10  # one further than this from every true hand that shows anything, and is no other's, is none
LEAST_SEEN, LEAST_READ, NEAR_M, FAR_M, LEAST_PX = 0.5, 0.5, 0.2, 1.3, 12  # a hand that must be found
GONE, AWAY_NS = 0.1, 200_000_000  # a hand of which less was to be seen for longer than this has left the picture
BACK_NS = 5_000_000_000  # one that is back after less than this should have its id
KINDS = ("missed", "false", "side", "switch", "late")
LATE = 3  # frames after which a hand that has come should be there
PANEL = (240, 180)
MOST, A_SEQUENCE, APART = 36, 2, 15  # pictures a sheet, and a sequence; frames between those


class Tracked(Protocol):
    """A published hand."""

    @property
    def id(self) -> int: ...
    @property
    def pose(self) -> HandPose: ...


class SceneTracker(Protocol):
    """What is measured: `edge.tracker.Tracker`, or anything else that publishes hands."""

    stages_us: dict[str, float]

    def process(self, frame: DepthFrame) -> Sequence[Tracked]: ...


class Failure(NamedTuple):
    kind: str  # one of KINDS
    sequence: int
    frame: int


Draw = Callable[[Failure, Scene, Sequence[Tracked]], None]


@dataclass
class _Presence:
    """A true hand between its coming and its going; waited counts from when it must be found, None before."""

    seen_ns: int
    id: int | None = None
    found: bool = False
    waited: int | None = None
    was_id: int | None = None  # when it was here last, a moment ago


@dataclass
class _Counts:
    frames: int = 0
    must: int = 0
    found: int = 0
    predicted: int = 0
    frames_false: int = 0
    frames_false_tracked: int = 0
    hands_false: int = 0
    false_runs: list[int] = field(default_factory=list)
    side_right: int = 0
    side_unknown: int = 0
    switches: int = 0
    back: int = 0
    back_as_before: int = 0
    waits: list[int] = field(default_factory=list)
    errors_mm: list[float] = field(default_factory=list)
    stages_us: dict[str, list[float]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def evaluate_scenes(
    frames: int,
    tracker_factory: Callable[[], SceneTracker],
    *,
    per_sequence: int = PER_SEQUENCE,
    first: int = 0,
    fps: float = FPS,
    scenes: Callable[[int, int, float], Iterator[Scene]] = sequence,
    on_failure: Draw | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Run a new tracker over each of the sequences first, first + 1, ... until `frames` are measured.

    recall: of hands with half or more to be seen and to be read by the sensor where they are, 0.2 to 1.3 m away, 12 px
    or more across; sides and errors are of those found, `predicted` how many of them were published so. false: no hand
    is there, or another published one has it; `false_frames_tracked` leaves predicted ones out. switches: a hand that
    stays in the picture, or is out of it for 0.2 s at most, goes on under another id. back: hands that come back within
    5 s, and how many of them with the id that they had. wait: frames from the first in which a hand must be found until
    it is, 0 at once. false_runs: frames in a row with a false hand.
    Raises ValueError if there is nothing to measure.
    """
    if frames < 1 or per_sequence < 1:
        raise ValueError(f"{frames} frames in sequences of {per_sequence}: at least 1 of each is needed")
    counts = _Counts()
    number = first
    while counts.frames < frames:
        n = min(per_sequence, frames - counts.frames)
        _one_sequence(counts, number, scenes(number, n, fps), tracker_factory(), on_failure)
        number += 1
        if progress:
            progress(counts.frames)
    return _report(counts, number - first)


def _one_sequence(
    counts: _Counts, number: int, scenes: Iterator[Scene], tracker: SceneTracker, draw: Draw | None
) -> None:
    present: dict[str, _Presence] = {}
    left: dict[str, _Presence] = {}
    run = 0
    for i, scene in enumerate(scenes):
        published = tracker.process(scene.frame)
        for stage, us in tracker.stages_us.items():
            if us > 0:
                counts.stages_us.setdefault(stage, []).append(us)
        failed = _one_frame(counts, scene, published, present, left)
        counts.frames += 1
        if "false" in failed:
            run += 1
        elif run:
            counts.false_runs.append(run)
            run = 0
        for kind in failed:
            counts.failures.append(Failure(kind, number, i))
            if draw:
                draw(counts.failures[-1], scene, published)
    counts.false_runs += [run] * (run > 0)
    counts.waits += [p.waited for p in present.values() if p.waited is not None and not p.found]


def _one_frame(
    counts: _Counts,
    scene: Scene,
    published: Sequence[Tracked],
    present: dict[str, _Presence],
    left: dict[str, _Presence],
) -> list[str]:
    failed, t_ns = [], scene.frame.t_ns
    truths = {_name(scene.hands, i): hand for i, hand in enumerate(scene.hands)}
    pairs = match([h.joints_m.mean(0) for h in scene.hands], [p.pose.joints_m.mean(0) for p in published])
    for name in [n for n, state in present.items() if t_ns - state.seen_ns > AWAY_NS]:
        left[name] = gone = present.pop(name)
        if gone.waited is not None and not gone.found:
            counts.waits.append(gone.waited)
    for i, (name, truth) in enumerate(truths.items()):
        must, hit = must_be_found(truth, scene.frame), published[pairs[i]] if i in pairs else None
        if truth.seen < GONE:
            continue
        if name not in present:
            was = left.pop(name, None)
            present[name] = _Presence(t_ns, was_id=was.id if was and t_ns - was.seen_ns <= BACK_NS else None)
        state = present[name]
        state.seen_ns = t_ns
        if must:
            counts.must += 1
            counts.found += hit is not None
            state.waited = state.waited or 0
            if hit is None:
                failed.append("missed")
        if state.waited is not None and not state.found:
            state.found = hit is not None
            if hit is not None:
                counts.waits.append(state.waited)
            else:
                state.waited += 1
                if state.waited == LATE + 1:
                    failed.append("late")
        if hit is None:
            continue
        if state.id is None and state.was_id is not None:
            counts.back += 1
            counts.back_as_before += hit.id == state.was_id
        if state.id is not None and hit.id != state.id:
            counts.switches += 1
            failed.append("switch")
        state.id = hit.id
        if must:
            counts.predicted += hit.pose.state == "predicted"
            counts.side_right += hit.pose.side == truth.side
            counts.side_unknown += hit.pose.side == "unknown"
            if hit.pose.side not in (truth.side, "unknown"):
                failed.append("side")
            counts.errors_mm.append(float(np.linalg.norm(hit.pose.joints_m - truth.joints_m, axis=1).mean()) * 1e3)
    shown = {i: j for i, j in pairs.items() if scene.hands[i].seen > 0}
    free = [h.joints_m.mean(0) for i, h in enumerate(scene.hands) if h.seen > 0 and i not in shown]
    others = [p.pose for j, p in enumerate(published) if j not in shown.values()]

    def count_false(poses: Sequence[HandPose]) -> int:
        return len(poses) - len(match(free, [pose.joints_m.mean(0) for pose in poses], FALSE_M))

    false = count_false(others)
    counts.hands_false += false
    counts.frames_false += false > 0
    counts.frames_false_tracked += count_false([pose for pose in others if pose.state == "tracked"]) > 0
    return failed + ["false"] * (false > 0)


def _name(hands: Sequence[SceneHand], i: int) -> str:
    """Which hand of the person it is; a second left one is another's."""
    return f"{hands[i].side} {sum(h.side == hands[i].side for h in hands[:i])}"


def match(true: Sequence[Array], published: Sequence[Array], most_m: float = FOUND_M) -> dict[int, int]:
    """Which published centre (3,) is which true one, nearest first, none further than most_m."""
    distances = sorted(
        (float(np.linalg.norm(a - b)), i, j) for i, a in enumerate(true) for j, b in enumerate(published)
    )
    pairs: dict[int, int] = {}
    for distance, i, j in distances:
        if distance <= most_m and i not in pairs and j not in pairs.values():
            pairs[i] = j
    return pairs


def must_be_found(hand: SceneHand, frame: DepthFrame) -> bool:
    """Whether a tracker may be blamed for missing it: it shows, near and large enough, and the sensor reads it."""
    z = float(hand.joints_m[:, 2].mean())
    if hand.seen < LEAST_SEEN or not NEAR_M <= z <= FAR_M or hand.vertices_m[:, 2].min() <= 0:
        return False
    pixels = frame.intrinsics.project(hand.vertices_m)
    columns, rows = np.rint(pixels[((pixels > -0.5) & (pixels < np.array(frame.depth.shape[::-1]) - 0.5)).all(1)]).T
    read = frame.depth[rows.astype(int), columns.astype(int)] > 0
    return bool(np.ptp(pixels, axis=0).max() >= LEAST_PX and read.mean() >= LEAST_READ)


def _report(c: _Counts, sequences: int) -> dict[str, Any]:
    def share(a: int, b: int) -> float:
        return a / b if b else float("nan")

    def points(values: Sequence[float], *percents: int) -> dict[str, float]:
        return {f"p{q}": float(np.percentile(values, q)) if values else float("nan") for q in percents}

    return {
        "frames": c.frames,
        "sequences": sequences,
        "hands_to_find": c.must,
        "recall": share(c.found, c.must),
        "predicted": share(c.predicted, c.found),
        "false_hands": c.hands_false,
        "false_frames": share(c.frames_false, c.frames),
        "false_frames_tracked": share(c.frames_false_tracked, c.frames),
        "false_runs": {
            "n": len(c.false_runs),
            "median": float(np.median(c.false_runs)) if c.false_runs else 0,
            "longest": max(c.false_runs, default=0),
        },
        "side_right": share(c.side_right, len(c.errors_mm)),
        "side_unknown": share(c.side_unknown, len(c.errors_mm)),
        "id_switches_per_10000": share(c.switches * 10_000, c.frames),
        "back": c.back,
        "back_as_before": share(c.back_as_before, c.back),
        "appearances": len(c.waits),
        "wait_frames": {**points(c.waits, 50, 95), "worst": max(c.waits, default=0)},
        "joint_error_mm": {
            "mean": float(np.mean(c.errors_mm)) if c.errors_mm else float("nan"),
            **points(c.errors_mm, 50, 90, 99),
        },
        "stage_p50_us": {stage: float(np.median(us)) for stage, us in c.stages_us.items()},
        "stage_ran": {stage: share(len(us), c.frames) for stage, us in c.stages_us.items()},
        "failures": {k: [[f.sequence, f.frame] for f in c.failures if f.kind == k] for k in KINDS},
    }


def text(report: Mapping[str, Any]) -> str:
    """The report, a number a line."""
    wait, error, runs = report["wait_frames"], report["joint_error_mm"], report["false_runs"]
    lines = [
        f"frames            {report['frames']} in {report['sequences']} sequences",
        f"hands to find     {report['hands_to_find']}",
        f"recall            {100 * report['recall']:.2f} %, {100 * report['predicted']:.2f} % of them predicted",
        f"false hands       {100 * report['false_frames']:.3f} % of frames",
        f"  not predicted   {100 * report['false_frames_tracked']:.3f} %",
        f"  in a row        {runs['n']} times, {runs['median']:g} frames in the median, {runs['longest']} the longest",
        f"side right        {100 * report['side_right']:.2f} %",
        f"side unknown      {100 * report['side_unknown']:.2f} %",
        f"id switches       {report['id_switches_per_10000']:.1f} in 10,000 frames",
        f"back within 5 s   {report['back']}, {100 * report['back_as_before']:.0f} % of them with their id",
        f"frames until found, of {report['appearances']} appearances",
        f"  median          {wait['p50']:.0f}",
        f"  p95             {wait['p95']:.0f}",
        f"  worst           {wait['worst']}",
        "joint error, mm",
        *(f"  {name:<15} {value:.1f}" for name, value in error.items()),
        "stages, p50 where they ran",
        *(
            f"  {stage:<15} {us:.0f} us, in {100 * report['stage_ran'][stage]:.0f} % of frames"
            for stage, us in report["stage_p50_us"].items()
        ),
        "failures",
        *(f"  {kind:<15} {len(places)}" for kind, places in report["failures"].items()),
    ]
    return "\n".join(lines)


class Sheets:
    """Collects pictures of failures, a few a sequence, and draws a sheet a kind: truth left, published right."""

    def __init__(self) -> None:
        self.pictures: dict[str, list[Picture]] = {}
        self._taken: dict[tuple[str, int], list[int]] = {}

    def __call__(self, failure: Failure, scene: Scene, published: Sequence[Tracked]) -> None:
        pictures = self.pictures.setdefault(failure.kind, [])
        taken = self._taken.setdefault((failure.kind, failure.sequence), [])
        near = taken and failure.frame - taken[-1] < APART
        if len(pictures) < MOST and len(taken) < A_SEQUENCE and not near:
            taken.append(failure.frame)
            pictures.append(titled(f"{failure.sequence}:{failure.frame}", scene, published))

    def save(self, folder: Path) -> list[Path]:
        paths = [folder / f"{kind}.png" for kind in self.pictures]
        for path, pictures in zip(paths, self.pictures.values(), strict=True):
            save_png(path, contact_sheet(pictures, 4))
        return paths


def titled(title: str, scene: Scene, published: Sequence[Tracked]) -> Picture:
    """A frame with the true hands' joints, the same with the published ones', and a title."""
    from PIL import Image, ImageDraw

    view = view_of(scene.frame.intrinsics, [], PANEL)
    grey = depth_picture(scene.frame, [], view)
    shown = [hand for hand in scene.hands if hand.seen > 0]
    true = draw_joints(grey, [hand.joints_m for hand in shown], view)
    image = Image.fromarray(np.concatenate([true, draw_joints(grey, [p.pose.joints_m for p in published], view)], 1))
    pen = ImageDraw.Draw(image)
    pen.text((3, 2), f"{title} " + ", ".join(f"{h.side} {h.seen:.2f}" for h in shown), fill=(255, 255, 255))
    pen.text((PANEL[0] + 3, 2), ", ".join(f"{p.id}: {p.pose.side}" for p in published), fill=(255, 255, 255))
    return np.asarray(image, np.uint8)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m edge_hand.trainer.evaluate_scenes", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--frames", type=int, default=10_000, help="[%(default)s]")
    parser.add_argument("--per-sequence", type=int, default=PER_SEQUENCE, help="frames a sequence [%(default)s]")
    parser.add_argument("--first", type=int, default=0, help="number of the first sequence [%(default)s]")
    parser.add_argument("--fps", type=float, default=FPS, help="[%(default)s]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers and every failure here")
    parser.add_argument("--out", type=Path, metavar="DIR", help="draw sheets of failures here")
    parser.add_argument("--model", default=DEFAULT_MODEL.stem, help="the network: a name or a file [%(default)s]")
    parser.add_argument("--finder", default="finder", help="a name, a file or geometry [%(default)s]")
    args = parser.parse_args(arguments)
    from ..edge.engines import open_engine
    from ..edge.finder import open_finder
    from ..edge.tracker import Tracker

    sheets = Sheets() if args.out else None
    try:
        make_folders(args.out)
        make_room(args.json)
        engine, finder = open_engine(model=find_model(args.model)), open_finder(args.finder)
        report = evaluate_scenes(
            args.frames,
            lambda: Tracker(engine, finder),
            per_sequence=args.per_sequence,
            first=args.first,
            fps=args.fps,
            on_failure=sheets,
            progress=lambda n: print(f"\r{n} of {args.frames} frames", end="", file=sys.stderr),
        )
        print(file=sys.stderr)
        print(text(report))
        write_result({"model": engine.card.sha256, **report}, args.json)
        for path in sheets.save(args.out) if sheets else ():
            print(path)
    except (CommandError, ModelError, ValueError, OSError) as error:
        sys.exit(f"evaluate_scenes: {error}")


if __name__ == "__main__":
    main()
