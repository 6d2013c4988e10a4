"""Selection of seed traces in the usual styles; what cannot be used is dropped with its reason.

Styles: messages or conversations (OpenThoughts, Qwen3), and flat rows of a problem with a response (QwQ) or with
reasoning and answer apart (DeepSeek-R1). The reasoning stands in think tags, in OpenThoughts' tags, or in a field of
its own.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

from ghosttrace.pipeline.compression import SPECIAL, special_token
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
FINAL_ANSWER = re.compile(r"(?m)^[^\S\n]*(?:\*+[^\S\n]*)?Final Answer\b")
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


@dataclass
class Seen:
    """Names and texts of the traces selected so far, over all sources."""

    names: set[str] = field(default_factory=set)
    texts: set[int] = field(default_factory=set)

    def free_name(self, name: str, source: str) -> str:
        """Return the name, or `SOURCE:NAME` if another trace has it, with a number if that is taken as well."""
        choices = chain([name, f"{source}:{name}"], (f"{source}:{name}:{number}" for number in count(2)))
        return next(choice for choice in choices if choice not in self.names)


def select_one(
    record: Any, number: str, filters: Filters, count_tokens: TokenCounter, seen: Seen, source: str
) -> Row | SetAside:
    """Return the row of a seed trace, or the reason why it is dropped.

    Args:
        record: the seed trace.
        number: its name, if it has none.
        filters: which are kept.
        count_tokens: counts the tokens of the reasoning.
        seen: the traces selected before; this one is added.
        source: name of its source, which tells traces with the same name apart.
    """
    name = _first(record, NAME_KEYS) if isinstance(record, Mapping) else None
    task_id = str(name) if isinstance(name, str | int) else number
    try:
        row = parse_seed(record, seen.free_name(task_id, source))
        _check(row, filters, count_tokens)
        if hash((row.problem, row.thought)) in seen.texts:
            raise RowError("repeated trace")
    except RowError as error:
        return SetAside(task_id, "select", str(error))
    seen.names.add(row.task_id)
    seen.texts.add(hash((row.problem, row.thought)))
    return row


def select(
    sources: Iterable[tuple[str, Iterable[Any]]], filters: Filters, count_tokens: TokenCounter
) -> Iterator[Row | SetAside]:
    """Yield a row for each usable seed trace, and the reason for each other one.

    Args:
        sources: name and seed traces of each source.
        filters: which are kept.
        count_tokens: counts the tokens of the reasoning.
    """
    seen = Seen()
    numbers = count()
    for source, records in sources:
        for record in records:
            yield select_one(record, str(next(numbers)), filters, count_tokens, seen, source)


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
        if not isinstance(response, str | None):
            raise RowError("the answer is no text")
        thought, answer = reasoning, response or ""
    elif _is_text(response):
        thought, answer = _split_think(response)
    else:
        raise RowError("no response")
    thought, answer = thought.strip(), answer.strip()
    headings = [] if answer else [match.start() for match in FINAL_ANSWER.finditer(thought)]
    if headings:  # QwQ writes the answer at the end of its reasoning
        thought, answer = thought[: headings[-1]].rstrip(), thought[headings[-1] :].strip()
    if not thought or not answer:
        raise RowError("no answer after the reasoning" if thought else "no reasoning")
    known = {name: str(record[name]) for name in ("domain", "source") if record.get(name) is not None}
    return Row(
        task_id,
        problem.strip(),
        thought,
        answer,
        difficulty=_difficulty(record.get("difficulty")),
        **known,  # type: ignore[arg-type]
    )


def _difficulty(value: Any) -> float | None:
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RowError("difficulty is no finite number")
    return number


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
    tokens = [special_token(text) for text in (row.problem, row.thought, row.answer)]
    if any(tokens):
        raise RowError(f"holds special tokens of a chat template: {next(filter(None, tokens))}")
    if any(CJK.search(text) for text in (row.problem, row.thought, row.answer)):
        raise RowError("holds Chinese, Japanese or Korean characters")
    (length,) = count_tokens([row.thought])
    if length < filters.min_tokens:
        raise RowError(f"too short: {length} tokens of reasoning")
    if filters.max_tokens is not None and length > filters.max_tokens:
        raise RowError(f"too long: {length} tokens of reasoning")


def _first(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
