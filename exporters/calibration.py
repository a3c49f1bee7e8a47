"""The crops that 8 bits take their scales from: rendered ones, or of the hands in a recording of one's own sensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..edge.engines import open_engine
from ..edge.networks.card import ModelCard
from ..hand.crop import CROP_SIZE
from ..trainer.synth.samples import Generator
from ..trainer.tracked import tracked_crops
from . import ExportError

Image = NDArray[np.float32]
CROPS, LEAST_CROPS = 256, 64


def rendered(kind: str = "full", image_px: int = CROP_SIZE) -> Iterator[Image]:
    """Of the validation stream, (1, 1, S, S) each."""
    generator = Generator("val", seed=2, kind=kind, image_px=image_px)
    for i in range(CROPS):
        yield np.ascontiguousarray(generator.sample(i).image[None, None])


def images_for(model: Path, card: ModelCard, recording: Path | None = None) -> Iterable[Any]:
    """For a float model: of the hands that it tracks in the recording, if there is one, else such as it was trained on.
    Raises ExportError, CameraError, ModelError."""
    if recording is None:
        return rendered(card.training.get("kind", "full"), card.crop_size)
    crops = tracked_crops(recording, open_engine("onnxruntime", model), CROPS)
    if len(crops) < LEAST_CROPS:
        raise ExportError(
            f"--calibration {recording}: it gives {len(crops)} crops of tracked hands; {LEAST_CROPS} are needed"
        )
    return crops
