"""What a tracker computes a frame with: plain numpy, or the same compiled (`compiled/`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..hand import crop
from ..hand.arrays import Array
from ..hand.frames import DepthFrame, HandCrop, HandPrediction, HandRoi
from .calm import Average, calmed
from .confidence import Calibration, joint_confidence
from .look import fit_mm
from .reading import read
from .refit import Refit
from .smooth import Smoother
from .visibility import visible


class Cropper(Protocol):
    def __call__(self, frame: DepthFrame, roi: HandRoi, size: int, mirrored: bool, /) -> HandCrop: ...


class Arithmetic(NamedTuple):
    """The functions of these names, and what makes a Refit and a Smoother."""

    refit: Callable[[], Refit]
    crop_depth: Cropper
    calmed: Average
    read: Callable[[HandCrop, list[Array]], HandPrediction]
    visible: Callable[[DepthFrame, Array], NDArray[np.int8]]
    joint_confidence: Callable[[Array, NDArray[np.int8], Calibration], Array]
    fit_mm: Callable[[Array, Array], float]
    smoother: Callable[[], Smoother]
    name: str


PLAIN = Arithmetic(Refit, crop.crop_depth, calmed, read, visible, joint_confidence, fit_mm, Smoother, "numpy")
