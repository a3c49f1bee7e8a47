"""The TensorRT engine without a GPU: a stand-in with TensorRT's names runs the ONNX file on the CPU."""

from __future__ import annotations

import ctypes
import errno
import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from edge_hand.edge.engines import open_engine, tensorrt
from edge_hand.edge.engines.tensorrt import CudaError, TensorRtEngine, artefact, check, plan_key, refitted, suited
from edge_hand.edge.engines.tensorrt import driver as cuda
from edge_hand.edge.engines.tensorrt.build import Job
from edge_hand.edge.engines.tensorrt.driver import Gpu, Graph
from edge_hand.edge.engines.tensorrt.memory import Buffer
from edge_hand.edge.networks.card import DEFAULT_MODEL, MODELS, ModelError, load_card
from edge_hand.edge.networks.probe import crops
from edge_hand.edge.networks.reload import Reloader, open_lasting_engine
from test_swap import with_weights

FLOAT = MODELS / "dgn-nano.onnx"
GPU = Gpu("Orin", "8.7", "CUDA 12.6", True)


class HostMemory:
    """The CPU's memory as the GPU's. Without graphs, capturing is refused as the driver would."""

    def __init__(self, unified: bool = True, graphs: bool = True) -> None:
        self.unified, self.graphs, self.stream, self.launches, self.copies = unified, graphs, 7, 0, 0

    def current(self) -> Any:
        return nullcontext()

    def buffer(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        host = np.zeros(shape, dtype)
        device = None if self.unified else np.zeros(shape, dtype)
        return Buffer(host, (host if device is None else device).ctypes.data, device)

    def upload(self, buffer: Buffer) -> None:
        if buffer.device is not None:
            buffer.device[...] = buffer.host
            self.copies += 1

    def download(self, buffer: Buffer) -> None:
        if buffer.device is not None:
            buffer.host[...] = buffer.device
            self.copies += 1

    def synchronize(self) -> None:
        pass

    def capture(self, enqueue: Any) -> Graph:
        if not self.graphs:
            raise CudaError("cuStreamEndCapture: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED (900)")

        def launch() -> None:
            self.launches += 1
            enqueue()

        return Graph(launch, lambda: None)

    def close(self) -> None:
        pass


class Context:
    def __init__(self, engine: Any) -> None:
        self.engine, self.addresses = engine, dict[str, int]()

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        session, names = self.engine.session, self.engine.names
        if self.engine.faults.get("execute"):
            return False

        def at(name: str) -> Any:
            shape = self.engine.get_tensor_shape(name)
            raw = (ctypes.c_float * int(np.prod(shape))).from_address(self.addresses[name])
            return np.frombuffer(raw, np.float32).reshape(shape)

        for name, array in zip(names[1:], session.run(None, {names[0]: at(names[0])}), strict=True):
            at(name)[...] = array + self.engine.faults.get("off", 0)
        return True


class CudaEngine:
    def __init__(self, model: bytes, refittable: bool, faults: dict[str, Any]) -> None:
        self.refittable, self.faults = refittable, faults
        self.load(model)

    def load(self, model: bytes) -> None:
        self.session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.tensors = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.names = [tensor.name for tensor in self.tensors]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[self.names.index(name)].shape)

    def get_tensor_dtype(self, name: str) -> str:
        return self.faults.get("dtype", "float32")

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == self.names[0] else "OUTPUT"

    def create_execution_context(self) -> Any:
        return None if self.faults.get("context") else Context(self)


def stand_in(version: str = "10.3.0", refittable: bool = True, **faults: Any) -> Any:
    """TensorRT's module, as much as `engine.py` uses. A plan is the ONNX file after b'PLAN'."""

    class Logger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

        def __init__(self) -> None:
            pass

    def deserialize_cuda_engine(serialized_engine: bytes) -> Any:
        whole = serialized_engine[:4] == b"PLAN"
        return CudaEngine(serialized_engine[4:], refittable, faults) if whole else None

    def refit_from_bytes(engine: Any, model: bytes) -> bool:
        engine.new = model
        return not faults.get("parse")

    def refit_cuda_engine(engine: Any) -> bool:
        engine.load(engine.new)
        return not faults.get("refit")

    return SimpleNamespace(
        __name__=f"tensorrt-{version}",
        __version__=version,
        ILogger=Logger,
        TensorIOMode=SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT"),
        nptype=np.dtype,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize_cuda_engine),
        Refitter=lambda engine, logger: SimpleNamespace(
            engine=engine,
            get_missing_weights=lambda: faults.get("missing", []),
            refit_cuda_engine=lambda: refit_cuda_engine(engine),
        ),
        OnnxParserRefitter=lambda refitter, logger: SimpleNamespace(
            refit_from_bytes=lambda model: refit_from_bytes(refitter.engine, model),
            num_errors=1,
            get_error=lambda i: SimpleNamespace(desc=lambda: "no weights\nfor conv1"),
        ),
    )


def plan_of(model: Path) -> bytes:
    return b"PLAN" + model.read_bytes()


def running(trt: Any = None, memory: Any = None, **more: Any) -> TensorRtEngine:
    return TensorRtEngine(trt or stand_in(), plan_of(FLOAT), load_card(FLOAT), memory or HostMemory(), **more)


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("graphs", [True, False])
def test_it_gives_what_onnxruntime_gives(unified: bool, graphs: bool) -> None:
    memory = HostMemory(unified, graphs)
    engine = running(memory=memory)
    where, how = "mapped memory" if unified else "copies", "graph" if graphs else "no graph"
    assert engine.name == f"tensorrt 10.3.0, fp32, {where}, {how}"
    reference = open_engine("onnxruntime", FLOAT)
    kept = []
    for image in crops(64)[:3]:
        got, expected = engine.run(image), reference.run(image)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        kept.append((got[0], got[0].copy()))
    for array, copy in kept:  # no result is overwritten by the next run
        np.testing.assert_array_equal(array, copy)
    assert (memory.launches == 4) == graphs and (memory.copies == 0) == unified
    check(engine, FLOAT, load_card(FLOAT), 1)
    engine.close()


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"context": True}, "tensorrt: no execution context (out of memory?)"),
        ({"execute": True}, "tensorrt: the GPU did not take the frame"),
        ({"dtype": "float16"}, "tensorrt: image is float16 [1, 1, 64, 64]; the plan must have fixed float32 tensors"),
    ],
)
def test_a_plan_that_does_not_run_is_one_line(fault: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelError) as caught:
        running(stand_in(**fault))
    assert str(caught.value) == why


def test_a_plan_of_another_network_or_rubbish_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^tensorrt: the plan cannot be loaded "):
        TensorRtEngine(stand_in(), b"rubbish", load_card(FLOAT), HostMemory())
    card = load_card(FLOAT)
    other = SimpleNamespace(inputs=card.inputs, outputs={**card.outputs, "right_logit": [2]}, precision="fp32")
    with pytest.raises(ModelError, match=r"not those of the model's card$"):
        TensorRtEngine(stand_in(), plan_of(FLOAT), other, HostMemory())  # type: ignore[arg-type]


def test_an_engine_that_computes_wrongly_is_refused() -> None:
    engine = running(stand_in(off=0.01))
    with pytest.raises(ModelError, match=r"^tensorrt: dgn-nano\.onnx comes out \d\.\d\d mm from onnxruntime; refused$"):
        check(engine, FLOAT, load_card(FLOAT), 1)


def test_a_kept_plan_that_tensorrt_does_not_take_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_HAND_CACHE", str(tmp_path))
    card, trt = load_card(FLOAT), stand_in()
    key = plan_key(trt, GPU, card, Job())
    tensorrt.plan.write(key.path(tmp_path), key, b"no longer a plan")
    monkeypatch.setattr(tensorrt.plan, "run_build", lambda *a: (plan_of(FLOAT), b""))
    engine = tensorrt.from_cache(trt, FLOAT, card, key, Job(), HostMemory())
    assert engine.name.endswith(", built anew)")
    again = tensorrt.from_cache(trt, FLOAT, card, key, Job(), HostMemory())
    assert again.name.endswith(" of the cache)")


def test_a_kept_plan_stays_until_another_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_HAND_CACHE", str(tmp_path))
    card, builds = load_card(FLOAT), list[bool]()
    key = plan_key(stand_in(), GPU, card, Job())

    def build(*_: Any) -> Any:
        builds.append(True)
        raise ModelError("tensorrt: no plan: it took over 1800 s")

    def opened(trt: Any, data: bytes, why: str) -> None:
        tensorrt.plan.write(key.path(tmp_path), key, data)
        with pytest.raises(ModelError, match=why):
            tensorrt.from_cache(trt, FLOAT, card, key, Job(), HostMemory())
        assert tensorrt.plan.read(key.path(tmp_path), key) == data

    monkeypatch.setattr(tensorrt.plan, "run_build", build)
    opened(stand_in(context=True), plan_of(FLOAT), r"no execution context \(out of memory\?\)$")
    opened(stand_in(execute=True), plan_of(FLOAT), "the GPU did not take the frame$")
    assert not builds  # the plan is good, the GPU is full
    opened(stand_in(), b"no longer a plan", "it took over 1800 s$")
    assert len(builds) == 1


def test_a_kept_plan_that_cannot_be_replaced_costs_a_build_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setenv("EDGE_HAND_CACHE", str(tmp_path))
    card, trt = load_card(FLOAT), stand_in()
    key = plan_key(trt, GPU, card, Job())
    tensorrt.plan.write(key.path(tmp_path), key, b"no longer a plan")
    monkeypatch.setattr(tensorrt.plan, "run_build", lambda *a: (plan_of(FLOAT), b""))
    monkeypatch.setattr(tensorrt.plan, "write", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    engine = tensorrt.from_cache(trt, FLOAT, card, key, Job(), HostMemory())
    assert engine.name.endswith(f", built anew, not kept ({tmp_path}: Read-only file system))")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A machine with a GPU, as far as `edge.engines.tensorrt` can tell; .built counts its builds."""
    machine = SimpleNamespace(trt=stand_in(), built=0)

    def build(job: Job, model: bytes, *rest: Any) -> tuple[bytes, bytes]:
        machine.built += 1
        return b"PLAN" + model, b""

    monkeypatch.setenv("EDGE_HAND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tensorrt, "crops", lambda size: crops(size)[:3])
    monkeypatch.setattr(tensorrt, "probe", lambda: GPU)
    monkeypatch.setattr(tensorrt, "import_tensorrt", lambda: machine.trt)
    monkeypatch.setattr(tensorrt, "CudaMemory", HostMemory)
    monkeypatch.setattr(tensorrt.plan, "run_build", build)
    return machine


def test_adapted_weights_are_refitted_where_the_plan_allows(device: Any, tmp_path: Path) -> None:
    new = with_weights(tmp_path / "person.onnx", 1.02)
    engine = tensorrt.open_engine(FLOAT, load_card(FLOAT), 1, refit=True)
    image, before = crops(64)[0], engine.run(crops(64)[0])[0]
    other = refitted(engine, new)
    assert other is not None and device.built == 1 and "refitted" in other.name and other.card == load_card(new)
    np.testing.assert_allclose(other.run(image)[0], open_engine("onnxruntime", new).run(image)[0], atol=1e-5)
    np.testing.assert_array_equal(engine.run(image)[0], before)  # the one that serves is untouched


@pytest.mark.parametrize("refit", [True, False])
def test_a_running_daemon_takes_adapted_weights_and_gives_them_back(refit: bool, device: Any, tmp_path: Path) -> None:
    new, lines = with_weights(tmp_path / "person.onnx", 1.02), list[str]()
    serving = open_lasting_engine("tensorrt", FLOAT, 1, lines.append, refit=refit)
    settings = {"model": FLOAT, "engine": "tensorrt", "threads": 1, "refit_plans": refit}
    reloader = Reloader(settings, lambda: settings, serving, lines.append)
    image, before = crops(64)[0], serving.run(crops(64)[0])[0]
    assert "serves from the next frame on" in reloader.use(new)
    after = serving.run(image)[0]
    assert device.built == (1 if refit else 2) and ("refitted" in serving.name) == refit
    np.testing.assert_allclose(after, open_engine("onnxruntime", new).run(image)[0], atol=1e-5)
    assert np.abs(after - before).max() > 1e-3 and serving.rollback()
    np.testing.assert_array_equal(serving.run(image)[0], before)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"parse": True}, "do not fit: no weights for conv1"),
        ({"missing": ["conv2"]}, "lack conv2"),
        ({"refit": True}, "could not be refitted"),
    ],
)
def test_a_refit_that_fails_leaves_a_plan_to_be_built(
    fault: dict[str, Any], why: str, device: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = with_weights(tmp_path / "person.onnx", 1.02)
    engine = tensorrt.open_engine(FLOAT, load_card(FLOAT), 1, refit=True)
    device.trt = stand_in(**fault)
    assert refitted(engine, new) is None
    assert why in caplog.text and caplog.text.strip().endswith("; building instead")


def test_a_plan_without_refit_or_of_a_version_known_to_err_takes_no_weights(device: Any, tmp_path: Path) -> None:
    new = with_weights(tmp_path / "person.onnx", 1.02)
    device.trt = stand_in(refittable=False)
    assert refitted(tensorrt.open_engine(FLOAT, load_card(FLOAT), 1), new) is None
    flags = []
    for version in ("11.3.0", "11.4.1"):
        device.trt = stand_in(version)
        tensorrt.open_engine(FLOAT, load_card(FLOAT), 1, refit=True)
        flags += [path.read_bytes().split(b"\n")[0] for path in (tmp_path / "cache").glob("*.plan")]
    assert not any(b"refit" in flag and b"11.3.0" in flag for flag in flags)
    assert any(b"refit" in flag and b"11.4.1" in flag for flag in flags)


def test_the_file_for_tensorrt_is_found_beside_the_one_for_the_cpu(tmp_path: Path) -> None:
    for model in (FLOAT, DEFAULT_MODEL):
        for file in (model, model.with_suffix(".json")):
            shutil.copy(file, tmp_path / file.name)
    small, plain = tmp_path / DEFAULT_MODEL.name, tmp_path / FLOAT.name
    assert suited(small) == suited(plain) == plain
    half = artefact(plain, "fp16")
    shutil.copy(plain, half)
    shutil.copy(plain.with_suffix(".json"), half.with_suffix(".json"))
    assert half.name == "dgn-nano-tensorrt-fp16.onnx" and suited(small) == half == suited(half)
    card = json.loads(half.with_suffix(".json").read_text())
    card["training"]["seed"] = 77  # another training is another network
    half.with_suffix(".json").write_text(json.dumps(card))
    assert suited(small) == plain
    plain.unlink()
    with pytest.raises(ModelError, match=r"has no form for TensorRT beside it; `edge-hand export --target tensorrt`$"):
        suited(small)


def test_without_a_driver_it_is_one_line_and_tensorrt_is_not_touched() -> None:
    with pytest.raises(CudaError, match=r"^no CUDA driver \(libnone\.so\.1 not found\)$"):
        cuda.probe("libnone.so.1")
    if not shutil.which("nvidia-smi") and tensorrt.unavailable().startswith("no CUDA driver"):
        with pytest.raises(ModelError, match=r"^tensorrt: no CUDA driver \("):
            open_engine("tensorrt", FLOAT)


@pytest.mark.parametrize("version", ["8.6.1", "10.2.0", "12.0.1"])
def test_a_version_outside_the_range_is_one_line(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in(version))
    with pytest.raises(ModelError, match=f"^tensorrt: version {version}; this edge-hand needs 10.3 or newer"):
        tensorrt.import_tensorrt()
