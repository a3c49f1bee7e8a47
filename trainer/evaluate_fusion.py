"""How much better is the fused hand than the best single camera? Rendered rigs, the real tracker, the real wire.

python -m edge_hand.trainer.evaluate_fusion --seeds 1 2 3 --motion free

Each camera's frames go through the tracker, its messages through the wire format into the fusion. The rig given to it
is off from the true one by as much as a calibration leaves (--rig-mm, --rig-deg, --clock-ms). The single views are
judged as they are published, and the fusion also at those moments alone at which the best view has a hand. With --drop,
camera 0 falls silent half way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..calibration.fuse import Fuser
from ..calibration.rig import Quality, Rig, RigCamera, TimeOffset
from ..calibration.views import Views
from ..edge.cli.shell import CommandError, make_room
from ..edge.cloud import Clouds
from ..edge.engines import open_engine
from ..edge.tracker import Tracker
from ..hand import se3
from ..hand.arrays import Array
from ..hand.messages import CloudMessage, JointsMessage
from ..hand.whole import write_json
from ..hand.wire import Header, decode, encode_joints
from .synth.rig_views import START_NS, RigClip, RigError, rig_clip

LATENCY_NS = 10_000_000  # of the daemons
BAD_MM, RIGHT_MM = 40.0, 25.0
LEAVING_S = 0.4  # after a camera falls silent, in which its leaving could be seen
SETTLE_S = 1.0  # at the start, while hands are found; not judged


class Told(NamedTuple):
    """What a camera's daemon says of one frame."""

    joints: JointsMessage
    cloud: CloudMessage


class Errors(NamedTuple):
    """joint_mm (N, 21) of each moment or frame judged, times_s (N,), NaN where no hand is given; step_mm (N - 1,) by
    how much the error's vector of the mean joint changes from one moment to the next."""

    joint_mm: Array
    step_mm: Array
    times_s: Array

    def when(self, other: Errors, within_s: float) -> Errors:
        """Only at moments at which the other has a hand."""
        has = other.times_s[~np.isnan(other.joint_mm[:, 0])]
        at = np.clip(np.searchsorted(has, self.times_s), 1, len(has) - 1)
        near = np.minimum(abs(has[at] - self.times_s), abs(has[at - 1] - self.times_s)) < within_s
        return Errors(self.joint_mm[near], self.step_mm, self.times_s[near])

    def summary(self) -> dict[str, float]:
        given = self.joint_mm[~np.isnan(self.joint_mm[:, 0])]
        if not len(given):
            unknown = dict.fromkeys(("mean_mm", "median_mm", "step_p99_mm", "step_max_mm"), float("nan"))
            return {**unknown, "given": 0.0, "worst_below_40mm": 0.0}
        worst = np.nan_to_num(self.joint_mm, nan=np.inf).max(1)
        return {
            "mean_mm": float(given.mean()),
            "median_mm": float(np.median(given)),
            "given": len(given) / len(self.joint_mm),
            "worst_below_40mm": float((worst < BAD_MM).mean()),
            "step_p99_mm": float(np.nanpercentile(self.step_mm, 99)),
            "step_max_mm": float(np.nanmax(self.step_mm)),
        }


def listen(clip: RigClip, camera: int, *, clouds: bool = True) -> list[Told]:
    """What the daemon of a camera would publish of the clip."""
    tracker, maker, told = Tracker(open_engine()), Clouds(scene_hz=1e-3), []
    for frame in clip.frames(camera):
        hands = tracker.process(frame)
        header = Header(frame.camera, frame.seq, frame.t_ns, frame.t_ns, frame.t_ns + LATENCY_NS)
        joints = decode(encode_joints(header, hands, stages_us={}, dropped=0))
        cloud = decode(maker.message(header, frame, hands if clouds else []))
        assert isinstance(joints, JointsMessage) and isinstance(cloud, CloudMessage)
        told.append(Told(joints, cloud))
    return told


def rig_of(clip: RigClip, *, off_mm: float = 0.0, off_deg: float = 0.0, off_ms: float = 0.0, seed: int = 0) -> Rig:
    """The clip's rig as a calibration would leave it, and saying so: off by a turn and a move this long (one sigma)."""
    rng = np.random.default_rng([clip.seed, seed, 3])
    cameras = []
    for k, name in enumerate(clip.names):
        sigma = np.repeat([np.radians(off_deg), off_mm * 1e-3], 3) / np.sqrt(3) * (k > 0)
        turn, move = np.split(sigma * rng.standard_normal(6), 2)
        middle = np.array([0, 0, 0.6])  # turned about the volume, as a calibration that saw the hand there would be
        T = clip.T_ref_cam[k].copy()
        T[:3, 3] -= middle
        T = se3.transform(se3.so3_exp(turn), move + middle) @ T
        covariance = np.zeros((6, 6))
        lever = np.block([[np.eye(3), np.zeros((3, 3))], [se3.skew(middle), np.eye(3)]])
        covariance[:] = lever @ np.diag(sigma**2) @ lever.T
        clock = TimeOffset(float(clip.offsets_s[k] + (k > 0) * rng.normal(0, off_ms * 1e-3)), off_ms * 1e-3)
        cameras.append(RigCamera(name, "depth", clip.intrinsics[k], T, covariance, clock))
    return Rig("rendered", "", "evaluate_fusion", tuple(cameras), (), Quality("truth"))


def single(clip: RigClip, camera: int, told: Sequence[Told]) -> Errors:
    """A camera by itself, as published."""
    errors = np.full((clip.frame_count, 21, 3), np.nan)
    for message, _ in told:
        if message.hands:
            hand = max(message.hands, key=lambda h: h.score)
            errors[message.seq] = hand.joints_m - clip.joints_m(camera, message.seq)
    first = round(SETTLE_S * clip.fps)
    return _errors(errors[first:], [clip.time_s(camera, i) for i in range(first, clip.frame_count)])


def fused(clip: RigClip, told: Sequence[Sequence[Told]], rig: Rig, *, drop_s: float | None = None,
          smooth: bool = True) -> Errors:  # fmt: skip
    """The fusion of what all daemons say; with drop_s camera 0 is silent from then on."""
    views, fuser = Views(rig), Fuser(rig, smooth)
    events: list[tuple[int, int, Told]] = []
    for camera, messages in enumerate(told):
        for message in messages:
            t_s = clip.time_s(camera, message.joints.seq)
            if camera or drop_s is None or t_s < drop_s:
                events.append((START_NS + round(t_s * 1e9) + LATENCY_NS, camera, message))
    errors, times, end = [], [], len(events)
    events.sort(key=lambda event: event[:2])
    for k, (now_ns, _, message) in enumerate(events):
        views.take(message.cloud, now_ns)
        views.take(message.joints, now_ns)
        until = events[k + 1][0] if k + 1 < end else now_ns + LATENCY_NS
        for moment in (now_ns, min(until - 1, now_ns + views.wait_ns)):
            t_ns = views.due(moment)
            if t_ns is None:
                continue
            hands = fuser.step(t_ns, views.at(t_ns))
            t_s = (t_ns - START_NS) * 1e-9
            if t_s >= SETTLE_S:
                truth = clip.joints_ref_m(t_s)
                hand = max(hands, key=lambda h: h.pose.score, default=None)
                times.append(t_s)
                errors.append(hand.pose.joints_m - truth if hand else np.full((21, 3), np.nan))
    return _errors(np.stack(errors), times)


def views_right(together: Errors, alone: Sequence[Errors]) -> list[int]:
    """Of the moments at which a fused joint is bad: how many there are with 0, 1, ... views right about that joint."""
    count = [0] * (len(alone) + 1)
    for moment in np.flatnonzero(np.nan_to_num(together.joint_mm).max(1) >= BAD_MM):
        joint = int(np.argmax(together.joint_mm[moment]))
        at = [int(np.argmin(abs(view.times_s - together.times_s[moment]))) for view in alone]
        count[sum(view.joint_mm[i, joint] < RIGHT_MM for view, i in zip(alone, at, strict=True))] += 1
    return count


def _errors(vectors_m: Array, times_s: Sequence[float]) -> Errors:
    steps = np.linalg.norm(np.diff(vectors_m.mean(1), axis=0), axis=1)
    return Errors(1e3 * np.linalg.norm(vectors_m, axis=2), 1e3 * steps, np.array(times_s))


def evaluate(clip: RigClip, told: Sequence[Sequence[Told]], rig: Rig, *, drop: bool = False,
             smooth: bool = True) -> dict[str, Any]:  # fmt: skip
    """Single views, the best of them, the fusion, and how much lower its error is; drop: camera 0 leaves half way.
    If no view has a hand, best is None and that is all."""
    alone = {name: single(clip, k, told[k]) for k, name in enumerate(clip.names)}
    views = {name: errors.summary() for name, errors in alone.items()}
    seen = [name for name in views if views[name]["given"] > 0]
    best = min(seen, key=lambda name: views[name]["mean_mm"], default=None)
    result: dict[str, Any] = {"seed": clip.seed, "views": views, "best": best}
    if best is None:
        return result
    together = fused(clip, told, rig, smooth=smooth)
    result["fused"] = together.summary()
    result["fused_when_best"] = together.when(alone[best], 0.5 / clip.fps).summary()
    result["bad_by_views_right"] = views_right(together, list(alone.values()))
    result["lower_by"] = 1 - result["fused_when_best"]["mean_mm"] / views[best]["mean_mm"]
    if drop:
        without = fused(clip, told, rig, drop_s=clip.seconds / 2, smooth=smooth)
        after = without.times_s[1:] - clip.seconds / 2
        step_mm = float(np.nanmax(without.step_mm[(after > -0.05) & (after < LEAVING_S)]))
        result["dropped"] = without.summary() | {"step_at_drop_mm": step_mm}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--motion", choices=["calibrate", "free"], default="free")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--cameras", type=int, default=3)
    parser.add_argument("--width", type=int, choices=[424, 848], default=848, help="of a D435's picture [%(default)s]")
    parser.add_argument("--rig-mm", type=float, default=1.0, help="error of the rig's places, one sigma [%(default)s]")
    parser.add_argument("--rig-deg", type=float, default=0.15, help="of its turns [%(default)s]")
    parser.add_argument("--clock-ms", type=float, default=1.0, help="of its clocks [%(default)s]")
    parser.add_argument("--no-clouds", action="store_true", help="fuse joints alone")
    parser.add_argument("--no-smooth", action="store_true", help="do not smooth the fused hand")
    parser.add_argument("--drop", action="store_true", help="camera 0 falls silent half way")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        make_room(options.json)
    except CommandError as error:
        sys.exit(f"evaluate_fusion: {error}")
    results = []
    for seed in options.seeds:
        try:
            clip = rig_clip(
                seed, cameras=options.cameras, seconds=options.seconds, motion=options.motion, is_left=seed % 3 == 0,
                size=(options.width, options.width * 240 // 424),
            )  # fmt: skip
        except RigError as error:
            sys.exit(f"evaluate_fusion: {error}")
        told = [listen(clip, camera, clouds=not options.no_clouds) for camera in range(options.cameras)]
        rig = rig_of(clip, off_mm=options.rig_mm, off_deg=options.rig_deg, off_ms=options.clock_ms)
        results.append(evaluate(clip, told, rig, drop=options.drop, smooth=not options.no_smooth))
        print(line(results[-1]), flush=True)
    if options.json:
        write_json(options.json, results)


def line(result: dict[str, Any]) -> str:
    """One line a clip."""
    if result["best"] is None:
        return f"seed {result['seed']}: no camera sees the hand after {SETTLE_S:g} s; give another of --seeds"
    best, then, fusion = result["views"][result["best"]], result["fused_when_best"], result["fused"]
    text = (
        f"seed {result['seed']}: best view {best['mean_mm']:.2f} mm in {100 * best['given']:.0f} % of frames, "
        f"worst joint < 40 mm in {100 * best['worst_below_40mm']:.1f} %; fused {then['mean_mm']:.2f} mm then, "
        f"{100 * result['lower_by']:.0f} % lower, {fusion['mean_mm']:.2f} mm in {100 * fusion['given']:.0f} %, "
        f"worst joint < 40 mm in {100 * fusion['worst_below_40mm']:.1f} %; step p99 {fusion['step_p99_mm']:.1f}, "
        f"max {fusion['step_max_mm']:.1f} mm"
    )
    if any(result["bad_by_views_right"]):
        text += f"; else 0, 1, ... views right about it: {', '.join(map(str, result['bad_by_views_right']))}"
    if "dropped" in result:
        left = result["dropped"]
        text += f"; a camera leaves: max {left['step_at_drop_mm']:.1f} mm then, {left['mean_mm']:.2f} mm in all"
    return text


if __name__ == "__main__":
    main()
