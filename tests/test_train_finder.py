"""Training of the finder: what it is taught is where the hands are, and what is exported is what was learned."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from edge_hand.edge.finder import CUBE_M, PICTURE, THRESHOLD, Maps, network_input, open_finder, proposals
from edge_hand.exporters import ExportError
from edge_hand.exporters import finder as exporter
from edge_hand.hand.arrays import Array
from edge_hand.hand.camera import Intrinsics
from edge_hand.hand.frames import DepthFrame, HandRoi
from edge_hand.trainer import train_finder
from edge_hand.trainer.checkpoint import TrainConfig, TrainError, load_checkpoint, save
from edge_hand.trainer.nets.finder import Criterion, FinderNet
from edge_hand.trainer.optimizers import build_optimizers
from edge_hand.trainer.parallel import Group
from edge_hand.trainer.synth import pictures
from edge_hand.trainer.synth.pictures import (
    Hands,
    depth_m,
    hands_of,
    open_shards,
    record,
    render_shards,
    vary,
)
from edge_hand.trainer.train_finder import load_finder, matches, score, step, train
from test_train_faults import no_file_beyond

TINY = TrainConfig(net="finder", width=8, samples=16, batch=8, warmup=4, coarse=0, bf16=False)
CAMERA = Intrinsics(320, 240, 193.0, 193.0, 159.5, 119.5)


class Blob(NamedTuple):
    """Stands for `rooms.SceneHand`: a square on the wall, 12 cm wide."""

    side: str
    joints_m: Array
    seen: float


class Drawn(NamedTuple):
    frame: DepthFrame
    hands: tuple[Blob, ...]


def scene(index: int) -> Drawn:
    """Up to two squares before a wall; a right one is bent at its right edge."""
    rng = np.random.default_rng([7, index])
    z = np.full((240, 320), 1.5)
    blobs = []
    for _ in range(int(rng.integers(3))):
        distance = rng.uniform(0.35, 0.8)
        centre = np.array([rng.uniform(-0.5, 0.5) * distance, rng.uniform(-0.35, 0.35) * distance, distance])
        low, high = (CAMERA.project(centre + (s, s, 0)).astype(int) for s in (-0.06, 0.06))
        z[max(low[1], 0) : high[1], max(low[0], 0) : high[0]] = distance
        blobs.append(Blob("right" if rng.random() < 0.5 else "left", np.tile(centre, (21, 1)), 1.0))
    return Drawn(DepthFrame("x", index, 0, np.rint(z * 1000).astype(np.uint16), 0.001, CAMERA), tuple(blobs))


def picture(index: int) -> Array:
    drawn = scene(index)
    return record(drawn.frame, drawn.hands)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small shards of both streams."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "SHARD", 24)
        render_shards(folder, "train", range(2), picture)
        render_shards(folder, "val", range(1), picture)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        ("train_finder", "SHARD", 24),
        ("synth.pictures", "SHARD", 24),
    ):
        monkeypatch.setattr(f"edge_hand.trainer.{module}.{name}", value)
    monkeypatch.setattr(exporter, "SHARD", 24)
    monkeypatch.setattr(exporter, "MEASURED", 12)
    monkeypatch.setattr(exporter, "OTHERS", 12)


def hands(*rows: tuple[float, float, float, bool, int]) -> Hands:
    """Of one picture: x, y, z, right, role."""
    values = np.array([row[:3] for row in rows], np.float32).reshape(1, -1, 3)
    return Hands(values, np.array([[r[3] for r in rows]]), np.ones((1, len(rows))), np.array([[r[4] for r in rows]]))


@pytest.mark.slow
def test_the_network_learns_a_few_pictures_by_heart() -> None:
    torch.manual_seed(0)
    rows = np.stack([picture(k) for k in range(4)])
    z, there = depth_m(rows["picture"]), hands_of(rows)
    net = FinderNet(16)
    optimizers = build_optimizers(net, TINY)
    for _ in range(40):
        step(net, Criterion(), optimizers, z, there, False, "a batch", Group(), False)
    with torch.no_grad():
        out = net(torch.from_numpy(network_input(z)))  # still with its batch's statistics
    maps = (out.heat[:, 0], out.offset, out.log_z[:, 0], out.right[:, 0])
    found = [proposals(Maps(*(m[k].numpy() for m in maps)), 0.3, 6) for k in range(len(rows))]
    scores = score(found, there)
    assert scores["hands"] == 6 and scores["recall"] == scores["precision"] == scores["side_right"] == 1
    assert scores["centre_mm"] < 15


def test_what_is_varied_still_shows_its_hands_where_they_are_said_to_be(cache: Path) -> None:
    rows = open_shards(cache, "train")[0][:24]
    z, there = depth_m(rows["picture"]), hands_of(rows)
    checked = flipped = 0
    for seed in range(3):
        varied, new = vary(z, there, np.random.default_rng(seed))
        assert not np.shares_memory(varied, z) and (np.abs(varied - z).max((1, 2)) > 0).all()
        for k, i in zip(*np.nonzero(new.role == 1), strict=True):
            column, row = np.rint(PICTURE.project(new.centre_m[k, i])).astype(int)
            if 0 <= row < 112 and 0 <= column < 160 and varied[k, row, column] > 0:
                checked += abs(varied[k, row, column] - new.centre_m[k, i, 2]) < 2e-3
            flipped += new.right[k, i] != there.right[k, i]
    assert checked > 40 and flipped > 10


def test_shards_that_are_there_are_not_drawn_again(cache: Path) -> None:
    def never(index: int) -> Array:
        raise AssertionError(index)

    render_shards(cache, "train", range(2), never)
    assert len(open_shards(cache, "train")) == 2 and len(open_shards(cache, "train", first=1)) == 1


def test_each_proposal_takes_one_hand_and_those_nobody_asks_for_do_not_count() -> None:
    there = hands((0.0, 0.0, 0.5, True, 1), (0.3, 0.0, 0.5, False, 1), (0.0, 0.3, 0.6, False, 0))
    at = [(0.01, 0.0, 0.5), (0.0, 0.02, 0.5), (0.0, 0.31, 0.6), (-0.4, 0.0, 0.9)]
    rois = [HandRoi("right", np.array(c), CUBE_M, 0.9) for c in at]
    assert matches(rois, there, 0) == [0, -1, None, -1]
    scores = score([rois], there)
    assert (scores["recall"], scores["false_per_scene"], scores["side_right"]) == (0.5, 2, 1)
    assert scores["precision"] == pytest.approx(1 / 3) and scores["centre_mm"] == pytest.approx(10, rel=1e-3)


def test_a_run_goes_on_where_it_stopped_and_is_exported(cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
    path = train(TINY, tmp_path / "run", cache, validation=8)
    with pytest.raises(TrainError, match=r"last\.pt exists: go on with --resume, or choose another --out$"):
        train(TINY, tmp_path / "run", cache)
    longer = TrainConfig(net="finder", samples=32)
    train(longer, tmp_path / "run", cache, resume=True, validate_every=0)
    net, config, seen = load_finder(path)
    assert seen == 32 and config.width == 8 and not net.training
    monkeypatch.setattr(exporter, "THRESHOLD", 1e-4)
    for precision in ("fp32", "int8"):
        monkeypatch.setitem(exporter.LIMITS, precision, 60.0)
        monkeypatch.setitem(exporter.MOST_LOST, precision, 1.0)
        out = tmp_path / "out" / f"{precision}.onnx"
        card = exporter.export(path, out, cache, precision)
        assert card.kind == "finder" and card.training["seen"] == 32 and card.metrics["closer"]["scenes"] == 6
        assert open_finder(out)(scene(0).frame) == [] or THRESHOLD > 0


def test_a_run_that_has_seen_its_samples_says_so_and_waits_for_no_scenes(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train(replace(TINY, samples=8), tmp_path, cache, validate_every=0)
    before, _ = path.stat().st_mtime_ns, capsys.readouterr()
    train(replace(TINY, samples=4), tmp_path, tmp_path / "none", resume=True)
    said = f"{path} has seen 8 samples, --samples is 4: nothing is left to do; give more to go on\n"
    assert capsys.readouterr().out == said and path.stat().st_mtime_ns == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_the_run_cleanly(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    steps = list[str]()

    def interrupted(*given: Any) -> Any:
        steps.append(given[6])
        if len(steps) == 2:
            os.kill(os.getpid(), number)
        return step(*given)

    monkeypatch.setattr(train_finder, "step", interrupted)
    before = signal.getsignal(number)
    path = train(replace(TINY, samples=80), tmp_path, cache)
    assert load_finder(path)[2] == 24 and signal.getsignal(number) is before  # the next step's processes hear of it
    assert capsys.readouterr().out == "stopped and saved after 24 of 80 samples; --resume goes on\n"


class Two(Group):
    """Stands for two processes that both have this one's values."""

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        return values.mul_(2)


def test_several_processes_take_one_step_and_stop_together() -> None:
    rows = np.stack([picture(k) for k in range(4)])
    z, there = depth_m(rows["picture"]), hands_of(rows)
    weights, stops = [], []
    for group in (Group(), Two(0, 2)):
        torch.manual_seed(0)
        net = FinderNet(8)
        terms, stop = step(net, Criterion(), build_optimizers(net, TINY), z, there, False, "a batch", group, True)
        assert 0 < terms["loss"] < 20
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
        stops.append(stop)
    torch.testing.assert_close(*weights)
    assert stops == [True, True]


def test_processes_draw_their_own_shares_of_a_batch(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, *both = (
        next(train_finder.batches(cache, TINY, 0, 0, bool, group)) for group in (Group(), Group(0, 2), Group(1, 2))
    )
    assert [len(z) for z, _ in (alone, *both)] == [8, 4, 4]
    assert not np.array_equal(both[0][0], both[1][0])
    again, _ = next(train_finder.batches(cache, TINY, 0, 0, bool, Group(1, 2)))
    np.testing.assert_array_equal(again, both[1][0])
    monkeypatch.setattr(train_finder.parallel, "join", lambda cpu: nullcontext(Group(0, 3)))
    with pytest.raises(TrainError, match="a batch of 8: 3 processes cannot share it evenly, 2 or more each"):
        train(TINY, tmp_path, cache)


@pytest.mark.slow
def test_two_processes_train_one_finder(cache: Path, tmp_path: Path) -> None:
    few = np.load(cache / "train-0000.npy")
    np.save(tmp_path / "train-0000.npy", np.tile(few, 500 // len(few) + 1)[:500])
    code = "from edge_hand.trainer.train_finder import main; main()"
    given = ["--out", str(tmp_path), "--cache", str(tmp_path), "--scenes", "0", "--samples", "128", "--processes", "2"]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count("128 / 128 samples") == 1, done.stdout + done.stderr
    assert load_finder(tmp_path / "last.pt")[2] == 128
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"train_finder: {tmp_path}/last.pt exists: go on with --resume, or choose another --out\n"


def test_ctrl_c_is_not_for_the_process_that_renders(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with train_finder.rendering(tmp_path, 24, 0):
        (child,) = multiprocessing.active_children()
        status = Path(f"/proc/{child.pid}/status").read_text()
        assert int(status.partition("SigIgn:")[2].split()[0], 16) >> signal.SIGINT - 1 & 1
    assert not child.is_alive() and signal.getsignal(signal.SIGINT) is before


def test_a_run_whose_minutes_are_over_says_how_good_it_became(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(replace(TINY, samples=80), tmp_path, cache, minutes=0, validation=8)
    assert "        8 samples: recall" in capsys.readouterr().out


def test_a_run_that_goes_on_keeps_its_length(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(replace(TINY, samples=560_000), tmp_path, cache, minutes=0, validate_every=0)
    asked: list[int] = []
    monkeypatch.setattr(train_finder, "train", lambda config, *_, **__: asked.append(config.samples))
    given = ["--out", str(tmp_path), "--cache", str(cache), "--scenes", "0"]
    for more in (["--resume"], ["--resume", "--samples", "600000"], []):
        result = CliRunner().invoke(train_finder.main, [*given, *more])
        assert result.exit_code == 0, result.output
    assert asked == [560_000, 600_000, train_finder.SAMPLES]


def refusal(config: TrainConfig, out: Path, cache: Path, **options: Any) -> str:
    with pytest.raises(TrainError) as error:
        train(config, out, cache, validate_every=0, **options)
    return str(error.value)


def test_a_cache_without_scenes_is_waited_for_only_while_some_are_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    refused = f"--cache {cache}: no shard 0 or later and none to come; see --scenes"
    assert refusal(TINY, tmp_path / "run", cache) == refused and capsys.readouterr().out == ""
    monkeypatch.setattr(train_finder.time, "sleep", lambda _: None)
    alive = iter([True, True, False])  # until the process that renders dies
    assert refusal(TINY, tmp_path / "run", cache, rendered=lambda: next(alive)) == refused
    assert capsys.readouterr().out == f"waiting for the first 24 pictures in {cache}\n"


def test_the_command_without_scenes_ends_in_one_line(tmp_path: Path) -> None:
    given = ["--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), "--scenes", "0"]
    result = CliRunner().invoke(train_finder.main, given)
    assert str(result.exception) == (
        f"train_finder: --cache {tmp_path}/cache: no shard 0 or later and none to come; see --scenes"
    )


@pytest.mark.parametrize("keep", [0, 60, 500, -4], ids=["empty", "in the head", "in the scenes", "at the end"])
def test_a_shard_cut_short_is_one_line(cache: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "train-0000.npy"
    path.write_bytes((cache / path.name).read_bytes()[:keep])
    damaged = f"{path}: not 24 rendered pictures, or a damaged file; remove it, and render it again"
    assert refusal(TINY, tmp_path / "run", tmp_path) == damaged
    np.save(path, np.zeros(24))
    assert refusal(TINY, tmp_path / "run", tmp_path) == damaged


def test_a_full_disk_costs_no_checkpoint_and_no_training_time(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train(TINY, tmp_path, cache, validate_every=0)
    before, _ = path.read_bytes(), capsys.readouterr()
    monkeypatch.setattr(train_finder, "SAVE_S", -1)  # after every step
    monkeypatch.setattr(train_finder, "SAY_S", -1)
    with no_file_beyond(10_000):
        last = refusal(replace(TINY, samples=32), tmp_path, cache, resume=True)
    said = capsys.readouterr().out.splitlines()
    assert last == f"{path} cannot be written: file too large; the checkpoint before it is intact"
    assert [" 24 / 32 samples " in said[0], said[1], " 32 / 32 samples " in said[2]] == [
        True, f"{last}; training goes on", True
    ]  # fmt: skip
    assert path.read_bytes() == before


def test_weights_alone_cannot_go_on(cache: Path, tmp_path: Path) -> None:
    path = train(TINY, tmp_path, cache, validate_every=0)
    save({name: value for name, value in load_checkpoint(path).items() if name not in ("net", "optimizers")}, path)
    assert load_finder(path)[2] == TINY.samples
    last = refusal(replace(TINY, samples=24), tmp_path, cache, resume=True)
    assert last == f"{path}: holds weights alone, which cannot go on"


def test_a_loss_that_is_no_number_names_its_batch(cache: Path, tmp_path: Path) -> None:
    wild = replace(TINY, seed=3, samples=800, lr=1e30, muon_lr=1e30)
    pattern = r"the batch after (\d+) samples of seed 3 gives (.*): stopped before it reached the weights; .*"
    found = re.fullmatch(pattern, refusal(wild, tmp_path, cache))
    assert found and int(found[1]) % 8 == 0 and "loss nan" in found[2] and "gradient nan" in found[2]


def test_an_export_that_is_not_torch_s_network_is_refused(cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
    path = train(TINY, tmp_path / "run", cache, validate_every=0)
    monkeypatch.setitem(exporter.LIMITS, "fp32", -1.0)
    with pytest.raises(ExportError, match=r"the engine's centres are .* mm from torch's on 12 pictures"):
        exporter.export(path, tmp_path / "x.onnx", cache, "fp32")
    assert not list(tmp_path.glob("x*"))


def test_scores_become_the_share_of_peaks_that_are_hands(monkeypatch: Any) -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 4000)
    hit = rng.random(4000) < 1 / (1 + np.exp(-(0.5 * logit + 1)))
    monkeypatch.setattr(exporter, "torch_maps", lambda *_: None)
    monkeypatch.setattr(exporter, "proposals", lambda *_: [])
    monkeypatch.setattr(exporter, "peaks", lambda *_: (hit.astype(float), logit))
    rows = np.zeros(0, pictures.RECORD)
    slope, shift = exporter.believable(FinderNet(8), rows)
    assert abs(slope - 0.5) < 0.05 and abs(shift - 1) < 0.1
