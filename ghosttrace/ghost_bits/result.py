"""The result of measuring ghost bits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from ghosttrace.report.ghost_bits import bits_figure
from ghosttrace.report.page import run_page
from ghosttrace.runs.result import RunResult


@dataclass(frozen=True, eq=False, repr=False)
class BitsResult(RunResult):
    """Ghost bits of fixed traces.

    `results` has one row per source, arm and group of tokens (see `ghosttrace.ghost_bits.summary.summarise`),
    `samples` one row per trace and arm, with log2 probabilities token by token.
    """

    command = "bits"

    def figures(self) -> Mapping[str, Callable[[], Figure]]:
        """`bits`: bits per token by distance after the memento and by block."""
        return {"bits": partial(bits_figure, self.results, self.configuration)}

    def page(self) -> str:
        """Verdict, figure and results as one HTML page."""
        title = f"Ghost bits of {self.configuration['model']}"
        drawn = [draw() for draw in self.figures().values()]
        return run_page(title, self.configuration, self.failures, self.results, drawn)
