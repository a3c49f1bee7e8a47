"""The training loop: it learns and averages, a stopped run goes on as if it had never stopped, the log says it all."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from edge_hand.trainer import train as training
from edge_hand.trainer.checkpoint import build_net, load_checkpoint, save_weights
from edge_hand.trainer.muon import Muon, orthogonal
from edge_hand.trainer.nets import NETS
from edge_hand.trainer.optimizers import build_optimizers, schedule
from edge_hand.trainer.parallel import Group
from edge_hand.trainer.synth.samples import Generator, Sample
from edge_hand.trainer.train import (
    TrainConfig,
    TrainError,
    config_of,
    distance_to_teacher,
    held_out,
    joint_error_mm,
    load_net,
    train,
    update_average,
)

# 6 steps: warm-up, constant, then the fall; the refit joins after the second.
TINY = TrainConfig(width=8, samples=24, batch=4, warmup=8, coarse=8, left_share=0.2, bf16=False)


TERMS = {"correspondence", "mask", "initial", "refined", "error", "side", "presence"}


class Clock:
    """Stands in for the module `time`: it only goes on as batches are rendered, 12 s each."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    class Ticking(Generator):
        def batch(self, start: int, n: int) -> Sample:
            clock.now += 12 if self.key[0] == 0 else 0
            return super().batch(start, n)

    monkeypatch.setattr(training, "time", clock)
    monkeypatch.setattr("edge_hand.trainer.batches.Generator", Ticking)
    return clock


def run(config: TrainConfig, out: Path, **options: Any) -> dict[str, Any]:
    """Train in this process and thread; the checkpoint."""
    return load_checkpoint(train(config, out, **{"threads": 1, "workers": 0, "validate_every": 0, **options}))


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_state(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, torch.Tensor):
        # Equal but for sums whose order depends on where the memory lies, which Muon's normalisation magnifies.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4, msg=where)
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_stopped_after_three_steps_and_resumed_is_the_uninterrupted_run(
    tmp_path: Path, clock: Clock, optimizer: str
) -> None:
    config = replace(TINY, optimizer=optimizer)
    whole = run(config, tmp_path / "whole")
    half = run(config, tmp_path / "parts", minutes=20 / 60)  # the third batch begins at 24 s
    assert (half["seen"], whole["seen"]) == (12, 24)
    resumed = run(config, tmp_path / "parts", resume=True)
    assert_same_state(resumed, whole)
    assert not torch.equal(half["net"]["crop_head.0.weight"], whole["net"]["crop_head.0.weight"])


def test_threads_limits_torch_and_the_compiled_extension_alike(tmp_path: Path, clock: Clock) -> None:
    """Numba's first launch sets the threads of OpenMP, which torch shares: one count of threads, one result."""
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    run(replace(TINY, samples=4), tmp_path)
    assert (torch.get_num_threads(), numba.get_num_threads()) == (1, 1)


def test_training_changes_every_layer_and_averages_it(tmp_path: Path, clock: Clock) -> None:
    state = run(TINY, tmp_path)
    torch.manual_seed(TINY.seed)
    for name, start in build_net(TINY).named_parameters():
        assert not torch.equal(state["net"][name], start), name
        assert not torch.equal(state["net"][name], state["averaged"][name]), name


def test_the_log_has_every_term_and_says_where_and_how_fast(tmp_path: Path, clock: Clock) -> None:
    run(TINY, tmp_path)
    lines = log_of(tmp_path)
    assert [line["seen"] for line in lines] == [4, 8, 12, 16, 20, 24]
    assert set(lines[0]) == {"seen", "s", "per_s", "lr", "loss"} | TERMS - {"refined"}
    assert set(lines[-1]) == {"seen", "s", "per_s", "lr", "loss"} | TERMS
    assert [line["s"] for line in lines] == [12, 24, 36, 48, 60, 72]
    assert [line["per_s"] for line in lines] == pytest.approx([4 / 12] * 6, abs=0.05)
    rates = [TINY.lr * schedule(TINY, line["seen"]) for line in lines]
    assert [line["lr"] for line in lines] == pytest.approx(rates, abs=1e-8)


def test_a_resumed_log_goes_on_in_the_same_file_and_its_seconds_too(tmp_path: Path, clock: Clock) -> None:
    run(TINY, tmp_path, minutes=20 / 60)
    run(TINY, tmp_path, resume=True)
    lines = log_of(tmp_path)
    assert [line["seen"] for line in lines] == [4, 8, 12, 16, 20, 24]
    assert [line["s"] for line in lines] == [12, 24, 36, 48, 60, 72]


def test_the_average_is_validated_every_so_many_samples_and_at_the_end(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "VALIDATION_SAMPLES", 8)
    run(TINY, tmp_path, validate_every=10)
    errors = {line["seen"]: line["val_joint_mm"] for line in log_of(tmp_path) if "val_joint_mm" in line}
    assert list(errors) == [12, 20, 24]
    net, config, _ = load_net(tmp_path / "last.pt")
    assert errors[24] == pytest.approx(joint_error_mm(net, config.net, held_out(config, Group()), Group()), abs=1e-3)


def test_the_validation_error_is_that_of_the_estimated_joints_in_millimetres(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "VALIDATION_SAMPLES", 4)
    validation = held_out(TINY, Group())
    assert validation.is_hand.all() and validation.is_right.all()

    class True3mmToTheRight(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> None: ...

    class Module:
        @staticmethod
        def estimate(_: None, distance_m: torch.Tensor, cube_m: torch.Tensor) -> tuple[torch.Tensor, None]:
            return training.metres(validation.joints_uvd, distance_m, cube_m) + torch.tensor([0.003, 0, 0]), None

    monkeypatch.setattr(training, "net_module", lambda _: Module)
    assert joint_error_mm(True3mmToTheRight(), "any", validation, Group()) == pytest.approx(3, abs=1e-3)


def test_a_started_run_has_the_weights_that_init_names(tmp_path: Path, clock: Clock) -> None:
    first = run(replace(TINY, samples=4), tmp_path / "first")
    still = replace(TINY, samples=4, init=str(tmp_path / "first" / "last.pt"), lr=0.0, muon_lr=0.0, seed=5)
    second = run(still, tmp_path / "second")
    for name, weight in build_net(TINY).named_parameters():
        torch.testing.assert_close(second["net"][name], first["averaged"][name])
        assert not torch.equal(weight, second["net"][name])


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teacher(tmp_path: Path, clock: Clock) -> None:
    teacher = run(replace(TINY, samples=4), tmp_path / "teacher") and str(tmp_path / "teacher" / "last.pt")
    config = replace(TINY, samples=60, warmup=4, seed=1, teacher=teacher, teacher_weight=20.0)
    run(config, tmp_path / "student")
    lines = log_of(tmp_path / "student")
    assert lines[-1]["teacher"] < 0.5 * lines[0]["teacher"]
    assert lines[0]["loss"] == pytest.approx(sum(v for k, v in lines[0].items() if k in TERMS | {"teacher"}), abs=1e-3)


def test_a_teacher_is_not_asked_about_left_hands_and_crops_without_one() -> None:
    net, _ = build_net(TINY).eval(), torch.manual_seed(0)
    labels = training.to_labels(Generator("train", left_share=0.0, negative_share=0.0).batch(0, 2))
    image = training.images(labels)
    with torch.no_grad():
        output = net(image)
    far = output._replace(vertices_uvd=output.vertices_uvd + 1)
    assert float(distance_to_teacher(net, image, output, labels)) == pytest.approx(0, abs=1e-4)
    assert float(distance_to_teacher(net, image, far, labels)) > 1
    left = labels._replace(is_right=torch.tensor([False, True]), is_hand=torch.tensor([True, False]))
    assert float(distance_to_teacher(net, image, far, left)) == 0


def test_training_runs_with_its_real_worker_and_clock(tmp_path: Path) -> None:
    net, config, seen = load_net(train(replace(TINY, samples=4), tmp_path, threads=1, validate_every=0))
    assert (config, seen) == (replace(TINY, samples=4), 4)
    assert not net.training
    with torch.no_grad():
        assert torch.isfinite(net(torch.ones(1, 1, 64, 64)).vertices_uvd).all()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is captured and run as it is; making C++ of it would take a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain = run(replace(TINY, samples=8), tmp_path / "plain")
    compiled = run(replace(TINY, samples=8, compile=True), tmp_path / "compiled")
    for name, value in plain["averaged"].items():
        torch.testing.assert_close(compiled["averaged"][name], value, atol=5e-3, rtol=0.1)


@pytest.mark.parametrize("name", NETS)
def test_every_named_network_has_what_training_needs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "VALIDATION_SAMPLES", 2)
    config = replace(TINY, net=name, width=8)
    run_ = training.begin(config, None, Path("none"), Group())
    with training.closing(training.batches(replace(config, batch=2), Group(), 0, 0)) as source:
        means, stop = training.step(run_, next(source), Group())
    assert means["loss"] > 0 and not stop and training.net_module(name).OUTPUTS
    assert 1 < joint_error_mm(run_.averaged, name, held_out(config, Group()), Group()) < 500


def test_the_rate_warms_up_stays_and_falls_to_nothing_over_the_last_quarter() -> None:
    config = TrainConfig(samples=100_000, batch=50, warmup=10_000)
    assert schedule(config, 0) == pytest.approx(50 / 10_000)
    assert schedule(config, 4_950) == pytest.approx(0.5)
    assert [schedule(config, seen) for seen in (9_950, 10_000, 50_000, 75_000)] == [1] * 4
    assert schedule(config, 81_250) == pytest.approx(0.5)
    assert schedule(config, 100_000) == schedule(config, 200_000) == 0
    rising = [schedule(config, seen) for seen in range(0, 10_001, 50)]
    falling = [schedule(config, seen) for seen in range(10_000, 100_001, 50)]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert schedule(replace(config, decay=0.0), 100_010) == 1  # never falls, though the last step goes beyond the end


def test_a_run_is_prolonged_from_a_checkpoint_before_the_fall_as_if_it_had_been_longer() -> None:
    short, long = (TrainConfig(samples=n, batch=50, warmup=10_000) for n in (100_000, 300_000))
    assert all(schedule(short, seen) == schedule(long, seen) for seen in range(0, 75_001, 500))
    assert schedule(long, 200_000) == 1


def test_the_average_moves_weights_and_statistics_and_copies_counters() -> None:
    averaged, net = build_net(TINY), build_net(TINY)
    before = {name: value.clone() for name, value in averaged.state_dict().items()}
    with torch.no_grad():
        for value in net.state_dict().values():
            value.add_(2)
    update_average(averaged, net, 0.75)
    for name, value in averaged.state_dict().items():
        new = net.state_dict()[name]
        expected = 0.75 * before[name] + 0.25 * new if value.is_floating_point() else new
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("samples", [8, 4])
def test_a_run_that_has_seen_its_samples_says_so_and_its_checkpoint_stays(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str], samples: int
) -> None:
    run(replace(TINY, samples=8), tmp_path)
    path = tmp_path / "last.pt"
    before = path.stat().st_mtime_ns, path.read_bytes()
    capsys.readouterr()
    run(replace(TINY, samples=samples), tmp_path, resume=True, validate_every=4)
    said = f"{path} has seen 8 samples, --samples is {samples}: nothing is left to do; give more to go on\n"
    assert capsys.readouterr().out == said
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


def test_a_resumed_run_keeps_its_own_options_and_only_samples_may_change(tmp_path: Path) -> None:
    config = TrainConfig(width=8, samples=8, batch=4, warmup=4, coarse=4, bf16=False)
    run(config, tmp_path)
    assert config_of(tmp_path, {}, resume=True) == config
    assert config_of(tmp_path, {"samples": 12, "width": 8}, resume=True).samples == 12
    with pytest.raises(TrainError, match=r"^--resume: the run in .* has --width 8, not 16$"):
        config_of(tmp_path, {"width": 16}, resume=True)
    assert config_of(tmp_path, {"width": 16}, resume=False).width == 16


def test_a_short_run_reaches_its_rates_and_one_from_trained_weights_refits_at_once(tmp_path: Path) -> None:
    def fitted(**options: Any) -> tuple[int, int]:
        config = config_of(tmp_path, options, resume=False)
        return config.warmup, config.coarse

    assert fitted() == (TrainConfig().warmup, TrainConfig().coarse) == (20_000, 20_000)
    assert fitted(samples=1280) == (128, 20_000)
    assert fitted(samples=1280, init="a.pt") == (128, 0)
    assert fitted(samples=1280, init="a.pt", warmup=500, coarse=40) == (500, 40)
    init = str(train(TINY, tmp_path / "a", threads=1, workers=0, validate_every=0))
    options = {"width": 8, "samples": 40, "batch": 4, "init": init, "bf16": False}
    out = tmp_path / "b"
    config = config_of(out, options, resume=False)
    run(config, out, minutes=0)
    assert "refined" in log_of(out)[0] and schedule(config, 0) == 1
    longer = config_of(out, {"samples": 4000}, resume=True)
    assert longer == replace(config, samples=4000)  # or what was learned already would have been learned otherwise


def test_the_command_on_a_card_is_one_that_the_command_line_takes(tmp_path: Path) -> None:
    from edge_hand.edge.cli.models import train as train_command
    from edge_hand.edge.networks.card import MODELS, load_card
    from edge_hand.exporters.onnx import command

    def config_of_line(line: str) -> TrainConfig:
        params = train_command.make_context("train", line.split()[2:]).params
        given = {k: v for k, v in params.items() if k in TrainConfig.__dataclass_fields__ and v is not None}
        return config_of(tmp_path, given, resume=False)

    shipped = load_card(MODELS / "dgn-nano.onnx").training
    config = config_of_line(shipped["command"])
    assert {name: shipped[name] for name in asdict(config) if name in shipped} == asdict(config)
    for config in (TrainConfig(init="a.pt"), TrainConfig(samples=300), TrainConfig(init="a.pt", coarse=0, warmup=7)):
        assert config_of_line(command(config)) == config


def test_every_name_stands_for_a_network_and_width_replaces_its_own() -> None:
    sizes = {
        name: sum(p.numel() for p in build_net(TrainConfig(net=name)).parameters()) for name in ("dgn-nano", "dgn-base")
    }
    assert 2 < sizes["dgn-base"] / sizes["dgn-nano"] < 3
    wide = build_net(TrainConfig(net="dgn-nano", width=128))
    assert 3 < sum(p.numel() for p in wide.parameters()) / sizes["dgn-nano"] < 4


# --- the optimisers


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16)])
def test_orthogonal_keeps_the_directions_and_evens_out_the_singular_values(shape: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(0)
    u, _, vt = torch.linalg.svd(torch.randn(shape, generator=g), full_matrices=False)
    strengths = torch.logspace(0, -2, len(vt) if shape[0] > shape[1] else u.shape[1])
    update = orthogonal((u * strengths) @ vt)
    between = u.T @ update @ vt.T  # diagonal, if the directions stay
    assert ((between.diagonal() > 0.6) & (between.diagonal() < 1.3)).all()
    assert (between - between.diagonal().diag()).abs().max() < 1e-4
    assert update.dtype == torch.float32


def test_muon_moves_a_kernel_along_the_orthogonal_matrix_of_its_gradient() -> None:
    kernel = torch.nn.Parameter(torch.randn(16, 2, 2, 2, generator=torch.Generator().manual_seed(0)))
    start, gradient = kernel.detach().clone(), torch.randn(16, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    optimizer = Muon([kernel], lr=0.1, weight_decay=0.5)
    kernel.grad = gradient
    optimizer.step()
    expected = start * (1 - 0.1 * 0.5) - 0.1 * 2**0.5 * orthogonal(gradient.flatten(1)).view_as(start)
    torch.testing.assert_close(kernel.detach(), expected)
    kernel.grad = torch.zeros_like(kernel)  # momentum carries on
    before = kernel.detach().clone()
    optimizer.step()
    assert not torch.allclose(kernel, before * (1 - 0.1 * 0.5), atol=1e-3)


def test_muon_has_the_convolutions_and_adamw_the_rest() -> None:
    net = build_net(TINY)
    adamw, muon = build_optimizers(net, TINY)
    count = sum(len(group["params"]) for o in (adamw, muon) for group in o.param_groups)
    assert isinstance(muon, Muon) and {p.ndim for p in muon.param_groups[0]["params"]} == {4}
    assert count == len(list(net.parameters()))
    (only,) = build_optimizers(net, replace(TINY, optimizer="adamw"))
    assert sum(len(group["params"]) for group in only.param_groups) == count
    with pytest.raises(TrainError, match=r"^--optimizer sgd: unknown, possible are muon, adamw$"):
        build_optimizers(net, replace(TINY, optimizer="sgd"))


def test_weights_alone_are_small_start_a_run_and_are_no_run_themselves(tmp_path: Path) -> None:
    run(TINY, tmp_path / "a")
    path = tmp_path / "a" / "last.pt"
    alone = tmp_path / "b" / "last.pt"
    alone.parent.mkdir()
    save_weights(path, alone)
    assert alone.stat().st_size < path.stat().st_size / 3
    net, config, seen = load_net(alone)
    whole, _, _ = load_net(path)
    for a, b in zip(net.state_dict().values(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert (config, seen) == (TINY, 24)
    run(replace(TINY, init=str(alone)), tmp_path / "c")
    save_weights(tmp_path / "c" / "last.pt", tmp_path / "d.pt")
    assert load_net(tmp_path / "d.pt")[1] == replace(TINY, init="last.pt")  # not where it lay on this disk
    with pytest.raises(TrainError, match=r"b/last\.pt: holds weights alone; start from them with --init$"):
        run(TINY, alone.parent, resume=True)
