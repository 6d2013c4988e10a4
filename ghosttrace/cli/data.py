"""The commands of `ghosttrace data`: reasoning traces into training data with mementos."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ghosttrace.cli.data_options import (
    OutFile,
    Rows,
    Sources,
    Tokenizer,
    endpoint_options,
    make_endpoint,
    make_settings,
    need_pipeline,
    quality_options,
    score_options,
    segment_options,
    select_options,
)
from ghosttrace.cli.options import RayAddress, with_options
from ghosttrace.cli.output import print_tables
from ghosttrace.report.pipeline import (
    build_findings,
    check_findings,
    cost_table,
    next_step,
    problems_table,
    reasons_table,
)
from ghosttrace.runs.progress import Progress

if TYPE_CHECKING:
    from ghosttrace.pipeline import Endpoint, Settings, StageResult

INVALID_EXIT_CODE = 1
"""Exit code of `data check` if a row has a problem."""
MAX_SHOWN_PROBLEMS = 30

app = typer.Typer(no_args_is_help=True, help="Turn reasoning traces into training data with blocks and mementos.")


@app.command()
@with_options(endpoint_options, select_options, score_options, segment_options, quality_options)
def build(
    ctx: typer.Context,
    sources: Sources,
    out: Annotated[Path, typer.Option(help="Folder of the data set; one of an earlier build keeps its answers.")],
    tokenizer: Tokenizer = None,
    seal_check: Annotated[
        str | None, typer.Option(help="Memento model that measures what each memento leaves out. Default: none.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the estimated cost, and ask nothing.")] = False,
    ray: RayAddress = None,
    push_to_hub: Annotated[str | None, typer.Option(help="Hub id of a data set to upload to. Default: none.")] = None,
) -> None:
    """Run all stages: select, split, score, segment, compress, judge, assemble. Run again, it continues."""
    need_pipeline()
    from ghosttrace.pipeline import build as run_build
    from ghosttrace.pipeline import count_reasons
    from ghosttrace.pipeline import push_to_hub as upload

    endpoint, settings = make_endpoint(ctx.params), make_settings(ctx.params)
    if dry_run:
        print_estimate(sources, endpoint, settings, ctx.params["limit"])
        return
    with _progress() as progress:
        result = run_build(
            sources,
            out,
            endpoint,
            settings,
            seal_check=seal_check,
            limit=ctx.params["limit"],
            ray=ray,
            progress=progress,
        )
    findings = build_findings(result.counts, len(result.set_aside), result.cost)
    tables = [reasons_table(count_reasons(result.set_aside)), cost_table(map(asdict, result.costs))]
    print_tables(findings, tables)
    if push_to_hub is not None:
        typer.echo(f"\nPushed: {upload(result.folder, push_to_hub)}")
    typer.echo(f"\nWritten to {out}: default, full, rejected, README.md")
    typer.echo(next_step(str(out), result.counts["full"], result.counts["rejected"]))


def print_estimate(sources: list[str], endpoint: "Endpoint", settings: "Settings", limit: int | None) -> None:
    """Print what a build of the sources would ask and cost."""
    from ghosttrace.pipeline import Row, SetAside, count_reasons, estimate_costs, seed_rows

    seeds = list(seed_rows(sources, settings, limit))
    rows = [seed for seed in seeds if isinstance(seed, Row)]
    set_aside = [seed for seed in seeds if isinstance(seed, SetAside)]
    estimate = estimate_costs(rows, settings, endpoint)
    findings = [f"Traces: {len(rows):,} selected, {len(set_aside):,} dropped. Nothing was asked."]
    print_tables(findings, [reasons_table(count_reasons(set_aside)), cost_table(map(asdict, estimate))])


@app.command()
@with_options(select_options)
def select(ctx: typer.Context, sources: Sources, out: OutFile, tokenizer: Tokenizer = None) -> None:
    """Select the usable traces, and count each drop with its reason."""
    need_pipeline()
    from ghosttrace.pipeline import run_select

    _print_stage(run_select(sources, out, make_settings(ctx.params), ctx.params["limit"]), "split")


@app.command()
def split(ctx: typer.Context, rows: Rows, out: OutFile, tokenizer: Tokenizer = None) -> None:
    """Split the reasoning into sentences, without losing a character."""
    _run_stage(ctx, "split", "score")


@app.command()
@with_options(endpoint_options, score_options)
def score(ctx: typer.Context, rows: Rows, out: OutFile) -> None:
    """Score the boundaries between sentences, from 0 (mid-thought) to 3 (chapter break)."""
    _run_stage(ctx, "score", "segment")


@app.command()
@with_options(segment_options)
def segment(ctx: typer.Context, rows: Rows, out: OutFile) -> None:
    """Cut the sentences into blocks, to the proven optimum."""
    _run_stage(ctx, "segment", "compress")


@app.command()
@with_options(endpoint_options, quality_options)
def compress(ctx: typer.Context, rows: Rows, out: OutFile, tokenizer: Tokenizer = None) -> None:
    """Draft the mementos; of judged rows, rewrite those that were not accepted."""
    _run_stage(ctx, "compress", "judge")


@app.command()
@with_options(endpoint_options)
def judge(ctx: typer.Context, rows: Rows, out: OutFile) -> None:
    """Judge the drafts, and keep the best memento of each block."""
    _run_stage(ctx, "judge", "assemble")


@app.command()
@with_options(quality_options)
def assemble(
    ctx: typer.Context, rows: Rows, out: Annotated[Path, typer.Option(help="Folder of the data set.")]
) -> None:
    """Write rows with delimiters in the format of OpenMementos, ready for `ghosttrace sft`."""
    need_pipeline()
    from ghosttrace.pipeline import run_assemble

    _print_stage(run_assemble(rows, out, make_settings(ctx.params).quality), None)


@app.command()
def check(
    source: Annotated[str, typer.Argument(help="Data set with mementos: a JSON, JSONL or Parquet file, or a hub id.")],
    limit: Annotated[int | None, typer.Option(help="Maximum number of rows. Default: all.")] = None,
) -> None:
    """Validate a data set row by row. Exit codes: 0, all rows are valid; 1, a row has a problem; 2, invalid input."""
    need_pipeline()
    from ghosttrace.pipeline import check_dataset

    report = check_dataset(source, limit)
    bad_rows = len({problem.row for problem in report.problems})
    findings = check_findings(report.rows, report.blocks, len(report.problems), bad_rows)
    shown = report.problems[:MAX_SHOWN_PROBLEMS]
    print_tables(findings, [problems_table(shown)] if shown else [])
    if not report.valid:
        raise typer.Exit(INVALID_EXIT_CODE)


def _run_stage(ctx: typer.Context, name: str, following: str) -> None:
    need_pipeline()
    from ghosttrace.pipeline import run_stage

    options = ctx.params
    endpoint = make_endpoint(options) if "endpoint" in options else None
    with _progress() as progress:
        result = run_stage(name, options["rows"], options["out"], make_settings(options), endpoint, progress)
    _print_stage(result, following)


def _print_stage(result: "StageResult", following: str | None) -> None:
    from ghosttrace.pipeline import count_reasons

    accepted = "" if result.accepted is None else f", {result.accepted:,} of them accepted"
    findings = [f"Rows: {result.rows:,} written{accepted}, {len(result.set_aside):,} set aside."]
    print_tables(findings, [reasons_table(count_reasons(result.set_aside)), cost_table(map(asdict, result.costs))])
    typer.echo(f"\nWritten to {result.out}")
    if following is not None:
        typer.echo(f"Next: ghosttrace data {following} {result.out} --out FILE")
    else:
        accepted_rows = result.accepted or 0
        typer.echo(next_step(str(result.out), accepted_rows, result.rows - accepted_rows))


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show how many traces are done; their number is not known beforehand."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} done"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("starting", total=None)
        try:
            yield lambda step, done, _: bars.update(task, description=step, completed=done)
        except KeyboardInterrupt:
            console.print("Stopped; the answers so far are kept: the same command continues", soft_wrap=True)
            raise
