"""`attribute`: probes read the secret's parts from retained keys and values, at every site, under every control.

The finding of a secret is the probe that did best on validation, over all sites and both kinds of probe;
all the others are reported beside it.
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
    """Bits a secret beyond the text, for each secret, with the same site's controls."""

    name = "attribute"
    title = "Attribute inference"
    summary = (
        "Probes fitted on other traces read parts of the secret off the retained keys and values; the leak is what "
        "they add to the text, in bits."
    )
    threat = INSIDER
    counts_bits = True
    probes_single_site = True

    def run(self, context: AuditContext) -> list[Evidence]:
        found = []
        for secret in context.secrets:
            rows = context.sweep_rows_of(secret)
            site = best_probe(rows)
            for condition in ["open", "sealed", *(["shuffled"] if site["probe"] == "linear" else [])]:
                mine = [row for row in rows if matches_site(row, site, condition)]
                found.append(self.finding(context, secret, condition, mine))
            for condition in ("causal", "unerased"):
                groups = group_by_site([row for row in rows if row["condition"] == condition])
                found.append(self.finding(context, secret, condition, max(groups, key=validation_bits)))
        return found

    def finding(self, context: AuditContext, secret: str, condition: str, rows: Sequence[Row]) -> Evidence:
        """The sum over a secret's targets at one site, on the traces that all of them apply to.

        Args:
            context: of the audit.
            secret: which secret.
            condition: the rows'.
            rows: of the sweep, one per target.
        """
        parts = [LabelLogProbs(*(np.asarray(row[name]) for name in ("sample", "log2p", "text_log2p"))) for row in rows]
        gate = condition == "open"
        estimate, common = total_bits(parts, context.split.cluster, context.alpha if gate else 0.05)
        site = AttackSite(**{name: rows[0][name] for name in SITE_AND_PROBE})
        return self.evidence(secret, condition, "bits", estimate, len(common), gate=gate, site=site)
