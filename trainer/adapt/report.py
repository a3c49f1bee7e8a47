"""Pictures of fits before and after, and the few lines and the JSON that say what an adaptation did."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from ...edge.draw import contact_sheet, depth_picture, draw_joints, draw_mesh, save_png, view_of
from ...edge.evaluate import surface_distance_mm
from ...edge.refit import Fit, Refit
from ...hand.arrays import Array
from ...hand.crop import CROP_SIZE, square_camera
from ...hand.frames import DepthFrame
from ...hand.kinematics import Shape
from ...hand.template import template
from ..synth.poses import hand_length_m
from .fit import Sight
from .frames import FAR, UNIT_M, WINDOW_M, WINDOW_PX, View, cut_crop
from .target import Target, look

PANEL_PX = 200


class Seen(NamedTuple):
    """A hand as one network and the daemon's refit see it in a view, in the view's frame, and the median distance of
    the depth points to its mesh, mm."""

    joints_m: Array
    vertices_m: Array
    fit_mm: float


def see(net: nn.Module, target: Target, views: list[int], shape: Shape | None) -> list[Seen]:
    """What the daemon would publish of some views: with its own bone scales each time, or with a held shape."""
    chosen = [target.view(i) for i in views]
    cube = target.cubes[0 if shape is None else 1]
    sights = look(net, [cut_crop(v, cube, CROP_SIZE) for v in chosen], chosen)
    refit = Refit()
    return [_seen(refit, sight, view, shape) for sight, view in zip(sights, chosen, strict=True)]


def _seen(refit: Refit, sight: Sight, view: View, shape: Shape | None) -> Seen:
    fit: Fit = refit.solve(sight.vertices_m, shape=shape, points_m=sight.points_m, weights=sight.trust)
    vertices = refit.pose(fit.T_wrist, fit.angles, fit.shape)[1].astype(np.float64)
    distance = surface_distance_mm(sight.points_m, vertices, template().faces)
    R = view.T_ref_view[:3, :3].T @ sight.T_ref_view[:3, :3]
    return Seen(fit.joints_m @ R.T, vertices @ R.T, float(np.median(distance)) if len(distance) else float("nan"))


def draw_fits(path: Path, target: Target, before: nn.Module, after: nn.Module, most: int = 8) -> dict[str, float]:
    """A sheet of views, a row each: depth, joints and mesh before, joints and mesh after. Median fits, mm."""
    views = [int(i) for i in np.linspace(0, len(target.windows) - 1, min(most, len(target.windows)))]
    old, new = see(before, target, views, None), see(after, target, views, target.shape)
    save_png(path, contact_sheet([_row(target.view(i), o, n) for i, o, n in zip(views, old, new, strict=True)], 2))
    return {
        "before": float(np.nanmedian([o.fit_mm for o in old])),
        "after": float(np.nanmedian([n.fit_mm for n in new])),
    }


def _row(view: View, old: Seen, new: Seen) -> Array:
    counts = np.where(view.window == FAR, 0, view.window).astype(np.uint16)
    frame = DepthFrame("window", 0, 0, counts, UNIT_M, square_camera(WINDOW_PX, view.distance_m, WINDOW_M))
    picture_camera = view_of(frame.intrinsics, [old, new], (PANEL_PX, PANEL_PX))
    grey, faces = depth_picture(frame, [old, new], picture_camera), template().faces
    panels = [grey]
    for seen in (old, new):
        panels.append(draw_joints(grey, [seen.joints_m], picture_camera))
        panels.append(draw_mesh(grey // 3, [seen.vertices_m], faces, picture_camera))
    return np.concatenate(panels, 1)


def summary(target: Target) -> dict[str, Any]:
    """What is known of the target, for the report; comparable across devices."""
    return {
        "views": len(target.windows),
        "moments": len(target.seq),
        "good_moments": int(target.good.sum()),
        "alpha": [round(float(x), 4) for x in target.alpha],
        "beta": [round(float(x), 4) for x in target.beta],
        "hand_length_mm": round(1e3 * hand_length_m(template(), target.alpha, target.beta), 1),
    }
