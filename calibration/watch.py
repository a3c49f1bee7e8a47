"""Does the rig still hold? Cameras that see one hand compare it, pair by pair, while the daemons run.

Where the rig is right, a hand's joints from two cameras differ by the networks' errors alone, which change as the hand
moves and turns. Where a camera was bumped they differ by a rigid motion besides. Its six numbers are fitted robustly to
the last seconds, for each camera in turn as if it alone had moved; the one that explains most is named. One second is
one block: the scatter between blocks says how sure that is, for errors within a second are all alike. Networks see a
hand a little too near or too far from either side, which looks like a small motion: each pair's first seconds are what
its later ones are compared with, and only a larger disagreement counts from the start. A camera that was turned far
sees the hand so far from where the others do that nothing can be fitted: that is said by itself.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ..hand import se3
from ..hand.arrays import Array
from .fuse import sigma_m
from .many_views import Surface
from .rig import Quality, Rig
from .sight import Sighting, joints_of
from .uncertainty import Volume, volume_sigma_mm

BLOCK_NS = 1_000_000_000
HALF_LIFE_S, KEPT = 8.0, 40  # of blocks
LEAST_BLOCKS = 5.0  # that count, before anything is said
LEAST_MOMENTS = 4  # of a block
NEAR_M = 0.15  # two cameras' hands nearer than this are one
LOOSE_M = 0.025
STALE_NS = 10_000_000_000  # the rig is not judged by what was seen longer ago,
OLD_NS = 120_000_000_000  # and blocks as old as this are dropped
SEEN_M, MIDDLE = (0.2, 1.2), 0.4  # where a camera should see a hand: distance, and share of the picture from its middle
APART_S = 5  # seconds in which two cameras see their one hand apart, before it is said
FIRST_BLOCKS = 7.0  # that count, until a pair's usual disagreement is known
ALARM_MM, SIGMAS = 2.8, 3.0  # of a change
FIRST_SIGMAS = 1.5  # a change's sigma over that of the last seconds: the first seconds were not sure either
FROM_START_MM = 7.0  # of a disagreement that was there from the start
WARN = 0.75  # of an alarm's size
CLEAR = 1.15  # the camera named explains so much more than the next
SMALL = 1e-3 * np.eye(6)
_GRID = np.stack(np.meshgrid(*[[-0.5, 0.0, 0.5]] * 3), -1).reshape(-1, 3)


class Block(NamedTuple):
    """A second of one pair that ended at t_ns: normal matrix (6, 6) and pull (6,) of the motion of the second camera
    against the first, weighted squares of the residuals, and how many moments."""

    t_ns: int
    normal: Array
    pull: Array
    squares: float
    moments: int


class Drift(NamedTuple):
    """What moving one camera explains: camera's serial, moved_mm (RMS over the working volume) with its sigma, turn in
    degrees, T_ref_cam (4, 4) as it would be now, share of what any motions explain that it explains, covariance (6, 6)
    of the motion, a left perturbation."""

    camera: str
    moved_mm: float
    sigma_mm: float
    turned_deg: float
    T_ref_cam: Array
    share: float
    covariance: Array


class Judgement(NamedTuple):
    """state: `watching` (not enough was seen), `holds`, `unsure`, `moved`; drift is what was found, if anything."""

    state: str
    words: str
    drift: Drift | None


@dataclass
class _Pair:
    blocks: deque[Block] = field(default_factory=lambda: deque(maxlen=KEPT))
    normal: Array = field(default_factory=lambda: np.zeros((6, 6)))
    pull: Array = field(default_factory=lambda: np.zeros(6))
    squares: float = 0.0
    moments: int = 0
    apart: int = 0  # moments in which the hand of the one is not where the other should see it
    apart_s: int = 0  # seconds of such, since they last agreed
    guess: Array = field(default_factory=lambda: np.zeros(6))  # of the pair's motion, for the robust weights
    usual: Array | None = None  # its motion over the first seconds


class Watch:
    """`observe` each moment, then ask `judge`, once a second or so."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self._surface = Surface()
        self._pairs = {pair: _Pair() for pair in itertools.combinations(range(len(rig.cameras)), 2)}
        self._begun_ns: int | None = None
        self._alarms = 0
        self._block_ns: int | None = None  # when a pair's second was last added
        self._new = False  # since it was judged
        self._volume = np.array(rig.quality.volume_centre_m) + rig.quality.volume_edge_m * _GRID

    def observe(self, t_ns: int, sightings: Sequence[Sighting]) -> bool:
        """Take what all cameras say of a moment of the reference clock; True when a second is over and `judge` has
        something new to say."""
        seen = [(s, *self._joints(s)) for s in sightings if s.tracked]
        for (a, xa, sa), (b, xb, sb) in itertools.combinations(seen, 2):
            if a.camera == b.camera or a.is_left != b.is_left or np.linalg.norm((xa - xb).mean(0)) > NEAR_M:
                continue
            first, second = sorted(((a.camera, xa), (b.camera, xb)), key=lambda pair: pair[0])
            self._compare(self._pairs[first[0], second[0]], first[1], second[1], np.hypot(sa, sb))
        if self._begun_ns is None or t_ns < self._begun_ns:
            self._begun_ns = t_ns
        self._tell_apart(seen)
        if t_ns - self._begun_ns < BLOCK_NS:
            return False
        self._begun_ns = t_ns
        if sum(self._close(pair, t_ns) for pair in self._pairs.values()):
            self._block_ns, self._new = t_ns, True
        return True

    def judge(self) -> Judgement:
        """Whether the rig holds, in words; an alarm needs two seconds in a row."""
        new, self._new = self._new, False
        if (words := self._torn_apart()) is not None:
            return Judgement("moved", words, None)
        counts = {pair: self._sum(state)[3] for pair, state in self._pairs.items()}
        enough = [pair for pair, count in counts.items() if count >= LEAST_BLOCKS]
        if not enough:
            most = max(counts.values(), default=0.0)
            return Judgement("watching", f"two cameras must see a moving hand for longer ({most:.0f} s so far)", None)
        if self._begun_ns is None or self._block_ns is None or not 0 <= self._begun_ns - self._block_ns < STALE_NS:
            return Judgement("watching", "no hand is where two cameras see it, so nothing can be said of now", None)
        drifts = self._drifts(enough, change=False)
        most_mm = FROM_START_MM
        if drifts[0].moved_mm < FROM_START_MM and all(self._pairs[pair].usual is not None for pair in enough):
            drifts, most_mm = self._drifts(enough, change=True), ALARM_MM
        best = drifts[0]
        far = best.moved_mm > most_mm and best.moved_mm > SIGMAS * best.sigma_mm
        self._alarms = self._alarms + new if far else 0
        size = f"{best.moved_mm:.1f} +- {best.sigma_mm:.1f} mm, {best.turned_deg:.2f} deg"
        if self._alarms >= 2:
            if len(enough) < 2 or best.share < CLEAR * drifts[1].share:
                names = " or ".join(d.camera for d in drifts[: 2 if len(enough) < 2 else len(drifts)])
                return Judgement("moved", f"{names} moved by {size}: which one cannot be told", best)
            return Judgement("moved", f"{best.camera} moved by {size}", best)
        if best.moved_mm > WARN * most_mm and best.moved_mm > SIGMAS * best.sigma_mm:
            return Judgement("unsure", f"{best.camera} may have moved by {size}", best)
        return Judgement("holds", f"the rig holds (most: {best.camera}, {size})", best)

    def proposal(self, drift: Drift, created_utc: str) -> Rig:
        """The rig with the camera where it seems to be now. If that is the reference, all others move instead. A rig
        that failed its calibration is no better for it."""
        serials = [camera.serial for camera in self.rig.cameras]
        index = serials.index(drift.camera)
        correction = drift.T_ref_cam @ se3.inverse(self.rig.cameras[index].T_ref_cam)  # in the old reference frame
        motion = correction if index else se3.inverse(correction)
        cameras, q = list(self.rig.cameras), self.rig.quality
        volume, sigmas = Volume(q.volume_centre_m, q.volume_edge_m), dict(q.sigma_volume_mm)
        for k in [index] if index else range(1, len(cameras)):
            was = cameras[k]
            now = replace(was, T_ref_cam=motion @ was.T_ref_cam, covariance=was.covariance + drift.covariance)
            cameras[k], sigmas[now.serial] = now, volume_sigma_mm(now.covariance, volume)
        warning = f"proposed by calibrate watch: {drift.camera} moved by {drift.moved_mm:.1f} mm; verify it"
        quality = Quality(q.method, q.rms, q.volume_centre_m, q.volume_edge_m, sigmas,
                          verdict="fail" if q.verdict == "fail" else "unverified",
                          warnings=(*q.warnings, warning))  # fmt: skip
        return replace(self.rig, created_utc=created_utc, cameras=tuple(cameras), quality=quality)

    # --- one pair

    def _joints(self, s: Sighting) -> tuple[Array, Array]:
        joints = joints_of(self._surface.chain, s)
        return joints, sigma_m(s, self.rig.cameras[s.camera], joints)

    def _tell_apart(self, seen: Sequence[tuple[Sighting, Array, Array]]) -> None:
        """Count the pairs of cameras that see one hand each, of the same side, where the other should but does not."""
        alone = [s for s in seen if sum(s[0].camera == other[0].camera for other in seen) == 1]
        for (a, xa, _), (b, xb, _) in itertools.combinations(sorted(alone, key=lambda s: s[0].camera), 2):
            middle_a, middle_b = xa.mean(0), xb.mean(0)
            far = a.is_left == b.is_left and np.linalg.norm(middle_a - middle_b) > NEAR_M
            if far and self._in_view(b.camera, middle_a) and self._in_view(a.camera, middle_b):
                self._pairs[a.camera, b.camera].apart += 1

    def _in_view(self, camera: int, point: Array) -> bool:
        """Whether a hand at a point (3,) m of the rig should be seen by a camera."""
        its = self.rig.cameras[camera]
        at = se3.apply(se3.inverse(its.T_ref_cam), point[None])
        (u, v), lens = its.intrinsics.project(at)[0], its.intrinsics
        inside = abs(u / lens.width - 0.5) < MIDDLE and abs(v / lens.height - 0.5) < MIDDLE
        return bool(SEEN_M[0] < at[0, 2] < SEEN_M[1] and inside)

    def _torn_apart(self) -> str | None:
        """What is to be said of cameras that see the hand far from where others see it, if any do."""
        torn = [pair for pair, state in self._pairs.items() if state.apart_s >= APART_S]
        if not torn:
            return None
        named = [self.rig.cameras[k].serial for pair in torn for k in pair]
        most = max(named, key=named.count)
        if len(torn) > 1 and named.count(most) == len(torn):
            others = " and ".join(name for name in named if name != most)
            return f"{most} sees the hand elsewhere than {others} do: it was moved far; calibrate again"
        names = " and ".join(sorted(set(named)))
        return f"{names} see one hand at different places: a camera was moved far, or there are two; calibrate again"

    def _compare(self, pair: _Pair, first: Array, second: Array, sigma: Array) -> None:
        """Add a moment: first - second = J xi, where xi (6,) is what the second camera moved by against the first."""
        middle = (first + second) / 2
        rows = np.concatenate([-se3.skew(middle), np.tile(np.eye(3), (21, 1, 1))], 2)  # (21, 3, 6)
        off = first - second
        left = np.linalg.norm(off - rows @ pair.guess, axis=1)
        # The joints of a hand err alike: together they weigh as three.
        weight = (3 / 21) / sigma**2 / (1 + (left / LOOSE_M) ** 2) ** 2
        weighted = rows * weight[:, None, None]
        pair.normal = pair.normal + np.einsum("jia,jib->ab", weighted, rows)
        pair.pull = pair.pull + np.einsum("jia,ji->a", weighted, off)
        pair.squares += float(weight @ (off**2).sum(1))
        pair.moments += 1

    def _close(self, pair: _Pair, t_ns: int) -> bool:
        """End a pair's second at t_ns; whether it says something of the rig."""
        while pair.blocks and not 0 <= t_ns - pair.blocks[0].t_ns < OLD_NS:
            pair.blocks.popleft()
        enough = pair.moments >= LEAST_MOMENTS
        if enough:
            n = pair.moments
            pair.blocks.append(Block(t_ns, pair.normal / n, pair.pull / n, pair.squares / n, n))
            normal, pull, _, _ = self._sum(pair)
            pair.guess = np.linalg.solve(normal + SMALL, pull)
            if pair.usual is None and self._sum(pair)[3] >= FIRST_BLOCKS:
                pair.usual = pair.guess
        if pair.apart >= LEAST_MOMENTS and pair.apart > pair.moments:
            pair.apart_s += 1
        elif enough:
            pair.apart_s = 0
        pair.normal, pair.pull, pair.squares, pair.moments = np.zeros((6, 6)), np.zeros(6), 0.0, 0
        pair.apart = 0
        return enough

    def _sum(self, pair: _Pair) -> tuple[Array, Array, float, float]:
        """Normal matrix, pull, squares and number of blocks, older ones counting less."""
        normal, pull, squares, count = np.zeros((6, 6)), np.zeros(6), 0.0, 0.0
        for block, share in _aged(pair):
            normal, pull = normal + share * block.normal, pull + share * block.pull
            squares, count = squares + share * block.squares, count + share
        return normal, pull, squares, count

    # --- one camera

    def _drifts(self, pairs: Sequence[tuple[int, int]], change: bool) -> list[Drift]:
        """What each camera alone having moved explains of these pairs, most first; change: since their first
        seconds."""
        cameras = {k for pair in pairs for k in pair}
        return sorted((self._drift(k, pairs, change) for k in cameras), key=lambda drift: -drift.share)

    def _drift(self, k: int, pairs: Sequence[tuple[int, int]], change: bool) -> Drift:
        normal, pull, scatter, explainable = np.zeros((6, 6)), np.zeros(6), np.zeros((6, 6)), 0.0
        signed = []
        for a, b in pairs:
            pair = self._pairs[a, b]
            usual = pair.usual if change and pair.usual is not None else np.zeros(6)
            n, p, _, _ = self._sum(pair)
            p = p - n @ usual
            explainable += float(p @ np.linalg.solve(n + SMALL, p))
            if k in (a, b):
                sign = 1.0 if b == k else -1.0
                normal, pull = normal + n, pull + sign * p
                signed.append((sign, pair, usual))
        normal = normal + SMALL
        xi = np.linalg.solve(normal, pull)
        for sign, pair, usual in signed:
            for block, share in _aged(pair):
                off = share * (sign * (block.pull - block.normal @ usual) - block.normal @ xi)
                scatter += np.outer(off, off)
        inverse = np.linalg.inv(normal)
        covariance = inverse @ scatter @ inverse
        lever = np.concatenate([-se3.skew(self._volume), np.tile(np.eye(3), (len(self._volume), 1, 1))], 2)
        moved = np.sqrt(((lever @ xi) ** 2).sum(1).mean())
        sigma = np.sqrt(np.einsum("pia,ab,pib->p", lever, covariance, lever).mean())
        sigma *= FIRST_SIGMAS if change else 1.0
        camera = self.rig.cameras[k]
        T = se3.transform(se3.so3_exp(xi[:3]), xi[3:]) @ camera.T_ref_cam
        return Drift(
            camera.serial, 1e3 * float(moved), 1e3 * float(sigma), float(np.degrees(np.linalg.norm(xi[:3]))), T,
            float(pull @ xi) / max(explainable, 1e-12), covariance * (FIRST_SIGMAS**2 if change else 1.0),
        )  # fmt: skip


def _aged(pair: _Pair) -> list[tuple[Block, float]]:
    n = len(pair.blocks)
    return [(block, 0.5 ** ((n - 1 - i) / HALF_LIFE_S)) for i, block in enumerate(pair.blocks)]
