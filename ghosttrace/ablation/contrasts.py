"""Contrasts between arms in one condition of a benchmark, and the verdict on a contrast."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from ghosttrace.ablation.samples import problem_clusters
from ghosttrace.paired import difference_of_effects, equivalence_interval, paired_effect
from ghosttrace.runs.folder import REFERENCE_ARM
from ghosttrace.stats import Estimate, estimate

LOWERS, RAISES = "lowers accuracy", "raises accuracy"
NO_EFFECT, UNTOLD, NOT_MEASURED = "no effect shown", "cannot be told", "not measured"


@dataclass(frozen=True)
class Contrast:
    """An estimate with the intervals that its verdict needs.

    Attributes:
        effect: The estimate as a fraction, with its 95 % interval.
        tested: The same with the 90 % interval of two one-sided tests at 5 %.
        left_to_lose: The largest drop that the contrast could show, as a fraction: the accuracy that the reference of
            the contrast leaves.
        n_problems, n_clusters: Number of problems, and of clusters that are resampled.
    """

    effect: Estimate
    tested: Estimate
    left_to_lose: float
    n_problems: int
    n_clusters: int

    @property
    def drop(self) -> bool:
        """Whether the interval lies below 0."""
        return self.effect.high < 0

    @property
    def at_floor(self) -> bool:
        """Whether the interval includes the loss of all that is left to lose."""
        return self.effect.low <= -self.left_to_lose

    def minus(self, other: "Contrast", left_to_lose: float) -> "Contrast":
        """Return the difference from a contrast on other problems; its problems are those of both."""
        return Contrast(
            difference_of_effects(self.effect, other.effect),
            difference_of_effects(self.tested, other.tested),
            left_to_lose,
            self.n_problems + other.n_problems,
            self.n_clusters + other.n_clusters,
        )


@dataclass(frozen=True)
class Verdict:
    """What a contrast shows.

    Attributes:
        verdict: A few words, the same for every contrast with this outcome.
        note: What limits the verdict or explains it, as part of a sentence; may be empty.
    """

    verdict: str
    note: str = ""


@dataclass(frozen=True, eq=False)
class ConditionScores:
    """The samples of one condition.

    Attributes:
        name: Name of the benchmark.
        family: Name shared by the conditions that it is compared with.
        omits_needed: Whether a memento omits a value that the answer needs.
        derivable: Whether the retained text determines the answer nevertheless.
        samples: One row per sample, with the columns `arm`, `problem`, `cluster`, `repetition`, `correct`,
            `extracted`, `answer` and `donor_answer`.
    """

    name: str
    family: str
    omits_needed: bool
    derivable: bool
    samples: pd.DataFrame

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Accuracy of each problem, one row per arm and one column per problem."""
        return self.samples.groupby(["arm", "problem"], sort=False)["correct"].mean().unstack("problem")

    @cached_property
    def cluster(self) -> np.ndarray:
        """Cluster of each problem, in the order of the columns of `scores`."""
        return problem_clusters(self.samples, self.scores.columns)

    def accuracy(self, arm: str) -> float:
        """Return the mean accuracy under an arm, as a fraction."""
        return float(self.scores.loc[arm].to_numpy(float).mean())

    def contrast(self, arm: str, reference: str) -> Contrast | None:
        """Return accuracy(arm) - accuracy(reference), paired by problem; None if one of them was not run."""
        if not {arm, reference} <= set(self.scores.index):
            return None
        pair = [self.scores.loc[name].to_numpy(float) for name in (arm, reference)]
        effect, tested = (
            test(pair[0], pair[1], cluster=self.cluster) for test in (paired_effect, equivalence_interval)
        )
        return Contrast(effect, tested, self.accuracy(reference), len(pair[0]), len(np.unique(self.cluster)))

    @cached_property
    def swapped(self) -> pd.DataFrame:
        """The samples under `swap` with a swapped memento, with the answer under `memento` in `unswapped`."""
        arms = self.samples.groupby("arm", sort=False)
        if "swap" not in arms.groups:
            return self.samples.iloc[:0].assign(unswapped=None)
        unswapped = arms.get_group(REFERENCE_ARM)[["problem", "repetition", "extracted"]]
        unswapped = unswapped.rename(columns={"extracted": "unswapped"})
        swapped = arms.get_group("swap").merge(unswapped, on=["problem", "repetition"])
        return swapped[swapped["donor_answer"].notna()]

    def swapped_share(self, holds: pd.Series) -> Contrast | None:
        """Return the share of `swapped` samples for which a condition holds; None if nothing was swapped.

        Args:
            holds: bool per row of `swapped`.
        """
        if self.swapped.empty:
            return None
        shares = holds.groupby(self.swapped["problem"], sort=False).mean()
        cluster = problem_clusters(self.swapped, shares.index)
        share = shares.to_numpy(float)
        whole, tested = (estimate(share, cluster=cluster, alpha=alpha) for alpha in (0.05, 0.1))
        return Contrast(whole, tested, 1.0, len(shares), len(np.unique(cluster)))


def judge(contrast: Contrast, margin: float | None, floor: str) -> Verdict:
    """Return what a contrast of accuracies shows.

    A drop cannot be told from none if the interval includes the loss of all accuracy that was left. A difference of
    effects that is larger than all that was left is no drop.

    Args:
        contrast: The contrast.
        margin: Margin of equivalence in points, set before the run; None for no test.
        floor: What leaves so little accuracy to lose, as the subject of a clause.
    """
    equivalent = margin is not None and is_equivalent(contrast.tested, margin)
    left = f"{floor} leaves {max(0.0, 100 * contrast.left_to_lose):.1f} points to lose"
    if contrast.effect.high < -contrast.left_to_lose:
        return Verdict(UNTOLD, f"{left}, less than the difference")
    if contrast.drop:
        return Verdict(LOWERS, f"by less than {margin:g} points" if equivalent else "")
    if contrast.at_floor:
        return Verdict(UNTOLD, left)
    if contrast.effect.low > 0:
        return Verdict(RAISES, f"by less than {margin:g} points" if equivalent else "")
    if not equivalent or margin is None:
        return Verdict(NO_EFFECT, "equivalence was not tested: no margin was set" if margin is None else "")
    if 100 * contrast.left_to_lose <= margin:
        return Verdict(NO_EFFECT, f"{left}, which is within the margin")
    return Verdict(equivalent_words(margin))


def is_equivalent(tested: Estimate, margin: float) -> bool:
    """Return whether the interval of two one-sided tests lies inside plus and minus a margin in points."""
    return -margin < 100 * tested.low and 100 * tested.high < margin


def equivalent_words(margin: float) -> str:
    """Return the verdict of an effect that was shown to be equivalent to zero.

    Args:
        margin: Margin in points.
    """
    return f"equivalent to zero within ±{margin:g} points"
