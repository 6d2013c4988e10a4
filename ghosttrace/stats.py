"""Means over problems with confidence intervals, and pass@k. Problems are resampled, never answers.

Intervals are 95 %, from a bootstrap over problems. Their tails are widened in the same ratio as Student's t widens
those of the normal distribution, because plain percentile intervals are too short on few problems (Hesterberg 2015,
"What Teachers Should Know About the Bootstrap", section 3.3). If all or nearly all problems have the same score, a
bootstrap underestimates the spread. The interval then also covers the share of differing problems that a sample of
this size misses with probability 2.5 % (`1 - 0.025 ** (1 / n)`, the rule of three). Problems of one
cluster, such as variants of one problem, are resampled together. `ghosttrace.paired` compares two arms.
`docs/statistics.md` describes all methods.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
from scipy import stats

from ghosttrace.errors import UserError

ALPHA = 0.05  # level of the tests
BOOTSTRAP_RESAMPLES = 4000
MIN_DISSENTERS = 6  # problems off the most common score; with fewer, a bootstrap alone is too narrow
MAX_VOTE_SUBSETS = 1000  # random subsets in a majority vote; all subsets if there are no more than this


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval.

    Attributes:
        value: the point estimate.
        low, high: bounds of the interval.
    """

    value: float
    low: float
    high: float


def unseen_share_bound(n: int, miss_probability: float = 0.025) -> float:
    """Return the largest share of a population that a sample of n problems misses with `miss_probability`."""
    return float(1 - miss_probability ** (1 / n))


def nearly_unanimous(scores: np.ndarray) -> bool:
    """Return True if fewer than `MIN_DISSENTERS` of the scores, float[n], differ from the most common score."""
    return bool(len(scores) - np.unique(scores, return_counts=True)[1].max() < MIN_DISSENTERS)


def estimate(
    scores: np.ndarray,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    cluster: np.ndarray | None = None,
    alpha: float = 0.05,
) -> Estimate:
    """Estimate the mean over problems with its interval.

    Args:
        scores: float[n], each problem's mean over its repetitions.
        low, high: minimum and maximum possible score.
        seed: random seed of the bootstrap.
        cluster: [n], cluster of each problem; clusters are resampled as wholes. None: every problem by itself.
        alpha: probability that the interval may miss the mean; 0.05 for a 95 % interval.
    """
    total, size = cluster_sums(scores, cluster)
    n, mean, means = len(total), float(scores.mean()), total / size
    unseen = unseen_bounds(mean, n, low, high, alpha)
    if np.ptp(means) == 0:
        return Estimate(mean, *unseen)
    drawn = _resamples(n, seed)
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(alpha / 2, n - 1))
    bounds = tuple(np.quantile((drawn @ total) / (drawn @ size), [tail, 1 - tail]))
    if nearly_unanimous(means):
        bounds = min(bounds[0], unseen[0]), max(bounds[1], unseen[1])
    return Estimate(mean, max(low, float(bounds[0])), min(high, float(bounds[1])))


def cluster_sums(values: np.ndarray, cluster: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of the values and the number of problems of each cluster, float[g] each.

    Args:
        values: float[n], one value per problem.
        cluster: [n], cluster of each problem; None puts every problem into a cluster of its own.
    """
    number = np.arange(len(values)) if cluster is None else np.unique(cluster, return_inverse=True)[1]
    if number.max(initial=-1) + 1 == len(values):
        return values, np.ones(len(values))
    return np.bincount(number, values), np.bincount(number).astype(float)


def unseen_bounds(mean: float, n: int, low: float, high: float, alpha: float = 0.05) -> tuple[float, float]:
    """Return how far the mean moves if the share that n problems can miss has the lowest or the highest score."""
    share = unseen_share_bound(n, alpha / 2)
    return mean - share * (mean - low), mean + share * (high - mean)


@lru_cache(maxsize=1)  # all arms of a benchmark use the same resamples
def _resamples(n: int, seed: int) -> np.ndarray:
    """Return float[BOOTSTRAP_RESAMPLES, n]: the number of times that each resample draws each problem."""
    # Matrix products are much faster with floats than with integers.
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP_RESAMPLES).astype(float)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple testing (Holm 1979, Scand. J. Statistics 6, 65-70).

    Rejecting the hypotheses whose adjusted p-value is at most 0.05 keeps the probability of any false rejection at
    5 % or less, whatever the dependence between the tests.

    Args:
        p: unadjusted p-values.

    Returns:
        The adjusted p-values, in the order of `p`.

    Example:
        >>> holm([0.01, 0.04])
        [0.02, 0.04]
    """
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def pass_at_k(correct: np.ndarray, total: np.ndarray, k: int) -> np.ndarray:
    """Estimate the probability that at least one of k samples is correct, without bias.

    The estimator is `1 - C(total - correct, k) / C(total, k)`, computed as a product that neither overflows nor
    cancels (Chen et al. 2021, arXiv 2107.03374, section 2.1).

    Args:
        correct, total: int[n], number of correct samples and of all samples of each problem.
        k: number of samples drawn.

    Returns:
        float[n], one probability per problem.

    Raises:
        UserError: a problem has fewer than k samples.

    Example:
        >>> pass_at_k(np.array([1, 4]), np.array([4, 4]), k=2)
        array([0.5, 1. ])
    """
    if k < 1 or k > np.min(total):
        raise UserError(
            f"pass@{k} is not possible: choose k from 1 to {np.min(total)}, the fewest samples of a problem"
        )
    step = np.arange(k)[:, None]
    return np.asarray(1 - np.prod((total - correct - step) / (total - step), axis=0))


def maj_at_k(votes: Sequence[str | None], correct: Sequence[bool] | np.ndarray, k: int, seed: int = 0) -> float:
    """Return the probability that the majority answer of k samples of one problem is correct.

    The k samples are drawn without replacement. All correct samples vote for the same answer, however it is spelled.
    A wrong sample without an answer abstains. Ties are broken at random. If no sample votes, the majority is wrong.
    The mean is exact, over all subsets, if there are at most `MAX_VOTE_SUBSETS` of them, and otherwise over as many
    random subsets.

    Args:
        votes: the answer of each sample, None if it gave none.
        correct: whether each sample is correct.
        k: number of samples that vote.
        seed: random seed of the subsets.

    Raises:
        UserError: k is not between 1 and the number of samples.
    """
    n = len(votes)
    if not 1 <= k <= n:
        raise UserError(f"maj@{k} is not possible: choose k from 1 to {n}, the number of samples of the problem")
    merged_votes = [True if right else vote for vote, right in zip(votes, correct, strict=True)]
    answers = [True, *dict.fromkeys(vote for vote in merged_votes if isinstance(vote, str))]  # True: correct
    one_hot = np.array([[vote == answer for answer in answers] for vote in merged_votes])
    counts = one_hot[_subsets(n, k, seed)].sum(axis=1)  # int[subsets, answers]
    max_count = counts.max(axis=1)
    num_tied = (counts == max_count[:, None]).sum(axis=1)
    return float(np.mean((max_count > 0) * (counts[:, 0] == max_count) / num_tied))


@lru_cache(maxsize=1)  # all problems of a benchmark use the same subsets
def _subsets(n: int, k: int, seed: int) -> np.ndarray:
    """Return the subsets of k of n samples that vote, int[S, k] with S at most `MAX_VOTE_SUBSETS`."""
    if comb(n, k) <= MAX_VOTE_SUBSETS:
        return np.array(list(combinations(range(n), k)))
    return np.random.default_rng(seed).random((MAX_VOTE_SUBSETS, n)).argsort(axis=1)[:, :k]


def ratio_estimate(total: np.ndarray, count: np.ndarray) -> Estimate:
    """Estimate `sum(total) / sum(count)` over clusters, such as bits per token over traces of different lengths.

    The interval is Student's t on the linearised ratio with clusters as units (Cochran 1977, "Sampling Techniques",
    section 6.4). With a single cluster, both bounds are NaN.

    Args:
        total, count: float[n], each cluster's sum and its number of terms.
    """
    n, value = len(total), float(total.sum() / count.sum())
    if n < 2:
        return Estimate(value, float("nan"), float("nan"))
    standard_error = (total - value * count).std(ddof=1) / (count.mean() * np.sqrt(n))
    half_width = float(stats.t.ppf(0.975, n - 1) * standard_error)
    return Estimate(value, value - half_width, value + half_width)
