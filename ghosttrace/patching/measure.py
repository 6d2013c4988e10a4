"""Measurement: seal or swap every site of every trace, with one record per trace and intervention."""

from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

from ghosttrace.ghost_bits.likelihood import log2_probabilities
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.patching.cases import PatchCase, batch_cases
from ghosttrace.patching.patcher import CACHE_ARMS, Patch, Patcher, PatchScore
from ghosttrace.patching.sites import ALL, CarrierIndices, PatchSite, all_sites, count_runs
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.runs.records import RecordKey, RecordLayout, Records

Intervention = Literal["seal", "swap"]
INTERVENTIONS: tuple[Intervention, ...] = ("seal", "swap")
MAX_PER_TOKEN_LENGTH = 8
"""Maximum number of scored tokens for which a record holds log2 p by token; longer ones have only the sum."""

PATCH_TABLE = RecordLayout(
    pa.schema(
        {
            "source": pa.string(),
            "trace": pa.string(),
            "block": pa.int32(),
            "intervention": pa.string(),
            "own": pa.list_(pa.int32()),
            "other": pa.list_(pa.int32()),
            "clean": pa.list_(pa.float64()),
            "clean_other": pa.float64(),
            "arm": pa.float64(),
            "carrier": pa.list_(pa.string()),
            "offset": pa.list_(pa.int32()),
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
    ("source", "trace", "block", "intervention"),
)


def interventions(case: PatchCase, kind: Intervention | None = None) -> tuple[Intervention, ...]:
    """Return the interventions on a case: `seal`, and `swap` if it has a donor; restricted to `kind` if given."""
    possible = INTERVENTIONS if case.donor is not None else INTERVENTIONS[:1]
    return tuple(name for name in possible if kind in (None, name))


def record_keys(cases: Sequence[PatchCase], kind: Intervention | None = None) -> list[RecordKey]:
    """Return the keys of all records of a run, in order; `kind` restricts them to one intervention."""
    return [
        (case.trace.source, case.trace.name, case.block_label, name)
        for case in cases
        for name in interventions(case, kind)
    ]


def measure(
    checkpoint: Checkpoint,
    cases: Sequence[PatchCase],
    records: Records,
    batch_tokens: int = 65_536,
    parts: int = 8,
    kind: Intervention | None = None,
    progress: Progress = no_progress,
) -> None:
    """Seal and swap every site of every case that is not recorded yet, and add the scores to the records.

    Args:
        checkpoint: the model and its law.
        cases: cases from `ghosttrace.patching.cases.make_cases`.
        records: records with layout `PATCH_TABLE`; extended in place.
        batch_tokens: maximum number of tokens that are processed together, for traces and for patched copies.
        parts: maximum number of runs into which the text of a memento, or of the carriers, is divided; each run is
            patched as one.
        kind: the intervention to measure; None for both.
        progress: called with ("patched blocks", cases done, number of cases).
    """
    n_runs, done = count_runs(cases, checkpoint, parts), 0
    for batch in batch_cases(cases, batch_tokens):
        if not all(key in records for key in record_keys(batch, kind)):
            names = tuple(dict.fromkeys(("placebo", *(name for case in batch for name in interventions(case, kind)))))
            patcher = Patcher(checkpoint, batch, names, n_runs[batch[0].group])
            arm_log2p = {name: _arm_log2p(checkpoint, batch, name) for name in names if name != "placebo"}
            for case_index, case in enumerate(batch):
                for name in interventions(case, kind):
                    records.add(_record(patcher, case_index, name, arm_log2p[name][case_index], batch_tokens))
        done += len(batch)
        progress("patched blocks", done, len(cases))


def _arm_log2p(checkpoint: Checkpoint, cases: Sequence[PatchCase], name: str) -> list[float]:
    """Return log2 p of each case's scored tokens under the arm that alters the whole cache as `name` does."""
    trace_log2p = log2_probabilities(checkpoint, CACHE_ARMS[name], [case.ids(name == "swap") for case in cases])
    return [float(log2p[case.prefix_end :].sum()) for case, log2p in zip(cases, trace_log2p, strict=True)]


def _record(patcher: Patcher, case_index: int, name: str, arm_log2p: float, batch_tokens: int) -> dict[str, Any]:
    """Return the record of one case under one intervention: the scores without a patch and at every site."""
    case, carrier_indices = patcher.cases[case_index], patcher.carrier_indices[case_index]
    sites = all_sites(carrier_indices, patcher.checkpoint.model.config.get_text_config().num_hidden_layers)
    numbers = _number_alike(sites, carrier_indices)
    first = {number: site for site, number in zip(reversed(sites), reversed(numbers), strict=True)}
    patched_sites: list[tuple[PatchSite, ...]] = [(), *((first[number],) for number in sorted(first))]
    ids, swap = case.trace.ids, name == "swap"

    def score(continuation: tuple[int, ...]) -> list[PatchScore]:
        patches = [Patch(case_index, name, some, continuation) for some in patched_sites]
        clean, *scores = patcher.score(patches, batch_tokens)
        return [clean, *(scores[number] for number in numbers)]

    own = score(case.own_continuation)
    other = score(case.donor_continuation) if swap and case.donor_continuation is not None else []
    texts = {
        key: patcher.checkpoint.tokenizer.decode([ids[tokens[0]]]) if len(tokens) == 1 else f"run {key[1]}"
        for key, tokens in carrier_indices.items()
        if key[1] != ALL
    }
    short = len(case.own_continuation) - 1 <= MAX_PER_TOKEN_LENGTH
    return {
        "source": case.trace.source,
        "trace": case.trace.name,
        "block": case.block_label,
        "intervention": name,
        "own": list(case.own_continuation),
        "other": None if case.donor_continuation is None else list(case.donor_continuation),
        "clean": own[0].log2p.tolist(),
        "clean_other": float(other[0].log2p.sum()) if other else None,
        "arm": arm_log2p,
        **{field: [getattr(site, field) for site in sites] for field in ("carrier", "offset", "layer", "kv")},
        "token": [texts.get((site.carrier, site.offset), "all") for site in sites],
        "log2p_own": [float(score.log2p.sum()) for score in own[1:]],
        "log2p_other": [float(score.log2p.sum()) for score in other[1:]],
        "greedy_own": [score.is_greedy(case.own_forced) for score in own[1:]],
        "greedy_other": [score.is_greedy(case.donor_forced) for score in other[1:]],
        "by_token": [score.log2p.tolist() for score in own[1:]] if short else [],
    }


def _number_alike(sites: Sequence[PatchSite], carrier_indices: CarrierIndices) -> list[int]:
    """Return a number for each site, counted from 0: the same for sites that patch the same states."""
    numbers: dict[tuple[Any, ...], int] = {}
    return [
        numbers.setdefault(
            (site.carrier == "placebo", site.layer, site.kv, *carrier_indices[site.carrier, site.offset].tolist()),
            len(numbers),
        )
        for site in sites
    ]
