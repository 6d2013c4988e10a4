"""Accuracies and paired effects with honest intervals: problems are resampled, never answers.

Intervals are 95 %, from a bootstrap over problems whose tails are widened as Student's t widens the
normal's (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 3.3: plain
percentile intervals are too short on few problems). Where all or nearly all problems agree,
resampling says little; the interval then also allows for the share of dissenters that would have
gone unseen with probability 2.5 % (`1 - 0.025 ** (1 / n)`, the rule of three). How sure a run can be before
it is made is in `ghosttrace.ablation.power`; `docs/statistics.md` tells all of it in words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
from scipy import stats

from ghosttrace.errors import UserError

BOOTSTRAP_RESAMPLES = 4000
MIN_DISSENTERS = 6  # dissenters; fewer tell a bootstrap too little
SIGN_FLIPS = 9999  # of signs in a randomisation test; all of them where there are no more
MAX_VOTE_SUBSETS = 1000  # of samples in a majority vote; all of them where there are no more


@dataclass(frozen=True)
class Estimate:
    """A value in [-1, 1] with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Effect(Estimate):
    """A paired difference.

    Attributes:
        better, worse: problems whose own mean rose or fell.
        detectable: the smallest true effect that this many problems show with 80 % power.
    """

    better: int
    worse: int
    detectable: float


def unseen_share_bound(n: int, miss_probability: float = 0.025) -> float:
    """The largest share of the population that n problems fail to show with probability `miss_probability`."""
    return float(1 - miss_probability ** (1 / n))


def nearly_unanimous(scores: np.ndarray) -> bool:
    """Whether too few of the problems, float[n], dissent from the commonest score for resampling to tell."""
    return bool(len(scores) - np.unique(scores, return_counts=True)[1].max() < MIN_DISSENTERS)


def estimate(scores: np.ndarray, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Estimate:
    """The mean over problems and its interval.

    Args:
        scores: float[n], each problem's mean over its repetitions.
        low, high: the range that scores can take.
        seed: of the resampling.
    """
    n, mean = len(scores), float(scores.mean())
    wide = mean - unseen_share_bound(n) * (mean - low), mean + unseen_share_bound(n) * (high - mean)
    if np.ptp(scores) == 0:
        return Estimate(mean, *wide)
    means = _resamples(n, seed) @ scores / n
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(0.025, n - 1))
    ends = tuple(np.quantile(means, [tail, 1 - tail]))
    if nearly_unanimous(scores):
        ends = min(ends[0], wide[0]), max(ends[1], wide[1])
    return Estimate(mean, max(low, float(ends[0])), min(high, float(ends[1])))


@lru_cache(maxsize=1)  # the arms of a benchmark are resampled alike
def _resamples(n: int, seed: int) -> np.ndarray:
    """int[BOOTSTRAP_RESAMPLES, n]: how often each problem is drawn."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP_RESAMPLES)


def paired_effect(arm: np.ndarray, reference: np.ndarray, seed: int = 0) -> Effect:
    """`mean(arm) - mean(reference)` over the same problems.

    Args:
        arm, reference: float[n], each problem's mean under the two arms, in the same order.
        seed: of the resampling.
    """
    difference = arm - reference
    found = estimate(difference, -1.0, 1.0, seed)
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    return Effect(found.value, found.low, found.high, better, worse, detectable_effect(difference))


def detectable_effect(difference: np.ndarray, power: float = 0.8) -> float:
    """The smallest true effect that a two-sided 5 % test on these problems finds with this power.

    Args:
        difference: float[n], paired differences per problem.
        power: the probability of finding it.
    """
    n = len(difference)
    least = unseen_share_bound(n) if nearly_unanimous(difference) else 0.0
    if n < 2:
        return least
    spread = float(difference.std(ddof=1) / np.sqrt(n))
    return min(1.0, max(least, float(stats.t.ppf(0.975, n - 1) + stats.t.ppf(power, n - 1)) * spread))


def paired_p_value(arm: np.ndarray, reference: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of a paired difference: signs of per-problem differences flipped at random.

    The null hypothesis is that the labels `arm` and `reference` could be exchanged in every problem.
    The statistic is the mean difference, to which problems without a difference add nothing whatever
    their sign; without them the test is exact, over every flip, where at most 13 problems differ.

    Args:
        arm, reference: float[n], each problem's mean under the two arms, in the same order.
        seed: of the flips, where there are too many to try all.
    """
    difference = (arm - reference)[arm != reference]
    if len(difference) < 2:  # one is as likely to rise as to fall
        return 1.0
    test = stats.permutation_test(
        (difference,),
        np.sum,
        permutation_type="samples",
        n_resamples=SIGN_FLIPS,
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the order given (Holm 1979, Scand. J. Statistics 6, 65-70).

    Calling those of at most 0.05 effects is wrong about any of them with a probability of at most 5 %,
    however they depend on one another.
    """
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def pass_at_k(correct: np.ndarray, total: np.ndarray, k: int) -> np.ndarray:
    """The chance that one of k samples is right, unbiased: `1 - C(total - correct, k) / C(total, k)`.

    As a product, which neither overflows nor cancels (Chen et al. 2021, arXiv 2107.03374, section 2.1).

    Args:
        correct, total: int[n], samples of each problem that are right, and all of them.
        k: samples that may be tried.

    Returns:
        float[n], per problem.

    Raises:
        UserError: a problem has fewer than k samples.
    """
    if k < 1 or k > np.min(total):
        raise UserError(f"pass@{k} needs k from 1 to the samples of each problem, of which one has {np.min(total)}")
    step = np.arange(k)[:, None]
    return np.asarray(1 - np.prod((total - correct - step) / (total - step), axis=0))


def maj_at_k(votes: Sequence[str | None], correct: Sequence[bool] | np.ndarray, k: int, seed: int = 0) -> float:
    """How often the majority of k samples of one problem is right.

    The samples are drawn without replacement. All right ones vote as one, however they are spelled; a
    wrong one without an answer abstains. Among answers tied for the most votes one is drawn; where
    nobody votes the majority is wrong. The mean is over all subsets if they are at most 1,000, so that
    it is exact (with all samples there is one subset); else over 1,000 drawn ones.

    Args:
        votes: the answer of each sample, None if it gave none.
        correct: whether each is right.
        k: samples that vote.
        seed: of the subsets.

    Raises:
        UserError: there are fewer than k samples.
    """
    n = len(votes)
    if not 1 <= k <= n:
        raise UserError(f"maj@{k} needs k from 1 to the samples of each problem, of which one has {n}")
    voices = [True if right else vote for vote, right in zip(votes, correct, strict=True)]
    parties = [True, *dict.fromkeys(voice for voice in voices if isinstance(voice, str))]  # True: the right answer
    ballots = np.array([[voice == party for party in parties] for voice in voices])
    counts = ballots[_subsets(n, k, seed)].sum(axis=1)  # int[subsets, parties]
    most = counts.max(axis=1)
    tied = (counts == most[:, None]).sum(axis=1)
    return float(np.mean((most > 0) * (counts[:, 0] == most) / tied))


@lru_cache(maxsize=1)  # the problems of a benchmark vote alike
def _subsets(n: int, k: int, seed: int) -> np.ndarray:
    """int[at most MAX_VOTE_SUBSETS, k]: which of n samples vote."""
    if comb(n, k) <= MAX_VOTE_SUBSETS:
        return np.array(list(combinations(range(n), k)))
    return np.random.default_rng(seed).random((MAX_VOTE_SUBSETS, n)).argsort(axis=1)[:, :k]


def ratio_estimate(total: np.ndarray, count: np.ndarray) -> Estimate:
    """`sum(total) / sum(count)` over clusters, such as bits a token over traces of several lengths.

    The interval is Student's t on the linearised ratio (Cochran 1977, "Sampling Techniques", section
    6.4), in which whole clusters vary. A single cluster has none: its ends are NaN.

    Args:
        total, count: float[n], each cluster's sum and its number of terms.
    """
    n, value = len(total), float(total.sum() / count.sum())
    if n < 2:
        return Estimate(value, float("nan"), float("nan"))
    spread = (total - value * count).std(ddof=1) / (count.mean() * np.sqrt(n))
    reach = float(stats.t.ppf(0.975, n - 1) * spread)
    return Estimate(value, value - reach, value + reach)
