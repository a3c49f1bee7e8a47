"""Errors of a model on rendered hands with labels: joints, and vertices before and after the refit.

The test stream's seeds are disjoint from the training stream's: unseen poses, shapes, views and noise.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..edge.engines import Engine, predict
from ..edge.refit import Refit
from ..hand.crop import points_from_uvd
from ..hand.frames import HandCrop
from .synth.samples import STREAMS, Generator

TEST_SAMPLES = 5000


class EvaluateError(Exception):
    """A set that cannot be evaluated, in one line."""


def evaluate(data: str, engine: Engine, n: int | None = None) -> dict[str, Any]:
    """Errors (mm) over n samples of synthetic:val or synthetic:test, through the daemon's engine and refit.

    joint_mm and vertex_mm are of the refitted kinematic hand; before_refit is the network's own vertices,
    parts_joint_mm the joints of the parts' similarities before limits and bone lengths are imposed.
    """
    kind, _, stream = data.partition(":")
    if kind != "synthetic" or stream not in STREAMS:
        raise EvaluateError(f"--data {data}: possible are {', '.join('synthetic:' + s for s in STREAMS)}")
    n = n or TEST_SAMPLES
    generator, refit = Generator(stream, left_share=0.2), Refit()
    joints, vertices, before, parts, worst, expected, sides = [], [], [], [], [], [], []
    for i in range(n):
        sample = generator.sample(i)
        image = np.ascontiguousarray(sample.image)
        if not sample.is_right:  # seen as the daemon sees it: the side from the image, the mesh from its mirror image
            sides.append(predict(engine, _crop(image, sample)).right_logit < 0)
            image = np.ascontiguousarray(image[:, ::-1])
        crop = _crop(image, sample)
        prediction = predict(engine, crop)
        if sample.is_right:
            sides.append(prediction.right_logit > 0)
        d, c = float(sample.distance_m), float(sample.cube_m)
        true_joints = points_from_uvd(sample.joints_uvd.astype(np.float64), d, c)
        true_vertices = points_from_uvd(sample.vertices_uvd.astype(np.float64), d, c)
        raw = points_from_uvd(prediction.vertices_uvd.astype(np.float64), d, c)
        fit = refit(raw)
        each = _mm(fit.joints_m, true_joints)
        joints.append(each)
        worst.append(each.max())
        vertices.append(_mm(fit.vertices_m, true_vertices).mean())
        before.append(_mm(raw, true_vertices).mean())
        parts.append(_mm(fit.joints_free_m, true_joints).mean())
        expected.append(prediction.error.mean() * c * 500)
        if sys.stderr.isatty() and i % 50 == 49:
            print(f"\r{i + 1} / {n}  joints {np.mean(joints):.2f} mm", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    j = np.stack(joints)
    return {
        "data": data,
        "n": n,
        "joint_mm": {"mean": _r(j.mean()), **{f"p{p}": _r(np.percentile(j, p)) for p in (50, 90, 99)}},
        "vertex_mm": {"mean": _r(np.mean(vertices)), "before_refit": _r(np.mean(before))},
        "parts_joint_mm": _r(np.mean(parts)),
        "tips_mm": _r(j[:, 4::4].mean()),
        "worst_joint": {f"below_{m}_mm": _r(np.mean(np.array(worst) < m)) for m in (20, 40)},
        "side_right": _r(np.mean(sides)),
        "expected_error_correlation": _r(np.corrcoef(expected, before)[0, 1]),
        "model": engine.card.sha256,
    }


def table(result: dict[str, Any]) -> str:
    j, v = result["joint_mm"], result["vertex_mm"]
    return (
        f"{result['n']} samples of {result['data']}\n"
        f"joints   mean {j['mean']}  p50 {j['p50']}  p90 {j['p90']}  p99 {j['p99']} mm; tips {result['tips_mm']}\n"
        f"vertices refitted {v['mean']}, before the refit {v['before_refit']} mm\n"
        f"worst joint below 20 mm in {result['worst_joint']['below_20_mm']:.1%}, below 40 mm in "
        f"{result['worst_joint']['below_40_mm']:.1%}; side right in {result['side_right']:.1%}"
    )


def _crop(image: Any, sample: Any) -> HandCrop:
    return HandCrop(image, np.eye(3), float(sample.distance_m), float(sample.cube_m))


def _mm(a: Any, b: Any) -> Any:
    return np.linalg.norm(a - b, axis=-1) * 1e3


def _r(x: Any) -> float:
    return round(float(x), 4)
