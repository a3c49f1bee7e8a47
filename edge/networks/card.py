"""The sidecar of a network: what goes in and out, where it came from, how good it is; NAME.json beside NAME.onnx."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ...hand.fields import one_line
from ...hand.whole import read_json, refusal, write_json

CARD_VERSION = 2
MODELS = Path(__file__).parents[1] / "models"
BUILT = (".plan", ".engine", ".trt", ".blob")  # what other programs call engines for one device
DEFAULT_MODEL = MODELS / "dgn-nano-int8.onnx"


class ModelError(Exception):
    """A model that cannot be used, in one line."""


class UnreadableModel(ModelError):
    """A model's file or card is none, or the one not of the other; where they are on their way, that may pass."""


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
        """Write the card beside its model."""
        write_json(card_path(model), asdict(self))


def find_model(name: str) -> Path:
    """The name of a model that ships with edge-hand, or a path as it is; what is called the same here is ./NAME."""
    shipped = MODELS / f"{name}.onnx"
    named = os.path.basename(name) == name
    return shipped if named and os.path.isfile(shipped) else Path(name)  # Path's own may raise


def same_training(one: ModelCard, other: ModelCard) -> bool:
    """Whether two files are forms of one network; the commit is that of their exports."""
    return one.training | {"commit": ""} == other.training | {"commit": ""}


def behind(adapted: Path) -> str:
    """A few words if edge-hand now ships another network of this name than the one that was adapted, else none; by how
    both were trained, which stands in their cards."""
    try:
        made = read_json(card_path(adapted))["training"]
        ships = read_json(MODELS / f"{made['net']}.json")["training"]
        same = all(made[key] == ships[key] for key in made.keys() & ships.keys() - {"command", "commit"})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # it cannot be told
        return ""
    return "" if same else f"edge-hand ships another {made['net']} now than this was made from"


def card_path(model: Path) -> Path:
    return model.with_suffix(".json")


def load_card(model: Path) -> ModelCard:
    """The card of a model file whose bytes it vouches for; anything amiss is an UnreadableModel of one line, and a path
    without a name, a checkpoint or another machine's engine a ModelError."""
    if not model.name:
        raise ModelError(f"model '{model}': give a name or an .onnx file")
    if model.suffix == ".pt":
        raise ModelError(
            f"model {model} is a checkpoint; edge-hand export --checkpoint {model} --out NAME.onnx makes a model"
        )
    if model.suffix in BUILT:
        raise ModelError(
            f"model {model}: an engine that was built for one machine; give the .onnx, and each builds its own"
        )
    try:
        return _load_card(model)
    except ModelError as error:
        raise UnreadableModel(one_line(str(error))) from None  # it may quote the card
    except OSError as error:
        raise UnreadableModel(f"model {model}: cannot be read ({refusal(error)})") from None


def _load_card(model: Path) -> ModelCard:
    path = card_path(model)
    if not model.is_file():
        shipped = ", ".join(sorted(p.stem for p in MODELS.glob("*.onnx"))) or "none"
        raise ModelError(f"model {model}: no such file (shipped with edge-hand: {shipped})")
    if not path.is_file():
        raise ModelError(f"model {model}: its card {path.name} is missing; `edge-hand export` writes both")
    try:
        values = read_json(path)
        version = values["version"]
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"model card {path}: not a model card (no JSON object with a version)") from None
    if version != CARD_VERSION:
        raise ModelError(f"model card {path}: version {version}, this edge-hand reads version {CARD_VERSION}")
    names = {f.name for f in fields(ModelCard)}
    missing = {"name", "kind", "sha256", "crop_size", "cube_m", "inputs", "outputs", "precision"} - set(values)
    if missing or set(values) - names:
        raise ModelError(f"model card {path}: missing {sorted(missing)}, unknown {sorted(set(values) - names)}")
    card = ModelCard(**values)
    wrong = _wrong_fields(card)
    if wrong:
        raise ModelError(f"model card {path}: {', '.join(wrong)}: of the wrong type or out of range")
    if card.confidence is not None and not _three_numbers(card.confidence):
        raise ModelError(f"model card {path}: confidence is {card.confidence!r:.60}, expected three numbers")
    seen = sha256(model)
    if seen != card.sha256:
        raise ModelError(
            f"model {model}: its bytes are not the ones its card vouches for "
            f"(sha256 {seen[:12]}, card {card.sha256[:12]}): corrupt, or card and model were mixed up"
        )
    return card


def _wrong_fields(card: ModelCard) -> list[str]:
    """Those of a foreign card that nothing can be done with."""
    texts = {name: getattr(card, name) for name in ("name", "kind", "sha256", "precision")}
    good = {name: isinstance(text, str) and text.isprintable() for name, text in texts.items()}
    good |= {name: isinstance(getattr(card, name), dict) for name in ("training", "metrics", "parity")}
    good |= {name: _shapes(getattr(card, name)) for name in ("inputs", "outputs")}
    good["crop_size"] = type(card.crop_size) is int and 8 <= card.crop_size <= 1024
    good["cube_m"] = type(card.cube_m) in (int, float) and 0.01 <= card.cube_m <= 10
    return [name for name, is_good in good.items() if not is_good]


def _shapes(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(shape, list) for shape in value.values()):
        return False
    return all(type(n) is int and abs(n) < 1 << 31 for shape in value.values() for n in shape)


def _three_numbers(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    return all(type(x) in (int, float) and abs(x) < 1e6 for x in value)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
