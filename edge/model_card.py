"""The sidecar of a network: what goes in and out, where it came from, how good it is; NAME.json beside NAME.onnx."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

CARD_VERSION = 2
MODELS = Path(__file__).with_name("models")
DEFAULT_MODEL = MODELS / "dgn-nano-int8.onnx"


class ModelError(Exception):
    """A model that cannot be used, in one line."""


@dataclass(frozen=True)
class ModelCard:
    """inputs and outputs map names to shapes; cube_m is the edge of the crop's cube in training; training, metrics and
    parity say how the network was made, how it scores and how far its export is from the torch network (mm); confidence
    holds the constants of `confidence.Calibration`, if they were measured."""

    name: str
    kind: str  # "dgn"
    sha256: str
    precision: str
    crop_size: int
    cube_m: float
    inputs: dict[str, list[int]]
    outputs: dict[str, list[int]]
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    confidence: list[float] | None = None
    version: int = CARD_VERSION

    def write(self, model: Path) -> None:
        """Write the card beside its model, by way of a temporary name."""
        path = card_path(model)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(temporary, path)


def find_model(name: str) -> Path:
    """A path as it is, or the name of a model that ships with edge-hand."""
    shipped = MODELS / f"{name}.onnx"
    return shipped if shipped.is_file() and not Path(name).exists() else Path(name)


def card_path(model: Path) -> Path:
    return model.with_suffix(".json")


def load_card(model: Path) -> ModelCard:
    """The card of a model file whose bytes it vouches for; anything amiss is a ModelError of one line."""
    path = card_path(model)
    if not model.is_file():
        shipped = ", ".join(sorted(p.stem for p in MODELS.glob("*.onnx"))) or "none"
        raise ModelError(f"model {model}: no such file (shipped with edge-hand: {shipped})")
    if not path.is_file():
        raise ModelError(f"model {model}: its card {path.name} is missing; `edge-hand export` writes both")
    try:
        values = json.loads(path.read_text())
        version = values["version"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        raise ModelError(f"model card {path}: not a model card (no JSON object with a version)") from None
    if version != CARD_VERSION:
        raise ModelError(f"model card {path}: version {version}, this edge-hand reads version {CARD_VERSION}")
    names = {f.name for f in fields(ModelCard)}
    missing = {"name", "kind", "sha256", "crop_size", "cube_m", "inputs", "outputs", "precision"} - set(values)
    if missing or set(values) - names:
        raise ModelError(f"model card {path}: missing {sorted(missing)}, unknown {sorted(set(values) - names)}")
    card = ModelCard(**values)
    if not isinstance(card.sha256, str) or not isinstance(card.inputs, dict) or not isinstance(card.outputs, dict):
        raise ModelError(f"model card {path}: sha256, inputs or outputs have the wrong type")
    if card.confidence is not None and not _three_numbers(card.confidence):
        raise ModelError(f"model card {path}: confidence is {card.confidence!r:.60}, expected three numbers")
    seen = sha256(model)
    if seen != card.sha256:
        raise ModelError(
            f"model {model}: its bytes are not the ones its card vouches for "
            f"(sha256 {seen[:12]}, card {card.sha256[:12]}): corrupt, or card and model were mixed up"
        )
    return card


def _three_numbers(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    return all(type(x) in (int, float) and math.isfinite(x) for x in value)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
