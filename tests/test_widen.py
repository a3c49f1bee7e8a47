"""A wider network starts as a narrower one's function (`trainer/widen.py`)."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edge_hand.trainer.checkpoint import build_net, load_checkpoint
from edge_hand.trainer.train import TrainConfig, TrainError, load_net, train
from edge_hand.trainer.widen import load_widened

TINY = TrainConfig(width=8, samples=4, batch=4, warmup=2, coarse=0, bf16=False)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow Dual Grid Net that has learned a little: its statistics are not those it began with."""
    return run(replace(TINY, samples=16), tmp_path_factory.mktemp("narrow"))


def run(config: TrainConfig, out: Path) -> Path:
    return train(config, out, threads=1, workers=0, validate_every=0)


def noise(seed: int) -> torch.Tensor:
    return torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("wider", [{"width": 16}, {"net": "dgn-base"}, {"net": "dgn-base", "width": None}])
def test_a_wider_network_is_the_function_of_the_narrower_one(wider: dict[str, Any], narrow: Path) -> None:
    small, _, _ = load_net(narrow)
    config = replace(TINY, **wider)
    wide = build_net(config)
    load_widened(wide, load_checkpoint(narrow), config, narrow)
    assert wide.training
    assert sum(p.numel() for p in wide.parameters()) > 1.5 * sum(p.numel() for p in small.parameters())
    with torch.no_grad():
        for expected, given in zip(small(noise(1)), wide.eval()(noise(1)), strict=True):
            torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)


def test_a_wider_networks_old_channels_learn_to_read_the_new_ones(narrow: Path, tmp_path: Path) -> None:
    learned = load_checkpoint(run(replace(TINY, width=16, init=str(narrow)), tmp_path / "wide"))["net"]
    old = load_checkpoint(narrow)["averaged"]
    kernels = [name for name, weight in old.items() if weight.ndim == 4 and weight.shape[1] < learned[name].shape[1]]
    assert len(kernels) > 20
    for name in kernels:
        outputs, inputs = old[name].shape[:2]
        assert learned[name][:outputs, inputs:].abs().max() > 0, name


def test_a_narrower_network_than_the_one_that_init_names_is_refused(narrow: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"weights of another network: crop_head\.0\.bias is \[8\], expected \[4\]$"):
        run(replace(TINY, width=4, init=str(narrow)), tmp_path)


def test_a_network_whose_layers_mix_their_inputs_cannot_be_widened() -> None:
    config = TrainConfig(net="deephps", width=8)
    start = {"averaged": build_net(config).state_dict(), "config": asdict(config)}
    wide = replace(config, width=16)
    with pytest.raises(TrainError, match=r"^--init x\.pt: a wider deephps cannot start from a narrower one$"):
        load_widened(build_net(wide), start, wide, Path("x.pt"))
