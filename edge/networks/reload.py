"""Change what a running daemon is made of, between two frames: a model, how many hands, smoothing, the finder.

All of a change happens or none of it. What is new is opened and looked at in the asker's thread while frames go on; the
loop's thread only puts it in place.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ..engines import ANYWHERE, Engine, open_engine
from ..finder import open_finder, retire
from ..tracker import Tracker
from .card import load_card
from .plausible import implausible
from .swap import SwapEngine, waited_for

LIVE = ("model", "engine", "threads", "finder", "hands", "smooth")
PATIENCE_S = 30.0  # another change may be under way for so long


class ReloadError(Exception):
    """A change that was refused, and nothing was changed; one line."""


def open_lasting_engine(
    kind: str, model: Path, threads: int, say: Callable[[str], None], tune: bool = False, refit: bool = False,
    at_once: bool = True,
) -> SwapEngine:  # fmt: skip
    """An engine that can be changed while it runs and is opened anew when it fails; where auto chose a better one that
    failed, by the one that runs anywhere. Raises ModelError."""
    engine = open_engine(kind, model, threads, say=say, tune=tune, refit=refit, at_once=at_once)
    again = ANYWHERE if kind == "auto" else kind
    openers = [lambda: open_engine(again, model, threads, say=say, refit=refit)]
    if isinstance(engine, SwapEngine):
        engine.openers = openers
        return engine
    return SwapEngine(engine, say, openers=openers, asked=load_card(model))  # it may run another form of it


class Reloader:
    """Changes a daemon's settings: `reload` and `use` from any thread, `apply` from the loop's, between frames.

    settings are those of `edge-hand run` by their parameters' names; reread gives them anew. say hears what engines
    have to say when they are opened; with tune those of `auto` try out what this machine can do (`tune.py`).
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        reread: Callable[[], Mapping[str, Any]],
        engine: SwapEngine,
        say: Callable[[str], None],
        tune: bool = False,
    ) -> None:
        self._files = {engine.asked.sha256: settings["model"]}  # of the networks that were asked for, by digest
        self._given = False  # by `use`, and not by the settings since
        self._settings, self._reread = dict(settings), reread
        self._engine, self._say, self._tune = engine, say, tune
        self._card = engine.card  # that the tracker was made for
        self._change: dict[str, Any] = {}  # of the tracker's fields, to put in place
        self._lock, self._merging = threading.Lock(), threading.Lock()

    @property
    def model(self) -> Path:
        """The file of the network that was asked for, in use or about to be."""
        model: Path = self._files.get(self._engine.asked.sha256, self._settings["model"])
        return model

    def reload(self) -> str:
        """Read the settings and the model's file again; one line that says what changed. Raises ReloadError."""
        with self._alone():
            new = dict(self._reread())
            differ = {name for name in new if new[name] != self._settings.get(name)}
            change = {
                field: new[name] for name, field in (("hands", "max_hands"), ("smooth", "smooth")) if name in differ
            }
            if differ & {"finder", "threads", "engine"}:
                tuned = self._tune and new["engine"] == "auto"
                with waited_for():
                    change["finder"] = open_finder(new["finder"], new["threads"], say=self._say, tune=tuned)
            given = self._given and "model" not in differ
            model = self.model if given else new["model"]
            try:
                digest = load_card(model).sha256
                another = digest != self._engine.asked.sha256
                if another or differ & {"engine", "threads"}:
                    self._propose(model, new["engine"], new["threads"])
            except Exception:
                if "finder" in change:
                    retire(change["finder"])
                raise
            held = sorted(differ - set(LIVE))
            with self._merging:
                waits, self._change = self._change, self._change | change
            if "finder" in change and "finder" in waits:
                retire(waits["finder"])
            self._files[digest], self._given = model, given
            self._settings = new | {name: self._settings[name] for name in held}
            said = [f"{name} = {new[name]}" for name in LIVE if name in differ]
            if another and "model" not in differ:
                said.append(f"{model} as it is now")
            line = f"now {', '.join(said)}" if said else "nothing to change"
            return line + (f"; {', '.join(held)}: only with a restart" if held else "")

    def use(self, model: Path) -> str:
        """Serve with another model; one line that says so. Raises ReloadError."""
        with self._alone():
            card = load_card(model)
            already = card.sha256 == self._engine.asked.sha256
            if not already:
                self._propose(model, self._settings["engine"], self._settings["threads"])
            self._files[card.sha256], self._given = model, True
            return f"{card.name} {card.sha256[:12]} serves {'already' if already else 'from the next frame on'}"

    def apply(self, tracker: Tracker) -> None:
        """Put what changed in place; its hands stay, as many as may. Costs nothing while nothing did."""
        self._engine.settle()
        card = self._engine.card
        if card is self._card and not self._change:
            return
        with self._merging:
            change, self._change, self._card = self._change, {}, card
        if "finder" in change:
            retire(tracker.finder)
        for field, value in change.items():
            setattr(tracker, field, value)
        if "max_hands" in change:
            tracker.keep_first()
        tracker.__post_init__()  # what it makes of these fields and of the model's card

    def _propose(self, model: Path, kind: str, threads: int) -> None:
        refit = bool(self._settings.get("refit_plans"))
        same = (kind, threads) == (self._settings["engine"], self._settings["threads"])

        def opened() -> Engine:
            retrained = getattr(self._engine.serving, "retrained", None)  # weights into a copy of what serves
            engine: Engine | None = retrained(model) if refit and same and retrained else None
            return engine or open_engine(
                kind, model, threads, say=self._say, tune=self._tune, refit=refit, at_once=True
            )

        asked, end_s = load_card(model), time.monotonic() + PATIENCE_S
        while self._engine.busy and time.monotonic() < end_s:  # a better engine for the same model, at the start
            time.sleep(0.05)
        self._engine.propose(opened, implausible, asked)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One change at a time; whatever fails is a refusal."""
        if not self._lock.acquire(timeout=PATIENCE_S):
            raise ReloadError("nothing was changed: another change is under way")
        try:
            yield
        except Exception as error:  # a model, a finder or a file of whatever kind must not end the daemon
            said = error.format_message() if isinstance(error, click.ClickException) else str(error)
            raise ReloadError(f"nothing was changed: {' '.join(said.split())[:400]}") from None
        finally:
            self._lock.release()
