"""What goes wrong in a training run ends in one line, and the last good checkpoint stays."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from edge_hand.trainer import train as training
from edge_hand.trainer.batches import batches, drawn
from edge_hand.trainer.checkpoint import CHECKPOINT_VERSION, build_net, load_checkpoint, save
from edge_hand.trainer.parallel import Group
from edge_hand.trainer.synth.room_crops import RoomCrops
from edge_hand.trainer.synth.samples import Generator, RendererDied
from edge_hand.trainer.train import Log, TrainConfig, TrainError, load_net, train

TINY = TrainConfig(width=8, samples=8, batch=4, warmup=4, coarse=4, bf16=False)


def run(config: TrainConfig, out: Path, **options: Any) -> Path:
    """Train in this process and thread; the checkpoint's path."""
    return train(config, out, **{"threads": 1, "workers": 0, "validate_every": 0, **options})


def refusal(config: TrainConfig, out: Path, **options: Any) -> str:
    with pytest.raises(TrainError) as error:
        run(config, out, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two steps."""
    return run(TINY, tmp_path_factory.mktemp("trained"))


# --- a loss that is no number


@pytest.mark.parametrize(
    ("changes", "which", "bad"),
    [
        ({"coarse": 4}, "rendered 12 to 15", "the refit nan"),
        ({"coarse": 100, "room_share": 0.25}, "rendered 9 to 11, rooms 3 to 3", "loss nan, gradient nan"),
    ],
)
def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], which: str, bad: str
) -> None:
    """A rate of 1e30 overflows in the first step after the good checkpoint; the next step's loss is no number."""
    asked: list[str] = []
    for name, drawer in (("rendered", Generator), ("rooms", RoomCrops)):

        def told(self: Any, first: int, n: int, name: str = name, draw: Any = drawer.batch) -> Any:
            asked.append(f"{name} {first} to {first + n - 1}")
            return draw(self, first, n)

        monkeypatch.setattr(drawer, "batch", told)
    state = load_checkpoint(trained)
    for optimizer in state["optimizers"]:
        for settings in optimizer["param_groups"]:
            settings["peak"] = 1e30
    path = tmp_path / "last.pt"
    torch.save(state | {"config": state["config"] | {"samples": 40, **changes}}, path)
    before = path.read_bytes()
    said = refusal(replace(TINY, samples=40), tmp_path, resume=True)
    pattern = r"step 3 of seed 0 \((.*)\) gives (.*): stopped before it reached the weights; last.pt is as it was"
    found = re.fullmatch(pattern, said)
    assert found and found[1] == which and bad in found[2], said
    assert which == ", ".join(asked[-len(which.split(", ")) :])
    assert path.read_bytes() == before


def test_the_samples_of_all_processes_and_of_every_kind_are_named() -> None:
    config = replace(TINY, seed=5, batch=16, room_share=0.25, real="nyu:/", real_share=0.125)
    named = "step 3 of seed 5 (rendered 30 to 39, rooms 12 to 15, real 6 to 7)"
    assert drawn(config, Group(1, 2), 48) == named


def test_weights_that_are_no_numbers_are_never_written(trained: Path, tmp_path: Path) -> None:
    state = load_checkpoint(trained)
    state["averaged"]["image_stem.1.1.running_var"][0] = float("inf")
    with pytest.raises(TrainError) as error:
        save(state, tmp_path / "last.pt")
    text = f"{tmp_path}/last.pt: not written, image_stem.1.1.running_var is not finite after 8 samples"
    assert str(error.value) == text and not list(tmp_path.iterdir())


# --- a disk that is full


@contextmanager
def no_file_beyond(n: int) -> Iterator[None]:
    """Inside, a write beyond n bytes of a file fails as it does on a full disk: Python ignores SIGXFSZ."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_no_checkpoint_and_no_training_time(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "SAVE_S", 0)  # after every step
    path = tmp_path / "last.pt"
    path.write_bytes(trained.read_bytes())
    before = path.read_bytes()
    with no_file_beyond(100_000):
        last = refusal(replace(TINY, samples=16), tmp_path, resume=True)
    cannot = f"{path} cannot be written: file too large; the checkpoint before it is intact"
    said = capsys.readouterr().out.splitlines()
    assert last == cannot and said[0] == f"{cannot}; training goes on"  # after the first of two steps
    assert path.read_bytes() == before and not list(tmp_path.glob("*.tmp"))
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["seen"] == 16
    assert load_checkpoint(run(replace(TINY, samples=16), tmp_path, resume=True))["seen"] == 16


def test_a_record_that_does_not_fit_leaves_no_half_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(tmp_path, Group(), False)
    with no_file_beyond(50):
        for seen in range(6):
            log.write({"seen": seen, "loss": 0.5})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["seen"] for line in lines] == [0, 1]
    assert f"{tmp_path}/log.jsonl cannot be written" in capsys.readouterr().out


# --- a process that is killed


def test_a_run_whose_renderer_is_killed_saves_what_it_has_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*given: Any) -> Iterator[Any]:
        yield next(batches(*given))
        raise RendererDied

    monkeypatch.setattr(training, "batches", die)
    assert refusal(TINY, tmp_path) == (
        "the process that renders ahead died (killed? out of memory?): saved after 4 of 8 samples; --resume goes on"
    )
    assert load_checkpoint(tmp_path / "last.pt")["seen"] == 4


# --- a run that is told to stop


# A line a step, so that a reader knows that it trains.
TALKATIVE = """
import sys
from pathlib import Path
from edge_hand.trainer import train as t
if __name__ == "__main__":
    t.SAY_S = 0
    config = t.TrainConfig(width=8, samples=100_000, batch=4, bf16=False)
    print(t.train(config, Path(sys.argv[1]), threads=1, workers=0, validate_every=0))
"""


@pytest.mark.slow
def test_a_signal_saves_and_ends_the_run_cleanly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", TALKATIVE, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and " / 100,000 samples " in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    seen = load_net(tmp_path / "last.pt")[2]
    assert out.splitlines()[-2:] == [
        f"stopped and saved after {seen:,} of 100,000 samples; --resume goes on",
        f"{tmp_path}/last.pt",
    ]


# --- checkpoints that cannot be used


def one_line_of(path: Path) -> str:
    with pytest.raises(TrainError) as error:
        load_checkpoint(path)
    text = str(error.value)
    assert "\n" not in text
    return text


def saved(path: Path, **changes: Any) -> Path:
    torch.save({"version": CHECKPOINT_VERSION, "config": {"width": 8}, "seen": 0} | changes, path)
    return path


def test_a_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    assert one_line_of(path) == f"{path}: no such checkpoint"
    with pytest.raises(TrainError) as error:
        train(TINY, tmp_path, resume=True)
    assert str(error.value) == f"{path}: no such checkpoint"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", bytes(range(256)) * 8], ids=["empty", "text", "bytes"])
def test_a_corrupt_checkpoint_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    assert one_line_of(path) == f"{path}: not an edge-hand checkpoint, or a damaged one"


def test_a_checkpoint_cut_short_is_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.pt")
    path.write_bytes(path.read_bytes()[:-300])
    assert one_line_of(path) == f"{path}: not an edge-hand checkpoint, or a damaged one"


def test_a_checkpoint_of_another_version_is_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.pt", version=CHECKPOINT_VERSION + 1)
    assert one_line_of(path) == f"{path}: not a checkpoint of version {CHECKPOINT_VERSION}"
    torch.save([1, 2], path)
    assert one_line_of(path) == f"{path}: not a checkpoint of version {CHECKPOINT_VERSION}"


def test_a_checkpoint_with_unknown_config_entries_is_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.pt", config={"width": 8, "depth": 3, "bones": 1})
    assert one_line_of(path) == f"{path}: its config has unknown entries ['bones', 'depth']"


def test_a_run_never_overwrites_another(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.pt")
    before = path.read_bytes()
    with pytest.raises(TrainError) as error:
        train(TINY, tmp_path)
    assert str(error.value) == f"{path} exists: go on with --resume, or choose another --out"
    assert path.read_bytes() == before


def test_an_unknown_net_is_one_line() -> None:
    with pytest.raises(TrainError) as error:
        build_net(replace(TINY, net="resnet"))
    assert str(error.value) == "--net resnet: unknown, possible are dgn-nano, dgn-base, deephps, dibra"


def test_a_checkpoint_whose_weights_are_anothers_is_one_line(trained: Path, tmp_path: Path) -> None:
    state = load_checkpoint(trained)
    path = tmp_path / "last.pt"
    torch.save(state | {"config": state["config"] | {"width": 16}}, path)
    with pytest.raises(TrainError) as error:
        load_net(path)
    assert str(error.value) == (f"{path}: weights of another network: crop_head.0.bias is [8], expected [16]")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"init": "{no}"}, "{no}: no such checkpoint"),
        ({"init": "{it}", "width": 4}, "{it}: weights of another network: crop_head.0.bias is [8], expected [4]"),
        ({"init": "{it}", "net": "dibra"}, "--init {it}: holds a dgn-nano, not a dibra"),
        ({"teacher": "{no}"}, "{no}: no such checkpoint"),
        ({"teacher": "{it}", "net": "dibra"}, "--teacher {it}: a dgn-nano cannot teach vertices to a dibra"),
        ({"net": "vgg"}, "--net vgg: unknown, possible are dgn-nano, dgn-base, deephps, dibra"),
        ({"net": "vgg", "room_share": 0.25}, "--net vgg: unknown, possible are dgn-nano, dgn-base, deephps, dibra"),
        ({"net": "vgg", "real": "msra:/"}, "--net vgg: unknown, possible are dgn-nano, dgn-base, deephps, dibra"),
        ({"optimizer": "sgd"}, "--optimizer sgd: unknown, possible are muon, adamw"),
    ],
)
def test_a_run_that_cannot_start_is_one_line(trained: Path, tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    names = {"no": str(tmp_path / "no.pt"), "it": str(trained)}
    config = replace(TINY, **{k: v.format(**names) if isinstance(v, str) else v for k, v in changes.items()})
    assert refusal(config, tmp_path / "run") == text.format(**names)


def test_tensorboard_is_given_every_record_at_its_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: Path) -> None:
            told.append((folder,))

        def add_scalar(self, *scalar: Any) -> None:
            told.append(scalar)

        def close(self) -> None:
            told.append(())

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    run(TINY, tmp_path, tensorboard=True)
    assert told[0] == (tmp_path,) and told[-1] == ()
    (record,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert record.pop("seen") == 8 and {"loss", "per_s", "lr"} <= record.keys()
    assert {name: (value, 8) for name, value in record.items()} == {name: tuple(at) for name, *at in told[1:-1]}


def test_tensorboard_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # what an import finds that failed
    assert refusal(TINY, tmp_path, tensorboard=True) == "--tensorboard needs tensorboard: pip install tensorboard"
