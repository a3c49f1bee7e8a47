"""Finding the board in a picture, and where it is: OpenCV finds the corners, everything after is our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..hand.arrays import Array
from ..hand.camera import Intrinsics
from ..hand.se3 import transform
from .target import Target, charuco_board, import_opencv

FEWEST_CORNERS = 6


@dataclass(frozen=True, eq=False)
class View:
    """The board in one picture of one camera: corner numbers (N,) and where they are (N, 2) px, time in s."""

    camera: int
    t_s: float
    ids: NDArray[np.int64]
    pixels: Array


class Found(NamedTuple):
    """What one picture shows: corner numbers (N,), pixels (N, 2), and the numbers of all markers seen (M,)."""

    ids: NDArray[np.int64]
    pixels: Array
    markers: NDArray[np.int64]


class BoardDetector:
    """Finds the target's corners. Pictures are not filtered: that kills the small markers of an infrared image."""

    def __init__(self, target: Target) -> None:
        cv2 = import_opencv()
        self._target = target
        parameters = cv2.aruco.DetectorParameters()
        parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_NONE  # the chessboard's corners are refined
        self._detector = cv2.aruco.CharucoDetector(charuco_board(target), detectorParams=parameters)

    def find(self, image: NDArray[np.uint8]) -> Found:
        """Corners in a grey (H, W) or colour (H, W, 3) image; none if there is no board, or too little of it."""
        if self._target.inverted:
            image = 255 - image
        pixels, ids, _, markers = self._detector.detectBoard(image)
        seen = np.zeros(0, np.int64) if markers is None else np.ravel(markers).astype(np.int64)
        if ids is None or len(ids) < FEWEST_CORNERS or not _spans_a_plane(np.ravel(ids), self._target):
            return Found(np.zeros(0, np.int64), np.zeros((0, 2)), seen)
        return Found(np.ravel(ids).astype(np.int64), np.asarray(pixels, np.float64).reshape(-1, 2), seen)


def _spans_a_plane(ids: Array, target: Target) -> bool:
    """Corners of a single row or column say nothing about the tilt."""
    across = target.columns - 1
    return len(set(ids // across)) >= 2 and len(set(ids % across)) >= 2


class BoardPose(NamedTuple):
    """T_camera_board (4, 4) and its reprojection RMS in px."""

    T_camera_board: Array
    rms_px: float


def board_poses(view: View, corners_m: Array, intrinsics: Intrinsics) -> list[BoardPose]:
    """The pose of the board in the camera, best first: a plane seen small has a mirrored one that fits as well."""
    cv2 = import_opencv()
    points = corners_m[view.ids]
    matrix, coefficients = camera_matrix(intrinsics), np.array(intrinsics.distortion)
    _, turns, shifts, _ = cv2.solvePnPGeneric(points, view.pixels, matrix, coefficients, flags=cv2.SOLVEPNP_IPPE)
    poses = []
    for turn, shift in zip(turns, shifts, strict=True):
        turn, shift = cv2.solvePnPRefineLM(points, view.pixels, matrix, coefficients, turn.copy(), shift.copy())
        T = transform(np.asarray(cv2.Rodrigues(turn)[0]), np.ravel(shift))
        inside = points @ T[:3, :3].T + T[:3, 3]
        if not np.isfinite(T).all() or inside[:, 2].min() <= 0:
            continue
        error = intrinsics.project(inside) - view.pixels
        poses.append(BoardPose(T, float(np.sqrt((error**2).sum(1).mean()))))
    return sorted(poses, key=lambda pose: pose.rms_px)


def camera_matrix(intrinsics: Intrinsics) -> Array:
    """(3, 3), for pixel centres at integers, as OpenCV has them."""
    k = intrinsics
    return np.array([[k.fx, 0, k.cx], [0, k.fy, k.cy], [0, 0, 1]], np.float64)
