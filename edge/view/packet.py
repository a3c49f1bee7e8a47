"""What goes to the page of a live view: one packet a picture, the newest of all cameras.

A packet is the length of the rest (uint32), the length of its JSON (uint32), the JSON padded with spaces to a multiple
of 4, and the arrays, each padded likewise; all little-endian. The JSON refers to an array as [offset among the arrays,
count of numbers]. Points are int16 in units of POINT_M, faces uint16, joints float32 in metres.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...hand.messages import TopologyMessage
from .board import CameraView

POINT_M = 2e-4


class Packets:
    """Makes the packets of one page: it knows which scenes and faces the page has."""

    def __init__(self) -> None:
        self._scenes: dict[str, int] = {}
        self._spacing: dict[str, float] = {}
        self._faces: TopologyMessage | None = None

    def packet(
        self,
        views: Sequence[CameraView],
        topology: TopologyMessage | None,
        *,
        now_s: float,
        events: Sequence[tuple[float, str]] = (),
        silent: Sequence[str] = (),
    ) -> bytes:
        """The newest of all cameras as bytes."""
        arrays = _Arrays()
        cameras = [self._camera(view, arrays, now_s) for view in views]
        body: dict[str, Any] = {"cameras": cameras, "events": list(events), "silent": list(silent), "unit": POINT_M}
        if topology is not None and topology is not self._faces and topology.vertices <= 1 << 16:
            body["faces"] = arrays.add(np.asarray(topology.faces, "<u2"))
            self._faces = topology
        head = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        head += b" " * (-len(head) % 4)
        data = arrays.bytes()
        return struct.pack("<II", 4 + len(head) + len(data), len(head)) + head + data

    def _camera(self, view: CameraView, arrays: _Arrays, now_s: float) -> dict[str, Any]:
        body = view.fare.as_dict(now_s)
        body |= {"key": view.key, "here": view.here, "silent_s": now_s - view.fare.heard_s, "hands": []}
        body["T"] = None if view.T_ref_cam is None else np.asarray(view.T_ref_cam, float).T.ravel().tolist()
        meshes = {hand.id: hand.vertices_m for hand in view.mesh.hands} if view.mesh else {}
        clouds = {hand.id: hand.points_m for hand in view.cloud.hands} if view.cloud else {}
        for hand in view.joints.hands if view.joints else ():
            shown = {name: getattr(hand, name) for name in ("id", "side", "state", "score", "fit_mm", "age_ms")}
            shown["joints"] = arrays.add(np.asarray(hand.joints_m, "<f4"))
            if hand.id in meshes:
                shown["mesh"] = arrays.add(_units(meshes[hand.id]))
            if hand.id in clouds:
                shown["points"] = arrays.add(_units(clouds[hand.id]))
            body["hands"].append(shown)
        if view.scene is not None and self._scenes.get(view.key) != view.scene[0]:
            self._scenes[view.key] = view.scene[0]
            body["scene"] = arrays.add(_units(view.scene[1]))
            self._spacing[view.key] = _spacing(view.scene[1])
        body["spacing"] = self._spacing.get(view.key, 0.02)
        return body


class _Arrays:
    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, array: NDArray[Any]) -> list[int]:
        """[offset, count] of it."""
        data = array.tobytes()
        data += bytes(-len(data) % 4)
        place = [self._length, array.size]
        self._parts.append(data)
        self._length += len(data)
        return place

    def bytes(self) -> bytes:
        return b"".join(self._parts)


def _spacing(scene_m: NDArray[np.float32]) -> float:
    """How far apart the scene's points (N, 3), row by row, are at one metre."""
    if len(scene_m) < 2:
        return 0.02
    slope = scene_m[:, 0] / np.maximum(scene_m[:, 2], 1e-3)
    return float(np.clip(np.median(np.abs(np.diff(slope))), 1e-3, 0.1))


def _units(points_m: ArrayLike) -> NDArray[np.int16]:
    """(N, 3) metres as int16 units; what lies further than 6.5 m is put there."""
    return np.clip(np.rint(np.asarray(points_m) / POINT_M), -32767, 32767).astype("<i2")
