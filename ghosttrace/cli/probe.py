"""The command `ghosttrace probe`: its options, and how they start a run."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghosttrace.cli.options import (
    ModelName,
    cluster_options,
    gather_options,
    law_options,
    model_options,
    output_options,
    run_options,
    with_options,
)
from ghosttrace.cli.output import exit_if_invalid, load_and_show_progress, print_result
from ghosttrace.cli.probe_options import Hops, Samples, SecretBench, probe_settings, secret_options
from ghosttrace.probing.carriers import CARRIERS

if TYPE_CHECKING:
    from ghosttrace.probing.result import ProbeResult


@with_options(secret_options, model_options, law_options, run_options, cluster_options, output_options)
def probe(
    ctx: typer.Context,
    model: ModelName = "toy-open",
    bench: SecretBench = "ledger-h3",
    samples: Samples = 6000,
    carriers: Annotated[
        str | None,
        typer.Option(
            help=f"Comma-separated carriers to probe, from {', '.join(CARRIERS)}. Default: memento; under other laws "
            "delimiters and after."
        ),
    ] = None,
    hops: Hops = "0,1,2",
    kv: Annotated[
        str,
        typer.Option(
            help="Comma-separated states to probe: keys (k), values (v), both concatenated (kv) or hidden states "
            "(hidden)."
        ),
    ] = "k,v",
    by_head: Annotated[bool, typer.Option(help="Also probe each key-value head separately.")] = False,
    joint: Annotated[bool, typer.Option(help="Also probe the states of all layers concatenated.")] = False,
    keep_features: Annotated[
        bool, typer.Option(help="Keep the extracted states in the run folder; they can be large.")
    ] = False,
) -> None:
    """Probe retained states for secrets of erased blocks, and measure the bits beyond the text at each site.

    Exit codes: 0, all controls passed; 12, a control failed; 2, invalid input.
    """
    from ghosttrace.probing.result import ProbeResult
    from ghosttrace.report.probing.table import probe_table

    options = gather_options(ctx, "probe")
    result = ProbeResult.open(ctx.params["resume"]) if options is None else start_probe(ctx, options)
    table = probe_table(result.results, result.configuration)
    print_result(result, ctx.params["format"], [table])
    exit_if_invalid(result)


def start_probe(ctx: typer.Context, options: dict[str, Any]) -> "ProbeResult":
    """Run `probe` with the gathered command-line options."""
    from ghosttrace.probing.run import probe as run_probe

    settings = probe_settings(options)
    names = ("hops", "layers", "kv", "by_head", "joint", "pool", "mlp", "within_traces", "seed")
    with load_and_show_progress(ctx, "probe", options) as (checkpoint, run):
        return run_probe(
            checkpoint,
            options["bench"],
            options["traces"] or None,
            options["secret"],
            targets=None if options["targets"] is None else options["targets"].split(","),
            carriers=None if options["carriers"] is None else settings.kinds,
            **{name: getattr(settings, name) for name in names},
            **{name: options[name] for name in ("block", "role", "samples", "limit", "keep_features", "batch_tokens")},
            **run,
        )
