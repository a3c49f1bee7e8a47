"""How near random hands come to real ones: distance of every tracked pose to the nearest of N drawn ones.

python -m edge_hand.trainer.synth.coverage FILE prints the table of docs/poses.md. FILE has one tracked right hand a
line, 17 bones of 7 numbers: position (m) and quaternion xyzw of wrist, palm and three bones a finger, thumb first.
Nothing of such a file goes into the sampler; it only measures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...hand.arrays import Array
from ...hand.kinematics import part_rotations
from ...hand.poses import POSES
from ...hand.skeleton import ANGLE_LIMITS_RAD
from ...hand.template import HandTemplate, template
from .poses import penetrates, rotations, sample_angles

BONES = 17
COUNTS = (1_000, 10_000, 100_000)
# The file's palm frame leans back: hands with straight fingers show 20 degrees of knuckle flexion in it. Its thumb has
# other zeros too: the direction of the proximal bone against the palm, and the flexion of the joint before it.
PALM_PITCH_RAD = np.radians(20)
THUMB_ELEVATION_RAD, THUMB_MCP_RAD = np.radians(35), np.radians(20)
_COS, _SIN = np.cos(PALM_PITCH_RAD), np.sin(PALM_PITCH_RAD)
# From the file's palm (towards thumb, back, fingers) to the template's (little finger, fingers, back).
_TURN = np.array([[-1, 0, 0], [0, -_SIN, _COS], [0, _COS, _SIN]])


class CoverageError(Exception):
    """A file that is not what this measure reads; the message is one line."""


class Coverage(NamedTuple):
    """For each real pose the nearest drawn one, by the mean over 20 angles: index, mean and greatest distance (rad)."""

    nearest: NDArray[np.int64]
    mean_rad: Array
    max_rad: Array


def load_bones(path: Path) -> Array:
    """Tracked hands (N, 17, 7). Raises CoverageError on a missing, empty, short or garbled file."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as e:
        raise CoverageError(f"{path}: {e.strerror or e}") from None
    except UnicodeDecodeError:
        raise CoverageError(f"{path}: not a text file of tracked poses") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        words = line.split()
        if len(words) != BONES * 7:
            raise CoverageError(f"{path}:{number}: {len(words)} numbers, a pose has {BONES} bones of 7")
        try:
            row = np.array([float(w) for w in words]).reshape(BONES, 7)
        except ValueError:
            raise CoverageError(f"{path}:{number}: not all of it is numbers") from None
        if not np.isfinite(row).all() or (abs(np.linalg.norm(row[:, 3:], axis=1) - 1) > 1e-2).any():
            raise CoverageError(f"{path}:{number}: the last four numbers of a bone are no unit quaternion")
        rows.append(row)
    if not rows:
        raise CoverageError(f"{path}: no poses in it")
    return np.stack(rows)


def angles_of_bones(bones: Array) -> Array:
    """Tracked bones (N, 17, 7) to comparable angles (N, 20) rad, see `comparable`."""
    q = bones[..., 3:] / np.linalg.norm(bones[..., 3:], axis=-1, keepdims=True)  # xyzw
    r = rotations(np.roll(q, 1, -1))  # (N, 17, 3, 3), columns: towards the thumb, the back, the tip
    angles = np.empty((len(bones), 20))
    for finger in range(5):
        first = 2 + 3 * finger
        proximal = first + 1 if finger == 0 else first
        angles[:, 4 * finger : 4 * finger + 2] = _direction(_relative(r, 1, proximal)[..., 2] @ _TURN.T, finger)
        bend = [_relative(r, first + k, first + k + 1) for k in range(2)]
        for k, m in enumerate(bend):  # fingers bend about the bone's x, the thumb about its -y
            if finger == 0:
                angles[:, 2 + k] = np.arctan2(m[:, 2, 0] - m[:, 0, 2], m[:, 0, 0] + m[:, 2, 2])
            else:
                angles[:, 4 * finger + 2 + k] = np.arctan2(m[:, 2, 1] - m[:, 1, 2], m[:, 1, 1] + m[:, 2, 2])
    angles[:, 0] += THUMB_ELEVATION_RAD
    angles[:, 2] += THUMB_MCP_RAD
    return angles


def comparable(t: HandTemplate, angles: Array) -> Array:
    """Our joint angles (N, 20) to angles (N, 20) rad that a tracked skeleton has too.

    A finger's knuckle: flexion of its first bone in the plane across the palm, and lean out of that plane towards the
    thumb, zero where the hand shape "flat" has it; unlike abduction, lean stays well defined when the knuckle is bent.
    The thumb: elevation and azimuth of its proximal bone from the palm. Every other joint is a hinge and stays.
    """
    out = _raw_comparable(t, angles)
    lean = slice(5, 20, 4)
    out[:, lean] -= _raw_comparable(t, POSES["flat"][None])[:, lean]
    return out


def coverage(real: Array, samples: Array) -> Coverage:
    """Nearest of `samples` (M, 20) to each of `real` (N, 20), both rad."""
    a, b = (torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in (real, samples))
    best, nearest = torch.full((len(a),), np.inf), torch.zeros(len(a), dtype=torch.int64)
    for start in range(0, len(b), 4096):
        distance, at = torch.cdist(a, b[start : start + 4096], p=1).min(1)
        nearest = torch.where(distance < best, at + start, nearest)
        best = torch.minimum(best, distance)
    index = nearest.numpy()
    apart = np.abs(real - samples[index])
    return Coverage(index, apart.mean(1), apart.max(1))


def distinct(angles: Array, apart_rad: float = np.radians(3)) -> NDArray[np.int64]:
    """Indices of poses that differ by more than apart_rad from those kept before (mean over 20 angles)."""
    kept = [0]
    for i in range(1, len(angles)):
        if np.abs(angles[kept] - angles[i]).mean(1).min() > apart_rad:
            kept.append(i)
    return np.array(kept)


def uniform_angles(t: HandTemplate, rng: np.random.Generator, n: int) -> Array:
    """Joint angles (n, 20) rad, uniform inside the limits, of hands that do not penetrate themselves."""
    found: list[Array] = []
    low, high = ANGLE_LIMITS_RAD[:, 0], ANGLE_LIMITS_RAD[:, 1]
    while sum(map(len, found)) < n:
        angles = rng.uniform(low, high, (1024, 20))
        found.append(angles[~penetrates(t, angles)])
    return np.concatenate(found)[:n]


def draw(t: HandTemplate, n: int, seed: int = 0) -> Array:
    """n hands (n, 20) rad of the trainer's sampler."""
    rng = np.random.default_rng(seed)
    return np.stack([sample_angles(t, rng) for _ in range(n)])


def main(argv: Sequence[str] | None = None) -> int:
    """Print how near the sampler comes to the poses of a file."""
    parser = argparse.ArgumentParser(prog="python -m edge_hand.trainer.synth.coverage", description=main.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--most", type=int, default=COUNTS[-1], help="the largest number of hands to draw")
    options = parser.parse_args(argv)
    try:
        bones = load_bones(options.file)
    except CoverageError as e:
        print(e, file=sys.stderr)
        return 2
    t = template()
    every = angles_of_bones(bones)
    single = every[distinct(every)]
    others = comparable(t, uniform_angles(t, np.random.default_rng(1), 1000))
    samplers: dict[str, Callable[[int], Array]] = {
        "sampler": lambda n: draw(t, n),
        "uniform": lambda n: uniform_angles(t, np.random.default_rng(0), n),
    }
    counts = [n for n in COUNTS if n < options.most] + [options.most]
    print(f"{len(every)} tracked poses, {len(single)} of them distinct; mean angle distance to the nearest, degrees")
    print("| hands | N | tracked p50 / p90 / p99 | distinct p50 / p90 / p99 | worst angle p90 | uniform p50 / p90 |")
    print("|---|---|---|---|---|---|")
    for name, sample in samplers.items():
        drawn = sample(counts[-1])
        compared = comparable(t, drawn)
        for n in counts:
            a, b, c = (coverage(target, compared[:n]) for target in (every, single, others))
            cells = (_percentiles(a.mean_rad, 50, 90, 99), _percentiles(b.mean_rad, 50, 90, 99))
            worst = _percentiles(b.max_rad, 90)
            print(f"| {name} | {n} | {cells[0]} | {cells[1]} | {worst} | {_percentiles(c.mean_rad, 50, 90)} |")
        print(f"{name}: standard deviation an angle, mean {np.degrees(drawn.std(0).mean()):.1f} degrees")
    return 0


def _raw_comparable(t: HandTemplate, angles: Array) -> Array:
    local = part_rotations(t, angles)  # (N, 16, 3, 3)
    out = np.array(angles, float)
    for finger in range(5):
        joint = 2 if finger == 0 else 1 + 4 * finger
        bone = t.joints_m[joint + 1] - t.joints_m[joint]
        turn = local[:, 1] @ local[:, 2] if finger == 0 else local[:, 1 + 3 * finger]
        out[:, 4 * finger : 4 * finger + 2] = _direction(turn @ (bone / np.linalg.norm(bone)), finger)
    return out


def _direction(d: Array, finger: int) -> Array:
    """Directions (N, 3) in the template's palm frame to two angles (N, 2) rad."""
    x, y, z = np.clip(d, -1, 1).T
    if finger == 0:
        return np.stack([np.arcsin(-z), np.arctan2(-x, y)], 1)
    return np.stack([np.arctan2(-z, y), np.arcsin(-x)], 1)


def _relative(r: Array, a: int, b: int) -> Array:
    return np.swapaxes(r[:, a], -1, -2) @ r[:, b]


def _percentiles(rad: Array, *percent: float) -> str:
    return " / ".join(f"{x:.1f}" for x in np.degrees(np.percentile(rad, percent)))


if __name__ == "__main__":
    sys.exit(main())
