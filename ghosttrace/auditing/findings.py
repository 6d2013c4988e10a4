"""All attacks of an audit on one context, every control beside them, and the verdict."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ghosttrace.auditing.attacks import Attack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.detectable_leak import smallest_detectable_leak
from ghosttrace.auditing.evidence import Evidence
from ghosttrace.auditing.verdict import Verdict, decide_verdict
from ghosttrace.errors import UserError
from ghosttrace.probing.evidence import ALPHA, CONTROLS, NEGLIGIBLE_BITS, failed_controls
from ghosttrace.runs.progress import Progress, no_progress
from ghosttrace.stats import holm


@dataclass(frozen=True)
class Findings:
    """What an audit found.

    Attributes:
        evidence: every attack, secret and condition.
        p_holm: of each, adjusted over all open findings and sites, or over all controls; NaN where there is no test.
        failures: the controls that did not hold, in words.
        verdict: what the gate says, with the state of each finding.
        detectable: for each secret, the smallest leak that probes of one place would have seen, bits; None if none of
            those tried. Empty where no such probe is among the attacks.
    """

    evidence: tuple[Evidence, ...]
    p_holm: tuple[float, ...]
    failures: tuple[str, ...]
    verdict: Verdict
    detectable: dict[str, float | None]


def run_attacks(context: AuditContext, attacks: Sequence[Attack], progress: Progress = no_progress) -> Findings:
    """Run every attack, hold the controls, and judge.

    Args:
        context: with features and the records of a finished sweep.
        attacks: what to run.
        progress: called with (what is under way, steps done, steps in all).
    """
    evidence = list[Evidence]()
    for done, attack in enumerate(attacks):
        progress(f"attack {attack.name}", done, len(attacks))
        evidence += check_findings(attack, attack.run(context), context)
    limits = dict[str, float | None]()
    if any(attack.probes_single_site for attack in attacks):
        for done, secret in enumerate(context.secrets):
            progress("leaks of known size", done, len(context.secrets))
            limits[secret] = smallest_detectable_leak(context, secret, context.best_site(secret))
    p_holm = holm_adjusted(evidence, context.sites)
    failures = (*failed_controls(context.sites), *failed_attack_controls(evidence, p_holm))
    verdict = decide_verdict(evidence, failures, context.max_leak, limits, len(context.task.samples))
    return Findings(tuple(evidence), p_holm, failures, verdict, limits)


def check_findings(attack: Attack, found: Sequence[Evidence], context: AuditContext) -> Sequence[Evidence]:
    """What an attack found, if the verdict and the reports can make sense of it.

    Raises:
        UserError: a finding has another attack's name, no secret of this audit, or decides the verdict without being
            bits of the open cache, or though the attack says that it counts none.
    """
    known = {*context.secrets, *attack.secrets(context)}
    for one in found:
        if one.attack != attack.name or one.secret not in known:
            secrets = ", ".join(sorted(known))
            raise UserError(
                f"attack {attack.name} returned a finding of {one.attack} about {one.secret!r}: "
                f"give its own name, and a secret of {secrets}"
            )
        if one.gate and not (attack.counts_bits and one.unit == "bits" and one.condition == "open"):
            raise UserError(
                f"attack {attack.name} returned {one.unit} of condition {one.condition} with gate=True: only bits of "
                "condition open, of an attack with counts_bits = True, decide the verdict"
            )
    return found


def holm_adjusted(evidence: Sequence[Evidence], sites: pd.DataFrame) -> tuple[float, ...]:
    """Holm over all open findings together with all open sites, and over the attacks' controls."""
    found = [float("nan")] * len(evidence)
    for conditions, others in ((("open",), sites[sites["condition"] == "open"]["p"].tolist()), (CONTROLS, [])):
        tested = [k for k, one in enumerate(evidence) if one.condition in conditions and one.found.p == one.found.p]
        for k, p in zip(tested, holm([evidence[k].found.p for k in tested] + others), strict=False):
            found[k] = p
    return tuple(found)


def failed_attack_controls(evidence: Sequence[Evidence], p_holm: Sequence[float]) -> list[str]:
    """Attacks that found something where nothing can be."""
    return [
        f"{one.condition}: {one.attack} finds {one.found.value:+.3f} {one.unit} of {one.secret} where nothing can be"
        for one, p in zip(evidence, p_holm, strict=True)
        if one.condition in CONTROLS
        and p <= ALPHA
        and one.found.value - one.baseline > NEGLIGIBLE_BITS
        and one.unit != "epsilon"
    ]
