"""The house rules a machine can check: the package list, the direction of imports, names and lengths."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import edge_hand

ROOT = Path(edge_hand.__file__).parent
PARTS = sorted(init.parent for init in ROOT.glob("[!.]*/__init__.py"))

# What each part may import of the others while it is itself imported.
MAY_IMPORT = {
    "hand": (),
    "edge": ("hand",),
    "calibration": ("hand", "edge"),
    "trainer": ("hand", "edge", "calibration"),
    "exporters": ("hand", "trainer", "edge.engines", "edge.finder", "edge.networks.card", "edge.networks.probe"),
}
HEAVY = {"torch", "numba", "onnx", "scipy", "cv2"}
EDGE_NEEDS = {"numpy", "onnxruntime", "zmq", "msgpack", "click", "PIL", "mcap", "tomli"}


COMPILING = Path("edge/compiled/compiling.py")
KERNELS = {path.relative_to(ROOT) for path in ROOT.glob("edge/compiled/[!_]*.py")} - {COMPILING}


@dataclass(frozen=True)
class Import:
    file: Path  # relative to ROOT
    line: int
    target: tuple[str, ...]  # ("edge_hand", "hand", "frames") or ("numpy", "typing")
    lazy: bool  # inside a function

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {'.'.join(self.target)}"


def files() -> list[Path]:
    return sorted(path.relative_to(ROOT) for part in PARTS for path in part.rglob("*.py"))


def imports_of(file: Path, source: str) -> Iterator[Import]:
    package = ("edge_hand", *file.parent.parts)

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, tuple(alias.name.split(".")), lazy)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                yield Import(file, node.lineno, (*base, alias.name), lazy)
        else:
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            children = node.orelse if isinstance(node, ast.If) and typing_only else ast.iter_child_nodes(node)
            inner = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            for child in children:
                yield from visit(child, inner)

    yield from visit(ast.parse(source), lazy=False)


@cache
def imports() -> list[Import]:
    return [found for file in files() for found in imports_of(file, (ROOT / file).read_text())]


def inside(module: tuple[str, ...], part: str) -> bool:
    names = ("edge_hand", *part.split("."))
    return module[: len(names)] == names


def broken(found: list[Import]) -> str:
    return "\n".join(str(one) for one in found)


def test_import_scan_sees_relative_lazy_and_typing_imports() -> None:
    source = """
import numpy as np
from ...hand.frames import DepthFrame
from .. import smooth
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from ...trainer import nets
def start():
    import pyrealsense2
"""
    seen = {(".".join(found.target), found.lazy) for found in imports_of(Path("edge/cameras/realsense.py"), source)}
    assert seen == {
        ("numpy", False),
        ("edge_hand.hand.frames.DepthFrame", False),
        ("edge_hand.edge.smooth", False),
        ("typing.TYPE_CHECKING", False),
        ("pyrealsense2", True),
    }


def test_pyproject_lists_every_package() -> None:
    listed = re.search(r"^packages = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert listed, "pyproject.toml has no packages = [...]"
    on_disk = {"edge_hand"} | {".".join(("edge_hand", *folder.parts)) for folder in {file.parent for file in files()}}
    assert sorted(ast.literal_eval(listed[1])) == sorted(on_disk)


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {ROOT / file.parent for file in files()}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_imports_point_down() -> None:
    upwards = []
    for found in imports():
        part = found.file.parts[0]
        others = [other for other in MAY_IMPORT if other != part and inside(found.target, other)]
        if others and not found.lazy and not any(inside(found.target, allowed) for allowed in MAY_IMPORT[part]):
            upwards.append(found)
    assert not upwards, broken(upwards)


def test_every_part_has_its_place_in_the_order() -> None:
    assert {part.name for part in PARTS} <= set(MAY_IMPORT)


def test_hand_needs_numpy_and_for_the_wire_msgpack() -> None:
    known = sys.stdlib_module_names | {"numpy", "msgpack"}
    found = [i for i in imports() if inside(("edge_hand", *i.file.parts), "hand")]
    others = [i for i in found if i.target[0] not in known and not inside(i.target, "hand")]
    assert found and not others, broken(others)


def test_only_the_command_line_reaches_up_and_only_inside_functions() -> None:
    reaching = [
        i
        for i in imports()
        if i.file.parts[0] == "edge" and (inside(i.target, "trainer") or inside(i.target, "exporters"))
    ]
    elsewhere = [i for i in reaching if not (i.lazy and i.file.parts[1] == "cli")]
    assert not elsewhere, broken(elsewhere)


def test_nothing_that_runs_on_the_device_imports_the_training_stack() -> None:
    heavy = [
        i
        for i in imports()
        if i.file.parts[0] in ("hand", "edge") and i.target[0] in HEAVY and not (i.target[0] == "numba" and compiles(i))
    ]
    assert not heavy, broken(heavy)


def compiles(found: Import) -> bool:
    """Whether this file may import numba: the kernels, and inside a function what has them compiled."""
    return found.file in KERNELS or (found.file == COMPILING and found.lazy)


def test_the_kernels_are_imported_by_each_other_and_else_only_once_they_are_asked_for() -> None:
    names = {("edge_hand", "edge", "compiled", file.stem) for file in KERNELS}
    hasty = [i for i in imports() if i.target[:4] in names and i.file not in KERNELS and not i.lazy]
    assert len(KERNELS) > 3 and not hasty, broken(hasty)


def test_the_daemon_needs_what_pyproject_installs_and_sdks_stay_in_their_backend() -> None:
    known = sys.stdlib_module_names | EDGE_NEEDS | {"edge_hand"}
    edge = [i for i in imports() if i.file.parts[0] == "edge" and i.file.parts[1] not in ("cameras", "engines")]
    others = [i for i in edge if not i.lazy and i.target[0] not in known and not compiles(i)]
    assert not others, broken(others)


def test_command_line_starts_without_heavy_packages() -> None:
    heavy = sorted(HEAVY | {"pyrealsense2", "tensorrt", "PIL"})
    code = f"import sys, edge_hand.edge.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_modules_are_named_after_things() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}
    assert [str(file) for file in files() if {file.stem, *file.parent.parts} & vague] == []


def test_whoever_lacks_a_package_is_told_an_extra_that_there_is_and_to_install_it_from_this_folder() -> None:
    declared = (
        (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    )
    extras = set(re.findall(r"^([a-z]+) = ", declared, re.MULTILINE))
    files = [path for part in PARTS if part.name != "tests" for path in part.glob("*.py")]
    said = "\n".join(path.read_text() for path in [*files, *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
    named = re.findall(r"to_get\(['\"](\w+)['\"]\)|'\.\[([a-z,]+)\]'", said)
    assert {extra for pair in named for extra in "".join(pair).split(",")} <= extras and len(named) > 10
    assert not re.search(r"edge-hand\[|pip install edge-hand\b", said), "no registry has it"


def test_no_module_is_over_400_lines() -> None:
    lengths = {str(file): len((ROOT / file).read_text().splitlines()) for file in files()}
    assert {file: length for file, length in lengths.items() if length > 400} == {}
