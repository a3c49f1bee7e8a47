"""Hand tracking from depth cameras on small computers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .edge.client import subscribe

__all__ = ["subscribe"]

# Nothing phones home: ONNX Runtime and librealsense read these when they load, in whatever process we start too.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RS2_RUM_CLOUD_ENABLED", "0")


def __getattr__(name: str) -> Any:
    """`from edge_hand import subscribe`, without a socket library until it is asked for."""
    if name == "subscribe":
        from .edge.client import subscribe

        return subscribe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
