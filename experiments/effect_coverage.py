"""Claim: intervals of paired effects cover the truth in at least 93 % of runs, however the effect is spread.

Simulated runs draw problems, alone or in pairs of variants with the same difficulty and the same fate, and answers. The
models of an effect: a drop of 5 points by one shift of all log odds (`spread`), a drop of 5 points carried by 1 of 15
or 1 of 10 problems (`few-15`, `few-10`), gains and losses in equal shares (`mixed`), and none (`null`). Each run is
analysed by `ghosttrace.paired`, and by the bootstrap over problems alone, which ignores clusters (`bootstrap`). A
second simulation counts the runs of eight arms without effect in which at least one interval excludes 0.

Writes `experiments/results/effect_coverage.parquet` and `experiments/results/effect_families.parquet`.
`PYTHONPATH=. python experiments/effect_coverage.py`: about ten minutes on one core.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from ghosttrace.ablation.power import log_odds, population_with_effect
from ghosttrace.paired import paired_effect, paired_p_value
from ghosttrace.stats import Estimate, estimate, holm

RESULTS = Path(__file__).parent / "results"
ACCURACY, EFFECT, MIXED_SHIFT = 0.661, 0.05, 1.5  # the shift is in log odds
FEW = {"few-15": 1 / 15, "few-10": 1 / 10}  # share of the problems that carry the effect
SOLVED = 0.975  # success probability, under the reference, of the problems that carry it
MODELS = ("spread", *FEW, "mixed", "null")
PROBLEMS, REPETITIONS, CLUSTER_SIZES, RUNS = (30, 100), (1, 8, 64), (1, 2), 1000
ARMS = 8


def draw(rng: np.random.Generator, model: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw problems under a model of the effect.

    Args:
        rng: Random generator.
        model: One of `MODELS`.
        shape: Number of runs and of problems.

    Returns:
        Success probabilities under the reference and under the arm, float[runs, problems] each, and the true effect.
    """
    odds = log_odds(ACCURACY)
    chosen = rng.integers(len(odds), size=shape)
    theta = expit(odds[chosen])
    if model in FEW:
        hit = rng.random(shape) < FEW[model]
        reference = np.where(hit, SOLVED, theta)
        return reference, reference - hit * EFFECT / FEW[model], -EFFECT
    if model == "spread":
        drop = population_with_effect(ACCURACY, EFFECT)
        return drop.reference[chosen], drop.arm[chosen], -EFFECT
    if model == "mixed":
        up, down = expit(odds + MIXED_SHIFT), expit(odds - MIXED_SHIFT)
        truth = float(np.mean((up + down) / 2 - expit(odds)))
        return theta, np.where(rng.random(shape) < 0.5, up[chosen], down[chosen]), truth
    return theta, theta, 0.0


def coverage(model: str, problems: int, repetitions: int, cluster_size: int) -> dict[str, float | int | str]:
    """Simulate one cell.

    Returns:
        The cell, the share of runs whose interval covers the true effect, the share whose interval lies above and
        below it, the mean half-width, and for the bootstrap alone its coverage and half-width.
    """
    rng = np.random.default_rng([MODELS.index(model), problems, repetitions, cluster_size])
    reference, arm, truth = draw(rng, model, (RUNS, problems // cluster_size))
    scores = [
        rng.binomial(repetitions, np.repeat(theta, cluster_size, axis=1)) / repetitions for theta in (arm, reference)
    ]
    cluster = np.repeat(np.arange(problems // cluster_size), cluster_size)
    effects = [paired_effect(new, old, cluster=cluster) for new, old in zip(*scores, strict=True)]
    plain = [estimate(difference, -1.0, 1.0) for difference in scores[0] - scores[1]]
    low, high = np.transpose([(effect.low, effect.high) for effect in effects])
    row: dict[str, float | int | str] = {"model": model, "problems": problems, "repetitions": repetitions}
    row |= {"cluster_size": cluster_size, "runs": RUNS, "truth": truth, "covers": _covers(effects, truth)}
    row |= {"above": float(np.mean(low > truth)), "below": float(np.mean(high < truth))}
    row |= {"half_width": float(np.mean(high - low) / 2), "bootstrap_covers": _covers(plain, truth)}
    return row | {"bootstrap_half_width": float(np.mean([end.high - end.low for end in plain]) / 2)}


def _covers(estimates: Sequence[Estimate], truth: float) -> float:
    return float(np.mean([end.low <= truth <= end.high for end in estimates]))


def families(problems: int, repetitions: int) -> dict[str, float | int]:
    """Return the share of runs of `ARMS` arms without effect in which some arm seems to have one, by method."""
    rng, runs = np.random.default_rng([problems, repetitions]), RUNS // 2
    found = dict.fromkeys(("bootstrap", "interval", "joint", "p", "p_holm"), 0)
    for theta in draw(rng, "null", (runs, problems))[0]:
        reference, *arms = rng.binomial(repetitions, theta, (ARMS + 1, problems)) / repetitions
        p = [paired_p_value(arm, reference) for arm in arms]
        found["p"] += min(p) <= 0.05
        found["p_holm"] += min(holm(p)) <= 0.05
        found["bootstrap"] += any(_excludes_0(estimate(arm - reference, -1.0, 1.0)) for arm in arms)
        for name, alpha in (("interval", 0.05), ("joint", 0.05 / ARMS)):
            found[name] += any(_excludes_0(paired_effect(arm, reference, alpha=alpha)) for arm in arms)
    return {"problems": problems, "repetitions": repetitions, **{name: n / runs for name, n in found.items()}}


def _excludes_0(ends: Estimate) -> bool:
    return not ends.low <= 0 <= ends.high


def main() -> None:
    """Simulate every cell and write the results."""
    cells = product(MODELS, PROBLEMS, REPETITIONS, CLUSTER_SIZES)
    pd.DataFrame([coverage(*cell) for cell in cells]).to_parquet(RESULTS / "effect_coverage.parquet", index=False)
    rows = [families(*cell) for cell in product(PROBLEMS, REPETITIONS)]
    pd.DataFrame(rows).to_parquet(RESULTS / "effect_families.parquet", index=False)


if __name__ == "__main__":
    main()
