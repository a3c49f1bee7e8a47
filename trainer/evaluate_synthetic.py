"""Errors on rendered hands, which have labels for every vertex and cost nothing but time: several processes measure.

A sample is its seed, so `synthetic:test` is the same 20,000 hands for ever, as long as the trainer draws them alike.
"""

from __future__ import annotations

import multiprocessing as mp
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..edge.engines import Engine
from ..edge.reading import joint_weights
from ..edge.refit import Refit
from ..edge.visibility import visible
from ..hand.arrays import Array
from ..hand.crop import points_from_uvd, square_camera
from ..hand.frames import DepthFrame
from ..hand.skeleton import JOINT_NAMES
from . import metrics
from .evaluate import EvaluateError, Model, Progress, predict_hand
from .processes import ONE_THREAD, environment, when_parent_ends
from .reliability import confidence_report
from .synth.samples import Generator, Sample

SETS = {"test": "full", "val": "full", "clean": "clean"}  # the set's name: the kind of its samples
TEST_SAMPLES = 20_000
LEFT_SHARE = 0.2
EVERY_WITHOUT = 10  # one crop without a hand for so many with one
CHUNK = 50  # samples a worker measures at a time
DEPTH_UNIT_M = 1e-4  # of a crop taken for a frame
HIDDEN_M = 0.03  # a joint with a surface this far in front of it is not seen
END_ON, FACING = np.cos(np.radians([40, 55]))  # fingers that point at the camera; palms and backs that face it


class Measured(NamedTuple):
    """Of rendered samples: joints and their truth (N, 21, 3) mm; means over the hand (N,) mm of the parts' joints, the
    vertices, those before the refit and the error that the net expects of these; whether the side was right (NaN:
    unknown) and whether a hand was seen at all (NaN: unknown); whether one was seen in a crop without (NaN: not tried);
    the view's name; hidden joints; of each joint (N, 21) the error, mm, that the net expects (NaN: it expects none) and
    whether the depth shows it (`visibility.visible`)."""

    joints_mm: Array
    truth_mm: Array
    parts: Array
    vertices: Array
    raw: Array
    expected: Array
    side_right: Array
    present: Array
    false_hand: Array
    view: Array
    hidden: Array
    expected_joints: Array
    visible: Array


def evaluate_synthetic(stream: str, model: Model, n: int | None = None, workers: int = 1) -> dict[str, Any]:
    """Errors over n rendered samples. joint_mm and vertex_mm are as published, after the refit; before_refit is the
    network's own vertices, parts_joint_mm the joints of the parts' similarities before limits and bone lengths;
    confidence has the constants for the model's card and how true they are (`reliability.py`)."""
    n = n or TEST_SAMPLES
    sha256 = model.open().card.sha256  # and refuse a wrong model before processes start
    model = model._replace(say=None)  # it has been said
    chunks = [range(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK)]
    columns: list[Measured] = []
    progress = Progress(n)
    for measured in _over_processes(partial(_measure, stream, model, sha256), chunks, workers):
        columns.append(measured)
        progress.add(len(measured.parts), measured.joints_mm, measured.truth_mm)
    progress.end()
    m = Measured(*(np.concatenate(column) for column in zip(*columns, strict=True)))
    result = metrics.report(m.joints_mm, m.truth_mm, JOINT_NAMES)
    error = metrics.joint_errors(m.joints_mm, m.truth_mm).mean(1)
    result["vertex_mm"] = {
        "mean": metrics.rounded(m.vertices.mean()),
        "before_refit": metrics.rounded(m.raw.mean()) if np.isfinite(m.parts).all() else None,
    }
    if np.isfinite(m.present).all():
        result["presence"] = {
            "hands_seen": metrics.rounded(m.present.mean()),
            "false_hands": metrics.rounded(np.nanmean(m.false_hand)),
            "crops_without": int(np.isfinite(m.false_hand).sum()),
        }
    if np.isfinite(m.parts).all():
        result["parts_joint_mm"] = metrics.rounded(m.parts.mean())
    result["side_right"] = metrics.rounded(m.side_right.mean()) if np.isfinite(m.side_right).all() else None
    if np.isfinite(m.expected).all() and len(error) > 1:
        result["expected_error_correlation"] = metrics.rounded(np.corrcoef(m.expected, m.raw)[0, 1])
    if np.isfinite(m.expected_joints).all() and len(error) > 1:
        errors_mm = metrics.joint_errors(m.joints_mm, m.truth_mm)
        result["confidence"] = confidence_report(m.expected_joints * 1e-3, m.visible, errors_mm * 1e-3)
    bins = {"0-2 hidden": m.hidden < 3, "3-7 hidden": (m.hidden >= 3) & (m.hidden < 8), "8+ hidden": m.hidden >= 8}
    groups = {str(view): m.view == view for view in np.unique(m.view)} | bins
    result["groups"] = {
        name: {"n": int(mine.sum()), "joint_mm": metrics.rounded(error[mine].mean())}
        for name, mine in groups.items()
        if mine.any()
    }
    return result | {"model": sha256, "model_file": str(model.path)}


_opened: dict[tuple[str, Model, str], tuple[Generator, Generator, Engine, Refit]] = {}  # of this worker process


def _measure(stream: str, model: Model, sha256: str, indices: Sequence[int]) -> Measured:
    key = stream, model, sha256  # a training run writes a new network under the same name
    if key not in _opened:
        engine = model.open()
        kind, size = SETS[stream], engine.card.crop_size
        share = 0.0 if kind == "clean" else LEFT_SHARE
        name = "val" if stream == "val" else "test"
        hands = Generator(name, left_share=share, kind=kind, image_px=size)
        others = Generator(name, left_share=share, negative_share=1.0, kind=kind, image_px=size)
        _opened[key] = hands, others, engine, Refit()
    hands, others, engine, refit = _opened[key]
    rows = []
    for i in indices:
        row = measure_sample(hands.sample(i), engine, refit)
        if i % EVERY_WITHOUT == 0 and np.isfinite(row.present):
            other = others.sample(i)
            crop = np.ascontiguousarray(other.image), float(other.distance_m), float(other.cube_m)
            row = row._replace(false_hand=np.float64((predict_hand(engine, *crop, refit).presence_logit or 0.0) > 0))
        rows.append(row)
    return Measured(*(np.stack(column) for column in zip(*rows, strict=True)))


def measure_sample(sample: Sample, engine: Engine, refit: Refit) -> Measured:
    """One sample, without the leading axis. A left hand is seen as the daemon sees it: its side from the image, its
    mesh from the mirror image."""
    d, c = float(sample.distance_m), float(sample.cube_m)
    image = np.ascontiguousarray(sample.image)
    upright = image if sample.is_right else np.ascontiguousarray(image[:, ::-1])
    guess = predict_hand(engine, upright, d, c, refit)
    logit = guess.right_logit if sample.is_right else predict_hand(engine, image, d, c, refit).right_logit
    joints = points_from_uvd(sample.joints_uvd.astype(np.float64), d, c)
    vertices = points_from_uvd(sample.vertices_uvd.astype(np.float64), d, c)
    free, expected = guess.joints_free_m, guess.error_m
    return Measured(
        guess.joints_m * 1e3,
        joints * 1e3,
        np.float64(np.nan if free is None else _mm(free, joints)),
        np.float64(_mm(guess.vertices_m, vertices)),
        np.float64(_mm(guess.raw_vertices_m, vertices)),
        np.float64(np.nan if expected is None else expected.mean() * 1e3),
        np.float64(np.nan if logit is None else (logit > 0) == bool(sample.is_right)),
        np.float64(np.nan if guess.presence_logit is None else guess.presence_logit > 0),
        np.float64(np.nan),
        np.asarray(view_of(joints), "U8"),
        np.asarray(hidden_joints(upright, sample.joints_uvd, c)),
        np.full(21, np.nan) if expected is None else joint_weights()[0] @ expected * 1e3,
        visible(crop_frame(upright, d, c), guess.joints_m),
    )


def crop_frame(image: Array, distance_m: float, cube_m: float) -> DepthFrame:
    """A crop's image (S, S) as the depth frame of its crop camera; what lies outside the cube has no reading."""
    z = np.where(np.abs(image) < 1, distance_m + image * (cube_m / 2), 0)
    counts = np.rint(z / DEPTH_UNIT_M).astype(np.uint16)
    return DepthFrame("crop", 0, 0, counts, DEPTH_UNIT_M, square_camera(len(image), distance_m, cube_m))


def view_of(joints_m: Array) -> str:
    """From where the camera, at the origin, sees a right hand (21, 3) m: its palm, back, side, or fingers end-on."""
    wrist, index, middle, little = (joints_m[JOINT_NAMES.index(f"{j}")] for j in
                                    ("wrist", "index_mcp", "middle_mcp", "little_mcp"))  # fmt: skip
    along = middle - wrist
    back = np.cross(little - index, along)  # x (towards the little finger) times y is z, out of the back of the hand
    to_camera = -joints_m.mean(0)
    end_on, facing = (v @ to_camera / (np.linalg.norm(v) * np.linalg.norm(to_camera)) for v in (along, back))
    if abs(end_on) > END_ON:
        return "end-on"
    return "back" if facing > FACING else "palm" if facing < -FACING else "side"


def hidden_joints(image: Array, joints_uvd: Array, cube_m: float) -> int:
    """How many joints (21, 3) have a surface well in front of them in the crop's image (S, S)."""
    at = ((joints_uvd[:, :2] + 1) / 2 * len(image)).astype(int).clip(0, len(image) - 1)
    return int((joints_uvd[:, 2] - image[at[:, 1], at[:, 0]] > HIDDEN_M / (cube_m / 2)).sum())


def _over_processes(
    work: Callable[[Sequence[int]], Measured], chunks: Sequence[Sequence[int]], workers: int
) -> Iterator[Measured]:
    """The chunks' results in their order, from so many processes; from this one if that is enough."""
    if workers <= 1 or len(chunks) == 1:
        yield from map(work, chunks)
        return
    spawn = mp.get_context("spawn")
    end = partial(os._exit, 1)
    with (
        environment(ONE_THREAD),
        ProcessPoolExecutor(min(workers, len(chunks)), spawn, when_parent_ends, (end,)) as pool,
    ):
        try:
            yield from pool.map(work, chunks)
        except BrokenProcessPool:
            raise EvaluateError("a worker process died; its message, if it left one, stands above") from None


def _mm(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b, axis=-1).mean() * 1e3)
