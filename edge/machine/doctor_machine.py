"""What of the machine itself keeps hands from being tracked: cameras, the rights to open them, clocks, heat."""

from __future__ import annotations

import importlib.util
import os
import shlex
from pathlib import Path

from ...hand.extras import to_get
from ..cameras import CameraError
from ..librealsense import import_realsense
from ..service.units import OLD_RULES, RULES, SOURCE
from . import board
from .board import ROOT, is_jetson, read
from .finding import Finding
from .usb import usb_cameras

USB3_MBPS = 5000
HOT_C = 85.0


def machine(root: Path = ROOT) -> list[Finding]:
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    what = ", ".join(part for part in (board.board_name(root), board.cpu_name(root), f"{cores} cores") if part)
    if load > cores + 0.5:
        return [Finding("warn", "machine", f"{what}; busy: {load:.1f} programs want to run", "top: see what they are")]
    return [Finding("ok", "machine", what)]


# --- cameras


def cameras(root: Path = ROOT) -> list[Finding]:
    """What is plugged in, how fast its link is, and whether this user and the SDK can open it."""
    plugged = usb_cameras(root)
    has_sdk = importlib.util.find_spec("pyrealsense2") is not None
    if not plugged:
        return [
            Finding(
                "warn", "camera", "no RealSense is on USB", "plug one in; without: edge-hand run --camera synthetic"
            )
        ]
    found = []
    for camera in plugged:
        about = f"camera {camera.name}"
        if not has_sdk:
            found.append(Finding("bad", about, "pyrealsense2 is not installed", to_get("realsense")))
        if camera.node.exists() and not os.access(camera.node, os.R_OK | os.W_OK):
            found.append(Finding("bad", about, f"this user may not open {camera.node}", _udev_mend()))
        if camera.mbps < USB3_MBPS:
            said = f"its link is USB 2 ({camera.mbps} Mb/s): the fast modes are missing"
            found.append(Finding("warn", about, said, "use a USB 3 port and the cable that came with it"))
        else:
            found.append(Finding("ok", about, f"USB 3, {camera.mbps} Mb/s"))
        if camera.saving:
            said = "USB's power saving may put it to sleep"
            found.append(Finding("warn", about, said, _udev_mend()))
    if has_sdk and root == ROOT:
        found += _sdk(len(plugged))
    return found


def _sdk(plugged: int) -> list[Finding]:
    """What librealsense itself says of the cameras."""
    from ..cameras.realsense import list_cameras

    try:
        import_realsense()
    except CameraError as error:
        return [Finding("bad", "librealsense", str(error), "pip install --force-reinstall pyrealsense2")]
    try:
        listed = list_cameras()
        said = f"it can open {len(listed)} of {plugged} cameras"
    except CameraError as error:
        listed, said = [], str(error)
    if len(listed) < plugged:
        mend = "stop the program that uses it (one of ours: edge-hand status), or plug it in anew"
        return [Finding("warn", "librealsense", said, mend)]
    return [Finding("ok", "librealsense", str(info)) for info in listed]


# --- rights


def rights(root: Path = ROOT) -> list[Finding]:
    """The udev rules, and the groups they give the cameras to."""
    found = []
    rules = root / RULES
    ours = (SOURCE / "70-edge-hand.rules").read_text().strip()
    old = rules.with_name(OLD_RULES)
    if old.exists():
        found.append(Finding("warn", "udev", f"{old} is an older version's and comes too late", f"sudo rm {old}"))
    folders = ("etc", "usr/lib", "lib")  # the last two may be one
    others = sorted({path.name for top in folders for path in (root / top / "udev/rules.d").glob("*realsense*")})
    if read(rules) == ours:
        found.append(Finding("ok", "udev", f"{rules} is in place"))
    elif rules.exists():
        found.append(Finding("warn", "udev", f"{rules} is another version's", _udev_mend()))
    elif others:
        found.append(Finding("ok", "udev", f"librealsense's rules are in place ({', '.join(others)})"))
    else:
        found.append(Finding("warn", "udev", "no rules: cameras belong to root, and may fall asleep", _udev_mend()))
    if os.geteuid() == 0:
        return [*found, Finding("ok", "groups", "this is root, who may open everything")]
    wanted = _groups(root, ("plugdev", "video"))
    missing = [name for name, number in wanted.items() if number not in (*os.getgroups(), os.getegid())]
    if missing:
        mend = f"sudo usermod -aG {','.join(missing)} {os.environ.get('USER', '$USER')}, then log in again"
        return [*found, Finding("warn", "groups", f"this user is not in {', '.join(missing)}", mend)]
    return [*found, Finding("ok", "groups", f"in {', '.join(wanted) or 'all that there are'}")]


def _groups(root: Path, names: tuple[str, ...]) -> dict[str, int]:
    lines = (line.split(":") for line in read(root / "etc/group").splitlines())
    return {fields[0]: int(fields[2]) for fields in lines if len(fields) > 2 and fields[0] in names}


def _udev_mend() -> str:
    ours = shlex.quote(str(SOURCE / "70-edge-hand.rules"))
    return f"sudo install -m 644 {ours} /{RULES} && sudo udevadm control --reload && sudo udevadm trigger"


# --- speed


def clocks(root: Path = ROOT) -> list[Finding]:
    """Power mode, frequency governor and temperature."""
    found = []
    mode, governors = board.power_mode(root), board.governors(root)
    jetson = is_jetson(root)
    fastest = board.fastest_nvpmodel(root)
    if fastest is not None and board.nvpmodel(root) not in (None, fastest):
        said = f"nvpmodel {mode}: cores or clocks are held back"
        found.append(Finding("warn", "power mode", said, f"sudo nvpmodel -m {fastest}"))
    elif mode:
        found.append(Finding("ok", "power mode", mode))
    slow = [name for name in governors if name in ("powersave", "conservative")]
    driver = read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver")
    if slow and not (driver in ("intel_pstate", "amd-pstate-epp") and slow == ["powersave"]):  # there it is the usual
        mend = "sudo jetson_clocks" if jetson else (
            "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        )  # fmt: skip
        found.append(Finding("warn", "clocks", f"governor {slow[0]}: each frame begins at a low clock", mend))
    elif governors:
        found.append(Finding("ok", "clocks", ", ".join(f"{name} on {n} cores" for name, n in governors.items())))
    else:
        found.append(Finding("ok", "clocks", "set by the hardware or the host"))
    hottest = max((int(t) for t in _temperatures(root)), default=0) / 1000
    if hottest >= HOT_C:
        found.append(
            Finding("warn", "temperature", f"{hottest:.0f} C: clocks will fall", "cool it: a fan, or more air")
        )
    return found


def _temperatures(root: Path) -> list[str]:
    zones = (read(zone / "temp") for zone in (root / "sys/class/thermal").glob("thermal_zone*"))
    return [text for text in zones if text.isdecimal()]
