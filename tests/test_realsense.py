"""The RealSense camera, driven by librealsense's own software device and by its recordings."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from edge_hand.calibration.sources import CameraPictures
from edge_hand.edge.camera_mode import Mode, parse_mode
from edge_hand.edge.cameras import CameraError, EndOfStream, FrameTimeout, open_camera
from edge_hand.edge.cameras.realsense import RealSenseCamera, check_camera, list_cameras
from edge_hand.edge.librealsense import import_realsense, intrinsics_from_realsense
from edge_hand.hand.camera import Intrinsics
from test_replay import read_all

try:
    rs = import_realsense()
except CameraError as error:
    rs = None
    reason = str(error)
needs_realsense = pytest.mark.skipif(rs is None, reason="" if rs else f"no pyrealsense2 here: {reason}")

WIDTH, HEIGHT = 640, 480
INTRINSICS = Intrinsics(WIDTH, HEIGHT, 476.0, 477.0, 313.5, 242.75, (0.125, -0.25, 0.0009765625, 0.001953125, 0.0625))


class SoftwareCamera:
    """A librealsense software device with a depth stream, and infrared ones by their numbers; frames are pushed by
    hand."""

    def __init__(self, unit_m=0.001, serial="900000000042", intrinsics=INTRINSICS, fps=30, infrared=(), device=None):
        self.device = device or rs.software_device()
        for key, value in (
            (rs.camera_info.name, "Soft Depth Camera"),
            (rs.camera_info.serial_number, serial),
            (rs.camera_info.usb_type_descriptor, "3.2"),
        ):
            self.device.register_info(key, value)
        self.unit_m = unit_m
        self.sensor = self.device.add_sensor("Stereo Module")
        self.sensor.add_read_only_option(rs.option.depth_units, unit_m)
        stream = rs.video_stream()
        stream.type, stream.index, stream.uid = rs.stream.depth, 0, 1
        stream.width, stream.height, stream.fps, stream.bpp, stream.fmt = WIDTH, HEIGHT, fps, 2, rs.format.z16
        stream.intrinsics = librealsense_intrinsics(intrinsics)
        self.profile = self.sensor.add_video_stream(stream, True)
        self.pictures = {}
        for number in infrared:
            stream.type, stream.index, stream.uid = rs.stream.infrared, number, 2 + number
            stream.bpp, stream.fmt = 1, rs.format.y8
            self.pictures[number] = self.sensor.add_video_stream(stream)
        if infrared:
            projector = rs.option_range()
            projector.min, projector.max, projector.step, projector.default = 0, 1, 1, 1
            self.sensor.add_option(rs.option.emitter_enabled, projector, True)
        self.device.create_matcher(rs.matchers.default)

    def push(self, depth, number, stamp_ms, domain=None):
        self._push(self.profile, depth, 2, number, stamp_ms, domain)

    def push_picture(self, infrared, picture, number, stamp_ms):
        self._push(self.pictures[infrared], picture, 1, number, stamp_ms, None)

    def _push(self, profile, pixels, bpp, number, stamp_ms, domain):
        frame = rs.software_video_frame()
        frame.pixels = np.ascontiguousarray(pixels)
        frame.bpp, frame.stride = bpp, bpp * WIDTH
        frame.timestamp = stamp_ms
        frame.domain = rs.timestamp_domain.hardware_clock if domain is None else domain
        frame.frame_number = number
        frame.profile = profile.as_video_stream_profile()
        frame.depth_units = self.unit_m if bpp == 2 else 0.0
        self.sensor.on_video_frame(frame)


def librealsense_intrinsics(ours, model=None):
    given = rs.intrinsics()
    given.width, given.height, given.fx, given.fy = ours.width, ours.height, ours.fx, ours.fy
    given.ppx, given.ppy = ours.cx, ours.cy
    given.model, given.coeffs = model or rs.distortion.brown_conrady, list(ours.distortion)
    return given


def noise(seed):
    return np.random.default_rng(seed).integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)


@pytest.fixture(scope="module", params=[0.001, 0.000125])
def recording(request, tmp_path_factory):
    """A file of five frames, numbers 1 2 3 5 6, 40 ms apart but for the gap; and the unit it was recorded with."""
    stamps = [(number, 1000.0 + 40.0 * number, None) for number in (1, 2, 3, 5, 6)]
    return recorded(tmp_path_factory.mktemp("rs"), request.param, stamps), request.param


def recorded(folder, unit_m, stamps):
    """A librealsense recording of noise at 25 Hz: number, stamp in ms and its domain of each frame."""
    path = folder / f"hand{'.db3' if hasattr(rs.context, 'convert_bag_to_db3') else '.bag'}"
    camera = SoftwareCamera(unit_m, fps=25)
    recorder = rs.recorder(str(path), camera.device)
    sensor = recorder.query_sensors()[0]
    queue = rs.frame_queue(64, True)
    sensor.open(sensor.get_stream_profiles()[0])
    sensor.start(queue)
    for number, stamp_ms, domain in stamps:
        camera.push(noise(number), number, stamp_ms, domain)
        queue.wait_for_frame(60_000)  # the recorder writes on its own thread
    sensor.stop()
    sensor.close()
    del sensor, recorder, queue  # the file is finished when the recorder is destroyed
    gc.collect()
    return path


@needs_realsense
@pytest.mark.parametrize("unit_m", [0.001, 0.000125])
def test_live_frames_come_unchanged_with_unit_intrinsics_and_host_times(unit_m):
    soft = SoftwareCamera(unit_m)
    with RealSenseCamera(mode="640x480@30", device=soft.device) as camera:
        assert (camera.name, camera.fps) == ("900000000042", 30.0)
        for number in range(1, 6):
            time.sleep(0.02)
            pushed_ns = time.monotonic_ns()
            soft.push(noise(number), number, (pushed_ns + 777_000_000_000) * 1e-6)  # a device clock 777 s ahead
            frame = camera.read(60)
            assert np.array_equal(frame.depth, noise(number)) and frame.depth.flags.owndata
            assert (frame.camera, frame.seq, frame.depth_unit_m) == ("900000000042", number, unit_m)
            assert frame.intrinsics == INTRINSICS
            assert pushed_ns - 1000 <= frame.t_ns <= time.monotonic_ns()


@needs_realsense
@pytest.mark.parametrize("numbers", [(2, 1), (0,)])
def test_the_left_infrared_picture_comes_with_its_depth_and_the_projector_is_off_meanwhile(numbers):
    soft = SoftwareCamera(infrared=numbers)
    emitter, left = rs.option.emitter_enabled, 1 if 1 in numbers else 0
    assert soft.sensor.get_option(emitter) == 1
    with RealSenseCamera(mode="640x480@30", device=soft.device, infrared=True) as camera:
        assert soft.sensor.get_option(emitter) == 0
        for number in range(1, 6):
            picture = (noise(100 + number) % 256).astype(np.uint8)
            for other in numbers:
                soft.push_picture(other, picture if other == left else 255 - picture, number, 1000.0 + 33 * number)
            soft.push(noise(number), number, 1000.0 + 33 * number)
            frame = camera.read(60)
            assert frame.seq == number and np.array_equal(frame.depth, noise(number))
            assert np.array_equal(frame.infrared, picture) and frame.infrared.flags.owndata
    assert soft.sensor.get_option(emitter) == 1
    pictures = CameraPictures(RealSenseCamera(mode="640x480@30", device=soft.device, infrared=True), live=True)
    seen = pictures.pictures()
    soft.push_picture(left, picture, 9, 2000.0)
    soft.push(noise(9), 9, 2000.0)
    shown = next(seen)
    assert np.array_equal(shown.image, picture) and np.allclose(shown.depth_m, noise(9) * 0.001)
    seen.close()
    assert soft.sensor.get_option(emitter) == 1
    with pytest.raises(CameraError, match=r"^Soft Depth Camera 900000000042 has no infrared picture of 640x480@30$"):
        RealSenseCamera(mode="640x480@30", device=SoftwareCamera().device, infrared=True)


@needs_realsense
def test_live_gives_the_newest_frame():
    soft = SoftwareCamera()
    with RealSenseCamera(mode="640x480@30", device=soft.device) as camera:
        soft.push(noise(1), 1, 1000.0)
        assert camera.read(60).seq == 1
        for last in range(10, 100, 9):
            for number in range(last - 8, last + 1):
                soft.push(noise(number), number, 1000.0 + 33 * number)
                time.sleep(0.005)
            if (first := camera.read(60).seq) == last:
                return
            while camera.read(60).seq < last:  # on a busy machine the last ones come later
                pass
        pytest.fail(f"frame {first} came, not {last}")


@needs_realsense
def test_a_wall_clock_stamp_is_mapped_by_the_wall_clock():
    soft = SoftwareCamera()
    with RealSenseCamera(mode="640x480@30", device=soft.device) as camera:
        before_ns, stamp_ms, after_ns = time.monotonic_ns(), time.time() * 1e3 - 300.0, time.monotonic_ns()
        soft.push(noise(1), 1, stamp_ms, rs.timestamp_domain.system_time)
        assert before_ns - 50_000_000 < camera.read(60).t_ns + 300_000_000 < after_ns + 50_000_000


@needs_realsense
def test_a_silent_camera_is_a_timeout_and_can_go_on():
    soft = SoftwareCamera()
    with RealSenseCamera(mode="640x480@30", device=soft.device) as camera:
        start = time.monotonic()
        with pytest.raises(FrameTimeout, match=r"^realsense: no depth frame within 0.2 s$"):
            camera.read(0.2)
        assert 0.15 < time.monotonic() - start < 60
        pusher = threading.Timer(0.15, soft.push, (noise(1), 1, 1000.0))
        pusher.start()
        assert camera.read(60).seq == 1
        pusher.join()


@needs_realsense
def test_a_mode_the_sensor_has_not_says_which_it_has():
    text = r"^Soft Depth Camera 900000000042 on USB 3.2 has no mode 848x480@90; it has 640x480@30$"
    with pytest.raises(CameraError, match=text):
        RealSenseCamera(device=SoftwareCamera().device)


@needs_realsense
def test_a_recording_is_played_back_bit_for_bit_at_its_own_times(recording):
    path, unit_m = recording
    own = [40_000_000, 40_000_000, 80_000_000, 40_000_000]
    for _ in range(6):  # a machine too busy to keep up moves the schedule back; never forward
        gaps = played_back(path, unit_m)
        assert all(gap >= expected for gap, expected in zip(gaps, own, strict=True))
        if gaps == own:
            return
    pytest.fail(f"the frames' times are {gaps} apart, recorded were {own}")


def played_back(path, unit_m):
    with open_camera("replay", str(path)) as camera:
        assert isinstance(camera, RealSenseCamera)
        assert (camera.name, camera.fps, camera.intrinsics) == ("900000000042", 25.0, INTRINSICS)
        start_ns = time.monotonic_ns()
        frames = read_all(camera)
        elapsed_ns = time.monotonic_ns() - start_ns
        with pytest.raises(EndOfStream, match="no more frames"):
            camera.read(0.5)
    assert [frame.seq for frame in frames] == [1, 2, 3, 5, 6]
    for frame in frames:
        assert np.array_equal(frame.depth, noise(frame.seq))
        assert frame.depth_unit_m == unit_m and frame.intrinsics == INTRINSICS
    assert frames[0].t_ns >= start_ns and elapsed_ns >= 200_000_000
    return np.diff([frame.t_ns for frame in frames]).tolist()


@needs_realsense
def test_a_recording_at_full_speed_loses_nothing_to_a_slow_reader(recording):
    path, _ = recording
    with open_camera("realsense", str(path), fps=0) as camera:
        time.sleep(0.3)
        assert [frame.seq for frame in read_all(camera)] == [1, 2, 3, 5, 6]


@needs_realsense
def test_a_recording_whose_clock_changes_is_shown_on(tmp_path):
    """librealsense stamps by the camera's clock until it knows how that and the wall clock lie."""
    wall = rs.timestamp_domain.global_time
    stamps = [(1, 40.0, None), (2, 80.0, None), (3, 1.79e12, wall), (4, 1.79e12 + 40.0, wall)]
    path = recorded(tmp_path, 0.001, stamps)
    with open_camera("realsense", str(path)) as camera:
        assert [frame.seq for frame in read_all(camera)] == [1, 2, 3, 4]
    with open_camera("realsense", str(path), recorded_times=True) as camera:
        assert [frame.t_ns for frame in read_all(camera)] == [round(stamp * 1e6) for _, stamp, _ in stamps]


@needs_realsense
def test_a_looped_recording_goes_on_counting(recording):
    path, _ = recording
    with open_camera("realsense", str(path), fps=500, loop=True) as camera:
        frames = [camera.read(5.0) for _ in range(12)]
    assert [frame.seq for frame in frames] == [1, 2, 3, 5, 6, 7, 8, 9, 11, 12, 13, 14]
    assert np.array_equal(frames[5].depth, noise(1))
    assert min(np.diff([frame.t_ns for frame in frames])) >= 2_000_000


@needs_realsense
def test_a_loop_over_a_camera_that_counted_anew_has_no_number_below_its_own(tmp_path):
    path = recorded(tmp_path, 0.001, [(number, 1000.0 + 40 * k, None) for k, number in enumerate([90, 91, 3])])
    with open_camera("realsense", str(path), fps=0, loop=True) as camera:
        assert [camera.read(5.0).seq for _ in range(7)] == [90, 91, 3, 91, 92, 4, 92]


@needs_realsense
@pytest.mark.parametrize("suffix", [".bag", ".db3"])
def test_a_broken_or_missing_file_is_one_line(tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    with pytest.raises(CameraError, match=r"no such recording$"):
        open_camera("realsense", str(path))
    path.write_bytes(b"not a recording")
    with pytest.raises(
        CameraError, match=rf"broken{suffix} is not a librealsense recording that can be read: "
    ) as seen:
        open_camera("realsense", str(path))
    assert "\n" not in str(seen.value)


@needs_realsense
def test_no_camera_is_one_line():
    if list_cameras():
        pytest.skip("a RealSense camera is connected")
    with pytest.raises(CameraError, match=r"^no RealSense camera is connected; check the cable, the USB 3 port and"):
        open_camera("realsense")


@needs_realsense
def test_options_of_recordings_are_refused_for_cameras_and_the_other_way_round(recording):
    with pytest.raises(CameraError, match=r"^--fps and --loop are for recordings"):
        open_camera("realsense", "817612070001", loop=True)
    with pytest.raises(CameraError, match=r"^--mode is for cameras; .* has the mode it was recorded in$"):
        open_camera("realsense", str(recording[0]), mode="640x480@30")


def test_a_serial_number_is_a_camera_also_where_a_folder_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "817612070001").mkdir()
    monkeypatch.chdir(tmp_path)
    assert check_camera("817612070001", mode="640x480@30") is None


def test_a_mode_is_read_and_a_wrong_one_is_one_line():
    assert parse_mode("848x480@90") == Mode(848, 480, 90)
    for text in ("848x480", "848x480@", "848*480@90", "fast"):
        with pytest.raises(CameraError, match=r"expected WIDTHxHEIGHT@FPS, such as 848x480@90, 848x480@60"):
            parse_mode(text)
    for text in ("20000x20000@9", "848x480@301"):
        with pytest.raises(CameraError, match=rf"^mode {text}: more than 4000000 pixels or 300 Hz are not possible$"):
            parse_mode(text)


def test_a_missing_pyrealsense2_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    with pytest.raises(CameraError, match=r"pip install '\.\[realsense\]' in edge-hand's folder$"):
        open_camera("realsense")


@needs_realsense
def test_a_missing_libusb_says_what_to_install():
    probe = "import ctypes; ctypes.CDLL('libusb-1.0.so.0')"
    if subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode == 0:
        pytest.skip("libusb-1.0 is installed on this system")
    program = (
        "import sys; sys.modules['libusb_package'] = None\n"
        "from edge_hand.edge.cameras import open_camera, CameraError\n"
        "try: open_camera('realsense')\n"
        "except CameraError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    assert said == "pyrealsense2 needs libusb-1.0: apt install libusb-1.0-0, or pip install libusb-package\n"


def test_the_backend_imports_no_sdk_before_a_camera_is_opened():
    program = "import sys, edge_hand.edge.cameras.realsense; print({'pyrealsense2', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


@needs_realsense
def test_brown_conrady_and_undistorted_models_are_ours():
    assert intrinsics_from_realsense(rs, librealsense_intrinsics(INTRINSICS)) == INTRINSICS
    pinhole = Intrinsics(WIDTH, HEIGHT, 476.0, 477.0, 313.5, 242.75)
    for model in ("none", "brown_conrady", "inverse_brown_conrady", "modified_brown_conrady"):
        assert intrinsics_from_realsense(rs, librealsense_intrinsics(pinhole, getattr(rs.distortion, model))) == pinhole


@needs_realsense
def test_the_distortion_of_an_sr300_is_fitted_to_librealsense_within_a_quarter_of_a_pixel():
    coefficients = (0.0981390, 0.2033020, 0.0031004, 0.0026419, -0.1123854)  # librealsense issue 10838
    ours = Intrinsics(WIDTH, HEIGHT, 472.95, 472.95, 310.21, 245.26, coefficients)
    given = librealsense_intrinsics(ours, rs.distortion.inverse_brown_conrady)
    fitted = intrinsics_from_realsense(rs, given)
    pixels = np.random.default_rng(1).uniform((0, 0), (WIDTH - 1, HEIGHT - 1), (200, 2))
    theirs = np.array([rs.rs2_deproject_pixel_to_point(given, list(pixel), 1.0) for pixel in pixels])
    assert fitted.is_distorted
    assert np.abs(fitted.rays(pixels) - theirs).max() * 473 < 0.25


@needs_realsense
def test_a_distortion_librealsense_cannot_deproject_is_refused():
    ours = Intrinsics(WIDTH, HEIGHT, 476.0, 477.0, 313.5, 242.75, (0.13, 0.11, 0.004, 0.003, 0.05))
    with pytest.raises(ValueError, match=r"distortion .*modified_brown_conrady .* is off our model by \d+\.\d px"):
        intrinsics_from_realsense(rs, librealsense_intrinsics(ours, rs.distortion.modified_brown_conrady))
