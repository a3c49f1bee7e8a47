"""How arms move over time: a person's hands come, go, cross, meet, hold still; fingers and wrists change with them.

Every move is a minimum-jerk path (Flash & Hogan 1985) between places where the hand rests, so positions, turns and
finger angles have no jumps and speeds rise and fall as people's do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...hand.arrays import Array
from ...hand.template import template
from .people import CHEST, HEAD, NECK, SPINE, UPPER, Arm, Build
from .poses import penetrates, sample_angles

PEAK_TO_MEAN = 1.875  # speeds of a minimum-jerk move
SPEEDS_M_S = (0.25, 2.0)  # of a move at its fastest
LEAST_S = 0.25  # that a change of pose takes
ACTS = ("free",) * 4 + ("cross", "cross", "meet", "meet", "leave", "leave", "leave_both", "still", "fingers", "fingers")
SWAY_RAD = 0.02


class Key(NamedTuple):
    """An arm at rest at t_s, having left its last key at begin_s; bump (3,) m: how far it swerves on the way."""

    begin_s: float
    t_s: float
    arm: Arm
    bump_m: Array


class Script(NamedTuple):
    """What each arm does, by side, and how the trunk sways: size (17, 3) rad, rate (17, 3) rad/s, phase (17, 3)."""

    keys: tuple[list[Key], list[Key]]
    sway: Array
    rate: Array
    phase: Array


def minimum_jerk(share: float) -> float:
    """Way done after a share of the time, both 0 to 1."""
    s = min(max(share, 0.0), 1.0)
    return s**3 * (10 - 15 * s + 6 * s * s)


Settle = Callable[[dict[int, Arm]], dict[int, Arm]]


def write_script(rng: np.random.Generator, build: Build, middle_m: Array, seconds: float, settle: Settle) -> Script:
    """Moves of both arms about a place (3,) m for so long.

    settle moves arms, by side, whose hands are in the body or each other to where they are not.
    """
    kinds = rng.choice(3, p=(0.65, 0.3, 0.05))  # both hands act, one of them, none
    acting = [True, True] if kinds == 0 else [bool(i == rng.integers(2)) for i in (0, 1)] if kinds == 1 else [False] * 2
    if kinds == 1 and acting[0] == acting[1]:
        acting[1] = not acting[0]
    keys: tuple[list[Key], list[Key]] = ([], [])
    start: dict[int, Arm] = {}
    for side in (0, 1):
        start[side] = _arm(rng, _place(rng, build, middle_m, side, away=not acting[side] or rng.random() < 0.2))
    for side, arm in settle(start).items():
        keys[side].append(Key(0.0, 0.0, arm, np.zeros(3)))
    now = float(rng.uniform(0, 0.5))
    while now < seconds:
        act = ACTS[int(rng.integers(len(ACTS)))]
        wrists = [_place(rng, build, middle_m, s, away=not acting[s]) for s in (0, 1)]
        leaver = int(rng.integers(2))
        for side in (0, 1):
            if act == "leave_both" or (act == "leave" and side == leaver):
                wrists[side] = _place(rng, build, middle_m, side, away=True)
        if all(acting) and act in ("cross", "meet"):
            apart = 0.16 if act == "cross" else 0.03
            centre = middle_m + rng.normal(0, 0.05, 3)
            sign = -1 if act == "cross" else 1
            for side in (0, 1):
                out = (1 - 2 * side) * sign
                wrists[side] = centre + (out * apart, out * 0.03, -0.05)
        end = now
        moving = [s for s in (0, 1) if act != "still" and (acting[s] or rng.random() < 0.3)]
        arms = {s: keys[s][-1].arm for s in (0, 1)}
        for side in moving:
            arms[side] = _arm(rng, arms[side].wrist_m if act == "fingers" else wrists[side], arms[side])
        settled = settle(arms) if moving else arms
        for side in moving:
            last, new = keys[side][-1], settled[side]
            speed = math.exp(rng.uniform(*np.log(SPEEDS_M_S)))
            way = float(np.linalg.norm(new.wrist_m - last.arm.wrist_m))
            takes = max(PEAK_TO_MEAN * way / speed, LEAST_S + rng.uniform(0, 0.6))
            begin = max(now + rng.uniform(0, 0.15), last.t_s)
            bump = rng.normal(0, 0.03, 3) + (0, 0, 0.08 * (1 - 2 * side) if act == "cross" else 0)
            keys[side].append(Key(begin, begin + takes, new, bump))
            end = max(end, begin + takes)
        hold = 0.0 if rng.random() < 0.5 else rng.uniform(0.1, 0.8) if rng.random() < 0.8 else rng.uniform(1, 3)
        now = end + hold + (0.8 if act == "still" else 0)
    sway = np.zeros((17, 3))
    sway[[SPINE, CHEST, NECK, HEAD]] = rng.normal(0, SWAY_RAD, (4, 3)) * np.array([1, 1, 2, 3])[:, None]
    return Script(keys, sway, rng.uniform(0.5, 2.5, (17, 3)), rng.uniform(0, 2 * np.pi, (17, 3)))


def _place(rng: np.random.Generator, build: Build, middle_m: Array, side: int, *, away: bool) -> Array:
    """Where a wrist goes: about the middle, or away from it beside the body, in the lap or far out."""
    out, shoulder = 1.0 - 2 * side, build.joints_m[UPPER[side]]
    if not away:
        return middle_m + (out * rng.uniform(-0.02, 0.2), *rng.normal(0, 0.11, 2)) - (0, 0.05, 0)
    kind = rng.random()
    if kind < 0.4:
        return shoulder + (out * rng.uniform(0.08, 0.2), -rng.uniform(0.42, 0.55), rng.uniform(-0.1, 0.1))
    if kind < 0.6:
        return np.array([out * rng.uniform(0.03, 0.15), rng.uniform(0.1, 0.16), rng.uniform(0.18, 0.4)])
    return shoulder + (out * rng.uniform(0.3, 0.5), rng.uniform(-0.4, 0.3), rng.uniform(0, 0.3))


def _arm(rng: np.random.Generator, wrist_m: Array, last: Arm | None = None) -> Arm:
    """A pose of arm and hand; fingers that reach it from the last one without passing through each other."""
    t = template()
    if last is None:
        angles = sample_angles(t, rng)
    else:
        angles = last.angles
        for _ in range(4 if rng.random() < 0.75 else 0):
            new = sample_angles(t, rng)
            steps = last.angles + np.array([0.25, 0.5, 0.75])[:, None] * (new - last.angles)
            if not penetrates(t, steps).any():
                angles = new
                break
    new_arm = Arm(np.asarray(wrist_m), rng.normal(0, 0.3), rng.uniform(-1.35, 1.35), rng.normal(0, (0.4, 0.15)), angles)
    if last is None or rng.random() < 0.4:
        return new_arm
    mostly = 0.2  # often hands turn only little on their way
    return new_arm._replace(
        elbow_rad=last.elbow_rad + mostly * (new_arm.elbow_rad - last.elbow_rad),
        twist_rad=last.twist_rad + mostly * (new_arm.twist_rad - last.twist_rad),
        bend_rad=last.bend_rad + mostly * (new_arm.bend_rad - last.bend_rad),
    )


def arm_at(keys: list[Key], t_s: float) -> Arm:
    """The arm at a time; before the first key as there, after the last as there."""
    after = next((i for i, key in enumerate(keys) if key.t_s > t_s), len(keys))
    if after == len(keys) or after == 0:
        return keys[min(after, len(keys) - 1)].arm
    a, key = keys[after - 1].arm, keys[after]
    s = minimum_jerk((t_s - key.begin_s) / (key.t_s - key.begin_s))
    b = key.arm
    swerve = 16 * s * s * (1 - s) * (1 - s) * key.bump_m
    mixed = [np.asarray(x) + s * (np.asarray(y) - np.asarray(x)) for x, y in zip(a, b, strict=True)]
    return Arm(mixed[0] + swerve, float(mixed[1]), float(mixed[2]), mixed[3], mixed[4])


def sway_at(script: Script, t_s: float) -> Array:
    """Turns (17, 3) rad to add to the posture's."""
    return np.asarray(script.sway * np.sin(script.rate * t_s + script.phase))
