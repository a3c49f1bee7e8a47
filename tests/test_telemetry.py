"""Libraries that would phone home do not when edge-hand loads them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import numpy as np
from edge_hand.edge.engines import open_engine
open_engine({kind!r}).run(np.zeros((1, 1, 64, 64), np.float32))
"""
ASK_REALSENSE = """
from edge_hand.edge.librealsense import import_realsense
rs = import_realsense()
rs.rum.set_cloud_enabled(True)  # as an earlier yes would have it
print(rs.rum.is_cloud_enabled())
"""


def run(code: str, home: Path) -> str:
    """What it prints, as a user with this home folder who has said nothing about statistics."""
    told = ("CI", "ORT_DISABLE_TELEMETRY", "RS2_RUM_CLOUD_ENABLED", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in told} | {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_an_engine_leaves_no_file_that_names_this_machine(kind: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    run(RUN.format(kind=kind), tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_librealsense_uploads_nothing(tmp_path: Path) -> None:
    rs = pytest.importorskip("edge_hand.edge.librealsense")
    try:
        has_statistics = hasattr(rs.import_realsense(), "rum")
    except rs.CameraError as error:
        pytest.skip(str(error))
    if not has_statistics:
        pytest.skip("this librealsense keeps no statistics")
    assert run(ASK_REALSENSE, tmp_path) == "False\n"
