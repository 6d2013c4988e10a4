"""Claim: on 30 problems, most unpaired intervals of a 15.3-point drop include 0; few paired intervals do.

The paper reports the accuracy of normal decoding (64 repetitions) and of restart (8 repetitions) on the 30 problems of
AIME24 (arXiv 2604.09852, section 6.2.1), each with its own standard error over problems. Scores by problem are not
published. This script therefore simulates the population model of `ghosttrace.ablation.power` for that drop and for a
drop of 5 points. Every simulated run draws new problems and answers and computes three kinds of interval.

Writes `experiments/results/paper_power.parquet` and `figures/paper_power.{png,svg}`.
`python experiments/paper_power.py`: about three minutes on one core.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ghosttrace.ablation.power import Population, half_width, population_with_effect, power, standard_error
from ghosttrace.paired import paired_effect, paired_p_value
from ghosttrace.report.looks import LOOKS
from ghosttrace.runs.figures import write_figure

ROOT = Path(__file__).parent.parent
PROBLEMS, RUNS, ACCURACY, PAPER = 30, 1000, 0.661, (64, 8)
EFFECTS, CONCENTRATIONS, REPETITIONS = (0.153, 0.05), (0.5, 1.0, 2.0), (2, 4, 8, 16, 32, 64)
Z_95 = 1.96
COLOURS = dict(zip((0.5, 1.0, 2.0), (look["color"] for look in LOOKS), strict=False))
MARKERS = dict(zip(COLOURS, (look["marker"] for look in LOOKS), strict=False))


def draw(drop: Population, concentration: float, repetitions: tuple[int, int]) -> dict[str, np.ndarray]:
    """Simulate runs, each with newly drawn problems.

    Args:
        drop: The population of problems.
        concentration: a + b of its Beta distribution.
        repetitions: Samples per problem under the reference and under the arm.

    Returns:
        `reference` and `arm`, float[RUNS, PROBLEMS]: scores by problem. `truth`, float[RUNS]: true effect on the drawn
        problems.
    """
    # Problems are quantiles of the population's grid; `tests/test_power.py` draws from the distribution itself.
    rng = np.random.default_rng([round(1000 * drop.effect), round(10 * concentration), *repetitions])
    chosen = rng.integers(len(drop.reference), size=(RUNS, PROBLEMS))
    p_reference, p_arm = drop.reference[chosen], drop.arm[chosen]
    reference, arm = (rng.binomial(n, p) / n for n, p in zip(repetitions, (p_reference, p_arm), strict=True))
    return {"reference": reference, "arm": arm, "truth": (p_arm - p_reference).mean(axis=1)}


def intervals(reference: np.ndarray, arm: np.ndarray, repetitions: tuple[int, int]) -> dict[str, np.ndarray]:
    """Compute three kinds of 95 % interval of each run's difference of means.

    Args:
        reference: Scores under the reference, float[RUNS, PROBLEMS].
        arm: Scores under the arm, float[RUNS, PROBLEMS].
        repetitions: Samples per problem under the reference and under the arm.

    Returns:
        float[RUNS, 2] for each kind. `unpaired` adds the standard errors of both means over problems in quadrature, as
        for two reported scores. `paired` is the interval of `ghosttrace.stats.paired_effect`. `fixed` includes only the
        sampling of answers and does not generalise to other problems.
    """
    difference = arm.mean(axis=1) - reference.mean(axis=1)
    over_problems = sum(scores.var(axis=1, ddof=1) / PROBLEMS for scores in (reference, arm))
    over_answers = sum(
        (scores * (1 - scores) / (n - 1)).sum(axis=1) / PROBLEMS**2
        for n, scores in zip(repetitions, (reference, arm), strict=True)
    )
    signs = np.stack([-Z_95 * np.ones(RUNS), Z_95 * np.ones(RUNS)], axis=1)
    effects = [paired_effect(*scores) for scores in zip(arm, reference, strict=True)]
    return {
        "unpaired": difference[:, None] + signs * np.sqrt(over_problems)[:, None],
        "paired": np.array([(effect.low, effect.high) for effect in effects]),
        "fixed": difference[:, None] + signs * np.sqrt(over_answers)[:, None],
    }


def planned(drop: Population, way: str, repetitions: tuple[int, int]) -> tuple[float, float | None]:
    """Return the half-width, and for `paired` the power, from the closed form of `ghosttrace.ablation.power`."""
    between = {"paired": drop.paired_variance, "unpaired": drop.unpaired_variance, "fixed": 0.0}[way]
    error = standard_error(PROBLEMS, between, drop.within_problem_variance(*repetitions))
    if way != "paired":
        return Z_95 * error, None
    return half_width(error, PROBLEMS - 1), power(drop.effect, error, PROBLEMS - 1)


def simulate(effect: float, concentration: float, repetitions: tuple[int, int]) -> list[dict[str, float | str | None]]:
    """Return one row per kind of interval, with the columns of `measure`."""
    drop = population_with_effect(ACCURACY, effect, concentration)
    drawn = draw(drop, concentration, repetitions)
    ends_by_way = intervals(drawn["reference"], drawn["arm"], repetitions)
    widths = {way: ends[:, 1] - ends[:, 0] for way, ends in ends_by_way.items()}
    tests = [paired_p_value(*scores) <= 0.05 for scores in zip(drawn["arm"], drawn["reference"], strict=True)]
    rows: list[dict[str, float | str | None]] = []
    for way, (low, high) in ((way, ends.T) for way, ends in ends_by_way.items()):
        closed_form, closed_power = planned(drop, way, repetitions)
        row: dict[str, float | str | None] = {"effect": effect, "concentration": concentration, "way": way}
        row |= {"repetitions": repetitions[0], "arm_repetitions": repetitions[1], "runs": RUNS}
        row |= {"half_width": float(widths[way].mean() / 2), "planned_half_width": closed_form}
        excludes = float(np.mean((high < 0) | (low > 0)))
        row |= {"excludes_0": excludes, "planned_power": closed_power}
        row |= {"detects": float(np.mean(tests)) if way == "paired" else excludes}
        row |= {"covers_population": float(np.mean((low <= -effect) & (-effect <= high)))}
        row |= {"covers_these_problems": float(np.mean((low <= drawn["truth"]) & (drawn["truth"] <= high)))}
        rows.append(row | {"under_half_of_paired": float(np.mean(widths[way] < widths["paired"] / 2))})
    return rows


def measure() -> pd.DataFrame:
    """Simulate every design at every effect and concentration.

    Returns:
        One row per effect, concentration, repetitions and kind of interval (`way`). It holds the mean half-width and
        its closed form (of a t interval), and the share of runs whose interval excludes 0, covers the effect in the
        population, covers the effect on the drawn problems, or is less than half as wide as the paired interval.
        `detects` is the share of runs that find a difference at 5 %: by the sign-flip test if paired (with its closed
        form), else by the interval.
    """
    designs = [PAPER, *((n, n) for n in REPETITIONS)]
    return pd.DataFrame([row for setting in product(EFFECTS, CONCENTRATIONS, designs) for row in simulate(*setting)])


def figure(results: pd.DataFrame) -> Figure:
    """Draw the intervals of several designs, and the share of runs that detect the drop by number of repetitions."""
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
    for number, design in enumerate(SHOWN_DESIGNS.values()):
        for shift, concentration in zip((0.22, 0.0, -0.22), CONCENTRATIONS, strict=True):
            axis.errorbar(
                -100 * EFFECTS[0],
                -number + shift,
                xerr=100 * indexed.loc[*design, concentration],
                fmt=MARKERS[concentration],
                markersize=4,
                capsize=3,
                color=COLOURS[concentration],
                label=f"a + b = {concentration:g}" if number == 0 else None,
            )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(yticks=[-number for number in range(len(SHOWN_DESIGNS))], yticklabels=list(SHOWN_DESIGNS))
    axis.set(xlabel="effect in points, mean 95 % interval", title="a drop of 15.3 points, 30 problems")
    axis.legend(fontsize=7, frameon=False, loc="lower left")


def _draw_power(axis: Axes, results: pd.DataFrame) -> None:
    for effect, look in zip(EFFECTS, LOOKS, strict=False):
        colour = look["color"]
        part = results[results["effect"] == effect]
        for way, style, fill in (("paired", "-", "full"), ("unpaired", ":", "none")):
            rows = part[(part["way"] == way) & (part["concentration"] == 1.0)]
            axis.plot(
                rows["repetitions"],
                rows["detects"],
                style,
                marker=look["marker"],
                markersize=4,
                fillstyle=fill,
                color=colour,
                label=f"{100 * effect:g} points, {way}",
            )
        paired = part[part["way"] == "paired"].groupby("repetitions")["detects"]
        axis.fill_between(paired.min().index, paired.min(), paired.max(), color=colour, alpha=0.15, linewidth=0)
    axis.axhline(0.8, color="black", linestyle="--", linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.set(xticks=REPETITIONS, xticklabels=[str(n) for n in REPETITIONS], ylim=(0, 1.02))
    axis.set(xlabel="repetitions, both arms", ylabel="runs that detect the drop", title="power")


def main() -> None:
    """Simulate and write results and figure."""
    results = measure()
    (ROOT / "experiments" / "results").mkdir(exist_ok=True)
    results.to_parquet(ROOT / "experiments" / "results" / "paper_power.parquet", index=False)
    drawn = figure(results)
    write_figure(ROOT, "paper_power", drawn)


if __name__ == "__main__":
    main()
