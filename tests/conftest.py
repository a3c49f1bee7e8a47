"""What tests do to the log is undone before the next; what they start does not depend on who runs them."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest
from edge_hand.edge.log import LOG

os.environ.setdefault("EDGE_HAND_TUNE", "0")  # daemons that tests start do not try out engines
os.environ.setdefault("EDGE_HAND_FAST", "0")  # nor compile
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores, and daemons reload at


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    yield
    LOG.handlers[:] = []
    LOG.setLevel(logging.NOTSET)
    LOG.propagate, LOG.disabled = True, False
