"""`patch`: part by part, the retained cache sealed or swapped, and what that does to the text that follows."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from ghosttrace.bench import Bench, as_benches
from ghosttrace.bench.reference_traces import reference_traces
from ghosttrace.data.tokens import TraceSources, load_traces
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint, as_checkpoint
from ghosttrace.model.provenance import provenance
from ghosttrace.patching.cases import PatchCase, make_cases
from ghosttrace.patching.measure import INTERVENTIONS, PATCH_TABLE, Intervention, measure, record_keys
from ghosttrace.patching.result import PatchResult
from ghosttrace.patching.site_search import find_site_sets
from ghosttrace.patching.summary import failed_controls, summarise
from ghosttrace.runs.folder import json_rows
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.runs.writer import begin_run


def patch(
    model: str | Path | Checkpoint = "toy-mixed",
    bench: str | Bench | Sequence[str | Bench] = "ledger-h1,ledger-h3",
    traces: TraceSources | None = None,
    *,
    kind: Intervention | None = None,
    block: int = -1,
    parts: int = 8,
    limit: int = 50,
    seed: int = 0,
    batch_tokens: int = 65_536,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
) -> PatchResult:
    """Patch every site of the retained cache, one at a time, and find the sites that together carry the answer.

    Args:
        model: a name for `ghosttrace.load`, or what it returned.
        bench: without traces, benchmarks that know their own, by name or as objects.
        traces: files, run folders of ablations, hub ids of data sets, or traces in tokens; they can only be sealed.
        kind: `seal` or `swap` alone; None does both where a benchmark writes counterfactual blocks.
        block: whose memento, counted from 0; -1 is the last.
        parts: the text of longer mementos is patched in this many runs of tokens.
        limit: traces of each source.
        seed: of the benchmark's problems and of the donors.
        batch_tokens: tokens read together, patched copies included.
        out: the folder of a new run; None keeps it in memory.
        resume: the folder of a run to go on with.
        progress: called with (what, traces done, traces in all).
        options: the command line's, recorded so that `--resume` needs no others.

    Raises:
        UserError: anything that cannot be run as asked; no trace has such a memento.
    """
    if min(limit, parts, batch_tokens) < 1:
        raise UserError("--limit, --parts and --batch-tokens are at least 1")
    if kind not in (None, *INTERVENTIONS):
        raise UserError(f"--kind is {' or '.join(INTERVENTIONS)}, not {kind!r}")
    checkpoint = as_checkpoint(model)
    benches = as_benches(bench, limit, seed) if traces is None else []
    found = reference_traces(checkpoint, *benches) if traces is None else load_traces(checkpoint, traces, limit)
    cases = make_cases(checkpoint, found, benches, block, seed)
    if kind == "swap":
        cases = [case for case in cases if case.donor is not None]
        if not cases:
            raise UserError("a swap needs counterfactual blocks: give a --bench that writes them, or --kind seal")
    decided = configuration(checkpoint, cases, kind, parts, batch_tokens, options or {})
    with begin_run(out, resume, decided, PATCH_TABLE) as run:
        show, order = progress or no_progress, record_keys(cases, kind)
        measure(checkpoint, cases, run.records, batch_tokens, parts, kind, show)
        results = summarise(run.records.get(key) for key in order)
        failures, rows = failed_controls(results), []
        if kind != "seal":
            show("sites that carry the answer", 0, 1)
            found_sets = find_site_sets(checkpoint, cases, run.records, batch_tokens, parts)
            rows = [one.row(results) for one in found_sets]
            show("sites that carry the answer", 1, 1)
        more = {"failures": list(failures), "site_sets": rows}
        return run.finish(PatchResult, order, not failures, json_rows(results), **more)


def configuration(
    checkpoint: Checkpoint,
    cases: Sequence[PatchCase],
    kind: Intervention | None,
    parts: int,
    batch_tokens: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that decides a run's numbers, for run.json."""
    digest = sha256()
    for case in cases:
        trace = (case.trace.source, case.trace.name, case.trace.prompt, case.trace.response)
        digest.update(repr((*trace, case.block_index, case.donor, case.donor_continuation)).encode())
    return provenance("patch", checkpoint, options) | {
        "traces": {"count": len(cases), "sha256": digest.hexdigest()},
        "settings": {"kind": kind, "batch_tokens": batch_tokens, "parts": parts},
    }
