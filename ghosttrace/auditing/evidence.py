"""Findings of attacks: one estimate per attack, secret and condition, with an interval over all traces.

Intervals are Student's t over clusters of traces. If nearly all traces have the same value, their spread is not
informative. The interval then also covers the share of differing traces that a sample of this size misses, each of
which could leak its whole secret, or nothing (the rule of three, as in `ghosttrace.stats`). The upper bound also covers
them if a probe falls back to the text for some part of the secret, because noise in another part can then spread the
values although the probe found nothing in this one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from ghosttrace.errors import UserError
from ghosttrace.probing.evidence import MIN_TEST_CLUSTERS, Scores
from ghosttrace.stats import nearly_unanimous, unseen_share_bound

if TYPE_CHECKING:
    from ghosttrace.probing.site import ProbeSite

EXPOSED = "exposed share"  # unit: the share of traces whose whole secret is guessed, see `ghosttrace.auditing.exposure`
UNITS = ("bits", "exposure bits", EXPOSED, "AUC", "TPR", "log rate ratio", "rate")
BIT_UNITS = ("bits", "exposure bits")
GATED_UNITS = ("bits", EXPOSED)
CONDITIONS = ("open", "sealed", "causal", "shuffled", "unerased", "text")


@dataclass(frozen=True)
class AttackSite:
    """Site of an attack, in the columns of the results; empty for attacks without a site."""

    carrier: str = ""
    hop: int = 0
    layer: str = ""
    kv: str = ""
    head: str = ""
    probe: str = ""

    @classmethod
    def from_probe_site(cls, site: "ProbeSite", probe: str = "linear") -> "AttackSite":
        """Build it from a site of a sweep."""
        return cls(**site.result_columns, probe=probe)


@dataclass(frozen=True)
class AttackEstimate:
    """A value with its interval.

    Attributes:
        value: The estimate.
        low, high: Bounds of the interval; may be infinite.
        p: p-value against the baseline; NaN if there is no test.
        high_covers_unseen: Whether the upper bound is set by the share of traces that a sample of this size misses.
    """

    value: float
    low: float
    high: float
    p: float = float("nan")
    high_covers_unseen: bool = False


@dataclass(frozen=True)
class Evidence:
    """A finding: the estimate of one attack on one secret under one condition.

    Attributes:
        attack: Name of the attack.
        secret: Name of the secret, or `block` if the attack recovers the whole block.
        condition: `open` for the defended cache, or the name of a control; one of `CONDITIONS`.
        unit: One of `UNITS`.
        estimate: The estimate.
        n: Number of traces that it was measured on.
        baseline: Value of an attacker without the cache.
        gate: Whether the finding decides the verdict.
        from_single_site: Whether the finding is from a probe of a single site. It then rules out only leaks that such
            probes can detect.
        site: Site of the attack.
        note: A remark that reports show beside the estimate.
        fell_back: Whether the attack gained too little on validation and predicted what the text predicts. Its
            estimate of 0 is then this decision, and no measurement.
    """

    attack: str
    secret: str
    condition: str
    unit: str
    estimate: AttackEstimate
    n: int
    baseline: float = 0.0
    gate: bool = False
    from_single_site: bool = False
    site: AttackSite = field(default_factory=AttackSite)
    note: str = ""
    fell_back: bool = False

    def __post_init__(self) -> None:
        for name, known in (("unit", UNITS), ("condition", CONDITIONS)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"evidence of {self.attack} has the unknown {name} {getattr(self, name)!r}: "
                    f"choose from {', '.join(known)}"
                )

    def row(self, defence: str) -> dict[str, Any]:
        """Return the row of the results, without threat, state, p_holm, detectable and valid."""
        fields = {name: getattr(self, name) for name in ("attack", "secret", "condition", "unit", "baseline", "gate")}
        site = {name: getattr(self.site, name) for name in ("carrier", "hop", "layer", "kv", "probe")}
        estimate = {"estimate": self.estimate.value} | {
            name: getattr(self.estimate, name) for name in ("low", "high", "p")
        }
        more = {"n": self.n, "note": self.note, "fell_back": self.fell_back}
        return {**fields, "defence": defence, **site, **estimate, **more}


@dataclass(frozen=True)
class LabelLogProbs:
    """Log2-probabilities of the true labels of one part of a secret.

    Attributes:
        sample: int64[n], row numbers of the traces, ascending.
        log2p, text_log2p: float[n], predicted by an attacker, and by the text alone.
    """

    sample: np.ndarray
    log2p: np.ndarray
    text_log2p: np.ndarray

    @classmethod
    def from_scores(cls, scores: Scores) -> "LabelLogProbs":
        """Build it from the scores of a probe."""
        return cls(scores.sample, scores.log2p, scores.text_log2p)

    def select(self, rows: np.ndarray) -> "LabelLogProbs":
        """Select some of the traces by their row numbers, int64, ascending."""
        indices = np.searchsorted(self.sample, rows)
        return LabelLogProbs(rows, self.log2p[indices], self.text_log2p[indices])


def mean_estimate(
    values: np.ndarray, cluster: np.ndarray, alpha: float, maximum: float, any_part_uninformative: bool = False
) -> AttackEstimate:
    """Estimate the mean over traces, with its interval and its p-value against 0.

    Args:
        values: float[n], value of each trace.
        cluster: int64[n], cluster of each trace; traces of one cluster are not independent. With fewer than
            `MIN_TEST_CLUSTERS` clusters the lower bound is -inf.
        alpha: Error rate of the interval.
        maximum: Maximum possible value of a trace.
        any_part_uninformative: Whether the attack added nothing to the text for some part of the secret (see
            `any_part_equals_text`). The upper bound is then raised to what so few clusters can hide.
    """
    cluster_numbers = np.unique(cluster, return_inverse=True)[1]
    count = np.bincount(cluster_numbers).astype(float)
    total = np.bincount(cluster_numbers, values)
    n, value = len(count), float(total.sum() / count.sum())
    if n < 2:
        return AttackEstimate(value, float("-inf"), maximum, 1.0, high_covers_unseen=True)
    error = float((total - value * count).std(ddof=1) / (count.mean() * np.sqrt(n)))
    half_width = float(stats.t.ppf(1 - alpha / 2, n - 1)) * error
    low, high = value - half_width, value + half_width
    unanimous, unseen_share = nearly_unanimous(total / count), unseen_share_bound(n, alpha / 2)
    if unanimous:
        low = min(low, value - unseen_share * max(value, 0.0))
    unseen_high = value + unseen_share * (maximum - value) if unanimous or any_part_uninformative else high
    if n < MIN_TEST_CLUSTERS:
        low = float("-inf")
    sign_test_p = 0.5**n if value > 0 else 1.0
    p = float(stats.t.sf(value / error, n - 1)) if error > 0 else sign_test_p
    return AttackEstimate(value, low, min(max(high, unseen_high), maximum), p, high_covers_unseen=unseen_high > high)


def any_part_equals_text(parts: Iterable[LabelLogProbs]) -> bool:
    """Return whether the prediction of some part of a secret equals that of the text, for every trace."""
    return any(np.array_equal(part.log2p, part.text_log2p) for part in parts)


def every_part_equals_text(parts: Iterable[LabelLogProbs]) -> bool:
    """Return whether the prediction of every part of a secret equals that of the text, for every trace."""
    return all(np.array_equal(part.log2p, part.text_log2p) for part in parts)


def total_bits(parts: Sequence[LabelLogProbs], cluster: np.ndarray, alpha: float) -> tuple[AttackEstimate, np.ndarray]:
    """Estimate the bits beyond the text, summed over a secret's parts, on the traces to which all parts apply.

    Args:
        parts: Log-probabilities of each part.
        cluster: int64[N], cluster of each trace of the task.
        alpha: Error rate of the interval.

    Returns:
        The mean per trace, and the row numbers of these traces, int64[n].
    """
    rows = reduce(np.intersect1d, [part.sample for part in parts])
    common = [part.select(rows) for part in parts]
    values = np.sum([part.log2p - part.text_log2p for part in common], axis=0)
    maximum = -float(np.sum([part.text_log2p.mean() for part in common]))
    return mean_estimate(values, cluster[rows], alpha, maximum, any_part_equals_text(common)), rows


def one_row_per_cluster(rows: np.ndarray, cluster: np.ndarray, seed: int) -> np.ndarray:
    """Draw one row per cluster at random, so that the rows are independent; return them in ascending order, int64."""
    drawn = np.random.default_rng([seed, 0x01E]).permutation(rows)
    return np.sort(drawn[np.unique(cluster[drawn], return_index=True)[1]])


def rate_estimate(successes: int, n: int, alpha: float = 0.05) -> AttackEstimate:
    """Estimate a rate with its exact interval (Clopper and Pearson 1934)."""
    interval = stats.binomtest(successes, n).proportion_ci(1 - alpha, "exact")
    return AttackEstimate(successes / n, float(interval.low), float(interval.high))
