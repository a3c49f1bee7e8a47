"""The wire, version 1: `[topic, msgpack map]`; `docs/wire.md` is the contract.

Encoding makes `[topic, payload]` for one `send_multipart`; decoding trusts nobody: sizes are bounded before
anything is built, types, shapes and finite numbers are checked, and every failure is a one-line `WireError`.
Keys a version 1 reader does not know are ignored, so that fields can be added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

import msgpack
import numpy as np
from numpy.typing import ArrayLike

from .frames import Side
from .messages import (
    Float32,
    HandJoints,
    HandMesh,
    HandState,
    Header,
    JointsMessage,
    MeshMessage,
    Message,
    StatusMessage,
    StatusState,
    TopologyMessage,
    WireError,
    WireHand,
)

__all__ = [
    "MAX_BYTES",
    "VERSION",
    "HandJoints",
    "HandMesh",
    "Header",
    "JointsMessage",
    "MeshMessage",
    "Message",
    "StatusMessage",
    "TopologyMessage",
    "WireError",
    "WireHand",
    "decode",
    "encode_joints",
    "encode_mesh",
    "encode_status",
    "encode_topology",
    "one_line",
]

VERSION = 1
MAX_BYTES = 4 << 20
MAX_HANDS = 16
MAX_NAME = 64  # characters of a camera or a stage
MAX_TEXT = 400  # characters of the status message, engine and model

Parts = list[bytes]


# --- encode


def encode_joints(header: Header, hands: Sequence[WireHand], *, stages_us: dict[str, float], dropped: int) -> Parts:
    """`joints.<camera>`. Raises WireError for a lost hand, a wrong shape or a number that is not finite."""
    body = {
        "dropped": dropped,
        "stages_us": {_name(name, "stage"): float(us) for name, us in stages_us.items()},
        "hands": [_joints_map(hand) for hand in _limited(hands)],
    }
    return _pack("joints", header, body)


def encode_mesh(header: Header, hands: Sequence[WireHand]) -> Parts:
    """`mesh.<camera>`. Raises WireError as `encode_joints`."""
    maps = [
        {
            "id": hand.id,
            "side": hand.pose.side,
            "vertices_m": _bytes(hand.pose.vertices_m, (None, 3), "vertices_m"),
        }
        for hand in _limited(hands)
    ]
    return _pack("mesh", header, {"hands": maps})


def encode_status(
    header: Header,
    *,
    state: StatusState,
    fps: float,
    frames: int,
    dropped: int,
    bad_frames: int,
    engine: str,
    model: str,
    uptime_s: float,
    message: str = "",
) -> Parts:
    """`status.<camera>`. message becomes one printable line of at most MAX_TEXT characters."""
    if state not in get_args(StatusState):
        raise WireError(f"status: state {state!r} is none of {', '.join(get_args(StatusState))}")
    body = {
        "state": state,
        "fps": float(fps),
        "frames": frames,
        "dropped": dropped,
        "bad_frames": bad_frames,
        "engine": one_line(engine),
        "model": one_line(model),
        "uptime_s": float(uptime_s),
        "message": one_line(message),
    }
    return _pack("status", header, body)


def encode_topology(faces: ArrayLike) -> Parts:
    """`topology`: faces (F, 3), vertex indices of the right hand's triangles."""
    indices = np.ascontiguousarray(faces, "<i4")  # (F, 3)
    if indices.ndim != 2 or indices.shape[1] != 3 or not indices.size or indices.min() < 0:
        raise WireError(f"topology: faces are {indices.shape}, expected (F, 3) indices from 0")
    body = {"v": VERSION, "vertices": int(indices.max()) + 1, "faces": indices.tobytes()}
    return [b"topology", _packed(body, "topology")]


def one_line(text: str) -> str:
    """Text as one printable line of at most MAX_TEXT characters."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line)[:MAX_TEXT]


def _joints_map(hand: WireHand) -> dict[str, Any]:
    pose, raw = hand.pose, hand.joints_raw_m
    if pose.state not in get_args(HandState):
        raise WireError(f"hand {hand.id} is {pose.state}: leave it out of the list")
    return {
        "id": hand.id,
        "side": pose.side,
        "side_conf": float(pose.side_conf),
        "state": pose.state,
        "age_ms": float(hand.age_ms),
        "score": float(pose.score),
        "fit_mm": float(pose.fit_mm) if math.isfinite(pose.fit_mm) else None,
        "joints_m": _bytes(pose.joints_m, (21, 3), "joints_m"),
        "joints_raw_m": None if raw is None else _bytes(raw, (21, 3), "joints_raw_m"),
        "joint_conf": _bytes(pose.joint_conf, (21,), "joint_conf"),
        "angles_rad": _bytes(pose.theta[6:], (20,), "angles_rad"),
        "T_camera_wrist": _bytes(pose.T_camera_wrist, (4, 4), "T_camera_wrist"),
        "alpha": _bytes(pose.alpha, (6,), "alpha"),
        "beta": _bytes(pose.beta, (7,), "beta"),
    }


def _bytes(values: ArrayLike, shape: tuple[int | None, ...], name: str) -> bytes:
    array = np.asarray(values, "<f4")
    if array.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, array.shape, strict=True)):
        raise WireError(f"{name} is {_size(array.shape)}, the wire carries {_size(shape)}")
    if not np.isfinite(array).all():
        raise WireError(f"{name} has a number that is not finite")
    return array.tobytes()


def _pack(kind: str, header: Header, body: dict[str, Any]) -> Parts:
    topic = f"{kind}.{_name(header.camera, 'camera')}"
    start = {
        "v": VERSION,
        "camera": header.camera,
        "seq": header.seq,
        "t_capture_ns": header.t_capture_ns,
        "t_capture_unix_ns": header.t_capture_unix_ns,
        "t_publish_ns": header.t_publish_ns,
    }
    return [topic.encode(), _packed(start | body, topic)]


def _packed(body: dict[str, Any], topic: str) -> bytes:
    payload: bytes = msgpack.packb(body)
    if len(payload) + len(topic.encode()) > MAX_BYTES:
        raise WireError(f"{topic}: {len(payload)} bytes, the wire carries at most {MAX_BYTES}")
    return payload


def _limited(hands: Sequence[WireHand]) -> Sequence[WireHand]:
    if len(hands) > MAX_HANDS:
        raise WireError(f"{len(hands)} hands, the wire carries at most {MAX_HANDS}")
    return hands


# --- decode


def decode(parts: Sequence[bytes]) -> Message:
    """One multipart message to its value. Raises WireError for anything but the contract's version 1."""
    if len(parts) != 2:
        raise WireError(f"a message has {len(parts)} parts, expected [topic, payload]")
    topic, payload = parts
    if len(topic) + len(payload) > MAX_BYTES:
        raise WireError(f"a message of {len(topic) + len(payload)} bytes, expected at most {MAX_BYTES}")
    kind, _, camera = topic[: 4 * MAX_NAME + 16].decode("utf-8", "replace").partition(".")
    if kind not in _READERS or (kind == "topology") != (topic == b"topology"):
        raise WireError(f"topic {topic[:40]!r} is none of joints.<camera>, mesh.<camera>, status.<camera>, topology")
    try:
        body = _unpack(payload)
        if kind != "topology" and body.get("camera") != camera:
            raise WireError(f"the payload's camera is {_short(body.get('camera'))}")
        return _READERS[kind](body)
    except WireError as error:
        raise WireError(f"{one_line(topic[:80].decode('utf-8', 'replace'))}: {error}") from None


def _unpack(payload: bytes) -> dict[str, Any]:
    try:
        body = msgpack.unpackb(
            payload, max_str_len=4096, max_bin_len=MAX_BYTES, max_array_len=1024, max_map_len=256, max_ext_len=256
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"not readable as msgpack ({one_line(str(error)) or type(error).__name__})") from None
    if not isinstance(body, dict):
        raise WireError(f"the payload is {type(body).__name__}, expected a map")
    version = body.get("v")
    if type(version) is not int or version != VERSION:
        raise WireError(f"wire version {_short(version)}, this edge-hand reads version {VERSION}: update the older end")
    return body


def _read_joints(body: dict[str, Any]) -> JointsMessage:
    stages = _get(body, "stages_us", dict)
    return JointsMessage(
        *_header(body),
        dropped=_int(body, "dropped"),
        stages_us={_name(name, "stage"): _float(stages, name) for name in stages},
        hands=tuple(_each(body, _read_hand_joints)),
    )


def _read_hand_joints(m: dict[str, Any]) -> HandJoints:
    state = _get(m, "state", str)
    if state not in get_args(HandState):
        raise WireError(f"state is {_short(state)}, expected tracked or predicted")
    return HandJoints(
        id=_int(m, "id"),
        side=_side(m),
        side_conf=_float(m, "side_conf"),
        state=state,
        age_ms=_float(m, "age_ms"),
        score=_float(m, "score"),
        fit_mm=None if m.get("fit_mm") is None else _float(m, "fit_mm"),
        joints_m=_array(m, "joints_m", (21, 3)),
        joints_raw_m=None if m.get("joints_raw_m") is None else _array(m, "joints_raw_m", (21, 3)),
        joint_conf=_array(m, "joint_conf", (21,)),
        angles_rad=_array(m, "angles_rad", (20,)),
        T_camera_wrist=_array(m, "T_camera_wrist", (4, 4)),
        alpha=_array(m, "alpha", (6,)),
        beta=_array(m, "beta", (7,)),
    )


def _read_mesh(body: dict[str, Any]) -> MeshMessage:
    return MeshMessage(*_header(body), hands=tuple(_each(body, _read_hand_mesh)))


def _read_hand_mesh(m: dict[str, Any]) -> HandMesh:
    return HandMesh(id=_int(m, "id"), side=_side(m), vertices_m=_array(m, "vertices_m", (-1, 3)))


def _read_status(body: dict[str, Any]) -> StatusMessage:
    return StatusMessage(
        *_header(body),
        state=_name(body.get("state"), "state"),
        fps=_float(body, "fps"),
        frames=_int(body, "frames"),
        dropped=_int(body, "dropped"),
        bad_frames=_int(body, "bad_frames"),
        engine=_text(body, "engine"),
        model=_text(body, "model"),
        uptime_s=_float(body, "uptime_s"),
        message=_text(body, "message"),
    )


def _read_topology(body: dict[str, Any]) -> TopologyMessage:
    vertices, data = _int(body, "vertices"), _get(body, "faces", bytes)
    if not data or len(data) % 12:
        raise WireError(f"faces has {len(data)} bytes, expected a multiple of 12 (int32 Fx3)")
    faces = np.frombuffer(data, "<i4").reshape(-1, 3)  # (F, 3)
    if faces.min() < 0 or faces.max() >= vertices:
        raise WireError(f"faces has an index outside 0 to {vertices - 1}")
    return TopologyMessage(vertices, faces)


_READERS: dict[str, Callable[[dict[str, Any]], Message]] = {
    "joints": _read_joints,
    "mesh": _read_mesh,
    "status": _read_status,
    "topology": _read_topology,
}


def _header(body: dict[str, Any]) -> tuple[str, int, int, int, int]:
    return (
        _name(body.get("camera"), "camera"),
        _int(body, "seq", low=-1),
        _int(body, "t_capture_ns"),
        _int(body, "t_capture_unix_ns"),
        _int(body, "t_publish_ns"),
    )


def _each(body: dict[str, Any], read: Callable[[dict[str, Any]], Any]) -> Iterable[Any]:
    hands = _get(body, "hands", list)
    if len(hands) > MAX_HANDS:
        raise WireError(f"{len(hands)} hands, expected at most {MAX_HANDS}")
    for i, hand in enumerate(hands):
        if not isinstance(hand, dict):
            raise WireError(f"hands[{i}] is {type(hand).__name__}, expected a map")
        try:
            yield read(hand)
        except WireError as error:
            raise WireError(f"hands[{i}].{error}") from None


def _get(m: dict[str, Any], key: str, kind: type) -> Any:
    value = m.get(key)
    if not isinstance(value, kind):
        what = "missing" if value is None else type(value).__name__
        raise WireError(f"{key} is {what}, expected {kind.__name__}")
    return value


def _int(m: dict[str, Any], key: str, low: int = 0) -> int:
    value = m.get(key)
    if type(value) is not int or not low <= value < 1 << 63:
        raise WireError(f"{key} is {_short(value)}, expected a whole number from {low}")
    return value


def _float(m: dict[str, Any], key: str) -> float:
    value: Any = m.get(key)  # a whole number counts: JavaScript packs 3.0 as 3
    if type(value) not in (int, float) or not math.isfinite(value):
        raise WireError(f"{_short(key)} is {_short(value)}, expected a finite number")
    return float(value)


def _array(m: dict[str, Any], key: str, shape: tuple[int, ...]) -> Float32:
    data = _get(m, key, bytes)
    row = 4 * math.prod(n for n in shape if n > 0)
    if len(data) % row if -1 in shape else len(data) != row:
        expected = f"a multiple of {row} (float32 Vx3)" if -1 in shape else f"{row} (float32 {_size(shape)})"
        raise WireError(f"{key} has {len(data)} bytes, expected {expected}")
    array = np.frombuffer(data, "<f4").reshape(shape)
    if not np.isfinite(array).all():
        raise WireError(f"{key} has a number that is not finite")
    return array


def _side(m: dict[str, Any]) -> Side:
    side = m.get("side")
    if side not in ("left", "right", "unknown"):
        raise WireError(f"side is {_short(side)}, expected left, right or unknown")
    return side


def _text(m: dict[str, Any], key: str) -> str:
    text: str = _get(m, key, str)
    if len(text) > MAX_TEXT or not text.isprintable():
        raise WireError(f"{key} is {_short(text)}, expected one printable line of at most {MAX_TEXT} characters")
    return text


def _name(name: object, what: str) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable() or " " in name:
        raise WireError(f"{what} is {_short(name)}, expected 1 to {MAX_NAME} printable characters without spaces")
    return name


def _short(value: object) -> str:
    text = ascii(value) if isinstance(value, (str, bytes, int, float, type(None))) else type(value).__name__
    return text if len(text) <= 40 else text[:37] + "..."


def _size(shape: tuple[int | None, ...]) -> str:
    return "x".join("V" if n is None else str(n) for n in shape) or "one number"
