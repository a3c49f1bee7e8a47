"""The cameras' poses from the hand's own depth points, which no network has touched.

Every two clouds of one moment that show the same skin must lie on each other: points are matched to the nearest of the
other cloud, and their distance along the mean of both normals is made small over all pairs and moments at once
(symmetric point-to-plane: Rusinkiewicz, A Symmetric Objective Function for ICP, 2019), with robust weights that narrow.
The hand moves while the cameras take their pictures at different times, so each cloud is carried to its moment along
the joints' velocity; that makes the time offset visible too. A camera's depth error relative to the reference is an
offset of its inverse depth. Unknowns a camera: turn, shift, time offset, depth offset; the reference camera's are held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..hand.arrays import Array
from ..hand.se3 import apply, inverse
from .joint import Path, moved
from .observe import Cloud, DepthError, Sight, tree_of

STEP = 8  # unknowns of a camera: turn 3, shift 3, time offset, depth offset
OFFSET_SIGMA_S, DEPTH_SIGMA_PER_M = 0.005, 0.004  # beliefs: from the joints; a tenth of a pixel of disparity and a bit
WIDE_M, NARROW_M, SHRINK = 0.012, 0.004, 0.8  # where a match loses its weight: at first, at last, from step to step
NEIGHBOURS = 12  # of a point, that make its normal
LEAST_POINTS = 60  # of a cloud
STEEP = 0.4  # cosine between the view and the normal: skin seen at a grazing angle is not measured well
BENT = 0.06  # share of the least eigenvalue: more is no surface
ALIKE = 0.75  # cosine of the normals of a match
TOGETHER_S, MOST_TOGETHER_S = 0.02, 0.04  # clouds further apart are of no one moment; the latter at low rates
FAST_M_S = 0.9
MOMENTS = 200
ASKED = 400  # points of a cloud that are looked up in another
RIM_PX, RIM_KEPT = 5.0, 0.35  # from an outline, unless so few of the points are further in
STEP_M = 0.012  # of depth, that is an outline too
LEAST_MATCHES = 15
FEWEST_MOMENTS = 20  # that tie a camera to the others; with fewer, nothing is concluded from its depth points
LEAST_TIED = 4  # moments; with fewer, a camera is left where the joints have it


class View(NamedTuple):
    """One camera's cloud of a moment: camera frame points (N, 3) m, normals (N, 3), stamp; which points (K,) are skin
    seen well, to be looked up in other clouds; joint (N,) is each point's nearest; tree is of the points; mesh_m (V, 3)
    is the hand fitted to this view, if it is known."""

    camera: int
    t_s: float
    points_m: Array
    normals: Array
    good: NDArray[np.bool_]
    asked: NDArray[np.intp]
    joint: NDArray[np.intp]
    tree: Any
    mesh_m: Array | None


class Moment(NamedTuple):
    """Clouds of one time (reference clock), and the velocities (21, 3) of the joints then, in the rig's frame."""

    t_s: float
    views: tuple[View, ...]
    velocities_m_s: Array


@dataclass(frozen=True, eq=False)
class IcpFit:
    """T_ref_cam (C, 4, 4), offsets_s (C,), depth_per_m (C,); normals and pulls of each moment (M, 8C, 8C), (M, 8C) at
    the end; rms_m of the weighted distances; matches; which cameras (C,) were left where they were at the start, for
    their points hardly met anyone's."""

    T_ref_cam: Array
    offsets_s: Array
    depth_per_m: Array
    moments: tuple[Moment, ...]
    normal: Array
    pull: Array
    rms_m: float
    matches: int
    held: NDArray[np.bool_]

    def step_without(self, left_out: NDArray[np.bool_]) -> Array:
        """What the solution would move by (C, 8) if these moments (M,) had not been."""
        normal, pull = self.normal[~left_out].sum(0), self.pull[~left_out].sum(0)
        return _solve(normal, pull, self.rms_m, None, self.held)


def choose_moments(
    sights: Sequence[Sight], path: Path, T_ref_cam: Array, offsets_s: Array, most: int = MOMENTS
) -> tuple[Moment, ...]:
    """Moments at which two cameras or more have a cloud, spread over the motion. Raises DepthError for too few."""
    times = [np.array([cloud.t_s for cloud in s.clouds]) + o for s, o in zip(sights, offsets_s, strict=True)]
    # Cameras that run freely are half a frame apart at worst.
    slowest_s = max((float(np.median(np.diff(s.times_s))) for s in sights if len(s.times_s) > 1), default=0.0)
    apart_s = min(max(TOGETHER_S, 0.55 * slowest_s), MOST_TOGETHER_S)
    kept: dict[tuple[tuple[int, int], ...], float] = {}  # which cloud of which camera; one moment a set of clouds
    for t_s in np.unique(np.concatenate([t for t in times if len(t)] or [np.zeros(0)])):
        joints, velocities = path.at(t_s)
        if not np.isfinite(joints).all() or np.linalg.norm(velocities.mean(0)) > FAST_M_S:
            continue
        near = [int(np.argmin(np.abs(t - t_s))) if len(t) else -1 for t in times]
        together = tuple((c, k) for c, k in enumerate(near) if k >= 0 and abs(times[c][k] - t_s) < apart_s)
        if len(together) > 1:
            kept.setdefault(together, float(t_s))
    sets = list(kept)
    if len(sets) > most:
        sets = [sets[i] for i in np.linspace(0, len(sets) - 1, most).astype(int)]
    moments = []
    for chosen in sets:
        middle = float(np.mean([times[c][k] for c, k in chosen]))
        joints, velocities = path.at(middle)
        if not np.isfinite(joints).all():
            continue
        own = [apply(inverse(T_ref_cam[c]), joints) for c, _ in chosen]
        made = [prepare(c, sights[c], sights[c].clouds[k], j) for (c, k), j in zip(chosen, own, strict=True)]
        views = tuple(view for view in made if view is not None)
        if len(views) > 1:
            moments.append(Moment(middle, views, velocities))
    if len(moments) < 4:
        raise DepthError(f"the cameras share only {len(moments)} moments with enough of the hand's depth points")
    return tuple(moments)


def prepare(camera: int, sight: Sight, cloud: Cloud, joints_m: Array) -> View | None:
    """Normals of a cloud by the plane through each point's neighbours; joints (21, 3) m in the camera's frame; None if
    it is too small."""
    points = np.asarray(cloud.points_m, np.float64)
    if len(points) < LEAST_POINTS:
        return None
    tree = tree_of(points)
    near = points[tree.query(points, k=NEIGHBOURS)[1]]  # (N, k, 3)
    near = near - near.mean(1, keepdims=True)
    values, vectors = np.linalg.eigh(np.einsum("nka,nkb->nab", near, near))
    normals = vectors[:, :, 0]
    along = np.einsum("na,na->n", normals, points) / np.linalg.norm(points, axis=1)
    normals = normals * -np.sign(along)[:, None]
    good = (np.abs(along) > STEEP) & (values[:, 0] < BENT * values.sum(1))
    rim = rim_px(sight.intrinsics.project(points), points[:, 2])
    good &= rim > min(RIM_PX, float(np.quantile(rim, 1 - RIM_KEPT)) - 1e-6)
    asked = np.flatnonzero(good)
    if len(asked) > ASKED:
        asked = asked[np.linspace(0, len(asked) - 1, ASKED).astype(int)]
    return View(camera, cloud.t_s, points, normals, good, asked, tree_of(joints_m).query(points)[1], tree, cloud.mesh_m)


def rim_px(pixels: Array, z_m: Array) -> Array:
    """How far points (N, 2) px are from the outline of what they show, or from a step in depth, (N,) px.

    Stereo makes near surfaces grow over what lies behind by half its matching window: a rim that is no skin.
    """
    cell = max(1.0, 2 * float(np.median(tree_of(pixels).query(pixels, k=2)[0][:, 1])))
    at = np.floor((pixels - pixels.min(0)) / cell).astype(int) + 2
    depth = np.full(tuple(at.max(0) + 3), np.inf)
    np.minimum.at(depth, (at[:, 0], at[:, 1]), z_m)
    empty = ~np.isfinite(depth)
    around = np.stack([np.roll(depth, shift, (0, 1)) for shift in np.ndindex(3, 3)])  # shifts 0, 1, 2
    around = np.roll(around, (-1, -1), (1, 2))
    outside = empty & (np.isfinite(around).sum(0) < 6)  # a lone lost pixel is no outline
    step = ~empty & ((np.where(np.isfinite(around), around, -np.inf).max(0) - depth) > STEP_M)
    edge = np.argwhere(outside | step)
    return np.asarray(tree_of(edge * cell).query(at * cell)[0])


def fit_clouds(
    moments: Sequence[Moment], T_ref_cam: Array, offsets_s: Array, *, iterations: int = 18,
    wide_m: float = WIDE_M, depth_per_m: Array | None = None, held: NDArray[np.bool_] | None = None,
) -> IcpFit:  # fmt: skip
    """Gauss-Newton from a start. Cameras that depth does not tie to the first are held there, as those that are given
    as held. Raises DepthError if the clouds nowhere meet."""
    cameras = len(T_ref_cam)
    held = np.zeros(cameras, bool) if held is None else held
    T, start_s, offsets = T_ref_cam.copy(), offsets_s.copy(), offsets_s.copy()
    bends = np.zeros(cameras) if depth_per_m is None else depth_per_m.copy()
    for i in range(iterations):
        reach = max(NARROW_M, wide_m * SHRINK**i)
        normals, pulls, square, weight, matches = _equations(moments, T, offsets, bends, reach, held)
        if matches < 10 * LEAST_MATCHES:
            raise DepthError("the cameras' depth of the hand nowhere shows the same skin: do they look at one hand?")
        rms = float(np.sqrt(square / weight))
        if i == iterations - 1:
            break
        prior = (offsets - start_s, bends)
        step = _solve(normals.sum(0), pulls.sum(0), rms, prior, held)
        T, offsets, bends = moved(T, step[:, :6]), offsets + step[:, 6], bends + step[:, 7]
        if reach == NARROW_M and np.abs(step[:, :6]).max() < 1e-5:
            normals, pulls, square, weight, matches = _equations(moments, T, offsets, bends, reach, held)
            break
    fit = IcpFit(T, offsets, bends, tuple(moments), normals, pulls, rms, matches, held)
    loose = ~held & (tied_moments(fit, LEAST_TIED) < LEAST_TIED) & (np.arange(cameras) > 0)
    if not loose.any():
        return fit
    # A few chance matches may have thrown it anywhere.
    return fit_clouds(
        moments, T_ref_cam, offsets_s, iterations=iterations, wide_m=wide_m, depth_per_m=depth_per_m,
        held=held | loose,
    )  # fmt: skip


def tied_moments(fit: IcpFit, fewest: int = FEWEST_MOMENTS) -> NDArray[np.intp]:
    """In how many moments (C,) each camera's points meet those of the reference, or of others that are tied to it."""
    cameras = len(fit.T_ref_cam)
    # Where two cameras met in a moment, its normal matrix ties them.
    met = fit.normal.reshape(-1, cameras, STEP, cameras, STEP).any((2, 4))  # (M, C, C)
    met &= ~np.eye(cameras, dtype=bool)
    tied = np.arange(cameras) == 0
    while True:
        counts = np.asarray(met[:, :, tied].any(2).sum(0), np.intp)
        more = tied | (counts >= fewest)
        if (more == tied).all():
            return counts
        tied = more


def _solve(normal: Array, pull: Array, rms: float, prior: tuple[Array, Array] | None, held: NDArray[np.bool_]) -> Array:
    """The step (C, 8) that normal equations ask for; prior: how far offsets and depths are from what is believed."""
    cameras = len(pull) // STEP
    stiff = np.zeros((cameras, STEP))
    # Errors of neighbouring points go together, so that beliefs count for more than one point among thousands.
    stiff[:, 6], stiff[:, 7] = rms**2 / OFFSET_SIGMA_S**2, rms**2 / DEPTH_SIGMA_PER_M**2
    stiff *= 30.0
    away = np.zeros((cameras, STEP))
    if prior is not None:
        away[:, 6], away[:, 7] = prior
    free = np.ones((cameras, STEP), bool)
    free[0] = free[held] = False
    at = np.flatnonzero(free)
    A = normal + np.diag(stiff.ravel())
    step = np.zeros(cameras * STEP)
    step[at] = -np.linalg.solve(A[np.ix_(at, at)] + 1e-9 * np.eye(len(at)), (pull + (stiff * away).ravel())[at])
    return step.reshape(cameras, STEP)


class Placed(NamedTuple):
    """A view in the rig's frame at its moment: points, normals, and how a point moves with offset and depth (N, 3)."""

    view: View
    T_ref_cam: Array
    points: Array
    normals: Array
    velocities: Array
    ahead_s: float
    by_depth: Array


def place(view: View, moment: Moment, T: Array, offset_s: float, bend_per_m: float) -> Placed:
    """A view carried into the rig's frame and to its moment's time."""
    own = view.points_m / (1 + bend_per_m * view.points_m[:, 2:])  # 1 / z_true = 1 / z + offset
    velocity = moment.velocities_m_s[view.joint]
    ahead_s = moment.t_s - view.t_s - offset_s
    points = apply(T, own) + velocity * ahead_s
    by_depth = (-own * own[:, 2:]) @ T[:3, :3].T
    return Placed(view, T, points, view.normals @ T[:3, :3].T, velocity, ahead_s, by_depth)


class Matches(NamedTuple):
    """Points of a on b: signed distances (N,) m along normals (N, 3), which points of a and b."""

    distances_m: Array
    normals: Array
    of_a: NDArray[np.intp]
    of_b: NDArray[np.intp]


def match(a: Placed, b: Placed, reach_m: float) -> Matches:
    """The points of a that have skin of b near that faces the same way."""
    # The tree holds b as measured; what carried b to the moment carries a back.
    points = a.points[a.view.asked] - b.velocities.mean(0) * b.ahead_s
    back = (points - b.T_ref_cam[:3, 3]) @ b.T_ref_cam[:3, :3]
    gap, nearest = b.view.tree.query(back, distance_upper_bound=max(2.5 * reach_m, 0.009))
    found = np.isfinite(gap)
    of_a, of_b = a.view.asked[found], nearest[found]
    keep = b.view.good[of_b] & (np.einsum("na,na->n", a.normals[of_a], b.normals[of_b]) > ALIKE)
    of_a, of_b = of_a[keep], of_b[keep]
    normals = a.normals[of_a] + b.normals[of_b]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Matches(np.einsum("na,na->n", normals, a.points[of_a] - b.points[of_b]), normals, of_a, of_b)


def placed(moment: Moment, T: Array, offsets_s: Array, bends: Array) -> list[Placed]:
    """All views of a moment in the rig's frame."""
    return [place(v, moment, T[v.camera], offsets_s[v.camera], bends[v.camera]) for v in moment.views]


def _equations(
    moments: Sequence[Moment], T: Array, offsets: Array, bends: Array, reach_m: float, held: NDArray[np.bool_]
) -> tuple[Array, Array, float, float, int]:
    """Normal matrices (M, 8C, 8C) and pulls (M, 8C) a moment, weighted squares, weights, matches; nothing of the
    cameras that are held."""
    cameras = len(T)
    normals = np.zeros((len(moments), cameras * STEP, cameras * STEP))
    pulls = np.zeros((len(moments), cameras * STEP))
    square = weight = 0.0
    count = 0
    for m, moment in enumerate(moments):
        views = [view for view in placed(moment, T, offsets, bends) if not held[view.view.camera]]
        for one, other in permutations(views, 2):
            found = match(one, other, reach_m)
            if len(found.distances_m) < LEAST_MATCHES:
                continue
            share = found.distances_m / reach_m
            w = np.where(np.abs(share) < 1, (1 - share**2) ** 2, 0.0)  # Tukey's
            J = np.concatenate([_change(one, found.of_a, found.normals), -_change(other, found.of_b, found.normals)], 1)
            wJ = w[:, None] * J
            H, g = wJ.T @ J, wJ.T @ found.distances_m
            a, b = one.view.camera, other.view.camera
            at = np.r_[a * STEP : (a + 1) * STEP, b * STEP : (b + 1) * STEP]
            normals[m][np.ix_(at, at)] += H
            pulls[m][at] += g
            square += float(w @ found.distances_m**2)
            weight += float(w.sum())
            count += len(w)
    return normals, pulls, square, max(weight, 1e-9), count


def _change(view: Placed, at: NDArray[np.intp], normals: Array) -> Array:
    """How distances along normals (N, 3) change (N, 8) with the camera of these points."""
    points = view.points[at]
    return np.concatenate(
        [
            np.cross(points, normals),
            normals,
            -np.einsum("na,na->n", normals, view.velocities[at])[:, None],
            np.einsum("na,na->n", normals, view.by_depth[at])[:, None],
        ],
        1,
    )
