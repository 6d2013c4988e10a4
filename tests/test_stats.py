"""Intervals have their nominal coverage, and tests their nominal error."""

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghosttrace.errors import UserError
from ghosttrace.paired import paired_p_value
from ghosttrace.stats import estimate, holm, maj_at_k, pass_at_k, unseen_share_bound


@pytest.mark.parametrize("p", [0.95, 0.99, 0.997])
def test_intervals_near_certainty_have_enough_coverage(p: float) -> None:
    rng = np.random.default_rng(int(1000 * p))
    intervals = [estimate((rng.random(400) < p).astype(float)) for _ in range(400)]
    assert np.mean([interval.low <= p <= interval.high for interval in intervals]) >= 0.93


@pytest.mark.parametrize("n", [10, 100, 400])
def test_agreement_is_not_certainty(n: int) -> None:
    """If all problems agree, the interval follows the rule of three and is not a point."""
    certain = estimate(np.ones(n))
    assert certain.value == certain.high == 1
    assert certain.low == pytest.approx(1 - unseen_share_bound(n))
    assert 3 / n < unseen_share_bound(n) < 4 / n
    assert estimate(np.append(np.ones(n - 1), 0.0)).low < certain.low


def test_clusters_are_resampled_as_wholes() -> None:
    """Problems copied into clusters of two give the interval of the problems alone; single clusters change nothing."""
    scores = np.random.default_rng(4).random(20)
    alone, doubled = estimate(scores), estimate(np.repeat(scores, 2), cluster=np.repeat(np.arange(20), 2))
    assert (doubled.value, doubled.low, doubled.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert estimate(scores, cluster=np.arange(20).astype(str)) == alone
    uneven = estimate(np.append(scores, [1.0, 1.0]), cluster=np.array([*range(20), 19, 19]))
    assert uneven.value == pytest.approx(np.append(scores, [1.0, 1.0]).mean())
    assert uneven.low < uneven.value < uneven.high


@pytest.mark.parametrize("total", [1, 2, 5, 7])
def test_pass_at_k_counts_subsets(total: int) -> None:
    for right, k in product(range(total + 1), range(1, total + 1)):
        samples = [True] * right + [False] * (total - right)
        has_correct = [any(chosen) for chosen in combinations(samples, k)]
        estimated = pass_at_k(np.array([right]), np.array([total]), k)
        assert estimated == pytest.approx(sum(has_correct) / len(has_correct), abs=1e-12)


def test_pass_at_k_of_many_samples_neither_overflows_nor_cancels() -> None:
    correct, total = np.array([0, 1, 3, 10_000]), np.full(4, 10_000)
    estimates = pass_at_k(correct, total, 100)
    assert estimates[0] == 0
    assert estimates[1] == pytest.approx(0.01, rel=1e-12)
    assert estimates[3] == 1
    np.testing.assert_allclose(pass_at_k(correct, total, 1), correct / total, rtol=1e-9)
    uneven = pass_at_k(np.array([1, 1]), np.array([2, 8]), 2)
    np.testing.assert_allclose(uneven, [1, 0.25])


def majority(votes: list[str | None], correct: list[bool], k: int) -> float:
    """Return maj@k by its definition, over every subset and every tie."""
    shares = []
    for subset in combinations(range(len(votes)), k):
        tally: dict[str, int] = {}
        for i in subset:
            name = "right" if correct[i] else None if votes[i] is None else f"wrong {votes[i]}"
            if name:
                tally[name] = tally.get(name, 0) + 1
        winners = [name for name, count in tally.items() if count == max(tally.values())]
        shares.append(Fraction(int("right" in winners), max(1, len(winners))))
    return float(sum(shares) / len(shares))


SAMPLE = st.one_of(
    st.tuples(st.sampled_from(["1/2", "0.5"]), st.just(True)),
    st.tuples(st.sampled_from(["a", "b", None]), st.just(False)),
)


@given(st.lists(SAMPLE, min_size=1, max_size=9), st.data())
def test_maj_at_k_is_the_mean_over_subsets(samples: list[tuple[str | None, bool]], data: st.DataObject) -> None:
    votes, correct = [vote for vote, _ in samples], [right for _, right in samples]
    k = data.draw(st.integers(1, len(samples)))
    assert maj_at_k(votes, correct, k) == pytest.approx(majority(votes, correct, k), abs=1e-12)
    assert maj_at_k(votes, correct, 1) == pytest.approx(np.mean(correct), abs=1e-12)


def test_maj_at_k_by_hand() -> None:
    assert maj_at_k(["1/2", "0.5", "3", "3", "4"], [True, True, False, False, False], 5) == 0.5
    assert maj_at_k(["7", None, None, None], [True, False, False, False], 4) == 1
    assert maj_at_k([None, None], [False, False], 2) == 0


def test_maj_at_k_draws_subsets_where_there_are_many() -> None:
    """With two distinct answers the exact value is a hypergeometric sum, and drawn subsets agree within their noise."""
    right, wrong, k = 9, 11, 5
    votes, correct = ["x"] * right + ["y"] * wrong, [True] * right + [False] * wrong
    exact = majority(votes, correct, k)
    estimates = [maj_at_k(votes, correct, k, seed) for seed in range(20)]
    assert len(set(estimates)) > 1
    assert maj_at_k(votes, correct, k) == estimates[0]
    assert np.mean(estimates) == pytest.approx(exact, abs=4 * 0.5 / np.sqrt(20 * 1000))
    assert maj_at_k(votes, correct, 20) == 0


@pytest.mark.parametrize("k", [0, 4])
def test_more_votes_than_samples_are_refused(k: int) -> None:
    with pytest.raises(UserError, match="k from 1 to"):
        pass_at_k(np.array([1, 2]), np.array([8, 3]), k)
    with pytest.raises(UserError, match="k from 1 to"):
        maj_at_k(["a"] * 3, [True] * 3, k)


def adjusted_by_hand(p: list[float]) -> list[float]:
    """Return for each p-value the smallest level at which the step-down test rejects it."""
    m = len(p)
    levels = sorted({min(1.0, value * times) for value in p for times in range(1, m + 1)} | {1.0})

    def rejects(level: float) -> set[int]:
        rejected: set[int] = set()
        for rank, i in enumerate(sorted(range(m), key=lambda i: p[i])):
            if p[i] * (m - rank) > level:
                break
            rejected.add(i)
        return rejected

    rejected_at = {level: rejects(level) for level in levels}
    return [next((level for level in levels if i in rejected_at[level]), 1.0) for i in range(m)]


@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.012, 0.02, 0.04, 0.05, 0.3, 0.9, 1.0]), min_size=1, max_size=7))
def test_holm_is_the_step_down_test(p: list[float]) -> None:
    assert holm(p) == pytest.approx(adjusted_by_hand(p))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.mark.slow
def test_six_arms_without_effect_are_rarely_significant() -> None:
    """Arms share a reference and differ by sampling alone; the family-wise error is at most 5 %."""
    rng, runs = np.random.default_rng(5), 500
    unadjusted = adjusted = 0
    for _ in range(runs):
        theta = rng.beta(0.8, 0.6, 12)
        reference, *arms = rng.binomial(8, theta, (7, 12)) / 8
        p = [paired_p_value(arm, reference) for arm in arms]
        unadjusted += min(p) <= 0.05
        adjusted += min(holm(p)) <= 0.05
    assert adjusted / runs <= 0.05
    assert unadjusted / runs > 0.08


def test_holm_has_the_expected_error_on_independent_p_values() -> None:
    """On independent uniform p-values the family-wise error is 1 - (1 - 0.05 / 6)^6 = 4.9 %."""
    p = np.random.default_rng(6).random((20_000, 6))
    error = np.mean([min(holm(list(row))) <= 0.05 for row in p])
    assert 0.044 < error < 0.054
