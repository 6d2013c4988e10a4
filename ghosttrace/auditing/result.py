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
from ghosttrace.report.audit.table import audit_findings
from ghosttrace.runs.result import RunResult, reading_run


@dataclass(frozen=True, eq=False, repr=False)
class AuditResult(RunResult):
    """Result of an audit.

    `results` has one row per attack, secret, condition and unit (see `ghosttrace.auditing.evidence.Evidence`),
    `samples` one row per fitted probe and target (see `ghosttrace.probing.evidence.PROBE_RECORDS`).
    """

    command = "audit"
    required_summary_keys = REQUIRED_KEYS

    @cached_property
    def verdict(self) -> Verdict:
        """The verdict, with the state of each row of `results`."""
        summary = self.summary
        states = tuple(row["state"] for row in summary["results"])
        return Verdict(
            summary["verdict"], summary["sentence"], summary["ceiling_bits"], summary["traces_needed"], states
        )

    @property
    def exit_code(self) -> int:
        """Exit code of the command (0 no leak above the limit, 10 a leak, 11 not enough data, 12 a failed control)."""
        return self.verdict.exit_code

    @cached_property
    def sites(self) -> pd.DataFrame:
        """Summary table of the sweep of probes, one row per site, condition and target."""
        return pd.DataFrame(self.summary["sites"])

    @property
    def findings(self) -> list[str]:
        """The verdict with what the audit could have detected, or the failed controls, in sentences."""
        return audit_findings(self.summary)

    def figures(self) -> Mapping[str, Callable[[], Figure]]:
        """Return the figures: `leak`, bits by attack with the limit, and `sites`, bits by layer and hop.

        Figures without rows are omitted.
        """
        figures = {"leak": (has_bits, leak_figure), "sites": (has_sites, sites_figure)}
        return {
            name: partial(draw, self.summary) for name, (has_rows, draw) in figures.items() if has_rows(self.summary)
        }

    def page(self) -> str:
        """Return verdict, findings, controls and advice as one HTML page."""
        return page(self.summary, self.configuration)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report and return the path of its HTML page.

        Args:
            path: Path for the HTML page only. None writes report.html, audit.sarif and card.md to the run folder.

        Raises:
            UserError: The run has no folder and no path is given, or a file cannot be written.
        """
        if path is not None or self.folder is None:
            return super().report(path)
        with reading_run(self.folder):
            write_reports(self.folder, self.summary, self.configuration)
        return self.folder / "report.html"
