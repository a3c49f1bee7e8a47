"""Processes that this one starts: their variables, for numeric libraries read how many threads they may have as they
load, and their end, for none may outlive the one that started it."""

from __future__ import annotations

import multiprocessing as mp
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Processes started inside have these variables, except where the user has set one."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def when_parent_ends(act: Callable[[], Any]) -> None:
    """Call act, in a thread of its own, once the process that started this one is gone, however it went."""
    parent = mp.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        act()

    threading.Thread(target=wait, daemon=True).start()
