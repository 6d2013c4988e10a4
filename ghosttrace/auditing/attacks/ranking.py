"""`ranking`: rank all candidates for the secret by the probe's posterior, and return the rank of the true secret.

Exposure is log2(candidates) - log2(rank) (Carlini et al. 2019, "The Secret Sharer", arXiv 1802.08232,
section 4.3). Exposure is averaged over all orders of tied candidates; an attacker who cannot distinguish any
candidates has an exposure of about 1.44 bits.
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

MAX_CANDIDATES = 10**6  # secrets with more candidates are skipped


@dataclass(frozen=True)
class RankingAttack(Attack):
    """Attack that measures the exposure of each secret beyond its exposure by the text."""

    name = "ranking"
    title = "Candidate ranking"
    summary = (
        "All candidates for the secret are ranked by a probe of the retained cache; the exposure of the true secret is "
        "its gain in rank, in bits."
    )
    threat = INSIDER
    units = ("exposure bits",)
    probes_single_site = True

    def skip_reason(self, context: AuditContext, secret: str) -> str | None:
        count = prod(len(context.task.targets[number].classes) for number in context.secrets[secret])
        return f"it has more than {MAX_CANDIDATES:,} candidates, too many to rank" if count > MAX_CANDIDATES else None

    def run(self, context: AuditContext) -> list[Evidence]:
        return [finding for secret in self.attackable_secrets(context) for finding in self._findings(context, secret)]

    def _findings(self, context: AuditContext, secret: str) -> list[Evidence]:
        targets, rows = context.parts(secret), context.labelled_rows(secret, context.split.test)
        site, count = context.best_site(secret), prod(target.text.shape[1] for target in targets)
        labels = [target.labels[rows] for target in targets]
        text_exposures = exposures([target.text[rows] for target in targets], labels)
        evidence, baseline, attack_site = [], float(text_exposures.mean()), AttackSite.from_probe_site(site)
        for condition in ("open", "sealed"):
            posteriors = context.posteriors(secret, site, condition)
            gain = exposures([posterior[rows] for posterior in posteriors], labels) - text_exposures
            estimate = mean_estimate(gain, context.split.cluster[rows], 0.05, float(np.log2(count)))
            note = f"of {count} candidates; mean exposure {float((gain + text_exposures).mean()):.2f}"
            evidence.append(
                self.evidence(
                    secret,
                    condition,
                    "exposure bits",
                    estimate,
                    len(rows),
                    baseline=baseline,
                    site=attack_site,
                    note=note,
                )
            )
        return evidence


def exposures(posteriors: list[np.ndarray], labels: list[np.ndarray]) -> np.ndarray:
    """Return the exposure of each trace's secret.

    Args:
        posteriors: For each part of the secret, float[n, C] natural log-probabilities.
        labels: For each part of the secret, int64[n].

    Returns:
        float[n], bits, averaged over all orders of tied candidates.
    """
    n = len(labels[0])
    result = np.empty(n)
    for row in range(n):
        scores = reduce(np.add.outer, [part[row] for part in posteriors]).ravel()
        true_score = sum(part[row, label[row]] for part, label in zip(posteriors, labels, strict=True))
        is_tied = np.isclose(scores, true_score, rtol=0, atol=1e-9)
        above, tied = int((scores[~is_tied] > true_score).sum()), int(is_tied.sum())
        # The mean of log2 over ranks above + 1 .. above + tied.
        mean_log_rank = (gammaln(above + tied + 1) - gammaln(above + 1)) / tied / np.log(2)
        result[row] = np.log2(len(scores)) - mean_log_rank
    return result
