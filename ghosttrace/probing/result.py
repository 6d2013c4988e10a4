"""The result of probing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from ghosttrace.report.page import run_page
from ghosttrace.report.probing.figures import curves_figure, heads_figure, heat_figure
from ghosttrace.runs.result import RunResult


@dataclass(frozen=True, eq=False, repr=False)
class ProbeResult(RunResult):
    """Bits that probes of the retained cache add to the retained text.

    `results` has one row per site, probe, condition and target (see `ghosttrace.probing.evidence.summarise`),
    `samples` one row per fitted probe and target, with the log2 probabilities of the test samples
    (`ghosttrace.probing.evidence.PROBE_RECORDS`).
    """

    command = "probe"
    required_result_columns = ("significant", "headline")

    def figures(self) -> Mapping[str, Callable[[], Figure]]:
        """`layers`: bits by layer and hop; `hops`: at the best site of each hop; `heads`, where they were probed."""
        drawn = {
            "layers": partial(heat_figure, self.results, self.valid),
            "hops": partial(curves_figure, self.results, self.valid),
        }
        if self.results["head"].str.isdigit().any():
            drawn["heads"] = partial(heads_figure, self.results, self.valid)
        return drawn

    def page(self) -> str:
        """Verdict, figures and results as one HTML page."""
        title = f"Probes of {self.configuration['model']}"
        drawn = [draw() for draw in self.figures().values()]
        return run_page(title, self.configuration, self.failures, self.results, drawn)
