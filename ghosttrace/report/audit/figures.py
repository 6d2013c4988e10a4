"""Matplotlib figures of a privacy audit; those of an invalid run are marked INVALID."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ghosttrace.report.audit.wording import BIT_UNITS, CONTROL_EXPECTATIONS, location_text, title
from ghosttrace.report.figure import Figure
from ghosttrace.report.probing.figures import heat_figure, mark_invalid

OPEN_COLOUR, CONTROL_COLOUR, LIMIT_COLOUR = "#1b6e53", "#9a9a9a", "#b3392f"
MARKERS = {"open": "o", "sealed": "s", "causal": "x", "shuffled": "d", "text": "|", "unerased": "^"}
MAX_ROWS = 30  # rows per figure
Row = Mapping[str, Any]


def has_bits(summary: Row) -> bool:
    """Return True if the summary has a row that `leak_figure` can draw."""
    return any(
        row["unit"] in BIT_UNITS and row["estimate"] is not None and row["condition"] in ("open", *CONTROL_EXPECTATIONS)
        for row in summary["results"]
    )


def leak_figure(summary: Row) -> Figure:
    """Draw the leak in bits by attack with intervals, the limit dashed, controls in grey.

    Each attack, secret and site has one line, the largest estimate on top. Below them, each control and attack has
    one line, for the row with its largest estimate. The axis is linear up to the limit and logarithmic beyond.

    Args:
        summary: Content of summary.json.
    """
    rows = [row for row in summary["results"] if row["unit"] in BIT_UNITS and row["estimate"] is not None]
    open_rows = sorted((row for row in rows if row["condition"] == "open"), key=lambda row: row["estimate"])[-MAX_ROWS:]
    control_rows = strongest_controls(rows)
    lines = [*control_rows, *open_rows]
    figure = Figure(figsize=(7.6, 0.27 * len(lines) + 1.2), layout="constrained")
    axis = figure.subplots()
    for y, row in enumerate(lines):
        draw_interval(axis, y, row)
    axis.set_xscale("symlog", linthresh=summary["max_leak_bits"])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.axvline(summary["max_leak_bits"], color=LIMIT_COLOUR, linestyle="--", linewidth=1)
    axis.axvline(0, color="black", linewidth=0.7)
    axis.set_yticks(range(len(lines)), [label(row, summary) for row in lines], fontsize=7)
    if control_rows and open_rows:
        axis.axhline(len(control_rows) - 0.5, color="#cccccc", linewidth=0.7)
    axis.set_xlabel(
        f"leak in bits per secret (dashed: the limit, {summary['max_leak_bits']:g}); controls in grey", fontsize=8
    )
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    mark_invalid(figure, not summary["failures"])
    return figure


def strongest_controls(rows: Sequence[Row]) -> list[Row]:
    """Return the row with the largest estimate of each control and attack, in the page's order from the bottom."""
    best: dict[tuple[str, str], Row] = {}
    for row in sorted(rows, key=lambda row: row["estimate"]):
        if row["condition"] in CONTROL_EXPECTATIONS:
            best[row["condition"], row["attack"]] = row
    order = list(CONTROL_EXPECTATIONS)
    return [best[key] for key in sorted(best, key=lambda key: (-order.index(key[0]), key[1]))]


def draw_interval(axis: Axes, y: int, row: Row) -> None:
    """Draw one estimate with its interval at height `y`."""
    colour = OPEN_COLOUR if row["condition"] == "open" else CONTROL_COLOUR
    if row["low"] is not None and row["high"] is not None:
        axis.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    axis.plot(row["estimate"], y, marker=MARKERS[row["condition"]], color=colour, markersize=5)


def label(row: Row, summary: Row) -> str:
    """Return the label of a line of `leak_figure`."""
    if row["condition"] != "open":
        return f"{row['condition']}: {title(row['attack'], summary).lower()}"
    location = location_text(row)
    return f"{title(row['attack'], summary)}, {row['secret']}{f' · {location}' if location else ''}"


def has_sites(summary: Row) -> bool:
    """Return True if the summary has a site that `sites_figure` can draw."""
    return any(row["probe"] == "linear" and row["layer"].isdigit() and row["head"] == "all" for row in summary["sites"])


def sites_figure(summary: Row) -> Figure:
    """Draw bits by layer and hop, as `ghosttrace probe` does."""
    return heat_figure(pd.DataFrame(summary["sites"]), not summary["failures"])


def pareto_row(summary: Row) -> dict[str, Any]:
    """Summarise an audit as one point of `pareto_figure`.

    Args:
        summary: Content of summary.json.

    Returns:
        `defence`; `leak`, the largest estimate of the open rows in bits that decide the verdict; `lost`, minus the
        effect of the defence on utility; `leak_low`, `leak_high`, `lost_low` and `lost_high`, their 95 % intervals;
        `unit` of the utility; `cost`, the prefill tokens relative to those without the defence.
    """
    rows = [row for row in summary["results"] if row["condition"] == "open" and row["gate"] and row["unit"] == "bits"]
    worst = max((row for row in rows if row["estimate"] is not None), key=lambda row: row["estimate"])
    defence = summary["defence"]
    return {
        "defence": defence["name"],
        **{name: worst[column] for name, column in (("leak", "estimate"), ("leak_low", "low"), ("leak_high", "high"))},
        "lost": -defence["effect"],
        "lost_low": -defence["effect_high"],
        "lost_high": -defence["effect_low"],
        "unit": defence["utility_unit"],
        "cost": defence["prefill_ratio"],
    }


def pareto_figure(rows: Sequence[Row], max_leak_bits: float = 0.1) -> Figure:
    """Draw leak in bits against utility lost, one labelled point per defence.

    The area of a point is the prefill cost of the defence. A line joins the Pareto front.

    Args:
        rows: Rows of `pareto_row`, all with the same model, problems and unit.
        max_leak_bits: Limit of the audit, drawn dashed.
    """
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axis = figure.subplots()
    front = pareto_front(rows)
    axis.step([row["lost"] for row in front], [row["leak"] for row in front], where="post", color="#cccccc", zorder=1)
    for row in rows:
        across = [[row["lost"] - row["lost_low"]], [row["lost_high"] - row["lost"]]]
        along = [[row["leak"] - row["leak_low"]], [row["leak_high"] - row["leak"]]]
        axis.errorbar(
            row["lost"], row["leak"], along, across, fmt="none", ecolor=CONTROL_COLOUR, elinewidth=0.9, zorder=2
        )
        colour = OPEN_COLOUR if row in front else CONTROL_COLOUR
        axis.scatter(row["lost"], row["leak"], s=45 * (row["cost"] or 1.0), color=colour, edgecolor="white", zorder=3)
    axis.set_yscale("symlog", linthresh=max_leak_bits)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.axhline(max_leak_bits, color=LIMIT_COLOUR, linestyle="--", linewidth=1)
    axis.set_xlabel(f"{rows[0]['unit'] or 'accuracy'} lost", fontsize=9)
    axis.set_ylabel(f"leak in bits per secret (dashed: the limit, {max_leak_bits:g})", fontsize=9)
    legend = "Area: prefill tokens. Green: Pareto front. Lower left is better."
    axis.set_title(legend, fontsize=8, loc="left", color="#555555")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    label_points(axis, rows)
    return figure


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """Return the Pareto-optimal rows in leak and loss, sorted by loss."""

    def dominated(row: Row) -> bool:
        return any(
            other["leak"] <= row["leak"]
            and other["lost"] <= row["lost"]
            and (other["leak"] < row["leak"] or other["lost"] < row["lost"])
            for other in rows
        )

    return sorted((row for row in rows if not dominated(row)), key=lambda row: (row["lost"], -row["leak"]))


def label_points(axis: Axes, rows: Sequence[Row]) -> None:
    """Write the defences' names beside the axes, each joined to its point, because points may coincide."""
    to_axes = axis.transData + axis.transAxes.inverted()
    at = [tuple(to_axes.transform((row["lost"], row["leak"]))) for row in rows]
    order = sorted(range(len(rows)), key=lambda number: (at[number][1], -at[number][0]))
    gap, heights = 0.06, np.array([at[number][1] for number in order])
    for number in range(1, len(heights)):
        heights[number] = max(heights[number], heights[number - 1] + gap)
    heights -= max(0.0, heights[-1] - 1.0)
    for number in range(len(heights) - 2, -1, -1):
        heights[number] = min(heights[number], heights[number + 1] - gap)
    for number, height in zip(order, heights, strict=True):
        axis.annotate(
            rows[number]["defence"],
            (rows[number]["lost"], rows[number]["leak"]),
            (1.03, height),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6, "shrinkB": 3},
        )
