"""The networks by name. A new one is a file here and a line in `NETS`.

Every net's module has:
IMAGE_PX   pixels a side of the crop that it sees
OUTPUTS    names of what it gives the daemon
Criterion  Criterion(device)(output, labels, full) -> the loss's terms by name, their sum under "loss"; means over the
           batch, so that the mean of two batches' losses is the loss of both (`trainer/parallel.py` relies on it)
estimate   estimate(output, distance_m, cube_m) -> joints (B, 21, 3) and vertices (B, V, 3), metres
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """Where a network is: a module of this package, its class there, and the options that the name stands for."""

    module: str
    net: str
    options: dict[str, Any]


NETS = {
    "dgn-nano": Kind("dgn", "DualGridNet", {"width": 64}),
    "dgn-base": Kind("dgn", "DualGridNet", {"width": 64, "image": (4, 8, 12, 16, 16), "mesh": (8, 12, 12, 12)}),
    "deephps": Kind("deephps", "DeepHPS", {"width": 64}),
    "dibra": Kind("dibra", "DIBRA", {"width": 64}),
}


def net_module(name: str) -> Any:
    """The module of a network of `NETS`; imported only here, as a run needs one of them."""
    return import_module(f".{NETS[name].module}", __name__)


def new_net(name: str, **options: Any) -> Any:
    """An untrained network of `NETS`, in training mode; options replace the name's own."""
    return getattr(net_module(name), NETS[name].net)(**{**NETS[name].options, **options})


def output_of(module: Any, values: dict[str, Any]) -> Any:
    """A net's Output from what an engine gave by name; what only training needs is None."""
    return module.Output(**{name: values.get(name) for name in module.Output._fields})
