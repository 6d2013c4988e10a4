"""Validation of a response: think tags, and blocks and mementos in their delimiters."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ghosttrace.law.markup import DELIMITERS

MARKS = tuple(f"<|{name}|>" for name in DELIMITERS)
THINK, END_THINK = "<think>", "</think>"
MARK = re.compile("|".join(map(re.escape, (*MARKS, THINK, END_THINK))))
SEGMENT_ORDER = {"block": "summary", "summary": "block"}


class ProblemError(Exception):
    """Text that is not of the format; the message says why."""


@dataclass(frozen=True)
class Pair:
    """Text of a block and of its memento."""

    block: str
    memento: str


def parse_response(response: str) -> list[Pair]:
    """Return the blocks and mementos of a response.

    Raises:
        ProblemError: the response is not `<think>`, pairs of block and memento, `</think>`, answer.
    """
    if not response.startswith(THINK):
        raise ProblemError("the response does not begin with <think>")
    pairs: list[Pair] = []
    texts: list[str] = []
    expected, position = MARKS[0], len(THINK)
    closed = False
    for match in MARK.finditer(response, position):
        text, position = response[position : match.start()], match.end()
        if closed:
            raise ProblemError(f"{match[0]} in the answer, at character {match.start()}")
        if match[0] == END_THINK and expected == MARKS[0]:
            closed = True
        elif match[0] != expected:
            raise ProblemError(f"{match[0]} where {expected} is expected, at character {match.start()}")
        _check_gap(expected, text, len(pairs) + 1)
        texts.append(text)
        if match[0] == MARKS[3]:
            pairs.append(Pair(texts[-3], texts[-1]))
        expected = MARKS[(MARKS.index(expected) + 1) % 4]
    if not closed:
        raise ProblemError(f"the response ends before {expected if expected != MARKS[0] else END_THINK}")
    if not pairs:
        raise ProblemError("the response has no block")
    if not response[position:].strip():
        raise ProblemError("no answer after </think>")
    return pairs


def _check_gap(following: str, text: str, number: int) -> None:
    """Check the text before a delimiter."""
    if following == MARKS[1] and not text.strip():
        raise ProblemError(f"block {number} is empty")
    if following == MARKS[3] and not text.strip():
        raise ProblemError(f"memento {number} is empty")
    if following in (MARKS[0], MARKS[2]) and text.strip():
        place = f"before block {number}" if following == MARKS[0] else f"between block {number} and its memento"
        raise ProblemError(f"text {place}: {text.strip()[:40]!r}")


def pair_problems(pairs: list[Pair]) -> Iterator[str]:
    """Yield each memento that is not shorter than its block."""
    for number, pair in enumerate(pairs, 1):
        if len(pair.memento.strip()) >= len(pair.block.strip()):
            yield f"memento {number} is not shorter than its block"


def segment_problems(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the segments of a trace: their order, numbers, lengths and texts."""
    expected, number = "block", 1
    segments = record["segments"]
    for index, segment in enumerate(segments):
        kind, text = segment["type"], segment["text"]
        where = f"segment {index}"
        if kind != expected and not (kind == "answer" and expected == "block" and index == len(segments) - 1):
            yield f"{where} is of type {kind}, and {expected} is expected"
            return
        if MARK.search(text):
            yield f"{where} holds {MARK.findall(text)[0]} in its text"
        if segment.get("char_len", len(text)) != len(text):
            yield f"{where} has {len(text)} characters, and char_len says {segment['char_len']}"
        if kind != "answer":
            if segment.get("block_idx", number) != number:
                yield f"{where} has block_idx {segment['block_idx']}, and {number} is expected"
            expected = SEGMENT_ORDER[kind]
            number += kind == "summary"
    if not segments or segments[-1]["type"] != "answer":
        yield "the last segment is no answer"
