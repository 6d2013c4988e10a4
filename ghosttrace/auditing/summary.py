"""The summary.json of an audit: everything that a report needs, as JSON values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from ghosttrace.auditing.attacks import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.evidence import BIT_UNITS, EXPOSED
from ghosttrace.auditing.findings import Findings
from ghosttrace.auditing.settings import AuditSettings, skipped_attacks
from ghosttrace.auditing.subject import AuditSubject
from ghosttrace.auditing.threats import THREATS
from ghosttrace.auditing.verdict import DetectableLeak, detectable_for_all_secrets
from ghosttrace.probing.evidence import MIN_UNKNOWN_BITS
from ghosttrace.runs.folder import json_rows


def summarise_audit(
    context: AuditContext, findings: Findings, settings: AuditSettings, subject: AuditSubject, cost: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the entries of summary.json, without command, validity and result rows.

    Args:
        context: Context of the audit.
        findings: Findings and verdict.
        settings: Settings of the audit.
        subject: Subject of the audit.
        cost: Cost and utility of the defence, see `ghosttrace.auditing.cost.measure_cost_and_utility`.
    """
    verdict, defence = findings.verdict, settings.defence
    detectable = detectable_for_all_secrets(findings.detectable)
    description = {"name": defence.spec, "summary": defence.summary, "caveat": defence.caveat}
    return {
        "failures": list(findings.failures),
        "verdict": verdict.verdict,
        "exit_code": verdict.exit_code,
        "sentence": verdict.sentence,
        "max_leak_bits": context.limits.bits,
        "max_exposed": context.limits.exposed,
        "ceiling_bits": verdict.ceiling,
        "detectable_bits": detectable.bits,
        "detectable_exposed": detectable.exposed,
        "detectable_pad_bits": detectable.pad_bits,
        "traces": len(subject.task.samples),
        "traces_needed": verdict.traces_needed,
        "model": context.checkpoint.name,
        "defence": {**description, **cost},
        "secrets": secret_rows(context, findings),
        "excluded": [asdict(secret) for secret in subject.excluded],
        "left_out": [*skipped_attacks(settings.attacks, context), *unjudged_controls(context)],
        "attacks": {attack.name: attack.describe() for attack in settings.attacks},
        "threats": threat_rows(settings.attacks),
        "sites": json_rows(context.sites),
    }


def result_rows(findings: Findings, settings: AuditSettings, unknown_bits: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return one row per finding, with its threat, its state, and the smallest leak that its probes can detect.

    Args:
        findings: Findings and verdict.
        settings: Settings of the audit.
        unknown_bits: For each secret, the bits that the text leaves unknown, of which a finding in bits is a share.
    """
    threats = {attack.name: attack.threat.name for attack in settings.attacks}
    rows = []
    for finding, p, state in zip(findings.evidence, findings.p_holm, findings.verdict.states, strict=True):
        has_detectable = finding.from_single_site and finding.unit in (*BIT_UNITS, EXPOSED)
        smallest = findings.detectable.get(finding.secret, DetectableLeak()) if has_detectable else DetectableLeak()
        unknown = unknown_bits.get(finding.secret)  # 0 if the text determines the secret
        rows.append(
            {
                **finding.row(settings.defence.spec),
                "share": finding.estimate.value / unknown if unknown and finding.unit == "bits" else None,
                "threat": threats[finding.attack],
                "state": state,
                "p_holm": p,
                "detectable": smallest.of(finding.unit) if finding.condition == "open" else None,
                "valid": not findings.failures,
            }
        )
    return json_rows(pd.DataFrame(rows).replace([np.inf, -np.inf], np.nan))


def unjudged_controls(context: AuditContext) -> list[str]:
    """Return a sentence for each secret whose positive control is not judged."""
    return [
        f"The positive control of {secret} was not judged: the text leaves only {bits:.2g} bits of it unknown."
        for secret, bits in ((secret, context.unknown_bits(secret)) for secret in context.secrets)
        if bits <= MIN_UNKNOWN_BITS
    ]


def secret_rows(context: AuditContext, findings: Findings) -> list[dict[str, Any]]:
    """Return one row per secret, with the bits that the text does not determine and the bits that it gives."""
    text_bits = {finding.secret: finding.estimate.value for finding in findings.evidence if finding.condition == "text"}
    return [
        {
            "name": name,
            "targets": len(numbers),
            "unknown_bits": context.unknown_bits(name),
            "text_bits": text_bits[name],
        }
        for name, numbers in context.secrets.items()
    ]


def threat_rows(attacks: Sequence[Attack]) -> list[dict[str, Any]]:
    """Return one row per threat model with its attacks; threat models of the user's own attacks come last."""
    threats = dict.fromkeys((*THREATS, *(attack.threat for attack in attacks)))
    return [
        asdict(threat) | {"attacks": [attack.name for attack in attacks if attack.threat == threat]}
        for threat in threats
    ]
