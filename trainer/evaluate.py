"""Errors of a model against labels: on rendered hands, on public datasets, on labelled recordings.

The test stream's seeds are disjoint from the training stream's: unseen poses, shapes, views and noise. What is measured
stands in `metrics.py`; the datasets in `datasets/`; `docs/evaluation.md` says how to read the numbers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..edge.draw import save_png
from ..edge.engines import Engine, open_engine
from ..edge.look import trust
from ..edge.person import shape_of_frame
from ..edge.reading import predict
from ..edge.refit import Refit
from ..edge.tracker import Tracker
from ..hand.arrays import Array
from ..hand.crop import camera_from_crop, crop_depth
from ..hand.frames import DepthFrame, HandCrop, HandPrediction, HandRoi
from . import metrics
from .datasets import Dataset, DatasetError, Label, open_dataset, read_predictions, write_predictions
from .nets import NETS


class EvaluateError(Exception):
    """A set that cannot be evaluated, in one line."""


class Model(NamedTuple):
    """What to evaluate: an .onnx file with its card, opened with an engine, or the .pt checkpoint of a run; say hears
    which engine it became."""

    path: Path
    engine: str = "auto"
    threads: int = 1
    say: Callable[[str], None] | None = None

    def open(self) -> Engine:
        """Raises ModelError, and EvaluateError for a checkpoint that cannot be read and a network of something else."""
        if self.path.suffix == ".pt":
            from .checkpoint import TrainError
            from .torch_engine import TorchEngine

            try:
                return TorchEngine(self.path, self.threads)
            except TrainError as error:
                raise EvaluateError(str(error)) from None
        engine = open_engine(self.engine, self.path, self.threads, net=None, say=self.say)
        if engine.card.kind not in (net.module for net in NETS.values()):
            raise EvaluateError(f"model {self.path}: its kind is {engine.card.kind!r}; eval measures networks of hands")
        return engine


class Guess(NamedTuple):
    """A hand as a model sees it in a crop, m in the crop's frame: joints_m (21, 3) and vertices_m (V, 3) as published,
    raw_vertices_m (V, 3) before the refit; right_logit None if the net has no side; joints_free_m (21, 3) of the parts
    before limits and error_m (V,) that the net expects, None without a refit; presence_logit None if there is none."""

    joints_m: Array
    vertices_m: Array
    raw_vertices_m: Array
    right_logit: float | None
    joints_free_m: Array | None = None
    error_m: Array | None = None
    presence_logit: float | None = None


def predict_hand(engine: Engine, image: Array, distance_m: float, cube_m: float, refit: Refit) -> Guess:
    """Run a model of any kind on a crop's image (S, S) float32.

    A dgn's vertices are refitted as the daemon does it; the parameters of other nets are posed by their own module.
    """
    if hasattr(engine, "guess"):  # a checkpoint's net knows how to pose its own hand
        guess: Guess = engine.guess(image, distance_m, cube_m, refit)
        return guess
    if engine.card.kind == "dgn":
        crop = HandCrop(image, np.eye(3), distance_m, cube_m)
        return refitted(predict(engine, crop), refit)
    import torch

    from .nets import output_of

    net = import_module(f".nets.{engine.card.kind}", __package__)
    outputs = zip(engine.card.outputs, (torch.from_numpy(x) for x in engine.run(image[None, None])), strict=True)
    posed = net.estimate(output_of(net, dict(outputs)), torch.tensor([distance_m]), torch.tensor([cube_m]))
    joints, vertices = (x[0].numpy().astype(np.float64) for x in posed)
    return Guess(joints, vertices, vertices, None)


def refitted(prediction: HandPrediction, refit: Refit) -> Guess:
    """A dgn's hand as the daemon fits one that it never saw before, to joints and depth, but with bones of the frame:
    those of its parts, and then as its depth wants them."""
    raw = prediction.vertices_m.astype(np.float64)
    weights, points = trust(prediction.joint_error_m), prediction.points_m
    first = refit.solve(raw, points_m=points, weights=weights)
    shape = shape_of_frame(refit, first, points, weights)
    fit = refit(raw, shape=shape, points_m=points, weights=weights)
    logits = prediction.right_logit, prediction.presence_logit
    return Guess(fit.joints_m, fit.vertices_m, raw, logits[0], fit.joints_free_m, prediction.error_m, logits[1])


def evaluate(
    data: str,
    model: Model,
    n: int | None = None,
    *,
    workers: int = 1,
    finder: bool = False,
    out: Path | None = None,
    predictions: Path | None = None,
    score: Path | None = None,
) -> dict[str, Any]:
    """Errors (mm) over the first n frames of a set: synthetic:test|val|clean, or KIND:PATH of `datasets`.

    out is a folder for the picture of the success rates, predictions a text file to write (datasets only); workers
    are processes (synthetic only); finder looks for the hand as the daemon does instead of taking the truth's centre;
    score is a text file of predictions to take for the model's. Raises EvaluateError, ModelError.
    """
    kind, _, name = data.partition(":")
    try:
        if score:
            if finder or predictions:
                raise EvaluateError("eval: --score reads predictions; --finder and --predictions make them")
            result = score_predictions(data, score, n)
        elif kind == "synthetic":
            from .evaluate_synthetic import SETS, evaluate_synthetic

            if name not in SETS or finder or predictions:
                sets = ", ".join("synthetic:" + s for s in SETS)
                raise EvaluateError(f"--data {data}: possible are {sets}, without --finder and --predictions")
            result = evaluate_synthetic(name, model, n, workers)
        else:
            result = evaluate_dataset(_first(open_dataset(data), n), model, finder, predictions)
    except DatasetError as error:
        raise EvaluateError(str(error)) from None
    result = {"data": data, **result}
    if out is not None and "success" in result:
        rates = {"mean joint": result["success"]["mean_joint"], "worst joint": result["success"]["worst_joint"]}
        save_png(out / "success.png", metrics.success_picture(rates, f"frames of {data}"))
    return result


def evaluate_dataset(dataset: Dataset, model: Model, finder: bool, predictions: Path | None) -> dict[str, Any]:
    """Errors over the joints of the dataset's scheme that are alike enough to ours; parts_joint_mm before limits."""
    engine = model.open()
    joints_mm, free_mm = _predict_dataset(dataset, engine, finder)
    if predictions:
        write_predictions(predictions, joints_mm, dataset.intrinsics)
    scored = dataset.scheme.scored
    result = report_of(dataset, joints_mm, scored)
    if np.isfinite(free_mm).any():
        free = metrics.joint_errors(free_mm, dataset.truth_mm)[:, scored]
        result["parts_joint_mm"] = metrics.rounded(np.nanmean(free))
    centre = "finder" if finder else "truth"
    return result | {"centre": centre, "model": engine.card.sha256, "model_file": str(model.path)}


def score_predictions(data: str, file: Path, n: int | None = None) -> dict[str, Any]:
    """Errors (mm) of predictions in a text file over all joints of a dataset's protocol; depth is not read."""
    if data.startswith("synthetic:"):
        raise EvaluateError(f"--data {data}: predictions of rendered hands cannot be scored")
    dataset = _first(open_dataset(data), n)
    joints = read_predictions(file, dataset, len(dataset.labels))
    everything = np.ones(len(dataset.scheme.names), bool)
    return report_of(dataset, joints, everything) | {"predictions": str(file)}


def report_of(dataset: Dataset, joints_mm: Array, scored: NDArray[np.bool_]) -> dict[str, Any]:
    """The report of predictions (N, J, 3) mm in a dataset's own scheme, over the joints scored (J,) bool."""
    keep = np.flatnonzero(scored)
    place = {int(old): new for new, old in enumerate(keep)}
    result = metrics.report(
        joints_mm[:, keep],
        dataset.truth_mm[:, keep],
        [dataset.scheme.names[i] for i in keep],
        bones=[(place[a], place[b]) for a, b in dataset.scheme.bones if a in place and b in place],
        follows=dataset.follows,
        persons=[label.person for label in dataset.labels],
    )
    return result | {"protocol": dataset.protocol}


def table(result: dict[str, Any]) -> str:
    """The result in a few lines, for people."""
    if "joint_mm" not in result:
        return f"{result['n']} frames of {result['data']}: no hand was found"
    j, w = result["joint_mm"], result["worst_joint"]
    lines = [
        f"{result['n']} frames of {result['data']}, a hand in {result['found']:.1%}",
        f"joints   mean {j['mean']}  p50 {j['p50']}  p90 {j['p90']}  p99 {j['p99']} mm; "
        f"tips {result.get('tips_mm', '-')}, aligned {result['pa_mm']}",
        f"worst joint below 20 mm in {w['below_20_mm']:.1%}, below 40 mm in {w['below_40_mm']:.1%}"
        + (f"; side right in {result['side_right']:.1%}" if result.get("side_right") is not None else ""),
    ]
    lines.append("each joint, mm")
    for finger, names in groupby(result["per_joint_mm"], lambda name: name.partition("_")[0]):
        each = (f"{name.removeprefix(finger).strip('_')} {result['per_joint_mm'][name]:.1f}" for name in names)
        lines.append(f"  {finger:<14} {'  '.join(each).strip()}")
    if "vertex_mm" in result:
        v = result["vertex_mm"]
        refit = "" if v["before_refit"] is None else f"; before the refit {v['before_refit']} mm"
        lines.append(f"vertices {v['mean']} mm{refit}")
    if "presence" in result:
        seen = result["presence"]
        lines.append(f"hands seen {seen['hands_seen']:.2%}, false hands {seen['false_hands']:.2%} of crops without one")
    for key, text in (("still_jitter_mm", "jitter, held still, mm a frame"), ("bone_std_mm", "bones vary by, mm")):
        if key in result:
            lines.append(f"{text}: {result[key]}")
    for name, group in result.get("groups", {}).items():
        lines.append(f"  {name:<14} {group['n']:>6} frames  joints {group['joint_mm']:.2f} mm")
    return "\n".join(lines)


def _predict_dataset(dataset: Dataset, engine: Engine, finder: bool) -> tuple[Array, Array]:
    """Predictions (N, J, 3) mm in the dataset's scheme, NaN where no hand was found, and those of the parts alone."""
    if finder and (engine.card.kind != "dgn" or hasattr(engine, "guess")):
        raise EvaluateError(f"--finder: the daemon runs exported dgn, and {engine.card.name} is none")
    tracker, refit = (Tracker(engine, confirm=False) if finder else None), Refit()
    truth = dataset.truth_mm
    joints, parts = np.full_like(truth, np.nan), np.full_like(truth, np.nan)
    progress = Progress(len(truth))
    for i, (label, frame) in enumerate(zip(dataset.labels, dataset.frames(), strict=True)):
        if tracker:
            tracker.reset()
            found = [dataset.scheme.of_ours(hand.pose.joints_m) * 1e3 for hand in tracker.process(frame)]
            if found:
                middle = truth[i].mean(0)
                joints[i] = min(found, key=lambda its: float(np.linalg.norm(its.mean(0) - middle)))
        else:
            ours, free = predict_labelled(frame, label, engine, refit)
            joints[i] = dataset.scheme.of_ours(ours) * 1e3
            if free is not None:
                parts[i] = dataset.scheme.of_ours(free) * 1e3
        progress.add(1, joints[i : i + 1], truth[i : i + 1])
    progress.end()
    return joints, parts


def predict_labelled(frame: DepthFrame, label: Label, engine: Engine, refit: Refit) -> tuple[Array, Array | None]:
    """Our joints (21, 3) m in the camera frame, and those of the parts, from a crop about the truth's centre."""
    roi = HandRoi(label.side, label.joints_mm.mean(0) / 1e3, engine.card.cube_m, 1.0)
    crop = crop_depth(frame, roi, engine.card.crop_size, mirrored=label.side == "left")
    guess = predict_hand(engine, crop.image, crop.distance_m, crop.cube_m, refit)
    free = guess.joints_free_m
    return camera_from_crop(crop, guess.joints_m), None if free is None else camera_from_crop(crop, free)


class Progress:
    """A line on the terminal: how far, how fast, how long still, and the error so far; nothing where there is none."""

    def __init__(self, n: int) -> None:
        self.n, self.done, self.begun, self.said = n, 0, time.monotonic(), 0.0
        self.total, self.found = 0.0, 0

    def add(self, n: int, joints_mm: Array, truth_mm: Array) -> None:
        error = metrics.joint_errors(joints_mm, truth_mm).mean(1)
        self.done += n
        self.total, self.found = self.total + float(np.nansum(error)), self.found + int(np.isfinite(error).sum())
        now = time.monotonic()
        if sys.stderr.isatty() and (now - self.said > 0.5 or self.done >= self.n):
            self.said = now
            print("\r" + self.line(now - self.begun), end="", file=sys.stderr, flush=True)

    def line(self, elapsed_s: float) -> str:
        rate = self.done / max(elapsed_s, 1e-9)
        mean = self.total / max(self.found, 1)
        left_s = (self.n - self.done) / max(rate, 1e-9)
        return f"{self.done:>6} / {self.n}  {rate:.0f}/s  {left_s:.0f} s left  joints {mean:.2f} mm  "

    def end(self) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)


def _first(dataset: Dataset, n: int | None) -> Dataset:
    """The dataset's first n frames."""
    if n is None or n >= len(dataset.labels):
        return dataset
    all_frames = dataset.frames
    return Dataset(
        dataset.name, dataset.scheme, dataset.intrinsics, dataset.labels[:n], lambda: islice(all_frames(), n),
        dataset.protocol,
    )  # fmt: skip
