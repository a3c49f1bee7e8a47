"""What machine this is and how it is set: board, CPU, power mode, clocks, and watts where the board tells.

Every function reads files under a root, / or a copy of one, so that another machine's can be looked at.
"""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path("/")
# Vendors and models that say nothing.
NO_NAMES = {"", "default string", "to be filled by o.e.m.", "system product name", "not specified", "none", "unknown"}
NVIDIA = "0x10de"
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")  # of a Jetson: what goes into the module, all in all
SYSTEM_RAIL, ITS_MEMORY = "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"  # of an AGX Orin: the second is a part of the first


class Power(NamedTuple):
    """watts now, and which sensor says so; None and why not."""

    watts: float | None
    source: str


def read(path: Path) -> str:
    """The text of a small file, without its end; "" if it cannot be read."""
    try:
        return path.read_bytes()[:65536].decode(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def cpu_name(root: Path = ROOT) -> str:
    """The CPU's model. On Arm, where the kernel gives numbers, its parts' numbers."""
    text = read(root / "proc/cpuinfo")
    for field in ("model name", "Model", "Hardware"):
        found = re.search(rf"^{field}\s*:\s*(\S.*)$", text, re.MULTILINE)
        if found:
            return found[1].strip()
    parts = sorted(set(re.findall(r"^CPU part\s*:\s*(\S+)$", text, re.MULTILINE)))
    return f"Arm parts {', '.join(parts)}" if parts else platform.processor() or platform.machine()


def board_name(root: Path = ROOT) -> str:
    """The device tree's model ("NVIDIA Jetson Orin Nano ..."), else the maker's name of a PC; "" if it has none."""
    tree = read(root / "proc/device-tree/model")
    if tree:
        return tree
    dmi = root / "sys/class/dmi/id"
    names = [read(dmi / "sys_vendor"), read(dmi / "product_name")]
    return " ".join(name for name in names if name.lower() not in NO_NAMES)


def has_nvidia(root: Path = ROOT) -> bool:
    """Whether there is an NVIDIA GPU, on PCI or in the device tree, whatever the driver."""
    pci = (root / "sys/bus/pci/devices").glob("*")
    cards = [slot for slot in pci if read(slot / "vendor") == NVIDIA and read(slot / "class").startswith("0x03")]
    return bool(cards) or is_jetson(root)


def is_jetson(root: Path = ROOT) -> bool:
    return "nvidia,tegra" in read(root / "proc/device-tree/compatible")


def governors(root: Path = ROOT) -> dict[str, int]:
    """How many cores run under which frequency governor; {} where the kernel leaves clocks to the hardware or host."""
    counts: dict[str, int] = {}
    for file in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")):
        name = read(file)
        if name:
            counts[name] = counts.get(name, 0) + 1
    return counts


def clocks_mhz(root: Path = ROOT) -> tuple[int, int] | None:
    """(now, most) MHz of the first core; None where the kernel does not say."""
    folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
    now, most = read(folder / "scaling_cur_freq"), read(folder / "cpuinfo_max_freq")
    return (int(now) // 1000, int(most) // 1000) if now.isdecimal() and most.isdecimal() else None


def power_mode(root: Path = ROOT) -> str:
    """A Jetson's nvpmodel ("MAXN", "15W"), else a PC's platform profile, else the CPU's governor; "" if none says."""
    mode = nvpmodel(root)
    if mode is not None:
        return nvpmodels(root).get(mode, f"nvpmodel {mode}")
    profile = read(root / "sys/firmware/acpi/platform_profile")
    return profile or ", ".join(governors(root))


def nvpmodel(root: Path = ROOT) -> int | None:
    """The number of the power mode that a Jetson is in; None where there is no such thing."""
    mode = re.search(r"pmode:(\d+)", read(root / "var/lib/nvpmodel/status"))
    return int(mode[1]) if mode else None


def fastest_nvpmodel(root: Path = ROOT) -> int | None:
    """The number of a Jetson's power mode without a limit: on an Orin Nano it is 2, MAXN_SUPER, and 0 is 15W. If none
    is, that of most watts and cores: on a Xavier NX 8, MODE_20W_6CORE. None where the names do not say."""
    modes = nvpmodels(root)
    full = next((n for name in ("MAXN_SUPER", "MAXN") for n in modes if modes[n].startswith(name)), None)
    limits = {n: re.search(r"(\d+)W(?:_(\d+)CORE)?", name) for n, name in modes.items()}
    said = {n: (int(limit[1]), int(limit[2] or 0)) for n, limit in limits.items() if limit}
    return full if full is not None or not said else max(said, key=said.__getitem__)


def nvpmodels(root: Path = ROOT) -> dict[int, str]:
    """The names of a Jetson's power modes by their numbers."""
    lines = re.findall(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", read(root / "etc/nvpmodel.conf"), re.MULTILINE)
    return {int(number): name for number, name in lines}


def power(root: Path = ROOT, seconds: float = 0.5) -> Power:
    """Watts that the board takes: a Jetson's INA sensors, or Intel's and AMD's energy counter over some seconds."""
    rails = ina_rails(root)
    for name in TOTAL_RAILS:
        if name in rails:
            return Power(rails[name], name)
    parts = {name: watts for name, watts in rails.items() if name != "NC"}  # not connected
    if SYSTEM_RAIL in parts:
        parts.pop(ITS_MEMORY, None)
    if parts:
        return Power(round(sum(parts.values()), 3), " + ".join(sorted(parts)))
    zones = (root / "sys/class/powercap").glob("intel-rapl:*")
    packages = sorted(zone for zone in zones if read(zone / "name").startswith("package"))  # not psys, which holds them
    before = [read(zone / "energy_uj") for zone in packages]
    if not packages or not all(text.isdecimal() for text in before):
        hidden = any((zone / "energy_uj").exists() for zone in packages)
        return Power(
            None, "the energy counter is readable by root only" if hidden else "this board has no power sensor"
        )
    begun = time.perf_counter()
    time.sleep(seconds)
    passed = time.perf_counter() - begun
    joules = 0.0
    for zone, then in zip(packages, before, strict=True):
        now, wrap = read(zone / "energy_uj"), read(zone / "max_energy_range_uj")
        used = int(now) - int(then) if now.isdecimal() else 0
        joules += (used + (int(wrap) if used < 0 and wrap.isdecimal() else 0)) * 1e-6
    return Power(round(joules / passed, 3), "CPU package (RAPL)")


def ina_rails(root: Path = ROOT) -> dict[str, float]:
    """Watts of every rail that an INA3221, INA219 or INA238 measures, by its label: volts times amperes, or power
    itself. The INA238 is at a Thor's input."""
    rails: dict[str, float] = {}
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        kind = read(chip / "name")
        if not kind.startswith("ina"):
            continue
        for label in sorted(chip.glob("in[0-9]*_label")):
            number = label.name[2 : -len("_label")]
            mv, ma = read(chip / f"in{number}_input"), read(chip / f"curr{number}_input")
            if mv.isdecimal() and ma.isdecimal():
                rails[read(label)] = round(int(mv) * int(ma) * 1e-6, 3)
        micro = read(chip / "power1_input")
        if micro.isdecimal() and (kind == "ina238" or not rails):
            rails["VIN" if kind == "ina238" else kind] = round(int(micro) * 1e-6, 3)
    for folder in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*")):  # JetPack 4
        for label in sorted(folder.glob("rail_name_*")):
            mw = read(folder / f"in_power{label.name[len('rail_name_') :]}_input")
            if mw.isdecimal():
                rails[read(label)] = round(int(mw) * 1e-3, 3)
    return rails


def device(root: Path = ROOT) -> dict[str, Any]:
    """What this machine is, for tables."""
    return {
        "cpu": cpu_name(root),
        "cores": os.cpu_count() or 1,
        "cores_allowed": len(os.sched_getaffinity(0)),
        "memory_mb": int((re.search(r"MemTotal:\s*(\d+)", read(root / "proc/meminfo")) or [0, 0])[1]) // 1024,
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "board": board_name(root),
        "power_mode": power_mode(root),
        "governors": governors(root),
        "clock_mhz": list(clocks_mhz(root) or ()),
        "release": (read(root / "etc/nv_tegra_release").splitlines() or [""])[0][:120],
    }
