"""Paired effects: the difference between two arms on the same problems, with intervals, tests and equivalence.

Problems are a sample of the problems that could have been asked, and effects are seldom spread evenly over them. If a
few problems carry an effect, a sample can miss all of them, and an interval from the spread of the others is too
short, however many repetitions there are. No interval can rule this out: n problems miss a share of up to
`1 - 0.025 ** (1 / n)` of all problems with probability 2.5 % (the rule of three; Hanley and Lippman-Hand 1983, "If
Nothing Goes Wrong, Is Everything All Right?"), and those may have an effect of any size. So an interval is as short as
the spread of the problems suggests only where the effect is shown to rest on many of them: it must stay significant
when the `FEW_PROBLEMS` problems that carry most of it are removed (Broderick, Giordano and Meager 2020, "An Automatic
Finite-Sample Robustness Metric", arXiv 2011.14999, ask the same of regressions). Else, and so wherever an effect is not
significant at all, the interval also covers what the missed share could add.

`experiments/effect_coverage.py` measures the coverage, and `docs/statistics.md` shows it.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from scipy import optimize, stats

from ghosttrace.stats import MIN_DISSENTERS, Estimate, cluster_sums, estimate, unseen_bounds

FEW_PROBLEMS = MIN_DISSENTERS - 1  # an effect that vanishes without so many problems may be carried by few
SIGN_FLIPS = 9999  # random sign flips in a randomisation test; all flips if there are no more than this
MAX_EXACT = 13  # 2 ** 13 sign flips are no more than `SIGN_FLIPS`


@dataclass(frozen=True)
class Effect(Estimate):
    """A paired difference between two arms.

    Attributes:
        better, worse: number of problems whose own mean rose or fell.
        detectable: the smallest true effect that the test detects with 80 % power (see `detectable_effect`).
        rests_on_few: whether the effect is not significant without the `FEW_PROBLEMS` problems that carry most of it.
    """

    better: int
    worse: int
    detectable: float
    rests_on_few: bool


def paired_effect(
    arm: np.ndarray, reference: np.ndarray, seed: int = 0, cluster: np.ndarray | None = None, alpha: float = 0.05
) -> Effect:
    """Estimate `mean(arm) - mean(reference)` over the same problems.

    Args:
        arm, reference: float[n], each problem's mean under the two arms, in the same order.
        seed: random seed of the bootstrap.
        cluster: [n], cluster of each problem; a cluster counts as one unit. None: every problem by itself.
        alpha: probability that the interval may miss the effect; 0.05 for a 95 % interval.
    """
    difference = arm - reference
    mean = estimate(difference, -1.0, 1.0, seed, cluster, alpha)
    total, size = cluster_sums(difference, cluster)
    few = bool(rests_on_few(total, size, alpha))
    low, high = mean.low, mean.high
    if few:
        unseen = unseen_bounds(mean.value, len(total), -1.0, 1.0, alpha)
        low, high = min(low, unseen[0]), max(high, unseen[1])
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    return Effect(mean.value, low, high, better, worse, detectable_effect(difference, cluster), few)


def rests_on_few(total: np.ndarray, size: np.ndarray, alpha: float = 0.05) -> np.ndarray:
    """Return whether an effect is not significant without the `FEW_PROBLEMS` clusters that carry most of it.

    Significant means that the t interval of the remaining clusters excludes 0. Clusters of unequal size enter as a
    ratio (Cochran 1977, "Sampling Techniques", section 6.4).

    Args:
        total: float[..., g], sum of the differences of each cluster.
        size: float[g], number of problems of each cluster.
        alpha: level of the t interval.

    Returns:
        bool[...].
    """
    kept = total.shape[-1] - FEW_PROBLEMS
    if kept < 2:
        return np.ones(total.shape[:-1], dtype=bool)
    sign = np.where(total.sum(axis=-1, keepdims=True) < 0, -1.0, 1.0)
    least = np.argsort(sign * total, axis=-1)[..., :kept]
    total, size = np.take_along_axis(total, least, axis=-1), np.asarray(size)[least]
    mean = total.sum(axis=-1) / size.sum(axis=-1)
    spread = (total - mean[..., None] * size).std(axis=-1, ddof=1) * np.sqrt(kept) / size.sum(axis=-1)
    # A remaining effect that is 0 up to rounding, or of the other sign, is no support.
    return np.asarray(sign[..., 0] * mean <= stats.t.ppf(1 - alpha / 2, kept - 1) * spread + 1e-12)


def equivalence_interval(
    arm: np.ndarray, reference: np.ndarray, seed: int = 0, cluster: np.ndarray | None = None
) -> Estimate:
    """Return the effect with the 90 % interval of two one-sided 5 % tests (Schuirmann 1987).

    The arms are equivalent within a margin, set before the run, if the interval lies inside plus and minus the margin.

    Args:
        arm, reference: float[n], each problem's mean under the two arms, in the same order.
        seed: random seed of the bootstrap.
        cluster: see `paired_effect`.
    """
    return paired_effect(arm, reference, seed, cluster, alpha=0.1)


def difference_of_effects(first: Estimate, second: Estimate) -> Estimate:
    """Return `first - second` of two estimates on different problems, with an interval of the level of theirs.

    The distances from each estimate to its bounds are combined as independent errors (Zou and Donner 2008,
    "Construction of confidence limits about effect measures", Statistics in Medicine 27, 1693-1702). If the problems
    are related and the two estimates rise and fall together, the interval is too wide, never too short.
    """
    value = first.value - second.value
    below = np.hypot(first.value - first.low, second.high - second.value)
    above = np.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, float(value - below), float(value + above))


def detectable_effect(difference: np.ndarray, cluster: np.ndarray | None = None, power: float = 0.8) -> float:
    """Return the smallest true effect that a two-sided 5 % test detects with the given power in a run like this one.

    If less than half of the differences are equal, the effect is taken to shift all problems alike, and the test to be
    a t test. Else, as with one sample per problem or answers that hardly vary, an effect can only come from a share of
    problems that change entirely; the test is then the exact sign test among the problems that differ, some of them by
    chance. An effect that few problems carry takes a larger run; `ghosttrace plan` gives both.

    Args:
        difference: float[n], paired difference of each problem.
        cluster: [n], cluster of each problem; None: every problem by itself.
        power: probability of detecting the effect.

    Returns:
        The effect as a fraction; NaN if the run can miss an effect of any size.
    """
    total, size = cluster_sums(difference, cluster)
    means, n = total / size, len(total)
    if n < MIN_DISSENTERS:  # 2 ** -4 > 5 %: no sign-flip test of so few is significant
        return float("nan")
    most_common = int(np.unique(means, return_counts=True)[1].max())
    if 2 * most_common >= n:
        return _detectable_share(n, int((means > 0).sum()), int((means < 0).sum()), power)
    mean = total.sum() / size.sum()
    standard_error = (total - mean * size).std(ddof=1) * np.sqrt(n) / size.sum()
    return min(1.0, float((stats.t.ppf(0.975, n - 1) + stats.t.ppf(power, n - 1)) * standard_error))


@lru_cache(maxsize=1024)
def _detectable_share(n: int, better: int, worse: int, power: float) -> float:
    """Return the share of n problems that must change entirely for the sign test to detect it; NaN if none suffices.

    Args:
        n: number of problems.
        better, worse: problems that changed in this run: by chance in equal shares, unless they differ significantly.
        power: probability of detecting the share.
    """
    found = stats.binomtest(worse, better + worse).pvalue <= 0.05 if better + worse else False
    chance = (min(better, worse) if found else (better + worse) / 2) / n
    changed = np.arange(n + 1)
    critical = stats.binom.isf(0.025, changed, 0.5) + 1  # fewest in one direction that are significant

    def missing_power(share: float) -> float:
        either = 2 * chance + share
        detected = stats.binom.sf(critical - 1, changed, (chance + share) / either)
        return power - float(stats.binom.pmf(changed, n, either) @ detected)

    largest = 1 - 2 * chance
    if largest <= 0 or missing_power(largest) > 0:
        return float("nan")
    return float(optimize.brentq(missing_power, 1e-9, largest))


def paired_p_value(arm: np.ndarray, reference: np.ndarray, seed: int = 0, cluster: np.ndarray | None = None) -> float:
    """Compute the two-sided p-value of a paired difference by a sign-flip randomisation test.

    The null hypothesis is that `arm` and `reference` are exchangeable in every problem, or jointly in every cluster of
    problems. The statistic is the sum of the differences. The test is exact if at most `MAX_EXACT` clusters differ,
    and otherwise uses `SIGN_FLIPS` random flips.

    Args:
        arm, reference: float[n], each problem's mean under the two arms, in the same order.
        seed: random seed of the flips.
        cluster: [n], cluster of each problem; None: every problem by itself.
    """
    total = cluster_sums(arm - reference, cluster)[0]
    tolerance = 1e-9 * float(np.abs(total).sum())  # sums that are equal but for rounding are ties
    different = total[np.abs(total) > tolerance]
    if len(different) < 2:  # a single difference is as likely to be positive as negative
        return 1.0
    observed, exact = float(total.sum()), len(different) <= MAX_EXACT
    sums = _all_signs(len(different)) @ different if exact else _random_signs(len(total), seed) @ total
    # The observed assignment counts as one of the random flips (Phipson and Smyth 2010).
    tails = [(int((side * sums >= side * observed - tolerance).sum()) + (not exact)) for side in (1, -1)]
    return min(1.0, 2 * min(tails) / (len(sums) + (not exact)))


@lru_cache(maxsize=MAX_EXACT)
def _all_signs(n: int) -> np.ndarray:
    """Return every assignment of signs to n differences, float[2 ** n, n]."""
    return np.array(list(product((1.0, -1.0), repeat=n)))


@lru_cache(maxsize=1)  # all arms of a benchmark use the same flips
def _random_signs(n: int, seed: int) -> np.ndarray:
    """Return random signs, float[SIGN_FLIPS, n]."""
    return np.random.default_rng(seed).choice((1.0, -1.0), size=(SIGN_FLIPS, n))
