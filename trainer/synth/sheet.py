"""A picture of rendered samples, a row a sensor, and under them crops of real frames: do they look alike?

python -m edge_hand.trainer.synth.sheet docs/samples.png
python -m edge_hand.trainer.synth.sheet sheet.png --real FOLDER      # depth frames that the replay camera reads
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from ...edge.cameras import EndOfStream, open_camera
from ...edge.draw import Picture, save_png
from ...edge.engines import open_engine
from ...edge.tracker import Tracker
from ...hand.arrays import Array
from ...hand.crop import crop_depth
from ...hand.frames import HandRoi
from .samples import CUBE_M, Generator
from .sensors import SENSORS

COLUMNS = 12
GROWN = 2  # picture pixels a crop's pixel
TITLE_PX = 150


def rendered(sensor: str, n: int = COLUMNS) -> list[Array]:
    """Crops (64, 64) of n samples of the test stream as one sensor sees them."""
    generator = Generator("test", seed=3, left_share=0.5, sensors=(sensor,))
    return [generator.sample(i).image for i in range(n)]


def real(folder: Path) -> Iterator[Array]:
    """Crops of the hands that the tracker finds in single frames."""
    tracker = Tracker(open_engine())
    with open_camera("replay", str(folder), fps=0.0) as camera, suppress(EndOfStream):
        while True:
            frame = camera.read(30.0)
            tracker.reset()
            for hand in tracker.process(frame):
                yield crop_depth(frame, HandRoi("unknown", hand.pose.joints_m.mean(0), CUBE_M, 1.0)).image


def picture(crops: list[Array]) -> Picture:
    """Crops (S, S) in [-1, 1] in a row: near is bright, nothing is black."""
    cells = [np.pad(np.where(c < 1, 235 - 95 * (c + 1), 0), 1, constant_values=70) for c in crops]
    row = np.concatenate(cells, 1).repeat(GROWN, 0).repeat(GROWN, 1)
    return np.repeat(row.astype(np.uint8)[..., None], 3, -1)


def titled(title: str, row: Picture) -> Picture:
    from PIL import Image, ImageDraw

    side = Image.new("RGB", (TITLE_PX, len(row)), (20, 20, 20))
    ImageDraw.Draw(side).text((6, len(row) // 2 - 6), title, fill=(230, 230, 230))
    return np.concatenate([np.asarray(side), row], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--real", type=Path)
    options = parser.parse_args()
    rows = [titled(name, picture(rendered(name))) for name in SENSORS]
    if options.real:
        crops = list(real(options.real))
        if not crops:
            sys.exit(f"sheet: --real {options.real}: no hand was found in it")
        for first in range(0, len(crops), COLUMNS):
            some = crops[first : first + COLUMNS]
            blank = [np.ones_like(crops[0])] * (COLUMNS - len(some))
            rows.append(titled(f"real: {options.real.name}", picture(some + blank)))
    save_png(options.out, np.concatenate(rows))


if __name__ == "__main__":
    main()
