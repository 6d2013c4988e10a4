r"""Grading: difficult answers, answers of real data, spellings of integers, hostile input and threads."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghosttrace.bench.benchmark import Grade
from ghosttrace.bench.grading import GRADERS, choice, extract_answer, integer, mathematics

DATA = Path(os.environ.get("GHOSTTRACE_DATA", Path(__file__).parents[2] / "shared")) / "bench"

EXTRACTED = [
    (r"so \boxed{204}, not 205 or $206$", "204", "boxed"),
    (r"\boxed{33} and then \boxed{34}", "34", "boxed"),
    (r"\boxed{33} and, cut off, \boxed{\frac{1}{2", "33", "boxed"),
    (r"\boxed{33} and empty \boxed{ } \boxed{}", "33", "boxed"),
    (r"\fbox{\frac{a}{b^{2}}} ", r"\frac{a}{b^{2}}", "boxed"),
    (r"\boxed{\{1, \text{a \} b}\}}", r"\{1, \text{a \} b}\}", "boxed"),
    (r"a set { of \boxed{7}", "7", "boxed"),
    (r"a stray } and \boxed{7}", "7", "boxed"),
    (r"\boxed{\boxed{7}}", "7", "boxed"),
    (r"\boxed{\boxed{7}", "7", "boxed"),
    (r"\boxed 7.", "7", "boxed"),
    (r"\boxed7", "7", "boxed"),
    (r"$\boxed   {7}$", "7", "boxed"),
    (r"\\boxed{7}", "7", "boxed"),
    (r"line\\\boxed{7}", "7", "boxed"),
    (r"\boxed{12} as asked for in \boxed form", "12", "boxed"),
    (r"\boxedsection{12} $5$", "5", "dollar"),
    ("Final Answer: 33.", "33.", "final-answer"),
    ("**Final Answer:** 33\nThat is all, with $5$.", "33", "final-answer"),
    ("**Final Answer**: $33$ of them\n\n$5$", "33", "final-answer"),
    ("final answer is\n\\[\n33\n\\]\n", "33", "final-answer"),
    ("Final Answer:\n$$\n33\n$$", "33", "final-answer"),
    (r"Final answer: \(33\) is it", "33", "final-answer"),
    ("Final Answer: 1. Final Answer: 2", "2", "final-answer"),
    ("**Final Answer:** **33** \r\n\r\n", "33", "final-answer"),
    ("Final Answer:", None, "none"),
    ("it costs $5, so that $x=3$ and $$33$$ then", "33", "dollar"),
    (r"$33$ for \$5", "33", "dollar"),
    ("only one $ here", None, "none"),
    ("I do not know, perhaps 33", None, "none"),
    ("", None, "none"),
]

INTEGERS = [
    ("33", r"\boxed{33}", "boxed/integer", True),
    ("33", r"\boxed{033}", "boxed/integer", True),
    ("033", r"\boxed{33}", "boxed/integer", True),
    ("1234", r"\boxed{1,234}", "boxed/integer", True),
    ("1234", r"\boxed{1{,}234}", "boxed/integer", True),
    ("1234", r"\boxed{1\,234}", "boxed/integer", True),
    ("1234", r"\boxed{1,\!234}", "boxed/integer", True),
    ("1234567", r"\boxed{1 234 567}", "boxed/integer", True),
    ("33", r"\boxed{+33}", "boxed/integer", True),
    ("-33", r"\boxed{-33}", "boxed/integer", True),
    ("-33", r"\boxed{- 33}", "boxed/integer", True),
    ("-33", r"\boxed{−33}", "boxed/integer", True),
    ("33", r"\boxed{$33$}", "boxed/integer", True),
    ("33", r"\boxed{\(33\)}", "boxed/integer", True),
    ("33", r"\boxed{\text{33}}", "boxed/integer", True),
    ("33", r"\boxed{\textbf{33}}", "boxed/integer", True),
    ("33", r"\boxed{{33}}", "boxed/integer", True),
    ("33", r"\boxed{\displaystyle 33}", "boxed/integer", True),
    ("33", r"\boxed{33^\circ}", "boxed/integer", True),
    ("33", r"\boxed{33^{\circ}}", "boxed/integer", True),
    ("33", r"\boxed{33°}", "boxed/integer", True),
    ("33", r"\boxed{33 \text{ cm}}", "boxed/integer", True),
    ("33", r"\boxed{33\ \mathrm{cm}^2}", "boxed/integer", True),
    ("33", r"\boxed{33 square units}", "boxed/integer", True),
    ("33", r"\boxed{\$33}", "boxed/integer", True),
    ("33", r"\boxed{33.}", "boxed/integer", True),
    ("33", r"\boxed{33.0}", "boxed/integer", True),
    ("33", r"\boxed{x = 33}", "boxed/integer", True),
    ("113", r"\boxed{m+n = 113}", "boxed/integer", True),
    ("113", r"\boxed{m+n = 100 + 13 = 113}", "boxed/integer", True),
    ("33", "Final Answer: **33**", "final-answer/integer", True),
    ("33", "so it is $33$.", "dollar/integer", True),
    ("33", r"\boxed{\frac{66}{2}}", "boxed/math-verify", True),
    ("33", r"\boxed{(33)}", "boxed/math-verify", True),
    ("27", r"\boxed{3^3}", "boxed/math-verify", True),
    ("113", r"\boxed{f(1, 2) = 113}", "boxed/math-verify", True),
    ("33", r"\boxed{34}", "boxed/integer", False),
    ("33", r"\boxed{33} or rather \boxed{34}", "boxed/integer", False),
    ("33", r"\boxed{-33}", "boxed/integer", False),
    ("33", r"\boxed{330}", "boxed/integer", False),
    ("1", r"\boxed{1,234}", "boxed/integer", False),
    ("33", r"\boxed{33.5}", "boxed/math-verify", False),
    ("33", r"\boxed{33 or 34}", "boxed/math-verify", False),
    ("34", r"\boxed{33 \text{ or } 34}", "boxed/math-verify", False),
    ("34", r"\boxed{33, 34}", "boxed/math-verify", False),
    ("34", r"\boxed{x = 33, y = 34}", "boxed/math-verify", False),
    ("33", r"\boxed{33 \text{ or more}}", "boxed/math-verify", False),
    ("33", r"\boxed{33 \text{ (not 34)}}", "boxed/math-verify", False),
    ("33", r"\boxed{3^3}", "boxed/math-verify", False),
    ("33", r"\boxed{33/2}", "boxed/math-verify", False),
    ("33", r"\boxed{33x}", "boxed/math-verify", False),
    ("33", r"\boxed{x > 33}", "boxed/math-verify", False),
    ("33", r"\boxed{x \neq 33}", "boxed/math-verify", False),
    ("33", r"\boxed{\approx 33}", "boxed/math-verify", False),
    ("33", r"\boxed{33!}", "boxed/math-verify", False),
    ("33", r"\boxed{33 \pm 1}", "boxed/math-verify", False),
    ("33", r"\boxed{AB}", "boxed/math-verify", False),
    ("33", r"\boxed{33_{8}}", "boxed/form", False),
    ("33", r"\boxed{3 3 3}", "boxed/form", False),
    ("67", r"\boxed{33 \quad 34}", "boxed/form", False),
    ("7", r"\boxed{(3)(4)}", "boxed/form", False),
    ("33", "it is 33", "none/integer", False),
    ("33", "", "none/integer", False),
]

MATHEMATICS = [
    (r"\frac14", r"\boxed{\dfrac{1}{4}}", "boxed/math-verify", True),
    (r"\frac14", r"\boxed{0.25}", "boxed/math-verify", True),
    (r"\frac14", r"\boxed{1/4}", "boxed/math-verify", True),
    (r"\frac{1}{4}", r"\boxed{\tfrac{1}{4}}", "boxed/string", True),
    (r"\frac{5}{2}", r"\boxed{2\frac{1}{2}}", "boxed/math-verify", True),
    (".35625", r"\boxed{\frac{57}{160}}", "boxed/math-verify", True),
    ("6 - 5i", r"\boxed{-5i + 6}", "boxed/math-verify", True),
    ("6 - 5i", r"\boxed{6-5\mathrm{i}}", "boxed/string", True),
    (r"11,\! 111,\! 111,\! 100", r"\boxed{11111111100}", "boxed/integer", True),
    (r"\frac{270}7\text{ degrees}", r"\boxed{\frac{270}{7}^\circ}", "boxed/math-verify", True),
    (r"5.4 \text{ cents}", r"\boxed{5.4}", "boxed/string", True),
    ("y = 2x + 3", r"\boxed{y=2x+3}", "boxed/string", True),
    ("y = 2x + 3", r"\boxed{2x - y + 3 = 0}", "boxed/math-verify", True),
    ("(8,-2)", r"\boxed{\left(8,\,-2\right)}", "boxed/string", True),
    ("3,4", r"\boxed{x = 4 \text{ or } x = 3}", "boxed/math-verify", True),
    (r"\{3,4\}", r"\boxed{\left\{4, 3\right\}}", "boxed/math-verify", True),
    ("(1,2),(3,4)", r"\boxed{\{(3,4),(1,2)\}}", "boxed/math-verify", True),
    (r"1 \pm \sqrt{19}", r"\boxed{1+\sqrt{19}, 1-\sqrt{19}}", "boxed/math-verify", True),
    (r"\text{Evelyn}", r"\boxed{Evelyn}", "boxed/string", True),
    ("50", r"\boxed{50\%}", "boxed/math-verify", True),
    ("2516_8", r"\boxed{2516_{8}}", "boxed/math-verify", True),
    (r"\sqrt{2}+\sqrt{3}", r"\boxed{\sqrt{5+2\sqrt{6}}}", "boxed/math-verify", True),
    (r"\frac{\pi}{10}", r"\boxed{0.1\pi}", "boxed/math-verify", True),
    (r"\frac{1}{2^{100}}", r"\boxed{2^{-100}}", "boxed/math-verify", True),
    (r"\unparsable{", r"Final Answer: \unparsable{", "final-answer/string", True),
    (r"11,\! 111,\! 111,\! 100", r"\boxed{11}", "boxed/integer", False),
    ("11", r"\boxed{11,\! 111,\! 111,\! 100}", "boxed/integer", False),
    ("1", r"\boxed{\{1, 2\}}", "boxed/math-verify", False),
    ("2", r"\boxed{x=2 \text{ or } x=3}", "boxed/math-verify", False),
    ("50", r"\boxed{0.5}", "boxed/math-verify", False),
    ("5", r"\boxed{5d}", "boxed/math-verify", False),
    ("5d", r"\boxed{5}", "boxed/math-verify", False),
    ("y = 2x+3", r"\boxed{x = 2y+3}", "boxed/math-verify", False),
    ("(8,-2)", r"\boxed{(-2,8)}", "boxed/math-verify", False),
    ("(8,-2)", r"\boxed{(7,-3)}", "boxed/math-verify", False),
    ("(8,-2)", r"\boxed{[8,-2]}", "boxed/form", False),
    ("(1,2)", r"\boxed{[1,2]}", "boxed/form", False),
    ("[1,2)", r"\boxed{(1,2)}", "boxed/form", False),
    (r"[3,\infty)", r"\boxed{[3,\infty]}", "boxed/form", False),
    (r"\{3,4\}", r"\boxed{(3,4)}", "boxed/form", False),
    ("2516_8", r"\boxed{2516_9}", "boxed/form", False),
    ("7", r"\boxed{3\,4}", "boxed/form", False),
    (r"\frac32", r"\boxed{2 1/2}", "boxed/form", False),
    (r"\frac{12}{49}", r"\boxed{\frac{1}{49}48}", "boxed/form", False),
    (r"\frac{1}{2^{100}}", r"\boxed{\frac{1}{2^{99}}}", "boxed/math-verify", False),
    (r"\sqrt{5}", r"\boxed{\pm\sqrt{5}}", "boxed/math-verify", False),
    (r"\frac23", r"\boxed{0.667}", "boxed/math-verify", False),
    ("3R^2", r"\boxed{3R}", "boxed/math-verify", False),
    ("x < 3", r"\boxed{x \le 3}", "boxed/math-verify", False),
    (r"\text{even}", r"\boxed{\text{odd}}", "boxed/math-verify", False),
    ("1", r"\boxed{\frac00}", "boxed/math-verify", False),
    (r"\frac12", r"\boxed{\text{answer below }\frac{1}{2}}", "boxed/math-verify", False),
    ("1", r"\boxed{about 1 apple}", "boxed/math-verify", False),
    ("1", r"\boxed{\,}", "boxed/math-verify", False),
    (r"\frac12", "one half", "none/mathematics", False),
]

CHOICES = [
    ("C", r"\boxed{C}", "boxed/choice", True),
    ("C", r"\boxed{c}", "boxed/choice", True),
    ("(C)", r"$\boxed{\text{(C)}}$, not B", "boxed/choice", True),
    ("C", r"\boxed{\textbf{(C) } 33\text{ m}}", "boxed/choice", True),
    ("C", r"\boxed{\text{C. A force of 3 N}}", "boxed/choice", True),
    ("C", r"I think \boxed{33 m}. The answer is (C).", "final-answer/choice", True),
    ("C", "The answer is (C), since A and B fail.", "final-answer/choice", True),
    ("C", "**Answer:** C", "final-answer/choice", True),
    ("C", "Answer: $\\textbf{(C)}$\n", "final-answer/choice", True),
    ("C", "answer: c", "final-answer/choice", True),
    ("C", "The correct answer is option C because D fails", "final-answer/choice", True),
    ("A", "The answer is A.", "final-answer/choice", True),
    ("A", "Answer: A because it is", "final-answer/choice", True),
    ("I", "Answer: I", "final-answer/choice", True),
    ("C", "It must be **C**, though B and D are near.", "letter/choice", True),
    ("C", "It must be **C) 33 m**, though B is near.", "letter/choice", True),
    ("C", "B is too small, so C", "letter/choice", True),
    ("C", "We take (C). A sealed cache would differ. I am sure.", "letter/choice", True),
    ("A", "B fails; hence A", "letter/choice", True),
    ("C", r"\boxed{D}", "boxed/choice", False),
    ("C", r"\boxed{C}, or rather \boxed{D}", "boxed/choice", False),
    ("C", r"\boxed{C, D}", "boxed/choice", False),
    ("C", r"\boxed{C or D}", "boxed/choice", False),
    ("D", r"\boxed{(C) and (D)}", "boxed/choice", False),
    ("A", "The answer is a mass of 3 kg", "none/choice", False),
    ("A", "Answer: A mass of 3 kg", "none/choice", False),
    ("A", "answer: a mass of 3 kg", "none/choice", False),
    ("I", "I am not sure. I'd rather not say", "none/choice", False),
    ("D", "a 3D model of a C-H bond, H_2O and CO2", "none/choice", False),
    ("C", "c", "none/choice", False),
    ("C", "", "none/choice", False),
]

ROWS = [
    *((integer, *row) for row in INTEGERS),
    *((mathematics, *row) for row in MATHEMATICS),
    *((choice, *row) for row in CHOICES),
]


@pytest.mark.parametrize("text, answer, rule", EXTRACTED)
def test_answer_is_extracted_by_the_expected_rule(text: str, answer: str | None, rule: str) -> None:
    assert extract_answer(text) == (answer, rule)


@pytest.mark.parametrize("grade, gold, text, rule, correct", ROWS)
def test_difficult_answers(grade: Callable[[str, str], Grade], gold: str, text: str, rule: str, correct: bool) -> None:
    graded = grade(gold, text)
    assert (graded.correct, graded.rule) == (correct, rule), graded


def test_extracted_answer_is_canonical() -> None:
    assert integer("33", r"\boxed{m + n = 0\text{33}^\circ}").extracted == "33"
    assert mathematics("1", r"\boxed{ \frac{1}{2} }").extracted == r"\frac{1}{2}"
    assert choice("C", r"\boxed{\text{(c)}}").extracted == "C"


def test_threads_give_equal_grades() -> None:
    with ThreadPoolExecutor(4) as pool:
        graded = list(pool.map(lambda row: row[0](row[1], row[2]), ROWS))
    assert [(result.rule, result.correct) for result in graded] == [(row[3], row[4]) for row in ROWS]


# The answers of real data


def golds(name: str) -> list[str]:
    file = DATA / f"{name}.jsonl"
    if not file.is_file():
        pytest.skip(f"{name}.jsonl is not in {DATA}: set GHOSTTRACE_DATA to the folder that holds bench/")
    return [json.loads(line)["answer"] for line in file.read_text().splitlines()]


def value(answer: str) -> Fraction | str:
    """Return the numeric answers of the data as fractions and other answers unchanged: an independent reference."""
    cleaned = (
        answer.replace("\\! ", "").replace("\\frac{", "").replace("\\frac", "").replace("}{", "/").replace("}", "")
    )
    cleaned = {"14": "1/4", "270/7\\text{ degrees": "270/7"}.get(cleaned, cleaned) if "\\frac" in answer else cleaned
    try:
        return Fraction(cleaned.replace(",", "") if "(" not in cleaned else cleaned)
    except ValueError:
        return answer


def negated(answer: str) -> str:
    return answer[1:] if answer.startswith("-") else f"-{answer}"


@pytest.mark.parametrize("name, rule", [("aime24", "integer"), ("aime25", "integer"), ("math500_sub50", "mathematics")])
def test_answers_of_real_data(name: str, rule: str) -> None:
    answers, grade = golds(name), GRADERS[rule]

    def right(gold: str, answer: str) -> bool:
        return grade(gold, rf"Therefore, as $x=3$, it is \boxed{{{answer}}}. Done, in $4$ steps.").correct

    for gold, other in zip(answers, answers[1:] + answers[:1], strict=True):
        assert right(gold, gold), gold
        assert not right(gold, negated(gold)), gold
        assert value(gold) == value(other) or not right(gold, other), (gold, other)
        if gold.lstrip("-").isdecimal():
            assert not right(gold, str(int(gold) + 1)) and not right(gold, str(int(gold) - 1)), gold


# Properties

NUMBERS = st.integers(-(10**12), 10**12)
SPELLINGS: list[Callable[[int], str]] = [
    str,
    lambda n: f"{n:,}",
    lambda n: f"{n:,}".replace(",", "{,}"),
    lambda n: f"{n:,}".replace(",", r"\,"),
    lambda n: f"{n:,}".replace(",", r",\! "),
    lambda n: f"{'-' * (n < 0)}000{abs(n)}",
    lambda n: f"x = {n}",
    lambda n: f"${n}$",
    lambda n: rf"\text{{{n}}}",
    lambda n: rf"{n}^\circ",
    lambda n: rf"{n} \text{{ cm}}^2",
    lambda n: f"{n}.00",
]


@given(NUMBERS, NUMBERS, st.sampled_from(SPELLINGS), st.sampled_from(["integer", "mathematics"]))
def test_integers_in_any_spelling(n: int, m: int, spelling: Callable[[int], str], rule: str) -> None:
    text = rf"\boxed{{{spelling(n)}}}"
    assert GRADERS[rule](str(n), text) == Grade(True, str(n), "boxed/integer")
    assert GRADERS[rule](str(m), text).correct == (m == n)
    assert not GRADERS[rule](str(n + 1), text).correct


PIECES = st.sampled_from(
    ["\\boxed", "\\fbox", "{", "}", "\\", "$", "Final Answer:", "answer is", "\n", " ", "**", "A", "I", "7", "\\frac"]
)


@given(st.lists(PIECES | st.text(max_size=5), max_size=30).map("".join))
def test_any_text_is_accepted(text: str) -> None:
    answer, rule = extract_answer(text)
    assert (answer is None) == (rule == "none")
    assert answer is None or (answer in text and answer == answer.strip() and answer)
    choice("A", text)


INSIDE = st.recursive(
    st.text(alphabet="ab1+ ", min_size=1, max_size=4) | st.sampled_from([r"\{", r"\}", r"\\", r"\frac"]),
    lambda inner: st.lists(inner, min_size=1, max_size=4).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=12,
)


@given(INSIDE, st.text(alphabet="ab{ ", max_size=5), st.text(alphabet="ab} ", max_size=5))
def test_balanced_braces_are_extracted_completely(inside: str, before: str, after: str) -> None:
    expected = (inside.strip(), "boxed") if inside.strip() else (None, "none")
    assert extract_answer(rf"{before}\boxed{{{inside}}}{after}") == expected


# Hostile input
