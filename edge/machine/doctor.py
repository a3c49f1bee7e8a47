"""What on this machine keeps hands from being tracked, or tracked fast, and the command that mends it.

Each check looks at one thing and finds what it finds; none changes anything, none raises. Files are read under a root.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import NamedTuple
from urllib.parse import urlsplit

from ...hand.extras import installed, to_get
from ...hand.whole import refusal
from ..compiled.compiling import standing
from ..engines.tensorrt import BELOW, LEAST, import_tensorrt
from ..engines.tensorrt.driver import CudaError, Gpu, probe
from ..engines.tensorrt.memory import GET_PYCUDA, LEAST_PYCUDA, no_pycuda
from ..engines.tensorrt.plan import cache_folder
from ..keys import KeysError, clients, load_server
from ..networks.card import MODELS, ModelError, behind, load_card
from ..publish import taken
from ..view.metrics import check_metrics
from .board import ROOT, has_nvidia, is_jetson, read
from .doctor_machine import cameras, clocks, machine, rights
from .finding import Finding

PACKAGES = ("numpy", "onnxruntime", "pyzmq", "msgpack", "openvino", "pyrealsense2", "tensorrt", "pycuda", "mediapipe")
SERVICE_USER = "edge-hand"
REINSTALL = "pip install --force-reinstall --no-deps . in edge-hand's folder"


class Setup(NamedTuple):
    """What `edge-hand run` would use here: its addresses, keys and model; problem is why that cannot be told."""

    bind: str
    keys: Path | None = None
    model: Path | None = None
    config: Path | None = None
    problem: str = ""
    metrics: str | None = None


def examine(setup: Setup, root: Path = ROOT, cache: Path | None = None) -> list[Finding]:
    """Everything, in the order in which it is read."""
    parts: list[list[Finding]] = [
        machine(root), cameras(root), rights(root), gpu(root), clocks(root), engine_cache(cache or cache_folder()),
        the_models(MODELS, setup.model), the_version(setup.model), the_config(setup), port(setup.bind),
        metrics_port(setup.metrics), the_keys(setup.keys, setup.config, root), arithmetic(), packages(),
    ]  # fmt: skip
    return [finding for part in parts for finding in part]


# --- GPU


def gpu(root: Path = ROOT, ask: Callable[[], Gpu] = probe) -> list[Finding]:
    """Driver, TensorRT and PyCUDA, and whether they fit together. A machine without a GPU is well."""
    try:
        seen = ask()
    except CudaError as error:
        if has_nvidia(root):
            mend = "sudo apt install nvidia-l4t-cuda" if is_jetson(root) else "sudo ubuntu-drivers install, then reboot"
            return [Finding("bad", "GPU", f"there is one from NVIDIA, but {error}", mend)]
        return [Finding("ok", "GPU", "none; the CPU engines serve")]
    found = [Finding("ok", "GPU", f"{seen.name}, compute {seen.capability}, driver {seen.driver}")]
    trt = next(
        (name for name in ("tensorrt", "tensorrt_cu13", "tensorrt_cu12", "tensorrt_cu11") if installed(name)), None
    )
    if trt is None and getattr(importlib.util.find_spec("tensorrt"), "origin", None) is None:  # or only a folder
        return [*found, _no_tensorrt(root)]
    found += tensorrt_fits(installed(trt or "tensorrt"), cuda_of_tensorrt(), seen, is_jetson(root))
    if found[-1].level == "ok":
        try:
            import_tensorrt()
        except ModelError as error:
            return [*found[:-1], _no_tensorrt(root, str(error).removeprefix("tensorrt: "))]
    return found if found[-1].level == "warn" else [*found, _pycuda(installed("pycuda"))]


def _pycuda(version: str) -> Finding:
    try:
        importlib.import_module("pycuda.driver")
    except ImportError as error:
        return Finding("bad", "PyCUDA", f"{no_pycuda(error)}: TensorRT cannot be used", GET_PYCUDA)
    numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
    if numbers and numbers < LEAST_PYCUDA:
        return Finding("bad", "PyCUDA", f"version {version}; this edge-hand needs 2025.1.2 or newer", GET_PYCUDA)
    return Finding("ok", "PyCUDA", version)


def _no_tensorrt(root: Path, said: str = "it is not installed") -> Finding:
    """On a Jetson it is the system's, which a virtual environment may not see."""
    settings = read(Path(sys.prefix, "pyvenv.cfg"))
    if not is_jetson(root):
        mend = to_get("jetson")
    elif sys.prefix != sys.base_prefix and not re.search(r"(?im)^include-system-site-packages *= *true", settings):
        said = f"{sys.prefix} does not see the system's, which JetPack installs"
        python = Path(sys.base_prefix, "bin", "python{}.{}".format(*sys.version_info))
        mend = f"{python} -m venv --system-site-packages --upgrade {sys.prefix}"
        mend = mend if os.access(sys.prefix, os.W_OK) else f"sudo {mend}"
    else:
        mend = "sudo apt install tensorrt python3-libnvinfer"
    return Finding("warn", "TensorRT", f"{said}: the CPU serves instead of the GPU", mend)


def tensorrt_fits(version: str, cuda: int | None, seen: Gpu, jetson: bool = False) -> list[Finding]:
    """Whether this edge-hand can use that TensorRT, and the driver can run what it was built for. version "" is
    unknown; cuda is the CUDA major version that the installed wheel is for. A Jetson's comes with JetPack alone."""
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers and not LEAST <= numbers < BELOW:
        said = f"version {version}; this edge-hand needs 10.3 or newer, below 12"
        if jetson and numbers < LEAST:
            said += ": the CPU serves instead of the GPU"
            return [Finding("warn", "TensorRT", said, "JetPack 6.1 or newer, which brings it")]
        return [Finding("bad", "TensorRT", said, "pip install 'tensorrt>=10.3,<12'")]
    speaks = re.match(r"CUDA (\d+)", seen.driver)
    if cuda and speaks and cuda > int(speaks[1]):
        said = f"{version} is built for CUDA {cuda}; the driver speaks {seen.driver}"
        mend = f"a newer driver, or pip install tensorrt_cu{speaks[1]}"
        if jetson:
            mend = f"pip uninstall tensorrt tensorrt_cu{cuda}{{,_libs,_bindings}}, and JetPack's own serves"
        return [Finding("bad", "TensorRT", said, mend)]
    return [Finding("ok", "TensorRT", version or "of the system")]


def cuda_of_tensorrt() -> int | None:
    """The CUDA major version of the installed TensorRT wheel; None where it is the system's."""
    for major in (13, 12, 11):
        if installed(f"tensorrt_cu{major}") or installed(f"tensorrt_cu{major}_libs"):
            return major
    return None


# --- files


def engine_cache(folder: Path) -> list[Finding]:
    """Plans and tunings: whether they can be kept, how large they are, which are of no use any more."""
    above = next((path for path in (folder, *folder.parents) if os.path.exists(path)), folder)
    if not os.access(above, os.W_OK | os.X_OK) or not above.is_dir():
        mend = f"sudo install -d -o {os.geteuid()} {quote(str(folder))}, or set EDGE_HAND_CACHE"
        if not above.is_dir():
            mend = f"{quote(str(above))} is no folder: set EDGE_HAND_CACHE to one"
        said = f"{folder} cannot be written: every start builds and tunes anew"
        return [Finding("warn", "engine cache", said, mend)]
    try:
        files = sorted(file for file in folder.glob("*") if file.suffix in (".plan", ".timings", ".tune", ".part"))
        size = sum(file.stat().st_size for file in files)
    except OSError:
        files, size = [], 0
    stale = [file for file in files if file.suffix == ".part" or (file.suffix == ".plan" and _stale(file))]
    said = f"{folder}: {len(files)} files, {size / 1e6:.1f} MB"
    if stale:
        names = " ".join(quote(str(file)) for file in stale[:8])
        return [Finding("warn", "engine cache", f"{said}; {len(stale)} of no use to this installation", f"rm {names}")]
    return [Finding("ok", "engine cache", said)]


def _stale(plan: Path) -> bool:
    """Whether a plan is of a TensorRT that is gone, or torn; one of a model that does not ship may be the user's."""
    try:
        with plan.open("rb") as file:
            key = dict(json.loads(file.readline(8192))["key"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return True
    here = installed("tensorrt")
    return bool(here and key.get("tensorrt") and key["tensorrt"] != here)


def the_models(folder: Path = MODELS, wanted: Path | None = None) -> list[Finding]:
    """The models that ship, and the one that is set: bytes that their cards vouch for."""
    found, well = [], []
    for model in sorted({*folder.glob("*.onnx"), *([wanted] if wanted else [])}):
        try:
            load_card(model)
            well.append(model.stem)
        except ModelError as error:
            ours = model.parent == folder
            mend = REINSTALL if ours else "edge-hand export writes both"
            found.append(Finding("bad", "model", str(error).removeprefix("model "), mend))
    if not well and not found:
        found.append(Finding("bad", "model", f"{folder} holds none", REINSTALL))
    return [*found, *([Finding("ok", "models", ", ".join(well))] if well else [])]


def the_version(model: Path | None) -> list[Finding]:
    """Whether the network in use, if it was adapted here, was made from the one that ships now."""
    if model is None or not (model.parent / "version.json").is_file() or not (why := behind(model)):
        return []
    return [Finding("warn", "model", f"{model}: {why}", "edge-hand adapt again, or edge-hand models use shipped")]


def the_config(setup: Setup) -> list[Finding]:
    if setup.problem:
        return [Finding("bad", "config", setup.problem.removeprefix("config "), "edge-hand config --show")]
    return [Finding("ok", "config", str(setup.config or "no file; the defaults"))]


def port(bind: str) -> list[Finding]:
    """Whether the address is free to publish at."""
    url = urlsplit(bind)
    try:
        host, number = url.hostname or "", url.port
    except ValueError:
        host, number = url.hostname or "", None  # tcp://127.0.0.1:*, or no address at all
    if url.scheme == "ipc" or number is None:
        return _ipc(bind) if url.scheme == "ipc" else [Finding("ok", "address", bind)]
    if why := taken("" if host == "*" else host, number):
        mend = f"edge-hand watch --address {bind} shows if it is one of ours; else --bind tcp://{host}:{number + 1}"
        return [Finding("warn", "address", f"{bind}: {why}", mend)]
    return [Finding("ok", "address", f"{bind} is free")]


def metrics_port(address: str | None) -> list[Finding]:
    """Whether that of --metrics is free too; it was checked with the settings."""
    if not address:
        return []
    if why := taken(*check_metrics(address, insecure=True)):
        mend = "edge-hand status shows if one of ours runs; else another --metrics"
        return [Finding("warn", "metrics", f"{address}: {why}", mend)]
    return [Finding("ok", "metrics", f"{address} is free")]


def _ipc(bind: str) -> list[Finding]:
    path = Path(bind.removeprefix("ipc://"))
    if os.path.exists(path) and not stat.S_ISSOCK(path.stat().st_mode):
        return [Finding("bad", "address", f"{path} is no socket, and would be lost", "take another --bind")]
    if not os.path.isdir(path.parent):
        return [
            Finding("bad", "address", f"the folder of {path} does not exist", f"mkdir -p {quote(str(path.parent))}")
        ]
    return [Finding("ok", "address", bind)]


def the_keys(folder: Path | None, config: Path | None = None, root: Path = ROOT) -> list[Finding]:
    """Modes and owners of the daemon's keys; of those that the service's configuration names, whether they are its
    user's, too."""
    if folder is None:
        return [Finding("ok", "keys", "none are set: this machine's own programs can listen, no others")]
    try:
        load_server(folder)
        names = sorted(clients(folder).values())
        owners = {path.stat().st_uid: path for path in (folder, *folder.rglob("*"))}
    except KeysError as error:
        said, _, mend = str(error).rpartition(": ")
        if not mend.startswith(("chmod ", "sudo ", "edge-hand ")):  # no command
            said, mend = str(error), ""
        return [Finding("bad", "keys", said, mend)]
    except OSError as error:
        said = f"{folder} cannot be read ({refusal(error)})"
        return [Finding("bad", "keys", said, "run it as the daemon's user, or with sudo")]
    user = re.search(rf"(?m)^{SERVICE_USER}:[^:]*:(\d+):", read(root / "etc/passwd"))
    others = [path for uid, path in owners.items() if user and uid != int(user[1])]
    if others and config == root / "etc/edge-hand/config.toml":
        said = f"{others[0]} is not {SERVICE_USER}'s: the service cannot use it"
        return [Finding("warn", "keys", said, f"sudo chown -R {SERVICE_USER}: {quote(str(folder))}")]
    return [
        Finding("ok", "keys", f"{folder}, for {', '.join(names) or 'nobody yet: edge-hand keys add ' + str(folder)}")
    ]


def arithmetic() -> list[Finding]:
    """What the loop computes with around the network."""
    said, mend = standing()
    return [Finding("warn" if mend else "ok", "arithmetic", said, mend)]


def packages() -> list[Finding]:
    """Versions of what is installed."""
    versions = {name: installed(name) for name in PACKAGES}
    return [Finding("ok", "packages", ", ".join(f"{name} {version}" for name, version in versions.items() if version))]
