"""One hand, frame after frame: crop where it was, run the network, refit; look for it anew when it is lost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..hand import se3
from ..hand.crop import MIRROR, camera_from_crop, crop_depth, points_from_uvd
from ..hand.frames import DepthFrame, HandCrop, HandPose, HandPrediction, HandRoi, Side
from ..hand.template import template
from .engines import Engine, predict
from .finder import NEAR_M, find_hands
from .refit import Fit, Refit, theta_of

Array = NDArray[Any]
# A crop holds a hand if the network sees one there and expects to be right about it. Of rendered hands 99 % pass;
# what else passes, `docs/accuracy.md`.
MOST_ERROR_MM = 20.0
LEAST_HAND_PIXELS = 40  # of 1024
SEARCH_INTERVAL_NS = 60_000_000  # a search costs several crops; while no hand is there, one in so many ns is enough
NEVER_NS = -(10**18)
FAR_OFF_M = 0.05  # a hand this far from where it was looked for is looked at again
SIDE_VOTE = 0.9  # how much of the side's evidence is kept from frame to frame
SIDE_LIMIT = 12.0
SIDE_DECIDED = 4.0  # below this many votes, log-odds, every frame is also looked at as the other hand
SIDE_SURE = 0.9  # confidence below which a side is published as unknown
GAUGE_POINTS = 40
STAGES = ("capture", "find", "crop", "engine", "refit", "publish")


class Measurement(NamedTuple):
    """One crop seen by the network: the mean error it expects, and how many pixels it takes for hand."""

    crop: HandCrop
    prediction: HandPrediction
    error_mm: float
    hand_pixels: int

    @property
    def is_hand(self) -> bool:
        there = self.prediction.presence_logit > 0 and self.hand_pixels >= LEAST_HAND_PIXELS
        return there and self.error_mm < MOST_ERROR_MM

    @property
    def score(self) -> float:
        """1 for a hand beyond doubt, 0 at the threshold of being none."""
        return max(0.0, 1 - self.error_mm / MOST_ERROR_MM)


@dataclass
class Track:
    """What is remembered of the hand between frames."""

    id: int
    centre_m: Array
    velocity_m_s: Array
    t_ns: int
    right_votes: float  # log-odds of a right hand, summed over frames


@dataclass
class TrackedHand:
    """A hand as measured in the frame just processed."""

    id: int
    pose: HandPose


@dataclass
class Tracker:
    """process() one frame at a time; stages_us says what the last one cost."""

    engine: Engine
    refit: Refit = field(default_factory=Refit)
    stages_us: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    track: Track | None = None
    _next_id: int = 1
    _failed_ns: int = NEVER_NS

    def __post_init__(self) -> None:
        self._joint_vertices = _vertices_of_joints()
        self._centre_weights = self._joint_vertices.mean(0)

    def process(self, frame: DepthFrame) -> list[TrackedHand]:
        """The hands of this frame: one, or none."""
        for stage in STAGES:
            self.stages_us[stage] = 0.0
        seen = self._follow(frame) if self.track else None
        if seen is None:
            self.track = None
            seen = self._search(frame)
        if seen is None:
            return []
        return [self._pose(frame, seen)]

    def reset(self) -> None:
        """Forget the hand: the next frame is searched from nothing."""
        self.track = None
        self._failed_ns = NEVER_NS

    def _follow(self, frame: DepthFrame) -> Measurement | None:
        track = self.track
        assert track is not None
        ahead_s = min(max((frame.t_ns - track.t_ns) * 1e-9, 0.0), 0.1)
        centre = track.centre_m + track.velocity_m_s * ahead_s
        if centre[2] < NEAR_M:
            return None
        left = track.right_votes < 0
        seen = self._measure(frame, centre, left)
        found = self._centre(seen)
        if seen.is_hand and found[2] > NEAR_M and np.linalg.norm(found - centre) > FAR_OFF_M:
            # It moved faster than foreseen: look there.
            seen = self._measure(frame, found, left)
        if not seen.is_hand:
            return None
        evidence = seen.prediction.right_logit * (-1 if left else 1)
        if abs(track.right_votes) < SIDE_DECIDED:  # seen alone, either view tends to be called what it would be
            other = self._measure(frame, self._centre(seen), not left)
            evidence -= other.prediction.right_logit * (-1 if left else 1)
        votes = SIDE_VOTE * track.right_votes + np.clip(evidence, -4, 4)
        track.right_votes = float(np.clip(votes, -SIDE_LIMIT, SIDE_LIMIT))
        return seen

    def _search(self, frame: DepthFrame) -> Measurement | None:
        if 0 <= frame.t_ns - self._failed_ns < SEARCH_INTERVAL_NS:
            return None
        self._failed_ns = frame.t_ns  # unless this one succeeds
        begun = time.perf_counter()
        rois = find_hands(frame)
        self.stages_us["find"] += (time.perf_counter() - begun) * 1e6
        tried = [self._measure(frame, roi.centre_m, mirrored=False) for roi in rois]
        tried = [m for m in tried if m.hand_pixels >= LEAST_HAND_PIXELS]
        if not tried:
            return None
        best = min(tried, key=lambda m: m.error_mm)
        # The first look was off-centre: look again from the hand's own centre, as at a right and as at a left hand.
        as_right, as_left = (self._measure(frame, self._centre(best), mirrored) for mirrored in (False, True))
        votes = as_right.prediction.right_logit - as_left.prediction.right_logit
        best = as_right if votes >= 0 else as_left
        best = self._measure(frame, self._centre(best), best.crop.mirrored)
        if not best.is_hand:
            return None
        self.track = Track(self._next_id, self._centre(best), np.zeros(3), frame.t_ns, votes)
        self._next_id += 1
        self._failed_ns = NEVER_NS
        return best

    def _measure(self, frame: DepthFrame, centre: Array, mirrored: bool) -> Measurement:
        t0 = time.perf_counter()
        crop = crop_depth(
            frame, HandRoi("unknown", centre, self.engine.card.cube_m, 1.0), self.engine.card.crop_size, mirrored
        )
        t1 = time.perf_counter()
        prediction = predict(self.engine, crop)
        t2 = time.perf_counter()
        self.stages_us["crop"] += (t1 - t0) * 1e6
        self.stages_us["engine"] += (t2 - t1) * 1e6
        error_mm = float(prediction.error.mean()) * crop.cube_m * 500
        hand_pixels = int(np.count_nonzero(prediction.hand & (crop.image[::2, ::2] < 1)))
        return Measurement(crop, prediction, error_mm, hand_pixels)

    def _centre(self, seen: Measurement) -> Array:
        """Mean of the joints in the camera frame, from the raw vertices."""
        points = points_from_uvd(seen.prediction.vertices_uvd, seen.crop.distance_m, seen.crop.cube_m)
        return camera_from_crop(seen.crop, self._centre_weights @ points)

    def _pose(self, frame: DepthFrame, seen: Measurement) -> TrackedHand:
        begun = time.perf_counter()
        track = self.track
        assert track is not None
        crop, prediction = seen.crop, seen.prediction
        fit = self.refit(points_from_uvd(prediction.vertices_uvd, crop.distance_m, crop.cube_m))
        joints = camera_from_crop(crop, fit.joints_m)
        self._remember(track, frame, joints.mean(0))
        error_m = self._joint_vertices @ prediction.error * (crop.cube_m / 2)
        side: Side = "left" if crop.mirrored else "right"
        side_conf = 1 / (1 + np.exp(track.right_votes if crop.mirrored else -track.right_votes))
        pose = HandPose(
            side=side if side_conf > SIDE_SURE else "unknown",
            side_conf=float(side_conf),
            state="tracked",
            score=seen.score,
            **in_camera(crop, fit),
            beta=np.zeros(7),
            joints_m=joints,
            vertices_m=camera_from_crop(crop, fit.vertices_m),
            joint_conf=np.exp(-error_m / 0.03),
            fit_mm=fit_mm(crop, prediction, fit.vertices_m),
        )
        self.stages_us["refit"] += (time.perf_counter() - begun) * 1e6
        return TrackedHand(track.id, pose)

    def _remember(self, track: Track, frame: DepthFrame, centre: Array) -> None:
        dt_s = (frame.t_ns - track.t_ns) * 1e-9
        if 0 < dt_s < 0.2:
            velocity = (centre - track.centre_m) / dt_s
            speed = float(np.linalg.norm(velocity))
            track.velocity_m_s = 0.7 * velocity * min(1.0, 3.0 / max(speed, 1e-9))  # hands keep below 3 m/s or so
        else:
            track.velocity_m_s = np.zeros(3)
        track.centre_m, track.t_ns = centre, frame.t_ns


def in_camera(crop: HandCrop, fit: Fit) -> dict[str, Array]:
    """theta, alpha and T_camera_wrist of a fit made in the crop's frame; a left hand's template is mirrored."""
    rotation, translation = fit.T_wrist[:3, :3], fit.T_wrist[:3, 3]
    if crop.mirrored:
        mirror = np.diag(MIRROR)
        rotation, translation = mirror @ rotation @ mirror, mirror @ translation
    t = se3.transform(crop.R_camera_crop @ rotation, crop.R_camera_crop @ translation)
    return {"theta": theta_of(t, fit.angles), "alpha": fit.alpha, "T_camera_wrist": t}


def fit_mm(crop: HandCrop, prediction: HandPrediction, vertices_m: Array) -> float:
    """Median distance (mm) of up to 40 points taken for hand to the nearest of every other vertex.

    A cheap gauge for the loop, over-stated where triangles are large; `edge-hand eval` measures to the surface.
    """
    size = crop.image.shape[0]
    depth = crop.image[::2, ::2]
    rows, columns = np.nonzero(prediction.hand & (depth < 1))
    if len(rows) == 0:
        return float("nan")
    pick = np.linspace(0, len(rows) - 1, min(GAUGE_POINTS, len(rows))).astype(int)
    rows, columns = rows[pick], columns[pick]
    uvd = np.stack([(4 * columns + 1) / size - 1, (4 * rows + 1) / size - 1, depth[rows, columns]], -1)
    points = points_from_uvd(uvd, crop.distance_m, crop.cube_m).astype(np.float32)
    mesh = vertices_m[::2].astype(np.float32)
    centre = mesh.mean(0)  # so that squares of small numbers are subtracted
    points, mesh = points - centre, mesh - centre
    squared = (points**2).sum(1)[:, None] - 2 * points @ mesh.T + (mesh**2).sum(1)
    return float(np.sqrt(np.median(np.maximum(squared.min(1), 0))) * 1e3)


def _vertices_of_joints() -> Array:
    """(21, V) weights of the skin around each joint: its mean lies near the joint."""
    t = template()
    squared = ((t.joints_m[:, None] - t.vertices_m[None]) ** 2).sum(-1)
    weight = np.exp(-squared / (2 * 0.012**2)) * t.area
    return weight / weight.sum(1, keepdims=True)
