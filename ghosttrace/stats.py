"""Accuracies and paired effects with honest intervals: problems are resampled, never answers.

Intervals are 95 %, from a bootstrap over problems whose tails are widened as Student's t widens the
normal's (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 3.3: plain
percentile intervals are too short on few problems). Where all or nearly all problems agree,
resampling says little; the interval then also allows for the share of dissenters that would have
gone unseen with probability 2.5 % (`1 - 0.025 ** (1 / n)`, the rule of three).
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 4000
FEW = 6  # dissenters; fewer tell a bootstrap too little


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


def unseen(n: int) -> float:
    """The largest share of the population that n problems fail to show with probability 2.5 %."""
    return float(1 - 0.025 ** (1 / n))


def nearly_unanimous(scores: np.ndarray) -> bool:
    """Whether too few of the problems, float[n], dissent from the commonest score for resampling to tell."""
    return bool(len(scores) - np.unique(scores, return_counts=True)[1].max() < FEW)


def estimate(scores: np.ndarray, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Estimate:
    """The mean over problems and its interval.

    Args:
        scores: float[n], each problem's mean over its repetitions.
        low, high: the range that scores can take.
        seed: of the resampling.
    """
    n, mean = len(scores), float(scores.mean())
    wide = mean - unseen(n) * (mean - low), mean + unseen(n) * (high - mean)
    if np.ptp(scores) == 0:
        return Estimate(mean, *wide)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    means = counts @ scores / n
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(0.025, n - 1))
    ends = tuple(np.quantile(means, [tail, 1 - tail]))
    if nearly_unanimous(scores):
        ends = min(ends[0], wide[0]), max(ends[1], wide[1])
    return Estimate(mean, max(low, float(ends[0])), min(high, float(ends[1])))


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
    least = unseen(n) if nearly_unanimous(difference) else 0.0
    if n < 2:
        return least
    spread = float(difference.std(ddof=1) / np.sqrt(n))
    return min(1.0, max(least, float(stats.t.ppf(0.975, n - 1) + stats.t.ppf(power, n - 1)) * spread))
