"""Figure of `experiments/story_channel.py`: what each restart costs each checkpoint, in two conditions."""

import pandas as pd
from matplotlib.figure import Figure

from experiments.story_tables import RESTARTS
from ghosttrace.report.looks import LOOKS

CONDITIONS = {
    "complete-derived": "the mementos keep every number",
    "needed-observed": "a memento omits a number that is needed",
}


def draw(results: pd.DataFrame) -> Figure:
    """Draw the effect of each restart with its interval, one panel per condition and one line per checkpoint.

    Args:
        results: `story_channel.parquet`.
    """
    models = list(dict.fromkeys(results["model"]))
    figure = Figure(figsize=(9.6, 0.9 + 0.55 * len(models)), layout="constrained")
    for axis, (condition, title) in zip(figure.subplots(1, 2, sharey=True), CONDITIONS.items(), strict=True):
        rows = results[results["bench"] == f"story-{condition}"]
        for number, arm in enumerate(RESTARTS):
            effects = rows[rows["arm"] == arm].set_index("model")[["effect", "effect_low", "effect_high"]]
            part = 100 * effects.reindex(models)
            at = [line + 0.22 * (number - 1) for line in range(len(models))]
            errors = [part["effect"] - part["effect_low"], part["effect_high"] - part["effect"]]
            look = LOOKS[number] | {"linestyle": "none"}
            axis.errorbar(part["effect"], at, xerr=errors, capsize=2, markersize=4, label=arm, **look)
        invalid = set(results.loc[~results["valid"] & (results["bench"] == f"story-{condition}"), "model"])
        for number, model in enumerate(models):
            if model in invalid:
                axis.text(0.02, number, "invalid", transform=axis.get_yaxis_transform(), fontsize=8, va="center")
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(yticks=range(len(models)), yticklabels=models, title=title, xlabel="effect against memento, points")
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure
