"""Bundle adjustment of cameras that look at a moving board, each with its own clock.

Unknown are each camera's pose, its time offset and, on request, its intrinsics (with a prior), and the board's pose at
every knot: one knot a shared picture. A camera whose clock is off by dt saw the board where it was dt later; its pose
there is interpolated through the knot and its two neighbours (a parabola in the translation and in the rotation vector
relative to the knot). Solved by Levenberg-Marquardt on robust weights; the knots of a run, a stretch of neighbouring
knots, are eliminated together (Schur complement), so that the cost grows with the number of runs.

Perturbations: a camera's T_camera_ref <- [exp(w) | d] T; a knot's R <- R exp(w), t <- t + d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..hand.arrays import Array
from ..hand.camera import Intrinsics
from ..hand.se3 import skew, so3_exp
from .corners import View
from .motion import moment, share_of_neighbours

CAMERA, LENS = 6, 4  # unknowns: pose; fx, fy, cx, cy
STEP = CAMERA + LENS + 1  # of one camera, with its time offset
RATIO_OF_NOISE = 1.5  # moments of a run share knots: so much do they seem to go together with independent noise


class BundleError(Exception):
    """The views cannot be solved; one line."""


@dataclass(frozen=True)
class Options:
    """What is solved for, and how much is believed beforehand."""

    cameras: bool = True
    offsets: bool = True
    intrinsics: bool = False
    robust: float = 10.0  # residuals beyond so many standard deviations lose their weight
    focal_sigma: float = 0.003  # of the focal length, relative
    centre_sigma_px: float = 3.0
    offset_sigma_s: float = 0.1
    iterations: int = 60


@dataclass(frozen=True, eq=False)
class Scene:
    """What is estimated. T_camera_ref (C, 4, 4) with the identity first, offsets_s (C,) with 0 first.

    An offset is what is added to a camera's time stamps to have them on the first camera's clock.
    """

    T_camera_ref: Array
    offsets_s: Array
    intrinsics: tuple[Intrinsics, ...]
    knots_s: Array  # (K,), rising
    T_ref_board: Array  # (K, 4, 4)
    runs: tuple[slice, ...]  # of knots that are neighbours in time


@dataclass(frozen=True, eq=False)
class Solution:
    """The scene with its residuals and its covariance.

    residuals_px (N, 2) are those of `views`, one after the other; covariance (C * 11, C * 11) of pose, intrinsics and
    offset of each camera, zero where held; sigma_px of one coordinate; inflation how much wider the covariance was made
    because residuals of one moment go together.
    """

    scene: Scene
    views: tuple[tuple[View, int], ...]
    residuals_px: Array
    covariance: Array
    sigma_px: float
    inflation: float
    converged: bool

    @property
    def rms_px(self) -> float:
        """Of all corners, outliers too; the length of the residual, not one coordinate.

        Moments that one camera alone saw are left out: they only say how the board moved.
        """
        return float(np.sqrt((self.shared_residuals_px**2).sum(1).mean()))

    @property
    def median_px(self) -> float:
        return float(np.median(np.linalg.norm(self.shared_residuals_px, axis=1)))

    @property
    def shared_residuals_px(self) -> Array:
        seen = np.bincount([knot for _, knot in self.views])
        return self.residuals_px[np.repeat([seen[k] > 1 for _, k in self.views], [len(v.ids) for v, _ in self.views])]

    def camera_covariance(self, camera: int) -> Array:
        """(6, 6) of T_camera_ref's left perturbation, rotation first."""
        at = camera * STEP
        return self.covariance[at : at + CAMERA, at : at + CAMERA]

    def offset_sigma_s(self, camera: int) -> float:
        at = camera * STEP + STEP - 1
        return float(np.sqrt(self.covariance[at, at]))


def projection(points: Array, lens: Intrinsics) -> tuple[Array, Array, Array]:
    """Camera points (N, 3) m to pixels (N, 2), with the change by the point (N, 2, 3) and by fx, fy, cx, cy (N, 2, 4).

    The lens is Brown and Conrady's, as in `hand.camera`.
    """
    k1, k2, p1, p2, k3 = lens.distortion
    z = np.where(points[:, 2] > 1e-3, points[:, 2], 1e-3)  # behind the camera: a huge residual, not a division by 0
    x, y = points[:, 0] / z, points[:, 1] / z
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    slope = k1 + r2 * (2 * k2 + r2 * 3 * k3)  # d radial / d r2
    xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    bend = np.empty((len(points), 2, 2))  # d (xd, yd) / d (x, y)
    bend[:, 0, 0] = radial + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x
    bend[:, 0, 1] = bend[:, 1, 0] = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
    bend[:, 1, 1] = radial + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x
    flat = np.zeros((len(points), 2, 3))  # d (x, y) / d point
    flat[:, 0, 0] = flat[:, 1, 1] = 1 / z
    flat[:, 0, 2], flat[:, 1, 2] = -x / z, -y / z
    by_point = np.array([lens.fx, lens.fy])[:, None] * (bend @ flat)
    by_lens = np.zeros((len(points), 2, LENS))
    by_lens[:, 0, 0], by_lens[:, 1, 1] = xd, yd
    by_lens[:, 0, 2] = by_lens[:, 1, 3] = 1
    return np.stack([lens.fx * xd + lens.cx, lens.fy * yd + lens.cy], 1), by_point, by_lens


def neighbours(scene: Scene, knot: int) -> tuple[int | None, int | None]:
    """The knots before and after this one in its run."""
    run = next(run for run in scene.runs if run.start <= knot < run.stop)
    return (knot - 1 if knot > run.start else None), (knot + 1 if knot + 1 < run.stop else None)


def view_residuals(scene: Scene, view: View, knot: int, corners_m: Array) -> tuple[Array, Array]:
    """Residuals (N, 2) px, projected less seen, and their change (N, 2, 29).

    Columns: the camera's pose 6, lens 4, offset 1; the knot before, the knot, the knot after, 6 each.
    """
    before, after = neighbours(scene, knot)
    t = scene.knots_s
    weights = share_of_neighbours(
        view.t_s + scene.offsets_s[view.camera] - t[knot],
        None if before is None else t[knot] - t[before],
        None if after is None else t[after] - t[knot],
    )
    T = scene.T_ref_board
    board = moment(
        None if before is None else T[before], T[knot], None if after is None else T[after], weights
    )  # fmt: skip
    points = corners_m[view.ids]
    R = board.T_ref_board[:3, :3]
    in_ref = points @ R.T + board.T_ref_board[:3, 3]
    camera = scene.T_camera_ref[view.camera]
    inside = in_ref @ camera[:3, :3].T + camera[:3, 3]
    pixels, by_point, by_lens = projection(inside, scene.intrinsics[view.camera])
    by_ref = by_point @ camera[:3, :3]
    by_board = np.concatenate([by_ref @ (-R @ skew(points)), by_ref], 2)  # (N, 2, 6)
    jacobian = np.concatenate(
        [by_point @ -skew(inside), by_point, by_lens, (by_board @ board.by_time)[..., None], by_board @ board.by_knots],
        2,
    )
    return pixels - view.pixels, jacobian


def solve(scene: Scene, views: Sequence[tuple[View, int]], corners_m: Array, options: Options) -> Solution:
    """The best scene for views, each with its knot, from a start; corners_m (N, 3) are the board's.

    Raises BundleError if there is nothing to solve.
    """
    views = tuple(sorted(views, key=lambda item: item[1]))
    if not views:
        raise BundleError("no view of the board to solve from")
    problem = _Problem(views, corners_m, options, scene.intrinsics)
    residuals, jacobians = problem.residuals(scene)
    sigma = _spread(residuals)
    damping, converged = 1e-3, False
    for _ in range(options.iterations):
        cost = problem.cost(scene, residuals, sigma)
        normal = _Normal(problem, scene, residuals, jacobians, sigma)
        while damping < 1e9:
            step = normal.step(damping)
            moved = step.move(scene)
            new_residuals, new_jacobians = problem.residuals(moved)
            change = cost - problem.cost(moved, new_residuals, sigma)
            if change >= 0:
                break
            damping *= 5
        else:
            break
        scene, residuals, jacobians = moved, new_residuals, new_jacobians
        damping = max(damping / 5, 1e-9)
        old_sigma, sigma = sigma, _spread(residuals)
        if change < 1e-7 * cost and abs(sigma - old_sigma) < 1e-4 * sigma:
            converged = True
            break
    normal = _Normal(problem, scene, residuals, jacobians, sigma)
    covariance, noise, inflation = normal.covariance()
    return Solution(scene, views, np.concatenate(residuals), covariance, noise, inflation, converged)


def _spread(residuals: list[Array]) -> float:
    """Standard deviation of a coordinate, from the median length: outliers do not count."""
    return max(float(np.median(np.linalg.norm(np.concatenate(residuals), axis=1))) / 1.1774, 1e-3)


class _Step(NamedTuple):
    cameras: Array  # (C * 11,)
    knots: Array  # (K, 6)

    def move(self, scene: Scene) -> Scene:
        steps = self.cameras.reshape(-1, STEP)
        turn = so3_exp(steps[:, :3])
        cameras = scene.T_camera_ref.copy()
        cameras[:, :3, :3] = turn @ cameras[:, :3, :3]
        cameras[:, :3, 3] = (turn @ cameras[:, :3, 3:])[..., 0] + steps[:, 3:6]
        lenses = tuple(
            replace(lens, fx=lens.fx + d[6], fy=lens.fy + d[7], cx=lens.cx + d[8], cy=lens.cy + d[9])
            for lens, d in zip(scene.intrinsics, steps, strict=True)
        )
        board = scene.T_ref_board.copy()
        board[:, :3, :3] = board[:, :3, :3] @ so3_exp(self.knots[:, :3])
        board[:, :3, 3] += self.knots[:, 3:]
        return replace(
            scene, T_camera_ref=cameras, offsets_s=scene.offsets_s + steps[:, -1], intrinsics=lenses, T_ref_board=board
        )


class _Run(NamedTuple):
    """A run's own normal matrix (6n, 6n) and right side, and its link (D, 6n) with the cameras."""

    matrix: Array
    right: Array
    link: Array


class _Problem:
    """The views with what is free: residuals, their weights, and what was believed."""

    def __init__(
        self, views: tuple[tuple[View, int], ...], corners_m: Array, options: Options, start: tuple[Intrinsics, ...]
    ) -> None:
        self.views, self.corners_m, self.options, self.start = views, corners_m, options, start
        free = np.zeros((len(start), STEP), bool)
        free[1:, :CAMERA] = options.cameras
        free[:, CAMERA:-1] = options.intrinsics
        free[1:, -1] = options.offsets
        seen = {view.camera for view, _ in views}
        free[[c for c in range(len(start)) if c not in seen]] = False
        self.free = np.flatnonzero(free.ravel())

    def residuals(self, scene: Scene) -> tuple[list[Array], list[Array]]:
        both = [view_residuals(scene, view, knot, self.corners_m) for view, knot in self.views]
        return [residual for residual, _ in both], [jacobian for _, jacobian in both]

    def weights(self, residual: Array, sigma: float) -> Array:
        """Geman and McClure's, (N,)."""
        return 1 / (1 + (residual**2).sum(1) / (self.options.robust * sigma) ** 2) ** 2

    def cost(self, scene: Scene, residuals: list[Array], sigma: float) -> float:
        square = (np.concatenate(residuals) ** 2).sum(1)
        robust = square / (1 + square / (self.options.robust * sigma) ** 2)
        pull, stiffness = self.prior(scene)
        return float(robust.sum() + sigma**2 * (stiffness * pull**2).sum())

    def prior(self, scene: Scene) -> tuple[Array, Array]:
        """How far each unknown of the cameras is from what was believed, and 1 / variance of that; (C * 11,) each."""
        pull, stiffness = np.zeros((2, len(self.start), STEP))
        o = self.options
        for camera, (now, before) in enumerate(zip(scene.intrinsics, self.start, strict=True)):
            pull[camera, 6:10] = now.fx - before.fx, now.fy - before.fy, now.cx - before.cx, now.cy - before.cy
            sigmas = np.array([before.fx * o.focal_sigma, before.fy * o.focal_sigma] + 2 * [o.centre_sigma_px])
            stiffness[camera, 6:10] = 1 / sigmas**2
        pull[:, -1], stiffness[:, -1] = scene.offsets_s, 1 / o.offset_sigma_s**2
        return pull.ravel(), stiffness.ravel()


class _Normal:
    """Normal equations with the runs' knots still in them."""

    def __init__(
        self, problem: _Problem, scene: Scene, residuals: list[Array], jacobians: list[Array], sigma: float
    ) -> None:
        size, free = len(scene.intrinsics) * STEP, problem.free
        self.scene, self.free, self.size = scene, free, size
        pull, stiffness = problem.prior(scene)
        top, right = np.diag(sigma**2 * stiffness), sigma**2 * stiffness * pull
        runs = [
            _Run(np.zeros((6 * n, 6 * n)), np.zeros(6 * n), np.zeros((size, 6 * n)))
            for n in (run.stop - run.start for run in scene.runs)
        ]
        run_of = np.concatenate([np.full(run.stop - run.start, i) for i, run in enumerate(scene.runs)])
        self.pulls: list[tuple[int, int, Array, slice, Array]] = []  # knot, run, camera's part, place, knots' part
        self.weight, self.square, self.count = 0.0, 0.0, 0
        for (view, knot), residual, jacobian in zip(problem.views, residuals, jacobians, strict=True):
            weight = problem.weights(residual, sigma)
            J = jacobian.reshape(-1, jacobian.shape[2])
            weighted = J * np.repeat(weight, 2)[:, None]
            H, g = weighted.T @ J, weighted.T @ residual.ravel()
            number = int(run_of[knot])
            run, at = runs[number], knot - scene.runs[number].start
            first, last = max(at - 1, 0), min(at + 2, len(run.right) // 6)  # neighbours inside the run
            here = slice(6 * first, 6 * last)
            there = slice(STEP + 6 * (first - at + 1), STEP + 6 * (last - at + 1))
            camera = slice(view.camera * STEP, view.camera * STEP + STEP)
            top[camera, camera] += H[:STEP, :STEP]
            right[camera] += g[:STEP]
            run.matrix[here, here] += H[there, there]
            run.right[here] += g[there]
            run.link[camera, here] += H[:STEP, there]
            own = np.zeros(size)
            own[camera] = g[:STEP]
            self.pulls.append((knot, number, own[free], here, g[there]))
            self.square += float(weight @ (residual**2).sum(1))
            self.weight += float(weight.sum())
            self.count += len(residual)
        self.top, self.right = top[np.ix_(free, free)], right[free]
        self.runs = [run._replace(link=run.link[free]) for run in runs]

    def step(self, damping: float) -> _Step:
        """The damped step; each run's knots are eliminated, the cameras solved, the knots put back."""
        top, right = self.top + damping * np.diag(np.diag(self.top)), self.right.copy()
        inverses = []
        for run in self.runs:
            matrix = run.matrix + damping * np.diag(np.diag(run.matrix)) + 1e-6 * np.eye(len(run.right))
            back = np.linalg.solve(matrix, np.column_stack([run.link.T, run.right]))
            top = top - run.link @ back[:, :-1]
            right -= run.link @ back[:, -1]
            inverses.append(back)
        cameras = np.zeros(self.size)
        moved = -np.linalg.solve(top, right) if len(right) else right
        cameras[self.free] = moved
        knots = [-(back[:, -1] + back[:, :-1] @ moved) for back in inverses]
        return _Step(cameras, np.concatenate(knots).reshape(-1, 6))

    def covariance(self) -> tuple[Array, float, float]:
        """Of the cameras (C * 11, C * 11); a coordinate's sigma in px; how much the covariance was widened.

        Residuals of one moment go together where the board bends or the motion is not a parabola, and J'J knows nothing
        of it. The spread of what single moments pull the cameras by does; where it is larger it sets the scale.
        """
        unknowns = len(self.free) + sum(len(run.right) for run in self.runs)
        sigma = np.sqrt(self.square / max(2 * self.weight - unknowns, 1.0))
        reduced, backs = self.top.copy(), []
        for run in self.runs:
            back = np.linalg.solve(run.matrix + 1e-9 * np.eye(len(run.right)), run.link.T)  # (6n, D)
            reduced -= run.link @ back
            backs.append(back)
        full = np.zeros((self.size, self.size))
        if not len(self.free):
            return full, float(sigma), 1.0
        inverse = np.linalg.inv(reduced)
        moments: dict[int, Array] = {}
        for knot, number, own, here, part in self.pulls:
            moments[knot] = moments.get(knot, 0) + own - backs[number][here].T @ part
        spread = np.array(list(moments.values()))  # (moments, D)
        ratio = float(np.einsum("ki,ij,kj->", spread, inverse, spread)) / (len(self.free) * float(sigma) ** 2)
        inflation = max(1.0, ratio / RATIO_OF_NOISE)
        full[np.ix_(self.free, self.free)] = inverse * float(sigma) ** 2 * inflation
        return full, float(sigma), inflation
