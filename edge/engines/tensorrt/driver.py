"""The CUDA driver, asked before TensorRT is: without one, TensorRT's runtime gives an object that crashes when used.

Prototypes after cuda.h 13.0, unchanged since CUDA 11. PyCUDA has no graphs, so capture is here too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

LIBRARY = "libcuda.so.1"
# CUdevice_attribute
MULTIPROCESSORS, INTEGRATED, CAN_MAP_HOST_MEMORY, CAPABILITY_MAJOR, CAPABILITY_MINOR = 16, 18, 19, 75, 76
CAPTURE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile
RELEASES = ("/proc/driver/nvidia/version", "/etc/nv_tegra_release")  # of a PC's driver, of a Jetson's


class CudaError(Exception):
    """The driver refused, in one line."""


class Gpu(NamedTuple):
    """The first GPU. name tells its multiprocessors too: all Orins are called "Orin", and power modes switch some off.
    driver is the CUDA version that it speaks and, where the system tells, its release; unified says that the GPU reads
    the CPU's memory where it lies (Jetsons)."""

    name: str
    capability: str  # "8.7"
    driver: str
    unified: bool


class Graph(NamedTuple):
    """A captured graph, to be launched once a frame."""

    launch: Callable[[], None]
    close: Callable[[], None]


def probe(library: str = LIBRARY) -> Gpu:
    """The GPU that TensorRT would use. Raises CudaError, one line, if there is none."""
    cuda = _load(library)
    _call(cuda, "cuInit", 0)
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        raise CudaError("no CUDA device")
    _call(cuda, "cuDeviceGet", ctypes.byref(device), 0)
    _call(cuda, "cuDriverGetVersion", ctypes.byref(version))
    name = ctypes.create_string_buffer(256)
    _call(cuda, "cuDeviceGetName", name, len(name), device)

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        _call(cuda, "cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    return Gpu(
        name=f"{name.value.decode(errors='replace')} with {attribute(MULTIPROCESSORS)} multiprocessors",
        capability=f"{attribute(CAPABILITY_MAJOR)}.{attribute(CAPABILITY_MINOR)}",
        driver=f"CUDA {version.value // 1000}.{version.value % 1000 // 10}{_release()}",
        unified=bool(attribute(INTEGRATED) and attribute(CAN_MAP_HOST_MEMORY)),
    )


def capture(stream: int, enqueue: Callable[[], None], library: str = LIBRARY) -> Graph:
    """Record what enqueue puts on the stream (a CUstream that is not the default one) as a graph.

    The stream is usable again whatever happens. Raises CudaError, or what enqueue raises.
    """
    cuda = _load(library)
    on, graph, runnable = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
    _call(cuda, "cuStreamBeginCapture_v2", on, CAPTURE_THREAD_LOCAL)
    try:
        enqueue()
    except BaseException:
        cuda.cuStreamEndCapture(on, ctypes.byref(graph))
        if graph.value:
            cuda.cuGraphDestroy(graph)
        raise
    _call(cuda, "cuStreamEndCapture", on, ctypes.byref(graph))
    try:
        _call(cuda, "cuGraphInstantiateWithFlags", ctypes.byref(runnable), graph, ctypes.c_ulonglong(0))
    finally:
        cuda.cuGraphDestroy(graph)
    return Graph(lambda: _call(cuda, "cuGraphLaunch", runnable, on), lambda: cuda.cuGraphExecDestroy(runnable))


def _load(library: str) -> Any:
    try:
        return ctypes.CDLL(library)
    except OSError:
        raise CudaError(f"no CUDA driver ({library} not found)") from None


def _call(cuda: Any, function: str, *arguments: Any) -> None:
    try:
        code = getattr(cuda, function)(*arguments)
    except AttributeError:
        raise CudaError(f"the CUDA driver is too old (it has no {function})") from None
    if code:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(code, ctypes.byref(name))
        raise CudaError(f"{function}: {(name.value or b'error').decode()} ({code})")


def _release() -> str:
    for path in RELEASES:
        try:
            return ", " + Path(path).read_text().splitlines()[0][:120]
        except (OSError, IndexError):
            continue
    return ""
