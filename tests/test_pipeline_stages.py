"""The stages that ask a model: boundary scores, mementos, judgements."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.annotator import annotate, stage_of
from helpers.scripted_endpoint import ScriptedEndpoint, scripted_endpoint
from test_pipeline_calls import run

from ghosttrace.errors import UserError
from ghosttrace.pipeline.client import Client
from ghosttrace.pipeline.compression import compress
from ghosttrace.pipeline.facts import missing_facts
from ghosttrace.pipeline.judgement import better, judge
from ghosttrace.pipeline.prompt_files import VERSIONS, load_prompt
from ghosttrace.pipeline.rows import Memento, Row, RowError
from ghosttrace.pipeline.scoring import check_sizes, score, windows
from ghosttrace.pipeline.settings import Quality
from ghosttrace.pipeline.tokens import estimate_tokens

SENTENCES = tuple(f"This is the sentence with the number {number}. " for number in range(30))
ROW = Row(
    "a", "What is {6} x 7?", "".join(SENTENCES), "42", sentences=SENTENCES, sentence_tokens=(9,) * 30,
    blocks=((0, 9), (10, 19), (20, 29)),
)  # fmt: skip
GOOD = {"formulas": 3, "values": 2, "methods": 2, "validation": 1, "no_hallucination": 1, "result_first": 1}
Respond = Callable[[dict[str, Any]], Any]


@pytest.fixture
def server() -> Iterator[ScriptedEndpoint]:
    with scripted_endpoint(annotate) as running:
        yield running


def asked(server: ScriptedEndpoint, respond: Respond) -> list[str]:
    """Let the server answer with JSON of `respond`; return the list that will hold the user messages."""
    seen: list[str] = []

    def answer(body: dict[str, Any]) -> str:
        seen.append(body["messages"][1]["content"])
        return json.dumps(respond(body))

    server.respond = answer
    return seen


@pytest.mark.parametrize("count", [1, 2, 11, 12, 16, 17, 40])
@pytest.mark.parametrize("size", [1, 11, 16])
def test_every_boundary_lies_in_one_window(count: int, size: int) -> None:
    boundaries = [index for first, last in windows(count, size) for index in range(first, last)]
    assert boundaries == list(range(count - 1))
    assert all(last - first <= size for first, last in windows(count, size))


def test_scores_are_the_mean_over_the_passes_and_the_problem_is_shown(server: ScriptedEndpoint, tmp_path: Path) -> None:
    def respond(body: dict[str, Any]) -> Any:
        numbers = body["messages"][1]["content"].count("<sentence")
        return {"scores": [3 if numbers == 17 else 2] * (numbers - 1)}

    seen = asked(server, respond)
    scored = run(server, tmp_path, lambda client: score(ROW, client, (16, 11)))
    assert scored.boundary_scores == (2.5,) * 16 + (2.0,) * 13
    assert len(seen) == 2 + 3 and all("What is {6} x 7?" in message for message in seen)
    assert "after sentence 1, after sentence 2, and so on up to the boundary after sentence 16." in "".join(seen)


def test_a_wrong_number_of_scores_is_asked_again(server: ScriptedEndpoint, tmp_path: Path) -> None:
    corrections = []

    def respond(body: dict[str, Any]) -> Any:
        if len(body["messages"]) == 2:
            return {"scores": [1, 2, 3]}
        corrections.append(body["messages"][3]["content"])
        return {"scores": [1] * 29}

    asked(server, respond)
    assert run(server, tmp_path, lambda client: score(ROW, client, (29,))).boundary_scores == (1.0,) * 29
    assert "scores: List should have at least 29 items after validation, not 3" in corrections[0]


@pytest.mark.parametrize("scores", [[1] * 3, [4] * 29, [0.5] * 29, ["x"] * 29, None])
def test_a_failure_is_never_a_score(server: ScriptedEndpoint, tmp_path: Path, scores: Any) -> None:
    asked(server, lambda _: {"scores": scores})
    with pytest.raises(RowError, match="unusable answer: after 3 attempts, scores"):
        run(server, tmp_path, lambda client: score(ROW, client, (29,)))


@pytest.mark.parametrize("sizes", [(), (0,), (16, 8), (9, 4, 6)])
def test_window_sizes_are_checked(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="--windows must be positive sizes without a common divisor"):
        check_sizes(sizes)


def written(*texts: str) -> Any:
    return {f"block_{number}": text for number, text in enumerate(texts, 1)}


def drafted(server: ScriptedEndpoint, folder: Path, row: Row = ROW, quality: Quality | None = None) -> Row:
    result: Row = run(server, folder, lambda client: compress(row, client, estimate_tokens, quality or Quality()))
    return result


def test_the_compressor_sees_all_blocks_and_each_budget(server: ScriptedEndpoint, tmp_path: Path) -> None:
    seen = asked(server, lambda _: written("one", "two", "a stray\nnewline"))
    drafts = drafted(server, tmp_path).drafts
    assert [draft and draft.text for draft in drafts] == ["one", "two", "a stray\nnewline"]
    assert all(sentence.strip() in seen[0] for sentence in SENTENCES)
    assert seen[0].count('memento_tokens="40"') == 3


def judged(server: ScriptedEndpoint, folder: Path, row: Row) -> Row:
    result: Row = run(server, folder, lambda client: judge(row, client))
    return result


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (written("one", "two"), "block_3: Field required"),
        (written("one", "two", "three", "four"), "block_4: Extra inputs are not permitted"),
        (written("one", "two", " "), "no memento may be empty"),
        (written("one", "two", "<|block_end|>"), "no memento may hold one of"),
        (written("one", "two") | {"block_3": ["x"]}, "block_3: Input should be a valid string"),
    ],
)
def test_mementos_of_another_form_are_asked_again(
    server: ScriptedEndpoint, tmp_path: Path, answer: Any, wrong: str
) -> None:
    corrections: list[str] = []

    def respond(body: dict[str, Any]) -> Any:
        corrections.extend(message["content"] for message in body["messages"][3:])
        return answer if len(body["messages"]) == 2 else written("one", "two", "three")

    asked(server, respond)
    assert len(drafted(server, tmp_path).drafts) == 3
    assert wrong in corrections[0]


def test_code_finds_long_mementos_and_new_numbers(server: ScriptedEndpoint, tmp_path: Path) -> None:
    asked(server, lambda _: written("word " * 41, "number 12 and 99", "number 25"))
    problems = [draft.problems for draft in drafted(server, tmp_path).drafts if draft]
    assert problems == [("it has 41 tokens, and 40 are allowed",), ("the block lacks the numbers 99",), ()]


@pytest.mark.parametrize(
    ("memento", "block", "missing"),
    [
        ("x = 12", "we get 12", []),
        ("x = 3", "we get 12", ["the block lacks the numbers 3"]),
        ("1,000 and 2.50", "it is 1000, then 2.5", []),
        ("2 roots", "there are two roots", []),
        ("$x^2 = 4$", "so \\( x^{2} = 4 \\), hence", []),
        ("$x^2 = 5$", "so \\( x^2 = 4 \\), hence 5", ["the block lacks the formulas $x^2 = 5$"]),
        ("\\(\\left( a + b \\right)\\)", "then $(a+b)$", []),
        ("10", "we get 12", ["the block lacks the numbers 10"]),
    ],
)
def test_facts(memento: str, block: str, missing: list[str]) -> None:
    assert missing_facts(memento, block) == missing


def test_only_mementos_that_were_not_accepted_are_rewritten_with_the_feedback(
    server: ScriptedEndpoint, tmp_path: Path
) -> None:
    def respond(body: dict[str, Any]) -> Any:
        if stage_of(body) == "judge":
            weak = "draft" in body["messages"][1]["content"].split("<memento>")[1]
            return GOOD | {"formulas": 0 if weak else 3, "feedback": "quote the sentence" if weak else ""}
        if "<rewrite" in body["messages"][1]["content"]:
            return {"block_2": "better"}
        return written("one", "draft", "three")

    seen = asked(server, respond)
    first = judged(server, tmp_path, drafted(server, tmp_path))
    assert [memento and memento.score for memento in first.mementos] == [10, 7, 10]
    second = judged(server, tmp_path, drafted(server, tmp_path, first))
    assert [memento and memento.text for memento in second.mementos] == ["one", "better", "three"]
    rewrite = next(message for message in seen if "<rewrite" in message)
    assert "<memento>draft</memento>\n<feedback>quote the sentence</feedback>" in rewrite
    assert drafted(server, tmp_path, second) == second  # nothing is left to rewrite


def test_the_best_memento_is_kept_and_not_the_last() -> None:
    weak, strong = Memento("a", 1, rubric={"formulas": 1}), Memento("b", 1, rubric={"formulas": 3})
    unsound = replace(strong, problems=("the block lacks the numbers 9",), rubric=GOOD)
    assert better(weak, strong) == strong and better(unsound, weak) == weak
    for old, new in ((strong, weak), (weak, unsound)):
        kept = better(old, replace(new, feedback="more"))
        assert kept is not None and (kept.text, kept.rubric) == (old.text, old.rubric)
        assert kept.feedback.startswith(" A rewrite was no better: ") and kept.feedback.endswith("more")
    assert better(None, weak) == weak == better(weak, None)


def test_the_judge_is_told_what_code_and_model_found(server: ScriptedEndpoint, tmp_path: Path) -> None:
    seen = asked(server, lambda _: GOOD | {"feedback": ""})
    row = replace(ROW, drafts=(Memento("x", 1, ("the block lacks the numbers 9",)), None, None), mementos=(None,) * 3)
    run(server, tmp_path, lambda client: judge(replace(row, ghost_bits=(12.5, 0.0, 0.0)), client))
    assert "Found by code: the block lacks the numbers 9." in seen[0] and "12.500 bits" in seen[0]


@pytest.mark.parametrize("points", [{"formulas": 4}, {"values": -1}, {"methods": None}, {"feedback": 3}])
def test_a_judgement_outside_the_rubric_is_a_failure(
    server: ScriptedEndpoint, tmp_path: Path, points: dict[str, Any]
) -> None:
    asked(server, lambda _: GOOD | {"feedback": ""} | points)
    row = replace(ROW, drafts=(Memento("x", 1), None, None), mementos=(None,) * 3)
    with pytest.raises(RowError, match=f"unusable answer: after 3 attempts, {next(iter(points))}"):
        run(server, tmp_path, lambda client: judge(row, client))


@pytest.mark.parametrize("stage", [score, judge])
def test_a_stage_names_the_one_before_it(server: ScriptedEndpoint, tmp_path: Path, stage: Any) -> None:
    with pytest.raises(RowError, match="run ghosttrace data"):
        run(server, tmp_path, lambda client: stage(Row("a", "p", "t", "4"), client))


@pytest.mark.parametrize("name", VERSIONS)
def test_prompts_hold_no_open_placeholder(name: str) -> None:
    prompt = load_prompt(name)
    placeholders = {part.partition("}")[0] for part in prompt.user.split("{")[1:]}
    filled = prompt.fill(dict.fromkeys(placeholders, "{problem}"))
    assert prompt.system == filled[0]["content"] and len(placeholders) >= 3
    assert filled[1]["content"].count("{problem}") >= len(placeholders)
    assert "JSON object" in prompt.system and len(prompt.sha256) == 64


@pytest.mark.parametrize("settings", [{"threshold": 11}, {"rounds": -1}, {"max_share": 0}])
def test_quality_is_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--threshold must be from 0 to 10"):
        Quality(**settings)


def test_a_window_that_fails_ends_the_questions_of_its_row(server: ScriptedEndpoint, tmp_path: Path) -> None:
    server.respond, server.delay = (lambda _: "no"), 0.01

    async def talk(client: Client) -> int:
        with pytest.raises(RowError, match="unusable answer"):
            await score(ROW, client, (1,))
        sent = len(server.received)
        await asyncio.sleep(0.1)
        return sent

    sent = run(server, tmp_path, talk, concurrency=2)
    assert len(server.received) <= sent + 2  # those under way


def test_ghost_bits_belong_to_the_memento_that_is_kept(server: ScriptedEndpoint, tmp_path: Path) -> None:
    old = Memento("old", 3, rubric=GOOD, ghost_bits=0.1)
    draft = Memento("draft", 3, ("a problem",))
    row = replace(ROW, drafts=(draft, Memento("new", 3), None), mementos=(old, None, old), ghost_bits=(0.7, 0.8, 0.9))
    kept = run(server, tmp_path, lambda client: judge(row, client))
    assert [memento.text for memento in kept.mementos] == ["old", "new", "old"] and kept.ghost_bits == (0.1, 0.8, 0.1)


@pytest.mark.parametrize(
    ("memento", "block", "lacks"),
    [
        ("$x = 1$", "We have $x = 12$ and 1 apple", True),
        ("$x = 1$", "We have $x = 1.5$ and 1 apple", True),
        ("$2 + x$", "We have $12 + x$ and 2 apples", True),
        ("$x = 1$", "We have $x = 1$\n2. Next", False),
        ("$x = 1$", "So x = 1. 2 apples remain", False),
        ("1234 apples", "There are $1{,}234$ apples", False),
        ("$\\frac{1}{2}$", "It is $\\dfrac{1}{2}$.", False),
        ("$\\dfrac{1}{2}$", "It is $\\frac{1}{2}$.", False),
    ],
)
def test_numbers_and_formulas_are_compared_whole(memento: str, block: str, lacks: bool) -> None:
    assert bool(missing_facts(memento, block)) == lacks
