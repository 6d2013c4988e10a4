"""Power analysis of an ablation with n problems and R samples per problem under each of two arms.

Model: problem i is solved with probability theta_i. These probabilities have a Beta(a, b) distribution with mean
`accuracy` and a + b = `concentration`. The default concentration of 1 is U-shaped, because most contest problems
are solved almost always or almost never. Problems are a random sample of a population. How an effect is spread over
them is not known in advance, so there are two models of it. Spread: the arm shifts all log odds by one constant,
logit(theta'_i) = logit(theta_i) - delta, so that the mean falls by `effect`. Concentrated: the arm makes a random share
of the problems fail entirely. The answers, R under the reference and R' under the arm, are independent. In practice the
arms share their random draws (`ghosttrace.model.sampling`), which makes answers to one problem agree more often and can
only increase the power.

An effect is detected if a two-sided test finds it at 5 %. Its interval also allows for problems that the sample missed
(`ghosttrace.paired`), so it can include 0 nevertheless.

Variances are integrated over a fixed grid of quantiles. Only the mean half-width is simulated, with a fixed seed. The
tests and `experiments/paper_power.py` simulate the same model. The variance of the paired difference over n problems is

    (Var(theta' - theta) + E[theta (1 - theta)] / R + E[theta' (1 - theta')] / R') / n;

For the unpaired difference of two means, Var(theta) + Var(theta') replaces the first term, which no number of
repetitions removes. The power assumes a normal mean difference. The differences per problem are skewed in fact,
so with few problems the real power is somewhat higher than computed here (see `docs/statistics.md`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf

import numpy as np
from scipy import optimize, special, stats

from ghosttrace.errors import UserError
from ghosttrace.paired import rests_on_few
from ghosttrace.stats import unseen_share_bound

N_QUANTILES = 4000
TARGET_POWER = 0.8
MAX_LOG_ODDS_SHIFT = 1500.0  # a shift of the log odds after which no problem is solved


@dataclass(frozen=True)
class Population:
    """Distribution of problems under two arms, as quantiles.

    Attributes:
        reference: Success probabilities under the reference, float[q].
        arm: Success probabilities of the same problems under the arm, float[q].
        weight: Share of the problems that each entry stands for, float[q], with sum 1.
    """

    reference: np.ndarray
    arm: np.ndarray
    weight: np.ndarray

    @property
    def effect(self) -> float:
        """Drop of the mean accuracy from the reference to the arm, as a fraction."""
        return float(self.weight @ (self.reference - self.arm))

    @property
    def paired_variance(self) -> float:
        """Variance between problems of the paired difference: Var(theta' - theta)."""
        return self._variance(self.arm - self.reference)

    @property
    def unpaired_variance(self) -> float:
        """Variance between problems of the unpaired difference: Var(theta) + Var(theta')."""
        return self._variance(self.reference) + self._variance(self.arm)

    def _variance(self, values: np.ndarray) -> float:
        return float(self.weight @ (values - self.weight @ values) ** 2)

    def within_problem_variance(self, repetitions: float, arm_repetitions: float | None = None) -> float:
        """Return the variance of the difference due to the finite number of samples per problem.

        Args:
            repetitions: Samples per problem under the reference (R).
            arm_repetitions: Samples per problem under the arm (R'); None means the same number.
        """
        noise, arm_noise = (float(self.weight @ (theta * (1 - theta))) for theta in (self.reference, self.arm))
        return noise / repetitions + arm_noise / (arm_repetitions or repetitions)


def log_odds(accuracy: float, concentration: float = 1.0) -> np.ndarray:
    """Return quantiles of the log odds of success of Beta-distributed problems.

    Args:
        accuracy: Mean success probability.
        concentration: a + b of the Beta distribution.

    Returns:
        Log odds in ascending order, float[N_QUANTILES].

    Raises:
        UserError: An argument is out of range.
    """
    if not 0 < accuracy < 1:
        raise UserError(f"the accuracy assumed under memento must be between 0 and 100 %, not {100 * accuracy:g} %")
    if not 0 < concentration < inf:
        raise UserError(
            f"the concentration of the problems' difficulty must be above 0 (1 is U-shaped), not {concentration}"
        )
    tiny, share = np.finfo(float).tiny, (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
    a, b = accuracy * concentration, (1 - accuracy) * concentration
    # Compute each tail separately, so that probabilities that round to 1 still have finite log odds.
    solved, failed = stats.beta.ppf(share, a, b), stats.beta.ppf(1 - share, b, a)
    return np.log(np.maximum(solved, tiny)) - np.log(np.maximum(failed, tiny))


def shift_log_odds(odds: np.ndarray, delta: float) -> Population:
    """Return the population whose log odds are `odds` under the reference and `odds - delta` under the arm."""
    return Population(special.expit(odds), special.expit(odds - delta), np.full(len(odds), 1 / len(odds)))


def population_with_effect(accuracy: float, effect: float, concentration: float = 1.0) -> Population:
    """Return the population whose mean accuracy falls by a given effect, spread over all problems.

    Args:
        accuracy: Mean accuracy under the reference.
        effect: Drop of the mean, above 0 and below the accuracy.
        concentration: a + b of the Beta distribution; smaller values are more U-shaped.

    Raises:
        UserError: An argument is out of range.
    """
    odds = log_odds(accuracy, concentration)
    _check_effect(effect, accuracy)
    delta = optimize.brentq(lambda delta: shift_log_odds(odds, delta).effect - effect, 0.0, MAX_LOG_ODDS_SHIFT)
    return shift_log_odds(odds, float(delta))


def concentrated_effect(accuracy: float, effect: float, concentration: float = 1.0) -> Population:
    """Return the population in which a random share of the problems, `effect / accuracy`, fails entirely.

    Args:
        accuracy: Mean accuracy under the reference.
        effect: Drop of the mean, above 0 and below the accuracy.
        concentration: a + b of the Beta distribution.

    Raises:
        UserError: An argument is out of range.
    """
    theta = special.expit(log_odds(accuracy, concentration))
    _check_effect(effect, accuracy)
    share, even = effect / float(theta.mean()), np.full(len(theta), 1 / len(theta))
    weight = np.concatenate([(1 - share) * even, share * even])
    return Population(np.tile(theta, 2), np.concatenate([theta, np.zeros(len(theta))]), weight)


def _check_effect(effect: float, accuracy: float) -> None:
    if not 0 < effect < accuracy:
        raise UserError(
            f"cannot plan for an effect of {100 * effect:g} points: give an effect above 0 and below "
            f"the accuracy assumed under memento, {100 * accuracy:g} %"
        )


def standard_error(problems: int, between: float, within: float) -> float:
    """Return the standard error of the difference of mean accuracies.

    Args:
        problems: Number of problems, n.
        between: `Population.paired_variance` or `Population.unpaired_variance`.
        within: `Population.within_problem_variance` of the repetitions.

    Raises:
        UserError: There are fewer than two problems.
    """
    if problems < 2:
        raise UserError("an interval over problems needs at least 2 problems: give more problems")
    return float(np.sqrt((between + within) / problems))


def half_width(error: float, degrees_of_freedom: float) -> float:
    """Return half the width of the 95 % t interval.

    Args:
        error: Standard error.
        degrees_of_freedom: n - 1 for paired differences over n problems, 2 (n - 1) for two unpaired sets.
    """
    return float(stats.t.ppf(0.975, degrees_of_freedom)) * error


def interval_half_width(problems: int, repetitions: int, drop: Population, runs: int = 500) -> float:
    """Return the mean half-width of the 95 % interval of `ghosttrace.paired.paired_effect`, from simulated runs.

    The bootstrap is replaced by Student's t, which it follows closely.

    Args:
        problems: Number of problems, n.
        repetitions: Samples per problem and arm.
        drop: The population.
        runs: Number of simulated runs.
    """
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(drop.weight), size=(runs, problems), p=drop.weight)
    arm, reference = (rng.binomial(repetitions, theta[chosen]) / repetitions for theta in (drop.arm, drop.reference))
    difference = arm - reference
    mean, few = difference.mean(axis=1), rests_on_few(difference, np.ones(problems))
    width = half_width(1.0, problems - 1) * difference.std(axis=1, ddof=1) / np.sqrt(problems)
    unseen = np.where(few, unseen_share_bound(problems), 0.0)
    low, high = (
        np.minimum(mean - width, mean - unseen * (mean + 1)),
        np.maximum(mean + width, mean + unseen * (1 - mean)),
    )
    return float(np.mean(np.minimum(high, 1.0) - np.maximum(low, -1.0)) / 2)


def power(effect: float, error: float, degrees_of_freedom: float) -> float:
    """Return the probability that a two-sided 5 % t test detects a true effect with the correct sign.

    Args:
        effect: True effect.
        error: Standard error of its estimate.
        degrees_of_freedom: Degrees of freedom of the non-central t distribution.
    """
    return float(stats.nct.sf(stats.t.ppf(0.975, degrees_of_freedom), degrees_of_freedom, effect / error))


def repetitions_needed(problems: int, drop: Population) -> int | None:
    """Return the smallest number of samples per problem and arm that detects the drop with 80 % power, paired.

    Args:
        problems: Number of problems, n.
        drop: The population with the effect to be detected.

    Returns:
        R; None if no number of samples suffices, because problems differ too much.

    Raises:
        UserError: There are fewer than two problems.
    """
    minimum_error = standard_error(problems, drop.paired_variance, 0.0)
    if power(drop.effect, minimum_error, problems - 1) < TARGET_POWER:
        return None
    ratio = optimize.brentq(lambda ratio: power(ratio, 1.0, problems - 1) - TARGET_POWER, 0.0, 1000.0)  # effect / error
    return ceil(drop.within_problem_variance(1) / (problems * (drop.effect / ratio) ** 2 - drop.paired_variance))


def detectable(accuracy: float, problems: int, repetitions: int, concentration: float = 1.0) -> float | None:
    """Return the smallest accuracy drop, spread over all problems, that a paired ablation detects with 80 % power.

    Args:
        accuracy: Mean accuracy under the reference.
        problems: Number of problems, n.
        repetitions: Samples per problem and arm, R.
        concentration: a + b of the Beta distribution.

    Returns:
        The drop as a fraction; None if the run can miss a drop of any size.

    Raises:
        UserError: An argument is out of range.
    """
    odds = log_odds(accuracy, concentration)
    delta = _first_detected(
        lambda delta: shift_log_odds(odds, delta), np.geomspace(0.001, MAX_LOG_ODDS_SHIFT, 200), problems, repetitions
    )
    return None if delta is None else shift_log_odds(odds, delta).effect


def detectable_concentrated(
    accuracy: float, problems: int, repetitions: int, concentration: float = 1.0
) -> float | None:
    """Return the smallest accuracy drop, carried by problems that fail entirely, that is detected with 80 % power.

    See `detectable` for arguments, result and errors.
    """
    effects = np.array([1e-4, 0.999]) * accuracy  # power rises with such an effect, so two sizes enclose the crossing
    return _first_detected(
        lambda effect: concentrated_effect(accuracy, effect, concentration), effects, problems, repetitions
    )


def _first_detected(
    population: Callable[[float], Population], sizes: np.ndarray, problems: int, repetitions: int
) -> float | None:
    """Return the smallest size of an effect that is detected with 80 % power; None if none of the sizes is.

    Args:
        population: Function of the size to the population.
        sizes: Sizes to try in ascending order, float[s].
        problems: Number of problems, n.
        repetitions: Samples per problem and arm, R.
    """

    def missing_power(size: float) -> float:
        drop = population(size)
        error = standard_error(problems, drop.paired_variance, drop.within_problem_variance(repetitions))
        return TARGET_POWER - power(drop.effect, error, problems - 1)

    # Power can fall again where almost no problem is solved, so take the first crossing.
    first = next((i for i, size in enumerate(sizes) if missing_power(float(size)) <= 0), None)
    if first is None:
        return None
    return float(optimize.brentq(missing_power, sizes[first - 1] if first else sizes[0] / 1000, sizes[first]))
