"""Claim: a drop under `restart` does not by itself measure missing information.

Two models with the same architecture and task run the same arms on the same problems; only one of them was trained
with sealed caches. Writes `experiments/results/ledger_pair.parquet` (columns of
`ghosttrace.ablation.summary.summarise`, and the model) and `figures/ledger_pair.{png,svg}`.
`python experiments/ledger_pair.py`: about three minutes on two cores.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import ghosttrace as gt
from ghosttrace.runs.figures import write_figure

ROOT = Path(__file__).parent.parent
ARMS = ("placebo", "restart", "swap")
HATCHES = ("", "..", "//", "xx")


def measure() -> pd.DataFrame:
    """Run the arms on both models and all four levels.

    Raises:
        SystemExit: If a control failed.
    """
    parts = []
    for model in ("toy-open", "toy-mixed"):
        outcome = gt.ablate(model, arms=ARMS)
        if not outcome.valid:
            raise SystemExit(f"{model}: controls failed: {outcome.failures}")
        parts.append(outcome.results.assign(model=model))
    return pd.concat(parts, ignore_index=True)


def draw(results: pd.DataFrame) -> Figure:
    """Draw accuracy by h, one panel per model; for swap, the share of answers that follow the donor."""
    figure = Figure(figsize=(8.4, 3.1), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = {
        "toy-open": "toy-open: trained without sealed caches",
        "toy-mixed": "toy-mixed: trained on both kinds of cache",
    }
    for axis, (model, title) in zip(axes, titles.items(), strict=True):
        for number, arm in enumerate(("memento", "placebo", "restart", "swap")):
            part = results[(results["model"] == model) & (results["arm"] == arm)]
            at = [level + 0.2 * (number - 1.5) for level in range(4)]
            value, low, high = part["accuracy"], part["accuracy_low"], part["accuracy_high"]
            look = {"color": gt.ARMS[arm].colour, "hatch": HATCHES[number], "edgecolor": "white", "width": 0.18}
            if arm == "swap":
                axis.bar(at, part["follows_donor"], label="swap: follows the donor", **look)
                continue
            errors = [(value - low).tolist(), (high - value).tolist()]
            axis.bar(at, value, yerr=errors, capsize=2, label=f"{arm}: answer correct", **look)
        axis.step(
            [-0.5, 0.5, 1.5, 2.5, 3.5], [1, 1, 0.1, 0.01, 0.001], "k--", linewidth=1, label="ceiling of a sealed cache"
        )
        axis.set(title=title, xlabel="hidden digits h", xticks=range(4), ylim=(0, 1.05))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of answers")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7, frameon=False)
    return figure


def main() -> None:
    """Measure and write results and figure."""
    results = measure()
    (ROOT / "experiments" / "results").mkdir(exist_ok=True)
    results.to_parquet(ROOT / "experiments" / "results" / "ledger_pair.parquet", index=False)
    figure = draw(results)
    write_figure(ROOT, "ledger_pair", figure)


if __name__ == "__main__":
    main()
