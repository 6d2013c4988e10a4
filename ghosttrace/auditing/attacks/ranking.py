"""`ranking`: all that the secret could be, in the order of the probe's posterior: where does the true one stand?

Exposure is log2(candidates) - log2(rank) (Carlini et al. 2019, "The Secret Sharer", arXiv 1802.08232,
section 4.3). Of candidates that tie, each order is as likely as another, and the mean is taken; one who
cannot tell any apart has an exposure of about 1.44 bits.
"""

from collections.abc import Mapping
from functools import reduce
from math import prod

import numpy as np
from scipy.special import gammaln

from ghosttrace.auditing.context import Exhibit, where
from ghosttrace.auditing.evidence import Evidence, mean_of
from ghosttrace.probing.sweep import Site

NAME = "ranking"
MOST = 10**6  # candidates that are ranked one by one


def ranking(exhibit: Exhibit, secret: str, site: Site, said: Mapping[str, list[np.ndarray]]) -> list[Evidence]:
    """Exposure of a secret beyond that from the text.

    Args:
        exhibit: what to attack.
        secret: which secret.
        site: where the probe looked.
        said: by condition, its posteriors of the secret's parts, see `Exhibit.posteriors`.

    Returns:
        Nothing where the secret could be more than `MOST` things.
    """
    asked, rows = exhibit.parts(secret), exhibit.known(secret, exhibit.split.test)
    count = prod(one.text.shape[1] for one in asked)
    if count > MOST:
        return []
    labels = [one.labels[rows] for one in asked]
    text = exposures([one.text[rows] for one in asked], labels)
    found = []
    for condition, parts in said.items():
        gained = exposures([part[rows] for part in parts], labels) - text
        estimate = mean_of(gained, exhibit.split.cluster[rows], 0.05, float(np.log2(count)))
        note = f"of {count} candidates; mean exposure {float((gained + text).mean()):.2f}"
        base = float(text.mean())
        found.append(
            Evidence(NAME, secret, condition, "exposure bits", estimate, len(rows), base, site=where(site), note=note)
        )
    return found


def exposures(posteriors: list[np.ndarray], labels: list[np.ndarray]) -> np.ndarray:
    """The exposure of each trace's secret.

    Args:
        posteriors: of each part, float[n, C], natural logarithms.
        labels: of each part, int64[n].

    Returns:
        float[n], bits, the mean over orders of tied candidates.
    """
    n = len(labels[0])
    found = np.empty(n)
    for row in range(n):
        scores = reduce(np.add.outer, [part[row] for part in posteriors]).ravel()
        own = sum(part[row, label[row]] for part, label in zip(posteriors, labels, strict=True))
        near = np.isclose(scores, own, rtol=0, atol=1e-9)
        above, tied = int((scores[~near] > own).sum()), int(near.sum())
        # The mean of log2 over ranks above + 1 .. above + tied.
        mean_log = (gammaln(above + tied + 1) - gammaln(above + 1)) / tied / np.log(2)
        found[row] = np.log2(len(scores)) - mean_log
    return found
