"""What the fuzzer changes and what it feeds: mutations, and good inputs and a reader for each format."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import zstandard
from depth_png import format_1
from edge_hand.calibration.rig import Quality, Rig, RigCamera, RigError, RigPair, load_rig, save_rig
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.cli.config import ConfigError, read_config, settings_of
from edge_hand.edge.cli.main import cli
from edge_hand.edge.networks.card import DEFAULT_MODEL, ModelError, card_path, load_card, sha256
from edge_hand.edge.recordings.recording import METADATA, Recording, RecordingError, RecordingWriter
from edge_hand.edge.service.units import SOURCE
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.wire import WireError, decode
from mcap.writer import CompressionType, Writer

GOLDEN = Path(__file__).parent / "golden"
TELLING = (
    *(b"\x00", b"\xff", b"\x7f", b"\x80", b"\xc1", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"),
    *(b"\xdf\x7f\xff\xff\xff", b"\x91" * 64, b"\xcb\x7f\xf8" + bytes(6), b"\xcf" + b"\xff" * 8, b"\xff" * 8),
    *(b"[" * 500, b'{"a":' * 200, b"9" * 400, b"1e999", b"NaN", b"null", b"\n", b"\\ud800", b'"', b"-0", b"[[a]]"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1 << 63, -(1 << 63), 0.5, -1e308, 1e-320, float("nan"), float("inf"), "", "a\nb\u2028"),
    *("x" * 5000, b"", b"\0" * 300, [], [[]], {}, {"": 0}, [0] * 300, {"a\nb": {"c": []}}, "\x1b[2J", "9" * 100),
)  # fmt: skip


class Target(NamedTuple):
    """What is read, from good inputs changed by each of the mutations; weight is its share of all inputs."""

    name: str
    weight: float
    seeds: list[bytes]
    mutations: list[Callable[[bytes, random.Random], bytes]]
    read: Callable[[bytes], object]
    refusal: type[Exception]


# --- mutations


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few changes: bits, bytes that mean something to a decoder, parts lost, doubled or moved."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at, far = rng.randrange(len(out) + 1), rng.randrange(1, 65)
        kind = rng.randrange(8)
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
        elif kind == 6:
            to = rng.randrange(len(out) + 1)
            out[to : to + far] = out[at : at + far]
        else:
            del out[at:]
    return bytes(out)


def changed(value: Any, rng: random.Random) -> Any:
    """Somewhere in a tree of maps and lists a value that is odd, missing, doubled or from elsewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.randrange(8)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return value | {str(rng.choice(VALUES))[:40]: rng.choice(VALUES)}
        if kind == 2:
            return value | {key: value[rng.choice(list(value))]}
        return value | {key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        kind = rng.randrange(6)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return value + [value[at]] * rng.choice((1, 20))
        return value[:at] + [changed(value[at], rng)] + value[at + 1 :]
    if isinstance(value, bytes) and value and rng.random() < 0.7:
        return mutated(value, rng)
    return rng.choice(VALUES)


def changed_msgpack(data: bytes, rng: random.Random) -> bytes:
    value = msgpack.unpackb(data)
    for _ in range(rng.choice((1, 1, 2))):
        value = changed(value, rng)
    try:
        return msgpack.packb(value)
    except (ValueError, OverflowError, TypeError):
        return data


def changed_json(data: bytes, rng: random.Random) -> bytes:
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        value = changed(value, rng)
    return json.dumps(value, default=str).encode()


def changed_toml(data: bytes, rng: random.Random) -> bytes:
    """A line more, less, twice, or with another value."""
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    key = lines[at].partition("=")[0].strip() or "camera"
    value = rng.choice(
        ("true", "-1", "1e999", "nan", '"\\n"', "[]", "{}", "{a={b=1}}", "9" * 300, '"' + "x" * 300 + '"')
    )
    added = rng.choice((f"{key} = {value}", f"[{key}]", f'[cameras."{key}\\n"]', f"{key}.a = {value}", lines[at]))
    lines[at : at + rng.randrange(2)] = [added]
    return "\n".join(lines).encode()


def rebuilt(data: bytes, rng: random.Random) -> bytes:
    """A recording whose first chunk was changed inside and packed again, with the right checksum."""
    at = 8
    while data[at] != 6:
        at += 9 + struct.unpack_from("<Q", data, at + 1)[0]
    (length,) = struct.unpack_from("<Q", data, at + 1)
    start = at + 9 + 28 + 4 + 4 + 8  # behind times, size, checksum, "zstd" and the length of what is packed
    plain = zstandard.ZstdDecompressor().stream_reader(BytesIO(data[start : at + 9 + length])).read()
    if rng.random() < 0.02:
        plain += bytes(rng.choice((9, 90_000, 9_000_000)))
    for _ in range(rng.choice((1, 1, 2))):
        plain = mutated(plain, rng)
    packed = zstandard.compress(plain, 1)
    size = len(plain) if rng.random() < 0.95 else rng.choice((0, 1 << 40, len(plain) + 1))
    head = struct.pack("<QQQI", 0, 0, size, zlib.crc32(plain)) + struct.pack("<I", 4) + b"zstd"
    chunk = head + struct.pack("<Q", len(packed)) + packed
    rest = data[at + 9 + length :] if rng.random() < 0.5 else b""
    return data[:at] + struct.pack("<BQ", 6, len(chunk)) + chunk + rest


# --- targets


def targets(folder: Path) -> list[Target]:
    """All of them; folder holds the files that are read."""
    model = folder / "net.onnx"
    model.write_bytes(b"no network")
    recording, rig, config = folder / "a.mcap", folder / "rig.json", folder / "config.toml"
    card = json.loads(card_path(DEFAULT_MODEL).read_text()) | {"sha256": sha256(model)}
    small = json.dumps(card | {"training": {}, "metrics": {}}).encode()
    lines = (SOURCE / "config.toml").read_text().splitlines()
    sample = "\n".join(line.removeprefix("# ") for line in lines if " = " in line or line.startswith("# [")).encode()
    plain = b'camera = "synthetic"\nhands = 1\nsmooth = false\n[cameras.left]\nsource = "7"\nfps = 3.5\n'

    def read_recording(data: bytes) -> object:
        recording.write_bytes(data)
        with Recording(recording) as opened:
            return sum(frame.seq for frame in opened) + sum(message.t_ns for message in opened.published())

    def read_settings(data: bytes) -> object:
        config.write_bytes(data)
        return settings_of(read_config(config), "left", cli.commands["run"], config)

    def read_card(data: bytes) -> object:
        model.with_suffix(".json").write_bytes(data)
        return load_card(model)

    def read_rig(data: bytes) -> object:
        rig.write_bytes(data)
        return load_rig(rig)

    tree = [mutated, changed_json]
    return [
        Target("wire", 0.60, wire_seeds(), [mutated_wire, changed_wire], read_wire, WireError),
        Target("recording", 0.10, recording_seeds(folder), [mutated, rebuilt, rebuilt], read_recording, RecordingError),
        Target("rig", 0.11, [rig_seed(folder)], tree, read_rig, RigError),
        Target("card", 0.14, [json.dumps(card).encode(), small], tree, read_card, ModelError),
        Target("config", 0.05, [sample, plain], [mutated, changed_toml], read_settings, ConfigError),
    ]


def wire_seeds() -> list[bytes]:
    """Each golden message as its topic, a zero byte and its payload."""
    seeds = []
    for path in sorted(GOLDEN.glob("wire_*.bin")):
        kind, payload = path.stem.split("_")[1], path.read_bytes()
        camera = payload.partition(b"\xa6camera")[2][1:6]  # a string of five characters
        seeds.append((b"topology" if kind == "topology" else f"{kind}.".encode() + camera) + b"\0" + payload)
    return seeds


def read_wire(data: bytes) -> object:
    topic, _, payload = data.partition(b"\0")
    return decode([topic, payload])


def mutated_wire(data: bytes, rng: random.Random) -> bytes:
    topic, _, payload = data.partition(b"\0")
    if rng.random() < 0.1:
        return mutated(topic, rng) + b"\0" + payload
    return topic + b"\0" + mutated(payload, rng)


def changed_wire(data: bytes, rng: random.Random) -> bytes:
    topic, _, payload = data.partition(b"\0")
    return topic + b"\0" + changed_msgpack(payload, rng)


def recording_seeds(folder: Path) -> list[bytes]:
    """One with messages, in several chunks; without its end; and the first frame of one of format 1."""
    path = folder / "seed.mcap"
    path.unlink(missing_ok=True)
    golden = [seed.partition(b"\0") for seed in wire_seeds() if not seed.startswith(b"cloud")]
    with SyntheticCamera(0, "48x48@30", fps=0) as camera, RecordingWriter(path) as writer:
        frames = [camera.frame(seq) for seq in range(3)]
        for frame in frames:
            writer.write(replace(frame, camera="front"))
            for topic, _, payload in golden:
                writer.message([topic, payload], frame.t_ns)
            writer.flush()
    whole = path.read_bytes()
    return [whole, whole[: len(whole) // 2], recording_1(path)]


def recording_1(path: Path) -> bytes:
    """A recording as the first version wrote it."""
    out = BytesIO()
    writer = Writer(out, compression=CompressionType.ZSTD)
    writer.start(profile="", library="edge-hand")
    writer.add_metadata(METADATA, {"version": "1", "camera": "front", "sensor": ""})
    channel = writer.register_channel("depth.front", "msgpack", schema_id=0)
    with Recording(path) as recording:
        for frame in recording:
            writer.add_message(channel, frame.t_ns, msgpack.packb(format_1(frame)), frame.t_ns)
    writer.finish()
    return out.getvalue()


def rig_seed(folder: Path) -> bytes:
    lens = Intrinsics(848, 480, 421.3, 421.7, 423.1, 240.7, (0.01, -0.02, 0.001, 0.0, 0.0))
    T = np.eye(4)
    T[:3, 3] = 0.5, 0.02, 0.23
    cameras = (
        RigCamera("838212070123", "depth", lens, np.eye(4), np.zeros((6, 6))),
        RigCamera("838212070456", "depth", lens, T, np.diag([1e-6] * 6)),
    )
    pairs = (RigPair("838212070123", "838212070456", 40, 0.04, None),)
    quality = Quality("board", {"reprojection_px": 0.2}, sigma_volume_mm={"838212070456": 0.3}, verdict="pass")
    path = folder / "seed.json"
    save_rig(Rig("bench", "2026-01-02T03:04:05Z", "edge-hand 0.1.0", cameras, pairs, quality), path)
    return path.read_bytes()
