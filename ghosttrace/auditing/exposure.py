"""The worst case of a leak: the traces whose whole secret an attacker knows for certain.

A mean over traces hides a cache that tells everything in a few of them. An attacker who holds many caches looks for
those: he guesses the secret only where a probe is confident. The measure is the share of independent traces in which
such a guess is right, less the share that the text alone would make right by chance. It is the true-positive rate at a
low false-positive rate that Carlini et al. ask of privacy attacks (2022, arXiv 2112.03570, section III).
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from scipy import stats

from ghosttrace.auditing.evidence import AttackEstimate

CONFIDENCE = 0.5  # posterior of the whole secret from which on the attacker guesses it
MIN_GAIN_BITS = 3.0  # by which the cache must make the guess more probable than the text does


def exposed_traces(parts: Sequence[Mapping[str, Any]], cluster: np.ndarray, alpha: float) -> AttackEstimate:
    """Estimate the share of independent traces in which the whole secret is guessed from the cache.

    A cluster of traces counts as one, and as exposed if any of its traces is.

    Args:
        parts: For each part of the secret, a row with the columns of `ghosttrace.probing.evidence.PROBE_RECORDS`.
        cluster: int64[N], cluster of each trace of the task; traces of one cluster are not independent.
        alpha: Error rate of the interval.

    Returns:
        The share of exposed clusters less the share expected from the text alone. The interval is that of a binomial
        share (Clopper and Pearson 1934), shifted likewise; the p-value is one-sided.
    """
    rows = reduce(np.intersect1d, [np.asarray(part["sample"]) for part in parts])

    def column(name: str) -> np.ndarray:
        return np.stack([np.asarray(part[name])[np.searchsorted(part["sample"], rows)] for part in parts])

    guess, by_text = column("guess_log2p").sum(0, dtype=float), column("guess_text_log2p").sum(0, dtype=float)
    guessed = (guess >= np.log2(CONFIDENCE)) & (guess - by_text >= MIN_GAIN_BITS)
    right = guessed & column("hit").all(0)
    number = np.unique(cluster[rows], return_inverse=True)[1]
    n = int(number.max()) + 1
    exposed = int(np.count_nonzero(np.bincount(number, right)))
    none_by_text = np.bincount(number, np.where(guessed, np.log1p(-np.exp2(np.minimum(by_text, -1e-9))), 0.0))
    chance = float(-np.expm1(none_by_text).mean())
    test = stats.binomtest(exposed, n)
    interval = test.proportion_ci(1 - alpha, "exact")
    p = float(stats.binomtest(exposed, n, chance, alternative="greater").pvalue) if exposed else 1.0
    low, high = interval.low - chance, interval.high - chance
    return AttackEstimate(exposed / n - chance, low, high, p, high_covers_unseen=exposed == 0)
