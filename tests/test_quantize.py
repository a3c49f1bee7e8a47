"""8 bits for CPUs need to see what the network will see."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="onnx is not installed (pip install '.[train]')")
pytest.importorskip("torch", reason="torch is not installed (pip install '.[train]')")

from edge_hand.edge.model_card import MODELS
from edge_hand.edge.probe import crops
from edge_hand.exporters.quantize import QuantizeError, quantize_where


def test_8_bits_without_calibration_data_are_one_line(tmp_path: Path) -> None:
    model = MODELS / "dgn-nano.onnx"
    with pytest.raises(QuantizeError) as caught:
        quantize_where(model, tmp_path / "out.onnx", "image", [], lambda name: True)
    assert str(caught.value) == f"quantize {model}: 8 bits need crops to take the scales from, and there are none"
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_a_layer_for_8_bits_is_one_line_and_not_in_8_bits_all_over(tmp_path: Path) -> None:
    model = MODELS / "dgn-nano.onnx"
    with pytest.raises(QuantizeError) as caught:
        quantize_where(model, tmp_path / "out.onnx", "image", crops(64)[:1], lambda name: False)
    assert str(caught.value) == f"quantize {model}: none of its layers is one that 8 bits are for"
    assert list(tmp_path.iterdir()) == []
