"""The tracker with the model that ships: it follows a hand of either side, loses it and finds it again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.engines import Engine
from edge_hand.edge.finder import Part
from edge_hand.edge.look import Look
from edge_hand.edge.refusals import Refusals
from edge_hand.edge.track import MOST_M_S, PREDICTED_NS
from edge_hand.edge.tracker import GUESSED_NS, NEW_WITHIN_M, REMEMBERED_NS, SAME_M, SEARCH_NS, STAGES, Track, Tracker
from edge_hand.hand.arrays import Array
from edge_hand.hand.crop import MIRROR
from edge_hand.hand.frames import DepthFrame, HandRoi
from edge_hand.hand.kinematics import pose_hand
from edge_hand.hand.messages import WireHand
from edge_hand.hand.se3 import so3_exp
from edge_hand.hand.skeleton import ANGLE_LIMITS_RAD
from edge_hand.hand.template import template

FRAMES = 40
T = template()


@pytest.fixture(scope="module")
def camera() -> Iterator[SyntheticCamera]:
    with SyntheticCamera(0, "424x240@30", fps=0) as camera:
        yield camera


@pytest.fixture(scope="module")
def frames(camera: SyntheticCamera) -> list[DepthFrame]:
    """Consecutive frames, without the image's left 24 columns so that left and right differ."""
    k = camera.intrinsics
    cut = replace(k, width=k.width - 24, cx=k.cx - 24)
    shown = (camera.frame(seq) for seq in range(FRAMES))
    return [replace(f, depth=np.ascontiguousarray(f.depth[:, 24:]), intrinsics=cut) for f in shown]


@pytest.fixture(scope="module")
def followed(engine: Engine, frames: list[DepthFrame]) -> list[list[WireHand]]:
    tracker = Tracker(engine)
    return [tracker.process(f) for f in frames]


@pytest.fixture(scope="module")
def followed_mirrored(engine: Engine, frames: list[DepthFrame], followed: list[list[WireHand]]) -> list[list[WireHand]]:
    """The mirror images, from a track that takes the hand for a left one."""
    tracker = Tracker(engine)
    centre = followed[0][0].pose.joints_m.mean(0) * MIRROR
    tracker.tracks = [Track(centre, frames[0].t_ns, right_votes=-2.0, published=True, belief=3.0)]
    return [tracker.process(mirror_image(f)) for f in frames]


def mirror_image(frame: DepthFrame) -> DepthFrame:
    k = frame.intrinsics
    depth = np.ascontiguousarray(frame.depth[:, ::-1])
    return replace(frame, depth=depth, intrinsics=replace(k, cx=k.width - 1 - k.cx))


def blank(frame: DepthFrame, counts: int = 0) -> DepthFrame:
    return replace(frame, depth=np.full_like(frame.depth, counts))


def error_mm(hand: WireHand, joints_m: Array) -> float:
    return float(np.linalg.norm(hand.pose.joints_m - joints_m, axis=1).mean() * 1e3)


def test_a_right_hand_is_followed(followed: list[list[WireHand]], camera: SyntheticCamera) -> None:
    found = [(seq, hands[0]) for seq, hands in enumerate(followed) if hands]
    assert len(found) >= 0.9 * FRAMES and all(len(hands) <= 1 for hands in followed)
    assert np.mean([error_mm(hand, camera.truth(seq)) for seq, hand in found]) < 30
    assert {hand.pose.side for _, hand in found} == {"right"}
    assert {hand.id for _, hand in found} == {1}
    assert min(found[0][1].pose.side_conf, found[-1][1].pose.side_conf) > 0.6


def test_the_mirror_image_of_a_right_hand_is_found_as_a_left_one(engine: Engine, frames: list[DepthFrame]) -> None:
    tracker = Tracker(engine)
    sides = [hand.pose.side for frame in frames for hand in tracker.process(mirror_image(frame))]
    assert len(sides) >= 0.9 * FRAMES
    assert sides.count("left") >= 0.9 * len(sides) and sides[-1] == "left"


def test_a_left_hand_s_joints_are_the_mirror_image_of_a_right_one_s(
    followed: list[list[WireHand]], followed_mirrored: list[list[WireHand]]
) -> None:
    both = [(r[0].pose, m[0].pose) for r, m in zip(followed[5:], followed_mirrored[5:], strict=True) if r and m]
    assert len(both) >= 0.8 * FRAMES
    assert {left.side for _, left in both} == {"left"}
    for right, left in both:
        assert np.linalg.norm(left.joints_m * MIRROR - right.joints_m, axis=1).mean() < 0.005
        assert np.linalg.norm(left.vertices_m * MIRROR - right.vertices_m, axis=1).mean() < 0.005
        assert np.abs(left.theta[6:] - right.theta[6:]).mean() < 0.1


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_field_of_a_pose_says_the_same(
    side: str, followed: list[list[WireHand]], followed_mirrored: list[list[WireHand]]
) -> None:
    mirror = MIRROR if side == "left" else np.ones(3)
    for hands in (followed if side == "right" else followed_mirrored)[::8]:
        for pose in (hand.pose for hand in hands):
            rotation, wrist = pose.T_camera_wrist[:3, :3], pose.T_camera_wrist[:3, 3]
            np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
            assert np.linalg.det(rotation) == pytest.approx(1)
            np.testing.assert_array_equal(pose.T_camera_wrist[3], [0, 0, 0, 1])
            np.testing.assert_allclose(rotation @ (mirror * T.joints_m[0]) + wrist, pose.joints_m[0], atol=1e-6)
            # The palm is rigid: the wrist's frame takes the template's knuckles to the hand's.
            knuckle = pose.alpha[0] * (T.joints_m[9] - T.joints_m[0])
            np.testing.assert_allclose(rotation @ (mirror * knuckle) + wrist, pose.joints_m[9], atol=1e-6)
            np.testing.assert_allclose(pose.theta[:3], wrist, atol=1e-9)
            np.testing.assert_allclose(so3_exp(pose.theta[3:6]), rotation, atol=1e-6)
            at_origin = np.concatenate([np.zeros(6), pose.theta[6:]])
            joints, vertices = pose_hand(T, at_origin[None], pose.alpha[None], pose.beta[None])
            np.testing.assert_allclose((joints[0] * mirror) @ rotation.T + wrist, pose.joints_m, atol=1e-6)
            np.testing.assert_allclose((vertices[0] * mirror) @ rotation.T + wrist, pose.vertices_m, atol=1e-6)
            low, high = ANGLE_LIMITS_RAD.T
            assert ((pose.theta[6:] >= low) & (pose.theta[6:] <= high)).all()
            assert pose.joint_conf.shape == (21,) and ((pose.joint_conf > 0) & (pose.joint_conf <= 1)).all()
            assert 0 < pose.fit_mm < 50 and 0 <= pose.score <= 1 and pose.state == "tracked"


def test_a_hand_that_goes_is_predicted_for_a_while_and_then_lost(engine: Engine, frames: list[DepthFrame]) -> None:
    tracker = Tracker(engine)
    for frame in frames[:4]:
        last = tracker.process(frame)
    ages, confidence = [], [last[0].pose.joint_conf.mean()]
    for seq in range(4, 12):
        for hand in tracker.process(blank(frames[seq])):
            assert hand.pose.state == "predicted" and hand.joints_raw_m is None and hand.id == last[0].id
            ages.append(hand.age_ms)
            confidence.append(hand.pose.joint_conf.mean())
        unseen_ns = (seq - 3) * 10**9 // 30
        assert bool(tracker.tracks) == (unseen_ns <= PREDICTED_NS)  # looked for longer than it is shown
    assert len(ages) == GUESSED_NS * 30 // 10**9
    np.testing.assert_allclose(ages, (np.arange(len(ages)) + 1) * 1e3 / 30, rtol=1e-3)
    assert (np.diff(confidence) < 0).all()
    assert tracker.tracks == [] and tracker.process(blank(frames[12], 65535)) == []


@pytest.mark.parametrize(("fps", "shown"), [(6, 0), (10, 1), (15, 1), (30, 2), (60, 4), (90, 6)])
def test_a_hand_is_predicted_for_75_ms_or_in_one_frame(
    engine: Engine, frames: list[DepthFrame], fps: int, shown: int
) -> None:
    tracker = Tracker(engine)
    for frame in frames[:4]:
        tracker.process(frame)
    begun = frames[3].t_ns
    after = [replace(blank(frames[4]), t_ns=begun + k * 10**9 // fps) for k in range(1, 20)]
    assert [bool(tracker.process(frame)) for frame in after] == [True] * shown + [False] * (19 - shown)


def test_a_hand_is_not_predicted_where_the_frame_shows_what_lies_behind_it(
    engine: Engine, frames: list[DepthFrame]
) -> None:
    tracker = Tracker(engine)
    for frame in frames[:4]:
        last = tracker.process(frame)
    wall = round(1e3 * (last[0].pose.joints_m[:, 2].max() + 0.3))
    assert tracker.process(blank(frames[4], wall)) == []
    (again,) = tracker.process(blank(frames[5]))  # which shows nothing
    assert (again.id, again.pose.state) == (last[0].id, "predicted")
    (again,) = tracker.process(frames[6])
    assert (again.id, again.pose.state) == (last[0].id, "tracked")


@pytest.mark.parametrize(("z_m", "looked"), [(NEW_WITHIN_M - 0.01, True), (NEW_WITHIN_M + 0.01, False)])
def test_a_new_hand_beyond_what_finder_and_network_know_is_not_looked_at(
    engine: Engine, frames: list[DepthFrame], z_m: float, looked: bool
) -> None:
    class Proposes:
        judges = True

        def __call__(self, frame: DepthFrame, part: Part | None = None) -> list[HandRoi]:
            return [HandRoi("right", np.array([0.0, 0.0, z_m]), 0.25, 0.9)]

    tracker = Tracker(engine, finder=Proposes())
    tracker.process(frames[0])
    assert (tracker.stages_us["engine"] > 0) == looked


def test_a_hand_that_comes_back_soon_keeps_its_id_within_three_frames(engine: Engine, frames: list[DepthFrame]) -> None:
    tracker = Tracker(engine)
    for frame in frames[:4]:
        tracker.process(frame)
    for seq in range(4, 20):
        tracker.process(blank(frames[seq], 2000))
    assert not tracker.tracks
    back = [tracker.process(frame) for frame in frames[20:23]]
    assert [hand.id for hand in back[2]] == [1]


def test_a_hand_that_comes_back_late_is_another_one(engine: Engine, frames: list[DepthFrame]) -> None:
    tracker = Tracker(engine)
    for frame in frames[:4]:
        tracker.process(frame)
    wall = blank(frames[4], 2000)
    for k in range(8):
        tracker.process(replace(wall, t_ns=wall.t_ns + k * 33_000_000))
    late_ns = frames[3].t_ns + REMEMBERED_NS
    hands = [tracker.process(replace(f, t_ns=late_ns + k * 33_000_000)) for k, f in enumerate(frames[4:8])]
    assert hands[-1][0].id == 2


def test_a_hand_that_jumps_farther_than_hands_move_keeps_its_id(engine: Engine, frames: list[DepthFrame]) -> None:
    tracker = Tracker(engine, confirm=False)
    for frame in frames[:4]:
        before = tracker.process(frame)
    jumped = replace(frames[4], depth=np.roll(frames[4].depth, -100, 1))
    after = tracker.process(jumped)
    off = after[0].pose.joints_m.mean(0) - before[0].pose.joints_m.mean(0)
    assert np.linalg.norm(off) > SAME_M + MOST_M_S / 30
    assert [hand.id for hand in after] == [1] and len(tracker.tracks) == 1


def test_a_hand_that_was_taken_for_none_keeps_its_id_and_not_its_shape(
    engine: Engine, frames: list[DepthFrame]
) -> None:
    tracker = Tracker(engine, confirm=False)
    tracker.process(frames[0])
    person = tracker.tracks[0].person
    tracker._refuse(tracker.tracks[0], {})
    tracker._refused = Refusals()
    again = tracker.process(frames[2])
    assert [hand.id for hand in again] == [1] and tracker.tracks[0].person is not person


def test_while_no_hand_is_there_not_every_frame_is_searched(engine: Engine, frames: list[DepthFrame]) -> None:
    tracker = Tracker(engine)
    wall = blank(frames[0], 2000)
    searched = []
    for k in range(6):
        tracker.process(replace(wall, t_ns=wall.t_ns + k * SEARCH_NS // 2))
        searched.append(tracker.stages_us["find"] > 0)
    assert searched == [True, False, True, False, True, False]


def test_reset_forgets_the_hand_and_searches_at_once(engine: Engine, frames: list[DepthFrame]) -> None:
    tracker = Tracker(engine, confirm=False)
    tracker.process(frames[0])
    tracker.process(blank(frames[4]))
    tracker.reset()
    assert tracker.tracks == []
    assert tracker.process(frames[5])[0].id == 2


def test_a_clock_that_was_set_back_does_not_stop_the_tracking(engine: Engine, frames: list[DepthFrame]) -> None:
    tracker = Tracker(engine, confirm=False)
    tracker.process(replace(blank(frames[0]), t_ns=10**15))
    assert tracker.process(frames[1])
    back = tracker.process(replace(frames[2], t_ns=5))
    assert back[0].id == 1 and back[0].pose.state == "tracked" and np.isfinite(back[0].pose.joints_m).all()
    assert back[0].motion is not None and np.isfinite(back[0].motion.velocity_m_s).all()


def test_a_doubtful_hand_is_published_only_when_a_second_frame_shows_it(
    engine: Engine, frames: list[DepthFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_hand.edge.tracker.SURE", 100.0)
    tracker = Tracker(engine)
    assert tracker.process(frames[0]) == []
    assert len(tracker.process(frames[1])) == 1


def test_what_is_no_longer_believed_in_is_dropped(
    engine: Engine, frames: list[DepthFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Blind:
        judges, threshold = True, 0.5

        def __call__(self, frame: DepthFrame, part: Part | None = None) -> list[HandRoi]:
            return []

    tracker = Tracker(engine)
    tracker.process(frames[0])
    tracker.process(frames[1])
    assert tracker.tracks
    tracker.finder = Blind()
    said = iter([5.0] * 4 + [-5.0] * 8)
    monkeypatch.setattr("edge_hand.edge.tracker.belief", lambda look, score: next(said))
    seen = [len(tracker.process(replace(frames[2], t_ns=frames[2].t_ns + k * SEARCH_NS))) for k in range(12)]
    assert seen[:5] == [1] * 5 and seen[-1] == 0


def test_a_hand_that_is_outvoted_after_it_was_looked_at_is_looked_at_as_the_other_side_s(
    engine: Engine, frames: list[DepthFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(engine)
    for frame in frames[:4]:
        tracker.process(frame)
    (track,) = tracker.tracks
    assert not track.is_left
    shown: list[bool] = []
    measured = tracker._poser.measured

    def spy(track: Track, frame: DepthFrame, look: Look) -> WireHand:
        shown.append(look.crop.mirrored)
        return measured(track, frame, look)

    monkeypatch.setattr(tracker._poser, "measured", spy)
    monkeypatch.setattr(tracker, "_tell_sides_apart", lambda looks: track.vote(-100.0, 100.0))
    tracker.process(frames[4])
    assert track.is_left and (not shown or shown == [True])


def test_a_followed_hand_costs_one_crop(
    engine: Engine, frames: list[DepthFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, runs = Tracker(engine, max_hands=1), list[int]()
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda image: runs.append(1) or run(image))
    for frame in frames[:3]:
        runs.clear()
        tracker.process(frame)
        assert set(tracker.stages_us) == set(STAGES)
        assert all(tracker.stages_us[stage] > 0 for stage in ("crop", "engine", "refit"))
    assert tracker.stages_us["find"] == 0 and len(runs) == 1


def test_smoothing_can_be_left_out_and_the_raw_joints_are_there_either_way(
    engine: Engine, frames: list[DepthFrame]
) -> None:
    smooth, rough = Tracker(engine), Tracker(engine, smooth=False)
    for frame in frames[:8]:
        (s,), (r,) = smooth.process(frame), rough.process(frame)
    assert s.joints_raw_m is not None and r.joints_raw_m is not None
    np.testing.assert_allclose(r.pose.joints_m, r.joints_raw_m, atol=1e-9)
    np.testing.assert_allclose(s.joints_raw_m, r.joints_raw_m, atol=0.002)
    assert np.abs(s.pose.joints_m - s.joints_raw_m).max() > 1e-4


def test_the_search_does_not_depend_on_where_the_hand_is_in_the_image(engine: Engine, camera: SyntheticCamera) -> None:
    """The same depth seen by a camera that is turned away: the hand is where it is, not in the image's middle."""
    frame, truth = camera.frame(0), camera.truth(0)
    k = frame.intrinsics
    shifted = np.zeros_like(frame.depth)
    shifted[:, :-60] = frame.depth[:, 60:]
    hands = Tracker(engine, confirm=False).process(replace(frame, depth=shifted, intrinsics=replace(k, cx=k.cx - 60)))
    assert error_mm(hands[0], truth) < 30
    assert np.abs(hands[0].pose.vertices_m - truth.mean(0)).max() < engine.card.cube_m


def test_another_resolution_and_unit_in_mid_stream_is_the_same_hand(engine: Engine, frames: list[DepthFrame]) -> None:
    tracker = Tracker(engine)
    for frame in frames[:4]:
        before = tracker.process(frame)
    for frame in frames[4:8]:
        k = frame.intrinsics
        half = replace(
            k,
            width=k.width // 2,
            height=k.height // 2,
            fx=k.fx / 2,
            fy=k.fy / 2,
            cx=(k.cx - 0.5) / 2,
            cy=(k.cy - 0.5) / 2,
        )
        depth = np.ascontiguousarray(frame.depth[::2, ::2] // 2)
        after = tracker.process(replace(frame, depth=depth, depth_unit_m=2 * frame.depth_unit_m, intrinsics=half))
    assert [hand.id for hand in after] == [before[0].id] and after[0].pose.state == "tracked"
    assert np.linalg.norm(after[0].pose.joints_m.mean(0) - before[0].pose.joints_m.mean(0)) < 0.05


def test_a_hand_with_holes_is_followed(engine: Engine, frames: list[DepthFrame], camera: SyntheticCamera) -> None:
    tracker, rng = Tracker(engine), np.random.default_rng(0)
    for frame in frames[:12]:
        depth = np.where(rng.random(frame.depth.shape) < 0.3, 0, frame.depth).astype(np.uint16)
        hands = tracker.process(replace(frame, depth=depth))
    assert hands and hands[0].pose.state == "tracked" and error_mm(hands[0], camera.truth(11)) < 30
