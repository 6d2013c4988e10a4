"""The gate of an audit: verdicts, states of rows, and agreement of all reports."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.audits import FORBIDDEN, MAX_EXPOSED, finding, rows, run, summary
from hypothesis import given
from hypothesis import strategies as st

from ghosttrace.auditing.evidence import Evidence, mean_estimate
from ghosttrace.auditing.verdict import (
    EXIT_CODES,
    MAX_DETECTABLE_TO_LIMIT_RATIO,
    DetectableLeak,
    Limits,
    Verdict,
    decide_verdict,
)
from ghosttrace.errors import UserError
from ghosttrace.report.audit import wording
from ghosttrace.report.audit.page import page
from ghosttrace.report.audit.sarif import sarif

STATES = {"leak", "undecided", "within the limit", "not detected"}
LEVELS = {"leak": "error", "undecided": "warning", "within the limit": "note"}


def evidence(low: float, value: float, high: float, gate: bool = True) -> Evidence:
    return finding("attribute", value, low=low, high=high, p=0.5, n=100, gate=gate)


def verdict_at_limit(
    findings: Sequence[Evidence], detectable: float | None, traces: int = 1000, failures: Sequence[str] = ()
) -> Verdict:
    """Return the verdict at a limit of 0.1 bits if the detectable leak of every secret is `detectable`."""
    smallest = DetectableLeak(detectable, None if detectable is None else 0.005)
    return decide_verdict(findings, failures, Limits(), {item.secret: smallest for item in findings}, traces)


@pytest.mark.parametrize(
    "findings, failures, detectable, verdict, code",
    [
        ([evidence(0.2, 0.3, 0.4)], [], 0.05, "leak", 10),
        ([evidence(0.2, 0.3, 0.4, gate=False), evidence(0.0, 0.0, 0.05)], [], 0.05, "not detected", 0),
        ([evidence(0.0, 0.0, 0.05)], [], 0.2, "not detected", 0),
        ([evidence(0.0, 0.0, 0.05)], [], 0.5, "not enough data", 11),
        ([evidence(0.0, 0.0, 0.05)], [], None, "not enough data", 11),
        ([evidence(0.05, 0.09, 0.13)], [], 0.05, "not enough data", 11),
        ([evidence(0.2, 0.3, 0.4)], ["sealed: broken"], 0.05, "invalid", 12),
        ([evidence(0.0, 0.0, 0.05), evidence(0.11, 0.3, 0.4)], [], None, "leak", 10),
        ([evidence(0.03, 0.06, 0.09)], [], 0.1, "within the limit", 0),
        ([evidence(0.03, 0.06, 0.09)], [], 0.5, "not enough data", 11),
    ],
)
def test_gate_verdicts(
    findings: list[Evidence], failures: list[str], detectable: float | None, verdict: str, code: int
) -> None:
    decision = verdict_at_limit(findings, detectable, failures=failures)
    assert (decision.verdict, decision.exit_code) == (verdict, code) and not FORBIDDEN.search(decision.sentence)
    assert (decision.traces_needed is not None) == (verdict == "not enough data" and detectable is not None)
    if decision.traces_needed is not None:
        assert decision.traces_needed > 1000
    if verdict == "not detected":
        assert decision.ceiling == max(0.05, detectable or 0)


@pytest.mark.parametrize(
    ("low", "high", "detectable", "state"),
    [
        (0.11, 0.3, None, "leak"),
        (0.1, 0.3, 0.1, "undecided"),
        (-0.2, 0.1, 0.1, "not detected"),
        (-0.2, 0.101, 0.1, "undecided"),
        (-0.2, 0.05, 0.2, "not detected"),
        (-0.2, 0.05, 0.3, "undecided"),
        (-0.2, 0.05, None, "undecided"),
        (-np.inf, np.inf, 0.1, "undecided"),
        (0.03, 0.09, 0.2, "within the limit"),
        (0.03, 0.09, 0.3, "undecided"),
        (-np.inf, 0.09, 0.1, "not detected"),
    ],
)
def test_row_state_compares_the_interval_with_the_limit(
    low: float, high: float, detectable: float | None, state: str
) -> None:
    item = evidence(low, 0.05, high)
    assert [row["state"] for row in rows([item], detectable)] == [state]
    others = [replace(item, gate=False), replace(item, condition="sealed")]
    assert [row["state"] for row in rows(others, detectable)] == [None, None]


def test_row_state_uses_the_detectable_leak_of_its_secret() -> None:
    findings = [evidence(-0.1, 0.0, 0.05), replace(evidence(-0.1, 0.0, 0.05), secret="hidden-*")]
    decision = decide_verdict(
        findings, [], Limits(), {"note-*": DetectableLeak(0.1), "hidden-*": DetectableLeak(0.5)}, 1000
    )
    assert decision.states == ("not detected", "undecided") and decision.verdict == "not enough data"


def test_verdict_without_probes_ignores_the_detectable_leak() -> None:
    row = finding("behavioural", 0.0, low=0.0, high=0.05, gate=True)
    for detectable in (None, 2.0):
        decision = verdict_at_limit([row], detectable)
        assert (decision.exit_code, decision.ceiling) == (0, 0.05) and "linear code" not in decision.sentence
    with_probes = verdict_at_limit([row, evidence(0.0, 0.0, 0.05)], 0.08)
    assert with_probes.ceiling == 0.08
    decision_within_limit = verdict_at_limit([evidence(0.03, 0.06, 0.09)], 0.1)
    assert "attribute found 0.06 bits of note-* [0.03, 0.09], within the 0.1 allowed" in decision_within_limit.sentence
    assert (
        "no interval of this suite reaches beyond 0.09" in decision_within_limit.sentence
        and "Not detected" not in decision_within_limit.sentence
    )
    assert "a linear code of 0.08 bits in one token would have been detected in 8 of 10 runs" in with_probes.sentence
    assert "The probes are blind to whole secrets in less than 0.5 % of traces" in with_probes.sentence


@pytest.mark.parametrize("unknown_bits", [3.3, 16.6])
def test_traces_needed_suffice(unknown_bits: float) -> None:
    """For a secret with no measured leak, the upper bound for unseen cases shrinks with the number of traces."""

    def tested(traces: int) -> list[Evidence]:
        n = round(0.15 * traces)
        return [
            replace(evidence(0.0, 0.0, 0.0), estimate=mean_estimate(np.zeros(n), np.arange(n), 0.02, unknown_bits), n=n)
        ]

    decision = verdict_at_limit(tested(300), 0.1, 300)
    assert decision.traces_needed is not None and decision.traces_needed < 12_000
    assert verdict_at_limit(tested(decision.traces_needed), 0.1, decision.traces_needed).exit_code == 0
    assert verdict_at_limit(tested(decision.traces_needed // 2), 0.1, decision.traces_needed // 2).exit_code == 11


def test_traces_needed_is_unknown_if_no_injected_leak_was_detected() -> None:
    decision = verdict_at_limit([evidence(0.0, 0.0, 0.05)], None)
    assert decision.traces_needed is None and "too few traces to estimate" in decision.sentence


def test_audit_without_a_gated_finding_is_refused() -> None:
    with pytest.raises(UserError, match="gate=True"):
        verdict_at_limit([evidence(0.0, 0.0, 0.05, gate=False)], 0.1)


@pytest.mark.parametrize("wrong", [{"unit": "nats"}, {"condition": "closed"}])
def test_evidence_has_a_known_unit_and_condition(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match="choose from"):
        replace(evidence(0.0, 0.0, 0.05), **wrong)  # type: ignore[arg-type]


FINITE = (-2.0, -0.5, 0.0, 0.5, 1.0, 1.01, 1.5, 2.0, 5.0)
LOWS, HIGHS = st.sampled_from([-np.inf, *FINITE]), st.sampled_from([*FINITE, np.inf])


@st.composite
def audits(draw: st.DrawFn) -> tuple[float, list[Evidence], dict[str, DetectableLeak], list[str]]:
    """Draw a limit, gated findings with interval bounds at multiples of it, detectable leaks, and failures."""
    limit = draw(st.sampled_from([0.01, 0.1, 0.3, 1.0, 7.0]))
    findings = []
    for attack, secret in draw(
        st.lists(
            st.sampled_from(
                [
                    ("attribute", "note-*"),
                    ("attribute", "hidden-*"),
                    ("behavioural", "note-*"),
                    ("collision", "block"),
                ]
            ),
            min_size=1,
            max_size=4,
            unique=True,
        )
    ):
        low, high = sorted([draw(LOWS) * limit, draw(HIGHS) * limit])
        middle = np.clip((low + high) / 2 if np.isfinite(low + high) else 0.0, low, high)
        value = float(middle) if np.isfinite(middle) else 0.0
        findings.append(finding(attack, value, low=low, high=high, gate=True, secret=secret))
        findings.append(finding(attack, value, low=low, high=high, condition="sealed", secret=secret))
        if attack == "attribute":
            low, high = sorted([draw(LOWS) * MAX_EXPOSED, draw(HIGHS) * MAX_EXPOSED])
            findings.append(finding(attack, 0.0, low=low, high=high, gate=True, secret=secret, unit="exposed share"))

    def multiple_of(allowed: float) -> float | None:
        multiple = draw(st.sampled_from([None, 1.0, 1.5, MAX_DETECTABLE_TO_LIMIT_RATIO, 2.5, 5.0]))
        return None if multiple is None else multiple * allowed

    detectable_by_secret = {
        secret: DetectableLeak(multiple_of(limit), multiple_of(MAX_EXPOSED)) for secret in ("note-*", "hidden-*")
    }
    return (
        limit,
        findings,
        detectable_by_secret,
        draw(st.sampled_from([[], [], [], ["sealed: attribute finds +0.412 bits"]])),
    )


def audit_summary(
    limit: float, findings: list[Evidence], detectable_by_secret: dict[str, DetectableLeak], failures: list[str]
) -> dict[str, Any]:
    """Return the summary of an audit with these findings."""
    decision = decide_verdict(findings, failures, Limits(limit), detectable_by_secret, 4000)
    table = rows(findings, None, decision)
    for row, item in zip(table, findings, strict=True):
        row["detectable"] = (
            detectable_by_secret[item.secret].of(item.unit)
            if item.from_single_site and item.condition == "open"
            else None
        )
    more: dict[str, Any] = {
        "exit_code": decision.exit_code,
        "sentence": decision.sentence,
        "ceiling_bits": decision.ceiling,
    }
    more |= {"traces_needed": decision.traces_needed, "max_leak_bits": limit, "results": table}
    more |= {"verdict": decision.verdict, "valid": not failures, "failures": failures}
    return summary() | more


def check_agreement(audit: dict[str, Any]) -> None:
    """Check that verdict, states of rows, threats, page and SARIF agree."""
    verdict, states = audit["verdict"], [row["state"] for row in audit["results"] if row["state"] is not None]
    assert audit["exit_code"] == EXIT_CODES[verdict]
    levels = [result["level"] for result in sarif(audit, run())["runs"][0]["results"]]
    shown = set(re.findall(r'class="state ([a-z ]+)"', page(audit, run()))) & STATES
    if verdict == "invalid":
        assert states == [] and shown == set() and set(levels) == {"note"}
        return
    assert (verdict == "leak") == ("leak" in states) == ("error" in levels)
    assert (verdict == "not enough data") == ("undecided" in states and "leak" not in states)
    assert (verdict == "within the limit") == ("within the limit" in states and not {"leak", "undecided"} & set(states))
    assert (verdict == "not detected") == (set(states) == {"not detected"})
    assert sorted(levels) == sorted(LEVELS[state] for state in states if state in LEVELS)
    threats = {threat["state"] for threat in wording.by_threat(audit)} - {None}
    assert shown == set(states) and threats <= set(states)
    assert ("leak" in threats) == (verdict == "leak") and {state for state, _ in wording.judged_rows(audit)} == set(
        states
    )


@pytest.mark.slow
@given(audits())
def test_verdict_page_and_sarif_agree(
    drawn: tuple[float, list[Evidence], dict[str, DetectableLeak], list[str]],
) -> None:
    check_agreement(json.loads(json.dumps(audit_summary(*drawn), allow_nan=False)))


@given(audits())
def test_verdict_follows_from_all_findings(
    drawn: tuple[float, list[Evidence], dict[str, DetectableLeak], list[str]],
) -> None:
    """The verdict derived independently: all intervals within the limit, and all detectable leaks small enough."""
    limit, findings, detectable_by_secret, failures = drawn
    gated = [item for item in findings if item.gate]
    sizes = {"bits": limit, "exposed share": MAX_EXPOSED}
    probed = [(detectable_by_secret[item.secret].of(item.unit), item.unit) for item in gated if item.from_single_site]
    sharp = all(
        smallest is not None and smallest <= MAX_DETECTABLE_TO_LIMIT_RATIO * sizes[unit] * (1 + 1e-9)
        for smallest, unit in probed
        if unit == "bits"
    )
    lows, highs = ([getattr(item.estimate, end) - sizes[item.unit] for item in gated] for end in ("low", "high"))
    expected = "not enough data"
    if failures:
        expected = "invalid"
    elif max(lows) > 0:
        expected = "leak"
    elif sharp and max(highs) <= 0:
        found = any(item.estimate.low > 0 for item in gated)
        expected = "within the limit" if found else "not detected"
    assert decide_verdict(findings, failures, Limits(limit), detectable_by_secret, 4000).verdict == expected


def test_detectable_leak_of_twice_the_limit_passes_in_all_reports() -> None:
    """At a limit of 0.1 bits and a detectable leak of 0.2 bits the gate, the page and SARIF pass."""
    audit = audit_summary(0.1, [evidence(-0.05, 0.0, 0.05)], {"note-*": DetectableLeak(0.2)}, [])
    assert audit["verdict"] == "not detected" and audit["results"][0]["state"] == "not detected"
    check_agreement(audit)
