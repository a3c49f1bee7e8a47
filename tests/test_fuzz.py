"""Mutated bytes into everything that reads bytes: refused in one line or read, never a crash, a hang or a flood.

EDGE_HAND_FUZZ=1000000 python -m pytest tests/test_fuzz.py tries so many of each instead of a few.
"""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.cli import cli
from edge_hand.edge.config import ConfigError, read_config, settings_of
from edge_hand.edge.keys import KeysError, add_client, load_client, make_server
from edge_hand.edge.model_card import DEFAULT_MODEL, ModelError, card_path, load_card
from edge_hand.edge.recording import Recording, RecordingError, RecordingWriter
from edge_hand.edge.service import SOURCE
from edge_hand.hand.wire import WireError, decode

COUNT = int(os.environ.get("EDGE_HAND_FUZZ", "0"))
GOLDEN = sorted((Path(__file__).parent / "golden").glob("wire_*.bin"))
TELLING = (
    *(b"\x00", b"\xff", b"\x7f", b"\x80", b"\xc1", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"),
    *(b"\xdf\x7f\xff\xff\xff", b"\x91" * 64, b"\xcb\x7f\xf8" + bytes(6), b"\xcf" + b"\xff" * 8),
)
SECONDS = 2.0  # for one input; a hang is longer
MEMORY = 32 << 20  # bytes, over what was there before; the inputs are a few kB


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few changes: bits, bytes that mean something to a decoder, parts lost, doubled or moved."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at, far = rng.randrange(len(out) + 1), rng.randrange(1, 65)
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.randrange(256)
        elif kind == 2:
            telling = rng.choice(TELLING)
            out[at : at + len(telling)] = telling
        elif kind == 3:
            out[at:at] = rng.choice(TELLING)
        elif kind == 4:
            del out[at : at + far]
        elif kind == 5:
            out[at:at] = out[at : at + far]
        else:
            del out[at:]
    return bytes(out)


def fuzz(seeds: list[bytes], read: Callable[[bytes], object], refusals: tuple[type[Exception], ...], few: int) -> int:
    """How many of the mutated inputs were refused; each in one line and in time, and none with much memory."""
    rng, refused = random.Random(7), 0
    if not COUNT:
        tracemalloc.start()  # it slows what it watches
    try:
        for _ in range(COUNT or few):
            data = mutated(rng.choice(seeds), rng)
            begun_s = time.perf_counter()
            try:
                read(data)
            except refusals as error:
                refused += 1
                assert len(str(error).splitlines()) == 1 and len(str(error)) < 2000, data
            assert time.perf_counter() - begun_s < SECONDS, data
        assert COUNT or tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    return refused


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_wire(golden: Path) -> None:
    kind = golden.stem.split("_")[1]
    payload = golden.read_bytes()
    camera = payload.partition(b"\xa6camera")[2][1:6]  # a string of five characters
    topic = b"topology" if kind == "topology" else f"{kind}.".encode() + camera
    decode([topic, payload])  # as it is, it is read

    def read(data: bytes) -> object:
        return decode([topic, data])

    assert fuzz([payload], read, (WireError,), 1500) > 0
    assert fuzz([topic], lambda data: decode([data, payload]), (WireError,), 200) > 0


def test_config_file(tmp_path: Path) -> None:
    sample = (SOURCE / "config.toml").read_text().replace("# ", "").encode()
    plain = b'camera = "synthetic"\nhands = 1\nsmooth = false\n[cameras.left]\nsource = "7"\nfps = 3.5\n'

    def read(data: bytes) -> object:
        path = written(tmp_path / "config.toml", data)
        return settings_of(read_config(path), "left", cli.commands["run"], path)

    assert fuzz([sample, plain], read, (ConfigError,), 800) > 0


def test_key_file(tmp_path: Path) -> None:
    make_server(tmp_path / "keys")
    path = add_client(tmp_path / "keys", "robot", tmp_path / "robot.key_secret")
    assert path is not None
    data = path.read_bytes()
    assert fuzz([data], lambda data: load_client(written(path, data)), (KeysError,), 800) > 0


def test_model_card(tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    model.write_bytes(b"no network")
    card = card_path(DEFAULT_MODEL).read_bytes()

    def read(data: bytes) -> object:
        written(model.with_suffix(".json"), data)
        return load_card(model)

    assert fuzz([card], read, (ModelError,), 400) > 0


def test_recording(tmp_path: Path) -> None:
    source = tmp_path / "a.mcap"
    with SyntheticCamera(0, "64x48@30", fps=0) as camera, RecordingWriter(source, compress_level=1) as writer:
        for seq in range(2):
            writer.write(camera.frame(seq))

    def read(data: bytes) -> object:
        with Recording(written(tmp_path / "b.mcap", data)) as recording:
            return sum(1 for _ in recording)

    assert fuzz([source.read_bytes()], read, (RecordingError,), 300) > 0


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
