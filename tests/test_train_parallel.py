"""Several processes: one step of all of them is one step of the whole batch, and they stop, fail and go on together."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edge_hand.trainer.batches import batches
from edge_hand.trainer.checkpoint import build_net, load_checkpoint
from edge_hand.trainer.parallel import Group, join, launch, share_statistics, statistics
from edge_hand.trainer.synth.samples import Generator
from edge_hand.trainer.train import TrainConfig, TrainError, train
from torch import nn

# Small rates: at first so small a network doubles every rounding error in a step, whoever takes it.
TINY = TrainConfig(
    width=8, samples=32, batch=8, warmup=16, coarse=16, left_share=0.2, bf16=False, lr=2e-5, muon_lr=2e-4, sync_bn=True
)
ALONE: dict[str, Any] = {"threads": 1, "workers": 0, "validate_every": 0}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run of one process, four steps of eight samples."""
    return load_checkpoint(train(TINY, tmp_path_factory.mktemp("alone"), **ALONE))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run of two."""
    out = tmp_path_factory.mktemp("together")
    train(TINY, out, processes=2, validate_every=16)
    return out


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].flatten() for name, _ in build_net(TINY).named_parameters()])


def way(state: dict[str, Any], kind: str = "net", seed: int = 0) -> torch.Tensor:
    """How far all weights have come from where a run of that seed starts."""
    torch.manual_seed(seed)
    return flat(state[kind]) - flat(build_net(TINY).state_dict())


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_both_their_samples(
    alone: dict[str, Any], together: Path, tmp_path: Path
) -> None:
    both = load_checkpoint(together / "last.pt")
    assert both["seen"] == alone["seen"] == 32
    for kind in ("net", "averaged"):
        assert (way(both, kind) - way(alone, kind)).norm() < 0.1 * way(alone, kind).norm()
    for name, value in alone["net"].items():
        if name.endswith("running_var"):
            assert (both["net"][name] - value).norm() < 0.05 * value.norm(), name
    other = load_checkpoint(train(replace(TINY, seed=1), tmp_path, **ALONE))  # would other samples be noticed?
    assert (way(other, seed=1) - way(alone)).norm() > way(alone).norm()


@pytest.mark.slow
def test_two_processes_stopped_and_resumed_are_the_uninterrupted_two(together: Path, tmp_path: Path) -> None:
    train(TINY, tmp_path, processes=2, minutes=0, validate_every=0)
    assert load_checkpoint(tmp_path / "last.pt")["seen"] == 8
    train(TINY, tmp_path, processes=2, resume=True, validate_every=0)
    whole, resumed = load_checkpoint(together / "last.pt"), load_checkpoint(tmp_path / "last.pt")
    for kind in ("net", "averaged"):
        for name, value in whole[kind].items():
            assert torch.equal(resumed[kind][name], value), name
    for a, b in zip(whole["optimizers"], resumed["optimizers"], strict=True):
        for key, state in a["state"].items():
            assert all(torch.equal(b["state"][key][name], value) for name, value in state.items())


@pytest.mark.slow
def test_one_of_two_writes_the_log(together: Path) -> None:
    entries = [json.loads(line) for line in (together / "log.jsonl").read_text().splitlines()]
    assert [entry["seen"] for entry in entries if "val_joint_mm" in entry] == [16, 32]
    assert [entry["seen"] for entry in entries if "loss" in entry][-1:] == [32]
    assert sorted(path.name for path in together.iterdir()) == ["last.pt", "log.jsonl"]


def test_the_shares_of_all_processes_are_the_batch() -> None:
    whole = Generator("train", TINY.seed, left_share=0.2, negative_share=TINY.negative_share).batch(8, 16)
    shares = [batches(TINY, Group(rank, 2), 8, 0) for rank in range(2)]
    images = [next(share).image for _ in range(2) for share in shares]
    torch.testing.assert_close(torch.cat(images), torch.as_tensor(whole.image))


def in_each_process(out: str) -> None:
    """Run in two processes: layers and averages against those of the whole batch."""
    with join() as group:
        assert (group.size, os.environ["OMP_NUM_THREADS"]) == (2, "1")
        assert "hugetlb" in os.environ["GLIBC_TUNABLES"]
        torch.manual_seed(0)
        whole = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(8 * 25))
        mine = copy.deepcopy(whole)
        share_statistics(mine)
        x, weight = torch.randn(6, 2, 7, 7), torch.randn(6, 200)
        (whole(x) * weight).mean().backward()
        own = slice(3 * group.rank, 3 * group.rank + 3)
        (mine(x[own]) * weight[own]).mean().backward()
        group.average_([p.grad for p in mine.parameters() if p.grad is not None])
        for a, b in zip(mine.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)
        for a, b in zip(statistics(mine), statistics(whole), strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(mine.eval()(x), whole.eval()(x))
        assert mine.state_dict().keys() == whole.state_dict().keys()
        values = [torch.tensor([float(group.rank)]), torch.tensor([[1.0, 2.0]]) * group.rank]
        group.average_(values)
        assert [v.tolist() for v in values] == [[0.5], [[0.5, 1.0]]]
        inputs, computed = [torch.full((n, n + 1), float(n)).T for n in (1, 2, 3, 4)], list[float]()

        def twice(x: torch.Tensor) -> torch.Tensor:
            computed.append(float(x[0, 0]))
            return 2 * x

        for x, value in zip(inputs, group.map(twice, inputs, [1, 2, 3, 4]), strict=True):
            torch.testing.assert_close(value, 2 * x)
        assert computed == ([4, 1], [3, 2])[group.rank]
        Path(out, str(group.rank)).touch()


@pytest.mark.slow
def test_shared_statistics_and_averages_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    launch(2, in_each_process, str(tmp_path), error=TrainError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def one_fails(how: str) -> None:
    if os.environ["RANK"] == "1":
        if how == "error":
            raise TrainError("the second one's trouble")
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(300)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "text"), [("error", "the second one's trouble"), ("killed", "process 2 of 2 was killed (signal 9)")]
)
def test_the_failure_of_one_ends_all_in_one_line(how: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_hand.trainer.parallel.GRACE_S", 0.2)
    begun = time.monotonic()
    with pytest.raises(TrainError) as error:
        launch(2, one_fails, how, error=TrainError)
    assert str(error.value) == text and time.monotonic() - begun < 200


@pytest.mark.slow
def test_an_interrupt_stops_both_and_the_run_goes_on_from_there_alone(tmp_path: Path) -> None:
    options = f"--out {tmp_path} --width 8 --batch 8 --processes 2 --validate-every 8 --samples 100000"
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_hand.edge.cli.main", "train", *options.split()],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and "samples" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "") and out.splitlines()[-1] == f"{tmp_path}/last.pt"
    seen = load_checkpoint(tmp_path / "last.pt")["seen"]
    assert f"stopped and saved after {seen:,} of 100,000 samples" in out
    config = TrainConfig(width=8, batch=8, samples=seen + 8)
    assert load_checkpoint(train(config, tmp_path, resume=True, **ALONE))["seen"] == seen + 8


@pytest.mark.slow
def test_torchrun_needs_no_option(together: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"""
from pathlib import Path
from edge_hand.trainer.train import TrainConfig, train
train({TINY!r}, Path({str(tmp_path)!r}), validate_every=0)
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, its = load_checkpoint(together / "last.pt"), load_checkpoint(tmp_path / "last.pt")
    assert all(torch.equal(ours["net"][name], value) for name, value in its["net"].items())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch": 9}, "--batch 9: 2 processes cannot share it evenly, 2 or more each"),
        ({"workers": 1}, "--workers 1: each of several processes renders its own samples"),
    ],
)
def test_what_several_processes_cannot_do_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int], text: str
) -> None:
    @contextmanager
    def second_of_two() -> Iterator[Group]:
        yield Group(1, 2)

    monkeypatch.setattr("edge_hand.trainer.parallel.join", second_of_two)
    with pytest.raises(TrainError) as error:
        train(replace(TINY, batch=options.get("batch", 8)), tmp_path, workers=options.get("workers"))
    assert str(error.value) == text


def test_a_process_too_many_for_the_gpus_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in {"RANK": "4", "LOCAL_RANK": "4", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(TrainError, match=r"^process 5 of this machine has no GPU, there are 4: start 4 at most, "),
        join(),
    ):
        pass


ONE_THREAD_BESIDE_NUMBA = """
import torch
from edge_hand.trainer.train import set_threads
torch.randn(1 << 20).exp()  # torch has begun to compute, numba's pool has not
set_threads(1)
print(torch.get_num_threads())
"""


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has one thread anyway")
def test_numbas_pool_does_not_give_torch_more_threads_than_it_was_told() -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")}
    told = subprocess.run(
        [sys.executable, "-c", ONE_THREAD_BESIDE_NUMBA], env=env, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "1"
