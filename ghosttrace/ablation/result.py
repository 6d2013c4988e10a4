"""The result of an ablation: samples, effects, figures and the HTML page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import pandas as pd
from matplotlib.figure import Figure

from ghosttrace.ablation.decomposition import COLUMNS, decompose
from ghosttrace.report.ablation.figures import accuracy_figure, kv_curves, sawtooth_figure
from ghosttrace.report.ablation.findings import ablation_findings
from ghosttrace.report.ablation.page import render
from ghosttrace.runs.result import RunResult


@dataclass(frozen=True, eq=False, repr=False)
class AblationResult(RunResult):
    """Result of an ablation.

    `results` has one row per benchmark and arm (see `ghosttrace.ablation.summary.summarise`). `samples` has one row
    per sample (see `ghosttrace.ablation.samples.SAMPLE_SCHEMA`).
    """

    command = "ablate"
    required_summary_keys = (*RunResult.required_summary_keys, "headline_arm", "at_k")
    required_result_columns = ("significant", "blocks", "n_clusters", "rests_on_few", "effect_low_joint", "equivalent")

    @cached_property
    def at_k(self) -> pd.DataFrame:
        """Table of pass@k and maj@k with one row per benchmark, arm and k (see `ghosttrace.ablation.summary.at_k`)."""
        return pd.DataFrame(self.summary["at_k"])

    @property
    def findings(self) -> list[str]:
        """The effect, whether the controls passed, and what limits the conclusion, in sentences."""
        return ablation_findings(self.results, self.summary, self.configuration)

    def decompose(self) -> pd.DataFrame:
        """Return what the drop under `restart` is made of, one row per component.

        Margin of equivalence is the run's own. A run started with `decompose=True` also shows the table on its page.

        Returns:
            See `ghosttrace.ablation.decomposition.decompose`.

        Raises:
            UserError: The run cannot be decomposed, for example because no benchmark says what its mementos omit.
        """
        return decompose(self.source.frame(COLUMNS), self.configuration)

    def per_problem(self) -> pd.DataFrame:
        """Return the number of correct answers, with one row per benchmark and problem and one column per arm."""
        samples = self.source.frame(["bench", "problem", "arm", "correct"])
        table = samples.pivot_table(
            index=["bench", "problem"], columns="arm", values="correct", aggfunc="sum", sort=False
        )
        return table.astype(int)

    def figures(self) -> Mapping[str, Callable[[], Figure]]:
        """Return the figures by name: `accuracy` per arm, and `sawtooth`, KV tokens at each step of one response."""
        return {"accuracy": partial(accuracy_figure, self.results, self.configuration), "sawtooth": self._sawtooth}

    def _sawtooth(self) -> Figure:
        bench = self.results.iloc[-1]["bench"]
        first = self.source.frame(["problem", "repetition"], bench=bench).iloc[0]
        sample = {"bench": bench, "problem": first["problem"], "repetition": int(first["repetition"])}
        rows = self.source.frame(["arm", "prompt_ids", "response_ids"], **sample)
        title = f"{self.configuration['model']}, {first['problem']}"
        return sawtooth_figure(kv_curves(rows, self.configuration), self.configuration, title)

    def page(self) -> str:
        """Return the HTML page with effects, answers, KV usage and a viewer of the traces."""
        with self.source.stored() as samples:
            return render(self.configuration, self.summary, samples)
