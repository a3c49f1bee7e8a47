"""What real depth cameras do to a clean depth image: noise, steps, shadows, fat edges, holes, flying pixels.

Two kernels cover three kinds of sensor. Structured light and active stereo triangulate: their noise lives in disparity,
so it grows with distance squared, and one eye (or the projector) does not see all that the other sees. Time of flight
sees along one ray: no shadow, but a pixel that covers two surfaces reads something between them.

Every random number is a hash of the seed and the place, so a picture depends on its arguments alone. What was measured
and where each number comes from: docs/sensors.md.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ...hand.arrays import Array

Kind = Literal["structured_light", "active_stereo", "time_of_flight"]

STEP_PX = 1.0  # neighbours whose disparities differ by more than this lie on two surfaces
MAX_DISPARITY_PX = 126  # that a D400 searches, which sets its nearest reading (librealsense, #2885)


class SensorError(ValueError):
    """A depth image, focal length or sensor that cannot be used; the message is one line."""


class Sensor(NamedTuple):
    """A depth camera in one of its modes, as the ideal one of its make; single ones differ, see `Settings`."""

    name: str
    kind: Kind
    width: int  # px
    height: int  # px
    focal_px: float
    baseline_m: float  # between the two eyes, or the eye and the projector; 0 for time of flight
    unit_m: float  # a count of depth
    min_z_m: float
    max_z_m: float
    noise: tuple[float, float]  # the range of Settings.noise, over units, surfaces and light
    disparity_step_px: float = 0.0  # the matcher's resolution; 0 where the unit is coarser
    shadow_side: int = -1  # -1: shadows lie left of near surfaces, 1: right


class Settings(NamedTuple):
    """How one unit behaves in one picture; the defaults do nothing. Lengths in px are the sensor's pixels.

    noise is the RMS error: of the disparity in px (triangulation), of the depth at 1 m in m (time of flight).
    """

    noise: float = 0.0
    white: float = 1.0  # share of the noise's variance that is a pixel's own
    patch_px: float = 1.0  # the rest is shared over about this far: the matching window, or a filter
    fatten_px: float = 0.0  # near surfaces grow this far over what lies behind
    ragged_px: float = 0.0  # RMS of where their outline ends up; where it falls inside, readings are lost
    edge_lost: float = 0.0  # probability that a pixel beside a step in depth has no reading
    shadow: float = 1.0  # probability that a pixel in the shadow has none
    shadow_side: float = -1
    grazing_rad: float = float(np.pi / 2)  # angle of incidence near which readings vanish
    lone: float = 0.0  # share of pixels lost one by one
    holes: float = 0.0  # share of pixels lost in blobs ...
    hole_px: float = 4.0  # ... of about this size
    flying: float = 0.0  # probability that a pixel beside a step mixes what it sees (time of flight)
    behind_m: float = 2.0  # what such a pixel mixes in where nothing was drawn lies this far behind everything
    multipath_m: float = 0.0  # the most that light by way of nearer surfaces adds to a depth (time of flight)


def _stereo(name: str, width: int, height: int, focal_px: float, baseline_m: float, unit_m: float) -> Sensor:
    nearest = focal_px * baseline_m / MAX_DISPARITY_PX
    name = f"{name} {width}x{height}"
    # Empirical sub-pixel RMS: 0.03 at best, 0.08 usual (librealsense, #3904); skin and motion are worse than walls.
    noise = (0.03, 0.2)
    return Sensor(name, "active_stereo", width, height, focal_px, baseline_m, unit_m, nearest, 6.0, noise, 1 / 32)


SENSORS: dict[str, Sensor] = {
    s.name: s
    for s in (
        _stereo("D415", 1280, 720, 925.0, 0.055, 0.001),
        _stereo("D415", 640, 480, 605.0, 0.055, 0.001),
        _stereo("D435", 1280, 720, 640.0, 0.050, 0.001),
        _stereo("D435", 848, 480, 425.0, 0.050, 0.001),
        _stereo("D435", 640, 480, 385.0, 0.050, 0.001),
        _stereo("D435", 424, 240, 212.0, 0.050, 0.001),
        _stereo("D405", 1280, 720, 650.0, 0.018, 0.0001),
        _stereo("D405", 848, 480, 430.0, 0.018, 0.0001),
        # Baseline and side as real shadows show them (docs/sensors.md); noise from filtered to bare.
        Sensor("SR305 640x480", "structured_light", 640, 480, 475.0, 0.047, 0.000125, 0.2, 1.5, (0.002, 0.05), 0.0, 1),
        # 11 bits of disparity, an eighth of a pixel each; RMS half a step (Khoshelham & Elberink 2012).
        Sensor("Kinect v1", "structured_light", 640, 480, 580.0, 0.075, 0.001, 0.4, 5.0, (0.03, 0.15), 1 / 8),
        Sensor("Kinect v2", "time_of_flight", 512, 424, 365.0, 0.0, 0.001, 0.3, 4.5, (0.0006, 0.004)),
        Sensor("Azure Kinect", "time_of_flight", 640, 576, 504.0, 0.0, 0.001, 0.25, 3.9, (0.0004, 0.003)),
        Sensor("L515 640x480", "time_of_flight", 640, 480, 460.0, 0.0, 0.00025, 0.25, 9.0, (0.0005, 0.004)),
    )
}


def draw_settings(sensor: Sensor, rng: np.random.Generator) -> Settings:
    """A unit, a scene's light and a surface: from nearly clean to poor, wider than any one camera of its make."""
    u = rng.random(16)
    low, high = sensor.noise
    poor = u[0] ** 1.5  # one number makes all losses grow together: dim light, dark skin, dirt
    common = Settings(
        noise=low * (high / low) ** u[2],
        shadow_side=sensor.shadow_side if u[1] < 0.75 else -sensor.shadow_side,  # a quarter hang upside down
        grazing_rad=np.radians(88 - 20 * poor * u[3]),
        lone=0.02 * poor**2 * u[4],
        holes=0.06 * poor**2 * u[5],
        hole_px=2 + 8 * u[6],
        white=u[7] ** 2,
        patch_px=1.5 + 5 * u[8],
        ragged_px=0.1 + u[9],
        shadow=1.0 if u[10] < 0.85 else u[11],  # some presets and filters fill part of it
        edge_lost=poor * u[12],
    )
    if sensor.kind == "structured_light":
        return common._replace(edge_lost=1 - common.edge_lost)
    if sensor.kind == "active_stereo":
        window = 3 + 6 * u[8]
        return common._replace(patch_px=window, fatten_px=window / 2 * (0.3 + 0.7 * u[13]), white=0.4 * common.white)
    # Flying pixels are what time of flight is known for; drivers remove some.
    return common._replace(flying=u[13], behind_m=0.3 + 3 * u[14], multipath_m=0.008 * u[15] ** 2, white=u[7])


def corrupt(
    depth_m: Array, focal_px: float, sensor: Sensor, settings: Settings, seed: int, out: Array
) -> NDArray[np.float32]:
    """Depth as the sensor would report it, into out, which is returned.

    depth_m, out: (H, W) float32 m along the optical axis, 0 = nothing there (out: no reading); may be one array.
    focal_px: of that image; where it is not the sensor's own, effects of the sensor's pixels shrink or grow with it.
    x is the baseline's axis. Nothing outside the image casts a shadow into it. Raises SensorError for unusable images.
    """
    if not (depth_m.ndim == 2 and depth_m.size and depth_m.shape == out.shape and depth_m.dtype == out.dtype == "f4"):
        got = f"{depth_m.dtype} {depth_m.shape} and {out.dtype} {out.shape}"
        raise SensorError(f"depth and out are {got}; both must be float32 and of one shape (H, W), not empty")
    if not focal_px > 0:
        raise SensorError(f"a focal length of {focal_px} px was given; it must be more than 0")
    f = np.float32
    hole_at = f(-NormalDist().inv_cdf(settings.holes) if settings.holes > 0 else np.inf)
    view = (f(focal_px), f(focal_px / sensor.focal_px))
    limits = (f(sensor.unit_m), f(sensor.min_z_m), f(sensor.max_z_m))
    # The same types and layouts at each call: a kernel compiles once.
    clean, made = np.ascontiguousarray(depth_m), np.empty(depth_m.shape, np.float32)
    end = (Settings(*map(float, settings)), hole_at, np.uint64(seed), made)
    if sensor.kind == "time_of_flight":
        _time_of_flight(clean, *view, *limits, *end)
    else:
        bf = f(sensor.baseline_m * sensor.focal_px)
        _triangulate(clean, *view, bf, f(sensor.disparity_step_px), *limits, *end)
    out[...] = made
    return out


def sense(depth_m: Array, sensor: Sensor, settings: Settings, seed: int) -> NDArray[np.float32]:
    """A whole frame of the sensor: (H, W) m, 0 = nothing there, drawn with the sensor's own focal length."""
    clean = np.ascontiguousarray(depth_m, np.float32)
    return corrupt(clean, sensor.focal_px * clean.shape[1] / sensor.width, sensor, settings, seed, np.empty_like(clean))


@njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _hash(key: Any, index: Any) -> Any:
    """64 random bits of (key, index): splitmix64."""
    x = np.uint64(key) + (np.uint64(index) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _uniform(bits: Any) -> Any:
    return np.float32(bits >> np.uint64(40)) * np.float32(2**-24)


@njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _normal(bits: Any) -> Any:
    """Nearly normal, variance 1, within 3.5 sigma: the sum of four uniform numbers of 16 bits."""
    m = np.uint64(0xFFFF)
    low = (bits & m) + ((bits >> np.uint64(16)) & m)
    high = ((bits >> np.uint64(32)) & m) + (bits >> np.uint64(48))
    return (np.float32(low + high) - np.float32(131070)) * np.float32(2.6429e-5)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _smooth(height: int, width: int, patch_px: float, key: Any) -> Any:
    """Normal noise (height, width) of variance 1 everywhere, which pixels share over about patch_px."""
    out = np.empty((height, width), np.float32)
    # Its correlation is a half at patch_px / 2, as that of a mean over patch_px.
    cell = max(np.float32(0.75 * patch_px), np.float32(1))
    at_y, at_x = _uniform(_hash(key, -1)), _uniform(_hash(key, -2))  # where the lattice begins
    nodes = int(width / cell) + 3
    left, right, node = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.int32)
    for x in range(width):
        c = x / cell + at_x
        node[x] = int(c)
        t = c - node[x]
        norm = 1 / np.sqrt(t * t + (1 - t) * (1 - t))  # the mean of two has less variance than one
        left[x], right[x] = (1 - t) * norm, t * norm
    row = np.empty(nodes, np.float32)
    for y in range(height):
        c = y / cell + at_y
        i = int(c)
        t = c - i
        norm = 1 / np.sqrt(t * t + (1 - t) * (1 - t))
        for j in range(nodes):
            above, below = _normal(_hash(key, i * nodes + j)), _normal(_hash(key, (i + 1) * nodes + j))
            row[j] = (above * (1 - t) + below * t) * norm
        for x in range(width):
            out[y, x] = row[node[x]] * left[x] + row[node[x] + 1] * right[x]
    return out


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _noise(height: int, width: int, s: Settings, scale: float, key: Any) -> Any:
    """Normal noise (height, width) of variance 1, a share of it each pixel's own."""
    out = _smooth(height, width, s.patch_px * scale, _hash(key, 0))
    own, keep, key = np.float32(np.sqrt(s.white)), np.float32(np.sqrt(1 - s.white)), _hash(key, 1)
    for i in range(height * width):
        out.flat[i] = keep * out.flat[i] + own * _normal(_hash(key, i))
    return out


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _gaps(height: int, width: int, s: Settings, hole_at: Any, scale: float, key: Any, lost: Array) -> None:
    """Mark pixels lost for no reason in the scene, alone and in blobs."""
    field = _smooth(height, width, s.hole_px * scale, _hash(key, 0)) if s.holes > 0 else lost.astype(np.float32)
    for y in range(height):
        for x in range(width):
            if field[y, x] > hole_at or _uniform(_hash(key, y * width + x + 1)) < s.lone:
                lost[y, x] = True


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _shadow(disparity: Array, scale: float, side: float, share: float, key: Any, lost: Array) -> None:
    """Mark what the second eye, or the projector, cannot see: baseline * focal * (1 / near - 1 / far) px at a step."""
    height, width = disparity.shape
    for y in range(height):
        front, front_d = np.float32(np.inf), np.float32(0)  # column in the other eye of the foremost so far
        for k in range(width):
            x = width - 1 - k if side < 0 else k
            d = disparity[y, x] * scale
            column = (x if side < 0 else -x) - d
            if front_d > d + 0.75 and front < column + 0.5 and _uniform(_hash(key, y * width + x)) < share:
                lost[y, x] = True
            if column < front and d > 0:
                front, front_d = column, d


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _outline(clean: Array, step: float, grow: float, ragged: float, scale: float, key: Any, grown: Array,
             lost: Array) -> None:  # fmt: skip
    """Move the outline of near surfaces: grown, disparity (H, W), where outwards; mark lost where inwards."""
    height, width = clean.shape
    uneven = _smooth(height, width, max(2 * grow, 3.0) * scale, key)
    for y in range(height):
        for x in range(width):
            d = clean[y, x]
            if d == 0 or _extremes(clean, y, x)[0] >= d - step:
                continue
            r = (grow + ragged * uneven[y, x]) * scale
            far = r + 0.5 if r > 0 else max(-r - 0.5, -1)
            reach = int(far)
            for v in range(max(0, y - reach), min(height, y + reach + 1)):
                for u in range(max(0, x - reach), min(width, x + reach + 1)):
                    if far < 0 or (v - y) ** 2 + (u - x) ** 2 > far * far:
                        continue
                    if r > 0 and grown[v, u] < d - step:
                        grown[v, u], lost[v, u] = d, False
                    elif r < 0 and abs(clean[v, u] - d) < step:
                        lost[v, u] = True


@njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _extremes(image: Array, y: int, x: int) -> Any:
    """Least and greatest of the four neighbours."""
    a, b = image[y, max(x - 1, 0)], image[y, min(x + 1, image.shape[1] - 1)]
    c, d = image[max(y - 1, 0), x], image[min(y + 1, image.shape[0] - 1), x]
    return min(min(a, b), min(c, d)), max(max(a, b), max(c, d))


@njit(cache=True, nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _tangent2(depth: Array, y: int, x: int, focal_px: Any) -> Any:
    """Squared tangent of the angle of incidence on the surface at a pixel; 0 along an axis without neighbours."""
    dx, dy = np.float32(0), np.float32(0)
    if 0 < x < depth.shape[1] - 1 and depth[y, x - 1] > 0 and depth[y, x + 1] > 0:
        dx = depth[y, x + 1] - depth[y, x - 1]
    if 0 < y < depth.shape[0] - 1 and depth[y - 1, x] > 0 and depth[y + 1, x] > 0:
        dy = depth[y + 1, x] - depth[y - 1, x]
    return (dx * dx + dy * dy) * (np.float32(0.5) * focal_px / depth[y, x]) ** 2


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _triangulate(clean: Array, focal_px: Any, scale: Any, bf: Any, disparity_step: Any, unit: Any, min_z: Any,
                 max_z: Any, s: Settings, hole_at: Any, key: Any, out: Array) -> None:  # fmt: skip
    """Structured light and active stereo: z = bf / disparity, bf = baseline * focal in m px of the sensor."""
    height, width = clean.shape
    step = np.float32(STEP_PX) / min(scale, np.float32(1))
    beside, steep2 = np.float32(s.edge_lost) * min(scale, np.float32(1)), np.float32(np.tan(s.grazing_rad) ** 2)
    disparity, lost = clean.copy(), np.zeros((height, width), np.bool_)
    for i in range(clean.size):
        disparity.flat[i] = bf / disparity.flat[i] if disparity.flat[i] > 0 else np.float32(0)
    _shadow(disparity, scale, s.shadow_side, s.shadow, _hash(key, 1), lost)
    grown = disparity.copy()
    if s.fatten_px > 0 or s.ragged_px > 0:
        _outline(disparity, step, s.fatten_px, s.ragged_px, scale, _hash(key, 2), grown, lost)
    _gaps(height, width, s, hole_at, scale, _hash(key, 3), lost)
    noise, rms = _noise(height, width, s, scale, _hash(key, 4)), np.float32(s.noise)
    key_edge, key_slope = _hash(key, 5), _hash(key, 6)
    for y in range(height):
        for x in range(width):
            out[y, x] = 0
            d, i = grown[y, x], y * width + x
            if d == 0 or lost[y, x]:
                continue
            chance = _uniform(_hash(key_slope, i))
            low, high = _extremes(grown, y, x)
            if max(high - d, d - low) > step:
                if _uniform(_hash(key_edge, i)) < beside:
                    continue
            elif d == disparity[y, x] and _tangent2(clean, y, x, focal_px) > steep2 * (np.float32(0.6) + chance):
                continue
            d += rms * noise[y, x]
            if disparity_step > 0:
                d = np.rint(d / disparity_step) * disparity_step
            z = np.rint(bf / d / unit) * unit  # d may be 0 or less: no depth is then in range
            if min_z <= z <= max_z:
                out[y, x] = z


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _time_of_flight(clean: Array, focal_px: Any, scale: Any, unit: Any, min_z: Any, max_z: Any, s: Settings,
                    hole_at: Any, key: Any, out: Array) -> None:  # fmt: skip
    """Time of flight: noise is over amplitude, and a pixel reads the mean of what it sees, weighted by amplitude."""
    height, width = clean.shape
    flying, beside = np.float32(s.flying * min(scale, 1)), np.float32(s.edge_lost * min(scale, 1))
    bounce, steep2 = np.float32(s.multipath_m), np.float32(np.tan(s.grazing_rad) ** 2)
    nothing, scene = clean.max() + np.float32(s.behind_m), clean.copy()
    for i in range(scene.size):
        scene.flat[i] = scene.flat[i] if scene.flat[i] > 0 else nothing
    around = _surroundings(clean, np.exp(np.float32(-0.08) / scale))
    lost = np.zeros((height, width), np.bool_)
    _gaps(height, width, s, hole_at, scale, _hash(key, 3), lost)
    noise, rms = _noise(height, width, s, scale, _hash(key, 4)), np.float32(s.noise)
    key_edge, key_slope = _hash(key, 5), _hash(key, 6)
    for y in range(height):
        for x in range(width):
            out[y, x] = 0
            z, i = scene[y, x], y * width + x
            low, high = _extremes(scene, y, x)
            if lost[y, x] or (clean[y, x] == 0 and low == nothing):
                continue
            chance, tangent2 = _uniform(_hash(key_slope, i)), np.float32(0)
            near, far = min(low, z), max(high, z)
            if far - near > max(np.float32(0.008), np.float32(10) * z / focal_px):  # over 79 degrees: a step
                bits = _hash(key_edge, i)
                if _uniform(bits) < flying:
                    # Light of both in some shares of the pixel's area, each falling with 1 / z^2.
                    part = np.float32(0.02) + np.float32(0.96) * chance
                    bright, dim = part / (near * near), (1 - part) / (far * far)
                    z = (bright * near + dim * far) / (bright + dim)
                elif clean[y, x] == 0 or _uniform(_hash(bits, 1)) < beside:
                    continue
            else:
                tangent2 = _tangent2(clean, y, x, focal_px)
                if tangent2 > steep2 * (np.float32(0.6) + chance):
                    continue
                behind = z - around[0, y, x] / around[1, y, x]  # light by way of nearer surfaces around comes later
                z += bounce * min(max(behind * np.float32(20), np.float32(0)), np.float32(1))
            # Amplitude falls with the cosine; the growth with z is as in Fankhauser et al. 2015, for a noise at 1 m.
            z += rms * (np.float32(0.8) + np.float32(0.2) * z * z) * np.sqrt(1 + tangent2) * noise[y, x]
            z = np.rint(z / unit) * unit
            if min_z <= z <= max_z:
                out[y, x] = z


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _surroundings(clean: Array, keep: Any) -> Any:
    """Depths about each pixel, and their number (2, H, W); each pixel further on counts keep times as much."""
    height, width = clean.shape
    sums = np.empty((2, height, width), np.float32)  # of depths, of readings
    for y in range(height):
        for x in range(width):
            sums[0, y, x], sums[1, y, x] = clean[y, x], clean[y, x] > 0
    for image in sums:
        for y in range(1, height):
            for x in range(width):
                image[y, x] += keep * image[y - 1, x]
        for y in range(height - 2, -1, -1):
            for x in range(width):
                image[y, x] += keep * image[y + 1, x]
        for y in range(height):
            for x in range(1, width):
                image[y, x] += keep * image[y, x - 1]
            for x in range(width - 2, -1, -1):
                image[y, x] += keep * image[y, x + 1]
    return sums
