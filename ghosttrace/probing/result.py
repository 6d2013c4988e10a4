"""The result of a probe run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from ghosttrace.report.page import run_page
from ghosttrace.report.probing.figures import curves_figure, heads_figure, heat_figure
from ghosttrace.report.probing.findings import probe_findings
from ghosttrace.runs.result import RunResult


@dataclass(frozen=True, eq=False, repr=False)
class ProbeResult(RunResult):
    """The result of `probe`: bits beyond the text in retained keys and values.

    `results` has one row per site, probe, condition and target (see `ghosttrace.probing.evidence.summarise`).
    `samples` has one row per fitted probe and target, with the base-2 log-probabilities of the test samples
    (see `ghosttrace.probing.evidence.PROBE_RECORDS`).
    """

    command = "probe"
    required_result_columns = ("significant", "headline")

    @property
    def findings(self) -> list[str]:
        """What the probes read of each target at each hop, and whether the controls passed, in sentences."""
        return probe_findings(self.results, self.failures)

    def figures(self) -> Mapping[str, Callable[[], Figure]]:
        """Return the functions that draw the figures, by name.

        `layers` shows bits by layer and hop, `hops` bits at the best site of each hop, and `heads` bits by head, if
        heads were probed.
        """
        figures = {
            "layers": partial(heat_figure, self.results, self.valid),
            "hops": partial(curves_figure, self.results, self.valid),
        }
        if self.results["head"].str.isdigit().any():
            figures["heads"] = partial(heads_figure, self.results, self.valid)
        return figures

    def page(self) -> str:
        """Render the verdict, figures and results as one HTML page."""
        title = f"Probes of {self.configuration['model']}"
        drawn = [draw() for draw in self.figures().values()]
        return run_page(title, self.configuration, self.failures, self.results, drawn)
