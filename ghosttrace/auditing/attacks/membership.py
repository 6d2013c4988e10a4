"""`membership`: was it this secret, or another? The likelihood ratio that a probe gives the claim.

Half of the traces, drawn at random, are shown with the secret that they hold, the others with one that
they do not. The AUC is over all traces, and its interval allows for those that are not independent; thresholds,
rates and epsilon are over one trace a cluster. The threshold is set on validation.
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
from ghosttrace.probing.sweep import ProbeSite
from ghosttrace.stats import unseen_share_bound

FALSE_POSITIVE_RATES = (0.01, 0.001)  # false-positive rates at which the attack is judged
MIN_STANDARD_ERROR = 1e-12  # of a standard error, below which there is none


@dataclass(frozen=True)
class Claims:
    """Scores of claims, higher where the attacker takes them for true.

    Attributes:
        member_scores, nonmember_scores: float[n] and float[m], of claims that are true and of claims that are false.
        member_cluster, nonmember_cluster: int64[n] and int64[m], claims that are not independent; all are if None.
    """

    member_scores: np.ndarray
    nonmember_scores: np.ndarray
    member_cluster: np.ndarray | None = None
    nonmember_cluster: np.ndarray | None = None


@dataclass(frozen=True)
class MembershipAttack(Attack):
    """AUC, true-positive rate at a given false-positive rate, and a lower bound on epsilon."""

    name = "membership"
    title = "Membership inference"
    summary = "A likelihood ratio tells true claims of what the secret is from false ones."
    threat = INSIDER
    units = ("AUC", "TPR", "epsilon")
    probes_single_site = True

    def check(self, context: AuditContext) -> None:
        cluster, validation = context.split.cluster, context.split.validation
        validated, traces = (len(np.unique(part)) for part in (cluster[validation], cluster))
        if context.fpr is not None and validated * context.fpr < 1:
            raise UserError(
                f"{validated} independent traces on validation cannot set a threshold for {context.fpr:g} false "
                f"claims: give {ceil(traces / validated / context.fpr):,} independent traces, or a higher --fpr"
            )

    def skip_reason(self, context: AuditContext, secret: str) -> str | None:
        _, labels = context.labels(secret, context.split.test)
        if len(labels) < 2 or (labels == labels[0]).all():
            return "all its traces hold the same, so that no false claim can be made of it"
        return None

    def run(self, context: AuditContext) -> list[Evidence]:
        found = []
        for secret in self.attackable_secrets(context):
            site = context.best_site(secret)
            said = {condition: context.posteriors(secret, site, condition) for condition in ("open", "sealed")}
            found += self.findings(context, secret, site, said)
        return found

    def findings(
        self, context: AuditContext, secret: str, site: ProbeSite, said: Mapping[str, Posteriors]
    ) -> list[Evidence]:
        """What the claims about one secret show.

        Args:
            context: of the audit.
            secret: which secret.
            site: where the probe looked.
            said: by condition, its posteriors of the secret's parts, see `AuditContext.posteriors`.

        Returns:
            The AUC alone where validation has too few independent traces to set a threshold, which its note says;
            nothing where no false claim can be made, as all traces hold the same secret.
        """
        found, split, seed = [], context.split, context.settings.seed
        fpr = FALSE_POSITIVE_RATES[0] if context.fpr is None else context.fpr
        every = {name: context.labelled_rows(secret, getattr(split, name)) for name in ("validation", "test")}
        single = {name: one_row_per_cluster(rows, split.cluster, seed) for name, rows in every.items()}
        for condition, parts in said.items():
            rng = np.random.default_rng([seed, 0x3E3B])
            whole = sample_claims(context, secret, parts, every["test"], rng)
            chosen, judged = (
                sample_claims(context, secret, parts, single[name], rng) for name in ("validation", "test")
            )
            if whole is None:
                continue
            n, place = len(every["test"]), AttackSite.of(site)
            enough = chosen and judged and len(chosen.nonmember_scores) * fpr >= 1
            few = "" if enough else too_few_claims_note(context, chosen, fpr)
            found.append(self.evidence(secret, condition, "AUC", auc(whole), n, baseline=0.5, site=place, note=few))
            if chosen and judged and not few:
                found += self._rates(secret, condition, chosen, judged, fpr, place)
        return found

    def _rates(
        self, secret: str, condition: str, chosen: Claims, judged: Claims, fpr: float, place: AttackSite
    ) -> list[Evidence]:
        """What independent claims show: rates at thresholds set on other traces, and epsilon."""
        found, n = [], len(judged.member_scores) + len(judged.nonmember_scores)
        for rate in [
            r
            for r in sorted({fpr, *FALSE_POSITIVE_RATES}, reverse=True)
            if r <= fpr and len(chosen.nonmember_scores) * r >= 1
        ]:
            right, false = claim_rates(judged, threshold(chosen.nonmember_scores, rate))
            note = f"at {rate:.1%} false claims on validation, {false.value:.1%} on test"
            found.append(self.evidence(secret, condition, "TPR", right, n, baseline=rate, site=place, note=note))
        bound, ceiling = epsilon_lower_bound(chosen, judged)
        note = f"ceiling {ceiling:.2f} with so many traces"
        return [*found, self.evidence(secret, condition, "epsilon", bound, n, site=place, note=note)]


def too_few_claims_note(context: AuditContext, chosen: Claims | None, fpr: float) -> str:
    """Why no threshold was set."""
    claims = len(chosen.nonmember_scores) if chosen else 0
    clusters = len(np.unique(context.split.cluster))
    needed = int(np.ceil(clusters / fpr / max(1, claims)))
    return (
        f"{claims} independent false claims on validation cannot set a threshold for a rate of {fpr:g}: "
        f"give {needed} independent traces, or a higher --fpr"
    )


def sample_claims(
    context: AuditContext, secret: str, said: Posteriors, part: np.ndarray, rng: np.random.Generator
) -> Claims | None:
    """Half of a part's traces with their own secret, half with that of another trace which differs.

    None if there is no other, or one trace alone.
    """
    rows = rng.permutation(part)
    half = len(rows) // 2
    asked = context.parts(secret)
    own = np.stack([one.labels[rows] for one in asked], axis=1)
    if not half or (own == own[0]).all():
        return None
    claimed = own.copy()
    for place in range(half, len(rows)):
        others = np.flatnonzero((own != own[place]).any(axis=1))
        claimed[place] = own[rng.choice(others)]
    ratio = np.zeros(len(rows))
    for column, one in enumerate(asked):
        gained = said[column][rows] - one.text[rows]
        ratio += gained[np.arange(len(rows)), claimed[:, column]]
    cluster = context.split.cluster[rows]
    return Claims(ratio[:half], ratio[half:], cluster[:half], cluster[half:])


def auc(claims: Claims) -> AttackEstimate:
    """Mann and Whitney's share of right orders, ties half; its interval and p-value respect clusters.

    DeLong's structural components are summed by cluster, whichever side its claims are on (Obuchowski 1997,
    Biometrics 53, 567-578). Where all clusters agree, the interval is what may have gone unseen.
    """
    n, m = len(claims.member_scores), len(claims.nonmember_scores)
    above = np.sign(claims.member_scores[:, None] - claims.nonmember_scores[None]) / 2 + 0.5
    value = float(above.mean())
    components = np.concatenate([(above.mean(1) - value) / n, (above.mean(0) - value) / m])
    number = _numbered(claims)
    count = int(number.max()) + 1
    sums = np.bincount(number, components)
    error = float(np.sqrt((sums**2).sum() * count / (count - 1))) if count > 1 else 0.0
    if error < MIN_STANDARD_ERROR:
        slack = unseen_share_bound(count)
        return AttackEstimate(
            value, value * (1 - slack), value + slack * (1 - value), float(0.5**count if value > 0.5 else 1)
        )
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    p = float(stats.t.sf((value - 0.5) / error, count - 1))
    return AttackEstimate(value, max(0.0, value - reach), min(1.0, value + reach), p)


def _numbered(claims: Claims) -> np.ndarray:
    """int64[n + m]: the cluster of each claim, counted from 0."""
    if claims.member_cluster is None or claims.nonmember_cluster is None:
        return np.arange(len(claims.member_scores) + len(claims.nonmember_scores))
    return np.unique(np.concatenate([claims.member_cluster, claims.nonmember_cluster]), return_inverse=True)[1]


def threshold(nonmember_scores: np.ndarray, rate: float) -> float:
    """The least score that at most this share of false claims exceeds."""
    allowed = int(np.floor(rate * len(nonmember_scores)))
    return float(np.sort(nonmember_scores)[::-1][allowed])


def claim_rates(claims: Claims, least: float) -> tuple[AttackEstimate, AttackEstimate]:
    """Shares of right and of false claims with scores above a threshold."""
    right, false = (int((scores > least).sum()) for scores in (claims.member_scores, claims.nonmember_scores))
    return rate_estimate(right, len(claims.member_scores)), rate_estimate(false, len(claims.nonmember_scores))


def epsilon_lower_bound(chosen: Claims, judged: Claims) -> tuple[AttackEstimate, float]:
    """A lower bound on the epsilon of differential privacy, and the highest that so many traces could show.

    At the threshold that looks best on `chosen`, the rates of `judged` are bounded by Clopper and Pearson,
    each at 97.5 % (Nasr et al. 2021, arXiv 2101.04535, section 4). The estimate is the bound itself, and what
    it bounds has no upper end.
    """
    candidates = np.unique(np.concatenate([chosen.member_scores, chosen.nonmember_scores]))
    candidates = candidates[:: max(1, len(candidates) // 200)]
    looks = [_bound(claim_rates(chosen, float(least))) for least in candidates]
    bound = _bound(claim_rates(judged, float(candidates[int(np.argmax(looks))])))
    n, m = len(judged.member_scores), len(judged.nonmember_scores)
    ceiling = float(np.log(0.025 ** (1 / n) / (1 - 0.025 ** (1 / m))))
    return AttackEstimate(bound, bound, float("inf")), ceiling


def _bound(found: tuple[AttackEstimate, AttackEstimate]) -> float:
    right, false = found
    claimed = np.log(right.low / false.high) if right.low > 0 else 0.0
    denied = np.log((1 - false.high) / (1 - right.low)) if right.low < 1 and false.high < 1 else 0.0
    return float(max(0.0, claimed, denied))
