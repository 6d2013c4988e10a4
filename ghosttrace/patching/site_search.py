"""Search for a minimal set of sites that carries the answer, on half of the traces, verified on the other half.

The search uses swaps only. A cache with some sealed and some open states is a mixture that no model was trained on, and
it can lose more bits than a fully sealed cache.

Sites are ranked by the effect of swapping each alone. Bisection finds the shortest prefix of the ranking whose joint
swap recovers enough of the effect of swapping everything. Then, from the last site to the first, every site is removed
without which the others still recover enough. No member of the resulting set can be removed, but other sets may do as
well.
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
"""Share of the effect of swapping everything that a set of sites must recover."""
MAX_SEARCH_TRACES = 32
"""Maximum number of traces per source on which the search runs."""


@dataclass(frozen=True)
class SiteSet:
    """Result of the search for sites whose joint swap recovers `MIN_RECOVERED_SHARE` of the effect of swapping all.

    Attributes:
        source: the source of the traces.
        sites: the sites, ordered by their effect alone, largest first. Each is one token (or run of tokens), one layer,
            keys or values.
        recovered: the share that they recover, measured on traces that the search did not use. If the source has only
            one trace, it is measured on that trace.
        n_traces: number of traces on which `recovered` is measured.
        enough: whether the search found such a set. If not, `sites` contains all sites.
    """

    source: str
    sites: tuple[PatchSite, ...]
    recovered: Estimate
    n_traces: int
    enough: bool

    def row(self, results: pd.DataFrame) -> dict[str, Any]:
        """Return the set as JSON values for summary.json.

        Args:
            results: the table returned by `summarise`, from which the texts of the tokens are taken.
        """
        swap_rows = results[(results["source"] == self.source) & (results["intervention"] == "swap")]
        texts = {(row["carrier"], row["offset"]): row["token"] for row in swap_rows.to_dict("records")}
        names, share = ("carrier", "offset", "layer", "kv"), self.recovered
        sites = [
            {name: getattr(site, name) for name in names} | {"token": texts[site.carrier, site.offset]}
            for site in self.sites
        ]
        bounds = {"recovered_low": share.low, "recovered_high": share.high}
        return {
            "source": self.source,
            "sites": sites,
            "recovered": share.value,
            **{name: None if np.isnan(value) else value for name, value in bounds.items()},
            "n_traces": self.n_traces,
            "enough": self.enough,
            "valid": bool(swap_rows["valid"].all()),
        }


def find_site_sets(
    checkpoint: Checkpoint, cases: Sequence[PatchCase], records: Records, batch_tokens: int = 65_536, parts: int = 8
) -> list[SiteSet]:
    """Return one set of sites per source that has donors and on which swapping everything has an effect.

    Args:
        checkpoint: the checkpoint that was measured.
        cases: the cases that were measured.
        records: the records of `ghosttrace.patching.measure.measure`.
        batch_tokens: maximum number of tokens that are processed together.
        parts: as passed to `ghosttrace.patching.measure.measure`.
    """
    n_runs = count_memento_runs(cases, parts)
    site_sets = []
    for source in dict.fromkeys(case.trace.source for case in cases):
        source_cases = [case for case in cases if case.trace.source == source and case.donor is not None]
        if not source_cases:
            continue
        searched, held_out = source_cases[::2][:MAX_SEARCH_TRACES], source_cases[1::2] or source_cases
        ranked = _rank_sites(summarise(records.get((source, case.trace.name, "swap")) for case in searched))
        if not ranked:
            continue
        joint_share = partial(_joint_share, checkpoint, batch_tokens, n_runs[source])
        sites, enough = _search(ranked, partial(_recovers_enough, joint_share, searched))
        site_sets.append(SiteSet(source, tuple(sites), joint_share(held_out, sites), len(held_out), enough))
    return site_sets


def _rank_sites(results: pd.DataFrame) -> list[PatchSite]:
    """Return single sites by the share that each recovers alone, largest first; none if swapping has no effect."""
    if results["recovered"].isna().all():
        return []
    single = results[(results["offset"] != "all") & (results["layer"] != "all") & (results["kv"] != "kv")]
    order = single.sort_values("recovered", ascending=False, kind="stable")
    return [PatchSite(row["carrier"], row["offset"], row["layer"], row["kv"]) for row in order.to_dict("records")]


def _joint_share(
    checkpoint: Checkpoint, batch_tokens: int, n_runs: int, cases: Sequence[PatchCase], sites: Sequence[PatchSite]
) -> Estimate:
    """Return the share of the effect of swapping everything that swapping these sites together recovers."""
    return ratio_estimate(*joint_effect(checkpoint, cases, "swap", sites, batch_tokens, n_runs))


def _recovers_enough(
    joint_share: Callable[..., Estimate], cases: Sequence[PatchCase], sites: Sequence[PatchSite]
) -> bool:
    return bool(joint_share(cases, sites).value >= MIN_RECOVERED_SHARE)


def _search(ranked: Sequence[PatchSite], enough: Callable[[Sequence[PatchSite]], bool]) -> tuple[list[PatchSite], bool]:
    """Return a minimal set of sites that is enough, and True; or all sites and False if even these are not enough.

    Args:
        ranked: the sites in order of preference.
        enough: whether the given sites are enough.
    """
    if not enough(ranked):
        return list(ranked), False
    low, high = 0, len(ranked)  # invariant: the first `high` sites are enough
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
    n_runs: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the effect of patching some sites together, and the effect of patching everything.

    Args:
        checkpoint: the model, its markup and its policy.
        cases: the cases to patch.
        name: the intervention, `seal` or `swap`.
        sites: the sites to patch in every case. A case without the tokens of a site is patched at the other sites.
        batch_tokens: maximum number of tokens that are processed together.
        n_runs: see `ghosttrace.patching.cases.carrier_token_indices`.

    Returns:
        Two float[n] arrays, in bits per case: the decrease of log2 p(own continuation) - log2 p(donor continuation), or
        of log2 p(own continuation) alone for a seal or a case without a donor continuation.
    """
    effects: dict[tuple[str, str], np.ndarray] = {}
    for batch in batch_cases(cases, batch_tokens):
        patcher = Patcher(checkpoint, batch, (name,), n_runs)
        patched_sites: list[list[tuple[PatchSite, ...]]] = [
            [(), tuple(site for site in sites if (site.carrier, site.offset) in carrier_indices), (WHOLE_CACHE,)]
            for carrier_indices in patcher.carrier_indices
        ]
        log2p_difference = np.zeros((len(batch), 3))  # without a patch, at the sites, everywhere
        for sign, attribute in ((1, "own_continuation"), (-1, "donor_continuation")):
            patches = [
                Patch(case_index, name, some_sites, getattr(case, attribute))
                for case_index, case in enumerate(batch)
                if (name == "swap" and case.donor_continuation is not None) or attribute == "own_continuation"
                for some_sites in patched_sites[case_index]
            ]
            scores = patcher.score(patches, batch_tokens) if patches else []
            for number, (patch, score) in enumerate(zip(patches, scores, strict=True)):
                log2p_difference[patch.case_index, number % 3] += sign * score.log2p.sum()
        effects |= {
            (case.trace.source, case.trace.name): log2p_difference[n, 0] - log2p_difference[n]
            for n, case in enumerate(batch)
        }
    effect_by_case = np.array([effects[case.trace.source, case.trace.name] for case in cases])
    return effect_by_case[:, 1], effect_by_case[:, 2]
