"""What an uncertain camera means for a hand: millimetres in the working volume, not pixels and not degrees alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..hand.arrays import Array
from ..hand.se3 import inverse, skew, so3_log

NO_HALVES = "too few moments to solve the halves apart"


class Volume(NamedTuple):
    """A cube in the reference camera's frame."""

    centre_m: tuple[float, float, float] = (0.0, 0.0, 0.65)
    edge_m: float = 0.4

    def points_m(self, n: int = 5) -> Array:
        """A grid (n^3, 3) over the cube."""
        line = (np.arange(n) / (n - 1) - 0.5) * self.edge_m
        return np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3) + self.centre_m


WORKING_VOLUME = Volume()


def inverted_covariance(T_camera_ref: Array, covariance: Array) -> Array:
    """(6, 6) of T_ref_camera's left perturbation, from that of T_camera_ref; rotation first."""
    R, t = T_camera_ref[:3, :3], T_camera_ref[:3, 3]
    change = np.zeros((6, 6))
    change[:3, :3] = change[3:, 3:] = -R.T
    change[3:, :3] = R.T @ skew(t)
    return change @ covariance @ change.T


def point_sigma_mm(covariance: Array, points_m: Array) -> Array:
    """Standard deviation (N,) in mm of where points (N, 3) of the reference frame are, all axes together.

    covariance (6, 6) is that of T_ref_camera's left perturbation.
    """
    by_pose = np.concatenate([-skew(points_m), np.broadcast_to(np.eye(3), (len(points_m), 3, 3))], 2)  # (N, 3, 6)
    return 1e3 * np.sqrt(np.maximum(np.einsum("nai,ij,naj->n", by_pose, covariance, by_pose), 0))


def volume_sigma_mm(covariance: Array, volume: Volume = WORKING_VOLUME) -> float:
    """Root mean square of `point_sigma_mm` over the volume."""
    return float(np.sqrt((point_sigma_mm(covariance, volume.points_m()) ** 2).mean()))


class Difference(NamedTuple):
    """How far two poses of one camera are apart: turn, distance of the centres, mean displacement in the volume."""

    deg: float
    mm: float
    volume_mm: float


def pose_difference(T_ref_a: Array, T_ref_b: Array, volume: Volume = WORKING_VOLUME) -> Difference:
    """Two poses (4, 4) in the reference frame compared; the volume's points are moved from one to the other."""
    moved = T_ref_a @ inverse(T_ref_b)
    points = volume.points_m()
    shift = points @ moved[:3, :3].T + moved[:3, 3] - points
    turn = float(np.degrees(np.linalg.norm(so3_log(moved[:3, :3]))))
    centre = float(np.linalg.norm(T_ref_a[:3, 3] - T_ref_b[:3, 3]))
    return Difference(turn, centre * 1e3, float(np.sqrt((shift**2).sum(1).mean())) * 1e3)
