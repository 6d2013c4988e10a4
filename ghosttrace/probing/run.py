"""`probe`: measures information about a secret of an erased block in the retained cache, in bits beyond the text."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ghosttrace.bench import Bench
from ghosttrace.data.task import Task
from ghosttrace.data.tokens import TraceSources
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint, as_checkpoint
from ghosttrace.model.pool import ModelPool, maybe_pool
from ghosttrace.model.provenance import provenance
from ghosttrace.probing.carriers import CarrierKind, Pooling, default_carriers, secret_carrier
from ghosttrace.probing.evidence import CONDITIONS, PROBE_RECORDS, failed_controls, summarise
from ghosttrace.probing.features import extract_features
from ghosttrace.probing.paired_sweep import PairedSweep, needs_pairing, paired_selections, swapped_task
from ghosttrace.probing.places import Role
from ghosttrace.probing.probes import Probe
from ghosttrace.probing.result import ProbeResult
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.shared_features import share
from ghosttrace.probing.site import Kv
from ghosttrace.probing.split import Split, split
from ghosttrace.probing.sweep import Sweep, probe_targets, state_selections, text_baseline_rows
from ghosttrace.probing.tasks import make_task
from ghosttrace.probing.traces_file import write_traces
from ghosttrace.runs.call import python_call
from ghosttrace.runs.folder import json_rows
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.runs.records import RecordKey
from ghosttrace.runs.writer import RunWriter, begin_run


def probe(
    model: str | Path | Checkpoint = "toy-open",
    bench: str | Bench = "ledger-h3",
    traces: TraceSources | None = None,
    secret: str = "digits:5",
    *,
    task: Task | None = None,
    law: str | None = None,
    block: int | None = None,
    role: Role = "tool",
    targets: Sequence[str] | None = None,
    samples: int = 6000,
    limit: int | None = None,
    carriers: Sequence[CarrierKind] | None = None,
    hops: Sequence[int] = (0, 1, 2),
    layers: Sequence[int] | None = None,
    kv: Sequence[Kv] = ("k", "v"),
    by_head: bool = False,
    joint: bool = False,
    pool: Pooling = "all",
    mlp: bool = True,
    probes: Sequence[Probe] = (),
    within_traces: bool = False,
    keep_features: bool = False,
    batch_tokens: int = 16_384,
    seed: int = 0,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
    ray: str | None = None,
    workers: int | None = None,
) -> ProbeResult:
    """Probe retained keys and values for a secret of an erased block.

    Args:
        model: A name for `ghosttrace.load`, or a loaded checkpoint.
        bench, traces, secret, block, role, samples, limit: See `ghosttrace.probing.tasks.make_task`.
        law: Specification of a law, such as `tools:0`, that replaces the checkpoint's own.
        task: A task to use in place of one made from those arguments.
        targets: Shell patterns of the targets to probe (`note-*`); None for all.
        carriers: Carriers to probe; None for those of `ghosttrace.probing.carriers.default_carriers`.
        hops, layers, kv, by_head, joint, pool, mlp, probes, within_traces, seed: See
            `ghosttrace.probing.settings.ProbeSettings`.
        keep_features: Keep the extracted states, which are large, in the run folder.
        batch_tokens: Maximum number of tokens per batch, padding included.
        out: Folder of a new run; None keeps the run in memory.
        resume: Folder of a run to resume.
        progress: Called with (description, steps done, total steps).
        options: Options of the command line, recorded for `--resume`.
        ray, workers: Address of a Ray cluster that does the work, and the number of workers on it; see
            `ghosttrace.model.pool.model_pool`. None works here.

    Returns:
        The bits beyond the text of every probe, and whether all controls held.

    Raises:
        UserError: An argument is invalid, or the model or the traces do not support it.
    """
    call = python_call(probe, locals())
    if min(samples, batch_tokens, 1 if limit is None else limit) < 1:
        raise UserError("--samples, --limit and --batch-tokens must be at least 1")
    if keep_features and out is None and resume is None:
        raise UserError("--keep-features needs a run folder: give out=FOLDER too")
    settings = ProbeSettings(
        kinds=("memento",) if carriers is None else tuple(carriers),
        hops=tuple(map(int, hops)),
        layers=None if layers is None else tuple(sorted(set(map(int, layers)))) or None,
        kv=tuple(kv),
        by_head=by_head,
        joint=joint,
        pool=pool,
        mlp=mlp,
        probes=tuple(probes),
        within_traces=within_traces,
        seed=seed,
    )
    checkpoint = as_checkpoint(model, law)
    settings = settings if carriers is not None else replace(settings, kinds=default_carriers(checkpoint))
    settings.check(checkpoint)
    if task is None:
        arguments: dict[str, Any] = {
            "block": block,
            "role": role,
            "samples": samples,
            "hops": max(hops),
            "limit": limit,
            "seed": seed,
        }
        task = make_task(checkpoint, bench, traces, secret, **arguments)
    task = task if targets is None else task.select_targets(targets)
    task.check()
    parts = split(task.samples, seed, within_traces)
    run_configuration = configuration(checkpoint, task, settings, parts, options or {}, call)
    with (
        maybe_pool(checkpoint, ray, workers) as started,
        begin_run(out, resume, run_configuration, PROBE_RECORDS) as run,
    ):
        if run.folder is not None:
            write_traces(run.folder / "traces.parquet", checkpoint, task, parts)
        _extract_and_fit(run, checkpoint, task, settings, parts, batch_tokens, progress or no_progress, started)
        order = sorted(run.records.keys(), key=_sort_key)
        results = summarise((run.records.get(key) for key in order), task, parts)
        failures = failed_controls(results)
        result = run.finish(ProbeResult, order, not failures, json_rows(results), failures=list(failures))
        if not keep_features:
            shutil.rmtree(run.scratch / "features")
    return result


def _extract_and_fit(
    run: RunWriter,
    checkpoint: Checkpoint,
    task: Task,
    settings: ProbeSettings,
    parts: Split,
    batch_tokens: int,
    progress: Progress,
    pool: ModelPool | None,
) -> None:
    """Extract the features and fit every probe that has no record yet."""
    secret, folder = secret_carrier(task.samples), run.scratch / "features"
    paired = needs_pairing(task)
    selections = {selection.cache: selection for selection in state_selections(checkpoint, settings, secret)}
    if paired:
        selections = paired_selections(checkpoint, settings, secret)
    features = {
        cache: extract_features(
            checkpoint,
            swapped_task(task, checkpoint, settings.seed) if cache == "swapped" else task,
            selection,
            folder / cache,
            batch_tokens,
            partial(progress, f"{cache} cache"),
            pool=pool,
        )
        for cache, selection in selections.items()
    }
    targets, text_targets = probe_targets(checkpoint, task, parts)
    for row in text_baseline_rows(task, targets, text_targets, parts):
        run.records.add(row)
    shared = features if pool is None else share(features)
    sweep = (PairedSweep if paired else Sweep)(checkpoint, settings, parts, shared, targets, secret)
    sweep.run(run.records, partial(progress, "probes"), pool)


def _sort_key(key: RecordKey) -> tuple[Any, ...]:
    """Return a sort key that makes the order of records independent of interruptions of the run."""
    return (CONDITIONS.index(key[0]), key[1], key[2], *(str(part).rjust(6) for part in key[3:]))


def configuration(
    checkpoint: Checkpoint,
    task: Task,
    settings: ProbeSettings,
    parts: Split,
    options: Mapping[str, Any],
    call: str | None = None,
) -> dict[str, Any]:
    """Return everything that determines the results of a run, for run.json."""
    return provenance("probe", checkpoint, options, call) | {
        **task.describe(),
        "split": parts.describe(),
        "settings": settings.to_dict(),
    }
