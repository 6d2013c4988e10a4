"""`tenant`: the cache in the hands of somebody who has not seen the text; what the text tells may be among the bits."""

from dataclasses import dataclass

import numpy as np

from ghosttrace.auditing.attacks.attack import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.evidence import AttackSite, Evidence, LabelLogProbs, total_bits
from ghosttrace.auditing.threats import TENANT
from ghosttrace.probing.sweep import ProbeSite
from ghosttrace.probing.text_baseline import log_marginals


@dataclass(frozen=True)
class TenantAttack(Attack):
    """Bits a secret beyond how often each class occurs, which is no secret."""

    name = "tenant"
    title = "Stray cache"
    summary = "Probes read the secret off keys and values without the text; the bits include what the text would tell."
    threat = TENANT
    probes_single_site = True

    def run(self, context: AuditContext) -> list[Evidence]:
        return [self.finding(context, secret, context.best_site(secret)) for secret in context.secrets]

    def finding(self, context: AuditContext, secret: str, site: ProbeSite) -> Evidence:
        """Bits that a linear probe at one site gives without the text."""
        said, asked = context.posteriors(secret, site, without_text=True), context.parts(secret)
        rows = context.labelled_rows(secret, context.split.test)
        train, log2e = context.split.train, 1 / np.log(2)
        parts = [
            LabelLogProbs(
                rows, log2e * part[rows, right], log2e * log_marginals(one.labels, one.text.shape[1], train)[right]
            )
            for part, one in zip(said, asked, strict=True)
            for right in [one.labels[rows]]
        ]
        estimate, _ = total_bits(parts, context.split.cluster, 0.05)
        site_row = AttackSite.of(site)
        return self.evidence(secret, "open", "bits", estimate, len(rows), site=site_row, note="text included")
