"""Selection of seed traces in the usual styles; what cannot be used is dropped with its reason.

Styles: messages or conversations (OpenThoughts, Qwen3), and flat rows of a problem with a response (QwQ) or with
reasoning and answer apart (DeepSeek-R1). The reasoning stands in think tags, in OpenThoughts' tags, or in a field of
its own.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ghosttrace.pipeline.compression import SPECIAL
from ghosttrace.pipeline.rows import Row, RowError, SetAside
from ghosttrace.pipeline.tokens import TokenCounter

PROBLEM_KEYS = ("problem", "question", "prompt", "instruction")
RESPONSE_KEYS = ("response", "generation", "completion", "output", "cot")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "deepseek_reasoning")
ANSWER_KEYS = ("content", "answer", "deepseek_solution", "solution")
NAME_KEYS = ("task_id", "id", "uuid")
TAG_SPELLINGS = {
    "<|begin_of_thought|>": "<think>",
    "<|end_of_thought|>": "</think>",
    "<|begin_of_solution|>": "",
    "<|end_of_solution|>": "",
}
FINAL_ANSWER = re.compile(r"(?m)^\s*\**\s*Final Answer\b(?!.*^\s*\**\s*Final Answer\b)", re.DOTALL)
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")


@dataclass(frozen=True)
class Filters:
    """Which seed traces are kept.

    Attributes:
        min_tokens: shortest reasoning.
        max_tokens: longest reasoning; None is unlimited.
    """

    min_tokens: int = 400
    max_tokens: int | None = None


def select(records: Iterable[Any], filters: Filters, count_tokens: TokenCounter) -> Iterator[Row | SetAside]:
    """Yield a row for each usable seed trace, and the reason for each other one.

    Args:
        records: the seed traces.
        filters: which are kept.
        count_tokens: counts the tokens of the reasoning.
    """
    names: set[str] = set()
    texts: set[int] = set()
    for number, record in enumerate(records):
        name = _first(record, NAME_KEYS) if isinstance(record, Mapping) else None
        task_id = str(name if name is not None else number)
        try:
            row = parse_seed(record, task_id)
            _check(row, filters, count_tokens)
            if task_id in names:
                raise RowError("repeated task_id")
            if hash((row.problem, row.thought)) in texts:
                raise RowError("repeated trace")
        except RowError as error:
            yield SetAside(task_id, "select", str(error))
            continue
        names.add(task_id)
        texts.add(hash((row.problem, row.thought)))
        yield row


def parse_seed(record: Any, task_id: str) -> Row:
    """Find problem, reasoning and answer of a seed trace.

    Raises:
        RowError: one of them is missing, or the think tags are not one complete pair.
    """
    if not isinstance(record, Mapping):
        raise RowError("no columns: a row must be an object")
    problem, reasoning, response = _fields(record)
    if not _is_text(problem):
        raise RowError("no problem")
    if _is_text(reasoning):
        thought, answer = reasoning, response or ""
    elif _is_text(response):
        thought, answer = _split_think(response)
    else:
        raise RowError("no response")
    thought, answer = thought.strip(), answer.strip()
    final = None if answer else FINAL_ANSWER.search(thought)
    if final:  # QwQ writes the answer at the end of its reasoning
        thought, answer = thought[: final.start()].rstrip(), thought[final.start() :].strip()
    if not thought or not answer:
        raise RowError("no answer after the reasoning" if thought else "no reasoning")
    difficulty = record.get("difficulty")
    known = {name: str(record[name]) for name in ("domain", "source") if record.get(name) is not None}
    return Row(
        task_id,
        problem.strip(),
        thought,
        answer,
        difficulty=float(difficulty) if isinstance(difficulty, int | float) else None,
        **known,  # type: ignore[arg-type]
    )


def _fields(record: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return problem, reasoning and response or answer, as far as the record has them."""
    turns = record.get("messages") or record.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        reasoning = _first(record, REASONING_KEYS)
        response = _first(record, ANSWER_KEYS if _is_text(reasoning) else (*RESPONSE_KEYS, "content"))
        return _first(record, PROBLEM_KEYS), reasoning, response
    problem = reasoning = response = None
    for turn in turns:
        text = turn.get("content", turn.get("value"))
        match turn.get("role", turn.get("from")):
            case "user" | "human" if problem is None:
                problem = text
            case "assistant" | "gpt" if response is None:
                reasoning, response = _first(turn, REASONING_KEYS), text
    return problem, reasoning, response


def _split_think(response: str) -> tuple[str, str]:
    for tag, spelling in TAG_SPELLINGS.items():
        response = response.replace(tag, spelling)
    opened, closed = response.count("<think>"), response.count("</think>")
    if not closed:
        raise RowError("unclosed <think>" if opened else "no think tags")
    if opened > 1 or closed > 1:
        raise RowError("several think tags")
    before, _, rest = response.rpartition("<think>")  # DeepSeek's template opens the tag, so it may be missing
    thought, _, answer = rest.partition("</think>")
    if before.strip() or (opened and "</think>" not in rest):
        raise RowError("text before <think>")
    return thought, answer


def _check(row: Row, filters: Filters, count_tokens: TokenCounter) -> None:
    if any(mark in text for text in (row.problem, row.thought, row.answer) for mark in SPECIAL):
        raise RowError("holds delimiters or think tags in its text")
    if any(CJK.search(text) for text in (row.problem, row.thought, row.answer)):
        raise RowError("holds Chinese, Japanese or Korean characters")
    (tokens,) = count_tokens([row.thought])
    if tokens < filters.min_tokens:
        raise RowError(f"too short: {tokens} tokens of reasoning")
    if filters.max_tokens is not None and tokens > filters.max_tokens:
        raise RowError(f"too long: {tokens} tokens of reasoning")


def _first(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
