"""Intervals cover what they claim to, and say no when there is nothing."""

import numpy as np
import pytest

from ghosttrace.stats import detectable_effect, estimate, paired_effect, unseen

PROBLEMS, REPETITIONS, RUNS = 30, 8, 1200


def simulate(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A contest under two arms: problems of very uneven difficulty, an effect that varies by problem."""
    rng = np.random.default_rng(seed)
    difficulty = rng.beta(0.8, 0.6, PROBLEMS)
    effect = np.clip(rng.normal(-0.12, 0.15, PROBLEMS), -difficulty, 1 - difficulty)
    reference, arm = (rng.binomial(REPETITIONS, p) / REPETITIONS for p in (difficulty, difficulty + effect))
    return reference, arm


def truth() -> tuple[float, float]:
    """Population means of accuracy and effect in `simulate`, by a large draw."""
    rng = np.random.default_rng(7)
    difficulty = rng.beta(0.8, 0.6, 2_000_000)
    effect = np.clip(rng.normal(-0.12, 0.15, len(difficulty)), -difficulty, 1 - difficulty)
    return float(difficulty.mean()), float(effect.mean())


def test_intervals_cover_95_percent_at_30_problems_and_8_repetitions() -> None:
    accuracy, effect = truth()
    hits = np.zeros(2)
    for seed in range(RUNS):
        reference, arm = simulate(seed)
        one, two = estimate(reference), paired_effect(arm, reference)
        hits += [one.low <= accuracy <= one.high, two.low <= effect <= two.high]
    assert (hits / RUNS >= 0.93).all(), hits / RUNS
    assert (hits / RUNS <= 0.97).all(), hits / RUNS


def test_the_detectable_effect_is_found_four_times_in_five() -> None:
    """Shift paired differences by what one run calls detectable: 80 % of other runs' intervals exclude 0."""
    rng = np.random.default_rng(3)
    values = np.array([-0.25, -0.125, 0.0, 0.0, 0.125, 0.25])
    found, runs = 0, 1500
    for _ in range(runs):
        planned = detectable_effect(rng.choice(values, PROBLEMS))
        found += paired_effect(rng.choice(values, PROBLEMS) + planned, np.zeros(PROBLEMS)).low > 0
    assert 0.76 < found / runs < 0.84, found / runs


def test_effects_are_paired_by_problem() -> None:
    """Problems differ a lot, the arms by a constant little: pairing must see it."""
    rng = np.random.default_rng(0)
    reference = rng.uniform(0, 0.9, 40)
    arm = reference + 0.02 + rng.normal(0, 0.01, 40)
    effect = paired_effect(arm, reference)
    assert 0.01 < effect.low < effect.value < effect.high < 0.03
    assert effect.better > 35
    assert effect.detectable < 0.01


def test_no_effect_is_not_called_one() -> None:
    rng = np.random.default_rng(1)
    said_yes = 0
    for _ in range(400):
        p = rng.beta(1, 1, PROBLEMS)
        one, two = (rng.binomial(REPETITIONS, p) / REPETITIONS for _ in range(2))
        effect = paired_effect(one, two)
        said_yes += not effect.low <= 0 <= effect.high
    assert said_yes / 400 < 0.08


@pytest.mark.parametrize("p", [0.95, 0.99, 0.997])
def test_intervals_near_certainty_do_not_fall_short(p: float) -> None:
    rng = np.random.default_rng(int(1000 * p))
    found = [estimate((rng.random(400) < p).astype(float)) for _ in range(400)]
    assert np.mean([one.low <= p <= one.high for one in found]) >= 0.93


@pytest.mark.parametrize("n", [10, 100, 400])
def test_agreement_is_not_certainty(n: int) -> None:
    """Where every problem agrees the interval is the rule of three's, not a point."""
    certain, nothing = estimate(np.ones(n)), paired_effect(np.ones(n), np.ones(n))
    assert certain.value == certain.high == 1
    assert certain.low == pytest.approx(1 - unseen(n))
    assert (nothing.low, nothing.value, nothing.high) == pytest.approx((-unseen(n), 0, unseen(n)))
    assert nothing.detectable == pytest.approx(unseen(n))
    assert 3 / n < unseen(n) < 4 / n
    one_dissents = np.append(np.ones(n - 1), 0.0)
    assert estimate(one_dissents).low < certain.low
    assert paired_effect(one_dissents, np.ones(n)).detectable >= unseen(n)
    lost = paired_effect(np.zeros(n), np.ones(n))
    assert lost.value == lost.low == -1
    assert lost.high == pytest.approx(-1 + 2 * unseen(n))
