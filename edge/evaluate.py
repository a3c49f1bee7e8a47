"""How well the published mesh fits the depth it came from: a measure that needs no labels, and overlay pictures.

The hand's depth points are those of the surface under the mesh (no jumps in depth, `finder.surfaces`), inside the
cube and beyond the wrist; no point is left out for being far from the mesh.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..hand.arrays import Array
from ..hand.frames import DepthFrame, HandPose
from ..hand.kinematics import Shape
from ..hand.template import template
from .cameras import BadFrame, CameraError, EndOfStream, open_camera
from .engines import Engine
from .finder import CUBE_M, surfaces
from .librealsense import LIBREALSENSE
from .person import Person
from .tracker import Tracker

MOST_POINTS = 2000
ARM_M = -0.01  # along the hand's own y axis: what lies behind the wrist is arm


def evaluate_recording(
    source: str,
    engine: Engine,
    *,
    out: Path | None = None,
    track: bool = False,
    every: int = 1,
    limit: int | None = None,
    shape: Shape | None = None,
) -> dict[str, Any]:
    """Find the hand in every frame of a recording; distances from its depth points to the mesh in mm.

    Hands are held in the shape given, if there is one.

    track=False treats each frame as the first, so frames need not be consecutive; of these only each `every`-th is
    looked at. Overlays go to `out`. Raises CameraError, also if no frame could be used.
    """
    from .draw import contact_sheet, overlay, save_png

    faces = template().faces
    tracker = Tracker(engine, confirm=track, new_person=lambda: Person(shape))
    per_frame: list[dict[str, Any]] = []
    pooled: list[Array] = []
    pictures: list[Array] = []
    read = 0
    own_times = Path(source).suffix not in LIBREALSENSE
    with open_camera("replay", source, deterministic=own_times, fps=None if own_times else 0.0) as camera:
        while limit is None or len(per_frame) < limit:
            try:
                frame = camera.read(30.0)
            except EndOfStream:
                break
            except BadFrame as error:
                per_frame.append({"seq": None, "found": False, "error": str(error)})
                continue
            read += 1
            if (read - 1) % every:
                continue
            if not own_times:  # time as recorded, however fast this machine
                frame = replace(frame, t_ns=round(read * 1e9 / camera.fps))
            if not track:
                tracker.reset()
            hands = [hand for hand in tracker.process(frame) if hand.pose.state == "tracked"]
            entry: dict[str, Any] = {"seq": frame.seq, "found": bool(hands), "hands": len(hands)}
            poses = [h.pose for h in hands]
            if hands:
                pose = poses[0]
                distance = surface_distance_mm(hand_points(frame, pose), pose.vertices_m, faces)
                entry |= {"side": pose.side, "side_conf": round(pose.side_conf, 3), "score": round(pose.score, 3)}
                if len(distance):
                    pooled.append(distance)
                    entry["fit_mm"] = {f"p{p}": round(float(np.percentile(distance, p)), 2) for p in (50, 90)}
            per_frame.append(entry)
            if out is not None:
                picture = overlay(frame, poses, faces)
                save_png(out / f"{len(per_frame) - 1:05d}.png", picture)
                if len(pictures) < 60:
                    pictures.append(picture)
    if not read:
        reason = per_frame[0]["error"] if per_frame else "none came"
        raise CameraError(f"no frame could be used ({len(per_frame)} were bad): {reason}")
    if out is not None and pictures:
        save_png(out / "sheet.png", contact_sheet(pictures, min(3, -(-len(pictures) // 4))))
    distances = np.concatenate(pooled) if pooled else np.array([np.nan])
    medians = [e["fit_mm"]["p50"] for e in per_frame if "fit_mm" in e]
    return {
        "source": str(source),
        "frames": len(per_frame),
        "found": sum(e["found"] for e in per_frame),
        "more_than_one": sum(e.get("hands", 0) > 1 for e in per_frame),
        "right": sum(e.get("side") == "right" for e in per_frame),
        "left": sum(e.get("side") == "left" for e in per_frame),
        "fit_mm": {f"p{p}": round(float(np.percentile(distances, p)), 2) if pooled else None for p in (50, 90)},
        "worst_frame_p50_mm": max(medians, default=None),
        "per_frame": per_frame,
        "model": engine.card.sha256,
    }


def recording_table(result: dict[str, Any]) -> str:
    lines = []
    for i, e in enumerate(result["per_frame"]):
        if "error" in e:
            lines.append(f"{i:>5}  unusable: {e['error']}")
        elif not e["found"]:
            lines.append(f"{i:>5}  no hand")
        else:
            fit = e.get("fit_mm", {"p50": float("nan"), "p90": float("nan")})
            lines.append(
                f"{i:>5}  {e['side']:<7} score {e['score']:.2f}  depth to mesh p50 {fit['p50']:5.1f}  "
                f"p90 {fit['p90']:5.1f} mm"
            )
    fit = result["fit_mm"]
    lines.append(
        f"found {result['found']} of {result['frames']} ({result['right']} right, {result['left']} left), "
        f"more than one hand in {result['more_than_one']}; "
        + ("no depth to measure" if fit["p50"] is None else f"depth to mesh p50 {fit['p50']} p90 {fit['p90']} mm")
    )
    return "\n".join(lines)


def hand_points(frame: DepthFrame, pose: HandPose) -> Array:
    """Depth points (N, 3) m of the hand a pose claims to be: see the head of this file."""
    stride = max(1, frame.intrinsics.width // 320)
    z = frame.depth[::stride, ::stride] * np.float32(frame.depth_unit_m)
    rows, columns = np.indices(z.shape) * stride
    points = frame.intrinsics.deproject(np.stack([columns, rows], -1), z)
    centre = pose.joints_m.mean(0)
    near = (z > 0) & (np.abs(points - centre).max(-1) < CUBE_M / 2)
    if not near.any():
        return np.empty((0, 3))
    labels = surfaces(z, near)
    pixel = np.rint(frame.intrinsics.project(pose.vertices_m) / stride).astype(int)
    inside = (pixel >= 0).all(1) & (pixel[:, 0] < z.shape[1]) & (pixel[:, 1] < z.shape[0])
    under = labels[pixel[inside, 1], pixel[inside, 0]]
    depth_gap = np.abs(z[pixel[inside, 1], pixel[inside, 0]] - pose.vertices_m[inside, 2])
    votes = np.bincount(under[(under >= 0) & (depth_gap < 0.05)], minlength=int(labels.max()) + 1)
    if votes.sum() == 0:
        return np.empty((0, 3))
    # Fingers seen apart from the palm are surfaces of their own: all that many vertices lie on are the hand's.
    mine = np.isin(labels, np.flatnonzero(votes >= max(10, 0.02 * votes.sum())))
    t = pose.T_camera_wrist
    along = (points - t[:3, 3]) @ t[:3, 1]
    cloud = points[mine & (along > ARM_M)]
    pick = np.linspace(0, len(cloud) - 1, min(MOST_POINTS, len(cloud))).astype(int)
    return cloud[pick]


def surface_distance_mm(points: Array, vertices_m: Array, faces: Array) -> Array:
    """Distance (N,) mm from points (N, 3) m to a mesh: exact over the triangles at the 4 nearest vertices."""
    if len(points) == 0:
        return np.empty(0)
    order = np.argsort(faces.ravel(), kind="stable")
    begin = np.searchsorted(faces.ravel()[order], np.arange(len(vertices_m) + 1))
    most = int(np.diff(begin).max())
    around = np.full((len(vertices_m), most), -1)
    for k in range(most):
        has = begin[:-1] + k < begin[1:]
        around[has, k] = order[begin[:-1][has] + k] // 3
    result = np.empty(len(points))
    for i in range(0, len(points), 256):
        p = points[i : i + 256]
        squared = ((p[:, None] - vertices_m[None]) ** 2).sum(-1)
        nearest = np.argpartition(squared, 4, axis=1)[:, :4]
        triangles = around[nearest].reshape(len(p), -1)
        d = _to_triangles(p, vertices_m[faces[np.maximum(triangles, 0)]])
        d[triangles < 0] = np.inf
        result[i : i + 256] = d.min(1)
    return result * 1e3


def _to_triangles(p: Array, corner: Array) -> Array:
    """Distance (N, K) from points (N, 3) to their own triangles (N, K, 3, 3)."""
    a, b, c = corner[:, :, 0], corner[:, :, 1], corner[:, :, 2]
    q = p[:, None]
    ab, ac, ap = b - a, c - a, q - a
    normal = np.cross(ab, ac)
    area2 = np.maximum((normal**2).sum(-1), 1e-18)
    v = (np.cross(ap, ac) * normal).sum(-1) / area2
    w = (np.cross(ab, ap) * normal).sum(-1) / area2
    inside = (v >= 0) & (w >= 0) & (v + w <= 1)
    plane = np.abs((ap * normal).sum(-1)) / np.sqrt(area2)

    def to_edge(start: Array, edge: Array) -> Array:
        s = np.clip(((q - start) * edge).sum(-1) / np.maximum((edge**2).sum(-1), 1e-18), 0, 1)
        return np.linalg.norm(q - start - s[..., None] * edge, axis=-1)

    edges = np.minimum(np.minimum(to_edge(a, ab), to_edge(a, ac)), to_edge(b, c - b))
    return np.where(inside, plane, edges)
