"""Sealing and swapping every site of every trace, one record a trace and intervention."""

from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

from ghosttrace.ghost_bits.likelihood import log2_probabilities
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.patching.cases import ALL, PatchCase, PatchSite, all_sites, batch_cases, count_memento_runs
from ghosttrace.patching.patcher import CACHE_ARMS, Patch, Patcher, PatchScore
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.runs.records import RecordKey, RecordLayout, Records

Intervention = Literal["seal", "swap"]
INTERVENTIONS: tuple[Intervention, ...] = ("seal", "swap")
MAX_PER_TOKEN_LENGTH = 8  # tokens; longer continuations are kept as sums alone

PATCH_TABLE = RecordLayout(
    pa.schema(
        {
            "source": pa.string(),
            "trace": pa.string(),
            "intervention": pa.string(),
            "block": pa.int32(),
            "own": pa.list_(pa.int32()),
            "other": pa.list_(pa.int32()),
            "clean": pa.list_(pa.float64()),
            "clean_other": pa.float64(),
            "arm": pa.float64(),
            "carrier": pa.list_(pa.string()),
            "place": pa.list_(pa.int32()),
            "token": pa.list_(pa.string()),
            "layer": pa.list_(pa.int32()),
            "kv": pa.list_(pa.string()),
            "log2p_own": pa.list_(pa.float64()),
            "log2p_other": pa.list_(pa.float64()),
            "greedy_own": pa.list_(pa.bool_()),
            "greedy_other": pa.list_(pa.bool_()),
            "by_token": pa.list_(pa.list_(pa.float64())),
        }
    ),
    ("source", "trace", "intervention"),
)


def interventions(case: PatchCase, kind: Intervention | None = None) -> tuple[Intervention, ...]:
    """What is done to a case: `kind` alone if given; a swap needs a donor."""
    possible = INTERVENTIONS if case.donor is not None else INTERVENTIONS[:1]
    return tuple(name for name in possible if kind in (None, name))


def record_keys(cases: Sequence[PatchCase], kind: Intervention | None = None) -> list[RecordKey]:
    """The keys of all records, in order; of one intervention if `kind` is given."""
    return [(case.trace.source, case.trace.name, name) for case in cases for name in interventions(case, kind)]


def measure(
    checkpoint: Checkpoint,
    cases: Sequence[PatchCase],
    records: Records,
    batch_tokens: int = 65_536,
    parts: int = 8,
    kind: Intervention | None = None,
    progress: Progress = no_progress,
) -> None:
    """Seal and swap every site of every case that is not on record yet.

    Args:
        checkpoint: the model and its law.
        cases: of `ghosttrace.patching.cases.make_cases`.
        records: with layout `PATCH_TABLE`.
        batch_tokens: of traces, and of patched copies, as many are read together as have this many tokens.
        parts: the text of longer mementos is patched in this many runs of tokens.
        kind: seal or swap alone; both if None.
        progress: called with (what, cases done, cases in all).
    """
    runs, done = count_memento_runs(cases, parts), 0
    for batch in batch_cases(cases, batch_tokens):
        if not all(key in records for key in record_keys(batch, kind)):
            names = tuple(dict.fromkeys(("placebo", *(name for case in batch for name in interventions(case, kind)))))
            patcher = Patcher(checkpoint, batch, names, runs[batch[0].trace.source])
            arms = {name: _arm(checkpoint, batch, name) for name in names if name != "placebo"}
            for number, case in enumerate(batch):
                for name in interventions(case, kind):
                    records.add(_record(patcher, number, name, arms[name][number], batch_tokens))
        done += len(batch)
        progress("traces", done, len(cases))


def _arm(checkpoint: Checkpoint, cases: Sequence[PatchCase], name: str) -> list[float]:
    """log2 p of what each case measures under the arm that does to the whole cache what `name` does."""
    found = log2_probabilities(checkpoint, CACHE_ARMS[name], [case.ids(name == "swap") for case in cases])
    return [float(log2p[case.block.memento_end + 1 :].sum()) for case, log2p in zip(cases, found, strict=True)]


def _record(patcher: Patcher, number: int, name: str, arm: float, batch_tokens: int) -> dict[str, Any]:
    """Read everything that is asked of one case under one intervention."""
    case, places = patcher.cases[number], patcher.carrier_indices[number]
    sites = all_sites(places, patcher.checkpoint.model.config.get_text_config().num_hidden_layers)
    cells: list[tuple[PatchSite, ...]] = [(), *((site,) for site in sites)]
    ids, swap = case.trace.ids, name == "swap"
    own = patcher.score([Patch(number, name, cell, case.own_continuation) for cell in cells], batch_tokens)
    other: list[PatchScore] = []
    if swap and case.donor_continuation is not None:
        other = patcher.score([Patch(number, name, cell, case.donor_continuation) for cell in cells], batch_tokens)
    texts = {
        key: patcher.checkpoint.tokenizer.decode([ids[at[0]]]) if len(at) == 1 else f"run {key[1]}"
        for key, at in places.items()
        if key[1] != ALL
    }
    short = len(case.own_continuation) - 1 <= MAX_PER_TOKEN_LENGTH
    return {
        "source": case.trace.source,
        "trace": case.trace.name,
        "intervention": name,
        "block": case.block_index,
        "own": list(case.own_continuation),
        "other": None if case.donor_continuation is None else list(case.donor_continuation),
        "clean": own[0].log2p.tolist(),
        "clean_other": float(other[0].log2p.sum()) if other else None,
        "arm": arm,
        **{field: [getattr(site, field) for site in sites] for field in ("carrier", "place", "layer", "kv")},
        "token": [texts.get((site.carrier, site.place), "all") for site in sites],
        "log2p_own": [float(score.log2p.sum()) for score in own[1:]],
        "log2p_other": [float(score.log2p.sum()) for score in other[1:]],
        "greedy_own": [score.greedy for score in own[1:]],
        "greedy_other": [score.greedy for score in other[1:]],
        "by_token": [score.log2p.tolist() for score in own[1:]] if short else [],
    }
