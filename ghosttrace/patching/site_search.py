"""The smallest set of sites that carries the answer, found on one half of the traces and verified on the other.

By swaps alone: single sealed states beside open ones are a mixture that no model has met, and break more
than the whole seal does (on `toy-mixed` at h = 1 the sealed keys alone cost seven times as many bits).

Sites are ranked by what each does alone. The shortest beginning of the ranking whose joint patch does
enough is found by bisection; then, from its end, every site is dropped without which the rest still
does. The result can lose no member, but it need not be the only such set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.patching.cases import PatchCase, PatchSite, batch_cases, count_memento_runs
from ghosttrace.patching.patcher import Patch, Patcher
from ghosttrace.patching.summary import WHOLE_CACHE, summarise
from ghosttrace.runs.records import Records
from ghosttrace.stats import Estimate, ratio_estimate

MIN_RECOVERED_SHARE = 0.9
MAX_SEARCH_TRACES = 32  # traces at most


@dataclass(frozen=True)
class SiteSet:
    """Sites whose joint swap does what swapping everything does, or nearly.

    Attributes:
        source: whose.
        sites: in order of what each does alone; single tokens (or runs of them), layers, k or v.
        recovered: the share of the whole effect, on traces that were not searched (of a single trace, on it).
        n_traces: how many those are.
        enough: the search found a set that does at least `MIN_RECOVERED_SHARE`; else `sites` are all there are.
    """

    source: str
    sites: tuple[PatchSite, ...]
    recovered: Estimate
    n_traces: int
    enough: bool

    def row(self, results: pd.DataFrame) -> dict[str, Any]:
        """As JSON values, with the text of its tokens; `results` are those of `summarise`."""
        mine = results[(results["source"] == self.source) & (results["intervention"] == "swap")]
        texts = {(row["carrier"], row["place"]): row["token"] for row in mine.to_dict("records")}
        names, share = ("carrier", "place", "layer", "kv"), self.recovered
        sites = [
            {name: getattr(site, name) for name in names} | {"token": texts[site.carrier, site.place]}
            for site in self.sites
        ]
        ends = {"recovered_low": share.low, "recovered_high": share.high}
        return {
            "source": self.source,
            "sites": sites,
            "recovered": share.value,
            **{name: None if np.isnan(value) else value for name, value in ends.items()},
            "n_traces": self.n_traces,
            "enough": self.enough,
            "valid": bool(mine["valid"].all()),
        }


def find_site_sets(
    checkpoint: Checkpoint, cases: Sequence[PatchCase], records: Records, batch_tokens: int = 65_536, parts: int = 8
) -> list[SiteSet]:
    """One set for each source that has donors and on which swapping everything does anything.

    Args:
        checkpoint, cases, records, batch_tokens, parts: as measured.
    """
    runs = count_memento_runs(cases, parts)
    found = []
    for source in dict.fromkeys(case.trace.source for case in cases):
        mine = [case for case in cases if case.trace.source == source and case.donor is not None]
        if not mine:
            continue
        searched, held_out = mine[::2][:MAX_SEARCH_TRACES], mine[1::2] or mine
        ranked = _ranked(summarise(records.get((source, case.trace.name, "swap")) for case in searched))
        if not ranked:
            continue
        joint = partial(_joint_share, checkpoint, batch_tokens, runs[source])
        sites, enough = _search(ranked, partial(_recovers_enough, joint, searched))
        found.append(SiteSet(source, tuple(sites), joint(held_out, sites), len(held_out), enough))
    return found


def _ranked(results: pd.DataFrame) -> list[PatchSite]:
    """Single sites by the share that each recovers alone; none where nothing can be recovered."""
    if results["recovered"].isna().all():
        return []
    single = results[(results["place"] != "all") & (results["layer"] != "all") & (results["kv"] != "kv")]
    order = single.sort_values("recovered", ascending=False, kind="stable")
    return [PatchSite(row["carrier"], row["place"], row["layer"], row["kv"]) for row in order.to_dict("records")]


def _joint_share(
    checkpoint: Checkpoint, batch_tokens: int, runs: int, cases: Sequence[PatchCase], sites: Sequence[PatchSite]
) -> Estimate:
    return ratio_estimate(*joint_effect(checkpoint, cases, "swap", sites, batch_tokens, runs))


def _recovers_enough(joint: Callable[..., Estimate], cases: Sequence[PatchCase], sites: Sequence[PatchSite]) -> bool:
    return bool(joint(cases, sites).value >= MIN_RECOVERED_SHARE)


def _search(ranked: Sequence[PatchSite], enough: Callable[[Sequence[PatchSite]], bool]) -> tuple[list[PatchSite], bool]:
    """The shortest beginning that is enough, less what it can do without."""
    if not enough(ranked):
        return list(ranked), False
    low, high = 0, len(ranked)  # of the first `high` it is known
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(ranked[:middle]) else (middle, high)
    chosen = list(ranked[:high])
    for site in reversed(ranked[:high]):
        rest = [other for other in chosen if other != site]
        if rest and enough(rest):
            chosen = rest
    return chosen, True


def joint_effect(
    checkpoint: Checkpoint,
    cases: Sequence[PatchCase],
    name: str,
    sites: Sequence[PatchSite],
    batch_tokens: int,
    runs: int,
) -> tuple[np.ndarray, np.ndarray]:
    """What patching all these sites at once does, and what patching everything does.

    Args:
        checkpoint, cases, batch_tokens: see `ghosttrace.patching.measure`.
        name: `seal` or `swap`.
        sites: of every case; those whose carrier a case has not are left out.
        runs: see `ghosttrace.patching.cases.carrier_token_indices`.

    Returns:
        float[n] each: by trace the fall of log2 p(own) - log2 p(donor's answer), or of log2 p(own)
        where no such answer is known.
    """
    falls: dict[tuple[str, str], np.ndarray] = {}
    for batch in batch_cases(cases, batch_tokens):
        patcher = Patcher(checkpoint, batch, (name,), runs)
        cells: list[list[tuple[PatchSite, ...]]] = [
            [(), tuple(site for site in sites if (site.carrier, site.place) in places), (WHOLE_CACHE,)]
            for places in patcher.carrier_indices
        ]
        worth = np.zeros((len(batch), 3))
        for sign, which in ((1, "own_continuation"), (-1, "donor_continuation")):
            patches = [
                Patch(number, name, cell, getattr(case, which))
                for number, case in enumerate(batch)
                if (name == "swap" and case.donor_continuation is not None) or which == "own_continuation"
                for cell in cells[number]
            ]
            scores = patcher.score(patches, batch_tokens) if patches else []
            for at, (patch, score) in enumerate(zip(patches, scores, strict=True)):
                worth[patch.case_index, at % 3] += sign * score.log2p.sum()
        falls |= {(case.trace.source, case.trace.name): worth[n, 0] - worth[n] for n, case in enumerate(batch)}
    found = np.array([falls[case.trace.source, case.trace.name] for case in cases])
    return found[:, 1], found[:, 2]
