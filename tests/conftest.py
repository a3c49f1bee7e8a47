"""What one test does to the daemon's log is undone before the next."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from edge_hand.edge.log import LOG

os.environ.setdefault("EDGE_HAND_TUNE", "0")  # daemons that tests start do not try out engines
os.environ.setdefault("EDGE_HAND_FAST", "0")  # nor compile


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    yield
    LOG.handlers[:] = []
    LOG.setLevel(logging.NOTSET)
    LOG.propagate, LOG.disabled = True, False
