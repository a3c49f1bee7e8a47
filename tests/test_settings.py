"""Settings that cannot work: `run` and `config` refuse them alike, before anything begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_cli import edge_hand, refusal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--camera webcam", "camera 'webcam': there is no such camera; possible are faulty, realsense, replay, sy"),
        ("--camera synthetic --source x", "synthetic 'x': --source is the scene's seed, a whole number such as 7"),
        ("--camera synthetic --loop", "camera 'synthetic' has no option --loop; it has --mode, --fps"),
        ("--camera synthetic --mode big", "mode 'big': expected WIDTHxHEIGHT@FPS, such as 848x480@90, "),
        ("--mode 3", "mode '3': expected WIDTHxHEIGHT@FPS, such as 848x480@90, "),
        ("--camera synthetic --mode 20000x20000@9", "mode 20000x20000@9: more than 4000000 pixels or 300 Hz are not p"),
        ("--camera synthetic --fps -1", "--fps -1: give the rate in Hz, or 0 for as fast as possible"),
        ("--camera faulty --source webcam:?hang@1", "camera 'webcam': there is no such camera; possible are faulty, "),
        ("--camera replay", "replay needs --source PATH: a folder of 16-bit PNGs"),
        ("--camera realsense --loop", "--fps and --loop are for recordings; a camera's rate is in its mode: "),
        ("--engine tpu", "engine 'tpu': there is no such engine; possible are auto, onnxruntime"),
        ("--model such", "model such: no such file (shipped with edge-hand: dgn-nano"),
        ("--model finder", "model "),
        ("--model /", "model '/': give a name or an .onnx file"),
        ("--finder=", "model '.': give a name or an .onnx file"),
        ("--finder nope", "model nope: no such file (shipped with edge-hand: dgn-nano"),
        ("--camera synthetic --bind 5555", "--bind 5555: expected tcp://HOST:PORT or ipc://PATH, for example "),
        ("--metrics foo", "--metrics foo: expected [HOST:]PORT, for example 127.0.0.1:9100"),
        ("--metrics 0.0.0.0:9100", "--metrics 0.0.0.0: anyone who can reach this address could read it; "),
        (
            "--camera synthetic --bind tcp://0.0.0.0:5999",
            "--bind tcp://0.0.0.0:5999: anyone who can reach this address could read the hands; use tcp://127.0.0.1:",
        ),
    ],
)
def test_what_starting_again_would_not_mend_is_exit_code_2_and_config_says_the_same(flags: str, text: str) -> None:
    said = refusal("run", *flags.split(), code=2)
    assert said.startswith(text)
    assert refusal("config", *flags.split(), code=2) == said


def test_a_model_on_a_disk_that_is_not_mounted_yet_is_tried_again(tmp_path: Path) -> None:
    for option in ("--model", "--finder"):
        said = refusal("run", "--camera", "synthetic", option, tmp_path / "late.onnx", code=1)
        assert said.startswith(f"model {tmp_path}/late.onnx: no such file")
        assert refusal("config", "--camera", "synthetic", option, tmp_path / "late.onnx", code=1) == said


def test_a_recording_that_is_not_there_yet_may_be_waited_for(tmp_path: Path) -> None:
    replay = ("--camera", "replay", "--source", tmp_path / "no.mcap")
    assert refusal("config", *replay).startswith(f"{tmp_path}/no.mcap does not exist; replay reads ")
    assert edge_hand("config", *replay, "--wait").stdout.endswith(": all is well\n")
    assert refusal("config", *replay, "--wait", "--fps", -1, code=2).startswith("--fps -1: ")


@pytest.mark.parametrize(("command", "option"), [("run", "--camera"), ("run", "--engine"), ("bench", "--camera")])
def test_help_shows_kinds_where_there_are_kinds(command: str, option: str) -> None:
    assert f" {option} KIND " in edge_hand(command, "--help").stdout
