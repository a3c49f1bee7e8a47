"""Fusion: the hands of several cameras become one set of hands in the rig's frame, at a moment of the reference clock.

Sightings are assigned to hands by place and side, a robust refit makes one hand of them (`many_views.py`), its shape is
estimated once and held (`fused_shape.py`). A camera that joins gains its weight over some frames; when one is lost, the
step it would leave is faded out, so that nothing jumps. What is published of a hand is as from one camera.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..edge.confidence import RADIUS_M, Calibration, joint_confidence
from ..edge.refit import Pose, theta_of
from ..edge.smooth import Channel, Smoother, rotation_matrix, rotation_vector
from ..hand import se3
from ..hand.arrays import Array
from ..hand.crop import MIRROR, mirror_pose
from ..hand.frames import HandPose, Side
from ..hand.kinematics import clamp_angles
from ..hand.messages import Motion, WireHand
from .fused_shape import FusedShape
from .many_views import Guess, Surface, agree, guess_of, refit, robust_weights
from .rig import Rig, RigCamera
from .sight import Sighting, joints_of

NEAR_M = 0.12  # a sighting of its side as near as this to where a hand should be is that hand
SAME_M = 0.05  # one of the other side too; two hands nearer than this are one, unless a camera sees both
GAIN_S = 0.06  # in which a camera that joins gains its weight
FADE_S = 0.18  # in which the step is faded out that a lost camera leaves
FORESEEN_M = 0.02  # how far off a hand may be from where it should be
PREDICTED_NS, REMEMBERED_NS = 150_000_000, 2_000_000_000
VOTES_KEPT, MOST_VOTES, SIDE_SURE = 0.97, 60.0, 0.9  # a side outlives half a second of doubt
LEAST_SHARE = 0.05  # a camera with less of the weight is not missed
# Several cameras together err less than one, so less is taken for noise than in `edge/smooth.py`.
PLACE = Channel(2.5, 120.0, 0.008, 2.0, 0.002)
TURN = Channel(2.5, 60.0, 0.12, 2.0, 0.025)
FINGERS = Channel(4.0, 30.0, 0.3, 2.0, 0.05)


class Step(NamedTuple):
    """What a lost camera's leaving moved a hand by: turn (3,) rad, move_m (3,), angles (20,), and when."""

    t_ns: int
    turn: Array
    move_m: Array
    angles: Array


class Seen(NamedTuple):
    """A sighting with its joints (21, 3) m in the rig's frame, and as a guess, mirrored for a left hand."""

    sighting: Sighting
    joints_m: Array
    guess: Guess


@dataclass(eq=False)
class FusedHand:
    """What is remembered of a hand between steps."""

    centre_m: Array
    t_ns: int
    right_votes: float = 0.0
    id: int = 0
    steps: int = 0
    measured_ns: int = 0  # t_ns is that of the last step, in which cameras may only have predicted it
    velocity_m_s: Array = field(default_factory=lambda: np.zeros(3))
    weights: dict[int, Array] = field(default_factory=dict)  # (21,) of each camera in the last step
    smoother: Smoother = field(default_factory=lambda: Smoother(PLACE, TURN, FINGERS))
    shape: FusedShape | None = None
    left_behind: Step | None = None
    pose: HandPose | None = None
    fitted: Pose | None = None  # before jumps are faded and noise smoothed

    @property
    def is_left(self) -> bool:
        return self.right_votes < 0

    def foreseen_m(self, t_ns: int) -> Array:
        return self.centre_m + self.velocity_m_s * min(max((t_ns - self.t_ns) * 1e-9, 0.0), 0.1)


class Fuser:
    """step() one moment at a time. Without smooth what is published is the refit of each moment, before smoothing."""

    def __init__(self, rig: Rig, smooth: bool = True) -> None:
        self.rig, self.smooth = rig, smooth
        self.surface = Surface()
        self.hands: list[FusedHand] = []
        self._lost: list[FusedHand] = []
        self._next_id = 1

    def step(self, t_ns: int, sightings: Sequence[Sighting]) -> list[WireHand]:
        """The hands at t_ns of the reference clock, from what the cameras say of that moment."""
        seen = [self._seen(sighting) for sighting in sightings]
        found: list[WireHand] = []
        for hand, its in self._assigned(t_ns, seen):
            self._vote(hand, t_ns, its)
            mine = [s for s in its if s.sighting.is_left == hand.is_left and s.sighting.age_ms * 1e6 <= PREDICTED_NS]
            sure = hand.steps > 0 or len(mine) > 1  # one camera alone must see a new hand twice
            if mine and sure and hand.id == 0:
                hand.id, self._next_id = self._next_id, self._next_id + 1
            others = [_in_mirror(s.guess) for s in its if s.sighting.is_left != hand.is_left]
            measured = any(s.sighting.tracked for s in mine)
            fused = None if measured else self._predicted(hand, t_ns)  # rather than follow what cameras predict
            if fused is None and mine:
                fused = self._measured(hand, t_ns, mine, others)
            if fused is None:
                self.hands.remove(hand)
                if hand.id:
                    self._lost.append(hand)
            elif hand.id:
                found.append(fused)
        return found

    # --- which is which

    def _assigned(self, t_ns: int, seen: list[Seen]) -> list[tuple[FusedHand, list[Seen]]]:
        """Each sighting to the hand nearest to it, at most one of a camera; new hands for the rest."""
        its: dict[FusedHand, list[Seen]] = {hand: [] for hand in self.hands}
        left = list(seen)
        pairs = [(_distance(hand.foreseen_m(t_ns), s), hand, s) for hand in self.hands for s in seen]
        for distance, hand, s in sorted(pairs, key=lambda pair: pair[0]):
            taken = any(other.sighting.camera == s.sighting.camera for other in its[hand])
            if distance < _reach_m(hand.is_left, s) and not taken and any(s is one for one in left):
                its[hand].append(s)
                left = [one for one in left if one is not s]
        for s in sorted(left, key=lambda s: -s.sighting.score):
            camera = s.sighting.camera
            new = [h for h in its if h not in self.hands and all(o.sighting.camera != camera for o in its[h])]
            near = [h for h in new if _distance(h.centre_m, s) < _reach_m(its[h][0].sighting.is_left, s)]
            if near:
                its[near[0]].append(s)
            elif s.sighting.tracked:
                its[self._remembered(t_ns, s) or FusedHand(s.joints_m.mean(0), t_ns)] = [s]
        self.hands = self._told_apart(t_ns, its)
        return [(hand, its[hand]) for hand in self.hands]

    def _told_apart(self, t_ns: int, its: dict[FusedHand, list[Seen]]) -> list[FusedHand]:
        """Of two hands in one place that no camera sees both of, the one more cameras see, or the older."""
        ranked = sorted(its, key=lambda h: (-len(its[h]), h.id or math.inf))
        kept: list[FusedHand] = []
        for hand in ranked:
            middle, cameras = hand.foreseen_m(t_ns), {s.sighting.camera for s in its[hand]}
            rivals = [h for h in kept if np.linalg.norm(middle - h.foreseen_m(t_ns)) <= SAME_M]
            if all(any(s.sighting.camera in cameras for s in its[rival]) for rival in rivals):
                kept.append(hand)
            elif hand.id:
                self._lost.append(hand)
        return kept

    def _remembered(self, t_ns: int, s: Seen) -> FusedHand | None:
        """A hand of this side lost a moment ago: it keeps its id and its shape."""
        self._lost = [hand for hand in self._lost if 0 <= t_ns - hand.t_ns < REMEMBERED_NS]
        same = [hand for hand in self._lost if hand.is_left == s.sighting.is_left]
        if not same:
            return None
        hand = min(same, key=lambda hand: _distance(hand.centre_m, s))
        self._lost.remove(hand)
        again = FusedHand(s.joints_m.mean(0), t_ns, 0.3 * hand.right_votes, hand.id)
        again.shape = hand.shape
        return again

    def _vote(self, hand: FusedHand, t_ns: int, its: list[Seen]) -> None:
        """Cameras that see the hand well say which side it is. One that nobody has seen as its side for as long as a
        hand may be predicted is what it is seen as, rather than lost."""
        was_left = hand.is_left
        disputed = {s.sighting.is_left for s in its} == {not was_left}
        if disputed and hand.steps and t_ns - hand.measured_ns > PREDICTED_NS:
            hand.right_votes = 0.0
        for s in its:
            conf = min(max(s.sighting.side_conf, 0.5), 0.98)
            votes = math.log(conf / (1 - conf)) * (-1 if s.sighting.is_left else 1) * s.sighting.score
            hand.right_votes = VOTES_KEPT * hand.right_votes + votes
        hand.right_votes = min(max(hand.right_votes, -MOST_VOTES), MOST_VOTES)
        if hand.is_left != was_left:  # a left hand's angles are not the right one's
            hand.smoother.reset()
            hand.weights, hand.left_behind, hand.fitted = {}, None, None
            if hand.shape and not hand.shape.held:  # what was looked at was its mirror image
                hand.shape = None

    # --- one hand

    def _seen(self, sighting: Sighting) -> Seen:
        camera = self.rig.cameras[sighting.camera]
        T, points, eye = sighting.T_wrist, sighting.points_m, camera.T_ref_cam[:3, 3]
        if sighting.is_left:
            T, points, eye = mirror_pose(T), points * MIRROR, eye * MIRROR
        shape = sighting.shape
        guess = guess_of(self.surface, T, sighting.angles, shape, _NO_SIGMA, points, eye)
        joints = joints_of(self.surface.chain, sighting)
        mirror = MIRROR if sighting.is_left else 1.0
        guess = guess._replace(joints_m=joints * mirror, sigma_m=sigma_m(sighting, camera, joints))
        return Seen(sighting, joints, guess)

    def _measured(self, hand: FusedHand, t_ns: int, mine: list[Seen], others: list[Guess]) -> WireHand:
        """others are the guesses of cameras that take it for the other side's: their depth points are its own all the
        same."""
        guesses, foreseen = [s.guess for s in mine], _foreseen(hand, t_ns)
        weights = self._weights(hand, t_ns, mine, foreseen)
        target = agree(guesses, weights, foreseen)
        alpha = np.mean([s.sighting.alpha for s in mine], 0)
        if hand.shape is None:
            hand.shape = FusedShape(self.surface, alpha)
        hand.shape.follow(alpha)
        shape = hand.shape.shape
        young = t_ns - hand.t_ns < PREDICTED_NS
        start, halo_rad = hand.fitted if young else None, hand.shape.halo_rad
        age_s = (t_ns - hand.t_ns) * 1e-9
        pose = hand.fitted = refit(self.surface, shape, target, guesses + others, start, age_s, halo_rad=halo_rad)
        hand.shape.observe(t_ns, pose, target, guesses)
        pose = self._without_jump(hand, t_ns, pose, {s.sighting.camera for s in mine})
        hand.weights = {s.sighting.camera: w for s, w in zip(mine, weights, strict=True)}
        smoothed = hand.smoother(t_ns, se3.transform(pose.R, pose.at_m), pose.angles)
        raw, _ = self.surface.hand(pose, shape)
        if self.smooth:
            T = smoothed.T_camera_wrist
            pose = Pose(T[:3, :3], T[:3, 3], smoothed.angles)
        visible = np.max(
            [np.full(21, -1, np.int8) if s.sighting.visible is None else s.sighting.visible for s in mine], 0
        )
        conf = joint_confidence(target.sigma_m, visible, Calibration(hidden=0.0))
        tracked = any(s.sighting.tracked for s in mine)
        age_ns = 0 if tracked else round(1e6 * min(s.sighting.age_ms for s in mine))
        seen_ns = t_ns - age_ns
        hand.measured_ns = max(hand.measured_ns, seen_ns) if hand.measured_ns <= t_ns else seen_ns  # the clock jumped
        hand.pose = self._pose(
            hand, pose, "tracked" if tracked else "predicted", conf, float(np.max([s.sighting.score for s in mine]))
        )
        centre = hand.pose.joints_m.mean(0)
        hand.velocity_m_s = np.mean([s.sighting.velocity_m_s for s in mine], 0)
        hand.centre_m, hand.t_ns, hand.steps = centre, t_ns, hand.steps + 1
        raw = raw * MIRROR if hand.is_left else raw
        motion = smoothed.motion
        age_ms = (t_ns - hand.measured_ns) * 1e-6
        return WireHand(
            hand.id,
            age_ms,
            hand.pose,
            raw if tracked else None,
            visible,
            _motion_in_mirror(motion) if hand.is_left else motion,
        )

    def _weights(self, hand: FusedHand, t_ns: int, mine: list[Seen], foreseen: tuple[Array, float] | None) -> Array:
        """(C, 21), 1 together: robust, and a camera's may only rise slowly."""
        joints = np.stack([s.guess.joints_m for s in mine])
        weights = robust_weights(joints, np.stack([s.guess.sigma_m for s in mine]), foreseen)
        if hand.weights:
            gain = min(max((t_ns - hand.t_ns) * 1e-9 / GAIN_S, 0.0), 1.0)
            before = np.stack([hand.weights.get(s.sighting.camera, np.zeros(21)) for s in mine])
            weights = np.minimum(weights, before + gain * weights) + 1e-6
        return np.asarray(weights / weights.sum(0))

    def _without_jump(self, hand: FusedHand, t_ns: int, pose: Pose, cameras: set[int]) -> Pose:
        """The pose, with the step that lost cameras leave faded out."""
        lost = [c for c, w in hand.weights.items() if c not in cameras and w.mean() > LEAST_SHARE]
        if lost:
            ahead = hand.smoother.predict(t_ns)
            if ahead is not None:
                T = ahead.T_camera_wrist
                turn = rotation_vector(T[:3, :3] @ pose.R.T)
                hand.left_behind = Step(t_ns, turn, T[:3, 3] - pose.at_m, ahead.angles - pose.angles)
        step = hand.left_behind
        if step is None:
            return pose
        share = 1 - (t_ns - step.t_ns) * 1e-9 / FADE_S
        if not 0 < share <= 1:
            hand.left_behind = None
            return pose
        share = share * share * (3 - 2 * share)
        return Pose(
            rotation_matrix(share * step.turn) @ pose.R,
            pose.at_m + share * step.move_m,
            clamp_angles(pose.angles + share * step.angles),
        )

    def _predicted(self, hand: FusedHand, t_ns: int) -> WireHand | None:
        """The hand where it should be by now; None if it was not seen for too long."""
        age_ns = t_ns - hand.measured_ns
        ahead = hand.smoother.predict(t_ns) if 0 <= age_ns <= PREDICTED_NS else None
        if ahead is None or hand.pose is None:
            return None
        fading = math.exp((hand.t_ns - t_ns) / PREDICTED_NS)
        T = ahead.T_camera_wrist
        pose = self._pose(
            hand,
            Pose(T[:3, :3], T[:3, 3], ahead.angles),
            "predicted",
            hand.pose.joint_conf * fading,
            hand.pose.score * fading,
        )
        motion = _motion_in_mirror(ahead.motion) if hand.is_left else ahead.motion
        return WireHand(hand.id, age_ns * 1e-6, pose, None, motion=motion)

    def _pose(self, hand: FusedHand, pose: Pose, state: Any, conf: Array, score: float) -> HandPose:
        assert hand.shape is not None
        shape = hand.shape.shape
        joints, vertices = self.surface.hand(pose, shape)
        T = se3.transform(pose.R, pose.at_m)
        if hand.is_left:
            joints, vertices, T = joints * MIRROR, vertices * MIRROR, mirror_pose(T)
        side_conf = 1 / (1 + math.exp(-abs(hand.right_votes)))
        side: Side = "left" if hand.is_left else "right"
        return HandPose(
            side=side if side_conf > SIDE_SURE else "unknown",
            side_conf=side_conf,
            state=state,
            score=score,
            T_camera_wrist=T,
            theta=theta_of(T, pose.angles),
            alpha=shape.alpha,
            beta=shape.beta,
            joints_m=joints,
            vertices_m=vertices,
            joint_conf=conf,
            fit_mm=float("nan"),
        )


def sigma_m(sighting: Sighting, camera: RigCamera, joints_m: Array) -> Array:
    """How far (21,) m a camera's joints (21, 3), in the rig's frame, may be off: what it expects itself, what the rig
    does not know of where it is and of its clock, and what the carrying adds."""
    conf = np.clip(sighting.joint_conf, 1e-3, 1 - 1e-3)
    expected = RADIUS_M * np.exp((np.log(conf / (1 - conf)) - _CALIBRATION.offset) / _CALIBRATION.slope)
    lever = np.concatenate([-se3.skew(joints_m), np.tile(np.eye(3), (21, 1, 1))], 2)  # (21, 3, 6)
    placed = np.einsum("jik,kl,jil->j", lever, camera.covariance, lever) / 3
    speed = float(np.linalg.norm(sighting.velocity_m_s))
    clock = (speed * camera.time.sigma_s) ** 2 + (0.5 * speed * sighting.carried_s) ** 2
    return np.asarray(np.sqrt(np.clip(expected, 0.002, 0.06) ** 2 + placed + clock))


def _foreseen(hand: FusedHand, t_ns: int) -> tuple[Array, float] | None:
    """Where its joints (21, 3) m should be by now, mirrored for a left hand, and how far off that may be; None if it
    was not seen for too long, or the clock was set back."""
    if hand.pose is None or not 0 <= t_ns - hand.t_ns < PREDICTED_NS:
        return None
    was = hand.pose.joints_m + hand.velocity_m_s * (t_ns - hand.t_ns) * 1e-9
    return (was * MIRROR if hand.is_left else was), FORESEEN_M


def _in_mirror(guess: Guess) -> Guess:
    """Its depth points and camera, for the hand of the other side."""
    return guess._replace(points_m=guess.points_m * MIRROR, eye_m=guess.eye_m * MIRROR)


def _reach_m(is_left: bool, s: Seen) -> float:
    """How far from a hand a sighting of it may be: one of the other side is a hand beside it, or in its very place."""
    return NEAR_M if s.sighting.is_left == is_left else SAME_M


def _distance(centre_m: Array, s: Seen) -> float:
    return float(np.linalg.norm(centre_m - s.joints_m.mean(0)))


def _motion_in_mirror(motion: Motion) -> Motion:
    """A motion in the mirror; turns are mirrored the other way."""
    return Motion(motion.velocity_m_s * MIRROR, -motion.angular_velocity_rad_s * MIRROR, motion.angle_rates_rad_s)


_CALIBRATION, _NO_SIGMA = Calibration(), np.zeros(21)
