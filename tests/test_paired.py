"""Intervals, tests and detectable effects of paired differences hold in simulations."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments import effect_coverage
from ghosttrace.paired import (
    FEW_PROBLEMS,
    detectable_effect,
    equivalence_interval,
    paired_effect,
    paired_p_value,
    rests_on_few,
)
from ghosttrace.stats import estimate, unseen_share_bound

PROBLEMS, REPETITIONS, RUNS = 30, 8, 1200


def simulate(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return simulated accuracies of two arms: problems of uneven difficulty, with an effect that varies."""
    rng = np.random.default_rng(seed)
    difficulty = rng.beta(0.8, 0.6, PROBLEMS)
    effect = np.clip(rng.normal(-0.12, 0.15, PROBLEMS), -difficulty, 1 - difficulty)
    reference, arm = (rng.binomial(REPETITIONS, p) / REPETITIONS for p in (difficulty, difficulty + effect))
    return reference, arm


def truth() -> tuple[float, float]:
    """Return the population means of accuracy and effect in `simulate`, from a large draw."""
    rng = np.random.default_rng(7)
    difficulty = rng.beta(0.8, 0.6, 2_000_000)
    effect = np.clip(rng.normal(-0.12, 0.15, len(difficulty)), -difficulty, 1 - difficulty)
    return float(difficulty.mean()), float(effect.mean())


def test_intervals_cover_95_percent_at_30_problems_and_8_repetitions() -> None:
    accuracy, effect = truth()
    covered = np.zeros(2)
    for seed in range(RUNS):
        reference, arm = simulate(seed)
        accuracy_interval, effect_interval = estimate(reference), paired_effect(arm, reference)
        covered += [
            accuracy_interval.low <= accuracy <= accuracy_interval.high,
            effect_interval.low <= effect <= effect_interval.high,
        ]
    assert (covered / RUNS >= 0.93).all() and covered[0] / RUNS <= 0.97, covered / RUNS


def test_detectable_effect_is_found_in_80_percent_of_runs() -> None:
    """If paired differences are shifted by the detectable effect, 80 % of the runs detect it."""
    rng = np.random.default_rng(3)
    values = np.array([-0.25, -0.125, 0.0, 0.0, 0.125, 0.25])
    significant, runs = 0, 1500
    for _ in range(runs):
        planned = detectable_effect(rng.choice(values, PROBLEMS))
        significant += paired_p_value(rng.choice(values, PROBLEMS) + planned, np.zeros(PROBLEMS)) <= 0.05
    assert 0.76 < significant / runs < 0.84, significant / runs


def test_effects_are_paired_by_problem() -> None:
    """Pairing detects a small constant effect between problems of very different difficulty."""
    rng = np.random.default_rng(0)
    reference = rng.uniform(0, 0.9, 40)
    arm = reference + 0.02 + rng.normal(0, 0.01, 40)
    effect = paired_effect(arm, reference)
    assert 0.01 < effect.low < effect.value < effect.high < 0.03
    assert effect.better > 35
    assert effect.detectable < 0.01


def test_no_effect_is_rarely_significant() -> None:
    rng = np.random.default_rng(1)
    said_yes = 0
    for _ in range(400):
        p = rng.beta(1, 1, PROBLEMS)
        first, second = (rng.binomial(REPETITIONS, p) / REPETITIONS for _ in range(2))
        effect = paired_effect(first, second)
        said_yes += not effect.low <= 0 <= effect.high
    assert said_yes / 400 < 0.08


@pytest.mark.parametrize("n", [10, 100, 400])
def test_differences_that_agree_are_not_certain(n: int) -> None:
    nothing, lost = paired_effect(np.ones(n), np.ones(n)), paired_effect(np.zeros(n), np.ones(n))
    share = unseen_share_bound(n)
    assert (nothing.low, nothing.value, nothing.high) == pytest.approx((-share, 0, share))
    assert lost.value == lost.low == -1 and lost.high == pytest.approx(-1 + 2 * share)


@pytest.mark.parametrize(("cluster_size", "floor"), [(1, 0.86), (2, 0.7)])
def test_effects_in_few_problems_are_covered(monkeypatch: pytest.MonkeyPatch, cluster_size: int, floor: float) -> None:
    """With 30 problems and 64 repetitions the bootstrap alone covers too rarely, and so it does with pairs."""
    monkeypatch.setattr(effect_coverage, "RUNS", 300)
    row = effect_coverage.coverage("few-15", 30, 64, cluster_size)
    assert row["bootstrap_covers"] < floor + 0.06 and row["covers"] >= 0.97


def test_recorded_coverage_is_at_least_93_percent() -> None:
    results = pd.read_parquet(effect_coverage.RESULTS / "effect_coverage.parquet")
    cell = ["model", "problems", "repetitions", "cluster_size"]
    expected = product(
        *(getattr(effect_coverage, name) for name in ("MODELS", "PROBLEMS", "REPETITIONS", "CLUSTER_SIZES"))
    )
    assert set(results[cell].itertuples(index=False, name=None)) == set(expected)
    assert results["covers"].min() >= 0.93 > results["bootstrap_covers"].min()


def test_rounding_noise_is_not_agreement_among_many() -> None:
    """Small differences in all problems do not make the sample more informative about those it missed."""
    tied, noise = np.zeros(30), np.random.default_rng(0).normal(0, 0.01, 30)
    assert paired_effect(noise, tied).high > 0.9 * paired_effect(tied, tied).high
    assert paired_effect(noise - 0.05, tied).high < -0.03 and not paired_effect(noise - 0.05, tied).rests_on_few


def test_rests_on_few_by_hand() -> None:
    """The t test without the problems that carry most of the effect, one run after the other."""
    rng = np.random.default_rng(2)
    differences = np.concatenate([rng.normal(shift, 1, (20, 25)) for shift in (-1, 0, 0.5, 1)])
    expected = []
    for run in differences:
        sign = -1 if run.sum() < 0 else 1
        rest = np.sort(sign * run)[:-FEW_PROBLEMS]
        expected.append(not stats.ttest_1samp(rest, 0).statistic > stats.t.ppf(0.975, len(rest) - 1))
    found = rests_on_few(differences, np.ones(25))
    assert found.tolist() == expected and 0 < found.sum() < len(found)
    assert rests_on_few(np.ones((3, FEW_PROBLEMS + 1)), np.ones(FEW_PROBLEMS + 1)).all()


def test_a_cluster_counts_as_one_unit() -> None:
    rng = np.random.default_rng(1)
    arm, reference = rng.random(16), rng.random(16)
    pairs = np.repeat(np.arange(16), 2)
    alone, doubled = paired_effect(arm, reference), paired_effect(arm.repeat(2), reference.repeat(2), cluster=pairs)
    assert (doubled.low, doubled.high, doubled.detectable) == pytest.approx((alone.low, alone.high, alone.detectable))
    assert paired_p_value(arm.repeat(2), reference.repeat(2), cluster=pairs) == paired_p_value(arm, reference)
    assert paired_p_value(arm.repeat(2), reference.repeat(2)) != paired_p_value(arm, reference)
    gone = -np.ones(40)
    assert paired_p_value(gone, 0 * gone, cluster=np.repeat(np.arange(5), 8)) == 2 * 0.5**5


@pytest.mark.parametrize(("n", "chance"), [(12, 0.0), (30, 0.0), (30, 0.05), (100, 0.03)])
def test_detectable_share_is_found_in_80_percent_of_runs(n: int, chance: float) -> None:
    """One sample per problem: a run without effect names an effect; another run with this effect detects it."""
    rng = np.random.default_rng([n, round(100 * chance)])
    found = []
    for _ in range(400):
        smallest = detectable_effect(rng.choice([1.0, -1.0, 0.0], n, p=[chance, chance, 1 - 2 * chance]))
        if np.isfinite(smallest):
            p = [chance, chance + smallest, 1 - 2 * chance - smallest]
            if min(p) >= 0:
                found.append(paired_p_value(rng.choice([1.0, -1.0, 0.0], n, p=p), np.zeros(n)) <= 0.05)
    assert len(found) > 250 and np.mean(found) == pytest.approx(0.8, abs=0.075)


def test_too_few_problems_detect_nothing() -> None:
    assert np.isnan(detectable_effect(np.zeros(5))) and np.isnan(detectable_effect(np.arange(5) / 10))
    assert np.isnan(detectable_effect(np.array([1.0, -1.0] * 4 + [0.0] * 8)))
    assert 0.9 < detectable_effect(np.zeros(6)) < 1


def test_two_one_sided_tests_rarely_find_a_margin_equivalent() -> None:
    """With a true effect at the margin about 5 % of the runs are called equivalent; with none, nearly all."""
    rng, margin, runs = np.random.default_rng(1), 0.05, 200
    found = {-margin: 0, 0.0: 0}
    for effect in found:
        for _ in range(runs):
            ends = equivalence_interval(rng.normal(effect, 0.05, 100), np.zeros(100))
            found[effect] += -margin < ends.low and ends.high < margin
    assert found[-margin] <= 0.1 * runs and found[0.0] >= 0.95 * runs
    nothing = equivalence_interval(np.zeros(30), np.zeros(30))
    assert nothing.high == pytest.approx(1 - 0.05 ** (1 / 30))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_paired_p_is_exact_on_few_problems(counts: list[int]) -> None:
    """Compared with all exchanges of the two labels, in integers; ties count as extreme."""
    observed = sum(counts)
    flips = [sum(s * c for s, c in zip(signs, counts, strict=True)) for signs in product((1, -1), repeat=len(counts))]
    tails = np.mean([f >= observed for f in flips]), np.mean([f <= observed for f in flips])
    reference = np.full(len(counts), 0.5)
    p_value = paired_p_value(reference + np.array(counts) / 8, reference)
    assert p_value == pytest.approx(min(1.0, 2 * min(tails)), abs=1e-12)


def test_paired_p_of_many_problems() -> None:
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 9, 60) / 8
    assert paired_p_value(reference, reference) == 1
    assert paired_p_value(reference[:0], reference[:0]) == 1
    arm = reference - rng.random(60) / 4
    assert paired_p_value(arm, reference) == paired_p_value(reference, arm) == 2 / 10_000
    one_differs = reference.copy()
    one_differs[3] += 0.125
    assert paired_p_value(one_differs, reference) == 1
    slight = rng.normal(0.5, 1, 20)
    student = float(stats.ttest_1samp(slight, 0).pvalue)
    assert paired_p_value(slight, np.zeros(20)) == pytest.approx(student, abs=0.02)


def test_random_flips_agree_with_the_exact_test() -> None:
    """Fourteen differences are flipped at random; the enumeration of all flips gives the same p-value."""
    difference = np.random.default_rng(8).normal(0.3, 1, 14)
    sums = np.array([np.dot(signs, difference) for signs in product((1, -1), repeat=14)])
    exact = 2 * min(np.mean(sums >= difference.sum() - 1e-9), np.mean(sums <= difference.sum() + 1e-9))
    assert paired_p_value(difference, np.zeros(14)) == pytest.approx(exact, abs=0.02)
