"""The networks this device has accepted: numbered versions that never change, and which of them is in use.

    STORE/0001/adapted-1.onnx, .json         a version: its models, each with its card,
               adapted-1-int8.onnx, .json    where it comes from and the hashes of all files (version.json),
               gate.json, version.json       and the report of the gate that let it in;
               adapted-1-tensorrt-fp16.onnx  where the network before had that form
    STORE/current.json                       {"use": 2, "before": [0, 1], "proven": [1]}; 0 is the network that ships

Versions are written under another name and renamed, the pointer is replaced whole: a power cut leaves the old state or
the new one. `edge-hand run` serves with the current version if it is not told otherwise.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from ...hand.whole import give, read_json, refusal, write_json
from ..engines import check_engine
from ..home import home
from .card import DEFAULT_MODEL, ModelError, behind, card_path, load_card, sha256

FORMAT = 1
FORMS = {"fp32": "", "fp16": "-tensorrt-fp16"}  # how a version's file in a precision is found, else by the precision
SHIPPED = 0  # the number of the network that ships
ANEW = "`edge-hand adapt` again, or `edge-hand models use shipped`"
REMEMBERED = 50  # steps back at most


class StoreError(Exception):
    """A store of networks that cannot be used, or a version that is not there; one line."""


class Version(NamedTuple):
    """An accepted network. model is its file for CPUs, the int8 one if there is one; made_from says in a few words what
    it learned from; over is the number of the network it was better than; report is the gate's; baseline holds the
    health measures (`health.py`) it had there; hashes the sha256 of every file."""

    number: int
    folder: Path
    model: Path
    made_utc: str
    made_from: str
    over: int
    report: dict[str, Any]
    baseline: dict[str, Any]
    hashes: dict[str, str]


class Pointer(NamedTuple):
    """The number in use, those in use before it, the latest last, and those that have proven themselves in a daemon."""

    use: int = SHIPPED
    before: tuple[int, ...] = ()
    proven: tuple[int, ...] = ()


def default_store() -> Path:
    """$EDGE_HAND_STORE; else below $STATE_DIRECTORY, which systemd sets, or the user's data."""
    if given := os.environ.get("EDGE_HAND_STORE"):
        return Path(given)
    if state := os.environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(state, "models")
    return Path(os.environ.get("XDG_DATA_HOME") or home() / ".local" / "share", "edge-hand", "models")


def own_model(store: Path | None = None) -> tuple[Path, str]:
    """The model this device is to serve with and one line about it, empty for the one that ships. A version that cannot
    be used is passed over, and the line says so: a daemon goes on seeing hands."""
    try:
        version = current(store or default_store())
        if version is None:
            return DEFAULT_MODEL, ""
        check(version)
        said = f"model: version {version.number} of this device, from {version.made_from}"
        return version.model, f"{said}; {why}: {ANEW}" if (why := behind(version.model)) else said
    except StoreError as error:
        return DEFAULT_MODEL, f"model: {DEFAULT_MODEL.stem} as shipped, since {error}"


def versions(store: Path) -> list[Version]:
    """All versions but the damaged ones, the oldest first. Raises StoreError."""
    return [each for each in by_number(store).values() if isinstance(each, Version)]


def by_number(store: Path) -> dict[int, Version | StoreError]:
    """All versions, the oldest first; of a damaged one, what is wrong with it. Raises StoreError."""
    try:
        folders = sorted(f for f in store.iterdir() if f.is_dir() and f.name.isdecimal())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(f"store {store}: cannot be read ({refusal(error)})") from None
    found: dict[int, Version | StoreError] = {}
    for folder in folders:
        try:
            found[int(folder.name)] = load_version(folder)
        except StoreError as error:
            found[int(folder.name)] = error
    return found


def load_version(folder: Path) -> Version:
    """Raises StoreError."""
    try:
        about, report = read_json(folder / "version.json"), read_json(folder / "gate.json")
        if about["format"] != FORMAT:
            raise StoreError(f"{folder}: format {about['format']}; this edge-hand reads format {FORMAT}")
        model = folder / str(about["model"])
        return Version(
            int(folder.name), folder, model, str(about["made_utc"]), str(about["made_from"]), int(about["over"]),
            dict(report), _baseline(about["baseline"]), dict(about["sha256"]),
        )  # fmt: skip
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read ({refusal(error)})") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        mend = "remove this folder; if it is the one in use, after `edge-hand models use shipped`"
        raise StoreError(f"{folder}: version.json or gate.json is damaged; {mend}") from None


def _baseline(values: Any) -> dict[str, dict[str, float]]:
    """What `health.fallen` reads of it; without that the watch on the network would end the daemon."""
    return {m: {name: float(of[name]) for name in ("mean", "sd", "blocks")} for m, of in values.items()}


def version(store: Path, number: int) -> Version:
    """The version of this number. Raises StoreError."""
    folder = store / f"{number:04d}"
    if not os.path.isdir(folder):  # Path's own may raise
        have = ", ".join(str(v.number) for v in versions(store)) or "none"
        raise StoreError(
            f"store {store}: no version {number}; it has {have}; `edge-hand models use` takes one, or shipped"
        )
    return load_version(folder)


def check(version: Version) -> None:
    """Raise StoreError unless every file of the version is as it was when it was accepted, and this edge-hand can use
    it."""
    for name, expected in version.hashes.items():
        path, seen = version.folder / name, ""
        with suppress(OSError, ValueError):  # gone, not ours to read, or no name of a file
            seen = sha256(path)
        if seen != expected:
            raise StoreError(f"{path} is not the file that was accepted; `edge-hand models use shipped`, or another")
    try:
        check_engine("auto", version.model)
    except ModelError as error:  # another release's
        raise StoreError(f"{error}; `edge-hand models use shipped`, or another") from None


def checked(store: Path, number: int) -> Version | None:
    """The version of this number, after `check`; None for the network that ships. Raises StoreError."""
    found = None if number == SHIPPED else version(store, number)
    if found is not None:
        check(found)
    return found


def check_store(store: Path) -> None:
    """Raise StoreError unless a version can be added and the one in use is as it was accepted: asked
    before work whose result belongs there."""
    with _locked(store):
        by_number(store)
        checked(store, in_use(store))


def add(
    store: Path,
    models: Sequence[Path],
    made_from: str,
    report: dict[str, Any],
    baseline: dict[str, Any] | None = None,
    over: int | None = None,
) -> Version:
    """Keep a network as a new version: models are its .onnx files with their cards, the one that CPUs run first; over
    is the number of the network it was better than, None the one in use.

    It is not in use until `use` says so. Files are named after the version. Raises StoreError, ModelError.
    """
    try:
        with _locked(store):
            for left in store.glob(".new-*"):  # by a power cut
                shutil.rmtree(left, ignore_errors=True)
            now = _pointer(store)
            number = max([now.use, *now.before, *now.proven, *by_number(store)]) + 1  # what served keeps its own
            fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=store))
            try:
                names = [_copy(model, fresh, number) for model in models]
                _write(fresh / "gate.json", report)
                hashes = {f.name: sha256(f) for f in sorted(fresh.iterdir())}
                made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                about = {
                    "format": FORMAT, "model": names[0], "made_utc": made, "made_from": made_from,
                    "over": now.use if over is None else over, "baseline": baseline or {}, "sha256": hashes,
                }  # fmt: skip
                _write(fresh / "version.json", about)
                for file in fresh.iterdir():
                    file.chmod(0o444)
                fresh.chmod(0o755)  # the store is private, and may be another's
                give(fresh, store)
                os.rename(fresh, store / f"{number:04d}")
                _sync(store)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
            return load_version(store / f"{number:04d}")
    except OSError as error:
        raise StoreError(f"store {store}: cannot be written ({refusal(error)})") from None


def in_use(store: Path) -> int:
    """The number in use. Raises StoreError."""
    return _pointer(store).use


def current(store: Path) -> Version | None:
    """The version in use; None for the network that ships. Raises StoreError."""
    number = in_use(store)
    return None if number == SHIPPED else version(store, number)


def use(store: Path, number: int) -> Version | None:
    """Put a version in use, SHIPPED for the network that ships. Raises StoreError."""
    found = checked(store, number)
    with _locked(store):
        now = _pointer(store)
        if now.use != number:
            before = (*now.before, now.use)[-REMEMBERED:]
            _write(store / "current.json", Pointer(number, before, now.proven)._asdict())
    return found


def rollback(store: Path, bad: int | None = None) -> Version | None:
    """Go back to what was in use before; None is the network that ships. With bad given, only if that one is in use
    now: of several daemons the first goes back, the others find it done. Raises StoreError."""
    with _locked(store):
        now = _pointer(store)
        if bad is not None and now.use != bad:
            return current(store)
        if not now.before:
            raise StoreError(f"store {store}: nothing was in use before; `edge-hand models use shipped` or a number")
        found = checked(store, now.before[-1])
        _write(store / "current.json", Pointer(now.before[-1], now.before[:-1], now.proven)._asdict())
        return found


@contextmanager
def undone_on_error(store: Path, say: Callable[[str], None]) -> Iterator[None]:
    """What is in use before the block is so again if it raises. One such block at a time, of all processes: the undoing
    of one would take back what another has done since. say hears of waiting for another. Raises StoreError."""
    with ExitStack() as stack:
        with _written(store):
            lock = stack.enter_context(_lock(store, ".changing"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another change is under way; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
        was = _pointer(store)
        try:
            yield
        except BaseException:
            with _locked(store):
                now = _pointer(store)
                if now.use != was.use:
                    _write(store / "current.json", was._replace(proven=now.proven)._asdict())
            raise


def prove(store: Path, number: int) -> None:
    """Note that a daemon watched this version's health long enough. Raises StoreError."""
    with _locked(store):
        now = _pointer(store)
        _write(store / "current.json", now._replace(proven=tuple(sorted({*now.proven, number})))._asdict())


def is_proven(store: Path, number: int) -> bool:
    """Raises StoreError."""
    return number in _pointer(store).proven


def model_of(found: Version | None) -> Path:
    """The file to serve with."""
    return DEFAULT_MODEL if found is None else found.model


def number_of(store: Path, digest: str) -> int | None:
    """The version that has a model of this sha256, going by the cards, of several the one in use; SHIPPED for one that
    ships, None for neither."""
    found = []
    for each in versions(store):
        with suppress(StoreError):  # a damaged card hides no other version
            if digest in _digests(each.folder.glob("*.onnx")):
                found.append(each.number)
    if found:
        now = in_use(store)
        return now if now in found else found[0]
    return SHIPPED if digest in _digests(DEFAULT_MODEL.parent.glob("dgn*.onnx")) else None


def _digests(models: Iterable[Path]) -> set[str]:
    try:
        return {str(read_json(card_path(model))["sha256"]) for model in models}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"a card cannot be read ({error})") from None


def _pointer(store: Path) -> Pointer:
    path = store / "current.json"
    try:
        values = read_json(path)
        before, proven = (tuple(int(n) for n in values[name]) for name in ("before", "proven"))
        return Pointer(int(values["use"]), before, proven)
    except FileNotFoundError:
        return Pointer()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({refusal(error)})") from None
    except (ValueError, KeyError, TypeError, OverflowError):
        raise StoreError(f"{path} is damaged; remove it to go on with the network that ships") from None


def _copy(model: Path, folder: Path, number: int) -> str:
    """Copy a model and its card under the version's name; the name."""
    card = load_card(model)
    name = f"adapted-{number}{FORMS.get(card.precision, f'-{card.precision}')}"
    copy = folder / f"{name}.onnx"
    if copy.exists():
        raise StoreError(f"{model}: a second model in {card.precision}")
    shutil.copyfile(model, copy)
    _write(card_path(copy), read_json(card_path(model)) | {"name": name})
    load_card(copy)
    _sync(copy)
    return copy.name


def _write(path: Path, values: Any) -> None:
    """JSON, whole or not at all."""
    write_json(path, values)
    give(path, path.parent)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """See to it that a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """One writer at a time. Raises StoreError."""
    with _written(store), _lock(store, ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _written(store: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"store {store}: cannot be written ({refusal(error)})") from None


def _lock(store: Path, name: str) -> IO[str]:
    """A file of the store, to be locked. Raises OSError."""
    missing = [folder for folder in (store, *store.parents) if not folder.exists()]
    store.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in reversed(missing):
        give(folder, folder.parent)
    # Root works in a service's store too, and follows no link that its user put there.
    descriptor = os.open(store / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    file = os.fdopen(descriptor, "w")
    give(store / name, store)
    return file
