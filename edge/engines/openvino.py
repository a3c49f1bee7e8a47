"""OpenVINO on the CPU: faster than ONNX Runtime on many x86 machines, and with 16-bit floats where the CPU has them.

Extra `openvino`. It reads the same ONNX files.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...hand.extras import installed, to_get
from ..networks.card import ModelCard, ModelError


class OpenVinoEngine:
    """One compiled network and one request with buffers of its own; not to be shared between threads.

    bf16 lets convolutions that are not in 8 bits run in bfloat16: None where the CPU computes it natively.
    """

    def __init__(self, model: Path, card: ModelCard, threads: int, *, bf16: bool | None = None) -> None:
        core, native = _core()
        bf16 = native if bf16 is None else bf16
        if bf16 and not native:
            raise ModelError("openvino: this CPU has no bfloat16")
        threads = max(1, threads)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "ENABLE_CPU_PINNING": "NO",  # the daemon's other threads want that core too
        }
        try:
            compiled = core.compile_model(str(model), "CPU", settings)
        except Exception as error:  # a RuntimeError over many lines
            raise ModelError(f"model {model}: openvino cannot load it ({_in_short(error)})") from None
        if not (_are(compiled.inputs, card.inputs) and _are(compiled.outputs, card.outputs) and len(card.inputs) == 1):
            raise ModelError(f"model {model}: its inputs and outputs are not those of its card")
        self.card, self.threads = card, threads
        self.name = f"openvino {version()}, {threads} thread{'s' if threads > 1 else ''}{', bf16' if bf16 else ''}"
        self._request = compiled.create_infer_request()
        self._image: NDArray[Any] = self._request.get_input_tensor(0).data
        self._outputs = [self._request.get_output_tensor(i).data for i in range(len(card.outputs))]

    def run(self, image: NDArray[np.float32]) -> list[NDArray[Any]]:
        np.copyto(self._image, image)
        self._request.infer(share_outputs=True)  # else it copies them, and so do we
        return [array.copy() for array in self._outputs]


def version() -> str:
    """Without importing it, which takes a while."""
    return installed("openvino") or "unknown"


def unavailable() -> str:
    """Why this machine cannot run OpenVINO, in a few words; empty if it can."""
    return "" if installed("openvino") and importlib.util.find_spec("openvino") else "it is not installed"


def choices(threads: int) -> list[dict[str, bool]]:
    """What else of open_engine a self-tuning should try."""
    try:
        _, native = _core()
    except ModelError:
        return []
    return [{"bf16": False}, {"bf16": True}] if native else [{"bf16": False}]


def open_engine(model: Path, card: ModelCard, threads: int, *, bf16: bool | None = None) -> OpenVinoEngine:
    return OpenVinoEngine(model, card, threads, bf16=bf16)


def _core() -> tuple[Any, bool]:
    """OpenVINO, and whether it has native bfloat16 here. Raises ModelError."""
    try:
        core = _import().Core()
        return core, "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except ModelError:
        raise
    except Exception as error:  # no such device, or a broken installation
        raise ModelError(f"openvino: it cannot use this CPU ({_in_short(error)})") from None


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[-150:]


def _import() -> Any:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # else importing it phones home
    try:
        import openvino
    except ImportError as error:
        raise ModelError(
            f"openvino: it is not installed ({str(error).splitlines()[0][:100]}); {to_get('openvino')}"
        ) from None
    return openvino


def _are(ports: Any, shapes: dict[str, list[int]]) -> bool:
    """Whether a network's ports are those of a card, in its order. OpenVINO may know a port by several names."""
    return len(ports) == len(shapes) and all(
        name in port.get_names() and port.partial_shape.is_static and list(port.shape) == shape
        for port, (name, shape) in zip(ports, shapes.items(), strict=True)
    )
