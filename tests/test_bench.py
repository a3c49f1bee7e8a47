"""The bench: what it counts is what happened, at the sensor's rate and flat out."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from edge_hand.edge.bench import BenchError, measure
from edge_hand.edge.bench.chart import draw, write_chart
from edge_hand.edge.bench.frames import Memory, take_in
from edge_hand.edge.bench.measure import WARM_UP, Course, Source, bench, over_time, ready
from edge_hand.edge.bench.report import BEGIN, END, merge, merge_into, table
from edge_hand.edge.bench.usage import Usage, memory_mb
from edge_hand.edge.cameras import EndOfStream, FrameTimeout
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.cli.main import cli
from edge_hand.edge.engines import open_engine
from edge_hand.edge.loop import Loop, topology
from edge_hand.edge.networks.card import DEFAULT_MODEL, MODELS, ModelError
from edge_hand.edge.networks.swap import SwapEngine
from edge_hand.edge.publish import Publisher
from edge_hand.edge.tracker import Tracker
from edge_hand.hand.frames import DepthFrame
from slept_time import SleptTime

MODE = "320x240@60"
FLOAT = MODELS / "dgn-nano.onnx"
DEMO = str(MODELS.parent / "demo" / "hand.mcap")


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """One real measurement, for all that look at one; where this machine was stopped in it, another."""
    for _ in range(5):
        found = bench(
            Source("synthetic", None, MODE), engine="onnxruntime", model=DEFAULT_MODEL, threads=1, frames=30,
            seconds=0.5, startup=False,
        )  # fmt: skip
        if found["at_rate"]["frames"] + found["at_rate"]["dropped"] >= 20:
            break
    return found


# --- frames


# --- what is measured


def test_a_bench_counts_what_happened(result: dict[str, Any]) -> None:
    assert result["frames"] == 30 and result["dropped"] == 0
    for part in (result, result["at_rate"]):
        assert set(part["stages_us"]) == {"capture", "find", "crop", "engine", "refit", "publish", "total"}
        for stage in part["stages_us"].values():
            assert 0 <= stage["p50"] <= stage["p95"] <= stage["p99"]
        assert part["stages_us"]["engine"]["p50"] < part["stages_us"]["total"]["p50"]
        assert part["subscriber"]["joints"] + part["subscriber"]["missing"] >= part["frames"]
        assert part["memory_mb"]["end"]["rss"] > 20 and part["cpu_percent"] > 0 and part["cpu_ms"]["p50"] > 0
    paced = result["at_rate"]
    assert paced["fps"] < 75 and paced["frames"] + paced["dropped"] >= 20
    assert result["model"]["precision"] == "int8" and result["versions"]["onnxruntime"]
    assert result["device"]["cpu"] and result["device"]["cores_allowed"] == len(os.sched_getaffinity(0))
    json.dumps(result)


def test_the_table_says_it_in_words(result: dict[str, Any]) -> None:
    text = table(result)
    for part in (
        "stage",
        "total",
        "30 frames",
        "at 60 Hz: capture to publish p50",
        "% of a core",
        "memory",
        "dgn-nano-int8",
    ):
        assert part in text


def test_the_bench_waits_for_the_engine_that_serves_in_the_end() -> None:
    def late() -> Any:
        time.sleep(0.3)
        return open_engine("onnxruntime", FLOAT)

    serving = SwapEngine(open_engine("onnxruntime", DEFAULT_MODEL))
    serving.offer(late, lambda: open_engine("onnxruntime", FLOAT), 1.0)
    assert ready(serving).card.name == "dgn-nano"
    assert not serving.rollback()  # its probation is over


def test_nothing_to_measure_is_one_line() -> None:
    with pytest.raises(BenchError, match=r"^bench: nothing to measure$"):
        bench(Source("synthetic"), engine="auto", model=DEFAULT_MODEL, threads=1, flat_out=False, at_rate=False)


def test_memory_and_cpu_are_this_process_s() -> None:
    before = memory_mb()
    with Usage() as usage:
        block = np.ones(100 << 17)  # 100 MB, more than the allocator keeps
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass
    use = usage.result()
    assert use["memory_mb"]["growth"] > 50 and before["rss"] > 20 and block[0] == 1
    assert 1 < use["cpu_percent"] <= 100 * len(os.sched_getaffinity(0))
    assert use["watts"] is None or use["watts"] > 0


@pytest.fixture
def course_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Course]]:
    """A course over a camera that falls silent after so many frames; only what it waits takes time."""
    clock = SleptTime()
    passed = SimpleNamespace(perf_counter=clock.monotonic, process_time=time.process_time)
    monkeypatch.setattr(measure, "time", passed)

    class Silent(Memory):
        until = clock.monotonic() + 20

        def read(self, timeout_s: float = 1.0) -> DepthFrame:
            clock.sleep(0.02)
            try:
                return super().read(timeout_s)
            except EndOfStream:
                assert clock.monotonic() < self.until, "waited on and on"
                raise FrameTimeout("front: no frame") from None

    with (
        SyntheticCamera(0, "160x120@50", fps=0) as camera,
        Publisher("tcp://127.0.0.1:*", topology=topology()) as publisher,
    ):
        tracker = Tracker(open_engine("onnxruntime"))
        yield lambda n: Course(Loop(Silent(camera, take_in(camera, n)), tracker, publisher))


def test_a_camera_that_falls_silent_ends_with_the_time_and_that_is_told(
    course_of: Callable[[int], Course], result: dict[str, Any]
) -> None:
    course = course_of(WARM_UP + 4)
    course.warm_up()
    course.go(seconds=1.0)
    found = course.result()
    assert found["frames"] == found["tracked"] == 4 and found["silent_s"] == 0.9
    line = "the camera fell silent: no frame could be used in the last 480 s"
    assert line in table({**result, "at_rate": {**result["at_rate"], "silent_s": 480.0}})
    assert "silent" not in table(result)


def test_a_camera_that_says_nothing_at_all_is_one_line(
    course_of: Callable[[int], Course], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "SILENT_S", 0.1)
    with pytest.raises(BenchError, match=r"^bench: no frame could be used for 0.1 s: front: no frame$"):
        course_of(3).warm_up()
    course = course_of(WARM_UP)
    course.warm_up()
    course.go(seconds=0.1)
    with pytest.raises(BenchError, match=r"^bench: no frame could be used for 0.1\d* s: front: no frame$"):
        course.result()


def test_the_threads_are_those_that_serve_and_not_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = open_engine("onnxruntime", DEFAULT_MODEL, 2)  # as a tuning may find it where none were asked for
    monkeypatch.setattr(measure, "open_engine", lambda *given, **options: tuned)
    found = bench(
        Source("synthetic", None, MODE), engine="onnxruntime", model=DEFAULT_MODEL, threads=0, frames=1, at_rate=False,
        startup=False,
    )  # fmt: skip
    assert found["threads"] == 2


def test_a_package_under_another_name_costs_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", unknown)  # such as onnxruntime-gpu for onnxruntime
    found = bench(
        Source("synthetic", None, MODE), engine="onnxruntime", model=DEFAULT_MODEL, threads=1, frames=1, at_rate=False,
        startup=False,
    )  # fmt: skip
    assert found["versions"]["edge-hand"] == "" and found["versions"]["onnxruntime"] == ort.__version__


# --- the picture


def test_the_course_of_the_latency_keeps_its_worst_frame() -> None:
    total = np.full(1000, 1000.0)
    total[777] = 9000.0
    course = over_time(np.arange(1000) / 100, total, 50)
    assert len(course["s"]) == 50 and course["s"][-1] == 9.99
    assert course["worst_ms"].count(9.0) == 1 and set(course["median_ms"]) == {1.0}


def test_the_picture_is_an_svg_with_both_lines_and_the_period(result: dict[str, Any], tmp_path: Path) -> None:
    write_chart(result, tmp_path / "latency.svg")
    root = ET.parse(tmp_path / "latency.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    lines = root.findall(f"{space}polyline")
    assert len(lines) == 2
    steps = len(result["at_rate"]["over_time"]["s"])
    assert all(len(line.attrib["points"].split()) == steps for line in lines)
    assert "a frame every 16.7 ms" in {text.text for text in root.findall(f"{space}text")}
    inside = [float(y) for line in lines for y in re.findall(r",([\d.]+)", line.attrib["points"])]
    assert min(inside) > 0 and max(inside) < 300


def test_a_name_of_the_cpu_cannot_break_the_picture(result: dict[str, Any]) -> None:
    ET.fromstring(draw({**result, "device": {**result["device"], "cpu": "<a & b>"}}))


# --- tables of devices


def test_results_of_several_devices_make_one_table(result: dict[str, Any], tmp_path: Path) -> None:
    other = json.loads(json.dumps(result))
    other["device"]["board"], other["fps"], other["at_rate"]["watts"] = "NVIDIA Jetson Orin Nano", 1e6, 7.25
    other["startup_s"], other["compare"] = 1.5, {"times_faster": 5.0}
    for name, one in (("here", result), ("orin", other)):
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
    text = merge([tmp_path / "here.json", tmp_path / "orin.json"])
    head, rule, first, second = text.splitlines()
    assert head.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert first.startswith("| NVIDIA Jetson Orin Nano") and "| 7.2 |" in first and "| 1.50 | 5.0 |" in first
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert merge_into(page, text) == 0
    assert merge_into(page, text) == 0
    assert page.read_text() == f"before\n{BEGIN}\n{text}\n{END}\nafter\n"


def test_of_results_of_one_machine_engine_and_network_the_last_makes_the_row(
    result: dict[str, Any], tmp_path: Path
) -> None:
    for name, fps in (("old", 500.0), ("new", 123.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result | {"fps": fps}))
    _, _, row = merge([tmp_path / "old.json", tmp_path / "new.json"]).splitlines()
    assert "| 123 |" in row


def test_a_table_keeps_the_rows_of_other_devices(result: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text((Path(__file__).parent.parent / "docs" / "benchmarks.md").read_text())
    committed = page.read_text()
    one = json.loads(json.dumps(result))
    one["device"]["board"], one["fps"] = "NVIDIA Jetson Orin Nano", 300.4
    (tmp_path / "orin.json").write_text(json.dumps(one))
    runner = CliRunner().invoke(cli, ["bench", "merge", str(tmp_path / "orin.json"), "--into", str(page)])
    assert runner.exit_code == 0 and "1 results, beside" in runner.output
    old, new = (set(text.splitlines()) for text in (committed, page.read_text()))
    assert old < new and len(new - old) == 1
    rates = [
        int(line.split("|")[3]) for line in page.read_text().splitlines() if re.match(r".*\((int8|fp32)\) \|", line)
    ]
    assert rates == sorted(rates, reverse=True) and 300 in rates
    one["fps"], before = 310.0, len(page.read_text().splitlines())
    (tmp_path / "orin.json").write_text(json.dumps(one))
    merge_into(page, merge([tmp_path / "orin.json"]))
    assert len(page.read_text().splitlines()) == before and "| 310 |" in page.read_text()
    page.write_text(f"{BEGIN}\n| device | else |\n|---|---|\n| a | b |\n{END}\n")
    with pytest.raises(BenchError, match="has other columns"):
        merge_into(page, merge([tmp_path / "orin.json"]))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "it is not JSON"),
        pytest.param("[" * 100_000, "it is not JSON", id="deep"),
        ("[]", "not a result of edge-hand bench --json (no stages_us)"),
        ('{"stages_us": 1}', "not a result of edge-hand bench --json (no fps)"),
    ],
)
def test_a_file_that_is_no_result_is_one_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=re.escape(f"bench merge {path}: {why}")):
        merge([path])


@pytest.mark.parametrize(
    "change",
    [{"stages_us": {}}, {"stages_us": [1]}, {"fps": None}, {"device": {"cpu": "x"}}, {"device": "x"}, {"camera": {}},
     {"at_rate": {"fps": 1}}, {"model": "m"}, {"when": ""}, {"when": 5}, {"compare": {"p50_ms": 1}}],
)  # fmt: skip
def test_a_result_with_a_part_missing_is_one_line(
    change: dict[str, Any], result: dict[str, Any], tmp_path: Path
) -> None:
    (path := tmp_path / "x.json").write_text(json.dumps(result | change))
    with pytest.raises(BenchError, match=r"x\.json: a damaged result of edge-hand bench --json \("):
        merge([path])


def test_a_name_of_the_board_cannot_break_the_table(result: dict[str, Any], tmp_path: Path) -> None:
    (path := tmp_path / "x.json").write_text(
        json.dumps(result | {"device": {**result["device"], "board": "two | boards\nin one"}})
    )
    head, _, row = merge([path]).splitlines()
    assert row.startswith("| two / boards in one, ") and row.count("|") == head.count("|")


def test_a_page_without_a_place_for_the_table_is_one_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(BenchError, match="has no place for the table"):
        merge_into(page, "table")
    page.write_bytes(b"caf\xe9")
    with pytest.raises(BenchError, match=r"page\.md is no text in UTF-8$"):
        merge_into(page, "table")


# --- the command


def test_mistakes_on_the_command_line_are_told_before_the_work() -> None:
    for arguments, why in (
        (["--compare", "mediapipe", "--at-rate"], "--compare measures flat out"),
        (["--plot", "x.png"], "the picture is an SVG"),
        (["engines", "--engine", "auto"], "No such option '--engine'"),
    ):
        done = CliRunner().invoke(cli, ["bench", *arguments])
        assert done.exit_code == 2 and why in done.output


def test_a_model_or_engine_that_cannot_be_is_told_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_hand.edge.compiled.compiling.open_arithmetic", None)
    for arguments, why in ((["--engine", "x"], "engine 'x': there is no"), (["--model", "x.plan"], "for one machine")):
        said = CliRunner().invoke(cli, ["bench", "--fast", *arguments]).exception
        assert isinstance(said, ModelError) and why in str(said)


@pytest.mark.slow
def test_a_new_user_s_bench_writes_all_there_is(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_hand.edge.cli.main", "bench", "--mode", MODE, "--frames", "40", "--engine",
               "onnxruntime", "--json", "b.json", "--plot", "b.svg"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "start to first message" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "b.svg"]
    again = subprocess.run([*command[:4], "merge", "b.json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and again.stdout.count("\n") == 3


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("edge_hand.edge.engines", ["eval", "--source", DEMO]),
        ("edge_hand.trainer.evaluate", ["eval", "--data", "synthetic:test", "--n", "1"]),
        ("edge_hand.edge.bench.measure", ["bench", "--camera", "replay", "--source", DEMO]),
        ("edge_hand.calibration.look_at", ["calibrate", "hand", "--source", DEMO, "--source", DEMO, "--out", "r.json"]),
    ],
)
def test_what_waits_for_a_plan_says_how_its_build_goes(
    module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: Any, say: Any, **__: Any) -> None:
        say("tensorrt: Building, 1 of 2")
        raise ModelError("tensorrt: no plan")

    if "trainer" in module:
        pytest.importorskip("torch", reason="the trainer's packages are not installed")
    monkeypatch.setattr(f"{module}.open_engine", opened)
    run = CliRunner().invoke(cli, arguments)
    assert str(run.exception) == "tensorrt: no plan" and "tensorrt: Building, 1 of 2\n" in run.output
