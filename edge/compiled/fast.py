"""The compiled twin of what the loop computes each frame. Importing it compiles, or loads what was (`compiling.py`)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...hand.arrays import Array
from ...hand.crop import CROP_SIZE, crop_depth, look_at, sub_pixels
from ...hand.frames import DepthFrame, HandCrop, HandPrediction, HandRoi
from ...hand.kinematics import Shape
from ...hand.skeleton import ANGLE_LIMITS_RAD
from ..arithmetic import Arithmetic
from ..calm import SHARE
from ..confidence import Calibration
from ..reading import POINTS, joint_weights, places
from ..refit import NO_VERTICES, Fit, Refit, Start, calm_weight
from ..smooth import Smoother
from ..visibility import REACH_M, visible
from . import depth as kernels_depth
from . import hand as kernels_hand
from . import look as kernels_look
from . import smooth as kernels_smooth
from . import solve as kernels_solve

_EVERY, _NONE, _FLAT, _STRAIGHT = np.ones(21), np.zeros((0, 3)), np.eye(3), np.zeros(20)


class FastRefit(Refit):
    """As Refit. What each frame needs is compiled, `pose` and `solve` with a given shape; all else is Refit's own."""

    def __init__(self) -> None:
        super().__init__()
        t, mix = self.template, self.spheres.mix
        moves = t.weights > 0  # (V, 16)
        order = np.lexsort(moves.T)
        part, place = moves[order].T.nonzero()
        first = np.flatnonzero(
            (np.diff(part, prepend=-1) != 0) | (np.diff(place, prepend=-1) != 1)
        )  # entry of each run
        self._entries = part, order[place]
        at = (mix > 0).argmax(1)
        toward = 20 - (mix[:, ::-1] > 0).argmax(1)
        self._model = kernels_hand.Model(
            order=order,
            runs=np.stack([part[first], place[first], place[np.append(first[1:], len(part)) - 1] + 1, first], 1),
            moments=self._entries_of(self._moments.T, 4),
            normals=self._entries_of(self._normals, 3),
            own=t.part[order].astype(np.int64),
            axes=t.axes,
            flat=self.chain.flat_angles,
            limits=np.ascontiguousarray(ANGLE_LIMITS_RAD.T),
            centroid=self._centroid,
            variance=self._variance,
            joint_skin=self._joint_skin,
            at=at,
            toward=toward,
            share=mix[np.arange(len(mix)), toward],
            on=self.spheres.part,
            least=self.spheres.least_m,
        )
        self._packed: list[Any] = [None, None, None, None]  # a skin and its entries, a rest and its kernels_hand.Rest

    def solve(
        self,
        vertices_m: Array,
        *,
        shape: Shape | None = None,
        points_m: Array | None = None,
        weights: Array | None = None,
        start: Start | None = None,
    ) -> Fit:
        if shape is None:
            return super().solve(vertices_m, points_m=points_m, weights=weights, start=start)
        wrist, angles, joints, free = kernels_solve.solve(
            self._model,
            self._rest_of(shape),
            np.ascontiguousarray(vertices_m.T, np.float32),
            _NONE if points_m is None else _floats(points_m),
            _EVERY if weights is None else _floats(weights),
            start is not None,
            _FLAT if start is None else _floats(start.R),
            _STRAIGHT if start is None else _floats(start.angles),
            0.0 if start is None else calm_weight(start.age_s),
        )
        return Fit(angles, *shape, joints, wrist, free, NO_VERTICES)

    def pose(self, T_wrist: Array, angles: Array, shape: Shape) -> tuple[Array, Array]:
        joints, vertices = kernels_hand.pose(self._model, self._rest_of(shape), _floats(T_wrist), _floats(angles))
        return joints, vertices

    def _rest_of(self, shape: Shape) -> Any:
        """The shape as the kernels take it."""
        self._wear(shape.beta)
        rest, packed = self._at_rest(shape), self._packed
        if packed[0] is not self._skin:
            packed[:] = self._skin, self._entries_of(self._skin, 4), None, None
        if packed[2] is not rest:
            packed[2:] = rest, kernels_hand.Rest(rest.links, rest.tips_m, rest.scale, packed[1])
        return packed[3]

    def _entries_of(self, rows: Array, each: int) -> Array:
        """Of (16 * each, V) what is not zero: (each, K)."""
        part, vertex = self._entries
        return np.ascontiguousarray(rows.reshape(16, each, -1).transpose(1, 0, 2)[:, part, vertex])


def fast_crop(frame: DepthFrame, roi: HandRoi, size: int = CROP_SIZE, mirrored: bool = False) -> HandCrop:
    """As `crop_depth`, to the last bit; cameras with distortion are left to it."""
    camera = frame.intrinsics
    if camera.is_distorted or frame.depth.dtype != np.uint16:
        return crop_depth(frame, roi, size, mirrored)
    centre = np.asarray(roi.centre_m, np.float64)
    distance, half = math.hypot(*centre.tolist()), roi.cube_m / 2
    rotation = look_at(centre)
    image, step = np.empty((size, size), np.float32), half / distance
    kernels_depth.crop(
        image,
        np.ascontiguousarray(frame.depth),
        sub_pixels(size),
        rotation,
        np.array((camera.fx, camera.fy, camera.cx, camera.cy)),
        step,
        -step if mirrored else step,
        frame.depth_unit_m / half,
        distance / half,
    )
    return HandCrop(image, rotation, distance, roi.cube_m, mirrored)


def fast_calmed(image: NDArray[np.float32], before: NDArray[np.float32], noise: float) -> NDArray[np.float32]:
    """As `calmed`, to the last bit."""
    out = np.empty_like(image)
    kernels_depth.calmed(out, image, before, noise, 1 - SHARE)
    return out


def fast_read(crop: HandCrop, outputs: list[Array]) -> HandPrediction:
    """As `read`."""
    uvd, log_error, hand_logit = (np.ascontiguousarray(output[0], np.float32) for output in outputs[:3])
    right_logit, presence_logit = outputs[3:]
    ends, skin, weights, middle = _skin_of_joints()
    vertices, points = np.empty((3, len(middle)), np.float32), np.empty((POINTS, 3))
    error, joint_error, centre = np.empty(len(middle), np.float32), np.empty(len(ends), np.float32), np.empty(3)
    mean, pixels = kernels_look.read(
        crop.image,
        uvd,
        log_error,
        hand_logit,
        ends,
        skin,
        weights,
        middle,
        places(crop.image.shape[0]),
        crop.distance_m,
        crop.cube_m / 2,
        vertices,
        error,
        joint_error,
        centre,
        points,
    )
    return HandPrediction(
        vertices.T, mean, error, joint_error, centre, points[:pixels], pixels, float(right_logit[0]),
        float(presence_logit[0]),
    )  # fmt: skip


@lru_cache(1)
def _skin_of_joints() -> tuple[Array, Array, Array, Array]:
    """`joint_weights`, what is not zero of them: each joint's end among the K, their vertices, their weights; and those
    of all joints together."""
    weights, middle = joint_weights()
    joint, vertex = weights.nonzero()
    return np.bincount(joint).cumsum(), vertex.copy(), weights[joint, vertex], middle


def fast_confidence(expected_error_m: Array, seen: Array, calibration: Calibration) -> Array:
    """As `joint_confidence` of one hand."""
    out = np.empty(len(seen))
    kernels_look.confidence(expected_error_m, seen, *calibration, out)
    return out


class FastSmoother(Smoother):
    """As Smoother."""

    def _step(self, raw: Array, R: Array, dt_s: float) -> None:
        kernels_smooth.step(
            self._channels, raw, R, self._raw, self._raw_R, dt_s, self._value, self._R, self._speed, self._motion
        )


def fast_visible(frame: DepthFrame, joints_m: Array) -> NDArray[np.int8]:
    """As `visible`; cameras with distortion are left to it."""
    camera = frame.intrinsics
    if camera.is_distorted or frame.depth.dtype != np.uint16:
        return visible(frame, joints_m)
    seen = np.empty(len(joints_m), np.int8)
    pinhole = np.array((camera.fx, camera.fy, camera.cx, camera.cy, frame.depth_unit_m))
    kernels_depth.visible(seen, np.ascontiguousarray(frame.depth), pinhole, _floats(joints_m), REACH_M)
    return seen


def fast_fit_mm(points_m: Array, mesh_m: Array) -> float:
    """As `fit_mm`."""
    return float(kernels_depth.fit_mm(_floats(points_m), np.asarray(mesh_m, np.float32)))


def _floats(values: Array) -> Array:
    return np.ascontiguousarray(values, np.float64)


FAST = Arithmetic(
    FastRefit, fast_crop, fast_calmed, fast_read, fast_visible, fast_confidence, fast_fit_mm, FastSmoother, "compiled"
)
