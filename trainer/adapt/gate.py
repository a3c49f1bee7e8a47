"""The gate: does a network that was adapted to unlabelled frames see better, on frames it has not learned from?

For those who adapt:

    check_recording([recording, ...], rig) -> list[str]         before the work; each line a reason not to begin
    judge(old, new, [recording, ...], rig) -> GateReport        by the last quarter of each recording
    accept(checkpoint, old, [recording, ...], rig, store) -> (GateReport, Version | None)   export, judge, keep, use

Both networks run through the daemon's tracker over the same frames; what is measured is in `fitness.py`, what a
recording is refused for in `suspicion.py`. A difference counts if the interval of a bootstrap over seconds of the
recording, paired, is all on one side. The new network must be better in one of the measures that say how well it sees,
worse in none, and may not lose on the rendered test set. Nothing else is decided by a number that a person must weigh.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...calibration.rig import Rig, load_rig
from ...edge.engines import Engine, open_engine
from ...edge.engines.tensorrt import suited
from ...edge.finder import open_finder
from ...edge.networks.card import ModelError, load_card
from ...edge.networks.health import Health
from ...edge.networks.store import SHIPPED, Version, add, current, default_store, in_use, number_of
from ...edge.networks.use import put_in_use
from ...edge.refit import Refit
from ...hand.arrays import Array
from ...hand.frames import DepthFrame
from ..evaluate_synthetic import LEFT_SHARE, measure_sample
from ..synth.samples import Generator
from .agreement import shots_of
from .fitness import Observer, agreement, matched, plausibility, same_hand, views_mm
from .held_out import BLOCK_S, HELD_OUT, LEAST_BLOCKS, Part, parts_of
from .suspicion import check_recording

__all__ = ["Compared", "GateReport", "accept", "check_recording", "judge"]

FIT_HZ = 10.0  # distances and silhouettes cost most
DRAWS, INTERVAL = 2000, 99.0  # percent: five chances to be better, and only one in forty may be luck
LEAST_GAIN = 0.01  # better by less is not worth a change
SYNTHETIC = (300, 2400)  # samples: at first, and at most where noise leaves it open
SYNTHETIC_LOSS = 0.02


class Measure(NamedTuple):
    """In words; whether it decides or only guards; how much worse is no reason to refuse, beyond noise; unit."""

    words: str
    decides: bool
    slack: float
    unit: str = "mm"
    more_is_better: bool = False


MEASURES = {
    "fit_p50_mm": Measure("depth to mesh, median", True, 0.01),
    "fit_p90_mm": Measure("depth to mesh, 90 %", True, 0.01),
    "own_fit_mm": Measure("depth to the network's own mesh", True, 0.01),
    "silhouette": Measure("silhouette agreement", True, 0.005, "", True),
    "views_mm": Measure("joints between cameras", True, 0.02),
    "jitter_mm": Measure("jitter of the joints", False, 0.05),
    "limits_deg": Measure("angles past their limits", False, 0.10, "deg"),
    "bones_mm": Measure("bones off the hand's length", False, 0.10),
    "overlap_mm": Measure("fingers in each other", False, 0.10),
    "found": Measure("hands found", False, 0.01, "", True),
}
EPSILON = {"limits_deg": 0.1, "bones_mm": 0.1, "overlap_mm": 0.2}  # below this a share of it means nothing


@dataclass(frozen=True)
class Compared:
    """A measure: means of both networks, the gain (0.1: 10 % better) and its interval; verdict better, same, worse."""

    words: str
    unit: str
    old: float
    new: float
    gain: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class GateReport:
    """Whether the new network may serve, and why not; measures by name, `synthetic_mm` among them. baseline holds the
    old network's health on these frames (`edge/networks/health.py`), frames how many were looked at, seconds by how
    long."""

    accepted: bool
    reasons: tuple[str, ...]
    measures: dict[str, Compared]
    frames: int = 0
    blocks: int = 0
    synthetic: int = 0
    old: str = ""
    new: str = ""
    recordings: tuple[str, ...] = ()
    baseline: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values; names of files alone."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return values

    def table(self) -> str:
        """For people."""
        lines = []
        if self.measures:
            lines.append(f"{'':<34}{'before':>10}{'after':>10}{'':4} {'better by':>10}   {INTERVAL:g} % sure of")
        for m in self.measures.values():
            digits = 3 if not m.unit else 2
            lines.append(
                f"{m.words:<34}{m.old:>10.{digits}f}{m.new:>10.{digits}f} {m.unit:<4}{100 * m.gain:>9.1f} %"
                f"   {100 * m.low:.1f} to {100 * m.high:.1f} %, {m.verdict}"
            )
        if self.frames:
            lines.append(f"{self.frames} frames in {self.blocks} blocks, {self.synthetic} rendered hands")
        lines.append("accepted" if self.accepted else "refused, nothing changes:")
        return "\n".join([*lines, *(f"  {reason}" for reason in self.reasons if not self.accepted)])


def judge(
    old: Path,
    new: Path,
    recordings: Sequence[Path],
    rig: Path | None = None,
    *,
    part: tuple[float, float] = HELD_OUT,
    check: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> GateReport:
    """Compare two models, .onnx files with their cards, on a part of each recording, which the new one must not have
    learned from. With a rig file there is one recording for each of its cameras, of the same time. check False: the
    recordings were looked at before. Raises ModelError; whatever is wrong with a recording is a refusal."""
    names = tuple(path.name for path in recordings)
    head = {"old": load_card(old).name, "new": load_card(new).name, "recordings": names}
    if check:
        say("gate: looking at the recordings")
        if reasons := check_recording(recordings, rig, model=old):
            return GateReport(False, tuple(reasons), {}, **head)  # type: ignore[arg-type]
    rows = _Rows()
    engines = open_engine("onnxruntime", old), open_engine("onnxruntime", new)
    groups = [list(recordings)] if rig is not None else [[path] for path in recordings]
    known = load_rig(rig) if rig is not None else None
    baseline: dict[str, dict[str, float]] = {}
    for number, (group, its) in enumerate(zip(groups, parts_of([g[0] for g in groups], part), strict=True)):
        baseline = _watch(group, number, known, engines, its, rows, say) or baseline
    measures, reasons = rows.compared()
    say("gate: the rendered test set")
    synthetic, n = compare_synthetic(*engines, SYNTHETIC)
    measures["synthetic_mm"] = synthetic
    if -synthetic.gain > SYNTHETIC_LOSS:
        reasons.append(
            f"joints on the rendered test set: {synthetic.new:.1f} mm, before {synthetic.old:.1f}; "
            f"{-100 * synthetic.gain:.1f} % worse, allowed are {100 * SYNTHETIC_LOSS:g}"
        )
    return GateReport(
        not reasons, tuple(reasons), measures, frames=rows.frames, blocks=rows.blocks, synthetic=n, baseline=baseline,
        **head,  # type: ignore[arg-type]
    )  # fmt: skip


def accept(
    checkpoint: Path,
    old: Path,
    recordings: Sequence[Path],
    rig: Path | None = None,
    *,
    store: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> tuple[GateReport, Version | None]:
    """Export a checkpoint in floats, and in the precision of what serves, each compared with torch; judge the latter
    against what serves; keep both in the store and put them in use, in running daemons too, if they are better, else
    change nothing. Where what serves has TensorRT's 16-bit form beside it, the new one gets it too.

    What serves is the store's version in use, if there is one, else old, or the int8 model beside it. options are
    `judge`'s. The card takes over how far the old network's confidence could be believed. Raises ExportError,
    TrainError, ModelError, StoreError.
    """
    from ...exporters import ExportError
    from ...exporters.onnx import export
    from ...exporters.tensorrt import export_tensorrt

    store = store or default_store()
    now, quick = current(store), old.with_name(f"{old.stem}-int8.onnx")
    old = now.model if now else quick if quick.is_file() else old
    card = load_card(old)
    precision = card.precision
    with tempfile.TemporaryDirectory(prefix="edge-hand-gate-") as folder:
        plain = Path(folder) / "adapted.onnx"
        say("gate: exporting")
        export(checkpoint, plain)
        models = [plain]
        if precision != "fp32":
            models.insert(0, Path(folder) / f"adapted-{precision}.onnx")
            export(checkpoint, models[0], None, precision)
        for model in models:
            replace(load_card(model), confidence=card.confidence).write(model)
        report = judge(old, models[0], recordings, rig, say=say, **options)
        if not report.accepted:
            return report, None
        if _has_half(old):
            try:
                models.append(export_tensorrt(plain, "fp16"))
            except ExportError as error:  # the float one serves there too
                say(f"gate: no 16 bits for TensorRT: {error}")
        if in_use(store) != (now.number if now else SHIPPED):
            why = "another network was put in use while the gate judged; `adapt --resume` judges against that one"
            return replace(report, accepted=False, reasons=(why,)), None
        made_from = ", ".join(report.recordings)
        over = number_of(store, card.sha256)
        version = add(store, models, made_from, report.as_json(), report.baseline, over)
    put_in_use(store, version.number, say)
    return report, version


def _has_half(model: Path) -> bool:
    """Whether a GPU would be given its 16-bit form."""
    try:
        return load_card(suited(model)).precision == "fp16"
    except ModelError:
        return False


class _Rows:
    """Pairs of numbers by measure, old and new, and the block each belongs to."""

    def __init__(self) -> None:
        self._pairs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in MEASURES}
        self._blocks: dict[tuple[int, int], int] = {}
        self._seen: set[int] = set()
        self.frames = 0

    @property
    def blocks(self) -> int:
        """Those with a hand that both networks see."""
        return len(self._seen)

    def block(self, recording: int, t_s: float) -> int:
        return self._blocks.setdefault((recording, int(t_s // BLOCK_S)), len(self._blocks))

    def seen(self, block: int) -> None:
        """Both networks see a hand in it."""
        self._seen.add(block)

    def add(self, old: dict[str, float], new: dict[str, float], block: int) -> None:
        for name, value in old.items():
            if np.isfinite([value, new.get(name, np.nan)]).all():
                self._pairs[name].append((value, new[name], block))

    def compared(self) -> tuple[dict[str, Compared], list[str]]:
        """The measures, and the reasons to refuse that they give."""
        measures = {
            name: compare(MEASURES[name], np.array(pairs), EPSILON.get(name, 0.0))
            for name, pairs in self._pairs.items()
            if pairs
        }
        reasons = []
        if self.blocks < LEAST_BLOCKS:
            reasons.append(
                f"the part that is held out has {self.blocks} seconds with a hand that both networks see; "
                f"{LEAST_BLOCKS} are needed"
            )
            return measures, reasons
        for m in measures.values():
            if m.verdict == "worse":
                new, old = (f"{x:.{2 if m.unit else 3}f}" for x in (m.new, m.old))
                reasons.append(f"{m.words}: {new} {m.unit}".rstrip() + f", before {old}; {-100 * m.gain:.1f} % worse")
        deciding = [m for name, m in measures.items() if MEASURES[name].decides]
        if not reasons and not any(m.verdict == "better" for m in deciding):
            best = max(deciding, key=lambda m: m.gain)
            reasons.append(
                f"no measure is better by {100 * LEAST_GAIN:g} % and beyond noise; nearest comes {best.words}: a gain "
                f"between {100 * best.low:.1f} and {100 * best.high:.1f} %"
            )
        return measures, reasons


def compare(measure: Measure, rows: Array, epsilon: float = 0.0) -> Compared:
    """Old and new numbers (N, 2) and their blocks, (N, 3) in all; a bootstrap over the blocks."""
    old, new, block = rows[:, 0], rows[:, 1], rows[:, 2].astype(int)
    kinds, index = np.unique(block, return_inverse=True)
    sums = np.stack([np.bincount(index, x) for x in (old, new, np.ones(len(old)))])  # (3, B)
    rng = np.random.default_rng(0)
    drawn = sums[:, rng.integers(len(kinds), size=(DRAWS, len(kinds)))].sum(-1)  # (3, DRAWS)
    sign = 1 if measure.more_is_better else -1

    def gain(a: Any, b: Any) -> Any:
        return sign * (b - a) / np.maximum(np.abs(a), max(epsilon, 1e-9))

    means = old.mean(), new.mean()
    tail = (100 - INTERVAL) / 2
    low, high = np.percentile(gain(drawn[0] / drawn[2], drawn[1] / drawn[2]), [tail, 100 - tail])
    value = float(gain(*means))
    better = low > 0 and value > LEAST_GAIN * (0.5 if not measure.unit else 1)
    worse = high < 0 and -value > measure.slack
    verdict = "better" if better else "worse" if worse else "same"
    return Compared(
        measure.words, measure.unit, float(means[0]), float(means[1]), value, float(low), float(high), verdict
    )


def compare_synthetic(old: Engine, new: Engine, sizes: tuple[int, int]) -> tuple[Compared, int]:
    """Joint errors on the same samples of `synthetic:test`; more of them while it is open whether it loses more than
    `SYNTHETIC_LOSS`. The last decides by its mean."""
    hands = Generator("test", left_share=LEFT_SHARE, image_px=old.card.crop_size)
    refit = Refit()
    rows: list[tuple[float, float, int]] = []
    measure = Measure("joints on the rendered test set", False, SYNTHETIC_LOSS)
    n = sizes[0]
    while True:
        for i in range(len(rows), n):
            sample = hands.sample(i)
            errors = [
                float(np.linalg.norm(m.joints_mm - m.truth_mm, axis=-1).mean())
                for m in (measure_sample(sample, engine, refit) for engine in (old, new))
            ]
            rows.append((errors[0], errors[1], i))
        result = compare(measure, np.array(rows))
        open_still = result.low < -SYNTHETIC_LOSS < result.high
        if not open_still or n >= sizes[1]:
            return result, n
        n = min(2 * n, sizes[1])


def _watch(
    group: list[Path], number: int, rig: Rig | None, engines: tuple[Engine, Engine], part: Part,
    rows: _Rows, say: Callable[[str], None],
) -> dict[str, dict[str, float]] | None:  # fmt: skip
    """Run both networks over this part of the recordings of one time; the old network's health."""
    first, last, stride, rate_hz, alone = part
    finder, costly = open_finder(), 1 if alone else max(1, round(rate_hz / FIT_HZ))
    pairs = [(Observer(engines[0], finder), Observer(engines[1], finder)) for _ in group]
    health = Health(pairs[0][0].tracker, lambda why: None)
    poses = {c.serial: c.T_ref_cam for c in rig.cameras} if rig else {}
    for i, shot in enumerate(shots_of(group, rig)):
        if i < first or (i - first) % stride:
            continue
        if i >= last:
            break
        frame = shot[0]
        assert frame is not None
        block = rows.block(number, i * BLOCK_S if alone else frame.t_ns * 1e-9)
        views: tuple[list[Array], list[Array]] = ([], [])
        for seen, (old, new) in zip(shot, pairs, strict=True):
            if seen is not None:
                _one_frame(seen, old, new, alone, (i - first) % costly == 0, block, rows, views, poses)
        health.frame()
        rows.add({"views_mm": views_mm(views[0])}, {"views_mm": views_mm(views[1])}, block)
        if rows.frames % 100 < len(group):
            say(f"gate: {i + 1 - first} of {last - first} frames")
    return health.baseline()


def _one_frame(
    frame: DepthFrame, old: Observer, new: Observer, alone: bool, costly: bool, block: int, rows: _Rows,
    views: tuple[list[Array], list[Array]], poses: dict[str, Array],
) -> None:  # fmt: skip
    mine, its = old.see(frame, alone), new.see(frame, alone)
    rows.frames += 1
    if mine or its:
        rows.add({"found": float(len(mine))}, {"found": float(min(len(its), max(len(mine), 1)))}, block)
    both = matched(mine, its)
    if both:
        rows.seen(block)
    for a, b in both:
        rows.add(plausibility(a), plausibility(b), block)
        if costly:
            before, after = agreement(frame, (a, b))
            rows.add(before, after, block)
    if both and frame.camera in poses:
        T = poses[frame.camera]
        placed = [[hand.tracked.pose.joints_m @ T[:3, :3].T + T[:3, 3] for hand in pair] for pair in both]
        for joints, view in zip(same_hand(placed, views[0]), views, strict=False):
            view.append(joints)
