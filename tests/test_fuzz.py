"""A few inputs of the fuzzer for each of what it reads; `python tests/fuzz.py --inputs 1000000` tries many."""

from __future__ import annotations

from pathlib import Path

import fuzz
import fuzz_targets
import pytest
from edge_hand.edge.cli.config import ConfigError
from edge_hand.edge.keys import KeysError, add_client, load_client, make_server
from edge_hand.hand.wire import WireError

FEW = {"wire": 3000, "recording": 200, "rig": 500, "card": 500, "config": 200, "keys": 500}


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, fuzz_targets.Target]:
    folder = tmp_path_factory.mktemp("fuzz")
    found = {target.name: target for target in fuzz_targets.targets(folder)}
    make_server(folder / "keys")
    path = add_client(folder / "keys", "robot", folder / "robot.key_secret")
    assert path is not None

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return load_client(path)

    return found | {
        "keys": fuzz_targets.Target("keys", 0.0, [path.read_bytes()], [fuzz_targets.mutated], read, KeysError)
    }


def test_everything_that_reads_bytes_is_fuzzed(targets: dict[str, fuzz_targets.Target]) -> None:
    assert set(targets) == set(FEW)
    assert sum(target.weight for target in targets.values()) == pytest.approx(1)
    for target in targets.values():
        for seed in target.seeds[:1]:
            target.read(seed)  # as it is, it is read


@pytest.mark.parametrize("name", FEW)
def test_mutated_inputs_are_read_or_refused_in_one_line(name: str, targets: dict[str, fuzz_targets.Target]) -> None:
    with fuzz.watched():
        result = fuzz.fuzz(targets[name], 7, range(FEW[name]))
    assert result.findings == []
    assert result.inputs == FEW[name] and 0 < result.refused < result.inputs


def test_the_fuzzer_finds_crashes_hangs_floods_and_long_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "CPU_S", 0.1)

    def read(data: bytes) -> object:
        if data[0] == 0:
            raise KeyError("a crash")
        while data[0] == 1:
            pass
        if data[0] == 2:
            return bytearray(2 * fuzz.MEMORY)
        raise ConfigError("two\nlines" if data[0] == 3 else "as it should be")

    def first_byte(data: bytes, rng: object) -> bytes:
        return next(values)

    values = iter(bytes([n]) for n in (0, 4, 1, 2, 3))
    target = fuzz_targets.Target("new", 1.0, [b""], [first_byte], read, ConfigError)
    with fuzz.watched():
        result = fuzz.fuzz(target, 0, range(5))
    assert (result.inputs, result.refused) == (5, 2)
    assert [f.what.split(":")[0] for f in result.findings] == [
        "KeyError", "Hang", "MemoryError", "a refusal that is no printable line",
    ]  # fmt: skip


def test_an_input_can_be_made_again(tmp_path: Path) -> None:
    first, second = (next(t for t in fuzz_targets.targets(tmp_path) if t.name == "wire") for _ in range(2))
    inputs = [fuzz.input_of(first, 7, k) for k in range(50)]
    assert inputs == [fuzz.input_of(second, 7, k) for k in range(50)] and len(set(inputs)) > 40
    assert inputs != [fuzz.input_of(first, 8, k) for k in range(50)]
    assert first.refusal is WireError
