"""`bits`: measure ghost bits token by token on fixed traces."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from ghosttrace.ablation.arms import ARMS, Arm, Part, PlaceboArm
from ghosttrace.ablation.settings import as_list, check_arm_names, make_arm
from ghosttrace.bench import Bench, as_benches
from ghosttrace.bench.reference_traces import reference_traces
from ghosttrace.data.tokens import TokenTrace, TraceSources, load_traces
from ghosttrace.errors import UserError
from ghosttrace.ghost_bits.likelihood import first_measured_index
from ghosttrace.ghost_bits.measure import BITS_TABLE, measure
from ghosttrace.ghost_bits.result import BitsResult
from ghosttrace.ghost_bits.summary import failed_controls, summarise
from ghosttrace.law.expiry import MementoLaw
from ghosttrace.law.law import Law
from ghosttrace.law.log import Log
from ghosttrace.model.checkpoint import Checkpoint, as_checkpoint
from ghosttrace.model.pool import maybe_pool
from ghosttrace.model.provenance import provenance
from ghosttrace.runs.call import python_call
from ghosttrace.runs.folder import REFERENCE_ARM, json_rows, stable_repr
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.runs.writer import begin_run

BATCH_TOKENS = {"gpu": 65_536, "cpu": 4_096}
"""Default maximum of tokens per batch. A killed run loses a batch: on a CPU, large ones take long and gain nothing."""


def bits(
    model: str | Path | Checkpoint = "toy-mixed",
    traces: TraceSources | None = None,
    bench: str | Bench | Sequence[str | Bench] = "ledger",
    arms: str | Sequence[str | Arm] = ("restart",),
    *,
    law: str | None = None,
    limit: int = 100,
    seed: int = 0,
    batch_tokens: int | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
    ray: str | None = None,
    workers: int | None = None,
) -> BitsResult:
    """Measure ghost bits, log2 p(token | normal cache) - log2 p(token | altered cache), on fixed traces.

    Args:
        model: a bundled name, a folder, a hub id, or a checkpoint returned by `ghosttrace.load`.
        traces: files, run folders of ablations, hub ids of data sets, or tokenized traces. None takes the sequences of
            an eviction log if that is the law, else `bench`.
        bench: benchmarks with reference responses, by name or as objects; used if `traces` is None.
        arms: arms to compare with `memento`. The control `placebo` always runs.
        law: specification of a law, such as `window:64,16`, that replaces the checkpoint's.
        limit: maximum number of traces per source.
        seed: random seed of the benchmark's problems.
        batch_tokens: maximum number of tokens per batch, including padding. None: `BATCH_TOKENS` of the device.
        out: folder of a new run. None keeps the run in memory.
        resume: folder of an unfinished run to continue.
        progress: called with (name of the step, traces done, number of traces).
        options: command-line options to record in run.json, so that `--resume` needs no others.
        ray, workers: address of a Ray cluster that does the work, and the number of workers on it; see
            `ghosttrace.model.pool.model_pool`. None works here.

    Returns:
        The finished run.

    Raises:
        UserError: an argument is invalid, or no trace has text after an erasure.
    """
    call = python_call(bits, locals())
    if min(limit, 1 if batch_tokens is None else batch_tokens) < 1:
        raise UserError("--limit and --batch-tokens must be at least 1")
    compared_arms = _resolve_arms(as_list(arms))
    checkpoint = as_checkpoint(model, law)
    batch_tokens = batch_tokens or BATCH_TOKENS["cpu" if checkpoint.model.device.type == "cpu" else "gpu"]
    if traces is None and isinstance(checkpoint.law, Log):
        traces = traces_of_log(checkpoint.law, limit)
    benches = as_benches(bench, limit, seed) if traces is None else []
    loaded = reference_traces(checkpoint, *benches) if traces is None else load_traces(checkpoint, traces, limit)
    for arm in compared_arms:
        arm.adapt_law(checkpoint.law)  # raises if the policy erases nothing
    if all(first_measured_index(trace.ids, checkpoint.law) == len(trace.ids) for trace in loaded):
        raise UserError(nothing_to_measure(checkpoint.law))
    order = [(trace.source, trace.name, arm.name) for trace in loaded for arm in compared_arms]
    run_configuration = configuration(checkpoint, loaded, compared_arms, batch_tokens, options or {}, call)
    with (
        maybe_pool(checkpoint, ray, workers) as pool,
        begin_run(out, resume, run_configuration, BITS_TABLE) as run,
    ):
        measure(checkpoint, loaded, compared_arms, run.records, batch_tokens, progress or no_progress, pool)
        results = summarise(run.records.get(key) for key in order)
        ceilings = {item.name: item.ceiling_under(checkpoint.law) for item in benches}
        failures = failed_controls(results, {arm.name: arm for arm in compared_arms}, ceilings)
        return run.finish(BitsResult, order, not failures, json_rows(results), failures=list(failures))


def _resolve_arms(arms: Sequence[str | Arm]) -> list[Arm]:
    """Return the arms by name or as they are, followed by the control.

    Raises:
        UserError: an arm does not exist, or needs counterfactual blocks.
    """
    allowed = [name for name, kind in ARMS.items() if not kind.needs_counterfactuals and name != REFERENCE_ARM]
    for arm in arms:
        if isinstance(arm, str) and arm not in allowed:
            raise UserError(f"bits cannot run the arm {arm!r}: choose --arms from {', '.join(allowed)}")
    resolved = [make_arm(arm, Part(), 0.5) for arm in arms]
    unusable = next((arm.name for arm in resolved if arm.needs_counterfactuals), None)
    if unusable:
        raise UserError(f"{unusable} needs counterfactual blocks, which fixed traces do not have: remove this arm")
    check_arm_names(arms, [REFERENCE_ARM, PlaceboArm.name])
    return list({arm.name: arm for arm in (*resolved, PlaceboArm())}.values())


def configuration(
    checkpoint: Checkpoint,
    traces: Sequence[TokenTrace],
    arms: Sequence[Arm],
    batch_tokens: int,
    options: Mapping[str, Any],
    call: str | None = None,
) -> dict[str, Any]:
    """Return the content of run.json: everything that determines the results, and what the report needs."""
    digest = sha256()
    for trace in traces:
        digest.update(repr((trace.source, trace.name, trace.prompt, trace.response)).encode())
    return provenance("bits", checkpoint, options, call) | {
        "arms": {arm.name: arm.describe(checkpoint.law) | {"settings": stable_repr(arm)} for arm in arms},
        "traces": {"count": len(traces), "sha256": digest.hexdigest()},
        "settings": {"batch_tokens": batch_tokens},
    }


def nothing_to_measure(law: Law) -> str:
    """Return the message for traces in which nothing is erased before the last token."""
    if isinstance(law, MementoLaw):
        return (
            "no trace has a finished block and memento with text after them: "
            "give traces that contain the model's delimiters"
        )
    return (
        f"no trace has text after an erasure of the law {law.spec}: give longer traces, or for text without an "
        "assistant's turn a law with prompt=0"
    )


def traces_of_log(law: Log, limit: int) -> list[TokenTrace]:
    """Return the sequences of an eviction log as traces without a prompt."""
    rows = law.sequences[:limit]
    return [TokenTrace(Path(law.path).name, str(number), [], row.tokens.tolist()) for number, row in enumerate(rows)]
