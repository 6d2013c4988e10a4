"""Scores of the boundaries between sentences, from 0 (mid-thought) to 3 (chapter break), by a language model.

The boundaries are scored in windows. Each pass has a window size of its own; sizes without a common divisor put the
edges of the windows at different boundaries. The score of a boundary is the mean over the passes.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from math import gcd
from typing import Annotated

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field, create_model

from ghosttrace.errors import UserError
from ghosttrace.pipeline.answers import ask
from ghosttrace.pipeline.client import Client, Message
from ghosttrace.pipeline.process import all_of
from ghosttrace.pipeline.prompt_files import load_prompt
from ghosttrace.pipeline.rows import Row, RowError

WINDOW_SIZES = (16, 11)
Score = Annotated[int, Field(ge=0, le=3)]


class Scores(BaseModel):
    """The scores of the boundaries of one window."""

    model_config = ConfigDict(extra="forbid")
    scores: list[Score]


async def score(row: Row, client: Client, sizes: Sequence[int] = WINDOW_SIZES) -> Row:
    """Add the boundary scores of a row.

    Args:
        row: a row with sentences.
        client: client of the endpoint.
        sizes: boundaries in a window, one size for each pass.

    Raises:
        RowError: the row has no sentences, or a window was not scored.
    """
    if not row.sentences:
        raise RowError("no sentences: run ghosttrace data split first")
    passes = await all_of(_score_pass(row, client, size) for size in sizes)
    scores = tuple(sum(of_boundary) / len(passes) for of_boundary in zip(*passes, strict=True))
    return replace(row, boundary_scores=scores)


def check_sizes(sizes: Sequence[int]) -> None:
    """Check the window sizes.

    Raises:
        UserError: there is none, one is not positive, or two have a common divisor.
    """
    if not sizes or min(sizes) < 1 or any(gcd(*pair) > 1 for pair in combinations(sizes, 2)):
        raise UserError(
            f"--windows must be positive sizes without a common divisor, such as 16,11, not {','.join(map(str, sizes))}"
        )


def windows(sentence_count: int, size: int) -> list[tuple[int, int]]:
    """Return the first and the last sentence of each window; `size` boundaries lie between them, or fewer at the end.

    Consecutive windows share one sentence, so that each boundary lies in exactly one window.
    """
    return [(first, min(first + size, sentence_count - 1)) for first in range(0, sentence_count - 1, size)]


def score_messages(row: Row, first: int, last: int) -> list[Message]:
    """Return the messages that ask for the scores of a window."""
    sentences = row.sentences[first : last + 1]
    shown = "\n".join(f'<sentence n="{number}">{text.strip()}</sentence>' for number, text in enumerate(sentences, 1))
    values = {"problem": row.problem, "sentences": shown, "boundary_count": last - first}
    return load_prompt("score").fill(values | {"sentence_count": len(sentences)})


async def _score_pass(row: Row, client: Client, size: int) -> list[int]:
    scored = await all_of(_score_window(row, client, first, last) for first, last in windows(len(row.sentences), size))
    return [score for window in scored for score in window]


async def _score_window(row: Row, client: Client, first: int, last: int) -> list[int]:
    form = _window_form(last - first)
    answer = await ask(client, "score", score_messages(row, first, last), form, 64 + 16 * (last - first))
    return answer.scores


@lru_cache(maxsize=1024)
def _window_form(boundaries: int) -> type[Scores]:
    return create_model(
        "WindowScores", __base__=Scores, scores=(Annotated[list[Score], Len(boundaries, boundaries)], ...)
    )
