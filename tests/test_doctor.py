"""The doctor: each ailment of a machine, made of files, is found and comes with what mends it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from edge_hand.edge.cli.doctor import setup_of
from edge_hand.edge.cli.main import cli
from edge_hand.edge.engines import choose, open_engine, tensorrt
from edge_hand.edge.engines.tensorrt.driver import CudaError, Gpu
from edge_hand.edge.engines.tensorrt.memory import CudaMemory
from edge_hand.edge.keys import add_client, make_server
from edge_hand.edge.machine import doctor
from edge_hand.edge.machine.doctor import Setup, examine
from edge_hand.edge.machine.finding import Finding, lines
from edge_hand.edge.networks.card import DEFAULT_MODEL, MODELS, ModelError
from edge_hand.hand.extras import installed

ORIN = Gpu("Orin", "8.7", "CUDA 12.6, # R36 (release)", True)


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def plug_in(root: Path, speed: str = "5000", control: str = "on", product: str = "Intel(R) RealSense(TM) 435") -> Path:
    """A camera on USB, as sysfs has it."""
    device = "sys/bus/usb/devices/2-1"
    return put(root, {
        f"{device}/idVendor": "8086\n", f"{device}/idProduct": "0b07\n", f"{device}/product": product + "\n",
        f"{device}/speed": speed + "\n", f"{device}/busnum": "2\n", f"{device}/devnum": "5\n",
        f"{device}/power/control": control + "\n", "dev/bus/usb/002/005": "",
        "sys/bus/usb/devices/1-1/idVendor": "046d\n", "sys/bus/usb/devices/1-1/product": "Mouse\n",
    })  # fmt: skip


def of(findings: list[Finding], about: str) -> list[Finding]:
    return [finding for finding in findings if finding.about.startswith(about)]


def one(findings: list[Finding], about: str) -> Finding:
    (found,) = of(findings, about)
    return found


# --- GPU


def no_gpu() -> Gpu:
    raise CudaError("no CUDA driver (libcuda.so.1 not found)")


def test_a_machine_without_a_gpu_is_well(tmp_path: Path) -> None:
    assert doctor.gpu(tmp_path, no_gpu) == [Finding("ok", "GPU", "none; the CPU engines serve")]


def test_a_gpu_without_its_driver_is_bad(tmp_path: Path) -> None:
    slot = "sys/bus/pci/devices/0000:01:00.0"
    put(tmp_path, {f"{slot}/vendor": "0x10de\n", f"{slot}/class": "0x030000\n"})
    (found,) = doctor.gpu(tmp_path, no_gpu)
    assert found.level == "bad" and "no CUDA driver" in found.said and found.mend


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One whose Python finds no TensorRT."""
    monkeypatch.setattr(doctor, "installed", lambda name: "")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    return put(tmp_path, {"proc/device-tree/compatible": "nvidia,p3768\0nvidia,tegra234\0"})


def test_a_gpu_that_nothing_uses_is_told(jetson: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)  # no virtual environment
    found = one(doctor.gpu(jetson, lambda: ORIN), "TensorRT")
    assert found.level == "warn" and found.mend.startswith("sudo apt install tensorrt")


def test_an_environment_that_does_not_see_the_system_s_tensorrt_is_opened(
    jetson: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = jetson / "venv"
    venv.create(home)
    monkeypatch.setattr(sys, "prefix", str(home))
    found = one(doctor.gpu(jetson, lambda: ORIN), "TensorRT")
    assert found.mend.endswith(f" -m venv --system-site-packages --upgrade {home}")
    subprocess.run([*found.mend.split(), "--without-pip"], check=True, timeout=60)
    assert "JetPack" in found.said and "JetPack" not in one(doctor.gpu(jetson, lambda: ORIN), "TensorRT").said


def test_a_jetson_s_tensorrt_comes_with_jetpack_and_an_older_one_is_no_failure(
    jetson: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "installed", {"tensorrt": "8.6.2"}.get)  # of JetPack 6.0
    found = doctor.gpu(jetson, lambda: ORIN)
    assert [each.level for each in found] == ["ok", "warn"], "nor is PyCUDA looked for"
    assert "the CPU serves" in found[1].said and found[1].mend == "JetPack 6.1 or newer, which brings it"
    (wheel,) = doctor.tensorrt_fits("10.16.1", 13, ORIN, jetson=True)
    assert (
        wheel.mend.startswith("pip uninstall tensorrt tensorrt_cu13{,_libs,_bindings}, ") and "driver" not in wheel.mend
    )


@pytest.mark.parametrize(
    ("version", "cuda", "level", "said"),
    [
        ("10.3.0", None, "ok", "10.3.0"),
        ("10.16.1", 12, "ok", "10.16.1"),
        ("", None, "ok", "of the system"),
        ("8.6.1", None, "bad", "needs 10.3 or newer"),
        ("12.0.0", None, "bad", "below 12"),
        ("10.16.1", 13, "bad", "is built for CUDA 13; the driver speaks CUDA 12.6"),
    ],
)
def test_tensorrt_must_fit_us_and_the_driver(version: str, cuda: int | None, level: str, said: str) -> None:
    (found,) = doctor.tensorrt_fits(version, cuda, ORIN)
    assert found.level == level and said in found.said and bool(found.mend) == (level == "bad")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tensorrt", None, "is not installed ({} is only a folder)"),
        ("tensorrt.py", "x = 1", "is not installed ({} is something else of that name)"),
        ("tensorrt/__init__.py", "__version__ = '10.3.0'", "is not installed ({} is something else of that name)"),
        ("tensorrt.py", "import no_such_thing", "is not installed (No module named 'no_such_thing')"),
        ("tensorrt.py", "raise OSError('no libnvinfer')", "cannot be imported (no libnvinfer)"),
        ("tensorrt.py", "import sys; sys.exit()", "cannot be imported (SystemExit)"),
    ],
)
def test_what_is_only_called_tensorrt_is_told_by_the_doctor_and_passed_over_by_auto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str | None, said: str
) -> None:
    if content is None and importlib.util.find_spec("tensorrt"):
        pytest.skip("the real one is installed, and comes before a folder")
    path = tmp_path / file
    path.mkdir() if content is None else put(tmp_path, {file: content})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tensorrt, "probe", lambda: ORIN)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    del sys.modules["tensorrt"]  # it is what it was after the test
    told = f"it {said.format(path)}"
    chosen = choose(DEFAULT_MODEL)
    assert (chosen.kind, chosen.passed_over) == ("onnxruntime", (f"tensorrt: {told}",))
    with pytest.raises(ModelError, match=rf"^tensorrt: {re.escape(told)}$"):
        open_engine("tensorrt", MODELS / "dgn-nano.onnx")
    sys.modules.pop("tensorrt", None)
    found = one(doctor.gpu(tmp_path, lambda: ORIN), "TensorRT")
    told = told if content else "it is not installed"
    assert (found.level, found.said) == ("warn", f"{told}: the CPU serves instead of the GPU") and found.mend


@pytest.fixture
def fresh_pycuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A TensorRT that will do, and PyCUDA not imported, before and after."""
    names = ("pycuda", "pycuda.driver")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    trt = SimpleNamespace(__name__="tensorrt", __version__="10.3.0", Runtime=None)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)  # type: ignore[misc]
    yield monkeypatch
    monkeypatch.undo()
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.mark.parametrize(
    ("driver", "version", "level", "said"),
    [
        ("", "2026.1", "ok", "2026.1"),
        ("", "2019.1", "bad", "version 2019.1; this edge-hand needs 2025.1.2 or newer"),
        ("raise ImportError('libcurand.so.10: no such\\nfile')", "2026.1", "bad",
         "pycuda cannot be loaded (libcurand.so.10: no such file): TensorRT cannot be used"),
        ("import pycuda._driver", "2026.1", "bad",
         "pycuda cannot be loaded (No module named 'pycuda._driver'): TensorRT cannot be used"),
    ],
)  # fmt: skip
def test_a_pycuda_must_load_and_be_new_enough(
    driver: str, version: str, level: str, said: str, fresh_pycuda: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(tmp_path, {"pycuda/__init__.py": "", "pycuda/driver.py": driver} | {
        f"{name}-{number}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"
        for name, number in (("pycuda", version), ("tensorrt", "10.3.0"))
    })  # fmt: skip
    fresh_pycuda.syspath_prepend(tmp_path)
    fresh_pycuda.setattr(tensorrt, "probe", lambda: ORIN)
    found = one(doctor.gpu(tmp_path, lambda: ORIN), "PyCUDA")
    assert (found.level, found.said, bool(found.mend)) == (level, said, level == "bad")
    assert tensorrt.unavailable() == (said.removesuffix(": TensorRT cannot be used") if driver else "")


def test_a_missing_pycuda_is_no_broken_one(fresh_pycuda: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh_pycuda.setattr(sys, "path", [])
    fresh_pycuda.setattr(doctor, "installed", lambda name: "10.3.0")
    assert "pycuda is not installed (" in one(doctor.gpu(tmp_path, lambda: ORIN), "PyCUDA").said
    with pytest.raises(ModelError, match=r"^pycuda is not installed \(.*\); pip install --force-reinstall "):
        CudaMemory(True)


# --- files, address, keys


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = doctor.engine_cache(Path("/dev/null/cache"))
    assert found.level == "warn" and found.mend == "/dev/null is no folder: set EDGE_HAND_CACHE to one"
    monkeypatch.setattr(doctor.os, "access", lambda path, how: False)
    (found,) = doctor.engine_cache(tmp_path / "a b")
    assert shlex.split(found.mend)[:5] == ["sudo", "install", "-d", "-o", str(os.geteuid())]
    assert f"'{tmp_path}/a b', or set EDGE_HAND_CACHE" in found.mend


def test_leavings_in_the_cache_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: "10.16.1")
    put(tmp_path, {
        "a.plan": json.dumps({"key": {"tensorrt": "10.16.1"}}) + "\nbytes",
        "b.plan": json.dumps({"key": {"tensorrt": "10.3"}}),
        "c.plan": "torn", "d.part": "", "e.tune": "{}", "f.plan": '{"key": [1]}', "other.txt": "",
    })  # fmt: skip
    (found,) = doctor.engine_cache(tmp_path)
    assert found.level == "warn" and "6 files" in found.said and "4 of no use" in found.said
    assert found.mend == f"rm {tmp_path / 'b.plan'} {tmp_path / 'c.plan'} {tmp_path / 'd.part'} {tmp_path / 'f.plan'}"


def test_what_is_to_be_typed_means_the_files_whatever_they_are_called(tmp_path: Path) -> None:
    plan = tmp_path / "a; reboot.plan"
    plan.write_text("torn")
    (found,) = doctor.engine_cache(tmp_path)
    assert shlex.split(found.mend) == ["rm", str(plan)]
    make_server(folder := tmp_path / "my keys")
    folder.chmod(0o755)
    (found,) = doctor.the_keys(folder)
    assert shlex.split(found.mend) == ["chmod", "700", str(folder)]


def test_a_damaged_model_is_bad_and_the_others_are_named(tmp_path: Path) -> None:
    for name in ("dgn-nano.onnx", "dgn-nano.json", "finder.onnx", "finder.json"):
        shutil.copy(MODELS / name, tmp_path)
    (tmp_path / "finder.onnx").write_bytes(b"x")
    bad, well = doctor.the_models(tmp_path)
    assert bad.level == "bad" and "not the ones its card vouches for" in bad.said
    assert well == Finding("ok", "models", "dgn-nano")
    assert doctor.the_models(tmp_path / "none")[0].level == "bad"


def test_the_model_that_is_set_is_looked_at_too(tmp_path: Path) -> None:
    (bad, _) = doctor.the_models(MODELS, tmp_path / "mine.onnx")
    assert "no such file" in bad.said


def test_an_address_in_use_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        (found,) = doctor.port(f"tcp://127.0.0.1:{number}")
        assert found.level == "warn" and "address already in use" in found.said and "--bind tcp" in found.mend
    assert doctor.port("tcp://127.0.0.1:*")[0].level == "ok"


@pytest.mark.parametrize("host", ["127.0.0.1:", ""])
def test_a_port_for_metrics_that_is_in_use_is_told(host: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"{host}{taken.getsockname()[1]}"
        config = put(tmp_path, {"c.toml": f'metrics = "{address}"\n'}) / "c.toml"
        setup = setup_of(click.Context(cli.commands["doctor"], click.Context(cli)), config, None)
        found = one(examine(setup, tmp_path, cache=tmp_path), "metrics")
        assert found.level == "warn" and found.said == f"{address}: address already in use" and found.mend
    assert one(doctor.metrics_port(address), "metrics").level == "ok"
    assert doctor.metrics_port(None) == []


def test_an_ipc_path_must_be_free_for_a_socket(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert doctor.port(f"ipc://{tmp_path}/hands")[0].level == "ok"
    assert "would be lost" in doctor.port(f"ipc://{tmp_path}/file")[0].said
    assert doctor.port(f"ipc://{tmp_path}/none/hands")[0].mend.startswith("mkdir -p ")


def test_keys_that_others_can_read_are_bad(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    make_server(folder)
    add_client(folder, "robot", tmp_path / "robot.key_secret")
    assert one(doctor.the_keys(folder), "keys") == Finding("ok", "keys", f"{folder}, for robot")
    (folder / "server.key_secret").chmod(0o644)
    found = one(doctor.the_keys(folder), "keys")
    assert found.level == "bad" and found.mend == f"chmod 600 {folder / 'server.key_secret'}"
    (folder / "server.key_secret").chmod(0o600)
    (folder / "clients" / "robot.key").write_text("junk")
    said = f"{folder / 'clients' / 'robot.key'} has no public-key: it is no such key file, or is damaged"
    assert one(doctor.the_keys(folder), "keys") == Finding("bad", "keys", said, "")


def test_keys_of_the_service_must_be_its_user_s(tmp_path: Path) -> None:
    folder, config = tmp_path / "keys", tmp_path / "etc/edge-hand/config.toml"
    make_server(folder)
    add_client(folder, "robot", tmp_path / "robot.key_secret")
    assert one(doctor.the_keys(folder, config, tmp_path), "keys").level == "ok"  # no service is installed
    put(tmp_path, {"etc/passwd": f"root:x:0:0::/root:/bin/sh\nedge-hand:x:{os.getuid() + 1}:990::/:/bin/false\n"})
    found = one(doctor.the_keys(folder, config, tmp_path), "keys")
    assert (found.level, found.mend) == ("warn", f"sudo chown -R edge-hand: {folder}")
    assert one(doctor.the_keys(folder, tmp_path / "mine.toml", tmp_path), "keys").level == "ok"
    put(tmp_path, {"etc/passwd": f"edge-hand:x:{os.getuid()}:990::/:/bin/false\n"})
    assert one(doctor.the_keys(folder, config, tmp_path), "keys").level == "ok"


# --- all together


def test_every_ailment_comes_with_what_mends_it(tmp_path: Path) -> None:
    plug_in(tmp_path, speed="480", control="auto")
    setup = Setup("tcp://127.0.0.1:*", tmp_path / "no-keys", DEFAULT_MODEL, problem="config c.toml: 'hnds' is unknown")
    found = examine(setup, tmp_path, cache=Path("/dev/null/cache"))
    assert {finding.level for finding in found} == {"ok", "warn", "bad"}
    assert all(bool(finding.mend) == (finding.level != "ok") for finding in found)
    text = lines(found)
    assert "[bad]  config: c.toml: 'hnds' is unknown\n       -> edge-hand config --show" in text
    assert text.splitlines()[-1] == f"{sum(f.level == 'ok' for f in found)} well, " + (
        f"{sum(f.level == 'warn' for f in found)} to look at, {sum(f.level == 'bad' for f in found)} bad"
    )


def test_the_command_ends_with_1_if_something_is_bad(tmp_path: Path) -> None:
    wrong = tmp_path / "c.toml"
    wrong.write_text("hnds = 1\n")
    command = [sys.executable, "-m", "edge_hand.edge.cli.main", "doctor", "--json", str(tmp_path / "d.json")]
    well = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (well.returncode, well.stderr) == (0, "") and "models: dgn-nano" in well.stdout
    ill = subprocess.run([*command, "--config", str(wrong)], capture_output=True, text=True, timeout=60, check=False)
    assert (ill.returncode, ill.stderr) == (1, "") and "'hnds' is unknown; did you mean hands?" in ill.stdout
    wrong.write_text('bind = "tcp://0.0.0.0:5555"\n')  # as `edge-hand run` would have it
    ill = subprocess.run([*command, "--config", str(wrong)], capture_output=True, text=True, timeout=60, check=False)
    assert ill.returncode == 1 and "--bind tcp://0.0.0.0:5555: anyone who can reach this address could" in ill.stdout
    found = json.loads((tmp_path / "d.json").read_text())
    assert "bad" in {finding["level"] for finding in found["findings"]} and found["device"]["cpu"]


def test_a_path_that_may_not_even_be_looked_at_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)  # too long; a folder that may not be searched is an OSError as well, but not to root
    assert doctor.the_models(MODELS, path.with_suffix(".onnx"))[0].level == "bad"
    assert one(doctor.the_keys(path), "keys").level == "bad"
    assert one(doctor.engine_cache(path), "engine cache").said.startswith(str(path))
    assert doctor.port(f"ipc://{path}/hands")[0].level == "bad"


def test_what_is_left_of_a_package_half_removed_has_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halfgone-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed("halfgone") == "" and installed("numpy")
