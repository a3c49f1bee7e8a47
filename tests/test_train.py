"""The training loop: a stopped run goes on as if it had never stopped, and bad checkpoints end in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from edge_hand.trainer import train as training
from edge_hand.trainer.synth.samples import Generator, Sample
from edge_hand.trainer.train import (
    CHECKPOINT_VERSION,
    TrainConfig,
    TrainError,
    build_net,
    config_of,
    load_checkpoint,
    load_net,
    rate,
    train,
    update_average,
)

# 6 steps: warm-up, then the cosine; the refit joins after the second.
TINY = TrainConfig(width=8, samples=24, batch=4, warmup=8, coarse=8, left_share=0.2, bf16=False)


class Clock:
    """Stands in for the module `time`: it only goes on as batches are taken."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """12 s a batch, and the batches of `stream_batches` without its worker; test_samples.py shows they are the same."""
    clock = Clock()

    def batches(stream: str, start: int, batch: int, *, seed: int, left_share: float) -> Iterator[Sample]:
        generator = Generator(stream, seed, left_share)
        while True:
            clock.now += 12
            yield generator.batch(start, batch)
            start += batch

    monkeypatch.setattr(training, "time", clock)
    monkeypatch.setattr(training, "stream_batches", batches)
    return clock


def assert_same_state(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def test_a_run_stopped_after_three_steps_and_resumed_is_the_uninterrupted_run(tmp_path: Path, clock: Clock) -> None:
    whole = load_checkpoint(train(TINY, tmp_path / "whole", threads=1))
    half = load_checkpoint(
        train(TINY, tmp_path / "parts", threads=1, minutes=40 / 60)
    )  # the fourth batch comes at 48 s
    assert (half["seen"], whole["seen"]) == (12, 24)
    resumed = load_checkpoint(train(TINY, tmp_path / "parts", resume=True, threads=1))
    assert_same_state(resumed, whole)
    assert not torch.equal(half["net"]["side_head.0.weight"], whole["net"]["side_head.0.weight"])


def test_threads_limits_torch_and_the_compiled_extension_alike(tmp_path: Path, clock: Clock) -> None:
    """Numba's first launch sets the threads of OpenMP, which torch shares: one count of threads, one result."""
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    train(replace(TINY, samples=4), tmp_path, threads=1)
    assert (torch.get_num_threads(), numba.get_num_threads()) == (1, 1)


def test_training_changes_every_layer_and_averages_it(tmp_path: Path, clock: Clock) -> None:
    state = load_checkpoint(train(TINY, tmp_path, threads=1))
    torch.manual_seed(TINY.seed)
    for name, start in build_net(TINY).named_parameters():
        assert not torch.equal(state["net"][name], start), name
        assert not torch.equal(state["net"][name], state["averaged"][name]), name


def test_the_log_has_every_term_and_says_where_and_how_fast(tmp_path: Path, clock: Clock) -> None:
    train(TINY, tmp_path, threads=1)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["seen"] for line in lines] == [4, 8, 12, 16, 20, 24]
    terms = {"correspondence", "mask", "initial", "error", "side", "loss"}
    assert set(lines[0]) == {"seen", "s", "lr"} | terms
    assert set(lines[-1]) == {"seen", "s", "lr", "refined"} | terms
    assert [line["s"] for line in lines] == [12, 24, 36, 48, 60, 72]
    assert [line["lr"] for line in lines] == [rate(TINY, line["seen"]) for line in lines]


def test_a_resumed_log_goes_on_in_the_same_file(tmp_path: Path, clock: Clock) -> None:
    train(TINY, tmp_path, threads=1, minutes=40 / 60)
    train(TINY, tmp_path, resume=True, threads=1)
    seen = [json.loads(line)["seen"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert seen == [4, 8, 12, 16, 20, 24]


def test_training_runs_with_its_real_worker_and_clock(tmp_path: Path) -> None:
    net, config, seen = load_net(train(replace(TINY, samples=4), tmp_path, threads=1))
    assert (config, seen) == (replace(TINY, samples=4), 4)
    assert not net.training
    with torch.no_grad():
        assert torch.isfinite(net(torch.ones(1, 1, 64, 64)).vertices_uvd).all()
    assert not list(tmp_path.glob("*.tmp"))


def test_the_rate_warms_up_from_one_step_to_its_peak_and_ends_at_one_percent() -> None:
    config = TrainConfig(samples=100_000, batch=50, warmup=10_000, lr=2e-3)
    assert rate(config, 0) == pytest.approx(2e-3 * 50 / 10_000)
    assert rate(config, 4_950) == pytest.approx(1e-3)
    assert rate(config, 9_950) == pytest.approx(2e-3)
    assert rate(config, 10_000) == pytest.approx(2e-3)
    assert rate(config, 55_000) == pytest.approx(2e-3 * 0.505)
    assert rate(config, 100_000) == pytest.approx(2e-5)
    assert rate(config, 200_000) == pytest.approx(2e-5)
    rising = [rate(config, seen) for seen in range(0, 10_001, 50)]
    falling = [rate(config, seen) for seen in range(10_000, 100_001, 50)]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


def test_the_average_moves_weights_and_statistics_and_copies_counters() -> None:
    averaged, net = build_net(TINY), build_net(TINY)
    before = {name: value.clone() for name, value in averaged.state_dict().items()}
    with torch.no_grad():
        for value in net.state_dict().values():
            value.add_(2)
    update_average(averaged, net, 0.75)
    for name, value in averaged.state_dict().items():
        new = net.state_dict()[name]
        expected = 0.75 * before[name] + 0.25 * new if value.is_floating_point() else new
        torch.testing.assert_close(value, expected)


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
    assert re.fullmatch(re.escape(f"{path}: not a readable checkpoint (") + r".{1,100}\)", one_line_of(path))


def test_a_checkpoint_cut_short_is_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.pt")
    path.write_bytes(path.read_bytes()[:-300])
    assert one_line_of(path).startswith(f"{path}: not a readable checkpoint (")


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
    assert str(error.value) == "--net resnet: unknown, possible is dgn"


def test_a_resumed_run_keeps_its_own_options_and_only_samples_may_change(tmp_path: Path) -> None:
    config = TrainConfig(width=8, samples=8, batch=4, warmup=4, coarse=4, bf16=False)
    train(config, tmp_path)
    assert config_of(tmp_path, {}, resume=True) == config
    assert config_of(tmp_path, {"samples": 12, "width": 8}, resume=True).samples == 12
    with pytest.raises(TrainError, match=r"^--resume: the run in .* has --width 8, not 16$"):
        config_of(tmp_path, {"width": 16}, resume=True)
    assert config_of(tmp_path, {"width": 16}, resume=False).width == 16
