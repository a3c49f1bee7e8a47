"""The builder, run as a child process: `python -m edge_hand.edge.engines.tensorrt.build`, started by `plan.py`.

A build takes minutes and gigabytes, holds locks and may crash; the daemon goes on serving meanwhile. On standard input
comes a line of JSON, then the ONNX file's bytes, then the timing cache's; on standard output go lines of JSON, the last
of which announces the plan's bytes and the timing cache's. TensorRT 10.3 to 11.x.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

WORKSPACE_BYTES = 256 << 20
NICENESS = 10

Report = Callable[[dict[str, Any]], None]


class Job(NamedTuple):
    """What to build. module is the package: tensorrt, or tensorrt_rtx, which builds without a GPU. level is TensorRT's
    builder optimisation level, 0 to 5."""

    module: str = "tensorrt"
    precision: str = "fp32"
    refit: bool = False
    level: int = 3


class BuildError(Exception):
    """A build that failed, in one line."""


def build(job: Job, model: bytes, timings: bytes, report: Report) -> tuple[bytes, bytes]:
    """An ONNX model as a plan, and what was learnt about the speed of kernels. Raises BuildError.

    Precision is in the ONNX: a strongly typed network runs every tensor in the type it has there. TensorRT below 10.12
    knows strong typing but not for every layer; where it refuses, the types become allowed, no longer demanded.
    """
    trt = importlib.import_module(job.module)
    logger = make_logger(trt, lambda level, text: report({"log": level, "text": text}))
    typed, old = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), version(trt) < (10, 12)
    try:
        return _build(trt, logger, job, model, timings, report, typed)
    except BuildError as error:
        if not old or str(error).startswith("the ONNX"):
            raise
        report({"log": "WARNING", "text": f"strong typing was refused ({error}); building without"})
        return _build(trt, logger, job, model, timings, report, 0)


def _build(
    trt: Any, logger: Any, job: Job, model: bytes, timings: bytes, report: Report, typed: int
) -> tuple[bytes, bytes]:
    builder = trt.Builder(logger)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = [parser.get_error(i).desc().splitlines()[:2] for i in range(parser.num_errors)]
        raise BuildError("the ONNX cannot be parsed: " + "; ".join(" ".join(lines) for lines in errors)[:300])
    config = builder.create_builder_config()
    flag = trt.BuilderFlag
    if not typed:
        if job.precision != "fp32" and hasattr(flag, "FP16"):
            config.set_flag(flag.FP16)
        if job.precision == "int8" and hasattr(flag, "INT8"):
            config.set_flag(flag.INT8)
    if job.refit:
        config.set_flag(flag.REFIT)
    config.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    config.progress_monitor = monitor = make_monitor(trt, report)
    if not job.module.endswith("rtx"):  # which warns that it ignores them
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
        config.builder_optimization_level = job.level
        kept = config.create_timing_cache(timings)
        if kept is None or not config.set_timing_cache(kept, False):  # of another build of TensorRT, or other clocks
            config.set_timing_cache(config.create_timing_cache(b""), False)
    plan = builder.build_serialized_network(network, config)
    del monitor
    if plan is None:
        raise BuildError("TensorRT gave no plan")
    learnt = None if job.module.endswith("rtx") else config.get_timing_cache()
    return bytes(plan), b"" if learnt is None else bytes(learnt.serialize())


def version(trt: Any) -> tuple[int, int]:
    major, minor = trt.__version__.split(".")[:2]
    return (int(major), int(minor)) if "rtx" not in trt.__name__ else (11, 0)


def make_logger(trt: Any, emit: Callable[[str, str], None]) -> Any:
    """TensorRT's logger: warnings and errors go to emit, from whatever thread."""
    kept = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR, trt.ILogger.Severity.WARNING)

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in kept:
                emit(severity.name, " ".join(msg.split())[:300])

    return Logger()


def make_monitor(trt: Any, report: Report) -> Any:
    """Reports the outermost phase, the others come by the hundred."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self.steps[phase_name] = num_steps
                report({"phase": phase_name, "step": 0, "steps": num_steps})

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                report({"phase": phase_name, "step": step + 1, "steps": self.steps[phase_name]})
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def main(source: BinaryIO, sink: BinaryIO) -> int:
    lock, errors = threading.Lock(), list[str]()

    def send(line: dict[str, Any], *payload: bytes) -> None:
        with lock:
            sink.write(json.dumps(line).encode() + b"\n" + b"".join(payload))
            sink.flush()

    def report(line: dict[str, Any]) -> None:
        if "ERROR" in line.get("log", ""):
            errors.append(line["text"])
        send(line)

    wanted = json.loads(source.readline())
    model, timings = source.read(wanted.pop("model")), source.read(wanted.pop("timings"))
    threading.Thread(target=lambda: (source.read(1), os._exit(3)), daemon=True).start()  # the parent is gone
    try:
        plan, learnt = build(Job(**wanted), model, timings, report)
    except Exception as error:
        why = str(error) if isinstance(error, BuildError) else f"{type(error).__name__}: {error}"
        send({"failed": " ".join(": ".join([why, *errors[:1]]).split())[:400]})
        return 1
    send({"plan": len(plan), "timings": len(learnt)}, plan, learnt)
    return 0


if __name__ == "__main__":
    os.nice(NICENESS)
    with os.fdopen(os.dup(1), "wb") as sink:
        os.dup2(2, 1)  # what libraries print must not get between the bytes
        code = main(sys.stdin.buffer, sink)
    os._exit(code)
