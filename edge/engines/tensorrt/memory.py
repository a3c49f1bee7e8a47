"""Buffers that stay where they are: pinned and mapped on a GPU that shares the CPU's memory, else pinned with a copy on
the GPU. PyCUDA holds the context, the stream and the memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from ...networks.card import ModelError
from .driver import CudaError, Graph, capture

LEAST_PYCUDA = (2025, 1, 2)
GET_PYCUDA = "pip install --force-reinstall --no-cache-dir 'pycuda>=2025.1.2'"  # it is built here, for this CUDA


class Buffer(NamedTuple):
    """host is the array that the CPU reads and writes; address what TensorRT is told; device PyCUDA's allocation, None
    if the two are the same memory."""

    host: Any
    address: int
    device: Any


class Memory(Protocol):
    """What the engine needs of the GPU beside TensorRT. Everything but current() is called inside current(), which
    raises ModelError for whatever the GPU refuses there."""

    unified: bool
    stream: int

    def current(self) -> Any: ...
    def buffer(self, shape: tuple[int, ...], dtype: Any) -> Buffer: ...
    def upload(self, buffer: Buffer) -> None: ...
    def download(self, buffer: Buffer) -> None: ...
    def synchronize(self) -> None: ...
    def capture(self, enqueue: Any) -> Graph: ...
    def close(self) -> None: ...


class CudaMemory:
    """The first GPU's primary context, which TensorRT uses too, and a stream of its own.

    PyCUDA frees memory only in the thread that has its context, and an engine is made in one thread and used in
    another: so the context is made current around every use.
    """

    def __init__(self, unified: bool) -> None:
        try:
            import pycuda.driver as cuda
        except ImportError as error:
            raise ModelError(f"{no_pycuda(error)}; {GET_PYCUDA}") from None
        self.unified, self._cuda = unified, cuda
        try:
            cuda.init()
            self._context = cuda.Device(0).retain_primary_context()
        except cuda.Error as error:
            raise ModelError(f"pycuda: {' '.join(str(error).split())}") from None
        with self.current():
            self._stream: Any = cuda.Stream(1)  # CU_STREAM_NON_BLOCKING
        self.stream = int(self._stream.handle)
        self.capture = functools.partial(capture, self.stream)

    @contextmanager
    def current(self) -> Iterator[None]:
        try:
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()
        except (CudaError, self._cuda.Error) as error:  # the driver's, called here, and PyCUDA's
            raise ModelError(f"tensorrt: {' '.join(str(error).split())}") from None

    def buffer(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        flags = self._cuda.host_alloc_flags.DEVICEMAP if self.unified else 0
        host = self._cuda.pagelocked_empty(shape, dtype, mem_flags=flags)
        host[...] = 0
        if self.unified:
            return Buffer(host, int(host.base.get_device_pointer()), None)
        device = self._cuda.mem_alloc(max(1, math.prod(shape) * host.itemsize))
        return Buffer(host, int(device), device)

    def upload(self, buffer: Buffer) -> None:
        if buffer.device is not None:
            self._cuda.memcpy_htod_async(buffer.device, buffer.host, self._stream)

    def download(self, buffer: Buffer) -> None:
        if buffer.device is not None:
            self._cuda.memcpy_dtoh_async(buffer.host, buffer.device, self._stream)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def close(self) -> None:
        """Free the stream: PyCUDA does not where it is dropped without the context."""
        self._stream = None


def no_pycuda(error: ImportError) -> str:
    """Why pycuda.driver cannot be imported, in a few words: it is not there, or built for something else."""
    missing = isinstance(error, ModuleNotFoundError) and error.name == "pycuda"
    return f"pycuda {'is not installed' if missing else 'cannot be loaded'} ({' '.join(str(error).split())[:200]})"
