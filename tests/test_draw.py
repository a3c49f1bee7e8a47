"""Overlay pictures: what is drawn lies where the hand is."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.draw import FINGER_COLOURS, contact_sheet, depth_picture, draw_mesh, overlay, save_png, view_of
from edge_hand.hand.frames import DepthFrame, HandPose
from edge_hand.hand.kinematics import pose_hand
from edge_hand.hand.render import render_depth
from edge_hand.hand.se3 import so3_exp, transform
from edge_hand.hand.template import template

FACES = template().faces


@cache
def frame_and_pose(seq: int = 0) -> tuple[DepthFrame, HandPose]:
    """A frame of the synthetic camera and the pose it was drawn from."""
    with SyntheticCamera(0, "320x240@30", fps=0) as camera:
        frame, theta, alpha, beta = camera.frame(seq), camera.theta(seq), camera.alpha, camera.beta
    joints, vertices = pose_hand(template(), theta[None], alpha[None], beta[None])
    pose = HandPose(
        side="right",
        side_conf=1.0,
        state="tracked",
        score=1.0,
        T_camera_wrist=transform(so3_exp(theta[3:6]), theta[:3]),
        theta=theta,
        alpha=alpha,
        beta=beta,
        joints_m=joints[0],
        vertices_m=vertices[0],
        joint_conf=np.ones(21),
        fit_mm=1.0,
    )
    return frame, pose


def test_joints_land_on_pixels_of_their_finger_s_colour() -> None:
    frame, pose = frame_and_pose()
    picture = overlay(frame, [pose], FACES, size=(240, 200))
    assert picture.shape == (200, 720, 3) and picture.dtype == np.uint8
    view = view_of(frame.intrinsics, [pose], (240, 200))
    column, row = np.rint(view.project(pose.joints_m)).astype(int).T
    middle = picture[:, 240:480]
    for tip, colour in zip((4, 8, 12, 16, 20), FINGER_COLOURS, strict=True):
        np.testing.assert_allclose(middle[row[tip], column[tip]], colour, atol=25)
    bone = np.rint(view.project((pose.joints_m[0] + pose.joints_m[9]) / 2)).astype(int)
    np.testing.assert_allclose(middle[bone[1], bone[0]], FINGER_COLOURS[2], atol=40)


def test_mesh_covers_what_the_renderer_covers() -> None:
    frame, pose = frame_and_pose()
    view = view_of(frame.intrinsics, [pose], (160, 160))
    blank = np.zeros((160, 160, 3), np.uint8)
    drawn = draw_mesh(blank, [pose.vertices_m], FACES, view)
    np.testing.assert_array_equal(drawn.any(2), render_depth(pose.vertices_m, FACES, view) > 0)
    assert not blank.any()
    assert len(np.unique(drawn[drawn.any(2)], axis=0)) > 50  # shaded, not flat


def test_second_hand_is_drawn_too_and_the_nearer_one_wins() -> None:
    frame, pose = frame_and_pose()
    view = view_of(frame.intrinsics, [], (320, 240))
    blank = np.zeros((240, 320, 3), np.uint8)
    near, far = pose.vertices_m, pose.vertices_m * 1.2
    both = draw_mesh(blank, [far, near], FACES, view)
    alone = draw_mesh(blank, [near], FACES, view)
    np.testing.assert_array_equal(both[alone.any(2)], alone[alone.any(2)])
    beside = draw_mesh(blank, [near, near + np.array([0.1, 0, 0])], FACES, view)
    assert beside.any(2).sum() > 1.3 * alone.any(2).sum()


def test_depth_shows_closer_brighter_and_no_reading_black() -> None:
    frame, pose = frame_and_pose()
    depth = np.full((240, 320), 1200, np.uint16)
    depth[:, :100] = 0
    depth[:, 200:] = 450
    grey = depth_picture(replace(frame, depth=depth), [pose], view_of(frame.intrinsics, [], (320, 240)))[..., 0]
    assert not grey[:, :100].any()
    assert 0 < grey[0, 150] < grey[0, 250]


def test_whole_frame_keeps_its_pixels() -> None:
    frame, _ = frame_and_pose()
    view = view_of(frame.intrinsics, [], (320, 240))
    assert view == frame.intrinsics
    picture = overlay(frame, [], FACES, size=(320, 240))
    np.testing.assert_array_equal(picture[:, :320, 0] == 0, frame.depth == 0)
    assert (picture[:, 640:] <= picture[:, :320]).all()


def test_cropped_depth_lies_under_the_mesh() -> None:
    frame, pose = frame_and_pose()
    view = view_of(frame.intrinsics, [pose], (300, 200))
    hand = render_depth(pose.vertices_m, FACES, view) > 0
    grey = depth_picture(frame, [pose], view)[..., 0]
    assert (grey[hand] > 100).mean() > 0.9  # the rim has holes
    assert (grey[~hand] > 100).mean() < 0.2  # but for the forearm


def test_pose_behind_the_camera_draws_nothing_and_breaks_nothing() -> None:
    frame, pose = frame_and_pose()
    behind = replace(pose, joints_m=pose.joints_m * (1, 1, -1), vertices_m=pose.vertices_m * (1, 1, -1))
    picture = overlay(frame, [behind], FACES, size=(160, 120))
    np.testing.assert_array_equal(picture[:, :160], picture[:, 160:320])


def test_contact_sheet_fills_rows_and_leaves_the_rest_black() -> None:
    one, two = np.full((4, 6, 3), 10, np.uint8), np.full((5, 3, 3), 20, np.uint8)
    sheet = contact_sheet([one, two, one], 2)
    assert sheet.shape == (10, 12, 3)
    assert (sheet[:4, :6] == 10).all() and (sheet[:5, 6:9] == 20).all() and (sheet[5:9, :6] == 10).all()
    assert not sheet[5:, 6:].any()
    assert contact_sheet([one], 8).shape == one.shape
    with pytest.raises(ValueError, match="contact sheet: 0 pictures in 3 columns; both must be at least 1"):
        contact_sheet([], 3)


def test_saved_picture_reads_back_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    save_png(tmp_path / "hand.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "hand.png")), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["hand.png"]
