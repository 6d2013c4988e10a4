"""What an audit does: the settings that the command line and the Python API share."""

from collections.abc import Sequence
from dataclasses import dataclass

from ghosttrace.auditing.attacks import ATTACKS, Attack, TextBaselineAttack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.defences import Defence, parse_defence
from ghosttrace.auditing.threats import THREATS
from ghosttrace.errors import UserError, check_method
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing import sweep
from ghosttrace.probing.carriers import CarrierKind


@dataclass(frozen=True)
class AuditSettings:
    """What an audit does.

    Attributes:
        attacks: in the order of the report; the baseline, the text alone, is the last.
        defence: what is done to the retained cache.
        probes: where probes look.
        max_leak: bits a secret that are allowed.
        fpr: target false-positive rate of `membership`; None: 1 %, if there are traces enough.
        utility_limit: problems on which a defence's accuracy is measured.
        batch_tokens: traces read together, padding included.
    """

    attacks: tuple[Attack, ...]
    defence: Defence
    probes: sweep.ProbeSettings
    max_leak: float = 0.1
    fpr: float | None = None
    utility_limit: int = 100
    batch_tokens: int = 16_384

    def __post_init__(self) -> None:
        if not any(attack.counts_bits for attack in self.attacks):
            *others, last = [name for name, kind in ATTACKS.items() if kind.counts_bits]
            one_of = f"{', '.join(others)} or {last}"
            raise UserError(f"--attacks needs one that counts bits for the verdict: {one_of}")
        names = [attack.name for attack in self.attacks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise UserError(f"two attacks are called {twice!r}: give each a name of its own")
        threats = {threat.name: threat for threat in THREATS}
        for threat in (attack.threat for attack in self.attacks):
            if threats.setdefault(threat.name, threat) != threat:
                raise UserError(f"two threats are called {threat.name!r}: give yours a name of its own")
        if not self.max_leak > 0 or not (self.fpr is None or 0 < self.fpr < 1):
            raise UserError("--max-leak-bits is above 0, --fpr between 0 and 1")
        if min(self.utility_limit, self.batch_tokens) < 1:
            raise UserError("--utility-limit and --batch-tokens are at least 1")
        if "hidden" in self.probes.kv:
            raise UserError("an audit reads what is retained, keys and values: leave hidden out of --kv")


def resolve_attacks(attacks: Sequence[str | Attack] | None) -> tuple[Attack, ...]:
    """The attacks by name, your own as they are, and the baseline after them.

    Raises:
        UserError: there is no attack of some name.
    """
    found = []
    for one in dict.fromkeys(ATTACKS if attacks is None else attacks):
        if isinstance(one, str) and one not in ATTACKS:
            raise UserError(f"--attacks is a list of {', '.join(ATTACKS)}, not {one!r}")
        if not isinstance(one, str):
            check_method(one, Attack, "name", "title", "summary", "threat")
        found.append(ATTACKS[one]() if isinstance(one, str) else one)
    return (*found, TextBaselineAttack())


def resolve_defence(defence: str | Defence) -> Defence:
    """The defence by name and options, your own as it is.

    Raises:
        UserError: see `ghosttrace.auditing.defences.parse_defence`.
    """
    if isinstance(defence, str):
        return parse_defence(defence)
    check_method(defence, Defence, "name", "summary")
    return defence


def retained_carriers(checkpoint: Checkpoint, defence: Defence) -> tuple[CarrierKind, ...]:
    """All tokens of a pair that the defence retains: a kept `<|block_end|>` has seen its whole block."""
    law = defence.arm(checkpoint).adapt_policy(checkpoint.policy)
    return ("memento",) if law.mask_delimiters else ("memento", "delimiters")


def check_attacks(attacks: Sequence[Attack], context: AuditContext) -> None:
    """Refuse what cannot come to a verdict, before any cache is read.

    Args:
        attacks: of the audit.
        context: without features.

    Raises:
        UserError: no attack would count bits, or one cannot be run with these settings.
    """
    for attack in attacks:
        attack.check(context)
    reasons = {}
    for attack in [one for one in attacks if one.counts_bits]:
        why = attack.skip_reason_for_all(context)
        if why is None:
            return
        reasons[attack.name] = why
    told = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    raise UserError(f"the verdict needs bits, and nothing here would count any ({told}): add attribute to --attacks")


def left_out(attacks: Sequence[Attack], context: AuditContext) -> tuple[str, ...]:
    """What could not be done, and why, a sentence each."""
    found = []
    for attack in attacks:
        for secret in attack.secrets(context):
            why = attack.skip_reason(context, secret)
            if why is not None:
                found.append(f"{attack.name} of {secret} was left out: {why}.")
    return tuple(found)
