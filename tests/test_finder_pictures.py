"""What the finder learns from: pictures of scenes, all of each and a closer part, with their hands where they are."""

from __future__ import annotations

import numpy as np
import pytest
from edge_hand.edge.finder import PICTURE, Part, whole_view
from edge_hand.trainer.synth import pictures
from edge_hand.trainer.synth.lone_hands import LoneHands
from edge_hand.trainer.synth.pictures import depth_m, hands_of, random_part, record
from edge_hand.trainer.train_finder import pictures_of
from test_train_finder import CAMERA, Blob, scene


def test_a_scene_survives_its_record() -> None:
    drawn = next(s for s in map(scene, range(20)) if len(s.hands) == 2)
    row = record(drawn.frame, drawn.hands)[None]
    z, there = depth_m(row["picture"]), hands_of(row)
    part = whole_view(CAMERA)
    assert z.shape == (1, 112, 160) and (z == -1).any() and np.abs(z.max() * part.zoom - 1.5) < 1e-3
    assert sorted(there.role[0]) == [-1, -1, -1, -1, 1, 1]
    for k, blob in enumerate(drawn.hands):
        np.testing.assert_allclose(there.centre_m[0, k], part.to_picture(blob.joints_m[0]), rtol=1e-5)
        assert there.right[0, k] == (blob.side == "right")


def test_roles_go_by_how_much_is_seen_and_how_far() -> None:
    rows = np.zeros(2, pictures.RECORD)
    rows["part"] = [(1, 0, 0), (2.5, 0, 0)]
    rows["hands"] = np.nan
    rows["hands"][:, :6] = [
        (0, 0, z, 1, seen) for z, seen in ((0.5, 0.9), (0.5, 0.2), (0.5, 0.01), (1.5, 0.9), (0.1, 0.9), (0.25, 0.9))
    ]
    assert hands_of(rows).role.tolist() == [
        [1, 0, -1, 0, 0, 1],
        [1, 0, -1, 0, 0, 0],
    ]  # 0.1 m in the picture is too near


def test_a_closer_part_shows_a_part_of_the_view_with_its_hands_where_they_are() -> None:
    rng = np.random.default_rng(3)
    all_of_it, learned, cut = whole_view(CAMERA), 0, 0
    for index in range(60):
        drawn = scene(index)
        part = random_part(CAMERA, drawn.hands, rng)
        assert 1.2 <= part.zoom / all_of_it.zoom <= 1.8
        row = record(drawn.frame, drawn.hands, part)[None]
        z, there = depth_m(row["picture"])[0], hands_of(row)
        assert (z == -1).mean() < 0.15  # hardly anything beyond the frame
        for k, blob in enumerate(drawn.hands):
            column, line = np.rint(PICTURE.project(part.to_picture(blob.joints_m[0]))).astype(int)
            inside = 0 <= line < 112 and 0 <= column < 160
            assert there.role[0, k] == (1 if inside else -1)
            learned, cut = learned + inside, cut + (not inside)
            if inside:  # the other square may be nearer
                assert z[line, column] * part.zoom < blob.joints_m[0, 2] + 2e-3
    assert learned > 25 and cut > 5


def test_of_a_hand_cut_by_a_part_less_is_seen() -> None:
    frame = scene(0).frame
    hand = Blob("left", np.stack([np.linspace(-0.05, 0.05, 21), np.zeros(21), np.full(21, 0.5)], 1), 0.8)
    half = Part(2.0, 0.0 - PICTURE.width / PICTURE.fx / 2 / 2, 0.0)  # its right border is at x = 0
    for part, share in ((whole_view(CAMERA), 1.0), (half, 11 / 21)):
        assert record(frame, [hand], part)["hands"][0, 4] == pytest.approx(0.8 * share)


def test_every_scene_to_learn_from_gives_all_of_it_and_a_closer_part() -> None:
    learned, held_out = pictures_of("train"), pictures_of("val")
    rows = np.stack([learned(k) for k in range(4)])
    zoom = rows["part"][:, 0]
    assert (zoom[1::2] / zoom[::2] > 1.15).all() and (zoom[1::2] / zoom[::2] < 1.85).all()
    assert learned(1).tobytes() == rows[1].tobytes() and rows[0].tobytes() != held_out(0).tobytes()
    both = ~np.isnan(rows["hands"][::2, :, 2]) & ~np.isnan(rows["hands"][1::2, :, 2])
    np.testing.assert_array_equal(rows["hands"][::2, :, :4][both], rows["hands"][1::2, :, :4][both])  # of one scene


def test_hands_on_bare_forearms_are_where_they_are_said_to_be() -> None:
    shown = on_hand = 0
    sides = set()
    for index in range(24):
        drawn = LoneHands("train", 0, width=320).scene(index)
        camera = drawn.frame.intrinsics
        for hand in drawn.hands:
            if hand.seen < 0.95:
                continue
            sides.add(hand.side)
            column, row = np.rint(camera.project(hand.vertices_m)).astype(int).T
            inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
            z = drawn.frame.depth[row[inside], column[inside]] * drawn.frame.depth_unit_m
            shown += 1
            on_hand += np.median(np.abs(z - hand.vertices_m[inside, 2])) < 0.04
    assert shown > 10 and on_hand >= 0.9 * shown and sides == {"left", "right"}


def test_what_is_left_in_pieces_is_a_place_of_a_hand_s_size_and_more() -> None:
    rng, shares = np.random.default_rng(0), []
    for _ in range(40):
        z = np.full((112, 160), 0.8, np.float32)
        z[:, :20] = -1
        pictures._shatter(z, rng)
        assert (
            set(np.unique(z).tolist()) <= {np.float32(-1), np.float32(0), np.float32(0.8)} and (z[:, :20] == -1).all()
        )
        rows, columns = np.nonzero(z == 0)
        if len(rows):
            assert max(np.ptp(rows), np.ptp(columns)) <= 2 * 0.25 * PICTURE.fx / 0.8 + 1
            shares.append(len(rows))
    assert len(shares) > 25 and 20 < np.median(shares) < 800
