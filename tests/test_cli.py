"""The command line as a user meets it: processes, exit codes, one line for a mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import edge_hand.edge.cli.main as commands
import numpy as np
import pytest
from click.testing import CliRunner
from depth_png import encode_depth_png
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.cli.main import cli
from edge_hand.edge.client import subscribe
from edge_hand.edge.networks.card import DEFAULT_MODEL, sha256
from edge_hand.edge.recordings.recording import Recording, RecordingWriter
from edge_hand.hand.wire import JointsMessage

TIMEOUT_S = 60
COMMAND = [sys.executable, "-m", "edge_hand.edge.cli.main"]
CAMERA = {"width": 64, "height": 48, "fx": 50.0, "fy": 50.0, "cx": 31.5, "cy": 23.5, "depth_scale_m": 0.001}
DEPTH = np.random.default_rng(0).integers(0, 2000, (48, 64)).astype(np.uint16)
SUMMARY = r"\d+ frames in \d+\.\d s \(\d+\.\d a second\), a hand in \d+; dropped \d+, unusable \d+"


def edge_hand(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT_S, cwd=cwd, check=False
    )


def refusal(*arguments: object, code: int = 1) -> str:
    """What a command that ends in a user's mistake says, without `edge-hand: `."""
    done = edge_hand(*arguments)
    lines = done.stderr.splitlines()
    assert done.returncode == code, done
    assert code == 1 or not done.stdout, done  # 2 is said before anything begins
    assert len(lines) == 1 and lines[0].startswith("edge-hand: "), done.stderr
    return lines[-1].removeprefix("edge-hand: ")


@contextmanager
def running(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`edge-hand run ... --bind` on any port: the process, once it publishes, and its address."""
    command = [*COMMAND, "run", *map(str, arguments), "--bind", "tcp://127.0.0.1:*"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        guard = threading.Timer(TIMEOUT_S, process.kill)
        guard.start()
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            if line.startswith("engine: "):  # why this one
                line = process.stdout.readline()
            address = re.search(r"-> (tcp://127\.0\.0\.1:\d+) ", line)
            assert address, line + process.stderr.read()
            yield process, address[1]
        finally:
            guard.cancel()
            process.kill()


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames of a hand in 2 s."""
    path = tmp_path_factory.mktemp("cli") / "hand.mcap"
    with SyntheticCamera(0, "424x240@30", fps=0) as camera, RecordingWriter(path) as writer:
        for seq in range(60):
            writer.write(camera.frame(seq))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One small frame; the tests break it."""
    path = tmp_path / "take"
    path.mkdir()
    (path / "camera.json").write_text(json.dumps(CAMERA))
    (path / "0.png").write_bytes(encode_depth_png(DEPTH))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that is no network, and a card that vouches for it."""
    path = tmp_path / "net.onnx"
    path.write_bytes(b"no network")
    card = json.loads(DEFAULT_MODEL.with_suffix(".json").read_text()) | {"sha256": sha256(path)}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


# --- help


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_help_shows_an_example(command: str) -> None:
    done = edge_hand(command, "--help")
    assert done.returncode == 0
    examples = [line for line in done.stdout.splitlines() if line.strip().startswith(f"edge-hand {command}")]
    assert examples and not done.stderr


def test_help_and_version_without_a_command() -> None:
    done = edge_hand("-h")
    assert done.returncode == 0
    assert any(line.strip().startswith("edge-hand run ") for line in done.stdout.splitlines())
    for command in cli.commands:
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)
    assert re.search(r"\d+\.\d+", edge_hand("--version").stdout)


# --- run


def test_run_ends_with_the_recording_and_says_what_it_did(recording: Path) -> None:
    done = edge_hand(
        "run", "--camera", "replay", "--source", recording, "--fps", 0, "--frames", 25, "--bind", "tcp://127.0.0.1:*"
    )
    assert done.returncode == 0
    engine, opening, summary = done.stdout.splitlines()
    assert re.match(r"engine: (tensorrt: .+; )?onnxruntime .+, 1 thread$", engine)
    assert re.fullmatch(SUMMARY, summary) and summary.startswith("25 frames in ") and not done.stderr
    assert int(re.search(r"a hand in (\d+)", done.stdout)[1]) >= 20  # type: ignore[index]
    engine = rf"\(onnxruntime \S+, 1 thread, {re.escape(DEFAULT_MODEL.name)}\)"
    assert re.fullmatch(rf"synthetic-0 at full speed -> tcp://127\.0\.0\.1:\d+  {engine}", opening)


def test_run_ends_by_itself_and_names_the_last_trouble(folder: Path) -> None:
    (folder / "1.png").write_bytes(b"no picture")
    done = edge_hand("run", "--camera", "replay", "--source", folder, "--bind", "tcp://127.0.0.1:*")
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("1 frames in ")
    assert done.stdout.strip().endswith("unusable 1")
    assert done.stderr.splitlines()[-1].startswith(f"last trouble: {folder}/1.png is not a PNG")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_looped_run_in_order(recording: Path, number: signal.Signals) -> None:
    with running("--camera", "replay", "--source", recording, "--loop") as (process, address):
        with subscribe(address, timeout_s=TIMEOUT_S) as messages:
            next(messages)  # it runs
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert re.fullmatch(SUMMARY, out.strip()) and "Traceback" not in err


def test_a_subscriber_gets_the_hand_of_a_running_daemon(recording: Path) -> None:
    with (
        running("--camera", "replay", "--source", recording, "--loop") as (_, address),
        subscribe(address, ["joints.synthetic-0"], timeout_s=TIMEOUT_S) as messages,
    ):
        for message in messages:
            assert isinstance(message, JointsMessage) and message.camera == "synthetic-0"
            if message.hands:
                break
    (hand,) = message.hands
    assert hand.joints_m.shape == (21, 3) and np.isfinite(hand.joints_m).all()
    assert 0.2 < np.median(hand.joints_m[:, 2]) < 1.0


def test_watch_prints_what_a_daemon_publishes(recording: Path) -> None:
    with running("--camera", "replay", "--source", recording, "--loop") as (_, address):
        done = edge_hand("watch", "--address", address, "--frames", 3)
    assert done.returncode == 0 and done.stdout.startswith("synthetic-0 seq ") and not done.stderr


# --- bench, record, eval


@pytest.mark.slow
def test_bench_writes_every_figure(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "bench.json"
    done = edge_hand("bench", "--camera", "replay", "--source", recording, "--json", out)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(out.read_text())
    for stage in ("capture", "find", "crop", "engine", "refit", "publish", "total"):
        p50, p95, p99 = (result["stages_us"][stage][p] for p in ("p50", "p95", "p99"))
        assert 0 <= p50 <= p95 <= p99
    for stage in ("crop", "engine", "refit", "publish", "total"):
        assert result["stages_us"][stage]["p50"] > 0
    assert result["frames"] == 40 and result["dropped"] == 0  # the first 20 are for warming up
    assert 0 < result["fps"] < 1e6 / result["stages_us"]["engine"]["p50"] * 1.5
    assert result["device"]["cores"] == os.cpu_count() and result["device"]["python"]
    assert result["camera"]["name"] == "synthetic-0" and result["model"]["sha256"] == sha256(DEFAULT_MODEL)
    assert [path.name for path in out.parent.iterdir()] == ["bench.json"]
    assert ["stage", "p50", "p95", "p99", "us"] in [line.split() for line in done.stdout.splitlines()]
    assert "dropped 0" in done.stdout


def test_bench_of_too_few_frames_is_one_line(folder: Path) -> None:
    assert refusal("bench", "--camera", "replay", "--source", folder) == (
        "bench: the camera gave 1 frames, more than 20 are needed"
    )


def test_a_recording_holds_every_bit(tmp_path: Path) -> None:
    first, second = tmp_path / "a.mcap", tmp_path / "b.mcap"
    done = edge_hand("record", "--camera", "synthetic", "--source", 3, "--mode", "96x64@30", "--frames", 5, first)
    assert done.returncode == 0 and done.stdout == f"5 frames in {first}\n"
    done = edge_hand("record", "--camera", "replay", "--source", first, second)
    assert done.returncode == 0 and done.stdout == f"5 frames in {second}\n"
    with SyntheticCamera(3, "96x64@30", fps=0) as camera:
        for path in (first, second):
            with Recording(path) as recording:
                assert recording.intrinsics == camera.intrinsics
                frames = list(recording)
            assert [frame.seq for frame in frames] == list(range(5))
            for frame in frames:
                np.testing.assert_array_equal(frame.depth, camera.frame(frame.seq).depth)
                assert frame.depth_unit_m == 0.001
    assert refusal("record", "--camera", "synthetic", first).startswith(f"{first} exists already; ")


@pytest.mark.parametrize("command", ["record --camera synthetic {}", "run --camera synthetic --record {}"])
def test_a_recording_is_written_under_no_name_that_is_not_read(command: str, tmp_path: Path) -> None:
    done = edge_hand(*command.format(tmp_path / "x.bag").split(), "--frames", 1)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr.endswith(
        f"{tmp_path}/x.bag: a recording's name ends in .mcap, for example {tmp_path}/x.bag.mcap\n"
    )


def test_eval_of_a_recording_prints_and_writes(recording: Path, tmp_path: Path) -> None:
    done = edge_hand("eval", "--source", recording, "--n", 2, "--out", tmp_path / "o", "--json", tmp_path / "e.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "e.json").read_text())
    assert result["frames"] == 2 and len(result["per_frame"]) == 2
    assert done.stdout.splitlines()[-1].startswith(f"found {result['found']} of 2 ")
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["00000.png", "00001.png", "sheet.png"]


# --- a user's mistakes


def test_a_missing_source_is_one_line(tmp_path: Path) -> None:
    assert refusal("run", "--camera", "replay", "--source", tmp_path / "no").startswith(f"{tmp_path}/no does not exist")
    assert refusal("eval", "--source", tmp_path / "no").startswith(f"{tmp_path}/no does not exist; replay reads ")


def test_a_folder_that_is_no_recording_is_one_line(folder: Path) -> None:
    run = ("run", "--camera", "replay", "--source", folder, "--bind", "tcp://127.0.0.1:*")
    (folder / "camera.json").write_text(json.dumps({"width": 64, "height": 48, "depth_scale_m": 0.001}))
    assert refusal(*run).startswith(f"{folder}/camera.json lacks fx, fy, cx, cy; it must give width, height")
    (folder / "camera.json").unlink()
    assert refusal(*run) == f"{folder}/camera.json is missing; it gives {', '.join(CAMERA)}"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (encode_depth_png(DEPTH)[:1500], "is a truncated or damaged PNG ("),
        (encode_depth_png(DEPTH[:24]), "is 64x24 px; the intrinsics are for 64x48"),
    ],
)
def test_a_recording_of_nothing_but_bad_frames_is_one_line(folder: Path, data: bytes, text: str) -> None:
    (folder / "0.png").write_bytes(data)
    run = ("run", "--camera", "replay", "--source", folder, "--bind", "tcp://127.0.0.1:*")
    for command in (run, ("eval", "--source", folder)):
        assert refusal(*command).startswith(f"no frame could be used (1 were bad): {folder}/0.png {text}")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("watch --address 5555", "cannot subscribe at '5555': invalid argument (addr='5555'); expected tcp://"),
        ("bench --camera synthetic --json /dev/null/x/y", "folder /dev/null/x cannot be made: not a directory"),
        ("eval", "eval: give either --data synthetic:test or --source PATH"),
        ("eval --data synthetic:test --source x", "eval: give either --data synthetic:test or --source PATH"),
        ("eval --source x --person /no/one.json", "person /no/one.json: cannot be read (No such file or directory)"),
        ("eval --data synthetic:test --person x", "eval: --track, --person, --every go with --source; --finder, "),
        ("eval --source x --workers 1", "eval: --track, --person, --every go with --source; --finder, "),
        ("eval --source x --model runs/last.pt", "eval: runs/last.pt is a checkpoint, which goes with --data; "),
        ("eval --data synthetic:nonsense", "--data synthetic:nonsense: possible are synthetic:test, synthetic:val, sy"),
        (
            "record --camera synthetic no/such/folder/x.mcap",
            "cannot write in no/such/folder: No such file or directory",
        ),
        ("train --out /dev/null/x", "folder /dev/null/x cannot be made: not a directory"),
        ("export --checkpoint no.pt --out x.onnx", "no.pt: no such checkpoint"),
    ],
)
def test_a_mistake_is_one_line(arguments: str, text: str) -> None:
    assert refusal(*arguments.split()).startswith(text)


def test_a_model_that_cannot_be_used_is_one_line(model: Path) -> None:
    run = ("run", "--camera", "synthetic", "--bind", "tcp://127.0.0.1:*", "--model", model)
    assert refusal(*run).startswith(f"model {model}: onnxruntime cannot load it (")
    model.write_bytes(b"something else")
    assert refusal(*run).startswith(f"model {model}: its bytes are not the ones its card vouches for (sha256 ")
    card = model.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"version": 1}))
    assert refusal(*run) == f"model card {card}: version 1, this edge-hand reads version 2"
    card.unlink()
    assert refusal(*run) == f"model {model}: its card net.json is missing; `edge-hand export` writes both"


def test_a_path_that_may_not_even_be_looked_at_is_one_line() -> None:
    path = "x" * 300  # too long; a folder that this user may not search answers with another number of the same kind
    said = refusal("run", "--camera", "synthetic", "--model", f"{path}.onnx", code=2)
    assert said.startswith(f"model {path}.onnx: ")
    assert refusal("run", "--camera", "replay", "--source", f"{path}.mcap", code=2).startswith(f"{path}.mcap")
    assert refusal("view", "--port", 0, "--source", f"{path}.mcap").startswith(f"{path}.mcap")


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"tcp://127.0.0.1:{holder.getsockname()[1]}"
        done = edge_hand("run", "--camera", "synthetic", "--bind", address)
    assert (done.returncode, done.stdout) == (1, "")  # before a network is loaded
    assert done.stderr.startswith(
        f"edge-hand: {address} is in use, perhaps by another edge-hand; stop it or take another: "
        "--bind tcp://127.0.0.1:"
    )


@pytest.mark.parametrize(
    "command",
    ["view --port 0 --rig", "fuse --from tcp://127.0.0.1:1", "calibrate watch --from tcp://127.0.0.1:1",
     "calibrate convert --format ros --out o"],
)  # fmt: skip
def test_a_rig_file_that_is_none_is_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "rig.json").write_text("{}")
    assert refusal(*command.split(), tmp_path / "rig.json").startswith(f"{tmp_path}/rig.json: not a rig file")


def test_a_place_where_nothing_can_be_written_is_one_line(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refusal("eval", "--source", recording, "--n", 1, "--out", tmp_path / "file")
    assert said == f"folder {tmp_path}/file cannot be made: file exists"
    said = refusal("eval", "--source", recording, "--n", 1, "--json", tmp_path)
    assert said == f"{tmp_path} cannot be written: is a directory"
    (tmp_path / "hand.onnx").touch()
    said = refusal("eval", "--source", recording, "--n", 1, "--json", tmp_path / "hand.json")
    assert said == f"{tmp_path}/hand.json is the card of hand.onnx; give the result another name"


@pytest.mark.parametrize(
    "command",
    ["eval --source no.mcap --json", "eval --data nyu:no --predictions",
     "bench --camera replay --source no.mcap --json", "bench --camera replay --source no.mcap --plot"],
)  # fmt: skip
def test_a_result_that_cannot_be_written_is_refused_before_the_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:  # root may write everywhere
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("edge_hand.hand.whole._created", refused)
    (folder := tmp_path / "x.svg").mkdir()
    for path, why in ((folder, "is a directory"), (tmp_path / "new" / "y.svg", "permission denied")):
        done = CliRunner().invoke(cli, [*command.split(), str(path)])
        assert (str(done.exception), done.output) == (f"{path} cannot be written: {why}", "")


@pytest.mark.parametrize(
    "arguments",
    ["nonsense", "run --nonsense", "run --frames 0", "run --threads many", "record", "train", "export --out x.onnx"],
)
def test_a_wrong_option_is_exit_code_2(arguments: str) -> None:
    done = edge_hand(*arguments.split())
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: ") and "Error: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("what", [errno.ENOSPC, errno.EACCES])
def test_what_the_disk_refuses_is_one_line_wherever_it_happens(
    what: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> None:
        raise OSError(what, os.strerror(what), "/some/file")

    monkeypatch.setattr(commands, "cli", refused)
    with pytest.raises(SystemExit) as end:
        commands.main()
    assert end.value.code == 1
    assert capsys.readouterr().err == f"edge-hand: /some/file: {os.strerror(what).lower()}\n"
    what = errno.EBADF  # a bug
    with pytest.raises(OSError):
        commands.main()
