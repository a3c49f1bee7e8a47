"""The daemon's log: one line an event, on stderr, for journald and whatever collects from it."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from datetime import datetime, timezone
from types import TracebackType

from ..hand.fields import printable

LOG = logging.getLogger("edge_hand")
SYSLOG = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
STATE_S = 1.0  # changes between two states are written at most so often


def open_log(style: str) -> None:
    """Log to stderr: `text`, or `json` (an object a line: time, level, text and what else is known).

    Text that goes to the journal begins with its priority, `<4>` for a warning. A bug's traceback is one line too.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if style == "json" else _TextLines())
    LOG.handlers[:] = [handler]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    sys.excepthook = _log_bug


def log_is_open() -> bool:
    return bool(LOG.handlers)


class StateLog:
    """Writes how the loop fares when that changes: at most a line a second, and nothing while it stays as it is. The
    last message that came in between is written later."""

    def __init__(self, camera: str) -> None:
        self._camera = camera
        self._written: tuple[str, str] = ("", "")
        self._held: tuple[str, str] | None = None  # came too soon after the last line, and says why
        self._at_s = float("-inf")

    def frame(self) -> None:
        """Frames are not written."""

    def status(self, state: str, message: str) -> None:
        now_s = time.monotonic()
        if now_s - self._at_s < STATE_S and state != "stopping":
            if message:
                self._held = (state, message)
            return
        if self._held is not None and self._held != self._written and state != "stopping":
            state, message = self._held
        self._held = None
        if (state, message) == self._written:
            return
        self._written, self._at_s = (state, message), now_s
        level = logging.WARNING if message or state == "stalled" else logging.INFO
        text = f"{self._camera} {state}: {message}" if message else f"{self._camera} {state}"
        LOG.log(level, text, extra={"fields": {"camera": self._camera, "state": state}})


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        priority = f"<{SYSLOG[record.levelname]}>" if _goes_to_journal() else ""
        return priority + printable(super().format(record))


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "text": " ".join(record.getMessage().split())}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    LOG.critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def _goes_to_journal() -> bool:
    """Whether stderr is the journal's own socket (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
