"""Problems of reasoning-gym: with the library where it is installed, and with a stand-in that gives part of a score."""

import sys
from types import ModuleType
from typing import Any

import pytest

from ghosttrace.bench import REASONING_GYM_BENCHES, bench_size, load_bench, reasoning_gym
from ghosttrace.errors import UserError


class Generated(list[dict[str, str]]):
    """Three questions; the right answer scores 1, any other number 0.5."""

    def score_answer(self, answer: str | None, entry: dict[str, str]) -> float:
        return 1.0 if answer == entry["answer"] else 0.5 * str(answer).isdecimal()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def create_dataset(name: str, **options: Any) -> Generated:
        calls.append({"name": name} | options)
        return Generated({"question": f"Which number is {n}?", "answer": str(n)} for n in range(options["size"]))

    module = ModuleType("reasoning_gym")
    module.create_dataset = create_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)
    monkeypatch.setattr(reasoning_gym, "version", lambda name: "0.1.25")
    return calls


def test_an_answer_is_correct_with_the_full_score_alone(stand_in: list[dict[str, Any]]) -> None:
    (bench,) = load_bench("leg-counting", limit=3, seed=7)
    assert stand_in == [{"name": "leg_counting", "size": 3, "seed": 7}]
    assert bench.origin == "reasoning-gym 0.1.25, seed 7"
    problem = bench.problems[2]
    assert problem.answer == "2" and problem.prompt.startswith("Which number is 2?") and "boxed" in problem.prompt
    grades = [bench.grade(problem, text) for text in ("It is \\boxed{2}.", "It is \\boxed{3}.", "It is two.")]
    assert [grade.correct for grade in grades] == [True, False, False]
    assert [grade.extracted for grade in grades] == ["2", "3", None]


def test_the_group_has_every_data_set(stand_in: list[dict[str, Any]]) -> None:
    assert [bench.name for bench in load_bench("reasoning-gym", limit=1)] == list(REASONING_GYM_BENCHES)
    assert bench_size("gsm-symbolic") == (200, 2)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match="reasoning_gym is not installed: pip install"):
        load_bench("gsm-symbolic", limit=1)


@pytest.mark.parametrize("name", REASONING_GYM_BENCHES)
def test_problems_and_grades_of_the_library(name: str) -> None:
    pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")
    (few,), (more,) = load_bench(name, 2, seed=3), load_bench(name, 4, seed=3)
    assert more.problems[:2] == few.problems and len({problem.prompt for problem in more.problems}) == 4
    for problem in more.problems:
        assert more.grade(problem, f"So \\boxed{{{problem.answer}}}").correct
        assert not more.grade(problem, "So \\boxed{wrong}").correct
