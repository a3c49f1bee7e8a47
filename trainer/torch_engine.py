"""A training run's checkpoint as an engine, to measure a network before it is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..edge.networks.card import ModelCard, sha256
from ..edge.reading import read
from ..edge.refit import Refit
from ..hand.arrays import Array
from ..hand.frames import HandCrop
from .checkpoint import load_net, prior, share_without
from .evaluate import Guess, refitted
from .nets import NETS, net_module
from .synth.samples import CUBE_M


class TorchEngine:
    """The averaged network of a checkpoint on the CPU. Opening raises TrainError."""

    def __init__(self, checkpoint: Path, threads: int = 1) -> None:
        torch.set_num_threads(threads or 1)
        self._net, config, _ = load_net(checkpoint)
        self._module = net_module(config.net)
        self._config = config
        size = self._module.IMAGE_PX
        self.card = ModelCard(
            name=checkpoint.parent.name or checkpoint.stem,
            kind=NETS[config.net].module,
            sha256=sha256(checkpoint),
            precision="fp32",
            crop_size=size,
            cube_m=CUBE_M,
            inputs={"image": [1, 1, size, size]},
            outputs={},
        )
        self.name = f"torch {torch.__version__}, {threads or 1} thread{'s' if threads > 1 else ''}"

    def run(self, image: NDArray[np.float32]) -> list[Array]:
        """The network's own outputs, whatever they are."""
        return [np.asarray(output) for output in self._forward(image)]

    def guess(self, image: Array, distance_m: float, cube_m: float, refit: Refit) -> Guess:
        """A crop's hand; vertices are refitted as the daemon does it, parameters posed by the net's own hand layer."""
        output = self._forward(image[None, None])
        side = getattr(output, "right_logit", None)
        logit = None if side is None else float(side[0]) - prior(self._config.left_share)
        if hasattr(output, "vertices_uvd"):
            crop = HandCrop(image, np.eye(3), distance_m, cube_m)
            right_logit = output.right_logit - prior(self._config.left_share)
            presence_logit = output.presence_logit - prior(share_without(self._config))
            outputs = output.vertices_uvd, output.log_error, output.hand_logit, right_logit, presence_logit
            return refitted(read(crop, [x.numpy() for x in outputs]), refit)
        with torch.no_grad():
            posed = self._module.estimate(output, torch.tensor([distance_m]), torch.tensor([cube_m]))
        joints, vertices = (x[0].numpy().astype(np.float64) for x in posed)
        return Guess(joints, vertices, vertices, logit)

    def _forward(self, image: Array) -> Any:
        with torch.no_grad():
            return self._net(torch.from_numpy(np.ascontiguousarray(image, np.float32)))
