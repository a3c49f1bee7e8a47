"""Joint training with real frames that have joints but no mesh: what is cut from them and what they teach."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from depth_png import encode_depth_png
from edge_hand.edge.networks.card import MODELS
from edge_hand.edge.recordings.recording import RecordingWriter
from edge_hand.hand.arrays import Array
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.crop import crop_depth, points_from_uvd
from edge_hand.hand.frames import DepthFrame, HandRoi
from edge_hand.hand.kinematics import pose_hand
from edge_hand.hand.render import render_depth
from edge_hand.hand.skeleton import JOINT_NAMES
from edge_hand.hand.template import template
from edge_hand.trainer.batches import batches, to_labels
from edge_hand.trainer.checkpoint import TrainConfig, TrainError, config_of, load_checkpoint, load_net, without_folders
from edge_hand.trainer.datasets import Label, icvl, recording
from edge_hand.trainer.losses import Labels, joint_distance, metres, rows
from edge_hand.trainer.nets import NETS, net_module, new_net
from edge_hand.trainer.parallel import Group
from edge_hand.trainer.real import KEY, RealHands, joined, open_real, order
from edge_hand.trainer.synth.poses import sample_angles
from edge_hand.trainer.synth.samples import CUBE_M, Generator
from edge_hand.trainer.train import images, train

pytestmark = pytest.mark.usefixtures("one_thread")

T = template()
CAMERA = Intrinsics(320, 240, 300.0, 300.0, 159.5, 119.5)
TINY = TrainConfig(width=8, samples=16, batch=8, warmup=8, coarse=0, left_share=0.2, bf16=False)


def hands(n: int, seed: int = 0, scale: float = 1.0, left: bool = False) -> list[tuple[Array, Array]]:
    """Joints (21, 3) mm and depth (H, W) mm of n hands, palms about to the camera, of scale times its size."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        theta = np.zeros((1, 26))
        theta[0, :3] = rng.normal(0, 0.03, 3) + (0, 0.06, 0.45)
        theta[0, 3:6] = rng.normal(0, 0.2, 3) + (0.1, 0, np.pi)
        theta[0, 6:] = sample_angles(T, rng)
        joints, vertices = (x[0] for x in pose_hand(T, theta, np.full((1, 6), scale), np.zeros((1, 7))))
        if left:
            joints, vertices = (x * (-1, 1, 1) for x in (joints, vertices))
        out.append((joints * 1e3, render_depth(vertices, T.faces, CAMERA) * 1e3))
    return out


def record(folder: Path, n: int = 6, left: bool = False, **options: Any) -> Path:
    """A labelled recording of such hands."""
    path, frames = folder / "hand.mcap", hands(n, left=left, **options)
    with RecordingWriter(path) as writer:
        for i, (_, depth) in enumerate(frames):
            writer.write(DepthFrame("cam", i, i * 33_000_000, np.rint(depth * 4).astype(np.uint16), 0.00025, CAMERA))
    side: Any = "left" if left else "right"
    recording.write_labels(path, [Label(str(i), joints, side, number=i) for i, (joints, _) in enumerate(frames)])
    return path


def opened(path: Path, net: str = "dgn-nano", **options: Any) -> RealHands:
    real = open_real(replace(TINY, net=net, real=f"recording:{path}", **options))
    assert real is not None
    return real


@pytest.fixture(scope="module")
def right_hands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("right"))


# --- samples


def volume(joints: Array) -> Array:
    """Of the wrist and three knuckles (..., 21, 3): its sign tells a right hand from a left one."""
    wrist, *knuckles = (joints[..., JOINT_NAMES.index(n), :] for n in ("wrist", "index_mcp", "little_mcp", "index_tip"))
    return np.linalg.det(np.stack([k - wrist for k in knuckles], -2))


@pytest.mark.parametrize("left", [False, True])
def test_a_sample_is_the_frame_as_the_daemon_crops_it_with_its_own_joints(tmp_path: Path, left: bool) -> None:
    """A left hand is mirrored, as the daemon does it; crops stray from the truth's centre, as rendered ones."""
    real = opened(record(tmp_path, left=left), left_share=0.0)
    labels = real.batch(0, 6)
    assert labels.is_right.all() and labels.is_hand.all() and not labels.has_mesh.any()  # type: ignore[union-attr]
    truth = {round(float(volume(joints)), 1): (joints / 1e3, depth) for joints, depth in hands(6, left=left)}
    for i in range(6):
        joints = points_from_uvd(labels.joints_uvd[i].double().numpy(), float(labels.distance_m[i]), CUBE_M)
        key = round(float(volume(joints * 1e3)) * (-1 if left else 1), 1)
        xyz, depth = truth.pop(min(truth, key=lambda k: abs(k - key)))  # each frame once
        np.testing.assert_allclose(np.ptp(joints, 0), np.ptp(xyz, 0), atol=0.03)
        np.testing.assert_allclose(
            np.linalg.norm(joints - joints[:1], axis=1), np.linalg.norm(xyz - xyz[:1], axis=1), atol=1e-4
        )
        # The crop's centre in the camera, by the best rotation and shift between both hands.
        mirror = np.array([-1, 1, 1]) if left else np.ones(3)
        a, b = joints - joints.mean(0), xyz * mirror - (xyz * mirror).mean(0)
        u, _, vt = np.linalg.svd(a.T @ b)
        centre = (np.array([0, 0, labels.distance_m[i]]) - joints.mean(0)) @ (u @ vt) + (xyz * mirror).mean(0)
        assert np.linalg.norm(centre - (xyz * mirror).mean(0)) < 0.03 * 3**0.5
        frame = DepthFrame("cam", 0, 0, np.rint(depth * 4).astype(np.uint16), 0.00025, CAMERA)
        own = crop_depth(frame, HandRoi("right", centre * mirror, CUBE_M, 1.0), real.image_px, mirrored=left).image
        image = labels.image[i].numpy()
        both = (own < 1) & (image < 1)
        assert ((own < 1) != (image < 1)).sum() < 0.15 * both.sum()
        assert np.median(np.abs(own - image)[both]) * CUBE_M / 2 < 1e-3
    assert not truth


def test_samples_are_the_same_for_ever_and_show_all_frames_in_turn(right_hands: Path) -> None:
    real = opened(right_hands)
    whole, part = real.batch(0, 18), real.batch(5, 7)
    for a, b in zip(rows(whole, slice(5, 12)), part, strict=True):
        assert torch.equal(a, b)
    again = opened(right_hands).batch(0, 18)
    assert torch.equal(whole.image, again.image) and not torch.equal(
        whole.image, opened(right_hands, seed=1).batch(0, 18).image
    )
    upright = opened(right_hands, left_share=0.0).batch(0, 18)
    p = metres(upright.joints_uvd, upright.distance_m, upright.cube_m)
    spans = (p[:, 0] - p[:, 4]).norm(dim=1).mul(1e4).round().int().reshape(3, 6)  # wrist to thumb tip: of each its own
    assert len(set(spans[0].tolist())) == 6
    assert all(sorted(turn) == sorted(spans[0].tolist()) for turn in spans.tolist())
    assert spans[0].tolist() != spans[1].tolist()
    assert len(set(upright.distance_m.tolist())) == 18  # no crop comes twice


def test_the_order_of_a_turn_is_drawn_once_and_is_that_of_its_seed_alone(right_hands: Path) -> None:
    real = opened(right_hands, seed=3, left_share=0.0)
    order.cache_clear()
    distances = real.batch(0, 18).distance_m
    assert order.cache_info().misses == 3
    for turn in (2, 0, 1):  # whatever was asked for before
        drawn = np.random.default_rng([KEY, 3, 1, turn]).permutation(6)
        assert order(3, turn, 6).tolist() == drawn.tolist()
        off = distances[6 * turn : 6 * turn + 6].numpy() - real.distance_m[drawn]
        assert np.abs(off).max() < 0.04  # a crop's centre is near its frame's
    assert torch.equal(real.batch(4, 9).distance_m, distances[4:13])


def test_a_share_is_mirrored_into_left_hands_for_the_side(right_hands: Path) -> None:
    upright, mixed = (opened(right_hands, left_share=share).batch(0, 40) for share in (0.0, 0.4))
    left = ~mixed.is_right
    assert 8 < left.sum() < 25
    assert torch.equal(mixed.image[left], upright.image[left].flip(2))
    assert torch.equal(mixed.image[~left], upright.image[~left])


def test_joints_are_compared_with_the_means_of_ours_that_the_scheme_names(tmp_path: Path) -> None:
    (joints, depth), *_ = hands(1, left=True)
    camera = icvl.INTRINSICS
    depth = render_depth_like(depth, camera)
    (tmp_path / "Depth/test_seq_1").mkdir(parents=True)
    xyz = icvl.SCHEME.of_ours(joints)
    uvd = np.concatenate([camera.project(xyz), xyz[:, 2:]], 1)
    (tmp_path / "Depth/test_seq_1/image_0000.png").write_bytes(encode_depth_png(np.rint(depth).astype(np.uint16)))
    (tmp_path / "test_seq_1.txt").write_text("test_seq_1/image_0000.png " + " ".join(f"{x:.4f}" for x in uvd.ravel()))
    real = open_real(replace(TINY, real=f"icvl:{tmp_path}", left_share=0.0))
    assert real is not None and real.summary.endswith("1 frames, 15 of 16 joints count")
    labels = real.batch(0, 1)
    # Our joints in the crop, found from their 16 by the rotation and shift between both.
    theirs = metres(labels.joints_uvd, labels.distance_m, labels.cube_m)[0, :16].double().numpy()
    want = xyz / 1e3 * (-1, 1, 1)
    u, _, vt = np.linalg.svd((want - want.mean(0)).T @ (theirs - theirs.mean(0)))
    ours = (joints / 1e3 * (-1, 1, 1) - want.mean(0)) @ (u @ vt) + theirs.mean(0)
    at = torch.tensor(ours[None], dtype=torch.float32).requires_grad_()
    assert joint_distance(at, labels).item() < 1e-4
    off = joint_distance(at + torch.tensor([0.02, 0, 0]), labels)
    assert off.item() == pytest.approx(1 - 0.125, abs=0.01)  # 20 mm is the unit, the Huber function takes half a delta
    (gradient,) = torch.autograd.grad(off, at)
    assert not gradient[0, 0].any() and gradient[0, 1:].any(1).all()  # the palm is not scored, and alone has the wrist


def render_depth_like(depth: Array, camera: Intrinsics) -> Array:
    """The picture of CAMERA as another camera of the same size and place sees it."""
    v, u = np.mgrid[: camera.height, : camera.width]
    px = CAMERA.project(camera.rays(np.stack([u, v], -1)))
    column, row = np.rint(px).astype(int).transpose(2, 0, 1)
    inside = (column >= 0) & (column < CAMERA.width) & (row >= 0) & (row < CAMERA.height)
    return np.where(inside, depth[row.clip(0, CAMERA.height - 1), column.clip(0, CAMERA.width - 1)], 0)


# --- what they teach


def mixed_batch(path: Path, net: str) -> Labels:
    """Three rendered samples, three real."""
    rendered = Generator("test", image_px=net_module(net).IMAGE_PX).batch(0, 3)
    return joined(to_labels(rendered), opened(path, net, left_share=0.0).batch(0, 3))


@pytest.mark.parametrize("name", NETS)
def test_real_samples_teach_joints_and_nothing_that_needs_a_mesh(name: str, right_hands: Path) -> None:
    """Eq. 8: what stands in the place of the mesh changes nothing, the joints move every layer that makes them."""
    torch.manual_seed(0)
    labels, net, criterion = (
        mixed_batch(right_hands, name),
        new_net(name, width=8).train(),
        net_module(name).Criterion(),
    )
    output = net(images(labels))
    terms = criterion(output, labels)
    nonsense = [torch.cat([x[:3], torch.full_like(x[3:], 3)]) for x in (labels.vertices_uvd, labels.uv, labels.on_hand)]
    other = criterion(output, labels._replace(vertices_uvd=nonsense[0], uv=nonsense[1], on_hand=nonsense[2]))
    for term, value in terms.items():
        torch.testing.assert_close(other[term], value, msg=term)
    moved = labels.joints_uvd.clone()
    moved[3:] += 0.1
    changed = {
        k for k, v in criterion(output, labels._replace(joints_uvd=moved)).items() if not torch.equal(v, terms[k])
    }
    assert changed == ({"refined", "loss"} if name.startswith("dgn") else {"joints", "loss"})
    alone = rows(labels, slice(3, 6))
    net.zero_grad()
    own = criterion(net(images(alone)), alone)
    assert {k for k, v in own.items() if v > 0} <= {"refined", "joints", "side", "loss"}
    own["loss"].backward()
    assert sum(float(p.grad.abs().sum()) for p in net.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("name", NETS)
def test_the_loss_of_a_mixed_batch_is_that_of_its_halves(name: str, right_hands: Path) -> None:
    torch.manual_seed(0)
    labels, net, criterion = mixed_batch(right_hands, name), new_net(name, width=8).eval(), net_module(name).Criterion()
    output = net(images(labels))
    both = criterion(output, labels)
    rendered, real = (
        criterion(type(output)(*(x[s] for x in output)), rows(labels, s)) for s in (slice(3), slice(3, 6))
    )
    for term, value in both.items():
        torch.testing.assert_close(value, (rendered[term] + real[term]) / 2)
    plain = labels._replace(has_mesh=None, joint_weight=None, joint_mix=None)
    as_before = criterion(type(output)(*(x[:3] for x in output)), rows(plain, slice(3)))
    for term, value in rendered.items():
        torch.testing.assert_close(as_before[term], value)


# --- runs


def run(config: TrainConfig, out: Path, **options: Any) -> dict[str, Any]:
    return load_checkpoint(train(config, out, **{"threads": 1, "workers": 0, "validate_every": 0, **options}))


@pytest.mark.parametrize("name", ["dgn-nano", "deephps"])
def test_a_run_with_real_frames_stopped_and_resumed_is_the_uninterrupted_run(
    name: str, right_hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY, net=name, real=f"recording:{right_hands}", real_share=0.5)
    whole = run(config, tmp_path / "whole")
    assert "6 frames, 21 of 21 joints count" in capsys.readouterr().out
    assert run(config, tmp_path / "parts", minutes=0)["seen"] == 8
    resumed = run(config, tmp_path / "parts", resume=True)
    assert resumed["config"]["real"] == config.real and resumed["seen"] == 16
    without = run(replace(config, real=None), tmp_path / "without")
    for key, value in whole["net"].items():
        torch.testing.assert_close(resumed["net"][key], value, rtol=1e-3, atol=2e-4, msg=key)
    assert any(not torch.allclose(without["net"][k], v, atol=1e-3) for k, v in whole["net"].items())


def test_of_every_batch_that_share_is_real_whatever_the_number_of_processes(right_hands: Path) -> None:
    config = replace(TINY, batch=8, real=f"recording:{right_hands}", real_share=0.25)
    real = opened(right_hands)
    alone = batches(config, Group(), 8, 0, real)
    apart = [batches(config, Group(rank, 2), 8, 0, real) for rank in range(2)]
    for _ in range(2):
        labels, shares = next(alone), [next(share) for share in apart]
        assert labels.has_mesh is not None and labels.has_mesh.tolist() == [True] * 6 + [False] * 2
        assert [s.has_mesh.tolist() for s in shares] == [[True] * 3 + [False]] * 2  # type: ignore[union-attr]
        torch.testing.assert_close(torch.cat([s.image[:3] for s in shares]), labels.image[:6])
        torch.testing.assert_close(torch.cat([s.image[3:] for s in shares]), labels.image[6:])
    rendered = Generator("train", left_share=0.2, negative_share=TINY.negative_share).batch(6, 6)
    torch.testing.assert_close(next(batches(config, Group(), 8, 0, real)).image[:6], torch.as_tensor(rendered.image))


def test_the_config_of_older_checkpoints_has_no_real_frames_and_cards_no_folders(tmp_path: Path) -> None:
    old = {k: v for k, v in TINY.__dict__.items() if not k.startswith("real")}
    assert TrainConfig(**old) == TINY and open_real(TINY) is None
    config = replace(TINY, real="recording:/home/me/hand.mcap", init="/home/me/a.pt")
    assert (without_folders(config).real, without_folders(config).init) == ("recording:hand.mcap", "a.pt")
    assert without_folders(TINY) == TINY


# A network that is trained already, and one from nothing.
STARTS: dict[str, dict[str, Any]] = {
    "dgn-nano": {"width": None, "init": str(MODELS / "dgn-nano.pt"), "lr": 4e-4, "muon_lr": 4e-3, "samples": 384},
    "deephps": {"width": 16, "samples": 1920},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTS)
def test_hands_of_another_size_are_seen_better_after_joint_training(name: str, tmp_path: Path) -> None:
    """Hands of 0.7 times the template's size, as none is rendered; the poses that count are not those learned from."""
    for part in ("train", "test", "with", "without"):
        (tmp_path / part).mkdir()
    target = opened(record(tmp_path / "test", 16, seed=2, scale=0.7), name, left_share=0.0).batch(0, 32)
    truth = metres(target.joints_uvd, target.distance_m, target.cube_m)
    config = TrainConfig(net=name, batch=16, warmup=80, coarse=0, real_share=0.5, ema=0.99, bf16=False, **STARTS[name])
    errors_mm = {}
    for part, real in (("with", f"recording:{record(tmp_path / 'train', 48, seed=1, scale=0.7)}"), ("without", None)):
        run(replace(config, real=real), tmp_path / part)
        net, _, _ = load_net(tmp_path / part / "last.pt")
        with torch.no_grad():
            joints, _ = net_module(name).estimate(net(images(target)), target.distance_m, target.cube_m)
        errors_mm[part] = 1e3 * float((joints - truth).norm(dim=-1).mean())
    assert errors_mm["with"] < 0.9 * errors_mm["without"], errors_mm


# --- a user's mistakes


def refusal(config: TrainConfig, out: Path) -> str:
    with pytest.raises(TrainError) as error:
        run(config, out)
    assert "\n" not in str(error.value) and not (out / "last.pt").exists()
    return str(error.value)


def change(path: Path, **values: Any) -> None:
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(entry | values) + "\n" for entry in entries))


def test_frames_that_cannot_be_used_are_one_line_before_the_first_step(tmp_path: Path) -> None:
    path, out = record(tmp_path, 2), tmp_path / "out"
    config = replace(TINY, real=f"recording:{path}")
    labels = recording.labels_path(path)
    whole, text = path.read_bytes(), labels.read_text()
    path.write_bytes(whole[: len(whole) // 2])
    assert refusal(config, out) == f"{path} has no frames: it was cut"
    path.write_bytes(whole)
    labels.write_text("")
    assert refusal(config, out) == f"--real recording:{path}: it has no labelled frame"
    labels.unlink()
    assert refusal(config, out).startswith(f"{labels} is missing: the labels of this recording")
    labels.write_text(text.replace('"seq": 1', '"seq": 7'))
    assert refusal(config, out) == f"{labels}: frame 7 is not in hand.mcap"
    labels.write_text(text)
    change(labels, joints_mm=[[900.0, 900.0, 500.0]] * 21)
    none = f"--real recording:{path}: none of 2 frames shows anything where its label says, 0.155 m away or more; "
    assert refusal(config, out) == none + "frame 0 is labelled at [0.9, 0.9, 0.5] m"
    change(labels, joints_mm=[[0.0, 0.0, 0.45]] * 21)  # metres, where millimetres were asked for
    assert refusal(config, out) == none + "frame 0 is labelled at [0.0, 0.0, 0.0] m"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"real": "big:/"}, "--real big:/: expected KIND:PATH with KIND one of icvl, msra, nyu, recording"),
        ({"real": "nyu:/no/such"}, "--real nyu:/no/such: /no/such does not exist"),
        (
            {"real": "nyu:/", "real_share": 0.01},
            "--real-share 0.01: no sample would be real of a process's 8 a step",
        ),
        (
            {"real": "nyu:/", "real_share": 0.99},
            "--real-share 0.99: every sample would be real of a process's 8 a step",
        ),
    ],
)
def test_a_set_or_share_that_cannot_be_is_one_line(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    assert refusal(replace(TINY, **changes), tmp_path).startswith(text)


def test_a_share_of_nothing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"^--real-share 0\.3: of what\? --real KIND:PATH is missing$"):
        config_of(tmp_path, {"real_share": 0.3}, resume=False)


@pytest.mark.parametrize("middle_mm", [(900, 900, 450), (0, 0, 150)], ids=["beside the hand", "too near"])
def test_frames_of_which_nothing_can_be_learned_are_left_out(middle_mm: tuple[int, ...], tmp_path: Path) -> None:
    path = record(tmp_path, 3)
    labels = recording.read_labels(recording.labels_path(path))
    moved = labels[1].joints_mm - labels[1].joints_mm.mean(0) + middle_mm
    recording.write_labels(path, [labels[0], labels[1]._replace(joints_mm=moved), labels[2]])
    real = opened(path)
    assert len(real.windows) == len(real.joints_m) == 2
    assert real.summary.endswith(
        "2 frames, 21 of 21 joints count; 1 of 3 show nothing where the hand should be, or one nearer than 0.155 m, "
        "and are left out"
    )
