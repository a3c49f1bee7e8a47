"""Pictures of tracked hands: depth, joints and mesh side by side, and sheets of such pictures.

Pictures are (H, W, 3) uint8 RGB. Pillow is imported where it is used.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..hand.arrays import Array
from ..hand.camera import Intrinsics
from ..hand.frames import DepthFrame
from ..hand.render import NEAREST_M, render
from ..hand.skeleton import JOINT_PARENTS
from ..hand.whole import write_whole

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

WRIST_COLOUR: Colour = (240, 240, 240)
FINGER_COLOURS: tuple[Colour, ...] = (
    (255, 90, 80),  # thumb
    (255, 190, 40),  # index
    (90, 220, 90),  # middle
    (70, 180, 255),  # ring
    (200, 120, 255),  # little
)
SKIN = np.array([236.0, 188.0, 160.0])
LIGHT = np.array([0.35, 0.45, -0.82])  # where it comes from: beside the camera
GROWN = 1.3  # side of the square around the hands over their extent
SMOOTH = 3  # lines are drawn this much larger and reduced
DEEP_M = 0.16  # a hand's own depth range around its middle


class Drawn(Protocol):
    """What is drawn of a hand: joints_m (21, 3) and vertices_m (V, 3) m in the camera's frame."""

    @property
    def joints_m(self) -> Array: ...
    @property
    def vertices_m(self) -> Array: ...


def overlay(frame: DepthFrame, poses: Sequence[Drawn], faces: Array, *, size: tuple[int, int] = (320, 320)) -> Picture:
    """Three panels of size (w, h) px side by side: depth, depth with joints and bones, the mesh over dimmed depth.

    Closer is brighter, no reading is black. Without poses the whole frame is shown.
    """
    view = view_of(frame.intrinsics, poses, size)
    grey = depth_picture(frame, poses, view)
    joints = draw_joints(grey, [pose.joints_m for pose in poses], view)
    mesh = draw_mesh(grey // 3, [pose.vertices_m for pose in poses], faces, view)
    return np.concatenate([grey, joints, mesh], 1)


def view_of(intrinsics: Intrinsics, poses: Sequence[Drawn], size: tuple[int, int]) -> Intrinsics:
    """The camera as a picture of size (w, h) px that shows all the hands, or the whole frame if there are none."""
    low, high = np.array([-0.5, -0.5]), np.array([intrinsics.width - 0.5, intrinsics.height - 0.5])
    points = np.concatenate([np.zeros((0, 3)), *(np.concatenate([p.joints_m, p.vertices_m]) for p in poses)])
    points = points[_visible(points)]
    if len(points):
        px = intrinsics.project(points)
        middle, half = (px.min(0) + px.max(0)) / 2, GROWN * np.maximum(np.ptp(px, axis=0).max() / 2, 8.0)
        low, high = middle - half, middle + half
    scale = float((np.array(size) / (high - low)).min())  # picture px per frame px
    left, top = (low + high) / 2 - np.array(size) / scale / 2  # the picture's border in the frame
    return Intrinsics(
        width=size[0],
        height=size[1],
        fx=intrinsics.fx * scale,
        fy=intrinsics.fy * scale,
        cx=(intrinsics.cx - left) * scale - 0.5,
        cy=(intrinsics.cy - top) * scale - 0.5,
        distortion=intrinsics.distortion,
    )


def depth_picture(frame: DepthFrame, poses: Sequence[Drawn], view: Intrinsics) -> Picture:
    """The frame's depth in grey, as the view shows it: the hands' range if there are any, else what lies in it."""
    camera = frame.intrinsics
    column = np.rint((np.arange(view.width) - view.cx) * camera.fx / view.fx + camera.cx).astype(int)  # (W,)
    row = np.rint((np.arange(view.height) - view.cy) * camera.fy / view.fy + camera.cy).astype(int)
    inside = ((row >= 0) & (row < camera.height))[:, None] & ((column >= 0) & (column < camera.width))
    counts = frame.depth[np.ix_(row.clip(0, camera.height - 1), column.clip(0, camera.width - 1))]
    z = np.where(inside, counts, 0) * frame.depth_unit_m  # (h, w) m
    near, far = _range([pose.joints_m[:, 2] for pose in poses], z)
    bright = 235 - 195 * ((z - near) / (far - near)).clip(0, 1)
    grey = np.where(z > 0, bright, 0).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)


def draw_joints(picture: Picture, hands: Sequence[Array], view: Intrinsics) -> Picture:
    """A copy of the picture with the 21 joints of each hand (21, 3) m as dots and its bones as lines."""
    from PIL import Image, ImageDraw

    height, width = picture.shape[:2]
    image = Image.fromarray(picture).resize((width * SMOOTH, height * SMOOTH), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    thick = max(1.0, min(width, height) / 130) * SMOOTH
    for joints in hands:
        seen = _visible(joints)
        at = np.zeros((21, 2))
        at[seen] = (view.project(joints[seen]) + 0.5) * SMOOTH - 0.5
        for joint in np.argsort(-joints[:, 2]):  # far to near
            parent = JOINT_PARENTS[joint]
            if parent >= 0 and seen[joint] and seen[parent]:
                pen.line([*at[parent], *at[joint]], fill=FINGER_COLOURS[(joint - 1) // 4], width=round(thick))
        for joint in np.argsort(-joints[:, 2]):
            if seen[joint]:
                colour = FINGER_COLOURS[(joint - 1) // 4] if joint else WRIST_COLOUR
                (x, y), r = at[joint], 1.3 * thick
                pen.ellipse([x - r, y - r, x + r, y + r], fill=colour, outline=(20, 20, 20), width=SMOOTH // 2)
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), np.uint8)


def draw_mesh(picture: Picture, hands: Sequence[Array], faces: Array, view: Intrinsics) -> Picture:
    """A copy of the picture with the hands' meshes, vertices (V, 3) m each, lit from the camera's side."""
    drawn: Picture = picture.copy()
    if not hands:
        return drawn
    vertices = np.concatenate(hands)
    all_faces = np.concatenate([faces + i * len(hands[0]) for i in range(len(hands))])
    face = render(vertices, all_faces, view).face
    corner = vertices[all_faces]  # (F, 3, 3)
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    normal *= -np.sign((normal * corner[:, 0]).sum(1, keepdims=True))  # the side that we see
    lambert = (normal @ (LIGHT / np.linalg.norm(LIGHT))).clip(0, 1)
    colour = SKIN * (0.25 + 0.75 * lambert[:, None])  # (F, 3)
    drawn[face >= 0] = colour[face[face >= 0]].astype(np.uint8)
    return drawn


def contact_sheet(pictures: Sequence[Picture], columns: int) -> Picture:
    """Pictures in rows of so many columns, each cell as large as the largest; what is left over is black."""
    if not pictures or columns < 1:
        raise ValueError(f"contact sheet: {len(pictures)} pictures in {columns} columns; both must be at least 1")
    height, width = (max(picture.shape[i] for picture in pictures) for i in (0, 1))
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def save_png(path: str | Path, picture: Picture) -> None:
    """Write a picture; the file is there as a whole or not at all."""
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(png := io.BytesIO(), format="PNG")
    write_whole(path, png.getbuffer())


def _visible(points_m: Array) -> NDArray[np.bool_]:
    """Which points (N, 3) lie before the camera; the others have no place in a picture."""
    return np.isfinite(points_m).all(1) & (points_m[:, 2] >= NEAREST_M)


def _range(hands_z_m: Sequence[Array], z: Array) -> tuple[float, float]:
    """Depths, m, to show brightest and darkest."""
    middles = [float(np.median(hand)) for hand in hands_z_m]
    if middles:
        return min(middles) - DEEP_M, max(middles) + DEEP_M
    valid = z[z > 0]
    if not valid.size:
        return 0.0, 1.0
    near, far = np.percentile(valid, [1, 95])
    return float(near), float(max(far, near + 0.05))
