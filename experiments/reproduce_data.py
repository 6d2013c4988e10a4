"""Data of `experiments/reproduce_paper.py`: rows of OpenMementos, or for a rehearsal generated ones of its format."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ghosttrace.bench import Harness, Problem
from ghosttrace.bench.story import draw_story
from ghosttrace.data.read import iter_records
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import ExpiryTracker
from ghosttrace.runs.atomic import commit_file

STREAM = 0x9E9E0D  # of random numbers, apart from those of `story` and its training rows
FORCED_PAIR = "<|block_start|>We take step {0}. It is done.<|block_end|><|summary_start|>Step {0}: done.<|summary_end|>"
COLUMNS = ("problem", "response", "domain", "source", "difficulty")
"""Columns of OpenMementos, configuration `default`."""


def sample_rows(source: str, n: int, seed: int) -> list[dict[str, Any]]:
    """Draw `n` rows of a data set without replacement, reading it once; all rows if it has no more.

    The paper does not say which rows it trained on. A uniform sample keeps the shares of the domains.

    Args:
        source: See `ghosttrace.data.read.iter_records`.
        n: Number of rows.
        seed: Random seed.

    Returns:
        The rows in random order, with `COLUMNS`.

    Raises:
        UserError: The source cannot be read, or a row has no problem or no response.
    """
    rng = np.random.default_rng([seed, STREAM])
    kept: list[dict[str, Any]] = []
    for number, row in enumerate(iter_records(source)):
        if not isinstance(row, Mapping) or not {"problem", "response"} <= row.keys():
            raise UserError(f"{source}, row {number} has no problem and response: give rows as in OpenMementos")
        place = number if number < n else int(rng.integers(number + 1))  # a reservoir
        if place < n:
            kept[place : place + 1] = [{name: row.get(name) for name in COLUMNS}]
    return [kept[index] for index in rng.permutation(len(kept))]


def story_rows(n: int, seed: int) -> list[dict[str, Any]]:
    """Return `n` problems of `story`, training split, with perfect responses, as rows of OpenMementos."""
    rng, rows = np.random.default_rng([seed, STREAM]), []
    for _ in range(n):
        story = draw_story(rng, "train", "complete", "derived")
        pairs = story.response.rpartition("Answer: ")[0]
        response = f"<think>\n{pairs}</think>\nThe answer is \\boxed{{{story.answer}}}."
        rows.append(dict(zip(COLUMNS, (story.prompt, response, "math", "story", None), strict=True)))
    return rows


def sums(n: int, seed: int) -> list[dict[str, Any]]:
    """Return `n` short problems with the columns of aime24 and its whole numbers from 0 to 999 as answers."""
    pairs = np.random.default_rng([seed, STREAM]).integers(100, 500, size=(n, 2)).tolist()
    return [{"id": f"{seed}-{i}", "problem": f"What is {a} + {b}?", "answer": a + b} for i, (a, b) in enumerate(pairs)]


def force_blocks(problem: Problem, tokenizer: Any) -> Harness:
    """Return a harness that writes three blocks with mementos and lets the model sample the answer's tokens.

    The passcodes of a rehearsal need responses with three finished blocks, which a model of a few steps does not write.

    Args:
        problem: The problem, which does not matter.
        tokenizer: A tokenizer with the delimiters.
    """

    def tokens(text: str) -> list[int | None]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    pairs = "".join(FORCED_PAIR.format(number) for number in (1, 2, 3))
    response = [*tokens(f"<think>\n{pairs}</think>\nThe answer is \\boxed{{"), *[None] * 3, *tokens("}")]
    response.append(tokenizer.eos_token_id)
    begin: list[int] = []

    def forced_token(tracker: ExpiryTracker) -> int | None:
        begin[:] = begin or [tracker.block_tracker.num_read]
        return response[tracker.block_tracker.num_read - begin[0]]

    return forced_token


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write rows to a JSONL file that is complete or does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    commit_file(partial, path)
