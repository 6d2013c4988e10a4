"""The result of patching."""

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
    """What each site of the retained cache is worth to the text that follows.

    `results` has one row per source, intervention and site (see `ghosttrace.patching.summary.summarise`),
    `samples` one row per trace and intervention (`ghosttrace.patching.measure.PATCH_TABLE`).
    """

    command = "patch"
    required_summary_keys = (*RunResult.required_summary_keys, "site_sets")

    @property
    def site_sets(self) -> list[Mapping[str, Any]]:
        """For each source that was swapped the sites that together carry the answer.

        Each has source, sites (carrier, place, layer, kv, token), recovered (the share of the whole effect, with
        `_low` and `_high`), n_traces, enough (whether the search reached its aim) and valid.
        """
        return list(self.summary["site_sets"])

    def figures(self) -> Mapping[str, Callable[[], Figure]]:
        """`patch-SOURCE` for each source: bits by layer and token."""
        drawn: dict[str, Callable[[], Figure]] = {}
        for number, (source, rows) in enumerate(self.results.groupby("source", sort=False)):
            name = f"patch-{_file_name(str(source))}"
            drawn[f"{name}-{number}" if name in drawn else name] = partial(heat_maps, rows)
        return drawn

    def page(self) -> str:
        """Verdict, figures and results as one HTML page."""
        title = f"Patches of {self.configuration['model']}"
        drawn = [draw() for draw in self.figures().values()]
        return run_page(title, self.configuration, self.failures, self.results, drawn)


def _file_name(source: str) -> str:
    """A source as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", source).strip("-.")
