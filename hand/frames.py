"""What flows through the pipeline: one frozen value per step.

camera -> DepthFrame -> finder/tracker -> HandRoi -> crop -> HandCrop -> engine -> HandPrediction
       -> refit -> HandPose -> wire message
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .arrays import Array
from .camera import Intrinsics

Side = Literal["left", "right", "unknown"]
State = Literal["tracked", "predicted", "lost"]


@dataclass(frozen=True, slots=True, eq=False)
class DepthFrame:
    """One depth image as the sensor gave it.

    depth is (H, W) uint16 counts of depth_unit_m metres along z, 0 = no reading. t_ns is the host's
    CLOCK_MONOTONIC at mid-exposure. infrared is (H, W) uint8 and colour (H, W, 3) uint8, if the camera has them.
    """

    camera: str
    seq: int
    t_ns: int
    depth: NDArray[np.uint16]
    depth_unit_m: float
    intrinsics: Intrinsics
    infrared: NDArray[np.uint8] | None = None
    colour: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        size = (self.intrinsics.height, self.intrinsics.width)
        if self.depth.dtype != np.uint16 or self.depth.shape != size:
            raise ValueError(
                f"frame {self.seq} of {self.camera}: depth is {self.depth.dtype} "
                f"{'x'.join(map(str, self.depth.shape[::-1]))}, the intrinsics say uint16 {size[1]}x{size[0]}"
            )
        if not 1e-6 <= self.depth_unit_m <= 0.1:
            raise ValueError(f"frame {self.seq} of {self.camera}: depth unit {self.depth_unit_m} m is not plausible")


@dataclass(frozen=True, slots=True, eq=False)
class HandRoi:
    """Where a hand is: centre (3,) m in the camera frame, edge of the cube around it in m, score in [0, 1]."""

    side: Side
    centre_m: Array
    cube_m: float
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class HandCrop:
    """A metric cube around a hand as the network sees it; geometry in `crop.py`.

    image is (S, S) float32 in [-1, 1], background and no reading +1. The crop camera looks straight at the
    cube's centre, distance_m away; R_camera_crop (3, 3) turns its frame into the camera's. A mirrored crop
    shows a left hand as a right one.
    """

    image: NDArray[np.float32]
    R_camera_crop: Array
    distance_m: float
    cube_m: float
    mirrored: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class HandPrediction:
    """The network's answer for one crop, m in the crop's frame.

    vertices_m (V, 3) float32; error_m (V,) the error the network expects of each vertex, mean_error_m their mean,
    joint_error_m (21,) that of the joints; centre_m (3,) the mean of the joints; points_m (N, 3) depth points that it
    takes for hand, hand_pixels how many such pixels there are; right_logit the log-odds that the crop shows a right
    hand, presence_logit that it shows a hand at all.
    """

    vertices_m: Array
    mean_error_m: float
    error_m: Array
    joint_error_m: Array
    centre_m: Array
    points_m: Array
    hand_pixels: int
    right_logit: float
    presence_logit: float


@dataclass(frozen=True, slots=True, eq=False)
class HandPose:
    """A hand in the camera frame: pose, shape, joints and mesh of one kinematic hand.

    T_camera_wrist (4, 4) m; theta (26,) = wrist translation m, wrist rotation vector rad, 20 joint angles rad inside
    their limits (`skeleton.DOF_NAMES`); alpha (6,) bone scales; beta (7,) shape; joints_m (21, 3); vertices_m (V, 3);
    joint_conf (21,) in [0, 1]; fit_mm the median distance of the hand's depth points to the mesh.
    """

    side: Side
    side_conf: float
    state: State
    score: float
    T_camera_wrist: Array
    theta: Array
    alpha: Array
    beta: Array
    joints_m: Array
    vertices_m: Array
    joint_conf: Array
    fit_mm: float
