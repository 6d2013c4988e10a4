"""Search for a set of sites that together carry the answer and of which none can be dropped.

The search uses swaps only. A cache with some sealed and some open states is a mixture that no model was trained on, and
it can lose more bits than a fully sealed cache.

Sites are ranked by the effect of swapping each alone. Bisection finds a prefix of the ranking whose joint swap recovers
enough of the effect of swapping everything. Then, from the last site to the first, every site is removed without which
the others still recover enough; this is repeated until no site is removed. The resulting set is one from which no site
can be dropped on the traces of the search. It need not be the smallest such set, and other sets may do as well.

The set and its complement are then measured on the other half of the traces. Swapping the set alone shows whether it is
sufficient. Swapping everything except the set shows whether it is necessary: what that still reproduces does not depend
on the set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.patching.cases import PatchCase
from ghosttrace.patching.joint import JointEffect, JointPatches
from ghosttrace.patching.sites import PatchSite, count_runs
from ghosttrace.patching.summary import has_effect, share_of, summarise
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.runs.records import Records

MIN_RECOVERED_SHARE = 0.9
"""Share of the effect of swapping everything that a set of sites must recover."""
MAX_SEARCH_TRACES = 32
"""Maximum number of traces per source and block on which the search runs."""


@dataclass(frozen=True)
class SiteSet:
    """Result of the search for sites whose joint swap recovers `MIN_RECOVERED_SHARE` of the effect of swapping all.

    The three effects are measured on traces that the search did not use. If there is only one trace, they are measured
    on that trace.

    Attributes:
        source: the source of the traces.
        block: index of the block, from the last (-1) if negative.
        sites: the sites, ordered by their effect alone, largest first. Each is one token (or run of tokens), one layer,
            keys or values. On the traces of the search, none can be dropped.
        alone: effect of swapping the sites.
        rest: effect of swapping everything except the sites.
        everything: effect of swapping everything.
        enough: whether the search found such a set. If not, `sites` contains all sites.
    """

    source: str
    block: int
    sites: tuple[PatchSite, ...]
    alone: JointEffect
    rest: JointEffect
    everything: JointEffect
    enough: bool

    def row(self, results: pd.DataFrame) -> dict[str, Any]:
        """Return the set as JSON values for summary.json (see `PatchResult.site_sets`).

        Args:
            results: the table returned by `summarise`, from which the texts of the tokens are taken.
        """
        group = results[(results["source"] == self.source) & (results["block"] == self.block)]
        swap_rows = group[group["intervention"] == "swap"]
        texts = {(row["carrier"], row["offset"]): row["token"] for row in swap_rows.to_dict("records")}
        names, whole_bits = ("carrier", "offset", "layer", "kv"), self.everything.bits
        sites = [
            {name: getattr(site, name) for name in names} | {"token": texts[site.carrier, site.offset]}
            for site in self.sites
        ]
        return {
            "source": self.source,
            "block": self.block,
            "sites": sites,
            "n_traces": len(whole_bits),
            **self.alone.columns(whole_bits),
            **{f"rest_{name}": value for name, value in self.rest.columns(whole_bits).items()},
            "everything_flipped": self.everything.columns(whole_bits)["flipped"],
            "enough": self.enough,
            "valid": bool(group["valid"].all()),
        }


def find_site_sets(
    checkpoint: Checkpoint,
    cases: Sequence[PatchCase],
    records: Records,
    batch_tokens: int = 65_536,
    parts: int = 8,
    progress: Progress = no_progress,
) -> list[SiteSet]:
    """Return one set of sites per source and block that has donors and whose swap of everything has an effect.

    Args:
        checkpoint: the checkpoint that was measured.
        cases: the cases that were measured.
        records: the records of `ghosttrace.patching.measure.measure`.
        batch_tokens: maximum number of tokens that are processed together.
        parts: as passed to `ghosttrace.patching.measure.measure`.
        progress: called with ("sites that carry the answer", groups done, number of groups).
    """
    n_runs, site_sets = count_runs(cases, checkpoint, parts), []
    for done, group in enumerate(n_runs):
        progress("sites that carry the answer", done, len(n_runs))
        group_cases = [case for case in cases if case.group == group and case.donor is not None]
        if not group_cases:
            continue
        searched, held_out = group_cases[::2][:MAX_SEARCH_TRACES], group_cases[1::2] or group_cases
        keys = ((case.trace.source, case.trace.name, case.block_label, "swap") for case in searched)
        ranked = _rank_sites(summarise(records.get(key) for key in keys))
        if ranked:
            sites, enough = _search(ranked, _recovers_enough(checkpoint, searched, batch_tokens, n_runs[group]))
            swaps = JointPatches(checkpoint, held_out, "swap", batch_tokens, n_runs[group])
            if has_effect(swaps.everything.bits):  # else there is nothing of which the set could recover a share
                alone, rest = swaps.patch(sites), swaps.patch_rest(sites)
                site_sets.append(SiteSet(*group, tuple(sites), alone, rest, swaps.everything, enough))
    progress("sites that carry the answer", len(n_runs), len(n_runs))
    return site_sets


def _rank_sites(results: pd.DataFrame) -> list[PatchSite]:
    """Return single sites by the share that each recovers alone, largest first; none if swapping has no effect."""
    if results["recovered"].isna().all():
        return []
    single = results[(results["offset"] != "all") & (results["layer"] != "all") & (results["kv"] != "kv")]
    order = single.sort_values("recovered", ascending=False, kind="stable")
    return [PatchSite(row["carrier"], row["offset"], row["layer"], row["kv"]) for row in order.to_dict("records")]


def _recovers_enough(
    checkpoint: Checkpoint, cases: Sequence[PatchCase], batch_tokens: int, n_runs: int
) -> Callable[[Sequence[PatchSite]], bool]:
    """Return the function that decides whether some sites, swapped together in these cases, recover enough."""
    swaps = JointPatches(checkpoint, cases, "swap", batch_tokens, n_runs)

    def enough(sites: Sequence[PatchSite]) -> bool:
        share = share_of(swaps.patch(sites).bits, swaps.everything.bits)
        return share.recovered.value >= MIN_RECOVERED_SHARE

    return enough


def _search(ranked: Sequence[PatchSite], enough: Callable[[Sequence[PatchSite]], bool]) -> tuple[list[PatchSite], bool]:
    """Return a set of sites that is enough and from which none can be dropped, and True.

    If all sites together are not enough, return all of them and False.

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
    chosen, removed = list(ranked[:high]), True
    while removed:  # sites interact: removing one can make another one removable that was needed before
        removed = False
        for site in reversed(chosen.copy()):
            rest = [other for other in chosen if other != site]
            if rest and enough(rest):
                chosen, removed = rest, True
    return chosen, True
