"""Run an ablation: the same checkpoint, problems and random draws with an open, sealed or altered cache."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ghosttrace.ablation import decomposition
from ghosttrace.ablation.arms import Arm, Part
from ghosttrace.ablation.backend import Backend, HuggingFaceBackend, largest_batch_size
from ghosttrace.ablation.collect import BenchArm, DonorBlocks, collect
from ghosttrace.ablation.decomposable import check_request
from ghosttrace.ablation.erased import law_erased_nothing, nothing_erased, nothing_swapped
from ghosttrace.ablation.on_workers import GroupWorker, collect_from_workers
from ghosttrace.ablation.result import AblationResult
from ghosttrace.ablation.samples import SAMPLE_TABLE, SMALL_COLUMNS
from ghosttrace.ablation.settings import AblationSettings, as_list
from ghosttrace.ablation.summary import at_k, failed_controls, headline_arm, summarise
from ghosttrace.bench import Bench, as_benches
from ghosttrace.errors import RunWarning, UserError
from ghosttrace.law.markup import DELIMITERS
from ghosttrace.model.checkpoint import Checkpoint, as_checkpoint
from ghosttrace.model.erasure_config import require_memento
from ghosttrace.model.geometry import CacheGeometry
from ghosttrace.model.pool import maybe_pool
from ghosttrace.model.prompts import template_hash
from ghosttrace.model.provenance import provenance
from ghosttrace.model.sampling import Sampling
from ghosttrace.runs.call import python_call
from ghosttrace.runs.folder import REFERENCE_ARM, json_rows, read_configuration
from ghosttrace.runs.progress import Progress, no_progress
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
    margin: float | None = None,
    decompose: bool = False,
    law: str | None = None,
    backend: Backend | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    ray: str | None = None,
    workers: int | None = None,
) -> AblationResult:
    """Run an ablation and return its result.

    Args:
        model: Name or path for `ghosttrace.load`, or a loaded checkpoint.
        bench: Names for `ghosttrace.bench.load_bench` (separated by commas, or a list), or `Bench` objects.
        arms: Names of arms (separated by commas, or a list), or `Arm` objects. None means the default arms.
        repetitions: See `ghosttrace.ablation.settings.AblationSettings`.
        limit: See `AblationSettings`.
        seed: See `AblationSettings`.
        batch_size: See `AblationSettings`.
        sampling: See `AblationSettings`.
        part: See `AblationSettings`. None means the whole cache.
        noise: See `AblationSettings`.
        margin: See `AblationSettings`.
        decompose: See `AblationSettings`. The result's `decompose()` does the same later.
        law: Specification of a law, such as `window:64,16`, that replaces the checkpoint's.
        backend: Engine that generates the samples. None means the checkpoint's own model.
        out: Folder of a new run. None keeps the run in memory.
        resume: Folder of a run to resume.
        progress: Called with (benchmark and arm, samples done, samples in total).
        ray: Address of a Ray cluster that does the work, see `ghosttrace.model.pool.model_pool`. None works here.
        workers: Number of workers on it, each with the whole model.

    Returns:
        Samples, effects, figures and the report page.

    Raises:
        UserError: The request is invalid. It is raised before any sample is generated.

    Example:
        >>> run = ablate("toy-mixed", "ledger-h3", ["swap"], limit=2)
        >>> run.results.set_index("arm").loc["swap", "follows_donor"]  # 1.0: every answer follows the swapped block
        np.float64(1.0)
    """
    call = python_call(ablate, locals())
    settings = AblationSettings(
        arms=None if arms is None else tuple(as_list(arms)),
        repetitions=repetitions,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        sampling=dict(sampling or {}),
        part=part or Part(),
        noise=noise,
        margin=margin,
        decompose=decompose,
    )
    checkpoint = as_checkpoint(model, law)
    benches = as_benches(bench, limit, seed)
    place: dict[str, Any] = {"out": out, "resume": resume, "progress": progress, "ray": ray, "workers": workers}
    return run_ablation(checkpoint, benches, settings, backend, call=call, **place)


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
    call: str | None = None,
    ray: str | None = None,
    workers: int | None = None,
) -> AblationResult:
    """Run an ablation with given settings; `ablate` and the command line call this function.

    Args:
        checkpoint: The loaded checkpoint.
        benches: The benchmarks.
        settings: Arms, repetitions and sampling.
        backend: Engine that generates the samples. None means the checkpoint's own model.
        out: See `ablate`.
        resume: See `ablate`.
        progress: See `ablate`.
        options: Options of the command line, recorded so that `--resume` needs no other options.
        call: Call of `ablate` as text, recorded so that the run can be repeated.
        ray, workers: See `ablate`.

    Returns:
        Samples, effects, figures and the report page.

    Raises:
        UserError: The run cannot start or cannot continue. A run that cannot start creates no folder. A run that
            stops keeps its finished samples.
    """
    backend = backend or HuggingFaceBackend()
    bench_arms = plan_bench_arms(checkpoint, benches, settings, backend)
    if settings.decompose:
        default = plan_bench_arms(checkpoint, benches, replace(settings, arms=None), backend)
        applicable = {bench_arm.arm.name for bench_arm in default}
        check_request(benches, settings, applicable, checkpoint.other_law is not None)
    recorded = _recorded_sizes(resume)
    batch_size = settings.batch_size or recorded.get("batch_size") or largest_batch_size(bench_arms)
    batches = backend.batches_per_group if resume is None else recorded.get("batches_per_group", 1)
    settings = replace(settings, batch_size=batch_size)
    run_configuration = configuration(bench_arms, settings, backend, options or {}, call, batches)
    for bench in benches:
        if len(bench.problems) != min(bench.size, settings.limit or bench.size):
            sizes = f"{bench.size} problems, and {bench.origin} holds {len(bench.problems)}"
            warnings.warn(f"{bench.name} has {sizes}: results are not comparable", RunWarning, stacklevel=2)
    engine = {} if ray is None else {"gpus_per_worker": backend.gpus, "device": backend.model_device}
    pool = maybe_pool(checkpoint, ray, workers, **engine)
    with pool as started, begin_run(out, resume, run_configuration, SAMPLE_TABLE) as run:
        if started is not None:
            worker = GroupWorker(bench_arms, batch_size, batch_size * batches, backend)
            collect_from_workers(started, worker, run.records, progress or no_progress)
        else:
            with backend.open(bench_arms, batch_size) as write:
                collect(bench_arms, run.records, batch_size * batches, write, progress or no_progress)
        order = [key for bench_arm in bench_arms for key in bench_arm.keys]
        samples = run.records.frame(order, SMALL_COLUMNS)
        bytes_per_token = CacheGeometry.from_config(checkpoint.model.config).bytes_per_token(checkpoint.model.dtype)
        results = summarise(samples, bytes_per_token, None if settings.margin is None else settings.margin / 100)
        arms = {bench_arm.arm.name: bench_arm.arm for bench_arm in bench_arms}
        if checkpoint.other_law is None:
            failures = nothing_erased(samples, arms, checkpoint.policy)
        else:
            failures = law_erased_nothing(run.records, order, checkpoint.other_law)
            failures += nothing_swapped(samples, arms)
        failures += failed_controls(results, arms, benches, settings.part, checkpoint.law)
        decomposed = decomposition.decompose(samples, run_configuration) if settings.decompose else None
        return run.finish(
            AblationResult,
            order,
            not failures,
            json_rows(results),
            failures=list(failures),
            headline_arm=headline_arm(arms.values()),
            at_k=json_rows(at_k(samples)),
            **({} if decomposed is None else {"decomposition": json_rows(decomposed)}),
        )


def plan_bench_arms(
    checkpoint: Checkpoint, benches: Sequence[Bench], settings: AblationSettings, backend: Backend | None = None
) -> list[BenchArm]:
    """Return every combination of benchmark and arm, each benchmark's reference first.

    Default arms that the checkpoint, the benchmark or the backend does not support are skipped.

    Raises:
        UserError: A requested arm cannot run, or a benchmark has no problems.
    """
    geometry = CacheGeometry.from_config(checkpoint.model.config)
    settings.part.check(geometry.layers, geometry.kv_heads)
    empty = next((bench.name for bench in benches if not bench.problems), None)
    if empty is not None:
        raise UserError(f"{empty} holds no problems: give a benchmark with at least one problem")
    backend = backend or HuggingFaceBackend()
    if checkpoint.other_law is not None:
        if checkpoint.other_law.replayed:
            raise UserError(f"{checkpoint.other_law.spec} replays recorded tokens, and ablate generates: use bits")
        if not backend.any_law:
            require_memento(checkpoint.other_law.spec, f"the backend {backend.name}")
    return [bench_arm for bench in benches for bench_arm in _bench_arms(checkpoint, bench, settings, backend)]


def _bench_arms(checkpoint: Checkpoint, bench: Bench, settings: AblationSettings, backend: Backend) -> list[BenchArm]:
    bench_arms = []
    sampling, repetitions = sampling_for(bench, settings), settings.repetitions or bench.protocol.repetitions
    for arm in settings.chosen_arms():
        donors = DonorBlocks(bench, checkpoint.tokenizer, settings.seed)
        try:
            arm.adapt_law(checkpoint.law)
            arm.check(checkpoint.model)
            if arm.needs_counterfactuals and bench.counterfactual is None:
                raise UserError(f"{arm.name} needs a benchmark that can write counterfactual blocks, such as ledger")
            if settings.arms is None and backend.arms is not None and arm.name not in backend.arms:
                continue
        except UserError:
            if settings.arms is not None or arm.name == REFERENCE_ARM:
                raise
            continue
        bench_arms.append(
            BenchArm(checkpoint, bench, arm.with_donors(donors), donors, sampling, repetitions, settings.seed)
        )
    return bench_arms


def sampling_for(bench: Bench, settings: AblationSettings) -> Sampling:
    """Return the sampling parameters of the benchmark's protocol, overridden by the settings."""
    protocol = bench.protocol
    fields = {name: getattr(protocol, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k", "min_p")}
    return Sampling(**fields | {name: value for name, value in settings.sampling.items() if value is not None})


def _recorded_sizes(resume: str | Path | None) -> dict[str, int]:
    """Return the numbers in the settings of the run to resume, which must use the same groups and batches."""
    settings = {} if resume is None else read_configuration(Path(resume), "ablate").get("settings")
    numbers = settings.items() if isinstance(settings, dict) else ()
    return {name: number for name, number in numbers if isinstance(number, int)}


def configuration(
    bench_arms: Sequence[BenchArm],
    settings: AblationSettings,
    backend: Backend,
    options: Mapping[str, Any],
    call: str | None = None,
    batches_per_group: int = 1,
) -> dict[str, Any]:
    """Return the configuration for run.json: everything that determines the samples or that reports need."""
    groups = {"batches_per_group": batches_per_group} if batches_per_group > 1 else {}  # older runs have no such key
    checkpoint = bench_arms[0].checkpoint
    benches = {bench_arm.bench.name: bench_arm.bench for bench_arm in bench_arms}.values()
    family = checkpoint.model.config.model_type
    ids = dict(zip(DELIMITERS, checkpoint.markup.delimiters, strict=True)) if checkpoint.markup.has_delimiters else {}
    return provenance("ablate", checkpoint, options, call) | {
        "arms": {bench_arm.arm.name: bench_arm.arm.describe(checkpoint.law) for bench_arm in bench_arms},
        "markup": asdict(checkpoint.markup),
        "delimiters": {name: checkpoint.tokenizer.convert_ids_to_tokens(token) for name, token in ids.items()},
        "benches": {
            bench.name: {
                "origin": bench.origin,
                "sha256": bench.digest,
                "problems": len(bench.problems),
                "ceiling": bench.ceiling_under(checkpoint.law),
                "condition": None if bench.condition is None else asdict(bench.condition),
                "template": f"{bench.template.name}/{bench.template.version}",
                "prompt_sha256": template_hash(checkpoint.tokenizer, family, bench.template),
                "sampling": asdict(sampling_for(bench, settings)),
                "repetitions": settings.repetitions or bench.protocol.repetitions,
            }
            for bench in benches
        },
        "settings": settings.to_dict() | groups | {"backend": backend.name, **backend.settings()},
    }
