"""Every name of TensorRT that the code uses exists, with those arguments, in every version that is supported."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import edge_hand
import pytest
from edge_hand.edge.engines.tensorrt.structure import structure
from edge_hand.edge.networks.card import MODELS
from test_swap import with_weights

ROOT = Path(edge_hand.__file__).parent
CODE = ROOT / "edge" / "engines" / "tensorrt"  # of it, memory.py is PyCUDA's
SURFACE = ROOT.parent / "shared" / "sketches" / "tensorrt" / "api_surface_slim.json"
FLOAT = MODELS / "dgn-nano.onnx"
SUPPORTED = ("10.3.0", "10.7.0", "10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106")
ALIAS = {"flag": "BuilderFlag"}  # `flag = trt.BuilderFlag`
# Whose methods and properties the variables are.
OBJECTS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "parser": ("OnnxParser", "OnnxParserRefitter"),
    "refitter": "Refitter",
    "learnt": "ITimingCache",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "_context": "IExecutionContext",
    "_runtime": "Runtime",
}
RETURNED = {"get_error": "ParserError"}  # whose methods those of what a method gives are
OWN = {"card", "close", "plan", "run", "name", "structure"}  # of TensorRtEngine, which is called engine too


class Use(NamedTuple):
    where: str
    owner: str  # "Builder", or "" for the module
    name: str
    call: ast.Call | None
    guarded: bool  # by hasattr


def uses(source: str, file: str) -> Iterator[Use]:
    tree = ast.parse(source)
    guards = {
        str(node.args[1].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr" and isinstance(node.args[1], ast.Constant)
    }
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in [ast.unparse(b).removeprefix("trt.") for b in node.bases if ast.unparse(b).startswith("trt.")]:
                for method in [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("__")]:
                    as_called = ast.Call(ast.Name(method.name), list[ast.expr](map(_name, method.args.args[1:])), [])
                    yield Use(f"{file}:{method.lineno}", base, method.name, as_called, False)
        if not isinstance(node, ast.Attribute):
            continue
        if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
            if owner := RETURNED.get(node.value.func.attr):
                yield Use(f"{file}:{node.lineno}", owner, node.attr, called.get(id(node)), False)
            continue
        chain = ast.unparse(node).split(".")
        where, call, guarded = f"{file}:{node.lineno}", called.get(id(node)), chain[-1] in guards
        if chain[0] in ALIAS:
            chain = ["trt", ALIAS[chain[0]], *chain[1:]]
        if chain[0] == "trt" and not any(part.startswith("__") for part in chain):
            yield Use(where, ".".join(chain[1:-1]), chain[-1], call, guarded)
        elif len(chain) >= 2 and chain[-2] in OBJECTS and chain[-1] not in OWN:
            owners = OBJECTS[chain[-2]]
            for owner in (owners,) if isinstance(owners, str) else owners:
                if not (owner == "OnnxParserRefitter" and chain[-1] == "parse") and not (
                    owner == "OnnxParser" and chain[-1].startswith("refit")
                ):
                    yield Use(where, owner, chain[-1], call, guarded)


def _name(argument: ast.arg) -> ast.Name:
    return ast.Name(argument.arg)


@functools.cache
def every_use() -> list[Use]:
    return [use for file in sorted(CODE.glob("[!m]*.py")) for use in uses(file.read_text(), file.name)]


def wrong(use: Use, surface: dict[str, Any], versions: tuple[str, ...]) -> str:
    """What is wrong with a use in one of the versions; empty if nothing is."""
    if not use.owner:
        kinds = ("classes", "enums", "functions", "constants")
        found = [surface[kind][use.name] for kind in kinds if use.name in surface[kind]]
        if not found:
            return f"{use.where}: trt.{use.name} is unknown"
        signatures = found[0].get("init") or found[0].get("sigs") or []
        return _missing(use, found[0]["in"], versions) or _miscalled(use, signatures)
    if use.owner == "ILogger.Severity":
        return _missing(use, surface["classes"]["ILogger"]["constants"].get(use.name, {"in": []})["in"], versions)
    if use.owner in surface["enums"]:
        members = surface["enums"][use.owner]["members"]
        return _missing(use, members.get(use.name, []), versions)
    thing = surface["classes"][use.owner]
    method, value = thing["methods"].get(use.name), thing["properties"].get(use.name)
    present = method["in"] if method else value["in"] if isinstance(value, dict) else value or []
    return _missing(use, present, versions) or _miscalled(use, method["sigs"] if method else [])


def _miscalled(use: Use, signatures: list[str]) -> str:
    if use.call is None or not signatures:
        return ""
    given = len(use.call.args), {keyword.arg for keyword in use.call.keywords}
    if any(_fits(signature, *given) for signature in signatures):
        return ""
    return f"{use.where}: {use.owner or 'trt'}.{use.name} is not called so: {signatures[0]}"


def _missing(use: Use, present: list[str], versions: tuple[str, ...]) -> str:
    absent = [version for version in versions if version not in present]
    return f"{use.where}: {use.owner}.{use.name} is missing in {absent}" if absent and not use.guarded else ""


def _fits(signature: str, positional: int, keywords: set[str | None]) -> bool:
    match = re.match(r"\w+\((.*)\)( ->|$)", signature)
    parts = [part.strip() for part in re.sub(r"\[[^\]]*\]", "", match[1] if match else "").split(",") if part.strip()]
    parts = [part for part in parts if not part.startswith("self")]
    names = [part.split(":")[0] for part in parts]
    least = sum("=" not in part for part in parts)
    return least <= positional + len(keywords) <= len(parts) and keywords <= set(names)


@pytest.fixture(scope="module")
def surface() -> dict[str, Any]:
    if not SURFACE.is_file():
        pytest.skip(f"{SURFACE} is not here: the names of TensorRT's real bindings, version by version")
    loaded: dict[str, Any] = json.loads(SURFACE.read_text())
    return loaded


def test_the_code_uses_what_every_supported_version_has(surface: dict[str, Any]) -> None:
    found = every_use()
    assert len(found) > 45 and {use.owner for use in found} > {"Builder", "ICudaEngine", "Refitter", "BuilderFlag"}
    assert [text for use in found if (text := wrong(use, surface, SUPPORTED))] == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16 is missing in ['11.0.0.114', '11.4.0.106']"),
        ("engine.num_bindings", "ICudaEngine.num_bindings is missing in"),
        ("self._context.execute_async_v3(stream=0)", "is not called so: execute_async_v3"),
        ("self._context.set_tensor_address('x')", "is not called so: set_tensor_address"),
        ("trt.Nonsense", "trt.Nonsense is unknown"),
        ("trt.Builder(1, 2, 3)", "trt.Builder is not called so: __init__"),
        ("trt.Runtime()", "trt.Runtime is not called so: __init__"),
        ("trt.OnnxParser(network)", "trt.OnnxParser is not called so: __init__"),
        ("trt.nptype()", "trt.nptype is not called so: nptype"),
        ("trt.ILogger.Severity.NONSENSE", "ILogger.Severity.NONSENSE is missing in"),
        ("parser.get_error(0).nonsense()", "ParserError.nonsense is missing in"),
        ("parser.get_error(0).desc(1)", "ParserError.desc is not called so: desc"),
        (
            "class M(trt.IProgressMonitor):\n def phase_begin(self, a): ...",
            "IProgressMonitor.phase_begin is missing",
        ),
        (
            "class M(trt.ILogger):\n def log(self, severity): ...",
            "ILogger.log is not called so: log(",
        ),
    ],
)
def test_the_check_sees_what_a_version_lacks(line: str, why: str, surface: dict[str, Any]) -> None:
    assert any(why in wrong(use, surface, SUPPORTED) for use in uses(line, "x.py"))


def test_the_stand_ins_of_the_tests_have_tensorrt_s_names(surface: dict[str, Any]) -> None:
    import test_plan
    import test_tensorrt

    def methods(tree: ast.AST, owner: str) -> list[ast.FunctionDef]:
        (found,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == owner]
        return [part for part in found.body if isinstance(part, ast.FunctionDef) and part.name != "__init__"]

    engine = ast.parse(Path(test_tensorrt.__file__).read_text())
    builder = ast.parse("if True:" + test_plan.PRETEND)
    for tree, mine, theirs in (
        (engine, "Context", "IExecutionContext"),
        (engine, "CudaEngine", "ICudaEngine"),
        (builder, "Builder", "Builder"),
        (builder, "Config", "IBuilderConfig"),
        (builder, "OnnxParser", "OnnxParser"),
    ):
        for method in methods(tree, mine):
            if method.name == "load":  # the stand-in's own
                continue
            signatures = surface["classes"][theirs]["methods"][method.name]["sigs"]
            assert any(_fits(s, len(method.args.args) - 1, set()) for s in signatures), method.name


def test_nvidia_s_bindings_have_the_names_too() -> None:
    try:
        trt = importlib.import_module("tensorrt_rtx")
    except ImportError:
        pytest.skip("tensorrt_rtx is not installed (pip install tensorrt_rtx_cu12)")
    gone = []
    for use in every_use():
        thing: Any = trt
        for part in [*filter(None, use.owner.split(".")), use.name]:
            thing = getattr(thing, part, None)
        if thing is None and not use.guarded:
            gone.append(use)
    assert gone == []


def test_two_trainings_of_one_network_have_one_structure(tmp_path: Path) -> None:
    other = with_weights(tmp_path / "other.onnx", 1.5)
    data = FLOAT.read_bytes()
    assert other.read_bytes() != data and structure(other.read_bytes()) == structure(data)
    assert structure((MODELS / "dgn-nano-int8.onnx").read_bytes()) != structure(data)
    changed = data.replace(b"/net/MatMul_1_output_0", b"/net/MatMul_2_output_0")
    assert changed != data and structure(changed) != structure(data)


@pytest.mark.parametrize("data", [b"", b"no model", bytes(50), b"\xff" * 20, FLOAT.read_bytes()[:9999]])
def test_what_is_no_network_has_no_structure(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^not "):
        structure(data)
