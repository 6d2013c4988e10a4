"""`tenant`: the attacker holds the cache without its text, so the bits may include information from the text."""

from dataclasses import dataclass

import numpy as np

from ghosttrace.auditing.attacks.attack import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.evidence import AttackSite, Evidence, LabelLogProbs, total_bits
from ghosttrace.auditing.threats import TENANT
from ghosttrace.probing.site import ProbeSite
from ghosttrace.probing.text_baseline import log_marginals


@dataclass(frozen=True)
class TenantAttack(Attack):
    """Attack that measures bits per secret beyond the class frequencies, which are public."""

    name = "tenant"
    title = "Stray cache"
    summary = "Probes predict the secret from keys and values without the text; the bits include those of the text."
    threat = TENANT
    probes_single_site = True

    def run(self, context: AuditContext) -> list[Evidence]:
        return [self.finding(context, secret, context.best_site(secret)) for secret in context.secrets]

    def finding(self, context: AuditContext, secret: str, site: ProbeSite) -> Evidence:
        """Return the bits beyond the class frequencies of a linear probe at one site that does not see the text."""
        posteriors, targets = context.posteriors(secret, site, without_text=True), context.parts(secret)
        rows = context.labelled_rows(secret, context.split.test)
        train, log2e = context.split.train, 1 / np.log(2)
        parts = [
            LabelLogProbs(
                rows,
                log2e * posterior[rows, labels],
                log2e * log_marginals(target.labels, target.text.shape[1], train)[labels],
            )
            for posterior, target in zip(posteriors, targets, strict=True)
            for labels in [target.labels[rows]]
        ]
        estimate, _ = total_bits(parts, context.split.cluster, 0.05)
        attack_site = AttackSite.from_probe_site(site)
        return self.evidence(secret, "open", "bits", estimate, len(rows), site=attack_site, note="text included")
