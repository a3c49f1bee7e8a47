"""Crops of the hands in a recording, as the daemon gives them to its network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..calibration.look_at import open_depth
from ..edge.cameras import BadFrame, EndOfStream
from ..edge.engines import Engine
from ..edge.tracker import Tracker
from ..hand.arrays import Array
from ..hand.crop import crop_depth
from ..hand.frames import HandRoi


def tracked_crops(recording: Path, engine: Engine, most: int) -> list[Array]:
    """Up to so many network inputs (1, 1, S, S), evenly over the hands that the engine's network tracks in a recording
    or a folder of depth pictures; left hands mirrored. Raises CameraError."""
    tracker, card = Tracker(engine), engine.card
    crops: list[Array] = []
    seen, stride = 0, 1  # every stride-th hand is kept, so that a long recording needs no more memory
    with open_depth(str(recording))[0] as camera:
        while True:
            try:
                frame = camera.read()
            except EndOfStream:
                break
            except BadFrame:
                continue
            tracker.process(frame)
            for track in tracker.tracks:
                if not track.published or track.t_ns != frame.t_ns:  # it was not measured in this frame
                    continue
                if seen % stride == 0:
                    roi = HandRoi("unknown", track.centre_m, card.cube_m * track.size, 1.0)
                    crop = crop_depth(frame, roi, card.crop_size, mirrored=track.is_left)
                    crops.append(np.array(crop.image[None, None]))
                seen += 1
                if len(crops) == 2 * most:
                    crops, stride = crops[::2], 2 * stride
    kept = np.linspace(0, len(crops) - 1, min(most, len(crops))).round().astype(int)
    return [crops[i] for i in kept]
