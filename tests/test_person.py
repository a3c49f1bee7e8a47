"""Whose hand it is: the shape found from a few seconds of a hand, held, and kept in a file."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner, Result
from edge_hand.edge import person as person_file
from edge_hand.edge.cameras import CameraError
from edge_hand.edge.cli.main import cli
from edge_hand.edge.engines import Engine, open_engine
from edge_hand.edge.loop import Loop, Totals
from edge_hand.edge.networks.card import MODELS
from edge_hand.edge.person import Person, PersonError, keep_shape, person_maker, shape_evidence, shape_of_frame
from edge_hand.edge.reading import predict
from edge_hand.edge.refit import Fit, Refit
from edge_hand.hand import se3
from edge_hand.hand.arrays import Array
from edge_hand.hand.crop import points_from_uvd
from edge_hand.hand.frames import HandCrop
from edge_hand.hand.kinematics import AVERAGE, Shape, forward_kinematics, pose_hand, skin
from edge_hand.hand.skeleton import JOINT_PARENTS
from edge_hand.hand.template import template
from edge_hand.trainer.synth import samples, scene
from edge_hand.trainer.synth.poses import sample_angles, sample_view

DEMO = MODELS.parent / "demo" / "hand.mcap"
T = template()
FRAME_NS = 33_333_333
REFIT = Refit()


class Moving(samples.Generator):
    """A person's hand on its way between random poses, views and distances, a new one every 18 frames."""

    def __init__(self, size: float, seed: int, sensor: str) -> None:
        super().__init__("test", seed, sensors=(sensor,))
        rng = np.random.default_rng([seed, 77])
        self.alpha, n = np.full(6, size), 24
        self.angles = [sample_angles(T, rng) for _ in range(n)]
        self.views = [sample_view(rng)]
        for _ in range(n - 1):
            near = rng.random() < 0.75
            turned = se3.so3_exp(rng.normal(0, 0.6, 3)) @ self.views[-1]
            self.views.append(turned if near else sample_view(rng))
        self.distances = np.exp(rng.uniform(np.log(0.3), np.log(0.8), n))
        self.rest = scene.dress(rng, self.body, self.body.vertices_m)

    def between(self, index: int) -> tuple[int, float]:
        key, step = divmod(index, 18)
        return key, (step / 18) ** 2 * (3 - step / 9)

    def distance(self, index: int) -> float:
        key, share = self.between(index)
        return float((1 - share) * self.distances[key] + share * self.distances[key + 1])

    def _hand(self, index: int, other: int = 0) -> tuple[Array, Array]:
        key, share = self.between(index)
        theta = np.zeros((1, 26))
        theta[0, 6:] = (1 - share) * self.angles[key] + share * self.angles[key + 1]
        posed = forward_kinematics(T, theta, self.alpha[None], np.zeros((1, 7)))
        arm = np.zeros((1, 1, 3, 4))
        arm[..., :3] = self.alpha[0] * np.eye(3)
        parts = np.concatenate([posed.parts, arm], 1)
        return posed.joints_m[0], skin(self.body.weights, self.rest[None], parts)[0]

    def _hand_scene(self, rng: np.random.Generator, index: int, distance: float) -> tuple[Array, scene.Solid]:
        joints, vertices = self._hand(index)
        key, share = self.between(index)
        view = self.views[key]
        view = view @ se3.so3_exp(share * se3.so3_log(view.T @ self.views[key + 1]))
        offset = np.array([0, 0, distance]) + rng.normal(0, 0.006, 3) - view @ joints.mean(0)
        solid = scene.Solid(vertices @ view.T + offset, self.body.faces)
        return joints @ view.T + offset, scene.joined([solid])


class Seen(NamedTuple):
    """A frame through the network: vertices_m (V, 3), points_m (N, 3), error_mm expected, the true joints_m (21, 3)."""

    vertices_m: Array
    points_m: Array
    error_mm: float
    joints_m: Array


@lru_cache(maxsize=1)
def engine() -> Engine:
    return open_engine()


def frames(size: float, seed: int, sensor: str, n: int, cube_m: float = 0.25, start: int = 0) -> list[Seen]:
    moving, seen = Moving(size, seed, sensor), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "CUBE_M", cube_m)
        for i in range(start, start + n):
            patch.setattr(samples, "_distance", lambda rng, s, i=i: max(moving.distance(i), s.min_z_m + 0.06))
            sample = moving.sample(i)
            d = float(sample.distance_m)
            p = predict(engine(), HandCrop(np.ascontiguousarray(sample.image), np.eye(3), d, cube_m))
            joints = points_from_uvd(sample.joints_uvd, d, cube_m)
            seen.append(Seen(p.vertices_m, p.points_m, 1e3 * p.mean_error_m, joints))
    return seen


def watch(person: Person, seen: list[Seen], start: int = 0) -> None:
    for i, s in enumerate(seen, start):
        fit = REFIT.solve(s.vertices_m, shape=person.shape, points_m=s.points_m)
        person.observe(REFIT, fit, max(0.0, 1 - s.error_mm / 26), i * FRAME_NS, s.points_m)


def error_mm(seen: list[Seen], shape: Shape | None) -> float:
    found = [REFIT.solve(s.vertices_m, shape=shape, points_m=s.points_m).joints_m for s in seen]
    return float(
        np.mean([np.linalg.norm(f - s.joints_m, axis=1).mean() for f, s in zip(found, seen, strict=True)]) * 1e3
    )


def bones(joints: Array) -> Array:
    return np.linalg.norm(joints[1:] - joints[list(JOINT_PARENTS[1:])], axis=1)


def test_a_small_and_a_large_hand_are_told_apart_in_two_seconds_and_bones_then_keep_their_length() -> None:
    sizes = {}
    for size in (0.8, 1.2):
        seen, person = frames(size, 3, "D435 848x480", 62), Person()
        watch(person, seen)
        assert person.held and person.frames >= 20
        sizes[size] = float(person.shape.alpha.mean())
        shape = person.shape
        watch(person, seen, start=62)
        assert person.shape is shape
        lengths = [bones(REFIT.solve(s.vertices_m, shape=shape, points_m=s.points_m).joints_m) for s in seen[::4]]
        assert np.std(lengths, axis=0).max() < 1e-7  # a ten-thousandth of a millimetre
    assert 0.75 < sizes[0.8] < 0.88 and 1.08 < sizes[1.2] < 1.25


@pytest.mark.slow
def test_a_held_shape_and_a_cube_of_its_size_lessen_the_joint_error_of_hands_that_are_not_average() -> None:
    free, held, cropped = [], [], []
    for size, seed, sensor in ((0.8, 1, "D435 848x480"), (0.8, 2, "Azure Kinect"), (1.2, 4, "D435 848x480")):
        seen, person = frames(size, seed, sensor, 360), Person()
        watch(person, seen)
        of_its_size = frames(size, seed, sensor, 290, 0.25 * float(person.shape.alpha.mean()), start=70)
        free.append(error_mm(seen[70:], None))
        held.append(error_mm(seen[70:], person.shape))
        cropped.append(error_mm(of_its_size, person.shape))
    assert np.mean(held) < 0.97 * np.mean(free)
    assert np.mean(cropped) < 0.9 * np.mean(free)


def test_frames_that_are_not_trusted_or_not_finite_or_repeated_teach_nothing() -> None:
    person, fit, no_points = Person(), REFIT.solve(T.vertices_m + (0, 0, 0.5), shape=AVERAGE), np.zeros((0, 3))

    def observe(t_ns: int, weight: float = 1.0, fit: Fit = fit) -> None:
        person.observe(REFIT, fit, weight, t_ns, no_points)

    observe(0, 0.1)
    observe(0, float("nan"))
    observe(0, fit=fit._replace(joints_free_m=np.full((21, 3), np.nan)))
    assert person.frames == 0 and person.shape is AVERAGE
    for t_ns in (0, 1000, 2000):
        observe(t_ns)
    assert person.frames == 1
    for i in range(100):  # the clock stands, or jumps back: time does not pass
        observe(-i * FRAME_NS)
    assert not person.held and person.frames > 90
    seen_ns = person.seen_ns
    observe(10**12)  # a hand that was away was not seen meanwhile
    assert person.seen_ns - seen_ns <= 10**8


def test_the_evidence_points_to_the_true_scale_however_the_network_shrinks_its_hand() -> None:
    rng = np.random.default_rng(0)
    for size in (0.85, 1.15):
        theta = np.concatenate([[0, 0, 0.5], rng.normal(0, 1, 3), np.full(20, 0.2)])
        _, vertices = (x[0] for x in pose_hand(T, theta[None], np.full((1, 6), size), np.zeros((1, 7))))
        corner = vertices[T.faces]
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        points = corner.mean(1)[(normal * corner.mean(1)).sum(1) < 0][::8]
        shrunk = vertices.mean(0) + 0.93 * (vertices - vertices.mean(0))
        fit = REFIT.solve(shrunk, shape=AVERAGE, points_m=points)
        information, pull = shape_evidence(REFIT, fit, points)
        assert np.linalg.eigvalsh(information).min() > -1e-9
        growth = float(np.ones(6) @ pull / (np.ones(6) @ information @ np.ones(6)))
        assert np.sign(growth) == np.sign(size - 1) and 0.4 < growth / (size - 1) < 1.4


def test_one_frames_depth_corrects_the_size_that_the_network_shrank() -> None:
    for size in (0.9, 1.1):
        theta = np.concatenate([[0, 0, 0.5, 0.3, -0.2, 0.1], np.full(20, 0.2)])
        _, vertices = (x[0] for x in pose_hand(T, theta[None], np.full((1, 6), size), np.zeros((1, 7))))
        corner = vertices[T.faces]
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        points = corner.mean(1)[(normal * corner.mean(1)).sum(1) < 0][::8]
        shrunk = vertices.mean(0) + 0.93 * (vertices - vertices.mean(0))
        fit = REFIT.solve(shrunk, points_m=points)
        alpha = shape_of_frame(REFIT, fit, points).alpha
        assert abs(alpha.mean() - size) < 0.5 * abs(fit.alpha.mean() - size)
    alone = shape_of_frame(REFIT, fit, points[:0])
    np.testing.assert_allclose(alone.alpha, fit.alpha, atol=0.02)  # there is no better word than the parts'


def test_a_person_is_the_same_after_it_was_saved_and_is_held_at_once(tmp_path: Path) -> None:
    path = tmp_path / "me.json"
    shape = Shape(np.linspace(0.8, 1.2, 6), np.linspace(-0.5, 0.5, 7))
    Person(shape).save(path)
    assert path.stat().st_mode & 0o777 == 0o600 and [p.name for p in tmp_path.iterdir()] == ["me.json"]
    loaded = person_maker(path)()
    assert loaded.held
    np.testing.assert_allclose(np.concatenate(loaded.shape), np.concatenate(shape), atol=1e-5)
    fit = REFIT.solve(T.vertices_m + (0, 0, 0.5), shape=loaded.shape)
    loaded.observe(REFIT, fit, 1.0, 0, np.zeros((0, 3)))
    assert loaded.frames == 0
    assert not person_maker(None)().held and not person_maker(tmp_path / "none.json")().held


def test_only_a_shape_that_is_held_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "me.json"
    for person in (None, Person()):
        said = keep_shape(path, person)
        assert said == f"person {path}: not written, the hand was seen well for 0.0 s and 2 are needed"
    assert not path.exists()
    assert keep_shape(path, Person(AVERAGE)) == f"person {path}: the palm is 1.00 times the template's"
    assert path.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not a JSON file"),
        ("[]", "not a person of version 1"),
        ('{"version": 2}', "not a person of version 1"),
        ('{"version": 1, "alpha": [1, 1]}', "alpha is not a list of 6 numbers"),
        ('{"version": 1, "alpha": [1, 1, 1, 1, 1, 9]}', "alpha has 9, possible are 0.7 to 1.4"),
        ('{"version": 1, "alpha": [1, 1, 1, 1, 1, NaN]}', "alpha has nan, possible are 0.7 to 1.4"),
        (
            f'{{"version": 1, "alpha": [1, 1, 1, 1, 1, 1{400 * "0"}]}}',
            f"alpha has 1{36 * '0'}..., possible are 0.7 to 1.4",
        ),
        pytest.param("[" * 100_000, "not a JSON file", id="deep"),
        ('{"version": 1, "alpha": [1, 1, 1, 1, 1, true]}', "alpha has True, possible are 0.7 to 1.4"),
        ('{"version": 1, "alpha": [1, 1, 1, 1, 1, 1], "beta": 0}', "beta is not a list of 7 numbers"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "me.json"
    path.write_text(text)
    with pytest.raises(PersonError) as error:
        Person.load(path)
    assert str(error.value) == f"person {path}: {says}"


def test_a_file_that_cannot_be_read_or_written_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(PersonError, match=r"person .*: cannot be read \("):
        Person.load(tmp_path / "none.json")
    with pytest.raises(PersonError, match=r"person .*: cannot be written \("):
        Person(AVERAGE).save(tmp_path / "no" / "me.json")
    (tmp_path / "me.json").write_text(json.dumps("me"))
    with pytest.raises(PersonError, match="not a person"):
        person_maker(tmp_path / "me.json")


def test_a_file_that_could_not_be_kept_is_refused_before_anything_else_begins(tmp_path: Path) -> None:
    path = tmp_path / "no" / "me.json"
    with pytest.raises(PersonError, match=r"me\.json: cannot be written \(No such file or directory\)$"):
        person_maker(path)
    run = ["run", "--camera", "synthetic", "--bind", f"ipc://{path.parent}/s", "--person", str(path)]
    assert isinstance(CliRunner().invoke(cli, run).exception, PersonError)


def test_a_disk_that_refuses_in_the_end_is_said_and_takes_no_summary_with_it(tmp_path: Path) -> None:
    path = tmp_path / "me.json"
    person_maker(path)
    path.mkdir()
    assert keep_shape(path, Person(AVERAGE)) == f"person {path}: cannot be written (Is a directory)"


@pytest.fixture
def signals() -> Iterator[None]:
    """As they were before a daemon in this process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_a_run_whose_terminal_was_closed_keeps_the_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(totals: Totals) -> str:
        raise OSError(5, "Input/output error")

    kept: list[Path] = []
    monkeypatch.setattr(Totals, "summary", closed)
    monkeypatch.setattr(person_file, "keep_shape", lambda path, person: str(kept.append(path)))
    done = a_frame_of(tmp_path / "p.json")
    assert isinstance(done.exception, OSError) and kept == [tmp_path / "p.json"]


@pytest.mark.usefixtures("signals")
def test_a_run_that_fails_in_its_midst_keeps_the_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object) -> Totals:
        raise CameraError("it is damaged")

    kept: list[Path] = []
    monkeypatch.setattr(Loop, "run", damaged)
    monkeypatch.setattr(person_file, "keep_shape", lambda path, person: str(kept.append(path)))
    done = a_frame_of(tmp_path / "p.json")
    assert str(done.exception) == "it is damaged" and kept == [tmp_path / "p.json"]


@pytest.mark.usefixtures("signals")
def test_a_person_that_a_run_began_with_is_left_as_it_was(tmp_path: Path) -> None:
    path, person = tmp_path / "p.json", Person(AVERAGE)
    person.frames = 60
    person.save(path)
    before = path.read_bytes()
    done = a_frame_of(path)
    assert done.exit_code == 0 and f"person {path}" not in done.output and path.read_bytes() == before


def a_frame_of(person: Path) -> Result:
    """What came of `edge-hand run` with this person's file."""
    words = ["--camera", "replay", "--source", str(DEMO), "--deterministic", "--frames", "1", "--engine", "onnxruntime"]
    bind = ["--bind", f"ipc://{person.parent}/s", "--no-view", "--person", str(person)]
    return CliRunner().invoke(cli, ["run", *words, *bind])
