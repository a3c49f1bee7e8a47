"""What a person sees while moving the hand: three bars, the error to expect, and the one thing that is missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .gate import LEAST_S, LEAST_SHARED, LEAST_SPREAD_M, LEAST_TURN_RAD, Motion, lacks

SIGMA_MM, LEAST_MM = 1.0, 0.5  # predicted after enough of the motion; it falls with the root of the time, to a floor
WIDTH = 8


def predicted_sigma_mm(motion: Motion) -> float:
    """What the rig's sigma over the volume would be if it were solved now: a rule of thumb from simulated rigs, 1 mm
    after LEAST_S of a motion that fills room and turning, more with less."""
    shared = float(np.nan_to_num(motion.shared_s).min()) if len(motion.shared_s) else 0.0
    fill = min(share for share in _shares(motion)[:2])
    return float(max(LEAST_MM, SIGMA_MM * np.sqrt(LEAST_S / max(shared, 0.1)) / max(fill, 0.1)))


def line(motion: Motion, names: Sequence[str], elapsed_s: float) -> str:
    """One line: bars for volume, rotation and overlap, sigma, and what to do next."""
    room, turn, overlap = _shares(motion)
    bars = f"volume {_bar(room)}  rotation {_bar(turn)}  overlap {_bar(overlap)}"
    missing = lacks(motion, names)
    return (
        f"{elapsed_s:3.0f} s  {bars}  sigma ~{predicted_sigma_mm(motion):.1f} mm  {missing[0] if missing else 'enough'}"
    )


def _shares(motion: Motion) -> tuple[float, float, float]:
    """How much of the volume, the turning and the overlap that are wanted is there, 0 to 1 each."""
    room = float(np.minimum(motion.spread_m / LEAST_SPREAD_M, 1).mean())
    turn = float(np.minimum(motion.turn_rad[:2] / LEAST_TURN_RAD, 1).mean())
    wanted = LEAST_SHARED * LEAST_S
    overlap = float(np.minimum(np.nan_to_num(motion.shared_s) / wanted, 1).min()) if len(motion.shared_s) else 0.0
    return room, turn, overlap


def _bar(share: float) -> str:
    full = round(WIDTH * min(max(share, 0.0), 1.0))
    return "[" + "#" * full + "." * (WIDTH - full) + "]"
