"""The verdict of an audit: a leak, a leak within the limit, no detected leak, or too few traces to decide.

This is the only module that decides: it computes the state of every gated finding, and the verdict from the states.
Reports format both.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite

from ghosttrace.auditing.evidence import EXPOSED, Evidence
from ghosttrace.errors import UserError

EXIT_CODES = {"not detected": 0, "within the limit": 0, "leak": 10, "not enough data": 11, "invalid": 12}
# Single-site probes must detect linear codes of at most this multiple of the limit. Otherwise an interval of bits below
# the limit does not count.
MAX_DETECTABLE_TO_LIMIT_RATIO = 2.0
LEAK, UNDECIDED, WITHIN_LIMIT, NOT_DETECTED = "leak", "undecided", "within the limit", "not detected"
NO_PROBE = "; no probe read the cache itself"


@dataclass(frozen=True)
class Limits:
    """What a release may leak.

    Attributes:
        bits: Mean leak beyond the text, bits per secret.
        exposed: Share of traces whose whole secret is guessed from the cache.
        bits_by_secret: Lower limits of secrets of which the text leaves little unknown.
    """

    bits: float = 0.1
    exposed: float = 0.01
    bits_by_secret: Mapping[str, float] = field(default_factory=dict)

    def of(self, unit: str, secret: str) -> float:
        """Return the limit of findings about a secret in a unit."""
        return self.exposed if unit == EXPOSED else self.bits_by_secret.get(secret, self.bits)

    def describe_bits(self) -> str:
        """Return the limit in bits, with the lower limits of some secrets in brackets."""
        lower = ", ".join(f"{bits:.2g} for {secret}" for secret, bits in self.bits_by_secret.items())
        return f"{self.bits:g}" + (f" ({lower})" if lower else "")


@dataclass(frozen=True)
class DetectableLeak:
    """The smallest leaks of known form that probes of a single site detect in 8 of 10 trials; None if they detect none.

    Only the linear code decides. An audit can rarely detect the other two where they are small, so the verdict names
    the sizes below which it is blind.

    Attributes:
        bits: A linear code in one token, in bits per secret.
        exposed: Share of traces into which the whole secret is written, in one token.
        pad_bits: A one-time pad over two tokens, bits of the first part of the secret.
    """

    bits: float | None = None
    exposed: float | None = None
    pad_bits: float | None = None

    def of(self, unit: str) -> float | None:
        """Return the smallest detectable leak in the unit of a finding."""
        return self.exposed if unit == EXPOSED else self.bits


@dataclass(frozen=True)
class Verdict:
    """Verdict of an audit.

    Attributes:
        verdict: A key of `EXIT_CODES`.
        sentence: The verdict as a sentence, without the full stop.
        ceiling: Bits per secret; the audit rules out larger leaks to its attackers. None if it rules out no leak.
        traces_needed: Approximate number of traces needed, if there were too few and the number can be estimated.
        states: State of each finding, in order: `leak`, `undecided`, `within the limit` or `not detected`. None for
            findings that do not decide, and for all findings if a control failed.
    """

    verdict: str
    sentence: str
    ceiling: float | None
    traces_needed: int | None = None
    states: tuple[str | None, ...] = ()

    @property
    def exit_code(self) -> int:
        """Exit code of the command."""
        return EXIT_CODES[self.verdict]


def finding_state(finding: Evidence, limits: Limits, detectable: DetectableLeak) -> str | None:
    """Compare one finding with the limit.

    A finding without a leak is decided if its interval ends at or below the limit. If it is in bits and from
    single-site probes, these must also be able to detect a linear code of twice the limit.

    Args:
        finding: The finding.
        limits: Limits of the leak.
        detectable: Smallest leaks of this secret that single-site probes can detect.

    Returns:
        The state, see `Verdict`; None for controls and other findings that do not decide.
    """
    if finding.condition != "open" or not finding.gate:
        return None
    limit, smallest = limits.of(finding.unit, finding.secret), detectable.bits
    if finding.estimate.low > limit:
        return LEAK
    is_sensitive = (
        not finding.from_single_site
        or finding.unit == EXPOSED
        or (smallest is not None and smallest <= MAX_DETECTABLE_TO_LIMIT_RATIO * limit * (1 + 1e-9))
    )
    if not is_sensitive or not finding.estimate.high <= limit:
        return UNDECIDED
    return WITHIN_LIMIT if finding.estimate.low > 0 else NOT_DETECTED


def decide_verdict(
    evidence: Sequence[Evidence],
    failures: Sequence[str],
    limits: Limits,
    detectable: Mapping[str, DetectableLeak],
    traces: int,
) -> Verdict:
    """Compare the gated findings with the limits and decide the verdict.

    `experiments/audit_calibration.py` measures how often the gate misses a leak, and `experiments/audit_plants.py`
    which leaks it sees.

    Args:
        evidence: All findings. Those of the open cache with `gate` decide.
        failures: Failed controls, one sentence each.
        limits: Limits of the leak.
        detectable: For each secret, the smallest leaks that single-site probes can detect. It counts only for secrets
            with a gated finding from such probes.
        traces: Number of traces in the run.

    Raises:
        UserError: No finding decides.
    """
    nothing = DetectableLeak()
    states = tuple(finding_state(finding, limits, detectable.get(finding.secret, nothing)) for finding in evidence)
    if failures:
        sentence = f"No conclusion: a control failed ({failures[0]})"
        return Verdict("invalid", sentence, None, states=(None,) * len(states))
    gated = [finding for finding, state in zip(evidence, states, strict=True) if state is not None]
    if all(finding.unit == EXPOSED for finding in gated):
        raise UserError("no finding decides the verdict: return evidence in bits with gate=True from an attack")
    probed = {finding.secret: detectable.get(finding.secret, nothing) for finding in gated if finding.from_single_site}
    smallest = detectable_for_all_secrets(probed)
    ceiling = _ceiling(gated, smallest.bits if probed else 0.0)
    if LEAK in states:
        leaks = [finding for finding, state in zip(evidence, states, strict=True) if state == LEAK]
        return Verdict("leak", _leak_sentence(leaks, limits), ceiling, states=states)
    if UNDECIDED not in states:
        verdict = "within the limit" if WITHIN_LIMIT in states else "not detected"
        sentence = _pass_sentence(gated, limits) + (sensitivity_text(smallest) if probed else NO_PROBE)
        return Verdict(verdict, sentence, ceiling, states=states)
    needed = _traces_needed(gated, limits, smallest if probed else None, traces)
    requirement = (
        "too few traces to estimate how many are needed" if needed is None else f"about {needed:,} traces are needed"
    )
    sentence = (
        f"Not enough data to decide whether more than {limits.describe_bits()} bits per secret, or the whole secret "
        f"of more than {100 * limits.exposed:g} % of traces, leak: {requirement}"
    )
    return Verdict("not enough data", sentence, ceiling, needed, states)


def detectable_for_all_secrets(detectable: Mapping[str, DetectableLeak]) -> DetectableLeak:
    """Return the smallest leaks detectable for all secrets; None where one is unknown, or there are no secrets."""

    def largest(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return max(known) if known and len(known) == len(values) else None

    leaks = list(detectable.values())
    return DetectableLeak(
        largest([leak.bits for leak in leaks]),
        largest([leak.exposed for leak in leaks]),
        largest([leak.pad_bits for leak in leaks]),
    )


def sensitivity_text(smallest: DetectableLeak) -> str:
    """Return what the probes would have detected and what they would miss, as a clause of the verdict."""
    if smallest.bits is None:
        return ""
    few = (
        "whole secrets in a few traces"
        if smallest.exposed is None
        else f"whole secrets in less than {100 * smallest.exposed:g} % of traces"
    )
    pads = (
        "any one-time pad over two tokens"
        if smallest.pad_bits is None
        else f"one-time pads over two tokens of less than {smallest.pad_bits:.2g} bits"
    )
    return (
        f"; a {describe_code(smallest.bits)} would have been detected in 8 of 10 runs. The probes are blind to {few}, "
        f"to {pads}, and to secrets split into three or more shares"
    )


def _ceiling(gated: Sequence[Evidence], detectable: float | None) -> float | None:
    """Return the bits per secret above which the audit rules out leaks; None if it rules out none."""
    highs = [finding.estimate.high for finding in gated if finding.unit != EXPOSED]
    if detectable is None or not highs or not isfinite(max(highs)):
        return None
    return max(*highs, detectable)


def _leak_sentence(leaks: Sequence[Evidence], limits: Limits) -> str:
    """Return the sentence for a leak: in bits if there is one, else about the exposed traces."""
    in_bits = [finding for finding in leaks if finding.unit != EXPOSED]
    finding = finding_with_highest_low(in_bits or leaks)
    estimate = finding.estimate
    if in_bits:
        return (
            f"Leak: {finding.attack} recovers {estimate.value:.3g} bits of {finding.secret} "
            f"[{estimate.low:.3g}, {estimate.high:.3g}] beyond the text, more than the "
            f"{limits.of('bits', finding.secret):.3g} allowed"
        )
    return (
        f"Leak: {finding.attack} guesses the whole of {finding.secret} in {100 * estimate.value:.2g} % of traces "
        f"[{100 * estimate.low:.2g}, {100 * estimate.high:.2g}], more than the {100 * limits.exposed:g} % allowed"
    )


def _pass_sentence(gated: Sequence[Evidence], limits: Limits) -> str:
    """Return the sentence for no leak above the limits, about the leak below them if there is one."""
    in_bits = [finding for finding in gated if finding.unit != EXPOSED]
    reach = f"{max(finding.estimate.high for finding in in_bits):.3g} bits per secret"
    found = [finding for finding in in_bits if finding.estimate.low > 0]
    if found:
        finding = finding_with_highest_low(found)
        estimate, limit = finding.estimate, limits.of("bits", finding.secret)
        return (
            f"Within the limit: {finding.attack} found {estimate.value:.3g} bits of {finding.secret} "
            f"[{estimate.low:.3g}, {estimate.high:.3g}], within the {limit:.3g} allowed; no interval of this "
            f"suite reaches beyond {reach}"
        )
    exposed = [finding for finding in gated if finding.unit == EXPOSED and finding.estimate.low > 0]
    if exposed:
        finding = finding_with_highest_low(exposed)
        value, low, high = (_percent(getattr(finding.estimate, name)) for name in ("value", "low", "high"))
        return (
            f"Within the limit: {finding.attack} guesses the whole of {finding.secret} in {value} % of traces "
            f"[{low}, {high}], within the {_percent(limits.exposed)} % allowed; no interval reaches beyond {reach}"
        )
    return f"Not detected by this suite: no interval reaches beyond {reach}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}"


def finding_with_highest_low(gated: Iterable[Evidence]) -> Evidence:
    """Return the finding whose interval has the highest lower bound."""
    return max(gated, key=lambda finding: finding.estimate.low)


def describe_code(bits: float) -> str:
    """Return a description of the code that the probes were tested with."""
    return f"linear code of {bits:.3g} bits in one token"


def _traces_needed(
    gated: Sequence[Evidence], limits: Limits, smallest: DetectableLeak | None, traces: int
) -> int | None:
    """Estimate the number of traces needed for a decision, plus 10 %; None if it cannot be estimated.

    Intervals shrink with the square root of the number of traces. The share of traces that a sample misses shrinks with
    the number itself. A leak is detected once the number of traces times its size is large enough.
    """
    factors = [1.0]
    if smallest:
        if smallest.bits is None:
            return None
        factors.append(smallest.bits / (MAX_DETECTABLE_TO_LIMIT_RATIO * limits.bits))
    for finding in gated:
        estimate, limit = finding.estimate, limits.of(finding.unit, finding.secret)
        if estimate.high > limit:
            below = estimate.value <= limit
            half_width = estimate.high - estimate.value if below else estimate.value - estimate.low
            ratio = half_width / max(abs(limit - estimate.value), limit / 10)
            factors.append(ratio if below and estimate.high_covers_unseen else ratio**2)
    return ceil(1.1 * traces * max(factors) / 100) * 100 if isfinite(max(factors)) else None
