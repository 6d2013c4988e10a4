"""The decomposition of a drop under `restart` as a table of the terminal, and its numbers on the page."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from ghosttrace.report.tables import results_table

SHARES = ("swap", "null swap")
"""Components that are shares of answers, not differences of accuracies."""


def component_estimate(row: Mapping[Any, Any]) -> str:
    """Format the estimate of a component with its interval, in points or percent; empty if it was not measured.

    Args:
        row: Fields of `ghosttrace.ablation.decomposition.Component`.
    """
    if pd.isna(row["estimate"]):
        return ""
    form = ".1f" if row["component"] in SHARES else "+.1f"
    value, low, high = (f"{round(100 * row[name], 1) + 0.0:{form}}" for name in ("estimate", "low", "high"))
    return f"{value} [{low}, {high}]"


def decomposition_table(components: pd.DataFrame) -> Table:
    """Return a table with one row per component, 80 columns wide.

    Args:
        components: Rows of `ghosttrace.ablation.decomposition.decompose`.
    """
    table = results_table(
        caption="Decomposition of the drop under restart in points, with 95 % intervals: total = unfamiliarity + "
        "content; delimiters and position: what other restarts add; swap: % of answers; n: problems (clusters).",
    )
    table.add_column("component", no_wrap=True)
    table.add_column("points", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    previous = None
    for row in components.to_dict("records"):
        if previous != row["bench"]:
            table.add_section()
            table.add_row(f"[bold]{escape(row['bench'])}[/]")
        previous = row["bench"]
        against = f" (against {row['compared_with']})" if isinstance(row["compared_with"], str) else ""
        note = f": {row['note']}" if row["note"] else ""
        table.add_row(row["component"], component_estimate(row), _size(row), escape(f"{row['verdict']}{against}{note}"))
    return table


def _size(row: Mapping[Any, Any]) -> str:
    """Format the number of problems, and that of clusters where it differs; empty if nothing was measured."""
    if pd.isna(row["n_problems"]):
        return ""
    clusters = f" ({row['n_clusters']:.0f})" if row["n_clusters"] != row["n_problems"] else ""
    return f"{row['n_problems']:.0f}{clusters}"
