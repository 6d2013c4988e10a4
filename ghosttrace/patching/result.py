"""The result of a `patch` run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from ghosttrace.report.page import run_page
from ghosttrace.report.patching import heat_maps
from ghosttrace.runs.result import RunResult


@dataclass(frozen=True, eq=False, repr=False)
class PatchResult(RunResult):
    """The effect of patching each site of the retained cache on the following text.

    `results` has one row per source, intervention and site (see `ghosttrace.patching.summary.summarise`).
    `samples` has one row per trace and intervention (see `ghosttrace.patching.measure.PATCH_TABLE`).
    """

    command = "patch"
    required_summary_keys = (*RunResult.required_summary_keys, "site_sets")

    @property
    def site_sets(self) -> list[Mapping[str, Any]]:
        """Sites that together carry the answer, one mapping per source on which a swap had an effect.

        Its keys are source, sites (each with carrier, offset, layer, kv and token), recovered (share of the effect of
        swapping everything, with recovered_low and recovered_high), n_traces, enough (whether the search reached the
        required share) and valid.
        """
        return list(self.summary["site_sets"])

    def figures(self) -> Mapping[str, Callable[[], Figure]]:
        """Return one figure `patch-SOURCE` per source: bits by layer and token."""
        figures: dict[str, Callable[[], Figure]] = {}
        for number, (source, rows) in enumerate(self.results.groupby("source", sort=False)):
            name = f"patch-{_file_name(str(source))}"
            figures[f"{name}-{number}" if name in figures else name] = partial(heat_maps, rows)
        return figures

    def page(self) -> str:
        """Return an HTML page with the verdict, the figures and the results."""
        title = f"Patches of {self.configuration['model']}"
        figures = [draw() for draw in self.figures().values()]
        return run_page(title, self.configuration, self.failures, self.results, figures)


def _file_name(source: str) -> str:
    """Return the source with characters that do not belong in a file name replaced by hyphens."""
    return re.sub(r"[^\w.-]+", "-", source).strip("-.")
