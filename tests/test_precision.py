"""bfloat16 where the device multiplies it, 32 bits where it would be emulated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from edge_hand.trainer.precision import has_bf16, mixed


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    has_bf16.cache_clear()
    yield
    has_bf16.cache_clear()


def product(allowed: bool) -> torch.dtype:
    with mixed("cpu", allowed):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [
        ({"avx512_f": True, "avx512_vnni": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "fp16_arith": True, "bf16": False}, False),
        ({"neon": True, "bf16": True}, True),
    ],
)
def test_a_processor_computes_in_16_bits_only_if_it_multiplies_them(
    capabilities: dict[str, bool], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert product(True) == (torch.bfloat16 if has else torch.float32)
    assert product(False) == torch.float32


def test_an_older_torch_that_cannot_tell_does_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert product(True) == torch.bfloat16 and product(False) == torch.float32


@pytest.mark.parametrize("has", [True, False])
def test_a_gpu_that_emulates_it_is_asked_too(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return has

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert has_bf16("cuda") is has and asked == [False]
