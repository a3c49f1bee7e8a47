"""A file that is written is there as a whole, or as it was before."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from edge_hand.hand.whole import LONGEST_JSON, read_json, refusal, try_writing, write_json, write_whole


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in ("ä\n", b"\x00\xff", memoryview(b"view")):
        write_whole(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else bytes(content))
    write_json(path, {"a": [1, None]})
    assert json.loads(path.read_text()) == {"a": [1, None]} and path.read_text().endswith("}\n")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_of_json_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "endless.json"
    path.write_text("[1, 2]" + " " * LONGEST_JSON)
    with pytest.raises(ValueError, match=r"^over 16 MiB$"):
        read_json(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"^nested too deep$"):
        read_json(path)
    path.write_text("\ufeff[1, 2]")  # Windows puts a mark first
    assert read_json(path) == [1, 2]


def test_its_rights_are_those_asked_for_less_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "open", "")
        write_whole(tmp_path / "secret", "", 0o600)
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("open", "secret")] == [0o640, 0o600]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_file_of_before(
    step: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError) as error:
        write_whole(path, "after")
    assert refusal(error.value) == "no space left on device" and error.value.filename == str(path)
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(("name", "why"), [(".", "is a directory"), ("no/a.txt", "no such file or directory")])
def test_what_is_refused_is_named_as_it_was_given(
    name: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError) as error:
        write_whole(Path(name), "")
    assert (error.value.filename, refusal(error.value)) == (name, why) and list(tmp_path.iterdir()) == []


def test_devices_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with pytest.raises(PermissionError) as error:
            write_whole(tmp_path / name, "")
        assert (refusal(error.value), error.value.filename) == ("not a plain file", str(tmp_path / name))
    with pytest.raises(PermissionError, match="not a plain file"):
        try_writing(Path("/dev/stdout"))  # where a file may lie behind it
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "null").is_symlink()


def test_a_name_may_be_as_long_as_any(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 250 + ".json")
    write_whole(path, "text")
    assert path.read_text() == "text"


def test_of_many_writers_at_once_one_wins_wholly(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.txt", [str(i) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=write_whole, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
