"""Majority votes: wrong answers that are equal by the grader vote together."""

import math

import pandas as pd
import pytest

from ghosttrace.ablation.summary import at_k
from ghosttrace.bench import grading
from ghosttrace.bench.grading import group_equal_answers, mathematics
from ghosttrace.bench.verifier import VERIFIER

HALF = ["1/2", "0.5", r"\frac12", r"\dfrac{1}{2}"]
DISTINCT = [
    "7",
    "0.51",
    "-1/2",
    r"\frac{\sqrt{2}}{2}",
    r"\sqrt{0.5}",
    "(1,2)",
    "[1,2]",
    "x+1",
    "1+x",
    "x = 3",
    "3",
    "?",
]


def samples(answers: list[tuple[str | None, bool]], rule: str = "boxed/math-verify") -> pd.DataFrame:
    rows = [{"extracted": answer, "correct": correct} for answer, correct in answers]
    return pd.DataFrame(rows).assign(bench="b", arm="memento", problem="p", cluster="p", rule=rule)


def test_wrong_answers_in_different_spellings_win_a_vote_together() -> None:
    right, wrong = [("3", True)] * 2, [(text, False) for text in HALF[:3]]
    votes = [*right, *wrong, (None, False)]
    assert at_k(samples(votes)).set_index("k").loc[6, "maj_at_k"] == 0
    assert at_k(samples(votes, rule="boxed/choice")).set_index("k").loc[6, "maj_at_k"] == 1  # spellings are choices
    with_other_arm = pd.concat([samples(votes), samples([("2", False)] * 6).assign(arm="restart")])
    assert at_k(with_other_arm).set_index(["arm", "k"]).loc[("memento", 6), "maj_at_k"] == 0


def groups_by_all_pairs(answers: list[str]) -> list[list[str]]:
    """Group answers by comparing every pair with the grader, whatever their values are."""
    groups: list[list[str]] = []
    for answer in answers:
        same = [group for group in groups if any(mathematics(a, rf"\boxed{{{answer}}}").correct for a in group)]
        groups = [group for group in groups if group not in same] + [[answer, *(a for group in same for a in group)]]
    return groups


def test_groups_equal_those_of_all_pairs() -> None:
    answers = [*HALF, *DISTINCT]
    representatives = group_equal_answers(answers, ["boxed/math-verify"] * len(answers))
    found: dict[str, set[str]] = {}
    for answer, representative in zip(answers, representatives, strict=True):
        found.setdefault(representative, set()).add(answer)
    expected = sorted(sorted(group) for group in groups_by_all_pairs(answers))
    assert sorted(sorted(group) for group in found.values()) == expected
    assert ["-1/2"] in expected and sorted(["x+1", "1+x"]) in expected and sorted(HALF) in expected


@pytest.mark.parametrize("rule", ["boxed/too-long", "boxed/gave-up", "boxed/choice", "digits/exact"])
def test_other_rules_compare_strings(rule: str) -> None:
    assert group_equal_answers(["1/2", "0.5", "1/2"], [rule] * 3) == ["1/2", "0.5", "1/2"]
    assert group_equal_answers(["1/2", "0.5"], ["boxed/math-verify", rule]) == ["1/2", "0.5"]


def test_answers_whose_comparison_takes_too_long_are_different(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = ["boxed/math-verify"] * 3
    monkeypatch.setattr(VERIFIER, "_request", lambda *texts: None)
    assert group_equal_answers(["x+1", "1+x", "x + 1"], rules) == ["x+1", "1+x", "x+1"]  # no value
    monkeypatch.setattr(VERIFIER, "value", lambda expression: math.nan)
    assert group_equal_answers(["x+1", "1+x", "x + 1"], rules) == ["x+1", "1+x", "x+1"]  # a value, no comparison


def test_requests_to_math_verify_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[str, ...]] = []

    def different(*texts: str) -> float:
        requests.append(texts)
        return math.nan if len(texts) == 1 else 0.0

    monkeypatch.setattr(VERIFIER, "_request", different)
    answers = [f"x+{n}" for n in range(100)]
    assert group_equal_answers(answers, ["boxed/string"] * 100) == answers
    assert len(requests) == grading.MAX_REQUESTS
    requests.clear()
    assert group_equal_answers([str(n) for n in range(500)], ["boxed/integer"] * 500)[-1] == "499" and not requests
    assert group_equal_answers(["9" * 900, "9" * 901], ["boxed/integer"] * 2) == ["9" * 900, "9" * 901]
