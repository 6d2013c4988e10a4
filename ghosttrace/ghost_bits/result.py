"""The result of a `bits` run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from ghosttrace.report.ghost_bits import bits_figure, bits_findings
from ghosttrace.report.page import run_page
from ghosttrace.runs.result import RunResult


@dataclass(frozen=True, eq=False, repr=False)
class BitsResult(RunResult):
    """Ghost bits of fixed traces.

    `results` has one row per source, arm and group of tokens (see `ghosttrace.ghost_bits.summary.summarise`).
    `samples` has one row per trace and arm, with the log2 probability of every measured token.
    """

    command = "bits"

    @property
    def findings(self) -> list[str]:
        """What the channel is worth on each source, and whether the control passed, in sentences."""
        return bits_findings(self.results, self.failures, self.configuration)

    def figures(self) -> Mapping[str, Callable[[], Figure]]:
        """Return the figure `bits`: bits per token by distance after the memento and by block."""
        return {"bits": partial(bits_figure, self.results, self.configuration)}

    def page(self) -> str:
        """Return an HTML page with the verdict, the figure and the results."""
        title = f"Ghost bits of {self.configuration['model']}"
        figures = [draw() for draw in self.figures().values()]
        return run_page(title, self.configuration, self.failures, self.results, figures)
