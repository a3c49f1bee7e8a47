"""Models side by side: errors from the JSON files of `edge-hand eval`, size, work and time from the models themselves.

    python -m edge_hand.trainer.compare a.json b.json [--picture success.png] [--json table.json]

Times are of one run in which the models take turns, so that a busy minute hits all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..edge.cli.shell import CommandError, make_room, write_result
from ..edge.draw import save_png
from ..edge.engines import Engine, open_engine
from ..edge.networks.card import ModelError, find_model, load_card
from .metrics import success_picture

ROUNDS = 200
COLUMNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("frames", ("n",)),
    ("mean", ("joint_mm", "mean")),
    ("p50", ("joint_mm", "p50")),
    ("p90", ("joint_mm", "p90")),
    ("p99", ("joint_mm", "p99")),
    ("closed form", ("parts_joint_mm",)),
    ("tips", ("tips_mm",)),
    ("PA", ("pa_mm",)),
    ("worst < 20 mm, %", ("worst_joint", "below_20_mm")),
    ("worst < 40 mm, %", ("worst_joint", "below_40_mm")),
    ("still jitter", ("still_jitter_mm",)),
    ("bone std", ("bone_std_mm",)),
    ("vertices", ("vertex_mm", "mean")),
    ("before refit", ("vertex_mm", "before_refit")),
    ("side right, %", ("side_right",)),
    ("M params", ("params",)),
    ("M MACs", ("macs",)),
    ("CPU ms", ("cpu_ms",)),
)


class CompareError(Exception):
    """Results that cannot be compared, in one line."""


def compare(files: Sequence[Path], rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """The results of files, each with name, and with params, macs and cpu_ms (median) where its model is still there.

    Raises CompareError for a file that is no result, ModelError for a model that is there and broken.
    """
    results = [read_result(file) for file in files]
    paths = [_file(result.get("model_file")) for result in results]
    onnx_paths = [path for path in dict.fromkeys(paths) if path is not None and path.suffix == ".onnx"]
    engines = [open_engine("onnxruntime", path, net=None) for path in onnx_paths]
    times = dict(zip(onnx_paths, cpu_ms(engines, rounds), strict=True))
    for file, path, result in zip(files, paths, results, strict=True):
        result["name"] = path.stem if path else file.stem
        if path is not None and path in times:
            params, macs = params_and_macs(path)
            params = load_card(path).training.get("parameters", params)  # the net's own count, where the card has it
            result |= {"params": params, "macs": macs, "cpu_ms": round(times[path], 3)}
    return results


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """One table over results, a row each, errors in mm; columns that none has are left out."""
    rows = [[_cell(result, keys) for _, keys in COLUMNS] for result in results]
    used = [i for i in range(len(COLUMNS)) if any(row[i] != "-" for row in rows)]
    lines = [["model", "data", *(COLUMNS[i][0] for i in used)], ["---"] * (2 + len(used))]
    lines += [[r["name"], r["data"], *(row[i] for i in used)] for r, row in zip(results, rows, strict=True)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def read_result(file: Path) -> dict[str, Any]:
    """A JSON of `edge-hand eval --data`."""
    try:
        result = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CompareError(f"{file}: not a JSON file that can be read ({error})") from None
    if isinstance(result, dict) and "data" in result and result.get("found") == 0:
        raise CompareError(f"{file}: no hand was found in {result['data']}; leave this file out")
    if not isinstance(result, dict) or not {"data", "n"} <= set(result) or not isinstance(result.get("joint_mm"), dict):
        raise CompareError(f"{file}: not a result of edge-hand eval --data")
    return result


def cpu_ms(engines: Sequence[Engine], rounds: int = ROUNDS) -> list[float]:
    """Median time, ms, of one crop in each engine: they take turns, after a tenth of the rounds to warm up."""
    rng = np.random.default_rng(0)
    sizes = [next(iter(engine.card.inputs.values())) for engine in engines]
    images = [rng.uniform(-1, 1, size).astype(np.float32) for size in sizes]
    spent = np.zeros((rounds + rounds // 10, len(engines)))
    for turn in spent:
        for i, (engine, image) in enumerate(zip(engines, images, strict=True)):
            begun = time.perf_counter()
            engine.run(image)
            turn[i] = time.perf_counter() - begun
    return [float(x) for x in np.median(spent[rounds // 10 :], axis=0) * 1e3]


def params_and_macs(model: Path) -> tuple[int, int]:
    """Weights of a model file, and multiplications of its convolutions and matrix products for one crop.

    Weights are those of convolutions and fully connected layers; constant matrices, such as a hand layer's or the mesh
    grid's, are none. Adding, pooling and activations are not counted.
    """
    import onnx
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(onnx.load(model), data_prop=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    shapes |= {t.name: list(t.dims) for t in graph.initializer}
    weights: dict[str, int] = {}
    macs = 0
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            weights |= {name: math.prod(shapes[name]) for name in node.input[1:] if name}
        if node.op_type in ("Conv", "ConvTranspose"):
            weight = shapes[node.input[1]]  # (out, in / groups, kernel) or (in, out / groups, kernel)
            cells = shapes[node.output[0] if node.op_type == "Conv" else node.input[0]]
            macs += math.prod(cells) * math.prod(weight[1:])
        elif node.op_type == "MatMul":
            macs += math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        elif node.op_type == "Gemm":
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            macs += math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]
    return sum(weights.values()), macs


def _file(model: str | None) -> Path | None:
    path = find_model(model) if model else None
    return path if path and path.is_file() else None


def _cell(result: dict[str, Any], keys: tuple[str, ...]) -> str:
    value: Any = result
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if value is None:
        return "-"
    if keys[-1] in ("params", "macs"):
        return f"{value / 1e6:.2f}"
    if keys[-1].startswith("below_") or keys == ("side_right",):
        return f"{100 * value:.1f}"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def curves(files: Sequence[Path], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success rates of the worst joint by model and data, and by file where these are the same."""
    rates: dict[str, Any] = {}
    for file, result in zip(files, results, strict=True):
        name = f"{result['name']} {result['data']}"
        if "success" in result:
            rates[f"{name} {file}" if name in rates else name] = np.array(result["success"]["worst_joint"])
    return rates


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line at the head of this file."""
    parser = argparse.ArgumentParser(prog="python -m edge_hand.trainer.compare", description="One table over models.")
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of edge-hand eval --data")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of the timing")
    parser.add_argument("--picture", type=Path, help="PNG of the success rates of the worst joint")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    given = parser.parse_args(arguments)
    try:
        make_room(given.json)
        results = compare(given.results, given.rounds)
        print(markdown(results))
        if given.picture:
            save_png(
                given.picture, success_picture(curves(given.results, results), "frames whose worst joint is closer")
            )
        write_result(results, given.json)
    except (CommandError, CompareError, ModelError, OSError) as error:
        print(f"edge-hand: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
