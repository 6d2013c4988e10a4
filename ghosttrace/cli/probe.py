"""The command `ghosttrace probe`: its options, and the run that they name."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ghosttrace.cli.options import (
    BatchTokens,
    Delimiters,
    Device,
    Dtype,
    KeepLast,
    Limit,
    Mapping,
    ModelName,
    Out,
    Resume,
    Traces,
    gather_options,
    load_as_told,
)
from ghosttrace.cli.output import print_verdict, reporting
from ghosttrace.cli.probe_options import (
    Hops,
    Layers,
    Mlp,
    PoolName,
    Samples,
    SecretBench,
    SecretBlock,
    SecretName,
    Seed,
    Targets,
    WithinTraces,
    settings_of,
)
from ghosttrace.probing.carriers import CARRIERS
from ghosttrace.probing.run import probe as run_probe
from ghosttrace.report.probing.table import probe_table
from ghosttrace.runs.folder import default_folder, read_json

CONTROL_FAILED = 12  # exit code


def probe(
    ctx: typer.Context,
    model: ModelName = "toy-open",
    bench: SecretBench = "ledger-h3",
    traces: Traces = None,
    secret: SecretName = "digits:5",
    block: SecretBlock = 1,
    targets: Targets = None,
    samples: Samples = 6000,
    limit: Limit = None,
    carriers: Annotated[str, typer.Option(help=f"Where to look, of {','.join(CARRIERS)}.")] = "memento",
    hops: Hops = "0,1,2",
    layers: Layers = None,
    kv: Annotated[str, typer.Option(help="Keys (k), values (v), both as one (kv), hidden: a list.")] = "k,v",
    by_head: Annotated[bool, typer.Option(help="Each key-value head alone as well.")] = False,
    joint: Annotated[bool, typer.Option(help="All layers as one as well.")] = False,
    pool: PoolName = "all",
    mlp: Mlp = True,
    within_traces: WithinTraces = False,
    keep_features: Annotated[bool, typer.Option(help="Leave the features in the run folder.")] = False,
    batch_tokens: BatchTokens = 16_384,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    mask_delimiters: Delimiters = None,
    keep_last_n_blocks: KeepLast = None,
    map_delimiters: Mapping = None,
    out: Out = None,
    resume: Resume = None,
) -> None:
    """Probe what erased blocks leave in the cache: where, and how many bits beyond the text."""
    options = gather_options(ctx, "probe", out, resume)
    if options is None and resume is not None:  # finished
        valid = bool(read_json(resume / "summary.json", "valid")["valid"])
    else:
        valid = start_probe(options or {}, out, resume)
    if not valid:
        raise typer.Exit(CONTROL_FAILED)


def start_probe(options: dict[str, Any], out: Path | None, resume: Path | None) -> bool:
    """Run `probe` with these options of its command line; return whether its controls held."""
    settings = settings_of(options)
    checkpoint, console = load_as_told(options), Console()
    folder = None if resume else out or default_folder("probe", checkpoint.name)
    names = ("hops", "layers", "kv", "by_head", "joint", "pool", "mlp", "within_traces", "seed")
    with reporting(console, "probe", resume or folder or Path()) as progress:
        result = run_probe(
            checkpoint,
            options["bench"],
            options["traces"] or None,
            options["secret"],
            targets=None if options["targets"] is None else options["targets"].split(","),
            carriers=settings.kinds,
            **{name: getattr(settings, name) for name in names},
            **{name: options[name] for name in ("block", "samples", "limit", "keep_features", "batch_tokens")},
            out=folder,
            resume=resume,
            progress=progress,
            options=options,
        )
    console.print(probe_table(result.results, result.valid))
    print_verdict(console, result)
    return result.valid
