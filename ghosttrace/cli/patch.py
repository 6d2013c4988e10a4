"""The command `ghosttrace patch`: its options, and the run that they name."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ghosttrace.cli.options import (
    Delimiters,
    Device,
    Dtype,
    KeepLast,
    Mapping,
    ModelName,
    Out,
    Resume,
    gather_options,
    load_as_told,
)
from ghosttrace.cli.output import print_verdict, reporting
from ghosttrace.cli.probe import CONTROL_FAILED
from ghosttrace.patching.run import patch as run_patch
from ghosttrace.report.patching import patch_table, site_set_text
from ghosttrace.runs.folder import default_folder


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
    device: Device = None,
    dtype: Dtype = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    map_delimiters: Mapping = None,
    out: Out = None,
    resume: Resume = None,
) -> None:
    """Seal and swap the cache part by part: which layer, token, keys or values carry what was erased."""
    options = gather_options(ctx, "patch", out, resume)
    if options is not None and not start_patch(options, out, resume):
        raise typer.Exit(CONTROL_FAILED)


def start_patch(options: dict[str, Any], out: Path | None, resume: Path | None) -> bool:
    """Run `patch` with these options of its command line; return whether its controls held."""
    checkpoint, console = load_as_told(options), Console()
    folder = None if resume else out or default_folder("patch", checkpoint.name)
    with reporting(console, "patch", resume or folder or Path()) as progress:
        result = run_patch(
            checkpoint,
            options["bench"],
            options["traces"] or None,
            **{name: options[name] for name in ("kind", "block", "parts", "limit", "seed", "batch_tokens")},
            out=folder,
            resume=resume,
            progress=progress,
            options=options,
        )
    console.print(patch_table(result.results))
    for row in result.site_sets:
        console.print(site_set_text(row), soft_wrap=True)
    print_verdict(console, result)
    return result.valid
