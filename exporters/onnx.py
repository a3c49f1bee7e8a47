"""torch to ONNX, with a card and a parity check in millimetres that refuses what does not match.

edge-hand export --checkpoint runs/dgn/last.pt --out edge/models/dgn-nano.onnx
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from ..edge.engines import open_engine
from ..edge.networks.card import ModelCard, card_path, sha256
from ..hand.whole import refusal, try_writing
from ..trainer.checkpoint import TrainConfig, load_net, prior, share_without, without_folders
from ..trainer.losses import metres
from ..trainer.nets import NETS, net_module, output_of
from ..trainer.synth.samples import CUBE_M, Generator, Sample
from . import ExportError
from .calibration import rendered
from .quantize import quantize
from .strided import strided

OPSET = 17
PROBES = 64  # crops of the validation stream
LIMITS_MM = {"fp32": 0.05, "int8": 2.0}  # mean distance allowed between the vertices of the engine and of torch


class Deployed(nn.Module):
    """The network as the daemon calls it: plain outputs, those of its module's OUTPUTS, and the crop's logits without
    the priors that the training set's shares of left hands and of no hands put into them."""

    def __init__(self, net: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.net = strided(net)
        self.config = config
        self.names: tuple[str, ...] = net_module(config.net).OUTPUTS
        self.priors = {"right_logit": prior(config.left_share), "presence_logit": prior(share_without(config))}

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        out = self.net(image)
        return tuple(getattr(out, name) - self.priors.get(name, 0.0) for name in self.names)


def export(checkpoint: Path, out: Path, metrics: dict[str, Any] | None = None, precision: str = "fp32") -> ModelCard:
    """Write out (an .onnx file) and its card; nothing is left behind if the parity check fails."""
    if precision not in LIMITS_MM:
        raise ExportError(f"--precision {precision}: possible are {', '.join(LIMITS_MM)}")
    net, config, seen = load_net(checkpoint)
    if precision == "int8" and NETS[config.net].module != "dgn":
        raise ExportError(f"--precision int8: 8 bits are for Dual Grid Nets; {config.net} can be had in fp32")
    config = without_folders(config)
    deployed = Deployed(net, config).eval()
    module = net_module(config.net)
    image = torch.ones(1, 1, module.IMAGE_PX, module.IMAGE_PX)
    with part_of(out) as temporary:
        outputs = to_onnx(deployed, "image", image, module.OUTPUTS, temporary)
        if precision == "int8":
            quantize(temporary, temporary, rendered())
        else:
            store_as_half(temporary)
        card = ModelCard(
            name=out.stem,
            kind=NETS[config.net].module,
            sha256=sha256(temporary),
            precision=precision,
            crop_size=module.IMAGE_PX,
            cube_m=CUBE_M,
            inputs={"image": list(image.shape)},
            outputs=outputs,
            training={
                **asdict(config),
                "seen": seen,
                "parameters": sum(p.numel() for p in net.parameters()),
                "command": command(config),
                "commit": commit(),
            },
            metrics={k: v for k, v in (metrics or {}).items() if k != "model_file"},  # a path of this machine
            confidence=(metrics or {}).get("confidence", {}).get("calibration"),
        )
        card.write(temporary)
        parity = compare(deployed, temporary)
        if not parity["mean_mm"] <= LIMITS_MM[precision]:
            raise ExportError(
                f"export {out}: the engine is {parity['mean_mm']:.3f} mm from torch on {parity['probes']} crops "
                f"(at most {parity['max_mm']:.1f}); allowed are {LIMITS_MM[precision]} mm"
            )
        if metrics and metrics.get("model", card.sha256) != card.sha256:
            raise ExportError(f"export {out}: the metrics are of another model ({metrics['model'][:12]})")
        card = replace(card, parity=parity)
        os.replace(temporary, out)
        card.write(out)
        return card


def read_metrics(path: Path) -> dict[str, Any]:
    """What `edge-hand eval --json` wrote, for a card. Raises ExportError."""
    try:
        metrics = json.loads(path.read_text())
    except OSError as error:
        raise ExportError(f"--metrics {path}: cannot be read ({refusal(error)})") from None
    except ValueError:
        metrics = None
    sound = isinstance(metrics, dict) and isinstance(metrics.get("model"), str)
    if not sound or not isinstance(metrics.get("confidence", {}), dict):
        raise ExportError(f"--metrics {path}: not the JSON that `edge-hand eval --json` writes")
    return metrics  # type: ignore[no-any-return]


def room_for(out: Path) -> None:
    """Make the folder of an export, and try its place before the work. Raises ExportError."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try_writing(out)
        try_writing(card_path(out))
    except OSError as error:
        raise ExportError(f"export {out}: it cannot be written there ({refusal(error)})") from None


@contextmanager
def part_of(out: Path) -> Iterator[Path]:
    """Where to write what becomes out if nothing is amiss; what is left there in the end is removed, its card too."""
    room_for(out)
    temporary = out.with_name(out.stem + ".part.onnx")
    try:
        yield temporary
    finally:
        for leftover in (temporary, card_path(temporary)):
            leftover.unlink(missing_ok=True)


def to_onnx(net: nn.Module, name: str, example: Tensor, outputs: Sequence[str], file: Path) -> dict[str, list[int]]:
    """Write a network whose input of that name is like the example; the shapes of its outputs by name."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (example,), str(file), input_names=[name], output_names=list(outputs), opset_version=OPSET,
            dynamo=False,
        )  # fmt: skip
        return {o: list(tensor.shape) for o, tensor in zip(outputs, net(example), strict=True)}


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


def compare(deployed: Deployed, model: Path) -> dict[str, Any]:
    """Distance between the vertices of torch and of the engine on the probe crops, mm, and of the crops' logits."""
    engine = open_engine("onnxruntime", model, net=None)
    generator = Generator("val", seed=1, kind=deployed.config.kind, image_px=engine.card.crop_size)
    worst, total, worst_logit = 0.0, 0.0, 0.0
    for i in range(PROBES):
        sample = generator.sample(i)
        image = np.ascontiguousarray(sample.image[None, None])
        with torch.no_grad():
            expected = deployed(torch.from_numpy(image))
        got = tuple(torch.from_numpy(o) for o in engine.run(image))
        expected_m, got_m = (vertices_m(deployed.config.net, deployed.names, o, sample) for o in (expected, got))
        off = (expected_m - got_m).norm(dim=-1) * 1e3
        worst, total = max(worst, float(off.max())), total + float(off.mean())
        logits = [
            float((a - b).abs().max()) for n, a, b in zip(deployed.names, expected, got, strict=True) if "log" in n
        ]
        worst_logit = max(worst_logit, *logits, 0.0)
    return {"max_mm": worst, "mean_mm": total / PROBES, "max_logit": worst_logit, "probes": PROBES}


def vertices_m(net: str, names: Iterable[str], outputs: Iterable[Tensor], sample: Sample) -> Tensor:
    """The vertices (V, 3) m that a network's outputs mean for a sample's crop, before any refit."""
    distance, cube = torch.tensor([sample.distance_m]), torch.tensor([sample.cube_m])
    named = dict(zip(names, outputs, strict=True))
    if "vertices_uvd" in named:
        return metres(named["vertices_uvd"], distance, cube)[0]
    module = net_module(net)
    vertices: Tensor = module.estimate(output_of(module, named), distance, cube)[1]
    return vertices[0]


def command(config: TrainConfig) -> str:
    """The command that trains the like, for the card: the options that are not the defaults, or depend on others."""
    default, always = asdict(TrainConfig()), ("samples", "warmup", "coarse")
    given = {name: value for name, value in asdict(config).items() if name in always or value != default[name]}
    words = [f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in given.items()]
    return " ".join(["edge-hand train --out RUN", *words])


def commit() -> str:
    """The project's commit, for the card; empty outside a checkout."""
    here = Path(__file__).parent
    done = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()
