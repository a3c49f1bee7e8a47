"""`samples.py` for whole batches in plain torch: labelled crops made on the device that trains, none of them copied.

The same hands, views, scenes and sensors in distribution, not the same draws: poses, shapes, views and cameras come
from tables that the numpy path draws at the start, all else is drawn on the device. A batch depends on stream, seed,
index, options and the kind of device. `python -m edge_hand.trainer.synth.gpu` prints samples a second.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...hand.body import hand_with_arm
from ...hand.crop import CROP_SIZE
from ...hand.skeleton import ANGLE_LIMITS_RAD, JOINT_PARENTS
from ...hand.template import template
from ..hand_layer import HandLayer, rotation_from_quaternion, rotation_from_rotvec
from ..losses import Labels
from . import poses, raster_torch, samples, scene
from .layout import face_uv
from .raster_torch import Draw, constant
from .samples import CUBE_M, FAR_M, KINDS, NEAR_M, PATCH, STREAMS

CAMERAS = 4096  # cameras and settings that a generator's samples choose from
THINGS = 3  # boxes and cylinders at most
LOOSE_DEG, STRAY_RAD = (0.0, 2.0, 5.0), 0.05  # how far joints and views stray from those of the bank
_LIMITS, _PAIRS = tuple(map(tuple, ANGLE_LIMITS_RAD.T)), tuple(map(tuple, poses._PAIRS.T))
_ALONG, _CORE = tuple(poses._ALONG), tuple(poses._CORE[:, 0])
_TOUCHING = tuple(0.8 * poses._RADIUS.ravel()[poses._PAIRS].sum(1))


class Bank(NamedTuple):
    """What samples pick from, each by itself: angles (n, 20) rad, alpha (n, 6), beta (n, 7), views (n, 3, 3)."""

    angles: Tensor
    alpha: Tensor
    beta: Tensor
    views: Tensor


class GpuGenerator:
    """Batches of `batch` samples on a device; the other options are those of `samples.Generator`.

    bank: how many poses, shapes and views are drawn at the start, in numpy, for samples to combine and loosen.
    """

    def __init__(
        self,
        stream: str,
        seed: int = 0,
        device: str | torch.device = "cuda",
        *,
        batch: int = 1024,
        image_px: int = CROP_SIZE,
        left_share: float = 0.0,
        negative_share: float = 0.0,
        kind: str = "full",
        bank: int = 8192,
    ) -> None:
        if stream not in STREAMS or kind not in KINDS:
            raise ValueError(f"samples {stream}, {kind}: possible are {', '.join(STREAMS)} and {', '.join(KINDS)}")
        self.device, self.key, self.kind = torch.device(device), (STREAMS[stream], seed), kind
        self.size, self.image_px, self.patch_px = batch, image_px, PATCH * image_px // CROP_SIZE
        self.left_share, self.negative_share = left_share, negative_share
        body = hand_with_arm(template())
        self.n_vertices = len(template().vertices_m)
        # The layer for its joints and parts; the body has vertices of its own.
        self.layer = HandLayer(str(self.device), every=self.n_vertices)
        self.rest, self.morphs, self.weights = (self._tensor(x) for x in (body.vertices_m, body.morphs_m, body.weights))
        self.arm_level, self.face_uv = self._tensor(body.arm_level), self._tensor(face_uv(template()))
        self.arm, self.rings = ((self.arm_level >= level).nonzero()[:, 0] for level in (0.5, 1))
        self.cylinder = self._tensor(scene.CYLINDER.vertices)
        self.box = self.cylinder.clone()  # of the same faces, its rounds made square
        self.box[:, :2] /= self.box[:, :2].abs().amax(1, keepdim=True).clamp_min(1e-3)
        start, n = len(body.vertices_m), len(scene.CYLINDER.vertices)
        things = [scene.CYLINDER.faces + start + k * n for k in range(THINGS)]
        self.faces = torch.tensor(np.concatenate([body.faces, *things]), dtype=torch.int64, device=self.device)
        self.cameras = raster_torch.camera_bank(CAMERAS, self.key, self.device)
        self.bank = draw_bank(bank, self.key, kind, self.device)

    def batches(self, start: int = 0) -> Iterator[Labels]:
        """Endless batches from that index on."""
        while True:
            yield self.batch(start)
            start += 1

    @torch.no_grad()
    def batch(self, index: int) -> Labels:
        """The batch of this index: the same for ever on this kind of device, whatever was drawn before it."""
        draw, n = Draw((*self.key, index), self.device), self.size
        chosen = draw.below(CAMERAS, n)
        cameras = {name: value[chosen] for name, value in self.cameras.items()}
        near, far = (cameras["min_z_m"] + CUBE_M / 5).clamp_min(NEAR_M).log(), cameras["max_z_m"].clamp_max(FAR_M).log()
        distance = (near + (far - near) * draw.uniform(n)).exp()
        sizes = (cameras["focal_px"] * CUBE_M / distance).clamp(40, self.patch_px).long()
        is_hand, right = draw.uniform(n) >= self.negative_share, draw.uniform(n) >= self.left_share
        cameras["shadow_side"] = torch.where(right, 1, -1) * cameras["shadow_side"]  # left hands' pictures are mirrored
        joints, mesh, inverse, face, weight = self._scene(draw, distance, sizes, is_hand)
        noisy = torch.where(inverse > 0, 1 / inverse.clamp_min(1e-6), 0)
        if self.kind == "full":
            noisy = raster_torch.sense(noisy, sizes, sizes * distance / CUBE_M, cameras, draw)
        joints_uvd = _uvd(joints, distance)
        if self.kind != "clean":
            noisy = raster_torch.cut_at_border(draw, joints_uvd[..., :2], sizes, noisy)
        image = raster_torch.crop_patches(noisy, sizes, distance, self.image_px)
        on_hand, uv = raster_torch.correspondences(noisy, face, weight, sizes, distance, self.face_uv)
        shown, shows = is_hand[:, None, None], (is_hand & right)[:, None, None]
        return Labels(
            image=torch.where(right[:, None, None], image, image.flip(2)),
            uv=torch.where(shown[..., None], uv, 0),
            on_hand=on_hand & shows,
            vertices_uvd=torch.where(shown, _uvd(mesh[:, : self.n_vertices], distance), 0),
            joints_uvd=torch.where(shown, joints_uvd, 0),
            distance_m=distance,
            cube_m=torch.full_like(distance, CUBE_M),
            is_right=right,
            is_hand=is_hand,
        )

    def _tensor(self, x: Any) -> Tensor:
        return torch.tensor(x, dtype=torch.float32, device=self.device)

    def _pick(self, draw: Draw, bank: Tensor) -> Tensor:
        return bank[draw.below(len(bank), self.size)]

    def _scene(self, draw: Draw, distance: Tensor, sizes: Tensor, is_hand: Tensor) -> tuple[Tensor, ...]:
        """Joints (B, 21, 3) and vertices, m, in the crop's frame, the hand's first; the `Raster` of it all."""
        n, slope = self.size, CUBE_M / 2 / distance
        posed_joints, posed = self._pose(draw)
        rotation = rotation_from_rotvec(STRAY_RAD * draw.normal(n, 3)) @ self._pick(draw, self.bank.views)
        middle = draw.choice((0.004, 0.012, 0.02), n, 1) * draw.normal(n, 3)
        middle[:, 2] += distance
        joints, body = place(posed_joints, posed, rotation, middle)
        other_joints, other = self._arm(draw, posed, distance)
        shown = is_hand[:, None, None]
        joints, body = torch.where(shown, joints, other_joints), torch.where(shown, body, other)
        things = self._things(draw, joints, body, distance, is_hand)
        mesh = torch.cat([body, things.flatten(1, 2)], 1)
        inverse, face, weight = raster_torch.rasterise_batch(mesh, self.faces, slope, self.patch_px, sizes=sizes)
        if self.kind == "clean":
            return joints, mesh, inverse, face, weight
        at, second = self._second_hands(draw, is_hand, joints, posed_joints, posed)
        if len(at):
            faces = self.faces[: -THINGS * len(scene.CYLINDER.faces)]
            drawn = raster_torch.rasterise_batch(second, faces, slope[at], self.patch_px, sizes=sizes[at])
            _put(inverse, face, at, drawn.inverse_depth)
        rays = raster_torch.ray_slopes(slope, sizes, self.patch_px)
        self._background(draw, is_hand, mesh, rays, inverse, face)
        self._clutter(draw, is_hand, joints, rays, inverse, face)
        return joints, mesh, inverse, face, weight

    def _pose(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Joints (B, 21, 3) and body vertices (B, V, 3), m, in the hand's frame."""
        n = self.size
        shape = draw.below(len(self.bank.alpha), n)
        alpha, beta = self.bank.alpha[shape], self.bank.beta[shape]
        angles = loosen(draw, self.layer, self._pick(draw, self.bank.angles))
        posed = self.layer(F.pad(angles, (6, 0)), alpha, beta)
        bend = (draw.normal(n, 3) * constant((25.0, 15.0, 12.0), self.device).deg2rad()).clamp(-0.9, 0.9)
        arm = F.pad(alpha[:, :1, None] * rotation_from_rotvec(bend), (0, 1))[:, None]  # (B, 1, 3, 4)
        parts = torch.cat([posed.parts, arm], 1)  # (B, 17, 3, 4)
        rest = self.rest + (beta @ self.morphs.flatten(1)).view(n, -1, 3)
        if self.kind != "clean":
            rest = self._dress(draw, rest)
        blend = (self.weights @ parts.flatten(2)).view(n, -1, 3, 4)  # (B, V, 3, 4)
        return posed.joints_m, (blend[..., :3] * rest[:, :, None]).sum(-1) + blend[..., 3]

    def _dress(self, draw: Draw, rest: Tensor) -> Tensor:
        """`scene.dress`: some with a sleeve that may reach over the wrist, some with a band."""
        n = self.size
        axis = F.normalize(rest[:, self.rings].mean(1), dim=-1)[:, None]
        along = (rest * axis).sum(-1)  # (B, V)
        kind, start = draw.uniform(n, 1), draw.uniform(n, 1, low=0.005, high=0.05)
        end = start + draw.uniform(n, 1, low=0.015, high=0.05)
        sleeve = (kind < 0.33) & (along > draw.uniform(n, 1, high=0.12))
        band = (kind >= 0.33) & (kind < 0.45) & (along > start) & (along < end)
        tight, wide = draw.uniform(n, 1, low=0.08, high=0.3), draw.uniform(n, 1, low=0.05, high=0.7)
        thicker = torch.where(band, tight, torch.where(sleeve, wide, 0)) * (self.arm_level > 0)
        return rest + thicker[..., None] * (rest - along[..., None] * axis)

    def _arm(self, draw: Draw, posed: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """In place of a hand: a point (B, 21, 3) in the middle, and (B, V, 3), in half of all an arm without hand."""
        n = self.size
        centre = F.pad(distance[:, None], (2, 0))[:, None]  # (B, 1, 3)
        middle = posed[:, self.arm].mean(1, keepdim=True) + 0.03 * draw.normal(n, 1, 3)
        turn = rotation_from_quaternion(draw.normal(n, 4)) * draw.uniform(n, 1, 1, low=0.8, high=1.8)
        shown = (self.arm_level > 0.4) & (draw.uniform(n, 1) < 0.5)
        arm = torch.where(shown[..., None], (posed - middle) @ turn.mT + centre, -1)  # behind the camera
        return centre.expand(n, 21, 3), arm

    def _things(self, draw: Draw, joints: Tensor, body: Tensor, distance: Tensor, is_hand: Tensor) -> Tensor:
        """Up to `THINGS` boxes and cylinders, (B, THINGS, 34, 3) m: one in some hands, some where there is none."""
        n = self.size
        size = draw.uniform(n, THINGS, 3, low=math.log(0.008), high=math.log(0.15)).exp()
        turn = rotation_from_quaternion(draw.normal(n, THINGS, 4))
        centre = 0.05 * draw.normal(n, THINGS, 3)
        centre[..., 2] += distance[:, None]
        arm = body[:, self.arm, 2].amax(1) > 0
        number = torch.where(arm, draw.below(4, n), 1 + draw.below(3, n))
        exists = (torch.arange(THINGS, device=self.device) < number[:, None]) & ~is_hand[:, None]
        square = draw.uniform(n, THINGS) < 0.5
        fits, *thing = held_objects(draw, joints)
        held = fits & is_hand & (draw.uniform(n) < 0.18)
        exists[:, 0] |= held
        for every, first in zip((size, turn, centre, square), thing, strict=True):
            every[:, 0] = torch.where(held.view(n, *[1] * (first.ndim - 1)), first, every[:, 0])
        form = torch.where(square[..., None, None], self.box, self.cylinder)  # (B, T, 34, 3)
        drawn = (form * size[:, :, None]) @ turn.mT + centre[:, :, None]
        return torch.where((exists & (self.kind != "clean"))[..., None, None], drawn, -1)  # behind the camera

    def _second_hands(
        self, draw: Draw, is_hand: Tensor, joints: Tensor, posed_joints: Tensor, posed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`scene.second_hand`: which samples show another hand as well, (K,), and its vertices (K, V, 3) m."""
        n = self.size
        turn = rotation_from_quaternion(draw.normal(n, 4))
        turn[:, :, 0] *= 1 - 2 * (draw.uniform(n, 1) < 0.7).float()  # most second hands are the other one
        away = F.normalize(draw.normal(n, 3), dim=-1)
        middle = joints.mean(1) + away * draw.uniform(n, 1, low=0.09, high=0.2)
        other_joints, other = place(posed_joints.roll(1, 0), posed.roll(1, 0), turn, middle)
        gap = torch.cdist(joints, other_joints).flatten(1).amin(1)
        at = (is_hand & (gap > 0.022) & (draw.uniform(n) < 0.1)).nonzero()[:, 0]
        return at, other[at]

    def _background(
        self, draw: Draw, is_hand: Tensor, mesh: Tensor, rays: Tensor, inverse: Tensor, face: Tensor
    ) -> None:
        """`scene.draw_background`: a wall, table, chest or head behind the hand or behind all."""
        n = self.size
        close, wide = draw.uniform(n, low=0.001, high=0.02), draw.uniform(n, low=0.02, high=0.15)
        gap = torch.where(draw.uniform(n) < 0.5, close, wide)
        kind, beyond = draw.uniform(n), is_hand & (draw.uniform(n) < 0.5)  # of the hand alone: the arm may pass through
        tilt = draw.choice((0.15, 0.6), n, 1) * draw.normal(n, 2)
        normal = F.normalize(F.pad(tilt, (0, 1), value=1.0), dim=-1)
        reach = (mesh * normal[:, None]).sum(-1)  # (B, V)
        offset = torch.where(beyond, reach[:, : self.n_vertices].amax(1), reach.amax(1)) + gap
        at = (kind < 0.3).nonzero()[:, 0]
        _put(inverse, face, at, raster_torch.plane_inverse_depth(normal[at], offset[at], rays[at]))

        low, high = constant((0.07, 0.1, 0.07), self.device), constant((0.22, 0.3, 0.15), self.device)
        axes = low + (high - low) * draw.uniform(n, 3)
        z = mesh[..., 2]
        last = torch.where(beyond, z[:, : self.n_vertices].argmax(1), z.argmax(1))
        deepest = mesh[torch.arange(n, device=self.device), last]
        centre = deepest + F.pad(0.08 * draw.normal(n, 2), (0, 1)) + F.pad((gap + axes[:, 2])[:, None], (2, 0))
        turn = rotation_from_rotvec(0.3 * draw.normal(n, 3)).mT / axes[..., None]
        at = ((kind >= 0.3) & (kind < 0.5)).nonzero()[:, 0]
        _put(inverse, face, at, raster_torch.ellipsoid_inverse_depth(centre[at], turn[at], rays[at]))

    def _clutter(
        self, draw: Draw, is_hand: Tensor, joints: Tensor, rays: Tensor, inverse: Tensor, face: Tensor
    ) -> None:
        """`scene.draw_clutter`: a few round things, none inside the hand."""
        n = self.size
        number = torch.where(draw.uniform(n) < torch.where(is_hand, 0.2, 0.6), 1 + draw.below(3, n), 0)
        for k in range(3):
            axes = draw.uniform(n, 3, low=0.012, high=0.08)
            centre = joints.mean(1) + draw.uniform(n, 3, low=-0.15, high=0.15)
            turn = rotation_from_quaternion(draw.normal(n, 4)).mT / axes[..., None]
            gap = (joints - centre[:, None]).norm(dim=-1).amin(1)
            free = (gap >= axes.amax(1) + 0.014) & (centre[:, 2] >= 0.15)
            at = (free & (k < number)).nonzero()[:, 0]
            _put(inverse, face, at, raster_torch.ellipsoid_inverse_depth(centre[at], turn[at], rays[at]))


def _put(inverse: Tensor, face: Tensor, at: Tensor, drawn: Tensor) -> None:
    """Draw inverse depth (K, S, S) into pictures `at` (K,), where it is nearer; its pixels are no hand's."""
    face[at] = torch.where(drawn > inverse[at], -2, face[at])
    inverse[at] = torch.maximum(drawn, inverse[at])


def place(joints: Tensor, vertices: Tensor, rotation: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """Both turned by (B, 3, 3) and moved so that the joints' mean comes to the middle (B, 3)."""
    offset = (middle - (rotation @ joints.mean(1)[..., None])[..., 0])[:, None]
    return joints @ rotation.mT + offset, vertices @ rotation.mT + offset


def held_objects(draw: Draw, joints: Tensor, tries: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`scene.held_object`: if there is room (B,), half size (B, 3), rotation, centre (B, 3), whether a box (B,)."""
    n, shape = len(joints), (len(joints), tries)
    bones = joints[:, JOINT_PARENTS[1:]]
    flesh = torch.cat([bones.lerp(joints[:, 1:], float(t)) for t in scene.ALONG[:, 0]], 1)  # (B, 80, 3)
    across = F.normalize(joints[:, 17] - joints[:, 5], dim=-1)
    palm = joints[:, (0, 5, 9, 17)].mean(1)
    inwards = joints[:, (8, 12, 16, 20, 4)].mean(1) - palm  # where the fingers are
    inwards = F.normalize(inwards - across * (inwards * across).sum(-1, keepdim=True), dim=-1)
    lean = draw.normal(*shape, 3)
    axis = F.normalize(torch.where(draw.uniform(*shape, 1) < 0.7, across[:, None] + 0.3 * lean, lean), dim=-1)
    centre = palm[:, None] + inwards[:, None] * draw.uniform(*shape, 1, low=0.01, high=0.07)
    centre = centre + 0.012 * draw.normal(*shape, 3)
    half = draw.uniform(*shape, 1, low=0.02, high=0.12)
    offset = flesh[:, None] - centre[:, :, None]  # (B, T, 80, 3)
    along = (offset * axis[:, :, None]).sum(-1).clamp(-half, half)
    room = (offset - along[..., None] * axis[:, :, None]).norm(dim=-1).amin(2) - scene.FLESH_M
    at = torch.arange(n, device=joints.device), _first(room >= 0.003)
    radius = room[at][:, None].minimum(draw.uniform(n, 1, low=0.01, high=0.05))
    square, flat = draw.uniform(n) < 0.4, draw.uniform(n, 1, low=0.3)
    size = torch.cat([radius, torch.where(square[:, None], flat, 1) * radius, half[at]], 1)
    size = torch.where(square[:, None], size / (1 + flat * flat).sqrt(), size)
    x = F.normalize(torch.linalg.cross(axis[at], draw.normal(n, 3)), dim=-1)
    turn = torch.stack([x, torch.linalg.cross(axis[at], x), axis[at]], -1)
    return room[at] >= 0.003, size, turn, centre[at], square


def draw_bank(n: int, seed: tuple[int, ...], kind: str, device: torch.device) -> Bank:
    """n draws of each as `samples.Generator` makes them; some 0.4 ms for one of all."""
    rng, t = np.random.default_rng(seed), template()
    view = samples._palm_view if kind == "clean" else poses.sample_view
    angles = np.stack([poses.sample_angles(t, rng) for _ in range(n)])
    alpha, beta = (np.stack(column) for column in zip(*(poses.sample_shape(rng) for _ in range(n)), strict=True))
    views = np.stack([view(rng) for _ in range(n)])
    return Bank(*(torch.tensor(x, dtype=torch.float32, device=device) for x in (angles, alpha, beta, views)))


def loosen(draw: Draw, layer: HandLayer, hands: Tensor, tries: int = 3) -> Tensor:
    """Hands (N, 20) rad with every joint some degrees elsewhere, inside the limits and without flesh in flesh."""
    n = len(hands)
    low, high = constant(_LIMITS, draw.device)
    angles = hands[:, None] + draw.choice(LOOSE_DEG, n, 1, 1).deg2rad() * draw.normal(n, tries, 20)
    angles = angles.clamp(low, high)
    free = ~penetrates(layer, angles.flatten(0, 1)).view(n, tries)
    first = angles[torch.arange(n, device=draw.device), _first(free)]
    return torch.where(free.any(1, keepdim=True), first, hands)


def penetrates(layer: HandLayer, angles: Tensor) -> Tensor:
    """`poses.penetrates`: whether flesh of two fingers, or of a finger and the palm, overlaps; (N, 20) to (N,)."""
    n = len(angles)
    joints = layer(F.pad(angles, (6, 0)), angles.new_ones(n, 6), angles.new_zeros(n, 7)).joints_m
    fingers = joints[:, 1:].reshape(n, 5, 4, 3)
    start, end = fingers[:, :, :3].flatten(1, 2), fingers[:, :, 1:].flatten(1, 2)  # (N, 15, 3)
    end = start + constant(_CORE, angles.device)[:, None] * (end - start)
    (one, other), touching = constant(_PAIRS, angles.device), constant(_TOUCHING, angles.device)
    between = (_segment_distance(start[:, one], end[:, one], start[:, other], end[:, other]) < touching).any(1)
    # The palm is a slab: finger points over it must stay on its palmar side.
    along = constant(_ALONG, angles.device)[:, None]
    x, y, z = (start[:, 1:, None] + (end - start)[:, 1:, None] * along).unbind(-1)  # the thumb's metacarpal is palm
    over = (y > 0.015) & (y < 0.085) & (x.abs() < 0.034)
    return between | (over & (z > -0.017) & (z < 0.02)).flatten(1).any(1)


def _segment_distance(a0: Tensor, a1: Tensor, b0: Tensor, b1: Tensor) -> Tensor:
    u, v, w = a1 - a0, b1 - b0, a0 - b0
    a, b, c = (u * u).sum(-1), (u * v).sum(-1), (v * v).sum(-1)
    d, e = (u * w).sum(-1), (v * w).sum(-1)
    s = ((b * e - c * d) / (a * c - b * b).clamp_min(1e-12)).clamp(0, 1)
    r = ((b * s + e) / c.clamp_min(1e-12)).clamp(0, 1)
    s = ((b * r - d) / a.clamp_min(1e-12)).clamp(0, 1)
    return (w + s[..., None] * u - r[..., None] * v).norm(dim=-1)


def _first(true: Tensor) -> Tensor:
    """The first true column of each row, (N, T) to (N,); argmax promises no order among equals."""
    return (true * torch.arange(true.shape[1], 0, -1, device=true.device)).argmax(1)


def _uvd(points_m: Tensor, distance: Tensor) -> Tensor:
    """`hand.crop.uvd_from_points` in torch: (B, N, 3) m, (B,)."""
    z, distance = points_m[..., 2:], distance[:, None, None]
    return torch.cat([points_m[..., :2] * distance / z, z - distance], -1) / (CUBE_M / 2)


def main() -> None:
    """Print samples a second at several batch sizes."""
    parser = argparse.ArgumentParser(description="time the batched sample generator")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--image-px", type=int, default=CROP_SIZE)
    parser.add_argument("--kind", choices=KINDS, default="full")
    parser.add_argument("--bank", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = vars(parser.parse_args())
    seconds, sizes, device = (options.pop(name) for name in ("seconds", "batch", "device"))
    for batch in sizes:
        batches = GpuGenerator("train", 0, device, batch=batch, **options).batches()
        float(next(batches).image.sum())  # waits until it is there
        made, begun = 0, time.monotonic()
        while time.monotonic() - begun < seconds:
            float(next(batches).image.sum())
            made += batch
        print(f"{device}  batch {batch:5d}  {made / (time.monotonic() - begun):8.0f} samples/s", flush=True)


if __name__ == "__main__":
    main()
