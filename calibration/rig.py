"""The rig file: where the cameras of a work cell are, how sure that is, and what their clocks and depths are off by.

Metres, seconds, radians. `T_ref_cam` maps a camera's points into the reference camera's frame. A covariance is that
of a left perturbation [rotation, translation] in the reference frame: T_true = [Exp(w) | d] T. A time offset is added
to a camera's stamps to have them on the reference's clock. Depth is corrected as 1 / z_true = scale / z + offset: an
error of the stereo disparity is an offset of the inverse depth, not of the depth. The file is refused, not repaired.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..edge.cli.shell import CommandError
from ..hand.arrays import Array
from ..hand.camera import Intrinsics
from ..hand.extras import installed
from ..hand.fields import one_line
from ..hand.whole import read_json, refusal, write_json

Verdict = Literal["pass", "fail", "unverified"]

FORMAT = "edge-hand-rig"
VERSION = 1
CONVENTIONS = {
    "units": "m, s, rad, px; sigma_volume_mm in mm",
    "frame": "x right, y down, z forward, at the pinhole of the stream; pixel centres at integers",
    "T_ref_cam": "p_ref = T_ref_cam p_cam, 4x4, row by row",
    "covariance": "6x6 of [rotation, translation] in the reference frame: T_true = [Exp(w) | d] T_ref_cam",
    "time": "t_ref = t_cam + offset_s; drift_ppm is 0",
    "depth": "1 / z_true = scale / z + offset_per_m",
}


OWN = "own_intrinsics"  # the one entry that may be missing
MOST = 1e9  # of any number in an array: no metre, pixel or variance is as large
MOST_OFFSET_S = 1e10  # between clocks of which one believes it is 1970
MOST_OFFSET_PER_M = 0.1  # of inverse depth: 4 cm at 0.65 m, two pixels of disparity
NOT_NEGATIVE = {
    "sigma_s", "offset_sigma_per_m", "overlap", "loop_deg", "loop_mm", "rms", "sigma_volume_mm", "split_half_deg",
    "split_half_mm",
}  # fmt: skip


class RigError(CommandError):
    """A rig file cannot be used; one printable line, whatever stands in the file."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


CLOCK_SIGMA_S = 0.01  # of a live camera's clock that nobody measured


@dataclass(frozen=True)
class TimeOffset:
    offset_s: float = 0.0
    sigma_s: float = 0.0
    drift_ppm: float = 0.0  # any other value is refused


@dataclass(frozen=True)
class DepthCorrection:
    """1 / z_true = scale / z + offset_per_m (1/m); offset_sigma_per_m is None where it was not measured."""

    scale: float = 1.0
    offset_per_m: float = 0.0
    offset_sigma_per_m: float | None = None

    def apply(self, depth_m: Array) -> Array:
        """Depth (...) m as it should have been read; 0, no reading, stays 0, as what would be beyond infinity is."""
        depth_m = np.asarray(depth_m, np.float64)
        inverse = np.where(depth_m > 0, self.scale / np.where(depth_m > 0, depth_m, 1.0) + self.offset_per_m, 0.0)
        good = inverse > 0
        return np.where(good, 1 / np.where(good, inverse, 1.0), 0.0)


@dataclass(frozen=True, eq=False)
class RigCamera:
    serial: str
    stream: str
    intrinsics: Intrinsics
    T_ref_cam: Array  # (4, 4)
    covariance: Array  # (6, 6)
    time: TimeOffset = TimeOffset()
    depth: DepthCorrection = DepthCorrection()
    own_intrinsics: Intrinsics | None = None  # the camera's, where the board refined them

    def refined(self, points_m: Array) -> Array:
        """Points (..., 3) m of the camera's own intrinsics where the rig's have them: same pixel, same z."""
        if self.own_intrinsics is None:
            return points_m
        return self.intrinsics.deproject(self.own_intrinsics.project(points_m), points_m[..., 2])


@dataclass(frozen=True)
class RigPair:
    """Two cameras by serial: what they share, and how far two ways from one to the other are apart, if known."""

    a: str
    b: str
    overlap: int  # shared moments
    loop_deg: float | None
    loop_mm: float | None


@dataclass(frozen=True)
class Quality:
    """How it was found and how good it is; mm are root mean squares over the working volume."""

    method: str
    rms: dict[str, float] = field(default_factory=dict)
    volume_centre_m: tuple[float, float, float] = (0.0, 0.0, 0.65)
    volume_edge_m: float = 0.4
    sigma_volume_mm: dict[str, float] = field(default_factory=dict)
    split_half_deg: float | None = None
    split_half_mm: float | None = None
    verdict: Verdict = "unverified"
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Rig:
    """Cameras by place; the first is the reference, whose T_ref_cam is the identity."""

    name: str
    created_utc: str
    tool: str
    cameras: tuple[RigCamera, ...]
    pairs: tuple[RigPair, ...]
    quality: Quality

    def camera(self, serial: str, width: int, height: int) -> RigCamera:
        """A connected camera's entry. Raises RigError if the rig does not know it as it is."""
        known = {camera.serial: camera for camera in self.cameras}
        if serial not in known:
            raise RigError(f"rig {self.name}: no camera {serial}; it has {', '.join(known)}")
        camera = known[serial]
        size = camera.intrinsics.width, camera.intrinsics.height
        if size != (width, height):
            raise RigError(
                f"rig {self.name}: camera {serial} was calibrated at {size[0]}x{size[1]}, it runs at {width}x{height}"
            )
        return camera

    def check(self, serial: str, intrinsics: Intrinsics) -> RigCamera:
        """As `camera`, and the factory's intrinsics must still be those that the calibration began with."""
        camera = self.camera(serial, intrinsics.width, intrinsics.height)
        if intrinsics_hash(intrinsics) != intrinsics_hash(camera.own_intrinsics or camera.intrinsics):
            raise RigError(f"rig {self.name}: camera {serial} has other intrinsics now; calibrate again")
        return camera


def intrinsics_hash(intrinsics: Intrinsics) -> str:
    """Names the intrinsics; numbers to 9 digits, so that writing and reading does not change it."""
    k = intrinsics
    numbers = (k.width, k.height, k.fx, k.fy, k.cx, k.cy, *k.distortion)
    return "sha256:" + hashlib.sha256(" ".join(f"{float(n):.9g}" for n in numbers).encode()).hexdigest()[:32]


def save_rig(rig: Rig, path: Path) -> None:
    """Write the file whole or not at all. Raises RigError, also for a rig that could not be loaded again."""
    data = json.loads(json.dumps(_encode(rig)))
    decode_rig(data, str(path))
    try:
        write_json(path, data)
    except OSError as error:
        raise RigError(f"{path} cannot be written: {refusal(error)}") from None


def load_rig(path: Path) -> Rig:
    """Read a rig file. Raises RigError for whatever does not fit."""
    try:
        data = read_json(path)
    except OSError as error:
        raise RigError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    except ValueError as error:
        raise RigError(f"{path}: not JSON ({error})") from None
    return decode_rig(data, str(path))


def decode_rig(data: Any, where: str) -> Rig:
    """A rig from parsed JSON; `where` begins the line of a RigError."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise RigError(f"{where}: not a rig file (its format is not {FORMAT!r})")
    if data.get("version") != VERSION or type(data["version"]) is not int:
        raise RigError(f"{where}: rig version {data.get('version')!r}; this edge-hand reads version {VERSION}")
    names = {"format", "version", "conventions", "name", "created_utc", "tool", "cameras", "pairs", "quality"}
    _keys(data, names, where)
    if not isinstance(data["cameras"], list) or not data["cameras"]:
        raise RigError(f"{where}: cameras must be a list of at least one")
    cameras = tuple(_camera(item, f"{where}: camera {i}") for i, item in enumerate(data["cameras"]))
    serials = [camera.serial for camera in cameras]
    if len(set(serials)) != len(serials):
        raise RigError(f"{where}: a serial appears twice in {', '.join(serials)}")
    if not np.allclose(cameras[0].T_ref_cam, np.eye(4), atol=1e-9):
        raise RigError(f"{where}: the first camera is the reference, its T_ref_cam must be the identity")
    if cameras[0].time.offset_s:
        raise RigError(f"{where}: the first camera is the reference, its offset_s must be 0")
    if not isinstance(data["pairs"], list):
        raise RigError(f"{where}: pairs must be a list")
    pairs = tuple(RigPair(**_values(RigPair, item, f"{where}: pair {i}")) for i, item in enumerate(data["pairs"]))
    for pair in pairs:
        if not {pair.a, pair.b} <= set(serials):
            raise RigError(f"{where}: pair {pair.a}, {pair.b} names a camera that the rig does not have")
    quality = _values(Quality, data["quality"], f"{where}: quality")
    if quality["verdict"] not in get_args(Verdict):
        raise RigError(f"{where}: verdict {quality['verdict']!r}; possible are {', '.join(get_args(Verdict))}")
    if not 0 < quality["volume_edge_m"] < MOST:
        raise RigError(f"{where}: quality: volume_edge_m {quality['volume_edge_m']:g} is no length of an edge")
    quality["volume_centre_m"] = tuple(_array(quality["volume_centre_m"], (3,), f"{where}: volume_centre_m"))
    quality["warnings"] = tuple(quality["warnings"])
    texts = {key: _typed(str, data[key], f"{where}: {key}") for key in ("name", "created_utc", "tool")}
    return Rig(**texts, cameras=cameras, pairs=pairs, quality=Quality(**quality))


def _encode(rig: Rig) -> dict[str, Any]:
    cameras = []
    for camera in rig.cameras:
        item = {
            "serial": camera.serial, "stream": camera.stream, "intrinsics": _encode_lens(camera.intrinsics),
            "T_ref_cam": camera.T_ref_cam.tolist(), "covariance": camera.covariance.tolist(),
            "time": asdict(camera.time), "depth": asdict(camera.depth),
        }  # fmt: skip
        if camera.own_intrinsics is not None:  # only then, so that others are files that an older edge-hand reads
            item[OWN] = _encode_lens(camera.own_intrinsics)
        cameras.append(item)
    head = {"format": FORMAT, "version": VERSION, "conventions": CONVENTIONS}
    head |= {"name": rig.name, "created_utc": rig.created_utc, "tool": rig.tool, "cameras": cameras}
    return head | {"pairs": [asdict(pair) for pair in rig.pairs], "quality": asdict(rig.quality)}


def _encode_lens(intrinsics: Intrinsics) -> dict[str, Any]:
    return asdict(intrinsics) | {"hash": intrinsics_hash(intrinsics)}


def _camera(item: Any, where: str) -> RigCamera:
    names = {f.name for f in fields(RigCamera)}
    _keys(item, names if isinstance(item, dict) and OWN in item else names - {OWN}, where)
    serial = _typed(str, item["serial"], f"{where}: serial")
    where = f"{where} ({serial})"
    intrinsics = _lens(item["intrinsics"], "intrinsics", where)
    own = _lens(item[OWN], OWN, where) if OWN in item else None
    if own is not None and (own.width, own.height) != (intrinsics.width, intrinsics.height):
        raise RigError(f"{where}: {OWN} are of {own.width}x{own.height} px, intrinsics of another size")
    T = _array(item["T_ref_cam"], (4, 4), f"{where}: T_ref_cam")
    R = T[:3, :3]
    if not np.allclose(R @ R.T, np.eye(3), atol=1e-6) or np.linalg.det(R) < 0 or not np.array_equal(T[3], [0, 0, 0, 1]):
        raise RigError(f"{where}: T_ref_cam is not a rotation and a translation")
    covariance = _array(item["covariance"], (6, 6), f"{where}: covariance")
    scale = max(float(np.abs(covariance).max()), 1e-30)
    if not np.allclose(covariance, covariance.T, atol=1e-6 * scale) or (
        np.linalg.eigvalsh(covariance / scale).min() < -1e-6
    ):
        raise RigError(f"{where}: the covariance is not symmetric and positive")
    time = TimeOffset(**_values(TimeOffset, item["time"], f"{where}: time"))
    if abs(time.offset_s) > MOST_OFFSET_S:
        raise RigError(f"{where}: offset_s {time.offset_s:g} is not plausible")
    if time.drift_ppm:
        raise RigError(
            f"{where}: drift_ppm {time.drift_ppm:g} is not applied, only 0 is possible: let NTP or PTP hold the hosts' "
            "clocks together"
        )
    depth = DepthCorrection(**_values(DepthCorrection, item["depth"], f"{where}: depth"))
    if not 0.5 < depth.scale < 2:
        raise RigError(f"{where}: depth scale {depth.scale} is not plausible")
    if abs(depth.offset_per_m) > MOST_OFFSET_PER_M:
        raise RigError(
            f"{where}: offset_per_m {depth.offset_per_m:g} is not plausible, at most {MOST_OFFSET_PER_M:g} is possible"
        )
    stream = _typed(str, item["stream"], f"{where}: stream")
    return RigCamera(serial, stream, intrinsics, T, covariance, time, depth, own)


def _lens(lens: Any, name: str, where: str) -> Intrinsics:
    _keys(lens, {f.name for f in fields(Intrinsics)} | {"hash"}, f"{where}: {name}")
    _array([lens[key] for key in ("width", "height", "fx", "fy", "cx", "cy")], (6,), f"{where}: {name}")
    distortion = tuple(float(n) for n in _array(lens["distortion"], (5,), f"{where}: {name}: distortion"))
    try:
        intrinsics = Intrinsics(**{k: v for k, v in lens.items() if k != "hash"} | {"distortion": distortion})
    except (ValueError, TypeError) as error:
        raise RigError(f"{where}: {name}: {error}") from None
    if lens["hash"] != intrinsics_hash(intrinsics):
        raise RigError(f"{where}: the {name} do not fit their hash; they were changed by hand or by damage")
    return intrinsics


def _keys(item: Any, names: set[str], where: str) -> None:
    """Refuse what is not a map with just these keys."""
    if not isinstance(item, dict):
        raise RigError(f"{where}: expected a map, found {type(item).__name__}")
    if item.keys() - names:
        raise RigError(f"{where}: unknown entries {', '.join(sorted(item.keys() - names))}")
    if names - item.keys():
        raise RigError(f"{where}: entries missing: {', '.join(sorted(names - item.keys()))}")


def _values(kind: Any, item: Any, where: str) -> dict[str, Any]:
    """The fields of a flat dataclass, each checked for its type; numbers must be finite."""
    _keys(item, {f.name for f in fields(kind)}, where)
    checked: dict[str, Any] = {}
    for f in fields(kind):
        value, here = item[f.name], f"{where}: {f.name}"
        kinds = str(f.type)
        if value is None and "None" in kinds:
            checked[f.name] = None
        elif kinds.startswith("dict"):
            _typed(dict, value, here)
            checked[f.name] = {str(k): _typed(float, v, f"{here}: {k}") for k, v in value.items()}
        elif kinds.startswith("tuple[str"):
            checked[f.name] = [_typed(str, v, here) for v in _typed(list, value, here)]
        elif kinds.startswith("tuple"):
            checked[f.name] = value
        elif kinds in ("str", "Verdict"):
            checked[f.name] = _typed(str, value, here)
        else:
            checked[f.name] = _typed(int if kinds == "int" else float, value, here)
        if f.name in NOT_NEGATIVE and checked[f.name] is not None:
            number = min(checked[f.name].values(), default=0.0) if isinstance(value, dict) else checked[f.name]
            if number < 0:
                raise RigError(f"{here}: {max(number, -1e300):g} is negative")
    return checked


def _typed(kind: type, value: Any, where: str) -> Any:
    """The value if it is of this kind; an int is a float, a bool is no number, a number is finite, text is printable:
    terminals show it."""
    good = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not good or (kind is float and not abs(value) < 1e300):  # an int may be larger than any float
        raise RigError(f"{where}: {value!r} is not a finite {kind.__name__}" if kind is float else
                       f"{where}: {value!r} is not a {kind.__name__}")  # fmt: skip
    if kind is str and not value.isprintable():
        raise RigError(f"{where}: {value!r:.80} is not printable")
    return float(value) if kind is float else value


def _array(value: Any, shape: tuple[int, ...], where: str) -> Array:
    try:
        array = np.array(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise RigError(f"{where}: not {'x'.join(map(str, shape))} numbers") from None
    if array.shape != shape or not (np.abs(array) < MOST).all():
        raise RigError(f"{where}: not {'x'.join(map(str, shape))} finite numbers")
    return array


def without_clocks(rig: Rig) -> Rig:
    """The rig for live cameras, where its time offsets are none of theirs: nobody has measured their clocks."""
    unmeasured = [TimeOffset(0.0, CLOCK_SIGMA_S if i else 0.0) for i in range(len(rig.cameras))]
    return replace(rig, cameras=tuple(replace(c, time=t) for c, t in zip(rig.cameras, unmeasured, strict=True)))


def tool_name() -> str:
    """What a rig file says it was made by."""
    return f"edge-hand {installed('edge-hand') or 'unknown'}"
