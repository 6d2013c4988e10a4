"""Rich table and figure of ghost bits."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from ghosttrace.report.ablation.figures import colour_of
from ghosttrace.report.figure import Figure
from ghosttrace.report.findings import failed_controls_text
from ghosttrace.report.tables import results_table


def bits_table(results: pd.DataFrame, configuration: Mapping[str, Any]) -> Table:
    """Return a table of ghost bits over all tokens and by kind of token, 80 columns wide.

    Control arms have one row, over all tokens.

    Args:
        results: Rows of `ghosttrace.ghost_bits.summary.summarise`.
        configuration: Content of run.json.
    """
    table = results_table(
        caption="Bits: log2 p(token | memento) - log2 p(token | arm), mean over the tokens from the first erasure on, "
        "with 95 % intervals over traces. By block and distance: summary.json.",
    )
    table.add_column("arm", overflow="fold", max_width=22)
    table.add_column("tokens", justify="right", overflow="fold")
    for name in ("n", "bits per token", "bits per trace"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in results[results["by"].isin(["all", "kind"])].to_dict("records"):
        if configuration["arms"][row["arm"]]["control"] and row["by"] != "all":
            continue
        if previous != row["source"]:
            table.add_section()
            table.add_row(f"[bold]{escape(row['source'])}[/]", f"{row['n_traces']} trace{'s' * (row['n_traces'] != 1)}")
        previous = row["source"]
        ends = "" if pd.isna(row["bits_low"]) else f" [{row['bits_low']:+.3f}, {row['bits_high']:+.3f}]"
        bits = f"{row['bits']:+.3f}{ends}", f"{row['bits_per_trace']:+.2f}"
        table.add_row(row["arm"], row["group"], f"{row['n_tokens']:,}", *bits)
    return table


def bits_findings(results: pd.DataFrame, failures: Sequence[str], configuration: Mapping[str, Any]) -> list[str]:
    """Return what the ghost channel is worth on each source, and whether the control passed.

    Args:
        results: Rows of `ghosttrace.ghost_bits.summary.summarise`.
        failures: Messages of the failed controls.
        configuration: Content of run.json.
    """
    whole = results[results["by"] == "all"]
    whole = whole.assign(size=whole["bits"].abs())
    controls = {name for name, arm in configuration["arms"].items() if arm["control"]}
    found = []
    for row in whole[~whole["arm"].isin(controls)].to_dict("records"):
        ends = "no interval" if pd.isna(row["bits_low"]) else f"[{row['bits_low']:+.3f}, {row['bits_high']:+.3f}]"
        gain = f"{row['bits']:+.3f} {ends} bits per token more than {row['arm']}"
        total = f"{row['bits_per_trace']:+.2f} per trace{_answer(results, row)}"
        found.append(f"On {row['source']}, memento predicts the text after the first erasure with {gain}: {total}.")
    if failures:
        return [*found, failed_controls_text(failures)]
    largest = whole[whole["arm"].isin(controls)].nlargest(1, "size").to_dict("records")
    return [
        *found,
        *(f"The controls passed: {row['arm']} differs by {row['bits']:+.4f} bits per token." for row in largest),
    ]


def _answer(results: pd.DataFrame, row: Mapping[Any, Any]) -> str:
    """Return the part of a source's bits that falls on the answer, where answers are marked."""
    same = results[(results["source"] == row["source"]) & (results["arm"] == row["arm"])]
    answer = same[(same["by"] == "kind") & (same["group"] == "answer")]
    return f", {answer['bits_per_trace'].iloc[0]:+.2f} of them on the answer" if answer["bits"].notna().any() else ""


def bits_figure(results: pd.DataFrame, configuration: Mapping[str, Any]) -> Figure:
    """Draw ghost bits per token by distance from the memento and by number of blocks before.

    Each source and arm has one line.

    Args:
        results: Rows of `ghosttrace.ghost_bits.summary.summarise`.
        configuration: Content of run.json.
    """
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = {"distance": "tokens after the memento", "block": "blocks before"}
    if "law" in configuration:
        titles = {"distance": "tokens after the last erasure", "block": "erasures before"}
    for axis, (by, title) in zip(axes, titles.items(), strict=True):
        part = results[results["by"] == by]
        groups = sorted(part["group"].unique(), key=lambda group: int(group.split("-")[0]))
        sources = list(dict.fromkeys(part["source"]))
        for (source, arm), rows in part.groupby(["source", "arm"], sort=False):
            line, style = rows.set_index("group").reindex(groups), sources.index(str(source))
            ends = np.array([line["bits"] - line["bits_low"], line["bits_high"] - line["bits"]])
            axis.errorbar(
                np.arange(len(groups)) + 0.06 * (style - len(sources) / 2),
                line["bits"],
                np.nan_to_num(ends),
                label=f"{source}, {arm}",
                color=colour_of(str(arm), configuration),
                alpha=1 - 0.7 * style / len(sources),
                marker="osD^v"[style % 5],
                markersize=3,
            )
        axis.axhline(0, color="black", linewidth=0.7)
        axis.set(xticks=range(len(groups)), xticklabels=groups, xlabel=title)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("ghost bits per token")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7, frameon=False)
    return figure
