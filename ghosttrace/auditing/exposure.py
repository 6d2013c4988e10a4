"""The worst case of a leak: the traces whose whole secret an attacker knows for certain.

A mean over traces hides a cache that holds everything in a few of them. An attacker who holds many caches looks for
those: he guesses the secret only where a probe is confident. The measure is the share of traces in which such a guess
is right, less the share that the text alone would make right by chance. It is the true-positive rate at a low
false-positive rate that Carlini et al. ask of privacy attacks (2022, arXiv 2112.03570, section III).
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from scipy import stats

from ghosttrace.auditing.evidence import AttackEstimate, one_row_per_cluster

CONFIDENCE = 0.5  # posterior of the whole secret from which on the attacker guesses it
MIN_GAIN_BITS = 3.0  # by which the cache must make the guess more probable than the text does, or
MIN_GAIN_SHARE = 0.5  # this share of what the text leaves unknown, if that is less


def exposed_traces(
    parts: Sequence[Mapping[str, Any]], cluster: np.ndarray, alpha: float, seed: int = 0
) -> tuple[AttackEstimate, int]:
    """Estimate the share of traces in which the whole secret is guessed from the cache.

    Args:
        parts: For each part of the secret, a row with the columns of `ghosttrace.probing.evidence.PROBE_RECORDS`.
        cluster: int64[N], cluster of each trace of the task. Traces of one cluster are not independent, so one of them
            is drawn at random.
        alpha: Error rate of the interval.
        seed: Random seed of the draw.

    Returns:
        The share less the share expected from the text alone, and the number of traces drawn. The interval is that of a
        binomial share (Clopper and Pearson 1934), shifted likewise; the p-value is one-sided. Without traces to which
        all parts apply, nothing is bounded.
    """
    rows = reduce(np.intersect1d, [np.asarray(part["sample"]) for part in parts])
    rows = one_row_per_cluster(rows, cluster, seed) if len(rows) else rows
    n = len(rows)
    if n == 0:
        return AttackEstimate(0.0, float("-inf"), 1.0, 1.0, high_covers_unseen=True), 0

    def column(name: str) -> np.ndarray:
        return np.stack([np.asarray(part[name])[np.searchsorted(part["sample"], rows)] for part in parts])

    guess, by_text = column("guess_log2p").sum(0, dtype=float), column("guess_text_log2p").sum(0, dtype=float)
    unknown = -float(column("text_log2p").sum(0).mean())
    gain = min(MIN_GAIN_BITS, MIN_GAIN_SHARE * unknown)
    guessed = (guess >= np.log2(CONFIDENCE)) & (guess - by_text >= gain)
    exposed = int((guessed & column("hit").all(0)).sum())
    chance = float((guessed * np.exp2(by_text)).mean())
    interval = stats.binomtest(exposed, n).proportion_ci(1 - alpha, "exact")
    p = float(stats.binomtest(exposed, n, min(chance, 1.0), alternative="greater").pvalue) if exposed else 1.0
    low, high = interval.low - chance, interval.high - chance
    return AttackEstimate(exposed / n - chance, low, high, p, high_covers_unseen=exposed == 0), n
