"""A trained finder to the ONNX file that the daemon runs, with its card; refused if it does not agree with torch.

python -m edge_hand.exporters.finder --checkpoint runs/finder/last.pt --cache runs/rooms --out edge/models/finder.onnx

The heat becomes a log-odds that can be believed: the network's training favours peaks, so its logit is scaled and
shifted (Platt 1999) until the share of peaks that are hands is what it says, on scenes that no other number comes from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from ..edge.engines import open_engine
from ..edge.finder import CUBE_M, INPUT, OUTPUTS, PICTURE, THRESHOLD, Maps, Part, network_input, proposals
from ..edge.networks.card import ModelCard, sha256
from ..hand.arrays import Array
from ..hand.frames import HandRoi
from ..trainer.checkpoint import TrainConfig, TrainError
from ..trainer.synth.pictures import SHARD, Hands, depth_m, in_frame, open_shards
from ..trainer.train_finder import load_finder, matches, score
from . import ExportError
from .onnx import commit, part_of, store_as_half, to_onnx
from .quantize import quantize_where

MEASURED, OTHERS = 2000, 1000  # pictures of "val" for the metrics; those after them are for scales, scores and parity
CALIBRATION = 256  # pictures for the scales of 8 bits
LIMITS = {"fp32": 0.5, "int8": 15.0}  # mm, mean distance allowed between the centres of the engine and of torch
MOST_LOST = {"fp32": 0.0, "int8": 0.03}  # share of torch's proposals that the engine may miss
FLOAT = ("/nearest", "/last/")


class Deployed(nn.Module):
    """The network with a heat that is a log-odds: slope * heat + shift."""

    def __init__(self, net: nn.Module, slope: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.net, self.slope, self.shift = net, slope, shift

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        out = self.net(picture)
        return out.heat * self.slope + self.shift, out.offset, out.log_z, out.right


def export(checkpoint: Path, out: Path, cache: Path, precision: str = "int8") -> ModelCard:
    """Write out (an .onnx file) and its card; nothing is left behind if the parity check fails."""
    if precision not in LIMITS:
        raise ExportError(f"--precision {precision}: possible are {', '.join(LIMITS)}")
    shards = open_shards(cache, "val")
    if len(shards) * SHARD < MEASURED + OTHERS:
        raise ExportError(f'--cache {cache}: {len(shards) * SHARD} pictures of "val"; {MEASURED + OTHERS} are needed')
    rows = np.concatenate(shards)
    measured, others = rows[:MEASURED], rows[MEASURED:]
    net, config, seen = load_finder(checkpoint)
    plain = Deployed(net).eval()
    deployed = Deployed(net, *believable(plain, others)).eval()
    with part_of(out) as temporary:
        outputs = to_onnx(deployed, "picture", torch.zeros(INPUT), OUTPUTS, temporary)
        if precision == "int8":
            inputs = (network_input(depth_m(row["picture"])) for row in others[:CALIBRATION])
            quantize_where(temporary, temporary, "picture", inputs, lambda node: not any(f in node for f in FLOAT))
        else:
            store_as_half(temporary)
        card = ModelCard(
            name=out.stem,
            kind="finder",
            sha256=sha256(temporary),
            precision=precision,
            crop_size=PICTURE.width,
            cube_m=CUBE_M,
            inputs={"picture": list(INPUT)},
            outputs=outputs,
            training={**training(config), "seen": seen, "parameters": sum(p.numel() for p in net.parameters()),
                      "mmac": round(mmac(net), 1), "commit": commit()},
        )  # fmt: skip
        card.write(temporary)
        parity = compare(deployed, temporary, others[:OTHERS])
        if parity["mean_mm"] > LIMITS[precision] or parity["lost"] > MOST_LOST[precision]:
            raise ExportError(
                f"export {out}: the engine's centres are {parity['mean_mm']:.2f} mm from torch's on {parity['probes']} "
                f"pictures and {parity['lost']:.1%} are lost; allowed are {LIMITS[precision]} mm and "
                f"{MOST_LOST[precision]:.0%}"
            )
        engine = open_engine("onnxruntime", temporary, net="finder")
        run = engine_maps(engine)
        whole, closer = (
            score(found_in(run, rows, THRESHOLD), in_frame(rows)) for rows in (measured[::2], measured[1::2])
        )
        metrics = {"data": f"rooms:val, {MEASURED // 2} scenes, and as much closer", **whole, "closer": closer}
        card = replace(card, parity=parity, metrics=metrics)
        os.replace(temporary, out)
        card.write(out)
        return card


def training(config: TrainConfig) -> dict[str, Any]:
    """What of the config decides a finder."""
    names = ("net", "width", "samples", "batch", "optimizer", "lr", "muon_lr", "weight_decay", "warmup", "decay", "ema",
             "seed", "bf16")  # fmt: skip
    return {name: getattr(config, name) for name in names}


def found_in(run: Callable[[Array], Maps], rows: Array, least_score: float) -> list[list[HandRoi]]:
    """What a network proposes in the pictures of records (B,)."""
    parts = (Part(*part) for part in rows["part"].tolist())
    return [proposals(run(image), least_score, 6, part) for image, part in zip(pictures(rows), parts, strict=True)]


def pictures(rows: Array) -> Any:
    return (network_input(depth_m(row["picture"])) for row in rows)


def engine_maps(engine: Any) -> Any:
    def run(picture: Array) -> Maps:
        heat, offset, log_z, right = engine.run(picture)
        return Maps(heat[0, 0], offset[0], log_z[0, 0], right[0, 0])

    return run


def torch_maps(net: nn.Module, picture: Array) -> Maps:
    with torch.no_grad():
        heat, offset, log_z, right = (o.numpy() for o in net(torch.from_numpy(picture)))
    return Maps(heat[0, 0], offset[0], log_z[0, 0], right[0, 0])


def believable(net: nn.Module, rows: Array, least: float = 0.02) -> tuple[float, float]:
    """Slope and shift that make the heat of peaks the log-odds that they are hands: logistic regression by Newton."""
    found = found_in(partial(torch_maps, net), rows, least)
    hit, logit = peaks(found, in_frame(rows))
    if len(set(hit.tolist())) < 2:
        return 1.0, 0.0
    design = np.stack([logit, np.ones_like(logit)], 1)  # (N, 2)
    ab = np.array([1.0, 0.0])
    for _ in range(25):
        p = 1 / (1 + np.exp(-design @ ab))
        # A little weight holds the slope at 1 and the shift at 0 where peaks are few.
        gradient = design.T @ (hit - p) - 0.1 * (ab - (1, 0))
        ab = ab + np.linalg.solve((design * (p * (1 - p))[:, None]).T @ design + 0.1 * np.eye(2), gradient)
    return float(ab[0]), float(ab[1])


def peaks(found: Sequence[Sequence[HandRoi]], hands: Hands) -> tuple[Array, Array]:
    """Of every proposal that counts: whether it is a hand, and its score's log-odds."""
    hit, logit = [], []
    for k, rois in enumerate(found):
        for roi, which in zip(rois, matches(rois, hands, k), strict=True):
            if which is not None:
                hit.append(which >= 0)
                logit.append(np.log(roi.score / (1 - roi.score)))
    return np.array(hit, float), np.array(logit)


def compare(deployed: nn.Module, model: Path, rows: Array) -> dict[str, Any]:
    """Distance of the engine's proposals from torch's, mm, and the share of torch's that have none within 60 mm."""
    run = engine_maps(open_engine("onnxruntime", model, net="finder"))
    expected, got = found_in(partial(torch_maps, deployed), rows, THRESHOLD), found_in(run, rows, THRESHOLD / 2)
    nearest = [
        min((float(np.linalg.norm(roi.centre_m - r.centre_m)) for r in theirs), default=1.0)
        for ours, theirs in zip(expected, got, strict=True)
        for roi in ours
    ]
    off = [distance * 1e3 for distance in nearest if distance < 0.06]
    return {"mean_mm": float(np.mean(off)) if off else 0.0, "max_mm": max(off, default=0.0),
            "lost": 1 - len(off) / max(len(nearest), 1), "probes": len(rows)}  # fmt: skip


def mmac(net: nn.Module) -> float:
    """Million multiplications of one picture."""
    total = 0

    def count(module: Any, _: Any, output: Tensor) -> None:
        nonlocal total
        total += output[0].numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        net(torch.zeros(INPUT))
    for hook in hooks:
        hook.remove()
    return total / 1e6


@click.command()
@click.option("--checkpoint", type=Path, required=True, help="last.pt of a finder's training.")
@click.option("--cache", type=Path, required=True, help="Folder with rendered scenes of the stream val.")
@click.option("--out", type=Path, required=True, help="The .onnx file to write, its card goes beside it.")
@click.option("--precision", default="int8", show_default=True, help="fp32, int8.")
def main(checkpoint: Path, cache: Path, out: Path, precision: str) -> None:
    """Write a trained finder as ONNX with its card, if it agrees with torch."""
    torch.set_num_threads(1)
    try:
        card = export(checkpoint, out, cache, precision)
    except (ExportError, TrainError, OSError) as error:
        sys.exit(f"exporters.finder: {error}")
    click.echo(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {card.parity}\n{card.metrics}")


if __name__ == "__main__":
    main()
