"""What one attack found of one secret: values a trace, and what they say of all traces.

Intervals are Student's t over clusters of traces. Where nearly all traces agree, resampling says little:
the interval then also allows for the share of dissenters that would have gone unseen, each of whom could
give all of its secret away, or nothing of it (the rule of three, as in `ghosttrace.stats`). A probe that
fell back on the text for a part of the secret says as little of that part, whatever noise of another part
spreads the values: its upper end allows for them too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from scipy import stats

from ghosttrace.errors import UserError
from ghosttrace.probing import sweep
from ghosttrace.probing.evidence import MIN_TEST_CLUSTERS, Scores
from ghosttrace.stats import nearly_unanimous, unseen_share_bound

UNITS = ("bits", "exposure bits", "AUC", "TPR", "epsilon", "rate")
BIT_UNITS = ("bits", "exposure bits")
CONDITIONS = ("open", "sealed", "causal", "shuffled", "unerased", "text")


@dataclass(frozen=True)
class AttackSite:
    """Where an attack looked, as in the results."""

    carrier: str = ""
    hop: int = 0
    layer: str = ""
    kv: str = ""
    head: str = ""
    probe: str = ""

    @classmethod
    def of(cls, site: sweep.ProbeSite, probe: str = "linear") -> "AttackSite":
        """A site of a sweep."""
        return cls(**site.result_columns, probe=probe)


@dataclass(frozen=True)
class AttackEstimate:
    """A value with its interval.

    Attributes:
        value, low, high: the interval's ends may be infinite.
        p: of the value being no better than its baseline.
        high_covers_unseen: whether the upper end is what may have gone unseen.
    """

    value: float
    low: float
    high: float
    p: float = float("nan")
    high_covers_unseen: bool = False


@dataclass(frozen=True)
class Evidence:
    """One attack, one secret, one condition.

    Attributes:
        attack: name of the attack.
        secret: its name, or `block` where the attack is after the block as a whole.
        condition: `open` for what the defence leaves, else the control; one of `CONDITIONS`.
        unit: one of `UNITS`.
        found: the estimate.
        n: traces it was measured on.
        baseline: what an attacker without the cache gets.
        gate: whether the verdict depends on it.
        from_single_site: whether a probe of one place of the cache found it; it then rules out no leak that such probes
            could not have seen.
        site: where it looked.
        note: whatever a reader must know with the figure.
    """

    attack: str
    secret: str
    condition: str
    unit: str
    found: AttackEstimate
    n: int
    baseline: float = 0.0
    gate: bool = False
    from_single_site: bool = False
    site: AttackSite = field(default_factory=AttackSite)
    note: str = ""

    def __post_init__(self) -> None:
        for name, known in (("unit", UNITS), ("condition", CONDITIONS)):
            if getattr(self, name) not in known:
                chosen = f"{name} {getattr(self, name)!r}"
                raise UserError(f"evidence of {self.attack} has the {chosen}: choose from {', '.join(known)}")

    def row(self, defence: str) -> dict[str, Any]:
        """As in the results, but for threat, state, p_holm, detectable and valid."""
        named = {name: getattr(self, name) for name in ("attack", "secret", "condition", "unit", "baseline", "gate")}
        site = {name: getattr(self.site, name) for name in ("carrier", "hop", "layer", "kv", "probe")}
        found = {"estimate": self.found.value, "low": self.found.low, "high": self.found.high, "p": self.found.p}
        return {**named, "defence": defence, **site, **found, "n": self.n, "note": self.note}


@dataclass(frozen=True)
class LabelLogProbs:
    """What was said of one part of a secret: log2 of the probability of the right label.

    Attributes:
        sample: int64[n], ascending: the traces.
        log2p, text_log2p: float[n], by an attacker, and by the text alone.
    """

    sample: np.ndarray
    log2p: np.ndarray
    text_log2p: np.ndarray

    @classmethod
    def of(cls, scores: Scores) -> "LabelLogProbs":
        """What a probe said."""
        return cls(scores.sample, scores.log2p, scores.text_log2p)

    def on(self, rows: np.ndarray) -> "LabelLogProbs":
        """The same of some of its traces, int64, ascending."""
        at = np.searchsorted(self.sample, rows)
        return LabelLogProbs(rows, self.log2p[at], self.text_log2p[at])


def mean_estimate(
    values: np.ndarray, cluster: np.ndarray, alpha: float, maximum: float, any_part_uninformative: bool = False
) -> AttackEstimate:
    """The mean over traces, with its p-value against 0.

    Args:
        values: float[n], of each trace.
        cluster: int64[n], traces that are not independent; fewer than `MIN_TEST_CLUSTERS` give no lower end.
        alpha: the interval misses with this probability.
        maximum: the largest value that a trace could have.
        any_part_uninformative: whether of some part of the secret nothing was said, see `any_part_equals_text`.
    """
    number = np.unique(cluster, return_inverse=True)[1]
    count = np.bincount(number).astype(float)
    total = np.bincount(number, values)
    n, value = len(count), float(total.sum() / count.sum())
    if n < 2:
        return AttackEstimate(value, float("-inf"), maximum, 1.0, high_covers_unseen=True)
    error = float((total - value * count).std(ddof=1) / (count.mean() * np.sqrt(n)))
    reach = float(stats.t.ppf(1 - alpha / 2, n - 1)) * error
    low, high = value - reach, value + reach
    agree, slack = nearly_unanimous(total / count), unseen_share_bound(n, alpha / 2)
    if agree:
        low = min(low, value - slack * max(value, 0.0))
    allowed = value + slack * (maximum - value) if agree or any_part_uninformative else high
    if n < MIN_TEST_CLUSTERS:
        low = float("-inf")
    agreed = 0.5**n if value > 0 else 1.0  # as a test of signs has it
    p = float(stats.t.sf(value / error, n - 1)) if error > 0 else agreed
    return AttackEstimate(value, low, min(max(high, allowed), maximum), p, high_covers_unseen=allowed > high)


def any_part_equals_text(parts: Iterable[LabelLogProbs]) -> bool:
    """Whether for some part of a secret what was said, of every trace, is what the text says."""
    return any(np.array_equal(part.log2p, part.text_log2p) for part in parts)


def total_bits(parts: Sequence[LabelLogProbs], cluster: np.ndarray, alpha: float) -> tuple[AttackEstimate, np.ndarray]:
    """Bits beyond the text, summed over a secret's parts, on the traces that all of them apply to.

    Args:
        parts: what was said of each.
        cluster: int64[N], of all traces.
        alpha: as `mean_estimate`.

    Returns:
        The mean, and the traces that it is of, int64[n].
    """
    rows = reduce(np.intersect1d, [part.sample for part in parts])
    common = [part.on(rows) for part in parts]
    values = np.sum([part.log2p - part.text_log2p for part in common], axis=0)
    maximum = -float(np.sum([part.text_log2p.mean() for part in common]))
    return mean_estimate(values, cluster[rows], alpha, maximum, any_part_equals_text(common)), rows


def one_row_per_cluster(rows: np.ndarray, cluster: np.ndarray, seed: int) -> np.ndarray:
    """int64, ascending: of some traces one of each cluster, drawn at random; those are independent."""
    drawn = np.random.default_rng([seed, 0x01E]).permutation(rows)
    return np.sort(drawn[np.unique(cluster[drawn], return_index=True)[1]])


def rate_estimate(successes: int, n: int, alpha: float = 0.05) -> AttackEstimate:
    """A share with its exact interval (Clopper and Pearson 1934)."""
    found = stats.binomtest(successes, n).proportion_ci(1 - alpha, "exact")
    return AttackEstimate(successes / n, float(found.low), float(found.high))
