"""The command `ghosttrace bits`: its options, and the run that they name."""

from typing import Annotated

import typer
from rich.console import Console

from ghosttrace.cli.options import ModelName, Traces, gather_options, model_options, run_options, with_options
from ghosttrace.cli.output import load_and_show_progress, print_verdict
from ghosttrace.ghost_bits.run import bits as measure_bits
from ghosttrace.report.ghost_bits import bits_table


@with_options(model_options, run_options)
def bits(
    ctx: typer.Context,
    model: ModelName = "toy-mixed",
    traces: Traces = None,
    bench: Annotated[
        str, typer.Option(help="Without --traces: a bench that knows its own, such as ledger.")
    ] = "ledger",
    limit: Annotated[int, typer.Option(help="Traces of each source.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the bench's problems.")] = 0,
    arms: Annotated[
        str, typer.Option(help="What to compare with memento; placebo, the control, always runs.")
    ] = "restart",
    batch_tokens: Annotated[int, typer.Option(help="Tokens read together, padding included.")] = 65_536,
) -> None:
    """Measure on existing traces, token by token, what the ghost channel tells about the text that follows."""
    options = gather_options(ctx, "bits")
    if options is None:
        return
    with load_and_show_progress(ctx, "bits", options) as (checkpoint, run):
        result = measure_bits(
            checkpoint,
            options["traces"] or None,
            options["bench"],
            options["arms"].split(","),
            **{name: options[name] for name in ("limit", "seed", "batch_tokens")},
            **run,
        )
    Console().print(bits_table(result.results, result.configuration))
    print_verdict(result)
