"""The claim: unpaired, most intervals of a 15.3-point drop on 30 problems include 0; paired, hardly any does.

The paper reports 66.1 % for normal (64 repetitions) and 50.8 % for restart (8) on the 30 problems of
AIME24 (arXiv 2604.09852, section 6.2.1), each a mean with its own standard error over problems. Scores
by problem are not published, so the model of `ghosttrace.ablation.power` is simulated for that drop, and for one
of 5 points: problems and answers are drawn anew in every run, and every run is read in three ways.
Writes `experiments/results/paper_power.parquet` and `figures/paper_power.{png,svg}`. About a minute on
two cores: `python experiments/paper_power.py`.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ghosttrace.ablation.power import Population, half_width, population_with_effect, power, standard_error
from ghosttrace.stats import paired_effect

ROOT = Path(__file__).parent.parent
PROBLEMS, RUNS, ACCURACY, PAPER = 30, 2000, 0.661, (64, 8)
EFFECTS, CONCENTRATIONS, REPETITIONS = (0.153, 0.05), (0.5, 1.0, 2.0), (2, 4, 8, 16, 32, 64)
Z_95 = 1.96
COLOURS = {0.5: "#8c6bb1", 1.0: "#1b6e53", 2.0: "#d8a24a"}


def draw(drop: Population, concentration: float, repetitions: tuple[int, int]) -> dict[str, np.ndarray]:
    """Contests, each with problems of its own.

    Args:
        drop: the population.
        concentration: a + b of its Beta distribution.
        repetitions: samples of each problem under the reference and under the arm.

    Returns:
        `reference` and `arm`, float[RUNS, PROBLEMS]: scores; `truth`, float[RUNS]: the effect on the
        very problems drawn.
    """
    # A problem is one of the grid's quantiles; `tests/test_power.py` draws from the distribution itself.
    rng = np.random.default_rng([round(1000 * drop.effect), round(10 * concentration), *repetitions])
    chosen = rng.integers(len(drop.reference), size=(RUNS, PROBLEMS))
    theta, fallen = drop.reference[chosen], drop.arm[chosen]
    reference, arm = (rng.binomial(n, p) / n for n, p in zip(repetitions, (theta, fallen), strict=True))
    return {"reference": reference, "arm": arm, "truth": (fallen - theta).mean(axis=1)}


def intervals(reference: np.ndarray, arm: np.ndarray, repetitions: tuple[int, int]) -> dict[str, np.ndarray]:
    """Every run's 95 % interval of the difference of means, float[RUNS, 2], in three ways.

    `unpaired`: the two means' standard errors over problems, added in quadrature, as a reader of two
    reported scores would. `paired`: the product's own. `fixed`: answers alone are uncertain; it says
    nothing about any other problem.
    """
    difference = arm.mean(axis=1) - reference.mean(axis=1)
    over_problems = sum(scores.var(axis=1, ddof=1) / PROBLEMS for scores in (reference, arm))
    over_answers = sum(
        (scores * (1 - scores) / (n - 1)).sum(axis=1) / PROBLEMS**2
        for n, scores in zip(repetitions, (reference, arm), strict=True)
    )
    around = np.stack([-Z_95 * np.ones(RUNS), Z_95 * np.ones(RUNS)], axis=1)
    effects = [paired_effect(mine, other) for mine, other in zip(arm, reference, strict=True)]
    return {
        "unpaired": difference[:, None] + around * np.sqrt(over_problems)[:, None],
        "paired": np.array([(effect.low, effect.high) for effect in effects]),
        "fixed": difference[:, None] + around * np.sqrt(over_answers)[:, None],
    }


def planned(drop: Population, way: str, repetitions: tuple[int, int]) -> tuple[float, float | None]:
    """Half-width and, paired, power as `ghosttrace.ablation.power` has them in closed form."""
    between = {"paired": drop.paired_variance, "unpaired": drop.unpaired_variance, "fixed": 0.0}[way]
    error = standard_error(PROBLEMS, between, drop.within_problem_variance(*repetitions))
    if way != "paired":
        return Z_95 * error, None
    return half_width(error, PROBLEMS - 1), power(drop.effect, error, PROBLEMS - 1)


def simulate(effect: float, concentration: float, repetitions: tuple[int, int]) -> list[dict[str, float | str | None]]:
    """One row a way of reading, see `measure`."""
    drop = population_with_effect(ACCURACY, effect, concentration)
    drawn = draw(drop, concentration, repetitions)
    found = intervals(drawn["reference"], drawn["arm"], repetitions)
    widths = {way: ends[:, 1] - ends[:, 0] for way, ends in found.items()}
    rows: list[dict[str, float | str | None]] = []
    for way, (low, high) in ((way, ends.T) for way, ends in found.items()):
        closed_form, closed_power = planned(drop, way, repetitions)
        row: dict[str, float | str | None] = {"effect": effect, "concentration": concentration, "way": way}
        row |= {"repetitions": repetitions[0], "arm_repetitions": repetitions[1], "runs": RUNS}
        row |= {"half_width": float(widths[way].mean() / 2), "planned_half_width": closed_form}
        row |= {"excludes_0": float(np.mean((high < 0) | (low > 0))), "planned_power": closed_power}
        row |= {"covers_population": float(np.mean((low <= -effect) & (-effect <= high)))}
        row |= {"covers_these_problems": float(np.mean((low <= drawn["truth"]) & (drawn["truth"] <= high)))}
        rows.append(row | {"under_half_of_paired": float(np.mean(widths[way] < widths["paired"] / 2))})
    return rows


def measure() -> pd.DataFrame:
    """Every design at every effect and concentration.

    Returns:
        One row per effect, concentration, repetitions and way: mean half-width and its closed form, the
        share of runs whose interval excludes 0 and its closed form, covers the population's effect, covers
        the effect on the very problems drawn, and is less than half as wide as the paired one.
    """
    designs = [PAPER, *((n, n) for n in REPETITIONS)]
    return pd.DataFrame([row for asked in product(EFFECTS, CONCENTRATIONS, designs) for row in simulate(*asked)])


def figure(results: pd.DataFrame) -> Figure:
    """Intervals side by side, and the share of runs that exclude 0 against repetitions."""
    drawn = Figure(figsize=(9.2, 3.6), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_intervals(left, results[results["effect"] == EFFECTS[0]])
    _draw_power(right, results[results["repetitions"] == results["arm_repetitions"]])
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    drawn.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return drawn


SHOWN_DESIGNS = {
    "64 and 8, unpaired": (64, 8, "unpaired"),
    "64 and 8, paired": (64, 8, "paired"),
    "8 and 8, paired": (8, 8, "paired"),
    "64 and 64, paired": (64, 64, "paired"),
    "64 and 64, for these\n30 problems only": (64, 64, "fixed"),
}


def _draw_intervals(axis: Axes, results: pd.DataFrame) -> None:
    indexed = results.set_index(["repetitions", "arm_repetitions", "way", "concentration"])["half_width"]
    for place, design in enumerate(SHOWN_DESIGNS.values()):
        for shift, concentration in zip((0.22, 0.0, -0.22), CONCENTRATIONS, strict=True):
            axis.errorbar(
                -100 * EFFECTS[0],
                -place + shift,
                xerr=100 * indexed.loc[*design, concentration],
                fmt="o",
                markersize=3,
                capsize=3,
                color=COLOURS[concentration],
                label=f"a + b = {concentration:g}" if place == 0 else None,
            )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(yticks=[-place for place in range(len(SHOWN_DESIGNS))], yticklabels=list(SHOWN_DESIGNS))
    axis.set(xlabel="effect in points, mean 95 % interval", title="a drop of 15.3 points, 30 problems")
    axis.legend(fontsize=7, frameon=False, loc="lower left")


def _draw_power(axis: Axes, results: pd.DataFrame) -> None:
    for effect, colour in zip(EFFECTS, ("#b3392f", "#2b6cb0"), strict=True):
        part = results[results["effect"] == effect]
        for way, style, fill in (("paired", "-", "full"), ("unpaired", ":", "none")):
            one = part[(part["way"] == way) & (part["concentration"] == 1.0)]
            axis.plot(
                one["repetitions"],
                one["excludes_0"],
                style,
                marker="o",
                markersize=4,
                fillstyle=fill,
                color=colour,
                label=f"{100 * effect:g} points, {way}",
            )
        rest = part[part["way"] == "paired"].groupby("repetitions")["excludes_0"]
        axis.fill_between(rest.min().index, rest.min(), rest.max(), color=colour, alpha=0.15, linewidth=0)
    axis.axhline(0.8, color="black", linestyle="--", linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.set(xticks=REPETITIONS, xticklabels=[str(n) for n in REPETITIONS], ylim=(0, 1.02))
    axis.set(xlabel="repetitions, both arms", ylabel="runs whose interval excludes 0", title="power")


def main() -> None:
    """Simulate, record, draw."""
    results = measure()
    (ROOT / "experiments" / "results").mkdir(exist_ok=True)
    results.to_parquet(ROOT / "experiments" / "results" / "paper_power.parquet", index=False)
    drawn = figure(results)
    for kind in ("png", "svg"):
        drawn.savefig(ROOT / "figures" / f"paper_power.{kind}", dpi=150)


if __name__ == "__main__":
    main()
