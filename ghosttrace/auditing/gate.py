"""The verdict: a leak, one within the limit, none that this suite could see, or too few traces to say."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite

from ghosttrace.auditing.evidence import Evidence

EXIT = {"not detected": 0, "within the limit": 0, "leak": 10, "not enough data": 11, "invalid": 12}
PROBED = "attribute"  # the attack that decides by probes of the cache
SHARP = 2.0  # a code of so many times the limit must have been seen, for intervals below the limit to count


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes:
        verdict: a key of `EXIT`.
        sentence: in plain words.
        ceiling: bits a secret; a larger leak to these attackers is ruled out. None where nothing is.
        traces_needed: about how many would do, where there were too few.
    """

    verdict: str
    sentence: str
    ceiling: float | None
    traces_needed: int | None = None

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return EXIT[self.verdict]


def judge(
    evidence: Sequence[Evidence], failures: Sequence[str], max_leak: float, detectable: float | None, traces: int
) -> Verdict:
    """Hold the gated findings to the leak that is allowed.

    It passes if every interval ends within the limit and the probes would have seen a code of twice the limit.
    How often that lets a leak through is measured: see `experiments/audit_calibration.py`.

    Args:
        evidence: every finding; those with `gate` decide.
        failures: controls that did not hold.
        max_leak: bits a secret.
        detectable: the smallest leak that the probes would have seen, bits a secret; None if larger than all
            tried. It counts where a probe of the cache is among what decides.
        traces: in the run.
    """
    gated = [one for one in evidence if one.gate]
    least = max_leak if detectable is None else detectable
    if failures:
        return Verdict("invalid", f"No conclusion: a control failed ({failures[0]})", None)
    probed = any(one.attack == PROBED for one in gated)
    blind = probed and detectable is None
    sharp = not probed or (detectable is not None and detectable <= SHARP * max_leak * (1 + 1e-9))
    highest = max(one.found.high for one in gated)
    ceiling = None if blind else max(highest, least) if probed else highest
    leaks = [one for one in gated if one.found.low > max_leak]
    if leaks:
        worst = max(leaks, key=lambda one: one.found.low)
        sentence = (
            f"Leak: {worst.attack} recovers {worst.found.value:.2f} bits of {worst.secret} "
            f"[{worst.found.low:.2f}, {worst.found.high:.2f}] beyond the text, more than the {max_leak:g} allowed"
        )
        return Verdict("leak", sentence, ceiling)
    if sharp and highest <= max_leak:
        seen = f"; a {code(least)} would have been seen in 8 of 10 runs" if probed else ""
        return _allowed(gated, max_leak, highest, ceiling, seen)
    needed = None if blind else _needed(gated, max_leak, least if probed else max_leak, traces)
    how = (
        "how many traces would do cannot be told from so few" if needed is None else f"about {needed:,} traces would do"
    )
    sentence = f"Not enough data to tell whether more than {max_leak:g} bits a secret leak: {how}"
    return Verdict("not enough data", sentence, ceiling, needed)


def _allowed(gated: Sequence[Evidence], max_leak: float, highest: float, ceiling: float | None, seen: str) -> Verdict:
    """What is said where no more than the limit can leak: what was found, if anything was."""
    surest = max(gated, key=lambda one: one.found.low)
    if surest.found.low <= 0:
        sentence = f"Not detected by this suite: no interval reaches beyond {highest:.3g} bits a secret{seen}"
        return Verdict("not detected", sentence, ceiling)
    sentence = (
        f"Within the limit: {surest.attack} found {surest.found.value:.3g} bits of {surest.secret} "
        f"[{surest.found.low:.3g}, {surest.found.high:.3g}], within the {max_leak:g} allowed; no interval of this "
        f"suite reaches beyond {highest:.3g}{seen}"
    )
    return Verdict("within the limit", sentence, ceiling)


def code(bits: float) -> str:
    """What was put into the sealed cache to try the probes, in words."""
    return f"linear code of {bits:.3g} bits at one place of the cache"


def _needed(gated: Sequence[Evidence], max_leak: float, detectable: float, traces: int) -> int | None:
    """Traces after which this would be decided, a tenth to spare; None where so few say nothing of it.

    Intervals shrink with the root of the number of traces, what may have gone unseen with the number itself. A
    code of b bits is seen once the number of traces times b is large enough.
    """
    factors = [max(1.0, detectable / (SHARP * max_leak))]
    for one in [one for one in gated if one.found.high > max_leak]:
        value, below = one.found.value, one.found.value <= max_leak
        reach = one.found.high - value if below else value - one.found.low
        ratio = reach / max(abs(max_leak - value), max_leak / 10)
        factors.append(ratio if below and one.found.allowance else ratio**2)
    return ceil(1.1 * traces * max(factors) / 100) * 100 if isfinite(max(factors)) else None
