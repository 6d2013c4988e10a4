"""The command `ghosttrace audit`: its options, and the run that they name."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ghosttrace.auditing.attacks import ATTACKS
from ghosttrace.auditing.defences import DEFENCES
from ghosttrace.auditing.result import AuditResult
from ghosttrace.auditing.run import audit as run_audit
from ghosttrace.cli.options import ModelName, gather_options, model_options, run_options, with_options
from ghosttrace.cli.output import load_and_show_progress
from ghosttrace.cli.probe_options import Hops, Samples, SecretBench, probe_settings, secret_options
from ghosttrace.probing.carriers import CARRIERS
from ghosttrace.report.audit.table import audit_lines, audit_table


@with_options(secret_options, model_options, run_options)
def audit(
    ctx: typer.Context,
    model: ModelName = "toy-open",
    bench: SecretBench = "ledger-h3",
    secrets: Annotated[
        Path | None, typer.Option(help="Instead: JSONL of secrets in the traces: trace, block, text, label.")
    ] = None,
    samples: Samples = 8000,
    attacks: Annotated[str, typer.Option(help="A list; the text alone, the baseline, always runs.")] = ",".join(
        ATTACKS
    ),
    defence: Annotated[
        str, typer.Option(help="What is done to the retained cache; --defence list names all.")
    ] = "none",
    max_leak_bits: Annotated[
        float, typer.Option(help="Bits a secret that may leak; the exit code says if more do.")
    ] = 0.1,
    fpr: Annotated[
        float | None, typer.Option(help="Target false-positive rate of the membership attack; 0.01 by default.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What a user types to get a secret, its parts in braces: 'It was {digit-0}'; or more."),
    ] = None,
    carriers: Annotated[
        str | None,
        typer.Option(help=f"Where probes look, of {','.join(CARRIERS)}; by default mementos and kept delimiters."),
    ] = None,
    hops: Hops = "0,1",
    kv: Annotated[str, typer.Option(help="Keys (k), values (v), both as one (kv): a list.")] = "k,v",
    utility_limit: Annotated[int, typer.Option(help="Problems on which a defence's accuracy is measured.")] = 100,
) -> None:
    """Audit what can be recovered of erased blocks. Exit code 0: nothing detected; 10: a leak; 11: too few traces;
    12: a control failed; 2: bad input.
    """
    if defence == "list":
        for name, kind in DEFENCES.items():
            typer.echo(f"{kind.usage or name}: {kind.summary}")
        return
    options = gather_options(ctx, "audit")
    if options is None:  # finished; its reports may not be written yet
        result = AuditResult.open(ctx.params["resume"])
        result.report()
    else:
        result = start_audit(ctx, options)
    raise typer.Exit(result.exit_code)


def start_audit(ctx: typer.Context, options: dict[str, Any]) -> AuditResult:
    """Run `audit` with these options of its command line."""
    probes = probe_settings({**options, "carriers": options["carriers"] or "memento", "by_head": False, "joint": False})
    plain = ("bench", "secret", "secrets", "block", "samples", "limit", "defence", "max_leak_bits", "fpr")
    names = ("hops", "layers", "kv", "pool", "mlp", "within_traces", "seed")
    with load_and_show_progress(ctx, "audit", options) as (checkpoint, run):
        result = run_audit(
            checkpoint,
            traces=options["traces"] or None,
            targets=None if options["targets"] is None else options["targets"].split(","),
            attacks=options["attacks"].split(","),
            prompts=options["prompt"] or None,
            carriers=None if options["carriers"] is None else probes.kinds,
            **{name: options[name] for name in (*plain, "utility_limit", "batch_tokens")},
            **{name: getattr(probes, name) for name in names},
            **run,
        )
    print_audit(Console(), result)
    return result


def print_audit(console: Console, result: AuditResult) -> None:
    """Print the table of findings, the verdict, and where everything is."""
    console.print(audit_table(result.summary["results"]))
    for line in audit_lines(result.summary):
        console.print(line)
    written = f"Written to {result.folder}: report.html, card.md, audit.sarif, summary.json"
    console.print(escape(written), soft_wrap=True)
