"""What the measurement of adaptation keeps for its next run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame

pytest.importorskip("torch")
pytest.importorskip("numba")

from edge_hand.edge.recordings.recording import Recording
from edge_hand.trainer.evaluate_adapt import record


class Clip:
    """Ten frames, of which so many are drawn before Ctrl-C."""

    def __init__(self, drawn: int) -> None:
        self.drawn = drawn

    def frames(self, camera: int) -> Iterator[DepthFrame]:
        lens = Intrinsics(8, 6, 8.0, 8.0, 3.5, 2.5)
        for i in range(10):
            if i == self.drawn:
                raise KeyboardInterrupt
            yield DepthFrame("camera", i, (1 + i) * 10**8, np.full((6, 8), 500, np.uint16), 0.001, lens)


def test_a_recording_whose_drawing_was_interrupted_is_drawn_anew(tmp_path: Path) -> None:
    path = tmp_path / "adapt-0.mcap"
    for drawn in (4, 6):
        with pytest.raises(KeyboardInterrupt):
            record(Clip(drawn), 0, path)  # type: ignore[arg-type]
        assert not path.exists()
    record(Clip(99), 0, path)  # type: ignore[arg-type]
    with Recording(path) as recording:
        assert [frame.seq for frame in recording] == list(range(10))
    assert list(tmp_path.iterdir()) == [path]
    record(Clip(0), 0, path)  # type: ignore[arg-type]  # and what is whole is not
