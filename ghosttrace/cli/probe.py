"""The command `ghosttrace probe`: its options, and the task that they name."""

import re
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ghosttrace.bench import LEDGERS
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
    numbers,
)
from ghosttrace.data.task import Task
from ghosttrace.data.tokens import traces_of
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.carriers import Kind, Pool
from ghosttrace.probing.ledger import ledger_task
from ghosttrace.probing.natural import natural_task
from ghosttrace.probing.plant import plant
from ghosttrace.probing.secrets import secret_kind
from ghosttrace.probing.sweep import Kv, Settings
from ghosttrace.runs.folder import read_json

CONTROL_FAILED = 12  # exit code
NATURAL = ("last-number", "operation", "regex")
CARRIERS = tuple(kind for kind in get_args(Kind) if kind != "secret")


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
    from ghosttrace.report.probing.run import run  # brings matplotlib and scikit-learn

    settings = settings_of(options)
    limit = 1 if options["limit"] is None else options["limit"]
    if min(options["samples"], options["batch_tokens"], limit) < 1:
        raise UserError("--samples, --limit and --batch-tokens are at least 1")
    checkpoint = load_as_told(options)
    settings.check(checkpoint)
    task = targeted(task_of(options, checkpoint, max(settings.hops)), options)
    found = run(checkpoint, task, settings, out, resume, options, options["keep_features"], options["batch_tokens"])
    return found.valid


def targeted(task: Task, options: dict[str, Any]) -> Task:
    """The task, asked for the targets that the options name."""
    return task if options["targets"] is None else task.only(options["targets"].split(","))


def task_of(options: dict[str, Any], checkpoint: Checkpoint, hops: int) -> Task:
    """The traces and their secrets.

    Raises:
        UserError: there are none as asked.
    """
    if options["block"] < 1:
        raise UserError("--block is at least 1: a memento must stand before the secret, for the causal control")
    if options["traces"]:
        found = traces_of(checkpoint, options["traces"], options["limit"])
        if options["secret"].partition(":")[0] in NATURAL:
            return natural_task(found, checkpoint, options["secret"], hops)
        kind = secret_kind(options["secret"])
        return plant(found, checkpoint, kind, options["block"], options["samples"], hops, options["seed"])
    if options["bench"] not in LEDGERS:
        known = ", ".join(LEDGERS)
        raise UserError(f"{options['bench']} has no secrets of its own: give --traces, or a --bench of {known}")
    return ledger_task(checkpoint, int(options["bench"][-1]), options["samples"], options["seed"], options["block"])
