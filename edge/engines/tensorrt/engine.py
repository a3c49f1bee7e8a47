"""A plan that runs: fixed buffers, one stream, one CUDA graph a frame. TensorRT 10.3 to 11.x."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....hand.arrays import Array
from ...networks.card import ModelCard, ModelError
from .build import make_logger
from .driver import Graph
from .memory import Buffer, Memory

_log = logging.getLogger(__name__)
_loggers: dict[str, Any] = {}  # TensorRT keeps the first logger of a process, so there is one


class PlanRefused(ModelError):
    """TensorRT does not load the plan; a new one may be better."""


class TensorRtEngine:
    """Not to be shared between threads, but it may be made in another one than it is used in.

    weights, an ONNX file of the same structure as the plan's, replaces the plan's weights before anything runs: nothing
    is pending then, and the graph is captured afterwards. Raises ModelError, PlanRefused if the plan cannot be
    loaded; what was half refitted is thrown away.
    """

    def __init__(
        self, trt: Any, plan: bytes, card: ModelCard, memory: Memory, note: str = "", weights: bytes | None = None
    ) -> None:
        self.card, self.plan, self._memory = card, plan, memory
        self.structure = ""  # of the ONNX file that it was made of, where its weights can be replaced
        self._graph: Graph | None = None
        self.refittable = False
        logger = _loggers.setdefault(trt.__name__, make_logger(trt, lambda level, text: _log.warning("%s", text)))
        with memory.current():
            self._runtime = trt.Runtime(logger)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise PlanRefused("tensorrt: the plan cannot be loaded (of another TensorRT or GPU, or damaged)")
            self.refittable = bool(self._engine.refittable)
            if weights is not None:
                _refit(trt, self._engine, logger, weights)
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise ModelError("tensorrt: no execution context (out of memory?)")
            buffers = self._buffers(trt)
            self._inputs = [buffers[name] for name in card.inputs]
            self._outputs = [buffers[name] for name in card.outputs]
            self._enqueue()  # the first run allocates, which a graph may not
            memory.synchronize()
            how = self._capture()
        where = "mapped memory" if memory.unified else "copies"
        self.name = f"tensorrt {trt.__version__}, {card.precision}, {where}, {how}" + (f" ({note})" if note else "")

    def retrained(self, model: Path) -> TensorRtEngine | None:
        """This engine with the weights of another training of its network, in milliseconds; None if it takes none."""
        from . import refitted

        return refitted(self, model)

    def run(self, image: NDArray[np.float32]) -> list[Array]:
        """The card's outputs, in arrays of their own. Raises ModelError if the GPU fails."""
        with self._memory.current():
            self._inputs[0].host[...] = image
            if self._graph is None:
                self._enqueue()
            else:
                self._graph.launch()
            self._memory.synchronize()
            return [buffer.host.copy() for buffer in self._outputs]

    def close(self) -> None:
        """Free what is on the GPU, of one that failed too; it does not run any more."""
        with self._memory.current():
            with contextlib.suppress(Exception):  # CUDA's errors stay: what failed a frame fails here again
                self._memory.synchronize()
            if self._graph is not None:
                self._graph.close()
            self._graph = None
            self._inputs, self._outputs = [], []
            self._context = self._engine = self._runtime = None
            self._memory.close()

    def _buffers(self, trt: Any) -> dict[str, Buffer]:
        seen: dict[bool, dict[str, list[int]]] = {True: {}, False: {}}
        buffers = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            shape = tuple(self._engine.get_tensor_shape(name))
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            seen[is_input][name] = list(shape)
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            if min(shape, default=1) < 0 or dtype != np.float32:
                raise ModelError(f"tensorrt: {name} is {dtype} {list(shape)}; the plan must have fixed float32 tensors")
            buffers[name] = self._memory.buffer(shape, dtype)
            if not self._context.set_tensor_address(name, buffers[name].address):
                raise ModelError(f"tensorrt: {name} cannot be given its buffer")
        if seen != {True: self.card.inputs, False: self.card.outputs}:
            raise ModelError("tensorrt: the plan's inputs and outputs are not those of the model's card")
        return buffers

    def _enqueue(self) -> None:
        for buffer in self._inputs:
            self._memory.upload(buffer)
        if not self._context.execute_async_v3(self._memory.stream):
            raise ModelError("tensorrt: the GPU did not take the frame")
        for buffer in self._outputs:
            self._memory.download(buffer)

    def _capture(self) -> str:
        try:
            graph = self._memory.capture(self._enqueue)
            graph.launch()
            self._memory.synchronize()
        except Exception as error:  # the driver's, PyCUDA's or TensorRT's: each frame can do without a graph
            _log.warning("tensorrt: no CUDA graph (%s)", error)
            return "no graph"
        self._graph = graph
        return "graph"


def _refit(trt: Any, engine: Any, logger: Any, weights: bytes) -> None:
    if not engine.refittable:
        raise ModelError("tensorrt: the plan was not built for refitting")
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_bytes(weights):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ModelError(f"tensorrt: the new weights do not fit: {' '.join(errors.split())[:200]}")
    missing = refitter.get_missing_weights()
    if missing:
        raise ModelError(f"tensorrt: the new weights lack {', '.join(missing[:3])}")
    if not refitter.refit_cuda_engine():
        raise ModelError("tensorrt: the plan could not be refitted")
