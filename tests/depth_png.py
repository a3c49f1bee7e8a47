"""Depth as PNG, for tests that write what foreign programs, or the first edge-hand, left behind."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from edge_hand.hand.frames import DepthFrame
from numpy.typing import NDArray
from PIL import Image


def encode_depth_png(depth: NDArray[np.uint16], compress_level: int = 9) -> bytes:
    """(H, W) counts to a lossless 16-bit greyscale PNG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(depth)).save(out, "PNG", compress_level=compress_level)  # mode I;16
    return out.getvalue()


def format_1(frame: DepthFrame) -> dict[str, Any]:
    """A frame as the first version of edge-hand wrote it."""
    k = frame.intrinsics
    lens = {"width": k.width, "height": k.height, "fx": k.fx, "fy": k.fy, "cx": k.cx, "cy": k.cy}
    return {
        "v": 1, "camera": frame.camera, "seq": frame.seq, "t_ns": frame.t_ns, "depth_unit_m": frame.depth_unit_m,
        "intrinsics": lens | {"distortion": list(k.distortion)}, "png": encode_depth_png(frame.depth),
    }  # fmt: skip
