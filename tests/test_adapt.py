"""Adaptation as a whole: windows and crops, drawn hands, a run that learns, stops and goes on, refusals in a line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edge_hand.calibration.rig import DepthCorrection, RigCamera
from edge_hand.hand import se3
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.crop import crop_depth, points_from_uvd
from edge_hand.hand.frames import DepthFrame, HandRoi
from edge_hand.hand.kinematics import Shape, pose_hand
from edge_hand.hand.template import template

torch = pytest.importorskip("torch")
pytest.importorskip("numba")
pytest.importorskip("onnx")

from edge_hand.edge.networks.card import MODELS  # noqa: E402
from edge_hand.edge.networks.store import StoreError  # noqa: E402
from edge_hand.edge.recordings.recording import RecordingWriter  # noqa: E402
from edge_hand.trainer.adapt import frames, held_out, run, session, target  # noqa: E402
from edge_hand.trainer.adapt.augment import Estimate, UserHands  # noqa: E402
from edge_hand.trainer.adapt.frames import AdaptError, View  # noqa: E402
from edge_hand.trainer.checkpoint import TrainConfig, TrainError, build_net, load_net, save  # noqa: E402
from edge_hand.trainer.synth.labeller import Labeller, shown_left  # noqa: E402
from edge_hand.trainer.synth.rig_views import RigClip, rig_clip  # noqa: E402
from edge_hand.trainer.synth.room_crops import RoomCrops  # noqa: E402

BIG = Shape(np.array([1.08, 1.17, 1.25, 1.25, 1.23, 1.2]), np.zeros(7))
MOMENTS = 6


@pytest.fixture(autouse=True)
def few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PROBES", 16)


@pytest.fixture(scope="module")
def clip() -> RigClip:
    """Three synchronous cameras before a large hand."""
    made = rig_clip(5, cameras=3, seconds=2, fps=10, motion="free", alpha=BIG.alpha, beta=BIG.beta, distance_m=0.5)
    return made._replace(offsets_s=np.zeros(3), phases_s=np.zeros(3))


@pytest.fixture(scope="module")
def known(clip: RigClip) -> target.Target:
    """A target whose teacher knows the truth."""
    views, owner = [], []
    for m in range(MOMENTS):
        for c in range(3):
            centre = clip.joints_m(0, 3 * m).mean(0)
            view = frames.cut_window(clip.frame(c, 3 * m), clip.T_ref_cam[c], centre, c)
            assert view is not None
            views.append(view)
            owner.append(m)
    thetas = [clip.theta(clip.time_s(0, 3 * m)) for m in range(MOMENTS)]
    wrists = [se3.transform(se3.so3_exp(theta[3:6]), theta[:3]) for theta in thetas]
    return target.Target(
        np.stack([v.window for v in views]),
        np.array([v.distance_m for v in views]),
        np.stack([v.T_ref_view for v in views]),
        np.array(owner),
        np.arange(MOMENTS),
        np.arange(MOMENTS) * 100_000_000,
        np.zeros(MOMENTS, int),
        np.stack(wrists),
        np.stack([theta[6:] for theta in thetas]),
        np.stack([clip.joints_m(0, 3 * m) for m in range(MOMENTS)]),
        np.ones(MOMENTS, bool),
        *BIG,
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of a few channels that has learned nothing."""
    torch.manual_seed(0)
    config = TrainConfig(width=8)
    path = tmp_path_factory.mktemp("net") / "small.pt"
    net = build_net(config)
    save({"version": 2, "config": config.__dict__, "seen": 0, "averaged": net.state_dict()}, path)
    return path


@pytest.mark.slow
def test_a_crop_of_a_window_is_the_crop_of_the_frame(clip: RigClip) -> None:
    frame, truth = clip.frame(0, 0), clip.joints_m(0, 0).mean(0)
    view = frames.cut_window(frame, np.eye(4), truth, 0)
    assert view is not None
    mine = frames.cut_crop(view, 0.25, 64)
    its = crop_depth(frame, HandRoi("right", truth, 0.25, 1.0), 64)
    both = (mine.image < 1) & (its.image < 1)
    assert both.sum() > 0.97 * (its.image < 1).sum()
    assert np.median(np.abs(mine.image - its.image)[both]) < 0.02


def test_a_window_tells_background_from_no_reading(clip: RigClip) -> None:
    frame, truth = clip.frame(0, 0), clip.joints_m(0, 0).mean(0)
    depth = frame.depth.copy()
    depth[:, : depth.shape[1] // 2] = 0
    view = frames.cut_window(replace(frame, depth=depth), np.eye(4), truth, 0)
    assert view is not None and (view.window == 0).any() and (view.window == frames.FAR).any()
    seen = frames.depth_seen(view, frames.cut_crop(view, 0.25, 64), 64)
    assert np.isinf(seen).any() and (seen == 0).any()


def test_a_window_has_the_depth_that_the_rig_says_was_meant(clip: RigClip) -> None:
    frame, truth = clip.frame(0, 0), clip.joints_m(0, 0).mean(0)
    right, wrong = DepthCorrection(1.0, 0.02), DepthCorrection(1.0, -0.02)
    z = wrong.apply(frame.depth * frame.depth_unit_m)  # as a camera with this error reads it
    read = replace(frame, depth=np.rint(z / 1e-4).astype(np.uint16), depth_unit_m=1e-4)
    true, as_read, mended = (
        frames.cut_window(seen, np.eye(4), truth, 0, depth)
        for seen, depth in ((frame, frames.AS_READ), (read, frames.AS_READ), (read, right))
    )
    assert true is not None and as_read is not None and mended is not None
    hand = (true.window > 0) & (true.window < frames.FAR) & (as_read.window > 0) & (as_read.window < frames.FAR)
    off_mm = [np.median(np.abs(view.window[hand] - true.window[hand].astype(float))) / 10 for view in (as_read, mended)]
    assert off_mm[0] > 3 and off_mm[1] < 0.2


def test_a_mirrored_view_twice_is_the_view(known: target.Target) -> None:
    view: View = known.view(1)
    twice = frames.mirrored(frames.mirrored(view))
    assert np.array_equal(twice.window, view.window) and np.allclose(twice.T_ref_view, view.T_ref_view)
    assert np.linalg.det(frames.mirrored(view).T_ref_view[:3, :3]) == pytest.approx(1)


def test_the_teachers_labels_lie_on_the_depth_of_every_view(known: target.Target) -> None:
    label = Labeller()
    for i in range(6):
        m = known.moment[i]
        theta = np.concatenate(
            [known.T_ref_wrist[m, :3, 3], se3.so3_log(known.T_ref_wrist[m, :3, :3]), known.angles[m]]
        )
        joints, vertices = pose_hand(template(), theta[None], BIG.alpha[None], BIG.beta[None])
        crop = frames.cut_crop(known.view(i), 0.28, 64)
        T = crop.T_ref_crop
        there = ((x - T[:3, 3]) @ T[:3, :3] for x in (joints[0], vertices[0]))
        sample = label(crop.image, crop.distance_m, crop.cube_m, *there)
        cells = sample.image[::2, ::2] < 1
        assert sample.on_hand.sum() > 60 and (cells | ~sample.on_hand).all()
        assert np.abs(sample.joints_uvd).max() < 1.2


@pytest.mark.slow
def test_drawn_hands_are_the_users_and_the_same_for_ever() -> None:
    estimates = [Estimate(np.full(20, 0.3), np.diag([-1.0, -1, 1]), 0.5)]
    hands = UserHands(BIG, estimates, 3, (0.25, 0.3))
    for i in range(8):
        a, b = hands.sample(i), UserHands(BIG, estimates, 3, (0.25, 0.3)).sample(i)
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        joints = points_from_uvd(a.joints_uvd.astype(float), float(a.distance_m), float(a.cube_m))
        ours = np.linalg.norm(joints[10] - joints[9]) / np.linalg.norm(template().joints_m[10] - template().joints_m[9])
        assert ours == pytest.approx(BIG.alpha[3], rel=0.06)
    assert hands.sample(0).on_hand.any() and not shown_left(hands.sample(0)).is_right


def test_a_batch_has_the_target_first_and_is_decided_by_its_step(known: target.Target) -> None:
    config = run.AdaptConfig(batch=32)
    batches = run._Batches(known, config, run.Group())
    (labels, batch, good), (again, _, _) = batches.draw(3), batches.draw(3)
    assert torch.equal(labels.image, again.image) and len(batch.image) == 6 and good.all()
    assert torch.equal(labels.image[:6], batch.image)
    assert (batch.group[:3] == batch.group[0]).all()  # views of one moment stay together
    assert not torch.equal(labels.image, batches.draw(4)[0].image)


@pytest.mark.slow
def test_what_learned_from_rooms_keeps_learning_from_them(known: target.Target) -> None:
    config = run.AdaptConfig(batch=32)
    with_rooms, without = (run._Batches(known, config, run.Group(), rooms=rooms) for rooms in (True, False))
    assert (with_rooms.n_rooms, with_rooms.n_everybody, without.n_everybody) == (8, 8, 16)
    labels, _, good = with_rooms.draw(0)
    assert len(labels.image) == 32 and len(good) == with_rooms.n_target
    rooms = RoomCrops("train", 5000 + config.seed * 1000, run.LEFT_SHARE).batch(0, 8)
    assert np.array_equal(labels.image[-8:], rooms.image) and not labels.is_hand[-8:].all()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "terms"), [("dgn", ("icp", "views")), ("dibra", ("depth", "collision"))])
def test_a_run_learns_stops_and_goes_on(
    known: target.Target, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str,
    terms: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.setattr(run, "PROBES", 8)
    config = run.AdaptConfig(method, steps=4, batch=8, target_share=0.5, user_share=0.25)
    lines: list[str] = []
    half = run.adapt_net(small, known, tmp_path, replace(config, steps=4), minutes=1e-9, threads=1, say=lines.append)
    assert half.steps == 1 and half.checkpoint.exists()
    whole = run.adapt_net(small, known, tmp_path, config, threads=1, resume=True, say=lines.append)
    assert whole.steps == 4 and whole.finished and all(term in lines[-2] for term in terms)
    learned = torch.load(whole.checkpoint, weights_only=True)["method"]
    assert all(bool(p.any()) for p in learned) and len(learned) == (method == "dibra")
    monkeypatch.setattr(run, "blend", None)  # what is finished is not blended again
    again = run.adapt_net(small, known, tmp_path, config, threads=1, resume=True, say=lines.append)
    assert again[1:4] == whole[1:4] and again.share == whole.share and lines[-1] == lines[-3]
    before, after = (torch.load(p, weights_only=True)["averaged"] for p in (small, whole.checkpoint))
    assert any(not torch.equal(before[k], after[k]) for k in before)
    assert json.loads((tmp_path / "log.json").read_text())["config"]["steps"] == 4
    with pytest.raises(AdaptError, match="adapted with other options"):
        run.adapt_net(small, known, tmp_path, replace(config, seed=9), threads=1, resume=True)


def test_a_full_disk_loses_nothing_and_is_said_in_one_line(
    known: target.Target, small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = run.AdaptConfig(steps=3, batch=8, target_share=0.5, user_share=0.25)
    run.adapt_net(small, known, tmp_path, replace(config, steps=1), threads=1)
    before = (tmp_path / "adapted.pt").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    lines: list[str] = []
    monkeypatch.setattr(run, "SAVE_S", 0.0)
    monkeypatch.setattr(run, "save", full)
    with pytest.raises(AdaptError, match=r"adapted.pt cannot be written: no space left .* before it is intact$"):
        run.adapt_net(small, known, tmp_path, config, threads=1, say=lines.append)
    assert (tmp_path / "adapted.pt").read_bytes() == before
    assert sum(line.endswith("learning goes on") for line in lines) == 3
    (tmp_path / "adapted.pt").write_bytes(before[:1000])
    with pytest.raises(TrainError, match="not an edge-hand checkpoint"):
        run.adapt_net(small, known, tmp_path, config, threads=1, resume=True)


def test_a_change_that_forgets_others_hands_is_taken_back(small: Path) -> None:
    base, same, spoilt = (load_net(small)[0] for _ in range(3))
    assert run.blend(base, same) == 1.0
    with torch.no_grad():
        for weight in spoilt.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    before = [p.clone() for p in spoilt.parameters()]
    share = run.blend(base, spoilt)
    assert share < 1
    for b, s, w in zip(base.parameters(), before, spoilt.parameters(), strict=True):
        assert torch.allclose(w, torch.lerp(b, s, share), atol=1e-5)


def test_terms_can_be_left_out_by_name_and_no_others() -> None:
    left = run.without_terms(run.AdaptConfig(), ("lifting", "teacher"))
    assert left.weights is not None and left.weights["lifting"] == 0 < left.weights["icp"] and left.teacher == 0
    with pytest.raises(AdaptError, match="--without nothing: possible are icp, lifting"):
        run.without_terms(run.AdaptConfig(), ("nothing",))
    with pytest.raises(AdaptError, match="--method magic: possible are dgn"):
        run.without_terms(run.AdaptConfig(method="magic"), ())


@pytest.mark.parametrize("method", run.METHODS)
def test_all_terms_of_a_method_can_be_left_out(known: target.Target, small: Path, tmp_path: Path, method: str) -> None:
    config = run.AdaptConfig(method, steps=1, batch=8, target_share=0.5, user_share=0.25)
    terms = run._method(method).Weights._fields
    done = run.adapt_net(small, known, tmp_path, run.without_terms(config, terms), threads=1)
    assert done.finished and done.log[0]["loss"] > 0 and not done.log[0].keys() & set(terms)


def test_a_target_is_kept_whole(known: target.Target, tmp_path: Path) -> None:
    target.save_target(known, tmp_path / "t.npz")
    loaded = target.load_target(tmp_path / "t.npz")
    assert all(np.array_equal(a, b) for a, b in zip(loaded, known, strict=True))
    (tmp_path / "t.npz").write_bytes(b"nothing")
    with pytest.raises(AdaptError, match="not the target of an adaptation"):
        target.load_target(tmp_path / "t.npz")


def test_what_cannot_be_adapted_to_is_refused_in_one_line(clip: RigClip, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="--model none: there are no weights to train of it; possible are dgn-nano"):
        session.adapt([tmp_path], tmp_path / "out", model="none")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "adapted.pt").touch()
    with pytest.raises(AdaptError, match="go on with --resume, or choose another --out"):
        session.adapt([tmp_path], tmp_path / "done")
    with pytest.raises(AdaptError, match=r"nothing/adapted.pt: no such checkpoint"):
        session.adapt([tmp_path], tmp_path / "nothing", resume=True)
    footage = frames.Footage([], 10, 1)
    with pytest.raises(AdaptError, match="a hand was seen in 0 moments of 10 frames"):
        target.prepare(footage, torch.nn.Identity())


def empty_recording(path: Path, seconds: float, hz: float = 10.0) -> Path:
    frame = DepthFrame("cam", 0, 0, np.zeros((2, 2), np.uint16), 0.001, Intrinsics(2, 2, 1, 1, 0, 0))
    with RecordingWriter(path) as writer:
        for i in range(round(seconds * hz)):
            writer.write(replace(frame, seq=i, t_ns=round(i * 1e9 / hz)))
    return path


def test_recordings_too_short_for_the_gate_are_refused_before_the_work(tmp_path: Path) -> None:
    short, fair, long = (empty_recording(tmp_path / f"{s}.mcap", s) for s in (2, 20, 40))
    why = "the last quarter of what is recorded, and that has {}: record 40 seconds or more"
    with pytest.raises(AdaptError, match=why.format("0.5")):
        session.adapt([short], tmp_path / "out", say=lambda _: None)
    for paths, rig, has in (
        ([fair], None, "5.0"),
        ([fair, fair], tmp_path / "rig.json", "5.0"),
        ([short] * 3, None, "1.5"),
    ):
        (reason,) = held_out.too_short(paths, rig)
        assert reason.endswith(why.format(has))
    for paths in ([long], [long, short], [short, long, short], [fair, fair], [short] * 20, [tmp_path / "none.mcap"]):
        assert held_out.too_short(paths) == []
    parts = held_out.parts_of([empty_recording(tmp_path / "minutes.mcap", 300), short, long], (0.5, 1.0))
    assert [p.last - p.first for p in parts] == [132, 1, 18], "15 s in all, of each the same share"
    folder = tmp_path / "single"
    folder.mkdir()
    camera = {"width": 2, "height": 2, "fx": 1, "fy": 1, "cx": 0, "cy": 0, "depth_scale_m": 0.001}
    (folder / "camera.json").write_text(json.dumps(camera))
    for i in range(36):
        (folder / f"{i}.png").touch()
    assert held_out.too_short([folder])[0].endswith("needs 10, the last quarter, and has 9: give 40 or more")
    (folder / "camera.json").write_text(json.dumps({**camera, "fps": 30}))
    assert held_out.too_short([folder])[0].endswith("has 0.3: record 40 seconds or more")


def test_a_store_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    minute = empty_recording(tmp_path / "minute.mcap", 60)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file/store: cannot be written"):
        session.adapt([minute], tmp_path / "out", store=tmp_path / "file" / "store", say=lambda _: None)
    store = tmp_path / "store"
    store.mkdir()
    (store / "current.json").write_text("{")
    with pytest.raises(StoreError, match=r"current\.json is damaged"):
        session.adapt([minute], tmp_path / "out", store=store, say=lambda _: None)


def test_only_what_a_gate_will_judge_by_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []

    def watched(*_: object, share: float, **__: object) -> frames.Footage:
        shares.append(share)
        return frames.Footage([], 10, 1)

    monkeypatch.setattr(session, "read_footage", watched)
    monkeypatch.setattr(session, "_refuse_bad", lambda *_: None)
    minute = empty_recording(tmp_path / "minute.mcap", 60)
    for gate in (True, False):
        with pytest.raises(AdaptError, match="a hand was seen in 0 moments"):
            session.adapt([minute], tmp_path / "out", gate=gate, store=tmp_path / "store", say=lambda _: None)
    assert shares == [1 - frames.HELD_OUT, 1]


@pytest.mark.slow
def test_footage_of_a_rig_has_the_hand_in_every_camera(clip: RigClip, tmp_path: Path) -> None:
    from edge_hand.edge.engines import open_engine

    sources = []
    for c in range(3):
        sources.append(tmp_path / f"{c}.mcap")
        with RecordingWriter(sources[-1]) as writer:
            for frame in clip.frames(c):
                writer.write(frame)
    cameras = {
        name: RigCamera(name, "depth", clip.intrinsics[c], clip.T_ref_cam[c], np.zeros((6, 6)))
        for c, name in enumerate(clip.names)
    }
    footage = frames.read_footage(sources, open_engine("onnxruntime", MODELS / "dgn-nano.onnx"), cameras, share=1.0)
    assert footage.cameras == 3 and len(footage.moments) > 0.7 * clip.frame_count
    for moment in footage.moments:
        truth = clip.joints_m(0, moment.seq).mean(0)
        for view in moment.views:
            middle = view.T_ref_view @ (0, 0, view.distance_m, 1)
            assert np.linalg.norm(middle[:3] - truth) < 0.06 or moment.is_left
    with pytest.raises(AdaptError, match="it does not know the camera cam0"):
        frames.read_footage(sources, open_engine("onnxruntime", MODELS / "dgn-nano.onnx"), {"other": cameras["cam0"]})


def _together(small: Path, folder: Path) -> None:
    """One of two processes, each with a target of its own."""
    from edge_hand.trainer import parallel

    with parallel.join(cpu=True) as group:
        mine = target.load_target(folder / f"{group.rank}.npz")
        config = run.AdaptConfig(steps=2, batch=8, target_share=0.5, user_share=0.25)
        run.PROBES = 16
        run.adapt_net(small, mine, folder / "out", config, threads=1, group=group)


@pytest.mark.slow
def test_two_processes_learn_from_two_recordings(known: target.Target, small: Path, tmp_path: Path) -> None:
    from edge_hand.trainer import parallel

    (tmp_path / "out").mkdir()
    target.save_target(known, tmp_path / "0.npz")
    target.save_target(known._replace(alpha=0.9 * known.alpha), tmp_path / "1.npz")
    parallel.launch(2, _together, small, tmp_path, error=AdaptError)
    state = torch.load(tmp_path / "out" / "adapted.pt", weights_only=True)
    assert state["step"] == 2
    alone = run.adapt_net(
        small, known, tmp_path / "out", run.AdaptConfig(steps=2, batch=8, target_share=0.5, user_share=0.25), threads=1
    )
    other = torch.load(alone.checkpoint, weights_only=True)
    assert any(not torch.equal(state["averaged"][k], other["averaged"][k]) for k in other["averaged"])
