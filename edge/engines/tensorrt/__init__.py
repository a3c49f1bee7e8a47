"""TensorRT on NVIDIA GPUs, Jetsons above all: builds a plan on the device, keeps it, runs it as a CUDA graph.

The driver is asked first, TensorRT and PyCUDA are imported after that. `docs/tensorrt.md` says what has run where.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from ...networks.card import ModelCard, ModelError, load_card, same_training
from ...networks.probe import compare, crops
from ..onnxruntime import OnnxRuntimeEngine
from .build import Job, version
from .driver import CudaError, Gpu, probe
from .engine import PlanRefused, TensorRtEngine
from .memory import CudaMemory, no_pycuda
from .plan import PlanKey, Say, get_plan
from .structure import structure

LEAST, BELOW = (10, 3), (12, 0)
WRONG_REFIT = (11, 3)  # NVIDIA: "may produce incorrect numerical output" of every refittable plan
LIMITS_MM = {"fp32": 0.2, "fp16": 0.5, "int8": 1.0}  # mean distance of vertices from ONNX Runtime on the same file
_log = logging.getLogger(__name__)


def artefact(model: Path, precision: str) -> Path:
    """Where `edge-hand export --target tensorrt` puts the TensorRT form of a float model."""
    return model.with_name(f"{model.stem}-tensorrt-{precision}.onnx")


def suited(model: Path) -> Path:
    """Of the files of a network, that which TensorRT is given: 16 bits, else the float model. Raises ModelError."""
    stem = model.stem.split("-tensorrt-")[0].removesuffix("-int8")
    if "-tensorrt-" in model.stem:
        return model
    plain = model.with_name(f"{stem}.onnx")
    asked = load_card(model)
    for file in (artefact(plain, "fp16"), plain):
        if file.is_file() and (card := load_card(file)).precision != "int8" and same_training(card, asked):
            return file
    raise ModelError(f"model {model.name} has no form for TensorRT beside it; `edge-hand export --target tensorrt`")


def unavailable() -> str:
    """Why this machine cannot run TensorRT, in a few words; empty if it can."""
    try:
        probe()
        import_tensorrt()
        import pycuda.driver  # noqa: F401
    except (CudaError, ModelError) as error:
        return str(error).removeprefix("tensorrt: ")
    except ImportError as error:
        return no_pycuda(error)
    return ""


def open_engine(
    model: Path, card: ModelCard, threads: int, *, refit: bool = False, say: Say | None = None
) -> TensorRtEngine:
    """The model as a running plan, checked against ONNX Runtime; say hears how its build goes. Raises ModelError.

    refit makes a plan whose weights can be replaced, which NVIDIA says is slower; not so in 8 bits.
    """
    try:
        gpu = probe()
    except CudaError as error:
        raise ModelError(f"tensorrt: {error}") from None
    trt = import_tensorrt()
    if refit and (version(trt) == WRONG_REFIT or card.precision == "int8"):
        refit = False
    job = Job(precision=card.precision, refit=refit)
    key = plan_key(trt, gpu, card, job)
    memory = CudaMemory(gpu.unified)
    engine = from_cache(trt, model, card, key, job, memory, say or (lambda line: _log.info("%s", line)))
    if engine.refittable:
        engine.structure = structure(model.read_bytes())
    check(engine, model, card, threads)
    return engine


def from_cache(
    trt: Any, model: Path, card: ModelCard, key: PlanKey, job: Job, memory: Any, say: Say = lambda line: None
) -> TensorRtEngine:
    """The kept plan if TensorRT takes it, else a new one in its place. Raises ModelError."""
    plan = get_plan(model, key, job, say=say)
    try:
        return TensorRtEngine(trt, plan.data, card, memory, plan.note)
    except PlanRefused as error:
        if not plan.kept:
            raise
        _log.warning("%s; building it again", error)
    plan = get_plan(model, key, job, say=say, refused=plan.data)
    return TensorRtEngine(trt, plan.data, card, memory, plan.note)


def refitted(engine: TensorRtEngine, model: Path) -> TensorRtEngine | None:
    """A second engine with the weights of another training of the network that `engine` runs, in milliseconds; None,
    and a line on why, if plan and files do not allow it or it fails: then a plan must be built."""
    try:
        file = _form(model, engine.card.precision)
        card, data = load_card(file), file.read_bytes()
        if not engine.refittable or card.precision == "int8":
            raise ModelError("the plan was not built for other weights")
        if structure(data) != engine.structure:
            raise ModelError(f"{file.name} differs in more than float weights")
        made = TensorRtEngine(import_tensorrt(), engine.plan, card, CudaMemory(probe().unified), "refitted", data)
        made.structure = engine.structure
        check(made, file, card, 1)
        return made
    except Exception as error:  # of whatever kind: a plan can be built
        _log.warning("%s; building instead", " ".join(str(error).split())[:300])
        return None


def _form(model: Path, precision: str) -> Path:
    """Of the files of a network, that in this precision. Raises ModelError."""
    plain = model.with_name(f"{model.stem.split('-tensorrt-')[0].removesuffix('-int8')}.onnx")
    asked = load_card(model)
    for file in (plain, artefact(plain, precision)):
        if file.is_file() and (card := load_card(file)).precision == precision and same_training(card, asked):
            return file
    raise ModelError(f"{model.name} has no {precision} form beside it")


def check(engine: TensorRtEngine, model: Path, card: ModelCard, threads: int) -> None:
    """Refuse an engine that is far from ONNX Runtime on the same file. Raises ModelError."""
    off = compare(engine, OnnxRuntimeEngine(model, card, threads), crops(card.crop_size))
    if not off.mean_mm <= LIMITS_MM.get(card.precision, 0.2):
        engine.close()
        raise ModelError(f"tensorrt: {model.name} comes out {off.mean_mm:.2f} mm from onnxruntime; refused")


def plan_key(trt: Any, gpu: Gpu, card: ModelCard, job: Job) -> PlanKey:
    flags = f"level={job.level}" + (" refit" if job.refit else "")
    return PlanKey(trt.__version__, gpu.name, gpu.capability, gpu.driver, card.sha256, card.precision, flags)


def import_tensorrt() -> Any:
    """The module. Raises ModelError."""
    try:
        trt = importlib.import_module("tensorrt")
    except (Exception, SystemExit) as error:  # a script of that name may do anything
        how = "is not installed" if isinstance(error, ImportError) else "cannot be imported"
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise ModelError(f"tensorrt: it {how} ({said})") from None
    if not (hasattr(trt, "__version__") and hasattr(trt, "Runtime")):  # what a half removed one left, or another's
        file = getattr(trt, "__file__", None)
        what = f"{file} is something else of that name" if file else f"{trt.__path__[0]} is only a folder"
        raise ModelError(f"tensorrt: it is not installed ({what})")
    if not LEAST <= version(trt) < BELOW:
        raise ModelError(f"tensorrt: version {trt.__version__}; this edge-hand needs 10.3 or newer, below 12")
    return trt
