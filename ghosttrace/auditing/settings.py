"""Settings of an audit, shared by the command line and the Python API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

from ghosttrace.auditing.attacks import ATTACKS, Attack, TextBaselineAttack
from ghosttrace.auditing.context import AuditContext
from ghosttrace.auditing.defences import Defence, parse_defence
from ghosttrace.auditing.threats import THREATS
from ghosttrace.auditing.verdict import Limits
from ghosttrace.errors import UserError, check_method
from ghosttrace.law.expiry import MementoLaw
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.probing.carriers import CarrierKind, default_carriers
from ghosttrace.probing.evidence import NEGLIGIBLE_BITS
from ghosttrace.probing.settings import ProbeSettings

DEFAULT_MAX_LEAK = 0.1  # bits per secret
DEFAULT_SHARE = 0.1  # of the bits that the text leaves unknown of a secret, if the default limit is more than that
MAX_SHARE = 0.5  # of the bits that the text leaves unknown; a higher limit would pass most of a secret


@dataclass(frozen=True)
class AuditSettings:
    """Settings of an audit.

    Attributes:
        attacks: Attacks in the order of the report; the last one is the baseline, the text alone.
        defence: Defence of the retained cache.
        probes: Sites and settings of the probes.
        max_leak: Limit of the mean leak, bits per secret. None: `DEFAULT_MAX_LEAK`, or a tenth of the bits that the
            text leaves unknown if that is less.
        max_exposed: Limit of the share of traces whose whole secret is guessed.
        fpr: Target false-positive rate of `membership`. None: 1 %, if validation has enough traces.
        utility_limit: Number of problems on which the accuracy of a defence is measured.
        batch_tokens: Tokens per batch, padding included.

    Raises:
        UserError: A setting is invalid.
    """

    attacks: tuple[Attack, ...]
    defence: Defence
    probes: ProbeSettings
    max_leak: float | None = None
    max_exposed: float = 0.01
    fpr: float | None = None
    utility_limit: int = 100
    batch_tokens: int = 16_384

    def __post_init__(self) -> None:
        if not any(attack.counts_bits for attack in self.attacks):
            *others, last = [name for name, attack in ATTACKS.items() if attack.counts_bits]
            choices = f"{', '.join(others)} or {last}"
            raise UserError(f"--attacks needs an attack that counts bits for the verdict: add {choices}")
        names = [attack.name for attack in self.attacks]
        duplicate = next((name for name in names if names.count(name) > 1), None)
        if duplicate:
            raise UserError(f"two attacks are called {duplicate!r}: give each its own name")
        threats = {threat.name: threat for threat in THREATS}
        for threat in (attack.threat for attack in self.attacks):
            if threats.setdefault(threat.name, threat) != threat:
                raise UserError(f"two threats are called {threat.name!r}: give yours another name")
        if not (self.max_leak is None or self.max_leak > 0) or not (self.fpr is None or 0 < self.fpr < 1):
            raise UserError("--max-leak-bits must be above 0, and --fpr must be between 0 and 1")
        if not 0 < self.max_exposed < 1:
            raise UserError("--max-exposed must be between 0 and 1")
        if min(self.utility_limit, self.batch_tokens) < 1:
            raise UserError("--utility-limit and --batch-tokens must be at least 1")
        if "hidden" in self.probes.kv:
            raise UserError("an audit reads only retained keys and values: remove hidden from --kv")

    def limits(self, unknown_bits: Mapping[str, float]) -> Limits:
        """Return the limits of the gate, which must be well below what there is to leak.

        Args:
            unknown_bits: For each secret, the bits that the text leaves unknown; NaN if no test trace has all parts.

        Raises:
            UserError: A secret has no test trace, the text determines every secret, or the given limit is more than
                half of what the text leaves unknown of a secret that it does not determine.
        """
        missing = next((secret for secret, bits in unknown_bits.items() if isnan(bits)), None)
        if missing is not None:
            raise UserError(f"no test trace has all parts of {missing}: give more traces, or other --targets")
        undetermined = {secret: bits for secret, bits in unknown_bits.items() if bits >= NEGLIGIBLE_BITS}
        if not undetermined:
            raise UserError(
                f"the retained text determines {', '.join(unknown_bits)}, so no cache can leak it: choose other "
                "secrets with --targets or --secret"
            )
        if self.max_leak is None:
            lower = {s: DEFAULT_SHARE * b for s, b in undetermined.items() if DEFAULT_SHARE * b < DEFAULT_MAX_LEAK}
            return Limits(DEFAULT_MAX_LEAK, self.max_exposed, lower)
        secret, least = min(undetermined.items(), key=lambda item: item[1])
        if self.max_leak > MAX_SHARE * least:
            raise UserError(
                f"--max-leak-bits {self.max_leak:g} is not well below the {least:.2g} bits of {secret} that the text "
                f"leaves unknown: give {DEFAULT_SHARE * least:.2g}, or leave it out for a limit of each secret's own"
            )
        return Limits(self.max_leak, self.max_exposed)


def resolve_attacks(attacks: Sequence[str | Attack] | None) -> tuple[Attack, ...]:
    """Return the attacks as objects, followed by the baseline.

    Args:
        attacks: Names in `ATTACKS` or attack objects. None: all attacks.

    Raises:
        UserError: A name is unknown, or an object is not a valid attack.
    """
    resolved = []
    for attack in dict.fromkeys(ATTACKS if attacks is None else attacks):
        if isinstance(attack, str) and attack not in ATTACKS:
            raise UserError(f"--attacks is a list of {', '.join(ATTACKS)}, not {attack!r}")
        if not isinstance(attack, str):
            check_method(attack, Attack, "name", "title", "summary", "threat")
        resolved.append(ATTACKS[attack]() if isinstance(attack, str) else attack)
    return (*resolved, TextBaselineAttack())


def resolve_defence(defence: str | Defence) -> Defence:
    """Return the defence as an object.

    Args:
        defence: Name of a defence with its options, or a defence object.

    Raises:
        UserError: The name or its options are invalid, or the object is not a valid defence.
    """
    if isinstance(defence, str):
        return parse_defence(defence)
    check_method(defence, Defence, "name", "summary")
    return defence


def retained_carriers(checkpoint: Checkpoint, defence: Defence) -> tuple[CarrierKind, ...]:
    """Return the carriers that the defence retains: mementos, and delimiters if they are kept."""
    if not isinstance(checkpoint.law, MementoLaw):
        return default_carriers(checkpoint)
    policy = defence.arm(checkpoint).adapt_policy(checkpoint.policy)
    return ("memento",) if policy.mask_delimiters else ("memento", "delimiters")


def check_attacks(attacks: Sequence[Attack], context: AuditContext) -> None:
    """Check before any cache is read that the audit can decide a verdict.

    Args:
        attacks: Attacks of the audit.
        context: Context without features.

    Raises:
        UserError: No attack can count bits, or the settings do not fit an attack.
    """
    for attack in attacks:
        attack.check(context)
    reasons = {}
    for attack in [attack for attack in attacks if attack.counts_bits]:
        reason = attack.skip_reason_for_all(context)
        if reason is None:
            return
        reasons[attack.name] = reason
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise UserError(f"no attack can count bits for the verdict ({listed}): add attribute to --attacks")


def skipped_attacks(attacks: Sequence[Attack], context: AuditContext) -> tuple[str, ...]:
    """Return a sentence for each attack and secret that was skipped, with the reason."""
    sentences = []
    for attack in attacks:
        for secret in attack.secrets(context):
            reason = attack.skip_reason(context, secret)
            if reason is not None:
                sentences.append(f"{attack.name} of {secret} was skipped: {reason}.")
    return tuple(sentences)
