"""What a depth camera sees, for whole batches in plain torch: z-buffer, round and flat things, its errors, the crop.

The twins that tests compare with are `render.py`, `sensors.py` and `samples.crop_patch`. Drawing, every face is spread
over the pixels of its bounding box, and all of a batch's candidates compete for their pixels in one integer maximum,
so neither order nor thread changes a picture.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .samples import CELLS, CUBE_M
from .sensors import SENSORS, STEP_PX, Sensor, Settings, draw_settings

NEAR_M = 0.02  # what is nearer to the camera's plane is not drawn
REACH_PX = 6  # the farthest an outline moves
Cameras = dict[str, Tensor]


class Draw:
    """Random tensors from a key alone, drawn on their device."""

    def __init__(self, key: tuple[int, ...], device: torch.device) -> None:
        self.device, self.generator = device, torch.Generator(device)
        self.generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def below(self, n: int, *shape: int) -> Tensor:
        return torch.randint(n, shape, generator=self.generator, device=self.device)

    def choice(self, values: tuple[float, ...], *shape: int) -> Tensor:
        return constant(values, self.device)[self.below(len(values), *shape)]


@lru_cache(maxsize=64)
def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """A few numbers, or rows of them, sent to the device once."""
    table = torch.tensor(np.array(values), device=device)
    return table.float() if table.is_floating_point() else table


class Raster(NamedTuple):
    """inverse_depth (B, S, S) 1/m, 0 where nothing is; face (B, S, S) int32, -1 where none is; weight (B, S, S, 2), the
    perspective-correct barycentric weights of the face's first two corners."""

    inverse_depth: Tensor
    face: Tensor
    weight: Tensor


def rasterise_batch(
    vertices: Tensor, faces: Tensor, slope: Tensor, size: int, *, sizes: Tensor | None = None, chunk: int = 128
) -> Raster:
    """Draw one mesh in B poses, each seen by its own crop camera; nearest wins, perspective-correct, both sides.

    vertices (B, V, 3) float32 m in the crop camera's frame; faces (F, 3) int64; slope (B,) = cube / 2 / distance.
    Pictures are size px wide; with sizes (B,) int64 each fills only the upper left (sizes[b], sizes[b]) of its own.
    chunk pictures are drawn at a time, which bounds the memory: some 2 MB a picture of 96 px of a hand.
    """
    if sizes is None:
        sizes = torch.full_like(slope, size, dtype=torch.int64)
    drawn = [
        _draw(v, faces, s, n, size)
        for v, s, n in zip(*(torch.split(x, chunk) for x in (vertices, slope, sizes)), strict=True)
    ]
    return Raster(*(torch.cat(column) for column in zip(*drawn, strict=True))) if len(drawn) > 1 else drawn[0]


def ray_slopes(slope: Tensor, sizes: Tensor, size: int) -> Tensor:
    """Slope x / z of the rays through the pixels' centres, alike in rows and columns: (B,), (B,) to (B, size)."""
    at = torch.arange(size, device=slope.device) + 0.5
    return (2 * at / sizes[:, None] - 1) * slope[:, None]


def plane_inverse_depth(normal: Tensor, offset: Tensor, rays: Tensor) -> Tensor:
    """The planes normal . p = offset (m): (B, 3), (B,) and `ray_slopes` (B, S) to inverse depth (B, S, S)."""
    n = normal / offset[:, None]
    return rays[:, :, None] * n[:, 1, None, None] + (rays * n[:, :1] + n[:, 2:])[:, None, :]


def ellipsoid_inverse_depth(centre: Tensor, inverse_axes: Tensor, rays: Tensor) -> Tensor:
    """The near side of |inverse_axes @ (p - centre)| = 1: (B, 3), (B, 3, 3), (B, S) to inverse depth (B, S, S), or 0.

    Solved about the ray's point nearest to the centre: the textbook's discriminant has no digits left in float32.
    """
    m = inverse_axes[..., None, None]  # (B, 3, 3, 1, 1)
    direction = m[:, :, 0] * rays[:, None, None, :] + m[:, :, 1] * rays[:, None, :, None] + m[:, :, 2]  # (B, 3, S, S)
    c = (inverse_axes * centre[:, None]).sum(-1)[..., None, None]  # (B, 3, 1, 1)
    a = (direction * direction).sum(1)  # (B, S, S)
    nearest = (direction * c).sum(1) / a
    missed = (c - nearest[:, None] * direction).square().sum(1)  # squared, in radii
    z = nearest - ((1 - missed).clamp_min(0) / a).sqrt()
    return torch.where((missed < 1) & (z > NEAR_M), 1 / z, 0)


def _draw(vertices: Tensor, faces: Tensor, slope: Tensor, sizes: Tensor, size: int) -> Raster:
    batch, device = len(vertices), vertices.device
    row_picture, row_face, corner, first, extent = _boxes(vertices, faces, slope, sizes)
    table = _edge_functions(corner, first)  # (M, 9)
    rows = len(table)

    # One candidate a pixel of a box; `row` says whose.
    count = extent[:, 0] * extent[:, 1]
    end = count.cumsum(0)
    row = torch.repeat_interleave(count)  # (N,)
    place = torch.arange(len(row), device=device) - (end - count)[row]
    down = place // extent[row, 0]
    along = place - down * extent[row, 0]
    pixel = ((row_picture * size + first[:, 1]) * size + first[:, 0])[row] + down * size + along
    w0, w1, inverse = _interpolate(table[row], along, down)
    inside = (w0 >= 0) & (w1 >= 0) & (1 - w0 - w1 >= 0)
    # Positive floats order like their bits; of two at the same depth the first face wins.
    key = (inverse.view(torch.int32).long() << 32) | (rows - 1 - row)
    best = torch.zeros(batch * size * size, dtype=torch.int64, device=device)
    best.scatter_reduce_(0, pixel, torch.where(inside, key, 0), "amax")

    hit = best.nonzero()[:, 0]
    key = best[hit]
    row = rows - 1 - (key & 0xFFFFFFFF)
    x, y = hit % size, hit // size % size
    w0, w1, inverse = _interpolate(table[row], x - first[row, 0], y - first[row, 1])
    inverse_depth = torch.zeros(batch * size * size, device=device)
    face = torch.full((batch * size * size,), -1, dtype=torch.int32, device=device)
    weight = torch.zeros((batch * size * size, 2), device=device)
    inverse_depth[hit] = inverse
    face[hit] = row_face[row].int()
    weight[hit] = torch.stack([w0, w1], 1) * corner[row, :2, 2] / inverse[:, None]
    shape = (batch, size, size)
    return Raster(inverse_depth.view(shape), face.view(shape), weight.view(*shape, 2))


def _boxes(
    vertices: Tensor, faces: Tensor, slope: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The M faces with a pixel's centre in their bounding box: picture (M,), face (M,), corners (M, 3, 3) in px, px and
    1/m, the box's first pixel (M, 2) and extent (M, 2), x before y."""
    z = vertices[..., 2]
    inverse = torch.where(z < NEAR_M, -1.0, 1 / z)  # (B, V)
    scale = 0.5 * sizes / slope
    shift = 0.5 * sizes - 0.5
    xy = vertices[..., :2] * inverse[..., None] * scale[:, None, None] + shift[:, None, None]
    corner = torch.cat([xy, inverse[..., None]], -1)[:, faces]  # (B, F, 3, 3)
    x, y, inverse = corner.unbind(-1)  # (B, F, 3)
    last = (sizes - 1)[:, None].float()
    xa, ya = x.amin(-1).ceil().clamp_min(0), y.amin(-1).ceil().clamp_min(0)
    xb, yb = x.amax(-1).floor().minimum(last), y.amax(-1).floor().minimum(last)
    drawn = (inverse.amin(-1) > 0) & (xa <= xb) & (ya <= yb) & (_double_area(x, y).abs() >= 1e-9)
    picture, face = drawn.nonzero().unbind(1)
    xa, ya, xb, yb = (edge[picture, face].long() for edge in (xa, ya, xb, yb))
    first, extent = torch.stack([xa, ya], 1), torch.stack([xb - xa + 1, yb - ya + 1], 1)
    return picture, face, corner[picture, face], first, extent


def _edge_functions(corner: Tensor, first: Tensor) -> Tensor:
    """Barycentric weights as functions of the pixel, counted from its box's first: (M, 3, 3), (M, 2) to (M, 9).

    Columns: weight 0 at the first pixel, its step in x and in y; the same of weight 1; the corners' inverse depths, of
    which the first two are less the third.
    """
    x, y, inverse = corner.unbind(-1)  # (M, 3)
    per_area = 1 / _double_area(x, y)
    (x0, x1, x2), (y0, y1, y2) = (x - first[:, :1]).unbind(1), (y - first[:, 1:]).unbind(1)
    w0 = torch.stack([x1 * y2 - x2 * y1, y1 - y2, x2 - x1], 1) * per_area[:, None]
    w1 = torch.stack([x2 * y0 - x0 * y2, y2 - y0, x0 - x2], 1) * per_area[:, None]
    third = inverse[:, 2:]
    return torch.cat([w0, w1, inverse[:, :2] - third, third], 1)


def _interpolate(table: Tensor, along: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights 0 and 1 and inverse depth of N pixels, `along` and `down` (N,) from the first, by rows (N, 9)."""
    a, ax, ay, b, bx, by, ia, ib, ic = table.unbind(1)
    w0 = a + along * ax + down * ay
    w1 = b + along * bx + down * by
    return w0, w1, ic + w0 * ia + w1 * ib


def _double_area(x: Tensor, y: Tensor) -> Tensor:
    """Signed, px^2: (..., 3) and (..., 3) to (...)."""
    x0, x1, x2 = x.unbind(-1)
    y0, y1, y2 = y.unbind(-1)
    return (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)


def crop_patches(depth_m: Tensor, sizes: Tensor, distance: Tensor, image_px: int) -> Tensor:
    """Patches (B, S, S) m of sizes[b] px that span the cube, to the network's images (B, image_px, image_px), each
    pixel the mean of those of its 2x2 readings that lie inside the cube; `hand.crop.reduce_2x2` in torch."""
    z = depth_m.flatten(1).gather(1, pick(sizes, 2 * image_px, depth_m.shape[2]))
    d = (z - distance[:, None]) / (CUBE_M / 2)
    inside = (z > 0) & (d.abs() < 1)
    both = torch.stack([torch.where(inside, d, 0), inside.float()], 1).view(-1, 2, 2 * image_px, 2 * image_px)
    total, n = (F.avg_pool2d(both, 2) * 4).unbind(1)
    return torch.where(n > 0, total / n.clamp_min(1), 1)


def correspondences(
    depth_m: Tensor, face: Tensor, weight: Tensor, sizes: Tensor, distance: Tensor, face_uv: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the pixel nearest to each cell's centre: whether it shows the hand (B, 32, 32), which is the first faces and
    those of face_uv (F_hand, 3, 2), and where on the hand's layout (B, 32, 32, 2)."""
    at = pick(sizes, CELLS, depth_m.shape[2])
    f, z = face.flatten(1).gather(1, at), depth_m.flatten(1).gather(1, at)
    on_hand = (f >= 0) & (f < len(face_uv)) & ((z - distance[:, None]).abs() < CUBE_M / 2)  # (B, P)
    corner = face_uv[torch.where(on_hand, f, 0).long()]  # (B, P, 3, 2)
    w = weight.flatten(1, 2).gather(1, at[..., None].expand(-1, -1, 2))[..., None]
    uv = corner[:, :, 2] + (w * (corner[:, :, :2] - corner[:, :, 2:])).sum(2)
    uv = torch.where(on_hand[..., None], uv, 0)
    return on_hand.view(-1, CELLS, CELLS), uv.view(-1, CELLS, CELLS, 2)


def cut_at_border(draw: Draw, joints_uv: Tensor, sizes: Tensor, depth_m: Tensor) -> Tensor:
    """Blank in a tenth of the pictures what lies beyond an image border through the hand; `scene.cut_at_border`."""
    n = len(sizes)
    turn = draw.below(4, n) * (math.pi / 2) + 0.06 * draw.normal(n)
    out = torch.stack([turn.cos(), turn.sin()], 1)[..., None]  # (B, 2, 1)
    reach = (joints_uv @ out)[..., 0].sort(1).values  # (B, 21)
    rank = draw.uniform(n, 1, low=0.55) * 20
    border = reach.gather(1, rank.long()).lerp(reach.gather(1, rank.ceil().long()), rank.frac())
    border = border + draw.uniform(n, 1, high=0.12)
    centres = ray_slopes(torch.ones_like(turn), sizes, depth_m.shape[2])[:, None]  # (B, 1, S), in half cubes
    beyond = centres.mT * out[:, 1:] + centres * out[:, :1] > border[..., None]
    return torch.where(beyond & (draw.uniform(n, 1, 1) < 0.1), 0, depth_m)


def pick(sizes: Tensor, cells: int, stride: int) -> Tensor:
    """The pixel at the centre of each of cells x cells squares of a patch of sizes[b] px: (B, cells^2) flat indices."""
    at = torch.arange(cells, device=sizes.device)
    line = ((2 * at + 1) * sizes[:, None] // (2 * cells)).minimum(sizes[:, None] - 1)  # (B, cells)
    return (line[:, :, None] * stride + line[:, None, :]).flatten(1)


def camera_bank(n: int, seed: tuple[int, ...], device: torch.device) -> Cameras:
    """n random cameras of `sensors.SENSORS`, each in random settings, as `sense` takes them."""
    rng = np.random.default_rng(seed)
    makes = [list(SENSORS.values())[i] for i in rng.integers(len(SENSORS), size=n)]
    return stack_cameras([camera_row(make, draw_settings(make, rng)) for make in makes], device)


def camera_row(sensor: Sensor, settings: Settings) -> dict[str, float]:
    """Both by the names of their fields, less what is no number, and the constant of z = bf / disparity (m px)."""
    row = {**sensor._asdict(), **settings._asdict(), "time_of_flight": sensor.kind == "time_of_flight"}
    row["bf"] = sensor.baseline_m * sensor.focal_px
    return {name: value for name, value in row.items() if isinstance(value, (int, float))}


def stack_cameras(rows: list[dict[str, float]], device: torch.device) -> Cameras:
    """(n,) by name."""
    return {name: torch.tensor([r[name] for r in rows], dtype=torch.float32, device=device) for name in rows[0]}


def sense(depth_m: Tensor, sizes: Tensor, focal_px: Tensor, cameras: Cameras, draw: Draw) -> Tensor:
    """Depth (B, S, S) m as B cameras would report it; `sensors.corrupt` in torch, but for one thing: how far a ragged
    outline moves is read where it moves to, not where it was. 0 is nothing there, in and out.

    sizes (B,) px of S are a picture's; focal_px (B,) of these pictures; cameras (B,) by name.
    """
    line = torch.arange(depth_m.shape[1], device=depth_m.device).minimum(sizes[:, None] - 1)  # (B, S)
    # What lies beside the picture continues it, so that its border is no edge.
    z = depth_m.flatten(1).gather(1, (line[:, :, None] * depth_m.shape[1] + line[:, None, :]).flatten(1))
    z = z.view_as(depth_m)
    out = torch.empty_like(z)
    for model, at in (
        (_time_of_flight, (cameras["time_of_flight"] > 0).nonzero()[:, 0]),
        (_triangulate, (cameras["time_of_flight"] == 0).nonzero()[:, 0]),
    ):
        if len(at):
            s = {name: value[at, None, None] for name, value in cameras.items()}
            out[at] = model(z[at], focal_px[at, None, None], s, draw)
    return out


def _triangulate(clean: Tensor, focal: Tensor, s: Cameras, draw: Draw) -> Tensor:
    scale = focal / s["focal_px"]
    step = STEP_PX / scale.clamp_max(1)
    disparity = torch.where(clean > 0, s["bf"] / clean, 0)
    lost = _shadow(disparity * scale, s["shadow_side"]) & (draw.uniform(*clean.shape) < s["shadow"])
    uneven = _smooth(clean, (2 * s["fatten_px"]).clamp_min(3) * scale, draw)
    grown, lost = _outline(disparity, lost, step, (s["fatten_px"] + s["ragged_px"] * uneven) * scale)
    edge = (_neighbours(grown) - grown[:, None]).abs().amax(1) > step
    lost = lost | (edge & (draw.uniform(*clean.shape) < s["edge_lost"] * scale.clamp_max(1)))
    steep = _tangent2(clean, focal) > s["grazing_rad"].tan().square() * (0.6 + draw.uniform(*clean.shape))
    lost = lost | (steep & ~edge & (grown == disparity)) | _gaps(clean, scale, s, draw)
    d = grown + s["noise"] * _noise(clean, scale, s, draw)
    bin_px = s["disparity_step_px"]
    d = torch.where(bin_px > 0, (d / bin_px.clamp_min(1e-6)).round() * bin_px, d)
    z = torch.where(d > 0, ((s["bf"] / d) / s["unit_m"]).round() * s["unit_m"], 0)
    return torch.where((grown > 0) & ~lost & (z >= s["min_z_m"]) & (z <= s["max_z_m"]), z, 0)


def _time_of_flight(clean: Tensor, focal: Tensor, s: Cameras, draw: Draw) -> Tensor:
    scale = focal / s["focal_px"]
    flying, beside = s["flying"] * scale.clamp_max(1), s["edge_lost"] * scale.clamp_max(1)
    nothing = clean.amax((1, 2), keepdim=True) + s["behind_m"]
    z = torch.where(clean > 0, clean, nothing)
    around = _neighbours(z)
    low, far = around.amin(1), z.maximum(around.amax(1))
    near = z.minimum(low)
    edge = far - near > (10 * z / focal).clamp_min(0.008)  # over 79 degrees: a step
    mixed, chance = edge & (draw.uniform(*z.shape) < flying), draw.uniform(*z.shape)
    lost = edge & ~mixed & ((clean == 0) | (draw.uniform(*z.shape) < beside))
    lost = lost | _gaps(clean, scale, s, draw) | ((clean == 0) & (low == nothing))
    # Light of both in some shares of the pixel's area, each falling with 1 / z^2 (Sarbolandi 2015).
    part = 0.02 + 0.96 * chance
    bright, dim = part / near.square(), (1 - part) / far.square()
    tangent2 = torch.where(edge, 0, _tangent2(clean, focal))
    lost = lost | (tangent2 > s["grazing_rad"].tan().square() * (0.6 + chance))
    bounced = z + s["multipath_m"] * (20 * (z - _surroundings(clean, (-0.08 / scale).exp()))).clamp(0, 1)
    z = torch.where(edge, torch.where(mixed, (bright * near + dim * far) / (bright + dim), z), bounced)
    # Amplitude falls with the cosine; the growth with z is as in Fankhauser et al. 2015, for a noise at 1 m.
    z = z + s["noise"] * (0.8 + 0.2 * z * z) * (1 + tangent2).sqrt() * _noise(z, scale, s, draw)
    z = (z / s["unit_m"]).round() * s["unit_m"]
    return torch.where(~lost & (z >= s["min_z_m"]) & (z <= s["max_z_m"]), z, 0)


def _shadow(disparity: Tensor, side: Tensor) -> Tensor:
    """What the second eye does not see, since something nearer lies in its columns; side < 0: left of near things."""
    d = torch.where(side < 0, disparity.flip(2), disparity)
    at = torch.arange(d.shape[2], device=d.device)
    column = torch.where(d > 0, -at - d, math.inf)  # in the other eye
    front, first = column.cummin(2)  # the foremost so far, itself included, which shades nothing
    lost = (d > 0) & (d.gather(2, first) > d + 0.75) & (front < column + 0.5)
    return torch.where(side < 0, lost.flip(2), lost)


def _outline(disparity: Tensor, lost: Tensor, step: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Near surfaces grow outwards where reach (B, S, S) px is positive, and are lost inwards where it is negative."""
    grown, most, least = disparity, disparity, disparity
    for k in range(1, REACH_PX + 1):
        if k % 2:  # a cross and a square by turns make an octagon
            most = torch.maximum(_neighbours(most).amax(1), most)
            least = torch.minimum(_neighbours(least).amin(1), least)
        else:
            most, least = F.max_pool2d(most, 3, 1, 1), -F.max_pool2d(-least, 3, 1, 1)
        grows = (reach > k - 0.5) & (most > grown + step)
        grown, lost = torch.where(grows, most, grown), lost & ~grows
        lost = lost | ((reach < 0.5 - k) & (disparity > least + step))
    return grown, lost


def _tangent2(depth: Tensor, focal: Tensor) -> Tensor:
    """Squared tangent of the angle of incidence on the surface at a pixel; 0 along an axis without neighbours."""
    left, right, up, down = _neighbours(depth).unbind(1)
    across = torch.where((left > 0) & (right > 0), right - left, 0)
    along = torch.where((up > 0) & (down > 0), down - up, 0)
    return (across.square() + along.square()) * (0.5 * focal / depth.clamp_min(1e-3)).square()


def _neighbours(x: Tensor) -> Tensor:
    """Left, right, upper and lower neighbour, at the border the pixel itself: (B, S, S) to (B, 4, S, S)."""
    p = F.pad(x[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return torch.stack([p[:, 1:-1, :-2], p[:, 1:-1, 2:], p[:, :-2, 1:-1], p[:, 2:, 1:-1]], 1)


def _gaps(like: Tensor, scale: Tensor, s: Cameras, draw: Draw) -> Tensor:
    """Pixels lost for no reason in the scene, alone and in blobs."""
    above = math.sqrt(2) * torch.erfinv(1 - 2 * s["holes"])  # the normal quantile
    return (draw.uniform(*like.shape) < s["lone"]) | (_smooth(like, s["hole_px"] * scale, draw) > above)


def _noise(like: Tensor, scale: Tensor, s: Cameras, draw: Draw) -> Tensor:
    shared = _smooth(like, s["patch_px"] * scale, draw)
    return s["white"].sqrt() * draw.normal(*like.shape) + (1 - s["white"]).sqrt() * shared


def _smooth(like: Tensor, patch_px: Tensor, draw: Draw) -> Tensor:
    """Normal noise (B, S, S) of variance 1 everywhere, which pixels share over about patch_px (B, 1, 1)."""
    size = like.shape[1]
    nodes = torch.arange(size + 3, device=like.device)
    at = torch.arange(size, device=like.device)[:, None] / (0.75 * patch_px).clamp_min(1)  # (B, S, 1)
    hats = [(1 - (at + phase - nodes).abs()).clamp_min(0) for phase in draw.uniform(2, len(like), 1, 1)]
    rows, columns = (F.normalize(h, dim=2) for h in hats)  # (B, S, S + 3); the mean of two has less variance than one
    return rows @ draw.normal(len(like), size + 3, size + 3) @ columns.mT


def _surroundings(clean: Tensor, keep: Tensor) -> Tensor:
    """Mean depth (B, S, S) m about each pixel, where each pixel further on counts keep (B, 1, 1) times as much."""
    at = torch.arange(clean.shape[1], device=clean.device)
    spread = keep ** (at[:, None] - at).abs()  # (B, S, S)
    return (spread @ clean @ spread) / (spread @ (clean > 0).float() @ spread).clamp_min(1e-6)
