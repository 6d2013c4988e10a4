"""`membership`: test a claim about which secret a trace holds, by the likelihood ratio of a probe.

Half of the traces, drawn at random, are paired with the secret that they hold (a true claim), and the other half with
a secret that they do not hold (a false claim). The AUC uses all traces, and its interval accounts for clusters of
traces. Thresholds, rates and the log rate ratio use one trace per cluster. The threshold is set on validation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
from scipy import stats

from ghosttrace.auditing.attacks.attack import Attack
from ghosttrace.auditing.context import AuditContext, Posteriors
from ghosttrace.auditing.evidence import AttackEstimate, AttackSite, Evidence, one_row_per_cluster, rate_estimate
from ghosttrace.auditing.threats import INSIDER
from ghosttrace.errors import UserError
from ghosttrace.probing.site import ProbeSite
from ghosttrace.stats import unseen_share_bound

FALSE_POSITIVE_RATES = (0.01, 0.001)  # false-positive rates at which the attack is judged
MIN_STANDARD_ERROR = 1e-12  # standard errors below this count as 0


@dataclass(frozen=True)
class Claims:
    """Scores of claims; a higher score makes the claim more likely to be true.

    Attributes:
        member_scores, nonmember_scores: float[n] and float[m], scores of true claims and of false claims.
        member_cluster, nonmember_cluster: int64[n] and int64[m], cluster of each claim. Claims of one cluster are not
            independent. None: all claims are independent.
    """

    member_scores: np.ndarray
    nonmember_scores: np.ndarray
    member_cluster: np.ndarray | None = None
    nonmember_cluster: np.ndarray | None = None


@dataclass(frozen=True)
class MembershipAttack(Attack):
    """Attack that measures AUC, true-positive rates at given false-positive rates, and a bound on their log ratio."""

    name = "membership"
    title = "Membership inference"
    summary = "A likelihood ratio separates true claims about the secret from false ones."
    threat = INSIDER
    units = ("AUC", "TPR", "log rate ratio")
    probes_single_site = True

    def check(self, context: AuditContext) -> None:
        cluster, validation = context.split.cluster, context.split.validation
        n_validation, n_total = (len(np.unique(labels)) for labels in (cluster[validation], cluster))
        if context.fpr is not None and n_validation * context.fpr < 1:
            raise UserError(
                f"{n_validation} independent traces on validation cannot set a threshold for a false-positive rate of "
                f"{context.fpr:g}: give {ceil(n_total / n_validation / context.fpr):,} independent traces, or a higher "
                "--fpr"
            )

    def skip_reason(self, context: AuditContext, secret: str) -> str | None:
        _, labels = context.labels(secret, context.split.test)
        if len(labels) < 2 or (labels == labels[0]).all():
            return "all traces hold the same secret, so no false claim is possible"
        return None

    def run(self, context: AuditContext) -> list[Evidence]:
        evidence = []
        for secret in self.attackable_secrets(context):
            site = context.best_site(secret)
            posteriors = {condition: context.posteriors(secret, site, condition) for condition in ("open", "sealed")}
            evidence += self.findings(context, secret, site, posteriors)
        return evidence

    def findings(
        self, context: AuditContext, secret: str, site: ProbeSite, posteriors: Mapping[str, Posteriors]
    ) -> list[Evidence]:
        """Return the findings for the claims about one secret.

        Args:
            context: Context of the audit.
            secret: Name of the secret.
            site: Site of the probe.
            posteriors: For each condition, the probe's posteriors of the secret's parts, see
                `AuditContext.posteriors`.

        Returns:
            AUC, true-positive rates and the log rate ratio. Only the AUC, with a note, if validation has too few
            independent traces to set a threshold. Nothing if all traces hold the same secret, so that no false claim is
            possible.
        """
        evidence, split, seed = [], context.split, context.settings.seed
        fpr = FALSE_POSITIVE_RATES[0] if context.fpr is None else context.fpr
        rows = {name: context.labelled_rows(secret, getattr(split, name)) for name in ("validation", "test")}
        independent_rows = {name: one_row_per_cluster(part, split.cluster, seed) for name, part in rows.items()}
        for condition, parts in posteriors.items():
            rng = np.random.default_rng([seed, 0x3E3B])
            all_claims = sample_claims(context, secret, parts, rows["test"], rng)
            validation_claims, test_claims = (
                sample_claims(context, secret, parts, independent_rows[name], rng) for name in ("validation", "test")
            )
            if all_claims is None:
                continue
            n, attack_site = len(rows["test"]), AttackSite.from_probe_site(site)
            enough = validation_claims and test_claims and len(validation_claims.nonmember_scores) * fpr >= 1
            note = "" if enough else too_few_claims_note(context, validation_claims, fpr)
            evidence.append(
                self.evidence(secret, condition, "AUC", auc(all_claims), n, baseline=0.5, site=attack_site, note=note)
            )
            if validation_claims and test_claims and not note:
                evidence += self._rates(secret, condition, validation_claims, test_claims, fpr, attack_site)
        return evidence

    def _rates(
        self,
        secret: str,
        condition: str,
        validation_claims: Claims,
        test_claims: Claims,
        fpr: float,
        attack_site: AttackSite,
    ) -> list[Evidence]:
        """Return true-positive rates at thresholds set on validation, and the log rate ratio.

        All come from independent claims.
        """
        evidence, n = [], len(test_claims.member_scores) + len(test_claims.nonmember_scores)
        for rate in [
            r
            for r in sorted({fpr, *FALSE_POSITIVE_RATES}, reverse=True)
            if r <= fpr and len(validation_claims.nonmember_scores) * r >= 1
        ]:
            tpr, test_fpr = claim_rates(test_claims, threshold(validation_claims.nonmember_scores, rate))
            note = f"at {rate:.1%} false claims on validation, {test_fpr.value:.1%} on test"
            evidence.append(self.evidence(secret, condition, "TPR", tpr, n, baseline=rate, site=attack_site, note=note))
        bound, ceiling = log_rate_ratio_bound(validation_claims, test_claims)
        note = f"ceiling {ceiling:.2f} with so many traces"
        return [*evidence, self.evidence(secret, condition, "log rate ratio", bound, n, site=attack_site, note=note)]


def too_few_claims_note(context: AuditContext, validation_claims: Claims | None, fpr: float) -> str:
    """Return the note that explains why true-positive rates are missing: too few false claims set no threshold."""
    claims = len(validation_claims.nonmember_scores) if validation_claims else 0
    clusters = len(np.unique(context.split.cluster))
    needed = int(np.ceil(clusters / fpr / max(1, claims)))
    return (
        f"{claims} independent false claims on validation cannot set a threshold for a rate of {fpr:g}: "
        f"give {needed} independent traces, or a higher --fpr"
    )


def sample_claims(
    context: AuditContext, secret: str, posteriors: Posteriors, rows: np.ndarray, rng: np.random.Generator
) -> Claims | None:
    """Score true claims for half of the traces and false claims for the other half.

    A true claim names the trace's own secret. A false claim names the different secret of another trace.

    Args:
        context: Context of the audit.
        secret: Name of the secret.
        posteriors: The probe's posteriors of the secret's parts, float[N, C] each.
        rows: int64[n], row numbers of the traces.
        rng: Generator of random numbers.

    Returns:
        The claims, or None if there is a single trace or all traces hold the same secret.
    """
    rows = rng.permutation(rows)
    half = len(rows) // 2
    targets = context.parts(secret)
    own = np.stack([target.labels[rows] for target in targets], axis=1)
    if not half or (own == own[0]).all():
        return None
    claimed = own.copy()
    for number in range(half, len(rows)):
        others = np.flatnonzero((own != own[number]).any(axis=1))
        claimed[number] = own[rng.choice(others)]
    log_ratio = np.zeros(len(rows))
    for column, target in enumerate(targets):
        gain = posteriors[column][rows] - target.text[rows]
        log_ratio += gain[np.arange(len(rows)), claimed[:, column]]
    cluster = context.split.cluster[rows]
    return Claims(log_ratio[:half], log_ratio[half:], cluster[:half], cluster[half:])


def auc(claims: Claims) -> AttackEstimate:
    """Estimate the AUC by the Mann-Whitney statistic, with an interval and a p-value that account for clusters.

    Ties count as half. DeLong's structural components are summed by cluster over both kinds of claims (Obuchowski
    1997, Biometrics 53, 567-578). If all clusters agree, the interval is the bound on the share of clusters that
    disagree without having been observed.
    """
    n, m = len(claims.member_scores), len(claims.nonmember_scores)
    above = np.sign(claims.member_scores[:, None] - claims.nonmember_scores[None]) / 2 + 0.5
    value = float(above.mean())
    components = np.concatenate([(above.mean(1) - value) / n, (above.mean(0) - value) / m])
    cluster_numbers = _cluster_numbers(claims)
    count = int(cluster_numbers.max()) + 1
    sums = np.bincount(cluster_numbers, components)
    error = float(np.sqrt((sums**2).sum() * count / (count - 1))) if count > 1 else 0.0
    if error < MIN_STANDARD_ERROR:
        slack = unseen_share_bound(count)
        return AttackEstimate(
            value, value * (1 - slack), value + slack * (1 - value), float(0.5**count if value > 0.5 else 1)
        )
    half_width = float(stats.t.ppf(0.975, count - 1)) * error
    p = float(stats.t.sf((value - 0.5) / error, count - 1))
    return AttackEstimate(value, max(0.0, value - half_width), min(1.0, value + half_width), p)


def _cluster_numbers(claims: Claims) -> np.ndarray:
    """Return the cluster of each claim as consecutive numbers from 0, int64[n + m]."""
    if claims.member_cluster is None or claims.nonmember_cluster is None:
        return np.arange(len(claims.member_scores) + len(claims.nonmember_scores))
    return np.unique(np.concatenate([claims.member_cluster, claims.nonmember_cluster]), return_inverse=True)[1]


def threshold(nonmember_scores: np.ndarray, rate: float) -> float:
    """Return the lowest score that at most a share `rate` of the false claims exceeds."""
    allowed = int(np.floor(rate * len(nonmember_scores)))
    return float(np.sort(nonmember_scores)[::-1][allowed])


def claim_rates(claims: Claims, cutoff: float) -> tuple[AttackEstimate, AttackEstimate]:
    """Return the true-positive and the false-positive rate of claims with scores above a threshold."""
    positives, false_positives = (
        int((scores > cutoff).sum()) for scores in (claims.member_scores, claims.nonmember_scores)
    )
    return (
        rate_estimate(positives, len(claims.member_scores)),
        rate_estimate(false_positives, len(claims.nonmember_scores)),
    )


def log_rate_ratio_bound(validation_claims: Claims, test_claims: Claims) -> tuple[AttackEstimate, float]:
    """Return a lower 95 % confidence bound on the log rate ratio of this attack.

    The log rate ratio is the larger of ln(TPR / FPR) and ln((1 - FPR) / (1 - TPR)). TPR is the rate at which the attack
    accepts a trace's own secret, FPR the rate at which it accepts a decoy, the different secret of another trace. Both
    are averaged over the traces and over the decoys drawn for them.

    It is not the epsilon of a differential-privacy guarantee. That epsilon bounds this logarithm for the worst pair of
    neighbouring inputs and for every attack; here one attack is averaged over pairs, so that a few traces that reveal
    everything hardly change it. A mechanism whose outputs for any two secrets of the same trace are within a factor
    exp(epsilon) has a log rate ratio of at most epsilon, if secrets are uniform and independent of the rest of the
    trace. In this case a bound above a claimed epsilon refutes the claim. A low bound confirms none.

    The method is the one that Nasr et al. 2021 (arXiv 2101.04535, section 4) use for two fixed neighbouring inputs: the
    threshold with the best bound on `validation_claims` is applied to `test_claims`, whose rates are bounded by Clopper
    and Pearson, TPR from below and FPR from above, at 97.5 % each.

    Returns:
        The bound, as an estimate without an upper end, and the highest bound that this number of traces can give.
    """
    cutoffs = np.unique(np.concatenate([validation_claims.member_scores, validation_claims.nonmember_scores]))
    cutoffs = cutoffs[:: max(1, len(cutoffs) // 200)]
    validation_bounds = [_rate_ratio_bound(claim_rates(validation_claims, float(cutoff))) for cutoff in cutoffs]
    bound = _rate_ratio_bound(claim_rates(test_claims, float(cutoffs[int(np.argmax(validation_bounds))])))
    n, m = len(test_claims.member_scores), len(test_claims.nonmember_scores)
    ceiling = float(np.log(0.025 ** (1 / n) / (1 - 0.025 ** (1 / m))))
    return AttackEstimate(bound, bound, float("inf")), ceiling


def _rate_ratio_bound(rates: tuple[AttackEstimate, AttackEstimate]) -> float:
    """Return the lower bound on the log rate ratio from a true-positive and a false-positive rate."""
    tpr, fpr = rates
    from_positives = np.log(tpr.low / fpr.high) if tpr.low > 0 else 0.0
    from_negatives = np.log((1 - fpr.high) / (1 - tpr.low)) if tpr.low < 1 and fpr.high < 1 else 0.0
    return float(max(0.0, from_positives, from_negatives))
