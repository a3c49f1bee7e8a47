"""The RealSense cameras on USB as the kernel sees them, before any SDK does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ..service.units import SOURCE
from .board import ROOT, read

INTEL = "8086"


class UsbCamera(NamedTuple):
    """name is the product's; mbps the link's speed; node its file; saving: the kernel may put it to sleep."""

    name: str
    mbps: int
    node: Path
    saving: bool


def usb_cameras(root: Path = ROOT) -> list[UsbCamera]:
    """The RealSense cameras on USB."""
    found = []
    for folder in sorted((root / "sys/bus/usb/devices").glob("*")):
        product = read(folder / "product")
        if read(folder / "idVendor") != INTEL or not _is_camera(product, read(folder / "idProduct")):
            continue
        speed, bus, number = (read(folder / name) for name in ("speed", "busnum", "devnum"))
        node = root / f"dev/bus/usb/{int(bus or 0):03}/{int(number or 0):03}"
        mbps = int(float(speed)) if re.fullmatch(r"[\d.]+", speed) else 0
        found.append(UsbCamera(product or "camera", mbps, node, read(folder / "power/control") == "auto"))
    return found


def _is_camera(product: str, number: str) -> bool:
    """By its name, or by the numbers in our udev rules."""
    numbers = re.findall(r"ATTR\{idProduct\}==\"([0-9a-f|]+)\"", (SOURCE / "70-edge-hand.rules").read_text())
    return "RealSense" in product or number in "|".join(numbers).split("|")
