"""How sure an ablation can be before it is run: n problems, R samples of each under either arm.

The model. Problem i is solved with probability theta_i, drawn from Beta(a, b) with mean `accuracy` and
a + b = `concentration`: 1 by default, U-shaped, since most contest problems are almost always or almost
never solved. The arm shifts every log odds by one constant, logit(theta'_i) = logit(theta_i) - delta, such
that the mean falls by `effect`. Problems are a sample of a population of problems, and the answers,
R under the reference and R' under the arm, are independent. In practice arms share their draws
(`ghosttrace.model.sampling`), which makes answers to one problem agree more often and can only help.

Variances are closed forms, integrated over a fixed grid of quantiles: nothing here is random. The tests
and `experiments/paper_power.py` simulate the same model. Paired, the variance over n problems is

    (Var(theta' - theta) + E[theta (1 - theta)] / R + E[theta' (1 - theta')] / R') / n;

unpaired, as where two means with standard errors of their own are compared, Var(theta) + Var(theta') takes
the place of the first term. No number of repetitions removes that term. Power takes the mean difference
for normal. Differences of such problems are skewed, large where a problem is neither sure nor hopeless, and
on few problems real power is somewhat higher: on 30 problems 85 % of simulated runs found what 81 % should
have, and at a concentration of 0.5 it was 94 % for 84 % (`docs/statistics.md`).
"""

from dataclasses import dataclass
from math import ceil, inf

import numpy as np
from scipy import optimize, special, stats

from ghosttrace.errors import UserError

N_QUANTILES = 4000
TARGET_POWER = 0.8
MAX_LOG_ODDS_SHIFT = 1500.0  # a shift of log odds that leaves nothing solved


@dataclass(frozen=True)
class Population:
    """Problems under two arms.

    Attributes:
        reference, arm: float[N_QUANTILES], chances of success, each standing for an equal share of problems.
    """

    reference: np.ndarray
    arm: np.ndarray

    @property
    def effect(self) -> float:
        """How far the mean falls."""
        return float(np.mean(self.reference - self.arm))

    @property
    def paired_variance(self) -> float:
        """Variance between problems that stays where they are paired: Var(theta' - theta)."""
        return float(np.var(self.arm - self.reference))

    @property
    def unpaired_variance(self) -> float:
        """Variance between problems that stays where they are not: Var(theta) + Var(theta')."""
        return float(np.var(self.reference) + np.var(self.arm))

    def within_problem_variance(self, repetitions: float, arm_repetitions: float | None = None) -> float:
        """Variance of answers to a given problem, over R and R' (the same by default) samples."""
        noise, arm_noise = (float(np.mean(theta * (1 - theta))) for theta in (self.reference, self.arm))
        return noise / repetitions + arm_noise / (arm_repetitions or repetitions)


def log_odds(accuracy: float, concentration: float = 1.0) -> np.ndarray:
    """float[N_QUANTILES], ascending: log odds of problems whose chances are Beta with this mean and a + b.

    Raises:
        UserError: there is no such distribution.
    """
    if not 0 < accuracy < 1:
        raise UserError(f"the accuracy assumed under memento lies between 0 and 100 %, not at {100 * accuracy:g} %")
    if not 0 < concentration < inf:
        raise UserError(
            f"the concentration of the problems' difficulty is above 0 (1 is U-shaped), not {concentration}"
        )
    tiny, share = np.finfo(float).tiny, (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
    a, b = accuracy * concentration, (1 - accuracy) * concentration
    # Either tail from its own end, so that chances within rounding of 1 still have finite log odds.
    solved, failed = stats.beta.ppf(share, a, b), stats.beta.ppf(1 - share, b, a)
    return np.log(np.maximum(solved, tiny)) - np.log(np.maximum(failed, tiny))


def shift_log_odds(odds: np.ndarray, delta: float) -> Population:
    """The population with these log odds, and the arm that lowers each by delta."""
    return Population(special.expit(odds), special.expit(odds - delta))


def population_with_effect(accuracy: float, effect: float, concentration: float = 1.0) -> Population:
    """Problems whose mean accuracy falls by an effect.

    Args:
        accuracy: mean under the reference.
        effect: the fall of the mean, above 0 and below the accuracy.
        concentration: a + b of the Beta distribution; the smaller, the more U-shaped.

    Raises:
        UserError: an argument is out of range.
    """
    odds = log_odds(accuracy, concentration)
    if not 0 < effect < accuracy:
        raise UserError(
            f"an effect of {100 * effect:g} points cannot be planned for: give one above 0 and below "
            f"the accuracy assumed under memento, {100 * accuracy:g} %"
        )
    delta = optimize.brentq(lambda delta: shift_log_odds(odds, delta).effect - effect, 0.0, MAX_LOG_ODDS_SHIFT)
    return shift_log_odds(odds, float(delta))


def standard_error(problems: int, between: float, within: float) -> float:
    """Standard error of a difference of means.

    Args:
        problems: n.
        between: `Population.paired_variance` or `Population.unpaired_variance`.
        within: `Population.within_problem_variance` of the repetitions.

    Raises:
        UserError: fewer than two problems.
    """
    if problems < 2:
        raise UserError("an interval over problems needs at least 2 of them: give more problems")
    return float(np.sqrt((between + within) / problems))


def half_width(error: float, degrees_of_freedom: float) -> float:
    """Half the 95 % interval of a t statistic with this standard error and these degrees of freedom.

    Paired differences over n problems have n - 1, two unpaired sets 2 (n - 1).
    """
    return float(stats.t.ppf(0.975, degrees_of_freedom)) * error


def power(effect: float, error: float, degrees_of_freedom: float) -> float:
    """The chance that a two-sided 5 % t test finds a true effect, with its right sign (non-central t)."""
    return float(stats.nct.sf(stats.t.ppf(0.975, degrees_of_freedom), degrees_of_freedom, effect / error))


def repetitions_needed(problems: int, drop: Population) -> int | None:
    """The fewest samples of each problem, under either arm, that find the drop with 80 % power, paired.

    Args:
        problems: n.
        drop: the population with the effect to be found.

    Returns:
        R; None if even infinitely many are not enough, because problems differ too much.

    Raises:
        UserError: fewer than two problems.
    """
    settled = standard_error(problems, drop.paired_variance, 0.0)
    if power(drop.effect, settled, problems - 1) < TARGET_POWER:
        return None
    distance = optimize.brentq(lambda errors: power(errors, 1.0, problems - 1) - TARGET_POWER, 0.0, 1000.0)
    return ceil(drop.within_problem_variance(1) / (problems * (drop.effect / distance) ** 2 - drop.paired_variance))


def detectable(accuracy: float, problems: int, repetitions: int, concentration: float = 1.0) -> float | None:
    """The smallest drop that a paired ablation finds with 80 % power; None if it can miss any.

    Args:
        accuracy: mean under the reference.
        problems: n.
        repetitions: R, under either arm.
        concentration: a + b of the Beta distribution.

    Raises:
        UserError: an argument is out of range.
    """
    odds = log_odds(accuracy, concentration)

    def missing(delta: float) -> float:
        drop = shift_log_odds(odds, delta)
        error = standard_error(problems, drop.paired_variance, drop.within_problem_variance(repetitions))
        return TARGET_POWER - power(drop.effect, error, problems - 1)

    # Power can fall again where nearly nothing is solved: take the first crossing, not any.
    deltas = np.geomspace(0.001, MAX_LOG_ODDS_SHIFT, 200)
    enough = next((i for i, delta in enumerate(deltas) if missing(delta) <= 0), None)
    if enough is None:
        return None
    before = deltas[enough - 1] if enough else 0.0
    return shift_log_odds(odds, float(optimize.brentq(missing, before, deltas[enough]))).effect
