"""The command `ghosttrace probe`: its options, and the run that they name."""

from typing import Annotated, Any

import typer
from rich.console import Console

from ghosttrace.cli.options import ModelName, gather_options, model_options, run_options, with_options
from ghosttrace.cli.output import CONTROL_FAILED_EXIT_CODE, load_and_show_progress, print_verdict
from ghosttrace.cli.probe_options import Hops, Samples, SecretBench, probe_settings, secret_options
from ghosttrace.probing.carriers import CARRIERS
from ghosttrace.probing.result import ProbeResult
from ghosttrace.probing.run import probe as run_probe
from ghosttrace.report.probing.table import probe_table


@with_options(secret_options, model_options, run_options)
def probe(
    ctx: typer.Context,
    model: ModelName = "toy-open",
    bench: SecretBench = "ledger-h3",
    samples: Samples = 6000,
    carriers: Annotated[str, typer.Option(help=f"Where to look, of {','.join(CARRIERS)}.")] = "memento",
    hops: Hops = "0,1,2",
    kv: Annotated[str, typer.Option(help="Keys (k), values (v), both as one (kv), hidden: a list.")] = "k,v",
    by_head: Annotated[bool, typer.Option(help="Each key-value head alone as well.")] = False,
    joint: Annotated[bool, typer.Option(help="All layers as one as well.")] = False,
    keep_features: Annotated[bool, typer.Option(help="Leave the features in the run folder.")] = False,
) -> None:
    """Probe what erased blocks leave in the cache: where, and how many bits beyond the text."""
    options = gather_options(ctx, "probe")
    result = ProbeResult.open(ctx.params["resume"]) if options is None else start_probe(ctx, options)
    if not result.valid:
        raise typer.Exit(CONTROL_FAILED_EXIT_CODE)


def start_probe(ctx: typer.Context, options: dict[str, Any]) -> ProbeResult:
    """Run `probe` with these options of its command line."""
    settings = probe_settings(options)
    names = ("hops", "layers", "kv", "by_head", "joint", "pool", "mlp", "within_traces", "seed")
    with load_and_show_progress(ctx, "probe", options) as (checkpoint, run):
        result = run_probe(
            checkpoint,
            options["bench"],
            options["traces"] or None,
            options["secret"],
            targets=None if options["targets"] is None else options["targets"].split(","),
            carriers=settings.kinds,
            **{name: getattr(settings, name) for name in names},
            **{name: options[name] for name in ("block", "samples", "limit", "keep_features", "batch_tokens")},
            **run,
        )
    Console().print(probe_table(result.results, result.valid))
    print_verdict(result)
    return result
