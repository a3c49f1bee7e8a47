"""One hand over time: where it goes, which side it is, how large it is, and what is published of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from ..hand.arrays import Array
from ..hand.crop import camera_from_crop, mirror_pose
from ..hand.frames import DepthFrame, HandPose, Side
from ..hand.kinematics import Shape
from ..hand.messages import WireHand
from .arithmetic import PLAIN, Arithmetic
from .calm import Calm
from .confidence import Calibration
from .look import Look, trust
from .person import Person
from .refit import Fit, Refit, Start, theta_of
from .smooth import Smoother

PREDICTED_NS = 150_000_000  # a hand that was not measured is carried on for so long, then it is lost
SIDE_VOTE = 0.95  # how much of the side's evidence is kept from vote to vote
SIDE_LIMIT = 40.0
BELIEF_KEPT = 0.85  # of the belief that it is a hand, from search to search; less at first
SIDE_DECIDED = 4.0  # below so many votes, log-odds, every frame is also looked at as the other hand
SIDE_SURE = 0.9  # confidence below which a side is published as unknown
MOST_M_S = 3.0  # hands keep below this, or so
# A hand slower than this that should be as near as this to where it was looked at last is looked at there again: crops
# that follow each answer's noise move the next answer.
REST_M_S, REST_M = 0.1, 0.008
STILL_M_S = 0.03  # slower, and its crops are averaged


@dataclass(eq=False)
class Track:
    """What is remembered of a hand between frames; the tracker decides when it begins and ends."""

    centre_m: Array  # mean of the joints when last measured
    t_ns: int  # of that measurement
    right_votes: float  # log-odds of a right hand, summed over frames
    begun_ns: int = 0  # when it was first seen
    velocity_m_s: Array = field(default_factory=lambda: np.zeros(3))
    aim_m: Array | None = None  # where it was looked at last
    calm: Calm = field(default_factory=Calm)
    person: Person = field(default_factory=Person)
    smoother: Smoother = field(default_factory=Smoother)
    measured: int = 0  # frames in which it was
    id: int = 0  # none yet
    published: bool = False
    belief: float = 0.0  # log-odds that it is a hand at all, over the last searches
    searches: int = 0  # since the one that began it
    score: float = 0.0  # of the finder's last proposal of it
    pose: HandPose | None = None  # as last measured
    fitted: tuple[Array, Array] | None = None  # the same before it was smoothed: T_camera_wrist (4, 4) m, angles (20,)

    @property
    def is_left(self) -> bool:
        return self.right_votes < 0

    @property
    def is_still(self) -> bool:
        return math.hypot(*self.velocity_m_s.tolist()) < STILL_M_S

    @property
    def size(self) -> float:
        """Of its hand, 1 on average or while it is not known."""
        return float(self.person.shape.alpha.mean()) if self.person.held else 1.0

    def foreseen_m(self, t_ns: int) -> Array:
        """Where its centre (3,) should be."""
        ahead_s = min(max((t_ns - self.t_ns) * 1e-9, 0.0), 0.1)
        return self.centre_m + self.velocity_m_s * ahead_s

    def aim(self, t_ns: int) -> Array:
        """Where to look for it (3,): where its centre should be, or where it was looked at last if it rests there."""
        foreseen, speed = self.foreseen_m(t_ns), math.hypot(*self.velocity_m_s.tolist())
        if self.aim_m is None or speed > REST_M_S or math.dist(foreseen, self.aim_m) > REST_M:
            self.aim_m = foreseen
        return self.aim_m

    def vote(self, right_votes: float, most: float) -> None:
        """Take evidence for its side, log-odds of a right hand that count for `most` at most."""
        was_left = self.is_left
        votes = SIDE_VOTE * self.right_votes + min(max(right_votes, -most), most)
        self.right_votes = min(max(votes, -SIDE_LIMIT), SIDE_LIMIT)
        if self.is_left != was_left:
            self.smoother.reset()  # a left hand's angles are not the right one's
            self.fitted = None

    def believe(self, log_odds: float) -> None:
        """Take what a search says of its being a hand: the mean of the first searches, later of the last ones."""
        self.searches += 1
        kept = min(BELIEF_KEPT, self.searches / (self.searches + 1))
        self.belief = kept * self.belief + (1 - kept) * log_odds

    def move(self, centre_m: Array, t_ns: int) -> None:
        """Take a measured centre (3,) m."""
        dt_s = (t_ns - self.t_ns) * 1e-9
        if 0 < dt_s < 0.2 and self.measured:
            velocity = (centre_m - self.centre_m) / dt_s
            self.velocity_m_s = velocity * (0.7 * min(1.0, MOST_M_S / max(math.hypot(*velocity.tolist()), 1e-9)))
        else:
            self.velocity_m_s = np.zeros(3)
        self.centre_m, self.t_ns = centre_m, t_ns

    def forget_motion(self, t_ns: int) -> None:
        """The clock jumped: speeds mean nothing any more."""
        self.t_ns = self.begun_ns = t_ns
        self.velocity_m_s = np.zeros(3)
        self.smoother.reset()
        self.fitted = None


class Poser:
    """From looks at a track's hand to what is published of it."""

    def __init__(self, refit: Refit, calibration: Calibration, smooth: bool, arithmetic: Arithmetic = PLAIN) -> None:
        self.refit, self.calibration, self.smooth = refit, calibration, smooth
        self._visible, self._confidence, self._fit_mm = (
            arithmetic.visible, arithmetic.joint_confidence, arithmetic.fit_mm,
        )  # fmt: skip

    def measured(self, track: Track, frame: DepthFrame, look: Look) -> WireHand:
        """Refit the hand of a look, smooth it, remember it in the track."""
        vertices, points = look.prediction.vertices_m, look.prediction.points_m
        weights = trust(look.prediction.joint_error_m)
        shape = track.person.shape
        start = _a_moment_ago(track, frame, look)
        fit = self.refit.solve(vertices, shape=shape, points_m=points, weights=weights, start=start)
        track.person.observe(self.refit, fit, look.score, frame.t_ns, points, weights)
        left = look.crop.mirrored
        t_raw = _in_camera(look, fit)
        track.fitted = t_raw, fit.angles
        raw = camera_from_crop(look.crop, fit.joints_m)
        track.move(np.add.reduce(raw) / len(raw), frame.t_ns)
        smoothed = track.smoother(frame.t_ns, t_raw, fit.angles)
        t, angles = (smoothed.T_camera_wrist, smoothed.angles) if self.smooth else (t_raw, fit.angles)
        joints, vertices = self._hand(t, angles, shape, left)
        seen = self._visible(frame, joints)
        side_conf = 1 / (1 + math.exp(track.right_votes if left else -track.right_votes))
        side: Side = "left" if left else "right"
        track.pose = HandPose(
            side=side if side_conf > SIDE_SURE else "unknown",
            side_conf=side_conf,
            state="tracked",
            score=look.score,
            T_camera_wrist=t,
            theta=theta_of(t, angles),
            alpha=shape.alpha,
            beta=shape.beta,
            joints_m=joints,
            vertices_m=vertices,
            joint_conf=self._confidence(look.prediction.joint_error_m, seen, self.calibration),
            fit_mm=self._fit_mm(camera_from_crop(look.crop, points), vertices),
        )
        track.measured += 1
        return WireHand(track.id, 0.0, track.pose, raw, seen, smoothed.motion)

    def predicted(self, track: Track, frame: DepthFrame) -> WireHand | None:
        """The hand where it should be by now, less certain the longer ago it was measured; None if too long ago."""
        age_ns = frame.t_ns - track.t_ns
        ahead = track.smoother.predict(frame.t_ns) if age_ns <= PREDICTED_NS else None
        if ahead is None or track.pose is None:
            return None
        was = track.pose
        left = was.side == "left" or (was.side == "unknown" and track.is_left)
        joints, vertices = self._hand(ahead.T_camera_wrist, ahead.angles, Shape(was.alpha, was.beta), left)
        fading = float(np.exp(-age_ns / PREDICTED_NS))
        pose = replace(
            was,
            state="predicted",
            score=was.score * fading,
            T_camera_wrist=ahead.T_camera_wrist,
            theta=theta_of(ahead.T_camera_wrist, ahead.angles),
            joints_m=joints,
            vertices_m=vertices,
            joint_conf=was.joint_conf * fading,
            fit_mm=float("nan"),
        )
        return WireHand(track.id, age_ns * 1e-6, pose, None, self._visible(frame, joints), ahead.motion)

    def _hand(self, t: Array, angles: Array, shape: Shape, left: bool) -> tuple[Array, Array]:
        """Joints (21, 3) and vertices (V, 3) m, in the camera frame, of a wrist (4, 4) and angles (20,)."""
        joints, vertices = self.refit.pose(mirror_pose(t) if left else t, angles, shape)
        if left:
            joints[:, 0], vertices[:, 0] = -joints[:, 0], -vertices[:, 0]
        return joints, vertices


def _a_moment_ago(track: Track, frame: DepthFrame, look: Look) -> Start | None:
    """The track's last fit in the crop's frame, if it is young."""
    if track.fitted is None or not track.measured or not 0 < frame.t_ns - track.t_ns <= PREDICTED_NS:
        return None
    t, angles = track.fitted
    rotation = look.crop.R_camera_crop.T @ t[:3, :3]
    if look.crop.mirrored:
        rotation = mirror_pose(rotation)
    return Start(rotation, angles, (frame.t_ns - track.t_ns) * 1e-9)


def _in_camera(look: Look, fit: Fit) -> Array:
    """T_camera_wrist (4, 4) of a fit in the crop's frame."""
    t = mirror_pose(fit.T_wrist) if look.crop.mirrored else fit.T_wrist.copy()
    t[:3] = look.crop.R_camera_crop @ t[:3]
    return t
