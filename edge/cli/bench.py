"""The command that measures speed: bench, and bench merge."""

from __future__ import annotations

from pathlib import Path

import click

from ..cameras import camera_kinds
from .options import engine_options, json_option, model_options, own_note
from .shell import FloatRange, make_room, say, write_result


@click.group(invoke_without_command=True)
@click.option("--camera", default="synthetic", metavar="KIND", show_default=True, help=f"{', '.join(camera_kinds())}.")
@click.option("--source", help="A folder, recording or serial number.")
@click.option("--mode", help='Camera mode such as "848x480@90".')
@engine_options
@click.option("--frames", type=click.IntRange(1), help="Measure so many frames flat out.")
@click.option("--minutes", type=FloatRange(0, min_open=True), help="Last so long at the sensor's rate; 5 s else.")
@click.option("--flat-out/--at-rate", default=None, help="Only as fast as possible, or only at the sensor's rate.")
@click.option("--startup/--no-startup", default=True, help="Start a fresh daemon too, and wait for its first message.")
@click.option(
    "--tune/--no-tune", default=True, envvar="EDGE_HAND_TUNE", help="With the CPU engine that is fastest here."
)
@click.option(
    "--fast/--no-fast", default=True, envvar="EDGE_HAND_FAST", help="With arithmetic that numba compiled, if it can."
)
@click.option("--compare", type=click.Choice(["mediapipe"]), help="Measure that tracker in the same run, by turns.")
@click.option("--compare-python", type=Path, help="The Python that has it, if it is not this one.")
@click.option("--plot", type=Path, help="Draw the latency over time to this .svg.")
@json_option
@click.pass_context
def bench(
    ctx: click.Context, camera: str, source: str | None, mode: str | None, engine: str, model: Path, threads: int,
    frames: int | None, minutes: float | None, flat_out: bool | None, startup: bool, tune: bool, fast: bool,
    compare: str | None, compare_python: Path | None, plot: Path | None, json_path: Path | None,
) -> None:  # fmt: skip
    """Time every stage of the pipeline: p50, p95, p99 and frames a second; what it takes; what machine this is.

    \b
    edge-hand bench --json bench.json
    edge-hand bench --camera replay --source recording.mcap --threads 1
    edge-hand bench --compare mediapipe --compare-python mp/bin/python
    edge-hand bench --mode 640x480@90 --at-rate --minutes 10 --plot latency.svg
    edge-hand bench engines --threads 1
    edge-hand bench merge */bench.json --into docs/benchmarks.md
    """
    if ctx.invoked_subcommand is not None:
        return
    from contextlib import nullcontext

    from ..arithmetic import PLAIN
    from ..bench.chart import write_chart
    from ..bench.compare import MediaPipe
    from ..bench.measure import AT_RATE_S, Source
    from ..bench.measure import bench as measure
    from ..bench.report import table
    from ..compiled.compiling import open_arithmetic
    from ..engines import check_engine

    if compare and flat_out is False:
        raise click.UsageError("--compare measures flat out; leave --at-rate out")
    if plot and plot.suffix != ".svg":
        raise click.UsageError(f"--plot {plot}: the picture is an SVG; give a name that ends in .svg")
    check_engine(engine, model)  # before the compiling, which may take a minute
    make_room(json_path, plot)
    if note := own_note(ctx):
        click.echo(note)
    with MediaPipe(compare_python) if compare else nullcontext() as peer:
        result = measure(
            Source(camera, source, mode), engine=engine, model=model, threads=threads, frames=frames,
            seconds=60 * minutes if minutes else AT_RATE_S, flat_out=flat_out is not False,
            at_rate=flat_out is not True, startup=startup, tune=tune, peer=peer,
            arithmetic=open_arithmetic(say, wait=True) if fast else PLAIN, say=click.echo,
        )  # fmt: skip
    click.echo(table(result))
    write_result(result, json_path)
    if plot:
        write_chart(result, plot)


@bench.command()
@click.argument("results", type=Path, nargs=-1, required=True)
@click.option("--into", type=Path, help="Put the table into this Markdown page, at its place for it.")
def merge(results: tuple[Path, ...], into: Path | None) -> None:
    """Make one table of devices from what `edge-hand bench --json` wrote on each.

    Of results of the same machine, engine and network the last is taken. With --into, what stands there stays, but for
    rows of these.

    \b
    edge-hand bench merge orin/bench.json pi5/bench.json --into docs/benchmarks.md
    """
    from ..bench.report import merge as merged
    from ..bench.report import merge_into

    text = merged(results)
    if into is None:
        click.echo(text)
    else:
        kept = merge_into(into, text)
        click.echo(f"{into}: {len(text.splitlines()) - 2} results, beside {kept} that stood there")


@bench.command()
@model_options
@click.option("--seconds", type=FloatRange(0, min_open=True), default=5.0, show_default=True, help="In all.")
@json_option
@click.pass_context
def engines(ctx: click.Context, model: Path, threads: int, seconds: float, json_path: Path | None) -> None:
    """Race every CPU engine and precision there is, by turns: time a crop, and distance from the float network.

    \b
    edge-hand bench engines --model dgn-nano-int8 --threads 1
    """
    from ..networks.tune import rank

    make_room(json_path)
    if note := own_note(ctx):
        click.echo(note)
    rows = rank(model, threads, seconds)
    slowest = max(taken.cpu_ms for _, taken, _ in rows)
    for setting, taken, mm in rows:
        ratio = taken.cpu_ms / slowest
        click.echo(
            f"{setting!s:<46}{taken.ms:>8.3f} ms  cpu {taken.cpu_ms:.3f} ms  {ratio:.2f} of the slowest  {mm:.3f} mm"
        )
    write_result([{"setting": str(setting), **taken._asdict(), "mm": mm} for setting, taken, mm in rows], json_path)
