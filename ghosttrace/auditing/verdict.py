"""The verdict: a leak, one within the limit, none that this suite could see, or too few traces to say.

What decides is computed here and nowhere else: first the state of every gated finding, then the verdict, which
follows from the states. Reports format both.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite

from ghosttrace.auditing.evidence import Evidence
from ghosttrace.errors import UserError

EXIT_CODES = {"not detected": 0, "within the limit": 0, "leak": 10, "not enough data": 11, "invalid": 12}
MAX_DETECTABLE_TO_LIMIT_RATIO = (
    2.0  # a code of so many times the limit must have been seen, for intervals below the limit to count
)
LEAK, UNDECIDED, WITHIN_LIMIT, NOT_DETECTED = "leak", "undecided", "within the limit", "not detected"


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Attributes:
        verdict: a key of `EXIT_CODES`.
        sentence: in plain words.
        ceiling: bits a secret; a larger leak to these attackers is ruled out. None where nothing is.
        traces_needed: about how many would do, where there were too few.
        states: of each finding in turn: `leak`, `undecided`, `within the limit` or `not detected`; None for those
            that the gate does not look at, and for all of them if a control failed.
    """

    verdict: str
    sentence: str
    ceiling: float | None
    traces_needed: int | None = None
    states: tuple[str | None, ...] = ()

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return EXIT_CODES[self.verdict]


def finding_state(one: Evidence, max_leak: float, seen: float | None) -> str | None:
    """What one finding says against the limit; None for controls and findings that the gate does not look at.

    It is decided if its interval ends within the limit and, where it comes from probes of one place, these would
    have seen a code of twice the limit.

    Args:
        one: the finding.
        max_leak: bits a secret that are allowed.
        seen: the smallest leak of this secret that probes of one place would have seen, bits; None if larger than
            all tried.
    """
    if one.condition != "open" or not one.gate:
        return None
    if one.found.low > max_leak:
        return LEAK
    sharp = not one.from_single_site or (
        seen is not None and seen <= MAX_DETECTABLE_TO_LIMIT_RATIO * max_leak * (1 + 1e-9)
    )
    if not sharp or not one.found.high <= max_leak:
        return UNDECIDED
    return WITHIN_LIMIT if one.found.low > 0 else NOT_DETECTED


def decide_verdict(
    evidence: Sequence[Evidence],
    failures: Sequence[str],
    max_leak: float,
    detectable: Mapping[str, float | None],
    traces: int,
) -> Verdict:
    """Hold the gated findings to the leak that is allowed.

    How often that lets a leak through is measured: see `experiments/audit_calibration.py`.

    Args:
        evidence: every finding; those of the open cache with `gate` decide.
        failures: controls that did not hold.
        max_leak: bits a secret.
        detectable: for each secret, the smallest leak that probes of one place would have seen, bits; None if
            larger than all tried. It counts where such a probe is among what decides.
        traces: in the run.

    Raises:
        UserError: no finding decides.
    """
    states = tuple(finding_state(one, max_leak, detectable.get(one.secret)) for one in evidence)
    if failures:
        sentence = f"No conclusion: a control failed ({failures[0]})"
        return Verdict("invalid", sentence, None, states=(None,) * len(states))
    gated = [one for one, state in zip(evidence, states, strict=True) if state is not None]
    if not gated:
        raise UserError("no finding decides the verdict: an attack that counts bits returns evidence with gate=True")
    probed = {one.secret: detectable.get(one.secret) for one in gated if one.from_single_site}
    seen, highest = detectable_for_all_secrets(probed), max(one.found.high for one in gated)
    blind = bool(probed) and seen is None
    bounded = not blind and isfinite(highest)
    ceiling = (highest if seen is None else max(highest, seen)) if bounded else None
    if LEAK in states:
        return Verdict("leak", _leak(gated, max_leak), ceiling, states=states)
    if UNDECIDED not in states:
        tried = "" if seen is None else f"; a {describe_code(seen)} would have been seen in 8 of 10 runs"
        verdict = "within the limit" if WITHIN_LIMIT in states else "not detected"
        return Verdict(verdict, _allowed(gated, max_leak, highest, tried), ceiling, states=states)
    needed = None if blind else _needed(gated, max_leak, max_leak if seen is None else seen, traces)
    how = (
        "how many traces would do cannot be told from so few" if needed is None else f"about {needed:,} traces would do"
    )
    sentence = f"Not enough data to tell whether more than {max_leak:g} bits a secret leak: {how}"
    return Verdict("not enough data", sentence, ceiling, needed, states)


def detectable_for_all_secrets(detectable: Mapping[str, float | None]) -> float | None:
    """The leak that would have been seen of every secret; None if there is none, or none was tried."""
    known = [one for one in detectable.values() if one is not None]
    return max(known) if known and len(known) == len(detectable) else None


def _leak(gated: Sequence[Evidence], max_leak: float) -> str:
    """What is said of a leak: the surest one."""
    worst = finding_with_highest_low(gated)
    return (
        f"Leak: {worst.attack} recovers {worst.found.value:.2f} bits of {worst.secret} "
        f"[{worst.found.low:.2f}, {worst.found.high:.2f}] beyond the text, more than the {max_leak:g} allowed"
    )


def _allowed(gated: Sequence[Evidence], max_leak: float, highest: float, tried: str) -> str:
    """What is said where no more than the limit can leak: what was found, if anything was."""
    most = finding_with_highest_low(gated)
    if most.found.low <= 0:
        return f"Not detected by this suite: no interval reaches beyond {highest:.3g} bits a secret{tried}"
    return (
        f"Within the limit: {most.attack} found {most.found.value:.3g} bits of {most.secret} "
        f"[{most.found.low:.3g}, {most.found.high:.3g}], within the {max_leak:g} allowed; no interval of this "
        f"suite reaches beyond {highest:.3g}{tried}"
    )


def finding_with_highest_low(gated: Iterable[Evidence]) -> Evidence:
    """The finding whose interval begins highest."""
    return max(gated, key=lambda one: one.found.low)


def describe_code(bits: float) -> str:
    """What was put into the sealed cache to try the probes, in words."""
    return f"linear code of {bits:.3g} bits at one place of the cache"


def _needed(gated: Sequence[Evidence], max_leak: float, detectable: float, traces: int) -> int | None:
    """Traces after which this would be decided, a tenth to spare; None where so few say nothing of it.

    Intervals shrink with the root of the number of traces, what may have gone unseen with the number itself. A
    code of b bits is seen once the number of traces times b is large enough.
    """
    factors = [max(1.0, detectable / (MAX_DETECTABLE_TO_LIMIT_RATIO * max_leak))]
    for one in [one for one in gated if one.found.high > max_leak]:
        value, below = one.found.value, one.found.value <= max_leak
        reach = one.found.high - value if below else value - one.found.low
        ratio = reach / max(abs(max_leak - value), max_leak / 10)
        factors.append(ratio if below and one.found.high_covers_unseen else ratio**2)
    return ceil(1.1 * traces * max(factors) / 100) * 100 if isfinite(max(factors)) else None
