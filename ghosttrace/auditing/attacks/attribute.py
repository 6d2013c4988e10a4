"""`attribute`: probes read the parts of a secret from retained keys and values, at every site and under every control.

The findings for a secret are those of the best probe on validation, over all sites and both kinds of probe: its mean
bits, and its worst case, the share of traces whose whole secret it guesses. All other probes are reported beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ghosttrace.auditing.attacks.attack import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.evidence import (
    EXPOSED,
    AttackSite,
    Evidence,
    LabelLogProbs,
    any_part_equals_text,
    every_part_equals_text,
    total_bits,
)
from ghosttrace.auditing.exposure import exposed_traces
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
    units = ("bits", EXPOSED)
    counts_bits = True
    probes_single_site = True

    def n_gated(self, context: AuditContext) -> int:
        return 2 * super().n_gated(context)

    def run(self, context: AuditContext) -> list[Evidence]:
        evidence = []
        for secret in context.secrets:
            rows = context.sweep_rows_of(secret)
            site = best_probe(rows)
            for condition in ("open", "sealed", "shuffled"):
                site_rows = [row for row in rows if matches_site(row, site, condition)]
                evidence += [
                    self.finding(context, secret, condition, site_rows),
                    self.exposure(context, secret, condition, site_rows),
                ]
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
        parts = log_probs_of_parts(rows)
        gate = condition == "open"
        estimate, common_rows = total_bits(parts, context.split.cluster, context.alpha if gate else 0.05)
        site = AttackSite(**{name: rows[0][name] for name in SITE_AND_PROBE})
        return self.evidence(
            secret,
            condition,
            "bits",
            estimate,
            len(common_rows),
            gate=gate,
            site=site,
            fell_back=every_part_equals_text(parts),
        )

    def exposure(self, context: AuditContext, secret: str, condition: str, rows: Sequence[Row]) -> Evidence:
        """Return the share of traces whose whole secret is guessed, for the arguments of `finding`."""
        gate = condition == "open"
        alpha = context.alpha if gate else 0.05
        estimate, n = exposed_traces(rows, context.split.cluster, alpha, context.settings.seed)
        site = AttackSite(**{name: rows[0][name] for name in SITE_AND_PROBE})
        parts = log_probs_of_parts(rows)
        fell_back = any_part_equals_text(parts)  # without this part, the whole is not guessed
        return self.evidence(secret, condition, EXPOSED, estimate, n, gate=gate, site=site, fell_back=fell_back)


def log_probs_of_parts(rows: Sequence[Row]) -> list[LabelLogProbs]:
    """Return the log2-probabilities of a secret's parts, one per row of the sweep."""
    return [LabelLogProbs(*(np.asarray(row[name]) for name in ("sample", "log2p", "text_log2p"))) for row in rows]
