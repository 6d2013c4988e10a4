"""The command `ghosttrace audit`: its options, and how they start a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghosttrace.auditing.attacks import ATTACKS
from ghosttrace.auditing.defences import DEFENCES
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
from ghosttrace.cli.output import load_and_show_progress, print_result
from ghosttrace.cli.probe_options import Hops, Samples, SecretBench, probe_settings, secret_options
from ghosttrace.probing.carriers import CARRIERS

if TYPE_CHECKING:
    from ghosttrace.auditing.result import AuditResult


@with_options(secret_options, model_options, law_options, run_options, cluster_options, output_options)
def audit(
    ctx: typer.Context,
    model: ModelName = "toy-open",
    bench: SecretBench = "ledger-h3",
    secrets: Annotated[
        Path | None,
        typer.Option(
            help="JSONL file that marks secrets in the traces of --traces, used instead of --secret. Each line has "
            "trace, block, text and optionally label. Default: none."
        ),
    ] = None,
    samples: Samples = 8000,
    attacks: Annotated[
        str, typer.Option(help="Comma-separated attacks. The baseline, which reads the text alone, always runs.")
    ] = ",".join(ATTACKS),
    defence: Annotated[
        str, typer.Option(help="Defence applied to the retained cache; --defence list prints all defences.")
    ] = "none",
    max_leak_bits: Annotated[
        float | None,
        typer.Option(
            help="Allowed mean leak in bits per secret; a larger leak gives exit code 10. Default: 0.1, or a tenth of "
            "the bits that the text leaves unknown of a secret if that is less."
        ),
    ] = None,
    max_exposed: Annotated[
        float,
        typer.Option(
            help="Allowed share of traces whose whole secret is guessed, from 0 to 1; a larger one gives exit code 10."
        ),
    ] = 0.01,
    fpr: Annotated[
        float | None,
        typer.Option(help="Target false-positive rate of the membership attack, between 0 and 1. Default: 0.01."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="Text that asks a model for a secret, with the parts of the secret in braces: 'It was {digit-0}'. Can "
            "be repeated. Default: built-in prompts for the kind of secret."
        ),
    ] = None,
    carriers: Annotated[
        str | None,
        typer.Option(
            help=f"Comma-separated carriers to probe, from {', '.join(CARRIERS)}. Default: memento, and delimiters if "
            "they are retained; under other laws delimiters and after."
        ),
    ] = None,
    hops: Hops = "0,1",
    kv: Annotated[
        str, typer.Option(help="Comma-separated states to probe: keys (k), values (v) or both concatenated (kv).")
    ] = "k,v",
    utility_limit: Annotated[
        int, typer.Option(help="Number of problems on which the accuracy under a defence is measured.")
    ] = 100,
) -> None:
    """Audit which secrets of erased blocks can be recovered from the retained cache.

    Exit codes: 0, no leak detected; 10, a leak; 11, too few traces; 12, a control failed; 2, invalid input.
    """
    if defence == "list":
        for name, kind in DEFENCES.items():
            typer.echo(f"{kind.usage or name}: {kind.summary}")
        return
    from ghosttrace.auditing.result import AuditResult
    from ghosttrace.report.audit.table import audit_notes, audit_table

    options = gather_options(ctx, "audit")
    if options is None:  # the run is finished, but its reports may be missing
        result = AuditResult.open(ctx.params["resume"])
        result.report()
    else:
        result = start_audit(ctx, options)
    summary = result.summary
    table = audit_table(summary["results"])
    print_result(result, ctx.params["format"], [table], audit_notes(summary))
    raise typer.Exit(result.exit_code)


def start_audit(ctx: typer.Context, options: dict[str, Any]) -> "AuditResult":
    """Run `audit` with the gathered command-line options."""
    from ghosttrace.auditing.run import audit as run_audit

    probes = probe_settings({**options, "by_head": False, "joint": False})
    run_names = ("bench", "secret", "secrets", "block", "role", "samples", "limit", "defence", "fpr")
    limit_names = ("max_leak_bits", "max_exposed")
    probe_names = ("hops", "layers", "kv", "pool", "mlp", "within_traces", "seed")
    with load_and_show_progress(ctx, "audit", options) as (checkpoint, run):
        return run_audit(
            checkpoint,
            traces=options["traces"] or None,
            targets=None if options["targets"] is None else options["targets"].split(","),
            attacks=options["attacks"].split(","),
            prompts=options["prompt"] or None,
            carriers=None if options["carriers"] is None else probes.kinds,
            **{name: options[name] for name in (*run_names, *limit_names, "utility_limit", "batch_tokens")},
            **{name: getattr(probes, name) for name in probe_names},
            **run,
        )
