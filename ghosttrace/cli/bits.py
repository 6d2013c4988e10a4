"""The command `ghosttrace bits`: its options, and the run that they name."""

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
    Traces,
    gather_options,
    load_as_told,
)
from ghosttrace.cli.output import print_verdict, reporting
from ghosttrace.ghost_bits.run import bits as measure_bits
from ghosttrace.report.ghost_bits import bits_table
from ghosttrace.runs.folder import default_folder


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
    device: Device = None,
    dtype: Dtype = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    map_delimiters: Mapping = None,
    out: Out = None,
    resume: Resume = None,
) -> None:
    """Measure on existing traces, token by token, what the ghost channel tells about the text that follows."""
    options = gather_options(ctx, "bits", out, resume)
    if options is not None:
        start_bits(options, out, resume)


def start_bits(options: dict[str, Any], out: Path | None, resume: Path | None) -> None:
    """Run `bits` with these options of its command line."""
    checkpoint, console = load_as_told(options), Console()
    folder = None if resume else out or default_folder("bits", checkpoint.name)
    with reporting(console, "bits", resume or folder or Path()) as progress:
        result = measure_bits(
            checkpoint,
            options["traces"] or None,
            options["bench"],
            options["arms"].split(","),
            **{name: options[name] for name in ("limit", "seed", "batch_tokens")},
            out=folder,
            resume=resume,
            progress=progress,
            options=options,
        )
    console.print(bits_table(result.results, result.configuration))
    print_verdict(console, result)
