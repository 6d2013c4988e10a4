"""Figures of an ablation, as matplotlib `Figure`s."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

COLOURS = {
    "memento": "#1b6e53",
    "full": "#7a7a7a",
    "placebo": "#57a773",
    "restart": "#b3392f",
    "restart-bare": "#8c2d04",
    "restart-renumbered": "#d77a61",
    "rerotated": "#d8a24a",
    "seal-delimiters": "#8c6bb1",
    "seal-mementos": "#6a51a3",
    "swap": "#2b6cb0",
    "noise": "#555555",
}


def accuracy_figure(results: pd.DataFrame, ceilings: Mapping[str, float | None]) -> Figure:
    """Accuracy by arm with 95 % intervals, one panel a benchmark.

    Args:
        results: rows of `ghosttrace.ablation.outcome.summarise`.
        ceilings: for each benchmark the most a sealed cache allows, drawn dashed where known.
    """
    benches = list(dict.fromkeys(results["bench"]))
    arms = list(dict.fromkeys(results["arm"]))[::-1]
    figure = Figure(figsize=(3.1 * len(benches) + 1.2, 0.36 * len(arms) + 1.3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(benches), sharey=True))
    for axis, bench in zip(axes, benches, strict=True):
        for row in results[results["bench"] == bench].to_dict("records"):
            y, value = arms.index(row["arm"]), row["accuracy"]
            spread = [[max(0.0, value - row["accuracy_low"])], [max(0.0, row["accuracy_high"] - value)]]
            axis.barh(y, value, color=COLOURS.get(row["arm"], "#999999"), height=0.62)
            axis.errorbar(value, y, xerr=spread, color="black", capsize=2.5, linewidth=1)
        ceiling = ceilings.get(bench)
        if ceiling is not None:
            axis.axvline(ceiling, color="black", linestyle="--", linewidth=0.9)
            axis.set_xlabel(f"accuracy (dashed: a sealed cache's best, {ceiling:g})", fontsize=8)
        else:
            axis.set_xlabel("accuracy", fontsize=8)
        axis.set(title=bench, xlim=(0, 1.03), yticks=range(len(arms)), yticklabels=arms)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def sawtooth_figure(curves: Mapping[str, np.ndarray], title: str) -> Figure:
    """KV tokens held against step, one line an arm; arms with the same curve share a line.

    Args:
        curves: for each arm int64[steps].
        title: which problem.
    """
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axis = figure.subplots()
    shared: dict[tuple[int, ...], list[str]] = {}
    for arm, curve in curves.items():
        shared.setdefault(tuple(curve.tolist()), []).append(arm)
    for order, (steps, arms) in enumerate(shared.items()):  # memento, the first, on top
        colour = COLOURS.get(arms[0], "#999999")
        axis.step(range(len(steps)), steps, where="post", color=colour, label=", ".join(arms), zorder=9 - order)
    axis.set(xlabel="step", ylabel="KV tokens held", title=title, ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, loc="upper left")
    return figure
