"""Where pictures of the board come from: librealsense's recordings keep their times."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="the board needs OpenCV: pip install 'edge-hand[calibration]'")

from edge_hand.calibration.sources import open_source
from test_realsense import SoftwareCamera, needs_realsense, noise, rs


@needs_realsense
def test_pictures_of_a_librealsense_recording_have_the_times_they_were_recorded_at(tmp_path: Path) -> None:
    path = tmp_path / f"board{'.db3' if hasattr(rs.context, 'convert_bag_to_db3') else '.bag'}"
    camera = SoftwareCamera(fps=25, infrared=(1,))
    recorder, queue = rs.recorder(str(path), camera.device), rs.frame_queue(64, True)
    sensor = recorder.query_sensors()[0]
    sensor.open(sensor.get_stream_profiles())
    sensor.start(queue)
    stamps_ms = [1_700_000_000_000.0 + 40 * number for number in (1, 2, 3, 5, 6)]
    for number, stamp_ms in enumerate(stamps_ms):
        camera.push_picture(1, (noise(number) % 256).astype(np.uint8), number, stamp_ms)
        queue.wait_for_frame(2000)
        camera.push(noise(number), number, stamp_ms)
        queue.wait_for_frame(2000)
    sensor.stop()
    sensor.close()
    del sensor, recorder, queue  # the file is finished when the recorder is destroyed
    gc.collect()
    times = {picture.t_s for picture in open_source(str(path)).pictures()}
    assert sorted(times) == pytest.approx([ms * 1e-3 for ms in stamps_ms], abs=1e-6)
