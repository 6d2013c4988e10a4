"""`attribute`: probes read the parts of a secret from retained keys and values, at every site and under every control.

The finding for a secret is that of the best probe on validation, over all sites and both kinds of probe.
All other probes are reported beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ghosttrace.auditing.attacks.attack import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.evidence import AttackSite, Evidence, LabelLogProbs, total_bits
from ghosttrace.auditing.sites import SITE_AND_PROBE, Row, best_probe, group_by_site, matches_site, validation_bits
from ghosttrace.auditing.threats import INSIDER


@dataclass(frozen=True)
class AttributeAttack(Attack):
    """Attack that measures bits per secret beyond the text, with the controls of the same site."""

    name = "attribute"
    title = "Attribute inference"
    summary = (
        "Probes fitted on other traces predict the parts of the secret from the retained keys and values; the leak is "
        "the information they add to the text, in bits."
    )
    threat = INSIDER
    counts_bits = True
    probes_single_site = True

    def run(self, context: AuditContext) -> list[Evidence]:
        evidence = []
        for secret in context.secrets:
            rows = context.sweep_rows_of(secret)
            site = best_probe(rows)
            for condition in ["open", "sealed", *(["shuffled"] if site["probe"] == "linear" else [])]:
                site_rows = [row for row in rows if matches_site(row, site, condition)]
                evidence.append(self.finding(context, secret, condition, site_rows))
            for condition in ("causal", "unerased"):
                groups = group_by_site([row for row in rows if row["condition"] == condition])
                evidence.append(self.finding(context, secret, condition, max(groups, key=validation_bits)))
        return evidence

    def finding(self, context: AuditContext, secret: str, condition: str, rows: Sequence[Row]) -> Evidence:
        """Return the sum of bits over a secret's targets at one site, on the traces to which all targets apply.

        Args:
            context: Context of the audit.
            secret: Name of the secret.
            condition: Condition of the rows.
            rows: Rows of the sweep at one site, one per target.
        """
        parts = [LabelLogProbs(*(np.asarray(row[name]) for name in ("sample", "log2p", "text_log2p"))) for row in rows]
        gate = condition == "open"
        estimate, common_rows = total_bits(parts, context.split.cluster, context.alpha if gate else 0.05)
        site = AttackSite(**{name: rows[0][name] for name in SITE_AND_PROBE})
        return self.evidence(secret, condition, "bits", estimate, len(common_rows), gate=gate, site=site)
