"""ONNX Runtime on the CPU: the engine that runs anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model_card import ModelCard, ModelError


class OnnxRuntimeEngine:
    """One session with fixed shapes; not to be shared between threads."""

    def __init__(self, model: Path, card: ModelCard, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise ModelError(
                f"model {model}: onnxruntime cannot load it ({str(error).splitlines()[0][:150]})"
            ) from None
        inputs = {i.name: list(i.shape) for i in self._session.get_inputs()}
        outputs = {o.name: list(o.shape) for o in self._session.get_outputs()}
        if inputs != card.inputs or outputs != card.outputs:
            raise ModelError(f"model {model}: its inputs and outputs are not those of its card")
        self.card = card
        self.name = f"onnxruntime {ort.__version__}, {threads} thread{'s' if threads > 1 else ''}"
        self._input = next(iter(inputs))

    def run(self, image: NDArray[np.float32]) -> list[NDArray[Any]]:
        return self._session.run(None, {self._input: image})


def open_engine(model: Path, card: ModelCard, threads: int) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(model, card, threads)
