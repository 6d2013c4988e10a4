"""The result of an audit: the verdict, the findings, figures, and the reports."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ghosttrace.auditing.verdict import Verdict
from ghosttrace.report.audit.figures import has_bits, has_sites, leak_figure, sites_figure
from ghosttrace.report.audit.page import REQUIRED_KEYS, page, write_reports
from ghosttrace.runs.result import RunResult


@dataclass(frozen=True, eq=False, repr=False)
class AuditResult(RunResult):
    """What an audit found.

    `results` has one row per attack, secret, condition and unit (see `ghosttrace.auditing.evidence.Evidence`),
    `samples` one row per fitted probe and target (see `ghosttrace.probing.evidence.PROBE_RECORDS`).
    """

    command = "audit"
    required_summary_keys = REQUIRED_KEYS

    @cached_property
    def verdict(self) -> Verdict:
        """What the gate says, with the state of each row of `results`."""
        found = self.summary
        states = tuple(row["state"] for row in found["results"])
        return Verdict(found["verdict"], found["sentence"], found["ceiling_bits"], found["traces_needed"], states)

    @property
    def exit_code(self) -> int:
        """Of the command: 0 nothing above the limit, 10 a leak, 11 not enough data, 12 a control failed."""
        return self.verdict.exit_code

    @cached_property
    def sites(self) -> pd.DataFrame:
        """The sweep of probes, one row per site, condition and target."""
        return pd.DataFrame(self.summary["sites"])

    def figures(self) -> Mapping[str, Callable[[], Figure]]:
        """`leak`: bits by attack with the limit; `sites`: bits by layer and hop. None without such rows."""
        drawn = {"leak": (has_bits, leak_figure), "sites": (has_sites, sites_figure)}
        return {name: partial(draw, self.summary) for name, (has, draw) in drawn.items() if has(self.summary)}

    def page(self) -> str:
        """Verdict, findings, controls and advice as one HTML page."""
        return page(self.summary, self.configuration)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report; into the run's folder with audit.sarif and card.md beside it.

        Args:
            path: where to write the HTML page alone; None: all three into the run's folder.

        Raises:
            UserError: the run has no folder and no path is given, or a file cannot be written.
        """
        if path is not None or self.folder is None:
            return super().report(path)
        write_reports(self.folder, self.summary, self.configuration)
        return self.folder / "report.html"
