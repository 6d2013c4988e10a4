"""Boxes: labelled parts of a trace, in which erased text is marked."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ghosttrace.law.expiry import NEVER


class Piece(NamedTuple):
    """A stretch of text that is erased or retained as a whole.

    Attributes:
        text: The text.
        erased: Whether it leaves the cache.
        delimiter: Whether it is one of Memento's delimiters.
        left_after: Under another law than Memento's, the number of tokens that were read when it left; None if it
            stayed, or if the label of the box says it.
    """

    text: str
    erased: bool
    delimiter: bool
    left_after: int | None = None


class Box(NamedTuple):
    """A labelled part of a response.

    Attributes:
        label: `block 1`, `memento 1`, `text`, `answer`, `unfinished block` or `unfinished memento`; under another law
            than Memento's `prompt`, `text` or `answer`.
        tokens: Number of tokens between its delimiters.
        pieces: Its text, delimiters included.
    """

    label: str
    tokens: int
    pieces: tuple[Piece, ...]


def boxes_of_tokens(row: Mapping[str, Any], times: np.ndarray) -> list[Box]:
    """Divide prompt and response of a sample under another law than Memento's, which erases single tokens.

    The prompt is shown too, because a tool result may stand in it.

    Args:
        row: A sample (`ghosttrace.ablation.samples.SAMPLE_SCHEMA`).
        times: int64[T], expiry of each token of prompt and response.

    Returns:
        The boxes. A run that did not record where its tokens stand in the text has the response alone, without marks.
    """
    prompt, response, num_prompt = row.get("prompt_text"), row["response"], len(row["prompt_ids"])
    ends = row.get("token_ends")
    text = f"{prompt}{response}"
    if prompt is None or not ends or len(ends) != len(times) or ends[-1] != len(text):
        return [Box("text", len(row["response_ids"]), (Piece(response, False, False),))]
    before, mark, _ = response.rpartition("</think>")
    answer = len(prompt) + len(before) + len(mark) if mark else len(text)
    parts = [("prompt", num_prompt, 0, len(prompt))]
    parts.append(("text", len(times) - num_prompt, len(prompt), answer))
    parts.append(("answer", 0, answer, len(text)))
    pieces = [(label, count, tuple(_pieces(text, ends, times, begin, end))) for label, count, begin, end in parts]
    return [Box(*box) for box in pieces if box[2]]


def _pieces(text: str, ends: Sequence[int], times: np.ndarray, begin: int, end: int) -> Iterator[Piece]:
    """Yield the pieces of `text[begin:end]`, one for each run of tokens that leave at the same time."""
    changes = [0, *(np.flatnonzero(np.diff(times)) + 1).tolist(), len(times)]
    for first, last in pairwise(changes):
        start, stop = max(begin, ends[first - 1] if first else 0), min(end, ends[last - 1])
        if start < stop:
            left = int(times[first])
            yield Piece(text[start:stop], left < NEVER, False, left if left < NEVER else None)
