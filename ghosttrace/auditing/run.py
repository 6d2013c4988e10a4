"""`audit`: measure which secrets of erased blocks can be recovered from a defended cache, and decide a verdict."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ghosttrace.ablation.settings import as_list
from ghosttrace.auditing.attacks import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.cost import measure_cost_and_utility
from ghosttrace.auditing.defences import Defence
from ghosttrace.auditing.defended_caches import read_caches
from ghosttrace.auditing.findings import run_attacks
from ghosttrace.auditing.result import AuditResult
from ghosttrace.auditing.settings import (
    AuditSettings,
    check_attacks,
    resolve_attacks,
    resolve_defence,
    retained_carriers,
)
from ghosttrace.auditing.subject import AuditSubject, SecretSource, make_subject
from ghosttrace.auditing.summary import result_rows, summarise_audit
from ghosttrace.bench import Bench
from ghosttrace.data.tokens import TraceSources
from ghosttrace.model.checkpoint import Checkpoint, as_checkpoint
from ghosttrace.model.pool import ModelPool, maybe_pool
from ghosttrace.model.provenance import provenance
from ghosttrace.probing.carriers import CarrierKind, Pooling, secret_carrier
from ghosttrace.probing.evidence import PROBE_RECORDS
from ghosttrace.probing.places import Role
from ghosttrace.probing.probes import UnusualTraces
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.shared_features import share
from ghosttrace.probing.site import Kv
from ghosttrace.probing.split import Split, split
from ghosttrace.probing.sweep import Sweep, probe_targets, text_baseline_rows
from ghosttrace.probing.traces_file import write_traces
from ghosttrace.runs.call import python_call
from ghosttrace.runs.folder import stable_repr
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.runs.writer import RunWriter, begin_run
from ghosttrace.stats import ALPHA


def audit(
    model: str | Path | Checkpoint = "toy-open",
    bench: str | Bench = "ledger-h3",
    traces: TraceSources | None = None,
    secret: str = "digits:5",
    *,
    secrets: str | Path | None = None,
    law: str | None = None,
    block: int | None = None,
    role: Role = "tool",
    targets: Sequence[str] | None = None,
    samples: int = 8000,
    limit: int | None = None,
    attacks: str | Sequence[str | Attack] | None = None,
    defence: str | Defence = "none",
    max_leak_bits: float | None = None,
    max_exposed: float = 0.01,
    fpr: float | None = None,
    prompts: Sequence[str] | None = None,
    carriers: Sequence[CarrierKind] | None = None,
    hops: Sequence[int] = (0, 1),
    layers: Sequence[int] | None = None,
    kv: Sequence[Kv] = ("k", "v"),
    pool: Pooling = "all",
    mlp: bool = True,
    within_traces: bool = False,
    utility_limit: int = 100,
    batch_tokens: int = 16_384,
    seed: int = 0,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
    ray: str | None = None,
    workers: int | None = None,
) -> AuditResult:
    """Audit which secrets of erased blocks can be recovered from the retained cache.

    Args:
        model: Name of a model for `ghosttrace.load`, or a loaded checkpoint.
        bench: Benchmark with planted secrets, by name or as an object; used if `traces` is None.
        traces: Traces in which the secret is planted or searched: files, run folders, hub ids, or token traces.
        secret: Kind of secret to plant, or to search in the blocks; see `ghosttrace.probing.tasks.make_task`.
        secrets: File that marks secrets in the traces, instead of `secret`; see `ghosttrace.auditing.marked_secrets`.
        law: Specification of a law, such as `tools:0`, that replaces the checkpoint's own.
        block, role, samples, limit, targets: See `ghosttrace.probing.tasks.make_task`.
        attacks: Names in `ghosttrace.auditing.attacks.ATTACKS`, or attacks of your own. None: all attacks.
        defence: Name of a defence with its options, such as `noise:0.5`, or a defence of your own.
        max_leak_bits: Limit of the mean leak, bits per secret. None: 0.1, or a tenth of the bits that the text leaves
            unknown of a secret if that is less.
        max_exposed: Limit of the share of traces whose whole secret is guessed.
        fpr: Target false-positive rate of the membership attack. None: 1 %, if validation has enough traces.
        prompts: Prompts that a user types to get a secret, its parts in braces. None: prompts of the kind of secret.
        carriers: Carriers to probe. None: mementos, and delimiters if the defence keeps them; under other laws those of
            `ghosttrace.probing.carriers.default_carriers`.
        hops, layers, kv, pool, mlp, within_traces: See `ghosttrace.probing.settings.ProbeSettings`.
        utility_limit: Number of problems on which the accuracy of a defence is measured.
        batch_tokens: Tokens per batch, padding included.
        seed: Random seed of traces, secrets, splits and probes.
        out: Folder of a new run. None keeps the run in memory.
        resume: Folder of a run to continue.
        progress: Called with (current step, steps done, total steps).
        options: Command-line options, recorded so that `--resume` needs no other options.
        ray, workers: Address of a Ray cluster that does the work, and the number of workers on it; see
            `ghosttrace.model.pool.model_pool`. None works here.

    Raises:
        UserError: The arguments do not allow an audit.
    """
    call = python_call(audit, locals())
    probes = ProbeSettings(
        hops=tuple(dict.fromkeys(map(int, hops))),
        layers=None if layers is None else tuple(sorted(set(map(int, layers)))) or None,
        kv=tuple(dict.fromkeys(kv)),
        pool=pool,
        mlp=mlp,
        probes=(UnusualTraces(),),
        describe=False,
        within_traces=within_traces,
        seed=seed,
    )
    settings = AuditSettings(
        resolve_attacks(None if attacks is None else as_list(attacks)),
        resolve_defence(defence),
        probes,
        max_leak_bits,
        max_exposed,
        fpr,
        utility_limit,
        batch_tokens,
    )
    checkpoint = as_checkpoint(model, law)
    settings.defence.check(checkpoint)
    kinds = tuple(dict.fromkeys(carriers or retained_carriers(checkpoint, settings.defence)))
    settings = replace(settings, probes=replace(probes, kinds=kinds))
    settings.probes.check(checkpoint)
    marks = None if secrets is None else Path(secrets)
    source = SecretSource(bench, traces or None, secret, marks, block, role, samples, limit, max(probes.hops), seed)
    subject = make_subject(checkpoint, source, targets, prompts, utility_limit)
    return run_audit(
        checkpoint,
        subject,
        settings,
        out=out,
        resume=resume,
        progress=progress or no_progress,
        options=options,
        call=call,
        ray=ray,
        workers=workers,
    )


def run_audit(
    checkpoint: Checkpoint,
    subject: AuditSubject,
    settings: AuditSettings,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: Progress = no_progress,
    options: Mapping[str, Any] | None = None,
    call: str | None = None,
    ray: str | None = None,
    workers: int | None = None,
) -> AuditResult:
    """Run an audit.

    Args:
        checkpoint: Model, tokenizer, markup and policy.
        subject: Traces with secrets, prompts and problems.
        settings: Attacks, defence, probes and limit.
        out, resume, progress, options, ray, workers: See `audit`.
        call: Call of `audit` as text, recorded so that the run can be repeated.

    Raises:
        UserError: The subject and the settings do not allow an audit.
    """
    task, probes = subject.task, settings.probes
    task.check()
    data_split = split(task.samples, probes.seed, probes.within_traces)
    context = AuditContext(
        checkpoint,
        task,
        data_split,
        settings.defence.arm(checkpoint),
        probes,
        prompts=subject.prompts,
        fpr=settings.fpr,
    )
    check_attacks(settings.attacks, context)
    run_configuration = configuration(checkpoint, subject, settings, data_split, options or {}, call)
    with (
        maybe_pool(checkpoint, ray, workers) as pool,
        begin_run(out, resume, run_configuration, PROBE_RECORDS) as run,
    ):
        context = replace(context, arm=settings.defence.fit(checkpoint, task, data_split), records=run.records)
        context = probe_caches(context, settings, run, progress, pool)
        findings = run_attacks(context, settings.attacks, progress, pool)
        progress("cost of the defence", 0, 1)
        cost = measure_cost_and_utility(checkpoint, task.samples, context.arm, subject.benches, probes.seed)
        progress("cost of the defence", 1, 1)
        summary = summarise_audit(context, findings, settings, subject, cost)
        order = sorted(run.records.keys(), key=str)
        unknown_bits = {secret: context.unknown_bits(secret) for secret in context.secrets}
        result = run.finish(
            AuditResult, order, not findings.failures, result_rows(findings, settings, unknown_bits), **summary
        )
        if result.folder is not None:
            shutil.rmtree(result.folder / "features")
            result.report()
        return result


def probe_caches(
    context: AuditContext, settings: AuditSettings, run: RunWriter, progress: Progress, pool: ModelPool | None = None
) -> AuditContext:
    """Read the caches and probe them at every site.

    Args:
        context: Context with the fitted defence.
        settings: Settings of the audit.
        run: Run whose records are filled; probes on record are not fitted again.
        progress: Called with (current step, steps done, total steps).
        pool: Workers that read and fit; None works here.

    Returns:
        The context with targets, limits, features, records and alpha.

    Raises:
        UserError: The limit is not well below the bits of a secret that the text leaves unknown.
    """
    checkpoint, task, probes = context.checkpoint, context.task, context.settings
    if run.folder is not None:
        write_traces(run.folder / "traces.parquet", checkpoint, task, context.split)
    targets, text_baseline_targets = probe_targets(checkpoint, task, context.split)
    context = replace(context, targets=targets)
    limits = settings.limits({secret: context.unknown_bits(secret) for secret in context.secrets})
    features = read_caches(
        checkpoint, task, probes, context.arm, run.scratch / "features", settings.batch_tokens, progress, pool
    )
    features = features if pool is None else share(features)
    for row in text_baseline_rows(task, targets, text_baseline_targets, context.split):
        run.records.add(row)
    secret = secret_carrier(task.samples)
    secrets = tuple(map(tuple, context.secrets.values()))
    Sweep(checkpoint, probes, context.split, features, targets, secret, secrets).run(
        run.records, partial(progress, "probes"), pool
    )
    n_gated = sum(attack.n_gated(context) for attack in settings.attacks)
    return replace(context, limits=limits, features=features, alpha=ALPHA / max(1, n_gated))


def configuration(
    checkpoint: Checkpoint,
    subject: AuditSubject,
    settings: AuditSettings,
    data_split: Split,
    options: Mapping[str, Any],
    call: str | None = None,
) -> dict[str, Any]:
    """Return everything that affects the results of an audit, for run.json."""
    task = subject.task
    return provenance("audit", checkpoint, options, call) | {
        **task.describe(),
        "split": data_split.describe(),
        "settings": settings.probes.to_dict() | {"batch_tokens": settings.batch_tokens},
        "defence": stable_repr(settings.defence),
        "attacks": [stable_repr(attack) for attack in settings.attacks],
        "prompts": {secret: prompt.text for secret, prompt in subject.prompts.items()},
        "gate": {name: getattr(settings, name) for name in ("max_leak", "max_exposed", "fpr", "utility_limit")},
    }
