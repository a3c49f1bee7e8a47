"""ONNX Runtime on the CPU: the engine that runs anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..networks.card import ModelCard, ModelError

DTYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class OnnxRuntimeEngine:
    """One session that reads and writes buffers of its own; not to be shared between threads.

    With several threads, those that wait for work spin for it while a frame is computed, and sleep between frames;
    without spin they sleep at once.
    """

    def __init__(self, model: Path, card: ModelCard, threads: int, *, spin: bool = True) -> None:
        import onnxruntime as ort

        threads = max(1, threads)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise ModelError(
                f"model {model}: onnxruntime cannot load it ({str(error).splitlines()[0][:150]})"
            ) from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if {i.name: list(i.shape) for i in inputs} != card.inputs or len(inputs) != 1 or any(
            o.type not in DTYPES for o in (*inputs, *outputs)
        ) or {o.name: list(o.shape) for o in outputs} != card.outputs:  # fmt: skip
            raise ModelError(f"model {model}: its inputs and outputs are not those of its card")
        self.card, self.threads = card, threads
        asleep = "" if spin or threads == 1 else " that sleep"
        self.name = f"onnxruntime {ort.__version__}, {threads} thread{'s' if threads > 1 else ''}{asleep}"
        self._image = np.zeros(inputs[0].shape, DTYPES[inputs[0].type])
        self._outputs = [np.zeros(o.shape, DTYPES[o.type]) for o in outputs]
        self._binding = self._session.io_binding()
        image = self._image
        self._binding.bind_input(inputs[0].name, "cpu", 0, image.dtype.type, image.shape, image.ctypes.data)
        for bound, array in zip(outputs, self._outputs, strict=True):
            self._binding.bind_output(bound.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self, image: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The outputs are copies (some 3 us): a tracker holds on to them while the next frame is computed."""
        np.copyto(self._image, image)
        self._session.run_with_iobinding(self._binding)
        return [array.copy() for array in self._outputs]


def version() -> str:
    import onnxruntime as ort

    return str(ort.__version__)


def unavailable() -> str:
    """Never: the daemon needs it anyway."""
    return ""


def choices(threads: int) -> list[dict[str, bool]]:
    """What else of open_engine a self-tuning should try."""
    return [{}] if threads == 1 else [{}, {"spin": False}]


def open_engine(model: Path, card: ModelCard, threads: int, *, spin: bool = True) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(model, card, threads, spin=spin)
