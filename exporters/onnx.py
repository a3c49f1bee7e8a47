"""torch to ONNX, with a card and a parity check in millimetres that refuses what does not match.

edge-hand export --checkpoint runs/dgn/last.pt --out edge/models/dgn-nano.onnx
"""

from __future__ import annotations

import math
import os
import subprocess
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from ..edge.engines import open_engine
from ..edge.model_card import ModelCard, card_path, sha256
from ..hand.crop import CROP_SIZE, points_from_uvd
from ..trainer.nets.dgn import DualGridNet
from ..trainer.synth.samples import CUBE_M, Generator
from ..trainer.train import TrainConfig, load_net
from .quantize import quantize

OPSET = 17
PROBES = 64  # crops of the validation stream
LIMITS_MM = {"fp32": 0.05, "int8": 2.0}  # mean distance allowed between the vertices of the engine and of torch


class ExportError(Exception):
    """An export that was refused, in one line."""


class Deployed(nn.Module):
    """The network as the daemon calls it: fixed shapes, plain outputs, and the side's logit without the prior that
    the training set's share of left hands put into it."""

    def __init__(self, net: DualGridNet, left_share: float) -> None:
        super().__init__()
        self.net = net
        self.prior = math.log((1 - left_share) / left_share) if 0 < left_share < 1 else 0.0

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        out = self.net(image)
        return out.vertices_uvd, out.log_error[..., 0], out.hand_logit, out.right_logit - self.prior


def export(checkpoint: Path, out: Path, metrics: dict[str, Any] | None = None, precision: str = "fp32") -> ModelCard:
    """Write out (an .onnx file) and its card; nothing is left behind if the parity check fails."""
    if precision not in LIMITS_MM:
        raise ExportError(f"--precision {precision}: possible are {', '.join(LIMITS_MM)}")
    net, config, seen = load_net(checkpoint)
    deployed = Deployed(net, config.left_share).eval()
    image = torch.ones(1, 1, CROP_SIZE, CROP_SIZE)
    names = ["vertices", "log_error", "hand_logit", "right_logit"]
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.stem + ".part.onnx")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                deployed, (image,), str(temporary), input_names=["image"], output_names=names, opset_version=OPSET,
                dynamo=False,
            )  # fmt: skip
            shapes = [list(o.shape) for o in deployed(image)]
        if precision == "int8":
            quantize(temporary, temporary)
        else:
            store_as_half(temporary)
        card = ModelCard(
            name=out.stem,
            kind=config.net,
            sha256=sha256(temporary),
            precision=precision,
            crop_size=CROP_SIZE,
            cube_m=CUBE_M,
            inputs={"image": list(image.shape)},
            outputs=dict(zip(names, shapes, strict=True)),
            training={
                **asdict(config),
                "seen": seen,
                "command": command(config),
                "commit": commit(),
            },
            metrics=metrics or {},
        )
        card.write(temporary)
        parity = compare(deployed, temporary)
        if parity["mean_mm"] > LIMITS_MM[precision]:
            raise ExportError(
                f"export {out}: the engine is {parity['mean_mm']:.3f} mm from torch on {parity['probes']} crops "
                f"(at most {parity['max_mm']:.1f}); allowed are {LIMITS_MM[precision]} mm"
            )
        if metrics and metrics.get("model", card.sha256) != card.sha256:
            raise ExportError(f"export {out}: the metrics are of another model ({metrics['model'][:12]})")
        card = ModelCard(**{**asdict(card), "parity": parity})
        os.replace(temporary, out)
        card.write(out)
        return card
    finally:
        for leftover in (temporary, card_path(temporary)):
            leftover.unlink(missing_ok=True)


def store_as_half(model: Path) -> None:
    """Halve the file: large weights are stored in 16 bits and cast when the model is loaded; it computes in 32."""
    graph = (proto := onnx.load(model)).graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or math.prod(tensor.dims) < 1024:
            continue
        name, half = tensor.name, numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, name + ":half"))
        casts.append(helper.make_node("Cast", [name + ":half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(proto)
    onnx.save(proto, model)


def compare(deployed: nn.Module, model: Path) -> dict[str, Any]:
    """Distance between the vertices of torch and of the engine on the probe crops, mm, and of the other outputs."""
    engine = open_engine("onnxruntime", model)
    generator = Generator("val", seed=1)
    worst, total, worst_logit = 0.0, 0.0, 0.0
    for i in range(PROBES):
        sample = generator.sample(i)
        image = np.ascontiguousarray(sample.image[None, None])
        with torch.no_grad():
            expected = [o.numpy() for o in deployed(torch.from_numpy(image))]
        got = engine.run(image)
        points = [
            points_from_uvd(v[0][0].astype(np.float64), sample.distance_m, sample.cube_m) for v in (expected, got)
        ]
        distance = np.linalg.norm(points[0] - points[1], axis=1) * 1e3
        worst, total = max(worst, float(distance.max())), total + float(distance.mean())
        worst_logit = max(
            worst_logit, *(float(np.abs(a - b).max()) for a, b in zip(expected[1:], got[1:], strict=True))
        )
    return {"max_mm": worst, "mean_mm": total / PROBES, "max_logit": worst_logit, "probes": PROBES}


def command(config: TrainConfig) -> str:
    """The command that trains the like, for the card."""
    given = {name: getattr(config, name) for name in ("net", "width", "samples", "batch", "lr", "seed")}
    return "edge-hand train --out RUN " + " ".join(f"--{name} {value}" for name, value in given.items())


def commit() -> str:
    """The project's commit, for the card; empty outside a checkout."""
    here = Path(__file__).parent
    done = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()
