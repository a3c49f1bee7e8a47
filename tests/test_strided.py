"""Unshuffling and a convolution as one convolution with a stride."""

from __future__ import annotations

import pytest
import torch
from edge_hand.exporters.strided import strided, with_stride
from edge_hand.trainer.nets import new_net
from torch import nn


@pytest.mark.parametrize(("r", "kernel", "padding", "bias"), [(2, 3, 1, False), (4, 3, 1, True), (2, 1, 0, True)])
def test_a_stride_gives_what_unshuffled_pixels_give(r: int, kernel: int, padding: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3 * r * r, 5, kernel, padding=padding, bias=bias)
    image = torch.randn(2, 3, 12 * r, 8 * r)
    with torch.no_grad():
        torch.testing.assert_close(with_stride(conv, r)(image), conv(nn.PixelUnshuffle(r)(image)), atol=1e-5, rtol=1e-5)


def test_other_convolutions_are_left_alone() -> None:
    for other in ({"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": 1, "padding_mode": "reflect"}):
        net = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 4, 3, **other))
        assert isinstance(strided(net)[0], nn.PixelUnshuffle)


@pytest.mark.parametrize(("name", "px"), [("dgn-nano", 64), ("deephps", 96), ("dibra", 120)])
def test_a_network_with_strides_gives_the_same_and_is_left_as_it_was(name: str, px: int) -> None:
    torch.manual_seed(1)
    net = new_net(name, width=8).eval()
    image = torch.rand(2, 1, px, px) * 2 - 1
    with torch.no_grad():
        before, given = net(image), strided(net)(image)
    for one, other in zip(before, given, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert any(isinstance(m, nn.PixelUnshuffle) for m in net.modules())
    assert not any(isinstance(m, nn.PixelUnshuffle) for m in strided(net).modules())
    names = set(dict(net.named_parameters()))
    assert set(dict(strided(net).named_parameters())) == names
