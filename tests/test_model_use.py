"""Several commands that put networks in use at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from edge_hand.edge.networks import use as model_use
from edge_hand.edge.networks.card import MODELS
from edge_hand.edge.networks.store import StoreError, add, in_use, undone_on_error, use
from edge_hand.edge.networks.use import put_in_use
from edge_hand.edge.service.control import ControlSocket, Reply, Request

FLOAT = MODELS / "dgn-nano.onnx"


@pytest.fixture(autouse=True)
def no_daemon_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)


def test_of_two_changes_at_once_the_second_waits_and_holds_though_the_first_is_refused(
    tmp_path: Path,
) -> None:
    store = tmp_path / "models"
    for name in ("a", "b"):
        add(store, [FLOAT], name, {})
    asked, waits, said, refused = threading.Event(), threading.Event(), list[str](), list[str]()

    def answer(request: Request) -> Reply:
        if request.what == "use" and "adapted-1" in request.model:
            asked.set()
            waits.wait(10)
            return Reply(False, "left", "it makes no hand")
        return Reply(True, "left", "serves from the next frame on")

    def first() -> None:
        try:
            put_in_use(store, 1, lambda line: None)
        except StoreError as error:
            refused.append(str(error))

    def tell(line: str) -> None:
        said.append(line)
        waits.set()

    with ControlSocket("left", answer):
        other = threading.Thread(target=first)
        other.start()
        assert asked.wait(10)
        put_in_use(store, 2, tell)
        waits.set()
        other.join(10)
    assert in_use(store) == 2 and len(refused) == 1
    assert said == ["another change is under way; waiting for it", "left: serves from the next frame on"]


def test_a_change_that_comes_right_after_another_is_not_taken_for_a_daemon_that_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "models"
    for name in ("a", "b"):
        add(store, [FLOAT], name, {})

    @contextmanager
    def then_another(store: Path, say: Callable[[str], None]) -> Iterator[None]:
        with undone_on_error(store, say):
            yield
        use(store, 2)

    monkeypatch.setattr(model_use, "undone_on_error", then_another)
    found = put_in_use(store, 1, lambda line: None)
    assert found is not None and found.number == 1 and in_use(store) == 2


def test_a_version_that_is_not_there_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no version 3"):
        put_in_use(tmp_path / "models", 3, lambda line: None)
    assert not (tmp_path / "models").exists()
