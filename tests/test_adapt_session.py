"""An adaptation's processes: whose clock counts, and on what they compute; and what a resumed one learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("numba")
pytest.importorskip("onnx")

from edge_hand.edge.cli.main import cli  # noqa: E402
from edge_hand.edge.networks.card import MODELS  # noqa: E402
from edge_hand.trainer import parallel  # noqa: E402
from edge_hand.trainer.adapt import run, session  # noqa: E402
from edge_hand.trainer.adapt.frames import AdaptError  # noqa: E402
from edge_hand.trainer.adapt.target import Target, save_target  # noqa: E402
from slept_time import SleptTime  # noqa: E402


class Steps:
    """In place of a run: steps that cost nothing, and the share of the way at which they were taken."""

    def __init__(self, net: Any, base: Any, target: Any, config: Any, group: parallel.Group) -> None:
        self.group, self.averaged, self.step, self.seconds, self.share = group, net, 0, 0.0, None
        self.log: list[Any] = []
        self.shares: list[float] = []
        Steps.last = self

    last: Steps

    def learn(self, share: float, stop: bool) -> tuple[dict[str, float], bool]:
        self.step += 1
        self.shares.append(share)
        self.group.average_([told := torch.tensor([float(stop)])])
        run.time.sleep(0.02)
        return {"loss": 0.0}, told.item() > 0

    def state(self, seen: int) -> dict[str, Any]:
        return {"net": {}, "averaged": {}, "seen": seen}


def the_first_prepares_longer(out: Path) -> None:
    run._Run = Steps  # type: ignore[assignment, misc]
    run.blend = lambda *_: 0.5
    run.time = clock = SleptTime()  # type: ignore[assignment]
    sum_ = parallel.Group.sum_

    def meet(group: parallel.Group, values: Any) -> Any:
        parallel.Group.sum_ = sum_  # type: ignore[method-assign]
        clock.sleep(0.5 * (group.rank == 1))  # waits for the first one
        return sum_(group, values)

    with parallel.join(cpu=True) as group:
        parallel.Group.sum_ = meet  # type: ignore[method-assign]
        done = run.adapt_net(
            MODELS / "dgn-nano.pt", None, out, run.AdaptConfig(steps=900), minutes=0.39 / 60, group=group
        )  # type: ignore[arg-type]
        torch.save((done.finished, done.seconds, Steps.last.shares), out / f"{group.rank}.pt")


@pytest.mark.slow
def test_the_minutes_of_several_processes_are_one_clock_s_from_when_all_are_prepared(tmp_path: Path) -> None:
    parallel.launch(2, the_first_prepares_longer, tmp_path, error=AdaptError)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first[0] and [first[1], second[1]] == pytest.approx([0.42, 0.42])  # a step after 0.40 s are over
    assert first[2] == second[2] and len(first[2]) == 21  # rates follow the share: else the weights come apart


@pytest.mark.parametrize("cuda", [False, True])
def test_processes_that_adapt_meet_on_the_cpu_where_there_are_gpus_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: bool
) -> None:
    def meet(backend: str, **_: object) -> None:
        raise AdaptError(backend)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(parallel.dist, "init_process_group", meet)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AdaptError, match=r"^gloo$"):
        session.adapt([tmp_path], tmp_path / "out")


def test_the_same_recording_is_not_learned_from_twice(tmp_path: Path) -> None:
    (tmp_path / "a.mcap").touch()
    (tmp_path / "link.mcap").symlink_to(tmp_path / "a.mcap")
    for again in ("a.mcap", "link.mcap"):
        with pytest.raises(AdaptError, match=rf"^--source .*a\.mcap, .*{again}: one recording twice; give each once$"):
            session.adapt([tmp_path / "a.mcap", tmp_path / again], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_result_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    given = ["adapt", "--source", "no.mcap", "--out", str(tmp_path / "out"), "--json", str(tmp_path)]
    assert str(CliRunner().invoke(cli, given).exception) == f"{tmp_path} cannot be written: is a directory"
    card = tmp_path / "out/adapted.json"
    said = str(CliRunner().invoke(cli, [*given[:-1], str(card)]).exception)
    assert said == f"{card} will be the card of adapted.onnx; give the result another name"


def test_what_is_resumed_learns_from_the_same_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("a.mcap", "b.mcap", "rig.json")
    a, b, rig = (tmp_path / name for name in names)
    for path in (a, b, rig):
        path.touch()
    out = tmp_path / "out"
    made = Target(*[np.zeros(1)] * 13)
    monkeypatch.setattr(session, "_target", lambda *_: made)
    monkeypatch.setattr(session.Person, "save", lambda *_: None)

    def reached(*_: object, **__: object) -> None:
        (out / "adapted.pt").touch()
        raise AdaptError("it learns")

    monkeypatch.setattr(session, "adapt_net", reached)

    def said(sources: list[Path], rig: Path | None, *, resume: bool = True) -> str:
        with pytest.raises(AdaptError) as error:
            session.adapt(sources, out, rig=rig, gate=False, resume=resume, say=lambda _: None)
        return str(error.value)

    assert said([a, b], rig, resume=False) == said([a, b], rig) == "it learns"
    other = f"--resume: {out} learns from a.mcap, b.mcap, rig.json; give the same, or choose another --out"
    assert said([b, a], rig) == said([a], rig) == said([a, b], None) == other
    save_target(made, out / "target.npz")  # as before, when nobody noted it
    assert said([a], None) == "it learns"


def test_one_adaptation_at_a_time_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mcap").touch()
    out = tmp_path / "out"

    def said(resume: bool = False) -> str:
        with pytest.raises(AdaptError) as error:
            session.adapt([tmp_path / "a.mcap"], out, gate=False, resume=resume, say=lambda _: None)
        return str(error.value)

    def meanwhile(*_: object) -> None:
        second.append(said())
        (out / "adapted.pt").touch()  # saved now
        second.append(said(resume=True))
        raise AdaptError("the first goes on")

    second: list[str] = []
    monkeypatch.setattr(session, "_target", meanwhile)
    assert said() == "the first goes on"
    assert second == [f"{out}: another adaptation is at work there; wait, or choose another --out"] * 2
    assert said(resume=True) == "the first goes on"  # which has ended
