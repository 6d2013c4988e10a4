"""The command `ghosttrace patch`: its options, and the run that they name."""

from typing import Annotated

import typer
from rich.console import Console

from ghosttrace.cli.options import ModelName, gather_options, model_options, run_options, with_options
from ghosttrace.cli.output import CONTROL_FAILED_EXIT_CODE, load_and_show_progress, print_verdict
from ghosttrace.patching.run import patch as run_patch
from ghosttrace.report.patching import patch_table, site_set_text


@with_options(model_options, run_options)
def patch(
    ctx: typer.Context,
    model: ModelName = "toy-mixed",
    traces: Annotated[
        list[str] | None,
        typer.Option(
            help="JSON, JSONL, Parquet or text, a run of ablate, or a hub id; only seals. May be given again."
        ),
    ] = None,
    bench: Annotated[
        str, typer.Option(help="Without --traces: comma-separated benches that know their own, such as ledger.")
    ] = "ledger-h1,ledger-h3",
    limit: Annotated[int, typer.Option(help="Traces of each source.")] = 50,
    kind: Annotated[str | None, typer.Option(help="seal or swap alone; both where a bench can, unless given.")] = None,
    block: Annotated[int, typer.Option(help="Whose memento, from 0; -1 is the last, -2 the one before it.")] = -1,
    parts: Annotated[int, typer.Option(help="Cut the text of longer mementos into this many runs of tokens.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the bench's problems and of the donors.")] = 0,
    batch_tokens: Annotated[int, typer.Option(help="Tokens read together, patched copies included.")] = 65_536,
) -> None:
    """Seal and swap the cache part by part: which layer, token, keys or values carry what was erased."""
    options = gather_options(ctx, "patch")
    if options is None:
        return
    with load_and_show_progress(ctx, "patch", options) as (checkpoint, run):
        result = run_patch(
            checkpoint,
            options["bench"],
            options["traces"] or None,
            **{name: options[name] for name in ("kind", "block", "parts", "limit", "seed", "batch_tokens")},
            **run,
        )
    Console().print(patch_table(result.results))
    for row in result.site_sets:
        Console().print(site_set_text(row), soft_wrap=True)
    print_verdict(result)
    if not result.valid:
        raise typer.Exit(CONTROL_FAILED_EXIT_CODE)
