"""The command `ghosttrace bits`: its options, and how they start a run."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghosttrace.cli.options import (
    ModelName,
    Traces,
    cluster_options,
    gather_options,
    law_options,
    model_options,
    output_options,
    run_options,
    with_options,
)
from ghosttrace.cli.output import exit_if_invalid, load_and_show_progress, print_result

if TYPE_CHECKING:
    from ghosttrace.ghost_bits.result import BitsResult


@with_options(model_options, law_options, run_options, cluster_options, output_options)
def bits(
    ctx: typer.Context,
    model: ModelName = "toy-mixed",
    traces: Traces = None,
    bench: Annotated[
        str,
        typer.Option(
            help="Comma-separated benchmarks with reference responses, such as ledger; used without --traces."
        ),
    ] = "ledger",
    limit: Annotated[int, typer.Option(help="Maximum number of traces per source.")] = 100,
    seed: Annotated[int, typer.Option(help="Random seed of the benchmark's problems.")] = 0,
    arms: Annotated[
        str,
        typer.Option(help="Comma-separated arms to compare with memento. The control placebo always runs."),
    ] = "restart",
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of tokens per batch, padding included. Default: 65,536 on a GPU, 4,096 on a CPU."
        ),
    ] = None,
) -> None:
    """Measure on existing traces, token by token, how many bits the ghost channel adds to the following text.

    Exit codes: 0, all controls passed; 12, a control failed; 2, invalid input.
    """
    from ghosttrace.ghost_bits.result import BitsResult
    from ghosttrace.report.ghost_bits import bits_table

    options = gather_options(ctx, "bits")
    result = BitsResult.open(ctx.params["resume"]) if options is None else start_bits(ctx, options)
    print_result(result, ctx.params["format"], [bits_table(result.results, result.configuration)])
    exit_if_invalid(result)


def start_bits(ctx: typer.Context, options: dict[str, Any]) -> "BitsResult":
    """Run `bits` with the gathered command-line options."""
    from ghosttrace.ghost_bits.run import bits as measure_bits

    with load_and_show_progress(ctx, "bits", options) as (checkpoint, run):
        return measure_bits(
            checkpoint,
            options["traces"] or None,
            options["bench"],
            options["arms"].split(","),
            **{name: options[name] for name in ("limit", "seed", "batch_tokens")},
            **run,
        )
