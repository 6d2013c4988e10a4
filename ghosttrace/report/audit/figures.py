"""Figures of a privacy audit, as matplotlib `Figure`s; an invalid run says so across those of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ghosttrace.report.audit.wording import BIT_UNITS, CONTROL_EXPECTATIONS, location_text, title
from ghosttrace.report.probing.figures import heat_figure, mark_invalid

OPEN_COLOUR, CONTROL_COLOUR, LIMIT_COLOUR = "#1b6e53", "#9a9a9a", "#b3392f"
MARKERS = {"open": "o", "sealed": "s", "causal": "x", "shuffled": "d", "text": "|", "unerased": "^"}
MAX_ROWS = 30  # rows of one figure
Row = Mapping[str, Any]


def has_bits(summary: Row) -> bool:
    """Whether there is a row for `leak_figure` to draw."""
    return any(
        row["unit"] in BIT_UNITS and row["estimate"] is not None and row["condition"] in ("open", *CONTROL_EXPECTATIONS)
        for row in summary["results"]
    )


def leak_figure(summary: Row) -> Figure:
    """Leak in bits by attack with intervals, the limit dashed, controls in grey.

    One line an attack, secret and place, the largest first; a control stands on the line of its attack and
    secret where it showed most. The axis is linear up to the limit and logarithmic beyond.
    """
    rows = [row for row in summary["results"] if row["unit"] in BIT_UNITS and row["estimate"] is not None]
    found = sorted((row for row in rows if row["condition"] == "open"), key=lambda row: row["estimate"])[-MAX_ROWS:]
    beside = strongest_controls(rows)
    lines = [*beside, *found]
    figure = Figure(figsize=(7.6, 0.27 * len(lines) + 1.2), layout="constrained")
    axis = figure.subplots()
    for y, row in enumerate(lines):
        draw_interval(axis, y, row)
    axis.set_xscale("symlog", linthresh=summary["max_leak_bits"])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.axvline(summary["max_leak_bits"], color=LIMIT_COLOUR, linestyle="--", linewidth=1)
    axis.axvline(0, color="black", linewidth=0.7)
    axis.set_yticks(range(len(lines)), [label(row, summary) for row in lines], fontsize=7)
    if beside and found:
        axis.axhline(len(beside) - 0.5, color="#cccccc", linewidth=0.7)
    axis.set_xlabel(
        f"leak in bits a secret (dashed: the limit, {summary['max_leak_bits']:g}); controls in grey", fontsize=8
    )
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    mark_invalid(figure, not summary["failures"])
    return figure


def strongest_controls(rows: Sequence[Row]) -> list[Row]:
    """Of each control and attack the row that showed most, in the order of the page from the bottom."""
    best: dict[tuple[str, str], Row] = {}
    for row in sorted(rows, key=lambda row: row["estimate"]):
        if row["condition"] in CONTROL_EXPECTATIONS:
            best[row["condition"], row["attack"]] = row
    order = list(CONTROL_EXPECTATIONS)
    return [best[key] for key in sorted(best, key=lambda key: (-order.index(key[0]), key[1]))]


def draw_interval(axis: Axes, y: int, row: Row) -> None:
    """One estimate with its interval."""
    colour = OPEN_COLOUR if row["condition"] == "open" else CONTROL_COLOUR
    if row["low"] is not None and row["high"] is not None:
        axis.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    axis.plot(row["estimate"], y, marker=MARKERS[row["condition"]], color=colour, markersize=5)


def label(row: Row, summary: Row) -> str:
    """What a line of the figure is."""
    if row["condition"] != "open":
        return f"{row['condition']}: {title(row['attack'], summary).lower()}"
    where = location_text(row)
    return f"{title(row['attack'], summary)}, {row['secret']}{f' · {where}' if where else ''}"


def has_sites(summary: Row) -> bool:
    """Whether there is a site for `sites_figure` to draw."""
    return any(row["probe"] == "linear" and row["layer"].isdigit() and row["head"] == "all" for row in summary["sites"])


def sites_figure(summary: Row) -> Figure:
    """Bits by layer and hop, as `ghosttrace probe` draws them."""
    return heat_figure(pd.DataFrame(summary["sites"]), not summary["failures"])


def pareto_row(summary: Row) -> dict[str, Any]:
    """An audit as one point of `pareto`: defence, leak and lost with intervals, unit, cost.

    leak is the largest of the judged open rows, lost is minus the effect of the defence, cost the number
    of prefill tokens over those of a run without it.
    """
    rows = [row for row in summary["results"] if row["condition"] == "open" and row["gate"]]
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
    """Leak in bits against accuracy lost, one labelled point a defence, its area the prefill that it costs.

    The line joins the defences that no other beats in both.

    Args:
        rows: of `pareto_row`, all of the same model, problems and unit.
        max_leak_bits: drawn dashed.
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
    axis.set_ylabel(f"leak in bits a secret (dashed: the limit, {max_leak_bits:g})", fontsize=9)
    legend = "Area: prefill tokens. Green: no other is better in both. Down and left is better."
    axis.set_title(legend, fontsize=8, loc="left", color="#555555")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    label_points(axis, rows)
    return figure


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other equals or beats in both leak and loss while beating it in one, by loss."""

    def beaten(row: Row) -> bool:
        return any(
            other["leak"] <= row["leak"]
            and other["lost"] <= row["lost"]
            and (other["leak"] < row["leak"] or other["lost"] < row["lost"])
            for other in rows
        )

    return sorted((row for row in rows if not beaten(row)), key=lambda row: (row["lost"], -row["leak"]))


def label_points(axis: Axes, rows: Sequence[Row]) -> None:
    """Names beside the axes, one below the other, each joined to its point: points may coincide."""
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
