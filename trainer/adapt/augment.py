"""Samples with labels for the adaptation: the target's own crops with the teacher's hands, and hands rendered anew.

Active augmentation (Dual Grid Net, section 4.4): the poses that were estimated on the recording are drawn again, with
this user's shape, by the synthetic renderer. Their labels are exact, and the poses are the ones that matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...hand import se3
from ...hand.arrays import Array
from ...hand.body import hand_with_arm
from ...hand.kinematics import Shape, clamp_angles
from ...hand.template import template
from ..synth import scene
from ..synth.labeller import labelled
from ..synth.poses import penetrates, sample_angles, sample_view
from ..synth.render import rasterise
from ..synth.samples import CELLS, CUBE_M, PATCH, Sample, crop_patch
from ..synth.sensors import SENSORS, corrupt, draw_settings

NEW_POSE, NEW_VIEW = 0.25, 0.15  # shares whose fingers, whose view are not the recording's
STRAY_RAD = (0.03, 0.12, 0.3)  # how far angles and turns stray from an estimate; one is drawn
SHAPE_STRAY = 0.015  # of the bones: an estimate is not the truth
JITTER_M = (0.004, 0.012, 0.02)  # of a crop's centre, as in training


class Estimate(NamedTuple):
    """A pose as one view saw it: angles (20,) rad, R_view_wrist (3, 3), distance_m."""

    angles: Array
    rotation: Array
    distance_m: float


class UserHands:
    """Draws crops of one user's hand; owns the buffers it draws in."""

    def __init__(self, shape: Shape, estimates: Sequence[Estimate], seed: int = 0, cubes: Sequence[float] = (CUBE_M,)):
        self.shape, self.estimates, self.seed, self.cubes = shape, list(estimates), seed, tuple(cubes)
        self.template = template()
        self.body = hand_with_arm(self.template)
        self._depth = np.zeros((PATCH, PATCH), np.float32)
        self._face = np.zeros((PATCH, PATCH), np.int32)
        self._weight = np.zeros((PATCH, PATCH, 2), np.float32)

    def sample(self, index: int) -> Sample:
        """The crop of this index: the same for ever."""
        rng = np.random.default_rng([self.seed, 44, index])
        estimate = self.estimates[int(rng.integers(len(self.estimates)))]
        stray = rng.choice(STRAY_RAD)
        angles = self._angles(rng, estimate, stray)
        turn = se3.so3_exp(rng.normal(0, stray, 3))
        rotation = sample_view(rng) if rng.random() < NEW_VIEW else turn @ estimate.rotation
        sensor = list(SENSORS.values())[int(rng.integers(len(SENSORS)))]
        cube = float(rng.choice(self.cubes)) * float(np.exp(rng.normal(0, 0.02)))
        distance = max(estimate.distance_m * float(np.exp(rng.normal(0, 0.1))), sensor.min_z_m + cube / 4)
        joints, vertices = self._posed(rng, angles)
        at = np.array([0, 0, distance]) + rng.normal(0, rng.choice(JITTER_M), 3) - rotation @ joints.mean(0)
        joints, vertices = joints @ rotation.T + at, vertices @ rotation.T + at
        size = int(np.clip(sensor.focal_px * cube / distance, 40, PATCH))
        depth, face, weight = self._depth[:size, :size], self._face[:size, :size], self._weight[:size, :size]
        slope = cube / 2 / distance
        rasterise(vertices.astype(np.float32), self.body.faces, slope, size, depth, face, weight)
        scene.draw_background(rng, vertices, slope, depth, face)
        noisy = np.where(depth > 0, 1 / np.maximum(depth, 1e-6), 0).astype(np.float32)
        seed = int(rng.integers(2**31))
        noisy = corrupt(noisy, size * distance / cube, sensor, draw_settings(sensor, rng), seed, np.empty_like(noisy))
        image = crop_patch(np.where(noisy > 0, distance + (noisy - distance) * (CUBE_M / cube), 0), distance)
        pick = np.minimum(((np.arange(CELLS) + 0.5) * size / CELLS).astype(int), size - 1)
        at_cells = np.ix_(pick, pick)
        shown = (face[at_cells] >= 0) & (face[at_cells] < len(self.template.faces))
        shown &= np.abs(noisy[at_cells] - distance) < cube / 2
        return labelled(image, joints, vertices, distance, cube, shown, face[at_cells], weight[at_cells])

    def _angles(self, rng: np.random.Generator, estimate: Estimate, stray: float) -> Array:
        if rng.random() < NEW_POSE:
            return sample_angles(self.template, rng)
        near = clamp_angles(estimate.angles + stray * rng.standard_normal((3, 20)))
        free = ~penetrates(self.template, near)
        return near[int(free.argmax())] if free.any() else estimate.angles

    def _posed(self, rng: np.random.Generator, angles: Array) -> tuple[Array, Array]:
        """Joints (21, 3) and body vertices (B, 3) m in the hand's frame, the wrist bent and dressed as in training."""
        alpha = self.shape.alpha * (1 + SHAPE_STRAY * rng.standard_normal(6))
        return scene.hand_on_arm(rng, self.body, angles, self.shape._replace(alpha=alpha))
