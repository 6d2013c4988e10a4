"""The command `ghosttrace audit`: its options, and what they name."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ghosttrace.auditing.attacks import ATTACKS, Prompt, parse
from ghosttrace.auditing.defences import Defence
from ghosttrace.auditing.marked import Excluded, marked_task, read_marks
from ghosttrace.auditing.plan import Plan
from ghosttrace.cli.options import (
    BatchTokens,
    Delimiters,
    Device,
    Dtype,
    Hops,
    KeepLast,
    Layers,
    Limit,
    Mapping,
    Mlp,
    ModelName,
    Out,
    PoolName,
    Resume,
    Samples,
    SecretBench,
    SecretBlock,
    SecretName,
    Seed,
    Targets,
    Traces,
    WithinTraces,
    gather_options,
    load_as_told,
)
from ghosttrace.cli.probe import NATURAL, settings_of, targeted, task_of
from ghosttrace.data.task import Task
from ghosttrace.data.tokens import traces_of
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.evidence import family
from ghosttrace.probing.ledger import ledger_prompts
from ghosttrace.probing.secrets import secret_kind
from ghosttrace.runs.folder import read_json


def audit(
    ctx: typer.Context,
    model: ModelName = "toy-open",
    bench: SecretBench = "ledger-h3",
    traces: Traces = None,
    secret: SecretName = "digits:5",
    secrets: Annotated[
        Path | None, typer.Option(help="Instead: JSONL of secrets that stand there: trace, block, text, label.")
    ] = None,
    block: SecretBlock = 1,
    targets: Targets = None,
    samples: Samples = 8000,
    limit: Limit = None,
    attacks: Annotated[str, typer.Option(help="A list.")] = ",".join(ATTACKS),
    defence: Annotated[
        str, typer.Option(help="What is done to the retained cache; --defence list names all.")
    ] = "none",
    max_leak_bits: Annotated[float, typer.Option(help="Bits a secret that may leak: what the exit code tells.")] = 0.1,
    fpr: Annotated[float | None, typer.Option(help="False claims that membership may make; 0.01 by default.")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What a user types to get a secret, its parts in braces: 'It was {digit-0}'; or more."),
    ] = None,
    carriers: Annotated[
        str | None,
        typer.Option(help="Where probes look: mementos, and delimiters where they are kept, unless given."),
    ] = None,
    hops: Hops = "0,1",
    layers: Layers = None,
    kv: Annotated[str, typer.Option(help="Keys (k), values (v), both as one (kv): a list.")] = "k,v",
    pool: PoolName = "all",
    mlp: Mlp = True,
    within_traces: WithinTraces = False,
    utility_limit: Annotated[int, typer.Option(help="Problems on which a defence's accuracy is measured.")] = 100,
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
    """Audit what can be recovered of erased blocks. Exit code 0: nothing detected; 10: a leak; 11: too few traces;
    12: a control failed; 2: bad input.
    """
    if defence == "list":
        from ghosttrace.auditing.defences import DEFENCES

        for name, kind in DEFENCES.items():
            typer.echo(f"{kind.usage or name}: {kind.summary}")
        return
    options = gather_options(ctx, "audit", out, resume)
    if options is None and resume is not None:  # finished, but for reports that could not be written
        from ghosttrace.report.audit.page import write_reports

        write_reports(resume)
        raise typer.Exit(int(read_json(resume / "summary.json", "exit_code")["exit_code"]))
    raise typer.Exit(start_audit(options or {}, out, resume))


def start_audit(options: dict[str, Any], out: Path | None, resume: Path | None) -> int:
    """Run `audit` with these options of its command line; return its exit code."""
    from ghosttrace.auditing.defences import defence
    from ghosttrace.report.audit.run import run  # brings matplotlib and scikit-learn

    chosen = tuple(dict.fromkeys(options["attacks"].split(",")))
    if not set(chosen) <= set(ATTACKS):
        raise UserError(f"--attacks is a list of {', '.join(ATTACKS)}, not {options['attacks']!r}")
    if not {"attribute", "behavioural", "collision"} & set(chosen):
        raise UserError("--attacks needs one that counts bits for the verdict: attribute, behavioural or collision")
    if not options["max_leak_bits"] > 0 or not (options["fpr"] is None or 0 < options["fpr"] < 1):
        raise UserError("--max-leak-bits is above 0, --fpr between 0 and 1")
    if min(options["samples"], options["utility_limit"], options["batch_tokens"]) < 1:
        raise UserError("--samples, --utility-limit and --batch-tokens are at least 1")
    protection = defence(options["defence"])
    checkpoint = load_as_told(options)
    protection.check(checkpoint)
    options = options | {"carriers": options["carriers"] or retained_carriers(checkpoint, protection)}
    settings = replace(settings_of(options | {"by_head": False, "joint": False}), describe=False)
    if "hidden" in settings.kv:
        raise UserError("an audit reads what is retained, keys and values: leave hidden out of --kv")
    settings.check(checkpoint)
    whole, excluded = secrets_of(options, checkpoint, max(settings.hops))
    task = targeted(whole, options)
    prompts = prompts_of(options, whole, task, checkpoint)
    plan = Plan(chosen, options["max_leak_bits"], options["fpr"], prompts)
    return run(checkpoint, task, settings, protection, plan, excluded, out, resume, options)


def retained_carriers(checkpoint: Checkpoint, protection: Defence) -> str:
    """All tokens of a pair that the defence retains: a kept `<|block_end|>` has seen its whole block."""
    law = protection.arm(checkpoint).law(checkpoint.policy)
    return "memento" if law.mask_delimiters else "memento,delimiters"


def secrets_of(options: dict[str, Any], checkpoint: Checkpoint, hops: int) -> tuple[Task, list[Excluded]]:
    """The traces and their secrets, and those left out.

    Raises:
        UserError: there are none as asked.
    """
    if options["secrets"] is None:
        return task_of(options, checkpoint, hops), []
    if not options["traces"]:
        raise UserError("--secrets marks what stands in traces: give them with --traces")
    traces = traces_of(checkpoint, options["traces"], options["limit"])
    return marked_task(traces, checkpoint, read_marks(Path(options["secrets"])), hops)


def prompts_of(options: dict[str, Any], whole: Task, task: Task, checkpoint: Checkpoint) -> dict[str, Prompt]:
    """What is typed to get each secret.

    Args:
        options: of the command line.
        whole: with all its targets.
        task: with those that are audited; slots of a prompt that ask for others are filled in by the model.
        checkpoint: whose tokenizer to use.

    Raises:
        UserError: a prompt asks for no part of any secret, or for what there is not.
    """
    names = [target.name for target in task.targets]
    found = {}
    for text in options["prompt"] or built_in(options):
        asked = [name for name in names if f"{{{name}}}" in text]
        if asked:
            stem = family(asked[0])
            secret = stem if stem.endswith("*") else task.name
            found[secret] = parse(text, whole.targets, names, checkpoint.tokenizer)
        elif options["prompt"]:
            parts = ", ".join(f"{{{name}}}" for name in names)
            raise UserError(f"--prompt {text!r} asks for nothing: put parts of the secret in braces: {parts}")
    return found


def built_in(options: dict[str, Any]) -> list[str]:
    """The prompts that go with a kind of secret; none with those that were not planted."""
    if options["secrets"] is not None or (options["traces"] and options["secret"].partition(":")[0] in NATURAL):
        return []
    if options["traces"]:
        return [secret_kind(options["secret"]).prompt]
    return list(ledger_prompts(int(options["bench"][-1])).values())
