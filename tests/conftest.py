"""What tests do to the log is undone before the next; what they start does not depend on who runs them."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator

import pytest
from edge_hand.edge.engines import Engine, open_engine
from edge_hand.edge.log import LOG
from edge_hand.edge.service import control

os.environ.setdefault("EDGE_HAND_TUNE", "0")  # daemons that tests start do not try out engines
os.environ.setdefault("EDGE_HAND_FAST", "0")  # nor compile
os.environ["EDGE_HAND_STORE"] = "/nonexistent/edge-hand"  # nor serve with what this machine has learned
control.USERS = ()  # nor ask the daemons of others
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores, and daemons reload at


def pytest_runtest_setup(item: pytest.Item) -> None:
    """TEST_DEADLINE, seconds since 1970: later no slow test begins."""
    if item.get_closest_marker("slow") and time.time() > float(os.environ.get("TEST_DEADLINE", "inf")):
        pytest.skip("it is slow, and on this machine the time is nearly over")


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    yield
    LOG.handlers[:] = []
    LOG.setLevel(logging.NOTSET)
    LOG.propagate, LOG.disabled = True, False


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The network that ships."""
    return open_engine()


@pytest.fixture(scope="module")
def one_thread() -> None:
    """Numba's threads first, as its first launch sets those of torch too."""
    import numba
    import torch

    numba.set_num_threads(1)
    torch.set_num_threads(1)
