"""The daemon's log: one line an event, as text or JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from edge_hand.edge.log import LOG, StateLog

COMMAND = [sys.executable, "-m", "edge_hand.edge.cli.main", "run", "--camera", "synthetic", "--mode", "424x240@30"]
LOGGING = """
import sys
from edge_hand.edge.log import LOG, StateLog, open_log
open_log(sys.argv[1])
log = StateLog("front")
for state, message in (("starting", ""), ("stalled", "no\\nframe"), ("stalled", "no\\nframe"), ("stopping", "")):
    log.status(state, message)
LOG.warning("two\\nlines\\x1b[2J")
raise RuntimeError("a bug")
"""


def lines(style: str, **environ: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, style],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environ},
    )  # fmt: skip
    assert done.returncode == 1 and not done.stdout
    return done.stderr.splitlines()


def test_states_are_written_when_they_change_and_at_most_once_a_second() -> None:
    assert lines("text")[:3] == ["front starting", "front stopping", "two lines?[2J"], "no terminal obeys it"


def test_json_is_an_object_a_line_a_bug_too() -> None:
    first, last, warning, bug = map(json.loads, lines("json"))
    assert (first["state"], first["camera"], first["level"]) == ("starting", "front", "info")
    assert (last["state"], warning["text"], warning["level"]) == ("stopping", "two lines\x1b[2J", "warning")
    assert bug["text"] == "RuntimeError: a bug" and bug["traceback"].startswith("Traceback")
    assert first["time"].endswith("+00:00")


def test_a_journal_that_is_somebody_elses_gets_no_priorities() -> None:
    assert lines("text", JOURNAL_STREAM="1:2")[0] == "front starting"


def test_the_journal_gets_priorities() -> None:
    read, write = os.pipe()
    status = os.fstat(write)
    with open(read) as text:
        subprocess.run(
            [sys.executable, "-c", LOGGING, "text"], stderr=write, timeout=60, check=False,
            env={**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
        )  # fmt: skip
        os.close(write)
        said = text.read().splitlines()
    assert said[0] == "<6>front starting" and said[2] == "<4>two lines?[2J"
    assert said[3].startswith("<2>RuntimeError: a bug")


def test_a_run_and_its_mistakes_are_json_lines_alone() -> None:
    done = subprocess.run(
        [*COMMAND, "--finder", "geometry", "--frames", "3", "--log", "json", "--bind", "tcp://127.0.0.1:*"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 0 and not done.stdout
    assert any("state" in line for line in said) and said[-1]["text"].startswith("3 frames in ")
    done = subprocess.run(
        [*COMMAND, "--log", "json", "--bind", "5555"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and json.loads(done.stderr.splitlines()[-1])["level"] == "error"


def test_a_message_that_came_too_soon_is_written_a_second_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = [100.0]
    monkeypatch.setattr("edge_hand.edge.log.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr(LOG, "propagate", True)
    log = StateLog("front")
    with caplog.at_level("INFO", LOG.name):
        for after_s, state, message in (
            (0.0, "tracked", ""), (0.1, "tracked", "the wall clock was set by +1.0 s"), (0.2, "tracked", ""),
            (1.2, "tracked", ""), (2.3, "lost", ""), (2.4, "tracked", ""), (3.5, "tracked", ""),
        ):  # fmt: skip
            now_s[0] = 100 + after_s
            log.status(state, message)
    assert [record.message for record in caplog.records] == [
        "front tracked", "front tracked: the wall clock was set by +1.0 s", "front lost", "front tracked",
    ]  # fmt: skip
