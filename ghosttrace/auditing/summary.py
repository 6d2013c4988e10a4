"""What summary.json says of an audit: everything that a report needs, as JSON values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from ghosttrace.auditing.attacks import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.evidence import BIT_UNITS
from ghosttrace.auditing.findings import Findings
from ghosttrace.auditing.settings import AuditSettings, left_out
from ghosttrace.auditing.subject import AuditSubject
from ghosttrace.auditing.threats import THREATS
from ghosttrace.auditing.verdict import detectable_for_all_secrets
from ghosttrace.runs.folder import json_rows


def summarise_audit(
    context: AuditContext, found: Findings, settings: AuditSettings, subject: AuditSubject, cost: Mapping[str, Any]
) -> dict[str, Any]:
    """What summary.json says beside command, validity and rows.

    Args:
        context: of the audit.
        found: what it found.
        settings: of the audit.
        subject: what was audited.
        cost: of the defence, see `ghosttrace.auditing.cost.measure_cost_and_utility`.
    """
    verdict, defence = found.verdict, settings.defence
    named = {"name": defence.spec, "summary": defence.summary, "caveat": defence.caveat}
    return {
        "failures": list(found.failures),
        "verdict": verdict.verdict,
        "exit_code": verdict.exit_code,
        "sentence": verdict.sentence,
        "max_leak_bits": settings.max_leak,
        "ceiling_bits": verdict.ceiling,
        "detectable_bits": detectable_for_all_secrets(found.detectable),
        "traces": len(subject.task.samples),
        "traces_needed": verdict.traces_needed,
        "model": context.checkpoint.name,
        "defence": {**named, **cost},
        "secrets": secret_rows(context, found),
        "excluded": [asdict(one) for one in subject.excluded],
        "left_out": list(left_out(settings.attacks, context)),
        "attacks": {attack.name: attack.describe() for attack in settings.attacks},
        "threats": threat_rows(settings.attacks),
        "sites": json_rows(context.sites),
    }


def result_rows(found: Findings, settings: AuditSettings) -> list[dict[str, Any]]:
    """The rows of the results: every finding with its threat, its state, and what probes like it could see."""
    threats = {attack.name: attack.threat.name for attack in settings.attacks}
    rows = []
    for one, p, state in zip(found.evidence, found.p_holm, found.verdict.states, strict=True):
        tried = one.from_single_site and one.unit in BIT_UNITS and one.condition == "open"
        rows.append(
            {
                **one.row(settings.defence.spec),
                "threat": threats[one.attack],
                "state": state,
                "p_holm": p,
                "detectable": found.detectable.get(one.secret) if tried else None,
                "valid": not found.failures,
            }
        )
    return json_rows(pd.DataFrame(rows).replace([np.inf, -np.inf], np.nan))


def secret_rows(context: AuditContext, found: Findings) -> list[dict[str, Any]]:
    """Each secret with what the text leaves unknown of it, and what it tells."""
    text = {one.secret: one.found.value for one in found.evidence if one.condition == "text"}
    return [
        {"name": name, "targets": len(members), "unknown_bits": context.unknown_bits(name), "text_bits": text[name]}
        for name, members in context.secrets.items()
    ]


def threat_rows(attacks: Sequence[Attack]) -> list[dict[str, Any]]:
    """The threat models of the audit, those of the user's own attacks last, each with the attacks that were run."""
    threats = dict.fromkeys((*THREATS, *(attack.threat for attack in attacks)))
    return [
        asdict(threat) | {"attacks": [attack.name for attack in attacks if attack.threat == threat]}
        for threat in threats
    ]
