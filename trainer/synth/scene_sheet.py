"""A picture of rendered scenes with the joints of the hands that can be seen.

python -m edge_hand.trainer.synth.scene_sheet docs/scenes.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ...edge.draw import Picture, contact_sheet, depth_picture, draw_joints, save_png, view_of
from .rooms import Scene, SceneGenerator

CELL = (160, 120)  # px
COLUMNS = 6


def picture(scene: Scene, size: tuple[int, int] = CELL) -> Picture:
    """The whole frame, near is bright, with the joints of hands of which at least a tenth shows."""
    view = view_of(scene.frame.intrinsics, [], size)
    shown = [hand.joints_m for hand in scene.hands if hand.seen >= 0.1]
    return draw_joints(depth_picture(scene.frame, [], view), shown, view)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--first", type=int, default=0, help="index of the first scene [%(default)s]")
    parser.add_argument("--count", type=int, default=24, help="[%(default)s]")
    options = parser.parse_args()
    generator = SceneGenerator("test")
    scenes = [generator.scene(options.first + i) for i in range(options.count)]
    save_png(options.out, contact_sheet([picture(scene) for scene in scenes], COLUMNS))


if __name__ == "__main__":
    main()
