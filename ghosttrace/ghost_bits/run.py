"""`bits`: what the ghost channel adds to the probability of the text that follows, token by token, on fixed traces."""

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
from ghosttrace.model.checkpoint import Checkpoint, as_checkpoint
from ghosttrace.model.provenance import provenance
from ghosttrace.runs.folder import REFERENCE_ARM, json_rows, stable_repr
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.runs.writer import begin_run


def bits(
    model: str | Path | Checkpoint = "toy-mixed",
    traces: TraceSources | None = None,
    bench: str | Bench | Sequence[str | Bench] = "ledger",
    arms: str | Sequence[str | Arm] = ("restart",),
    *,
    limit: int = 100,
    seed: int = 0,
    batch_tokens: int = 65_536,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
) -> BitsResult:
    """Measure ghost bits: log2 p(token | normal cache) - log2 p(token | altered cache) on traces as they are.

    Args:
        model: a name for `ghosttrace.load`, or what it returned.
        traces: files, run folders of ablations, hub ids of data sets, or traces in tokens.
        bench: without traces, a benchmark that knows its own, by name or as an object.
        arms: what to compare with `memento`; the control `placebo` always runs.
        limit: traces of each source.
        seed: of the benchmark's problems.
        batch_tokens: tokens read together, padding included.
        out: the folder of a new run; None keeps it in memory.
        resume: the folder of a run to go on with.
        progress: called with (what, traces done, traces in all).
        options: the command line's, recorded so that `--resume` needs no others.

    Raises:
        UserError: anything that cannot be run as asked; no trace has a finished block.
    """
    if min(limit, batch_tokens) < 1:
        raise UserError("--limit and --batch-tokens are at least 1")
    chosen = _arms(as_list(arms))
    checkpoint = as_checkpoint(model)
    benches = as_benches(bench, limit, seed) if traces is None else []
    found = reference_traces(checkpoint, *benches) if traces is None else load_traces(checkpoint, traces, limit)
    for arm in chosen:
        arm.adapt_policy(checkpoint.policy)  # refuses a policy that erases nothing
    if all(first_measured_index(trace.ids, checkpoint.markup, checkpoint.policy) == len(trace.ids) for trace in found):
        raise UserError(
            "no trace has a finished block and memento with text after them: "
            "give traces with the model's delimiters in them"
        )
    order = [(trace.source, trace.name, arm.name) for trace in found for arm in chosen]
    decided = configuration(checkpoint, found, chosen, batch_tokens, options or {})
    with begin_run(out, resume, decided, BITS_TABLE) as run:
        measure(checkpoint, found, chosen, run.records, batch_tokens, progress or no_progress)
        results = summarise(run.records.get(key) for key in order)
        ceilings = {one.name: one.ceiling for one in benches}
        failures = failed_controls(results, {arm.name: arm for arm in chosen}, ceilings)
        return run.finish(BitsResult, order, not failures, json_rows(results), failures=list(failures))


def _arms(arms: Sequence[str | Arm]) -> list[Arm]:
    """The arms, and the control after them.

    Raises:
        UserError: no such arm, or one that fixed traces do not suit.
    """
    possible = [name for name, kind in ARMS.items() if not kind.needs_counterfactuals and name != REFERENCE_ARM]
    for one in arms:
        if isinstance(one, str) and one not in possible:
            raise UserError(f"--arms of bits are of {', '.join(possible)}, not {one!r}")
    found = [make_arm(one, Part(), 0.5) for one in arms]
    donated = next((arm.name for arm in found if arm.needs_counterfactuals), None)
    if donated:
        raise UserError(
            f"{donated} needs counterfactual blocks, and bits are measured on traces as they are: leave it out"
        )
    check_arm_names(arms, [REFERENCE_ARM, PlaceboArm.name])
    return list({arm.name: arm for arm in (*found, PlaceboArm())}.values())


def configuration(
    checkpoint: Checkpoint,
    traces: Sequence[TokenTrace],
    arms: Sequence[Arm],
    batch_tokens: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that decides a run's numbers, and all that a report of it needs, for run.json."""
    digest = sha256()
    for trace in traces:
        digest.update(repr((trace.source, trace.name, trace.prompt, trace.response)).encode())
    return provenance("bits", checkpoint, options) | {
        "arms": {arm.name: arm.describe(checkpoint.policy) | {"settings": stable_repr(arm)} for arm in arms},
        "traces": {"count": len(traces), "sha256": digest.hexdigest()},
        "settings": {"batch_tokens": batch_tokens},
    }
