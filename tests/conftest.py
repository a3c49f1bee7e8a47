"""What one test does to the daemon's log is undone before the next."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from edge_hand.edge.log import LOG


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    yield
    LOG.handlers[:] = []
    LOG.setLevel(logging.NOTSET)
    LOG.propagate, LOG.disabled = True, False
