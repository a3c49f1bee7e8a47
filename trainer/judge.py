"""How far to believe that a proposal is a hand: the curve that `edge.look.belief` takes, counted on rendered rooms.

The finder has looked at the whole frame, the network at a crop; both say how sure they are, and both are fooled, by
knees and by objects of a hand's size. A logistic curve over what they say is fitted to whether a hand was there.

python -m edge_hand.trainer.judge --scenes 1500
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import click
import numpy as np

from ..edge.engines import open_engine
from ..edge.finder import Part, closer, open_finder
from ..edge.look import Eye, Look, evidence
from ..edge.networks.card import ModelError, find_model
from ..hand.arrays import Array
from .logistic import fit
from .synth.room_crops import SEEN, away
from .synth.rooms import Scene, SceneGenerator

NEAR_M = 0.06  # a look whose centre is as near to a hand's as this has found it


class Case(NamedTuple):
    """A proposal: what was said of it (`edge.look.evidence`), and whether a hand was there."""

    evidence: Array
    is_hand: bool


def cases(scene: Scene, eye: Eye, finder: Any, part: Part | None = None) -> Iterator[Case]:
    """All proposals of a scene, or of a part of it, each looked at as the tracker does with a new hand."""
    for roi in finder(scene.frame, part):
        first = eye.look(scene.frame, roi.centre_m, roi.side == "left")
        if first.prediction.hand_pixels == 0 or first.centre_m[2] < 0.1:
            continue
        look = eye.look(scene.frame, first.centre_m, first.right_votes < 0)
        verdict = _is_hand(scene, look)
        if verdict is not None:
            yield Case(evidence(look, roi.score), verdict)


def _is_hand(scene: Scene, look: Look) -> bool | None:
    """Whether a hand is where the look found one; None where that is hard to say."""
    gaps = [(float(np.linalg.norm(h.joints_m.mean(0) - look.centre_m)), h.seen) for h in scene.hands]
    if any(gap < NEAR_M and seen >= SEEN for gap, seen in gaps):
        return True
    return False if away(scene, look.centre_m) else None


@click.command()
@click.option("--scenes", default=1500, show_default=True, type=click.IntRange(10))
@click.option("--model", default=None, help="The network; default the shipped one.")
@click.option("--finder", default="finder", show_default=True)
@click.option(
    "--first", default=1_000_000, show_default=True, help="First scene of the stream train, which no finder learned."
)
def main(scenes: int, model: str | None, finder: str, first: int) -> None:
    """Fit the curve on half of the scenes and say how well it tells hands on the other half."""
    try:
        engine, proposer = open_engine(model=find_model(model)) if model else open_engine(), open_finder(finder)
    except ModelError as error:
        sys.exit(f"judge: {error}")
    eye = Eye(engine, {"crop": 0.0, "engine": 0.0})
    generator = SceneGenerator("train")
    found: list[list[Case]] = [[], []]
    for i in range(scenes):
        scene = generator.scene(first + i)
        parts = closer(scene.frame.intrinsics)  # which the tracker searches by turns with all of it
        part = parts[i // 4 % len(parts)] if i // 2 % 2 else None
        found[i % 2] += cases(scene, eye, proposer, part)
    (x, y), (x_test, y_test) = (
        (np.array([c.evidence for c in half]), np.array([c.is_hand for c in half], float)) for half in found
    )
    weights = fit(x, y)
    click.echo("weights " + ", ".join(f"{w:.3f}" for w in weights))
    belief = x_test @ weights
    click.echo(f"{len(y_test)} proposals of {scenes // 2} scenes, {int(y_test.sum())} hands")
    for least in (-2, -1, 0, 1, 2, 3, 4):
        kept = belief > least
        click.echo(
            f"belief > {least:+d} ({1 / (1 + math.exp(-least)):.2f}): hands kept {kept[y_test == 1].mean():.3f}, "
            f"others {int(kept[y_test == 0].sum())} ({kept[y_test == 0].sum() / (scenes // 2):.3f} a scene)"
        )


if __name__ == "__main__":
    main()
