"""`patch`: seal or swap the retained cache site by site and measure the effect on the following text."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from ghosttrace.bench import Bench, as_benches
from ghosttrace.bench.reference_traces import reference_traces
from ghosttrace.data.tokens import TraceSources, load_traces
from ghosttrace.errors import UserError
from ghosttrace.ghost_bits.run import traces_of_log
from ghosttrace.law.log import Log
from ghosttrace.model.checkpoint import Checkpoint, as_checkpoint
from ghosttrace.model.provenance import provenance
from ghosttrace.patching.cases import PatchCase, make_cases
from ghosttrace.patching.measure import INTERVENTIONS, PATCH_TABLE, Intervention, measure, record_keys
from ghosttrace.patching.result import PatchResult
from ghosttrace.patching.site_search import find_site_sets
from ghosttrace.patching.summary import failed_controls, summarise
from ghosttrace.runs.call import python_call
from ghosttrace.runs.folder import json_rows
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.runs.writer import begin_run


def patch(
    model: str | Path | Checkpoint = "toy-mixed",
    bench: str | Bench | Sequence[str | Bench] = "ledger-h1,ledger-h3",
    traces: TraceSources | None = None,
    *,
    kind: Intervention | None = None,
    block: int | None = None,
    parts: int = 8,
    limit: int = 20,
    seed: int = 0,
    batch_tokens: int = 65_536,
    law: str | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
) -> PatchResult:
    """Patch every site of the retained cache, one at a time, and search for sites that together carry the answer.

    The sites of every block's memento are patched, because blocks can differ: what follows a block in the text, and so
    what the model reads from its memento, depends on its place in the trace. Under another law than Memento's, the
    tokens that are retained at every erasure are patched.

    Args:
        model: a bundled name, a folder, a hub id, or a checkpoint returned by `ghosttrace.load`.
        bench: benchmarks with reference responses, by name or as objects; used if `traces` is None.
        traces: files, run folders of ablations, hub ids of data sets, or tokenized traces. They can only be sealed.
            None takes the sequences of an eviction log if that is the law, else `bench`.
        kind: the intervention, `seal` or `swap`. None measures both where the benchmark writes counterfactual texts.
        block: index of the block whose memento is patched, or of the erasure under another law; negative values count
            from the last one. None: all of them. The run time is about proportional to their number.
        parts: maximum number of runs into which the text of a memento, or of the tokens that could see what left, is
            divided; each run is patched as one.
        limit: maximum number of traces per source.
        seed: random seed of the benchmark's problems and of the donors.
        batch_tokens: maximum number of tokens that are processed together, for traces and for patched copies.
        law: specification of a law, such as `window:64,16`, that replaces the checkpoint's.
        out: folder of a new run. None keeps the run in memory.
        resume: folder of an unfinished run to continue.
        progress: called with (name of the step, items done, number of items).
        options: command-line options to record in run.json, so that `--resume` needs no others.

    Returns:
        The finished run.

    Raises:
        UserError: an argument is invalid, or no trace has text after the block's memento or the erasure.
    """
    call = python_call(patch, locals())
    if min(limit, parts, batch_tokens) < 1:
        raise UserError("--limit, --parts and --batch-tokens must be at least 1")
    if kind not in (None, *INTERVENTIONS):
        raise UserError(f"--kind must be {' or '.join(INTERVENTIONS)}, not {kind!r}")
    checkpoint = as_checkpoint(model, law)
    if traces is None and isinstance(checkpoint.law, Log):
        traces = traces_of_log(checkpoint.law, limit)
    benches = as_benches(bench, limit, seed) if traces is None else []
    loaded = reference_traces(checkpoint, *benches) if traces is None else load_traces(checkpoint, traces, limit)
    cases = make_cases(checkpoint, loaded, benches, block, seed)
    if kind == "swap":
        cases = [case for case in cases if case.donor is not None]
        if not cases:
            raise UserError("a swap needs counterfactual blocks: give a --bench that writes them, or --kind seal")
    run_configuration = configuration(checkpoint, cases, kind, parts, batch_tokens, options or {}, call)
    with begin_run(out, resume, run_configuration, PATCH_TABLE) as run:
        show, order = progress or no_progress, record_keys(cases, kind)
        unit = "block" if checkpoint.other_law is None else "erasure"
        measure(checkpoint, cases, run.records, batch_tokens, parts, kind, show)
        results = summarise(run.records.get(key) for key in order)
        failures, rows = failed_controls(results, unit), []
        if kind != "seal":
            site_sets = find_site_sets(checkpoint, cases, run.records, batch_tokens, parts, show)
            rows = [site_set.row(results) for site_set in site_sets]
        extra = {"failures": list(failures), "site_sets": rows}
        return run.finish(PatchResult, order, not failures, json_rows(results), **extra)


def configuration(
    checkpoint: Checkpoint,
    cases: Sequence[PatchCase],
    kind: Intervention | None,
    parts: int,
    batch_tokens: int,
    options: Mapping[str, Any],
    call: str | None = None,
) -> dict[str, Any]:
    """Return the content of run.json: everything that determines the results."""
    digest = sha256()
    for case in cases:
        trace = (case.trace.source, case.trace.name, case.trace.prompt, case.trace.response)
        block = (case.block_label, case.block_index)
        digest.update(repr((*trace, *block, case.donor, case.donor_continuation)).encode())
    return provenance("patch", checkpoint, options, call) | {
        "traces": {"count": len(cases), "sha256": digest.hexdigest()},
        "settings": {"kind": kind, "batch_tokens": batch_tokens, "parts": parts},
    }
