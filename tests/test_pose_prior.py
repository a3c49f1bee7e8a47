"""What hands the trainer draws: every named shape, thumbs that touch, fingers that move as fingers do, real poses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edge_hand.hand.arrays import Array
from edge_hand.hand.kinematics import forward_kinematics
from edge_hand.hand.poses import POSES
from edge_hand.hand.skeleton import ANGLE_NAMES
from edge_hand.hand.template import template
from edge_hand.trainer.synth.coverage import (
    CoverageError,
    angles_of_bones,
    comparable,
    coverage,
    distinct,
    draw,
    load_bones,
    main,
    uniform_angles,
)
from edge_hand.trainer.synth.poses import DIP, MCP, PIP, SHAPES, penetrates
from edge_hand.trainer.synth.touches import TOUCHES, touches

T = template()
REAL = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "intel_poses" / "animbank.pose"


@pytest.fixture(scope="module")
def hands() -> Array:
    return draw(T, 3000)


def test_every_named_shape_has_drawn_hands_near_it(hands: Array) -> None:
    shapes = {**POSES, **SHAPES}
    near = np.degrees(coverage(np.stack(list(shapes.values())), hands).mean_rad)
    assert near.max() < 5.5, dict(zip(shapes, near.round(1), strict=True))


def test_no_drawn_hand_penetrates_itself(hands: Array) -> None:
    assert not penetrates(T, hands).any()


def test_tip_joints_follow_middle_joints_and_ring_fingers_their_neighbours(hands: Array) -> None:
    correlation = np.corrcoef(hands.T)
    assert correlation[PIP, DIP].min() > 0.6
    ring, neighbours, index = MCP[2], MCP[[1, 3]], MCP[0]
    assert correlation[ring, neighbours].min() > 0.4
    assert correlation[ring, neighbours].min() > correlation[index, MCP[3]] + 0.1


def test_bent_knuckles_spread_less_than_straight_ones(hands: Array) -> None:
    little = ANGLE_NAMES.index("little_mcp_abd")
    bent, straight = hands[:, MCP[3]] > np.radians(65), np.abs(hands[:, MCP[3]]) < np.radians(15)
    assert hands[bent, little].std() < 0.7 * hands[straight, little].std()


def test_some_knuckles_and_middle_joints_bend_backwards(hands: Array) -> None:
    assert ((hands[:, MCP] < np.radians(-10)).mean(0) > 0.03).all()
    assert ((hands[:, PIP] < np.radians(-4)).mean(0) > 0.02).all()


def test_thumbs_meet_each_finger_at_about_the_thickness_of_flesh() -> None:
    angles, met = touches(T)
    theta = np.zeros((len(angles), 26))
    theta[:, 6:] = angles
    joints = forward_kinematics(T, theta, np.ones((len(angles), 6)), np.zeros((len(angles), 7))).joints_m
    thumb = joints[:, 4]
    for finger in range(4):
        alone = met[:, finger] & (met.sum(1) == 1)
        apart = np.linalg.norm(joints[alone, 6 + 4 * finger : 9 + 4 * finger] - thumb[alone, None], axis=2).min(1)
        assert alone.sum() >= 20
        assert np.median(apart) < 0.022
    assert {tuple(m) for m in met} == {tuple(f in touch.fingers for f in range(4)) for touch in TOUCHES}
    assert (~penetrates(T, angles)).mean() > 0.5


def test_uniform_hands_fill_the_limits_without_penetrating() -> None:
    angles = uniform_angles(T, np.random.default_rng(0), 50)
    assert angles.shape == (50, 20)
    assert not penetrates(T, angles).any()


def test_coverage_finds_the_nearest_sample_and_its_distances() -> None:
    rng = np.random.default_rng(0)
    real, samples = rng.normal(size=(7, 20)), rng.normal(size=(9000, 20))
    found = coverage(real, samples)
    apart = np.abs(real[:, None] - samples[None])  # (7, 9000, 20)
    np.testing.assert_array_equal(found.nearest, apart.mean(2).argmin(1))
    np.testing.assert_allclose(found.mean_rad, apart.mean(2).min(1))
    np.testing.assert_allclose(found.max_rad, apart.max(2)[np.arange(7), found.nearest])


def test_distinct_poses_are_apart_and_every_other_is_near_one() -> None:
    poses = np.random.default_rng(0).uniform(0, 0.2, (200, 20))
    kept = distinct(poses, 0.06)
    apart = np.abs(poses[:, None] - poses[None, kept]).mean(2)
    assert 1 < len(kept) < 200
    assert apart.min(1).max() <= 0.06
    assert np.partition(apart[kept], 1, axis=1)[:, 1].min() > 0.06


def bent_about(axis: int, rad: float) -> Array:
    q = np.array([0.0, 0, 0, np.cos(rad / 2)])
    q[axis] = np.sin(rad / 2)
    return q


def test_a_tracked_fingers_bends_are_read_joint_by_joint() -> None:
    bones = np.zeros((2, 17, 7))
    bones[..., 6] = 1
    bones[1, 5, 3:] = bent_about(0, 0.3)  # the index finger's knuckle, middle and tip joint by 0.3, 0.5 and 0.2
    bones[1, 6, 3:] = bent_about(0, 0.8)
    bones[1, 7, 3:] = bent_about(0, 1.0)
    bones[1, 11, 3:] = bent_about(1, 0.1)  # the ring finger leans towards the thumb
    bones[1, 4, 3:] = bent_about(1, -0.4)  # the thumb's tip joint
    straight, bent = angles_of_bones(bones)
    expected = {"index_mcp_flex": 0.3, "index_pip_flex": 0.5, "index_dip_flex": 0.2, "ring_mcp_abd": 0.1}
    change = dict(zip(ANGLE_NAMES, bent - straight, strict=True))
    for name, rad in {**expected, "thumb_ip_flex": 0.4}.items():
        assert change[name] == pytest.approx(rad, abs=2e-3), name
    assert straight[MCP] == pytest.approx(-np.radians(20))


def test_comparable_angles_of_our_hands_read_flexion_and_lean() -> None:
    flat, bent = comparable(T, np.stack([POSES["flat"], POSES["tabletop"]]))
    assert flat[MCP + 1] == pytest.approx(0, abs=1e-12)
    assert np.degrees(bent[MCP] - flat[MCP]) == pytest.approx(78, abs=5)
    np.testing.assert_array_equal(bent[PIP], POSES["tabletop"][PIP])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no poses in it"),
        ("1 2 3\n", "1: 3 numbers, a pose has 17 bones of 7"),
        ("0 " * 118 + "one\n", "1: not all of it is numbers"),
        ("0 0 0 0 0 0 1 " * 17 + "\n" + "0 " * 119, "2: the last four numbers of a bone are no unit quaternion"),
    ],
)
def test_a_garbled_file_of_poses_is_one_line_of_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "hands.pose"
    path.write_text(text)
    with pytest.raises(CoverageError, match=message):
        load_bones(path)


def test_a_missing_or_binary_file_of_poses_is_one_line_of_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none.pose")]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'none.pose'}: No such file or directory\n"
    (tmp_path / "binary.pose").write_bytes(bytes(range(128, 256)))
    with pytest.raises(CoverageError, match="not a text file"):
        load_bones(tmp_path / "binary.pose")


@pytest.mark.skipif(not REAL.exists(), reason="no tracked poses: ../shared/data/intel_poses is absent")
def test_drawn_hands_come_near_real_ones(hands: Array) -> None:
    real = angles_of_bones(load_bones(REAL))
    near = np.degrees(coverage(real[distinct(real)], comparable(T, hands)).mean_rad)
    assert np.percentile(near, 50) < 6.8
    assert np.percentile(near, 90) < 9.0


@pytest.mark.skipif(not REAL.exists(), reason="no tracked poses: ../shared/data/intel_poses is absent")
def test_the_report_has_a_row_for_every_number_of_hands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(REAL), "--most", "200"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2336 tracked poses, ")
    assert "| sampler | 200 |" in out and "| uniform | 200 |" in out
