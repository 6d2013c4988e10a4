"""The verdict: a leak, none that this suite could see, or too few traces to say."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from ghosttrace.audit.evidence import Evidence

EXIT = {"not detected": 0, "leak": 10, "not enough data": 11, "invalid": 12}


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

    Args:
        evidence: every finding; those with `gate` decide.
        failures: controls that did not hold.
        max_leak: bits a secret.
        detectable: the smallest leak that the run would have seen, bits a secret; None if larger than all tried.
        traces: in the run.
    """
    gated = [one for one in evidence if one.gate]
    highest = max(one.found.high for one in gated)
    ceiling = None if detectable is None else max(highest, detectable)
    if failures:
        return Verdict("invalid", f"No conclusion: a control failed ({failures[0]})", None)
    leaks = [one for one in gated if one.found.low > max_leak]
    if leaks:
        worst = max(leaks, key=lambda one: one.found.low)
        sentence = (
            f"Leak: {worst.attack} recovers {worst.found.value:.2f} bits of {worst.secret} "
            f"[{worst.found.low:.2f}, {worst.found.high:.2f}] beyond the text, more than the {max_leak:g} allowed"
        )
        return Verdict("leak", sentence, ceiling)
    if ceiling is not None and ceiling <= max_leak:
        sentence = f"Not detected by this suite; a leak above {ceiling:.3g} bits a secret would have been seen"
        return Verdict("not detected", sentence, ceiling)
    needed = _needed(gated, max_leak, detectable, traces)
    sentence = (
        f"Not enough data to tell whether more than {max_leak:g} bits a secret leak: about {needed:,} traces would do"
    )
    return Verdict("not enough data", sentence, ceiling, needed)


def _needed(gated: Sequence[Evidence], max_leak: float, detectable: float | None, traces: int) -> int:
    """Traces after which intervals, as they shrink with the root of the number, would decide; a tenth to spare."""
    factors = [1.0 if detectable and detectable <= max_leak else 2.0]
    for one in gated:
        reach = max(one.found.high - one.found.value, one.found.value - one.found.low)
        room = abs(max_leak - one.found.value)
        if one.found.high > max_leak:
            factors.append((reach / max(room, max_leak / 10)) ** 2)
    return ceil(1.1 * traces * max(factors) / 100) * 100
