"""Dual Grid Net's way to adapt (section 4): its terms, put together as eq. 5, 6, 9 and 14 say."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ...hand.kinematics import Shape
from ..losses import metres
from ..nets.dgn import Output
from . import terms
from .target import cell_points

Weights = terms.Weights
STRIDE = 2  # of the cells each so manieth, another one each step


class TargetBatch(NamedTuple):
    """Crops of the target: image (B, S, S), distance_m (B,), cube_m (B,), T_ref_crop (B, 4, 4), group (B,) the moment
    of each; step is the number of the step."""

    image: Tensor
    distance_m: Tensor
    cube_m: Tensor
    T_ref_crop: Tensor
    group: Tensor
    step: int


def some_of(batch: TargetBatch, which: Tensor) -> TargetBatch:
    """The crops that an index or a mask (B,) picks."""
    image, distance_m, cube_m, T_ref_crop, group, step = batch
    return TargetBatch(image[which], distance_m[which], cube_m[which], T_ref_crop[which], group[which], step)


class Terms:
    """Calls give the weighted terms by name, each a scalar; a weight of 0 leaves its term out."""

    def __init__(self, shape: Shape, weights: Weights | None = None) -> None:
        self.weights = weights or Weights()
        self.hand = terms.user_hand(shape)
        self.refit = terms.UserRefit(self.hand)

    def parameters(self) -> list[Tensor]:
        """What is learned beside the network: nothing."""
        return []

    def __call__(self, output: Output, batch: TargetBatch) -> dict[str, Tensor]:
        w = self.weights
        initial = metres(output.vertices_uvd, batch.distance_m, batch.cube_m)
        refined, joints = self.refit(initial)
        points, read = cell_points(batch.image, batch.distance_m, batch.cube_m)
        counts = (read & (output.hand_logit.detach() > 0)).float()
        some = slice(batch.step % STRIDE, None, STRIDE)
        points, counts, cells = points[:, some], counts[:, some], output.cells[:, some]
        sparse, facing = refined[:, :: terms.EVERY], terms.facing_camera(refined.detach())
        found: dict[str, Tensor] = {}
        if w.icp:
            found["icp"] = w.icp * terms.icp(points, counts, sparse, facing).mean()
        if w.lifting:
            found["lifting"] = w.lifting * terms.lifting(points, counts, initial, cells).mean()
        if w.collision:
            found["collision"] = w.collision * terms.collision(joints).mean()
        if w.arap:
            found["arap"] = w.arap * terms.arap(refined, initial).mean()
        if w.offset:
            found["offset"] = w.offset * terms.offset(self.refit.rigid(initial), self.hand).mean()
        if w.views or w.views_icp or w.views_lifting:
            found |= self._across(refined, initial, points, counts, cells, batch)
        return found

    def _across(
        self, refined: Tensor, initial: Tensor, points: Tensor, counts: Tensor, cells: Tensor, batch: TargetBatch
    ) -> dict[str, Tensor]:
        """Eq. 14: zeros where no moment has two views."""
        w = self.weights
        mesh, depth, T = terms.other_views(batch.T_ref_crop, batch.group)
        if not len(mesh):
            return dict.fromkeys(("views", "views_icp", "views_lifting"), initial.new_zeros(()))
        found = dict.fromkeys(("views", "views_icp", "views_lifting"), initial.new_zeros(()))
        if w.views:
            found["views"] = w.views * terms.views_vertex(refined, batch.T_ref_crop, batch.group).mean()
        if w.views_icp:
            there = terms.in_reference(refined[mesh], T)
            facing = terms.facing_camera(there.detach())
            across = terms.icp(points[depth], counts[depth], there[:, :: terms.EVERY], facing)
            found["views_icp"] = w.views_icp * across.mean()
        if w.views_lifting:
            there = terms.in_reference(initial[mesh], T)
            found["views_lifting"] = (
                w.views_lifting * terms.lifting(points[depth], counts[depth], there, cells[depth]).mean()
            )
        return found
