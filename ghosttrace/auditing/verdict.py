"""The verdict of an audit: a leak, a leak within the limit, no detected leak, or too few traces to decide.

This is the only module that decides: it computes the state of every gated finding, and the verdict from the states.
Reports format both.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite

from ghosttrace.auditing.evidence import Evidence
from ghosttrace.errors import UserError

EXIT_CODES = {"not detected": 0, "within the limit": 0, "leak": 10, "not enough data": 11, "invalid": 12}
# Single-site probes must detect a code of at most this multiple of the limit. Otherwise an interval below the limit
# does not count.
MAX_DETECTABLE_TO_LIMIT_RATIO = 2.0
LEAK, UNDECIDED, WITHIN_LIMIT, NOT_DETECTED = "leak", "undecided", "within the limit", "not detected"


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


def finding_state(finding: Evidence, max_leak: float, detectable: float | None) -> str | None:
    """Compare one finding with the limit.

    A finding without a leak is decided if its interval ends at or below the limit. If it is from single-site probes,
    these must also be able to detect a code of twice the limit.

    Args:
        finding: The finding.
        max_leak: Limit of the leak, bits per secret.
        detectable: Smallest leak of this secret that single-site probes can detect, in bits; None if they detected
            none.

    Returns:
        The state, see `Verdict`; None for controls and other findings that do not decide.
    """
    if finding.condition != "open" or not finding.gate:
        return None
    if finding.estimate.low > max_leak:
        return LEAK
    is_sensitive = not finding.from_single_site or (
        detectable is not None and detectable <= MAX_DETECTABLE_TO_LIMIT_RATIO * max_leak * (1 + 1e-9)
    )
    if not is_sensitive or not finding.estimate.high <= max_leak:
        return UNDECIDED
    return WITHIN_LIMIT if finding.estimate.low > 0 else NOT_DETECTED


def decide_verdict(
    evidence: Sequence[Evidence],
    failures: Sequence[str],
    max_leak: float,
    detectable: Mapping[str, float | None],
    traces: int,
) -> Verdict:
    """Compare the gated findings with the limit and decide the verdict.

    `experiments/audit_calibration.py` measures how often the gate misses a leak.

    Args:
        evidence: All findings. Those of the open cache with `gate` decide.
        failures: Failed controls, one sentence each.
        max_leak: Limit of the leak, bits per secret.
        detectable: For each secret, the smallest leak that single-site probes can detect, in bits; None if they
            detected none. It counts only for secrets with a gated finding from such probes.
        traces: Number of traces in the run.

    Raises:
        UserError: No finding decides.
    """
    states = tuple(finding_state(finding, max_leak, detectable.get(finding.secret)) for finding in evidence)
    if failures:
        sentence = f"No conclusion: a control failed ({failures[0]})"
        return Verdict("invalid", sentence, None, states=(None,) * len(states))
    gated = [finding for finding, state in zip(evidence, states, strict=True) if state is not None]
    if not gated:
        raise UserError("no finding decides the verdict: return evidence in bits with gate=True from an attack")
    detectable_by_secret = {
        finding.secret: detectable.get(finding.secret) for finding in gated if finding.from_single_site
    }
    min_detectable = detectable_for_all_secrets(detectable_by_secret)
    max_high = max(finding.estimate.high for finding in gated)
    nothing_detectable = bool(detectable_by_secret) and min_detectable is None
    bounded = not nothing_detectable and isfinite(max_high)
    ceiling = (max_high if min_detectable is None else max(max_high, min_detectable)) if bounded else None
    if LEAK in states:
        return Verdict("leak", _leak_sentence(gated, max_leak), ceiling, states=states)
    if UNDECIDED not in states:
        sensitivity = (
            ""
            if min_detectable is None
            else f"; a {describe_code(min_detectable)} would have been detected in 8 of 10 runs"
        )
        verdict = "within the limit" if WITHIN_LIMIT in states else "not detected"
        return Verdict(verdict, _pass_sentence(gated, max_leak, max_high, sensitivity), ceiling, states=states)
    needed = (
        None
        if nothing_detectable
        else _traces_needed(gated, max_leak, max_leak if min_detectable is None else min_detectable, traces)
    )
    requirement = (
        "too few traces to estimate how many are needed" if needed is None else f"about {needed:,} traces are needed"
    )
    sentence = f"Not enough data to decide whether more than {max_leak:g} bits per secret leak: {requirement}"
    return Verdict("not enough data", sentence, ceiling, needed, states)


def detectable_for_all_secrets(detectable: Mapping[str, float | None]) -> float | None:
    """Return the smallest leak that is detectable for all secrets; None if it is unknown for one, or there are none."""
    known = [bits for bits in detectable.values() if bits is not None]
    return max(known) if known and len(known) == len(detectable) else None


def _leak_sentence(gated: Sequence[Evidence], max_leak: float) -> str:
    """Return the sentence for a leak, about the finding with the highest lower bound."""
    finding = finding_with_highest_low(gated)
    estimate = finding.estimate
    return (
        f"Leak: {finding.attack} recovers {estimate.value:.2f} bits of {finding.secret} "
        f"[{estimate.low:.2f}, {estimate.high:.2f}] beyond the text, more than the {max_leak:g} allowed"
    )


def _pass_sentence(gated: Sequence[Evidence], max_leak: float, max_high: float, sensitivity: str) -> str:
    """Return the sentence for no leak above the limit, about the leak below it if there is one."""
    finding = finding_with_highest_low(gated)
    estimate = finding.estimate
    if estimate.low <= 0:
        return f"Not detected by this suite: no interval reaches beyond {max_high:.3g} bits per secret{sensitivity}"
    return (
        f"Within the limit: {finding.attack} found {estimate.value:.3g} bits of {finding.secret} "
        f"[{estimate.low:.3g}, {estimate.high:.3g}], within the {max_leak:g} allowed; no interval of this "
        f"suite reaches beyond {max_high:.3g}{sensitivity}"
    )


def finding_with_highest_low(gated: Iterable[Evidence]) -> Evidence:
    """Return the finding whose interval has the highest lower bound."""
    return max(gated, key=lambda finding: finding.estimate.low)


def describe_code(bits: float) -> str:
    """Return a description of the code that the probes were tested with."""
    return f"linear code of {bits:.3g} bits at one site of the cache"


def _traces_needed(gated: Sequence[Evidence], max_leak: float, detectable: float, traces: int) -> int | None:
    """Estimate the number of traces needed for a decision, plus 10 %; None if it cannot be estimated.

    Intervals shrink with the square root of the number of traces. The share of traces that a sample misses shrinks with
    the number itself. A code of b bits is detected once the number of traces times b is large enough.
    """
    factors = [max(1.0, detectable / (MAX_DETECTABLE_TO_LIMIT_RATIO * max_leak))]
    for estimate in [finding.estimate for finding in gated if finding.estimate.high > max_leak]:
        value, below = estimate.value, estimate.value <= max_leak
        half_width = estimate.high - value if below else value - estimate.low
        ratio = half_width / max(abs(max_leak - value), max_leak / 10)
        factors.append(ratio if below and estimate.high_covers_unseen else ratio**2)
    return ceil(1.1 * traces * max(factors) / 100) * 100 if isfinite(max(factors)) else None
