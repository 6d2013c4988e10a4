"""The command `ghosttrace trace`: its options, and the readings that they name."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ghosttrace.bench import load_bench
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
from ghosttrace.cli.probe import CONTROL_FAILED
from ghosttrace.data.tokens import reference_traces, traces_of
from ghosttrace.errors import UserError
from ghosttrace.patching import make_cases
from ghosttrace.report import patching as report_causal


def trace(
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
    options = gather_options(ctx, "trace", out, resume)
    if options is not None:
        start_trace(options, out, resume)


def start_trace(options: dict[str, Any], out: Path | None, resume: Path | None) -> None:
    """Run `trace` with these options of its command line; exit code 12 if a control failed."""
    if min(options["limit"], options["parts"], options["batch_tokens"]) < 1:
        raise UserError("--limit, --parts and --batch-tokens are at least 1")
    checkpoint, limit, seed = load_as_told(options), options["limit"], options["seed"]
    names = [] if options["traces"] else options["bench"].split(",")
    benches = [bench for name in names for bench in load_bench(name, limit, seed)]
    found = [trace for bench in benches for trace in reference_traces(checkpoint, bench)]
    found += traces_of(checkpoint, options["traces"] or [], limit)
    cases = make_cases(checkpoint, found, benches, options["block"], seed)
    results = report_causal.run(checkpoint, cases, options["batch_tokens"], options["parts"], out, resume, options)
    if not results["valid"].all():
        raise typer.Exit(CONTROL_FAILED)
