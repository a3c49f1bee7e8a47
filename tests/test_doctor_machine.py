"""The doctor on the machine itself: boards, cameras and who may open them, clocks; made of files."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edge_hand.edge.cameras import CameraError, realsense
from edge_hand.edge.machine import board, doctor, doctor_machine
from edge_hand.edge.machine.finding import Finding
from edge_hand.edge.machine.usb import usb_cameras
from edge_hand.edge.service.units import SOURCE
from test_doctor import of, one, plug_in, put

# --- what a board is and takes


def test_a_jetson_is_known_by_its_device_tree(tmp_path: Path) -> None:
    put(tmp_path, {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/cpuinfo": "processor : 0\nCPU part\t: 0xd42\n\nprocessor : 1\nCPU part\t: 0xd42\n",
        "var/lib/nvpmodel/status": "pmode:0001",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n...\n< POWER_MODEL ID=1 NAME=7W >\n",
    })  # fmt: skip
    assert board.board_name(tmp_path) == "NVIDIA Jetson Orin Nano Developer Kit"
    assert board.cpu_name(tmp_path) == "Arm parts 0xd42"
    assert board.power_mode(tmp_path) == "7W"


def test_a_pc_is_known_by_its_maker_and_silent_names_are_left_out(tmp_path: Path) -> None:
    dmi = "sys/class/dmi/id"
    put(tmp_path, {
        f"{dmi}/sys_vendor": "LENOVO\n", f"{dmi}/product_name": "To Be Filled By O.E.M.\n",
        "proc/cpuinfo": "model name\t: Some CPU @ 2 GHz\n", "proc/meminfo": "MemTotal:  8388608 kB\n",
        "sys/firmware/acpi/platform_profile": "balanced\n",
    })  # fmt: skip
    found = board.device(tmp_path)
    assert (found["board"], found["cpu"], found["power_mode"]) == ("LENOVO", "Some CPU @ 2 GHz", "balanced")
    assert found["memory_mb"] == 8192


def test_a_jetson_s_watts_are_those_that_go_into_the_module(tmp_path: Path) -> None:
    chip = "sys/class/hwmon/hwmon3"
    put(tmp_path, {
        f"{chip}/name": "ina3221\n", f"{chip}/in1_label": "VDD_IN\n", f"{chip}/in1_input": "5000\n",
        f"{chip}/curr1_input": "1400\n", f"{chip}/in2_label": "VDD_CPU\n", f"{chip}/in2_input": "5000\n",
        f"{chip}/curr2_input": "200\n",
    })  # fmt: skip
    assert board.power(tmp_path) == (7.0, "VDD_IN")


def ina3221(number: int, *rails: tuple[str, int, int]) -> dict[str, str]:
    """The files of a chip with these rails: label, mV, mA."""
    chip = f"sys/class/hwmon/hwmon{number}"
    files = {f"{chip}/name": "ina3221\n"}
    for n, (label, mv, ma) in enumerate(rails, 1):
        files |= {f"{chip}/in{n}_label": label, f"{chip}/in{n}_input": str(mv), f"{chip}/curr{n}_input": str(ma)}
    return files


def test_an_agx_orin_s_watts_are_the_sum_of_its_rails_and_no_rail_counts_twice(tmp_path: Path) -> None:
    rails = ("VDD_GPU_SOC", 19000, 1200), ("VDD_CPU_CV", 19000, 500), ("VIN_SYS_5V0", 5000, 900)
    put(tmp_path, ina3221(3, *rails))
    put(tmp_path, ina3221(4, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 200), ("NC", 0, 0)))
    assert board.power(tmp_path) == (36.8, "VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0")


def test_a_thor_s_watts_are_those_at_its_input(tmp_path: Path) -> None:
    put(tmp_path, ina3221(0, ("VDD_GPU", 19000, 1200), ("VDD_CPU_SOC_MSS", 19000, 500), ("VIN_SYS_5V0", 5000, 900)))
    put(tmp_path, {"sys/class/hwmon/hwmon1/name": "ina238\n", "sys/class/hwmon/hwmon1/power1_input": "45000000\n"})
    assert board.power(tmp_path) == (45.0, "VIN")


def test_an_older_jetson_s_watts_are_read_too(tmp_path: Path) -> None:
    chip = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    put(tmp_path, {f"{chip}/rail_name_0": "POM_5V_IN\n", f"{chip}/in_power0_input": "2500\n"})
    assert board.power(tmp_path) == (2.5, "POM_5V_IN")


def test_a_pc_s_watts_come_from_its_energy_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = "sys/class/powercap/intel-rapl:0"
    put(tmp_path, {f"{zone}/energy_uj": "999000000", f"{zone}/max_energy_range_uj": "1000000000",
                   f"{zone}/name": "package-0\n", "sys/class/powercap/intel-rapl:0:0/energy_uj": "5",
                   "sys/class/powercap/intel-rapl:0:0/name": "core",
                   "sys/class/powercap/intel-rapl:1/energy_uj": "7", "sys/class/powercap/intel-rapl:1/name": "psys",
                   })  # fmt: skip

    def half_a_second(seconds: float) -> None:
        (tmp_path / zone / "energy_uj").write_text("4000000")  # 5 J on, it has wrapped

    now = iter([10.0, 10.5])
    monkeypatch.setattr(board.time, "sleep", half_a_second)
    monkeypatch.setattr(board.time, "perf_counter", lambda: next(now))
    assert board.power(tmp_path) == (10.0, "CPU package (RAPL)")


def test_a_board_without_a_sensor_says_so(tmp_path: Path) -> None:
    assert board.power(tmp_path) == (None, "this board has no power sensor")


# --- cameras


def test_a_well_connected_camera_is_well(tmp_path: Path) -> None:
    plug_in(tmp_path)
    (camera,) = usb_cameras(tmp_path)
    assert (camera.name, camera.mbps, camera.saving) == ("Intel(R) RealSense(TM) 435", 5000, False)
    assert camera.node == tmp_path / "dev/bus/usb/002/005"
    assert Finding("ok", f"camera {camera.name}", "USB 3, 5000 Mb/s") in doctor_machine.cameras(tmp_path)


def test_a_camera_is_known_by_its_number_where_it_has_no_name(tmp_path: Path) -> None:
    assert [camera.name for camera in usb_cameras(plug_in(tmp_path, product=""))] == ["camera"]


def test_a_usb_2_link_and_power_saving_are_found(tmp_path: Path) -> None:
    slow, asleep = of(doctor_machine.cameras(plug_in(tmp_path, speed="480", control="auto")), "camera")
    assert slow.level == "warn" and "USB 2 (480 Mb/s)" in slow.said and "cable" in slow.mend
    assert asleep.level == "warn" and "udevadm" in asleep.mend


def test_no_camera_is_no_failure(tmp_path: Path) -> None:
    (found,) = doctor_machine.cameras(tmp_path)
    assert found.level == "warn" and "--camera synthetic" in found.mend


def test_a_plugged_in_camera_without_its_sdk_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    found = doctor_machine.cameras(plug_in(tmp_path))[0]
    assert (found.level, found.mend) == ("bad", "pip install '.[realsense]' in edge-hand's folder")


def test_a_camera_that_another_program_uses_is_no_broken_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(said: str) -> Callable[[], Any]:
        def refused() -> Any:
            raise CameraError(said)

        return refused

    monkeypatch.setattr(doctor_machine, "import_realsense", lambda: None)
    for listing, said in (
        (refuse("no RealSense camera can be opened; is another program using it?"), "is another program using it?"),
        (lambda: ["Intel RealSense D435"], "it can open 1 of 2 cameras"),
    ):
        monkeypatch.setattr(realsense, "list_cameras", listing)
        (found,) = doctor_machine._sdk(2)
        assert found.level == "warn" and found.said.endswith(said) and found.mend.startswith("stop the program")
    monkeypatch.setattr(doctor_machine, "import_realsense", refuse("pyrealsense2 cannot be imported"))
    (found,) = doctor_machine._sdk(2)
    assert (found.level, found.mend) == ("bad", "pip install --force-reinstall pyrealsense2")


def test_udev_rules_are_compared_with_ours(tmp_path: Path) -> None:
    assert one(doctor_machine.rights(tmp_path), "udev").level == "warn"
    rules = put(tmp_path, {doctor_machine.RULES: "older"}) / doctor_machine.RULES
    assert "another version" in one(doctor_machine.rights(tmp_path), "udev").said
    shutil.copy(SOURCE / "70-edge-hand.rules", rules)
    assert one(doctor_machine.rights(tmp_path), "udev").level == "ok"
    old = put(tmp_path, {"etc/udev/rules.d/99-edge-hand.rules": "older"}) / "etc/udev/rules.d/99-edge-hand.rules"
    told, _ = of(doctor_machine.rights(tmp_path), "udev")
    assert (told.level, told.mend) == ("warn", f"sudo rm {old}")


@pytest.mark.parametrize("folder", ["etc", "lib", "usr/lib"])
def test_librealsense_s_own_rules_are_found_wherever_a_package_puts_them(folder: str, tmp_path: Path) -> None:
    name = "60-librealsense2-udev-rules.rules"
    put(tmp_path, {f"{folder}/udev/rules.d/{name}": ""})
    said = f"librealsense's rules are in place ({name})"
    assert one(doctor_machine.rights(tmp_path), "udev") == Finding("ok", "udev", said)


def test_what_puts_the_udev_rules_in_place_needs_no_program_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under sudo `edge-hand` may not be found: what is printed into a file then empties it."""
    folder = tmp_path / "my hand"
    shutil.copytree(SOURCE, folder)
    monkeypatch.setattr(doctor_machine, "SOURCE", folder)
    words = shlex.split(one(doctor_machine.rights(tmp_path), "udev").mend)
    rules = folder / Path(doctor_machine.RULES).name
    assert words[:6] == ["sudo", "install", "-m", "644", str(rules), f"/{doctor_machine.RULES}"]
    assert rules.exists() and "|" not in words and words.count("&&") == 2


def test_a_user_outside_the_camera_s_groups_is_told_how_to_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, {"etc/group": "video:x:44444:\nplugdev:x:55555:someone\n"})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = one(doctor_machine.rights(tmp_path), "groups")
    assert found.level == "warn" and "usermod -aG video,plugdev" in found.mend


# --- speed


def test_a_held_back_jetson_is_told_what_frees_it(tmp_path: Path) -> None:
    put(tmp_path, {
        "proc/device-tree/compatible": "nvidia,tegra234", "var/lib/nvpmodel/status": "pmode:0001",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "sys/class/thermal/thermal_zone0/temp": "91000\n",
    })  # fmt: skip
    found = doctor_machine.clocks(tmp_path)
    assert [one(found, about).mend for about in ("power mode", "clocks")] == [
        "sudo nvpmodel -m 0",
        "sudo jetson_clocks",
    ]
    assert one(found, "temperature").said.startswith("91 C")


@pytest.mark.parametrize(
    ("names", "fastest"),
    [
        ("15W 25W MAXN_SUPER", 2),  # Orin Nano, JetPack 6.2
        ("MAXN_SUPER 10W 15W 25W 40W", 0),  # Orin NX, the same
        ("MODE_15W MAXN MAXN_SUPER", 2),
        ("MODE_10W MAXN", 1),
        ("15W 7W", 0),  # Orin Nano before
        ("MODE_15W_2CORE MODE_15W_6CORE MODE_10W_4CORE MODE_10W_DESKTOP MODE_20W_4CORE MODE_20W_6CORE", 5),  # Xavier NX
    ],
)
def test_a_jetson_s_fastest_mode_goes_by_its_name(names: str, fastest: int, tmp_path: Path) -> None:
    modes = [f"< POWER_MODEL ID={n} NAME={name} >\nCPU_ONLINE CORE_0 1\n" for n, name in enumerate(names.split())]
    put(tmp_path, {"etc/nvpmodel.conf": "".join(modes), "var/lib/nvpmodel/status": f"pmode:{fastest:04}"})
    assert one(doctor_machine.clocks(tmp_path), "power mode") == Finding("ok", "power mode", names.split()[fastest])
    put(tmp_path, {"var/lib/nvpmodel/status": f"pmode:{(fastest + 1) % 3:04}"})
    held = one(doctor_machine.clocks(tmp_path), "power mode")
    assert (held.level, held.mend) == ("warn", f"sudo nvpmodel -m {fastest}")


def test_where_power_modes_have_no_names_none_is_advised(tmp_path: Path) -> None:
    put(tmp_path, {"var/lib/nvpmodel/status": "pmode:0001"})
    assert one(doctor_machine.clocks(tmp_path), "power mode") == Finding("ok", "power mode", "nvpmodel 1")


def test_full_clocks_are_well(tmp_path: Path) -> None:
    put(tmp_path, {f"sys/devices/system/cpu/cpu{k}/cpufreq/scaling_governor": "performance\n" for k in range(4)})
    assert one(doctor_machine.clocks(tmp_path), "clocks") == Finding("ok", "clocks", "performance on 4 cores")
