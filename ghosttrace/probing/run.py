"""`probe`: what the retained cache tells about a secret in an erased block, in bits beyond the retained text."""

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ghosttrace.bench import Bench
from ghosttrace.data.task import Task
from ghosttrace.data.tokens import TraceSources
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint, as_checkpoint
from ghosttrace.model.provenance import provenance
from ghosttrace.probing.carriers import CarrierKind, Pooling, secret_carrier
from ghosttrace.probing.evidence import CONDITIONS, PROBE_RECORDS, failed_controls, summarise
from ghosttrace.probing.features import extract_features
from ghosttrace.probing.probes import Probe
from ghosttrace.probing.result import ProbeResult
from ghosttrace.probing.split import Split, split
from ghosttrace.probing.sweep import Kv, ProbeSettings, Sweep, probe_targets, state_selections, text_baseline_rows
from ghosttrace.probing.tasks import make_task
from ghosttrace.probing.traces_file import write_traces
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
    block: int = 1,
    targets: Sequence[str] | None = None,
    samples: int = 6000,
    limit: int | None = None,
    carriers: Sequence[CarrierKind] = ("memento",),
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
) -> ProbeResult:
    """Probe retained keys and values for a secret that stood in an erased block.

    Args:
        model: a name for `ghosttrace.load`, or what it returned.
        bench, traces, secret, block, samples, limit: see `ghosttrace.probing.tasks.make_task`.
        task: traces with secrets of your own, instead of those.
        targets: which parts of the secrets to ask for, as a shell matches names (`note-*`); all if None.
        carriers, hops, layers, kv, by_head, joint, pool, mlp, probes, within_traces, seed: see
            `ghosttrace.probing.sweep.ProbeSettings`.
        keep_features: leave the extracted states in the run folder; they are large.
        batch_tokens: tokens read together, padding included.
        out: the folder of a new run; None keeps it in memory.
        resume: the folder of a run to go on with.
        progress: called with (what, steps done, steps in all).
        options: the command line's, recorded so that `--resume` needs no others.

    Raises:
        UserError: anything that cannot be run as asked.
    """
    settings = ProbeSettings(
        kinds=tuple(carriers),
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
    if min(samples, batch_tokens, 1 if limit is None else limit) < 1:
        raise UserError("--samples, --limit and --batch-tokens are at least 1")
    if keep_features and out is None and resume is None:
        raise UserError("--keep-features keeps them in the run folder: give out=FOLDER too")
    checkpoint = as_checkpoint(model)
    settings.check(checkpoint)
    if task is None:
        chosen: dict[str, Any] = {"block": block, "samples": samples, "hops": max(hops), "limit": limit, "seed": seed}
        task = make_task(checkpoint, bench, traces, secret, **chosen)
    task = task if targets is None else task.select_targets(targets)
    task.check()
    parts = split(task.samples, seed, within_traces)
    decided = configuration(checkpoint, task, settings, parts, options or {})
    with begin_run(out, resume, decided, PROBE_RECORDS) as run:
        if run.folder is not None:
            write_traces(run.folder / "traces.parquet", checkpoint, task, parts)
        _fit(run, checkpoint, task, settings, parts, batch_tokens, progress or no_progress)
        order = sorted(run.records.keys(), key=_rank)
        results = summarise((run.records.get(key) for key in order), task, parts)
        failures = failed_controls(results)
        found = run.finish(ProbeResult, order, not failures, json_rows(results), failures=list(failures))
        if not keep_features:
            shutil.rmtree(run.scratch / "features")
    return found


def _fit(
    run: RunWriter,
    checkpoint: Checkpoint,
    task: Task,
    settings: ProbeSettings,
    parts: Split,
    batch_tokens: int,
    progress: Progress,
) -> None:
    """Extract the features and fit every probe that is not on record yet."""
    secret, folder = secret_carrier(task.samples), run.scratch / "features"
    features = {
        part.cache: extract_features(
            checkpoint, task, part, folder, batch_tokens, partial(progress, f"{part.cache} cache")
        )
        for part in state_selections(checkpoint, settings, secret)
    }
    asked, plain = probe_targets(checkpoint, task, parts)
    for row in text_baseline_rows(task, asked, plain, parts):
        run.records.add(row)
    sweep = Sweep(checkpoint, settings, parts, features, asked, secret, checkpoint.model.device)
    sweep.run(run.records, partial(progress, "probes"))


def _rank(key: RecordKey) -> tuple[Any, ...]:
    """An order of cells that does not depend on how often a run was interrupted."""
    return (CONDITIONS.index(key[0]), key[1], key[2], *(str(part).rjust(6) for part in key[3:]))


def configuration(
    checkpoint: Checkpoint, task: Task, settings: ProbeSettings, parts: Split, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides a run's numbers, for run.json."""
    return provenance("probe", checkpoint, options) | {
        **task.describe(),
        "split": parts.describe(),
        "settings": settings.to_dict(),
    }
