"""The result of a `patch` run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from ghosttrace.report.page import run_page
from ghosttrace.report.patching import heat_maps, patch_findings
from ghosttrace.runs.result import RunResult


@dataclass(frozen=True, eq=False, repr=False)
class PatchResult(RunResult):
    """The effect of patching each site of the retained cache on the following text.

    `results` has one row per source, block, intervention and site (see `ghosttrace.patching.summary.summarise`).
    `samples` has one row per trace, block and intervention (see `ghosttrace.patching.measure.PATCH_TABLE`).
    """

    command = "patch"
    required_summary_keys = (*RunResult.required_summary_keys, "site_sets")
    required_result_columns = ("block", "overshoot")

    @property
    def unit(self) -> str:
        """What the column `block` counts, `block` or, under another law than Memento's, `erasure`."""
        return "erasure" if "law" in self.configuration else "block"

    @property
    def site_sets(self) -> list[Mapping[str, Any]]:
        """Sets of sites that together carry the answer, one mapping per source and block whose swap had an effect.

        On the traces of the search, no site can be dropped from a set; it need not be the smallest set. The keys are:

        - source, block: the source and the index of the block, from the last (-1) if negative.
        - sites: the sites, each with carrier, offset, layer, kv and token.
        - enough: whether they recover the required share on the traces of the search.
        - n_traces: number of other traces, on which the following are measured.
        - recovered, recovered_low, recovered_high, overshoot: share of the effect of swapping everything that swapping
          the sites recovers, at most 1, and the share by which it goes beyond that effect.
        - flipped: number of traces whose greedy continuation becomes the donor's, None if unknown. The continuation of
          the last block is the answer; that of an earlier block ends with the next memento.
        - rest_recovered, rest_recovered_low, rest_recovered_high, rest_overshoot, rest_flipped: the same for swapping
          everything except the sites.
        - everything_flipped: the same number for swapping everything.
        - valid: whether the controls held.
        """
        return list(self.summary["site_sets"])

    @property
    def findings(self) -> list[str]:
        """The set of sites that carries the answer for each source and block, and whether the controls passed."""
        return patch_findings(self.results, self.site_sets, self.failures, self.unit)

    def figures(self) -> Mapping[str, Callable[[], Figure]]:
        """Return one figure `patch-SOURCE-block_N` per source and block, or erasure: bits by layer and token."""
        figures: dict[str, Callable[[], Figure]] = {}
        for number, ((source, block), rows) in enumerate(self.results.groupby(["source", "block"], sort=False)):
            name = f"patch-{_file_name(str(source))}-{self.unit}_{block}"
            figures[f"{name}-{number}" if name in figures else name] = partial(heat_maps, rows, self.unit)
        return figures

    def page(self) -> str:
        """Return an HTML page with the verdict, the figures and the results."""
        title = f"Patches of {self.configuration['model']}"
        figures = [draw() for draw in self.figures().values()]
        return run_page(title, self.configuration, self.failures, self.results, figures)


def _file_name(source: str) -> str:
    """Return the source with characters that do not belong in a file name replaced by hyphens."""
    return re.sub(r"[^\w.-]+", "-", source).strip("-.")
