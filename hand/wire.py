"""The wire, version 1: `[topic, msgpack map]`; `docs/wire.md` is the contract.

Encoding makes `[topic, payload]` for one `send_multipart`; decoding trusts nobody: sizes are bounded before
anything is built, types, shapes and finite numbers are checked, and every failure is a one-line `WireError`.
Keys a version 1 reader does not know are ignored, so that fields can be added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar, get_args

import msgpack
import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import fields
from .camera import Intrinsics
from .fields import MAX_NAME, float_array, get, name_of, number, one_line, short, side_of, size_text, text_of, whole
from .messages import (
    CloudMessage,
    HandCloud,
    HandJoints,
    HandMesh,
    HandState,
    Header,
    JointsMessage,
    MeshMessage,
    Message,
    Motion,
    StatusMessage,
    StatusState,
    TopologyMessage,
    WireError,
    WireHand,
)

__all__ = [
    "MAX_BYTES",
    "VERSION",
    "CloudMessage",
    "HandCloud",
    "HandJoints",
    "HandMesh",
    "Header",
    "JointsMessage",
    "MeshMessage",
    "Message",
    "Motion",
    "StatusMessage",
    "TopologyMessage",
    "WireError",
    "WireHand",
    "decode",
    "encode_cloud",
    "encode_joints",
    "encode_mesh",
    "encode_status",
    "encode_topology",
    "one_line",
]

VERSION = 1
MAX_BYTES = 4 << 20
MAX_HANDS = 16
MAX_POINTS = 20_000  # of a cloud's scene, and of each of its hands
MOTION = {"velocity_m_s": 3, "angular_velocity_rad_s": 3, "angle_rates_rad_s": 20}  # the keys of a Motion
VISIBLE = (-1, 0, 1)
_VISIBLE_BYTES = {0, 1, 255}

Parts = list[bytes]
Hand = TypeVar("Hand", WireHand, HandCloud)


# --- encode


def encode_joints(header: Header, hands: Sequence[WireHand], *, stages_us: dict[str, float], dropped: int) -> Parts:
    """`joints.<camera>`. Raises WireError for a lost hand, a wrong shape or a number that is not finite."""
    body = {
        "dropped": dropped,
        "stages_us": {name_of(name, "stage"): float(us) for name, us in stages_us.items()},
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


def encode_cloud(
    header: Header, scene_m: ArrayLike | None, hands: Sequence[HandCloud], intrinsics: Intrinsics | None = None
) -> Parts:
    """`cloud.<camera>`: scene_m (N, 3) m, None to leave it out, and the points of each hand. Raises WireError for a
    wrong shape, more than MAX_POINTS points or a number that is not finite."""
    body: dict[str, Any] = {} if intrinsics is None else {"intrinsics": asdict(intrinsics)}
    body |= {
        "scene_m": None if scene_m is None else _bytes(scene_m, (None, 3), "scene_m", MAX_POINTS),
        "hands": [
            {"id": hand.id, "points_m": _bytes(hand.points_m, (None, 3), "points_m", MAX_POINTS)}
            for hand in _limited(hands)
        ],
    }
    return _pack("cloud", header, body)


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


def _joints_map(hand: WireHand) -> dict[str, Any]:
    pose, raw, motion = hand.pose, hand.joints_raw_m, hand.motion
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
        "visible": None if hand.visible is None else _visible_bytes(hand.visible),
        **{key: motion and _bytes(getattr(motion, key), (n,), key) for key, n in MOTION.items()},
    }


def _visible_bytes(visible: ArrayLike) -> bytes:
    array = np.asarray(visible)
    data = array.tobytes()
    known = _VISIBLE_BYTES.issuperset(data) if array.dtype == np.int8 else np.isin(array, VISIBLE).all()
    if array.shape != (21,) or not known:
        raise WireError(f"visible is {size_text(array.shape)}, the wire carries 21 of -1, 0 and 1")
    return data if array.dtype == np.int8 else array.astype(np.int8).tobytes()


def _bytes(values: ArrayLike, shape: tuple[int | None, ...], name: str, most: int | None = None) -> bytes:
    array = np.asarray(values, "<f4")
    if array.shape != shape and (
        array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True))
    ):
        raise WireError(f"{name} is {size_text(array.shape)}, the wire carries {size_text(shape)}")
    if most is not None and len(array) > most:
        raise WireError(f"{name} has {len(array)} points, the wire carries at most {most}")
    if not np.isfinite(array).all():
        raise WireError(f"{name} has a number that is not finite")
    return array.tobytes()


def _pack(kind: str, header: Header, body: dict[str, Any]) -> Parts:
    topic = f"{kind}.{name_of(header.camera, 'camera')}"
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


def _limited(hands: Sequence[Hand]) -> Sequence[Hand]:
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
        known = ", ".join(name if name == "topology" else f"{name}.<camera>" for name in _READERS)
        raise WireError(f"topic {topic[:40]!r} is none of {known}")
    try:
        body = _unpack(payload)
        if kind != "topology" and body.get("camera") != camera:
            raise WireError(f"the payload's camera is {short(body.get('camera'))}")
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
        raise WireError(f"wire version {short(version)}, this edge-hand reads version {VERSION}: update the older end")
    return body


def _read_joints(body: dict[str, Any]) -> JointsMessage:
    stages = get(body, "stages_us", dict)
    return JointsMessage(
        *_header(body),
        dropped=whole(body, "dropped"),
        stages_us={name_of(name, "stage"): number(stages, name) for name in stages},
        hands=tuple(_each(body, _read_hand_joints)),
    )


def _read_hand_joints(m: dict[str, Any]) -> HandJoints:
    state = get(m, "state", str)
    if state not in get_args(HandState):
        raise WireError(f"state is {short(state)}, expected tracked or predicted")
    return HandJoints(
        id=whole(m, "id"),
        side=side_of(m),
        side_conf=number(m, "side_conf"),
        state=state,
        age_ms=number(m, "age_ms"),
        score=number(m, "score"),
        fit_mm=None if m.get("fit_mm") is None else number(m, "fit_mm"),
        joints_m=float_array(m, "joints_m", (21, 3)),
        joints_raw_m=None if m.get("joints_raw_m") is None else float_array(m, "joints_raw_m", (21, 3)),
        joint_conf=float_array(m, "joint_conf", (21,)),
        angles_rad=float_array(m, "angles_rad", (20,)),
        T_camera_wrist=float_array(m, "T_camera_wrist", (4, 4)),
        alpha=float_array(m, "alpha", (6,)),
        beta=float_array(m, "beta", (7,)),
        visible=None if m.get("visible") is None else _read_visible(m),
        motion=_read_motion(m),
    )


def _read_visible(m: dict[str, Any]) -> NDArray[np.int8]:
    data = get(m, "visible", bytes)
    if len(data) != 21:
        raise WireError(f"visible has {len(data)} bytes, expected 21 (int8 of -1, 0 and 1)")
    if not _VISIBLE_BYTES.issuperset(data):
        raise WireError("visible has a number other than -1, 0 and 1")
    return np.frombuffer(data, np.int8)


def _read_motion(m: dict[str, Any]) -> Motion | None:
    """All of it or nothing."""
    if all(m.get(key) is None for key in MOTION):
        return None
    return Motion(*(float_array(m, key, (n,)) for key, n in MOTION.items()))


def _read_mesh(body: dict[str, Any]) -> MeshMessage:
    return MeshMessage(*_header(body), hands=tuple(_each(body, _read_hand_mesh)))


def _read_hand_mesh(m: dict[str, Any]) -> HandMesh:
    return HandMesh(id=whole(m, "id"), side=side_of(m), vertices_m=float_array(m, "vertices_m", (-1, 3)))


def _read_cloud(body: dict[str, Any]) -> CloudMessage:
    scene = None if body.get("scene_m") is None else _read_points(body, "scene_m")
    lens = None if body.get("intrinsics") is None else fields.intrinsics_of(get(body, "intrinsics", dict))
    return CloudMessage(*_header(body), scene_m=scene, hands=tuple(_each(body, _read_hand_cloud)), intrinsics=lens)


def _read_hand_cloud(m: dict[str, Any]) -> HandCloud:
    return HandCloud(id=whole(m, "id"), points_m=_read_points(m, "points_m"))


def _read_points(m: dict[str, Any], key: str) -> NDArray[np.float32]:
    points = float_array(m, key, (-1, 3))
    if len(points) > MAX_POINTS:
        raise WireError(f"{key} has {len(points)} points, expected at most {MAX_POINTS}")
    return points


def _read_status(body: dict[str, Any]) -> StatusMessage:
    return StatusMessage(
        *_header(body),
        state=name_of(body.get("state"), "state"),
        fps=number(body, "fps"),
        frames=whole(body, "frames"),
        dropped=whole(body, "dropped"),
        bad_frames=whole(body, "bad_frames"),
        engine=text_of(body, "engine"),
        model=text_of(body, "model"),
        uptime_s=number(body, "uptime_s"),
        message=text_of(body, "message"),
    )


def _read_topology(body: dict[str, Any]) -> TopologyMessage:
    vertices, data = whole(body, "vertices"), get(body, "faces", bytes)
    if not data or len(data) % 12:
        raise WireError(f"faces has {len(data)} bytes, expected a multiple of 12 (int32 Fx3)")
    faces = np.frombuffer(data, "<i4").reshape(-1, 3)  # (F, 3)
    if faces.min() < 0 or faces.max() >= vertices:
        raise WireError(f"faces has an index outside 0 to {vertices - 1}")
    return TopologyMessage(vertices, faces)


_READERS: dict[str, Callable[[dict[str, Any]], Message]] = {
    "joints": _read_joints,
    "mesh": _read_mesh,
    "cloud": _read_cloud,
    "status": _read_status,
    "topology": _read_topology,
}


def _header(body: dict[str, Any]) -> tuple[str, int, int, int, int]:
    return (
        name_of(body.get("camera"), "camera"),
        whole(body, "seq", low=-1),
        whole(body, "t_capture_ns"),
        whole(body, "t_capture_unix_ns"),
        whole(body, "t_publish_ns"),
    )


def _each(body: dict[str, Any], read: Callable[[dict[str, Any]], Any]) -> Iterable[Any]:
    hands = get(body, "hands", list)
    if len(hands) > MAX_HANDS:
        raise WireError(f"{len(hands)} hands, expected at most {MAX_HANDS}")
    for i, hand in enumerate(hands):
        if not isinstance(hand, dict):
            raise WireError(f"hands[{i}] is {type(hand).__name__}, expected a map")
        try:
            yield read(hand)
        except WireError as error:
            raise WireError(f"hands[{i}].{error}") from None
