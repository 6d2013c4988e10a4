"""`ablate`: the same checkpoint, problems and draws with the ghost channel open, closed or altered."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ghosttrace.ablation.arms import Arm, Part
from ghosttrace.ablation.backend import Backend, HuggingFaceBackend, largest_batch_size
from ghosttrace.ablation.collect import BenchArm, DonorBlocks, SampleWriter
from ghosttrace.ablation.result import AblationResult
from ghosttrace.ablation.samples import SAMPLE_TABLE, SMALL_COLUMNS
from ghosttrace.ablation.settings import AblationSettings, as_list
from ghosttrace.ablation.summary import at_k, failed_controls, headline_arm, summarise
from ghosttrace.bench import Bench, as_benches
from ghosttrace.errors import RunWarning, UserError
from ghosttrace.law.markup import DELIMITERS
from ghosttrace.model.checkpoint import Checkpoint, as_checkpoint
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.model.prompts import template_hash
from ghosttrace.model.provenance import provenance
from ghosttrace.model.sampling import Sampling
from ghosttrace.runs.folder import REFERENCE_ARM, json_rows, read_configuration
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.runs.records import Records
from ghosttrace.runs.writer import begin_run


def ablate(
    model: str | Path | Checkpoint = "toy-mixed",
    bench: str | Bench | Sequence[str | Bench] = "ledger",
    arms: str | Sequence[str | Arm] | None = None,
    *,
    repetitions: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    sampling: Mapping[str, float | int | None] | None = None,
    part: Part | None = None,
    noise: float = 0.5,
    backend: Backend | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> AblationResult:
    """Run an ablation.

    Args:
        model: a name for `ghosttrace.load`, or what it returned.
        bench: names for `ghosttrace.bench.load_bench` (separated by commas, or a list), or benchmarks.
        arms, repetitions, limit, seed, batch_size, sampling, part, noise: see `ghosttrace.ablation.settings.AblationSettings`.
        backend: what writes the samples; the checkpoint's own model by default.
        out: the folder of a new run; None keeps it in memory.
        resume: the folder of a run to go on with.
        progress: called with (what runs, samples done, samples in all).

    Raises:
        UserError: anything that cannot be run as asked; it is raised before anything runs.
    """
    settings = AblationSettings(
        arms=None if arms is None else tuple(as_list(arms)),
        repetitions=repetitions,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        sampling=dict(sampling or {}),
        part=part or Part(),
        noise=noise,
    )
    checkpoint = as_checkpoint(model)
    benches = as_benches(bench, limit, seed)
    return run_ablation(checkpoint, benches, settings, backend, out=out, resume=resume, progress=progress)


def run_ablation(
    checkpoint: Checkpoint,
    benches: Sequence[Bench],
    settings: AblationSettings,
    backend: Backend | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
) -> AblationResult:
    """Run an ablation with these settings; `ablate` and the command line call it.

    Args:
        checkpoint, benches, settings, backend: what to run.
        out, resume, progress: see `ablate`.
        options: the command line's, recorded so that `--resume` needs no others.

    Raises:
        UserError: anything that cannot be run as asked. A run that has not begun leaves no folder; of one that
            has, what is done stays.
    """
    backend = backend or HuggingFaceBackend()
    cells = plan_bench_arms(checkpoint, benches, settings, backend)
    batch_size = settings.batch_size or _recorded_batch_size(resume) or largest_batch_size(cells)
    settings = replace(settings, batch_size=batch_size)
    decided = configuration(cells, settings, backend, options or {})
    for bench in benches:
        if len(bench.problems) != min(bench.size, settings.limit or bench.size):
            sizes = f"{bench.size} problems, and {bench.origin} holds {len(bench.problems)}"
            warnings.warn(f"{bench.name} has {sizes}: not the same test", RunWarning, stacklevel=2)
    with begin_run(out, resume, decided, SAMPLE_TABLE) as run:
        with backend.open(cells) as write:
            collect(cells, run.records, batch_size, write, progress or no_progress)
        order = [key for cell in cells for key in cell.keys]
        samples = run.records.frame(order, SMALL_COLUMNS)
        results = summarise(
            samples, CacheGeometry.from_config(checkpoint.model.config).bytes_per_token(checkpoint.model.dtype)
        )
        arms = {cell.arm.name: cell.arm for cell in cells}
        failures = failed_controls(results, arms, benches, settings.part, checkpoint.policy)
        return run.finish(
            AblationResult,
            order,
            not failures,
            json_rows(results),
            failures=list(failures),
            headline_arm=headline_arm(arms.values()),
            at_k=json_rows(at_k(samples)),
        )


def plan_bench_arms(
    checkpoint: Checkpoint, benches: Sequence[Bench], settings: AblationSettings, backend: Backend | None = None
) -> list[BenchArm]:
    """Every arm on every benchmark, each benchmark's reference first.

    Raises:
        UserError: an arm that was asked for by name cannot be run, or a benchmark has no problems.
    """
    geometry = CacheGeometry.from_config(checkpoint.model.config)
    settings.part.check(geometry.layers, geometry.kv_heads)
    empty = next((bench.name for bench in benches if not bench.problems), None)
    if empty is not None:
        raise UserError(f"{empty} holds no problems: give a benchmark that has some")
    backend = backend or HuggingFaceBackend()
    return [cell for bench in benches for cell in _bench_arms(checkpoint, bench, settings, backend)]


def _bench_arms(checkpoint: Checkpoint, bench: Bench, settings: AblationSettings, backend: Backend) -> list[BenchArm]:
    cells = []
    sampling, repetitions = sampling_for(bench, settings), settings.repetitions or bench.protocol.repetitions
    for arm in settings.chosen_arms():
        donors = DonorBlocks(bench, checkpoint.tokenizer, settings.seed)
        try:
            arm.adapt_policy(checkpoint.policy)
            arm.check(checkpoint.model)
            if arm.needs_counterfactuals and bench.counterfactual is None:
                raise UserError(f"{arm.name} needs a benchmark that can write counterfactual blocks, such as ledger")
            if settings.arms is None and backend.arms is not None and arm.name not in backend.arms:
                continue
        except UserError:
            if settings.arms is not None or arm.name == REFERENCE_ARM:
                raise
            continue
        cells.append(BenchArm(checkpoint, bench, arm.with_donors(donors), donors, sampling, repetitions, settings.seed))
    return cells


def sampling_for(bench: Bench, settings: AblationSettings) -> Sampling:
    """The benchmark's protocol with the user's settings on top."""
    protocol = bench.protocol
    fields = {name: getattr(protocol, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k", "min_p")}
    return Sampling(**fields | {name: value for name, value in settings.sampling.items() if value is not None})


def collect(
    cells: Sequence[BenchArm], records: Records, batch_size: int, write: SampleWriter, progress: Progress = no_progress
) -> None:
    """Take every sample of the cells that is not on record yet."""
    total, before = sum(len(cell.keys) for cell in cells), 0
    for cell in cells:

        def show(done: int, cell: BenchArm = cell, before: int = before) -> None:
            progress(f"{cell.bench.name} · {cell.arm.name}", before + done, total)

        cell.run(records, batch_size, write, show)
        before += len(cell.keys)


def _recorded_batch_size(resume: str | Path | None) -> int | None:
    """The batch size of the run to go on with, if any: batches stay as they were begun."""
    settings = {} if resume is None else read_configuration(Path(resume), "ablate").get("settings")
    size = settings.get("batch_size") if isinstance(settings, dict) else None
    return size if isinstance(size, int) else None


def configuration(
    cells: Sequence[BenchArm], settings: AblationSettings, backend: Backend, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides a run's samples, and all that a report of it needs, for run.json."""
    checkpoint, benches = cells[0].checkpoint, {cell.bench.name: cell.bench for cell in cells}.values()
    family = checkpoint.model.config.model_type
    ids = dict(zip(DELIMITERS, checkpoint.markup.delimiters, strict=True))
    return provenance("ablate", checkpoint, options) | {
        "arms": {cell.arm.name: cell.arm.describe(checkpoint.policy) for cell in cells},
        "markup": asdict(checkpoint.markup),
        "delimiters": {name: checkpoint.tokenizer.convert_ids_to_tokens(token) for name, token in ids.items()},
        "benches": {
            bench.name: {
                "origin": bench.origin,
                "sha256": bench.digest,
                "problems": len(bench.problems),
                "ceiling": bench.ceiling,
                "template": f"{bench.template.name}/{bench.template.version}",
                "prompt_sha256": template_hash(checkpoint.tokenizer, family, bench.template),
                "sampling": asdict(sampling_for(bench, settings)),
                "repetitions": settings.repetitions or bench.protocol.repetitions,
            }
            for bench in benches
        },
        "settings": settings.to_dict() | {"backend": backend.name, **backend.settings()},
    }
