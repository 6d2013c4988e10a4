"""`ranking`: all that the secret could be, in the order of the probe's posterior: at which rank is the true one?

Exposure is log2(candidates) - log2(rank) (Carlini et al. 2019, "The Secret Sharer", arXiv 1802.08232,
section 4.3). Of candidates that tie, each order is as likely as another, and the mean is taken; an attacker who
cannot tell any apart has an exposure of about 1.44 bits.
"""

from dataclasses import dataclass
from functools import reduce
from math import prod

import numpy as np
from scipy.special import gammaln

from ghosttrace.auditing.attacks.attack import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.evidence import AttackSite, Evidence, mean_estimate
from ghosttrace.auditing.threats import INSIDER

MAX_CANDIDATES = 10**6  # candidates that are ranked one by one


@dataclass(frozen=True)
class RankingAttack(Attack):
    """Exposure of each secret beyond that from the text."""

    name = "ranking"
    title = "Candidate ranking"
    summary = (
        "All candidates for the secret are ranked by what the retained cache says; the exposure of the true one is "
        "its gain in rank, in bits."
    )
    threat = INSIDER
    units = ("exposure bits",)
    probes_single_site = True

    def skip_reason(self, context: AuditContext, secret: str) -> str | None:
        count = prod(len(context.task.targets[number].classes) for number in context.secrets[secret])
        return (
            f"it could be more than {MAX_CANDIDATES:,} things, too many to rank one by one"
            if count > MAX_CANDIDATES
            else None
        )

    def run(self, context: AuditContext) -> list[Evidence]:
        return [one for secret in self.attackable_secrets(context) for one in self._findings(context, secret)]

    def _findings(self, context: AuditContext, secret: str) -> list[Evidence]:
        asked, rows = context.parts(secret), context.labelled_rows(secret, context.split.test)
        site, count = context.best_site(secret), prod(one.text.shape[1] for one in asked)
        labels = [one.labels[rows] for one in asked]
        text = exposures([one.text[rows] for one in asked], labels)
        found, base, place = [], float(text.mean()), AttackSite.of(site)
        for condition in ("open", "sealed"):
            parts = context.posteriors(secret, site, condition)
            gained = exposures([part[rows] for part in parts], labels) - text
            estimate = mean_estimate(gained, context.split.cluster[rows], 0.05, float(np.log2(count)))
            note = f"of {count} candidates; mean exposure {float((gained + text).mean()):.2f}"
            found.append(
                self.evidence(
                    secret, condition, "exposure bits", estimate, len(rows), baseline=base, site=place, note=note
                )
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
