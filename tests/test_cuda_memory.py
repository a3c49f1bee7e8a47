"""What PyCUDA refuses is one line, wherever it happens: a stand-in with its names fails where the test says."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from edge_hand.edge.engines import open_engine
from edge_hand.edge.engines.tensorrt import TensorRtEngine
from edge_hand.edge.engines.tensorrt import memory as gpu
from edge_hand.edge.engines.tensorrt.driver import Graph
from edge_hand.edge.engines.tensorrt.memory import CudaMemory
from edge_hand.edge.networks.card import ModelError, load_card
from edge_hand.edge.networks.probe import crops
from test_tensorrt import FLOAT, plan_of, stand_in


class Allocation:
    """A piece of the GPU's memory."""

    def __init__(self, size: int) -> None:
        self.bytes = np.zeros(size, np.uint8)

    def __int__(self) -> int:
        return self.bytes.ctypes.data


class Stream:
    """PyCUDA says nothing where it cannot free one: the context is not current."""

    handle = 7

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def __del__(self) -> None:
        self.cuda.streams -= self.cuda.pushed > 0

    def synchronize(self) -> None:
        self.cuda.did("cuStreamSynchronize")


class Cuda:
    """pycuda.driver on the CPU's memory. The call in `fails` fails, after `good` of them; what needs the context
    notices where it is missing."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    host_alloc_flags = SimpleNamespace(DEVICEMAP=2)

    def __init__(self) -> None:
        self.fails, self.good, self.pushed, self.graphs, self.streams = "", 0, 0, list[str](), 0

    def did(self, name: str, needs_context: bool = True) -> None:
        assert self.pushed or not needs_context, f"{name} without the context"
        if name == self.fails:
            self.good -= 1
            if self.good < 0:
                raise self.MemoryError(f"{name} failed:\nout of memory")

    def init(self) -> None:
        self.did("cuInit", False)

    def Device(self, number: int) -> Any:
        def push() -> None:
            self.did("cuCtxPushCurrent", False)
            self.pushed += 1

        def pop() -> None:
            self.pushed -= 1

        def retain() -> Any:
            self.did("cuDevicePrimaryCtxRetain", False)
            return SimpleNamespace(push=push, pop=pop)

        return SimpleNamespace(retain_primary_context=retain)

    def Stream(self, flags: int) -> Any:
        self.did("cuStreamCreate")
        self.streams += 1
        return Stream(self)

    def pagelocked_empty(self, shape: Any, dtype: Any, mem_flags: int) -> Any:
        self.did("cuMemHostAlloc")
        return np.empty(shape, dtype)

    def mem_alloc(self, size: int) -> Allocation:
        self.did("cuMemAlloc")
        return Allocation(size)

    def memcpy_htod_async(self, to: Allocation, source: Any, stream: Any) -> None:
        self.did("cuMemcpyHtoDAsync")
        to.bytes[...] = source.reshape(-1).view(np.uint8)

    def memcpy_dtoh_async(self, to: Any, source: Allocation, stream: Any) -> None:
        self.did("cuMemcpyDtoHAsync")
        to.reshape(-1).view(np.uint8)[...] = source.bytes

    def capture(self, stream: int, enqueue: Any) -> Graph:
        self.did("cuStreamBeginCapture")
        enqueue()
        return Graph(enqueue, lambda: self.graphs.append("closed"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    pretended = Cuda()
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=pretended))  # type: ignore[misc]
    monkeypatch.setitem(sys.modules, "pycuda.driver", pretended)  # type: ignore[misc]
    monkeypatch.setattr(gpu, "capture", pretended.capture)
    return pretended


def opened() -> TensorRtEngine:
    return TensorRtEngine(stand_in(), plan_of(FLOAT), load_card(FLOAT), CudaMemory(False))


@pytest.mark.parametrize(
    "call",
    ["cuInit", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent", "cuStreamCreate", "cuMemHostAlloc", "cuMemAlloc",
     "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuStreamSynchronize"],
)  # fmt: skip
def test_a_full_gpu_is_one_line_wherever_it_is_noticed(call: str, cuda: Cuda) -> None:
    cuda.fails = call
    with pytest.raises(ModelError) as caught:
        opened()
    assert str(caught.value).split(": ", 1)[1] == f"{call} failed: out of memory" and cuda.pushed == 0


@pytest.mark.parametrize(("call", "good"), [("cuStreamBeginCapture", 0), ("cuMemcpyHtoDAsync", 1)])
def test_a_frame_that_cannot_be_captured_is_run_without_a_graph(call: str, good: int, cuda: Cuda) -> None:
    cuda.fails, cuda.good = call, good
    engine = opened()
    cuda.fails = ""
    assert engine.name == "tensorrt 10.3.0, fp32, copies, no graph"
    image = crops(64)[0]
    np.testing.assert_allclose(engine.run(image)[0], open_engine("onnxruntime", FLOAT).run(image)[0], atol=1e-5)


def test_a_gpu_that_fails_while_it_runs_is_one_line_and_what_it_holds_is_given_back(cuda: Cuda) -> None:
    engine = opened()
    assert engine.name.endswith(", graph")
    cuda.fails = "cuStreamSynchronize"  # and CUDA's errors stay
    with pytest.raises(ModelError, match=r"^tensorrt: cuStreamSynchronize failed: out of memory$"):
        engine.run(crops(64)[0])
    assert cuda.streams == 1
    engine.close()
    engine.close()
    assert cuda.streams == 0, "it is freed while the context is current"
    assert cuda.graphs == ["closed"] and cuda.pushed == 0
    assert (engine._graph, engine._context, engine._engine, engine._runtime) == (None, None, None, None)
    assert (engine._inputs, engine._outputs) == ([], [])
