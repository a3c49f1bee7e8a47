"""librealsense's Python binding: importing it where libusb is missing, its devices one by one, its intrinsics as ours,
its errors in a line."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from ..hand.camera import Intrinsics
from ..hand.extras import to_get
from .cameras import CameraError

DISTORTION_TOLERANCE_PX = 0.5
LIBREALSENSE = (".bag", ".db3")  # its recordings

T = TypeVar("T")


def import_realsense() -> Any:
    """pyrealsense2, with libusb from libusb-package if the system has none. Raises CameraError."""
    try:
        import pyrealsense2
    except ImportError as error:
        if "libusb" not in str(error):
            raise CameraError(f"pyrealsense2 cannot be imported ({reason(error)}); {to_get('realsense')}") from error
        try:
            import libusb_package

            ctypes.CDLL(str(libusb_package.get_library_path()), mode=ctypes.RTLD_GLOBAL)
            import pyrealsense2
        except (ImportError, OSError):
            raise CameraError(
                "pyrealsense2 needs libusb-1.0: apt install libusb-1.0-0, or pip install libusb-package"
            ) from error
    return pyrealsense2


def each_device(rs: Any, use: Callable[[Any], T], faults: list[str]) -> Iterator[T]:
    """What `use` makes of each connected device; why one cannot be opened or used is added to faults."""
    listed = rs.context().query_devices()
    for k in range(len(listed)):  # not `for device in listed`: the first that cannot be opened would end it
        try:
            made = use(listed[k])
        except RuntimeError as error:
            faults.append(reason(error))
        else:
            yield made


def find_device(rs: Any, serial: str | None) -> Any:
    """The connected device with this serial number, or the only one. Raises CameraError."""
    devices, faults = dict[str, Any](), list[str]()
    number = rs.camera_info.serial_number
    for found, device in each_device(rs, lambda device: (device_info(device, number), device), faults):
        if found == serial:
            return device
        devices[found] = device
    if not devices and not faults:
        raise CameraError("no RealSense camera is connected; check the cable, the USB 3 port and the udev rules")
    there = [*devices, *([f"{len(faults)} that cannot be opened ({faults[0]})"] if faults else [])]
    if serial is not None:
        raise CameraError(f"no RealSense camera {serial} is found; there is {', '.join(there)}")
    if len(devices) + len(faults) > 1:
        raise CameraError(
            f"several RealSense cameras are connected: choose one with --source; there is {', '.join(there)}"
        )
    if faults:
        raise in_use(faults)
    return next(iter(devices.values()))


def in_use(faults: list[str]) -> CameraError:
    """That none of the connected devices can be opened, from `each_device`'s reasons."""
    return CameraError(f"no RealSense camera can be opened ({faults[0]}); is another program using it?")


def device_info(device: Any, field: Any) -> str:
    """What a device says of itself, of rs.camera_info; empty if it does not."""
    return str(device.get_info(field)) if device.supports(field) else ""


def intrinsics_from_realsense(rs: Any, given: Any) -> Intrinsics:
    """A stream's intrinsics as ours.

    brown_conrady is our own model. D400 depth is rectified: all coefficients are 0, whatever the model's name. For
    another model with coefficients (SR300 depth: inverse_brown_conrady) ours is fitted to librealsense's own
    deprojection over the image, and refused (ValueError) if it is off by more than DISTORTION_TOLERANCE_PX.
    """
    pinhole = Intrinsics(given.width, given.height, given.fx, given.fy, given.ppx, given.ppy)
    coefficients = tuple(float(c) for c in given.coeffs)
    if given.model == rs.distortion.none or not any(coefficients):
        return pinhole
    if given.model == rs.distortion.brown_conrady:
        return replace(pinhole, distortion=coefficients)  # type: ignore[arg-type]

    columns, rows = np.meshgrid(np.linspace(0, given.width - 1, 17), np.linspace(0, given.height - 1, 13))
    pixels = np.stack([columns.ravel(), rows.ravel()], -1)  # (221, 2) px
    rays = np.array([rs.rs2_deproject_pixel_to_point(given, list(pixel), 1.0) for pixel in pixels])  # (221, 3)
    back = np.array([rs.rs2_project_point_to_pixel(given, list(ray)) for ray in rays])  # (221, 2) px
    x, y = rays[:, 0], rays[:, 1]
    r2 = x * x + y * y
    # distort() is linear in k1, k2, p1, p2, k3
    a_x = np.stack([x * r2, x * r2**2, 2 * x * y, r2 + 2 * x * x, x * r2**3], -1)  # (221, 5)
    a_y = np.stack([y * r2, y * r2**2, r2 + 2 * y * y, 2 * x * y, y * r2**3], -1)
    distorted = pinhole.rays(pixels)[:, :2]
    b = np.concatenate([distorted[:, 0] - x, distorted[:, 1] - y])
    fitted = np.linalg.lstsq(np.concatenate([a_x, a_y]), b, rcond=None)[0]  # (5,)
    intrinsics = replace(pinhole, distortion=tuple(fitted.tolist()))
    off_px = max(np.abs(intrinsics.project(rays) - pixels).max(), np.abs(back - pixels).max())
    if not off_px <= DISTORTION_TOLERANCE_PX:
        raise ValueError(f"distortion {given.model} {list(coefficients)} is off our model by {off_px:.1f} px")
    return intrinsics


def reason(error: Exception) -> str:
    """librealsense's own words in one line, without its wrapping."""
    return " ".join(str(error).split()).rpartition("Reason: ")[2]
