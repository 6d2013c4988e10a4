"""Run of all attacks of an audit, their controls, and the verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan

import pandas as pd

from ghosttrace.auditing.attacks import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.detectable_leak import smallest_detectable_leak
from ghosttrace.auditing.evidence import EXPOSED, GATED_UNITS, Evidence
from ghosttrace.auditing.verdict import DetectableLeak, Verdict, decide_verdict
from ghosttrace.errors import UserError
from ghosttrace.model.pool import ModelPool, map_units
from ghosttrace.probing.evidence import CONTROLS, NEGLIGIBLE_BITS, failed_controls
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.stats import ALPHA, holm


@dataclass(frozen=True)
class Findings:
    """Findings and verdict of an audit.

    Attributes:
        evidence: One finding per attack, secret, condition and unit.
        p_holm: Holm-adjusted p-value of each finding, over all open findings and sites, or over all controls; NaN if
            there is no test.
        failures: Failed controls, one sentence each.
        verdict: The verdict, with the state of each finding.
        detectable: For each secret, the smallest leaks that single-site probes can detect. Empty if no attack fits
            such probes.
    """

    evidence: tuple[Evidence, ...]
    p_holm: tuple[float, ...]
    failures: tuple[str, ...]
    verdict: Verdict
    detectable: dict[str, DetectableLeak]


def run_attacks(
    context: AuditContext,
    attacks: Sequence[Attack],
    progress: Progress = no_progress,
    pool: ModelPool | None = None,
) -> Findings:
    """Run all attacks, check the controls, and decide the verdict.

    Args:
        context: Context with features and the records of a finished sweep.
        attacks: Attacks to run.
        progress: Called with (current step, steps done, total steps).
        pool: Workers that run the attacks; None runs them here.
    """
    if pool is not None:  # workers do not reach the records on disk
        context = replace(context, records=context.records.copy())
    found = dict[int, Sequence[Evidence]]()
    progress(f"attack {attacks[0].name}", 0, len(attacks))
    for number, findings in map_units(partial(_run_attack, context), attacks, pool):
        found[number] = findings
        progress(f"attack {attacks[min(len(found), len(attacks) - 1)].name}", len(found), len(attacks))
    evidence = [finding for number in sorted(found) for finding in found[number]]
    detectable = dict[str, DetectableLeak]()
    if any(attack.probes_single_site for attack in attacks):
        detectable = _detectable_leaks(context, progress, pool)
    p_holm = holm_adjusted(evidence, context.sites)
    failures = (*failed_controls(context.sites), *failed_attack_controls(evidence, p_holm))
    verdict = decide_verdict(evidence, failures, context.limits, detectable, len(context.task.samples))
    return Findings(tuple(evidence), p_holm, failures, verdict, detectable)


def _run_attack(context: AuditContext, attack: Attack) -> Sequence[Evidence]:
    return tuple(check_findings(attack, attack.run(context), context))


def _detectable_leaks(context: AuditContext, progress: Progress, pool: ModelPool | None) -> dict[str, DetectableLeak]:
    """Return for each secret the smallest leaks that single-site probes can detect."""
    n_classes = {secret: context.parts(secret)[0].text.shape[1] for secret in context.secrets}
    # Pads of one part depend on its number of classes alone, so one secret of each number is enough.
    with_pads = {number: secret for secret, number in reversed(n_classes.items())}
    secrets, leaks = list(n_classes), dict[str, DetectableLeak]()
    units = [(secret, with_pads[n_classes[secret]] == secret) for secret in secrets]
    progress("leaks of known size", 0, len(units))
    for number, leak in map_units(partial(_detectable_leak, context), units, pool):
        leaks[secrets[number]] = leak
        progress("leaks of known size", len(leaks), len(units))
    pads = {number: leaks[secret].pad_bits for number, secret in with_pads.items()}
    return {secret: replace(leaks[secret], pad_bits=pads[n_classes[secret]]) for secret in secrets}


def _detectable_leak(context: AuditContext, unit: tuple[str, bool]) -> DetectableLeak:
    secret, with_pads = unit
    return smallest_detectable_leak(context, secret, context.best_site(secret), with_pads)


def check_findings(attack: Attack, findings: Sequence[Evidence], context: AuditContext) -> Sequence[Evidence]:
    """Return the findings of an attack after checking that the verdict and the reports can use them.

    Raises:
        UserError: A finding has the name of another attack, an unknown secret, or `gate=True` although its unit has no
            limit, it is not of the open cache, or of an attack with `counts_bits = False`.
    """
    known_secrets = {*context.secrets, *attack.secrets(context)}
    for finding in findings:
        if finding.attack != attack.name or finding.secret not in known_secrets:
            raise UserError(
                f"attack {attack.name} returned a finding of {finding.attack} about {finding.secret!r}: "
                f"give its own name, and one of the secrets {', '.join(sorted(known_secrets))}"
            )
        if finding.gate and not (attack.counts_bits and finding.unit in GATED_UNITS and finding.condition == "open"):
            raise UserError(
                f"attack {attack.name} returned {finding.unit} of condition {finding.condition} with gate=True: set "
                f"gate=True only for {' or '.join(GATED_UNITS)} of condition open, in an attack with counts_bits = True"
            )
    return findings


def holm_adjusted(evidence: Sequence[Evidence], sites: pd.DataFrame) -> tuple[float, ...]:
    """Return Holm-adjusted p-values: open findings adjusted with all open sites, and controls among themselves."""
    adjusted = [float("nan")] * len(evidence)
    for conditions, others in ((("open",), sites[sites["condition"] == "open"]["p"].tolist()), (CONTROLS, [])):
        tested = [
            k for k, finding in enumerate(evidence) if finding.condition in conditions and not isnan(finding.estimate.p)
        ]
        for k, p in zip(tested, holm([evidence[k].estimate.p for k in tested] + others), strict=False):
            adjusted[k] = p
    return tuple(adjusted)


def failed_attack_controls(evidence: Sequence[Evidence], p_holm: Sequence[float]) -> list[str]:
    """Return a sentence for each finding of a leak under a negative control, where there is no leak."""
    return [
        f"{finding.condition}: {finding.attack} finds {finding.estimate.value:+.3f} {finding.unit} of "
        f"{finding.secret}, where it must find nothing"
        for finding, p in zip(evidence, p_holm, strict=True)
        if finding.condition in CONTROLS
        and p <= ALPHA
        and finding.estimate.value - finding.baseline > (0 if finding.unit == EXPOSED else NEGLIGIBLE_BITS)
        and finding.unit != "log rate ratio"
    ]
