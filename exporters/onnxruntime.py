"""A finished float model to its 8-bit form for CPUs, with a card."""

from __future__ import annotations

from pathlib import Path

from ..edge.networks.card import ModelCard
from . import ExportError
from .calibration import images_for
from .onnx import LIMITS_MM, room_for
from .parity import float_card, keep, probes_of
from .quantize import quantize


def export_int8(model: Path, out: Path, calibration: Path | None = None) -> ModelCard:
    """Write the 8-bit form of a float Dual Grid Net; its scales from the hands in a recording, else from rendered ones.
    Raises ModelError, CameraError, ExportError; nothing is left behind then."""
    card = float_card(model)
    if card.kind != "dgn":
        raise ExportError(f"--precision int8: 8 bits are for Dual Grid Nets; {model.name} can be had in fp32")
    if out.resolve() == model.resolve():
        raise ExportError(f"export {out}: it would take the place of the float model")
    room_for(out)
    images = images_for(model, card, calibration)
    probes = probes_of(model, card)
    return keep(out, lambda part: quantize(model, part, images), model, "int8", probes, LIMITS_MM["int8"])
