"""The CUDA driver's answers, right and wrong, from a library that this test compiles."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
from edge_hand.edge.engines.tensorrt import driver as cuda
from edge_hand.edge.engines.tensorrt.driver import CudaError

DRIVER = r"""
#include <string.h>
static int bad(const char *f) { const char *w = WRONG; return !strcmp(w, f) ? 801 : 0; }
int cuInit(unsigned f) { return bad("cuInit"); }
int cuDeviceGetCount(int *n) { *n = strcmp(WRONG, "none") ? 1 : 0; return 0; }
int cuDeviceGet(int *d, int i) { *d = 0; return 0; }
int cuDriverGetVersion(int *v) { *v = 12060; return 0; }
int cuDeviceGetName(char *n, int l, int d) { strncpy(n, "Pretend Orin", l); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : a == 76 ? 7 : a == 16 ? 6 : 1; return 0; }
int cuGetErrorName(int e, const char **s) { *s = "CUDA_ERROR_NOT_SUPPORTED"; return 0; }
int log_[64], n_;
static int put(int what, const char *f) { log_[n_++] = what; return bad(f); }
int cuStreamBeginCapture_v2(void *s, int m) { return put(1, "begin"); }
int cuStreamEndCapture(void *s, void **g) { *g = (void *)5; return put(2, "end"); }
int cuGraphInstantiateWithFlags(void **e, void *g, unsigned long long f) { *e = (void *)6; return put(3, "make"); }
int cuGraphDestroy(void *g) { return put(4, "-"); }
int cuGraphLaunch(void *e, void *s) { return put(5, "-"); }
int cuGraphExecDestroy(void *e) { return put(6, "-"); }
"""


def pretend_driver(folder: Path, wrong: str = "") -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "cuda.c").write_text(DRIVER)
    library = folder / "libcuda.so"
    command = [compiler, "-shared", "-fPIC", f'-DWRONG="{wrong}"', str(folder / "cuda.c"), "-o", str(library)]
    subprocess.run(command, check=True)
    return str(library)


def calls(library: str) -> list[int]:
    cdll = ctypes.CDLL(library)
    return list((ctypes.c_int * 64).in_dll(cdll, "log_"))[: ctypes.c_int.in_dll(cdll, "n_").value]


def test_the_driver_tells_which_gpu_there_is(tmp_path: Path) -> None:
    gpu = cuda.probe(pretend_driver(tmp_path))
    assert gpu[:2] == ("Pretend Orin with 6 multiprocessors", "8.7")
    assert gpu.driver.startswith("CUDA 12.6") and gpu.unified


@pytest.mark.parametrize(
    ("wrong", "why"), [("none", "no CUDA device"), ("cuInit", "cuInit: CUDA_ERROR_NOT_SUPPORTED (801)")]
)
def test_a_driver_without_a_gpu_is_one_line(wrong: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(CudaError) as caught:
        cuda.probe(pretend_driver(tmp_path, wrong))
    assert str(caught.value) == why


def test_a_graph_is_recorded_once_and_launched_each_frame(tmp_path: Path) -> None:
    library = pretend_driver(tmp_path)
    graph = cuda.capture(0x1234, lambda: None, library)
    graph.launch()
    graph.launch()
    graph.close()
    assert calls(library) == [1, 2, 3, 4, 5, 5, 6]


@pytest.mark.parametrize(("wrong", "seen"), [("begin", [1]), ("end", [1, 2]), ("make", [1, 2, 3, 4])])
def test_a_graph_that_cannot_be_made_leaves_the_stream_usable(wrong: str, seen: list[int], tmp_path: Path) -> None:
    library = pretend_driver(tmp_path, wrong)
    with pytest.raises(CudaError, match=r"CUDA_ERROR_NOT_SUPPORTED \(801\)$"):
        cuda.capture(0x1234, lambda: None, library)
    assert calls(library) == seen


def test_recording_ends_even_if_what_is_recorded_raises(tmp_path: Path) -> None:
    library = pretend_driver(tmp_path)
    with pytest.raises(ZeroDivisionError):
        cuda.capture(0x1234, lambda: print(1 / 0), library)
    assert calls(library) == [1, 2, 4]
