"""Whose hand it is: the shape of a tracked person, estimated over the first seconds and then held.

Networks shrink what they are unsure of, so the length of their bones says little about a large hand. The depth has the
scale: at each frame's fit, the equations of joints and depth points are written down once more with six bone scales
beside the 26 degrees of freedom and a scale of the network's own; all but the bone scales are eliminated (Schur
complement), and what is left is added up over frames against a prior. A loosely held morph weight (beta) gained nothing
in joints when it was tried (docs/refit.md), so beta stays 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..hand.arrays import Array
from ..hand.fields import short
from ..hand.kinematics import AVERAGE, Shape
from ..hand.skeleton import PART_JOINTS, PART_SCALES
from ..hand.whole import read_json, try_writing, write_whole
from .chain import JOINT_PARTS
from .refit import EACH_AXIS, THRICE, Fit, Refit
from .schur import eliminated

VERSION = 1
HELD_NS = 2_000_000_000  # of good frames, then bones do not change any more
LEAST_FRAMES = 20
EVERY_NS = 30_000_000  # frames nearer to the last one say the same again
MOST_GAP_NS = 100_000_000  # counted for one frame at most
LEAST_WEIGHT = 0.25
SPREAD, SPREAD_OF_FINGERS = 0.2, 0.03  # the prior's deviations: of hands' sizes, of a finger's scale from its hand's
NOISE_M = 0.015  # of a row; neighbouring frames and pixels are wrong alike, so it is more than any one of them has
FADE = 0.97  # what earlier frames count for: they were looked at with a worse shape
LEAST_POINTS = 20
_RANGE = (0.7, 1.4)
_FINGER_OF = np.array(PART_SCALES)  # (16,)
_BASE_OF = np.array([0, *(PART_JOINTS[1 + 3 * f] for f in range(5) for _ in range(3))])  # the joint a finger grows from
_PRIOR = np.linalg.inv(SPREAD**2 * np.ones((6, 6)) + SPREAD_OF_FINGERS**2 * np.eye(6))
# The same of one frame alone, about the scales that its parts have.
FRAME_SPREAD, FRAME_SPREAD_OF_FINGERS, FRAME_NOISE_M = 0.1, 0.05, 0.008
_FRAME_PRIOR = np.linalg.inv(FRAME_SPREAD**2 * np.ones((6, 6)) + FRAME_SPREAD_OF_FINGERS**2 * np.eye(6))


class PersonError(Exception):
    """A person's file that cannot be used, in one line."""


class Person:
    """The shape so far (`shape`), whether it is final (`held`) and how many good frames were looked at (`frames`)."""

    def __init__(self, shape: Shape | None = None) -> None:
        """A known shape is held from the start."""
        self.shape = shape or AVERAGE
        self.held = shape is not None
        self.frames = 0
        self.seen_ns = 0
        self._last_ns: int | None = None
        self._information = np.zeros((6, 6))
        self._pull = np.zeros(6)

    def observe(
        self, refit: Refit, fit: Fit, weight: float, t_ns: int, points_m: Array, weights: Array | None = None
    ) -> None:
        """Look at a frame: how the hand was fitted to it with the shape so far, how far to trust the frame (0 to 1),
        the hand's depth points (N, 3) m in the fit's frame, and how far to trust each joint, weights (21,).

        Without enough points only the fingers' proportions and the network's own scale are to be had.
        """
        if self.held or not (weight >= LEAST_WEIGHT and np.isfinite(fit.joints_free_m).all()):
            return
        passed = None if self._last_ns is None else t_ns - self._last_ns
        if passed is not None and 0 <= passed < EVERY_NS:
            return
        self._last_ns = t_ns
        if passed is not None and passed > 0:
            self.seen_ns += min(passed, MOST_GAP_NS)
        self.frames += 1
        information, pull = shape_evidence(refit, fit, points_m, weights)
        share = (weight / NOISE_M) ** 2
        self._information = FADE * self._information + share * information
        self._pull = FADE * self._pull + share * (information @ self.shape.alpha + pull)
        alpha = np.linalg.solve(self._information + _PRIOR, self._pull + _PRIOR.sum(1))  # the prior's mean is 1
        self.shape = Shape(np.clip(alpha, *_RANGE), AVERAGE.beta)
        self.held = self.seen_ns >= HELD_NS and self.frames >= LEAST_FRAMES

    def save(self, path: Path) -> None:
        """Write the shape, whole or not at all, readable by its owner only."""
        alpha, beta = ([round(float(x), 5) for x in values] for values in self.shape)
        text = json.dumps({"version": VERSION, "alpha": alpha, "beta": beta, "frames": self.frames}) + "\n"
        try:
            write_whole(path, text, 0o600)
        except OSError as error:
            raise _unwritten(path, error) from None

    @classmethod
    def load(cls, path: Path) -> Person:
        """A person saved before, whose shape is held. Raises PersonError."""
        try:
            entries = read_json(path)
        except OSError as error:
            raise PersonError(f"person {path}: cannot be read ({error.strerror})") from None
        except ValueError:
            raise PersonError(f"person {path}: not a JSON file") from None
        if not isinstance(entries, dict) or entries.get("version") != VERSION:
            raise PersonError(f"person {path}: not a person of version {VERSION}")
        alpha = _numbers(path, entries, "alpha", 6, *_RANGE)
        beta = _numbers(path, entries, "beta", 7, -1.0, 1.0)
        return cls(Shape(alpha, beta))


def person_maker(path: Path | None) -> Callable[[], Person]:
    """What makes the person of each new hand: the one saved at path, if one was. Raises PersonError, also where there
    is none and `keep_shape` could not write one."""
    if path is None:
        return Person
    if path.exists():
        shape = Person.load(path).shape
        return lambda: Person(shape)
    try:
        try_writing(path)
    except OSError as error:
        raise _unwritten(path, error) from None
    return Person


def keep_shape(path: Path, person: Person | None) -> str:
    """Save a person whose shape is held, and say in one line what became of it."""
    if person is None or not person.held:
        seen = 0.0 if person is None else person.seen_ns * 1e-9
        return f"person {path}: not written, the hand was seen well for {seen:.1f} s and {HELD_NS * 1e-9:g} are needed"
    try:
        person.save(path)
    except PersonError as error:
        return str(error)
    return f"person {path}: the palm is {person.shape.alpha[0]:.2f} times the template's"


def _unwritten(path: Path, error: OSError) -> PersonError:
    return PersonError(f"person {path}: cannot be written ({error.strerror})")


def shape_of_frame(refit: Refit, fit: Fit, points_m: Array, weights: Array | None = None) -> Shape:
    """The shape that one frame alone speaks for: bone scales near those of its fit, as its depth wants them."""
    information, pull = shape_evidence(refit, fit, points_m, weights)
    share = FRAME_NOISE_M**-2
    alpha = fit.alpha + np.linalg.solve(share * information + _FRAME_PRIOR, share * pull)
    return Shape(np.clip(alpha, *_RANGE), fit.beta)


def shape_evidence(refit: Refit, fit: Fit, points_m: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Of one fitted frame: information (6, 6) on the bone scales and pull (6,) away from those of the fit."""
    shape = fit.shape
    rest, at = refit.chain.at_rest(shape), fit.T_wrist[:3, 3]
    posed = refit.chain.pose(fit.T_wrist[:3, :3], fit.angles, rest)
    screws, joints = refit.chain.screws(posed), posed.joints_m
    target = fit.joints_free_m
    # Unknowns: 26 of the pose, the scale of the network's hand about its middle, 6 of the bones.
    rows = np.zeros((63, 33))
    rows[:, :26] = refit.joint_rows(posed, screws)
    rows[:, 26] = -(target - target.mean(0)).ravel()
    rows[:, 27:] = _growth(joints[THRICE], EACH_AXIS, JOINT_PARTS[THRICE], joints, shape.alpha)
    trusted = rows if weights is None else rows * weights[THRICE, None]
    normal = trusted.T @ rows
    gradient = (target - joints - at).ravel() @ trusted
    normal[range(6, 26), range(6, 26)] += refit.angle_prior
    normal[26, 26] += 1e-9
    if len(points_m) >= LEAST_POINTS:
        meet = refit.meet(posed, rest, at, points_m)
        rows = np.zeros((len(points_m), 33))
        rows[:, :26] = refit.chain.rows(screws, meet.place_m, meet.normal, refit.chain.moved[meet.part])
        rows[:, 27:] = _growth(meet.place_m, meet.normal, meet.part, joints, shape.alpha)
        weighted = rows * meet.weight[:, None]
        normal += weighted.T @ rows
        gradient += meet.gap_m @ weighted
    else:
        normal[26, 26] += 1e3  # nothing else has a scale: take the network's
    return eliminated(normal, gradient, 27, 6 + refit.at_limits(fit.angles))


def _growth(points_m: Array, directions: Array, part: Array, joints_m: Array, alpha: Array) -> Array:
    """(N, 6) how far points (N, 3) on parts (N,), relative to the wrist, move along directions as bone scales grow."""
    base = np.where((part == 0)[:, None], points_m, joints_m[_BASE_OF[part]])
    growth = np.zeros((len(points_m), 6))
    growth[range(len(part)), _FINGER_OF[part]] = ((points_m - base) * directions).sum(1)
    growth[:, 0] = (base * directions).sum(1)
    return growth / alpha


def _numbers(path: Path, entries: dict[str, Any], name: str, n: int, low: float, high: float) -> Array:
    values = entries.get(name)
    if not isinstance(values, list) or len(values) != n:
        raise PersonError(f"person {path}: {name} is not a list of {n} numbers")
    for value in values:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            raise PersonError(f"person {path}: {name} has {short(value)}, possible are {low:g} to {high:g}")
    return np.array(values, float)
