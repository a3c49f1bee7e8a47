"""What a recording holds for Foxglove (https://foxglove.dev) besides the depth image: the hands as lines in the 3D
panel, numbers to plot, the camera's calibration; JSON in Foxglove's schemas, and descriptions of the wire's topics.
"""

from __future__ import annotations

import json
from typing import Any

from ...hand.camera import Intrinsics
from ...hand.skeleton import ANGLE_NAMES, JOINT_NAMES, JOINT_PARENTS
from ...hand.wire import HandJoints, JointsMessage, decode

Schema = tuple[str, str, bytes]  # name, encoding, data

_BAR = "=" * 80
DEPTH_SCHEMA: Schema = (
    "sensor_msgs/msg/Image",
    "ros2msg",
    f"""std_msgs/Header header
uint32 height
uint32 width
string encoding
uint8 is_bigendian
uint32 step
uint8[] data
{_BAR}
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
{_BAR}
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
""".encode(),
)
COLOURS = {"left": (0.3, 0.67, 0.97), "right": (0.41, 0.86, 0.49), "unknown": (0.81, 0.83, 0.85)}


def schema_of_wire(kind: str) -> Schema:
    """Of a topic of the wire, in words: msgpack, so Foxglove lists these channels and does not decode them."""
    text = f"edge-hand's wire, version 1, a msgpack map: the {kind} message of docs/wire.md"
    return f"edge_hand.{kind}", "jsonschema", json.dumps({"type": "object", "description": text}).encode()


def calibration_json(camera: str, t_ns: int, k: Intrinsics) -> tuple[Schema, bytes]:
    """foxglove.CameraCalibration, with which the 3D panel places the depth image."""
    fx, fy, cx, cy = float(k.fx), float(k.fy), float(k.cx), float(k.cy)
    value = {
        "timestamp": _time(t_ns),
        "frame_id": camera,
        "width": k.width,
        "height": k.height,
        "distortion_model": "plumb_bob",
        "D": [float(c) for c in k.distortion],
        "K": [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0],
        "R": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        "P": [fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0],
    }
    return _jsonschema("foxglove.CameraCalibration", value), json.dumps(value).encode()


def joints_json(parts: list[bytes]) -> dict[str, tuple[Schema, bytes]]:
    """What Foxglove shows of a joints message: by the topic's kind, `scene` and `plot`."""
    message = decode(parts)
    assert isinstance(message, JointsMessage)
    return {"scene": _scene(message), "plot": _plot(message)}


def _scene(message: JointsMessage) -> tuple[Schema, bytes]:
    """foxglove.SceneUpdate: a line a bone, of each hand; those of hands that are gone go."""
    entities = [_entity(message, hand) for hand in message.hands]
    value = {"deletions": [{"timestamp": _time(message.t_capture_ns), "type": 1, "id": ""}], "entities": entities}
    return SCENE_SCHEMA, json.dumps(value).encode()


def _plot(message: JointsMessage) -> tuple[Schema, bytes]:
    """The numbers by name: `plot.<camera>.hands[0].joints_m.index_tip.x`."""
    value = {
        "seq": message.seq,
        "latency_ms": message.latency_ms,
        "dropped": message.dropped,
        "stages_us": {name: round(us, 1) for name, us in message.stages_us.items()},
        "hands": [_numbers(hand) for hand in message.hands],
    }
    return PLOT_SCHEMA, json.dumps(value).encode()


def _entity(message: JointsMessage, hand: HandJoints) -> dict[str, Any]:
    r, g, b = COLOURS[hand.side]
    ends = [i for joint, parent in enumerate(JOINT_PARENTS) if parent >= 0 for i in (parent, joint)]
    lines = {
        "type": 2,  # LINE_LIST
        "pose": {"position": _xyz((0.0, 0.0, 0.0)), "orientation": {"x": 0.0, "y": 0.0, "z": 0.0, "w": 1.0}},
        "thickness": 0.004,
        "scale_invariant": False,
        "points": [_xyz(point) for point in hand.joints_m.tolist()],
        "color": {"r": r, "g": g, "b": b, "a": 1.0 if hand.state == "tracked" else 0.4},
        "colors": [],
        "indices": ends,
    }
    empty: dict[str, Any] = {
        kind: [] for kind in ("arrows", "cubes", "spheres", "cylinders", "triangles", "texts", "models")
    }
    return empty | {
        "timestamp": _time(message.t_capture_ns),
        "frame_id": message.camera,
        "id": str(hand.id),
        "lifetime": {"sec": 0, "nsec": 0},
        "frame_locked": False,
        "metadata": [],
        "lines": [lines],
    }


def _numbers(hand: HandJoints) -> dict[str, Any]:
    return {
        "id": hand.id,
        "side": hand.side,
        "state": hand.state,
        "score": round(hand.score, 3),
        "fit_mm": hand.fit_mm,
        "joints_m": {name: _xyz(p) for name, p in zip(JOINT_NAMES, hand.joints_m.tolist(), strict=True)},
        "angles_rad": dict(zip(ANGLE_NAMES, [round(a, 4) for a in hand.angles_rad.tolist()], strict=True)),
    }


def _xyz(point: tuple[float, ...] | list[float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in zip("xyz", point, strict=True)}


def _time(t_ns: int) -> dict[str, int]:
    return {"sec": t_ns // 1_000_000_000, "nsec": t_ns % 1_000_000_000}


def _jsonschema(name: str, example: Any) -> Schema:
    return name, "jsonschema", json.dumps({"title": name} | _type_of(example)).encode()


def _type_of(example: Any) -> dict[str, Any]:
    """A JSON schema that the example fits; Foxglove takes a map of sec and nsec for a time."""
    if isinstance(example, dict):
        if example.keys() == {"sec", "nsec"}:
            return {"type": "object", "title": "time", "properties": {key: {"type": "integer"} for key in example}}
        return {"type": "object", "properties": {key: _type_of(value) for key, value in example.items()}}
    if isinstance(example, list):
        return {"type": "array", "items": _type_of(example[0]) if example else {"type": "object"}}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": kinds[type(example)]} if type(example) in kinds else {}


def _examples() -> tuple[Schema, Schema]:
    """The schemas of a scene and of a plot with one hand in it."""
    import numpy as np

    zeros = np.zeros((21, 3), np.float32)
    hand = HandJoints(1, "right", 1.0, "tracked", 0.0, 1.0, 0.5, zeros, zeros, zeros[:, 0], np.zeros(20, np.float32),
                      np.eye(4, dtype=np.float32), np.ones(6, np.float32), np.zeros(7, np.float32))  # fmt: skip
    message = JointsMessage("camera", 0, 0, 0, 0, 0, {}, (hand,))
    deletion = {"timestamp": _time(0), "type": 1, "id": ""}
    scene = {"deletions": [deletion], "entities": [_entity(message, hand)]}
    plot = {"seq": 0, "latency_ms": 0.0, "dropped": 0, "stages_us": {}, "hands": [_numbers(hand)]}
    return _jsonschema("foxglove.SceneUpdate", scene), _jsonschema("edge_hand.plot", plot)


SCENE_SCHEMA, PLOT_SCHEMA = _examples()
