"""Put an accepted network in use: the store's pointer moves, then the daemons of this machine change between frames."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..service.control import ControlError, ask, sockets
from .store import SHIPPED, StoreError, Version, checked, in_use, model_of, rollback, undone_on_error, use


def put_in_use(store: Path, number: int, say: Callable[[str], None]) -> Version | None:
    """Serve with a version from now on, SHIPPED for the network that ships; None is that one. If a daemon refuses it,
    nothing changes. say hears a line a daemon. Raises StoreError."""
    checked(store, number)  # before it waits for another change, or makes a store
    return _serve(store, lambda: use(store, number), say)


def take_back(store: Path, say: Callable[[str], None]) -> Version | None:
    """As `put_in_use` with what was in use before; of the store's history that was the last step."""
    return _serve(store, lambda: rollback(store), say)


def name_of(found: Version | None) -> str:
    return "the shipped network" if found is None else f"version {found.number}"


def _serve(store: Path, change: Callable[[], Version | None], say: Callable[[str], None]) -> Version | None:
    """The pointer first: a daemon that leaves a network at once takes it back."""
    with undone_on_error(store, say):
        wanted = change()
        _ask_daemons(wanted, say)
        now = in_use(store)  # before the next change may begin
    if now != (SHIPPED if wanted is None else wanted.number):
        raise StoreError(f"models: {name_of(wanted)} is not in use, a daemon left it at once; see `edge-hand status`")
    return wanted


def _ask_daemons(wanted: Version | None, say: Callable[[str], None]) -> None:
    """If one refuses, those that took it go back to what they served with. Raises StoreError."""
    try:
        daemons = sockets()
    except ControlError as error:
        say(f"a running daemon could not be asked: {error}")
        return
    before: dict[Path, Path] = {}  # of those that took it
    for daemon in daemons:
        try:
            served = ask(daemon, "status").values.get("model_path")
            reply = ask(daemon, "use", model_of(wanted), say=say)
            refusal = "" if reply.ok else reply.message
        except ControlError as error:
            refusal = str(error)
        if refusal:
            for other, model in before.items():
                with suppress(ControlError):  # it is gone, or does not answer; the others are there
                    ask(other, "use", model, say=say)
            raise StoreError(f"models: {name_of(wanted)} is not put in use, a daemon refused it: {refusal}")
        if served:
            before[daemon] = Path(served)
        say(f"{reply.camera}: {reply.message}")
    if not daemons:
        say("no daemon runs; the next `edge-hand run` takes it")
