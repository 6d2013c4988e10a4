"""The gate of an audit: its verdicts, the states of its rows, and that every report says the same."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.audits import FORBIDDEN, finding, rows, run, summary
from hypothesis import given
from hypothesis import strategies as st

from ghosttrace.auditing.evidence import Evidence, mean_estimate
from ghosttrace.auditing.verdict import EXIT_CODES, MAX_DETECTABLE_TO_LIMIT_RATIO, Verdict, decide_verdict
from ghosttrace.errors import UserError
from ghosttrace.report.audit import wording
from ghosttrace.report.audit.page import page
from ghosttrace.report.audit.sarif import sarif

STATES = {"leak", "undecided", "within the limit", "not detected"}
LEVELS = {"leak": "error", "undecided": "warning", "within the limit": "note"}


def evidence(low: float, value: float, high: float, gate: bool = True) -> Evidence:
    return finding("attribute", value, low=low, high=high, p=0.5, n=100, gate=gate)


def said_of(found: Sequence[Evidence], seen: float | None, traces: int = 1000, failures: Sequence[str] = ()) -> Verdict:
    """The gate's verdict at a limit of 0.1 where probes would have seen the same leak of every secret."""
    return decide_verdict(found, failures, 0.1, {one.secret: seen for one in found}, traces)


@pytest.mark.parametrize(
    "found, failures, detectable, verdict, code",
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
def test_the_gate(
    found: list[Evidence], failures: list[str], detectable: float | None, verdict: str, code: int
) -> None:
    said = said_of(found, detectable, failures=failures)
    assert (said.verdict, said.exit_code) == (verdict, code) and not FORBIDDEN.search(said.sentence)
    assert (said.traces_needed is not None) == (verdict == "not enough data" and detectable is not None)
    if said.traces_needed is not None:
        assert said.traces_needed > 1000
    if verdict == "not detected":
        assert said.ceiling == max(0.05, detectable or 0)


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
def test_a_row_is_held_to_the_limit(low: float, high: float, detectable: float | None, state: str) -> None:
    one = evidence(low, 0.05, high)
    assert [row["state"] for row in rows([one], detectable)] == [state]
    others = [replace(one, gate=False), replace(one, condition="sealed")]
    assert [row["state"] for row in rows(others, detectable)] == [None, None]


def test_a_row_is_held_to_what_probes_of_its_own_secret_could_see() -> None:
    found = [evidence(-0.1, 0.0, 0.05), replace(evidence(-0.1, 0.0, 0.05), secret="hidden-*")]
    said = decide_verdict(found, [], 0.1, {"note-*": 0.1, "hidden-*": 0.5}, 1000)
    assert said.states == ("not detected", "undecided") and said.verdict == "not enough data"


def test_a_verdict_without_probes_does_not_depend_on_what_they_could_see() -> None:
    row = finding("behavioural", 0.0, low=0.0, high=0.05, gate=True)
    for seen in (None, 2.0):
        said = said_of([row], seen)
        assert (said.exit_code, said.ceiling) == (0, 0.05) and "linear code" not in said.sentence
    with_probes = said_of([row, evidence(0.0, 0.0, 0.05)], 0.08)
    assert with_probes.ceiling == 0.08
    found = said_of([evidence(0.03, 0.06, 0.09)], 0.1)
    assert "attribute found 0.06 bits of note-* [0.03, 0.09], within the 0.1 allowed" in found.sentence
    assert "no interval of this suite reaches beyond 0.09" in found.sentence and "Not detected" not in found.sentence
    assert "a linear code of 0.08 bits at one place of the cache would have been seen in 8 of 10 runs" in (
        with_probes.sentence
    )


@pytest.mark.parametrize("most", [3.3, 16.6])
def test_as_many_traces_as_are_asked_for_would_do(most: float) -> None:
    """Of a secret of which nothing is found: what may have gone unseen shrinks with the number of traces."""

    def tested(traces: int) -> list[Evidence]:
        n = round(0.15 * traces)
        return [replace(evidence(0.0, 0.0, 0.0), found=mean_estimate(np.zeros(n), np.arange(n), 0.02, most), n=n)]

    said = said_of(tested(300), 0.1, 300)
    assert said.traces_needed is not None and said.traces_needed < 12_000
    assert said_of(tested(said.traces_needed), 0.1, said.traces_needed).exit_code == 0
    assert said_of(tested(said.traces_needed // 2), 0.1, said.traces_needed // 2).exit_code == 11


def test_where_no_injected_leak_was_seen_nobody_knows_how_many_traces_would_do() -> None:
    said = said_of([evidence(0.0, 0.0, 0.05)], None)
    assert said.traces_needed is None and "cannot be told" in said.sentence


def test_an_audit_without_a_gated_finding_is_refused() -> None:
    with pytest.raises(UserError, match="gate=True"):
        said_of([evidence(0.0, 0.0, 0.05, gate=False)], 0.1)


@pytest.mark.parametrize("wrong", [{"unit": "nats"}, {"condition": "closed"}])
def test_evidence_has_a_known_unit_and_condition(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match="choose from"):
        replace(evidence(0.0, 0.0, 0.05), **wrong)  # type: ignore[arg-type]


FINITE = (-2.0, -0.5, 0.0, 0.5, 1.0, 1.01, 1.5, 2.0, 5.0)
LOWS, HIGHS = st.sampled_from([-np.inf, *FINITE]), st.sampled_from([*FINITE, np.inf])


@st.composite
def audits(draw: st.DrawFn) -> tuple[float, list[Evidence], dict[str, float | None], list[str]]:
    """A limit, gated findings with interval ends at multiples of it, what probes could see, and failures."""
    limit = draw(st.sampled_from([0.01, 0.1, 0.3, 1.0, 7.0]))
    found = []
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
        found.append(finding(attack, value, low=low, high=high, gate=True, secret=secret))
        found.append(finding(attack, value, low=low, high=high, condition="sealed", secret=secret))
    times = {
        secret: draw(st.sampled_from([None, 1.0, 1.5, MAX_DETECTABLE_TO_LIMIT_RATIO, 2.5, 5.0]))
        for secret in ("note-*", "hidden-*")
    }
    seen = {secret: None if one is None else one * limit for secret, one in times.items()}
    return limit, found, seen, draw(st.sampled_from([[], [], [], ["sealed: attribute finds +0.412 bits"]]))


def audit_summary(
    limit: float, found: list[Evidence], seen: dict[str, float | None], failures: list[str]
) -> dict[str, Any]:
    """The summary of an audit with these findings."""
    said = decide_verdict(found, failures, limit, seen, 4000)
    table = rows(found, None, said)
    for row, one in zip(table, found, strict=True):
        row["detectable"] = seen.get(one.secret) if one.from_single_site and one.condition == "open" else None
    more: dict[str, Any] = {"exit_code": said.exit_code, "sentence": said.sentence, "ceiling_bits": said.ceiling}
    more |= {"traces_needed": said.traces_needed, "max_leak_bits": limit, "results": table}
    more |= {"verdict": said.verdict, "valid": not failures, "failures": failures}
    return summary() | more


def check_agreement(found: dict[str, Any]) -> None:
    """The verdict, the states of the rows, the threats, the page and SARIF say the same."""
    verdict, states = found["verdict"], [row["state"] for row in found["results"] if row["state"] is not None]
    assert found["exit_code"] == EXIT_CODES[verdict]
    levels = [one["level"] for one in sarif(found, run())["runs"][0]["results"]]
    shown = set(re.findall(r'class="state ([a-z ]+)"', page(found, run()))) & STATES
    if verdict == "invalid":
        assert states == [] and shown == set() and set(levels) == {"note"}
        return
    assert (verdict == "leak") == ("leak" in states) == ("error" in levels)
    assert (verdict == "not enough data") == ("undecided" in states and "leak" not in states)
    assert (verdict == "within the limit") == ("within the limit" in states and not {"leak", "undecided"} & set(states))
    assert (verdict == "not detected") == (set(states) == {"not detected"})
    assert sorted(levels) == sorted(LEVELS[state] for state in states if state in LEVELS)
    threats = {threat["state"] for threat in wording.by_threat(found)} - {None}
    assert shown == set(states) and threats <= set(states)
    assert ("leak" in threats) == (verdict == "leak") and {state for state, _ in wording.judged_rows(found)} == set(
        states
    )


@pytest.mark.slow
@given(audits())
def test_verdict_page_and_sarif_agree(
    drawn: tuple[float, list[Evidence], dict[str, float | None], list[str]],
) -> None:
    check_agreement(json.loads(json.dumps(audit_summary(*drawn), allow_nan=False)))


@given(audits())
def test_the_verdict_is_that_of_all_findings_together(
    drawn: tuple[float, list[Evidence], dict[str, float | None], list[str]],
) -> None:
    """Said once more, without states: every interval within the limit, and probes of every secret sharp."""
    limit, found, seen, failures = drawn
    gated = [one for one in found if one.gate]
    limits = [seen.get(one.secret) for one in gated if one.from_single_site]
    sharp = all(one is not None and one <= MAX_DETECTABLE_TO_LIMIT_RATIO * limit * (1 + 1e-9) for one in limits)
    lows, highs = [one.found.low for one in gated], [one.found.high for one in gated]
    expected = "not enough data"
    if failures:
        expected = "invalid"
    elif max(lows) > limit:
        expected = "leak"
    elif sharp and max(highs) <= limit:
        expected = "within the limit" if max(lows) > 0 else "not detected"
    assert decide_verdict(found, failures, limit, seen, 4000).verdict == expected


def test_what_probes_could_see_at_twice_the_limit_is_enough_everywhere() -> None:
    """At a limit of 0.1 and a detectable leak of 0.2 the gate passes, and so say page and SARIF."""
    found = audit_summary(0.1, [evidence(-0.05, 0.0, 0.05)], {"note-*": 0.2}, [])
    assert found["verdict"] == "not detected" and found["results"][0]["state"] == "not detected"
    check_agreement(found)
