"""`audit`: what can be recovered of erased blocks from the cache that a defence leaves, by whom, and a verdict."""

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
from ghosttrace.model.provenance import provenance
from ghosttrace.probing import sweep
from ghosttrace.probing.carriers import CarrierKind, Pooling, secret_carrier
from ghosttrace.probing.evidence import ALPHA, PROBE_RECORDS
from ghosttrace.probing.split import Split, split
from ghosttrace.probing.sweep import Kv, Sweep, probe_targets, text_baseline_rows
from ghosttrace.probing.traces_file import write_traces
from ghosttrace.runs.folder import stable_repr
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.runs.writer import RunWriter, begin_run


def audit(
    model: str | Path | Checkpoint = "toy-open",
    bench: str | Bench = "ledger-h3",
    traces: TraceSources | None = None,
    secret: str = "digits:5",
    *,
    secrets: str | Path | None = None,
    block: int = 1,
    targets: Sequence[str] | None = None,
    samples: int = 8000,
    limit: int | None = None,
    attacks: str | Sequence[str | Attack] | None = None,
    defence: str | Defence = "none",
    max_leak_bits: float = 0.1,
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
) -> AuditResult:
    """Audit what can be recovered of erased blocks.

    Args:
        model: a name for `ghosttrace.load`, or what it returned.
        bench: without traces, a benchmark with secrets of its own, by name or as an object.
        traces: what the secret is planted in or looked for: files, run folders, hub ids, or traces in tokens.
        secret: what is planted, or what blocks hold anyway; see `ghosttrace.probing.tasks.make_task`.
        secrets: instead, a file that marks secrets in the traces; see `ghosttrace.auditing.marked_secrets`.
        block, samples, limit, targets: see `ghosttrace.probing.tasks.make_task`.
        attacks: names in `ghosttrace.auditing.attacks.ATTACKS`, or attacks of your own; all by default.
        defence: what is done to the retained cache, such as `noise:0.5`, or a defence of your own.
        max_leak_bits: bits a secret that may leak.
        fpr: target false-positive rate of the membership attack; None: 1 %, if there are traces enough.
        prompts: what a user types to get a secret, its parts in braces; None: those of the kind of secret.
        carriers: where probes look; None: mementos, and delimiters where the defence keeps them.
        hops, layers, kv, pool, mlp, within_traces: see `ghosttrace.probing.sweep.ProbeSettings`.
        utility_limit: problems on which a defence's accuracy is measured.
        batch_tokens: tokens read together, padding included.
        seed: of traces, secrets, splits and probes.
        out: the folder of a new run; None keeps it in memory.
        resume: the folder of a run to go on with.
        progress: called with (what is under way, steps done, steps in all).
        options: the command line's, recorded so that `--resume` needs no others.

    Raises:
        UserError: anything that cannot be audited as asked.
    """
    probes = sweep.ProbeSettings(
        hops=tuple(dict.fromkeys(map(int, hops))),
        layers=None if layers is None else tuple(sorted(set(map(int, layers)))) or None,
        kv=tuple(dict.fromkeys(kv)),
        pool=pool,
        mlp=mlp,
        describe=False,
        within_traces=within_traces,
        seed=seed,
    )
    settings = AuditSettings(
        resolve_attacks(None if attacks is None else as_list(attacks)),
        resolve_defence(defence),
        probes,
        max_leak_bits,
        fpr,
        utility_limit,
        batch_tokens,
    )
    checkpoint = as_checkpoint(model)
    settings.defence.check(checkpoint)
    kinds = tuple(dict.fromkeys(carriers or retained_carriers(checkpoint, settings.defence)))
    settings = replace(settings, probes=replace(probes, kinds=kinds))
    settings.probes.check(checkpoint)
    marks = None if secrets is None else Path(secrets)
    source = SecretSource(bench, traces or None, secret, marks, block, samples, limit, max(probes.hops), seed)
    subject = make_subject(checkpoint, source, targets, prompts, utility_limit)
    return run_audit(
        checkpoint, subject, settings, out=out, resume=resume, progress=progress or no_progress, options=options
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
) -> AuditResult:
    """Audit a subject with these settings.

    Args:
        checkpoint: the model and its law.
        subject: what is audited.
        settings: how.
        out, resume, progress, options: see `audit`.

    Raises:
        UserError: anything that cannot be audited as asked.
    """
    task, probes = subject.task, settings.probes
    task.check()
    parts = split(task.samples, probes.seed, probes.within_traces)
    more: dict[str, Any] = {"prompts": subject.prompts, "fpr": settings.fpr, "max_leak": settings.max_leak}
    context = AuditContext(checkpoint, task, parts, settings.defence.arm(checkpoint), probes, **more)
    check_attacks(settings.attacks, context)
    decided = configuration(checkpoint, subject, settings, parts, options or {})
    with begin_run(out, resume, decided, PROBE_RECORDS) as run:
        context = replace(context, arm=settings.defence.fit(checkpoint, task, parts), records=run.records)
        context = probe_caches(context, settings, run, progress)
        found = run_attacks(context, settings.attacks, progress)
        progress("the defence's cost", 0, 1)
        spent = measure_cost_and_utility(checkpoint, task.samples, context.arm, subject.benches, probes.seed)
        progress("the defence's cost", 1, 1)
        summary = summarise_audit(context, found, settings, subject, spent)
        order = sorted(run.records.keys(), key=str)
        result = run.finish(AuditResult, order, not found.failures, result_rows(found, settings), **summary)
        if result.folder is not None:
            shutil.rmtree(result.folder / "features")
            result.report()
        return result


def probe_caches(context: AuditContext, settings: AuditSettings, run: RunWriter, progress: Progress) -> AuditContext:
    """Read the caches and probe them at every site; the context with targets, features and records.

    Args:
        context: with the fitted defence.
        settings: of the audit.
        run: whose records are filled; what is there is not done again.
        progress: called with (what is under way, steps done, steps in all).
    """
    checkpoint, task, probes = context.checkpoint, context.task, context.settings
    if run.folder is not None:
        write_traces(run.folder / "traces.parquet", checkpoint, task, context.split)
    features = read_caches(
        checkpoint, task, probes, context.arm, run.scratch / "features", settings.batch_tokens, progress
    )
    asked, plain = probe_targets(checkpoint, task, context.split)
    for row in text_baseline_rows(task, asked, plain, context.split):
        run.records.add(row)
    own = secret_carrier(task.samples)
    Sweep(checkpoint, probes, context.split, features, asked, own, context.device).run(
        run.records, partial(progress, "probes")
    )
    gated = sum(attack.n_gated(context) for attack in settings.attacks)
    return replace(context, targets=asked, features=features, alpha=ALPHA / max(1, gated))


def configuration(
    checkpoint: Checkpoint, subject: AuditSubject, settings: AuditSettings, parts: Split, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides an audit's numbers, for run.json."""
    task = subject.task
    return provenance("audit", checkpoint, options) | {
        **task.describe(),
        "split": parts.describe(),
        "settings": settings.probes.to_dict() | {"batch_tokens": settings.batch_tokens},
        "defence": stable_repr(settings.defence),
        "attacks": [stable_repr(attack) for attack in settings.attacks],
        "prompts": {secret: prompt.text for secret, prompt in subject.prompts.items()},
        "gate": {name: getattr(settings, name) for name in ("max_leak", "fpr", "utility_limit")},
    }
