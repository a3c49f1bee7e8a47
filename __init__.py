"""Hand tracking from depth cameras on small computers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .edge.client import subscribe

__all__ = ["subscribe"]


def __getattr__(name: str) -> Any:
    """`from edge_hand import subscribe`, without a socket library until it is asked for."""
    if name == "subscribe":
        from .edge.client import subscribe

        return subscribe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
