"""The command `ghosttrace patch`: its options, and how they start a run."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghosttrace.cli.options import (
    ModelName,
    gather_options,
    law_options,
    model_options,
    output_options,
    run_options,
    with_options,
)
from ghosttrace.cli.output import exit_if_invalid, load_and_show_progress, print_result

if TYPE_CHECKING:
    from ghosttrace.patching.result import PatchResult


@with_options(model_options, law_options, run_options, output_options)
def patch(
    ctx: typer.Context,
    model: ModelName = "toy-mixed",
    traces: Annotated[
        list[str] | None,
        typer.Option(
            help="Traces to seal: a JSON, JSONL, Parquet or text file, the folder of an ablate run, or a hub id of a "
            "data set. Can be repeated. Default: the reference responses of --bench."
        ),
    ] = None,
    bench: Annotated[
        str,
        typer.Option(
            help="Comma-separated benchmarks with reference responses, such as ledger; used without --traces."
        ),
    ] = "ledger-h1,ledger-h3",
    limit: Annotated[int, typer.Option(help="Maximum number of traces per source.")] = 20,
    kind: Annotated[
        str | None,
        typer.Option(
            help="Intervention to measure: seal or swap. Default: both, or seal alone if there are no counterfactual "
            "texts."
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            help="0-based index of the block whose memento is patched, or with another --law of the erasure; -1 is the "
            "last one. Default: all of them, one after the other."
        ),
    ] = None,
    parts: Annotated[
        int,
        typer.Option(
            help="Maximum number of runs of tokens into which the text of a memento, or with another --law of the "
            "tokens that could see what left, is divided."
        ),
    ] = 8,
    seed: Annotated[int, typer.Option(help="Random seed of the benchmark's problems and of the donors.")] = 0,
    batch_tokens: Annotated[
        int, typer.Option(help="Maximum number of tokens per batch, patched copies included.")
    ] = 65_536,
) -> None:
    """Seal and swap the retained cache by layer, token, keys and values, and measure which parts carry the answer.

    Exit codes: 0, all controls passed; 12, a control failed; 2, invalid input.
    """
    from ghosttrace.patching.result import PatchResult
    from ghosttrace.report.patching import patch_table

    options = gather_options(ctx, "patch")
    result = PatchResult.open(ctx.params["resume"]) if options is None else start_patch(ctx, options)
    print_result(result, ctx.params["format"], [patch_table(result.results, result.unit)])
    exit_if_invalid(result)


def start_patch(ctx: typer.Context, options: dict[str, Any]) -> "PatchResult":
    """Run `patch` with the gathered command-line options."""
    from ghosttrace.patching.run import patch as run_patch

    with load_and_show_progress(ctx, "patch", options) as (checkpoint, run):
        return run_patch(
            checkpoint,
            options["bench"],
            options["traces"] or None,
            **{name: options[name] for name in ("kind", "block", "parts", "limit", "seed", "batch_tokens")},
            **run,
        )
