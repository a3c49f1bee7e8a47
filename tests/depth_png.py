"""Depth as PNG, for tests that write what foreign programs, or the first edge-hand, left behind."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encode_depth_png(depth: NDArray[np.uint16], compress_level: int = 9) -> bytes:
    """(H, W) counts to a lossless 16-bit greyscale PNG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(depth)).save(out, "PNG", compress_level=compress_level)  # mode I;16
    return out.getvalue()
