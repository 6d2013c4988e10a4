"""Validation of the columns beside the response: sentences, blocks, scores and certificate."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ghosttrace.pipeline.check_response import Pair
from ghosttrace.pipeline.segmentation import objective

FULL_COLUMNS = ("sentences", "blocks", "block_summaries")
TEXT_COLUMNS = ("domain", "source", "task_id")
NUMBER_COLUMNS = ("objective", "objective_bound", "spread_weight", "avg_final_score")
NUMBER_TOLERANCE = 1e-6
MAX_NUMBER = 1e15  # far beyond any count or score; larger integers have no exact float
SPACE = re.compile(r"\s+")


def text_problems(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the columns that every row has."""
    problem = record.get("problem")
    if not isinstance(problem, str) or not problem.strip():
        yield "problem is missing, empty or no text"
    for name in TEXT_COLUMNS:
        if record.get(name) is not None and not isinstance(record[name], str):
            yield f"{name} is no text"
    difficulty = record.get("difficulty")
    if not (difficulty is None or isinstance(difficulty, str) or _is_number(difficulty)):
        yield "difficulty is neither a number nor text"


def full_problems(record: Mapping[str, Any], pairs: Sequence[Pair]) -> Iterator[str]:
    """Yield what is wrong with sentences, blocks and block_summaries.

    Args:
        record: a row of the configuration `full`.
        pairs: blocks and mementos of its response.
    """
    missing = [name for name in FULL_COLUMNS if record.get(name) is None]
    if missing:
        yield f"{missing[0]} is missing, and the row has {next(n for n in FULL_COLUMNS if n not in missing)}"
        return
    sentences, blocks, summaries = (record[name] for name in FULL_COLUMNS)
    if not _is_list_of(sentences, str) or not all(sentences):
        yield "sentences is no list of texts that are not empty"
        return
    if not isinstance(blocks, list) or not all(_is_list_of(block, int) and len(block) == 2 for block in blocks):
        yield "blocks is no list of [first, last]"
        return
    if not _is_list_of(summaries, str):
        yield "block_summaries is no list of texts"
        return
    if not len(blocks) == len(summaries) == len(pairs):
        yield f"{len(blocks)} blocks, {len(summaries)} block_summaries and {len(pairs)} blocks in the response"
        return
    begin = 0
    for number, (first, last) in enumerate(blocks, 1):
        if first != begin:
            yield f"block {number} begins at sentence {first}, and {begin} is expected"
            return
        if last < first:
            yield f"block {number} ends at sentence {last}, before it begins"
            return
        begin = last + 1
    if begin != len(sentences):
        yield f"the blocks end at sentence {begin - 1}, and there are {len(sentences)} sentences"
        return
    for number, ((first, last), pair, summary) in enumerate(zip(blocks, pairs, summaries, strict=True), 1):
        if _plain("".join(sentences[first : last + 1])) != _plain(pair.block):
            yield f"block {number} of the response is not made of its sentences"
        if summary.strip() != pair.memento.strip():
            yield f"memento {number} of the response is not block_summaries[{number - 1}]"


def annotation_problems(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with scores, certificate and ghost bits, as far as a row of `full` has them."""
    sentences, blocks = len(record["sentences"]), len(record["blocks"])
    lengths = {
        "boundary_scores": sentences - 1,
        "sentence_tokens": sentences,
        "memento_tokens": blocks,
        "memento_scores": blocks,
    }
    for name, length in lengths.items():
        values = record.get(name)
        if values is not None and (not _is_numbers(values) or len(values) != length):
            yield f"{name} is no list of {length} numbers"
            return
    for name in NUMBER_COLUMNS:
        if record.get(name) is not None and not _is_number(record[name]):
            yield f"{name} is no number"
            return
    tokens = record.get("sentence_tokens")
    if tokens is not None and (min(tokens) < 0 or not any(tokens)):
        yield "sentence_tokens holds a negative number, or nothing but 0"
        return
    for name, highest in (("boundary_scores", 3), ("memento_scores", 10)):
        outside = [value for value in record.get(name) or () if not 0 <= value <= highest]
        if outside:
            yield f"{name} holds {outside[0]}, and 0 to {highest} is allowed"
    ghost_bits = record.get("ghost_bits")
    if not (ghost_bits is None or ghost_bits == [] or (_is_numbers(ghost_bits) and len(ghost_bits) == blocks)):
        yield f"ghost_bits is no list of {blocks} numbers"
    scores, average = record.get("memento_scores"), record.get("avg_final_score")
    if scores and average is not None and abs(sum(scores) / len(scores) - average) > NUMBER_TOLERANCE:
        yield f"avg_final_score is {average}, and the mean of memento_scores is {sum(scores) / len(scores):g}"
    yield from _acceptance_problems(record, blocks)
    yield from _certificate_problems(record)


def _acceptance_problems(record: Mapping[str, Any], blocks: int) -> Iterator[str]:
    accepted, found = record.get("accepted"), record.get("memento_problems")
    if accepted is not None and type(accepted) is not bool:
        yield "accepted is neither true nor false"
    if found is None:
        return
    if not isinstance(found, list) or len(found) != blocks or not all(_is_list_of(item, str) for item in found):
        yield f"memento_problems is no list of {blocks} lists of texts"
    elif accepted is True and any(found):
        yield f"accepted is true, and a memento has a problem: {next(item for item in found if item)[0]}"


def _certificate_problems(record: Mapping[str, Any]) -> Iterator[str]:
    names = ("objective", "objective_bound", "spread_weight", "sentence_tokens", "boundary_scores")
    if any(record.get(name) is None for name in names):
        return
    tokens, scores = record["sentence_tokens"], record["boundary_scores"]
    lengths = [sum(tokens[first : last + 1]) for first, last in record["blocks"]]
    value = objective(lengths, [scores[first - 1] for first, _ in record["blocks"][1:]], record["spread_weight"])
    if abs(value - record["objective"]) > NUMBER_TOLERANCE:
        yield f"objective is {record['objective']:g}, and the blocks give {value:g}"
    if not -NUMBER_TOLERANCE <= record["objective_bound"] - record["objective"] <= NUMBER_TOLERANCE:
        yield f"objective_bound is {record['objective_bound']:g}, so the blocks are not proven to be the best"


def _plain(text: str) -> str:
    return SPACE.sub("", text)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -MAX_NUMBER <= value <= MAX_NUMBER
