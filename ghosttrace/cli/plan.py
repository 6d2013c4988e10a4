"""The command `ghosttrace plan`: power and cost of an ablation from its geometry, or cost of any run from short runs.

ghosttrace plan MODEL [OPTIONS]                     power, tokens and KV memory of an ablation; runs nothing
ghosttrace plan [OPTIONS] -- INSTRUMENT [OPTIONS]   time, memory and disk of any run; runs it at small sizes
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ghosttrace.ablation.published import ASSUMED_ACCURACY, MEAN_RESPONSE_TOKENS
from ghosttrace.bench import BENCH_GROUPS, BENCH_NAMES, bench_size
from ghosttrace.cli.options import Delimiters, Dtype, Format, KeepLast, OutputFormat
from ghosttrace.cli.output import print_rows, print_tables
from ghosttrace.cli.progress import show_progress
from ghosttrace.errors import UserError
from ghosttrace.planning.command import INSTRUMENTS

OF_RUNS = ("workers", "keep", "effect", "accuracy", "format")
"""Options that can stand before an instrument's command line."""


def plan(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|INSTRUMENT",
            help="Bundled name, folder or hub id of the model; only its config.json is read. Or, after --, the command "
            f"line of a run to plan, beginning with {', '.join(INSTRUMENTS[:-1])} or {INSTRUMENTS[-1]}: it is run at "
            "small sizes, and time, memory and disk of the whole run are estimated.",
        ),
    ],
    instrument_options: Annotated[
        list[str] | None, typer.Argument(help="Options of the instrument, as in the run to plan.")
    ] = None,
    bench: Annotated[
        str, typer.Option(help=f"Benchmark: {', '.join(BENCH_NAMES[len(BENCH_GROUPS) :])}, or a .jsonl file.")
    ] = "aime24",
    effect: Annotated[float, typer.Option(help="Decrease of accuracy to detect, in percentage points.")] = 5.0,
    accuracy: Annotated[float, typer.Option(help="Assumed accuracy under memento, in %.")] = 100 * ASSUMED_ACCURACY,
    arms: Annotated[str, typer.Option(help="Comma-separated arms to compare with memento.")] = "restart,placebo",
    repetitions: Annotated[
        int | None, typer.Option(help="Samples per problem. Default: the benchmark's protocol.")
    ] = None,
    response_tokens: Annotated[int, typer.Option(help="Mean length of a response, in tokens.")] = MEAN_RESPONSE_TOKENS,
    batch_size: Annotated[int, typer.Option(help="Sequences decoded together.")] = 32,
    throughput: Annotated[
        float | None,
        typer.Option(help="Tokens that the whole batch decodes per second. Default: unknown, so no time is estimated."),
    ] = None,
    dtype: Dtype = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    workers: Annotated[
        int, typer.Option(help="Processes, each with a core or a GPU of its own, among which a run is divided.")
    ] = 1,
    keep: Annotated[
        Path | None, typer.Option(help="Folder in which the calibration runs stay. Default: they are deleted.")
    ] = None,
    format: Format = OutputFormat.table,
) -> None:
    """Estimate what effect an ablation can detect, and its cost in repetitions, tokens, KV memory and time.

    With the command line of a run after --, run it at small sizes, and estimate time, memory and disk of the whole run.
    For example: ghosttrace plan --workers 4 -- probe --model toy-mixed --bench ledger-h1 --samples 2000
    """
    given = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    if model in INSTRUMENTS or instrument_options:
        unused = sorted(given - {"model", "instrument_options", *OF_RUNS})
        if unused:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
            raise UserError(f"{names} plans an ablation of a model, and not a run: move it behind --, or leave it out")
        plan_run([model, *(instrument_options or ())], workers, keep, effect / 100, accuracy / 100, format)
        return
    if given & {"workers", "keep"}:
        raise UserError(
            "--workers and --keep need a run to plan: give its command line after --, such as -- probe --samples 2000"
        )
    import torch

    from ghosttrace.ablation.plan import Assumptions
    from ghosttrace.ablation.plan import plan as make_plan
    from ghosttrace.data.info import stored_dtype
    from ghosttrace.model.checkpoint import load_config
    from ghosttrace.model.erasure_config import recorded_law, recorded_policy, require_memento, resolve_policy
    from ghosttrace.model.geometry import CacheGeometry
    from ghosttrace.report.plan import plan_findings, plan_table

    config = load_config(model)
    require_memento(recorded_law(config), "plan")
    recorded = recorded_policy(config) or {"mask_delimiters": bool(mask_delimiters)}
    policy = resolve_policy(recorded, mask_delimiters=mask_delimiters, keep_last_n_blocks=keep_last_n_blocks)
    n_problems, default_repetitions = bench_size(bench)
    assumptions = Assumptions(
        n_problems=n_problems,
        repetitions=default_repetitions if repetitions is None else repetitions,
        effect=effect / 100,
        arms=tuple(arms.split(",")),
        accuracy=accuracy / 100,
        response_tokens=response_tokens,
        batch_size=batch_size,
        throughput=throughput,
    )
    cache_dtype = stored_dtype(config) if dtype is None else getattr(torch, dtype)
    planned = make_plan(CacheGeometry.from_config(config), cache_dtype, policy, assumptions)
    if format is not OutputFormat.table:
        entries = asdict(planned)
        print_rows(format, plan_findings(planned), entries.pop("arms"), entries)
        return
    print_tables(plan_findings(planned), plan_table(planned))
    Console().print(
        f"\nNext: ghosttrace ablate --model {escape(model)} --bench {escape(bench)} --arms {escape(arms)}",
        soft_wrap=True,
    )


def plan_run(
    command: list[str], workers: int, keep: Path | None, effect: float, accuracy: float, output: OutputFormat
) -> None:
    """Plan a run of an instrument and print the estimates."""
    from ghosttrace.planning.run import plan as plan_command
    from ghosttrace.report.run_plan import run_plan_findings, run_plan_tables, run_rows
    from ghosttrace.runs.folder import as_json

    with show_progress(Console(stderr=True), "plan", keep or Path()) as progress:
        planned = plan_command(command, workers, effect=effect, accuracy=accuracy, keep=keep, progress=progress)
    findings = run_plan_findings(planned)
    if output is not OutputFormat.table:
        more = as_json(asdict(planned))
        print_rows(output, findings, planned.rows(), more | {"runs": run_rows(planned.runs)})
        return
    print_tables(findings, run_plan_tables(planned))
    Console().print(f"\nNext: ghosttrace {escape(planned.command)}", soft_wrap=True)
