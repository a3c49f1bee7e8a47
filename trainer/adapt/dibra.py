"""Refinement from unlabelled depth after Dibra, Wolf, Oztireli and Gross 2017 (sections 3.3 to 3.5).

A cloud P of points on the skin is posed by whatever network there is (eq. 2), drawn as a depth picture that can be
differentiated (eq. 3 to 5), and compared with the camera's own points, drawn alike (eq. 6). Collisions (eq. 7) and
angles outside their limits (eq. 8) cost extra. P is learned with the network, so the hand's shape is.

Where we differ: every winner of eq. 3 is found without gradients and its value computed once more with them, which is
the same derivative for a fraction of the memory; eq. 6 is a mean over the pixels that either picture covers, so that a
near hand does not weigh more; P is held near the skin it was sampled from by `Cloud.restraint`, since one view leaves
points that no camera saw to chance.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...hand.kinematics import Shape, rest_vertices
from ...hand.skeleton import ANGLE_LIMITS_RAD, ANGLE_PARTS, IS_FLEXION, JOINT_PARENTS, PARENT_OR_PALM, ROOTS
from ...hand.template import template
from ..losses import metres
from ..nets.dgn import Output
from ..refit import Refit
from .dgn import TargetBatch

POINTS = 1500
SIZE, RADIUS_PX = 64, 2.5  # of the pictures drawn
SEEN_POINTS = 1500  # of the camera's own, at most
CYLINDER_M = 0.007  # eq. 7: a finger's half thickness, and a little less
UNIT_M = 0.1  # of what is learned of P, so that a network's learning rate moves it by hundredths of a millimetre
_BONES = [(JOINT_PARENTS[joint], joint) for joint in range(1, 21)]  # C of eq. 7


class Weights(NamedTuple):
    """What each term counts for (eq. 1): depth is in [0, 1], the collision in m, angles in rad, the restraint of P in
    mm^2. Chosen so that a picture that is a tenth off outweighs angles that are a tenth of a radian over."""

    depth: float = 1.0
    collision: float = 10.0
    limits: float = 0.05
    restraint: float = 0.002


class Terms:
    """The method for `adapt`: calls give the weighted terms by name, each a scalar. A Dual Grid Net's pose is what its
    parts' similarities say (its eq. 3)."""

    def __init__(self, shape: Shape, weights: Weights | None = None) -> None:
        self.weights = weights or Weights()
        self.cloud = Cloud(beta=shape.beta)
        self.refit = Refit()

    def parameters(self) -> list[Tensor]:
        """What is learned beside the network: the points of P."""
        return list(self.cloud.parameters())

    def __call__(self, output: Output, batch: TargetBatch) -> dict[str, Tensor]:
        parts = self.refit.parts(metres(output.vertices_uvd, batch.distance_m, batch.cube_m))
        joints = self.refit.joints_of(parts)
        b, size = batch.image.shape[:2]
        hand = (output.hand_logit.detach() > 0).view(b, size // 2, size // 2)
        hand = hand.repeat_interleave(2, 1).repeat_interleave(2, 2)
        found = compare(parts, joints, self.cloud, batch.image, hand, batch.distance_m, batch.cube_m)
        w = self.weights._asdict()
        return {name: w[name] * term.mean() for name, term in found._asdict().items() if w[name]}


class Found(NamedTuple):
    """Per sample (B,): depth (eq. 6) in [0, 1], collision (eq. 7) m, limits (eq. 8) rad; restraint () mm^2 of P."""

    depth: Tensor
    collision: Tensor
    limits: Tensor
    restraint: Tensor


class Cloud(nn.Module):
    """P: points (N, 3) m of the template's skin at rest, drawn by area, and what they hang on, weights (N, 16)."""

    base: Tensor
    weights: Tensor

    def __init__(self, points: int = POINTS, seed: int = 0, beta: NDArray[Any] | None = None) -> None:
        super().__init__()
        t = template()
        rng = np.random.default_rng(seed)
        vertices = t.vertices_m if beta is None else rest_vertices(t, beta[None])[0]
        corner = vertices[t.faces]  # (F, 3, 3)
        area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
        face = rng.choice(len(area), points, p=area / area.sum())
        a, b = rng.random((2, points))
        a, b = np.where(a + b > 1, 1 - a, a), np.where(a + b > 1, 1 - b, b)
        mix = np.stack([1 - a - b, a, b], 1)  # (N, 3)
        self.register_buffer("base", torch.tensor(np.einsum("nk,nkc->nc", mix, corner[face]), dtype=torch.float32))
        weights = np.einsum("nk,nkp->np", mix, t.weights[t.faces[face]])
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))
        self.offset = nn.Parameter(torch.zeros(points, 3))  # UNIT_M

    def forward(self, parts: Tensor) -> Tensor:
        """(B, N, 3) m posed by parts (B, 16, 3, 4) that map rest to posed points (eq. 2)."""
        rest = self.base + UNIT_M * self.offset
        homogeneous = torch.cat([rest, torch.ones_like(rest[:, :1])], 1)  # (N, 4)
        blend = torch.einsum("np,bprc->bnrc", self.weights, parts)  # (B, N, 3, 4)
        return (blend * homogeneous[:, None]).sum(-1)

    def restraint(self) -> Tensor:
        """() mean squared way of the points from where they were, mm^2."""
        return (1e3 * UNIT_M * self.offset).square().sum(1).mean()


def render(points: Tensor, size: int = SIZE, radius_px: float = RADIUS_PX) -> Tensor:
    """Draw points (B, N, 3) in crop coordinates [-1, 1] as (B, size, size): 0 far or nothing, 1 at the cube's near side
    (eq. 3 to 5). Points outside the cube are not drawn."""
    b, n, _ = points.shape
    at = (points[..., :2] + 1) * (size / 2) - 0.5  # (B, N, 2) px, column and row
    inside = (points.detach().abs() <= 1).all(-1)  # (B, N)
    reach = math.ceil(radius_px)
    steps = torch.arange(-reach, reach + 1, device=points.device)
    dy, dx = torch.meshgrid(steps, steps, indexing="ij")
    around = torch.stack([dx.reshape(-1), dy.reshape(-1)], -1)  # (K, 2)
    with torch.no_grad():
        pixel = at.round().long()[:, :, None] + around  # (B, N, K, 2)
        good = ((pixel >= 0) & (pixel < size)).all(-1) & inside[..., None]
        place = torch.where(good, pixel[..., 1] * size + pixel[..., 0], size * size).reshape(b, -1)  # (B, N K)
        value = _depth(points[:, :, None], at[:, :, None], pixel, radius_px).reshape(b, -1)
        best = value.new_zeros(b, size * size + 1).scatter_reduce(1, place, value, "amax")  # eq. 3
        wins = (value >= best.gather(1, place)) & (value > 0)
        of_point = torch.arange(n, device=points.device)[None, :, None].expand(b, n, len(around)).reshape(b, -1)
        winner = place.new_full((b, size * size + 1), -1)
        winner = winner.scatter_reduce(1, place, torch.where(wins, of_point, -1), "amax")[:, :-1]  # (B, S S)
    chosen = winner.clamp_min(0)[..., None]
    own = points.gather(1, chosen.expand(-1, -1, 3))  # (B, S S, 3)
    rows, columns = torch.meshgrid(*[torch.arange(size, device=points.device)] * 2, indexing="ij")
    grid = torch.stack([columns.reshape(-1), rows.reshape(-1)], -1)  # (S S, 2)
    drawn = _depth(own, at.gather(1, chosen.expand(-1, -1, 2)), grid, radius_px)
    return torch.where(winner >= 0, drawn, 0.0).view(b, size, size)


def seen_points(image: Tensor, hand: Tensor, most: int = SEEN_POINTS) -> Tensor:
    """The camera's own cloud P_D (B, most, 3) in crop coordinates: the pixels of image (B, S, S) that are hand (B, S,
    S), evenly over the picture, each again if there are fewer; outside the cube where there is none."""
    b, size = image.shape[:2]
    rows, columns = torch.meshgrid(*[torch.arange(size, device=image.device)] * 2, indexing="ij")
    u, v = (2 * columns + 1) / size - 1, (2 * rows + 1) / size - 1
    out = image.new_full((b, most, 3), 2.0)
    for k in range(b):
        at = (hand[k] & (image[k] < 0.999)).reshape(-1).nonzero()[:, 0]
        if len(at):
            at = at[(torch.arange(most, device=image.device) * len(at)) // most]
            out[k] = torch.stack([u.reshape(-1)[at], v.reshape(-1)[at], image[k].reshape(-1)[at]], -1)
    return out


def depth_term(drawn: Tensor, seen: Tensor) -> Tensor:
    """(B,) mean difference of two drawn pictures (B, S, S) over the pixels that either covers (eq. 6)."""
    covered = ((drawn.detach() > 0) | (seen > 0)).sum((1, 2)).clamp_min(1)
    return (drawn - seen).abs().sum((1, 2)) / covered


def collision_term(joints_m: Tensor, radius_m: float = CYLINDER_M) -> Tensor:
    """(B,) m: how deep joints (B, 21, 3) lie in bones that are not theirs, cylinders of one radius (eq. 7)."""
    start, end = (joints_m[:, [bone[k] for bone in _BONES]] for k in (0, 1))  # (B, 20, 3)
    along = end - start
    to = joints_m[:, None] - start[:, :, None]  # (B, 20, 21, 3)
    share = (to * along[:, :, None]).sum(-1) / along.square().sum(-1).clamp_min(1e-12)[..., None]
    inside = (share > 0) & (share < 1)
    away = (to - share[..., None] * along[:, :, None]).square().sum(-1).clamp_min(1e-12).sqrt()
    deep = torch.where(inside & _OTHERS.to(joints_m.device), (radius_m - away).clamp_min(0), 0.0)
    return deep.sum((1, 2)) / joints_m.shape[1]


def limits_term(angles_rad: Tensor) -> Tensor:
    """(B,) rad that angles (B, 20) lie outside their limits, summed (eq. 8)."""
    low, high = torch.tensor(ANGLE_LIMITS_RAD, dtype=angles_rad.dtype, device=angles_rad.device).unbind(1)
    return ((low - angles_rad).clamp_min(0) + (angles_rad - high).clamp_min(0)).sum(1)


def angles_of(rotations: Tensor) -> Tensor:
    """Rotations (B, 16, 3, 3) of the parts, in one frame, to angles (B, 20) rad: phi of eq. 8.
    `hand.kinematics.angles_from_rotations` in torch."""
    t = template()
    axes = torch.tensor(t.axes, dtype=rotations.dtype, device=rotations.device)
    flat = torch.tensor(t.flat_flex_rad, dtype=rotations.dtype, device=rotations.device)
    local = axes.mT @ (rotations[:, PARENT_OR_PALM].mT @ rotations) @ axes
    flex = torch.atan2(local[..., 2, 1], (local[..., 0, 1].square() + local[..., 1, 1].square() + 1e-12).sqrt())
    abd = torch.atan2(local[..., 0, 1], local[..., 1, 1])
    hinge = torch.atan2(local[..., 2, 1] - local[..., 1, 2], local[..., 1, 1] + local[..., 2, 2])
    over = abd.abs() > math.pi / 2
    flex = torch.where(over, torch.copysign(torch.full_like(flex, math.pi), flex) - flex, flex)
    abd = torch.where(over, abd - torch.copysign(torch.full_like(abd, math.pi), abd), abd)
    flex = torch.where(_HAS_ABD.to(rotations.device), flex, hinge) - flat
    return torch.stack([(flex if f else abd)[:, p] for p, f in zip(ANGLE_PARTS, IS_FLEXION, strict=True)], 1)


def uvd_of(points_m: Tensor, distance_m: Tensor, cube_m: Tensor) -> Tensor:
    """Metres (B, N, 3) in the crop camera's frame to crop coordinates: the inverse of `trainer.losses.metres`."""
    distance, half = distance_m[:, None], cube_m[:, None] / 2
    z = points_m[..., 2]
    scale = distance / (half * z.clamp_min(1e-3))
    return torch.stack([points_m[..., 0] * scale, points_m[..., 1] * scale, (z - distance) / half], -1)


def compare(
    parts: Tensor, joints_m: Tensor, cloud: Cloud, image: Tensor, hand: Tensor, distance_m: Tensor, cube_m: Tensor,
) -> Found:  # fmt: skip
    """All terms of a batch: parts (B, 16, 3, 4) and joints (B, 21, 3) m in the crop camera's frame, of any network that
    gives a pose (`refit.Refit.parts`, `hand_layer.Posed.parts`); image (B, S, S), hand (B, S, S) bool what of it is."""
    drawn = render(uvd_of(cloud(parts), distance_m, cube_m))
    with torch.no_grad():
        seen = render(seen_points(image, hand))
    linear = parts[..., :3]
    rotations = linear / linear.square().sum((-2, -1), keepdim=True).div(3).sqrt()
    return Found(
        depth_term(drawn, seen), collision_term(joints_m), limits_term(angles_of(rotations)), cloud.restraint()
    )


def _depth(points: Tensor, at: Tensor, pixel: Tensor, radius_px: float) -> Tensor:
    """Eq. 4 and 5 of points (..., 3) drawn about `at` (..., 2) px, at pixels (..., 2)."""
    far2 = (pixel - at).square().sum(-1) / radius_px**2
    return (1 - points[..., 2]) / 2 * (1 - far2).clamp_min(0).square()


def _others() -> Any:
    """(20, 21) whether a joint is neither end of a bone, nor at the root of the same fan of palm bones."""
    out = torch.ones(20, 21, dtype=torch.bool)
    for k, (start, end) in enumerate(_BONES):
        out[k, [start, end]] = False
        if start == 0:  # the palm's spokes run beside each other
            out[k, ROOTS] = False
    return out


_OTHERS = _others()
_HAS_ABD = torch.zeros(16, dtype=torch.bool)
_HAS_ABD[[int(p) for p, f in zip(ANGLE_PARTS, IS_FLEXION, strict=True) if not f]] = True
