"""Matplotlib figures of an ablation."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ghosttrace.law.expiry import alive, expiry
from ghosttrace.law.markup import Markup
from ghosttrace.law.parse import recorded_law
from ghosttrace.report.figure import Figure

OTHER = "#999999"
LINES = ("-", "--", ":", "-.")  # so that arms differ without colours, too


def colour_of(arm: str, configuration: Mapping[str, Any]) -> str:
    """Return the colour of an arm that run.json records, or grey."""
    return str(configuration["arms"].get(arm, {}).get("colour", OTHER))


def accuracy_figure(results: pd.DataFrame, configuration: Mapping[str, Any]) -> Figure:
    """Draw accuracy by arm with 95 % intervals, one panel per benchmark.

    A dashed line marks the ceiling of a sealed cache where the benchmark has one.

    Args:
        results: One row per benchmark and arm.
        configuration: Content of run.json.
    """
    benches = list(dict.fromkeys(results["bench"]))
    arms = list(dict.fromkeys(results["arm"]))[::-1]
    figure = Figure(figsize=(3.1 * len(benches) + 1.2, 0.36 * len(arms) + 1.3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(benches), sharey=True))
    for axis, bench in zip(axes, benches, strict=True):
        for row in results[results["bench"] == bench].to_dict("records"):
            y, value = arms.index(row["arm"]), row["accuracy"]
            spread = [[max(0.0, value - row["accuracy_low"])], [max(0.0, row["accuracy_high"] - value)]]
            axis.barh(y, value, color=colour_of(row["arm"], configuration), height=0.62)
            axis.errorbar(value, y, xerr=spread, color="black", capsize=2.5, linewidth=1)
        ceiling = configuration["benches"].get(bench, {}).get("ceiling")
        if ceiling is not None:
            axis.axvline(ceiling, color="black", linestyle="--", linewidth=0.9)
            axis.set_xlabel(f"accuracy (dashed: ceiling of a sealed cache, {ceiling:g})", fontsize=8)
        else:
            axis.set_xlabel("accuracy", fontsize=8)
        axis.set(title=bench, xlim=(0, 1.03), yticks=range(len(arms)), yticklabels=arms)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def kv_curves(samples: pd.DataFrame, configuration: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Compute the KV tokens held at each step from each arm's law.

    Args:
        samples: One row per arm, with `arm`, `prompt_ids` and `response_ids`.
        configuration: Content of run.json.

    Returns:
        For each arm an int64 array of length T, one entry per token of prompt and response.
    """
    markup = Markup.from_dict(configuration["markup"])
    laws = {name: recorded_law(arm, markup) for name, arm in configuration["arms"].items()}
    return {
        row["arm"]: alive(expiry([*row["prompt_ids"], *row["response_ids"]], laws[row["arm"]]))
        for row in samples.to_dict("records")
    }


def sawtooth_figure(curves: Mapping[str, np.ndarray], configuration: Mapping[str, Any], title: str) -> Figure:
    """Draw the KV tokens held at each step, one line per arm; arms with identical curves share a line.

    Args:
        curves: For each arm an int64 array with one entry per step, as `kv_curves` returns it.
        configuration: Content of run.json.
        title: Title of the figure, such as the problem.
    """
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axis = figure.subplots()
    shared: dict[tuple[int, ...], list[str]] = {}
    for arm, curve in curves.items():
        shared.setdefault(tuple(curve.tolist()), []).append(arm)
    for order, (steps, arms) in enumerate(shared.items()):  # draw memento, the first, on top
        colour = colour_of(arms[0], configuration)
        line, label = LINES[order % len(LINES)], ", ".join(arms)
        axis.step(range(len(steps)), steps, line, where="post", color=colour, label=label, zorder=9 - order)
    axis.set(xlabel="step", ylabel="KV tokens held", title=title, ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, loc="upper left")
    return figure
